//! The version 2 document as protobuf, in the messages of gnostic's `OpenAPIv2.proto`, which kubectl before 1.29 cannot do without.
//!
//! Only what the document has is written; the numbers of the fields are that file's. Tested below by reading it back, and with the
//! kubectl of Debian, which reads nothing else.

use serde_json::{Map, Value};

/// Writes messages field by field.
#[derive(Default)]
struct Message(Vec<u8>);

/// How a value follows its field number.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Message {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, field: u64, value: &Value) -> &mut Message {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
        self
    }

    fn texts(&mut self, field: u64, value: &Value) -> &mut Message {
        for item in value.as_array().into_iter().flatten() {
            self.text(field, item);
        }
        self
    }

    fn flag(&mut self, field: u64, value: &Value) -> &mut Message {
        if value == &Value::Bool(true) {
            self.tag(field, VARINT);
            self.varint(1);
        }
        self
    }

    fn number(&mut self, field: u64, value: &Value) -> &mut Message {
        if let Some(number) = value.as_f64() {
            self.tag(field, FIXED64);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
        self
    }

    fn count(&mut self, field: u64, value: &Value) -> &mut Message {
        if let Some(number) = value.as_u64() {
            self.tag(field, VARINT);
            self.varint(number);
        }
        self
    }

    fn message(&mut self, field: u64, message: Message) -> &mut Message {
        self.bytes(field, &message.0)
    }

    /// A map is a list of pairs of name (1) and value (2).
    fn named(&mut self, field: u64, name: &str, value: Message) -> &mut Message {
        let mut pair = Message::default();
        pair.bytes(1, name.as_bytes()).message(2, value);
        self.message(field, pair)
    }

    fn extensions(&mut self, field: u64, map: &Value) -> &mut Message {
        for (name, value) in entries(map).filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, any(value));
        }
        self
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// `Any` holds text; JSON is YAML.
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

/// The document, as made by `v2`.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &value["info"]["title"]).text(2, &value["info"]["version"]);
    let mut paths = Message::default();
    for (path, item) in entries(&value["paths"]) {
        paths.named(2, path, path_item(item));
    }
    let mut definitions = Message::default();
    for (name, value) in entries(&value["definitions"]) {
        definitions.named(1, name, schema(value));
    }
    let mut document = Message::default();
    document
        .text(1, &value["swagger"])
        .message(2, info)
        .message(8, paths)
        .message(9, definitions);
    document.0
}

fn path_item(value: &Value) -> Message {
    let mut message = Message::default();
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(value) = value.get(method) {
            message.message(field, operation(value));
        }
    }
    message
}

fn operation(value: &Value) -> Message {
    let mut message = Message::default();
    message
        .texts(1, &value["tags"])
        .text(3, &value["description"])
        .text(5, &value["operationId"])
        .texts(6, &value["produces"])
        .texts(7, &value["consumes"]);
    for value in value["parameters"].as_array().into_iter().flatten() {
        // ParametersItem.parameter
        let mut item = Message::default();
        item.message(1, parameter(value));
        message.message(8, item);
    }
    let mut responses = Message::default();
    for (code, value) in entries(&value["responses"]) {
        let mut item = Message::default();
        item.message(1, schema(&value["schema"]));
        let mut response = Message::default();
        response.text(1, &value["description"]).message(2, item);
        // ResponseValue.response
        let mut choice = Message::default();
        choice.message(1, response);
        responses.named(1, code, choice);
    }
    message.message(9, responses).extensions(13, value);
    message
}

