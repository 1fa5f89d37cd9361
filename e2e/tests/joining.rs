//! Machines join a server with tokens, and their certificates are renewed while they run.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use muster_e2e::parts::{Home, Process};
use serde_json::Value;

struct Cluster {
    home: Home,
    server: Process,
}

impl Cluster {
    fn start(args: &[&str]) -> Result<Cluster> {
        let home = Home::new()?;
        let data = home.path().join("server");
        let mut all = vec![
            "server",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data.to_str().expect("text"),
        ];
        all.extend(args);
        let server = home.start("server", &all)?;
        let mut cluster = Cluster { home, server };
        let kubeconfig = cluster.kubeconfig();
        cluster.server.until("it serves", || kubeconfig.exists())?;
        Ok(cluster)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("server/kubeconfig")
    }

    fn mctl(&self, args: &[&str]) -> muster_e2e::Ran {
        self.home.mctl(&self.kubeconfig(), args)
    }

    fn token(&self, args: &[&str]) -> String {
        let made = self.mctl(&[&["token", "create"], args].concat()).ok();
        made.trim().to_owned()
    }

    /// Starts an agent in a directory of its own.
    fn agent(&self, directory: &str, args: &[&str]) -> Result<Process> {
        let data = self.home.path().join(directory);
        let data = data.to_str().expect("text");
        let all = ["agent", "--data-dir", data, "--cpus", "1", "--memory", "256Mi"];
        self.home.start(directory, &[&all, args].concat())
    }

    fn is_ready(&self, agent: &str) -> bool {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.mctl(&["get", "agent", agent, "-o", path]).stdout.trim() == "True"
    }

    fn certificate(&self, directory: &str) -> String {
        let file = self.home.path().join(directory).join("membership.json");
        let text = fs::read_to_string(file).unwrap_or_default();
        let read: Value = serde_json::from_str(&text).unwrap_or_default();
        read["certificate"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_machine_joins_with_a_token_runs_tasks_and_needs_no_token_again() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let token = cluster.token(&["--agent", "a1"]);
    let mut agent = cluster.agent("a1", &["--name", "a1", "--join", &token])?;
    agent.until("it is ready", || cluster.is_ready("a1"))?;
    let hello = cluster.mctl(&["run", "hello", "--", "echo", "hello from afar"]);
    assert_eq!(
        hello.ok(),
        "hello from afar\n",
        "logs come from the agent, verified by its certificate"
    );
    assert!(cluster.mctl(&["token", "list"]).ok().contains("a1 at "));

    assert_eq!(agent.stop()?, 0);
    let mut agent = cluster.agent("a1", &[])?;
    agent.until("it is ready", || cluster.is_ready("a1"))?;

    // The token was used, and the name belongs to that machine.
    let mut second = cluster.agent("a2", &["--name", "a1", "--join", &token])?;
    assert_eq!(second.wait()?, 1);
    assert!(second.said().contains("was used by a1"), "{}", second.said());
    let other = cluster.token(&[]);
    let mut second = cluster.agent("a3", &["--name", "a1", "--join", &other])?;
    assert_eq!(second.wait()?, 1);
    assert!(second.said().contains("another machine"), "{}", second.said());
    Ok(())
}

#[test]
fn tokens_that_are_no_good_let_nobody_in() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let refused = |token: &str, why: &str| -> Result<()> {
        let mut agent = cluster.agent("x", &["--name", "x", "--join", token])?;
        assert_eq!(agent.wait()?, 1, "{}", agent.said());
        assert!(agent.said().contains(why), "{why}: {}", agent.said());
        assert_eq!(cluster.certificate("x"), "");
        Ok(())
    };
    let token = cluster.token(&[]);
    // Another authority than the one that is pinned: the token is not even sent.
    let (head, tail) = token.split_once('@').expect("an address");
    let (head, pin) = head.rsplit_once('.').expect("a pin");
    let other: String = pin.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect();
    refused(&format!("{head}.{other}@{tail}"), "cannot join")?;
    let (head, secret) = head.rsplit_once('.').expect("a secret");
    let id = head.rsplit_once('.').expect("an id").1;
    refused(&token.replace(secret, "guess"), "not valid")?;
    assert!(
        cluster.mctl(&["token", "list"]).ok().contains("<no>"),
        "it is not used up"
    );
    cluster.mctl(&["token", "delete", id]).ok();
    refused(&token, "not valid")?;
    let brief = cluster.token(&["--ttl", "1s"]);
    let mut agent = cluster.agent("none", &[])?;
    assert_eq!(agent.wait()?, 1);
    assert!(agent.said().contains("has not joined"), "{}", agent.said());
    while cluster.mctl(&["token", "list"]).ok().contains("<no>") {}
    refused(&brief, "not valid")
}

#[test]
fn certificates_are_renewed_without_a_restart() -> Result<()> {
    let cluster = Cluster::start(&["--agent-certificates", "6s"])?;
    let token = cluster.token(&[]);
    let mut agent = cluster.agent("a1", &["--name", "a1", "--join", &token])?;
    agent.until("it is ready", || cluster.is_ready("a1"))?;
    let mut seen = vec![cluster.certificate("a1")];
    // Twice: then the first certificate has ended, and what is shown is not what the agent began with.
    while seen.len() < 4 {
        agent.until("another certificate", || {
            cluster.certificate("a1") != *seen.last().expect("one")
        })?;
        seen.push(cluster.certificate("a1"));
    }
    let hello = cluster.mctl(&["run", "hello", "--", "echo", "still here"]);
    assert_eq!(hello.ok(), "still here\n");
    assert!(cluster.is_ready("a1"));
    assert!(!agent.said().contains("session lost"), "{}", agent.said());
    Ok(())
}
