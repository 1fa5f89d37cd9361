//! Nothing left to chance: one history, again and again, with one thing going wrong at each of its points in turn.
//!
//! A small scenario is run once without trouble, and its points are counted: every write of the controllers (by planner) and of the agent,
//! every item of every watch, every revision that a hub sees. Then it is run once for each point and each thing that can go wrong there
//! ([`Harm`]), and must end as the first run did: the same tasks in the same phases for the same reasons with the same number of attempts,
//! nothing left over. (The idea is Sieve's, OSDI '22: enumeration finds windows of microseconds that no random storm hits.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use muster_api::task_state::Phase;
use muster_api::v1::{Task, TaskReason};
use muster_store::{Faults, Lies};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::converge::discrepancies;
use crate::network::Weather;
use crate::profile::{Profile, Storm};
use crate::run::on_virtual_time;
use crate::world::World;

/// Something that goes wrong at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// The process dies when it sends the request, which is not sent.
    CrashBefore,
    /// The process dies when the request has been done, without an answer.
    CrashAfter,
    /// The request is lost.
    RequestLost,
    /// The answer is lost.
    AnswerLost,
    /// The connection of a watch breaks at the item.
    WatchCut,
    /// The item of a watch is late by seconds, and everything after it.
    WatchLate,
    /// The store loses the event for a hub.
    EventLost,
    /// The store gives the event to a hub after the next one.
    EventSwapped,
}

/// Where something can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A write of the controllers, by what kind of write it is.
    Controllers(String),
    /// A write of an agent.
    Agent,
    /// An item of a watch of the controllers.
    ControllersWatch,
    /// An item of a watch of an agent.
    AgentWatch,
    /// A revision in the watch of a hub.
    Hub,
}

impl Place {
    fn harms(&self) -> &'static [Harm] {
        match self {
            Place::Controllers(_) | Place::Agent => {
                &[Harm::CrashBefore, Harm::CrashAfter, Harm::RequestLost, Harm::AnswerLost]
            }
            Place::ControllersWatch | Place::AgentWatch => &[Harm::WatchCut, Harm::WatchLate],
            Place::Hub => &[Harm::EventLost, Harm::EventSwapped],
        }
    }
}

/// One point of the history, and what goes wrong there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Where.
    pub place: Place,
    /// The how manieth time, from 0.
    pub index: usize,
    /// What.
    pub harm: Harm,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?} number {}", self.harm, self.place, self.index)
    }
}

/// Counts points as they come by, and says when something goes wrong.
#[derive(Debug, Default)]
pub struct Counter {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    target: Option<Point>,
    seen: BTreeMap<Place, usize>,
    crashed: Option<String>,
    hit: bool,
}

