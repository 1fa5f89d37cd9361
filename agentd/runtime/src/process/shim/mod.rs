//! The shim: the process that stands between an agent and one container, so that agents may die.
//!
//! It is this executable again, with one thread and no async runtime (making a container forks, which threads make unsafe), forked from the
//! agent's server of shims (module `server`) or, for a container of containerd, run by that (module `contained`). It creates the container, waits to be told to run the command, copies its output to the log, kills it when a grace is over, and when everything in it
//! has ended, writes down how. It promises: the exit is written after the last process is gone, and only then; the command is run at
//! most once; a container whose output nobody reads never blocks.
//!
//! What must never happen here: a decision. Policy is the agent's. Nor a dependence on the agent: after it has said that the container
//! was created, the shim never needs it again.
//!
//! Tested through [`super::ProcessRuntime`], with the shim and the agent killed at will.

mod contained;
mod deadman;
mod family;
mod inside;
mod isolated;
mod outputs;
mod peers;
mod plain;
mod server;
mod session;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::control::{self, Created, Reply, Request};
use super::directory::{Directory, Held, Locked, Plan, Status};
use super::init::Verdict;
use super::{clock, sys};
use crate::{Exit, FENCED};
use deadman::Deadman;
use outputs::Outputs;
use peers::Peers;
use server::{Born, Common};

pub(super) use deadman::{Watched, vouch};
pub(super) use session::{Answer, Wanted};

/// How often it is tried again to end what does not end: a process that a driver holds in the kernel.
const KILL_AGAIN: Duration = Duration::from_millis(20);

/// How long the beginning of a line may wait for its end before it is shown without.
const LINE_PATIENCE: Duration = Duration::from_millis(100);

/// A command that is held in some way.
trait Workload {
    /// The first process; `None` while there is none.
    fn pid(&self) -> Option<Pid>;
    /// Runs the command. Called once.
    fn start(&mut self) -> Result<(), String>;
    /// Sends the first process a signal, which passes it on to the command when it is not the command itself.
    fn signal(&mut self, signal: i32) -> io::Result<()> {
        self.pid().map_or(Ok(()), |pid| sys::kill(pid, signal))
    }
    /// Kills everything, once.
    fn kill(&self);
    /// Whether no process is left. Called after the first process has ended.
    fn is_empty(&self) -> bool;
    /// How the command ended, given how the first process did. For those whose first process is the shim's child.
    fn verdict(&mut self, status: ExitStatus) -> Verdict;
    /// Readable when [`ended`](Workload::ended) may have something to say. For those whose first process is not the shim's child.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// How the command ended, once, when it has.
    fn ended(&mut self) -> Option<Verdict> {
        None
    }
    /// Whether something was killed because memory was full.
    fn oom_killed(&self) -> bool;
    /// Gives back what is left on the machine.
    fn clean(&mut self);
}

/// What a workload prints through.
struct Pipes {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// The main function of shims, and of the server that they are forked from. For a hidden subcommand of the executable that an agent names in
/// [`super::ShimCommand`], with the arguments after it; to be called before any thread is made.
///
/// Without an argument this is the server, and an agent is at the other end of standard input. With one, the directory of a container, it
/// is the shim of that container, run by containerd as its logger.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let ended = match args.into_iter().next() {
        Some(directory) => server::alone(directory.into()).and_then(|directory| run(directory, None)),
        None => server::serve().and_then(|born| match born {
            Some((Born::Shim(directory), common)) => run(directory, Some(&common)),
            Some((Born::Session(agent), common)) => session::serve(&agent, &common),
            None => Ok(()),
        }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: Directory, common: Option<&Common>) -> io::Result<()> {
    let lock = directory.lock()?;
    let (Some(lock), None, None) = (lock, directory.exit()?, directory.status()?) else {
        say(io::stdout(), &Created::Taken);
        return Ok(());
    };
    let plan = directory.plan()?.ok_or_else(|| io::Error::other("there is no plan"))?;
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"muster-shim")?;
    match Shim::create(directory, &plan, common, lock) {
        Ok(shim) => {
            say(io::stdout(), &Created::Ok);
            // The pipe to the agent: its end says that there is nobody any more who could say anything.
            nix::unistd::dup2_stdout(fs::File::options().write(true).open("/dev/null")?)?;
            shim.serve()
        }
        Err(message) => {
            eprintln!("{message}");
            say(io::stdout(), &Created::Failed(message));
            Ok(())
        }
    }
}

fn say(agent: impl AsFd, message: &Created) {
    // An agent that has gone away will list.
    let _ = nix::unistd::write(agent, &control::encode(message));
}

