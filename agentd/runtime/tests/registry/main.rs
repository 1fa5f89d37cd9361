//! Fetching images from a registry that does everything wrong that one can do.

#![allow(clippy::unwrap_used, reason = "tests")]

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use muster_runtime::process::{self, ShimCommand};
use muster_runtime::registry::{Config, Keys, Order, Progress, PullError, fetch};
use muster_runtime::{Images, ProcessRuntime, Runtime as _};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use server::{Fault, Registry, digest};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Two layers, one with a file `/etc/greeting`, one with this many bytes besides.
struct Image {
    layers: [Vec<u8>; 2],
    manifest: Value,
}

fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes).unwrap();
    archive.into_inner().unwrap()
}

fn image(registry: &Registry) -> Image {
    image_that_says(registry, b"hello\n")
}

fn image_that_says(registry: &Registry, greeting: &[u8]) -> Image {
    let layers = [tar("etc/greeting", greeting), tar("large", &[7; 300_000])];
    let config = json!({
        "architecture": oci_spec::image::Arch::default(), "os": "linux", "config": { "Cmd": ["cat", "/etc/greeting"] },
        "rootfs": { "type": "layers", "diff_ids": layers.each_ref().map(|layer| digest(layer)) },
    });
    let blobs = layers
        .each_ref()
        .map(|layer| registry.blob(layer, "application/vnd.oci.image.layer.v1.tar"));
    let config = registry.blob(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": blobs });
    let manifest = registry.document(&manifest, "1", MANIFEST);
    Image { layers, manifest }
}

/// Where one pull puts what comes.
struct Place {
    directory: tempfile::TempDir,
    config: Config,
    progress: Progress,
}

impl Place {
    fn new() -> Place {
        Place {
            directory: tempfile::tempdir().unwrap(),
            config: Config::default(),
            progress: Progress::default(),
        }
    }

    fn impatient() -> Place {
        let mut place = Place::new();
        place.config.patience = Duration::from_millis(300);
        place
    }

    fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    async fn fetch(&self, name: &str) -> Result<(), PullError> {
        fetch(&self.config, &Order::of(name), &self.layout(), &self.progress).await
    }

    /// What came can be imported, and says hello.
    fn check(&self) {
        let images = Images::new(self.directory.path().join("images"));
        images.import(&self.layout(), "x:1", None).unwrap();
        let rootfs = images.find("x:1").unwrap().rootfs;
        assert_eq!(fs::read_to_string(rootfs.join("etc/greeting")).unwrap(), "hello\n");
        let seen = self.progress.seen();
        assert_eq!(seen.fetched, seen.total, "all of it was counted, once");
    }
}

#[tokio::test]
async fn an_image_comes_by_tag_and_by_digest_and_can_be_imported() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let by_digest = format!("team/app@{}", image.manifest["digest"].as_str().unwrap());
    for name in ["team/app:1", &by_digest] {
        let place = Place::new();
        place.fetch(&registry.name(name)).await.unwrap();
        place.check();
    }
}

#[tokio::test]
async fn of_an_index_that_for_this_machine_comes() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let mut ours = image.manifest.clone();
    ours["platform"] = json!({ "architecture": oci_spec::image::Arch::default(), "os": "linux" });
    let other = json!({
        "mediaType": MANIFEST, "digest": digest(b"nowhere"), "size": 1,
        "platform": { "architecture": "s390x", "os": "linux" },
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours] });
    let index = registry.document(&index, "many", INDEX);
    let by_digest = format!("team/app@{}", index["digest"].as_str().unwrap());
    for name in ["team/app:many", &by_digest] {
        let place = Place::new();
        place.fetch(&registry.name(name)).await.unwrap();
        place.check();
    }
    let only = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other] });
    registry.document(&only, "foreign", INDEX);
    let error = Place::new()
        .fetch(&registry.name("team/app:foreign"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, PullError::Damaged(why) if why.contains("no image for linux/")),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_said_in_its_words() {
    let registry = Registry::start().await;
    image(&registry);
    let error = Place::new().fetch(&registry.name("team/app:2")).await.unwrap_err();
    let expect = format!(
        "{} answers 404 Not Found to GET /v2/team/app/manifests/2: MANIFEST_UNKNOWN not known",
        registry.address
    );
    assert_eq!(error, PullError::NotFound(expect));
}

#[tokio::test]
async fn a_registry_that_has_no_time_or_is_broken_is_asked_again_later() {
    let registry = Registry::start().await;
    image(&registry);
    let place = Place::new();
    registry.fault("manifests", Fault::Busy("7"));
    let error = place.fetch(&registry.name("team/app:1")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Later { message, after: Some(after) } if message.contains("429") && after.as_secs() == 7),
        "{error:?}"
    );
    for word in ["manifests", "blobs"] {
        registry.fault(word, Fault::Status(StatusCode::INTERNAL_SERVER_ERROR));
        let error = place.fetch(&registry.name("team/app:1")).await.unwrap_err();
        assert!(
            !error.is_final() && error.to_string().contains("500 Internal Server Error"),
            "{error}"
        );
    }
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
}

