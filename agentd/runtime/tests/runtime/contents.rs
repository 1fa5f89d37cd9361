//! Images that go into containerd's store, and what runs from them.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use libtest_mimic::Trial;
use muster_runtime::containerd::Store;
use muster_runtime::{ContainerId, ContainerSpec, Error, Rootfs};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::process::{Machine, Way};
use crate::{Cleans as _, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containerd::image_is_imported_run_and_deleted", false, imported),
        trial("containerd::archive_of_docker_save_is_imported", false, saved),
        trial("containerd::damaged_image_leaves_nothing", false, damaged),
    ]
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer with files: path, contents, mode.
fn layer(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, contents, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(*mode);
        header.set_cksum();
        archive.append_data(&mut header, path, *contents).unwrap();
    }
    archive.into_inner().unwrap()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// How a layout keeps the layer of this number: the lowest with gzip, the next with zstd, and so on.
fn packed(number: usize, layer: &[u8]) -> (Vec<u8>, &'static str) {
    if number.is_multiple_of(2) {
        (compressed(layer), "layer.v1.tar+gzip")
    } else {
        (compress_to_vec(layer, CompressionLevel::Fastest), "layer.v1.tar+zstd")
    }
}

/// busybox, and above it what it is told to print and as whom.
fn layers() -> [Vec<u8>; 2] {
    let busybox = fs::read("/bin/busybox").expect("apt-get install busybox-static");
    let lower = layer(&[("bin/sh", &busybox, 0o755), ("etc/name", b"lower", 0o644)]);
    let passwd = b"root:x:0:0::/:/bin/sh\napp:x:71:72::/:/bin/sh\n";
    let upper = layer(&[("etc/name", b"upper\n", 0o644), ("etc/passwd", passwd, 0o644)]);
    [lower, upper]
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": oci_spec::image::Arch::default(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "config": {
            "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["cat etc/name; id -u; id -g; echo $COLOUR"], "Env": ["COLOUR=blue"],
            "WorkingDir": "/", "User": "app", "Labels": { "containerd.io/restart.loguri": "binary:///bin/sh" },
        },
    });
    config.to_string().into_bytes()
}

/// An OCI layout; gives the digest of its manifest.
fn layout(at: &Path, layers: &[Vec<u8>]) -> String {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| -> Value {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len() })
    };
    let described: Vec<Value> = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| packed(number, layer))
        .map(|(bytes, kind)| put(&bytes, kind))
        .collect();
    let config = put(&config(layers), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": described });
    let manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(at.join("index.json"), index.to_string()).unwrap();
    manifest["digest"].as_str().unwrap().to_owned()
}

fn store(machine: &Machine) -> Store {
    let config = machine.contained().unwrap();
    Store::new(&config.socket, &config.namespace).unwrap()
}

