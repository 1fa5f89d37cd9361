//! What a cgroup has used, as the kernel counts it. What it does not tell is not known.
//!
//! Tested on made-up trees of both versions.

use std::fs;
use std::time::Duration;

use super::{COUNTING, Cgroup, Hierarchies};
use crate::Used;

/// What v1 says where there is no limit of memory: a number of pages that no machine has.
const NO_LIMIT: u64 = 1 << 60;

impl Cgroup {
    /// What it has used so far; `None`: there is no such cgroup (any more).
    pub(in super::super) fn used(&self) -> Option<Used> {
        self.hierarchies
            .directories(&self.path)
            .iter()
            .any(|directory| directory.exists())
            .then(|| match self.hierarchies {
                Hierarchies::V1(_) => self.used_v1(),
                Hierarchies::V2(_) => self.used_v2(),
            })
    }

    fn used_v1(&self) -> Used {
        Used {
            cpu: self.number(COUNTING, "cpuacct.usage").map(Duration::from_nanos),
            memory_bytes: self.working_set("memory.usage_in_bytes", "total_inactive_file"),
            memory_limit_bytes: self
                .number("memory", "memory.limit_in_bytes")
                .filter(|limit| *limit < NO_LIMIT),
            pids: self.number("pids", "pids.current"),
            oom_kills: self.line("memory", "memory.oom_control", "oom_kill"),
        }
    }

    fn used_v2(&self) -> Used {
        Used {
            cpu: self.line("cpu", "cpu.stat", "usage_usec").map(Duration::from_micros),
            memory_bytes: self.working_set("memory.current", "inactive_file"),
            // It says `max` where there is none.
            memory_limit_bytes: self.number("memory", "memory.max"),
            pids: self.number("pids", "pids.current"),
            oom_kills: self.line("memory", "memory.events", "oom_kill"),
        }
    }

    /// All memory but the files that nobody has used for a while: the kernel takes those back before it kills anything.
    fn working_set(&self, all: &str, idle: &str) -> Option<u64> {
        let idle = self.line("memory", "memory.stat", idle).unwrap_or(0);
        Some(self.number("memory", all)?.saturating_sub(idle))
    }

    fn text(&self, controller: &str, file: &str) -> Option<String> {
        let directory = self.hierarchies.directory(controller, &self.path)?;
        fs::read_to_string(directory.join(file)).ok()
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    /// The number behind a word at the beginning of a line.
    fn line(&self, controller: &str, file: &str, word: &str) -> Option<u64> {
        let text = self.text(controller, file)?;
        text.lines()
            .find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[track_caller]
    fn check(hierarchies: impl Fn(&Path) -> Hierarchies, files: &[(&str, &str)], expect: &Used) {
        let root = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup::new(hierarchies(root.path()), "/muster/a");
        assert_eq!(cgroup.used(), None, "it is not there");
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }
        assert_eq!(cgroup.used().as_ref(), Some(expect));
    }

    #[test]
    fn v2_counts_in_one_tree() {
        let expect = Used {
            cpu: Some(Duration::from_micros(1_234_567)),
            memory_bytes: Some(900),
            memory_limit_bytes: Some(2000),
            pids: Some(3),
            oom_kills: Some(1),
        };
        let files = [
            ("muster/a/cpu.stat", "usage_usec 1234567\nuser_usec 1\nnr_periods 0\n"),
            ("muster/a/memory.current", "1000\n"),
            ("muster/a/memory.stat", "anon 5\ninactive_file 100\nactive_file 7\n"),
            ("muster/a/memory.max", "2000\n"),
            ("muster/a/memory.events", "oom 4\noom_kill 1\noom_group_kill 0\n"),
            ("muster/a/pids.current", "3\n"),
        ];
        check(|root| Hierarchies::V2(root.to_owned()), &files, &expect);
    }

    #[test]
    fn v1_counts_in_a_tree_for_each_and_says_a_large_number_for_no_limit() {
        let trees = |root: &Path| {
            let of = |controller: &str| (controller.to_owned(), root.join(controller));
            Hierarchies::V1(["cpu", "cpuacct", "devices", "memory", "pids"].map(of).into())
        };
        let expect = Used {
            cpu: Some(Duration::from_nanos(5_000)),
            memory_bytes: Some(700),
            memory_limit_bytes: None,
            pids: Some(2),
            oom_kills: Some(0),
        };
        let files = [
            ("cpuacct/muster/a/cpuacct.usage", "5000\n"),
            ("memory/muster/a/memory.usage_in_bytes", "1000\n"),
            (
                "memory/muster/a/memory.stat",
                "inactive_file 1\ntotal_inactive_file 300\n",
            ),
            ("memory/muster/a/memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory/muster/a/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
            ),
            ("pids/muster/a/pids.current", "2\n"),
        ];
        check(trees, &files, &expect);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_known() {
        let files = [("muster/a/memory.max", "max\n"), ("muster/a/cpu.stat", "user_usec 1\n")];
        check(|root| Hierarchies::V2(root.to_owned()), &files, &Used::default());
    }
}
