//! The tree of roles with the frameworks at its leaves, kept in the order in which they are served.
//!
//! A role's children are the roles right below it and one *leaf*, which holds the frameworks of the role itself (Mesos: the
//! virtual leaf `.`). Every level is sorted by [`Key`]; only those with unmet demand are in the order. Usage is counted for all.
//! A change of usage moves one entry per level, found by bisection, so that a pass never sorts anew.

use std::collections::BTreeMap;

use muster_api::names;

use crate::drf::Key;
use crate::quota::{Need, Quota};
use crate::values::{self, Values};

/// The index of a node.
pub(crate) type NodeId = u32;

/// The root; its children are the top-level roles.
pub(crate) const ROOT: NodeId = 0;
const NONE: u32 = u32::MAX;
/// With more children than this, the floor of a node is only lowered, not worked out anew.
const FLOOR_CHILDREN_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    /// The path of a role; empty for other nodes.
    pub(crate) path: String,
    /// What it and everything below it holds.
    pub(crate) used: Values,
    pub(crate) quota: Option<Box<Quota>>,
    pub(crate) need: Need,
    /// Whether it or a role above it has a limit, or a smallest offer.
    pub(crate) limited: bool,
    pub(crate) floored: bool,
    /// The client, for the node of a framework in a role.
    client: u32,
    /// The leaf, for the node of a role.
    leaf: NodeId,
    /// Children that want something, in the order in which they are served.
    children: Vec<NodeId>,
    /// Whether it is among its parent's children.
    listed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    keys: Vec<Key>,
    /// Nobody at or below a node wants anything smaller than this. A lower bound: it may be too low, never too high.
    floors: Vec<Values>,
    roles: BTreeMap<String, NodeId>,
    totals: Values,
    shared: [bool; 5],
    /// Whether any role has a guarantee.
    pub(crate) guaranteed: bool,
}

impl Default for Tree {
    fn default() -> Tree {
        let mut tree = Tree {
            nodes: Vec::new(),
            keys: Vec::new(),
            floors: Vec::new(),
            roles: BTreeMap::new(),
            totals: values::ZERO,
            shared: [true; 5],
            guaranteed: false,
        };
        tree.push(NONE, String::new());
        tree
    }
}

