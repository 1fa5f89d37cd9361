//! What a session is inside of a container: a process that enters it, gives up every right that the container's command does not have, runs one
//! command as its child, and ends what that leaves behind.
//!
//! It takes the same steps as the first process of a container, in the same order (cgroup, limits, namespaces, no new privileges, capabilities,
//! user, system calls), from the same document; so a session is as confined as the task. Everything that the container could have
//! prepared (its terminal, its working directory, its programs, its files) is touched only after the last of them.
//!
//! What must never happen here: a descriptor of the machine's files open when the container is entered, or any at all when the command is run. It
//! is not dumpable, so what is in the container cannot look into it, or run it again through `/proc`. Tested from inside of
//! containers.

use std::ffi::{CString, OsStr};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Gid, Pid, Uid};
use oci_spec::runtime::Process;

use super::super::cgroup::Cgroup;
use super::super::filter::Filter;
use super::super::sys;
use super::family::signal_descendants;
use super::session::{HANG_UP, Wanted};
use crate::copy;
use crate::exec::{Ended, Errand, KILLED, NO_SUCH_COMMAND, NOT_RUNNABLE, Size};
use crate::limits::{CONNECT_DEADLINE, EXEC_MESSAGE_BYTES, PATH_DEFAULT};

/// How often it is tried again to end what does not end.
const KILL_AGAIN: Duration = Duration::from_millis(20);

/// The numbers of the device behind every terminal: `/dev/ptmx`.
const PTMX: (u32, u32) = (5, 2);

/// How the command of the container is held, and so the session's.
pub(super) enum Confinement {
    Isolated {
        cgroup: Cgroup,
        filter: Arc<Filter>,
        process: Box<Process>,
    },
    Plain {
        user: Option<(u32, u32)>,
    },
}

/// What a command finds.
pub(super) struct Room {
    pub(super) confinement: Confinement,
    /// `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
}

/// The ends of streams that are made inside, for the agent.
pub(super) struct Ends(pub(super) Vec<OwnedFd>);

/// What the process inside tells the session.
pub(super) enum Told {
    /// It is shut in.
    Ready(Ends),
    /// It is not.
    CannotEnter(String),
    /// The command has ended.
    Ended(Ended),
}

impl Told {
    fn send(&self, socket: &OwnedFd) {
        let (kind, bytes, fds) = match self {
            Told::Ready(Ends(ends)) => (b'R', Vec::new(), ends.iter().map(OwnedFd::as_fd).collect()),
            Told::CannotEnter(why) => (b'F', why.clone().into_bytes(), Vec::new()),
            Told::Ended(how) => (
                b'E',
                serde_json::to_vec(how).expect("plain data"),
                Vec::<BorrowedFd<'_>>::new(),
            ),
        };
        // Without a session nobody wants to know.
        let _ = sys::send(socket, &[&[kind], bytes.as_slice()].concat(), &fds);
    }

    /// The next; `None` when there is nobody who could tell any more.
    pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<Told>> {
        let mut message = vec![0; EXEC_MESSAGE_BYTES];
        let (length, fds) = sys::receive_all(socket, &mut message)?;
        let Some((kind, rest)) = message[..length].split_first() else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b'R' => Told::Ready(Ends(fds)),
            b'E' => Told::Ended(serde_json::from_slice(rest).map_err(io::Error::other)?),
            _ => Told::CannotEnter(String::from_utf8_lossy(rest).into_owned()),
        }))
    }
}

/// The three streams of a command.
pub(super) struct Streams([OwnedFd; 3]);

