//! The agent's side of shims being made: asks the server of shims ([`super::shim`]) for one, and runs another server when there is none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::config::ShimCommand;
use super::shared::lock;
use super::sys;

/// The message that asks for a session: no path is this.
pub(super) const SESSION: &[u8] = b"\0session";

/// Where shims come from.
pub(super) struct Shims {
    command: ShimCommand,
    log: PathBuf,
    server: Mutex<Option<Arc<Server>>>,
}

/// A server that was run.
pub(super) struct Server {
    socket: OwnedFd,
    ended: watch::Receiver<bool>,
}

/// A shim that was asked for.
pub(super) struct Asked {
    /// Where it says what became of the container; at its end nobody will ever say anything.
    pub(super) said: pipe::Receiver,
    /// Who was asked.
    pub(super) server: Arc<Server>,
}

impl Shims {
    /// `log`: where a server says why it ended.
    pub(super) fn new(command: ShimCommand, log: PathBuf) -> Shims {
        Shims {
            command,
            log,
            server: Mutex::default(),
        }
    }

    /// Runs a server, so that the first container need not wait for it.
    pub(super) fn begin(&self) -> io::Result<()> {
        File::create(&self.log)?;
        self.server(None).map(drop)
    }

    /// What servers have said since [`Shims::begin`]: why they ended.
    pub(super) fn errors(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks for a shim for the container in a directory. `None`: no server lives long enough to be asked.
    pub(super) fn ask(&self, directory: &Path) -> io::Result<Option<Asked>> {
        let (said, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let said = pipe::Receiver::from_owned_fd(said)?;
        let server = self.send(directory.as_os_str().as_encoded_bytes(), tell)?;
        Ok(server.map(|server| Asked { said, server }))
    }

    /// Asks for a session, which is told at the other end of this socket what to do. `false`: no server lives long enough to be asked.
    pub(super) fn ask_session(&self, theirs: OwnedFd) -> io::Result<bool> {
        Ok(self.send(SESSION, theirs)?.is_some())
    }

    fn send(&self, message: &[u8], fd: OwnedFd) -> io::Result<Option<Arc<Server>>> {
        let mut server = self.server(None)?;
        for _ in 0..2 {
            match sys::send(&server.socket, message, &[fd.as_fd()]) {
                Ok(()) => return Ok(Some(server)),
                // It has ended since it was last looked at.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => server = self.server(Some(&server))?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The server; another one when there is none, or when it has ended, or is the one that is known to be gone.
    fn server(&self, gone: Option<&Arc<Server>>) -> io::Result<Arc<Server>> {
        let mut place = lock(&self.server);
        let good = |server: &&Arc<Server>| !server.has_ended() && gone.is_none_or(|gone| !Arc::ptr_eq(gone, server));
        if let Some(server) = place.as_ref().filter(good) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(self.run()?);
        *place = Some(Arc::clone(&server));
        Ok(server)
    }

    fn run(&self) -> io::Result<Server> {
        let (socket, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        let mut command = Command::new(&self.command.program);
        // The environment may hold what no container may ever see.
        command.args(&self.command.args).env_clear();
        command
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&self.log)?);
        let child = command.spawn()?;
        let (tell, ended) = watch::channel(false);
        std::thread::Builder::new()
            .name("shims".to_owned())
            .spawn(move || reap(child, &tell))?;
        Ok(Server { socket, ended })
    }
}

fn reap(mut child: Child, tell: &watch::Sender<bool>) {
    let _ = child.wait();
    tell.send_replace(true);
}

impl Server {
    /// Whether it is gone. What it has made is not.
    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until it is gone.
    pub(super) async fn ended(&self) {
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}
