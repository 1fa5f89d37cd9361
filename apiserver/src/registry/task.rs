//! Tasks: who may move them from phase to phase, and what stays fixed once they are bound.

use muster_api::names;
use muster_api::task_state::{Phase, Writer};
use muster_api::v1::{Task, TaskReason, TaskStatus, conditions};
use muster_api::validation::{FieldPath, Violation, Violations};
use muster_api::{Time, Timestamp};
use serde_json::{Value, json};

use super::{Context, Strategy, agent, fence, metadata};
use crate::error::{ApiError, Result};
use crate::schema::typed;

/// Attempts that a status keeps.
const ATTEMPTS_MAX: usize = 10;

pub(super) struct Tasks;

impl Strategy for Tasks {
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) -> Result<()> {
        default_role(object);
        if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
            // It says that an agent holds the task, which none does yet.
            finalizers.retain(|finalizer| finalizer != names::FINALIZER_AGENT);
        }
        let status = TaskStatus {
            reason: Some(TaskReason::AwaitingOffer),
            ..TaskStatus::default()
        };
        set_status(object, status, context.now);
        Ok(())
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        default_role(object);
        let name = metadata::text(old, "name");
        if let Some(agent) = context.user.agent_name() {
            check_bound(context, name, agent, old)?;
            let mut allowed = old.clone();
            match object["metadata"].get("finalizers") {
                Some(finalizers) => allowed["metadata"]["finalizers"] = finalizers.clone(),
                None => {
                    allowed["metadata"]
                        .as_object_mut()
                        .and_then(|metadata| metadata.remove("finalizers"));
                }
            }
            if *object != allowed {
                let resource = &context.state.resources.muster("tasks").resource;
                let why = "an agent may change only the status and the finalizers of its tasks";
                return Err(ApiError::forbidden_object(resource, name, why));
            }
        }
        let ordinary =
            !context.user.is_master() && !context.user.is_controllers() && context.user.agent_name().is_none();
        let held = |object: &Value| metadata::finalizers(object).contains(names::FINALIZER_AGENT);
        if ordinary && held(old) != held(object) {
            let resource = &context.state.resources.muster("tasks").resource;
            let why = format!(
                "the finalizer {} is set when a task is bound, and removed by the agent when nothing of the task is left",
                names::FINALIZER_AGENT
            );
            return Err(ApiError::forbidden_object(resource, name, why));
        }
        Ok(())
    }

    fn prepare_status(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        let name = metadata::text(old, "name").to_owned();
        if let Some(agent) = context.user.agent_name() {
            check_bound(context, &name, agent, old)?;
            agent::keep_beliefs(object, old);
        }
        let resource = &context.state.resources.muster("tasks").resource;
        let invalid = |violations| ApiError::invalid_object(resource, &name, violations);
        let before: Task = typed(old).map_err(|violation| invalid(vec![violation]))?;
        let after: Task = typed(object).map_err(|violation| invalid(vec![violation]))?;
        let before_status = before.status.clone().unwrap_or_default();
        let mut status = after.status.clone().unwrap_or_default();
        check_transition(context, &name, before_status.phase, status.phase)?;
        let violations = binding_violations(&before_status, &status);
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        if status.phase.is_terminal() && status.finished_at.is_none() {
            status.finished_at = Some(Time(context.now.round(jiff::Unit::Second).unwrap_or(context.now)));
            object["status"]["finishedAt"] = json!(metadata::seconds(context.now));
        }
        status.conditions = before_status.conditions;
        let generation = old["metadata"]["generation"].as_i64();
        object["status"]["conditions"] = json!(conditions(&status, generation, whole_seconds(context.now)));
        Ok(())
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        typed::<Task>(object).map_or_else(|violation| vec![violation], |task| task.validate())
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Violation> {
        match (typed::<Task>(object), typed::<Task>(old)) {
            (Ok(task), Ok(old)) => task.validate_update(&old),
            (Err(violation), _) | (_, Err(violation)) => vec![violation],
        }
    }

    fn touches(&self, old: Option<&Value>, new: Option<&Value>) -> Option<String> {
        let holds = |object: &Value| {
            let phase = serde_json::from_value::<Phase>(object["status"]["phase"].clone());
            phase.is_ok_and(Phase::holds_resources)
        };
        let old = old.filter(|old| holds(old))?;
        let freed = new.is_none_or(|new| !holds(new));
        freed.then(|| old["status"]["agent"].as_str().map(str::to_owned))?
    }

    fn fence(&self, context: &Context<'_>, old: &Value, status: bool) -> Option<(&'static str, String)> {
        if !status {
            return None;
        }
        Some(if context.user.is_controllers() {
            ("a status write of the controllers", fence::controllers_lease())
        } else {
            let agent = old["status"]["agent"].as_str().unwrap_or_default();
            ("a status write of an agent", fence::agent_lease(agent))
        })
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn default_role(object: &mut Value) {
    if object["spec"].is_object() && object["spec"]["role"].is_null() {
        object["spec"]["role"] = json!(metadata::text(object, "namespace"));
    }
}

fn check_bound(context: &Context<'_>, name: &str, agent: &str, task: &Value) -> Result<()> {
    if task["status"]["agent"] == agent {
        return Ok(());
    }
    let resource = &context.state.resources.muster("tasks").resource;
    let why = format!(
        "User \"{}\" may write only the tasks that are bound to it",
        context.user.name
    );
    Err(ApiError::forbidden_object(resource, name, why))
}

fn check_transition(context: &Context<'_>, name: &str, from: Phase, to: Phase) -> Result<()> {
    let user = context.user;
    let writers: &[Writer] = if user.agent_name().is_some() {
        &[Writer::Agent]
    } else if user.is_controllers() {
        &[Writer::Controllers]
    } else {
        &[Writer::Agent, Writer::Controllers]
    };
    if writers.iter().any(|writer| from.may_move(to, *writer)) {
        return Ok(());
    }
    let resource = &context.state.resources.muster("tasks").resource;
    let message = format!(
        "tasks.muster.dev \"{name}\" is {from} and cannot become {to}{}",
        if from.is_terminal() {
            "; a task that has ended stays as it is".to_owned()
        } else {
            format!(" by the word of User \"{}\"", user.name)
        }
    );
    Err(ApiError::invalid_transition(message).about(resource, name))
}

/// What an accepted offer gave a task stays as it was given.
fn binding_violations(before: &TaskStatus, after: &TaskStatus) -> Vec<Violation> {
    let mut violations = Violations::new();
    let path = FieldPath::root("status");
    let changed = [
        ("agent", before.agent != after.agent),
        ("offer", before.offer != after.offer),
        ("binding", before.binding != after.binding),
        ("devices", before.devices != after.devices),
        ("ports", before.ports != after.ports),
    ];
    for (field, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        violations.forbidden(&path.field(field), "it is fixed by the accepted offer");
    }
    if after.attempts.len() > ATTEMPTS_MAX {
        violations.too_many(&path.field("attempts"), after.attempts.len(), ATTEMPTS_MAX);
    }
    violations.into_vec()
}

/// Puts a whole status on a task, with the conditions that follow from it.
pub(crate) fn set_status(object: &mut Value, mut status: TaskStatus, now: Timestamp) {
    let generation = object["metadata"]["generation"].as_i64();
    status.observed_generation = generation;
    status.conditions = conditions(&status, generation, whole_seconds(now));
    object["status"] = json!(status);
}
