use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::source::digest;
use super::*;
use crate::User;

/// An entry of a layer: kind, name, and what is in it or what it points to.
type Entry<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// A layer with any names at all: the fields are written as they are.
fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let linked = matches!(*kind, LINK | HARD);
        if linked {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let data = if *kind == FILE { text.as_bytes() } else { &[] };
        header.set_size(data.len() as u64);
        header.set_cksum();
        archive.append(&header, data).expect("written");
    }
    archive.into_inner().expect("written")
}

fn blob(layout: &Path, bytes: &[u8]) -> String {
    let digest = digest(bytes);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).expect("written");
    digest
}

fn image_config(layers: &[Vec<u8>]) -> serde_json::Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": oci_spec::image::Arch::default().to_string(), "os": "linux",
        "config": { "Entrypoint": ["sh", "-c"], "Cmd": ["echo"], "Env": ["A=image", "B=image"], "WorkingDir": "/etc", "User": "me:staff" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// An OCI layout; the digest of its manifest.
fn layout(at: &Path, layers: &[Vec<u8>]) -> String {
    let config = serde_json::to_vec(&image_config(layers)).expect("plain data");
    let config_digest = blob(at, &config);
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(layer).expect("compressed");
            let packed = gzip.finish().expect("compressed");
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            json!({ "mediaType": kind, "digest": blob(at, &packed), "size": packed.len() })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len() },
        "layers": descriptors,
    });
    let manifest = serde_json::to_vec(&manifest).expect("plain data");
    let digest = blob(at, &manifest);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{ "mediaType": kind, "digest": digest, "size": manifest.len() }],
    });
    fs::write(at.join("index.json"), index.to_string()).expect("written");
    digest
}

const USERS: [Entry<'static>; 3] = [
    (DIR, "etc/", ""),
    (FILE, "etc/passwd", "root:x:0:0::/:/bin/sh\nme:x:7:8::/:/bin/sh\n"),
    (FILE, "etc/group", "staff:x:50:\n"),
];

struct Scene {
    temp: TempDir,
    images: Images,
}

impl Scene {
    fn new() -> Scene {
        let temp = tempfile::tempdir().expect("a directory");
        let images = Images::new(temp.path().join("images"));
        Scene { temp, images }
    }

    fn import(&self, name: &str, layers: &[&[Entry<'_>]]) -> Result<Imported, ImageError> {
        let source = tempfile::tempdir_in(self.temp.path()).expect("a directory");
        let users = layer(&USERS);
        let layers: Vec<Vec<u8>> = [users]
            .into_iter()
            .chain(layers.iter().map(|entries| layer(entries)))
            .collect();
        layout(source.path(), &layers);
        self.images.import(source.path(), name, None)
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        self.images.root().join(name).join("rootfs")
    }

    /// Nothing may be outside of the images' directory but what the test made.
    fn outside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.temp.path()).expect("read").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name != "images" && !name.starts_with(".tmp"))
            .collect()
    }
}

#[test]
fn layers_are_laid_over_each_other() {
    let scene = Scene::new();
    let lower: &[Entry<'_>] = &[
        (DIR, "./keep", ""),
        (FILE, "keep/old", "old"),
        (FILE, "keep/gone", "gone"),
        (DIR, "emptied", ""),
        (FILE, "emptied/old", "old"),
        (DIR, "emptied/deep", ""),
        (FILE, "emptied/deep/old", "old"),
        (FILE, "was-file", "x"),
        (DIR, "was-directory", ""),
        (FILE, "was-directory/x", "x"),
        (DIR, "usr/lib", ""),
        (LINK, "lib", "usr/lib"),
    ];
    let upper: &[Entry<'_>] = &[
        (FILE, "keep/old", "new"),
        (FILE, "keep/.wh.gone", ""),
        (FILE, "emptied/deep/new", "new"),
        (FILE, "emptied/.wh..wh..opq", ""),
        (DIR, "was-file", ""),
        (FILE, "was-directory", "y"),
        (HARD, "hard", "keep/old"),
        (FILE, "lib/through-a-link", "z"),
        (EntryType::Char, "device", ""),
    ];
    let imported = scene.import("a/b:1", &[lower, upper]).expect("imported");
    assert_eq!((imported.skipped, imported.files), (1, 3 + lower.len() + upper.len()));
    let root = scene.rootfs("a/b:1");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| format!("{error:?}"));
    assert_eq!(
        (read("keep/old"), read("hard"), read("was-directory")),
        ("new".into(), "new".into(), "y".into())
    );
    assert_eq!(
        (read("usr/lib/through-a-link"), read("emptied/deep/new")),
        ("z".into(), "new".into())
    );
    for gone in [
        "keep/gone",
        "emptied/old",
        "emptied/deep/old",
        "keep/.wh.gone",
        "device",
    ] {
        assert!(fs::symlink_metadata(root.join(gone)).is_err(), "{gone}");
    }
    assert!(root.join("was-file").is_dir());
    assert_eq!(fs::metadata(root.join("hard")).expect("there").nlink(), 2);
    assert_eq!(
        scene.images.root().metadata().expect("made").permissions().mode() & 0o077,
        0
    );
    assert_eq!(
        fs::read_dir(scene.images.root().join(STAGING)).expect("read").count(),
        0
    );
}

