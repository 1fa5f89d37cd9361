//! The second thread: reads what the GPUs do, again and again. What can tell a fault, and whether a GPU is free, is read twice a second, the rest
//! every other second: some thirty calls for each GPU, of some ten microseconds each.
//!
//! Every reading may be missing. A card that does not support one says so, and that is no error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_api::Timestamp;
use muster_api::usage::{Counts, GpuReading, Recovery};
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml};

use super::super::health::{Finding, findings, rule};
use super::super::hygiene::LEFT_FOR;
use super::Shared;

/// How often what can tell a fault is read.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// One in so many rounds reads everything.
const ALL_EVERY: u32 = 4;

/// What is read as fields, in one call.
const FIELDS: [u32; 9] = [
    field_id::NVML_FI_DEV_MEMORY_TEMP,
    field_id::NVML_FI_DEV_RETIRED_SBE,
    field_id::NVML_FI_DEV_RETIRED_DBE,
    field_id::NVML_FI_DEV_RETIRED_PENDING,
    field_id::NVML_FI_DEV_REMAPPED_COR,
    field_id::NVML_FI_DEV_REMAPPED_UNC,
    field_id::NVML_FI_DEV_REMAPPED_PENDING,
    field_id::NVML_FI_DEV_REMAPPED_FAILURE,
    field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
];

impl Shared {
    /// Reads until this is dropped.
    pub(super) fn watch(&self, nvml: &Nvml) {
        let mut round = 0u32;
        while !self.stop.load(Ordering::Relaxed) {
            self.read(nvml, round.is_multiple_of(ALL_EVERY));
            round = round.wrapping_add(1);
            std::thread::sleep(WATCH_EVERY);
        }
    }

    fn read(&self, nvml: &Nvml, all: bool) {
        let uuids: Vec<String> = self.state().gpus.keys().cloned().collect();
        for uuid in uuids {
            let before = self.state().readings.gpus.get(&uuid).cloned();
            let (reading, asked) = read(nvml, &uuid, before.clone().unwrap_or_default(), all);
            let mut state = self.state();
            if asked.is_lost {
                state.readings.gpus.remove(&uuid);
                drop(state);
                self.lost(&uuid);
                continue;
            }
            let found = findings(before.as_ref(), &reading);
            match asked.failed {
                Some(failed) => state.unanswered.insert(uuid.clone(), failed),
                None => state.unanswered.remove(&uuid),
            };
            state.readings.gpus.insert(uuid.clone(), reading);
            drop(state);
            self.told(&uuid, &found);
        }
        let now = self.env.now();
        self.state().readings.at = Some(now);
        self.tidy(now);
    }

    /// What a reading tells counts: what happened, and of what goes on the gravest.
    fn told(&self, uuid: &str, found: &[(Finding, String)]) {
        let now = self.env.now();
        let happened = found.iter().filter(|(finding, _)| *finding == Finding::Uncorrected);
        let goes_on = found.iter().filter(|(finding, _)| *finding != Finding::Uncorrected);
        let gravest = goes_on.max_by_key(|(finding, _)| rule(*finding).first);
        let known = self.state().records.get(uuid).cloned().unwrap_or_default();
        let news = gravest.filter(|(finding, _)| known.is_news(*finding, now));
        let noted: Vec<&(Finding, String)> = happened.chain(news).collect();
        if noted.is_empty() {
            return;
        }
        tracing::warn!(uuid, ?noted, "the readings of a GPU tell of something");
        self.change(|state| {
            let record = state.records.entry(uuid.to_owned()).or_default();
            for (finding, seen) in noted {
                *record = record.found_with(*finding, seen, now);
            }
        });
    }

