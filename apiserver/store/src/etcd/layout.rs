//! Where things are in etcd, and what they look like there. Pure.

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use super::PREFIX_BYTES_MAX;
use crate::types::{Entry, Error, Key, LeaseId, Revision};

/// How the record of the UID begins; the number is that of the layout.
const RECORD: &str = "muster-store/1 ";

/// The names of a cluster's keys.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: String,
    data: String,
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Result<Layout, Error> {
        let prefix = prefix.trim_end_matches('/');
        let fine = prefix.starts_with('/') && !prefix.contains("//") && !prefix.contains(['\0', ' ']);
        if !fine || prefix.len() > PREFIX_BYTES_MAX {
            return Err(Error::Fatal(format!(
                "the prefix {prefix:?} cannot be used: write something like /muster/default, at most {PREFIX_BYTES_MAX} bytes"
            )));
        }
        Ok(Layout {
            root: format!("{prefix}/"),
            data: format!("{prefix}/data/"),
        })
    }

    /// What every key of the cluster begins with.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// The key of the record of the UID.
    pub(super) fn uid(&self) -> String {
        format!("{}meta/uid", self.root)
    }

    /// The key that marks are written to.
    pub(super) fn mark(&self) -> String {
        format!("{}meta/mark", self.root)
    }

    /// The key that says who compacts next.
    pub(super) fn compaction(&self) -> String {
        format!("{}meta/compaction", self.root)
    }

    /// What the keys begin with that are the store's own.
    pub(super) fn meta(&self) -> String {
        format!("{}meta/", self.root)
    }

    /// The place of a key or of a prefix.
    pub(super) fn place(&self, text: &str) -> String {
        format!("{}{text}", self.data)
    }

    /// The key at a place; `None`: the place is none of an entry.
    pub(super) fn key(&self, place: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(place).ok()?;
        text.strip_prefix(&self.data).map(Key::new)
    }

    /// An entry as etcd has it; `None`: somebody else has put something here that is none.
    pub(super) fn entry(&self, found: PbKeyValue) -> Option<Entry> {
        let Some(key) = self.key(&found.key) else {
            tracing::error!(key = %String::from_utf8_lossy(&found.key), "a key in etcd that is none of ours is left out");
            return None;
        };
        Some(Entry {
            key,
            value: Bytes::from(found.value),
            create_revision: revision(found.create_revision),
            mod_revision: revision(found.mod_revision),
            lease: u64::try_from(found.lease).ok().filter(|id| *id > 0).map(LeaseId),
        })
    }
}

/// The first place that does not begin with `prefix`.
pub(super) fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 0xff, so there is always room for one more.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A revision as etcd writes it; it never sends negative ones.
pub(super) fn revision(number: i64) -> Revision {
    u64::try_from(number).unwrap_or(0)
}

/// A revision as etcd reads it.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The record of a UID.
pub(super) fn record(uid: u128) -> String {
    format!("{RECORD}{uid:032x}")
}

/// The UID of a record.
pub(super) fn read_record(value: &[u8]) -> Result<u128, Error> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let uid = text
        .strip_prefix(RECORD)
        .and_then(|text| u128::from_str_radix(text.trim(), 16).ok());
    uid.ok_or_else(|| {
        Error::Fatal(format!(
            "the record of the cluster's UID in etcd reads {text:?}, which this version does not understand; was it written by a newer one?"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_again_at_its_place() {
        let layout = Layout::new("/muster/default/").unwrap();
        let place = layout.place("objects/a");
        assert_eq!(place, "/muster/default/data/objects/a");
        assert_eq!(layout.key(place.as_bytes()), Some(Key::new("objects/a")));
        assert_eq!(layout.key(layout.uid().as_bytes()), None);
        assert_eq!(layout.key(b"/muster/default/data/\xff"), None);
    }

    #[test]
    fn prefixes_that_could_mix_clusters_are_refused() {
        for prefix in [
            "",
            "/",
            "muster",
            "/a//b",
            "/a b",
            &format!("/{}", "x".repeat(PREFIX_BYTES_MAX)),
        ] {
            assert!(Layout::new(prefix).is_err(), "{prefix:?}");
        }
        assert!(!end("/a/").starts_with(b"/a/") && end("/a/") > b"/a/zzz".to_vec());
    }

    #[test]
    fn records_of_other_versions_are_not_guessed_at() {
        assert_eq!(read_record(record(7).as_bytes()).unwrap(), 7);
        for other in ["", "7", "muster-store/2 7", "muster-store/1 x"] {
            assert!(read_record(other.as_bytes()).is_err(), "{other:?}");
        }
    }
}
