//! Unmodified kubectl against the real server over TLS: every command that people use daily, with each version that is found.
//!
//! The `kubectl` on the PATH must be there; others beside it or on the PATH, named `kubectl.SOMETHING`, are found too, and of
//! those the oldest and the newest are used as well. More can be named in `MUSTER_KUBECTL`, separated by colons.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use muster_api::env::SystemEnv;
use muster_apiserver::launch::{self, Options, Running};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Far more than any command takes, even on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clients to test with.
fn clients() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let default = directories
        .iter()
        .map(|directory| directory.join("kubectl"))
        .find(|file| file.is_file());
    let default = default.expect("kubectl is not installed; on Debian run: apt-get install kubernetes-client");
    let beside = default
        .canonicalize()
        .ok()
        .and_then(|file| file.parent().map(Path::to_owned));
    let mut versions = BTreeMap::new();
    for entry in directories
        .into_iter()
        .chain(beside)
        .filter_map(|directory| directory.read_dir().ok())
        .flatten()
        .flatten()
    {
        if let Some(version) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("kubectl."))
        {
            versions.insert(version.to_owned(), entry.path());
        }
    }
    let mut clients = vec![default];
    clients.extend(versions.values().next().cloned());
    clients.extend(versions.values().next_back().cloned());
    let named = std::env::var_os("MUSTER_KUBECTL").unwrap_or_default();
    clients.extend(std::env::split_paths(&named).filter(|file| !file.as_os_str().is_empty()));
    clients.dedup();
    clients
}

/// What a command said.
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

impl Said {
    /// The standard output of a command that must have worked.
    #[track_caller]
    fn fine(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// What was said by a command that must have failed.
    #[track_caller]
    fn refused(self) -> String {
        assert_ne!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out + &self.err
    }
}

/// One client with a namespace of its own.
struct Kubectl {
    program: PathBuf,
    namespace: String,
    home: tempfile::TempDir,
    server: Arc<Server>,
}

struct Server {
    directory: tempfile::TempDir,
    running: Running,
}

impl Kubectl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.server.directory.path().join("kubeconfig"))
            .args(["--namespace", &self.namespace])
            .args(args.iter().map(OsStr::new))
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }

    async fn with_input(&self, args: &[&str], input: &str) -> Said {
        let mut child = self.start(args);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("{} {args:?} hangs", self.program.display()))
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said {
            out: text(output.stdout),
            err: text(output.stderr),
            code: output.status.code(),
        }
    }

    async fn run(&self, args: &[&str]) -> Said {
        self.with_input(args, "").await
    }

    /// The command and its words, separated by spaces, which must work.
    #[track_caller]
    fn ok(&self, line: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let args: Vec<&str> = line.split(' ').collect();
            let said = self.run(&args).await;
            let program = self.program.display();
            assert_eq!(
                said.code,
                Some(0),
                "{caller}: {program} {line}: {}{}",
                said.out,
                said.err
            );
            said.out
        }
    }

    /// Writes a status as the control plane would.
    async fn write_status(&self, task: &str, status: Value) {
        let path = format!("/apis/muster.dev/v1/namespaces/{}/tasks/{task}/status", self.namespace);
        let request = Request::patch(path)
            .header("authorization", format!("Bearer {}", self.server.running.access.token))
            .header("content-type", "application/merge-patch+json")
            .body(Body::from(json!({ "status": status }).to_string()))
            .unwrap();
        let response = self.server.running.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

/// Plays the scenario with each client, each in a namespace of its own.
async fn each(scenario: impl AsyncFn(&Kubectl)) {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let options = Options {
        data_dir: directory.path().to_owned(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        ..Options::default()
    };
    let store = launch::open_store(directory.path(), &SystemEnv).unwrap();
    let running = launch::start(&options, store, Arc::new(SystemEnv), stop.clone())
        .await
        .unwrap();
    let server = Arc::new(Server { directory, running });
    for (number, program) in clients().into_iter().enumerate() {
        let home = tempfile::tempdir().unwrap();
        let kubectl = Kubectl {
            program,
            namespace: format!("team-{number}"),
            home,
            server: server.clone(),
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kubectl.namespace}});
        kubectl
            .with_input(&["create", "-f", "-"], &namespace.to_string())
            .await
            .fine();
        scenario(&kubectl).await;
    }
    let server = Arc::into_inner(server).expect("every client is done");
    stop.cancel();
    tokio::time::timeout(PATIENCE, server.running.stopped())
        .await
        .expect("the server stops");
}

