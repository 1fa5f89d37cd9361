//! What query parameters say, checked before anything is done.

use std::time::Duration;

use http::{HeaderMap, header};
use muster_store::Revision;
use serde_json::Value;

use crate::error::{ApiError, Result};
use crate::limits;
use crate::selector::{FieldSelector, LabelSelector};

/// The parameters of a request; empty pieces, as in `?&limit=5`, don't matter.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URI behind the question mark.
    pub fn parse(text: Option<&str>) -> Query {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    fn raw(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a parameter says yes.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.raw(name) {
            None => Ok(false),
            Some("" | "true" | "1" | "True" | "TRUE" | "t" | "T") => Ok(true),
            Some("false" | "0" | "False" | "FALSE" | "f" | "F") => Ok(false),
            Some(other) => Err(ApiError::bad_request(format!(
                "{name}={other:?} is neither true nor false"
            ))),
        }
    }

    /// The number that a parameter says.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::bad_request(format!("{name}={text:?} is not a number from 0")))
            })
            .transpose()
    }
}

/// Undoes percent encoding; in queries, `+` is a space.
pub fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        let digits = (*byte == b'%').then(|| hex(bytes.get(index + 1)).zip(hex(bytes.get(index + 2))));
        match digits.flatten() {
            Some((high, low)) => {
                plain.push((high * 16 + low) as u8);
                index += 3;
            }
            None => {
                plain.push(if plus_is_space && *byte == b'+' { b' ' } else { *byte });
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What is done about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// The write is refused.
    Strict,
    /// The answer has a warning for each.
    #[default]
    Warn,
    /// Nothing.
    Ignore,
}

/// How a write is to be done.
#[derive(Clone, Debug)]
pub struct WriteParams {
    /// Everything but the write itself.
    pub dry_run: bool,
    /// See there.
    pub validation: FieldValidation,
    /// Who writes: as it says itself, or the name of the program.
    pub manager: String,
    /// Whether who applies takes what others own.
    pub force: bool,
}

/// Who writes when nobody else does.
pub const MANAGER: &str = "muster-apiserver";

impl Default for WriteParams {
    fn default() -> WriteParams {
        WriteParams {
            dry_run: false,
            validation: FieldValidation::default(),
            manager: MANAGER.to_owned(),
            force: false,
        }
    }
}

/// Who writes when nobody says so.
pub const UNKNOWN: &str = "unknown";

/// The program that sent a request, as its `User-Agent` says before the version.
fn program(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let name = agent.unwrap_or_default().split('/').next().unwrap_or_default();
    let printable = name.chars().filter(|character| !character.is_control());
    let name: String = printable.take(limits::FIELD_MANAGER_CHARS).collect();
    if name.is_empty() { UNKNOWN.to_owned() } else { name }
}

fn invalid_option(kind: &str, field: &str, message: String) -> ApiError {
    let text = format!("{kind}.meta.k8s.io \"\" is invalid: {field}: {message}");
    let mut error = ApiError::unprocessable(text).cause("FieldValueInvalid", message, field);
    error.details.group = "meta.k8s.io".to_owned();
    error.details.kind = kind.to_owned();
    error
}

fn forbidden_option(kind: &str, field: &str, message: &str) -> ApiError {
    let mut error = invalid_option(kind, field, message.to_owned());
    error.details.causes[0].reason = "FieldValueForbidden".to_owned();
    error
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool> {
    let mut dry = false;
    for value in values {
        match value {
            "All" => dry = true,
            "" => (),
            other => {
                let message = format!("Unsupported value: \"{other}\": supported values: \"All\"");
                return Err(invalid_option(kind, "dryRun", message));
            }
        }
    }
    Ok(dry)
}

impl WriteParams {
    /// Reads the parameters of a create, update or patch.
    pub fn new(query: &Query, headers: &HeaderMap, kind: &str) -> Result<WriteParams> {
        if query.raw("force").is_some() {
            let message = "Forbidden: may not be specified for non-apply patch";
            return Err(forbidden_option(kind, "force", message));
        }
        WriteParams::read(query, headers, kind)
    }

    /// Reads the parameters of an apply patch.
    pub fn for_apply(query: &Query, headers: &HeaderMap) -> Result<WriteParams> {
        const KIND: &str = "PatchOptions";
        if query.get("fieldManager").is_none() {
            let message = "Required value: is required for apply patch".to_owned();
            let mut error = invalid_option(KIND, "fieldManager", message);
            error.details.causes[0].reason = "FieldValueRequired".to_owned();
            return Err(error);
        }
        let force = query.flag("force")?;
        let params = WriteParams::read(query, headers, KIND)?;
        Ok(WriteParams { force, ..params })
    }

    fn read(query: &Query, headers: &HeaderMap, kind: &str) -> Result<WriteParams> {
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let message =
                    format!("Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\"");
                return Err(invalid_option(kind, "fieldValidation", message));
            }
        };
        if let Some(manager) = query.get("fieldManager") {
            let printable = manager.chars().all(|character| !character.is_control());
            if manager.chars().count() > limits::FIELD_MANAGER_CHARS || !printable {
                let message = format!("must be at most {} printable characters", limits::FIELD_MANAGER_CHARS);
                return Err(invalid_option(kind, "fieldManager", message));
            }
        }
        Ok(WriteParams {
            dry_run: dry_run(query.all("dryRun"), kind)?,
            validation,
            manager: query
                .get("fieldManager")
                .map_or_else(|| program(headers), str::to_owned),
            force: false,
        })
    }
}

