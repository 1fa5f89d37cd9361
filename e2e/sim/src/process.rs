//! Processes: they can be killed at any await, and stopped at any.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;

/// A running process.
pub(crate) struct Process {
    cancel: CancellationToken,
    joined: JoinHandle<()>,
}

impl Process {
    /// Starts a process whose loop makes progress only while the gate is open.
    pub(crate) fn start<F>(main: F, cancel: CancellationToken, gate: &Gate) -> Process
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Process {
            cancel,
            joined: tokio::spawn(gate.hold(main)),
        }
    }

    /// As `kill -9`: nothing it was about to do happens.
    pub(crate) fn kill(self) {
        self.joined.abort();
        self.cancel.cancel();
    }

    /// Whether it has not panicked, nor ended without being asked to.
    pub(crate) fn is_well(&self) -> bool {
        !self.joined.is_finished()
    }
}
