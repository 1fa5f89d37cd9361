//! A whole API server over a data directory: store, identities, certificates, listener and kubeconfig put together.
//!
//! The program of this crate and `mctl` start servers this way. What lies in the data directory: `store.redb`, `tokens.csv`, `pki/`,
//! `encryption-key` (by which secrets are sealed), `cluster` (which cluster it is of) and `kubeconfig`. It promises that all of it is there, and that the server answers, when [`start`]
//! returns; that certificates are replaced while it runs; that a store of another cluster is refused. Tested below and in
//! `tests/kubectl.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use muster_api::env::Env;
use muster_api::names;
use muster_store::embedded::Options as StoreOptions;
use muster_store::{EmbeddedStore, Entry, Keyring, Page, SealedStore, Store, sealed};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Audit, AuditError};
use crate::auth::{Tokens, User};
use crate::cluster::{self, ClusterError};
use crate::kubeconfig::{self, Access, KubeconfigError};
use crate::lanes;
use crate::logs::HttpsLogSource;
use crate::membership::Membership;
use crate::peers::HttpsPeers;
use crate::server::{self, ServeConfig, Serving};
use crate::state::{Config, StartError, State};
use crate::tls::{self, AGENT_LIFE, Identity, Pki, PkiError, Served, Shown};
use crate::{files, keys, kinds, routes};

/// How often certificates are looked at: those of servers last a month.
const ROTATION: Duration = Duration::from_secs(3600);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept; made when it is not there.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 is any free one.
    pub listen: Vec<SocketAddr>,
    /// Names and addresses that clients reach the server by, besides those of this machine. The first ones are told to machines that
    /// join; without any, they are told the addresses that it listens on.
    pub names: Vec<String>,
    /// Its name among the servers of the cluster; empty: that of the machine.
    pub name: String,
    /// How long agents' certificates last.
    pub agent_life: Duration,
    /// The file of the keys by which secrets are sealed; `None`: `encryption-key` in the data directory, made when it is not there.
    pub encryption_key: Option<PathBuf>,
    /// What is written down about requests, and where; `None`: nothing.
    pub audit: Option<audit::Options>,
    /// How much is done at once.
    pub limits: lanes::Limits,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            data_dir: PathBuf::new(),
            listen: Vec::new(),
            names: Vec::new(),
            name: String::new(),
            agent_life: AGENT_LIFE,
            encryption_key: None,
            audit: None,
            limits: lanes::Limits::default(),
        }
    }
}

/// A server that answers.
pub struct Running {
    /// What is behind it.
    pub state: Arc<State>,
    /// The same routes that are listened for, for clients in this process.
    pub router: Router,
    /// Where it listens.
    pub serving: Serving,
    /// What the administrator's kubeconfig says; it lies in `<data-dir>/kubeconfig`.
    pub access: Access,
    /// Who is who, and where more tokens are made.
    pub tokens: Arc<Tokens>,
    /// Where more certificates are made.
    pub pki: Arc<Pki>,
}

