//! Plain numbers for the hot path, in the order of [`muster_api::resources::RESOURCE_NAMES`].

/// Thousandths of a CPU, bytes, bytes, GPUs, ports.
pub(crate) type Values = [u64; 5];

/// The place of GPUs.
pub(crate) const GPUS: usize = 3;
/// The place of ports.
pub(crate) const PORTS: usize = 4;
/// Nothing.
pub(crate) const ZERO: Values = [0; 5];
/// No bound.
pub(crate) const ALL: Values = [u64::MAX; 5];

/// Whether every part of `wanted` is there.
#[inline]
pub(crate) fn contains(have: &Values, wanted: &Values) -> bool {
    have.iter().zip(wanted).all(|(have, wanted)| have >= wanted)
}

/// Each part with `f`.
#[inline]
pub(crate) fn zip(left: &Values, right: &Values, f: impl Fn(u64, u64) -> u64) -> Values {
    std::array::from_fn(|index| f(left[index], right[index]))
}

/// The sum; as much as a number holds at most.
#[inline]
pub(crate) fn add(left: &Values, right: &Values) -> Values {
    zip(left, right, u64::saturating_add)
}

/// The difference, each part at least zero.
#[inline]
pub(crate) fn sub(left: &Values, right: &Values) -> Values {
    zip(left, right, u64::saturating_sub)
}

/// The smaller of each part.
#[inline]
pub(crate) fn min(left: &Values, right: &Values) -> Values {
    zip(left, right, u64::min)
}

/// The larger of each part.
#[inline]
pub(crate) fn max(left: &Values, right: &Values) -> Values {
    zip(left, right, u64::max)
}
