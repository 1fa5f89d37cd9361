//! A store in etcd, for clusters with several API servers.
//!
//! One cluster is one prefix of one etcd: its entries lie under `<prefix>/data/`, what the store keeps for itself under
//! `<prefix>/meta/`. At the first start the cluster's UID is recorded there, create-only; every transaction compares that very
//! record, so a wrong, empty or restored etcd behind the same address can never be written.
//!
//! Revisions are etcd's own, from an offset that is recorded with the UID: zero, unless the cluster was restored, when its
//! revisions must not come again. They rise, but not by one: other prefixes of the same etcd move them too. Who has seen a newer
//! revision than its watch, and nothing comes, has the watch overtake it by a write of its own under `meta/` (a *mark*): events
//! come in order, so the mark's event proves what went before. Progress notifications of etcd 3.4 prove nothing and are not used.
//!
//! A call that gets no answer is tried again, with another member, until its deadline is over. A transaction can be, because it writes a
//! key of its own whose last revision it compares (`slots`): however often it is sent, it happens once at most, and who asks later is
//! told whether it has. After [`Error::Unavailable`] nothing was written and nothing will be; what cannot be found out within the
//! deadline is [`CommitError::Unknown`]. What etcd promises and its 3.4 branch has broken is checked:
//! reads are no older than what was known before them, events that repeat or go back are dropped, and a history that has
//! become shorter stops the store for good, because everything that was derived from it may be wrong.
//!
//! What must never happen here: a transaction that happens twice, or after its failure was told, a progress that no event proves. Tested by
//! the conformance suite on one and on three members, with TLS, and with members that are killed, stopped and restarted
//! (`tests/etcd.rs`, `tests/etcd_faults.rs`).

mod calls;
mod compaction;
mod envelopes;
mod layout;
mod members;
mod slots;
mod txn;
mod watch;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch as signal;
use tokio::task::AbortHandle;

use crate::Store;
use crate::core::check_shape;
use crate::types::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Revision, Txn, WatchStream,
};
pub use compaction::Compaction;
use envelopes::Envelopes;
use layout::Layout;
use members::Members;
use slots::Slots;

/// How an etcd is reached, and which cluster in it is meant.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The client URLs of its members, such as `https://10.0.0.1:2379`. One is asked at a time; the next one when it fails.
    pub endpoints: Vec<String>,
    /// For `https` URLs.
    pub tls: Option<EtcdTls>,
    /// What all keys of the cluster begin with, such as `/muster/default`; at most [`PREFIX_BYTES_MAX`] bytes.
    pub prefix: String,
    /// The name that the cluster gets if the prefix is empty; an existing one keeps its own. Meant to be random.
    pub uid: u128,
    /// Whether the cluster is made if the prefix is empty.
    pub create: bool,
    /// The revision that it begins after if the prefix is empty. Etcd's own cannot be set, so they are counted from there.
    pub start: Revision,
    /// The name that it must have already; anything else, or nothing, is refused.
    pub expect_uid: Option<u128>,
    /// When history is forgotten; `None`: somebody else sees to it.
    pub compaction: Option<Compaction>,
    /// How long a watch may be behind what is known, in silence, until a mark is written. Shorter means more writes when
    /// others write to the same etcd, longer means that reads wait longer after such writes. The default, 20 ms, is ten
    /// times what a commit takes.
    pub progress_after: Duration,
}

impl EtcdConfig {
    /// The cluster `prefix` in the etcd at `endpoints`; a cluster that does not exist yet is named `uid`.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>, uid: u128) -> EtcdConfig {
        EtcdConfig {
            endpoints,
            tls: None,
            prefix: prefix.into(),
            uid,
            create: true,
            start: 0,
            expect_uid: None,
            compaction: Some(Compaction::default()),
            progress_after: Duration::from_millis(20),
        }
    }
}

/// Certificates, as PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub ca: Vec<u8>,
    /// Our certificate and its key, if etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// The longest prefix: what 127 compares and operations add to a full transaction with it stays under etcd's 1.5 MiB.
pub const PREFIX_BYTES_MAX: usize = 64;

/// See the module. Dropping it ends its watches and its background work.
pub struct EtcdStore {
    shared: Arc<Shared>,
    compactor: Option<AbortHandle>,
}

/// What calls, watches and the background share.
pub(crate) struct Shared {
    members: Members,
    layout: Layout,
    /// The record of the cluster's UID.
    identity: Identity,
    slots: Slots,
    envelopes: Envelopes,
    /// The newest revision that any answer has shown.
    newest: signal::Sender<Revision>,
    failed: OnceLock<String>,
    progress_after: Duration,
}

/// The cluster's name, and etcd's revision at which it was recorded: a record made anew is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    uid: u128,
    created: i64,
    /// What its revisions are ahead of etcd's.
    offset: u64,
    /// etcd's own number for itself.
    etcd: u64,
}

impl EtcdStore {
    /// Connects, and finds or makes the cluster. Must be called within a tokio runtime.
    pub async fn open(config: EtcdConfig) -> Result<EtcdStore, Error> {
        let layout = Layout::new(&config.prefix)?;
        let members = Members::new(&config).await?;
        let (identity, newest) = calls::identify(&members, &layout, &config).await?;
        let layout = layout.with_offset(identity.offset);
        // Unique by the first; by the second, should somebody give the same name twice.
        let slots = Slots::new(format!("{}{:032x}-{newest:x}", layout.slots(), config.uid));
        let newest = layout.revision(newest);
        let shared = Arc::new(Shared {
            members,
            layout,
            identity,
            slots,
            envelopes: Envelopes::default(),
            newest: signal::Sender::new(newest),
            failed: OnceLock::new(),
            progress_after: config.progress_after,
        });
        let compactor = config
            .compaction
            .map(|policy| tokio::spawn(compaction::run(Arc::downgrade(&shared), policy)).abort_handle());
        let prefix = &config.prefix;
        tracing::info!(%prefix, uid = %format_args!("{:032x}", identity.uid), revision = newest, "store opened in etcd");
        Ok(EtcdStore { shared, compactor })
    }

    /// The name that the cluster was given when it was made.
    pub fn store_uid(&self) -> u128 {
        self.shared.identity.uid
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.shared.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.shared.list(prefix, page).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        check_shape(&txn)?;
        self.shared.commit(txn).await
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        watch::stream(&self.shared, prefix.clone(), after)
    }

    /// Others' revisions, and marks, come as progress or not at all; see the module for what proves that nothing was lost.
    fn gapless(&self) -> bool {
        false
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.shared.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.shared.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.shared.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.shared.revoke(lease).await
    }
}
