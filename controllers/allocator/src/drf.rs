//! Dominant shares, compared exactly (Ghodsi et al., “Dominant Resource Fairness”, NSDI 2011; weights as in Mesos' sorter).
//!
//! A share is the largest of `held / total` over the resources that count, divided by the weight. It is kept as a fraction and
//! compared by cross-multiplication in 192 bits: no rounding, so that equal shares are equal.

use std::cmp::Ordering;

use crate::values::Values;

/// Where somebody stands among its siblings: smaller is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Held of the dominant resource.
    pub(crate) held: u64,
    /// The cluster's total of it; never zero.
    pub(crate) total: u64,
    /// The weight in thousandths; never zero.
    pub(crate) weight: u64,
    /// How many allocations it has (and was given, if known).
    pub(crate) count: u64,
    /// Its place in the order of names; unique among siblings.
    pub(crate) rank: u32,
}

impl Key {
    /// Nothing held.
    pub(crate) fn new(weight: u64, rank: u32) -> Key {
        Key {
            held: 0,
            total: 1,
            weight: weight.max(1),
            count: 0,
            rank,
        }
    }

    /// Takes the dominant share of what is held. Resources that the cluster has none of, and those that don't count, are left out.
    pub(crate) fn measure(&mut self, held: &Values, totals: &Values, shared: &[bool; 5]) {
        (self.held, self.total) = (0, 1);
        for index in 0..held.len() {
            let (part, total) = (held[index], totals[index]);
            if shared[index] && total > 0 && wide(part, self.total) > wide(self.held, total) {
                (self.held, self.total) = (part, total);
            }
        }
    }

    fn share(&self, other: &Key) -> Ordering {
        if self.total == other.total && self.weight == other.weight {
            return self.held.cmp(&other.held);
        }
        let left = wider(wide(self.held, other.total), other.weight);
        let right = wider(wide(other.held, self.total), self.weight);
        left.cmp(&right)
    }
}

impl Ord for Key {
    /// Smaller share, then fewer allocations, then name.
    fn cmp(&self, other: &Key) -> Ordering {
        self.share(other)
            .then(self.count.cmp(&other.count))
            .then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn wide(left: u64, right: u64) -> u128 {
    u128::from(left) * u128::from(right)
}

/// The product as (high, low 64 bits).
fn wider(left: u128, right: u64) -> (u128, u64) {
    let right = u128::from(right);
    let low = (left & u128::from(u64::MAX)) * right;
    let high = (left >> 64) * right + (low >> 64);
    (high, low as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(held: u64, total: u64, weight: u64) -> Key {
        Key {
            held,
            total,
            ..Key::new(weight, 0)
        }
    }

    #[test]
    fn shares_are_compared_without_rounding() {
        let huge = u64::MAX;
        assert_eq!(key(1, 3, 1000).cmp(&key(2, 6, 1000)), Ordering::Equal);
        assert_eq!(key(huge - 1, huge, 1000).cmp(&key(huge, huge, 1000)), Ordering::Less);
        assert_eq!(key(1, huge, huge).cmp(&key(1, huge - 1, huge)), Ordering::Less);
    }

    #[test]
    fn twice_the_weight_is_half_the_share() {
        assert_eq!(key(4, 6, 2000).cmp(&key(2, 6, 1000)), Ordering::Equal);
        assert_eq!(key(3, 6, 2000).cmp(&key(2, 6, 1000)), Ordering::Less);
    }

    #[test]
    fn the_dominant_resource_is_the_scarcest_that_counts() {
        let mut key = Key::new(1000, 0);
        key.measure(&[2, 1, 0, 1, 9], &[9, 18, 0, 2, 10], &[true, true, true, true, false]);
        assert_eq!((key.held, key.total), (1, 2));
        key.measure(&[2, 1, 0, 1, 9], &[9, 18, 0, 2, 10], &[true, true, true, false, false]);
        assert_eq!((key.held, key.total), (2, 9));
    }

    proptest! {
        #[test]
        fn the_order_is_total(parts in prop::collection::vec((0u64.., 1u64.., 1u64..=1_000_000, 0u64..3, 0u32..3), 3)) {
            let keys: Vec<Key> = parts
                .into_iter()
                .map(|(held, total, weight, count, rank)| Key { held, total, weight, count, rank })
                .collect();
            let (a, b, c) = (keys[0], keys[1], keys[2]);
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }

        #[test]
        fn small_shares_compare_as_their_quotients(
            a in 0u64..1000, b in 1u64..1000, c in 0u64..1000, d in 1u64..1000, v in 1u64..100, w in 1u64..100
        ) {
            let order = (a * d * w).cmp(&(c * b * v));
            prop_assert_eq!(key(a, b, v).share(&key(c, d, w)), order);
        }
    }
}
