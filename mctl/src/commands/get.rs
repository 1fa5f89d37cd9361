//! `mctl get`: tables as the server prints them, or whole objects.

use futures::StreamExt as _;
use serde_json::Value;

use super::gpus;
use crate::cli::{GetArgs, Selection};
use crate::discovery::Resource;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format};
use crate::rest::{CallError, TABLE, with_query};
use crate::session::{Session, Target, Terminal, query, read_files};
use crate::table::{self, Show, Table, Widths};

/// Runs the command.
pub async fn run(session: &Session, args: GetArgs, terminal: &mut Terminal) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    if gpus::are_meant(&args.what) {
        return gpus::run(session, &args, &format, terminal).await;
    }
    let catalogue = session.catalogue().await?;
    let targets = if args.files.filename.is_empty() {
        session.targets(&catalogue, &args.what)?
    } else {
        session.file_targets(&catalogue, &read_files(&args.files, terminal)?)?
    };
    let named = targets.iter().any(|target| target.name.is_some());
    if named && (args.selection.all_namespaces || !query(&args.selection).is_empty()) {
        return Err(Failure::new(
            "objects are named, so -A, -l and --field-selector have no meaning",
        ));
    }
    let get = Get {
        session,
        args: &args,
        format,
    };
    if args.watch || args.watch_only {
        let [target] = targets.as_slice() else {
            return Err(Failure::new("watch one kind, or one object, at a time"));
        };
        return get.watch(target, terminal).await;
    }
    if get.format.needs_objects() {
        get.objects(&targets, terminal).await
    } else {
        get.tables(&targets, terminal).await
    }
}

struct Get<'a> {
    session: &'a Session,
    args: &'a GetArgs,
    format: Format,
}

impl Get<'_> {
    fn path(&self, target: &Target) -> String {
        match &target.name {
            Some(name) => target.resource.object_path(&target.namespace, name),
            None => {
                let namespace = (!self.args.selection.all_namespaces).then_some(target.namespace.as_str());
                with_query(&target.resource.path(namespace), &query(&self.args.selection))
            }
        }
    }

    fn show(&self, target: &Target, kind: bool) -> Show {
        Show {
            wide: matches!(self.format, Format::Wide),
            namespace: self.args.selection.all_namespaces && target.resource.namespaced,
            labels: self.args.show_labels,
            kind,
        }
    }

    /// An object that is not there spoils the exit code, but not the others.
    fn missing(&self, error: CallError, terminal: &mut Terminal) -> Outcome<Exit> {
        if !error.is_not_found() {
            return Err(error.into());
        }
        if self.args.ignore_not_found {
            return Ok(Exit::Done);
        }
        terminal.note(format!("error: {error}"));
        Ok(Exit::Error)
    }

    async fn objects(&self, targets: &[Target], terminal: &mut Terminal) -> Outcome {
        let mut exit = Exit::Done;
        let mut found: Vec<(Resource, Value)> = Vec::new();
        for target in targets {
            match self.session.rest.get(&self.path(target)).await {
                Ok(mut answer) => {
                    let items = match (&target.name, answer.get_mut("items").map(Value::take)) {
                        (None, Some(Value::Array(items))) => items,
                        _ => vec![answer],
                    };
                    let tidy = |object: Value| output::tidy(&object, self.args.show_managed_fields);
                    found.extend(items.into_iter().map(|object| (target.resource.clone(), tidy(object))));
                }
                Err(error) => exit = self.missing(error, terminal)?,
            }
        }
        let single = matches!(targets, [target] if target.name.is_some());
        if !(single && found.is_empty()) {
            output::print(&mut terminal.out, &self.format, found, single)?;
        }
        Ok(exit)
    }

    async fn tables(&self, targets: &[Target], terminal: &mut Terminal) -> Outcome {
        let mut exit = Exit::Done;
        let many = targets
            .iter()
            .any(|target| target.resource.full_name() != targets[0].resource.full_name());
        let mut blocks: Vec<(String, Vec<String>, Vec<Vec<String>>)> = Vec::new();
        for target in targets {
            match self.session.rest.get_as(&self.path(target), TABLE).await {
                Ok(answer) => {
                    let table = Table::of(&answer);
                    let show = self.show(target, many);
                    let rows = table.rows(&answer, show, &target.resource.title());
                    let name = target.resource.full_name();
                    match blocks.last_mut().filter(|(last, _, _)| *last == name) {
                        Some((_, _, before)) => before.extend(rows),
                        None => blocks.push((name, table.headings(show), rows)),
                    }
                }
                Err(error) => exit = self.missing(error, terminal)?,
            }
        }
        blocks.retain(|(_, _, rows)| !rows.is_empty());
        if blocks.is_empty() && exit == Exit::Done && !self.args.ignore_not_found {
            let here = targets.iter().any(|target| target.resource.namespaced) && !self.args.selection.all_namespaces;
            let place = if here {
                format!(" in namespace {}", self.session.namespace)
            } else {
                String::new()
            };
            terminal.note(format!("there are none{place}"));
        }
        let texts: Vec<String> = blocks
            .into_iter()
            .map(|(_, headings, rows)| table::align(&headings, rows, !self.args.no_headers))
            .collect();
        terminal.text(texts.join("\n"))?;
        Ok(exit)
    }

    async fn watch(&self, target: &Target, terminal: &mut Terminal) -> Outcome {
        let namespace = (!self.args.selection.all_namespaces).then_some(target.namespace.as_str());
        let path = target.resource.path(namespace);
        let by_name = target.name.as_ref().map(|name| Selection {
            field_selector: Some(format!("metadata.name={name}")),
            ..Selection::default()
        });
        let selection = by_name.as_ref().unwrap_or(&self.args.selection);
        let mut printer = Printer {
            get: self,
            target,
            show: self.show(target, false),
            table: Table::default(),
            widths: Widths::default(),
            headed: self.args.no_headers,
        };
        if target.name.is_some() {
            // An object that is not there is an error now, and not a watch for ever.
            self.session.rest.get(&self.path(target)).await?;
        }
        let mut first = true;
        loop {
            let answer = self
                .session
                .rest
                .get_as(&with_query(&path, &query(selection)), printer.accept())
                .await?;
            if !(first && self.args.watch_only) {
                printer.print(&answer, terminal)?;
            }
            first = false;
            let mut revision = answer["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
            // A watch ends now and then; it goes on from where it was, until the server says that this is too long ago.
            while printer.follow(&path, selection, &mut revision, terminal).await? {}
        }
    }
}