#[tokio::test]
async fn a_registry_that_hangs_is_given_up() {
    let registry = Registry::start().await;
    image(&registry);
    for (word, fault, says) in [
        ("manifests", Fault::Silent, "does not answer"),
        ("manifests", Fault::Stall(10), "has sent nothing"),
        ("blobs", Fault::Silent, "does not answer"),
    ] {
        let place = Place::impatient();
        registry.fault(word, fault);
        let error = place.fetch(&registry.name("team/app:1")).await.unwrap_err();
        assert!(!error.is_final() && error.to_string().contains(says), "{error}");
    }
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let error = Place::new().fetch(&format!("{address}/team/app:1")).await.unwrap_err();
    assert!(
        !error.is_final() && error.to_string().contains("Connection refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_that_ends_too_early_is_made_again_for_the_rest() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let large = digest(&image.layers[1]);
    registry.fault(&large, Fault::Cut(100_000));
    registry.fault(&large, Fault::Cut(50_000));
    let place = Place::new();
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
    let ranges: Vec<Option<String>> = {
        let state = registry.state();
        let asked = state.asked.iter().filter(|(path, _, _)| path.contains(&large));
        asked.map(|(_, range, _)| range.clone()).collect()
    };
    let begins = |n: usize| format!("bytes={n}-");
    assert_eq!(ranges, [None, Some(begins(100_000)), Some(begins(150_000))]);
}

#[tokio::test]
async fn what_has_come_does_not_come_again() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let [small, large] = image.layers.each_ref().map(|layer| digest(layer));
    let place = Place::impatient();
    registry.fault(&large, Fault::Stall(200_000));
    registry.fault(&large, Fault::Status(StatusCode::BAD_GATEWAY));
    let error = place.fetch(&registry.name("team/app:1")).await.unwrap_err();
    assert!(error.to_string().contains("502"), "{error}");
    // Another process, perhaps.
    let again = Place {
        progress: Progress::default(),
        ..place
    };
    again.fetch(&registry.name("team/app:1")).await.unwrap();
    again.check();
    assert_eq!(registry.asked(&small), 1, "it was here");
    let last = registry.state().asked.last().unwrap().clone();
    assert_eq!(
        (last.0.contains(&large), last.1.as_deref()),
        (true, Some("bytes=200000-"))
    );
}

#[tokio::test]
async fn a_registry_that_knows_no_ranges_sends_all_of_it_again() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let large = digest(&image.layers[1]);
    registry.fault(&large, Fault::Cut(100_000));
    registry.fault(&large, Fault::Whole);
    let place = Place::new();
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
    assert_eq!(registry.asked(&large), 2);
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let large = digest(&image.layers[1]);
    let place = Place::new();
    for (word, bytes, says) in [
        (large.as_str(), vec![8; image.layers[1].len()], "its digest is"),
        (&large, vec![7; image.layers[1].len() + 1], "sends more"),
        ("manifests/sha256", b"{}".to_vec(), "is damaged"),
        ("manifests/1", b"<html>".to_vec(), "is no manifest"),
        ("manifests/1", br#"{"schemaVersion": 1}"#.to_vec(), "of version 1"),
    ] {
        registry.fault(word, Fault::Instead(bytes));
        let reference = if word == "manifests/sha256" {
            format!("team/app@{}", image.manifest["digest"].as_str().unwrap())
        } else {
            "team/app:1".to_owned()
        };
        let error = place.fetch(&registry.name(&reference)).await.unwrap_err();
        assert!(
            matches!(&error, PullError::Damaged(why) if why.contains(says)),
            "{error}"
        );
    }
    registry.fault(&large, Fault::Instead(image.layers[1][..1000].to_vec()));
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
}

#[tokio::test]
async fn a_truncated_layer_that_never_gets_whole_is_no_image() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let path = format!("/v2/team/app/blobs/{}", digest(&image.layers[1]));
    let short = image.layers[1][..1000].to_vec();
    registry.state().things.get_mut(&path).unwrap().1 = short;
    let place = Place::new();
    let error = place.fetch(&registry.name("team/app:1")).await.unwrap_err();
    assert!(!error.is_final(), "{error}");
    assert!(!place.layout().join("index.json").exists(), "it is no layout");
}

