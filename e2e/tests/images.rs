//! From an OCI layout on disk, or a registry, to a task that sees its files.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

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
    image_with(at, "hello from the image\n", &["cat"])
}

fn image_with(at: &Path, greeting: &str, entrypoint: &[&str]) -> Result<()> {
    let root = at.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("etc"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("apt-get install busybox-static")?;
    for name in ["sh", "cat", "ls"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("etc/greeting"), greeting)?;
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
        "config": { "Entrypoint": entrypoint, "Cmd": ["/etc/greeting"], "Env": ["COLOUR=blue"] },
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

#[test]
fn a_name_that_moves_is_looked_up_for_every_run_and_the_task_says_what_it_ran() -> Result<()> {
    let registry = Registry::start(false)?;
    let cluster = Cluster::start(&[])?;
    let name = registry.name("team/hello");
    let mut digests = Vec::new();
    for (task, greeting) in [("first", "one\n"), ("second", "two\n")] {
        let work = tempfile::tempdir()?;
        image_with(work.path(), greeting, &["cat"])?;
        digests.push(registry.push(&work.path().join("layout"), "team/hello", "latest")?);
        assert_eq!(cluster.mctl(&["run", task, "--image", &name]).ok(), greeting);
        let digest = digests.last().context("just pushed")?;
        assert_eq!(&cluster.field(task, ".status.image.digest"), digest);
        let pod = [
            "get",
            "pods",
            task,
            "-o",
            "jsonpath={.status.containerStatuses[0].imageID} {.spec.containers[0].imagePullPolicy}",
        ];
        assert_eq!(cluster.mctl(&pod).ok().trim(), format!("{name}@{digest} Always"));
    }
    // What it meant before is still here, by its digest, and so needs no registry.
    let old = registry.name(&format!("team/hello@{}", digests[0]));
    drop(registry);
    assert_eq!(cluster.mctl(&["run", "old", "--image", &old]).ok(), "one\n");
    let manifest = json!({
        "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": { "name": "here" },
        "spec": { "image": name, "imagePullPolicy": "Never", "resources": { "cpus": "0.1", "memory": "32Mi" } },
    });
    cluster.mctl_with(&["apply", "-f", "-"], &manifest.to_string()).ok();
    cluster.wait_phase("here", "Finished")?;
    assert_eq!(cluster.mctl(&["logs", "here"]).ok(), "two\n");
    let asks = cluster.mctl(&["run", "asks", "--image", &name, "--detach"]);
    asks.ok();
    cluster.wait_until("it says that nobody answers", || {
        cluster.field("asks", ".status.message").contains("trying again")
    })?;
    Ok(())
}

#[test]
fn a_task_brings_credentials_of_its_own_and_they_are_found_nowhere() -> Result<()> {
    let work = tempfile::tempdir()?;
    image(work.path())?;
    let registry = Registry::start(true)?;
    registry.push(&work.path().join("layout"), "team/hello", "1")?;
    let image = registry.name("team/hello:1");
    let cluster = Cluster::start(&[])?;
    let task = |name: &str, secrets: Value| {
        json!({
            "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": { "name": name },
            "spec": {
                "image": image, "imagePullPolicy": "Always", "imagePullSecrets": secrets,
                "resources": { "cpus": "0.1", "memory": "32Mi" },
            },
        })
        .to_string()
    };
    let apply = |text: &str| cluster.mctl_with(&["apply", "-f", "-"], text).ok();
    apply(&task("mine", json!([{ "name": "registry" }])));
    cluster.wait_until("it says what is missing", || {
        let message = cluster.field("mine", ".status.message");
        message.contains("the Secret registry, which spec.imagePullSecrets names")
    })?;
    let config = fs::read_to_string(registry.credentials()?)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "registry" },
        "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": config },
    });
    apply(&secret.to_string());
    cluster.wait_phase("mine", "Finished")?;
    assert_eq!(cluster.mctl(&["logs", "mine"]).ok(), "hello from the image\n");

    // Who asks the registry without them gets nothing, although the image is here.
    apply(&task("strange", json!([])));
    cluster.wait_phase("strange", "Error")?;
    assert_eq!(cluster.field("strange", ".status.reason"), "ImagePullFailed");
    let found = Command::new("grep")
        .args(["-r", "-a", "-l", "-e", "dXNlcjp3b3Jk", "-e", "\"password\": *\"word\""])
        .args([cluster.home(), &cluster.data_dir()])
        .output()?;
    assert_eq!(String::from_utf8(found.stdout)?, "");
    assert!(!cluster.printed().contains("dXNlcjp3b3Jk"));
    Ok(())
}

/// A registry that does what the image's path says.
fn bad_registry() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || bad_answer(stream));
        }
    });
    Ok(address)
}

