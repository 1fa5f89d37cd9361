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
                let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if key.is_empty() || key.len() > 253 || !key.chars().all(fine) || [".", ".."].contains(&key) {
                    let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
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
        if old["immutable"] == true {
            for field in ["immutable", "data", "binaryData"] {
                if object[field] != old[field] {
                    violations.forbidden(&FieldPath::root(field), "field is immutable when `immutable` is set");
                }
            }
        }
        violations.into_vec()
    }
}
