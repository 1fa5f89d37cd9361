//! Who makes containers, when their shims do not do that themselves.

use async_trait::async_trait;

use super::directory::Directory;
use super::shared::Shared;
use crate::{ContainerId, ContainerSpec, Error};

/// Makes containers for [`Shared`], which does everything else: finds, starts, stops and looks after them.
#[async_trait]
pub(super) trait Maker: Send + Sync + 'static {
    /// Fills the directory of a container, in which nothing is yet, and makes it. Its shim is begun on the way, and holds the container when
    /// this returns. What a failure leaves, [`unmake`](Maker::unmake) takes away.
    async fn make(
        &self,
        shared: &Shared,
        directory: &Directory,
        id: &ContainerId,
        spec: &ContainerSpec,
    ) -> Result<(), Error>;

    /// Ends what there is of a container, and takes it away; its directory stays. Doing it twice does no harm.
    async fn unmake(&self, id: &ContainerId) -> Result<(), Error>;
}