fn bad_answer(mut stream: TcpStream) -> Result<()> {
    let layer = vec![7_u8; 5000];
    let digest = |bytes: &[u8]| -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), bytes)?;
        Ok(format!("sha256:{}", describe(file.path())?.0))
    };
    let of_layer = digest(&layer)?;
    let config =
        json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [of_layer] } })
            .to_string();
    let of_config = digest(config.as_bytes())?;
    let kind = |name: &str| format!("application/vnd.oci.image.{name}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": { "mediaType": kind("config.v1+json"), "digest": of_config, "size": config.len() },
        "layers": [{ "mediaType": kind("layer.v1.tar"), "digest": of_layer, "size": layer.len() }],
    });
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut lines = (&mut reader).lines();
        let Some(first) = lines.next().transpose()? else {
            return Ok(());
        };
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, more, body): (&str, &str, Vec<u8>) = match path.as_str() {
            "/v2/missing/manifests/1" => ("404 Not Found", "", Vec::new()),
            "/v2/busy/manifests/1" => ("429 Too Many Requests", "Retry-After: 2\r\n", Vec::new()),
            "/v2/broken/manifests/1" => ("500 Internal Server Error", "", Vec::new()),
            "/v2/silent/manifests/1" => {
                thread::park();
                continue;
            }
            path if path.contains("/manifests/") => ("200 OK", "", manifest.to_string().into()),
            path if path.ends_with(&of_config) => ("200 OK", "", config.clone().into()),
            path if path.starts_with("/v2/damaged/") => ("200 OK", "", vec![8; layer.len()]),
            // As many as they are, and fewer than there should be.
            path if path.starts_with("/v2/short/") => ("200 OK", "", layer[..100].to_vec()),
            // What its digest says, and no archive.
            _ => ("200 OK", "", layer.clone()),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)?;
    }
}

#[test]
fn a_bad_image_is_explained_and_leaves_neither_files_nor_a_device_behind() -> Result<()> {
    let registry = bad_registry()?;
    let cluster = Cluster::start(&["--gpus", "sim:1xH100"])?;
    let images = cluster.data_dir().join("images");
    let images = images.to_str().context("a path")?;
    let work = tempfile::tempdir()?;
    image_with(work.path(), "hello\n", &["/etc"])?;
    let layout = work.path().join("layout");
    let layout = layout.to_str().context("a path")?;
    cluster
        .mctl(&["image", "import", layout, "--tag", "directory:1", "--images", images])
        .ok();
    // One after the other: each needs the only GPU, so each shows that the one before has left it.
    for (name, image, phase, says) in [
        ("missing", format!("{registry}/missing:1"), "Error", "404 Not Found"),
        (
            "damaged",
            format!("{registry}/damaged:1"),
            "Error",
            "its digest is sha256:",
        ),
        (
            "rubbish",
            format!("{registry}/rubbish:1"),
            "Error",
            "could not be fetched",
        ),
        ("directory", "directory:1".to_owned(), "Failed", "could not be run"),
        (
            "short",
            format!("{registry}/short:1"),
            "Starting",
            "100 of the 5000 bytes",
        ),
        (
            "busy",
            format!("{registry}/busy:1"),
            "Starting",
            "429 Too Many Requests",
        ),
        (
            "broken",
            format!("{registry}/broken:1"),
            "Starting",
            "500 Internal Server Error",
        ),
        (
            "silent",
            format!("{registry}/silent:1"),
            "Starting",
            "asking the registry",
        ),
    ] {
        cluster
            .mctl(&["run", name, "--gpus", "1", "--image", &image, "--detach"])
            .ok();
        cluster.wait_until(&format!("{name} says {says}"), || {
            cluster.field(name, ".status.phase") == phase && cluster.field(name, ".status.message").contains(says)
        })?;
        let reason = match phase {
            "Starting" => "PullingImage",
            "Failed" => "LaunchFailed",
            _ if name == "missing" => "ImageNotFound",
            _ => "ImagePullFailed",
        };
        assert_eq!(cluster.field(name, ".status.reason"), reason, "{name}");
        if phase == "Starting" {
            cluster.mctl(&["delete", "task", name]).ok();
        }
    }
    cluster.mctl(&["run", "well", "--gpus", "1", "--", "true"]).ok();
    let left = Command::new("find")
        .arg(cluster.data_dir())
        .args(["(", "-path", "*/pulls/*", "-o", "-path", "*/.staging/*", ")"])
        .output()?;
    assert_eq!(String::from_utf8(left.stdout)?, "", "nothing is left of them");
    assert_eq!(
        cluster.mctl(&["image", "list", "--images", images]).ok(),
        "directory:1\n"
    );
    Ok(())
}
