//! Everything that is on disk before a shim is run: the directory of a container, its plan, its bundle.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use oci_spec::runtime::Spec;

use super::cgroup::{Cgroup, Hierarchies};
use super::config::{Config, Isolate};
use super::directory::{Directory, Held, Plan, ROOT};
use super::host;
use super::shared::system;
use super::shim::Watched;
use crate::images::{Defaults, ImageError};
use crate::spec::{SANDBOX, Site, environment, generate};
use crate::{ContainerId, ContainerSpec, Error, Images, Isolation, Rootfs};

/// Finds out what can be isolated here: where cgroups are, when commands can be isolated at all; and what is missing.
pub(super) fn isolation(config: &Config) -> (Option<Hierarchies>, Isolation) {
    let possible = match config.isolate {
        Isolate::Plain => Err("not wanted by the configuration".to_owned()),
        Isolate::Auto if !geteuid().is_root() => Err("the agent does not run as root".to_owned()),
        Isolate::Auto => hierarchies(config).map_err(|error| format!("cgroups cannot be made here: {error}")),
    };
    let mut missing = BTreeMap::from([("network", "containers share the machine's network".to_owned())]);
    let hierarchies = match possible {
        Ok(hierarchies) => {
            missing.insert(
                "users",
                "root in a container is the machine's root, without capabilities".to_owned(),
            );
            if let Hierarchies::V2(_) = hierarchies {
                let why = "cgroup v2 has no device rules here; only the nodes asked for are made, and none can be made inside";
                missing.insert("devices", why.to_owned());
            }
            Some(hierarchies)
        }
        Err(why) => {
            let parts = ["capabilities", "cgroups", "devices", "files", "namespaces", "seccomp"];
            missing.extend(parts.map(|part| (part, why.clone())));
            None
        }
    };
    let missing = missing.into_iter().map(|(part, why)| (part.to_owned(), why)).collect();
    (hierarchies, Isolation { missing })
}

fn hierarchies(config: &Config) -> io::Result<Hierarchies> {
    let hierarchies = Hierarchies::detect()?;
    hierarchies.probe(&config.cgroup_parent)?;
    Ok(hierarchies)
}

/// Makes the directory of a container. What the spec asks for and the machine does not have is [`Error::Invalid`].
pub(super) fn prepare(
    config: &Config,
    hierarchies: Option<&Hierarchies>,
    directory: &Directory,
    id: &ContainerId,
    spec: &ContainerSpec,
) -> Result<(), Error> {
    let failed = |error: io::Error| system("preparing the container", &error);
    // What is kept is what was asked for; what is made is what came of it.
    let (resolved, digest) = with_image(&config.images, spec, hierarchies.is_some())?;
    let (asked, spec) = (spec, &resolved);
    let sandbox = begin(directory, spec)?;
    let isolation = match hierarchies {
        Some(hierarchies) => isolated(config, hierarchies, directory, id, spec)?,
        None => plain(&sandbox, spec)?,
    };
    finish(config, directory, isolation, asked, digest).map_err(failed)
}

/// Makes the directory and, in it, the sandbox.
pub(super) fn begin(directory: &Directory, spec: &ContainerSpec) -> Result<PathBuf, Error> {
    let failed = |error: io::Error| system("preparing the container", &error);
    check_paths(spec)?;
    directory.make().map_err(failed)?;
    let sandbox = directory.make_inner("sandbox", 0o700).map_err(failed)?;
    if let Some(user) = spec.user
        && geteuid().is_root()
    {
        chown(&sandbox, Some(user.uid), Some(user.gid)).map_err(failed)?;
    }
    Ok(sandbox)
}

/// Writes the plan down, and at last what was asked for, with the digest of its image.
pub(super) fn finish(
    config: &Config,
    directory: &Directory,
    isolation: Held,
    asked: &ContainerSpec,
    digest: Option<String>,
) -> io::Result<()> {
    let plan = Plan {
        isolation,
        log_bytes: asked.limits.log_bytes,
        watched: asked.limits.fence.map(|fence| Watched {
            fence,
            vouched: config.vouched(),
        }),
    };
    directory.write("plan", &plan)?;
    directory.describe(asked, digest)
}

