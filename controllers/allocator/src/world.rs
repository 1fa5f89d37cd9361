//! Everything a pass knows and changes: agents, clients, the tree, and the open offers.

use std::collections::BTreeSet;

use muster_api::topology::{self, Topology};

use crate::agents::{self, AgentState};
use crate::client::Client;
use crate::fit::{Matches, Room, Shapes};
use crate::params::{NewOffer, Params, Rescind, RescindReason};
use crate::snapshot::{OpenOffer, Snapshot};
use crate::tree::Tree;
use crate::values::{self, GPUS, PORTS, Values};

/// The state of the cluster as the pass changes it. Owns all that the report needs afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) agents: Vec<AgentState>,
    /// The agents by name, each name once.
    pub(crate) by_name: Vec<u32>,
    pub(crate) clients: Vec<Client>,
    pub(crate) shapes: Shapes,
    pub(crate) tree: Tree,
    /// By agent (as in `by_name`) and name.
    pub(crate) open: Vec<Open>,
    /// Whether only those whose guarantees are not met are served now.
    pub(crate) guarantees_only: bool,
    /// What is free on all available agents together.
    pub(crate) free: Values,
    /// New offers.
    pub(crate) given: Vec<Given>,
}

/// A new offer: whose, of which agent, and the pending tasks that it has room for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    pub(crate) client: u32,
    pub(crate) agent: u32,
    pub(crate) filled: Vec<(u32, u64)>,
}

/// An open offer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Open {
    pub(crate) agent: u32,
    pub(crate) offer: u32,
    pub(crate) client: u32,
    pub(crate) held: Values,
    /// The pending tasks that it has room for.
    pub(crate) filled: Vec<(u32, u64)>,
    /// Whether it still holds what is in it.
    pub(crate) kept: bool,
}

/// A pass under way.
pub(crate) struct Pass<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) params: &'a Params,
    pub(crate) world: World,
    pub(crate) matches: Matches,
    pub(crate) offers: Vec<NewOffer>,
    pub(crate) rescinds: Vec<Rescind>,
    pub(crate) problems: BTreeSet<String>,
    /// By client: the number of the last look at an agent in which it had its turn.
    pub(crate) turns: Vec<u64>,
    pub(crate) turn: u64,
}

/// What a client may be offered of an agent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) values: Values,
    pub(crate) devices: Vec<u32>,
}

/// Why a client is not offered anything of an agent that has room for one of its tasks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// No wanted shape fits.
    NoFit,
    /// A limit leaves less than it needs.
    Limit,
    /// Guarantees of others leave less than it needs.
    Guarantee,
    /// What could be offered is smaller than the smallest offer of the cluster or of the role.
    TooSmall,
    /// It declined such an offer; until when.
    Declined(i64),
}

impl World {
    /// What a client may be offered of an agent; every rule is here and nowhere else.
    pub(crate) fn part(
        &self,
        client: &Client,
        place: u32,
        snapshot: &Snapshot,
        params: &Params,
        matches: &mut Matches,
    ) -> Result<Part, Obstacle> {
        let state = &self.agents[place as usize];
        if !values::contains(&state.free, &client.lower) {
            return Err(Obstacle::NoFit);
        }
        let mut values = state.free;
        if !client.wants_ports {
            values[PORTS] = 0;
        }
        values = values::min(&values, &self.tree.headroom(client.role));
        if !values::contains(&values, &client.lower) {
            return Err(Obstacle::Limit);
        }
        if self.tree.guaranteed {
            values = values::min(&values, &self.within_guarantees(client));
            if !values::contains(&values, &client.lower) {
                return Err(Obstacle::Guarantee);
            }
        }
        let devices = self.choose_devices(client, place, values[GPUS], snapshot);
        values[GPUS] = devices.len() as u64;
        if !self.is_wanted(client, place, &values, &devices, snapshot, matches) {
            return Err(Obstacle::NoFit);
        }
        if !is_offer(params, &values) || !self.tree.is_large_enough(client.role, &values) {
            return Err(Obstacle::TooSmall);
        }
        match client.declined(place, &values) {
            Some(filter) => Err(Obstacle::Declined(filter.until_ms)),
            None => Ok(Part { values, devices }),
        }
    }

    /// What fills the client's own guarantees, and what nobody's guarantee needs.
    fn within_guarantees(&self, client: &Client) -> Values {
        let surplus = values::sub(&self.free, &self.tree.needed());
        values::add(&surplus, &self.tree.missing(client.role))
    }

    /// The devices that the client may be offered, `most` at most: those for its first tasks first; among equals those that reach each
    /// other best.
    fn choose_devices(&self, client: &Client, place: u32, most: u64, snapshot: &Snapshot) -> Vec<u32> {
        let (state, agent) = (&self.agents[place as usize], &snapshot.agents[place as usize]);
        if client.gpu_shapes.is_empty() || most == 0 || state.devices.is_empty() {
            return Vec::new();
        }
        let rank = |device: u32| {
            let takes = |shape: &u32| self.shapes.shapes[*shape as usize].takes(device, agent);
            client.gpu_shapes.iter().position(takes)
        };
        let mut ranked: Vec<(usize, u32)> = state
            .devices
            .iter()
            .filter_map(|device| rank(*device).map(|rank| (rank, *device)))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if let Some((last, _)) = ranked.get(most).copied() {
            // Of the rank that does not fit whole, only some: the best-connected ones.
            let split = ranked.partition_point(|(rank, _)| *rank < last);
            let equals: Vec<u32> = ranked
                .drain(split..)
                .filter(|(rank, _)| *rank == last)
                .map(|(_, device)| device)
                .collect();
            let candidates: Vec<_> = equals.iter().map(|place| agents::device(agent, *place)).collect();
            let chosen = topology::choose(&candidates, most - split, Topology::Preferred).unwrap_or_default();
            ranked.extend(chosen.into_iter().map(|index| (last, equals[index])));
        }
        ranked.into_iter().map(|(_, device)| device).collect()
    }

