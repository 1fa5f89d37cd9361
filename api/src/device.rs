//! GPUs as agents report them, offers carry them and tasks ask for them.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::ByteSize;

/// One GPU of an agent, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The NUMA node that the device hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Whether tasks may be given the device.
    pub health: DeviceHealth,
}

/// Whether tasks may be given a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DeviceHealth {
    /// It may be offered.
    Healthy,
    /// It is not offered.
    Faulty,
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
        Ok(GpuRequirement {
            models,
            memory: memory.transpose()?,
            compute_capability: compute_capability.transpose()?,
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
        None
    }
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
            numa_node: None,
            health: DeviceHealth::Healthy,
        }
    }

    #[track_caller]
    fn check(model: &str, memory: &str, capability: &str, expect: Option<&str>) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let selector = GpuSelector {
            model: some(model),
            memory: some(memory),
            compute_capability: some(capability),
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
    }
}
