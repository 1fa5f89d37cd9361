//! Which kinds the server has, and what they are called.

use serde_json::Value;

use crate::failure::Failure;
use crate::manifest::suggest::nearest;
use crate::rest::{CallError, Rest, escape};

/// A kind that the server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Its group; empty for the core.
    pub group: String,
    /// The version that the server prefers.
    pub version: String,
    /// `tasks`.
    pub plural: String,
    /// `task`.
    pub singular: String,
    /// `Task`.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// `tk`.
    pub short_names: Vec<String>,
    /// Names that stand for several kinds, such as `all`.
    pub categories: Vec<String>,
    /// What can be done.
    pub verbs: Vec<String>,
}

impl Resource {
    /// `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `task.muster.dev`, as kubectl prints it before names.
    pub fn title(&self) -> String {
        let singular = if self.singular.is_empty() {
            self.kind.to_lowercase()
        } else {
            self.singular.clone()
        };
        if self.group.is_empty() {
            singular
        } else {
            format!("{singular}.{}", self.group)
        }
    }

    /// `tasks.muster.dev`.
    pub fn full_name(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The path of the collection; without a namespace, of all namespaces.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{}/{}", escape(namespace), self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// The path of an object.
    pub fn object_path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.path(Some(namespace)), escape(name))
    }

    fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// How well a word names it: the exact names before the short ones, and `plural.group` only when it is this group.
    fn is_called(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        let names = [self.plural.as_str(), self.singular.as_str()];
        let kind = self.kind.to_lowercase();
        let is = |name: &str| !name.is_empty() && name == word;
        if names.into_iter().any(is) || kind == word || self.short_names.contains(&word) {
            return true;
        }
        match word.split_once('.') {
            Some((name, group)) => {
                let here = group == self.group || group == format!("{}.{}", self.version, self.group);
                here && (names.contains(&name) || kind == name)
            }
            None => false,
        }
    }
}

/// Everything that the server has.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The kinds: Muster's own first, then the core, then the others.
    pub resources: Vec<Resource>,
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

impl Catalogue {
    /// Asks the server: two calls when it can answer at once, one for each group otherwise.
    pub async fn load(rest: &Rest) -> Result<Catalogue, CallError> {
        let (core, groups) = futures::try_join!(rest.get_as("/api", AGGREGATED), rest.get_as("/apis", AGGREGATED))?;
        let mut resources = Vec::new();
        for answer in [core, groups] {
            if answer["kind"] == "APIGroupDiscoveryList" {
                resources.extend(aggregated(&answer));
                continue;
            }
            for (group, version) in versions(&answer) {
                let path = if group.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{group}/{version}")
                };
                resources.extend(listed(&group, &version, &rest.get(&path).await?));
            }
        }
        Ok(Catalogue::new(resources))
    }

    /// A catalogue of known kinds.
    pub fn new(mut resources: Vec<Resource>) -> Catalogue {
        let rank = |resource: &Resource| match resource.group.as_str() {
            muster_api::names::GROUP => 0,
            "" => 1,
            _ => 2,
        };
        resources.sort_by(|a, b| (rank(a), &a.group, &a.plural).cmp(&(rank(b), &b.group, &b.plural)));
        Catalogue { resources }
    }

    /// The kind that a word names.
    pub fn find(&self, word: &str) -> Result<&Resource, Failure> {
        if let Some(resource) = self.resources.iter().find(|resource| resource.is_called(word)) {
            return Ok(resource);
        }
        let names = self
            .resources
            .iter()
            .flat_map(|resource| [resource.plural.as_str(), resource.singular.as_str()]);
        let guess = nearest(word, names)
            .map(|guess| format!("; did you mean `{guess}`?"))
            .unwrap_or_default();
        Err(Failure::new(format!(
            "the server has no kind `{word}`{guess} (`mctl api-resources` lists them)"
        )))
    }

    /// The kinds that words separated by commas name; a category names several.
    pub fn find_all(&self, words: &str) -> Result<Vec<&Resource>, Failure> {
        let mut found: Vec<&Resource> = Vec::new();
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let called = self.find(word);
            let category = self
                .resources
                .iter()
                .filter(|resource| resource.can("list") && resource.categories.iter().any(|known| known == word));
            let category: Vec<&Resource> = category.collect();
            let add = if called.is_err() && !category.is_empty() {
                category
            } else {
                vec![called?]
            };
            for resource in add {
                if !found.iter().any(|known| known.full_name() == resource.full_name()) {
                    found.push(resource);
                }
            }
        }
        if found.is_empty() {
            return Err(Failure::new(
                "name a kind, such as `tasks` (`mctl api-resources` lists them)",
            ));
        }
        Ok(found)
    }

    /// The kind of an object.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|resource| resource.api_version() == api_version && resource.kind == kind)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// The kinds of the first, preferred version of each group.
