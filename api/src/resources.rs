//! The resource algebra: amounts, and bundles of amounts with the ports and devices themselves.
//!
//! Every operation is checked: a sum that overflows and a difference that would go below zero (or would take a port or a
//! device that is not there) are `None`, never a wrapped or clamped value.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ports::{PortRequest, PortSet};
use crate::quantity::{ByteSize, Scalar};

/// What a task asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceRequest {
    /// CPUs, with up to three decimals. Weighed with this when CPUs are short.
    #[serde(skip_serializing_if = "is_default")]
    pub cpus: Scalar,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: ByteSize,
    /// Bytes of disk for the sandbox.
    #[serde(skip_serializing_if = "is_default")]
    pub disk: ByteSize,
    /// Whole GPUs.
    #[serde(skip_serializing_if = "is_default")]
    pub gpus: Scalar,
    /// How many ports of the agent, or which.
    #[serde(skip_serializing_if = "is_default")]
    pub ports: PortRequest,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ResourceRequest {
    /// The amounts asked for; `None` when the GPUs are not whole.
    pub fn amounts(&self) -> Option<Amounts> {
        Some(Amounts {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            gpus: self.gpus.units()?,
            ports: self.ports.count(),
        })
    }
}

/// Amounts without identity, of everything that is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    /// CPUs.
    pub cpus: Scalar,
    /// Bytes of memory.
    pub memory: ByteSize,
    /// Bytes of disk.
    pub disk: ByteSize,
    /// Whole GPUs.
    pub gpus: u32,
    /// Ports.
    #[serde(skip_serializing_if = "is_default")]
    pub ports: u32,
}

/// What the amounts are called, in the order of [`Amounts::values`].
pub const RESOURCE_NAMES: [&str; 5] = ["cpus", "memory", "disk", "gpus", "ports"];

impl Amounts {
    /// Nothing.
    pub const ZERO: Amounts = Amounts {
        cpus: Scalar::ZERO,
        memory: ByteSize::ZERO,
        disk: ByteSize::ZERO,
        gpus: 0,
        ports: 0,
    };

    /// The plain numbers, in the order of [`RESOURCE_NAMES`]: thousandths of a CPU, bytes, bytes, GPUs, ports.
    pub const fn values(&self) -> [u64; 5] {
        [
            self.cpus.milli(),
            self.memory.bytes(),
            self.disk.bytes(),
            self.gpus as u64,
            self.ports as u64,
        ]
    }

    /// The inverse of [`values`](Amounts::values); `None` when a count does not fit.
    pub fn from_values([cpus, memory, disk, gpus, ports]: [u64; 5]) -> Option<Amounts> {
        Some(Amounts {
            cpus: Scalar::from_milli(cpus),
            memory: ByteSize::from_bytes(memory),
            disk: ByteSize::from_bytes(disk),
            gpus: u32::try_from(gpus).ok()?,
            ports: u32::try_from(ports).ok()?,
        })
    }

    fn zip(&self, other: &Amounts, f: impl Fn(u64, u64) -> Option<u64>) -> Option<Amounts> {
        let (left, right) = (self.values(), other.values());
        let mut values = [0; 5];
        for (index, value) in values.iter_mut().enumerate() {
            *value = f(left[index], right[index])?;
        }
        Amounts::from_values(values)
    }

    /// The sum; `None` on overflow.
    pub fn checked_add(&self, other: &Amounts) -> Option<Amounts> {
        self.zip(other, u64::checked_add)
    }

    /// The difference; `None` when any part would go below zero.
    pub fn checked_sub(&self, other: &Amounts) -> Option<Amounts> {
        self.zip(other, u64::checked_sub)
    }

    /// The difference, each part at least zero.
    pub fn saturating_sub(&self, other: &Amounts) -> Amounts {
        self.zip(other, |a, b| Some(a.saturating_sub(b)))
            .expect("a smaller count fits where the larger did")
    }

