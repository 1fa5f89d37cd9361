//! `mctl dev --runtime containerd`: tasks in containers of a containerd that the test has started.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use muster_e2e::Cluster;
use muster_e2e::containerd::{Daemon, wait_until};
use muster_e2e::registry::Registry;
use serde_json::{Value, json};

fn digest(path: &Path) -> Result<(String, u64)> {
    let ran = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(ran.stdout)?;
    let hex = text.split_whitespace().next().context("sha256sum says nothing")?;
    Ok((hex.to_owned(), fs::metadata(path)?.len()))
}

fn blob(layout: &Path, bytes: &[u8], kind: &str) -> Result<Value> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(layout.join("blob"), bytes)?;
    let (hex, size) = digest(&layout.join("blob"))?;
    fs::rename(layout.join("blob"), blobs.join(&hex))?;
    let media_type = format!("application/vnd.oci.image.{kind}");
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size }))
}

/// An image of busybox that prints its own `/etc/greeting`.
fn image(layout: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    for directory in ["bin", "etc"] {
        fs::create_dir(root.path().join(directory))?;
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).context("apt-get install busybox-static")?;
    for name in ["sh", "cat"] {
        symlink("busybox", root.path().join("bin").join(name))?;
    }
    fs::write(root.path().join("etc/greeting"), "hello from the image\n")?;
    let tar = Command::new("tar")
        .arg("-C")
        .arg(root.path())
        .args(["-cf", "-", "."])
        .output()?;
    ensure!(tar.status.success(), "tar: {}", tar.status);
    let layer = blob(layout, &tar.stdout, "layer.v1.tar")?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Entrypoint": ["cat"], "Cmd": ["/etc/greeting"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(layout, config.to_string().as_bytes(), "config.v1+json")?;
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let manifest = blob(layout, manifest.to_string().as_bytes(), "manifest.v1+json")?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string())?;
    Ok(())
}