/// Fills in what the image says, if there is one, and puts its directory in the place of its name; and the digest of the image.
pub(super) fn with_image(
    images: &Images,
    spec: &ContainerSpec,
    isolated: bool,
) -> Result<(ContainerSpec, Option<String>), Error> {
    let Rootfs::Image { name, args } = &spec.rootfs else {
        return Ok((spec.clone(), None));
    };
    if !isolated {
        return Err(impossible(&format!("the image {name}")));
    }
    let image = images.find(name).map_err(|error| match error {
        ImageError::NotFound(message) => Error::ImageNotFound(message),
        ImageError::Invalid(message) => Error::Invalid(format!("the image {name}: {message}")),
        ImageError::Io { context, source } => system(&context, &source),
    })?;
    let mut spec = spec.clone();
    say_what_is_not_said(&mut spec, name, args, image.defaults)?;
    // The real path: it becomes the option of a mount.
    let rootfs = image
        .rootfs
        .canonicalize()
        .map_err(|error| system("the image", &error))?;
    spec.rootfs = Rootfs::Directory(rootfs);
    spec.check()?;
    Ok((spec, image.digest))
}

/// Lets the image say what the container does not.
pub(super) fn say_what_is_not_said(
    spec: &mut ContainerSpec,
    name: &str,
    args: &[String],
    image: Defaults,
) -> Result<(), Error> {
    spec.argv = image.argv(&spec.argv, args);
    if spec.argv.is_empty() {
        return Err(Error::Invalid(format!(
            "the image {name} does not say what to run; set a command"
        )));
    }
    for (variable, value) in image.env {
        spec.env.entry(variable).or_insert(value);
    }
    spec.working_dir = spec.working_dir.take().or(image.working_dir);
    spec.user = spec.user.or(image.user);
    Ok(())
}

fn impossible(what: &str) -> Error {
    Error::Invalid(format!(
        "{what} needs isolation, which is not possible here: the agent must run as root, with cgroups"
    ))
}

fn check_paths(spec: &ContainerSpec) -> Result<(), Error> {
    let image = match &spec.rootfs {
        Rootfs::Host | Rootfs::Image { .. } => None,
        Rootfs::Directory(path) if path.is_dir() => None,
        Rootfs::Directory(path) => Some(path),
    };
    let sources = spec.mounts.iter().map(|mount| &mount.source).chain(&spec.variables);
    let missing = {
        let mut sources = sources;
        sources.find(|source| !source.exists()).or(image)
    };
    if let Some(path) = missing {
        return Err(Error::Invalid(format!("{} does not exist", path.display())));
    }
    let targets = spec.mounts.iter().map(|mount| &mount.target);
    let mut targets = targets.chain(spec.memory.iter().map(|memory| &memory.target));
    let nowhere = targets.find(|target| spec.rootfs == Rootfs::Host && !host::has_place(target));
    nowhere.map_or(Ok(()), |target| {
        Err(Error::Invalid(format!(
            "there is no directory {} on the machine, whose root the command sees: mount below /run, /tmp or {SANDBOX}, or use an image",
            target.display()
        )))
    })
}

fn isolated(
    config: &Config,
    hierarchies: &Hierarchies,
    directory: &Directory,
    id: &ContainerId,
    spec: &ContainerSpec,
) -> Result<Held, Error> {
    let rootfs = config.state_dir.join(ROOT);
    let (mut oci, cgroup, top) = bundle(config, hierarchies, directory, (id, spec), &rootfs)?;
    // The same for all: the first process installs it as it was compiled once ([`super::filter`]).
    if let Some(linux) = oci.linux_mut() {
        linux.set_seccomp(None);
    }
    save(directory, &oci)?;
    let image = match &spec.rootfs {
        Rootfs::Host | Rootfs::Image { .. } => None,
        Rootfs::Directory(image) => Some(image.clone()),
    };
    Ok(Held::Isolated {
        cgroup,
        cwd: working_dir(spec),
        links: top.1,
        image,
        variables: spec.variables.is_some(),
    })
}

