//! What can be tuned, and what comes out.

use std::fmt;

use muster_api::device::Device;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::resources::Bundle;
use muster_api::v1::QuotaAmounts;

use crate::report::Report;
use crate::snapshot::FrameworkId;

/// What can be tuned.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// New offers of one pass at most.
    pub offers_max: usize,
    /// No offer is smaller than every one of these. Default: 0.01 CPUs or 32 MiB of memory (Mesos: `min_allocatable_resources`).
    pub minimum_offer: Vec<QuotaAmounts>,
    /// Which of [`muster_api::resources::RESOURCE_NAMES`] count in a dominant share. Default: all but ports.
    pub shared: [bool; 5],
    /// So many groups of equal tasks are explained agent by agent in [`Report::to_wire`]; the others get their summary only.
    pub explained_max: usize,
    /// So many lines about agents a task's explanation has at most; the rest are counted in a last line.
    pub agent_lines_max: usize,
}

impl Default for Params {
    fn default() -> Params {
        let cpus = QuotaAmounts {
            cpus: Some(Scalar::from_milli(10)),
            ..QuotaAmounts::default()
        };
        let memory = QuotaAmounts {
            memory: Some(ByteSize::from_mib(32)),
            ..QuotaAmounts::default()
        };
        Params {
            offers_max: 10_000,
            minimum_offer: vec![cpus, memory],
            shared: [true, true, true, true, false],
            explained_max: 100,
            agent_lines_max: 20,
        }
    }
}

/// What a pass decides.
///
/// The rescinds and the new offers of one agent belong together, in one transaction: what a rescind frees may be in a new offer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    /// Offers to make, in the order in which they were decided.
    pub offers: Vec<NewOffer>,
    /// Open offers to take back, by agent and name.
    pub rescinds: Vec<Rescind>,
    /// Why every pending task is where it is.
    pub report: Report,
}

/// An offer to make. Its namespace is that of its framework.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewOffer {
    /// Whose resources.
    pub agent: String,
    /// Who it is for.
    pub framework: FrameworkId,
    /// Who is charged.
    pub role: String,
    /// What is offered.
    pub bundle: Bundle,
    /// The devices of `bundle`, by UUID.
    pub devices: Vec<Device>,
}

/// An open offer to take back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescind {
    /// The agent.
    pub agent: String,
    /// The namespace of the offer.
    pub namespace: String,
    /// The name of the offer.
    pub name: String,
    /// Why.
    pub reason: RescindReason,
}

/// Why an open offer is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RescindReason {
    /// Offers of the agent may not be made any more; why, in words.
    AgentUnavailable(String),
    /// The framework wants nothing (any more) that the offer could hold, or more offers are open than it wants.
    NoDemand,
    /// Tasks and offers together hold more of the agent than it has.
    AgentOverCommitted,
    /// The role, or a role above it, holds more than its limit; the role with the limit.
    LimitExceeded(String),
    /// Another role's guarantee needs it; that role.
    GuaranteeUnmet(String),
}

impl fmt::Display for RescindReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RescindReason::AgentUnavailable(why) => f.write_str(why),
            RescindReason::NoDemand => f.write_str("the framework wants no such offer any more"),
            RescindReason::AgentOverCommitted => f.write_str("the agent has less than is given out"),
            RescindReason::LimitExceeded(role) => write!(f, "role {role} holds more than its quota's limit"),
            RescindReason::GuaranteeUnmet(role) => write!(f, "the guarantee of role {role} needs it"),
        }
    }
}
