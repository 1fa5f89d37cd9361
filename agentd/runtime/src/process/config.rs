//! What the process runtime has to be told.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Images, registry};

/// How to run this executable as a server of shims. It is run once for each runtime, with an empty environment, and has to call
/// [`super::shim_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimCommand {
    /// The executable.
    pub program: PathBuf,
    /// What makes it one.
    pub args: Vec<OsString>,
}

impl Default for ShimCommand {
    /// The running executable, also after its file was replaced, with the hidden subcommand `shim`.
    fn default() -> ShimCommand {
        ShimCommand {
            program: "/proc/self/exe".into(),
            args: vec!["shim".into()],
        }
    }
}

/// How commands are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolate {
    /// Isolated where that is possible, as plain processes elsewhere.
    Auto,
    /// As plain processes.
    Plain,
}

/// What a [`super::ProcessRuntime`] has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where containers are kept. One runtime's own; containers found there are its containers.
    pub state_dir: PathBuf,
    /// The shim.
    pub shim: ShimCommand,
    /// Files and directories of the machine that no container of [`crate::Rootfs::Host`] may see, besides those known anyway.
    pub hidden: Vec<PathBuf>,
    /// The cgroup below which those of containers are, absolute in every hierarchy; must not be shared by two state directories.
    pub cgroup_parent: String,
    /// How commands are held.
    pub isolate: Isolate,
    /// Where [`crate::Rootfs::Image`] is looked for. Hidden from containers.
    pub images: Images,
    /// How registries are asked for images that are not there.
    pub registries: registry::Config,
}

impl Config {
    /// The usual configuration for a state directory; the cgroup is named after it.
    pub fn new(state_dir: impl Into<PathBuf>) -> Config {
        let state_dir = state_dir.into();
        // FNV-1a: names only have to differ between the few state directories of one machine.
        let name = state_dir.as_os_str().as_encoded_bytes();
        let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        Config {
            images: Images::new(state_dir.join("images")),
            cgroup_parent: format!("/muster/{hash:016x}"),
            state_dir,
            shim: ShimCommand::default(),
            hidden: Vec::new(),
            isolate: Isolate::Auto,
            registries: registry::Config::default(),
        }
    }

    /// Where images are while they come.
    pub(super) fn pulls(&self) -> PathBuf {
        self.state_dir.join("pulls")
    }

    /// The file that says up to when somebody vouches for containers.
    pub(super) fn vouched(&self) -> PathBuf {
        self.state_dir.join("vouched")
    }
}
