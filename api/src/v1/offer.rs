//! Offer: resources of one agent, held for one framework for a while.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Time;
use crate::device::Device;
use crate::ports::PortSet;
use crate::quantity::{ByteSize, Scalar};
use crate::resources::{Bundle, RESOURCE_NAMES};

const _: () = assert!(RESOURCE_NAMES.len() == 5, "an offer carries every resource");

/// Resources of one agent, held for one framework until it accepts or declines, or the offer expires.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1",
    kind = "Offer",
    plural = "offers",
    singular = "offer",
    shortname = "of",
    category = "muster",
    namespaced,
    status = "OfferStatus",
    derive = "PartialEq",
    doc = "Resources of one agent, held for one framework until it accepts or declines, or the offer expires.",
    selectable = ".spec.framework",
    selectable = ".spec.agent",
    selectable = ".status.phase",
    printcolumn = r#"{"name":"Framework","type":"string","jsonPath":".spec.framework"}"#,
    printcolumn = r#"{"name":"Role","type":"string","jsonPath":".spec.role"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".spec.agent"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"CPUs","type":"string","jsonPath":".spec.resources.cpus"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".spec.resources.memory"}"#,
    printcolumn = r#"{"name":"GPUs","type":"integer","jsonPath":".spec.resources.gpus"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Ports","type":"string","jsonPath":".spec.resources.ports","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct OfferSpec {
    /// Who it is for: a Framework of the same namespace.
    pub framework: String,
    /// Who is charged.
    pub role: String,
    /// Whose resources.
    pub agent: String,
    /// What is offered.
    pub resources: OfferedResources,
    /// The GPUs that are offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub devices: Vec<Device>,
    /// The attributes of the agent, `hostname` among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// When it is taken back if nobody has answered.
    pub expires_at: Time,
}

/// What an offer holds besides devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OfferedResources {
    /// CPUs.
    pub cpus: Scalar,
    /// Bytes of memory.
    pub memory: ByteSize,
    /// Bytes of disk.
    pub disk: ByteSize,
    /// How many devices are in `spec.devices`.
    pub gpus: u32,
    /// Ports of the agent.
    pub ports: PortSet,
}

/// Where an offer stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OfferStatus {
    /// Open, or declined. An accepted, rescinded or expired offer is gone.
    pub phase: OfferPhase,
    /// Until when the framework refuses such an offer of this agent; only when declined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse_until: Option<Time>,
}

/// Where an offer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OfferPhase {
    /// It holds its resources and may be accepted.
    #[default]
    Open,
    /// It holds nothing; it is the memory that its framework does not want such an offer for a while (Mesos: a refusal filter).
    Declined,
}

impl Offer {
    /// Where it stands.
    pub fn phase(&self) -> OfferPhase {
        self.status.as_ref().map_or(OfferPhase::Open, |status| status.phase)
    }

    /// What is in it.
    pub fn bundle(&self) -> Bundle {
        let resources = &self.spec.resources;
        Bundle {
            cpus: resources.cpus,
            memory: resources.memory,
            disk: resources.disk,
            ports: resources.ports.clone(),
            devices: self.spec.devices.iter().map(|device| device.uuid.clone()).collect(),
        }
    }

    /// What it holds: everything in it while it is open, nothing afterwards.
    pub fn held(&self) -> Bundle {
        match self.phase() {
            OfferPhase::Open => self.bundle(),
            OfferPhase::Declined => Bundle::default(),
        }
    }
}
