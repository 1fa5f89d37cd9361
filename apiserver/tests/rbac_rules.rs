//! Decisions by compiled rules against an evaluator that looks at every rule and knows no shortcuts; and what a comparison of rules promises.

use std::sync::Arc;

use muster_apiserver::auth::{Attributes, User};
use muster_apiserver::rbac::{Binding, Found, Role, Rule, Rules, Subject, missing};
use proptest::prelude::*;

const VERBS: [&str; 3] = ["get", "list", "*"];
const GROUPS: [&str; 3] = ["", "muster.dev", "*"];
const RESOURCES: [&str; 7] = ["tasks", "agents", "tasks/log", "agents/log", "*/log", "*/status", "*"];
const NAMES: [&str; 2] = ["a", "b"];
const PATHS: [&str; 4] = ["/x", "/x/*", "/x/y", "*"];
const NAMESPACES: [&str; 3] = ["", "n1", "n2"];

fn some(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(texts, 1..=2.min(texts.len()))
        .prop_map(|texts| texts.into_iter().map(str::to_owned).collect())
}

fn rule() -> impl Strategy<Value = Rule> {
    let named = prop_oneof![3 => Just(Vec::new()), 1 => some(&NAMES)];
    let kinds = (some(&VERBS), some(&GROUPS), some(&RESOURCES), named).prop_map(
        |(verbs, api_groups, resources, resource_names)| Rule {
            verbs,
            api_groups,
            resources,
            resource_names,
            paths: Vec::new(),
        },
    );
    let paths = (some(&VERBS), some(&PATHS)).prop_map(|(verbs, paths)| Rule {
        verbs,
        paths,
        ..Rule::default()
    });
    prop_oneof![3 => kinds, 1 => paths]
}

fn role() -> impl Strategy<Value = Role> {
    let name = proptest::sample::select(vec!["r1", "r2", "r3"]);
    let namespace = proptest::sample::select(NAMESPACES.to_vec());
    (namespace, name, proptest::collection::vec(rule(), 0..3)).prop_map(|(namespace, name, rules)| Role {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        rules: rules.into(),
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        proptest::sample::select(vec!["u1", "u2"]).prop_map(|name| Subject::User(name.to_owned())),
        proptest::sample::select(vec!["g1", "g2"]).prop_map(|name| Subject::Group(name.to_owned())),
        Just(Subject::ServiceAccount("n1".to_owned(), "s".to_owned())),
    ]
}

fn binding() -> impl Strategy<Value = Binding> {
    let namespace = proptest::sample::select(NAMESPACES.to_vec());
    let kind = proptest::sample::select(vec!["Role", "ClusterRole"]);
    let role = proptest::sample::select(vec!["r1", "r2", "r3"]);
    let subjects = proptest::collection::vec(subject(), 1..3);
    (namespace, kind, role, subjects).prop_map(|(namespace, kind, role, subjects)| Binding {
        namespace: namespace.to_owned(),
        name: "b".to_owned(),
        role_kind: kind.to_owned(),
        role: role.to_owned(),
        subjects,
    })
}

fn user() -> impl Strategy<Value = User> {
    let name = proptest::sample::select(vec!["u1", "u2", "u3", "system:serviceaccount:n1:s"]);
    let groups = proptest::sample::subsequence(vec!["g1", "g2"], 0..=2);
    (name, groups).prop_map(|(name, groups)| User::new(name, &groups))
}

/// Verb, group, resource, subresource, namespace, name, path.
type Asked = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

fn asked() -> impl Strategy<Value = Asked> {
    let verb = proptest::sample::select(vec!["get", "list", "delete"]);
    let select = |texts: Vec<&'static str>| proptest::sample::select(texts);
    let object = (
        select(vec!["", "muster.dev", "other"]),
        select(vec!["tasks", "agents"]),
        select(vec!["", "log", "status"]),
        select(NAMESPACES.to_vec()),
        select(vec!["", "a", "c"]),
    );
    let object = (verb.clone(), object)
        .prop_map(|(verb, (group, resource, sub, namespace, name))| (verb, group, resource, sub, namespace, name, ""));
    let path = (verb, select(vec!["/x", "/x/y", "/z"])).prop_map(|(verb, path)| (verb, "", "", "", "", "", path));
    prop_oneof![4 => object, 1 => path]
}

fn attributes((verb, group, resource, subresource, namespace, name, path): Asked) -> Attributes<'static> {
    Attributes {
        verb,
        group,
        resource,
        subresource,
        namespace,
        name,
        path,
    }
}

