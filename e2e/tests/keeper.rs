//! The examples of a controller with leadership and fencing, run as a user would run them: a copy in Rust and one in Python that stand
//! by for each other.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use muster_e2e::{Cluster, mctl_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running copy of the keeper.
struct Keeper {
    child: Child,
    log: PathBuf,
}

impl Keeper {
    fn start(cluster: &Cluster, program: &Path, args: &[&Path], name: &str) -> Result<Keeper> {
        let log = cluster.home().join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command: Command = cluster.command(program);
        command.args(args).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Keeper { child, log })
    }

    fn rust(cluster: &Cluster) -> Result<Keeper> {
        let program = mctl_binary().with_file_name("examples").join("keeper");
        ensure!(
            program.exists(),
            "{} is missing; build it with: cargo build -p muster-e2e --examples",
            program.display()
        );
        Keeper::start(cluster, &program, &[], "rust")
    }

    /// By Debian's Python, whose `python3-kubernetes` is what the tests install.
    fn python(cluster: &Cluster) -> Result<Keeper> {
        let script = example("python/keeper.py");
        Keeper::start(cluster, Path::new("/usr/bin/python3"), &[&script], "python")
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is there")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"));
        kill(pid, signal).expect("our own child can be signalled");
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../manifests/examples/keeper")
        .join(path)
}

fn created(cluster: &Cluster) -> Vec<String> {
    let names = cluster
        .mctl(&["get", "tasks", "-o", "jsonpath={.items[*].metadata.name}"])
        .ok();
    names.split_whitespace().map(str::to_owned).collect()
}

fn wait_for_more(cluster: &Cluster, than: usize) -> Result<usize> {
    cluster.wait_until("another task", || created(cluster).len() > than)?;
    Ok(created(cluster).len())
}

#[test]
fn two_copies_in_two_languages_stand_by_for_each_other() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifest = example("web.yaml").display().to_string();
    cluster.kubectl(&["create", "-f", &manifest], "").ok();

    let rust = Keeper::rust(&cluster)?;
    cluster.wait_until("the first to lead", || {
        rust.said().contains(" leads as default/keeper@")
    })?;
    let seen = wait_for_more(&cluster, 1)?;
    let python = Keeper::python(&cluster)?;

    // Paused for longer than the lease lives, as a machine under a debugger is.
    rust.signal(Signal::SIGSTOP);
    cluster.wait_until("the second to take over", || {
        python.said().contains(" leads as default/keeper@")
    })?;
    let seen = wait_for_more(&cluster, seen)?;
    rust.signal(Signal::SIGCONT);
    cluster.wait_until("the first to notice", || {
        rust.said().contains("no longer leads") || rust.said().contains("was fenced off")
    })?;
    let seen = wait_for_more(&cluster, seen)?;

    // A clean end hands over at once.
    python.signal(Signal::SIGTERM);
    cluster.wait_until("the lease to be given up", || {
        python.said().contains("gave the lease up")
    })?;
    cluster.wait_until("the first to lead again", || {
        rust.said().matches(" leads as ").count() == 2
    })?;
    wait_for_more(&cluster, seen)?;

    // Whoever led, each number was created once, in turn, by one of them.
    let mut said: Vec<u32> = format!("{}{}", rust.said(), python.said())
        .lines()
        .filter_map(|line| line.strip_prefix("created web-")?.parse().ok())
        .collect();
    said.sort_unstable();
    let expected: Vec<u32> = (1..).take(said.len()).collect();
    assert_eq!(said, expected, "rust:\n{}\npython:\n{}", rust.said(), python.said());
    Ok(())
}
