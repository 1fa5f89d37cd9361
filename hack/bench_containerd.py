"""The part of hack/bench that needs containerd; see there.

One server and one agent, processes of their own, and a containerd with everything of its own in one directory. `ctr` runs the same image in between.
"""

import base64
import concurrent.futures
import hashlib
import http.client
import io
import json
import os
import platform
import re
import shutil
import signal
import ssl
import statistics
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from bench_ha import until

TASKS = "/apis/muster.dev/v1/namespaces/default/tasks"
IMAGE = "muster.dev/bench:1"


class Daemon:
    """A containerd of its own."""

    def __init__(self, home):
        self.home, self.socket = home, home / "socket"
        (home / "config.toml").write_text(
            f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[plugins."io.containerd.internal.v1.opt"]\npath = "{home}/opt"\n'
        )
        self.start()

    def start(self):
        command = ["containerd", "--config", self.home / "config.toml"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("containerd", lambda: self.ctr("version", check=False).returncode == 0)

    def ctr(self, *args, check=True):
        command = ["ctr", "--address", self.socket, "-n", "muster", *args]
        return subprocess.run(command, check=check, capture_output=True)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(str(self.home)):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)


class Machine:
    """A server and an agent, with this containerd."""

    def __init__(self, mctl, home, daemon):
        self.mctl, self.home, self.daemon = mctl, home, daemon
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("MUSTER_", "XDG_", "KUBECONFIG"))}
        self.env |= {"HOME": str(home), "NO_COLOR": "1", "KUBECONFIG": str(home / "server/kubeconfig")}
        self.log = open(home / "log", "w")
        self.server = self.run("server", f"--data-dir={home}/server", "--listen=127.0.0.1:0")
        until("the server", self.access)
        token = self.said("token", "create", "--agent", "a0").strip()
        self.agent = self.run(
            "agent", f"--data-dir={home}/agent", "--name=a0", "--listen=127.0.0.1:0", "--advertise=127.0.0.1", f"--join={token}",
            f"--runtime=containerd={daemon.socket}", "--cpus=64", "--memory=64Gi",
        )
        ready = lambda: any(c["type"] == "Ready" and c["status"] == "True" for a in self.get("/apis/muster.dev/v1/agents")["items"]
                            for c in a.get("status", {}).get("conditions", []))
        until("the agent", ready)

    def run(self, *args):
        return subprocess.Popen([self.mctl, *args], env=self.env, stdout=self.log, stderr=self.log)

    def said(self, *args, stdin=None):
        ran = subprocess.run([self.mctl, *args], env=self.env, input=stdin, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"mctl {' '.join(args)}: {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def access(self):
        path = self.home / "server/kubeconfig"
        if not path.exists():
            return False
        field = lambda name: re.search(rf"^\s*{name}:\s*\"?([^\s\"]+)", path.read_text(), re.M)[1]
        self.bearer, self.host = field("token"), field("server").removeprefix("https://")
        authority = self.home / "ca.pem"
        authority.write_bytes(base64.b64decode(field("certificate-authority-data")))
        self.tls = ssl.create_default_context(cafile=authority)
        return True

    def call(self, method, path, body=None):
        link = http.client.HTTPSConnection(self.host, context=self.tls, timeout=30)
        headers = {"Authorization": "Bearer " + self.bearer, "Content-Type": "application/json"}
        link.request(method, path, json.dumps(body) if body else None, headers)
        answer = link.getresponse()
        text = answer.read()
        link.close()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:500]}")
        return json.loads(text)

    def get(self, path):
        return self.call("GET", path)

    def create(self, name, command):
        spec = {"image": IMAGE, "command": command, "resources": {"cpus": "0.01", "memory": "16Mi"}}
        self.call("POST", TASKS, {"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": name}, "spec": spec})

    def phases(self):
        return {task["metadata"]["name"]: task["status"]["phase"] for task in self.get(TASKS)["items"]}

    def wait(self, names, phase, limit=300):
        def so():
            phases = self.phases()
            return all(phases.get(name) == phase for name in names)
        until(f"{len(names)} tasks to be {phase}", so, limit)

    def empty(self):
        for name in self.phases():
            self.call("DELETE", f"{TASKS}/{name}")
        until("no task to be left", lambda: not self.phases(), 300)

    def agent_mb(self):
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def stop(self):
        self.empty()
        for process in (self.agent, self.server):
            process.send_signal(signal.SIGINT)
            process.wait(60)


