//! The kinds that are served, and what can be done with their objects, the same for all.
//!
//! A kind is a [`Resource`] (schema, names, columns) and a [`Strategy`] (a page of code with what is special about it).
//! Objects are handled as JSON values, so that what somebody wrote stays as it was written; typed forms are read from them
//! for validation only. Two resources may be two views of one store: they share objects and differ in how they show them.

mod admit;
mod agent;
mod commit;
mod config_map;
mod create;
mod delete;
mod event;
pub mod fence;
mod framework;
mod lease;
mod metadata;
mod namespace;
mod offer;
mod owners;
mod quota;
mod strategy;
mod task;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_api::Timestamp;
use serde_json::Value;

use crate::auth::User;
use crate::hub::{Hub, HubKind, KindId};
use crate::resource::Resource;
use crate::state::State;
use crate::table::Printer;
use fence::Fence;

pub use commit::{Guard, GuardedTxn, Outcome};
pub use create::Create;
pub(crate) use create::guard_namespace;
pub(crate) use event::last_seen;
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
}

/// A resource that is served.
pub struct Kind {
    /// What it looks like from outside.
    pub resource: Resource,
    /// The resource that its objects are stored as; the same, unless this is a view.
    pub stored: Arc<Resource>,
    /// Its number in the hub.
    pub id: KindId,
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
        match self.view {
            View::Stored => stored,
            View::EventsV1 => event::from_core(stored),
        }
    }

    /// What clients send as it is stored.
    pub fn store(&self, shown: Value) -> Value {
        match self.view {
            View::Stored => shown,
            View::EventsV1 => event::to_core(shown),
        }
    }

    /// The field of the stored form that a field selector means.
    pub fn stored_field(&self, path: &str) -> String {
        match self.view {
            View::Stored => path.to_owned(),
            View::EventsV1 => event::core_field(path),
        }
    }
}

/// Every resource that is served.
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    by_path: BTreeMap<(String, String, String), usize>,
    hub_kinds: Vec<HubKind>,
}

impl Registry {
    /// Finds a strategy for each resource.
    pub fn new(resources: Vec<Resource>) -> Registry {
        let (mut kinds, mut by_path, mut hub_kinds) = (Vec::new(), BTreeMap::new(), Vec::new());
        let core_events = resources
            .iter()
            .find(|resource| resource.group.is_empty() && resource.plural == "events")
            .cloned();
        let metadata = crate::kinds::metadata_schema();
        for resource in resources {
            let (stored, view) = match &core_events {
                Some(core) if resource.qualified() == "events.events.k8s.io" => (core.clone(), View::EventsV1),
                _ => (resource.clone(), View::Stored),
            };
            let hub_kind = HubKind::new(&stored);
            let known = hub_kinds
                .iter()
                .position(|known: &HubKind| known.prefix == hub_kind.prefix);
            let index = known.unwrap_or_else(|| {
                hub_kinds.push(hub_kind);
                hub_kinds.len() - 1
            });
            let path = (
                resource.group.clone(),
                resource.version.clone(),
                resource.plural.clone(),
            );
            by_path.insert(path, kinds.len());
            kinds.push(Arc::new(Kind {
                strategy: strategy::of(&resource),
                printer: Printer::new(&resource),
                fields: muster_apply::Schema::new(&resource.schema, &metadata),
                resource,
                stored: Arc::new(stored),
                id: KindId(u16::try_from(index).expect("there are fewer than 65,536 kinds")),
                view,
            }));
        }
        Registry {
            kinds,
            by_path,
            hub_kinds,
        }
    }

    /// Every resource, in the order of discovery.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.kinds.iter().map(|kind| &kind.resource)
    }

    /// Every kind, views included.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// What the hub needs to know.
    pub fn hub_kinds(&self) -> Vec<HubKind> {
        self.hub_kinds.clone()
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let path = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_path.get(&path).map(|index| &self.kinds[*index])
    }

    /// The kind stored as `plural.group`.
    pub fn stored(&self, qualified: &str) -> Option<&Arc<Kind>> {
        self.kinds
            .iter()
            .find(|kind| kind.view == View::Stored && kind.resource.qualified() == qualified)
    }

    /// The kind of Muster's own of that plural.
    pub fn muster(&self, plural: &str) -> &Arc<Kind> {
        self.find(muster_api::names::GROUP, muster_api::names::VERSION, plural)
            .expect("the kinds of Muster are registered")
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
