//! Who may do what: the roles and bindings of Kubernetes (`rbac.authorization.k8s.io/v1`), and decisions by them.
//!
//! [`Rules`] is a compiled snapshot of every role and binding, and a decision a pure function of it, a user and what is asked. [`Authorizer`] keeps the
//! snapshot as new as the hub is, so that a decision never reads an object. Roles and bindings that everybody expects are made and completed
//! when a server starts ([`defaults`], [`bootstrap`]), and roles that are put together out of others are written by every server alike
//! ([`aggregation`]). It promises: what nothing allows is refused; a binding counts in the revision in which it can be read. What must never
//! happen here: a rule that takes something away, and a decision that depends on the order of bindings. What the control plane's own identities may do
//! is not here but in [`crate::auth`], so that no deletion of a role can stop it. Tested below, in `tests/rbac.rs` through the
//! router, and with kubectl.

pub mod aggregation;
pub mod bootstrap;
mod defaults;
mod live;
mod rule;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::auth::{Attributes, User};

pub use live::Authorizer;
pub use rule::{Rule, compact, missing, quoted};

/// The API group.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// The version.
pub const VERSION: &str = "v1";
/// The kinds, in the plural: roles, bindings; first those of namespaces.
pub const ROLES: &str = "roles";
/// See [`ROLES`].
pub const CLUSTER_ROLES: &str = "clusterroles";
/// See [`ROLES`].
pub const ROLE_BINDINGS: &str = "rolebindings";
/// See [`ROLES`].
pub const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings";

/// A role, as far as decisions need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Empty: it is of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it allows.
    pub rules: Arc<[Rule]>,
}

/// A binding, as far as decisions need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Where it counts; empty: everywhere.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Role` or `ClusterRole`.
    pub role_kind: String,
    /// The name of the role.
    pub role: String,
    /// To whom.
    pub subjects: Vec<Subject>,
}

/// Somebody whom a role is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A user of that name.
    User(String),
    /// Whoever is in that group.
    Group(String),
    /// A service account: namespace and name.
    ServiceAccount(String, String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::User(name) => write!(f, "User {name:?}"),
            Subject::Group(name) => write!(f, "Group {name:?}"),
            Subject::ServiceAccount(namespace, name) => write!(f, "ServiceAccount \"{name}/{namespace}\""),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Role {
    /// Reads a Role or a ClusterRole.
    pub fn read(object: &Value) -> Role {
        Role {
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            rules: Rule::read_all(&object["rules"]).into(),
        }
    }
}

impl Binding {
    /// Reads a RoleBinding or a ClusterRoleBinding. A subject that names nobody is left out.
    pub fn read(object: &Value) -> Binding {
        let namespace = text(&object["metadata"]["namespace"]);
        let subject = |subject: &Value| {
            let name = text(&subject["name"]);
            Some(match subject["kind"].as_str()? {
                "User" => Subject::User(name),
                "Group" => Subject::Group(name),
                "ServiceAccount" => match subject["namespace"].as_str() {
                    Some(own) if !own.is_empty() => Subject::ServiceAccount(own.to_owned(), name),
                    _ if namespace.is_empty() => return None,
                    _ => Subject::ServiceAccount(namespace.clone(), name),
                },
                _ => return None,
            })
        };
        let subjects = object["subjects"].as_array().into_iter().flatten();
        Binding {
            subjects: subjects.filter_map(subject).collect(),
            name: text(&object["metadata"]["name"]),
            role_kind: text(&object["roleRef"]["kind"]),
            role: text(&object["roleRef"]["name"]),
            namespace,
        }
    }
}

/// That a binding gives somebody a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    binding: Arc<Binding>,
    subject: Subject,
    /// `None`: there is no such role.
    rules: Option<Arc<[Rule]>>,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding {
            namespace,
            name,
            role_kind,
            role,
            ..
        } = &*self.binding;
        if namespace.is_empty() {
            write!(f, "ClusterRoleBinding {name:?}")?;
        } else {
            write!(f, "RoleBinding \"{name}/{namespace}\"")?;
        }
        write!(f, " of {role_kind} {role:?} to {}", self.subject)
    }
}

