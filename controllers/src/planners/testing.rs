//! Small builders of views for the tests of planners. They go through the same decoding as the watch does.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use muster_api::v1::{Reachability, TaskReason};
use muster_api::wire::{ChangeKind, WatchChange};
use serde_json::{Value, json};

use crate::runtime::{Kind, View};

/// The time in tests.
pub(crate) fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

/// So many seconds from then.
pub(crate) fn at(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// A cluster with namespace `default` and its built-in framework, and what is added to it.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(BTreeMap<(Kind, String), Value>, BTreeMap<(String, String), Value>);

impl Default for Cluster {
    fn default() -> Cluster {
        let cluster = Cluster(BTreeMap::new(), BTreeMap::new());
        cluster.with(Kind::Namespace, "default", json!({})).with(
            Kind::Framework,
            "default",
            json!({ "spec": { "scheduler": "BuiltIn" } }),
        )
    }
}

fn meta(kind: Kind, name: &str) -> Value {
    let namespace = match kind {
        Kind::Namespace | Kind::Agent | Kind::Quota => None,
        Kind::Lease => Some("muster-agents"),
        Kind::Framework | Kind::Task | Kind::Offer | Kind::Event => Some("default"),
    };
    json!({
        "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "resourceVersion": "1", "generation": 1,
        "creationTimestamp": now().to_string(),
    })
}

impl Cluster {
    pub(crate) fn with(mut self, kind: Kind, name: &str, mut object: Value) -> Cluster {
        let (api_version, kind_name) = kind.names();
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind_name);
        if object["metadata"].is_null() {
            object["metadata"] = meta(kind, name);
        }
        self.0.insert((kind, name.to_owned()), object);
        self
    }

    pub(crate) fn edit(mut self, kind: Kind, name: &str, edit: impl FnOnce(&mut Value)) -> Cluster {
        edit(
            self.0
                .get_mut(&(kind, name.to_owned()))
                .expect("what is edited is there"),
        );
        self
    }

    pub(crate) fn without(mut self, kind: Kind, name: &str) -> Cluster {
        self.0.remove(&(kind, name.to_owned()));
        self
    }

    /// An object of a kind that planners do not know, in namespace `default`, with this in its metadata.
    pub(crate) fn other(mut self, resource: &str, name: &str, metadata: Value) -> Cluster {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let slash = if group.is_empty() { "" } else { "/" };
        let mut object = json!({
            "apiVersion": format!("{group}{slash}v1"),
            "kind": plural,
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1" },
        });
        for (field, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][field] = value.clone();
        }
        self.1.insert((resource.to_owned(), name.to_owned()), object);
        self
    }

    pub(crate) fn without_other(mut self, resource: &str, name: &str) -> Cluster {
        self.1.remove(&(resource.to_owned(), name.to_owned()));
        self
    }

    pub(crate) fn agent(self, name: &str, cpus: u32) -> Cluster {
        self.gpu_agent(name, cpus, 0)
    }

    /// A present agent with so many CPUs, a GiB for each, and so many GPUs.
    pub(crate) fn gpu_agent(self, name: &str, cpus: u32, gpus: usize) -> Cluster {
        let device = |index: usize| json!({ "uuid": format!("GPU-{index}"), "model": "NVIDIA H100", "memory": "80Gi", "health": "Healthy" });
        let devices: Vec<Value> = (0..gpus).map(device).collect();
        let capacity = json!({ "cpus": cpus, "memory": format!("{cpus}Gi"), "disk": "0", "gpus": gpus, "ports": [] });
        let status = json!({ "capacity": capacity, "devices": devices, "reachability": "Reachable" });
        self.with(Kind::Agent, name, json!({ "spec": {}, "status": status }))
            .with(Kind::Lease, name, json!({ "spec": { "holderIdentity": name } }))
    }

    pub(crate) fn without_presence(self, agent: &str) -> Cluster {
        self.without(Kind::Lease, agent)
    }

    pub(crate) fn believed(self, agent: &str, belief: Reachability) -> Cluster {
        self.edit(Kind::Agent, agent, |agent| {
            agent["status"]["reachability"] = json!(belief)
        })
    }

    /// An agent that was lost after so many seconds.
    pub(crate) fn lost(self, agent: &str, seconds: i64) -> Cluster {
        let lost = self.without_presence(agent).believed(agent, Reachability::Unknown);
        lost.edit(Kind::Agent, agent, |agent| {
            agent["status"]["reachabilitySince"] = json!(at(seconds).to_string());
        })
    }

    /// An agent of which an operator has said something: a time in its spec.
    pub(crate) fn said(self, agent: &str, field: &str, seconds: i64) -> Cluster {
        self.edit(Kind::Agent, agent, |agent| {
            agent["spec"][field] = json!(at(seconds).to_string())
        })
    }

    pub(crate) fn unschedulable(self, agent: &str) -> Cluster {
        self.edit(Kind::Agent, agent, |agent| agent["spec"]["unschedulable"] = json!(true))
    }

    pub(crate) fn without_agent(self, agent: &str) -> Cluster {
        self.without(Kind::Agent, agent)
    }

    pub(crate) fn without_framework(self, name: &str) -> Cluster {
        self.without(Kind::Framework, name)
    }

    pub(crate) fn external(self, name: &str) -> Cluster {
        self.with(Kind::Framework, name, json!({ "spec": { "scheduler": "External" } }))
    }

    pub(crate) fn with_status(self, framework: &str, status: Value) -> Cluster {
        self.edit(Kind::Framework, framework, |framework| framework["status"] = status)
    }

    pub(crate) fn closing(self, namespace: &str) -> Cluster {
        self.edit(Kind::Namespace, namespace, |namespace| {
            namespace["metadata"]["deletionTimestamp"] = json!(now().to_string());
        })
    }

    pub(crate) fn quota(self, name: &str, role: &str) -> Cluster {
        self.with(Kind::Quota, name, json!({ "spec": { "role": role } }))
    }

    pub(crate) fn limit(self, quota: &str, cpus: u32) -> Cluster {
        self.edit(Kind::Quota, quota, |quota| {
            quota["spec"]["limit"] = json!({ "cpus": cpus.to_string() })
        })
    }

    pub(crate) fn event(self, name: &str, seconds: i64) -> Cluster {
        let mut metadata = meta(Kind::Event, name);
        metadata["creationTimestamp"] = json!(at(seconds).to_string());
        self.with(Kind::Event, name, json!({ "metadata": metadata }))
    }

    pub(crate) fn task(self, name: &str, build: impl FnOnce(TaskBuilder) -> TaskBuilder) -> Cluster {
        let task = TaskBuilder(json!({
            "metadata": meta(Kind::Task, name),
            "spec": { "framework": "default", "command": ["true"], "resources": {} },
            "status": { "phase": "Pending" },
        }));
        self.with(Kind::Task, name, build(task).0)
    }

    pub(crate) fn offer(self, name: &str, agent: &str, cpus: u32) -> Cluster {
        self.put_offer(name, agent, cpus, 30)
    }

    pub(crate) fn expired_offer(self, name: &str, agent: &str, cpus: u32) -> Cluster {
        self.put_offer(name, agent, cpus, 0)
    }

    fn put_offer(self, name: &str, agent: &str, cpus: u32, seconds: i64) -> Cluster {
        let resources = json!({ "cpus": cpus, "memory": format!("{cpus}Gi") });
        let spec = json!({
            "framework": "default", "role": "default", "agent": agent, "resources": resources,
            "expiresAt": at(seconds).to_string(),
        });
        self.with(
            Kind::Offer,
            name,
            json!({ "spec": spec, "status": { "phase": "Open" } }),
        )
    }

    /// An offer of everything that an agent has.
    pub(crate) fn whole_offer(self, name: &str, agent: &str) -> Cluster {
        let status = self.0[&(Kind::Agent, agent.to_owned())]["status"].clone();
        let cpus = status["capacity"]["cpus"].as_u64().expect("cpus");
        let cluster = self.offer(name, agent, u32::try_from(cpus).expect("few"));
        cluster.edit(Kind::Offer, name, |offer| {
            offer["spec"]["devices"] = status["devices"].clone();
            offer["spec"]["resources"]["gpus"] = status["capacity"]["gpus"].clone();
        })
    }

    pub(crate) fn declined(self, offer: &str, seconds: i64) -> Cluster {
        self.edit(Kind::Offer, offer, |offer| {
            offer["status"] = json!({ "phase": "Declined", "refuseUntil": at(seconds).to_string() });
        })
    }

    /// The view, at revision 100.
    pub(crate) fn view(self) -> View {
        let mut view = View::default();
        let known = self.0.into_iter();
        let known = known.map(|((kind, name), object)| (kind.resource().to_owned(), name, object));
        let others = self.1.into_iter();
        let others = others.map(|((resource, name), object)| (resource, name, object));
        for (resource, name, object) in known.chain(others) {
            let change = WatchChange {
                kind: ChangeKind::Added,
                resource: resource.clone(),
                object,
            };
            let applied = view.apply(change).is_some();
            assert!(applied, "{resource} {name} is read: {:?}", view.problems);
        }
        view.revision = 100;
        view
    }
}

