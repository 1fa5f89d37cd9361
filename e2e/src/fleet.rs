//! A cluster of several machines: real processes on the hosts of a [`Lab`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use muster_api::names::{GROUP_CONTROLLERS, GROUP_MASTERS};
use muster_api::v1::{Agent, Reachability, Task};
use muster_client::Client;
use serde_json::{Value, json};

use crate::evidence::Evidence;
use crate::lab::{Lab, run};
use crate::process::{Process, state};
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
    /// Members of etcd, called e1, e2, …; without any, the server keeps everything itself.
    pub etcd: u8,
    /// Servers, called s1, s2, …; more than one need etcd.
    pub servers: u8,
    /// Agents, called a1, a2, ….
    pub agents: u8,
    /// CPUs that each agent offers.
    pub cpus: u32,
    /// GPUs that each agent makes up.
    pub gpus: u32,
}

impl Shape {
    /// Three members of etcd, three servers, and so many agents.
    pub fn highly_available(agents: u8) -> Shape {
        Shape {
            etcd: 3,
            servers: 3,
            agents,
            ..Shape::default()
        }
    }
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            etcd: 0,
            servers: 1,
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
            passed: false,
        };
        for (names, first) in [(fleet.members(), 10), (fleet.servers(), 20), (fleet.agents(), 30)] {
            for name in names {
                fleet.lab.add(&name, first + index(&name))?;
            }
        }
        for name in fleet.members() {
            fleet.start_member(&name, "new")?;
        }
        for name in fleet.servers() {
            fleet.start_server(&name)?;
            fleet.until_answers(&name).await?;
        }
        for name in fleet.agents() {
            fleet.start_agent(&name)?;
        }
        for name in fleet.agents() {
            fleet.until_reachability(&name, Reachability::Reachable).await?;
        }
        Ok(fleet)
    }

    /// The names of the members of etcd and of their hosts.
    pub fn members(&self) -> Vec<String> {
        (1..=self.shape.etcd).map(|number| format!("e{number}")).collect()
    }

    /// The names of the servers and of their hosts.
    pub fn servers(&self) -> Vec<String> {
        (1..=self.shape.servers).map(|number| format!("s{number}")).collect()
    }

    /// The names of the agents and of their hosts.
    pub fn agents(&self) -> Vec<String> {
        (1..=self.shape.agents).map(|number| format!("a{number}")).collect()
    }

    /// Where clients find a member of etcd.
    pub fn member_url(&self, name: &str) -> String {
        format!("http://{}:2379", self.lab.host(name).address)
    }

    /// Where a member of etcd keeps its data: not on a disk, because a scenario that wants a slow one makes it slow.
    pub fn member_directory(&self, name: &str) -> PathBuf {
        self.lab.fast().join(name)
    }

    /// Starts a member of etcd (again), with the timing of an etcd in one room.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_member(&mut self, name: &str, cluster: &str) -> Result<()> {
        let peer = |name: &str| format!("http://{}:2380", self.lab.host(name).address);
        let all: Vec<String> = self
            .members()
            .iter()
            .map(|name| format!("{name}={}", peer(name)))
            .collect();
        let args = [
            format!("--name={name}"),
            format!("--data-dir={}", self.member_directory(name).display()),
            format!("--listen-client-urls={}", self.member_url(name)),
            format!("--advertise-client-urls={}", self.member_url(name)),
            format!("--listen-peer-urls={}", peer(name)),
            format!("--initial-advertise-peer-urls={}", peer(name)),
            format!("--initial-cluster={}", all.join(",")),
            format!("--initial-cluster-state={cluster}"),
            "--heartbeat-interval=50".to_owned(),
            "--election-timeout=400".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let process = self.lab.host(name).spawn("etcd", Path::new("etcd"), &args, &[])?;
        self.processes.insert(process.name.clone(), process);
        Ok(())
    }

    /// Runs etcdctl against these members.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn etcdctl(&self, members: &[&str], args: &[&str]) -> Result<String> {
        let urls: Vec<String> = members.iter().map(|name| self.member_url(name)).collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--command-timeout=2s", "--dial-timeout=2s"]);
        run(
            command.arg(format!("--endpoints={}", urls.join(","))).args(args),
            "etcd-client",
        )
    }

    /// The member that leads etcd, among these.
    pub fn etcd_leader(&self, members: &[&str]) -> Option<String> {
        members.iter().map(|name| (*name).to_owned()).find(|name| {
            let status = self
                .etcdctl(&[name], &["endpoint", "status", "-w", "json"])
                .unwrap_or_default();
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            let status = &status[0]["Status"];
            let leader = status["leader"].as_u64();
            leader.is_some() && leader == status["header"]["member_id"].as_u64()
        })
    }

    /// Starts the server of a host (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server(&mut self, name: &str) -> Result<()> {
        self.start_server_with(name, &[])
    }

    /// The same, with further arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server_with(&mut self, name: &str, more: &[&str]) -> Result<()> {
        let host = self.lab.host(name);
        let data = host.directory().join("server");
        let mut args = vec![
            "server".to_owned(),
            format!("--log={LOG}"),
            format!("--data-dir={}", data.display()),
            format!("--listen={}:{PORT}", host.address),
        ];
        if self.shape.etcd > 0 {
            let urls: Vec<String> = self.members().iter().map(|member| self.member_url(member)).collect();
            args.extend([format!("--etcd={}", urls.join(",")), format!("--name={name}")]);
            if name != "s1" && !data.exists() {
                args.push(format!("--join={}", self.token(&["--server"])?));
            }
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.spawn(name, "server", &args)
    }

    /// A token with which one machine can join.
    fn token(&self, args: &[&str]) -> Result<String> {
        let printed = self.mctl(&[&["token", "create"], args].concat())?;
        Ok(printed.trim().to_owned())
    }

    /// Runs mctl to its end, as an administrator.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn mctl(&self, args: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let mut command = Command::new(mctl_binary());
        run(command.arg(kubeconfig).args(args), "nothing more")
    }

    /// The administrator's configuration.
    fn kubeconfig(&self) -> PathBuf {
        self.lab.host("s1").directory().join("server/kubeconfig")
    }

    /// Starts the agent of a host (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let data = self.agent_directory(name);
        self.run_agent(name, "agent", name, &data)
    }

    /// Starts an agent of this name on a host, as a process with a name and a data directory. It joins when it has not yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_agent(&mut self, host: &str, process: &str, name: &str, data: &Path) -> Result<()> {
        let address = self.lab.host(host).address;
        let mut args = vec![
            "agent".to_owned(),
            format!("--log={LOG}"),
            format!("--name={name}"),
            format!("--data-dir={}", data.display()),
            format!("--listen={address}:0"),
            format!("--advertise={address}"),
            format!("--cpus={}", self.shape.cpus),
            "--memory=64Gi".to_owned(),
            "--disk=10Gi".to_owned(),
        ];
        if !data.exists() {
            args.push(format!("--join={}", self.token(&["--agent", name])?));
        }
        if self.shape.gpus > 0 {
            args.push(format!("--gpus=sim:{}xH100", self.shape.gpus));
        }
        self.spawn(host, process, &args)
    }

    /// Agents that are started from now on offer so many CPUs.
    pub fn resize(&mut self, cpus: u32) {
        self.shape.cpus = cpus;
    }

    /// Where an agent keeps what it knows.
    pub fn agent_directory(&self, name: &str) -> PathBuf {
        self.lab.host(name).directory().join("agent")
    }

    /// Adds the host c`number` with controllers that are called `identity` and lead for so many seconds without renewal; whoever leads
    /// goes on to lead.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn add_controllers(&mut self, number: u8, identity: &str, ttl: u64) -> Result<()> {
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
        self.start_controllers(&name, identity, ttl)
    }

    /// Starts the controllers of a host (again).
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_controllers(&mut self, name: &str, identity: &str, ttl: u64) -> Result<()> {
        let host = self.lab.host(name);
        let kubeconfig = host.directory().join("kubeconfig");
        let args = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--identity={identity}"),
            format!("--lease-ttl={ttl}s"),
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
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.cluster_url = format!("https://{}:{PORT}", self.lab.host(server).address).parse()?;
        Ok(Client::from_config(config)?)
    }

    /// Clients of all servers.
    ///
    /// # Errors
    /// When there is no kubeconfig yet.
    pub async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for server in self.servers() {
            clients.push(self.client(&server).await?);
        }
        Ok(clients)
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

    /// The first server that runs and does not stand still.
    pub fn first_server(&self) -> String {
        let runs = |name: &String| {
            let process = self.processes.get(&format!("{name}/server"));
            process.is_some_and(|process| !matches!(state(process.pid()), None | Some('Z' | 'T')))
        };
        self.servers().into_iter().find(runs).unwrap_or_else(|| "s1".to_owned())
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
