//! The Container Device Interface: what a container needs for a device, written down in a file that every runtime can read. Pure, but for
//! [`read`] and [`write`].
//!
//! The agent writes one for the GPUs that it found, for people who start containers by hand, and gives its own tasks their devices by the
//! very same edits. It reads those that other vendors' tools leave in `/etc/cdi` and `/var/run/cdi`.
//!
//! Of the specification (cncf-tags/container-device-interface, version 0.8) this takes device nodes, mounts and environment. What it
//! refuses, with the file and the reason: hooks, since they are programs that run as root on paths of the container, and everything else that
//! it does not know, since a device without a part that its vendor thought necessary is a device that fails later and elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use muster_runtime::{DeviceNode, Mount};
use serde::{Deserialize, Serialize};

use super::Edits;
use crate::limits::CDI_FILE_BYTES;

/// Where specifications are looked for; later directories win over earlier ones.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The version that is written.
const VERSION: &str = "0.6.0";

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The version of the format.
    pub cdi_version: String,
    /// Vendor and class, such as `nvidia.com/gpu`.
    pub kind: String,
    /// Notes that change nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The devices.
    pub devices: Vec<NamedDevice>,
    /// What a container needs that has any of them.
    #[serde(default, skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedDevice {
    /// Its name, unique in the kind.
    pub name: String,
    /// Notes that change nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What a container needs for it.
    pub container_edits: ContainerEdits,
}

/// Changes to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerEdits {
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<Node>,
    /// Bind mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<BindMount>,
    /// Programs to run: read only to say that they are refused.
    #[serde(default, skip_serializing)]
    pub hooks: Vec<serde_json::Value>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// In the container.
    pub path: PathBuf,
    /// On the machine, when it is another there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    /// `c`, `b`, `u` or `p`; the node on the machine says it too.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The driver; the node on the machine says it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// The device of the driver; the node on the machine says it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits; those of the node on the machine are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Some of `rwm`; containers get `rw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The owner; in a container it is who its command runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group; in a container it is that of its command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindMount {
    /// On the machine.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// Only `bind` is known.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Mount options; without `rw` it is read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl ContainerEdits {
    fn is_empty(&self) -> bool {
        *self == ContainerEdits::default()
    }

    /// What is wrong with them.
    fn problem(&self) -> Option<String> {
        if !self.hooks.is_empty() {
            return Some(
                "it has hooks, and programs that run as root for a container are not run; use a spec without them"
                    .to_owned(),
            );
        }
        if let Some(env) = self.env.iter().find(|env| env.find('=').is_none_or(|at| at == 0)) {
            return Some(format!("`{env}` is not a variable; it is written NAME=value"));
        }
        let nodes = self
            .device_nodes
            .iter()
            .flat_map(|node| [Some(&node.path), node.host_path.as_ref()]);
        let mounts = self
            .mounts
            .iter()
            .flat_map(|mount| [&mount.host_path, &mount.container_path]);
        let mut paths = nodes.flatten().chain(mounts);
        if let Some(path) = paths.find(|path| !is_plain(path)) {
            return Some(format!("{} is not an absolute path without '..'", path.display()));
        }
        if let Some(node) = self.device_nodes.iter().find(|node| !node.path.starts_with("/dev")) {
            return Some(format!("the device node {} is not below /dev", node.path.display()));
        }
        let odd = |mount: &&BindMount| {
            mount
                .kind
                .as_deref()
                .is_some_and(|kind| !matches!(kind, "bind" | "none" | ""))
        };
        let odd = self.mounts.iter().find(odd)?;
        Some(format!(
            "the mount on {} is not a bind mount",
            odd.container_path.display()
        ))
    }

    fn apply(&self, edits: &mut Edits) {
        for node in &self.device_nodes {
            let node = DeviceNode {
                path: node.path.clone(),
                host: node.host_path.clone().filter(|host| *host != node.path),
            };
            if !edits.devices.contains(&node) {
                edits.devices.push(node);
            }
        }
        for mount in &self.mounts {
            let mount = Mount {
                source: mount.host_path.clone(),
                target: mount.container_path.clone(),
                read_only: !mount.options.iter().any(|option| option == "rw"),
            };
            if !edits.mounts.contains(&mount) {
                edits.mounts.push(mount);
            }
        }
        let pairs = self.env.iter().filter_map(|env| env.split_once('='));
        edits
            .env
            .extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}

