//! The one generator of OCI runtime specs: [`ContainerSpec`] and a [`Site`] in, [`oci_spec::runtime::Spec`] out. Pure.
//!
//! It promises a closed container whatever is asked: no capability in any of the five sets, no new privileges, a seccomp profile that
//! is always set, a device cgroup that denies everything but the usual harmless nodes and the ones asked for, own pid, mount, uts and ipc
//! namespaces, masked and read-only kernel paths, no core dumps. The network is the machine's own.
//!
//! What must never happen here: a field left to somebody's default. The builders of the OCI types fill in what is not set (three
//! capabilities, for one), so the document is written out as JSON: what is not written is not there. Snapshot tests show all of it;
//! what it does on a machine is proven from inside containers by the tests of the process runtime.

mod seccomp;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::limits::PATH_DEFAULT;
use crate::{ContainerId, ContainerSpec, Error, Rootfs};

/// Where a container sees its sandbox: its home, and where its command starts.
pub const SANDBOX: &str = "/sandbox";

/// Where a container sees [`ContainerSpec::variables`].
pub const VARIABLES: &str = "/.muster-variables";

/// What a generated spec has to know about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site<'a> {
    /// The container; its hostname.
    pub id: &'a ContainerId,
    /// The directory that becomes `/`.
    pub rootfs: &'a Path,
    /// The directory that becomes [`SANDBOX`].
    pub sandbox: &'a Path,
    /// The directory that becomes `/tmp` of [`Rootfs::Host`].
    pub tmp: &'a Path,
    /// The cgroup, absolute in every hierarchy.
    pub cgroup: &'a str,
    /// The directories of the machine's root that [`Rootfs::Host`] shows, without those that a container has of its own ([`OWN`]).
    pub shown: &'a [PathBuf],
    /// Files and directories of the machine that [`Rootfs::Host`] must not show; absent ones do no harm.
    pub hidden: &'a [PathBuf],
    /// The numbers of [`ContainerSpec::devices`], in their order.
    pub devices: &'a [DeviceNumbers],
    /// How many open files may be allowed here: the hard limit of whoever makes the container.
    pub open_files: u64,
    /// Whether swap is counted by cgroups here.
    pub swap_accounting: bool,
}

/// What a device node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumbers {
    /// Whether it is a block device; else a character device.
    pub block: bool,
    /// The driver.
    pub major: u64,
    /// The device of the driver.
    pub minor: u64,
    /// Permission bits of the node.
    pub mode: u32,
}

/// Directories that a container of [`Rootfs::Host`] has of its own, so the machine's are never shown. `/run` holds the sockets of
/// everything that runs on the machine.
pub const OWN: [&str; 6] = ["/proc", "/sys", "/dev", "/run", "/tmp", SANDBOX];

/// Files of the machine that hold credentials and that root without capabilities could read.
const MASKED_CREDENTIALS: [&str; 6] = [
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ssh",
    "/root/.ssh",
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices every container may use: null, zero, full, random, urandom, tty, ptmx, and (no minor) pseudo terminals.
const USUAL_DEVICES: [(u64, Option<u64>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// Processes in a container that are not the task's: its init.
const OWN_PIDS: u64 = 1;

/// The period of the CPU quota: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The smallest quota that the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// Open files: many programs loop over the soft limit, so that one is modest; the hard limit is the kernel's default for root.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// Tasks die before the services of the machine when memory runs out.
const OOM_SCORE_ADJ: i32 = 200;

/// The OCI spec of a container.
///
/// # Errors
/// [`Error::Invalid`], when the spec is not one ([`ContainerSpec::check`]) or a device is not below `/dev`.
pub fn generate(spec: &ContainerSpec, site: &Site<'_>) -> Result<oci_spec::runtime::Spec, Error> {
    spec.check()?;
    if let Some(device) = spec.devices.iter().find(|device| !device.path.starts_with("/dev")) {
        return Err(Error::Invalid(format!(
            "device {} is not below /dev",
            device.path.display()
        )));
    }
    let host = spec.rootfs == Rootfs::Host;
    let document = json!({
        "ociVersion": "1.0.2",
        "root": { "path": site.rootfs, "readonly": host },
        "hostname": hostname(site.id),
        "process": process(spec, site),
        "mounts": mounts(spec, site),
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }],
            "cgroupsPath": site.cgroup,
            "resources": resources(spec, site),
            "devices": devices(spec, site),
            "rootfsPropagation": "private",
            "seccomp": seccomp::profile(),
            "maskedPaths": masked(host, site),
            "readonlyPaths": READ_ONLY,
        },
    });
    serde_json::from_value(document).map_err(|error| Error::Invalid(error.to_string()))
}

/// The seccomp profile that every generated spec has.
pub(crate) fn seccomp() -> oci_spec::runtime::LinuxSeccomp {
    serde_json::from_value(seccomp::profile()).expect("the profile is one")
}

/// The name a container has for itself: of its id what a host name may hold.
fn hostname(id: &ContainerId) -> String {
    let name: String = id
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    name.trim_end_matches('-').to_owned()
}

