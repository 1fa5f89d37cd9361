//! Kinds that are defined by objects: what CustomResourceDefinitions make of the kinds that the server is built with.
//!
//! A definition becomes a [`Kind`] for each of its versions, with one strategy for all of them; what then happens to its
//! objects is the generic registry's business. What is served is a function of the definitions that the hub shows, made anew when they have
//! changed: there is no copy to keep in step, and every server over one store serves the same.
//!
//! It promises: whoever has been told of a definition finds its kind, at every server, because a server that does not know a kind looks again once it
//! shows everything that has been acknowledged. An object is stored only while its definition is the one that it was held against, because
//! every write compares it: none slips in under an older schema or behind the deletion of its kind. What must never happen here: a kind of the server's
//! own that changes, or a request that sees half of a change. Tested here for what is pure, through the routes, over two
//! servers, and with kubectl and kube-rs.

mod check;
mod cleanup;
mod names;
mod structural;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use muster_store::{Key, Revision};
use serde_json::Value;
use tokio::sync::watch::Receiver;

use crate::documents::Documents;
use crate::hub::{Filter, Hub, HubKind, KindId, Object, Part};
use crate::keys;
use crate::kinds;
use crate::registry::{Kind, View, custom_strategy};
use crate::resource::Resource;
use crate::table::Printer;

pub(crate) use check::{changes, problems};
pub(crate) use cleanup::run as clean_up;
pub(crate) use names::{Taken, accept, status};
pub(crate) use structural::{complete, forget_unknown};

/// The kind of definitions.
pub const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// What keeps a definition that is being deleted until its objects are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The object that defines a kind, as it was when the kind was made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Where it is.
    pub key: Key,
    /// The revision of its last write.
    pub revision: Revision,
    /// Whether it is being deleted, with all objects of the kind.
    pub terminating: bool,
    /// Whether all of its versions have the same schema, so that no object is of the shape of one and not of the other.
    pub alike: bool,
}

/// Everything that is served at one moment.
pub(crate) struct Served {
    /// The definitions were last touched by this revision.
    as_of: Revision,
    defined: BTreeMap<Key, (Revision, Vec<Arc<Kind>>)>,
    /// Every kind, in the order of discovery.
    pub(crate) kinds: Vec<Arc<Kind>>,
    /// The custom kinds, by group, version and plural.
    pub(crate) by_path: BTreeMap<(String, String, String), Arc<Kind>>,
    /// What the server says about itself.
    pub(crate) documents: Arc<Documents>,
}

/// What is served, as of the definitions that the hub shows.
pub(crate) struct Catalog {
    hub: Hub,
    built_in: Vec<Arc<Kind>>,
    /// The kind of definitions, and when it was last touched; `None`: it is not served.
    definitions: Option<(KindId, Receiver<Revision>)>,
    current: RwLock<Arc<Served>>,
    /// Only one is made at a time.
    making: Mutex<()>,
}

impl Catalog {
    pub(crate) fn new(hub: Hub, built_in: Vec<Arc<Kind>>) -> Catalog {
        let kind = built_in.iter().find(|kind| kind.resource.qualified() == DEFINITIONS);
        let definitions = kind.map(|kind| (kind.id, hub.touched(kind.id)));
        let nothing = Served {
            as_of: 0,
            defined: BTreeMap::new(),
            kinds: Vec::new(),
            by_path: BTreeMap::new(),
            documents: Arc::new(Documents::new(Vec::new())),
        };
        let mut catalog = Catalog {
            hub,
            built_in,
            definitions,
            current: RwLock::new(Arc::new(nothing)),
            making: Mutex::new(()),
        };
        let served = catalog.make(&catalog.current());
        catalog.current = RwLock::new(Arc::new(served));
        catalog
    }

    fn current(&self) -> Arc<Served> {
        // A value that is swapped whole is never half changed.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn touched(&self) -> Revision {
        self.definitions.as_ref().map_or(0, |(_, touched)| *touched.borrow())
    }

