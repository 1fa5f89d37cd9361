//! Guarantees and limits, at every level of the tree.
//!
//! * A limit holds for a role with all that is below it; what a role may still get is the least that any role of its path may.
//! * A guarantee that is not used is kept free as *headroom*: nobody else may take the cluster below the sum of what is still
//!   missing. The need of a role is what it misses itself, or what the roles below it miss together, whichever is more.
//! * Resources that a quota does not name are neither guaranteed nor limited.

use muster_api::resources::{Amounts, RESOURCE_NAMES};

use crate::snapshot::QuotaSnapshot;
use crate::tree::{NodeId, ROOT, Tree};
use crate::values::{self, Values};

/// A quota, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Quota {
    pub(crate) name: String,
    /// Thousandths.
    pub(crate) weight: u64,
    pub(crate) guarantee: Values,
    pub(crate) limit: [Option<u64>; 5],
    pub(crate) minimum: Values,
}

/// What is still missing to guarantees.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Need {
    /// Of the role and all below it.
    all: Values,
    /// Of the roles right below it, together.
    below: Values,
}

impl Quota {
    pub(crate) fn read(quota: &QuotaSnapshot) -> Quota {
        let limit = quota.limit.values();
        let guarantee = quota.guarantee.values();
        Quota {
            name: quota.name.clone(),
            weight: quota.weight.milli(),
            // A guarantee above the limit could never be given; it would only keep others away.
            guarantee: std::array::from_fn(|index| guarantee[index].unwrap_or(0).min(limit[index].unwrap_or(u64::MAX))),
            limit,
            minimum: quota.minimum_offer.values().map(|value| value.unwrap_or(0)),
        }
    }

    pub(crate) fn has_limit(&self) -> bool {
        self.limit.iter().any(Option::is_some)
    }

    pub(crate) fn has_minimum(&self) -> bool {
        self.minimum != values::ZERO
    }

    pub(crate) fn has_guarantee(&self) -> bool {
        self.guarantee != values::ZERO
    }
}

impl Tree {
    /// Works out all needs from usage.
    pub(crate) fn measure_needs(&mut self) {
        for node in &mut self.nodes {
            node.need = Need::default();
        }
        // Children come after their parents.
        for id in (1..self.nodes.len()).rev() {
            let all = self.need_at(id);
            let parent = self.nodes[id].parent as usize;
            self.nodes[id].need.all = all;
            self.nodes[parent].need.below = values::add(&self.nodes[parent].need.below, &all);
        }
    }

    fn need_at(&self, id: usize) -> Values {
        let node = &self.nodes[id];
        let missing = node
            .quota
            .as_ref()
            .map(|quota| values::sub(&quota.guarantee, &node.used));
        missing.map_or(node.need.below, |missing| values::max(&missing, &node.need.below))
    }

    /// The usage of a role has changed: works out the needs of it and of all above it.
    pub(crate) fn renew_needs(&mut self, role: NodeId) {
        let mut at = role;
        while at != ROOT {
            let all = self.need_at(at as usize);
            let node = &mut self.nodes[at as usize];
            let before = std::mem::replace(&mut node.need.all, all);
            let parent = node.parent;
            let below = &mut self.nodes[parent as usize].need.below;
            *below = values::add(&values::sub(below, &before), &all);
            at = parent;
        }
    }

    /// What all roles together still miss.
    pub(crate) fn needed(&self) -> Values {
        self.nodes[ROOT as usize].need.below
    }

    /// How much of what the role itself gets next would fill guarantees of it and of those above it.
    pub(crate) fn missing(&self, role: NodeId) -> Values {
        self.path(role).fold(values::ZERO, |sum, node| {
            values::add(&sum, &values::sub(&node.need.all, &node.need.below))
        })
    }

    /// What the role may still get until a limit of it or of a role above it is reached.
    pub(crate) fn headroom(&self, role: NodeId) -> Values {
        if !self.nodes[role as usize].limited {
            return values::ALL;
        }
        self.path(role).fold(values::ALL, |room, node| match &node.quota {
            None => room,
            Some(quota) => std::array::from_fn(|index| match quota.limit[index] {
                None => room[index],
                Some(limit) => room[index].min(limit.saturating_sub(node.used[index])),
            }),
        })
    }

    /// Whether an offer is large enough for the role and all above it.
    pub(crate) fn is_large_enough(&self, role: NodeId, offer: &Values) -> bool {
        !self.nodes[role as usize].floored
            || self
                .path(role)
                .filter_map(|node| node.quota.as_ref())
                .all(|quota| values::contains(offer, &quota.minimum))
    }

    /// Whether guarantees of the role and of all above it are met without `held`, so that it may be taken away.
    pub(crate) fn can_spare(&self, role: NodeId, held: &Values) -> bool {
        self.path(role).all(|node| {
            node.quota.as_ref().is_none_or(|quota| {
                (0..held.len()).all(|index| {
                    held[index] == 0 || node.used[index] - held[index].min(node.used[index]) >= quota.guarantee[index]
                })
            })
        })
    }

    /// The first role, from this one upwards, that holds more than its limit of something that is in `held`.
    pub(crate) fn exceeded(&self, role: NodeId, held: &Values) -> Option<&str> {
        if !self.nodes[role as usize].limited {
            return None;
        }
        let over = |quota: &Quota, used: &Values| {
            (0..used.len()).any(|index| held[index] > 0 && quota.limit[index].is_some_and(|limit| used[index] > limit))
        };
        self.path(role)
            .find(|node| node.quota.as_ref().is_some_and(|quota| over(quota, &node.used)))
            .map(|node| node.path.as_str())
    }

    /// The first role, from this one upwards, whose guarantee is not met.
    pub(crate) fn unmet(&self, role: NodeId) -> Option<&str> {
        self.path(role)
            .find(|node| values::sub(&node.need.all, &node.need.below) != values::ZERO)
            .map(|node| node.path.as_str())
    }

    /// Which limit keeps `wanted` from the role, with the arithmetic; `None`: none.
    pub(crate) fn limit_reached(&self, role: NodeId, wanted: &Values) -> Option<String> {
        self.path(role).find_map(|node| {
            let quota = node.quota.as_ref()?;
            let index = (0..wanted.len()).find(|index| {
                wanted[*index] > 0
                    && quota.limit[*index].is_some_and(|limit| limit.saturating_sub(node.used[*index]) < wanted[*index])
            })?;
            let limit = quota.limit[index]?;
            let name = RESOURCE_NAMES[index];
            Some(format!(
                "needs {} {name}, but role {} holds {} of the {} {name} that quota {} allows it",
                amount(index, wanted[index]),
                node.path,
                amount(index, node.used[index]),
                amount(index, limit),
                quota.name
            ))
        })
    }
}

/// One amount in words, without its name.
pub(crate) fn amount(index: usize, value: u64) -> String {
    let mut values = values::ZERO;
    values[index] = value;
    match Amounts::from_values(values) {
        Some(amounts) if index == 0 => amounts.cpus.to_string(),
        Some(amounts) if index == 1 => amounts.memory.to_string(),
        Some(amounts) if index == 2 => amounts.disk.to_string(),
        _ => value.to_string(),
    }
}
