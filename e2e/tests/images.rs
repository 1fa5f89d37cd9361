//! From an OCI layout on disk, or a registry, to a task that sees its files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use muster_e2e::Cluster;
use muster_e2e::registry::Registry;
use serde_json::{Value, json};

/// The digest and the size of a file, as a manifest has them.
fn describe(path: &Path) -> Result<(String, u64)> {
    let ran = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(ran.stdout)?;
    let hex = text.split_whitespace().next().context("sha256sum says nothing")?;
    Ok((hex.to_owned(), fs::metadata(path)?.len()))
}

/// Puts a file among the blobs of a layout.
fn blob(layout: &Path, path: &Path, kind: &str) -> Result<Value> {
    let (hex, size) = describe(path)?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::copy(path, blobs.join(&hex))?;
    let media_type = format!("application/vnd.oci.image.{kind}");
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size }))
}

/// An image of busybox that prints its own `/etc/greeting`.
fn image(at: &Path) -> Result<()> {
    let root = at.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("etc"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("apt-get install busybox-static")?;
    for name in ["sh", "cat", "ls"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("etc/greeting"), "hello from the image\n")?;
    let layer = at.join("layer.tar");
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&layer)
        .arg(".")
        .status()?;
    ensure!(tar.success(), "tar: {tar}");
    let layout = at.join("layout");
    let layer = blob(&layout, &layer, "layer.v1.tar")?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["cat"], "Cmd": ["/etc/greeting"], "Env": ["COLOUR=blue"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let write = |name: &str, value: &Value| fs::write(at.join(name), value.to_string());
    write("config.json", &config)?;
    let config = blob(&layout, &at.join("config.json"), "config.v1+json")?;
    write(
        "manifest.json",
        &json!({ "schemaVersion": 2, "config": config, "layers": [layer] }),
    )?;
    let manifest = blob(&layout, &at.join("manifest.json"), "manifest.v1+json")?;
    write(
        "layout/index.json",
        &json!({ "schemaVersion": 2, "manifests": [manifest] }),
    )?;
    Ok(())
}

#[test]
fn a_task_runs_from_an_image_that_was_imported_and_says_how_to_import_one() -> Result<()> {
    let work = tempfile::tempdir()?;
    image(work.path())?;
    let cluster = Cluster::start(&[])?;
    let images = cluster.data_dir().join("images");
    let images = images.to_str().context("a path")?;
    let layout = work.path().join("layout");
    let layout = layout.to_str().context("a path")?;

    let missing = cluster.mctl(&["run", "early", "--image", "team/hello:1"]);
    assert_eq!(missing.code, 5, "{}", missing.stderr);
    let command = format!("mctl image import PATH --tag team/hello:1 --images {images}");
    assert!(
        missing.stderr.contains("ImageNotFound") && missing.stderr.contains(&command),
        "{}",
        missing.stderr
    );

    let imported = cluster
        .mctl(&["image", "import", layout, "--tag", "team/hello:1", "--images", images])
        .ok();
    assert!(
        imported.starts_with("image team/hello:1 imported (sha256:"),
        "{imported}"
    );
    assert_eq!(
        cluster.mctl(&["image", "list", "--images", images]).ok(),
        "team/hello:1\n"
    );
    assert_eq!(
        cluster.mctl(&["run", "plain", "--image", "team/hello:1"]).ok(),
        "hello from the image\n"
    );
    let script = "echo mine > /etc/greeting; cat /etc/greeting; echo $COLOUR; ls /usr 2>&1";
    let told = cluster.mctl(&["run", "told", "--image", "team/hello:1", "--", "sh", "-c", script]);
    assert!(told.stdout.starts_with("mine\nblue\n"), "{told:?}");
    assert!(
        told.stdout.contains("No such file"),
        "the agent's own root is not there: {told:?}"
    );
    assert_eq!(
        cluster.mctl(&["run", "again", "--image", "team/hello:1"]).ok(),
        "hello from the image\n",
        "what a task writes is its own"
    );
    cluster
        .mctl(&["image", "delete", "team/hello:1", "--images", images])
        .ok();
    let gone = cluster.mctl(&["image", "delete", "team/hello:1", "--images", images]);
    assert!(
        gone.code == 1 && gone.stderr.contains("no image is there"),
        "{}",
        gone.stderr
    );
    Ok(())
}

#[test]
fn a_task_runs_from_an_image_that_a_registry_has() -> Result<()> {
    let work = tempfile::tempdir()?;
    image(work.path())?;
    let registry = Registry::start(true)?;
    let digest = registry.push(&work.path().join("layout"), "team/hello", "1")?;
    let (by_tag, by_digest) = (
        registry.name("team/hello:1"),
        registry.name(&format!("team/hello@{digest}")),
    );

    let stranger = Cluster::start(&[])?;
    let refused = stranger.mctl(&["run", "refused", "--image", &by_tag]);
    assert!(
        refused.code == 5
            && refused.stderr.contains("ImagePullFailed")
            && refused.stderr.contains("--registry-credentials"),
        "{refused:?}"
    );
    drop(stranger);

    let credentials = registry.credentials()?;
    let credentials = credentials.to_str().context("a path")?;
    let cluster = Cluster::start(&["--registry-credentials", credentials])?;
    for (name, image) in [("by-tag", &by_tag), ("by-digest", &by_digest)] {
        assert_eq!(
            cluster.mctl(&["run", name, "--image", image]).ok(),
            "hello from the image\n"
        );
    }
    let images = cluster.data_dir().join("images");
    let images = images.to_str().context("a path")?;
    let listed = cluster.mctl(&["image", "list", "--images", images]).ok();
    assert!(listed.contains(&by_tag) && listed.contains(&by_digest), "{listed}");
    let missing = cluster.mctl(&["run", "missing", "--image", &registry.name("team/hello:2")]);
    assert!(
        missing.code == 5 && missing.stderr.contains("ImageNotFound") && missing.stderr.contains("MANIFEST_UNKNOWN"),
        "{missing:?}"
    );
    let secret = cluster.mctl(&["run", "curious", "--", "cat", credentials]);
    assert_ne!(secret.code, 0, "tasks do not see the credentials: {secret:?}");

    // What is here needs no registry.
    drop(registry);
    assert_eq!(
        cluster.mctl(&["run", "again", "--image", &by_tag]).ok(),
        "hello from the image\n"
    );
    Ok(())
}

#[test]
fn a_task_says_that_it_waits_for_a_registry_and_ends_when_it_is_killed() -> Result<()> {
    // Somebody listens there and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let image = format!("{}/team/hello:1", silent.local_addr()?);
    let cluster = Cluster::start(&[])?;
    cluster
        .mctl(&["run", "waits", "--image", &image, "--detach", "--", "true"])
        .ok();
    let waits = [
        "wait",
        "task/waits",
        "--for",
        "jsonpath={.status.reason}=PullingImage",
        "--timeout",
        "60s",
    ];
    cluster.mctl(&waits).ok();
    assert!(
        cluster
            .field("waits", ".status.message")
            .contains("asking the registry")
    );
    cluster.mctl(&["delete", "task", "waits"]).ok();
    let left = Command::new("find")
        .arg(cluster.data_dir())
        .args(["-path", "*/pulls/*"])
        .output()?;
    assert_eq!(String::from_utf8(left.stdout)?, "", "nothing is left of it");
    Ok(())
}
