//! How many commits a second the embedded store acknowledges, beside what the disk allows, and what objects cost in memory.
//!
//! `raw` appends the same bytes to a file and calls fdatasync, with as many records per sync as there are committers: no
//! store that keeps its word can be faster on one file. Figures of one run can be compared with each other, and with no
//! other run: disks vary. `MUSTER_BENCH_DIR` chooses the disk (default: the temporary directory).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_store::embedded::Options;
use muster_store::{Compare, EmbeddedStore, Key, MemoryStore, Op, Store, Txn};
use tokio::runtime::Runtime;
use tokio::time::Instant;

const VALUE_BYTES: usize = 1_500;
const ROUNDS: usize = 5;
const ROUND_TIME: Duration = Duration::from_secs(1);

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    let time = if std::env::args().any(|arg| arg == "--bench") {
        ROUND_TIME
    } else {
        Duration::from_millis(20)
    };
    let base = std::env::var_os("MUSTER_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base).expect("a directory can be made");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime can be made");
    println!("commits/s of {VALUE_BYTES} bytes, medians of {ROUNDS} rounds (lowest to highest)");
    println!(
        "{:>10}  {:>22}  {:>22}  {:>5}",
        "committers", "embedded store", "raw append + sync", "ratio"
    );
    for committers in [1, 16, 64] {
        let (mut store, mut raw) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let name = format!("{committers}-{round}");
            raw.push(append(&directory.path().join(format!("raw-{name}")), committers, time));
            store.push(runtime.block_on(commit(
                &directory.path().join(format!("store-{name}")),
                committers,
                time,
            )));
        }
        let (store, raw) = (Figures::of(store), Figures::of(raw));
        let ratio = store.median / raw.median * 100.0;
        println!(
            "{committers:>10}  {:>22}  {:>22}  {ratio:>4.0}%",
            store.text(),
            raw.text()
        );
    }
    memory(&runtime, directory.path());
    restart(&runtime, directory.path(), time);
}

struct Figures {
    low: f64,
    median: f64,
    high: f64,
}

impl Figures {
    fn of(mut rates: Vec<f64>) -> Figures {
        rates.sort_by(f64::total_cmp);
        Figures {
            low: rates[0],
            median: rates[rates.len() / 2],
            high: rates[rates.len() - 1],
        }
    }

    fn text(&self) -> String {
        format!("{:.0} ({:.0} to {:.0})", self.median, self.low, self.high)
    }
}

/// Records a second, `group` of them to a sync.
fn append(path: &Path, group: usize, time: Duration) -> f64 {
    let mut file = File::create(path).expect("a file can be made");
    let bytes = vec![7; VALUE_BYTES * group];
    let start = Instant::now();
    let mut records = 0;
    while start.elapsed() < time {
        file.write_all(&bytes).expect("the disk has room");
        file.sync_data().expect("the disk works");
        records += group;
    }
    records as f64 / start.elapsed().as_secs_f64()
}

/// Compare-and-swaps a second, each committer on keys of its own.
async fn commit(path: &Path, committers: usize, time: Duration) -> f64 {
    let store = Arc::new(EmbeddedStore::open(path, &Options::default()).expect("a new store opens"));
    let start = Instant::now();
    let tasks: Vec<_> = (0..committers)
        .map(|committer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut seen = [0; 50];
                let mut count = 0;
                while start.elapsed() < time {
                    let slot = count % seen.len();
                    let key = Key::new(format!("objects/{committer}/{slot}"));
                    let compares = vec![Compare::modified(key.clone(), seen[slot])];
                    let txn = Txn {
                        compares,
                        ops: vec![Op::put(key, vec![7; VALUE_BYTES])],
                    };
                    seen[slot] = store.commit(txn).await.expect("nobody else writes the key");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("committers do not panic");
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn memory(runtime: &Runtime, directory: &Path) {
    const OBJECTS: usize = 10_000;
    let fill = |store: &dyn Store, generation: u8| {
        runtime.block_on(async {
            for group in 0..OBJECTS / 100 {
                let key = |number: usize| Key::new(format!("/registry/tasks/default/task-{group:04}-{number:04}"));
                let ops = (0..100)
                    .map(|number| Op::put(key(number), vec![generation; VALUE_BYTES]))
                    .collect();
                store
                    .commit(Txn { compares: vec![], ops })
                    .await
                    .expect("the store takes it");
            }
        });
    };
    let measure = |name: &str, store: &dyn Store, before: f64| {
        fill(store, 1);
        let full = resident() - before;
        (2..6).for_each(|generation| fill(store, generation));
        let bytes = (OBJECTS * VALUE_BYTES) as f64 / 1e6;
        let churned = resident() - before;
        println!(
            "{name}: {OBJECTS} objects are {bytes:.1} MB; resident {full:.1} MB, {churned:.1} MB after 4 rewrites"
        );
    };
    let before = resident();
    let embedded = EmbeddedStore::open(&directory.join("memory"), &Options::default()).expect("a new store opens");
    measure("embedded", &embedded, before);
    let before = resident();
    measure("memory  ", &MemoryStore::new(), before);
}

/// How long opening takes, after closing and after a crash, for which a copy of the open file stands.
fn restart(runtime: &Runtime, directory: &Path, time: Duration) {
    let (closed, crashed) = (directory.join("closed"), directory.join("crashed"));
    runtime.block_on(commit(&closed, 64, time * 4));
    let open = |path: &Path| {
        let start = Instant::now();
        let store = EmbeddedStore::open(path, &Options::default()).expect("the store opens");
        (store, start.elapsed())
    };
    let (store, after_closing) = open(&closed);
    std::fs::copy(&closed, &crashed).expect("the disk has room");
    let (_, after_crash) = open(&crashed);
    let revision = runtime.block_on(store.revision()).expect("the store answers");
    let megabytes = std::fs::metadata(&closed).expect("it is there").len() as f64 / 1e6;
    println!(
        "restart : {revision} revisions, file {megabytes:.0} MB: {after_closing:.0?}, after a crash {after_crash:.0?}"
    );
}

/// Megabytes that this process has in memory.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("the kernel says");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<f64>()
        .expect("a number of kilobytes")
        / 1000.0
}
