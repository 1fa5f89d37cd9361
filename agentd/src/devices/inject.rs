//! Puts devices into a container's spec. Pure.

use muster_runtime::{ContainerSpec, Mount, Rootfs};

use super::Edits;

/// What tells NVIDIA's tools which devices they may use.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";
/// The value that means none (an absent variable means all to some of NVIDIA's tools).
const VISIBLE_NONE: &str = "void";

/// Adds the edits to the spec. Which devices a container sees is never taken from the task's own environment; which of its devices a
/// program uses (`CUDA_VISIBLE_DEVICES`) stays the task's choice.
///
/// A container on the machine's own root has the driver's files already, and no place to mount them on: that root is read-only.
pub fn inject(spec: &mut ContainerSpec, edits: Edits) {
    spec.devices.extend(edits.devices);
    let own_root = spec.rootfs == Rootfs::Host;
    let has_place = |mount: &Mount| !own_root || ["/run", "/tmp"].iter().any(|own| mount.target.starts_with(own));
    spec.mounts.extend(edits.mounts.into_iter().filter(has_place));
    spec.env.insert(VISIBLE.to_owned(), VISIBLE_NONE.to_owned());
    for (name, value) in edits.env {
        let chosen = name == "CUDA_VISIBLE_DEVICES" && spec.env.contains_key(&name);
        if !chosen {
            spec.env.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_runtime::{DeviceNode, Limits};

    use super::*;

    fn spec(env: &[(&str, &str)]) -> ContainerSpec {
        ContainerSpec {
            argv: vec!["train".to_owned()],
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_task_without_devices_sees_none_whatever_it_says() {
        let mut spec = spec(&[("NVIDIA_VISIBLE_DEVICES", "all")]);
        inject(&mut spec, Edits::default());
        assert_eq!(spec.env["NVIDIA_VISIBLE_DEVICES"], "void");
        assert!(spec.devices.is_empty());
    }

    #[test]
    fn devices_mounts_and_variables_are_added_and_win() {
        let mut spec = spec(&[
            ("NVIDIA_VISIBLE_DEVICES", "all"),
            ("CUDA_VISIBLE_DEVICES", "1"),
            ("A", "b"),
        ]);
        let edits = Edits {
            devices: vec![DeviceNode {
                path: "/dev/nvidia3".into(),
                host: None,
            }],
            mounts: vec![Mount {
                source: "/usr/lib/libcuda.so.1".into(),
                target: "/usr/lib/libcuda.so.1".into(),
                read_only: true,
            }],
            env: [("NVIDIA_VISIBLE_DEVICES", "GPU-3"), ("CUDA_VISIBLE_DEVICES", "GPU-3")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let mut on_image = ContainerSpec {
            rootfs: Rootfs::Directory("/images/cuda".into()),
            ..spec.clone()
        };
        inject(&mut on_image, edits.clone());
        assert_eq!((on_image.devices.len(), on_image.mounts.len()), (1, 1));
        inject(&mut spec, edits);
        assert_eq!(spec.env["NVIDIA_VISIBLE_DEVICES"], "GPU-3");
        assert_eq!(
            spec.env["CUDA_VISIBLE_DEVICES"], "1",
            "among its own devices a task may choose"
        );
        assert_eq!(spec.env["A"], "b");
        assert_eq!(
            (spec.devices.len(), spec.mounts.len()),
            (1, 0),
            "the machine's own root has the library already"
        );
    }
}
