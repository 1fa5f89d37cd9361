//! Task: one placement of a command on an agent.

use std::collections::BTreeSet;
use std::str::FromStr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::agent::Reachability;
use super::source::{EnvFrom, EnvVar};
use super::task_image::{ImagePullPolicy, PullSecret, TaskImage};
use super::unreachable::Unreachable;
use super::volume::Volume;
use crate::device::GpuSelector;
use crate::duration::Span;
use crate::names;
use crate::ports::PortSet;
use crate::quantity::{ByteSize, Scalar};
use crate::resources::{Bundle, ResourceRequest};
use crate::task_state::Phase;
use crate::{Condition, Time};

/// One placement of a command on an agent. Restarts in place count as attempts; a new placement is a new Task.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1",
    kind = "Task",
    plural = "tasks",
    singular = "task",
    shortname = "tk",
    category = "muster",
    category = "all",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    doc = "One placement of a command on an agent. Restarts in place count as attempts; a new placement is a new Task.",
    selectable = ".spec.framework",
    selectable = ".spec.role",
    selectable = ".status.phase",
    selectable = ".status.agent",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".status.agent"}"#,
    printcolumn = r#"{"name":"CPUs","type":"string","jsonPath":".spec.resources.cpus"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".spec.resources.memory"}"#,
    printcolumn = r#"{"name":"GPUs","type":"string","jsonPath":".spec.resources.gpus"}"#,
    printcolumn = r#"{"name":"Exit","type":"integer","jsonPath":".status.exitCode"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Framework","type":"string","jsonPath":".spec.framework","priority":1}"#,
    printcolumn = r#"{"name":"Role","type":"string","jsonPath":".spec.role","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// Who places the task: a Framework of the same namespace. Default: `default`, the built-in one.
    #[serde(default = "default_framework")]
    pub framework: String,
    /// Who is charged: a path of roles such as `ml/research`. Default: the namespace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Higher is placed first within a role. From -1000000 to 1000000, default 0.
    #[serde(default)]
    pub priority: i32,
    /// The name of an open offer to accept for this task when it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<String>,
    /// The image whose files the command sees, such as `registry.example/team/app:1.2` or `…/app@sha256:…`. An image that the agent does not
    /// have is fetched from the registry that its name begins with; one without a registry, such as `busybox:1.36`, must have been
    /// imported on the agent with `mctl image import`.
    /// The image itself is never changed; what the task writes is its own and goes with it. Without an image the command runs on the
    /// agent's own root, read-only and isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When the image's registry is asked: `Always` (before every run of the command), `IfNotPresent` or `Never`. Default: `Always` for
    /// `:latest`, which is what a name without a tag means, and `IfNotPresent` for other tags, for digests, and for images without a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets with credentials for the image's registry, of the type `kubernetes.io/dockerconfigjson`. The first that knows the registry
    /// counts; then what the agent was given for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<PullSecret>,
    /// The command and its first arguments. Default: the image's entrypoint; required without an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// More arguments. Without `command`, they take the place of the image's own arguments; with it, the image's are not used at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// Environment variables; they win over the image's. `MUSTER_TASK`, `MUSTER_NAMESPACE`, `MUSTER_AGENT` and `MUSTER_SANDBOX` are set too,
    /// and `MUSTER_FENCE`: `<uid>@<attempt>@<binding>`, whose last number is higher for a replacement than for what it replaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// All keys of Secrets and ConfigMaps as variables. Later ones win over earlier ones, and `env` wins over all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub env_from: Vec<EnvFrom>,
    /// Directories that the task sees besides its image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"]))]
    pub volumes: Vec<Volume>,
    /// Where the command starts. Default: where the image says, or the task's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Who the command runs as. Default: who the image says, or root of the container, without capabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// What the task is charged for and gets.
    #[serde(default)]
    pub resources: ResourceRequest,
    /// What it may use at most. Default: as many CPUs as the agent has, and as much memory as it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Which GPUs it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSelector>,
    /// Which agents it may be placed on; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub constraints: Vec<Constraint>,
    /// Whether the agent runs the command again, in place and with backoff: `Never`, `OnFailure` or `Always`. Default `Never`.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// How often the command is run again at most. Default: 3 for `OnFailure`, no bound for `Always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// How the task is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<Kill>,
    /// How long the task may run in all; then it is stopped and has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What becomes of the task when its agent cannot be reached. Default: it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Unreachable>,
    /// How long the object is kept after the task has ended. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Span>,
    /// Whether the task should run: `Run`, or `Killed`, from which there is no way back.
    #[serde(default)]
    pub desired: Desired,
}

