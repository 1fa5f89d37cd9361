//! Taking containers away, with what somebody else has of them.

use std::fs;
use std::io;
use std::sync::Arc;

use super::LOOK_AGAIN;
use super::directory::{Directory, ELSEWHERE};
use super::shared::{Shared, blocking, system};
use crate::{ContainerId, Error};

/// How often it is looked whether the shim of a container that is given up has ended: for half a second.
const LOOKS_AT_AN_END: usize = 100;

impl Shared {
    /// Removes what could not be made completely.
    pub(super) async fn give_up(self: &Arc<Self>, id: &ContainerId, directory: &Directory) -> Result<(), Error> {
        if let Some(maker) = &self.maker {
            // Its shim may be waiting for the container, and ends with it.
            maker.unmake(id).await?;
        }
        for _ in 0..LOOKS_AT_AN_END {
            if self.discard_whole(id, directory).await? {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Removes a container, with what somebody else has of it. False: a shim lives there, so it stays.
    pub(super) async fn discard_whole(
        self: &Arc<Self>,
        id: &ContainerId,
        directory: &Directory,
    ) -> Result<bool, Error> {
        if !self.unmake(id, directory).await? {
            return Ok(false);
        }
        let (shared, directory) = (Arc::clone(self), directory.clone());
        blocking("removing the container", move || shared.discard(&directory)).await
    }

    /// Has what somebody else has of a container taken away. False: a shim lives there, so it stays.
    pub(super) async fn unmake(self: &Arc<Self>, id: &ContainerId, directory: &Directory) -> Result<bool, Error> {
        let (Some(maker), true) = (&self.maker, directory.join(ELSEWHERE).exists()) else {
            return Ok(true);
        };
        let locked = directory.clone();
        let lock = blocking("locking the container", move || {
            let locked = locked.lock_out_shims();
            locked.map_err(|error| system("locking the container", &error))
        });
        // Held until nothing is left: a shim that was begun by an agent that has died may come late.
        let Some(_lock) = lock.await? else { return Ok(false) };
        maker.unmake(id).await?;
        match fs::remove_file(directory.join(ELSEWHERE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("unmaking the container", &error)),
            _ => Ok(true),
        }
    }
}