fn is_plain(path: &Path) -> bool {
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    path.is_absolute() && !climbs
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is too large to be one.
    #[error("{0} is larger than any CDI specification, {CDI_FILE_BYTES} bytes")]
    Large(PathBuf),
    /// It does not say what such files say.
    #[error("{0} is not a CDI specification that can be used: {1}")]
    Invalid(PathBuf, String),
}

impl Spec {
    /// Reads the text of a file: YAML, of which JSON is a part.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the reason.
    pub fn parse(path: &Path, text: &str) -> Result<Spec, Error> {
        let invalid = |why: String| Error::Invalid(path.to_owned(), why);
        let spec: Spec = serde_yaml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let well_formed = spec
            .kind
            .split_once('/')
            .is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty());
        if !well_formed {
            return Err(invalid(format!("the kind `{}` is not VENDOR/CLASS", spec.kind)));
        }
        if let Some(why) = spec.container_edits.problem() {
            return Err(invalid(why));
        }
        for (place, device) in spec.devices.iter().enumerate() {
            if device.name.is_empty() || spec.devices[..place].iter().any(|other| other.name == device.name) {
                return Err(invalid(format!(
                    "the device name `{}` is empty or there twice",
                    device.name
                )));
            }
            if let Some(why) = device.container_edits.problem() {
                return Err(invalid(format!("device {}: {why}", device.name)));
            }
        }
        Ok(spec)
    }

    /// What a container needs for exactly these devices; the name that is not here otherwise.
    ///
    /// # Errors
    /// The first name that is not a device of this specification.
    pub fn edits<'a>(&self, names: &[&'a str]) -> Result<Edits, &'a str> {
        let mut edits = Edits::default();
        for name in names {
            let device = self.devices.iter().find(|device| device.name == **name).ok_or(*name)?;
            device.container_edits.apply(&mut edits);
        }
        if !names.is_empty() {
            self.container_edits.apply(&mut edits);
        }
        Ok(edits)
    }

    /// An empty specification of a kind.
    pub fn new(kind: &str) -> Spec {
        Spec {
            cdi_version: VERSION.to_owned(),
            kind: kind.to_owned(),
            ..Spec::default()
        }
    }
}

/// The specifications in these directories, by file name, and what could not be used. A directory that is not there has none.
pub fn read(directories: &[PathBuf]) -> (BTreeMap<String, Spec>, Vec<Error>) {
    let (mut specs, mut errors) = (BTreeMap::new(), Vec::new());
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let wanted = |path: &PathBuf| {
            path.extension()
                .is_some_and(|extension| extension == "json" || extension == "yaml")
        };
        for path in paths.into_iter().filter(wanted) {
            match read_file(&path) {
                Ok(spec) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    specs.insert(name, spec);
                }
                Err(error) => errors.push(error),
            }
        }
    }
    (specs, errors)
}

fn read_file(path: &Path) -> Result<Spec, Error> {
    let unread = |error| Error::Read(path.to_owned(), error);
    if std::fs::metadata(path).map_err(unread)?.len() > CDI_FILE_BYTES {
        return Err(Error::Large(path.to_owned()));
    }
    Spec::parse(path, &std::fs::read_to_string(path).map_err(unread)?)
}

