"""The part of hack/bench that needs three etcd, three servers and three agents; see there.

Everything runs on this machine over loopback, etcd with the timing that manifests/deploy gives it. Where etcd itself sets the pace, it is
measured in the same round.
"""

import base64
import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

TASKS = "/apis/muster.dev/v1/namespaces/default/tasks"
MAPS = "/api/v1/namespaces/default/configmaps"
PATIENCE = 60


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def until(what, ask, limit=PATIENCE):
    """Asks until the answer is neither None nor False; gives it."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.002)
    raise SystemExit(f"waited {limit} s for {what}")


class Fleet:
    """Three members of etcd, three servers, three agents; each process by its name: e0, s0, a0, …"""

    def __init__(self, mctl):
        for program in ("etcd", "etcdctl"):
            if not shutil.which(program):
                raise SystemExit(f"{program} is missing: apt-get install etcd-server etcd-client")
        self.mctl, self.home, self.processes = mctl, Path(tempfile.mkdtemp(prefix="muster-bench-ha-")), {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("MUSTER_", "XDG_", "KUBECONFIG"))}
        self.env |= {"HOME": str(self.home), "NO_COLOR": "1"}
        ports = free_ports(9)
        self.client_ports, self.peer_ports, self.server_ports = ports[:3], ports[3:6], ports[6:]
        for index in range(3):
            self.start(f"e{index}")
        until("etcd", lambda: self.etcd_revision() or None)
        for index in range(3):
            self.start(f"s{index}")
            until("a server", lambda: self.access() and self.status(index, "/readyz") == 200)
        for index in range(3):
            self.start(f"a{index}")
        until("the agents", lambda: self.ready_agents() == 3)

    def start(self, name):
        kind, index = name[0], int(name[1:])
        command = {"e": self.etcd, "s": self.server, "a": self.agent}[kind](index)
        log = open(self.home / f"{name}.log", "a")
        self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.env)

    def etcd(self, index):
        peer = lambda i: f"http://127.0.0.1:{self.peer_ports[i]}"
        client = f"http://127.0.0.1:{self.client_ports[index]}"
        data = self.home / f"etcd{index}"
        state = "existing" if data.exists() else "new"
        cluster = ",".join(f"e{i}={peer(i)}" for i in range(3))
        flags = {
            "name": f"e{index}", "data-dir": data, "listen-client-urls": client, "advertise-client-urls": client,
            "listen-peer-urls": peer(index), "initial-advertise-peer-urls": peer(index), "initial-cluster": cluster,
            "initial-cluster-state": state, "heartbeat-interval": 50, "election-timeout": 400, "logger": "zap", "log-level": "warn",
        }
        return ["etcd", *(f"--{key}={value}" for key, value in flags.items())]

    def server(self, index):
        urls = ",".join(f"http://127.0.0.1:{port}" for port in self.client_ports)
        data = self.home / f"server{index}"
        command = [self.mctl, "server", "--log=info", f"--data-dir={data}", f"--listen=127.0.0.1:{self.server_ports[index]}"]
        command += [f"--name=s{index}", f"--etcd={urls}", "--lease-ttl=2s"]
        return command + ([f"--join={self.token('--server')}"] if index and not data.exists() else [])

    def agent(self, index):
        data = self.home / f"agent{index}"
        command = [self.mctl, "agent", "--log=info", f"--data-dir={data}", f"--name=a{index}", "--listen=127.0.0.1:0"]
        command += ["--advertise=127.0.0.1", "--cpus=64", "--memory=64Gi", "--disk=10Gi"]
        command += [f"--ports={31000 + 300 * index}-{31299 + 300 * index}"]
        return command + ([] if data.exists() else [f"--join={self.token('--agent', f'a{index}')}"])

    def token(self, *args):
        command = [self.mctl, f"--kubeconfig={self.home / 'server0/kubeconfig'}", "token", "create", *args]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout.strip()

    def access(self):
        path = self.home / "server0/kubeconfig"
        if not path.exists():
            return False
        field = lambda name: re.search(rf"^\s*{name}:\s*\"?([^\s\"]+)", path.read_text(), re.M)[1]
        self.bearer, self.authority = field("token"), self.home / "ca.pem"
        self.authority.write_bytes(base64.b64decode(field("certificate-authority-data")))
        self.tls = ssl.create_default_context(cafile=self.authority)
        return True

    def call(self, index, method, path, body=None, timeout=2, fence=None):
        """Status and answer of one call at one server; 0 when there is no answer."""
        link = http.client.HTTPSConnection("127.0.0.1", self.server_ports[index], context=self.tls, timeout=timeout)
        try:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            headers = {"Authorization": "Bearer " + self.bearer, "Content-Type": kind}
            if fence:
                headers["Muster-Fence"] = f"muster-system/muster-controllers@{fence}"
            link.request(method, path, json.dumps(body) if body else None, headers)
            answer = link.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in b"{[" and text else {}
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            link.close()

    def status(self, index, path):
        return self.call(index, "GET", path)[0]

    def ready_agents(self):
        agents = self.call(0, "GET", "/apis/muster.dev/v1/agents")[1].get("items", [])
        conditions = [c for agent in agents for c in agent.get("status", {}).get("conditions", [])]
        return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def gateway(self, index, path, body, timeout=0.5):
        """One call of etcd's JSON gateway; None when there is no good answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.client_ports[index], timeout=timeout)
        try:
            link.request("POST", path, json.dumps(body))
            answer = link.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            link.close()

    def etcd_revision(self):
        answer = self.gateway(0, "/v3/kv/range", {"key": base64.b64encode(b"none").decode()})
        return int(answer["header"]["revision"]) if answer else 0

    def etcd_leader(self):
        for index in range(3):
            status = self.gateway(index, "/v3/maintenance/status", {})
            if status and status.get("leader") == status["header"]["member_id"]:
                return index
        return None

    def leading_server(self):
        path = "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers"
        for index in range(3):
            revision = self.call(index, "GET", path)[1].get("metadata", {}).get("resourceVersion")
            for candidate in range(3):
                line = f"leading fence=muster-system/muster-controllers@{revision} "
                if revision and line in (self.home / f"s{candidate}.log").read_text():
                    return candidate
        return None

    def end(self, name, what):
        process = self.processes.pop(name)
        process.send_signal(what)
        return process

    def stop(self):
        """Tasks first: what an agent leaves running would outlive this."""
        self.call(0, "DELETE", TASKS, timeout=30)
        began = time.monotonic()
        real = ("a0", "a1", "a2")
        held = lambda: [t for t in self.call(0, "GET", TASKS, timeout=30)[1].get("items", []) if t["status"].get("agent") in real]
        while held() and time.monotonic() - began < PATIENCE:
            time.sleep(0.2)
        for name in sorted(self.processes, key=lambda name: "ase".index(name[0])):
            process = self.end(name, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def task(name, *command):
    spec = {"command": list(command), "resources": {"cpus": "0.01", "memory": "8Mi"}}
    return {"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def config_map(name):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}


def milliseconds(seconds):
    ordered = sorted(seconds)
    p99 = ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]
    return f"{statistics.median(ordered) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms of {len(ordered)}"


def next_offer(fleet, what, rounds):
    """From the signal to the leader until a task that came right after it is bound, at another server."""
    seconds = []
    for _ in range(rounds):
        leader = until("a leader", fleet.leading_server)
        other, name = (leader + 1) % 3, f"{what.name.lower()}-{time.monotonic_ns()}"
        process, began = fleet.end(f"s{leader}", what), time.monotonic()
        until("a task to be taken", lambda: fleet.call(other, "POST", TASKS, task(name, "true"))[0] == 201)
        bound = lambda: fleet.call(other, "GET", f"{TASKS}/{name}")[1].get("status", {}).get("agent")
        until("the task to be bound", bound)
        seconds.append(time.monotonic() - began)
        process.wait(PATIENCE)
        fleet.start(f"s{leader}")
        until("the server to be back", lambda: fleet.status(leader, "/readyz") == 200)
    return seconds


def open_offer_survives(fleet):
    spec = {"roles": ["default"], "scheduler": "External", "demand": {"minimum": {"cpus": "1"}, "maxOffers": 1}}
    framework = {"apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": {"name": "ext"}, "spec": spec}
    path, offers = "/apis/muster.dev/v1/namespaces/default/frameworks", "/apis/muster.dev/v1/namespaces/default/offers"
    leader = until("a leader", fleet.leading_server)
    other = (leader + 1) % 3
    fleet.call(other, "POST", path, framework)
    uids = lambda: {o["metadata"]["uid"] for o in fleet.call(other, "GET", offers)[1].get("items", []) if o["spec"]["framework"] == "ext"}
    before = until("an offer", lambda: uids() or None)
    process = fleet.end(f"s{leader}", signal.SIGTERM)
    until("another leader", lambda: fleet.leading_server() not in (None, leader))
    kept = before <= uids()
    process.wait(PATIENCE)
    fleet.start(f"s{leader}")
    until("the server to be back", lambda: fleet.status(leader, "/readyz") == 200)
    fleet.call(other, "DELETE", f"{path}/ext")
    return kept


def leading_fence(fleet):
    """The server that leads, and the revision of its lease."""
    leader = until("a leader", fleet.leading_server)
    path = "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers"
    lease = fleet.call((leader + 1) % 3, "GET", path)[1]
    return leader, lease["metadata"]["resourceVersion"], lease["spec"]["holderIdentity"]


def stopped_leaders(fleet, rounds):
    """Stops the leader for three times its lease while it has work, lets it go on, and looks for what it wrote afterwards.

    Whatever it sends then carries its old fence. Every server is sent such a write, too, and must answer 412. Gives how many of these landed,
    and how many there were; that the tasks of the round run once and end shows the rest.
    """
    landed = tried = 0
    for number in range(rounds):
        leader, revision, holder = leading_fence(fleet)
        other = (leader + 1) % 3
        # So that it has something to write when it is stopped, and when it goes on.
        for n in range(8):
            fleet.call(other, "POST", TASKS, task(f"stop-{number}-{n}", "true"))
        os.kill(fleet.processes[f"s{leader}"].pid, signal.SIGSTOP)
        lease = "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers"
        began = time.monotonic()

        def followed():
            found = fleet.call(other, "GET", lease)[1]
            return found.get("spec", {}).get("holderIdentity") not in (None, holder)

        until("another leader", followed)
        fleet.call(other, "POST", TASKS, task(f"stop-{number}-late", "true"))
        time.sleep(max(0, 6 - (time.monotonic() - began)))
        os.kill(fleet.processes[f"s{leader}"].pid, signal.SIGCONT)
        until("the server to be back", lambda: fleet.status(leader, "/readyz") == 200)
        for server in range(3):
            tried += 1
            name = f"late-{number}-{server}"
            landed += fleet.call(server, "POST", MAPS, config_map(name), fence=revision)[0] != 412
        bound = lambda: fleet.call(other, "GET", f"{TASKS}/stop-{number}-late")[1].get("status", {}).get("phase") == "Finished"
        until("the task to run", bound)
    return landed, tried


def crowd(fleet, agents, tasks):
    """So many agents that only seem to be there, and so many tasks that are bound to them."""
    links = threading.local()

    def call(method, path, body, kind="application/json"):
        if not hasattr(links, "link"):
            links.link = http.client.HTTPSConnection("127.0.0.1", fleet.server_ports[0], context=fleet.tls, timeout=30)
        links.link.request(method, path, json.dumps(body), {"Authorization": "Bearer " + fleet.bearer, "Content-Type": kind})
        answer = links.link.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text)

    def agent(number):
        name = f"crowd-{number}"
        lease = {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "annotations": {"muster.dev/ephemeral": "true"}},
            "spec": {"holderIdentity": f"{name}/boot/1", "leaseDurationSeconds": 3600},
        }
        session = call("POST", "/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases", lease)["metadata"]["resourceVersion"]
        path = "/apis/muster.dev/v1/agents"
        call("POST", path, {"apiVersion": "muster.dev/v1", "kind": "Agent", "metadata": {"name": name}, "spec": {}})
        status = {
            "capacity": {"cpus": 16, "memory": "64Gi", "disk": "100Gi", "gpus": 0, "ports": ["31000-31099"]},
            "session": int(session), "reachability": "Reachable", "conditions": [],
        }
        call("PATCH", f"{path}/{name}/status", {"status": status}, "application/merge-patch+json")

    with concurrent.futures.ThreadPoolExecutor(16) as workers:
        list(workers.map(agent, range(agents)))
        list(workers.map(lambda n: call("POST", TASKS, task(f"crowd-{n}", "true")), range(tasks)))
    bound = lambda t: t["status"].get("agent")
    count = lambda: sum(1 for t in fleet.call(0, "GET", TASKS, timeout=30)[1].get("items", []) if bound(t))
    until(f"{tasks} tasks to be bound", lambda: count() >= tasks or time.sleep(1), 300)


