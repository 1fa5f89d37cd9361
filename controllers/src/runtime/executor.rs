//! The one writer: does what plans say, under the leader's fence.
//!
//! Writes of a plan are independent and run at the same time, up to a bound. What was refused because the view was old is
//! skipped: the watch brings what changed, and the key is planned again. Nothing is written when leadership may have ended.
//!
//! A write of offers that nobody answered may still happen, when something else has been planned; so it is settled before anything else
//! is: one more write of the agent's ledger, after which it has happened or never will. What must never happen here: a plan made while a
//! write of offers before it is in the air.

use std::time::Duration;

use futures::{StreamExt, stream};
use muster_api::wire::{AgentOffers, PlanReport};
use muster_client::{Client, Error, Patch, Preconditions};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::event::Notes;
use super::object::Id;
use super::owners::Owners;
use super::plan::{Action, Propagation, Write};
use super::resource::Resource;
use crate::leader::Leadership;

/// So many writes of one plan are under way at a time.
pub const CONCURRENCY: usize = 16;

/// How long a write that settles waits before it is tried again: first, and at most.
const SETTLE_FIRST: Duration = Duration::from_millis(50);
const SETTLE_MOST: Duration = Duration::from_secs(1);

/// How a write ended.
#[derive(Debug)]
pub enum Outcome {
    /// It happened, at that revision if that is known.
    Done(Option<u64>),
    /// The view was old; the watch will tell.
    Skipped(Error),
    /// It may succeed later.
    Later {
        /// Why it did not now.
        error: Error,
        /// Whoever has seen this revision knows whether it happened after all, where that matters.
        settled: Option<u64>,
    },
    /// It must not happen as things are; why.
    Kept(String),
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
    owners: Owners,
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
            owners: Owners::default(),
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
        let agent = match &write.action {
            Action::AgentOffers { agent, .. } => Some(agent.clone()),
            _ => None,
        };
        let action = match write.action {
            Action::IfAbsent {
                owners,
                namespace,
                action,
            } => match self.owners.found(&self.client, &namespace, &owners).await {
                Ok(None) => *action,
                Ok(Some(why)) => return Outcome::Kept(why),
                Err(error) => return Outcome::Later { error, settled: None },
            },
            action => action,
        };
        match self.perform(action).await {
            Ok(revision) => {
                for note in write.then {
                    self.notes.take(note);
                }
                Outcome::Done(revision)
            }
            Err(error) => match (sort(error), agent) {
                (Outcome::Later { error, .. }, Some(agent)) => match self.settle(&agent).await {
                    Some(settled) => Outcome::Later {
                        error,
                        settled: Some(settled),
                    },
                    None => Outcome::Fenced,
                },
                (outcome, _) => outcome,
            },
        }
    }

    /// The revision at which it is decided what became of everything that was sent about an agent's offers. Tries for as long as the term
    /// lasts; `None`: it is over, and with it everything that was sent under its fence.
    async fn settle(&self, agent: &str) -> Option<u64> {
        let mut pause = SETTLE_FIRST;
        while self.leadership.borrow().may_act() {
            match self.client.agent_offers(agent, &AgentOffers::default()).await {
                Ok(settled) => return settled.resource_version.parse().ok(),
                Err(Error::Fenced(_)) => return None,
                Err(error) => tracing::debug!(%error, agent, "not settled yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SETTLE_MOST);
        }
        None
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
                let path = path(&kind, &id) + if status { "/status" } else { "" };
                client.patch_at(&path, &Patch::Merge(body)).await.map(revision)
            }
            Action::Delete {
                kind,
                id,
                uid,
                version,
                policy,
            } => {
                let only_if = Preconditions {
                    uid: Some(uid),
                    resource_version: version.map(String::from),
                };
                let policy = policy.map(|Propagation::Foreground| "Foreground");
                let path = path(&kind, &id);
                client.delete_as(&path, &only_if, policy).await.map(revision)
            }
            // What is asked for is a condition of something else, never of another condition.
            Action::IfAbsent { action, .. } => Box::pin(self.perform(*action)).await,
            Action::Finalize { name, version, left } => {
                let namespace = json!({
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": { "name": name, "uid": version.uid, "resourceVersion": version.resource },
                    "spec": { "finalizers": left },
                });
                let path = format!("/api/v1/namespaces/{name}/finalize");
                client.put_at(&path, &namespace).await.map(revision)
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

fn path(kind: &Resource, id: &Id) -> String {
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
        Error::Retryable { .. } | Error::Timeout(_) | Error::Transport(_) | Error::Decode { .. } => {
            Outcome::Later { error, settled: None }
        }
        Error::Invalid(_) | Error::Forbidden(_) | Error::Refused(_) | Error::Setup { .. } => Outcome::Refused(error),
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
