//! Every promise of a [`Runtime`], stated once.
//!
//! A runtime under test comes with a [`Harness`], which knows how to make its containers do things. [`cases`] are run against each runtime
//! there is, each case on a machine of its own. A case waits for conditions, by [`Runtime::changes`] where that must announce them; it fails
//! when one does not come true within [`PATIENCE`], in the time of tokio.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};

use crate::limits::LOG_BYTES_MIN;
use crate::{
    ContainerId, ContainerSpec, Error, Exit, LogChunk, LogLine, LogPosition, LogQuery, Runtime, State, Stop, Stream,
};

/// How long a condition may take to come true on a machine with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// SIGTERM and SIGKILL.
const TERM: i32 = 15;
const KILL: i32 = 9;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Exits at once with this code.
    Exit(i32),
    /// Ends itself at once by this signal.
    Signal(i32),
    /// Runs until it is stopped; any signal does.
    Forever,
    /// Prints `ready`, and then ends by SIGKILL only.
    Stubborn,
    /// Prints `out 1`, `out 2` and, without a newline, `out 3`; to standard error `err 1`; and exits.
    Print,
    /// Prints [`NUMBERS`] lines made by [`number`], half of them, a pause, the other half; and exits.
    Numbers,
    /// Cannot be run: there is no such command.
    Missing,
    /// Takes memory without end; the harness limits it.
    EatMemory,
    /// Leaves two processes behind and exits with 0, one of them in a session of its own.
    Orphans,
}

/// How many lines [`Program::Numbers`] prints: more than one log file of the smallest size holds, less than two.
pub const NUMBERS: usize = 400;

/// The lines of [`Program::Numbers`]: 100 bytes each, so all are 40,000 bytes.
pub fn number(n: usize) -> String {
    format!("{n:099}\n")
}

/// What a harness cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Limit the memory of a container.
    LimitMemory,
}

/// A machine with a runtime on it, empty at first.
pub trait Harness: Send + Sync {
    /// The runtime of a caller that has just started; all callers share the machine.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// A container that does this; two calls give equal specs.
    fn spec(&self, program: Program) -> ContainerSpec;

    /// How many processes of this machine's containers are alive.
    fn processes(&self) -> usize;

    /// Whether it can.
    fn can(&self, ability: Ability) -> bool;
}

/// A promise as a test.
pub struct Case {
    /// What is promised.
    pub name: &'static str,
    /// Fails by panicking.
    pub run: for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, ()>,
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// All promises.
        pub fn cases() -> Vec<Case> {
            vec![$(Case { name: stringify!($name), run: |harness| $name(harness).boxed() }),*]
        }
    };
}

cases![
    containers_are_listed_in_the_order_of_their_ids_with_their_labels,
    creating_twice_is_creating_once,
    creating_with_another_spec_is_a_conflict,
    creating_what_cannot_be_is_invalid,
    starting_again_does_nothing,
    exit_code_is_reported,
    signal_is_reported,
    command_that_cannot_be_run_exits_with_an_error,
    stop_ends_a_command_by_the_signal,
    stubborn_command_is_killed_when_the_grace_is_over,
    later_stop_may_shorten_the_grace_and_not_lengthen_it,
    stopping_what_was_only_created_makes_it_exit,
    stopping_what_has_exited_does_nothing,
    unknown_container_is_not_found,
    only_exited_containers_can_be_removed,
    removed_container_is_gone_and_its_id_can_be_used_again,
    restarted_caller_finds_everything,
    container_exits_only_when_everything_in_it_has_ended,
    memory_limit_is_told_apart_from_a_signal,
    output_of_both_streams_is_kept,
    tail_gives_the_last_lines,
    output_can_be_read_on_from_a_position_over_a_rotation,
    output_older_than_asked_is_left_out,
    position_that_is_none_is_invalid,
    change_wakes_its_reader,
];

/// An id; a constant one is always valid.
fn id(text: &str) -> ContainerId {
    ContainerId::new(text).expect("a constant id is one")
}

async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("did not come true in time: {what}"))
}

async fn state(runtime: &dyn Runtime, id: &ContainerId) -> Option<State> {
    let containers = runtime.list().await.expect("listed");
    containers
        .into_iter()
        .find(|container| container.id == *id)
        .map(|container| container.state)
}

