//! A store in one file, for clusters with one API server.
//!
//! The state is in memory, in the same core that [`MemoryStore`](crate::MemoryStore) has, and on disk in a `redb`
//! database: current entries, and a log of what each revision changed. Commits that wait at the same time are applied one
//! after the other, written in one transaction and synced once (group commit); then readers and watches see them, and then
//! their callers are answered. So nobody sees what a crash could take back.
//!
//! A restart gives the same entries, the same revision, the same history for watches, and every lease with its full time
//! before it (nobody could keep it alive meanwhile). After a failed write the store refuses everything until it is opened
//! again: what is on disk is then unknown, and guessing would let memory and disk diverge. A call that is dropped before
//! it was answered may still take effect.
//!
//! What must never happen here: an answer before the sync, a revision used twice, a gap in the log. Tested by the
//! conformance suite, against a model with reopening (`tests/model.rs`), by killing the process (`tests/kill.rs`), and with
//! disks that fail and power cuts (below).

mod codec;
mod disk;
mod writer;

use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use redb::Database;
use tokio::sync::{mpsc, oneshot, watch as signal};
use tokio::time::Instant;

use crate::core::{Batch, Core, Entries, check_shape};
use crate::history::{Bounds, CHUNK, History};
use crate::leases::Leases;
use crate::types::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Txn, WatchError, WatchStream,
};
use crate::{Revision, Store, watch};
use writer::{Command, GROUP_MAX, Writer};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name that the store gets if it has to be made; an existing one keeps its own. Meant to be random.
    pub uid: u128,
    /// The revision that the store begins after if it has to be made, 0 by default: a restored cluster goes on above what it had.
    pub start: Revision,
    /// How many revisions of history are kept on disk at least. Older ones are forgotten as new ones come, as if by
    /// [`Store::compact`]. The default, 100,000, is 16 minutes at 100 writes a second; at 1.5 KB each it is 150 MB of file.
    pub retain: u64,
    /// Bytes of database pages cached in memory, 8 MiB by default. Entries are in memory anyway, so this serves writes (a
    /// group of 256 values of 1.5 KB dirties about 2 MB of pages) and watches that resume far back.
    pub cache_bytes: usize,
    /// Bytes of history kept in memory, 2 MiB by default: 1,200 revisions of 1.5 KB. The one watch of a server is behind by a group
    /// of commits, which are 256; watches that start further back read the disk until they have caught up. Values that are
    /// still current are shared and cost nothing here.
    pub tail_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            uid: 0,
            start: 0,
            retain: 100_000,
            cache_bytes: 8 << 20,
            tail_bytes: 2 << 20,
        }
    }
}

/// With values of a few bytes, this and not [`Options::tail_bytes`] bounds the history in memory.
const TAIL_REVISIONS: usize = 64 * 1024;

/// See the module. Dropping it waits for the group that is being written and releases the file.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    uid: u128,
}

/// What readers, watches and the writer share.
struct Shared {
    published: RwLock<Published>,
    /// Taken out when the store closes, so that its file is released even while a watch still reads.
    database: RwLock<Option<Database>>,
    failed: OnceLock<String>,
    wake: signal::Sender<()>,
}

/// What is on disk, and so may be seen.
struct Published {
    entries: Entries,
    revision: Revision,
    compacted: Revision,
    tail: History,
}

impl EmbeddedStore {
    /// Opens the store in the file `path`, which is made if it does not exist (its directory has to). One process at a time
    /// can have it open. Blocks while it reads: about a second for a million small entries, and longer after a crash, when
    /// the database checks its pages.
    pub fn open(path: &Path, options: &Options) -> Result<EmbeddedStore, Error> {
        let store = EmbeddedStore::start(disk::open(path, options.cache_bytes)?, options)?;
        tracing::info!(path = %path.display(), revision = store.shared.read().revision, "store opened");
        Ok(store)
    }

