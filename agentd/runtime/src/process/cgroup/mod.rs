//! The cgroup of a container, in whatever hierarchies the machine has: which processes are in it, were any killed for memory, kill all,
//! remove. Making one and setting its limits is in module `make`.
//!
//! Of v1 only the hierarchies that limit something are used ([`NEEDED`]), and the one that counts CPU time, which is usually one of them: a
//! directory in each of the others would cost as much and do nothing.
//!
//! What must never happen here: a path outside the one cgroup that was asked for. Tested on made-up trees, v1 on the machine as well.

mod count;
mod make;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::Pid;

use super::sys;

/// How this machine arranges its cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hierarchies {
    /// A tree for each controller that is needed: where each is mounted. Hybrid machines are this, with an idle v2 tree.
    V1(Vec<(String, PathBuf)>),
    /// One tree for all.
    V2(PathBuf),
}

/// Controllers without which a container would not be limited.
const NEEDED: [&str; 4] = ["cpu", "devices", "memory", "pids"];

/// What counts the CPU time of a container in v1, where there is such a hierarchy.
const COUNTING: &str = "cpuacct";

impl Hierarchies {
    /// Reads them from the machine.
    pub(super) fn detect() -> io::Result<Hierarchies> {
        Hierarchies::parse(&fs::read_to_string("/proc/self/mountinfo")?).map_err(io::Error::other)
    }

    /// Reads them from the text of `/proc/self/mountinfo`, see proc(5).
    fn parse(mountinfo: &str) -> Result<Hierarchies, String> {
        let (mut v1, mut v2) = (Vec::new(), None);
        for line in mountinfo.lines() {
            let Some((mount, source)) = line.split_once(" - ") else {
                continue;
            };
            let (Some(target), mut source) = (mount.split(' ').nth(4), source.split(' ')) else {
                continue;
            };
            match (source.next(), source.nth(1)) {
                (Some("cgroup2"), _) => v2 = v2.or(Some(PathBuf::from(target))),
                (Some("cgroup"), Some(options)) => {
                    let controllers = options
                        .split(',')
                        .filter(|option| NEEDED.contains(option) || *option == COUNTING);
                    v1.extend(controllers.map(|controller| (controller.to_owned(), PathBuf::from(target))));
                }
                _ => {}
            }
        }
        v1.sort();
        v1.dedup_by(|a, b| a.0 == b.0);
        let missing = NEEDED
            .iter()
            .find(|needed| !v1.iter().any(|(controller, _)| controller == *needed));
        match (v1.is_empty(), missing, v2) {
            (false, None, _) => Ok(Hierarchies::V1(v1)),
            (false, Some(missing), _) => Err(format!("the {missing} controller of cgroup v1 is not mounted")),
            (true, _, Some(root)) => Ok(Hierarchies::V2(root)),
            (true, _, None) => Err("no cgroup hierarchy is mounted".to_owned()),
        }
    }

    /// The directories of a cgroup, one in each tree.
    fn directories(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        let roots: BTreeSet<&PathBuf> = match self {
            Hierarchies::V1(mounts) => mounts.iter().map(|(_, root)| root).collect(),
            Hierarchies::V2(root) => BTreeSet::from([root]),
        };
        roots.into_iter().map(|root| root.join(path)).collect()
    }

    fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let path = path.trim_start_matches('/');
        match self {
            Hierarchies::V1(mounts) => mounts
                .iter()
                .find(|(name, _)| name == controller)
                .map(|(_, root)| root.join(path)),
            Hierarchies::V2(root) => Some(root.join(path)),
        }
    }

    /// Whether cgroups can be made here: makes this one.
    pub(super) fn probe(&self, path: &str) -> io::Result<()> {
        for directory in self.directories(path) {
            fs::create_dir_all(&directory)
                .map_err(|error| io::Error::other(format!("{}: {error}", directory.display())))?;
        }
        Ok(())
    }

    /// Whether a limit on memory and swap together can be set.
    pub(super) fn counts_swap(&self) -> bool {
        match self {
            Hierarchies::V1(_) => self
                .directory("memory", "memory.memsw.limit_in_bytes")
                .is_some_and(|file| file.exists()),
            Hierarchies::V2(_) => Path::new("/proc/swaps").exists(),
        }
    }
}

/// One cgroup.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    hierarchies: Hierarchies,
    path: String,
}

impl Cgroup {
    /// The cgroup at this path, absolute in each tree.
    pub(super) fn new(hierarchies: Hierarchies, path: &str) -> Cgroup {
        assert!(
            path.starts_with('/') && path.len() > 1 && !path.contains(".."),
            "the root cgroup is never ours: {path:?}"
        );
        Cgroup {
            hierarchies,
            path: path.to_owned(),
        }
    }

    /// The living processes in it. Zombies hold nothing, and only their parents can end them.
    pub(super) fn processes(&self) -> io::Result<BTreeSet<i32>> {
        self.processes_seen_in(Path::new("/proc"))
    }

