//! Kubernetes' protobuf form of objects, read into JSON values.
//!
//! Newer clients send the built-in kinds of Kubernetes in this form and have no other to fall back to: four bytes, then an envelope
//! that names the kind and holds the message. Which number in a message is which field of the object is a table (`table.txt`), made from the
//! public definitions by `hack/protobuf-table`; nothing here knows a kind. It promises: every input is answered, with a value or with what is
//! wrong and at which byte; what comes out is what the same client would have sent as JSON, but that texts which are empty are left
//! out (Go writes those of fields that were never set) and fields that are not in the table too. What must never happen here: a panic,
//! recursion deeper than [`DEPTH`], or memory that grows faster than the input. Tested with bytes that another encoder made, and by
//! cutting and bending them.

mod reader;
mod table;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use reader::{Reader, Word};
use table::{Field, Many, Message, Shape, Table, Type};

/// What every body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may lie in each other. Schemas are the only ones that nest at all, two levels for each of theirs.
pub const DEPTH: usize = 128;

/// Why a body is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not begin with [`MAGIC`].
    #[error("it does not begin with the four bytes that Kubernetes' protobuf begins with")]
    Magic,
    /// It ends within something.
    #[error("it ends within a field (at byte {at})")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// Something in it has a form that it cannot have.
    #[error("{what} (at byte {at})")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It is packed in a way that is not read here.
    #[error("its content is encoded as {0:?}, which is not read")]
    Encoding(String),
    /// The envelope names a kind that is not in the table.
    #[error("the kind {kind:?} of {api_version:?} is not read from protobuf; send it as JSON")]
    Kind {
        /// The version that it names.
        api_version: String,
        /// The kind.
        kind: String,
    },
}

/// Reads a body: the object, with `apiVersion` and `kind`.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let envelope = Envelope::read(Reader::new(rest, MAGIC.len()))?;
    if !envelope.encoding.is_empty() {
        return Err(Error::Encoding(envelope.encoding));
    }
    let table = Table::get();
    let message = table.kind(&envelope.api_version, &envelope.kind);
    let Some(message) = message else {
        let Envelope { api_version, kind, .. } = envelope;
        return Err(Error::Kind { api_version, kind });
    };
    let mut object = Map::new();
    fields(table, message, envelope.raw, DEPTH, &mut object)?;
    object.insert("apiVersion".to_owned(), envelope.api_version.into());
    object.insert("kind".to_owned(), envelope.kind.into());
    Ok(Value::Object(object))
}

/// Whether objects of this kind can be sent as protobuf.
pub fn knows(api_version: &str, kind: &str) -> bool {
    Table::get().kind(api_version, kind).is_some()
}

/// What is around an object.
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: Reader<'a>,
    encoding: String,
}

impl<'a> Envelope<'a> {
    fn read(mut reader: Reader<'a>) -> Result<Envelope<'a>, Error> {
        let mut envelope = Envelope {
            api_version: String::new(),
            kind: String::new(),
            raw: Reader::new(&[], reader.at()),
            encoding: String::new(),
        };
        while let Some((number, word)) = reader.field()? {
            match number {
                1 => {
                    let mut names = word.bytes()?;
                    while let Some((number, word)) = names.field()? {
                        match number {
                            1 => envelope.api_version = word.text()?.to_owned(),
                            2 => envelope.kind = word.text()?.to_owned(),
                            _ => (),
                        }
                    }
                }
                2 => envelope.raw = word.bytes()?,
                3 => envelope.encoding = word.text()?.to_owned(),
                _ => (),
            }
        }
        Ok(envelope)
    }
}

/// Reads the fields of a message into `object`, which may have some already: parts of a message are merged.
fn fields(
    table: &Table,
    message: &Message,
    mut reader: Reader<'_>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    if depth == 0 {
        return Err(reader.malformed("messages lie too deep in each other"));
    }
    while let Some((number, word)) = reader.field()? {
        let Some(field) = message.fields.iter().find(|field| field.number == number) else {
            continue;
        };
        match (field.many, field.kind) {
            (Many::Inline, Type::Message(index)) => {
                fields(table, table.message(index), word.bytes()?, depth - 1, object)?;
            }
            (Many::One | Many::Inline, _) => one(table, field, word, depth, object)?,
            (Many::List, _) => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let list = list.as_array_mut().expect("a field is always a list or never");
                list.push(value(table, field.kind, word, depth)?.unwrap_or_default());
            }
            (Many::Map, _) => {
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let map = map.as_object_mut().expect("a field is always a map or never");
                let (key, value) = entry(table, field.kind, word.bytes()?, depth)?;
                map.insert(key, value);
            }
        }
    }
    Ok(())
}

