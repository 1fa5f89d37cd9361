//! Watches of one kind.
//!
//! A watch is a position in the hub's events and a buffer of one chunk: however slow its reader, nothing piles up. If it falls
//! so far behind that its position has left, the stream ends and the client resumes or lists again. What a watch cannot do is said
//! inside the stream, as an event of type `ERROR`, because clients understand it only there.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use muster_store::Revision;
use tokio::sync::watch::Receiver;
use tokio::time::{Duration, Instant, sleep_until};

use super::Call;
use super::answer::{Renderer, json_response};
use super::metrics::Gauge;
use super::path::Target;
use super::{list, resource};
use crate::error::{ApiError, Result};
use crate::hub::{Event, Filter, Object, Position};
use crate::limits;
use crate::params::{Start, WatchParams};
use crate::registry::Kind;
use crate::selector::FieldSelector;
use crate::state::State;

/// Answers a watch.
pub(super) async fn serve(call: Call, kind: Arc<Kind>, target: Target) -> Result<Response> {
    let name = if target.name.is_empty() {
        list::named(&call)?
    } else {
        target.name.clone()
    };
    call.authorize(&target, "watch", &name)?;
    let renderer = Renderer::new(&call, &kind)?;
    let params = WatchParams::new(&call.query)?;
    let filter = if target.name.is_empty() {
        list::filter(&call, &kind, &target)?
    } else {
        let only = FieldSelector::parse(&format!("metadata.name={}", target.name))?;
        Filter::new(&kind.hub, Some(&target.namespace), Default::default(), &only)?
    };
    let body = match begin(&call, &kind, &filter, &params).await {
        Ok((initial, position)) => {
            let watch = Watch::new(&call, renderer, filter, params, initial, position);
            let chunks = stream::unfold(watch, |mut watch| async move {
                let chunk = watch.next().await?;
                Some((Ok::<Bytes, std::convert::Infallible>(chunk), watch))
            });
            Body::from_stream(chunks)
        }
        Err(error) => error_event(&error).into(),
    };
    Ok(json_response(StatusCode::OK, body))
}

fn error_event(error: &ApiError) -> Vec<u8> {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", error.status()).into_bytes()
}

async fn begin(
    call: &Call,
    kind: &Kind,
    filter: &Filter,
    params: &WatchParams,
) -> Result<(Vec<Arc<Object>>, Position)> {
    let hub = &call.state.hub;
    match params.start {
        Start::State { not_older_than, .. } => {
            if not_older_than > 0 {
                let reached = hub.reach(not_older_than, limits::READ_WAIT).await;
                reached.map_err(|error| ApiError::version_too_large(error.wanted, error.newest))?;
            } else if call.query.get("resourceVersion").is_none() {
                resource::catch_up(call).await?;
            }
            let (mut found, position) = hub.list_and_position(&[kind.id], filter);
            Ok((found.pop().map(|found| found.objects).unwrap_or_default(), position))
        }
        Start::Now => {
            resource::catch_up(call).await?;
            let (_, position) = hub.list_and_position(&[], filter);
            Ok((Vec::new(), position))
        }
        Start::After(revision) => {
            let told_as = |event: &Event| told(filter, event).map(|(_, _, revision)| revision);
            let position = hub.resume(revision, kind.id, told_as);
            let position = position.map_err(|left| ApiError::too_old(revision, left.floor))?;
            Ok((Vec::new(), position))
        }
    }
}

struct Watch {
    state: Arc<State>,
    renderer: Renderer,
    filter: Filter,
    /// The state to begin with, and how much of it has been sent.
    initial: Option<(Vec<Arc<Object>>, usize)>,
    /// Whether the end of the state is marked.
    marked: bool,
    bookmarks: bool,
    position: Position,
    touched: Receiver<Revision>,
    deadline: Instant,
    next_bookmark: Instant,
    /// Whether columns have been described.
    described: bool,
    _open: Gauge,
}

impl Watch {
    fn new(
        call: &Call,
        renderer: Renderer,
        filter: Filter,
        params: WatchParams,
        initial: Vec<Arc<Object>>,
        position: Position,
    ) -> Watch {
        let state = call.state.clone();
        let timeout = params.timeout.unwrap_or_else(|| {
            let random = state.env.uid().as_u128() as u64 % limits::WATCH_SECONDS;
            Duration::from_secs(limits::WATCH_SECONDS + random)
        });
        let now = Instant::now();
        let deadline = now + timeout;
        let starts_with_state = matches!(params.start, Start::State { .. });
        Watch {
            touched: state.hub.touched(renderer.kind.id),
            _open: state.metrics.watch(&renderer.kind.resource.qualified()),
            state,
            renderer,
            filter,
            initial: starts_with_state.then_some((initial, 0)),
            marked: params.bookmarks && matches!(params.start, Start::State { marked: true, .. }),
            bookmarks: params.bookmarks,
            position,
            deadline,
            next_bookmark: next_bookmark(now, deadline),
            described: false,
        }
    }