/// Waits until the container is so, looking only when the runtime says that something may have changed.
async fn until<T>(runtime: &dyn Runtime, id: &ContainerId, what: &str, so: impl Fn(&State) -> Option<T>) -> T {
    let mut changes = runtime.changes();
    let wait = async {
        loop {
            if let Some(found) = state(runtime, id).await.as_ref().and_then(&so) {
                return found;
            }
            changes.next().await.expect("changes never end");
        }
    };
    patiently(what, wait).await
}

async fn exit(runtime: &dyn Runtime, id: &ContainerId) -> Exit {
    until(runtime, id, "the container exits", |state| match state {
        State::Exited(exit) => Some(exit.clone()),
        State::Created | State::Running { .. } => None,
    })
    .await
}

async fn run(harness: &dyn Harness, runtime: &dyn Runtime, id: &ContainerId, program: Program) {
    runtime.create(id, &harness.spec(program)).await.expect("created");
    runtime.start(id).await.expect("started");
}

/// Creates, starts, and waits for the exit.
async fn run_to_exit(harness: &dyn Harness, program: Program) -> (Arc<dyn Runtime>, ContainerId, Exit) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, program).await;
    let exit = exit(&*runtime, &id).await;
    (runtime, id, exit)
}

/// All lines that are there or come until the end.
async fn output(runtime: &dyn Runtime, id: &ContainerId, mut query: LogQuery) -> Vec<LogLine> {
    let read = async {
        let mut lines = Vec::new();
        loop {
            let chunk = runtime.logs(id, &query).await.expect("read");
            let (empty, end) = (chunk.lines.is_empty(), chunk.end);
            lines.extend(chunk.lines);
            if end {
                return lines;
            }
            query.after = Some(chunk.position);
            if empty {
                // Output announces nothing: look again a little later.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    patiently("the output ends", read).await
}

fn text(lines: &[LogLine], stream: Stream) -> String {
    let of = lines.iter().filter(|line| line.stream == stream);
    of.map(|line| String::from_utf8_lossy(&line.bytes).into_owned())
        .collect()
}

/// Waits until the command has printed `ready`.
async fn ready(runtime: &dyn Runtime, id: &ContainerId) {
    let read = async {
        loop {
            let chunk: LogChunk = runtime.logs(id, &LogQuery::default()).await.expect("read");
            if text(&chunk.lines, Stream::Stdout).contains("ready\n") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the command is ready", read).await;
}

fn stop(signal: i32, grace: Duration) -> Stop {
    Stop { signal, grace }
}

const LONG: Duration = Duration::from_secs(3600);

async fn end(runtime: &dyn Runtime, id: &ContainerId) -> Exit {
    runtime.stop(id, stop(KILL, Duration::ZERO)).await.expect("stopped");
    exit(runtime, id).await
}

async fn containers_are_listed_in_the_order_of_their_ids_with_their_labels(harness: &dyn Harness) {
    let runtime = harness.runtime();
    assert_eq!(runtime.list().await.expect("listed"), [], "an empty machine has none");
    let mut spec = harness.spec(Program::Forever);
    for name in ["b", "a.2", "a"] {
        spec.labels = BTreeMap::from([("task".to_owned(), name.to_owned())]);
        runtime.create(&id(name), &spec).await.expect("created");
    }
    let listed = runtime.list().await.expect("listed");
    let found: Vec<_> = listed
        .iter()
        .map(|container| (container.id.as_str(), container.labels["task"].as_str()))
        .collect();
    assert_eq!(found, [("a", "a"), ("a.2", "a.2"), ("b", "b")]);
    assert!(
        listed.iter().all(|container| container.state == State::Created),
        "{listed:?}"
    );
}

async fn creating_twice_is_creating_once(harness: &dyn Harness) {
    let (runtime, id, spec) = (harness.runtime(), id("a"), harness.spec(Program::Exit(0)));
    let both = futures::join!(runtime.create(&id, &spec), runtime.create(&id, &spec));
    both.0.and(both.1).expect("created, at once too");
    runtime.create(&id, &spec).await.expect("created again");
    assert_eq!(state(&*runtime, &id).await, Some(State::Created));
    runtime.start(&id).await.expect("started");
    let ended = exit(&*runtime, &id).await;
    runtime
        .create(&id, &spec)
        .await
        .expect("what has exited exists as well");
    assert_eq!(state(&*runtime, &id).await, Some(State::Exited(ended)));
}

async fn creating_with_another_spec_is_a_conflict(harness: &dyn Harness) {
    let (runtime, id, spec) = (harness.runtime(), id("a"), harness.spec(Program::Forever));
    runtime.create(&id, &spec).await.expect("created");
    let mut other = spec.clone();
    other.labels.insert("another".to_owned(), "label".to_owned());
    for _ in 0..2 {
        let error = runtime.create(&id, &other).await.expect_err("another spec");
        assert!(matches!(&error, Error::Conflict(of) if *of == id), "{error}");
        runtime.start(&id).await.expect("started");
    }
    end(&*runtime, &id).await;
    assert!(
        matches!(runtime.create(&id, &other).await, Err(Error::Conflict(_))),
        "what has exited as well"
    );
}

async fn creating_what_cannot_be_is_invalid(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let spec = harness.spec(Program::Forever);
    let invalid = [
        ContainerSpec {
            argv: Vec::new(),
            ..spec.clone()
        },
        ContainerSpec {
            argv: vec!["a\0b".to_owned()],
            ..spec.clone()
        },
        ContainerSpec {
            env: BTreeMap::from([("A=B".to_owned(), String::new())]),
            ..spec.clone()
        },
        ContainerSpec {
            working_dir: Some("relative".into()),
            ..spec.clone()
        },
        ContainerSpec {
            working_dir: Some("/sandbox/../etc".into()),
            ..spec.clone()
        },
    ];
    for spec in invalid {
        let error = runtime.create(&id("a"), &spec).await.expect_err("invalid");
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert_eq!(runtime.list().await.expect("listed"), []);
}

async fn starting_again_does_nothing(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    runtime
        .create(&id, &harness.spec(Program::Print))
        .await
        .expect("created");
    let both = futures::join!(runtime.start(&id), runtime.start(&id));
    both.0.and(both.1).expect("started, at once too");
    let ended = exit(&*runtime, &id).await;
    runtime.start(&id).await.expect("started what has exited");
    assert_eq!(state(&*runtime, &id).await, Some(State::Exited(ended)));
    let lines = output(&*runtime, &id, LogQuery::default()).await;
    assert_eq!(text(&lines, Stream::Stderr), "err 1\n", "it ran once");
}

async fn exit_code_is_reported(harness: &dyn Harness) {
    let (_, _, exit) = run_to_exit(harness, Program::Exit(3)).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed, exit.error),
        (Some(3), None, false, None)
    );
    let started_ms = exit.started_ms.expect("it ran");
    assert!(
        started_ms > 0 && exit.finished_ms >= started_ms,
        "{started_ms} {}",
        exit.finished_ms
    );
}

async fn signal_is_reported(harness: &dyn Harness) {
    const SEGV: i32 = 11;
    let (_, _, exit) = run_to_exit(harness, Program::Signal(SEGV)).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed, exit.error),
        (None, Some(SEGV), false, None)
    );
}

async fn command_that_cannot_be_run_exits_with_an_error(harness: &dyn Harness) {
    let (_, _, exit) = run_to_exit(harness, Program::Missing).await;
    assert_eq!((exit.code, exit.signal, exit.started_ms), (None, None, None));
    assert!(exit.error.is_some_and(|error| !error.is_empty()));
}

async fn stop_ends_a_command_by_the_signal(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Forever).await;
    let running = until(&*runtime, &id, "it runs", |state| match state {
        State::Running { pid, started_ms } => Some((*pid, *started_ms)),
        State::Created | State::Exited(_) => None,
    });
    let (pid, started_ms) = running.await;
    assert!(pid > 0 && started_ms > 0);
    runtime.stop(&id, stop(TERM, LONG)).await.expect("stopped");
    let exit = exit(&*runtime, &id).await;
    assert_eq!(
        (exit.code, exit.signal, exit.started_ms),
        (None, Some(TERM), Some(started_ms))
    );
}

async fn stubborn_command_is_killed_when_the_grace_is_over(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Stubborn).await;
    ready(&*runtime, &id).await;
    runtime
        .stop(&id, stop(TERM, Duration::from_millis(150)))
        .await
        .expect("stopped");
    assert!(
        matches!(state(&*runtime, &id).await, Some(State::Running { .. })),
        "the signal alone does not end it"
    );
    let exit = exit(&*runtime, &id).await;
    assert_eq!((exit.code, exit.signal), (None, Some(KILL)));
}