/// An error with all its causes: those of libraries say little at the top.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// How far the container is.
enum Phase {
    Created,
    Running {
        started_ms: i64,
    },
    /// The first process has ended; others may not have.
    Ended {
        started_ms: Option<i64>,
        verdict: Verdict,
        at_ms: i64,
    },
}

struct Shim {
    directory: Directory,
    workload: Box<dyn Workload>,
    outputs: Outputs,
    peers: Peers,
    signals: SignalFd,
    phase: Phase,
    /// When everything is killed, by the boot-time clock.
    kill_at: Option<Duration>,
    deadman: Option<Deadman>,
    /// Whether the deadman stopped what had not ended by itself.
    fenced: bool,
    /// Held as long as this process lives.
    _lock: Locked,
}

impl Shim {
    fn create(directory: Directory, plan: &Plan, common: Option<&Common>, lock: Locked) -> Result<Shim, String> {
        let text = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        if let Held::Contained { .. } = plan.isolation {
            contained::Contained::keep_errors(&directory)?;
        }
        let deadman = plan.watched.as_ref().map(Deadman::begin).transpose()?;
        let held = &plan.isolation;
        let (workload, (stdout, stderr)): (Box<dyn Workload>, _) = match held {
            Held::Contained { .. } => {
                let (contained, outputs) = contained::Contained::create(&directory, held)?;
                (Box::new(contained), outputs)
            }
            Held::Isolated { .. } => {
                let common = common.ok_or("a container that is made here needs a server of shims")?;
                let (pipes, outputs) = pipes().map_err(text("pipes"))?;
                (
                    Box::new(isolated::Isolated::create(common, &directory, held, pipes)?),
                    outputs,
                )
            }
            Held::Plain { .. } => {
                let (pipes, outputs) = pipes().map_err(text("pipes"))?;
                (Box::new(plain::Plain::create(held, pipes)?), outputs)
            }
        };
        let outputs = Outputs::begin(directory.path(), plan.log_bytes, stdout, stderr).map_err(text("log"))?;
        let signals = SignalFd::with_flags(
            &SigSet::from(Signal::SIGCHLD),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        );
        let peers = Peers::listen(directory.path()).map_err(text("control socket"))?;
        let shim = Shim {
            signals: signals.map_err(|error| format!("signals: {error}"))?,
            directory,
            workload,
            outputs,
            peers,
            phase: Phase::Created,
            kill_at: None,
            deadman,
            fenced: false,
            _lock: lock,
        };
        shim.write_status(None).map_err(text("status"))?;
        Ok(shim)
    }

    fn write_status(&self, started_ms: Option<i64>) -> io::Result<()> {
        let pid = self.workload.pid().unwrap_or_else(nix::unistd::getpid);
        self.directory.write(
            "status",
            &Status {
                pid: pid.as_raw().unsigned_abs(),
                started_ms,
            },
        )
    }

