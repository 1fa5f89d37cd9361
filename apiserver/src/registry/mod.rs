//! The kinds that are served, and what can be done with their objects, the same for all.
//!
//! A kind is a [`Resource`] (schema, names, columns) and a [`Strategy`] (a page of code with what is special about it).
//! Objects are handled as JSON values, so that what somebody wrote stays as it was written; typed forms are read from them
//! for validation only. Two resources may be two views of one store: they share objects and differ in how they show them.
//! Kinds that are defined by objects ([`crate::custom`]) are kinds like any other here; their strategy is `custom`.

mod admit;
mod agent;
mod commit;
mod config_map;
mod create;
mod custom;
mod definition;
mod delete;
mod escalation;
mod event;
pub mod fence;
mod framework;
mod lease;
mod metadata;
mod namespace;
mod offer;
mod owners;
mod quota;
mod role;
mod role_binding;
mod secret;
mod service_account;
mod strategy;
mod task;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_api::Timestamp;
use muster_api::names::{GROUP, VERSION};
use muster_store::Revision;
use serde_json::Value;

use crate::auth::User;
use crate::custom::{Catalog, Definition};
use crate::documents::Documents;
use crate::hub::{Hub, HubKind, KindId};
use crate::resource::Resource;
use crate::state::State;
use crate::table::Printer;
use crate::views;
use fence::Fence;

pub use commit::{Guard, GuardedTxn, Outcome};
pub use create::Create;
pub(crate) use create::guard_namespace;
pub(crate) use custom::strategy as custom_strategy;
pub(crate) use event::last_seen;
pub(crate) use metadata::identify;
pub use namespace::DEFAULTS as DEFAULT_NAMESPACES;
pub(crate) use namespace::finalize;
pub use owners::Application;
pub use strategy::Strategy;

pub(crate) use task::set_status;
pub(crate) use update::decode;
pub use update::{Change, Update};

/// How a resource shows what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// As it is.
    Stored,
    /// An Event of core/v1 as one of events.k8s.io/v1.
    EventsV1,
    /// As another version of a custom kind than the one that is stored.
    Version,
    /// A task as a Pod.
    Pods,
    /// An agent as a Node.
    Nodes,
    /// What a task uses, as PodMetrics: what is stored only says which tasks there are.
    PodMetrics,
    /// What an agent uses, as NodeMetrics.
    NodeMetrics,
}

/// A resource that is served.
pub struct Kind {
    /// What it looks like from outside.
    pub resource: Resource,
    /// The resource that its objects are stored as; the same, unless this is a view.
    pub stored: Arc<Resource>,
    /// Its number in the hub.
    pub id: KindId,
    /// What the hub has to know to select its objects.
    pub hub: Arc<HubKind>,
    /// What defines it, if that is an object.
    pub definition: Option<Arc<Definition>>,
    /// Whether it can be asked for. A version of a custom kind may be stored only.
    pub served: bool,
    /// How it shows what is stored.
    pub view: View,
    /// What is special about it.
    pub strategy: Arc<dyn Strategy>,
    /// Makes tables of it.
    pub printer: Printer,
    /// How its objects are merged, and who may own what of them.
    pub fields: muster_apply::Schema,
}

impl Kind {
    /// The stored form as clients see it.
    pub fn show(&self, stored: Value) -> Value {
        match (&self.definition, self.view) {
            (Some(_), _) => custom::show(&self.resource, stored),
            (None, View::EventsV1) => event::from_core(stored),
            (None, View::Pods) => views::pod::of_task(stored),
            (None, View::Nodes) => views::node::of_agent(stored),
            (None, _) => stored,
        }
    }

    /// What clients send as it is stored.
    pub fn store(&self, shown: Value) -> Value {
        match (&self.definition, self.view) {
            (Some(_), _) => custom::store(&self.stored, shown),
            (None, View::EventsV1) => event::to_core(shown),
            (None, _) => shown,
        }
    }

    /// The field of the stored form that a field selector means.
    pub fn stored_field(&self, path: &str) -> String {
        match self.view {
            View::Stored | View::Version | View::Pods | View::Nodes | View::PodMetrics | View::NodeMetrics => {
                path.to_owned()
            }
            View::EventsV1 => event::core_field(path),
        }
    }

    /// Whether an object that was written at `revision` is shown as it is stored. Of a custom kind, those are that were written since its
    /// definition was: every write compares it, so they have the shape that it asks for.
    pub fn is_verbatim(&self, revision: Revision) -> bool {
        self.view == View::Stored
            && self
                .definition
                .as_ref()
                .is_none_or(|definition| definition.alike && definition.revision < revision)
    }

    /// Whether `metadata.generation` counts changes.
    pub(crate) fn counts_generations(&self) -> bool {
        self.strategy.counts_generations() && (self.resource.has_status() || self.definition.is_some())
    }
}

