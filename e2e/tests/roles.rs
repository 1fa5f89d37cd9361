//! Roles with the real kubectl and with mctl, as an administrator and as those to whom they are given.

use anyhow::Result;
use muster_e2e::Cluster;

const AS_AL: &str = "--as=al";

#[test]
fn kubectl_makes_roles_and_they_count_at_once() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let kubectl = |line: &str| cluster.kubectl(&line.split(' ').collect::<Vec<_>>(), "");
    let refused = kubectl("get tasks --as=al");
    let expect = "tasks.muster.dev is forbidden: User \"al\" cannot list resource \"tasks\" in API group \"muster.dev\" in the namespace \
                  \"default\"";
    assert!(refused.stderr.contains(expect), "{}", refused.stderr);
    assert_eq!(kubectl("auth can-i list tasks --as=al").stdout.trim(), "no");

    kubectl("create role reader --verb=get,list,watch --resource=tasks.muster.dev,tasks.muster.dev/log").ok();
    kubectl("create rolebinding al-reads --role=reader --user=al").ok();
    assert_eq!(kubectl("auth can-i list tasks --as=al").ok().trim(), "yes");
    assert_eq!(kubectl("auth can-i delete tasks --as=al").stdout.trim(), "no");
    kubectl("get tasks --as=al").ok();
    let list = kubectl("auth can-i --list --as=al").ok();
    assert!(
        list.contains("tasks.muster.dev/log") && list.contains("/apis/*"),
        "{list}"
    );

    kubectl("create clusterrole widgets --verb=get --resource=configmaps").ok();
    kubectl("label clusterrole widgets example.com/join=true").ok();
    kubectl("create clusterrole joined --aggregation-rule=example.com/join=true").ok();
    cluster.wait_until("the role to be put together", || {
        kubectl("get clusterrole joined -o yaml").ok().contains("configmaps")
    })?;
    kubectl("create clusterrolebinding al-joined --clusterrole=joined --group=friends").ok();
    let refused = kubectl("get configmaps -A --as=al --as-group=friends");
    assert!(refused.stderr.contains("cannot list"), "{}", refused.stderr);
    let one = kubectl("auth can-i get configmaps/x --as=al --as-group=friends").ok();
    assert_eq!(one.trim(), "yes");

    let table = kubectl("get rolebindings -o wide").ok();
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(head, ["NAME", "ROLE", "AGE", "USERS", "GROUPS", "SERVICEACCOUNTS"]);
    assert!(table.contains("Role/reader") && table.contains("al"), "{table}");
    assert!(
        kubectl("get clusterroles").ok().starts_with("NAME"),
        "the table has kubectl's columns"
    );
    let described = kubectl("describe clusterrole muster:framework").ok();
    assert!(described.contains("offers.muster.dev/accept"), "{described}");
    Ok(())
}

#[test]
fn kubectl_reconciles_roles_and_nobody_gives_what_they_do_not_have() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifest = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: lead, namespace: default}
rules:
  - {apiGroups: [rbac.authorization.k8s.io], resources: [roles, rolebindings], verbs: [get, list, create, update]}
  - {apiGroups: [muster.dev], resources: [tasks], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: lead, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: lead}
subjects: [{kind: User, name: al}]
"#;
    let reconciled = cluster.kubectl(&["auth", "reconcile", "-f", "-"], manifest).ok();
    assert!(
        reconciled.contains("role.rbac.authorization.k8s.io/lead reconciled"),
        "{reconciled}"
    );
    cluster.kubectl(&["auth", "reconcile", "-f", "-"], manifest).ok();
    let create =
        |name: &str, resource: &str| cluster.kubectl(&["create", "role", name, "--verb=get", resource, AS_AL], "");
    create("fine", "--resource=tasks.muster.dev").ok();
    let refused = create("more", "--resource=secrets");
    assert!(
        refused
            .stderr
            .contains("is attempting to grant RBAC permissions not currently held"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn mctl_says_who_one_is_and_what_one_may_do() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let who = cluster.mctl(&["auth", "whoami"]).ok();
    assert!(who.contains("admin") && who.contains("system:masters"), "{who}");
    assert_eq!(cluster.mctl(&["auth", "can-i", "create", "tasks"]).ok(), "yes\n");
    assert_eq!(cluster.mctl(&["auth", "can-i", "get", "/metrics"]).ok(), "yes\n");
    let list = cluster.mctl(&["auth", "can-i", "--list"]).ok();
    assert!(list.starts_with("RESOURCES") && list.contains("*.*"), "{list}");
    Ok(())
}
