//! `mctl apply`: makes the cluster have what manifests describe.
//!
//! The server merges: what was applied before and is not in the manifest any more goes, what others own is not touched, or is a conflict
//! that names its owner.
//!
//! Everything is checked before anything is sent: first here, then, when there are several objects, by the server in a dry run of all of
//! them. A mistake that the server finds is shown at its place in the manifest too.

use std::collections::BTreeSet;

use futures::future::join_all;
use http::Method;
use serde_json::Value;

use crate::apply_args::ApplyArgs;
use crate::cli::DryRun;
use crate::discovery::{Catalogue, Resource};
use crate::failure::{Exit, Failure, Outcome};
use crate::manifest::suggest::nearest;
use crate::manifest::{Code, Diagnostic, Document, Report};
use crate::output::{self, Format};
use crate::owners;
use crate::rest::{CallError, JSON, Payload, Rest, with_query};
use crate::session::{Session, Terminal, read_files, span};

use super::applyset::{self, ApplySet};
use super::live;

/// Requests at a time: enough to keep a server of a few cores busy, and few connections.
const AT_ONCE: usize = 16;

/// An object to apply.
pub(super) struct Item<'a> {
    /// Where it comes from.
    pub(super) document: &'a Document,
    /// Its kind.
    pub(super) resource: Resource,
    /// Its namespace.
    pub(super) namespace: String,
    /// What is sent: the document, with its namespace.
    pub(super) object: Value,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Created,
    Configured,
    Unchanged,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Configured => "configured",
            Change::Unchanged => "unchanged",
        }
    }
}

/// Runs the command.
pub async fn run(session: Option<&Session>, args: ApplyArgs, terminal: &mut Terminal) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    if matches!(format, Format::Wide | Format::Template(_) | Format::Columns(_)) {
        return Err(Failure::new("-o: there are name, yaml and json"));
    }
    let outcome = apply(session, &args, &format, terminal).await;
    match outcome {
        Err(Failure::Report(report)) if matches!(format, Format::Json) => {
            terminal.text(output::pretty(&report.to_json()))?;
            Ok(Exit::Error)
        }
        other => other,
    }
}

async fn apply(session: Option<&Session>, args: &ApplyArgs, format: &Format, terminal: &mut Terminal) -> Outcome {
    if args.files.filename.is_empty() {
        return Err(Failure::new("name the manifests: mctl apply -f FILE"));
    }
    let timeout = span("--timeout", &args.timeout)?;
    let set = applyset::named(args.applyset.as_deref(), args.prune)?;
    let documents = read_files(&args.files, terminal)?;
    let Some(session) = session else {
        for document in &documents {
            let title = format!("{}/{}", document.kind.to_lowercase(), document.name);
            terminal.line(format!("{title} is fine (client dry run)"))?;
        }
        return Ok(Exit::Done);
    };
    let catalogue = session.catalogue().await?;
    let mut items = items(session, &catalogue, &documents)?;
    // What is in a namespace can only be created when that is there.
    items.sort_by_key(|item| item.document.kind != "Namespace");
    let set = match set {
        Some(word) => Some(ApplySet::open(session, &catalogue, word, &mut items).await?),
        None => None,
    };
    let server = Server {
        rest: &session.rest,
        manager: &args.field_manager,
        force: args.force_conflicts,
    };
    if items.len() > 1 || args.dry_run == DryRun::Server {
        check_all(&server, &items).await?;
    }
    let dry = args.dry_run == DryRun::Server;
    if let Some(set) = set.as_ref().filter(|_| !dry) {
        set.widen().await?;
    }
    let applied = send_all(&server, &items, dry, format, terminal).await?;
    if let Some(set) = &set {
        let uids = applied
            .iter()
            .filter_map(|(_, object)| object["metadata"]["uid"].as_str().map(str::to_owned));
        set.prune(&uids.collect(), dry, terminal).await?;
    }
    if matches!(format, Format::Yaml | Format::Json) {
        let tidied = applied
            .iter()
            .map(|(resource, object)| (resource.clone(), output::tidy(object, false)))
            .collect();
        output::print(&mut terminal.out, format, tidied, applied.len() == 1)?;
    }
    if args.wait && !dry {
        return live::wait(session, &applied, timeout, terminal).await;
    }
    Ok(Exit::Done)
}

