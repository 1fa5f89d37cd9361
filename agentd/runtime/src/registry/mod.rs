//! Images from registries, by the distribution protocol of OCI over HTTP(S).
//!
//! What a registry sends is put into an OCI layout in a directory of the pull's own, and imported from there as any other layout is: so there
//! is one way into each store of images, and it checks everything that comes.
//!
//! It promises: an image whose digests are not right is none; what has come once does not come again when a pull is begun anew; every wait for
//! a registry ends; nothing is fetched that its manifest did not announce, and no more than that. Credentials are in memory only, go to the registry that they are
//! for, and to whom it names as the giver of its tokens, and never over a connection that everybody can read unless the registry is one of
//! those that were named so.
//!
//! What must never happen here: a name without a registry completed with one that nobody wrote; a certificate that is not checked.
//!
//! Tested with a registry that misbehaves in every way (`tests/registry`), and with a real one by e2e.

mod auth;
mod blob;
mod document;
mod http;
mod name;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use crate::images;
use crate::limits::{PULL_BLOBS, PULL_KEPT, PULL_SILENCE};
use document::Documents;
use http::Session;
use name::Remote;

pub use name::has_registry;

/// How registries are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// User names and passwords, in a file as `docker login` writes it. Read for every pull, so it may change.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities that are trusted besides the machine's, PEM. Read for every pull.
    pub authorities: Option<PathBuf>,
    /// Registries (`host[:port]`) that are spoken to without TLS. Those of this machine, by a loopback address, always are.
    pub plain: BTreeSet<String>,
    /// The only registries that are asked; empty: all.
    pub allowed: BTreeSet<String>,
    /// How long a registry may keep one waiting for an answer, or for more of it.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            credentials: None,
            authorities: None,
            plain: BTreeSet::new(),
            allowed: BTreeSet::new(),
            patience: PULL_SILENCE,
        }
    }
}

/// Why an image could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The registry has no such image.
    #[error("{0}")]
    NotFound(String),
    /// The registry does not give it to this machine, or is not to be asked.
    #[error("{0}")]
    Refused(String),
    /// What came is not what it was said to be, or no image that can be run here.
    #[error("{0}")]
    Damaged(String),
    /// This machine's disk does not take it.
    #[error("{0}")]
    Disk(String),
    /// It may go better later.
    #[error("{message}")]
    Later {
        /// What happened.
        message: String,
        /// How long the registry wants to be left alone, if it said so.
        after: Option<Duration>,
    },
}

impl PullError {
    pub(crate) fn later(message: impl Into<String>) -> PullError {
        PullError::Later {
            message: message.into(),
            after: None,
        }
    }

    /// Of this machine's disk.
    pub(crate) fn disk(what: &Path, error: &std::io::Error) -> PullError {
        PullError::Disk(format!("{}: {error}", what.display()))
    }

    /// Whether trying again can help.
    pub fn is_final(&self) -> bool {
        !matches!(self, PullError::Later { .. } | PullError::Disk(_))
    }
}

/// How far a pull is; written by the pull, read by anybody.
#[derive(Debug, Default)]
pub struct Progress {
    fetched: AtomicU64,
    total: AtomicU64,
    unpacking: AtomicBool,
}

/// How far a pull was at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes that are here.
    pub fetched: u64,
    /// Bytes of the whole image, as it comes; 0 while that is not known.
    pub total: u64,
    /// All is here and is being unpacked.
    pub unpacking: bool,
}

impl Progress {
    /// How far it is now.
    pub fn seen(&self) -> Seen {
        Seen {
            fetched: self.fetched.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            unpacking: self.unpacking.load(Ordering::Relaxed),
        }
    }

    /// All is here.
    pub(crate) fn unpacking(&self) {
        self.unpacking.store(true, Ordering::Relaxed);
    }
}

/// User names and passwords for registries, as `docker login` writes them; their text never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Arc<[u8]>);

impl Keys {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Keys {
    fn from(bytes: &[u8]) -> Keys {
        Keys(bytes.into())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What is to be fetched, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The image.
    pub image: String,
    /// Credentials that count before those of [`Config::credentials`]; the first that know the registry.
    pub keys: Vec<Keys>,
    /// Whose credentials they are. What has come of an image for some is not gone on with for others.
    pub whose: String,
    /// Whether the registry is asked what the name means although there is an image of it.
    pub anew: bool,
}

impl Order {
    /// This image, with no credentials but the machine's.
    pub fn of(image: impl Into<String>) -> Order {
        Order {
            image: image.into(),
            ..Order::default()
        }
    }
}

/// Fetches images for a runtime.
#[async_trait]
pub trait Puller: Send + Sync {
    /// Fetches an image, so that the runtime can make containers of that name. Does nothing when it is there, unless it is to be asked for
    /// anew. May be dropped at any time: then what has come stays for the next call with this order.
    ///
    /// # Errors
    /// [`PullError`]. What was fetched of an image that will never be one is gone then.
    async fn pull(&self, order: &Order, progress: &Progress) -> Result<(), PullError>;

