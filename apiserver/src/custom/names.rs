//! Which names a definition gets, and what its status says about it.
//!
//! Within a group, whoever comes first has a name. Pure: what others have is passed in, and the transaction that writes the status
//! compares that nobody has taken or given back a name of the group since ([`crate::keys::names`]).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::holds;

/// The names that others have in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Plural, singular and short names.
    resources: BTreeSet<String>,
    /// Kinds, and kinds of lists.
    kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds those that a definition has been given.
    pub(crate) fn add(&mut self, definition: &Value) {
        let names = &definition["status"]["acceptedNames"];
        let text = |field: &str| names[field].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        let short = names["shortNames"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        self.resources
            .extend(["plural", "singular"].into_iter().filter_map(text));
        self.resources.extend(short.map(str::to_owned));
        self.kinds.extend(["kind", "listKind"].into_iter().filter_map(text));
    }
}

/// The names that a definition gets of those that it wants, and what is in the way of the others: a reason and a message. Where something is
/// in the way, it keeps what it had.
pub(crate) fn accept(definition: &Value, taken: &Taken) -> (Value, Option<(&'static str, String)>) {
    let (wanted, had) = (&definition["spec"]["names"], &definition["status"]["acceptedNames"]);
    let (mut accepted, mut problem) = (Map::new(), None);
    let fields = [
        ("plural", &taken.resources, "PluralConflict"),
        ("singular", &taken.resources, "SingularConflict"),
        ("shortNames", &taken.resources, "ShortNamesConflict"),
        ("kind", &taken.kinds, "KindConflict"),
        ("listKind", &taken.kinds, "ListKindConflict"),
    ];
    for (field, taken, reason) in fields {
        let names = match &wanted[field] {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => Vec::from_iter(name.as_str()),
        };
        let conflicts: Vec<String> = names
            .iter()
            .filter(|name| taken.contains(**name))
            .map(|name| format!("\"{name}\""))
            .collect();
        let from = if conflicts.is_empty() { wanted } else { had };
        if !conflicts.is_empty() && problem.is_none() {
            problem = Some((reason, format!("{} is already in use", conflicts.join(", "))));
        }
        if !from[field].is_null() {
            accepted.insert(field.to_owned(), from[field].clone());
        }
    }
    if !wanted["categories"].is_null() {
        accepted.insert("categories".to_owned(), wanted["categories"].clone());
    }
    (Value::Object(accepted), problem)
}

/// The status of a definition: its names, the conditions that follow, and the versions that objects may be stored as. `definition` carries
/// the status as it was.
pub(crate) fn status(definition: &Value, taken: &Taken, now: &str) -> Value {
    let (accepted, problem) = accept(definition, taken);
    let established = holds(definition, "Established") || problem.is_none();
    let mut conditions = vec![match &problem {
        None => condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
        Some((reason, message)) => condition("NamesAccepted", false, reason, message),
    }];
    conditions.push(if established {
        condition(
            "Established",
            true,
            "InitialNamesAccepted",
            "the initial names have been accepted",
        )
    } else {
        condition("Established", false, "NotAccepted", "not all names are accepted")
    });
    let before = definition["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for condition in &mut conditions {
        let same = before
            .iter()
            .find(|known| known["type"] == condition["type"] && known["status"] == condition["status"]);
        let since = same
            .map(|known| &known["lastTransitionTime"])
            .filter(|since| since.is_string());
        condition["lastTransitionTime"] = since.cloned().unwrap_or_else(|| json!(now));
    }
    let ours = |known: &Value| conditions.iter().any(|condition| condition["type"] == known["type"]);
    let others: Vec<Value> = before.iter().filter(|known| !ours(known)).cloned().collect();
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let storage = versions
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .next();
    let mut stored: Vec<Value> = definition["status"]["storedVersions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    stored.extend(storage.filter(|storage| !stored.contains(storage)));
    conditions.extend(others);
    json!({"acceptedNames": accepted, "conditions": conditions, "storedVersions": stored})
}

fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"spec": {
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short},
            "versions": [{"name": "v1", "storage": true}],
        }})
    }

    fn conditions(status: &Value) -> Vec<String> {
        let list = status["conditions"].as_array().unwrap();
        list.iter()
            .map(|one| {
                format!(
                    "{}={} {}",
                    one["type"].as_str().unwrap(),
                    one["status"].as_str().unwrap(),
                    one["reason"].as_str().unwrap()
                )
            })
            .collect()
    }

    #[test]
    fn whoever_comes_first_has_the_name() {
        let mut first = definition("widgets", "Widget", &["w"]);
        first["status"] = status(&first, &Taken::default(), "t1");
        assert_eq!(
            conditions(&first["status"]),
            [
                "NamesAccepted=True NoConflicts",
                "Established=True InitialNamesAccepted"
            ]
        );
        assert_eq!(first["status"]["acceptedNames"]["shortNames"], json!(["w"]));
        assert_eq!(first["status"]["storedVersions"], json!(["v1"]));
        let mut taken = Taken::default();
        taken.add(&first);
        let mut second = definition("wheels", "Wheel", &["w", "wh"]);
        second["status"] = status(&second, &taken, "t2");
        assert_eq!(
            conditions(&second["status"]),
            [
                "NamesAccepted=False ShortNamesConflict",
                "Established=False NotAccepted"
            ]
        );
        assert_eq!(second["status"]["conditions"][0]["message"], "\"w\" is already in use");
        assert_eq!(second["status"]["acceptedNames"]["shortNames"], Value::Null);
        let freed = status(&second, &Taken::default(), "t3");
        assert_eq!(conditions(&freed)[1], "Established=True InitialNamesAccepted");
        assert_eq!(freed["conditions"][1]["lastTransitionTime"], "t3");
        let mut kinds = Taken::default();
        kinds.add(&json!({"status": {"acceptedNames": {"kind": "Wheel"}}}));
        assert_eq!(
            accept(&second, &kinds).1.map(|(reason, _)| reason),
            Some("KindConflict")
        );
    }

    #[test]
    fn who_has_a_name_keeps_it_and_what_others_noted_stays() {
        let mut first = definition("widgets", "Widget", &["w"]);
        first["status"] = status(&first, &Taken::default(), "t1");
        first["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "Terminating", "status": "True"}));
        first["spec"]["names"]["shortNames"] = json!(["x"]);
        first["spec"]["versions"] = json!([{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]);
        let mut taken = Taken::default();
        taken.add(&json!({"status": {"acceptedNames": {"shortNames": ["x"]}}}));
        let status = status(&first, &taken, "t2");
        assert_eq!(status["acceptedNames"]["shortNames"], json!(["w"]));
        assert_eq!(
            conditions(&json!({"conditions": status["conditions"].as_array().unwrap()[..2]})),
            [
                "NamesAccepted=False ShortNamesConflict",
                "Established=True InitialNamesAccepted"
            ]
        );
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "t2");
        assert_eq!(status["conditions"][1]["lastTransitionTime"], "t1");
        assert_eq!(status["conditions"][2]["type"], "Terminating");
        assert_eq!(status["storedVersions"], json!(["v1", "v2"]));
    }
}
