//! The command against a whole cluster of its own: `mctl dev` as a child process, on a free port, in a temporary directory.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Cluster {
    directory: PathBuf,
    child: Child,
    /// Kept open, so that the child can go on to print.
    stdout: BufReader<ChildStdout>,
}

fn mctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mctl"));
    command
        .env_remove("KUBECONFIG")
        .env_remove("MUSTER_CONFIG")
        .env_remove("MUSTER_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

impl Cluster {
    fn start(directory: &Path) -> Cluster {
        let mut child = mctl()
            .args([
                "dev",
                "--no-context",
                "--listen",
                "127.0.0.1:0",
                "--gpus",
                "sim:2xH100",
                "--cpus",
                "4",
                "--memory",
                "4Gi",
                "--data-dir",
            ])
            .arg(directory.join("data"))
            .env("HOME", directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut text = String::new();
        while !text.contains("Ctrl-C stops") {
            if stdout.read_line(&mut text).expect("text") == 0 {
                let mut error = String::new();
                child
                    .stderr
                    .take()
                    .expect("piped")
                    .read_to_string(&mut error)
                    .expect("text");
                panic!("mctl dev ended: {text}{error}");
            }
        }
        assert!(text.contains("ready after"), "{text}");
        Cluster {
            directory: directory.to_owned(),
            child,
            stdout,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = mctl();
        command
            .arg("--kubeconfig")
            .arg(self.directory.join("data/kubeconfig"))
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("ran")
    }

    #[track_caller]
    fn check(&self, args: &[&str], code: i32, stdout: &str) -> String {
        let output = self.run(args);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{error}");
        assert!(out.contains(stdout), "{args:?}: expected {stdout:?} in\n{out}\n{error}");
        out + &error
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.join(name);
        fs::write(&path, content).expect("written");
        path.display().to_string()
    }

    fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGINT).expect("signalled");
        let status = self.child.wait().expect("ended");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("text");
        assert!(status.success(), "{status:?} {rest}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only when a test has failed; a second signal ends the process at once.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn service(name: &str, command: &str) -> String {
    task(name, command).replace("spec: {", "spec: {restartPolicy: Always, ")
}

fn task(name: &str, command: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec: {{command: [sh, -c, {command:?}], resources: {{cpus: 0.1, memory: 32Mi}}}}\n"
    )
}

#[test]
fn a_command_is_run_with_its_output_and_its_exit_code() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start(directory.path());
    let output = cluster.check(
        &["run", "hello", "--", "sh", "-c", "echo hello from $MUSTER_TASK"],
        0,
        "hello from hello\n",
    );
    assert_eq!(output, "hello from hello\n");
    cluster.check(
        &[
            "run",
            "seven",
            "--rm",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ],
        7,
        "out\nerr\n",
    );
    cluster.check(&["get", "task", "seven"], 1, "");
    cluster.check(&["run", "hello", "--", "true"], 1, "");
    cluster.check(
        &[
            "run",
            "gpu",
            "--gpus",
            "1",
            "--",
            "sh",
            "-c",
            "echo $CUDA_VISIBLE_DEVICES",
        ],
        0,
        "GPU-sim",
    );
    cluster.check(&["logs", "hello"], 0, "hello from hello\n");
    cluster.check(&["get", "tasks"], 0, "hello   Finished");
    cluster.check(&["get", "tk/hello", "-o", "jsonpath={.status.phase}"], 0, "Finished");
    cluster.check(&["describe", "agents"], 0, "used by tasks");
    cluster.check(&["events", "--for", "task/hello"], 0, "task/hello");
    cluster.check(&["wait", "task/hello", "--for=phase=Finished"], 0, "condition met");
    cluster.check(&["wait", "task/hello", "--for=delete", "--timeout=1s"], 4, "");
    cluster.check(&["why", "hello"], 0, "task/hello is Finished");
    cluster.check(&["run", "huge", "-d", "--gpus", "3", "--", "true"], 0, "created");
    cluster.check(
        &["wait", "task/huge", "--for=jsonpath={.status.reason}=ExceedsEveryAgent"],
        0,
        "",
    );
    cluster.check(&["why", "huge"], 3, "3 gpus");
    cluster.check(&["delete", "tasks", "--all"], 0, "task.muster.dev/huge deleted");
    cluster.check(&["get", "tasks", "-o", "name"], 0, "");
    cluster.stop();
}

#[test]
fn manifests_are_applied_all_or_none() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start(directory.path());
    let good = cluster.file(
        "good.yaml",
        &(service("a", "sleep 600")
            + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ml}\n---\n"
            + &task("b", "true").replace("{name: b}", "{name: b, namespace: ml}")),
    );
    cluster.check(
        &["apply", "-f", &good, "--dry-run=server"],
        0,
        "task.muster.dev/b created (server dry run)",
    );
    cluster.check(&["get", "tasks", "-A", "-o", "name"], 0, "");
    let out = cluster.check(
        &["apply", "-f", &good, "--wait", "--timeout=60s"],
        0,
        "task.muster.dev/a created\n",
    );
    assert!(
        out.contains("task.muster.dev/a Running") && out.contains("task.muster.dev/b Finished"),
        "{out}"
    );
    let again = cluster.check(&["apply", "-f", &good], 0, "task.muster.dev/a unchanged\n");
    assert!(!again.contains("configured"), "{again}");

    let labelled = cluster.file(
        "labelled.yaml",
        &service("a", "sleep 600").replace("{name: a}", "{name: a, labels: {app: x}}"),
    );
    cluster.check(&["apply", "-f", &labelled], 0, "task.muster.dev/a configured\n");
    cluster.check(&["get", "tasks", "-l", "app=x", "-o", "name"], 0, "task.muster.dev/a");

    let differs = cluster.file(
        "differs.yaml",
        &service("a", "sleep 600").replace("{name: a}", "{name: a, labels: {app: other}}"),
    );
    cluster.check(&["diff", "-f", &differs], 2, "-    app: x\n+    app: other\n");
    cluster.check(&["diff", "-f", &labelled], 0, "");

    // The second document is wrong by the server's own knowledge only.
    let half = cluster.file(
        "half.yaml",
        &(task("new", "true") + "---\n" + &service("a", "sleep 601")),
    );
    let refused = cluster.check(&["apply", "-f", &half], 1, "");
    assert!(
        refused.contains("half.yaml:9:1") && refused.contains("a task's spec is fixed"),
        "{refused}"
    );
    assert!(
        refused.contains("nothing was applied (1 error in 2 documents)"),
        "{refused}"
    );
    cluster.check(&["get", "task", "new"], 1, "");

    let unknown = cluster.file(
        "unknown.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n",
    );
    let refused = cluster.check(&["apply", "-f", &unknown], 1, "");
    assert!(
        refused.contains("unknown.yaml:2:7") && refused.contains("the server has no kind `Deployment`"),
        "{refused}"
    );
    cluster.check(&["delete", "-f", &good], 0, "task.muster.dev/a deleted");
    cluster.stop();
}