/// Applies everything, in batches; stops at the first that is refused.
async fn send_all(
    server: &Server<'_>,
    items: &[Item<'_>],
    dry: bool,
    format: &Format,
    terminal: &mut Terminal,
) -> Outcome<Vec<(Resource, Value)>> {
    let mut applied: Vec<(Resource, Value)> = Vec::new();
    for batch in batches(items) {
        let results = join_all(batch.iter().map(|item| server.apply(item, dry))).await;
        let mut refused = None;
        for (item, done) in batch.iter().zip(results) {
            let (change, object, warnings) = match done {
                Ok(done) => done,
                Err(refused) if dry && namespace_comes(items, item, &refused.error) => {
                    (Change::Created, item.document.object.clone(), Vec::new())
                }
                Err(error) => {
                    refused = refused.or(Some((item, error)));
                    continue;
                }
            };
            let printed = Printed { item, change, dry };
            printed.print(&warnings, format, terminal)?;
            applied.push((item.resource.clone(), object));
        }
        if let Some((item, error)) = refused {
            return Err(stopped(item, &error, &applied, items.len()));
        }
    }
    Ok(applied)
}

/// What is sent at once: neighbours of one kind, a few at a time. Between kinds the order of the manifests holds.
fn batches<'a, 'b>(items: &'a [Item<'b>]) -> impl Iterator<Item = &'a [Item<'b>]> {
    let of_a_kind =
        items.chunk_by(|one, other| one.document.kind == other.document.kind && one.document.kind != "Namespace");
    of_a_kind.flat_map(|run| run.chunks(AT_ONCE))
}

/// What became of one document.
struct Printed<'a> {
    item: &'a Item<'a>,
    change: Change,
    dry: bool,
}

impl Printed<'_> {
    fn print(&self, warnings: &[String], format: &Format, terminal: &mut Terminal) -> Outcome<()> {
        let document = self.item.document;
        warnings
            .iter()
            .for_each(|warning| terminal.note(warn(document, warning, terminal.err_style)));
        let title = format!("{}/{}", self.item.resource.title(), document.name);
        match format {
            Format::Table => {
                let dry = if self.dry { " (server dry run)" } else { "" };
                terminal.line(format!("{title} {}{dry}", self.change.word()))
            }
            Format::Name => terminal.line(title),
            _ => Ok(()),
        }
    }
}

/// The documents as objects of kinds that the server has.
pub(super) fn items<'a>(session: &Session, catalogue: &Catalogue, documents: &'a [Document]) -> Outcome<Vec<Item<'a>>> {
    let mut items = Vec::new();
    let mut report = Report {
        documents: documents.len(),
        ..Report::default()
    };
    for document in documents {
        let namespace = match session.namespace_of(document) {
            Ok(namespace) => namespace,
            Err(Failure::Report(wrong)) => {
                report.diagnostics.extend(wrong.diagnostics);
                continue;
            }
            Err(other) => return Err(other),
        };
        match catalogue.of(&document.api_version, &document.kind) {
            Some(resource) => {
                let mut object = document.object.clone();
                if resource.namespaced {
                    object["metadata"]["namespace"] = Value::String(namespace.clone());
                }
                items.push(Item {
                    document,
                    resource: resource.clone(),
                    namespace,
                    object,
                });
            }
            None => {
                let title = format!("the server has no kind `{}` of {}", document.kind, document.api_version);
                let place = document.node.locate("kind").span;
                let kinds = catalogue.resources.iter().map(|resource| resource.kind.as_str());
                let diagnostic = Diagnostic::new(Code::UnknownKind, &document.source, Some(place), title)
                    .suggest(nearest(&document.kind, kinds.filter(|kind| *kind != document.kind)))
                    .help("`mctl api-resources` lists the kinds")
                    .field("kind");
                report.diagnostics.push(diagnostic);
            }
        }
    }
    if report.diagnostics.is_empty() {
        Ok(items)
    } else {
        Err(report.into())
    }
}

