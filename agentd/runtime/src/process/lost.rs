//! Containers whose shim has ended without writing an exit: it was killed, or the machine was restarted.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use nix::unistd::Pid;

use super::cgroup::{Cgroup, Hierarchies};
use super::directory::{Directory, Held};
use super::{clock, sys};
use crate::Exit;
use crate::limits::KILL_DEADLINE;

/// Between two looks at what is being killed.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Ends what the shim held, writes an exit and gives it back. `None`: something would not die in time. Doing it twice does no harm.
pub(super) fn settle(directory: &Directory, hierarchies: Option<&Hierarchies>) -> io::Result<Option<Exit>> {
    let started_ms = directory.status()?.and_then(|status| status.started_ms);
    let Some(oom_killed) = end(directory, hierarchies)? else {
        return Ok(None);
    };
    let error = match started_ms {
        Some(_) => "lost: its shim has ended or the machine was restarted, so nobody saw how it ended",
        None => "lost before it was started: its shim has ended or the machine was restarted",
    };
    let exit = Exit {
        started_ms,
        oom_killed,
        ..Exit::never_ran(clock::wall_ms(), error)
    };
    directory.write("exit", &exit)?;
    Ok(Some(exit))
}

/// Kills what a shim that is no more held, and gives back what is left of it on the machine. Says whether something was killed for memory
/// before; `None`: something would not die in time.
pub(super) fn end(directory: &Directory, hierarchies: Option<&Hierarchies>) -> io::Result<Option<bool>> {
    // Without a plan there was no shim.
    let Some(plan) = directory.plan()? else {
        return Ok(Some(false));
    };
    match plan.isolation {
        Held::Isolated { cgroup, .. } | Held::Contained { cgroup, .. } => {
            let hierarchies = hierarchies.cloned().map_or_else(Hierarchies::detect, Ok)?;
            let cgroup = Cgroup::new(hierarchies, &cgroup);
            let oom_killed = cgroup.oom_kills() > 0;
            let gone = until_gone(|| {
                cgroup.kill()?;
                Ok(cgroup.processes()?.is_empty())
            })?;
            if gone {
                cgroup.remove()?;
            }
            Ok(gone.then_some(oom_killed))
        }
        Held::Plain { .. } => {
            let mark = format!("MUSTER_SANDBOX={}", directory.join("sandbox").display());
            let gone = until_gone(|| {
                let marked = marked(Path::new("/proc"), mark.as_bytes());
                // What has ended since is no failure.
                marked
                    .iter()
                    .for_each(|pid| drop(sys::kill(Pid::from_raw(*pid), libc::SIGKILL)));
                Ok(marked.is_empty())
            })?;
            Ok(gone.then_some(false))
        }
    }
}

fn until_gone(mut gone: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let deadline = clock::boottime() + KILL_DEADLINE;
    while !gone()? {
        if clock::boottime() > deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(true)
}

/// Plain processes are found by a variable that names a directory only this container has: it goes over to everything they make, unless they
/// clear their environment.
fn marked(proc: &Path, mark: &[u8]) -> Vec<i32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // The environment of a zombie is empty.
    let marked = |pid: &i32| {
        let environment = fs::read(proc.join(pid.to_string()).join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    };
    pids.filter(marked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_with_exactly_the_mark_are_found() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, environment) in [
            (5, "A=1\0MUSTER_SANDBOX=/x/a/sandbox\0"),
            (6, "MUSTER_SANDBOX=/x/ab/sandbox\0"),
            (7, ""),
        ] {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).expect("made");
            fs::write(directory.join("environ"), environment).expect("written");
        }
        fs::create_dir(proc.path().join("sys")).expect("made");
        assert_eq!(marked(proc.path(), b"MUSTER_SANDBOX=/x/a/sandbox"), [5]);
    }
}
