//! The owners of an object's fields: `metadata.managedFields`, and what writes do to it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::element::{Element, Path};
use crate::entry::{DecodeError, Entry, Operation, order};
use crate::merge::{merge, prune};
use crate::schema::{Schema, Type};
use crate::set::Set;
use crate::value::{Comparison, compare, element, fields};

/// So many owners that did not apply are told apart; the oldest of more become one.
pub const UPDATERS_MAX: usize = 10;
/// The name of the owners that became one.
const ANCIENT: &str = "ancient-changes";
/// The name of whoever wrote an object before anybody applied it, when nobody took note.
const BEFORE: &str = "before-first-apply";
/// The managers that `kubectl apply --server-side` and `mctl apply` are by default, and that come after `kubectl apply`.
const HEIRS: [&str; 2] = ["kubectl", "mctl"];
/// Where `kubectl apply` keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who owns what of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    entries: Vec<Entry>,
}

/// Who writes, and what of the object.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Its name.
    pub manager: &'a str,
    /// The version of the object as it writes it.
    pub api_version: &'a str,
    /// The subresource that is written to; empty: the object itself. The subresource `status` is the field of that name, and
    /// only that.
    pub subresource: &'a str,
    /// Whether the field `status` is written through its subresource only.
    pub has_status: bool,
    /// When: RFC 3339, whole seconds, UTC.
    pub time: &'a str,
}

/// What somebody applies and somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner, in the words of messages.
    pub manager: String,
    /// The field.
    pub path: Path,
}

/// What applying left.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object.
    pub object: Value,
    /// Who owns what now.
    pub managed: Managed,
}

