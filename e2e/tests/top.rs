//! What is used, as people and their tools ask for it: mctl, the real kubectl, and what reads metrics for Prometheus.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use muster_e2e::Cluster;

/// Reads metrics from standard input as strictly as the client library of Prometheus does, and prints the names of the families.
const READ: &str = "import sys
from prometheus_client.parser import text_string_to_metric_families as read
for family in read(sys.stdin.read()):
    assert family.samples and family.type in ('counter', 'gauge'), family
    print(family.name)";

fn names_of_families(cluster: &Cluster, text: &str) -> Result<String> {
    let file = cluster.home().join("metrics.txt");
    std::fs::write(&file, text)?;
    let read = Command::new("/usr/bin/python3")
        .args(["-c", READ])
        .stdin(std::fs::File::open(&file)?)
        .output()?;
    let error = String::from_utf8_lossy(&read.stderr).into_owned();
    ensure!(
        read.status.success(),
        "{error} (apt-get install python3-prometheus-client)\n{text}"
    );
    Ok(String::from_utf8(read.stdout)?)
}

#[test]
fn what_is_used_is_seen_by_mctl_by_kubectl_and_by_prometheus() -> Result<()> {
    ensure!(
        Path::new("/usr/lib/python3/dist-packages/prometheus_client/__init__.py").exists(),
        "apt-get install python3-prometheus-client"
    );
    let cluster = Cluster::start(&["--gpus", "sim:2xH100"])?;
    let busy = "while :; do :; done";
    cluster
        .mctl(&["run", "busy", "--gpus", "1", "--detach", "--", "sh", "-c", busy])
        .ok();
    cluster.wait_phase("busy", "Running")?;
    cluster.wait_until("it is measured", || {
        let top = cluster.mctl(&["top", "task", "busy", "--no-headers"]).stdout;
        let cells: Vec<&str> = top.split_whitespace().collect();
        cells
            .get(2)
            .and_then(|cpu| cpu.parse::<f64>().ok())
            .is_some_and(|cpu| cpu > 0.02)
    })?;
    let agents = cluster.mctl(&["top", "agent", "--sort-by", "cpu"]).ok();
    assert!(
        agents.starts_with("AGENT") && agents.contains("s\n") && !agents.contains("MESSAGE"),
        "{agents}"
    );
    let gpus = cluster
        .mctl(&["top", "gpu", "--no-headers", "--sort-by", "temperature"])
        .ok();
    assert_eq!(gpus.lines().count(), 2, "{gpus}");
    assert!(
        gpus.contains("60W/350W") && gpus.contains("Healthy") && gpus.contains("default/busy"),
        "{gpus}"
    );
    let unknown = cluster.mctl(&["top", "agent", "nobody"]);
    assert!(
        unknown.code == 1 && unknown.stderr.contains("there is no agent nobody"),
        "{unknown:?}"
    );

    let pods = cluster.kubectl(&["top", "pod", "busy", "--containers"], "").ok();
    let row: Vec<&str> = pods.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..2], ["busy", "busy"], "{pods}");
    assert!(
        row[2].ends_with('m') && row[2] != "0m" && row[3].ends_with("Mi"),
        "{pods}"
    );
    let nodes = cluster.kubectl(&["top", "node"], "").ok();
    let row: Vec<&str> = nodes.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert!(
        row[1].ends_with('m') && row[2].ends_with('%') && row[4].ends_with('%'),
        "{nodes}"
    );
    let refused = cluster.kubectl(&["top", "pod", "--as=al"], "");
    assert!(
        refused
            .stderr
            .contains("cannot list resource \"pods\" in API group \"metrics.k8s.io\""),
        "{refused:?}"
    );
    cluster
        .kubectl(&["create", "rolebinding", "al", "--clusterrole=view", "--user=al"], "")
        .ok();
    cluster.kubectl(&["top", "pod", "--as=al"], "").ok();
    // Two kinds are called pods now; the one that is meant stays the one that is meant.
    assert!(cluster.kubectl(&["get", "pods"], "").ok().contains("STATUS"));

    let agent = row[0];
    let path = format!("/apis/muster.dev/v1/agents/{agent}/metrics");
    let text = cluster.kubectl(&["get", "--raw", &path], "").ok();
    let families = names_of_families(&cluster, &text)?;
    for family in [
        "muster_task_cpu_seconds",
        "muster_gpu_temperature_celsius",
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_FB_FREE",
    ] {
        assert!(families.lines().any(|known| known == family), "{family} in\n{families}");
    }
    let holder = "namespace=\"default\",container=\"busy\",pod=\"busy\"";
    let held = |line: &&str| line.starts_with("DCGM_FI_DEV_GPU_UTIL{") && line.contains(holder);
    assert_eq!(text.lines().filter(held).count(), 1, "{text}");
    Ok(())
}
