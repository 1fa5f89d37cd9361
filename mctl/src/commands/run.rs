//! `mctl run`: a command as a task, with its output and its exit code.

use std::time::Duration;

use http::Method;
use muster_api::task_state::Phase;
use muster_api::v1::Task;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{DryRun, RunArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::observe::Observer;
use crate::output;
use crate::rest::{JSON, Payload, with_query};
use crate::session::{Session, Target, Terminal};

use super::{delete, logs};

/// The end of a process by Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs the command.
pub async fn run(session: &Session, args: RunArgs, terminal: &mut Terminal) -> Outcome {
    let task = task(&args, &session.namespace)?;
    let format = match args.output.as_deref() {
        None => None,
        Some(format @ ("yaml" | "json" | "name")) => Some(format),
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml, json and name"))),
    };
    if args.dry_run == DryRun::Client {
        print(&task, format.unwrap_or("yaml"), terminal)?;
        return Ok(Exit::Done);
    }
    let resource = Session::tasks();
    let mut parameters = vec![("fieldManager", "mctl-run"), ("fieldValidation", "Strict")];
    if args.dry_run == DryRun::Server {
        parameters.push(("dryRun", "All"));
    }
    let path = with_query(&resource.path(Some(&session.namespace)), &parameters);
    let created = session
        .rest
        .call(Method::POST, &path, JSON, Some(Payload::json(&task)))
        .await
        .map_err(|error| match error.code() {
            409 => Failure::new(format!(
                "{error}\nchoose another name, or delete it first: mctl delete task {}",
                args.name
            )),
            404 => Failure::new(format!("{error}\ncreate it first: a manifest of kind Namespace")),
            _ => error.into(),
        })?;
    created
        .warnings
        .iter()
        .for_each(|warning| terminal.note(format!("Warning: {warning}")));
    if args.dry_run == DryRun::Server || args.detach {
        match format {
            Some(format) => print(&created.value, format, terminal)?,
            None if args.detach => terminal.line(format!("task.muster.dev/{} created", args.name))?,
            None => terminal.line(format!("task.muster.dev/{} created (server dry run)", args.name))?,
        }
        return Ok(Exit::Done);
    }
    let ended = attend(session, &args.name, terminal).await;
    if args.rm
        && let Err(failure) = remove(session, &args.name, &created.value["metadata"]["uid"]).await
    {
        terminal.note(format!("task/{} could not be deleted: {failure}", args.name));
    }
    ended
}

/// How long a task that has ended may take to be deleted.
const REMOVE_MAX: Duration = Duration::from_secs(30);

/// Deletes the task that was run, and waits until its name is free again.
async fn remove(session: &Session, name: &str, uid: &Value) -> Outcome<()> {
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "preconditions": {"uid": uid}});
    let target = Target {
        resource: Session::tasks(),
        namespace: session.namespace.clone(),
        name: Some(name.to_owned()),
    };
    let path = target.resource.object_path(&session.namespace, name);
    match session
        .rest
        .call(Method::DELETE, &path, JSON, Some(Payload::json(&options)))
        .await
    {
        Ok(_) => delete::wait_gone(session, &[(target, uid.clone())], Some(REMOVE_MAX)).await,
        // That it is not there any more is as good as deleting it.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn print(task: &Value, format: &str, terminal: &mut Terminal) -> Outcome<()> {
    terminal.text(match format {
        "json" => output::pretty(task),
        "name" => format!(
            "task.muster.dev/{}\n",
            task["metadata"]["name"].as_str().unwrap_or_default()
        ),
        _ => output::yaml(task),
    })
}

/// Shows the output until the task has ended. The first Ctrl-C asks the task to end, the second leaves it.
async fn attend(session: &Session, name: &str, terminal: &mut Terminal) -> Outcome {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut observer = Observer::new(&session.rest, &Session::tasks(), &session.namespace, name);
    let options = logs::Options {
        follow: true,
        ..Default::default()
    };
    let interrupted;
    {
        let followed = logs::follow(session, name, &options, &mut observer, terminal);
        tokio::pin!(followed);
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                _ = interrupts.recv() => {}
                _ = terminations.recv() => {}
                task = &mut followed => return end(&task?),
            }
            if asked {
                interrupted = name;
                break;
            }
            asked = true;
            let patch = json!({"spec": {"desired": "Killed"}});
            let path = Session::tasks().object_path(&session.namespace, name);
            session
                .rest
                .call(Method::PATCH, &path, JSON, Some(Payload::merge_patch(&patch)))
                .await?;
        }
    }
    terminal.note(format!(
        "task/{interrupted} is still being stopped; see `mctl get task {interrupted} -w`"
    ));
    Ok(Exit::OfTask(INTERRUPTED))
}

