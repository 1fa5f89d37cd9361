//! Secrets, settings and directories in tasks, with real containers of both runtimes, and what of it lies on the machine's disk.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use muster_e2e::Cluster;
use muster_e2e::containerd::Daemon;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/examples/config.yaml");

fn apply(cluster: &Cluster, manifest: &str) -> Result<()> {
    let file = cluster.home().join("manifest.yaml");
    std::fs::write(&file, manifest)?;
    cluster.mctl(&["apply", "-f", file.to_str().context("a path")?]).ok();
    std::fs::remove_file(file)?;
    Ok(())
}

/// Files below that hold the text.
fn files_with(root: &Path, text: &str) -> Result<String> {
    let found = Command::new("grep").args(["-rlaF", text]).arg(root).output()?;
    Ok(String::from_utf8(found.stdout)?)
}

/// Runs the example, and looks for the password on disks.
fn check(cluster: &Cluster, more: &[&Path]) -> Result<()> {
    cluster.mctl(&["apply", "-f", EXAMPLE]).ok();
    cluster
        .mctl(&["wait", "task/config", "--for", "jsonpath={.status.phase}=Finished"])
        .ok();
    let said = cluster.mctl(&["logs", "config"]).ok();
    assert_eq!(
        said,
        "level debug, team ml, a password of 13 characters\nworkers = 4\npassword\n"
    );
    // A second task sees what the first has left in the shared directory, and waits for a secret that is not there yet.
    let second = "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {name: second}\nspec:\n  command: [sh, -c, 'wc -l < /cache/runs; cat /s/k; \
                  test ! -w /s/k && echo closed']\n  volumes:\n  - {mountPath: /cache, readOnly: true, shared: {name: cache}}\n  - {mountPath: /s, secret: \
                  {name: late}}\n  resources: {cpus: 0.1, memory: 32Mi}\n";
    apply(cluster, second)?;
    cluster
        .mctl(&[
            "wait",
            "task/second",
            "--for",
            "jsonpath={.status.reason}=ConfigMissing",
        ])
        .ok();
    let shown = cluster
        .mctl(&["get", "task", "second", "-o", "jsonpath={.status.message}"])
        .ok();
    assert!(
        shown.contains("the Secret late is not in the namespace default"),
        "{shown}"
    );
    apply(
        cluster,
        "apiVersion: v1\nkind: Secret\nmetadata: {name: late}\nstringData: {k: \"battery-staple\\n\"}\n",
    )?;
    cluster
        .mctl(&["wait", "task/second", "--for", "jsonpath={.status.phase}=Finished"])
        .ok();
    assert_eq!(cluster.mctl(&["logs", "second"]).ok(), "1\nbattery-staple\nclosed\n");
    let described = cluster.mctl(&["describe", "task", "config"]).ok();
    assert!(!described.contains("correct-horse"), "{described}");
    let data = cluster.data_dir().to_owned();
    for root in [data.as_path()].iter().chain(more) {
        assert_eq!(files_with(root, "correct-horse")?, "", "{}", root.display());
    }
    assert_ne!(files_with(&data, "workers = 4")?, "", "the search finds what is there");
    Ok(())
}

#[test]
fn a_task_of_the_process_runtime_gets_what_it_names_and_its_password_is_on_no_disk() -> Result<()> {
    let mut cluster = Cluster::start(&["--runtime", "process"])?;
    check(&cluster, &[])?;
    cluster.stop()?;
    Ok(())
}

#[test]
fn a_task_of_containerd_gets_what_it_names_and_its_password_is_on_no_disk() -> Result<()> {
    let daemon = Daemon::start()?;
    let runtime = format!("containerd={}", daemon.socket().display());
    let mut cluster = Cluster::start(&["--runtime", &runtime])?;
    check(&cluster, &[daemon.directory()])?;
    cluster.stop()?;
    Ok(())
}

#[test]
fn a_directory_of_the_machine_is_seen_where_the_agent_allows_it() -> Result<()> {
    let allowed = tempfile::tempdir()?;
    std::fs::write(allowed.path().join("file"), "data\n")?;
    let path = allowed.path().canonicalize()?;
    let path = path.to_str().context("a path")?;
    let mut cluster = Cluster::start(&["--runtime", "process", "--allow-host-path", path])?;
    let task = |name: &str, path: &str| {
        format!(
            "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec:\n  command: [cat, /run/x/file]\n  volumes:\n  - {{mountPath: \
             /run/x, readOnly: true, hostPath: {{path: {path}}}}}\n  resources: {{cpus: 0.1, memory: 32Mi}}\n"
        )
    };
    apply(&cluster, &task("inside", path))?;
    cluster
        .mctl(&["wait", "task/inside", "--for", "jsonpath={.status.phase}=Finished"])
        .ok();
    assert_eq!(cluster.mctl(&["logs", "inside"]).ok(), "data\n");
    apply(&cluster, &task("outside", "/etc"))?;
    cluster
        .mctl(&["wait", "task/outside", "--for", "jsonpath={.status.phase}=Dropped"])
        .ok();
    std::os::unix::fs::symlink("/etc", allowed.path().join("out"))?;
    apply(&cluster, &task("link", &format!("{path}/out")))?;
    cluster
        .mctl(&["wait", "task/link", "--for", "jsonpath={.status.phase}=Error"])
        .ok();
    let shown = cluster
        .mctl(&["get", "task", "link", "-o", "jsonpath={.status.message}"])
        .ok();
    assert!(shown.contains("symbolic link"), "{shown}");
    cluster.stop()?;
    Ok(())
}
