//! The arguments of the program.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use muster_api::env::SystemEnv;
use muster_apiserver::audit::AuditArgs;
use muster_apiserver::etcd_args::EtcdArgs;
use muster_apiserver::lanes::LaneArgs;
use muster_apiserver::launch::{self, Options};
use muster_store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The API server of Muster.
#[derive(Debug, clap::Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Where everything is kept: the store, tokens, certificates and the administrator's kubeconfig.
    #[arg(long, value_name = "DIRECTORY", env = "MUSTER_DATA_DIR")]
    data_dir: PathBuf,
    /// Where to listen; may be given several times. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    listen: Vec<SocketAddr>,
    /// A name or address that clients reach the server by, besides those of this machine; may be given several times.
    #[arg(long = "tls-name", value_name = "NAME")]
    names: Vec<String>,
    /// The etcd that keeps the cluster, for several servers; without one it is kept in the data directory.
    #[command(flatten)]
    etcd: EtcdArgs,
    /// What is written down about requests.
    #[command(flatten)]
    audit: AuditArgs,
    /// How much is done at once.
    #[command(flatten)]
    lanes: LaneArgs,
    /// What to log, as in `info` or `muster_apiserver=debug`.
    #[arg(long, value_name = "FILTER", env = "MUSTER_LOG", default_value = "info")]
    log: String,
}

impl Args {
    /// Serves until the process is asked to end.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log).context("--log is not a filter")?;
        let terminal = std::io::stderr().is_terminal();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(terminal)
            .init();

        let stop = CancellationToken::new();
        let options = Options {
            data_dir: self.data_dir,
            listen: self.listen,
            names: self.names,
            audit: self.audit.options(),
            limits: self.lanes.limits(),
            ..Options::default()
        };
        let store: Arc<dyn Store> = if self.etcd.is_given() {
            self.etcd.open_of(&options.data_dir).await?
        } else {
            launch::open_store(&options.data_dir, &SystemEnv)?
        };
        let running = launch::start(&options, store, Arc::new(SystemEnv), stop.clone()).await?;
        tracing::info!(
            server = running.access.server,
            kubeconfig = %options.data_dir.join("kubeconfig").display(),
            "the API server answers"
        );
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
        running.stopped().await;
        Ok(())
    }
}
