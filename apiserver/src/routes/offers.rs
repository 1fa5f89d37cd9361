//! The answers to offers: accept and decline.

use axum::response::Response;
use http::StatusCode;
use muster_api::duration::Span;
use muster_api::v1::{Offer, OfferPhase};
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_store::{Compare, Op};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Call;
use super::answer::{Renderer, json_value};
use super::path::Target;
use crate::accept;
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::hub;
use crate::keys;
use crate::limits;
use crate::params::WriteParams;
use crate::registry::fence::Fence;
use crate::registry::{Context, Guard, GuardedTxn, Outcome, decode};
use crate::schema::typed;

/// For how long a declined offer is not made again if the framework does not say.
const REFUSE: Span = Span::from_secs(5);

/// Reads a body of a call's own kind; an empty one is all defaults.
pub(super) async fn read<T: DeserializeOwned>(call: &mut Call, what: &str) -> Result<T> {
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    let mut value = if bytes.is_empty() {
        json!({})
    } else {
        body::object(content_type, &bytes)?.value
    };
    if let Some(map) = value.as_object_mut() {
        for field in ["apiVersion", "kind", "metadata"] {
            map.remove(field);
        }
    }
    typed(&value).map_err(|violation| {
        let place = if violation.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", violation.field)
        };
        ApiError::bad_request(format!("the body is no {what}: {place}{}", violation.message))
    })
}

/// `POST …/offers/NAME/accept`.
pub(super) async fn accept(mut call: Call, target: Target) -> Result<Response> {
    let params = WriteParams::new(&call.query, call.headers(), "CreateOptions")?;
    let request: AcceptRequest = read(&mut call, "AcceptRequest").await?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let result = accept::run(&context, &target.namespace, &target.name, &request, &params).await?;
    Ok(json_value(StatusCode::CREATED, &result))
}

/// `POST …/offers/NAME/decline`.
pub(super) async fn decline(mut call: Call, target: Target) -> Result<Response> {
    let params = WriteParams::new(&call.query, call.headers(), "CreateOptions")?;
    let request: DeclineRequest = read(&mut call, "DeclineRequest").await?;
    let kind = call.state.resources.muster("offers").clone();
    let renderer = Renderer::new(&call, &kind)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    for _ in 0..limits::WRITE_ATTEMPTS {
        let key = keys::object(&kind.stored, &target.namespace, &target.name);
        let entry = call.state.store.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?;
        let mut object = decode(&entry)?;
        let offer = open_offer(&object, &target.name, &context)?;
        let until = context.now.checked_add(request.refuse.unwrap_or(REFUSE).signed());
        let until = until.map_err(|error| ApiError::unprocessable(format!("refuse: {error}")))?;
        object["status"] = json!({"phase": "Declined", "refuseUntil": until.to_string()});
        let mut txn = GuardedTxn::new();
        txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
        if let Some(fence) = &fence {
            fence.guard(&mut txn);
        }
        txn.write(Op::put(key, encode(&object, &kind.resource)));
        txn.touch(&offer.spec.agent);
        if params.dry_run {
            return Ok(renderer.answer(StatusCode::OK, object, &[]));
        }
        if let Outcome::Done(revision) = call.state.commit(txn).await? {
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            return Ok(renderer.answer(StatusCode::OK, object, &[]));
        }
    }
    Err(ApiError::too_many_requests("the offer changes too often; try again", 1))
}

fn encode(object: &Value, resource: &crate::resource::Resource) -> bytes::Bytes {
    let map = object.as_object().cloned().unwrap_or_default();
    hub::encode(&resource.api_version(), &resource.kind, map)
}

/// The offer, if it may still be answered.
fn open_offer(object: &Value, name: &str, context: &Context<'_>) -> Result<Offer> {
    let resource = &context.state.resources.muster("offers").resource;
    let offer: Offer = typed(object)
        .map_err(|violation| ApiError::internal(format!("the offer cannot be read: {}", violation.message)))?;
    if offer.phase() == OfferPhase::Declined {
        return Err(ApiError::conflict(
            resource,
            name,
            "the offer has been declined already",
        ));
    }
    if context.now >= offer.spec.expires_at.0 {
        let message = format!("offers.muster.dev \"{name}\" expired at {}", offer.spec.expires_at.0);
        return Err(ApiError::expired(message).about(resource, name));
    }
    Ok(offer)
}
