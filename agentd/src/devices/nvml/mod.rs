//! The GPUs of NVIDIA that the machine has, by the driver's own library (NVML), which is loaded at run time.
//!
//! Two threads ask the library: one reads what is there and waits for the driver's events, the other reads what the GPUs do ([`watch`]), so that
//! a reading that hangs delays no event. Both publish; everybody else reads what was published. It promises: a machine without driver has no
//! GPUs, and that is no error; a fault is published within a second of the driver's report; a GPU that disappears stays in the list, as
//! faulty; verdicts survive a restart of the agent, and end with the boot.
//!
//! Tested against a library of the same interface that plays a script (`tests/nvml.rs`); the pure parts by themselves.

mod read;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use muster_api::Timestamp;
use muster_api::device::{Device, DeviceHealth};
use muster_api::env::Env;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch as channel;

use super::cdi;
use super::driver::{Driver, Places};
use super::health::{Finding, Record};
use super::hygiene;
use super::{DeviceSource, Edits, Readings, UnknownDevice};
use read::{Gpu, Inventory};

/// How long one wait for events lasts: how late the thread notices that it shall end.
const EVENT_WAIT_MS: u32 = 250;

/// How often everything is read anew, in waits: every five seconds.
const REREAD_WAITS: u32 = 20;

/// How long a thread waits that has no events to wait for.
const NO_EVENTS_WAIT: Duration = Duration::from_millis(EVENT_WAIT_MS as u64);

/// The file that keeps the verdicts.
const RECORDS: &str = "devices.json";

/// The file of the CDI specification.
const SPEC_FILE: &str = "muster.dev-gpu.json";

/// The driver's library, as the loader finds it.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Where things are.
#[derive(Clone, Debug)]
pub struct NvmlConfig {
    /// The driver's library: a name that the loader finds, or a path.
    pub library: PathBuf,
    /// Where the driver's files and nodes are.
    pub places: Places,
    /// Where the kernel shows the devices of the PCI bus.
    pub pci: PathBuf,
    /// Where the CDI specification goes; `None`: nowhere.
    pub cdi: Option<PathBuf>,
    /// Where verdicts are kept.
    pub state: PathBuf,
    /// The boot that they hold for.
    pub boot_id: String,
}

impl NvmlConfig {
    /// The usual places; verdicts are kept in a directory of the agent.
    pub fn new(state: &Path, boot_id: &str) -> NvmlConfig {
        NvmlConfig {
            library: LIBRARY.into(),
            places: Places::default(),
            pci: "/sys/bus/pci/devices".into(),
            cdi: Some("/var/run/cdi".into()),
            state: state.to_owned(),
            boot_id: boot_id.to_owned(),
        }
    }
}

/// Why there are no GPUs.
#[derive(Debug, thiserror::Error)]
pub enum NoGpus {
    /// The driver's library is not there, or does not load.
    #[error("no driver: {0}")]
    Library(String),
    /// The library is there and the driver is not, or refuses.
    #[error("the driver does not answer: {0}")]
    Driver(#[source] NvmlError),
}

/// The GPUs of this machine.
pub struct NvmlDevices {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changes: channel::Sender<u64>,
    stop: AtomicBool,
    env: Arc<dyn Env>,
    config: NvmlConfig,
}

#[derive(Default)]
struct State {
    gpus: BTreeMap<String, Gpu>,
    spec: cdi::Spec,
    records: BTreeMap<String, Record>,
    readings: Readings,
    /// The last error that the driver has reported of each.
    xids: BTreeMap<String, u64>,
    /// What the driver could not read of each, in words.
    unanswered: BTreeMap<String, String>,
    /// Which of them tasks have; `None`: nobody has said yet.
    held: Option<BTreeSet<String>>,
    /// When a task has let go of each.
    released: BTreeMap<String, Timestamp>,
    /// Those that are not free although no task has them, and those that are so for too long, with what uses them.
    blocked: BTreeSet<String>,
    left: BTreeMap<String, String>,
}

/// What is kept of verdicts.
#[derive(Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    records: BTreeMap<String, Record>,
}

