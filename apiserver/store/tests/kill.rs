//! `kill -9` in the middle of a storm of writes, many times over, always on the same file.
//!
//! The test runs its own binary again as a writer. The writer opens the store, commits from several tasks, and prints
//! every acknowledgement on a pipe; it is killed at a random moment. Then the file is opened again, and: every
//! acknowledged write is there, at its revision; no revision that was seen once, in this round or an earlier one, says
//! anything else now; and the history adds up to the state.
//!
//! `MUSTER_KILL_ROUNDS` sets the number of rounds (200), `MUSTER_KILL_SEED` the moments.

#![allow(clippy::unwrap_used, reason = "these are all helpers of tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use muster_store::embedded::Options;
use muster_store::{
    CommitError, Compare, EmbeddedStore, Entry, Key, Op, Page, Prefix, Revision, Store, Txn, WatchError, WatchEvent,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STORE: &str = "MUSTER_KILL_STORE";
const ROUND: &str = "MUSTER_KILL_ROUND";
const TASKS: u64 = 8;

/// So small that rounds stay short, and that history is forgotten while the process is killed.
fn options() -> Options {
    Options {
        retain: 2_000,
        tail_bytes: 64 << 10,
        ..Options::default()
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("the variable holds a number"))
}

/// The writer, when the test below starts this binary again; else there is nothing to do.
#[test]
fn writer() {
    let Ok(path) = std::env::var(STORE) else { return };
    let round = number(ROUND, 0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedStore::open(Path::new(&path), &options()).unwrap());
        println!("ready");
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            tasks.spawn(write_for_ever(Arc::clone(&store), round, task));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    });
}

