//! A containerd that a test has started, with everything of its own in one directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, umount2};

use crate::PATIENCE;

/// A containerd with everything of its own in one directory.
pub struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts one.
    pub fn start() -> Result<Daemon> {
        let directory = tempfile::tempdir()?;
        let at = directory.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/socket\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{at}/opt\"\n"
        );
        let file = directory.path().join("config.toml");
        fs::write(&file, config)?;
        let mut containerd = Command::new("containerd");
        containerd
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        containerd.stderr(fs::File::create(directory.path().join("log"))?);
        let child = containerd
            .spawn()
            .context("apt-get install --no-install-recommends containerd runc")?;
        let daemon = Daemon { child, directory };
        wait_until("containerd to answer", || daemon.ctr(&["version"]).is_ok())?;
        Ok(daemon)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Where everything of it is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What `ctr` prints about our namespace.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut ctr = Command::new("ctr");
        let ran = ctr
            .arg("--address")
            .arg(self.socket())
            .args(["-n", "muster"])
            .args(args)
            .output()?;
        ensure!(
            ran.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(String::from_utf8(ran.stdout)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What it has of tasks that have just ended would stay.
        for task in self.ctr(&["tasks", "ls", "-q"]).unwrap_or_default().lines() {
            let _ = self.ctr(&["tasks", "rm", "--force", task]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        for target in targets.filter(|target| target.starts_with(self.directory.path())) {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}

/// Waits for something that cannot announce itself.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !done() {
        ensure!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
