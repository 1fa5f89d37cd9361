//! Keeping an ephemeral lease alive: nothing is written, only its clock starts again.

use axum::response::Response;
use http::StatusCode;
use muster_store::LeaseError;

use super::Call;
use super::answer::Renderer;
use super::path::Target;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::registry::decode;
use crate::registry::fence::Fence;

/// `POST …/leases/NAME/renew`.
pub(super) async fn renew(call: Call, target: Target) -> Result<Response> {
    let kind = call.state.resources.stored("leases.coordination.k8s.io");
    let kind = kind.ok_or_else(ApiError::unknown_path)?;
    let renderer = Renderer::new(&call, &kind)?;
    let path = format!("{}/{}", target.namespace, target.name);
    let fence = Fence::of(call.headers(), &call.user)?;
    let fence = fence.ok_or_else(|| ApiError::fence_required("a renewal", &path))?;
    if fence.path() != path {
        let message = format!("the fence names the lease {}, the path {path}", fence.path());
        return Err(ApiError::bad_request(message));
    }
    let entry = call
        .state
        .store
        .get(&keys::lease(&target.namespace, &target.name))
        .await?;
    let entry = entry.filter(|entry| entry.create_revision == fence.revision);
    let entry = entry.ok_or_else(|| ApiError::fenced(&path))?;
    let Some(lease) = entry.lease else {
        let message = format!(
            "leases.coordination.k8s.io \"{}\" is not ephemeral; update it instead",
            target.name
        );
        return Err(ApiError::unprocessable(message));
    };
    match call.state.store.keep_alive(lease).await {
        Ok(()) => Ok(renderer.answer(StatusCode::OK, decode(&entry)?, &[])),
        Err(LeaseError::Gone(_)) => Err(ApiError::fenced(&path)),
        Err(LeaseError::Store(error)) => Err(error.into()),
    }
}