    /// What is served now. Nothing is made unless a definition has changed.
    pub(crate) fn served(&self) -> Arc<Served> {
        let current = self.current();
        if current.as_of >= self.touched() {
            return current;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        if current.as_of >= self.touched() {
            return current;
        }
        let served = Arc::new(self.make(&current));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = served.clone();
        served
    }

    /// Everything, with what is the same as `before` taken from there.
    fn make(&self, before: &Served) -> Served {
        // Seen before the definitions are: one that comes in between is looked at twice, and none is missed.
        let as_of = self.touched();
        let objects = self.definitions.as_ref().map(|(id, _)| {
            let found = self.hub.list(*id, &Filter::all(None), &Part::default());
            found.objects
        });
        let mut defined = BTreeMap::new();
        for object in objects.unwrap_or_default() {
            let kinds = match before.defined.get(&object.key) {
                Some((revision, kinds)) if *revision == object.revision => kinds.clone(),
                _ => define(&self.hub, &object),
            };
            defined.insert(object.key.clone(), (object.revision, kinds));
        }
        let mut custom: Vec<Arc<Kind>> = defined.values().flat_map(|(_, kinds)| kinds).cloned().collect();
        custom.sort_by_cached_key(|kind| {
            let Resource {
                group, version, plural, ..
            } = &kind.resource;
            (group.clone(), std::cmp::Reverse(priority(version)), plural.clone())
        });
        let kinds: Vec<Arc<Kind>> = self.built_in.iter().chain(&custom).cloned().collect();
        let served = |kind: &&Arc<Kind>| kind.served;
        Served {
            as_of,
            defined,
            documents: Arc::new(Documents::new(
                kinds
                    .iter()
                    .filter(served)
                    .map(|kind| kind.resource.clone())
                    .collect::<Vec<_>>(),
            )),
            by_path: custom
                .iter()
                .filter(served)
                .map(|kind| (path(&kind.resource), kind.clone()))
                .collect(),
            kinds,
        }
    }
}

fn path(resource: &Resource) -> (String, String, String) {
    let Resource {
        group, version, plural, ..
    } = resource;
    (group.clone(), version.clone(), plural.clone())
}

/// Which of two versions is the newer one: `v2`, `v1`, `v2beta1`, `v1beta2`, `v1alpha1`, and what is called otherwise by its name.
fn priority(version: &str) -> (u8, u32, u32, std::cmp::Reverse<String>) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, rest) = rest.split_at(digits);
        let major = major.parse().ok()?;
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        let minor = |stage: &str| rest.strip_prefix(stage)?.parse().ok();
        let beta = minor("beta").map(|minor| (2, major, minor));
        beta.or_else(|| minor("alpha").map(|minor| (1, major, minor)))
    };
    let (stage, major, minor) = parse().unwrap_or_default();
    (stage, major, minor, std::cmp::Reverse(version.to_owned()))
}

/// Whether a condition of a definition holds.
pub(crate) fn holds(definition: &Value, condition: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    let mut found = conditions.filter(|known| known["type"] == condition);
    found.any(|known| known["status"] == "True")
}

/// The kinds that a definition makes, one for each version; none while its names are not accepted.
fn define(hub: &Hub, object: &Object) -> Vec<Arc<Kind>> {
    let definition = object.json();
    if !holds(&definition, "Established") {
        return Vec::new();
    }
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let resource = |version: &Value| {
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        complete(&mut schema);
        kinds::of_version(spec, names, version, schema)
    };
    let resources: Result<Vec<Resource>, _> = versions.iter().map(resource).collect();
    let resources = match resources {
        Ok(resources) => resources,
        Err(error) => {
            tracing::error!(definition = %object.key, %error, "the definition is not served: it was stored by a server with other rules");
            return Vec::new();
        }
    };
    let stored = resources
        .iter()
        .zip(versions)
        .find(|(_, version)| version["storage"] == true);
    let Some(stored) = stored.map(|(resource, _)| Arc::new(resource.clone())) else {
        return Vec::new();
    };
    let about = Arc::new(Definition {
        key: object.key.clone(),
        revision: object.revision,
        terminating: !definition["metadata"]["deletionTimestamp"].is_null(),
        alike: resources.iter().all(|resource| resource.schema == stored.schema),
    });
    let metadata = kinds::metadata_schema();
    let id = hub.number(&keys::kind_prefix(&stored));
    let made = resources.into_iter().zip(versions).map(|(resource, version)| {
        Arc::new(Kind {
            strategy: custom_strategy(&about),
            printer: Printer::new(&resource),
            fields: muster_apply::Schema::new(&resource.schema, &metadata),
            view: if resource.version == stored.version {
                View::Stored
            } else {
                View::Version
            },
            stored: stored.clone(),
            hub: Arc::new(HubKind::custom(&resource)),
            id,
            definition: Some(about.clone()),
            served: version["served"] == true,
            resource,
        })
    });
    made.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_come_first() {
        let mut versions = [
            "v1alpha1", "v10", "v1", "v2beta1", "v1beta2", "foo", "v2", "v2beta10", "bar",
        ];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1", "v2beta10", "v2beta1", "v1beta2", "v1alpha1", "bar", "foo"
            ]
        );
    }
}
