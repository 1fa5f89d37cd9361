//! The first process of an isolated container.
//!
//! The kernel ignores signals without a handler for the first process of a pid namespace, and gives it the orphans to reap. Commands know
//! nothing of this: `sleep` as first process cannot be terminated. So the first process is this one, which runs the command as its
//! child, passes signals on, reaps, and tells the shim through a pipe how the command really ended; when it exits, the kernel kills
//! whatever else is left.
//!
//! What must never happen here: an open descriptor of the machine kept (a command could reach it through `/proc/1/fd`), or a second
//! thread. It runs behind the seccomp profile, without capabilities, and not dumpable: the command cannot look into it.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::libc;
use nix::unistd::{ForkResult, Pid};
use oci_spec::runtime::Spec;

use super::filter::Filter;
use super::{sys, variables};
use crate::spec::VARIABLES;

/// Exit code of a shell that could not run a command.
const CANNOT_RUN: i32 = 127;

/// What the init process tells the shim, once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The command ended so.
    Ended(ExitStatus),
    /// The command could not be run.
    CannotRun(String),
}

impl Verdict {
    fn encode(&self) -> Vec<u8> {
        use std::os::unix::process::ExitStatusExt as _;
        match self {
            Verdict::Ended(status) => [b"S".as_slice(), &status.into_raw().to_le_bytes()].concat(),
            Verdict::CannotRun(reason) => [b"E", reason.as_bytes()].concat(),
        }
    }

    /// What the bytes in the pipe say; `None` when the init process was killed before it could say anything.
    pub(super) fn decode(bytes: &[u8]) -> Option<Verdict> {
        use std::os::unix::process::ExitStatusExt as _;
        match bytes.split_first()? {
            (b'S', rest) => Some(Verdict::Ended(ExitStatus::from_raw(i32::from_le_bytes(
                rest.get(..4)?.try_into().ok()?,
            )))),
            (b'E', rest) => Some(Verdict::CannotRun(String::from_utf8_lossy(rest).into_owned())),
            _ => None,
        }
    }
}

/// Runs the command of a container under an init process.
#[derive(Clone)]
pub(super) struct Init {
    /// Where to tell how the command ended.
    pub(super) verdict: Arc<OwnedFd>,
    /// What it may ask of the kernel, and with it everything in the container.
    pub(super) filter: Arc<Filter>,
    /// Where the command starts.
    pub(super) cwd: PathBuf,
    /// Whether there is a file of variables.
    pub(super) variables: bool,
}

impl Executor for Init {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_deref())
            .unwrap_or_default();
        let argv: Result<Vec<CString>, _> = args.iter().map(|word| CString::new(word.as_str())).collect();
        let argv = argv.map_err(|_| ExecutorError::InvalidArg)?;
        if let Err(error) = nix::unistd::chdir(&self.cwd) {
            self.give_up(&format!("working directory {}: {}", self.cwd.display(), error.desc()));
        }
        // A failure leaves it as the runtime has set it already.
        let _ = nix::sys::prctl::set_dumpable(false);
        match sys::fork() {
            Err(error) => self.give_up(&format!("cannot make a process: {}", error.desc())),
            Ok(ForkResult::Child) => {
                sys::default_signals();
                if self.variables {
                    self.take_variables();
                }
                let Err(error) = nix::unistd::execvp(&argv[0], &argv);
                self.give_up(&format!("{}: {}", args[0], error.desc()))
            }
            Ok(ForkResult::Parent { child }) => self.look_after(child),
        }
    }

    /// The last step before the container waits to be started, where libcontainer would install a filter of its own. Says nothing about the
    /// command: one that cannot be run is an exit of the container, not a failed creation.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let failed = |error| ExecutorValidationError::ArgValidationError(format!("seccomp: {error}"));
        self.filter.install().map_err(failed)
    }
}

impl Init {
    fn tell(&self, verdict: &Verdict) {
        // Shorter than a pipe is atomic, so this is all or nothing; with nobody to read it, nothing can be done.
        let _ = nix::unistd::write(self.verdict.as_fd(), &verdict.encode());
    }

    /// Only the process that becomes the command has them.
    fn take_variables(&self) {
        match variables::read(Path::new(VARIABLES)) {
            Ok(more) => more.iter().for_each(|(name, value)| sys::set_variable(name, value)),
            Err(error) => self.give_up(&format!("its variables: {error}")),
        }
    }

    fn give_up(&self, reason: &str) -> ! {
        self.tell(&Verdict::CannotRun(reason.to_owned()));
        sys::exit(CANNOT_RUN)
    }

    fn look_after(&self, command: Pid) -> ! {
        let _ = nix::sys::prctl::set_name(c"muster-init");
        close_all_but(self.verdict.as_raw_fd());
        loop {
            match sys::wait_for_signal() {
                libc::SIGCHLD => {
                    while let Ok(Some((pid, status))) = sys::reap() {
                        if pid == command {
                            self.tell(&Verdict::Ended(status));
                            sys::exit(status.code().unwrap_or(CANNOT_RUN));
                        }
                    }
                }
                // The command may have ended already; then its SIGCHLD is next.
                signal => drop(sys::kill(command, signal)),
            }
        }
    }
}

fn close_all_but(kept: RawFd) {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .collect()
        })
        .unwrap_or_default();
    for fd in open.into_iter().filter(|fd| *fd != kept) {
        // The directory's own descriptor is closed already.
        let _ = nix::unistd::close(fd);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn verdict_survives_the_pipe() {
        for verdict in [
            Verdict::Ended(ExitStatus::from_raw(3 << 8)),
            Verdict::Ended(ExitStatus::from_raw(libc::SIGRTMIN())),
            Verdict::CannotRun("nope: No such file or directory".to_owned()),
        ] {
            assert_eq!(Verdict::decode(&verdict.encode()), Some(verdict));
        }
        assert_eq!(Verdict::decode(b""), None);
        assert_eq!(Verdict::decode(b"S\0"), None);
    }
}
