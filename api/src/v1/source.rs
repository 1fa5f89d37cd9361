//! What a task takes from elsewhere: from Secrets, ConfigMaps and its own fields.
//!
//! [`TaskSpec::sources`] is the one answer to which Secrets and ConfigMaps a task names: the agent reads those, and the server lets it read
//! no other.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::task::{Task, TaskSpec};

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Where its value comes from instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvSource>,
}

impl EnvVar {
    /// A variable of this value.
    pub fn of(name: impl Into<String>, value: impl Into<String>) -> EnvVar {
        EnvVar {
            name: name.into(),
            value: value.into(),
            value_from: None,
        }
    }
}

/// Where the value of a variable comes from; exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvSource {
    /// A key of a Secret of the task's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap of the task's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// A field of the task itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_ref: Option<FieldRef>,
}

/// One key of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The name of the object.
    pub name: String,
    /// The key.
    pub key: String,
    /// Whether the task may start without it. Otherwise it waits until the object and the key are there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A field of the task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldRef {
    /// `metadata.name`, `metadata.namespace`, `metadata.uid`, `metadata.labels['KEY']`, `metadata.annotations['KEY']`, `spec.framework`,
    /// `spec.role`, `status.agent` or `status.offer`.
    pub field_path: String,
}

/// All keys of an object as variables; exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvFrom {
    /// Goes before every name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// A Secret of the task's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SourceRef>,
    /// A ConfigMap of the task's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<SourceRef>,
}

/// A whole object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRef {
    /// Its name.
    pub name: String,
    /// Whether the task may start without it. Otherwise it waits until the object is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A kind of object that tasks take things from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// `v1/Secret`.
    Secret,
    /// `v1/ConfigMap`.
    ConfigMap,
}

impl SourceKind {
    /// The plural in paths.
    pub const fn plural(self) -> &'static str {
        match self {
            SourceKind::Secret => "secrets",
            SourceKind::ConfigMap => "configmaps",
        }
    }

    /// The kind of that plural.
    pub fn of_plural(plural: &str) -> Option<SourceKind> {
        [SourceKind::Secret, SourceKind::ConfigMap]
            .into_iter()
            .find(|kind| kind.plural() == plural)
    }
}

/// An object that a task names, of the task's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Its kind.
    pub kind: SourceKind,
    /// Its name.
    pub name: String,
}

impl Source {
    /// A Secret.
    pub fn secret(name: &str) -> Source {
        Source {
            kind: SourceKind::Secret,
            name: name.to_owned(),
        }
    }

    /// A ConfigMap.
    pub fn config_map(name: &str) -> Source {
        Source {
            kind: SourceKind::ConfigMap,
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SourceKind::Secret => "Secret",
            SourceKind::ConfigMap => "ConfigMap",
        };
        write!(f, "{kind} {}", self.name)
    }
}

impl EnvSource {
    /// The key that it names, and of which object.
    pub fn key(&self) -> Option<(Source, &KeyRef)> {
        let secret = self.secret_key_ref.as_ref().map(|key| (Source::secret(&key.name), key));
        secret.or_else(|| {
            self.config_map_key_ref
                .as_ref()
                .map(|key| (Source::config_map(&key.name), key))
        })
    }
}

impl EnvFrom {
    /// The object that it names, and whether the task may start without it.
    pub fn source(&self) -> Option<(Source, bool)> {
        let secret = self.secret_ref.as_ref();
        let secret = secret.map(|found| (Source::secret(&found.name), found.optional));
        secret.or_else(|| {
            let found = self.config_map_ref.as_ref()?;
            Some((Source::config_map(&found.name), found.optional))
        })
    }
}

impl TaskSpec {
    /// All objects that the task takes something from, those with credentials for its image included.
    pub fn sources(&self) -> BTreeSet<Source> {
        let mut sources = self.given();
        sources.extend(self.pull_secrets());
        sources
    }

