//! Garbage collection: what becomes of objects when those that own them go.
//!
//! An object goes when it has owners and none of them lives. How an owner goes is in its finalizers. `foregroundDeletion`: it waits until
//! everything is gone that says it shall wait (`blockOwnerDeletion`). `orphan`: it waits until nothing says any more that it owns it.
//! Neither: it is gone, and what it owned follows. An owner is meant by kind, name and uid, in the object's own namespace or in none;
//! anything else is no owner. Promises: nothing is deleted for want of an owner before the server itself was asked for each of them, and
//! only in the very state that was looked at; objects that wait for each other in a circle do not wait. What must never happen here: a
//! kind that is known by name; the planner looks at whatever the view has. Tested below on graphs drawn at random, against a model of the
//! server, and with the real one.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use muster_api::names::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use serde_json::json;

use crate::runtime::plan::Propagation;
use crate::runtime::{Action, Change, Context, Key, Object, Plan, Planner, View};

/// So many objects are told in one plan that they have no owner any more.
const ORPHANS_MAX: usize = 64;

/// So many objects are looked at for a circle; longer ones are not seen, and wait.
const CIRCLE_MAX: usize = 1000;

/// Collects what nobody owns any more.
#[derive(Clone, Copy, Debug)]
pub struct Garbage;

impl Planner for Garbage {
    const NAME: &'static str = "garbage";
    type Key = Key;

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        let mut keys = Vec::new();
        let concerned = |object: &Object| !object.owners().is_empty() || is_collecting(object);
        if change.new.as_ref().is_some_and(concerned) {
            keys.push(change.key());
        }
        let footing = |object: &Option<Object>| {
            let object = object.as_ref()?;
            Some((object.uid().to_owned(), waits_for_dependents(object)))
        };
        if footing(&change.old) != footing(&change.new) {
            let both = change.old.iter().chain(&change.new);
            keys.extend(both.flat_map(|object| view.owned(object.uid())).cloned());
        }
        let owners = |object: &Option<Object>| object.iter().flat_map(Object::owners).cloned().collect::<Vec<_>>();
        let (before, after) = (owners(&change.old), owners(&change.new));
        let deleting = |object: &Option<Object>| object.as_ref().map(waits_for_dependents);
        if before != after || deleting(&change.old) != deleting(&change.new) {
            let both = before.iter().chain(&after);
            let owners = both.filter_map(|owner| view.owner(&change.id.namespace, owner));
            keys.extend(owners.filter(|(_, owner)| is_collecting(owner)).map(|(key, _)| key));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    fn plan(&self, key: &Key, view: &View, _: &Context) -> Plan {
        let mut plan = Plan::default();
        let Some(object) = view.object(key) else {
            return plan;
        };
        if object.is_deleting() {
            if has(&object, FINALIZER_ORPHAN) {
                orphan(key, &object, view, &mut plan);
            } else if has(&object, FINALIZER_FOREGROUND) && !is_blocked(key, &object, view) {
                plan.write(without_finalizer(key, &object, FINALIZER_FOREGROUND));
            }
        } else if !object.owners().is_empty() {
            plan.writes.extend(collect(key, &object, view).map(Into::into));
        }
        plan
    }
}

/// Whether the deletion of an object waits for garbage collection.
fn is_collecting(object: &Object) -> bool {
    object.is_deleting() && (has(object, FINALIZER_ORPHAN) || has(object, FINALIZER_FOREGROUND))
}

/// Whether an object goes as soon as what it owns is gone.
fn waits_for_dependents(object: &Object) -> bool {
    object.is_deleting() && has(object, FINALIZER_FOREGROUND)
}

fn has(object: &Object, finalizer: &str) -> bool {
    object.finalizers().iter().any(|name| name == finalizer)
}

fn without_finalizer(key: &Key, object: &Object, finalizer: &str) -> Action {
    let left: Vec<&String> = object.finalizers().iter().filter(|name| *name != finalizer).collect();
    let body = json!({ "metadata": { "finalizers": left } });
    Action::patch(key.resource.clone(), &key.id, &object.version(), body)
}

fn with_owners<'a>(key: &Key, object: &Object, owners: impl Iterator<Item = &'a OwnerReference>) -> Action {
    let owners: Vec<&OwnerReference> = owners.collect();
    let body = json!({ "metadata": { "ownerReferences": owners } });
    Action::patch(key.resource.clone(), &key.id, &object.version(), body)
}