    fn start(database: Database, options: &Options) -> Result<EmbeddedStore, Error> {
        let bounds = Bounds {
            revisions: TAIL_REVISIONS,
            bytes: options.tail_bytes,
        };
        let loaded = disk::load(&database, options.uid, options.start, bounds)?;
        let mut tail = History::new(loaded.revision - loaded.tail.len() as u64, bounds);
        loaded.tail.into_iter().for_each(|batch| tail.push(batch));
        let leases = Leases::restore(loaded.leases, loaded.next_lease, Instant::now());
        let core = Core::restore(loaded.entries.clone(), leases, loaded.revision)?;
        let (revision, compacted) = (loaded.revision, loaded.compacted);
        let shared = Arc::new(Shared {
            published: RwLock::new(Published {
                entries: loaded.entries,
                revision,
                compacted,
                tail,
            }),
            database: RwLock::new(Some(database)),
            failed: OnceLock::new(),
            wake: signal::Sender::new(()),
        });
        let writer = Writer {
            core,
            shared: Arc::clone(&shared),
            compacted,
            retain: options.retain,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| Error::Fatal(format!("cannot start the store's writer: {error}")))?;
        // As many may wait as fit into the next group.
        let (commands, receiver) = mpsc::channel(GROUP_MAX);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || runtime.block_on(writer.run(receiver)))
            .map_err(|error| Error::Fatal(format!("cannot start the store's writer: {error}")))?;
        Ok(EmbeddedStore {
            shared,
            commands: Some(commands),
            writer: Some(writer),
            uid: loaded.uid,
        })
    }

    /// The name that the store was given when it was made.
    pub fn store_uid(&self) -> u128 {
        self.uid
    }

    /// Hands a command to the writer and waits for the answer.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        self.shared.check()?;
        let commands = self.commands.as_ref().expect("taken only by drop");
        let (answer, answered) = oneshot::channel();
        // Either fails only when the writer has ended, and it ends only after a failure.
        commands
            .send(command(answer))
            .await
            .map_err(|_| self.shared.failure())?;
        answered.await.map_err(|_| self.shared.failure())
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has printed its panic, and its clients have had their errors.
            let _ = writer.join();
        }
        *self
            .shared
            .database
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

const LOCKED: &str = "no one panics while holding the state";

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Published> {
        self.published.read().expect(LOCKED)
    }

    /// What is published, unless the store has failed.
    fn healthy(&self) -> Result<std::sync::RwLockReadGuard<'_, Published>, Error> {
        self.check()?;
        Ok(self.read())
    }

    fn check(&self) -> Result<(), Error> {
        if self.failed.get().is_some() {
            Err(self.failure())
        } else {
            Ok(())
        }
    }

    fn failure(&self) -> Error {
        let reason = self
            .failed
            .get()
            .map_or("its writer has ended; open the store again", String::as_str);
        Error::Fatal(reason.to_owned())
    }

    fn fail(&self, reason: String) {
        // Only the first reason is of interest.
        let _ = self.failed.set(reason);
        self.wake.send_replace(());
    }

    /// For the writer, which works only while the store is open.
    fn with_database<T>(&self, work: impl FnOnce(&Database) -> T) -> T {
        work(
            self.database
                .read()
                .expect(LOCKED)
                .as_ref()
                .expect("closed only after the writer has ended"),
        )
    }

    fn publish(&self, batches: Vec<Arc<Batch>>, compact: Option<Revision>) {
        let mut published = self.published.write().expect(LOCKED);
        for batch in batches {
            for change in &batch.changes {
                published.entries.install(change);
            }
            published.revision = batch.revision;
            published.tail.push(batch);
        }
        if let Some(compacted) = compact {
            published.compacted = compacted;
            published.tail.forget(compacted);
        }
        drop(published);
        self.wake.send_replace(());
    }

    /// History that is in memory no more. Blocks.
    fn since_from_disk(&self, after: Revision, count: u64) -> Result<Vec<Arc<Batch>>, WatchError> {
        let database = self.database.read().expect(LOCKED);
        let Some(database) = database.as_ref() else {
            return Err(Error::Unavailable("the store was closed".to_owned()).into());
        };
        let batches = disk::read_log(database, after, count)?;
        batches.ok_or_else(|| WatchError::Compacted {
            compacted: self.read().compacted.max(after + 1),
        })
    }
}

#[async_trait]
impl watch::Source for Shared {
    async fn since(self: Arc<Self>, after: Revision) -> Result<Vec<Arc<Batch>>, WatchError> {
        let floor = {
            let published = self.healthy()?;
            if after < published.compacted {
                return Err(WatchError::Compacted {
                    compacted: published.compacted,
                });
            }
            if let Some(batches) = published.tail.since(after) {
                return Ok(batches);
            }
            published.tail.floor()
        };
        // Not beyond what is in memory: the disk may be a group ahead of what is published.
        let count = (floor - after).min(CHUNK as u64);
        let read = tokio::task::spawn_blocking(move || self.since_from_disk(after, count));
        read.await
            .map_err(|error| Error::Unavailable(format!("reading history was cut short: {error}")))?
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.shared.healthy()?.entries.get(key).cloned())
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        let published = self.shared.healthy()?;
        Ok(published.entries.list(prefix, &page, published.revision))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        check_shape(&txn)?;
        self.ask(|answer| Command::Commit(txn, answer)).await?
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        watch::stream(&self.shared, self.shared.wake.subscribe(), prefix.clone(), after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.healthy()?.revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|answer| Command::Compact(revision, answer)).await?
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.ask(|answer| Command::Grant(ttl, answer)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.ask(|answer| Command::KeepAlive(lease, answer)).await?
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(|answer| Command::Revoke(lease, answer)).await
    }
}

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
