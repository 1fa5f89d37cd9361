#!/usr/bin/env python3
"""Runs one Task for each value of every Sweep, a kind that kind.yaml defines. See README.md.

Needs the `kubernetes` package (Debian: python3-kubernetes).
"""

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

SWEEPS = ("jobs.example.com", "v1")
TASKS = ("muster.dev", "v1")
TERMINAL = {"Finished", "Failed", "Killed", "Error", "Dropped", "Gone"}


def task(sweep, number, value):
    metadata, spec = sweep["metadata"], sweep["spec"]
    return {
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": {
            "name": f"{metadata['name']}-{number}",
            "labels": {"sweep": metadata["name"]},
            "ownerReferences": [
                {
                    "apiVersion": sweep["apiVersion"],
                    "kind": sweep["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": {
            "command": spec["command"],
            "env": [{"name": spec["variable"], "value": value}],
            "resources": {"cpus": "0.01", "memory": "8Mi"},
        },
    }


def reconcile(api, space, sweep, tasks):
    name = sweep["metadata"]["name"]
    for number, value in enumerate(sweep["spec"]["values"], 1):
        if f"{name}-{number}" not in tasks:
            try:
                api.create_namespaced_custom_object(*TASKS, space, "tasks", task(sweep, number, value))
                print(f"created {name}-{number}", flush=True)
            except ApiException as error:
                if error.status != 409:  # It is there already.
                    raise
    own = [one for one in tasks.values() if one["metadata"].get("labels", {}).get("sweep") == name]
    ended = sum(one["status"]["phase"] in TERMINAL for one in own)
    done = f"{ended}/{len(sweep['spec']['values'])}"
    if sweep.get("status", {}).get("done") != done:
        sweep["status"] = {"done": done}
        try:
            api.replace_namespaced_custom_object_status(*SWEEPS, space, "sweeps", name, sweep)
        except ApiException as error:
            if error.status not in (404, 409):  # It has changed since; the next look is at the newer one.
                raise


def main():
    config.load_kube_config()
    space = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
    api = client.CustomObjectsApi()
    while True:
        sweeps = api.list_namespaced_custom_object(*SWEEPS, space, "sweeps")
        tasks = api.list_namespaced_custom_object(*TASKS, space, "tasks")
        by_name = {one["metadata"]["name"]: one for one in tasks["items"]}
        for sweep in sweeps["items"]:
            reconcile(api, space, sweep, by_name)
        # Until a task changes, or for a second: a new sweep is noticed then.
        stream = watch.Watch()
        since = {"resource_version": tasks["metadata"]["resourceVersion"], "timeout_seconds": 1}
        for _ in stream.stream(api.list_namespaced_custom_object, *TASKS, space, "tasks", **since):
            stream.stop()


main()