    /// The Secrets with credentials for its image.
    pub fn pull_secrets(&self) -> impl Iterator<Item = Source> {
        self.image_pull_secrets
            .iter()
            .map(|secret| Source::secret(&secret.name))
    }

    /// The objects that its containers are given something of.
    pub fn given(&self) -> BTreeSet<Source> {
        let keys = self.env.iter().filter_map(|var| var.value_from.as_ref()?.key());
        let keys = keys.map(|(source, _)| source);
        let whole = self.env_from.iter().filter_map(|from| Some(from.source()?.0));
        let files = self.volumes.iter().filter_map(|volume| Some(volume.files()?.0));
        keys.chain(whole).chain(files).collect()
    }
}

impl Task {
    /// The value of one of its fields, for a variable. `None`: no variable can have it. A label or annotation that is not there is empty.
    pub fn field(&self, path: &str) -> Option<String> {
        let status = self.status.as_ref();
        let found = match path {
            "metadata.name" => self.metadata.name.clone(),
            "metadata.namespace" => self.metadata.namespace.clone(),
            "metadata.uid" => self.metadata.uid.clone(),
            "spec.framework" => Some(self.spec.framework.clone()),
            "spec.role" => Some(self.role().to_owned()),
            "status.agent" => status.and_then(|status| status.agent.clone()),
            "status.offer" => status.and_then(|status| status.offer.clone()),
            _ => {
                let (map, rest) = match path.strip_prefix("metadata.labels['") {
                    Some(rest) => (self.metadata.labels.as_ref(), rest),
                    None => (
                        self.metadata.annotations.as_ref(),
                        path.strip_prefix("metadata.annotations['")?,
                    ),
                };
                let key = rest.strip_suffix("']").filter(|key| !key.is_empty())?;
                map.and_then(|map| map.get(key).cloned())
            }
        };
        Some(found.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{EnvVar, PullSecret, SourceFiles, Volume};

    #[test]
    fn a_task_names_sources_in_variables_and_in_volumes() {
        let key = |name: &str| KeyRef {
            name: name.to_owned(),
            key: "k".to_owned(),
            optional: true,
        };
        let spec = TaskSpec {
            env: vec![
                EnvVar::of("PLAIN", "x"),
                EnvVar {
                    name: "A".to_owned(),
                    value_from: Some(EnvSource {
                        secret_key_ref: Some(key("s1")),
                        ..EnvSource::default()
                    }),
                    ..EnvVar::default()
                },
            ],
            env_from: vec![EnvFrom {
                config_map_ref: Some(SourceRef {
                    name: "c1".to_owned(),
                    optional: false,
                }),
                ..EnvFrom::default()
            }],
            volumes: vec![Volume {
                mount_path: "/s".to_owned(),
                secret: Some(SourceFiles {
                    name: "s2".to_owned(),
                    ..SourceFiles::default()
                }),
                ..Volume::default()
            }],
            image_pull_secrets: vec![PullSecret { name: "s3".to_owned() }],
            ..TaskSpec::default()
        };
        let given = [Source::secret("s1"), Source::secret("s2"), Source::config_map("c1")];
        assert_eq!(spec.given(), given.clone().into());
        let all = given.into_iter().chain([Source::secret("s3")]);
        assert_eq!(spec.sources(), all.collect());
    }

    #[test]
    fn fields_are_those_that_are_written_down() {
        let mut task = Task::new("t", TaskSpec::default());
        task.metadata.namespace = Some("ml".to_owned());
        task.metadata.labels = Some([("a.io/b".to_owned(), "c".to_owned())].into());
        for (path, expect) in [
            ("metadata.name", Some("t")),
            ("spec.role", Some("ml")),
            ("metadata.labels['a.io/b']", Some("c")),
            ("metadata.labels['other']", Some("")),
            ("metadata.annotations['x']", Some("")),
            ("metadata.labels['']", None),
            ("metadata.labels", None),
            ("spec.command", None),
        ] {
            assert_eq!(task.field(path).as_deref(), expect, "{path}");
        }
    }
}
