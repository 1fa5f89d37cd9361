//! The GPUs of a machine through NVML's interface: the agent's own code and the real bindings, over a library that plays a script
//! (`nvml/library.c`).

#![allow(
    clippy::disallowed_methods,
    reason = "the library is asked by a thread of its own, in real time"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use muster_agentd::devices::driver::Places;
use muster_agentd::devices::{DeviceSource, NoGpus, NvmlConfig, NvmlDevices};
use muster_api::device::{Device, DeviceHealth};
use muster_api::env::{Env as _, SystemEnv};
use muster_api::topology::{Path as Way, between};
use muster_api::usage::{Counts, GpuReading, Recovery};
use tempfile::TempDir;

/// How long something may take that happens within a second.
const PATIENCE: Duration = Duration::from_secs(20);

const TWO: &str = "driver 550.54.15
gpu GPU-a 0 00000000:1B:00.0 81559 9.0 0 NVIDIA H100 80GB HBM3
gpu GPU-b 3 00000000:43:00.0 81559 9.0 0 NVIDIA H100 80GB HBM3
";

/// A machine that a script describes.
struct Machine {
    root: TempDir,
}

/// The library, compiled once.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libnvidia-ml-{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvml/library.c");
        let flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1", "-o"];
        let built = Command::new("cc")
            .args(flags)
            .arg(&out)
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(built.expect("there is a C compiler: apt install gcc").success());
        out
    })
}

