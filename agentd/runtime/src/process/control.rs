//! What agent and shim say to each other: over a socket in the container's directory, one line of JSON each way.
//!
//! The path of a socket is limited to 107 bytes, those of containers are not, so the agent connects through the descriptor of the
//! directory. Every call has the caller's deadline.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::directory::Directory;

/// The longest line either side takes.
pub(super) const LINE_MAX: usize = 4096;

/// What an agent asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run the command, if it was never run.
    Start,
    /// Send the signal, and kill everything after the grace.
    Stop {
        /// By number.
        signal: i32,
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Keep this connection, write a byte whenever something changed, close it at the end.
    Watch,
}

/// What a shim answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Done, or done before.
    Ok,
    /// Could not.
    Failed(String),
}

/// What a shim says once, through its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Created {
    /// The container is created.
    Ok,
    /// It cannot be created.
    Failed(String),
    /// Another shim is at it, or was.
    Taken,
}

/// Connects to the shim of a container. NotFound or ConnectionRefused: there is none.
pub(super) async fn connect(directory: &Directory) -> io::Result<UnixStream> {
    let handle = File::open(directory.path())?;
    UnixStream::connect(format!("/proc/self/fd/{}/control", handle.as_raw_fd())).await
}

/// Asks, and waits for the answer. An end without one is UnexpectedEof: the shim has ended.
pub(super) async fn ask(directory: &Directory, request: Request) -> io::Result<Reply> {
    let mut stream = connect(directory).await?;
    stream.write_all(&encode(&request)).await?;
    let mut line = Vec::new();
    stream.take(LINE_MAX as u64).read_to_end(&mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(io::Error::other)
}

/// A message as a line.
pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain data");
    line.push(b'\n');
    line
}
