//! Fences: the lease under which a writer acts, compared in the very transaction that writes.

use http::HeaderMap;
use muster_api::names;
use muster_store::{Compare, Revision};

use super::commit::{Guard, GuardedTxn};
use crate::auth::User;
use crate::error::{ApiError, Result};
use crate::keys;

/// A lease, and the revision at which it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub name: String,
    /// Its create revision.
    pub revision: Revision,
}

impl Fence {
    /// Reads the fence of a request, and checks that it is the user's to use.
    pub fn of(headers: &HeaderMap, user: &User) -> Result<Option<Fence>> {
        let Some(value) = headers.get(names::HEADER_FENCE) else {
            return Ok(None);
        };
        let text = value.to_str().unwrap_or_default();
        let fence = Fence::parse(text).ok_or_else(|| {
            let header = names::HEADER_FENCE;
            ApiError::bad_request(format!(
                "the header {header}: {text:?} is malformed; write NAMESPACE/LEASE@REVISION"
            ))
        })?;
        if fence.may_be_used_by(user) {
            Ok(Some(fence))
        } else {
            let message = format!(
                "User \"{}\" cannot act under the lease {}, which is not its own",
                user.name,
                fence.path()
            );
            Err(ApiError::forbidden(message))
        }
    }

    fn parse(text: &str) -> Option<Fence> {
        let (path, revision) = text.trim().rsplit_once('@')?;
        let (namespace, name) = path.split_once('/')?;
        let fine = names::dns_label_problem(namespace).is_none() && names::dns_subdomain_problem(name).is_none();
        let revision = revision.parse().ok().filter(|revision| *revision > 0)?;
        fine.then(|| Fence {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision,
        })
    }

    fn may_be_used_by(&self, user: &User) -> bool {
        if user.is_master() {
            return true;
        }
        match self.namespace.as_str() {
            names::NAMESPACE_SYSTEM => user.is_controllers(),
            names::NAMESPACE_AGENTS => user.agent_name() == Some(&self.name),
            other => !other.starts_with("muster-"),
        }
    }

    /// `namespace/name` of the lease.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Makes the transaction hold only while the lease is that very one.
    pub fn guard(&self, txn: &mut GuardedTxn) {
        let compare = Compare::created(keys::lease(&self.namespace, &self.name), self.revision);
        txn.compare(compare, Guard::Fence(self.path()));
    }
}

/// Refuses a write that lacks the fence it needs. Masters may always write: somebody has to be able to repair things.
pub fn require(user: &User, fence: Option<&Fence>, what: &str, lease: &str) -> Result<()> {
    if user.is_master() || fence.is_some_and(|fence| fence.path() == lease) {
        Ok(())
    } else {
        Err(ApiError::fence_required(what, lease))
    }
}

/// The lease of the leading controllers.
pub fn controllers_lease() -> String {
    format!("{}/{}", names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS)
}

/// The presence lease of an agent.
pub fn agent_lease(agent: &str) -> String {
    format!("{}/{agent}", names::NAMESPACE_AGENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_names_a_lease_and_a_revision() {
        let fence = Fence::parse("muster-system/muster-controllers@17").expect("well-formed");
        assert_eq!(
            (fence.path().as_str(), fence.revision),
            ("muster-system/muster-controllers", 17)
        );
        for text in [
            "", "a@1", "a/b", "a/b@", "a/b@x", "a/b@0", "a/b@-1", "A/b@1", "a/@1", "a/b/c@1",
        ] {
            assert_eq!(Fence::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_lease_is_used_by_its_owner_alone() {
        let fence = |text: &str| Fence::parse(text).expect(text);
        let users = [
            User::admin(),
            User::controllers(),
            User::agent("a1"),
            User::new("jo", &[]),
        ];
        let allowed = |text: &str| users.clone().map(|user| fence(text).may_be_used_by(&user));
        assert_eq!(allowed("muster-system/x@1"), [true, true, false, false]);
        assert_eq!(allowed("muster-agents/a1@1"), [true, false, true, false]);
        assert_eq!(allowed("muster-agents/a2@1"), [true, false, false, false]);
        assert_eq!(allowed("default/x@1"), [true, true, true, true]);
        assert_eq!(allowed("muster-other/x@1"), [true, false, false, false]);
    }
}
