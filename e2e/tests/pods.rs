//! The real kubectl, as somebody uses it who thinks that this is Kubernetes.

use std::path::Path;

use anyhow::Result;
use muster_e2e::Cluster;

const HELLO: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    command: [sh, -c, 'echo hello from $WHO; exit 3']
    env: [{name: WHO, value: a pod}]
    resources: {requests: {cpu: 100m, memory: 16Mi}}
";

const SERVICE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: service}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: service
    command: [sleep, '600']
    resources: {requests: {cpu: 100m, memory: 16Mi}}
";

#[test]
fn kubectl_runs_reads_and_deletes_pods() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    cluster.kubectl(&["apply", "-f", "-"], HELLO).ok();
    cluster.wait_phase("hello", "Failed")?;
    let pods = cluster.kubectl(&["get", "pods"], "").ok();
    let row: Vec<&str> = pods.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..4], ["hello", "0/1", "Error", "0"], "{pods}");
    assert_eq!(cluster.kubectl(&["logs", "hello"], "").ok(), "hello from a pod\n");
    assert_eq!(
        cluster.kubectl(&["logs", "hello", "-c", "main"], "").ok(),
        "hello from a pod\n"
    );
    let described = cluster.kubectl(&["describe", "pod", "hello"], "").ok();
    for part in ["Exit Code:    3", "Node:", "a pod", "Status:       Failed", "Bound"] {
        assert!(described.contains(part), "{part} in\n{described}");
    }
    // Applied again, nothing is different.
    let again = cluster.kubectl(&["apply", "-f", "-"], HELLO).ok();
    assert!(again.contains("unchanged"), "{again}");

    cluster.kubectl(&["apply", "-f", "-"], SERVICE).ok();
    cluster
        .kubectl(&["wait", "pod/service", "--for=condition=Ready", "--timeout=60s"], "")
        .ok();
    let running = cluster
        .kubectl(
            &["get", "pods", "--field-selector=status.phase=Running", "-o", "name"],
            "",
        )
        .ok();
    assert_eq!(running, "pod/service\n");
    cluster.kubectl(&["label", "pod", "service", "tier=front"], "").ok();
    assert_eq!(
        cluster.mctl(&["get", "tasks", "-l", "tier=front", "-o", "name"]).ok(),
        "task.muster.dev/service\n"
    );
    cluster.kubectl(&["delete", "pod", "service", "--timeout=60s"], "").ok();
    assert!(!cluster.mctl(&["get", "tasks", "-o", "name"]).ok().contains("service"));
    Ok(())
}

#[test]
fn the_python_client_runs_a_command_in_a_pod() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    cluster.kubectl(&["apply", "-f", "-"], SERVICE).ok();
    cluster
        .kubectl(&["wait", "pod/service", "--for=condition=Ready", "--timeout=60s"], "")
        .ok();
    let script = "\
from kubernetes import client, config
from kubernetes.stream import stream
config.load_kube_config()
call = client.CoreV1Api().connect_get_namespaced_pod_exec
flags = dict(command=['sh', '-c', 'echo out; exit 3'], stderr=True, stdin=False, stdout=True, tty=False, container='service')
answer = stream(call, 'service', 'default', _preload_content=False, **flags)
answer.run_forever(timeout=30)
print(answer.read_stdout().strip(), answer.returncode)
";
    let ran = cluster
        .command(Path::new("/usr/bin/python3"))
        .args(["-c", script])
        .output()?;
    let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(printed, "out 3\n", "{}", String::from_utf8_lossy(&ran.stderr));
    // By a kubectl that speaks WebSockets, or refused with what would.
    let ran = cluster.kubectl(&["exec", "service", "--", "sh", "-c", "echo out; exit 3"], "");
    let spoken = ran.code == 3 && ran.stdout == "out\n";
    assert!(spoken || ran.stderr.contains("WebSocket"), "{ran:?}");
    Ok(())
}

#[test]
fn what_a_task_cannot_say_is_refused_by_name() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let with_volumes = format!("{HELLO}  volumes: [{{name: v, emptyDir: {{}}}}]\n");
    let refused = cluster.kubectl(&["apply", "--validate=false", "-f", "-"], &with_volumes);
    assert!(refused.stderr.contains("spec.volumes: Forbidden"), "{}", refused.stderr);
    let refused = cluster.kubectl(&["apply", "-f", "-"], &with_volumes);
    assert!(refused.stderr.contains("volumes"), "{}", refused.stderr);
    assert_eq!(cluster.mctl(&["get", "tasks", "-o", "name"]).ok(), "");
    // `kubectl run` makes a Pod of an image; that this one is nowhere is said where people look.
    cluster
        .kubectl(&["run", "web", "--image=nowhere.invalid/web:1", "--restart=Never"], "")
        .ok();
    cluster.wait_until("the image not to be found", || {
        let pods = cluster.kubectl(&["get", "pod", "web"], "").ok();
        ["ErrImagePull", "PullingImage"].iter().any(|word| pods.contains(word))
    })
}

#[test]
fn kubectl_sees_machines_cordons_and_drains_them() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    cluster.kubectl(&["apply", "-f", "-"], SERVICE).ok();
    cluster
        .kubectl(&["wait", "pod/service", "--for=condition=Ready", "--timeout=60s"], "")
        .ok();
    let name = cluster.kubectl(&["get", "nodes", "-o", "name"], "").ok();
    let name = name.trim().trim_start_matches("node/").to_owned();
    let nodes = cluster.kubectl(&["get", "nodes"], "").ok();
    assert!(nodes.contains("Ready"), "{nodes}");
    let described = cluster.kubectl(&["describe", "node", &name], "").ok();
    for part in ["Capacity:", "kubernetes.io/hostname", "service"] {
        assert!(described.contains(part), "{part} in\n{described}");
    }
    let drain = ["drain", &name, "--force", "--ignore-daemonsets", "--timeout=60s"];
    cluster.kubectl(&drain, "").ok();
    assert_eq!(cluster.mctl(&["get", "tasks", "-o", "name"]).ok(), "");
    let nodes = cluster.kubectl(&["get", "nodes"], "").ok();
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    cluster.kubectl(&["uncordon", &name], "").ok();
    let agents = cluster
        .mctl(&["get", "agents", "-o", "jsonpath={.items[0].spec.unschedulable}"])
        .ok();
    assert_ne!(agents, "true");
    Ok(())
}