/// How a task that has ended ends the command.
fn end(task: &Value) -> Outcome {
    let status = &task["status"];
    let message = status["message"].as_str().unwrap_or_default();
    let last = status["attempts"].as_array().and_then(|attempts| attempts.last());
    let killed_by = last
        .and_then(|attempt| attempt["signal"].as_u64())
        .and_then(|signal| u8::try_from(signal).ok());
    let code = status["exitCode"].as_u64().and_then(|code| u8::try_from(code).ok());
    let failed = |exit: Exit| {
        let more = if message.is_empty() {
            String::new()
        } else {
            format!(": {message}")
        };
        Failure::with(exit, format!("{}{more}", logs::state(task)))
    };
    match (logs::phase(task), code, killed_by) {
        (Phase::Finished, _, _) => Ok(Exit::Done),
        // The exit code says it all, as with a command that runs here.
        (Phase::Failed, Some(code), _) if code != 0 && status["reason"] == "NonZeroExit" => Ok(Exit::OfTask(code)),
        (Phase::Killed, _, _) => Err(failed(Exit::OfTask(INTERRUPTED))),
        (_, Some(code), _) if code != 0 => Err(failed(Exit::OfTask(code))),
        (_, _, Some(signal)) => Err(failed(Exit::OfTask(128_u8.saturating_add(signal)))),
        _ => Err(failed(Exit::TaskFailed)),
    }
}

/// The task that the flags describe, checked by the very rules of the server.
fn task(args: &RunArgs, namespace: &str) -> Outcome<Value> {
    let mut resources = Map::new();
    resources.insert("cpus".to_owned(), json!(args.cpus));
    resources.insert("memory".to_owned(), json!(args.memory));
    if let Some(disk) = &args.disk {
        resources.insert("disk".to_owned(), json!(disk));
    }
    if let Some(gpus) = &args.gpus {
        resources.insert("gpus".to_owned(), json!(gpus));
    }
    if let Some(ports) = args.ports {
        resources.insert("ports".to_owned(), json!(ports));
    }
    let mut spec = json!({"resources": resources, "restartPolicy": args.restart});
    if !args.command.is_empty() {
        spec["command"] = json!(args.command);
    }
    if let Some(image) = &args.image {
        spec["image"] = json!(image);
    }
    if let Some(policy) = &args.image_pull_policy {
        spec["imagePullPolicy"] = json!(policy);
    }
    if let Some(role) = &args.role {
        spec["role"] = json!(role);
    }
    if let Some(model) = &args.gpu_model {
        spec["gpu"] = json!({"model": model});
    }
    if let Some(deadline) = &args.deadline {
        spec["deadline"] = json!(deadline);
    }
    if !args.env.is_empty() {
        let pairs = args.env.iter().map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok(json!({"name": name, "value": value})),
            None => Err(Failure::new(format!("--env {pair}: write NAME=VALUE"))),
        });
        spec["env"] = Value::Array(pairs.collect::<Result<_, _>>()?);
    }
    let mut metadata = json!({"name": args.name, "namespace": namespace});
    if let Some(labels) = &args.labels {
        let pairs = labels.split(',').map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), Value::String(value.to_owned()))),
            None => Err(Failure::new(format!("--labels {pair}: write KEY=VALUE,KEY=VALUE"))),
        });
        metadata["labels"] = Value::Object(pairs.collect::<Result<_, _>>()?);
    }
    let object =
        json!({"apiVersion": muster_api::names::API_VERSION, "kind": "Task", "metadata": metadata, "spec": spec});
    let typed = serde_path_to_error::deserialize::<_, Task>(&object);
    let typed =
        typed.map_err(|error| Failure::new(format!("{}: {}", flag(&error.path().to_string()), error.inner())))?;
    let wrong = typed.validate();
    if wrong.is_empty() {
        return Ok(object);
    }
    let lines: Vec<String> = wrong
        .iter()
        .map(|violation| format!("{}: {}", flag(&violation.field), violation.message))
        .collect();
    Err(Failure::new(lines.join("\n")))
}

