//! Which cluster a store and a data directory are of, so that nobody serves the store of another one.
//!
//! The first server writes the hash of its authority into the store, besides the cluster's uid. Every start compares both.
//! What must never happen here: two authorities over one store, or a directory that goes on with a store that was emptied. Tested below.

use std::path::{Path, PathBuf};

use muster_api::env::Env;
use muster_store::{CommitError, Compare, Op, Store, Txn};

use crate::files;
use crate::keys;
use crate::state::{StartError, cluster_uid};
use crate::tls::hex;

/// The file of the data directory that says which cluster it is of.
pub const FILE: &str = "cluster";

/// Why the store and the directory do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The store cannot be asked.
    #[error("the store does not say which cluster it is of")]
    Store(#[from] muster_store::Error),
    /// The store cannot be told.
    #[error("the store does not take in which cluster it is of")]
    Commit(#[from] CommitError),
    /// The store does not say, or does not take, the cluster's uid.
    #[error("the store cannot be used")]
    Start(#[from] StartError),
    /// The directory's file cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store has another authority.
    #[error(
        "the store belongs to the cluster {uid}, whose certificate authority is another than that of {}; make this server one of that \
         cluster with an empty data directory and `--join TOKEN` (on a server of it: mctl token create --server), or name the store of \
         this directory's cluster", directory.display()
    )]
    Authority {
        /// The cluster of the store.
        uid: String,
        /// The data directory.
        directory: PathBuf,
    },
    /// The directory is of another cluster.
    #[error(
        "{} belongs to the cluster {directory_uid}, but the store to {}; name the store of that cluster (one that this directory keeps is moved into etcd by `mctl store migrate`), or, if its content is gone for \
         good and this one shall be used, remove the file {}", directory.display(), store_uid.as_deref().unwrap_or("none: it is empty"),
        directory.join(FILE).display()
    )]
    Directory {
        /// The data directory.
        directory: PathBuf,
        /// Its cluster.
        directory_uid: String,
        /// The store's cluster.
        store_uid: Option<String>,
    },
}

/// Compares store and directory; the first to come writes down both. Gives the cluster's uid.
pub async fn check(store: &dyn Store, directory: &Path, pin: [u8; 32], env: &dyn Env) -> Result<String, ClusterError> {
    let path = directory.join(FILE);
    let file = |source| ClusterError::File {
        path: path.clone(),
        source,
    };
    let ours = files::read_private(&path)
        .map_err(file)?
        .map(|uid| uid.trim().to_owned());
    if let Some(directory_uid) = &ours
        && store.get(&keys::cluster()).await?.is_none()
    {
        return Err(ClusterError::Directory {
            directory: directory.to_owned(),
            directory_uid: directory_uid.clone(),
            store_uid: None,
        });
    }
    let uid = cluster_uid(store, env).await?;
    let uid = uid.to_str().unwrap_or_default().to_owned();
    if authority(store, &hex(&pin)).await? != hex(&pin) {
        return Err(ClusterError::Authority {
            uid,
            directory: directory.to_owned(),
        });
    }
    match ours {
        Some(of) if of == uid => {}
        Some(directory_uid) => {
            return Err(ClusterError::Directory {
                directory: directory.to_owned(),
                directory_uid,
                store_uid: Some(uid),
            });
        }
        None => files::write_private(&path, format!("{uid}\n").as_bytes()).map_err(file)?,
    }
    Ok(uid)
}

/// The hash of the store's authority; `ours` if it has none yet.
async fn authority(store: &dyn Store, ours: &str) -> Result<String, ClusterError> {
    let key = keys::authority();
    loop {
        if let Some(entry) = store.get(&key).await? {
            return Ok(String::from_utf8_lossy(&entry.value).into_owned());
        }
        let txn = Txn {
            compares: vec![Compare::absent(key.clone())],
            ops: vec![Op::put(key.clone(), ours.to_owned())],
        };
        match store.commit(txn).await {
            // Another server may have been first.
            Ok(_) | Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::env::SystemEnv;
    use muster_store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn a_store_is_served_by_its_own_cluster_alone() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, other) = (MemoryStore::new(), MemoryStore::new());
        let check = async |store: &MemoryStore, directory: &tempfile::TempDir, ca: u8| {
            check(store, directory.path(), [ca; 32], &SystemEnv).await
        };
        let uid = check(&store, &one, 1).await.unwrap();
        assert_eq!(check(&store, &one, 1).await.unwrap(), uid, "a second start");
        let error = check(&store, &two, 2).await.unwrap_err();
        assert!(matches!(error, ClusterError::Authority { .. }), "{error}");
        assert_eq!(check(&store, &two, 1).await.unwrap(), uid, "one that has joined");
        let error = check(&other, &one, 1).await.unwrap_err().to_string();
        assert!(error.contains("empty") && error.contains("remove the file"), "{error}");
        std::fs::remove_file(one.path().join(FILE)).unwrap();
        let second = check(&other, &one, 1).await.unwrap();
        let error = check(&other, &two, 1).await.unwrap_err().to_string();
        assert!(error.contains(&uid) && error.contains(&second), "{error}");
    }
}