    /// The next chunk; `None`: the end.
    async fn next(&mut self) -> Option<Bytes> {
        self.renderer.set_now(self.state.env.now());
        if let Some(chunk) = self.next_of_state() {
            return Some(chunk);
        }
        loop {
            if Instant::now() >= self.deadline || self.state.stopping().is_cancelled() {
                return None;
            }
            // Seen before it is read: an event that comes in between wakes once too often, never once too little.
            self.touched.borrow_and_update();
            let id = self.renderer.kind.id;
            let wanted = |kind| kind == id;
            let advanced = self.state.hub.advance(&mut self.position, wanted, limits::WATCH_BATCH);
            let Ok((events, more)) = advanced else {
                tracing::debug!(
                    resource = self.renderer.kind.resource.qualified(),
                    "a watch was too slow and is closed"
                );
                return None;
            };
            let mut out = Vec::new();
            for event in &events {
                self.event(event, &mut out);
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(chunk) = self.wait().await {
                return Some(chunk);
            }
        }
    }

    /// Waits until there may be something to do; a bookmark may be due by then.
    async fn wait(&mut self) -> Option<Bytes> {
        let until = if self.bookmarks {
            self.next_bookmark.min(self.deadline)
        } else {
            self.deadline
        };
        let stopping = self.state.stopping().clone();
        tokio::select! {
            biased;
            () = stopping.cancelled() => None,
            changed = self.touched.changed() => {
                // The hub is as old as the server.
                changed.ok()?;
                None
            }
            () = sleep_until(until) => {
                let now = Instant::now();
                if !self.bookmarks || now < self.next_bookmark {
                    return None;
                }
                self.next_bookmark = next_bookmark(now, self.deadline);
                self.bookmark_now()
            }
        }
    }

    /// A bookmark, if it is true: everything before it has been sent, and it is not in the future.
    fn bookmark_now(&mut self) -> Option<Bytes> {
        let mut ahead = self.position;
        let id = self.renderer.kind.id;
        let wanted = |kind| kind == id;
        let (events, more) = self.state.hub.advance(&mut ahead, wanted, limits::WATCH_BATCH).ok()?;
        if !events.is_empty() || more || ahead.revision > self.state.hub.revision() {
            return None;
        }
        self.position = ahead;
        let mut out = Vec::new();
        self.frame("BOOKMARK", &mut out, |watch, out| {
            watch.renderer.bookmark(ahead.revision, false, out)
        });
        Some(out.into())
    }

    /// The next part of the state to begin with.
    fn next_of_state(&mut self) -> Option<Bytes> {
        let (objects, mut index) = self.initial.take()?;
        let mut out = Vec::new();
        while index < objects.len() && out.len() < limits::CHUNK_BYTES {
            let object = objects[index].clone();
            self.object("ADDED", &object, object.revision, &mut out);
            index += 1;
        }
        if index < objects.len() {
            self.initial = Some((objects, index));
        } else if self.marked {
            let revision = self.position.revision;
            self.frame("BOOKMARK", &mut out, |watch, out| {
                watch.renderer.bookmark(revision, true, out)
            });
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Appends what an event means to this watch.
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if let Some((kind, object, revision)) = told(&self.filter, event) {
            self.object(kind, object, revision, out);
        }
    }

    fn object(&mut self, kind: &str, object: &Object, revision: Revision, out: &mut Vec<u8>) {
        let described = std::mem::replace(&mut self.described, true);
        self.frame(kind, out, |watch, out| {
            if described && !watch.renderer.is_verbatim(object) {
                let value = watch.renderer.kind.show(object.json_at(revision));
                watch.renderer.value(value, false, false, out);
            } else {
                watch.renderer.object(object, revision, false, out);
            }
        });
    }

    fn frame(&mut self, kind: &str, out: &mut Vec<u8>, object: impl FnOnce(&Watch, &mut Vec<u8>)) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        object(self, out);
        out.extend_from_slice(b"}\n");
    }
}

/// What an event means to who selects so, and the version that is told with it: what comes to be selected is added, what ceases to be is deleted. After a
/// relist, events come with a later revision than their objects.
fn told<'a>(filter: &Filter, event: &'a Event) -> Option<(&'static str, &'a Arc<Object>, Revision)> {
    let before = event.before.as_ref().filter(|object| filter.matches(object));
    let current = event.current.as_ref().filter(|object| filter.matches(object));
    match (before, current) {
        (None, None) => None,
        (None, Some(object)) => Some(("ADDED", object, object.revision)),
        (Some(_), Some(object)) => Some(("MODIFIED", object, object.revision)),
        (Some(object), None) => Some(("DELETED", object, event.revision)),
    }
}

/// One every minute, and one shortly before the end.
fn next_bookmark(now: Instant, deadline: Instant) -> Instant {
    let last = deadline - limits::BOOKMARK_BEFORE_END.min(deadline - now);
    let next = now + limits::BOOKMARK_EVERY;
    if last > now { next.min(last) } else { next }
}
