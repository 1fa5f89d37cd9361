//! What of NVIDIA's driver a container needs: which files of the machine, and where it looks for them.
//!
//! Libraries are mounted one by one, read-only, into the directories that the dynamic loader of every distribution looks in without being
//! told: no variable has to be set over the image's own, no cache rebuilt, and so no program run in the container's root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cdi::{BindMount, ContainerEdits, NamedDevice, Node, Spec};

/// The kind of the GPUs in the agent's own CDI specification.
pub const KIND: &str = "muster.dev/gpu";

/// Libraries that programs load to compute: CUDA, its compilers, the management library, video and OpenCL. Names up to the first `.so`.
const LIBRARIES: [&str; 12] = [
    "libcuda",
    "libcudadebugger",
    "libnvcuvid",
    "libnvidia-cfg",
    "libnvidia-encode",
    "libnvidia-gpucomp",
    "libnvidia-ml",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-opencl",
    "libnvidia-pkcs11-openssl3",
    "libnvidia-ptxjitcompiler",
];

/// Tools that people expect in a container with a GPU.
const TOOLS: [&str; 1] = ["nvidia-smi"];

/// Nodes besides those of the GPUs that every program needs: control, and unified memory.
const CONTROL_NODES: [&str; 3] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"];

/// Where things are on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The directory of device nodes.
    pub dev: PathBuf,
    /// Directories of libraries, the first that has one wins.
    pub libraries: Vec<PathBuf>,
    /// Directories of programs.
    pub tools: Vec<PathBuf>,
}

/// Debian's name for the processor's libraries.
fn triplet() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

impl Default for Places {
    fn default() -> Places {
        let libraries = [
            format!("/usr/lib/{}", triplet()),
            "/usr/lib64".to_owned(),
            "/usr/lib".to_owned(),
            "/usr/lib/wsl/lib".to_owned(),
            "/run/nvidia/driver/usr/lib64".to_owned(),
        ];
        Places {
            dev: "/dev".into(),
            libraries: libraries.into_iter().map(PathBuf::from).collect(),
            tools: ["/usr/bin", "/usr/local/bin"].map(PathBuf::from).into(),
        }
    }
}

/// The driver's files on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Libraries by file name, each under every name that it is loaded by.
    pub libraries: BTreeMap<String, PathBuf>,
    /// Programs by name.
    pub tools: BTreeMap<String, PathBuf>,
    /// Nodes that every GPU needs, as they are called in `/dev`.
    pub control: BTreeMap<String, PathBuf>,
}

impl Driver {
    /// Looks for the driver of this version: of libraries only those count that carry the version in the name, or point to one that does.
    pub fn find(places: &Places, version: &str) -> Driver {
        let mut driver = Driver::default();
        for directory in &places.libraries {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let known = name
                    .split_once(".so")
                    .is_some_and(|(stem, _)| LIBRARIES.contains(&stem));
                if !known || driver.libraries.contains_key(&name) {
                    continue;
                }
                let Ok(real) = entry.path().canonicalize() else {
                    continue;
                };
                if real.to_string_lossy().ends_with(version) {
                    driver.libraries.insert(name, real);
                }
            }
        }
        let find = |directories: &[PathBuf], name: &str| {
            directories
                .iter()
                .map(|directory| directory.join(name))
                .find(|path| path.exists())
        };
        for tool in TOOLS {
            driver
                .tools
                .extend(find(&places.tools, tool).map(|path| (tool.to_owned(), path)));
        }
        for node in CONTROL_NODES {
            let path = places.dev.join(node);
            driver.control.extend(path.exists().then(|| (node.to_owned(), path)));
        }
        driver
    }

    /// The CDI specification of these GPUs: UUIDs with their node's number (`/dev/nvidia3` is 3). Pure.
    pub fn spec<'a>(&self, dev: &Path, gpus: impl IntoIterator<Item = (&'a str, u32)>) -> Spec {
        let device = |(uuid, minor): (&str, u32)| NamedDevice {
            name: uuid.to_owned(),
            container_edits: ContainerEdits {
                device_nodes: vec![node(&format!("nvidia{minor}"), &dev.join(format!("nvidia{minor}")))],
                ..ContainerEdits::default()
            },
            ..NamedDevice::default()
        };
        let lib = [format!("/usr/lib/{}", triplet()), "/usr/lib64".to_owned()];
        let libraries = self.libraries.iter().flat_map(|(name, path)| {
            let target = |directory: &String| mount(path, Path::new(directory).join(name));
            lib.iter().map(target).collect::<Vec<_>>()
        });
        let tools = self
            .tools
            .iter()
            .map(|(name, path)| mount(path, Path::new("/usr/bin").join(name)));
        Spec {
            devices: gpus.into_iter().map(device).collect(),
            container_edits: ContainerEdits {
                device_nodes: self.control.iter().map(|(name, path)| node(name, path)).collect(),
                mounts: libraries.chain(tools).collect(),
                ..ContainerEdits::default()
            },
            ..Spec::new(KIND)
        }
    }
}

