//! What answers promise.

use bytes::Bytes;
use muster_store::{Key, Revision};
use serde_json::Value;

use super::Checker;

/// The answer to a request that was to write something.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Of which delivery.
    pub id: u64,
    /// Method and path.
    pub request: String,
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: Bytes,
}

/// The revision that the answer to a write names.
pub fn revision_of(body: &[u8]) -> Option<Revision> {
    let value: Value = serde_json::from_slice(body).ok()?;
    named(&value)
}

fn named(value: &Value) -> Option<Revision> {
    let text = value
        .pointer("/metadata/resourceVersion")
        .or_else(|| value.pointer("/resourceVersion"))?;
    text.as_str()?.parse().ok()
}

/// Where an object of an answer is in the store.
fn key_of(object: &Value) -> Option<Key> {
    let (group, plural) = match object["kind"].as_str()? {
        "Task" => ("muster.dev", "tasks"),
        "Offer" => ("muster.dev", "offers"),
        "Agent" => ("muster.dev", "agents"),
        "Framework" => ("muster.dev", "frameworks"),
        "Quota" => ("muster.dev", "quotas"),
        "Lease" => ("coordination.k8s.io", "leases"),
        _ => return None,
    };
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("_");
    Some(Key::new(format!("objects/{group}/{plural}/{namespace}/{name}")))
}

impl Checker {
    /// An acknowledged write is in the history, at the revision that its answer names; a denied one is not, and never will be.
    pub fn check_reply(&mut self, reply: &Reply) {
        let Reply {
            id,
            request,
            code,
            body,
        } = reply;
        match code {
            200..=299 => self.check_acknowledged(request, body),
            // The server does not say what became of these.
            408 | 429 => {}
            400..=499 => {
                self.denied.insert(*id);
                if let Some(revision) = self.wrote.get(id) {
                    self.violated(format!(
                        "{request} was denied with {code}, but wrote revision {revision}"
                    ));
                }
            }
            _ => {}
        }
    }

    fn check_acknowledged(&mut self, request: &str, body: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return;
        };
        let Some(revision) = named(&value) else { return };
        if revision > self.revision {
            return self.violated(format!(
                "{request} was acknowledged at {revision}, which is yet to come"
            ));
        }
        // The answer to the write that removes an object's last finalizer shows what it was.
        let deleted = !value["metadata"]["deletionTimestamp"].is_null();
        let Some(key) = key_of(&value).filter(|_| !deleted) else {
            return;
        };
        let versions = self.versions.get(&key);
        let there = versions.is_some_and(|versions| versions.contains(&(revision, true)));
        if !there {
            self.violated(format!(
                "{request} was acknowledged at {revision}, but {key} was not written then"
            ));
        }
    }
}
