//! An object as the hub holds it: the bytes that the store holds, and what selectors need to know about it.
//!
//! The stored bytes lack `metadata.resourceVersion`, which is the revision of the write. Stored objects all begin with the same
//! bytes, `{"apiVersion":…,"kind":…,"metadata":{`, so the hub shares the store's buffer and puts the version in when it writes
//! the object out: nothing is encoded twice and nothing is kept twice. A deleted object is its last bytes with a later version.

use std::borrow::{Borrow, Cow};

use bytes::Bytes;
use muster_store::{Entry, Key, Revision};
use serde_json::{Map, Value};

use super::kinds::{HubKind, KindId};
use crate::keys::{self, Parts};

/// See the module.
#[derive(Debug)]
pub struct Object {
    /// Where it is in the store.
    pub key: Key,
    /// Of which kind it is.
    pub kind: KindId,
    /// The revision of its last write.
    pub revision: Revision,
    /// The revision at which it came into being.
    pub created: Revision,
    value: Bytes,
    /// The selectable fields of its kind, then keys and values of its labels.
    texts: Texts,
    /// How many of them are fields.
    fields: u16,
    /// Where the resource version goes in.
    splice: u16,
}

/// Short texts in one allocation: each a length and its bytes. An object has about five of them, and there are tens of thousands of
/// objects, those of the past included.
#[derive(Debug)]
struct Texts(Box<[u8]>);

impl Texts {
    fn pack<'a>(texts: impl Iterator<Item = Cow<'a, str>>) -> Texts {
        let mut out = Vec::new();
        for text in texts {
            let length = u32::try_from(text.len()).expect("objects are limited to far less than 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        Texts(out.into())
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            std::str::from_utf8(text).ok()
        })
    }
}