    fn processes_seen_in(&self, proc: &Path) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for directory in self.hierarchies.directories(&self.path) {
            match fs::read_to_string(directory.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        pids.retain(|pid| lives(proc, *pid));
        Ok(pids)
    }

    /// Kills every process in it, once; new ones may appear, so look again.
    pub(super) fn kill(&self) -> io::Result<()> {
        if let Hierarchies::V2(_) = self.hierarchies {
            let file = self.hierarchies.directories(&self.path)[0].join("cgroup.kill");
            match fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .and_then(|mut file| io::Write::write_all(&mut file, b"1"))
            {
                Ok(()) => return Ok(()),
                // Kernels before 5.14 have no such file.
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for pid in self.processes()? {
            match sys::kill(Pid::from_raw(pid), libc::SIGKILL) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How many processes were killed because its memory was full.
    pub(super) fn oom_kills(&self) -> u64 {
        let file = match self.hierarchies {
            Hierarchies::V1(_) => "memory.oom_control",
            Hierarchies::V2(_) => "memory.events",
        };
        let text = self
            .hierarchies
            .directory("memory", &self.path)
            .map(|directory| fs::read_to_string(directory.join(file)));
        let text = text.and_then(Result::ok).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Removes it; without processes this succeeds.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.hierarchies
            .directories(&self.path)
            .iter()
            .try_for_each(|directory| match fs::remove_dir(directory) {
                Err(error) if !gone(&error) => Err(error),
                _ => Ok(()),
            })
    }
}

/// Whether the cgroup, or the file in it, does not exist (any more).
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn lives(proc: &Path, pid: i32) -> bool {
    // The name is in parentheses and may hold anything; the state is the first letter after it.
    let stat = fs::read(proc.join(pid.to_string()).join("stat")).unwrap_or_default();
    let state = stat
        .iter()
        .rposition(|byte| *byte == b')')
        .and_then(|at| stat.get(at + 2));
    state.is_some_and(|state| !matches!(state, b'Z' | b'X' | b'x'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_machine_is_v1() {
        let Ok(Hierarchies::V1(mounts)) = Hierarchies::parse(HYBRID) else {
            panic!("not v1")
        };
        let names: Vec<&str> = mounts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["cpu", "cpuacct", "devices", "memory", "pids"],
            "the others limit and count nothing"
        );
        assert_eq!(
            Hierarchies::V1(mounts).directories("/a/b").len(),
            4,
            "one directory for each tree"
        );
    }

    #[test]
    fn machine_with_one_tree_is_v2() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(text), Ok(Hierarchies::V2("/sys/fs/cgroup".into())));
    }

    #[test]
    fn machine_that_cannot_limit_is_refused() {
        assert!(Hierarchies::parse("27 1 254:0 / / rw - ext4 /dev/vda rw\n").is_err());
        let without: String = HYBRID
            .lines()
            .filter(|line| !line.contains("pids"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            Hierarchies::parse(&without),
            Err("the pids controller of cgroup v1 is not mounted".to_owned())
        );
    }

    fn made_up_v2() -> (tempfile::TempDir, Cgroup) {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("muster/a")).expect("a cgroup");
        let cgroup = Cgroup::new(Hierarchies::V2(root.path().to_owned()), "/muster/a");
        (root, cgroup)
    }

    #[test]
    fn zombies_do_not_count_as_processes() {
        let (root, cgroup) = made_up_v2();
        fs::write(root.path().join("muster/a/cgroup.procs"), "10\n11\n12\n").expect("written");
        let proc = root.path().join("proc");
        for (pid, stat) in [(10, "10 (a) Z) S 1 1"), (11, "11 (b) Z 1 1")] {
            fs::create_dir_all(proc.join(pid.to_string())).expect("made");
            fs::write(proc.join(pid.to_string()).join("stat"), stat).expect("written");
        }
        assert_eq!(cgroup.processes_seen_in(&proc).expect("read"), BTreeSet::from([10]));
    }

    #[test]
    fn v2_tells_oom_kills_and_kills_through_its_files() {
        let (root, cgroup) = made_up_v2();
        let directory = root.path().join("muster/a");
        assert_eq!(cgroup.oom_kills(), 0);
        fs::write(
            directory.join("memory.events"),
            "low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\noom_group_kill 0\n",
        )
        .expect("written");
        assert_eq!(cgroup.oom_kills(), 2);
        fs::write(directory.join("cgroup.kill"), "").expect("written");
        cgroup.kill().expect("killed");
        assert_eq!(fs::read_to_string(directory.join("cgroup.kill")).expect("read"), "1");
    }

    #[test]
    fn removed_cgroup_is_empty_and_can_be_removed_again() {
        let (_root, cgroup) = made_up_v2();
        cgroup.remove().expect("removed");
        cgroup.remove().expect("removed again");
        assert_eq!(cgroup.processes().expect("read"), BTreeSet::new());
    }

    #[test]
    #[should_panic(expected = "never ours")]
    fn root_cgroup_is_refused() {
        let _ = Cgroup::new(Hierarchies::V2("/sys/fs/cgroup".into()), "/");
    }
}
