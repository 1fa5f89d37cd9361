//! What every command needs: the server, the namespace, a place to print to, and the objects that arguments name.

use std::io::{self, IsTerminal as _, Write};

use muster_client::{Client, Endpoints};
use serde_json::Value;

use crate::cli::{Files, Global, Selection};
use crate::discovery::{Catalogue, Resource};
use crate::failure::{Failure, Outcome};
use crate::kubeconfig::{self, Choice};
use crate::manifest;
use crate::rest::{CallError, Rest};
use crate::style::Style;

/// Where a command prints to.
pub struct Terminal {
    /// Results.
    pub out: Box<dyn Write + Send>,
    /// Everything else.
    pub err: Box<dyn Write + Send>,
    /// How results look.
    pub out_style: Style,
    /// How everything else looks.
    pub err_style: Style,
    /// Whether a person looks at the results.
    pub interactive: bool,
    /// Where manifests named `-` come from.
    pub stdin: Box<dyn io::Read + Send>,
}

impl Terminal {
    /// The streams of this process.
    pub fn real() -> Terminal {
        Terminal {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            out_style: Style::detect(&io::stdout()),
            err_style: Style::detect(&io::stderr()),
            interactive: io::stdout().is_terminal(),
            stdin: Box::new(io::stdin()),
        }
    }

    /// Prints a line of results.
    pub fn line(&mut self, text: impl AsRef<str>) -> Outcome<()> {
        writeln!(self.out, "{}", text.as_ref())?;
        Ok(self.out.flush()?)
    }

    /// Prints results as they are.
    pub fn text(&mut self, text: impl AsRef<str>) -> Outcome<()> {
        self.out.write_all(text.as_ref().as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Says something to whoever looks.
    pub fn note(&mut self, text: impl AsRef<str>) {
        // When standard error is gone, there is nobody to say it to.
        let _ = writeln!(self.err, "{}", text.as_ref());
    }
}

/// The server, and where on it.
pub struct Session {
    /// The server.
    pub rest: Rest,
    /// The namespace of objects that name none.
    pub namespace: String,
    /// Whether the namespace was given with `-n`.
    pub namespace_given: bool,
}

/// An object that arguments name, or a collection.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind.
    pub resource: Resource,
    /// The namespace.
    pub namespace: String,
    /// The name; `None`: all that the selection has.
    pub name: Option<String>,
}

impl Session {
    /// Reads the configuration. The server is not called yet.
    pub async fn open(global: &Global) -> Outcome<Session> {
        let choice = Choice {
            file: global.kubeconfig.clone(),
            context: global.context.clone(),
        };
        let config = kubeconfig::load(&choice).await?;
        let rest = if global.servers.is_empty() {
            Rest::new(config)?
        } else {
            let failed =
                |error: muster_client::Error| Failure::new(format!("--servers: {}", kubeconfig::chain(&error)));
            let endpoints = Endpoints::new(&global.servers).map_err(failed)?;
            let client = Client::from_config_at(config, endpoints).map_err(failed)?;
            Rest::over(client.kube(), &global.servers.join(","))
        };
        Ok(Session::over(rest, global.namespace.clone()))
    }

    /// A session with a known server.
    pub fn over(rest: Rest, namespace: Option<String>) -> Session {
        Session {
            namespace_given: namespace.is_some(),
            namespace: namespace.unwrap_or_else(|| rest.namespace().to_owned()),
            rest,
        }
    }

    /// The kinds of the server.
    pub async fn catalogue(&self) -> Outcome<Catalogue> {
        Ok(Catalogue::load(&self.rest).await?)
    }

    /// The tasks, which every server has.
    pub fn tasks() -> Resource {
        ours("tasks", "task", "Task", true)
    }

