//! A command in namespaces and a cgroup of its own.
//!
//! What is done before its first process is made, and how it is made, is here: the cgroup, one process in a new pid namespace. What that
//! process does to shut itself in (the other namespaces, mounts, the root directory, capabilities) is libcontainer's, from the bundle in
//! the container's directory. Its own way of making processes is not used: it makes one in between, and reads the table of mounts for
//! every controller of cgroups.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;

use libcgroups::common::CgroupConfig;
use libcontainer::notify_socket::{NotifyListener, NotifySocket};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::{self, MainSender};
use libcontainer::process::init::container_init_process;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Pid};
use oci_spec::runtime::{LinuxResources, Spec};

use super::super::cgroup::Cgroup;
use super::super::directory::{Directory, Held};
use super::super::init::{Init, Verdict};
use super::super::sys;
use super::server::Common;
use super::{Pipes, Workload, chain, pipe};

/// The socket through which the first process is told to run the command, in the container's directory.
const START: &str = "start";

/// The exit code of a first process that could not shut itself in. It says why in another way.
const NOT_MADE: i32 = 1;

pub(super) struct Isolated {
    directory: Directory,
    pid: Pid,
    cgroup: Cgroup,
    verdict: fs::File,
}

impl Isolated {
    pub(super) fn create(
        common: &Common,
        directory: &Directory,
        held: &Held,
        pipes: Pipes,
    ) -> Result<Isolated, String> {
        let Held::Isolated {
            cgroup,
            cwd,
            links,
            image,
            variables,
        } = held
        else {
            return Err("not a plan for isolation".to_owned());
        };
        let spec =
            Spec::load(directory.join("bundle/config.json")).map_err(|error| format!("bundle: {}", chain(&error)))?;
        let root = spec.root().as_ref().ok_or("the bundle has no root")?.path().clone();
        mount_root(&root, image.as_deref(), directory)?;
        for (name, target) in links {
            symlink(target, root.join(name)).map_err(|error| format!("link {}: {error}", name.display()))?;
        }
        let (hierarchies, filter) = common.isolation()?;
        let cgroup = Cgroup::new(hierarchies, cgroup);
        let (verdict_read, verdict_write) = pipe().map_err(|error| format!("pipe: {error}"))?;
        let init = Init {
            verdict: Arc::new(verdict_write),
            cwd: cwd.clone(),
            filter,
            variables: *variables,
        };
        let pid = build(directory, spec, root, &cgroup, init, pipes).inspect_err(|_| {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        })?;
        Ok(Isolated {
            directory: directory.clone(),
            pid,
            cgroup,
            verdict: verdict_read.into(),
        })
    }
}

/// Makes the cgroup and the first process, and waits until that has shut itself in.
fn build(
    directory: &Directory,
    spec: Spec,
    rootfs: PathBuf,
    cgroup: &Cgroup,
    init: Init,
    pipes: Pipes,
) -> Result<Pid, String> {
    let none = LinuxResources::default();
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let resources = resources.unwrap_or(&none).clone();
    cgroup.make(&resources).map_err(|error| format!("cgroup: {error}"))?;
    let null = fs::File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    let listener = NotifyListener::new(&directory.join(START)).map_err(|error| chain(&error))?;
    let args = ContainerArgs {
        container_type: ContainerType::InitContainer,
        syscall: SyscallType::Linux,
        spec: Rc::new(spec),
        rootfs,
        console_socket: None,
        notify_listener: listener,
        preserve_fds: 0,
        container: None,
        user_ns_config: None,
        cgroup_config: CgroupConfig {
            cgroup_path: "/".into(),
            systemd_cgroup: false,
            container_name: String::new(),
        },
        detached: true,
        executor: Box::new(init),
        no_pivot: false,
        stdin: Some(null.as_raw_fd()),
        stdout: Some(pipes.stdout.as_raw_fd()),
        stderr: Some(pipes.stderr.as_raw_fd()),
        as_sibling: false,
        pid_file: None,
    };
    // Nothing that comes into a namespace of the container may look into this process, or into the first one.
    nix::sys::prctl::set_dumpable(false).map_err(|error| format!("not dumpable: {}", error.desc()))?;
    let (to_shim, mut from_init) = channel::main_channel().map_err(|error| chain(&error))?;
    // Holds for the children of this process, of which there is one.
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| format!("pid namespace: {}", error.desc()))?;
    let pid = match sys::fork().map_err(|error| format!("first process: {}", error.desc()))? {
        ForkResult::Child => first_process(&args, cgroup, to_shim),
        ForkResult::Parent { child } => child,
    };
    // Now only the first process holds it: if that ends without a word, there is an end of the channel, too.
    to_shim.close().map_err(|error| chain(&error))?;
    let ready = from_init.wait_for_init_ready().map_err(|error| chain(&error));
    from_init.close().map_err(|error| chain(&error))?;
    ready?;
    cgroup
        .close_devices(&resources)
        .map_err(|error| format!("devices cgroup: {error}"))?;
    Ok(pid)
}

/// What the first process does, up to the command.
fn first_process(args: &ContainerArgs, cgroup: &Cgroup, mut to_shim: MainSender) -> ! {
    let Err(error) = shut_in(args, cgroup, &mut to_shim);
    // Without a shim nobody wants to know.
    let _ = to_shim.exec_failed(error);
    sys::exit(NOT_MADE)
}

/// Comes back only when it failed.
fn shut_in(
    args: &ContainerArgs,
    cgroup: &Cgroup,
    to_shim: &mut MainSender,
) -> Result<std::convert::Infallible, String> {
    let _ = nix::sys::prctl::set_name(c"muster-init");
    // Before anything else: all that it uses from here on is the container's.
    cgroup.join().map_err(|error| format!("cgroup: {error}"))?;
    let process = args.spec.process().as_ref().ok_or("the bundle has no process")?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(|error| format!("oom score: {error}"))?;
    }
    let system = args.syscall.create_syscall();
    for limit in process.rlimits().iter().flatten() {
        system.set_rlimit(limit).map_err(|error| chain(&error))?;
    }
    let (_, mut from_shim) = channel::init_channel().map_err(|error| chain(&error))?;
    container_init_process(args, to_shim, &mut from_shim).map_err(|error| chain(&error))?;
    Err("it is not to return".to_owned())
}

/// Puts together what becomes the root directory: a writable layer over the image, or nothing yet. In a mount namespace of the shim's own,
/// so the mount goes with the last process and the machine never sees it.
fn mount_root(root: &Path, image: Option<&Path>, directory: &Directory) -> Result<(), String> {
    let failed = |what: &str, error: nix::Error| format!("{what}: {}", error.desc());
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed("mount namespace", error))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|error| failed("private mounts", error))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let Some(image) = image else {
        // In memory: some twenty mount points would cost the disk more than all the rest of a container.
        let options = Some("mode=755,size=1m");
        return mount(Some("tmpfs"), root, Some("tmpfs"), flags, options).map_err(|error| failed("root", error));
    };
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
    mount(Some("overlay"), root, Some("overlay"), flags, Some(options.as_str()))
        .map_err(|error| failed("overlay", error))
}

impl Workload for Isolated {
    fn pid(&self) -> Option<Pid> {
        Some(self.pid)
    }

    fn start(&mut self) -> Result<(), String> {
        let socket = self.directory.join(START);
        let told = NotifySocket::new(&socket).notify_container_start();
        // It listens once.
        let _ = fs::remove_file(socket);
        told.map_err(|error| chain(&error))
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
    }
}
