//! The compiled rules, kept as new as the hub.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use muster_store::{Key, Revision};
use tokio::sync::watch::Receiver;

use super::{Binding, CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES, Role, Rules};
use crate::auth::{self, Attributes, Decision, User};
use crate::hub::{Filter, Hub, KindId, Part};

/// Gives the rules of the moment. Nothing is compiled unless a role or a binding has changed, and then only what changed is read.
pub struct Authorizer {
    hub: Hub,
    roles: Vec<Watched>,
    bindings: Vec<Watched>,
    current: RwLock<Arc<Snapshot>>,
    /// Only one is made at a time.
    making: Mutex<()>,
}

struct Watched {
    kind: KindId,
    touched: Receiver<Revision>,
}

#[derive(Default)]
struct Snapshot {
    /// Roles and bindings were last touched by this revision.
    as_of: Revision,
    roles: BTreeMap<Key, (Revision, Arc<Role>)>,
    bindings: BTreeMap<Key, (Revision, Arc<Binding>)>,
    rules: Arc<Rules>,
}

impl Authorizer {
    /// Follows the hub.
    pub fn new(hub: &Hub) -> Authorizer {
        let watched = |plurals: [&str; 2]| {
            let kinds = plurals
                .into_iter()
                .filter_map(|plural| hub.find(&format!("{plural}.{GROUP}")));
            let watched = kinds.map(|kind| Watched {
                kind,
                touched: hub.touched(kind),
            });
            watched.collect()
        };
        let authorizer = Authorizer {
            hub: hub.clone(),
            roles: watched([ROLES, CLUSTER_ROLES]),
            bindings: watched([ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS]),
            current: RwLock::default(),
            making: Mutex::default(),
        };
        let first = authorizer.make(&Snapshot::default());
        *authorizer.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(first);
        authorizer
    }

    fn current(&self) -> Arc<Snapshot> {
        // A value that is swapped whole is never half changed.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn touched(&self) -> Revision {
        let all = self.roles.iter().chain(&self.bindings);
        all.map(|watched| *watched.touched.borrow()).max().unwrap_or(0)
    }

    /// The rules of what the hub shows now.
    pub fn rules(&self) -> Arc<Rules> {
        let current = self.current();
        if current.as_of >= self.touched() {
            return current.rules.clone();
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        if current.as_of >= self.touched() {
            return current.rules.clone();
        }
        let made = Arc::new(self.make(&current));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = made.clone();
        made.rules.clone()
    }

    /// Whether `user` may do that now.
    pub fn decide(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        auth::decide(user, asked, &self.rules())
    }

    fn make(&self, before: &Snapshot) -> Snapshot {
        // Seen before the objects are: one that comes in between is looked at twice, and none is missed.
        let as_of = self.touched();
        let roles = self.read(&self.roles, &before.roles, Role::read);
        let bindings = self.read(&self.bindings, &before.bindings, Binding::read);
        let values = roles.values().map(|(_, role)| role.clone());
        let rules = Rules::new(values, bindings.values().map(|(_, binding)| binding.clone()));
        Snapshot {
            as_of,
            rules: Arc::new(rules),
            roles,
            bindings,
        }
    }

    fn read<T>(
        &self,
        kinds: &[Watched],
        before: &BTreeMap<Key, (Revision, Arc<T>)>,
        read: impl Fn(&serde_json::Value) -> T,
    ) -> BTreeMap<Key, (Revision, Arc<T>)> {
        let mut all = BTreeMap::new();
        for watched in kinds {
            for object in self
                .hub
                .list(watched.kind, &Filter::all(None), &Part::default())
                .objects
            {
                let value = match before.get(&object.key) {
                    Some((revision, known)) if *revision == object.revision => known.clone(),
                    _ => Arc::new(read(&object.json())),
                };
                all.insert(object.key.clone(), (object.revision, value));
            }
        }
        all
    }
}
