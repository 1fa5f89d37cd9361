//! Acting as somebody else: the headers of Kubernetes (`kubectl --as`).
//!
//! Whoever may impersonate is from then on nobody but the one who is named: what they may do themselves does not count any more. What
//! must never happen here: a header that is overlooked, and a request that goes on as its sender.

use http::HeaderMap;

use crate::accounts;
use crate::auth::{self, Attributes, User};
use crate::error::{ApiError, Result};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const PREFIX: &str = "impersonate-";

/// Who acts: the sender, or whom the headers name.
pub(super) fn acting(sender: User, headers: &HeaderMap) -> Result<User> {
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Ok(sender);
    }
    let text = |value: &http::HeaderValue| {
        let text = value.to_str().map(str::to_owned);
        text.map_err(|_| ApiError::bad_request("a header that names whom to act as is no text"))
    };
    let name = headers.get(USER).map(text).transpose()?.unwrap_or_default();
    if name.is_empty() {
        let message = format!("groups, uid and more of whom to act as need the header {USER}, too");
        return Err(ApiError::bad_request(message));
    }
    let asked = |resource, namespace, name| Attributes {
        verb: "impersonate",
        resource,
        namespace,
        name,
        ..Attributes::default()
    };
    let account = accounts::named(&name);
    match account {
        Some((namespace, account)) => auth::authorize(&sender, &asked("serviceaccounts", namespace, account))?,
        None => auth::authorize(&sender, &asked("users", "", &name))?,
    }
    let groups: Result<Vec<String>> = headers.get_all(GROUP).iter().map(text).collect();
    let groups = groups?;
    for group in &groups {
        auth::authorize(&sender, &asked("groups", "", group))?;
    }
    tracing::info!(sender = sender.name, user = name, "somebody acts as somebody else");
    Ok(match account {
        Some((namespace, account)) if groups.is_empty() => accounts::user(namespace, account),
        _ => User { name, groups },
    })
}
