//! The one writer: does what plans say, under the leader's fence.
//!
//! Writes of a plan are independent and run at the same time, up to a bound. What was refused because the view was old is
//! skipped: the watch brings what changed, and the key is planned again. Nothing is written when leadership may have ended.

use std::time::Duration;

use futures::{StreamExt, stream};
use muster_api::wire::PlanReport;
use muster_client::{Client, Error, Patch, Preconditions};
use serde_json::Value;
use tokio::sync::watch;

use super::event::Notes;
use super::object::{Id, Kind};
use super::plan::{Action, Write};
use crate::leader::Leadership;

/// So many writes of one plan are under way at a time.
pub const CONCURRENCY: usize = 16;

/// How a write ended.
#[derive(Debug)]
pub enum Outcome {
    /// It happened, at that revision if that is known.
    Done(Option<u64>),
    /// The view was old; the watch will tell.
    Skipped(Error),
    /// It may succeed later.
    Later(Error),
    /// It will not succeed as it is.
    Refused(Error),
    /// Somebody else leads now, or may.
    Fenced,
}

/// Does what plans say.
#[derive(Clone)]
pub struct Executor {
    client: Client,
    leadership: watch::Receiver<Leadership>,
    notes: Notes,
    reports: watch::Sender<Option<PlanReport>>,
}

impl Executor {
    /// Writes through `client`, which is fenced, while `leadership` lasts.
    pub fn new(
        client: Client,
        leadership: watch::Receiver<Leadership>,
        notes: Notes,
        reports: watch::Sender<Option<PlanReport>>,
    ) -> Executor {
        Executor {
            client,
            leadership,
            notes,
            reports,
        }
    }

    /// Does all of it; the outcomes are in the order of the writes.
    pub async fn apply(&self, writes: Vec<Write>) -> Vec<Outcome> {
        let running = stream::iter(writes).map(|write| self.one(write));
        running.buffered(CONCURRENCY).collect().await
    }

    async fn one(&self, write: Write) -> Outcome {
        if !self.leadership.borrow().may_act() {
            return Outcome::Fenced;
        }
        match self.perform(write.action).await {
            Ok(revision) => {
                for note in write.then {
                    self.notes.take(note);
                }
                Outcome::Done(revision)
            }
            Err(error) => sort(error),
        }
    }

    async fn perform(&self, action: Action) -> Result<Option<u64>, Error> {
        let client = &self.client;
        match action {
            Action::Create {
                kind,
                namespace,
                object,
            } => client.create_at(&kind.path(&namespace), &object).await.map(revision),
            Action::Patch { kind, id, status, body } => {
                let path = path(kind, &id) + if status { "/status" } else { "" };
                client.patch_at(&path, &Patch::Merge(body)).await.map(revision)
            }
            Action::Delete { kind, id, uid } => {
                let only_if = Preconditions {
                    uid: Some(uid),
                    resource_version: None,
                };
                client.delete_at(&path(kind, &id), &only_if).await.map(revision)
            }
            Action::AgentOffers { agent, request } => {
                let result = client.agent_offers(&agent, &request).await?;
                Ok(result.resource_version.parse().ok())
            }
            Action::Accept { offer, request } => {
                let result = client.accept(&offer.namespace, &offer.name, &request).await?;
                Ok(result.resource_version.parse().ok())
            }
            Action::Decline { offer, request } => client
                .decline(&offer.namespace, &offer.name, &request)
                .await
                .map(revision),
            Action::PutPlan(report) => {
                self.reports.send_replace(Some(*report));
                Ok(None)
            }
            Action::Event(note) => {
                self.notes.take(note);
                Ok(None)
            }
        }
    }
}

fn path(kind: Kind, id: &Id) -> String {
    format!("{}/{}", kind.path(&id.namespace), id.name)
}

/// The revision of the object that was written. A deleted object's answer may be a `Status`, which has none.
fn revision(object: Value) -> Option<u64> {
    object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()
}

fn sort(error: Error) -> Outcome {
    match error {
        Error::Fenced(_) => Outcome::Fenced,
        Error::NotFound(_) | Error::AlreadyExists(_) | Error::Conflict(_) | Error::Gone(_) => Outcome::Skipped(error),
        Error::Retryable { .. } | Error::Timeout(_) | Error::Transport(_) => Outcome::Later(error),
        Error::Invalid(_) | Error::Forbidden(_) | Error::Refused(_) | Error::Decode { .. } | Error::Setup { .. } => {
            Outcome::Refused(error)
        }
    }
}

/// Publishes the latest report, at most so often, until the executor is gone.
pub async fn publish_reports(client: Client, mut reports: watch::Receiver<Option<PlanReport>>, pause: Duration) {
    while reports.changed().await.is_ok() {
        let report = reports.borrow_and_update().clone();
        if let Some(report) = report
            && let Err(error) = client.put_plan(&report).await
        {
            tracing::debug!(%error, "reasons not published");
        }
        tokio::time::sleep(pause).await;
    }
}
