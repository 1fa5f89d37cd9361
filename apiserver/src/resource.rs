//! What the server knows about a kind before any code of the kind runs: names, schema, columns, verbs.
//!
//! Discovery, OpenAPI, tables, schema validation and the generic registry all read this and nothing else, so a new kind is a
//! [`Resource`] and a strategy.

use std::sync::Arc;

use serde_json::Value;

use crate::schema::Schema;

/// A kind as the API serves it.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind, as in `Task`.
    pub kind: String,
    /// The plural name, as in paths.
    pub plural: String,
    /// The singular name.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Groups of kinds, as in `kubectl get all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// What may be done with the objects, in the words of discovery: `create`, `delete`, `get`, `list`, `patch`, `update`, `watch`.
    pub verbs: Vec<&'static str>,
    /// The subresources.
    pub subresources: Vec<Subresource>,
    /// The structural OpenAPI v3 schema of a whole object, with descriptions; `metadata` is just an object in it.
    pub schema: Arc<Value>,
    /// The same schema, made ready for checking objects.
    pub compiled: Arc<Schema>,
    /// The columns of a table after the name.
    pub columns: Vec<Column>,
    /// Where the fields are that `scale` reads and writes, if there is such a subresource.
    pub scale: Option<ScalePaths>,
    /// Paths of the fields that may be selected by, besides name and namespace, such as `spec.framework`.
    pub selectable: Vec<String>,
}

/// Where the fields of a `Scale` are in an object, as in `spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// How many are wanted.
    pub wanted: String,
    /// How many there are.
    pub present: String,
    /// The selector of what is counted, as text; may be empty: there is none.
    pub selector: String,
}

/// A subresource of a kind.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// The last part of the path, as in `status`.
    pub name: &'static str,
    /// Group, version and kind of what it takes and gives.
    pub response: (String, String, String),
    /// What may be done with it.
    pub verbs: Vec<&'static str>,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// The title.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// The format, as in OpenAPI; may be empty.
    pub format: String,
    /// What it shows; may be empty.
    pub description: String,
    /// Where the value is, as a JSONPath such as `.status.phase`. Besides: `.a|.b` is the first that is there, `#.a #.b` how many
    /// entries both have together, `{.a}/{.b}` a text made from both.
    pub json_path: String,
    /// Zero: always shown; more: only in wide output.
    pub priority: i32,
}

impl Resource {
    /// `plural.group`, or `plural` in the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `group/version`, or `version` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The same with a subresource more.
    pub fn with(mut self, subresource: Subresource) -> Resource {
        self.subresources.push(subresource);
        self
    }

    /// The same, of which only these verbs are served.
    pub fn only(mut self, verbs: &[&'static str]) -> Resource {
        self.verbs = verbs.to_vec();
        self
    }

    /// Whether its objects are answers that nobody keeps.
    pub fn is_review(&self) -> bool {
        self.verbs == ["create"]
    }

    /// Whether the kind has a status subresource.
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|subresource| subresource.name == "status")
    }
}
