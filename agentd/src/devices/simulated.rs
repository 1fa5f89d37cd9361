//! Devices that are not there: for trying out a cluster without GPUs, and for the simulator.
//!
//! They are offered, charged and bound as real ones are; a task finds their UUIDs in `MUSTER_GPUS`, and no device node. Their readings are those of
//! cards that are idle, since nothing is computed on them.

use std::collections::BTreeMap;

use muster_api::device::{Device, DeviceHealth};
use muster_api::quantity::ByteSize;
use muster_api::topology::Path;
use muster_api::usage::{Counts, GpuReading};

use super::{DeviceSource, Edits, Readings, UnknownDevice};

/// Models by the name they are asked for: as their driver names them, with the memory it reports in MiB, the compute capability, and the
/// NVLinks by which each reaches the others of its machine (0: over PCIe).
const MODELS: [(&str, &str, u32, &str, u8); 14] = [
    ("T4", "Tesla T4", 15_360, "7.5", 0),
    ("V100", "Tesla V100-SXM2-32GB", 32_768, "7.0", 6),
    ("A10", "NVIDIA A10", 23_028, "8.6", 0),
    ("A100", "NVIDIA A100-SXM4-80GB", 81_920, "8.0", 12),
    ("A100-40", "NVIDIA A100-SXM4-40GB", 40_960, "8.0", 12),
    ("A40", "NVIDIA A40", 46_068, "8.6", 0),
    ("L4", "NVIDIA L4", 23_034, "8.9", 0),
    ("L40S", "NVIDIA L40S", 46_068, "8.9", 0),
    ("RTX4090", "NVIDIA GeForce RTX 4090", 24_564, "8.9", 0),
    ("RTX5090", "NVIDIA GeForce RTX 5090", 32_607, "12.0", 0),
    ("H100", "NVIDIA H100 80GB HBM3", 81_559, "9.0", 18),
    ("H200", "NVIDIA H200", 143_771, "9.0", 18),
    ("B200", "NVIDIA B200", 183_359, "10.0", 18),
    ("B300", "NVIDIA B300", 275_040, "10.3", 18),
];

/// The most devices of one simulated machine: as many as real ones have had, four times over.
const DEVICES_MAX: usize = 64;

/// Simulated GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimulatedDevices {
    devices: BTreeMap<String, Device>,
}

/// Why a text does not describe simulated devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// It does not read as counts and models.
    #[error("`{0}` is not a number of GPUs of a model; write 8xH100, or 4xA100,2xL4")]
    Malformed(String),
    /// The model is not in the table.
    #[error("`{0}` is not a model that can be simulated; known are {known}", known = known())]
    UnknownModel(String),
    /// There are too many.
    #[error("at most 64 GPUs can be simulated on one agent")]
    TooMany,
}

fn known() -> String {
    MODELS.map(|(name, ..)| name).join(", ")
}

impl SimulatedDevices {
    /// Reads texts like `8xH100` or `4xA100,2xL4`. UUIDs are made from the agent's name, so they are unique in a cluster and the same
    /// after a restart.
    ///
    /// # Errors
    /// [`SimulationError`], which says what to write instead.
    pub fn parse(text: &str, agent: &str) -> Result<SimulatedDevices, SimulationError> {
        let mut models: Vec<&(&str, &str, u32, &str, u8)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let malformed = || SimulationError::Malformed(part.chars().take(64).collect());
            let (count, name) = part.split_once(['x', 'X']).ok_or_else(malformed)?;
            let count: usize = count.trim().parse().map_err(|_| malformed())?;
            let model = MODELS
                .iter()
                .find(|(known, ..)| known.eq_ignore_ascii_case(name.trim()))
                .ok_or_else(|| SimulationError::UnknownModel(name.trim().chars().take(64).collect()))?;
            if models.len().saturating_add(count) > DEVICES_MAX {
                return Err(SimulationError::TooMany);
            }
            models.extend(std::iter::repeat_n(model, count));
        }
        // Two sockets, with half of the devices each.
        let half = models.len().div_ceil(2).max(1);
        let uuid = |index: usize| format!("GPU-sim-{agent}-{index:02}");
        let way = |a: usize, b: usize| match (models[a].4.min(models[b].4), a / half == b / half) {
            (0, true) => Path::Node,
            (0, false) => Path::System,
            (links, _) => Path::NvLink(links),
        };
        let devices = models
            .iter()
            .enumerate()
            .map(|(index, (_, model, memory_mib, capability, _))| {
                let others = (0..models.len()).filter(|other| *other != index);
                let device = Device {
                    uuid: uuid(index),
                    model: (*model).to_owned(),
                    memory: ByteSize::from_mib(*memory_mib),
                    compute_capability: Some((*capability).to_owned()),
                    numa_node: u32::try_from(index / half).ok(),
                    links: others.map(|other| (uuid(other), way(index, other))).collect(),
                    ..Device::default()
                };
                (uuid(index), device)
            });
        Ok(SimulatedDevices {
            devices: devices.collect(),
        })
    }

    /// The same, with one device faulty; unknown UUIDs change nothing.
    pub fn with_fault(mut self, uuid: &str) -> SimulatedDevices {
        if let Some(device) = self.devices.get_mut(uuid) {
            device.health = DeviceHealth::Faulty;
            "simulated to be so".clone_into(&mut device.message);
        }
        self
    }
}

