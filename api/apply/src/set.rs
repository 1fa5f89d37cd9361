//! Sets of paths.
//!
//! A set is a tree: each step that leads to a member is there once. It promises that no branch leads nowhere, so that equal sets are equal
//! trees, and that operations cost no more than the smaller side where that is possible.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::element::{Element, Path};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Whether the place that leads here is in the set.
    member: bool,
    /// None of these is empty.
    children: BTreeMap<Element, Set>,
}

/// Why a text is no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A node is not an object.
    #[error("`{0}` must be an object")]
    NotAnObject(String),
    /// A key is not an element.
    #[error("`{0}` is no element of a path: expected `f:`, `k:`, `v:` or `i:`")]
    NotAnElement(String),
    /// It is deeper than any object.
    #[error("the set is deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

/// Objects nest less deep.
const DEPTH_MAX: usize = 128;

impl Set {
    /// The empty set.
    pub fn new() -> Set {
        Set::default()
    }

    /// The set of one place: the top of the tree that it is put into.
    pub(crate) fn here() -> Set {
        Set {
            member: true,
            children: BTreeMap::new(),
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Whether the place that leads to this branch is in the set itself.
    pub fn is_member(&self) -> bool {
        self.member
    }

    pub(crate) fn set_member(&mut self, member: bool) {
        self.member = member;
    }

    /// The branch below `element`, if anything in it is in the set.
    pub fn child(&self, element: &Element) -> Option<&Set> {
        self.children.get(element)
    }

    /// Every branch.
    pub fn children(&self) -> impl Iterator<Item = (&Element, &Set)> {
        self.children.iter()
    }

    /// Whether there is anything below.
    pub fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Puts a branch below `element`, unless it is empty.
    pub(crate) fn graft(&mut self, element: Element, branch: Set) {
        if !branch.is_empty() {
            self.children.insert(element, branch);
        }
    }

    /// Takes the branch below `element` out.
    pub fn cut(&mut self, element: &Element) -> Option<Set> {
        self.children.remove(element)
    }

    /// Only the branch below `element`.
    #[must_use]
    pub fn only(&self, element: &Element) -> Set {
        let mut set = Set::new();
        if let Some(branch) = self.child(element) {
            set.graft(element.clone(), branch.clone());
        }
        set
    }

    /// Adds a path.
    pub fn insert(&mut self, path: &Path) {
        let mut node = self;
        for element in &path.0 {
            node = node.children.entry(element.clone()).or_default();
        }
        node.member = true;
    }

    /// Whether a path is in the set.
    pub fn contains(&self, path: &Path) -> bool {
        let mut node = self;
        for element in &path.0 {
            match node.child(element) {
                Some(child) => node = child,
                None => return false,
            }
        }
        node.member
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: &Set) -> Set {
        self.add(other);
        self
    }

    /// Adds everything that is in `other`.
    pub fn add(&mut self, other: &Set) {
        self.member |= other.member;
        for (element, theirs) in &other.children {
            match self.children.get_mut(element) {
                Some(ours) => ours.add(theirs),
                None => drop(self.children.insert(element.clone(), theirs.clone())),
            }
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.child(element) {
                both.graft(element.clone(), ours.intersection(theirs));
            }
        }
        both
    }

    /// What is in this and not in `other`. What is below a member of `other` stays.
    #[must_use]
    pub fn difference(mut self, other: &Set) -> Set {
        self.take_out(other);
        self
    }

    /// Takes out everything that is in `other`.
    pub fn take_out(&mut self, other: &Set) {
        self.member &= !other.member;
        for (element, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(element) {
                ours.take_out(theirs);
                if ours.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// How many paths are in it.
    pub fn len(&self) -> usize {
        usize::from(self.member) + self.children.values().map(Set::len).sum::<usize>()
    }

    /// The paths, each before those below it.
    pub fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        self.walk(&mut Path::default(), &mut paths);
        paths
    }

    fn walk(&self, path: &mut Path, paths: &mut Vec<Path>) {
        if self.member {
            paths.push(path.clone());
        }
        for (element, child) in &self.children {
            path.0.push(element.clone());
            child.walk(path, paths);
            path.0.pop();
        }
    }

    /// As `fieldsV1` says it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.encode(), child.to_json());
        }
        Value::Object(map)
    }

    /// Reads what `fieldsV1` says.
    pub fn from_json(value: &Value) -> Result<Set, SetError> {
        let mut set = Set::read(value, 0)?;
        set.member = value.get(".").is_some();
        Ok(set)
    }

    fn read(value: &Value, depth: usize) -> Result<Set, SetError> {
        if depth > DEPTH_MAX {
            return Err(SetError::TooDeep);
        }
        let map = value
            .as_object()
            .ok_or_else(|| SetError::NotAnObject(value.to_string().chars().take(64).collect()))?;
        let mut set = Set::new();
        for (key, below) in map.iter().filter(|(key, _)| *key != ".") {
            let element = Element::decode(key).ok_or_else(|| SetError::NotAnElement(key.clone()))?;
            set.graft(element, Set::read(below, depth + 1)?);
        }
        set.member = map.contains_key(".") || set.children.is_empty();
        Ok(set)
    }
}

impl FromIterator<Path> for Set {
    fn from_iter<I: IntoIterator<Item = Path>>(paths: I) -> Set {
        let mut set = Set::new();
        for path in paths {
            set.insert(&path);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_are_read_and_written_as_fields_v1() {
        let text = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:env": {r#"k:{"name":"A"}"#: {".": {}, "f:name": {}, "f:value": {}}}, "f:roles": {r#"v:"x""#: {}}},
        });
        let set = Set::from_json(&text).expect("a set");
        assert_eq!(set.to_json(), text);
        let shown: Vec<String> = set.paths().iter().map(Path::to_string).collect();
        assert_eq!(
            shown,
            [
                ".metadata.labels",
                ".metadata.labels.app",
                r#".spec.env[name="A"]"#,
                r#".spec.env[name="A"].name"#,
                r#".spec.env[name="A"].value"#,
                r#".spec.roles[="x"]"#,
            ]
        );
        assert_eq!(set.len(), 6);
        assert!(set.contains(&Path::of_fields(&["metadata", "labels"])));
        assert!(!set.contains(&Path::of_fields(&["metadata"])));
        assert_eq!(Set::from_json(&json!({})), Ok(Set::new()));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        assert_eq!(Set::from_json(&json!([])), Err(SetError::NotAnObject("[]".to_owned())));
        assert_eq!(
            Set::from_json(&json!({"a": {}})),
            Err(SetError::NotAnElement("a".to_owned()))
        );
        let deep = (0..=DEPTH_MAX + 1).fold(json!({}), |below, _| json!({"f:a": below}));
        assert_eq!(Set::from_json(&deep), Err(SetError::TooDeep));
    }

    #[test]
    fn a_difference_leaves_what_is_below() {
        let set = |paths: &[&[&str]]| -> Set { paths.iter().map(|path| Path::of_fields(path)).collect() };
        let both = set(&[&["a"], &["a", "b"], &["c"]]);
        assert_eq!(both.clone().difference(&set(&[&["a"], &["c"]])), set(&[&["a", "b"]]));
        assert_eq!(
            both.intersection(&set(&[&["a", "b"], &["c", "d"]])),
            set(&[&["a", "b"]])
        );
    }
}
