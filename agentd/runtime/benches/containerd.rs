//! How long a container of containerd takes through this runtime, beside `ctr run` for the same image, in turns.
//!
//! `cargo bench -p muster-runtime --bench containerd`, as root. Starts a containerd of its own, and prints medians.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use muster_runtime::process::{self, ShimCommand, shim_main};
use muster_runtime::{ContainerId, ContainerSpec, ContainerdRuntime, Limits, Rootfs, Runtime as _, State, containerd};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

const ROUNDS: usize = 25;
const IMAGE: &str = "muster.dev/bench:1";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == "shim") {
        return shim_main(args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(measure());
    ExitCode::SUCCESS
}

async fn measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut daemon, socket) = (start(directory.path()), directory.path().join("socket"));
    while containerd::answers(&socket, Duration::from_secs(1)).await.is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let layout = directory.path().join("layout");
    image(&layout);
    let store = containerd::Store::new(&socket, containerd::NAMESPACE_DEFAULT).expect("a store");
    store.import(&layout, IMAGE, None).await.expect("imported");
    let base = process::Config {
        shim: ShimCommand {
            program: "/proc/self/exe".into(),
            args: vec!["shim".into()],
        },
        ..process::Config::new(directory.path().join("agent"))
    };
    let runtime = ContainerdRuntime::new(containerd::Config::new(base, &socket)).expect("a runtime");
    let (mut started, mut removed, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..=ROUNDS {
        let (to_start, to_remove) = ours(&runtime, n).await;
        let ctr = ctr(&socket, n);
        // The first of each fills caches.
        if n > 0 {
            started.push(to_start);
            removed.push(to_remove);
            beside.push(ctr);
        }
    }
    let (started, removed, beside) = (median(started), median(removed), median(beside));
    println!("started {started:.1} ms, exited and removed {removed:.1} ms (medians of {ROUNDS})");
    println!("ctr run --rm {beside:.1} ms; ratio {:.2}", removed / beside);
    runtime.close();
    daemon.kill().expect("ended");
    daemon.wait().expect("ended");
}

fn start(at: &Path) -> Child {
    let directory = at.display();
    let config = format!(
        "version = 2\nroot = \"{directory}/root\"\nstate = \"{directory}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{directory}/socket\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{directory}/opt\"\n"
    );
    fs::write(at.join("config.toml"), config).expect("written");
    let mut containerd = Command::new("containerd");
    containerd.arg("--config").arg(at.join("config.toml"));
    let containerd = containerd
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    containerd.spawn().expect("apt-get install containerd runc")
}

/// busybox, as an OCI layout.
fn image(at: &Path) {
    let root = tempfile::tempdir().expect("a directory");
    fs::create_dir(root.path().join("bin")).expect("made");
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("apt-get install busybox-static");
    symlink("busybox", root.path().join("bin/true")).expect("linked");
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", root.path()).expect("packed");
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    let blob = |bytes: &[u8], kind: &str| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).expect("written");
        let kind = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let layer = blob(&archive.into_inner().expect("packed"), "layer.v1.tar");
    let config = serde_json::json!({
        "architecture": oci_spec::image::Arch::default(), "os": "linux", "config": { "Cmd": ["true"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(at.join("index.json"), index.to_string()).expect("written");
}

/// Until the command was started, and until all of it was removed.
async fn ours(runtime: &ContainerdRuntime, n: usize) -> (Duration, Duration) {
    let id = ContainerId::new(format!("ours-{n}")).expect("an id");
    let spec = ContainerSpec {
        argv: vec!["true".to_owned()],
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        rootfs: Rootfs::Image {
            name: IMAGE.to_owned(),
            args: Vec::new(),
        },
        mounts: Vec::new(),
        memory: Vec::new(),
        variables: None,
        devices: Vec::new(),
        limits: Limits::default(),
        labels: BTreeMap::new(),
    };
    let mut changes = runtime.changes();
    let begin = Instant::now();
    runtime.create(&id, &spec).await.expect("created");
    runtime.start(&id).await.expect("started");
    let started = begin.elapsed();
    loop {
        let listed = runtime.list().await.expect("listed");
        let ended = |state: &State| matches!(state, State::Exited(exit) if exit.code == Some(0));
        if listed
            .iter()
            .any(|container| container.id == id && ended(&container.state))
        {
            break;
        }
        changes.next().await;
    }
    runtime.remove(&id).await.expect("removed");
    (started, begin.elapsed())
}

fn ctr(socket: &Path, n: usize) -> Duration {
    let begin = Instant::now();
    let mut ctr = Command::new("ctr");
    ctr.arg("--address")
        .arg(socket)
        .args(["-n", containerd::NAMESPACE_DEFAULT, "run", "--rm", IMAGE]);
    let ran = ctr.arg(format!("theirs-{n}")).arg("true").status();
    assert!(ran.expect("ctr").success(), "ctr run");
    begin.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
