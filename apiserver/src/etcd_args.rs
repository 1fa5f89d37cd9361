//! The flags that say which etcd a cluster is kept in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use muster_api::env::{Env as _, SystemEnv};
use muster_store::{EtcdConfig, EtcdStore, EtcdTls};

/// What is wrong with the flags, the files that they name, or the etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdArgsError {
    /// An `https://` endpoint without an authority.
    #[error("an https:// endpoint of etcd needs --etcd-ca, the file of the CA that signed its certificate")]
    NoAuthority,
    /// An authority for endpoints without TLS.
    #[error("--etcd-ca is for https:// endpoints; --etcd names none")]
    NoTls,
    /// A file that cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("the store at {endpoints}: {error}")]
    Store {
        /// Where it is.
        endpoints: String,
        /// Why.
        error: muster_store::Error,
    },
}

type Result<T> = std::result::Result<T, EtcdArgsError>;

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

    /// How the store is opened; a new cluster gets a random UID.
    pub fn config(&self) -> Result<EtcdConfig> {
        let secure = self.endpoints.iter().any(|url| url.trim().starts_with("https://"));
        let tls = match &self.ca {
            None if secure => {
                return Err(EtcdArgsError::NoAuthority);
            }
            Some(_) if !secure => {
                return Err(EtcdArgsError::NoTls);
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
            ..EtcdConfig::new(self.endpoints.clone(), self.prefix.clone(), SystemEnv.uid().as_u128())
        })
    }

    /// Opens the store for a server with this data directory. If there is none, one is made, unless the directory is of a cluster already:
    /// such a server must not make another one, however empty the place is that it is shown.
    pub async fn open_of(&self, data_dir: &Path) -> Result<Arc<EtcdStore>> {
        let config = EtcdConfig {
            create: !data_dir.join(crate::cluster::FILE).exists(),
            ..self.config()?
        };
        let opened = EtcdStore::open(config).await;
        opened.map(Arc::new).map_err(|error| EtcdArgsError::Store {
            endpoints: self.endpoints.join(","),
            error,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| EtcdArgsError::File {
        path: path.to_owned(),
        error,
    })
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

    fn parse(flags: &str) -> std::result::Result<EtcdArgs, clap::Error> {
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
        let failure = |flags| parse(flags).unwrap().config().unwrap_err().to_string();
        assert!(failure("--etcd https://a:1").contains("--etcd-ca"));
        assert!(failure("--etcd http://a:1 --etcd-ca c").contains("https://"));
    }
}
