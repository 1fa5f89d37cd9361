//! The words of the report: verdicts with their arithmetic, and one line for each group of agents alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_api::device::GpuRequirement;
use muster_api::resources::{Amounts, RESOURCE_NAMES};
use muster_api::v1::{Constraint, Operator};
use muster_api::wire::WhyAgent;

use crate::agents::offerable;
use crate::client::{Client, Slot};
use crate::fit::{Matches, Shape, attribute, holds};
use crate::params::Params;
use crate::quota::amount;
use crate::report::Verdict;
use crate::snapshot::{Availability, Snapshot};
use crate::values::{self, GPUS, Values};
use crate::world::{Obstacle, World};

/// Reads explanations off a world.
pub(crate) struct Explainer<'a> {
    world: &'a World,
    snapshot: &'a Snapshot,
    params: &'a Params,
    matches: Matches,
    /// By shape.
    facts: BTreeMap<u32, Facts>,
    /// By shape: agents alike, whoever asks.
    groups: BTreeMap<u32, Groups>,
    /// The most that is free of each resource on one available agent.
    most: Values,
}

/// What holds for a shape whoever asks for it.
#[derive(Clone)]
struct Facts {
    /// Some agent is large enough and matches.
    capable: bool,
    /// The first available agent that has room for it now.
    room: Option<u32>,
    /// What keeps it from the agent that comes closest.
    nearest: String,
}

/// Agents alike: the first, and how many.
type Groups = BTreeMap<Standing, (u32, usize)>;

/// How an agent stands to a shape. In the order in which lines are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Offered,
    Room,
    /// There is room, but the task has an offer already.
    Spare,
    Kept(Obstacle),
    /// Too little is free: of what (free, total; zero where enough is).
    Busy(Values, Values),
    /// Enough GPUs are free, but not enough of them close to each other.
    Apart,
    /// It names ports that are taken.
    PortsTaken,
    /// Too little in all.
    Small(Values),
    /// It names ports that the agent has not.
    PortsUnknown,
    /// Too few devices do: why.
    Devices(String),
    /// Which constraint does not hold, and the value that the agent has.
    Constraint(usize, Option<String>),
    Unavailable(String),
}

impl<'a> Explainer<'a> {
    pub(crate) fn new(world: &'a World, snapshot: &'a Snapshot, params: &'a Params) -> Explainer<'a> {
        let available = world.agents.iter().filter(|state| state.available);
        let most = available.fold(values::ZERO, |most, state| values::max(&most, &state.free));
        Explainer {
            world,
            snapshot,
            params,
            matches: Matches::default(),
            facts: BTreeMap::new(),
            groups: BTreeMap::new(),
            most,
        }
    }

    fn shape(&self, shape: u32) -> &'a Shape {
        &self.world.shapes.shapes[shape as usize]
    }

    /// What the tasks of a group need, in words.
    pub(crate) fn needs(&self, (client, slot): (u32, u32)) -> String {
        let slot = &self.world.clients[client as usize].queue[slot as usize];
        let shape = self.shape(slot.shape);
        let mut words = vec![Amounts::from_values(shape.amounts).unwrap_or_default().to_string()];
        if let Some(ports) = &shape.ports {
            words.push(format!("ports {ports}"));
        }
        if shape.amounts[GPUS] > 0 && shape.gpu != GpuRequirement::default() {
            words.push(format!("a GPU {}", shape.gpu.words()));
        }
        let constraints = &self.world.shapes.selectors[shape.selector as usize];
        words.extend(constraints.iter().map(constraint_words));
        words.join(", ")
    }