#[tokio::test]
async fn credentials_are_exchanged_for_a_token_and_go_nowhere_else() {
    let (registry, elsewhere) = (Registry::start().await, Registry::start().await);
    let image = image(&registry);
    let basic = format!("Basic {}", STANDARD.encode("user:word"));
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"here\"", registry.address);
    registry.state().door = Some(("Bearer let-me-in".to_owned(), realm));
    registry.state().login = Some(basic.clone());
    let refused = Place::new().fetch(&registry.name("team/app:1")).await.unwrap_err();
    assert!(
        matches!(&refused, PullError::Refused(why) if why.contains("--registry-credentials")),
        "{refused}"
    );

    let mut place = Place::new();
    let file = place.directory.path().join("config.json");
    let auths = json!({ registry.address.to_string(): { "auth": STANDARD.encode("user:word") } });
    fs::write(&file, json!({ "auths": auths }).to_string()).unwrap();
    place.config.credentials = Some(file);
    // One of its blobs is kept by somebody else.
    let large = digest(&image.layers[1]);
    let path = format!("/store/{large}");
    let thing = ("application/octet-stream".to_owned(), image.layers[1].clone());
    elsewhere.state().things.insert(path.clone(), thing);
    registry.fault(
        &format!("blobs/{large}"),
        Fault::Elsewhere(format!("http://{}{path}", elsewhere.address)),
    );
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
    let asked = &registry.state().asked;
    let token = asked.iter().rfind(|(path, _, _)| path.starts_with("/token")).unwrap();
    assert_eq!(token.0, "/token?service=here&scope=repository%3Ateam/app%3Apull");
    assert_eq!(token.2.as_ref(), Some(&basic));
    assert_eq!(elsewhere.state().asked, [(path, None, None)]);
}

#[tokio::test]
async fn credentials_are_sent_to_who_wants_no_token() {
    let registry = Registry::start().await;
    image(&registry);
    let basic = format!("Basic {}", STANDARD.encode("user:word"));
    registry.state().door = Some((basic, "Basic realm=\"here\"".to_owned()));
    let mut place = Place::new();
    let file = place.directory.path().join("config.json");
    let auths = json!({ registry.address.to_string(): { "username": "user", "password": "word" } });
    fs::write(&file, json!({ "auths": auths }).to_string()).unwrap();
    place.config.credentials = Some(file);
    place.fetch(&registry.name("team/app:1")).await.unwrap();
    place.check();
}

#[tokio::test]
async fn only_registries_that_are_allowed_are_asked_and_names_are_not_completed() {
    let registry = Registry::start().await;
    image(&registry);
    let mut place = Place::new();
    place.config.allowed = ["registry.example".to_owned()].into();
    for name in [registry.name("team/app:1"), "busybox:1".to_owned()] {
        let error = place.fetch(&name).await.unwrap_err();
        assert!(matches!(error, PullError::Refused(_)), "{error}");
    }
    assert_eq!(registry.asked(""), 0);
    place.config.allowed = [registry.address.to_string()].into();
    place.fetch(&registry.name("team/app:1")).await.unwrap();
}

