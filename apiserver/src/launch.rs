//! A whole API server over a data directory: store, identities, certificates, listener and kubeconfig put together.
//!
//! The program of this crate and `mctl` start servers this way. What lies in the data directory: `store.redb`, `tokens`, `pki/` and
//! `kubeconfig`. It promises that all of it is there, and that the server answers, when [`start`] returns. Tested in `tests/kubectl.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use muster_api::env::Env;
use muster_store::embedded::Options as StoreOptions;
use muster_store::{EmbeddedStore, Store};
use tokio_util::sync::CancellationToken;

use crate::auth::{Tokens, User};
use crate::kubeconfig::{self, Access, KubeconfigError};
use crate::logs::HttpsLogSource;
use crate::server::{self, ServeConfig, Serving};
use crate::state::{Config, StartError, State};
use crate::tls::{self, Pki, PkiError};
use crate::{files, kinds, routes};

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept; made when it is not there.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 is any free one.
    pub listen: Vec<SocketAddr>,
    /// Names and addresses that clients reach the server by, besides those of this machine.
    pub names: Vec<String>,
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
    pub pki: Pki,
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
    /// The server cannot begin.
    #[error("the server cannot begin")]
    State(#[from] StartError),
    /// There are no certificates.
    #[error("certificates cannot be made")]
    Pki(#[from] PkiError),
    /// It cannot listen.
    #[error("the server cannot listen")]
    Listen(#[source] std::io::Error),
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

/// Starts a server over `store`. It runs until `stop`; [`Serving::stopped`] waits for its end.
pub async fn start(
    options: &Options,
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    stop: CancellationToken,
) -> Result<Running, LaunchError> {
    let data_dir = &options.data_dir;
    files::private_directory(data_dir).map_err(at(data_dir))?;
    let tokens_path = data_dir.join("tokens");
    let tokens = Arc::new(Tokens::open(&tokens_path).map_err(at(&tokens_path))?);
    let token = tokens.ensure(&User::admin(), &*env).map_err(at(&tokens_path))?;
    let pki = Pki::open(&data_dir.join("pki"), &*env)?;
    let names = options
        .listen
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string());
    let names: Vec<String> = names.chain(options.names.iter().cloned()).collect();
    let identity = pki.server(&names, &*env)?;
    let to_agents = tls::client_config(pki.ca_pem(), Some(&pki.client(&*env)?))?;

    let config = Config {
        store,
        env,
        resources: kinds::resources(),
        authenticator: tokens.clone(),
        logs: Arc::new(HttpsLogSource::new(to_agents)),
    };
    let state = State::start(config).await?;
    let router = routes::router(state.clone());
    let tls = Arc::new(tls::server_config(&identity, None)?);
    let serve = ServeConfig {
        listen: options.listen.clone(),
        tls,
    };
    let serving = server::serve(router.clone(), serve, stop.clone())
        .await
        .map_err(LaunchError::Listen)?;
    // Watches last for ever unless what they read ends them, and only then can their connections be closed.
    let watched = Arc::downgrade(&state);
    tokio::spawn(async move {
        stop.cancelled().await;
        if let Some(state) = watched.upgrade() {
            state.stop();
        }
    });
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

/// How this machine reaches the first of the addresses.
fn url(addresses: &[SocketAddr]) -> String {
    let mut address = addresses
        .first()
        .copied()
        .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("https://{address}")
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
    async fn a_restarted_server_knows_its_objects_and_its_clients() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: directory.path().join("data"),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            names: Vec::new(),
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
            running.serving.stopped().await;
        }
    }
}