impl Streams {
    /// The command's ends, and the agent's. Those that are not wanted are the machine's null device: the container's own could be anything.
    pub(super) fn new(wanted: &Wanted) -> io::Result<(Streams, Vec<OwnedFd>)> {
        let null = || open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from);
        let mut ends = Vec::new();
        let connects = matches!(wanted.errand, Errand::Connect(_)) || wanted.terminal.is_some();
        let mut stream = |asked: bool, reads: bool| {
            if !asked || connects {
                return null();
            }
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            let (ours, theirs) = if reads { (read, write) } else { (write, read) };
            ends.push(theirs);
            Ok(ours)
        };
        let streams = [
            stream(wanted.stdin, true)?,
            stream(wanted.stdout, false)?,
            stream(wanted.stderr, false)?,
        ];
        Ok((Streams(streams), ends))
    }

    fn take(self) -> io::Result<()> {
        let [stdin, stdout, stderr] = self.0;
        nix::unistd::dup2_stdin(stdin)?;
        nix::unistd::dup2_stdout(stdout)?;
        Ok(nix::unistd::dup2_stderr(stderr)?)
    }
}

/// What this process does, from the moment it is made.
pub(super) fn live(room: &Room, wanted: &Wanted, container: &OwnedFd, streams: Streams, session: &OwnedFd) -> ! {
    match enter(room, wanted, container, streams) {
        Ok((streams, terminal, ends)) => begin(room, wanted, streams, terminal, ends, session),
        Err(why) => {
            Told::CannotEnter(why).send(session);
            sys::exit(NOT_RUNNABLE)
        }
    }
}

type Entered = (Streams, Option<OwnedFd>, Ends);

fn enter(room: &Room, wanted: &Wanted, container: &OwnedFd, streams: Streams) -> Result<Entered, String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    // What the server says goes to a file of the machine.
    let null = || open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    null()
        .and_then(nix::unistd::dup2_stdout)
        .and_then(|()| nix::unistd::dup2_stderr(null()?))
        .map_err(|error| format!("/dev/null: {}", error.desc()))?;
    let _ = nix::sys::prctl::set_name(c"muster-inside");
    match &room.confinement {
        Confinement::Isolated {
            cgroup,
            filter,
            process,
        } => shut_in(cgroup, filter, process, container)?,
        Confinement::Plain { user } => be_like_plain(*user).map_err(failed("giving up rights"))?,
    }
    // Changed users make a process dumpable again, and forget who it dies with.
    nix::sys::prctl::set_dumpable(false).map_err(|error| format!("not dumpable: {}", error.desc()))?;
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| format!("subreaper: {}", error.desc()))?;
    let _ = nix::unistd::setsid();
    let isolated = matches!(room.confinement, Confinement::Isolated { .. });
    match (&wanted.errand, wanted.terminal) {
        (Errand::Connect(port), _) => {
            let connection = connect(*port).map_err(|error| format!("port {port} in the container: {error}"))?;
            Ok((streams, None, Ends(vec![connection])))
        }
        (_, Some(size)) => {
            let (master, peer) = terminal(size, isolated).map_err(failed("terminal"))?;
            Ok((streams, Some(peer), Ends(vec![master])))
        }
        (_, None) => Ok((streams, None, Ends(Vec::new()))),
    }
}

/// A connection to a port of the loopback that this process sees.
fn connect(port: u16) -> io::Result<OwnedFd> {
    let to = |address: IpAddr| TcpStream::connect_timeout(&(address, port).into(), CONNECT_DEADLINE);
    let connection = to(Ipv4Addr::LOCALHOST.into()).or_else(|error| {
        // Who listens there alone is meant; of two failures the usual one is told.
        to(Ipv6Addr::LOCALHOST.into()).map_err(|_| error)
    })?;
    Ok(connection.into())
}