    fn serve(mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.outputs.copy(clock::wall_ms());
            for (peer, request) in self.peers.requests() {
                let reply = self.answer(request);
                self.peers.reply(peer, request, &reply);
            }
            self.reap();
            self.enforce();
            if self.has_ended() {
                return self.finish();
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.signals.as_fd()];
        fds.extend(self.outputs.fds());
        fds.extend(self.peers.fds());
        fds.extend(self.workload.fd());
        fds.extend(self.deadman.iter().filter_map(Deadman::fd));
        let mut fds: Vec<PollFd<'_>> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let patience = self.outputs.is_pending().then_some(LINE_PATIENCE);
        let grace = self
            .kill_at
            .map(|at| at.saturating_sub(clock::boottime()) + Duration::from_millis(1));
        let again = matches!(self.phase, Phase::Ended { .. }).then_some(KILL_AGAIN);
        let timeout = [patience, grace, again].into_iter().flatten().min();
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Err(error) if error != nix::Error::EINTR => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Start => self.start(),
            Request::Stop { signal, grace_ms } => self.stop(signal, Duration::from_millis(grace_ms)),
            Request::Watch => Reply::Ok,
        }
    }

    fn start(&mut self) -> Reply {
        let Phase::Created = self.phase else { return Reply::Ok };
        let started_ms = clock::wall_ms();
        // First the intent: were it written after, a crash in between would leave a command that ran and seems not to have.
        if let Err(error) = self.write_status(Some(started_ms)) {
            return Reply::Failed(format!("status: {error}"));
        }
        let before = self.workload.pid();
        match self.workload.start() {
            Ok(()) => {
                self.phase = Phase::Running { started_ms };
                // The first process of a plain command is known only now.
                if self.workload.pid() != before {
                    let _ = self.write_status(Some(started_ms));
                }
            }
            Err(reason) => {
                self.workload.kill();
                self.phase = Phase::Ended {
                    started_ms: None,
                    verdict: Verdict::CannotRun(reason),
                    at_ms: clock::wall_ms(),
                };
            }
        }
        self.peers.announce();
        Reply::Ok
    }

    fn stop(&mut self, signal: i32, grace: Duration) -> Reply {
        match self.phase {
            Phase::Created => {
                self.workload.kill();
                let verdict = Verdict::CannotRun("stopped before it was started".to_owned());
                self.phase = Phase::Ended {
                    started_ms: None,
                    verdict,
                    at_ms: clock::wall_ms(),
                };
            }
            Phase::Running { .. } => {
                let kill_at = clock::boottime() + grace;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
                if let Err(error) = self.workload.signal(signal) {
                    return Reply::Failed(format!("signal {signal}: {error}"));
                }
            }
            Phase::Ended { .. } => {}
        }
        Reply::Ok
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(Some((pid, status))) = sys::reap() {
            if self.workload.pid() == Some(pid) {
                self.first_ended(Ok(status));
            }
        }
        if let Some(verdict) = self.workload.ended() {
            self.first_ended(Err(verdict));
        }
    }

    /// The first process has ended so, or the workload says how the command did.
    fn first_ended(&mut self, how: Result<ExitStatus, Verdict>) {
        let (started_ms, verdict) = match (&self.phase, how) {
            (Phase::Running { started_ms }, how) => {
                let verdict = how.map_or_else(|told| told, |status| self.workload.verdict(status));
                (matches!(verdict, Verdict::Ended(_)).then_some(*started_ms), verdict)
            }
            (Phase::Created, how) => {
                let status = how.map_or_else(|_| String::new(), |status| format!(": {status}"));
                (None, Verdict::CannotRun(format!("ended before it was started{status}")))
            }
            // It was stopped before it ran: what it did then means nothing.
            (Phase::Ended { .. }, _) => return,
        };
        self.phase = Phase::Ended {
            started_ms,
            verdict,
            at_ms: clock::wall_ms(),
        };
    }

    /// Kills what has to be gone by now.
    fn enforce(&mut self) {
        if let Some(fence) = self.deadman.as_mut().and_then(Deadman::acts)
            && !matches!(self.phase, Phase::Ended { .. })
        {
            self.fenced = true;
            if let Reply::Failed(error) = self.stop(fence.signal, fence.grace) {
                eprintln!("fence: {error}");
            }
        }
        let over = self.kill_at.is_some_and(|at| at <= clock::boottime());
        if over {
            self.kill_at = None;
        }
        if over || matches!(self.phase, Phase::Ended { .. }) {
            self.workload.kill();
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. }) && self.workload.is_empty()
    }

    /// Everything is gone: writes down how, and cleans up.
    fn finish(mut self) -> io::Result<()> {
        let Phase::Ended {
            started_ms,
            verdict,
            at_ms,
        } = &self.phase
        else {
            return Ok(());
        };
        self.outputs.finish(clock::wall_ms());
        let (code, signal, error) = match verdict {
            Verdict::Ended(status) => {
                use std::os::unix::process::ExitStatusExt as _;
                (status.code(), status.signal(), None)
            }
            Verdict::CannotRun(reason) => (None, None, Some(reason.clone())),
        };
        let oom_killed = self.workload.oom_killed();
        let fenced = self.fenced.then(|| FENCED.to_owned());
        let error = fenced.or(error);
        let exit = Exit {
            code,
            signal,
            oom_killed,
            started_ms: *started_ms,
            finished_ms: *at_ms,
            error,
        };
        // With a full disk this can fail. It is what the shim is for, so it stays until it can; unless there is nowhere to write to any more.
        while let Err(error) = self.directory.write("exit", &exit) {
            eprintln!("exit: {error}");
            if !self.directory.path().exists() {
                break;
            }
            poll(&mut [], PollTimeout::from(1000_u16))?;
        }
        self.peers.announce();
        self.workload.clean();
        let _ = fs::remove_file(self.directory.join("control"));
        Ok(())
    }
}

/// The reading ends, which never block, and the writing ends.
fn pipes() -> io::Result<(Pipes, (OwnedFd, OwnedFd))> {
    let (out_read, stdout) = pipe()?;
    let (err_read, stderr) = pipe()?;
    Ok((Pipes { stdout, stderr }, (out_read, err_read)))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}