/// Whether one rule allows it, word by word.
fn says(rule: &Rule, asked: &Attributes<'_>) -> bool {
    let has = |list: &[String], word: &str| list.iter().any(|one| one == "*" || one == word);
    if asked.resource.is_empty() {
        let path = |known: &String| match known.find('*') {
            Some(star) => asked.path.starts_with(&known[..star]),
            None => known == asked.path,
        };
        return has(&rule.verbs, asked.verb) && rule.paths.iter().any(path);
    }
    let wanted = if asked.subresource.is_empty() {
        vec!["*".to_owned(), asked.resource.to_owned()]
    } else {
        vec![
            "*".to_owned(),
            format!("{}/{}", asked.resource, asked.subresource),
            format!("*/{}", asked.subresource),
        ]
    };
    has(&rule.verbs, asked.verb)
        && has(&rule.api_groups, asked.group)
        && rule.resources.iter().any(|known| wanted.contains(known))
        && (rule.resource_names.is_empty() || rule.resource_names.iter().any(|name| name == asked.name))
}

/// Whether any binding gives the user any role that allows it.
fn naive(roles: &[Role], bindings: &[Binding], user: &User, asked: &Attributes<'_>) -> bool {
    bindings.iter().any(|binding| {
        let here = binding.namespace.is_empty() || (!asked.resource.is_empty() && binding.namespace == asked.namespace);
        let theirs = binding.subjects.iter().any(|subject| match subject {
            Subject::User(name) => *name == user.name,
            Subject::Group(name) => user.groups.contains(name),
            Subject::ServiceAccount(namespace, name) => {
                user.name == format!("system:serviceaccount:{namespace}:{name}")
            }
        });
        let home = match binding.role_kind.as_str() {
            "ClusterRole" => Some(""),
            _ if binding.namespace.is_empty() => None,
            _ => Some(binding.namespace.as_str()),
        };
        // The last role of a name is the one that is there.
        let role = roles
            .iter()
            .rev()
            .find(|role| Some(role.namespace.as_str()) == home && role.name == binding.role);
        here && theirs && role.is_some_and(|role| role.rules.iter().any(|rule| says(rule, asked)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_decision_is_what_reading_every_rule_gives(
        roles in proptest::collection::vec(role(), 0..6),
        bindings in proptest::collection::vec(binding(), 0..6),
        user in user(),
        asked in asked(),
    ) {
        let asked = attributes(asked);
        let rules = Rules::new(roles.iter().cloned().map(Arc::new), bindings.iter().cloned().map(Arc::new));
        let allowed = matches!(rules.decide(&user, &asked), Found::Allowed(_));
        prop_assert_eq!(allowed, naive(&roles, &bindings, &user, &asked));
        let (own, _) = rules.of(&user, asked.namespace);
        prop_assert_eq!(allowed, own.iter().any(|rule| says(rule, &asked)), "what is listed is what is allowed");
    }

    #[test]
    fn what_is_not_missing_allows_nothing_new(
        owned in proptest::collection::vec(rule(), 0..5),
        granted in proptest::collection::vec(rule(), 0..3),
        asked in asked(),
    ) {
        let asked = attributes(asked);
        let lacking = missing(&owned, &granted);
        let before = owned.iter().any(|rule| says(rule, &asked));
        if lacking.is_empty() && granted.iter().any(|rule| says(rule, &asked)) {
            prop_assert!(before, "{owned:?} gives {granted:?}");
        }
        // With what is missing added, nothing is.
        let whole: Vec<Rule> = owned.into_iter().chain(lacking).collect();
        prop_assert_eq!(missing(&whole, &granted), Vec::<Rule>::new());
    }
}