impl Counter {
    fn new(target: Option<Point>) -> Counter {
        let state = State {
            target,
            ..State::default()
        };
        Counter {
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no one panics while counting")
    }

    /// Counts; what goes wrong here, if anything does.
    pub fn pass(&self, place: Place) -> Option<Harm> {
        let mut state = self.state();
        let count = state.seen.entry(place.clone()).or_default();
        let index = *count;
        *count += 1;
        let hit = |target: &&Point| target.place == place && target.index == index;
        let harm = state.target.as_ref().filter(hit).map(|target| target.harm);
        state.hit |= harm.is_some();
        harm
    }

    /// A process of this node is to die.
    pub fn crash(&self, node: &str) {
        self.state().crashed = Some(node.to_owned());
    }

    fn take_crashed(&self) -> Option<String> {
        self.state().crashed.take()
    }
}

/// Where a request of a node counts: what kind of write it is says which planner made it.
pub fn place_of(node: &str, method: &http::Method, path: &str) -> Option<Place> {
    if *method == http::Method::GET || path.contains("/leases") {
        return None;
    }
    if node.starts_with("machine-") {
        return Some(Place::Agent);
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    let kind = if path.contains("/events") {
        "events"
    } else if last == "plan" {
        "reasons"
    } else if last == "offers" || path.contains("/offers/") && *method == http::Method::DELETE {
        "offers"
    } else if last == "accept" || last == "decline" {
        "scheduling"
    } else if path.contains("/frameworks") {
        "frameworks"
    } else if path.contains("/agents/") {
        "agents"
    } else if path.contains("/quotas") {
        "quotas"
    } else {
        "tasks"
    };
    node.starts_with("controllers-")
        .then(|| Place::Controllers(kind.to_owned()))
}

/// How the scenario ended, as far as it must not depend on what went wrong on the way.
type End = BTreeMap<String, String>;

/// How a run went.
struct Run {
    end: End,
    seen: BTreeMap<Place, usize>,
    hit: bool,
    wrong: Vec<String>,
}

/// The first tasks of the scenario, and what they do: one of each kind of end, one that runs, one for each that the user ends.
fn tasks() -> Vec<Value> {
    let task = |name: &str, command: Value, restart: &str, gpus: u32| {
        json!({
            "apiVersion": "muster.dev/v1",
            "kind": "Task",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "command": command,
                "restartPolicy": restart,
                "retries": 1,
                "resources": { "cpus": "0.5", "memory": "16Mi", "gpus": gpus, "ports": 1 },
            },
        })
    };
    vec![
        task("finishes", json!(["sleep", "3"]), "Never", 1),
        task("fails", json!(["fake", "run=1", "exit=4"]), "OnFailure", 0),
        task("runs", json!(["sleep", "infinity"]), "Never", 1),
        task("killed", json!(["sleep", "infinity"]), "Never", 1),
        task("deleted", json!(["fake", "ignore-signals=1"]), "Never", 0),
    ]
}

/// Runs the scenario, with something going wrong at one point or nowhere.
fn scenario(target: Option<Point>) -> Run {
    on_virtual_time(1, async {
        let mut storm = Profile::Calm.draw(&mut rand::SeedableRng::seed_from_u64(1));
        storm = Storm {
            servers: 1,
            controllers: 2,
            agents: 1,
            quota: false,
            ..storm
        };
        let counter = std::sync::Arc::new(Counter::new(target));
        let mut world = World::sieved(1, &storm, counter.clone()).await;
        world.set_trouble(Weather::default(), &Faults::none(), &Lies::none());
        let mut wrong = play(&mut world, &counter).await;
        if !world.check() {
            wrong.extend(world.checker().violations().iter().cloned());
        }
        let state = counter.state();
        Run {
            end: end(&world),
            seen: state.seen.clone(),
            hit: state.hit,
            wrong,
        }
    })
}

/// How long each act may take: longer than a lease, an offer and the longest backoff together.
const PATIENCE: Duration = Duration::from_secs(180);

async fn play(world: &mut World, counter: &Counter) -> Vec<String> {
    let api: Api<Task> = Api::namespaced(world.user().kube(), "default");
    for task in tasks() {
        let task = serde_json::from_value(task).expect("the scenario's tasks are tasks");
        let created = api.create(&PostParams::default(), &task).await;
        created.expect("nothing is wrong with users here");
    }
    let mut wrong = settle(world, counter, &["Running runs", "Running killed", "Running deleted"]).await;
    let patch = Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
    let killed = api.patch("killed", &PatchParams::default(), &patch).await;
    killed.expect("nothing is wrong with users here");
    let deleted = api.delete("deleted", &DeleteParams::default()).await;
    deleted.expect("nothing is wrong with users here");
    wrong.extend(settle(world, counter, &["Killed killed", "Failed fails", "Finished finishes"]).await);
    // Again under the name of a task that is gone.
    let again = tasks().pop().expect("there are some");
    let again = serde_json::from_value(again).expect("the scenario's tasks are tasks");
    let created = timeout(PATIENCE, api.create(&PostParams::default(), &again)).await;
    wrong.extend(created.map_or_else(
        |_| Some("no answer".to_owned()),
        |created| created.err().map(|error| error.to_string()),
    ));
    wrong.extend(
        settle(
            world,
            counter,
            &["Running deleted", "Killed killed", "Failed fails", "Finished finishes"],
        )
        .await,
    );
    wrong
}

/// Waits until these tasks are in these phases and nothing is in between; starts again what dies meanwhile.
async fn settle(world: &mut World, counter: &Counter, wanted: &[&str]) -> Vec<String> {
    let mut missing = Vec::new();
    let step = Duration::from_millis(50);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        sleep(step).await;
        if let Some(node) = counter.take_crashed() {
            // As a supervisor does, and not at once.
            sleep(Duration::from_millis(500)).await;
            world.restart(&node);
        }
        if !world.check() {
            return Vec::new();
        }
        missing = discrepancies(world).await;
        let there: Vec<String> = world
            .checker()
            .tasks()
            .values()
            .filter(|task| task.metadata.deletion_timestamp.is_none())
            .map(|task| format!("{} {}", task.phase(), task.name()))
            .collect();
        missing.extend(
            wanted
                .iter()
                .filter(|wanted| !there.iter().any(|there| there == *wanted))
                .map(|what| format!("not {what}")),
        );
        if missing.is_empty() {
            return missing;
        }
    }
    missing
}