fn default_framework() -> String {
    names::FRAMEWORK_DEFAULT.to_owned()
}

/// Who a command runs as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id. Default: the same number as `uid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// What a task may use at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// CPUs; at least as many as asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Scalar>,
    /// Bytes of memory; at least as many as asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

/// A condition on the attributes of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Constraint {
    /// The attribute, such as `zone`, or `hostname`.
    pub attribute: String,
    /// How it is compared.
    pub operator: Operator,
    /// What it is compared with; for `In` and `NotIn` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub values: Vec<String>,
}

/// How an attribute is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The agent has the attribute and its value is one of the values.
    In,
    /// The agent has not the attribute, or its value is none of the values.
    NotIn,
    /// The agent has the attribute.
    Exists,
    /// The agent has not the attribute.
    DoesNotExist,
}

impl Constraint {
    /// Whether the attribute's value (`None`: the agent lacks it) is fine.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let listed = value.is_some_and(|value| self.values.iter().any(|known| known == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Whether the command is run again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// The first end is the end.
    #[default]
    Never,
    /// Again until it ends with exit code 0.
    OnFailure,
    /// Again whatever the exit code.
    Always,
}

/// How a task is stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Kill {
    /// How long it has after the signal until everything in it is killed. Default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<Span>,
    /// The signal. Default SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
}

/// A signal that a task may be stopped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::upper_case_acronyms, reason = "these are their names")]
pub enum Signal {
    /// Hang up.
    SIGHUP,
    /// Interrupt.
    SIGINT,
    /// Quit.
    SIGQUIT,
    /// Kill, without grace.
    SIGKILL,
    /// First of the program's own.
    SIGUSR1,
    /// Second of the program's own.
    SIGUSR2,
    /// Terminate.
    SIGTERM,
}

impl Signal {
    /// Its number on Linux.
    pub const fn number(self) -> i32 {
        match self {
            Signal::SIGHUP => 1,
            Signal::SIGINT => 2,
            Signal::SIGQUIT => 3,
            Signal::SIGKILL => 9,
            Signal::SIGUSR1 => 10,
            Signal::SIGUSR2 => 12,
            Signal::SIGTERM => 15,
        }
    }
}

/// Whether a task should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Desired {
    /// It should.
    #[default]
    Run,
    /// It should be stopped, or never be started.
    Killed,
}

