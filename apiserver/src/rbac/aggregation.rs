//! Roles that are put together out of others: what an `aggregationRule` selects, written into `rules`.
//!
//! Every server computes the same union and writes it if it is not there; the compare of the write makes one of them do it. Decisions read
//! `rules` alone, so what is shown is what counts. Tested below and, over servers, in `tests/rbac.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use muster_store::{Compare, Op};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{CLUSTER_ROLES, GROUP};
use crate::error::Result;
use crate::hub::{self, Filter, Part};
use crate::registry::{Guard, GuardedTxn, Kind, Outcome};
use crate::state::State;

/// Pause after a pass that failed, most likely because the store does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Cluster roles by their names.
pub type Roles = BTreeMap<String, Value>;

/// Whether the labels are what a label selector of Kubernetes asks for. An empty one takes everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    exact.into_iter().all(|(key, value)| labels[key] == *value)
        && expressions.into_iter().all(|expression| {
            let value = &labels[expression["key"].as_str().unwrap_or_default()];
            let listed = || {
                expression["values"]
                    .as_array()
                    .is_some_and(|values| values.contains(value))
            };
            match expression["operator"].as_str() {
                Some("In") => !value.is_null() && listed(),
                Some("NotIn") => value.is_null() || !listed(),
                Some("Exists") => !value.is_null(),
                Some("DoesNotExist") => value.is_null(),
                _ => false,
            }
        })
}

/// What `rules` of the role shall be; `None`: the role is no union, or what it shall be.
fn union(name: &str, role: &Value, all: &Roles) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<&Value> = Vec::new();
    for selector in selectors {
        let selected = all
            .iter()
            .filter(|(other, role)| *other != name && selects(selector, &role["metadata"]["labels"]));
        for rule in selected.flat_map(|(_, role)| role["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    let same = role["rules"]
        .as_array()
        .map_or(rules.is_empty(), |known| known.iter().eq(rules.iter().copied()));
    (!same).then(|| json!(rules))
}

/// The rules of the roles that are not what they shall be, by their names. Roles out of roles out of others take a pass more each.
pub fn changes(all: &Roles) -> BTreeMap<String, Value> {
    let found = all
        .iter()
        .filter_map(|(name, role)| Some((name.clone(), union(name, role, all)?)));
    found.collect()
}

/// Keeps the unions right for as long as the server runs.
pub(crate) async fn run(state: Weak<State>) {
    let found = state.upgrade().and_then(|state| {
        let kind = state.resources.stored(&format!("{CLUSTER_ROLES}.{GROUP}"))?;
        Some((state.hub.touched(kind.id), kind))
    });
    let Some((mut touched, kind)) = found else { return };
    loop {
        // Seen before the roles are: one that comes in between is looked at twice, and none is missed.
        touched.borrow_and_update();
        let Some(server) = state.upgrade() else { return };
        let passed = pass(&server, &kind).await;
        drop(server);
        match passed {
            Ok(()) if touched.changed().await.is_err() => return,
            Ok(()) => (),
            Err(error) => {
                tracing::warn!(%error, "roles that are put together out of others stay as they are for now");
                sleep(RETRY).await;
            }
        }
    }
}

async fn pass(state: &State, kind: &Arc<Kind>) -> Result<()> {
    let objects = state.hub.list(kind.id, &Filter::all(None), &Part::default()).objects;
    let all: Roles = objects
        .iter()
        .map(|object| (object.name().to_owned(), object.json()))
        .collect();
    let changes = changes(&all);
    for object in objects {
        let Some(rules) = changes.get(object.name()) else {
            continue;
        };
        let mut role = object.json();
        role["rules"] = rules.clone();
        let Value::Object(role) = role else { continue };
        let mut txn = GuardedTxn::new();
        txn.compare(Compare::modified(object.key.clone(), object.revision), Guard::Subject);
        let value = hub::encode(&kind.resource.api_version(), &kind.resource.kind, role);
        txn.write(Op::put(object.key.clone(), value));
        // Whoever was faster wakes this again.
        if let Outcome::Lost(_) = state.commit(txn).await? {
            tracing::debug!(role = object.name(), "another server put the role together");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(labels: Value, rules: Value, selector: Option<Value>) -> Value {
        let mut role = json!({"metadata": {"labels": labels}, "rules": rules});
        if let Some(selector) = selector {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
        }
        role
    }

    #[test]
    fn a_union_has_each_rule_once_and_none_of_its_own() {
        let (get, list) = (json!({"verbs": ["get"]}), json!({"verbs": ["list"]}));
        let labelled = json!({"to": "a"});
        let selector = json!({"matchLabels": {"to": "a"}});
        let mut all = Roles::from([
            (
                "a".to_owned(),
                role(labelled.clone(), json!([{"verbs": ["own"]}]), Some(selector)),
            ),
            ("b".to_owned(), role(labelled.clone(), json!([get, list]), None)),
            ("c".to_owned(), role(labelled, json!([get]), None)),
            (
                "d".to_owned(),
                role(json!({"to": "b"}), json!([{"verbs": ["delete"]}]), None),
            ),
        ]);
        let changed = changes(&all);
        assert_eq!(changed, BTreeMap::from([("a".to_owned(), json!([get, list]))]));
        all.get_mut("a").unwrap()["rules"] = changed["a"].clone();
        assert_eq!(changes(&all), BTreeMap::new());
    }

    #[test]
    fn selectors_are_those_of_labels() {
        let labels = json!({"a": "1"});
        let expression = |operator: &str, key: &str| json!({"matchExpressions": [{"key": key, "operator": operator, "values": ["1"]}]});
        for (selector, expect) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (expression("In", "a"), true),
            (expression("In", "b"), false),
            (expression("NotIn", "a"), false),
            (expression("NotIn", "b"), true),
            (expression("Exists", "a"), true),
            (expression("DoesNotExist", "a"), false),
            (expression("Like", "a"), false),
        ] {
            assert_eq!(selects(&selector, &labels), expect, "{selector}");
        }
    }
}
