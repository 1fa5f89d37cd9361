//! Reading bodies: size, type, depth and duplicate keys are checked before anything is believed.

use std::fmt;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, Result};
use crate::limits;
use crate::unread;

/// The most duplicate keys that are named.
const DUPLICATES_NAMED: usize = 32;

/// The type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`, or none.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
    /// `application/merge-patch+json`.
    MergePatch,
    /// `application/json-patch+json`.
    JsonPatch,
    /// `application/strategic-merge-patch+json`.
    StrategicMergePatch,
    /// `application/apply-patch+yaml`.
    ApplyPatch,
    /// Anything else.
    Other,
}

impl ContentType {
    /// The type that the headers say; parameters don't matter.
    pub fn of(headers: &HeaderMap) -> ContentType {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return ContentType::Json;
        };
        let text = value.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "" | "application/json" => ContentType::Json,
            "application/yaml" | "application/x-yaml" | "text/yaml" => ContentType::Yaml,
            "application/vnd.kubernetes.protobuf" => ContentType::Protobuf,
            "application/merge-patch+json" => ContentType::MergePatch,
            "application/json-patch+json" => ContentType::JsonPatch,
            "application/strategic-merge-patch+json" => ContentType::StrategicMergePatch,
            "application/apply-patch+yaml" => ContentType::ApplyPatch,
            _ => ContentType::Other,
        }
    }
}

/// A body, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// What it says; of duplicate keys, the last.
    pub value: Value,
    /// The paths of keys that are there more than once.
    pub duplicates: Vec<String>,
}

/// Reads a body whole.
///
/// Of one that is too large some more is read and thrown away: a client that is still writing when the connection closes
/// never sees the answer.
pub async fn read(body: Body) -> Result<Bytes> {
    read_at_most(body, limits::BODY_BYTES).await
}

/// The same with another limit.
pub async fn read_at_most(mut body: Body, limit: usize) -> Result<Bytes> {
    let whole = Limited::new(&mut body, limit).collect();
    let read = tokio::time::timeout(limits::BODY_WAIT, whole).await;
    let read = read.map_err(|_| {
        let seconds = limits::BODY_WAIT.as_secs();
        ApiError::late_body(format!("the body of the request did not come within {seconds} s"))
    })?;
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            unread::discard(body).await;
            Err(ApiError::too_large(format!(
                "the body is larger than {limit} bytes, which is the most that is read"
            )))
        }
        Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Reads an object that was sent with POST, PUT or DELETE.
pub fn object(content_type: ContentType, bytes: &[u8]) -> Result<Decoded> {
    let decoded = match content_type {
        ContentType::Json => json(bytes)?,
        ContentType::Yaml => yaml(bytes)?,
        ContentType::Protobuf => protobuf(bytes)?,
        _ => {
            let message = "the body of the request was in an unknown format - accepted media types include: \
                           application/json, application/yaml, application/vnd.kubernetes.protobuf";
            return Err(ApiError::unsupported_media_type(message));
        }
    };
    if decoded.value.is_object() {
        Ok(decoded)
    } else {
        Err(ApiError::bad_request("the body must be a JSON object"))
    }
}

/// Reads YAML.
pub fn yaml(bytes: &[u8]) -> Result<Decoded> {
    let reader = serde_yaml::Deserializer::from_slice(bytes);
    let decoded = decode(reader).map_err(|error| ApiError::bad_request(format!("the body is not YAML: {error}")))?;
    check_value_depth(&decoded.value, limits::JSON_DEPTH)?;
    Ok(decoded)
}

/// Reads one of Kubernetes' own kinds in the form that newer clients send them in.
fn protobuf(bytes: &[u8]) -> Result<Decoded> {
    let value = muster_protobuf::decode(bytes).map_err(|error| match error {
        muster_protobuf::Error::Kind { .. } => ApiError::unsupported_media_type(format!(
            "{error} - accepted media types include: application/json, application/yaml"
        )),
        error => ApiError::bad_request(format!("the body is not protobuf: {error}")),
    })?;
    check_value_depth(&value, limits::JSON_DEPTH)?;
    Ok(Decoded {
        value,
        duplicates: Vec::new(),
    })
}

/// Reads a value, and which keys are there more than once.
fn decode<'de, D: Deserializer<'de>>(reader: D) -> Result<Decoded, D::Error> {
    let (mut path, mut duplicates) = (String::new(), Vec::new());
    let node = Node {
        path: &mut path,
        duplicates: &mut duplicates,
    };
    let value = node.deserialize(reader)?;
    Ok(Decoded { value, duplicates })
}

/// Reads what is applied: YAML, of which JSON is a part; nothing may be there twice.
pub fn applied(bytes: &[u8]) -> Result<Decoded> {
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    let decoded = if is_json { json(bytes) } else { yaml(bytes) };
    let decoded = decoded.map_err(|mut error| {
        error.message = format!("error decoding YAML: {}", error.message);
        error
    })?;
    if let Some(path) = decoded.duplicates.first() {
        let message = format!("error decoding YAML: the key {path} is there more than once");
        return Err(ApiError::bad_request(message));
    }
    if decoded.value.is_object() {
        Ok(decoded)
    } else {
        Err(ApiError::bad_request("error decoding YAML: the body must be an object"))
    }
}

