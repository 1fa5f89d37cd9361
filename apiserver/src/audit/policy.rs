//! What is written about which request: a policy in the format of Kubernetes (`audit.k8s.io/v1`, kind `Policy`).
//!
//! The first rule that matches a request says how much is written about it; without one, nothing is. It promises that a policy that is not
//! understood whole is refused, with the place in its file. Pure; tested below.

use std::path::Path;

use serde::Deserialize;

use crate::auth::{Attributes, User};

/// How much is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when, and with what result.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// When it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// The request is there, and nothing has been done yet.
    RequestReceived,
    /// The answer begins, of requests that take long.
    ResponseStarted,
    /// The answer is over.
    ResponseComplete,
    /// The server failed within the request.
    Panic,
}

impl Stage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// Kinds of a group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl GroupResources {
    fn matches(&self, asked: &Attributes<'_>) -> bool {
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name);
        let kind = |known: &String| match known.split_once('/') {
            None if known == "*" => true,
            None => known == asked.resource && asked.subresource.is_empty(),
            Some((resource, sub)) => {
                let is = |known: &str, asked: &str| known == "*" || known == asked;
                !asked.subresource.is_empty() && is(resource, asked.resource) && is(sub, asked.subresource)
            }
        };
        self.group == asked.group && named && (self.resources.is_empty() || self.resources.iter().any(kind))
    }

    fn problem(&self) -> Option<String> {
        if self.group.contains('/') {
            return Some(format!(
                "resources: {:?} is no group; write it without a version",
                self.group
            ));
        }
        let nameless = self.resources.is_empty() && !self.resource_names.is_empty();
        nameless.then(|| "resources: resourceNames need resources that they are names of".to_owned())
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

impl Rule {
    fn matches(&self, user: &User, asked: &Attributes<'_>) -> bool {
        let listed = |list: &[String], word: &str| list.is_empty() || list.iter().any(|one| one == word);
        let grouped = self.user_groups.is_empty() || self.user_groups.iter().any(|group| user.in_group(group));
        if !listed(&self.users, &user.name) || !grouped || !listed(&self.verbs, asked.verb) {
            return false;
        }
        if !self.of_objects() {
            return self.paths.is_empty()
                || (asked.resource.is_empty() && self.paths.iter().any(|known| path_within(known, asked.path)));
        }
        !asked.resource.is_empty()
            && listed(&self.namespaces, asked.namespace)
            && (self.resources.is_empty() || self.resources.iter().any(|kinds| kinds.matches(asked)))
    }

    fn of_objects(&self) -> bool {
        !self.resources.is_empty() || !self.namespaces.is_empty()
    }

    /// What a rule says that can never be meant.
    fn problem(&self) -> Option<String> {
        if self.of_objects() && !self.paths.is_empty() {
            return Some(
                "a request is either for objects or for a path: write two rules, one with nonResourceURLs".to_owned(),
            );
        }
        let wrong = |path: &&String| {
            let known = path.as_str() == "*" || path.starts_with('/');
            !known || path.strip_suffix('*').unwrap_or(path).contains('*')
        };
        if let Some(path) = self.paths.iter().find(wrong) {
            return Some(format!(
                "nonResourceURLs: {path:?} must begin with / and may have one *, at its end"
            ));
        }
        self.resources.iter().find_map(GroupResources::problem)
    }
}

fn path_within(known: &str, path: &str) -> bool {
    match known.strip_suffix('*') {
        Some(beginning) => path.starts_with(beginning),
        None => known == path,
    }
}

/// See the module.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// What is written about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How much.
    pub level: Level,
    /// Whether `metadata.managedFields` is left out of objects.
    pub omit_managed_fields: bool,
    /// A bit for each stage about which nothing is written.
    omitted: u8,
}

impl Verdict {
    /// Whether anything is written at this stage.
    pub fn has(&self, stage: Stage) -> bool {
        self.level > Level::None && self.omitted & bit(stage) == 0
    }
}

fn bit(stage: Stage) -> u8 {
    1 << stage as u8
}

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    /// `FILE:LINE:COLUMN`.
    place: String,
    problem: String,
}

