//! From a task to its container. Pure.

use std::collections::BTreeMap;

use muster_api::image::ImageReference;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::v1::{Signal, Task, Unreachable, UnreachablePolicy};
use muster_runtime::{Container, ContainerId, ContainerSpec, Fence, Limits, Rootfs, Stop, User};

use crate::devices::{DeviceSource, UnknownDevice, inject};
use crate::limits::{GRACE_DEFAULT, PIDS_MAX};
use crate::plan::TaskKey;

/// Label: the uid of the task.
pub const LABEL_UID: &str = "muster.dev/task-uid";
/// Label: the namespace of the task.
pub const LABEL_NAMESPACE: &str = "muster.dev/namespace";
/// Label: the name of the task.
pub const LABEL_TASK: &str = "muster.dev/task";
/// Label: the framework of the task.
pub const LABEL_FRAMEWORK: &str = "muster.dev/framework";
/// Label: which run of the task's command, from 1.
pub const LABEL_ATTEMPT: &str = "muster.dev/attempt";
/// Label: the boot of the machine that the container was made in.
pub const LABEL_BOOT: &str = "muster.dev/boot";
/// Label: the ports that the container holds, separated by commas.
pub const LABEL_PORTS: &str = "muster.dev/ports";
/// Label: the UUIDs of the devices that the container holds, separated by commas.
pub const LABEL_DEVICES: &str = "muster.dev/devices";

/// The id of a task's container: its uid and the attempt. `None` when the uid cannot be part of an id.
pub fn container_id(uid: &str, attempt: u32) -> Option<ContainerId> {
    ContainerId::new(format!("{uid}-{attempt}"))
}

/// Whose container this is, as (uid of the task, attempt); `None` when it is not a task's.
pub fn owner(container: &Container) -> Option<(&str, u32)> {
    let uid = container.labels.get(LABEL_UID)?;
    let attempt = container.labels.get(LABEL_ATTEMPT)?.parse().ok()?;
    Some((uid, attempt))
}

/// The name of the task that a container is of.
pub fn task_key(container: &Container) -> Option<TaskKey> {
    Some(TaskKey {
        namespace: container.labels.get(LABEL_NAMESPACE)?.to_owned(),
        name: container.labels.get(LABEL_TASK)?.to_owned(),
    })
}

/// Whether the machine was restarted since the container was made.
pub fn is_of_another_boot(container: &Container, boot_id: &str) -> bool {
    container.labels.get(LABEL_BOOT).is_some_and(|boot| boot != boot_id)
}

