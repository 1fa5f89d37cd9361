//! A framework in one role, and what it still wants.

use crate::fit::{Room, ShapeId, Shapes};
use crate::tree::NodeId;
use crate::values::{self, Values};

/// A framework in one role.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Client {
    /// Which framework of the snapshot, and which of its roles.
    pub(crate) framework: u32,
    pub(crate) demand: u32,
    pub(crate) node: NodeId,
    pub(crate) role: NodeId,
    /// Its pending tasks, equal ones together, in the order of the first of each.
    pub(crate) queue: Vec<Slot>,
    /// For each pending task its place in `queue`.
    pub(crate) slots: Vec<u32>,
    pub(crate) declared: Option<Declared>,
    /// How many offers are open, new ones included.
    pub(crate) outstanding: u32,
    pub(crate) wants_ports: bool,
    /// The shapes that take GPUs; without one it is offered none.
    pub(crate) gpu_shapes: Vec<ShapeId>,
    /// Every shape that is still wanted needs at least this.
    pub(crate) lower: Values,
    /// What it declined, by agent.
    pub(crate) filters: Vec<Declined>,
}

/// Pending tasks of equal shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) shape: ShapeId,
    pub(crate) total: u64,
    /// So many of them have no room in any open or new offer.
    pub(crate) left: u64,
}

/// A wish for offers besides those for pending tasks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Declared {
    pub(crate) shape: ShapeId,
    pub(crate) max_offers: u32,
}

/// A filter that holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Declined {
    pub(crate) agent: u32,
    pub(crate) refused: Values,
    pub(crate) until_ms: i64,
}

impl Client {
    /// The declared demand, while more offers are wanted for it.
    pub(crate) fn open_demand(&self) -> Option<&Declared> {
        self.declared
            .as_ref()
            .filter(|declared| self.outstanding < declared.max_offers)
    }

    /// Whether it wants an offer at all.
    pub(crate) fn is_hungry(&self) -> bool {
        self.open_demand().is_some() || self.queue.iter().any(|slot| slot.left > 0)
    }

    /// Works out [`Client::lower`] again after what it wants has changed.
    pub(crate) fn refresh(&mut self, shapes: &Shapes) {
        let open = self.queue.iter().filter(|slot| slot.left > 0).map(|slot| slot.shape);
        let open = open.chain(self.open_demand().map(|declared| declared.shape));
        self.lower = open.fold(values::ALL, |lower, shape| {
            values::min(&lower, &shapes.shapes[shape as usize].amounts)
        });
    }

    /// Puts pending tasks into an offer, in their order, and says how many of which slot.
    pub(crate) fn fill(
        &mut self,
        shapes: &Shapes,
        room: &mut Room<'_>,
        mut matches: impl FnMut(u32) -> bool,
    ) -> Vec<(u32, u64)> {
        let mut filled = Vec::new();
        for (place, slot) in (0u32..).zip(&mut self.queue) {
            let shape = &shapes.shapes[slot.shape as usize];
            if slot.left == 0 || !values::contains(&room.values, &shape.amounts) || !matches(shape.selector) {
                continue;
            }
            let count = room.fill(shape, slot.left);
            if count > 0 {
                slot.left -= count;
                filled.push((place, count));
            }
        }
        filled
    }

    /// The filter that keeps an offer of an agent away.
    pub(crate) fn declined(&self, agent: u32, offer: &Values) -> Option<&Declined> {
        let first = self.filters.partition_point(|filter| filter.agent < agent);
        let of_agent = self.filters[first..].iter().take_while(|filter| filter.agent == agent);
        of_agent
            .into_iter()
            .find(|filter| values::contains(&filter.refused, offer))
    }
}