fn node(name: &str, host: &Path) -> Node {
    let path = Path::new("/dev").join(name);
    Node {
        host_path: (path != host).then(|| host.to_owned()),
        path,
        ..Node::default()
    }
}

fn mount(host: &Path, container: PathBuf) -> BindMount {
    BindMount {
        host_path: host.to_owned(),
        container_path: container,
        kind: None,
        options: ["ro", "nosuid", "nodev", "bind"].map(str::to_owned).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_files_of_the_drivers_version_are_found_under_all_their_names() {
        let root = tempfile::tempdir().expect("a directory");
        let places = Places {
            dev: root.path().join("dev"),
            libraries: vec![root.path().join("lib64"), root.path().join("old")],
            tools: vec![root.path().join("bin")],
        };
        for directory in ["dev", "lib64", "old", "bin"] {
            std::fs::create_dir(root.path().join(directory)).expect("made");
        }
        let touch = |name: &str| std::fs::write(root.path().join(name), "").expect("written");
        touch("lib64/libcuda.so.550.54.15");
        touch("lib64/libc.so.6");
        touch("old/libcuda.so.470.1");
        touch("old/libnvidia-ml.so.550.54.15");
        touch("bin/nvidia-smi");
        touch("dev/nvidiactl");
        let link = |to: &str, name: &str| symlink(to, root.path().join(name)).expect("linked");
        link("libcuda.so.550.54.15", "lib64/libcuda.so.1");
        link("nowhere", "lib64/libnvidia-ml.so.1");
        link("libcuda.so.470.1", "old/libcuda.so.1");
        let driver = Driver::find(&places, "550.54.15");
        let names: Vec<&String> = driver.libraries.keys().collect();
        assert_eq!(
            names,
            ["libcuda.so.1", "libcuda.so.550.54.15", "libnvidia-ml.so.550.54.15"]
        );
        assert!(driver.libraries["libcuda.so.1"].ends_with("lib64/libcuda.so.550.54.15"));
        assert_eq!(driver.control.len(), 1, "only what is there");

        let spec = driver.spec(&places.dev, [("GPU-a", 0), ("GPU-b", 3)]);
        let edits = spec.edits(&["GPU-b"]).expect("it is there");
        let nodes: Vec<_> = edits
            .devices
            .iter()
            .map(|node| node.path.to_str().expect("text"))
            .collect();
        assert_eq!(nodes, ["/dev/nvidia3", "/dev/nvidiactl"], "of the GPUs only the one");
        assert!(edits.mounts.iter().all(|mount| mount.read_only));
        assert!(
            edits
                .mounts
                .iter()
                .any(|mount| mount.target == Path::new("/usr/lib64/libcuda.so.1"))
        );
        assert_eq!(spec.edits(&[]), Ok(super::super::Edits::default()));
    }
}