impl Machine {
    fn new(script: &str) -> Machine {
        let machine = Machine {
            root: tempfile::tempdir().expect("a directory"),
        };
        for directory in ["dev", "lib", "bin", "state", "cdi", "pci"] {
            fs::create_dir(machine.path(directory)).expect("made");
        }
        // Each machine has a copy of its own: the loader knows libraries by their file.
        fs::copy(library(), machine.path("libnvidia-ml.so.1")).expect("copied");
        fs::write(machine.path("lib/libcuda.so.550.54.15"), "").expect("written");
        std::os::unix::fs::symlink("libcuda.so.550.54.15", machine.path("lib/libcuda.so.1")).expect("linked");
        fs::write(machine.path("dev/nvidiactl"), "").expect("written");
        machine.script(script);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What the machine is from now on.
    fn script(&self, script: &str) {
        fs::write(self.path("script.new"), script).expect("written");
        fs::rename(self.path("script.new"), self.path("script")).expect("moved");
    }

    fn open(&self, boot: &str) -> Result<NvmlDevices, NoGpus> {
        let config = NvmlConfig {
            library: self.path("libnvidia-ml.so.1"),
            places: Places {
                dev: self.path("dev"),
                libraries: vec![self.path("lib")],
                tools: vec![self.path("bin")],
            },
            pci: self.path("pci"),
            cdi: Some(self.path("cdi")),
            ..NvmlConfig::new(&self.path("state"), boot)
        };
        NvmlDevices::open(config, Arc::new(SystemEnv))
    }
}

/// Waits until the GPU is what is expected, and says how it is.
#[track_caller]
fn until(devices: &NvmlDevices, uuid: &str, expect: impl Fn(&Device) -> bool) -> Device {
    let started = Instant::now();
    loop {
        let found = devices
            .discover()
            .into_iter()
            .find(|device| device.uuid == uuid)
            .expect("it stays in the list");
        if expect(&found) {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{found:?}");
        std::thread::yield_now();
    }
}

#[test]
fn gpus_are_described_as_the_driver_does() {
    let machine = Machine::new(TWO);
    let devices = machine.open("b1").expect("there are GPUs").discover();
    assert_eq!(devices.len(), 2);
    let first = &devices[0];
    assert_eq!(
        (first.uuid.as_str(), first.model.as_str()),
        ("GPU-a", "NVIDIA H100 80GB HBM3")
    );
    assert_eq!(first.memory.bytes(), 81_559 << 20);
    assert_eq!(first.compute_capability.as_deref(), Some("9.0"));
    assert_eq!(first.driver.as_deref(), Some("550.54.15"));
    assert_eq!(first.pci_address.as_deref(), Some("0000:1b:00.0"));
    assert_eq!((first.health, first.message.as_str()), (DeviceHealth::Healthy, ""));
}

#[test]
fn ways_between_gpus_are_nvlinks_or_what_pcie_has() {
    let script = format!(
        "{TWO}gpu GPU-c 4 00000000:44:00.0 81559 9.0 0 NVIDIA H100 80GB HBM3
nvlink GPU-a 00000000:05:00.0 18
nvlink GPU-b 00000000:06:00.0 16
level GPU-a GPU-c 50
level GPU-b GPU-c 10
"
    );
    let machine = Machine::new(&script);
    let devices = machine.open("b1").expect("there are GPUs").discover();
    assert_eq!(
        between(&devices[0], &devices[1]),
        Way::NvLink(16),
        "through switches, as many as both have"
    );
    assert_eq!(between(&devices[0], &devices[2]), Way::System);
    assert_eq!(between(&devices[2], &devices[1]), Way::Switch);
}

#[test]
fn a_container_gets_the_nodes_of_its_gpus_and_the_drivers_files() {
    let machine = Machine::new(TWO);
    let devices = machine.open("b1").expect("there are GPUs");
    let edits = devices.edits(&["GPU-b"]).expect("it is here");
    let nodes: Vec<(&Path, &Path)> = edits
        .devices
        .iter()
        .map(|node| (node.path.as_path(), node.on_machine()))
        .collect();
    let (own, control) = (machine.path("dev/nvidia3"), machine.path("dev/nvidiactl"));
    assert_eq!(
        nodes,
        [
            (Path::new("/dev/nvidia3"), own.as_path()),
            (Path::new("/dev/nvidiactl"), control.as_path())
        ]
    );
    assert!(
        edits
            .mounts
            .iter()
            .any(|mount| mount.target.ends_with("libcuda.so.1") && mount.read_only)
    );
    assert_eq!(edits.env["NVIDIA_VISIBLE_DEVICES"], "GPU-b");
    assert_eq!(
        devices.edits(&[]).expect("nothing"),
        Default::default(),
        "no GPU, no node and no file"
    );
    assert!(devices.edits(&["GPU-x"]).is_err());
    let spec = fs::read_to_string(machine.path("cdi/muster.dev-gpu.json")).expect("it is written");
    assert!(
        spec.contains("\"kind\": \"muster.dev/gpu\"") && spec.contains("\"name\": \"GPU-b\""),
        "{spec}"
    );
}

#[test]
fn a_fault_is_seen_at_once_and_only_on_its_gpu() {
    let machine = Machine::new(TWO);
    let devices = machine.open("b1").expect("there are GPUs");
    let mut changes = devices.changes().expect("they change");
    changes.mark_unchanged();
    machine.script(&format!("{TWO}xid GPU-b 31\nxid GPU-b 48\n"));
    let device = until(&devices, "GPU-b", |device| device.health == DeviceHealth::Cordoned);
    assert!(device.message.starts_with("XID 48: "), "{device:?}");
    assert!(devices.fault("GPU-b").is_some_and(|why| why.contains("reset it")));
    assert!(changes.has_changed().expect("it lives"));
    assert_eq!(devices.fault("GPU-a"), None);
    assert_eq!(devices.discover()[0].health, DeviceHealth::Healthy);
}

const READINGS: &str = "read GPU-a temperature 64
read GPU-a slowdown 90
read GPU-a power 672500
read GPU-a power-limit 700000
read GPU-a utilization 98
read GPU-a memory-utilization 40
read GPU-a used-mib 72704
read GPU-a sm-clock 1980
read GPU-a corrected 2
read GPU-a uncorrected 0
read GPU-a corrected-ever 12
read GPU-a remapped-corrected 1
read GPU-a remapping 0
read GPU-a memory-temperature 71
read GPU-a throttle 4
read GPU-a replays 3
read GPU-a recovery 0
process GPU-a 4711 72704
";

/// Waits until the readings of a GPU are what is expected.
#[track_caller]
fn until_read(devices: &NvmlDevices, uuid: &str, expect: impl Fn(&GpuReading) -> bool) -> GpuReading {
    let started = Instant::now();
    loop {
        let readings = devices.readings();
        if let Some(reading) = readings.gpus.get(uuid).filter(|reading| expect(reading)) {
            return reading.clone();
        }
        assert!(started.elapsed() < PATIENCE, "{readings:?}");
        std::thread::yield_now();
    }
}

#[test]
fn readings_are_told_and_what_a_card_does_not_support_is_missing() {
    let machine = Machine::new(&format!("{TWO}{READINGS}"));
    let devices = machine.open("b1").expect("there are GPUs");
    let reading = until_read(&devices, "GPU-a", |reading| reading.processes.is_some());
    let expect = GpuReading {
        temperature: Some(64),
        memory_temperature: Some(71),
        slowdown_temperature: Some(90),
        power_milliwatts: Some(672_500),
        power_limit_milliwatts: Some(700_000),
        utilization: Some(98),
        memory_utilization: Some(40),
        memory_total_bytes: Some(81_559 << 20),
        memory_used_bytes: Some(72_704 << 20),
        memory_free_bytes: Some(8_855 << 20),
        memory_reserved_bytes: Some(0),
        sm_clock_mhz: Some(1980),
        ecc_volatile: Counts {
            corrected: Some(2),
            uncorrected: Some(0),
        },
        ecc_aggregate: Counts {
            corrected: Some(12),
            uncorrected: None,
        },
        remapped_rows: Counts {
            corrected: Some(1),
            uncorrected: None,
        },
        remap_pending: Some(false),
        throttle_reasons: Some(4),
        pcie_replays: Some(3),
        drawing_bytes: Some(0),
        processes: Some([(4711, 72_704 << 20)].into()),
        recovery: Some(Recovery::None),
        last_xid: Some(0),
        ..GpuReading::default()
    };
    assert_eq!(reading, expect);
    let other = until_read(&devices, "GPU-b", |reading| reading.processes.is_some());
    assert_eq!(
        (other.temperature, other.power_milliwatts),
        (None, None),
        "it supports neither"
    );
    assert_eq!(devices.discover()[1].health, DeviceHealth::Healthy);
}

#[test]
fn a_driver_that_hangs_keeps_nobody_waiting_and_delays_no_event() {
    let machine = Machine::new(&format!("{TWO}{READINGS}hang GPU-a\n"));
    let devices = machine.open("b1").expect("there are GPUs");
    assert_eq!(devices.readings().at, None, "nothing was read yet");
    machine.script(&format!("{TWO}{READINGS}hang GPU-a\nxid GPU-a 48\n"));
    until(&devices, "GPU-a", |device| device.health == DeviceHealth::Cordoned);
    assert_eq!(devices.readings().at, None);
    machine.script(&format!("{TWO}{READINGS}xid GPU-a 48\n"));
    let reading = until_read(&devices, "GPU-a", |reading| reading.temperature.is_some());
    assert_eq!(reading.last_xid, Some(48));
}

/// A card in good order that can be read.
const GOOD: &str = "read GPU-a temperature 60
read GPU-a slowdown 90
read GPU-a uncorrected 0
read GPU-a throttle 4
read GPU-a remapping 0
read GPU-a remap-failed 0
read GPU-a recovery 0
";

#[test]
fn every_way_to_tell_of_a_fault_leads_to_its_verdict() {
    use DeviceHealth::{Cordoned, Faulty, Suspect};
    for (told, health, part) in [
        ("xid GPU-a 48", Cordoned, "XID 48"),
        ("xid GPU-a 79", Faulty, "XID 79"),
        ("xid GPU-a 74", Suspect, "NVLink"),
        ("lost GPU-a", Faulty, "fell off the bus"),
        ("read GPU-a uncorrected 1", Suspect, "(1 since the driver was loaded)"),
        ("read GPU-a temperature 95", Suspect, "(95C, and 90C is the limit)"),
        ("read GPU-a throttle 64", Suspect, "too hot"),
        ("read GPU-a throttle 128", Suspect, "power supply"),
        ("read GPU-a remapping 1", Suspect, "wait to be replaced"),
        ("read GPU-a remap-failed 1", Faulty, "exchanged"),
        ("read GPU-a retiring 1", Suspect, "wait to be retired"),
        ("read GPU-a recovery 4", Suspect, "wants a reset"),
        ("read GPU-a recovery 1", Cordoned, "wants a reset"),
        ("read GPU-a recovery 2", Faulty, "wants a restart"),
    ] {
        let machine = Machine::new(&format!("{TWO}{GOOD}"));
        let devices = machine.open("b1").expect("there are GPUs");
        until_read(&devices, "GPU-a", |reading| reading.slowdown_temperature.is_some());
        assert_eq!(devices.discover()[0].health, DeviceHealth::Healthy);
        let started = Instant::now();
        machine.script(&format!("{TWO}{GOOD}{told}\n"));
        let device = until(&devices, "GPU-a", |device| device.health != DeviceHealth::Healthy);
        println!("{told}: {} ms", started.elapsed().as_millis());
        assert_eq!(device.health, health, "{device:?}");
        assert!(device.message.contains(part), "{device:?}");
        assert_eq!(devices.fault("GPU-a").is_some(), !health.is_usable(), "{told}");
        assert_eq!(devices.fault("GPU-b"), None, "{told}");
    }
}

/// Waits until everything was read once more, and what it tells was heard.
fn until_read_again(devices: &NvmlDevices) {
    let (before, started) = (devices.readings().at, Instant::now());
    while devices.readings().at == before {
        assert!(started.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

fn held(devices: &NvmlDevices, uuids: &[&str]) {
    devices.held(uuids.iter().map(|uuid| (*uuid).to_owned()).collect());
}

#[test]
fn what_a_task_has_left_on_its_gpu_keeps_the_next_one_waiting_and_is_told() {
    let machine = Machine::new(&format!("{TWO}process GPU-a 4711 3072\n"));
    let devices = machine.open("b1").expect("there are GPUs");
    let used = |reading: &GpuReading| reading.processes.as_ref().is_some_and(|all| !all.is_empty());
    until_read(&devices, "GPU-a", used);
    assert_eq!(devices.occupied("GPU-a"), None, "nobody has said what tasks have");
    held(&devices, &["GPU-a"]);
    assert_eq!(devices.occupied("GPU-a"), None, "its task uses it");
    held(&devices, &[]);
    let why = devices.occupied("GPU-a").expect("it was not looked at since");
    assert!(why.contains("has just ended"), "{why}");
    until_read_again(&devices);
    let why = devices
        .occupied("GPU-a")
        .expect("its task has gone, and something is there");
    assert!(why.starts_with("process 4711 uses it, with 3.0Gi"), "{why}");
    assert_eq!(devices.occupied("GPU-b"), None);
    let device = until(&devices, "GPU-a", |device| device.health == DeviceHealth::Cordoned);
    assert!(device.message.contains("process 4711"), "{device:?}");
    assert_eq!(
        devices.fault("GPU-a"),
        None,
        "it has no fault: what waits for it goes on waiting"
    );
    let mut changes = devices.changes().expect("they change");
    changes.mark_unchanged();
    machine.script(TWO);
    until(&devices, "GPU-a", |device| device.health == DeviceHealth::Healthy);
    assert_eq!(devices.occupied("GPU-a"), None);
    assert!(changes.has_changed().expect("it lives"), "who waits is woken");
}

#[test]
fn a_gpu_that_was_seen_to_is_let_in_again_when_its_self_test_passes() {
    let machine = Machine::new(&format!("{TWO}{GOOD}"));
    let devices = machine.open("b1").expect("there are GPUs");
    held(&devices, &[]);
    machine.script(&format!("{TWO}{GOOD}xid GPU-a 48\nread GPU-a remapping 1\n"));
    until(&devices, "GPU-a", |device| device.health == DeviceHealth::Cordoned);
    until_read(&devices, "GPU-a", |reading| reading.remap_pending == Some(true));
    until_read_again(&devices);
    let seen_to = SystemEnv.now();
    // The agent says it again and again, as long as the operator's word stands.
    let device = until(&devices, "GPU-a", |device| {
        devices.trust("GPU-a", seen_to);
        device.message.contains("rows of its memory wait")
    });
    assert_eq!(device.health, DeviceHealth::Cordoned);
    assert!(
        device.message.contains("XID 48") && device.message.contains("self-test fails"),
        "{device:?}"
    );
    // It was reset.
    machine.script(&format!("{TWO}{GOOD}xid GPU-a 48\n"));
    until(&devices, "GPU-a", |device| {
        devices.trust("GPU-a", seen_to);
        device.health == DeviceHealth::Healthy
    });
}

#[test]
fn a_gpu_that_disappears_stays_in_the_list_as_faulty() {
    let machine = Machine::new(TWO);
    let devices = machine.open("b1").expect("there are GPUs");
    machine.script(&format!("{TWO}lost GPU-a\n"));
    let device = until(&devices, "GPU-a", |device| device.health == DeviceHealth::Faulty);
    assert!(device.message.contains("fell off the bus"), "{device:?}");
    assert_eq!(devices.discover().len(), 2);
}

#[test]
fn verdicts_outlive_the_agent_and_end_with_the_boot() {
    let machine = Machine::new(TWO);
    let devices = machine.open("b1").expect("there are GPUs");
    machine.script(&format!("{TWO}xid GPU-a 79\n"));
    until(&devices, "GPU-a", |device| device.health == DeviceHealth::Faulty);
    drop(devices);
    machine.script(TWO);
    let again = machine.open("b1").expect("there are GPUs");
    assert!(again.fault("GPU-a").is_some_and(|why| why.contains("XID 79")));
    drop(again);
    assert_eq!(machine.open("b2").expect("there are GPUs").fault("GPU-a"), None);
}

#[test]
fn a_gpu_that_is_cut_into_instances_is_not_given_out_and_says_what_to_do() {
    let machine = Machine::new(&TWO.replace(
        "GPU-a 0 00000000:1B:00.0 81559 9.0 0",
        "GPU-a 0 00000000:1B:00.0 81559 9.0 1",
    ));
    let devices = machine.open("b1").expect("there are GPUs");
    assert!(devices.fault("GPU-a").is_some_and(|why| why.contains("-mig 0")));
    assert_eq!(devices.fault("GPU-b"), None);
}

#[test]
fn a_machine_without_driver_has_no_gpus_and_says_why() {
    let machine = Machine::new(TWO);
    let mut config = NvmlConfig::new(&machine.path("state"), "b1");
    config.library = machine.path("nowhere.so");
    let error = NvmlDevices::open(config, Arc::new(SystemEnv))
        .err()
        .expect("there is none");
    assert!(matches!(error, NoGpus::Library(_)), "{error}");
    machine.script("broken\n");
    assert!(matches!(machine.open("b1").err(), Some(NoGpus::Driver(_))));
}
