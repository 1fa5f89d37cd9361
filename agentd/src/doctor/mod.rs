//! What is wrong with a machine that is to run tasks, and what to do about it: `mctl doctor`.
//!
//! Facts are gathered first ([`Facts::gather`]) and judged then ([`examine`], pure), so every finding is tested without a machine that
//! has it. It promises: nothing is changed, nothing is run but programs that say their version, and each finding that is not well says what
//! to do. What must never happen here: a problem that only this page knows. What the agent cannot do without, it checks itself.

mod facts;
mod versions;

use std::fmt;

use muster_api::ports::PortSet;
use serde::Serialize;

pub use facts::{Facts, Places, Said};
use versions::{Hole, NVIDIA_TOOLKIT, RUNC, Version};

/// The oldest kernel that has what is used here: pidfds that are waited for (5.4) and paths that stay below a directory (5.6).
const KERNEL: (u32, u32) = (5, 6);
/// Open files: a shim, its logs and its sockets are about twenty for each task.
const OPEN_FILES: u64 = 65_536;
/// Less free space than this part of a disk, in hundredths, is soon none.
const ROOM_PERCENT: u64 = 10;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Well.
    Ok,
    /// It works, and something should be done.
    Warning,
    /// Something does not work.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        })
    }
}

/// What was found about one part of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which part.
    pub part: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is so.
    pub what: String,
    /// What to do; there whenever it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn ok(part: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            part,
            level: Level::Ok,
            what: what.into(),
            fix: None,
        }
    }

    fn warning(part: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding {
            level: Level::Warning,
            fix: Some(fix.into()),
            ..Finding::ok(part, what)
        }
    }

    fn problem(part: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding {
            level: Level::Problem,
            ..Finding::warning(part, what, fix)
        }
    }
}

/// What of an agent's settings matters for a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether tasks are run with containerd.
    pub containerd: bool,
    /// The ports that tasks are given.
    pub ports: PortSet,
}

/// Judges what was gathered, part by part.
pub fn examine(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = vec![
        user(facts),
        kernel(facts),
        cgroups(facts),
        seccomp(facts),
        disk(facts),
        open_files(facts),
        clock(facts),
        ports(facts, wanted),
    ];
    findings.extend(containerd(facts, wanted));
    findings.extend(driver(facts));
    findings.extend(toolkit(facts));
    findings.extend(cdi(facts));
    findings
}

fn user(facts: &Facts) -> Finding {
    if facts.root {
        return Finding::ok("user", "root");
    }
    Finding::problem(
        "user",
        "not root: tasks are plain processes that nothing keeps apart",
        "run the agent as root (its unit in manifests/deploy does), and this command, too",
    )
}

fn kernel(facts: &Facts) -> Finding {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => Finding::ok("kernel", &facts.kernel),
        _ => Finding::problem(
            "kernel",
            format!("{:?} is older than {}.{}", facts.kernel, KERNEL.0, KERNEL.1),
            "install a newer kernel; that of Debian 12 is 6.1",
        ),
    }
}

fn cgroups(facts: &Facts) -> Finding {
    let needed = ["cpu", "memory", "pids"];
    let missing = |there: &[String], needed: &[&str]| -> Vec<String> {
        let missing = needed.iter().filter(|name| !there.iter().any(|one| one == *name));
        missing.map(|name| (*name).to_owned()).collect()
    };
    let (in_v1, in_v2) = (
        missing(&facts.cgroup_v1, &[&needed[..], &["devices"]].concat()),
        missing(&facts.cgroup_v2, &needed),
    );
    if in_v2.is_empty() {
        return Finding::ok("cgroups", "v2");
    }
    if in_v1.is_empty() {
        return Finding::ok("cgroups", "v1");
    }
    // Whichever the machine has more of is the one that it is meant to have.
    let (version, missing) = if in_v1.len() < in_v2.len() {
        ("v1", in_v1)
    } else {
        ("v2", in_v2)
    };
    Finding::problem(
        "cgroups",
        format!("{version} without {}: tasks are not limited", missing.join(", ")),
        "boot with systemd.unified_cgroup_hierarchy=1 and without cgroup_disable=",
    )
}

fn seccomp(facts: &Facts) -> Finding {
    if facts.seccomp.split_whitespace().any(|action| action == "errno") {
        return Finding::ok("seccomp", "system calls can be filtered");
    }
    Finding::problem(
        "seccomp",
        "the kernel does not filter system calls",
        "use a kernel with CONFIG_SECCOMP_FILTER, as those of all distributions are",
    )
}

fn disk(facts: &Facts) -> Finding {
    let fix = "make room, or give the agent another disk with --data-dir";
    match &facts.room {
        Err(error) => Finding::problem("disk", format!("the data directory cannot be looked at: {error}"), fix),
        Ok(room) if room.is_low() => Finding::problem("disk", format!("{room} are free: no task is started"), fix),
        Ok(room) if room.percent < ROOM_PERCENT => {
            Finding::warning("disk", format!("{room} are free, {} %", room.percent), fix)
        }
        Ok(room) => Finding::ok("disk", format!("{room} are free")),
    }
}

fn open_files(facts: &Facts) -> Finding {
    if facts.open_files >= OPEN_FILES {
        return Finding::ok("open files", "as many as are needed");
    }
    Finding::warning(
        "open files",
        format!("at most {}", facts.open_files),
        format!("LimitNOFILE={OPEN_FILES} in the unit, or `ulimit -Hn {OPEN_FILES}`"),
    )
}

