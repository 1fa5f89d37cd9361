//! The controllers under `manifests/examples`, run beside a cluster as their readers would run them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Cluster, mctl_binary};

/// A running controller; it ends with this.
#[derive(Debug)]
pub struct Example {
    child: Child,
    log: PathBuf,
}

impl Example {
    /// The one in Rust of this name, which the tests are built with.
    ///
    /// # Errors
    /// When it was not built, or cannot be run.
    pub fn rust(cluster: &Cluster, name: &str) -> Result<Example> {
        let program = mctl_binary().with_file_name("examples").join(name);
        ensure!(
            program.exists(),
            "{} is missing; build it with: cargo build -p muster-e2e --examples",
            program.display()
        );
        Example::start(cluster, &program, None)
    }

    /// The one in Python at this place, by Debian's Python, whose `python3-kubernetes` is what the tests install.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn python(cluster: &Cluster, script: &str) -> Result<Example> {
        Example::start(cluster, Path::new("/usr/bin/python3"), Some(&path(script)))
    }

    fn start(cluster: &Cluster, program: &Path, script: Option<&Path>) -> Result<Example> {
        let name = script.unwrap_or(program).file_name().context("a file")?;
        let log = cluster.home().join(format!("{}.log", name.display()));
        let output = File::create(&log)?;
        let mut command = cluster.command(program);
        command.args(script).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Example { child, log })
    }

    /// What it has printed.
    ///
    /// # Panics
    /// When its log was removed.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is there")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"));
        kill(pid, signal).expect("our own child can be signalled");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of the examples.
pub fn path(name: &str) -> PathBuf {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    examples.join(name)
}
