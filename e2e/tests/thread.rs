//! The thread from `mctl apply` to a process and back, as a person would follow it.

use anyhow::Result;
use muster_e2e::Cluster;

const HELLO: &str = r#"
apiVersion: muster.dev/v1
kind: Task
metadata: {name: hello}
spec:
  command: ["sh", "-c", "echo hello from $MUSTER_TASK"]
  resources: {cpus: "0.1", memory: 32Mi}
"#;

fn task(name: &str, command: &str, more: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec:\n  command: [sh, -c, '{command}']\n  resources: {{cpus: 0.1, memory: 32Mi}}\n{more}"
    )
}

#[test]
fn a_task_goes_through_an_offer_to_a_finished_process() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    assert_eq!(
        cluster.mctl_with(&["apply", "-f", "-"], HELLO).ok(),
        "task.muster.dev/hello created\n"
    );
    cluster.wait_phase("hello", "Finished")?;
    assert_eq!(cluster.mctl(&["logs", "hello"]).ok(), "hello from hello\n");
    assert_eq!(cluster.field("hello", ".status.exitCode"), "0");
    assert_eq!(cluster.field("hello", ".status.reason"), "Completed");
    assert!(
        !cluster.field("hello", ".status.offer").is_empty(),
        "the offer that it came from is remembered"
    );
    assert_eq!(
        cluster.field("hello", ".status.conditions[?(@.type==\"Ready\")].status"),
        "True"
    );

    assert_eq!(
        cluster.mctl_with(&["apply", "-f", "-"], HELLO).ok(),
        "task.muster.dev/hello unchanged\n"
    );
    let described = cluster.mctl(&["describe", "task", "hello"]).ok();
    assert!(
        described.contains("Finished") && described.contains("Events"),
        "{described}"
    );
    assert_eq!(
        cluster.mctl(&["delete", "task", "hello"]).ok(),
        "task.muster.dev/hello deleted\n"
    );
    assert!(cluster.mctl(&["get", "task", "hello"]).stderr.contains("not found"));
    Ok(())
}

#[test]
fn the_exit_code_of_run_is_that_of_the_task() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let ran = cluster.mctl(&[
        "run",
        "seven",
        "--rm",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.stdout.contains("out\n"), "{ran:?}");
    cluster.wait_until("the task to be removed", || {
        cluster.mctl(&["get", "task", "seven"]).code != 0
    })?;
    Ok(())
}

#[test]
fn ends_are_told_apart() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifests = [
        task("fails", "exit 3", ""),
        task("hungry", "tail /dev/zero", ""),
        task("signal", "kill -USR1 $$", ""),
        task("late", "sleep 1000", "  deadline: 1s\n"),
        task("retry", "test $MUSTER_ATTEMPT = 2", "  restartPolicy: OnFailure\n"),
    ];
    cluster
        .mctl_with(&["apply", "-f", "-"], &manifests.join("\n---\n"))
        .ok();
    for (name, phase, reason) in [
        ("fails", "Failed", "NonZeroExit"),
        ("hungry", "Failed", "OutOfMemory"),
        ("signal", "Failed", "Signaled"),
        ("late", "Failed", "DeadlineExceeded"),
        ("retry", "Finished", "Completed"),
    ] {
        cluster.wait_phase(name, phase)?;
        assert_eq!(cluster.field(name, ".status.reason"), reason, "{name}");
    }
    assert_eq!(cluster.field("fails", ".status.exitCode"), "3");
    assert_eq!(cluster.field("retry", ".status.attempts[1].number"), "2");
    Ok(())
}

#[test]
fn a_task_is_stopped_with_its_grace_and_deleted_with_its_processes() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifest = task(
        "stubborn",
        "trap \"\" TERM; echo up; while true; do sleep 0.1; done",
        "  kill: {gracePeriod: 1s}\n",
    );
    cluster.mctl_with(&["apply", "-f", "-"], &manifest).ok();
    cluster.wait_phase("stubborn", "Running")?;
    cluster.mctl(&["delete", "task", "stubborn"]).ok();
    assert!(cluster.mctl(&["get", "task", "stubborn"]).stderr.contains("not found"));
    Ok(())
}

#[test]
fn what_fits_nowhere_says_so_with_the_arithmetic() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifest = "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {name: huge}\nspec:\n  command: [true]\n  resources: {cpus: 5000, memory: 32Mi}\n"
        .replace("[true]", "[\"true\"]");
    cluster.mctl_with(&["apply", "-f", "-"], &manifest).ok();
    cluster.wait_until("the task to be stalled", || {
        cluster.field("huge", ".status.reason") == "ExceedsEveryAgent"
    })?;
    assert_eq!(cluster.field("huge", ".status.phase"), "Pending");
    let message = cluster.field("huge", ".status.message");
    assert!(message.contains("5000"), "{message}");
    let why = cluster.mctl(&["why", "huge"]);
    assert_eq!(why.code, 3, "{why:?}");
    assert!(why.stdout.contains("5000"), "{why:?}");
    Ok(())
}

#[test]
fn gpus_are_given_out_whole_and_once() -> Result<()> {
    let cluster = Cluster::start(&["--gpus", "sim:2xH100"])?;
    let gpu =
        |name: &str| task(name, "echo $MUSTER_GPUS; sleep 1000", "").replace("memory: 32Mi", "memory: 32Mi, gpus: 1");
    cluster
        .mctl_with(
            &["apply", "-f", "-"],
            &[gpu("one"), gpu("two"), gpu("three")].join("\n---\n"),
        )
        .ok();
    let devices = |task: &str| cluster.field(task, ".status.devices[0]");
    let running = || {
        ["one", "two", "three"]
            .into_iter()
            .filter(|task| !devices(task).is_empty())
            .count()
    };
    cluster.wait_until("two of three to be placed", || running() == 2)?;
    let waiting = ["one", "two", "three"]
        .into_iter()
        .find(|task| devices(task).is_empty())
        .expect("one waits");
    cluster.wait_until("the third to say why", || {
        cluster.field(waiting, ".status.reason") == "WaitingForResources"
    })?;
    let given: Vec<String> = ["one", "two", "three"]
        .map(devices)
        .into_iter()
        .filter(|uuid| !uuid.is_empty())
        .collect();
    assert_ne!(given[0], given[1], "a device is given to one task only");
    Ok(())
}

#[test]
fn logs_follow_a_running_task() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let manifest = task("talker", "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done", "");
    cluster.mctl_with(&["apply", "-f", "-"], &manifest).ok();
    let logs = cluster.mctl(&["logs", "-f", "talker"]).ok();
    assert_eq!(logs, "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(
        cluster.mctl(&["logs", "--tail", "2", "talker"]).ok(),
        "line 4\nline 5\n"
    );
    Ok(())
}
