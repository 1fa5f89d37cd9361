"""The part of hack/bench that holds the API server over etcd against etcd itself; see there.

One member of etcd, one API server without controllers, and the same values through both, in turn and in the same minute. Etcd is asked
with one request under way per client, over a few connections that the clients share.
"""

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_ha import free_ports

# Connections to etcd that so many clients share.
CHANNELS = {1: 1, 16: 4, 64: 8}
# What is done through the API, what that is at etcd, and what the ratio should be with so many at once.
WORKS = [
    ("create", "create", {1: "over 70 %", 64: "over 60 %"}),
    ("get", "get", {}),
    ("patch", "swap", {64: "over 50 %"}),
]


class Etcd:
    """One member of etcd in a directory of its own."""

    def __init__(self):
        if not shutil.which("etcd"):
            raise SystemExit("etcd is missing: apt-get install etcd-server")
        self.home = Path(tempfile.mkdtemp(prefix="muster-bench-etcd-"))
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        self.endpoint = client
        command = ["etcd", f"--data-dir={self.home / 'data'}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"]
        self.process = subprocess.Popen([*command, "--logger=zap", "--log-level=warn"], stderr=open(self.home / "log", "w"))

    def stop(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.home)


def raw(program, endpoint, work, clients, count, prefix):
    flags = {"endpoint": endpoint, "clients": clients, "channels": CHANNELS[clients], "count": count, "prefix": prefix}
    command = [program, work, *(str(word) for key, value in flags.items() for word in (f"--{key}", value))]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"raw_etcd {work}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)["rate"]


def bench(make_server, program, quick):
    """Rows; `make_server(endpoint)` starts an API server over that etcd."""
    rounds, count = (1, 2_000) if quick else (3, 12_000)
    rates = {}
    for turn in range(rounds):
        etcd = Etcd()
        time.sleep(1)
        server = make_server(etcd.endpoint)
        for clients in (1, 16, 64):
            some = count // 8 if clients == 1 else count
            for work, peer, _ in WORKS:
                rate = server.load(work, "--connections", clients, "--count", some, "--prefix", f"r{clients}")["rate"]
                pair = (rate, raw(program, etcd.endpoint, peer, clients, some, f"/raw/{clients}"))
                rates.setdefault((work, clients), []).append(pair)
        server.stop()
        etcd.stop()
    for work, peer, goals in WORKS:
        for clients in (1, 16, 64):
            api, etcd = (statistics.median(column) for column in zip(*rates[work, clients]))
            ratio = statistics.median(one / other for one, other in rates[work, clients])
            at_once = "one at a time" if clients == 1 else f"{clients} at once"
            goal = "over 20,000/s" if (work, clients) == ("get", 64) else goals.get(clients, "")
            yield f"{work} of tasks of 1.2 KB on etcd, {at_once}", f"{api:,.0f}/s; etcd's {peer} {etcd:,.0f}/s: {ratio:.0%}", goal
