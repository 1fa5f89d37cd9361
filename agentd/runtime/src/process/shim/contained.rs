//! A command in a container that containerd has made.
//!
//! This shim is then what containerd calls a logger: its own shim starts it with the reading ends of the container's output, and waits until
//! it says that it is ready. It outlives the agent, containerd and containerd's shim. The first process of the container is ours
//! (`init/main.rs`), and the first that connects to a socket in its root: so the command is run, stopped and looked after from here, as in
//! the other ways of holding one, and containerd is not needed for it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::super::cgroup::{Cgroup, Hierarchies};
use super::super::directory::{Directory, Held, INIT, INIT_SOCKET};
use super::super::init::Verdict;
use super::super::sys;
use super::{Workload, peers};
use crate::limits::CREATE_DEADLINE;

/// Standard output and error of the container, and what is closed to say that all is ready: so containerd's shim hands them over.
const INHERITED: [i32; 3] = [3, 4, 5];

/// What the first process is told to run the command.
const GO: u8 = 0;

/// The longest message of the first process; it sends two at most.
const MESSAGE_MAX: usize = 5;

pub(super) struct Contained {
    init: UnixStream,
    pid: Pid,
    cgroup: Cgroup,
    command: String,
    cwd: PathBuf,
    told: Vec<u8>,
    over: bool,
}

impl Contained {
    /// Has what this process prints be found by whoever looks for the reason of a failure: containerd gives it no place.
    pub(super) fn keep_errors(directory: &Directory) -> Result<(), String> {
        let errors = File::options()
            .append(true)
            .create(true)
            .open(directory.join("shim.log"));
        let errors = errors.map_err(|error| format!("shim.log: {error}"))?;
        nix::unistd::dup2_stderr(errors).map_err(|error| format!("shim.log: {error}"))
    }

    /// Waits for the first process; gives the container's output besides.
    pub(super) fn create(directory: &Directory, held: &Held) -> Result<(Contained, (OwnedFd, OwnedFd)), String> {
        let Held::Contained { cgroup, command, cwd } = held else {
            return Err("not a plan for containerd".to_owned());
        };
        let text = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        let [stdout, stderr, ready] =
            sys::inherited(INHERITED).map_err(text("started by something else than containerd"))?;
        for output in [&stdout, &stderr] {
            fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| format!("output: {error}"))?;
        }
        let place = directory.join(INIT);
        let listener = peers::listen(&place, INIT_SOCKET).map_err(text("socket"))?;
        // Whoever the command runs as, so does the first process.
        let socket = place.join(INIT_SOCKET);
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).map_err(text("socket"))?;
        drop(ready);
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            // Its end is that of containerd's shim.
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        let patience = PollTimeout::try_from(CREATE_DEADLINE).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, patience).map_err(|error| format!("waiting for the container: {error}"))?;
        if !fds[0].any().unwrap_or(false) {
            return Err("the container was not made".to_owned());
        }
        let (init, _) = listener.accept().map_err(text("socket"))?;
        // Nobody else is let in: the command comes after this.
        drop(listener);
        fs::remove_file(&socket).map_err(text("socket"))?;
        init.set_nonblocking(true).map_err(text("socket"))?;
        let peer = getsockopt(&init, sockopt::PeerCredentials).map_err(|error| format!("socket: {error}"))?;
        let hierarchies = Hierarchies::detect().map_err(text("cgroups"))?;
        let cgroup = Cgroup::new(hierarchies, cgroup);
        cgroup.close_devices_of_runc().map_err(text("devices cgroup"))?;
        let contained = Contained {
            init,
            pid: Pid::from_raw(peer.pid()),
            cgroup,
            command: command.clone(),
            cwd: cwd.clone(),
            told: Vec::new(),
            over: false,
        };
        Ok((contained, (stdout, stderr)))
    }

    fn decode(&self) -> Verdict {
        let number = self.told.get(1..5).and_then(|bytes| bytes.try_into().ok());
        let number = number.map_or(0, i32::from_le_bytes);
        let error = || Errno::from_raw(number).desc();
        match self.told.first() {
            Some(b'S') => Verdict::Ended(ExitStatus::from_raw(number)),
            Some(b'D') => Verdict::CannotRun(format!("working directory {}: {}", self.cwd.display(), error())),
            Some(b'F') => Verdict::CannotRun(format!("cannot make a process: {}", error())),
            Some(b'V') => Verdict::CannotRun(format!("its variables: {}", error())),
            Some(b'X') => Verdict::CannotRun(format!("{}: {}", self.command, error())),
            // Nothing but this signal ends it before it has said anything.
            _ => Verdict::Ended(ExitStatus::from_raw(libc::SIGKILL)),
        }
    }
}

impl Workload for Contained {
    fn pid(&self) -> Option<Pid> {
        Some(self.pid)
    }

    fn start(&mut self) -> Result<(), String> {
        let told = self.init.write_all(&[GO]);
        told.map_err(|error| format!("the first process of the container is gone: {error}"))
    }

    fn signal(&mut self, signal: i32) -> io::Result<()> {
        let signal = u8::try_from(signal).ok().filter(|signal| *signal != GO);
        let signal = signal.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match self.init.write_all(&[signal]) {
            // It has ended, which is what comes of most signals.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn kill(&self) {
        // Not a failure to stop at: whoever asked asks again until nothing is left.
        if let Err(error) = self.cgroup.kill() {
            eprintln!("kill: {error}");
        }
    }

    fn is_empty(&self) -> bool {
        self.cgroup.processes().is_ok_and(|processes| processes.is_empty())
    }

    fn verdict(&mut self, _: ExitStatus) -> Verdict {
        self.decode()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.over).then(|| self.init.as_fd())
    }

    fn ended(&mut self) -> Option<Verdict> {
        if self.over {
            return None;
        }
        let mut block = [0; 2 * MESSAGE_MAX];
        loop {
            match self.init.read(&mut block) {
                // The first process has ended, and with it, by the kernel, everything in the container.
                Ok(0) => break,
                Ok(read) => self.told.extend_from_slice(&block[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.over = true;
        Some(self.decode())
    }

    fn oom_killed(&self) -> bool {
        self.cgroup.oom_kills() > 0
    }

    /// Nothing: the container is containerd's to remove, which the agent has it do.
    fn clean(&mut self) {}
}
