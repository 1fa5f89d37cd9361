//! The agent's side of a session: has one made, and holds the ends of its streams.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures::FutureExt as _;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;

use super::shared::{Shared, blocking, lock, system, within};
use super::shim::{Answer, Wanted};
use super::sys;
use crate::exec::{ENTER_DEADLINE, Ended, Errand, Exec, Input, KILLED, Output, Session, Size, Terminal};
use crate::limits::{EXEC_MESSAGE_BYTES, EXEC_SESSIONS};
use crate::{Container, ContainerId, Error, State};

/// How many sessions each container has.
pub(super) type Counts = Arc<Mutex<BTreeMap<ContainerId, usize>>>;

/// One of the sessions that a container may have.
struct Slot {
    counts: Counts,
    id: ContainerId,
}

impl Slot {
    fn take(counts: &Counts, id: &ContainerId) -> Result<Slot, Error> {
        let mut all = lock(counts);
        let count = all.entry(id.clone()).or_default();
        if *count >= EXEC_SESSIONS {
            return Err(Error::TooMany {
                id: id.clone(),
                most: EXEC_SESSIONS,
            });
        }
        *count += 1;
        Ok(Slot {
            counts: Arc::clone(counts),
            id: id.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut all = lock(&self.counts);
        if let Some(count) = all.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.id);
            }
        }
    }
}

/// The agent's end of the socket to a session. Closing it hangs up.
struct Line(AsyncFd<OwnedFd>);

impl Line {
    /// Nothing: there is nobody any more who could say something.
    async fn receive(&self) -> io::Result<Option<(Answer, Vec<OwnedFd>)>> {
        let mut message = vec![0; EXEC_MESSAGE_BYTES];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| sys::receive_all(socket, &mut message)) {
                Err(_) => {}
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Ok((length, fds))) => {
                    let answer = serde_json::from_slice(&message[..length]).map_err(io::Error::other)?;
                    return Ok(Some((answer, fds)));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ECONNRESET as i32) => return Ok(None),
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

impl Shared {
    pub(super) async fn exec(self: &Arc<Self>, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        exec.check()?;
        let directory = self.directory(id);
        let pid = match self.inspect(directory.clone()).await? {
            None => return Err(Error::NotFound(id.clone())),
            Some(Container {
                state: State::Running { pid, .. },
                ..
            }) => pid,
            Some(_) => return Err(Error::NotRunning(id.clone())),
        };
        let slot = Slot::take(&self.sessions, id)?;
        let wanted = Wanted {
            directory: directory.path().to_owned(),
            pid,
            errand: exec.errand.clone(),
            stdin: exec.stdin,
            stdout: exec.stdout,
            stderr: exec.stderr && exec.terminal.is_none(),
            terminal: exec.terminal,
        };
        let shared = Arc::clone(self);
        let message = serde_json::to_vec(&wanted).map_err(|error| Error::Invalid(error.to_string()))?;
        let ours = blocking("entering the container", move || {
            shared.ask_session(&message).map_err(|error| entering(&error))
        });
        let line = sys::watch(ours.await?).map(Line).map_err(|error| entering(&error))?;
        let answer = within("exec", ENTER_DEADLINE, async {
            line.receive().await.map_err(|error| entering(&error))
        });
        let fds = match answer.await? {
            Some((Answer::Runs, fds)) => fds,
            Some((Answer::Refused(why), _)) => return Err(self.refused(id, why).await),
            Some((Answer::Ended(_), _)) | None => {
                return Err(entering(&io::Error::other("the session has ended before it began")));
            }
        };
        session(&wanted, fds, line, slot).map_err(|error| entering(&error))
    }

    fn ask_session(&self, message: &[u8]) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // Theirs stays as it is: a session may wait.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if !self.shims.ask_session(theirs)? {
            return Err(io::Error::other("the server of shims has ended"));
        }
        sys::send(&ours, message, &[])?;
        Ok(ours)
    }

    /// Why there is no session: the container may have ended on the way.
    async fn refused(self: &Arc<Self>, id: &ContainerId, why: String) -> Error {
        match self.inspect(self.directory(id)).await {
            Ok(Some(Container {
                state: State::Running { .. },
                ..
            })) => Error::System {
                context: "entering the container".to_owned(),
                message: why,
            },
            _ => Error::NotRunning(id.clone()),
        }
    }
}

fn entering(error: &io::Error) -> Error {
    system("entering the container", error)
}

/// A session from what its process has sent.
fn session(wanted: &Wanted, fds: Vec<OwnedFd>, line: Line, slot: Slot) -> io::Result<Session> {
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(|| io::Error::other("an end of a stream is missing"))
    };
    let (mut stdin, mut stdout, mut stderr) = (None::<Input>, None::<Output>, None::<Output>);
    let mut terminal = None::<Box<dyn Terminal>>;
    if let Errand::Connect(_) = wanted.errand {
        let stream = std::net::TcpStream::from(next()?);
        stream.set_nonblocking(true)?;
        let (read, write) = TcpStream::from_std(stream)?.into_split();
        stdin = Some(Box::new(write));
        stdout = Some(Box::new(read));
    } else if wanted.terminal.is_some() {
        let master = Arc::new(sys::watch(next()?)?);
        stdin = wanted.stdin.then(|| Box::new(Master(Arc::clone(&master))) as Input);
        stdout = Some(Box::new(Master(Arc::clone(&master))));
        terminal = Some(Box::new(Master(master)));
    } else {
        if wanted.stdin {
            stdin = Some(Box::new(pipe::Sender::from_owned_fd(next()?)?));
        }
        for (asked, place) in [(wanted.stdout, &mut stdout), (wanted.stderr, &mut stderr)] {
            if asked {
                *place = Some(Box::new(pipe::Receiver::from_owned_fd(next()?)?));
            }
        }
    }
    let ended = async move {
        let _slot = slot;
        match line.receive().await {
            Ok(Some((Answer::Ended(ended), _))) => ended,
            _ => Ended::because(KILLED, "its process on the machine has ended"),
        }
    };
    Ok(Session {
        stdin,
        stdout,
        stderr,
        terminal,
        ended: ended.boxed(),
    })
}

/// A terminal, from behind.
struct Master(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Master {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match ready.try_io(|fd| nix::unistd::read(fd, space).map_err(io::Error::from)) {
                Err(_) => {}
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has it open in front any more: its end.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|fd| nix::unistd::write(fd.as_fd(), bytes).map_err(io::Error::from)) {
                Err(_) => {}
                Ok(written) => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: a terminal has no end that could be written.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Terminal for Master {
    fn resize(&self, size: Size) -> Result<(), Error> {
        sys::resize(self.0.get_ref(), size.columns, size.rows).map_err(|error| system("the terminal", &error))
    }
}
