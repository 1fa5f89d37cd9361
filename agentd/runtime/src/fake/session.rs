//! Sessions in fake containers: what a command does is what it does as the command of a container; and `cat` copies its input. Ports from 1024 on
//! send back what they are sent, those below take no connection.
//!
//! There is no task: what happens happens while somebody waits for the end.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep_until};

use super::FakeRuntime;
use super::behaviour::{Behaviour, Ending};
use crate::exec::{Ended, Errand, Exec, KILLED, NO_SUCH_COMMAND, Session};
use crate::limits::EXEC_SESSIONS;
use crate::{ContainerId, Error, Runtime as _, Stream};

/// As much as a pipe holds.
const PIPE: usize = 64 * 1024;

/// One of the sessions that a container may have.
struct Slot {
    fake: FakeRuntime,
    id: ContainerId,
}

impl Slot {
    fn take(fake: &FakeRuntime, id: &ContainerId) -> Result<Slot, Error> {
        let mut inner = fake.inner();
        let count = inner.sessions.entry(id.clone()).or_default();
        if *count >= EXEC_SESSIONS {
            return Err(Error::TooMany {
                id: id.clone(),
                most: EXEC_SESSIONS,
            });
        }
        *count += 1;
        Ok(Slot {
            fake: fake.clone(),
            id: id.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(count) = self.fake.inner().sessions.get_mut(&self.id) {
            *count -= 1;
        }
    }
}

pub(super) fn begin(fake: &FakeRuntime, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
    exec.check()?;
    let argv = match &exec.errand {
        Errand::Command(argv) => Some(argv),
        Errand::Connect(_) => None,
        Errand::Pack(_) | Errand::Unpack(_) => return Err(Error::Invalid("a fake container has no files".to_owned())),
    };
    let spec = fake.change_silently(|machine| machine.inside(id).map(|(spec, runs)| (spec.clone(), runs)));
    let mut spec = match spec {
        None => return Err(Error::NotFound(id.clone())),
        Some((_, false)) => return Err(Error::NotRunning(id.clone())),
        Some((spec, true)) => spec,
    };
    let slot = Slot::take(fake, id)?;
    let Some(argv) = argv else {
        return connect(&exec.errand, slot);
    };
    spec.argv.clone_from(argv);
    let (stdin, input) = duplex(PIPE);
    let (stdout, out) = duplex(PIPE);
    let (stderr, err) = duplex(PIPE);
    let cat = argv[0] == "cat";
    let behaviours = Arc::clone(&fake.inner().behaviours);
    let behaviour = (!cat).then(|| behaviours(id, &spec));
    let (fake, id) = (fake.clone(), id.clone());
    let ended = async move {
        let _slot = slot;
        let work = async move {
            match behaviour {
                Some(behaviour) => behave(behaviour, out, err).await,
                None => copy(input, out).await,
            }
        };
        tokio::select! {
            biased;
            () = gone(&fake, &id) => Ended::because(KILLED, "the container has ended"),
            ended = work => ended,
        }
    };
    Ok(Session {
        stdin: exec.stdin.then(|| Box::new(stdin) as _),
        stdout: exec.stdout.then(|| Box::new(stdout) as _),
        stderr: exec.stderr.then(|| Box::new(stderr) as _),
        terminal: None,
        ended: ended.boxed(),
    })
}

fn connect(errand: &Errand, slot: Slot) -> Result<Session, Error> {
    if let Errand::Connect(port @ ..1024) = errand {
        return Err(Error::System {
            context: "entering the container".to_owned(),
            message: format!("port {port} in the container: Connection refused"),
        });
    }
    let (there, back) = duplex(PIPE);
    Ok(Session {
        stdin: Some(Box::new(there)),
        stdout: Some(Box::new(back)),
        stderr: None,
        terminal: None,
        ended: async move {
            drop(slot);
            Ended::with(0)
        }
        .boxed(),
    })
}

async fn copy(mut input: DuplexStream, mut out: DuplexStream) -> Ended {
    let copied = tokio::io::copy(&mut input, &mut out).await;
    Ended::with(i32::from(copied.is_err()))
}

/// Until the container has ended.
async fn gone(fake: &FakeRuntime, id: &ContainerId) {
    let mut changes = fake.changes();
    while fake.change_silently(|machine| machine.inside(id).is_some_and(|(_, runs)| runs)) {
        changes.next().await;
    }
}

async fn behave(behaviour: Behaviour, mut out: DuplexStream, mut err: DuplexStream) -> Ended {
    let began = Instant::now();
    for output in behaviour.output {
        sleep_until(began + output.after).await;
        let stream = match output.stream {
            Stream::Stdout => &mut out,
            Stream::Stderr => &mut err,
        };
        // Whoever does not read it does not want it.
        let _ = stream.write_all(&output.bytes).await;
    }
    let after = match &behaviour.ending {
        Ending::Never => std::future::pending().await,
        Ending::Exit(after, _) | Ending::Signal(after, _) | Ending::OutOfMemory(after) => *after,
        Ending::CannotRun(_) => std::time::Duration::ZERO,
    };
    sleep_until(began + after).await;
    match behaviour.ending {
        Ending::Never | Ending::OutOfMemory(_) => Ended::with(KILLED),
        Ending::Exit(_, code) => Ended::with(code),
        Ending::Signal(_, signal) => Ended::with(128 + signal),
        Ending::CannotRun(why) => Ended::because(NO_SUCH_COMMAND, why),
    }
}
