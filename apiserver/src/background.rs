//! What runs besides requests: the hub follows the store, expired events and tokens go, and definitions of kinds are looked after.

use std::sync::{Arc, Weak};

use muster_store::{Compare, Op};
use tokio::task::JoinHandle;

use crate::custom;
use crate::hub::{Filter, Part};
use crate::limits;
use crate::rbac::aggregation;
use crate::registry::{Guard, GuardedTxn, last_seen};
use crate::routes::tokens;
use crate::state::State;

/// Starts all of it. Nothing here keeps the server alive.
pub(crate) fn start(state: &Arc<State>) -> Vec<JoinHandle<()>> {
    let (hub, store) = (state.hub.clone(), state.store.clone());
    let weak = Arc::downgrade(state);
    vec![
        tokio::spawn(async move { hub.follow(store).await }),
        tokio::spawn(sweep_events(weak.clone())),
        tokio::spawn(aggregation::run(weak.clone())),
        tokio::spawn(custom::clean_up(weak)),
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
