//! The pass itself: guarantees first, then rescinds for guarantees, then fair shares.

use crate::params::RescindReason;
use crate::snapshot::OpenOffer;
use crate::values::{self, GPUS, Values};
use crate::world::{Part, Pass, is_offer};

impl Pass<'_> {
    /// Decides on all offers.
    pub(crate) fn run(&mut self) {
        let order = self.order();
        if self.world.tree.guaranteed {
            self.serve(true);
            self.offer_all(&order);
            self.serve(false);
            self.reclaim(&order);
        }
        self.offer_all(&order);
    }

    /// The agents that may be offered, those with the fewest free GPUs first, then by name: tasks without GPUs stay away from
    /// GPUs while there is other room, and tasks with few GPUs from agents that have many together.
    fn order(&self) -> Vec<u32> {
        let agents = &self.world.agents;
        let mut order: Vec<u32> = self
            .world
            .by_name
            .iter()
            .copied()
            .filter(|place| agents[*place as usize].available)
            .collect();
        order.sort_by_key(|place| agents[*place as usize].free[GPUS]);
        order
    }

    /// From now on all are served that want something, or only those of them whose guarantees are not met.
    fn serve(&mut self, guarantees_only: bool) {
        self.world.guarantees_only = guarantees_only;
        for client in 0..u32::try_from(self.world.clients.len()).expect("fewer than 2^32 frameworks") {
            self.world.requeue(client);
        }
    }

    fn offer_all(&mut self, order: &[u32]) {
        let lower = self.lower();
        for place in order {
            if self.world.tree.is_idle() || self.offers.len() >= self.params.offers_max {
                return;
            }
            self.offer(*place, &lower);
        }
    }

    /// Nobody wants anything smaller than this.
    fn lower(&self) -> Values {
        let wanted = self.world.clients.iter().map(|client| &client.lower);
        wanted.fold(values::ALL, |lower, client| values::min(&lower, client))
    }

    /// Offers one agent, to one client after the other while something is left that somebody wants.
    fn offer(&mut self, place: u32, lower: &Values) {
        self.turn += 1;
        while self.offers.len() < self.params.offers_max {
            let free = self.world.agents[place as usize].free;
            if !values::contains(&free, lower) || !is_offer(self.params, &free) {
                return;
            }
            let (world, turns, matches) = (&self.world, &mut self.turns, &mut self.matches);
            let mut spent = Vec::new();
            let found = world.tree.find(&free, &mut |client| {
                // What a client could not use it can use even less of when others have taken a part.
                if std::mem::replace(&mut turns[client as usize], self.turn) == self.turn {
                    return None;
                }
                let state = &world.clients[client as usize];
                let missing = if world.guarantees_only {
                    world.tree.missing(state.role)
                } else {
                    values::ALL
                };
                if missing == values::ZERO {
                    spent.push(client);
                    return None;
                }
                let part = world.part(state, place, self.snapshot, self.params, matches);
                part.ok()
                    .filter(|part| fills(part, &missing))
                    .map(|part| (client, part))
            });
            spent.into_iter().for_each(|client| self.world.requeue(client));
            match found {
                Some((client, part)) => self.give(client, place, &part),
                None => return,
            }
        }
    }

    /// Takes open offers back where a guarantee is not met, its role wants more, and the agent would have room without them.
    fn reclaim(&mut self, order: &[u32]) {
        let mut hungry = self.unmet();
        for place in order {
            if hungry.is_empty() {
                return;
            }
            for client in hungry.clone() {
                if self.offers.len() < self.params.offers_max && self.reclaim_for(client, *place) {
                    hungry = self.unmet();
                }
            }
        }
    }

    /// Clients that want something and whose guarantees are not met, in the order in which they are served.
    fn unmet(&self) -> Vec<u32> {
        let mut hungry = Vec::new();
        self.world.tree.find(&values::ALL, &mut |client| {
            let role = self.world.clients[client as usize].role;
            if self.world.tree.missing(role) != values::ZERO {
                hungry.push(client);
            }
            None::<()>
        });
        hungry
    }

    fn reclaim_for(&mut self, client: u32, place: u32) -> bool {
        let state = &self.world.clients[client as usize];
        if !state.is_hungry() || self.world.tree.missing(state.role) == values::ZERO {
            return false;
        }
        let (role, lower) = (state.role, state.lower);
        let victims = self.victims(client, place);
        let all = victims.iter().map(|open| self.world.open[*open].held);
        let all = all.fold(self.world.agents[place as usize].free, |sum, held| {
            values::add(&sum, &held)
        });
        if victims.is_empty() || !values::contains(&all, &lower) {
            return false;
        }
        let guarantee = self.world.tree.unmet(role).unwrap_or_default().to_owned();
        let mut released = Vec::new();
        for victim in victims {
            let record = &self.world.open[victim];
            let owner = self.world.clients[record.client as usize].role;
            if !self.world.tree.can_spare(owner, &record.held) {
                continue;
            }
            self.release(victim);
            released.push(victim);
            let state = &self.world.clients[client as usize];
            let part = self
                .world
                .part(state, place, self.snapshot, self.params, &mut self.matches);
            let missing = self.world.tree.missing(role);
            let Some(part) = part.ok().filter(|part| fills(part, &missing)) else {
                continue;
            };
            self.give(client, place, &part);
            for open in released {
                let offer: &OpenOffer = self.world.open_offer(&self.world.open[open], self.snapshot);
                self.rescind(place, offer, RescindReason::GuaranteeUnmet(guarantee.clone()));
            }
            return true;
        }
        for open in released.into_iter().rev() {
            self.restore(open);
        }
        false
    }

    /// The open offers of an agent that may be taken back for a client.
    fn victims(&self, client: u32, place: u32) -> Vec<usize> {
        let open = &self.world.open;
        let agents = &self.snapshot.agents;
        let name = &agents[place as usize].name;
        let first = open.partition_point(|open| agents[open.agent as usize].name < *name);
        let of_agent = open[first..].iter().take_while(|open| open.agent == place);
        let of_others = (first..)
            .zip(of_agent)
            .filter(|(_, open)| open.kept && open.client != client);
        let spare = of_others.filter(|(_, open)| {
            self.world
                .tree
                .can_spare(self.world.clients[open.client as usize].role, &open.held)
        });
        spare.map(|(index, _)| index).collect()
    }
}

/// Whether a part has some of what is missing.
fn fills(part: &Part, missing: &Values) -> bool {
    (0..missing.len()).any(|index| missing[index] > 0 && part.values[index] > 0)
}
