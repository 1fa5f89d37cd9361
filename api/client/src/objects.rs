//! Reads and writes of objects of any kind, with deadlines.

use http::Method;
use kube::Resource;
use kube::core::{DynamicObject, ObjectList};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Call, Client, Result, segment};

/// How a patch is meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// JSON Merge Patch (RFC 7386).
    Merge(Value),
    /// JSON Patch (RFC 6902).
    Json(Value),
    /// Server-side apply by a field manager, taking fields over from others.
    Apply {
        /// Who owns the fields.
        manager: String,
        /// The fields.
        object: Value,
    },
}

/// What must still hold for an object to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// It is this very object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// It was not changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// The path of one object, or of a kind when `name` is `None`.
fn path<K: Resource<DynamicType = ()>>(namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = K::url_path(&(), namespace.map(segment).as_deref());
    if let Some(name) = name {
        path.push('/');
        path.push_str(&segment(name));
    }
    path
}

impl Client {
    /// Reads an object.
    pub async fn get<K>(&self, namespace: Option<&str>, name: &str) -> Result<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        self.call(Call::new(Method::GET, path::<K>(namespace, Some(name)), "an object"))
            .await
    }

    /// Reads all objects of a kind, of one namespace or of all.
    pub async fn list<K>(&self, namespace: Option<&str>) -> Result<ObjectList<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone,
    {
        self.call(Call::new(Method::GET, path::<K>(namespace, None), "a list"))
            .await
    }

    /// Creates an object.
    pub async fn create<K>(&self, namespace: Option<&str>, object: &K) -> Result<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
    {
        self.create_at(&path::<K>(namespace, None), object).await
    }

    /// Replaces the status of an object, if it is still the one that was read.
    pub async fn replace_status<K>(&self, namespace: Option<&str>, name: &str, object: &K) -> Result<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
    {
        let path = path::<K>(namespace, Some(name)) + "/status";
        self.call(Call::new(Method::PUT, path, "an object").json(object)?).await
    }

    /// Patches an object.
    pub async fn patch<K>(&self, namespace: Option<&str>, name: &str, patch: &Patch) -> Result<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        self.patch_at(&path::<K>(namespace, Some(name)), patch).await
    }

    /// Patches the status of an object.
    pub async fn patch_status<K>(&self, namespace: Option<&str>, name: &str, patch: &Patch) -> Result<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        self.patch_at(&(path::<K>(namespace, Some(name)) + "/status"), patch)
            .await
    }

    /// Deletes an object; the answer is the object as it was, or a `Status`.
    pub async fn delete<K>(&self, namespace: Option<&str>, name: &str, only_if: &Preconditions) -> Result<DynamicObject>
    where
        K: Resource<DynamicType = ()>,
    {
        self.delete_at(&path::<K>(namespace, Some(name)), only_if).await
    }

    /// Reads the object, list or document of this path.
    pub async fn get_at<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Call::new(Method::GET, path.to_owned(), "an object")).await
    }

    /// Replaces the object, or subresource, of this path.
    pub async fn put_at<B: Serialize, T: DeserializeOwned>(&self, path: &str, object: &B) -> Result<T> {
        self.call(Call::new(Method::PUT, path.to_owned(), "an object").json(object)?)
            .await
    }

    /// Creates an object of the kind whose path this is.
    pub async fn create_at<B: Serialize, T: DeserializeOwned>(&self, path: &str, object: &B) -> Result<T> {
        self.call(Call::new(Method::POST, path.to_owned(), "an object").json(object)?)
            .await
    }

    /// Patches the object, or subresource, of this path.
    pub async fn patch_at<T: DeserializeOwned>(&self, path: &str, patch: &Patch) -> Result<T> {
        let (path, content_type, body) = match patch {
            Patch::Merge(body) => (path.to_owned(), "application/merge-patch+json", body),
            Patch::Json(body) => (path.to_owned(), "application/json-patch+json", body),
            Patch::Apply { manager, object } => {
                let path = format!("{path}?fieldManager={}&force=true", segment(manager));
                (path, "application/apply-patch+yaml", object)
            }
        };
        self.call(Call::new(Method::PATCH, path, "an object").body(content_type, body)?)
            .await
    }

    /// Deletes the object of this path.
    pub async fn delete_at<T: DeserializeOwned>(&self, path: &str, only_if: &Preconditions) -> Result<T> {
        self.delete_as(path, only_if, None).await
    }

    /// Deletes the object of this path; `policy` (`Foreground`, `Background`, `Orphan`) says what becomes of what it owns.
    pub async fn delete_as<T: DeserializeOwned>(
        &self,
        path: &str,
        only_if: &Preconditions,
        policy: Option<&str>,
    ) -> Result<T> {
        let mut options = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": only_if,
        });
        if let Some(policy) = policy {
            options["propagationPolicy"] = policy.into();
        }
        self.call(Call::new(Method::DELETE, path.to_owned(), "an object").json(&options)?)
            .await
    }
}
