//! What is used: by agents and tasks for `mctl top`, as `metrics.k8s.io` for `kubectl top`, and an agent's metrics for Prometheus.
//!
//! All of it is read from the agents when it is asked for ([`crate::usage`]). An agent that does not answer has a row that says why, or, where
//! Kubernetes' kinds have no place for that, no row. Who may see it: `get` of `agents/usage` and of `tasks/usage` (in a namespace, or in all),
//! of `agents/metrics`, and `get` and `list` of `nodes` and `pods` in `metrics.k8s.io`. What must never happen here: a task told of to
//! somebody who may see its agent only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use muster_api::names;
use muster_api::usage::{AgentRow, AgentUsage, GpuUsage, TaskRow, TaskUsage, Usage};
use serde_json::{Value, json};

use super::Call;
use super::answer::{Renderer, json_response, json_value};
use super::list;
use super::path::Target;
use super::resource::catch_up;
use crate::error::{ApiError, Result};
use crate::hub::{Object, Part};
use crate::keys;
use crate::registry::{Kind, View};
use crate::usage;
use crate::views;

/// `GET /muster/v1/usage/agents`, or `/muster/v1/usage/tasks[/NAMESPACE]`; selectors choose among them.
pub(super) async fn rows(call: &Call, what: &str) -> Result<Response> {
    let (plural, namespace) = what.split_once('/').unwrap_or((what, ""));
    if !["agents", "tasks"].contains(&plural) || (plural == "agents" && !namespace.is_empty()) {
        return Err(ApiError::unknown_path());
    }
    let target = Target {
        group: names::GROUP.to_owned(),
        version: names::VERSION.to_owned(),
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
        subresource: "usage".to_owned(),
        ..Target::default()
    };
    call.authorize(&target, "get", "")?;
    let objects = selected(call, call.state.resources.muster(plural), &target).await?;
    let items = if plural == "agents" {
        json!(agent_rows(call, &objects).await)
    } else {
        json!(task_rows(call, &objects).await)
    };
    Ok(json_value(StatusCode::OK, &json!({ "items": items })))
}

async fn selected(call: &Call, kind: &Kind, target: &Target) -> Result<Vec<Arc<Object>>> {
    let filter = list::filter(call, kind, target)?;
    catch_up(call).await?;
    Ok(call.state.hub.list(kind.id, &filter, &Part::default()).objects)
}

async fn agent_rows(call: &Call, agents: &[Arc<Object>]) -> Vec<AgentRow> {
    let names = agents.iter().map(|agent| agent.name().to_owned()).collect();
    let answers = usage::ask(&call.state, names).await;
    let row = |(agent, answer): (String, std::result::Result<AgentUsage, String>)| match answer {
        Ok(usage) => AgentRow {
            agent,
            usage: Some(without_tasks(usage)),
            ..AgentRow::default()
        },
        Err(message) => AgentRow {
            agent,
            message,
            ..AgentRow::default()
        },
    };
    answers.into_iter().map(row).collect()
}

/// Who may see an agent need not see whose tasks it runs.
fn without_tasks(mut usage: AgentUsage) -> AgentUsage {
    usage.tasks.clear();
    usage.gpus.iter_mut().for_each(|gpu| gpu.task = None);
    usage
}

/// What is known of a task that runs: whose it is, and where.
struct Running {
    task: Value,
    agent: String,
}

/// The tasks of these that run.
fn running(tasks: &[Arc<Object>]) -> Vec<Running> {
    let runs = |object: &Arc<Object>| {
        let task = object.json();
        let phase = task["status"]["phase"].as_str()?;
        let agent = task["status"]["agent"].as_str()?.to_owned();
        ["Running", "Killing"]
            .contains(&phase)
            .then_some(Running { task, agent })
    };
    tasks.iter().filter_map(runs).collect()
}

fn text<'a>(task: &'a Value, field: &str) -> &'a str {
    task["metadata"][field].as_str().unwrap_or_default()
}

/// What the agents of these tasks say of them.
async fn ask_for(call: &Call, running: &[Running]) -> BTreeMap<String, std::result::Result<AgentUsage, String>> {
    let agents: BTreeSet<String> = running.iter().map(|one| one.agent.clone()).collect();
    usage::ask(&call.state, agents).await
}

fn of<'a>(usage: &'a AgentUsage, task: &Value) -> Option<&'a TaskUsage> {
    let named = |known: &&TaskUsage| known.namespace == text(task, "namespace") && known.task == text(task, "name");
    usage.tasks.iter().find(named)
}

async fn task_rows(call: &Call, tasks: &[Arc<Object>]) -> Vec<TaskRow> {
    let running = running(tasks);
    let answers = ask_for(call, &running).await;
    let row = |Running { task, agent }: &Running| {
        let mut row = TaskRow {
            namespace: text(task, "namespace").to_owned(),
            task: text(task, "name").to_owned(),
            agent: agent.clone(),
            ..TaskRow::default()
        };
        match answers.get(agent) {
            Some(Ok(usage)) => match of(usage, task) {
                Some(known) => {
                    let its = |gpu: &&GpuUsage| known.devices.contains(&gpu.uuid);
                    row.gpus = usage.gpus.iter().filter(its).cloned().collect();
                    row.usage = Some(known.clone());
                }
                None => {
                    row.message = usage
                        .problems
                        .first()
                        .cloned()
                        .unwrap_or_else(|| "not measured yet".to_owned())
                }
            },
            Some(Err(message)) => row.message.clone_from(message),
            None => "the agent was not asked".clone_into(&mut row.message),
        }
        row
    };
    running.iter().map(row).collect()
}

