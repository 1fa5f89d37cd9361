//! What agents measure: of their machine, of tasks that run, and of GPUs. Told to whoever asks, and written nowhere.
//!
//! Every number may be missing: the kernel, the runtime or the driver does not tell it, or not yet. What is missing is never zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Time;

/// What one agent has measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentUsage {
    /// When machine and tasks were measured last; `None`: not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<Time>,
    /// The whole machine, with what is not Muster's.
    pub machine: Usage,
    /// The tasks that run, by namespace and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskUsage>,
    /// How many tasks are left out of `tasks`, because there are too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub tasks_left_out: usize,
    /// The GPUs, by UUID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUsage>,
    /// What could not be measured, and why; empty when all could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What something uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Thousandths of a CPU, on average over the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    /// The window, in milliseconds: between two measurements, or since the beginning of what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// CPU time since the beginning, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_time_us: Option<u64>,
    /// Bytes of memory that could not be had back without ending something: all but files that were not used for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that there may be at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Processes that were killed for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

/// What a task uses that runs. Counts begin anew with each attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub task: String,
    /// Its framework.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub framework: String,
    /// Which run of its command, from 1.
    pub attempt: u32,
    /// The UUIDs of its GPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What a GPU does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuUsage {
    /// Its identity.
    pub uuid: String,
    /// The model, as the driver names it.
    pub model: String,
    /// Its place among the GPUs of the agent, from 0.
    pub index: usize,
    /// Where it is on the PCI bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// The version of its driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Whether tasks may be given it: `Healthy`, `Suspect`, `Cordoned` or `Faulty`.
    pub health: String,
    /// Namespace and name of the task that runs with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<(String, String)>,
    /// What was read of it.
    #[serde(flatten)]
    pub reading: GpuReading,
}

/// What the driver says of a GPU at one moment. What a card does not support is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuReading {
    /// Of the chip, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<u32>,
    /// Of its memory, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_temperature: Option<u32>,
    /// At which temperature of the chip it slows itself down, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown_temperature: Option<u32>,
    /// Power drawn, in milliwatts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u32>,
    /// Power that it may draw at most, in milliwatts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_milliwatts: Option<u32>,
    /// Energy since the driver was loaded, in millijoules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_millijoules: Option<u64>,
    /// Part of the time in which it computed, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<u32>,
    /// Part of the time in which its memory was read or written, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_utilization: Option<u32>,
    /// Bytes of memory, all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Bytes of memory that programs have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Bytes of memory that programs can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_free_bytes: Option<u64>,
    /// Bytes of memory that the driver keeps for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reserved_bytes: Option<u64>,
    /// Clock of the processors, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Errors of memory since the driver was loaded.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub ecc_volatile: Counts,
    /// Errors of memory in the life of the card.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub ecc_aggregate: Counts,
    /// Rows of memory that spare ones stand in for.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub remapped_rows: Counts,
    /// Whether rows wait for a reset to be remapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_pending: Option<bool>,
    /// Whether a row could not be remapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_failed: Option<bool>,
    /// Pages of memory that are not used any more, on cards that do not remap rows.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub retired_pages: Counts,
    /// Whether pages wait for a restart to be retired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retirement_pending: Option<bool>,
    /// Why the clocks are lower than they could be, as the driver's bits; 0: they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<u64>,
    /// Packets on the PCI bus that were sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<u32>,
    /// Bytes of memory that programs have which draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drawing_bytes: Option<u64>,
    /// Programs that compute on it, by process id, with the bytes of its memory that each has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<BTreeMap<u32, u64>>,
    /// What the driver recommends doing about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// The number of the last error that the driver has reported; 0: none since the agent was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_xid: Option<u64>,
}

/// How often something happened that could be made good, and that could not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// It could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrected: Option<u64>,
    /// It could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncorrected: Option<u64>,
}

impl Counts {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Counts::default()
    }
}

/// What a driver recommends doing about a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Recovery {
    /// Nothing.
    #[default]
    None,
    /// Nothing now; to have it reset when it is free.
    DrainAndReset,
    /// To end what uses other GPUs by way of it.
    DrainP2p,
    /// To reset it.
    Reset,
    /// To restart the machine.
    Reboot,
}

/// Why the clocks of a GPU are low, by the bits of NVML (`nvmlClocksEventReason…`). Being idle is no reason.
const REASONS: [(u64, &str); 8] = [
    (0x002, "application-clocks"),
    (0x004, "power-cap"),
    (0x008, "hardware-slowdown"),
    (0x010, "sync-boost"),
    (0x020, "software-thermal"),
    (0x040, "hardware-thermal"),
    (0x080, "power-brake"),
    (0x100, "display-clocks"),
];

impl GpuReading {
    /// Every reason that there is, with whether it holds; empty when none is known.
    pub fn throttling(&self) -> Vec<(&'static str, bool)> {
        let of = |bits: u64| REASONS.iter().map(move |(bit, name)| (*name, bits & bit != 0));
        self.throttle_reasons.map(of).into_iter().flatten().collect()
    }
}

/// A row about an agent: what it says, or why it does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentRow {
    /// The agent.
    pub agent: String,
    /// What it says, without its tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<AgentUsage>,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A row about a task that runs: what its agent says of it, or why it does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskRow {
    /// The namespace.
    pub namespace: String,
    /// The task.
    pub task: String,
    /// The agent that it runs on.
    pub agent: String,
    /// What it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<TaskUsage>,
    /// Its GPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUsage>,
    /// Why nothing is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_said_and_not_zero() {
        let gpu = GpuUsage {
            uuid: "GPU-a".to_owned(),
            reading: GpuReading {
                temperature: Some(0),
                ..GpuReading::default()
            },
            ..GpuUsage::default()
        };
        let value = serde_json::to_value(&gpu).expect("plain data");
        assert_eq!(value["temperature"], 0);
        assert!(
            value.get("utilization").is_none() && value.get("eccVolatile").is_none(),
            "{value}"
        );
        assert_eq!(serde_json::from_value::<GpuUsage>(value).expect("the same"), gpu);
    }

    #[test]
    fn reasons_for_low_clocks_are_told_each() {
        let reading = |bits| GpuReading {
            throttle_reasons: bits,
            ..GpuReading::default()
        };
        assert!(reading(None).throttling().is_empty());
        assert!(reading(Some(1)).throttling().iter().all(|(_, holds)| !holds), "idle");
        let both: Vec<&str> = reading(Some(0x44))
            .throttling()
            .into_iter()
            .filter_map(|(name, holds)| holds.then_some(name))
            .collect();
        assert_eq!(both, ["power-cap", "hardware-thermal"]);
    }
}
