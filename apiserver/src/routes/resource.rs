//! What is asked of objects: get, create, update, patch, delete; lists and watches are in their own files.

use std::sync::Arc;

use axum::response::Response;
use futures::{StreamExt as _, stream};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::answer::{Renderer, json_value};
use super::path::Target;
use super::{Call, accounts, agent_offers, lease, list, offers, reviews, scale, usage, views, watch};
use crate::accept;
use crate::body::{self, ContentType, Decoded};
use crate::error::{ApiError, Result};
use crate::hub::Part;
use crate::keys;
use crate::limits;
use crate::logs;
use crate::params::{DeleteParams, WriteParams};
use crate::patch::Patch;
use crate::registry::fence::Fence;
use crate::registry::{self, Application, Change, Context, Create, Kind, Update, View, Written};
use crate::streams::{self, Action};

/// Finds out what is asked for, and does it.
pub(super) async fn handle(call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    check_place(&kind, &target)?;
    match target.subresource.as_str() {
        "" => (),
        "status" if kind.resource.has_status() => (),
        "scale" => {
            let paths = kind.resource.scale.clone().ok_or_else(ApiError::unknown_path)?;
            return scale::handle(call, kind, target, paths).await;
        }
        other => match Action::of(other).filter(|action| streams::is_of(&kind, *action)) {
            Some(action) => return stream(call, target, action).await,
            None => return subresource(call, kind, target).await,
        },
    }
    let verb = verb(&call, &target)?;
    let offered = if target.subresource.is_empty() {
        kind.resource.verbs.contains(&verb)
    } else {
        ["get", "update", "patch"].contains(&verb)
    };
    if !offered {
        return Err(not_offered(&kind));
    }
    match verb {
        "create" | "update" | "patch" if matches!(kind.view, View::Pods | View::Nodes) => {
            views::write(call, &kind, target, verb).await
        }
        "get" | "list" if matches!(kind.view, View::NodeMetrics | View::PodMetrics) => {
            usage::view(call, kind, target, verb).await
        }
        "get" => get(call, kind, target).await,
        "list" => list::serve(call, kind, target).await,
        "watch" => watch::serve(call, kind, target).await,
        "create" => create(call, kind, target).await,
        "update" | "patch" => change(call, kind, target, verb).await,
        "delete" => delete(call, kind, target).await,
        _ => delete_collection(call, kind, target).await,
    }
}

/// Objects of kinds with namespaces are reached through their namespace, others are not.
fn check_place(kind: &Kind, target: &Target) -> Result<()> {
    let namespaced = kind.resource.namespaced;
    let whole_cluster = target.namespace.is_empty() && target.name.is_empty();
    let fine = if namespaced {
        !target.namespace.is_empty() || whole_cluster
    } else {
        target.namespace.is_empty()
    };
    if fine { Ok(()) } else { Err(ApiError::unknown_path()) }
}

fn verb(call: &Call, target: &Target) -> Result<&'static str> {
    let watches = call.query.flag("watch")?;
    let named = !target.name.is_empty();
    let method = &call.parts.method;
    Ok(match *method {
        Method::GET | Method::HEAD if watches && target.subresource.is_empty() => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST if !named => "create",
        Method::PUT if named => "update",
        Method::PATCH if named => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => {
            let message = "the server does not allow this method on the requested resource";
            return Err(ApiError::method_not_allowed(message));
        }
    })
}

fn not_offered(kind: &Kind) -> ApiError {
    let message = if kind.resource.qualified() == "offers.muster.dev" {
        "offers are made by the control plane, through agents/NAME/offers; accept or decline them with POST to their subresources \
         `accept` and `decline`"
    } else {
        "the server does not allow this method on the requested resource"
    };
    ApiError::method_not_allowed(message)
}

async fn subresource(call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    let known = kind
        .resource
        .subresources
        .iter()
        .find(|known| known.name == target.subresource);
    let Some(known) = known else {
        return Err(ApiError::unknown_path());
    };
    let method = &call.parts.method;
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        _ => "",
    };
    if !known.verbs.contains(&verb) {
        let message = "the server does not allow this method on the requested resource";
        return Err(ApiError::method_not_allowed(message));
    }
    call.authorize(&target, verb, &target.name)?;
    match known.name {
        "accept" => offers::accept(call, target).await,
        "decline" => offers::decline(call, target).await,
        "offers" => agent_offers::write(call, target).await,
        "renew" => lease::renew(call, target).await,
        "finalize" => finalize(call, kind, target).await,
        "token" => accounts::token(call, &kind, target).await,
        "eviction" => views::evict(call, &kind, target).await,
        "metrics" => usage::metrics(&call, &target).await,
        "log" => {
            catch_up(&call).await?;
            logs::answer(&call.state, &target.namespace, &target.name, &call.query).await
        }
        _ => Err(ApiError::unknown_path()),
    }
}

