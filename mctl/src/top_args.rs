//! The flags of `mctl top`.

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::Selection;

/// `mctl top`.
#[derive(Debug, Subcommand)]
pub enum TopCommand {
    /// The machines of agents, with what is not Muster's.
    #[command(visible_alias = "agents", aliases = ["ag", "node", "nodes"])]
    Agent(TopArgs),
    /// The tasks that run.
    #[command(visible_alias = "tasks", aliases = ["tk", "pod", "pods"])]
    Task(TopArgs),
    /// The GPUs of all agents; selectors choose agents.
    #[command(visible_alias = "gpus")]
    Gpu(TopArgs),
}

/// What `mctl top` shows, and in which order.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only these.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Which ones.
    #[command(flatten)]
    pub selection: Selection,
    /// The largest first, or by name.
    #[arg(long, value_enum, default_value_t)]
    pub sort_by: SortBy,
    /// Without the line of headings.
    #[arg(long)]
    pub no_headers: bool,
    /// yaml or json, with all that was measured.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// The name.
    #[default]
    Name,
    /// CPUs that are used.
    Cpu,
    /// Memory that is used: of a GPU, its own.
    Memory,
    /// How busy GPUs are.
    Gpu,
    /// Power that GPUs draw.
    Power,
    /// How warm GPUs are.
    Temperature,
}