impl Running {
    /// Waits, after `stop`, until every request has been answered and nothing uses the store any more.
    pub async fn stopped(self) {
        self.serving.stopped().await;
        self.state.stopped().await;
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of the data directory cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] muster_store::Error),
    /// The store is of another cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The server cannot begin.
    #[error("the server cannot begin")]
    State(#[from] StartError),
    /// The keys by which secrets are sealed cannot be used.
    #[error("{}: {problem}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// There is to be an audit log, and there can be none.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// There are no certificates.
    #[error("certificates cannot be made")]
    Pki(#[from] PkiError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(std::io::Error),
    /// The kubeconfig cannot be written.
    #[error("the kubeconfig cannot be written")]
    Kubeconfig(#[from] KubeconfigError),
}

/// Opens the embedded store of a data directory, which one process at a time may have open. Blocks while it reads.
pub fn open_store(data_dir: &Path, env: &dyn Env) -> Result<Arc<dyn Store>, LaunchError> {
    files::private_directory(data_dir).map_err(at(data_dir))?;
    let options = StoreOptions {
        uid: env.uid().as_u128(),
        ..StoreOptions::default()
    };
    Ok(Arc::new(EmbeddedStore::open(&data_dir.join("store.redb"), &options)?))
}

/// Starts a server over `store`. It runs until `stop`; [`Running::stopped`] waits for its end.
pub async fn start(
    options: &Options,
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    stop: CancellationToken,
) -> Result<Running, LaunchError> {
    let data_dir = &options.data_dir;
    // First of all: whoever wrote a policy with a mistake has changed nothing yet.
    let audit = options.audit.as_ref().map(Audit::open).transpose()?;
    files::private_directory(data_dir).map_err(at(data_dir))?;
    let pki = Arc::new(Pki::open(&data_dir.join("pki"), &*env)?);
    cluster::check(&*store, data_dir, pki.pin()?, &*env).await?;
    let (keyring, keyring_text) = keyring(options, &*store).await?;
    let store = SealedStore::new(store, Arc::new(keyring), keys::sealed());
    let resealed = store.reseal().await?;
    if resealed > 0 {
        tracing::info!(values = resealed, "secrets were sealed anew");
    }
    let store: Arc<dyn Store> = Arc::new(store);
    let tokens_path = data_dir.join(TOKENS);
    let tokens = Arc::new(Tokens::open(&tokens_path).map_err(at(&tokens_path))?);
    let token = tokens.ensure(&User::admin(), &*env).map_err(at(&tokens_path))?;
    let shown = pki.client(&*env)?;
    let to_agents = Shown::new(tls::client_config(pki.ca_pem(), Some(&shown))?);
    let mut membership = Membership::new(&name(options), pki.clone(), tokens.clone());
    membership.agent_life = options.agent_life;
    membership.encryption_key = keyring_text;
    membership.peers = Some(Arc::new(HttpsPeers::new(to_agents.clone())));
    let config = Config {
        store,
        env: env.clone(),
        resources: kinds::resources(),
        authenticator: tokens.clone(),
        logs: Arc::new(HttpsLogSource::new(to_agents.clone())),
        membership,
    };
    let state = State::start(config).await?;
    state.lanes.limit_by(options.limits);
    if let Some(audit) = audit {
        state.audit_by(audit);
    }
    let router = routes::router(state.clone());
    let names = server_names(options);
    let identity = pki.server(&names, &*env)?;
    let served = Served::new(&identity, pki.ca_pem())?;
    let serve = ServeConfig {
        listen: options.listen.clone(),
        tls: Arc::new(tls::listener_config(served.clone(), pki.ca_pem())?),
    };
    let serving = server::serve(router.clone(), serve, stop.clone())
        .await
        .map_err(LaunchError::Listen)?;
    let instance = instance(data_dir, &*env)?;
    state.appear(endpoints(&options.names, serving.addresses()), &instance);
    let certificates = Certificates {
        pki: pki.clone(),
        env,
        names,
        served: (served, identity),
        shown: (to_agents, shown),
    };
    tokio::spawn(attend(Arc::downgrade(&state), certificates, stop));
    let access = Access {
        server: url(serving.addresses()),
        ca_pem: pki.ca_pem().to_owned(),
        token,
    };
    kubeconfig::write(&data_dir.join("kubeconfig"), &access)?;
    Ok(Running {
        state,
        router,
        serving,
        access,
        tokens,
        pki,
    })
}

/// The file of everybody's bearer tokens in a data directory.
pub const TOKENS: &str = "tokens.csv";

/// The file of the keys by which secrets are sealed, in a data directory.
pub const ENCRYPTION_KEY: &str = "encryption-key";

/// Reads the keys by which secrets are sealed, with their text; the first server of a cluster draws the first. They must open what the
/// cluster has sealed.
async fn keyring(options: &Options, store: &dyn Store) -> Result<(Keyring, String), LaunchError> {
    let own = options.data_dir.join(ENCRYPTION_KEY);
    let path = options.encryption_key.as_ref().unwrap_or(&own);
    let refused = |problem: String| LaunchError::Keyring {
        path: path.clone(),
        problem,
    };
    let sealed = sealed_value(store).await?;
    let text = match files::read_private(path).map_err(at(path))? {
        Some(text) => text,
        None if options.encryption_key.is_some() => {
            return Err(refused(
                "there is no such file; take --encryption-key away to have one made".to_owned(),
            ));
        }
        None if sealed.is_some() => {
            let problem = "there is no such file, and the cluster's secrets are sealed; copy it from another server of the cluster, or \
                           from where it is kept with the backups";
            return Err(refused(problem.to_owned()));
        }
        None => {
            let text = Keyring::generate().map_err(|error| refused(error.to_string()))?;
            files::write_private(path, text.as_bytes()).map_err(at(path))?;
            text
        }
    };
    let keyring = Keyring::parse(&text).map_err(|error| refused(error.to_string()))?;
    if let Some(entry) = sealed {
        let opened = keyring.open(&entry.key, &entry.value);
        opened.map_err(|error| {
            refused(format!(
                "the cluster's secrets are sealed by another key ({error}); put the lines of another server's file into this one"
            ))
        })?;
    }
    Ok((keyring, text))
}

/// Any value that the cluster has sealed.
async fn sealed_value(store: &dyn Store) -> Result<Option<Entry>, LaunchError> {
    // So many at a time: 64 MiB at most.
    const PAGE: usize = 64;
    for prefix in keys::sealed() {
        let mut page = Page {
            after: None,
            limit: Some(PAGE),
        };
        loop {
            let listing = store.list(&prefix, page.clone()).await?;
            page.after = listing.entries.last().map(|entry| entry.key.clone());
            let found = listing
                .entries
                .into_iter()
                .find(|entry| sealed::is_sealed(&entry.value));
            if found.is_some() {
                return Ok(found);
            }
            if !listing.more {
                break;
            }
        }
    }
    Ok(None)
}

/// The server's name among the servers.
fn name(options: &Options) -> String {
    if !options.name.is_empty() {
        return options.name.clone();
    }
    // Only Linux is supported, and there the kernel tells its name in this file.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim().to_ascii_lowercase();
    if names::dns_subdomain_problem(&hostname).is_none() {
        hostname
    } else {
        "server".to_owned()
    }
}

/// What tells this data directory from any other.
fn instance(data_dir: &Path, env: &dyn Env) -> Result<String, LaunchError> {
    let path = data_dir.join("instance");
    if let Some(known) = files::read_private(&path).map_err(at(&path))? {
        return Ok(known.trim().to_owned());
    }
    let drawn = env.uid().to_string();
    files::write_private(&path, format!("{drawn}\n").as_bytes()).map_err(at(&path))?;
    Ok(drawn)
}

/// What its certificate is for, besides this machine.
fn server_names(options: &Options) -> Vec<String> {
    let listened = options
        .listen
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified());
    listened
        .map(|ip| ip.to_string())
        .chain(options.names.iter().cloned())
        .collect()
}

/// `HOST:PORT` of each way to it, for machines that join.
fn endpoints(names: &[String], addresses: &[SocketAddr]) -> Vec<String> {
    let Some(first) = addresses.first() else {
        return Vec::new();
    };
    if names.is_empty() {
        return addresses
            .iter()
            .map(|address| reachable(*address).to_string())
            .collect();
    }
    let host = |name: &String| match name.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, first.port()).to_string(),
        Err(_) => format!("{name}:{}", first.port()),
    };
    names.iter().map(host).collect()
}

