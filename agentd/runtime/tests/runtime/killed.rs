//! What is killed, hung or half done, and what is left of it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use muster_runtime::conformance::{Harness, Program};
use muster_runtime::process::{Config, Isolate, ShimCommand};
use muster_runtime::{
    ContainerId, ContainerdRuntime, Error, FENCED, Fence, ProcessRuntime, Runtime, State, Stop, containerd,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Machine, Way, cgroup_directories, exit, output, until};
use crate::ways::{self, tests};
use crate::{Cleans as _, trial};

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests = tests! {
        "container_of_a_killed_shim_is_killed_and_lost": shim_killed,
        "containers_outlive_a_killed_agent": agent_killed,
        "grace_is_kept_when_the_agent_is_killed_in_it": agent_killed_in_grace,
        "stopped_shim_makes_calls_fail_at_their_deadline": shim_stopped,
        "fence_ends_what_nobody_vouches_for_though_the_agent_is_dead": fenced,
        "container_that_is_vouched_for_goes_on": vouched_for,
        "half_made_container_is_made_again": half_made,
        "call_that_was_given_up_goes_on_and_can_be_made_again": given_up,
        "agent_may_be_killed_at_any_place_of_a_start": agent_killed_anywhere,
        "state_directory_may_be_far_down": far_down,
        "output_nobody_reads_does_not_block": much_output,
    };
    let mut trials = ways::trials(&[], &tests);
    trials.push(trial(
        "plain::shim_that_ends_at_once_is_an_error_at_once",
        false,
        no_shim,
    ));
    trials.push(trial(
        "plain::all_promises_hold_for_another_user_than_root",
        false,
        as_nobody,
    ));
    trials
}

