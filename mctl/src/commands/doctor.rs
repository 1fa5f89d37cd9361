//! `mctl doctor`: what is wrong with this machine for an agent, and what to do about it.

use std::path::PathBuf;

use clap::Args;
use muster_agentd::doctor::{Facts, Finding, Level, Places, Wanted, examine};
use muster_api::ports::PortSet;

use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::session::Terminal;
use crate::style::Paint;

/// How this machine is looked at.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The agent's data directory.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/muster-agent")]
    pub data_dir: PathBuf,
    /// The ports that tasks are given.
    #[arg(long, default_value = "31000-32000", value_name = "RANGES")]
    pub ports: PortSet,
    /// Tasks are to be run with containerd: it has to be there.
    #[arg(long)]
    pub containerd: bool,
    /// As json or yaml.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// Runs the command. Exit code 1 when something does not work.
pub async fn run(args: DoctorArgs, terminal: &mut Terminal) -> Outcome {
    let places = Places {
        root: "/".into(),
        data: args.data_dir,
        containerd: "/run/containerd/containerd.sock".into(),
    };
    let wanted = Wanted {
        containerd: args.containerd,
        ports: args.ports,
    };
    let findings = examine(&Facts::gather(&places).await, &wanted);
    match args.output.as_deref() {
        Some("json") => terminal.text(output::pretty(&serde_json::json!({ "findings": findings })))?,
        Some("yaml") => terminal.text(output::yaml(&serde_json::json!({ "findings": findings })))?,
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml and json"))),
        None => print(&findings, terminal)?,
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .count();
    match problems {
        0 => Ok(Exit::Done),
        count => Err(Failure::new(format!(
            "{count} problems; an agent here does not do what it should"
        ))),
    }
}

fn print(findings: &[Finding], terminal: &mut Terminal) -> Outcome<()> {
    let widest = findings.iter().map(|finding| finding.part.len()).max().unwrap_or(0);
    for finding in findings {
        let paint = match finding.level {
            Level::Ok => Paint::Good,
            Level::Warning => Paint::Warning,
            Level::Problem => Paint::Error,
        };
        let level = terminal.out_style.paint(paint, &format!("{:<7}", finding.level));
        terminal.line(format!("{level}  {:<widest$}  {}", finding.part, finding.what))?;
        if let Some(fix) = &finding.fix {
            terminal.line(format!("{:<7}  {:<widest$}  → {fix}", "", ""))?;
        }
    }
    Ok(())
}
