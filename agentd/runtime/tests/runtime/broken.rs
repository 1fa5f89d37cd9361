//! containerd and what it runs, killed, stopped, failing and hanging; and what is left of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use libtest_mimic::Trial;
use muster_runtime::conformance::{Harness as _, NUMBERS, Program};
use muster_runtime::{ContainerId, Error, Runtime, State, Stop};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::killed::let_an_agent_start;
use crate::process::{Machine, Way, exit, output, until};
use crate::{Cleans as _, trial};

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

const TERM: Stop = Stop {
    signal: 15,
    grace: Duration::from_secs(60),
};

pub(crate) fn trials() -> Vec<Trial> {
    type Test = fn() -> LocalBoxFuture<'static, ()>;
    let tests: [(&str, Test); 9] = [
        ("everything_but_making_goes_on_while_containerd_is_killed", || {
            daemon_killed().boxed_local()
        }),
        ("nothing_is_lost_when_agent_and_containerd_are_killed", || {
            both_killed().boxed_local()
        }),
        ("container_of_a_killed_shim_of_containerd_ends_once", || {
            other_shim_killed().boxed_local()
        }),
        ("stopped_containerd_makes_calls_fail_at_their_deadline", || {
            daemon_stopped().boxed_local()
        }),
        ("container_of_another_boot_is_lost_and_taken_away", || {
            rebooted().boxed_local()
        }),
        ("runc_that_fails_is_a_reason_and_can_be_tried_again", || {
            runc_fails().boxed_local()
        }),
        ("runc_that_hangs_is_given_up_at_the_deadline", || {
            runc_hangs().boxed_local()
        }),
        ("containers_of_others_are_not_touched", || others().boxed_local()),
        ("container_whose_directory_is_lost_is_listed_and_can_be_ended", || {
            stray().boxed_local()
        }),
    ];
    let tests = tests.into_iter();
    tests
        .map(|(name, test)| trial(&format!("containerd::{name}"), false, test))
        .collect()
}

async fn run(machine: &Machine, runtime: &Arc<dyn Runtime>, id: &ContainerId, program: Program) {
    runtime.create(id, &machine.spec(program)).await.unwrap();
    runtime.start(id).await.unwrap();
}

async fn state(runtime: &Arc<dyn Runtime>, id: &ContainerId) -> Option<State> {
    let listed = runtime.list().await.unwrap();
    let found = listed.into_iter().find(|container| container.id == *id);
    found.map(|container| container.state)
}

async fn daemon_killed() {
    let machine = Machine::alone();
    let runtime = machine.open();
    let (running, printing, created, fails) = (id("running"), id("printing"), id("created"), id("fails"));
    run(&machine, &runtime, &running, Program::Forever).await;
    run(&machine, &runtime, &printing, Program::Numbers).await;
    runtime.create(&created, &machine.spec(Program::Exit(5))).await.unwrap();
    machine.daemon().signal(Signal::SIGKILL);

    assert!(matches!(state(&runtime, &running).await, Some(State::Running { .. })));
    runtime.start(&created).await.unwrap();
    assert_eq!(exit(&runtime, &created).await.code, Some(5));
    assert_eq!(exit(&runtime, &printing).await.code, Some(0));
    assert_eq!(output(&runtime, &printing).await.0.lines().count(), NUMBERS);
    let error = runtime.create(&fails, &machine.spec(Program::Print)).await.unwrap_err();
    assert!(
        matches!(&error, Error::System { context, .. } if context.contains("containerd")),
        "{error}"
    );
    let after = machine.open();
    assert_eq!(exit(&after, &created).await.code, Some(5), "for another agent as well");
    runtime.stop(&running, TERM).await.unwrap();
    assert_eq!(exit(&runtime, &running).await.signal, Some(15));

    machine.daemon().restart();
    run(&machine, &runtime, &fails, Program::Print).await;
    assert_eq!(exit(&runtime, &fails).await.code, Some(0));
    assert_eq!(output(&runtime, &fails).await.1, "err 1\n", "it ran once");
    assert_eq!(exit(&runtime, &created).await.code, Some(5));
    machine.clean().await;
}

