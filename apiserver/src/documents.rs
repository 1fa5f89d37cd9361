//! What the server says about itself: discovery, OpenAPI and the version, each made once and then handed out as bytes.
//!
//! A document may have several forms; which one a client gets depends on what it accepts, matched exactly: a client that knows
//! only `v2beta1` of aggregated discovery must not get `v2`. Every form has an entity tag, so that clients that come back have
//! nothing to read again. What must never happen here: a form that the client did not ask for. Tested below and with kubectl.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::resource::Resource;
use crate::{discovery, openapi};

/// Who accepts a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    /// Plain JSON.
    Json,
    /// `APIGroupDiscoveryList` of this version.
    Aggregated(&'static str),
    /// The protobuf form of OpenAPI v2.
    OpenApiV2,
}

/// One form of a document.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    media: Media,
    body: Bytes,
    tag: String,
}

impl Form {
    /// A form with these bytes.
    pub(crate) fn new(media: Media, body: Vec<u8>) -> Form {
        let tag = Sha256::digest(&body).iter().map(|byte| format!("{byte:02X}")).collect();
        Form {
            media,
            body: body.into(),
            tag,
        }
    }

    /// A form of JSON.
    pub(crate) fn json(media: Media, body: &Value) -> Form {
        Form::new(media, serde_json::to_vec(body).expect("a document is plain data"))
    }

    fn content_type(&self) -> HeaderValue {
        match self.media {
            Media::Json => HeaderValue::from_static("application/json"),
            Media::Aggregated(version) => {
                let text = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
                HeaderValue::try_from(text).expect("a media type is a header")
            }
            // Clients ask for it with an `@` where the second point is, but that is no media type that Go would read.
            Media::OpenApiV2 => HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf"),
        }
    }
}

/// All documents.
#[derive(Debug)]
pub struct Documents {
    resources: Arc<[Resource]>,
    /// Discovery, which is small and always wanted.
    discovery: BTreeMap<String, Vec<Form>>,
    /// OpenAPI, which is large and made when it is first asked for.
    openapi: OnceLock<BTreeMap<String, Vec<Form>>>,
}

const OPENAPI: &str = "/openapi";

impl Documents {
    /// About these kinds.
    pub fn new(resources: impl Into<Arc<[Resource]>>) -> Documents {
        let resources = resources.into();
        Documents {
            discovery: discovery::documents(&resources),
            openapi: OnceLock::new(),
            resources,
        }
    }

    /// The answer to a `GET` or `HEAD`; `None`: there is no such document.
    pub fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let path = match uri.path().trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let documents = if path.starts_with(OPENAPI) {
            self.openapi.get_or_init(|| openapi::documents(&self.resources))
        } else {
            &self.discovery
        };
        let forms = documents.get(path)?;
        if method != Method::GET && method != Method::HEAD {
            let message = format!("the method {method} is not allowed here; documents are only read");
            return Some(ApiError::method_not_allowed(message).into_response());
        }
        let Some(form) = choose(forms, headers) else {
            let known: Vec<String> = forms
                .iter()
                .filter_map(|form| form.content_type().to_str().map(str::to_owned).ok())
                .collect();
            let mut error = ApiError::not_acceptable();
            error.message = format!("only the following media types are accepted: {}", known.join(", "));
            return Some(error.into_response());
        };
        Some(respond(form, path, uri, method, headers))
    }
}

/// The form that the client likes best.
fn choose<'a>(forms: &'a [Form], headers: &HeaderMap) -> Option<&'a Form> {
    let accept: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return forms.iter().find(|form| form.media == Media::Json).or(forms.first());
    }
    let mut clauses: Vec<Clause<'_>> = accept.split(',').filter_map(Clause::parse).collect();
    clauses.sort_by_key(|clause| std::cmp::Reverse(clause.quality));
    clauses
        .iter()
        .find_map(|clause| forms.iter().find(|form| clause.takes(form.media)))
}

/// One way in which a client would take an answer.
struct Clause<'a> {
    media: &'a str,
    /// `g`, `v` and `as`.
    shape: Option<(&'a str, &'a str, &'a str)>,
    /// In thousandths.
    quality: u16,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Clause<'a>> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty())?;
        let (mut group, mut version, mut kind, mut quality) = ("", "", "", 1000);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "g" => group = value.trim(),
                "v" => version = value.trim(),
                "as" => kind = value.trim(),
                "q" => {
                    quality = value
                        .trim()
                        .parse::<f32>()
                        .map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u16)
                }
                _ => {}
            }
        }
        let shape = (!kind.is_empty()).then_some((group, version, kind));
        (quality > 0).then_some(Clause { media, shape, quality })
    }

    fn takes(&self, media: Media) -> bool {
        let json = matches!(self.media, "application/json" | "application/*" | "*/*");
        match media {
            Media::Json => json && self.shape.is_none(),
            Media::Aggregated(version) => {
                json && self.shape == Some(("apidiscovery.k8s.io", version, "APIGroupDiscoveryList"))
            }
            Media::OpenApiV2 => {
                let names = ["v2@v1.0+protobuf", "v2.v1.0+protobuf"];
                let rest = self.media.strip_prefix("application/com.github.proto-openapi.spec.");
                rest.is_some_and(|rest| names.contains(&rest))
            }
        }
    }
}

