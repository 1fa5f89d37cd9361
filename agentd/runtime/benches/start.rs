//! How long it takes from nothing to the exit of `true`, and what a shim weighs; beside `runc run` for the same, in the same minute.
//!
//! `cargo bench -p muster-runtime --bench start`, as root. Prints medians.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use muster_runtime::process::{Config, ShimCommand, shim_main};
use muster_runtime::{ContainerId, ContainerSpec, Limits, ProcessRuntime, Rootfs, Runtime, State, Stop};
use tokio::time::Instant;

const ROUNDS: usize = 40;
const PARALLEL: usize = 8;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == "shim") {
        return shim_main(args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measure());
    ExitCode::SUCCESS
}

async fn measure() {
    let state = tempfile::tempdir().expect("a directory");
    let config = Config {
        cgroup_parent: format!("/muster-bench-{}", std::process::id()),
        shim: ShimCommand {
            program: "/proc/self/exe".into(),
            args: vec!["shim".into()],
        },
        ..Config::new(state.path())
    };
    let containers = Arc::new(ProcessRuntime::new(config).expect("a runtime"));
    println!(
        "missing isolation: {:?}",
        containers.isolation().missing.keys().collect::<Vec<_>>()
    );
    let mut times = Vec::new();
    for n in 0..ROUNDS {
        times.push(run(&containers, &format!("one-{n}")).await);
    }
    report("one after the other", &times);
    let mut times = Vec::new();
    for round in 0..ROUNDS / PARALLEL {
        let ids: Vec<String> = (0..PARALLEL).map(|n| format!("many-{round}-{n}")).collect();
        times.extend(futures::future::join_all(ids.iter().map(|id| run(&containers, id))).await);
    }
    report("eight at a time", &times);
    weigh(&containers, state.path()).await;
    containers.close();
    runc();
}

struct Times {
    created: Duration,
    started: Duration,
    exited: Duration,
    removed: Duration,
}

async fn run(containers: &ProcessRuntime, name: &str) -> Times {
    let id = ContainerId::new(name).expect("an id");
    let mut changes = containers.changes();
    let begin = Instant::now();
    containers.create(&id, &command(&["true"])).await.expect("created");
    let created = begin.elapsed();
    containers.start(&id).await.expect("started");
    let started = begin.elapsed();
    while !exited(containers, &id).await {
        changes.next().await;
    }
    let exited = begin.elapsed();
    containers.remove(&id).await.expect("removed");
    Times {
        created,
        started,
        exited,
        removed: begin.elapsed(),
    }
}

async fn exited(containers: &ProcessRuntime, id: &ContainerId) -> bool {
    let listed = containers.list().await.expect("listed");
    listed
        .iter()
        .any(|container| container.id == *id && matches!(container.state, State::Exited(_)))
}

fn command(argv: &[&str]) -> ContainerSpec {
    ContainerSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        rootfs: Rootfs::Host,
        mounts: Vec::new(),
        memory: Vec::new(),
        variables: None,
        devices: Vec::new(),
        limits: Limits {
            memory_bytes: Some(64 << 20),
            pids: Some(50),
            ..Limits::default()
        },
        labels: BTreeMap::new(),
    }
}

fn report(what: &str, times: &[Times]) {
    let of = |pick: fn(&Times) -> Duration| median(times.iter().map(pick).collect());
    println!(
        "{what}: created {:.1} ms, started {:.1} ms, exited {:.1} ms, removed {:.1} ms (medians of {})",
        of(|times| times.created),
        of(|times| times.started),
        of(|times| times.exited),
        of(|times| times.removed),
        times.len()
    );
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// What a shim and the first process of its container take of the memory: resident, and the part that nobody shares.
async fn weigh(containers: &ProcessRuntime, state: &Path) {
    let id = ContainerId::new("weight").expect("an id");
    containers
        .create(&id, &command(&["sleep", "infinity"]))
        .await
        .expect("created");
    containers.start(&id).await.expect("started");
    let directory = state.join("containers/weight");
    let processes = || fs::read_dir("/proc").expect("proc").flatten();
    let is_shim = |entry: &fs::DirEntry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory);
    let shim = processes().find(is_shim).expect("its shim").file_name();
    let parent = format!("PPid:\t{}\n", shim.to_string_lossy());
    let is_first = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("status")).is_ok_and(|status| status.contains(&parent))
    };
    for entry in processes().filter(|entry| entry.file_name() == shim || is_first(entry)) {
        let text = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let kib = |key: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(key));
            lines
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .sum()
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        println!(
            "process {}: resident {} KiB, private {} KiB",
            comm.trim(),
            kib("Rss:"),
            kib("Private_")
        );
    }
    let mut changes = containers.changes();
    containers
        .stop(
            &id,
            Stop {
                signal: 9,
                grace: Duration::ZERO,
            },
        )
        .await
        .expect("stopped");
    while !exited(containers, &id).await {
        changes.next().await;
    }
    containers.remove(&id).await.expect("removed");
}

fn runc() {
    let bundle = tempfile::tempdir().expect("a directory");
    let bin = bundle.path().join("rootfs/bin");
    fs::create_dir_all(&bin).expect("made");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("apt-get install busybox-static");
    symlink("busybox", bin.join("true")).expect("linked");
    let made = Command::new("runc")
        .args(["spec", "--bundle"])
        .arg(bundle.path())
        .status()
        .expect("apt-get install runc");
    assert!(made.success(), "runc spec");
    let config = bundle.path().join("config.json");
    let text = fs::read_to_string(&config).expect("read");
    fs::write(
        &config,
        text.replace("\"sh\"", "\"true\"")
            .replace("\"terminal\": true", "\"terminal\": false"),
    )
    .expect("written");
    let once = |n: usize| {
        let mut runc = Command::new("runc");
        runc.args(["run", "--bundle"])
            .arg(bundle.path())
            .arg(format!("muster-bench-{}-{n}", std::process::id()));
        runc
    };
    let time = |n: usize| {
        let begin = Instant::now();
        assert!(once(n).status().expect("run").success(), "runc run");
        begin.elapsed()
    };
    let one = median((0..ROUNDS).map(time).collect());
    let many = (0..ROUNDS / PARALLEL).flat_map(|round| {
        let run = |n: usize| {
            let mut runc = once(ROUNDS + round * PARALLEL + n);
            std::thread::spawn(move || {
                let begin = Instant::now();
                assert!(runc.status().expect("run").success(), "runc run");
                begin.elapsed()
            })
        };
        let threads: Vec<_> = (0..PARALLEL).map(run).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("ran"))
            .collect::<Vec<_>>()
    });
    let many = median(many.collect());
    println!(
        "runc run, exited and removed: one after the other {one:.1} ms, eight at a time {many:.1} ms (medians of {ROUNDS})"
    );
}
