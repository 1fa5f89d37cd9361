//! The server as one value: the store, what is known of it, and what runs besides requests.

use std::sync::{Arc, Mutex, OnceLock, RwLock};

use http::HeaderValue;
use muster_api::env::Env;
use muster_api::names;
use muster_api::wire::PlanReport;
use muster_store::{CommitError, Compare, Op, Revision, Store, Txn};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::audit::Audit;
use crate::auth::Authenticate;
use crate::background;
use crate::hub::{self, Hub};
use crate::keys;
use crate::lanes::{self, Lanes};
use crate::logs::LogSource;
use crate::membership::Membership;
use crate::newest::Newest;
use crate::presence;
use crate::rbac::{self, Authorizer};
use crate::registry::{self, DEFAULT_NAMESPACES, Registry};
use crate::resource::Resource;
use crate::routes::metrics::Metrics;

/// What a server is made of.
pub struct Config {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// The wall clock and the source of identities.
    pub env: Arc<dyn Env>,
    /// The kinds to serve; [`kinds::resources`](crate::kinds::resources) for all.
    pub resources: Vec<Resource>,
    /// Who is who.
    pub authenticator: Arc<dyn Authenticate>,
    /// Where the logs of tasks come from.
    pub logs: Arc<dyn LogSource>,
    /// What this server is among the machines of the cluster.
    pub membership: Membership,
}

/// A running server. Dropping the last reference, or [`stop`](State::stop), ends what runs in the background.
pub struct State {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Everything that is kept, in memory, with what happened lately.
    pub hub: Hub,
    /// The wall clock and the source of identities.
    pub env: Arc<dyn Env>,
    /// The kinds.
    pub resources: Arc<Registry>,
    /// Who is who.
    pub authenticator: Arc<dyn Authenticate>,
    /// Where the logs of tasks come from.
    pub logs: Arc<dyn LogSource>,
    /// What this server is among the machines of the cluster.
    pub membership: Membership,
    /// Who may do what.
    pub authorizer: Authorizer,
    /// The tokens of service accounts.
    pub accounts: Accounts,
    /// Who is served when.
    pub lanes: Lanes,
    /// What is counted.
    pub metrics: Metrics,
    /// The uid of the cluster, as the header that every answer has. Whoever remembers it notices another cluster behind an address.
    pub cluster: HeaderValue,
    audit: OnceLock<Audit>,
    newest: Newest,
    plan: RwLock<Option<(Revision, Arc<PlanReport>)>>,
    leaving: CancellationToken,
    stopping: CancellationToken,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    presence: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store did not answer.
    #[error("the store cannot be used")]
    Store(#[from] muster_store::Error),
    /// Half of a cluster is there.
    #[error("the store holds a restore that was not finished: run `mctl backup restore` or `mctl store migrate` again")]
    Unfinished,
    /// A namespace that must be there, or the cluster's uid, could not be made.
    #[error("the first namespaces cannot be made")]
    Commit(#[from] CommitError),
    /// Others write the default roles all the time.
    #[error(
        "the default roles cannot be made: something else keeps writing them; stop it, or start fewer servers at once"
    )]
    Roles,
    /// What tokens are signed with is not what was kept, or cannot be made.
    #[error("the keys that tokens are signed with cannot be read; restore the store from a backup")]
    Signing,
    /// What is kept as the cluster's uid is none.
    #[error("the cluster's uid in the store is damaged: {0:?}; restore the store from a backup")]
    Cluster(String),
}

impl State {
    /// Takes in the store and follows it. Must be called within a tokio runtime, where the background work then runs.
    pub async fn start(config: Config) -> Result<Arc<State>, StartError> {
        if muster_store::backup::is_unfinished(&*config.store).await? {
            return Err(StartError::Unfinished);
        }
        let cluster = cluster_uid(&*config.store, &*config.env).await?;
        let accounts = Accounts::open(&*config.store, cluster.to_str().unwrap_or_default()).await?;
        for name in DEFAULT_NAMESPACES {
            make_namespace(&*config.store, &*config.env, name).await?;
        }
        let name = cluster.to_str().unwrap_or_default();
        rbac::bootstrap::run(&*config.store, &*config.env, name, &config.resources).await?;
        let hub = Hub::start(&*config.store, registry::hub_kinds(&config.resources)).await?;
        let resources = Arc::new(Registry::new(&config.resources, &hub));
        let state = Arc::new(State {
            store: config.store,
            authorizer: Authorizer::new(&hub),
            hub,
            env: config.env,
            resources,
            authenticator: config.authenticator,
            logs: config.logs,
            membership: config.membership,
            accounts,
            lanes: Lanes::new(lanes::Limits::default()),
            metrics: Metrics::new(),
            cluster,
            audit: OnceLock::new(),
            newest: Newest::default(),
            plan: RwLock::default(),
            leaving: CancellationToken::new(),
            stopping: CancellationToken::new(),
            tasks: Mutex::default(),
            presence: Mutex::default(),
        });
        let tasks = background::start(&state);
        state.tasks.lock().expect("nothing panics under the lock").extend(tasks);
        Ok(state)
    }

