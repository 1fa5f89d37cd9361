//! Making the cgroup of a container, with its limits, and joining it.
//!
//! The cgroup is whole before the first process is made, which then joins it by itself: a thread that moves itself needs no stop of all
//! forks on the machine, as moving another process does in v1, and no table of mounts is read again for each controller.
//!
//! Tested on made-up trees, v1 on the machine as well.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::{Cgroup, Hierarchies};

/// Controllers that v2 has to be asked for, level by level.
const ASKED_FOR: [&str; 3] = ["+cpu", "+memory", "+pids"];

/// The kernel's largest `cpu.shares` of v1, and the range of `cpu.weight` of v2: the usual translation is linear between the ends.
const SHARES: (u64, u64) = (2, 262_144);
const WEIGHTS: (u64, u64) = (1, 10_000);

impl Cgroup {
    /// Makes it with these limits. What is there already was left by a container that was lost, and is used.
    ///
    /// Device nodes may be made in it until [`Cgroup::close_devices`].
    pub(in super::super) fn make(&self, resources: &LinuxResources) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(mounts) => mounts
                .iter()
                .filter_map(|(controller, _)| Some((controller, self.hierarchies.directory(controller, &self.path)?)))
                .try_for_each(|(controller, directory)| {
                    fs::create_dir_all(&directory)
                        .and_then(|()| limit(controller, &directory, resources))
                        .map_err(|error| named(&directory, &error))
                }),
            Hierarchies::V2(root) => {
                let directory = make_below(root, &self.path)?;
                limit_v2(&directory, resources).map_err(|error| named(&directory, &error))
            }
        }
    }

    /// Puts the calling process into it, which must have one thread.
    pub(in super::super) fn join(&self) -> io::Result<()> {
        let file = match self.hierarchies {
            // Of one thread, not of a process: the kernel need not see to it that no other thread begins meanwhile.
            Hierarchies::V1(_) => "tasks",
            Hierarchies::V2(_) => "cgroup.procs",
        };
        let directories = self.hierarchies.directories(&self.path);
        directories
            .iter()
            .try_for_each(|directory| set(directory, file, "0").map_err(|error| named(directory, &error)))
    }

    /// Takes back what only making the container's device nodes needed: making more. Only v1 has files for it.
    pub(in super::super) fn close_devices(&self, resources: &LinuxResources) -> io::Result<()> {
        let Hierarchies::V1(_) = self.hierarchies else {
            return Ok(());
        };
        let Some(directory) = self.hierarchies.directory("devices", &self.path) else {
            return Ok(());
        };
        let rules = resources.devices().iter().flatten();
        rules
            .filter(|rule| rule.allow() && !access(rule).contains('m'))
            .try_for_each(|rule| set(&directory, "devices.deny", &format!("{} m", device(rule))))
    }

    /// Takes back what runc allows every container and none of ours needs: making nodes, the console, and the network tunnel. Only v1 has files
    /// for it.
    pub(in super::super) fn close_devices_of_runc(&self) -> io::Result<()> {
        let Hierarchies::V1(_) = self.hierarchies else {
            return Ok(());
        };
        let Some(directory) = self.hierarchies.directory("devices", &self.path) else {
            return Ok(());
        };
        ["c *:* m", "b *:* m", "c 5:1 rwm", "c 10:200 rwm"]
            .iter()
            .try_for_each(|rule| set(&directory, "devices.deny", rule))
    }
}

fn named(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
}

/// Makes a cgroup of v2, with the controllers that limit: each has to be handed down from the root.
fn make_below(root: &Path, path: &str) -> io::Result<PathBuf> {
    let mut directory = root.to_owned();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        for controller in ASKED_FOR {
            // One that is not to be had is missed when its limit is set.
            let _ = set(&directory, "cgroup.subtree_control", controller);
        }
        directory.push(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(&directory, &error)),
            _ => {}
        }
    }
    Ok(directory)
}

/// Writes a file of a cgroup.
fn set(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    // Not made when it is not there: then the kernel does not know this limit.
    let written = File::options()
        .write(true)
        .open(directory.join(file))
        .and_then(|mut open| open.write_all(value.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

fn set_all<const N: usize>(directory: &Path, values: [(&str, Option<String>); N]) -> io::Result<()> {
    values
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?)))
        .try_for_each(|(file, value)| set(directory, file, &value))
}

fn limit(controller: &str, directory: &Path, resources: &LinuxResources) -> io::Result<()> {
    let text = |number: Option<i64>| number.map(|number| number.to_string());
    match (controller, resources.cpu(), resources.memory(), resources.pids()) {
        ("cpu", Some(cpu), _, _) => set_all(
            directory,
            [
                ("cpu.shares", cpu.shares().map(|shares| shares.to_string())),
                ("cpu.cfs_period_us", cpu.period().map(|period| period.to_string())),
                ("cpu.cfs_quota_us", text(cpu.quota())),
            ],
        ),
        // In this order: memory alone may not be allowed more than memory and swap together.
        ("memory", _, Some(memory), _) => set_all(
            directory,
            [
                ("memory.limit_in_bytes", text(memory.limit())),
                ("memory.memsw.limit_in_bytes", text(memory.swap())),
            ],
        ),
        ("pids", _, _, Some(pids)) => set(directory, "pids.max", &pids.limit().to_string()),
        ("devices", _, _, _) => limit_devices(directory, resources),
        _ => Ok(()),
    }
}

