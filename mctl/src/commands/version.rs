//! `mctl version`: which versions a cluster is made of, and whether they go together.
//!
//! The rule, as in manifests/deploy: servers differ by one minor version at most, an agent is of the version of the oldest server or one
//! minor version older, and mctl is at most one away. So servers are replaced before agents.

use std::collections::BTreeMap;

use clap::Args;
use muster_api::join::Servers;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::session::{Session, Terminal};

/// `mctl version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Of this command only.
    #[arg(long)]
    pub client: bool,
    /// yaml or json.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// Runs the command.
pub async fn run(global: &Global, args: VersionArgs, terminal: &mut Terminal) -> Outcome {
    let client = env!("CARGO_PKG_VERSION");
    let mut value = json!({"clientVersion": {"gitVersion": format!("v{client}")}});
    let mut found = None;
    if !args.client {
        found = Some(
            async {
                let session = Session::open(global).await?;
                let version = session.rest.get("/version").await?;
                Ok::<_, Failure>((version, parts(&session).await))
            }
            .await,
        );
    }
    if let Some(Ok((version, parts))) = &found {
        value["serverVersion"] = version.clone();
        value["servers"] = parts
            .servers
            .iter()
            .map(|(name, version)| json!({"name": name, "version": version}))
            .collect();
        value["agents"] = parts
            .agents
            .iter()
            .map(|(name, version)| json!({"name": name, "version": version}))
            .collect();
        value["skew"] = skew(client, parts).into();
    }
    match args.output.as_deref() {
        Some("yaml") => terminal.text(output::yaml(&value))?,
        Some("json") => terminal.text(output::pretty(&value))?,
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml and json"))),
        None => {
            terminal.line(format!("Client: v{client}"))?;
            if let Some(Ok((version, parts))) = &found {
                let version = version["gitVersion"].as_str().unwrap_or("unknown");
                terminal.line(format!("Server: {version}"))?;
                for (what, all) in [("Servers", &parts.servers), ("Agents", &parts.agents)] {
                    if !all.is_empty() {
                        terminal.line(format!("{what}: {}", counted(all)))?;
                    }
                }
                for problem in skew(client, parts) {
                    terminal.note(format!("warning: {problem}"));
                }
            }
        }
    }
    match found {
        Some(Err(failure)) => Err(failure),
        _ => Ok(Exit::Done),
    }
}

/// Names and versions of what a cluster is made of.
#[derive(Debug, Default)]
struct Parts {
    servers: Vec<(String, String)>,
    agents: Vec<(String, String)>,
}

/// What can be read of it: an anonymous caller sees the version of the server only.
async fn parts(session: &Session) -> Parts {
    let (servers, agents) = futures::join!(
        session.rest.get("/muster/v1/endpoints"),
        session.rest.get("/apis/muster.dev/v1/agents")
    );
    let servers: Servers = servers
        .ok()
        .and_then(|found| serde_json::from_value(found).ok())
        .unwrap_or_default();
    let agent = |agent: &Value| {
        let name = agent["metadata"]["name"].as_str()?;
        Some((
            name.to_owned(),
            agent["status"]["versions"]["muster"].as_str()?.to_owned(),
        ))
    };
    let agents = agents.unwrap_or_default();
    Parts {
        servers: servers
            .servers
            .into_iter()
            .map(|server| (server.name, server.version))
            .collect(),
        agents: agents["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(agent)
            .collect(),
    }
}

/// `3 of v0.2.0, 1 of v0.1.0`.
fn counted(all: &[(String, String)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, version) in all {
        *counts.entry(version).or_default() += 1;
    }
    let said = counts.into_iter().rev().map(|(version, count)| match version {
        "" => format!("{count} that do not say"),
        version => format!("{count} of v{version}"),
    });
    said.collect::<Vec<_>>().join(", ")
}

/// Major and minor version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// How far one is from another; those of different major versions are far.
fn distance(one: (u64, u64), other: (u64, u64)) -> u64 {
    if one.0 == other.0 {
        one.1.abs_diff(other.1)
    } else {
        u64::MAX
    }
}

/// What does not go together, and what to do about it.
fn skew(client: &str, parts: &Parts) -> Vec<String> {
    let servers: Vec<(u64, u64)> = parts.servers.iter().filter_map(|(_, version)| minor(version)).collect();
    let (Some(oldest), Some(newest)) = (servers.iter().min(), servers.iter().max()) else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    if distance(*oldest, *newest) > 1 {
        problems
            .push("the servers are more than one minor version apart; go there one minor version at a time".to_owned());
    }
    for (name, version) in &parts.agents {
        let Some(own) = minor(version) else { continue };
        if own > *oldest {
            problems.push(format!(
                "the agent {name} (v{version}) is newer than a server; replace all servers first"
            ));
        } else if distance(own, *newest) > 1 {
            problems.push(format!(
                "the agent {name} (v{version}) is too old for its servers; replace it"
            ));
        }
    }
    if minor(client).is_some_and(|own| distance(own, *oldest) > 1 || distance(own, *newest) > 1) {
        problems.push("this mctl is more than one minor version away from a server".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(client: &str, servers: &[&str], agents: &[&str], expect: &[&str]) {
        let named = |all: &[&str]| {
            all.iter()
                .enumerate()
                .map(|(index, version)| (format!("n{index}"), (*version).to_owned()))
                .collect()
        };
        let parts = Parts {
            servers: named(servers),
            agents: named(agents),
        };
        let found = skew(client, &parts);
        assert_eq!(found.len(), expect.len(), "{found:?}");
        for (found, expect) in found.iter().zip(expect) {
            assert!(found.contains(expect), "{found}");
        }
    }

    #[test]
    fn servers_are_replaced_before_agents_and_one_minor_version_at_a_time() {
        check("0.2.0", &["0.2.0", "0.2.1"], &["0.2.0", "0.1.9"], &[]);
        check("0.2.0", &["0.2.0", "0.1.0"], &["0.1.0"], &[]);
        check(
            "0.2.0",
            &["0.2.0", "0.1.0"],
            &["0.2.0"],
            &["the agent n0 (v0.2.0) is newer"],
        );
        check(
            "0.3.0",
            &["0.3.0", "0.1.0"],
            &[],
            &["more than one minor version apart", "this mctl"],
        );
        check("0.3.0", &["0.3.0"], &["0.1.0"], &["the agent n0 (v0.1.0) is too old"]);
        check("1.0.0", &["0.9.0"], &[], &["this mctl"]);
        check("0.1.0", &["", "x"], &["0.9.0"], &[]);
    }

    #[test]
    fn versions_are_counted() {
        let all = [("a", "0.1.0"), ("b", "0.2.0"), ("c", "0.2.0"), ("d", "")];
        let all: Vec<_> = all
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .to_vec();
        assert_eq!(counted(&all), "2 of v0.2.0, 1 of v0.1.0, 1 that do not say");
    }
}
