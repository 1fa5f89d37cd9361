//! A whole cluster in this process, or a part of one: `mctl dev`, `mctl server`, `mctl agent`.
//!
//! Only constructors are called here; everything is made of the very parts that run apart in production. Promised: a second start on the
//! same directory goes on where the first one ended; a directory is used by one process at a time; Ctrl-C leaves no task running.

mod agents;
pub mod args;
mod control;
pub(crate) mod directory;
mod invitation;
mod membership;
mod notify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_agentd::machine::Claim;
use muster_agentd::tls::{Material, fixed};
use muster_api::env::{Env as _, SystemEnv};
use muster_api::names::NAMESPACE_AGENTS;
use muster_api::ports::PortSet;
use muster_apiserver::files;
use muster_apiserver::kubeconfig as kubeconfig_of;
use muster_apiserver::launch::Options;
use muster_client::Client;
use muster_store::Store;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::commands::wait::condition;
use crate::failure::{Exit, Failure, Outcome};
use crate::kubeconfig;
use crate::observe::Observer;
use crate::rest::{CallError, Rest};
use crate::session::{Terminal, ours};
use crate::style::Paint;
use agents::{Agent, Place};
use args::{AgentArgs, DevArgs, Join, ServerArgs};
use control::{ControlPlane, because};
use directory::Directory;
use membership::{Keeper, Membership};

/// How long agents may take to be ready before it is said that they are not.
const READY_MAX: Duration = Duration::from_secs(20);

/// Cancelled by the first signal that asks this process to end; the second one ends it.
fn stop_on_signals() -> Outcome<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! { biased; _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if last {
                std::process::exit(i32::from(Exit::OfTask(130).code()));
            }
            stopped.cancel();
        }
    });
    Ok(stop)
}

/// Prints a line of progress. A cluster goes on when nobody reads what it prints.
fn say(terminal: &mut Terminal, text: impl AsRef<str>) {
    let _ = terminal.line(text);
}

/// `mctl dev`.
pub async fn dev(args: DevArgs, terminal: &mut Terminal) -> Outcome {
    let start = Instant::now();
    let stop = stop_on_signals()?;
    let directory = Directory::take(&args.data_dir.clone().map_or_else(default_data_dir, Ok)?)?;
    let options = Options {
        data_dir: directory.path().to_owned(),
        listen: vec![args.listen],
        audit: args.audit.options(),
        ..Options::default()
    };
    let ttl = args::LEASE_TTL.parse().expect("the constant is a span");
    let mut control = ControlPlane::start(control::embedded(&directory).await?, options, ttl).await?;
    let shared = if args.no_context {
        None
    } else {
        Some(kubeconfig::own_file()?)
    };
    if let Some(path) = &shared {
        kubeconfig_of::merge(path, &control.access).map_err(|error| because("the kubeconfig", &error))?;
    }
    say(terminal, format!("data        {}", directory.path().display()));
    say(terminal, format!("api server  {}", control.access.server));
    let mut running: JoinSet<Outcome<()>> = JoinSet::new();
    // Agents end before the server does, because they still have to say what became of their tasks.
    let agents_stop = CancellationToken::new();
    let (mut names, mut gpus) = (Vec::new(), 0);
    let hidden: Vec<PathBuf> = [directory.path().to_owned()]
        .into_iter()
        .chain(shared.clone())
        .collect();
    for index in 0..u32::from(args.agents) {
        let name = if args.agents == 1 {
            agents::own_name()
        } else {
            format!("agent-{}", index + 1)
        };
        let agent = open(
            &control,
            &directory,
            &hidden,
            &name,
            (u32::from(args.agents), index),
            &args.offered,
        )
        .await?;
        say(terminal, format!("agent       {name}: {}", capacity(&agent)));
        gpus += agent.capacity.gpus;
        running.spawn(agent.run(control.agent_client(&name)?, agents_stop.clone()));
        names.push(name);
    }
    let admin = control.admin();
    let begun = tokio::select! {
        biased;
        ended = serve_on(&stop, &mut control, &mut running) => Some(ended),
        ready = ready(&admin, &names) => ready.err().map(Err),
    };
    let ended = match begun {
        Some(ended) => ended,
        None => {
            welcome(&args, gpus, (&directory, start.elapsed()), terminal);
            serve_on(&stop, &mut control, &mut running).await
        }
    };
    terminal.note(if names.is_empty() {
        "stopping"
    } else {
        "stopping; tasks get the time that they asked for (Ctrl-C again ends this at once)"
    });
    agents_stop.cancel();
    let mut left = ended;
    while let Some(agent) = running.join_next().await {
        if let (Ok(()), Ok(Err(failure))) = (&left, agent) {
            left = Err(failure);
        }
    }
    control.stop().await;
    left.map(|()| Exit::Done)
}

