//! A containerd of the tests' own: root, state and socket are in a directory that goes with it.
//!
//! One serves all tests that leave it alone, each in a namespace of its own; those that kill it have their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_runtime::conformance::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Machine, pids};

/// A containerd with a directory of its own.
pub(crate) struct Daemon {
    child: Mutex<Child>,
    directory: tempfile::TempDir,
}

const MISSING: &str = "these tests need containerd and runc: apt-get install --no-install-recommends containerd runc";

impl Daemon {
    pub(crate) fn start() -> Arc<Daemon> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\naddress = \"{at}/socket\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{at}/opt\"\n"
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let child = Mutex::new(Daemon::spawn(directory.path()));
        let daemon = Arc::new(Daemon { child, directory });
        daemon.wait();
        daemon
    }

    fn spawn(directory: &Path) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("log"))
            .unwrap();
        let mut containerd = Command::new("containerd");
        containerd.arg("--config").arg(directory.join("config.toml"));
        containerd
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect(MISSING)
    }

    fn wait(&self) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if self.ctr("default", &["version"]).is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("containerd does not answer: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What `ctr` prints, when it succeeds.
    pub(crate) fn ctr(&self, namespace: &str, args: &[&str]) -> Option<String> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address")
            .arg(self.socket())
            .args(["--timeout", "10s", "-n", namespace])
            .args(args);
        let ran = ctr.output().expect(MISSING);
        ran.status.success().then(|| String::from_utf8(ran.stdout).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let mut child = self.child.lock().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        if signal == Signal::SIGKILL {
            child.wait().unwrap();
        }
    }

    pub(crate) fn restart(&self) {
        *self.child.lock().unwrap() = Daemon::spawn(self.directory.path());
        self.wait();
    }

    /// Its shims: of all containers, or of one.
    pub(crate) fn shims(&self, id: Option<&str>) -> Vec<i32> {
        let socket = self.socket();
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let after = |flag: &str| {
                let at = words.iter().position(|word| *word == flag.as_bytes());
                at.and_then(|at| words.get(at + 1).copied())
            };
            words[0].ends_with(b"containerd-shim-runc-v2")
                && after("-address") == Some(socket.as_os_str().as_encoded_bytes())
                && id.is_none_or(|id| after("-id") == Some(id.as_bytes()))
        };
        pids().filter(ours).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in self.shims(None) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in ours.filter(|mount| Path::new(mount).starts_with(self.directory.path())) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

static SHARED: Mutex<Option<Arc<Daemon>>> = Mutex::new(None);

/// Ends the one that serves all.
pub(crate) fn stop() {
    drop(SHARED.lock().unwrap().take());
}

/// The one that serves all tests that leave it alone.
pub(crate) fn shared() -> Arc<Daemon> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(Daemon::start))
}

/// Waits until containerd has nothing of a machine any more.
pub(crate) async fn nothing_left(machine: &Machine) {
    let wait = async {
        while left(machine).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "containerd still has: {:?}", left(machine));
}

fn left(machine: &Machine) -> Option<String> {
    let containers = machine.ctr(&["containers", "ls", "-q"]) + &machine.ctr(&["tasks", "ls", "-q"]);
    let snapshots = machine.ctr(&["snapshots", "ls"]);
    let active = snapshots.lines().filter(|line| line.contains("Active"));
    let left = active.fold(containers.trim().to_owned(), |left, line| left + "\n" + line);
    (!left.is_empty()).then_some(left)
}
