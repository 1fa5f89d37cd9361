//! Images from registries, by the distribution protocol of OCI over HTTP(S).
//!
//! What a registry sends is put into an OCI layout in a directory of the pull's own, and imported from there as any other layout is: so there
//! is one way into each store of images, and it checks everything that comes.
//!
//! It promises: an image whose digests are not right is none; what has come once does not come again when a pull is begun anew; every wait for
//! a registry ends; nothing is fetched that its manifest did not announce, and no more than that. Credentials go to the registry that they are
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
use std::fs;
use std::path::{Path, PathBuf};
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

/// Fetches images for a runtime.
#[async_trait]
pub trait Puller: Send + Sync {
    /// Fetches an image, so that the runtime can make containers of that name. Does nothing when it is there. May be dropped at any time: then
    /// what has come stays for the next call with this name.
    ///
    /// # Errors
    /// [`PullError`]. What was fetched of an image that will never be one is gone then.
    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), PullError>;

    /// Deletes what has come of an image that nobody wants any more. To be called when no pull of it goes on.
    fn forget(&self, image: &str);
}

/// Fetches an image into an OCI layout, in which it is the only one.
///
/// # Errors
/// [`PullError`]. What was fetched stays in the directory.
pub async fn fetch(config: &Config, image: &str, layout: &Path, progress: &Progress) -> Result<(), PullError> {
    let Some(remote) = Remote::parse(image) else {
        return Err(PullError::Refused(format!(
            "the name {image} does not say which registry has it"
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
    progress.fetched.store(0, Ordering::Relaxed);
    let session = Session::begin(config, remote).await?;
    let documents = Documents::fetch(&session).await?;
    progress.total.store(documents.bytes(), Ordering::Relaxed);
    documents.prepare(layout).await?;
    let mut blobs = Vec::new();
    for one in &documents.blobs {
        blobs.push(blob::fetch(&session, one, layout, progress).boxed());
    }
    stream::iter(blobs)
        .buffer_unordered(PULL_BLOBS)
        .try_collect::<()>()
        .await?;
    documents.finish(layout).await
}

/// Where what has come of an image is, below a directory for all pulls of one runtime.
fn place(pulls: &Path, image: &str) -> PathBuf {
    pulls.join(images::digest(image.as_bytes()).replace(':', "-"))
}

/// Fetches an image to a place below a directory for all pulls of one runtime, and has it imported from there.
pub(crate) async fn pull<F: Future<Output = Result<(), PullError>>>(
    config: &Config,
    pulls: &Path,
    image: &str,
    progress: &Progress,
    import: impl FnOnce(PathBuf) -> F,
) -> Result<(), PullError> {
    let layout = place(pulls, image);
    let work = async {
        fetch(config, image, &layout, progress).await?;
        progress.unpacking();
        import(layout.clone()).await
    };
    let pulled = work.await;
    if !matches!(pulled, Err(PullError::Later { .. })) {
        forget(pulls, image);
    }
    pulled
}

/// Deletes what has come of an image.
pub(crate) fn forget(pulls: &Path, image: &str) {
    let layout = place(pulls, image);
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