fn parameter(value: &Value) -> Message {
    let mut own = Message::default();
    let mut choice = Message::default();
    match value["in"].as_str() {
        Some("body") => {
            own.text(2, &value["name"])
                .text(3, &value["in"])
                .flag(4, &value["required"])
                .message(5, schema(&value["schema"]));
            // Parameter.body_parameter
            choice.message(1, own);
        }
        place => {
            own.flag(1, &value["required"])
                .text(2, &value["in"])
                .text(3, &value["description"])
                .text(4, &value["name"]);
            // Only parameters of the query may be empty, which takes a number of its own and moves the type.
            let (kind, which) = if place == Some("query") { (6, 3) } else { (5, 4) };
            own.text(kind, &value["type"]);
            let mut plain = Message::default();
            plain.message(which, own);
            // Parameter.non_body_parameter
            choice.message(2, plain);
        }
    }
    choice
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    message
        .text(1, &value["$ref"])
        .text(2, &value["format"])
        .text(4, &value["description"])
        .number(7, &value["maximum"])
        .flag(8, &value["exclusiveMaximum"])
        .number(9, &value["minimum"])
        .flag(10, &value["exclusiveMinimum"])
        .count(11, &value["maxLength"])
        .count(12, &value["minLength"])
        .text(13, &value["pattern"])
        .count(14, &value["maxItems"])
        .count(15, &value["minItems"])
        .texts(19, &value["required"]);
    for option in value["enum"].as_array().into_iter().flatten() {
        message.message(20, any(option));
    }
    if let Some(entries) = value.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, schema(entries));
        message.message(21, item);
    }
    if value["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &value["type"]);
        message.message(22, item);
    }
    if let Some(items) = value.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        message.message(23, item);
    }
    if value["properties"].is_object() {
        let mut properties = Message::default();
        for (name, value) in entries(&value["properties"]) {
            properties.named(1, name, schema(value));
        }
        message.message(25, properties);
    }
    message.extensions(31, value);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    /// The fields of a message: number and content (of what has a length).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = match tag & 7 {
                VARINT => {
                    varint(&mut bytes);
                    0
                }
                FIXED64 => 8,
                BYTES => usize::try_from(varint(&mut bytes)).unwrap(),
                other => panic!("kind {other}"),
            };
            found.push((tag >> 3, &bytes[..length]));
            bytes = &bytes[length..];
        }
        found
    }

    fn one(bytes: &[u8], field: u64) -> &[u8] {
        fields(bytes)
            .into_iter()
            .find(|(number, _)| *number == field)
            .unwrap()
            .1
    }

    /// The value of the pair of that name in the map at `field`.
    fn named<'a>(bytes: &'a [u8], field: u64, name: &str) -> &'a [u8] {
        let pairs = fields(bytes).into_iter().filter(|(number, _)| *number == field);
        let pair = pairs
            .map(|(_, pair)| pair)
            .find(|pair| one(pair, 1) == name.as_bytes())
            .expect(name);
        one(pair, 2)
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let bytes = document(&super::super::v2::document(&kinds::resources()));
        assert_eq!(one(&bytes, 1), b"2.0");
        let task = named(one(&bytes, 9), 1, "dev.muster.v1.Task");
        let kind: Value = serde_json::from_slice(one(named(task, 31, "x-kubernetes-group-version-kind"), 2)).unwrap();
        assert_eq!(kind[0]["kind"], "Task");
        let spec = named(one(task, 25), 1, "spec");
        assert_eq!(one(named(one(spec, 25), 1, "user"), 19), b"uid");
        let command = named(one(spec, 25), 1, "command");
        assert_eq!(one(one(command, 22), 1), b"array");
        assert_eq!(one(one(one(one(command, 23), 1), 22), 1), b"string");
        let patch = one(
            named(
                one(&bytes, 8),
                2,
                "/apis/muster.dev/v1/namespaces/{namespace}/tasks/{name}",
            ),
            8,
        );
        let parameters = fields(patch)
            .into_iter()
            .filter(|(number, _)| *number == 8)
            .map(|(_, item)| one(item, 1));
        let names: Vec<&[u8]> = parameters
            .filter_map(|item| fields(item).into_iter().find(|(number, _)| *number == 2))
            .map(|(_, plain)| one(fields(plain)[0].1, 4))
            .collect();
        assert!(names.contains(&b"dryRun".as_slice()));
    }

    #[test]
    fn numbers_of_any_size_are_written_in_seven_bits_each() {
        let mut message = Message::default();
        message.count(1, &serde_json::json!(300));
        assert_eq!(message.0, [0x08, 0xac, 0x02]);
    }
}
