//! Devices: what a machine has, and what a container needs to use some of them. One of the four seams.
//!
//! A [`DeviceSource`] says which GPUs are there and turns their UUIDs into [`Edits`]; [`inject`] applies those to a container. It
//! promises that edits depend on nothing but what was discovered, so the plan stays pure. What must never happen here: a device in a
//! container that its task does not hold, a device chosen by the task's own environment.

pub mod cdi;
mod choice;
pub mod driver;
pub mod health;
pub mod hygiene;
mod inject;
pub(crate) mod nvml;
mod simulated;

use std::collections::{BTreeMap, BTreeSet};

use muster_api::Timestamp;
use muster_api::device::{Device, DeviceHealth};
use muster_api::usage::GpuReading;
use muster_api::v1::GpuOrder;
use muster_runtime::{DeviceNode, Mount};
use tokio::sync::watch;

pub use choice::{ChoiceError, GpuChoice, OpenError};
pub use inject::inject;
pub use nvml::{NoGpus, NvmlConfig, NvmlDevices};
pub use simulated::{SimulatedDevices, SimulationError};

/// Finds devices and says what a container needs for them.
pub trait DeviceSource: Send + Sync + 'static {
    /// The devices of this machine, faulty ones included, in the order of their UUIDs.
    fn discover(&self) -> Vec<Device>;

    /// What a container needs to use exactly these devices. Called often and from pure code: no I/O.
    ///
    /// # Errors
    /// [`UnknownDevice`], when one of them is not here.
    fn edits(&self, uuids: &[&str]) -> Result<Edits, UnknownDevice>;

    /// Why tasks that have the device must not go on; `None` while they may, and where nobody watches. Called often and from pure code: no
    /// I/O.
    fn fault(&self, _uuid: &str) -> Option<String> {
        None
    }

    /// Which devices tasks have now: those of containers that live. Told before anything is planned.
    fn held(&self, _uuids: BTreeSet<String>) {}

    /// What still uses a device that no task has, in words: the next task waits for its end. `None` where nothing does, or nobody knows. Called
    /// often and from pure code: no I/O.
    fn occupied(&self, _uuid: &str) -> Option<String> {
        None
    }

    /// What the devices do, as it was read last. No I/O: a driver that hangs keeps nobody waiting.
    fn readings(&self) -> Readings {
        Readings::default()
    }

    /// An operator has seen to the device: what was found wrong with it until then counts no more.
    fn trust(&self, _uuid: &str, _since: Timestamp) {}

    /// Counts whenever something about the devices is different; `None` where nothing ever is.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// What the driver says of devices, as it was read last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// When all of them were read; `None`: they do not change.
    pub at: Option<Timestamp>,
    /// By UUID.
    pub gpus: BTreeMap<String, GpuReading>,
}

/// The devices with what operators say about them: one that is cordoned is not offered, and its tasks go on.
pub(crate) fn ordered(mut devices: Vec<Device>, orders: &BTreeMap<String, GpuOrder>) -> Vec<Device> {
    for device in &mut devices {
        let cordoned = orders.get(&device.uuid).is_some_and(|order| order.cordoned);
        if cordoned && device.health == DeviceHealth::Healthy {
            device.health = DeviceHealth::Suspect;
            device.message = format!("cordoned by an operator; `mctl uncordon gpu/{}` ends that", device.uuid);
        }
    }
    devices
}

/// Waits until something about the devices is different; for ever where nothing is.
pub(crate) async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    let ended = match changes {
        Some(receiver) => receiver.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

/// The variables by which programs find their GPUs.
fn visible(uuids: &[&str]) -> BTreeMap<String, String> {
    if uuids.is_empty() {
        return BTreeMap::new();
    }
    let names = ["NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "MUSTER_GPUS"];
    names.map(|name| (name.to_owned(), uuids.join(","))).into()
}

/// A device that this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this machine has no device {0}")]
pub struct UnknownDevice(pub String);

/// Changes to a container that give it devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Libraries and sockets of the driver.
    pub mounts: Vec<Mount>,
    /// Variables; they win over the task's own.
    pub env: BTreeMap<String, String>,
}

/// A machine without devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevices;

impl DeviceSource for NoDevices {
    fn discover(&self) -> Vec<Device> {
        Vec::new()
    }

    fn edits(&self, uuids: &[&str]) -> Result<Edits, UnknownDevice> {
        match uuids.first() {
            Some(uuid) => Err(UnknownDevice((*uuid).to_owned())),
            None => Ok(Edits::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_keeps_a_gpu_from_being_offered_and_does_not_hide_a_fault() {
        let source = SimulatedDevices::parse("2xL4", "a1")
            .expect("well-formed")
            .with_fault("GPU-sim-a1-01");
        let order = GpuOrder {
            cordoned: true,
            ..GpuOrder::default()
        };
        let uuids = ["GPU-sim-a1-00", "GPU-sim-a1-01", "GPU-gone"];
        let orders = uuids.map(|uuid| (uuid.to_owned(), order.clone())).into();
        let devices = ordered(source.discover(), &orders);
        assert_eq!(devices[0].health, DeviceHealth::Suspect);
        assert!(devices[0].message.contains("mctl uncordon gpu/GPU-sim-a1-00"));
        assert_eq!(devices[1].health, DeviceHealth::Faulty);
        assert_eq!(ordered(source.discover(), &BTreeMap::new()), source.discover());
    }
}
