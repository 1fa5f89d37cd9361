//! What keeps a device or port of a task from being used now: another task's container, or what one has left behind. Tested with the plans of tasks.

use muster_api::v1::TaskStatus;

use super::{Held, port};
use crate::devices::DeviceSource;

/// In words; `uid`: of the task.
pub(super) fn words(status: &TaskStatus, uid: &str, held: &Held<'_>, devices: &dyn DeviceSource) -> Option<String> {
    held_by_another(status, uid, held).or_else(|| left_behind(status, held, devices))
}

fn held_by_another(status: &TaskStatus, uid: &str, held: &Held<'_>) -> Option<String> {
    let devices = status.devices.iter().cloned();
    let mut wanted = devices.chain(status.ports.iter().map(port));
    let (thing, holder) = wanted.find_map(|thing| {
        let holder = held.get(&thing).filter(|holder| **holder != uid)?;
        Some((thing, holder))
    })?;
    Some(format!(
        "waits until the container of task uid {holder} has let go of {thing}"
    ))
}

/// A device that no container has is free of what the last one did with it before the next one gets it.
fn left_behind(status: &TaskStatus, held: &Held<'_>, devices: &dyn DeviceSource) -> Option<String> {
    let free = status.devices.iter().filter(|uuid| !held.contains_key(*uuid));
    let mut occupied = free.filter_map(|uuid| Some((uuid, devices.occupied(uuid)?)));
    let (uuid, why) = occupied.next()?;
    Some(format!("waits until GPU {uuid} is free: {why}"))
}
