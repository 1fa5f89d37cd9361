//! What can be typed to start a cluster, or a part of one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use muster_agentd::devices::GpuChoice;
use muster_agentd::registries::RegistryArgs;
use muster_agentd::runtimes::Choice;
use muster_agentd::volumes::VolumeArgs;
use muster_api::duration::Span;
use muster_api::join::JoinToken;
use muster_api::names;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_apiserver::audit::AuditArgs;
use muster_apiserver::etcd_args::EtcdArgs;
use muster_apiserver::lanes::LaneArgs;

pub use super::invitation::Join;

/// How long a server leads without renewal, unless it is said.
pub const LEASE_TTL: &str = "3s";

/// How agents run tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    /// Really.
    Real(Choice),
    /// Not at all: tasks only seem to run.
    Fake,
}

impl FromStr for RuntimeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<RuntimeKind, String> {
        match text {
            "fake" => Ok(RuntimeKind::Fake),
            text => text.parse().map(RuntimeKind::Real),
        }
    }
}

/// What an agent offers; default: what the machine has.
#[derive(Clone, Debug, Args)]
pub struct Offered {
    /// The GPUs: auto (NVIDIA's, if there are any; of several agents the first has them), none, nvml, cdi:VENDOR/CLASS, or for each agent
    /// simulated ones such as sim:8xH100.
    #[arg(long, default_value = "auto", value_name = "GPUS")]
    pub gpus: GpuChoice,
    /// CPUs of each agent.
    #[arg(long, value_name = "CPUS")]
    pub cpus: Option<Scalar>,
    /// Memory of each agent.
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<ByteSize>,
    /// Disk of each agent.
    #[arg(long, value_name = "BYTES")]
    pub disk: Option<ByteSize>,
    /// What tasks may select agents by, such as zone=a,rack=7.
    #[arg(long, value_delimiter = ',', value_parser = attribute, value_name = "KEY=VALUE")]
    pub attributes: Vec<(String, String)>,
    /// How tasks are run: as isolated processes (process), by containerd (containerd[=SOCKET]), or by containerd when one answers where it
    /// usually listens, else as processes (auto).
    #[arg(long, default_value = "auto", value_name = "RUNTIME")]
    pub runtime: RuntimeKind,
    /// Where the metrics of the agent are served for Prometheus besides, without TLS and to anybody who can reach it, such as 127.0.0.1:9400; of
    /// several agents those of the first.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where the images of tasks are, see `mctl image` [default: images below --data-dir].
    #[arg(long, value_name = "DIRECTORY")]
    pub images: Option<PathBuf>,
    /// Where other images come from.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// What tasks may see of the machine.
    #[command(flatten)]
    pub volumes: VolumeArgs,
}

/// `mctl dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where the cluster keeps what it knows [default: ~/.local/share/muster].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Where the API server listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// How many agents; they share what the machine has.
    #[arg(long, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(0..=100))]
    pub agents: u16,
    /// What they offer.
    #[command(flatten)]
    pub offered: Offered,
    /// What is written down about requests.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Leave ~/.config/muster/config alone.
    #[arg(long)]
    pub no_context: bool,
}

/// `mctl server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where the cluster keeps what it knows [default: ~/.local/share/muster].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// The etcd that keeps the cluster, for several servers; without one it is kept in the data directory.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Where the API server listens.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Under which other names and addresses it is reached.
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    pub advertise: Vec<String>,
    /// An agent that may join without a token, and the host that it is reached by: what it needs is put into `<data-dir>/join/NAME`.
    #[arg(long = "agent", value_name = "NAME[=HOST]")]
    pub agents: Vec<String>,
    /// The name of this server among the servers of the cluster [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Become one more server of the cluster that this token is of (`mctl token create --server`).
    #[arg(
        long,
        value_name = "TOKEN",
        env = "MUSTER_JOIN",
        hide_env_values = true,
        requires = "endpoints"
    )]
    pub join: Option<JoinToken>,
    /// The keys by which secrets are sealed, the same for all servers of the cluster [default: `encryption-key` in the data directory]. A line
    /// `ID KEY` each (64 hexadecimal digits); the first seals, all open.
    #[arg(long, value_name = "FILE")]
    pub encryption_key: Option<PathBuf>,
    /// How long this server leads without renewal, if it leads: whole seconds. A server that is gone is followed by another after so long.
    #[arg(long, value_name = "SPAN", default_value = LEASE_TTL)]
    pub lease_ttl: Span,
    /// How long the certificates of agents last; they are renewed when two thirds are over.
    #[arg(long, value_name = "SPAN", default_value = "7d")]
    pub agent_certificates: Span,
    /// What is written down about requests.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// How much is done at once.
    #[command(flatten)]
    pub lanes: LaneArgs,
}

/// What can be said about an agent, from anywhere.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Tell an agent in quarantine that what the API server says now is to hold (see its condition StoreRegressed).
    Confirm {
        /// The agent.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
    /// Let an agent in no longer: its certificate counts no more, and it is deleted. Its machine can join again with a new token.
    Revoke {
        /// The agent.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
}

/// `mctl agent`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AgentArgs {
    /// Say something about an agent, instead of starting one.
    #[command(subcommand)]
    pub command: Option<AgentCommand>,
    /// The token that lets this machine join (`mctl token create`; not looked at once it has joined), or a directory made by
    /// `mctl server --agent NAME`.
    #[arg(long, value_name = "TOKEN", env = "MUSTER_JOIN", hide_env_values = true)]
    pub join: Option<Join>,
    /// The name of the agent when it joins [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The host that servers reach this machine by [default: its address on the way to them].
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// Where the agent keeps what it knows [default: ~/.local/share/muster-agent].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Where the agent's own server, for logs, listens.
    #[arg(long, default_value = "0.0.0.0:0", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// What it offers.
    #[command(flatten)]
    pub offered: Offered,
    /// The ports that tasks are given.
    #[arg(long, default_value = "31000-32000", value_name = "RANGES")]
    pub ports: PortSet,
    /// Stop all tasks when the agent is told to stop. Otherwise they go on, and the next start of the agent finds them.
    #[arg(long)]
    pub stop_tasks_on_shutdown: bool,
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    match names::qualified_name_problem(key).or_else(|| names::label_value_problem(value)) {
        Some(problem) => Err(problem),
        None => Ok((key.to_owned(), value.to_owned())),
    }
}