/// A task in the making.
pub(crate) struct TaskBuilder(Value);

impl TaskBuilder {
    fn set(mut self, pointer: &str, value: impl Into<Value>) -> TaskBuilder {
        let mut at = &mut self.0;
        for part in pointer.trim_start_matches('/').split('/') {
            at = &mut at[part];
        }
        *at = value.into();
        self
    }

    pub(crate) fn spec(self, field: &str, value: Value) -> TaskBuilder {
        self.set(&format!("/spec/{field}"), value)
    }

    pub(crate) fn status(self, field: &str, value: Value) -> TaskBuilder {
        self.set(&format!("/status/{field}"), value)
    }

    /// Made to replace the task of this uid.
    pub(crate) fn replaces(self, uid: &str) -> TaskBuilder {
        self.set("/metadata/annotations", json!({ "muster.dev/replaces": uid }))
    }

    pub(crate) fn cpus(self, cpus: u32) -> TaskBuilder {
        self.set("/spec/resources/cpus", cpus)
            .set("/spec/resources/memory", "64Mi")
    }

    pub(crate) fn gpus(self, gpus: u32) -> TaskBuilder {
        self.set("/spec/resources/gpus", gpus)
    }

    pub(crate) fn created(self, seconds: i64) -> TaskBuilder {
        self.set("/metadata/creationTimestamp", at(seconds).to_string())
    }

