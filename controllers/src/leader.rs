//! Leadership: to hold the lease `muster-system/muster-controllers`.
//!
//! To create the lease is to win; to renew it is to stay; a standby waits in the watch for its deletion. Promises: a holder
//! stops acting at two thirds of the time to live after it *sent* its last acknowledged renewal, by tokio's monotonic clock,
//! so it stops before the store lets somebody else in; whatever still leaves it later is refused by its fence. What must never
//! happen here: a decision by the wall clock, or a lease given back while a driver still runs.

use std::time::Duration;

use muster_api::names;
use muster_client::{Client, Error, Fence};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::runtime::Id;
use crate::runtime::feed::Feed;

/// The least time between two attempts to win: the view may lag behind the refusal of the first.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// Whether this process leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Somebody else leads, or nobody.
    Standby,
    /// It leads.
    Leading {
        /// The right to act.
        fence: Fence,
        /// Until when, unless it is renewed.
        until: Instant,
    },
}

impl Leadership {
    /// Whether a write may be sent now.
    pub fn may_act(&self) -> bool {
        match self {
            Leadership::Standby => false,
            Leadership::Leading { until, .. } => Instant::now() < *until,
        }
    }
}

/// Somebody who wants to lead.
pub struct Candidate<'a> {
    /// Unfenced.
    pub client: &'a Client,
    /// Where the end of another's lease is seen.
    pub feed: &'a Feed,
    /// Unique to this process.
    pub identity: &'a str,
    /// How long the lease lives without renewal. Whole seconds.
    pub ttl: Duration,
}

impl Candidate<'_> {
    /// Waits until this process leads.
    pub async fn campaign(&self) -> Term {
        let lease = Id::new(names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS);
        let mut pause = ATTEMPT_PAUSE;
        loop {
            let sent = Instant::now();
            match self.attempt(&lease).await {
                Ok(Some(fence)) => return Term::new(self.client.clone(), fence, self.ttl, sent),
                Ok(None) => {
                    pause = ATTEMPT_PAUSE;
                    tokio::time::sleep(pause).await;
                    // Deletion is an event; the time limit is for a view that stands still.
                    let _ = tokio::time::timeout(self.ttl, self.vacancy(&lease)).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "campaign failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
        }
    }

    async fn attempt(&self, lease: &Id) -> Result<Option<Fence>, Error> {
        let (namespace, name) = (&lease.namespace, &lease.name);
        match self
            .client
            .create_ephemeral_lease(namespace, name, self.identity, self.ttl)
            .await
        {
            Ok(fence) => Ok(Some(fence)),
            Err(Error::AlreadyExists(_)) => {
                // An earlier attempt may have won and its answer may have been lost.
                let held = self.client.held_lease(namespace, name, self.identity).await?;
                if let Some(fence) = &held {
                    self.client.renew(fence).await?;
                }
                Ok(held)
            }
            Err(error) => Err(error),
        }
    }

    async fn vacancy(&self, lease: &Id) {
        let mut revisions = self.feed.revisions();
        loop {
            revisions.borrow_and_update();
            if !self.feed.view().leases.contains_key(lease) {
                return;
            }
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The time during which this process leads.
pub struct Term {
    client: Client,
    fence: Fence,
    ttl: Duration,
    acknowledged: Instant,
    leadership: watch::Sender<Leadership>,
}

impl Term {
    fn new(client: Client, fence: Fence, ttl: Duration, acknowledged: Instant) -> Term {
        let leadership = Leadership::Leading {
            fence: fence.clone(),
            until: acknowledged + ttl * 2 / 3,
        };
        Term {
            client,
            fence,
            ttl,
            acknowledged,
            leadership: watch::Sender::new(leadership),
        }
    }

    /// The right to act in this term.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether the term lasts, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Renews the lease, and returns when the term is over. To drop the future and to call again is fine.
    pub async fn keep(&mut self) {
        let mut next = self.acknowledged + self.ttl / 4;
        loop {
            let deadline = self.acknowledged + self.ttl * 2 / 3;
            let renewal = async {
                tokio::time::sleep_until(next).await;
                let sent = Instant::now();
                (sent, self.client.renew(&self.fence).await)
            };
            let renewed = tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => None,
                renewed = renewal => Some(renewed),
            };
            match renewed {
                None => {
                    tracing::warn!(fence = %self.fence, "no renewal was acknowledged in time");
                    break;
                }
                Some((sent, Ok(()))) => {
                    self.acknowledged = sent;
                    next = sent + self.ttl / 4;
                    self.leadership.send_replace(Leadership::Leading {
                        fence: self.fence.clone(),
                        until: sent + self.ttl * 2 / 3,
                    });
                }
                Some((_, Err(Error::Fenced(_) | Error::NotFound(_) | Error::Gone(_)))) => {
                    tracing::warn!(fence = %self.fence, "the lease is gone");
                    break;
                }
                Some((_, Err(error))) => {
                    tracing::debug!(%error, "renewal failed");
                    next = Instant::now() + self.ttl / 16;
                }
            }
        }
        self.resign();
    }

    /// Ends the term: from now on nothing is written under it.
    pub fn resign(&self) {
        self.leadership.send_replace(Leadership::Standby);
    }

    /// Gives the lease back, after everything that acted under it has ended.
    pub async fn release(self) {
        self.resign();
        if let Err(error) = self.client.release(&self.fence).await {
            tracing::debug!(%error, "the lease was not given back; it will expire");
        }
    }
}
