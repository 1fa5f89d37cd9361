//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::apply_args::{ApplyArgs, DiffArgs};
use crate::commands::auth::AuthCommand;
use crate::commands::doctor::DoctorArgs;
use crate::commands::gone::GoneArgs;
use crate::commands::image::ImageCommand;
use crate::commands::port_forward::PortForwardArgs;
use crate::commands::schema::SchemaArgs;
use crate::commands::token::TokenCommand;
use crate::commands::version::VersionArgs;
use crate::dev::args::{AgentArgs, DevArgs, ServerArgs};
use crate::store_args::{BackupCommand, StoreCommand};
use crate::top_args::TopCommand;

const AFTER: &str = "Exit codes: 0 done, 1 error, 2 differences, 3 the task cannot be placed, 4 timed out, 5 the task failed.\n\
The cluster is the one of --kubeconfig, MUSTER_CONFIG, KUBECONFIG or ~/.config/muster/config; `mctl dev` starts one here.";

/// Runs tasks on a cluster of machines, and shows what they do.
#[derive(Debug, Parser)]
#[command(name = "mctl", version, about, after_help = AFTER, disable_help_subcommand = true, propagate_version = false)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// The configuration file [default: MUSTER_CONFIG, KUBECONFIG or ~/.config/muster/config].
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the configuration [default: the current one].
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// Several servers of the cluster, in place of the one of the configuration: one is used until it fails, then the next.
    #[arg(
        long,
        global = true,
        value_delimiter = ',',
        value_name = "HOST:PORT",
        env = "MUSTER_SERVERS",
        help_heading = "Cluster"
    )]
    pub servers: Vec<String>,
    /// The namespace [default: that of the context].
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// What is logged to standard error, such as `info` or `muster_agentd=debug` [default: warn].
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "MUSTER_LOG",
        help_heading = "Cluster"
    )]
    pub log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine.
    Dev(Box<DevArgs>),
    /// Start the API server and the controllers.
    Server(Box<ServerArgs>),
    /// Start the agent of this machine.
    Agent(Box<AgentArgs>),
    /// Find what is wrong with this machine for an agent, and what to do about it.
    Doctor(DoctorArgs),
    /// Run a command as a task, show its output, end with its exit code.
    Run(RunArgs),
    /// Show objects.
    Get(GetArgs),
    /// Show everything about an object.
    Describe(DescribeArgs),
    /// Create or change what manifests describe.
    Apply(ApplyArgs),
    /// Show what an apply would change; exit code 2 when there is something.
    Diff(DiffArgs),
    /// Delete objects.
    Delete(DeleteArgs),
    /// Show the output of a task.
    Logs(LogsArgs),
    /// Run one more command in a task that runs.
    Exec(ExecArgs),
    /// Copy files out of a task that runs, or into it.
    Cp(CpArgs),
    /// Reach ports of a task at ports here, also after it was started again.
    PortForward(PortForwardArgs),
    /// Show what agents, tasks and GPUs use now.
    #[command(subcommand)]
    Top(TopCommand),
    /// Wait until something is true of objects.
    Wait(WaitArgs),
    /// Explain why a task is not placed, agent by agent.
    Why(WhyArgs),
    /// Say of an agent that cannot be reached that it is really gone.
    Gone(GoneArgs),
    /// Keep new tasks away from an agent, or from one GPU. What runs goes on.
    Cordon(CordonArgs),
    /// Let new tasks in again; a GPU that had a fault counts as seen to.
    Uncordon(CordonArgs),
    /// Show what happened.
    Events(EventsArgs),
    /// Show which kinds there are.
    ApiResources(ApiResourcesArgs),
    /// Print JSON Schemas of the kinds, for editors and for checks of manifests.
    Schema(SchemaArgs),
    /// Import, list and delete the images that tasks on this machine run from.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Say who one is, and what one may do.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Make, show and delete the tokens that machines join with.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show and choose clusters.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Save a cluster into a file, and restore it, without a server.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Choose where a cluster is kept, without a server.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show the versions of this command and of the server.
    Version(VersionArgs),
    /// Print a script that completes commands in a shell.
    Completion(CompletionArgs),
}

/// Which objects of a collection.
#[derive(Clone, Debug, Default, Args)]
pub struct Selection {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// With these labels, such as `app=web,tier!=test`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// With these fields, such as `status.phase=Running`.
    #[arg(long, value_name = "SELECTOR")]
    pub field_selector: Option<String>,
}

