//! What tasks take from Secrets, ConfigMaps and directories: by whole agents, on a directory in memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use muster_agentd::Config;
use muster_agentd::volumes::Places;
use muster_api::task_state::Phase;
use muster_api::v1::{
    EmptyDir, EnvSource, EnvVar, KeyRef, RestartPolicy, SharedDir, SourceFiles, TaskReason, TaskSpec, Volume,
};
use muster_client::Patch;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Running, until};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// A machine's directories.
fn places(root: &Path) -> Places {
    Places {
        memory: Some(root.join("memory")),
        disk: Some(root.join("disk")),
        allowed: Vec::new(),
    }
}

/// Runs agent `a1` with directories.
async fn joined(cluster: &Cluster, machine: &muster_runtime::FakeRuntime, incarnation: u64, root: &Path) -> Running {
    let before = cluster.session().await;
    let config = Config {
        places: places(root),
        ..cluster.config(incarnation)
    };
    let running = cluster.run(machine, config);
    until("the agent joins", async || cluster.session().await > before).await;
    running
}

fn takes_a_password(spec: &mut TaskSpec) {
    spec.env = vec![EnvVar {
        value_from: Some(EnvSource {
            secret_key_ref: Some(KeyRef {
                name: "db".to_owned(),
                key: "password".to_owned(),
                optional: false,
            }),
            ..EnvSource::default()
        }),
        ..EnvVar::of("PASSWORD", "")
    }];
    spec.volumes = vec![
        Volume {
            mount_path: "/db".to_owned(),
            secret: Some(SourceFiles {
                name: "db".to_owned(),
                ..SourceFiles::default()
            }),
            ..Volume::default()
        },
        Volume {
            mount_path: "/scratch".to_owned(),
            empty_dir: Some(EmptyDir::default()),
            ..Volume::default()
        },
        Volume {
            mount_path: "/cache".to_owned(),
            shared: Some(SharedDir {
                name: "cache".to_owned(),
            }),
            ..Volume::default()
        },
    ];
}

async fn secret(cluster: &Cluster, password: &str) {
    let secret = Patch::Apply {
        manager: "test".to_owned(),
        object: json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"password": password},
        }),
    };
    let written = cluster.admin.patch_at::<Value>(&format!("{SECRETS}/db"), &secret).await;
    written.expect("an administrator may");
}

/// Whether any file below holds the text.
fn holds(root: &Path, text: &str) -> bool {
    let found = Command::new("grep").args(["-rlaF", text]).arg(root).output();
    !found.expect("grep").stdout.is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_task_waits_for_its_secret_gets_it_in_memory_and_leaves_nothing() {
    let root = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = joined(&cluster, &machine, 1, root.path()).await;
    cluster.launch(&["sleep 30"], takes_a_password).await;
    until("it says what it waits for", async || {
        let status = cluster
            .task("t0")
            .await
            .and_then(|task| task.status)
            .unwrap_or_default();
        status.reason == Some(TaskReason::ConfigMissing) && status.message.contains("Secret db")
    })
    .await;
    secret(&cluster, "s3cret").await;
    let task = cluster.reaches("t0", Phase::Running).await;
    let uid = task.metadata.uid.clone().expect("stored");
    let at = root.path().join("memory").join(&uid).join("1");
    let file = |path: &str| fs::read_to_string(at.join(path)).expect("it was made");
    assert_eq!(file("0/password"), "s3cret");
    assert_eq!(file("variables/variables"), "PASSWORD=s3cret\0");
    let disk = root.path().join("disk");
    assert!(disk.join("volumes").join(&uid).join("1").is_dir());
    assert!(disk.join("shared/default/cache").is_dir());
    assert!(!holds(&disk, "s3cret"));
    let shown = serde_json::to_string(&task).expect("JSON");
    assert!(!shown.contains("s3cret"), "{shown}");
    cluster.reaches("t0", Phase::Finished).await;
    until("nothing is left", async || {
        !at.exists() && !disk.join("volumes").join(&uid).exists()
    })
    .await;
    assert!(disk.join("shared/default/cache").is_dir(), "it outlives tasks");
}

#[tokio::test(start_paused = true)]
async fn each_attempt_gets_what_the_secret_holds_then() {
    let root = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = joined(&cluster, &machine, 1, root.path()).await;
    secret(&cluster, "first").await;
    cluster
        .launch(&["sleep 30"], |spec| {
            takes_a_password(spec);
            spec.restart_policy = RestartPolicy::Always;
        })
        .await;
    let uid = cluster
        .reaches("t0", Phase::Running)
        .await
        .metadata
        .uid
        .expect("stored");
    let password = |attempt: u32| {
        let path = root.path().join("memory").join(&uid).join(attempt.to_string());
        fs::read_to_string(path.join("0/password")).ok()
    };
    assert_eq!(password(1).as_deref(), Some("first"));
    secret(&cluster, "second").await;
    until("it runs again", async || password(2).is_some()).await;
    assert_eq!(password(2).as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_agent_has_left_is_taken_away_but_not_what_is_used() {
    let root = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = joined(&cluster, &machine, 1, root.path()).await;
    secret(&cluster, "s3cret").await;
    cluster.launch(&["sleep 3600", "sleep 60"], takes_a_password).await;
    let mut uids = Vec::new();
    for task in ["t0", "t1"] {
        uids.push(
            cluster
                .reaches(task, Phase::Running)
                .await
                .metadata
                .uid
                .expect("stored"),
        );
    }
    first.crash().await;
    tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    let _second = joined(&cluster, &machine, 2, root.path()).await;
    let at = |uid: &str| root.path().join("memory").join(uid);
    until("the ended one has nothing", async || !at(&uids[1]).exists()).await;
    assert!(at(&uids[0]).join("1/0/password").exists());
}

#[tokio::test(start_paused = true)]
async fn an_agent_reads_what_its_tasks_name_and_no_other() {
    let root = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = joined(&cluster, &machine, 1, root.path()).await;
    secret(&cluster, "s3cret").await;
    let agent = cluster.client("a1");
    let read = async |path: &str| {
        let call = muster_client::Call::new(http::Method::GET, path.to_owned(), "a secret");
        agent.call::<Value>(call).await.is_ok()
    };
    let path = format!("{SECRETS}/db");
    assert!(!read(&path).await, "no task names it");
    cluster.launch(&["sleep 30"], takes_a_password).await;
    cluster.reaches("t0", Phase::Running).await;
    assert!(read(&path).await);
    assert!(!read(SECRETS).await && !read("/api/v1/secrets").await, "never a list");
    cluster.reaches("t0", Phase::Finished).await;
    assert!(!read(&path).await, "it has ended");
}
