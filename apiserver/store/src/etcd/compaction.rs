//! Forgetting history, once per interval, whoever does it.
//!
//! Every server runs this. A key under `meta/` holds the revision at which it was last written; whoever sees it unchanged for a
//! whole interval of its own clock writes the current revision there, by compare-and-swap, and then forgets what lies before
//! the revision that it replaced. So there is one compaction per interval however many servers there are, none depends on
//! clocks that agree, and no leader is needed: what forgets history works when the controllers don't.

use std::sync::Weak;
use std::time::Duration;

use etcd_client::{Compare as EtcdCompare, CompareOp, Txn as EtcdTxn, TxnOp};

use super::Shared;
use super::members::{DEADLINE, kv};
use crate::types::{Error, Revision};

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// At least so much time; at most twice as much and a bit. Ten minutes by default: what a client may be away without
    /// having to list everything again.
    pub every: Duration,
    /// And at least so many revisions, 10,000 by default: also the distance that keeps watches away from what etcd 3.4 does
    /// wrong next to a compaction.
    pub keep: u64,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction {
            every: Duration::from_secs(600),
            keep: 10_000,
        }
    }
}

/// What the key said when it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// When it was written; zero: never.
    at: Revision,
    /// The revision it holds.
    revision: Revision,
}

/// For ever, or as long as the store lives.
pub(super) async fn run(shared: Weak<Shared>, policy: Compaction) {
    let mut seen = None;
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            match shared.turn(seen, policy).await {
                Ok(now) => seen = Some(now),
                Err(error) => tracing::warn!(%error, "history is kept for now"),
            }
        }
        tokio::time::sleep(policy.every).await;
    }
}

impl Shared {
    /// One look at the key, and the compaction if it is ours.
    async fn turn(&self, seen: Option<Seen>, policy: Compaction) -> Result<Seen, Error> {
        let now = self.seen().await?;
        if seen != Some(now) {
            return Ok(now);
        }
        let newest = self.current_revision().await?;
        let Some(written) = self.claim(now, newest).await? else {
            return self.seen().await;
        };
        let target = now.revision.min(newest.saturating_sub(policy.keep));
        if target > 0 {
            self.remove_slots(target).await?;
            self.compact(target).await?;
            tracing::info!(revision = target, newest, "history was forgotten");
        }
        Ok(Seen {
            at: written,
            revision: newest,
        })
    }

    async fn seen(&self) -> Result<Seen, Error> {
        let found = self.own(&self.layout.compaction()).await?;
        Ok(found.map_or(Seen::default(), |found| Seen {
            at: self.layout.revision(found.mod_revision),
            revision: std::str::from_utf8(&found.value)
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
        }))
    }

    /// Writes `newest`, if nobody else has written; returns the revision of the write.
    async fn claim(&self, seen: Seen, newest: Revision) -> Result<Option<Revision>, Error> {
        let key = self.layout.compaction();
        let unchanged = EtcdCompare::mod_revision(key.clone(), CompareOp::Equal, self.layout.number(seen.at));
        let request = EtcdTxn::new()
            .when([self.own_record(), unchanged])
            .and_then([TxnOp::put(key, newest.to_string(), None)]);
        let sent = self.members.send(DEADLINE, |client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        });
        let answer = sent.await?.0;
        let revision = self.header(answer.header)?;
        Ok(answer.succeeded.then_some(revision))
    }
}