/// What somebody was given, by where it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grants {
    everywhere: Vec<Arc<Grant>>,
    within: BTreeMap<String, Vec<Arc<Grant>>>,
}

/// Every role and binding, made ready for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    roles: BTreeMap<(String, String), Arc<[Rule]>>,
    users: BTreeMap<String, Grants>,
    groups: BTreeMap<String, Grants>,
}

/// What roles and bindings say about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is allowed, by this.
    Allowed(Arc<Grant>),
    /// Nothing allows it; these would have been looked at, too, if their roles were there.
    Nothing(Vec<Arc<Grant>>),
}

impl Rules {
    /// Compiles them.
    pub fn new(roles: impl IntoIterator<Item = Arc<Role>>, bindings: impl IntoIterator<Item = Arc<Binding>>) -> Rules {
        let roles = roles
            .into_iter()
            .map(|role| ((role.namespace.clone(), role.name.clone()), role.rules.clone()));
        let mut rules = Rules {
            roles: roles.collect(),
            ..Rules::default()
        };
        for binding in bindings {
            let found = rules
                .role(&binding.namespace, &binding.role_kind, &binding.role)
                .cloned();
            for subject in &binding.subjects {
                let grant = Arc::new(Grant {
                    binding: binding.clone(),
                    subject: subject.clone(),
                    rules: found.clone(),
                });
                let grants = match subject {
                    Subject::User(name) => rules.users.entry(name.clone()),
                    Subject::Group(name) => rules.groups.entry(name.clone()),
                    Subject::ServiceAccount(namespace, name) => {
                        rules.users.entry(crate::accounts::user_name(namespace, name))
                    }
                };
                let grants = grants.or_default();
                if binding.namespace.is_empty() {
                    grants.everywhere.push(grant);
                } else {
                    grants.within.entry(binding.namespace.clone()).or_default().push(grant);
                }
            }
        }
        rules
    }

