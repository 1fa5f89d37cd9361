//! The units and the guide of `manifests/deploy`: what they type can be typed, and the units say what they must.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::Parser as _;
use mctl::cli::Cli;

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../manifests/deploy")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The settings of a unit or of an environment file, the last of each name.
fn settings(text: &str) -> BTreeMap<String, String> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines
        .map(|line| {
            let (name, value) = line
                .split_once('=')
                .unwrap_or_else(|| panic!("neither setting nor section: {line}"));
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[track_caller]
fn typed(line: &str) {
    // A token of the right form stands for the one that is made.
    let token = format!("muster1.0a.5ec2e7.{}@host-1:7443", "ab".repeat(32));
    let words = line
        .split_whitespace()
        .map(|word| if word == "TOKEN" { token.as_str() } else { word });
    if let Err(error) = Cli::try_parse_from(words) {
        panic!("{line}\n{error}");
    }
}

#[test]
fn the_units_start_what_there_is() {
    for (unit, environment) in [
        ("muster-server.service", "server.env"),
        ("muster-server.service", "server-etcd.env"),
        ("muster-agent.service", "agent.env"),
    ] {
        let (unit, environment) = (settings(&read(unit)), settings(&read(environment)));
        let mut line = unit["ExecStart"].clone();
        for (name, value) in &environment {
            // The first as one word, the second as so many as there are in it.
            line = line
                .replace(&format!("${{{name}}}"), value)
                .replace(&format!("${name}"), value);
        }
        assert!(!line.contains('$'), "{line}");
        typed(line.strip_prefix("/usr/local/bin/").expect("an absolute path"));
    }
}

#[test]
fn tasks_outlive_their_agent_and_servers_have_time_to_end() {
    let agent = settings(&read("muster-agent.service"));
    assert_eq!(
        (agent["KillMode"].as_str(), agent["Delegate"].as_str()),
        ("process", "yes")
    );
    // Each of these would confine tasks, or show them another machine than the agent's.
    for confining in [
        "ProtectSystem",
        "PrivateTmp",
        "SystemCallFilter",
        "NoNewPrivileges",
        "CapabilityBoundingSet",
    ] {
        assert!(!agent.contains_key(confining), "{confining}");
    }
    let server = settings(&read("muster-server.service"));
    assert!(server["TimeoutStopSec"].parse::<u64>().expect("seconds") > 10);
    assert_eq!(
        (server["ProtectSystem"].as_str(), server["User"].as_str()),
        ("strict", "muster")
    );
}

#[test]
fn every_command_of_the_guide_can_be_typed() {
    let text: &'static str = read("README.md").leak();
    let blocks = text
        .split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix("sh "));
    // Without the hosts, and what a shell does with the output.
    let lines = blocks.flat_map(|block| block.lines().skip(1));
    let words = |line: &'static str| line.split(" > ").next().unwrap_or(line);
    let commands: Vec<&str> = lines
        .map(|line| words(line.trim_start_matches("runuser -u muster -- ")))
        .filter(|line| line.starts_with("mctl "))
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    commands.into_iter().for_each(typed);
}