fn clock(facts: &Facts) -> Finding {
    match facts.clock_steered {
        Some(true) => Finding::ok("clock", "kept right"),
        Some(false) => Finding::warning(
            "clock",
            "systemd-timesyncd runs and has reached no server yet",
            "look at `timedatectl timesync-status`; certificates of a clock that is off are refused",
        ),
        None => Finding::warning(
            "clock",
            "nothing that keeps it right was found",
            "apt-get install systemd-timesyncd, or chrony; certificates of a clock that is off are refused",
        ),
    }
}

fn ports(facts: &Facts, wanted: &Wanted) -> Finding {
    let ports = &wanted.ports;
    let last = ports.ranges().last().map_or(0, |(_, last)| *last);
    match facts.outgoing_ports {
        Some((low, high)) if !ports.is_disjoint(&PortSet::range(low, high)) => Finding::warning(
            "ports",
            format!("tasks are given {ports}, and the kernel takes {low}-{high} for connections that go out"),
            format!("set net.ipv4.ip_local_port_range so that it begins after {last}, or give the agent other --ports"),
        ),
        _ => Finding::ok("ports", format!("{ports} are the tasks' own")),
    }
}

fn holes(part: &'static str, version: Version, holes: &[Hole]) -> Option<Finding> {
    let open: Vec<&Hole> = holes.iter().filter(|hole| hole.is_open(version)).collect();
    let last = open.last()?;
    let texts: Vec<String> = open
        .iter()
        .map(|hole| format!("{} ({})", hole.name, hole.what))
        .collect();
    Some(Finding::warning(
        part,
        format!(
            "{version} has known holes, if its distribution has not mended them: {}",
            texts.join("; ")
        ),
        format!("install {} or later", last.mended()),
    ))
}

fn containerd(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (&facts.containerd, facts.containerd_socket, wanted.containerd) {
        (None, false, false) => {
            return vec![Finding::ok("containerd", "not there; tasks are run without it")];
        }
        (_, false, true) => findings.push(Finding::problem(
            "containerd",
            "its socket is not there",
            "apt-get install containerd, systemctl start containerd; or --runtime process",
        )),
        (said, socket, _) => {
            let version = said.as_deref().and_then(Version::find);
            let version = version.map_or("of an unknown version".to_owned(), |version| version.to_string());
            let state = if socket { "runs" } else { "does not run" };
            findings.push(Finding::ok("containerd", format!("{version}, {state}")));
        }
    }
    if !facts.open_directories.is_empty() {
        let names: Vec<String> = facts
            .open_directories
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        findings.push(Finding::warning(
            "containerd",
            format!(
                "everybody on the machine can enter {} (CVE-2024-25621)",
                names.join(" and ")
            ),
            format!("chmod 0700 {}", names.join(" ")),
        ));
    }
    match facts.runc.as_deref().map(Version::find) {
        None if wanted.containerd => findings.push(Finding::problem("runc", "not there", "apt-get install runc")),
        None => {}
        Some(None) => findings.push(Finding::warning(
            "runc",
            "does not say its version",
            "look at `runc --version`",
        )),
        Some(Some(version)) => {
            let open = holes("runc", version, &RUNC);
            findings.push(open.unwrap_or_else(|| Finding::ok("runc", version.to_string())));
        }
    }
    findings
}

fn driver(facts: &Facts) -> Vec<Finding> {
    let part = "GPU driver";
    let count = facts.nvidia_devices;
    let mut findings = Vec::new();
    match (&facts.gpus, &facts.nvidia_driver) {
        (Ok(models), driver) => {
            let driver = driver.as_deref().unwrap_or("of an unknown version");
            findings.push(if models.len() < count {
                Finding::problem(
                    part,
                    format!("{driver} shows {} of {count} GPUs", models.len()),
                    "look at `dmesg | grep -i nvrm` for why the others do not answer",
                )
            } else {
                Finding::ok(part, format!("{driver}, {} GPUs: {}", models.len(), models.join(", ")))
            });
        }
        (Err(why), Some(driver)) => findings.push(Finding::problem(
            part,
            format!("{driver} is loaded, but {why}"),
            "install the libraries of the very version that is loaded, or boot into the one that is installed",
        )),
        (Err(why), None) if count > 0 => findings.push(Finding::problem(
            part,
            format!("the machine has {count} GPUs of NVIDIA, and no driver of theirs is loaded ({why})"),
            "install NVIDIA's driver and load it: `modprobe nvidia`",
        )),
        (Err(_), None) => findings.push(Finding::ok(part, "the machine has no GPUs of NVIDIA")),
    }
    if facts.nouveau && count > 0 {
        findings.push(Finding::problem(
            part,
            "nouveau is loaded, which cannot compute and keeps NVIDIA's driver out",
            "echo blacklist nouveau > /etc/modprobe.d/nouveau.conf, update-initramfs -u, and boot",
        ));
    }
    findings
}

fn toolkit(facts: &Facts) -> Option<Finding> {
    let version = Version::find(facts.nvidia_toolkit.as_deref()?)?;
    let open = holes("NVIDIA toolkit", version, &NVIDIA_TOOLKIT);
    Some(open.unwrap_or_else(|| Finding::ok("NVIDIA toolkit", format!("{version}; Muster does not need it"))))
}

fn cdi(facts: &Facts) -> Vec<Finding> {
    let (count, errors) = &facts.cdi;
    if errors.is_empty() {
        return vec![Finding::ok("CDI", format!("{count} specifications"))];
    }
    let finding = |error: &String| {
        Finding::warning(
            "CDI",
            error.as_str(),
            "mend or remove the file; its devices cannot be given out",
        )
    };
    errors.iter().map(finding).collect()
}

#[cfg(test)]
mod tests;
