//! What the hub knows about kinds: where their objects are, and which of their fields are selected by.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use muster_store::{Key, Revision};
use serde_json::Value;
use tokio::sync::watch;

use super::object;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::resource::Resource;
use crate::selector::{FieldSelector, LabelSelector};

use super::object::Object;

/// The number of a kind in the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindId(pub(crate) u32);

impl KindId {
    /// As an index.
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("the machine has at least 32 bits")
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
    /// What the bytes of its objects begin with; `None`: they say themselves what they are.
    pub(super) head: Option<String>,
    /// Whether the fields are noted with every object, or read from it when somebody asks.
    noted: bool,
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
            head: Some(object::head(&resource.api_version(), &resource.kind)),
            noted: true,
            selectable,
            indexed,
        }
    }

    /// A kind that is defined while the server runs. Nothing of its definition goes into what the hub holds, because that may change
    /// and the past stays: its fields are read when they are selected by.
    pub fn custom(resource: &Resource) -> HubKind {
        HubKind {
            head: None,
            noted: false,
            indexed: Vec::new(),
            ..HubKind::new(resource)
        }
    }

    /// A kind of which nothing is known but where its objects are.
    fn unknown(prefix: &str) -> HubKind {
        let names = prefix
            .strip_prefix(keys::OBJECTS)
            .unwrap_or(prefix)
            .trim_end_matches('/');
        let qualified = match names.split_once('/') {
            Some(("core", plural)) => plural.to_owned(),
            Some((group, plural)) => format!("{plural}.{group}"),
            None => names.to_owned(),
        };
        HubKind {
            prefix: prefix.to_owned(),
            qualified,
            head: None,
            noted: false,
            selectable: Vec::new(),
            indexed: Vec::new(),
        }
    }

    fn field(&self, path: &str) -> Option<Field> {
        match path {
            "metadata.name" => Some(Field::Name),
            "metadata.namespace" => Some(Field::Namespace),
            _ => {
                let index = self.selectable.iter().position(|field| field.path == path)?;
                Some(if self.noted {
                    Field::Noted(index)
                } else {
                    Field::Read(self.selectable[index].clone())
                })
            }
        }
    }

    /// The fields that are noted with every object.
    pub(super) fn noted(&self) -> &[FieldPath] {
        if self.noted { &self.selectable } else { &[] }
    }
}

/// The kinds that the hub has objects of, or was asked for. A number is given once.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    known: Vec<Known>,
    by_prefix: BTreeMap<String, KindId>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) kind: Arc<HubKind>,
    /// The revision of the newest change.
    pub(super) touched: watch::Sender<Revision>,
}

impl Kinds {
    pub(super) fn new(kinds: Vec<HubKind>) -> Kinds {
        let mut all = Kinds::default();
        for kind in kinds {
            all.add(kind);
        }
        all
    }

    fn add(&mut self, kind: HubKind) -> KindId {
        let id = KindId(u32::try_from(self.known.len()).expect("kinds are counted in thousands"));
        self.by_prefix.insert(kind.prefix.clone(), id);
        self.known.push(Known {
            kind: Arc::new(kind),
            touched: watch::Sender::new(0),
        });
        id
    }

    /// The kind whose keys begin so.
    pub(super) fn at(&mut self, prefix: &str) -> KindId {
        let known = self.by_prefix.get(prefix).copied();
        known.unwrap_or_else(|| self.add(HubKind::unknown(prefix)))
    }

    /// The kind of the object of that key; `None`: it is of no object.
    pub(super) fn of(&mut self, key: &Key) -> Option<KindId> {
        Some(self.at(keys::parts(key.as_str())?.kind))
    }

    pub(super) fn get(&self, id: KindId) -> &Known {
        &self.known[id.index()]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (KindId, &Known)> {
        (0..).map(KindId).zip(&self.known)
    }
}

/// The path of a field that is selected by.
#[derive(Clone, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    /// The field of this number.
    Noted(usize),
    /// The field there.
    Read(FieldPath),
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
            Field::Noted(index) if *equal && kind.indexed.contains(index) && !value.is_empty() => {
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
                Field::Noted(index) => object.field(*index),
                Field::Read(path) => return (path.text(&object.json()) == value.as_str()) == *equal,
            };
            (text == value) == *equal
        });
        fields && self.labels.matches(|key| object.label(key))
    }
}