#[test]
fn conflicts_name_their_owner_and_sets_are_pruned() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start(directory.path());
    let quota = |name: &str, weight: u32| {
        let text = format!(
            "apiVersion: muster.dev/v1\nkind: Quota\nmetadata: {{name: q}}\nspec:\n  role: ml\n  weight: {weight}\n"
        );
        cluster.file(name, &text)
    };
    let (two, three) = (quota("two.yaml", 2), quota("three.yaml", 3));
    cluster.check(&["apply", "-f", &two], 0, "quota.muster.dev/q created\n");
    cluster.check(&["apply", "-f", &two], 0, "quota.muster.dev/q unchanged\n");
    let other = ["apply", "--field-manager=other", "-f", &three];
    let refused = cluster.check(&other, 1, "");
    for part in [
        "three.yaml:6:11",
        "`spec.weight` is owned by \"mctl\" since 20",
        "--force-conflicts",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let diff = ["diff", "--field-manager=other", "-f", &three];
    cluster.check(&diff, 1, "");
    cluster.check(&[&diff[..], &["--force-conflicts"]].concat(), 2, "+  weight: 3\n");
    cluster.check(
        &[&other[..], &["--force-conflicts"]].concat(),
        0,
        "quota.muster.dev/q configured\n",
    );
    cluster.check(&diff, 0, "");

    let map = |name: &str| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    let both = cluster.file("both.yaml", &(map("a") + &map("b")));
    let one = cluster.file("one.yaml", &map("a"));
    cluster.check(&["apply", "--prune", "-f", &both], 1, "");
    let set = ["apply", "--prune", "--applyset=mine", "-f"];
    cluster.check(&[&set[..], &[both.as_str()]].concat(), 0, "configmap/b created\n");
    let dry = cluster.check(
        &[&set[..], &[one.as_str(), "--dry-run=server"]].concat(),
        0,
        "configmap/b pruned (server dry run)\n",
    );
    assert!(!dry.contains("configmap/a pruned"), "{dry}");
    cluster.check(&["get", "configmap", "b", "-o", "name"], 0, "configmap/b");
    cluster.check(&[&set[..], &[one.as_str()]].concat(), 0, "configmap/b pruned\n");
    cluster.check(&["get", "configmap", "b"], 1, "");
    cluster.check(&["get", "configmap", "a", "mine", "-o", "name"], 0, "configmap/mine");
    cluster.stop();
}

