//! `mctl get gpus`: the GPUs of all agents, whose they are, and what is wrong with those that nobody gets.
//!
//! GPUs are no objects of their own: agents report them in their status, and tasks name those that they hold in theirs.

use std::collections::BTreeMap;
use std::io::Write as _;

use muster_api::device::Device;
use muster_api::v1::{Agent, Task};
use serde_json::{Value, json};

use super::agents::items;
use crate::cli::GetArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format};
use crate::rest::{CallError, Rest, with_query};
use crate::session::{Session, Terminal, ours, query};
use crate::table;

/// Whether the words after `get` ask for GPUs.
pub fn are_meant(what: &[String]) -> bool {
    what.first().is_some_and(|kind| matches!(kind.as_str(), "gpu" | "gpus"))
}

/// Runs `mctl get gpus [UUID…]`; `-l` and `--field-selector` choose agents.
pub async fn run(session: &Session, args: &GetArgs, format: &Format, terminal: &mut Terminal) -> Outcome {
    if args.watch || args.watch_only {
        return Err(Failure::new(
            "GPUs are a part of agents; watch those: mctl get agents -w",
        ));
    }
    let mut found = read(&session.rest, args).await?;
    let wanted = args.what.get(1..).unwrap_or_default();
    if let Some(unknown) = wanted
        .iter()
        .find(|uuid| !found.iter().any(|gpu| gpu.device.uuid == **uuid))
    {
        return Err(Failure::new(format!(
            "no agent has the GPU {unknown}; `mctl get gpus` lists them"
        )));
    }
    found.retain(|gpu| wanted.is_empty() || wanted.contains(&gpu.device.uuid));
    let text = match format {
        Format::Table | Format::Wide if found.is_empty() => {
            terminal.note("no agent has GPUs");
            return Ok(Exit::Done);
        }
        Format::Table | Format::Wide => render(&found, matches!(format, Format::Wide), !args.no_headers),
        Format::Json => output::pretty(&json!({ "items": found.iter().map(Gpu::value).collect::<Vec<Value>>() })),
        Format::Yaml => output::yaml(&json!({ "items": found.iter().map(Gpu::value).collect::<Vec<Value>>() })),
        Format::Name => found.iter().map(|gpu| format!("gpu/{}\n", gpu.device.uuid)).collect(),
        Format::Template(_) | Format::Columns(_) => {
            return Err(Failure::new(
                "GPUs are shown as a table, with -o wide, name, json or yaml",
            ));
        }
    };
    terminal.out.write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// A GPU with where it is and who holds it.
struct Gpu {
    agent: String,
    device: Device,
    task: Option<String>,
}

impl Gpu {
    fn value(&self) -> Value {
        let mut value = json!(self.device);
        value["agent"] = json!(self.agent);
        value["task"] = json!(self.task);
        value
    }
}

async fn read(rest: &Rest, args: &GetArgs) -> Result<Vec<Gpu>, CallError> {
    let agents = with_query(
        &ours("agents", "agent", "Agent", false).path(None),
        &query(&args.selection),
    );
    let tasks = Session::tasks().path(None);
    let (agents, tasks) = futures::try_join!(rest.get(&agents), rest.get(&tasks))?;
    Ok(join(items(&agents), &items(&tasks)))
}

/// The GPUs by agent and UUID.
fn join(agents: Vec<Agent>, tasks: &[Task]) -> Vec<Gpu> {
    let mut holders: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.phase().holds_resources()) {
        let (Some(agent), Some(status)) = (task.agent(), &task.status) else {
            continue;
        };
        let name = format!("{}/{}", task.namespace(), task.name());
        holders.extend(status.devices.iter().map(|uuid| ((agent, uuid.as_str()), name.clone())));
    }
    let mut gpus = Vec::new();
    for agent in agents {
        let name = agent.name().to_owned();
        for device in agent.status.map(|status| status.devices).unwrap_or_default() {
            gpus.push(Gpu {
                task: holders.get(&(name.as_str(), device.uuid.as_str())).cloned(),
                agent: name.clone(),
                device,
            });
        }
    }
    gpus
}

fn render(gpus: &[Gpu], wide: bool, with_headings: bool) -> String {
    let narrow = ["UUID", "AGENT", "MODEL", "MEMORY", "HEALTH", "TASK"];
    let more = ["COMPUTE", "DRIVER", "PCI", "NUMA", "BEST LINK", "MESSAGE"];
    let headings: Vec<String> = narrow
        .iter()
        .chain(more.iter().filter(|_| wide))
        .map(|heading| (*heading).to_owned())
        .collect();
    let or_none = |text: Option<String>| {
        text.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "<none>".to_owned())
    };
    let row = |gpu: &Gpu| {
        let device = &gpu.device;
        let mut row = vec![
            device.uuid.clone(),
            gpu.agent.clone(),
            device.model.clone(),
            device.memory.to_string(),
            format!("{:?}", device.health),
            or_none(gpu.task.clone()),
        ];
        if wide {
            row.extend([
                or_none(device.compute_capability.clone()),
                or_none(device.driver.clone()),
                or_none(device.pci_address.clone()),
                or_none(device.numa_node.map(|node| node.to_string())),
                or_none(device.links.values().max().map(ToString::to_string)),
                or_none(Some(device.message.clone())),
            ]);
        }
        row
    };
    table::align(&headings, gpus.iter().map(row).collect(), with_headings)
}

/// The GPUs of one agent, for its description; empty when it has none.
pub(super) fn of_agent(agent: &Agent, tasks: &[Task]) -> String {
    let gpus = join(vec![agent.clone()], tasks);
    if gpus.is_empty() {
        return String::new();
    }
    let headings = ["UUID", "MODEL", "MEMORY", "HEALTH", "TASK"].map(str::to_owned);
    let row = |gpu: &Gpu| {
        let device = &gpu.device;
        let health = match device.message.as_str() {
            "" => format!("{:?}", device.health),
            message => format!("{:?}: {message}", device.health),
        };
        let task = gpu.task.clone().unwrap_or_else(|| "<none>".to_owned());
        vec![
            device.uuid.clone(),
            device.model.clone(),
            device.memory.to_string(),
            health,
            task,
        ]
    };
    let rows = gpus.iter().map(row).collect();
    format!(
        "GPUs:\n{}",
        super::describe::indent(&table::align(&headings, rows, true), 2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_shown_with_their_holders_and_their_faults() {
        let agent: Agent = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1", "kind": "Agent", "metadata": {"name": "a1"}, "spec": {},
            "status": {"devices": [
                {"uuid": "GPU-a", "model": "NVIDIA H100", "memory": "80Gi", "health": "Healthy", "links": {"GPU-b": "NV18"}, "numaNode": 0},
                {"uuid": "GPU-b", "model": "NVIDIA H100", "memory": "80Gi", "health": "Cordoned", "message": "XID 48: reset it"},
            ]},
        }))
        .expect("agent");
        let task: Task = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "t", "namespace": "ml"},
            "spec": {"command": ["x"]}, "status": {"phase": "Running", "agent": "a1", "devices": ["GPU-a"]},
        }))
        .expect("task");
        insta::assert_snapshot!(render(
            &join(vec![agent.clone()], std::slice::from_ref(&task)),
            false,
            true
        ));
        insta::assert_snapshot!(render(&join(vec![agent.clone()], &[]), true, true));
        insta::assert_snapshot!(of_agent(&agent, &[task]));
    }
}
