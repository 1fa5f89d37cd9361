//! The command line of `muster-agentd`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use clap::Parser;
use muster_agentd::data_dir::DataDir;
use muster_agentd::devices::{DeviceSource, GpuChoice};
use muster_agentd::machine::{self, Claim};
use muster_agentd::registries::RegistryArgs;
use muster_agentd::runtimes::{Choice, Opened};
use muster_agentd::volumes::VolumeArgs;
use muster_agentd::{Config, NodeServer, tls};
use muster_api::duration::Span;
use muster_api::env::{Env, SystemEnv};
use muster_api::names::{dns_subdomain_problem, label_value_problem, qualified_name_problem};
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::v1::{AgentCapacity, Versions};
use muster_client::Client;
use muster_client::kube::config::{KubeConfigOptions, Kubeconfig};
use muster_runtime::{Images, process};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Runs the agent of one machine: it offers what the machine has, and runs tasks.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// How to reach the API server, and as whom. Default: KUBECONFIG, then ~/.kube/config.
    #[arg(long, env = "MUSTER_CONFIG", value_name = "PATH", conflicts_with = "server")]
    kubeconfig: Option<PathBuf>,
    /// The API server, such as https://host:6443, instead of a kubeconfig.
    #[arg(long, value_name = "URL", requires = "ca", requires = "token_file")]
    server: Option<String>,
    /// The certificate of the cluster's authority, PEM.
    #[arg(long, value_name = "PATH")]
    ca: Option<PathBuf>,
    /// A file with the agent's token.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// The agent's name, unique in the cluster. Default: the machine's name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the agent keeps who it is, and its containers.
    #[arg(long, default_value = "/var/lib/muster/agent", value_name = "PATH")]
    data_dir: PathBuf,
    /// Where the images of tasks are, as `mctl image import` leaves them. Default: images below --data-dir.
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,
    /// What runs the tasks: process, containerd[=SOCKET], or auto, which is containerd when one answers where it usually listens.
    #[arg(long, default_value_t, value_name = "RUNTIME")]
    runtime: Choice,
    /// Where images come from.
    #[command(flatten)]
    registries: RegistryArgs,
    /// What tasks may see of the machine.
    #[command(flatten)]
    volumes: VolumeArgs,
    /// The GPUs: auto (NVIDIA's, if there are any), none, nvml, cdi:VENDOR/CLASS, or simulated ones such as sim:8xH100.
    #[arg(long, default_value = "auto", value_name = "GPUS")]
    gpus: GpuChoice,
    /// What tasks may select the agent by, such as zone=a,rack=7. Used when the agent joins for the first time.
    #[arg(long, value_delimiter = ',', value_parser = attribute, value_name = "KEY=VALUE")]
    attributes: Vec<(String, String)>,
    /// CPUs to offer. Default: all.
    #[arg(long, value_name = "CPUS")]
    cpus: Option<Scalar>,
    /// Memory to offer. Default: all but a reserve for the system, a tenth and at most 512Mi.
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteSize>,
    /// Disk to offer. Default: what is free below --data-dir.
    #[arg(long, value_name = "BYTES")]
    disk: Option<ByteSize>,
    /// Ports to offer.
    #[arg(long, default_value = "31000-32000", value_name = "RANGES")]
    ports: PortSet,
    /// How long the agent counts as present without a word from it; whole seconds.
    #[arg(long, default_value = "15s", value_name = "TIME")]
    session_ttl: Span,
    /// Where the server for logs listens; needs --ca, --cert and --key.
    #[arg(long, value_name = "ADDRESS", requires = "ca", requires = "cert", requires = "key")]
    listen: Option<SocketAddr>,
    /// The host that the API server reaches the agent by. Default: the address of --listen.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// The agent's serving certificate, PEM.
    #[arg(long, value_name = "PATH")]
    cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "PATH")]
    key: Option<PathBuf>,
    /// Where metrics are served for Prometheus besides, without TLS and to anybody who can reach it, such as 127.0.0.1:9400.
    #[arg(long, value_name = "ADDRESS", requires = "listen")]
    metrics_listen: Option<SocketAddr>,
    /// Stops all tasks when the agent is told to stop. Otherwise they go on, and the next start of the agent finds them.
    #[arg(long)]
    stop_tasks_on_shutdown: bool,
    /// What is logged.
    #[arg(long, env = "MUSTER_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

/// Everything that an agent is run with.
pub(crate) struct Parts {
    client: Client,
    runtime: Opened,
    devices: Arc<dyn DeviceSource>,
    env: Arc<dyn Env>,
    config: Config,
    /// Keeps the data directory this process's own.
    _claim: Claim,
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    match qualified_name_problem(key).or_else(|| label_value_problem(value)) {
        Some(problem) => Err(problem),
        None => Ok((key.to_owned(), value.to_owned())),
    }
}

fn file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Parts {
    /// Runs the agent until it is told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), muster_agentd::Error> {
        let (runtime, close) = self.runtime.split();
        let ran = muster_agentd::run(self.client, runtime, self.devices, self.env, self.config, stop).await;
        close();
        ran
    }
}

