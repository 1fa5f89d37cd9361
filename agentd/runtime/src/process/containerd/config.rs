//! What the containerd runtime has to be told.

use std::path::PathBuf;

use super::super::Config as Base;

/// Where containerd listens when nothing else is said.
pub const SOCKET_DEFAULT: &str = "/run/containerd/containerd.sock";

/// The namespace of containerd that all of ours is in.
pub const NAMESPACE_DEFAULT: &str = "muster";

/// What a [`super::ContainerdRuntime`] has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// As for the process runtime, whose containers in the same state directory go on and are found.
    pub base: Base,
    /// Where containerd listens.
    pub socket: PathBuf,
    /// The namespace of containerd; others are never looked at.
    pub namespace: String,
    /// What is run in the place of `runc`, by name or path.
    pub runc: Option<PathBuf>,
    /// The snapshotter. Without one, the first that works here of overlayfs and native.
    pub snapshotter: Option<String>,
}

impl Config {
    /// The usual configuration.
    pub fn new(base: Base, socket: impl Into<PathBuf>) -> Config {
        Config {
            base,
            socket: socket.into(),
            namespace: NAMESPACE_DEFAULT.to_owned(),
            runc: None,
            snapshotter: None,
        }
    }
}