def writes_back(fleet, rounds):
    """From SIGKILL to the leader of etcd until a raw put, and until a create through the API, is taken.

    The put is tried anew when there is no answer for a moment. The creates go one after the other, and each is waited for: one is under way when
    the leader dies.
    """
    raw, api = [], []
    for number in range(rounds):
        leader = until("a leader of etcd", fleet.etcd_leader)
        member, ends = (leader + 1) % 3, {}
        process, began = fleet.end(f"e{leader}", signal.SIGKILL), time.monotonic()
        time.sleep(0.01)

        def measure(name, ask):
            until(name, ask)
            ends[name] = time.monotonic() - began

        put = {"key": base64.b64encode(b"bench/raw").decode(), "value": "eA=="}
        create = lambda: fleet.call(0, "POST", MAPS, config_map(f"back-{number}"), timeout=10)[0] == 201
        threads = [
            threading.Thread(target=measure, args=("raw", lambda: fleet.gateway(member, "/v3/kv/put", put, 0.2))),
            threading.Thread(target=measure, args=("api", create)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        raw.append(ends["raw"])
        api.append(ends["api"])
        process.wait()
        fleet.start(f"e{leader}")
        until("the member to be back", lambda: fleet.gateway(leader, "/v3/maintenance/status", {}))
        time.sleep(1)
    return raw, api


def rate(*command):
    """What a load generator says that it reached."""
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{command}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)["rate"]


def creates_at_once(fleet, load, raw_etcd, count):
    """Objects of 1.2 KB a second through one server, and values of that size straight into etcd's leader, in turn; and their ratio."""
    leader = until("a leader of etcd", fleet.etcd_leader)
    endpoint = f"http://127.0.0.1:{fleet.client_ports[leader]}"
    pairs = []
    for turn in range(5):
        raw = rate(raw_etcd, "create", "--endpoint", endpoint, "--count", count, "--prefix", f"/bench/{turn}")
        flags = ["--config-maps", "--count", count, "--prefix", f"at-once-{turn}", "--kubeconfig", fleet.home / "server0/kubeconfig"]
        pairs.append((rate(load, "create", *flags), raw))
        fleet.call(0, "DELETE", f"{MAPS}?labelSelector=load%3Dcreate", timeout=PATIENCE)
    api, raw = (statistics.median(column) for column in zip(*pairs))
    return api, raw, statistics.median(one / other for one, other in pairs)


def adoption(fleet, count):
    """From the start of an agent whose predecessor was killed until the ends of the gap are told, with so many tasks."""
    gate = "mkfifo gate; read code < gate; exit $code"
    for agent in ("a1", "a2"):
        fleet.call(0, "PATCH", f"/apis/muster.dev/v1/agents/{agent}", {"spec": {"unschedulable": True}})
    for number in range(count):
        fleet.call(number % 3, "POST", TASKS, task(f"kept-{number}", "sh", "-c", gate))
    mine = lambda: [t for t in fleet.call(0, "GET", TASKS)[1].get("items", []) if t["metadata"]["name"].startswith("kept-")]
    until("the tasks to run", lambda: sum(t["status"]["phase"] == "Running" for t in mine()) == count, 300)
    fleet.end("a0", signal.SIGKILL).wait()
    ended = mine()[:20]
    containers = fleet.home / "agent0/runtime/containers"
    for t in ended:
        for path in containers.glob(f"{t['metadata']['uid']}-*/sandbox/gate"):
            path.write_text("7\n")
    time.sleep(1)
    began = time.monotonic()
    fleet.start("a0")
    names = {t["metadata"]["name"] for t in ended}
    told = lambda: all(t["status"].get("exitCode") == 7 for t in mine() if t["metadata"]["name"] in names)
    until("the ends to be told", told)
    seconds = time.monotonic() - began
    kept = sum(t["status"]["phase"] == "Running" for t in mine())
    if kept != count - len(names):
        raise SystemExit(f"{kept} of {count - len(names)} tasks run on")
    return seconds


def bench(mctl, load, raw_etcd, quick):
    fleet = Fleet(mctl)
    try:
        rounds = 5 if quick else 20
        time.sleep(5)
        before, began = fleet.etcd_revision(), time.monotonic()
        time.sleep(20 if quick else 60)
        writes = (fleet.etcd_revision() - before) * 60 / (time.monotonic() - began)
        yield "idle cluster, 3 servers, 3 agents: writes to etcd", f"{writes:.0f} a minute", "under 10"
        api, raw, ratio = creates_at_once(fleet, load, raw_etcd, 1_000 if quick else 10_000)
        yield "creates through the API on three etcd, 64 at once", f"{api:,.0f}/s; etcd's {raw:,.0f}/s: {ratio:.0%}", "over 50 %"
        figure = milliseconds(next_offer(fleet, signal.SIGKILL, rounds))
        yield "leader SIGKILL to the next offer accepted, lease 2 s", figure, "p99 under 3 s"
        yield "leader SIGTERM to the next offer accepted", milliseconds(next_offer(fleet, signal.SIGTERM, rounds)), "p99 under 0.5 s"
        yield "an open offer outlives its leader", "yes" if open_offer_survives(fleet) else "NO", "yes"
        stops = 3 if quick else 100
        landed, tried = stopped_leaders(fleet, stops)
        yield f"leader stopped for three leases, {stops} times: writes under its fence that land", f"{landed} of {tried}", "0"
        raw, api = writes_back(fleet, rounds)
        figure = f"{milliseconds(api)}; etcd itself {milliseconds(raw)}"
        yield "leader of etcd SIGKILL to the next write through the API", figure, "etcd's own and 1 s"
        count = 60 if quick else 200
        seconds = adoption(fleet, count)
        yield f"agent SIGKILL with {count} tasks: start to the ends of the gap told", f"{seconds * 1000:.0f} ms", "under 2 s"
        agents, tasks = (100, 1_000) if quick else (1_000, 10_000)
        crowd(fleet, agents, tasks)
        figure = milliseconds(next_offer(fleet, signal.SIGKILL, 3))
        yield f"leader SIGKILL to the next offer with {agents:,} agents that seem to be there and {tasks:,} tasks", figure, "under 4 s"
    finally:
        fleet.stop()
