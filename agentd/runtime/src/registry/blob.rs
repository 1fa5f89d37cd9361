//! One blob: fetched into a file, from where an earlier try got to, and taken for what it is by its digest only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use ::http::StatusCode;
use ::http::header::CONTENT_RANGE;
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::http::Session;
use super::{Progress, PullError};
use crate::images::digest_text;
use crate::limits::PULL_RESUMES;

/// A blob, as a manifest announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    hex: String,
    pub(super) size: u64,
}

/// Bytes that count as fetched for as long as they are not given up.
struct Counted<'a> {
    progress: &'a Progress,
    bytes: u64,
}

impl Counted<'_> {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    fn reset(&mut self) {
        self.progress.fetched.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What is there of a blob.
struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Blob {
    /// `None`: a digest that is none of sha256.
    pub(super) fn new(digest: &str, size: u64) -> Option<Blob> {
        let hex = digest.strip_prefix("sha256:")?;
        let fits = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        fits.then(|| Blob {
            hex: hex.to_owned(),
            size,
        })
    }

    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn whole(&self, layout: &Path) -> PathBuf {
        layout.join("blobs/sha256").join(&self.hex)
    }

    fn part(&self, layout: &Path) -> PathBuf {
        layout.join("parts").join(&self.hex)
    }

    /// How much of it is there.
    pub(super) fn here(&self, layout: &Path) -> u64 {
        let length = |path: PathBuf| std::fs::metadata(path).map(|found| found.len());
        length(self.whole(layout))
            .or_else(|_| length(self.part(layout)))
            .unwrap_or(0)
    }
}

/// Fetches what is missing of a blob. A connection that ends while it brings something is made again at once.
pub(super) async fn fetch(session: &Session, blob: &Blob, layout: &Path, progress: &Progress) -> Result<(), PullError> {
    let (whole, part) = (blob.whole(layout), blob.part(layout));
    if whole.exists() {
        // It got its name when its digest was right.
        progress.fetched.fetch_add(blob.size, Ordering::Relaxed);
        return Ok(());
    }
    for tries in 0.. {
        let before = blob.here(layout);
        match rest(session, blob, &part, progress).await {
            Ok(()) => break,
            Err(PullError::Later { after: None, .. }) if tries < PULL_RESUMES && blob.here(layout) > before => {}
            Err(error) => return Err(error),
        }
    }
    let named = tokio::fs::rename(&part, &whole).await;
    named.map_err(|error| PullError::disk(&whole, &error))
}

async fn rest(session: &Session, blob: &Blob, path: &Path, progress: &Progress) -> Result<(), PullError> {
    let disk = |error: io::Error| PullError::disk(path, &error);
    let registry = &session.remote.registry;
    let mut part = Part::open(path, blob.size).await.map_err(disk)?;
    let mut counted = Counted { progress, bytes: 0 };
    counted.add(part.bytes);
    let mut begun = part.bytes;
    if part.bytes < blob.size || blob.size == 0 {
        let response = session
            .get(&format!("blobs/{}", blob.digest()), "*/*", part.bytes)
            .await?;
        let from = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok());
        let goes_on = from.is_some_and(|range| range.starts_with(&format!("bytes {}-", part.bytes)));
        if begun > 0 && !(response.status() == StatusCode::PARTIAL_CONTENT && goes_on) {
            // It sends all, or something else than was asked for: then what is here is of no use.
            part.begin_anew().await.map_err(disk)?;
            counted.reset();
            begun = 0;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(PullError::later(format!(
                    "{registry} sends another part of {} than was asked for",
                    blob.digest()
                )));
            }
        }
        let came = receive(session, blob, response.into_body(), &mut part, &mut counted).await;
        // Also what came before a connection ended: it is where the next one goes on.
        part.file.flush().await.map_err(disk)?;
        if let Err(PullError::Damaged(_)) = came {
            part.begin_anew().await.map_err(disk)?;
        }
        came?;
    }
    if part.bytes < blob.size {
        return Err(PullError::later(format!(
            "{registry} sends {} of the {} bytes of {}",
            part.bytes,
            blob.size,
            blob.digest()
        )));
    }
    let found = digest_text(part.hash.clone());
    if found != blob.digest() {
        part.begin_anew().await.map_err(disk)?;
        let message = format!(
            "what {registry} sends for {} is damaged: its digest is {found}",
            blob.digest()
        );
        // The damage may be in what came before.
        return Err(if begun > 0 {
            PullError::later(message)
        } else {
            PullError::Damaged(message)
        });
    }
    counted.keep();
    Ok(())
}

async fn receive(
    session: &Session,
    blob: &Blob,
    mut body: Incoming,
    part: &mut Part,
    counted: &mut Counted<'_>,
) -> Result<(), PullError> {
    while let Some(piece) = session.piece(&mut body).await? {
        let length = piece.len() as u64;
        if part.bytes + length > blob.size {
            return Err(PullError::Damaged(format!(
                "{} sends more of {} than the {} bytes that its manifest announces",
                session.remote.registry,
                blob.digest(),
                blob.size
            )));
        }
        part.add(&piece)
            .await
            .map_err(|error| PullError::disk(&part.path, &error))?;
        counted.add(length);
    }
    Ok(())
}

impl Part {
    /// What an earlier try left, or nothing.
    async fn open(path: &Path, most: u64) -> io::Result<Part> {
        let path = path.to_owned();
        let at = path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(at)?;
            let mut hash = Sha256::new();
            let mut bytes = io::copy(&mut file, &mut hash)?;
            if bytes > most {
                file.set_len(0)?;
                io::Seek::rewind(&mut file)?;
                (hash, bytes) = (Sha256::new(), 0);
            }
            Ok::<_, io::Error>((file, hash, bytes))
        });
        let (file, hash, bytes) = opened.await.map_err(io::Error::other)??;
        let file = File::from_std(file);
        Ok(Part {
            path,
            file,
            hash,
            bytes,
        })
    }

    async fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        (self.hash, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    async fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece).await?;
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }
}