impl Args {
    /// Begins to log, and to listen for signals: the token is cancelled by the first that asks this process to end.
    pub(crate) fn begin(&self) -> anyhow::Result<CancellationToken> {
        let filter = EnvFilter::try_new(&self.log).context("--log")?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! { biased; _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            stopped.cancel();
        });
        Ok(stop)
    }

    /// Opens everything.
    pub(crate) async fn open(&self) -> anyhow::Result<Parts> {
        let name = self.name.clone().or_else(machine::hostname);
        let name = name.context("the machine has no name that an agent can have; give one with --name")?;
        if let Some(problem) = dns_subdomain_problem(&name) {
            anyhow::bail!("`{name}` cannot be the name of an agent: {problem}; give another with --name");
        }
        let ttl = self.session_ttl.millis();
        ensure!(
            ttl >= 3000 && ttl.is_multiple_of(1000),
            "--session-ttl must be whole seconds, at least 3s"
        );
        let claim = Claim::take(&self.data_dir, &SystemEnv).await?;
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let devices = self
            .gpus
            .open(&name, &self.data_dir, &claim.identity.boot_id, &env)
            .context("--gpus")?;
        let base = process::Config {
            hidden: self.secrets(),
            images: Images::new(self.images()?),
            registries: self
                .registries
                .config()
                .context("--registry-credentials, --registry-ca")?,
            ..process::Config::new(self.data_dir.join("runtime"))
        };
        let runtime = Opened::open(&self.runtime, base).await?;
        let config = Config {
            identity: claim.identity.clone(),
            attributes: self.attributes(),
            capacity: self.capacity()?,
            versions: Versions {
                kernel: machine::read("/proc/sys/kernel/osrelease"),
                runtime: runtime.version.clone(),
                ..Versions::default()
            },
            session_ttl: self.session_ttl.duration(),
            server: self.node_server()?,
            data: DataDir::at(&self.data_dir),
            places: self.volumes.places(&self.data_dir).context("--allow-host-path")?,
            stop_tasks_on_shutdown: self.stop_tasks_on_shutdown,
            name,
        };
        let client = self.client().await?;
        Ok(Parts {
            client,
            runtime,
            devices,
            env,
            config,
            _claim: claim,
        })
    }

    fn images(&self) -> anyhow::Result<PathBuf> {
        let given = self.images.clone().unwrap_or_else(|| self.data_dir.join("images"));
        std::path::absolute(&given).with_context(|| format!("--images {}", given.display()))
    }

    /// What tasks must not see although they run on the machine's own root.
    fn secrets(&self) -> Vec<PathBuf> {
        let files = [&self.kubeconfig, &self.token_file, &self.key].into_iter().flatten();
        let paths = files
            .chain([&self.data_dir])
            .map(PathBuf::as_path)
            .chain(self.registries.secrets())
            .filter_map(|path| path.canonicalize().ok());
        paths.collect()
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let hostname = machine::hostname().map(|name| ("hostname".to_owned(), name));
        hostname.into_iter().chain(self.attributes.iter().cloned()).collect()
    }

    fn capacity(&self) -> anyhow::Result<AgentCapacity> {
        let found = machine::capacity(&self.data_dir)?;
        Ok(AgentCapacity {
            cpus: self.cpus.unwrap_or(found.cpus),
            memory: self.memory.unwrap_or(found.memory),
            disk: self.disk.unwrap_or(found.disk),
            gpus: 0,
            ports: self.ports.clone(),
        })
    }

    fn node_server(&self) -> anyhow::Result<Option<NodeServer>> {
        let (Some(listen), Some(ca), Some(cert), Some(key)) = (self.listen, &self.ca, &self.cert, &self.key) else {
            return Ok(None);
        };
        Ok(Some(NodeServer {
            listen,
            advertise: self.advertise.clone(),
            tls: tls::fixed(tls::Material {
                ca: file(ca)?,
                cert: file(cert)?,
                key: file(key)?,
            }),
            metrics: self.metrics_listen,
        }))
    }

    async fn client(&self) -> anyhow::Result<Client> {
        if let (Some(server), Some(ca), Some(token)) = (&self.server, &self.ca, &self.token_file) {
            return Ok(Client::https(server, &file(ca)?, file(token)?.trim())?);
        }
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => Kubeconfig::read().context("there is no kubeconfig; name one with --kubeconfig")?,
        };
        let options = KubeConfigOptions::default();
        let config = muster_client::kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::from_config(config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["muster-agentd"], words].concat())
    }

    #[test]
    fn attributes_are_read_and_checked() {
        let args = args(&["--attributes", "zone=a,rack=7"]).expect("well-formed");
        assert_eq!(args.attributes()["zone"], "a");
        assert_eq!(args.attributes()["rack"], "7");
        for wrong in ["zone", "zo ne=a", "zone=a/b"] {
            assert!(self::args(&["--attributes", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpus_are_what_the_machine_has_unless_it_is_said() {
        assert_eq!(args(&[]).expect("well-formed").gpus, GpuChoice::Auto);
        assert!(args(&["--gpus", "sim:8xH100"]).is_ok());
        assert!(args(&["--gpus", "8xH100"]).is_err());
    }

    #[test]
    fn a_server_needs_what_goes_with_it() {
        assert!(args(&["--server", "https://h:1"]).is_err());
        assert!(args(&["--server", "https://h:1", "--ca", "c", "--token-file", "t"]).is_ok());
        assert!(args(&["--listen", "127.0.0.1:0"]).is_err());
    }

    #[test]
    fn what_is_given_wins_over_what_is_found() {
        let args = args(&["--data-dir", "/", "--cpus", "3", "--memory", "1Gi", "--ports", "5-6"]).expect("well-formed");
        let capacity = args.capacity().expect("this machine can be read");
        assert_eq!(capacity.cpus, Scalar::from_units(3));
        assert_eq!(capacity.memory, ByteSize::from_mib(1024));
        assert_eq!(capacity.ports.len(), 2);
        assert!(capacity.disk > ByteSize::ZERO);
    }
}
