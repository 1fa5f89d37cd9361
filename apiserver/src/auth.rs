//! Who is asking, and what they may do.
//!
//! Identities come from bearer tokens and certificates. What an identity may do follows from roles and bindings ([`crate::rbac`]), and for the
//! control plane's own identities from a fixed table, [`wired`], so that whatever somebody does to roles, agents and controllers go on, masters can repair
//! it, and health can be asked for. Rules that need the object (a task must be bound to the agent that writes its status) are the registry's; it
//! asks [`User::agent_name`]. What must never happen here: a decision that depends on the object's content, or a default that
//! allows. The table is tested below, rule by rule.

mod tokens;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use muster_api::names;

use crate::error::ApiError;
use crate::rbac::{self, Found, Grant, Rules};
use crate::tls::CLIENT_NAME;

pub use tokens::Tokens;

/// The user of requests without a token.
const ANONYMOUS: &str = "system:anonymous";
/// The group of whoever is known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of whoever is not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// What anybody may read.
const PUBLIC_PATHS: [&str; 4] = ["/version", "/livez", "/readyz", "/healthz"];

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The groups.
    pub groups: Vec<String>,
    /// The uid; empty: there is none. It is told to whoever asks, and decides nothing.
    pub uid: String,
    /// More about them. It is told to whoever asks, and decides nothing.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user of the given groups.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> User {
        User {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        }
    }

    /// The same, who has shown who they are.
    #[must_use]
    pub fn authenticated(mut self) -> User {
        if !self.is_anonymous() && !self.in_group(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
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
        User::new(ANONYMOUS, &[UNAUTHENTICATED])
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

/// Why something is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// By the fixed table, in words.
    Wired(&'static str),
    /// By a binding.
    Granted(Arc<Grant>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Wired(why) => f.write_str(why),
            Why::Granted(grant) => write!(f, "RBAC: allowed by {grant}"),
        }
    }
}

/// What is decided about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is allowed.
    Allowed(Why),
    /// It is not, and this is said about it, which may be nothing.
    Refused(String),
}

impl Decision {
    /// Whether it is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allowed(_))
    }
}

/// Whether `user` may do that, by the fixed table and these rules.
pub fn decide(user: &User, asked: &Attributes<'_>, rules: &Rules) -> Decision {
    if let Some(why) = wired(user, asked) {
        return Decision::Allowed(Why::Wired(why));
    }
    match rules.decide(user, asked) {
        Found::Allowed(grant) => Decision::Allowed(Why::Granted(grant)),
        Found::Nothing(without) => Decision::Refused(rbac::not_found(&without)),
    }
}

/// The error that tells `user` what was refused, and what is said about it. Whoever is not known is asked who they are.
pub fn refusal(user: &User, asked: &Attributes<'_>, said: &str) -> ApiError {
    if user.is_anonymous() {
        return ApiError::unauthorized();
    }
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    if asked.resource.is_empty() {
        let Attributes { verb, path, .. } = asked;
        let message = format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"{said}", user.name);
        return ApiError::forbidden(message);
    }
    refused_object(user, asked, &said)
}

