//! Reading manifests: YAML and JSON, from files, directories and standard input, with the position of every node.
//!
//! Promised: every mistake is found before anything is sent, as far as it can be found here, and is shown with its file, line, column and
//! field, and with what to do about it. What must never happen: that a manifest means something else here than it does to kubectl,
//! without an error; that a hostile file costs more memory or time than its size allows. Tested by a corpus of bad manifests in
//! `tests/bad-manifests`, each of which names the mistake and the place where it must be found.

pub mod diagnostic;
pub mod document;
mod kinds;
pub mod limits;
pub mod node;
mod parse;
mod scalar;
mod schema;
pub mod source;
pub mod suggest;
mod typed;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

pub use diagnostic::{Code, Diagnostic, Report};
pub use document::Document;
pub use node::{Node, Span};
pub use source::Source;

/// Reads all objects that the paths name: files, directories, `-` for `stdin`.
pub fn read(paths: &[String], recursive: bool, stdin: &mut dyn Read) -> Result<Vec<Document>, Report> {
    let (sources, mut diagnostics) = source::read_all(paths, recursive, stdin);
    let (documents, report) = read_sources(&sources);
    diagnostics.extend(report.diagnostics);
    if diagnostics.is_empty() {
        return Ok(documents);
    }
    Err(Report {
        diagnostics,
        documents: report.documents,
        outcome: None,
    })
}

/// Reads all objects of these sources; the report has what is wrong with the others.
pub fn read_sources(sources: &[Arc<Source>]) -> (Vec<Document>, Report) {
    let mut documents: Vec<Document> = Vec::new();
    let mut report = Report::default();
    for source in sources {
        let (trees, mistakes) = parse::parse(source);
        let broken = !mistakes.is_empty();
        report.diagnostics.extend(mistakes);
        let mut objects = Vec::new();
        for tree in &trees {
            expand(tree, &mut objects);
        }
        report.documents += objects.len().max(usize::from(broken));
        if objects.len() > limits::DOCUMENTS_MAX {
            let title = format!("more than {} objects in one file", limits::DOCUMENTS_MAX);
            let span = objects[limits::DOCUMENTS_MAX].span;
            report
                .diagnostics
                .push(Diagnostic::new(Code::Limit, source, Some(span), title));
            continue;
        }
        if trees.is_empty() && !broken {
            let title = "there is no object in this file";
            report
                .diagnostics
                .push(Diagnostic::new(Code::NotAnObject, source, None, title));
        }
        for node in &objects {
            match document::read(source, node) {
                Ok(document) => documents.push(document),
                Err(mistakes) => report.diagnostics.extend(mistakes),
            }
        }
    }
    twice(&documents, &mut report);
    (documents, report)
}

/// The objects of a document: itself, or what is in it when it is a list.
fn expand(node: &Arc<Node>, objects: &mut Vec<Arc<Node>>) {
    let text = |field: &str| node.get(field).and_then(|value| value.as_str()).unwrap_or_default();
    let list = text("kind").ends_with("List")
        && node
            .get("items")
            .is_some_and(|items| matches!(items.value, node::NodeValue::Sequence(_)));
    match node.get("items").filter(|_| list) {
        Some(items) => items.items().iter().for_each(|item| expand(item, objects)),
        None => objects.push(node.clone()),
    }
}

/// An object that is there twice would be what the last one says, whatever the first one says.
fn twice(documents: &[Document], report: &mut Report) {
    let mut seen: BTreeMap<(String, &str, &str, &str), &Document> = BTreeMap::new();
    for document in documents {
        let group = document.api_version.split_once('/').map_or("", |(group, _)| group);
        let namespace = document.namespace.as_deref().unwrap_or_default();
        let key = (
            group.to_owned(),
            document.kind.as_str(),
            namespace,
            document.name.as_str(),
        );
        let Some(first) = seen.insert(key, document) else {
            continue;
        };
        let span = document.node.locate("metadata.name").span;
        let before = first.node.locate("metadata.name").span;
        let mut diagnostic = Diagnostic::new(
            Code::DuplicateKey,
            &document.source,
            Some(span),
            format!("{} is there twice", document.title()),
        )
        .label("again here")
        .field("metadata.name");
        if first.source == document.source {
            diagnostic.other = Some((before, "first here".to_owned()));
        } else {
            diagnostic.help.push(format!(
                "first at {}:{}:{}",
                first.source.name, before.line, before.column
            ));
        }
        report.diagnostics.push(diagnostic);
    }
}
