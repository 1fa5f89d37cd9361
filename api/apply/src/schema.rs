//! What a schema says about how values are merged.

use std::collections::BTreeMap;

use serde_json::Value;

/// How the objects of a kind are merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    pub(crate) root: Type,
}

/// How a value is merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Type {
    /// As a whole: scalars, and lists and maps that belong to one writer.
    Whole,
    /// As it looks: maps by entry, everything else as a whole.
    #[default]
    Deduced,
    /// By field and entry.
    Map {
        /// The fields that are declared.
        fields: BTreeMap<Box<str>, Type>,
        /// What other entries are.
        entries: Box<Type>,
    },
    /// A list without order and without doubles, by item.
    Set,
    /// A list whose items are told apart by keys.
    List {
        /// The keys.
        keys: Vec<Key>,
        /// What items are.
        items: Box<Type>,
    },
}

/// A key of the items of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The field.
    pub name: Box<str>,
    /// What it is where it is left out.
    pub default: Option<Value>,
}

impl Schema {
    /// Of a kind: its structural schema, and the schema of metadata.
    pub fn new(kind: &Value, metadata: &Value) -> Schema {
        let mut root = Type::of(kind);
        if let Type::Map { fields, .. } = &mut root {
            fields.insert("metadata".into(), Type::of(metadata));
        }
        Schema { root }
    }

    /// How a whole object is merged.
    pub fn root(&self) -> &Type {
        &self.root
    }
}

/// What is not declared.
const UNKNOWN: &Type = &Type::Deduced;

impl Type {
    /// What a structural OpenAPI schema says.
    pub fn of(schema: &Value) -> Type {
        let text = |name: &str| schema[name].as_str().unwrap_or_default();
        if text("x-kubernetes-map-type") == "atomic" || schema["x-kubernetes-int-or-string"] == true {
            return Type::Whole;
        }
        match text("type") {
            "array" => match text("x-kubernetes-list-type") {
                "set" => Type::Set,
                "map" => {
                    let names = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                    let properties = &schema["items"]["properties"];
                    let keys = names.filter_map(Value::as_str).map(|name| Key {
                        name: name.into(),
                        default: properties[name].get("default").cloned(),
                    });
                    Type::List {
                        keys: keys.collect(),
                        items: Box::new(Type::of(&schema["items"])),
                    }
                }
                _ => Type::Whole,
            },
            "" | "object" => match (schema.get("properties"), schema.get("additionalProperties")) {
                (None, None) => Type::Deduced,
                (properties, entries) => {
                    let properties = properties.and_then(Value::as_object).into_iter().flatten();
                    Type::Map {
                        fields: properties
                            .map(|(name, below)| (name.as_str().into(), Type::of(below)))
                            .collect(),
                        entries: Box::new(
                            entries
                                .filter(|below| below.is_object())
                                .map_or(Type::Deduced, Type::of),
                        ),
                    }
                }
            },
            _ => Type::Whole,
        }
    }

    /// What the field or entry of that name is, and whether it is a declared field.
    pub(crate) fn below(&self, name: &str) -> (&Type, bool) {
        match self {
            Type::Map { fields, entries } => match fields.get(name) {
                Some(below) => (below, true),
                None => (entries, false),
            },
            _ => (UNKNOWN, false),
        }
    }

    /// What items are.
    pub(crate) fn item(&self) -> &Type {
        match self {
            Type::List { items, .. } => items,
            Type::Set => &Type::Whole,
            _ => UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_says_how_values_merge() {
        let check = |schema: Value, expect: Type| assert_eq!(Type::of(&schema), expect, "{schema}");
        check(json!({"type": "string"}), Type::Whole);
        check(json!({"x-kubernetes-int-or-string": true}), Type::Whole);
        check(json!({"type": "array", "items": {"type": "string"}}), Type::Whole);
        check(json!({"type": "array", "x-kubernetes-list-type": "set"}), Type::Set);
        check(
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            Type::Deduced,
        );
        check(json!({"x-kubernetes-preserve-unknown-fields": true}), Type::Deduced);
        check(
            json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {}}),
            Type::Whole,
        );
        let map = Type::Map {
            fields: BTreeMap::new(),
            entries: Box::new(Type::Whole),
        };
        check(
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            map.clone(),
        );
        let item = json!({"type": "object", "properties": {"port": {"type": "integer", "default": 80}}});
        let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"], "items": item});
        let key = Key {
            name: "port".into(),
            default: Some(json!(80)),
        };
        let items = Box::new(Type::of(&item));
        check(list, Type::List { keys: vec![key], items });
        let (below, declared) = map.below("x");
        assert_eq!((below, declared), (&Type::Whole, false));
    }
}
