//! Starts the real `mctl dev` as a person would, in a home of its own, and runs real commands against it.
//!
//! Every test gets its own directory, its own free port (the server chooses it), and its own kubeconfig. Dropping a
//! [`Cluster`] ends it and checks nothing: tests that care about a clean end call [`Cluster::stop`].
//!
//! A [`fleet`] is a cluster of several machines, each with namespaces of its own ([`lab`]), whose processes ([`process`]) are
//! stopped, killed and cut off while [`evidence`] is taken of what really runs.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

pub mod containerd;
pub mod evidence;
pub mod example;
pub mod fleet;
pub mod lab;
pub mod parts;
pub mod process;
pub mod registry;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything in these tests may take that should take a moment. Generous: the machines are small and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `mctl dev`.
pub struct Cluster {
    home: tempfile::TempDir,
    child: Option<Child>,
    output: Arc<Mutex<String>>,
    args: Vec<String>,
    listen: String,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 after a signal.
    pub code: i32,
}

impl Ran {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

/// A program that was built together with these tests.
pub fn binary(package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let folder = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let binary = folder.join(package);
    assert!(
        binary.exists(),
        "{} is missing; build it with: cargo build -p {package}",
        binary.display()
    );
    binary
}

/// `mctl`, as it was built together with these tests.
pub fn mctl_binary() -> PathBuf {
    binary("mctl")
}

impl Cluster {
    /// Starts `mctl dev` with these further arguments and waits until it serves.
    pub fn start(args: &[&str]) -> Result<Cluster> {
        let home = tempfile::Builder::new().prefix("muster-e2e-").tempdir()?;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut cluster = Cluster {
            home,
            child: None,
            output: Arc::default(),
            args,
            listen: "127.0.0.1:0".to_owned(),
        };
        cluster.launch()?;
        Ok(cluster)
    }

    /// Starts the process (again) on the same data.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "it is running already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join("dev.log"))?;
        let _ = fs::remove_file(self.kubeconfig());
        let mut command = self.command(&mctl_binary());
        command
            .arg("dev")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", &self.listen])
            .args(&self.args);
        if !self.args.iter().any(|arg| arg == "--runtime") {
            // Whatever else is on this machine.
            command.args(["--runtime", "process"]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start mctl dev")?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let output = Arc::clone(&self.output);
        // Ends with the pipe: when the child does.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut output = output.lock().expect("nobody panics while holding the output");
                output.push_str(&line);
                output.push('\n');
            }
        });
        self.child = Some(child);
        let ready = self.wait_until("the server to be ready and an agent to have joined", || {
            self.kubeconfig().exists() && self.mctl(&["get", "agents", "--no-headers"]).stdout.contains("True")
        });
        if ready.is_err() {
            let log = fs::read_to_string(self.home.path().join("dev.log")).unwrap_or_default();
            bail!("mctl dev did not become ready; it wrote:\n{}\n{log}", self.printed());
        }
        Ok(())
    }

    /// Has the next launch listen where the server listens now, for clients that outlive it.
    pub fn keep_address(&mut self) -> Result<()> {
        let config = fs::read_to_string(self.kubeconfig())?;
        let (_, server) = config
            .split_once("https://")
            .context("the kubeconfig names the server")?;
        let end = server.find(|character: char| character.is_whitespace() || character == '"');
        self.listen = server[..end.unwrap_or(server.len())].trim_end_matches('/').to_owned();
        Ok(())
    }

    /// What `mctl dev` printed so far.
    pub fn printed(&self) -> String {
        self.output
            .lock()
            .expect("nobody panics while holding the output")
            .clone()
    }

    /// The directory that stands for the user's home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// The process id of `mctl dev`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("it is running")
    }

    /// A command with this cluster as its world.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let home = self.home.path();
        command
            .env_remove("MUSTER_CONFIG")
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", home)
            .env("KUBECONFIG", self.kubeconfig())
            .env("NO_COLOR", "1")
            .current_dir(home);
        command
    }

    /// Runs `mctl` with these arguments.
    pub fn mctl(&self, args: &[&str]) -> Ran {
        self.run(&mctl_binary(), args, "")
    }

    /// Runs `mctl` with these arguments and this standard input.
    pub fn mctl_with(&self, args: &[&str], stdin: &str) -> Ran {
        self.run(&mctl_binary(), args, stdin)
    }

    /// Runs the real kubectl.
    pub fn kubectl(&self, args: &[&str], stdin: &str) -> Ran {
        self.run(Path::new("kubectl"), args, stdin)
    }

    fn run(&self, program: &Path, args: &[&str], stdin: &str) -> Ran {
        let mut command = self.command(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let hint = || {
            format!(
                "cannot run {}; install it (apt-get install kubernetes-client for kubectl)",
                program.display()
            )
        };
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", hint()));
        use std::io::Write;
        let mut pipe = child.stdin.take().expect("stdin is a pipe");
        // A command that does not read its input closes the pipe; that is its right.
        let _ = pipe.write_all(stdin.as_bytes());
        drop(pipe);
        child.wait_with_output().expect("the command can be waited for").into()
    }

    /// Waits until `done` says so.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !done() {
            ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The task's field at a JSONPath, as text.
    pub fn field(&self, task: &str, path: &str) -> String {
        let output = format!("jsonpath={{{path}}}");
        self.mctl(&["get", "task", task, "-o", &output])
            .stdout
            .trim()
            .to_owned()
    }

    /// Waits until the task is in this phase.
    pub fn wait_phase(&self, task: &str, phase: &str) -> Result<()> {
        let result = self.wait_until(&format!("{task} to be {phase}"), || {
            self.field(task, ".status.phase") == phase
        });
        result.with_context(|| self.mctl(&["describe", "task", task]).stdout)
    }

    /// Kills the process as a crash would. The data stays.
    pub fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }

    /// Asks the process to end, as Ctrl-C does, and returns its exit code.
    pub fn stop(&mut self) -> Result<i32> {
        let mut child = self.child.take().context("it is not running")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if started.elapsed() > PATIENCE {
                child.kill()?;
                bail!("mctl dev did not end within {PATIENCE:?} of SIGINT");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.child.is_some() && self.stop().is_err() {
            self.crash();
        }
    }
}
