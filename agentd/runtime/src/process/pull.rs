//! Images from registries, for containers of the process runtime.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::shared::Shared;
use crate::Images;
use crate::images::ImageError;
use crate::registry::{self, Order, Progress, PullError, Puller, Shelf};

/// Fetches images into the directory of images.
pub(super) struct IntoDirectory(pub(super) Arc<Shared>);

#[async_trait]
impl Puller for IntoDirectory {
    async fn pull(&self, order: &Order, progress: &Progress) -> Result<(), PullError> {
        let config = &self.0.config;
        registry::pull(&config.registries, &config.pulls(), order, progress, &config.images).await
    }

    fn forget(&self, order: &Order) {
        registry::forget(&self.0.config.pulls(), order);
    }
}

/// Does what blocks on the disk.
async fn blocking<T: Send + 'static>(
    images: &Images,
    work: impl FnOnce(&Images) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, PullError> {
    let images = images.clone();
    let done = tokio::task::spawn_blocking(move || work(&images)).await;
    let done = done.map_err(|error| PullError::Disk(error.to_string()))?;
    done.map_err(|error| match &error {
        ImageError::NotFound(why) | ImageError::Invalid(why) => PullError::Damaged(why.clone()),
        // An archive that is none is not the disk's fault.
        ImageError::Io { source, .. } if source.raw_os_error().is_none() => PullError::Damaged(error.to_string()),
        ImageError::Io { .. } => PullError::Disk(error.to_string()),
    })
}

#[async_trait]
impl Shelf for Images {
    async fn has(&self, image: &str) -> bool {
        let image = image.to_owned();
        let found = blocking(self, move |images| images.find(&image).map(drop)).await;
        found.is_ok()
    }

    async fn reuse(&self, image: &str, digest: &str) -> Result<bool, PullError> {
        let (image, digest) = (image.to_owned(), digest.to_owned());
        blocking(self, move |images| images.reuse(&image, &digest)).await
    }

    async fn take(&self, layout: &Path, image: &str, digest: &str) -> Result<(), PullError> {
        let (layout, image, digest) = (layout.to_owned(), image.to_owned(), digest.to_owned());
        blocking(self, move |images| images.keep(&layout, &image, &digest)).await
    }
}
