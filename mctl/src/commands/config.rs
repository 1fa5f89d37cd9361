//! `mctl config`: showing and choosing clusters.

use serde_json::Value;

use crate::cli::{ConfigCommand, Global};
use crate::failure::{Exit, Failure, Outcome};
use crate::kubeconfig::{self, Choice};
use crate::output;
use crate::session::Terminal;
use crate::table;

/// Runs the command.
pub fn run(global: &Global, command: ConfigCommand, terminal: &mut Terminal) -> Outcome {
    let choice = Choice {
        file: global.kubeconfig.clone(),
        context: global.context.clone(),
    };
    let config = kubeconfig::read(&choice)?;
    let current = choice
        .context
        .clone()
        .or_else(|| config.current_context.clone())
        .unwrap_or_default();
    match command {
        ConfigCommand::CurrentContext if current.is_empty() => {
            return Err(Failure::new("no context is chosen (`mctl config use-context NAME`)"));
        }
        ConfigCommand::CurrentContext => terminal.line(current)?,
        ConfigCommand::GetContexts => {
            let rows = config.contexts.iter().map(|named| {
                let context = named.context.clone().unwrap_or_default();
                let server = config.clusters.iter().find(|cluster| cluster.name == context.cluster);
                let server = server
                    .and_then(|cluster| cluster.cluster.as_ref()?.server.clone())
                    .unwrap_or_default();
                let mark = if named.name == current { "*" } else { "" };
                vec![
                    mark.to_owned(),
                    named.name.clone(),
                    server,
                    context.namespace.unwrap_or_else(|| "default".to_owned()),
                ]
            });
            let headings = ["CURRENT", "NAME", "SERVER", "NAMESPACE"].map(str::to_owned);
            terminal.text(table::align(&headings, rows.collect(), true))?;
        }
        ConfigCommand::UseContext { name } => {
            let known: Vec<&str> = config.contexts.iter().map(|context| context.name.as_str()).collect();
            if !known.contains(&name.as_str()) {
                return Err(Failure::new(format!(
                    "there is no context `{name}`; contexts: {}",
                    known.join(", ")
                )));
            }
            let (files, _) = kubeconfig::files(&choice)?;
            // As kubectl: the choice is kept in the first of the files.
            let file = files.first().cloned().map_or_else(kubeconfig::own_file, Ok)?;
            let mut first = kube::config::Kubeconfig::read_from(&file).unwrap_or_default();
            first.current_context = Some(name.clone());
            kubeconfig::write(&file, &first)?;
            terminal.line(format!("the current context is {name}"))?;
        }
        ConfigCommand::View => {
            let mut value = serde_json::to_value(&config).map_err(|error| Failure::new(error.to_string()))?;
            hide(&mut value);
            terminal.text(output::yaml(&value))?;
        }
    }
    Ok(Exit::Done)
}

/// Takes out secrets, and what is not set.
fn hide(value: &mut Value) {
    const SECRET: [&str; 4] = ["token", "password", "client-key-data", "client-certificate-data"];
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            for (key, value) in map.iter_mut() {
                if SECRET.contains(&key.as_str()) {
                    *value = Value::String("REDACTED".to_owned());
                } else if key == "certificate-authority-data" {
                    *value = Value::String("DATA+OMITTED".to_owned());
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}