/// The ports that a container holds until it has exited.
pub fn ports(container: &Container) -> PortSet {
    let ports = container.labels.get(LABEL_PORTS);
    ports.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The devices that a container holds until it has exited.
pub fn devices(container: &Container) -> impl Iterator<Item = &str> {
    let list = container.labels.get(LABEL_DEVICES).unwrap_or_default();
    list.split(',').filter(|uuid| !uuid.is_empty())
}

/// The whole name of a task's image. Validation has seen it; what it would refuse, no runtime finds.
pub fn image(task: &Task) -> Option<String> {
    let image = task.spec.image.as_ref()?;
    let parsed = image.parse::<ImageReference>();
    Some(parsed.map_or_else(|_| image.clone(), |image| image.to_string()))
}

/// The container of one attempt of a task.
///
/// `PATH`, `HOME` and `MUSTER_SANDBOX` are the runtime's to add, which knows what the container sees as its root.
///
/// # Errors
/// [`UnknownDevice`], when the task is bound to a device that is not here.
pub fn container_spec(
    task: &Task,
    attempt: u32,
    agent: &str,
    source: &dyn DeviceSource,
) -> Result<ContainerSpec, UnknownDevice> {
    let status = task.status.clone().unwrap_or_default();
    let uuids: Vec<&str> = status.devices.iter().map(String::as_str).collect();
    let edits = source.edits(&uuids)?;
    let user = task.spec.user.map(|user| User {
        uid: user.uid,
        gid: user.gid.unwrap_or(user.uid),
    });
    let (argv, rootfs) = match image(task) {
        None => ([task.spec.command.as_slice(), &task.spec.args].concat(), Rootfs::Host),
        Some(name) => {
            let args = task.spec.args.clone();
            (task.spec.command.clone(), Rootfs::Image { name, args })
        }
    };
    let mut spec = ContainerSpec {
        argv,
        env: environment(task, attempt, agent),
        working_dir: task.spec.working_dir.as_ref().map(Into::into),
        user,
        rootfs,
        mounts: Vec::new(),
        memory: Vec::new(),
        variables: None,
        devices: Vec::new(),
        limits: Limits {
            fence: fence(task),
            ..limits(task)
        },
        labels: labels(task, attempt, &uuids),
    };
    inject(&mut spec, edits);
    Ok(spec)
}

fn uid(task: &Task) -> &str {
    task.metadata.uid.as_deref().unwrap_or_default()
}

fn binding(task: &Task) -> u64 {
    task.status.as_ref().and_then(|status| status.binding).unwrap_or(0)
}

fn labels(task: &Task, attempt: u32, devices: &[&str]) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        (LABEL_UID, uid(task).to_owned()),
        (LABEL_NAMESPACE, task.namespace().to_owned()),
        (LABEL_TASK, task.name().to_owned()),
        (LABEL_FRAMEWORK, task.spec.framework.clone()),
        (LABEL_ATTEMPT, attempt.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let ports = task.status.as_ref().map(|status| &status.ports);
    if let Some(ports) = ports.filter(|ports| !ports.is_empty()) {
        labels.insert(LABEL_PORTS.to_owned(), ports.to_string());
    }
    if !devices.is_empty() {
        labels.insert(LABEL_DEVICES.to_owned(), devices.join(","));
    }
    labels
}

/// The task's own variables, then what Muster promises, which wins.
fn environment(task: &Task, attempt: u32, agent: &str) -> BTreeMap<String, String> {
    // What comes from a Secret or a ConfigMap is given when the container is made.
    let own = task.spec.env.iter().filter_map(|var| {
        let value = match &var.value_from {
            None => var.value.clone(),
            Some(from) => task.field(&from.field_ref.as_ref()?.field_path)?,
        };
        Some((var.name.clone(), value))
    });
    let promised = [
        ("MUSTER_TASK", task.name().to_owned()),
        ("MUSTER_NAMESPACE", task.namespace().to_owned()),
        ("MUSTER_AGENT", agent.to_owned()),
        ("MUSTER_TASK_UID", uid(task).to_owned()),
        ("MUSTER_ATTEMPT", attempt.to_string()),
        ("MUSTER_FENCE", format!("{}@{attempt}@{}", uid(task), binding(task))),
    ];
    let promised = promised.into_iter().map(|(name, value)| (name.to_owned(), value));
    let ports = task.status.iter().flat_map(|status| status.ports.iter());
    let ports = ports
        .enumerate()
        .map(|(index, port)| (format!("PORT{index}"), port.to_string()));
    own.chain(promised).chain(ports).collect()
}

/// How the machine ends the task by itself, if it shall.
pub fn fence(task: &Task) -> Option<Fence> {
    let Unreachable { policy, after, .. } = task.unreachable();
    let Stop { signal, grace } = stop(task);
    let after = after.filter(|_| policy == UnreachablePolicy::SelfFence)?.duration();
    Some(Fence { after, signal, grace })
}

/// How the task is stopped.
pub fn stop(task: &Task) -> Stop {
    let kill = task.spec.kill.clone().unwrap_or_default();
    Stop {
        signal: kill.signal.unwrap_or(Signal::SIGTERM).number(),
        grace: kill.grace_period.map_or(GRACE_DEFAULT, |grace| grace.duration()),
    }
}

/// A task that asks for no memory has no memory limit: there is nothing to derive one from.
fn limits(task: &Task) -> Limits {
    let resources = &task.spec.resources;
    let limits = task.spec.limits.clone().unwrap_or_default();
    let memory = limits.memory.unwrap_or(resources.memory);
    Limits {
        cpu_request_milli: resources.cpus.milli(),
        cpu_limit_milli: limits.cpus.map(Scalar::milli),
        memory_bytes: (memory != ByteSize::ZERO).then_some(memory.bytes()),
        pids: Some(PIDS_MAX),
        log_bytes: 0,
        fence: None,
    }
}

#[cfg(test)]
mod tests {
    use muster_api::v1::{EnvVar, Limits as TaskLimits, User as TaskUser};

    use super::*;
    use crate::devices::{NoDevices, SimulatedDevices};
    use crate::plan::testing::bound;

    #[test]
    fn a_container_gets_what_its_task_says() {
        let mut task = bound("t1");
        task.spec.command = vec!["sh".to_owned(), "-c".to_owned()];
        task.spec.args = vec!["env".to_owned()];
        task.spec.env = vec![EnvVar::of("A", "b"), EnvVar::of("MUSTER_TASK", "somebody else")];
        task.spec.working_dir = Some("/var".to_owned());
        task.spec.user = Some(TaskUser { uid: 1000, gid: None });
        task.spec.resources.cpus = Scalar::from_milli(500);
        task.spec.resources.memory = ByteSize::from_mib(64);
        let status = task.status.as_mut().expect("bound");
        status.ports = PortSet::range(31_000, 31_001);
        status.binding = Some(41);
        status.devices = ["GPU-sim-a1-01".to_owned()].into();
        let source = SimulatedDevices::parse("2xH100", "a1").expect("well-formed");
        let spec = container_spec(&task, 2, "a1", &source).expect("the devices are here");

        assert_eq!(spec.argv, ["sh", "-c", "env"]);
        for (name, value) in [
            ("A", "b"),
            ("MUSTER_TASK", "t1"),
            ("MUSTER_NAMESPACE", "default"),
            ("MUSTER_AGENT", "a1"),
            ("MUSTER_TASK_UID", "uid-t1"),
            ("MUSTER_ATTEMPT", "2"),
            ("MUSTER_FENCE", "uid-t1@2@41"),
            ("PORT0", "31000"),
            ("PORT1", "31001"),
            ("NVIDIA_VISIBLE_DEVICES", "GPU-sim-a1-01"),
        ] {
            assert_eq!(spec.env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(spec.working_dir, Some("/var".into()));
        assert_eq!(spec.user, Some(User { uid: 1000, gid: 1000 }));
        assert_eq!(spec.limits.cpu_request_milli, 500);
        assert_eq!(spec.limits.cpu_limit_milli, None);
        assert_eq!(spec.limits.memory_bytes, Some(64 << 20));
        assert_eq!(spec.limits.pids, Some(PIDS_MAX));
        assert_eq!(spec.labels[LABEL_DEVICES], "GPU-sim-a1-01");
        let container = Container {
            id: container_id("uid-t1", 2).expect("plain"),
            labels: spec.labels.clone().into_iter().collect(),
            state: muster_runtime::State::Created,
        };
        assert_eq!(ports(&container), PortSet::range(31_000, 31_001));
        assert_eq!(task_key(&container), Some(TaskKey::of(&task)));
        assert!(spec.check().is_ok());
    }

    #[test]
    fn an_image_is_named_in_full_and_its_arguments_stay_apart() {
        let mut task = bound("t1");
        task.spec.image = Some("registry:5000/team/app".to_owned());
        task.spec.command = Vec::new();
        task.spec.args = vec!["--fast".to_owned()];
        let spec = container_spec(&task, 1, "a1", &NoDevices).expect("no devices");
        let rootfs = Rootfs::Image {
            name: "registry:5000/team/app:latest".to_owned(),
            args: vec!["--fast".to_owned()],
        };
        assert_eq!((spec.argv.as_slice(), &spec.rootfs), (&[] as &[String], &rootfs));
        assert!(spec.check().is_ok());
    }

    #[test]
    fn limits_win_over_what_is_asked_for() {
        let mut task = bound("t1");
        task.spec.resources.memory = ByteSize::from_mib(64);
        task.spec.limits = Some(TaskLimits {
            cpus: Some(Scalar::from_units(2)),
            memory: Some(ByteSize::from_mib(128)),
        });
        let spec = container_spec(&task, 1, "a1", &NoDevices).expect("no devices");
        assert_eq!(spec.limits.cpu_limit_milli, Some(2000));
        assert_eq!(spec.limits.memory_bytes, Some(128 << 20));
    }

    #[test]
    fn a_device_that_is_not_here_is_an_error() {
        let mut task = bound("t1");
        task.status.as_mut().expect("bound").devices = ["GPU-x".to_owned()].into();
        assert!(container_spec(&task, 1, "a1", &NoDevices).is_err());
    }
}