    pub(crate) fn priority(self, priority: i32) -> TaskBuilder {
        self.set("/spec/priority", priority)
    }

    pub(crate) fn role(self, role: &str) -> TaskBuilder {
        self.set("/spec/role", role)
    }

    pub(crate) fn framework(self, framework: &str) -> TaskBuilder {
        self.set("/spec/framework", framework)
    }

    pub(crate) fn on(self, attribute: &str, value: &str) -> TaskBuilder {
        self.set(
            "/spec/constraints",
            json!([{ "attribute": attribute, "operator": "In", "values": [value] }]),
        )
    }

    pub(crate) fn killed(self) -> TaskBuilder {
        self.set("/spec/desired", "Killed")
    }

    pub(crate) fn reason(self, reason: TaskReason, message: &str) -> TaskBuilder {
        self.set("/status/reason", json!(reason))
            .set("/status/message", message)
    }

    pub(crate) fn running(self, agent: &str) -> TaskBuilder {
        self.set("/status/phase", "Running").set("/status/agent", agent)
    }

    pub(crate) fn unreachable(self) -> TaskBuilder {
        self.set("/status/reachability", "Unknown")
    }

    pub(crate) fn finished(self, agent: &str, seconds: i64) -> TaskBuilder {
        self.set("/status/phase", "Finished")
            .set("/status/agent", agent)
            .set("/status/finishedAt", at(seconds).to_string())
    }

    pub(crate) fn ttl(self, seconds: u64) -> TaskBuilder {
        self.set("/spec/ttlAfterFinished", format!("{seconds}s"))
    }

    pub(crate) fn finalized(self) -> TaskBuilder {
        self.set("/metadata/finalizers", json!(["muster.dev/agent"]))
    }

    pub(crate) fn deleted(self) -> TaskBuilder {
        self.set("/metadata/deletionTimestamp", now().to_string())
    }
}
