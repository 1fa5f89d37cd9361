//! The server that shims are forked from: killed at any time, and with nothing in it that a container could come by.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::Arc;

use futures::future::join_all;
use libtest_mimic::Trial;
use muster_runtime::conformance::{Harness as _, Program};
use muster_runtime::process::seccomp_program;
use muster_runtime::{ContainerId, Runtime, State};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::{Machine, Way, exit, output, until};
use crate::{Cleans as _, trial};

/// Containers that run while the server is killed, and as many that are begun meanwhile.
const HALF: usize = 25;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![trial("isolated::filter_that_runs_is_the_compiled_one", false, filter)];
    for (prefix, way) in [("isolated", Way::Isolated), ("plain", Way::Plain)] {
        let name = |what: &str| format!("{prefix}::{what}");
        trials.push(trial(
            &name("server_of_shims_may_be_killed_while_containers_run_and_start"),
            false,
            move || killed(way),
        ));
        trials.push(trial(&name("two_agents_have_a_server_each"), false, move || {
            two_agents(way)
        }));
        trials.push(trial(
            &name("nothing_of_the_agent_is_in_shims_and_containers"),
            false,
            move || nothing_leaks(way),
        ));
    }
    trials
}

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// The server that made the shim of a container.
fn server(machine: &Machine, container: &ContainerId) -> i32 {
    let server = parent(machine.shim(container).unwrap()).unwrap();
    assert_eq!(name(server), "muster-shims\n");
    server
}

async fn killed(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let ids: Vec<ContainerId> = (0..2 * HALF).map(|n| id(&format!("c{n}"))).collect();
    let script = |n: usize| {
        machine.script(&format!(
            "while [ ! -e go ]; do sleep 0.1; done; echo said {n}; exit {n}"
        ))
    };
    let begin = async |runtime: &Arc<dyn Runtime>, n: usize| {
        // Whose server is killed again and again is told so, and asks again as agents do.
        let mut tries = 1;
        while let Err(error) = runtime.create(&ids[n], &script(n)).await {
            assert!(
                tries < 50 && error.to_string().contains("the server of shims has ended"),
                "{error}"
            );
            tries += 1;
        }
        runtime.start(&ids[n]).await.unwrap();
    };
    join_all((0..HALF).map(|n| begin(&runtime, n))).await;
    let mut seen = BTreeSet::from([server(&machine, &ids[0])]);
    let kills = async {
        // Whichever one there is, again and again, until all are made.
        loop {
            let _ = kill(Pid::from_raw(*seen.last().unwrap()), Signal::SIGKILL);
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            let shims = ids.iter().filter_map(|id| parent(machine.shim(id)?));
            let last = shims.filter(|pid| name(*pid) == "muster-shims\n").max();
            seen.extend(last);
        }
    };
    tokio::select! {
        biased;
        _ = join_all((HALF..2 * HALF).map(|n| begin(&runtime, n))) => {}
        () = kills => {}
    }
    let listed = runtime.list().await.unwrap();
    assert_eq!(listed.len(), ids.len());
    let runs = |state: &State| matches!(state, State::Running { .. });
    assert!(listed.iter().all(|container| runs(&container.state)), "{listed:?}");
    for id in &ids {
        fs::write(machine.directory(id).join("sandbox/go"), "").unwrap();
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(exit(&runtime, id).await.code, Some(i32::try_from(n).unwrap()));
        assert_eq!(output(&runtime, id).await.0, format!("said {n}\n"), "it ran once");
    }
    machine.clean().await;
}

async fn two_agents(way: Way) {
    let machines = [Machine::new(way), Machine::new(way)];
    let runtimes = machines.each_ref().map(|machine| machine.open());
    let a = id("a");
    for (machine, runtime) in machines.iter().zip(&runtimes) {
        runtime.create(&a, &machine.spec(Program::Forever)).await.unwrap();
        runtime.start(&a).await.unwrap();
    }
    let servers = machines.each_ref().map(|machine| server(machine, &a));
    assert_ne!(servers[0], servers[1]);
    // One agent ends: its server goes, its container stays. The other has nothing to do with it.
    let [first, second] = runtimes;
    drop(first);
    until("its server ends", async || name(servers[0]) != "muster-shims\n").await;
    assert_eq!(server(&machines[1], &a), servers[1]);
    let reopened = machines[0].open();
    for runtime in [&reopened, &second] {
        let listed = runtime.list().await.unwrap();
        assert!(matches!(listed[0].state, State::Running { .. }), "{listed:?}");
    }
    for machine in machines {
        machine.clean().await;
    }
}

async fn nothing_leaks(way: Way) {
    let machine = Machine::new(way);
    // A file that whoever started the agent has left open for all that it runs.
    let secret = machine.config.state_dir.with_extension("secret");
    let open = File::create(&secret).unwrap();
    fcntl(&open, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let runtime = machine.open();
    let a = id("a");
    let spec = machine.script("ls -l /proc/self/fd; echo; env; sleep infinity");
    runtime.create(&a, &spec).await.unwrap();
    let shim = machine.shim(&a).unwrap();
    let mut looked_at = vec![server(&machine, &a), shim];
    runtime.start(&a).await.unwrap();
    until("it has looked", async || output(&runtime, &a).await.0.contains("PATH=")).await;
    looked_at.extend(machine.pids());
    for pid in looked_at {
        let (fds, who) = (fs::read_dir(format!("/proc/{pid}/fd")), name(pid));
        let files = fds.into_iter().flatten().flatten();
        for file in files.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            assert_ne!(file, secret, "{who}");
        }
    }
    for pid in [server(&machine, &a), shim] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert_eq!(environment, [0; 0], "{}: not even PATH", name(pid));
    }
    let (out, _) = output(&runtime, &a).await;
    let (fds, _) = out.split_once("\n\n").unwrap();
    // Input, output, errors, and the directory that is being listed.
    assert_eq!(fds.lines().filter(|line| line.contains(" -> ")).count(), 4, "{out}");
    drop(open);
    fs::remove_file(&secret).unwrap();
    machine.clean().await;
}

async fn filter() {
    let machine = Machine::new(Way::Isolated);
    let runtime = machine.open();
    let a = id("a");
    runtime.create(&a, &machine.spec(Program::Forever)).await.unwrap();
    runtime.start(&a).await.unwrap();
    until("it runs", async || !machine.pids().is_empty()).await;
    let compiled = seccomp_program().unwrap();
    for pid in machine.pids() {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        let running = installed(pid, 0);
        let more = installed(pid, 1);
        ptrace::detach(pid, None).unwrap();
        assert_eq!(running.as_ref(), Some(&compiled));
        assert_eq!(more, None, "there is one");
    }
    machine.clean().await;
}

/// The seccomp program of a stopped process, of this number; `None`: it has not so many.
#[allow(unsafe_code)]
fn installed(pid: Pid, number: usize) -> Option<Vec<u8>> {
    /// The most instructions that the kernel takes.
    const LONGEST: usize = 4096;
    /// See ptrace(2).
    const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
    let mut program = vec![0; LONGEST * 8];
    // SAFETY: there is room for the longest program that there can be.
    let length = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, pid.as_raw(), number, program.as_mut_ptr()) };
    program.truncate(usize::try_from(length).ok()? * 8);
    Some(program)
}
