//! Agents whose certificates count no longer.
//!
//! The list is a ConfigMap that masters write (`mctl agent revoke`): the name of an agent, and since when. Every server has it in its
//! hub, so it counts everywhere a moment after it was written: for requests and for renewals. A certificate that was issued later counts,
//! so the machine can join again with a new token. What must never happen here: an entry that cannot be read and lets somebody in.
//! Tested in `tests/joining.rs`.

use jiff::Timestamp;
use muster_api::names;

use crate::auth::User;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::state::State;
use crate::tls::Certified;

/// Refuses an agent that was revoked after `shown` was issued; a bearer token has no such time and is refused too.
pub(crate) fn check(state: &State, user: &User, shown: Option<&Certified>) -> Result<()> {
    let Some(agent) = user.agent_name() else {
        return Ok(());
    };
    let Some(kind) = state.resources.stored("configmaps") else {
        return Ok(());
    };
    let key = keys::object(&kind.stored, names::NAMESPACE_SYSTEM, names::CONFIG_MAP_REVOKED);
    let Some(list) = state.hub.get(&key) else {
        return Ok(());
    };
    let json = list.json();
    let Some(since) = json["data"].get(agent) else {
        return Ok(());
    };
    let since: Option<Timestamp> = since.as_str().and_then(|since| since.parse().ok());
    if let (Some(since), Some(shown)) = (since, shown)
        && shown.issued_at > since
    {
        return Ok(());
    }
    Err(ApiError::revoked(format!(
        "the agent {agent} was revoked; to let its machine in again, join with a new token: mctl token create --agent {agent}"
    )))
}
