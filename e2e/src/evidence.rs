//! What really ran, seen from outside: neither the tasks nor Muster have to say anything for it.
//!
//! A thread looks at every process of the machine twenty times a second. The parent of a process that carries a task's variables, if it
//! is one of Muster's own, is the container of a run. Two containers of one task at a time, or two ever of one attempt, are a double run. What is too short to be seen is told by the task itself: [`PROBE`] leaves a line in its sandbox for each start.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::unistd::Pid;

use crate::process::{self, wait_for};

/// How often it looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What the first processes of containers are called at the beginning.
const OURS: &str = "muster-";

/// The file in a task's sandbox that [`PROBE`] writes to.
const STARTS: &str = "starts";

/// Begins the script of a task: notes the start where it can be read from outside.
pub const PROBE: &str = "echo $MUSTER_TASK_UID $MUSTER_ATTEMPT >> starts; ";

/// Ends the script of a task: waits, at no cost, until it is told with which code to end ([`open_gate`]).
pub const GATE: &str = "mkfifo gate; read code < gate; exit $code";

/// One run: who, and the first process of its container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    uid: String,
    attempt: String,
    agent: String,
    pid: i32,
    born: u64,
}

/// When a run was seen, since the watcher began.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: Duration,
    last: Duration,
}

/// Watches the processes of the machine until dropped.
#[derive(Debug)]
pub struct Evidence {
    runs: Arc<Mutex<BTreeMap<Run, Span>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    home: PathBuf,
}

impl Evidence {
    /// Begins to watch; `home` is where all agents keep their data.
    pub fn start(home: &Path) -> Evidence {
        let (runs, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let watcher = Watcher {
            runs: Arc::clone(&runs),
            known: BTreeMap::new(),
            began: Instant::now(),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watcher.watch(&stopped));
        Evidence {
            runs,
            stop,
            thread: Some(thread),
            home: home.to_owned(),
        }
    }

    /// How many runs of a task were seen.
    pub fn runs_of(&self, uid: &str) -> usize {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.keys().filter(|run| run.uid == uid).count()
    }

    /// The first process of the container that a task was last seen in, if it still runs.
    pub fn process_of(&self, uid: &str) -> Option<Pid> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs
            .iter()
            .filter(|(run, _)| run.uid == uid)
            .max_by_key(|(_, span)| span.last)?
            .0;
        let pid = Pid::from_raw(run.pid);
        (process::born(pid) == Some(run.born)).then_some(pid)
    }

    /// Every double run: an attempt that was started twice, or a task that ran twice at a time.
    pub fn double_runs(&self) -> Vec<String> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let runs: Vec<(&Run, &Span)> = runs.iter().collect();
        let mut found = Vec::new();
        for (index, (a, seen_a)) in runs.iter().enumerate() {
            for (b, seen_b) in runs.iter().skip(index + 1).take_while(|(b, _)| b.uid == a.uid) {
                let overlap = seen_a.first <= seen_b.last && seen_b.first <= seen_a.last;
                if a.attempt == b.attempt {
                    found.push(format!(
                        "attempt {} of {} was started twice: {a:?} {b:?}",
                        a.attempt, a.uid
                    ));
                } else if overlap {
                    found.push(format!(
                        "{} ran twice at a time: {a:?} {seen_a:?}, {b:?} {seen_b:?}",
                        a.uid
                    ));
                }
            }
        }
        found.extend(
            self.noted()
                .into_iter()
                .filter(|(_, count)| *count > 1)
                .map(|(line, count)| format!("the task and attempt `{line}` noted {count} starts")),
        );
        found
    }

    /// What the tasks have noted themselves: each line, how often in all sandboxes.
    pub fn noted(&self) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        for sandbox in sandboxes(&self.home) {
            for line in fs::read_to_string(sandbox.join(STARTS)).unwrap_or_default().lines() {
                *lines.entry(line.to_owned()).or_default() += 1;
            }
        }
        lines
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would have been seen.
            let _ = thread.join();
        }
    }
}

/// The sandboxes of all containers of all agents whose hosts' directories are below `home`.
pub fn sandboxes(home: &Path) -> Vec<PathBuf> {
    let below = |path: PathBuf| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let agents = below(home.to_owned()).flat_map(below);
    let containers = agents.flat_map(|agent| below(agent.join("runtime/containers")));
    containers
        .map(|container| container.join("sandbox"))
        .filter(|path| path.exists())
        .collect()
}

/// Lets a task whose script ends with [`GATE`] end with this code.
///
/// # Errors
/// When it does not stand at its gate.
pub fn open_gate(home: &Path, uid: &str, code: i32) -> Result<()> {
    let own = |path: &PathBuf| {
        path.parent()
            .and_then(Path::file_name)
            .is_some_and(|name| name.to_string_lossy().starts_with(uid))
    };
    wait_for(&format!("the task {uid} to stand at its gate"), || {
        let gate = sandboxes(home).into_iter().find(own)?.join("gate");
        // Fails until somebody reads.
        let mut file = fs::File::options()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(gate)
            .ok()?;
        writeln!(file, "{code}").ok()
    })
}

struct Watcher {
    runs: Arc<Mutex<BTreeMap<Run, Span>>>,
    /// What each process was when it was first seen; a task's variables appear with its command.
    known: BTreeMap<(i32, u64), Option<Run>>,
    began: Instant,
}

impl Watcher {
    fn watch(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.look();
            std::thread::sleep(PAUSE);
        }
    }

    fn look(&mut self) {
        let now = self.began.elapsed();
        let mut seen = BTreeMap::new();
        for pid in process::all() {
            let Some(born) = process::born(pid) else { continue };
            let key = (pid.as_raw(), born);
            let run = match self.known.get(&key) {
                Some(Some(run)) => Some(run.clone()),
                // Between fork and exec a process has its parent's variables, so a stranger is looked at again.
                _ => run(pid),
            };
            seen.insert(key, run);
        }
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for run in seen.values().flatten() {
            if process::born(Pid::from_raw(run.pid)) == Some(run.born) {
                let span = runs.entry(run.clone()).or_insert(Span { first: now, last: now });
                span.last = now;
            }
        }
        self.known = seen;
    }
}

/// The run that a process is a part of.
fn run(pid: Pid) -> Option<Run> {
    let (uid, attempt, agent) = variables(pid)?;
    let container = process::parent(pid)?;
    if !fs::read_to_string(format!("/proc/{container}/comm"))
        .ok()?
        .starts_with(OURS)
    {
        return None;
    }
    Some(Run {
        uid,
        attempt,
        agent,
        pid: container.as_raw(),
        born: process::born(container)?,
    })
}

fn variables(pid: Pid) -> Option<(String, String, String)> {
    let text = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = |name: &str| {
        let mut values = text
            .split('\0')
            .filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        values.next().map(str::to_owned)
    };
    Some((
        value("MUSTER_TASK_UID")?,
        value("MUSTER_ATTEMPT")?,
        value("MUSTER_AGENT")?,
    ))
}