#[test]
fn hostile_layers_end_the_import_and_leave_nothing() {
    let cases: &[&[Entry<'_>]] = &[
        &[(FILE, "../evil", "x")],
        &[(FILE, "a/../../evil", "x")],
        &[(FILE, "/evil", "x")],
        &[(DIR, "../evil", "")],
        &[(LINK, "../evil", "x")],
        &[(HARD, "evil", "../../../../../etc/passwd")],
        &[(HARD, "evil", "/etc/passwd")],
        &[(HARD, "evil", "no/such/file")],
        &[(FILE, "../.wh.index.json", "")],
        &[(FILE, ".wh...", "")],
        &[(FILE, ".wh..", "")],
        &[(FILE, ".wh.", "")],
        &[(FILE, "a", "x"), (FILE, "a/evil", "x")],
        &[(LINK, "loop", "loop"), (FILE, "loop/evil", "x")],
    ];
    for entries in cases {
        let scene = Scene::new();
        let error = scene.import("a:1", &[entries]);
        assert!(error.is_err(), "{entries:?}");
        assert_eq!(
            (scene.images.list().expect("listed"), scene.outside()),
            (Vec::new(), Vec::new()),
            "{entries:?}"
        );
        assert!(!scene.rootfs("a:1").exists(), "{entries:?}");
    }
}

#[test]
fn links_lead_nowhere_but_into_the_image() {
    let scene = Scene::new();
    let outside = scene.temp.path().join("outside");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("file"), "untouched").expect("written");
    let absolute = outside.to_str().expect("a path").to_owned();
    let climbing = "../../../../../../../../..".to_owned() + &absolute;
    let lower: Vec<Entry<'_>> = vec![
        (LINK, "a", &absolute),
        (LINK, "b", &climbing),
        (LINK, "f", "/etc/passwd"),
    ];
    // Below a link that leads out there is nothing, inside of the image.
    let through = scene.import("x:1", &[&lower, &[(FILE, "a/file", "evil")]]);
    assert!(through.is_err());
    let through = scene.import(
        "x:2",
        &[&lower, &[(FILE, "b/.wh.file", "")], &[(FILE, "a/.wh..wh..opq", "")]],
    );
    assert!(through.is_ok(), "nothing is there to be deleted: {through:?}");
    // A file takes the place of a link, and is not written through it.
    scene
        .import("x:3", &[&lower, &[(FILE, "f", "mine")]])
        .expect("imported");
    assert_eq!(fs::read_to_string(scene.rootfs("x:3").join("f")).expect("read"), "mine");
    assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "untouched");
}