/// An agent to be killed: `agent <plain|auto|containerd=SOCKET=NAMESPACE> <state directory> <cgroup> <task>…`; makes and starts those, and says so.
pub(crate) fn agent_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = args.map(|word| word.into_string().unwrap()).collect();
    let [way, state, cgroup, tasks @ ..] = &words[..] else {
        return ExitCode::from(2);
    };
    let config = Config {
        cgroup_parent: cgroup.clone(),
        isolate: if way == "plain" { Isolate::Plain } else { Isolate::Auto },
        ..Config::new(state)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let containers: Arc<dyn Runtime> = match way.strip_prefix("containerd=").and_then(|to| to.split_once('=')) {
            Some((socket, namespace)) => Arc::new(
                ContainerdRuntime::new(containerd::Config {
                    namespace: namespace.to_owned(),
                    ..containerd::Config::new(config, socket)
                })
                .unwrap(),
            ),
            None => Arc::new(ProcessRuntime::new(config).unwrap()),
        };
        let guard = containers.guard().unwrap();
        guard.vouch(guard.now()).unwrap();
        for (n, task) in tasks.iter().enumerate() {
            let id = id(&format!("task{n}"));
            containers
                .create(&id, &serde_json::from_str(task).unwrap())
                .await
                .unwrap();
            containers.start(&id).await.unwrap();
            if task.contains("trap") {
                until("it traps", async || output(&containers, &id).await.0.contains("ready")).await;
                containers
                    .stop(
                        &id,
                        Stop {
                            signal: 15,
                            grace: Duration::from_millis(300),
                        },
                    )
                    .await
                    .unwrap();
            }
        }
        println!("started");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

fn agent(machine: &Machine, programs: &[Program], fence: Option<Fence>) -> Command {
    let config = &machine.config;
    let mut agent = Command::new("/proc/self/exe");
    agent.arg("agent").arg(match machine.contained() {
        Some(contained) => format!("containerd={}={}", contained.socket.display(), contained.namespace),
        None if config.isolate == Isolate::Plain => "plain".to_owned(),
        None => "auto".to_owned(),
    });
    agent.arg(&config.state_dir).arg(&config.cgroup_parent);
    agent.args(programs.iter().map(|program| {
        let mut spec = machine.spec(*program);
        spec.limits.fence = fence;
        serde_json::to_string(&spec).unwrap()
    }));
    agent.stdout(Stdio::piped());
    agent
}

/// Starts such an agent, and kills it when it has done its work.
pub(crate) fn let_an_agent_start(machine: &Machine, programs: &[Program], fence: Option<Fence>) {
    let mut agent: Child = agent(machine, programs, fence).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "started\n");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

async fn shim_killed(way: Way) {
    let machine = Machine::new(way);
    let (runtime, running, created) = (machine.open(), id("running"), id("created"));
    runtime
        .create(&running, &machine.script("sleep 1000 & setsid sleep 1000 & sleep 1000"))
        .await
        .unwrap();
    runtime.start(&running).await.unwrap();
    until("all run", async || machine.pids().len() >= 4).await;
    runtime.create(&created, &machine.spec(Program::Print)).await.unwrap();
    for id in [&running, &created] {
        kill(Pid::from_raw(machine.shim(id).unwrap()), Signal::SIGKILL).unwrap();
    }
    let lost = exit(&runtime, &running).await;
    assert_eq!((lost.code, lost.signal), (None, None));
    assert!(
        lost.started_ms.is_some() && lost.error.as_deref().is_some_and(|error| error.contains("lost")),
        "{lost:?}"
    );
    assert_eq!(
        machine.pids(),
        [0; 0],
        "what it held is gone when it is said to have exited"
    );
    let cgroup = format!("{}/running", machine.config.cgroup_parent);
    // What runc has made besides goes when containerd hears of it.
    until("no cgroup is left", async || cgroup_directories(&cgroup).is_empty()).await;
    let lost = exit(&runtime, &created).await;
    assert_eq!(lost.started_ms, None, "{lost:?}");
    runtime.start(&created).await.unwrap();
    assert_eq!(
        output(&machine.open(), &created).await.0,
        "",
        "what is lost is not run later"
    );
    machine.clean().await;
}

async fn agent_killed(way: Way) {
    let machine = Machine::new(way);
    let_an_agent_start(&machine, &[Program::Forever, Program::Exit(9), Program::Numbers], None);
    let runtime = machine.open();
    assert_eq!(exit(&runtime, &id("task1")).await.code, Some(9));
    assert_eq!(exit(&runtime, &id("task2")).await.code, Some(0));
    let (out, _) = output(&runtime, &id("task2")).await;
    assert_eq!(
        out.lines().count(),
        muster_runtime::conformance::NUMBERS,
        "output went on"
    );
    let listed = runtime.list().await.unwrap();
    assert!(matches!(listed[0].state, State::Running { .. }), "{listed:?}");
    runtime
        .stop(
            &id("task0"),
            Stop {
                signal: 15,
                grace: Duration::from_secs(60),
            },
        )
        .await
        .unwrap();
    assert_eq!(exit(&runtime, &id("task0")).await.signal, Some(15));
    machine.clean().await;
}

async fn agent_killed_in_grace(way: Way) {
    let machine = Machine::new(way);
    let_an_agent_start(&machine, &[Program::Stubborn], None);
    until("the shim kills it", async || machine.pids().is_empty()).await;
    assert_eq!(exit(&machine.open(), &id("task0")).await.signal, Some(9));
    machine.clean().await;
}

async fn shim_stopped(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id) = (machine.open(), id("a"));
    runtime.create(&id, &machine.spec(Program::Exit(0))).await.unwrap();
    let shim = Pid::from_raw(machine.shim(&id).unwrap());
    kill(shim, Signal::SIGSTOP).unwrap();
    // From here on time passes at once when there is nothing else to do.
    tokio::time::pause();
    let error = runtime.start(&id).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { call: "start", .. }), "{error}");
    tokio::time::resume();
    let listed = runtime.list().await.unwrap();
    assert_eq!(listed[0].state, State::Created, "a stopped shim holds its container");
    kill(shim, Signal::SIGKILL).unwrap();
    assert_eq!(exit(&runtime, &id).await.started_ms, None);
    machine.clean().await;
}

async fn no_shim() {
    let machine = Machine::new(Way::Plain);
    // The second one leaves a process that keeps the pipe open, as a container's first one does.
    for script in ["echo no >&2; exit 3", "sleep 3 & echo no >&2; exit 3"] {
        let shim = ShimCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
        };
        let runtime = ProcessRuntime::new(Config {
            shim,
            ..machine.config.clone()
        })
        .unwrap();
        let before = tokio::time::Instant::now();
        let error = runtime
            .create(&id("a"), &machine.spec(Program::Print))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::System { message, .. } if message.contains("no")),
            "{error}"
        );
        assert!(
            before.elapsed() < Duration::from_secs(2),
            "it need not wait for the deadline"
        );
        assert_eq!(runtime.list().await.unwrap(), []);
    }
    machine.clean().await;
}

async fn half_made(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id) = (machine.open(), id("a"));
    // An agent that was killed after it had made the directory, and one that was killed after it had written everything.
    fs::create_dir_all(machine.directory(&id).join("tmp/left")).unwrap();
    assert_eq!(runtime.list().await.unwrap(), []);
    let spec = machine.spec(Program::Exit(5));
    fs::write(machine.directory(&id).join("spec"), serde_json::to_vec(&spec).unwrap()).unwrap();
    assert_eq!(runtime.list().await.unwrap(), [], "what has no shim was not created");
    runtime.remove(&id).await.unwrap();
    assert!(!machine.directory(&id).exists());
    fs::create_dir_all(machine.directory(&id).join("sandbox")).unwrap();
    runtime.create(&id, &spec).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(exit(&runtime, &id).await.code, Some(5));
    machine.clean().await;
}

