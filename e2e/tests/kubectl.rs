//! The real kubectl follows a task through a whole cluster.

use anyhow::Result;
use muster_e2e::Cluster;

const HELLO: &str = r#"
apiVersion: muster.dev/v1
kind: Task
metadata: {name: hello}
spec:
  command: ["sh", "-c", "echo hello from $MUSTER_TASK"]
  resources: {cpus: "0.1", memory: 32Mi}
"#;

#[test]
fn kubectl_applies_waits_describes_and_deletes() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    assert_eq!(
        cluster.kubectl(&["apply", "-f", "-"], HELLO).ok(),
        "task.muster.dev/hello created\n"
    );
    cluster
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "task/hello"], "")
        .ok();
    cluster.wait_phase("hello", "Finished")?;
    let table = cluster.kubectl(&["get", "tk"], "").ok();
    assert!(table.starts_with("NAME    PHASE      REASON      AGENT"), "{table}");
    let described = cluster.kubectl(&["describe", "task", "hello"], "").ok();
    assert!(
        described.contains("bound to agent"),
        "the events are there: {described}"
    );
    assert_eq!(
        cluster.kubectl(&["apply", "-f", "-"], HELLO).ok(),
        "task.muster.dev/hello unchanged\n"
    );
    let agents = cluster
        .kubectl(&["get", "agents", "-o", "jsonpath={.items[0].status.reachability}"], "")
        .ok();
    assert_eq!(agents, "Reachable");
    cluster.kubectl(&["delete", "task", "hello"], "").ok();
    assert_ne!(cluster.kubectl(&["get", "task", "hello"], "").code, 0);
    Ok(())
}

#[test]
fn kubectl_and_mctl_apply_the_same_object_in_turn() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let map = |value: &str| {
        format!("apiVersion: muster.dev/v1\nkind: Quota\nmetadata: {{name: q}}\nspec: {{role: ml, weight: {value}}}\n")
    };
    assert!(
        cluster
            .kubectl(&["apply", "-f", "-"], &map("1"))
            .ok()
            .contains("created")
    );
    let mctl = |value: &str| cluster.mctl_with(&["apply", "-f", "-"], &map(value)).ok();
    let kubectl = |value: &str| cluster.kubectl(&["apply", "-f", "-"], &map(value)).ok();
    assert!(
        mctl("1").contains("configured"),
        "from now on the fields are mctl's, too"
    );
    assert!(mctl("1").contains("unchanged"));
    assert!(mctl("2").contains("configured"));
    kubectl("2");
    assert!(kubectl("2").contains("unchanged"));
    assert!(kubectl("3").contains("configured"));
    assert!(mctl("4").contains("configured"));
    let weight = cluster
        .kubectl(&["get", "quota", "q", "-o", "jsonpath={.spec.weight}"], "")
        .ok();
    assert_eq!(weight, "4");
    Ok(())
}

#[test]
fn kubectl_creates_what_it_has_commands_for() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    // From 1.32 on it sends these as protobuf.
    assert_eq!(
        cluster.kubectl(&["create", "namespace", "demo"], "").ok(),
        "namespace/demo created\n"
    );
    let map = ["create", "configmap", "map", "-n", "demo", "--from-literal=a=b"];
    cluster.kubectl(&map, "").ok();
    let data = ["get", "configmap", "map", "-n", "demo", "-o", "jsonpath={.data}"];
    assert_eq!(cluster.kubectl(&data, "").ok(), r#"{"a":"b"}"#);
    Ok(())
}
