//! Agents in this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_agentd::data_dir::DataDir;
use muster_agentd::devices::{DeviceSource, GpuChoice};
use muster_agentd::machine::{self, Claim};
use muster_agentd::runtimes::Opened;
use muster_agentd::tls::Material;
use muster_agentd::volumes::Places;
use muster_agentd::{Config, NodeServer, SESSION_TTL};
use muster_api::env::{Env, SystemEnv};
use muster_api::names;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::v1::{AgentCapacity, Versions};
use muster_client::Client;
use muster_runtime::{FakeRuntime, Images, process};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::{Offered, RuntimeKind};
use super::control::because;
use crate::failure::{Failure, Outcome};

/// Everything that an agent is run with.
pub(super) struct Agent {
    /// Its name.
    pub(super) name: String,
    /// What it has to give.
    pub(super) capacity: AgentCapacity,
    config: Config,
    runtime: Opened,
    devices: Arc<dyn DeviceSource>,
    /// Keeps the directory its own.
    _claim: Claim,
}

/// Where an agent lives and what it is told.
pub(super) struct Place<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its own directory.
    pub(super) directory: PathBuf,
    /// What no task may see, besides that.
    pub(super) hidden: Vec<PathBuf>,
    /// How many agents share the machine, and which of them this is, from 0.
    pub(super) share: (u32, u32),
    /// The ports of all agents of the machine.
    pub(super) ports: PortSet,
    /// Where the node server listens, and the host that it is reached by.
    pub(super) listen: (SocketAddr, Option<String>),
    /// Its certificates.
    pub(super) tls: watch::Receiver<Material>,
    /// Whether tasks end with the agent.
    pub(super) stop_tasks: bool,
    /// Where images are, unless it is said.
    pub(super) images: PathBuf,
}

impl Agent {
    /// Makes everything ready; nothing is said to the API server yet. `claim` is on the place's directory.
    pub(super) async fn open(place: Place<'_>, claim: Claim, offered: &Offered) -> Outcome<Agent> {
        let name = place.name;
        if let Some(problem) = names::dns_subdomain_problem(name) {
            return Err(Failure::new(format!(
                "`{name}` cannot be the name of an agent: {problem}"
            )));
        }
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let gpus = gpus_of(&offered.gpus, place.share.1);
        let devices = gpus.open(name, &place.directory, &claim.identity.boot_id, &env);
        let devices = devices.map_err(|error| because("--gpus", &error))?;
        let capacity = capacity(&place, offered)?;
        let hostname = machine::hostname().unwrap_or_else(|| name.to_owned());
        let attributes: BTreeMap<String, String> = [("hostname".to_owned(), hostname)]
            .into_iter()
            .chain(offered.attributes.iter().cloned())
            .collect();
        let runtime = runtime(&place, offered).await?;
        let places = match offered.runtime {
            // A simulated task sees nothing.
            RuntimeKind::Fake => Places::default(),
            RuntimeKind::Real(_) => offered
                .volumes
                .places(&place.directory)
                .map_err(|error| because("--allow-host-path", &error))?,
        };
        let config = Config {
            name: name.to_owned(),
            identity: claim.identity.clone(),
            attributes,
            capacity: capacity.clone(),
            versions: Versions {
                kernel: machine::read("/proc/sys/kernel/osrelease"),
                runtime: runtime.version.clone(),
                ..Versions::default()
            },
            session_ttl: SESSION_TTL,
            server: Some(NodeServer {
                listen: place.listen.0,
                advertise: place.listen.1,
                tls: place.tls,
                metrics: offered.metrics_listen.filter(|_| place.share.1 == 0),
            }),
            data: DataDir::at(&place.directory),
            places,
            stop_tasks_on_shutdown: place.stop_tasks,
        };
        let mut shown = capacity;
        shown.gpus = u32::try_from(devices.discover().len()).unwrap_or(u32::MAX);
        Ok(Agent {
            name: name.to_owned(),
            capacity: shown,
            config,
            runtime,
            devices,
            _claim: claim,
        })
    }

