//! Leases: ordinary ones, and ephemeral ones that end when nobody keeps them alive.

use std::time::Duration;

use muster_api::names;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::Value;

use super::{Context, Strategy, metadata};
use crate::error::{ApiError, Result};

pub(super) struct Leases;

/// Whether the lease ends by itself.
pub(super) fn is_ephemeral(object: &Value) -> bool {
    object["metadata"]["annotations"][names::ANNOTATION_EPHEMERAL] == "true"
}

impl Strategy for Leases {
    fn notes_system(&self) -> bool {
        false
    }

    fn unconditional_update(&self) -> bool {
        true
    }

    fn may_own(&self, object: &Value) -> bool {
        !is_ephemeral(object)
    }

    fn prepare_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        if !is_ephemeral(old) && !is_ephemeral(object) {
            return Ok(());
        }
        let message = format!(
            "leases.coordination.k8s.io \"{}\" is ephemeral, or would become so: such a lease is created, renewed with POST …/renew, \
             and deleted, but never changed, because its version is the holder's token",
            metadata::text(old, "name")
        );
        Err(ApiError::method_not_allowed(message))
    }

    fn lifetime(&self, object: &Value) -> Option<Duration> {
        let seconds = object["spec"]["leaseDurationSeconds"].as_u64();
        is_ephemeral(object).then(|| Duration::from_secs(seconds.unwrap_or(1)))
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        let path = FieldPath::root("spec").field("leaseDurationSeconds");
        match object["spec"]["leaseDurationSeconds"].as_i64() {
            Some(seconds) if seconds <= 0 => violations.invalid(&path, seconds, "must be greater than 0"),
            None if is_ephemeral(object) => violations.required(&path, "for an ephemeral lease"),
            _ => (),
        }
        violations.into_vec()
    }
}