    /// From now on, and for good, what is asked for is written down. A second log changes nothing.
    pub fn audit_by(&self, audit: Audit) {
        // There is one already, and it is written to.
        let _ = self.audit.set(audit);
    }

    /// The audit log, if there is one.
    pub fn audit(&self) -> Option<&Audit> {
        self.audit.get()
    }

    /// Says to whoever asks that the server is about to go; it goes on to serve.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Whether the server is about to go.
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Ends every watch, properly. Other requests are still served, those that wait for the hub included.
    pub fn end_watches(&self) {
        self.leaving.cancel();
        self.stopping.cancel();
    }

    /// Ends the background work and every watch.
    pub fn stop(&self) {
        self.end_watches();
        for task in self.tasks.lock().expect("nothing panics under the lock").iter() {
            task.abort();
        }
    }

    /// The same, and waits until nothing uses the store any more.
    pub async fn stopped(&self) {
        self.end_watches();
        let presence = self.presence.lock().expect("nothing panics under the lock").take();
        if let Some(presence) = presence {
            // It ends by itself, within the deadline of one call to the store, and has nothing to say.
            let _ = presence.await;
        }
        self.stop();
        let tasks = std::mem::take(&mut *self.tasks.lock().expect("nothing panics under the lock"));
        for task in tasks {
            // It was aborted.
            let _ = task.await;
        }
        if let Some(audit) = self.audit() {
            audit.log.flush().await;
        }
    }

    /// Ends with the server.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// The store's revision, no older than this call.
    pub async fn newest(&self) -> Result<Revision, muster_store::Error> {
        self.newest.ask(self.store.revision()).await
    }

    /// Lists this server among the servers of the cluster, by these `HOST:PORT`, until it leaves. `instance` tells it from any other
    /// server of the same name.
    pub fn appear(self: &Arc<State>, endpoints: Vec<String>, instance: &str) {
        self.membership.reached_by(endpoints);
        let task = tokio::spawn(presence::keep(Arc::downgrade(self), instance.to_owned()));
        *self.presence.lock().expect("nothing panics under the lock") = Some(task);
    }

    /// The last allocation pass, if it was told to this server by whoever leads now, or nobody leads.
    pub fn plan(&self) -> Option<Arc<PlanReport>> {
        let kept = self.plan.read().expect("nothing panics under the lock").clone();
        let (term, report) = kept?;
        let leader = self
            .hub
            .get(&keys::lease(names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS));
        let current = leader.is_none_or(|leader| term == 0 || leader.revision == term);
        current.then_some(report)
    }

    /// Keeps an allocation pass, until the next one. `term` is the revision that made the leader's lease; 0: nobody's.
    pub fn set_plan(&self, term: Revision, report: PlanReport) {
        *self.plan.write().expect("nothing panics under the lock") = Some((term, Arc::new(report)));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The uid of the cluster: read, or made with the store's first server. A store keeps its own for ever, backups of it included.
pub(crate) async fn cluster_uid(store: &dyn Store, env: &dyn Env) -> Result<HeaderValue, StartError> {
    let key = keys::cluster();
    loop {
        if let Some(entry) = store.get(&key).await? {
            let text = String::from_utf8_lossy(&entry.value).into_owned();
            let uid = HeaderValue::from_str(&text).ok().filter(|uid| !uid.is_empty());
            return uid.ok_or(StartError::Cluster(text));
        }
        let txn = Txn {
            compares: vec![Compare::absent(key.clone())],
            ops: vec![Op::put(key.clone(), env.uid().to_string())],
        };
        match store.commit(txn).await {
            // Somebody else may have made it at the same time, so it is read in any case.
            Ok(_) | Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a namespace, unless it is there.
async fn make_namespace(store: &dyn Store, env: &dyn Env, name: &str) -> Result<(), StartError> {
    let key = keys::namespace(name);
    if store.get(&key).await?.is_some() {
        return Ok(());
    }
    let object = json!({
        "metadata": {
            "name": name,
            "uid": env.uid().to_string(),
            "creationTimestamp": env.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    });
    let Value::Object(object) = object else {
        unreachable!("it is written as an object above");
    };
    let txn = Txn {
        compares: vec![Compare::absent(key.clone())],
        ops: vec![Op::put(key, hub::encode("v1", "Namespace", object))],
    };
    match store.commit(txn).await {
        // Somebody else made it at the same time.
        Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
