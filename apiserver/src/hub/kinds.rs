//! What the hub knows about kinds: where their objects are, and which of their fields are selected by.

use std::borrow::Cow;

use serde_json::Value;

use super::object;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::resource::Resource;
use crate::selector::{FieldSelector, LabelSelector};

use super::object::Object;

/// The number of a kind in the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindId(pub(crate) u16);

impl KindId {
    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Fields that objects are looked up by, so often that an index pays.
const INDEXED: [&str; 3] = ["status.agent", "spec.agent", "spec.framework"];

/// A kind, as the hub needs it.
#[derive(Clone, Debug)]
pub struct HubKind {
    /// What the keys of its objects begin with.
    pub prefix: String,
    /// `plural.group`.
    pub qualified: String,
    /// As in `apiVersion`.
    pub api_version: String,
    /// As in `kind`.
    pub kind: String,
    pub(super) head: String,
    pub(super) selectable: Vec<FieldPath>,
    pub(super) indexed: Vec<usize>,
}

impl HubKind {
    /// The kind that a resource's objects are stored as.
    pub fn new(resource: &Resource) -> HubKind {
        let fields = resource
            .selectable
            .iter()
            .map(|path| path.trim_start_matches('.').to_owned());
        let selectable: Vec<FieldPath> = fields.map(FieldPath::new).collect();
        let indexed = (0..selectable.len())
            .filter(|index| INDEXED.contains(&selectable[*index].path.as_str()))
            .collect();
        HubKind {
            prefix: keys::kind_prefix(resource),
            qualified: resource.qualified(),
            api_version: resource.api_version(),
            kind: resource.kind.clone(),
            head: object::head(&resource.api_version(), &resource.kind),
            selectable,
            indexed,
        }
    }

    fn field(&self, path: &str) -> Option<Field> {
        match path {
            "metadata.name" => Some(Field::Name),
            "metadata.namespace" => Some(Field::Namespace),
            _ => self
                .selectable
                .iter()
                .position(|field| field.path == path)
                .map(Field::Selectable),
        }
    }
}

/// The path of a field that is selected by.
#[derive(Clone, Debug)]
pub(super) struct FieldPath {
    path: String,
    parts: Vec<String>,
}

impl FieldPath {
    fn new(path: String) -> FieldPath {
        let parts = path.split('.').map(str::to_owned).collect();
        FieldPath { path, parts }
    }

    /// The text of the field; empty where there is none. `source` of events is the component, as in Kubernetes.
    pub(super) fn text<'a>(&self, object: &'a Value) -> Cow<'a, str> {
        if self.path == "source" {
            let component = object.pointer("/source/component").and_then(Value::as_str);
            let reporting = object.get("reportingComponent").and_then(Value::as_str);
            let text = component.filter(|text| !text.is_empty()).or(reporting);
            return text.unwrap_or_default().into();
        }
        let mut value = object;
        for part in &self.parts {
            match value.get(part) {
                Some(inner) => value = inner,
                None => return Cow::default(),
            }
        }
        match value {
            Value::String(text) => text.into(),
            Value::Null | Value::Array(_) | Value::Object(_) => Cow::default(),
            Value::Bool(_) | Value::Number(_) => value.to_string().into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Selectable(usize),
}

/// Which objects of a kind are wanted: a namespace and selectors, ready to be matched.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    namespace: Option<String>,
    labels: LabelSelector,
    fields: Vec<(Field, String, bool)>,
}

impl Filter {
    /// Everything, of one namespace or of all.
    pub fn all(namespace: Option<&str>) -> Filter {
        Filter {
            namespace: namespace.map(str::to_owned),
            ..Filter::default()
        }
    }

    /// What the selectors select. Fields that the kind does not offer are refused.
    pub fn new(
        kind: &HubKind,
        namespace: Option<&str>,
        labels: LabelSelector,
        fields: &FieldSelector,
    ) -> Result<Filter> {
        fields.check(|path| kind.field(path).is_some())?;
        let fields = fields.requirements().iter().map(|requirement| {
            let field = kind
                .field(&requirement.field)
                .ok_or_else(|| ApiError::bad_request(format!("field label not supported: {}", requirement.field)))?;
            Ok((field, requirement.value.clone(), requirement.equal))
        });
        Ok(Filter {
            namespace: namespace.map(str::to_owned),
            labels,
            fields: fields.collect::<Result<Vec<_>>>()?,
        })
    }

    /// The namespace, if only one is wanted.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether there are selectors.
    pub fn is_selective(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// The indexed field that must have one value, if there is such a requirement.
    pub(super) fn lookup(&self, kind: &HubKind) -> Option<(usize, &str)> {
        self.fields.iter().find_map(|(field, value, equal)| match field {
            Field::Selectable(index) if *equal && kind.indexed.contains(index) && !value.is_empty() => {
                Some((*index, value.as_str()))
            }
            _ => None,
        })
    }

    /// The only name wanted, if there is one.
    pub(super) fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _, equal)| *field == Field::Name && *equal)
            .map(|(_, value, _)| value.as_str())
    }

    /// Whether the object is wanted.
    pub fn matches(&self, object: &Object) -> bool {
        let namespace = self.namespace.as_deref();
        if namespace.is_some_and(|namespace| object.namespace() != namespace) {
            return false;
        }
        let fields = self.fields.iter().all(|(field, value, equal)| {
            let text = match field {
                Field::Name => object.name(),
                Field::Namespace => object.namespace(),
                Field::Selectable(index) => object.field(*index),
            };
            (text == value) == *equal
        });
        fields && self.labels.matches(|key| object.label(key))
    }
}