fn aggregated(answer: &Value) -> Vec<Resource> {
    let groups = answer["items"].as_array().into_iter().flatten();
    let resources = groups.flat_map(|group| {
        let version = &group["versions"][0];
        version["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .map(move |resource| Resource {
                group: text(&group["metadata"]["name"]),
                version: text(&version["version"]),
                plural: text(&resource["resource"]),
                singular: text(&resource["singularResource"]),
                kind: text(&resource["responseKind"]["kind"]),
                namespaced: resource["scope"] == "Namespaced",
                short_names: texts(&resource["shortNames"]),
                categories: texts(&resource["categories"]),
                verbs: texts(&resource["verbs"]),
            })
    });
    resources.collect()
}

fn versions(answer: &Value) -> Vec<(String, String)> {
    if answer["kind"] == "APIVersions" {
        return texts(&answer["versions"])
            .into_iter()
            .map(|version| (String::new(), version))
            .collect();
    }
    let groups = answer["groups"].as_array().into_iter().flatten();
    groups
        .map(|group| (text(&group["name"]), text(&group["preferredVersion"]["version"])))
        .collect()
}

fn listed(group: &str, version: &str, answer: &Value) -> Vec<Resource> {
    let resources = answer["resources"].as_array().into_iter().flatten();
    let whole = resources.filter(|resource| !text(&resource["name"]).contains('/'));
    whole
        .map(|resource| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: text(&resource["name"]),
            singular: text(&resource["singularName"]),
            kind: text(&resource["kind"]),
            namespaced: resource["namespaced"].as_bool() == Some(true),
            short_names: texts(&resource["shortNames"]),
            categories: texts(&resource["categories"]),
            verbs: texts(&resource["verbs"]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        let resource = |group: &str, plural: &str, kind: &str, short: &str, categories: &[&str]| Resource {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            kind: kind.into(),
            namespaced: kind != "Agent",
            short_names: vec![short.into()],
            categories: categories.iter().map(|name| (*name).to_owned()).collect(),
            verbs: vec!["list".into()],
        };
        Catalogue::new(vec![
            resource("events.k8s.io", "events", "Event", "ev", &[]),
            resource("", "events", "Event", "ev", &[]),
            resource("muster.dev", "tasks", "Task", "tk", &["all", "muster"]),
            resource("muster.dev", "agents", "Agent", "ag", &["muster"]),
        ])
    }

    #[test]
    fn kinds_are_found_by_all_their_names() {
        let catalogue = catalogue();
        for word in [
            "tasks",
            "task",
            "tk",
            "Task",
            "tasks.muster.dev",
            "task.muster.dev",
            "tasks.v1.muster.dev",
        ] {
            assert_eq!(catalogue.find(word).expect(word).plural, "tasks", "{word}");
        }
        assert_eq!(catalogue.find("events").expect("events").group, "");
        assert_eq!(
            catalogue.find("events.events.k8s.io").expect("events").group,
            "events.k8s.io"
        );
        let names = |words: &str| -> Vec<String> {
            catalogue
                .find_all(words)
                .expect(words)
                .iter()
                .map(|resource| resource.plural.clone())
                .collect()
        };
        assert_eq!(names("muster"), ["agents", "tasks"]);
        assert_eq!(names("tk,ag,tasks"), ["tasks", "agents"]);
        let failure = catalogue.find("taks").expect_err("unknown").to_string();
        assert!(failure.contains("did you mean `tasks`?"), "{failure}");
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let catalogue = catalogue();
        let task = catalogue.find("tk").expect("tasks");
        assert_eq!(task.path(None), "/apis/muster.dev/v1/tasks");
        assert_eq!(
            task.object_path("a", "b/../c"),
            "/apis/muster.dev/v1/namespaces/a/tasks/b%2F..%2Fc"
        );
        let agent = catalogue.find("ag").expect("agents");
        assert_eq!(agent.object_path("a", "b"), "/apis/muster.dev/v1/agents/b");
        assert_eq!(
            catalogue.find("ev").expect("events").path(Some("x")),
            "/api/v1/namespaces/x/events"
        );
    }
}
