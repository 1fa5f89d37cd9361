//! The table of messages, read once.

use std::collections::BTreeMap;
use std::sync::LazyLock;

const TEXT: &str = include_str!("table.txt");

/// Every message, and which of them can be sent.
#[derive(Debug, Default)]
pub(crate) struct Table {
    messages: Vec<Message>,
    kinds: BTreeMap<(&'static str, &'static str), usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) shape: Shape,
    pub(crate) fields: Vec<Field>,
}

/// What the JSON of a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An object of its fields.
    #[default]
    Object,
    /// A text: a point in time, in whole seconds.
    Time,
    /// The same, in microseconds.
    MicroTime,
    /// What its only field says, which is JSON.
    Json,
    /// The first of its fields that is there.
    First,
    /// A number or a text, as its first field says.
    IntOrText,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) many: Many,
    pub(crate) kind: Type,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Many {
    One,
    List,
    /// With texts as keys.
    Map,
    /// What the message has is the outer one's.
    Inline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    /// In JSON, base64.
    Bytes,
    Bool,
    Int,
    Double,
    /// The message of this number.
    Message(usize),
}

impl Table {
    /// The only one.
    pub(crate) fn get() -> &'static Table {
        static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TEXT).expect("the table is checked by a test"));
        &TABLE
    }

    /// The message of a kind.
    pub(crate) fn kind(&self, api_version: &str, kind: &str) -> Option<&Message> {
        let index = self
            .kinds
            .get(&(api_version, kind))
            .or_else(|| self.kinds.get(&("*", kind)));
        index.map(|index| self.message(*index))
    }

    pub(crate) fn message(&self, index: usize) -> &Message {
        &self.messages[index]
    }

    /// `None`: a line is not understood, or names a message that is not there.
    fn parse(text: &'static str) -> Option<Table> {
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        let names = lines().filter_map(|line| line.strip_prefix("message ")?.split(' ').next());
        let numbers: BTreeMap<&str, usize> = names.enumerate().map(|(index, name)| (name, index)).collect();
        let mut table = Table::default();
        for line in lines() {
            let words: Vec<&'static str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["kind", version, kind, message] => {
                    table.kinds.insert((version, kind), *numbers.get(message)?);
                }
                ["message", _] => table.messages.push(Message::default()),
                ["message", _, shape] => table.messages.push(Message {
                    shape: Shape::parse(shape)?,
                    fields: Vec::new(),
                }),
                [number, name, many @ .., kind] => {
                    let many = match many {
                        [] => Many::One,
                        ["list"] => Many::List,
                        ["map"] => Many::Map,
                        ["inline"] => Many::Inline,
                        _ => return None,
                    };
                    let kind = Type::parse(kind).or_else(|| Some(Type::Message(*numbers.get(kind)?)))?;
                    let number = number.parse().ok()?;
                    let field = Field {
                        number,
                        name,
                        many,
                        kind,
                    };
                    table.messages.last_mut()?.fields.push(field);
                }
                _ => return None,
            }
        }
        Some(table)
    }
}

impl Shape {
    fn parse(text: &str) -> Option<Shape> {
        Some(match text {
            "time" => Shape::Time,
            "micro-time" => Shape::MicroTime,
            "json" => Shape::Json,
            "first" => Shape::First,
            "int-or-text" => Shape::IntOrText,
            _ => return None,
        })
    }
}

impl Type {
    fn parse(text: &str) -> Option<Type> {
        Some(match text {
            "text" => Type::Text,
            "bytes" => Type::Bytes,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "double" => Type::Double,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        let table = Table::parse(TEXT).expect("understood");
        assert!(table.kinds.len() >= 20 && table.messages.len() >= 60);
        for message in &table.messages {
            let numbers: std::collections::BTreeSet<u32> = message.fields.iter().map(|field| field.number).collect();
            assert_eq!(numbers.len(), message.fields.len(), "{message:?}");
            let carries = message.fields.len() == 1 && message.fields[0].kind == Type::Bytes;
            assert!(message.shape != Shape::Json || carries, "{message:?}");
        }
    }

    #[test]
    fn kinds_are_known_by_version_and_name() {
        let table = Table::get();
        let namespace = table.kind("v1", "Namespace").expect("it is there");
        assert_eq!(namespace.fields[0].name, "metadata");
        assert!(table.kind("v2", "Namespace").is_none());
        assert!(table.kind("any.dev/v7", "DeleteOptions").is_some());
        assert!(Table::parse("message a.b.C\n  1 x d.e.F").is_none());
    }
}