#[test]
fn damaged_and_unfitting_images_are_refused() {
    let scene = Scene::new();
    let source = scene.temp.path().join(".tmp-source");
    fs::create_dir(&source).expect("made");
    let manifest = layout(&source, &[layer(&USERS)]);
    let refused = |wanted: Option<&str>| match scene.images.import(&source, "a:1", wanted) {
        Err(ImageError::Invalid(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(refused(Some("sha256:0")).contains("was asked for"));
    for entry in fs::read_dir(source.join("blobs/sha256")).expect("read").flatten() {
        let before = fs::read(entry.path()).expect("read");
        let mut changed = before.clone();
        *changed.last_mut().expect("not empty") ^= 1;
        fs::write(entry.path(), changed).expect("written");
        assert!(scene.images.import(&source, "a:1", None).is_err(), "{entry:?}");
        fs::write(entry.path(), before).expect("written");
    }
    assert_eq!(scene.images.list().expect("listed"), [] as [&str; 0]);
    scene.images.import(&source, "a:1", Some(&manifest)).expect("imported");
    assert!(refused(None).contains("mctl image delete a:1"));
    fs::write(scene.temp.path().join(".tmp-text"), "hello").expect("written");
    let text = scene.images.import(&scene.temp.path().join(".tmp-text"), "b:1", None);
    assert!(text.is_err_and(|error| error.to_string().contains("docker save")));
}

#[test]
fn archives_of_layouts_and_of_docker_are_read_in_place() {
    let scene = Scene::new();
    let source = scene.temp.path().join(".tmp-source");
    fs::create_dir(&source).expect("made");
    layout(&source, &[layer(&USERS)]);
    let archive = scene.temp.path().join(".tmp-archive");
    let mut builder = tar::Builder::new(fs::File::create(&archive).expect("made"));
    builder.append_dir_all(".", &source).expect("written");
    builder.finish().expect("written");
    scene.images.import(&archive, "a:1", None).expect("imported");
    let packed = scene.temp.path().join(".tmp-packed");
    let mut gzip = GzEncoder::new(fs::File::create(&packed).expect("made"), Compression::fast());
    gzip.write_all(&fs::read(&archive).expect("read")).expect("written");
    gzip.finish().expect("written");
    scene.images.import(&packed, "a:2", None).expect("imported");

    let layers = [layer(&USERS)];
    let docker = scene.temp.path().join(".tmp-docker");
    let mut builder = tar::Builder::new(fs::File::create(&docker).expect("made"));
    let config = image_config(&layers).to_string();
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l/layer.tar"] }]).to_string();
    let files: [(&str, &[u8]); 3] = [
        ("manifest.json", manifest.as_bytes()),
        ("c.json", config.as_bytes()),
        ("l/layer.tar", &layers[0]),
    ];
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).expect("written");
    }
    builder.finish().expect("written");
    let imported = scene.images.import(&docker, "a:3", None).expect("imported");
    assert_eq!(imported.digest, None);
    assert_eq!(scene.images.list().expect("listed"), ["a:1", "a:2", "a:3"]);
}

#[test]
fn images_are_found_by_their_names_and_by_nothing_else() {
    let scene = Scene::new();
    scene.import("h:5/team/app:1", &[]).expect("imported");
    let image = scene.images.find("h:5/team/app:1").expect("here");
    assert_eq!(image.rootfs, scene.rootfs("h:5/team/app:1"));
    let defaults = image.defaults;
    assert_eq!(
        (defaults.user, defaults.env["A"].as_str()),
        (Some(User { uid: 7, gid: 50 }), "image")
    );
    assert_eq!(defaults.working_dir, Some("/etc".into()));
    match scene.images.find("h:5/team/app:2") {
        Err(ImageError::NotFound(message)) => {
            assert!(message.contains("there are: h:5/team/app:1. Import it"), "{message}");
            assert!(
                message.contains("mctl image import PATH --tag h:5/team/app:2 --images /"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    for name in [
        "",
        "..",
        "../images/h:5/team/app:1",
        "/etc",
        "h:5//team/app:1",
        ".staging",
        "a\0",
    ] {
        assert!(
            matches!(scene.images.find(name), Err(ImageError::Invalid(_))),
            "{name:?}"
        );
    }
    // What an image has in it is not an image.
    let inner = "h:5/team/app:1/rootfs/etc";
    assert!(matches!(scene.images.find(inner), Err(ImageError::Invalid(_))));
    assert!(scene.import("h:5/team/app:1/x:1", &[]).is_err());
    assert!(scene.import("h:5/team", &[]).is_err(), "a directory of images");
    scene.images.delete("h:5/team/app:1").expect("deleted");
    assert!(matches!(
        scene.images.delete("h:5/team/app:1"),
        Err(ImageError::NotFound(_))
    ));
    assert!(!scene.images.root().join("h:5").exists(), "nothing is left of the name");
}

#[test]
fn a_bundle_is_an_image_too() {
    let scene = Scene::new();
    let bundle = scene.images.root().join("b:1");
    fs::create_dir_all(bundle.join("rootfs")).expect("made");
    let config = json!({ "process": { "args": ["run"], "env": ["A=b"], "cwd": "/x", "user": { "uid": 1, "gid": 2 } } });
    fs::write(bundle.join("config.json"), config.to_string()).expect("written");
    let defaults = scene.images.find("b:1").expect("here").defaults;
    assert_eq!(defaults.argv(&[], &[]), ["run"]);
    assert_eq!(
        (defaults.user, defaults.working_dir),
        (Some(User { uid: 1, gid: 2 }), Some("/x".into()))
    );
}

#[test]
fn command_and_arguments_follow_the_rules_of_kubernetes() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let defaults = Defaults {
        entrypoint: words("ep 1"),
        args: words("cmd 2"),
        ..Defaults::default()
    };
    for (command, args, run) in [
        ("", "", "ep 1 cmd 2"),
        ("", "x", "ep 1 x"),
        ("c", "", "c"),
        ("c", "x", "c x"),
    ] {
        assert_eq!(
            defaults.argv(&words(command), &words(args)),
            words(run),
            "{command:?} {args:?}"
        );
    }
}

#[test]
fn users_are_looked_up_inside_of_the_image() {
    let scene = Scene::new();
    let rootfs = scene.temp.path();
    fs::create_dir(rootfs.join("etc")).expect("made");
    symlink("/etc/passwd", rootfs.join("etc/passwd")).expect("made");
    let user = |text: &str| {
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "User": text }, "rootfs": { "type": "layers", "diff_ids": [] } });
        config::of_image(config.to_string().as_bytes(), &[rootfs.to_owned()]).map(|defaults| defaults.user)
    };
    assert_eq!(user("5").expect("a number"), Some(User { uid: 5, gid: 0 }));
    assert_eq!(user("5:6").expect("numbers"), Some(User { uid: 5, gid: 6 }));
    assert_eq!(user("").expect("nobody"), None);
    assert!(user("root").is_err(), "the machine's own users are not the image's");
}
