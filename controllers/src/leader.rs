//! Leadership: to hold the lease `muster-system/muster-controllers`.
//!
//! To create the lease is to win; to renew it is to stay; a standby waits in the watch for its deletion. Promises: a holder
//! stops acting at two thirds of the time to live after it *sent* its last acknowledged renewal, by tokio's monotonic clock,
//! so it stops before the store lets somebody else in; whatever still leaves it later is refused by its fence, also when it leads again. What
//! must never happen here: a decision by the wall clock, a lease given back while a driver still runs, or two terms with one fence.

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

/// How long an end may wait for an API server that does not answer.
const RELEASE_MAX: Duration = Duration::from_secs(1);

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
        for _ in 0..2 {
            let created = self
                .client
                .create_ephemeral_lease(namespace, name, self.identity, self.ttl);
            match created.await {
                Ok(fence) => return Ok(Some(fence)),
                Err(Error::AlreadyExists(_)) => {}
                Err(error) => return Err(error),
            }
            // An attempt that won may not have been answered, and a term may have ended without giving its lease back. What was sent in
            // that term may still be on its way, so it is not gone on with: each term has a fence of its own.
            let Some(fence) = self.client.held_lease(namespace, name, self.identity).await? else {
                break;
            };
            self.client.release(&fence).await?;
        }
        Ok(None)
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
        match tokio::time::timeout(RELEASE_MAX, self.client.release(&self.fence)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease was not given back; it will expire"),
            Err(_) => tracing::debug!("the lease was not given back in time; it will expire"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::Full;
    use muster_client::kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    /// One lease, kept as the API server keeps it.
    #[derive(Default)]
    struct Keeper {
        revision: u64,
        held: Option<(u64, Value, Instant)>,
        /// Answers are lost after the request was done.
        mute: bool,
        renewals: usize,
    }

    impl Keeper {
        fn answer(&mut self, method: &Method, path: &str, fence: Option<u64>, body: &Value) -> (u16, Value) {
            let now = Instant::now();
            self.held = self.held.take().filter(|(_, _, until)| *until > now);
            let current = self.held.as_ref().map(|(revision, _, _)| *revision);
            let refused =
                |code: u16, reason: &str| (code, json!({ "code": code, "reason": reason, "message": reason }));
            if fence.is_some() && fence != current {
                return refused(412, "Fenced");
            }
            match (method, path.ends_with("/renew"), &mut self.held) {
                (&Method::POST, true, Some((_, _, until))) => {
                    self.renewals += 1;
                    *until = now + TTL;
                    (200, json!({}))
                }
                (&Method::POST, false, Some(_)) => refused(409, "AlreadyExists"),
                (&Method::POST, false, None) => {
                    self.revision += 1;
                    let mut lease = body.clone();
                    lease["metadata"]["resourceVersion"] = json!(self.revision.to_string());
                    self.held = Some((self.revision, lease.clone(), now + TTL));
                    (201, lease)
                }
                (&Method::GET, _, Some((_, lease, _))) => (200, lease.clone()),
                (&Method::DELETE, _, Some(_)) => {
                    self.held = None;
                    (200, json!({}))
                }
                _ => refused(404, "NotFound"),
            }
        }
    }

    fn keeper() -> (Client, Arc<Mutex<Keeper>>) {
        let keeper = Arc::new(Mutex::new(Keeper::default()));
        let kept = keeper.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let keeper = kept.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let fence = parts
                    .headers
                    .get(names::HEADER_FENCE)
                    .map(|value| value.to_str().expect("text"));
                let fence = fence.map(|text| text.parse::<Fence>().expect("a fence").revision);
                let (code, answer, mute) = {
                    let mut keeper = keeper.lock().expect("keeper");
                    let (code, answer) = keeper.answer(&parts.method, parts.uri.path(), fence, &body);
                    (code, answer, keeper.mute)
                };
                if mute {
                    std::future::pending::<()>().await;
                }
                let body = Full::new(Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(Response::builder().status(code).body(body).expect("a response"))
            }
        });
        (Client::in_process(service, "token"), keeper)
    }

    fn candidate<'a>(client: &'a Client, feed: &'a Feed, identity: &'a str) -> Candidate<'a> {
        Candidate {
            client,
            feed,
            identity,
            ttl: TTL,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stays_and_a_standby_takes_over_when_it_leaves() {
        let (client, keeper) = keeper();
        let feed = Feed::new();
        let mut first = candidate(&client, &feed, "first").campaign().await;
        let second = candidate(&client, &feed, "second");
        let mut campaign = std::pin::pin!(second.campaign());
        let waited = tokio::select! {
            biased;
            () = first.keep() => panic!("the first lost its lease"),
            _ = &mut campaign => panic!("two lead"),
            () = tokio::time::sleep(TTL * 10) => true,
        };
        assert!(waited && keeper.lock().expect("keeper").renewals >= 39);
        let fence = first.fence().clone();
        first.release().await;
        let second = campaign.await;
        assert!(second.fence().revision > fence.revision);
        assert!(matches!(client.renew(&fence).await, Err(Error::Fenced(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hears_nothing_stops_before_the_lease_ends() {
        let (client, keeper) = keeper();
        let feed = Feed::new();
        let mut term = candidate(&client, &feed, "first").campaign().await;
        let leadership = term.leadership();
        let start = Instant::now();
        assert!(leadership.borrow().may_act());
        keeper.lock().expect("keeper").mute = true;
        term.keep().await;
        assert_eq!(start.elapsed(), TTL * 2 / 3);
        assert!(!leadership.borrow().may_act());
        assert!(
            keeper.lock().expect("keeper").held.is_some(),
            "nobody else can lead yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_leader_may_not_act_when_it_wakes() {
        let (client, _) = keeper();
        let feed = Feed::new();
        let mut term = candidate(&client, &feed, "first").campaign().await;
        let leadership = term.leadership();
        // Nothing of this process runs for a while; the first thing that does is not the renewal.
        tokio::time::advance(TTL).await;
        assert!(!leadership.borrow().may_act());
        term.keep().await;
        assert_eq!(*leadership.borrow(), Leadership::Standby);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_lease_was_taken_away_stops_at_the_next_renewal() {
        let (client, keeper) = keeper();
        let feed = Feed::new();
        let mut term = candidate(&client, &feed, "first").campaign().await;
        keeper.lock().expect("keeper").held = None;
        let start = Instant::now();
        term.keep().await;
        assert_eq!(start.elapsed(), TTL / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_win_whose_answer_was_lost_is_found_and_won_again() {
        let (client, keeper) = keeper();
        let feed = Feed::new();
        keeper.lock().expect("keeper").mute = true;
        let first = candidate(&client, &feed, "first");
        let mut campaign = std::pin::pin!(first.campaign());
        let lost = tokio::time::timeout(Duration::from_secs(1), &mut campaign).await;
        assert!(lost.is_err(), "the answer is lost");
        keeper.lock().expect("keeper").mute = false;
        let again = candidate(&client, &feed, "first");
        let term = tokio::time::timeout(Duration::from_secs(1), again.campaign())
            .await
            .expect("it finds its lease");
        assert_eq!(term.fence().revision, 2, "each term has a fence of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_term_sent_that_could_not_give_its_lease_back_is_refused_in_the_next() {
        let (client, keeper) = keeper();
        let feed = Feed::new();
        let first = candidate(&client, &feed, "first").campaign().await;
        let fence = first.fence().clone();
        keeper.lock().expect("keeper").mute = true;
        // Not even the request arrives.
        let held = keeper.lock().expect("keeper").held.clone();
        first.release().await;
        {
            let mut state = keeper.lock().expect("keeper");
            (state.held, state.mute) = (held, false);
        }
        let again = candidate(&client, &feed, "first").campaign().await;
        assert!(again.fence().revision > fence.revision);
        assert!(matches!(client.renew(&fence).await, Err(Error::Fenced(_))));
    }
}
