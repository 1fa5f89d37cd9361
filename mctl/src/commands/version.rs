//! `mctl version`.

use serde_json::{Value, json};

use crate::cli::{Global, VersionArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::session::{Session, Terminal};

/// Runs the command.
pub async fn run(global: &Global, args: VersionArgs, terminal: &mut Terminal) -> Outcome {
    let client = env!("CARGO_PKG_VERSION");
    let mut value = json!({"clientVersion": {"gitVersion": format!("v{client}")}});
    let mut server = None;
    if !args.client {
        server = Some(async { Ok::<Value, Failure>(Session::open(global).await?.rest.get("/version").await?) }.await);
        if let Some(Ok(version)) = &server {
            value["serverVersion"] = version.clone();
        }
    }
    match args.output.as_deref() {
        Some("yaml") => terminal.text(output::yaml(&value))?,
        Some("json") => terminal.text(output::pretty(&value))?,
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml and json"))),
        None => {
            terminal.line(format!("Client: v{client}"))?;
            if let Some(Ok(version)) = &server {
                terminal.line(format!(
                    "Server: {}",
                    version["gitVersion"].as_str().unwrap_or("unknown")
                ))?;
            }
        }
    }
    match server {
        Some(Err(failure)) => Err(failure),
        _ => Ok(Exit::Done),
    }
}