impl Tree {
    fn push(&mut self, parent: NodeId, path: String) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("a snapshot has fewer than 2^32 roles and frameworks");
        self.nodes.push(Node {
            parent,
            path,
            used: values::ZERO,
            quota: None,
            need: Need::default(),
            limited: false,
            floored: false,
            client: NONE,
            leaf: NONE,
            children: Vec::new(),
            listed: false,
        });
        self.keys.push(Key::new(1000, 0));
        self.floors.push(values::ALL);
        id
    }

    /// The node of a role, which is made with all above it when it is new; `None` when the path is none.
    pub(crate) fn role(&mut self, path: &str) -> Option<NodeId> {
        if let Some(id) = self.roles.get(path) {
            return Some(*id);
        }
        if names::role_problem(path).is_some() {
            return None;
        }
        let parent = match path.rsplit_once('/') {
            Some((parent, _)) => self.role(parent)?,
            None => ROOT,
        };
        let id = self.push(parent, path.to_owned());
        self.roles.insert(path.to_owned(), id);
        Some(id)
    }

    /// Puts a client under a role. Clients of one role must come in the order of their names.
    pub(crate) fn add_client(&mut self, role: NodeId, client: u32, allocations: u64) -> NodeId {
        let leaf = self.leaf(role);
        let id = self.push(leaf, String::new());
        self.nodes[id as usize].client = client;
        self.keys[id as usize].rank = id;
        let mut at = id;
        while at != NONE {
            let key = &mut self.keys[at as usize];
            key.count = key.count.saturating_add(allocations);
            at = self.nodes[at as usize].parent;
        }
        id
    }

    /// The leaf of a role, which holds what the role itself and not one below it holds.
    pub(crate) fn leaf(&mut self, role: NodeId) -> NodeId {
        let known = self.nodes[role as usize].leaf;
        if known != NONE {
            return known;
        }
        let leaf = self.push(role, String::new());
        self.nodes[role as usize].leaf = leaf;
        leaf
    }

    /// The role that a leaf or the leaf of a client belongs to.
    pub(crate) fn role_of_client(&self, client: NodeId) -> NodeId {
        let leaf = self.nodes[client as usize].parent;
        self.nodes[leaf as usize].parent
    }

    /// Sets the quota of a role.
    pub(crate) fn set_quota(&mut self, role: NodeId, quota: Quota) {
        self.keys[role as usize].weight = quota.weight.max(1);
        self.nodes[role as usize].quota = Some(Box::new(quota));
    }

    /// Counts what is held by a node, before [`Tree::settle`].
    pub(crate) fn charge(&mut self, node: NodeId, held: &Values) {
        let mut at = node;
        while at != NONE {
            let slot = &mut self.nodes[at as usize];
            slot.used = values::add(&slot.used, held);
            self.keys[at as usize].count = self.keys[at as usize].count.saturating_add(1);
            at = slot.parent;
        }
    }

    /// Takes back what was counted by [`Tree::charge`], before [`Tree::settle`].
    pub(crate) fn uncharge(&mut self, node: NodeId, held: &Values) {
        let mut at = node;
        while at != NONE {
            let slot = &mut self.nodes[at as usize];
            slot.used = values::sub(&slot.used, held);
            self.keys[at as usize].count = self.keys[at as usize].count.saturating_sub(1);
            at = slot.parent;
        }
    }

    /// Knows all nodes now: which limits and floors bind below which role.
    pub(crate) fn inherit(&mut self) {
        for (rank, id) in self.roles.values().enumerate() {
            // The leaf sorts before its role's other children, as `.` does.
            self.keys[*id as usize].rank = u32::try_from(rank + 1).expect("fewer than 2^32 roles");
        }
        // A parent is always made before its children.
        for id in 1..self.nodes.len() {
            let parent = self.nodes[id].parent as usize;
            let (limited, floored) = (self.nodes[parent].limited, self.nodes[parent].floored);
            let node = &mut self.nodes[id];
            let quota = node.quota.as_deref();
            node.limited = limited || quota.is_some_and(Quota::has_limit);
            node.floored = floored || quota.is_some_and(Quota::has_minimum);
            self.guaranteed |= quota.is_some_and(Quota::has_guarantee);
        }
    }

    /// Usage is complete: measures shares and needs. From now on usage changes by [`Tree::take`] and [`Tree::give_back`] only.
    pub(crate) fn settle(&mut self, totals: Values, shared: [bool; 5]) {
        (self.totals, self.shared) = (totals, shared);
        for (node, key) in self.nodes.iter().zip(&mut self.keys) {
            key.measure(&node.used, &totals, &shared);
        }
        if self.guaranteed {
            self.measure_needs();
        }
    }

    /// Puts a client into the order.
    pub(crate) fn activate(&mut self, client: NodeId) {
        let mut at = client;
        while at != ROOT && !self.nodes[at as usize].listed {
            let parent = self.nodes[at as usize].parent;
            let key = self.keys[at as usize];
            let keys = &self.keys;
            let children = &mut self.nodes[parent as usize].children;
            let place = children.partition_point(|child| keys[*child as usize] < key);
            children.insert(place, at);
            self.nodes[at as usize].listed = true;
            at = parent;
        }
    }

    /// Takes a client out of the order.
    pub(crate) fn deactivate(&mut self, client: NodeId) {
        let mut at = client;
        while at != ROOT && self.nodes[at as usize].listed && self.nodes[at as usize].children.is_empty() {
            let place = self.place(at);
            let parent = self.nodes[at as usize].parent;
            self.nodes[parent as usize].children.remove(place);
            self.nodes[at as usize].listed = false;
            at = parent;
        }
    }

    fn place(&self, node: NodeId) -> usize {
        let key = self.keys[node as usize];
        let children = &self.nodes[self.nodes[node as usize].parent as usize].children;
        children.partition_point(|child| self.keys[*child as usize] < key)
    }

    /// A client is given an allocation.
    pub(crate) fn take(&mut self, client: NodeId, held: &Values) {
        self.change(client, |used| values::add(used, held), |count| count.saturating_add(1));
        if self.guaranteed {
            self.renew_needs(self.role_of_client(client));
        }
    }

    /// An allocation of a client is taken back.
    pub(crate) fn give_back(&mut self, client: NodeId, held: &Values) {
        self.change(client, |used| values::sub(used, held), |count| count.saturating_sub(1));
        if self.guaranteed {
            self.renew_needs(self.role_of_client(client));
        }
    }

    fn change(&mut self, client: NodeId, used: impl Fn(&Values) -> Values, count: impl Fn(u64) -> u64) {
        let mut at = client;
        while at != ROOT {
            let old = self.nodes[at as usize].listed.then(|| self.place(at));
            let node = &mut self.nodes[at as usize];
            node.used = used(&node.used);
            let parent = node.parent;
            let key = &mut self.keys[at as usize];
            key.count = count(key.count);
            key.measure(&node.used, &self.totals, &self.shared);
            if let Some(old) = old {
                self.reposition(parent, old);
            }
            at = parent;
        }
        let root = &mut self.nodes[ROOT as usize];
        root.used = used(&root.used);
    }

    fn reposition(&mut self, parent: NodeId, old: usize) {
        let keys = &self.keys;
        let children = &mut self.nodes[parent as usize].children;
        let key = keys[children[old] as usize];
        let behind = children[old + 1..].partition_point(|child| keys[*child as usize] < key);
        if behind > 0 {
            children[old..=old + behind].rotate_left(1);
            return;
        }
        let before = children[..old].partition_point(|child| keys[*child as usize] < key);
        children[before..=old].rotate_right(1);
    }

    /// A client wants nothing smaller than `floor` from now on.
    pub(crate) fn set_floor(&mut self, client: NodeId, floor: &Values) {
        self.floors[client as usize] = *floor;
        let mut at = self.nodes[client as usize].parent;
        while at != NONE {
            let children = &self.nodes[at as usize].children;
            // Many children: the old bound still holds, and looking at all of them would cost more than it saves.
            let start = if children.len() > FLOOR_CHILDREN_MAX {
                self.floors[at as usize]
            } else {
                values::ALL
            };
            let few = children
                .iter()
                .take(FLOOR_CHILDREN_MAX)
                .map(|child| &self.floors[*child as usize]);
            let floor = few.fold(values::min(&start, floor), |lower, child| values::min(&lower, child));
            self.floors[at as usize] = floor;
            at = self.nodes[at as usize].parent;
        }
    }

    /// The first client, in the order in which they are served, that may want something as small as `free` and for which `test`
    /// is something.
    pub(crate) fn find<T>(&self, free: &Values, test: &mut impl FnMut(u32) -> Option<T>) -> Option<T> {
        self.find_below(ROOT, free, test)
    }

    fn find_below<T>(&self, node: NodeId, free: &Values, test: &mut impl FnMut(u32) -> Option<T>) -> Option<T> {
        let node = &self.nodes[node as usize];
        if node.client != NONE {
            return test(node.client);
        }
        let able = node
            .children
            .iter()
            .filter(|child| values::contains(free, &self.floors[**child as usize]));
        able.into_iter().find_map(|child| self.find_below(*child, free, test))
    }

    /// Whether nobody wants anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.nodes[ROOT as usize].children.is_empty()
    }

    /// The role and all above it, the root left out.
    pub(crate) fn path(&self, role: NodeId) -> impl Iterator<Item = &Node> {
        let mut at = role;
        std::iter::from_fn(move || {
            (at != ROOT && at != NONE).then(|| {
                let node = &self.nodes[at as usize];
                at = node.parent;
                node
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted_anew(tree: &Tree, node: NodeId, clients: &mut Vec<u32>) {
        let this = &tree.nodes[node as usize];
        if this.client != NONE {
            clients.push(this.client);
        }
        let mut children = this.children.clone();
        children.sort_by_key(|child| tree.keys[*child as usize]);
        children.into_iter().for_each(|child| sorted_anew(tree, child, clients));
    }

    fn order(tree: &Tree) -> Vec<u32> {
        let mut clients = Vec::new();
        tree.find(&values::ALL, &mut |client| {
            clients.push(client);
            None::<()>
        });
        clients
    }

    proptest! {
        #[test]
        fn the_order_that_is_kept_is_the_order_sorted_anew(
            weights in prop::collection::vec(1u64..3000, 4),
            steps in prop::collection::vec((0u8..4, 0usize..8, 0u64..5, 0u64..5), 1..60),
        ) {
            let mut tree = Tree::default();
            let roles: Vec<NodeId> =
                ["a", "a/b", "c", "d/e/f"].iter().map(|role| tree.role(role).expect("a role")).collect();
            for (role, weight) in roles.iter().zip(weights) {
                tree.set_quota(*role, Quota { weight, ..Quota::default() });
            }
            let clients: Vec<NodeId> =
                (0u32..8).map(|client| tree.add_client(roles[client as usize / 2], client, 0)).collect();
            tree.inherit();
            tree.settle([20, 30, 0, 0, 0], [true; 5]);
            let mut active = [false; 8];
            for (step, client, cpus, memory) in steps {
                let held = [cpus, memory, 0, 0, 0];
                match step {
                    0 => tree.activate(clients[client]),
                    1 => tree.deactivate(clients[client]),
                    2 => tree.take(clients[client], &held),
                    _ => tree.give_back(clients[client], &held),
                }
                if step < 2 {
                    active[client] = step == 0;
                }
                let mut expected = Vec::new();
                sorted_anew(&tree, ROOT, &mut expected);
                let kept = order(&tree);
                prop_assert_eq!(&kept, &expected);
                prop_assert_eq!(kept.len(), active.iter().filter(|active| **active).count());
            }
        }
    }
}
