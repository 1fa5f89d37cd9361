//! What a request sends and nobody reads.
//!
//! Most refusals need no body to be decided on. But a client that is still writing when its connection closes never sees the answer: it is told of
//! a broken connection instead of what it may not do. So what is left of a body is read and thrown away before the answer is sent, up to
//! a size and for a time. Tested here, and over a real socket with the listener.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use crate::limits;

/// Reads a body to its end, within bounds. However that ends, the answer is the same.
pub(crate) async fn discard(body: Body) {
    let rest = Limited::new(body, limits::BODY_BYTES_DISCARDED).into_data_stream();
    let discarding = rest
        .take_while(|chunk| std::future::ready(chunk.is_ok()))
        .for_each(|_| async {});
    let _ = tokio::time::timeout(limits::BODY_DISCARD_WAIT, discarding).await;
}

/// The body of a request that somebody else has, too.
#[derive(Clone)]
pub(crate) struct Unread(Arc<Mutex<Body>>);

impl Unread {
    /// The request, and its body for afterwards. None when there is none, or the client sends it only if it is asked for it.
    pub(crate) fn of(request: Request<Incoming>) -> (Request<Body>, Option<Unread>) {
        if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
            return (request.map(Body::new), None);
        }
        let (parts, body) = request.into_parts();
        let unread = Unread(Arc::new(Mutex::new(Body::new(body))));
        let request = Request::from_parts(parts, Body::new(unread.clone()));
        (request, Some(unread))
    }

    /// Throws away what nobody has read.
    pub(crate) async fn discard(self) {
        if !self.is_end_stream() {
            discard(Body::new(self)).await;
        }
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Unread {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}
