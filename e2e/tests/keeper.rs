//! The examples of a controller with leadership and fencing, run as a user would run them: a copy in Rust and one in Python that stand
//! by for each other.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use anyhow::Result;
use muster_e2e::Cluster;
use muster_e2e::example::{self, Example};
use nix::sys::signal::Signal;

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
    let manifest = example::path("keeper/web.yaml").display().to_string();
    cluster.kubectl(&["create", "-f", &manifest], "").ok();

    let rust = Example::rust(&cluster, "keeper")?;
    cluster.wait_until("the first to lead", || {
        rust.said().contains(" leads as default/keeper@")
    })?;
    let seen = wait_for_more(&cluster, 1)?;
    let python = Example::python(&cluster, "keeper/python/keeper.py")?;

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
