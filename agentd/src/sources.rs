//! Secrets and ConfigMaps that tasks take something from: which are wanted, what was read of them, and when they are looked at again.
//!
//! The plan says which are wanted ([`crate::plan::AgentPlan::sources`]); this remembers what came. It promises: one object is read by one
//! request at a time, however many tasks want it; what an attempt gets was read at most [`SOURCE_FRESH`] before, unless the API server cannot
//! be reached, when what was read for an earlier attempt counts; nothing of a Secret is logged. It may be lost at any time.
//!
//! Tested by tables, and by whole agents.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use muster_api::v1::{Source, SourceKind};
use muster_client::{Call, Client, Error as CallError};
use serde::Deserialize;

use crate::limits::{SOURCE_FRESH, SOURCE_RETRY_FIRST, SOURCE_RETRY_MAX};
use crate::plan::after;
use crate::volumes::Content;

/// An object that tasks take something from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its kind and name.
    pub source: Source,
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} of the namespace {}", self.source, self.namespace)
    }
}

/// The keys of an object and what they hold.
pub type Data = BTreeMap<String, Content>;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    Here(Arc<Data>),
    /// It is not.
    Absent,
    /// It could not be read, and never was.
    Unknown,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was found when it was last read.
    pub found: Found,
    /// Why it could not be read since.
    pub trouble: Option<String>,
    /// From when on it is read again, if it is wanted.
    pub next: Timestamp,
    /// How often in a row it was not there or could not be read.
    pub misses: u32,
}

impl Seen {
    /// What was found just now, to be read again at that time.
    pub fn new(found: Found, next: Timestamp) -> Seen {
        Seen {
            found,
            trouble: None,
            next,
            misses: 0,
        }
    }
}

/// What came of reading an object: `None`, it is not there.
pub type Read = Result<Option<Data>, String>;

/// All that are known.
#[derive(Debug, Default)]
pub struct Sources {
    known: BTreeMap<SourceKey, Seen>,
    reading: BTreeSet<SourceKey>,
}

impl Sources {
    /// What is known.
    pub fn known(&self) -> &BTreeMap<SourceKey, Seen> {
        &self.known
    }

    /// Takes in which are wanted; those that are to be read are returned, and what came of it is to be given to [`came`](Sources::came).
    pub fn want(&mut self, wanted: &BTreeSet<SourceKey>, now: Timestamp) -> Vec<SourceKey> {
        let due = |key: &&SourceKey| self.known.get(*key).is_none_or(|seen| seen.next <= now);
        let read: Vec<SourceKey> = wanted
            .iter()
            .filter(due)
            .filter(|key| !self.reading.contains(*key))
            .cloned()
            .collect();
        self.reading.extend(read.iter().cloned());
        read
    }

    /// Takes in what came of reading one.
    pub fn came(&mut self, key: SourceKey, read: Read, now: Timestamp) {
        self.reading.remove(&key);
        let before = self.known.remove(&key);
        let misses = before.as_ref().map_or(0, |before| before.misses);
        let later = after(
            now,
            SOURCE_RETRY_FIRST
                .saturating_mul(1 << misses.min(16))
                .min(SOURCE_RETRY_MAX),
        );
        let misses = misses.saturating_add(1);
        let seen = match read {
            Ok(Some(data)) => Seen::new(Found::Here(Arc::new(data)), after(now, SOURCE_FRESH)),
            Ok(None) => Seen {
                misses,
                ..Seen::new(Found::Absent, later)
            },
            Err(trouble) => Seen {
                misses,
                trouble: Some(trouble),
                ..Seen::new(before.map_or(Found::Unknown, |before| before.found), later)
            },
        };
        self.known.insert(key, seen);
    }

    /// Forgets what no task names any more.
    pub fn retain(&mut self, named: &BTreeSet<SourceKey>) {
        self.known.retain(|key, _| named.contains(key));
    }
}

#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    binary_data: BTreeMap<String, ByteString>,
}

/// Reads an object.
pub async fn read(client: &Client, key: &SourceKey) -> Read {
    let path = format!(
        "/api/v1/namespaces/{}/{}/{}",
        key.namespace,
        key.source.kind.plural(),
        key.source.name
    );
    let call = Call::new(Method::GET, path, "what a task takes something from");
    let read = match key.source.kind {
        SourceKind::Secret => client.call(call).await.map(|secret: Secret| data(secret.data)),
        SourceKind::ConfigMap => client.call(call).await.map(|map: ConfigMap| {
            let mut all = data(map.binary_data);
            all.extend(map.data.into_iter().map(|(key, text)| (key, text.into_bytes().into())));
            all
        }),
    };
    match read {
        Ok(data) => Ok(Some(data)),
        Err(CallError::NotFound(_)) => Ok(None),
        // The text of an error says what was expected, never what was there; its cause might.
        Err(error) => Err(error.to_string()),
    }
}

fn data(bytes: BTreeMap<String, ByteString>) -> Data {
    bytes.into_iter().map(|(key, bytes)| (key, bytes.0.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> SourceKey {
        SourceKey {
            namespace: "default".to_owned(),
            source: Source::secret(name),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    fn some() -> Read {
        Ok(Some(Data::from([("k".to_owned(), b"s3cret".to_vec().into())])))
    }

    #[test]
    fn an_object_is_read_once_at_a_time_and_again_when_it_is_old() {
        let (mut sources, wanted) = (Sources::default(), BTreeSet::from([key("a")]));
        assert_eq!(sources.want(&wanted, at(0)), [key("a")]);
        assert!(sources.want(&wanted, at(0)).is_empty(), "it is being read");
        sources.came(key("a"), some(), at(1));
        assert!(sources.want(&wanted, at(2)).is_empty(), "it is fresh");
        let fresh = i64::try_from(SOURCE_FRESH.as_secs()).expect("short");
        assert_eq!(sources.want(&wanted, at(1 + fresh)), [key("a")]);
        assert!(!format!("{sources:?}").contains("s3cret"), "nothing of it is shown");
        sources.retain(&BTreeSet::new());
        assert!(sources.known().is_empty());
    }

    #[test]
    fn what_is_not_there_is_looked_for_longer_and_longer_apart() {
        let (mut sources, wanted) = (Sources::default(), BTreeSet::from([key("a")]));
        let mut now = 0;
        for wait in [1, 2, 4, 8, 15, 15] {
            assert_eq!(sources.want(&wanted, at(now)).len(), 1);
            sources.came(key("a"), Ok(None), at(now));
            assert_eq!(sources.known()[&key("a")].found, Found::Absent);
            assert!(sources.want(&wanted, at(now + wait - 1)).is_empty(), "{wait}");
            now += wait;
        }
        sources.want(&wanted, at(now));
        sources.came(key("a"), some(), at(now));
        assert!(matches!(sources.known()[&key("a")].found, Found::Here(_)));
    }

    #[test]
    fn what_was_read_counts_while_nobody_answers() {
        let mut sources = Sources::default();
        sources.came(key("a"), Err("no answer".to_owned()), at(0));
        assert_eq!(sources.known()[&key("a")].found, Found::Unknown);
        sources.came(key("a"), some(), at(1));
        sources.came(key("a"), Err("no answer".to_owned()), at(2));
        let seen = &sources.known()[&key("a")];
        assert!(matches!(seen.found, Found::Here(_)) && seen.trouble.is_some());
    }
}