    /// The namespace of a task and its name, from `NAME` or `task/NAME`.
    pub fn task_name<'a>(&self, word: &'a str) -> Outcome<&'a str> {
        let name = match word.split_once('/') {
            None => word,
            Some(("task" | "tasks" | "tk" | "task.muster.dev" | "tasks.muster.dev", name)) => name,
            Some((kind, _)) => return Err(Failure::new(format!("`{kind}` is not a task; write task/NAME"))),
        };
        if name.is_empty() {
            Err(Failure::new("name a task"))
        } else {
            Ok(name)
        }
    }

    /// The objects and collections that arguments name: `KIND`, `KIND,KIND`, `KIND NAME…`, `KIND/NAME…`.
    pub fn targets(&self, catalogue: &Catalogue, what: &[String]) -> Outcome<Vec<Target>> {
        let target = |resource: &Resource, name: Option<&str>| Target {
            resource: resource.clone(),
            namespace: self.namespace.clone(),
            name: name.map(str::to_owned),
        };
        if what.iter().any(|word| word.contains('/')) {
            let each = what.iter().map(|word| match word.split_once('/') {
                Some((kind, name)) if !name.is_empty() && !kind.is_empty() => {
                    Ok(target(catalogue.find(kind)?, Some(name)))
                }
                _ => Err(Failure::new(format!(
                    "`{word}`: write either KIND/NAME for each object, or KIND NAME…"
                ))),
            });
            return each.collect();
        }
        let Some((kinds, names)) = what.split_first() else {
            return Err(Failure::new(
                "name a kind, such as `tasks` (`mctl api-resources` lists them)",
            ));
        };
        let resources = catalogue.find_all(kinds)?;
        if names.is_empty() {
            return Ok(resources.into_iter().map(|resource| target(resource, None)).collect());
        }
        let each = resources
            .into_iter()
            .flat_map(|resource| names.iter().map(move |name| (resource, name)));
        Ok(each.map(|(resource, name)| target(resource, Some(name))).collect())
    }

    /// The objects that manifests describe.
    pub fn file_targets(&self, catalogue: &Catalogue, documents: &[manifest::Document]) -> Outcome<Vec<Target>> {
        let each = documents.iter().map(|document| {
            let resource = catalogue.of(&document.api_version, &document.kind).ok_or_else(|| {
                Failure::new(format!(
                    "{}: the server has no kind {} of {}",
                    document.source.name, document.kind, document.api_version
                ))
            })?;
            Ok(Target {
                resource: resource.clone(),
                namespace: self.namespace_of(document)?,
                name: Some(document.name.clone()),
            })
        });
        each.collect()
    }

    /// The namespace of a document; one that differs from `-n` is an error, as with kubectl.
    pub fn namespace_of(&self, document: &manifest::Document) -> Outcome<String> {
        match &document.namespace {
            Some(namespace) if self.namespace_given && *namespace != self.namespace => {
                let place = document.node.locate("metadata.namespace").span;
                let diagnostic = manifest::Diagnostic::new(
                    manifest::Code::InvalidValue,
                    &document.source,
                    Some(place),
                    format!("the namespace `{namespace}` is not the one given, `{}`", self.namespace),
                );
                let diagnostic = diagnostic
                    .help("leave out -n, or the namespace in the manifest")
                    .field("metadata.namespace");
                Err(manifest::Report {
                    diagnostics: vec![diagnostic],
                    documents: 1,
                    outcome: None,
                }
                .into())
            }
            Some(namespace) => Ok(namespace.clone()),
            None => Ok(self.namespace.clone()),
        }
    }

    /// All objects of a collection.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selection: &Selection,
    ) -> Result<Value, CallError> {
        self.rest
            .get(&crate::rest::with_query(&resource.path(namespace), &query(selection)))
            .await
    }

    /// The objects of a collection that the selection has, each by its name.
    pub async fn members(&self, collection: &Target, selection: &Selection) -> Result<Vec<Target>, CallError> {
        let namespace = (!selection.all_namespaces).then_some(collection.namespace.as_str());
        let list = self.list(&collection.resource, namespace, selection).await?;
        let items = list["items"].as_array().into_iter().flatten();
        let member = |item: &Value| {
            let own = item["metadata"]["namespace"].as_str();
            Target {
                resource: collection.resource.clone(),
                namespace: own.unwrap_or(&collection.namespace).to_owned(),
                name: item["metadata"]["name"].as_str().map(str::to_owned),
            }
        };
        Ok(items.map(member).collect())
    }
}

/// A kind of Muster's own.
pub fn ours(plural: &str, singular: &str, kind: &str, namespaced: bool) -> Resource {
    Resource {
        group: muster_api::names::GROUP.to_owned(),
        version: muster_api::names::VERSION.to_owned(),
        plural: plural.to_owned(),
        singular: singular.to_owned(),
        kind: kind.to_owned(),
        namespaced,
        ..Resource::default()
    }
}

/// The parameters of a selection.
pub fn query(selection: &Selection) -> Vec<(&str, &str)> {
    let label = selection
        .selector
        .as_deref()
        .map(|selector| ("labelSelector", selector));
    let field = selection
        .field_selector
        .as_deref()
        .map(|selector| ("fieldSelector", selector));
    label.into_iter().chain(field).collect()
}

/// Reads the manifests of `-f`.
pub fn read_files(files: &Files, terminal: &mut Terminal) -> Outcome<Vec<manifest::Document>> {
    Ok(manifest::read(&files.filename, files.recursive, &mut terminal.stdin)?)
}

/// A span of time as it is written on the command line: `30s`, `5m`; a bare number is seconds; `0` is `None`.
pub fn span(flag: &str, text: &str) -> Outcome<Option<std::time::Duration>> {
    let read = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("{text}s")
    } else {
        text.to_owned()
    };
    let span: muster_api::duration::Span = read.parse().map_err(|error| Failure::new(format!("{flag}: {error}")))?;
    Ok((span.millis() > 0).then(|| span.duration()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_kubectl_reads_them() {
        let millis = |text: &str| span("--timeout", text).map(|span| span.map(|span| span.as_millis()));
        assert!(matches!(millis("30s"), Ok(Some(30_000))));
        assert!(matches!(millis("30"), Ok(Some(30_000))));
        assert!(matches!(millis("0"), Ok(None)));
        assert!(millis("soon").is_err());
    }
}