fn check_value_depth(value: &Value, left: usize) -> Result<()> {
    if left == 0 && (value.is_array() || value.is_object()) {
        return Err(too_deep());
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_value_depth(item, left - 1)),
        Value::Object(map) => map.values().try_for_each(|item| check_value_depth(item, left - 1)),
        _ => Ok(()),
    }
}

fn too_deep() -> ApiError {
    ApiError::bad_request(format!("the body nests deeper than {} levels", limits::JSON_DEPTH))
}

/// Reads JSON.
pub fn json(bytes: &[u8]) -> Result<Decoded> {
    check_depth(bytes)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    decode(&mut reader)
        .and_then(|decoded| reader.end().map(|()| decoded))
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))
}

/// Counts brackets outside of strings, before a parser recurses into them.
fn check_depth(bytes: &[u8]) -> Result<()> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => (),
            b'{' | b'[' => {
                depth += 1;
                if depth > limits::JSON_DEPTH {
                    return Err(too_deep());
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => (),
        }
    }
    Ok(())
}

/// A value at `path`.
struct Node<'a> {
    path: &'a mut String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is too large"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (length, mut values) = (self.path.len(), Vec::new());
        loop {
            self.path.push_str(&format!("[{}]", values.len()));
            let node = Node {
                path: self.path,
                duplicates: self.duplicates,
            };
            let item = items.next_element_seed(node)?;
            self.path.truncate(length);
            match item {
                Some(item) => values.push(item),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let (length, mut map) = (self.path.len(), Map::new());
        while let Some(key) = entries.next_key::<String>()? {
            if key.len() > limits::BODY_BYTES {
                return Err(A::Error::custom("a key is too long"));
            }
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if map.contains_key(&key)
                && self.duplicates.len() < DUPLICATES_NAMED
                && !self.duplicates.contains(self.path)
            {
                self.duplicates.push(self.path.clone());
            }
            let node = Node {
                path: self.path,
                duplicates: self.duplicates,
            };
            let value = entries.next_value_seed(node)?;
            self.path.truncate(length);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicate_keys_are_found_with_their_paths() {
        let text = br#"{"a": 1, "spec": {"env": [{"name": "x", "name": "y"}], "b": 1, "b": 2, "b": 3}}"#;
        let decoded = json(text).expect("JSON");
        assert_eq!(decoded.duplicates, ["spec.env[0].name", "spec.b"]);
        assert_eq!(decoded.value, json!({"a": 1, "spec": {"env": [{"name": "y"}], "b": 3}}));
    }

    #[test]
    fn what_is_applied_has_each_key_once() {
        let yaml = yaml(b"a: {b: 1, b: 2}\nc: [~]\n").expect("YAML");
        assert_eq!(
            (yaml.duplicates, yaml.value),
            (vec!["a.b".to_owned()], json!({"a": {"b": 2}, "c": [null]}))
        );
        for body in [
            &b"a: 1\na: 2"[..],
            b"{\"a\": 1, \"a\": 2}",
            b"a: 1\n---\nb: 1",
            b"[1]",
            b"",
        ] {
            let error = applied(body).expect_err("refused");
            assert!(error.message.starts_with("error decoding YAML: "), "{}", error.message);
        }
        assert_eq!(applied(b" {\"a\": 1}").expect("JSON").value, json!({"a": 1}));
    }

    #[test]
    fn values_are_what_the_ordinary_parser_reads() {
        let text = r#"{"a": [1, -2, 3.5, 18446744073709551615, true, null, "\u00e4\n\"{["], "b": {"c": {}}}"#;
        let expected: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(json(text.as_bytes()).expect("JSON").value, expected);
    }

    #[test]
    fn depth_is_bounded_before_anything_is_parsed() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(nested(limits::JSON_DEPTH).as_bytes()).is_ok());
        let error = json(nested(limits::JSON_DEPTH + 1).as_bytes()).expect_err("too deep");
        assert_eq!(error.reason, "BadRequest");
        assert!(json(nested(1_000_000).as_bytes()).is_err());
        assert!(json(format!("\"{}\"", "[".repeat(100)).as_bytes()).is_ok());
        assert!(yaml(nested(limits::JSON_DEPTH + 1).as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in [&b"[]"[..], b"1", b"", b"{", b"{} {}", b"nul", b"{\"a\": \xff}"] {
            let error = object(ContentType::Json, body).expect_err("refused");
            assert_eq!(error.reason, "BadRequest", "{body:?}");
        }
        let error = object(ContentType::Other, b"{}").expect_err("refused");
        assert_eq!(error.reason, "UnsupportedMediaType");
        for (body, reason) in [
            (&b"{}"[..], "BadRequest"),
            (b"k8s\0\x0a\xff", "BadRequest"),
            (b"k8s\0", "UnsupportedMediaType"),
        ] {
            let error = object(ContentType::Protobuf, body).expect_err("refused");
            assert_eq!(error.reason, reason, "{body:?}");
        }
        assert_eq!(
            object(ContentType::Yaml, b"a: {b: 1}").expect("YAML").value,
            json!({"a": {"b": 1}})
        );
    }
}