/// How an object is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteParams {
    /// Everything but the deletion itself.
    pub dry_run: bool,
    /// Only the object of this uid.
    pub uid: Option<String>,
    /// Only the object of this version.
    pub resource_version: Option<String>,
    /// What becomes of what the object owns; `None`: as its finalizers say.
    pub propagation: Option<Propagation>,
}

/// What becomes of the objects that a deleted object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go before it.
    Foreground,
    /// They go after it.
    Background,
    /// They stay.
    Orphan,
}

impl Propagation {
    fn parse(text: &str) -> Option<Propagation> {
        match text {
            "Foreground" => Some(Propagation::Foreground),
            "Background" => Some(Propagation::Background),
            "Orphan" => Some(Propagation::Orphan),
            _ => None,
        }
    }
}

impl DeleteParams {
    /// Reads the parameters and the body, which wins.
    pub fn new(query: &Query, body: &Value) -> Result<DeleteParams> {
        const KIND: &str = "DeleteOptions";
        let texts = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items.map(|item| item.as_str().unwrap_or("?").to_owned()).collect()
        };
        let policy = body["propagationPolicy"].as_str().or(query.get("propagationPolicy"));
        let propagation = policy.and_then(Propagation::parse);
        if let Some(policy) = policy.filter(|_| propagation.is_none()) {
            let message = format!(
                "Unsupported value: \"{policy}\": supported values: \"Foreground\", \"Background\", \"Orphan\""
            );
            return Err(invalid_option(KIND, "propagationPolicy", message));
        }
        let orphans = match &body["orphanDependents"] {
            Value::Bool(orphans) => Some(*orphans),
            _ if query.get("orphanDependents").is_some() => Some(query.flag("orphanDependents")?),
            _ => None,
        };
        if policy.is_some() && orphans.is_some() {
            let message = "orphanDependents and propagationPolicy may not be set together".to_owned();
            return Err(invalid_option(KIND, "propagationPolicy", message));
        }
        let grace = body["gracePeriodSeconds"].as_i64();
        let grace = grace.or_else(|| query.get("gracePeriodSeconds").map(|text| text.parse().unwrap_or(-1)));
        if grace.is_some_and(|grace| grace < 0) {
            let message = "must be a number from 0".to_owned();
            return Err(invalid_option(KIND, "gracePeriodSeconds", message));
        }
        let from_body = texts(&body["dryRun"]);
        let dry_run = if from_body.is_empty() {
            dry_run(query.all("dryRun"), KIND)?
        } else {
            dry_run(from_body.iter().map(String::as_str), KIND)?
        };
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(DeleteParams {
            dry_run,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            propagation: propagation.or(orphans.map(|orphans| match orphans {
                true => Propagation::Orphan,
                false => Propagation::Background,
            })),
        })
    }
}

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
}

