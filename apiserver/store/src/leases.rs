//! Leases by their deadlines, and the keys that live under each.
//!
//! Pure: time is handed in. A key is attached to one lease at most; the core sees to that. Tested through the conformance
//! suite.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::{Key, LIMITS, LeaseId};

/// Longer wishes are cut to this: a year is for ever as far as leases go, and deadlines cannot overflow.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<Key>,
}

/// All leases of a store.
#[derive(Debug)]
pub(crate) struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Instant, LeaseId)>,
    next: u64,
}

impl Default for Leases {
    fn default() -> Leases {
        // Zero is no lease in the encoding of entries.
        Leases {
            by_id: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            next: 1,
        }
    }
}

impl Leases {
    /// The leases that a store had when it was closed, each with its full time from `now`.
    pub(crate) fn restore(leases: impl IntoIterator<Item = (LeaseId, Duration)>, next: u64, now: Instant) -> Leases {
        let mut restored = Leases {
            next,
            ..Leases::default()
        };
        for (id, ttl) in leases {
            restored.insert(id, ttl, now);
        }
        restored
    }

    pub(crate) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let id = LeaseId(self.next);
        self.next += 1;
        self.insert(id, ttl.clamp(LIMITS.lease_min, TTL_MAX), now);
        id
    }

    fn insert(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let deadline = now + ttl;
        self.by_deadline.insert((deadline, id));
        self.by_id.insert(
            id,
            Lease {
                ttl,
                deadline,
                keys: BTreeSet::new(),
            },
        );
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The ttl that a lease was granted with.
    pub(crate) fn ttl(&self, id: LeaseId) -> Option<Duration> {
        self.by_id.get(&id).map(|lease| lease.ttl)
    }

    /// The number of the lease that is granted next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> bool {
        let Some(lease) = self.by_id.get_mut(&id) else {
            return false;
        };
        self.by_deadline.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.by_deadline.insert((lease.deadline, id));
        true
    }

    /// Forgets a lease and returns the keys that lived under it.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<Key>> {
        let lease = self.by_id.remove(&id)?;
        self.by_deadline.remove(&(lease.deadline, id));
        Some(lease.keys)
    }

    /// The lease that ended first, of those that ended by `now`.
    pub(crate) fn due(&self, now: Instant) -> Option<LeaseId> {
        self.by_deadline
            .first()
            .filter(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
    }

    /// When the next lease ends, if nobody keeps it alive.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Whether the lease exists; if so, the key now lives under it.
    pub(crate) fn attach(&mut self, id: LeaseId, key: Key) -> bool {
        self.by_id.get_mut(&id).map(|lease| lease.keys.insert(key)).is_some()
    }

    pub(crate) fn detach(&mut self, id: LeaseId, key: &Key) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}