fn one(
    table: &Table,
    field: &Field,
    word: Word<'_>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    if let Type::Message(index) = field.kind
        && table.message(index).shape == Shape::Object
    {
        let below = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        let below = below.as_object_mut().expect("a field is always a message or never");
        return fields(table, table.message(index), word.bytes()?, depth - 1, below);
    }
    match value(table, field.kind, word, depth)? {
        Some(Value::String(text)) if text.is_empty() => object.remove(field.name),
        Some(value) => object.insert(field.name.to_owned(), value),
        None => None,
    };
    Ok(())
}

/// An entry of a map; what it leaves out is empty.
fn entry(table: &Table, kind: Type, mut reader: Reader<'_>, depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut content) = (String::new(), None);
    while let Some((number, word)) = reader.field()? {
        match number {
            1 => key = word.text()?.to_owned(),
            2 => content = value(table, kind, word, depth)?,
            _ => (),
        }
    }
    let empty = || match kind {
        Type::Message(_) => Value::Object(Map::new()),
        Type::Text | Type::Bytes => Value::String(String::new()),
        Type::Bool => Value::Bool(false),
        Type::Int | Type::Double => Value::from(0),
    };
    Ok((key, content.unwrap_or_else(empty)))
}

/// A single value; `None`: nothing, as a time that was never set.
fn value(table: &Table, kind: Type, word: Word<'_>, depth: usize) -> Result<Option<Value>, Error> {
    Ok(Some(match kind {
        Type::Text => Value::String(word.text()?.to_owned()),
        Type::Bytes => Value::String(STANDARD.encode(word.bytes()?.rest())),
        Type::Bool => Value::Bool(word.int()? != 0),
        Type::Int => Value::from(word.int()?),
        Type::Double => {
            let number = Number::from_f64(word.double()?);
            Value::Number(number.ok_or_else(|| word.malformed("a number is infinite or none"))?)
        }
        Type::Message(index) => return message(table, table.message(index), word.bytes()?, depth - 1),
    }))
}

fn message(table: &Table, message: &Message, reader: Reader<'_>, depth: usize) -> Result<Option<Value>, Error> {
    let start = reader.clone();
    let mut object = Map::new();
    fields(table, message, reader, depth, &mut object)?;
    let int = |name: &str| object.get(name).and_then(Value::as_i64);
    Ok(match message.shape {
        Shape::Object => Some(Value::Object(object)),
        Shape::Time | Shape::MicroTime => {
            let format = match message.shape {
                Shape::MicroTime => "%Y-%m-%dT%H:%M:%S%.6fZ",
                _ => "%Y-%m-%dT%H:%M:%SZ",
            };
            let Some(seconds) = int("seconds") else { return Ok(None) };
            let nanos = int("nanos").and_then(|nanos| i32::try_from(nanos).ok()).unwrap_or(0);
            let time = Timestamp::new(seconds, nanos).map_err(|_| start.malformed("a time is out of range"))?;
            Some(Value::String(time.strftime(format).to_string()))
        }
        Shape::Json => json(&object, message, &start)?,
        Shape::IntOrText if int("type") == Some(1) => Some(object.remove("strVal").unwrap_or_else(|| "".into())),
        Shape::IntOrText => Some(object.remove("intVal").unwrap_or_else(|| 0.into())),
        Shape::First => message.fields.iter().find_map(|field| object.remove(field.name)),
    })
}

/// What a message that carries JSON says, no deeper than other messages may be.
fn json(object: &Map<String, Value>, message: &Message, start: &Reader<'_>) -> Result<Option<Value>, Error> {
    let text = message.fields.iter().find_map(|field| object.get(field.name));
    let Some(text) = text.and_then(Value::as_str) else {
        return Ok(None);
    };
    let bytes = STANDARD.decode(text).expect("it was encoded just now");
    // The parser bounds its own recursion at 128 levels.
    let value = serde_json::from_slice(&bytes);
    value
        .map(Some)
        .map_err(|_| start.malformed("a field that carries JSON carries something else"))
}
