//! A machine for the process runtime or that of containerd: a state directory and a cgroup of its own, and real commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use muster_runtime::conformance::{Ability, Harness, NUMBERS, PATIENCE, Program};
use muster_runtime::process::{Config, Isolate, ShimCommand};
use muster_runtime::{
    Container, ContainerId, ContainerSpec, ContainerdRuntime, Exit, Limits, LogQuery, ProcessRuntime, Rootfs, Runtime,
    State, Stop,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::Cleans;
use crate::containerd::{self, Daemon};

/// How the containers of a machine are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the process runtime, isolated.
    Isolated,
    /// By the process runtime, as plain processes.
    Plain,
    /// By containerd.
    Containerd,
}

pub(crate) struct Machine {
    pub(crate) config: Config,
    /// Whose containers these are, in which of its namespaces.
    pub(crate) daemon: Option<(Arc<Daemon>, String)>,
    /// What is run in the place of runc.
    pub(crate) runc: Option<PathBuf>,
    state: tempfile::TempDir,
}

/// A name that no other test on this machine has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "muster-test-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

impl Machine {
    pub(crate) fn new(way: Way) -> Arc<Machine> {
        Machine::below(way, "")
    }

    /// With its state directory this far down.
    pub(crate) fn below(way: Way, path: &str) -> Arc<Machine> {
        let daemon = (way == Way::Containerd).then(|| (containerd::shared(), unique()));
        Arc::new(Machine::with(way, path, daemon, None))
    }

    /// With a containerd of its own, to be killed.
    pub(crate) fn alone() -> Arc<Machine> {
        Arc::new(Machine::with(
            Way::Containerd,
            "",
            Some((Daemon::start(), unique())),
            None,
        ))
    }

    /// With a containerd of its own that runs this instead of runc.
    pub(crate) fn with_runc(runc: PathBuf) -> Arc<Machine> {
        let daemon = Some((Daemon::start(), unique()));
        Arc::new(Machine::with(Way::Containerd, "", daemon, Some(runc)))
    }

    fn with(way: Way, path: &str, daemon: Option<(Arc<Daemon>, String)>, runc: Option<PathBuf>) -> Machine {
        let state = tempfile::tempdir().unwrap();
        let isolate = match way {
            Way::Plain => Isolate::Plain,
            Way::Isolated | Way::Containerd => Isolate::Auto,
        };
        // A user who is not root can only have plain processes; then the runtime has to find that out.
        let isolate = if nix::unistd::geteuid().is_root() {
            isolate
        } else {
            Isolate::Auto
        };
        let config = Config {
            cgroup_parent: format!("/{}", unique()),
            shim: ShimCommand {
                program: "/proc/self/exe".into(),
                args: vec!["shim".into()],
            },
            isolate,
            ..Config::new(state.path().join(path))
        };
        Machine {
            config,
            daemon,
            runc,
            state,
        }
    }

    /// A runtime, as that of an agent which has just started.
    pub(crate) fn open(&self) -> Arc<dyn Runtime> {
        match self.contained() {
            Some(config) => Arc::new(ContainerdRuntime::new(config).unwrap()),
            None => Arc::new(self.open_process()),
        }
    }

    /// What the runtime of containerd is told, if this is a machine for that.
    pub(crate) fn contained(&self) -> Option<muster_runtime::containerd::Config> {
        let (daemon, namespace) = self.daemon.as_ref()?;
        Some(muster_runtime::containerd::Config {
            namespace: namespace.clone(),
            runc: self.runc.clone(),
            ..muster_runtime::containerd::Config::new(self.config.clone(), daemon.socket())
        })
    }

    /// Its containerd.
    pub(crate) fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon.as_ref().expect("a machine for containerd").0
    }

    /// What `ctr` prints about our namespace.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let (daemon, namespace) = self.daemon.as_ref().expect("a machine for containerd");
        daemon.ctr(namespace, args).expect("ctr succeeds")
    }

    fn open_process(&self) -> ProcessRuntime {
        let runtime = ProcessRuntime::new(self.config.clone()).unwrap();
        let expected = self.config.isolate == Isolate::Plain || !nix::unistd::geteuid().is_root();
        let missing = &runtime.isolation().missing;
        assert_eq!(
            missing.contains_key("cgroups"),
            expected,
            "these tests need root and cgroups (v1 or v2): {missing:?}"
        );
        runtime
    }

    /// A shell script.
    pub(crate) fn script(&self, script: &str) -> ContainerSpec {
        self.command(&["/bin/sh", "-c", script])
    }

    pub(crate) fn command(&self, argv: &[&str]) -> ContainerSpec {
        ContainerSpec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::from([("MUSTER_TEST".to_owned(), self.mark())]),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
        }
    }

    fn mark(&self) -> String {
        self.config.cgroup_parent.trim_start_matches('/').to_owned()
    }

    /// Living processes with this machine's mark in their environment.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mark = format!("MUSTER_TEST={}", self.mark());
        let marked = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        };
        pids().filter(marked).collect()
    }

    /// The shim of a container: the process that holds the lock of its directory.
    pub(crate) fn shim(&self, id: &ContainerId) -> Option<i32> {
        let file = fs::File::options()
            .write(true)
            .open(self.directory(id).join("lock"))
            .ok()?;
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).unwrap();
        (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid)
    }

    pub(crate) fn directory(&self, id: &ContainerId) -> PathBuf {
        self.config
            .state_dir
            .canonicalize()
            .unwrap()
            .join("containers")
            .join(id.as_str())
    }

    /// Runs a command to its end and gives its exit, standard output and standard error.
    pub(crate) async fn run(&self, runtime: &Arc<dyn Runtime>, spec: &ContainerSpec) -> (Exit, String, String) {
        let id = ContainerId::new("run").unwrap();
        runtime.create(&id, spec).await.unwrap();
        runtime.start(&id).await.unwrap();
        let exit = exit(runtime, &id).await;
        let (out, err) = output(runtime, &id).await;
        runtime.remove(&id).await.unwrap();
        (exit, out, err)
    }
}