    /// The rules of a role that a binding in `namespace` (empty: of the cluster) names.
    pub fn role(&self, namespace: &str, kind: &str, name: &str) -> Option<&Arc<[Rule]>> {
        let namespace = match kind {
            "ClusterRole" => "",
            "Role" if !namespace.is_empty() => namespace,
            _ => return None,
        };
        self.roles.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// What the user was given that counts in `namespace`; empty: in the whole cluster.
    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Grant>> {
        let own = self.users.get(&user.name);
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        own.into_iter().chain(of_groups).flat_map(move |grants| {
            let within = (!namespace.is_empty()).then(|| grants.within.get(namespace)).flatten();
            grants.everywhere.iter().chain(within.into_iter().flatten())
        })
    }

    /// Whether something allows `user` to do that.
    pub fn decide(&self, user: &User, asked: &Attributes<'_>) -> Found {
        let mut without = Vec::new();
        for grant in self.grants(user, asked.namespace) {
            match &grant.rules {
                Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => return Found::Allowed(grant.clone()),
                Some(_) => (),
                None => without.push(grant.clone()),
            }
        }
        Found::Nothing(without)
    }

    /// Every rule that counts for the user in `namespace`, and the bindings whose roles are not there.
    pub fn of(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<Arc<Grant>>) {
        let (mut rules, mut without) = (Vec::new(), Vec::new());
        for grant in self.grants(user, namespace) {
            match &grant.rules {
                // A path is of the whole cluster, so what is bound in a namespace says nothing about it.
                Some(found) if !grant.binding.namespace.is_empty() => {
                    rules.extend(found.iter().filter(|rule| rule.paths.is_empty()).cloned());
                }
                Some(found) => rules.extend(found.iter().cloned()),
                None => without.push(grant.clone()),
            }
        }
        (rules, without)
    }
}

/// That roles are not there, as Kubernetes says it; empty: they are.
pub fn not_found(grants: &[Arc<Grant>]) -> String {
    let mut texts: Vec<String> = grants
        .iter()
        .map(|grant| {
            let kind = grant.binding.role_kind.to_lowercase();
            format!("{kind}.{GROUP} {:?} not found", grant.binding.role)
        })
        .collect();
    texts.dedup();
    match texts.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        several => format!("RBAC: [{}]", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(namespace: &str, name: &str, rules: &[Rule]) -> Arc<Role> {
        Arc::new(Role {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            rules: rules.into(),
        })
    }

    fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: &[Subject]) -> Arc<Binding> {
        Arc::new(Binding {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            role_kind: role_kind.to_owned(),
            role: role.to_owned(),
            subjects: subjects.to_vec(),
        })
    }

    fn get<'a>(namespace: &'a str, resource: &'a str) -> Attributes<'a> {
        Attributes {
            verb: "get",
            resource,
            namespace,
            name: "x",
            ..Attributes::default()
        }
    }

    fn rules() -> Rules {
        let reads = |resource: &str| Rule::of(&["get"], &[""], &[resource]);
        let jo = Subject::User("jo".to_owned());
        let ml = Subject::Group("ml".to_owned());
        let robot = Subject::ServiceAccount("a".to_owned(), "robot".to_owned());
        Rules::new(
            [
                role("", "maps", &[reads("configmaps")]),
                role("a", "secrets", &[reads("secrets")]),
                role("b", "secrets", &[]),
                role("", "paths", &[Rule::of_paths(&["get"], &["/metrics"])]),
            ],
            [
                binding("", "all", "ClusterRole", "maps", &[ml]),
                binding("a", "jo", "Role", "secrets", &[jo.clone(), robot]),
                binding("b", "jo", "Role", "secrets", std::slice::from_ref(&jo)),
                binding("b", "paths", "ClusterRole", "paths", std::slice::from_ref(&jo)),
                binding("c", "none", "Role", "secrets", &[jo]),
            ],
        )
    }

    #[test]
    fn a_role_counts_where_it_is_bound_and_for_whom() {
        let rules = rules();
        let may = |user: &User, asked: &Attributes<'_>| matches!(rules.decide(user, asked), Found::Allowed(_));
        let (jo, ml) = (User::new("jo", &[]), User::new("al", &["ml"]));
        assert!(may(&jo, &get("a", "secrets")));
        assert!(
            !may(&jo, &get("b", "secrets")),
            "the role of that name there allows nothing"
        );
        assert!(!may(&jo, &get("", "secrets")));
        assert!(!may(&jo, &get("a", "configmaps")));
        assert!(may(&ml, &get("a", "configmaps")) && may(&ml, &get("", "configmaps")));
        let robot = User::new("system:serviceaccount:a:robot", &[]);
        assert!(may(&robot, &get("a", "secrets")));
        let metrics = Attributes {
            verb: "get",
            path: "/metrics",
            ..Attributes::default()
        };
        assert!(!may(&jo, &metrics), "a path is in no namespace");
        assert!(rules.of(&jo, "b").0.is_empty());
    }

    #[test]
    fn a_decision_says_by_what_and_which_roles_are_not_there() {
        let rules = rules();
        let jo = User::new("jo", &[]);
        let Found::Allowed(grant) = rules.decide(&jo, &get("a", "secrets")) else {
            panic!("it is allowed");
        };
        assert_eq!(
            grant.to_string(),
            r#"RoleBinding "jo/a" of Role "secrets" to User "jo""#
        );
        let Found::Nothing(without) = rules.decide(&jo, &get("c", "secrets")) else {
            panic!("it is refused");
        };
        assert_eq!(
            not_found(&without),
            r#"RBAC: role.rbac.authorization.k8s.io "secrets" not found"#
        );
    }
}
