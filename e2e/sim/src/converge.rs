//! Calm after the storm: what is must become what was asked for, and stay so.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_api::resources::{Amounts, Bundle};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Offer, Reachability, Task, TaskReason};
use muster_runtime::{ContainerId, FakeRuntime, Runtime, State};
use tokio::time::sleep;

use crate::framework::EXTERNAL;
use crate::invariants::{Checker, FOREIGN};
use crate::world::World;

/// How long the calm phase may take, in virtual time: more than a presence lease (15 s), an offer's life (30 s), the longest stall, a
/// clock that was wrong (60 s) and the longest backoff (60 s) together.
const CALM: Duration = Duration::from_secs(240);

/// How long it has to stay as it is: more than the time after which an agent takes a container for an orphan (60 s).
const STAY: Duration = Duration::from_secs(75);

/// In the last part of that time no object is written more often than this: the last attempt of a task, its end, and its removal, and that
/// once more under the same name.
const STILL: Duration = Duration::from_secs(20);
const WRITES_STILL: usize = 16;

/// Ends all trouble and waits until what is, is what was asked for. What is not, in words.
pub async fn converge(world: &mut World) -> Vec<String> {
    world.calm_down().await;
    let mut missing = Vec::new();
    for _ in 0..CALM.as_secs() {
        sleep(Duration::from_secs(1)).await;
        if !world.check() {
            return world.checker().violations().to_vec();
        }
        missing = discrepancies(world).await;
        if missing.is_empty() {
            return stays(world).await;
        }
    }
    missing
        .iter()
        .map(|what| format!("after {CALM:?} of calm: {what}"))
        .collect()
}

/// Nothing goes wrong any more, and nobody keeps writing.
async fn stays(world: &mut World) -> Vec<String> {
    sleep(STAY - STILL).await;
    let before = world.checker().revision();
    sleep(STILL).await;
    if !world.check() {
        return world.checker().violations().to_vec();
    }
    let mut missing = discrepancies(world).await;
    if !missing.is_empty() {
        // What ends in this very moment is told in the next.
        sleep(Duration::from_secs(1)).await;
        missing = discrepancies(world).await;
    }
    let mut missing: Vec<String> = missing
        .into_iter()
        .map(|what| format!("after it had converged: {what}"))
        .collect();
    let checker = world.checker();
    let busy = checker
        .written_since(before)
        .filter(|(_, writes)| *writes > WRITES_STILL);
    missing.extend(busy.map(|(key, writes)| format!("{key} was written {writes} times in {STILL:?} of calm")));
    missing
}

/// What is not yet as it should be.
pub async fn discrepancies(world: &World) -> Vec<String> {
    let mut missing = Vec::new();
    let mut containers = BTreeMap::new();
    for (index, machine) in world.machines().iter().enumerate() {
        for container in machine.runtime.list().await.expect("nothing is wrong with the machine") {
            let id = container.id.as_str().to_owned();
            if id == FOREIGN {
                continue;
            }
            if containers.insert(id.clone(), (index, container.state)).is_some() {
                missing.push(format!("container {id} is on two machines"));
            }
        }
    }
    let checker = world.checker();
    for task in checker.tasks().values() {
        let wrong = task_discrepancy(world, &checker, task, &mut containers);
        missing.extend(wrong.map(|what| format!("{}: {what}", task.name())));
    }
    let agents = checker.agents().values();
    let lost = agents.filter(|agent| {
        let status = agent.status.clone().unwrap_or_default();
        status.reachability != Reachability::Reachable
    });
    missing.extend(lost.map(|agent| format!("{} counts as lost although nothing is wrong", agent.name())));
    for (id, (index, state)) in containers {
        if matches!(state, State::Running { .. }) {
            let machine = &world.machines()[index].name;
            missing.push(format!("container {id} runs on {machine} for no task"));
        }
    }
    missing
}

/// What of a task is not yet as it should be. Takes the container that the task accounts for out of the map.
fn task_discrepancy(
    world: &World,
    checker: &Checker,
    task: &Task,
    containers: &mut BTreeMap<String, (usize, State)>,
) -> Option<String> {
    let status = task.status.clone().unwrap_or_default();
    let uid = task.metadata.uid.clone().unwrap_or_default();
    if task.metadata.deletion_timestamp.is_some() {
        return Some(format!("is {} and still waits to be deleted", status.phase));
    }
    match status.phase {
        Phase::Pending if fits_somewhere(checker, task) => Some(format!(
            "is Pending ({:?}) although there is room for it",
            status.reason
        )),
        Phase::Pending => None,
        Phase::Staging | Phase::Starting | Phase::Killing => Some(format!("is still {}", status.phase)),
        Phase::Running => {
            let attempt = status.attempts.last().map_or(1, |attempt| attempt.number);
            let running = containers.remove(&format!("{uid}-{attempt}"));
            let lives = matches!(running, Some((_, State::Running { .. })));
            (!lives && status.reason != Some(TaskReason::BackOff))
                .then(|| format!("is Running, but its container is {running:?}"))
        }
        Phase::Finished | Phase::Failed => {
            let never = status
                .attempts
                .iter()
                .find(|attempt| attempt.error.is_none() && !was_started(world, &uid, attempt.number));
            never.map(|attempt| format!("has ended, but attempt {} was never started", attempt.number))
        }
        Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone => None,
    }
}

fn was_started(world: &World, uid: &str, attempt: u32) -> bool {
    let started =
        |runtime: &FakeRuntime| ContainerId::new(format!("{uid}-{attempt}")).is_some_and(|id| runtime.starts(&id) == 1);
    world.machines().iter().any(|machine| started(&machine.runtime))
}

/// Whether a pending task of the built-in framework would fit on an agent as things stand, and in its quota.
fn fits_somewhere(checker: &Checker, task: &Task) -> bool {
    if task.spec.framework == EXTERNAL {
        return false;
    }
    let Some(wanted) = task.spec.resources.amounts() else {
        return false;
    };
    let room = checker.quotas().values().all(|quota| {
        let Some(all) = checker.given_to(&quota.spec.role).checked_add(&wanted) else {
            return false;
        };
        within(&all, &quota.spec.limit)
    });
    let free = |agent: &Agent| free(checker, agent).is_some_and(|free| free.amounts().contains(&wanted));
    room && checker.agents().values().any(free)
}

/// Whether a limit allows this much.
pub(crate) fn within(given: &Amounts, limit: &muster_api::v1::QuotaAmounts) -> bool {
    limit.cpus.is_none_or(|most| given.cpus <= most)
        && limit.memory.is_none_or(|most| given.memory <= most)
        && limit
            .gpus
            .is_none_or(|most| u64::from(given.gpus) * 1000 <= most.milli())
}

fn free(checker: &Checker, agent: &Agent) -> Option<Bundle> {
    let name = agent.name();
    let tasks = checker.tasks().values().filter(|task| task.agent() == Some(name));
    let offers = checker.offers().values().filter(|offer| offer.spec.agent == name);
    let mut held = tasks.map(Task::held).chain(offers.map(Offer::held));
    held.try_fold(agent.allocatable(), |free, held| free.checked_sub(&held))
}
