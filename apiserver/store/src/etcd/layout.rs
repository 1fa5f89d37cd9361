//! Where things are in etcd, and what they look like there. Pure.

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use super::PREFIX_BYTES_MAX;
use crate::types::{Entry, Error, Key, LeaseId, Revision};

/// How the record of the cluster begins; the number is that of the layout.
const RECORD: &str = "muster-store/1 ";

/// The names of a cluster's keys.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: String,
    data: String,
    /// What our revisions are ahead of etcd's.
    offset: u64,
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
            offset: 0,
        })
    }

    /// The same with revisions that are ahead of etcd's.
    pub(super) fn with_offset(self, offset: u64) -> Layout {
        Layout { offset, ..self }
    }

    /// What our revisions are ahead of etcd's: everything up to here is before the store's own history.
    pub(super) fn offset(&self) -> Revision {
        self.offset
    }

    /// Our revision for etcd's; zero, which is none, stays zero.
    pub(super) fn revision(&self, number: i64) -> Revision {
        match u64::try_from(number) {
            Ok(number) if number > 0 => number.saturating_add(self.offset),
            _ => 0,
        }
    }

    /// Etcd's revision for ours; what lies before its time is zero.
    pub(super) fn number(&self, revision: Revision) -> i64 {
        number(revision.saturating_sub(self.offset))
    }

    /// Etcd's revision for one that a key must have exactly; one from before its time, no key has.
    pub(super) fn exactly(&self, revision: Revision) -> i64 {
        if revision > 0 && revision <= self.offset {
            -1
        } else {
            self.number(revision)
        }
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

    /// What the keys of slots begin with.
    pub(super) fn slots(&self) -> String {
        format!("{}meta/slot/", self.root)
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
            create_revision: self.revision(found.create_revision),
            mod_revision: self.revision(found.mod_revision),
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

/// A number as etcd reads it.
pub(super) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The record of a cluster: its UID, and what its revisions are ahead of etcd's.
pub(super) fn record(uid: u128, offset: u64) -> String {
    format!("{RECORD}{uid:032x} {offset}")
}

/// The UID and the offset of a record.
pub(super) fn read_record(value: &[u8]) -> Result<(u128, u64), Error> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let parts = text.strip_prefix(RECORD).and_then(|rest| rest.trim().split_once(' '));
    let read = parts.and_then(|(uid, offset)| Some((u128::from_str_radix(uid, 16).ok()?, offset.parse().ok()?)));
    read.ok_or_else(|| {
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
        assert_eq!(read_record(record(7, 9).as_bytes()).unwrap(), (7, 9));
        for other in [
            "",
            "7 0",
            "muster-store/2 7 0",
            "muster-store/1 x 0",
            "muster-store/1 7",
        ] {
            assert!(read_record(other.as_bytes()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn revisions_ahead_of_etcd_are_told_from_those_before_its_time() {
        let layout = Layout::new("/a").unwrap().with_offset(1_000);
        assert_eq!((layout.revision(7), layout.revision(0)), (1_007, 0));
        assert_eq!((layout.number(1_007), layout.number(900)), (7, 0));
        assert_eq!(
            [0, 1, 1_000, 1_001].map(|revision| layout.exactly(revision)),
            [0, -1, -1, 1]
        );
    }
}
