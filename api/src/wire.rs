//! Bodies of the calls that are Muster's own: offers, accept and decline, the ordered watch, and the reasons.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::Span;
use crate::v1::Offer;

/// Body of `POST …/offers/NAME/accept`: tasks for what the offer holds.
///
/// All or nothing. What is not used returns to the pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AcceptRequest {
    /// Names of more open offers of the same agent, framework and role, to be used together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<String>,
    /// New tasks: objects with `metadata` and `spec`. Framework and role are the offer's when they are not given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub launch: Vec<Value>,
    /// Names of pending tasks of the framework.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bind: Vec<String>,
    /// A call with the key of an earlier, successful one returns that one's result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Answer of a successful accept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AcceptResult {
    /// Names of the tasks that are bound now, in the order of the request: `launch`, then `bind`.
    pub tasks: Vec<String>,
    /// The revision at which it happened.
    pub resource_version: String,
}

/// Body of `POST …/offers/NAME/decline`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DeclineRequest {
    /// For how long such an offer of this agent is not wanted. Default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse: Option<Span>,
}

/// Body of `POST /apis/muster.dev/v1/agents/NAME/offers`: everything that one allocation pass changes about the offers of one
/// agent, as one transaction. Only for the fenced leader. One that changes nothing settles what was sent before it: of writes that were
/// planned from older revisions, those that have not happened at the revision of its answer never will.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentOffers {
    /// The revision of the view that was planned from. If the agent gave out or got back anything after it, nothing happens (409).
    pub seen_revision: u64,
    /// New offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create: Vec<Offer>,
    /// Offers to delete, if they are still what was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<OfferRef>,
}

/// An offer as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Answer of a successful write of an agent's offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentOffersResult {
    /// The revision at which it happened.
    pub resource_version: String,
}

/// A line of `GET /muster/v1/watch`, the ordered watch over several kinds.
///
/// First a snapshot in one or more lines, unless the watch resumes; then every revision that touched one of the kinds, in order,
/// each as one batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WatchLine {
    /// A part of the state as of `revision`; the reader has all of it after a line without `more`.
    Snapshot {
        /// The revision of the whole snapshot.
        revision: u64,
        /// Objects, as changes of type `ADDED`.
        changes: Vec<WatchChange>,
        /// Whether further parts follow.
        #[serde(default)]
        more: bool,
    },
    /// Everything that one revision changed.
    Batch {
        /// The revision.
        revision: u64,
        /// What changed.
        changes: Vec<WatchChange>,
    },
    /// Everything up to this revision has been sent.
    Progress {
        /// The revision.
        revision: u64,
    },
    /// The watch ends; a Kubernetes `Status` says why. Code 410: start again without a revision.
    Error {
        /// The `Status`.
        object: Value,
    },
}

/// One change of a [`WatchLine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchChange {
    /// `plural.group`, or `plural` of the core group: `tasks.muster.dev`, `namespaces`.
    pub resource: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: ChangeKind,
    /// The object; for a deletion, as it was last, with the revision of the deletion.
    pub object: Value,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ChangeKind {
    /// It is there now.
    Added,
    /// It is different now.
    Modified,
    /// It is not there any more.
    Deleted,
}

/// Why a task is not placed, or where it is: `GET /muster/v1/why/NAMESPACE/TASK`.
///
/// Made by the same pass that makes the offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WhyTask {
    /// The namespace of the task.
    pub namespace: String,
    /// The name of the task.
    pub task: String,
    /// Who is charged.
    pub role: String,
    /// What it needs, in words.
    pub needs: String,
    /// The place in its framework's queue, from 1.
    pub position: usize,
    /// How many wait in that queue.
    pub queue: usize,
    /// What holds for the task as a whole, such as a quota's limit; empty when nothing stands against it.
    pub summary: String,
    /// One line for each agent, or for each group of agents alike.
    pub agents: Vec<WhyAgent>,
}

/// Why a task is not placed on some agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WhyAgent {
    /// The agent, or the first of several alike.
    pub agent: String,
    /// How many agents this line speaks of.
    pub count: usize,
    /// Whether the task could go there now.
    pub fits: bool,
    /// Why not, or what is needed.
    pub reasons: Vec<String>,
}

/// The last allocation pass: `GET /muster/v1/plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanReport {
    /// The revision of the view that it was made from.
    pub revision: u64,
    /// Every pending task.
    pub tasks: Vec<WhyTask>,
    /// Lines about objects that could not be understood.
    pub problems: Vec<String>,
}
