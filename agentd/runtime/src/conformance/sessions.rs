//! Commands in containers that run already.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Harness, Program, end, exec, exit, id, patiently, ready, run};
use crate::exec::{Ended, Exec, KILLED, NO_SUCH_COMMAND, Output, Session};
use crate::limits::EXEC_SESSIONS;
use crate::{Error, Runtime};

async fn all(stream: Option<Output>) -> String {
    let mut text = String::new();
    if let Some(mut stream) = stream {
        stream.read_to_string(&mut text).await.expect("read to its end");
    }
    text
}

/// Everything that it prints, and how it ends.
async fn to_end(mut session: Session) -> (String, String, Ended) {
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let whole = async { futures::join!(all(stdout), all(stderr), session.ended) };
    patiently("the session ends", whole).await
}

async fn begin(runtime: &dyn Runtime, exec: &Exec) -> Session {
    runtime.exec(&id("a"), exec).await.expect("entered")
}

/// Waits until there are no more processes than this.
async fn processes(harness: &dyn Harness, expected: usize) {
    let wait = async {
        while harness.processes() > expected {
            // Nothing announces the end of a process.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the processes of the session are gone", wait).await;
}

pub(super) async fn session_has_streams_and_the_exit_code_of_its_command(harness: &dyn Harness) {
    let runtime = harness.runtime();
    run(harness, &*runtime, &id("a"), Program::Forever).await;
    let (out, err, ended) = to_end(begin(&*runtime, &exec(harness, Program::Print)).await).await;
    assert_eq!(
        (out.as_str(), err.as_str(), ended),
        ("out 1\nout 2\nout 3", "err 1\n", Ended::with(0))
    );
    let (_, _, ended) = to_end(begin(&*runtime, &exec(harness, Program::Exit(3))).await).await;
    assert_eq!(ended, Ended::with(3));
    let (_, _, ended) = to_end(begin(&*runtime, &exec(harness, Program::Signal(15))).await).await;
    assert_eq!(ended, Ended::with(128 + 15));
    end(&*runtime, &id("a")).await;
}

pub(super) async fn session_is_written_to_until_its_input_ends(harness: &dyn Harness) {
    let runtime = harness.runtime();
    run(harness, &*runtime, &id("a"), Program::Forever).await;
    let mut session = begin(&*runtime, &exec(harness, Program::Cat)).await;
    let mut stdin = session.stdin.take().expect("it was asked for");
    // More than any pipe holds, so that both go on at once.
    let much = "0123456789abcdef".repeat(64 * 1024);
    let write = async {
        stdin.write_all(much.as_bytes()).await.expect("written");
        stdin.shutdown().await.expect("ended");
        drop(stdin);
    };
    let ((), (out, _, ended)) = futures::join!(write, to_end(session));
    assert!(out == much, "{} of {} bytes", out.len(), much.len());
    assert_eq!(ended, Ended::with(0));
    end(&*runtime, &id("a")).await;
}

pub(super) async fn session_of_a_command_that_is_not_there_ends_as_in_a_shell(harness: &dyn Harness) {
    let runtime = harness.runtime();
    run(harness, &*runtime, &id("a"), Program::Forever).await;
    let (_, _, ended) = to_end(begin(&*runtime, &exec(harness, Program::Missing)).await).await;
    assert_eq!(ended.code, NO_SUCH_COMMAND);
    assert!(ended.why.is_some_and(|why| !why.is_empty()));
    for nothing in [Exec::command([""; 0]), Exec::command([""]), Exec::command(["a\0b"])] {
        let refused = runtime.exec(&id("a"), &nothing).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{nothing:?}");
    }
    end(&*runtime, &id("a")).await;
}

pub(super) async fn only_running_containers_can_be_entered(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    let exec = exec(harness, Program::Exit(0));
    assert!(matches!(runtime.exec(&id, &exec).await, Err(Error::NotFound(_))));
    let spec = harness.spec(Program::Forever);
    runtime.create(&id, &spec).await.expect("created");
    assert!(matches!(runtime.exec(&id, &exec).await, Err(Error::NotRunning(_))));
    runtime.start(&id).await.expect("started");
    end(&*runtime, &id).await;
    assert!(matches!(runtime.exec(&id, &exec).await, Err(Error::NotRunning(_))));
}

pub(super) async fn session_ends_with_its_container(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Forever).await;
    let session = begin(&*runtime, &exec(harness, Program::Forever)).await;
    let stop = async {
        end(&*runtime, &id).await;
        exit(&*runtime, &id).await
    };
    let (exit, (_, _, ended)) = futures::join!(stop, to_end(session));
    assert_eq!((exit.signal, ended.code), (Some(super::KILL), KILLED));
    processes(harness, 0).await;
}

pub(super) async fn nothing_is_left_of_a_session_that_was_hung_up(harness: &dyn Harness) {
    let runtime = harness.runtime();
    run(harness, &*runtime, &id("a"), Program::Ready).await;
    ready(&*runtime, &id("a")).await;
    let before = harness.processes();
    let willing = begin(&*runtime, &exec(harness, Program::Forever)).await;
    let stubborn = begin(&*runtime, &exec(harness, Program::Stubborn)).await;
    drop((willing, stubborn));
    processes(harness, before).await;
    assert_eq!(harness.processes(), before, "what the container runs goes on");
    end(&*runtime, &id("a")).await;
}

pub(super) async fn nothing_is_left_of_what_a_session_leaves_behind(harness: &dyn Harness) {
    let runtime = harness.runtime();
    run(harness, &*runtime, &id("a"), Program::Ready).await;
    ready(&*runtime, &id("a")).await;
    let before = harness.processes();
    let (_, _, ended) = to_end(begin(&*runtime, &exec(harness, Program::Orphans)).await).await;
    assert_eq!((ended, harness.processes()), (Ended::with(0), before));
    end(&*runtime, &id("a")).await;
}

pub(super) async fn sessions_of_a_container_are_counted(harness: &dyn Harness) {
    let (runtime, id) = (harness.runtime(), id("a"));
    run(harness, &*runtime, &id, Program::Forever).await;
    let exec = exec(harness, Program::Forever);
    let mut sessions = Vec::new();
    for _ in 0..EXEC_SESSIONS {
        sessions.push(begin(&*runtime, &exec).await);
    }
    assert!(matches!(runtime.exec(&id, &exec).await, Err(Error::TooMany { .. })));
    sessions.pop();
    sessions.push(begin(&*runtime, &exec).await);
    drop(sessions);
    end(&*runtime, &id).await;
    processes(harness, 0).await;
}
