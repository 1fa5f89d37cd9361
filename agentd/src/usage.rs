//! What is used here: sampled from time to time, kept in memory, and told to whoever asks.
//!
//! A [`Meter`] asks the runtime every [`USAGE_EVERY`] for the counts of the machine and of the containers that run, and keeps the last two
//! samples: a rate is the difference of two counts, over the time between them. GPUs are read by their [`DeviceSource`], by itself.
//!
//! It promises: an answer is made from what is in memory, so a runtime or a driver that hangs keeps nobody waiting; numbers that are too
//! old are not told, but that they are. What must never happen here: a write to the API server. Nothing of this is worth one.
//!
//! Tested against the fake runtime on virtual time, and over the node server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use muster_api::env::Env;
use muster_api::usage::{AgentUsage, GpuUsage, TaskUsage, Usage};
use muster_api::{Time, device::Device};
use muster_runtime::{Container, ContainerId, Runtime, State, Used};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::devices::{DeviceSource, Readings};
use crate::limits::{READINGS_LATE, TASKS_MEASURED, USAGE_DEADLINE, USAGE_EVERY, USAGE_FIRST, USAGE_LATE};
use crate::metrics;
use crate::spec;

/// Measures a machine and its tasks.
pub struct Meter {
    agent: String,
    runtime: Arc<dyn Runtime>,
    devices: Arc<dyn DeviceSource>,
    env: Arc<dyn Env>,
    samples: Mutex<Samples>,
}

/// The last two samples.
#[derive(Default)]
struct Samples {
    last: Option<Sample>,
    before: Option<Sample>,
    /// Why there is none newer than the last.
    problem: Option<String>,
}

/// What was counted at one moment.
struct Sample {
    at: Instant,
    wall: Timestamp,
    machine: Used,
    tasks: BTreeMap<ContainerId, Counted>,
}

/// What was counted of one container that runs.
struct Counted {
    /// Whose it is; nothing is used yet.
    task: TaskUsage,
    started_ms: i64,
    used: Used,
}

impl Meter {
    /// A meter that has not measured anything yet.
    pub fn new(agent: &str, runtime: Arc<dyn Runtime>, devices: Arc<dyn DeviceSource>, env: Arc<dyn Env>) -> Meter {
        Meter {
            agent: agent.to_owned(),
            runtime,
            devices,
            env,
            samples: Mutex::default(),
        }
    }

    /// Measures for ever.
    pub async fn run(&self) {
        // Twice at once, so that there are rates soon.
        self.measure().await;
        let mut due = interval_at(Instant::now() + USAGE_FIRST, USAGE_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            self.measure().await;
        }
    }

    async fn measure(&self) {
        let measured = timeout(USAGE_DEADLINE, self.sample()).await;
        let mut samples = self.samples();
        match measured {
            Ok(Ok(sample)) => {
                samples.before = samples.last.take();
                samples.last = Some(sample);
                samples.problem = None;
            }
            Ok(Err(error)) => samples.problem = Some(format!("the runtime does not say what tasks use: {error}")),
            Err(_) => samples.problem = Some("the runtime does not say in time what tasks use".to_owned()),
        }
    }

    async fn sample(&self) -> Result<Sample, muster_runtime::Error> {
        let running = running(self.runtime.list().await?);
        let ids: Vec<ContainerId> = running.keys().cloned().collect();
        let (at, wall) = (Instant::now(), self.env.now());
        let mut usage = self.runtime.usage(&ids).await?;
        let counted = |(id, (task, started_ms))| {
            let used = usage.containers.remove(&id).unwrap_or_default();
            let counted = Counted { task, started_ms, used };
            (id, counted)
        };
        Ok(Sample {
            at,
            wall,
            tasks: running.into_iter().map(counted).collect(),
            machine: usage.machine,
        })
    }

