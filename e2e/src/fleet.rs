//! A cluster of several machines: real processes on the hosts of a [`Lab`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use muster_api::names::{GROUP_CONTROLLERS, GROUP_MASTERS};
use muster_api::v1::{Agent, Reachability, Task};
use muster_client::Client;
use serde_json::{Value, json};

use crate::evidence::Evidence;
use crate::lab::Lab;
use crate::process::{Process, wait_for};
use crate::{PATIENCE, binary, mctl_binary};

/// Where the API servers listen.
const PORT: u16 = 7443;
/// How many lines of each log are shown after a failure.
const LOG_TAIL: usize = 60;
/// What every process logs.
const LOG: &str = "info";

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Agents, called a1, a2, ….
    pub agents: u8,
    /// CPUs that each agent offers.
    pub cpus: u32,
    /// GPUs that each agent makes up.
    pub gpus: u32,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            agents: 1,
            cpus: 64,
            gpus: 0,
        }
    }
}

/// A cluster that runs.
pub struct Fleet {
    /// Everything that runs, by `HOST/NAME`. Before the lab, so that it is dropped first.
    processes: BTreeMap<String, Process>,
    /// What really ran.
    pub evidence: Evidence,
    /// Its machines.
    pub lab: Lab,
    shape: Shape,
    began: Instant,
    /// Whether the logs are of no interest.
    passed: bool,
}