/// A dry run of everything; all mistakes are reported together.
async fn check_all(server: &Server<'_>, items: &[Item<'_>]) -> Outcome<()> {
    let mut report = Report {
        documents: items.len(),
        ..Report::default()
    };
    for batch in items.chunks(AT_ONCE) {
        let results = join_all(batch.iter().map(|item| server.apply(item, true))).await;
        for (item, result) in batch.iter().zip(results) {
            match result {
                Ok(_) => {}
                Err(refused) if namespace_comes(items, item, &refused.error) => {}
                Err(refused) if matches!(refused.error, CallError::Status(_)) => {
                    report.diagnostics.extend(diagnose(item.document, &refused));
                }
                Err(refused) => return Err(refused.error.into()),
            }
        }
    }
    if report.diagnostics.is_empty() {
        Ok(())
    } else {
        Err(report.into())
    }
}

/// Whether the object's namespace is not there yet but is among what is applied.
pub(super) fn namespace_comes(items: &[Item<'_>], item: &Item<'_>, error: &CallError) -> bool {
    let names: BTreeSet<&str> = items
        .iter()
        .filter(|other| other.document.kind == "Namespace")
        .map(|other| other.document.name.as_str())
        .collect();
    error.is_not_found() && item.resource.namespaced && names.contains(item.namespace.as_str())
}

/// A failure after others were applied, or before.
fn stopped(item: &Item<'_>, refused: &Refused, applied: &[(Resource, Value)], documents: usize) -> Failure {
    if !matches!(refused.error, CallError::Status(_)) && applied.is_empty() {
        return Failure::new(format!("{}\nnothing was applied", refused.error));
    }
    let names: Vec<String> = applied
        .iter()
        .map(|(resource, object)| output::object_name(resource, object))
        .collect();
    let outcome = (!names.is_empty()).then(|| format!("applied: {}; nothing else was applied", names.join(", ")));
    Report {
        diagnostics: diagnose(item.document, refused),
        documents,
        outcome,
    }
    .into()
}

/// What the server says, at the places that it speaks of.
pub(super) fn diagnose(document: &Document, refused: &Refused) -> Vec<Diagnostic> {
    let error = &refused.error;
    let causes = error.causes().iter().filter(|cause| !cause.field.is_empty());
    let mut diagnostics: Vec<Diagnostic> = causes
        .map(|cause| match cause.reason.as_str() {
            "FieldManagerConflict" => conflict(document, &cause.field, &cause.message, &refused.live),
            _ => match quoted_field(&cause.message, "unknown field \"") {
                Some(field) => unknown(document, &field),
                None => document.refused(&cause.reason, &cause.field, &cause.message),
            },
        })
        .collect();
    let message = error.to_string();
    if diagnostics.is_empty() {
        diagnostics.extend(quoted_field(&message, "unknown field \"").map(|field| unknown(document, &field)));
    }
    if diagnostics.is_empty() {
        let title = format!("the server refused {}", document.title());
        let mut diagnostic = Diagnostic::new(Code::Refused, &document.source, Some(document.span()), title);
        diagnostic.label = message.lines().next().unwrap_or_default().to_owned();
        diagnostics.push(diagnostic);
    }
    diagnostics
}

/// A field that somebody else owns and holds another opinion about.
fn conflict(document: &Document, field: &str, message: &str, live: &Value) -> Diagnostic {
    let place = document.node.locate(field);
    let owner = message.strip_prefix("conflict with ").unwrap_or(message);
    let since = owners::since(live, message).map_or_else(String::new, |time| format!(" since {time}"));
    let field = field.trim_start_matches('.');
    let title = format!("`{field}` is owned by {owner}{since}, who says something else");
    Diagnostic::new(Code::Conflict, &document.source, Some(place.span), title)
        .label("would change it")
        .help("to take the field: `mctl apply --force-conflicts`; to leave it to its owner: take it out of the manifest, or say the same")
        .field(field)
}

fn quoted_field(message: &str, before: &str) -> Option<String> {
    let rest = message.split_once(before)?.1;
    Some(rest.split_once('"')?.0.to_owned())
}

fn unknown(document: &Document, field: &str) -> Diagnostic {
    let place = document.node.locate(field);
    let title = format!("unknown field `{field}`");
    Diagnostic::new(
        Code::UnknownField,
        &document.source,
        Some(place.key.unwrap_or(place.span)),
        title,
    )
    .field(field)
}

/// A warning of the server, at its place when it names a field.
fn warn(document: &Document, warning: &str, style: crate::style::Style) -> String {
    let field = quoted_field(warning, "unknown field \"")
        .or_else(|| warning.split_once(": ").map(|(field, _)| field.to_owned()));
    let place = field
        .filter(|field| field.starts_with("spec") || field.starts_with("metadata"))
        .map(|field| document.node.locate(&field));
    match place.filter(|place| place.exact) {
        Some(place) => {
            let mut diagnostic = Diagnostic::new(Code::Refused, &document.source, Some(place.span), warning);
            diagnostic.warning = true;
            diagnostic.render(style).trim_end().to_owned()
        }
        None => format!("Warning: {warning}"),
    }
}

/// The server, and who applies.
pub(super) struct Server<'a> {
    pub(super) rest: &'a Rest,
    /// Who owns what is applied.
    pub(super) manager: &'a str,
    /// Whether fields that others own are taken.
    pub(super) force: bool,
}

