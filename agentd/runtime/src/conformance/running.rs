//! Running commands, and how they end.

use super::{Ability, Harness, KILL, Program, exit, id, output, run_to_exit, state, text};
use crate::{LogQuery, State, Stream};

pub(super) async fn starting_again_does_nothing(harness: &dyn Harness) {
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

pub(super) async fn exit_code_is_reported(harness: &dyn Harness) {
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

pub(super) async fn signal_is_reported(harness: &dyn Harness) {
    const SEGV: i32 = 11;
    let (_, _, exit) = run_to_exit(harness, Program::Signal(SEGV)).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed, exit.error),
        (None, Some(SEGV), false, None)
    );
}

pub(super) async fn command_that_cannot_be_run_exits_with_an_error(harness: &dyn Harness) {
    let (_, _, exit) = run_to_exit(harness, Program::Missing).await;
    assert_eq!((exit.code, exit.signal, exit.started_ms), (None, None, None));
    assert!(exit.error.is_some_and(|error| !error.is_empty()));
}

pub(super) async fn container_exits_only_when_everything_in_it_has_ended(harness: &dyn Harness) {
    let (_, _, exit) = run_to_exit(harness, Program::Orphans).await;
    assert_eq!(exit.code, Some(0));
    assert_eq!(harness.processes(), 0);
}

pub(super) async fn memory_limit_is_told_apart_from_a_signal(harness: &dyn Harness) {
    if !harness.can(Ability::LimitMemory) {
        return;
    }
    let (_, _, exit) = run_to_exit(harness, Program::EatMemory).await;
    assert_eq!((exit.signal, exit.oom_killed), (Some(KILL), true));
}
