#!/usr/bin/env python3
"""Keeps one Task alive for every ConfigMap labelled `keeper=task`. Run several: one leads. See ../README.md.

Needs the `kubernetes` package (Debian: python3-kubernetes).
"""

import os
import signal
import socket
import sys
import threading
import time

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

LEASE = "keeper"
LABEL = "keeper=task"
TTL = 3
TERMINAL = {"Finished", "Failed", "Killed", "Error", "Dropped", "Gone"}
IDENTITY = f"{socket.gethostname()}-{os.getpid()}"
stopping = threading.Event()


def namespace():
    return config.list_kube_config_contexts()[1]["context"].get("namespace", "default")


def campaign(api, space):
    """Waits until this process leads: its fence, and until when unless it renews."""
    leases = client.CoordinationV1Api(api)
    body = {
        "metadata": {"name": LEASE, "annotations": {"muster.dev/ephemeral": "true"}},
        "spec": {"holderIdentity": IDENTITY, "leaseDurationSeconds": TTL},
    }
    while not stopping.is_set():
        sent = time.monotonic()
        try:
            lease = leases.create_namespaced_lease(space, body, _request_timeout=TTL)
            return f"{space}/{LEASE}@{lease.metadata.resource_version}", sent + TTL * 2 / 3
        except ApiException as error:
            if error.status == 409:
                vacancy(leases, space)
            else:
                stopping.wait(TTL / 4)
        except urllib3.exceptions.HTTPError:
            stopping.wait(TTL / 4)
    return None, 0


def vacancy(leases, space):
    """Waits until the lease is deleted, or for a while."""
    only = {"field_selector": f"metadata.name={LEASE}", "timeout_seconds": TTL}
    for event in watch.Watch().stream(leases.list_namespaced_lease, space, **only):
        if event["type"] == "DELETED" or stopping.is_set():
            return


class Term:
    """The time during which this process leads. Its requests carry the fence, so no line can forget it."""

    def __init__(self, fence, until, space):
        self.api = client.ApiClient(header_name="Muster-Fence", header_value=fence)
        self.until = until
        self.path = f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases/{LEASE}/renew"
        self.over = threading.Event()
        self.keeper = threading.Thread(target=self.keep)
        self.keeper.start()

    def may_act(self):
        return not self.over.is_set() and time.monotonic() < self.until

    def keep(self):
        while not self.over.wait(TTL / 4) and time.monotonic() < self.until:
            sent = time.monotonic()
            try:
                self.api.call_api(self.path, "POST", auth_settings=["BearerToken"], _request_timeout=TTL / 4)
                self.until = sent + TTL * 2 / 3
            except ApiException as error:
                if error.status in (404, 412):
                    break
            except urllib3.exceptions.HTTPError:
                pass
        self.over.set()

    def end(self):
        self.over.set()
        self.keeper.join()


def reconcile(config_map, items, tasks, space):
    name, command = config_map.metadata.name, (config_map.data or {}).get("command")
    if not command:
        return
    phases = {}
    for task in items:
        stem, _, number = task["metadata"]["name"].rpartition("-")
        if stem == name and number.isdigit():
            phases[int(number)] = task.get("status", {}).get("phase")
    last = max(phases, default=0)
    if last and phases[last] not in TERMINAL:
        return
    body = {
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": {"name": f"{name}-{last + 1}", "labels": {"keeper": "task"}},
        "spec": {"command": ["sh", "-c", command], "resources": {"cpus": "0.01", "memory": "8Mi"}},
    }
    try:
        tasks.create_namespaced_custom_object("muster.dev", "v1", space, "tasks", body, _request_timeout=TTL)
        print(f"created {name}-{last + 1}", flush=True)
    except ApiException as error:
        # Somebody was faster, or the list was old: the next look comes back to it.
        if error.status != 409:
            raise


def lead(term, space):
    """Looks at everything again, a few times a second, while this process leads."""
    maps, tasks = client.CoreV1Api(term.api), client.CustomObjectsApi(term.api)
    while term.may_act() and not stopping.is_set():
        listed = tasks.list_namespaced_custom_object(
            "muster.dev", "v1", space, "tasks", label_selector=LABEL, _request_timeout=TTL
        )
        for config_map in maps.list_namespaced_config_map(space, label_selector=LABEL, _request_timeout=TTL).items:
            if term.may_act():
                reconcile(config_map, listed["items"], tasks, space)
        stopping.wait(0.2)


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    config.load_kube_config()
    space = namespace()
    while not stopping.is_set():
        fence, until = campaign(client.ApiClient(), space)
        if fence is None:
            break
        print(f"{IDENTITY} leads as {fence}", flush=True)
        term = Term(fence, until, space)
        try:
            lead(term, space)
        except ApiException as error:
            if error.status != 412:
                print(f"{IDENTITY}: {error.status} {error.reason}", file=sys.stderr, flush=True)
        except urllib3.exceptions.HTTPError as error:
            print(f"{IDENTITY}: {error}", file=sys.stderr, flush=True)
        finally:
            term.end()
        if stopping.is_set():
            client.CoordinationV1Api(term.api).delete_namespaced_lease(LEASE, space, _request_timeout=TTL)
            print(f"{IDENTITY} gave the lease up", flush=True)
        else:
            print(f"{IDENTITY} no longer leads", flush=True)


if __name__ == "__main__":
    main()