    fn samples(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    pub fn usage(&self) -> AgentUsage {
        let now = self.env.now();
        let mut usage = self.samples().usage();
        self.gpus(&mut usage, now);
        usage
    }

    fn gpus(&self, usage: &mut AgentUsage, now: Timestamp) {
        let Readings { at, mut gpus } = self.devices.readings();
        let age = at.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
        let devices = self.devices.discover();
        if at.is_some() && age > SignedDuration::try_from(READINGS_LATE).unwrap_or(SignedDuration::MAX) {
            let seconds = age.as_secs();
            let problem =
                format!("the driver of the GPUs has not answered for {seconds} s: their readings are not known");
            usage.problems.push(problem);
            gpus.clear();
        }
        let mut holders: BTreeMap<&str, (String, String)> = BTreeMap::new();
        for task in &usage.tasks {
            let holder = || (task.namespace.clone(), task.task.clone());
            holders.extend(task.devices.iter().map(|uuid| (uuid.as_str(), holder())));
        }
        let gpu = |(index, device): (usize, Device)| GpuUsage {
            task: holders.get(device.uuid.as_str()).cloned(),
            reading: gpus.remove(&device.uuid).unwrap_or_default(),
            index,
            model: device.model,
            pci_address: device.pci_address,
            driver: device.driver,
            health: format!("{:?}", device.health),
            uuid: device.uuid,
        };
        usage.gpus = devices.into_iter().enumerate().map(gpu).collect();
    }
}

/// The containers of tasks that run, with whose they are and since when.
fn running(containers: Vec<Container>) -> BTreeMap<ContainerId, (TaskUsage, i64)> {
    let task = |container: Container| {
        let State::Running { started_ms, .. } = container.state else {
            return None;
        };
        let (_, attempt) = spec::owner(&container)?;
        let key = spec::task_key(&container)?;
        let task = TaskUsage {
            namespace: key.namespace,
            task: key.name,
            framework: container
                .labels
                .get(spec::LABEL_FRAMEWORK)
                .unwrap_or_default()
                .to_owned(),
            attempt,
            devices: spec::devices(&container).map(str::to_owned).collect(),
            usage: Usage::default(),
        };
        Some((container.id, (task, started_ms)))
    };
    containers.into_iter().filter_map(task).collect()
}

impl Samples {
    fn usage(&self) -> AgentUsage {
        let mut usage = AgentUsage {
            problems: self.problem.iter().cloned().collect(),
            ..AgentUsage::default()
        };
        let Some(last) = self.last.as_ref().filter(|last| last.at.elapsed() <= USAGE_LATE) else {
            return usage;
        };
        usage.measured_at = Some(Time(last.wall));
        let window = self.before.as_ref().map(|before| last.at - before.at);
        let before = self.before.as_ref().map(|before| &before.machine);
        usage.machine = used(&last.machine, before.zip(window));
        for (id, counted) in &last.tasks {
            let before = self.before.as_ref().and_then(|before| before.tasks.get(id));
            let since = match before.map(|before| &before.used).zip(window) {
                Some(before) => Some(before),
                // It is new: all that it has used, it has since it was started.
                None => Some((&NOTHING, age(last.wall, counted.started_ms))),
            };
            usage.tasks.push(TaskUsage {
                usage: used(&counted.used, since),
                ..counted.task.clone()
            });
        }
        usage
            .tasks
            .sort_by(|a, b| (&a.namespace, &a.task).cmp(&(&b.namespace, &b.task)));
        usage.tasks_left_out = usage.tasks.len().saturating_sub(TASKS_MEASURED);
        usage.tasks.truncate(TASKS_MEASURED);
        usage
    }
}

/// What a container has used when it begins.
const NOTHING: Used = Used {
    cpu: Some(Duration::ZERO),
    memory_bytes: None,
    memory_limit_bytes: None,
    pids: None,
    oom_kills: None,
};

fn age(now: Timestamp, started_ms: i64) -> Duration {
    let age = now.as_millisecond().saturating_sub(started_ms);
    Duration::from_millis(u64::try_from(age).unwrap_or(0))
}

/// What is used, and the rate since an earlier count.
fn used(now: &Used, since: Option<(&Used, Duration)>) -> Usage {
    let window = since.map(|(_, window)| window).filter(|window| !window.is_zero());
    let spent = since.and_then(|(before, _)| Some(now.cpu?.saturating_sub(before.cpu?)));
    let rate = spent
        .zip(window)
        .map(|(spent, window)| spent.as_micros() * 1000 / window.as_micros().max(1));
    let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    Usage {
        cpu_milli: rate.map(whole),
        window_ms: rate.and(window).map(|window| whole(window.as_millis())),
        cpu_time_us: now.cpu.map(|cpu| whole(cpu.as_micros())),
        memory_bytes: now.memory_bytes,
        memory_limit_bytes: now.memory_limit_bytes,
        pids: now.pids,
        oom_kills: now.oom_kills,
    }
}

/// The routes: `GET /v1/usage` answers with [`AgentUsage`] as JSON, `GET /metrics` with the same for Prometheus.
pub fn routes(meter: Arc<Meter>) -> Router {
    Router::new()
        .route(
            "/v1/usage",
            get(async |Extract(meter): Extract<Arc<Meter>>| Json(meter.usage())),
        )
        .route("/metrics", get(show_metrics))
        .with_state(meter)
}

/// The route of the metrics alone, for a listener that anybody can reach.
pub fn metrics_route(meter: Arc<Meter>) -> Router {
    Router::new().route("/metrics", get(show_metrics)).with_state(meter)
}

async fn show_metrics(Extract(meter): Extract<Arc<Meter>>) -> Response {
    let text = metrics::text(&meter.agent, &meter.usage());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

#[cfg(test)]
mod tests;
