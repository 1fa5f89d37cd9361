//! Every promise of a [`Store`], stated once.
//!
//! A case is an async function that is given a [`Fixture`] and panics when a promise is broken. Revisions are compared
//! relatively and all keys lie under the fixture's root, so a case may run on a store that was used before; but nobody
//! else may write while it runs. [`conformance_suite!`](crate::conformance_suite) makes one test of each case;
//! [`check_all`] runs them one after the other.
//!
//! ```
//! use std::sync::Arc;
//! use muster_store::{MemoryStore, conformance::Fixture};
//!
//! async fn memory() -> Fixture {
//!     Fixture::new(Arc::new(MemoryStore::new()))
//! }
//!
//! muster_store::conformance_suite!(tokio::test(start_paused = true), memory);
//! ```

mod faults;
mod leases;
mod reads;
mod transactions;
mod watches;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use crate::Store;
use crate::types::{
    Change, CommitError, Compare, Entry, Key, LeaseId, Op, Page, Prefix, Revision, Txn, WatchError, WatchEvent,
    WatchStream,
};

pub use faults::{under_faults, under_storm};

/// Longer than anything takes that works. Under paused time it costs nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store and the place in it that belongs to a case.
pub struct Fixture {
    store: Arc<dyn Store>,
    root: String,
    ttl: Duration,
    overhead: usize,
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Fixture {
    /// A store that nobody else uses.
    pub fn new(store: Arc<dyn Store>) -> Fixture {
        Fixture {
            store,
            root: "conformance/".to_owned(),
            ttl: Duration::from_secs(1),
            overhead: 0,
            _guard: None,
        }
    }

    /// Puts all keys under `root`, which has to be empty; without this, under `conformance/`.
    #[must_use]
    pub fn with_root(self, root: impl Into<String>) -> Fixture {
        Fixture {
            root: root.into(),
            ..self
        }
    }

    /// The shortest lease that makes sense with this store; without this, a second.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Fixture {
        Fixture { ttl, ..self }
    }

    /// So many bytes of a transaction's limit the store needs for each value itself; without this, none.
    #[must_use]
    pub fn with_overhead(self, overhead: usize) -> Fixture {
        Fixture { overhead, ..self }
    }

    /// Keeps something, such as the store's directory, for as long as the case runs.
    #[must_use]
    pub fn with_guard(self, guard: impl Any + Send + Sync) -> Fixture {
        Fixture {
            _guard: Some(Box::new(guard)),
            ..self
        }
    }

    fn key(&self, name: &str) -> Key {
        Key::new(format!("{}{name}", self.root))
    }

    fn prefix(&self, name: &str) -> Prefix {
        Prefix::new(format!("{}{name}", self.root))
    }

    fn put_op(&self, name: &str, value: &str) -> Op {
        Op::put(self.key(name), value.to_owned())
    }

    fn put_under(&self, name: &str, lease: LeaseId) -> Op {
        Op::Put {
            key: self.key(name),
            value: "leased".into(),
            lease: Some(lease),
        }
    }