const TASK: &str = r#"
apiVersion: muster.dev/v1
kind: Task
metadata: {name: hello}
spec:
  command: ["sh", "-c", "echo hello"]
  resources: {cpus: "0.5", memory: 64Mi}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_shown_changed_and_deleted() {
    each(async |kubectl| {
        let said = kubectl.with_input(&["create", "-f", "-"], TASK).await.fine();
        assert_eq!(said, "task.muster.dev/hello created\n");
        let again = kubectl.with_input(&["create", "-f", "-"], TASK).await.refused();
        assert!(again.contains("tasks.muster.dev \"hello\" already exists"), "{again}");

        let table = kubectl.ok("get tk").await;
        let titles: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(
            titles,
            [
                "NAME", "PHASE", "REASON", "AGENT", "CPUS", "MEMORY", "GPUS", "EXIT", "AGE"
            ]
        );
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..5], ["hello", "Pending", "AwaitingOffer", "0.5", "64Mi"]);
        let wide = kubectl.ok("get task hello -o wide").await;
        assert!(
            wide.lines().next().unwrap().ends_with("FRAMEWORK   ROLE     MESSAGE"),
            "{wide}"
        );

        assert_eq!(
            kubectl.ok("label task hello team=ml").await,
            "task.muster.dev/hello labeled\n"
        );
        // Some versions say `annotate`.
        assert!(
            kubectl
                .ok("annotate task/hello note=1")
                .await
                .starts_with("task.muster.dev/hello annotate")
        );
        kubectl
            .ok(r#"patch task hello --type=merge -p {"metadata":{"labels":{"a":"1"}}}"#)
            .await;
        kubectl
            .ok(r#"patch task hello --type=json -p [{"op":"add","path":"/metadata/labels/b","value":"2"}]"#)
            .await;
        let labels = kubectl.ok("get tasks --show-labels -l team=ml,a").await;
        assert!(labels.contains("a=1,b=2,team=ml"), "{labels}");
        assert_eq!(
            kubectl
                .ok("get tasks -o name --field-selector status.phase=Running")
                .await,
            ""
        );

        let mut edit = kubectl.command(&["edit", "task", "hello"]);
        let edited = edit
            .env("KUBE_EDITOR", "sed -i s/team:.ml/team:\\ other/")
            .output()
            .await
            .unwrap();
        assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
        assert_eq!(
            kubectl.ok("get tasks -l team=other -o name").await,
            "task.muster.dev/hello\n"
        );

        let description = kubectl.ok("describe task hello").await;
        for part in ["Name:         hello", "note: 1", "Phase:", "AwaitingOffer", "Events:"] {
            assert!(description.contains(part), "{part}: {description}");
        }
        assert_eq!(
            kubectl.ok("delete task hello").await,
            "task.muster.dev \"hello\" deleted\n"
        );
        let gone = kubectl.run(&["get", "task", "hello"]).await.refused();
        assert!(
            gone.contains("(NotFound): tasks.muster.dev \"hello\" not found"),
            "{gone}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_output_works() {
    each(async |kubectl| {
        kubectl.with_input(&["create", "-f", "-"], TASK).await.fine();
        assert_eq!(kubectl.ok("get task hello -o name").await, "task.muster.dev/hello\n");
        assert_eq!(
            kubectl.ok("get task hello -o jsonpath={.spec.resources.memory}").await,
            "64Mi"
        );
        let json: Value = serde_json::from_str(&kubectl.ok("get task hello -o json").await).unwrap();
        assert_eq!(json["kind"], "Task");
        assert_eq!(json["spec"]["restartPolicy"], "Never", "defaults are shown");
        let yaml: Value = serde_yaml::from_str(&kubectl.ok("get task hello -o yaml").await).unwrap();
        assert_eq!(yaml, json);
        let list: Value = serde_json::from_str(&kubectl.ok("get tasks -o json").await).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 1);
        let custom = kubectl
            .ok("get tasks -o custom-columns=N:.metadata.name,P:.status.phase --no-headers")
            .await;
        assert_eq!(custom.split_whitespace().collect::<Vec<_>>(), ["hello", "Pending"]);
        let sorted = kubectl.ok("get tasks --sort-by=.metadata.name").await;
        assert!(sorted.contains("hello"), "{sorted}");
        let everywhere = kubectl.ok("get tasks -A --chunk-size=1").await;
        assert!(
            everywhere.lines().any(|line| line.starts_with(&kubectl.namespace)),
            "{everywhere}"
        );
        for group in ["all", "muster"] {
            assert!(kubectl.ok(&format!("get {group}")).await.contains("hello"), "{group}");
        }
        assert!(kubectl.ok("get namespaces").await.contains("Active"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_changes_and_leaves_alone() {
    each(async |kubectl| {
        let apply = async |manifest: &str| kubectl.with_input(&["apply", "-f", "-"], manifest).await.fine();
        assert_eq!(apply(TASK).await, "task.muster.dev/hello created\n");
        let version = kubectl
            .ok("get task hello -o jsonpath={.metadata.resourceVersion}")
            .await;
        assert_eq!(apply(TASK).await, "task.muster.dev/hello unchanged\n");
        assert_eq!(
            kubectl
                .ok("get task hello -o jsonpath={.metadata.resourceVersion}")
                .await,
            version
        );

        let changed = TASK
            .replace("name: hello", "name: hello, labels: {a: b}")
            .replace("spec:", "spec:\n  desired: Killed");
        let diff = kubectl.with_input(&["diff", "-f", "-"], &changed).await;
        assert_eq!(diff.code, Some(1), "{}", diff.err);
        assert!(diff.out.contains("+  desired: Killed"), "{}", diff.out);
        let dry = kubectl
            .with_input(&["apply", "--dry-run=server", "-f", "-"], &changed)
            .await
            .fine();
        assert_eq!(dry, "task.muster.dev/hello configured (server dry run)\n");
        assert_eq!(apply(&changed).await, "task.muster.dev/hello configured\n");
        assert_eq!(
            kubectl
                .ok("get task hello -o jsonpath={.spec.desired}/{.metadata.labels.a}")
                .await,
            "Killed/b"
        );

        let forbidden = changed.replace("echo hello", "echo other");
        let refused = kubectl.with_input(&["apply", "-f", "-"], &forbidden).await.refused();
        assert!(refused.contains("a task's spec is fixed"), "{refused}");

        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: \"1\"}\n";
        let both = format!("{map}---{TASK}").replace("name: hello", "name: second");
        assert_eq!(
            apply(&both).await,
            "configmap/settings created\ntask.muster.dev/second created\n"
        );
        let deleted = kubectl.with_input(&["delete", "-f", "-"], &both).await.fine();
        assert_eq!(
            deleted,
            "configmap \"settings\" deleted\ntask.muster.dev \"second\" deleted\n"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_changes_as_they_happen() {
    each(async |kubectl| {
        let mut watch = kubectl.start(&["get", "tasks", "-w", "--output-watch-events"]);
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let mut next = async || -> Vec<String> {
            let line = tokio::time::timeout(PATIENCE, lines.next_line())
                .await
                .expect("a change is shown")
                .unwrap();
            line.expect("the watch goes on")
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        kubectl.with_input(&["create", "-f", "-"], TASK).await.fine();
        assert_eq!(next().await[..2], ["EVENT", "NAME"]);
        assert_eq!(next().await[..3], ["ADDED", "hello", "Pending"]);
        kubectl
            .write_status("hello", json!({"phase": "Killed", "reason": "KillRequested"}))
            .await;
        assert_eq!(next().await[..3], ["MODIFIED", "hello", "Killed"]);
        kubectl.ok("delete task hello").await;
        assert_eq!(next().await[..2], ["DELETED", "hello"]);
        watch.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_returns_when_a_condition_holds() {
    each(async |kubectl| {
        kubectl.with_input(&["create", "-f", "-"], TASK).await.fine();
        let met = kubectl
            .ok("wait task/hello --for=condition=Ready=False --timeout=60s")
            .await;
        assert_eq!(met, "task.muster.dev/hello condition met\n");
        let late = kubectl
            .run(&["wait", "task/hello", "--for=condition=Stalled", "--timeout=1s"])
            .await
            .refused();
        assert!(late.contains("timed out waiting for the condition"), "{late}");
        let waiting = kubectl.start(&["wait", "task/hello", "--for=condition=Stalled", "--timeout=60s"]);
        kubectl
            .write_status(
                "hello",
                json!({"phase": "Error", "reason": "InvalidTask", "message": "no"}),
            )
            .await;
        let output = tokio::time::timeout(PATIENCE, waiting.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "task.muster.dev/hello condition met\n"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_are_found_and_their_fields_explained() {
    each(async |kubectl| {
        let kinds = kubectl.ok("api-resources --api-group=muster.dev --no-headers").await;
        let names: Vec<&str> = kinds
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(names, ["agents", "frameworks", "offers", "quotas", "tasks"]);
        let versions = kubectl.ok("api-versions").await;
        assert_eq!(
            versions,
            "apiextensions.k8s.io/v1\nauthentication.k8s.io/v1\nauthorization.k8s.io/v1\ncoordination.k8s.io/v1\nevents.k8s.io/v1\nmetrics.k8s.io/v1beta1\nmuster.dev/v1\nrbac.authorization.k8s.io/v1\nv1\n"
        );
        let task = kubectl.ok("explain task").await;
        for part in ["Task", "spec", "-required-", "One placement of a command on an agent"] {
            assert!(task.contains(part), "{part}: {task}");
        }
        let resources = kubectl.ok("explain tasks.spec.resources").await;
        assert!(
            resources.contains("Bytes of memory.") && resources.contains("memory"),
            "{resources}"
        );
        let name = kubectl.ok("explain task.metadata.name").await;
        assert!(name.contains("Name must be unique"), "{name}");
        let all = kubectl.ok("explain task --recursive").await;
        assert!(all.contains("gracePeriod"), "{all}");
        assert!(kubectl.ok("version").await.contains("v1.32.0+muster."));
        assert_eq!(kubectl.ok("get --raw /readyz").await.trim(), "ok");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_nothing_is_done() {
    each(async |kubectl| {
        let create = async |spec: &str| {
            let manifest = format!("apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: bad}}\nspec: {spec}\n");
            kubectl.with_input(&["create", "-f", "-"], &manifest).await.refused()
        };
        let unknown = create("{command: [a], resources: {memmory: 1Gi}}").await;
        assert!(
            unknown.contains("unknown field") && unknown.contains("memmory"),
            "{unknown}"
        );
        let wrong = create("{command: [a], restartPolicy: never}").await;
        assert!(
            wrong.contains("Unsupported value: \"never\"") && wrong.contains("did you mean \"Never\"?"),
            "{wrong}"
        );
        let precise = create("{command: [a], resources: {cpus: \"0.0001\"}}").await;
        assert!(
            precise.contains("spec.resources.cpus") && precise.contains("three decimals"),
            "{precise}"
        );
        let missing = create("{args: [a]}").await;
        assert!(missing.contains("command"), "{missing}");
        assert_eq!(kubectl.ok("get tasks -o name").await, "");
        let nowhere = kubectl
            .with_input(&["create", "-n", "nowhere", "-f", "-"], TASK)
            .await
            .refused();
        assert!(nowhere.contains("namespaces \"nowhere\" not found"), "{nowhere}");
    })
    .await;
}

const FRAMEWORK: &str = r#"
apiVersion: muster.dev/v1
kind: Framework
metadata: {name: batch}
spec: {roles: [ml], demand: {maxOffers: 3}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_merges_owners_and_tells_conflicts() {
    each(async |kubectl| {
        let apply = async |args: &[&str], manifest: &str| {
            let all = [&["apply", "--server-side", "-f", "-"], args].concat();
            kubectl.with_input(&all, manifest).await
        };
        let version = || kubectl.ok("get framework batch -o jsonpath={.metadata.resourceVersion}");
        let done = "framework.muster.dev/batch serverside-applied\n";
        assert_eq!(apply(&[], FRAMEWORK).await.fine(), done);
        let before = version().await;
        assert_eq!(apply(&[], FRAMEWORK).await.fine(), done);
        assert_eq!(version().await, before, "the same again changes nothing");

        let other = FRAMEWORK
            .replace("maxOffers: 3", "maxOffers: 4")
            .replace("[ml]", "[research]");
        let refused = apply(&["--field-manager=other"], &other).await.refused();
        let message = "conflict with \"kubectl\": .spec.demand.maxOffers";
        assert!(refused.contains(message), "{refused}");
        assert_eq!(version().await, before);
        let dry = apply(
            &["--field-manager=other", "--force-conflicts", "--dry-run=server"],
            &other,
        )
        .await
        .fine();
        assert_eq!(dry, "framework.muster.dev/batch serverside-applied (server dry run)\n");
        assert_eq!(version().await, before);
        let diff = [
            "diff",
            "--server-side",
            "--field-manager=other",
            "--force-conflicts",
            "-f",
            "-",
        ];
        let diff = kubectl.with_input(&diff, &other).await;
        assert_eq!(diff.code, Some(1), "{}{}", diff.out, diff.err);
        assert!(diff.out.contains("+    maxOffers: 4"), "{}", diff.out);
        assert_eq!(
            apply(&["--field-manager=other", "--force-conflicts"], &other)
                .await
                .fine(),
            done
        );
        assert_eq!(
            kubectl.ok("get framework batch -o jsonpath={.spec.roles[*]}").await,
            "ml research"
        );
        let left = FRAMEWORK
            .replace("roles: [ml], ", "")
            .replace("maxOffers: 3", "maxOffers: 4");
        assert_eq!(apply(&[], &left).await.fine(), done);
        assert_eq!(
            kubectl.ok("get framework batch -o jsonpath={.spec.roles[*]}").await,
            "research"
        );

        let managers = kubectl
            .ok("get framework batch -o jsonpath={.metadata.managedFields[*].manager}")
            .await;
        assert!(managers.contains("kubectl") && managers.contains("other"), "{managers}");
        assert_eq!(
            kubectl.ok("label framework batch a=b").await,
            "framework.muster.dev/batch labeled\n"
        );
        kubectl
            .ok(r#"patch framework batch -p {"spec":{"roles":["more"]}}"#)
            .await;
        assert_eq!(
            kubectl.ok("get framework batch -o jsonpath={.spec.roles[*]}").await,
            "research more",
            "a plain patch knows that roles are a set"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_go_over_from_client_side_to_server_side_apply() {
    each(async |kubectl| {
        let map = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {data}\n");
        let apply = async |args: &[&str], manifest: String| kubectl.with_input(args, &manifest).await;
        let client = ["apply", "-f", "-"];
        let server = ["apply", "--server-side", "-f", "-"];
        assert_eq!(
            apply(&client, map("{a: '1', b: '1'}")).await.fine(),
            "configmap/settings created\n"
        );
        assert_eq!(
            apply(&client, map("{a: '2', b: '1'}")).await.fine(),
            "configmap/settings configured\n"
        );
        let over = apply(&server, map("{a: '3'}")).await.fine();
        assert_eq!(over, "configmap/settings serverside-applied\n");
        let data = kubectl.ok("get configmap settings -o jsonpath={.data.a}").await;
        assert_eq!(data, "3");
        // And back.
        let back = apply(&client, map("{a: '4'}")).await.fine();
        assert_eq!(back, "configmap/settings configured\n");
        kubectl.ok(r#"patch configmap settings -p {"data":{"c":"1"}}"#).await;
        assert_eq!(
            kubectl
                .ok("get configmap settings -o jsonpath={.data.a}{.data.c}")
                .await,
            "41"
        );
    })
    .await;
}