    /// Which GPUs are not free although no task has them: who waits for one looks again when that changes.
    fn tidy(&self, now: Timestamp) {
        let mut state = self.state();
        let occupied = state.occupied_now();
        let late = |uuid: &String| {
            let since = state.released.get(uuid).copied();
            since.is_none_or(|since| now.duration_since(since).unsigned_abs() >= LEFT_FOR)
        };
        let left: BTreeMap<String, String> = occupied
            .iter()
            .filter(|(uuid, _)| late(uuid))
            .map(|(uuid, why)| (uuid.clone(), why.clone()))
            .collect();
        let blocked: BTreeSet<String> = occupied.into_keys().collect();
        let different = blocked != state.blocked || left.keys().ne(state.left.keys());
        state.blocked = blocked;
        if different {
            state.left = left;
        }
        drop(state);
        if different {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

/// Reads a GPU, all of it or what can tell a fault; and what was learned besides.
fn read(nvml: &Nvml, uuid: &str, before: GpuReading, all: bool) -> (GpuReading, Asked) {
    let mut asked = Asked::default();
    let mut reading = before;
    if let Some(device) = asked.known(nvml.device_by_uuid(uuid)) {
        vital(&device, &mut asked, &mut reading);
        use_of(&device, &mut asked, &mut reading);
        if all {
            rest(&device, &mut asked, &mut reading);
        }
    }
    (reading, asked)
}

/// What was learned while asking.
#[derive(Default)]
struct Asked {
    is_lost: bool,
    /// The first thing that the driver failed to read, other than what the card has not.
    failed: Option<String>,
}

impl Asked {
    fn known<T>(&mut self, answer: Result<T, NvmlError>) -> Option<T> {
        match answer {
            Ok(value) => return Some(value),
            Err(NvmlError::GpuLost) => self.is_lost = true,
            Err(NvmlError::NotSupported | NvmlError::NoPermission | NvmlError::FailedToLoadSymbol(_)) => {}
            // Cards and drivers that do not know a question say this of it.
            Err(NvmlError::InvalidArg | NvmlError::FunctionNotFound) => {}
            Err(error) => self.failed = self.failed.take().or(Some(error.to_string())),
        }
        None
    }
}

/// Who uses it, and how much of its memory is in use.
fn use_of(device: &Device<'_>, asked: &mut Asked, reading: &mut GpuReading) {
    let memory = asked.known(device.memory_info());
    reading.memory_total_bytes = memory.as_ref().map(|memory| memory.total);
    reading.memory_used_bytes = memory.as_ref().map(|memory| memory.used);
    reading.memory_free_bytes = memory.as_ref().map(|memory| memory.free);
    reading.memory_reserved_bytes = memory.map(|memory| memory.reserved);
    let computing = asked.known(device.running_compute_processes());
    reading.processes = computing.map(|computing| computing.iter().map(process).collect());
    let drawing = asked.known(device.running_graphics_processes());
    reading.drawing_bytes = drawing.map(|drawing| drawing.iter().map(|one| process(one).1).sum());
}

/// What can tell a fault.
fn vital(device: &Device<'_>, asked: &mut Asked, reading: &mut GpuReading) {
    reading.temperature = asked.known(device.temperature(TemperatureSensor::Gpu));
    reading.throttle_reasons = asked
        .known(device.current_throttle_reasons())
        .map(|reasons| reasons.bits());
    reading.ecc_volatile.uncorrected =
        asked.known(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile));
    let values = asked
        .known(device.field_values_for(&FIELDS.map(FieldId)))
        .unwrap_or_default();
    let values: Vec<Option<u64>> = values
        .into_iter()
        .map(|value| whole(&value.ok()?.value.ok()?))
        .collect();
    let field = |id: u32| {
        let place = FIELDS.iter().position(|known| *known == id)?;
        *values.get(place)?
    };
    reading.memory_temperature =
        field(field_id::NVML_FI_DEV_MEMORY_TEMP).and_then(|degrees| u32::try_from(degrees).ok());
    reading.retired_pages = Counts {
        corrected: field(field_id::NVML_FI_DEV_RETIRED_SBE),
        uncorrected: field(field_id::NVML_FI_DEV_RETIRED_DBE),
    };
    reading.retirement_pending = field(field_id::NVML_FI_DEV_RETIRED_PENDING).map(|pending| pending != 0);
    reading.remapped_rows = Counts {
        corrected: field(field_id::NVML_FI_DEV_REMAPPED_COR),
        uncorrected: field(field_id::NVML_FI_DEV_REMAPPED_UNC),
    };
    reading.remap_pending = field(field_id::NVML_FI_DEV_REMAPPED_PENDING).map(|pending| pending != 0);
    reading.remap_failed = field(field_id::NVML_FI_DEV_REMAPPED_FAILURE).map(|failed| failed != 0);
    reading.recovery = field(field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION).and_then(recovery);
}

/// The rest.
fn rest(device: &Device<'_>, asked: &mut Asked, reading: &mut GpuReading) {
    reading.slowdown_temperature = asked.known(device.temperature_threshold(TemperatureThreshold::Slowdown));
    reading.power_milliwatts = asked.known(device.power_usage());
    reading.power_limit_milliwatts = asked.known(device.enforced_power_limit());
    reading.energy_millijoules = asked.known(device.total_energy_consumption());
    let utilization = asked.known(device.utilization_rates());
    reading.utilization = utilization.as_ref().map(|rates| rates.gpu);
    reading.memory_utilization = utilization.map(|rates| rates.memory);
    reading.sm_clock_mhz = asked.known(device.clock_info(Clock::SM));
    reading.memory_clock_mhz = asked.known(device.clock_info(Clock::Memory));
    let mut errors = |kind, counter| asked.known(device.total_ecc_errors(kind, counter));
    reading.ecc_volatile.corrected = errors(MemoryError::Corrected, EccCounter::Volatile);
    reading.ecc_aggregate = Counts {
        corrected: errors(MemoryError::Corrected, EccCounter::Aggregate),
        uncorrected: errors(MemoryError::Uncorrected, EccCounter::Aggregate),
    };
    reading.pcie_replays = asked.known(device.pcie_replay_counter());
}

fn process(process: &ProcessInfo) -> (u32, u64) {
    let bytes = match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => bytes,
        UsedGpuMemory::Unavailable => 0,
    };
    (process.pid, bytes)
}

/// A value that cannot be negative.
fn whole(value: &SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(number) => Some(u64::from(*number)),
        SampleValue::U64(number) => Some(*number),
        SampleValue::I64(number) => u64::try_from(*number).ok(),
        SampleValue::F64(_) => None,
    }
}

/// What the number of a recommended action means (`nvmlDeviceGpuRecoveryAction_t`).
fn recovery(number: u64) -> Option<Recovery> {
    Some(match number {
        0 => Recovery::None,
        1 => Recovery::Reset,
        2 => Recovery::Reboot,
        3 => Recovery::DrainP2p,
        4 => Recovery::DrainAndReset,
        _ => return None,
    })
}