async fn later_stop_may_shorten_the_grace_and_not_lengthen_it(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Stubborn).await;
    ready(&*runtime, &id).await;
    for grace in [LONG, Duration::from_millis(100), LONG] {
        runtime.stop(&id, stop(TERM, grace)).await.expect("stopped");
    }
    assert_eq!(exit(&*runtime, &id).await.signal, Some(KILL));
}

async fn stopping_what_was_only_created_makes_it_exit(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    runtime
        .create(&id, &harness.spec(Program::Print))
        .await
        .expect("created");
    runtime.stop(&id, stop(TERM, LONG)).await.expect("stopped");
    let exit = exit(&*runtime, &id).await;
    assert_eq!((exit.code, exit.signal, exit.started_ms), (None, None, None));
    assert!(exit.error.is_some());
    runtime.start(&id).await.expect("starting what has exited does nothing");
    assert_eq!(output(&*runtime, &id, LogQuery::default()).await, [], "it never ran");
}

async fn stopping_what_has_exited_does_nothing(harness: &dyn Harness) {
    let (runtime, id, exit) = run_to_exit(harness, Program::Exit(0)).await;
    runtime.stop(&id, stop(KILL, Duration::ZERO)).await.expect("stopped");
    assert_eq!(state(&*runtime, &id).await, Some(State::Exited(exit)));
}

