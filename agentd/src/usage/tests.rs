use muster_api::device::Device;
use muster_api::usage::GpuReading;
use muster_runtime::fake::{Behaviour, Call, Fault};
use muster_runtime::{ContainerSpec, FakeRuntime, Limits, Rootfs};
use tokio::time::advance;

use super::*;
use crate::devices::{Edits, SimulatedDevices, UnknownDevice};

const START_MS: i64 = 1_800_000_000_000;

/// A wall clock that goes with tokio's.
struct Clock(Instant);

impl Env for Clock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.0.elapsed().as_millis()).expect("tests are short");
        Timestamp::from_millisecond(START_MS + elapsed).expect("in range")
    }

    fn uid(&self) -> uuid::Uuid {
        uuid::Uuid::nil()
    }
}

struct World {
    runtime: FakeRuntime,
    meter: Arc<Meter>,
    _runs: tokio::task::JoinSet<()>,
}

impl World {
    fn new(devices: Arc<dyn DeviceSource>) -> World {
        let env: Arc<dyn Env> = Arc::new(Clock(Instant::now()));
        let clock = Arc::clone(&env);
        let runtime = FakeRuntime::new(move || clock.now().as_millisecond());
        runtime.set_behaviours(|_, _| Behaviour::forever());
        let meter = Arc::new(Meter::new("a1", Arc::new(runtime.clone()), devices, env));
        let mut runs = tokio::task::JoinSet::new();
        let running = Arc::clone(&meter);
        runs.spawn(async move { running.run().await });
        World {
            runtime,
            meter,
            _runs: runs,
        }
    }

    async fn start(&self, task: &str, attempt: u32, milli: u64) -> ContainerId {
        let id = spec::container_id(task, attempt).expect("plain");
        let labels = [
            (spec::LABEL_UID, task),
            (spec::LABEL_NAMESPACE, "ml"),
            (spec::LABEL_TASK, task),
            (spec::LABEL_FRAMEWORK, "default"),
            (spec::LABEL_ATTEMPT, &attempt.to_string()),
            (spec::LABEL_DEVICES, "GPU-sim-a1-00"),
        ];
        let spec = ContainerSpec {
            argv: vec!["x".to_owned()],
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits {
                cpu_request_milli: milli,
                memory_bytes: Some(1000),
                ..Limits::default()
            },
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        self.runtime.create(&id, &spec).await.expect("created");
        self.runtime.start(&id).await.expect("started");
        id
    }

    /// Lets time pass, and what is due be done.
    async fn pass(&self, seconds: u64) {
        let settle = async || {
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        };
        settle().await;
        for _ in 0..seconds {
            advance(Duration::from_secs(1)).await;
            settle().await;
        }
    }
}

fn simulated() -> Arc<dyn DeviceSource> {
    Arc::new(SimulatedDevices::parse("2xL4", "a1").expect("well-formed"))
}

#[tokio::test(start_paused = true)]
async fn rates_are_those_between_the_last_two_samples_and_say_their_window() {
    let world = World::new(simulated());
    assert_eq!(world.meter.usage().measured_at, None, "nothing was measured yet");
    world.pass(1).await;
    world.start("t1", 3, 500).await;
    world.pass(10).await;
    let usage = world.meter.usage();
    let new = &usage.tasks[0].usage;
    assert_eq!(
        (new.cpu_milli, new.window_ms),
        (Some(500), Some(10_000)),
        "since it was started: {usage:?}"
    );
    world.pass(20).await;
    let usage = world.meter.usage();
    let task = &usage.tasks[0];
    assert_eq!(
        (task.namespace.as_str(), task.task.as_str(), task.attempt),
        ("ml", "t1", 3)
    );
    assert_eq!((task.usage.cpu_milli, task.usage.window_ms), (Some(500), Some(10_000)));
    assert_eq!(
        (task.usage.memory_bytes, task.usage.memory_limit_bytes),
        (Some(500), Some(1000))
    );
    assert_eq!(usage.machine.cpu_milli, Some(500));
    let holder = Some(("ml".to_owned(), "t1".to_owned()));
    assert_eq!((&usage.gpus[0].task, &usage.gpus[1].task), (&holder, &None));
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_not_told_of() {
    let world = World::new(simulated());
    let id = world.start("t1", 1, 100).await;
    world.pass(11).await;
    assert_eq!(world.meter.usage().tasks.len(), 1);
    world.runtime.exit(&id, 0);
    world.pass(11).await;
    assert_eq!(world.meter.usage().tasks, []);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_keeps_nobody_waiting_and_old_numbers_are_not_told() {
    let world = World::new(simulated());
    world.start("t1", 1, 100).await;
    world.pass(11).await;
    world
        .runtime
        .set_faults(|call, _| (call == Call::Usage).then_some(Fault::Hang));
    world.pass(20).await;
    let usage = world.meter.usage();
    assert!(usage.problems[0].contains("in time"), "{usage:?}");
    assert_eq!(usage.tasks.len(), 1, "the last numbers are young enough");
    world.pass(USAGE_LATE.as_secs()).await;
    let usage = world.meter.usage();
    assert_eq!((usage.measured_at.clone(), usage.tasks.len()), (None, 0), "{usage:?}");
    assert_eq!(usage.gpus.len(), 2, "GPUs are told of by somebody else");
}

/// A driver that answered once.
struct Hanging(Timestamp);

impl DeviceSource for Hanging {
    fn discover(&self) -> Vec<Device> {
        let uuid = "GPU-a".to_owned();
        vec![Device {
            uuid,
            ..Device::default()
        }]
    }

    fn edits(&self, _uuids: &[&str]) -> Result<Edits, UnknownDevice> {
        Ok(Edits::default())
    }

    fn readings(&self) -> Readings {
        let reading = GpuReading {
            temperature: Some(50),
            ..GpuReading::default()
        };
        Readings {
            at: Some(self.0),
            gpus: [("GPU-a".to_owned(), reading)].into(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readings_of_a_driver_that_hangs_are_not_told_and_that_it_hangs_is() {
    let since = Timestamp::from_millisecond(START_MS).expect("in range");
    let world = World::new(Arc::new(Hanging(since)));
    assert_eq!(world.meter.usage().gpus[0].reading.temperature, Some(50));
    world.pass(12).await;
    let usage = world.meter.usage();
    assert_eq!(usage.gpus[0].reading, GpuReading::default());
    assert!(usage.problems[0].contains("has not answered for 12 s"), "{usage:?}");
}
