//! The kinds of `muster.dev/v1`.
//!
//! One file per kind: its spec, its status, and what can be said about one object alone. Rules that hold for every object:
//! `spec` is what somebody wants, `status` is what somebody saw; each field has one writer, named in its description.

mod agent;
mod framework;
mod given_validation;
mod offer;
mod quota;
mod source;
mod task;
mod task_conditions;
mod task_image;
mod task_validation;
mod unreachable;
mod volume;

pub use agent::{Agent, AgentCapacity, AgentSpec, AgentStatus, GpuOrder, Reachability, Versions};
pub use framework::{Demand, Framework, FrameworkSpec, FrameworkStatus, Scheduler};
pub use offer::{Offer, OfferPhase, OfferSpec, OfferStatus, OfferedResources};
pub use quota::{Quota, QuotaAmounts, QuotaSpec, QuotaStatus};
pub use source::{EnvFrom, EnvSource, EnvVar, FieldRef, KeyRef, Source, SourceKind, SourceRef};
pub use task::{
    Attempt, Constraint, Desired, Kill, Limits, Operator, RestartPolicy, Signal, Task, TaskReason, TaskSpec,
    TaskStatus, User,
};
pub use task_conditions::conditions;
pub use task_image::{ImagePullPolicy, PullSecret, TaskImage};
pub use unreachable::{Keep, Unreachable, UnreachablePolicy};
pub use volume::{EmptyDir, FileItem, HostPath, HostPathType, Medium, SharedDir, SourceFiles, Volume};
