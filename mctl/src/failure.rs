//! How the command ends: exit codes, and failures in words.

use std::fmt;
use std::process::ExitCode;

use muster_apiserver::etcd_args::EtcdArgsError;

use crate::manifest::Report;

/// How the command ended, for scripts. The numbers are documented and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: what was asked for is done.
    Done,
    /// 1: something is wrong; nothing is half-done.
    Error,
    /// 2: there are differences.
    Differences,
    /// 3: the task cannot be placed now.
    CannotPlace,
    /// 4: it did not happen in the time given.
    TimedOut,
    /// 5: the task failed.
    TaskFailed,
    /// The exit code of the task that was run.
    OfTask(u8),
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Error => 1,
            Exit::Differences => 2,
            Exit::CannotPlace => 3,
            Exit::TimedOut => 4,
            Exit::TaskFailed => 5,
            Exit::OfTask(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why the command ends early.
#[derive(Debug)]
pub enum Failure {
    /// A sentence, with what to do.
    Message {
        /// How to end.
        exit: Exit,
        /// The sentence.
        text: String,
    },
    /// Mistakes in manifests.
    Report(Box<Report>),
    /// Whoever reads the output has gone; there is nobody to tell.
    BrokenPipe,
}

/// What a command gives back.
pub type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// An ordinary failure.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure::with(Exit::Error, text)
    }

    /// A failure with an exit code of its own.
    pub fn with(exit: Exit, text: impl Into<String>) -> Failure {
        Failure::Message {
            exit,
            text: text.into(),
        }
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Message { exit, .. } => *exit,
            Failure::Report(_) => Exit::Error,
            Failure::BrokenPipe => Exit::Done,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Message { text, .. } => f.write_str(text),
            Failure::Report(report) => report.fmt(f),
            Failure::BrokenPipe => f.write_str("the reader of the output has gone"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::new(error.to_string()),
        }
    }
}

impl From<EtcdArgsError> for Failure {
    fn from(error: EtcdArgsError) -> Failure {
        Failure::new(error.to_string())
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Failure {
        Failure::Report(Box::new(report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_are_documented() {
        let all = [
            Exit::Done,
            Exit::Error,
            Exit::Differences,
            Exit::CannotPlace,
            Exit::TimedOut,
            Exit::TaskFailed,
            Exit::OfTask(42),
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 5, 42]);
        assert_eq!(Failure::new("x").exit(), Exit::Error);
        assert_eq!(
            Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).exit(),
            Exit::Done
        );
    }
}
