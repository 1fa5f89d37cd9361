//! From a snapshot to a world: names become numbers, what is held is counted, and offers that must go are found.

use std::collections::{BTreeMap, BTreeSet};

use crate::agents::{AgentState, amounts};
use crate::client::{Client, Declared, Declined, Slot};
use crate::fit::{Interner, Matches, Room, Wish};
use crate::params::{Params, RescindReason};
use crate::quota::Quota;
use crate::snapshot::{Availability, FrameworkId, RoleDemand, Snapshot};
use crate::tree::NodeId;
use crate::values::{self, GPUS};
use crate::world::{Open, Pass, World, is_offer};

/// Finds clients by who they are. Neighbours are mostly of the same client: the last answer is kept.
struct Directory<'a> {
    clients: BTreeMap<(&'a str, &'a FrameworkId), u32>,
    last: Option<(&'a str, &'a FrameworkId, Owner)>,
}

#[derive(Clone, Copy)]
enum Owner {
    Client(u32, NodeId),
    /// Nobody who wants something: the leaf of the role is charged.
    Leaf(NodeId),
    /// The role is no role.
    Nobody,
}

impl<'a> Pass<'a> {
    /// Sets up a pass.
    pub(crate) fn new(snapshot: &'a Snapshot, params: &'a Params) -> Pass<'a> {
        let mut pass = Pass {
            snapshot,
            params,
            world: World::default(),
            matches: Matches::default(),
            offers: Vec::new(),
            rescinds: Vec::new(),
            problems: BTreeSet::new(),
            turns: Vec::new(),
            turn: 0,
        };
        pass.read_quotas();
        let mut directory = pass.read_frameworks();
        pass.read_agents(&mut directory);
        pass.read_filters(&directory);
        pass.world.tree.inherit();
        pass.drop_offers_above_limits();
        pass.drop_offers_without_demand();
        pass.settle();
        pass
    }

    fn problem(&mut self, line: String) {
        self.problems.insert(line);
    }

    fn read_quotas(&mut self) {
        let mut quotas: Vec<_> = self.snapshot.quotas.iter().collect();
        quotas.sort_by(|a, b| a.name.cmp(&b.name));
        for quota in quotas {
            let Some(role) = self.world.tree.role(&quota.role) else {
                self.problem(format!(
                    "quota {}: `{}` is not a role; it is left out",
                    quota.name, quota.role
                ));
                continue;
            };
            if let Some(first) = &self.world.tree.nodes[role as usize].quota {
                let line = format!(
                    "quota {}: quota {} is the one in force for role {}",
                    quota.name, first.name, quota.role
                );
                self.problem(line);
                continue;
            }
            let mut read = Quota::read(quota);
            if read.weight == 0 {
                self.problem(format!("quota {}: a weight of 0 counts as 1", quota.name));
                read.weight = 1000;
            }
            self.world.tree.set_quota(role, read);
        }
    }

    fn read_frameworks(&mut self) -> Directory<'a> {
        let mut order: Vec<u32> = (0u32..)
            .zip(&self.snapshot.frameworks)
            .map(|(index, _)| index)
            .collect();
        order.sort_by_key(|index| &self.snapshot.frameworks[*index as usize].id);
        let mut directory = Directory {
            clients: BTreeMap::new(),
            last: None,
        };
        let mut interner = Interner::default();
        for index in order {
            let framework = &self.snapshot.frameworks[index as usize];
            for (place, demand) in (0u32..).zip(&framework.roles) {
                let who = format_args!("framework {}/{}", framework.id.namespace, framework.id.name).to_string();
                let Some(role) = self.world.tree.role(&demand.role) else {
                    self.problem(format!("{who}: `{}` is not a role; it gets no offers", demand.role));
                    continue;
                };
                let client = u32::try_from(self.world.clients.len()).expect("fewer than 2^32 frameworks");
                if directory.clients.contains_key(&(demand.role.as_str(), &framework.id)) {
                    self.problem(format!(
                        "{who} is there twice in role {}; the first counts",
                        demand.role
                    ));
                    continue;
                }
                directory.clients.insert((&demand.role, &framework.id), client);
                let node = self.world.tree.add_client(role, client, demand.offers_made);
                let client = self.read_demand(demand, &mut interner);
                self.world.clients.push(Client {
                    framework: index,
                    demand: place,
                    node,
                    role,
                    ..client
                });
            }
        }
        self.turns = vec![0; self.world.clients.len()];
        directory
    }

    fn read_demand(&mut self, demand: &'a RoleDemand, interner: &mut Interner<'a>) -> Client {
        let shapes = &mut self.world.shapes;
        let mut places: BTreeMap<u32, u32> = BTreeMap::new();
        let mut queue: Vec<Slot> = Vec::new();
        let mut slots = Vec::with_capacity(demand.tasks.len());
        for task in &demand.tasks {
            let wish = Wish {
                amounts: &task.amounts,
                ports: &task.ports,
                gpu: &task.gpu,
                constraints: &task.constraints,
            };
            let shape = shapes.intern(interner, wish);
            let fresh = u32::try_from(queue.len()).expect("fewer than 2^32 tasks");
            let place = *places.entry(shape).or_insert(fresh);
            if place == fresh {
                queue.push(Slot {
                    shape,
                    total: 0,
                    left: 0,
                });
            }
            let slot = &mut queue[place as usize];
            (slot.total, slot.left) = (slot.total + 1, slot.left + 1);
            slots.push(place);
        }
        let mut gpu_shapes: Vec<u32> = queue.iter().map(|slot| slot.shape).collect();
        gpu_shapes.retain(|shape| shapes.shapes[*shape as usize].amounts[GPUS] > 0);
        let ports = |shape: u32| shapes.shapes[shape as usize].amounts[values::PORTS] > 0;
        let wants_ports = demand.declared.is_some() || queue.iter().any(|slot| ports(slot.shape));
        let declared = demand.declared.as_ref().map(|declared| {
            let any = const {
                &muster_api::device::GpuRequirement {
                    models: Vec::new(),
                    memory: None,
                    compute_capability: None,
                    driver: None,
                    topology: muster_api::topology::Topology::Preferred,
                }
            };
            let gpu = declared.gpu.as_ref().unwrap_or(any);
            let wish = Wish {
                amounts: &declared.minimum,
                ports: &declared.ports,
                gpu,
                constraints: &[],
            };
            let shape = shapes.intern(interner, wish);
            if declared.gpu.is_some() || declared.minimum.gpus > 0 {
                gpu_shapes.push(shape);
            }
            Declared {
                shape,
                max_offers: declared.max_offers,
            }
        });
        let mut client = Client {
            framework: 0,
            demand: 0,
            node: 0,
            role: 0,
            queue,
            slots,
            declared,
            outstanding: 0,
            wants_ports,
            gpu_shapes,
            lower: values::ALL,
            filters: Vec::new(),
        };
        client.refresh(&self.world.shapes);
        client
    }

    fn read_agents(&mut self, directory: &mut Directory<'a>) {
        let agents = &self.snapshot.agents;
        self.world.agents = agents.iter().map(AgentState::new).collect();
        let mut by_name: Vec<u32> = (0u32..).zip(agents).map(|(place, _)| place).collect();
        by_name.sort_by(|a, b| agents[*a as usize].name.cmp(&agents[*b as usize].name));
        by_name.dedup_by(|later, earlier| {
            let (later, earlier) = (*later as usize, *earlier as usize);
            let same = agents[later].name == agents[earlier].name;
            if same {
                self.world.agents[later].available = false;
                self.problems
                    .insert(format!("agent {} is there twice; the first counts", agents[later].name));
            }
            same
        });
        for place in &by_name {
            self.read_agent(*place, directory);
        }
        self.world.by_name = by_name;
    }

    fn read_agent(&mut self, place: u32, directory: &mut Directory<'a>) {
        let agent = &self.snapshot.agents[place as usize];
        let mut whole = true;
        for task in &agent.tasks {
            whole &= self.world.agents[place as usize].hold(agent, &task.bundle);
            let owner = self.owner(directory, &task.role, &task.framework);
            match owner {
                Owner::Client(_, node) | Owner::Leaf(node) => self.world.tree.charge(node, &amounts(&task.bundle)),
                Owner::Nobody => {
                    self.problem(format!(
                        "agent {}: a task is of `{}`, which is not a role",
                        agent.name, task.role
                    ));
                }
            }
        }
        if !whole {
            self.problem(format!("agent {}: its tasks hold more than it has now", agent.name));
        }
        let mut offers: Vec<u32> = (0u32..).zip(&agent.offers).map(|(index, _)| index).collect();
        offers.sort_by_key(|index| {
            let offer = &agent.offers[*index as usize];
            (&offer.framework.namespace, &offer.name)
        });
        for index in offers {
            let offer = &agent.offers[index as usize];
            let reason = match (
                &agent.availability,
                self.owner(directory, &offer.role, &offer.framework),
            ) {
                (Availability::Unavailable(why), _) => RescindReason::AgentUnavailable(why.clone()),
                (_, Owner::Leaf(_) | Owner::Nobody) => RescindReason::NoDemand,
                (_, Owner::Client(client, node)) => {
                    let held = amounts(&offer.bundle);
                    if self.world.agents[place as usize].try_hold(agent, &offer.bundle) {
                        self.world.tree.charge(node, &held);
                        let open = Open {
                            agent: place,
                            offer: index,
                            client,
                            held,
                            filled: Vec::new(),
                            kept: true,
                        };
                        self.world.open.push(open);
                        continue;
                    }
                    RescindReason::AgentOverCommitted
                }
            };
            self.rescind(place, offer, reason);
        }
    }

    fn owner(&mut self, directory: &mut Directory<'a>, role: &'a str, framework: &'a FrameworkId) -> Owner {
        if let Some((last_role, last_framework, owner)) = directory.last
            && last_role == role
            && last_framework == framework
        {
            return owner;
        }
        let owner = match directory.clients.get(&(role, framework)) {
            Some(client) => Owner::Client(*client, self.world.clients[*client as usize].node),
            None => match self.world.tree.role(role) {
                Some(role) => Owner::Leaf(self.world.tree.leaf(role)),
                None => Owner::Nobody,
            },
        };
        directory.last = Some((role, framework, owner));
        owner
    }

    fn read_filters(&mut self, directory: &Directory<'a>) {
        let agents = &self.snapshot.agents;
        let by_name = &self.world.by_name;
        for filter in self
            .snapshot
            .filters
            .iter()
            .filter(|filter| self.snapshot.now_ms < filter.until_ms)
        {
            let found = by_name.binary_search_by(|place| agents[*place as usize].name.as_str().cmp(&filter.agent));
            let (Ok(found), Some(client)) = (found, directory.clients.get(&(&filter.role, &filter.framework))) else {
                // Nobody there (any more) to keep apart.
                continue;
            };
            let refused = filter.refused.values();
            let declined = Declined {
                agent: by_name[found],
                refused,
                until_ms: filter.until_ms,
            };
            self.world.clients[*client as usize].filters.push(declined);
        }
        for client in &mut self.world.clients {
            client
                .filters
                .sort_by_key(|filter| (filter.agent, std::cmp::Reverse(filter.until_ms)));
        }
    }

    /// Before anything is settled: takes an open offer out of the books.
    fn unhold(&mut self, index: usize) {
        let world = &mut self.world;
        let open = &mut world.open[index];
        open.kept = false;
        let agent = &self.snapshot.agents[open.agent as usize];
        world.agents[open.agent as usize].release(agent, &agent.offers[open.offer as usize].bundle);
        world
            .tree
            .uncharge(world.clients[open.client as usize].node, &open.held);
    }

    fn drop_offers_above_limits(&mut self) {
        for index in (0..self.world.open.len()).rev() {
            let open = &self.world.open[index];
            let role = self.world.clients[open.client as usize].role;
            let Some(exceeded) = self.world.tree.exceeded(role, &open.held).map(str::to_owned) else {
                continue;
            };
            let (place, offer) = (open.agent, self.world.open_offer(open, self.snapshot));
            self.unhold(index);
            self.rescind(place, offer, RescindReason::LimitExceeded(exceeded));
        }
    }

    /// Puts pending tasks into the open offers; offers that hold none and that no declared demand stands behind have to go.
    fn drop_offers_without_demand(&mut self) {
        for index in 0..self.world.open.len() {
            if !self.world.open[index].kept {
                continue;
            }
            let filled = self.fill_open(index);
            let open = &mut self.world.open[index];
            let client = &mut self.world.clients[open.client as usize];
            let declared = client
                .open_demand()
                .map(|declared| &self.world.shapes.shapes[declared.shape as usize]);
            let wanted =
                !filled.is_empty() || declared.is_some_and(|shape| values::contains(&open.held, &shape.amounts));
            open.filled = filled;
            if wanted {
                client.outstanding = client.outstanding.saturating_add(1);
                continue;
            }
            let (place, offer) = (
                open.agent,
                &self.snapshot.agents[open.agent as usize].offers[open.offer as usize],
            );
            self.unhold(index);
            self.rescind(place, offer, RescindReason::NoDemand);
        }
    }

    fn fill_open(&mut self, index: usize) -> Vec<(u32, u64)> {
        let open = &self.world.open[index];
        let agent = &self.snapshot.agents[open.agent as usize];
        let bundle = &agent.offers[open.offer as usize].bundle;
        let places = (0u32..).zip(&agent.devices);
        let mut devices: Vec<u32> = Vec::new();
        if !bundle.devices.is_empty() {
            devices = places
                .filter(|(_, device)| bundle.devices.contains(&device.uuid))
                .map(|(place, _)| place)
                .collect();
        }
        let mut room = Room {
            values: open.held,
            ports: bundle.ports.clone(),
            devices,
            agent,
        };
        let (shapes, matches, agents) = (&self.world.shapes, &mut self.matches, &self.snapshot.agents);
        let place = open.agent as usize;
        let client = &mut self.world.clients[open.client as usize];
        client.fill(shapes, &mut room, |selector| {
            matches.holds(shapes, selector, place, agents)
        })
    }

    /// Everything is counted: measures shares, and puts those who want something into the order.
    fn settle(&mut self) {
        let world = &mut self.world;
        let mut totals = values::ZERO;
        let mut most = values::ZERO;
        for place in &world.by_name {
            let state = &world.agents[*place as usize];
            totals = values::add(&totals, &state.total);
            if state.available {
                world.free = values::add(&world.free, &state.free);
                most = values::max(&most, &state.free);
            }
        }
        world.tree.settle(totals, self.params.shared);
        let usable = is_offer(self.params, &most);
        for client in 0..u32::try_from(world.clients.len()).expect("fewer than 2^32 frameworks") {
            let state = &mut world.clients[client as usize];
            state.refresh(&world.shapes);
            // Who fits nowhere would only be asked in vain; but a guarantee may get room by a rescind.
            if world.tree.guaranteed || (usable && values::contains(&most, &state.lower)) {
                world.requeue(client);
            }
        }
    }
}
