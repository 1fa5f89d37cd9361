//! The flags of `mctl apply` and `mctl diff`.

use clap::Args;

use crate::cli::{DryRun, Files};

/// `mctl apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// What to apply.
    #[command(flatten)]
    pub files: Files,
    /// Only try: `client` checks the manifests, `server` does everything but store.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "server", require_equals = true)]
    pub dry_run: DryRun,
    /// Under which name changes are noted.
    #[arg(long, default_value = "mctl", value_name = "NAME")]
    pub field_manager: String,
    /// Take the fields that others own and say something else about.
    #[arg(long)]
    pub force_conflicts: bool,
    /// Delete what was applied with the same set before and is not in the manifests any more.
    #[arg(long)]
    pub prune: bool,
    /// The set: the object that keeps it, a ConfigMap by default.
    #[arg(long, value_name = "[KIND/]NAME")]
    pub applyset: Option<String>,
    /// Wait until tasks that run once have ended, all others are ready, or something cannot go on.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, such as 30s; 0 means for ever.
    #[arg(long, default_value = "5m", value_name = "SPAN")]
    pub timeout: String,
    /// name, yaml or json; errors too are printed as JSON with it.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// `mctl diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// What to compare.
    #[command(flatten)]
    pub files: Files,
    /// Who would apply.
    #[arg(long, default_value = "mctl", value_name = "NAME")]
    pub field_manager: String,
    /// As if fields that others own were taken.
    #[arg(long)]
    pub force_conflicts: bool,
    /// As `apply --prune` would, which deletes what is not in the manifests any more.
    #[arg(long)]
    pub prune: bool,
    /// The set: the object that keeps it, a ConfigMap by default.
    #[arg(long, value_name = "[KIND/]NAME")]
    pub applyset: Option<String>,
}
