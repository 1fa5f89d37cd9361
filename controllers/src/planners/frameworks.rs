//! Makes the built-in framework where it is needed, and says that frameworks are ready.

use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Framework, Scheduler};
use serde_json::json;

use super::condition;
use super::snapshot::wants_placement;
use crate::runtime::view::framework_of;
use crate::runtime::{Action, Change, Context, Id, Kind, Object, Plan, Planner, View};

/// Keeps frameworks.
#[derive(Clone, Copy, Debug)]
pub struct Frameworks;

impl Planner for Frameworks {
    const NAME: &'static str = "frameworks";
    type Key = Id;

    fn keys(&self, change: &Change, view: &View) -> Vec<Id> {
        match change.kind() {
            Some(Kind::Framework) => vec![change.id.clone()],
            Some(Kind::Task) => {
                let pending = change
                    .new
                    .iter()
                    .filter_map(Object::task)
                    .filter(|task| task.phase() == Phase::Pending);
                let frameworks = pending.map(|task| framework_of(task));
                frameworks.filter(|id| !view.frameworks.contains_key(id)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&self, id: &Id, view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        match view.frameworks.get(id) {
            Some(framework) => plan.writes.extend(ready(framework, context).map(Into::into)),
            None if is_needed(id, view) => plan.write(create(id)),
            None => {}
        }
        plan
    }
}

fn is_needed(id: &Id, view: &View) -> bool {
    &*id.name == names::FRAMEWORK_DEFAULT
        && view.is_open(&id.namespace)
        && view.pending(id).any(|task| wants_placement(task))
}

fn create(id: &Id) -> Action {
    Action::Create {
        kind: Kind::Framework,
        namespace: id.namespace.to_string(),
        object: json!({
            "apiVersion": names::API_VERSION,
            "kind": "Framework",
            "metadata": { "name": &*id.name, "namespace": &*id.namespace },
            "spec": { "scheduler": Scheduler::BuiltIn },
        }),
    }
}

fn ready(framework: &Framework, context: &Context) -> Option<Action> {
    let generation = framework.metadata.generation;
    let status = framework.status.clone().unwrap_or_default();
    let texts = match (&framework.spec.scheduler, &framework.spec.demand) {
        (Scheduler::BuiltIn, _) => ("BuiltIn", "the cluster's own scheduler answers its offers"),
        (Scheduler::External, Some(_)) => ("Demanding", "offers are made for its demand and its pending tasks"),
        (Scheduler::External, None) => ("OnDemand", "offers are made for its pending tasks"),
    };
    let ready = condition(&status.conditions, ("Ready", "True"), texts, generation, context.now);
    let same = status.observed_generation == generation && status.conditions.contains(&ready);
    (!same).then(|| {
        let body = json!({ "observedGeneration": generation, "conditions": [ready] });
        Action::status(Kind::Framework, &framework.metadata, body)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plan(view: &View, name: &str) -> Vec<Action> {
        let plan = Frameworks.plan(&Id::new("default", name), view, &Context::at(now()));
        plan.writes.into_iter().map(|write| write.action).collect()
    }

    #[test]
    fn the_built_in_framework_is_made_for_the_first_task_of_a_namespace() {
        let cluster = Cluster::default()
            .without_framework("default")
            .task("t1", |task| task.cpus(1));
        let actions = plan(&cluster.view(), "default");
        let [Action::Create { object, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(object["spec"]["scheduler"], "BuiltIn");
    }

    #[test]
    fn no_other_framework_is_made_and_none_without_need() {
        let other = Cluster::default().task("t1", |task| task.cpus(1).framework("mine"));
        assert_eq!(plan(&other.view(), "mine"), []);
        let idle = Cluster::default().without_framework("default");
        assert_eq!(plan(&idle.view(), "default"), []);
        let closing = Cluster::default()
            .without_framework("default")
            .task("t1", |task| task.cpus(1))
            .closing("default");
        assert_eq!(plan(&closing.view(), "default"), []);
    }

    #[test]
    fn a_framework_is_ready_once() {
        let cluster = Cluster::default();
        let actions = plan(&cluster.clone().view(), "default");
        let [Action::Patch { body, status: true, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(body["status"]["conditions"][0]["status"], "True");
        let cluster = cluster.with_status("default", body["status"].clone());
        assert_eq!(plan(&cluster.view(), "default"), []);
    }
}
