//! What whoever starts an agent says about registries of images.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_runtime::registry;

/// How the agent speaks to registries, from which it fetches images that it does not have.
#[derive(Clone, Debug, Default, Args)]
pub struct RegistryArgs {
    /// User names and passwords for registries of images, in a file as `docker login` writes it.
    #[arg(long, value_name = "PATH")]
    pub registry_credentials: Option<PathBuf>,
    /// Certificates of authorities that are trusted for registries besides the machine's, PEM.
    #[arg(long, value_name = "PATH")]
    pub registry_ca: Option<PathBuf>,
    /// Registries that are spoken to without TLS. Those of this machine (localhost, 127.0.0.1) always are.
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub registry_plain: Vec<String>,
    /// The only registries that images are fetched from. Default: all.
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub registry_only: Vec<String>,
}

impl RegistryArgs {
    /// The same for the runtime.
    ///
    /// # Errors
    /// When the working directory, which paths may start from, is not known.
    pub fn config(&self) -> io::Result<registry::Config> {
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        Ok(registry::Config {
            credentials: absolute(&self.registry_credentials)?,
            authorities: absolute(&self.registry_ca)?,
            plain: self.registry_plain.iter().cloned().collect(),
            allowed: self.registry_only.iter().cloned().collect(),
            ..registry::Config::default()
        })
    }

    /// What no task may see.
    pub fn secrets(&self) -> impl Iterator<Item = &Path> {
        self.registry_credentials.as_deref().into_iter()
    }
}