/// What is replaced while the server runs.
struct Certificates {
    pki: Arc<Pki>,
    env: Arc<dyn Env>,
    names: Vec<String>,
    served: (Served, Identity),
    shown: (Shown, Identity),
}

impl Certificates {
    /// Replaces what is old. The directory keeps what is not.
    fn rotate(&mut self) -> Result<(), PkiError> {
        let now = self.env.now();
        if self.served.1.renew_at <= now {
            self.served.1 = self.pki.server(&self.names, &*self.env)?;
            self.served.0.exchange(&self.served.1, self.pki.ca_pem())?;
        }
        if self.shown.1.renew_at <= now {
            self.shown.1 = self.pki.client(&*self.env)?;
            self.shown
                .0
                .exchange(tls::client_config(self.pki.ca_pem(), Some(&self.shown.1))?);
        }
        Ok(())
    }
}

/// Rotates certificates until the end, and then ends watches: they last for ever unless what they read ends them, and only then can
/// their connections be closed.
async fn attend(state: Weak<State>, mut certificates: Certificates, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(ROTATION)).await.is_some() {
        if let Err(error) = certificates.rotate() {
            tracing::error!(%error, "the server's certificates are not renewed; this is tried again in an hour");
        }
    }
    if let Some(state) = state.upgrade() {
        state.end_watches();
    }
}

/// How this machine reaches the first of the addresses.
fn url(addresses: &[SocketAddr]) -> String {
    let first = addresses.first().copied();
    let address = first.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    format!("https://{}", reachable(address))
}

