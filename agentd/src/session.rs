//! Presence: the agent's session is an ephemeral lease of its name, and its token fences every write of the agent.
//!
//! It promises: at most one session of a name at a time; a process that lost its session says nothing until it has another; a process
//! that starts again in the same boot of the same machine takes the session of its predecessor over at once, because the lock on the data
//! directory proves that the predecessor is gone. What must never happen here: taking over the session of another machine, or of a copy
//! of this one's disk.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use muster_api::ObjectMeta;
use muster_api::names::{API_VERSION, NAMESPACE_AGENTS, NAMESPACE_DEFAULT};
use muster_client::{Client, Error, Fence, Preconditions};
use muster_runtime::{Guard, Runtime};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::feed::Backoff;

/// So many refusals, a third of the session's time apart, may come from a session that has only not ended yet.
const REFUSED_SOON: u32 = 4;

/// Who holds a session: which agent on which machine, and which process of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The machine together with the data directory; the same after a restart.
    pub machine: String,
    /// The boot of the machine.
    pub boot_id: String,
    /// Counts the processes that have used the data directory.
    pub incarnation: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.machine, self.boot_id, self.incarnation)
    }
}

impl Identity {
    /// The machine, the boot and the incarnation of a holder.
    fn parse(holder: &str) -> Option<(&str, &str, u64)> {
        let (rest, incarnation) = holder.rsplit_once('/')?;
        let (machine, boot) = rest.rsplit_once('/')?;
        Some((machine, boot, incarnation.parse().ok()?))
    }
}

/// The right to speak for an agent.
#[derive(Clone, Debug)]
pub struct Session {
    /// The token.
    pub fence: Fence,
    /// A client whose every write is made under it.
    pub client: Client,
}

/// A later process of the same agent on the same machine holds the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a later process of this agent ({0}) holds its session; this one ends")]
pub struct Superseded(String);

/// What to do about a session that somebody holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// It is ours: an earlier request had succeeded without an answer.
    Ours,
    /// It is our predecessor's of this boot, who is gone: the lock on the data directory proves it.
    Predecessor,
    /// It is our successor's.
    Successor,
    /// It is somebody else's.
    Foreign,
}

fn judge(ours: &Identity, holder: &str) -> Held {
    if holder == ours.to_string() {
        return Held::Ours;
    }
    match Identity::parse(holder) {
        // Of another boot it is a predecessor, if the machine was restarted within the time of a session, or a copy of this disk that lives.
        Some((machine, boot, incarnation)) if (machine, boot) == (&*ours.machine, &*ours.boot_id) => {
            if incarnation < ours.incarnation {
                Held::Predecessor
            } else {
                Held::Successor
            }
        }
        _ => Held::Foreign,
    }
}

/// Keeps a session of an agent.
pub struct Keeper {
    /// Not fenced.
    pub client: Client,
    /// The name of the agent.
    pub agent: String,
    /// Who we are.
    pub identity: Identity,
    /// How long the session lasts without renewal.
    pub ttl: Duration,
    /// Where the session is told, `None` while there is none.
    pub out: watch::Sender<Option<Session>>,
    /// Somebody was told that the session is gone: look at once.
    pub doubt: Arc<Notify>,
    /// Whom containers are vouched for to, each time that the session is acknowledged.
    pub runtime: Arc<dyn Runtime>,
}

impl Keeper {
    /// Gets a session and renews it, again and again.
    ///
    /// # Errors
    /// [`Superseded`]: there must be no more of this process.
    pub async fn keep(self) -> Result<std::convert::Infallible, Superseded> {
        loop {
            let fence = self.acquire().await?;
            tracing::info!(agent = self.agent, session = fence.revision, "session begins");
            let session = Session {
                client: self.client.fenced(&fence),
                fence,
            };
            self.renew(&session).await;
            tracing::warn!(agent = self.agent, session = session.fence.revision, "session lost");
            self.out.send_replace(None);
        }
    }

    async fn acquire(&self) -> Result<Fence, Superseded> {
        let holder = self.identity.to_string();
        let mut backoff = Backoff::new();
        let mut refused: u32 = 0;
        loop {
            let sent = self.mark();
            let created = self
                .client
                .create_ephemeral_lease(NAMESPACE_AGENTS, &self.agent, &holder, self.ttl)
                .await;
            let error = match created {
                Ok(fence) => {
                    self.vouch(sent);
                    return Ok(fence);
                }
                Err(Error::AlreadyExists(_)) => match self.take_over().await {
                    Ok(Some(fence)) => return Ok(fence),
                    Ok(None) => continue,
                    Err(Blocked::Superseded(error)) => return Err(error),
                    Err(Blocked::Foreign(holder)) => {
                        refused += 1;
                        self.refused(&holder, refused).await;
                        // A predecessor's session ends within its time; somebody who lives keeps it.
                        sleep(if refused > REFUSED_SOON { self.ttl } else { self.ttl / 3 }).await;
                        continue;
                    }
                    Err(Blocked::Failed(error)) => error,
                },
                Err(error) => error,
            };
            tracing::warn!(agent = self.agent, %error, "no session yet");
            sleep(backoff.next()).await;
        }
    }

    /// Somebody else holds the session: says so here, and, once it is clear that it lives, on the Agent object.
    async fn refused(&self, holder: &str, times: u32) {
        let agent = &self.agent;
        if times <= REFUSED_SOON {
            tracing::warn!(
                agent,
                holder,
                "another machine, or this one before its restart, holds the session of this name"
            );
            return;
        }
        let message = format!(
            "a second machine uses the name {agent} and is refused; the first one goes on. Give one of them another name with --name, and, if \
             one is a copy of the other's disk, an empty data directory"
        );
        tracing::error!(agent, holder, "{message}");
        if times == REFUSED_SOON + 1 {
            let event = self.duplicate(message);
            if let Err(error) = self.client.create::<Event>(Some(NAMESPACE_DEFAULT), &event).await {
                tracing::debug!(agent, %error, "the event about it is not recorded");
            }
        }
    }

