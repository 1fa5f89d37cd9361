//! Empties namespaces that are being deleted, and says what of them remains.
//!
//! Nothing can be made in a namespace any more once it is marked as deleted, so a view that shows it marked and empty is proof. The content
//! goes in stages: what runs, and the objects of platform teams; then what those may still read; then what gives rights; events last, for
//! they tell what happened. A stage begins when the one before is gone, so that a task that takes its time to end keeps what it uses.
//! What must never happen here: a namespace that is let go with something in it. Tested below, and with the real server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use muster_api::Time;
use muster_api::names::FINALIZER_NAMESPACE;
use serde_json::json;

use crate::runtime::object::Version;
use crate::runtime::{Action, Change, Context, Key, Kind, Object, Plan, Planner, Resource, View};

/// So many objects are deleted in one plan.
const DELETES_MAX: usize = 128;

/// Empties namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces;

impl Planner for Namespaces {
    const NAME: &'static str = "namespaces";
    type Key = String;
    /// Content goes in bursts.
    const COALESCE: Duration = Duration::from_millis(20);

    fn keys(&self, change: &Change, view: &View) -> Vec<String> {
        let name = match change.kind() {
            Some(Kind::Namespace) => &change.id.name,
            _ => &change.id.namespace,
        };
        let closing = view.namespaces.get(&**name).filter(|namespace| is_closing(namespace));
        closing.iter().map(|_| name.to_string()).collect()
    }

    fn plan(&self, name: &String, view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let Some(namespace) = view.namespaces.get(name).filter(|namespace| is_closing(namespace)) else {
            return plan;
        };
        let content = view.content(name);
        let unreadable: Vec<&str> = view
            .problems
            .iter()
            .filter(|(key, _)| &*key.id.namespace == name)
            .map(|(_, problem)| problem.message.as_str())
            .collect();
        if content.is_empty() && unreadable.is_empty() {
            plan.write(finalize(namespace));
            return plan;
        }
        let stage = content.iter().map(|(key, _)| stage(&key.resource)).min();
        let due = content
            .iter()
            .filter(|(key, object)| Some(self::stage(&key.resource)) == stage && !object.is_deleting());
        for (key, object) in due.take(DELETES_MAX) {
            plan.write(Action::delete(key.resource.clone(), &key.id, object.uid()));
        }
        if plan.writes.is_empty() {
            plan.writes
                .extend(remaining(namespace, &content, &unreadable, context).map(Into::into));
        }
        plan
    }
}

/// Whether a namespace is on its way out and its content is not known to be gone.
fn is_closing(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some() && finalizers(namespace).any(|name| name == FINALIZER_NAMESPACE)
}

fn finalizers(namespace: &Namespace) -> impl Iterator<Item = &String> {
    namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten())
}

/// When objects of a kind go; the lower, the earlier.
fn stage(resource: &Resource) -> u8 {
    match resource {
        Resource::Known(Kind::Event) => 3,
        Resource::Known(Kind::Framework | Kind::Lease) => 1,
        Resource::Known(_) => 0,
        Resource::Other(other) => match &*other.resource {
            "configmaps" | "secrets" => 1,
            "serviceaccounts" | "roles.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => 2,
            _ => 0,
        },
    }
}

fn finalize(namespace: &Namespace) -> Action {
    Action::Finalize {
        name: namespace.metadata.name.clone().unwrap_or_default(),
        version: Version::of(&namespace.metadata),
        left: finalizers(namespace)
            .filter(|name| *name != FINALIZER_NAMESPACE)
            .cloned()
            .collect(),
    }
}

