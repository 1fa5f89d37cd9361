//! The command line of `muster-controllers`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use muster_api::duration::Span;
use muster_client::Client;
use muster_client::kube::config::{KubeConfigOptions, Kubeconfig};
use muster_controllers::Config;

/// Runs the controllers of a Muster cluster. Several may run; one of them leads.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// How to reach the API server, and as whom. Default: KUBECONFIG, then ~/.kube/config.
    #[arg(long, env = "MUSTER_CONFIG", value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// How long leadership lasts without renewal; whole seconds.
    #[arg(long, default_value = "3s", value_name = "TIME")]
    lease_ttl: Span,
    /// How long an offer stands.
    #[arg(long, default_value = "30s", value_name = "TIME")]
    offer_ttl: Span,
    /// How long events are kept.
    #[arg(long, default_value = "1h", value_name = "TIME")]
    event_ttl: Span,
    /// Who this process is; must be unique. Default: a fresh name.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    identity: String,
    /// What is logged.
    #[arg(long, env = "MUSTER_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
}

impl Args {
    /// What the controllers shall do.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        anyhow::ensure!(
            self.lease_ttl.millis() >= 1000 && self.lease_ttl.millis().is_multiple_of(1000),
            "--lease-ttl must be whole seconds, at least 1s"
        );
        anyhow::ensure!(self.offer_ttl.millis() >= 1000, "--offer-ttl must be at least 1s");
        Ok(Config {
            identity: self.identity.clone(),
            lease_ttl: self.lease_ttl.duration(),
            offer_ttl: self.offer_ttl,
            event_ttl: self.event_ttl,
            ..Config::default()
        })
    }

    /// The API server that the kubeconfig names.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => Kubeconfig::read().context("there is no kubeconfig; name one with --kubeconfig")?,
        };
        let options = KubeConfigOptions::default();
        let config = muster_client::kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::from_config(config)?)
    }
}
