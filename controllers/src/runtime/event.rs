//! Events: what happened, for people. Best effort, never on the way of a plan.
//!
//! The name of an event follows from what it says, so that two leaders, or one that starts anew, tell a thing once. When more
//! comes than can be written, events are dropped and counted, and nothing waits.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_api::Timestamp;
use muster_api::env::Env;
use muster_client::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::object::Kind;
use super::plan::{Note, Severity};

/// So many events wait to be written: what a pass over 1,000 tasks tells, with room.
pub const QUEUE_MAX: usize = 4096;

/// So many names are remembered, to save calls that would find the event written.
const REMEMBERED_MAX: usize = 8192;

/// Takes notes; clones share the queue.
#[derive(Clone, Debug)]
pub struct Notes(mpsc::Sender<Note>);

impl Notes {
    /// The queue, and what is read from it.
    pub fn new() -> (Notes, mpsc::Receiver<Note>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Notes(sender), receiver)
    }

    /// Takes a note, or drops it when too many wait.
    pub fn take(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

/// Writes notes as events until cancelled.
pub async fn write_events(
    client: Client,
    env: Arc<dyn Env>,
    mut notes: mpsc::Receiver<Note>,
    cancel: CancellationToken,
) {
    let mut written = BTreeSet::new();
    loop {
        let note = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            note = notes.recv() => note,
        };
        let Some(note) = note else { return };
        let name = name(&note);
        if written.len() >= REMEMBERED_MAX {
            written.clear();
        }
        if !written.insert(name.clone()) {
            continue;
        }
        let namespace = namespace(&note).to_owned();
        let event = event(&note, &name, env.now());
        let path = Kind::Event.path(&namespace);
        let creating = client.create_at::<_, Value>(&path, &event);
        let created = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            created = creating => created,
        };
        match created {
            Ok(_) | Err(Error::AlreadyExists(_)) => {}
            Err(error) => tracing::debug!(%error, event = %name, "event not written"),
        }
    }
}

/// Events about objects without a namespace are in `default`, as in Kubernetes.
fn namespace(note: &Note) -> &str {
    if note.id.namespace.is_empty() {
        muster_api::names::NAMESPACE_DEFAULT
    } else {
        &note.id.namespace
    }
}

fn name(note: &Note) -> String {
    let (_, kind) = note.kind.names();
    let parts = [
        kind,
        &note.id.namespace,
        &note.id.name,
        &note.uid,
        note.reason,
        &note.message,
    ];
    let hash = fingerprint(parts);
    let object: String = note.id.name.chars().take(200).collect();
    format!("{object}.{hash:016x}")
}

/// FNV-1a, 64 bits, with a separator that no part contains.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn event(note: &Note, name: &str, now: Timestamp) -> Value {
    let (api_version, kind) = note.kind.names();
    let severity = match note.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    let seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace(note) },
        "involvedObject": {
            "apiVersion": api_version, "kind": kind,
            "namespace": note.id.namespace.as_ref(), "name": note.id.name.as_ref(), "uid": note.uid,
        },
        "type": severity,
        "reason": note.reason,
        "message": note.message,
        "firstTimestamp": seconds,
        "lastTimestamp": seconds,
        "count": 1,
        "source": { "component": COMPONENT },
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
    })
}

const COMPONENT: &str = "muster-controllers";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::object::Id;

    fn note(message: &str) -> Note {
        Note {
            kind: Kind::Agent,
            id: Id::new("", "a1"),
            uid: "u".into(),
            severity: Severity::Warning,
            reason: "AgentLost",
            message: message.into(),
        }
    }

    #[test]
    fn the_same_news_have_the_same_name() {
        assert_eq!(name(&note("x")), name(&note("x")));
        assert_ne!(name(&note("x")), name(&note("y")));
        assert!(name(&note("x")).starts_with("a1."));
    }

    #[test]
    fn an_event_about_an_object_without_namespace_is_in_default() {
        let now: Timestamp = "2026-01-02T03:04:05.678Z".parse().expect("time");
        let event = event(&note("x"), "n", now);
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["involvedObject"]["kind"], "Agent");
        assert_eq!(event["lastTimestamp"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
    }
}
