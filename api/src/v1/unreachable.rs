//! What users say about tasks whose agent cannot be reached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Span;

/// What becomes of a task when its agent cannot be reached, and so nobody knows whether it still runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Unreachable {
    /// `Wait`, `ReplaceAfter` or `SelfFence`. Default `Wait`.
    pub policy: UnreachablePolicy,
    /// How long the agent may be unreachable before the policy applies. For `ReplaceAfter` (at least 10s) and `SelfFence` (at least 20s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
    /// For `ReplaceAfter`: which of the two goes on when the original turns out to be alive: `Replacement` or `Original`. Default
    /// `Replacement`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// What becomes of a task when its agent cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnreachablePolicy {
    /// Nothing, until the agent is back or proven to be off.
    #[default]
    Wait,
    /// After a time another task like it is made. For a while both may run.
    ReplaceAfter,
    /// The agent's machine ends the task by itself after a time without contact, and the task is `Gone` once that is certain. Two never
    /// run.
    SelfFence,
}

/// Which of two tasks goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Keep {
    /// The one that was made later.
    #[default]
    Replacement,
    /// The one that was there first.
    Original,
}