impl Fleet {
    /// Starts everything and waits until all agents are ready. To be called, and the fleet to be dropped, on the thread that made the
    /// lab; threads that are to reach the fleet must have been started by that thread after it made the lab.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(lab: Lab, shape: Shape) -> Result<Fleet> {
        let mut fleet = Fleet {
            processes: BTreeMap::new(),
            evidence: Evidence::start(lab.home()),
            lab,
            shape,
            began: Instant::now(),
            passed: false,
        };
        for name in fleet.servers() {
            let number = 20 + index(&name);
            fleet.lab.add(&name, number)?;
        }
        for name in fleet.agents() {
            let number = 30 + index(&name);
            fleet.lab.add(&name, number)?;
        }
        for name in fleet.servers() {
            fleet.start_server(&name)?;
        }
        for name in fleet.servers() {
            fleet.until_answers(&name).await?;
        }
        for name in fleet.agents() {
            let invitation = fleet.invitation(&name).join("kubeconfig");
            wait_for("the invitation of an agent", || invitation.exists().then_some(()))?;
            fleet.start_agent(&name)?;
        }
        for name in fleet.agents() {
            fleet.until_reachability(&name, Reachability::Reachable).await?;
        }
        Ok(fleet)
    }

    /// The names of the servers' hosts.
    pub fn servers(&self) -> Vec<String> {
        vec!["s1".to_owned()]
    }

    /// The names of the agents and of their hosts.
    pub fn agents(&self) -> Vec<String> {
        (1..=self.shape.agents).map(|number| format!("a{number}")).collect()
    }

    /// Starts the server of a host (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server(&mut self, name: &str) -> Result<()> {
        let host = self.lab.host(name);
        let mut args = vec![
            "server".to_owned(),
            format!("--log={LOG}"),
            format!("--data-dir={}", host.directory().join("server").display()),
            format!("--listen={}:{PORT}", host.address),
        ];
        let agents = self.agents();
        args.extend(
            agents
                .iter()
                .map(|agent| format!("--agent={agent}={}", self.lab.host(agent).address)),
        );
        self.spawn(name, "server", &args)
    }

    /// Starts the agent of a host (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let data = self.agent_directory(name);
        self.run_agent(name, &self.invitation(name), &data)
    }

    /// What an agent joins with.
    pub fn invitation(&self, agent: &str) -> PathBuf {
        self.lab.host("s1").directory().join("server/join").join(agent)
    }

    /// Starts an agent on a host with an invitation and a data directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_agent(&mut self, host: &str, invitation: &Path, data: &Path) -> Result<()> {
        let mut args = vec![
            "agent".to_owned(),
            format!("--log={LOG}"),
            format!("--join={}", invitation.display()),
            format!("--data-dir={}", data.display()),
            format!("--listen={}:0", self.lab.host(host).address),
            format!("--cpus={}", self.shape.cpus),
            "--memory=64Gi".to_owned(),
            "--disk=10Gi".to_owned(),
        ];
        if self.shape.gpus > 0 {
            args.push(format!("--gpus=sim:{}xH100", self.shape.gpus));
        }
        self.spawn(host, "agent", &args)
    }

    /// Agents that are started from now on offer so many CPUs.
    pub fn resize(&mut self, cpus: u32) {
        self.shape.cpus = cpus;
    }

    /// Where an agent keeps what it knows.
    pub fn agent_directory(&self, name: &str) -> PathBuf {
        self.lab.host(name).directory().join("agent")
    }

    /// Adds the host c`number` with controllers that are called `identity`; whoever leads goes on to lead.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn add_controllers(&mut self, number: u8, identity: &str) -> Result<()> {
        let name = format!("c{number}");
        self.lab.add(&name, 40 + number)?;
        let server = self.lab.host("s1").directory().join("server");
        let tokens = std::fs::read_to_string(server.join("tokens.csv")).context("the tokens of s1")?;
        let token = |user: &str| {
            let mut lines = tokens.lines().filter_map(|line| line.split_once(','));
            let found = lines
                .find(|(_, rest)| rest.contains(user))
                .map(|(token, _)| token.to_owned());
            found.with_context(|| format!("s1 has no token of {user}"))
        };
        let kubeconfig = std::fs::read_to_string(server.join("kubeconfig"))?;
        let kubeconfig = kubeconfig.replace(&token(GROUP_MASTERS)?, &token(GROUP_CONTROLLERS)?);
        let path = self.lab.host(&name).directory().join("kubeconfig");
        std::fs::write(&path, kubeconfig)?;
        self.start_controllers(&name, identity)
    }

    /// Starts the controllers of a host (again).
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_controllers(&mut self, name: &str, identity: &str) -> Result<()> {
        let host = self.lab.host(name);
        let kubeconfig = host.directory().join("kubeconfig");
        let args = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--identity={identity}"),
            format!("--log={LOG}"),
        ];
        let process = host.spawn("controllers", &binary("muster-controllers"), &args, &[])?;
        self.processes.insert(process.name.clone(), process);
        Ok(())
    }

    fn spawn(&mut self, host: &str, name: &str, args: &[String]) -> Result<()> {
        let process = self.lab.host(host).spawn(name, &mctl_binary(), args, &[])?;
        self.processes.insert(process.name.clone(), process);
        Ok(())
    }

    /// A process, as `HOST/NAME`.
    #[track_caller]
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes
            .get_mut(name)
            .unwrap_or_else(|| panic!("there is no process {name}"))
    }

    /// Waits until the server of a host is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn until_answers(&self, server: &str) -> Result<()> {
        let ready = async || {
            let client = self.client(server).await.ok()?;
            client.list::<Agent>(None).await.ok().map(drop)
        };
        until(&format!("{server} to be ready"), PATIENCE, ready).await
    }

    /// A client of the server on this host, as an administrator.
    ///
    /// # Errors
    /// When there is no kubeconfig yet.
    pub async fn client(&self, server: &str) -> Result<Client> {
        self.client_of(server, &self.lab.host("s1").directory().join("server/kubeconfig"))
            .await
    }

    /// A client of the server on this host, as whom the agent speaks.
    ///
    /// # Errors
    /// When there is no invitation.
    pub async fn client_as_agent(&self, server: &str, agent: &str) -> Result<Client> {
        self.client_of(server, &self.invitation(agent).join("kubeconfig")).await
    }

    async fn client_of(&self, server: &str, kubeconfig: &Path) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.cluster_url = format!("https://{}:{PORT}", self.lab.host(server).address).parse()?;
        Ok(Client::from_config(config)?)
    }

    /// Waits until the control plane believes this of an agent, and, when it is reachable, until the agent says that it is ready.
    ///
    /// # Errors
    /// When that does not come.
    pub async fn until_reachability(&self, agent: &str, wanted: Reachability) -> Result<()> {
        let client = self.client(&self.first_server()).await?;
        let what = format!("{agent} to be {wanted:?}");
        let asked = async || {
            let agent: Agent = client.get(None, agent).await.ok()?;
            let status = agent.status?;
            let ready = status
                .conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            let right = status.reachability == wanted && (wanted != Reachability::Reachable || ready);
            right.then_some(())
        };
        until(&what, PATIENCE, asked).await
    }

    /// The first server that runs.
    pub fn first_server(&self) -> String {
        self.servers().into_iter().next().unwrap_or_default()
    }

    /// Seconds since the fleet began, for messages.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The scenario has passed: nothing is shown when the fleet ends.
    pub fn pass(&mut self) {
        self.passed = true;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        for (name, process) in &self.processes {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
            println!(
                "---- the last {} of {} lines of {name}\n{}",
                tail.len(),
                lines.len(),
                tail.join("\n")
            );
        }
    }
}

/// The number at the end of a name.
fn index(name: &str) -> u8 {
    name.trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap_or(0)
}

/// A task that runs a shell script.
pub fn task(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "command": ["sh", "-c", script],
            "resources": { "cpus": "0.1", "memory": "32Mi" },
        },
    })
}

/// Where tasks are created.
pub const TASKS: &str = "/apis/muster.dev/v1/namespaces/default/tasks";

/// Waits until a task satisfies something, and gives it as it is then.
///
/// # Errors
/// When it does not come to that in time; the text shows the task.
pub async fn until_task(client: &Client, name: &str, what: &str, mut holds: impl FnMut(&Task) -> bool) -> Result<Task> {
    let mut last = None;
    let asked = async || {
        let task: Task = client.get(Some("default"), name).await.ok()?;
        let right = holds(&task);
        last = Some(task.clone());
        right.then_some(task)
    };
    let answer = until(&format!("{name} to be {what}"), PATIENCE, asked).await;
    answer.with_context(|| format!("the task was last {:?}", last.map(|task| task.status)))
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none in time.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if started.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
