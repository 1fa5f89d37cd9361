//! Who ends containers whose caller has lost the right to have them run.

use std::time::Duration;

use super::shared::system;
use super::{ProcessRuntime, clock, shim};
use crate::{Error, Guard};

impl Guard for ProcessRuntime {
    fn now(&self) -> Duration {
        clock::boottime()
    }

    /// One small write to a page that is there already; not synced, because nothing of it matters after a restart of the machine.
    fn vouch(&self, at: Duration) -> Result<(), Error> {
        shim::vouch(&self.shared.config.vouched(), at).map_err(|error| system("vouching for containers", &error))
    }
}
