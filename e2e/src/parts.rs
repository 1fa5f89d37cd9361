//! Servers and agents as processes of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{PATIENCE, Ran, mctl_binary};

/// A directory that stands for a machine, or for the home of a person.
pub struct Home(tempfile::TempDir);

impl Home {
    /// A new one.
    pub fn new() -> Result<Home> {
        Ok(Home(tempfile::Builder::new().prefix("muster-e2e-").tempdir()?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// `mctl` with this as its world, talking to the cluster of this kubeconfig.
    pub fn command(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(mctl_binary());
        for name in [
            "MUSTER_CONFIG",
            "MUSTER_JOIN",
            "MUSTER_LOG",
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
        ] {
            command.env_remove(name);
        }
        command
            .env("HOME", self.path())
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .current_dir(self.path());
        command
    }

    /// Runs `mctl` to its end.
    pub fn mctl(&self, kubeconfig: &Path, args: &[&str]) -> Ran {
        let output = self.command(kubeconfig).args(args).stdin(Stdio::null()).output();
        output.expect("mctl can be run").into()
    }

    /// Starts `mctl` with these arguments in the background; what it says goes to `NAME.log`.
    pub fn start(&self, name: &str, args: &[&str]) -> Result<Process> {
        let log = self.path().join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let mut command = self.command(&self.path().join("none"));
        let command = command.args(args).args(["--log", "info"]).stdin(Stdio::null());
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start mctl")?;
        Ok(Process { child, log })
    }
}

/// A `mctl server` or `mctl agent`. Dropping it ends it as a crash does.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Everything that it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Ends it as a crash does.
    pub fn crash(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Whoever has ended already need not be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end; its exit code, -1 after a signal.
    pub fn stop(mut self) -> Result<i32> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits for its end; its exit code, -1 after a signal.
    pub fn wait(&mut self) -> Result<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "it did not end within {PATIENCE:?}:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `done` says so, as long as the process runs.
    pub fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        while !done() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before {what}:\n{}", self.said());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "waited {PATIENCE:?} for {what}; it said:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
