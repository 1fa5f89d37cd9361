//! What every object must have, whatever its kind: apiVersion, kind, metadata, a name.

use std::sync::Arc;

use muster_api::names;
use serde_json::Value;

use super::diagnostic::{Code, Diagnostic};
use super::kinds::{self, KINDS, Kind};
use super::node::{Node, NodeValue, Span};
use super::source::Source;
use super::suggest::nearest;
use super::{limits, schema, typed};

/// An object of a manifest, with where it stands.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file.
    pub source: Arc<Source>,
    /// The tree.
    pub node: Arc<Node>,
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, if given.
    pub namespace: Option<String>,
    /// The object.
    pub object: Value,
}

impl Document {
    /// `Task hello`, for messages.
    pub fn title(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// A mistake of this object that the server found, at the place of its field.
    pub fn refused(&self, reason: &str, field: &str, message: &str) -> Diagnostic {
        let context = Context::new(&self.source, &Value::Null);
        typed::refused(&context, &self.node, reason, field, message).field(field)
    }

    /// Where the object begins.
    pub fn span(&self) -> Span {
        self.node.entry("kind").map_or(self.node.span, |entry| entry.key_span)
    }
}

/// What the mistakes of one document are collected in.
pub struct Context<'a> {
    /// The file.
    pub source: &'a Arc<Source>,
    /// The schema of the whole object.
    pub schema: &'a Value,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Context<'a> {
    fn new(source: &'a Arc<Source>, schema: &'a Value) -> Context<'a> {
        Context {
            source,
            schema,
            diagnostics: Vec::new(),
        }
    }

    /// Adds a mistake about a field.
    pub fn add(&mut self, diagnostic: Diagnostic, field: &str) -> &mut Diagnostic {
        self.diagnostics.push(diagnostic.field(field));
        self.diagnostics.last_mut().expect("it was pushed a line above")
    }

    /// Whether a mistake is at this field or below it.
    pub fn has_mistakes_below(&self, path: &str) -> bool {
        self.fields().any(|field| within(field, path))
    }

    /// Whether a mistake is at this field or above it.
    pub fn has_mistakes_above(&self, path: &str) -> bool {
        self.fields().any(|field| within(path, field))
    }

    fn fields(&self) -> impl Iterator<Item = &str> {
        self.diagnostics
            .iter()
            .filter_map(|diagnostic| diagnostic.field.as_deref())
    }
}

