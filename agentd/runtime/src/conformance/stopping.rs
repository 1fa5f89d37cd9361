//! Stopping commands.

use std::time::Duration;

use super::{Harness, KILL, LONG, Program, TERM, exit, id, output, ready, run, run_to_exit, state, stop, until};
use crate::{LogQuery, State};

pub(super) async fn stop_ends_a_command_by_the_signal(harness: &dyn Harness) {
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

pub(super) async fn stubborn_command_is_killed_when_the_grace_is_over(harness: &dyn Harness) {
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

pub(super) async fn later_stop_may_shorten_the_grace_and_not_lengthen_it(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Stubborn).await;
    ready(&*runtime, &id).await;
    for grace in [LONG, Duration::from_millis(100), LONG] {
        runtime.stop(&id, stop(TERM, grace)).await.expect("stopped");
    }
    assert_eq!(exit(&*runtime, &id).await.signal, Some(KILL));
}

pub(super) async fn stopping_what_was_only_created_makes_it_exit(harness: &dyn Harness) {
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

pub(super) async fn stopping_what_has_exited_does_nothing(harness: &dyn Harness) {
    let (runtime, id, exit) = run_to_exit(harness, Program::Exit(0)).await;
    runtime.stop(&id, stop(KILL, Duration::ZERO)).await.expect("stopped");
    assert_eq!(state(&*runtime, &id).await, Some(State::Exited(exit)));
}