/// A stream into a task. Reading with `get` is not enough: what comes of it changes more than most writes do.
async fn stream(mut call: Call, target: Target, action: Action) -> Result<Response> {
    let rights = Target {
        subresource: action.rights().to_owned(),
        ..target.clone()
    };
    if call.parts.method == Method::GET {
        call.authorize(&rights, "get", &target.name)?;
    }
    call.authorize(&rights, "create", &target.name)?;
    catch_up(&call).await?;
    let task = (target.namespace.as_str(), target.name.as_str());
    streams::answer(&call.state, &mut call.parts, &call.query, task, action).await
}

/// Waits until the hub shows everything that has been acknowledged.
pub(super) async fn catch_up(call: &Call) -> Result<()> {
    let newest = call.state.newest().await?;
    let reached = call.state.hub.reach(newest, limits::READ_WAIT).await;
    reached.map_err(|error| ApiError::version_too_large(error.wanted, error.newest))
}

async fn get(call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    call.authorize(&target, "get", &target.name)?;
    let renderer = Renderer::new(&call, &kind)?;
    match call.query.get("resourceVersion") {
        Some("0") => (),
        Some(version) => {
            let asked = version
                .parse()
                .map_err(|_| ApiError::bad_request(format!("invalid resource version {version:?}")))?;
            let reached = call.state.hub.reach(asked, limits::READ_WAIT).await;
            reached.map_err(|error| ApiError::version_too_large(error.wanted, error.newest))?;
        }
        None => catch_up(&call).await?,
    }
    let key = keys::object(&kind.stored, &target.namespace, &target.name);
    let object = call.state.hub.get(&key);
    let object = object.ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?;
    let mut out = Vec::with_capacity(object.size());
    renderer.object(&object, object.revision, false, &mut out);
    Ok(super::answer::json_response(StatusCode::OK, out.into()))
}