/// What must be the same. When an agent takes a task up again, or says so twice, is not; why a container ended is.
fn end(world: &World) -> End {
    let checker = world.checker();
    let tasks = checker.tasks().values().map(|task| {
        let status = task.status.clone().unwrap_or_default();
        let reason = status.reason.filter(|reason| *reason != TaskReason::Preparing);
        let ended = status.phase != Phase::Running;
        let attempts = status.attempts.len();
        let said = format!(
            "{} {reason:?} {:?} after {attempts} attempts",
            status.phase,
            status.exit_code.filter(|_| ended)
        );
        (task.name().to_owned(), said)
    });
    let mut end: End = tasks.collect();
    end.insert("offers".to_owned(), checker.offers().len().to_string());
    end.insert("agents".to_owned(), checker.agents().len().to_string());
    end
}

/// What became of the sieve.
#[derive(Debug, Default)]
pub struct Sieved {
    /// How many points were tried, by place.
    pub tried: BTreeMap<Place, usize>,
    /// Where the end was another, and how.
    pub diverged: Vec<(Point, Vec<String>)>,
}

/// Tries every point, or one in so many.
pub fn sieve(one_in: usize) -> Sieved {
    let reference = scenario(None);
    assert!(
        reference.wrong.is_empty(),
        "nothing goes wrong without harm: {:?}",
        reference.wrong
    );
    let points = reference.seen.iter().flat_map(|(place, count)| {
        let harms = place.harms().iter();
        harms.flat_map(move |harm| {
            (0..*count).map(move |index| Point {
                place: place.clone(),
                index,
                harm: *harm,
            })
        })
    });
    let points: Vec<Point> = points.step_by(one_in).collect();
    let next = AtomicUsize::new(0);
    let sieved = Mutex::new(Sieved::default());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let different = difference(&reference, point);
                    let mut sieved = sieved.lock().expect("no one panics with the list");
                    *sieved.tried.entry(point.place.clone()).or_default() += 1;
                    if !different.is_empty() {
                        sieved.diverged.push((point.clone(), different));
                    }
                }
            });
        }
    });
    let mut sieved = sieved.into_inner().expect("no one panics with the list");
    sieved.diverged.sort();
    sieved
}

/// How a run with harm ended differently.
fn difference(reference: &Run, point: &Point) -> Vec<String> {
    let run = scenario(Some(point.clone()));
    let mut different = run.wrong;
    if !run.hit {
        different.push("the point was not reached again".to_owned());
    }
    let keys = reference
        .end
        .keys()
        .chain(run.end.keys().filter(|key| !reference.end.contains_key(*key)));
    for key in keys {
        let (expected, found) = (reference.end.get(key), run.end.get(key));
        if expected != found {
            different.push(format!("{key}: {found:?} instead of {expected:?}"));
        }
    }
    different
}

/// Runs one point and says how it ended.
pub fn one(point: &Point) -> Vec<String> {
    difference(&scenario(None), point)
}

/// Tries every point, or one in so many, and prints what was found; returns whether all ended alike.
pub fn report(one_in: usize) -> bool {
    let sieved = sieve(one_in);
    for (point, different) in &sieved.diverged {
        println!("{point}:");
        different.iter().for_each(|what| println!("  {what}"));
    }
    for (place, count) in &sieved.tried {
        println!("{count} points at {place:?}");
    }
    let tried: usize = sieved.tried.values().sum();
    println!("{tried} points, {} divergences", sieved.diverged.len());
    sieved.diverged.is_empty()
}
