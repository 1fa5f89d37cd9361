//! Agents between an API server and a runtime that both fail, and that crash themselves, all from one seed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as RouterBody;
use http::Request;
use kube::client::Body;
use muster_api::task_state::Phase;
use muster_api::v1::RestartPolicy;
use muster_client::Client;
use muster_runtime::Error as RuntimeError;
use muster_runtime::fake::{Call, Event, Fault, Happening};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tower::ServiceExt as _;

use crate::cluster::Cluster;

/// Both sides of the agent fail while this is true.
struct Weather {
    rng: SmallRng,
    bad: bool,
}

impl Weather {
    fn hits(&mut self, chance: f64) -> bool {
        self.bad && self.rng.random_bool(chance)
    }
}

type Shared = Arc<Mutex<Weather>>;

fn hits(weather: &Shared, chance: f64) -> bool {
    weather.lock().expect("no panics under it").hits(chance)
}

/// The router, reached through a network that loses requests and answers and is slow.
fn unreliable(cluster: &Cluster, weather: Shared) -> Client {
    let router = cluster.router();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (router, weather) = (router.clone(), Arc::clone(&weather));
        async move {
            let lost = || std::io::Error::other("the connection is lost");
            if hits(&weather, 0.1) {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            if hits(&weather, 0.1) {
                return Err(lost());
            }
            let Ok(answer) = router.oneshot(request.map(RouterBody::new)).await;
            if hits(&weather, 0.1) { Err(lost()) } else { Ok(answer) }
        }
    });
    Client::in_process(service, &cluster.token("a1"))
}

fn fault(weather: &Shared) -> Option<Fault> {
    let error = RuntimeError::System {
        context: "disk".to_owned(),
        message: "no space left".to_owned(),
    };
    if hits(weather, 0.05) {
        Some(Fault::Fail(error))
    } else if hits(weather, 0.02) {
        Some(Fault::DoThenHang)
    } else if hits(weather, 0.02) {
        Some(Fault::Hang)
    } else {
        None
    }
}

/// One history; what happened on the machine.
async fn history(seed: u64) -> Vec<Event> {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let weather = Arc::new(Mutex::new(Weather {
        rng: SmallRng::seed_from_u64(seed),
        bad: true,
    }));
    let faults = Arc::clone(&weather);
    machine.set_faults(move |call, _| if call == Call::Logs { None } else { fault(&faults) });
    let first = cluster.joined(&machine, 1).await;
    cluster
        .launch(
            &["sleep 20", "fake run=3 exit=1", "sleep 100000", "sleep 100000", "true"],
            |spec| {
                spec.restart_policy = RestartPolicy::OnFailure;
            },
        )
        .await;
    first.crash().await;
    for incarnation in 2..6 {
        let running = cluster.run_with(
            &machine,
            cluster.config(incarnation),
            unreliable(&cluster, Arc::clone(&weather)),
        );
        let wait = weather.lock().expect("no panics under it").rng.random_range(1..40_000);
        if incarnation == 3 {
            cluster.kill("t2").await;
        }
        tokio::time::sleep(Duration::from_millis(wait)).await;
        running.crash().await;
    }
    weather.lock().expect("no panics under it").bad = false;
    let last = cluster.joined(&machine, 6).await;
    cluster.reaches("t0", Phase::Finished).await;
    let failed = cluster.reaches("t1", Phase::Failed).await.status.expect("it is told");
    assert_eq!(
        failed.attempts.last().map(|attempt| attempt.number),
        Some(4),
        "seed {seed}"
    );
    cluster.reaches("t2", Phase::Killed).await;
    cluster.reaches("t3", Phase::Running).await;
    cluster.reaches("t4", Phase::Finished).await;
    last.crash().await;
    machine.history()
}

fn check(seed: u64, history: &[Event]) {
    for event in history.iter().filter(|event| event.happening == Happening::Started) {
        let starts = history
            .iter()
            .filter(|other| other.id == event.id && other.happening == Happening::Started);
        assert_eq!(starts.count(), 1, "seed {seed}: {} was started twice", event.id);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_every_command_is_run_as_often_as_it_should_and_told_as_it_was() {
    for seed in 0..25 {
        let history = history(seed).await;
        assert!(!history.is_empty());
        check(seed, &history);
    }
}

#[test]
fn equal_seeds_have_equal_histories() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.expect("a runtime").block_on(history(seed))
    };
    assert_eq!(run(7), run(7));
}
