//! What ends when an answer that goes on does.
//!
//! A watch, the output of a task and a stream into it are answered at once and go on for as long as somebody reads them. What is to happen at their
//! end is kept here, and both the body of the answer and whatever else carries it hold this; it happens when the last of them lets go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt as _;
use http::StatusCode;

use super::audited::Record;
use crate::lanes::Stay;

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Lasting(Arc<Mutex<Ends>>);

/// What ends with it.
#[derive(Default)]
struct Ends {
    record: Option<Record>,
    stay: Option<Stay>,
}

impl Lasting {
    /// Writes the end into the audit log.
    pub(super) fn keep_record(&self, record: Record) {
        self.lock().record = Some(record);
    }

    /// Goes on to be counted for its user.
    pub(super) fn keep_stay(&self, stay: Stay) {
        self.lock().stay = Some(stay);
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