/// Writes a specification into a directory, all of it or nothing, unless it is there already.
///
/// # Errors
/// What the disk says.
pub fn write(directory: &Path, name: &str, spec: &Spec) -> io::Result<()> {
    let text = serde_json::to_string_pretty(spec).map_err(io::Error::other)?;
    let path = directory.join(name);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    let fresh = directory.join(format!(".{name}.new"));
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: &str = r#"
cdiVersion: "0.6.0"
kind: amd.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{path: /dev/dri/renderD128}, {path: /dev/dri/card0, hostPath: /dev/dri/card1}]
  - name: "1"
    containerEdits:
      deviceNodes: [{path: /dev/dri/renderD129, permissions: rw}]
      env: ["SECOND=1"]
containerEdits:
  deviceNodes: [{path: /dev/kfd}]
  mounts: [{hostPath: /opt/rocm/lib, containerPath: /opt/rocm/lib, options: [ro, nosuid, bind]}]
"#;

    fn parse(text: &str) -> Result<Spec, Error> {
        Spec::parse(Path::new("/etc/cdi/amd.yaml"), text)
    }

    #[test]
    fn devices_bring_their_own_edits_and_the_common_ones_once() {
        let spec = parse(AMD).expect("well-formed");
        let edits = spec.edits(&["0", "1"]).expect("both are there");
        let nodes: Vec<_> = edits
            .devices
            .iter()
            .map(|node| node.path.to_str().expect("text"))
            .collect();
        assert_eq!(
            nodes,
            [
                "/dev/dri/renderD128",
                "/dev/dri/card0",
                "/dev/dri/renderD129",
                "/dev/kfd"
            ]
        );
        assert_eq!(edits.devices[1].host.as_deref(), Some(Path::new("/dev/dri/card1")));
        assert_eq!(edits.env["SECOND"], "1");
        assert!(edits.mounts[0].read_only);
        assert_eq!(
            spec.edits(&[]),
            Ok(Edits::default()),
            "no device, no edits, the common ones included"
        );
        assert_eq!(spec.edits(&["0", "7"]), Err("7"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let spec = parse(AMD).expect("well-formed");
        write(directory.path(), "amd.json", &spec).expect("written");
        write(directory.path(), "amd.json", &spec).expect("there already");
        let (specs, errors) = read(&[directory.path().to_owned(), "/nowhere".into()]);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(specs["amd.json"], spec);
    }

    #[track_caller]
    fn check_refused(text: &str, why: &str) {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(why) && error.contains("/etc/cdi/amd.yaml"), "{error}");
    }

    #[test]
    fn what_is_not_understood_or_not_safe_is_refused_with_the_file() {
        let device = |edits: &str| {
            format!("{{cdiVersion: '0.6.0', kind: a.com/gpu, devices: [{{name: x, containerEdits: {{{edits}}}}}]}}")
        };
        check_refused("[", "not a CDI specification");
        check_refused("{kind: a.com/gpu}", "cdiVersion");
        check_refused("{cdiVersion: '0.6.0', kind: gpu, devices: []}", "VENDOR/CLASS");
        check_refused(&device("hooks: [{hookName: createContainer, path: /bin/sh}]"), "hooks");
        check_refused(&device("deviceNodes: [{path: /etc/passwd}]"), "below /dev");
        check_refused(&device("deviceNodes: [{path: /dev/../etc/passwd}]"), "without '..'");
        check_refused(&device("mounts: [{hostPath: lib, containerPath: /lib}]"), "absolute");
        check_refused(
            &device("mounts: [{hostPath: /l, containerPath: /l, type: tmpfs}]"),
            "bind mount",
        );
        check_refused(&device("env: [NOVALUE]"), "NAME=value");
        check_refused(&device("intelRdt: {closID: a}"), "intelRdt");
        let twice = "{cdiVersion: '0.6.0', kind: a.com/g, devices: [{name: x, containerEdits: {}}, {name: x, containerEdits: {}}]}";
        check_refused(twice, "there twice");
    }
}
