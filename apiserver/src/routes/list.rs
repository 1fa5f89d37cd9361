//! Lists: from the hub's bytes, in pages that all show the state of the first one.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use muster_store::Key;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Call;
use super::answer::{Renderer, json_response};
use super::path::Target;
use super::resource::catch_up;
use crate::error::{ApiError, Result};
use crate::hub::{Filter, Found, HubKind, Object, Part};
use crate::limits;
use crate::params::{At, ListParams, Selection};
use crate::registry::Kind;
use crate::views;

/// What a `continue` token says.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    /// The revision that all pages show; -1: whatever is newest.
    rv: i64,
    /// The last object of the page before: its key behind that of the kind.
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    fn encode(rv: i64, start: &str) -> String {
        let token = Token {
            v: TOKEN_VERSION.to_owned(),
            rv,
            start: start.to_owned(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("plain data goes into memory"))
    }

    fn decode(text: &str) -> Result<Token> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let token: Option<Token> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let token = token.filter(|token| token.v == TOKEN_VERSION && token.rv >= -1 && token.start.contains('/'));
        token.ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}

/// What a list or watch selects.
pub(super) fn filter(call: &Call, kind: &Kind, target: &Target) -> Result<Filter> {
    let Selection { labels, mut fields } = Selection::new(&call.query)?;
    for requirement in fields.requirements_mut() {
        requirement.field = kind.stored_field(&requirement.field);
    }
    let fields = fields.rewritten(|requirement| views::stored(&kind.resource, requirement));
    let namespace = (!target.namespace.is_empty()).then_some(target.namespace.as_str());
    Filter::new(&kind.hub, namespace, labels, &fields)
}

/// The one object that is selected by its name, if so: whoever may list it alone may.
pub(super) fn named(call: &Call) -> Result<String> {
    let Selection { fields, .. } = Selection::new(&call.query)?;
    let named = fields
        .requirements()
        .iter()
        .find(|requirement| requirement.equal && requirement.field == "metadata.name");
    Ok(named.map(|requirement| requirement.value.clone()).unwrap_or_default())
}

/// Answers a list.
pub(super) async fn serve(call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    call.authorize(&target, "list", &named(&call)?)?;
    let renderer = Renderer::new(&call, &kind)?;
    let params = ListParams::new(&call.query)?;
    let filter = filter(&call, &kind, &target)?;
    let found = find(&call, &kind, &filter, &params).await?;
    let mut metadata = json!({"resourceVersion": found.revision.to_string()});
    if let (Some(more), Some(last)) = (found.more, found.objects.last()) {
        let revision = i64::try_from(found.revision).unwrap_or(i64::MAX);
        metadata["continue"] = json!(Token::encode(revision, start_of(&kind.hub, last)));
        if !filter.is_selective() {
            metadata["remainingItemCount"] = json!(more);
        }
    }
    let mut head = Vec::with_capacity(256);
    renderer.begin_list(&metadata, &mut head);
    Ok(json_response(StatusCode::OK, body(renderer, head, found.objects)))
}

fn start_of<'a>(kind: &HubKind, object: &'a Object) -> &'a str {
    object.key.as_str().strip_prefix(&kind.prefix).unwrap_or_default()
}

async fn find(call: &Call, kind: &Kind, filter: &Filter, params: &ListParams) -> Result<Found> {
    let hub = &call.state.hub;
    let mut part = Part {
        after: None,
        limit: params.limit,
    };
    if let Some(token) = &params.token {
        let token = Token::decode(token)?;
        part.after = Some(Key::new(format!("{}{}", kind.hub.prefix, token.start)));
        let Ok(revision) = u64::try_from(token.rv) else {
            catch_up(call).await?;
            return Ok(hub.list(kind.id, filter, &part));
        };
        if revision > hub.revision() {
            return Err(ApiError::bad_request(
                "continue key is not valid: it is from the future",
            ));
        }
        return hub.list_at(kind.id, filter, &part, revision).map_err(|_| {
            let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                           without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                           the results. Continuing with the provided token results in an inconsistent list - objects that were \
                           created, modified, or deleted between the time the first chunk was returned and now may show up in the \
                           list.";
            let mut error = ApiError::expired(message);
            error.details.continue_token = Some(Token::encode(-1, &token.start));
            error
        });
    }
    let wait = async |revision| {
        let reached = hub.reach(revision, limits::READ_WAIT).await;
        reached.map_err(|error| ApiError::version_too_large(error.wanted, error.newest))
    };
    match params.at {
        At::Newest => catch_up(call).await?,
        At::Any => (),
        At::NotOlderThan(revision) => wait(revision).await?,
        At::Exactly(revision) => {
            wait(revision).await?;
            let found = hub.list_at(kind.id, filter, &part, revision);
            return found.map_err(|left| ApiError::too_old(revision, left.floor));
        }
    }
    Ok(hub.list(kind.id, filter, &part))
}

/// The list, a chunk at a time: what has not been sent yet is not in memory twice.
fn body(renderer: Renderer, head: Vec<u8>, objects: Vec<Arc<Object>>) -> Body {
    // A short list is one chunk, whatever its form.
    let size: usize = objects.iter().map(|object| object.size()).sum();
    let first = head.len() + size.min(limits::CHUNK_BYTES) + 64;
    let state = Some((renderer, head, objects, 0));
    Body::from_stream(stream::unfold(state, move |state| async move {
        let (renderer, mut out, objects, mut index) = state?;
        out.reserve(first);
        while index < objects.len() && out.len() < limits::CHUNK_BYTES {
            if index > 0 {
                out.push(b',');
            }
            let object = &objects[index];
            renderer.object(object, object.revision, true, &mut out);
            index += 1;
        }
        let done = index == objects.len();
        if done {
            out.extend_from_slice(b"]}");
        }
        let chunk = Ok::<Bytes, std::convert::Infallible>(out.into());
        Some((chunk, (!done).then(|| (renderer, Vec::new(), objects, index))))
    }))
}