    /// Runs it until it is told to stop.
    pub(super) async fn run(self, client: Client, stop: CancellationToken) -> Outcome<()> {
        let (runtime, close) = self.runtime.split();
        let ran = muster_agentd::run(client, runtime, self.devices, Arc::new(SystemEnv), self.config, stop).await;
        close();
        ran.map_err(|error| because(&format!("the agent {}", self.name), &error))
    }
}

/// Takes the directory of an agent.
pub(super) async fn claim(directory: &Path) -> Outcome<Claim> {
    let taken = Claim::take(directory, &SystemEnv).await;
    taken.map_err(|error| because("the agent", &error))
}

async fn runtime(place: &Place<'_>, offered: &Offered) -> Outcome<Opened> {
    let RuntimeKind::Real(choice) = &offered.runtime else {
        let runtime = FakeRuntime::new(|| SystemEnv.now().as_millisecond());
        return Ok(Opened::new(
            Arc::new(runtime),
            format!("fake/{}", env!("CARGO_PKG_VERSION")),
        ));
    };
    let hidden = place.hidden.iter().chain([&place.directory]).map(PathBuf::as_path);
    let hidden = hidden.chain(offered.registries.secrets());
    let images = offered.images.as_ref().unwrap_or(&place.images);
    let images = std::path::absolute(images).map_err(|error| because("--images", &error))?;
    let base = process::Config {
        hidden: hidden.filter_map(|path| path.canonicalize().ok()).collect(),
        images: Images::new(images),
        registries: offered
            .registries
            .config()
            .map_err(|error| because("--registry-credentials, --registry-ca", &error))?,
        ..process::Config::new(place.directory.join("runtime"))
    };
    let opened = Opened::open(choice, base).await;
    opened.map_err(|error| because(&format!("--runtime {choice}"), &error))
}

/// The devices of the machine are given out by one agent of it.
fn gpus_of(gpus: &GpuChoice, index: u32) -> GpuChoice {
    match gpus {
        GpuChoice::Auto | GpuChoice::Nvml(_) | GpuChoice::Cdi(_) if index > 0 => GpuChoice::None,
        gpus => gpus.clone(),
    }
}

/// What was given, or the agent's share of what the machine has.
fn capacity(place: &Place<'_>, offered: &Offered) -> Outcome<AgentCapacity> {
    let found = machine::capacity(&place.directory).map_err(|error| because("the machine", &error))?;
    let (of, index) = (place.share.0.max(1), place.share.1);
    let shared = u64::from(of);
    Ok(AgentCapacity {
        cpus: offered.cpus.unwrap_or(Scalar::from_milli(found.cpus.milli() / shared)),
        memory: offered.memory.unwrap_or(whole_mib(found.memory.bytes() / shared)),
        disk: offered.disk.unwrap_or(whole_mib(found.disk.bytes() / shared)),
        gpus: 0,
        ports: share(&place.ports, of, index),
    })
}

/// Whole mebibytes read better.
fn whole_mib(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes >> 20 << 20)
}

/// One of so many equal parts of the ports.
fn share(ports: &PortSet, of: u32, index: u32) -> PortSet {
    let each = ports.len() / of;
    let before = ports.lowest(each * index).unwrap_or_default();
    ports.difference(&before).lowest(each).unwrap_or_default()
}

/// The name of this machine as that of an agent.
pub(super) fn own_name() -> String {
    let name = machine::hostname().unwrap_or_default().to_lowercase();
    if names::dns_subdomain_problem(&name).is_none() {
        name
    } else {
        "agent-1".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_one_machine_share_its_ports() {
        let all: PortSet = "31000-31009".parse().expect("ports");
        assert_eq!(share(&all, 1, 0), all);
        assert_eq!(share(&all, 3, 0).to_string(), "31000-31002");
        assert_eq!(share(&all, 3, 2).to_string(), "31006-31008");
    }

    #[test]
    fn the_gpus_of_a_machine_are_given_out_by_one_agent() {
        assert_eq!(gpus_of(&GpuChoice::Auto, 0), GpuChoice::Auto);
        assert_eq!(gpus_of(&GpuChoice::Auto, 1), GpuChoice::None);
        let simulated = GpuChoice::Simulated("8xH100".to_owned());
        assert_eq!(gpus_of(&simulated, 1), simulated);
    }
}
