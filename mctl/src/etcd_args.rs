//! The flags that say which etcd a cluster is kept in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use muster_api::env::{Env as _, SystemEnv};
use muster_store::{EtcdConfig, EtcdStore, EtcdTls};

use crate::failure::{Failure, Outcome};

/// Which etcd, and where in it.
#[derive(Clone, Debug, Default, Args)]
pub struct EtcdArgs {
    /// Keep the cluster in this etcd: the client URLs of its members.
    #[arg(long = "etcd", value_delimiter = ',', value_name = "URL", help_heading = "etcd")]
    pub endpoints: Vec<String>,
    /// Who signed the certificates of etcd's members: a PEM file.
    #[arg(long = "etcd-ca", value_name = "FILE", requires = "endpoints", help_heading = "etcd")]
    pub ca: Option<PathBuf>,
    /// The certificate to show to etcd: a PEM file.
    #[arg(long = "etcd-cert", value_name = "FILE", requires_all = ["key", "ca"], help_heading = "etcd")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate: a PEM file.
    #[arg(long = "etcd-key", value_name = "FILE", requires = "cert", help_heading = "etcd")]
    pub key: Option<PathBuf>,
    /// What the cluster's keys in etcd begin with; one etcd can keep several clusters.
    #[arg(
        long = "etcd-prefix",
        value_name = "PREFIX",
        default_value = "/muster/default",
        help_heading = "etcd"
    )]
    pub prefix: String,
}

impl EtcdArgs {
    /// Whether an etcd is named at all.
    pub fn is_given(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// How the store is opened: a new cluster gets a random UID; `expect_uid`: it must be there already, with this one.
    pub fn config(&self, expect_uid: Option<u128>) -> Outcome<EtcdConfig> {
        let secure = self.endpoints.iter().any(|url| url.trim().starts_with("https://"));
        let tls = match &self.ca {
            None if secure => {
                return Err(Failure::new(
                    "an https:// endpoint of etcd needs --etcd-ca, the file of the CA that signed its certificate",
                ));
            }
            Some(_) if !secure => {
                return Err(Failure::new("--etcd-ca is for https:// endpoints; --etcd names none"));
            }
            None => None,
            Some(ca) => {
                let identity = match (&self.cert, &self.key) {
                    (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                    _ => None,
                };
                Some(EtcdTls {
                    ca: read(ca)?,
                    identity,
                })
            }
        };
        Ok(EtcdConfig {
            tls,
            expect_uid,
            ..EtcdConfig::new(self.endpoints.clone(), self.prefix.clone(), SystemEnv.uid().as_u128())
        })
    }

    /// Opens the store of whatever cluster it is; `make`: if there is none, one is made.
    pub async fn open_or_make(&self, make: bool) -> Outcome<Arc<EtcdStore>> {
        self.opened(EtcdConfig {
            create: make,
            ..self.config(None)?
        })
        .await
    }

    /// Opens the store. See [`config`](EtcdArgs::config).
    pub async fn open(&self, expect_uid: Option<u128>) -> Outcome<Arc<EtcdStore>> {
        self.opened(self.config(expect_uid)?).await
    }

    async fn opened(&self, config: EtcdConfig) -> Outcome<Arc<EtcdStore>> {
        let opened = EtcdStore::open(config).await;
        opened
            .map(Arc::new)
            .map_err(|error| Failure::new(format!("the store at {}: {error}", self.endpoints.join(","))))
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        etcd: EtcdArgs,
    }

    fn parse(flags: &str) -> Result<EtcdArgs, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).map(|line| line.etcd)
    }

    #[test]
    fn members_are_separated_by_commas() {
        let args = parse("--etcd http://a:1,http://b:2").unwrap();
        assert_eq!((args.endpoints.len(), args.prefix.as_str()), (2, "/muster/default"));
        assert!(!parse("").unwrap().is_given());
    }

    #[test]
    fn certificates_come_whole_or_not_at_all() {
        assert!(parse("--etcd https://a:1 --etcd-ca c --etcd-cert d").is_err());
        assert!(parse("--etcd-ca c").is_err());
        let failure = |flags| parse(flags).unwrap().config(None).unwrap_err().to_string();
        assert!(failure("--etcd https://a:1").contains("--etcd-ca"));
        assert!(failure("--etcd http://a:1 --etcd-ca c").contains("https://"));
    }
}
