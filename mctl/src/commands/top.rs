//! `mctl top agent|task|gpu`: what is used now, as the agents measure it.
//!
//! An agent that does not answer has a row that says why; the command shows the others. What is not known is a dash.

use muster_api::usage::{AgentRow, GpuUsage, TaskRow};
use muster_api::v1::{Agent, Task};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::agents::items;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::rest::with_query;
use crate::session::{Session, Terminal, ours, query};
use crate::table;
use crate::top_args::{SortBy, TopArgs, TopCommand};

const TASK_HEADINGS: [&str; 10] = [
    "TASK",
    "AGENT",
    "CPU",
    "MEMORY",
    "PIDS",
    "RESTARTS",
    "OOMS",
    "GPUS",
    "GPU",
    "GPU MEMORY",
];

/// Runs the command.
pub async fn run(session: &Session, command: TopCommand, terminal: &mut Terminal) -> Outcome {
    let (args, what) = match &command {
        TopCommand::Agent(args) => (args, "agent"),
        TopCommand::Task(args) => (args, "task"),
        TopCommand::Gpu(args) => (args, "GPU"),
    };
    let (headings, mut rows, value) = match what {
        "agent" => agents(session, args).await?,
        "task" => tasks(session, args).await?,
        _ => gpus(session, args).await?,
    };
    if let Some(missing) = args
        .names
        .iter()
        .find(|name| !rows.iter().any(|row| row.name == **name))
    {
        let hint = if what == "task" { ", or it does not run" } else { "" };
        return Err(Failure::new(format!("there is no {what} {missing}{hint}")));
    }
    rows.retain(|row| args.names.is_empty() || args.names.contains(&row.name));
    match args.output.as_deref() {
        None => {}
        Some("json") => return terminal.text(output::pretty(&value)).map(|()| Exit::Done),
        Some("yaml") => return terminal.text(output::yaml(&value)).map(|()| Exit::Done),
        Some(other) => {
            return Err(Failure::new(format!(
                "-o {other}: write json or yaml, or leave it out for a table"
            )));
        }
    }
    if rows.is_empty() {
        let none = if what == "task" {
            "no task runs here"
        } else {
            "there is none"
        };
        terminal.note(none);
        return Ok(Exit::Done);
    }
    sort(&mut rows, args.sort_by);
    terminal.text(render(&headings, rows, !args.no_headers))?;
    Ok(Exit::Done)
}

/// A row of any of the tables, with what it can be sorted by.
#[derive(Debug, Default)]
struct Row {
    name: String,
    cells: Vec<String>,
    cpu: Option<u64>,
    memory: Option<u64>,
    gpu: Option<u64>,
    power: Option<u64>,
    temperature: Option<u64>,
    /// Why there is nothing, or not all.
    message: String,
}