    /// What holds for tasks that no offer has room for.
    pub(crate) fn judge(&mut self, client: &Client, slot: &Slot) -> (Verdict, Arc<str>) {
        if slot.left == 0 {
            return (Verdict::Offered, "".into());
        }
        if self.snapshot.agents.is_empty() {
            return (Verdict::Waiting, "no agent has joined yet; start one".into());
        }
        let facts = self.facts(slot.shape);
        let shape = self.shape(slot.shape);
        if !facts.capable {
            let message = format!(
                "no agent could ever take it: {}; change the task or add such an agent",
                facts.nearest
            );
            return (Verdict::ExceedsEveryAgent, message.into());
        }
        if let Some(why) = self.world.tree.limit_reached(client.role, &shape.amounts) {
            let message = format!("{why}; it waits for others of the role to end, or raise the limit");
            return (Verdict::QuotaReached, message.into());
        }
        let Some(room) = facts.room else {
            let message = format!("no agent has room now: {}; it waits for others to end", facts.nearest);
            return (Verdict::Waiting, message.into());
        };
        let name = &self.snapshot.agents[room as usize].name;
        let part = self
            .world
            .part(client, room, self.snapshot, self.params, &mut self.matches);
        let message = match part {
            Ok(_) => format!("agent {name} has room; this pass has made all the offers it may, the next one goes on"),
            Err(obstacle) => format!("agent {name} has room, but {}", self.obstacle(&obstacle)),
        };
        (Verdict::Held, message.into())
    }

    fn obstacle(&self, obstacle: &Obstacle) -> String {
        match obstacle {
            Obstacle::NoFit => "what its role may have of it is too little".to_owned(),
            Obstacle::Limit => "the limit of its role leaves too little; raise the limit or wait".to_owned(),
            Obstacle::Guarantee => "it is kept free for guarantees of other roles; lower those or wait".to_owned(),
            Obstacle::TooSmall => {
                "what is free is smaller than the smallest offer; it waits for more to be free".to_owned()
            }
            Obstacle::Declined(until_ms) => {
                let left = until_ms.saturating_sub(self.snapshot.now_ms).max(0);
                let (seconds, tenths) = (left / 1000, left % 1000 / 100);
                format!("the framework declined such an offer; it is asked again in {seconds}.{tenths}s")
            }
        }
    }

    fn facts(&mut self, id: u32) -> Facts {
        if let Some(facts) = self.facts.get(&id) {
            return facts.clone();
        }
        let shape = self.shape(id);
        let mut facts = Facts {
            capable: false,
            room: None,
            nearest: String::new(),
        };
        let roomy = values::contains(&self.most, &shape.amounts);
        for place in &self.world.by_name {
            facts.capable = facts.capable || self.is_capable(shape, *place);
            if roomy && self.has_room(shape, *place) {
                facts.room = Some(*place);
            }
            if facts.capable && (facts.room.is_some() || !roomy) {
                break;
            }
        }
        if !facts.capable || facts.room.is_none() {
            let known = self.facts.len() < self.params.explained_max;
            facts.nearest = if known {
                self.nearest(shape)
            } else {
                "too little is free or there".to_owned()
            };
        }
        self.facts.insert(id, facts.clone());
        facts
    }

    fn is_capable(&mut self, shape: &Shape, place: u32) -> bool {
        let agent = &self.snapshot.agents[place as usize];
        let state = &self.world.agents[place as usize];
        values::contains(&state.total, &shape.amounts)
            && self.matches.holds(
                &self.world.shapes,
                shape.selector,
                place as usize,
                &self.snapshot.agents,
            )
            && shape.fits_exactly(&agent.total.ports, &offerable(agent), agent)
    }

    fn has_room(&mut self, shape: &Shape, place: u32) -> bool {
        let state = &self.world.agents[place as usize];
        state.available
            && shape.fits(&state.free, state, &self.snapshot.agents[place as usize])
            && self.matches.holds(
                &self.world.shapes,
                shape.selector,
                place as usize,
                &self.snapshot.agents,
            )
    }

    /// What keeps a shape from the agent that comes closest: the best kind of obstacle, then the fewest resources short.
    fn nearest(&mut self, shape: &Shape) -> String {
        let mut best: Option<(u32, usize, u32, Standing)> = None;
        for place in &self.world.by_name {
            let standing = self.standing(shape, *place);
            let (rank, short) = match &standing {
                Standing::Busy(_, total) => (1, total.iter().filter(|value| **value > 0).count()),
                Standing::Unavailable(_) if self.is_capable(shape, *place) => (2, 0),
                Standing::Small(total) => (3, total.iter().filter(|value| **value < u64::MAX).count()),
                Standing::PortsUnknown => (4, 0),
                Standing::Devices(_) => (5, 0),
                Standing::Constraint(..) => (6, 0),
                Standing::Unavailable(_) => (7, 0),
                _ => (1, 0),
            };
            if best
                .as_ref()
                .is_none_or(|(best_rank, best_short, ..)| (rank, short) < (*best_rank, *best_short))
            {
                best = Some((rank, short, *place, standing));
            }
        }
        let Some((.., place, standing)) = best else {
            return "there is no agent".to_owned();
        };
        let words = self.words(shape, &standing);
        format!(
            "agent {} comes closest: {words}",
            self.snapshot.agents[place as usize].name
        )
    }

