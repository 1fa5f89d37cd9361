//! Everything that can go wrong with a request, as clients see it: a Kubernetes `Status` with the matching HTTP code.
//!
//! One constructor per row of the error table, so that codes, reasons and wording are decided here and nowhere else. What
//! must never happen here: a body that is not a `Status`. Tested by the cases below and by every test of a route.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use muster_api::validation::{Reason, Violation};
use serde_json::{Value, json};

use crate::resource::Resource;

/// A refusal or failure, as the client sees it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub code: StatusCode,
    /// The machine's word for it, as in `NotFound`.
    pub reason: &'static str,
    /// A sentence that says what happened and what to do about it.
    pub message: String,
    /// What it is about.
    pub details: Box<Details>,
}

/// What an error is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The name of the object.
    pub name: String,
    /// The group of its kind.
    pub group: String,
    /// Its plural (or, for an invalid object, its kind).
    pub kind: String,
    /// The object's uid.
    pub uid: String,
    /// One item for each thing that is wrong.
    pub causes: Vec<Cause>,
    /// After how many seconds trying again makes sense.
    pub retry_after_seconds: Option<u32>,
    /// For an expired `continue` token: one that goes on from the same key at the newest state.
    pub continue_token: Option<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The machine's word, as in `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// The path of the field; may be empty.
    pub field: String,
}

/// What a handler gives.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

