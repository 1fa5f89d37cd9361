//! Two servers over one etcd: what one acknowledged the other knows, and the work goes on when one of them is gone.

use std::path::PathBuf;

use anyhow::Result;
use muster_e2e::Ran;
use muster_e2e::parts::{Home, Process};
use muster_store::testing::EtcdCluster;

struct Cluster {
    home: Home,
    etcd: String,
    s1: Option<Process>,
    s2: Option<Process>,
    _etcd: EtcdCluster,
}

fn text(path: PathBuf) -> String {
    path.to_str().expect("text").to_owned()
}

impl Cluster {
    async fn start() -> Result<Cluster> {
        let etcd = EtcdCluster::single().await;
        let mut cluster = Cluster {
            home: Home::new()?,
            etcd: etcd.endpoints().join(","),
            s1: None,
            s2: None,
            _etcd: etcd,
        };
        let mut s1 = cluster.server("s1", &[])?;
        let ready = cluster.kubeconfig("s1");
        s1.until("it serves", || ready.exists())?;
        cluster.s1 = Some(s1);
        let token = cluster.mctl("s1", &["token", "create", "--server"]).ok();
        let mut s2 = cluster.server("s2", &["--join", token.trim()])?;
        let ready = cluster.kubeconfig("s2");
        s2.until("it serves", || ready.exists())?;
        cluster.s2 = Some(s2);
        Ok(cluster)
    }

    fn server(&self, name: &str, args: &[&str]) -> Result<Process> {
        let data = text(self.home.path().join(name));
        let all = [
            "server",
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
            "--etcd",
            &self.etcd,
            "--data-dir",
            &data,
        ];
        self.home.start(name, &[&all, args].concat())
    }

    fn kubeconfig(&self, server: &str) -> PathBuf {
        self.home.path().join(server).join("kubeconfig")
    }

    fn mctl(&self, server: &str, args: &[&str]) -> Ran {
        self.home.mctl(&self.kubeconfig(server), args)
    }

    /// Starts an agent that knows both servers, and uses the first.
    fn agent(&mut self) -> Result<Process> {
        let s2 = self.s2.as_mut().expect("it runs");
        let (home, config) = (&self.home, self.home.path().join("s1/kubeconfig"));
        let mut token = String::new();
        s2.until("both servers to be known", || {
            token = home.mctl(&config, &["token", "create"]).ok().trim().to_owned();
            token.contains(',')
        })?;
        let data = text(self.home.path().join("a1"));
        let args = [
            "agent",
            "--name",
            "a1",
            "--data-dir",
            &data,
            "--cpus",
            "1",
            "--memory",
            "256Mi",
            "--join",
            &token,
        ];
        let mut agent = self.home.start("a1", &args)?;
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        agent.until("it is ready", || {
            self.mctl("s2", &["get", "agent", "a1", "-o", path]).stdout.trim() == "True"
        })?;
        Ok(agent)
    }

    /// `HOST:PORT` of a server.
    fn address(&self, name: &str) -> String {
        let server = if name == "s1" { &self.s1 } else { &self.s2 };
        let said = server.as_ref().expect("it runs").said();
        let line = said
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("api server  https://"));
        line.expect("it says where it is").to_owned()
    }

    fn leader(&self, through: &str) -> String {
        let path = "jsonpath={.spec.holderIdentity}";
        let lease = ["get", "lease", "muster-controllers", "-n", "muster-system", "-o", path];
        let holder = self.mctl(through, &lease).stdout;
        holder.split('/').next().unwrap_or_default().trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leading_server_is_killed_the_other_leads_and_the_agent_finds_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let mut agent = cluster.agent()?;
    assert_eq!(cluster.leader("s2"), "s1");
    let through = |cluster: &Cluster, server: &str, name: &str| {
        let words = format!("hello through {server}");
        let ran = cluster.mctl(server, &["run", name, "--", "echo", &words]);
        assert_eq!(ran.ok(), format!("{words}\n"));
    };
    through(&cluster, "s1", "one");
    through(&cluster, "s2", "two");
    // What the leader says about a task that waits is known to both.
    cluster
        .mctl("s2", &["run", "huge", "-d", "--cpus", "99", "--", "true"])
        .ok();
    for server in ["s1", "s2"] {
        let s2 = cluster.s2.as_mut().expect("it runs");
        let (home, config) = (&cluster.home, cluster.home.path().join(server).join("kubeconfig"));
        s2.until("a reason", || {
            home.mctl(&config, &["why", "huge"]).stdout.contains("cpus")
        })?;
    }
    let both: Vec<String> = ["s1", "s2"].iter().map(|name| cluster.address(name)).collect();
    cluster.s1.take().expect("it runs").crash();
    through(&cluster, "s2", "three");
    // The configuration names the server that is gone, and the command goes to the other one.
    cluster
        .mctl("s1", &["--servers", &both.join(","), "get", "task", "three"])
        .ok();
    assert_eq!(cluster.leader("s2"), "s2");
    assert!(agent.said().contains("the next server is used"), "{}", agent.said());

    // It comes back, knows everything, and is a standby now.
    let mut s1 = cluster.server("s1", &[])?;
    let config = cluster.kubeconfig("s1");
    s1.until("it answers again", || {
        cluster.home.mctl(&config, &["get", "tasks"]).code == 0
    })?;
    assert_eq!(
        cluster
            .mctl("s1", &["get", "task", "three", "-o", "jsonpath={.status.phase}"])
            .ok(),
        "Finished"
    );
    agent.until("it is still there", || cluster.leader("s1") == "s2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_end_hands_over_and_ends_well() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _agent = cluster.agent()?;
    assert_eq!(cluster.leader("s2"), "s1");
    let s1 = cluster.s1.take().expect("it runs");
    assert_eq!(s1.stop()?, 0, "in good order");
    let ran = cluster.mctl("s2", &["run", "after", "--", "echo", "done"]);
    assert_eq!(ran.ok(), "done\n");
    assert_eq!(cluster.leader("s2"), "s2");
    let leases = cluster
        .mctl("s2", &["get", "leases", "-n", "muster-system", "-o", "name"])
        .ok();
    assert!(
        leases.contains("server-s2") && !leases.contains("server-s1"),
        "{leases}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_or_store_is_told_what_to_do() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let mut stranger = cluster.server("s3", &[])?;
    assert_ne!(stranger.wait()?, 0);
    assert!(stranger.said().contains("--join TOKEN"), "{}", stranger.said());

    // The directory of s1 with another store: one that is empty.
    assert_eq!(cluster.s1.take().expect("it runs").stop()?, 0);
    let mut elsewhere = cluster.server("s1", &["--etcd-prefix", "/elsewhere"])?;
    assert_ne!(elsewhere.wait()?, 0);
    assert!(
        elsewhere.said().contains("holds no cluster under /elsewhere"),
        "{}",
        elsewhere.said()
    );
    Ok(())
}
