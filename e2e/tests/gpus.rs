//! GPUs from the driver's report to a device node in a container: real nodes without a driver behind them (opening one that is allowed says
//! ENXIO, one that is denied EPERM), and a library that plays the driver.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muster_e2e::Cluster;

/// Nodes of NVIDIA's driver number that no real GPU of a machine has.
const MINORS: [u32; 2] = [250, 251];

/// Two GPUs of a made-up driver, for as long as this lives.
struct Gpus {
    root: tempfile::TempDir,
}

fn node(minor: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nvidia{minor}"))
}

impl Gpus {
    fn new() -> Result<Gpus> {
        let gpus = Gpus {
            root: tempfile::tempdir()?,
        };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../agentd/tests/nvml/library.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(gpus.library())
            .arg(source)
            .arg("-ldl")
            .status()?;
        ensure!(built.success(), "cc: {built}");
        for minor in MINORS {
            ensure!(!node(minor).exists(), "{} is there already", node(minor).display());
            let made = Command::new("mknod")
                .args(["-m", "666"])
                .arg(node(minor))
                .args(["c", "195", &minor.to_string()])
                .status()?;
            ensure!(made.success(), "mknod: {made}");
        }
        gpus.script("")?;
        Ok(gpus)
    }

    fn library(&self) -> PathBuf {
        self.root.path().join("libnvidia-ml.so.1")
    }

    /// What the driver reports besides that the two are there.
    fn script(&self, more: &str) -> Result<()> {
        let [a, b] = MINORS;
        let script = format!(
            "driver 550.54.15\n\
             gpu GPU-a {a} 00000000:1B:00.0 81559 9.0 0 NVIDIA H100 80GB HBM3\n\
             gpu GPU-b {b} 00000000:43:00.0 81559 9.0 0 NVIDIA H100 80GB HBM3\n{more}"
        );
        let fresh = self.root.path().join("script.new");
        fs::write(&fresh, script)?;
        Ok(fs::rename(fresh, self.root.path().join("script"))?)
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        for minor in MINORS {
            fs::remove_file(node(minor)).ok();
        }
    }
}

/// Tries every node, allowed or not, and to make one.
fn probe() -> String {
    let [a, b] = MINORS;
    format!(
        "echo has $NVIDIA_VISIBLE_DEVICES; for n in {a} {b}; do cat /dev/nvidia$n 2>&1 | sed 's/.*: //'; done; \
         mknod /tmp/n c 195 {b} 2>&1 | sed 's/.*: //'"
    )
}

#[test]
fn a_task_gets_its_gpus_and_no_other_and_is_stopped_when_one_of_them_fails() -> Result<()> {
    let gpus = Gpus::new()?;
    let choice = format!("nvml:{}", gpus.library().display());
    let cluster = Cluster::start(&["--gpus", &choice])?;
    let listed = cluster.mctl(&["get", "gpus", "-o", "wide"]).ok();
    assert!(
        listed.contains("GPU-a") && listed.contains("NVIDIA H100 80GB HBM3") && listed.contains("0000:43:00.0"),
        "{listed}"
    );

    let without = cluster
        .mctl(&[
            "run",
            "without",
            "-e",
            "NVIDIA_VISIBLE_DEVICES=all",
            "--",
            "sh",
            "-c",
            &probe(),
        ])
        .ok();
    assert_eq!(
        without,
        "has void\nNo such file or directory\nNo such file or directory\nOperation not permitted\n"
    );
    let with = cluster
        .mctl(&["run", "with", "--gpus", "1", "--", "sh", "-c", &probe()])
        .ok();
    assert_eq!(
        with, "has GPU-a\nNo such device or address\nNo such file or directory\nOperation not permitted\n",
        "its own can be opened, where there is nothing behind it here"
    );

    cluster
        .mctl(&["run", "train", "--gpus", "2", "--detach", "--", "sleep", "600"])
        .ok();
    cluster.wait_phase("train", "Running")?;
    let holders = cluster.mctl(&["get", "gpus", "--no-headers"]).ok();
    assert_eq!(holders.matches("default/train").count(), 2, "{holders}");
    let told = Instant::now();
    gpus.script("xid GPU-b 48\n")?;
    cluster.wait_phase("train", "Failed")?;
    println!(
        "from the report to the end of the task: {} ms",
        told.elapsed().as_millis()
    );
    assert_eq!(cluster.field("train", ".status.reason"), "DeviceFault");
    assert!(cluster.field("train", ".status.message").contains("GPU GPU-b: XID 48"));

    // The other goes on being given out, and the broken one says what is wrong.
    let again = cluster
        .mctl(&["run", "again", "--gpus", "1", "--", "sh", "-c", "echo $MUSTER_GPUS"])
        .ok();
    assert_eq!(again, "GPU-a\n");
    cluster
        .mctl(&["run", "both", "--gpus", "2", "--detach", "--", "true"])
        .ok();
    cluster.wait_until("why it waits", || {
        cluster.mctl(&["why", "both"]).stdout.contains("needs 2 gpus, has 1")
    })?;
    let described = cluster.mctl(&["get", "gpus", "-o", "wide"]).ok();
    assert!(
        described.contains("Cordoned") && described.contains("reset it"),
        "{described}"
    );
    // Somebody resets it and says so.
    cluster.mctl(&["uncordon", "gpu/GPU-b"]).ok();
    cluster.wait_phase("both", "Finished")?;
    cluster.mctl(&["cordon", "gpu/GPU-a"]).ok();
    cluster.wait_until("it is kept away", || {
        cluster
            .mctl(&["get", "gpus", "GPU-a", "-o", "wide"])
            .stdout
            .contains("cordoned by an operator")
    })?;
    Ok(())
}

#[test]
fn asking_for_a_driver_that_is_not_there_is_refused_with_what_can_be_asked_for() -> Result<()> {
    let home = tempfile::tempdir()?;
    let run = |gpus: &str| -> Result<String> {
        let mut command = Command::new(muster_e2e::mctl_binary());
        let out = command
            .args(["dev", "--data-dir"])
            .arg(home.path().join("data"))
            .args(["--listen", "127.0.0.1:0", "--gpus", gpus])
            .output()?;
        ensure!(!out.status.success(), "it started");
        String::from_utf8(out.stderr).context("text")
    };
    let missing = Path::new("/nowhere/libnvidia-ml.so.1");
    let text = run(&format!("nvml:{}", missing.display()))?;
    assert!(
        text.contains("not there") && text.contains("/nowhere/libnvidia-ml.so.1"),
        "{text}"
    );
    assert!(run("8xH100")?.contains("sim:8xH100"));
    Ok(())
}
