//! The network: what gets through, how late, and to which server.
//!
//! Requests and answers may be lost, late or doubled, and the way between any two parties may be cut, in one direction or both. What is
//! on its way stays there while the way is cut, as TCP sends again until somebody gives up; so a request may arrive long after its sender
//! has stopped waiting for it, and is answered all the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::invariants::Reply;
use crate::sieve::{Counter, Harm, Place};

/// How bad the network is; probabilities from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// The longest delay of a request.
    pub delay_max: Duration,
    /// A request is lost before the server sees it.
    pub lost: f64,
    /// The answer is lost after the server has acted.
    pub answer_lost: f64,
    /// A request that writes is delivered twice.
    pub doubled: f64,
    /// A watch is cut at one of its chunks.
    pub cut: f64,
    /// A client goes to another server with its next request.
    pub moved: f64,
    /// A request arrives seconds late.
    pub straggles: f64,
    /// The server notices that a client does not wait any more, and drops its request wherever it is.
    pub abandoned: f64,
}

/// A server that can be reached.
#[derive(Clone)]
pub struct Endpoint {
    /// Its name in the network.
    pub name: String,
    /// What answers.
    pub router: Router,
    /// Whether it runs.
    pub gate: Gate,
    /// Ends with the process.
    pub death: CancellationToken,
}

/// How late a request is that straggles: up to what a client waits, and beyond.
const STRAGGLING_MS: std::ops::Range<u64> = 500..12_000;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests that reached a server.
    pub requests: u64,
    /// Writes that were refused because their fence had ended.
    pub fenced: u64,
}

/// See the module.
pub struct Network {
    state: Mutex<State>,
}

struct State {
    random: StdRng,
    weather: Weather,
    servers: Vec<Option<Endpoint>>,
    cuts: BTreeMap<(String, String), Instant>,
    replies: Vec<Reply>,
    late: Vec<String>,
    figures: Figures,
    requests: u64,
    sieve: Option<Arc<Counter>>,
}

impl Network {
    /// A network in good weather without a server.
    pub fn new(seed: u64) -> Arc<Network> {
        let state = State {
            random: StdRng::seed_from_u64(seed ^ 0x2e7),
            weather: Weather::default(),
            servers: Vec::new(),
            cuts: BTreeMap::new(),
            replies: Vec::new(),
            late: Vec::new(),
            figures: Figures::default(),
            requests: 0,
            sieve: None,
        };
        Arc::new(Network {
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the network")
    }

    /// Puts a server at a place, or none.
    pub fn serve(&self, place: usize, server: Option<Endpoint>) {
        let mut state = self.lock();
        if state.servers.len() <= place {
            state.servers.resize_with(place + 1, || None);
        }
        state.servers[place] = server;
    }

    /// Lets all servers go: they hold their wires to the store, which hold the network.
    pub(crate) fn dissolve(&self) {
        self.lock().servers.clear();
    }

    /// The server at a place, or at the next one that has one.
    pub(crate) fn server(&self, place: usize) -> Option<Endpoint> {
        let state = self.lock();
        let count = state.servers.len();
        (0..count).find_map(|step| state.servers[(place + step) % count].clone())
    }

    /// Counts what comes by, and does harm at one point.
    pub fn set_sieve(&self, counter: Arc<Counter>) {
        self.lock().sieve = Some(counter);
    }

    pub(crate) fn sieve(&self) -> Option<Arc<Counter>> {
        self.lock().sieve.clone()
    }

    /// Counts an item; what goes wrong with it.
    pub(crate) fn harm(&self, place: Place) -> Option<Harm> {
        self.sieve()?.pass(place)
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// The weather.
    pub fn weather(&self) -> Weather {
        self.lock().weather
    }

    /// Nothing gets from here to there for so long.
    pub fn cut(&self, from: &str, to: &str, time: Duration) {
        let until = Instant::now() + time;
        self.lock().cuts.insert((from.to_owned(), to.to_owned()), until);
    }

    /// Every way is open again.
    pub fn heal(&self) {
        self.lock().cuts.clear();
    }

    /// Waits until something gets from here to there.
    pub async fn cross(&self, from: &str, to: &str) {
        let step = Duration::from_secs(1);
        loop {
            let until = {
                let state = self.lock();
                let until = state.cuts.get(&(from.to_owned(), to.to_owned()));
                until.copied().filter(|until| *until > Instant::now())
            };
            match until {
                // Ways may be healed early.
                Some(until) => sleep_until(until.min(Instant::now() + step)).await,
                None => return,
            }
        }
    }

    pub(crate) fn happens(&self, probability: f64) -> bool {
        probability > 0.0 && self.lock().random.random_bool(probability)
    }

    /// How long something is on its way.
    pub(crate) fn delay(&self) -> Duration {
        let mut state = self.lock();
        let most = u64::try_from(state.weather.delay_max.as_micros()).expect("delays are short");
        Duration::from_micros(state.random.random_range(0..=most))
    }

    /// The same for a request, which may have been lost and sent again several times.
    pub(crate) fn delay_of_request(&self) -> Duration {
        if self.happens(self.weather().straggles) {
            Duration::from_millis(self.lock().random.random_range(STRAGGLING_MS))
        } else {
            self.delay()
        }
    }

    pub(crate) fn next_request(&self) -> u64 {
        let mut state = self.lock();
        state.requests += 1;
        state.figures.requests += 1;
        state.requests
    }

    pub(crate) fn replied(&self, reply: Reply) {
        let mut state = self.lock();
        state.figures.fenced += u64::from(reply.code == 412);
        state.replies.push(reply);
    }

    /// Notes that a leader sent a write although its time was over.
    pub(crate) fn too_late(&self, what: String) {
        self.lock().late.push(what);
    }

    /// Takes the answers since the last call, and what was sent too late.
    pub fn take_replies(&self) -> (Vec<Reply>, Vec<String>) {
        let mut state = self.lock();
        (std::mem::take(&mut state.replies), std::mem::take(&mut state.late))
    }

    /// What was counted so far.
    pub fn figures(&self) -> Figures {
        self.lock().figures
    }
}
