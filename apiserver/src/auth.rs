//! Who is asking, and what they may do.
//!
//! Identities come from bearer tokens. What an identity may do follows from its groups by a fixed table, [`authorize`]: everybody
//! who is known may read; the control plane's own kinds are written by the control plane; an agent writes only what is its own.
//! Rules that need the object (a task must be bound to the agent that writes its status) are the registry's; it asks
//! [`User::agent_name`]. What must never happen here: a decision that depends on the object's content, or a default that allows.
//! Tested below, rule by rule.

mod tokens;

use muster_api::names;

use crate::error::ApiError;

pub use tokens::Tokens;

/// The user of requests without a token.
const ANONYMOUS: &str = "system:anonymous";
/// What anybody may read.
const PUBLIC_PATHS: [&str; 4] = ["/version", "/livez", "/readyz", "/healthz"];

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The groups.
    pub groups: Vec<String>,
}

impl User {
    /// A user of the given groups.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> User {
        User {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    /// Who may do everything; the user of the kubeconfig that the server writes.
    pub fn admin() -> User {
        User::new("admin", &[names::GROUP_MASTERS])
    }

    /// The controllers.
    pub fn controllers() -> User {
        User::new(names::USER_CONTROLLERS, &[names::GROUP_CONTROLLERS])
    }

    /// The agent of that name.
    pub fn agent(name: &str) -> User {
        User::new(format!("{}{name}", names::USER_AGENT_PREFIX), &[names::GROUP_AGENTS])
    }

    /// Whoever sent no token.
    pub fn anonymous() -> User {
        User::new(ANONYMOUS, &["system:unauthenticated"])
    }

    /// Whether the user is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Whether the user may do everything.
    pub fn is_master(&self) -> bool {
        self.in_group(names::GROUP_MASTERS)
    }

    /// Whether this is the controllers.
    pub fn is_controllers(&self) -> bool {
        self.in_group(names::GROUP_CONTROLLERS)
    }

    /// Whether no token was sent.
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// The agent that this is, if it is one.
    pub fn agent_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix(names::USER_AGENT_PREFIX)?;
        (self.in_group(names::GROUP_AGENTS) && !name.is_empty()).then_some(name)
    }
}

/// Turns a bearer token into a user.
pub trait Authenticate: Send + Sync + 'static {
    /// Who has this token. Without one: [`User::anonymous`]; with an unknown one: 401.
    fn authenticate(&self, token: Option<&str>) -> Result<User, ApiError>;
}

/// What is asked for. Parts that do not apply are empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`; of a path, the method in lower case.
    pub verb: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The plural name of the kind; empty when a path is asked for.
    pub resource: &'a str,
    /// The subresource.
    pub subresource: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The name of the object; for a creation, the one in the body.
    pub name: &'a str,
    /// The path, of requests that are not about objects.
    pub path: &'a str,
}

/// Whether `user` may do that; the error says what was refused to whom.
pub fn authorize(user: &User, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    if attributes.resource.is_empty() {
        return authorize_path(user, attributes);
    }
    if user.is_master() {
        return Ok(());
    }
    if user.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    let secret = attributes.group.is_empty() && attributes.resource == "secrets";
    let reads = matches!(attributes.verb, "get" | "list" | "watch") && !secret;
    let allowed = reads
        || if let Some(agent) = user.agent_name() {
            agent_may(agent, attributes)
        } else if user.is_controllers() {
            controllers_may(attributes)
        } else {
            anybody_may(attributes)
        };
    if allowed {
        Ok(())
    } else {
        Err(refusal(user, attributes))
    }
}

fn authorize_path(user: &User, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let path = if attributes.path.len() > 1 {
        attributes.path.trim_end_matches('/')
    } else {
        attributes.path
    };
    let reads = matches!(attributes.verb, "get" | "head");
    let public = PUBLIC_PATHS.iter().any(|known| {
        let rest = path.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('/') && *known != "/version"))
    });
    // Who joins has nothing yet but its token, which is in the body.
    let joins = path == "/muster/v1/join" && attributes.verb == "post";
    if user.is_master() || (reads && public) || joins {
        return Ok(());
    }
    if user.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    let renews = user.agent_name().is_some() && path == "/muster/v1/renew" && attributes.verb == "post";
    let secret = path == "/muster/v1/tokens" || path.starts_with("/muster/v1/tokens/");
    let reports = user.is_controllers() && path == "/muster/v1/plan" && attributes.verb == "put";
    if (reads && !secret) || reports || renews {
        return Ok(());
    }
    let message = format!(
        "forbidden: User \"{}\" cannot {} path \"{}\"",
        user.name, attributes.verb, attributes.path
    );
    Err(ApiError::forbidden(message))
}