type Shown = (Vec<&'static str>, Vec<Row>, Value);

async fn read<T: DeserializeOwned>(session: &Session, what: &str, args: &TopArgs) -> Outcome<(Vec<T>, Value)> {
    let path = with_query(&format!("/muster/v1/usage/{what}"), &query(&args.selection));
    let value = session.rest.get(&path).await?;
    Ok((items(&value), value))
}

async fn agents(session: &Session, args: &TopArgs) -> Outcome<Shown> {
    let (found, value): (Vec<AgentRow>, Value) = read(session, "agents", args).await?;
    let headings = vec!["AGENT", "CPU", "MEMORY", "GPUS", "GPU", "GPU MEMORY", "POWER", "WINDOW"];
    Ok((headings, found.iter().map(agent).collect(), value))
}

fn agent(row: &AgentRow) -> Row {
    let usage = row.usage.clone().unwrap_or_default();
    let gpus = Gpus::of(&usage.gpus);
    let count = if row.usage.is_some() {
        usage.gpus.len().to_string()
    } else {
        dash()
    };
    Row {
        name: row.agent.clone(),
        cells: vec![
            row.agent.clone(),
            cpus(usage.machine.cpu_milli),
            of(usage.machine.memory_bytes, usage.machine.memory_limit_bytes),
            count,
            percent(gpus.utilization),
            of(gpus.used, gpus.total),
            watts(gpus.power),
            usage
                .machine
                .window_ms
                .map_or_else(dash, |ms| format!("{}s", ms.div_ceil(1000))),
        ],
        cpu: usage.machine.cpu_milli,
        memory: usage.machine.memory_bytes,
        gpu: gpus.utilization,
        power: gpus.power,
        temperature: gpus.temperature,
        message: if row.message.is_empty() {
            usage.problems.first().cloned().unwrap_or_default()
        } else {
            row.message.clone()
        },
    }
}

async fn tasks(session: &Session, args: &TopArgs) -> Outcome<Shown> {
    let all = args.selection.all_namespaces;
    let what = if all {
        "tasks".to_owned()
    } else {
        format!("tasks/{}", session.namespace)
    };
    let (found, value): (Vec<TaskRow>, Value) = read(session, &what, args).await?;
    let mut headings = TASK_HEADINGS.to_vec();
    if all {
        headings.insert(0, "NAMESPACE");
    }
    Ok((headings, found.iter().map(|row| task(row, all)).collect(), value))
}

fn task(row: &TaskRow, with_namespace: bool) -> Row {
    let known = row.usage.as_ref();
    let usage = known.map(|known| known.usage.clone()).unwrap_or_default();
    let gpus = Gpus::of(&row.gpus);
    let number = |number: Option<u64>| number.map_or_else(dash, |number| number.to_string());
    let own = [
        row.task.clone(),
        row.agent.clone(),
        cpus(usage.cpu_milli),
        of(usage.memory_bytes, usage.memory_limit_bytes),
        number(usage.pids),
        number(known.map(|known| u64::from(known.attempt.saturating_sub(1)))),
        number(usage.oom_kills),
        number(known.map(|known| known.devices.len() as u64)),
        percent(gpus.utilization),
        of(gpus.used, gpus.total),
    ];
    Row {
        name: row.task.clone(),
        cells: with_namespace
            .then(|| row.namespace.clone())
            .into_iter()
            .chain(own)
            .collect(),
        cpu: usage.cpu_milli,
        memory: usage.memory_bytes,
        gpu: gpus.utilization,
        power: gpus.power,
        temperature: gpus.temperature,
        message: row.message.clone(),
    }
}

async fn gpus(session: &Session, args: &TopArgs) -> Outcome<Shown> {
    let (mut found, mut value): (Vec<AgentRow>, Value) = read(session, "agents", args).await?;
    // Whose they are is told to those who may see tasks.
    if let Ok(tasks) = session.rest.get(&Session::tasks().path(None)).await {
        let tasks: Vec<Task> = items(&tasks);
        for row in &mut found {
            let holds = |task: &&Task| task.phase().holds_resources() && task.agent() == Some(row.agent.as_str());
            let here: Vec<&Task> = tasks.iter().filter(holds).collect();
            for gpu in row.usage.iter_mut().flat_map(|usage| &mut usage.gpus) {
                let its = |task: &&&Task| task.status.iter().any(|status| status.devices.contains(&gpu.uuid));
                let holder = here.iter().find(its);
                gpu.task = holder.map(|task| (task.namespace().to_owned(), task.name().to_owned()));
            }
        }
        value = json!({ "items": found });
    }
    let silent = found.iter().any(|row| row.usage.is_none());
    let known = if silent { devices(session).await? } else { Vec::new() };
    let headings = vec![
        "UUID", "AGENT", "GPU", "MEMORY", "TEMP", "POWER", "ECC", "HEALTH", "TASK",
    ];
    let rows = found.iter().flat_map(|row| match &row.usage {
        Some(usage) => usage
            .gpus
            .iter()
            .map(|one| gpu(&row.agent, one, usage.problems.first()))
            .collect(),
        None => unknown(row, &known),
    });
    Ok((headings, rows.collect(), value))
}

/// The agents, as they last said which GPUs they have.
async fn devices(session: &Session) -> Outcome<Vec<Agent>> {
    let listed = session
        .rest
        .get(&ours("agents", "agent", "Agent", false).path(None))
        .await?;
    Ok(items(&listed))
}

/// The GPUs of an agent that does not answer.
fn unknown(row: &AgentRow, agents: &[Agent]) -> Vec<Row> {
    let agent = agents.iter().filter(|agent| agent.name() == row.agent);
    let devices = agent
        .filter_map(|agent| agent.status.as_ref())
        .flat_map(|status| &status.devices);
    let shown = |uuid: &str| {
        let mut cells = vec![uuid.to_owned(), row.agent.clone()];
        cells.resize(9, dash());
        Row {
            name: uuid.to_owned(),
            cells,
            message: row.message.clone(),
            ..Row::default()
        }
    };
    devices.map(|device| shown(&device.uuid)).collect()
}

fn gpu(agent: &str, gpu: &GpuUsage, problem: Option<&String>) -> Row {
    let reading = &gpu.reading;
    let errors = reading.ecc_volatile;
    let ecc = match (errors.corrected, errors.uncorrected) {
        (None, None) => dash(),
        (corrected, uncorrected) => format!("{}+{}", corrected.unwrap_or(0), uncorrected.unwrap_or(0)),
    };
    let holder = gpu.task.as_ref().map(|(namespace, task)| format!("{namespace}/{task}"));
    let power = reading.power_milliwatts.map(u64::from);
    Row {
        name: gpu.uuid.clone(),
        cells: vec![
            gpu.uuid.clone(),
            agent.to_owned(),
            percent(reading.utilization.map(u64::from)),
            of(reading.memory_used_bytes, reading.memory_total_bytes),
            reading.temperature.map_or_else(dash, |degrees| format!("{degrees}C")),
            match reading.power_limit_milliwatts {
                Some(limit) => format!("{}/{}", watts(power), watts(Some(u64::from(limit)))),
                None => watts(power),
            },
            ecc,
            gpu.health.clone(),
            holder.unwrap_or_else(dash),
        ],
        cpu: None,
        memory: reading.memory_used_bytes,
        gpu: reading.utilization.map(u64::from),
        power,
        temperature: reading.temperature.map(u64::from),
        message: problem
            .filter(|_| reading.temperature.is_none())
            .cloned()
            .unwrap_or_default(),
    }
}

/// Several GPUs together: the mean of what they do, the sum of what they have, the warmest.
#[derive(Debug, Default)]
struct Gpus {
    utilization: Option<u64>,
    used: Option<u64>,
    total: Option<u64>,
    power: Option<u64>,
    temperature: Option<u64>,
}

impl Gpus {
    fn of(gpus: &[GpuUsage]) -> Gpus {
        let sum = |read: &dyn Fn(&GpuUsage) -> Option<u64>| gpus.iter().filter_map(read).reduce(|a, b| a + b);
        let busy: Vec<u64> = gpus
            .iter()
            .filter_map(|gpu| gpu.reading.utilization.map(u64::from))
            .collect();
        Gpus {
            utilization: (!busy.is_empty()).then(|| busy.iter().sum::<u64>() / busy.len() as u64),
            used: sum(&|gpu| gpu.reading.memory_used_bytes),
            total: sum(&|gpu| gpu.reading.memory_total_bytes),
            power: sum(&|gpu| gpu.reading.power_milliwatts.map(u64::from)),
            temperature: gpus
                .iter()
                .filter_map(|gpu| gpu.reading.temperature.map(u64::from))
                .max(),
        }
    }
}

fn dash() -> String {
    "-".to_owned()
}

fn cpus(milli: Option<u64>) -> String {
    milli.map_or_else(dash, |milli| format!("{}.{:03}", milli / 1000, milli % 1000))
}

fn percent(percent: Option<u64>) -> String {
    percent.map_or_else(dash, |percent| format!("{percent}%"))
}

fn watts(milli: Option<u64>) -> String {
    milli.map_or_else(dash, |milli| format!("{}W", (milli + 500) / 1000))
}

/// So much of so much.
fn of(used: Option<u64>, total: Option<u64>) -> String {
    match (used, total) {
        (None, _) => dash(),
        (Some(used), None) => bytes(used),
        (Some(used), Some(total)) => format!("{}/{}", bytes(used), bytes(total)),
    }
}

/// With one digit behind the point, in the largest unit that leaves something before it.
fn bytes(bytes: u64) -> String {
    let units = [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = units.iter().find(|(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || bytes.to_string(),
        |(shift, name)| {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        },
    )
}

/// By name, or the largest first; what is not known comes last.
fn sort(rows: &mut [Row], by: SortBy) {
    let key = |row: &Row| match by {
        SortBy::Name => None,
        SortBy::Cpu => row.cpu,
        SortBy::Memory => row.memory,
        SortBy::Gpu => row.gpu,
        SortBy::Power => row.power,
        SortBy::Temperature => row.temperature,
    };
    rows.sort_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.cells.cmp(&b.cells)));
}

/// The message has a column only when there is one.
fn render(headings: &[&str], rows: Vec<Row>, with_headings: bool) -> String {
    let said = rows.iter().any(|row| !row.message.is_empty());
    let headings = headings.iter().copied().chain(said.then_some("MESSAGE"));
    let headings: Vec<String> = headings.map(str::to_owned).collect();
    let cells = |mut row: Row| {
        if said {
            row.cells.push(row.message);
        }
        row.cells
    };
    table::align(&headings, rows.into_iter().map(cells).collect(), with_headings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<AgentRow> {
        serde_json::from_value(json!([
            {"agent": "a1", "usage": {
                "machine": {"cpuMilli": 1500, "windowMs": 10_000, "memoryBytes": 3_221_225_472_u64, "memoryLimitBytes": 8_589_934_592_u64},
                "gpus": [
                    {"uuid": "GPU-a", "model": "H100", "health": "Healthy", "temperature": 64, "utilization": 98,
                     "powerMilliwatts": 672_500, "powerLimitMilliwatts": 700_000, "memoryUsedBytes": 76_235_669_504_u64,
                     "memoryTotalBytes": 85_520_809_984_u64, "eccVolatile": {"corrected": 2, "uncorrected": 0}, "task": ["ml", "train"]},
                    {"uuid": "GPU-b", "model": "H100", "health": "Cordoned", "temperature": 30, "utilization": 0},
                ],
            }},
            {"agent": "a2", "message": "agent a2 at 10.0.0.2:7444 does not answer within 3s"},
        ]))
        .expect("rows")
    }

    #[test]
    fn an_agent_that_does_not_answer_has_a_row_that_says_why() {
        let shown = rows().iter().map(agent).collect();
        let headings = ["AGENT", "CPU", "MEMORY", "GPUS", "GPU", "GPU MEMORY", "POWER", "WINDOW"];
        insta::assert_snapshot!(render(&headings, shown, true), @r"
        AGENT   CPU     MEMORY        GPUS   GPU   GPU MEMORY      POWER   WINDOW   MESSAGE
        a1      1.500   3.0Gi/8.0Gi   2      49%   71.0Gi/79.6Gi   673W    10s
        a2      -       -             -      -     -               -       -        agent a2 at 10.0.0.2:7444 does not answer within 3s
        ");
    }

    #[test]
    fn gpus_are_sorted_by_what_is_asked_for_with_the_unknown_last() {
        let found = rows();
        let usage = found[0].usage.as_ref().expect("it answers");
        let mut shown: Vec<Row> = usage.gpus.iter().map(|one| gpu("a1", one, None)).collect();
        shown.push(Row {
            cells: vec!["GPU-0".to_owned(); 9],
            ..Row::default()
        });
        sort(&mut shown, SortBy::Temperature);
        let headings = [
            "UUID", "AGENT", "GPU", "MEMORY", "TEMP", "POWER", "ECC", "HEALTH", "TASK",
        ];
        let order: Vec<&str> = shown.iter().map(|row| row.cells[0].as_str()).collect();
        assert_eq!(order, ["GPU-a", "GPU-b", "GPU-0"]);
        shown.truncate(2);
        insta::assert_snapshot!(render(&headings, shown, true), @r"
        UUID    AGENT   GPU   MEMORY          TEMP   POWER       ECC   HEALTH     TASK
        GPU-a   a1      98%   71.0Gi/79.6Gi   64C    673W/700W   2+0   Healthy    ml/train
        GPU-b   a1      0%    -               30C    -           -     Cordoned   -
        ");
    }

    #[test]
    fn tasks_are_shown_with_what_they_use_or_why_not() {
        let found: Vec<TaskRow> = serde_json::from_value(json!([
            {"namespace": "ml", "task": "train", "agent": "a1", "usage": {
                "namespace": "ml", "task": "train", "attempt": 3, "devices": ["GPU-a"], "cpuMilli": 250, "memoryBytes": 1_048_576,
                "pids": 7, "oomKills": 1}},
            {"namespace": "ml", "task": "web", "agent": "a2", "message": "agent a2 has not been heard from"},
        ]))
        .expect("rows");
        let shown = found.iter().map(|row| task(row, false)).collect();
        insta::assert_snapshot!(render(&TASK_HEADINGS, shown, true), @r"
        TASK    AGENT   CPU     MEMORY   PIDS   RESTARTS   OOMS   GPUS   GPU   GPU MEMORY   MESSAGE
        train   a1      0.250   1.0Mi    7      2          1      1      -     -
        web     a2      -       -        -      -          -      -      -     -            agent a2 has not been heard from
        ");
    }

    #[test]
    fn bytes_have_one_digit_behind_the_point() {
        for (number, text) in [(5, "5"), (1 << 10, "1.0Ki"), (1_600 << 20, "1.5Gi"), (3 << 40, "3.0Ti")] {
            assert_eq!(bytes(number), text);
        }
    }
}
