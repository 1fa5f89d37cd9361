//! Directories that a task sees besides its image's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::Source;
use crate::quantity::ByteSize;

/// A directory that the task sees at `mountPath`, and exactly one thing that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Where the task sees it: an absolute path, of one volume only. A task without an image can have it below `/run`, `/sandbox` and `/tmp`, where
    /// the machine has a directory already, or as a directory of its own below `/`.
    pub mount_path: String,
    /// Whether the task may not write to it. Secrets and ConfigMaps never can be written to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The keys of a Secret, as files in memory. Read anew for each attempt, and not changed while one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SourceFiles>,
    /// The keys of a ConfigMap, as files. Read anew for each attempt, and not changed while one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<SourceFiles>,
    /// A directory that is empty at first and goes with the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A directory or file of the machine, where the agent allows it (`--allow-host-path`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    /// A directory of the agent that all tasks of the namespace on it may share, and that outlives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedDir>,
}

/// Files out of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceFiles {
    /// The name of the object, of the task's namespace.
    pub name: String,
    /// Which keys, and where. Default: all, each in a file of its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub items: Vec<FileItem>,
    /// The permissions of files, a number up to 511 (0777). Default 420 (0644), so that any user in the task may read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_mode: Option<u32>,
    /// Whether the task may start without the object or without a key of `items`. Otherwise it waits until they are there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// One file out of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileItem {
    /// The key.
    pub key: String,
    /// Where the file is, below `mountPath`.
    pub path: String,
    /// Its permissions, instead of `defaultMode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// An empty directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EmptyDir {
    /// `Disk`, which stays from one attempt to the next, or `Memory`, which each attempt has anew and whose content counts as memory of the task.
    /// Default `Disk`.
    pub medium: Medium,
    /// How large it may become. In memory a bound that is kept, by default the task's memory; on disk what is set aside of `resources.disk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<ByteSize>,
}

/// Where an empty directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Medium {
    /// On the agent's disk.
    #[default]
    Disk,
    /// In memory.
    Memory,
}

/// Something of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPath {
    /// Its path on the machine, without symbolic links.
    pub path: String,
    /// What it has to be: `Directory`, `DirectoryOrCreate`, `File` or `Socket`. Default `Directory`.
    #[serde(default, rename = "type")]
    pub kind: HostPathType,
}

/// What a path of the machine has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostPathType {
    /// A directory.
    #[default]
    Directory,
    /// A directory, which is made when it is not there.
    DirectoryOrCreate,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
}

/// A directory that tasks share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedDir {
    /// Its name; tasks of one namespace that are placed on one agent see the same directory.
    pub name: String,
}

impl Volume {
    /// The object that its files are of, if they are of one.
    pub fn files(&self) -> Option<(Source, &SourceFiles)> {
        let secret = self.secret.as_ref().map(|files| (Source::secret(&files.name), files));
        secret.or_else(|| {
            self.config_map
                .as_ref()
                .map(|files| (Source::config_map(&files.name), files))
        })
    }
}
