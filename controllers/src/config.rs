//! The command line of `muster-controllers`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use muster_api::duration::Span;
use muster_client::Client;
use muster_client::kube::config::{KubeConfigOptions, Kubeconfig};
use muster_controllers::Config;
use tracing_subscriber::EnvFilter;

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
    log: String,
}

impl Args {
    /// Logs to standard error from now on.
    pub(crate) fn start_log(&self) -> anyhow::Result<()> {
        let filter =
            EnvFilter::try_new(&self.log).context("--log is not a filter; one looks like info,muster=debug")?;
        let log = tracing_subscriber::fmt().with_env_filter(filter);
        log.with_writer(std::io::stderr).init();
        Ok(())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> anyhow::Result<Config> {
        Args::try_parse_from([&["muster-controllers"], arguments].concat())?.config()
    }

    #[test]
    fn times_are_given_as_people_write_them() {
        let given = config(&["--lease-ttl", "5s", "--offer-ttl", "1m30s"]).expect("a configuration");
        assert_eq!((given.lease_ttl.as_secs(), given.offer_ttl.millis()), (5, 90_000));
        assert_eq!(config(&[]).expect("a configuration").lease_ttl.as_secs(), 3);
    }

    #[test]
    fn a_lease_that_cannot_be_is_refused() {
        for ttl in ["0s", "500ms", "1500ms", "soon"] {
            assert!(config(&["--lease-ttl", ttl]).is_err(), "{ttl}");
        }
    }
}