/// Every resource that is served: the kinds that the server is built with, and those that are defined at the moment.
pub struct Registry {
    built_in: Vec<Arc<Kind>>,
    by_path: BTreeMap<(String, String, String), usize>,
    catalog: Catalog,
}

/// The resource that a resource's objects are stored as, and how it shows them.
fn stored_as(resource: &Resource, all: &[Resource]) -> (Resource, View) {
    let (stored, view) = match resource.qualified().as_str() {
        "events.events.k8s.io" => ("events", View::EventsV1),
        "pods" => ("tasks.muster.dev", View::Pods),
        "nodes" => ("agents.muster.dev", View::Nodes),
        "pods.metrics.k8s.io" => ("tasks.muster.dev", View::PodMetrics),
        "nodes.metrics.k8s.io" => ("agents.muster.dev", View::NodeMetrics),
        _ => return (resource.clone(), View::Stored),
    };
    match all.iter().find(|known| known.qualified() == stored) {
        Some(stored) => (stored.clone(), view),
        None => (resource.clone(), View::Stored),
    }
}

/// What the hub needs to know of these.
pub fn hub_kinds(resources: &[Resource]) -> Vec<HubKind> {
    let stored = resources.iter().map(|resource| stored_as(resource, resources));
    let stored = stored.filter(|(_, view)| *view == View::Stored);
    stored.map(|(resource, _)| HubKind::new(&resource)).collect()
}

impl Registry {
    /// Finds a strategy for each resource. `hub` knows them as [`hub_kinds`].
    pub fn new(resources: &[Resource], hub: &Hub) -> Registry {
        let (mut built_in, mut by_path) = (Vec::new(), BTreeMap::new());
        let metadata = crate::kinds::metadata_schema();
        for resource in resources {
            let (stored, view) = stored_as(resource, resources);
            let path = (
                resource.group.clone(),
                resource.version.clone(),
                resource.plural.clone(),
            );
            by_path.insert(path, built_in.len());
            let id = hub.number(&crate::keys::kind_prefix(&stored));
            built_in.push(Arc::new(Kind {
                strategy: strategy::of(&stored),
                printer: Printer::new(resource),
                fields: muster_apply::Schema::new(&resource.schema, &metadata),
                resource: resource.clone(),
                stored: Arc::new(stored),
                hub: hub.kind(id),
                id,
                view,
                definition: None,
                served: true,
            }));
        }
        Registry {
            catalog: Catalog::new(hub.clone(), built_in.clone()),
            built_in,
            by_path,
        }
    }

    /// Every kind, views and other versions included.
    pub fn kinds(&self) -> Vec<Arc<Kind>> {
        self.catalog.served().kinds.clone()
    }

    /// The kinds that the server is built with.
    pub fn built_in(&self) -> &[Arc<Kind>] {
        &self.built_in
    }

    /// What the server says about itself.
    pub fn documents(&self) -> Arc<Documents> {
        self.catalog.served().documents.clone()
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let path = (group.to_owned(), version.to_owned(), plural.to_owned());
        match self.by_path.get(&path) {
            Some(index) => Some(self.built_in[*index].clone()),
            None => self.catalog.served().by_path.get(&path).cloned(),
        }
    }

    /// The kind stored as `plural.group`.
    pub fn stored(&self, qualified: &str) -> Option<Arc<Kind>> {
        let is_it = |kind: &&Arc<Kind>| kind.view == View::Stored && kind.resource.qualified() == qualified;
        let built_in = self.built_in.iter().find(is_it).cloned();
        built_in.or_else(|| self.catalog.served().kinds.iter().find(is_it).cloned())
    }

    /// The kind of Muster's own of that plural.
    pub fn muster(&self, plural: &str) -> &Arc<Kind> {
        let path = (GROUP.to_owned(), VERSION.to_owned(), plural.to_owned());
        let index = self.by_path.get(&path);
        &self.built_in[*index.expect("the kinds of Muster are registered")]
    }
}

/// Who writes, when, and under which lease.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The whole server.
    pub state: &'a State,
    /// Who.
    pub user: &'a User,
    /// When, by the wall clock.
    pub now: Timestamp,
    /// The lease under which the writer acts.
    pub fence: Option<&'a Fence>,
}

impl<'a> Context<'a> {
    /// A write that begins now.
    pub fn new(state: &'a State, user: &'a User, fence: Option<&'a Fence>) -> Context<'a> {
        let now = state.env.now();
        Context {
            state,
            user,
            now,
            fence,
        }
    }

    /// The hub.
    pub fn hub(&self) -> &'a Hub {
        &self.state.hub
    }
}

/// What a write left.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object, as the resource shows it.
    pub object: Value,
    /// What the writer should know.
    pub warnings: Vec<String>,
    /// Whether the object is gone now.
    pub deleted: bool,
}
