//! What is special about a kind.

use std::sync::Arc;
use std::time::Duration;

use muster_api::names;
use muster_api::validation::Violation;
use serde_json::Value;

use super::{
    Context, GuardedTxn, agent, config_map, definition, event, framework, lease, namespace, offer, quota, role,
    role_binding, secret, service_account, task,
};
use crate::error::Result;
use crate::resource::Resource;

/// What is special about a kind. Every method has an answer for an ordinary kind.
///
/// Objects come in their stored form, with defaults filled in and unknown fields gone. Methods are pure: what they need of the
/// world is in the context.
pub trait Strategy: Send + Sync + 'static {
    /// Whether `metadata.generation` counts the changes of everything but metadata and status.
    fn counts_generations(&self) -> bool {
        true
    }

    /// Whether an update may leave out the version that it is based on.
    fn unconditional_update(&self) -> bool {
        false
    }

    /// Whether the control plane and the agents are noted as owners of what they write besides status.
    fn notes_system(&self) -> bool {
        true
    }

    /// Why this name cannot be; `None`: it can.
    fn name_problem(&self, name: &str) -> Option<String> {
        names::dns_subdomain_problem(name)
    }

    /// Completes a new object; its status is gone already.
    fn prepare_create(&self, _context: &Context<'_>, _object: &mut Value) -> Result<()> {
        Ok(())
    }

    /// Completes a changed object; its status is that of `old`.
    fn prepare_update(&self, _context: &Context<'_>, _object: &mut Value, _old: &Value) -> Result<()> {
        Ok(())
    }

    /// Completes an object whose status changed; everything else is that of `old`.
    fn prepare_status(&self, _context: &Context<'_>, _object: &mut Value, _old: &Value) -> Result<()> {
        Ok(())
    }

    /// Refuses a deletion.
    fn prepare_delete(&self, _context: &Context<'_>, _object: &Value) -> Result<()> {
        Ok(())
    }

    /// Whether its deletion may wait for what it owns. Events are not looked at for that, and what lives and dies by itself has no time.
    fn may_own(&self, _object: &Value) -> bool {
        true
    }

    /// Notes on the object that its deletion has begun.
    fn mark_deleted(&self, _object: &mut Value) {}

    /// Whether something else than finalizers in the metadata keeps a deleted object.
    fn holds_deletion(&self, _object: &Value) -> bool {
        false
    }

    /// How long the object lives unless it is kept alive; `None`: until it is deleted.
    fn lifetime(&self, _object: &Value) -> Option<Duration> {
        None
    }

    /// What is wrong with an object.
    fn validate(&self, _object: &Value) -> Vec<Violation> {
        Vec::new()
    }

    /// What is wrong with this change.
    fn validate_update(&self, _object: &Value, _old: &Value) -> Vec<Violation> {
        Vec::new()
    }

    /// The agent that has given something out or got something back by this write.
    fn touches(&self, _old: Option<&Value>, _new: Option<&Value>) -> Option<String> {
        None
    }

    /// Adds to the transaction what has to hold for this write of this kind, besides what has to for every write.
    fn guard(
        &self,
        _context: &Context<'_>,
        _txn: &mut GuardedTxn,
        _old: Option<&Value>,
        _new: Option<&Value>,
    ) -> Result<()> {
        Ok(())
    }

    /// The lease that the writer has to hold (and what it wants to write, in words).
    fn fence(&self, _context: &Context<'_>, _old: &Value, _status: bool) -> Option<(&'static str, String)> {
        None
    }
}

/// A kind about which nothing is special.
struct Ordinary;

impl Strategy for Ordinary {}

/// The strategy of a resource.
pub(super) fn of(resource: &Resource) -> Arc<dyn Strategy> {
    match resource.qualified().as_str() {
        "tasks.muster.dev" => Arc::new(task::Tasks),
        "offers.muster.dev" => Arc::new(offer::Offers),
        "agents.muster.dev" => Arc::new(agent::Agents),
        "frameworks.muster.dev" => Arc::new(framework::Frameworks),
        "quotas.muster.dev" => Arc::new(quota::Quotas),
        "namespaces" => Arc::new(namespace::Namespaces),
        "configmaps" => Arc::new(config_map::ConfigMaps),
        "secrets" => Arc::new(secret::Secrets),
        "serviceaccounts" => Arc::new(service_account::ServiceAccounts),
        "events" | "events.events.k8s.io" => Arc::new(event::Events),
        "customresourcedefinitions.apiextensions.k8s.io" => Arc::new(definition::Definitions),
        "leases.coordination.k8s.io" => Arc::new(lease::Leases),
        "roles.rbac.authorization.k8s.io" => Arc::new(role::Roles { cluster: false }),
        "clusterroles.rbac.authorization.k8s.io" => Arc::new(role::Roles { cluster: true }),
        "rolebindings.rbac.authorization.k8s.io" => Arc::new(role_binding::Bindings { cluster: false }),
        "clusterrolebindings.rbac.authorization.k8s.io" => Arc::new(role_binding::Bindings { cluster: true }),
        _ => Arc::new(Ordinary),
    }
}