/// The steps of a container's first process, see module `isolated`.
fn shut_in(cgroup: &Cgroup, filter: &Filter, process: &Process, container: &OwnedFd) -> Result<(), String> {
    let failed = |what: &'static str| move |error: nix::Error| format!("{what}: {}", error.desc());
    cgroup.join().map_err(|error| format!("cgroup: {error}"))?;
    if let Some(score) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(|error| format!("oom score: {error}"))?;
    }
    let system = SyscallType::Linux.create_syscall();
    for limit in process.rlimits().iter().flatten() {
        system.set_rlimit(limit).map_err(|error| super::chain(&error))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    setns(container, namespaces).map_err(failed("namespaces"))?;
    nix::sys::prctl::set_no_new_privs().map_err(failed("no new privileges"))?;
    sys::drop_bounding_set().map_err(|error| format!("capabilities: {error}"))?;
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid));
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    nix::unistd::setgroups(&groups.collect::<Vec<_>>()).map_err(failed("groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed("user"))?;
    sys::drop_capabilities().map_err(|error| format!("capabilities: {error}"))?;
    nix::sys::stat::umask(Mode::from_bits_truncate(user.umask().unwrap_or(0o022)));
    filter.install().map_err(|error| format!("seccomp: {error}"))
}

/// What a plain command gives up, see module `plain`.
fn be_like_plain(user: Option<(u32, u32)>) -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, files.min(65_536), files)?;
    if let Some((uid, gid)) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if nix::unistd::geteuid().is_root() {
            nix::unistd::setgroups(&[])?;
        }
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    Ok(())
}

/// A terminal of the container's own, so that its other end has a name there.
fn terminal(size: Size, isolated: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let path = if isolated { "/dev/pts/ptmx" } else { "/dev/ptmx" };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let master = std::fs::File::from(open(path, flags, Mode::empty())?);
    let device = master.metadata()?.rdev();
    if (libc::major(device), libc::minor(device)) != PTMX {
        return Err(io::Error::other(format!("{path} is no terminal")));
    }
    let master = OwnedFd::from(master);
    let peer = sys::terminal_peer(&master)?;
    sys::resize(&master, size.columns, size.rows)?;
    Ok((master, peer))
}

/// Runs the command, and looks after it.
fn begin(
    room: &Room,
    wanted: &Wanted,
    streams: Streams,
    terminal: Option<OwnedFd>,
    ends: Ends,
    session: &OwnedFd,
) -> ! {
    if let Errand::Connect(_) = wanted.errand {
        Told::Ready(ends).send(session);
        Told::Ended(Ended::with(0)).send(session);
        sys::exit(0)
    }
    // Why it could not be run tells the command itself; that must not overtake the word that there is one.
    let gate = nix::unistd::pipe2(OFlag::O_CLOEXEC);
    let command = match gate.and_then(|gate| Ok((sys::fork()?, gate))) {
        Ok((ForkResult::Child, (told, tells))) => {
            drop((ends, tells));
            // Ends when the other side is closed.
            let _ = nix::unistd::read(&told, &mut [0]);
            let ended = run(room, wanted, streams, terminal);
            Told::Ended(ended).send(session);
            sys::exit(NO_SUCH_COMMAND)
        }
        Ok((ForkResult::Parent { child }, gate)) => {
            Told::Ready(ends).send(session);
            drop(gate);
            child
        }
        Err(error) => {
            Told::CannotEnter(format!("cannot make a process: {}", error.desc())).send(session);
            sys::exit(NOT_RUNNABLE)
        }
    };
    drop((streams, terminal));
    look_after(command, session)
}

/// Reaps, tells how the command ended, and ends what is left when it is told to.
fn look_after(command: Pid, session: &OwnedFd) -> ! {
    let this = nix::unistd::getpid();
    // Everything is blocked since the server began, so none is lost in between.
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let Ok(signals) = SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), flags) else {
        sys::exit(NOT_RUNNABLE)
    };
    let mut killing = false;
    loop {
        let mut fds = [session.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let again = PollTimeout::try_from(KILL_AGAIN).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, if killing { again } else { PollTimeout::NONE });
        let asked = fds[0].any().unwrap_or(false);
        while let Ok(Some(_)) = signals.read_signal() {}
        let alone = loop {
            match sys::reap() {
                Ok(Some((pid, status))) if pid == command => Told::Ended(Ended::with(code(status))).send(session),
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(error) => break error.raw_os_error() == Some(libc::ECHILD),
            }
        };
        if asked {
            let mut word = [0; 1];
            match sys::receive(session, &mut word) {
                Ok((1.., _)) if word == *HANG_UP => {
                    signal_descendants(this, libc::SIGHUP);
                    signal_descendants(this, libc::SIGCONT);
                }
                _ => killing = true,
            }
        }
        if killing {
            if alone {
                sys::exit(0)
            }
            signal_descendants(this, libc::SIGKILL);
        }
    }
}