/// Where a task stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskStatus {
    /// What was last proven; only moves forward.
    pub phase: Phase,
    /// What the control plane believes about the task's agent. Written by the controllers.
    pub reachability: Reachability,
    /// Since when it believes that. Written by the controllers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reachability_since: Option<Time>,
    /// While the agent cannot be reached: what happens about it, and what you can do. Written by the controllers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reachability_message: String,
    /// The name of the task that was made to replace this one. Written by the controllers, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
    /// Why the task is where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<TaskReason>,
    /// The same in a sentence, with what to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The agent that the task is bound to. Fixed by the accepted offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The offer that the task was bound from. Fixed by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer: Option<String>,
    /// The revision of that offer: of two placements, the later has the higher one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<u64>,
    /// The UUIDs of the GPUs that the task has. Fixed by the accepted offer.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub devices: BTreeSet<String>,
    /// The ports that the task has, in the environment as `PORT0`, `PORT1`, …. Fixed by the accepted offer.
    #[serde(skip_serializing_if = "PortSet::is_empty")]
    pub ports: PortSet,
    /// The image that the task runs from, as it was found by the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<TaskImage>,
    /// The runs of the command, oldest first; at most the last 10.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub attempts: Vec<Attempt>,
    /// How the last attempt ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When the command was first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the task ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`; `Reconciling` and `Stalled` only while true.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One run of a task's command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// When the command was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When nothing of it was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Its exit code, unless a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it hit its memory limit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Why it could not be run, or why its end is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why a task is where it is. The list is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TaskReason {
    /// Pending: no offer has been looked at yet.
    AwaitingOffer,
    /// Pending: no agent has room now; it waits for others to end.
    WaitingForResources,
    /// Pending: it asks for more than any agent has, or no agent matches. It will not run unless agents or the task change.
    ExceedsEveryAgent,
    /// Pending: its role is at its quota's limit.
    QuotaReached,
    /// Pending: its framework does not exist.
    FrameworkNotFound,
    /// Staging: an offer was accepted for it.
    OfferAccepted,
    /// Starting: the agent prepares it.
    Preparing,
    /// Starting: its image comes from a registry; the message says how far it is.
    PullingImage,
    /// Starting: a Secret or ConfigMap that it names is not there, or a key of it; the message says which. It waits until it is.
    ConfigMissing,
    /// Running: the command runs.
    Started,
    /// Running: the command ended and waits to be run again.
    BackOff,
    /// Killing or Killed: somebody asked for it.
    KillRequested,
    /// Killing or Failed: it ran longer than its deadline.
    DeadlineExceeded,
    /// Killing or Failed: one of its GPUs failed.
    DeviceFault,
    /// Finished: exit code 0.
    Completed,
    /// Failed: another exit code.
    NonZeroExit,
    /// Failed: a signal that nobody here sent.
    Signaled,
    /// Failed: it hit its memory limit.
    OutOfMemory,
    /// Failed or Error: the command could not be run.
    LaunchFailed,
    /// Error, or Failed when it was run before: neither the agent nor a registry has the task's image.
    ImageNotFound,
    /// Error or Dropped, or Failed when it was run before: the task's image could not be fetched from its registry.
    ImagePullFailed,
    /// Failed: its container disappeared; how it ended is not known.
    ContainerVanished,
    /// Error: its description is impossible.
    InvalidTask,
    /// Dropped: the agent let go of it before it had started it.
    NotStarted,
    /// Failed: its machine was restarted under it.
    HostRebooted,
    /// Failed: it was ended on its machine because the agent had no contact for as long as `spec.unreachable` allows. Gone: it must have been.
    SelfFenced,
    /// Gone: the agent object was removed.
    AgentRemoved,
    /// Gone: an operator said that its machine is powered off.
    AgentPoweredOff,
    /// Dropped: the cluster was restored from a backup as a new one.
    Restored,
}

impl TaskReason {
    /// Whether nothing will change unless somebody acts.
    pub const fn is_stall(self) -> bool {
        matches!(self, TaskReason::ExceedsEveryAgent | TaskReason::FrameworkNotFound)
    }
}

impl Task {
    /// The name of the object; stored tasks always have one.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The namespace of the object; stored tasks always have one.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Pending, |status| status.phase)
    }

    /// The agent that the task is bound to.
    pub fn agent(&self) -> Option<&str> {
        self.status.as_ref()?.agent.as_deref()
    }

    /// What becomes of it when its agent cannot be reached.
    pub fn unreachable(&self) -> Unreachable {
        self.spec.unreachable.clone().unwrap_or_default()
    }

    /// Who is charged.
    pub fn role(&self) -> &str {
        self.spec.role.as_deref().unwrap_or(self.namespace())
    }

    /// What the task holds of its agent: nothing before it is bound and after it has ended.
    pub fn held(&self) -> Bundle {
        match &self.status {
            Some(status) if status.phase.holds_resources() => Bundle {
                cpus: self.spec.resources.cpus,
                memory: self.spec.resources.memory,
                disk: self.spec.resources.disk,
                ports: status.ports.clone(),
                devices: status.devices.clone(),
            },
            _ => Bundle::default(),
        }
    }
}

impl FromStr for Signal {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Signal, serde_json::Error> {
        serde_json::from_value(serde_json::Value::String(text.to_owned()))
    }
}
