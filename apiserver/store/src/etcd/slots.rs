//! Where a transaction leaves its trace, so that it can be sent again.
//!
//! A slot is a key under `meta/` that one process alone writes, and one transaction at a time: the transaction compares the revision
//! that the slot was last written at, and writes it. So however often it is sent and whenever it arrives, it happens once at most; and
//! once anything has written the slot, whatever is still under way can never happen. Who finds the slot moved knows that the transaction
//! has happened, and at which revision.
//!
//! A slot whose transaction has an unknown outcome is never used again. Slots that nobody has written for a while are removed by the
//! compaction; who meets one that is gone takes another. What must never happen here: two transactions under way with one slot, or a
//! slot made where one was. Tested with the store, in `tests/etcd_faults.rs`.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Compare as EtcdCompare, CompareOp, GetOptions, Txn as EtcdTxn, TxnOp};
use tokio::time::Instant;

use super::Shared;
use super::members::{Trouble, kv};
use crate::types::{Error, Revision};

/// Slots that are made together: as many as a busy server has transactions under way, in one write.
const BATCH: u64 = 16;
/// Slots that are removed together; each takes a compare and an operation.
const REMOVED: usize = 100;
/// What is in a slot that its transaction has written, or nobody yet.
const WRITTEN: &str = "";
/// What is in a slot that was written so that its transaction cannot happen any more.
const SEALED: &str = "sealed";

/// A slot that is not in use.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) key: String,
    /// Etcd's revision of its last write.
    pub(super) revision: i64,
}

/// The slots of this process.
pub(super) struct Slots {
    /// What its slots' names begin with.
    owner: String,
    free: Mutex<Vec<Slot>>,
    /// How many names were given out.
    named: AtomicU64,
    /// Held by who makes some.
    making: tokio::sync::Mutex<()>,
}

impl Slots {
    pub(super) fn new(owner: String) -> Slots {
        Slots {
            owner,
            free: Mutex::default(),
            named: AtomicU64::new(0),
            making: tokio::sync::Mutex::default(),
        }
    }

    fn pop(&self) -> Option<Slot> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// It can be used again; it was last written at this revision of etcd.
    pub(super) fn give_back(&self, slot: Slot, revision: i64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(Slot { revision, ..slot });
    }

    /// Somebody has removed it, and with it all that were written no later.
    pub(super) fn removed(&self, slot: &Slot) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.retain(|other| other.revision > slot.revision);
    }

    /// Names that nobody was given.
    fn names(&self) -> Vec<String> {
        let first = self.named.fetch_add(BATCH, Ordering::Relaxed);
        (first..first + BATCH)
            .map(|number| format!("{}/{number}", self.owner))
            .collect()
    }
}

/// What became of a transaction whose slot was looked at.
pub(super) enum Fate {
    /// It has happened, at this revision of etcd.
    Happened(i64),
    /// It has not, and never will.
    Never,
}

impl Shared {
    /// A slot to use.
    pub(super) async fn slot(&self, end: Instant) -> Result<Slot, Error> {
        if let Some(slot) = self.slots.pop() {
            return Ok(slot);
        }
        let _making = self.slots.making.lock().await;
        loop {
            if let Some(slot) = self.slots.pop() {
                return Ok(slot);
            }
            self.make_slots(end).await?;
        }
    }

    async fn make_slots(&self, end: Instant) -> Result<(), Error> {
        let left = end.saturating_duration_since(Instant::now());
        // Other names each time: those of an attempt without an answer may be made yet.
        let made = self.members.ask(left, |client| {
            let names = self.slots.names();
            let mut compares = vec![self.own_record()];
            let absent = |name: &String| EtcdCompare::create_revision(name.as_str(), CompareOp::Equal, 0);
            compares.extend(names.iter().map(absent));
            let puts: Vec<TxnOp> = names
                .iter()
                .map(|name| TxnOp::put(name.as_str(), WRITTEN, None))
                .collect();
            async move {
                let answer = kv(&client).txn(EtcdTxn::new().when(compares).and_then(puts)).await?;
                Ok((names, answer.0))
            }
        });
        let (names, answer) = made.await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        self.header(answer.header)?;
        if !answer.succeeded {
            // If the record is what it was, another process has had these names.
            return self.recognise().await;
        }
        for key in names {
            self.slots.give_back(Slot { key, revision: 0 }, revision);
        }
        Ok(())
    }

