//! A command in namespaces and a cgroup of its own, made by libcontainer from the bundle in the container's directory.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use super::super::cgroup::{Cgroup, Hierarchies};
use super::super::directory::{Directory, Held};
use super::super::init::{Init, Verdict};
use super::{Pipes, Workload, pipe};

/// The name libcontainer knows the container by: each has a directory of its own for that.
const NAME: &str = "container";

pub(super) struct Isolated {
    container: Container,
    pid: Pid,
    cgroup: Cgroup,
    verdict: fs::File,
    state: PathBuf,
}

impl Isolated {
    pub(super) fn create(directory: &Directory, held: &Held, pipes: Pipes) -> Result<Isolated, String> {
        let Held::Isolated {
            cgroup,
            cwd,
            links,
            image,
        } = held
        else {
            return Err("not a plan for isolation".to_owned());
        };
        let rootfs = directory.join("rootfs");
        for (name, target) in links {
            symlink(target, rootfs.join(name)).map_err(|error| format!("link {}: {error}", name.display()))?;
        }
        if let Some(image) = image {
            mount_image(image, directory, &rootfs)?;
        }
        let hierarchies = Hierarchies::detect().map_err(|error| format!("cgroups: {error}"))?;
        let cgroup = Cgroup::new(hierarchies, cgroup);
        let (verdict_read, verdict_write) = pipe().map_err(|error| format!("pipe: {error}"))?;
        let state = directory.join("libcontainer");
        let init = Init {
            verdict: Arc::new(verdict_write),
            cwd: cwd.clone(),
        };
        let container = build(&state, &directory.join("bundle"), init, pipes).inspect_err(|_| {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        })?;
        let pid = container.pid().ok_or("the container has no first process")?;
        let isolated = Isolated {
            container,
            pid: Pid::from_raw(pid.as_raw()),
            cgroup,
            verdict: verdict_read.into(),
            state,
        };
        if let Err(error) = isolated.cgroup.close_devices() {
            isolated.kill();
            return Err(format!("devices cgroup: {error}"));
        }
        Ok(isolated)
    }
}

fn build(state: &Path, bundle: &Path, init: Init, pipes: Pipes) -> Result<Container, String> {
    let null = fs::File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    fs::create_dir_all(state).map_err(|error| format!("state: {error}"))?;
    let builder = ContainerBuilder::new(NAME.to_owned(), SyscallType::Linux)
        .with_root_path(state)
        .map_err(|error| chain(&error))?
        .with_executor(init)
        .with_stdin(OwnedFd::from(null))
        .with_stdout(pipes.stdout)
        .with_stderr(pipes.stderr)
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true);
    builder.build().map_err(|error| chain(&error))
}

/// An error with all its causes: libcontainer's top ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Lays a writable layer over the image. In a mount namespace of the shim's own, so the mount goes with the last process and the machine
/// never sees it.
fn mount_image(image: &Path, directory: &Directory, rootfs: &Path) -> Result<(), String> {
    let failed = |what: &str, error: nix::Error| format!("{what}: {}", error.desc());
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed("mount namespace", error))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|error| failed("private mounts", error))?;
    let escape = |path: &Path| {
        path.to_string_lossy()
            .replace('\\', "\\\\")
            .replace(',', "\\,")
            .replace(':', "\\:")
    };
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        escape(image),
        escape(&upper),
        escape(&work)
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(Some("overlay"), rootfs, Some("overlay"), flags, Some(options.as_str()))
        .map_err(|error| failed("overlay", error))
}

impl Workload for Isolated {
    fn pid(&self) -> Option<Pid> {
        Some(self.pid)
    }

    fn start(&mut self) -> Result<(), String> {
        self.container.start().map_err(|error| chain(&error))
    }

    fn kill(&self) {
        // Not a failure to stop at: whoever asked asks again until nothing is left.
        if let Err(error) = self.cgroup.kill() {
            eprintln!("kill: {error}");
        }
    }

    fn is_empty(&self) -> bool {
        self.cgroup.processes().is_ok_and(|processes| processes.is_empty())
    }

    fn verdict(&mut self, status: ExitStatus) -> Verdict {
        // The writing end is closed in every process but the first, and that one has ended.
        let mut bytes = Vec::new();
        let _ = self.verdict.read_to_end(&mut bytes);
        Verdict::decode(&bytes).unwrap_or(Verdict::Ended(status))
    }

    fn oom_killed(&self) -> bool {
        self.cgroup.oom_kills() > 0
    }

    fn clean(&mut self) {
        if let Err(error) = self.cgroup.remove() {
            eprintln!("cgroup: {error}");
        }
        let _ = fs::remove_dir_all(&self.state);
    }
}
