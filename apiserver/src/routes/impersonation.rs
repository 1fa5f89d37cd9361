//! Acting as somebody else: the headers of Kubernetes (`kubectl --as`).
//!
//! Whoever may impersonate is from then on nobody but the one who is named: what they may do themselves does not count any more. What
//! must never happen here: a header that is overlooked, and a request that goes on as its sender.

use std::collections::BTreeMap;

use http::HeaderMap;

use crate::accounts;
use crate::auth::{self, Attributes, Decision, UNAUTHENTICATED, User};
use crate::error::{ApiError, Result};
use crate::params::decode;
use crate::rbac::Authorizer;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const PREFIX: &str = "impersonate-";
/// Where uids and extras are, as kinds that rules name.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whether the sender wants to act as somebody else.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// Who acts: the sender, or whom the headers name.
pub(super) fn acting(authorizer: &Authorizer, sender: User, headers: &HeaderMap) -> Result<User> {
    if !is_wanted(headers) {
        return Ok(sender);
    }
    let wanted = Wanted::read(headers)?;
    let allow = |asked: Attributes<'_>| {
        let asked = Attributes {
            verb: "impersonate",
            ..asked
        };
        match authorizer.decide(&sender, &asked) {
            Decision::Allowed(_) => Ok(()),
            Decision::Refused(said) => Err(auth::refusal(&sender, &asked, &said)),
        }
    };
    let about = |group, resource, subresource, namespace, name| Attributes {
        group,
        resource,
        subresource,
        namespace,
        name,
        ..Attributes::default()
    };
    let account = accounts::named(&wanted.name);
    match account {
        Some((namespace, account)) => allow(about("", "serviceaccounts", "", namespace, account))?,
        None => allow(about("", "users", "", "", &wanted.name))?,
    }
    for group in &wanted.groups {
        allow(about("", "groups", "", "", group))?;
    }
    if !wanted.uid.is_empty() {
        allow(about(AUTHENTICATION, "uids", "", "", &wanted.uid))?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            allow(about(AUTHENTICATION, "userextras", key, "", value))?;
        }
    }
    tracing::info!(
        sender = sender.name,
        user = wanted.name,
        "somebody acts as somebody else"
    );
    let mut groups = wanted.groups.clone();
    match account {
        Some((namespace, account)) if groups.is_empty() => groups = accounts::user(namespace, account).groups,
        _ => (),
    }
    let user = User {
        name: wanted.name.clone(),
        groups,
        uid: wanted.uid.clone(),
        extra: wanted.extra.clone(),
    };
    if user.is_anonymous() && !user.in_group(UNAUTHENTICATED) {
        return Ok(User::anonymous());
    }
    Ok(user.authenticated())
}

/// Whom the headers name.
struct Wanted {
    name: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> Result<Wanted> {
        let text = |value: &http::HeaderValue| {
            let text = value.to_str().map(str::to_owned);
            text.map_err(|_| ApiError::bad_request("a header that names whom to act as is no text"))
        };
        let mut wanted = Wanted {
            name: headers.get(USER).map(text).transpose()?.unwrap_or_default(),
            groups: headers.get_all(GROUP).iter().map(text).collect::<Result<_>>()?,
            uid: headers.get(UID).map(text).transpose()?.unwrap_or_default(),
            extra: BTreeMap::new(),
        };
        if wanted.name.is_empty() {
            let message = format!("groups, uid and more of whom to act as need the header {USER}, too");
            return Err(ApiError::bad_request(message));
        }
        for (name, value) in headers {
            let name = name.as_str();
            if let Some(key) = name.strip_prefix(EXTRA).filter(|key| !key.is_empty()) {
                wanted.extra.entry(decode(key, false)).or_default().push(text(value)?);
            } else if name.starts_with(PREFIX) && ![USER, GROUP, UID].contains(&name) {
                return Err(ApiError::bad_request(format!("the header {name} is not known")));
            }
        }
        Ok(wanted)
    }
}
