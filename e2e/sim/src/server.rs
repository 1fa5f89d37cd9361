//! An API server of the simulation: the real router, with names for tokens, on a store that it reaches over a wire.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use muster_api::names::USER_AGENT_PREFIX;
use muster_apiserver::auth::{Authenticate, User};
use muster_apiserver::error::ApiError;
use muster_apiserver::resource::Resource;
use muster_apiserver::{Config, State, kinds};
use muster_store::{FaultStore, Faults, Lies, LyingStore, Store};
use tokio_util::sync::CancellationToken;

use crate::env::{Clock, SimEnv};
use crate::gate::Gate;
use crate::mutants::Mutant;
use crate::mutants::store::MutantStore;
use crate::network::{Endpoint, Network};
use crate::recorder::Recorder;
use crate::wire::Wire;
use crate::writer::Signed;

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

/// The kinds that are served. They are made of types, which takes a while and gives the same each time.
fn resources() -> Vec<Resource> {
    static RESOURCES: OnceLock<Vec<Resource>> = OnceLock::new();
    RESOURCES.get_or_init(kinds::resources).clone()
}

/// A machine with an API server, which outlives the server's process.
pub(crate) struct Server {
    name: String,
    place: usize,
    gate: Gate,
    clock: Clock,
    faults: Arc<FaultStore>,
    lies: Arc<LyingStore>,
    store: Arc<dyn Store>,
    network: Arc<Network>,
    process: Option<(Arc<State>, CancellationToken)>,
}

impl Server {
    /// A server that has not been started. Between it and the truth are, from below: faults, lies, the wire, signatures, and a planted
    /// bug.
    pub(crate) fn new(
        place: usize,
        seed: u64,
        truth: &Arc<SimEnv>,
        recorder: &Arc<Recorder>,
        network: &Arc<Network>,
        mutant: Option<Mutant>,
    ) -> Server {
        let seed = seed.wrapping_mul(31).wrapping_add(place as u64);
        let name = format!("server-{place}");
        let faults = Arc::new(FaultStore::new(recorder.clone(), seed, Faults::none()));
        let lies = Arc::new(LyingStore::new(faults.clone(), seed, Lies::none()));
        let gate = Gate::default();
        let wire = Wire {
            store: lies.clone(),
            server: name.clone(),
            gate: gate.clone(),
            network: Arc::clone(network),
        };
        let signed: Arc<dyn Store> = Arc::new(Signed(Arc::new(wire)));
        let store = match mutant {
            Some(mutant) => Arc::new(MutantStore::new(signed, mutant)),
            None => signed,
        };
        Server {
            name,
            place,
            gate,
            clock: Clock::new(truth),
            faults,
            lies,
            store,
            network: Arc::clone(network),
            process: None,
        }
    }

    /// Ends the process, as `kill -9` does, if it runs, and starts it on the same store; tries until it is up.
    pub(crate) async fn restart(&mut self) {
        self.network.serve(self.place, None);
        if let Some((state, death)) = self.process.take() {
            death.cancel();
            state.stop();
        }
        self.gate.open();
        let state = loop {
            let config = Config {
                store: Arc::clone(&self.store),
                env: Arc::new(self.clock.clone()),
                resources: resources(),
                authenticator: Arc::new(ByName),
                logs: Arc::new(muster_apiserver::logs::NoLogs),
                membership: Default::default(),
            };
            match State::start(config).await {
                Ok(state) => break state,
                Err(error) => {
                    tracing::info!(%error, server = self.name, "the server did not start; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let death = CancellationToken::new();
        let endpoint = Endpoint {
            name: self.name.clone(),
            router: muster_apiserver::router(Arc::clone(&state)),
            gate: self.gate.clone(),
            death: death.clone(),
        };
        self.network.serve(self.place, Some(endpoint));
        self.process = Some((state, death));
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn pause(&self, time: Duration) {
        self.gate.close(time);
    }

    pub(crate) fn set_trouble(&self, faults: Faults, lies: Lies) {
        self.faults.set_faults(faults);
        self.lies.set_lies(lies);
    }

    /// Waits until every late commit has happened.
    pub(crate) async fn settle(&self) {
        self.faults.settle().await;
    }

    /// How often the store was worse than it may be.
    pub(crate) fn lies_told(&self) -> u64 {
        self.lies.told()
    }
}