    fn delete_op(&self, name: &str) -> Op {
        Op::delete(self.key(name))
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision, CommitError> {
        self.store.commit(Txn { compares, ops }).await
    }

    /// Does the operations without a compare.
    async fn write(&self, ops: Vec<Op>) -> Revision {
        self.commit(vec![], ops)
            .await
            .expect("a transaction without compares commits")
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        self.write(vec![self.put_op(name, value)]).await
    }

    async fn delete(&self, name: &str) -> Revision {
        self.write(vec![self.delete_op(name)]).await
    }

    async fn get(&self, name: &str) -> Option<Entry> {
        self.store.get(&self.key(name)).await.expect("a healthy store answers")
    }

    async fn value(&self, name: &str) -> Option<String> {
        self.get(name)
            .await
            .map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
    }

    async fn revision(&self) -> Revision {
        self.store.revision().await.expect("a healthy store answers")
    }

    async fn grant(&self, ttl: Duration) -> LeaseId {
        self.store.grant(ttl).await.expect("a healthy store grants")
    }

    /// The names under a prefix, and whether there are more.
    async fn names(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> (Vec<String>, bool) {
        let page = Page {
            after: after.map(|name| self.key(name)),
            limit,
        };
        let listing = self
            .store
            .list(&self.prefix(prefix), page)
            .await
            .expect("a healthy store answers");
        let name = |entry: &Entry| entry.key.as_str().strip_prefix(&self.root).map(str::to_owned);
        let names = listing
            .entries
            .iter()
            .map(|entry| name(entry).expect("what is listed has the prefix"));
        (names.collect(), listing.more)
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.store.watch(&self.prefix(prefix), after)
    }
}

/// The next item that is not mere progress.
async fn next_item(watch: &mut WatchStream) -> Result<WatchEvent, WatchError> {
    loop {
        let item = timeout(PATIENCE, watch.next())
            .await
            .expect("the watch goes on within a minute");
        match item.expect("a watch ends only after an error") {
            Ok(WatchEvent::Progress(_)) => {}
            item => return item,
        }
    }
}

/// The next batch.
async fn next_batch(watch: &mut WatchStream) -> (Revision, Vec<Change>) {
    match next_item(watch).await {
        Ok(WatchEvent::Batch { revision, changes }) => (revision, changes),
        other => panic!("a batch was due, not {other:?}"),
    }
}

/// A change as key and new value.
fn brief(changes: &[Change]) -> Vec<(&str, Option<&[u8]>)> {
    changes
        .iter()
        .map(|change| (change.key.as_str(), change.current.as_ref().map(|entry| &*entry.value)))
        .collect()
}

/// Calls a macro with the names of all cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __with_conformance_cases {
    ($macro:path, $($input:tt)*) => {
        $macro! { $($input)*
            create_if_absent_has_one_winner,
            modified_compare_holds_for_the_last_write_only,
            created_compare_survives_updates_but_not_recreation,
            not_modified_after_compare_allows_older_writes_and_absence,
            conflict_returns_current_entries_and_writes_nothing,
            delete_of_absent_key_takes_no_revision,
            transaction_without_operations_checks_and_writes_nothing,
            revisions_rise_and_are_shared_by_the_keys_of_a_transaction,
            recreated_key_has_a_new_create_revision,
            same_value_again_is_a_write,
            any_bytes_are_a_value,
            limits_are_kept,
            key_written_twice_is_refused,
            empty_key_is_refused,
            put_under_an_unknown_lease_writes_nothing,
            list_is_in_byte_order_and_ends_with_the_prefix,
            list_pages_do_not_overlap_or_skip,
            list_says_what_revision_it_shows,
            reads_see_acknowledged_writes,
            watch_from_the_past_replays_history,
            watch_from_now_leaves_out_what_was,
            watch_batches_hold_whole_revisions_in_key_order,
            watch_shows_only_its_prefix,
            watch_entries_equal_read_entries,
            two_watches_see_the_same,
            watch_resumes_without_loss_or_repetition,
            watch_sees_concurrent_commits_in_order,
            watch_from_compacted_history_is_told_so,
            compaction_keeps_values_and_later_history,
            compaction_of_the_future_is_refused,
            keys_of_an_expired_lease_vanish_together,
            lease_does_not_end_early,
            keep_alive_extends_a_lease_and_writes_nothing,
            keep_alive_of_an_ended_lease_is_refused,
            revoked_lease_takes_its_keys_at_one_revision,
            revoking_twice_is_no_error,
            put_under_an_ended_lease_is_refused,
            put_without_lease_detaches,
            put_under_another_lease_moves_the_key,
            deleted_key_is_detached,
            lease_ids_are_not_used_twice,
        }
    };
}

/// One test per case: `conformance_suite!(tokio::test, make)`, where `make()` is a future of a [`Fixture`].
#[macro_export]
macro_rules! conformance_suite {
    (@cases [$attribute:meta] [$make:expr] $($case:ident,)*) => {
        $(
            #[$attribute]
            async fn $case() {
                $crate::conformance::case(stringify!($case), $make().await).await;
            }
        )*
    };
    ($attribute:meta, $make:expr) => {
        $crate::__with_conformance_cases! { $crate::conformance_suite, @cases [$attribute] [$make] }
    };
}

macro_rules! table {
    ($($case:ident,)*) => {
        /// The names of all cases.
        pub const CASES: &[&str] = &[$(stringify!($case)),*];

        fn find(name: &str, fixture: Fixture) -> Option<BoxFuture<'static, ()>> {
            use leases::*;
            use reads::*;
            use transactions::*;
            use watches::*;
            match name {
                $(stringify!($case) => Some(Box::pin(async move { $case(&fixture).await })),)*
                _ => None,
            }
        }
    };
}

__with_conformance_cases! { table, }

/// Runs one case.
///
/// # Panics
///
/// When the store breaks the promise, or no case has this name.
pub async fn case(name: &str, fixture: Fixture) {
    find(name, fixture)
        .unwrap_or_else(|| panic!("there is no case {name}"))
        .await;
}

/// Runs every case, each with a fixture of its own.
///
/// # Panics
///
/// When the store breaks a promise.
pub async fn check_all<F: Future<Output = Fixture>>(make: impl Fn() -> F) {
    for name in CASES {
        tracing::info!(name, "conformance case");
        case(name, make().await).await;
    }
}
