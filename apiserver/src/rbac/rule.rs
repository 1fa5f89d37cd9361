//! Rules of roles: what one allows, and whether some rules allow everything that another does.
//!
//! The meaning is Kubernetes': verbs, groups, resources and names are alternatives, `*` is anything, `*/sub` a subresource of anything, a
//! path may end in `*`. Tested below and, against an evaluator that knows no shortcuts, in `tests/rbac_rules.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::auth::Attributes;

/// Anything.
const ALL: &str = "*";
/// The most single permissions that a rule is taken apart into when it is compared with others. A rule of a person has a few dozen.
const PERMISSIONS: usize = 20_000;

/// A rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// What may be done: `get`, `list`, …; of a path, the method in lower case.
    pub verbs: Vec<String>,
    /// In which API groups; the core group is empty.
    pub api_groups: Vec<String>,
    /// With which kinds: `tasks`, `tasks/log`, `*/status`.
    pub resources: Vec<String>,
    /// With which objects; empty: all.
    pub resource_names: Vec<String>,
    /// With which paths that are no objects'.
    pub paths: Vec<String>,
}

/// Texts of a list; nothing else of it.
fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn any(allowed: &[String], asked: &str) -> bool {
    allowed.iter().any(|one| one == ALL || one == asked)
}

fn all(owned: &[String], asked: &[String]) -> bool {
    owned.iter().any(|one| one == ALL) || asked.iter().all(|one| owned.contains(one))
}

fn path_within(known: &str, asked: &str) -> bool {
    match known.strip_suffix('*') {
        Some(beginning) => asked.starts_with(beginning.trim_end_matches('*')),
        None => known == asked,
    }
}

fn resource_allowed(known: &str, resource: &str, subresource: &str) -> bool {
    if known == ALL {
        return true;
    }
    if subresource.is_empty() {
        return known == resource;
    }
    let parts = known.split_once('/');
    parts.is_some_and(|(kind, sub)| sub == subresource && (kind == ALL || kind == resource))
}

impl Rule {
    /// A rule about kinds.
    pub fn of(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        Rule {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            ..Rule::default()
        }
    }

    /// A rule about paths.
    pub fn of_paths(verbs: &[&str], paths: &[&str]) -> Rule {
        Rule {
            verbs: owned(verbs),
            paths: owned(paths),
            ..Rule::default()
        }
    }

    /// The rule that a role has. What cannot be read allows nothing.
    pub fn read(value: &Value) -> Rule {
        Rule {
            verbs: texts(&value["verbs"]),
            api_groups: texts(&value["apiGroups"]),
            resources: texts(&value["resources"]),
            resource_names: texts(&value["resourceNames"]),
            paths: texts(&value["nonResourceURLs"]),
        }
    }

    /// All rules of a list.
    pub fn read_all(value: &Value) -> Vec<Rule> {
        value.as_array().into_iter().flatten().map(Rule::read).collect()
    }

