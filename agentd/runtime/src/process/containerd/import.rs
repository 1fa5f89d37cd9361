//! Images on their way into containerd's store, and out of it.
//!
//! Everything is put there under a lease, so nothing is collected before the image names it, and nothing stays of what failed. An image is
//! unpacked at once: what cannot be run is noticed here and not by a task.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, UpdateImageRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types::Descriptor;
use futures::stream;
use tokio::sync::mpsc;

use super::client::{Client, Failure, absent_is_done};
use super::store::{self, Lease};
use crate::Error;
use crate::images::{Blob, Blobs, ImageError};
use crate::limits::{CONTAINERD_CALL_DEADLINE, IMAGE_WRITE_BYTES, IMAGE_WRITES};

/// Says of an image that it came from a registry, so that it can come again.
pub(super) const LABEL_FETCHED: &str = "muster.dev/fetched";

/// How long to wait for an answer to one piece of a blob: the last one is answered when all is on the disk.
const PIECE_DEADLINE: Duration = CONTAINERD_CALL_DEADLINE.saturating_mul(6);

/// The images of one containerd, in its namespace for Muster.
pub struct Store {
    client: Client,
}

/// What an import has put into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The digest of the manifest.
    pub digest: String,
    /// Bytes of its layers, as they came.
    pub bytes: u64,
}

impl Store {
    /// That of the containerd that listens there.
    ///
    /// # Errors
    /// When that cannot be the name of a namespace.
    pub fn new(socket: &Path, namespace: &str) -> Result<Store, Error> {
        Ok(Store {
            client: Client::new(socket, namespace)?,
        })
    }

    /// That of a containerd which is talked to already.
    pub(super) fn of(client: Client) -> Store {
        Store { client }
    }

    /// Puts the image at `path`, an OCI layout or an archive, into the store under a name. `digest`: what its manifest must have. A name that is
    /// taken then means this image.
    ///
    /// # Errors
    /// When it is not an image, is damaged or cannot be unpacked: then nothing of it stays.
    pub async fn import(&self, path: &Path, name: &str, digest: Option<&str>) -> Result<Stored, Error> {
        self.bring(path, name, digest, HashMap::new()).await
    }

    /// As [`import`](Store::import), of an image that came from a registry and can come again.
    pub(super) async fn keep(&self, layout: &Path, name: &str, digest: &str) -> Result<Stored, Error> {
        let labels = [(LABEL_FETCHED.to_owned(), "true".to_owned())];
        self.bring(layout, name, Some(digest), labels.into()).await
    }

    /// Whether there is an image of this name, or of the one that it is short for, and all of its documents.
    pub(super) async fn finds(&self, name: &str) -> Result<bool, Error> {
        Ok(store::find(&self.client, name).await?.is_some())
    }

    /// Lets a name mean the image of this digest, if that is there and can be run. Whether it is.
    pub(super) async fn point(&self, name: &str, digest: &str) -> Result<bool, Error> {
        let images = self.images().await?;
        let is_it = |image: &&Image| image.target.as_ref().is_some_and(|target| target.digest == digest);
        let mut same: Vec<&Image> = images.iter().filter(is_it).collect();
        // The name itself, if it is one of them: then nothing has to be done.
        same.sort_by_key(|image| image.name != name);
        let Some(first) = same.first() else { return Ok(false) };
        if first.name != name {
            let image = Image {
                name: name.to_owned(),
                target: first.target.clone(),
                labels: first.labels.clone(),
                ..Image::default()
            };
            let lease = store::lease(&self.client).await?;
            let named = self.name_it(image, &lease).await;
            store::release(&self.client, lease).await;
            named?;
        }
        // Now that the name keeps it: what it says must be there, and what it unpacks to.
        let whole = async {
            let Some(found) = store::find(&self.client, name).await? else {
                return Ok(false);
            };
            let snapshotter = super::kind::snapshotter(&self.client).await?;
            store::unpack(&self.client, &snapshotter, &found).await.map(|()| true)
        };
        match whole.await {
            // It comes anew.
            Err(Error::Invalid(_)) => Ok(false),
            other => other,
        }
    }