    /// An event about the Agent object; its name is that of this process, so that it is recorded once.
    fn duplicate(&self, message: String) -> Event {
        let process = self.identity.to_string().replace('/', "-").to_lowercase();
        Event {
            metadata: ObjectMeta {
                name: Some(
                    format!("{}.duplicate.{process}", self.agent)
                        .chars()
                        .take(253)
                        .collect(),
                ),
                namespace: Some(NAMESPACE_DEFAULT.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(API_VERSION.to_owned()),
                kind: Some("Agent".to_owned()),
                name: Some(self.agent.clone()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".to_owned()),
            reason: Some("DuplicateAgent".to_owned()),
            message: Some(message),
            reporting_component: Some("muster-agentd".to_owned()),
            reporting_instance: Some(self.agent.clone()),
            action: Some("Register".to_owned()),
            ..Event::default()
        }
    }

    /// The time by the clock of the runtime's guard.
    fn mark(&self) -> Option<Duration> {
        self.runtime.guard().map(Guard::now)
    }

    /// Tells the runtime that containers with a fence may go on: the session was acknowledged, and asked for at that time.
    fn vouch(&self, asked: Option<Duration>) {
        if let (Some(guard), Some(at)) = (self.runtime.guard(), asked)
            && let Err(error) = guard.vouch(at)
        {
            tracing::error!(agent = self.agent, %error, "tasks that fence themselves may end though the agent is fine");
        }
    }

    /// Looks at who holds the session. `None`: nobody any more, so try again.
    async fn take_over(&self) -> Result<Option<Fence>, Blocked> {
        let lease: Lease = match self.client.get(Some(NAMESPACE_AGENTS), &self.agent).await {
            Ok(lease) => lease,
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(Blocked::Failed(error)),
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default();
        match judge(&self.identity, holder) {
            Held::Ours => {
                let held = self.client.held_lease(NAMESPACE_AGENTS, &self.agent, holder).await;
                let Some(fence) = held.map_err(Blocked::Failed)? else {
                    return Ok(None);
                };
                // Nobody knows when it was granted.
                let sent = self.mark();
                match self.client.renew(&fence).await {
                    Ok(()) => self.vouch(sent),
                    Err(Error::Fenced(_) | Error::NotFound(_)) => return Ok(None),
                    Err(error) => return Err(Blocked::Failed(error)),
                }
                Ok(Some(fence))
            }
            Held::Predecessor => {
                let only_if = Preconditions {
                    uid: lease.metadata.uid.clone(),
                    resource_version: None,
                };
                match self
                    .client
                    .delete::<Lease>(Some(NAMESPACE_AGENTS), &self.agent, &only_if)
                    .await
                {
                    Ok(_) | Err(Error::NotFound(_) | Error::Conflict(_)) => Ok(None),
                    Err(error) => Err(Blocked::Failed(error)),
                }
            }
            Held::Successor => Err(Blocked::Superseded(Superseded(holder.to_owned()))),
            Held::Foreign => Err(Blocked::Foreign(holder.to_owned())),
        }
    }

    /// Renews until the session is gone. Without an answer for two thirds of its time the session counts as doubtful, and is not used
    /// until one comes.
    async fn renew(&self, session: &Session) {
        let mut acknowledged = Instant::now();
        self.out.send_replace(Some(session.clone()));
        let mut doubtful = false;
        loop {
            tokio::select! {
                biased;
                () = self.doubt.notified() => {}
                () = sleep(if doubtful { self.ttl / 6 } else { self.ttl / 3 }) => {}
            }
            let (sent, mark) = (Instant::now(), self.mark());
            let answer = tokio::time::timeout(self.ttl / 3, self.client.renew(&session.fence)).await;
            match answer {
                Ok(Ok(())) => {
                    acknowledged = sent;
                    self.vouch(mark);
                    if std::mem::take(&mut doubtful) {
                        self.out.send_replace(Some(session.clone()));
                    }
                }
                Ok(Err(Error::Fenced(_) | Error::NotFound(_))) => return,
                Ok(Err(error)) => tracing::warn!(agent = self.agent, %error, "the session is not renewed"),
                Err(_) => tracing::warn!(agent = self.agent, "no answer to the renewal of the session"),
            }
            if !doubtful && acknowledged.elapsed() >= self.ttl * 2 / 3 {
                doubtful = true;
                self.out.send_replace(None);
            }
        }
    }
}

enum Blocked {
    Superseded(Superseded),
    Foreign(String),
    Failed(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(machine: &str, incarnation: u64) -> Identity {
        Identity {
            machine: machine.to_owned(),
            boot_id: "b".to_owned(),
            incarnation,
        }
    }

    #[test]
    fn only_an_earlier_process_of_the_same_machine_is_taken_over_from() {
        let ours = identity("m1", 5);
        for (holder, held) in [
            (identity("m1", 5).to_string(), Held::Ours),
            (identity("m1", 4).to_string(), Held::Predecessor),
            ("m1/another-boot/4".to_owned(), Held::Foreign),
            ("m1/another-boot/6".to_owned(), Held::Foreign),
            (identity("m1", 6).to_string(), Held::Successor),
            (identity("m2", 4).to_string(), Held::Foreign),
            ("m1".to_owned(), Held::Foreign),
            (String::new(), Held::Foreign),
        ] {
            assert_eq!(judge(&ours, &holder), held, "{holder}");
        }
    }
}