/// Waits for the end, or for a part that fails.
async fn serve_on(
    stop: &CancellationToken,
    control: &mut ControlPlane,
    running: &mut JoinSet<Outcome<()>>,
) -> Outcome<()> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        failure = control.failed() => Err(failure),
        Some(ended) = running.join_next(), if !running.is_empty() => Err(unexpected(ended)),
    }
}

fn unexpected(ended: Result<Outcome<()>, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::new("an agent has ended"),
        Ok(Err(failure)) => failure,
        Err(error) => because("an agent", &error),
    }
}

async fn open(
    control: &ControlPlane,
    directory: &Directory,
    hidden: &[PathBuf],
    name: &str,
    share: (u32, u32),
    offered: &args::Offered,
) -> Outcome<Agent> {
    let identity = control
        .pki()
        .agent(name, &SystemEnv)
        .map_err(|error| because("the certificates", &error))?;
    let own = directory.join("agents").join(name);
    let claim = agents::claim(&own).await?;
    let place = Place {
        name,
        directory: own,
        images: directory.join("images"),
        hidden: hidden.to_vec(),
        share,
        ports: default_ports(),
        listen: (SocketAddr::from(([127, 0, 0, 1], 0)), None),
        tls: fixed(Material {
            ca: control.pki().ca_pem().to_owned(),
            cert: identity.certificate_pem,
            key: identity.key_pem,
        }),
        stop_tasks: true,
    };
    Agent::open(place, claim, offered).await
}

fn default_ports() -> PortSet {
    let (low, high) = muster_agentd::machine::PORTS;
    format!("{low}-{high}").parse().expect("the constant is a range")
}

fn capacity(agent: &Agent) -> String {
    let capacity = &agent.capacity;
    let gpus = if capacity.gpus > 0 {
        format!(", {} gpus", capacity.gpus)
    } else {
        String::new()
    };
    format!("{} cpus, {} memory{gpus}", capacity.cpus, capacity.memory)
}

/// Waits until the agents are ready: the condition must have been written by the very process that holds the lease now, and not by one
/// of an earlier start.
async fn ready(admin: &Client, names: &[String]) -> Outcome<()> {
    let rest = Rest::over(admin.kube(), "this process");
    let agents = ours("agents", "agent", "Agent", false);
    let deadline = Instant::now() + READY_MAX;
    for name in names {
        let mut observer = Observer::new(&rest, &agents, "", name);
        let seen = async {
            loop {
                let Some(agent) = observer.next().await? else { continue };
                if condition(&agent, "Ready") == Some("True") && is_current(&rest, name, &agent).await? {
                    return Ok::<(), CallError>(());
                }
            }
        };
        let late = |_| {
            let text = format!(
                "the agent {name} is not ready after {} s; try again with --log info",
                READY_MAX.as_secs()
            );
            Failure::with(Exit::TimedOut, text)
        };
        tokio::time::timeout_at(deadline, seen).await.map_err(late)??;
    }
    Ok(())
}