/// Says what of a namespace remains, unless its status says so already.
fn remaining(
    namespace: &Namespace,
    content: &[(Key, Object)],
    unreadable: &[&str],
    context: &Context,
) -> Option<Action> {
    let (mut kinds, mut holders) = (BTreeMap::new(), BTreeMap::new());
    for (key, object) in content {
        *kinds.entry(key.resource.name()).or_insert(0usize) += 1;
        for finalizer in object.finalizers() {
            *holders.entry(finalizer.as_str()).or_insert(0usize) += 1;
        }
    }
    let list = |counts: BTreeMap<&str, usize>, verb: &str| -> String {
        let parts = counts
            .into_iter()
            .map(|(name, count)| format!("{name} {verb} {count} resource instances"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let mut what = list(kinds, "has");
    for problem in unreadable {
        what.push_str("; ");
        what.push_str(problem);
    }
    let mut conditions = vec![(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        format!("Some resources are remaining: {what}"),
    )];
    if !holders.is_empty() {
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            list(holders, "in")
        );
        conditions.push(("NamespaceFinalizersRemaining", "SomeFinalizersRemain", message));
    }
    let known = namespace
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let known: Vec<&NamespaceCondition> = known.collect();
    let conditions: Vec<NamespaceCondition> = conditions
        .into_iter()
        .map(|(type_, reason, message)| {
            let before = known.iter().find(|known| known.type_ == type_);
            let since = before.and_then(|before| before.last_transition_time.clone());
            NamespaceCondition {
                type_: type_.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(since.unwrap_or(Time(context.now))),
            }
        })
        .collect();
    let same = known.iter().copied().eq(&conditions);
    (!same).then(|| {
        Action::status(
            Kind::Namespace,
            &namespace.metadata,
            json!({ "conditions": conditions }),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::testing::*;
    use super::*;

    fn closing() -> Cluster {
        let cluster = Cluster::default().without_framework("default").closing("default");
        cluster.edit(Kind::Namespace, "default", |namespace| {
            namespace["spec"] = json!({ "finalizers": ["kubernetes"] });
        })
    }

    fn actions(cluster: Cluster) -> Vec<Action> {
        let plan = Namespaces.plan(&"default".to_owned(), &cluster.view(), &Context::at(now()));
        plan.writes.into_iter().map(|write| write.action).collect()
    }

    #[track_caller]
    fn check_deleted(cluster: Cluster, expect: &[&str]) {
        let deleted = actions(cluster).into_iter().map(|action| match action {
            Action::Delete { kind, id, .. } => format!("{} {id}", kind.name()),
            other => panic!("unexpected {other:?}"),
        });
        assert_eq!(deleted.collect::<Vec<_>>(), expect);
    }

    #[track_caller]
    fn conditions(cluster: Cluster) -> Value {
        match actions(cluster).as_slice() {
            [Action::Patch { body, status: true, .. }] => body["status"]["conditions"].clone(),
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn what_runs_goes_before_what_it_reads_and_events_go_last() {
        let cluster = closing()
            .event("e", -10)
            .other("configmaps", "c", json!({}))
            .other("widgets.example.org", "w", json!({}))
            .task("t1", |task| task.cpus(1))
            .agent("a1", 4)
            .offer("o1", "a1", 1);
        check_deleted(
            cluster.clone(),
            &[
                "tasks.muster.dev default/t1",
                "offers.muster.dev default/o1",
                "widgets.example.org default/w",
            ],
        );
        let cluster = cluster.without(Kind::Task, "t1").without(Kind::Offer, "o1");
        let cluster = cluster.without_other("widgets.example.org", "w");
        check_deleted(cluster.clone(), &["configmaps default/c"]);
        let cluster = cluster.without_other("configmaps", "c");
        check_deleted(cluster, &["events default/e"]);
    }

    #[test]
    fn a_task_that_has_not_ended_keeps_its_namespace_which_says_so() {
        let cluster = closing()
            .other("secrets", "s", json!({}))
            .task("t1", |task| task.cpus(1).running("a1").finalized().deleted());
        let said = conditions(cluster.clone());
        assert_eq!(
            said[0]["message"],
            "Some resources are remaining: secrets has 1 resource instances, tasks.muster.dev has 1 resource instances"
        );
        assert_eq!(
            said[1]["message"],
            "Some content in the namespace has finalizers remaining: muster.dev/agent in 1 resource instances"
        );
        let told = cluster.edit(Kind::Namespace, "default", |namespace| {
            namespace["status"]["conditions"] = said.clone();
        });
        assert_eq!(actions(told), [], "it is not said twice");
    }

    #[test]
    fn an_empty_namespace_is_let_go_and_another_one_is_left_alone() {
        let [Action::Finalize { name, left, .. }] = &actions(closing())[..] else {
            panic!("it is empty")
        };
        assert_eq!((name.as_str(), left.len()), ("default", 0));
        assert_eq!(actions(Cluster::default()), []);
    }

    #[test]
    fn a_namespace_with_something_unreadable_stays() {
        let mut view = closing().view();
        let odd = muster_api::wire::WatchChange {
            resource: "tasks.muster.dev".into(),
            kind: muster_api::wire::ChangeKind::Added,
            object: json!({ "metadata": { "namespace": "default", "name": "odd" }, "spec": 7 }),
        };
        assert!(view.apply(odd).is_none());
        let plan = Namespaces.plan(&"default".to_owned(), &view, &Context::at(now()));
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        assert!(matches!(write.action, Action::Patch { status: true, .. }), "{write:?}");
    }
}
