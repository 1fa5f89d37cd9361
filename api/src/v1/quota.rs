//! Quota: what a role is guaranteed, what it may have at most, and how much it weighs.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::names;
use crate::quantity::{ByteSize, Scalar};
use crate::validation::{FieldPath, Violation, Violations};

/// What a role is guaranteed, what it may have at most, and how much it weighs against its siblings.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1",
    kind = "Quota",
    plural = "quotas",
    singular = "quota",
    shortname = "qt",
    category = "muster",
    status = "QuotaStatus",
    derive = "PartialEq",
    doc = "What a role is guaranteed, what it may have at most, and how much it weighs against its siblings.",
    printcolumn = r#"{"name":"Role","type":"string","jsonPath":".spec.role"}"#,
    printcolumn = r#"{"name":"Weight","type":"string","jsonPath":".spec.weight"}"#,
    printcolumn = r#"{"name":"Guaranteed GPUs","type":"string","jsonPath":".spec.guarantee.gpus"}"#,
    printcolumn = r#"{"name":"GPU limit","type":"string","jsonPath":".spec.limit.gpus"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSpec {
    /// The role, a path such as `ml/research`; what is below it counts.
    pub role: String,
    /// How much the role's share counts against its siblings: twice the weight, twice the share. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: Scalar,
    /// What is kept free for the role. Resources that are not named are not guaranteed.
    #[serde(default, skip_serializing_if = "QuotaAmounts::is_empty")]
    pub guarantee: QuotaAmounts,
    /// What the role never gets more of. Resources that are not named have no limit.
    #[serde(default, skip_serializing_if = "QuotaAmounts::is_empty")]
    pub limit: QuotaAmounts,
    /// The role is offered nothing smaller than this of one agent.
    #[serde(default, skip_serializing_if = "QuotaAmounts::is_empty")]
    pub minimum_offer: QuotaAmounts,
}

fn one() -> Scalar {
    Scalar::from_units(1)
}

fn is_one(weight: &Scalar) -> bool {
    *weight == one()
}

/// Amounts of some resources; those not named are left open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaAmounts {
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Scalar>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Bytes of disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Whole GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Scalar>,
}

impl QuotaAmounts {
    /// Whether no resource is named.
    pub fn is_empty(&self) -> bool {
        *self == QuotaAmounts::default()
    }

    /// The numbers, in the order of [`crate::resources::RESOURCE_NAMES`]; `None` where left open.
    pub fn values(&self) -> [Option<u64>; 5] {
        let gpus = self.gpus.and_then(Scalar::units).map(u64::from);
        [
            self.cpus.map(Scalar::milli),
            self.memory.map(ByteSize::bytes),
            self.disk.map(ByteSize::bytes),
            gpus,
            None,
        ]
    }
}

/// What the control plane says of a quota.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the quota is in force. `Stalled`: another quota names the same role and is the one in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Quota {
    /// What is wrong with the spec.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Violations::new();
        let spec = FieldPath::root("spec");
        violations.check(
            &spec.field("role"),
            &self.spec.role,
            names::role_problem(&self.spec.role),
        );
        if self.spec.weight == Scalar::ZERO {
            violations.invalid(
                &spec.field("weight"),
                0,
                "must be more than zero; a role that shall get nothing has a limit of zero",
            );
        }
        let parts = [
            ("guarantee", &self.spec.guarantee),
            ("limit", &self.spec.limit),
            ("minimumOffer", &self.spec.minimum_offer),
        ];
        for (name, amounts) in parts {
            if let Some(gpus) = amounts.gpus.filter(|gpus| gpus.units().is_none()) {
                violations.invalid(&spec.field(name).field("gpus"), gpus, "GPUs are given out whole");
            }
        }
        let names = crate::resources::RESOURCE_NAMES;
        for (index, (guarantee, limit)) in self
            .spec
            .guarantee
            .values()
            .into_iter()
            .zip(self.spec.limit.values())
            .enumerate()
        {
            if let (Some(guarantee), Some(limit)) = (guarantee, limit)
                && guarantee > limit
            {
                let path = spec.field("guarantee").field(names[index]);
                violations.invalid(
                    &path,
                    "above the limit",
                    "a guarantee must not be more than the limit of the same resource",
                );
            }
        }
        violations.into_vec()
    }
}
