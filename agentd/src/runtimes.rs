//! What runs the tasks of an agent: chosen by whoever starts it, or found on the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use muster_runtime::containerd::{self, SOCKET_DEFAULT};
use muster_runtime::{ContainerdRuntime, Error, ProcessRuntime, Runtime, process};

/// How long a containerd may take to answer before it counts as none: it is idle, or nobody would choose it.
const FIND_PATIENCE: Duration = Duration::from_secs(1);

/// Which runtime: `auto`, `process`, `containerd` or `containerd=SOCKET`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// containerd, when one answers where it usually listens; else as processes.
    #[default]
    Auto,
    /// As isolated processes of this machine.
    Process,
    /// In containers of the containerd that listens there.
    Containerd(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text.split_once('=') {
            None if text == "auto" => Ok(Choice::Auto),
            None if text == "process" => Ok(Choice::Process),
            None if text == "containerd" => Ok(Choice::Containerd(SOCKET_DEFAULT.into())),
            Some(("containerd", socket)) if socket.starts_with('/') => Ok(Choice::Containerd(socket.into())),
            _ => Err("write auto, process, containerd or containerd=/path/of/its/socket".to_owned()),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Process => f.write_str("process"),
            Choice::Containerd(socket) => write!(f, "containerd={}", socket.display()),
        }
    }
}

impl Choice {
    /// The socket of the containerd to use; `None`: none.
    pub async fn socket(&self) -> Option<PathBuf> {
        match self {
            Choice::Process => None,
            Choice::Containerd(socket) => Some(socket.clone()),
            Choice::Auto => {
                let socket = PathBuf::from(SOCKET_DEFAULT);
                let found = nix::unistd::geteuid().is_root() && socket.exists();
                (found && containerd::answers(&socket, FIND_PATIENCE).await.is_some()).then_some(socket)
            }
        }
    }
}

/// A runtime that was opened.
pub struct Opened {
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Its name and version, as the Agent shows them.
    pub version: String,
    close: Box<dyn FnOnce() + Send>,
}

impl Opened {
    /// A runtime that needs no closing.
    pub fn new(runtime: Arc<dyn Runtime>, version: String) -> Opened {
        Opened {
            runtime,
            version,
            close: Box::new(|| {}),
        }
    }

    /// Opens the one that is chosen. Containers that another one has made in the same state directory go on and are found.
    ///
    /// # Errors
    /// When it cannot be used here.
    pub async fn open(choice: &Choice, base: process::Config) -> Result<Opened, Error> {
        let Some(socket) = choice.socket().await else {
            let runtime = Arc::new(ProcessRuntime::new(base)?);
            let closed = Arc::clone(&runtime);
            return Ok(Opened {
                runtime,
                version: format!("process/{}", env!("CARGO_PKG_VERSION")),
                close: Box::new(move || closed.close()),
            });
        };
        let runtime = Arc::new(ContainerdRuntime::open(containerd::Config::new(base, socket)).await?);
        let closed = Arc::clone(&runtime);
        Ok(Opened {
            version: format!("containerd/{}", runtime.version().unwrap_or("unknown")),
            runtime,
            close: Box::new(move || closed.close()),
        })
    }

    /// What closes it when the agent has ended: gives back what it keeps on the machine while it has no container.
    pub fn split(self) -> (Arc<dyn Runtime>, impl FnOnce() + Send) {
        (self.runtime, self.close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "process", "containerd=/run/other.sock"] {
            assert_eq!(text.parse::<Choice>().expect("a choice").to_string(), text);
        }
        assert_eq!("containerd".parse(), Ok(Choice::Containerd(SOCKET_DEFAULT.into())));
        for text in ["", "docker", "containerd=", "containerd=x.sock", "process=/x"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }
}