async fn unknown_container_is_not_found(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("nobody"));
    let not_found =
        |result: Result<(), Error>| assert!(matches!(&result, Err(Error::NotFound(of)) if *of == id), "{result:?}");
    not_found(runtime.start(&id).await);
    not_found(runtime.stop(&id, stop(TERM, LONG)).await);
    not_found(runtime.logs(&id, &LogQuery::default()).await.map(drop));
    runtime.remove(&id).await.expect("removing it does nothing");
}

async fn only_exited_containers_can_be_removed(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let refused =
        |result: Result<(), Error>| assert!(matches!(&result, Err(Error::Running(of)) if *of == id), "{result:?}");
    runtime
        .create(&id, &harness.spec(Program::Forever))
        .await
        .expect("created");
    refused(runtime.remove(&id).await);
    runtime.start(&id).await.expect("started");
    refused(runtime.remove(&id).await);
    assert!(matches!(state(&*runtime, &id).await, Some(State::Running { .. })));
    end(&*runtime, &id).await;
    runtime.remove(&id).await.expect("removed");
}

async fn removed_container_is_gone_and_its_id_can_be_used_again(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Print).await;
    runtime.remove(&id).await.expect("removed");
    assert_eq!(runtime.list().await.expect("listed"), []);
    assert!(matches!(
        runtime.logs(&id, &LogQuery::default()).await,
        Err(Error::NotFound(_))
    ));
    runtime.remove(&id).await.expect("removed again");
    run(harness, &*runtime, &id, Program::Exit(4)).await;
    assert_eq!(exit(&*runtime, &id).await.code, Some(4));
    assert_eq!(
        output(&*runtime, &id, LogQuery::default()).await,
        [],
        "nothing is left of the one before"
    );
}

async fn restarted_caller_finds_everything(harness: &dyn Harness) {
    let (created, running, exited, away) = (id("created"), id("running"), id("exited"), id("away"));
    let before = harness.runtime();
    before
        .create(&created, &harness.spec(Program::Exit(1)))
        .await
        .expect("created");
    run(harness, &*before, &running, Program::Forever).await;
    run(harness, &*before, &exited, Program::Exit(5)).await;
    let exited_before = exit(&*before, &exited).await;
    run(harness, &*before, &away, Program::Exit(6)).await;
    let running_before = state(&*before, &running).await;
    drop(before);

    let after = harness.runtime();
    assert_eq!(
        exit(&*after, &away).await.code,
        Some(6),
        "what exited while nobody looked"
    );
    assert_eq!(state(&*after, &created).await, Some(State::Created));
    assert_eq!(state(&*after, &running).await, running_before);
    assert_eq!(state(&*after, &exited).await, Some(State::Exited(exited_before)));
    after.start(&created).await.expect("started");
    assert_eq!(exit(&*after, &created).await.code, Some(1));
    after.stop(&running, stop(TERM, LONG)).await.expect("stopped");
    assert_eq!(exit(&*after, &running).await.signal, Some(TERM));
}

async fn container_exits_only_when_everything_in_it_has_ended(harness: &dyn Harness) {
    let (_, _, exit) = run_to_exit(harness, Program::Orphans).await;
    assert_eq!(exit.code, Some(0));
    assert_eq!(harness.processes(), 0);
}

async fn memory_limit_is_told_apart_from_a_signal(harness: &dyn Harness) {
    if !harness.can(Ability::LimitMemory) {
        return;
    }
    let (_, _, exit) = run_to_exit(harness, Program::EatMemory).await;
    assert_eq!((exit.signal, exit.oom_killed), (Some(KILL), true));
}

