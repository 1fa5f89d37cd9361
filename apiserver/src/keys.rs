//! Where things are in the store.
//!
//! `objects/<group or core>/<plural>/<namespace or _>/<name>`, `ledger/<agent>`, `names/<group>`, `join/<token>`, below `meta/` what the
//! cluster is: its uid and its authority, and below `sealed/` what only servers know. Groups, plurals, namespaces and names have no slash, so a
//! key can be taken apart again. Tested below.

use muster_store::{Key, Prefix};

use crate::resource::Resource;

/// In the place of the namespace of objects that have none.
pub const NO_NAMESPACE: &str = "_";
/// What all objects' keys begin with.
pub const OBJECTS: &str = "objects/";
/// What all ledgers' keys begin with.
pub const LEDGERS: &str = "ledger/";

fn group(resource: &Resource) -> &str {
    if resource.group.is_empty() {
        "core"
    } else {
        &resource.group
    }
}

/// What the keys of a kind begin with.
pub fn kind_prefix(resource: &Resource) -> String {
    format!("{OBJECTS}{}/{}/", group(resource), resource.plural)
}

/// What the keys of a kind's objects begin with, of all namespaces or of one.
pub fn prefix(resource: &Resource, namespace: Option<&str>) -> Prefix {
    match namespace {
        None => Prefix::new(kind_prefix(resource)),
        Some(namespace) => Prefix::new(format!("{}{namespace}/", kind_prefix(resource))),
    }
}

/// The key of an object; an empty namespace is none.
pub fn object(resource: &Resource, namespace: &str, name: &str) -> Key {
    let namespace = if namespace.is_empty() { NO_NAMESPACE } else { namespace };
    Key::new(format!("{}{namespace}/{name}", kind_prefix(resource)))
}

/// The key whose writes say that an agent gave something out or got it back.
pub fn ledger(agent: &str) -> Key {
    Key::new(format!("{LEDGERS}{agent}"))
}

/// What the keys begin with whose writes say that names of kinds were taken or given back.
pub const NAMES: &str = "names/";

/// The key whose writes say that the name of a kind in this group was taken or given back.
pub fn names(group: &str) -> Key {
    Key::new(format!("{NAMES}{group}"))
}

/// What the keys of all join tokens begin with.
pub const JOIN_TOKENS: &str = "join/";

/// The key of a join token.
pub fn join_token(id: &str) -> Key {
    Key::new(format!("{JOIN_TOKENS}{id}"))
}

/// Whether a key is that of a join token.
pub fn is_join_token(key: &Key) -> bool {
    key.as_str().starts_with(JOIN_TOKENS)
}

/// Whether a key is that of a ledger, or of names: when it was written matters, what was does not.
pub fn is_ledger(key: &Key) -> bool {
    key.as_str().starts_with(LEDGERS) || key.as_str().starts_with(NAMES)
}

/// The key of the cluster's uid.
pub fn cluster() -> Key {
    Key::new("meta/cluster".to_owned())
}

/// The key of the hash of the cluster's certificate authority.
pub fn authority() -> Key {
    Key::new("meta/authority".to_owned())
}

/// What the keys begin with of what is the servers' alone: no request reads it.
pub const SEALED: &str = "sealed/";

/// The key of the keys by which tokens of service accounts are signed.
pub fn signing() -> Key {
    Key::new(format!("{SEALED}signing"))
}

/// What is never in the store as it is.
pub fn sealed() -> [Prefix; 2] {
    [Prefix::new(format!("{OBJECTS}core/secrets/")), Prefix::new(SEALED)]
}

/// The key of a lease.
pub fn lease(namespace: &str, name: &str) -> Key {
    Key::new(format!("{OBJECTS}coordination.k8s.io/leases/{namespace}/{name}"))
}

/// The key of a namespace.
pub fn namespace(name: &str) -> Key {
    Key::new(format!("{OBJECTS}core/namespaces/{NO_NAMESPACE}/{name}"))
}

/// The parts of an object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// What the keys of the kind begin with, with the slash.
    pub kind: &'a str,
    /// The namespace; empty for none.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
}

/// Takes the key of an object apart; `None`: it is none.
pub fn parts(key: &str) -> Option<Parts<'_>> {
    if !key.starts_with(OBJECTS) {
        return None;
    }
    let (rest, name) = key.rsplit_once('/')?;
    let slash = rest.rfind('/')?;
    let namespace = &rest[slash + 1..];
    Some(Parts {
        kind: &rest[..=slash],
        namespace: if namespace == NO_NAMESPACE { "" } else { namespace },
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_can_be_taken_apart() {
        let lease = lease("muster-agents", "a1");
        let expected = Parts {
            kind: "objects/coordination.k8s.io/leases/",
            namespace: "muster-agents",
            name: "a1",
        };
        assert_eq!(parts(lease.as_str()), Some(expected));
        let namespace = namespace("default");
        assert_eq!(
            parts(namespace.as_str()).map(|parts| (parts.namespace, parts.name)),
            Some(("", "default"))
        );
        assert_eq!(parts(ledger("a1").as_str()), None);
        assert_eq!(parts("objects/"), None);
    }
}
