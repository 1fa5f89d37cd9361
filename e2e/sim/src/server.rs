//! An API server of the simulation: the real router, with names for tokens.

use std::sync::Arc;

use axum::Router;
use muster_api::env::Env;
use muster_api::names::USER_AGENT_PREFIX;
use muster_apiserver::auth::{Authenticate, User};
use muster_apiserver::error::ApiError;
use muster_apiserver::{Config, State, kinds};
use muster_store::Store;

/// Whoever says who they are is believed.
struct ByName;

impl Authenticate for ByName {
    fn authenticate(&self, token: Option<&str>) -> Result<User, ApiError> {
        Ok(match token {
            Some("admin") => User::admin(),
            Some("controllers") => User::controllers(),
            Some(token) => match token.strip_prefix(USER_AGENT_PREFIX) {
                Some(name) => User::agent(name),
                None => User::anonymous(),
            },
            None => User::anonymous(),
        })
    }
}

/// Starts a server on a store that may fail; tries until it is up. The state lives as long as its router, or until it is stopped.
pub(crate) async fn start(store: Arc<dyn Store>, env: Arc<dyn Env>) -> (Arc<State>, Router) {
    loop {
        let config = Config {
            store: Arc::clone(&store),
            env: Arc::clone(&env),
            resources: kinds::resources(),
            authenticator: Arc::new(ByName),
            logs: Arc::new(muster_apiserver::logs::NoLogs),
            membership: Default::default(),
        };
        match State::start(config).await {
            Ok(state) => {
                let router = muster_apiserver::router(Arc::clone(&state));
                return (state, router);
            }
            Err(error) => tracing::info!(%error, "the server did not start; trying again"),
        }
    }
}
