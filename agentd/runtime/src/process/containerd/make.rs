//! Making a container with containerd, and taking it away.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status;
use nix::libc;
use oci_spec::runtime::Spec;
use prost::Message as _;
use prost_types::Any;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::super::config::Config as Base;
use super::super::directory::{Directory, ELSEWHERE, INIT, INIT_SOCKET};
use super::super::maker::Maker;
use super::super::prepare;
use super::super::shared::{Shared, blocking, system};
use super::client::{Client, Failure, absent_is_done};
use super::logger::logger;
use super::{Config, Strays, bundle, kind, plan, store};
use crate::limits::CONTAINERD_CALL_DEADLINE;
use crate::spec::VARIABLES;
use crate::{ContainerId, ContainerSpec, Error, Rootfs};

/// Label of a container: whose it is, by the cgroup that all of one state directory are in.
pub(super) const LABEL_OWNER: &str = "muster.dev/owner";

/// The longest label that containerd takes, name and value together.
const LABEL_MAX: usize = 4096;

/// What containerd runs containers with: its shim for runc.
const RUNTIME: &str = "io.containerd.runc.v2";

/// Where runc keeps what it knows. On a file system that a restart of the machine empties, and not containerd's usual place, which
/// several containerds on one machine would share.
const RUNC_ROOT: &str = "/run/muster/runc";

/// How often it is looked whether our shim holds the container: it has heard of it when the call to containerd returns, or hears within
/// a millisecond.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The first process of containers.
#[cfg(has_init)]
const INIT_BINARY: Option<&[u8]> = Some(include_bytes!(concat!(env!("OUT_DIR"), "/muster-init")));
#[cfg(not(has_init))]
const INIT_BINARY: Option<&[u8]> = None;

/// `containerd.runc.v1.Options`: of its fields, those that are set here.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
}

/// containerd, as the maker of containers.
pub(super) struct Daemon {
    pub(super) client: Client,
    /// See [`LABEL_OWNER`].
    pub(super) owner: String,
    pub(super) strays: Strays,
    runc: Option<PathBuf>,
    snapshotter: OnceCell<String>,
}

/// What a container sees as its root.
enum Root {
    /// The machine's.
    Host,
    /// A layer over a directory, which is unpacked already.
    Directory,
    /// A layer over an unpacked image of containerd.
    Snapshot { image: String, parent: String },
}

/// Directories that runc makes for all containers of one owner: in trees of cgroups that limit nothing, and for what it knows.
pub(super) fn left_by_runc(daemon: &Daemon) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let trees = cgroups.filter_map(|line| line.split(' ').nth(4));
    let below = |tree: &str| Path::new(tree).join(daemon.owner.trim_start_matches('/'));
    let root = PathBuf::from(format!("{RUNC_ROOT}{}", daemon.owner));
    let known = [root.join(daemon.client.namespace()), root];
    trees.map(below).chain(known).collect()
}

/// Where the first process of containers is kept: containers have links to it.
fn init_binary(base: &Base) -> PathBuf {
    base.state_dir.join("muster-init")
}

impl Daemon {
    pub(super) fn new(config: &Config) -> Result<Daemon, Error> {
        Ok(Daemon {
            client: Client::new(&config.socket, &config.namespace)?,
            owner: config.base.cgroup_parent.clone(),
            strays: Strays::default(),
            runc: config.runc.clone(),
            snapshotter: OnceCell::new_with(config.snapshotter.clone()),
        })
    }

    pub(super) async fn version(&self, patience: Duration) -> Result<String, Error> {
        kind::version(&self.client, patience).await
    }

