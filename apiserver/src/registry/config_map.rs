//! ConfigMaps: data that may be sealed.

use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::Value;

use super::Strategy;

pub(super) struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn unconditional_update(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        let keys = |field: &str| {
            object[field]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
        };
        for field in ["data", "binaryData"] {
            for key in keys(field) {
                if let Some(why) = key_problem(key) {
                    violations.invalid(&FieldPath::root(field).key(key), key, why);
                }
            }
        }
        for key in keys("data").filter(|key| object["binaryData"].get(key).is_some()) {
            violations.invalid(
                &FieldPath::root("data").key(key),
                key,
                "duplicate of key present in binaryData",
            );
        }
        violations.into_vec()
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        sealed_violations(&mut violations, object, old, &["data", "binaryData"]);
        violations.into_vec()
    }
}

/// Why this cannot be the name of a piece of data.
pub(super) fn key_problem(key: &str) -> Option<&'static str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let bad = key.is_empty() || key.len() > 253 || !key.chars().all(fine) || [".", ".."].contains(&key);
    bad.then_some("a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
}

/// Once an object is `immutable`, it stays so, and these fields stay as they are.
pub(super) fn sealed_violations(violations: &mut Violations, object: &Value, old: &Value, fields: &[&str]) {
    if old["immutable"] != true {
        return;
    }
    for field in ["immutable"].iter().chain(fields) {
        if object[*field] != old[*field] {
            violations.forbidden(&FieldPath::root(field), "field is immutable when `immutable` is set");
        }
    }
}