async fn given_up(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id, spec) = (machine.open(), id("a"), machine.spec(Program::Print));
    for patience_ms in 0..20 {
        // Given up at some place or other.
        let _ = tokio::time::timeout(Duration::from_millis(patience_ms), runtime.create(&id, &spec)).await;
    }
    runtime.create(&id, &spec).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, State::Created);
    runtime.start(&id).await.unwrap();
    assert_eq!(exit(&runtime, &id).await.code, Some(0));
    assert_eq!(output(&runtime, &id).await.1, "err 1\n");
    machine.clean().await;
}

async fn agent_killed_anywhere(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    for after_ms in (0..60).step_by(4) {
        // From before its first step to after its last.
        let mut agent = agent(&machine, &[Program::Print], None).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        let id = id("task0");
        // As the next agent does it: what the dead one asked containerd for may still be under way, and be in the way of the same.
        until("the container is made", async || {
            let made = runtime.create(&id, &machine.spec(Program::Print)).await;
            assert!(way == Way::Containerd || made.is_ok(), "{made:?}");
            made.is_ok()
        })
        .await;
        runtime.start(&id).await.unwrap();
        assert_eq!(exit(&runtime, &id).await.code, Some(0), "killed after {after_ms} ms");
        assert_eq!(output(&runtime, &id).await.1, "err 1\n", "it ran once");
        runtime.remove(&id).await.unwrap();
    }
    machine.clean().await;
}

async fn far_down(way: Way) {
    let machine: Arc<Machine> = Machine::below(way, &["x".repeat(100), "y".repeat(100)].join("/"));
    let runtime = machine.open();
    let (exit, out, _) = machine.run(&runtime, &machine.script("echo here")).await;
    assert_eq!((exit.code, out.as_str()), (Some(0), "here\n"), "{exit:?}");
    machine.clean().await;
}

async fn much_output(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("yes 'a line that says nothing' | head -c 20000000; echo end >&2");
    spec.limits.log_bytes = 1 << 20;
    let id = id("a");
    runtime.create(&id, &spec).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(exit(&runtime, &id).await.code, Some(0));
    let (out, err) = output(&runtime, &id).await;
    assert_eq!(err, "end\n");
    assert!(out.len() > 500_000, "the last file or two are kept: {}", out.len());
    let logs = ["log", "log.1"].map(|name| fs::metadata(machine.directory(&id).join(name)).unwrap().len());
    assert!(logs.iter().sum::<u64>() <= 2 << 20, "{logs:?}");
    machine.clean().await;
}

/// All of `plain::`, again, by a user who can do nothing else.
async fn as_nobody() {
    use std::os::unix::process::CommandExt as _;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    const NOBODY: u32 = 65534;
    let temp = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(temp.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // Where it is built may be closed to others.
    let executable = temp.path().join("tests");
    fs::copy("/proc/self/exe", &executable).unwrap();
    let mut tests = Command::new(&executable);
    tests
        .args(["plain::", "--skip", "all_promises_hold", "--test-threads", "2"])
        .env("TMPDIR", temp.path())
        .current_dir("/");
    let ran = tests.uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(
        ran.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}

async fn fenced(way: Way) {
    let machine = Machine::new(way);
    let fence = Fence {
        after: Duration::from_millis(1500),
        signal: 15,
        grace: Duration::from_millis(200),
    };
    let_an_agent_start(&machine, &[Program::Forever], Some(fence));
    let runtime = machine.open();
    let exit = exit(&runtime, &id("task0")).await;
    assert_eq!((exit.code, exit.error.as_deref()), (None, Some(FENCED)));
    machine.clean().await;
}

async fn vouched_for(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let guard = runtime.guard().unwrap();
    let mut spec = machine.spec(Program::Forever);
    spec.limits.fence = Some(Fence {
        after: Duration::from_secs(3),
        signal: 15,
        grace: Duration::ZERO,
    });
    let error = runtime.create(&id("a"), &spec).await.unwrap_err();
    assert!(error.to_string().contains("nobody vouches"), "{error}");
    guard.vouch(guard.now()).unwrap();
    runtime.create(&id("a"), &spec).await.unwrap();
    runtime.start(&id("a")).await.unwrap();
    let (begin, mut gap, mut last) = (guard.now(), Duration::ZERO, guard.now());
    while guard.now() < begin + Duration::from_secs(4) {
        gap = gap.max(guard.now() - last);
        last = guard.now();
        guard.vouch(last).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let state = runtime.list().await.unwrap().remove(0).state;
    // On a machine that stood still for so long, being fenced is right.
    assert!(
        matches!(state, State::Running { .. }) || gap > Duration::from_secs(2),
        "{state:?}"
    );
    machine.clean().await;
}