async fn create(mut call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    if kind.resource.is_review() {
        return reviews::answer(call, &kind, target).await;
    }
    let renderer = Renderer::new(&call, &kind)?;
    let params = WriteParams::new(&call.query, call.headers(), "CreateOptions")?;
    let decoded = read_object(&mut call).await?;
    let name = decoded.value["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let namespace = namespace_of(&kind, &target, &decoded)?;
    call.authorize(
        &Target {
            namespace: namespace.clone(),
            ..target.clone()
        },
        "create",
        // What has no name in its path has none for rules; agents are told apart by theirs.
        if call.user.agent_name().is_some() { &name } else { "" },
    )?;
    if let Some(offer) = accept::offer_of(&kind, &decoded.value) {
        let offers = Target {
            plural: "offers".to_owned(),
            subresource: "accept".to_owned(),
            namespace: namespace.clone(),
            ..target
        };
        call.authorize(&offers, "create", &offer)?;
    }
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let create = Create {
        kind: &kind,
        namespace: &namespace,
        body: decoded,
        params: &params,
        applied: false,
    };
    let written = create.run(&context).await?;
    Ok(renderer.written(StatusCode::CREATED, written))
}

/// An object may be created through the collection of the whole cluster if it names its namespace itself.
pub(super) fn namespace_of(kind: &Kind, target: &Target, decoded: &Decoded) -> Result<String> {
    if !kind.resource.namespaced || !target.namespace.is_empty() {
        return Ok(target.namespace.clone());
    }
    match decoded.value["metadata"]["namespace"].as_str() {
        Some(namespace) if muster_api::names::dns_label_problem(namespace).is_none() => Ok(namespace.to_owned()),
        _ => Err(ApiError::bad_request(
            "the object names no namespace, and neither does the path",
        )),
    }
}

pub(super) async fn read_object(call: &mut Call) -> Result<Decoded> {
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    body::object(content_type, &bytes)
}

async fn change(mut call: Call, kind: Arc<Kind>, target: Target, verb: &'static str) -> Result<Response> {
    call.authorize(&target, verb, &target.name)?;
    let renderer = Renderer::new(&call, &kind)?;
    let change = if verb == "update" {
        Change::Replace(read_object(&mut call).await?)
    } else {
        let content_type = ContentType::of(call.headers());
        let bytes = body::read(call.take_body()).await?;
        if content_type == ContentType::ApplyPatch {
            return apply(call, kind, target, renderer, &bytes).await;
        }
        Change::Patch(Patch::parse(content_type, &bytes)?)
    };
    let options = if verb == "update" {
        "UpdateOptions"
    } else {
        "PatchOptions"
    };
    let params = WriteParams::new(&call.query, call.headers(), options)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let update = Update {
        kind: &kind,
        namespace: &target.namespace,
        name: &target.name,
        status: target.subresource == "status",
        change,
        params: &params,
    };
    let written = update.run(&context).await?;
    Ok(renderer.written(StatusCode::OK, written))
}

/// Applies: changes the object, or makes it.
async fn apply(call: Call, kind: Arc<Kind>, target: Target, renderer: Renderer, bytes: &[u8]) -> Result<Response> {
    let params = WriteParams::for_apply(&call.query, call.headers())?;
    let config = body::applied(bytes)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let update = Update {
        kind: &kind,
        namespace: &target.namespace,
        name: &target.name,
        status: target.subresource == "status",
        change: Change::Apply(Application {
            config: config.clone(),
            force: params.force,
        }),
        params: &params,
    };
    for _ in 0..limits::WRITE_ATTEMPTS {
        match update.run(&context).await {
            Err(error) if error.code == StatusCode::NOT_FOUND && !update.status => (),
            other => return Ok(renderer.written(StatusCode::OK, other?)),
        }
        call.authorize(&target, "create", &target.name)?;
        let mut body = config.clone();
        check_new(&kind, &target, &mut body)?;
        let create = Create {
            kind: &kind,
            namespace: &target.namespace,
            body,
            params: &params,
            applied: true,
        };
        match create.run(&context).await {
            // Somebody else was faster; then it is theirs that is changed.
            Err(error) if error.reason == "AlreadyExists" && !params.dry_run => (),
            other => return Ok(renderer.written(StatusCode::CREATED, other?)),
        }
    }
    Err(ApiError::too_many_requests(
        "the object comes and goes too often; try again",
        1,
    ))
}

/// Whoever means a certain object does not want a new one.
fn check_new(kind: &Kind, target: &Target, body: &mut Decoded) -> Result<()> {
    for field in ["uid", "resourceVersion"] {
        if let Some(wanted) = body.value["metadata"][field]
            .as_str()
            .filter(|wanted| !wanted.is_empty())
        {
            let why = format!(
                "{field} mismatch: the provided object specified {field} {wanted}, and no existing object was found"
            );
            return Err(ApiError::conflict(&kind.resource, &target.name, why));
        }
    }
    if body.value["metadata"]["name"].is_null() {
        body.value["metadata"]["name"] = json!(target.name);
    } else if body.value["metadata"]["name"] != target.name.as_str() {
        let message = format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            body.value["metadata"]["name"], target.name
        );
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

/// Says what keeps a namespace from now on; with nothing left, it is gone.
async fn finalize(mut call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    let renderer = Renderer::new(&call, &kind)?;
    let params = WriteParams::new(&call.query, call.headers(), "UpdateOptions")?;
    let sent = read_object(&mut call).await?.value;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let written = registry::finalize(&context, &kind, &target.name, sent, params.dry_run).await?;
    Ok(renderer.written(StatusCode::OK, written))
}

/// Deletes an object as these options say, for whoever may.
pub(super) async fn delete_as(call: &Call, kind: &Kind, target: &Target, options: &Value) -> Result<Written> {
    let params = DeleteParams::new(&call.query, options)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    kind.delete(&context, &target.namespace, &target.name, &params).await
}

/// What a request says about a deletion.
async fn delete_options(call: &mut Call) -> Result<Value> {
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    Ok(body::object(content_type, &bytes)?.value)
}

async fn delete(mut call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    call.authorize(&target, "delete", &target.name)?;
    let renderer = Renderer::new(&call, &kind)?;
    let options = delete_options(&mut call).await?;
    let written = delete_as(&call, &kind, &target, &options).await?;
    if !written.deleted {
        return Ok(renderer.written(StatusCode::OK, written));
    }
    let uid = &written.object["metadata"]["uid"];
    Ok(success(&kind, &target.name, uid.as_str().unwrap_or_default()))
}

async fn delete_collection(mut call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    call.authorize(&target, "deletecollection", "")?;
    let options = delete_options(&mut call).await?;
    let params = DeleteParams::new(&call.query, &options)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let filter = list::filter(&call, &kind, &target)?;
    catch_up(&call).await?;
    let found = call.state.hub.list(kind.id, &filter, &Part::default());
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let (of, context, params) = (&kind, &context, &params);
    let deletions = stream::iter(found.objects).map(|object| async move {
        match of.delete(context, object.namespace(), object.name(), params).await {
            Err(error) if error.code != StatusCode::NOT_FOUND => Err(error),
            _ => Ok(()),
        }
    });
    let mut deletions = deletions.buffer_unordered(limits::DELETIONS_AT_ONCE);
    while let Some(deleted) = deletions.next().await {
        deleted?;
    }
    Ok(success(&kind, "", ""))
}

/// What is answered when something is gone.
fn success(kind: &Kind, name: &str, uid: &str) -> Response {
    let mut details = json!({"group": kind.resource.group, "kind": kind.resource.plural});
    for (field, text) in [("name", name), ("uid", uid)] {
        if !text.is_empty() {
            details[field] = json!(text);
        }
    }
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    });
    json_value(StatusCode::OK, &status)
}
