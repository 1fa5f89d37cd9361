//! `kill -9` and Ctrl-C: what was acknowledged is there afterwards, what ran is adopted, and nothing is left behind.

use std::fs;

use anyhow::Result;
use muster_e2e::Cluster;

fn task(name: &str, command: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec:\n  command: [sh, -c, '{command}']\n  resources: {{cpus: 0.1, memory: 32Mi}}\n"
    )
}

#[test]
fn tasks_outlive_a_crash_and_ends_in_between_are_reported() -> Result<()> {
    let mut cluster = Cluster::start(&[])?;
    let manifests = [
        task("stays", "echo up; sleep 1000"),
        task("ends", "while ! test -e end; do sleep 0.05; done; exit 5"),
    ];
    cluster
        .mctl_with(&["apply", "-f", "-"], &manifests.join("\n---\n"))
        .ok();
    cluster.wait_phase("stays", "Running")?;
    cluster.wait_phase("ends", "Running")?;
    let uid = cluster.field("stays", ".metadata.uid");
    cluster.crash();
    let sandbox = find(&cluster.data_dir(), "sandbox");
    assert!(!sandbox.is_empty(), "the sandboxes are below the data directory");
    for folder in sandbox {
        fs::write(folder.join("end"), "")?;
    }
    cluster.launch()?;
    cluster.wait_phase("ends", "Failed")?;
    assert_eq!(cluster.field("ends", ".status.exitCode"), "5");
    cluster.wait_phase("stays", "Running")?;
    assert_eq!(cluster.field("stays", ".metadata.uid"), uid);
    assert_eq!(
        cluster.field("stays", ".status.attempts[*].number"),
        "1",
        "it was adopted, not started again"
    );
    assert_eq!(cluster.mctl(&["logs", "stays"]).ok(), "up\n");
    Ok(())
}

/// All folders of this name below a folder.
fn find(folder: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            if path.file_name().is_some_and(|file| file == name) {
                found.push(path);
            } else {
                found.extend(find(&path, name));
            }
        }
    }
    found
}

#[test]
fn ctrl_c_leaves_nothing_running() -> Result<()> {
    let mut cluster = Cluster::start(&[])?;
    cluster
        .mctl_with(&["apply", "-f", "-"], &task("sleeper", "exec sleep 86399"))
        .ok();
    cluster.wait_phase("sleeper", "Running")?;
    assert_eq!(processes_with("sleep\u{0}86399"), 1);
    assert_eq!(cluster.stop()?, 0);
    assert_eq!(processes_with("sleep\u{0}86399"), 0);
    Ok(())
}

/// How many processes of this machine have this command line.
fn processes_with(words: &str) -> usize {
    let lines = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = lines.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.trim_end_matches('\0') == words).count()
}

#[test]
fn acknowledged_objects_survive_a_crash() -> Result<()> {
    let mut cluster = Cluster::start(&[])?;
    let map = |number: usize| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{number}}}\ndata: {{a: \"{number}\"}}\n")
    };
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        if cluster.mctl_with(&["apply", "-f", "-"], &map(number)).code == 0 {
            acknowledged.push(number);
        }
    }
    assert_eq!(acknowledged.len(), 20);
    cluster.crash();
    cluster.launch()?;
    for number in acknowledged {
        let name = format!("c{number}");
        let value = cluster
            .mctl(&["get", "configmap", &name, "-o", "jsonpath={.data.a}"])
            .ok();
        assert_eq!(value.trim(), number.to_string());
    }
    Ok(())
}