async fn write_for_ever(store: Arc<EmbeddedStore>, round: u64, task: u64) {
    for count in 0_u64.. {
        let value = format!("{round}-{task}-{count}");
        let own = Key::new(format!("own/{task}/{}", count % 50));
        let shared = Key::new("shared");
        let seen = store.get(&shared).await.unwrap().map_or(0, |entry| entry.mod_revision);
        // Every third transaction writes a key that all write; every fourth races for one; every seventh deletes one.
        let compares = if count % 4 == 0 {
            vec![Compare::modified(shared.clone(), seen)]
        } else {
            vec![]
        };
        let mut ops = vec![Op::put(own.clone(), value.clone())];
        if count % 4 == 0 {
            ops.push(Op::put(shared, value.clone()));
        }
        if count % 3 == 0 {
            ops.push(Op::put(Key::new("hot"), value.clone()));
        }
        if count % 7 == 0 {
            ops.push(Op::delete(Key::new(format!("own/{task}/{}", (count + 25) % 50))));
        }
        match store.commit(Txn { compares, ops }).await {
            // One write to the pipe each, so that a line is whole or missing.
            Ok(revision) => {
                let line = format!("ack {revision} {own} {value}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What was ever seen at a revision, acknowledged or replayed.
#[derive(Default)]
struct Known(BTreeMap<Revision, Vec<(Key, Option<Entry>)>>);

#[test]
fn acknowledged_writes_survive_kill_nine() {
    let rounds = number("MUSTER_KILL_ROUNDS", 200);
    let seed = number("MUSTER_KILL_SEED", 1);
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut known = Known::default();
    let mut acknowledged = 0;
    let mut unacknowledged = 0;
    let mut last = 0;
    for round in 0..rounds {
        let lines = storm(&path, round, Duration::from_micros(random.random_range(0..60_000)));
        let acks: Vec<Ack> = lines.iter().filter_map(|line| parse(line)).collect();
        let (revision, compacted) = verify(&path, &acks, &mut known, round);
        assert!(
            revision >= last,
            "round {round}: the store went back from {last} to {revision}"
        );
        assert!(
            compacted <= revision.saturating_sub(options().retain),
            "round {round}: too much was forgotten"
        );
        acknowledged += acks.len() as u64;
        unacknowledged += revision - last - acks.len() as u64;
        last = revision;
    }
    println!("{rounds} kills, {acknowledged} acknowledged commits, {unacknowledged} committed without an answer");
    assert!(acknowledged > rounds, "the storm was a calm: {acknowledged} commits");
}

/// Runs a writer for about `time` after its start and returns what it printed.
fn storm(path: &Path, round: u64, time: Duration) -> Vec<String> {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(STORE, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.by_ref().map(Result::unwrap).find(|line| line.ends_with("ready"));
    assert!(ready.is_some(), "round {round}: the writer did not start");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(time);
        kill(pid, Signal::SIGKILL).unwrap();
    });
    let rest = lines.map(Result::unwrap).collect();
    killer.join().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "round {round}: it ended by itself"
    );
    rest
}

struct Ack {
    revision: Revision,
    key: Key,
    value: String,
}

fn parse(line: &str) -> Option<Ack> {
    let mut words = line.strip_prefix("ack ")?.split(' ');
    let revision = words.next()?.parse().expect("a revision is a number");
    Some(Ack {
        revision,
        key: Key::new(words.next()?),
        value: words.next()?.to_owned(),
    })
}

/// Opens the store, checks everything, and returns its revision and what is compacted.
fn verify(path: &Path, acks: &[Ack], known: &mut Known, round: u64) -> (Revision, Revision) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(path, &options()).unwrap();
        let listing = store.list(&Prefix::new(""), Page::default()).await.unwrap();
        let (history, compacted) = replay(&store, listing.revision, known.0.keys().next_back().copied()).await;
        for (revision, changes) in history {
            if let Some(before) = known.0.get(&revision) {
                assert_eq!(*before, changes, "round {round}: revision {revision} was used twice");
            }
            known.0.insert(revision, changes);
        }
        for Ack { revision, key, value } in acks {
            let changes = known.0.get(revision);
            let changes = changes.unwrap_or_else(|| panic!("round {round}: revision {revision} of {key} is lost"));
            let written = changes
                .iter()
                .find(|(changed, _)| changed == key)
                .and_then(|(_, entry)| entry.as_ref());
            let written = written.unwrap_or_else(|| panic!("round {round}: {key} is lost from revision {revision}"));
            assert_eq!(
                written.value,
                value.as_bytes(),
                "round {round}: {key} at revision {revision}"
            );
        }
        let numbers: Vec<Revision> = acks.iter().map(|ack| ack.revision).collect();
        let mut unique = numbers.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(
            unique.len(),
            numbers.len(),
            "round {round}: two commits got one revision"
        );
        let mut state = BTreeMap::new();
        for (key, entry) in known.0.values().flatten() {
            match entry {
                Some(entry) => state.insert(key.clone(), entry.clone()),
                None => state.remove(key),
            };
        }
        let state: Vec<Entry> = state.into_values().collect();
        assert_eq!(state, listing.entries, "round {round}: history and state differ");
        (listing.revision, compacted)
    })
}

type History = Vec<(Revision, Vec<(Key, Option<Entry>)>)>;

/// Everything that the store still knows, from its compaction on, which has to reach back to what is `known`.
async fn replay(store: &EmbeddedStore, revision: Revision, known: Option<Revision>) -> (History, Revision) {
    let mut compacted = 0;
    let mut watch = store.watch(&Prefix::new(""), 0);
    let mut history = History::new();
    while history.last().map_or(compacted, |(at, _)| *at) < revision {
        match watch.next().await.expect("a watch ends only after an error") {
            Ok(WatchEvent::Batch { revision: at, changes }) => {
                let expected = history.last().map_or(compacted, |(last, _)| *last) + 1;
                assert_eq!(at, expected, "history has no gaps");
                history.push((
                    at,
                    changes.into_iter().map(|change| (change.key, change.current)).collect(),
                ));
            }
            Ok(WatchEvent::Progress(_)) => {}
            Err(WatchError::Compacted { compacted: at }) => {
                assert!(
                    compacted == 0 && history.is_empty(),
                    "history cannot vanish from an idle store"
                );
                compacted = at;
                watch = store.watch(&Prefix::new(""), at);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        compacted <= known.unwrap_or(0),
        "a round wrote more than is retained; lengthen the history"
    );
    (history, compacted)
}
