use std::collections::BTreeMap;

use super::*;
use crate::{DeviceNode, Limits, MemoryDirectory, Mount, User};

fn minimal(rootfs: Rootfs) -> ContainerSpec {
    ContainerSpec {
        argv: vec!["train".to_owned(), "--epochs=3".to_owned()],
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        rootfs,
        mounts: Vec::new(),
        memory: Vec::new(),
        variables: None,
        devices: Vec::new(),
        limits: Limits::default(),
        labels: BTreeMap::new(),
    }
}

/// The generated spec; without the seccomp profile, which has a snapshot of its own.
fn generated(spec: &ContainerSpec, devices: &[DeviceNumbers], swap_accounting: bool) -> Value {
    let id = ContainerId::new("task.a_1").expect("an id");
    let site = Site {
        id: &id,
        rootfs: Path::new("/var/lib/muster/containers/task.a_1/rootfs"),
        sandbox: Path::new("/var/lib/muster/containers/task.a_1/sandbox"),
        tmp: Path::new("/var/lib/muster/containers/task.a_1/tmp"),
        cgroup: "/muster/0123456789abcdef/task.a_1",
        shown: &["/etc".into(), "/usr".into(), "/var".into()],
        hidden: &["/var/lib/muster".into(), "/run/secrets".into()],
        devices,
        open_files: 524_288,
        swap_accounting,
    };
    let mut value = serde_json::to_value(generate(spec, &site).expect("a valid spec")).expect("a spec is JSON");
    assert_eq!(
        value["linux"]["seccomp"],
        seccomp::profile(),
        "the profile is always there"
    );
    value["linux"]["seccomp"] = json!("the profile");
    value
}

#[test]
fn command_on_the_host_root() {
    insta::assert_json_snapshot!(generated(&minimal(Rootfs::Host), &[], true));
}

#[test]
fn image_with_limits_devices_and_mounts() {
    let spec = ContainerSpec {
        env: BTreeMap::from([
            ("HOME".to_owned(), "/home/me".to_owned()),
            ("CUDA_VISIBLE_DEVICES".to_owned(), "0".to_owned()),
        ]),
        working_dir: Some("/srv/app".into()),
        user: Some(User { uid: 1000, gid: 1001 }),
        memory: vec![MemoryDirectory {
            target: "/scratch".into(),
            bytes: Some(1 << 20),
        }],
        variables: Some("/run/muster/variables".into()),
        mounts: vec![
            Mount {
                source: "/data/set".into(),
                target: "/data".into(),
                read_only: true,
            },
            Mount {
                source: "/scratch".into(),
                target: "/scratch".into(),
                read_only: false,
            },
        ],
        devices: vec![DeviceNode {
            path: "/dev/nvidia0".into(),
            host: None,
        }],
        limits: Limits {
            fence: None,
            cpu_request_milli: 500,
            cpu_limit_milli: Some(1500),
            memory_bytes: Some(64 << 20),
            pids: Some(100),
            log_bytes: 0,
        },
        ..minimal(Rootfs::Directory("/images/app".into()))
    };
    let numbers = DeviceNumbers {
        block: false,
        major: 195,
        minor: 0,
        mode: 0o666,
    };
    insta::assert_json_snapshot!(generated(&spec, &[numbers], true));
}

#[test]
fn seccomp_profile() {
    insta::assert_json_snapshot!(seccomp::profile());
}

#[test]
fn swap_is_not_limited_where_it_is_not_counted() {
    let mut spec = minimal(Rootfs::Host);
    spec.limits.memory_bytes = Some(1 << 30);
    let value = generated(&spec, &[], false);
    assert_eq!(value["linux"]["resources"]["memory"], json!({ "limit": 1 << 30 }));
}

#[test]
fn no_spec_gives_a_capability_or_an_open_device_cgroup() {
    for rootfs in [Rootfs::Host, Rootfs::Directory("/images/app".into())] {
        let value = generated(&minimal(rootfs), &[], true);
        for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            assert_eq!(value["process"]["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(value["process"]["noNewPrivileges"], json!(true));
        let first = &value["linux"]["resources"]["devices"][0];
        assert_eq!(
            (&first["allow"], &first["access"], first.get("type")),
            (&json!(false), &json!("rwm"), None)
        );
    }
}

#[test]
fn device_outside_dev_is_invalid() {
    let mut spec = minimal(Rootfs::Host);
    spec.devices.push(DeviceNode {
        path: "/etc/passwd".into(),
        host: None,
    });
    let id = ContainerId::new("a").expect("an id");
    let (path, numbers) = (
        Path::new("/x"),
        [DeviceNumbers {
            block: false,
            major: 1,
            minor: 3,
            mode: 0o666,
        }],
    );
    let site = Site {
        id: &id,
        rootfs: path,
        sandbox: path,
        tmp: path,
        cgroup: "/x",
        shown: &[],
        hidden: &[],
        devices: &numbers,
        open_files: 1024,
        swap_accounting: true,
    };
    assert!(matches!(generate(&spec, &site), Err(Error::Invalid(_))));
}

#[test]
fn hostname_holds_only_what_a_hostname_may() {
    let name = |text: String| hostname(&ContainerId::new(text).expect("an id"));
    assert_eq!(name("task.a_1".to_owned()), "task-a-1");
    assert_eq!(name("x".repeat(100)), "x".repeat(63));
    assert_eq!(name("a--".to_owned()), "a");
}