/// An agent writes its own object and lease, the statuses of tasks, and events.
fn agent_may(agent: &str, asked: &Attributes<'_>) -> bool {
    let own = asked.name == agent;
    match (asked.group, asked.resource, asked.subresource) {
        (names::GROUP, "agents", "") => own && matches!(asked.verb, "create" | "update" | "patch"),
        (names::GROUP, "agents", "status") => own && matches!(asked.verb, "update" | "patch"),
        // Which tasks, and which of their metadata, depends on the task: the registry holds it against the binding.
        (names::GROUP, "tasks", "" | "status") => matches!(asked.verb, "update" | "patch"),
        ("coordination.k8s.io", "leases", "") => {
            own && asked.namespace == names::NAMESPACE_AGENTS
                && matches!(asked.verb, "create" | "update" | "patch" | "delete")
        }
        ("coordination.k8s.io", "leases", "renew") => {
            own && asked.namespace == names::NAMESPACE_AGENTS && asked.verb == "create"
        }
        ("" | "events.k8s.io", "events", "") => matches!(asked.verb, "create" | "update" | "patch"),
        _ => false,
    }
}

/// The controllers write everything but the agents' presence, which they may only clear away, and are nobody else.
fn controllers_may(asked: &Attributes<'_>) -> bool {
    let presence = asked.resource == "leases" && asked.namespace == names::NAMESPACE_AGENTS;
    if asked.verb == "impersonate" {
        return false;
    }
    !presence || matches!(asked.verb, "delete" | "deletecollection")
}

/// Everybody else writes what users and frameworks write, outside of the control plane's own namespaces.
fn anybody_may(asked: &Attributes<'_>) -> bool {
    if matches!(asked.namespace, "" | names::NAMESPACE_SYSTEM | names::NAMESPACE_AGENTS) {
        return false;
    }
    match (asked.group, asked.resource, asked.subresource) {
        (names::GROUP, "tasks" | "frameworks", "")
        | ("" | "events.k8s.io", "events", "")
        | ("", "configmaps", "")
        | ("coordination.k8s.io", "leases", "") => true,
        (names::GROUP, "offers", "accept" | "decline") | ("coordination.k8s.io", "leases", "renew") => {
            asked.verb == "create"
        }
        // Kinds that platform teams define are theirs, status included.
        (group, _, "" | "status" | "scale") => {
            group.contains('.') && group != names::GROUP && !group.ends_with(".k8s.io")
        }
        _ => false,
    }
}

