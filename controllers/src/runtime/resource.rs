//! Any kind that the server has, and any object of one: what planners know and what they do not are named alike.

use std::cmp::Ordering;
use std::sync::Arc;

use super::object::{Id, Kind};

/// Where the objects of a group and version are, as in `/api/v1`.
pub fn root(api_version: &str) -> String {
    if api_version.contains('/') {
        format!("/apis/{api_version}")
    } else {
        format!("/api/{api_version}")
    }
}

pub(super) fn path(api_version: &str, resource: &str, namespace: &str) -> String {
    let root = root(api_version);
    let plural = resource.split('.').next().unwrap_or_default();
    if namespace.is_empty() {
        format!("{root}/{plural}")
    } else {
        format!("{root}/namespaces/{namespace}/{plural}")
    }
}

/// A kind that no planner knows: a ConfigMap's, a platform team's.
///
/// Told apart by `resource` alone: which version its objects come in may change.
#[derive(Clone, Debug)]
pub struct OtherKind {
    /// `plural.group`, as in the ordered watch.
    pub resource: Box<str>,
    /// As in objects.
    pub api_version: Box<str>,
    /// As in objects.
    pub kind: Box<str>,
}

impl PartialEq for OtherKind {
    fn eq(&self, other: &OtherKind) -> bool {
        self.resource == other.resource
    }
}

impl Eq for OtherKind {}

impl PartialOrd for OtherKind {
    fn partial_cmp(&self, other: &OtherKind) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OtherKind {
    fn cmp(&self, other: &OtherKind) -> Ordering {
        self.resource.cmp(&other.resource)
    }
}

/// Any kind that the server has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// One that planners know.
    Known(Kind),
    /// Another.
    Other(Arc<OtherKind>),
}

impl From<Kind> for Resource {
    fn from(kind: Kind) -> Resource {
        Resource::Known(kind)
    }
}

impl Resource {
    /// `plural.group`.
    pub fn name(&self) -> &str {
        match self {
            Resource::Known(kind) => kind.resource(),
            Resource::Other(other) => &other.resource,
        }
    }

    /// `apiVersion` and `kind`.
    pub fn names(&self) -> (&str, &str) {
        match self {
            Resource::Known(kind) => kind.names(),
            Resource::Other(other) => (&other.api_version, &other.kind),
        }
    }

    /// The kind, if planners know it.
    pub fn known(&self) -> Option<Kind> {
        match self {
            Resource::Known(kind) => Some(*kind),
            Resource::Other(_) => None,
        }
    }

    /// The path of the kind in a namespace; the namespace is empty for kinds without.
    pub fn path(&self, namespace: &str) -> String {
        path(self.names().0, self.name(), namespace)
    }
}

/// Which object of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub resource: Resource,
    /// Its namespace and name.
    pub id: Id,
}

impl Key {
    /// From both parts.
    pub fn new(resource: impl Into<Resource>, id: &Id) -> Key {
        Key {
            resource: resource.into(),
            id: id.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_nobody_knows_has_a_path_and_is_told_apart_by_its_resource() {
        let other = |version: &str, plural: &str| {
            let other = OtherKind {
                resource: format!("{plural}.example.org").into(),
                api_version: format!("example.org/{version}").into(),
                kind: "Widget".into(),
            };
            Resource::Other(Arc::new(other))
        };
        assert_eq!(
            other("v1beta1", "widgets").path("a"),
            "/apis/example.org/v1beta1/namespaces/a/widgets"
        );
        assert_eq!(other("v1beta1", "widgets"), other("v1", "widgets"));
        assert_ne!(other("v1", "widgets"), other("v1", "gadgets"));
        assert!(Resource::from(Kind::Task) < other("v1", "widgets"));
    }
}
