//! A server's presence: an ephemeral lease `muster-system/server-NAME` that says where it is reached.
//!
//! Machines that join, agents and other servers find each other by these leases. One ends with its server: at once when it goes in
//! good order, else when its time is over. What must never happen here: two servers that take each other for the same one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use muster_api::names;
use muster_store::{LeaseError, LeaseId};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::auth::User;
use crate::body::Decoded;
use crate::error::ApiError;
use crate::keys;
use crate::params::{FieldValidation, WriteParams};
use crate::registry::{Context, Create};
use crate::state::State;

/// How long the lease lives without renewal, in seconds.
const TTL_SECONDS: u64 = 10;
const RENEW: Duration = Duration::from_secs(TTL_SECONDS / 3);
const RETRY: Duration = Duration::from_secs(1);
/// How long the store may take for any of it.
const DEADLINE: Duration = Duration::from_secs(3);

/// Is present until the server leaves. `instance` tells this data directory from that of another server of the same name.
pub(crate) async fn keep(state: Weak<State>, instance: String) {
    let mut lease: Option<LeaseId> = None;
    loop {
        let Some(strong) = state.upgrade() else { return };
        let leaving = strong.leaving().clone();
        if leaving.is_cancelled() {
            if let Some(lease) = lease {
                // Otherwise it ends by itself.
                let _ = timeout(DEADLINE, strong.store.revoke(lease)).await;
            }
            return;
        }
        let wait = match lease {
            Some(held) => match timeout(DEADLINE, strong.store.keep_alive(held)).await {
                Ok(Err(LeaseError::Gone(_))) => {
                    lease = None;
                    Duration::ZERO
                }
                Ok(Ok(())) => RENEW,
                Ok(Err(LeaseError::Store(_))) | Err(_) => RETRY,
            },
            None => match timeout(DEADLINE, appear(&strong, &instance)).await {
                Ok(Ok(held)) => {
                    lease = held;
                    if held.is_some() { RENEW } else { RETRY }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "this server is not listed among the servers yet");
                    RETRY
                }
                Err(_) => RETRY,
            },
        };
        drop(strong);
        leaving.run_until_cancelled(sleep(wait)).await;
    }
}

/// Takes the lease; `None`: another one stands in the way still.
async fn appear(state: &Arc<State>, instance: &str) -> Result<Option<LeaseId>, ApiError> {
    let name = format!("{}{}", names::LEASE_SERVER_PREFIX, state.membership.name);
    let key = keys::lease(names::NAMESPACE_SYSTEM, &name);
    if let Some(entry) = state.store.get(&key).await? {
        let lease: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        if lease["spec"]["holderIdentity"] != instance {
            let message = format!(
                "another server of the cluster is called {}; give this one another name with --name",
                state.membership.name
            );
            return Err(ApiError::unavailable(message));
        }
        // It is that of an earlier process over this data directory, which is gone, since the directory is ours.
        if let Some(lease) = entry.lease {
            state.store.revoke(lease).await?;
        }
        return Ok(None);
    }
    let kind = state.resources.stored("leases.coordination.k8s.io");
    let kind = kind.ok_or_else(ApiError::unknown_path)?;
    let object = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "annotations": {
                names::ANNOTATION_EPHEMERAL: "true",
                names::ANNOTATION_ENDPOINTS: state.membership.endpoints().join(","),
                names::ANNOTATION_VERSION: env!("CARGO_PKG_VERSION"),
            },
        },
        "spec": {"holderIdentity": instance, "leaseDurationSeconds": TTL_SECONDS},
    });
    let params = WriteParams {
        validation: FieldValidation::Strict,
        ..WriteParams::default()
    };
    let create = Create {
        kind: &kind,
        namespace: names::NAMESPACE_SYSTEM,
        body: Decoded {
            value: object,
            duplicates: Vec::new(),
        },
        params: &params,
        applied: false,
    };
    create.run(&Context::new(state, &User::admin(), None)).await?;
    Ok(state.store.get(&key).await?.and_then(|entry| entry.lease))
}