    async fn bring(
        &self,
        path: &Path,
        name: &str,
        digest: Option<&str>,
        labels: HashMap<String, String>,
    ) -> Result<Stored, Error> {
        let (opened, word, wanted) = (path.to_owned(), name.to_owned(), digest.map(str::to_owned));
        let open = move || {
            let scratch = std::env::temp_dir().join(store::unique("import"));
            std::fs::create_dir(&scratch).map_err(|source| ImageError::Io {
                context: format!("making {}", scratch.display()),
                source,
            })?;
            let blobs = Blobs::open(&opened, &word, wanted.as_deref(), &scratch);
            // An open file outlives its name.
            let _ = std::fs::remove_dir_all(&scratch);
            blobs
        };
        let blobs = tokio::task::spawn_blocking(open)
            .await
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let blobs = Arc::new(blobs.map_err(|error| Error::Invalid(error.to_string()))?);
        let lease = store::lease(&self.client).await?;
        let stored = self.store(&blobs, name, labels, &lease).await;
        store::release(&self.client, lease).await;
        stored
    }

    async fn store(
        &self,
        blobs: &Arc<Blobs>,
        name: &str,
        labels: HashMap<String, String>,
        lease: &Lease,
    ) -> Result<Stored, Error> {
        for layer in &blobs.layers {
            let (pieces, mut feed) = mpsc::channel(IMAGE_WRITES);
            let (source, blob) = (Arc::clone(blobs), layer.clone());
            let read = tokio::task::spawn_blocking(move || read(&source, &blob, &pieces));
            let written = self
                .write(lease, &layer.digest, layer.size, HashMap::new(), &mut feed)
                .await;
            drop(feed);
            let read = read.await.map_err(|error| Error::Invalid(error.to_string()))?;
            written?;
            read.map_err(|error| Error::Invalid(error.to_string()))?;
        }
        let config = [("containerd.io/gc.ref.content.config".to_owned(), blobs.config.0.clone())];
        let layers = blobs.layers.iter().enumerate();
        let layers = layers.map(|(n, layer)| (format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone()));
        self.write_document(lease, &blobs.config, HashMap::new()).await?;
        self.write_document(lease, &blobs.manifest, config.into_iter().chain(layers).collect())
            .await?;
        let image = Image {
            name: name.to_owned(),
            target: Some(Descriptor {
                media_type: blobs.media_type.clone(),
                digest: blobs.manifest.0.clone(),
                size: i64::try_from(blobs.manifest.1.len()).unwrap_or(i64::MAX),
                ..Descriptor::default()
            }),
            labels,
            ..Image::default()
        };
        let before = self.name_it(image, lease).await?;
        let unpacked = async {
            let image = store::find(&self.client, name).await?;
            let image = image.ok_or_else(|| Error::System {
                context: format!("the image {name}"),
                message: "deleted meanwhile".to_owned(),
            })?;
            let snapshotter = super::kind::snapshotter(&self.client).await?;
            store::unpack(&self.client, &snapshotter, &image).await?;
            store::defaults(&self.client, &snapshotter, &image).await
        };
        if let Err(error) = unpacked.await {
            // The name means again what it meant before.
            let _ = match before {
                Some(image) => self.update(image).await,
                None => self.delete(name).await,
            };
            return Err(error);
        }
        Ok(Stored {
            digest: blobs.manifest.0.clone(),
            bytes: blobs.layers.iter().map(|layer| layer.size).sum(),
        })
    }

