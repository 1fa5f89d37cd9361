//! The ordered watch over several kinds: whole revisions, in order, so that its reader always has a prefix of history.
//!
//! With `others=true` it tells of every other kind, too, also of those that are yet to come, but only outlines: who an object is, who
//! owns it, and what keeps it. That is what garbage collection needs to know, and nothing else of them leaves the server here.
//!
//! Each kind needs the right to `watch` it: everywhere, or with `namespace=NAME` in that namespace, and then nothing else is told.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use muster_store::Revision;
use serde_json::{Map, Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::answer::json_response;
use super::metrics::Gauge;
use super::path::Target;
use super::{Call, resource};
use crate::error::{ApiError, Result};
use crate::hub::{Event, Filter, KindId, Object, Position};
use crate::limits;
use crate::registry::View;
use crate::state::State;

/// Answers the ordered watch.
pub(super) async fn serve(call: Call) -> Result<Response> {
    if call.user.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    let mut kinds: Vec<KindId> = Vec::new();
    let namespace = call.query.get("namespace").filter(|namespace| !namespace.is_empty());
    let namespace = namespace.map(str::to_owned);
    let names = call.query.all("resources").flat_map(|names| names.split(','));
    for name in names.map(str::trim).filter(|name| !name.is_empty()) {
        let kind = call.state.resources.stored(name);
        if namespace.is_some() && kind.as_ref().is_some_and(|kind| !kind.resource.namespaced) {
            return Err(ApiError::bad_request(format!("resources: {name:?} is in no namespace")));
        }
        let id = kind.map(|kind| kind.id).ok_or_else(|| {
            let known = call.state.resources.kinds();
            let known = known.iter().filter(|kind| kind.view == View::Stored);
            let known: Vec<String> = known.map(|kind| kind.resource.qualified()).collect();
            ApiError::bad_request(format!("resources: {name:?} is none of {}", known.join(", ")))
        })?;
        let (plural, group) = name.split_once('.').unwrap_or((name, ""));
        let target = Target {
            group: group.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.clone().unwrap_or_default(),
            ..Target::default()
        };
        call.authorize(&target, "watch", "")?;
        if !kinds.contains(&id) {
            kinds.push(id);
        }
    }
    if kinds.is_empty() {
        return Err(ApiError::bad_request(
            "resources: name at least one, as in resources=tasks.muster.dev,offers.muster.dev",
        ));
    }
    let others = call.query.flag("others")?;
    if others && !call.user.is_controllers() && !call.user.is_master() {
        return Err(ApiError::forbidden("only the control plane watches all kinds"));
    }
    if others && namespace.is_some() {
        return Err(ApiError::bad_request("others: all kinds are watched in all namespaces"));
    }
    let start = call.query.number("resourceVersion")?;
    let begun = match start {
        None => {
            resource::catch_up(&call).await?;
            let mut listed = kinds.clone();
            if others {
                let others = call.state.hub.kind_ids().into_iter();
                listed.extend(others.filter(|kind| !kinds.contains(kind)));
            }
            let (found, position) = call
                .state
                .hub
                .list_and_position(&listed, &Filter::all(namespace.as_deref()));
            let objects = found.into_iter().flat_map(|found| found.objects).collect();
            Ok((Some((objects, 0)), position))
        }
        Some(revision) => {
            let position = call.state.hub.position(revision);
            position
                .map(|position| (None, position))
                .map_err(|left| ApiError::too_old(revision, left.floor))
        }
    };
    let body = match begun {
        Err(error) => error_line(&error).into(),
        Ok((snapshot, position)) => {
            let watch = OrderedWatch {
                reached: call.state.hub.reached(),
                _open: call.state.metrics.watch("ordered"),
                state: call.state,
                kinds,
                namespace,
                others,
                snapshot,
                position,
                told: position.revision,
                spoke: Instant::now(),
                ended: false,
            };
            let chunks = stream::unfold(watch, |mut watch| async move {
                let chunk = watch.next().await?;
                Some((Ok::<Bytes, std::convert::Infallible>(chunk), watch))
            });
            Body::from_stream(chunks)
        }
    };
    Ok(json_response(StatusCode::OK, body))
}

fn error_line(error: &ApiError) -> Vec<u8> {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", error.status()).into_bytes()
}

struct OrderedWatch {
    state: Arc<State>,
    /// The kinds whose objects are told whole.
    kinds: Vec<KindId>,
    /// The only namespace whose objects are told.
    namespace: Option<String>,
    /// Whether the others are told in outline.
    others: bool,
    /// The state to begin with, and how much of it has been sent.
    snapshot: Option<(Vec<Arc<Object>>, usize)>,
    position: Position,
    /// The revision that the reader knows it has reached.
    told: Revision,
    /// When something was last sent.
    spoke: Instant,
    reached: Receiver<Revision>,
    ended: bool,
    _open: Gauge,
}

impl OrderedWatch {
    async fn next(&mut self) -> Option<Bytes> {
        let chunk = self.find().await?;
        self.spoke = Instant::now();
        Some(chunk)
    }

    async fn find(&mut self) -> Option<Bytes> {
        if let Some(part) = self.next_of_snapshot() {
            return Some(part);
        }
        loop {
            if self.ended || self.state.stopping().is_cancelled() {
                return None;
            }
            // Seen before it is read: a revision that comes in between wakes once too often, never once too little.
            self.reached.borrow_and_update();
            let wanted = |kind: KindId| self.others || self.kinds.contains(&kind);
            let advanced = self.state.hub.advance(&mut self.position, wanted, limits::WATCH_BATCH);
            let (mut events, more) = match advanced {
                Ok(advanced) => advanced,
                Err(left) => {
                    self.ended = true;
                    return Some(error_line(&ApiError::too_old(self.told, left.floor)).into());
                }
            };
            if let Some(namespace) = &self.namespace {
                events.retain(|event| event.object().namespace() == namespace);
            }
            if !events.is_empty() {
                return Some(self.batches(&events));
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let silent = self.spoke.elapsed() >= limits::PROGRESS_EVERY;
            if self.position.revision > self.told || silent {
                return Some(self.progress());
            }
            let stopping = self.state.stopping().clone();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                changed = self.reached.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.spoke + limits::PROGRESS_EVERY) => (),
            }
        }
    }

    fn progress(&mut self) -> Bytes {
        self.told = self.position.revision;
        format!("{{\"type\":\"PROGRESS\",\"revision\":{}}}\n", self.told).into()
    }

    fn next_of_snapshot(&mut self) -> Option<Bytes> {
        let (objects, index) = self.snapshot.take()?;
        let end = (index + limits::SNAPSHOT_OBJECTS).min(objects.len());
        let mut out = Vec::new();
        self.head("SNAPSHOT", self.position.revision, &mut out);
        for (place, object) in objects[index..end].iter().enumerate() {
            self.change("ADDED", object, object.revision, place > 0, &mut out);
        }
        let more = end < objects.len();
        out.extend_from_slice(format!("],\"more\":{more}}}\n").as_bytes());
        if more {
            self.snapshot = Some((objects, end));
        }
        Some(out.into())
    }

    fn batches(&mut self, events: &[Event]) -> Bytes {
        let mut out = Vec::new();
        for batch in events.chunk_by(|a, b| a.revision == b.revision) {
            let revision = batch[0].revision;
            self.head("BATCH", revision, &mut out);
            for (place, event) in batch.iter().enumerate() {
                let (kind, object_revision) = match (&event.before, &event.current) {
                    (None, Some(object)) => ("ADDED", object.revision),
                    (Some(_), Some(object)) => ("MODIFIED", object.revision),
                    (_, None) => ("DELETED", revision),
                };
                self.change(kind, event.object(), object_revision, place > 0, &mut out);
            }
            out.extend_from_slice(b"]}\n");
            self.told = revision;
        }
        out.into()
    }

    fn head(&self, kind: &str, revision: Revision, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"revision\":{revision},\"changes\":[").as_bytes());
    }

    fn change(&self, kind: &str, object: &Object, revision: Revision, comma: bool, out: &mut Vec<u8>) {
        let resource = &self.state.hub.kind(object.kind).qualified;
        let comma = if comma { "," } else { "" };
        out.extend_from_slice(
            format!("{comma}{{\"resource\":\"{resource}\",\"type\":\"{kind}\",\"object\":").as_bytes(),
        );
        if self.kinds.contains(&object.kind) {
            let begin = out.len();
            object.write_at(revision, out);
            cut_owners(out, begin);
        } else {
            out.extend_from_slice(outline(&object.json_at(revision)).to_string().as_bytes());
        }
        out.push(b'}');
    }
}

