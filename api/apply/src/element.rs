//! The steps of a path into an object, and how they are written.

use std::fmt;

use serde_json::Value;

use crate::schema::Key;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of an object, or an entry of a map.
    Field(Box<str>),
    /// The item of a list whose keys have these values: JSON with the keys in order, as in `{"name":"a"}`.
    Key(Box<str>),
    /// The item of a list that is this: JSON.
    Value(Box<str>),
    /// The item of a list at this place. Only where nothing better tells items apart.
    Index(usize),
}

/// The way from the top of an object to a place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(pub Vec<Element>);

impl Element {
    /// A field.
    pub fn field(name: &str) -> Element {
        Element::Field(name.into())
    }

    /// The item of a set.
    pub fn of_value(item: &Value) -> Element {
        Element::Value(canonical(item).into())
    }

    /// The item of a list with keys; `None`: it has none of them.
    pub fn of_item(keys: &[Key], item: &Value) -> Option<Element> {
        let pairs = keys.iter().filter_map(|key| {
            let value = item.get(&*key.name).filter(|value| !value.is_null());
            Some((&*key.name, value.or(key.default.as_ref())?))
        });
        let text = pairs_text(pairs.collect())?;
        Some(Element::Key(text.into()))
    }

    /// As in the keys of `fieldsV1`.
    pub fn encode(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(keys) => format!("k:{keys}"),
            Element::Value(value) => format!("v:{value}"),
            Element::Index(index) => format!("i:{index}"),
        }
    }

    /// Reads what [`Element::encode`] wrote; `None`: it is something else.
    pub fn decode(text: &str) -> Option<Element> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Element::field(rest),
            "k" => {
                let keys: serde_json::Map<String, Value> = serde_json::from_str(rest).ok()?;
                let pairs = keys.iter().map(|(name, value)| (name.as_str(), value));
                Element::Key(pairs_text(pairs.collect())?.into())
            }
            "v" => Element::of_value(&serde_json::from_str(rest).ok()?),
            "i" => Element::Index(rest.parse().ok()?),
            _ => return None,
        })
    }
}

fn pairs_text(mut pairs: Vec<(&str, &Value)>) -> Option<String> {
    pairs.sort_by_key(|(name, _)| *name);
    let texts: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{}:{}", Value::from(name), canonical(value)))
        .collect();
    (!texts.is_empty()).then(|| format!("{{{}}}", texts.join(",")))
}

/// Equal values have equal texts: `1.0` is `1`, and entries of objects are in order.
fn canonical(value: &Value) -> String {
    /// Up to here every whole number of a double is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() <= EXACT => format!("{}", float as i64),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", texts.join(","))
        }
        Value::Object(map) => {
            let pairs = map.iter().map(|(name, value)| (name.as_str(), value)).collect();
            pairs_text(pairs).unwrap_or_else(|| "{}".to_owned())
        }
        other => other.to_string(),
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Value(value) => write!(f, "[={value}]"),
            Element::Index(index) => write!(f, "[{index}]"),
            Element::Key(keys) => {
                let keys: serde_json::Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let texts: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", texts.join(","))
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|element| element.fmt(f))
    }
}

impl FromIterator<Element> for Path {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Path {
        Path(elements.into_iter().collect())
    }
}

impl Path {
    /// A path of fields only.
    pub fn of_fields(names: &[&str]) -> Path {
        names.iter().map(|name| Element::field(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_are_written_as_others_write_them() {
        for (text, shown) in [
            ("f:spec", ".spec"),
            ("f:a.b/c", ".a.b/c"),
            (r#"k:{"name":"x","port":1}"#, r#"[name="x",port=1]"#),
            (r#"v:"x""#, r#"[="x"]"#),
            ("v:1", "[=1]"),
            ("i:3", "[3]"),
        ] {
            let element = Element::decode(text).expect(text);
            assert_eq!((element.encode().as_str(), element.to_string().as_str()), (text, shown));
        }
        for text in ["", ".", "f", "k:{}", "k:1", "v:", "i:-1", "x:1"] {
            assert_eq!(Element::decode(text), None, "{text}");
        }
    }

    #[test]
    fn equal_items_are_one_element() {
        let keys = |text: &str| Element::decode(text).expect(text);
        assert_eq!(keys(r#"k:{"b":2,"a":1.0}"#), keys(r#"k:{"a":1,"b":2}"#));
        assert_eq!(Element::of_value(&json!(2.0)), Element::of_value(&json!(2)));
        let key = |name: &str, default| Key {
            name: name.into(),
            default,
        };
        let both = [key("port", None), key("protocol", Some(json!("TCP")))];
        let item = |item: Value| Element::of_item(&both, &item);
        assert_eq!(item(json!({"port": 1})), item(json!({"protocol": "TCP", "port": 1})));
        assert_eq!(
            item(json!({"port": 1, "x": 2})).map(|item| item.encode()),
            Some(r#"k:{"port":1,"protocol":"TCP"}"#.to_owned())
        );
        assert_eq!(Element::of_item(&[key("name", None)], &json!({"x": 1})), None);
        assert_eq!(Element::of_item(&[key("name", None)], &json!("x")), None);
    }
}