fn refusal(user: &User, asked: &Attributes<'_>) -> ApiError {
    let dotted = if asked.group.is_empty() {
        String::new()
    } else {
        format!(".{}", asked.group)
    };
    let name = if asked.name.is_empty() {
        String::new()
    } else {
        format!(" \"{}\"", asked.name)
    };
    let slashed = if asked.subresource.is_empty() {
        String::new()
    } else {
        format!("/{}", asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", asked.namespace)
    };
    let mut error = ApiError::forbidden(format!(
        "{resource}{dotted}{name} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}{slashed}\" in API group \
         \"{group}\" {place}",
        resource = asked.resource,
        user = user.name,
        verb = asked.verb,
        group = asked.group,
    ));
    error.details.group = asked.group.to_owned();
    error.details.kind = asked.resource.to_owned();
    error.details.name = asked.name.to_owned();
    error
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    /// `verb group/resource/subresource namespace name`, with `-` for nothing, or `verb /path`.
    fn asked(text: &str) -> Attributes<'_> {
        let parts: Vec<&str> = text
            .split(' ')
            .map(|part| if part == "-" { "" } else { part })
            .collect();
        if parts[1].starts_with('/') && parts.len() == 2 {
            return Attributes {
                verb: parts[0],
                path: parts[1],
                ..Attributes::default()
            };
        }
        let kind: Vec<&str> = parts[1].split('/').collect();
        Attributes {
            verb: parts[0],
            group: kind[0],
            resource: kind[1],
            subresource: kind.get(2).copied().unwrap_or_default(),
            namespace: parts[2],
            name: parts[3],
            path: "",
        }
    }

    fn check(user: &User, allowed: &[&str], refused: &[&str]) {
        for text in allowed {
            assert_eq!(authorize(user, &asked(text)), Ok(()), "{}: {text}", user.name);
        }
        for text in refused {
            let error = authorize(user, &asked(text)).expect_err(text);
            let code = if user.is_anonymous() {
                StatusCode::UNAUTHORIZED
            } else {
                StatusCode::FORBIDDEN
            };
            assert_eq!(error.code, code, "{}: {text}", user.name);
        }
    }

    #[test]
    fn masters_may_do_everything() {
        let all = [
            "delete muster.dev/agents - a1",
            "update muster.dev/tasks/status d t",
            "delete /anything",
            "get /metrics",
        ];
        check(&User::admin(), &all, &[]);
    }

    #[test]
    fn without_a_token_only_version_and_health_are_readable() {
        let allowed = [
            "get /version",
            "get /version/",
            "get /livez",
            "get /readyz/store",
            "get /healthz",
        ];
        let refused = [
            "get /",
            "get /apis",
            "get /metrics",
            "put /version",
            "get /version/x",
            "get /livezx",
            "get muster.dev/tasks d t",
        ];
        check(&User::anonymous(), &allowed, &refused);
    }

    #[test]
    fn an_agent_writes_only_what_is_its_own() {
        let allowed = [
            "create muster.dev/agents - a1",
            "patch muster.dev/agents - a1",
            "update muster.dev/agents/status - a1",
            "create coordination.k8s.io/leases muster-agents a1",
            "create coordination.k8s.io/leases/renew muster-agents a1",
            "delete coordination.k8s.io/leases muster-agents a1",
            "watch muster.dev/tasks - -",
            "get /muster/v1/watch",
            "patch muster.dev/tasks/status d t",
            "patch muster.dev/tasks d t",
            "create events.k8s.io/events d -",
        ];
        let refused = [
            "create muster.dev/agents - a2",
            "create muster.dev/agents - -",
            "delete muster.dev/agents - a1",
            "update muster.dev/agents/status - a2",
            "create muster.dev/agents/offers - a1",
            "create coordination.k8s.io/leases muster-agents a2",
            "create coordination.k8s.io/leases muster-system a1",
            "create coordination.k8s.io/leases/renew muster-agents a2",
            "delete coordination.k8s.io/leases muster-agents a2",
            "create muster.dev/tasks d t",
            "delete muster.dev/tasks d t",
            "create muster.dev/offers/accept d o",
            "create /configmaps d c",
            "get /secrets d s",
            "put /muster/v1/plan",
        ];
        check(&User::agent("a1"), &allowed, &refused);
    }

    #[test]
    fn the_controllers_write_everything_but_presence() {
        let allowed = [
            "create muster.dev/agents/offers - a1",
            "patch muster.dev/tasks/status d t",
            "delete muster.dev/offers d o",
            "create coordination.k8s.io/leases muster-system muster-controllers",
            "put /muster/v1/plan",
        ];
        let refused = [
            "create coordination.k8s.io/leases muster-agents a1",
            "create coordination.k8s.io/leases/renew muster-agents a1",
            "impersonate /users - admin",
            "impersonate /groups - system:masters",
            "post /muster/v1/plan",
        ];
        check(&User::controllers(), &allowed, &refused);
    }

    #[test]
    fn ordinary_users_write_specs_and_answer_offers() {
        let allowed = [
            "get muster.dev/agents - a1",
            "get muster.dev/tasks/log d t",
            "create muster.dev/tasks d t",
            "delete muster.dev/tasks d t",
            "patch muster.dev/frameworks d f",
            "create muster.dev/offers/accept d o",
            "create muster.dev/offers/decline d o",
            "create /configmaps d c",
            "create coordination.k8s.io/leases d l",
            "create coordination.k8s.io/leases/renew d l",
            "get /apis",
        ];
        let refused = [
            "patch muster.dev/tasks/status d t",
            "create muster.dev/agents - a1",
            "patch muster.dev/quotas - q",
            "delete muster.dev/offers d o",
            "create muster.dev/agents/offers - a1",
            "create /namespaces - n",
            "get /secrets d s",
            "watch /secrets - -",
            "create /serviceaccounts/token d robot",
            "create authentication.k8s.io/tokenreviews - -",
            "create coordination.k8s.io/leases muster-system x",
            "create coordination.k8s.io/leases/renew muster-agents a1",
            "put /muster/v1/plan",
        ];
        check(&User::new("jo", &["ml"]), &allowed, &refused);
        // A name or a group alone makes nobody an agent.
        check(
            &User::new("system:muster:agent:a1", &[]),
            &[],
            &["patch muster.dev/agents - a1"],
        );
        check(
            &User::new("jo", &[names::GROUP_AGENTS]),
            &[],
            &["patch muster.dev/agents - a1"],
        );
    }

    #[test]
    fn a_refusal_says_who_may_not_do_what() {
        let error = authorize(&User::new("u", &[]), &asked("patch muster.dev/tasks/status d n")).unwrap_err();
        assert_eq!(
            error.message,
            "tasks.muster.dev \"n\" is forbidden: User \"u\" cannot patch resource \"tasks/status\" in API group \"muster.dev\" \
             in the namespace \"d\""
        );
        let error = authorize(&User::new("u", &[]), &asked("create /namespaces - n")).unwrap_err();
        assert_eq!(
            error.message,
            "namespaces \"n\" is forbidden: User \"u\" cannot create resource \"namespaces\" in API group \"\" at the cluster scope"
        );
    }
}