/// The flag that sets a field.
fn flag(path: &str) -> String {
    let flag = match path {
        "metadata.name" => "NAME",
        "spec.gpu.model" => "--gpu-model",
        "spec.restartPolicy" => "--restart",
        "spec.role" => "--role",
        "spec.deadline" => "--deadline",
        "spec.command" => "COMMAND",
        "spec.image" => "--image",
        "spec.imagePullPolicy" => "--image-pull-policy",
        _ if path.starts_with("spec.env") => "--env",
        _ => match path.strip_prefix("spec.resources.") {
            Some(resource) => return format!("--{resource}"),
            None => path,
        },
    };
    flag.to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> RunArgs {
        match Cli::try_parse_from(line.split(' ')).expect(line).command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_task() {
        let args =
            parse("mctl run a --gpus 2 --gpu-model H100 -e A=b=c --restart OnFailure --ports 1 -l x=y -- sh -c true");
        let task = task(&args, "ml").expect("valid");
        assert_eq!(
            task["spec"]["resources"],
            json!({"cpus": "0.1", "memory": "64Mi", "gpus": "2", "ports": 1})
        );
        assert_eq!(task["spec"]["env"], json!([{"name": "A", "value": "b=c"}]));
        assert_eq!(task["spec"]["command"], json!(["sh", "-c", "true"]));
        assert_eq!(
            task["metadata"],
            json!({"name": "a", "namespace": "ml", "labels": {"x": "y"}})
        );
    }

    #[test]
    fn an_image_may_say_what_to_run() {
        let spec = |line: &str| task(&parse(line), "ml").expect(line)["spec"].clone();
        let quiet = spec("mctl run a --image busybox:1");
        assert_eq!((&quiet["image"], quiet.get("command")), (&json!("busybox:1"), None));
        let told = spec("mctl run a --image busybox:1 -- echo x");
        assert_eq!(told["command"], json!(["echo", "x"]));
        assert!(
            Cli::try_parse_from(["mctl", "run", "a"]).is_err(),
            "neither an image nor a command"
        );
    }

    #[test]
    fn mistakes_name_their_flags() {
        let mistake = |line: &str| task(&parse(line), "ml").expect_err(line).to_string();
        assert!(mistake("mctl run a --cpus two -- x").starts_with("--cpus: `two` is not a number"));
        assert!(mistake("mctl run a --gpus 0.5 -- x").starts_with("--gpus: Invalid value"));
        assert!(mistake("mctl run A -- x").starts_with("NAME: Invalid value"));
        assert!(mistake("mctl run a --restart always -- x").starts_with("--restart: unknown variant"));
        assert!(mistake("mctl run a --image ../b").starts_with("--image: Invalid value"));
        assert!(mistake("mctl run a -e A -- x").starts_with("--env A: write NAME=VALUE"));
    }

    #[test]
    fn the_command_ends_as_the_task_did() {
        let exit = |status: Value| match end(&json!({"metadata": {"name": "a"}, "status": status})) {
            Ok(exit) => (exit.code(), String::new()),
            Err(failure) => (failure.exit().code(), failure.to_string()),
        };
        assert_eq!(exit(json!({"phase": "Finished", "exitCode": 0})), (0, String::new()));
        assert_eq!(
            exit(json!({"phase": "Failed", "exitCode": 7, "reason": "NonZeroExit"})),
            (7, String::new())
        );
        let (code, text) =
            exit(json!({"phase": "Failed", "reason": "OutOfMemory", "message": "m", "attempts": [{"signal": 9}]}));
        assert_eq!((code, text.as_str()), (137, "task/a is Failed (OutOfMemory): m"));
        assert_eq!(exit(json!({"phase": "Error", "reason": "InvalidTask"})).0, 5);
        assert_eq!(exit(json!({"phase": "Killed", "reason": "KillRequested"})).0, 130);
    }
}