async fn both_killed() {
    let machine = Machine::alone();
    let pause = Program::Numbers;
    let_an_agent_start(&machine, &[Program::Forever, Program::Exit(9), pause], None);
    machine.daemon().signal(Signal::SIGKILL);
    until("it ends while nobody is there", async || machine.pids().len() == 2).await;
    machine.daemon().restart();
    let runtime = machine.open();
    assert_eq!(exit(&runtime, &id("task1")).await.code, Some(9));
    assert_eq!(exit(&runtime, &id("task2")).await.code, Some(0));
    assert_eq!(output(&runtime, &id("task2")).await.0.lines().count(), NUMBERS);
    assert!(matches!(
        state(&runtime, &id("task0")).await,
        Some(State::Running { .. })
    ));
    runtime
        .create(&id("task0"), &machine.spec(Program::Forever))
        .await
        .unwrap();
    assert_eq!(
        machine.pids().len(),
        2,
        "the first process and the command: it is not made again"
    );
    machine.clean().await;
}

async fn other_shim_killed() {
    let machine = Machine::alone();
    let runtime = machine.open();
    let (one, two) = (id("one"), id("two"));
    run(&machine, &runtime, &one, Program::Forever).await;
    run(&machine, &runtime, &two, Program::Forever).await;
    let kill_shim = |id: &str| {
        let shims = machine.daemon().shims(Some(id));
        assert_eq!(shims.len(), 1);
        kill(Pid::from_raw(shims[0]), Signal::SIGKILL).unwrap();
    };
    kill_shim("one");
    assert_eq!(exit(&runtime, &one).await.signal, Some(9), "containerd kills it");

    machine.daemon().signal(Signal::SIGKILL);
    kill_shim("two");
    assert!(
        matches!(state(&runtime, &two).await, Some(State::Running { .. })),
        "nobody is left to kill it"
    );
    machine.daemon().restart();
    runtime.stop(&two, TERM).await.unwrap();
    let ended = exit(&runtime, &two).await;
    assert!(ended.signal.is_some(), "{ended:?}");
    machine.clean().await;
}

async fn daemon_stopped() {
    let machine = Machine::alone();
    let runtime = machine.open();
    let (running, created, late) = (id("running"), id("created"), id("late"));
    run(&machine, &runtime, &running, Program::Forever).await;
    runtime.create(&created, &machine.spec(Program::Exit(5))).await.unwrap();
    machine.daemon().signal(Signal::SIGSTOP);
    runtime.start(&created).await.unwrap();
    assert_eq!(exit(&runtime, &created).await.code, Some(5));
    runtime.stop(&running, TERM).await.unwrap();
    assert_eq!(exit(&runtime, &running).await.signal, Some(15));
    // From here on time passes at once when there is nothing else to do.
    tokio::time::pause();
    let error = runtime.create(&late, &machine.spec(Program::Print)).await.unwrap_err();
    assert!(
        matches!(error, Error::Deadline { .. } | Error::System { .. }),
        "{error}"
    );
    tokio::time::resume();
    machine.daemon().signal(Signal::SIGCONT);
    run(&machine, &runtime, &late, Program::Print).await;
    assert_eq!(exit(&runtime, &late).await.code, Some(0));
    assert_eq!(output(&runtime, &late).await.1, "err 1\n", "it ran once");
    machine.clean().await;
}

async fn rebooted() {
    let machine = Machine::alone();
    let running = id("running");
    {
        let runtime = machine.open();
        run(&machine, &runtime, &running, Program::Forever).await;
    }
    machine.daemon().signal(Signal::SIGKILL);
    let ours = machine.shim(&running).unwrap();
    for pid in machine
        .daemon()
        .shims(None)
        .into_iter()
        .chain([ours])
        .chain(machine.pids())
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    until("nothing runs", async || machine.pids().is_empty()).await;
    machine.daemon().restart();
    assert!(machine.ctr(&["containers", "ls", "-q"]).contains("running"));
    let runtime = machine.open();
    let lost = exit(&runtime, &running).await;
    assert!(
        lost.started_ms.is_some() && lost.error.is_some_and(|error| error.contains("lost")),
        "it did not end by itself"
    );
    machine.clean().await;
}

/// A runc that fails or hangs in the calls that are named in a file.
fn faulty_runc(at: &Path) -> PathBuf {
    let runc = at.join("runc");
    let script = "#!/bin/sh\nfor word in \"$@\"; do\n  if [ -e \"DIR/fail-$word\" ]; then echo 'it was told to fail' >&2; exit 1; fi\n  \
                  while [ -e \"DIR/hang-$word\" ]; do sleep 0.05; done\ndone\nexec runc \"$@\"\n";
    fs::write(&runc, script.replace("DIR", at.to_str().unwrap())).unwrap();
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
    runc
}

