//! What is looked at on a machine. Everything is only read; programs are asked for their version and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::data_dir::Room;
use crate::devices::{cdi, nvml};
use crate::machine;

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Places {
    /// The root of what is read; `/` but in tests.
    pub root: PathBuf,
    /// The agent's data directory.
    pub data: PathBuf,
    /// The socket of containerd.
    pub containerd: PathBuf,
}

/// What a program said when it was asked for its version; `None`: there is no such program.
pub type Said = Option<String>;

/// A machine, as far as an agent depends on it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether this is root.
    pub root: bool,
    /// What the kernel calls its release.
    pub kernel: String,
    /// Controllers of cgroup v1 that are mounted.
    pub cgroup_v1: Vec<String>,
    /// Controllers of cgroup v2 that can be given out below the root.
    pub cgroup_v2: Vec<String>,
    /// What a filter of system calls can do, as the kernel says.
    pub seccomp: String,
    /// The data directory and what is free there, or why nobody can say.
    pub room: Result<Room, String>,
    /// The most files that a process may have open.
    pub open_files: u64,
    /// The ports that the kernel takes for connections that go out.
    pub outgoing_ports: Option<(u16, u16)>,
    /// Whether something keeps the clock right; `None`: nothing is there that would.
    pub clock_steered: Option<bool>,
    /// Whether containerd's socket is there.
    pub containerd_socket: bool,
    /// containerd's version.
    pub containerd: Said,
    /// runc's version.
    pub runc: Said,
    /// Directories of containerd that everybody may look into.
    pub open_directories: Vec<PathBuf>,
    /// The loaded NVIDIA driver, as the kernel says.
    pub nvidia_driver: Option<String>,
    /// Whether the machine has a device of NVIDIA on its PCI bus.
    pub nvidia_devices: usize,
    /// Whether the free driver is loaded.
    pub nouveau: bool,
    /// The GPUs that the driver's library shows, or why it does not.
    pub gpus: Result<Vec<String>, String>,
    /// NVIDIA's container toolkit.
    pub nvidia_toolkit: Said,
    /// How many CDI specifications can be used, and what is wrong with the others.
    pub cdi: (usize, Vec<String>),
}

