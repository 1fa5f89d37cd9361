//! What fake commands use.

use std::collections::BTreeMap;

use super::{FakeState, Machine};
use crate::{ContainerId, Usage, Used};

impl Machine {
    /// A fake command uses just what was asked for it: its part of a CPU, half of its memory, and one process.
    pub(in super::super) fn usage(&self, ids: &[ContainerId]) -> Usage {
        let Some((now, _)) = self.present else {
            return Usage::default();
        };
        let used = |id: &ContainerId| {
            let fake = self.containers.get(id)?;
            let FakeState::Running(running) = &fake.state else {
                return None;
            };
            let limits = &fake.spec.limits;
            let millis = u32::try_from(limits.cpu_request_milli).unwrap_or(u32::MAX);
            let used = Used {
                cpu: Some((now - running.started) * millis / 1000),
                memory_bytes: limits.memory_bytes.map(|limit| limit / 2),
                memory_limit_bytes: limits.memory_bytes,
                pids: Some(1),
                oom_kills: Some(0),
            };
            Some((id.clone(), used))
        };
        let containers: BTreeMap<ContainerId, Used> = ids.iter().filter_map(used).collect();
        let machine = Used {
            cpu: containers.values().filter_map(|used| used.cpu).reduce(|a, b| a + b),
            memory_bytes: containers
                .values()
                .filter_map(|used| used.memory_bytes)
                .reduce(|a, b| a + b),
            ..Used::default()
        };
        Usage { machine, containers }
    }
}