impl DeviceSource for SimulatedDevices {
    fn discover(&self) -> Vec<Device> {
        self.devices.values().cloned().collect()
    }

    fn edits(&self, uuids: &[&str]) -> Result<Edits, UnknownDevice> {
        if let Some(unknown) = uuids.iter().find(|uuid| !self.devices.contains_key(**uuid)) {
            return Err(UnknownDevice((*unknown).to_owned()));
        }
        Ok(Edits {
            env: super::visible(uuids),
            ..Edits::default()
        })
    }

    fn fault(&self, uuid: &str) -> Option<String> {
        let device = self.devices.get(uuid)?;
        (!device.health.is_usable()).then(|| device.message.clone())
    }

    fn readings(&self) -> Readings {
        let gpus = self.devices.iter().zip(0..);
        Readings {
            at: None,
            gpus: gpus
                .map(|((uuid, device), place)| (uuid.clone(), idle(device, place)))
                .collect(),
        }
    }
}

/// What a card says that is idle; the further back in the machine, the warmer.
fn idle(device: &Device, place: u32) -> GpuReading {
    let none = Counts {
        corrected: Some(0),
        uncorrected: Some(0),
    };
    GpuReading {
        temperature: Some(30 + place % 16),
        slowdown_temperature: Some(90),
        power_milliwatts: Some(60_000),
        power_limit_milliwatts: Some(350_000),
        utilization: Some(0),
        memory_utilization: Some(0),
        memory_total_bytes: Some(device.memory.bytes()),
        memory_used_bytes: Some(0),
        memory_free_bytes: Some(device.memory.bytes()),
        ecc_volatile: none,
        ecc_aggregate: none,
        // The bit for being idle.
        throttle_reasons: Some(1),
        processes: Some(BTreeMap::new()),
        last_xid: Some(0),
        ..GpuReading::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_that_many_devices_of_the_model() {
        let devices = SimulatedDevices::parse("8xH100", "a1").expect("well-formed").discover();
        assert_eq!(devices.len(), 8);
        assert_eq!(devices[0].uuid, "GPU-sim-a1-00");
        assert_eq!(devices[0].model, "NVIDIA H100 80GB HBM3");
        assert!(
            devices
                .iter()
                .all(|device| device.memory > ByteSize::from_mib(70 * 1024))
        );
        assert_eq!(devices[3].numa_node, Some(0));
        assert_eq!(devices[4].numa_node, Some(1));
    }

    #[test]
    fn readings_are_those_of_cards_that_are_idle() {
        let readings = SimulatedDevices::parse("2xL4", "a1").expect("well-formed").readings();
        assert_eq!(readings.gpus.len(), 2);
        let second = &readings.gpus["GPU-sim-a1-01"];
        assert_eq!((second.temperature, second.utilization), (Some(31), Some(0)));
        assert_eq!(second.memory_free_bytes, Some(23_034 << 20));
    }

    #[test]
    fn models_can_be_mixed_and_their_case_does_not_matter() {
        let devices = SimulatedDevices::parse("1xa100, 2xL4", "a1")
            .expect("well-formed")
            .discover();
        let models: Vec<&str> = devices.iter().map(|device| device.model.as_str()).collect();
        assert_eq!(models, ["NVIDIA A100-SXM4-80GB", "NVIDIA L4", "NVIDIA L4"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_to_write() {
        for (text, part) in [
            ("", "write 8xH100"),
            ("H100", "write 8xH100"),
            ("manyxH100", "write 8xH100"),
            ("1xH9000", "known are T4"),
            ("65xT4", "at most 64"),
        ] {
            let error = SimulatedDevices::parse(text, "a1").expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn models_with_nvlink_are_linked_and_others_hang_on_two_sockets() {
        let path = |text: &str, a: usize, b: usize| {
            let devices = SimulatedDevices::parse(text, "a1").expect("well-formed").discover();
            muster_api::topology::between(&devices[a], &devices[b])
        };
        assert_eq!(path("8xH100", 0, 7), Path::NvLink(18));
        assert_eq!(path("4xL4", 0, 1), Path::Node);
        assert_eq!(path("4xL4", 1, 2), Path::System);
        assert_eq!(path("1xA100,1xH100", 0, 1), Path::NvLink(12));
    }

    #[test]
    fn edits_name_exactly_the_devices_asked_for() {
        let source = SimulatedDevices::parse("2xT4", "a1").expect("well-formed");
        let edits = source.edits(&["GPU-sim-a1-01"]).expect("known");
        assert_eq!(edits.env["MUSTER_GPUS"], "GPU-sim-a1-01");
        assert_eq!(source.edits(&[]).expect("nothing"), Edits::default());
        assert_eq!(source.edits(&["GPU-x"]), Err(UnknownDevice("GPU-x".to_owned())));
    }
}
