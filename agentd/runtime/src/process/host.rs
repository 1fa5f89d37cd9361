//! What has to be known about the machine before a container can be described: read here, so that the description itself is pure.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::spec::{DeviceNumbers, OWN};
use crate::{DeviceNode, Error};

/// State of others that no task has any business with: other runtimes' containers, and the store's data.
const OTHERS: [&str; 5] = [
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/lib/etcd",
];

/// The top of the machine's root: its directories that are shown, and its symbolic links (name and target).
pub(super) type Top = (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>);

/// Reads the top of the machine's root.
pub(super) fn top() -> io::Result<Top> {
    let (mut directories, mut links) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_symlink() {
            links.push((PathBuf::from(entry.file_name()), fs::read_link(&path)?));
        } else if kind.is_dir() && entry.file_name() != "lost+found" && !OWN.iter().any(|own| path == Path::new(own)) {
            directories.push(path);
        }
    }
    directories.sort();
    links.sort();
    Ok((directories, links))
}

/// Whether something can be mounted there when a container sees the machine's root: in what is its own, where the machine has something, or in
/// a directory that the machine's root has not. Nothing is ever made in what is the machine's.
pub(super) fn has_place(target: &Path) -> bool {
    let own = OWN.iter().any(|own| target.starts_with(own));
    let top: PathBuf = target.components().take(2).collect();
    own || !top.exists() && fs::symlink_metadata(&top).is_err() || target.exists()
}

/// Everything to be hidden: what was asked for, what is this runtime's own, and the state of others. Real paths, as a mask covers those.
pub(super) fn hidden(asked: &[PathBuf], own: [&Path; 2]) -> Vec<PathBuf> {
    let all = asked
        .iter()
        .map(PathBuf::as_path)
        .chain(own)
        .chain(OTHERS.iter().map(Path::new));
    // What does not exist (yet) is hidden under the name it was given.
    let mut real: Vec<PathBuf> = all
        .map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()))
        .collect();
    real.sort();
    real.dedup();
    real
}

/// The numbers behind device nodes.
pub(super) fn device_numbers(nodes: &[DeviceNode]) -> Result<Vec<DeviceNumbers>, Error> {
    let numbers = |node: &DeviceNode| {
        let invalid = |why: String| Error::Invalid(format!("device {}: {why}", node.on_machine().display()));
        let meta = fs::metadata(node.on_machine()).map_err(|error| invalid(error.to_string()))?;
        let kind = meta.file_type();
        if !kind.is_char_device() && !kind.is_block_device() {
            return Err(invalid("not a device node".to_owned()));
        }
        Ok(DeviceNumbers {
            block: kind.is_block_device(),
            major: u64::from(libc::major(meta.rdev())),
            minor: u64::from(libc::minor(meta.rdev())),
            mode: meta.mode() & 0o777,
        })
    };
    nodes.iter().map(numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read_from_the_node() {
        let nodes = [DeviceNode {
            path: "/dev/none".into(),
            host: Some("/dev/null".into()),
        }];
        let numbers = device_numbers(&nodes).expect("a device");
        assert_eq!((numbers[0].block, numbers[0].major, numbers[0].minor), (false, 1, 3));
        let nodes = [DeviceNode {
            path: "/etc/passwd".into(),
            host: None,
        }];
        assert!(matches!(device_numbers(&nodes), Err(Error::Invalid(_))));
    }

    #[test]
    fn nothing_is_made_in_what_is_the_machines() {
        for target in ["/run/x/y", "/tmp/x", "/sandbox/x", "/no-such-top/x", "/usr/share"] {
            assert!(has_place(Path::new(target)), "{target}");
        }
        assert!(!has_place(Path::new("/etc/no/such")));
    }

    #[test]
    fn own_directories_of_a_container_are_not_shown() {
        let (directories, links) = top().expect("read");
        assert!(directories.contains(&"/etc".into()));
        assert!(OWN.iter().all(|own| !directories.contains(&own.into())));
        assert!(links.iter().all(|(name, _)| name.is_relative()));
    }
}
