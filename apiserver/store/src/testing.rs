//! Real etcd clusters on this machine, for tests.
//!
//! Members listen on free ports of 127.0.0.1 and keep their data in a directory that goes with the cluster. They are told to
//! elect quickly (50 ms heartbeats, 500 ms elections), so that leases of a second are possible and a new leader is there within
//! a second. Everything is killed by its own process when the cluster is dropped.
//!
//! Etcd that is not installed is a panic with the command that installs it.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::etcd::{EtcdConfig, EtcdTls};

/// How long members may take to be ready, on a machine that does other things too.
const READY: Duration = Duration::from_secs(60);
/// How often starting is tried: between choosing a port and listening on it, another process may take it.
const STARTS: usize = 5;

/// What kind of cluster is started.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// How many members; zero counts as one.
    pub members: usize,
    /// Whether clients are served by TLS and must show a certificate.
    pub tls: bool,
    /// More flags of etcd, such as `--quota-backend-bytes=…`.
    pub flags: Vec<String>,
}

/// Files for clients of a cluster with TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The CA.
    pub ca: PathBuf,
    /// A client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// An etcd that runs until it is dropped.
pub struct EtcdCluster {
    members: Vec<Member>,
    tls: Option<TlsFiles>,
    directory: TempDir,
}

struct Member {
    name: String,
    url: String,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl EtcdCluster {
    /// Starts a cluster and waits until every member answers.
    ///
    /// # Panics
    ///
    /// When etcd is not installed, or does not start.
    pub async fn start(options: EtcdOptions) -> EtcdCluster {
        let mut failure = String::new();
        for _ in 0..STARTS {
            let mut cluster = EtcdCluster::prepare(&options);
            for index in 0..cluster.members.len() {
                cluster.spawn(index);
            }
            match cluster.ready().await {
                Ok(()) => return cluster,
                Err(why) => failure = why,
            }
        }
        panic!("etcd does not start: {failure}");
    }

    /// A cluster of one member without TLS.
    pub async fn single() -> EtcdCluster {
        EtcdCluster::start(EtcdOptions::default()).await
    }

    /// A cluster of three members without TLS.
    pub async fn three() -> EtcdCluster {
        EtcdCluster::start(EtcdOptions {
            members: 3,
            ..EtcdOptions::default()
        })
        .await
    }

    fn prepare(options: &EtcdOptions) -> EtcdCluster {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let count = options.members.max(1);
        let ports = free_ports(2 * count);
        let tls = options.tls.then(|| certificates(directory.path()));
        let scheme = if options.tls { "https" } else { "http" };
        let name = |index: usize| format!("m{index}");
        let peer = |index: usize| format!("http://127.0.0.1:{}", ports[count + index]);
        let all: Vec<String> = (0..count)
            .map(|index| format!("{}={}", name(index), peer(index)))
            .collect();
        let member = |index: usize| {
            let url = format!("{scheme}://127.0.0.1:{}", ports[index]);
            let mut arguments = vec![
                format!("--name={}", name(index)),
                format!("--data-dir={}", directory.path().join(name(index)).display()),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={}", peer(index)),
                format!("--initial-advertise-peer-urls={}", peer(index)),
                format!("--initial-cluster={}", all.join(",")),
                format!("--initial-cluster-token={}", directory.path().display()),
                "--heartbeat-interval=50".to_owned(),
                "--election-timeout=500".to_owned(),
                "--logger=zap".to_owned(),
            ];
            if options.tls {
                let file = |name: &str| directory.path().join(name).display().to_string();
                arguments.push(format!("--cert-file={}", file("server.pem")));
                arguments.push(format!("--key-file={}", file("server.key")));
                arguments.push(format!("--trusted-ca-file={}", file("ca.pem")));
                arguments.push("--client-cert-auth".to_owned());
            }
            arguments.extend(options.flags.iter().cloned());
            Member {
                name: name(index),
                url,
                arguments,
                process: None,
            }
        };
        EtcdCluster {
            members: (0..count).map(member).collect(),
            tls,
            directory,
        }
    }

    fn spawn(&mut self, index: usize) {
        let member = &mut self.members[index];
        let log = self.directory.path().join(format!("{}.log", member.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log can be written");
        let spawned = Command::new("etcd")
            .args(&member.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let process = spawned.expect("etcd runs; on Debian: apt-get install etcd-server etcd-client");
        member.process = Some(process);
    }

    /// Waits until every member that runs serves, with a leader.
    async fn ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + READY;
        for index in 0..self.members.len() {
            while self.leader_seen_by(index).await.is_none() {
                let member = &mut self.members[index];
                let Some(process) = &mut member.process else {
                    break;
                };
                let exited = process.try_wait().expect("a child can be asked for its end");
                if exited.is_some() || Instant::now() > end {
                    let log = self.directory.path().join(format!("{}.log", member.name));
                    let log = std::fs::read_to_string(log).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(5).collect();
                    return Err(format!("{}: {exited:?}: {}", member.name, tail.join(" | ")));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn client(&self, index: usize) -> Option<etcd_client::Client> {
        let mut options = etcd_client::ConnectOptions::new();
        if let Some(tls) = self.client_tls() {
            let (certificate, key) = tls.identity.expect("made with one");
            let settings = etcd_client::TlsOptions::new()
                .ca_certificate(etcd_client::Certificate::from_pem(tls.ca))
                .identity(etcd_client::Identity::from_pem(certificate, key));
            options = options.with_tls(settings);
        }
        let url = &self.members[index].url;
        etcd_client::Client::connect([url], Some(options)).await.ok()
    }

    /// `(own id, leader's id)` as a member says.
    async fn leader_seen_by(&self, index: usize) -> Option<(u64, u64)> {
        let look = async {
            let mut client = self.client(index).await?;
            let status = client.status().await.ok()?;
            let own = status.header()?.member_id();
            (status.leader() != 0).then_some((own, status.leader()))
        };
        tokio::time::timeout(Duration::from_secs(1), look).await.ok().flatten()
    }

    /// Ends all leases, and so the writes that would come when they end by themselves.
    ///
    /// # Panics
    ///
    /// When the first member does not answer.
    pub async fn revoke_leases(&self) {
        let mut client = self.client(0).await.expect("the first member runs");
        let leases = client.leases().await.expect("it lists leases");
        for lease in leases.leases() {
            // It may have ended meanwhile.
            let _ = client.lease_revoke(lease.id()).await;
        }
    }

    /// Waits until all members that are not stopped agree on a leader, and returns its number.
    ///
    /// # Panics
    ///
    /// When there is none within a minute.
    pub async fn leader(&self) -> usize {
        let end = Instant::now() + READY;
        while Instant::now() < end {
            for index in 0..self.members.len() {
                if let Some((own, leader)) = self.leader_seen_by(index).await
                    && own == leader
                {
                    return index;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd has no leader");
    }

    /// How many members there are.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The members' client URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// What clients need, if the cluster has TLS.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    fn client_tls(&self) -> Option<EtcdTls> {
        let read = |path: &Path| std::fs::read(path).expect("written at the start");
        self.tls.as_ref().map(|files| EtcdTls {
            ca: read(&files.ca),
            identity: Some((read(&files.cert), read(&files.key))),
        })
    }

    /// How to open a store in it.
    pub fn config(&self, prefix: &str) -> EtcdConfig {
        EtcdConfig {
            tls: self.client_tls(),
            ..EtcdConfig::new(self.endpoints(), prefix, 1)
        }
    }

    /// The process of a member.
    pub fn pid(&self, index: usize) -> Option<u32> {
        self.members[index].process.as_ref().map(Child::id)
    }

    fn signal(&self, index: usize, signal: Signal) {
        let pid = self.pid(index).expect("the member runs");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid is a small number"));
        kill(pid, signal).expect("our own child can be signalled");
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill().expect("our own child can be killed");
            process.wait().expect("our own child can be waited for");
        }
    }

    /// SIGSTOP.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    /// Starts a member that was killed, with what it had on disk.
    pub fn restart(&mut self, index: usize) {
        self.kill(index);
        self.spawn(index);
    }

    /// Throws away what a member that was killed had on disk.
    pub fn wipe(&mut self, index: usize) {
        self.kill(index);
        let data = self.directory.path().join(&self.members[index].name);
        std::fs::remove_dir_all(data).expect("our own directory can be removed");
    }

    /// Waits until every member that runs has a leader.
    ///
    /// # Panics
    ///
    /// When that takes more than a minute.
    pub async fn settled(&mut self) {
        self.ready().await.expect("the members find a leader");
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    // Held together, so that they differ.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("there are free ports"))
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
    held.iter().map(port).collect()
}

/// A CA, a server certificate for 127.0.0.1, and a client certificate.
fn certificates(directory: &Path) -> TlsFiles {
    const MADE: &str = "certificates can be made";
    let key = || KeyPair::generate().expect(MADE);
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = key();
    let ca = authority.self_signed(&authority_key).expect(MADE).pem();
    let issuer = Issuer::new(authority, authority_key);
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path
    };
    let leaf = |name: &str, usages: Vec<ExtendedKeyUsagePurpose>| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        params.extended_key_usages = usages;
        let own = key();
        let certificate = params.signed_by(&own, &issuer).expect(MADE);
        (
            write(&format!("{name}.pem"), &certificate.pem()),
            write(&format!("{name}.key"), &own.serialize_pem()),
        )
    };
    // Etcd's gateway is its own client, with the server's certificate.
    leaf(
        "server",
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    );
    let (cert, key) = leaf("client", vec![ExtendedKeyUsagePurpose::ClientAuth]);
    TlsFiles {
        ca: write("ca.pem", &ca),
        cert,
        key,
    }
}
