//! What the allocator may see: plain values, copied out of the objects by whoever calls it.
//!
//! Everything that is held is derived by the caller from live tasks and open offers; no counter is kept anywhere.

use std::collections::BTreeMap;

use muster_api::device::{Device, GpuRequirement};
use muster_api::ports::PortRequest;
use muster_api::quantity::Scalar;
use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::{Constraint, QuotaAmounts};

/// The state of the cluster that one pass allocates from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Milliseconds since the epoch. Only compared with [`Filter::until_ms`].
    pub now_ms: i64,
    /// Every agent, in any order; those that can be offered nothing as well, so that the report can say why.
    pub agents: Vec<AgentSnapshot>,
    /// Every framework with pending tasks or a declared demand, in any order.
    pub frameworks: Vec<FrameworkSnapshot>,
    /// The quotas in force. Of several for one role the first by name counts; the others become problems in the report.
    pub quotas: Vec<QuotaSnapshot>,
    /// What frameworks have declined for a while.
    pub filters: Vec<Filter>,
}

/// A framework: its namespace and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameworkId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An agent and all that is held of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentSnapshot {
    /// Its name.
    pub name: String,
    /// Its attributes. `hostname` is the agent's name unless given.
    pub attributes: BTreeMap<String, String>,
    /// What it may give out in all: [`muster_api::v1::Agent::allocatable`].
    pub total: Bundle,
    /// The devices. Only healthy ones that are in `total` are offered.
    pub devices: Vec<Device>,
    /// What its live tasks hold.
    pub tasks: Vec<Held>,
    /// Its open offers. They hold what is in them until they are answered.
    pub offers: Vec<OpenOffer>,
    /// Whether offers of it may be made.
    pub availability: Availability,
}

/// Whether offers of an agent may be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Availability {
    /// They may.
    #[default]
    Available,
    /// They may not; open ones are rescinded. The words end up in the report: `the agent is unschedulable`.
    Unavailable(String),
}

/// What one live task holds of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whose task it is.
    pub framework: FrameworkId,
    /// Who is charged.
    pub role: String,
    /// What it holds.
    pub bundle: Bundle,
}

/// An open offer of an agent. Its namespace is that of its framework.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOffer {
    /// Its name.
    pub name: String,
    /// Who it is for.
    pub framework: FrameworkId,
    /// Who is charged.
    pub role: String,
    /// What it holds.
    pub bundle: Bundle,
}

/// A framework that may be given offers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameworkSnapshot {
    /// Which one.
    pub id: FrameworkId,
    /// What it wants, once for each of its roles.
    pub roles: Vec<RoleDemand>,
}

/// What a framework wants in one role. Without pending tasks and without a declared demand it gets no offers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoleDemand {
    /// The role.
    pub role: String,
    /// Its pending tasks, in the order in which they are to be placed: priority (highest first), creation, name.
    pub tasks: Vec<PendingTask>,
    /// What it wants besides room for its pending tasks.
    pub declared: Option<DeclaredDemand>,
    /// How many offers it was ever given, as far as the caller knows. Breaks ties: who got fewer comes first. 0 when not known.
    pub offers_made: u64,
}

/// A task that waits for an agent. Its namespace is that of its framework.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PendingTask {
    /// Its name.
    pub name: String,
    /// What it needs. `ports` is the count of `PendingTask::ports`.
    pub amounts: Amounts,
    /// Which ports.
    pub ports: PortRequest,
    /// Which GPUs. The default takes any.
    pub gpu: GpuRequirement,
    /// Which agents; all must hold.
    pub constraints: Vec<Constraint>,
}

/// A framework's wish for offers that have at least this.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeclaredDemand {
    /// An offer must have at least this.
    pub minimum: Amounts,
    /// Ports that an offer must have.
    pub ports: PortRequest,
    /// Which GPUs are wanted. `None`: no GPUs are offered unless `minimum` has some; `Some` of the default: all there are.
    pub gpu: Option<GpuRequirement>,
    /// So many open offers at a time, at most.
    pub max_offers: u32,
}

/// What a role is guaranteed, what it may have at most, and how much it weighs.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotaSnapshot {
    /// The name of the object.
    pub name: String,
    /// The role, a path such as `ml/research`; what is below it counts.
    pub role: String,
    /// How much its share counts against its siblings. Zero counts as 1 and is a problem in the report.
    pub weight: Scalar,
    /// What is kept free for it.
    pub guarantee: QuotaAmounts,
    /// What it never gets more of.
    pub limit: QuotaAmounts,
    /// It is offered nothing smaller of one agent.
    pub minimum_offer: QuotaAmounts,
}

impl Default for QuotaSnapshot {
    fn default() -> QuotaSnapshot {
        QuotaSnapshot {
            name: String::new(),
            role: String::new(),
            weight: Scalar::from_units(1),
            guarantee: QuotaAmounts::default(),
            limit: QuotaAmounts::default(),
            minimum_offer: QuotaAmounts::default(),
        }
    }
}

/// A framework does not want an offer of an agent for a while unless it has more of something than what was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Who declined.
    pub framework: FrameworkId,
    /// In which role.
    pub role: String,
    /// Which agent.
    pub agent: String,
    /// What was declined.
    pub refused: Amounts,
    /// It holds while [`Snapshot::now_ms`] is before this.
    pub until_ms: i64,
}