    /// Deletes what has come of an image that nobody wants any more. To be called when no pull of it goes on.
    fn forget(&self, order: &Order);
}

/// Where the images of a runtime are.
#[async_trait]
pub(crate) trait Shelf: Sync {
    /// Whether there is an image of this name.
    async fn has(&self, image: &str) -> bool;

    /// Lets the name mean the image of this digest, if that is there. Whether it is.
    async fn reuse(&self, image: &str, digest: &str) -> Result<bool, PullError>;

    /// Takes in the image of this digest, the only one of the layout, and lets the name mean it.
    async fn take(&self, layout: &Path, image: &str, digest: &str) -> Result<(), PullError>;
}

/// An image that its registry has.
struct Known {
    session: Session,
    documents: Documents,
}

impl Known {
    /// Asks the registry what the name means.
    async fn ask(config: &Config, order: &Order) -> Result<Known, PullError> {
        let Some(remote) = Remote::parse(&order.image) else {
            return Err(PullError::Refused(format!(
                "the name {} does not say which registry has it",
                order.image
            )));
        };
        if !config.allowed.is_empty() && !config.allowed.contains(&remote.registry) {
            let allowed: Vec<&str> = config.allowed.iter().map(String::as_str).collect();
            return Err(PullError::Refused(format!(
                "images of {} are not fetched here, only those of {}",
                remote.registry,
                allowed.join(", ")
            )));
        }
        let session = Session::begin(config, &order.keys, remote).await?;
        let documents = Documents::fetch(&session).await?;
        Ok(Known { session, documents })
    }

    /// Fetches what is missing of it.
    async fn fetch(&self, layout: &Path, progress: &Progress) -> Result<(), PullError> {
        progress.fetched.store(0, Ordering::Relaxed);
        progress.total.store(self.documents.bytes(), Ordering::Relaxed);
        self.documents.prepare(layout).await?;
        let mut blobs = Vec::new();
        for one in &self.documents.blobs {
            blobs.push(blob::fetch(&self.session, one, layout, progress).boxed());
        }
        stream::iter(blobs)
            .buffer_unordered(PULL_BLOBS)
            .try_collect::<()>()
            .await?;
        self.documents.finish(layout).await
    }
}

/// Fetches an image into an OCI layout, in which it is the only one.
///
/// # Errors
/// [`PullError`]. What was fetched stays in the directory.
pub async fn fetch(config: &Config, order: &Order, layout: &Path, progress: &Progress) -> Result<(), PullError> {
    Known::ask(config, order).await?.fetch(layout, progress).await
}

/// Where what has come for an order is, below a directory for all pulls of one runtime.
fn place(pulls: &Path, order: &Order) -> PathBuf {
    // No name of an image has a space.
    let name = format!("{} {}", order.image, order.whose);
    pulls.join(images::digest(name.trim_end().as_bytes()).replace(':', "-"))
}

/// Fetches an image by way of a place below a directory for all pulls of one runtime.
pub(crate) async fn pull(
    config: &Config,
    pulls: &Path,
    order: &Order,
    progress: &Progress,
    shelf: &impl Shelf,
) -> Result<(), PullError> {
    if !order.anew && shelf.has(&order.image).await {
        return Ok(());
    }
    let layout = place(pulls, order);
    let work = async {
        let known = Known::ask(config, order).await?;
        let digest = known.documents.digest();
        if shelf.reuse(&order.image, &digest).await? {
            return Ok(());
        }
        known.fetch(&layout, progress).await?;
        progress.unpacking();
        shelf.take(&layout, &order.image, &digest).await
    };
    let pulled = work.await;
    if !matches!(pulled, Err(PullError::Later { .. })) {
        forget(pulls, order);
    }
    pulled
}

/// Deletes what has come for an order.
pub(crate) fn forget(pulls: &Path, order: &Order) {
    let layout = place(pulls, order);
    match fs::remove_dir_all(&layout) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, directory = %layout.display(), "what was fetched of an image stays");
        }
        _ => {}
    }
}

/// Deletes what came of images so long ago that nobody goes on with it.
pub(crate) fn forget_old(pulls: &Path) {
    for layout in fs::read_dir(pulls).into_iter().flatten().flatten() {
        let parts = layout.path().join("parts");
        let touched = fs::metadata(parts)
            .or_else(|_| layout.metadata())
            .and_then(|found| found.modified());
        if touched.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > PULL_KEPT)) {
            let _ = fs::remove_dir_all(layout.path());
        }
    }
}
