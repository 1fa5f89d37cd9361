//! The real API server over a store in memory, in this process.

use std::sync::Arc;

use axum::Router;
use muster_api::env::Env;
use muster_apiserver::auth::{self, Tokens};
use muster_apiserver::logs::NoLogs;
use muster_apiserver::{Config, State, kinds, router};
use muster_client::Client;
use muster_store::MemoryStore;

/// Who calls.
#[derive(Clone, Debug)]
pub enum User {
    /// May do everything.
    Admin,
    /// The controllers.
    Controllers,
    /// The agent of that name.
    Agent(String),
}

/// A running server.
pub struct Server {
    state: Arc<State>,
    tokens: Arc<Tokens>,
    env: Arc<dyn Env>,
}

impl Server {
    /// An empty one.
    pub async fn start(env: Arc<dyn Env>) -> Server {
        let tokens = Arc::new(Tokens::in_memory());
        let config = Config {
            store: Arc::new(MemoryStore::new()),
            env: env.clone(),
            resources: kinds::resources(),
            authenticator: tokens.clone(),
            logs: Arc::new(NoLogs),
            membership: Default::default(),
        };
        let state = State::start(config).await.expect("a server");
        Server { state, tokens, env }
    }

    /// A client with the token of `user`.
    pub fn client(&self, user: User) -> Client {
        Client::in_process(self.router(), &self.token(user))
    }

    /// What answers.
    pub fn router(&self) -> Router {
        router(self.state.clone())
    }

    /// What `user` proves to be who they are with.
    pub fn token(&self, user: User) -> String {
        let user = match user {
            User::Admin => auth::User::admin(),
            User::Controllers => auth::User::controllers(),
            User::Agent(name) => auth::User::agent(&name),
        };
        self.tokens.ensure(&user, &*self.env).expect("a token")
    }
}