#[test]
fn tasks_with_and_without_an_image_run_in_containers_of_containerd() -> Result<()> {
    let daemon = Daemon::start()?;
    let runtime = format!("containerd={}", daemon.socket().display());
    let mut cluster = Cluster::start(&["--runtime", &runtime])?;
    let agent = cluster.mctl(&["get", "agents", "-o", "yaml"]).ok();
    assert!(agent.contains("runtime: containerd/1."), "{agent}");

    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples/hello.yaml");
    let examples = examples.to_str().context("a path")?;
    cluster.mctl(&["apply", "-f", examples]).ok();
    cluster
        .mctl(&["wait", "task/hello", "--for", "jsonpath={.status.phase}=Finished"])
        .ok();
    assert_eq!(cluster.mctl(&["logs", "hello"]).ok(), "hello from hello\n");

    let layout = tempfile::tempdir()?;
    image(layout.path())?;
    let path = layout.path().to_str().context("a path")?;
    let missing = cluster.mctl(&["run", "early", "--image", "team/hello:1"]);
    let command = format!("mctl image import PATH --tag team/hello:1 --runtime {runtime}");
    assert!(
        missing.code == 5 && missing.stderr.contains(&command),
        "{}",
        missing.stderr
    );
    let import = ["image", "import", path, "--tag", "team/hello:1", "--runtime", &runtime];
    let imported = cluster.mctl(&import).ok();
    assert!(
        imported.starts_with("image team/hello:1 imported (sha256:"),
        "{imported}"
    );
    assert_eq!(
        cluster.mctl(&["image", "list", "--runtime", &runtime]).ok(),
        "team/hello:1\n"
    );
    assert_eq!(
        cluster.mctl(&["run", "plain", "--image", "team/hello:1"]).ok(),
        "hello from the image\n"
    );
    let failed = cluster.mctl(&["run", "fails", "--image", "team/hello:1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.code, 7, "{}", failed.stderr);
    wait_until("containerd to have nothing of tasks that have ended", || {
        daemon
            .ctr(&["containers", "ls", "-q"])
            .is_ok_and(|listed| listed.trim().is_empty())
    })?;
    cluster
        .mctl(&["image", "delete", "team/hello:1", "--runtime", &runtime])
        .ok();
    cluster.stop()?;
    Ok(())
}

/// A card of a vendor that describes it by CDI: a real node with no driver behind it, a file, a variable.
struct Card {
    node: PathBuf,
    spec: PathBuf,
}

impl Card {
    const MINOR: &str = "249";

    fn new(directory: &Path) -> Result<Card> {
        let name = format!("muster-test-{}", std::process::id());
        let card = Card {
            node: Path::new("/dev").join(&name),
            spec: Path::new("/var/run/cdi").join(format!("{name}.json")),
        };
        let made = Command::new("mknod")
            .args(["-m", "666"])
            .arg(&card.node)
            .args(["c", "195", Card::MINOR])
            .status()?;
        ensure!(made.success(), "mknod: {made}");
        let library = directory.join("library");
        fs::write(&library, "the library of the card\n")?;
        let spec = json!({
            "cdiVersion": "0.6.0", "kind": "muster-test.dev/card",
            "devices": [{ "name": "card0", "containerEdits": {
                "deviceNodes": [{ "path": "/dev/card0", "hostPath": card.node }],
                "mounts": [{ "hostPath": library, "containerPath": "/usr/lib/libcard.so", "options": ["ro"] }],
                "env": ["CARD=the card"],
            } }],
        });
        fs::create_dir_all("/var/run/cdi")?;
        fs::write(&card.spec, spec.to_string())?;
        Ok(card)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        fs::remove_file(&self.node).ok();
        fs::remove_file(&self.spec).ok();
    }
}

#[test]
fn a_device_and_what_belongs_to_it_are_in_the_container_of_the_task_that_got_it_and_in_no_other() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let _card = Card::new(directory.path())?;
    let daemon = Daemon::start()?;
    let runtime = format!("containerd={}", daemon.socket().display());
    let mut cluster = Cluster::start(&["--runtime", &runtime, "--gpus", "cdi:muster-test.dev/card"])?;
    let layout = directory.path().join("layout");
    image(&layout)?;
    let layout = layout.to_str().context("a path")?;
    cluster
        .mctl(&[
            "image",
            "import",
            layout,
            "--tag",
            "team/hello:1",
            "--runtime",
            &runtime,
        ])
        .ok();
    // A node that may be opened says that nothing is behind it.
    let probe = "cat /dev/card0 2>&1; cat /usr/lib/libcard.so 2>&1; echo $CARD; echo $NVIDIA_VISIBLE_DEVICES";
    let run = |name: &str, gpus: &str| {
        let args = [
            "run",
            name,
            "--gpus",
            gpus,
            "--image",
            "team/hello:1",
            "--",
            "sh",
            "-c",
            probe,
        ];
        cluster.mctl(&args).ok()
    };
    let with = run("with", "1");
    assert!(
        with.contains("No such device or address") && with.contains("the library of the card\nthe card\n"),
        "{with}"
    );
    let without = run("without", "0");
    assert_eq!(without.matches("No such file or directory").count(), 2, "{without}");
    assert!(without.ends_with("\n\nvoid\n"), "{without}");
    cluster.stop()?;
    Ok(())
}

#[test]
fn an_image_of_a_registry_is_fetched_into_the_store_of_containerd() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let layout = directory.path().join("layout");
    image(&layout)?;
    let registry = Registry::start(false)?;
    let digest = registry.push(&layout, "team/hello", "1")?;
    let (by_tag, by_digest) = (
        registry.name("team/hello:1"),
        registry.name(&format!("team/hello@{digest}")),
    );
    let daemon = Daemon::start()?;
    let runtime = format!("containerd={}", daemon.socket().display());
    let mut cluster = Cluster::start(&["--runtime", &runtime])?;
    for (name, image) in [("by-tag", &by_tag), ("by-digest", &by_digest)] {
        assert_eq!(
            cluster.mctl(&["run", name, "--image", image]).ok(),
            "hello from the image\n"
        );
    }
    let listed = cluster.mctl(&["image", "list", "--runtime", &runtime]).ok();
    assert!(listed.contains(&by_tag) && listed.contains(&by_digest), "{listed}");
    assert!(
        daemon.ctr(&["images", "ls", "-q"])?.contains(&by_tag),
        "it is there for ctr, too"
    );
    let missing = cluster.mctl(&["run", "missing", "--image", &registry.name("team/hello:2")]);
    assert!(
        missing.code == 5 && missing.stderr.contains("MANIFEST_UNKNOWN"),
        "{missing:?}"
    );
    cluster.stop()?;
    Ok(())
}
