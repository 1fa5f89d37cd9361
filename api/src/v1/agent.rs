//! Agent: a machine that runs tasks.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::device::{Device, DeviceHealth};
use crate::names;
use crate::ports::PortSet;
use crate::quantity::{ByteSize, Scalar};
use crate::resources::{Bundle, ResourceRequest};
use crate::validation::{FieldPath, Violation, Violations};
use crate::{Condition, Time};

/// A machine that runs tasks. Its agent makes the object when it joins.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1",
    kind = "Agent",
    plural = "agents",
    singular = "agent",
    shortname = "ag",
    category = "muster",
    status = "AgentStatus",
    derive = "PartialEq",
    doc = "A machine that runs tasks. Its agent makes the object when it joins.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"CPUs","type":"string","jsonPath":".status.capacity.cpus"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".status.capacity.memory"}"#,
    printcolumn = r#"{"name":"GPUs","type":"integer","jsonPath":".status.capacity.gpus"}"#,
    printcolumn = r#"{"name":"Reachability","type":"string","jsonPath":".status.reachability"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.versions.muster"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".status.address","priority":1}"#,
    printcolumn = r#"{"name":"Kernel","type":"string","jsonPath":".status.versions.kernel","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Keeps new offers away. What runs goes on. Written by operators.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// When an operator saw that the machine was powered off: `mctl gone NAME --powered-off` sets it to now. If the agent cannot be reached
    /// since before then, that proves that its tasks run no more, and they become `Gone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub powered_off_at: Option<Time>,
    /// Until when an operator looked at agents that were lost together. What was lost before then may be replaced although many
    /// were lost at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brake_released_at: Option<Time>,
    /// What tasks may select agents by, such as `zone` and `rack`. `hostname` is always there. Written by the agent when it joins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What operators say about single GPUs, by UUID. `mctl cordon gpu/UUID` and `mctl uncordon gpu/UUID` write it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gpus: BTreeMap<String, GpuOrder>,
}

/// What an operator says about a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuOrder {
    /// Keeps it from being offered. Tasks that have it go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
    /// When the operator had seen to it: what was found wrong with it before then counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_to_at: Option<Time>,
}

/// What the agent says of itself, and what the control plane believes about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// What the agent may give to tasks.
    pub capacity: AgentCapacity,
    /// The GPUs, faulty ones included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uuid"]))]
    pub devices: Vec<Device>,
    /// Where the agent's own server listens, `HOST:PORT`, for the API server to fetch logs from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What runs on the machine.
    pub versions: Versions,
    /// The identity of the machine's boot; a new one means that nothing of before is left.
    #[serde(rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The agent process that wrote this: the create revision of its presence lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// What the control plane believes. Written by the controllers.
    pub reachability: Reachability,
    /// Since when it believes that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reachability_since: Option<Time>,
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and one condition for each thing that is not isolated on this machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What an agent may give to tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentCapacity {
    /// CPUs.
    pub cpus: Scalar,
    /// Bytes of memory.
    pub memory: ByteSize,
    /// Bytes of disk.
    pub disk: ByteSize,
    /// GPUs, faulty ones included.
    pub gpus: u32,
    /// Ports of the machine's address.
    pub ports: PortSet,
}

/// What runs on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Versions {
    /// The agent.
    pub muster: String,
    /// The kernel.
    pub kernel: String,
    /// The container runtime.
    pub runtime: String,
}

/// What the control plane believes about an agent or about the agent of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Reachability {
    /// Its presence lease is alive.
    #[default]
    Reachable,
    /// Its presence lease has ended; what it runs may still run.
    Unknown,
    /// It is proven to run nothing any more.
    Fenced,
}

impl Agent {
    /// Since when it has not been heard from; `None` while it can be reached.
    pub fn lost_since(&self) -> Option<Timestamp> {
        let status = self.status.as_ref()?;
        let lost = status.reachability != Reachability::Reachable;
        let since = status.reachability_since.as_ref().map(|since| since.0);
        lost.then(|| since.unwrap_or(Timestamp::MAX))
    }

    /// Whether an operator has said that the machine is off, and since the agent was lost: what was said before is about another loss.
    pub fn is_powered_off(&self) -> bool {
        let said = self.spec.powered_off_at.as_ref();
        said.is_some_and(|said| self.lost_since().is_some_and(|since| said.0 >= since))
    }

    /// The name of the object; agents always have one.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Everything that may be given out: the capacity, with the devices that are healthy.
    pub fn allocatable(&self) -> Bundle {
        let Some(status) = &self.status else {
            return Bundle::default();
        };
        let healthy = status
            .devices
            .iter()
            .filter(|device| device.health == DeviceHealth::Healthy);
        Bundle {
            cpus: status.capacity.cpus,
            memory: status.capacity.memory,
            disk: status.capacity.disk,
            ports: status.capacity.ports.clone(),
            devices: healthy.map(|device| device.uuid.clone()).collect(),
        }
    }

    /// What is wrong with the spec.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Violations::new();
        let attributes = FieldPath::root("spec").field("attributes");
        if self.spec.attributes.len() > 64 {
            violations.too_many(&attributes, self.spec.attributes.len(), 64);
        }
        if self.spec.gpus.len() > 256 {
            violations.too_many(&FieldPath::root("spec").field("gpus"), self.spec.gpus.len(), 256);
        }
        for (key, value) in &self.spec.attributes {
            violations.check(&attributes.key(key), key, names::qualified_name_problem(key));
            violations.check(&attributes.key(key), value, names::label_value_problem(value));
        }
        violations.into_vec()
    }
}

/// Checks what tasks, quotas and demands have in common: whole GPUs.
pub(crate) fn check_request(violations: &mut Violations, path: &FieldPath, request: &ResourceRequest) {
    if request.gpus.units().is_none() {
        let why =
            "GPUs are given out whole; ask for 1 and let several processes share it inside one task, or ask for none";
        violations.invalid(&path.field("gpus"), request.gpus, why);
    }
}
