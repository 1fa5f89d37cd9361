//! What fits where: shapes of tasks, and how many of them an offer could hold.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use muster_api::device::GpuRequirement;
use muster_api::ports::{PortRequest, PortSet};
use muster_api::resources::Amounts;
use muster_api::topology::{self, Topology};
use muster_api::v1::Constraint;

use crate::agents::{AgentState, device};
use crate::snapshot::AgentSnapshot;
use crate::values::{GPUS, PORTS, Values, contains};

/// The index of a shape in [`Shapes`].
pub(crate) type ShapeId = u32;

/// What a task asks for, all that matters for where it fits. Tasks of equal shape are treated as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    pub(crate) amounts: Values,
    /// These very ports.
    pub(crate) ports: Option<PortSet>,
    pub(crate) gpu: GpuRequirement,
    /// Which list of constraints; 0 is the empty one.
    pub(crate) selector: u32,
    /// Whether the amounts are all that matters.
    plain: bool,
    /// Whether any GPU does.
    any_gpu: bool,
    /// Whether its GPUs have to be close to each other.
    close: bool,
}

/// The distinct shapes of a pass, and the distinct lists of constraints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shapes {
    pub(crate) shapes: Vec<Shape>,
    pub(crate) selectors: Vec<Vec<Constraint>>,
}

/// Finds equal shapes while the pass is set up.
#[derive(Default)]
pub(crate) struct Interner<'a> {
    shapes: BTreeMap<Wish<'a>, ShapeId>,
    selectors: BTreeMap<Selector<'a>, u32>,
}

/// A wish as it stands in the snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) amounts: &'a Amounts,
    pub(crate) ports: &'a PortRequest,
    pub(crate) gpu: &'a GpuRequirement,
    pub(crate) constraints: &'a [Constraint],
}

struct Selector<'a>(&'a [Constraint]);

impl Shapes {
    /// The shape of a wish.
    pub(crate) fn intern<'a>(&mut self, interner: &mut Interner<'a>, wish: Wish<'a>) -> ShapeId {
        if let Some(id) = interner.shapes.get(&wish) {
            return *id;
        }
        if self.selectors.is_empty() {
            self.selectors.push(Vec::new());
            interner.selectors.insert(Selector(&[]), 0);
        }
        let fresh = u32::try_from(self.selectors.len()).expect("fewer than 2^32 lists of constraints");
        let selector = *interner.selectors.entry(Selector(wish.constraints)).or_insert(fresh);
        if selector == fresh {
            self.selectors.push(wish.constraints.to_vec());
        }
        let mut amounts = wish.amounts.values();
        amounts[PORTS] = u64::from(wish.ports.count());
        let ports = match wish.ports {
            PortRequest::These(ports) if !ports.is_empty() => Some(ports.clone()),
            _ => None,
        };
        let close = wish.gpu.topology == Topology::Required && amounts[GPUS] > 1;
        let any_gpu = !close
            && *wish.gpu
                == GpuRequirement {
                    topology: wish.gpu.topology,
                    ..GpuRequirement::default()
                };
        let plain = selector == 0 && ports.is_none() && (any_gpu || amounts[GPUS] == 0);
        let id = u32::try_from(self.shapes.len()).expect("fewer than 2^32 shapes");
        self.shapes.push(Shape {
            amounts,
            ports,
            gpu: wish.gpu.clone(),
            selector,
            plain,
            any_gpu,
            close,
        });
        interner.shapes.insert(wish, id);
        id
    }
}

/// Remembers which agents satisfy which list of constraints.
#[derive(Default)]
pub(crate) struct Matches {
    /// By selector, then agent: 0 not known yet, 1 yes, 2 no.
    known: Vec<Vec<u8>>,
}

impl Matches {
    /// Whether the agent satisfies the selector.
    pub(crate) fn holds(&mut self, shapes: &Shapes, selector: u32, place: usize, agents: &[AgentSnapshot]) -> bool {
        if selector == 0 {
            return true;
        }
        let selector = selector as usize;
        if self.known.len() <= selector {
            self.known.resize(shapes.selectors.len().max(selector + 1), Vec::new());
        }
        let known = &mut self.known[selector];
        if known.is_empty() {
            known.resize(agents.len(), 0);
        }
        if known[place] == 0 {
            let holds = shapes.selectors[selector]
                .iter()
                .all(|constraint| holds(constraint, &agents[place]));
            known[place] = if holds { 1 } else { 2 };
        }
        known[place] == 1
    }
}

/// The value of an agent's attribute; `hostname` is always there.
pub(crate) fn attribute<'a>(agent: &'a AgentSnapshot, name: &str) -> Option<&'a str> {
    match agent.attributes.get(name) {
        Some(value) => Some(value),
        None if name == "hostname" => Some(&agent.name),
        None => None,
    }
}

/// Whether an agent satisfies a constraint.
pub(crate) fn holds(constraint: &Constraint, agent: &AgentSnapshot) -> bool {
    constraint.holds(attribute(agent, &constraint.attribute))
}

