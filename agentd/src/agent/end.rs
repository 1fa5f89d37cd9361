//! The part of the loop that is about its end: what is waited for when the agent is told to stop.

use std::time::Duration;

use muster_runtime::{Container, State};
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};

use super::Agent;
use crate::limits::{GRACE_DEFAULT, SHUTDOWN_PATIENCE, STOP_AGAIN};

impl Agent {
    /// What was begun is ended: a call of the runtime that is cut off would have to be found out about by the next process.
    pub(super) async fn finish(mut self) -> Result<(), JoinError> {
        let rest = async {
            while let Some(done) = self.jobs.join_next().await {
                done?;
            }
            Ok(())
        };
        timeout(SHUTDOWN_PATIENCE, rest).await.unwrap_or(Ok(()))
    }

    pub(super) fn drain_patience(&self) -> Duration {
        let graces = self
            .view
            .tasks()
            .values()
            .filter_map(|task| task.spec.kill.as_ref()?.grace_period);
        let grace = graces
            .map(|grace| grace.duration())
            .max()
            .unwrap_or_default()
            .max(GRACE_DEFAULT);
        grace + STOP_AGAIN + SHUTDOWN_PATIENCE
    }

    /// Whether everything was to be stopped and is, and the API server knows it (if it can be told).
    pub(super) fn drained(&self) -> bool {
        let Some(latest) = self.draining else {
            return false;
        };
        let left = |container: &Container| !matches!(container.state, State::Exited(_));
        // What was never joined has started nothing.
        let done = !self.joined || self.idle && !self.stale && !self.containers.iter().any(left);
        done || Instant::now() >= latest
    }
}
