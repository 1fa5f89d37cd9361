//! A session in a container: the process of the machine that stands between an agent and one command.
//!
//! It is forked from the server of shims, as shims are. It opens the container's namespaces, makes one process in them (module `inside`), hands
//! the agent the other ends of its streams and waits: for the command to end, for the agent to hang up or to die, for the container to end.
//! Nothing of what is typed or printed passes through it. It promises that nothing of the session is left when it ends; were it killed, what
//! it made is in the container's cgroup still and ends with that.
//!
//! What must never happen here: anything that is inside of the container followed or opened; that is done only by who has given up the rights
//! of the machine. Nor a process that is another's by now taken for the container: it is held, then looked for in the container's cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::super::cgroup::Cgroup;
use super::super::directory::{Directory, Held};
use super::super::{clock, sys};
use super::inside::{Confinement, Ends, Room, Streams, Told, live};
use super::server::Common;
use crate::exec::{ENTER_DEADLINE, Ended, Errand, KILLED, Size};
use crate::limits::{EXEC_GRACE, EXEC_MESSAGE_BYTES, KILL_DEADLINE};

/// What an agent asks a session for, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Wanted {
    /// Of the container.
    pub(in super::super) directory: PathBuf,
    /// Its first process.
    pub(in super::super) pid: u32,
    pub(in super::super) errand: Errand,
    pub(in super::super) stdin: bool,
    pub(in super::super) stdout: bool,
    pub(in super::super) stderr: bool,
    pub(in super::super) terminal: Option<Size>,
}

/// What a session answers: first one of the first two, and after the first, the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) enum Answer {
    /// It runs. Here are the ends of its streams, in their order, without those that were not wanted; or its terminal; or the connection.
    Runs,
    /// It cannot be.
    Refused(String),
    /// The command has ended.
    Ended(Ended),
}

fn tell(agent: impl AsFd, answer: &Answer, fds: &[BorrowedFd<'_>]) {
    let bytes = serde_json::to_vec(answer).expect("answers are plain data");
    // An agent that is gone wants to know nothing.
    let _ = sys::send(agent, &bytes, fds);
}

/// Says that there will be no session.
pub(super) fn refuse(agent: impl AsFd, why: &str) {
    tell(agent, &Answer::Refused(why.to_owned()), &[]);
}

/// Serves the agent at the other end of this socket until the session is over.
pub(super) fn serve(agent: &OwnedFd, common: &Common) -> io::Result<()> {
    nix::sys::prctl::set_name(c"muster-session")?;
    // Before a namespace is opened: nothing in it may look into this process or into what it makes.
    nix::sys::prctl::set_dumpable(false)?;
    let mut message = vec![0; EXEC_MESSAGE_BYTES];
    let (length, _) = sys::receive(agent, &mut message)?;
    let Ok(wanted) = serde_json::from_slice::<Wanted>(&message[..length]) else {
        return Ok(());
    };
    let (session, ends) = match Session::begin(&wanted, common, agent) {
        Ok(begun) => begun,
        Err(why) => {
            refuse(agent, &why);
            return Ok(());
        }
    };
    let fds: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
    tell(agent, &Answer::Runs, &fds);
    drop(fds);
    // The agent's alone from here on: an end that is held here would never be one.
    drop(ends);
    let ended = session.attend(agent)?;
    tell(agent, &Answer::Ended(ended), &[]);
    Ok(())
}

struct Session {
    /// The process in the container: our child.
    inside: Pid,
    /// To that.
    told: OwnedFd,
    /// The first process of the container.
    container: OwnedFd,
}

fn failed(what: &str) -> impl FnOnce(nix::Error) -> String + use<'_> {
    move |error| format!("{what}: {}", error.desc())
}