    fn is_wanted(
        &self,
        client: &Client,
        place: u32,
        values: &Values,
        devices: &[u32],
        snapshot: &Snapshot,
        matches: &mut Matches,
    ) -> bool {
        let (state, agent) = (&self.agents[place as usize], &snapshot.agents[place as usize]);
        let ports = state.free_ports(agent);
        let mut fits = |shape: u32| {
            let shape = &self.shapes.shapes[shape as usize];
            values::contains(values, &shape.amounts)
                && matches.holds(&self.shapes, shape.selector, place as usize, &snapshot.agents)
                && shape.fits_exactly(ports, devices, agent)
        };
        client.open_demand().is_some_and(|declared| fits(declared.shape))
            || client.queue.iter().any(|slot| slot.left > 0 && fits(slot.shape))
    }

    /// What wants change of a client means for the order.
    pub(crate) fn requeue(&mut self, client: u32) {
        let client = &mut self.clients[client as usize];
        client.refresh(&self.shapes);
        let wanted = client.is_hungry() && (!self.guarantees_only || self.tree.missing(client.role) != values::ZERO);
        if wanted {
            self.tree.activate(client.node);
            self.tree.set_floor(client.node, &client.lower);
        } else {
            self.tree.deactivate(client.node);
        }
    }

    /// The open offer as it stands in the snapshot.
    pub(crate) fn open_offer<'a>(&self, open: &Open, snapshot: &'a Snapshot) -> &'a OpenOffer {
        &snapshot.agents[open.agent as usize].offers[open.offer as usize]
    }
}

/// Whether something is as large as one of the smallest offers.
pub(crate) fn is_offer(params: &Params, values: &Values) -> bool {
    let mut bounds = params.minimum_offer.iter().map(|amounts| amounts.values());
    let large = |bound: [Option<u64>; 5]| {
        values
            .iter()
            .zip(bound)
            .all(|(have, bound)| *have >= bound.unwrap_or(0))
    };
    *values != values::ZERO && (params.minimum_offer.is_empty() || bounds.any(large))
}

impl Pass<'_> {
    /// Makes an offer.
    pub(crate) fn give(&mut self, client: u32, place: u32, part: &Part) {
        let agent = &self.snapshot.agents[place as usize];
        let state = &mut self.world.agents[place as usize];
        let bundle = state.carve(agent, &part.values, &part.devices);
        let held = part.values;
        let owner = &mut self.world.clients[client as usize];
        let mut room = Room {
            values: held,
            ports: bundle.ports.clone(),
            devices: part.devices.clone(),
            agent,
        };
        let (shapes, matches) = (&self.world.shapes, &mut self.matches);
        let filled = owner.fill(shapes, &mut room, |selector| {
            matches.holds(shapes, selector, place as usize, &self.snapshot.agents)
        });
        owner.outstanding = owner.outstanding.saturating_add(1);
        let framework = &self.snapshot.frameworks[owner.framework as usize];
        self.world.free = values::sub(&self.world.free, &held);
        self.world.tree.take(owner.node, &held);
        let devices = part.devices.iter().map(|device| agents::device(agent, *device).clone());
        let mut devices: Vec<_> = devices.collect();
        devices.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        self.offers.push(NewOffer {
            agent: agent.name.clone(),
            framework: framework.id.clone(),
            role: framework.roles[owner.demand as usize].role.clone(),
            bundle,
            devices,
        });
        self.world.given.push(Given {
            client,
            agent: place,
            filled,
        });
        self.world.requeue(client);
    }

    /// Takes an open offer out of the books.
    pub(crate) fn release(&mut self, open: usize) {
        let world = &mut self.world;
        let record = &mut world.open[open];
        record.kept = false;
        let agent = &self.snapshot.agents[record.agent as usize];
        let offer = &agent.offers[record.offer as usize];
        world.agents[record.agent as usize].release(agent, &offer.bundle);
        world.free = values::add(&world.free, &record.held);
        let client = &mut world.clients[record.client as usize];
        for (slot, count) in &record.filled {
            client.queue[*slot as usize].left += count;
        }
        client.outstanding = client.outstanding.saturating_sub(1);
        world.tree.give_back(client.node, &record.held);
        let client = record.client;
        world.requeue(client);
    }

    /// Puts a released offer back into the books, unchanged.
    pub(crate) fn restore(&mut self, open: usize) {
        let world = &mut self.world;
        let record = &mut world.open[open];
        record.kept = true;
        let agent = &self.snapshot.agents[record.agent as usize];
        let offer = &agent.offers[record.offer as usize];
        world.agents[record.agent as usize].hold(agent, &offer.bundle);
        world.free = values::sub(&world.free, &record.held);
        let client = &mut world.clients[record.client as usize];
        for (slot, count) in &record.filled {
            client.queue[*slot as usize].left -= count;
        }
        client.outstanding = client.outstanding.saturating_add(1);
        world.tree.take(client.node, &record.held);
        let client = record.client;
        world.requeue(client);
    }

    /// Takes an offer back.
    pub(crate) fn rescind(&mut self, place: u32, offer: &OpenOffer, reason: RescindReason) {
        self.rescinds.push(Rescind {
            agent: self.snapshot.agents[place as usize].name.clone(),
            namespace: offer.framework.namespace.clone(),
            name: offer.name.clone(),
            reason,
        });
    }
}