async fn output_of_both_streams_is_kept(harness: &dyn Harness) {
    let (runtime, id, exit) = run_to_exit(harness, Program::Print).await;
    let lines = output(&*runtime, &id, LogQuery::default()).await;
    assert_eq!(text(&lines, Stream::Stdout), "out 1\nout 2\nout 3");
    assert_eq!(text(&lines, Stream::Stderr), "err 1\n");
    let started_ms = exit.started_ms.expect("it ran");
    assert!(
        lines.iter().all(|line| line.time_ms >= started_ms),
        "lines have the time they were read at"
    );
}

async fn tail_gives_the_last_lines(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Numbers).await;
    for tail in [0, 1, 10, NUMBERS - 1] {
        let lines = output(
            &*runtime,
            &id,
            LogQuery {
                tail: Some(tail),
                ..LogQuery::default()
            },
        )
        .await;
        assert_eq!(
            text(&lines, Stream::Stdout),
            (NUMBERS - tail..NUMBERS).map(number).collect::<String>(),
            "tail {tail}"
        );
    }
    let lines = output(
        &*runtime,
        &id,
        LogQuery {
            tail: Some(10 * NUMBERS),
            ..LogQuery::default()
        },
    )
    .await;
    assert_eq!(lines.len(), NUMBERS, "there are no more");
}

async fn output_can_be_read_on_from_a_position_over_a_rotation(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let mut spec = harness.spec(Program::Numbers);
    spec.limits.log_bytes = LOG_BYTES_MIN;
    runtime.create(&id, &spec).await.expect("created");
    let before = runtime.logs(&id, &LogQuery::default()).await.expect("read");
    assert_eq!((before.lines.len(), before.end), (0, false), "there is nothing yet");
    runtime.start(&id).await.expect("started");
    let query = LogQuery {
        after: Some(before.position),
        ..LogQuery::default()
    };
    let lines = output(&*runtime, &id, query).await;
    assert_eq!(
        text(&lines, Stream::Stdout),
        (0..NUMBERS).map(number).collect::<String>()
    );
    // A position is as good for a later caller, and gives the same again.
    let first = runtime.logs(&id, &LogQuery::default()).await.expect("read");
    let after = LogQuery {
        after: Some(first.position),
        tail: Some(1),
        ..LogQuery::default()
    };
    let rest = output(&*harness.runtime(), &id, after).await;
    assert_eq!(
        first.lines.len() + rest.len(),
        NUMBERS,
        "nothing twice, nothing lost; tail does not matter after a position"
    );
}

async fn output_older_than_asked_is_left_out(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Numbers).await;
    let all = output(&*runtime, &id, LogQuery::default()).await;
    let since_ms = all[NUMBERS / 2].time_ms;
    assert!(all[0].time_ms < since_ms, "there is a pause in between");
    let since = output(
        &*runtime,
        &id,
        LogQuery {
            since_ms: Some(since_ms),
            ..LogQuery::default()
        },
    )
    .await;
    assert_eq!(
        since,
        all.into_iter()
            .filter(|line| line.time_ms >= since_ms)
            .collect::<Vec<_>>()
    );
}

async fn position_that_is_none_is_invalid(harness: &dyn Harness) {
    let (runtime, id, _) = run_to_exit(harness, Program::Print).await;
    let query = LogQuery {
        after: Some(LogPosition("yesterday".to_owned())),
        ..LogQuery::default()
    };
    assert!(matches!(runtime.logs(&id, &query).await, Err(Error::Invalid(_))));
}

async fn change_wakes_its_reader(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let mut changes = runtime.changes();
    runtime
        .create(&id, &harness.spec(Program::Forever))
        .await
        .expect("created");
    patiently("creating is a change", changes.next())
        .await
        .expect("changes never end");
    runtime.start(&id).await.expect("started");
    until(&*runtime, &id, "it runs", |state| {
        matches!(state, State::Running { .. }).then_some(())
    })
    .await;
    // A reader who comes later, and one for whom another caller does something.
    let other = harness.runtime();
    other.list().await.expect("listed");
    let mut others = other.changes();
    let woken = async {
        while !matches!(state(&*other, &id).await, Some(State::Exited(_))) {
            others.next().await.expect("changes never end");
        }
    };
    let (_, ended) = futures::join!(patiently("the other caller is woken", woken), end(&*runtime, &id));
    assert_eq!(ended.signal, Some(KILL));
}