impl NvmlDevices {
    /// Loads the library and reads what is there; from then on a thread keeps it true until this is dropped.
    ///
    /// # Errors
    /// [`NoGpus`], with the reason.
    pub fn open(config: NvmlConfig, env: Arc<dyn Env>) -> Result<NvmlDevices, NoGpus> {
        let nvml = load(&config.library)?;
        let inventory = read::inventory(&nvml, &config.pci).map_err(NoGpus::Driver)?;
        let state = State {
            records: kept(&config),
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changes: channel::channel(0).0,
            stop: AtomicBool::new(false),
            env,
            config,
        });
        shared.publish(inventory);
        let nvml = Arc::new(nvml);
        shared.spawn("nvml", &nvml, |shared, nvml| shared.keep(nvml));
        shared.spawn("nvml-readings", &nvml, |shared, nvml| shared.watch(nvml));
        Ok(NvmlDevices { shared })
    }
}

fn load(library: &Path) -> Result<Nvml, NoGpus> {
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init();
    nvml.map_err(|error| match error {
        NvmlError::LibloadingError(error) => NoGpus::Library(error.to_string()),
        error => NoGpus::Driver(error),
    })
}

/// The models of the GPUs that the driver shows now.
///
/// # Errors
/// [`NoGpus`], with the reason.
pub(crate) fn models() -> Result<Vec<String>, NoGpus> {
    let nvml = load(Path::new(LIBRARY))?;
    let count = nvml.device_count().map_err(NoGpus::Driver)?;
    let model = |index| nvml.device_by_index(index).and_then(|device| device.name());
    (0..count).map(|index| model(index).map_err(NoGpus::Driver)).collect()
}

impl Drop for NvmlDevices {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// The verdicts of this boot.
fn kept(config: &NvmlConfig) -> BTreeMap<String, Record> {
    let text = std::fs::read_to_string(config.state.join(RECORDS)).unwrap_or_default();
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) if kept.boot_id == config.boot_id => kept.records,
        _ => BTreeMap::new(),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// A thread of its own, until this is dropped.
    fn spawn(self: &Arc<Self>, name: &str, nvml: &Arc<Nvml>, work: fn(&Shared, &Nvml)) {
        let (shared, nvml) = (Arc::clone(self), Arc::clone(nvml));
        let thread = std::thread::Builder::new().name(name.to_owned());
        if let Err(error) = thread.spawn(move || work(&shared, &nvml)) {
            tracing::error!(%error, "GPUs are not watched: no thread");
        }
    }

    /// The first thread: events as they come, and everything anew from time to time.
    fn keep(&self, nvml: &Nvml) {
        let mut events = self.listen(nvml);
        let mut waits = 0;
        while !self.stop.load(Ordering::Relaxed) {
            match events.as_ref().map(|events| events.wait(EVENT_WAIT_MS)) {
                Some(Ok(event)) => {
                    if let (Ok(uuid), Some(XidError::Value(xid))) = (event.device.uuid(), event.event_data) {
                        self.found(&uuid, Finding::Xid(xid));
                    }
                }
                Some(Err(NvmlError::Timeout)) => waits += 1,
                Some(Err(error)) => {
                    tracing::debug!(%error, "no events from the driver");
                    std::thread::sleep(NO_EVENTS_WAIT);
                    waits += 1;
                }
                None => {
                    std::thread::sleep(NO_EVENTS_WAIT);
                    waits += 1;
                }
            }
            if waits < REREAD_WAITS {
                continue;
            }
            waits = 0;
            match read::inventory(nvml, &self.config.pci) {
                Ok(inventory) => self.publish(inventory),
                Err(error) => tracing::warn!(%error, "GPUs cannot be read"),
            }
            if events.is_none() {
                events = self.listen(nvml);
            }
        }
    }