fn of(machine: &Machine, name: &str, args: &[&str]) -> ContainerSpec {
    ContainerSpec {
        argv: Vec::new(),
        rootfs: Rootfs::Image {
            name: name.to_owned(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
        },
        ..machine.script("")
    }
}

async fn imported() {
    let (machine, temp) = (Machine::new(Way::Containerd), tempfile::tempdir().unwrap());
    let digest = layout(temp.path(), &layers());
    let (store, runtime) = (store(&machine), machine.open());
    let missing = runtime
        .create(&ContainerId::new("a").unwrap(), &of(&machine, "team/app:1", &[]))
        .await;
    assert!(
        matches!(&missing, Err(Error::ImageNotFound(why)) if why.contains("mctl image import")),
        "{missing:?}"
    );
    let wrong = store.import(temp.path(), "team/app:1", Some("sha256:0")).await;
    assert!(matches!(wrong, Err(Error::Invalid(_))), "{wrong:?}");
    for _ in 0..2 {
        let stored = store.import(temp.path(), "team/app:1", Some(&digest)).await.unwrap();
        assert_eq!(stored.digest, digest);
    }
    assert_eq!(store.list().await.unwrap(), ["team/app:1"]);
    for _ in 0..2 {
        let (exit, out, err) = machine.run(&runtime, &of(&machine, "team/app:1", &[])).await;
        assert_eq!(
            (exit.code, out.as_str()),
            (Some(0), "upper\n71\n72\nblue\n"),
            "{exit:?} {err}"
        );
        let mut writes = of(
            &machine,
            "team/app:1",
            &["echo mine > /etc/name; cat /etc/name /bin/new"],
        );
        writes.user = Some(muster_runtime::User { uid: 0, gid: 0 });
        let (_, out, err) = machine.run(&runtime, &writes).await;
        assert_eq!(out, "mine\n", "what is written goes with the container: {err}");
    }
    let labels = machine.ctr(&["containers", "ls"]);
    assert!(!labels.contains("restart"), "labels of images go nowhere: {labels}");
    store.delete("team/app:1").await.unwrap();
    let gone = store.delete("team/app:1").await.unwrap_err();
    assert!(gone.to_string().contains("no image is there"), "{gone}");
    machine.clean().await;
}

async fn saved() {
    let (machine, temp) = (Machine::new(Way::Containerd), tempfile::tempdir().unwrap());
    let layers = layers();
    let names = ["1/layer.tar", "2/layer.tar"];
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["saved:1"], "Layers": names }]);
    let (config, manifest) = (config(&layers), manifest.to_string());
    let mut files: Vec<(&str, &[u8], u32)> = vec![
        ("manifest.json", manifest.as_bytes(), 0o644),
        ("config.json", &config, 0o644),
    ];
    files.extend(
        names
            .iter()
            .zip(&layers)
            .map(|(name, layer)| (*name, layer.as_slice(), 0o644)),
    );
    let path = temp.path().join("saved.tar.gz");
    fs::write(&path, compressed(&layer(&files))).unwrap();
    store(&machine).import(&path, "saved:1", None).await.unwrap();
    let (exit, out, err) = machine.run(&machine.open(), &of(&machine, "saved:1", &[])).await;
    assert_eq!(
        (exit.code, out.as_str()),
        (Some(0), "upper\n71\n72\nblue\n"),
        "{exit:?} {err}"
    );
    machine.clean().await;
}

async fn damaged() {
    let (machine, temp) = (Machine::new(Way::Containerd), tempfile::tempdir().unwrap());
    let [lower, upper] = layers();
    layout(temp.path(), &[lower.clone(), upper.clone()]);
    let store = store(&machine);
    let blob = |layer: &[u8]| {
        let digest = digest(&packed(1, layer).0);
        temp.path()
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    };
    // One that is cut off, and one that is whole but is not what the configuration says.
    let whole = fs::read(blob(&upper)).unwrap();
    fs::write(blob(&upper), &whole[..whole.len() / 2]).unwrap();
    let cut = store.import(temp.path(), "bad:1", None).await;
    assert!(
        matches!(&cut, Err(Error::Invalid(why)) if why.contains("damaged")),
        "{cut:?}"
    );
    fs::write(blob(&upper), &whole).unwrap();
    let index = temp.path().join("index.json");
    let told: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let at = |digest: &Value| {
        temp.path()
            .join("blobs/sha256")
            .join(digest.as_str().unwrap().trim_start_matches("sha256:"))
    };
    let mut manifest: Value = serde_json::from_slice(&fs::read(at(&told["manifests"][0]["digest"])).unwrap()).unwrap();
    let other = config(&[upper, lower]);
    manifest["config"]["digest"] = json!(digest(&other));
    manifest["config"]["size"] = json!(other.len());
    let bytes = manifest.to_string().into_bytes();
    fs::write(at(&json!(digest(&other))), &other).unwrap();
    fs::write(at(&json!(digest(&bytes))), &bytes).unwrap();
    let told = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&bytes), "size": bytes.len(),
    }] });
    fs::write(index, told.to_string()).unwrap();
    let swapped = store.import(temp.path(), "bad:1", None).await;
    assert!(
        matches!(&swapped, Err(Error::Invalid(why)) if why.contains("unpacks to")),
        "{swapped:?}"
    );
    assert_eq!(store.list().await.unwrap(), [""; 0]);
    machine.clean().await;
}
