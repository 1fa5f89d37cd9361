use super::*;
use crate::data_dir::Room;

fn wanted(containerd: bool) -> Wanted {
    Wanted {
        containerd,
        ports: PortSet::range(31000, 32000),
    }
}

const ROOM: Room = Room {
    bytes: 100 << 30,
    percent: 50,
    files: None,
};

fn well() -> Facts {
    let some = |text: &str| text.split(' ').map(str::to_owned).collect();
    Facts {
        root: true,
        kernel: "6.1.0-9-amd64".to_owned(),
        cgroup_v1: Vec::new(),
        cgroup_v2: some("cpuset cpu io memory pids"),
        seccomp: "kill_process trap errno log allow".to_owned(),
        room: Ok(ROOM),
        open_files: 1 << 20,
        outgoing_ports: Some((32768, 60999)),
        clock_steered: Some(true),
        containerd_socket: true,
        containerd: Some("containerd containerd.io 1.7.29 abc".to_owned()),
        runc: Some("runc version 1.3.6".to_owned()),
        open_directories: Vec::new(),
        nvidia_driver: Some("535.183.01".to_owned()),
        nvidia_devices: 2,
        nouveau: false,
        gpus: Ok(some("A100 A100")),
        nvidia_toolkit: None,
        cdi: (1, Vec::new()),
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Facts), wanted: &Wanted, part: &str, level: Level, words: &str) {
    let mut facts = well();
    change(&mut facts);
    let findings = examine(&facts, wanted);
    let found = findings
        .iter()
        .find(|finding| finding.part == part && finding.level == level);
    let found = found.unwrap_or_else(|| panic!("no such finding in {findings:#?}"));
    let said = format!("{} / {}", found.what, found.fix.as_deref().unwrap_or_default());
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_machine_that_is_well_is_said_to_be_well() {
    for wanted in [false, true].map(wanted) {
        let findings = examine(&well(), &wanted);
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok),
            "{findings:#?}"
        );
        assert!(findings.len() >= 12);
    }
}

#[test]
fn what_is_not_well_says_what_to_do() {
    type Change = fn(&mut Facts);
    let cases: &[(Change, &str, Level, &str)] = &[
        (|it| it.root = false, "user", Level::Problem, "run the agent as root"),
        (
            |it| it.kernel = "4.19.0-1".to_owned(),
            "kernel",
            Level::Problem,
            "older than 5.6",
        ),
        (|it| it.kernel = String::new(), "kernel", Level::Problem, "newer kernel"),
        (
            |it| it.cgroup_v2.clear(),
            "cgroups",
            Level::Problem,
            "v2 without cpu, memory, pids",
        ),
        (
            |it| it.cgroup_v2.retain(|name| name != "pids"),
            "cgroups",
            Level::Problem,
            "without pids",
        ),
        (
            |it| it.seccomp = "allow".to_owned(),
            "seccomp",
            Level::Problem,
            "CONFIG_SECCOMP_FILTER",
        ),
        (
            |it| it.room = Err("no".to_owned()),
            "disk",
            Level::Problem,
            "--data-dir",
        ),
        (
            |it| it.room = Ok(Room { bytes: 1, ..ROOM }),
            "disk",
            Level::Problem,
            "no task is started",
        ),
        (
            |it| it.room = Ok(Room { percent: 3, ..ROOM }),
            "disk",
            Level::Warning,
            "3 %",
        ),
        (|it| it.open_files = 1024, "open files", Level::Warning, "LimitNOFILE"),
        (|it| it.clock_steered = None, "clock", Level::Warning, "chrony"),
        (
            |it| it.clock_steered = Some(false),
            "clock",
            Level::Warning,
            "timesync-status",
        ),
        (
            |it| it.outgoing_ports = Some((15000, 61000)),
            "ports",
            Level::Warning,
            "begins after 32000",
        ),
        (
            |it| it.open_directories = vec!["/var/lib/containerd".into()],
            "containerd",
            Level::Warning,
            "chmod 0700 /var/lib/containerd",
        ),
        (
            |it| it.runc = Some("runc version 1.1.5+ds1".to_owned()),
            "runc",
            Level::Warning,
            "CVE-2025-31133",
        ),
        (
            |it| it.runc = Some("runc".to_owned()),
            "runc",
            Level::Warning,
            "runc --version",
        ),
        (
            |it| it.gpus = Ok(vec!["A100".to_owned()]),
            "GPU driver",
            Level::Problem,
            "1 of 2 GPUs",
        ),
        (
            |it| it.gpus = Err("mismatch".to_owned()),
            "GPU driver",
            Level::Problem,
            "the very version",
        ),
        (
            |it| it.nouveau = true,
            "GPU driver",
            Level::Problem,
            "blacklist nouveau",
        ),
        (
            |it| it.nvidia_toolkit = Some("NVIDIA Container Toolkit CLI version 1.17.3".to_owned()),
            "NVIDIA toolkit",
            Level::Warning,
            "1.17.8",
        ),
        (
            |it| it.cdi.1.push("/etc/cdi/x.yaml: no kind".to_owned()),
            "CDI",
            Level::Warning,
            "/etc/cdi/x.yaml",
        ),
    ];
    for (change, part, level, words) in cases {
        check(change, &wanted(false), part, *level, words);
    }
    let unloaded = |it: &mut Facts| {
        it.nvidia_driver = None;
        it.gpus = Err("no library".to_owned());
    };
    check(
        unloaded,
        &wanted(false),
        "GPU driver",
        Level::Problem,
        "modprobe nvidia",
    );
}

#[test]
fn the_old_hierarchy_is_as_good() {
    let names = ["cpu", "devices", "memory", "pids"].map(str::to_owned);
    let v1 = |it: &mut Facts| {
        it.cgroup_v2.clear();
        it.cgroup_v1 = names.to_vec();
    };
    check(v1, &wanted(false), "cgroups", Level::Ok, "v1");
    let without = |it: &mut Facts| {
        it.cgroup_v2.clear();
        it.cgroup_v1 = names[..2].to_vec();
    };
    check(
        without,
        &wanted(false),
        "cgroups",
        Level::Problem,
        "v1 without memory, pids",
    );
}

#[test]
fn what_containerd_needs_is_needed_only_with_it() {
    let none = |it: &mut Facts| {
        it.containerd = None;
        it.containerd_socket = false;
        it.runc = None;
    };
    let with = wanted(true);
    check(none, &wanted(false), "containerd", Level::Ok, "without it");
    check(none, &with, "containerd", Level::Problem, "--runtime process");
    check(none, &with, "runc", Level::Problem, "apt-get install runc");
    let stopped = |it: &mut Facts| it.containerd_socket = false;
    check(stopped, &wanted(false), "containerd", Level::Ok, "does not run");
}

#[test]
fn a_machine_without_gpus_is_well() {
    let none = |it: &mut Facts| {
        it.nvidia_driver = None;
        it.nvidia_devices = 0;
        it.gpus = Err("no library".to_owned());
    };
    check(none, &wanted(false), "GPU driver", Level::Ok, "no GPUs");
}