    /// The driver's reports of errors, of every card that makes them.
    fn listen<'a>(&self, nvml: &'a Nvml) -> Option<EventSet<'a>> {
        let mut events = nvml.create_event_set().ok()?;
        for uuid in self.state().gpus.keys() {
            let Ok(device) = nvml.device_by_uuid(uuid.as_str()) else {
                continue;
            };
            match device.register_events(EventTypes::CRITICAL_XID_ERROR, events) {
                Ok(set) => events = set,
                Err(error) => {
                    tracing::warn!(uuid, error = %error.error, "the driver makes no reports; only GPUs that disappear will be noticed");
                    return None;
                }
            }
        }
        Some(events)
    }

    /// Something was seen of one GPU.
    fn found(&self, uuid: &str, finding: Finding) {
        let now = self.env.now();
        tracing::warn!(uuid, ?finding, "the driver reports an error");
        self.change(|state| {
            if let Finding::Xid(number) = finding {
                state.xids.insert(uuid.to_owned(), number);
            }
            if state.gpus.contains_key(uuid) {
                let record = state.records.entry(uuid.to_owned()).or_default();
                *record = record.found(finding, now);
            }
        });
    }

    /// One GPU does not answer any more.
    fn lost(&self, uuid: &str) {
        let now = self.env.now();
        self.change(|state| state.lose(uuid, now));
    }

    /// Everything was read.
    fn publish(&self, inventory: Inventory) {
        let now = self.env.now();
        for problem in &inventory.problems {
            tracing::warn!(problem, "a GPU does not answer");
        }
        let lost: Vec<String> = {
            let state = self.state();
            let lost = state.gpus.keys().filter(|uuid| !inventory.gpus.contains_key(*uuid));
            lost.cloned().collect()
        };
        let driver = Driver::find(&self.config.places, &inventory.driver);
        self.change(|state| {
            for uuid in &lost {
                state.lose(uuid, now);
            }
            state.gpus.extend(inventory.gpus);
            let gpus = state.gpus.iter().map(|(uuid, gpu)| (uuid.as_str(), gpu.minor));
            state.spec = driver.spec(&self.config.places.dev, gpus);
            for record in state.records.values_mut() {
                *record = record.quiet(now);
            }
        });
    }

    /// Changes what is published, keeps verdicts, and tells everybody if something is different.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = (state.gpus.clone(), state.spec.clone(), state.records.clone());
        change(&mut state);
        if before.2 != state.records {
            self.note(&state.records);
        }
        if before.1 != state.spec
            && let Some(directory) = &self.config.cdi
            && let Err(error) = cdi::write(directory, SPEC_FILE, &state.spec)
        {
            tracing::warn!(%error, directory = %directory.display(), "the CDI specification is not written; tasks do not need it");
        }
        let changed = before.0 != state.gpus || before.1 != state.spec || before.2 != state.records;
        drop(state);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn note(&self, records: &BTreeMap<String, Record>) {
        let kept = Kept {
            boot_id: self.config.boot_id.clone(),
            records: records.clone(),
        };
        let path = self.config.state.join(RECORDS);
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(&kept)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "the verdicts on GPUs are not kept; a restart of the agent forgets them");
        }
    }
}

impl State {
    /// A GPU is not there any more. What is faulty already is so for a reason that says more.
    fn lose(&mut self, uuid: &str, now: Timestamp) {
        let record = self.records.entry(uuid.to_owned()).or_default();
        if record.health != DeviceHealth::Faulty {
            tracing::warn!(uuid, "a GPU is not there any more");
            *record = record.found(Finding::Lost, now);
        }
    }

    /// Those that are in use although no task has them, with what uses them.
    fn occupied_now(&self) -> BTreeMap<String, String> {
        let Some(held) = &self.held else {
            return BTreeMap::new();
        };
        let others = self.readings.gpus.iter().filter(|(uuid, _)| !held.contains(*uuid));
        let occupied = others.filter_map(|(uuid, reading)| Some((uuid.clone(), hygiene::left_behind(reading)?)));
        occupied.collect()
    }

