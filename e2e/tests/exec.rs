//! Commands and files in tasks that run, by the real binary: `mctl exec` and `mctl cp`.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_e2e::{Cluster, PATIENCE, mctl_binary};

const SERVICE: &str = r#"
apiVersion: muster.dev/v1
kind: Task
metadata: {name: service}
spec:
  command: ["sleep", "infinity"]
  env: [{name: OF_THE_TASK, value: "yes"}]
  resources: {cpus: "0.1", memory: 64Mi}
"#;

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(&[])?;
    cluster.mctl_with(&["apply", "-f", "-"], SERVICE).ok();
    cluster.wait_phase("service", "Running")?;
    Ok(cluster)
}

/// Living processes whose arguments have this word.
fn processes(word: &str) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes()))
        .count()
}

fn until(what: &str, so: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !so() {
        ensure!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_command_in_a_task_is_as_if_it_ran_here() -> Result<()> {
    let mut cluster = cluster()?;
    let script = "echo out $OF_THE_TASK; echo err >&2; exit 7";
    let ran = cluster.mctl(&["exec", "service", "--", "sh", "-c", script]);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str(), ran.code),
        ("out yes\n", "err\n", 7)
    );
    // More than all buffers on the way hold, in both directions at once.
    let much = "0123456789abcdef".repeat(256 * 1024);
    let (from, to) = (cluster.home().join("from"), cluster.home().join("to"));
    fs::write(&from, &much)?;
    let mut echo = cluster.command(&mctl_binary());
    echo.args(["exec", "-i", "service", "--", "cat"]);
    let echo = echo
        .stdin(fs::File::open(&from)?)
        .stdout(fs::File::create(&to)?)
        .status()?;
    assert!(echo.success() && fs::read_to_string(&to)? == much);
    let missing = cluster.mctl(&["exec", "service", "--", "no-such-command"]);
    assert_eq!(missing.code, 127);
    assert!(
        missing.stderr.contains("no-such-command: No such file"),
        "{}",
        missing.stderr
    );
    // Without a terminal here there is none there, and that is said.
    let none = cluster.mctl(&["exec", "-it", "service", "--", "tty"]);
    assert!(none.stderr.contains("leave out -t") && none.code == 1, "{none:?}");

    let unknown = cluster.mctl(&["exec", "nobody", "--", "true"]);
    assert!(unknown.stderr.contains("\"nobody\" not found"), "{}", unknown.stderr);
    let other = cluster.mctl(&["exec", "service", "--attempt", "5", "--", "true"]);
    assert!(other.stderr.contains("only attempt 1"), "{}", other.stderr);
    cluster.mctl(&["run", "over", "--", "true"]).ok();
    let over = cluster.mctl(&["exec", "over", "--", "true"]);
    assert!(
        over.stderr.contains("Finished") && over.stderr.contains("mctl logs over"),
        "{}",
        over.stderr
    );
    cluster.stop()?;
    Ok(())
}

#[test]
fn nothing_is_left_of_a_session_whose_client_was_killed_or_whose_task_has_ended() -> Result<()> {
    let mut cluster = cluster()?;
    let word = format!("7{}", std::process::id());
    let begin = || -> Result<_> {
        let mut client = cluster.command(&mctl_binary());
        let client = client.args(["exec", "-i", "service", "--", "sleep", &word]);
        let client = client
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // The client itself, and the command.
        until("the command runs", || processes(&word) == 2)?;
        Ok(client)
    };
    let mut client = begin()?;
    client.kill()?;
    client.wait()?;
    until("the command of the client that was killed is gone", || {
        processes(&word) == 0
    })?;
    let client = begin()?;
    cluster.mctl(&["delete", "task", "service"]).ok();
    let ended = client.wait_with_output()?;
    assert_eq!(
        ended.status.code(),
        Some(137),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    until("the command of the task that was deleted is gone", || {
        processes(&word) == 0
    })?;
    cluster.stop()?;
    Ok(())
}

#[test]
fn files_are_copied_both_ways_and_never_out_of_their_place() -> Result<()> {
    let mut cluster = cluster()?;
    let here = tempfile::tempdir()?;
    let at = |name: &str| here.path().join(name).display().to_string();
    fs::create_dir_all(here.path().join("tree/inner"))?;
    let mut big = fs::File::create(here.path().join("tree/big"))?;
    big.write_all(&"0123456789".repeat(500_000).into_bytes())?;
    fs::write(here.path().join("tree/inner/script"), "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(here.path().join("tree/inner/script"), fs::Permissions::from_mode(0o755))?;
    cluster.mctl(&["cp", &at("tree"), "service:/sandbox/there"]).ok();
    let script = ["exec", "service", "--", "/sandbox/there/inner/script"];
    assert_eq!(cluster.mctl(&script).ok(), "it runs\n");
    cluster.mctl(&["cp", "service:there", &at("back")]).ok();
    let same = Command::new("diff").args(["-r", &at("tree"), &at("back")]).status()?;
    assert!(same.success());
    cluster
        .mctl(&["cp", "service:/sandbox/there/inner/script", &at("back")])
        .ok();
    assert!(
        here.path().join("back/script").exists(),
        "into a directory that is there"
    );

    let prepare = "mkdir evil; ln -s /etc evil/out; ln -s ../.. evil/up; mkfifo pipe; ln -s /proc/self/exe exe";
    cluster.mctl(&["exec", "service", "--", "sh", "-c", prepare]).ok();
    let evil = cluster.mctl(&["cp", "service:evil", &at("evil")]);
    assert!(
        evil.code == 0 && evil.stderr.matches("left out").count() == 2,
        "{evil:?}"
    );
    assert_eq!(fs::read_dir(here.path().join("evil"))?.count(), 0);
    for (path, why) in [
        ("pipe", "is a pipe"),
        ("exe", "symbolic links"),
        ("nothing", "No such file"),
        ("/dev/zero", "is a device"),
    ] {
        let refused = cluster.mctl(&["cp", &format!("service:{path}"), &at("refused")]);
        assert!(refused.code == 1 && refused.stderr.contains(why), "{path}: {refused:?}");
        assert!(!here.path().join("refused").exists());
    }
    let nowhere = cluster.mctl(&["cp", &at("tree"), "service:/no/such/directory"]);
    assert!(nowhere.code == 1 && nowhere.stderr.contains("/no/such"), "{nowhere:?}");
    cluster.stop()?;
    Ok(())
}
