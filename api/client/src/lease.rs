//! Ephemeral leases: to hold one is to be the leader, or to be present.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use muster_api::names;
use serde_json::{Value, json};

use crate::{Call, Client, Error, Fence, Result, segment};

fn leases(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment(namespace))
}

fn lease(fence: &Fence) -> String {
    format!("{}/{}", leases(&fence.namespace), segment(&fence.name))
}

/// The right that an ephemeral lease gives to its holder.
fn fence_of(lease: &Lease) -> Result<Fence> {
    let meta = &lease.metadata;
    let revision = meta.resource_version.as_deref().and_then(|text| text.parse().ok());
    match (&meta.namespace, &meta.name, revision) {
        (Some(namespace), Some(name), Some(revision)) => Ok(Fence {
            namespace: namespace.clone(),
            name: name.clone(),
            revision,
        }),
        _ => Err(Error::decode("a lease", "it has no name or no revision")),
    }
}

impl Client {
    /// Takes a lease that vanishes when it was not renewed for `ttl` (whole seconds, at least one).
    ///
    /// Fails with [`Error::AlreadyExists`] while somebody holds it. After an error that may hide a success,
    /// [`held_lease`](Client::held_lease) tells.
    pub async fn create_ephemeral_lease(
        &self,
        namespace: &str,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Fence> {
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "annotations": { names::ANNOTATION_EPHEMERAL: "true" },
            },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": ttl.as_secs().max(1) },
        });
        let lease: Lease = self.create_at(&leases(namespace), &body).await?;
        fence_of(&lease)
    }

    /// The fence of the lease if `holder` holds it; `None` when another does or nobody.
    pub async fn held_lease(&self, namespace: &str, name: &str, holder: &str) -> Result<Option<Fence>> {
        let lease: Lease = match self.get(Some(namespace), name).await {
            Ok(lease) => lease,
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let held_by = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if held_by == Some(holder) {
            fence_of(&lease).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Keeps the lease for another `ttl`. [`Error::Fenced`] or [`Error::NotFound`]: it is gone.
    pub async fn renew(&self, fence: &Fence) -> Result<()> {
        let call = Call::new(Method::POST, lease(fence) + "/renew", "a lease").under(fence);
        self.call::<Value>(call).await.map(drop)
    }

    /// Gives the lease up. Not an error when it is gone already.
    pub async fn release(&self, fence: &Fence) -> Result<()> {
        let call = Call::new(Method::DELETE, lease(fence), "a lease").under(fence);
        match self.call::<Value>(call).await {
            Ok(_) | Err(Error::NotFound(_) | Error::Fenced(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
