//! The agent of one machine: it runs the tasks that are bound to it and says how they fare.
//!
//! [`run`] is all of it. The decisions are one pure function ([`plan::plan`]) from the tasks of the API and the containers of the runtime
//! to actions and reports; around it are a view of the tasks ([`feed`], [`view`]), a session that fences every write ([`session`]), the
//! Agent object ([`register`]), jobs ([`executor`], [`report`]) and a server for logs ([`server`]).
//!
//! It promises: no container is started twice, no terminal status is said while something is left, containers outlive the agent and are
//! found again by its next process. What must never happen here: a file, clock or random number that is not handed in (all of [`run`] works
//! on virtual time; [`machine`] is what reads the real one, before), a fact kept in memory that a restart would miss.
//!
//! Tested by tables and properties of the plan, and by whole agents against a real router with a fake runtime.

mod agent;
pub mod ask;
pub mod data_dir;
pub mod devices;
pub mod doctor;
pub mod executor;
pub mod feed;
pub mod limits;
pub mod machine;
pub mod metrics;
pub mod orphans;
pub mod plain;
pub mod plan;
pub mod pulls;
pub mod register;
pub mod registries;
pub mod report;
pub mod restart;
pub mod runtimes;
pub mod server;
pub mod session;
pub mod sources;
pub mod spec;
pub mod status;
pub mod streams;
pub mod tls;
pub mod trust;
pub mod usage;
pub mod view;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use muster_api::env::Env;
use muster_api::v1::{AgentCapacity, Versions};
use muster_client::Client;
use muster_runtime::Runtime;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use agent::{Agent, Parts};
use data_dir::DataDir;
use devices::DeviceSource;
use limits::{REQUEST_DEADLINE, VIEW_EVENTS};
use register::{Health, Profile, Registrar};
use session::{Identity, Keeper, Session};
use usage::Meter;
use volumes::Places;

/// How long a session lasts without renewal when nothing else is said.
pub const SESSION_TTL: Duration = Duration::from_secs(15);

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Which process of which machine this is: from [`machine::Claim`].
    pub identity: Identity,
    /// What tasks may select it by; used when the Agent object is made. `hostname` is added when it is missing.
    pub attributes: BTreeMap<String, String>,
    /// What it may give to tasks, GPUs aside: from [`machine::capacity`].
    pub capacity: AgentCapacity,
    /// What runs on the machine.
    pub versions: Versions,
    /// How long its session lasts without renewal; whole seconds.
    pub session_ttl: Duration,
    /// The node server, for logs, streams and what is used; `None`: there is none.
    pub server: Option<NodeServer>,
    /// Where it keeps what it knows of the cluster.
    pub data: DataDir,
    /// Where the directories of tasks are.
    pub places: Places,
    /// Whether all tasks are stopped, and said to be killed, when the agent is told to stop. Otherwise they go on, and the next process of
    /// the agent finds them.
    pub stop_tasks_on_shutdown: bool,
}