/// Whether the agent's status is of the session that there is.
async fn is_current(rest: &Rest, name: &str, agent: &Value) -> Result<bool, CallError> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE_AGENTS}/leases/{name}");
    match rest.get(&path).await {
        Ok(lease) => {
            let session = agent["status"]["session"].as_u64().map(|session| session.to_string());
            Ok(lease["metadata"]["resourceVersion"].as_str() == session.as_deref())
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn welcome(args: &DevArgs, gpus: u32, (directory, took): (&Directory, Duration), terminal: &mut Terminal) {
    let style = terminal.out_style;
    let config = directory.join("kubeconfig");
    let flag = if args.no_context {
        format!(" --kubeconfig {}", config.display())
    } else {
        String::new()
    };
    let gpus = if gpus > 0 { " --gpus 1" } else { "" };
    say(
        terminal,
        format!("{} after {} ms\n", style.paint(Paint::Good, "ready"), took.as_millis()),
    );
    say(terminal, "Now, in another terminal:");
    if args.agents > 0 {
        say(
            terminal,
            format!("  mctl{flag} run hello{gpus} -- sh -c 'echo hello from $MUSTER_TASK'"),
        );
    }
    say(terminal, format!("  mctl{flag} get agents,tasks -A"));
    say(
        terminal,
        format!("  kubectl --kubeconfig {} get tasks", config.display()),
    );
    say(
        terminal,
        "Ctrl-C stops the cluster and its tasks; the next `mctl dev` goes on from here.",
    );
}

/// `mctl server`.
pub async fn server(args: ServerArgs, terminal: &mut Terminal) -> Outcome {
    let stop = stop_on_signals()?;
    let directory = Directory::take(&args.data_dir.clone().map_or_else(default_data_dir, Ok)?)?;
    let options = Options {
        data_dir: directory.path().to_owned(),
        listen: vec![args.listen],
        names: args.advertise.clone(),
        name: args.name.clone().unwrap_or_default(),
        agent_life: args.agent_certificates.duration(),
        encryption_key: args.encryption_key.clone(),
        audit: args.audit.options(),
        limits: args.lanes.limits(),
    };
    if let Some(token) = &args.join {
        let name = args.name.clone().unwrap_or_else(agents::own_name);
        if membership::join_server(&directory, token, &name).await? {
            say(terminal, format!("joined      as the server {name}"));
        }
    }
    let store = store(&args, &directory).await?;
    let mut control = ControlPlane::start(store, options, args.lease_ttl).await?;
    for agent in &args.agents {
        let path = invitation::write(&control, &directory, agent, args.advertise.first())?;
        say(terminal, format!("agent       mctl agent --join {}", path.display()));
    }
    say(terminal, format!("data        {}", directory.path().display()));
    say(terminal, format!("api server  {}", control.access.server));
    say(
        terminal,
        format!("use it with --kubeconfig {}", directory.join("kubeconfig").display()),
    );
    notify::ready();
    let ended = serve_on(&stop, &mut control, &mut JoinSet::new()).await;
    control.stop().await;
    ended.map(|()| Exit::Done)
}

/// The store that is wanted. One that is not of the directory's cluster is refused when the server starts.
async fn store(args: &ServerArgs, directory: &Directory) -> Outcome<Arc<dyn Store>> {
    if args.etcd.is_given() {
        Ok(args.etcd.open_of(directory.path()).await?)
    } else {
        control::embedded(directory).await
    }
}

/// Where `mctl dev` keeps its data when nothing else is said.
///
/// # Errors
/// When there is no home directory.
pub fn default_data_dir() -> Outcome<PathBuf> {
    directory::default("muster")
}

/// `mctl agent`.
pub async fn agent(args: AgentArgs, servers: &[String], terminal: &mut Terminal) -> Outcome {
    let stop = stop_on_signals()?;
    let directory = args
        .data_dir
        .clone()
        .map_or_else(|| directory::default("muster-agent"), Ok)?;
    files::private_directory(&directory).map_err(|error| Failure::new(format!("{}: {error}", directory.display())))?;
    let claim = agents::claim(&directory).await?;
    if let Some(Join::Directory(invitation)) = &args.join {
        let invited = invitation::read(invitation, args.listen).await?;
        let place = Place {
            name: &invited.name,
            images: directory.join("images"),
            directory,
            hidden: vec![invitation.clone()],
            share: (1, 0),
            ports: args.ports.clone(),
            listen: invited.listen,
            tls: invited.tls,
            stop_tasks: args.stop_tasks_on_shutdown,
        };
        let agent = Agent::open(place, claim, &args.offered).await?;
        say(terminal, format!("agent       {}: {}", invited.name, capacity(&agent)));
        return agent.run(invited.client, stop).await.map(|()| Exit::Done);
    }
    let mut membership = membership(&args, &directory, &claim, terminal).await?;
    if !servers.is_empty() {
        membership.endpoints = servers.to_vec();
        membership.save(&directory)?;
    }
    let name = membership.name.clone();
    let (listen, host) = reached(&args, &membership);
    let keeper = Keeper::new(&directory, membership)?;
    let place = Place {
        name: &name,
        images: directory.join("images"),
        directory,
        hidden: Vec::new(),
        share: (1, 0),
        ports: args.ports.clone(),
        listen: (listen, host),
        tls: keeper.material(),
        stop_tasks: args.stop_tasks_on_shutdown,
    };
    let agent = Agent::open(place, claim, &args.offered).await?;
    say(terminal, format!("agent       {name}: {}", capacity(&agent)));
    let client = keeper.client.clone();
    let keeping = tokio::spawn(keeper.keep(stop.clone()));
    let ended = agent.run(client, stop.clone()).await;
    stop.cancel();
    // It ends at once, and it has nothing to say.
    let _ = keeping.await;
    ended.map(|()| Exit::Done)
}

/// What the agent has been given, or is given now.
async fn membership(
    args: &AgentArgs,
    directory: &std::path::Path,
    claim: &Claim,
    terminal: &mut Terminal,
) -> Outcome<Membership> {
    let known = Membership::load(directory)?;
    let ended = known
        .as_ref()
        .map(Membership::not_after)
        .filter(|end| *end <= SystemEnv.now());
    let wanted = args.name.as_ref().or(known.as_ref().map(|known| &known.name));
    let name = wanted.cloned().unwrap_or_else(agents::own_name);
    match (known, &args.join, ended) {
        (Some(known), _, None) if known.name != name => Err(Failure::new(format!(
            "this machine has joined as {}, not as {name}; leave out --name, or choose another directory with --data-dir",
            known.name
        ))),
        (Some(known), _, None) => Ok(known),
        (_, Some(Join::Token(token)), _) => {
            let joined = Membership::join(directory, token, &name, &claim.identity.machine).await?;
            say(terminal, format!("joined      as {}", joined.name));
            Ok(joined)
        }
        (Some(_), _, Some(end)) => Err(Failure::new(format!(
            "the certificate of this agent ended at {end}, because no server could be reached in time to renew it; join again with \
             --join TOKEN (on a machine with the cluster's kubeconfig: mctl token create --agent {name})"
        ))),
        (None, _, _) => Err(Failure::new(
            "this machine has not joined a cluster yet; say which with --join TOKEN (on a machine with the cluster's kubeconfig: mctl \
             token create)",
        )),
    }
}

/// Where the agent's own server listens, and the host that it is reached by.
fn reached(args: &AgentArgs, membership: &Membership) -> (SocketAddr, Option<String>) {
    if let Some(host) = &args.advertise {
        return (args.listen, Some(host.clone()));
    }
    if !args.listen.ip().is_unspecified() {
        return (args.listen, None);
    }
    match membership.own_host() {
        Some(host) => (args.listen, Some(host)),
        None => (SocketAddr::from(([127, 0, 0, 1], args.listen.port())), None),
    }
}
