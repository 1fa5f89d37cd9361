//! Agents that talk to a shim. More than one at a time only while an old agent ends and a new one begins.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::super::control::{self, LINE_MAX, Reply, Request};

/// The most connections at once: two agents, each with a watch and some calls that it gave up. The oldest is closed for a newer one.
const PEERS_MAX: usize = 16;

pub(super) struct Peers {
    listener: UnixListener,
    peers: Vec<Peer>,
}

struct Peer {
    stream: UnixStream,
    line: Vec<u8>,
    watches: bool,
}

/// What became of a read.
enum Heard {
    Nothing,
    Request(Request),
    Gone,
}

impl Peers {
    /// Listens in the directory.
    pub(super) fn listen(directory: &Path) -> io::Result<Peers> {
        let listener = listen(directory, "control")?;
        listener.set_nonblocking(true)?;
        Ok(Peers {
            listener,
            peers: Vec::new(),
        })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.peers.iter().map(|peer| peer.stream.as_fd()))
    }

    /// What was asked since the last call, with the number of who asks.
    pub(super) fn requests(&mut self) -> Vec<(usize, Request)> {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                if self.peers.len() == PEERS_MAX {
                    self.peers.remove(0);
                }
                self.peers.push(Peer {
                    stream,
                    line: Vec::new(),
                    watches: false,
                });
            }
        }
        let mut heard: Vec<Heard> = self.peers.iter_mut().map(Peer::hear).collect();
        let mut kept = heard
            .iter()
            .map(|heard| !matches!(heard, Heard::Gone))
            .collect::<Vec<_>>()
            .into_iter();
        self.peers.retain(|_| kept.next().unwrap_or(true));
        heard.retain(|heard| !matches!(heard, Heard::Gone));
        let requests = heard.into_iter().enumerate();
        requests
            .filter_map(|(at, heard)| {
                if let Heard::Request(request) = heard {
                    Some((at, request))
                } else {
                    None
                }
            })
            .collect()
    }

    /// Answers; only who watches stays connected.
    pub(super) fn reply(&mut self, at: usize, request: Request, reply: &Reply) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        if request == Request::Watch {
            peer.watches = true;
            return;
        }
        // The peer may have given up waiting; it will list.
        let _ = peer.stream.write_all(&control::encode(reply));
        let _ = peer.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Tells who watches that something changed.
    pub(super) fn announce(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| peer.watches) {
            // Who does not read has enough unread announcements.
            let _ = peer.stream.write(b"\n");
        }
    }
}

/// Listens in a directory. Its path may be longer than a socket's may be, so this works from inside of it.
pub(super) fn listen(directory: &Path, name: &str) -> io::Result<UnixListener> {
    let before = std::env::current_dir()?;
    std::env::set_current_dir(directory)?;
    let listener = UnixListener::bind(name);
    std::env::set_current_dir(before)?;
    listener
}

impl Peer {
    fn hear(&mut self) -> Heard {
        let mut block = [0; 512];
        match self.stream.read(&mut block) {
            Ok(0) => Heard::Gone,
            Ok(read) => {
                self.line.extend_from_slice(&block[..read]);
                match self.line.strip_suffix(b"\n").map(serde_json::from_slice) {
                    Some(Ok(request)) => {
                        self.line.clear();
                        Heard::Request(request)
                    }
                    Some(Err(_)) => Heard::Gone,
                    None if self.line.len() > LINE_MAX => Heard::Gone,
                    None => Heard::Nothing,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(_) => Heard::Gone,
        }
    }
}
