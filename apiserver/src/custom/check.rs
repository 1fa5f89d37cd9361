//! What is wrong with a definition, and with a change of one. Its shape has been checked.

use muster_api::names::dns_subdomain_problem;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::Value;

use super::{holds, structural};

/// The most fields of a version that can be selected by. As Kubernetes.
const SELECTABLE_MAX: usize = 8;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];

/// Everything that is wrong with a definition.
pub(crate) fn problems(definition: &Value) -> Vec<Violation> {
    let mut out = Violations::new();
    let (spec, path) = (&definition["spec"], FieldPath::root("spec"));
    group(definition, &path, &mut out);
    names(&spec["names"], &path.field("names"), &mut out);
    if let Some(scope) = spec["scope"]
        .as_str()
        .filter(|scope| !["Cluster", "Namespaced"].contains(scope))
    {
        out.not_supported(&path.field("scope"), scope, &["Cluster", "Namespaced"]);
    }
    if spec["preserveUnknownFields"] == true {
        let why = "cannot be true; set x-kubernetes-preserve-unknown-fields in the schema instead";
        out.invalid(&path.field("preserveUnknownFields"), true, why);
    }
    let strategy = spec["conversion"]["strategy"].as_str().unwrap_or("None");
    if strategy != "None" {
        out.not_supported(&path.field("conversion").field("strategy"), strategy, &["None"]);
    }
    versions(&spec["versions"], &path.field("versions"), &mut out);
    stored_versions(definition, &mut out);
    out.into_vec()
}

fn group(definition: &Value, path: &FieldPath, out: &mut Violations) {
    let spec = &definition["spec"];
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let at = path.field("group");
    if group.is_empty() {
        return out.required(&at, "");
    }
    out.check(&at, group, dns_subdomain_problem(group));
    if !group.contains('.') {
        out.invalid(&at, group, "should be a domain with at least one dot");
    }
    let protected = [".k8s.io", ".kubernetes.io"]
        .iter()
        .any(|suffix| group.ends_with(suffix));
    let approved = definition["metadata"]["annotations"]["api-approved.kubernetes.io"].is_string();
    if protected && !approved {
        let at = FieldPath::root("metadata")
            .field("annotations")
            .key("api-approved.kubernetes.io");
        out.required(
            &at,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\"",
        );
    }
    let name = text(&definition["metadata"]["name"]);
    if name != format!("{plural}.{group}") {
        let at = FieldPath::root("metadata").field("name");
        out.invalid(&at, name, "must be spec.names.plural+\".\"+spec.group");
    }
}

/// A DNS label that begins with a letter.
fn label_problem(label: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = label.starts_with(|c: char| c.is_ascii_lowercase()) && !label.ends_with('-');
    let why = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end \
               with an alphanumeric character (e.g. 'my-name', or 'abc-123')";
    (!ends || label.len() > 63 || !label.chars().all(fine)).then(|| why.to_owned())
}

fn names(names: &Value, path: &FieldPath, out: &mut Violations) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let (name, at) = (text(&names[field]), path.field(field));
        if name.is_empty() {
            out.required(&at, "");
        } else {
            let is_kind = ["kind", "listKind"].contains(&field);
            let name = if is_kind { name.to_lowercase() } else { name.to_owned() };
            out.check(&at, text(&names[field]), label_problem(&name));
        }
    }
    if names["kind"] == names["listKind"] {
        out.invalid(
            &path.field("listKind"),
            text(&names["listKind"]),
            "kind and listKind may not be the same",
        );
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in names[field].as_array().into_iter().flatten().enumerate() {
            out.check(&path.field(field).index(index), text(name), label_problem(text(name)));
        }
    }
}

fn versions(versions: &Value, path: &FieldPath, out: &mut Violations) {
    let versions = versions.as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        return out.required(path, "must have at least one version");
    }
    let storage = versions.iter().filter(|version| version["storage"] == true).count();
    if storage != 1 {
        out.invalid(path, storage, "must have exactly one version marked as storage version");
    }
    for (index, version) in versions.iter().enumerate() {
        let (name, at) = (text(&version["name"]), path.index(index));
        out.check(&at.field("name"), name, label_problem(name));
        if versions[..index].iter().any(|other| other["name"] == version["name"]) {
            out.duplicate(&at.field("name"), name);
        }
        let schema_at = at.field("schema").field("openAPIV3Schema");
        match &version["schema"]["openAPIV3Schema"] {
            schema @ Value::Object(_) => structural::problems(schema, &schema_at, out),
            _ => out.required(&schema_at, "schemas are required"),
        }
        columns(
            &version["additionalPrinterColumns"],
            &at.field("additionalPrinterColumns"),
            out,
        );
        selectable(version, &at.field("selectableFields"), out);
        scale(
            &version["subresources"]["scale"],
            &at.field("subresources").field("scale"),
            out,
        );
    }
}

