//! How entries and log records are written to disk.
//!
//! All numbers are little-endian; the first byte is the version, [`VERSION`]. A lease of zero is no lease.
//!
//! ```text
//! entry (table kv, under its key):        version u8 | created u64 | modified u64 | lease u64 | value, to the end
//! record (table log, under its revision): version u8 | count u32 | change...
//! change:                                 key_len u32 | key | kind u8
//!   kind 0, deleted:                      nothing more
//!   kind 1, put:                          created u64 | lease u64 | value_len u32 | value
//! ```
//!
//! An entry that a put made was modified at the revision of its record. Decoding trusts nothing: what does not fit is an
//! error, never a panic. Tested by a round trip over arbitrary batches and by cutting records at every length.

use bytes::Bytes;

use crate::Revision;
use crate::core::Batch;
use crate::types::{Change, Entry, Key, LeaseId};

/// The version of both encodings.
pub(super) const VERSION: u8 = 1;

const DELETED: u8 = 0;
const PUT: u8 = 1;

/// Bytes that no version of this code has written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(25 + entry.value.len());
    out.push(VERSION);
    out.extend_from_slice(&entry.create_revision.to_le_bytes());
    out.extend_from_slice(&entry.mod_revision.to_le_bytes());
    out.extend_from_slice(&lease_number(entry.lease).to_le_bytes());
    out.extend_from_slice(&entry.value);
    out
}

pub(super) fn decode_entry(key: &str, bytes: &[u8]) -> Result<Entry, Malformed> {
    let mut input = Input::new(bytes)?;
    let create_revision = input.u64()?;
    let mod_revision = input.u64()?;
    let lease = lease_from(input.u64()?);
    Ok(Entry {
        key: Key::new(key),
        value: Bytes::copy_from_slice(input.0),
        create_revision,
        mod_revision,
        lease,
    })
}

pub(super) fn encode_batch(batch: &Batch) -> Vec<u8> {
    let size = |change: &Change| 25 + change.key.as_str().len() + change.current.as_ref().map_or(0, |e| e.value.len());
    let mut out = Vec::with_capacity(5 + batch.changes.iter().map(size).sum::<usize>());
    out.push(VERSION);
    put_len(&mut out, batch.changes.len());
    for change in &batch.changes {
        put_len(&mut out, change.key.as_str().len());
        out.extend_from_slice(change.key.as_str().as_bytes());
        match &change.current {
            None => out.push(DELETED),
            Some(entry) => {
                out.push(PUT);
                out.extend_from_slice(&entry.create_revision.to_le_bytes());
                out.extend_from_slice(&lease_number(entry.lease).to_le_bytes());
                put_len(&mut out, entry.value.len());
                out.extend_from_slice(&entry.value);
            }
        }
    }
    out
}

pub(super) fn decode_batch(revision: Revision, bytes: &[u8]) -> Result<Batch, Malformed> {
    let mut input = Input::new(bytes)?;
    let count = input.len()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        let length = input.len()?;
        let key = std::str::from_utf8(input.take(length)?).map_err(|_| Malformed("a key is not UTF-8"))?;
        let key = Key::new(key);
        let current = match input.take(1)? {
            [DELETED] => None,
            [PUT] => {
                let create_revision = input.u64()?;
                let lease = lease_from(input.u64()?);
                let length = input.len()?;
                let value = Bytes::copy_from_slice(input.take(length)?);
                Some(Entry {
                    key: key.clone(),
                    value,
                    create_revision,
                    mod_revision: revision,
                    lease,
                })
            }
            _ => return Err(Malformed("a change is of no known kind")),
        };
        changes.push(Change { key, current });
    }
    if input.0.is_empty() {
        Ok(Batch { revision, changes })
    } else {
        Err(Malformed("a record goes on behind its end"))
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("transactions are limited to far less than 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
}

fn lease_number(lease: Option<LeaseId>) -> u64 {
    lease.map_or(0, |lease| lease.0)
}

fn lease_from(number: u64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn new(bytes: &'a [u8]) -> Result<Input<'a>, Malformed> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(Input(rest)),
            Some(_) => Err(Malformed("of an unknown version; was a newer Muster here?")),
            None => Err(Malformed("empty")),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().expect("eight were taken");
        Ok(u64::from_le_bytes(bytes))
    }

    fn len(&mut self) -> Result<usize, Malformed> {
        let bytes = self.take(4)?.try_into().expect("four were taken");
        usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| Malformed("longer than memory"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(revision: Revision) -> impl Strategy<Value = Change> {
        let entry = (prop::collection::vec(any::<u8>(), 0..40), any::<u64>(), any::<u64>());
        ("[a-z/\u{e4}]{1,12}", prop::option::of(entry)).prop_map(move |(key, entry)| {
            let key = Key::new(key);
            let current = entry.map(|(value, create_revision, lease)| Entry {
                key: key.clone(),
                value: value.into(),
                create_revision,
                mod_revision: revision,
                lease: lease_from(lease),
            });
            Change { key, current }
        })
    }

    proptest! {
        #[test]
        fn records_and_entries_come_back_as_they_were(changes in prop::collection::vec(change(7), 0..6)) {
            for entry in changes.iter().filter_map(|change| change.current.as_ref()) {
                prop_assert_eq!(&decode_entry(entry.key.as_str(), &encode_entry(entry)).unwrap(), entry);
            }
            let batch = Batch { revision: 7, changes };
            prop_assert_eq!(decode_batch(7, &encode_batch(&batch)).unwrap(), batch);
        }

        #[test]
        fn damaged_records_are_errors(changes in prop::collection::vec(change(7), 1..4), tail in any::<u8>()) {
            let mut bytes = encode_batch(&Batch { revision: 7, changes });
            for end in 0..bytes.len() {
                prop_assert!(decode_batch(7, &bytes[..end]).is_err());
            }
            bytes.push(tail);
            prop_assert!(decode_batch(7, &bytes).is_err());
        }

        #[test]
        fn noise_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let versioned: Vec<u8> = std::iter::once(VERSION).chain(bytes).collect();
            let _ = decode_batch(1, &versioned);
            let _ = decode_entry("k", &versioned);
        }
    }
}
