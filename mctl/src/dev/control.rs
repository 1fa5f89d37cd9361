//! The control plane in this process: store, API server, controllers.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use muster_api::env::{Env as _, SystemEnv};
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::kubeconfig::{self, Access};
use muster_apiserver::logs::HttpsLogSource;
use muster_apiserver::server::{self, ServeConfig, Serving};
use muster_apiserver::tls::{self, Pki};
use muster_apiserver::{Config, State, kinds, router};
use muster_client::Client;
use muster_store::EmbeddedStore;
use muster_store::embedded::Options;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use crate::failure::{Failure, Outcome};
use crate::kubeconfig::chain;

/// A control plane that runs.
pub(super) struct ControlPlane {
    /// How administrators reach it.
    pub(super) access: Access,
    state: Arc<State>,
    tokens: Arc<Tokens>,
    pki: Pki,
    serving: Serving,
    controllers: JoinHandle<Result<(), muster_controllers::Error>>,
    controllers_stop: CancellationToken,
    server_stop: CancellationToken,
}

/// A failure with its cause.
pub(super) fn because(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("{what}: {}", chain(error)))
}

impl ControlPlane {
    /// Starts it; it answers when this returns.
    pub(super) async fn start(directory: &Directory, listen: SocketAddr, names: &[String]) -> Outcome<ControlPlane> {
        let pki = Pki::open(&directory.join("pki"), &SystemEnv).map_err(|error| because("the certificates", &error))?;
        let server = pki
            .server(names, &SystemEnv)
            .map_err(|error| because("the certificates", &error))?;
        let client = pki
            .client(&SystemEnv)
            .map_err(|error| because("the certificates", &error))?;
        let tokens = Tokens::open(&directory.join("tokens.csv")).map_err(|error| because("the tokens", &error))?;
        let tokens = Arc::new(tokens);
        let logs =
            tls::client_config(pki.ca_pem(), Some(&client)).map_err(|error| because("the certificates", &error))?;
        let tls = tls::server_config(&server, None).map_err(|error| because("the certificates", &error))?;
        let store = open_store(directory).await?;
        let config = Config {
            store,
            env: Arc::new(SystemEnv),
            resources: kinds::resources(),
            authenticator: tokens.clone(),
            logs: Arc::new(HttpsLogSource::new(logs)),
        };
        let state = State::start(config)
            .await
            .map_err(|error| because("the API server", &error))?;
        let server_stop = CancellationToken::new();
        let serve = ServeConfig {
            listen: vec![listen],
            tls: Arc::new(tls),
        };
        let serving = server::serve(router(state.clone()), serve, server_stop.clone())
            .await
            .map_err(|error| taken(listen, &error))?;
        let address = serving.addresses().first().copied().unwrap_or(listen);
        let admin = token(&tokens, &User::admin())?;
        let access = Access {
            server: url(address),
            ca_pem: pki.ca_pem().to_owned(),
            token: admin,
        };
        let controllers_stop = CancellationToken::new();
        let client = Client::in_process(router(state.clone()), &token(&tokens, &User::controllers())?);
        let config = muster_controllers::Config::default();
        let controllers = tokio::spawn(muster_controllers::run(
            client,
            Arc::new(SystemEnv),
            config,
            controllers_stop.clone(),
        ));
        Ok(ControlPlane {
            access,
            state,
            tokens,
            pki,
            serving,
            controllers,
            controllers_stop,
            server_stop,
        })
    }

    /// The certificates.
    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A client of this process, as an agent.
    pub(super) fn agent_client(&self, name: &str) -> Outcome<Client> {
        Ok(Client::in_process(router(self.state.clone()), &self.agent_token(name)?))
    }

    /// The token of an agent.
    pub(super) fn agent_token(&self, name: &str) -> Outcome<String> {
        token(&self.tokens, &User::agent(name))
    }

    /// A client of this process, as an administrator.
    pub(super) fn admin(&self) -> Client {
        Client::in_process(router(self.state.clone()), &self.access.token)
    }

    /// Writes the administrator's configuration into the directory, and into `~/.config/muster/config` when `shared`.
    pub(super) fn write_kubeconfig(&self, directory: &Directory, shared: Option<&std::path::Path>) -> Outcome<()> {
        kubeconfig::write(&directory.join("kubeconfig"), &self.access)
            .map_err(|error| because("the kubeconfig", &error))?;
        match shared {
            Some(path) => kubeconfig::merge(path, &self.access).map_err(|error| because("the kubeconfig", &error)),
            None => Ok(()),
        }
    }

    /// Ends when a part of it has failed.
    pub(super) async fn failed(&mut self) -> Failure {
        match (&mut self.controllers).await {
            Ok(Ok(())) => Failure::new("the controllers have ended"),
            Ok(Err(error)) => because("the controllers", &error),
            Err(error) => because("the controllers", &error),
        }
    }

    /// Stops the controllers, then the server; what was acknowledged is on disk.
    pub(super) async fn stop(mut self) {
        self.controllers_stop.cancel();
        if !self.controllers.is_finished() {
            // Whatever they have to say, the server goes on to stop.
            let _ = (&mut self.controllers).await;
        }
        self.server_stop.cancel();
        self.state.stop();
        self.serving.stopped().await;
    }
}

fn token(tokens: &Tokens, user: &User) -> Outcome<String> {
    tokens
        .ensure(user, &SystemEnv)
        .map_err(|error| because("the tokens", &error))
}

async fn open_store(directory: &Directory) -> Outcome<Arc<EmbeddedStore>> {
    let path = directory.join("store.redb");
    let options = Options {
        uid: SystemEnv.uid().as_u128(),
        ..Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path, &options)).await;
    let opened = opened.map_err(|error| because("the store", &error))?;
    opened.map(Arc::new).map_err(|error| because("the store", &error))
}

fn taken(listen: SocketAddr, error: &std::io::Error) -> Failure {
    if error.kind() == ErrorKind::AddrInUse {
        return Failure::new(format!(
            "{listen} is taken by another process, perhaps another `mctl dev`; choose another with --listen (port 0 takes a free one)"
        ));
    }
    Failure::new(format!("{error}"))
}

/// Where clients of this machine find the server.
fn url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(host, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_that_can_be_connected_to() {
        let url = |address: &str| url(address.parse().expect("address"));
        assert_eq!(url("0.0.0.0:7443"), "https://127.0.0.1:7443");
        assert_eq!(url("[::1]:1"), "https://[::1]:1");
    }
}