#[tokio::test]
async fn answers_that_point_in_a_circle_have_an_end() {
    let registry = Registry::start().await;
    image(&registry);
    for _ in 0..10 {
        registry.fault("manifests", Fault::Elsewhere("/v2/team/app/manifests/1".to_owned()));
    }
    let error = Place::new().fetch(&registry.name("team/app:1")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Damaged(why) if why.contains("points from one place")),
        "{error}"
    );
}

/// A machine that fetches images.
struct Machine {
    directory: tempfile::TempDir,
    runtime: ProcessRuntime,
    images: Images,
}

impl Machine {
    /// `images` and what comes are below this directory, if it is said; else below one of its own.
    fn with(below: Option<&Path>) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let root = below.unwrap_or(directory.path());
        let images = Images::new(root.join("images"));
        let runtime = ProcessRuntime::new(process::Config {
            images: images.clone(),
            shim: ShimCommand {
                program: "/bin/false".into(),
                args: Vec::new(),
            },
            ..process::Config::new(root.join("state"))
        });
        Machine {
            runtime: runtime.unwrap(),
            images,
            directory,
        }
    }

    async fn pull(&self, order: &Order) -> Result<(), PullError> {
        let puller = self.runtime.puller().expect("run this as root, with cgroups");
        puller.pull(order, &Progress::default()).await
    }

    fn greeting(&self, name: &str) -> String {
        let rootfs = self.images.find(name).unwrap().rootfs;
        fs::read_to_string(rootfs.join("etc/greeting")).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.runtime.close();
    }
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_name_means_what_its_registry_said_last_when_that_is_asked_anew() {
    let registry = Registry::start().await;
    let first = image(&registry);
    let machine = Machine::with(None);
    let name = registry.name("team/app:1");
    let (if_absent, always) = (
        Order::of(&name),
        Order {
            anew: true,
            ..Order::of(&name)
        },
    );
    machine.pull(&always).await.unwrap();
    let old = machine.images.find(&name).unwrap();
    assert_eq!(old.digest.as_deref(), first.manifest["digest"].as_str());
    let old_root = old.rootfs.canonicalize().unwrap();

    let second = image_that_says(&registry, b"good evening\n");
    let asked = registry.asked("");
    machine.pull(&if_absent).await.unwrap();
    assert_eq!(
        (machine.greeting(&name).as_str(), registry.asked("")),
        ("hello\n", asked),
        "it is here"
    );
    machine.pull(&always).await.unwrap();
    assert_eq!(machine.greeting(&name), "good evening\n");
    assert_eq!(
        machine.images.find(&name).unwrap().digest.as_deref(),
        second.manifest["digest"].as_str()
    );
    // Whoever runs from the old one keeps it.
    assert_eq!(fs::read_to_string(old_root.join("etc/greeting")).unwrap(), "hello\n");
    let blobs = registry.asked("blobs");
    machine.pull(&always).await.unwrap();
    assert_eq!(
        registry.asked("blobs"),
        blobs,
        "it is here, so only its digest is asked for"
    );
    let digest = second.manifest["digest"].as_str().unwrap();
    assert_eq!(machine.images.list().unwrap().len(), 3, "two images, and the name");
    machine.images.delete(&name).unwrap();
    assert_eq!(
        machine.images.list().unwrap().len(),
        1,
        "with its last name goes the image"
    );
    assert!(
        machine
            .images
            .find(&registry.name(&format!("team/app@{digest}")))
            .is_err()
    );
    assert_eq!(entries(&machine.images.root().join(".staging")), 0);
}

