//! A registry that does what it is told, also wrong things.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, io::Error>;

/// What is done wrong with the next answer to a matching request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answered so.
    Status(StatusCode),
    /// 429, and when to come again.
    Busy(&'static str),
    /// Not answered.
    Silent,
    /// So many bytes of the body come, then the connection ends.
    Cut(usize),
    /// So many bytes of the body come, then nothing.
    Stall(usize),
    /// This body instead.
    Instead(Vec<u8>),
    /// Pointed to this address.
    Elsewhere(String),
    /// All of it, whatever part was asked for.
    Whole,
    /// All of it, when a file there has taken all the room that there was.
    Fill(PathBuf),
}

#[derive(Default)]
pub(crate) struct State {
    /// By path: content type and bytes.
    pub(crate) things: BTreeMap<String, (String, Vec<u8>)>,
    /// Done once each, to requests whose path contains the word.
    pub(crate) faults: Vec<(String, Fault)>,
    /// What has to be shown, and the challenge for who does not.
    pub(crate) door: Option<(String, String)>,
    /// Who gives out tokens wants to see this.
    pub(crate) login: Option<String>,
    /// Path, range and authorization of every request.
    pub(crate) asked: Vec<(String, Option<String>, Option<String>)>,
}

/// A running registry.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Registry { address, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What an image here is called.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        self.state().faults.push((path.to_owned(), fault));
    }

    pub(crate) fn blob(&self, bytes: &[u8], kind: &str) -> Value {
        let digest = digest(bytes);
        let thing = ("application/octet-stream".to_owned(), bytes.to_vec());
        self.state()
            .things
            .insert(format!("/v2/team/app/blobs/{digest}"), thing);
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// Puts a manifest or an index here, by its digest and this tag; returns its descriptor.
    pub(crate) fn document(&self, document: &Value, tag: &str, kind: &str) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = digest(&bytes);
        for reference in [digest.as_str(), tag] {
            let thing = (kind.to_owned(), bytes.clone());
            self.state()
                .things
                .insert(format!("/v2/team/app/manifests/{reference}"), thing);
        }
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// How often a path that contains this was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.state()
            .asked
            .iter()
            .filter(|(asked, _, _)| asked.contains(path))
            .count()
    }
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn header(request: &Request<Incoming>, name: http::HeaderName) -> Option<String> {
    Some(request.headers().get(name)?.to_str().unwrap().to_owned())
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let (range, shown) = (header(&request, RANGE), header(&request, AUTHORIZATION));
    let (fault, door, login, thing) = {
        let mut state = state.lock().unwrap();
        state.asked.push((path.clone(), range.clone(), shown.clone()));
        let at = state.faults.iter().position(|(word, _)| path.contains(word.as_str()));
        let fault = at.map(|at| state.faults.remove(at).1);
        (
            fault,
            state.door.clone(),
            state.login.clone(),
            state.things.get(&path).cloned(),
        )
    };
    let simple =
        |status: StatusCode, text: &str| Response::builder().status(status).body(body(text.to_owned())).unwrap();
    if path.starts_with("/token") {
        return Ok(match login {
            Some(login) if shown.as_deref() != Some(&login) => simple(StatusCode::UNAUTHORIZED, "who are you?"),
            _ => simple(StatusCode::OK, r#"{"token": "let-me-in", "expires_in": 300}"#),
        });
    }
    if let Some((key, challenge)) = door
        && path.starts_with("/v2/")
        && shown.as_deref() != Some(&key)
    {
        let mut response = simple(StatusCode::UNAUTHORIZED, "{}");
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
        return Ok(response);
    }
    let Some((kind, bytes)) = thing else {
        return Ok(simple(
            StatusCode::NOT_FOUND,
            r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "not known"}]}"#,
        ));
    };
    let from = range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (from, range) = match (&fault, from) {
        (Some(Fault::Whole), _) | (_, None) => (0, None),
        (_, Some(from)) => (from, Some(format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))),
    };
    let bytes = &bytes[from..];
    let mut response = Response::builder().header(CONTENT_TYPE, kind);
    if let Some(range) = range {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, range);
    }
    let first = |length: usize| {
        let first = Bytes::copy_from_slice(&bytes[..length.min(bytes.len())]);
        stream::iter([Ok(Frame::data(first))])
    };
    if let Some(Fault::Fill(at)) = &fault {
        let mut filler = File::create(at).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }
    Ok(match fault {
        None | Some(Fault::Whole | Fault::Fill(_)) => response.body(body(bytes.to_vec())).unwrap(),
        Some(Fault::Status(status)) => simple(status, "not now"),
        Some(Fault::Busy(after)) => {
            let mut response = simple(StatusCode::TOO_MANY_REQUESTS, "");
            response.headers_mut().insert(RETRY_AFTER, after.parse().unwrap());
            response
        }
        Some(Fault::Silent) => std::future::pending().await,
        Some(Fault::Instead(bytes)) => response.body(body(bytes)).unwrap(),
        Some(Fault::Elsewhere(to)) => {
            let mut response = simple(StatusCode::TEMPORARY_REDIRECT, "");
            response.headers_mut().insert(LOCATION, to.parse().unwrap());
            response
        }
        Some(Fault::Cut(length)) => {
            let end = stream::iter([Err(io::Error::other("the end"))]);
            // The end must not overtake what goes before it: all is in one thread, so by then it has been sent.
            let turns = stream::iter(0..100).then(|_| tokio::task::yield_now());
            let pause = turns.filter_map(|()| async { None });
            let response = response.header(CONTENT_LENGTH, bytes.len());
            response
                .body(BoxBody::new(StreamBody::new(first(length).chain(pause).chain(end))))
                .unwrap()
        }
        Some(Fault::Stall(length)) => {
            let never = stream::pending();
            let response = response.header(CONTENT_LENGTH, bytes.len());
            response
                .body(BoxBody::new(StreamBody::new(first(length).chain(never))))
                .unwrap()
        }
    })
}