    /// Gives the image its name; returns which image had that before.
    async fn name_it(&self, image: Image, lease: &Lease) -> Result<Option<Image>, Error> {
        let name = image.name.clone();
        let mut images = self.client.services().images();
        let request = CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        };
        let request = self.client.leased(&lease.id, request);
        match self.client.call("naming the image", images.create(request)).await {
            Err(Failure::Taken(_)) => {
                let before = self.images().await?.into_iter().find(|image| image.name == name);
                self.update(image).await?;
                Ok(before)
            }
            other => other.map(|_| None).map_err(Error::from),
        }
    }

    async fn update(&self, image: Image) -> Result<(), Error> {
        let mut images = self.client.services().images();
        let request = self.client.request(UpdateImageRequest {
            image: Some(image),
            ..UpdateImageRequest::default()
        });
        self.client.call("naming the image", images.update(request)).await?;
        Ok(())
    }

    async fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images = self.client.services().images();
        let request = self.client.request(ListImagesRequest::default());
        let listed = self.client.call("listing the images", images.list(request)).await?;
        Ok(listed.images)
    }

    /// The names of all images, sorted.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = self.images().await?.into_iter().map(|image| image.name).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes an image. Containers that run from it go on.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`] says what there is instead.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let mut images = self.client.services().images();
        let request = self.client.request(DeleteImageRequest {
            name: name.to_owned(),
            sync: true,
            ..DeleteImageRequest::default()
        });
        let deleted = absent_is_done(self.client.call("deleting the image", images.delete(request)).await)?;
        if deleted.is_some() {
            return Ok(());
        }
        let there = match self.list().await?.join(", ") {
            none if none.is_empty() => "no image is there".to_owned(),
            names => format!("there are: {names}"),
        };
        let socket = self.client.socket().display();
        Err(Error::ImageNotFound(format!(
            "the image {name} is not in containerd at {socket}; {there}"
        )))
    }

    async fn write_document(
        &self,
        lease: &Lease,
        (digest, bytes): &(String, Vec<u8>),
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let (pieces, mut feed) = mpsc::channel(1);
        // There is room for one.
        let _ = pieces.try_send(bytes.clone());
        drop(pieces);
        self.write(lease, digest, bytes.len() as u64, labels, &mut feed).await
    }

    /// Writes a blob; containerd checks its digest. One that is there already is kept for the lease.
    async fn write(
        &self,
        lease: &Lease,
        digest: &str,
        size: u64,
        labels: HashMap<String, String>,
        feed: &mut mpsc::Receiver<Vec<u8>>,
    ) -> Result<(), Error> {
        const WHAT: &str = "writing the image";
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let piece = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            r#ref: format!("muster-{digest}"),
            total: size,
            expected: digest.to_owned(),
            offset,
            data,
            ..WriteContentRequest::default()
        };
        let (requests, receiver) = mpsc::channel(IMAGE_WRITES);
        let requested = stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        let mut content = self.client.services().content();
        // Only so much is under way that nothing waits for an answer that nobody reads.
        let _ = requests.try_send(piece(WriteAction::Stat, 0, Vec::new()));
        let request = self.client.leased(&lease.id, requested);
        let opened = self.client.call(WHAT, content.write(request)).await;
        let mut answers = match opened {
            Err(Failure::Taken(_)) => return Ok(()),
            other => other?,
        };
        let mut answer = async || -> Result<(), Failure> {
            let answer = async {
                let answer = answers.message().await?;
                let closed = || tonic::Status::unavailable("it has closed the connection");
                answer.map(tonic::Response::new).ok_or_else(closed)
            };
            self.client.call_within(WHAT, PIECE_DEADLINE, answer).await.map(drop)
        };
        let mut offset = 0;
        let gone = |_| Error::System {
            context: WHAT.to_owned(),
            message: "containerd has closed the connection".to_owned(),
        };
        let taken = |failure| match failure {
            Failure::Taken(_) => Ok(()),
            failure => Err(Error::from(failure)),
        };
        if let Err(failure) = answer().await {
            return taken(failure);
        }
        while let Some(data) = feed.recv().await {
            let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
            requests
                .send(piece(WriteAction::Write, offset, data))
                .await
                .map_err(gone)?;
            if let Err(failure) = answer().await {
                return taken(failure);
            }
            offset += length;
        }
        let mut last = piece(WriteAction::Commit, offset, Vec::new());
        last.labels = labels;
        requests.send(last).await.map_err(gone)?;
        answer().await.or_else(taken)
    }
}

/// Reads a layer in pieces, until nobody wants more.
fn read(blobs: &Blobs, layer: &Blob, pieces: &mpsc::Sender<Vec<u8>>) -> Result<(), ImageError> {
    let failed = |source| ImageError::Io {
        context: format!("reading {}", layer.digest),
        source,
    };
    let mut reader = blobs.read(layer)?;
    loop {
        let mut piece = Vec::with_capacity(IMAGE_WRITE_BYTES);
        reader
            .by_ref()
            .take(IMAGE_WRITE_BYTES as u64)
            .read_to_end(&mut piece)
            .map_err(failed)?;
        if piece.is_empty() || pieces.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
}
