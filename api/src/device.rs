//! GPUs as agents report them, offers carry them and tasks ask for them.

use std::collections::BTreeMap;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::ByteSize;
use crate::topology::{Path, Topology};

/// One GPU of an agent, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The identity of the device, unique in the cluster, such as `GPU-6ab1…`.
    pub uuid: String,
    /// The model as the driver names it, such as `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// The memory of the device.
    pub memory: ByteSize,
    /// The compute capability, such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// The version of the device's driver, such as `560.35.03`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Where the device is on the PCI bus, such as `0000:1b:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// The root port or bridge of the processor that the device hangs on, such as `pci0000:17`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_root: Option<String>,
    /// The NUMA node that the device hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// The best way to each other GPU of the machine, by UUID: `NV18`, `PIX`, `PXB`, `PHB`, `NODE` or `SYS`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, Path>,
    /// Whether tasks may be given the device.
    pub health: DeviceHealth,
    /// Why they may not, and what to do about it; empty while it is healthy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether tasks may be given a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DeviceHealth {
    /// It may be offered.
    #[default]
    Healthy,
    /// It is not offered until nothing was wrong with it for a while, or while an operator says so; tasks that have it go on.
    Suspect,
    /// It is not offered, and tasks that have it are stopped. It wants a reset; `mctl uncordon gpu/UUID` brings it back.
    Cordoned,
    /// It is not offered, and tasks that have it are stopped. Somebody has to see to it.
    Faulty,
}

impl DeviceHealth {
    /// Whether tasks that have the device may go on.
    pub fn is_usable(self) -> bool {
        matches!(self, DeviceHealth::Healthy | DeviceHealth::Suspect)
    }
}

/// Which devices a task takes. Every field given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuSelector {
    /// Models, separated by `|`; one of them must be part of the device's model name, letter case aside. `H100|H200`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A bound on the device's memory, such as `>=70Gi`; `>`, `<`, `<=` and `==` work too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// A bound on the compute capability, such as `>=9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// A bound on the version of the driver, such as `>=550.54`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// How much it matters that the GPUs reach each other well. Default: `preferred`.
    #[serde(default, skip_serializing_if = "is_preferred")]
    pub topology: Topology,
}

fn is_preferred(topology: &Topology) -> bool {
    *topology == Topology::Preferred
}

/// A [`GpuSelector`], read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuRequirement {
    /// Lower-case parts of model names, one of which must be there; empty: any model.
    pub models: Vec<String>,
    /// A bound on memory.
    pub memory: Option<(Bound, ByteSize)>,
    /// A bound on the compute capability as (major, minor).
    pub compute_capability: Option<(Bound, (u32, u32))>,
    /// A bound on the driver's version, number by number.
    pub driver: Option<(Bound, Vec<u32>)>,
    /// How well they have to reach each other.
    pub topology: Topology,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// At least.
    AtLeast,
    /// More than.
    MoreThan,
    /// At most.
    AtMost,
    /// Less than.
    LessThan,
    /// Exactly.
    Exactly,
}

impl Bound {
    fn split(text: &str) -> Option<(Bound, &str)> {
        let bounds = [
            (">=", Bound::AtLeast),
            ("<=", Bound::AtMost),
            ("==", Bound::Exactly),
            (">", Bound::MoreThan),
            ("<", Bound::LessThan),
            ("=", Bound::Exactly),
        ];
        bounds
            .into_iter()
            .find_map(|(sign, bound)| text.strip_prefix(sign).map(|rest| (bound, rest.trim())))
    }

    fn holds<T: Ord>(self, value: T, limit: T) -> bool {
        match self {
            Bound::AtLeast => value >= limit,
            Bound::MoreThan => value > limit,
            Bound::AtMost => value <= limit,
            Bound::LessThan => value < limit,
            Bound::Exactly => value == limit,
        }
    }
}

/// What is wrong with a selector: the field, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SelectorError {
    /// The field of the selector.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