/// Where a command starts.
pub(super) fn working_dir(spec: &ContainerSpec) -> PathBuf {
    spec.working_dir.clone().unwrap_or_else(|| PathBuf::from(SANDBOX))
}

/// Writes the OCI spec down.
pub(super) fn save(directory: &Directory, oci: &Spec) -> Result<(), Error> {
    let saved = oci.save(directory.join("bundle/config.json"));
    saved.map_err(|error| Error::System {
        context: "writing the bundle".to_owned(),
        message: error.to_string(),
    })
}

/// Makes the directories of an isolated container; gives its OCI spec, its cgroup, and what of the machine it sees. `root`: the directory that
/// becomes its `/`.
pub(super) fn bundle(
    config: &Config,
    hierarchies: &Hierarchies,
    directory: &Directory,
    (id, spec): (&ContainerId, &ContainerSpec),
    root: &Path,
) -> Result<(Spec, String, host::Top), Error> {
    let failed = |error: io::Error| system("preparing the container", &error);
    // Whoever the command runs as, it comes to its files through mounts.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).map_err(failed)?;
    let inner = |name, mode| directory.make_inner(name, mode).map_err(failed);
    inner("bundle", 0o700)?;
    let tmp = inner("tmp", 0o1777)?;
    let top = match &spec.rootfs {
        Rootfs::Host => host::top().map_err(failed)?,
        Rootfs::Image { .. } => host::Top::default(),
        Rootfs::Directory(_) => {
            inner("upper", 0o755)?;
            inner("work", 0o700)?;
            host::Top::default()
        }
    };
    let cgroup = format!("{}/{id}", config.cgroup_parent);
    let site = Site {
        id,
        rootfs: root,
        sandbox: &directory.join("sandbox"),
        tmp: &tmp,
        cgroup: &cgroup,
        shown: &top.0,
        hidden: &host::hidden(&config.hidden, [config.state_dir.as_path(), config.images.root()]),
        devices: &host::device_numbers(&spec.devices)?,
        open_files: getrlimit(Resource::RLIMIT_NOFILE)
            .map_err(|error| failed(error.into()))?
            .1,
        swap_accounting: hierarchies.counts_swap(),
    };
    let mut oci = generate(spec, &site)?;
    // The first process goes to the working directory when the command is run: one that does not exist is then an exit of the container,
    // like a command that does not exist, and not a creation that fails again and again.
    if let Some(process) = oci.process_mut() {
        process.set_cwd("/".into());
    }
    // An earlier container of this name, lost with its directory, may have left something.
    let left = Cgroup::new(hierarchies.clone(), &cgroup);
    left.kill().and_then(|()| left.remove()).map_err(failed)?;
    Ok((oci, cgroup, top))
}

fn plain(sandbox: &Path, spec: &ContainerSpec) -> Result<Held, Error> {
    let impossible = |what: &str| Err(impossible(what));
    if spec.rootfs != Rootfs::Host {
        return impossible("an image");
    }
    if !spec.mounts.is_empty() || !spec.memory.is_empty() {
        return impossible("a mount");
    }
    host::device_numbers(&spec.devices)?;
    let user = spec.user.map(|user| (user.uid, user.gid));
    let own = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if user.is_some_and(|user| user != own) && !geteuid().is_root() {
        return impossible("another user");
    }
    Ok(Held::Plain {
        argv: spec.argv.clone(),
        env: environment(spec, &sandbox.to_string_lossy()),
        cwd: spec.working_dir.clone().unwrap_or_else(|| sandbox.to_owned()),
        variables: spec.variables.clone(),
        user: user.filter(|user| *user != own),
    })
}

/// Empties the trash of removals that were not finished.
pub(super) fn empty_trash(state_dir: &Path) {
    for entry in fs::read_dir(state_dir.join("trash")).into_iter().flatten().flatten() {
        // Another agent may be at it; what stays is found next time.
        let _ = fs::remove_dir_all(entry.path());
    }
}
