//! `mctl apply --prune`: what was applied with a set before, and is not in the manifests any more, is deleted.
//!
//! The set is an ApplySet, as kubectl's: a parent object says which kinds and namespaces have members, and each member carries the set's
//! label. The parent is widened before anything is applied and narrowed after everything is, so that whoever is interrupted leaves a
//! parent that says too much, never too little. What must never happen here: the deletion of an object without the label.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::discovery::{Catalogue, Resource};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::rest::{JSON, Payload, Rest, with_query};
use crate::session::{Session, Terminal};

use super::apply::Item;

const ID: &str = "applyset.kubernetes.io/id";
const TOOLING: &str = "applyset.kubernetes.io/tooling";
const KINDS: &str = "applyset.kubernetes.io/contains-group-kinds";
const NAMESPACES: &str = "applyset.kubernetes.io/additional-namespaces";
const MEMBER: &str = "applyset.kubernetes.io/part-of";
/// What is noted as the tool of our sets. Another tool's sets are not touched.
const TOOL: &str = "mctl/v1";
/// Who owns the notes on the parent.
const MANAGER: &str = "mctl-applyset";

/// A set of objects that are applied together.
pub(super) struct ApplySet<'a> {
    rest: &'a Rest,
    catalogue: &'a Catalogue,
    parent: Resource,
    namespace: String,
    name: String,
    /// Kinds and namespaces that have members, by what is noted and by what is applied now.
    before: Scope,
    now: Scope,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scope {
    /// `Kind.group`.
    kinds: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Scope {
    fn read(parent: &Value) -> Scope {
        let list = |name: &str| -> BTreeSet<String> {
            let text = parent["metadata"]["annotations"][name].as_str().unwrap_or_default();
            text.split(',')
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        Scope {
            kinds: list(KINDS),
            namespaces: list(NAMESPACES),
        }
    }

    fn with(&self, other: &Scope) -> Scope {
        Scope {
            kinds: self.kinds.union(&other.kinds).cloned().collect(),
            namespaces: self.namespaces.union(&other.namespaces).cloned().collect(),
        }
    }
}

/// The identity of a set: its parent's, hashed.
fn identity(name: &str, namespace: &str, kind: &str, group: &str) -> String {
    let digest = Sha256::digest(format!("{name}.{namespace}.{kind}.{group}"));
    format!("applyset-{}-v1", URL_SAFE_NO_PAD.encode(digest))
}

fn group_kind(resource: &Resource) -> String {
    if resource.group.is_empty() {
        resource.kind.clone()
    } else {
        format!("{}.{}", resource.kind, resource.group)
    }
}

impl<'a> ApplySet<'a> {
    /// The set that `word` names (`[KIND/]NAME`, a ConfigMap by default), about to have these members; they get its label.
    pub(super) async fn open(
        session: &'a Session,
        catalogue: &'a Catalogue,
        word: &str,
        items: &mut [Item<'_>],
    ) -> Outcome<ApplySet<'a>> {
        let (kind, name) = word.split_once('/').unwrap_or(("configmaps", word));
        let parent = catalogue.find(kind)?.clone();
        let namespace = if parent.namespaced {
            session.namespace.clone()
        } else {
            String::new()
        };
        let path = parent.object_path(&namespace, name);
        let noted = match session.rest.get(&path).await {
            Ok(noted) => noted,
            Err(error) if error.is_not_found() => Value::Null,
            Err(error) => return Err(error.into()),
        };
        let id = identity(name, &namespace, &parent.kind, &parent.group);
        if !noted.is_null() {
            check_parent(&noted, word, &id)?;
        }
        let mut now = Scope::default();
        for item in items.iter_mut() {
            now.kinds.insert(group_kind(&item.resource));
            if item.resource.namespaced && item.namespace != namespace {
                now.namespaces.insert(item.namespace.clone());
            }
            item.object["metadata"]["labels"][MEMBER] = json!(id);
        }
        Ok(ApplySet {
            rest: &session.rest,
            catalogue,
            parent,
            namespace,
            name: name.to_owned(),
            before: Scope::read(&noted),
            now,
        })
    }

    fn id(&self) -> String {
        identity(&self.name, &self.namespace, &self.parent.kind, &self.parent.group)
    }

    /// Before anything is applied: the parent says where members are and will be.
    pub(super) async fn widen(&self) -> Outcome<()> {
        self.note(&self.before.with(&self.now)).await
    }

    async fn note(&self, scope: &Scope) -> Outcome<()> {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
        let mut object = json!({
            "apiVersion": self.parent.api_version(),
            "kind": self.parent.kind,
            "metadata": {
                "name": self.name,
                "labels": {ID: self.id()},
                "annotations": {TOOLING: TOOL, KINDS: list(&scope.kinds), NAMESPACES: list(&scope.namespaces)},
            },
        });
        if self.parent.namespaced {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        let path = self.parent.object_path(&self.namespace, &self.name);
        let path = with_query(&path, &[("fieldManager", MANAGER), ("force", "true")]);
        self.rest
            .call(Method::PATCH, &path, JSON, Some(Payload::apply(&object)))
            .await?;
        Ok(())
    }

    /// After everything is applied: deletes the members that are not among `uids`, and lets the parent say where the others are.
    pub(super) async fn prune(&self, uids: &BTreeSet<String>, dry: bool, terminal: &mut Terminal) -> Outcome<()> {
        for (resource, object) in self.left_over(uids, terminal).await? {
            self.delete(&resource, &object, dry, terminal).await?;
        }
        if dry { Ok(()) } else { self.note(&self.now).await }
    }

    /// The members that are not among `uids`.
    pub(super) async fn left_over(
        &self,
        uids: &BTreeSet<String>,
        terminal: &mut Terminal,
    ) -> Outcome<Vec<(Resource, Value)>> {
        let selector = format!("{MEMBER}={}", self.id());
        let mut left = Vec::new();
        let scope = self.before.with(&self.now);
        for kind in &scope.kinds {
            let resource = self
                .catalogue
                .resources
                .iter()
                .find(|resource| group_kind(resource) == *kind);
            let Some(resource) = resource else {
                terminal.note(format!(
                    "Warning: the server has no kind {kind} any more; its members are left"
                ));
                continue;
            };
            let own = [self.namespace.clone()];
            let namespaces = own.iter().chain(&scope.namespaces).filter(|name| !name.is_empty());
            let paths: BTreeSet<String> = if resource.namespaced {
                namespaces.map(|namespace| resource.path(Some(namespace))).collect()
            } else {
                BTreeSet::from([resource.path(None)])
            };
            for path in paths {
                let path = with_query(&path, &[("labelSelector", selector.as_str())]);
                let mut found = self.rest.get(&path).await?;
                let Value::Array(found) = found["items"].take() else {
                    continue;
                };
                let gone = |object: &Value| !object["metadata"]["uid"].as_str().is_some_and(|uid| uids.contains(uid));
                left.extend(found.into_iter().filter(gone).map(|object| (resource.clone(), object)));
            }
        }
        Ok(left)
    }

    async fn delete(&self, resource: &Resource, object: &Value, dry: bool, terminal: &mut Terminal) -> Outcome<()> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": text("uid")}});
        if dry {
            options["dryRun"] = json!(["All"]);
        }
        let path = resource.object_path(text("namespace"), text("name"));
        let deleted = self
            .rest
            .call(Method::DELETE, &path, JSON, Some(Payload::json(&options)));
        match deleted.await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let how = if dry { " (server dry run)" } else { "" };
        terminal.line(format!("{} pruned{how}", output::object_name(resource, object)))
    }
}

fn check_parent(parent: &Value, word: &str, id: &str) -> Result<(), Failure> {
    let label = parent["metadata"]["labels"][ID].as_str();
    if let Some(other) = label.filter(|label| *label != id) {
        return Err(Failure::new(format!(
            "{word} is the parent of another set ({other}); name another object with --applyset"
        )));
    }
    let tool = parent["metadata"]["annotations"][TOOLING].as_str().unwrap_or_default();
    if label.is_some() && tool.split('/').next() != TOOL.split('/').next() {
        return Err(Failure::new(format!(
            "the set of {word} is kept by {tool}; go on with that, or name another object with --applyset"
        )));
    }
    Ok(())
}

/// The set that the flags name.
pub(super) fn named(applyset: Option<&str>, prune: bool) -> Result<Option<&str>, Failure> {
    match (applyset, prune) {
        (None, true) => Err(Failure::new(
            "--prune needs to know what was applied before: name the set, as in --prune --applyset=NAME",
        )),
        (Some(_), false) => Err(Failure::new("--applyset goes with --prune")),
        (set, _) => Ok(set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_known_by_its_parent() {
        // The SHA-256 of `my-set.default.ConfigMap.`, as kubectl computes it.
        assert_eq!(
            identity("my-set", "default", "ConfigMap", ""),
            "applyset-DaObTxGT41gT7jz9wyulA3kuIrhUKfuOcjAfLI6wcmQ-v1"
        );
        assert_ne!(identity("a", "b", "C", ""), identity("a.b", "", "C", ""));
        assert!(identity("a", "b", "C", "d").len() <= 63, "it is the value of a label");
    }

    #[test]
    fn sets_of_others_are_not_touched() {
        let parent = |id: &str, tool: &str| json!({"metadata": {"labels": {ID: id}, "annotations": {TOOLING: tool}}});
        assert!(check_parent(&parent("x", "mctl/v0"), "set", "x").is_ok());
        assert!(check_parent(&parent("x", "kubectl/v1.33"), "set", "x").is_err());
        assert!(check_parent(&parent("y", TOOL), "set", "x").is_err());
        assert!(
            check_parent(&json!({"metadata": {}}), "set", "x").is_ok(),
            "an object that is no parent yet becomes one"
        );
    }

    #[test]
    fn notes_are_read_and_added_up() {
        let parent = json!({"metadata": {"annotations": {KINDS: "ConfigMap,Task.muster.dev", NAMESPACES: ""}}});
        let scope = Scope::read(&parent);
        assert_eq!((scope.kinds.len(), scope.namespaces.len()), (2, 0));
        assert_eq!(scope.with(&Scope::default()), scope);
    }
}
