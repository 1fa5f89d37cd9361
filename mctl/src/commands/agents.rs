//! What an agent runs, and what it has left.

use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::{Agent, Offer, Task};
use serde_json::Value;

use crate::rest::{CallError, Rest, with_query};
use crate::session::{Session, ours};
use crate::table;

use super::describe::indent;

/// Tasks and free resources of an agent.
pub async fn describe(rest: &Rest, object: &Value) -> Result<String, CallError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let offers = ours("offers", "offer", "Offer", true);
    let (of_tasks, of_offers) = (format!("status.agent={name}"), format!("spec.agent={name}"));
    let tasks = with_query(&Session::tasks().path(None), &[("fieldSelector", &of_tasks)]);
    let offers = with_query(&offers.path(None), &[("fieldSelector", &of_offers)]);
    let (tasks, offers) = futures::try_join!(rest.get(&tasks), rest.get(&offers))?;
    let agent: Agent = serde_json::from_value(object.clone()).map_err(|error| CallError::Garbled(error.to_string()))?;
    Ok(render(&agent, &items(&tasks), &items(&offers)))
}

/// The items of a list that can be understood.
pub(super) fn items<T: serde::de::DeserializeOwned>(list: &Value) -> Vec<T> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| serde_json::from_value(item.clone()).ok())
        .collect()
}

fn render(agent: &Agent, tasks: &[Task], offers: &[Offer]) -> String {
    let allocatable = agent.allocatable();
    let held: Vec<Bundle> = tasks.iter().map(Task::held).collect();
    let offered: Vec<Bundle> = offers.iter().map(Offer::held).collect();
    let sum = |bundles: &[Bundle]| {
        bundles
            .iter()
            .try_fold(Bundle::default(), |sum, bundle| sum.checked_add(bundle))
    };
    let (used, open) = (sum(&held), sum(&offered));
    let free = match (&used, &open) {
        (Some(used), Some(open)) => used.checked_add(open).and_then(|both| allocatable.checked_sub(&both)),
        _ => None,
    };
    let amounts = |bundle: Option<Bundle>| bundle.map(|bundle| bundle.amounts());
    let rows = [
        ("allocatable", Some(allocatable.amounts())),
        ("used by tasks", amounts(used)),
        ("offered", amounts(open)),
        ("free", amounts(free)),
    ];
    let row = |(name, amounts): (&str, Option<Amounts>)| match amounts {
        Some(amounts) => {
            vec![
                name.to_owned(),
                amounts.cpus.to_string(),
                amounts.memory.to_string(),
                amounts.disk.to_string(),
                amounts.gpus.to_string(),
                amounts.ports.to_string(),
            ]
        }
        None => vec![name.to_owned(), "more than there is".to_owned()],
    };
    let headings = ["", "CPUS", "MEMORY", "DISK", "GPUS", "PORTS"].map(str::to_owned);
    let mut text = format!(
        "Resources:\n{}",
        indent(&table::align(&headings, rows.into_iter().map(row).collect(), true), 2)
    );
    text.push_str(&super::gpus::of_agent(agent, tasks));
    let live: Vec<&Task> = tasks.iter().filter(|task| task.phase().holds_resources()).collect();
    if live.is_empty() {
        text.push_str("Tasks: none\n");
        return text;
    }
    let headings = ["NAMESPACE", "NAME", "PHASE", "CPUS", "MEMORY", "GPUS"].map(str::to_owned);
    let rows = live.iter().map(|task| {
        let held = task.held().amounts();
        vec![
            task.namespace().to_owned(),
            task.name().to_owned(),
            task.phase().to_string(),
            held.cpus.to_string(),
            held.memory.to_string(),
            held.gpus.to_string(),
        ]
    });
    text.push_str(&format!(
        "Tasks:\n{}",
        indent(&table::align(&headings, rows.collect(), true), 2)
    ));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn free_is_what_tasks_and_offers_leave() {
        let agent = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1", "kind": "Agent", "metadata": {"name": "a1"}, "spec": {},
            "status": {"capacity": {"cpus": 8, "memory": "16Gi", "disk": "100Gi", "gpus": 1, "ports": ["31000-31009"]},
                "devices": [{"uuid": "g", "model": "H100", "memory": "80Gi", "health": "Healthy"}]},
        }))
        .expect("agent");
        let task: Task = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "t", "namespace": "ml"},
            "spec": {"command": ["x"], "resources": {"cpus": 2, "memory": "1Gi"}}, "status": {"phase": "Running", "agent": "a1", "devices": ["g"], "ports": [31000]},
        }))
        .expect("task");
        let ended = Task {
            status: Some(muster_api::v1::TaskStatus {
                phase: muster_api::task_state::Phase::Finished,
                ..Default::default()
            }),
            ..task.clone()
        };
        insta::assert_snapshot!(render(&agent, &[task, ended], &[]), @"
        Resources:
                          CPUS   MEMORY   DISK    GPUS   PORTS
          allocatable     8      16Gi     100Gi   1      10
          used by tasks   2      1Gi      0       1      1
          offered         0      0        0       0      0
          free            6      15Gi     100Gi   0      9
        GPUs:
          UUID   MODEL   MEMORY   HEALTH    TASK
          g      H100    80Gi     Healthy   ml/t
        Tasks:
          NAMESPACE   NAME   PHASE     CPUS   MEMORY   GPUS
          ml          t      Running   2      1Gi      1
        ");
    }
}
