//! What ends when an answer that goes on does.
//!
//! A watch, the output of a task and a stream into it are answered at once and go on for as long as somebody reads them. What is to happen at their
//! end is kept here, and both the body of the answer and whatever else carries it hold this; it happens when the last of them lets go.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt as _;
use http::StatusCode;

use super::audited::Record;

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Lasting(Arc<Mutex<Option<Record>>>);

impl Lasting {
    /// Writes the end into the audit log.
    pub(super) fn keep(&self, record: Record) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }

    /// The answer, whose body holds this.
    pub(super) fn held_by(self, response: Response) -> Response {
        // What the connection becomes holds this itself.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        let (parts, body) = response.into_parts();
        let chunks = body.into_data_stream().map(move |chunk| {
            let _held = &self;
            chunk
        });
        Response::from_parts(parts, Body::from_stream(chunks))
    }
}