fn process(spec: &ContainerSpec, site: &Site<'_>) -> Value {
    let user = spec.user.map_or((0, 0), |user| (user.uid, user.gid));
    json!({
        "terminal": false,
        "user": { "uid": user.0, "gid": user.1, "umask": 0o022 },
        "args": spec.argv,
        "env": environment(spec, SANDBOX),
        "cwd": spec.working_dir.as_deref().unwrap_or(Path::new(SANDBOX)),
        "capabilities": { "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [] },
        "rlimits": [
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_NOFILE", "soft": OPEN_FILES.0.min(site.open_files), "hard": OPEN_FILES.1.min(site.open_files) },
        ],
        "noNewPrivileges": true,
        "oomScoreAdj": OOM_SCORE_ADJ,
    })
}

/// The environment that was asked for, with what every command may count on: `PATH`, `HOME` and `MUSTER_SANDBOX`.
pub fn environment(spec: &ContainerSpec, sandbox: &str) -> Vec<String> {
    let mut env = spec.env.clone();
    env.insert("MUSTER_SANDBOX".to_owned(), sandbox.to_owned());
    env.entry("HOME".to_owned()).or_insert_with(|| sandbox.to_owned());
    env.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mount(target: impl AsRef<Path>, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Value {
    json!({ "destination": target.as_ref(), "type": kind, "source": source.as_ref(), "options": options })
}

/// A bind mount without devices and set-user-id bits; read-only ones are so all the way down.
fn bind(source: &Path, target: &Path, read_only: bool) -> Value {
    let writable: &[&str] = &["rbind", "rnosuid", "rnodev"];
    let closed: &[&str] = &["rbind", "rnosuid", "rnodev", "rro"];
    mount(target, "bind", source, if read_only { closed } else { writable })
}

fn mounts(spec: &ContainerSpec, site: &Site<'_>) -> Vec<Value> {
    let mut mounts = Vec::new();
    if spec.rootfs == Rootfs::Host {
        mounts.extend(site.shown.iter().map(|path| bind(path, path, true)));
        mounts.push(mount(
            "/run",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "mode=755", "size=64m"],
        ));
        mounts.push(bind(site.tmp, Path::new("/tmp"), false));
    }
    // Shared memory is what GPU programs pass their tensors through. It counts as the container's memory, whose limit bounds it.
    let shm_size = spec
        .limits
        .memory_bytes
        .map_or_else(|| "size=50%".to_owned(), |bytes| format!("size={bytes}"));
    mounts.extend([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm_size],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        bind(site.sandbox, Path::new(SANDBOX), false),
    ]);
    let bound = spec
        .mounts
        .iter()
        .map(|asked| (&asked.target, bind(&asked.source, &asked.target, asked.read_only)));
    let memory = spec.memory.iter().map(|asked| {
        let size = asked
            .bytes
            .map_or_else(|| shm_size.clone(), |bytes| format!("size={bytes}"));
        let options = ["nosuid", "nodev", "mode=1777", &size];
        (&asked.target, mount(&asked.target, "tmpfs", "tmpfs", &options))
    });
    let mut asked: Vec<(&PathBuf, Value)> = bound.chain(memory).collect();
    // What is mounted below another comes after it.
    asked.sort_by_key(|(target, _)| target.components().count());
    mounts.extend(asked.into_iter().map(|(_, mount)| mount));
    mounts.extend(
        spec.variables
            .as_ref()
            .map(|file| bind(file, Path::new(VARIABLES), true)),
    );
    mounts
}

fn resources(spec: &ContainerSpec, site: &Site<'_>) -> Value {
    let limits = &spec.limits;
    let mut resources = Map::new();
    let usual = USUAL_DEVICES.iter().map(|(major, minor)| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    });
    let asked = site.devices.iter().map(|device| {
        json!({ "allow": true, "type": kind(device), "major": device.major, "minor": device.minor, "access": "rw" })
    });
    let closed = json!({ "allow": false, "access": "rwm" });
    resources.insert(
        "devices".to_owned(),
        std::iter::once(closed).chain(usual).chain(asked).collect(),
    );

    // A CPU is 1,024 shares; the kernel takes no less than two.
    let mut cpu = json!({ "shares": (limits.cpu_request_milli * 1024 / 1000).max(2) });
    if let Some(milli) = limits.cpu_limit_milli {
        cpu["period"] = json!(CPU_PERIOD_US);
        cpu["quota"] = json!((milli * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US));
    }
    resources.insert("cpu".to_owned(), cpu);
    if let Some(bytes) = limits.memory_bytes {
        let mut memory = json!({ "limit": bytes });
        if site.swap_accounting {
            // Memory and swap together: the same bytes, so none is swap.
            memory["swap"] = json!(bytes);
        }
        resources.insert("memory".to_owned(), memory);
    }
    if let Some(pids) = limits.pids {
        resources.insert("pids".to_owned(), json!({ "limit": pids + OWN_PIDS }));
    }
    Value::Object(resources)
}

fn kind(device: &DeviceNumbers) -> &'static str {
    if device.block { "b" } else { "c" }
}

fn devices(spec: &ContainerSpec, site: &Site<'_>) -> Vec<Value> {
    let nodes = spec.devices.iter().zip(site.devices);
    let node = |(asked, numbers): (&crate::DeviceNode, &DeviceNumbers)| {
        json!({
            "path": asked.path,
            "type": kind(numbers),
            "major": numbers.major,
            "minor": numbers.minor,
            "fileMode": numbers.mode,
            "uid": spec.user.map_or(0, |user| user.uid),
            "gid": spec.user.map_or(0, |user| user.gid),
        })
    };
    nodes.map(node).collect()
}

fn masked(host: bool, site: &Site<'_>) -> Vec<PathBuf> {
    let kernel = MASKED.iter().map(PathBuf::from);
    if !host {
        return kernel.collect();
    }
    // Below a directory that the container has of its own there is nothing to hide.
    let hidden = site
        .hidden
        .iter()
        .filter(|path| !OWN.iter().any(|own| path.starts_with(own)));
    kernel
        .chain(MASKED_CREDENTIALS.iter().map(PathBuf::from))
        .chain(hidden.cloned())
        .collect()
}

#[cfg(test)]
mod tests;