/// An object that was applied: what became of it, the object, and what the server warns of.
pub(super) type Done = (Change, Value, Vec<String>);

/// Why an object was not applied, and the object that is there.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: CallError,
    pub(super) live: Value,
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Refused {
        Refused {
            error,
            live: Value::Null,
        }
    }
}

impl Server<'_> {
    /// Creates the object, or makes of it what is said.
    pub(super) async fn apply(&self, item: &Item<'_>, dry: bool) -> Result<Done, Refused> {
        let path = item.resource.object_path(&item.namespace, &item.document.name);
        let mut live = match self.rest.get(&path).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => Value::Null,
            Err(error) => return Err(error.into()),
        };
        if !dry && let Some(patch) = owners::taking_over(&live, self.manager) {
            let answer = self
                .rest
                .call(Method::PATCH, &path, JSON, Some(Payload::json_patch(&patch)))
                .await;
            match answer {
                Ok(answer) => live = answer.value,
                // Somebody else wrote in between; what is applied does not depend on this.
                Err(error) if error.code() == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        let force = if self.force { "true" } else { "false" };
        let mut parameters = vec![
            ("fieldManager", self.manager),
            ("fieldValidation", "Strict"),
            ("force", force),
        ];
        if dry {
            parameters.push(("dryRun", "All"));
        }
        let object = sendable(&item.object);
        let path = with_query(&path, &parameters);
        let sent = self
            .rest
            .call(Method::PATCH, &path, JSON, Some(Payload::apply(&object)))
            .await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Err(Refused { error, live }),
        };
        let change = if live.is_null() {
            Change::Created
        } else if essence(&live) == essence(&answer.value) {
            Change::Unchanged
        } else {
            Change::Configured
        };
        Ok((change, answer.value, answer.warnings))
    }
}

/// The object without what only the server writes, which an export of another object may have left in it.
fn sendable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in [
            "resourceVersion",
            "uid",
            "creationTimestamp",
            "generation",
            "managedFields",
            "selfLink",
        ] {
            metadata.remove(field);
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}

/// The object without what changes with every write.
fn essence(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(owners::LAST_APPLIED);
        }
    }
    object
}
