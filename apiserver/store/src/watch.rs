//! Watches as positions in the history.
//!
//! A watch keeps the revision that it has reached and a handful of batches, and is woken when there is more: there is no
//! queue that could overflow and no event that could be lost. Who is too slow meets the end of the history and is told so.
//! Between batches that say nothing about its prefix, a watch that has caught up reports its progress.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::Revision;
use crate::core::Batch;
use crate::types::{Error, Prefix, WatchError, WatchEvent, WatchStream};

/// Where watches read.
#[async_trait]
pub(crate) trait Source: Send + Sync + 'static {
    /// Some batches after `after`, oldest first and without gaps; empty: there are none yet.
    async fn since(self: Arc<Self>, after: Revision) -> Result<Vec<Arc<Batch>>, WatchError>;

    /// When to look again even if nobody wakes us.
    fn next_deadline(&self) -> Option<Instant>;
}

struct Watch<S> {
    source: Weak<S>,
    wake: watch::Receiver<()>,
    prefix: Prefix,
    /// Everything up to here has been looked at.
    position: Revision,
    /// Everything up to here has been reported.
    reported: Revision,
    ahead: VecDeque<Arc<Batch>>,
}

/// The changes under `prefix` after `after`. `wake` changes with each new batch, and closes with the store.
pub(crate) fn stream<S: Source>(
    source: &Arc<S>,
    wake: watch::Receiver<()>,
    prefix: Prefix,
    after: Revision,
) -> WatchStream {
    let source = Arc::downgrade(source);
    let watch = Watch {
        source,
        wake,
        prefix,
        position: after,
        reported: after,
        ahead: VecDeque::new(),
    };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(event) => Some((Ok(event), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl<S: Source> Watch<S> {
    async fn next(&mut self) -> Result<WatchEvent, WatchError> {
        loop {
            while let Some(batch) = self.ahead.pop_front() {
                self.position = batch.revision;
                if let Some(event) = batch.under(&self.prefix) {
                    self.reported = self.position;
                    return Ok(event);
                }
            }
            // Seen before it is read: a batch that comes in between wakes us once too often, never once too little.
            self.wake.borrow_and_update();
            let source = self.source.upgrade().ok_or_else(closed)?;
            let deadline = source.next_deadline();
            self.ahead = source.since(self.position).await?.into();
            if !self.ahead.is_empty() {
                continue;
            }
            if self.reported < self.position {
                self.reported = self.position;
                return Ok(WatchEvent::Progress(self.position));
            }
            self.sleep(deadline).await?;
        }
    }

    async fn sleep(&mut self, deadline: Option<Instant>) -> Result<(), WatchError> {
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.wake.changed() => changed.map_err(|_| closed()),
            () = timer => Ok(()),
        }
    }
}

fn closed() -> WatchError {
    WatchError::Store(Error::Unavailable("the store was closed".to_owned()))
}