fn columns(columns: &Value, path: &FieldPath, out: &mut Violations) {
    for (index, column) in columns.as_array().into_iter().flatten().enumerate() {
        let at = path.index(index);
        if text(&column["name"]).is_empty() {
            out.required(&at.field("name"), "");
        }
        let kind = text(&column["type"]);
        if !COLUMN_TYPES.contains(&kind) {
            out.not_supported(&at.field("type"), kind, &COLUMN_TYPES);
        }
        json_path(&column["jsonPath"], &at.field("jsonPath"), out);
    }
}

fn json_path(path: &Value, at: &FieldPath, out: &mut Violations) {
    match text(path) {
        "" => out.required(at, ""),
        path if !path.starts_with('.') || path.contains(['{', '}']) => {
            out.invalid(at, path, "must be a simple json path starting with .");
        }
        _ => (),
    }
}

fn selectable(version: &Value, path: &FieldPath, out: &mut Violations) {
    let fields = version["selectableFields"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if fields.len() > SELECTABLE_MAX {
        out.too_many(path, fields.len(), SELECTABLE_MAX);
    }
    for (index, field) in fields.iter().enumerate() {
        let (way, at) = (text(&field["jsonPath"]), path.index(index).field("jsonPath"));
        if fields[..index].contains(field) {
            out.duplicate(&at, way);
        }
        let mut steps = way.split('.');
        let root = &version["schema"]["openAPIV3Schema"];
        let place = match steps.next() {
            Some("") if way.len() > 1 => steps.fold(root, |schema, step| &schema["properties"][step]),
            _ => &Value::Null,
        };
        if way.starts_with(".metadata") {
            out.invalid(&at, way, "must not point to fields in metadata");
        } else if !["string", "boolean", "integer"].contains(&text(&place["type"])) {
            out.invalid(
                &at,
                way,
                "must point to a field of the schema of type string, boolean or integer",
            );
        }
    }
}

fn scale(scale: &Value, path: &FieldPath, out: &mut Violations) {
    if !scale.is_object() {
        return;
    }
    let paths = [
        (
            "specReplicasPath",
            &[".spec."][..],
            "should be a json path under .spec",
            true,
        ),
        (
            "statusReplicasPath",
            &[".status."],
            "should be a json path under .status",
            true,
        ),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
            false,
        ),
    ];
    for (field, below, why, needed) in paths {
        let (way, at) = (text(&scale[field]), path.field(field));
        if way.is_empty() {
            if needed {
                out.required(&at, "");
            }
        } else if !below.iter().any(|below| way.starts_with(below)) || way.contains(['[', ']']) {
            out.invalid(&at, way, why);
        }
    }
}

fn stored_versions(definition: &Value, out: &mut Violations) {
    let path = FieldPath::root("status").field("storedVersions");
    let versions = definition["spec"]["versions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (index, stored) in definition["status"]["storedVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if !versions.iter().any(|version| version["name"] == *stored) {
            out.invalid(&path.index(index), text(stored), "must appear in spec.versions");
        }
    }
}

/// What may not change.
pub(crate) fn changes(definition: &Value, old: &Value) -> Vec<Violation> {
    let mut out = Violations::new();
    let (path, established) = (FieldPath::root("spec"), holds(old, "Established"));
    let (spec, before) = (&definition["spec"], &old["spec"]);
    for (field, fixed) in [("group", true), ("scope", established)] {
        if fixed && spec[field] != before[field] {
            out.invalid(&path.field(field), text(&spec[field]), "field is immutable");
        }
    }
    for (field, fixed) in [("plural", true), ("kind", established)] {
        if fixed && spec["names"][field] != before["names"][field] {
            out.invalid(
                &path.field("names").field(field),
                text(&spec["names"][field]),
                "field is immutable",
            );
        }
    }
    out.into_vec()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
