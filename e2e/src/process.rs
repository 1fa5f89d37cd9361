//! Processes that a scenario stops, kills and starts again.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// A process on a host.
#[derive(Debug)]
pub struct Process {
    /// `HOST/NAME`.
    pub name: String,
    /// `nsenter`, which waits for the process and ends as it does.
    wrapper: Child,
    pid: Pid,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command that runs the process as its only child.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let mut wrapper = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let of = Pid::from_raw(i32::try_from(wrapper.id())?);
        let mut ended = None;
        let pid = wait_for(&format!("{name} to start"), || {
            ended = wrapper.try_wait().ok().flatten();
            if ended.is_some() {
                Some(of)
            } else {
                children(of).first().copied()
            }
        })?;
        Ok(Process {
            name: name.to_owned(),
            wrapper,
            pid,
            log: log.to_owned(),
            ended,
        })
    }

    /// Its number on this machine.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Everything that it, and those before it of the same name, have printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            // The wrapper may have stood still with its child, and would not tell of the end.
            let _ = signal(Pid::from_raw(self.wrapper.id().cast_signed()), Signal::SIGCONT);
            self.ended = self.wrapper.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, what: Signal) -> Result<()> {
        signal(self.pid, what).with_context(|| format!("{} cannot be sent {what}", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// SIGSTOP, and waits until every thread of it stands still.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        wait_for(&format!("{} to stand still", self.name), || {
            (state(self.pid) == Some('T')).then_some(())
        })
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGTERM, and how it ends.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it goes on for longer than [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), || {
            let running = self.is_running();
            if running { None } else { self.ended }
        })
    }
}

/// Delays or fails the system calls of a process, by strace, until dropped.
#[derive(Debug)]
pub struct Injection {
    strace: Child,
    output: PathBuf,
}

impl Injection {
    /// `rule` is what `strace -e inject=` takes, such as `fdatasync,fsync:delay_enter=300000`.
    ///
    /// # Errors
    /// When strace is missing or cannot attach.
    pub fn start(process: &Process, rule: &str, output: &Path) -> Result<Injection> {
        let calls = rule.split(':').next().unwrap_or_default();
        let strace = Command::new("strace")
            .args([
                "-f",
                "-q",
                "-e",
                &format!("trace={calls}"),
                "-e",
                &format!("inject={rule}"),
                "-o",
            ])
            .arg(output)
            .args(["-p", &process.pid().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run strace (apt-get install strace)")?;
        let injection = Injection {
            strace,
            output: output.to_owned(),
        };
        wait_for("strace to attach", || {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).ok()?;
            (!status.contains("TracerPid:\t0")).then_some(())
        })?;
        Ok(injection)
    }

    /// How many calls were made under it.
    pub fn calls(&self) -> usize {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains("(DELAYED)") || line.contains("(INJECTED)"))
            .count()
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // SIGTERM lets it detach; what it watches goes on.
        let _ = signal(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: Pid, what: Signal) -> Result<()> {
    kill(pid, what).with_context(|| format!("process {pid}"))
}

/// The fields of `/proc/PID/stat` behind the name: the first is the state, the second the parent.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(')')?.1;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The state of a process, as in ps.
pub fn state(pid: Pid) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// The parent of a process.
pub fn parent(pid: Pid) -> Option<Pid> {
    stat(pid)?.get(1)?.parse().ok().map(Pid::from_raw)
}

/// When a process was started, in ticks since boot: with its number, who it is.
pub fn born(pid: Pid) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The children of a process.
pub fn children(of: Pid) -> Vec<Pid> {
    all().filter(|pid| parent(*pid) == Some(of)).collect()
}

/// All processes of the machine.
pub fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