fn capability(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// Two versions with as many numbers as the longer one has, so that 550 equals 550.0.
fn aligned(a: &[u32], b: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let length = a.len().max(b.len());
    let padded = |numbers: &[u32]| {
        numbers
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(length)
            .collect()
    };
    (padded(a), padded(b))
}

impl GpuSelector {
    /// Reads the selector.
    pub fn requirement(&self) -> Result<GpuRequirement, SelectorError> {
        let models: Vec<String> = match &self.model {
            None => Vec::new(),
            Some(text) => text.split('|').map(|part| part.trim().to_lowercase()).collect(),
        };
        if models.iter().any(String::is_empty) {
            let message = "write one or more models separated by |, such as H100|H200".to_owned();
            return Err(SelectorError {
                field: "model",
                message,
            });
        }
        let memory = self.memory.as_deref().map(|text| {
            let error = |message: String| SelectorError {
                field: "memory",
                message,
            };
            let (bound, rest) = Bound::split(text.trim())
                .ok_or_else(|| error(format!("`{text}` has no comparison; write one like >=70Gi")))?;
            ByteSize::from_str(rest)
                .map(|size| (bound, size))
                .map_err(|cause| error(cause.to_string()))
        });
        let compute_capability = self.compute_capability.as_deref().map(|text| {
            let parsed =
                Bound::split(text.trim()).and_then(|(bound, rest)| capability(rest).map(|limit| (bound, limit)));
            let message = format!("`{text}` is not a bound on a compute capability; write one like >=9.0");
            parsed.ok_or(SelectorError {
                field: "computeCapability",
                message,
            })
        });
        let driver = self.driver.as_deref().map(|text| {
            let parsed = Bound::split(text.trim()).and_then(|(bound, rest)| version(rest).map(|limit| (bound, limit)));
            let message = format!("`{text}` is not a bound on a driver's version; write one like >=550.54");
            parsed.ok_or(SelectorError {
                field: "driver",
                message,
            })
        });
        Ok(GpuRequirement {
            models,
            memory: memory.transpose()?,
            compute_capability: compute_capability.transpose()?,
            driver: driver.transpose()?,
            topology: self.topology,
        })
    }
}

impl GpuRequirement {
    /// Why a device does not do; `None`: it does.
    pub fn mismatch(&self, device: &Device) -> Option<String> {
        let model = device.model.to_lowercase();
        if !self.models.is_empty() && !self.models.iter().any(|part| model.contains(part)) {
            return Some(format!(
                "model {} does not match {}",
                device.model,
                self.models.join("|")
            ));
        }
        if let Some((bound, limit)) = self.memory
            && !bound.holds(device.memory, limit)
        {
            return Some(format!(
                "memory {} is not {}",
                device.memory,
                bound_text(bound, &limit.to_string())
            ));
        }
        if let Some((bound, limit)) = self.compute_capability {
            let text = device.compute_capability.as_deref().unwrap_or("unknown");
            if !capability(text).is_some_and(|value| bound.holds(value, limit)) {
                let limit = format!("{}.{}", limit.0, limit.1);
                return Some(format!(
                    "compute capability {text} is not {}",
                    bound_text(bound, &limit)
                ));
            }
        }
        if let Some((bound, limit)) = &self.driver {
            let text = device.driver.as_deref().unwrap_or("unknown");
            let holds = |value: Vec<u32>| {
                let (value, limit) = aligned(&value, limit);
                bound.holds(value, limit)
            };
            if !version(text).is_some_and(holds) {
                return Some(format!(
                    "driver {text} is not {}",
                    bound_text(*bound, &version_text(limit))
                ));
            }
        }
        None
    }

    /// What is asked for in words that follow "a GPU"; empty when any will do.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if !self.models.is_empty() {
            words.push(format!("of model {}", self.models.join("|")));
        }
        if let Some((bound, size)) = self.memory {
            words.push(format!("with memory {}", bound_text(bound, &size.to_string())));
        }
        if let Some((bound, (major, minor))) = self.compute_capability {
            let limit = format!("{major}.{minor}");
            words.push(format!("with compute capability {}", bound_text(bound, &limit)));
        }
        if let Some((bound, limit)) = &self.driver {
            words.push(format!("with driver {}", bound_text(*bound, &version_text(limit))));
        }
        if self.topology == Topology::Required {
            words.push("close to the others".to_owned());
        }
        words.join(" ")
    }
}

fn version_text(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(".")
}

fn bound_text(bound: Bound, limit: &str) -> String {
    let sign = match bound {
        Bound::AtLeast => ">=",
        Bound::MoreThan => ">",
        Bound::AtMost => "<=",
        Bound::LessThan => "<",
        Bound::Exactly => "==",
    };
    format!("{sign}{limit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Device {
        Device {
            uuid: "GPU-1".into(),
            model: "NVIDIA H100 80GB HBM3".into(),
            memory: "79Gi".parse().expect("size"),
            compute_capability: Some("9.0".into()),
            driver: Some("550.54.15".into()),
            ..Device::default()
        }
    }

    #[track_caller]
    fn check(model: &str, memory: &str, capability: &str, expect: Option<&str>) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let selector = GpuSelector {
            model: some(model),
            memory: some(memory),
            compute_capability: some(capability),
            ..GpuSelector::default()
        };
        let requirement = selector.requirement().expect("selector");
        assert_eq!(requirement.mismatch(&h100()).as_deref(), expect);
    }

    #[test]
    fn every_given_field_must_hold() {
        check("", "", "", None);
        check("h100|H200", ">=70Gi", ">=9.0", None);
        check("A100", "", "", Some("model NVIDIA H100 80GB HBM3 does not match a100"));
        check("", ">=80Gi", "", Some("memory 79Gi is not >=80Gi"));
        check("", "", ">9.0", Some("compute capability 9.0 is not >9.0"));
        check("", "<80Gi", "==9", None);
    }

    #[test]
    fn versions_of_drivers_are_compared_number_by_number() {
        let mismatch = |bound: &str| {
            let selector = GpuSelector {
                driver: Some(bound.to_owned()),
                ..GpuSelector::default()
            };
            selector.requirement().expect("selector").mismatch(&h100())
        };
        assert_eq!(mismatch(">=550"), None);
        assert_eq!(mismatch(">=99.1"), None);
        assert_eq!(mismatch("==550.54.15.0"), None);
        assert_eq!(mismatch(">=560.1").as_deref(), Some("driver 550.54.15 is not >=560.1"));
    }

    #[test]
    fn bad_selectors_name_their_field() {
        let bad = |selector: GpuSelector| selector.requirement().expect_err("bad").field;
        assert_eq!(
            bad(GpuSelector {
                model: Some("H100||A100".into()),
                ..Default::default()
            }),
            "model"
        );
        assert_eq!(
            bad(GpuSelector {
                memory: Some("70Gi".into()),
                ..Default::default()
            }),
            "memory"
        );
        assert_eq!(
            bad(GpuSelector {
                memory: Some(">=lots".into()),
                ..Default::default()
            }),
            "memory"
        );
        assert_eq!(
            bad(GpuSelector {
                compute_capability: Some(">=nine".into()),
                ..Default::default()
            }),
            "computeCapability"
        );
        assert_eq!(
            bad(GpuSelector {
                driver: Some("550".into()),
                ..Default::default()
            }),
            "driver"
        );
    }
}
