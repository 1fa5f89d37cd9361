//! The one that writes: takes whatever waits, applies it, syncs once, publishes, and only then answers.
//!
//! It runs in a thread of its own, because syncing blocks, with a small runtime for its timer. Its core is ahead of what
//! readers see exactly while a group is being synced. If that fails, nobody can say what is on disk: the store has
//! failed for good, and everybody who waits is told so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::disk::{self, Group};
use crate::Revision;
use crate::core::{Batch, Core};
use crate::types::{CommitError, Error, LeaseError, LeaseId, Txn};

/// How many commands may share one sync. At 64 clients at once a group is rarely larger; and a group of the largest
/// transactions stays under 400 MB.
pub(super) const GROUP_MAX: usize = 256;

/// Old history goes in steps of this many revisions beyond what the group itself adds, so that no single commit pays for
/// a long backlog.
const TRIM_STEP: u64 = 64;

/// What callers ask for, and where they wait for the answer.
pub(super) enum Command {
    Commit(Txn, oneshot::Sender<Result<Revision, CommitError>>),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
    Grant(Duration, oneshot::Sender<LeaseId>),
    KeepAlive(LeaseId, oneshot::Sender<Result<(), LeaseError>>),
    Revoke(LeaseId, oneshot::Sender<()>),
}

type Answer = Box<dyn FnOnce() + Send>;

fn reply<T: Send + 'static>(to: oneshot::Sender<T>, answer: T) -> Answer {
    // A receiver that is gone was not interested any more.
    Box::new(move || {
        let _ = to.send(answer);
    })
}

/// Tells everybody, should the writer panic.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("its writer panicked; open the store again".to_owned());
        }
    }
}

/// See the module.
pub(super) struct Writer {
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) compacted: Revision,
    pub(super) retain: u64,
}

impl Writer {
    /// Works until nobody can send commands any more, or until the disk fails.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut waiting = Vec::with_capacity(GROUP_MAX);
        loop {
            let deadline = self.core.leases().next_deadline();
            let timer = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                count = commands.recv_many(&mut waiting, GROUP_MAX) => if count == 0 { return },
                () = timer => {}
            }
            if !self.step(waiting.drain(..)) {
                return;
            }
        }
    }

    /// One group: in memory, on disk, to readers, to callers. False: the disk failed, and the store with it.
    fn step(&mut self, commands: impl Iterator<Item = Command>) -> bool {
        let mut group = Group::default();
        let mut answers: Vec<Answer> = Vec::new();
        for command in commands {
            answers.push(self.execute(command, &mut group));
        }
        // After the commands: a keep-alive that waited for a slow disk still counts.
        let now = Instant::now();
        while let Some((lease, batch)) = self.core.expire(now) {
            group.leases.insert(lease, None);
            group.batches.extend(batch.map(Arc::new));
        }
        self.trim(&mut group);
        group.next_lease = self.core.leases().next();
        if !group.is_empty() {
            if let Err(error) = self.shared.with_database(|database| disk::write(database, &group)) {
                tracing::error!(%error, "the store failed; it has to be opened again");
                // Before the answers are dropped unsent, which their receivers read as this failure.
                self.shared
                    .fail(format!("a write to disk failed: {error}; open the store again"));
                return false;
            }
            self.shared.publish(group.batches, group.compact);
        }
        answers.into_iter().for_each(|answer| answer());
        true
    }

    fn execute(&mut self, command: Command, group: &mut Group) -> Answer {
        match command {
            Command::Commit(txn, answer) => {
                let result = self.core.commit(txn).map(|batch| {
                    group.batches.extend(batch.map(Arc::new));
                    self.core.revision()
                });
                reply(answer, result)
            }
            Command::Compact(revision, answer) => {
                let newest = self.core.revision();
                let result = if revision > newest {
                    Err(Error::Fatal(format!(
                        "cannot forget revision {revision}: the store is at {newest}"
                    )))
                } else {
                    self.compact(revision, group);
                    Ok(())
                };
                reply(answer, result)
            }
            Command::Grant(ttl, answer) => {
                let lease = self.core.grant(ttl, Instant::now());
                group.leases.insert(lease, self.core.leases().ttl(lease));
                reply(answer, lease)
            }
            Command::KeepAlive(lease, answer) => {
                let result = self.core.keep_alive(lease, Instant::now());
                reply(answer, result)
            }
            Command::Revoke(lease, answer) => {
                if self.core.leases().contains(lease) {
                    group.leases.insert(lease, None);
                    let batch: Option<Batch> = self.core.revoke(lease);
                    group.batches.extend(batch.map(Arc::new));
                }
                reply(answer, ())
            }
        }
    }

    fn compact(&mut self, revision: Revision, group: &mut Group) {
        if revision > self.compacted {
            self.compacted = revision;
            group.compact = Some(revision);
        }
    }

    fn trim(&mut self, group: &mut Group) {
        if group.batches.is_empty() {
            return;
        }
        let kept_from = self.core.revision().saturating_sub(self.retain);
        let step = self.compacted + 2 * group.batches.len() as u64 + TRIM_STEP;
        // In whole steps: forgetting a revision at a time would touch the old end of the log in every transaction.
        if kept_from >= self.compacted + TRIM_STEP {
            self.compact(kept_from.min(step), group);
        }
    }
}
