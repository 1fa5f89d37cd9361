//! The part of a task's plan that is about its image: whether it comes, and what becomes of the task when it does not.

use std::collections::BTreeMap;

use muster_api::task_state::Phase;
use muster_api::v1::{ImagePullPolicy, Task, TaskReason};
use muster_runtime::ContainerId;
use muster_runtime::registry::{PullError, Seen, has_registry};

use super::given::{self, Without};
use super::{Failure, PlanInput, TaskPlan, after, earlier};
use crate::limits::PULL_PATIENCE;
use crate::pulls::{self, Pull, PullKey, Want};
use crate::spec;
use crate::status::Outcome;
use crate::volumes::Content;

/// Why the container of an attempt is not made yet, or never will be.
pub(super) enum Absent {
    /// Its image comes; how far it is.
    Comes(String),
    /// A Secret that is to be used for it is not there.
    Misses(String),
    /// It does not come; how the task ends.
    Never(Outcome),
}

/// What of a Secret of its type counts.
const DOCKER_CONFIG: &str = ".dockerconfigjson";

fn never(phase: Phase, reason: TaskReason, message: String) -> Option<Absent> {
    Some(Absent::Never(Outcome { phase, reason, message }))
}

/// What the image of an attempt's container is waited for with. `failure`: that of making the container, if it failed. `may`: it could be
/// made now. `None`: nothing has to be fetched first.
pub(super) fn absent(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    (task, id): (&Task, &ContainerId),
    failure: Option<&Failure>,
    may: bool,
) -> Option<Absent> {
    let image = spec::image(task)?;
    let policy = task.spec.pull_policy();
    let missing = failure.filter(|failure| failure.no_image.is_some());
    let key = key(task, &image);
    if let Some(missing) = missing {
        let why = match (policy, input.pulls) {
            (ImagePullPolicy::Never, _) => "; it is not fetched, for spec.imagePullPolicy is Never",
            (_, None) => "",
            (_, Some(_)) if !has_registry(&image) => {
                "; or write which registry has it, as in registry.example/team/app:1"
            }
            (_, Some(pulls)) => return fetch(input, plan, task, (key, id, policy), pulls),
        };
        return never(
            Phase::Error,
            TaskReason::ImageNotFound,
            format!("{}{why}", missing.message),
        );
    }
    let pulls = input.pulls.filter(|_| has_registry(&image))?;
    let anew = policy == ImagePullPolicy::Always && !input.memory.is_fetched(id);
    // What has begun goes on, whatever the moment says.
    let now = anew && (may || pulls.contains_key(&key));
    now.then(|| fetch(input, plan, task, (key, id, policy), pulls))?
}

/// Which pull a task waits for.
fn key(task: &Task, image: &str) -> PullKey {
    let secrets: Vec<&str> = task
        .spec
        .image_pull_secrets
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let whose = match secrets.as_slice() {
        [] => String::new(),
        secrets => format!("{}/{}", task.namespace(), secrets.join(",")),
    };
    let image = image.to_owned();
    PullKey { image, whose }
}

fn fetch(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    task: &Task,
    (key, id, policy): (PullKey, &ContainerId, ImagePullPolicy),
    pulls: &BTreeMap<PullKey, Pull>,
) -> Option<Absent> {
    let image = key.image.clone();
    let known = pulls.get(&key);
    let begins = match known {
        None => true,
        Some(Pull::Comes(_)) => false,
        Some(Pull::Failed(failed)) => !failed.error.is_final() && failed.retry_at <= input.now,
    };
    // Only for what begins now: what comes already has its credentials, and is not to end because they cannot be read any more.
    let keys = begins.then(|| credentials(input, plan, task)).transpose();
    let (keys, without) = match keys {
        Ok(keys) => (keys, None),
        Err(without) => (None, Some(without)),
    };
    if keys.is_some() || known.is_some() {
        let want = Want {
            ids: [id.clone()].into(),
            keys,
            anew: policy == ImagePullPolicy::Always,
        };
        plan.image = Some((key, want));
    }
    match without {
        None => {}
        Some(Without::Misses(what)) => return Some(Absent::Misses(what)),
        Some(Without::Reads(trouble)) => {
            let words = trouble.unwrap_or_else(|| "reading its credentials".to_owned());
            return Some(Absent::Comes(format!("{image}: {words}")));
        }
        Some(Without::Refused(why)) => return never(Phase::Dropped, TaskReason::ImagePullFailed, why),
    }
    match known {
        Some(Pull::Failed(failed)) => how_it_failed(input, plan, &image, failed),
        Some(Pull::Comes(seen)) => {
            plan.wake = earlier(plan.wake, Some(after(input.now, pulls::OLD)));
            Some(Absent::Comes(format!("{image}: {}", pulls::words(*seen))))
        }
        None => Some(Absent::Comes(format!("{image}: {}", pulls::words(Seen::default())))),
    }
}

fn how_it_failed(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    image: &str,
    failed: &pulls::FailedPull,
) -> Option<Absent> {
    let error = &failed.error;
    let reason = match error {
        PullError::NotFound(_) => TaskReason::ImageNotFound,
        _ => TaskReason::ImagePullFailed,
    };
    if error.is_final() {
        return never(
            Phase::Error,
            reason,
            format!("the image {image} could not be fetched: {error}"),
        );
    }
    if after(failed.since, PULL_PATIENCE) <= input.now {
        let message = format!(
            "not started: the image {image} could not be fetched, {} times: {error}",
            failed.count
        );
        return never(Phase::Dropped, reason, message);
    }
    plan.wake = earlier(plan.wake, Some(failed.retry_at));
    Some(Absent::Comes(format!("{image}: trying again: {error}")))
}

/// What the task's Secrets hold for registries.
fn credentials(input: &PlanInput<'_>, plan: &mut TaskPlan, task: &Task) -> Result<Vec<Content>, Without> {
    let wanted: Vec<_> = task.spec.pull_secrets().collect();
    let here = given::sources(input, plan, task, wanted.iter().cloned())?;
    let of = |source| {
        let missing = |why: &str| {
            Without::Misses(format!(
                "waits: the {source}, which spec.imagePullSecrets names, {why}; create it with kubectl create secret docker-registry"
            ))
        };
        let data = here
            .get(source)
            .ok_or_else(|| missing(&format!("is not in the namespace {}", task.namespace())))?;
        let found = data.get(DOCKER_CONFIG).cloned();
        found.ok_or_else(|| missing(&format!("has no key {DOCKER_CONFIG}")))
    };
    wanted.iter().map(of).collect()
}
