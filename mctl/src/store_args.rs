//! What can be typed to save, restore and move a cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_apiserver::etcd_args::EtcdArgs;

/// `mctl backup`.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Save a cluster into a file. An embedded one must not be running; one in etcd may.
    Save(SaveArgs),
    /// Check a file, and show what it is a backup of.
    Inspect {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Restore a cluster into a new directory, or a new prefix of an etcd.
    Restore(RestoreArgs),
}

/// `mctl backup save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The file to write; it holds secrets.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Which cluster.
    #[command(flatten)]
    pub place: Place,
}

/// `mctl backup restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file to read.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub place: Place,
    /// As a cluster of its own, besides the one that was saved: with a new UID, without offers and leases, and every task that had not
    /// ended is ended.
    #[arg(long)]
    pub new_cluster: bool,
    /// With --new-cluster: tasks that waited for an agent wait on.
    #[arg(long, requires = "new_cluster")]
    pub keep_pending: bool,
}

/// Where a cluster is kept.
#[derive(Clone, Debug, Default, Args)]
pub struct Place {
    /// The data directory of its server [default: ~/.local/share/muster].
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "endpoints")]
    pub data_dir: Option<PathBuf>,
    /// Or the etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// `mctl store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Move a cluster from a data directory into an etcd. Its server must be stopped.
    Migrate(MigrateArgs),
}

/// `mctl store migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The data directory of its server.
    #[arg(long, value_name = "DIRECTORY")]
    pub from: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}