    /// The smaller of each part.
    pub fn min(&self, other: &Amounts) -> Amounts {
        self.zip(other, |a, b| Some(a.min(b)))
            .expect("the smaller count fits where both did")
    }

    /// Whether every part is at least that of `other`.
    pub fn contains(&self, other: &Amounts) -> bool {
        self.checked_sub(other).is_some()
    }

    /// Whether every part is zero.
    pub fn is_zero(&self) -> bool {
        *self == Amounts::ZERO
    }

    /// Names each part of `wanted` that is not here, with both numbers: `needs 4 cpus, 2 free`. Empty when all fits.
    pub fn shortfall(&self, wanted: &Amounts) -> Vec<String> {
        let (have, want) = (self.values(), wanted.values());
        let text = |amounts: &Amounts, index: usize| match index {
            0 => amounts.cpus.to_string(),
            1 => amounts.memory.to_string(),
            2 => amounts.disk.to_string(),
            3 => amounts.gpus.to_string(),
            _ => amounts.ports.to_string(),
        };
        let short = (0..RESOURCE_NAMES.len()).filter(|index| have[*index] < want[*index]);
        short
            .map(|index| {
                format!(
                    "needs {} {}, has {}",
                    text(wanted, index),
                    RESOURCE_NAMES[index],
                    text(self, index)
                )
            })
            .collect()
    }
}

impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.cpus != Scalar::ZERO {
            parts.push(format!("{} cpus", self.cpus));
        }
        if self.memory != ByteSize::ZERO {
            parts.push(format!("{} memory", self.memory));
        }
        if self.disk != ByteSize::ZERO {
            parts.push(format!("{} disk", self.disk));
        }
        if self.gpus != 0 {
            parts.push(format!("{} gpus", self.gpus));
        }
        if self.ports != 0 {
            parts.push(format!("{} ports", self.ports));
        }
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// Amounts together with the very ports and devices: what an agent has, an offer carries, a task holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// CPUs.
    pub cpus: Scalar,
    /// Bytes of memory.
    pub memory: ByteSize,
    /// Bytes of disk.
    pub disk: ByteSize,
    /// Ports.
    pub ports: PortSet,
    /// UUIDs of devices.
    pub devices: BTreeSet<String>,
}

impl Bundle {
    /// The amounts in it.
    pub fn amounts(&self) -> Amounts {
        Amounts {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            gpus: u32::try_from(self.devices.len()).expect("an agent has fewer than 2^32 devices"),
            ports: self.ports.len(),
        }
    }

    fn scalars(&self) -> Amounts {
        Amounts {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            gpus: 0,
            ports: 0,
        }
    }

    /// Both together; `None` on overflow or when a port or device is in both.
    pub fn checked_add(&self, other: &Bundle) -> Option<Bundle> {
        let scalars = self.scalars().checked_add(&other.scalars())?;
        let ports = self.ports.checked_union(&other.ports)?;
        let devices: BTreeSet<String> = self.devices.union(&other.devices).cloned().collect();
        let disjoint = devices.len() == self.devices.len() + other.devices.len();
        disjoint.then_some(Bundle {
            cpus: scalars.cpus,
            memory: scalars.memory,
            disk: scalars.disk,
            ports,
            devices,
        })
    }

    /// What is left without `other`; `None` when it is not all in here.
    pub fn checked_sub(&self, other: &Bundle) -> Option<Bundle> {
        let scalars = self.scalars().checked_sub(&other.scalars())?;
        let ports = self.ports.checked_difference(&other.ports)?;
        let subset = other.devices.is_subset(&self.devices);
        let devices = self.devices.difference(&other.devices).cloned().collect();
        subset.then_some(Bundle {
            cpus: scalars.cpus,
            memory: scalars.memory,
            disk: scalars.disk,
            ports,
            devices,
        })
    }

