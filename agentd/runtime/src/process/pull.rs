//! Images from registries, for containers of the process runtime.

use std::sync::Arc;

use async_trait::async_trait;

use super::shared::Shared;
use crate::images::ImageError;
use crate::registry::{self, Progress, PullError, Puller};

/// Fetches images into the directory of images.
pub(super) struct IntoDirectory(pub(super) Arc<Shared>);

#[async_trait]
impl Puller for IntoDirectory {
    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), PullError> {
        let config = &self.0.config;
        let (images, name) = (config.images.clone(), image.to_owned());
        if images.find(&name).is_ok() {
            return Ok(());
        }
        registry::pull(
            &config.registries,
            &config.pulls(),
            image,
            progress,
            |layout| async move {
                let imported = tokio::task::spawn_blocking(move || match images.import(&layout, &name, None) {
                    // Another agent with the same directory of images has been faster.
                    Err(_) if images.find(&name).is_ok() => Ok(()),
                    other => other.map(drop),
                });
                let imported = imported.await.map_err(|error| PullError::Disk(error.to_string()))?;
                imported.map_err(|error| match &error {
                    ImageError::NotFound(why) | ImageError::Invalid(why) => PullError::Damaged(why.clone()),
                    // An archive that is none is not the disk's fault.
                    ImageError::Io { source, .. } if source.raw_os_error().is_none() => {
                        PullError::Damaged(error.to_string())
                    }
                    ImageError::Io { .. } => PullError::Disk(error.to_string()),
                })
            },
        )
        .await
    }

    fn forget(&self, image: &str) {
        registry::forget(&self.0.config.pulls(), image);
    }
}