impl ApiError {
    /// An error with no details.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            code,
            reason,
            message: message.into(),
            details: Box::default(),
        }
    }

    /// Says which object it is about.
    #[must_use]
    pub fn about(mut self, resource: &Resource, name: &str) -> ApiError {
        self.details.group = resource.group.clone();
        self.details.kind = resource.plural.clone();
        self.details.name = name.to_owned();
        self
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> ApiError {
        self.details.causes.push(Cause {
            reason: reason.to_owned(),
            message: message.into(),
            field: field.to_owned(),
        });
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> ApiError {
        self.details.retry_after_seconds = Some(seconds);
        self
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: nobody is behind the request.
    pub fn unauthorized() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 401 to somebody who was let in before.
    pub fn revoked(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 403: `message` says who may not do what.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 403 about one object, in the usual words: `tasks.muster.dev "n" is forbidden: WHY`.
    pub fn forbidden_object(resource: &Resource, name: &str, why: impl AsRef<str>) -> ApiError {
        let message = format!("{} \"{name}\" is forbidden: {}", resource.qualified(), why.as_ref());
        ApiError::forbidden(message).about(resource, name)
    }

    /// 404: there is no such object.
    pub fn not_found(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", message).about(resource, name)
    }

    /// 404: there is no such path.
    pub fn unknown_path() -> ApiError {
        let message = "the server could not find the requested resource";
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 404 that is neither of the two above.
    pub fn absent(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 405: not with this path.
    pub fn method_not_allowed(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 406: none of what the client takes can be given.
    pub fn not_acceptable() -> ApiError {
        let message = "only the following media types are accepted: application/json, \
                       application/json;as=Table;v=v1;g=meta.k8s.io, \
                       application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io, \
                       application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 415: the body is of a type that is not read here.
    pub fn unsupported_media_type(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 408: the rest of the request does not come.
    pub fn late_body(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    }

    /// 409: an object of that name is there already.
    pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        ApiError::new(StatusCode::CONFLICT, "AlreadyExists", message).about(resource, name)
    }

    /// 409: the object is not what the client has seen.
    pub fn conflict(resource: &Resource, name: &str, why: impl AsRef<str>) -> ApiError {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {}",
            resource.qualified(),
            why.as_ref()
        );
        ApiError::new(StatusCode::CONFLICT, "Conflict", message).about(resource, name)
    }

    /// 409: the object was written since the client read it.
    pub fn modified(resource: &Resource, name: &str) -> ApiError {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(resource, name, why)
    }

    /// 409: somebody else owns what is applied.
    pub fn apply_conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// 409: the phase of a task cannot change so, or not by this writer.
    pub fn invalid_transition(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "InvalidTransition", message)
    }

    /// 410: what the client asks for was there once and is not kept any more.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::GONE, "Expired", message)
    }

    /// 410 for a watch or a list that starts too far back.
    pub fn too_old(asked: u64, oldest: u64) -> ApiError {
        ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 412: the lease that the write was fenced with is not the one that exists now.
    pub fn fenced(lease: &str) -> ApiError {
        let message = format!("the lease {lease} is held by somebody else now, or has ended; stop acting");
        ApiError::new(StatusCode::PRECONDITION_FAILED, "Fenced", message)
    }

    /// 413: more than is read here.
    pub fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 422: the object says something that cannot be.
    pub fn invalid(kind: &str, group: &str, name: &str, violations: Vec<Violation>) -> ApiError {
        let lines: Vec<String> = violations
            .iter()
            .map(|violation| {
                if violation.field.is_empty() {
                    violation.message.clone()
                } else {
                    format!("{}: {}", violation.field, violation.message)
                }
            })
            .collect();
        let text = match lines.as_slice() {
            [one] => one.clone(),
            more => format!("[{}]", more.join(", ")),
        };
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let mut error = ApiError::new(
            UNPROCESSABLE,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {text}"),
        );
        error.details.group = group.to_owned();
        error.details.kind = kind.to_owned();
        error.details.name = name.to_owned();
        error.details.causes = violations.into_iter().map(Cause::from).collect();
        error
    }

    /// 422 about an object of `resource`.
    pub fn invalid_object(resource: &Resource, name: &str, violations: Vec<Violation>) -> ApiError {
        ApiError::invalid(&resource.kind, &resource.group, name, violations)
    }

    /// 422 with a sentence and no field.
    pub fn unprocessable(message: impl Into<String>) -> ApiError {
        ApiError::new(UNPROCESSABLE, "Invalid", message)
    }

    /// 428: the write must name the lease under which the writer acts.
    pub fn fence_required(what: &str, lease: &str) -> ApiError {
        let message = format!(
            "{what} must carry the header {}: {lease}@REVISION, which names the lease that the writer holds and the revision \
             at which it was made",
            muster_api::names::HEADER_FENCE
        );
        ApiError::new(StatusCode::PRECONDITION_REQUIRED, "FenceRequired", message)
    }

    /// 429: later.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(seconds)
    }

    /// 500: the server's own fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message).retry_after(1)
    }

    /// 504: it took too long.
    pub fn timeout(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message).retry_after(1)
    }

    /// 504: the client asks for a state that is not there yet.
    pub fn version_too_large(asked: u64, newest: u64) -> ApiError {
        let message = format!("Too large resource version: {asked}, current: {newest}");
        ApiError::timeout(message).cause("ResourceVersionTooLarge", "Too large resource version", "")
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.details.continue_token {
            metadata["continue"] = json!(token);
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        let details = self.details_json();
        if details.as_object().is_some_and(|details| !details.is_empty()) {
            status["details"] = details;
        }
        status
    }

    fn details_json(&self) -> Value {
        let details = &self.details;
        let mut json = json!({});
        let texts = [
            ("name", &details.name),
            ("group", &details.group),
            ("kind", &details.kind),
            ("uid", &details.uid),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            json[key] = json!(text);
        }
        let causes: Vec<Value> = details
            .causes
            .iter()
            .map(|cause| {
                let mut json = json!({"reason": cause.reason, "message": cause.message});
                if !cause.field.is_empty() {
                    json["field"] = json!(cause.field);
                }
                json
            })
            .collect();
        if !causes.is_empty() {
            json["causes"] = Value::Array(causes);
        }
        if let Some(seconds) = details.retry_after_seconds {
            json["retryAfterSeconds"] = json!(seconds);
        }
        json
    }
}

impl From<Violation> for Cause {
    fn from(violation: Violation) -> Cause {
        Cause {
            reason: reason_text(violation.reason).to_owned(),
            message: violation.message,
            field: violation.field,
        }
    }
}

const fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::FieldValueRequired => "FieldValueRequired",
        Reason::FieldValueInvalid => "FieldValueInvalid",
        Reason::FieldValueNotSupported => "FieldValueNotSupported",
        Reason::FieldValueDuplicate => "FieldValueDuplicate",
        Reason::FieldValueForbidden => "FieldValueForbidden",
        Reason::FieldValueTypeInvalid => "FieldValueTypeInvalid",
        Reason::FieldValueTooLong => "FieldValueTooLong",
    }
}

impl From<muster_store::Error> for ApiError {
    fn from(error: muster_store::Error) -> ApiError {
        match error {
            // The next attempt may be after somebody has made room; until then deletions work.
            muster_store::Error::Unavailable(_) | muster_store::Error::Full(_) => {
                ApiError::unavailable(error.to_string())
            }
            muster_store::Error::Fatal(_) => ApiError::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.status().to_string()));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.details.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use muster_api::validation::{FieldPath, Violations};

    use super::*;

    #[test]
    fn an_invalid_object_names_every_field() {
        let mut violations = Violations::new();
        let spec = FieldPath::root("spec");
        violations.required(&spec.field("command"), "");
        violations.invalid(&spec.field("priority"), 7, "must be less");
        let error = ApiError::invalid("Task", "muster.dev", "t", violations.into_vec());
        let status = error.status();
        assert_eq!(status["code"], 422);
        assert_eq!(status["reason"], "Invalid");
        assert_eq!(
            status["message"],
            "Task.muster.dev \"t\" is invalid: [spec.command: Required value, spec.priority: Invalid value: \"7\": must be less]"
        );
        assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(status["details"]["causes"][1]["field"], "spec.priority");
    }

    #[test]
    fn an_error_that_passes_says_when_to_try_again() {
        let response = ApiError::unavailable("the store is away").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