fn limit_devices(directory: &Path, resources: &LinuxResources) -> io::Result<()> {
    for rule in resources.devices().iter().flatten() {
        if rule.allow() {
            // The nodes that the container gets are made inside of it.
            let line = format!("{} {}m", device(rule), access(rule).replace('m', ""));
            set(directory, "devices.allow", &line)?;
        } else {
            set(directory, "devices.deny", &format!("{} {}", device(rule), access(rule)))?;
        }
    }
    Ok(())
}

fn limit_v2(directory: &Path, resources: &LinuxResources) -> io::Result<()> {
    if let Some(cpu) = resources.cpu() {
        let quota = cpu.quota().map(|quota| match cpu.period() {
            Some(period) => format!("{quota} {period}"),
            None => quota.to_string(),
        });
        let weight = cpu.shares().map(|shares| weight(shares).to_string());
        set_all(directory, [("cpu.weight", weight), ("cpu.max", quota)])?;
    }
    if let Some(memory) = resources.memory() {
        // Here swap is counted by itself.
        let swap = memory.swap().zip(memory.limit()).map(|(both, memory)| both - memory);
        let text = |bytes: Option<i64>| bytes.map(|bytes| bytes.to_string());
        set_all(
            directory,
            [("memory.max", text(memory.limit())), ("memory.swap.max", text(swap))],
        )?;
    }
    let pids = resources.pids().as_ref().map(|pids| pids.limit().to_string());
    set_all(directory, [("pids.max", pids)])
}

fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES.0, SHARES.1);
    WEIGHTS.0 + (shares - SHARES.0) * (WEIGHTS.1 - WEIGHTS.0) / (SHARES.1 - SHARES.0)
}

/// Type and numbers of a rule, as the files of v1 have them.
fn device(rule: &LinuxDeviceCgroup) -> String {
    let number = |number: Option<i64>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let kind = rule.typ().unwrap_or_default();
    format!("{} {}:{}", kind.as_str(), number(rule.major()), number(rule.minor()))
}

fn access(rule: &LinuxDeviceCgroup) -> &str {
    rule.access().as_deref().unwrap_or("rwm")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn resources() -> LinuxResources {
        serde_json::from_value(json!({
            "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
                { "allow": true, "type": "c", "major": 136, "access": "rwm" },
                { "allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw" },
            ],
            "cpu": { "shares": 1024, "period": 100_000, "quota": 50_000 },
            "memory": { "limit": 1_000_000, "swap": 1_000_000 },
            "pids": { "limit": 10 },
        }))
        .expect("resources")
    }

    /// A tree in which a cgroup with these files is there already, as the kernel would have made them.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("muster/a");
        fs::create_dir_all(&directory).expect("made");
        for file in files {
            fs::write(directory.join(file), "").expect("written");
        }
        root
    }

    fn read(root: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(root.join("muster/a")).expect("read").flatten();
        entries
            .map(|entry| {
                let text = fs::read_to_string(entry.path()).expect("read");
                (entry.file_name().to_string_lossy().into_owned(), text)
            })
            .filter(|(_, text)| !text.is_empty())
            .collect()
    }

    fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files
            .iter()
            .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn v2_has_all_limits_in_its_own_units() {
        let root = tree(&[
            "cpu.weight",
            "cpu.max",
            "memory.max",
            "memory.swap.max",
            "pids.max",
            "cgroup.procs",
        ]);
        fs::write(root.path().join("cgroup.subtree_control"), "").expect("written");
        let cgroup = Cgroup::new(Hierarchies::V2(root.path().to_owned()), "/muster/a");
        cgroup.make(&resources()).expect("made");
        cgroup.join().expect("joined");
        let expect = [
            ("cgroup.procs", "0"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "39"),
            ("memory.max", "1000000"),
            ("memory.swap.max", "0"),
            ("pids.max", "10"),
        ];
        assert_eq!(read(root.path()), map(&expect));
        let asked = fs::read_to_string(root.path().join("cgroup.subtree_control")).expect("read");
        assert!(asked.starts_with("+pids"), "the controllers are handed down: {asked}");
    }

    #[test]
    fn limit_that_the_kernel_does_not_know_is_an_error_with_the_file_in_it() {
        let root = tree(&["cpu.weight", "cpu.max", "memory.max", "memory.swap.max"]);
        let cgroup = Cgroup::new(Hierarchies::V2(root.path().to_owned()), "/muster/a");
        let error = cgroup.make(&resources()).expect_err("no pids");
        assert!(error.to_string().contains("pids.max"), "{error}");
    }

    #[test]
    fn rules_for_devices_are_those_asked_for_once_the_nodes_are_made() {
        let rules = resources();
        let rules = rules.devices().as_deref().expect("rules");
        let lines: Vec<String> = rules
            .iter()
            .map(|rule| format!("{} {}", device(rule), access(rule)))
            .collect();
        assert_eq!(lines, ["a *:* rwm", "c 1:3 rwm", "c 136:* rwm", "c 195:0 rw"]);
    }

    #[test]
    fn weights_cover_the_range_of_shares() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 39, 10_000, 10_000]);
    }
}
