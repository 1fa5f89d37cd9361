//! Entering a container that runs: one more command in it, with streams.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;
use crate::limits::EXEC_BYTES;

/// What a shell says when a command was found and cannot be run.
pub const NOT_RUNNABLE: i32 = 126;
/// What a shell says when there is no such command.
pub const NO_SUCH_COMMAND: i32 = 127;
/// What a shell says of a command that SIGKILL has ended.
pub const KILLED: i32 = 137;

/// What is to be done in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What.
    pub errand: Errand,
    /// Whether it can be written to; otherwise its standard input is empty.
    pub stdin: bool,
    /// Whether its standard output is wanted; otherwise it goes nowhere.
    pub stdout: bool,
    /// Whether its standard error is wanted. With a terminal there is none.
    pub stderr: bool,
    /// A terminal of this size, in the place of the three streams.
    pub terminal: Option<Size>,
}

impl Exec {
    /// A command whose output is wanted.
    pub fn command<W: Into<String>>(argv: impl IntoIterator<Item = W>) -> Exec {
        Exec {
            errand: Errand::Command(argv.into_iter().map(Into::into).collect()),
            stdin: false,
            stdout: true,
            stderr: true,
            terminal: None,
        }
    }

    /// What is at a path of the container, as a tar archive on standard output.
    pub fn pack(path: impl Into<PathBuf>) -> Exec {
        Exec {
            errand: Errand::Pack(path.into()),
            ..Exec::command([""])
        }
    }

    /// A tar archive from standard input, to a path of the container.
    pub fn unpack(path: impl Into<PathBuf>) -> Exec {
        Exec {
            errand: Errand::Unpack(path.into()),
            stdin: true,
            ..Exec::command([""])
        }
    }

    /// A connection to a port.
    pub fn connect(port: u16) -> Exec {
        Exec {
            errand: Errand::Connect(port),
            stdin: true,
            ..Exec::command([""])
        }
    }

    /// What every runtime refuses.
    ///
    /// # Errors
    /// [`Error::Invalid`]: no command, a word with a NUL in it, or more than [`EXEC_BYTES`] of them; a terminal for what is no command.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &str| Err(Error::Invalid(what.to_owned()));
        let words: Vec<&[u8]> = match &self.errand {
            Errand::Command(argv) if argv.first().is_none_or(String::is_empty) => {
                return invalid("there is no command");
            }
            Errand::Command(argv) => argv.iter().map(|word| word.as_bytes()).collect(),
            _ if self.terminal.is_some() => return invalid("only a command can have a terminal"),
            Errand::Pack(path) | Errand::Unpack(path) if path.as_os_str().is_empty() => {
                return invalid("there is no path");
            }
            Errand::Pack(path) | Errand::Unpack(path) => vec![path.as_os_str().as_encoded_bytes()],
            Errand::Connect(0) => return invalid("port 0 is none"),
            Errand::Connect(_) => Vec::new(),
        };
        if words.iter().any(|word| word.contains(&0)) {
            return invalid("a word contains a NUL byte");
        }
        let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
        if bytes > EXEC_BYTES {
            return invalid(&format!(
                "the command has {bytes} bytes, and may have {EXEC_BYTES}; put it into a file, and run that"
            ));
        }
        Ok(())
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Default for Size {
    /// That of terminals that do not say.
    fn default() -> Size {
        Size { columns: 80, rows: 24 }
    }
}

/// What is written to a command.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// What a command writes.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A command that runs in a container.
///
/// It goes on for as long as [`ended`](Session::ended) is kept. Who drops that hangs up: everything of the session is sent SIGHUP, and what
/// is left after [`EXEC_GRACE`](crate::limits::EXEC_GRACE) is killed. The same happens when the process that holds it ends. Once the command
/// itself has ended, what it left behind is killed at once.
pub struct Session {
    /// Its standard input, or the keyboard of its terminal. At its end, standard input ends; a terminal reads on.
    pub stdin: Option<Input>,
    /// Its standard output, or what its terminal shows; ends when nobody can write to it any more.
    pub stdout: Option<Output>,
    /// Its standard error.
    pub stderr: Option<Output>,
    /// Its terminal, if it has one.
    pub terminal: Option<Box<dyn Terminal>>,
    /// How the command ended.
    pub ended: BoxFuture<'static, Ended>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A terminal, from behind.
pub trait Terminal: Send + Sync {
    /// Tells whoever looks at it that it has another size now.
    ///
    /// # Errors
    /// [`Error::System`], when the terminal is gone.
    fn resize(&self, size: Size) -> Result<(), Error>;
}

/// How a command of a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit code, as shells have it: 128 and the signal when one ended it, [`NO_SUCH_COMMAND`] and [`NOT_RUNNABLE`].
    pub code: i32,
    /// Why it could not be run, or was ended from outside.
    pub why: Option<String>,
}

impl Ended {
    /// By itself.
    pub fn with(code: i32) -> Ended {
        Ended { code, why: None }
    }

    /// Not by itself.
    pub fn because(code: i32, why: impl Into<String>) -> Ended {
        Ended {
            code,
            why: Some(why.into()),
        }
    }
}

/// How long whoever enters a container may take: a process is made, which shuts itself in.
pub(crate) const ENTER_DEADLINE: Duration = crate::limits::CALL_DEADLINE;

/// What a process does that has entered a container, with all that the container's command may do and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    /// Runs a command. The first word is looked up in the container's `PATH`.
    Command(Vec<String>),
    /// Writes what is at a path to standard output, as a tar archive: see [`crate::copy`].
    Pack(PathBuf),
    /// Reads a tar archive from standard input, and puts what is in it to a path.
    Unpack(PathBuf),
    /// Connects to a port of the container's own loopback: standard input is what is sent, standard output what is received.
    Connect(u16),
}
