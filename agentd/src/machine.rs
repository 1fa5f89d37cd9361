//! What this machine is and has, read once at the start. Not used by simulated agents.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_api::env::Env;
use muster_api::names::label_value_problem;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::v1::AgentCapacity;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::session::Identity;

/// The ports that tasks are given: those that Mesos gives out.
pub const PORTS: (u16, u16) = (31_000, 32_000);

/// Memory kept for the system: a tenth, but no more than this.
pub const MEMORY_RESERVE_MAX: ByteSize = ByteSize::from_mib(512);

/// How long a predecessor may take to let go of the data directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Why the machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two agents cannot share a data directory.
    #[error("another agent uses {}; stop it, or choose another directory with --data-dir", .0.display())]
    InUse(PathBuf),
    /// A file is not what was written there.
    #[error("{} is damaged: {text:?}; move it away if the agent's name may be claimed anew", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is in it.
        text: String,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> MachineError + '_ {
    move |source| MachineError::File {
        path: path.to_owned(),
        source,
    }
}

/// Who this process is; the data directory is its own as long as this lives.
#[derive(Debug)]
pub struct Claim {
    /// Who.
    pub identity: Identity,
    _lock: Flock<File>,
}

impl Claim {
    /// Claims a data directory, waiting a little for a predecessor to end. Counts the claims durably.
    ///
    /// # Errors
    /// [`MachineError`]: the directory cannot be used, or is in use.
    pub async fn take(data_dir: &Path, env: &dyn Env) -> Result<Claim, MachineError> {
        fs::create_dir_all(data_dir).map_err(at(data_dir))?;
        let path = data_dir.join("identity");
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        let mut lock = loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path);
            match Flock::lock(file.map_err(at(&path))?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(MachineError::InUse(data_dir.to_owned())),
                Err((_, errno)) => return Err(at(&path)(errno.into())),
            }
        };
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(at(&path))?;
        let (uid, incarnation) = match text.trim() {
            "" => (env.uid().to_string(), 0),
            text => read_identity(text).ok_or_else(|| MachineError::Damaged {
                path: path.clone(),
                text: text.chars().take(100).collect(),
            })?,
        };
        let incarnation = incarnation + 1;
        // The line has a fixed width, so one write replaces it and never leaves half of an older, longer one.
        lock.rewind().map_err(at(&path))?;
        lock.write_all(format!("{uid} {incarnation:020}\n").as_bytes())
            .map_err(at(&path))?;
        lock.sync_all().map_err(at(&path))?;
        Ok(Claim {
            identity: Identity {
                machine: machine(&uid),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                incarnation,
            },
            _lock: lock,
        })
    }
}

fn read_identity(text: &str) -> Option<(String, u64)> {
    let (uid, incarnation) = text.split_once(' ')?;
    Some((uid.to_owned(), incarnation.parse().ok()?))
}

/// The machine and the data directory, hashed: a machine id should not be shown around.
fn machine(uid: &str) -> String {
    let digest = Sha256::digest(format!("muster {} {uid}", read("/etc/machine-id")));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The trimmed text of a small file; empty when it cannot be read.
pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The name of this machine, if it can be an attribute.
pub fn hostname() -> Option<String> {
    let name = read("/proc/sys/kernel/hostname");
    (!name.is_empty() && label_value_problem(&name).is_none()).then_some(name)
}

/// What of this machine tasks may be given: all CPUs, the memory but for a reserve, the disk that is free below `data_dir`.
///
/// # Errors
/// [`MachineError`]: the kernel does not say.
pub fn capacity(data_dir: &Path) -> Result<AgentCapacity, MachineError> {
    let cpus = std::thread::available_parallelism().map_err(at(Path::new("/sys/fs/cgroup")))?;
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(at(path))?;
    let memory = memory_total(&text).ok_or_else(|| MachineError::Damaged {
        path: path.to_owned(),
        text: text.chars().take(100).collect(),
    })?;
    let disk = nix::sys::statvfs::statvfs(data_dir).map_err(|errno| at(data_dir)(errno.into()))?;
    Ok(AgentCapacity {
        cpus: Scalar::from_units(u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        memory: offered_memory(memory),
        disk: whole_mib(disk.blocks_available().saturating_mul(disk.fragment_size())),
        gpus: 0,
        ports: PortSet::range(PORTS.0, PORTS.1),
    })
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn offered_memory(total: u64) -> ByteSize {
    whole_mib(total - (total / 10).min(MEMORY_RESERVE_MAX.bytes()))
}

/// Rounded down to mebibytes, so that it reads well.
fn whole_mib(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes >> 20 << 20)
}

#[cfg(test)]
mod tests {
    use muster_api::env::SystemEnv;

    use super::*;

    #[test]
    fn memory_is_offered_but_for_a_reserve() {
        assert_eq!(
            memory_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert_eq!(offered_memory(1 << 30), ByteSize::from_mib(921));
        assert_eq!(offered_memory(64 << 30), ByteSize::from_mib(64 * 1024 - 512));
    }

    #[test]
    fn a_machine_has_something_to_offer() {
        let capacity = capacity(Path::new("/")).expect("this machine can be read");
        assert!(capacity.cpus > Scalar::ZERO && capacity.memory > ByteSize::ZERO);
        assert_eq!(capacity.ports.len(), 1001);
    }

    #[tokio::test]
    async fn every_process_has_a_higher_incarnation_of_the_same_machine() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Claim::take(dir.path(), &SystemEnv).await.expect("it is free").identity;
        let second = Claim::take(dir.path(), &SystemEnv)
            .await
            .expect("it is free again")
            .identity;
        assert_eq!(first.machine, second.machine);
        assert_eq!(first.incarnation + 1, second.incarnation);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_in_use_is_not_shared() {
        let dir = tempfile::tempdir().expect("a directory");
        let _claim = Claim::take(dir.path(), &SystemEnv).await.expect("it is free");
        let error = Claim::take(dir.path(), &SystemEnv).await.expect_err("it is in use");
        assert!(matches!(error, MachineError::InUse(_)), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_identity_is_not_replaced_silently() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("identity"), "garbage").expect("writable");
        let error = Claim::take(dir.path(), &SystemEnv).await.expect_err("it is damaged");
        assert!(matches!(error, MachineError::Damaged { .. }), "{error}");
    }
}
