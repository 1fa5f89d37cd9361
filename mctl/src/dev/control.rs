//! The control plane in this process: store, API server, controllers.

use std::io::ErrorKind;
use std::sync::Arc;

use muster_api::duration::Span;
use muster_api::env::{Env as _, SystemEnv};
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::kubeconfig::Access;
use muster_apiserver::launch::{self, LaunchError, Options, Running};
use muster_apiserver::tls::Pki;
use muster_client::Client;
use muster_store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use crate::failure::{Failure, Outcome};
use crate::kubeconfig::chain;

/// A control plane that runs.
pub(super) struct ControlPlane {
    /// How administrators reach it.
    pub(super) access: Access,
    server: Running,
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
    pub(super) async fn start(store: Arc<dyn Store>, options: Options, lease_ttl: Span) -> Outcome<ControlPlane> {
        if lease_ttl.millis() < 1_000 || !lease_ttl.millis().is_multiple_of(1_000) {
            return Err(Failure::new("--lease-ttl: write whole seconds, at least 1s"));
        }
        let server_stop = CancellationToken::new();
        let started = launch::start(&options, store, Arc::new(SystemEnv), server_stop.clone()).await;
        let server = started.map_err(|error| refused(&options, &error))?;
        let controllers_stop = CancellationToken::new();
        let client = Client::in_process(server.router.clone(), &token(&server.tokens, &User::controllers())?);
        let config = muster_controllers::Config {
            // Other servers find the leader's by its name.
            identity: format!("{}/{}", server.state.membership.name, SystemEnv.uid()),
            lease_ttl: lease_ttl.duration(),
            ..muster_controllers::Config::default()
        };
        let controllers = tokio::spawn(muster_controllers::run(
            client,
            Arc::new(SystemEnv),
            config,
            controllers_stop.clone(),
        ));
        Ok(ControlPlane {
            access: server.access.clone(),
            server,
            controllers,
            controllers_stop,
            server_stop,
        })
    }

    /// The bearer token of an agent.
    pub(super) fn agent_token(&self, name: &str) -> Outcome<String> {
        token(&self.server.tokens, &User::agent(name))
    }

    /// The certificates.
    pub(super) fn pki(&self) -> &Pki {
        &self.server.pki
    }

    /// A client of this process, as an agent.
    pub(super) fn agent_client(&self, name: &str) -> Outcome<Client> {
        Ok(Client::in_process(self.server.router.clone(), &self.agent_token(name)?))
    }

    /// A client of this process, as an administrator.
    pub(super) fn admin(&self) -> Client {
        Client::in_process(self.server.router.clone(), &self.access.token)
    }

    /// Ends when a part of it has failed.
    pub(super) async fn failed(&mut self) -> Failure {
        match (&mut self.controllers).await {
            Ok(Ok(())) => Failure::new("the controllers have ended"),
            Ok(Err(error)) => because("the controllers", &error),
            Err(error) => because("the controllers", &error),
        }
    }

    /// Stops the controllers, so that others lead at once, then the server; what was acknowledged is on disk.
    pub(super) async fn stop(mut self) {
        self.server.state.leave();
        self.controllers_stop.cancel();
        if !self.controllers.is_finished() {
            // Whatever they have to say, the server goes on to stop.
            let _ = (&mut self.controllers).await;
        }
        self.server_stop.cancel();
        self.server.stopped().await;
    }
}

/// Opens the store that is kept in a data directory.
pub(super) async fn embedded(directory: &Directory) -> Outcome<Arc<dyn Store>> {
    let path = directory.path().to_owned();
    let opened = tokio::task::spawn_blocking(move || launch::open_store(&path, &SystemEnv)).await;
    let opened = opened.map_err(|error| because("the store", &error))?;
    opened.map_err(|error| because("the store", &error))
}

fn token(tokens: &Tokens, user: &User) -> Outcome<String> {
    tokens
        .ensure(user, &SystemEnv)
        .map_err(|error| because("the tokens", &error))
}

fn refused(options: &Options, error: &LaunchError) -> Failure {
    match error {
        LaunchError::Listen(error) if error.kind() == ErrorKind::AddrInUse => Failure::new(format!(
            "{} is taken by another process, perhaps another `mctl dev`; choose another with --listen (port 0 takes a free one)",
            options.listen.first().map(ToString::to_string).unwrap_or_default()
        )),
        error => because("the server", error),
    }
}