    /// How an agent stands to a shape, whoever asks for it.
    fn standing(&self, shape: &Shape, place: u32) -> Standing {
        let (agent, state) = (
            &self.snapshot.agents[place as usize],
            &self.world.agents[place as usize],
        );
        if let Availability::Unavailable(why) = &agent.availability {
            return Standing::Unavailable(why.clone());
        }
        let constraints = &self.world.shapes.selectors[shape.selector as usize];
        if let Some(failed) = constraints.iter().position(|constraint| !holds(constraint, agent)) {
            let value = attribute(agent, &constraints[failed].attribute).map(str::to_owned);
            return Standing::Constraint(failed, value);
        }
        let (mut total, mut free) = (state.total, state.free);
        if !values::contains(&total, &shape.amounts) {
            let mut short = values::ALL;
            for index in (0..short.len()).filter(|index| total[*index] < shape.amounts[*index]) {
                short[index] = total[index];
            }
            return Standing::Small(short);
        }
        if shape.amounts[GPUS] > 0 {
            let all = offerable(agent);
            let count = |devices: &[u32]| devices.iter().filter(|device| shape.takes(**device, agent)).count() as u64;
            (total[GPUS], free[GPUS]) = (count(&all), count(&state.devices));
            if total[GPUS] < shape.amounts[GPUS] {
                let other = all
                    .iter()
                    .find_map(|device| shape.gpu.mismatch(crate::agents::device(agent, *device)));
                return Standing::Devices(format!("too few GPUs match: {}", other.unwrap_or_default()));
            }
            if !shape.has_devices(&all, agent) {
                return Standing::Devices(
                    "too few GPUs reach each other over NVLink or PCIe switches alone".to_owned(),
                );
            }
        }
        if shape
            .ports
            .as_ref()
            .is_some_and(|ports| !agent.total.ports.contains(ports))
        {
            return Standing::PortsUnknown;
        }
        let (mut short_free, mut short_total) = (values::ZERO, values::ZERO);
        for index in (0..free.len()).filter(|index| free[*index] < shape.amounts[*index]) {
            (short_free[index], short_total[index]) = (free[index], total[index]);
        }
        if short_total != values::ZERO {
            return Standing::Busy(short_free, short_total);
        }
        if !shape.has_devices(&state.devices, agent) {
            return Standing::Apart;
        }
        match &shape.ports {
            Some(ports) if !state.free_ports(agent).contains(ports) => Standing::PortsTaken,
            _ => Standing::Room,
        }
    }

    /// The agents by how they stand to a client's shape.
    fn groups(&mut self, owner: &Client, id: u32, offered: &[u32], all_offered: bool) -> Groups {
        let shape = self.shape(id);
        if let Some(known) = self.groups.get(&id).filter(|_| offered.is_empty()) {
            return known.clone();
        }
        let mut groups = Groups::new();
        let mut same_for_all = offered.is_empty();
        for place in &self.world.by_name {
            let mut standing = self.standing(shape, *place);
            if offered.binary_search(place).is_ok()
                && !matches!(standing, Standing::Constraint(..) | Standing::Unavailable(_))
            {
                standing = Standing::Offered;
            }
            if standing == Standing::Room {
                same_for_all = false;
                let part = self
                    .world
                    .part(owner, *place, self.snapshot, self.params, &mut self.matches);
                standing = match part {
                    _ if all_offered => Standing::Spare,
                    Ok(_) => Standing::Room,
                    Err(obstacle) => Standing::Kept(obstacle),
                };
            }
            groups.entry(standing).or_insert((*place, 0)).1 += 1;
        }
        if same_for_all {
            self.groups.insert(id, groups.clone());
        }
        groups
    }