impl Object {
    /// Takes in what the store holds; `None`: it is no object of this kind.
    pub(super) fn new(id: KindId, kind: &HubKind, entry: &Entry) -> Option<Object> {
        let json: Value = serde_json::from_slice(&entry.value).ok()?;
        let metadata = json.get("metadata")?.as_object()?;
        let head = match &kind.head {
            Some(head) => Cow::from(head),
            None => Cow::from(self::head(
                json.get("apiVersion")?.as_str()?,
                json.get("kind")?.as_str()?,
            )),
        };
        let value = if entry.value.starts_with(head.as_bytes()) {
            entry.value.clone()
        } else {
            encode_behind(&head, json.as_object()?)
        };
        let labels = metadata.get("labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten().filter_map(|(key, value)| {
            let value = value.as_str()?;
            Some([Cow::from(key), Cow::from(value)])
        });
        let fields = kind.noted().iter().map(|field| field.text(&json));
        Some(Object {
            key: entry.key.clone(),
            kind: id,
            revision: entry.mod_revision,
            created: entry.create_revision,
            value,
            texts: Texts::pack(fields.chain(labels.flatten())),
            fields: u16::try_from(kind.noted().len()).expect("a kind has a handful of selectable fields"),
            splice: u16::try_from(head.len()).ok()?,
        })
    }

    /// Appends everything about this version but key and kind, in the order that makes versions of an object alike.
    pub(super) fn flatten(&self, out: &mut Vec<u8>) {
        let texts = u32::try_from(self.texts.0.len()).expect("objects are limited to far less than 4 GiB");
        out.extend_from_slice(&self.fields.to_le_bytes());
        out.extend_from_slice(&self.splice.to_le_bytes());
        out.extend_from_slice(&texts.to_le_bytes());
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.texts.0);
        out.extend_from_slice(&self.value);
    }

    /// The version that was flattened to this; `None`: none was.
    pub(super) fn unflatten(key: &Key, kind: KindId, flat: Vec<u8>) -> Option<Object> {
        let (fields, rest) = flat.split_first_chunk()?;
        let (splice, rest) = rest.split_first_chunk()?;
        let (texts, rest) = rest.split_first_chunk()?;
        let (created, rest) = rest.split_first_chunk()?;
        let (revision, rest) = rest.split_first_chunk()?;
        let (texts, value) = rest.split_at_checked(u32::from_le_bytes(*texts) as usize)?;
        Some(Object {
            key: key.clone(),
            kind,
            revision: Revision::from_le_bytes(*revision),
            created: Revision::from_le_bytes(*created),
            texts: Texts(texts.into()),
            fields: u16::from_le_bytes(*fields),
            splice: u16::from_le_bytes(*splice),
            value: {
                let start = flat.len() - value.len();
                Bytes::from(flat).slice(start..)
            },
        })
    }

    fn parts(&self) -> Parts<'_> {
        keys::parts(self.key.as_str()).expect("only keys of objects are taken in")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.parts().name
    }

    /// Its namespace; empty for none.
    pub fn namespace(&self) -> &str {
        self.parts().namespace
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let mut labels = self.texts.iter().skip(usize::from(self.fields));
        while let (Some(known), Some(value)) = (labels.next(), labels.next()) {
            if known == key {
                return Some(value);
            }
        }
        None
    }

    /// The text of the selectable field of this number.
    pub fn field(&self, index: usize) -> &str {
        let mut fields = self.texts.iter().take(usize::from(self.fields));
        fields.nth(index).unwrap_or_default()
    }

    /// Appends the object as JSON, as of its own revision.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_at(self.revision, out);
    }

    /// Appends the object as JSON, as of `revision`: that of its deletion.
    pub fn write_at(&self, revision: Revision, out: &mut Vec<u8>) {
        let (head, rest) = self.value.split_at(usize::from(self.splice));
        out.extend_from_slice(head);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(revision.to_string().as_bytes());
        out.push(b'"');
        if rest.first() != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(rest);
    }

    /// Whether its text contains this one. A guess that saves reading objects that don't.
    pub fn contains(&self, text: &str) -> bool {
        std::str::from_utf8(&self.value).is_ok_and(|value| value.contains(text))
    }

    /// The object as JSON text.
    pub fn bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.size());
        self.write(&mut out);
        out.into()
    }

    /// About how many bytes the text has; never fewer.
    pub fn size(&self) -> usize {
        self.value.len() + 48
    }

    /// The object, as of `revision`.
    pub fn json_at(&self, revision: Revision) -> Value {
        let mut json: Value = serde_json::from_slice(&self.value).expect("checked when it was taken in");
        json["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        json
    }

    /// The object.
    pub fn json(&self) -> Value {
        self.json_at(self.revision)
    }
}

/// What the bytes of every stored object of a kind begin with.
pub(super) fn head(api_version: &str, kind: &str) -> String {
    format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}","metadata":{{"#)
}

/// Encodes an object for the store: without resource version, in the order that the hub relies on.
pub fn encode(api_version: &str, kind: &str, object: impl Borrow<Map<String, Value>>) -> Bytes {
    encode_behind(&head(api_version, kind), object.borrow())
}

fn encode_behind(head: &str, object: &Map<String, Value>) -> Bytes {
    let mut out = head.as_bytes().to_vec();
    let metadata = object.get("metadata").and_then(Value::as_object);
    let metadata = metadata.into_iter().flatten();
    for (index, (key, value)) in metadata.filter(|(key, _)| *key != "resourceVersion").enumerate() {
        append(&mut out, index > 0, key, value);
    }
    out.push(b'}');
    let rest = object.iter();
    for (key, value) in rest.filter(|(key, _)| !["apiVersion", "kind", "metadata"].contains(&key.as_str())) {
        append(&mut out, true, key, value);
    }
    out.push(b'}');
    out.shrink_to_fit();
    out.into()
}

/// Appends a member of an object, behind others or as the first.
fn append(out: &mut Vec<u8>, behind: bool, key: &str, value: &Value) {
    const WRITTEN: &str = "values are written to memory";
    if behind {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, key).expect(WRITTEN);
    out.push(b':');
    serde_json::to_writer(out, value).expect(WRITTEN);
}
