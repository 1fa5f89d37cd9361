//! The controllers: planners, and the runtime that they share.
//!
//! Each planner is a pure function from a view to writes, in a file of its own under `planners`. The runtime does the rest:
//! one ordered watch, one loop, one writer, under one leader's fence. Promises: of several processes only one acts, and what a
//! former leader still sends is refused; nothing here is remembered that a restart would lose; a planner that panics ends the
//! process. What must never happen here: a write without the fence, ambient time or randomness, a planner that awaits. Tested
//! planner by planner on views, with paused time, and against the real API server in process.

pub mod leader;
pub mod planners;
pub mod runtime;

use std::sync::Arc;
use std::time::Duration;

use muster_allocator::Params;
use muster_api::duration::Span;
use muster_api::env::Env;
use muster_client::Client;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use leader::{Candidate, Term};
use runtime::Planner;
use runtime::driver::{Clock, Ended, drive};
use runtime::event::{Notes, write_events};
use runtime::executor::{Executor, publish_reports};
use runtime::feed::Feed;

/// How the controllers run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unique to this process; a fresh one when empty.
    pub identity: String,
    /// How long leadership lasts without renewal. Whole seconds, at least one.
    pub lease_ttl: Duration,
    /// How long an offer stands.
    pub offer_ttl: Span,
    /// For how long the built-in scheduler refuses offers that none of its tasks fits in.
    pub refuse: Span,
    /// How long events are kept.
    pub event_ttl: Span,
    /// The least time between two reports of reasons.
    pub report_pause: Duration,
    /// How resources are shared out.
    pub params: Params,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            identity: String::new(),
            lease_ttl: Duration::from_secs(3),
            offer_ttl: Span::from_secs(30),
            refuse: Span::from_secs(1),
            event_ttl: Span::from_secs(3600),
            report_pause: Duration::from_millis(200),
            params: Params::default(),
        }
    }
}

/// Why the controllers ended although nobody asked them to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of them panicked.
    #[error("the controllers' {part} panicked")]
    Panicked {
        /// Which part.
        part: &'static str,
        /// How.
        #[source]
        source: JoinError,
    },
}

/// Runs the controllers until cancelled: waits for leadership, leads, and waits again. Gives the lease back at the end.
pub async fn run(client: Client, env: Arc<dyn Env>, config: Config, cancel: CancellationToken) -> Result<(), Error> {
    let mut config = config;
    if config.identity.is_empty() {
        config.identity = format!("controllers-{}", env.uid());
    }
    config.lease_ttl = Duration::from_secs(config.lease_ttl.as_secs().max(1));
    let feed = Feed::new();
    let watching = CancellationToken::new();
    // Also when this future is dropped: nobody else would end the feed.
    let _end = watching.clone().drop_guard();
    let mut feeding = tokio::spawn({
        let (feed, client, watching) = (feed.clone(), client.clone(), watching.clone());
        async move { feed.run(&client, &watching).await }
    });
    let result = loop {
        let candidate = Candidate {
            client: &client,
            feed: &feed,
            identity: &config.identity,
            ttl: config.lease_ttl,
        };
        let term = tokio::select! {
            biased;
            () = cancel.cancelled() => break Ok(()),
            fed = &mut feeding => break panicked("feed", fed),
            term = candidate.campaign() => term,
        };
        tracing::info!(fence = %term.fence(), identity = %config.identity, "leading");
        let led = tokio::select! {
            biased;
            fed = &mut feeding => break panicked("feed", fed),
            led = lead(term, &client, &env, &config, &feed, &cancel) => led,
        };
        match led {
            Ok(()) if cancel.is_cancelled() => break Ok(()),
            Ok(()) => tracing::info!(identity = %config.identity, "standing by"),
            Err(error) => break Err(error),
        }
    };
    watching.cancel();
    if !feeding.is_finished() {
        panicked("feed", feeding.await)?;
    }
    result
}

fn panicked(part: &'static str, joined: Result<(), JoinError>) -> Result<(), Error> {
    joined.map_err(|source| Error::Panicked { part, source })
}

/// Leads for one term. Returns only when everything that acted in it has ended.
async fn lead(
    mut term: Term,
    client: &Client,
    env: &Arc<dyn Env>,
    config: &Config,
    feed: &Arc<Feed>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let acting = CancellationToken::new();
    let mut parts = start(&term, client, env, config, feed, &acting);
    let result = loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break Ok(()),
            () = term.keep() => break Ok(()),
            joined = parts.join_next() => match joined {
                Some(Err(source)) => break Err(Error::Panicked { part: "planner", source }),
                Some(Ok(Some(Ended::Fenced))) | None => break Ok(()),
                Some(Ok(Some(Ended::Cancelled) | None)) => {}
            },
        }
    };
    term.resign();
    acting.cancel();
    while let Some(joined) = parts.join_next().await {
        if let Err(source) = joined
            && result.is_ok()
        {
            return Err(Error::Panicked {
                part: "planner",
                source,
            });
        }
    }
    term.release().await;
    result
}

/// Starts everything that acts in a term.
fn start(
    term: &Term,
    client: &Client,
    env: &Arc<dyn Env>,
    config: &Config,
    feed: &Arc<Feed>,
    acting: &CancellationToken,
) -> JoinSet<Option<Ended>> {
    let client = client.fenced(term.fence());
    let (notes, taken) = Notes::new();
    let reports = watch::Sender::new(None);
    let mut parts = JoinSet::new();
    parts.spawn({
        let (client, env, acting) = (client.clone(), env.clone(), acting.clone());
        async move {
            write_events(client, env, taken, acting).await;
            None
        }
    });
    parts.spawn({
        let publishing = publish_reports(client.clone(), reports.subscribe(), config.report_pause);
        let acting = acting.clone();
        async move {
            acting.run_until_cancelled(publishing).await;
            None
        }
    });
    let executor = Executor::new(client, term.leadership(), notes, reports);
    let mut starter = Starter {
        parts,
        feed: feed.clone(),
        executor,
        clock: Clock::begin(env.clone()),
        acting: acting.clone(),
        revision: term.fence().revision,
    };
    starter.add(planners::Offers::new(config));
    starter.add(planners::Scheduling::new(config));
    starter.add(planners::Reasons::new(config));
    starter.add(planners::Frameworks);
    starter.add(planners::Agents);
    starter.add(planners::Unreachable);
    starter.add(planners::Tasks);
    starter.add(planners::Quotas);
    starter.add(planners::Events::new(config));
    starter.add(planners::Garbage);
    starter.add(planners::Namespaces);
    starter.parts
}

struct Starter {
    parts: JoinSet<Option<Ended>>,
    feed: Arc<Feed>,
    executor: Executor,
    clock: Clock,
    acting: CancellationToken,
    revision: u64,
}

impl Starter {
    fn add<P: Planner>(&mut self, planner: P) {
        let (feed, executor) = (self.feed.clone(), self.executor.clone());
        let (clock, acting, revision) = (self.clock.clone(), self.acting.clone(), self.revision);
        self.parts.spawn(async move {
            // A leader first sees its own lease, and with it everything that its predecessor did.
            acting.run_until_cancelled(feed.reached(revision)).await;
            Some(drive(planner, feed, executor, clock, acting).await)
        });
    }
}