    /// One line for each group of agents alike; what can be done now comes first.
    pub(crate) fn lines(&mut self, (client, slot): (u32, u32)) -> Vec<WhyAgent> {
        let world = self.world;
        let owner = &world.clients[client as usize];
        let shape = self.shape(owner.queue[slot as usize].shape);
        let has_room = |filled: &[(u32, u64)]| filled.iter().any(|(filled, _)| *filled == slot);
        let given = world
            .given
            .iter()
            .filter(|given| given.client == client && has_room(&given.filled));
        let open = world
            .open
            .iter()
            .filter(|open| open.kept && open.client == client && has_room(&open.filled));
        let mut offered: Vec<u32> = given
            .map(|given| given.agent)
            .chain(open.map(|open| open.agent))
            .collect();
        offered.sort_unstable();
        let all_offered = owner.queue[slot as usize].left == 0;
        let groups = self.groups(owner, owner.queue[slot as usize].shape, &offered, all_offered);
        let most = self.params.agent_lines_max.max(1);
        let rest: Vec<(u32, usize)> = groups.values().skip(most).copied().collect();
        let mut lines: Vec<WhyAgent> = groups
            .iter()
            .take(most)
            .map(|(standing, (first, count))| WhyAgent {
                agent: self.snapshot.agents[*first as usize].name.clone(),
                count: *count,
                fits: matches!(standing, Standing::Offered | Standing::Room | Standing::Spare),
                reasons: vec![self.words(shape, standing)],
            })
            .collect();
        if let Some((first, _)) = rest.first() {
            lines.push(WhyAgent {
                agent: self.snapshot.agents[*first as usize].name.clone(),
                count: rest.iter().map(|(_, count)| count).sum(),
                fits: false,
                reasons: vec!["the same kinds of reasons with other numbers".to_owned()],
            });
        }
        lines
    }

    fn words(&self, shape: &Shape, standing: &Standing) -> String {
        let short = |have: &Values, total: Option<&Values>| {
            let short = |index: &usize| total.map_or(have[*index] < u64::MAX, |total| total[*index] > 0);
            let words = (0..have.len()).filter(short).map(|index| {
                let name = RESOURCE_NAMES[index];
                let (wanted, have) = (amount(index, shape.amounts[index]), amount(index, have[index]));
                match total {
                    Some(total) => format!("needs {wanted} {name}, {have} of {} free", amount(index, total[index])),
                    None => format!("needs {wanted} {name}, has {have}"),
                }
            });
            words.collect::<Vec<_>>().join("; ")
        };
        match standing {
            Standing::Offered => "offered to its framework".to_owned(),
            Standing::Room => "has room; an offer follows in the next pass".to_owned(),
            Standing::Spare => "has room; not needed, since other offers have room for it".to_owned(),
            Standing::Kept(obstacle) => format!("has room, but {}", self.obstacle(obstacle)),
            Standing::Busy(free, total) => short(free, Some(total)),
            Standing::Small(total) => short(total, None),
            Standing::PortsTaken => "some of the ports it names are taken".to_owned(),
            Standing::PortsUnknown => "some of the ports it names are not the agent's".to_owned(),
            Standing::Devices(why) => why.clone(),
            Standing::Apart => {
                "too few of the free GPUs reach each other over NVLink or PCIe switches alone".to_owned()
            }
            Standing::Constraint(index, value) => {
                let constraint = &self.world.shapes.selectors[shape.selector as usize][*index];
                let name = &constraint.attribute;
                match value {
                    Some(value) => format!("wants {}, {name} is {value}", constraint_words(constraint)),
                    None => format!("wants {}, has no {name}", constraint_words(constraint)),
                }
            }
            Standing::Unavailable(why) => why.clone(),
        }
    }
}

fn constraint_words(constraint: &Constraint) -> String {
    let (name, values) = (&constraint.attribute, constraint.values.join("|"));
    match constraint.operator {
        Operator::In => format!("{name} in {values}"),
        Operator::NotIn => format!("{name} not in {values}"),
        Operator::Exists => format!("some {name}"),
        Operator::DoesNotExist => format!("no {name}"),
    }
}
