//! Objects as the rows of a table, as `kubectl get` shows them.
//!
//! The server makes the cells, so that every client shows a kind in the same columns: those of its [`Resource`], each a path into
//! the object. It promises that a table can be made of anything: what is missing or of another type than its column is an empty
//! cell, never an error. What must never happen here: a clock; ages are told against a `now` that is passed in. Tested below.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::resource::{Column, Resource};

mod path;

use path::Cell;

/// How much of the object goes into its row; the `includeObject` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the parameter.
    pub fn parse(text: Option<&str>) -> Result<Include, ApiError> {
        match text {
            None | Some("" | "Metadata") => Ok(Include::Metadata),
            Some("None") => Ok(Include::None),
            Some("Object") => Ok(Include::Object),
            Some(other) => {
                let message = format!("includeObject={other:?} is none of None, Metadata and Object");
                Err(ApiError::bad_request(message))
            }
        }
    }
}

/// The version of tables that is given to clients that do not ask for one.
pub const VERSION: &str = "meta.k8s.io/v1";

/// How a request wants its tables.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The `apiVersion` of tables, such as [`VERSION`].
    pub version: &'a str,
    /// How much of each object comes along.
    pub include: Include,
    /// When it is, for ages.
    pub now: Timestamp,
}

/// Makes tables of the objects of one kind.
#[derive(Debug)]
pub struct Printer {
    definitions: Value,
    cells: Vec<(Cell, Kind)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Date,
}

impl Printer {
    /// For the kind, with the name as the first column unless the kind has a column for it elsewhere.
    pub fn new(resource: &Resource) -> Printer {
        let name = Column {
            name: "Name".to_owned(),
            kind: "string".to_owned(),
            format: "name".to_owned(),
            description: "The name, unique among the objects of the kind and namespace.".to_owned(),
            json_path: ".metadata.name".to_owned(),
            priority: 0,
        };
        let named = resource.columns.iter().any(|column| column.json_path == name.json_path);
        let first = (!named).then_some(&name);
        let columns: Vec<&Column> = first.into_iter().chain(&resource.columns).collect();
        let definitions = columns.iter().map(|column| {
            let format = if column.json_path == name.json_path {
                "name"
            } else {
                &column.format
            };
            let description = match column.description.as_str() {
                "" => format!("The value at {}", column.json_path),
                given => given.to_owned(),
            };
            json!({
                "name": column.name,
                "type": column.kind,
                "format": format,
                "description": description,
                "priority": column.priority,
            })
        });
        Printer {
            definitions: definitions.collect(),
            cells: columns
                .iter()
                .map(|column| (Cell::parse(&column.json_path), kind(&column.kind)))
                .collect(),
        }
    }

    /// Appends the beginning of a table, to be followed by its [`row`](Printer::row)s separated by commas, and by [`END`].
    ///
    /// `metadata` is that of the list: `resourceVersion`, `continue`, `remainingItemCount`. Only the first table of a watch needs the
    /// definitions of its columns.
    pub fn begin(&self, look: &Look<'_>, metadata: &Value, definitions: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"kind\":\"Table\",\"apiVersion\":");
        put(&look.version, out);
        out.extend_from_slice(b",\"metadata\":");
        put(metadata, out);
        out.extend_from_slice(b",\"columnDefinitions\":");
        if definitions {
            put(&self.definitions, out);
        } else {
            out.extend_from_slice(b"[]");
        }
        out.extend_from_slice(b",\"rows\":[");
    }

    /// Appends the row of an object.
    pub fn row(&self, look: &Look<'_>, object: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"cells\":");
        put(&self.cells(object, look.now), out);
        match look.include {
            Include::None => {}
            Include::Metadata => {
                out.extend_from_slice(b",\"object\":");
                put(&partial(look.version, object), out);
            }
            Include::Object => {
                out.extend_from_slice(b",\"object\":");
                put(object, out);
            }
        }
        out.push(b'}');
    }

    /// The whole table of some objects.
    pub fn table<'a>(
        &self,
        look: &Look<'_>,
        metadata: &Value,
        objects: impl IntoIterator<Item = &'a Value>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        self.begin(look, metadata, true, &mut out);
        for (index, object) in objects.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            self.row(look, object, &mut out);
        }
        out.extend_from_slice(END);
        out
    }

    /// Appends the table of one object: the answer to a `get`, or the object of an event of a watch.
    ///
    /// A bookmark (`bookmark`) has no cells to show: it is a table without rows that carries the version.
    pub fn single(&self, look: &Look<'_>, object: &Value, bookmark: bool, definitions: bool, out: &mut Vec<u8>) {
        let mut metadata = Map::new();
        if let Some(text) = object["metadata"]["resourceVersion"].as_str() {
            metadata.insert("resourceVersion".to_owned(), text.into());
        }
        self.begin(look, &Value::Object(metadata), definitions, out);
        if !bookmark {
            self.row(look, object, out);
        }
        out.extend_from_slice(END);
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let cells = self.cells.iter();
        cells
            .map(|(cell, kind)| cell.read(object).map_or(Value::Null, |value| shown(value, *kind, now)))
            .collect()
    }
}

/// The end of a table.
pub const END: &[u8] = b"]}";

/// The metadata of an object alone, in the version of the table around it.
fn partial(version: &str, object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": object["metadata"]})
}

fn put(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("plain data goes into memory");
}

fn kind(text: &str) -> Kind {
    match text {
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        "date" => Kind::Date,
        _ => Kind::Text,
    }
}

fn shown(value: Value, kind: Kind, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        (Kind::Date, value) => age(&value, now).into(),
        (Kind::Integer, Value::Number(number)) => number
            .as_i64()
            .map_or_else(|| number.as_f64().map(|float| float as i64).into(), Value::from),
        (Kind::Number, value @ Value::Number(_)) | (Kind::Boolean, value @ Value::Bool(_)) => value,
        (Kind::Integer | Kind::Number | Kind::Boolean, _) => Value::Null,
        (Kind::Text, value) => path::text(&value).into(),
    }
}

fn age(value: &Value, now: Timestamp) -> String {
    match value.as_str().map(str::parse::<Timestamp>) {
        Some(Ok(then)) => human_duration(now.as_second() - then.as_second()),
        _ => "<unknown>".to_owned(),
    }
}

/// A span of time in two units at most, as kubectl shows it: `90s`, `4m5s`, `3h20m`, `47h`, `5d3h`, `2y120d`.
pub fn human_duration(seconds: i64) -> String {
    // Clocks differ a little; more than that is no age.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |large: i64, name: &str, small: i64, small_name: &str| match small {
        0 => format!("{large}{name}"),
        small => format!("{large}{name}{small}{small_name}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests;