fn within(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Reads one object, and says what is wrong with it.
pub fn read(source: &Arc<Source>, node: &Arc<Node>) -> Result<Document, Vec<Diagnostic>> {
    let nothing = Value::Null;
    let mut context = Context::new(source, &nothing);
    if !matches!(node.value, NodeValue::Mapping(_)) {
        let title = format!(
            "an object is a map of apiVersion, kind, metadata and spec, not {}",
            node.kind()
        );
        context.add(Diagnostic::new(Code::NotAnObject, source, Some(node.span), title), "");
        return Err(context.diagnostics);
    }
    let api_version = head(&mut context, node, "apiVersion", "apiVersion: muster.dev/v1");
    let kind = head(&mut context, node, "kind", "kind: Task");
    let known = match (&api_version, &kind) {
        (Some(api_version), Some(kind)) => identify(&mut context, node, api_version, kind),
        _ => None,
    };
    let (Some(api_version), Some(kind), true) = (api_version, kind, context.diagnostics.is_empty()) else {
        return Err(context.diagnostics);
    };
    let object = node.to_json();
    if let Some(known) = known {
        context.schema = &known.schema;
        schema::check(&mut context, node, &known.schema, "", node.span);
    } else if let Some(entry) = node.entry("metadata") {
        schema::check(&mut context, &entry.value, &kinds::METADATA, "metadata", entry.key_span);
    }
    metadata(&mut context, node, known, &kind);
    if known.is_some_and(|known| known.api_version == names::API_VERSION) {
        typed::check(&mut context, node, &kind, &object);
    }
    if object.to_string().len() > OBJECT_BYTES_MAX {
        let title = format!("the object is larger than {} MiB", OBJECT_BYTES_MAX >> 20);
        context.add(Diagnostic::new(Code::Limit, source, Some(node.span), title), "");
    }
    if !context.diagnostics.is_empty() {
        let mut diagnostics = context.diagnostics;
        diagnostics.sort_by_key(|diagnostic| diagnostic.span);
        diagnostics.truncate(limits::MISTAKES_MAX);
        return Err(diagnostics);
    }
    let text = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
    Ok(Document {
        source: source.clone(),
        node: node.clone(),
        api_version,
        kind,
        name: text("name").unwrap_or_default(),
        namespace: text("namespace"),
        object,
    })
}

/// The largest object that the API server stores.
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// `apiVersion` or `kind`.
fn head(context: &mut Context<'_>, node: &Node, field: &str, example: &str) -> Option<String> {
    let source = context.source;
    let Some(entry) = node.entry(field) else {
        let near = node
            .entries()
            .iter()
            .find(|entry| nearest(&entry.key, [field]).is_some());
        let span = near.map_or(node.span, |entry| entry.key_span);
        let diagnostic = Diagnostic::new(Code::NotAnObject, source, Some(span), format!("`{field}` is missing"))
            .suggest(near.map(|_| field))
            .help(format!("every object says what it is, such as `{example}`"));
        context.add(diagnostic, field);
        return None;
    };
    match entry.value.as_str() {
        Some(text) if !text.is_empty() => Some(text.to_owned()),
        Some(_) => {
            context.add(
                Diagnostic::new(
                    Code::NotAnObject,
                    source,
                    Some(entry.value.span),
                    format!("`{field}` is empty"),
                ),
                field,
            );
            None
        }
        None => {
            let title = format!("`{field}` must be text, not {}", entry.value.kind());
            let span = if entry.value.is_null() {
                entry.key_span
            } else {
                entry.value.span
            };
            let diagnostic =
                Diagnostic::new(Code::NotAnObject, source, Some(span), title).help(format!("such as `{example}`"));
            context.add(diagnostic, field);
            None
        }
    }
}

/// Finds the kind; one that is not known here may still be known to the server, unless it is in a group that is.
fn identify(context: &mut Context<'_>, node: &Node, api_version: &str, kind: &str) -> Option<&'static Kind> {
    let source = context.source;
    if let Some(known) = kinds::find(api_version, kind) {
        return Some(known);
    }
    let at = |field: &str| node.get(field).map(|value| value.span);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let ours: Vec<&str> = KINDS
        .iter()
        .filter(|known| known.api_version == names::API_VERSION)
        .map(|known| known.kind)
        .collect();
    if group == names::GROUP && version != names::VERSION {
        let title = format!("there is no version `{version}` of {group}");
        let diagnostic =
            Diagnostic::new(Code::UnknownKind, source, at("apiVersion"), title).suggest(Some(names::API_VERSION));
        context.add(diagnostic, "apiVersion");
    } else if group == names::GROUP {
        let title = format!("there is no kind `{kind}` in {api_version}");
        let diagnostic = Diagnostic::new(Code::UnknownKind, source, at("kind"), title)
            .suggest(nearest(kind, ours.iter().copied()))
            .help(format!("kinds of {api_version}: {}", ours.join(", ")));
        context.add(diagnostic, "kind");
    } else if ours.contains(&kind) {
        let title = format!("`{kind}` is a kind of {}, not of {api_version}", names::API_VERSION);
        let diagnostic =
            Diagnostic::new(Code::UnknownKind, source, at("apiVersion"), title).suggest(Some(names::API_VERSION));
        context.add(diagnostic, "apiVersion");
    } else if api_version.matches('/').count() > 1
        || version.is_empty()
        || (group.is_empty() && api_version.contains('/'))
    {
        let title = format!("`{api_version}` is no apiVersion");
        let diagnostic =
            Diagnostic::new(Code::NotAnObject, source, at("apiVersion"), title).help("it is `group/version`, or `v1`");
        context.add(diagnostic, "apiVersion");
    }
    None
}

fn metadata(context: &mut Context<'_>, node: &Node, known: Option<&Kind>, kind: &str) {
    let source = context.source;
    let Some(entry) = node
        .entry("metadata")
        .filter(|entry| matches!(entry.value.value, NodeValue::Mapping(_)))
    else {
        if !context.has_mistakes_above("metadata") {
            let span = node.entry("kind").map_or(node.span, |entry| entry.key_span);
            let diagnostic = Diagnostic::new(Code::Missing, source, Some(span), "`metadata` is missing")
                .help("every object has a name: `metadata: {name: hello}`");
            context.add(diagnostic, "metadata");
        }
        return;
    };
    let meta = &entry.value;
    let label_names = matches!(kind, "Task" | "Namespace");
    match (meta.get("name"), meta.entry("generateName")) {
        (Some(name), _) => {
            if let Some(text) = name.as_str() {
                let problem = if label_names {
                    names::dns_label_problem(text)
                } else {
                    names::dns_subdomain_problem(text)
                };
                text_problem(context, name, "metadata.name", problem);
            }
        }
        (None, Some(generate)) => {
            let title = "`metadata.generateName` cannot be applied: each time it would make another object";
            let diagnostic = Diagnostic::new(Code::InvalidValue, source, Some(generate.key_span), title)
                .help("write `metadata.name`");
            context.add(diagnostic, "metadata.generateName");
        }
        (None, None) => {
            let near = meta
                .entries()
                .iter()
                .find(|entry| nearest(&entry.key, ["name"]).is_some());
            if near.is_none() {
                let diagnostic = Diagnostic::new(
                    Code::Missing,
                    source,
                    Some(entry.key_span),
                    "`metadata.name` is missing",
                )
                .help("every object has a name: `metadata: {name: hello}`");
                context.add(diagnostic, "metadata.name");
            }
        }
    }
    if let Some(namespace) = meta.entry("namespace") {
        if known.is_some_and(|known| !known.namespaced) {
            let title = format!("{kind} objects are in no namespace");
            let diagnostic =
                Diagnostic::new(Code::InvalidValue, source, Some(namespace.key_span), title).help("leave it out");
            context.add(diagnostic, "metadata.namespace");
        } else if let Some(text) = namespace.value.as_str() {
            text_problem(
                context,
                &namespace.value,
                "metadata.namespace",
                names::dns_label_problem(text),
            );
        }
    }
    for label in meta.get("labels").map_or(&[][..], |labels| labels.entries()) {
        let path = format!("metadata.labels[{}]", label.key);
        if let Some(problem) = names::qualified_name_problem(&label.key) {
            let title = format!("`{}` cannot be the key of a label", label.key);
            context.add(
                Diagnostic::new(Code::InvalidValue, source, Some(label.key_span), title).help(problem),
                &path,
            );
        } else if let Some(text) = label.value.as_str() {
            text_problem(context, &label.value, &path, names::label_value_problem(text));
        }
    }
    for annotation in meta
        .get("annotations")
        .map_or(&[][..], |annotations| annotations.entries())
    {
        if let Some(problem) = names::qualified_name_problem(&annotation.key) {
            let path = format!("metadata.annotations[{}]", annotation.key);
            let title = format!("`{}` cannot be the key of an annotation", annotation.key);
            context.add(
                Diagnostic::new(Code::InvalidValue, source, Some(annotation.key_span), title).help(problem),
                &path,
            );
        }
    }
}

fn text_problem(context: &mut Context<'_>, node: &Node, path: &str, problem: Option<String>) {
    let Some(problem) = problem else { return };
    let text = node.as_str().unwrap_or_default();
    let title = format!("`{path}` cannot be `{text}`");
    let simple: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let simple = simple.trim_matches('-').to_owned();
    let better = !path.contains('[') && names::dns_label_problem(&simple).is_none() && simple != text;
    let diagnostic = Diagnostic::new(Code::InvalidValue, context.source, Some(node.span), title)
        .suggest(better.then_some(simple.as_str()))
        .help(problem);
    context.add(diagnostic, path);
}