    /// The rule as a role has it, without what is empty.
    pub fn json(&self) -> Value {
        let fields = [
            ("verbs", &self.verbs),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.paths),
        ];
        let given = fields.into_iter().filter(|(_, texts)| !texts.is_empty());
        Value::Object(
            given
                .map(|(name, texts)| (name.to_owned(), json!(texts)))
                .collect::<Map<_, _>>(),
        )
    }

    /// Whether it allows that.
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !any(&self.verbs, asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.paths.iter().any(|known| path_within(known, asked.path));
        }
        any(&self.api_groups, asked.group)
            && self
                .resources
                .iter()
                .any(|known| resource_allowed(known, asked.resource, asked.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|known| known == asked.name))
    }

    /// Whether it allows everything that `other` does, by itself.
    fn covers(&self, other: &Rule) -> bool {
        let resource = |asked: &String| {
            let (kind, sub) = asked.split_once('/').unwrap_or((asked, ""));
            self.resources.iter().any(|known| resource_allowed(known, kind, sub))
        };
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty() && all(&self.resource_names, &other.resource_names));
        let path = |asked: &String| self.paths.iter().any(|known| path_within(known, asked));
        all(&self.verbs, &other.verbs)
            && all(&self.api_groups, &other.api_groups)
            && other.resources.iter().all(resource)
            && names
            && other.paths.iter().all(path)
    }

    /// Every single permission of it; `None`: they are too many.
    fn single(&self) -> Option<Vec<Rule>> {
        let names: Vec<Option<&String>> = if self.resource_names.is_empty() {
            vec![None]
        } else {
            self.resource_names.iter().map(Some).collect()
        };
        let kinds = [self.api_groups.len(), self.resources.len(), names.len()];
        let kinds = kinds.into_iter().try_fold(1usize, usize::checked_mul)?;
        let count = kinds.checked_add(self.paths.len())?.checked_mul(self.verbs.len())?;
        if count > PERMISSIONS {
            return None;
        }
        let mut single = Vec::with_capacity(count);
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for group in &self.api_groups {
                for resource in &self.resources {
                    single.extend(names.iter().map(|name| Rule {
                        verbs: verbs.clone(),
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: name.iter().map(|name| (*name).clone()).collect(),
                        paths: Vec::new(),
                    }));
                }
            }
            single.extend(self.paths.iter().map(|path| Rule {
                verbs: verbs.clone(),
                paths: vec![path.clone()],
                ..Rule::default()
            }));
        }
        Some(single)
    }

    /// The rule in a line, as Kubernetes writes it.
    pub fn describe(&self) -> String {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.paths),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let given = fields.into_iter().filter(|(_, texts)| !texts.is_empty());
        let parts: Vec<String> = given.map(|(name, texts)| format!("{name}:{}", quoted(texts))).collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// `["a" "b"]`.