impl Facts {
    /// Looks.
    pub async fn gather(places: &Places) -> Facts {
        let at = |path: &str| places.root.join(path.trim_start_matches('/'));
        let (specs, errors) = cdi::read(&cdi::DIRECTORIES.map(at));
        let (containerd, runc, nvidia_toolkit) = tokio::join!(
            said("containerd", "--version"),
            said("runc", "--version"),
            said("nvidia-ctk", "--version"),
        );
        Facts {
            root: nix::unistd::geteuid().is_root(),
            kernel: machine::read(at("/proc/sys/kernel/osrelease")),
            cgroup_v1: cgroup_v1(&at("/sys/fs/cgroup")),
            cgroup_v2: words(&machine::read(at("/sys/fs/cgroup/cgroup.controllers"))),
            seccomp: machine::read(at("/proc/sys/kernel/seccomp/actions_avail")),
            room: Room::of(&places.data).map_err(|error| error.to_string()),
            open_files: open_files(&machine::read(at("/proc/self/limits"))),
            outgoing_ports: range(&machine::read(at("/proc/sys/net/ipv4/ip_local_port_range"))),
            clock_steered: clock_steered(&at("/run")),
            containerd_socket: places.containerd.exists(),
            containerd,
            runc,
            open_directories: open_directories(&at("/")),
            nvidia_driver: driver(&machine::read(at("/proc/driver/nvidia/version"))),
            nvidia_devices: nvidia_devices(&at("/sys/bus/pci/devices")),
            nouveau: at("/sys/module/nouveau").exists(),
            gpus: nvml::models().map_err(|why| why.to_string()),
            nvidia_toolkit,
            cdi: (specs.len(), errors.iter().map(ToString::to_string).collect()),
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The controllers that have a directory of their own; linked names (`cpuacct` for `cpu,cpuacct`) count.
fn cgroup_v1(mounts: &Path) -> Vec<String> {
    let wanted = ["cpu", "devices", "memory", "pids", "freezer"];
    let there = wanted
        .iter()
        .filter(|name| mounts.join(name).join("cgroup.procs").exists());
    there.map(|name| (*name).to_owned()).collect()
}

fn open_files(limits: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(1));
    hard.map_or(0, |text| text.parse().unwrap_or(u64::MAX))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// What steers clocks leaves a file or a socket while it does.
fn clock_steered(run: &Path) -> Option<bool> {
    let timesyncd = run.join("systemd/timesync");
    if timesyncd.join("synchronized").exists() {
        return Some(true);
    }
    let others = ["chrony/chronyd.pid", "ntpd.pid", "openntpd/ntpd.sock", "ptp4l"];
    if others.iter().any(|name| run.join(name).exists()) {
        return Some(true);
    }
    timesyncd.exists().then_some(false)
}

/// Directories in which images and tasks' roots lie: whoever may enter them may read those, and run what is in them with its owner's rights.
fn open_directories(root: &Path) -> Vec<PathBuf> {
    let directories = ["var/lib/containerd", "run/containerd/io.containerd.runtime.v2.task"];
    let open = directories.iter().filter(|name| {
        let mode = fs::metadata(root.join(name)).map(|meta| meta.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o007 != 0)
    });
    open.map(|name| Path::new("/").join(name)).collect()
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  …`.
fn driver(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let version = line
        .split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'));
    Some(version.unwrap_or("of an unknown version").to_owned())
}

/// GPUs of NVIDIA on the bus: display controllers (class 0x03) of vendor 0x10de.
fn nvidia_devices(bus: &Path) -> usize {
    let devices = fs::read_dir(bus).into_iter().flatten().flatten();
    let gpus = devices.filter(|device| {
        let read = |name: &str| machine::read(device.path().join(name));
        read("vendor") == "0x10de" && read("class").starts_with("0x03")
    });
    gpus.count()
}

/// What a program says about its version.
async fn said(program: &str, flag: &str) -> Said {
    let directories = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    let path = directories.iter().map(|directory| Path::new(directory).join(program));
    let path = path.into_iter().find(|path| path.exists())?;
    let mut command = Command::new(path);
    command
        .arg(flag)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let out = timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(open_files(limits), 524_288);
        assert_eq!(open_files("Max open files   1024   unlimited  files"), u64::MAX);
        assert_eq!(range("32768\t60999"), Some((32768, 60999)));
        let nvidia =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12";
        assert_eq!(driver(nvidia).as_deref(), Some("535.183.01"));
        assert_eq!(driver(""), None);
    }

    #[tokio::test]
    async fn a_machine_is_looked_at_below_a_root() {
        let temp = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = temp.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
            fs::write(path, text).expect("it can be written");
        };
        put("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
        put("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n");
        put("sys/fs/cgroup/memory/cgroup.procs", "");
        put("run/systemd/timesync/synchronized", "");
        put("sys/bus/pci/devices/a/vendor", "0x10de\n");
        put("sys/bus/pci/devices/a/class", "0x030200\n");
        put("sys/bus/pci/devices/audio/vendor", "0x10de\n");
        put("sys/bus/pci/devices/audio/class", "0x040300\n");
        put("etc/cdi/broken.yaml", "kind: [");
        put("var/lib/containerd/x", "");
        let open = temp.path().join("var/lib/containerd");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o711)).expect("it is ours");
        let places = Places {
            root: temp.path().to_owned(),
            data: temp.path().join("none"),
            containerd: temp.path().join("none"),
        };
        let facts = Facts::gather(&places).await;
        assert_eq!(facts.kernel, "6.1.0-9-amd64");
        assert_eq!(
            (facts.cgroup_v2.len(), facts.cgroup_v1.as_slice()),
            (3, &["memory".to_owned()][..])
        );
        assert_eq!((facts.clock_steered, facts.nvidia_devices), (Some(true), 1));
        assert_eq!((facts.cdi.0, facts.cdi.1.len()), (0, 1));
        assert_eq!(facts.open_directories, [PathBuf::from("/var/lib/containerd")]);
        assert!(
            facts.room.is_ok(),
            "a directory that is yet to be made lies on a disk, too"
        );
    }
}
