//! What is free on each agent, as plain numbers, with the ports and devices themselves beside them.

use std::collections::BTreeSet;

use muster_api::device::{Device, DeviceHealth};
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::resources::Bundle;

use crate::snapshot::{AgentSnapshot, Availability};
use crate::values::{self, GPUS, PORTS, Values};

/// One agent. The place in [`World::agents`](crate::world::World) is that in the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AgentState {
    pub(crate) available: bool,
    /// What it has in all.
    pub(crate) total: Values,
    /// What nobody holds. `free[GPUS]` and `free[PORTS]` are the sizes of the two sets below.
    pub(crate) free: Values,
    /// The free ports; `None`: all of them.
    ports: Option<PortSet>,
    /// The free devices that may be offered, as places in [`AgentSnapshot::devices`], by UUID.
    pub(crate) devices: Vec<u32>,
}

impl AgentState {
    /// All of it is free. Devices that may not be offered are left out.
    pub(crate) fn new(agent: &AgentSnapshot) -> AgentState {
        let devices = offerable(agent);
        let total = &agent.total;
        let counts = [
            total.cpus.milli(),
            total.memory.bytes(),
            total.disk.bytes(),
            devices.len() as u64,
            u64::from(total.ports.len()),
        ];
        AgentState {
            available: agent.availability == Availability::Available,
            total: counts,
            free: counts,
            ports: None,
            devices,
        }
    }

    pub(crate) fn free_ports<'a>(&'a self, agent: &'a AgentSnapshot) -> &'a PortSet {
        self.ports.as_ref().unwrap_or(&agent.total.ports)
    }

    fn set_ports(&mut self, ports: PortSet) {
        self.free[PORTS] = u64::from(ports.len());
        self.ports = Some(ports);
    }

    /// Takes what a task holds. It holds it in any case; `false` when the agent has not all of it any more.
    pub(crate) fn hold(&mut self, agent: &AgentSnapshot, bundle: &Bundle) -> bool {
        let scalars = scalars(bundle);
        let mut whole = values::contains(&self.free, &scalars);
        let (gpus, ports) = (self.free[GPUS], self.free[PORTS]);
        self.free = values::sub(&self.free, &scalars);
        (self.free[GPUS], self.free[PORTS]) = (gpus, ports);
        if !bundle.ports.is_empty() {
            let free = self.free_ports(agent);
            whole &= free.contains(&bundle.ports);
            let left = free.difference(&bundle.ports);
            self.set_ports(left);
        }
        if !bundle.devices.is_empty() {
            let known = self.devices.len();
            self.devices.retain(|device| !is_in(agent, *device, &bundle.devices));
            self.free[GPUS] = self.devices.len() as u64;
            whole &= known - self.devices.len() == bundle.devices.len();
        }
        whole
    }

    /// Takes what an offer holds, if all of it is free.
    pub(crate) fn try_hold(&mut self, agent: &AgentSnapshot, bundle: &Bundle) -> bool {
        let found = self
            .devices
            .iter()
            .filter(|device| is_in(agent, **device, &bundle.devices))
            .count();
        let whole = values::contains(&self.free, &scalars(bundle))
            && (bundle.ports.is_empty() || self.free_ports(agent).contains(&bundle.ports))
            && found == bundle.devices.len();
        whole && self.hold(agent, bundle)
    }

    /// Frees what was taken whole.
    pub(crate) fn release(&mut self, agent: &AgentSnapshot, bundle: &Bundle) {
        self.free = values::add(&self.free, &scalars(bundle));
        if let Some(ports) = self.free_ports(agent).checked_union(&bundle.ports) {
            self.set_ports(ports);
        }
        let place = |uuid: &String| agent.devices.iter().position(|device| &device.uuid == uuid);
        self.devices.extend(
            bundle
                .devices
                .iter()
                .filter_map(place)
                .filter_map(|place| u32::try_from(place).ok()),
        );
        self.devices
            .sort_unstable_by(|a, b| uuid(agent, *a).cmp(uuid(agent, *b)));
        self.free[GPUS] = self.devices.len() as u64;
    }

    /// Takes a part for an offer and says what it is. `part` is at most what is free; all free ports go along or none.
    pub(crate) fn carve(&mut self, agent: &AgentSnapshot, part: &Values, devices: &[u32]) -> Bundle {
        let ports = if part[PORTS] > 0 {
            self.free_ports(agent).clone()
        } else {
            PortSet::new()
        };
        if part[PORTS] > 0 {
            self.set_ports(PortSet::new());
        }
        let (gpus, free_ports) = (self.free[GPUS], self.free[PORTS]);
        self.free = values::sub(&self.free, part);
        (self.free[GPUS], self.free[PORTS]) = (gpus, free_ports);
        if !devices.is_empty() {
            self.devices.retain(|device| !devices.contains(device));
            self.free[GPUS] = self.devices.len() as u64;
        }
        Bundle {
            cpus: Scalar::from_milli(part[0]),
            memory: ByteSize::from_bytes(part[1]),
            disk: ByteSize::from_bytes(part[2]),
            ports,
            devices: devices.iter().map(|device| uuid(agent, *device).to_owned()).collect(),
        }
    }
}

/// The amounts of a bundle; one with more devices than a number can hold does not exist.
pub(crate) fn amounts(bundle: &Bundle) -> Values {
    let mut values = scalars(bundle);
    values[GPUS] = bundle.devices.len() as u64;
    values[PORTS] = u64::from(bundle.ports.len());
    values
}

fn scalars(bundle: &Bundle) -> Values {
    [bundle.cpus.milli(), bundle.memory.bytes(), bundle.disk.bytes(), 0, 0]
}

/// The devices that may be offered: healthy, part of the total, each UUID once; by UUID.
pub(crate) fn offerable(agent: &AgentSnapshot) -> Vec<u32> {
    if agent.devices.is_empty() {
        return Vec::new();
    }
    let mut devices: Vec<u32> = (0u32..)
        .zip(&agent.devices)
        .filter(|(_, device)| device.health == DeviceHealth::Healthy && agent.total.devices.contains(&device.uuid))
        .map(|(place, _)| place)
        .collect();
    devices.sort_by(|a, b| uuid(agent, *a).cmp(uuid(agent, *b)));
    devices.dedup_by(|a, b| uuid(agent, *a) == uuid(agent, *b));
    devices
}

pub(crate) fn device(agent: &AgentSnapshot, place: u32) -> &Device {
    &agent.devices[place as usize]
}

fn uuid(agent: &AgentSnapshot, place: u32) -> &str {
    &device(agent, place).uuid
}

fn is_in(agent: &AgentSnapshot, place: u32, devices: &BTreeSet<String>) -> bool {
    devices.contains(uuid(agent, place))
}