impl Selection {
    /// Reads the selectors.
    pub fn new(query: &Query) -> Result<Selection> {
        Ok(Selection {
            labels: LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())?,
        })
    }
}

/// Which state a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Newest,
    /// Any that is there.
    Any,
    /// One that is not older.
    NotOlderThan(Revision),
    /// That very one.
    Exactly(Revision),
}

/// How a list is to be made.
#[derive(Clone, Debug)]
pub struct ListParams {
    /// Which state.
    pub at: At,
    /// So many objects at most.
    pub limit: Option<usize>,
    /// The token of the page before.
    pub token: Option<String>,
}

fn list_option(field: &str, message: &str) -> ApiError {
    invalid_option("ListOptions", field, message.to_owned())
}

fn revision(text: &str) -> Result<Revision> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}: it is not a number from 0")))
}

impl ListParams {
    /// Reads the parameters of a list.
    pub fn new(query: &Query) -> Result<ListParams> {
        let limit = query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
        if query.get("sendInitialEvents").is_some() {
            return Err(list_option(
                "sendInitialEvents",
                "Forbidden: sendInitialEvents is forbidden for list",
            ));
        }
        if let Some(token) = query.get("continue") {
            if matching.is_some() {
                let message = "Forbidden: resourceVersionMatch is forbidden when continue is provided";
                return Err(list_option("resourceVersionMatch", message));
            }
            if version.is_some_and(|version| version != "0") {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Some(token.to_owned());
            return Ok(ListParams {
                at: At::Newest,
                limit,
                token,
            });
        }
        let at = match (matching, version) {
            (None, None) => At::Newest,
            (None, Some("0")) => At::Any,
            (None, Some(version)) if limit.is_some() => At::Exactly(revision(version)?),
            (None, Some(version)) => At::NotOlderThan(revision(version)?),
            (Some("NotOlderThan"), Some("0")) => At::Any,
            (Some("NotOlderThan"), Some(version)) => At::NotOlderThan(revision(version)?),
            (Some("Exact"), Some("0")) => {
                let message = "Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                return Err(list_option("resourceVersionMatch", message));
            }
            (Some("Exact"), Some(version)) => At::Exactly(revision(version)?),
            (Some("NotOlderThan" | "Exact"), None) => {
                let message = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(list_option("resourceVersionMatch", message));
            }
            (Some(other), _) => {
                let message = format!("Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\"");
                return Err(list_option("resourceVersionMatch", &message));
            }
        };
        Ok(ListParams { at, limit, token: None })
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the state as `ADDED` events. Asked for with `sendInitialEvents`, a bookmark says where it ends, if bookmarks are wanted.
    State {
        /// The state shall not be older.
        not_older_than: Revision,
        /// Whether `sendInitialEvents` was given.
        marked: bool,
    },
    /// Now.
    Now,
    /// After that revision.
    After(Revision),
}

/// How a watch is to be done.
#[derive(Clone, Debug)]
pub struct WatchParams {
    /// Where it begins.
    pub start: Start,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// When it ends; `None`: the server chooses.
    pub timeout: Option<Duration>,
}

impl WatchParams {
    /// Reads the parameters of a watch.
    pub fn new(query: &Query) -> Result<WatchParams> {
        let bookmarks = query.flag("allowWatchBookmarks")?;
        let version = query.get("resourceVersion").map_or(Ok(0), revision)?;
        let initial = query
            .get("sendInitialEvents")
            .map(|_| query.flag("sendInitialEvents"))
            .transpose()?;
        let matching = query.get("resourceVersionMatch");
        if initial.is_some() && matching != Some("NotOlderThan") {
            let message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(list_option("resourceVersionMatch", message));
        }
        if initial.is_none() && matching.is_some() {
            let message = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(list_option("resourceVersionMatch", message));
        }
        let start = match initial {
            Some(true) => Start::State {
                not_older_than: version,
                marked: true,
            },
            Some(false) if version == 0 => Start::Now,
            None if version == 0 => Start::State {
                not_older_than: 0,
                marked: false,
            },
            Some(false) | None => Start::After(version),
        };
        let timeout = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        // A day is longer than any connection; more could overflow the clock.
        let timeout = timeout.map(|seconds| Duration::from_secs(seconds.min(86_400)));
        Ok(WatchParams {
            start,
            bookmarks,
            timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str) -> Result<At, u16> {
        ListParams::new(&Query::parse(Some(query)))
            .map(|params| params.at)
            .map_err(|error| error.code.as_u16())
    }

    #[test]
    fn list_parameters_follow_the_table_of_kubernetes() {
        for (query, expect) in [
            ("", Ok(At::Newest)),
            ("&limit=500", Ok(At::Newest)),
            ("resourceVersion=0", Ok(At::Any)),
            ("resourceVersion=0&limit=5", Ok(At::Any)),
            ("resourceVersion=7", Ok(At::NotOlderThan(7))),
            ("resourceVersion=7&limit=5", Ok(At::Exactly(7))),
            (
                "resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan",
                Ok(At::NotOlderThan(7)),
            ),
            ("resourceVersion=7&resourceVersionMatch=Exact", Ok(At::Exactly(7))),
            ("resourceVersion=0&resourceVersionMatch=Exact", Err(422)),
            ("resourceVersionMatch=Exact", Err(422)),
            ("resourceVersionMatch=NotOlderThan", Err(422)),
            ("resourceVersion=7&resourceVersionMatch=Other", Err(422)),
            ("resourceVersion=x", Err(400)),
            ("limit=-1", Err(400)),
            ("continue=x&resourceVersion=7", Err(400)),
            ("continue=x&resourceVersion=0", Ok(At::Newest)),
            ("continue=x&resourceVersionMatch=Exact", Err(422)),
            ("sendInitialEvents=true", Err(422)),
        ] {
            assert_eq!(list(query), expect, "{query}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("&labelSelector=a+in+%28b%2Cc%29&x&y=%zz&watch="));
        assert_eq!(query.get("labelSelector"), Some("a in (b,c)"));
        assert_eq!(query.get("y"), Some("%zz"));
        assert_eq!(query.flag("x"), Ok(true));
        assert_eq!(query.flag("watch"), Ok(true));
        assert!(query.flag("y").is_err());
    }

    #[test]
    fn the_body_of_a_delete_wins() {
        let query = Query::parse(Some("propagationPolicy=Orphan&dryRun=All"));
        let body = serde_json::json!({"propagationPolicy": "Background", "preconditions": {"uid": "u"}});
        let params = DeleteParams::new(&query, &body).expect("fine");
        assert_eq!((params.dry_run, params.uid.as_deref()), (true, Some("u")));
        assert_eq!(params.propagation, Some(Propagation::Background));
        for (orphans, expect) in [(true, Propagation::Orphan), (false, Propagation::Background)] {
            let body = serde_json::json!({"orphanDependents": orphans});
            let params = DeleteParams::new(&Query::parse(None), &body).expect("fine");
            assert_eq!(params.propagation, Some(expect));
        }
        for body in [
            serde_json::json!({"propagationPolicy": "Other"}),
            serde_json::json!({"dryRun": ["Some"]}),
            serde_json::json!({"gracePeriodSeconds": -1}),
            serde_json::json!({"orphanDependents": true}),
        ] {
            assert_eq!(
                DeleteParams::new(&query, &body).expect_err("refused").code.as_u16(),
                422,
                "{body}"
            );
        }
    }
}
