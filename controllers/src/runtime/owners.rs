//! Looking for owners: the last question before something is deleted because nobody owns it any more.
//!
//! A view is a prefix of history, and knows every kind whose objects are told; what it does not show may still be there, in a kind that
//! is not told. So an owner counts as absent only when the server itself says so: there is such a kind, and no object of that name and
//! uid. A kind that is not served now may be served again: its objects count as there. Tested with the real API server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResourceList, ObjectMeta, OwnerReference};
use muster_client::{Client, Error};
use serde::Deserialize;

use super::resource::root;

/// So many owners are remembered as absent: a uid never comes back, and an owner may have had thousands of objects.
const REMEMBERED_MAX: usize = 8192;

/// Looks for owners; clones share what they found out.
#[derive(Clone, Default)]
pub struct Owners {
    absent: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Deserialize)]
struct Found {
    metadata: ObjectMeta,
}

impl Owners {
    /// Why one of these owners, as an object of that namespace means them, may be there; `None`: none of them is.
    pub async fn found(
        &self,
        client: &Client,
        namespace: &str,
        owners: &[OwnerReference],
    ) -> Result<Option<String>, Error> {
        for owner in owners {
            let known = format!(
                "{} {} {namespace}/{} {}",
                owner.api_version, owner.kind, owner.name, owner.uid
            );
            if self.lock().contains(&known) {
                continue;
            }
            if let Some(why) = look(client, namespace, owner).await? {
                return Ok(Some(why));
            }
            let mut absent = self.lock();
            if absent.len() >= REMEMBERED_MAX {
                absent.clear();
            }
            absent.insert(known);
        }
        Ok(None)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        // It is a set of facts; no panic leaves half of one.
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look(client: &Client, namespace: &str, owner: &OwnerReference) -> Result<Option<String>, Error> {
    let OwnerReference {
        api_version,
        kind,
        name,
        uid,
        ..
    } = owner;
    let root = root(api_version);
    let served: Option<APIResourceList> = optional(client.get_at(&root).await)?;
    let served = served.into_iter().flat_map(|list| list.resources);
    let Some(served) = served
        .into_iter()
        .find(|one| one.kind == *kind && !one.name.contains('/'))
    else {
        return Ok(Some(format!("no kind {kind} of {api_version} is served now")));
    };
    let plural = served.name;
    let path = match (served.namespaced, namespace) {
        (true, "") => {
            let why = format!("an object without namespace cannot be owned by a {kind}, which has one");
            return Ok(Some(why));
        }
        (true, namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
        (false, _) => format!("{root}/{plural}/{name}"),
    };
    let found: Option<Found> = optional(client.get_at(&path).await)?;
    let same = found.is_some_and(|found| found.metadata.uid.as_deref() == Some(uid.as_str()));
    Ok(same.then(|| format!("its owner, the {kind} {name}, is there")))
}

fn optional<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
