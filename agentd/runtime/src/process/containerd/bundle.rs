//! From the OCI spec that every runtime shares to that of a container which containerd makes. Pure, but for reading what was generated.
//!
//! A spec is changed by a list of [`Edit`]s, each one thing: what else has to be put into containers, such as devices that are described
//! elsewhere, is more of them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder, Spec};

use crate::Error;

/// Where a container sees its first process, and the socket that this calls the shim by.
const PLACE: &str = "/.muster";

/// One change of an OCI spec.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    /// The command is run by this one, which gets it as its last arguments.
    RunBy(Vec<String>),
    /// One more mount.
    Mount(Mount),
}

/// Makes the changes, in their order.
pub(super) fn apply(mut spec: Spec, edits: Vec<Edit>) -> Spec {
    for edit in edits {
        match edit {
            Edit::RunBy(mut words) => {
                if let Some(process) = spec.process_mut() {
                    words.extend(process.args().clone().unwrap_or_default());
                    process.set_args(Some(words));
                }
            }
            Edit::Mount(mount) => {
                spec.mounts_mut().get_or_insert_default().push(mount);
            }
        }
    }
    spec
}

/// Has the command run by our own first process, which is in this directory of the machine.
/// `variables`: where the container sees its file of variables, or nothing.
pub(super) fn with_init(
    init: &Path,
    (binary, socket): (&str, &str),
    cwd: &Path,
    variables: &str,
) -> Result<Vec<Edit>, Error> {
    let mount = MountBuilder::default()
        .destination(PLACE)
        .typ("bind")
        .source(init)
        .options(["rbind", "rro", "rnosuid", "rnodev"].map(str::to_owned))
        .build();
    let mount = mount.map_err(|error| Error::Invalid(error.to_string()))?;
    let inside = |name: &str| format!("{PLACE}/{name}");
    let cwd = cwd.to_string_lossy().into_owned();
    let words = vec![inside(binary), inside(socket), variables.to_owned(), cwd];
    Ok(vec![Edit::Mount(mount), Edit::RunBy(words)])
}

/// The options of an overlay mount.
pub(super) fn overlay(lower: &Path, upper: &Path, work: &Path) -> Vec<String> {
    let option = |(name, path): (&str, &Path)| {
        let path: String = path
            .to_string_lossy()
            .replace('\\', "\\\\")
            .replace(',', "\\,")
            .replace(':', "\\:");
        format!("{name}={path}")
    };
    let directories = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
    let limits = ["nodev", "nosuid"].map(str::to_owned);
    directories.map(option).into_iter().chain(limits).collect()
}

/// The directory that is the container's `/`: of the machine, or, of what containerd mounts, relative to its bundle.
pub(super) fn root(directory: &Path, host: bool) -> PathBuf {
    if host {
        directory.join("rootfs")
    } else {
        PathBuf::from("rootfs")
    }
}