pub fn quoted(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// What of `asked` is allowed by none of `owned`. A rule that says too much at once to be taken apart is missing whole, unless one rule covers it.
pub fn missing(owned: &[Rule], asked: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in asked {
        if owned.iter().any(|known| known.covers(rule)) {
            continue;
        }
        match rule.single() {
            None => missing.push(rule.clone()),
            Some(single) => missing.extend(
                single
                    .into_iter()
                    .filter(|one| !owned.iter().any(|known| known.covers(one))),
            ),
        }
    }
    compact(missing)
}

/// Puts together what differs in nothing but verbs.
pub fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut by_rest: BTreeMap<Rule, BTreeSet<String>> = BTreeMap::new();
    for mut rule in rules {
        let verbs = std::mem::take(&mut rule.verbs);
        by_rest.entry(rule).or_default().extend(verbs);
    }
    let whole = by_rest.into_iter().map(|(rule, verbs)| Rule {
        verbs: verbs.into_iter().collect(),
        ..rule
    });
    whole.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(verb: &'a str, group: &'a str, resource: &'a str, sub: &'a str, name: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            group,
            resource,
            subresource: sub,
            name,
            ..Attributes::default()
        }
    }

    #[test]
    fn a_kind_is_not_its_subresource_and_a_star_is_both() {
        let rule = Rule::of(&["get"], &["muster.dev"], &["tasks"]);
        assert!(rule.allows(&asked("get", "muster.dev", "tasks", "", "t")));
        assert!(!rule.allows(&asked("get", "muster.dev", "tasks", "log", "t")));
        assert!(!rule.allows(&asked("list", "muster.dev", "tasks", "", "")));
        assert!(!rule.allows(&asked("get", "", "tasks", "", "t")));
        let rule = Rule::of(&["*"], &["*"], &["*/status", "tasks/log"]);
        assert!(rule.allows(&asked("patch", "a", "widgets", "status", "w")));
        assert!(rule.allows(&asked("get", "b", "tasks", "log", "w")));
        assert!(!rule.allows(&asked("get", "b", "widgets", "log", "w")));
        assert!(!rule.allows(&asked("get", "b", "tasks", "", "w")));
        let rule = Rule::of(&["get"], &[""], &["*"]);
        assert!(rule.allows(&asked("get", "", "secrets", "anything", "s")));
    }

    #[test]
    fn names_leave_out_what_has_no_name() {
        let rule = Rule {
            resource_names: vec!["one".to_owned()],
            ..Rule::of(&["*"], &[""], &["configmaps"])
        };
        assert!(rule.allows(&asked("update", "", "configmaps", "", "one")));
        assert!(!rule.allows(&asked("update", "", "configmaps", "", "two")));
        assert!(!rule.allows(&asked("list", "", "configmaps", "", "")));
        assert!(!rule.allows(&asked("create", "", "configmaps", "", "")));
    }

    #[test]
    fn paths_end_in_a_star_or_are_exact_and_are_no_kinds() {
        let rule = Rule::of_paths(&["get"], &["/apis/*", "/version"]);
        let path = |verb, path| Attributes {
            verb,
            path,
            ..Attributes::default()
        };
        assert!(rule.allows(&path("get", "/apis/muster.dev")));
        assert!(rule.allows(&path("get", "/version")));
        assert!(!rule.allows(&path("get", "/apis")));
        assert!(!rule.allows(&path("get", "/version/x")));
        assert!(!rule.allows(&path("put", "/version")));
        assert!(!rule.allows(&asked("get", "", "version", "", "")));
        assert!(!Rule::of(&["*"], &["*"], &["*"]).allows(&path("get", "/version")));
    }

    #[test]
    fn what_is_missing_is_said_in_as_few_lines_as_there_are_kinds() {
        let owned = [
            Rule::of(&["get", "list"], &[""], &["secrets"]),
            Rule::of(&["*"], &["muster.dev"], &["tasks", "*/status"]),
        ];
        let asked = [
            Rule::of(&["get", "watch", "delete"], &[""], &["secrets"]),
            Rule::of(&["patch"], &["muster.dev"], &["tasks/status"]),
        ];
        let lines: Vec<String> = missing(&owned, &asked).iter().map(Rule::describe).collect();
        assert_eq!(
            lines,
            [r#"{APIGroups:[""], Resources:["secrets"], Verbs:["delete" "watch"]}"#]
        );
    }

    #[test]
    fn who_may_touch_one_object_may_not_grant_all_of_them() {
        let one = Rule {
            resource_names: vec!["a".to_owned()],
            ..Rule::of(&["get"], &[""], &["secrets"])
        };
        let any = Rule::of(&["get"], &[""], &["secrets"]);
        assert_eq!(
            missing(std::slice::from_ref(&one), std::slice::from_ref(&any)),
            std::slice::from_ref(&any)
        );
        assert_eq!(missing(&[any], &[one]), []);
        let star = Rule::of(&["*"], &["*"], &["*"]);
        let all_verbs = Rule::of(&["*"], &[""], &["secrets"]);
        assert_eq!(
            missing(&[Rule::of(&["get"], &["*"], &["*"])], std::slice::from_ref(&all_verbs)),
            std::slice::from_ref(&all_verbs)
        );
        assert_eq!(missing(&[star], &[all_verbs]), []);
    }

    #[test]
    fn a_rule_that_says_too_much_at_once_is_missing_whole() {
        let many: Vec<String> = (0..200).map(|number| format!("k{number}")).collect();
        let huge = Rule {
            verbs: many.clone(),
            api_groups: many.clone(),
            resources: many,
            ..Rule::default()
        };
        assert_eq!(
            missing(&[Rule::of(&["get"], &["*"], &["*"])], std::slice::from_ref(&huge)).len(),
            1
        );
        assert_eq!(missing(&[Rule::of(&["*"], &["*"], &["*"])], &[huge]), []);
    }
}