    /// Puts the first process of containers into the state directory.
    pub(super) fn provide_init(&self, base: &Base) -> Result<(), Error> {
        let Some(bytes) = INIT_BINARY else {
            let message =
                "containers of containerd need a first process, which does not exist for this kind of processor";
            return Err(Error::Invalid(message.to_owned()));
        };
        let (path, new) = (init_binary(base), base.state_dir.join("muster-init.new"));
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.create(true).write(true).truncate(true).mode(0o555).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            drop(file);
            // A new file: the one before may be in use.
            fs::rename(&new, &path)
        };
        write().map_err(|error| system(&format!("writing {}", path.display()), &error))
    }

    async fn snapshotter(&self) -> Result<&str, Error> {
        let found = self.snapshotter.get_or_try_init(|| kind::snapshotter(&self.client));
        found.await.map(String::as_str)
    }

    fn snapshot_key(&self, id: &ContainerId) -> String {
        format!("{}-{id}", self.owner.trim_matches('/').replace('/', "-"))
    }

    /// Fills in what the image says, if there is one, and finds out what becomes the root; and the digest of the image.
    async fn resolve(&self, base: &Base, spec: &ContainerSpec) -> Result<(ContainerSpec, Root, Option<String>), Error> {
        let Rootfs::Image { name, args } = &spec.rootfs else {
            let root = match spec.rootfs {
                Rootfs::Directory(_) => Root::Directory,
                _ => Root::Host,
            };
            return Ok((spec.clone(), root, None));
        };
        let Some(image) = store::find(&self.client, name).await? else {
            // What was imported for the process runtime is as good.
            return match prepare::with_image(&base.images, spec, true) {
                Ok((spec, digest)) => Ok((spec, Root::Directory, digest)),
                Err(Error::ImageNotFound(_)) => Err(Error::ImageNotFound(self.absent(name))),
                Err(error) => Err(error),
            };
        };
        let snapshotter = self.snapshotter().await?;
        store::unpack(&self.client, snapshotter, &image).await?;
        let defaults = store::defaults(&self.client, snapshotter, &image).await?;
        let mut spec = spec.clone();
        prepare::say_what_is_not_said(&mut spec, name, args, defaults)?;
        let (name, parent) = (image.name.clone(), image.top().to_owned());
        Ok((spec, Root::Snapshot { image: name, parent }, Some(image.digest)))
    }

    fn not_ours(&self, id: &ContainerId) -> Error {
        Error::System {
            context: format!("containerd at {}", self.client.socket().display()),
            message: format!(
                "the container {id} in its namespace {} is somebody else's",
                self.client.namespace()
            ),
        }
    }

    fn absent(&self, name: &str) -> String {
        let (socket, namespace) = (self.client.socket().display(), self.client.namespace());
        format!(
            "the image {name} is not in the namespace {namespace} of containerd at {socket}. Import it on the machine of the agent: \
             mctl image import PATH --tag {name} --runtime containerd={socket}"
        )
    }

    async fn make_container(
        &self,
        id: &ContainerId,
        spec: &ContainerSpec,
        oci: &Spec,
        root: &Root,
    ) -> Result<(), Error> {
        let json = serde_json::to_vec(oci).map_err(|error| Error::Invalid(error.to_string()))?;
        let runc = RuncOptions {
            binary_name: self
                .runc
                .as_ref()
                .map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
            root: format!("{RUNC_ROOT}{}", self.owner),
        };
        let mut labels: BTreeMap<String, String> = spec.labels.clone();
        labels.retain(|name, value| name.len() + value.len() <= LABEL_MAX);
        labels.insert(LABEL_OWNER.to_owned(), self.owner.clone());
        let (image, snapshotter, snapshot_key) = match root {
            Root::Snapshot { image, .. } => (
                image.clone(),
                self.snapshotter().await?.to_owned(),
                self.snapshot_key(id),
            ),
            Root::Host | Root::Directory => Default::default(),
        };
        let container = Container {
            id: id.to_string(),
            labels: labels.into_iter().collect(),
            image,
            runtime: Some(ContainerRuntime {
                name: RUNTIME.to_owned(),
                options: Some(Any {
                    type_url: "containerd.runc.v1.Options".to_owned(),
                    value: runc.encode_to_vec(),
                }),
            }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: json,
            }),
            snapshotter,
            snapshot_key,
            ..Container::default()
        };
        let create = |container: Container| async {
            let mut containers = self.client.services().containers();
            let request = self.client.request(CreateContainerRequest {
                container: Some(container),
            });
            self.client
                .call("creating the container", containers.create(request))
                .await
        };
        match create(container.clone()).await {
            Err(Failure::Taken(_)) => {
                // Left by an agent that died, and whose directory is lost; or somebody else's, which stays.
                self.unmake(id).await?;
                match create(container).await {
                    Err(Failure::Taken(_)) => return Err(self.not_ours(id)),
                    other => drop(other?),
                }
            }
            other => drop(other?),
        }
        Ok(())
    }

    async fn mounts(
        &self,
        directory: &Directory,
        id: &ContainerId,
        spec: &ContainerSpec,
        root: Root,
    ) -> Result<Vec<Mount>, Error> {
        let parent = match (root, &spec.rootfs) {
            (Root::Snapshot { parent, .. }, _) => parent,
            (Root::Directory, Rootfs::Directory(lower)) => {
                let options = bundle::overlay(lower, &directory.join("upper"), &directory.join("work"));
                return Ok(vec![Mount {
                    r#type: "overlay".to_owned(),
                    source: "overlay".to_owned(),
                    options,
                    ..Mount::default()
                }]);
            }
            (_, _) => return Ok(Vec::new()),
        };
        let snapshotter = self.snapshotter().await?.to_owned();
        let prepare = || async {
            let mut snapshots = self.client.services().snapshots();
            let request = self.client.request(PrepareSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: self.snapshot_key(id),
                parent: parent.clone(),
                ..PrepareSnapshotRequest::default()
            });
            self.client.call("preparing the root", snapshots.prepare(request)).await
        };
        let prepared = match prepare().await {
            Err(Failure::Taken(_)) => {
                self.remove_snapshot(id).await?;
                prepare().await?
            }
            other => other?,
        };
        Ok(prepared.mounts)
    }

    async fn make_task(
        &self,
        base: &Base,
        directory: &Directory,
        id: &ContainerId,
        rootfs: Vec<Mount>,
    ) -> Result<(), Error> {
        let logger = logger(base, directory)?;
        let mut tasks = self.client.services().tasks();
        let request = self.client.request(CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdout: logger.clone(),
            stderr: logger,
            ..CreateTaskRequest::default()
        });
        self.client.call("creating the task", tasks.create(request)).await?;
        let request = self.client.request(StartRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        });
        self.client.call("starting the task", tasks.start(request)).await?;
        let deadline = Instant::now() + CONTAINERD_CALL_DEADLINE;
        let failed = |error: io::Error| system("waiting for the shim", &error);
        while directory.status().map_err(failed)?.is_none() {
            if directory.shim().map_err(failed)?.is_none() && directory.status().map_err(failed)?.is_none() {
                return Err(system("the shim", &io::Error::other("it has ended")));
            }
            if Instant::now() > deadline {
                return Err(Error::Deadline {
                    call: "waiting for the shim",
                    deadline: CONTAINERD_CALL_DEADLINE,
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn remove_snapshot(&self, id: &ContainerId) -> Result<(), Error> {
        let snapshotter = self.snapshotter().await?.to_owned();
        let mut snapshots = self.client.services().snapshots();
        let request = self.client.request(RemoveSnapshotRequest {
            snapshotter,
            key: self.snapshot_key(id),
        });
        absent_is_done(self.client.call("removing the root", snapshots.remove(request)).await)?;
        Ok(())
    }

    /// Ends the task of a container, if there is one, and takes it away.
    async fn end_task(&self, id: &ContainerId) -> Result<(), Error> {
        let mut tasks = self.client.services().tasks();
        let get = self.client.request(GetRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        });
        let found = absent_is_done(self.client.call("looking for the task", tasks.get(get)).await)?;
        let Some(process) = found.and_then(|found| found.process) else {
            return Ok(());
        };
        if process.status() != Status::Stopped {
            let kill = self.client.request(KillRequest {
                container_id: id.to_string(),
                signal: libc::SIGKILL.unsigned_abs(),
                all: true,
                ..KillRequest::default()
            });
            absent_is_done(self.client.call("killing the task", tasks.kill(kill)).await)?;
            let wait = self.client.request(WaitRequest {
                container_id: id.to_string(),
                exec_id: String::new(),
            });
            absent_is_done(self.client.call("waiting for the task", tasks.wait(wait)).await)?;
        }
        let delete = self.client.request(DeleteTaskRequest {
            container_id: id.to_string(),
        });
        absent_is_done(self.client.call("deleting the task", tasks.delete(delete)).await).map(drop)
    }
}

#[async_trait]
impl Maker for Daemon {
    async fn make(
        &self,
        shared: &Shared,
        directory: &Directory,
        id: &ContainerId,
        spec: &ContainerSpec,
    ) -> Result<(), Error> {
        let base = &shared.config;
        let (resolved, root, digest) = self.resolve(base, spec).await?;
        let hierarchies = shared
            .hierarchies
            .clone()
            .expect("without any, this runtime is not opened");
        let filled = {
            let (base, directory, id) = (base.clone(), directory.clone(), id.clone());
            let (asked, resolved) = (spec.clone(), resolved.clone());
            blocking("preparing the container", move || {
                prepare::begin(&directory, &resolved)?;
                let failed = |error: io::Error| system("preparing the container", &error);
                let making = directory.lock_making().map_err(failed)?;
                let making =
                    making.ok_or_else(|| failed(io::Error::other("another agent takes away what is there")))?;
                let host = resolved.rootfs == Rootfs::Host;
                let at = bundle::root(directory.path(), host);
                let (oci, cgroup, (_, links)) =
                    prepare::bundle(&base, &hierarchies, &directory, (&id, &resolved), &at)?;
                if host {
                    directory.make_inner("rootfs", 0o755).map_err(failed)?;
                }
                for (name, target) in links {
                    symlink(target, directory.join("rootfs").join(name)).map_err(failed)?;
                }
                let init = directory.make_inner(INIT, 0o755).map_err(failed)?;
                fs::hard_link(init_binary(&base), init.join(INIT)).map_err(failed)?;
                let variables = resolved.variables.as_ref().map_or("", |_| VARIABLES);
                let cwd = prepare::working_dir(&resolved);
                let edits = bundle::with_init(&init, (INIT, INIT_SOCKET), &cwd, variables)?;
                let oci = bundle::apply(oci, edits);
                prepare::save(&directory, &oci)?;
                fs::write(directory.join(ELSEWHERE), "").map_err(failed)?;
                prepare::finish(&base, &directory, plan(cgroup, &resolved), &asked, digest).map_err(failed)?;
                Ok((oci, making))
            })
        };
        let (oci, _making) = filled.await?;
        let made = async {
            self.make_container(id, spec, &oci, &root).await?;
            let mounts = self.mounts(directory, id, &resolved, root).await?;
            self.make_task(base, directory, id, mounts).await
        };
        made.await.map_err(|error| with_reason(error, directory))
    }

    async fn unmake(&self, id: &ContainerId) -> Result<(), Error> {
        let mut containers = self.client.services().containers();
        let request = self.client.request(GetContainerRequest { id: id.to_string() });
        let found = absent_is_done(
            self.client
                .call("looking for the container", containers.get(request))
                .await,
        )?;
        let Some(container) = found.and_then(|found| found.container) else {
            // The snapshot is collected when nothing names it; sooner is better.
            return self.remove_snapshot(id).await;
        };
        if container.labels.get(LABEL_OWNER) != Some(&self.owner) {
            return Ok(());
        }
        self.end_task(id).await?;
        let request = self.client.request(DeleteContainerRequest { id: id.to_string() });
        absent_is_done(
            self.client
                .call("deleting the container", containers.delete(request))
                .await,
        )?;
        if container.snapshot_key.is_empty() {
            Ok(())
        } else {
            self.remove_snapshot(id).await
        }
    }
}

/// Adds what our shim has said before it ended.
fn with_reason(error: Error, directory: &Directory) -> Error {
    let said = fs::read_to_string(directory.join("shim.log")).unwrap_or_default();
    match error {
        Error::System { context, message } if !said.trim().is_empty() => Error::System {
            context,
            message: format!("{message}; the shim: {}", said.trim()),
        },
        error => error,
    }
}