impl Shape {
    /// Whether some of the free things of an agent hold one task; constraints aside. `room` is at most what is free.
    pub(crate) fn fits(&self, room: &Values, state: &AgentState, agent: &AgentSnapshot) -> bool {
        contains(room, &self.amounts)
            && (self.plain || self.fits_exactly(state.free_ports(agent), &state.devices, agent))
    }

    /// Whether the named ports and enough matching devices are there.
    pub(crate) fn fits_exactly(&self, ports: &PortSet, devices: &[u32], agent: &AgentSnapshot) -> bool {
        self.ports.as_ref().is_none_or(|wanted| ports.contains(wanted))
            && (self.amounts[GPUS] == 0 || self.any_gpu || self.has_devices(devices, agent))
    }

    /// Whether enough of the devices do, and reach each other well enough.
    pub(crate) fn has_devices(&self, devices: &[u32], agent: &AgentSnapshot) -> bool {
        let wanted = self.amounts[GPUS];
        wanted == 0 || self.pick(devices, agent, 1).len() as u64 == wanted
    }

    /// Devices for so many tasks, or for as many as there are devices for, task by task.
    fn pick(&self, devices: &[u32], agent: &AgentSnapshot, tasks: u64) -> Vec<u32> {
        let each = usize::try_from(self.amounts[GPUS]).unwrap_or(usize::MAX);
        let mut fitting: Vec<u32> = devices
            .iter()
            .copied()
            .filter(|place| self.takes(*place, agent))
            .collect();
        let tasks = usize::try_from(tasks)
            .unwrap_or(usize::MAX)
            .min(fitting.len() / each.max(1));
        if !self.close {
            fitting.truncate(tasks * each);
            return fitting;
        }
        let mut picked = Vec::new();
        for _ in 0..tasks {
            let candidates: Vec<_> = fitting.iter().map(|place| device(agent, *place)).collect();
            let Some(set) = topology::choose(&candidates, each, Topology::Required) else {
                break;
            };
            let set: Vec<u32> = set.into_iter().map(|index| fitting[index]).collect();
            fitting.retain(|place| !set.contains(place));
            picked.extend(set);
        }
        picked
    }

    /// Whether a device does.
    pub(crate) fn takes(&self, place: u32, agent: &AgentSnapshot) -> bool {
        self.any_gpu || self.gpu.mismatch(device(agent, place)).is_none()
    }
}

/// What is left of an offer while tasks are put into it.
pub(crate) struct Room<'a> {
    pub(crate) values: Values,
    pub(crate) ports: PortSet,
    pub(crate) devices: Vec<u32>,
    pub(crate) agent: &'a AgentSnapshot,
}

impl Room<'_> {
    /// Puts in as many tasks of a shape as fit, `most` at most, and says how many.
    pub(crate) fn fill(&mut self, shape: &Shape, most: u64) -> u64 {
        let mut count = most;
        for (have, wanted) in self.values.iter().zip(&shape.amounts) {
            if let Some(times) = have.checked_div(*wanted) {
                count = count.min(times);
            }
        }
        if let Some(ports) = &shape.ports {
            count = count.min(u64::from(self.ports.contains(ports)));
        }
        let gpus = shape.amounts[GPUS];
        let mut picked = Vec::new();
        if gpus > 0 && count > 0 {
            picked = shape.pick(&self.devices, self.agent, count);
            count = picked.len() as u64 / gpus;
        }
        if count == 0 {
            return 0;
        }
        for (have, wanted) in self.values.iter_mut().zip(&shape.amounts) {
            *have -= wanted * count;
        }
        if let Some(ports) = &shape.ports {
            self.ports = self.ports.difference(ports);
        }
        if !picked.is_empty() {
            self.devices.retain(|place| !picked.contains(place));
        }
        count
    }
}

impl Ord for Selector<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        fn parts(constraint: &Constraint) -> (u8, &str, &[String]) {
            (constraint.operator as u8, &constraint.attribute, &constraint.values)
        }
        self.0.iter().map(parts).cmp(other.0.iter().map(parts))
    }
}

impl PartialOrd for Selector<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Selector<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Selector<'_> {}

impl Ord for Wish<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let gpu = |gpu: &GpuRequirement| {
            let memory = gpu.memory.map(|(bound, size)| (bound as u8, size));
            (
                memory,
                gpu.compute_capability.map(|(bound, version)| (bound as u8, version)),
                gpu.driver
                    .as_ref()
                    .map(|(bound, version)| (*bound as u8, version.clone())),
                gpu.topology,
            )
        };
        fn ports(request: &PortRequest) -> &[(u16, u16)] {
            match request {
                PortRequest::Count(_) => &[],
                PortRequest::These(ports) => ports.ranges(),
            }
        }
        (self.amounts.values().cmp(&other.amounts.values()))
            .then_with(|| self.ports.count().cmp(&other.ports.count()))
            .then_with(|| ports(self.ports).cmp(ports(other.ports)))
            .then_with(|| self.gpu.models.cmp(&other.gpu.models))
            .then_with(|| gpu(self.gpu).cmp(&gpu(other.gpu)))
            .then_with(|| Selector(self.constraints).cmp(&Selector(other.constraints)))
    }
}

impl PartialOrd for Wish<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Wish<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Wish<'_> {}