const WHAT_TO_DO: &str =
    "a policy is a Policy of audit.k8s.io/v1 with rules, each with a level (None, Metadata, Request, RequestResponse)";

/// What is written when nobody says: of every change and every refusal who, what, when and with what result, before the change and after it. What was
/// sent only of what is about the cluster itself; tasks have variables in them, and secrets are secret. Nothing about reads and heartbeats of the
/// control plane, which are most of what happens, but for reads of secrets.
const DEFAULT: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
  - level: None
    verbs: [get, head]
    nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version", "/metrics", "/openapi*", "/api", "/api/*", "/apis", "/apis/*"]
  - level: Metadata
    verbs: [get, list, watch]
    resources: [{group: "", resources: [secrets]}]
    omitStages: [RequestReceived]
  - level: None
    userGroups: ["system:muster:agents", "system:muster:controllers"]
    verbs: [get, head, list, watch]
  - level: None
    userGroups: ["system:muster:agents", "system:muster:controllers"]
    resources: [{group: coordination.k8s.io}, {group: "", resources: [events]}, {group: events.k8s.io}]
  - level: None
    userGroups: ["system:muster:controllers"]
    nonResourceURLs: ["/muster/v1/plan"]
  - level: None
    resources: [{group: coordination.k8s.io, resources: ["leases/renew"]}]
  - level: Metadata
    verbs: [get, head, list, watch]
    omitStages: [RequestReceived]
  - level: Metadata
    userGroups: ["system:muster:agents", "system:muster:controllers"]
    omitStages: [RequestReceived]
  - level: Metadata
    resources: [{group: coordination.k8s.io}, {group: authorization.k8s.io}]
    omitStages: [RequestReceived]
  - level: Request
    resources:
      - {group: rbac.authorization.k8s.io}
      - {group: muster.dev, resources: [agents, frameworks, quotas]}
      - {group: "", resources: [namespaces]}
  - level: Metadata
"#;

impl Default for Policy {
    fn default() -> Policy {
        Policy::parse(Path::new("the default policy"), DEFAULT).expect("the constant is a policy, a test reads it")
    }
}

impl Policy {
    /// Reads a policy; the error names the place in the file, the field, and what to do.
    pub fn parse(file: &Path, text: &str) -> Result<Policy, PolicyError> {
        let refused = |(line, column): (usize, usize), problem: String| PolicyError {
            place: format!("{}:{line}:{column}", file.display()),
            problem: format!("{problem}; {WHAT_TO_DO}"),
        };
        let read: Result<Policy, _> = serde_yaml::from_str(text);
        let policy = read.map_err(|error| {
            let (place, problem) = place_of(text, &error);
            refused(place, problem)
        })?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            let problem = format!("this is a {:?} of {:?}", policy.kind, policy.api_version);
            return Err(refused((1, 1), problem));
        }
        if policy.rules.is_empty() {
            return Err(refused(
                (1, 1),
                "rules: there are none, so nothing would be written".to_owned(),
            ));
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            if let Some(problem) = rule.problem() {
                return Err(refused(
                    place_of_rule(text, index),
                    format!("rules[{index}]: {problem}"),
                ));
            }
        }
        Ok(policy)
    }

    /// What is written about the request.
    pub fn verdict(&self, user: &User, asked: &Attributes<'_>) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, asked)) else {
            return Verdict::default();
        };
        let omitted = self.omit_stages.iter().chain(&rule.omit_stages);
        Verdict {
            level: rule.level,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            omitted: omitted.fold(0, |mask, stage| mask | bit(*stage)),
        }
    }
}

/// Line and column of an error, from 1, and what it says without them. The reader tells where the map begins that has a wrong word in it; here the
/// word itself is found.
fn place_of(text: &str, error: &serde_yaml::Error) -> ((usize, usize), String) {
    let Some(at) = error.location() else {
        return ((1, 1), error.to_string());
    };
    let said = error.to_string();
    let suffix = format!(" at line {} column {}", at.line(), at.column());
    let problem = said.strip_suffix(&suffix).unwrap_or(&said).to_owned();
    let unknown = ["unknown field `", "unknown variant `"]
        .iter()
        .find_map(|beginning| problem.split_once(beginning)?.1.split('`').next());
    let begin = at.index().min(text.len());
    let place = unknown
        .and_then(|word| Some(begin + text.get(begin..)?.find(word)?))
        .map(|index| {
            let before = &text[..index];
            let line = before.rfind('\n').map_or(0, |end| end + 1);
            (before.matches('\n').count() + 1, before[line..].chars().count() + 1)
        });
    (place.unwrap_or((at.line(), at.column())), problem)
}

/// Where the rule of that number begins, from 0: at its dash, or where the rules begin when they have none.
fn place_of_rule(text: &str, index: usize) -> (usize, usize) {
    let mut lines = text
        .lines()
        .enumerate()
        .skip_while(|(_, line)| !line.starts_with("rules:"));
    let Some((first, _)) = lines.next() else { return (1, 1) };
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut dashes = lines.filter(|(_, line)| line.trim_start().starts_with("- "));
    let Some((line, dash)) = dashes.next() else {
        return (first + 1, 1);
    };
    let outer = indent(dash);
    let mut rules = std::iter::once((line, dash)).chain(dashes.filter(|(_, line)| indent(line) == outer));
    rules
        .nth(index)
        .map_or((first + 1, 1), |(line, _)| (line + 1, outer + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(policy: &Policy, user: &User, verb: &str, group: &str, resource: &str, sub: &str) -> Level {
        let asked = Attributes {
            verb,
            group,
            resource,
            subresource: sub,
            namespace: "n",
            name: "x",
            path: "",
        };
        policy.verdict(user, &asked).level
    }

    fn path<'a>(verb: &'a str, path: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            path,
            ..Attributes::default()
        }
    }

    #[test]
    fn the_default_never_writes_what_is_secret_or_may_be() {
        let (policy, jo) = (Policy::default(), User::new("jo", &[]));
        for (group, resource, sub) in [
            ("", "secrets", ""),
            ("", "configmaps", ""),
            ("", "serviceaccounts", "token"),
            ("", "pods", ""),
            ("authentication.k8s.io", "tokenreviews", ""),
            ("muster.dev", "tasks", ""),
            ("muster.dev", "offers", "accept"),
            ("example.com", "things", ""),
        ] {
            for verb in ["create", "update", "patch", "delete", "get"] {
                assert_eq!(
                    level(&policy, &jo, verb, group, resource, sub),
                    Level::Metadata,
                    "{resource}"
                );
            }
        }
        for path_of in ["/muster/v1/tokens", "/muster/v1/join"] {
            assert_eq!(policy.verdict(&jo, &path("post", path_of)).level, Level::Metadata);
        }
    }

    #[test]
    fn the_default_leaves_out_what_the_control_plane_does_all_day() {
        let (policy, jo, agent) = (Policy::default(), User::new("jo", &[]), User::agent("a"));
        assert_eq!(level(&policy, &agent, "list", "muster.dev", "tasks", ""), Level::None);
        assert_eq!(
            level(&policy, &agent, "create", "coordination.k8s.io", "leases", "renew"),
            Level::None
        );
        assert_eq!(level(&policy, &agent, "create", "", "events", ""), Level::None);
        assert_eq!(
            policy.verdict(&agent, &path("get", "/muster/v1/watch")).level,
            Level::None
        );
        assert_eq!(
            policy
                .verdict(&User::controllers(), &path("put", "/muster/v1/plan"))
                .level,
            Level::None
        );
        assert_eq!(policy.verdict(&jo, &path("get", "/readyz")).level, Level::None);
        // What they change, and which secrets they read, is told.
        assert_eq!(
            level(&policy, &agent, "patch", "muster.dev", "tasks", "status"),
            Level::Metadata
        );
        assert_eq!(level(&policy, &agent, "get", "", "secrets", ""), Level::Metadata);
        assert_eq!(level(&policy, &jo, "list", "muster.dev", "tasks", ""), Level::Metadata);
        assert_eq!(
            level(&policy, &jo, "create", "rbac.authorization.k8s.io", "rolebindings", ""),
            Level::Request
        );
        assert_eq!(
            policy.verdict(&User::default(), &path("get", "/muster/v1/plan")).level,
            Level::Metadata
        );
    }

    #[test]
    fn the_default_writes_before_users_change_anything() {
        let (policy, jo) = (Policy::default(), User::new("jo", &[]));
        let before = |user: &User, verb: &str, resource: &str| {
            let asked = Attributes {
                verb,
                group: "muster.dev",
                resource,
                ..Attributes::default()
            };
            policy.verdict(user, &asked).has(Stage::RequestReceived)
        };
        assert!(before(&jo, "create", "tasks") && before(&jo, "delete", "quotas"));
        assert!(!before(&jo, "list", "tasks") && !before(&User::agent("a"), "patch", "tasks"));
    }

    #[test]
    fn the_first_rule_that_matches_says_what() {
        let text = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
metadata: {name: mine}
omitStages: [Panic]
rules:
  - {level: None, users: [bot], verbs: [get]}
  - level: RequestResponse
    resources: [{group: "", resources: [configmaps], resourceNames: [c]}, {group: muster.dev, resources: ["tasks/*"]}]
    namespaces: [n]
    omitStages: [RequestReceived]
  - {level: Metadata, nonResourceURLs: ["/apis*"]}
"#;
        let policy = Policy::parse(Path::new("p"), text).unwrap();
        let (bot, jo) = (User::new("bot", &[]), User::new("jo", &[]));
        assert_eq!(level(&policy, &bot, "get", "muster.dev", "tasks", "log"), Level::None);
        assert_eq!(
            level(&policy, &jo, "get", "muster.dev", "tasks", "log"),
            Level::RequestResponse
        );
        assert_eq!(
            level(&policy, &jo, "get", "muster.dev", "tasks", ""),
            Level::None,
            "no rule"
        );
        assert_eq!(
            level(&policy, &jo, "get", "", "configmaps", ""),
            Level::None,
            "another name"
        );
        let verdict = policy.verdict(&jo, &path("get", "/apis/muster.dev"));
        assert!(verdict.has(Stage::RequestReceived) && verdict.level == Level::Metadata);
        assert!(!verdict.has(Stage::Panic));
        assert_eq!(policy.verdict(&jo, &path("get", "/metrics")).level, Level::None);
    }

    #[test]
    fn a_bad_policy_is_refused_with_its_place_and_what_to_do() {
        let check = |text: &str, expect: &[&str]| {
            let error = Policy::parse(Path::new("audit.yaml"), text).unwrap_err().to_string();
            for part in expect {
                assert!(error.contains(part), "{error}");
            }
            assert!(error.contains("a policy is a Policy of audit.k8s.io/v1"), "{error}");
        };
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        let with = |rules: &str| format!("{head}rules:\n{rules}");
        check(
            &with("  - level: Everything\n"),
            &["audit.yaml:4:12: ", "rules[0].level", "Everything"],
        );
        check(
            &with("  - level: None\n    verb: [get]\n"),
            &["audit.yaml:5:5: ", "rules[0]", "unknown field `verb`"],
        );
        check(
            &with("  - users: [jo]\n"),
            &["audit.yaml:4:5: ", "missing field `level`"],
        );
        check(
            &with("  - level: None\n    users: jo\n"),
            &["audit.yaml:5:12: ", "rules[0].users"],
        );
        check(&format!("{head}rules: []\n"), &["audit.yaml:1:1: ", "there are none"]);
        check(
            "apiVersion: v1\nkind: ConfigMap\n",
            &["this is a \"ConfigMap\" of \"v1\""],
        );
        check("{", &["audit.yaml:"]);
        let mixed =
            "  - level: None\n    users: [a]\n  - level: None\n    namespaces: [n]\n    nonResourceURLs: [/x]\n";
        check(&with(mixed), &["audit.yaml:6:3: ", "rules[1]: ", "write two rules"]);
        check(
            &with("  - {level: None, nonResourceURLs: [x]}\n"),
            &["audit.yaml:4:3: ", "must begin with /"],
        );
        check(
            &with("  - {level: None, nonResourceURLs: [\"/a*b\"]}\n"),
            &["one *, at its end"],
        );
        check(
            &with("  - {level: None, resources: [{group: a/v1}]}\n"),
            &["without a version"],
        );
        check(
            &with("  - {level: None, resources: [{resourceNames: [a]}]}\n"),
            &["need resources"],
        );
    }
}
