//! Makes the roles and bindings that every cluster has, and completes those that are there.
//!
//! It happens when a server starts, before it serves anything: in one transaction, or in none when nothing is missing. What somebody added stays; what
//! somebody took away comes back, unless the object says `rbac.authorization.kubernetes.io/autoupdate: "false"`. Tested below.

use std::collections::BTreeMap;

use muster_api::env::Env;
use muster_store::{CommitError, Compare, Key, Op, Page, Revision, Store, Txn};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::aggregation::{self, Roles};
use super::defaults::{self, AUTOUPDATE, Default};
use super::{CLUSTER_ROLES, GROUP, Rule, VERSION, missing};
use crate::hub;
use crate::keys;
use crate::resource::Resource;
use crate::state::StartError;

/// How often it is tried again when another server does the same.
const ATTEMPTS: usize = 16;

/// What is there, by kind and name: the object, and the revision of its last write.
type There = BTreeMap<(&'static str, String), (Value, Revision)>;

/// Makes and completes them, if the kinds are among `resources`.
pub async fn run(store: &dyn Store, env: &dyn Env, cluster: &str, resources: &[Resource]) -> Result<(), StartError> {
    let defaults = defaults::all();
    let kinds: BTreeMap<&str, &Resource> = resources
        .iter()
        .filter(|resource| resource.group == GROUP)
        .map(|resource| (resource.plural.as_str(), resource))
        .collect();
    if !defaults.iter().all(|default| kinds.contains_key(default.plural)) {
        return Ok(());
    }
    let time = env.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for _ in 0..ATTEMPTS {
        let mut there = There::new();
        for plural in [super::CLUSTER_ROLES, super::CLUSTER_ROLE_BINDINGS] {
            let listing = store.list(&keys::prefix(kinds[plural], None), Page::default()).await?;
            for entry in listing.entries {
                let Ok(object) = serde_json::from_slice::<Value>(&entry.value) else {
                    continue;
                };
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                there.insert((plural, name), (object, entry.mod_revision));
            }
        }
        let mut txn = Txn::default();
        for (plural, kind, object, before) in wanted(&defaults, &there) {
            let mut object = object;
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let key = keys::object(kinds[plural], "", &name);
            if before.is_none() {
                object["metadata"]["uid"] = json!(uid(cluster, &key));
                object["metadata"]["creationTimestamp"] = json!(time);
            }
            let Value::Object(map) = object else { continue };
            txn.compares.push(match before {
                None => Compare::absent(key.clone()),
                Some(revision) => Compare::modified(key.clone(), revision),
            });
            let value = hub::encode(&format!("{GROUP}/{VERSION}"), kind, map);
            txn.ops.push(Op::put(key, value));
        }
        if txn.ops.is_empty() {
            return Ok(());
        }
        match store.commit(txn).await {
            Ok(_) => return Ok(()),
            // Another server starts, too, or somebody writes.
            Err(CommitError::Conflict { .. }) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Err(StartError::Roles)
}

/// The same object of the same cluster has the same uid, whichever server makes it.
fn uid(cluster: &str, key: &Key) -> String {
    let digest = Sha256::digest(format!("{cluster} {key}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Plural, kind, object, and the revision of the object that it takes the place of.
type Write = (&'static str, &'static str, Value, Option<Revision>);

/// What has to be written, so that everything is as it shall be.
fn wanted(defaults: &[Default], there: &There) -> Vec<Write> {
    let mut roles: Roles = there
        .iter()
        .filter(|((plural, _), _)| *plural == CLUSTER_ROLES)
        .map(|((_, name), (object, _))| (name.clone(), object.clone()))
        .collect();
    let mut writes: BTreeMap<(&'static str, &'static str), (&'static str, Value)> = BTreeMap::new();
    for default in defaults {
        let known = there.get(&(default.plural, default.name.to_owned()));
        let object = match known {
            Some((object, _)) => completed(default, object),
            None => default.object.clone(),
        };
        if default.plural == CLUSTER_ROLES {
            roles.insert(default.name.to_owned(), object.clone());
        }
        writes.insert((default.plural, default.name), (default.kind, object));
    }
    // What a union is put together out of may be a union, as deep as there are defaults.
    for _ in defaults {
        let changes = aggregation::changes(&roles);
        let ours = |name: &str| {
            defaults
                .iter()
                .find(|default| default.name == name && default.plural == CLUSTER_ROLES)
        };
        let changes: Vec<_> = changes
            .into_iter()
            .filter_map(|(name, rules)| Some((ours(&name)?, rules)))
            .collect();
        if changes.is_empty() {
            break;
        }
        for (default, rules) in changes {
            if let Some(role) = roles.get_mut(default.name) {
                role["rules"] = rules;
                writes.insert((default.plural, default.name), (default.kind, role.clone()));
            }
        }
    }
    let writes = writes.into_iter().map(|((plural, name), (kind, object))| {
        let known = there.get(&(plural, name.to_owned()));
        (
            known.is_none_or(|(known, _)| *known != object),
            (plural, kind, object, known.map(|(_, revision)| *revision)),
        )
    });
    writes.filter(|(changed, _)| *changed).map(|(_, write)| write).collect()
}

/// The object with what is missing of the default.
fn completed(default: &Default, known: &Value) -> Value {
    let mut object = known.clone();
    let wanted = &default.object;
    if object["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return object;
    }
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            object["metadata"][field][key] = value.clone();
        }
    }
    if !wanted["aggregationRule"].is_null() {
        add(
            &mut object["aggregationRule"]["clusterRoleSelectors"],
            &wanted["aggregationRule"]["clusterRoleSelectors"],
        );
    } else if wanted["rules"].is_array() {
        let lacking = missing(&Rule::read_all(&object["rules"]), &Rule::read_all(&wanted["rules"]));
        let lacking = json!(lacking.iter().map(Rule::json).collect::<Vec<_>>());
        add(&mut object["rules"], &lacking);
    }
    if wanted["subjects"].is_array() {
        if object["roleRef"] != wanted["roleRef"] {
            object["roleRef"] = wanted["roleRef"].clone();
        }
        add(&mut object["subjects"], &wanted["subjects"]);
    }
    object
}

/// Adds to a list what it does not have.
fn add(list: &mut Value, wanted: &Value) {
    for item in wanted.as_array().into_iter().flatten() {
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(items) = list.as_array_mut().filter(|items| !items.contains(item)) {
            items.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::env::SystemEnv;
    use muster_store::MemoryStore;

    use super::*;
    use crate::kinds;

    async fn read(store: &MemoryStore, plural: &str, name: &str) -> (Key, Value, Revision) {
        let all = kinds::resources();
        let kind = all
            .iter()
            .find(|resource| resource.group == GROUP && resource.plural == plural)
            .unwrap();
        let key = keys::object(kind, "", name);
        let entry = store.get(&key).await.unwrap().expect("it is there");
        (key, serde_json::from_slice(&entry.value).unwrap(), entry.mod_revision)
    }

    async fn replace(store: &MemoryStore, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let (key, mut object, revision) = read(store, plural, name).await;
        change(&mut object);
        let txn = Txn {
            compares: vec![Compare::modified(key.clone(), revision)],
            ops: vec![Op::put(key, object.to_string())],
        };
        store.commit(txn).await.unwrap();
    }

    async fn start(store: &MemoryStore) -> Revision {
        run(store, &SystemEnv, "c1", &kinds::resources()).await.unwrap();
        store.revision().await.unwrap()
    }

    #[tokio::test]
    async fn everything_is_made_at_once_and_then_nothing_is_written() {
        let store = MemoryStore::new();
        let before = store.revision().await.unwrap();
        let made = start(&store).await;
        assert_eq!(made, before + 1, "one transaction");
        assert_eq!(start(&store).await, made);
        let (_, admin, _) = read(&store, "clusterroles", "admin").await;
        let rules = Rule::read_all(&admin["rules"]);
        let has = |resource: &str| {
            rules
                .iter()
                .any(|rule| rule.resources.iter().any(|known| known == resource))
        };
        assert!(has("rolebindings") && has("secrets") && has("tasks/log"), "{admin}");
        let (_, view, _) = read(&store, "clusterroles", "view").await;
        assert!(!view.to_string().contains("secrets"), "{view}");
    }

    #[tokio::test]
    async fn what_was_taken_away_comes_back_and_what_was_added_stays() {
        let store = MemoryStore::new();
        start(&store).await;
        let extra = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["widgets"]});
        replace(&store, "clusterroles", "system:aggregate-to-view", |role| {
            role["rules"] = json!([extra]);
        })
        .await;
        replace(&store, "clusterrolebindings", "system:basic-user", |binding| {
            binding["subjects"] = json!([{"apiGroup": GROUP, "kind": "Group", "name": "guests"}]);
        })
        .await;
        replace(&store, "clusterroles", "system:discovery", |role| {
            role["rules"] = json!([]);
            role["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        })
        .await;
        start(&store).await;
        let (_, view, _) = read(&store, "clusterroles", "view").await;
        assert!(view["rules"].as_array().unwrap().contains(&extra), "{view}");
        assert!(view.to_string().contains("tasks/log"), "{view}");
        let (_, binding, _) = read(&store, "clusterrolebindings", "system:basic-user").await;
        let subjects: Vec<&str> = binding["subjects"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|subject| subject["name"].as_str())
            .collect();
        assert_eq!(subjects, ["guests", "system:authenticated"]);
        let (_, kept, _) = read(&store, "clusterroles", "system:discovery").await;
        assert_eq!(kept["rules"], json!([]), "somebody keeps it as it is");
    }
}
