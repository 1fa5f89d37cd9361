//! What the machine and its containers have used, from the kernel's own counts.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use super::cgroup::Cgroup;
use super::shared::{Shared, blocking};
use crate::{ContainerId, Error, Usage, Used};

impl Shared {
    /// Reads what these have used, and the whole machine.
    pub(super) async fn usage(self: &Arc<Self>, ids: &[ContainerId]) -> Result<Usage, Error> {
        let (shared, ids) = (Arc::clone(self), ids.to_vec());
        blocking("reading what is used", move || {
            let used = |id: ContainerId| Some((id.clone(), shared.used(&id)?));
            Ok(Usage {
                machine: of_machine(Path::new("/proc")),
                containers: ids.into_iter().filter_map(used).collect(),
            })
        })
        .await
    }

    /// Of a plain process nothing is counted.
    fn used(&self, id: &ContainerId) -> Option<Used> {
        let hierarchies = self.hierarchies.clone()?;
        Cgroup::new(hierarchies, &format!("{}/{id}", self.config.cgroup_parent)).used()
    }
}

/// Reads the machine's own counts.
fn of_machine(proc: &Path) -> Used {
    let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
    let memory = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let kib = |name: &str| {
        let number = |line: &str| {
            line.strip_prefix(name)?
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        };
        memory.lines().find_map(number).map(|kib| kib << 10)
    };
    let total = kib("MemTotal:");
    Used {
        cpu: busy(&stat),
        memory_bytes: total
            .zip(kib("MemAvailable:"))
            .map(|(total, free)| total.saturating_sub(free)),
        memory_limit_bytes: total,
        ..Used::default()
    }
}

/// The CPU time in which something ran, of all CPUs: user, nice, system, interrupts and what the host of a virtual machine took; not idle, nor
/// waiting for a disk. See proc(5).
fn busy(stat: &str) -> Option<Duration> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = numbers.map_while(|number| number.parse().ok()).collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|place| ticks.get(*place)).sum();
    let second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??)
        .ok()
        .filter(|hz| *hz > 0)?;
    let nanos = u128::from(busy) * 1_000_000_000 / u128::from(second);
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_busy_with_all_but_being_idle() {
        let proc = tempfile::tempdir().expect("a directory");
        let hz = sysconf(SysconfVar::CLK_TCK).expect("known").expect("there is one");
        let stat = format!("cpu  {hz} {hz} {hz} 900 900 {hz} {hz} 0 50 50\ncpu0 1 1 1 1\n");
        fs::write(proc.path().join("stat"), stat).expect("written");
        let memory = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        fs::write(proc.path().join("meminfo"), memory).expect("written");
        let expect = Used {
            cpu: Some(Duration::from_secs(5)),
            memory_bytes: Some(600 << 10),
            memory_limit_bytes: Some(1000 << 10),
            ..Used::default()
        };
        assert_eq!(of_machine(proc.path()), expect);
        assert_eq!(of_machine(&proc.path().join("nowhere")), Used::default());
    }
}
