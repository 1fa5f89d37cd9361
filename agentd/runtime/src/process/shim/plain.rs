//! A command as a plain process: where nothing can be isolated, it is at least found and ended as a whole. Everything it makes becomes a
//! child of the shim at last, because the shim is a subreaper; so when the shim has no children left, nothing is left.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::super::directory::Held;
use super::super::init::Verdict;
use super::super::{sys, variables};
use super::family::descendants;
use super::{Pipes, Workload};

pub(super) struct Plain {
    command: Command,
    pid: Option<Pid>,
}

impl Plain {
    pub(super) fn create(held: &Held, pipes: Pipes) -> Result<Plain, String> {
        let Held::Plain {
            argv,
            env,
            cwd,
            variables,
            user,
        } = held
        else {
            return Err("not a plan for a plain process".to_owned());
        };
        // Both go over to the command with the fork.
        nix::sys::prctl::set_no_new_privs().map_err(|error| format!("no new privileges: {error}"))?;
        let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| format!("limits: {error}"))?;
        let limits = setrlimit(Resource::RLIMIT_CORE, 0, 0)
            .and_then(|()| setrlimit(Resource::RLIMIT_NOFILE, files.min(65_536), files));
        limits.map_err(|error| format!("limits: {error}"))?;
        let mut command = Command::new(argv.first().ok_or("no command")?);
        command
            .args(&argv[1..])
            .env_clear()
            .envs(env.iter().filter_map(|pair| pair.split_once('=')))
            .current_dir(cwd);
        if let Some(file) = variables {
            let more = variables::read(file).map_err(|error| format!("variables: {error}"))?;
            command.envs(more);
        }
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(pipes.stdout)
            .stderr(pipes.stderr);
        sys::with_default_signals(&mut command);
        if let Some((uid, gid)) = user {
            command.uid(*uid).gid(*gid);
        }
        Ok(Plain { command, pid: None })
    }
}

impl Workload for Plain {
    fn pid(&self) -> Option<Pid> {
        self.pid
    }

    fn start(&mut self) -> Result<(), String> {
        let child: Child = self
            .command
            .spawn()
            .map_err(|error| format!("{}: {error}", self.command.get_program().display()))?;
        self.pid = Some(Pid::from_raw(child.id().cast_signed()));
        // The writing ends that were kept for this; only the command's copies count from now on.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(())
    }

    fn kill(&self) {
        for pid in descendants(nix::unistd::getpid()) {
            // It may have ended since, and its pid cannot be another's: its parent is the shim or below, which has not reaped it.
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    fn is_empty(&self) -> bool {
        // Reaped here are only orphans: the first process was reaped before.
        loop {
            match sys::reap() {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => return error.raw_os_error() == Some(libc::ECHILD),
            }
        }
    }

    fn verdict(&mut self, status: ExitStatus) -> Verdict {
        Verdict::Ended(status)
    }

    fn oom_killed(&self) -> bool {
        false
    }

    fn clean(&mut self) {}
}
