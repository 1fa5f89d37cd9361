//! Tells systemd that the server answers (`Type=notify`, sd_notify(3)), so that whoever starts servers one after the other waits for each.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Says so, if somebody wants to know.
pub(super) fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(Path::new(&socket), b"READY=1") {
        tracing::warn!(%error, "systemd is not told that the server is ready");
    }
}

fn send(socket: &Path, text: &[u8]) -> std::io::Result<()> {
    let bytes = socket.as_os_str().as_encoded_bytes();
    let address = match bytes.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("notify");
        let waiting = UnixDatagram::bind(&path).expect("a socket");
        send(&path, b"READY=1").expect("sent");
        let mut text = [0; 16];
        let count = waiting.recv(&mut text).expect("received");
        assert_eq!(&text[..count], b"READY=1");
        assert!(send(&directory.path().join("nobody"), b"x").is_err());
    }
}