/// Where and how the node server listens.
#[derive(Clone, Debug)]
pub struct NodeServer {
    /// The address; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// The host that others reach it by; without it, the address that it listens on.
    pub advertise: Option<String>,
    /// Its certificate and whom it trusts; connections that come later see the newest.
    pub tls: watch::Receiver<tls::Material>,
    /// Where metrics are served in the clear, besides.
    pub metrics: Option<SocketAddr>,
}

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A later process of the agent runs.
    #[error(transparent)]
    Superseded(#[from] session::Superseded),
    /// The name belongs to another machine, or to a later copy of this one's disk.
    #[error(transparent)]
    Refused(#[from] register::Refused),
    /// The node server, or that of the metrics, cannot listen.
    #[error("the agent cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificate of the node server is of no use.
    #[error("the node server's TLS material is not usable")]
    Tls(#[from] tls::MaterialError),
    /// A part of the agent panicked.
    #[error("a part of the agent failed")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Runs an agent until it is told to stop. Dropping the future stops everything at once, as a crash does.
///
/// # Errors
/// When there must be no more of this agent; see [`Error`]. An API server that does not answer is no error.
pub async fn run(
    client: Client,
    runtime: Arc<dyn Runtime>,
    devices: Arc<dyn DeviceSource>,
    env: Arc<dyn Env>,
    config: Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut helpers: JoinSet<Result<(), Error>> = JoinSet::new();
    let address = match &config.server {
        Some(server) => {
            let meter = Meter::new(
                &config.name,
                Arc::clone(&runtime),
                Arc::clone(&devices),
                Arc::clone(&env),
            );
            let meter = Arc::new(meter);
            let router =
                server::router(Arc::clone(&runtime), Arc::clone(&env)).merge(usage::routes(Arc::clone(&meter)));
            let address = listen(server, router, &mut helpers).await?;
            if let Some(address) = server.metrics {
                let failed = |source| Error::Listen { address, source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let router = usage::metrics_route(Arc::clone(&meter));
                helpers.spawn(async move {
                    plain::serve(listener, router).await;
                    Ok(())
                });
            }
            helpers.spawn(async move {
                meter.run().await;
                Ok(())
            });
            Some(address)
        }
        None => None,
    };
    let (clusters_out, clusters) = watch::channel(BTreeSet::new());
    let client = client.noting_clusters(clusters_out);
    let (health_out, health) = watch::channel(Health::default());
    let (confirmed_out, confirmed) = watch::channel(None);
    let doubt = Arc::new(Notify::new());
    let (sessions_out, sessions) = watch::channel(None);
    let (active_out, active) = watch::channel(None);
    let (events_out, events) = mpsc::channel(VIEW_EVENTS);
    let keeper = Keeper {
        client: client.clone(),
        agent: config.name.clone(),
        identity: config.identity.clone(),
        ttl: config.session_ttl,
        out: sessions_out,
        doubt: Arc::clone(&doubt),
        runtime: Arc::clone(&runtime),
    };
    helpers.spawn(async move {
        match keeper.keep().await {
            Err(error) => Err(error.into()),
        }
    });
    let registrar = Registrar {
        profile: profile(&config, runtime.as_ref(), address),
        devices: Arc::clone(&devices),
        env: Arc::clone(&env),
        sessions: sessions.clone(),
        out: active_out,
        doubt: Arc::clone(&doubt),
        incarnation: config.identity.incarnation,
        health,
        confirmed: confirmed_out,
    };
    helpers.spawn(async move { Ok(registrar.register().await?) });
    let relist = Arc::new(Notify::new());
    let feed = feed::feed(client.clone(), config.name.clone(), events_out, Arc::clone(&relist));
    helpers.spawn(async move {
        feed.await;
        Ok(())
    });
    let agent = Agent::new(Parts {
        name: config.name,
        boot_id: config.identity.boot_id,
        client,
        data: config.data,
        places: Arc::new(config.places),
        clusters,
        health: health_out,
        confirmed,
        relist,
        runtime,
        devices,
        env,
        active,
        events,
        doubt,
        stop,
        stop_tasks: config.stop_tasks_on_shutdown,
    });
    let mut main = std::pin::pin!(agent.run());
    let result = loop {
        tokio::select! {
            biased;
            Some(ended) = helpers.join_next() => match ended {
                // Nothing feeds the loop any more, so it ends.
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(error) => break Err(error.into()),
            },
            ended = &mut main => break ended.map_err(Error::from),
        }
    };
    let last = sessions.borrow().clone();
    helpers.shutdown().await;
    if let (Ok(()), Some(session)) = (&result, last) {
        release(&session).await;
    }
    result
}

/// The session ends now, not when its time is over.
async fn release(session: &Session) {
    match timeout(REQUEST_DEADLINE, session.client.release(&session.fence)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the session was not released; it ends by itself"),
        Err(_) => tracing::warn!("the session was not released in time; it ends by itself"),
    }
}

async fn listen(
    server: &NodeServer,
    router: axum::Router,
    helpers: &mut JoinSet<Result<(), Error>>,
) -> Result<String, Error> {
    let failed = |source| Error::Listen {
        address: server.listen,
        source,
    };
    let listener = TcpListener::bind(server.listen).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let acceptors = tls::Acceptors::new(server.tls.clone())?;
    helpers.spawn(async move {
        server::serve(listener, acceptors, router).await;
        Ok(())
    });
    Ok(match &server.advertise {
        Some(host) => format!("{host}:{}", local.port()),
        None => local.to_string(),
    })
}

fn profile(config: &Config, runtime: &dyn Runtime, address: Option<String>) -> Profile {
    let mut attributes = config.attributes.clone();
    attributes
        .entry("hostname".to_owned())
        .or_insert_with(|| config.name.clone());
    Profile {
        name: config.name.clone(),
        machine: config.identity.machine.clone(),
        boot_id: config.identity.boot_id.clone(),
        attributes,
        capacity: config.capacity.clone(),
        versions: Versions {
            muster: env!("CARGO_PKG_VERSION").to_owned(),
            ..config.versions.clone()
        },
        address,
        missing: runtime.isolation().missing,
    }
}
