//! Answers, in the form that the client takes.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use muster_store::Revision;
use serde_json::{Value, json};

use crate::error::Result;
use crate::hub::Object;
use crate::negotiate::{self, Form};
use crate::registry::{Kind, Written};
use crate::table::{Include, Look};

use super::Call;

/// Shows the objects of a kind in one form.
pub(crate) struct Renderer {
    pub(crate) kind: Arc<Kind>,
    pub(crate) form: Form,
    include: Include,
    now: muster_api::Timestamp,
}

impl Renderer {
    /// As the request wants it.
    pub(crate) fn new(call: &Call, kind: &Arc<Kind>) -> Result<Renderer> {
        Ok(Renderer {
            kind: kind.clone(),
            form: negotiate::form(call.headers())?,
            include: Include::parse(call.query.get("includeObject"))?,
            now: call.state.env.now(),
        })
    }

    /// Ages are told as of this time from now on.
    pub(crate) fn set_now(&mut self, now: muster_api::Timestamp) {
        self.now = now;
    }

    fn look(&self, version: &'static str) -> Look<'static> {
        Look {
            version,
            include: self.include,
            now: self.now,
        }
    }

    /// Whether the object's bytes are what the client wants.
    pub(crate) fn is_verbatim(&self, object: &Object) -> bool {
        self.form == Form::Full && self.kind.is_verbatim(object.revision)
    }

    /// Appends an object of the hub, as an item of a list (`item`) or on its own.
    pub(crate) fn object(&self, object: &Object, revision: Revision, item: bool, out: &mut Vec<u8>) {
        if self.is_verbatim(object) {
            object.write_at(revision, out);
        } else {
            let value = self.kind.show(object.json_at(revision));
            self.value(value, item, true, out);
        }
    }

    /// Appends an object, as an item of a list (`item`) or on its own.
    pub(crate) fn value(&self, value: Value, item: bool, definitions: bool, out: &mut Vec<u8>) {
        match self.form {
            Form::Full => put(&value, out),
            Form::Partial => put(&partial(&value), out),
            Form::Table(version) if item => self.kind.printer.row(&self.look(version), &value, out),
            Form::Table(version) => self
                .kind
                .printer
                .single(&self.look(version), &value, false, definitions, out),
        }
    }

    /// Appends a bookmark.
    pub(crate) fn bookmark(&self, revision: Revision, initial_end: bool, out: &mut Vec<u8>) {
        let resource = &self.kind.resource;
        let mut bookmark = json!({
            "kind": resource.kind,
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.form {
            Form::Full => put(&bookmark, out),
            Form::Partial => put(&partial(&bookmark), out),
            Form::Table(version) => self
                .kind
                .printer
                .single(&self.look(version), &bookmark, true, false, out),
        }
    }

    /// Appends the beginning of a list, up to its items.
    pub(crate) fn begin_list(&self, metadata: &Value, out: &mut Vec<u8>) {
        let resource = &self.kind.resource;
        let (kind, version) = match self.form {
            Form::Full => (format!("{}List", resource.kind), resource.api_version()),
            Form::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            Form::Table(version) => return self.kind.printer.begin(&self.look(version), metadata, true, out),
        };
        let mut list = json!({"kind": kind, "apiVersion": version, "metadata": metadata}).to_string();
        list.pop();
        list.push_str(",\"items\":[");
        out.extend_from_slice(list.as_bytes());
    }

    /// An object as the whole answer.
    pub(crate) fn answer(&self, code: StatusCode, value: Value, warnings: &[String]) -> Response {
        let mut out = Vec::new();
        self.value(value, false, true, &mut out);
        let mut response = json_response(code, out.into());
        for warning in warnings {
            if let Ok(value) = HeaderValue::from_str(&warning_header(warning)) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        response
    }

    /// What a write left, as the whole answer.
    pub(crate) fn written(&self, code: StatusCode, written: Written) -> Response {
        self.answer(code, written.object, &written.warnings)
    }
}

/// `299 - "text"`, with what a header cannot hold made harmless.
fn warning_header(text: &str) -> String {
    let safe: String = text
        .chars()
        .map(|character| {
            if character.is_control() || !character.is_ascii() {
                '?'
            } else {
                character
            }
        })
        .collect();
    format!("299 - \"{}\"", safe.replace('\\', "\\\\").replace('"', "\\\""))
}

fn put(value: &Value, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("values are written to memory");
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A body of JSON.
pub(crate) fn json_response(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A value as the whole answer.
pub(crate) fn json_value(code: StatusCode, value: &impl serde::Serialize) -> Response {
    let bytes = serde_json::to_vec(value).expect("plain data goes into memory");
    json_response(code, bytes.into())
}