    /// Whether all of `other` is in here.
    pub fn contains(&self, other: &Bundle) -> bool {
        self.checked_sub(other).is_some()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Bundle::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_amounts() -> impl Strategy<Value = Amounts> {
        (0u64..1 << 40, 0u64..1 << 50, 0u64..1 << 50, 0u32..64, 0u32..65_535).prop_map(
            |(cpus, memory, disk, gpus, ports)| Amounts {
                cpus: Scalar::from_milli(cpus),
                memory: ByteSize::from_bytes(memory),
                disk: ByteSize::from_bytes(disk),
                gpus,
                ports,
            },
        )
    }

    fn any_bundle() -> impl Strategy<Value = Bundle> {
        let ports = prop::collection::btree_set(1u16..30, 0..10);
        let devices = prop::collection::btree_set("[a-h]", 0..5);
        (any_amounts(), ports, devices).prop_map(|(amounts, ports, devices)| Bundle {
            cpus: amounts.cpus,
            memory: amounts.memory,
            disk: amounts.disk,
            ports: PortSet::from_ports(ports),
            devices,
        })
    }

    proptest! {
        #[test]
        fn adding_and_taking_away_gives_the_amounts_back(a in any_amounts(), b in any_amounts()) {
            let sum = a.checked_add(&b).expect("no overflow in this range");
            prop_assert_eq!(sum.checked_sub(&b), Some(a));
            prop_assert_eq!(b.checked_add(&a), Some(sum));
            prop_assert!(sum.contains(&a) && sum.contains(&b));
        }

        #[test]
        fn nothing_goes_below_zero(a in any_amounts(), b in any_amounts()) {
            let fits = a.values().iter().zip(b.values()).all(|(a, b)| *a >= b);
            prop_assert_eq!(a.checked_sub(&b).is_some(), fits);
            prop_assert_eq!(a.contains(&b), fits);
            prop_assert_eq!(a.shortfall(&b).is_empty(), fits);
            prop_assert_eq!(a.saturating_sub(&b).checked_add(&a.min(&b)), Some(a));
        }

        #[test]
        fn adding_and_taking_away_gives_the_bundle_back(a in any_bundle(), b in any_bundle()) {
            match a.checked_add(&b) {
                Some(sum) => {
                    prop_assert_eq!(sum.checked_sub(&b), Some(a.clone()));
                    prop_assert_eq!(Some(sum.amounts()), a.amounts().checked_add(&b.amounts()));
                }
                None => prop_assert!(!a.ports.is_disjoint(&b.ports) || !a.devices.is_disjoint(&b.devices)),
            }
        }

        #[test]
        fn taking_away_never_invents_a_device_or_port(a in any_bundle(), b in any_bundle()) {
            if let Some(left) = a.checked_sub(&b) {
                prop_assert_eq!(left.checked_add(&b), Some(a));
            } else {
                let amounts = !a.amounts().contains(&b.amounts());
                prop_assert!(amounts || !a.ports.contains(&b.ports) || !b.devices.is_subset(&a.devices));
            }
        }
    }

    #[test]
    fn overflow_is_refused() {
        let most = Amounts {
            memory: ByteSize::from_bytes(u64::MAX),
            ..Amounts::ZERO
        };
        assert_eq!(
            most.checked_add(&Amounts {
                memory: ByteSize::from_bytes(1),
                ..Amounts::ZERO
            }),
            None
        );
        let gpus = Amounts {
            gpus: u32::MAX,
            ..Amounts::ZERO
        };
        assert_eq!(gpus.checked_add(&gpus), None);
    }

    #[test]
    fn a_shortfall_names_both_numbers() {
        let have = Amounts {
            cpus: Scalar::from_units(2),
            memory: ByteSize::from_mib(512),
            ..Amounts::ZERO
        };
        let want = Amounts {
            cpus: Scalar::from_units(4),
            memory: ByteSize::from_mib(64),
            gpus: 1,
            ..Amounts::ZERO
        };
        assert_eq!(have.shortfall(&want), ["needs 4 cpus, has 2", "needs 1 gpus, has 0"]);
    }
}