/// `GET …/agents/NAME/metrics`; who may ask is already settled.
pub(super) async fn metrics(call: &Call, target: &Target) -> Result<Response> {
    catch_up(call).await?;
    let agents = call.state.resources.muster("agents");
    if call
        .state
        .hub
        .get(&keys::object(&agents.stored, "", &target.name))
        .is_none()
    {
        return Err(ApiError::not_found(&agents.resource, &target.name));
    }
    let text = usage::document(&call.state, &target.name, "/metrics").await;
    let mut response = Response::new(Body::from(text.map_err(ApiError::unavailable)?));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// `GET /apis/metrics.k8s.io/v1beta1/…`: of one object, or of all that are selected.
pub(super) async fn view(call: Call, kind: Arc<Kind>, target: Target, verb: &str) -> Result<Response> {
    call.authorize(&target, verb, &target.name)?;
    let renderer = Renderer::new(&call, &kind)?;
    let objects = if verb == "get" {
        catch_up(&call).await?;
        let object = call
            .state
            .hub
            .get(&keys::object(&kind.stored, &target.namespace, &target.name));
        vec![object.ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?]
    } else {
        selected(&call, &kind, &target).await?
    };
    let mut shown = match kind.view {
        View::NodeMetrics => nodes(&call, &objects).await,
        _ => pods(&call, &objects).await,
    };
    let mut out = Vec::new();
    if verb == "get" {
        let (_, shown) = shown
            .pop()
            .ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?;
        renderer.value(shown.map_err(ApiError::unavailable)?, false, true, &mut out);
        return Ok(json_response(StatusCode::OK, out.into()));
    }
    renderer.begin_list(&json!({}), &mut out);
    // What has no numbers has no place in a list of them.
    for (index, value) in shown.into_iter().filter_map(|(_, value)| value.ok()).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        renderer.value(value, true, true, &mut out);
    }
    out.extend_from_slice(b"]}");
    Ok(json_response(StatusCode::OK, out.into()))
}

/// By name; why there is nothing otherwise.
type Shown = Vec<(String, std::result::Result<Value, String>)>;

async fn nodes(call: &Call, agents: &[Arc<Object>]) -> Shown {
    let names = agents.iter().map(|agent| agent.name().to_owned()).collect();
    let mut answers = usage::ask(&call.state, names).await;
    let node = |agent: &Arc<Object>| {
        let name = agent.name().to_owned();
        let answer = answers
            .remove(&name)
            .unwrap_or_else(|| Err("the agent was not asked".to_owned()));
        let shown = answer.and_then(|usage| {
            let (window, resources) = amounts(&usage.machine).ok_or("the machine was not measured yet")?;
            Ok(json!({
                "apiVersion": "metrics.k8s.io/v1beta1",
                "kind": "NodeMetrics",
                "metadata": about(&views::node::of_agent(agent.json())),
                "timestamp": usage.measured_at,
                "window": window,
                "usage": resources,
            }))
        });
        (name, shown)
    };
    agents.iter().map(node).collect()
}

async fn pods(call: &Call, tasks: &[Arc<Object>]) -> Shown {
    let running = running(tasks);
    let answers = ask_for(call, &running).await;
    let pod = |Running { task, agent }: &Running| {
        let answer = answers.get(agent).cloned();
        let answer = answer.unwrap_or_else(|| Err("the agent was not asked".to_owned()));
        let shown = answer.and_then(|usage| {
            let used = of(&usage, task).and_then(|known| amounts(&known.usage));
            let (window, resources) = used.ok_or("the task was not measured yet")?;
            Ok(json!({
                "apiVersion": "metrics.k8s.io/v1beta1",
                "kind": "PodMetrics",
                "metadata": about(task),
                "timestamp": usage.measured_at,
                "window": window,
                "containers": [{"name": views::pod::container_name(task), "usage": resources}],
            }))
        });
        (text(task, "name").to_owned(), shown)
    };
    running.iter().map(pod).collect()
}

/// Whose the numbers are.
fn about(object: &Value) -> Value {
    let fields = ["name", "namespace", "labels", "creationTimestamp"];
    let known = fields.iter().filter(|field| !object["metadata"][**field].is_null());
    known
        .map(|field| ((*field).to_owned(), object["metadata"][*field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The window and the resources, as Kubernetes writes them; `None` while nothing is known.
fn amounts(usage: &Usage) -> Option<(String, Value)> {
    let (cpu, memory) = (usage.cpu_milli?, usage.memory_bytes?);
    let window = format!("{}ms", usage.window_ms.unwrap_or(0));
    Some((
        window,
        json!({"cpu": format!("{cpu}m"), "memory": format!("{}Ki", memory >> 10)}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_kubernetes_does_and_only_when_they_are_known() {
        let usage = Usage {
            cpu_milli: Some(1500),
            window_ms: Some(10_000),
            memory_bytes: Some(3 << 20),
            ..Usage::default()
        };
        let (window, resources) = amounts(&usage).unwrap();
        assert_eq!(
            (window.as_str(), resources),
            ("10000ms", json!({"cpu": "1500m", "memory": "3072Ki"}))
        );
        assert_eq!(
            amounts(&Usage {
                cpu_milli: None,
                ..usage
            }),
            None
        );
    }

    #[test]
    fn who_sees_an_agent_does_not_see_its_tasks() {
        let usage = AgentUsage {
            tasks: vec![TaskUsage::default()],
            gpus: vec![GpuUsage {
                task: Some(("ml".to_owned(), "secret".to_owned())),
                ..GpuUsage::default()
            }],
            ..AgentUsage::default()
        };
        let shown = serde_json::to_string(&without_tasks(usage)).unwrap();
        assert!(!shown.contains("secret") && !shown.contains("tasks"), "{shown}");
    }
}
