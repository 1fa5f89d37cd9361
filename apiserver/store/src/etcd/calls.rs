//! Everything but transactions and watches: reads, leases, and who is on the other side.

use std::time::Duration;

use etcd_client::proto::{PbKeyValue, PbRangeResponse, PbResponseHeader};
use etcd_client::{CompactionOptions, Compare as EtcdCompare, CompareOp, GetOptions, Txn as EtcdTxn, TxnOp};
use tokio::time::Instant;

use super::layout::{self, Layout};
use super::members::{DEADLINE, Members, RENEWAL, Trouble, kv};
use super::{EtcdConfig, Identity, Shared};
use crate::types::{Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Revision};

/// Entries of the first answer to a listing: of a megabyte each, what a slow network brings within an attempt.
const PAGE_FIRST: i64 = 50;
/// Entries of a later one, at most.
const PAGE_MAX: i64 = 1_000;
/// Bytes that a later one should have: little enough for an attempt, enough that the way there does not count.
const PAGE_BYTES: usize = 2 << 20;

/// How long the first connection may take: members that were started together elect their leader.
const FIRST: Duration = Duration::from_secs(15);

/// Finds the cluster, or makes it, and returns etcd's newest revision too.
pub(super) async fn identify(
    members: &Members,
    layout: &Layout,
    config: &EtcdConfig,
) -> Result<(Identity, i64), Error> {
    let key = layout.uid();
    let end = Instant::now() + FIRST;
    loop {
        let read = members.ask(FIRST, |client| {
            let key = key.clone();
            async move { kv(&client).get(key, None).await }
        });
        let answer = read.await?.0;
        let header = answer.header.unwrap_or_default();
        if let Some(found) = answer.kvs.first() {
            let (uid, offset) = layout::read_record(&found.value)?;
            let identity = Identity {
                uid,
                offset,
                created: found.create_revision,
                etcd: header.cluster_id,
            };
            return match config.expect_uid {
                Some(expected) if expected != identity.uid => Err(Error::Fatal(format!(
                    "the etcd at {} holds another cluster under {}: its UID is {:032x}, expected {expected:032x}; check --etcd and --etcd-prefix",
                    config.endpoints.join(","),
                    config.prefix,
                    identity.uid
                ))),
                _ => Ok((identity, header.revision)),
            };
        }
        if let Some(expected) = config.expect_uid {
            return Err(Error::Fatal(format!(
                "the etcd at {} holds no cluster under {}, expected the one with the UID {expected:032x}; was it wiped? Check --etcd and --etcd-prefix, or restore a backup",
                config.endpoints.join(","),
                config.prefix
            )));
        }
        if !config.create {
            return Err(Error::Fatal(format!(
                "the etcd at {} holds no cluster under {}; check --etcd and --etcd-prefix",
                config.endpoints.join(","),
                config.prefix
            )));
        }
        let offset = config.start.saturating_sub(u64::try_from(header.revision).unwrap_or(0));
        let created = members.send(DEADLINE, |client| {
            let absent = EtcdCompare::create_revision(key.clone(), CompareOp::Equal, 0);
            let put = TxnOp::put(key.clone(), layout::record(config.uid, offset), None);
            async move { kv(&client).txn(EtcdTxn::new().when([absent]).and_then([put])).await }
        });
        match created.await {
            // Whoever made it, and whether or not we were answered: the next look tells.
            Ok(_) | Err(Trouble::Lost(_)) if Instant::now() < end => {}
            Ok(_) => {
                return Err(Error::Unavailable(
                    "etcd: the cluster was made, but cannot be read".to_owned(),
                ));
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
}

impl Shared {
    /// Whether the store still works.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.failed.get().map_or(Ok(()), |why| Err(Error::Fatal(why.clone())))
    }

    /// Stops the store for good.
    pub(super) fn fail(&self, why: String) -> Error {
        tracing::error!(why, "the store stops");
        // Only the first reason is of interest.
        let _ = self.failed.set(why.clone());
        Error::Fatal(why)
    }

    /// The newest revision known.
    pub(super) fn newest(&self) -> Revision {
        *self.newest.borrow()
    }

    /// Takes notice of a revision.
    pub(super) fn saw(&self, revision: Revision) {
        self.newest.send_if_modified(|newest| {
            let newer = revision > *newest;
            *newest = revision.max(*newest);
            newer
        });
    }

    /// Checks who answered.
    pub(super) fn origin(&self, header: Option<&PbResponseHeader>) -> Result<(), Error> {
        let etcd = header.map_or(0, |header| header.cluster_id);
        if etcd == self.identity.etcd {
            return Ok(());
        }
        Err(self.fail(format!(
            "another etcd answers than the one that the store was opened in (cluster id {etcd:x}, was {:x}); start the server again \
             with the right --etcd",
            self.identity.etcd
        )))
    }

    /// Checks who answered, takes notice of the revision, and returns it.
    pub(super) fn header(&self, header: Option<PbResponseHeader>) -> Result<Revision, Error> {
        self.origin(header.as_ref())?;
        let revision = self.layout.revision(header.map_or(0, |header| header.revision));
        self.saw(revision);
        Ok(revision)
    }

    /// One linearizable range, from a state no older than what was known before.
    pub(super) async fn range(&self, key: &str, options: &GetOptions) -> Result<PbRangeResponse, Trouble> {
        let known = self.newest();
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self
                .members
                .ask(end.saturating_duration_since(Instant::now()), |client| {
                    let options = Some(options.clone());
                    async move { kv(&client).get(key, options).await }
                });
            let answer = answer.await?.0;
            let revision = self.header(answer.header).map_err(refused)?;
            if revision >= known {
                return Ok(answer);
            }
            // A member of 3.4 that was paused may answer from the past. A write tells that from a history that has shrunk.
            tracing::warn!(revision, known, "etcd answered from the past");
            self.members
                .distrust(&self.members.current(), "it answered from the past");
            self.mark().await.map_err(refused)?;
            if Instant::now() >= end {
                return Err(Trouble::Lost(format!("revision {revision} was shown after {known}")));
            }
        }
    }

    pub(super) async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.check()?;
        let answer = self.range(&self.layout.place(key.as_str()), &GetOptions::new()).await?;
        Ok(answer.kvs.into_iter().next().and_then(|found| self.layout.entry(found)))
    }

    /// What is at one of the store's own keys.
    pub(super) async fn own(&self, key: &str) -> Result<Option<PbKeyValue>, Error> {
        self.check()?;
        Ok(self.range(key, &GetOptions::new()).await?.kvs.into_iter().next())
    }

    /// The record of the cluster, which must be the one it was.
    pub(super) async fn recognise(&self) -> Result<(), Error> {
        let found = self.own(&self.layout.uid()).await?;
        self.compare_record(found.as_ref())
    }

    pub(super) fn compare_record(&self, found: Option<&PbKeyValue>) -> Result<(), Error> {
        let same = found.is_some_and(|found| found.create_revision == self.identity.created);
        if same {
            return Ok(());
        }
        Err(self.fail(format!(
            "the etcd behind the endpoints is not the one that the store was opened in: the record of the cluster {:032x} is {}; it \
             was wiped or restored from a backup. Stop all servers, check the etcd, and start them again",
            self.identity.uid,
            if found.is_some() { "another one" } else { "gone" }
        )))
    }

    pub(super) async fn current_revision(&self) -> Result<Revision, Error> {
        self.check()?;
        let known = self.newest();
        let answer = self
            .range(&self.layout.uid(), &GetOptions::new().with_keys_only())
            .await?;
        self.compare_record(answer.kvs.first())?;
        Ok(self
            .layout
            .revision(answer.header.map_or(0, |header| header.revision))
            .max(known))
    }

    pub(super) async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.check()?;
        loop {
            match self.list_once(prefix, &page).await {
                // History was forgotten between two pages of one listing.
                Err(Trouble::Compacted) => tracing::debug!("listing again: the revision was forgotten meanwhile"),
                result => return Ok(result?),
            }
        }
    }

    /// All pages at the revision of the first.
    async fn list_once(&self, prefix: &Prefix, page: &Page) -> Result<Listing, Trouble> {
        let end = layout::end(&self.layout.place(prefix.as_str()));
        let mut start = self.layout.place(prefix.as_str());
        if let Some(after) = &page.after {
            start = start.max(format!("{}\0", self.layout.place(after.as_str())));
        }
        let mut listing = Listing {
            entries: Vec::new(),
            revision: 0,
            more: false,
        };
        let mut size = PAGE_FIRST;
        loop {
            let left = page.limit.map_or(usize::MAX, |limit| limit - listing.entries.len());
            // etcd takes a limit of zero for none; one more than nothing still tells whether there is more.
            let limit = i64::try_from(left).unwrap_or(i64::MAX).clamp(1, size);
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(limit)
                .with_revision(self.layout.number(listing.revision));
            let answer = match self.range(&start, &options).await {
                Err(Trouble::AnswerTooLarge) if limit > 1 => {
                    size = limit / 2;
                    continue;
                }
                answer => answer?,
            };
            if listing.revision == 0 {
                listing.revision = self.layout.revision(answer.header.map_or(0, |header| header.revision));
            }
            listing.more = answer.more;
            let Some(last) = answer.kvs.last() else {
                return Ok(listing);
            };
            if left == 0 {
                listing.more = true;
                return Ok(listing);
            }
            start = format!("{}\0", String::from_utf8_lossy(&last.key));
            size = next_size(&answer.kvs);
            let found = answer.kvs.into_iter().filter_map(|found| self.layout.entry(found));
            listing.entries.extend(found);
            if !answer.more || page.limit.is_some_and(|limit| listing.entries.len() >= limit) {
                return Ok(listing);
            }
        }
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.check()?;
        let number = self.layout.number(revision);
        if number == 0 {
            // Nothing of the store's own lies there.
            return Ok(());
        }
        let compacted = self.members.ask(DEADLINE, |client| async move {
            kv(&client).compact(number, Some(CompactionOptions::new())).await
        });
        match compacted.await {
            Ok(_) | Err(Trouble::Compacted) => Ok(()),
            Err(Trouble::Future) => Err(Error::Fatal(format!(
                "cannot forget revision {revision}: the store is not there yet"
            ))),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// etcd counts whole seconds and has a floor of 1.5 of its election timeouts: a lease may live longer than was asked for, never
    /// shorter. A grant whose answer was lost ends by itself.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.check()?;
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1_000).max(1)).unwrap_or(i64::MAX);
        // etcd's own maximum.
        let seconds = seconds.min(9_000_000_000);
        let granted = self.members.ask(DEADLINE, |client| async move {
            client.lease_client().grant(seconds, None).await
        });
        let granted = granted.await?.0;
        self.header(granted.header)?;
        if granted.ttl > seconds {
            tracing::debug!(asked = seconds, granted = granted.ttl, "etcd granted a longer lease");
        }
        u64::try_from(granted.id)
            .map(LeaseId)
            .map_err(|_| Error::Fatal(format!("etcd: the lease {} has no usable number", granted.id)))
    }

    /// A yes is a hint only: etcd of 3.4 may say so of a lease that is gone. Who must know compares the key in a transaction.
    pub(super) async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.check()?;
        let kept = self.members.ask(RENEWAL, |client| async move {
            client.lease_client().keep_alive(layout::number(lease.0)).await
        });
        match kept.await {
            Ok(_) => Ok(()),
            Err(Trouble::NoLease) => Err(LeaseError::Gone(lease)),
            Err(trouble) => Err(Error::from(trouble).into()),
        }
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.check()?;
        let revoked = self.members.ask(DEADLINE, |client| async move {
            client.lease_client().revoke(layout::number(lease.0)).await
        });
        match revoked.await {
            Ok(answer) => self.header(answer.0.header).map(|_| ()),
            Err(Trouble::NoLease) => Ok(()),
            Err(trouble) => Err(trouble.into()),
        }
    }
}

/// How many entries the next page should have, if they are like those of this one.
fn next_size(page: &[PbKeyValue]) -> i64 {
    let bytes: usize = page.iter().map(|found| found.key.len() + found.value.len()).sum();
    let each = (bytes / page.len().max(1)).max(1);
    i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX)
}

/// A store that has failed refuses, whatever was asked.
fn refused(error: Error) -> Trouble {
    match error {
        Error::Unavailable(why) => Trouble::Lost(why),
        Error::Full(_) => Trouble::Full,
        Error::Fatal(why) => Trouble::Refused(why),
    }
}
