//! Every promise of a [`Runtime`], stated once.
//!
//! A runtime under test comes with a [`Harness`], which knows how to make its containers do things. [`cases`] are run against each runtime
//! there is, each case on a machine of its own. A case waits for conditions, by [`Runtime::changes`] where that must announce them; it fails
//! when one does not come true within [`PATIENCE`], in the time of tokio.

mod creation;
mod output;
mod presence;
mod running;
mod sessions;
mod stopping;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};

use crate::{ContainerId, ContainerSpec, Exec, Exit, LogChunk, LogLine, LogQuery, Runtime, State, Stop, Stream};

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
    /// Copies its standard input to its standard output.
    Cat,
    /// Prints `ready`, and then is one process that runs until it is stopped.
    Ready,
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

/// What a command does, as one of a session.
fn exec(harness: &dyn Harness, program: Program) -> Exec {
    Exec {
        stdin: program == Program::Cat,
        ..Exec::command(harness.spec(program).argv)
    }
}

/// A promise as a test.
pub struct Case {
    /// What is promised.
    pub name: &'static str,
    /// Fails by panicking.
    pub run: for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, ()>,
}

macro_rules! cases {
    ($($theme:ident { $($name:ident),* $(,)? })*) => {
        /// All promises.
        pub fn cases() -> Vec<Case> {
            vec![$($(Case { name: stringify!($name), run: |harness| $theme::$name(harness).boxed() }),*),*]
        }
    };
}

cases! {
    creation {
        containers_are_listed_in_the_order_of_their_ids_with_their_labels,
        creating_twice_is_creating_once,
        creating_with_another_spec_is_a_conflict,
        creating_what_cannot_be_is_invalid,
    }
    running {
        starting_again_does_nothing,
        exit_code_is_reported,
        signal_is_reported,
        command_that_cannot_be_run_exits_with_an_error,
        container_exits_only_when_everything_in_it_has_ended,
        memory_limit_is_told_apart_from_a_signal,
    }
    stopping {
        stop_ends_a_command_by_the_signal,
        stubborn_command_is_killed_when_the_grace_is_over,
        later_stop_may_shorten_the_grace_and_not_lengthen_it,
        stopping_what_was_only_created_makes_it_exit,
        stopping_what_has_exited_does_nothing,
    }
    presence {
        unknown_container_is_not_found,
        only_exited_containers_can_be_removed,
        removed_container_is_gone_and_its_id_can_be_used_again,
        restarted_caller_finds_everything,
        change_wakes_its_reader,
        what_runs_is_counted_and_cpu_time_never_falls,
    }
    output {
        output_of_both_streams_is_kept,
        tail_gives_the_last_lines,
        output_can_be_read_on_from_a_position_over_a_rotation,
        output_older_than_asked_is_left_out,
        position_that_is_none_is_invalid,
    }
    sessions {
        session_has_streams_and_the_exit_code_of_its_command,
        session_is_written_to_until_its_input_ends,
        session_of_a_command_that_is_not_there_ends_as_in_a_shell,
        only_running_containers_can_be_entered,
        session_ends_with_its_container,
        nothing_is_left_of_a_session_that_was_hung_up,
        nothing_is_left_of_what_a_session_leaves_behind,
        sessions_of_a_container_are_counted,
    }
}

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
