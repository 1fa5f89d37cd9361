//! What runs besides requests: the hub follows the store, expired events and tokens go, and namespaces that are being deleted are emptied.

use std::sync::{Arc, Weak};
use std::time::Duration;

use muster_store::{Compare, Op};
use tokio::task::JoinHandle;

use crate::hub::{Filter, Part};
use crate::limits;
use crate::registry::{Guard, GuardedTxn, last_seen, purge};
use crate::routes::tokens;
use crate::selector::{FieldSelector, LabelSelector};
use crate::state::State;

/// How long to wait before a namespace is looked at again that could not be emptied.
const PURGE_RETRY: Duration = Duration::from_secs(1);

/// How long to wait for a write before a namespace is looked at again all the same.
const PURGE_PATIENCE: Duration = Duration::from_secs(10);

/// Starts all of it. Nothing here keeps the server alive.
pub(crate) fn start(state: &Arc<State>) -> Vec<JoinHandle<()>> {
    let (hub, store) = (state.hub.clone(), state.store.clone());
    let weak = Arc::downgrade(state);
    vec![
        tokio::spawn(async move { hub.follow(store).await }),
        tokio::spawn(sweep_events(weak.clone())),
        tokio::spawn(empty_namespaces(weak)),
    ]
}

async fn sweep_events(state: Weak<State>) {
    loop {
        tokio::time::sleep(limits::EVENT_SWEEP).await;
        let Some(state) = state.upgrade() else {
            return;
        };
        if let Err(error) = sweep(&state).await {
            tracing::warn!(%error, "expired events are kept for now");
        }
        if let Err(error) = tokens::sweep(&state).await {
            tracing::warn!(%error, "expired join tokens are kept for now");
        }
    }
}

/// Deletes the events whose time is over.
async fn sweep(state: &State) -> Result<(), crate::error::ApiError> {
    let Some(kind) = state.resources.stored("events") else {
        return Ok(());
    };
    let now = state.env.now();
    let ttl = jiff::SignedDuration::try_from(limits::EVENT_TTL).unwrap_or(jiff::SignedDuration::MAX);
    let found = state.hub.list(kind.id, &Filter::all(None), &Part::default());
    let expired = found.objects.iter().filter(|object| {
        let seen = last_seen(&object.json());
        seen.is_none_or(|seen| now.duration_since(seen) > ttl)
    });
    let expired: Vec<_> = expired.collect();
    for some in expired.chunks(limits::SWEEP_OPS) {
        let mut txn = GuardedTxn::new();
        for object in some {
            txn.compare(Compare::modified(object.key.clone(), object.revision), Guard::Subject);
            txn.write(Op::delete(object.key.clone()));
        }
        // Whatever was written in between is looked at again next time.
        state.commit(txn).await?;
    }
    Ok(())
}

async fn empty_namespaces(state: Weak<State>) {
    loop {
        let Some(strong) = state.upgrade() else {
            return;
        };
        let Some(kind) = strong.resources.stored("namespaces").map(|kind| kind.id) else {
            return;
        };
        let (mut namespaces, mut anything) = (strong.hub.touched(kind), strong.hub.reached());
        let waiting = purge_all(&strong, kind).await;
        drop(strong);
        match waiting {
            None => _ = namespaces.changed().await,
            Some(delay) => {
                tokio::time::sleep(delay).await;
                // What holds it goes with a write; a store that could not answer may answer later.
                _ = tokio::time::timeout(PURGE_PATIENCE, anything.changed()).await;
            }
        }
    }
}

/// Empties every namespace that is being deleted. `None`: none is left; else, when to look again.
async fn purge_all(state: &State, kind: crate::hub::KindId) -> Option<Duration> {
    let fields = FieldSelector::parse("status.phase=Terminating").ok()?;
    let filter = Filter::new(state.hub.kind(kind), None, LabelSelector::default(), &fields).ok()?;
    let found = state.hub.list(kind, &filter, &Part::default());
    let mut waiting = None;
    for namespace in found.objects {
        match purge(state, namespace.name()).await {
            Ok(true) => (),
            Ok(false) => waiting = Some(PURGE_RETRY),
            Err(error) => {
                tracing::warn!(namespace = namespace.name(), %error, "the namespace is not empty yet");
                waiting = Some(PURGE_RETRY);
            }
        }
    }
    waiting
}