/// An exit as shells tell it.
fn code(status: ExitStatus) -> i32 {
    let by_signal = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(by_signal).unwrap_or(KILLED)
}

/// Becomes the command. Comes back when it cannot, and after what is done without a program.
fn run(room: &Room, wanted: &Wanted, streams: Streams, terminal: Option<OwnedFd>) -> Ended {
    let not_runnable = |why: String| Ended::because(NOT_RUNNABLE, why);
    let taken = match terminal {
        Some(peer) => take_terminal(&peer),
        None => streams.take(),
    };
    if let Err(error) = taken {
        return not_runnable(format!("streams: {error}"));
    }
    sys::default_signals();
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if let Err(error) = nix::unistd::chdir(&room.cwd) {
        return not_runnable(format!("working directory {}: {}", room.cwd.display(), error.desc()));
    }
    // What is not below the root of the container has no name there.
    if !std::env::current_dir().is_ok_and(|directory| directory.is_absolute()) {
        return not_runnable(format!(
            "working directory {}: not in the container",
            room.cwd.display()
        ));
    }
    sys::close_on_exec_from(libc::STDERR_FILENO + 1);
    match &wanted.errand {
        Errand::Command(argv) => execute(argv, &room.env, wanted.terminal.is_some()),
        Errand::Pack(path) => copy::pack_to_end(path),
        Errand::Unpack(path) => {
            // It has to take away what is not whole, and sees the end of its input.
            sys::ignore_hang_up();
            copy::unpack_to_end(path)
        }
        // Connected already.
        Errand::Connect(_) => Ended::with(0),
    }
}

fn take_terminal(peer: &OwnedFd) -> io::Result<()> {
    nix::unistd::setsid()?;
    sys::control_terminal(peer)?;
    nix::unistd::dup2_stdin(peer)?;
    nix::unistd::dup2_stdout(peer)?;
    Ok(nix::unistd::dup2_stderr(peer)?)
}

/// Runs a program in this process, found as a shell would.
fn execute(argv: &[String], env: &[String], terminal: bool) -> Ended {
    let words = |words: &[String]| -> Vec<CString> {
        // One with a NUL in it was refused long before.
        words
            .iter()
            .filter_map(|word| CString::new(word.as_str()).ok())
            .collect()
    };
    let mut env = env.to_vec();
    if terminal && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let (argv_c, env_c) = (words(argv), words(&env));
    let name = argv.first().map(String::as_str).unwrap_or_default();
    let try_at = |path: &Path| {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return Errno::ENOENT;
        };
        let Err(error) = nix::unistd::execve(&path, &argv_c, &env_c);
        error
    };
    let error = if name.contains('/') {
        try_at(Path::new(name))
    } else {
        let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
        let mut found = Errno::ENOENT;
        for directory in path.unwrap_or(PATH_DEFAULT).split(':') {
            match try_at(&Path::new(OsStr::new(directory)).join(name)) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                error => {
                    found = error;
                    if error != Errno::EACCES {
                        break;
                    }
                }
            }
        }
        found
    };
    let code = match error {
        Errno::ENOENT | Errno::ENOTDIR => NO_SUCH_COMMAND,
        _ => NOT_RUNNABLE,
    };
    Ended::because(code, format!("{name}: {}", error.desc()))
}