/// An address that can be connected to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> LaunchError + '_ {
    move |source| LaunchError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use muster_api::env::SystemEnv;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn the_kubeconfig_names_an_address_that_can_be_reached() {
        let check = |address: &str, expect: &str| assert_eq!(url(&[address.parse().unwrap()]), expect);
        check("127.0.0.1:1", "https://127.0.0.1:1");
        check("0.0.0.0:2", "https://127.0.0.1:2");
        check("[::]:3", "https://[::1]:3");
        check("10.0.0.1:4", "https://10.0.0.1:4");
    }

    async fn ask(running: &Running, method: &str, path: &str, body: &'static str) -> StatusCode {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", running.access.token))
            .body(Body::from(body))
            .unwrap();
        running.router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_server_without_the_keys_of_its_cluster_does_not_start_and_says_what_to_copy() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: directory.path().join("data"),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ..Options::default()
        };
        let store: Arc<dyn Store> = Arc::new(muster_store::MemoryStore::new());
        let begin = async |options: &Options| {
            let stop = CancellationToken::new();
            let started = start(options, store.clone(), Arc::new(SystemEnv), stop.clone()).await;
            match started {
                Ok(running) => {
                    let secret = r#"{"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}}"#;
                    let code = ask(&running, "POST", "/api/v1/namespaces/default/secrets", secret).await;
                    stop.cancel();
                    running.stopped().await;
                    Ok(code)
                }
                Err(error) => Err(error.to_string()),
            }
        };
        assert_eq!(begin(&options).await, Ok(StatusCode::CREATED));
        let all = store
            .list(&muster_store::Prefix::new(""), Page::default())
            .await
            .unwrap();
        for plain in ["hunter2", "aHVudGVyMg"] {
            let shows = |entry: &Entry| String::from_utf8_lossy(&entry.value).contains(plain);
            assert!(!all.entries.iter().any(shows), "{plain} is in the store");
        }
        let own = options.data_dir.join(ENCRYPTION_KEY);
        let key = files::read_private(&own).unwrap().expect("it was drawn");
        let other = options.data_dir.join("other");
        files::write_private(&other, Keyring::generate().unwrap().as_bytes()).unwrap();
        let with = |path: &Path| Options {
            encryption_key: Some(path.to_owned()),
            ..options.clone()
        };
        let error = begin(&with(&other)).await.unwrap_err();
        assert!(error.contains("another server's file"), "{error}");
        std::fs::remove_file(&own).unwrap();
        let error = begin(&options).await.unwrap_err();
        assert!(error.contains("copy it from another server"), "{error}");
        assert!(!own.exists(), "nothing was drawn in its place");
        // A key in front of the old one: everything is sealed by it from now on, and the old one can go.
        let (new, both) = (Keyring::generate().unwrap(), options.data_dir.join("both"));
        files::write_private(&both, format!("{new}{key}").as_bytes()).unwrap();
        assert_eq!(begin(&with(&both)).await, Ok(StatusCode::CONFLICT));
        files::write_private(&other, new.as_bytes()).unwrap();
        assert_eq!(begin(&with(&other)).await, Ok(StatusCode::CONFLICT));
    }

    #[tokio::test]
    async fn a_restarted_server_knows_its_objects_and_its_clients() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: directory.path().join("data"),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ..Options::default()
        };
        let mut known: Option<Access> = None;
        for expect in [StatusCode::NOT_FOUND, StatusCode::OK] {
            let stop = CancellationToken::new();
            let store = open_store(&options.data_dir, &SystemEnv).unwrap();
            let running = start(&options, store, Arc::new(SystemEnv), stop.clone()).await.unwrap();
            assert_eq!(ask(&running, "GET", "/api/v1/namespaces/mine", "").await, expect);
            if let Some(known) = &known {
                assert_eq!(
                    (&running.access.token, &running.access.ca_pem),
                    (&known.token, &known.ca_pem)
                );
            } else {
                let body = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mine"}}"#;
                assert_eq!(
                    ask(&running, "POST", "/api/v1/namespaces", body).await,
                    StatusCode::CREATED
                );
                known = Some(running.access.clone());
            }
            let second = open_store(&options.data_dir, &SystemEnv);
            assert!(
                matches!(second, Err(LaunchError::Store(_))),
                "one process at a time has the store"
            );
            stop.cancel();
            running.stopped().await;
        }
    }
}
