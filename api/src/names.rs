//! Names that components agree on, and the rules for names that users choose.

/// The API group of Muster's kinds.
pub const GROUP: &str = "muster.dev";
/// The only version of the group.
pub const VERSION: &str = "v1";
/// `group/version` as in `apiVersion`.
pub const API_VERSION: &str = "muster.dev/v1";

/// The namespace of objects that name none.
pub const NAMESPACE_DEFAULT: &str = "default";
/// The namespace of the control plane's own objects, leadership leases among them.
pub const NAMESPACE_SYSTEM: &str = "muster-system";
/// The namespace of the agents' presence leases: one for each agent, of the agent's name.
pub const NAMESPACE_AGENTS: &str = "muster-agents";
/// The lease that the leading controllers hold, in [`NAMESPACE_SYSTEM`].
pub const LEASE_CONTROLLERS: &str = "muster-controllers";
/// The framework that a task belongs to when it names none; made in each namespace when needed.
pub const FRAMEWORK_DEFAULT: &str = "default";

/// Annotation: `"true"` on a Lease that is created under a store lease of its `leaseDurationSeconds`, and vanishes with it.
pub const ANNOTATION_EPHEMERAL: &str = "muster.dev/ephemeral";
/// Annotation on objects written under a fence: which one, as in the `Muster-Fence` header.
pub const ANNOTATION_FENCED_BY: &str = "muster.dev/fenced-by";

/// Annotation on a task that was made to replace another: the uid of that one.
pub const ANNOTATION_REPLACES: &str = "muster.dev/replaces";

/// Header of a write: `NAMESPACE/LEASE@CREATE_REVISION`. The write lands only while that very lease exists.
pub const HEADER_FENCE: &str = "muster-fence";

/// Header of every answer: the uid of the cluster, made with its store and never changed.
pub const HEADER_CLUSTER: &str = "muster-cluster";

/// Group of identities that may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of the controllers' identity.
pub const GROUP_CONTROLLERS: &str = "system:muster:controllers";
/// Group of all agents' identities.
pub const GROUP_AGENTS: &str = "system:muster:agents";
/// An agent's identity is this followed by its name.
pub const USER_AGENT_PREFIX: &str = "system:muster:agent:";
/// The controllers' identity.
pub const USER_CONTROLLERS: &str = "system:muster:controllers";

/// Annotation on an Agent: the machine that the name belongs to.
pub const ANNOTATION_MACHINE: &str = "muster.dev/machine";
/// Annotation on a server's presence lease, `server-NAME` in [`NAMESPACE_SYSTEM`]: its addresses, `HOST:PORT,HOST:PORT`.
pub const ANNOTATION_ENDPOINTS: &str = "muster.dev/endpoints";
/// The ConfigMap in [`NAMESPACE_SYSTEM`] whose data says since when the certificates of which agents count no longer.
pub const CONFIG_MAP_REVOKED: &str = "revoked-agents";
/// Annotation on a server's presence lease: its version.
pub const ANNOTATION_VERSION: &str = "muster.dev/version";
/// What the names of servers' presence leases begin with.
pub const LEASE_SERVER_PREFIX: &str = "server-";

/// The name in an agent's certificate. It is of no zone that anybody can own, so that no certificate of an agent is one of a server.
pub fn agent_host(agent: &str) -> String {
    format!("{agent}.agents.muster")
}

/// Finalizer of an object that is deleted after what it owns.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object that is deleted after what it owns has been told that it owns it no longer.
pub const FINALIZER_ORPHAN: &str = "orphan";
/// What keeps a namespace, in its `spec.finalizers`, until its content is gone.
pub const FINALIZER_NAMESPACE: &str = "kubernetes";

/// Finalizer on a bound task: its agent has not yet let go of it.
pub const FINALIZER_AGENT: &str = "muster.dev/agent";

/// Why `name` is not a DNS label (RFC 1123: at most 63 of `a-z 0-9 -`, alphanumeric at both ends); `None`: it is one.
pub fn dns_label_problem(name: &str) -> Option<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let fine = inner && edge(name.chars().next()) && edge(name.chars().last()) && name.len() <= 63;
    (!fine).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', start and end with an alphanumeric \
         character, and have at most 63 characters"
            .to_owned()
    })
}

/// Why `name` is not a DNS subdomain (RFC 1123: labels separated by dots, at most 253 characters); `None`: it is one.
pub fn dns_subdomain_problem(name: &str) -> Option<String> {
    let fine = name.len() <= 253 && name.split('.').all(|label| label.len() <= 253 && dns_part(label));
    (!fine).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', start and end with an \
         alphanumeric character, and have at most 253 characters"
            .to_owned()
    })
}

fn dns_part(label: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = label.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Why `role` is not a path of roles; `None`: it is one. Roles nest with `/`: `ml/research`. Each part is a DNS label.
pub fn role_problem(role: &str) -> Option<String> {
    let fine = role.len() <= 253
        && role.split('/').all(|part| dns_label_problem(part).is_none())
        && role.split('/').count() <= 8;
    (!fine).then(|| {
        "a role is a path of at most 8 parts separated by '/', each a lowercase RFC 1123 label, such as ml/research"
            .to_owned()
    })
}

/// Why `key` is not a label or annotation key (`[prefix/]name`); `None`: it is one.
pub fn qualified_name_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let fine =
        prefix.is_none_or(|prefix| dns_subdomain_problem(prefix).is_none()) && label_text(name) && !name.is_empty();
    (!fine).then(|| {
        "a qualified name must consist of alphanumeric characters, '-', '_' or '.', start and end with an alphanumeric character, \
         have at most 63 characters, and may have a DNS subdomain prefix and '/'"
            .to_owned()
    })
}

/// Why `value` is not a label value; `None`: it is one.
pub fn label_value_problem(value: &str) -> Option<String> {
    (!label_text(value)).then(|| {
        "a label value must be empty or consist of alphanumeric characters, '-', '_' or '.', start and end with an alphanumeric \
         character, and have at most 63 characters"
            .to_owned()
    })
}

fn label_text(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    bytes.len() <= 63 && inner && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_dns() {
        for name in ["a", "a1", "a-b", "0", &"a".repeat(63)] {
            assert_eq!(dns_label_problem(name), None, "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", &"a".repeat(64)] {
            assert!(dns_label_problem(name).is_some(), "{name}");
        }
        assert_eq!(dns_subdomain_problem("a.b-c.d"), None);
        for name in ["", ".a", "a.", "a..b", "a/b", "A.b", &"a.".repeat(127)] {
            assert!(dns_subdomain_problem(name).is_some(), "{name}");
        }
    }

    #[test]
    fn roles_are_paths_of_labels() {
        assert_eq!(role_problem("ml/research"), None);
        for role in ["", "/", "ml/", "/ml", "ml//x", "*", "ML", "..", "a/b/c/d/e/f/g/h/i"] {
            assert!(role_problem(role).is_some(), "{role}");
        }
    }

    #[test]
    fn label_keys_and_values_follow_the_rules_of_kubernetes() {
        for key in ["app", "app.kubernetes.io/name", "A_b.c-d", "x/y"] {
            assert_eq!(qualified_name_problem(key), None, "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "a b", "A.B/", "UP/a", &"a".repeat(64)] {
            assert!(qualified_name_problem(key).is_some(), "{key}");
        }
        assert_eq!(label_value_problem(""), None);
        assert!(label_value_problem("-").is_some());
    }
}