    /// Sees to it that the transaction of a slot will not happen, unless it has.
    pub(super) async fn seal(&self, slot: &Slot, end: Instant) -> Result<(Fate, i64), Trouble> {
        let left = end.saturating_duration_since(Instant::now());
        let sealed = self.members.ask(left, |client| {
            let request = EtcdTxn::new()
                .when([slot.unmoved()])
                .and_then([slot.write(SEALED)])
                .or_else([slot.read()]);
            async move { kv(&client).txn(request).await }
        });
        let answer = sealed.await?.0;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        self.header(answer.header)
            .map_err(|error| Trouble::Refused(error.to_string()))?;
        if answer.succeeded {
            return Ok((Fate::Never, revision));
        }
        match slot.found(answer.responses.first().and_then(|first| first.response.as_ref())) {
            Found::Moved(at) => Ok((Fate::Happened(at), at)),
            Found::Sealed(at) => Ok((Fate::Never, at)),
            // It is removed only if it was not written for long.
            Found::Gone | Found::Unmoved => Err(Trouble::Lost("what the transaction left behind is gone".to_owned())),
        }
    }

    /// Removes slots that were last written at this revision or before it.
    pub(super) async fn remove_slots(&self, until: Revision) -> Result<(), Error> {
        let until = self.layout.number(until);
        let all = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_max_mod_revision(until)
            .with_limit(i64::try_from(REMOVED).unwrap_or(i64::MAX));
        loop {
            let found = self.range(&self.layout.slots(), &all).await?.kvs;
            if found.is_empty() {
                return Ok(());
            }
            let unchanged = found
                .iter()
                .map(|slot| EtcdCompare::mod_revision(slot.key.clone(), CompareOp::Equal, slot.mod_revision));
            let mut compares = vec![self.own_record()];
            compares.extend(unchanged);
            let deletes: Vec<TxnOp> = found.iter().map(|slot| TxnOp::delete(slot.key.clone(), None)).collect();
            let request = EtcdTxn::new().when(compares).and_then(deletes);
            let sent = self.members.send(super::members::DEADLINE, |client| {
                let request = request.clone();
                async move { kv(&client).txn(request).await }
            });
            let answer = sent.await?.0;
            self.header(answer.header)?;
            if !answer.succeeded || found.len() < REMOVED {
                // One that is in use again stays; the next time tells.
                return Ok(());
            }
        }
    }
}

/// How a slot was found.
pub(super) enum Found {
    /// As it was.
    Unmoved,
    /// Written by its transaction, at this revision of etcd.
    Moved(i64),
    /// Written so that its transaction cannot happen.
    Sealed(i64),
    /// Removed.
    Gone,
}

impl Slot {
    /// Nobody has written it.
    pub(super) fn unmoved(&self) -> EtcdCompare {
        EtcdCompare::mod_revision(self.key.as_str(), CompareOp::Equal, self.revision)
    }

    /// Its transaction writes it.
    pub(super) fn mark(&self) -> TxnOp {
        self.write(WRITTEN)
    }

    fn write(&self, text: &str) -> TxnOp {
        TxnOp::put(self.key.as_str(), text, None)
    }

    /// How it is found if a compare does not hold.
    pub(super) fn read(&self) -> TxnOp {
        TxnOp::get(self.key.as_str(), None)
    }

    /// How it was found.
    pub(super) fn found(&self, response: Option<&PbTxnOpResponse>) -> Found {
        let entry = match response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        };
        match entry {
            None => Found::Gone,
            Some(entry) if entry.mod_revision == self.revision => Found::Unmoved,
            Some(entry) if entry.value == SEALED.as_bytes() => Found::Sealed(entry.mod_revision),
            Some(entry) => Found::Moved(entry.mod_revision),
        }
    }
}