pub(crate) fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Waits for the exit of a container.
pub(crate) async fn exit(runtime: &Arc<dyn Runtime>, id: &ContainerId) -> Exit {
    let mut changes = runtime.changes();
    let wait = async {
        loop {
            let containers = runtime.list().await.unwrap();
            let state = containers
                .into_iter()
                .find(|container| container.id == *id)
                .expect("it exists")
                .state;
            if let State::Exited(exit) = state {
                return exit;
            }
            changes.next().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it exits")
}

/// What is in the log so far.
pub(crate) async fn output(runtime: &Arc<dyn Runtime>, id: &ContainerId) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    let mut query = LogQuery::default();
    loop {
        let chunk = runtime.logs(id, &query).await.unwrap();
        for line in &chunk.lines {
            let stream = if line.stream == muster_runtime::Stream::Stdout {
                &mut out
            } else {
                &mut err
            };
            *stream += &String::from_utf8_lossy(&line.bytes);
        }
        if chunk.lines.is_empty() {
            return (out, err);
        }
        query.after = Some(chunk.position);
    }
}

/// Waits until something is so that announces nothing.
pub(crate) async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Directories of a cgroup that exist, in any hierarchy.
pub(crate) fn cgroup_directories(path: &str) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = mountinfo.lines().filter(|line| line.contains(" - cgroup"));
    let roots = cgroups.filter_map(|line| line.split(' ').nth(4));
    roots
        .map(|root| Path::new(root).join(path.trim_start_matches('/')))
        .filter(|directory| directory.exists())
        .collect()
}

impl Harness for Machine {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.open()
    }

    fn spec(&self, program: Program) -> ContainerSpec {
        match program {
            Program::Exit(code) => self.script(&format!("exit {code}")),
            Program::Signal(signal) => self.script(&format!("kill -{signal} $$; exit 99")),
            Program::Forever => self.command(&["sleep", "infinity"]),
            Program::Stubborn => self.script("trap '' TERM; echo ready; while :; do sleep 1000; done"),
            Program::Print => self.script("echo out 1; echo err 1 >&2; echo out 2; printf 'out 3'"),
            Program::Numbers => self.script(&format!(
                "half={}; i=0; while [ $i -lt {NUMBERS} ]; do [ $i -eq $half ] && sleep 0.3; printf '%099d\\n' $i; i=$((i+1)); done",
                NUMBERS / 2
            )),
            Program::Missing => self.command(&["/no/such/command"]),
            Program::EatMemory => {
                let mut spec = self.command(&["tail", "/dev/zero"]);
                spec.limits.memory_bytes = Some(32 << 20);
                spec
            }
            Program::Orphans => self.script("sleep 1000 & setsid sleep 1000 & exit 0"),
            Program::Cat => self.command(&["cat"]),
            Program::Ready => self.script("echo ready; exec sleep infinity"),
        }
    }

    fn processes(&self) -> usize {
        self.pids().len()
    }

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::LimitMemory => !self.open().isolation().missing.contains_key("cgroups"),
        }
    }
}

/// What a failed test has left. A clean machine has nothing for this to do.
impl Drop for Machine {
    fn drop(&mut self) {
        let state = self.state.path().canonicalize().unwrap();
        // Shims, and first processes of containers that have not shut themselves in yet.
        let ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&state));
        for pid in self.pids().into_iter().chain(pids().filter(ours)) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for directory in cgroup_directories(&self.config.cgroup_parent) {
            for inner in fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|inner| inner.path().is_dir())
            {
                // The kernel takes a moment to bury them.
                for _ in 0..100 {
                    if fs::remove_dir(inner.path()).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let _ = fs::remove_dir(directory);
        }
    }
}

impl Cleans for Machine {
    const PAUSED: bool = false;

    async fn clean(&self) {
        let runtime = self.open();
        for Container { id, .. } in runtime.list().await.unwrap() {
            runtime
                .stop(
                    &id,
                    Stop {
                        signal: 9,
                        grace: Duration::ZERO,
                    },
                )
                .await
                .unwrap();
            exit(&runtime, &id).await;
            runtime.remove(&id).await.unwrap();
        }
        match self.contained() {
            Some(config) => {
                containerd::nothing_left(self).await;
                ContainerdRuntime::new(config).unwrap().close();
            }
            None => self.open_process().close(),
        }
        assert_eq!(self.pids(), [0; 0], "no process is left");
        assert_eq!(
            cgroup_directories(&self.config.cgroup_parent),
            Vec::<PathBuf>::new(),
            "no cgroup is left"
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.state.path().to_str().unwrap()),
            "no mount is left"
        );
        for name in ["containers", "trash"] {
            let left = fs::read_dir(self.config.state_dir.join(name)).unwrap().count();
            assert_eq!(left, 0, "nothing is left in {name}");
        }
    }
}