impl Session {
    fn begin(wanted: &Wanted, common: &Common, agent: &OwnedFd) -> Result<(Session, Vec<OwnedFd>), String> {
        let pid = Pid::from_raw(wanted.pid.cast_signed());
        let over = || "the container has ended".to_owned();
        let container = sys::hold(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => over(),
            _ => format!("the first process of the container: {error}"),
        })?;
        let room = room(wanted, common)?;
        if let Confinement::Isolated { cgroup, .. } = &room.confinement {
            let processes = cgroup.processes().map_err(|error| format!("cgroup: {error}"))?;
            if !processes.contains(&pid.as_raw()) {
                return Err(over());
            }
            // Holds for the children of this process, of which there is one.
            setns(&container, CloneFlags::CLONE_NEWPID).map_err(failed("pid namespace"))?;
        }
        let (streams, mut ends) = Streams::new(wanted).map_err(|error| format!("streams: {error}"))?;
        let (told, to_us) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(failed("socket"))?;
        let inside = match sys::fork().map_err(failed("cannot make a process in the container"))? {
            ForkResult::Child => {
                drop((told, ends));
                // Not for who goes inside; what it belongs to is never come back to in this process.
                let _ = nix::unistd::close(agent.as_raw_fd());
                live(&room, wanted, &container, streams, &to_us)
            }
            ForkResult::Parent { child } => child,
        };
        drop((to_us, streams));
        let session = Session {
            inside,
            told,
            container,
        };
        match session.entered() {
            Ok(Ends(more)) => {
                ends.extend(more);
                Ok((session, ends))
            }
            Err(why) => {
                session.bury();
                Err(why)
            }
        }
    }

    /// Waits until the process has shut itself in.
    fn entered(&self) -> Result<Ends, String> {
        let mut fds = [PollFd::new(self.told.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(ENTER_DEADLINE).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, patience) {
            Ok(0) => Err(format!("not entered within {ENTER_DEADLINE:?}")),
            Err(error) => Err(failed("waiting")(error)),
            Ok(_) => match Told::receive(&self.told) {
                Ok(Some(Told::Ready(ends))) => Ok(ends),
                Ok(Some(Told::CannotEnter(why))) => Err(why),
                _ => Err("the process in the container was killed".to_owned()),
            },
        }
    }

    fn attend(self, agent: &OwnedFd) -> io::Result<Ended> {
        let mut ended = None;
        let (mut listens, mut ends_at) = (true, None::<Duration>);
        let mut killing = false;
        loop {
            let watched = |fd, on| PollFd::new(fd, if on { PollFlags::POLLIN } else { PollFlags::empty() });
            let mut fds = vec![watched(self.told.as_fd(), true)];
            // What has said its word would be ready for ever.
            if listens {
                fds.push(watched(agent.as_fd(), true));
            }
            if !killing {
                fds.push(watched(self.container.as_fd(), true));
            }
            let timeout = ends_at.map(|at| at.saturating_sub(clock::boottime()) + Duration::from_millis(1));
            let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
                PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, timeout) {
                Err(error) if error != Errno::EINTR => return Err(error.into()),
                _ => {}
            }
            let ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
            let (told, hung_up) = (ready(0), listens && ready(1));
            let container_ended = !killing && ready(1 + usize::from(listens));
            let mut kill = container_ended;
            if told {
                match Told::receive(&self.told) {
                    // The first word counts: who could not run it said why, and then ended.
                    Ok(Some(Told::Ended(how))) => drop(ended.get_or_insert(how)),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
                kill = true;
            }
            if hung_up {
                listens = false;
                let _ = sys::send(&self.told, HANG_UP, &[]);
                ends_at = Some(clock::boottime() + EXEC_GRACE);
            }
            if ends_at.is_some_and(|at| at <= clock::boottime()) {
                if killing {
                    // It may hold what cannot be killed; the cgroup knows.
                    break;
                }
                kill = true;
            }
            if kill && !killing {
                killing = true;
                ends_at = Some(clock::boottime() + KILL_DEADLINE);
                let _ = sys::send(&self.told, KILL_ALL, &[]);
            }
        }
        let over = poll(
            &mut [PollFd::new(self.container.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        ) == Ok(1);
        self.bury();
        Ok(ended.unwrap_or_else(|| {
            let why = if over {
                "the container has ended"
            } else {
                "it was killed"
            };
            Ended::because(KILLED, why)
        }))
    }

    /// Ends the process inside, and takes it from the kernel: the container's end waits for that.
    fn bury(&self) {
        // Our own child, which nobody else reaps: the number is still its.
        let _ = sys::kill(self.inside, libc::SIGKILL);
        let _ = sys::reap_one(self.inside);
    }
}

/// What the process inside is told: that the client has gone.
pub(super) const HANG_UP: &[u8] = b"H";
/// What the process inside is told: that nothing may be left.
pub(super) const KILL_ALL: &[u8] = b"K";

/// What the command of the container is like, and so the session's.
fn room(wanted: &Wanted, common: &Common) -> Result<Room, String> {
    let directory = Directory::at(wanted.directory.clone());
    let plan = directory.plan().map_err(|error| format!("plan: {error}"))?;
    let held = plan.ok_or("the container is gone")?.isolation;
    let (cgroup, cwd) = match held {
        Held::Plain { env, cwd, user, .. } => {
            return Ok(Room {
                confinement: Confinement::Plain { user },
                env,
                cwd,
            });
        }
        Held::Isolated { cgroup, cwd, .. } | Held::Contained { cgroup, cwd, .. } => (cgroup, cwd),
    };
    let spec = Spec::load(directory.join("bundle/config.json"));
    let spec = spec.map_err(|error| format!("bundle: {}", super::chain(&error)))?;
    let process = spec.process().clone().ok_or("the bundle has no process")?;
    let (hierarchies, filter) = common.isolation()?;
    Ok(Room {
        env: process.env().clone().unwrap_or_default(),
        cwd,
        confinement: Confinement::Isolated {
            cgroup: Cgroup::new(hierarchies, &cgroup),
            filter: Arc::clone(&filter),
            process: Box::new(process),
        },
    })
}