struct Printer<'a> {
    get: &'a Get<'a>,
    target: &'a Target,
    show: Show,
    table: Table,
    widths: Widths,
    headed: bool,
}

impl Printer<'_> {
    fn accept(&self) -> &'static str {
        if self.get.format.needs_objects() {
            crate::rest::JSON
        } else {
            TABLE
        }
    }

    fn print(&mut self, answer: &Value, terminal: &mut Terminal) -> Outcome<()> {
        if self.get.format.needs_objects() {
            let items = answer["items"]
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![answer.clone()]);
            for object in items {
                let object = output::tidy(&object, self.get.args.show_managed_fields);
                if matches!(self.get.format, Format::Yaml) {
                    terminal.line("---")?;
                }
                output::print(
                    &mut terminal.out,
                    &self.get.format,
                    vec![(self.target.resource.clone(), object)],
                    true,
                )?;
            }
            return Ok(terminal.out.flush()?);
        }
        let table = Table::of(answer);
        if !table.is_empty() {
            self.table = table;
        }
        let rows = self.table.rows(answer, self.show, &self.target.resource.title());
        let headings = self.table.headings(self.show);
        if !self.headed {
            self.widths.fit(&headings);
        }
        rows.iter().for_each(|row| self.widths.fit(row));
        if !self.headed && !rows.is_empty() {
            self.headed = true;
            terminal.text(self.widths.line(&headings))?;
        }
        for row in &rows {
            terminal.text(self.widths.line(row))?;
        }
        Ok(())
    }

    /// Prints events until the stream ends; `false` when the watch has to begin anew.
    async fn follow(
        &mut self,
        path: &str,
        selection: &Selection,
        revision: &mut String,
        terminal: &mut Terminal,
    ) -> Outcome<bool> {
        let mut parameters = query(selection);
        let from = revision.clone();
        parameters.extend([
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", from.as_str()),
        ]);
        let mut lines = match self
            .get
            .session
            .rest
            .lines(&with_query(path, &parameters), self.accept())
            .await
        {
            Ok(lines) => lines,
            Err(error) if error.is_expired() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?).map_err(|error| Failure::new(error.to_string()))?;
            let object = &event["object"];
            let seen = object["metadata"]["resourceVersion"]
                .as_str()
                .or_else(|| object["rows"][0]["object"]["metadata"]["resourceVersion"].as_str());
            if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
                seen.clone_into(revision);
            }
            match event["type"].as_str().unwrap_or_default() {
                "BOOKMARK" => {}
                "ERROR" if object["code"] == 410 => return Ok(false),
                "ERROR" => {
                    return Err(Failure::new(
                        object["message"].as_str().unwrap_or("the watch failed").to_owned(),
                    ));
                }
                _ => self.print(object, terminal)?,
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        Ok(true)
    }
}