async fn runc_fails() {
    let temp = tempfile::tempdir().unwrap();
    let machine = Machine::with_runc(faulty_runc(temp.path()));
    let runtime = machine.open();
    for call in ["create", "start"] {
        let (container, fault) = (id(&format!("with-{call}")), temp.path().join(format!("fail-{call}")));
        fs::write(&fault, "").unwrap();
        for _ in 0..2 {
            let error = runtime
                .create(&container, &machine.spec(Program::Print))
                .await
                .unwrap_err();
            assert!(matches!(error, Error::System { .. }), "{call}: {error}");
            assert_eq!(runtime.list().await.unwrap(), [], "nothing half made is left");
        }
        fs::remove_file(fault).unwrap();
        run(&machine, &runtime, &container, Program::Print).await;
        assert_eq!(exit(&runtime, &container).await.code, Some(0));
        assert_eq!(output(&runtime, &container).await.1, "err 1\n", "it ran once");
        runtime.remove(&container).await.unwrap();
    }
    let container = id("with-delete");
    run(&machine, &runtime, &container, Program::Exit(3)).await;
    fs::write(temp.path().join("fail-delete"), "").unwrap();
    assert_eq!(
        exit(&runtime, &container).await.code,
        Some(3),
        "it is known all the same"
    );
    fs::remove_file(temp.path().join("fail-delete")).unwrap();
    machine.clean().await;
}

async fn runc_hangs() {
    let temp = tempfile::tempdir().unwrap();
    let machine = Machine::with_runc(faulty_runc(temp.path()));
    let runtime = machine.open();
    for call in ["create", "start"] {
        let (container, fault) = (id(&format!("with-{call}")), temp.path().join(format!("hang-{call}")));
        fs::write(&fault, "").unwrap();
        let error = runtime
            .create(&container, &machine.spec(Program::Print))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{call}: {error}");
        fs::remove_file(fault).unwrap();
        until("it can be made", async || {
            runtime.create(&container, &machine.spec(Program::Print)).await.is_ok()
        })
        .await;
        runtime.start(&container).await.unwrap();
        assert_eq!(exit(&runtime, &container).await.code, Some(0));
        assert_eq!(output(&runtime, &container).await.1, "err 1\n", "it ran once");
    }
    machine.clean().await;
}

async fn others() {
    let machine = Machine::new(Way::Containerd);
    let (daemon, namespace) = machine.daemon.clone().unwrap();
    let other = format!("{namespace}-other");
    let spec = "{\"ociVersion\":\"1.0.2\",\"root\":{\"path\":\"/\"},\"process\":{\"args\":[\"true\"],\"cwd\":\"/\",\"user\":{\"uid\":0,\"gid\":0}}}";
    let config = machine.config.state_dir.with_extension("json");
    fs::write(&config, spec).unwrap();
    for namespace in [&namespace, &other] {
        let made = daemon.ctr(
            namespace,
            &["containers", "create", "--config", config.to_str().unwrap(), "theirs"],
        );
        made.expect("ctr makes a container");
    }
    let runtime = machine.open();
    assert_eq!(runtime.list().await.unwrap(), []);
    let error = runtime
        .create(&id("theirs"), &machine.spec(Program::Print))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("somebody else's"), "{error}");
    runtime.remove(&id("theirs")).await.unwrap();
    run(&machine, &runtime, &id("ours"), Program::Print).await;
    exit(&runtime, &id("ours")).await;
    runtime.remove(&id("ours")).await.unwrap();
    for namespace in [&namespace, &other] {
        assert_eq!(daemon.ctr(namespace, &["containers", "ls", "-q"]).unwrap(), "theirs\n");
        daemon.ctr(namespace, &["containers", "rm", "theirs"]).unwrap();
    }
    fs::remove_file(config).unwrap();
    machine.clean().await;
}

async fn stray() {
    let machine = Machine::new(Way::Containerd);
    let a = id("a");
    {
        let runtime = machine.open();
        run(&machine, &runtime, &a, Program::Forever).await;
    }
    fs::remove_dir_all(machine.directory(&a)).unwrap();
    let runtime = machine.open();
    let mut changes = runtime.changes();
    while state(&runtime, &a).await.is_none() {
        futures::StreamExt::next(&mut changes).await;
    }
    assert!(matches!(state(&runtime, &a).await, Some(State::Running { .. })));
    assert!(matches!(runtime.remove(&a).await, Err(Error::Running(_))));
    runtime.stop(&a, TERM).await.unwrap();
    let lost = exit(&runtime, &a).await;
    assert!(lost.error.is_some_and(|error| error.contains("lost")));
    assert_eq!(machine.pids(), [0; 0], "what is said to have exited has");
    runtime.remove(&a).await.unwrap();
    machine.clean().await;
}
