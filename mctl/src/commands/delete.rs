//! `mctl delete`.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::{Cascade, DeleteArgs, DryRun};
use crate::failure::{Exit, Failure, Outcome};
use crate::observe::Observer;
use crate::rest::{JSON, Payload};
use crate::session::{Session, Target, Terminal, query, read_files, span};

/// Runs the command.
pub async fn run(session: &Session, args: DeleteArgs, terminal: &mut Terminal) -> Outcome {
    let timeout = span("--timeout", &args.timeout)?;
    let names_only = match args.output.as_deref() {
        None => false,
        Some("name") => true,
        Some(other) => return Err(Failure::new(format!("-o {other}: there is name"))),
    };
    let targets = targets(session, &args, terminal).await?;
    let mut exit = Exit::Done;
    let mut going = Vec::new();
    for target in targets {
        let name = target.name.clone().unwrap_or_default();
        let path = target.resource.object_path(&target.namespace, &name);
        if args.dry_run == DryRun::Client {
            terminal.line(format!("{}/{name} deleted (client dry run)", target.resource.title()))?;
            continue;
        }
        let policy = match args.cascade {
            Cascade::Background => "Background",
            Cascade::Foreground => "Foreground",
            Cascade::Orphan => "Orphan",
        };
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
        if args.dry_run == DryRun::Server {
            options["dryRun"] = json!(["All"]);
        }
        match session
            .rest
            .call(Method::DELETE, &path, JSON, Some(Payload::json(&options)))
            .await
        {
            Ok(answer) => {
                answer
                    .warnings
                    .iter()
                    .for_each(|warning| terminal.note(format!("Warning: {warning}")));
                let how = if args.dry_run == DryRun::Server {
                    " (server dry run)"
                } else {
                    ""
                };
                let what = format!("{}/{name}", target.resource.title());
                terminal.line(if names_only {
                    what
                } else {
                    format!("{what} deleted{how}")
                })?;
                if answer.value["kind"] != "Status" && args.dry_run == DryRun::None {
                    going.push((target, answer.value["metadata"]["uid"].clone()));
                }
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) if error.is_not_found() => {
                terminal.note(format!("error: {error}"));
                exit = Exit::Error;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.wait {
        wait_gone(session, &going, timeout).await?;
    }
    Ok(exit)
}

async fn targets(session: &Session, args: &DeleteArgs, terminal: &mut Terminal) -> Outcome<Vec<Target>> {
    if !args.files.filename.is_empty() {
        if !args.what.is_empty() {
            return Err(Failure::new("name either manifests with -f, or objects"));
        }
        let documents = read_files(&args.files, terminal)?;
        let catalogue = session.catalogue().await?;
        return session.file_targets(&catalogue, &documents);
    }
    let catalogue = session.catalogue().await?;
    let named = session.targets(&catalogue, &args.what)?;
    let selected = !query(&args.selection).is_empty() || args.all;
    let mut targets = Vec::new();
    for target in named {
        match (&target.name, selected) {
            (Some(_), false) => targets.push(target),
            (Some(_), true) => {
                return Err(Failure::new(
                    "objects are named, so -l, --field-selector and --all have no meaning",
                ));
            }
            (None, false) => {
                let kind = &target.resource.plural;
                return Err(Failure::new(format!(
                    "which {kind}? name them, or choose with -l or --all"
                )));
            }
            (None, true) => {
                targets.extend(session.members(&target, &args.selection).await?);
            }
        }
    }
    if targets.is_empty() {
        terminal.note("there are none");
    }
    Ok(targets)
}

/// Waits until the objects are gone; another object of the same name is not the one that was deleted.
pub async fn wait_gone(session: &Session, going: &[(Target, Value)], timeout: Option<Duration>) -> Outcome<()> {
    let start = Instant::now();
    for (target, uid) in going {
        let name = target.name.as_deref().unwrap_or_default();
        let gone = async {
            let mut observer = Observer::new(&session.rest, &target.resource, &target.namespace, name);
            while observer
                .next()
                .await?
                .is_some_and(|object| object["metadata"]["uid"] == *uid)
            {}
            Ok::<(), crate::rest::CallError>(())
        };
        let late = || {
            Failure::with(
                Exit::TimedOut,
                format!("{}/{name} is not gone yet", target.resource.title()),
            )
        };
        match timeout {
            None => gone.await?,
            Some(timeout) => tokio::time::timeout(timeout.saturating_sub(start.elapsed()), gone)
                .await
                .map_err(|_| late())??,
        }
    }
    Ok(())
}