/// Manifests.
#[derive(Clone, Debug, Default, Args)]
pub struct Files {
    /// Manifests: files, directories, or `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: Vec<String>,
    /// Look into directories of directories too.
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// `mctl get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// KIND, KIND NAME…, KIND/NAME… or KIND,KIND; `gpus` are those of all agents.
    #[arg(value_name = "KIND")]
    pub what: Vec<String>,
    /// Manifests whose objects are shown.
    #[command(flatten)]
    pub files: Files,
    /// Which ones.
    #[command(flatten)]
    pub selection: Selection,
    /// wide, yaml, json, name, jsonpath=TEMPLATE, custom-columns=HEADING:.path,…
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
    /// Go on and show every change.
    #[arg(short = 'w', long)]
    pub watch: bool,
    /// Show changes only.
    #[arg(long)]
    pub watch_only: bool,
    /// Without the line of headings.
    #[arg(long)]
    pub no_headers: bool,
    /// With a column of labels.
    #[arg(long)]
    pub show_labels: bool,
    /// With metadata.managedFields.
    #[arg(long)]
    pub show_managed_fields: bool,
    /// It is no error when an object is not there.
    #[arg(long)]
    pub ignore_not_found: bool,
}

/// `mctl describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// KIND, KIND NAME… or KIND/NAME…
    #[arg(value_name = "KIND", required = true)]
    pub what: Vec<String>,
    /// Which ones.
    #[command(flatten)]
    pub selection: Selection,
}

/// Whether something is only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// It is done.
    #[default]
    None,
    /// It is only checked here.
    Client,
    /// The server does everything but store it.
    Server,
}

/// What becomes of what a deleted object owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    /// It goes after its owner.
    #[default]
    Background,
    /// It goes before its owner.
    Foreground,
    /// It stays.
    Orphan,
}

/// `mctl delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// KIND NAME… or KIND/NAME…
    #[arg(value_name = "KIND")]
    pub what: Vec<String>,
    /// Manifests whose objects are deleted.
    #[command(flatten)]
    pub files: Files,
    /// Which ones.
    #[command(flatten)]
    pub selection: Selection,
    /// All objects of the kind, in the namespace.
    #[arg(long)]
    pub all: bool,
    /// It is no error when an object is not there.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// What becomes of what they own: it goes after them, before them, or stays.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "background", require_equals = true)]
    pub cascade: Cascade,
    /// Whether to wait until they are gone.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub wait: bool,
    /// How long to wait; 0 means for ever.
    #[arg(long, default_value = "0", value_name = "SPAN")]
    pub timeout: String,
    /// Only try.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "server", require_equals = true)]
    pub dry_run: DryRun,
    /// `name` prints names only.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// `mctl logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The task.
    #[arg(value_name = "TASK")]
    pub task: String,
    /// Go on until the task has ended.
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Of the attempt before.
    #[arg(short = 'p', long)]
    pub previous: bool,
    /// The last so many lines.
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
    /// What was written in the last span of time, such as 5m.
    #[arg(long, value_name = "SPAN")]
    pub since: Option<String>,
    /// What was written after a time, such as 2026-01-02T10:00:00Z.
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    pub since_time: Option<String>,
    /// With the time of each line.
    #[arg(long)]
    pub timestamps: bool,
}

/// `mctl exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The task.
    #[arg(value_name = "TASK")]
    pub task: String,
    /// Pass standard input on to the command.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal: the one here.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Only if this attempt is the one that runs.
    #[arg(long, value_name = "NUMBER")]
    pub attempt: Option<u32>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `mctl cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What is copied: TASK:PATH or a path here; directories with all that is in them.
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where it goes: a path here or TASK:PATH; into a directory that is there, or under that name.
    #[arg(value_name = "TO")]
    pub to: String,
    /// Only if this attempt is the one that runs.
    #[arg(long, value_name = "NUMBER")]
    pub attempt: Option<u32>,
}

/// `mctl run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The name of the task.
    pub name: String,
    /// How many CPUs.
    #[arg(long, default_value = "0.1", value_name = "QUANTITY")]
    pub cpus: String,
    /// How much memory.
    #[arg(long, default_value = "64Mi", value_name = "QUANTITY")]
    pub memory: String,
    /// How much disk.
    #[arg(long, value_name = "QUANTITY")]
    pub disk: Option<String>,
    /// How many GPUs.
    #[arg(long, value_name = "NUMBER")]
    pub gpus: Option<String>,
    /// Which GPUs, such as `H100|H200`.
    #[arg(long, value_name = "MODEL", requires = "gpus")]
    pub gpu_model: Option<String>,
    /// How many ports.
    #[arg(long, value_name = "NUMBER")]
    pub ports: Option<u32>,
    /// Who is charged.
    #[arg(long)]
    pub role: Option<String>,
    /// A variable, NAME=VALUE.
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Labels, such as `app=web,tier=test`.
    #[arg(long, short = 'l', value_name = "LABELS")]
    pub labels: Option<String>,
    /// Never, OnFailure or Always.
    #[arg(long, default_value = "Never", value_name = "POLICY")]
    pub restart: String,
    /// How long it may run in all, such as 1h.
    #[arg(long, value_name = "SPAN")]
    pub deadline: Option<String>,
    /// Delete the task when it has ended.
    #[arg(long)]
    pub rm: bool,
    /// Create the task and do not wait for it.
    #[arg(long, short = 'd', conflicts_with = "rm")]
    pub detach: bool,
    /// Only try: `client` prints the task, `server` does everything but store.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "server", require_equals = true)]
    pub dry_run: DryRun,
    /// yaml or json, with --dry-run or --detach.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
    /// The image whose files the command sees: of a registry, as in registry.example/team/app:1, or imported on the agent (`mctl image
    /// import`).
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// When the image's registry is asked: Always, IfNotPresent or Never [default: Always for :latest, else IfNotPresent].
    #[arg(long, value_name = "POLICY", requires = "image")]
    pub image_pull_policy: Option<String>,
    /// The command and its arguments. Without it, an image runs what it says itself.
    #[arg(last = true, required_unless_present = "image", value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `mctl wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// KIND NAME… or KIND/NAME…
    #[arg(value_name = "KIND")]
    pub what: Vec<String>,
    /// Manifests whose objects are waited for.
    #[command(flatten)]
    pub files: Files,
    /// Which ones.
    #[command(flatten)]
    pub selection: Selection,
    /// All objects of the kind, in the namespace.
    #[arg(long)]
    pub all: bool,
    /// condition=NAME[=VALUE], phase=PHASE, jsonpath={.path}[=VALUE], create or delete.
    #[arg(long = "for", value_name = "WHAT")]
    pub until: String,
    /// How long to wait; 0 means: only look.
    #[arg(long, default_value = "30s", value_name = "SPAN")]
    pub timeout: String,
}