fn respond(form: &Form, path: &str, uri: &Uri, method: &Method, headers: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    let tag = HeaderValue::try_from(format!("\"{}\"", form.tag)).expect("a digest is a header");
    out.insert(header::ETAG, tag);
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    let asked = uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("hash="));
    if path.starts_with("/openapi/v3/")
        && let Some(hash) = asked
    {
        if hash != form.tag {
            let place = HeaderValue::try_from(format!("{path}?hash={}", form.tag)).expect("a known path is a header");
            out.insert(header::LOCATION, place);
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            return response;
        }
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    } else {
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    if headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|value| names_tag(value, &form.tag))
    {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    out.insert(header::CONTENT_TYPE, form.content_type());
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(form.body.len()));
    if method == Method::GET {
        *response.body_mut() = Body::from(form.body.clone());
    }
    response
}

fn names_tag(value: &HeaderValue, tag: &str) -> bool {
    let tags = value.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.map(|known| known.trim_start_matches("W/").trim_matches('"'))
        .any(|known| known == "*" || known == tag)
}

/// The entity tag of the JSON form.
pub(crate) fn tag_of(forms: &[Form]) -> &str {
    forms.first().map_or("", |form| &form.tag)
}

#[cfg(test)]
pub(crate) mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::kinds;

    pub(crate) const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    pub(crate) const V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

    /// The answer to a request with these headers: status, headers, body.
    pub(crate) async fn get(target: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        let documents = Documents::new(kinds::resources());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let response = documents
            .answer(&Method::GET, &target.parse().unwrap(), &map)
            .expect(target);
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn the_form_is_the_one_that_was_asked_for() {
        for (accept, version) in [
            (format!("{V2},{V2BETA1},application/json"), "apidiscovery.k8s.io/v2"),
            (format!("{V2BETA1},application/json"), "apidiscovery.k8s.io/v2beta1"),
            (
                "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,application/json".to_owned(),
                "v1",
            ),
            ("application/json".to_owned(), "v1"),
            ("*/*".to_owned(), "v1"),
            (format!("{V2};q=0.1,application/json"), "v1"),
        ] {
            let (status, headers, body) = get("/apis", &[("accept", &accept)]).await;
            assert_eq!(status, StatusCode::OK, "{accept}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["apiVersion"], version, "{accept}");
            let expect = match version {
                "apidiscovery.k8s.io/v2" => V2,
                "apidiscovery.k8s.io/v2beta1" => V2BETA1,
                _ => "application/json",
            };
            let parameters = |text: &str| {
                let mut parts: Vec<String> = text.split(';').map(str::to_owned).collect();
                parts.sort();
                parts
            };
            assert_eq!(
                parameters(headers["content-type"].to_str().unwrap()),
                parameters(expect),
                "{accept}"
            );
            assert_eq!(headers["vary"], "Accept");
        }
        let (status, _, _) = get("/apis", &[("accept", "text/html")]).await;
        assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
    }

    #[tokio::test]
    async fn who_has_a_document_reads_nothing_again() {
        let (_, headers, body) = get("/apis/", &[("accept", V2)]).await;
        let tag = headers["etag"].to_str().unwrap().to_owned();
        assert!(!body.is_empty());
        let (status, headers, body) = get("/apis", &[("accept", V2), ("if-none-match", &tag)]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(headers["etag"], tag.as_str());
        let (status, ..) = get("/apis", &[("accept", V2BETA1), ("if-none-match", &tag)]).await;
        assert_eq!(status, StatusCode::OK, "the other form has another tag");
    }

    #[test]
    fn documents_are_only_read() {
        let documents = Documents::new(kinds::resources());
        let answer = |method: Method, target: &str| {
            documents
                .answer(&method, &target.parse().unwrap(), &HeaderMap::new())
                .map(|response| response.status())
        };
        assert_eq!(answer(Method::HEAD, "/version"), Some(StatusCode::OK));
        assert_eq!(answer(Method::POST, "/version"), Some(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(answer(Method::GET, "/apis/none.dev"), None);
        assert_eq!(answer(Method::GET, "/apis/muster.dev/v1/tasks"), None);
        assert_eq!(answer(Method::GET, "/openapi/v3/apis/none.dev/v1"), None);
    }
}