#[tokio::test]
async fn layers_may_be_compressed_with_zstd() {
    let registry = Registry::start().await;
    let layer = tar("etc/greeting", b"hello\n");
    let packed = compress_to_vec(layer.as_slice(), CompressionLevel::Fastest);
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    let config = json!({
        "architecture": oci_spec::image::Arch::default(), "os": "linux", "config": { "Cmd": ["cat"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = registry.blob(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let layers = [registry.blob(&packed, kind)];
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    registry.document(&manifest, "1", MANIFEST);
    let machine = Machine::with(None);
    let name = registry.name("team/app:1");
    machine.pull(&Order::of(&name)).await.unwrap();
    assert_eq!(machine.greeting(&name), "hello\n");
}

#[tokio::test]
async fn the_keys_of_an_order_count_before_those_of_the_machine_and_are_written_nowhere() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let basic = format!("Basic {}", STANDARD.encode("user:s3cret"));
    registry.state().door = Some((basic, "Basic realm=\"here\"".to_owned()));
    let keys = |word: &str| {
        let auths = json!({ registry.address.to_string(): { "username": "user", "password": word } });
        Keys::from(json!({ "auths": auths }).to_string().as_bytes())
    };
    let order = |keys: Vec<Keys>, whose: &str| Order {
        keys,
        whose: whose.to_owned(),
        ..Order::of(registry.name("team/app:1"))
    };
    let machine = Machine::with(None);
    for wrong in [order(Vec::new(), ""), order(vec![keys("wrong")], "a/s")] {
        let error = machine.pull(&wrong).await.unwrap_err();
        assert!(
            matches!(&error, PullError::Refused(why) if why.contains("spec.imagePullSecrets") && !why.contains("wrong")),
            "{error}"
        );
    }
    // What has come with somebody's keys is of no use to who has none.
    let state = machine.directory.path().join("state");
    let large = digest(&image.layers[1]);
    registry.fault(&large, Fault::Status(StatusCode::BAD_GATEWAY));
    let mine = order(vec![keys("s3cret")], "b/s");
    assert!(!machine.pull(&mine).await.unwrap_err().is_final());
    assert_eq!(entries(&state.join("pulls")), 1, "it is gone on with");
    let found = Command::new("grep")
        .args(["-r", "-a", "-e", "s3cret", "-e", &STANDARD.encode("user:s3cret")])
        .arg(machine.directory.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    machine.pull(&order(Vec::new(), "")).await.unwrap_err();
    machine.pull(&mine).await.unwrap();
    assert_eq!(machine.greeting(&registry.name("team/app:1")), "hello\n");
    assert_eq!(entries(&state.join("pulls")), 0);
}

/// A file system that is soon full.
struct Small(tempfile::TempDir);

impl Small {
    fn of(kib: u32) -> Small {
        let at = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        mount(
            Some("tmpfs"),
            at.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .expect("run this as root");
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_before_in_the_middle_of_or_after_a_pull_keeps_nothing_of_it() {
    let registry = Registry::start().await;
    let image = image(&registry);
    let large = digest(&image.layers[1]);
    let order = Order::of(registry.name("team/app:1"));
    // Room for nothing; for the layers, until somebody else needs it; for the layers, and not for what is in them.
    for (kib, fill, says) in [
        (200, false, "are free at"),
        (1000, true, "No space left"),
        (500, false, "No space left"),
    ] {
        let disk = Small::of(kib);
        let machine = Machine::with(Some(disk.0.path()));
        let filler = disk.0.path().join("filler");
        if fill {
            registry.fault(&large, Fault::Fill(filler.clone()));
        }
        let error = machine.pull(&order).await.unwrap_err();
        assert!(
            matches!(&error, PullError::Disk(why) if why.to_lowercase().contains(&says.to_lowercase())),
            "{kib}: {error:?}"
        );
        assert_eq!(machine.images.list().unwrap(), [""; 0], "{kib}");
        let (state, images) = (disk.0.path().join("state"), machine.images.root());
        assert_eq!(
            (entries(&state.join("pulls")), entries(&images.join(".staging"))),
            (0, 0),
            "{kib}"
        );
        if fill {
            // There is room again.
            fs::remove_file(filler).unwrap();
            machine.pull(&order).await.unwrap();
            assert_eq!(machine.greeting(&order.image), "hello\n");
        }
    }
}
