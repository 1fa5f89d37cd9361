//! Devices: what a machine has, and what a container needs to use some of them. One of the four seams.
//!
//! A [`DeviceSource`] says which GPUs are there and turns their UUIDs into [`Edits`]; [`inject`] applies those to a container. It
//! promises that edits depend on nothing but what was discovered, so the plan stays pure. What must never happen here: a device in a
//! container that its task does not hold, a device chosen by the task's own environment.

mod inject;
mod simulated;

use std::collections::BTreeMap;

use muster_api::device::Device;
use muster_runtime::{DeviceNode, Mount};

pub use inject::inject;
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
