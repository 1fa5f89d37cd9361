//! Framework: somebody who gets offers and answers with tasks.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::agent::check_request;
use crate::Condition;
use crate::device::GpuSelector;
use crate::names;
use crate::resources::ResourceRequest;
use crate::validation::{FieldPath, Violation, Violations};

/// Somebody who gets offers and answers with tasks. The built-in one, `default`, binds the pending tasks of its namespace.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1",
    kind = "Framework",
    plural = "frameworks",
    singular = "framework",
    shortname = "fw",
    category = "muster",
    namespaced,
    status = "FrameworkStatus",
    derive = "PartialEq",
    doc = "Somebody who gets offers and answers with tasks. The built-in one, `default`, binds the pending tasks of its namespace.",
    printcolumn = r#"{"name":"Scheduler","type":"string","jsonPath":".spec.scheduler"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct FrameworkSpec {
    /// The roles that the framework may get offers for. Empty: the role of each of its tasks, or the namespace's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<String>,
    /// Who answers the offers: `External`, through the API; `BuiltIn`, the cluster's own scheduler.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// What offers the framework wants besides those for its pending tasks. Without it, and without pending tasks, it gets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<Demand>,
}

/// Who answers a framework's offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scheduler {
    /// A program of the framework's own, through the API.
    #[default]
    External,
    /// The cluster's own scheduler.
    BuiltIn,
}

/// Which offers a framework wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Demand {
    /// An offer must have at least this.
    pub minimum: ResourceRequest,
    /// Which GPUs count for `minimum.gpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSelector>,
    /// So many offers at a time, at most; without it, 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_offers: Option<u32>,
}

/// What the control plane says of a framework.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FrameworkStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: offers are made to it when it wants some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Framework {
    /// What is wrong with the spec.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Violations::new();
        let spec = FieldPath::root("spec");
        if self.spec.roles.len() > 64 {
            violations.too_many(&spec.field("roles"), self.spec.roles.len(), 64);
        }
        for (index, role) in self.spec.roles.iter().enumerate() {
            let path = spec.field("roles").index(index);
            violations.check(&path, role, names::role_problem(role));
            if self.spec.roles[..index].contains(role) {
                violations.duplicate(&path, role);
            }
        }
        if let Some(demand) = &self.spec.demand {
            let path = spec.field("demand");
            check_request(&mut violations, &path.field("minimum"), &demand.minimum);
            if let Some(Err(error)) = demand.gpu.as_ref().map(GpuSelector::requirement) {
                violations.invalid(&path.field("gpu").field(error.field), "", &error.message);
            }
            if demand.max_offers == Some(0) {
                violations.invalid(
                    &path.field("maxOffers"),
                    0,
                    "must be at least 1; leave `demand` out to get no offers",
                );
            }
        }
        violations.into_vec()
    }
}
