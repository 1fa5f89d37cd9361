//! The real kubectl deletes owners and namespaces.

use anyhow::Result;
use muster_e2e::Cluster;

fn map(name: &str, owner: Option<(&str, &str)>) -> String {
    let owner = owner.map_or_else(String::new, |(owner, uid)| {
        format!(
            "  ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: {owner}, uid: {uid}, blockOwnerDeletion: true}}]\n"
        )
    });
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n{owner}")
}

/// Makes two maps, one of which owns the other.
fn pair(cluster: &Cluster, owner: &str, owned: &str) {
    cluster.kubectl(&["create", "-f", "-"], &map(owner, None)).ok();
    let uid = cluster
        .kubectl(&["get", "cm", owner, "-o", "jsonpath={.metadata.uid}"], "")
        .ok();
    cluster
        .kubectl(&["create", "-f", "-"], &map(owned, Some((owner, &uid))))
        .ok();
}

fn names(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "cm", "-o", "name"], "").ok()
}

#[test]
fn kubectl_deletes_owners_in_all_three_ways() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    pair(&cluster, "a", "a-owned");
    cluster.kubectl(&["delete", "cm", "a", "--cascade=foreground"], "").ok();
    assert_eq!(names(&cluster), "", "it waited for what it owns");
    pair(&cluster, "b", "b-owned");
    cluster.kubectl(&["delete", "cm", "b", "--cascade=background"], "").ok();
    cluster.wait_until("the owned to follow", || names(&cluster).is_empty())?;
    pair(&cluster, "c", "c-owned");
    cluster.kubectl(&["delete", "cm", "c", "--cascade=orphan"], "").ok();
    assert_eq!(names(&cluster), "configmap/c-owned\n");
    let owners = cluster
        .kubectl(
            &["get", "cm", "c-owned", "-o", "jsonpath={.metadata.ownerReferences}"],
            "",
        )
        .ok();
    assert_eq!(owners, "");
    pair(&cluster, "d", "d-owned");
    cluster.mctl(&["delete", "cm", "d", "--cascade=foreground"]).ok();
    assert_eq!(names(&cluster), "configmap/c-owned\n");
    Ok(())
}

const RUNNING: &str = r#"
apiVersion: muster.dev/v1
kind: Task
metadata: {name: runs, namespace: team}
spec:
  command: ["sleep", "600"]
  resources: {cpus: "0.1", memory: 32Mi}
"#;

#[test]
fn kubectl_deletes_a_namespace_in_which_a_task_runs() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    cluster
        .kubectl(
            &["create", "-f", "-"],
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n",
        )
        .ok();
    cluster.kubectl(&["create", "-f", "-"], RUNNING).ok();
    cluster
        .kubectl(&["create", "-n", "team", "-f", "-"], &map("held", None))
        .ok();
    let finalizers = r#"{"metadata":{"finalizers":["example.org/held"]}}"#;
    let patch = |body: &str| {
        cluster
            .kubectl(&["patch", "cm", "held", "-n", "team", "--type=merge", "-p", body], "")
            .ok()
    };
    patch(finalizers);
    let phase = || {
        let path = "jsonpath={.status.phase}";
        cluster
            .kubectl(&["get", "task", "runs", "-n", "team", "-o", path], "")
            .stdout
    };
    cluster.wait_until("the task to run", || phase() == "Running")?;
    cluster.kubectl(&["delete", "ns", "team", "--wait=false"], "").ok();
    let late = cluster.kubectl(&["create", "-n", "team", "-f", "-"], &map("late", None));
    assert!(late.stderr.contains("is being terminated"), "{}", late.stderr);
    let said = || {
        let path = "jsonpath={.status.conditions[*].message}";
        cluster.kubectl(&["get", "ns", "team", "-o", path], "").stdout
    };
    // The task has ended and is gone; what nobody lets go is named.
    cluster.wait_until("the namespace to say what it waits for", || {
        let said = said();
        said.contains("configmaps has 1 resource instances")
            && said.contains("example.org/held in 1")
            && !said.contains("tasks")
    })?;
    patch(r#"{"metadata":{"finalizers":null}}"#);
    cluster
        .kubectl(&["wait", "ns/team", "--for=delete", "--timeout=60s"], "")
        .ok();
    let protected = cluster.kubectl(&["delete", "ns", "muster-system"], "");
    assert!(protected.stderr.contains("may not be deleted"), "{}", protected.stderr);
    Ok(())
}