/// What is allowed whatever roles say, and why: all to masters, health to everybody, and to agents, controllers and servers what they are there for.
pub fn wired(user: &User, asked: &Attributes<'_>) -> Option<&'static str> {
    if user.is_master() {
        return Some("masters may do everything");
    }
    if asked.resource.is_empty() {
        return wired_path(user, asked);
    }
    let reads = matches!(asked.verb, "get" | "list" | "watch");
    let secret = asked.group.is_empty() && asked.resource == "secrets";
    if let Some(agent) = user.agent_name() {
        return ((reads && !secret) || agent_may(agent, asked)).then_some("agents read, and write what is theirs");
    }
    let review = asked.resource.starts_with("selfsubject") && asked.verb == "create";
    (user.is_controllers() && (review || reads || controllers_may(asked))).then_some("controllers keep the cluster")
}

fn wired_path(user: &User, asked: &Attributes<'_>) -> Option<&'static str> {
    let path = if asked.path.len() > 1 {
        asked.path.trim_end_matches('/')
    } else {
        asked.path
    };
    let reads = matches!(asked.verb, "get" | "head");
    let public = PUBLIC_PATHS.iter().any(|known| {
        let rest = path.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('/') && *known != "/version"))
    });
    if reads && public {
        return Some("everybody may ask for health and version");
    }
    // Who joins has nothing yet but its token, which is in the body.
    if path == "/muster/v1/join" && asked.verb == "post" {
        return Some("whoever joins shows a token");
    }
    let secret = path == "/muster/v1/tokens" || path.starts_with("/muster/v1/tokens/");
    let asks_for_reasons = path == "/muster/v1/plan" || path.starts_with("/muster/v1/why/");
    if user.name == CLIENT_NAME && reads && asks_for_reasons {
        return Some("servers ask each other for reasons");
    }
    let renews = user.agent_name().is_some() && path == "/muster/v1/renew" && asked.verb == "post";
    let reports = user.is_controllers() && path == "/muster/v1/plan" && asked.verb == "put";
    let own = user.agent_name().is_some() || user.is_controllers();
    (renews || reports || (own && reads && !secret)).then_some("the control plane and the agents are one cluster")
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

/// The controllers write everything but the agents' presence, which they may only clear away, are nobody else, and give nobody anything.
fn controllers_may(asked: &Attributes<'_>) -> bool {
    let clears = matches!(asked.verb, "delete" | "deletecollection");
    let presence = asked.resource == "leases" && asked.namespace == names::NAMESPACE_AGENTS;
    // Garbage collection takes owners and finalizers off; roles that say more than before would be an escalation.
    let roles = asked.group == rbac::GROUP;
    let grants = matches!(asked.verb, "impersonate" | "escalate" | "bind") || asked.subresource == "token";
    !grants && (clears || !(presence || roles && asked.verb == "create"))
}

fn refused_object(user: &User, asked: &Attributes<'_>, said: &str) -> ApiError {
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
         \"{group}\" {place}{said}",
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
        let rules = Rules::default();
        for text in allowed {
            let decision = decide(user, &asked(text), &rules);
            assert!(decision.is_allowed(), "{}: {text}", user.name);
        }
        for text in refused {
            let decision = decide(user, &asked(text), &rules);
            assert_eq!(decision, Decision::Refused(String::new()), "{}: {text}", user.name);
            let code = if user.is_anonymous() {
                StatusCode::UNAUTHORIZED
            } else {
                StatusCode::FORBIDDEN
            };
            assert_eq!(refusal(user, &asked(text), "").code, code, "{}: {text}", user.name);
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
            "delete rbac.authorization.k8s.io/rolebindings d b",
            "patch rbac.authorization.k8s.io/rolebindings d b",
        ];
        let refused = [
            "create coordination.k8s.io/leases muster-agents a1",
            "create coordination.k8s.io/leases/renew muster-agents a1",
            "create rbac.authorization.k8s.io/clusterrolebindings - b",
            "escalate rbac.authorization.k8s.io/clusterroles - r",
            "bind rbac.authorization.k8s.io/clusterroles - r",
            "create /serviceaccounts/token d robot",
            "impersonate /users - admin",
            "impersonate /groups - system:masters",
            "post /muster/v1/plan",
        ];
        check(&User::controllers(), &allowed, &refused);
    }

    #[test]
    fn without_roles_nobody_else_may_do_anything() {
        let refused = [
            "get muster.dev/agents - a1",
            "list muster.dev/tasks d -",
            "create muster.dev/tasks d t",
            "create muster.dev/offers/accept d o",
            "create authorization.k8s.io/selfsubjectaccessreviews - -",
            "patch muster.dev/tasks/status d t",
            "get /secrets d s",
            "create coordination.k8s.io/leases/renew muster-agents a1",
            "get /apis",
            "get /metrics",
            "get /muster/v1/plan",
            "get /muster/v1/tokens",
            "put /muster/v1/plan",
        ];
        check(&User::new("jo", &["ml", AUTHENTICATED]), &["get /version"], &refused);
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
        check(
            &User::new(CLIENT_NAME, &[]),
            &["get /muster/v1/plan", "get /muster/v1/why/d/t"],
            &[
                "put /muster/v1/plan",
                "get /muster/v1/tokens",
                "list muster.dev/tasks d -",
            ],
        );
    }

    #[test]
    fn a_refusal_says_who_may_not_do_what() {
        let user = User::new("u", &[]);
        let error = refusal(&user, &asked("patch muster.dev/tasks/status d n"), "");
        assert_eq!(
            error.message,
            "tasks.muster.dev \"n\" is forbidden: User \"u\" cannot patch resource \"tasks/status\" in API group \"muster.dev\" \
             in the namespace \"d\""
        );
        let error = refusal(&user, &asked("create /namespaces - -"), "RBAC: no such role");
        assert_eq!(
            error.message,
            "namespaces is forbidden: User \"u\" cannot create resource \"namespaces\" in API group \"\" at the cluster scope: RBAC: no \
             such role"
        );
        let error = refusal(&user, &asked("get /metrics"), "");
        assert_eq!(error.message, "forbidden: User \"u\" cannot get path \"/metrics\"");
    }
}
