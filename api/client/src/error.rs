//! Why a call failed, sorted by what the caller can do about it.

use std::time::Duration;

use kube::core::Status;

/// What a lower layer failed with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 404: the object is not there.
    #[error("{}", text(.0))]
    NotFound(Box<Status>),
    /// 409: an object of that name is already there.
    #[error("{}", text(.0))]
    AlreadyExists(Box<Status>),
    /// 409: the object is not what was seen; look again.
    #[error("{}", text(.0))]
    Conflict(Box<Status>),
    /// 412: the lease that the write was made under is gone; stop acting.
    #[error("{}", text(.0))]
    Fenced(Box<Status>),
    /// 410: what was asked for is past: an expired offer, a revision that is not kept any more.
    #[error("{}", text(.0))]
    Gone(Box<Status>),
    /// 422: the object is not valid, or asks for what it cannot have.
    #[error("{}", text(.0))]
    Invalid(Box<Status>),
    /// 401 and 403: this identity may not.
    #[error("{}", text(.0))]
    Forbidden(Box<Status>),
    /// Another refusal, which the same call will meet again.
    #[error("{}", text(.0))]
    Refused(Box<Status>),
    /// 429 and 5xx: the server cannot now. A write may have happened, unless it is a 429.
    #[error("{}", text(.status))]
    Retryable {
        /// What the server said.
        status: Box<Status>,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// No answer in time. A write may have happened.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed. A write may have happened.
    #[error("the connection to the API server failed")]
    Transport(#[source] BoxError),
    /// The answer is not what it should be.
    #[error("the answer of the API server cannot be read: {what}")]
    Decode {
        /// What was expected.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// The configuration of the client is not usable.
    #[error("the client cannot be set up: {what}")]
    Setup {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn text(status: &Status) -> String {
    match (status.message.as_str(), status.reason.as_str()) {
        ("", "") => format!("the API server answered {}", status.code),
        ("", reason) => format!("the API server answered {} {reason}", status.code),
        (message, _) => message.to_owned(),
    }
}

impl Error {
    /// Sorts a refusal of the server.
    pub fn from_status(status: Status, after: Option<Duration>) -> Error {
        let reason = status.reason.clone();
        let status = Box::new(status);
        match (status.code, reason.as_str()) {
            (404, _) => Error::NotFound(status),
            (409, "AlreadyExists") => Error::AlreadyExists(status),
            (409, _) => Error::Conflict(status),
            (412, _) => Error::Fenced(status),
            (410, _) => Error::Gone(status),
            (422, _) => Error::Invalid(status),
            (401 | 403, _) => Error::Forbidden(status),
            (429 | 500..=599, _) => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let hint = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
                Error::Retryable {
                    status,
                    after: after.or(hint),
                }
            }
            _ => Error::Refused(status),
        }
    }

    /// Whether the same call may succeed later. A write that failed so may have happened nevertheless.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Retryable { .. } | Error::Timeout(_) | Error::Transport(_))
    }

    /// What the server said, if it said something.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::NotFound(status)
            | Error::AlreadyExists(status)
            | Error::Conflict(status)
            | Error::Fenced(status)
            | Error::Gone(status)
            | Error::Invalid(status)
            | Error::Forbidden(status)
            | Error::Refused(status)
            | Error::Retryable { status, .. } => Some(status),
            Error::Timeout(_) | Error::Transport(_) | Error::Decode { .. } | Error::Setup { .. } => None,
        }
    }

    pub(crate) fn decode(what: &'static str, source: impl Into<BoxError>) -> Error {
        Error::Decode {
            what,
            source: source.into(),
        }
    }

    pub(crate) fn setup(what: &'static str, source: impl Into<BoxError>) -> Error {
        Error::Setup {
            what,
            source: source.into(),
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Error {
        match error {
            kube::Error::Api(status) => Error::from_status(*status, None),
            kube::Error::SerdeError(source) => Error::decode("an object", source),
            kube::Error::FromUtf8(source) => Error::decode("text", source),
            other => Error::Transport(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: u16, reason: &str, expect: &str, retryable: bool) {
        let error = Error::from_status(Status::failure("m", reason).with_code(code), None);
        let name = format!("{error:?}");
        assert!(name.starts_with(expect), "{code} {reason}: {name}");
        assert_eq!(error.is_retryable(), retryable, "{code} {reason}");
        assert_eq!(error.to_string(), "m");
    }

    #[test]
    fn refusals_are_sorted_by_what_can_be_done() {
        check(404, "NotFound", "NotFound", false);
        check(409, "AlreadyExists", "AlreadyExists", false);
        check(409, "Conflict", "Conflict", false);
        check(409, "InvalidTransition", "Conflict", false);
        check(412, "Fenced", "Fenced", false);
        check(410, "Expired", "Gone", false);
        check(422, "Invalid", "Invalid", false);
        check(403, "Forbidden", "Forbidden", false);
        check(401, "Unauthorized", "Forbidden", false);
        check(428, "FenceRequired", "Refused", false);
        check(400, "BadRequest", "Refused", false);
        check(429, "TooManyRequests", "Retryable", true);
        check(503, "ServiceUnavailable", "Retryable", true);
    }
}