impl Managed {
    /// Reads `metadata.managedFields`; null is nobody.
    pub fn decode(value: &Value) -> Result<Managed, DecodeError> {
        let list = match value {
            Value::Null => return Ok(Managed::default()),
            Value::Array(list) => list,
            _ => return Err(DecodeError::NotAList),
        };
        let entries = list
            .iter()
            .enumerate()
            .map(|(index, entry)| Entry::decode(index, entry));
        Ok(Managed {
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// As `metadata.managedFields` says it.
    pub fn encode(&self) -> Value {
        Value::Array(self.entries.iter().map(Entry::encode).collect())
    }

    /// Whether nobody owns anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The owners, those that applied first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the same owners own the same, whenever they came to it.
    pub fn is_same(&self, other: &Managed) -> bool {
        let timeless = |managed: &Managed| {
            let mut entries = managed.entries.clone();
            entries.iter_mut().for_each(|entry| entry.time.clear());
            entries.sort_by(|one, other| order(one).cmp(&order(other)));
            entries
        };
        timeless(self) == timeless(other)
    }

    /// Whether anybody owns something of this field of the object.
    pub fn owns_in(&self, field: &str) -> bool {
        let element = Element::field(field);
        self.entries.iter().any(|entry| entry.fields.child(&element).is_some())
    }

    /// What a change does that was not applied: the writer takes what it changed.
    ///
    /// An object that nobody owns anything of stays so, unless it is new (`live` has no fields). With `noted` false, the writer only takes
    /// from others and owns nothing.
    #[must_use]
    pub fn update(self, schema: &Schema, live: &Value, new: &Value, writer: &Writer<'_>, noted: bool) -> Managed {
        let is_new = live.as_object().is_none_or(Map::is_empty);
        if self.is_empty() && !(is_new && noted) {
            return self;
        }
        let comparison = writer.scoped(compare(schema, live, new));
        if comparison.is_same() {
            return self;
        }
        let mut managed = self.reconciled(schema, live);
        managed.lose(&comparison.changed());
        let written = comparison.written();
        if noted && !written.is_empty() {
            managed.note(writer, Operation::Update, |fields| fields.add(&written));
            managed.cap();
        }
        managed.tidied()
    }

    /// Lays `config` over `live`: whatever this writer applied before and does not now goes, unless somebody else owns it.
    ///
    /// What others own and would change is a conflict; with `force`, the writer takes it. `live` has no fields when the object is new.
    pub fn apply(
        self,
        schema: &Schema,
        live: &Value,
        config: &Value,
        writer: &Writer<'_>,
        force: bool,
    ) -> Result<Applied, Vec<Conflict>> {
        let mut managed = self.reconciled(schema, live);
        if managed.is_empty() {
            let before = Writer {
                manager: BEFORE,
                ..*writer
            };
            managed = managed.update(schema, &json!({}), live, &before, true);
        }
        let config = writer.relevant(config);
        let mut applied = match managed.clone().attempt(schema, live, &config, writer, force) {
            Err(conflicts) if HEIRS.contains(&writer.manager) => {
                let known = last_applied(schema, live);
                let rest: Vec<Conflict> = conflicts
                    .into_iter()
                    .filter(|conflict| !known.contains(&conflict.path))
                    .collect();
                if !rest.is_empty() {
                    return Err(rest);
                }
                managed.attempt(schema, live, &config, writer, true)?
            }
            other => other?,
        };
        if HEIRS.contains(&writer.manager) && writer.subresource.is_empty() {
            note_last_applied(&mut applied.object, &config);
        }
        Ok(applied)
    }

    fn attempt(
        mut self,
        schema: &Schema,
        live: &Value,
        config: &Value,
        writer: &Writer<'_>,
        force: bool,
    ) -> Result<Applied, Vec<Conflict>> {
        let mine = writer.tracked(fields(schema, config));
        let merged = merge(schema, live, config);
        let position = self.entries.iter().position(|entry| entry.is(writer, Operation::Apply));
        let last = position.map(|position| self.entries.remove(position));
        let object = match &last {
            Some(last) => {
                let owned = self
                    .entries
                    .iter()
                    .fold(mine.clone(), |owned, entry| owned.union(&entry.fields));
                prune(schema, &merged, &last.fields, &owned)
            }
            None => merged,
        };
        let comparison = writer.scoped(compare(schema, live, &object));
        let written = comparison.written();
        let conflicts = self.conflicts(&written);
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        self.lose(&comparison.changed());
        let unchanged = last.as_ref().filter(|last| comparison.is_same() && last.fields == mine);
        let time = unchanged.map_or(writer.time, |last| &last.time);
        let writer = Writer { time, ..*writer };
        self.note(&writer, Operation::Apply, |fields| *fields = mine);
        Ok(Applied {
            object,
            managed: self.tidied(),
        })
    }

    fn conflicts(&self, written: &Set) -> Vec<Conflict> {
        let mut conflicts: Vec<Conflict> = Vec::new();
        for entry in &self.entries {
            let paths = entry.fields.intersection(written).paths();
            conflicts.extend(paths.into_iter().map(|path| Conflict {
                manager: entry.words(),
                path,
            }));
        }
        conflicts.sort_by(|one, other| one.manager.cmp(&other.manager));
        conflicts
    }

    fn lose(&mut self, changed: &Set) {
        self.entries.iter_mut().for_each(|entry| entry.fields.take_out(changed));
    }

    fn note(&mut self, writer: &Writer<'_>, operation: Operation, change: impl FnOnce(&mut Set)) {
        let position = self.entries.iter().position(|entry| entry.is(writer, operation));
        let position = position.unwrap_or_else(|| {
            self.entries.push(Entry {
                manager: writer.manager.to_owned(),
                operation,
                api_version: String::new(),
                time: String::new(),
                subresource: writer.subresource.to_owned(),
                fields: Set::new(),
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[position];
        entry.api_version = writer.api_version.to_owned();
        entry.time = writer.time.to_owned();
        change(&mut entry.fields);
    }

    fn tidied(mut self) -> Managed {
        self.entries.retain(|entry| !entry.fields.is_empty());
        self.entries.sort_by(|one, other| order(one).cmp(&order(other)));
        self
    }

    /// The oldest of more than [`UPDATERS_MAX`] updaters become one for each version.
    fn cap(&mut self) {
        self.entries.retain(|entry| !entry.fields.is_empty());
        let updates = |entry: &&Entry| entry.operation == Operation::Update;
        let mut count = self.entries.iter().filter(updates).count();
        let mut oldest: Vec<Entry> = self.entries.iter().filter(updates).cloned().collect();
        oldest.sort_by(|one, other| (&one.time, &one.manager).cmp(&(&other.time, &other.manager)));
        // The first of each version waits for a second to become one with.
        let mut first: BTreeMap<String, Entry> = BTreeMap::new();
        for entry in oldest {
            if count <= UPDATERS_MAX {
                return;
            }
            let Some(waiting) = first.get(&entry.api_version) else {
                first.insert(entry.api_version.clone(), entry);
                continue;
            };
            let bucket = Entry {
                manager: ANCIENT.to_owned(),
                subresource: String::new(),
                time: entry.time.clone(),
                fields: waiting.fields.clone().union(&entry.fields),
                ..entry.clone()
            };
            self.entries.retain(|known| known != waiting && *known != entry);
            first.insert(bucket.api_version.clone(), bucket.clone());
            self.entries.push(bucket);
            count -= 1;
        }
    }

    /// What was owned in parts, by an older schema, and is a whole now is owned as a whole.
    fn reconciled(mut self, schema: &Schema, live: &Value) -> Managed {
        for entry in &mut self.entries {
            reconcile(&schema.root, live, &mut entry.fields);
        }
        self
    }
}

fn reconcile(kind: &Type, live: &Value, set: &mut Set) {
    match (kind, live) {
        (Type::Whole, _) if set.has_children() => *set = Set::here(),
        (Type::Map { .. }, Value::Object(map)) => {
            for (name, value) in map {
                let element = Element::field(name);
                if let Some(mut below) = set.cut(&element) {
                    reconcile(kind.below(name).0, value, &mut below);
                    set.graft(element, below);
                }
            }
        }
        (Type::Set | Type::List { .. }, Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let element = element(kind, index, item);
                if let Some(mut below) = set.cut(&element) {
                    reconcile(kind.item(), item, &mut below);
                    set.graft(element, below);
                }
            }
        }
        _ => {}
    }
}

/// What of the metadata nobody owns.
const UNOWNED: [&str; 8] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

impl Writer<'_> {
    /// Of a set, what this writer may own.
    fn tracked(&self, mut set: Set) -> Set {
        for name in ["apiVersion", "kind"] {
            set.cut(&Element::field(name));
        }
        let element = Element::field("metadata");
        if let Some(mut metadata) = set.cut(&element) {
            for name in UNOWNED {
                metadata.cut(&Element::field(name));
            }
            metadata.set_member(false);
            set.graft(element, metadata);
        }
        let status = Element::field("status");
        match self.subresource {
            "status" => set.only(&status),
            _ if self.has_status => {
                set.cut(&status);
                set
            }
            _ => set,
        }
    }

    fn scoped(&self, comparison: Comparison) -> Comparison {
        comparison.map(|set| self.tracked(set))
    }

    /// Of an object that is applied, what this writer may say.
    fn relevant(&self, config: &Value) -> Value {
        let mut config = config.as_object().cloned().unwrap_or_default();
        if self.subresource == "status" {
            config.retain(|name, _| ["apiVersion", "kind", "metadata", "status"].contains(&name.as_str()));
            if let Some(Value::Object(metadata)) = config.get_mut("metadata") {
                metadata.retain(|name, _| UNOWNED.contains(&name.as_str()));
            }
        } else if self.has_status {
            config.remove("status");
        }
        Value::Object(config)
    }
}

/// What `kubectl apply` applied last and is still so: whoever comes from there need not fight for it.
fn last_applied(schema: &Schema, live: &Value) -> Set {
    let text = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .unwrap_or_default();
    let Ok(last) = serde_json::from_str::<Value>(text) else {
        return Set::new();
    };
    let comparison = compare(schema, &last, live);
    fields(schema, &last).difference(&comparison.changed())
}

/// Whoever goes back to `kubectl apply` shall find there what was applied last.
fn note_last_applied(object: &mut Value, config: &Value) {
    let annotations = object
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut);
    let Some(note) = annotations.and_then(|annotations| annotations.get_mut(LAST_APPLIED)) else {
        return;
    };
    // To the letter as kubectl writes it, or each of the two would see a change after the other.
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
    }
    *note = Value::String(format!("{config}\n"));
}

/// What is told to somebody who met conflicts.
pub fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        );
    }
    let mut lines = Vec::new();
    for conflict in conflicts {
        let title = format!("conflicts with {}:", conflict.manager);
        if !lines.contains(&title) {
            lines.push(title);
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}