/// `mctl why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The task.
    #[arg(value_name = "TASK")]
    pub task: String,
    /// yaml or json.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// `mctl cordon` and `mctl uncordon`.
#[derive(Debug, Args)]
pub struct CordonArgs {
    /// Agents, and GPUs as gpu/UUID.
    #[arg(value_name = "AGENT|gpu/UUID", required = true)]
    pub what: Vec<String>,
}

/// `mctl events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// About one object, KIND/NAME.
    #[arg(long = "for", value_name = "KIND/NAME")]
    pub about: Option<String>,
    /// Of these types, such as Warning.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Go on and show what happens.
    #[arg(short = 'w', long)]
    pub watch: bool,
    /// yaml or json.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// `mctl api-resources`.
#[derive(Debug, Args)]
pub struct ApiResourcesArgs {
    /// Of this group only.
    #[arg(long, value_name = "GROUP")]
    pub api_group: Option<String>,
    /// wide or name.
    #[arg(short = 'o', long, value_name = "FORMAT")]
    pub output: Option<String>,
    /// Without the line of headings.
    #[arg(long)]
    pub no_headers: bool,
}

/// `mctl config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the name of the current context.
    CurrentContext,
    /// List the contexts.
    GetContexts,
    /// Choose the current context.
    UseContext {
        /// Its name.
        name: String,
    },
    /// Print the configuration, without secrets.
    View,
}

/// `mctl completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_those_of_kubectl() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string());
        for line in [
            "mctl get tasks -A -l app=x -o yaml -w",
            "mctl get task/a agent/b -n x",
            "mctl -n x get tk a b --no-headers",
            "mctl apply -f a.yaml -f b/ -R --dry-run=server --field-manager me",
            "mctl apply -f - --wait --timeout 30s",
            "mctl delete -f a.yaml --wait=false --ignore-not-found",
            "mctl delete tasks --all -n x",
            "mctl logs a -f --tail 5 --since 1m --timestamps",
            "mctl logs task/a -p --tail -1",
            "mctl run a --cpus 1 --memory 1Gi --gpus 1 --rm -e A=b --restart OnFailure -- sh -c x",
            "mctl port-forward task/a 8080:80 :443 --address localhost,10.0.0.1",
            "mctl wait task/a --for=condition=Ready --timeout 1m",
            "mctl wait task a --for=jsonpath={.status.phase}=Running",
            "mctl why a -o json",
            "mctl gone a1 --powered-off",
            "mctl events --for task/a -w",
            "mctl dev --listen 127.0.0.1:0 --agents 3 --gpus sim:8xH100 --runtime fake",
            "mctl version --client",
            "mctl diff -f a.yaml --prune --applyset x",
            "mctl schema Task --directory d --of-cluster",
            "mctl backup save x --data-dir d",
            "mctl backup restore x --etcd http://a:1 --etcd-prefix /b --new-cluster --keep-pending",
            "mctl store migrate --from d --etcd http://a:1,http://b:2",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "mctl",
            "mctl gte tasks",
            "mctl run a",
            "mctl dev --agents -1",
            "mctl apply -f x --dry-run=maybe",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