/// Tells what an object owns that it does so no longer; when nothing is left to tell, lets it go.
fn orphan(key: &Key, owner: &Object, view: &View, plan: &mut Plan) {
    for dependent in view.owned(owner.uid()).take(ORPHANS_MAX) {
        if let Some(object) = view.object(dependent) {
            let left = object.owners().iter().filter(|one| one.uid != owner.uid());
            plan.write(with_owners(dependent, &object, left));
        }
    }
    if plan.writes.is_empty() {
        plan.write(without_finalizer(key, owner, FINALIZER_ORPHAN));
    }
}

/// Whether something is there that an object has to wait for. What waits for the object itself, in a circle, is not.
fn is_blocked(key: &Key, owner: &Object, view: &View) -> bool {
    let mut blockers = blocking(key, owner, view);
    blockers.any(|(blocker, object)| !waits_for(&blocker, object, key, view))
}

/// What an object has to wait for: what it owns, and says that it shall.
fn blocking<'a>(key: &'a Key, owner: &'a Object, view: &'a View) -> impl Iterator<Item = (Key, Object)> + 'a {
    view.owned(owner.uid()).filter_map(move |dependent| {
        let object = view.object(dependent)?;
        let mut references = object.owners().iter();
        let blocks = references.any(|one| {
            let meant = || {
                view.owner(&dependent.id.namespace, one)
                    .is_some_and(|(meant, _)| meant == *key)
            };
            one.uid == owner.uid() && one.block_owner_deletion == Some(true) && meant()
        });
        blocks.then(|| (dependent.clone(), object))
    })
}

/// Whether the deletion of an object waits for that of another, through however many between.
fn waits_for(key: &Key, object: Object, other: &Key, view: &View) -> bool {
    let mut seen = BTreeSet::new();
    let mut left = vec![(key.clone(), object)];
    while let Some((key, object)) = left.pop() {
        if !waits_for_dependents(&object) || seen.len() >= CIRCLE_MAX {
            continue;
        }
        if key == *other {
            return true;
        }
        let next: Vec<_> = blocking(&key, &object, view).collect();
        for (blocker, object) in next {
            if seen.insert(blocker.clone()) {
                left.push((blocker, object));
            }
        }
    }
    false
}

/// What to do about an object that has owners.
fn collect(key: &Key, object: &Object, view: &View) -> Option<Action> {
    let namespace = &*key.id.namespace;
    let (mut solid, mut waiting, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for owner in object.owners() {
        match view.owner(namespace, owner) {
            None => absent.push(owner.clone()),
            Some((_, found)) if waits_for_dependents(&found) => waiting.push(owner),
            Some(_) => solid.push(owner),
        }
    }
    if absent.is_empty() && waiting.is_empty() {
        return None;
    }
    let action = if !solid.is_empty() {
        with_owners(key, object, solid.into_iter())
    } else {
        // Somebody waits until all of it is gone, so it goes in the same way.
        let waited_for = !waiting.is_empty() && view.owned(object.uid()).next().is_some();
        let version = object.version();
        Action::Delete {
            kind: key.resource.clone(),
            id: key.id.clone(),
            uid: version.uid.into(),
            version: Some(version.resource),
            policy: waited_for.then_some(Propagation::Foreground),
        }
    };
    Some(action.if_absent(absent, namespace))
}

#[cfg(test)]
#[path = "garbage_tests.rs"]
mod tests;
