//! The server of shims: this executable, run again once for each agent, which forks a shim whenever the agent asks for one. So what it
//! costs to run a large executable is paid once, and what all containers have in common is worked out once.
//!
//! It has one thread and holds nothing that matters: no container, no secret (it was run before anything of the agent's could reach it,
//! without the agent's environment, and it closes what it was not given). It ends when its agent does. Its end, whatever the reason, is
//! nothing to the shims that it has made: each is a process of its own, found again by the lock in its container's directory; the agent
//! then runs another server.
//!
//! What must never happen here: anything about a container after its shim was forked.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::ForkResult;

use super::super::cgroup::Hierarchies;
use super::super::control::Created;
use super::super::directory::Directory;
use super::super::filter::Filter;
use super::super::shims::SESSION;
use super::super::sys;
use super::session;
use crate::spec;

/// A shim must outlive its container: as protected as can be without being the last to go; or, where that is not allowed, as everybody.
const OOM_SCORE_ADJ: [&str; 2] = ["-900", "0"];

/// The longest path there is.
const PATH_MAX: usize = 4096;

/// What all containers of this machine have in common.
pub(super) struct Common {
    hierarchies: Result<Hierarchies, String>,
    filter: Result<Arc<Filter>, String>,
}

impl Common {
    fn new() -> Common {
        let filter = Filter::compile(&spec::seccomp()).map(Arc::new);
        Common {
            hierarchies: Hierarchies::detect().map_err(|error| format!("cgroups: {error}")),
            filter: filter.map_err(|error| super::chain(&error)),
        }
    }

    /// What is needed to isolate one.
    pub(super) fn isolation(&self) -> Result<(Hierarchies, Arc<Filter>), String> {
        Ok((self.hierarchies.clone()?, self.filter.clone()?))
    }
}

/// What an agent asks for.
enum Request {
    /// A shim for the container in this directory; what it says goes there.
    Shim { directory: PathBuf, to_agent: OwnedFd },
    /// A session, which is told at this socket what to do.
    Session(OwnedFd),
}

/// What a child of the server is to be.
pub(super) enum Born {
    /// The shim of the container in this directory.
    Shim(Directory),
    /// A session; the agent is at the other end of this.
    Session(OwnedFd),
}

/// Serves the agent at the other end of standard input until it has gone: `None`. Comes back in each child, with what that is to be; what a
/// shim says to the agent goes to its standard output.
pub(super) fn serve() -> io::Result<Option<(Born, Common)>> {
    apart();
    sys::close_from(3);
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    std::env::set_current_dir("/")?;
    nix::sys::prctl::set_name(c"muster-shims")?;
    let common = Common::new();
    let signals = SignalFd::with_flags(
        &SigSet::from(Signal::SIGCHLD),
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?;
    loop {
        let mut fds = [&socket.as_fd(), &signals.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(error) if error != nix::Error::EINTR => return Err(error.into()),
            _ => {}
        }
        let asked = fds[0].any().unwrap_or(false);
        while let Ok(Some(_)) = signals.read_signal() {}
        while let Ok(Some(_)) = sys::reap() {}
        if !asked {
            continue;
        }
        let request = match receive(&socket) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        match sys::fork() {
            Ok(ForkResult::Child) => {
                // Not the shim's: the server's end would not be seen, and what is forked from here on would hold them, too.
                drop((socket, signals));
                return request.begin().map(|born| Some((born, common)));
            }
            Ok(ForkResult::Parent { .. }) => {}
            Err(error) => request.fail(&format!("cannot make a process: {}", error.desc())),
        }
    }
}

/// Makes this process, which was not forked from a server, the shim for a container.
pub(super) fn alone(directory: PathBuf) -> io::Result<Directory> {
    apart();
    std::env::set_current_dir(&directory)?;
    Ok(Directory::at(directory))
}

/// What every server and every shim is like, whoever began it.
fn apart() {
    // Every signal stays pending: nothing but SIGKILL ends a shim or this, and a container's first process is born with them blocked.
    sys::block_signals();
    // Its own session: signals of a terminal that the agent was started from do not reach it. Fails only when it has one already.
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    protect_from_oom();
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Request>> {
    let mut path = vec![0; PATH_MAX];
    match sys::receive(socket, &mut path)? {
        (0, _) => Ok(None),
        (length, Some(socket)) if path[..length] == *SESSION => Ok(Some(Request::Session(socket))),
        (length, Some(to_agent)) => {
            path.truncate(length);
            let directory = PathBuf::from(std::ffi::OsString::from_vec(path));
            Ok(Some(Request::Shim { directory, to_agent }))
        }
        (_, None) => Err(io::Error::other("a request without a pipe")),
    }
}

impl Request {
    fn fail(&self, why: &str) {
        match self {
            Request::Shim { to_agent, .. } => super::say(to_agent, &Created::Failed(why.to_owned())),
            Request::Session(socket) => session::refuse(socket, why),
        }
    }

    fn begin(self) -> io::Result<Born> {
        // A session of its own, as the server has.
        let _ = nix::unistd::setsid();
        match self {
            Request::Session(socket) => Ok(Born::Session(socket)),
            Request::Shim { directory, to_agent } => {
                nix::unistd::dup2_stdout(&to_agent)?;
                nix::unistd::dup2_stderr(File::create(directory.join("shim.log"))?)?;
                // Shows whose shim it is.
                std::env::set_current_dir(&directory)?;
                Ok(Born::Shim(Directory::at(directory)))
            }
        }
    }
}

/// Not being allowed to is no reason to fail.
fn protect_from_oom() {
    let _ = OOM_SCORE_ADJ
        .iter()
        .any(|score| fs::write("/proc/self/oom_score_adj", score).is_ok());
}