    /// What speaks against letting in a GPU that was seen to then.
    fn self_test(&self, uuid: &str, since: Timestamp) -> Vec<String> {
        let reading = self.readings.gpus.get(uuid).filter(|_| self.readings.at > Some(since));
        let is_held = self.held.as_ref().is_none_or(|held| held.contains(uuid));
        hygiene::self_test(reading, self.unanswered.get(uuid).map(String::as_str), is_held)
    }

    /// The GPU with all that keeps it from being offered.
    fn shown(&self, gpu: &Gpu) -> Device {
        let device = self.device(gpu);
        match self.left.get(&device.uuid) {
            Some(why) if device.health.is_usable() => Device {
                health: DeviceHealth::Cordoned,
                message: format!("not free, though no task has it: {why}; it is offered again when it is"),
                ..device
            },
            _ => device,
        }
    }

    /// The GPU with what is thought of it.
    fn device(&self, gpu: &Gpu) -> Device {
        let record = self.records.get(&gpu.device.uuid).cloned().unwrap_or_default();
        let (health, message) = match (record.health, gpu.is_cut) {
            (DeviceHealth::Healthy | DeviceHealth::Suspect, true) => {
                let why = "it is in MIG mode, and GPUs are given out whole; `nvidia-smi -i UUID -mig 0` ends that";
                (DeviceHealth::Faulty, why.to_owned())
            }
            (health, _) => (health, record.message),
        };
        Device {
            health,
            message,
            ..gpu.device.clone()
        }
    }
}

impl DeviceSource for NvmlDevices {
    fn discover(&self) -> Vec<Device> {
        let state = self.shared.state();
        state.gpus.values().map(|gpu| state.shown(gpu)).collect()
    }

    fn edits(&self, uuids: &[&str]) -> Result<Edits, UnknownDevice> {
        let state = self.shared.state();
        let mut edits = state.spec.edits(uuids).map_err(|uuid| UnknownDevice(uuid.to_owned()))?;
        edits.env.extend(super::visible(uuids));
        Ok(edits)
    }

    fn fault(&self, uuid: &str) -> Option<String> {
        let state = self.shared.state();
        let device = state.device(state.gpus.get(uuid)?);
        (!device.health.is_usable()).then_some(device.message)
    }

    fn readings(&self) -> Readings {
        let state = self.shared.state();
        let mut readings = state.readings.clone();
        for (uuid, reading) in &mut readings.gpus {
            reading.last_xid = Some(state.xids.get(uuid).copied().unwrap_or(0));
        }
        readings
    }

    fn trust(&self, uuid: &str, since: Timestamp) {
        self.shared.change(|state| {
            let against = state.self_test(uuid, since);
            if let Some(record) = state.records.get_mut(uuid) {
                *record = if against.is_empty() {
                    record.trusted(since)
                } else {
                    record.kept_out(since, &against.join(", "))
                };
            }
        });
    }

    fn held(&self, uuids: BTreeSet<String>) {
        let now = self.shared.env.now();
        let mut state = self.shared.state();
        if state.held.as_ref() == Some(&uuids) {
            return;
        }
        let before = state.held.replace(uuids.clone()).unwrap_or_default();
        state.released.retain(|uuid, _| !uuids.contains(uuid));
        for uuid in before.difference(&uuids) {
            state.released.insert(uuid.clone(), now);
            // Until it was looked at again: who waits for that is woken.
            state.blocked.insert(uuid.clone());
        }
        state.left.retain(|uuid, _| !uuids.contains(uuid));
    }

    fn occupied(&self, uuid: &str) -> Option<String> {
        let state = self.shared.state();
        let reading = state.readings.gpus.get(uuid)?;
        state.held.as_ref().filter(|held| !held.contains(uuid))?;
        let released = state.released.get(uuid).copied();
        if released.is_some() && state.readings.at <= released {
            return Some("the task that had it has just ended".to_owned());
        }
        hygiene::left_behind(reading)
    }

    fn changes(&self) -> Option<channel::Receiver<u64>> {
        Some(self.shared.changes.subscribe())
    }
}