/// Who an object is, who owns it, and what keeps it.
fn outline(object: &Value) -> Value {
    const KEPT: [&str; 8] = [
        "creationTimestamp",
        "deletionTimestamp",
        "finalizers",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "uid",
    ];
    let metadata = object["metadata"].as_object().into_iter().flatten();
    let metadata: Map<String, Value> = metadata
        .filter(|(name, _)| KEPT.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata})
}

/// Takes `metadata.managedFields` out of the object that begins at `begin`. Its readers plan; who wrote what does not matter to them.
///
/// In a text, every quote is behind a backslash, so the first thing that looks like this field is this field: no other of the metadata
/// that come before it has lists of objects but the owner references, which have no such field.
fn cut_owners(out: &mut Vec<u8>, begin: usize) {
    const FIELD: &[u8] = br#""managedFields":["#;
    let Some(found) = out[begin..].windows(FIELD.len()).position(|window| window == FIELD) else {
        return;
    };
    let start = begin + found;
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let length = out[start..].iter().position(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => (),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => (),
        }
        depth == 0 && *byte == b']'
    });
    let Some(length) = length else { return };
    let mut range = start..start + length + 1;
    if out.get(range.end) == Some(&b',') {
        range.end += 1;
    } else if start > begin && out[start - 1] == b',' {
        range.start -= 1;
    }
    out.drain(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_tells_nothing_of_what_an_object_holds() {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "data": {"password": "c2VjcmV0"},
            "metadata": {
                "name": "s", "uid": "u", "annotations": {"last-applied": "c2VjcmV0"}, "labels": {"a": "b"},
                "ownerReferences": [{"uid": "o"}],
            },
        });
        let expect = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s", "uid": "u", "ownerReferences": [{"uid": "o"}]},
        });
        assert_eq!(outline(&object), expect);
    }

    #[test]
    fn planners_do_not_read_owners() {
        let check = |object: &str, expect: &str| {
            let mut out = format!("x{object}").into_bytes();
            cut_owners(&mut out, 1);
            assert_eq!(String::from_utf8_lossy(&out), format!("x{expect}"));
        };
        let owners = r#""managedFields":[{"fieldsV1":{"k:{\"]\":1}":{}},"manager":"\\"}]"#;
        check(
            &format!(r#"{{"metadata":{{"labels":{{}},{owners},"name":"x"}}}}"#),
            r#"{"metadata":{"labels":{},"name":"x"}}"#,
        );
        check(
            &format!(r#"{{"metadata":{{"name":"x",{owners}}}}}"#),
            r#"{"metadata":{"name":"x"}}"#,
        );
        check(
            r#"{"data":{"a":"\"managedFields\":["}}"#,
            r#"{"data":{"a":"\"managedFields\":["}}"#,
        );
    }
}