#[test]
fn nothing_of_a_bad_manifest_is_stored() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start(directory.path());
    let good = cluster.file("good.yaml", &task("good", "true"));
    let stored = || {
        cluster.check(
            &[
                "get",
                "tasks,frameworks,quotas,configmaps,offers,namespaces",
                "-A",
                "-o",
                "name",
            ],
            0,
            "",
        )
    };
    let before = stored();
    let entries = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad-manifests")).expect("directory");
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("entry").path().display().to_string();
        let output = cluster.run(&["apply", "-f", &good, "-f", &path]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{path}: {error}");
        assert!(error.contains("nothing was applied ("), "{path}: {error}");
        count += 1;
    }
    assert!(count >= 200, "{count}");
    assert_eq!(stored(), before);
    cluster.stop();
}

#[test]
fn the_next_start_goes_on_and_nothing_is_left_running() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start(directory.path());
    let marker = format!("61{}", cluster.child.id());
    cluster.check(&["run", "long", "-d", "--", "sleep", &marker], 0, "created");
    cluster.check(&["wait", "task/long", "--for=phase=Running"], 0, "");
    assert_eq!(processes(&marker), 1);
    let second = mctl()
        .args(["dev", "--no-context", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(directory.path().join("data"))
        .output()
        .expect("ran");
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains(&format!("another cluster (process {}) uses", cluster.child.id())),
        "{second:?}"
    );
    cluster.stop();
    assert_eq!(processes(&marker), 0);

    let cluster = Cluster::start(directory.path());
    cluster.check(&["get", "task", "long"], 0, "Killed");
    cluster.check(&["run", "after", "--", "echo", "on"], 0, "on\n");
    cluster.stop();
}

/// How many processes have this argument alone.
fn processes(argument: &str) -> usize {
    let entries = fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            line.starts_with(b"sleep\0") && line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
        })
        .count()
}

#[test]
fn without_a_cluster_it_is_said_how_to_get_one() {
    let directory = tempfile::tempdir().expect("directory");
    let run = |args: &[&str]| {
        let output = mctl()
            .args(args)
            .env("HOME", directory.path())
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .expect("ran");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, error) = run(&["get", "tasks"]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("there is no cluster to talk to") && error.contains("mctl dev"),
        "{error}"
    );
    let bad = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad-manifests/gpus-half.yaml");
    let (code, _, error) = run(&["apply", "-f", bad]);
    assert!(code == Some(1) && error.contains("GPUs are given out whole"), "{error}");
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/examples/hello.yaml");
    let (code, out, _) = run(&["apply", "-f", good, "--dry-run=client"]);
    assert!(code == Some(0) && out.contains("task/hello is fine"), "{out}");
    let (code, out, _) = run(&["completion", "bash"]);
    assert!(code == Some(0) && out.contains("_mctl"), "{out}");
    let (code, out, _) = run(&["version", "--client"]);
    assert!(code == Some(0) && out.starts_with("Client: v"), "{out}");
}