def layout(at):
    """busybox, as an OCI layout."""
    blobs = at / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data, kind):
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": len(data)}

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(shutil.which("busybox"), "bin/busybox")
        for name in ("true", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    layer = blob(packed.getvalue(), "layer.v1.tar")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    config = {"architecture": machine, "os": "linux", "config": {"Cmd": ["true"]}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    manifest = {"schemaVersion": 2, "config": blob(json.dumps(config).encode(), "config.v1+json"), "layers": [layer]}
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (at / "index.json").write_text(json.dumps(index))
    return at


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def starts(machine, rounds):
    """One container after the other: from the task to Running, and `ctr run` in between."""
    ours, theirs = [], []
    for number in range(rounds):
        name = f"one{number}"
        ours.append(timed(lambda: (machine.create(name, ["sleep", "1000"]), machine.wait([name], "Running"))))
        machine.empty()
        theirs.append(timed(lambda: machine.daemon.ctr("run", "--detach", IMAGE, name, "sleep", "1000")))
        machine.daemon.ctr("task", "rm", "--force", name)
        machine.daemon.ctr("container", "rm", name)
    return statistics.median(ours), statistics.median(theirs)


def together(machine, rounds, count=8):
    """So many at once, to their ends; and as many `ctr run`."""
    ours, theirs = [], []
    for number in range(rounds):
        names = [f"all{number}-{n}" for n in range(count)]
        run = lambda name: machine.daemon.ctr("run", "--rm", IMAGE, name, "true")
        with concurrent.futures.ThreadPoolExecutor(count) as shells:
            make = lambda name: machine.create(name, ["true"])
            ours.append(timed(lambda: (list(shells.map(make, names)), machine.wait(names, "Finished"))))
            machine.empty()
            theirs.append(timed(lambda: list(shells.map(run, names))))
    return count / statistics.median(ours), count / statistics.median(theirs)


def bench(mctl, quick):
    for program in ("containerd", "ctr", "busybox"):
        if not shutil.which(program):
            raise SystemExit(f"{program} is missing: apt-get install containerd runc busybox-static")
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as home:
        home = Path(home)
        (home / "daemon").mkdir()
        daemon = Daemon(home / "daemon")
        machine = Machine(mctl, home, daemon)
        machine.said("image", "import", str(layout(home / "layout")), "--tag", IMAGE, f"--runtime=containerd={daemon.socket}")
        ours, theirs = starts(machine, 5 if quick else 25)
        figure = f"{ours * 1000:.0f} ms; `ctr run --detach` {theirs * 1000:.0f} ms, ratio {ours / theirs:.2f}"
        yield "a task with an image on containerd, created to Running", figure, "at most 1.5 × `ctr run`"
        ours, theirs = together(machine, 2 if quick else 5)
        figure = f"{ours:.1f}/s; 8 `ctr run` {theirs:.1f}/s, {100 * ours / theirs:.0f} %"
        yield "8 such tasks at once, created to Finished", figure, "at least 90 %"
        yield from crowd(machine, 50 if quick else 200)
        machine.stop()
        daemon.stop()


def crowd(machine, count):
    names = [f"crowd{n}" for n in range(count)]
    seconds = timed(lambda: ([machine.create(name, ["sleep", "100000"]) for name in names], machine.wait(names, "Running", 600)))
    yield f"{count} containers of containerd, created one by one to all Running", f"{seconds:.1f} s", ""
    time.sleep(5)
    yield f"resident memory of the agent with {count} running", f"{machine.agent_mb():.0f} MB", "under 40 MB"
    before = {task["metadata"]["uid"]: task["status"]["attempts"] for task in machine.get(TASKS)["items"]}
    machine.daemon.kill()
    time.sleep(2)
    back = timed(machine.daemon.start)
    seconds = timed(lambda: (machine.create("after", ["true"]), machine.wait(["after"], "Finished")))
    after = {task["metadata"]["uid"]: task["status"]["attempts"] for task in machine.get(TASKS)["items"]
             if task["status"]["phase"] == "Running"}
    lost = sum(after.get(uid) != attempts for uid, attempts in before.items())
    figure = f"{lost} lost or doubled; a new task done {seconds * 1000:.0f} ms after containerd answered (which took it {back * 1000:.0f} ms)"
    yield f"containerd SIGKILL with {count} running, started again", figure, "0 lost, within 2 s"
