//! The loop that planners run in, with a planner made for the purpose and the real API server.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Habit, TestCluster, User};
use http::Request;
use kube::client::Body;
use muster_api::env::Env;
use muster_api::names;
use muster_api::wire::AgentOffers;
use muster_client::Client;
use muster_controllers::leader::{Candidate, Term};
use muster_controllers::runtime::driver::{Clock, Ended, drive};
use muster_controllers::runtime::event::Notes;
use muster_controllers::runtime::executor::{Executor, Outcome};
use muster_controllers::runtime::feed::Feed;
use muster_controllers::runtime::{Action, Change, Context, Kind, Plan, Planner, View, Write};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceExt};

/// Wants a number of frameworks and makes one at a time, named by how many it sees.
#[derive(Clone)]
struct Maker {
    wanted: usize,
    valid: bool,
    planned: Arc<AtomicUsize>,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Maker {
    fn new(wanted: usize, valid: bool) -> Maker {
        Maker {
            wanted,
            valid,
            planned: Arc::default(),
            times: Arc::default(),
        }
    }
}

impl Planner for Maker {
    const NAME: &'static str = "maker";
    type Key = ();

    fn keys(&self, _: &Change, _: &View) -> Vec<()> {
        vec![()]
    }

    fn plan(&self, (): &(), view: &View, _: &Context) -> Plan {
        let mut plan = Plan::default();
        let seen = view.frameworks.len();
        if seen < self.wanted {
            self.planned.fetch_add(1, Ordering::Relaxed);
            self.times.lock().expect("times").push(Instant::now());
            let scheduler = if self.valid { "External" } else { "Magic" };
            plan.write(Action::Create {
                kind: Kind::Framework,
                namespace: "default".to_owned(),
                object: json!({
                    "apiVersion": names::API_VERSION, "kind": "Framework",
                    "metadata": { "name": format!("f{seen}"), "namespace": "default" },
                    "spec": { "scheduler": scheduler },
                }),
            });
        }
        plan
    }
}

struct Stage {
    client: Client,
    feed: Arc<Feed>,
    term: Term,
}

async fn stage(cluster: &TestCluster) -> Stage {
    let client = cluster.server.client(User::Controllers);
    let feed = Feed::new();
    tokio::spawn({
        let (feed, client) = (feed.clone(), client.clone());
        async move { feed.run(&client, &CancellationToken::new()).await }
    });
    feed.reached(1).await;
    let candidate = Candidate {
        client: &client,
        feed: &feed,
        identity: "test",
        ttl: Duration::from_secs(3),
    };
    let term = candidate.campaign().await;
    Stage { client, feed, term }
}

impl Stage {
    fn drive(
        &self,
        cluster: &TestCluster,
        maker: &Maker,
        cancel: &CancellationToken,
    ) -> tokio::task::JoinHandle<Ended> {
        let client = self.client.fenced(self.term.fence());
        let (notes, _taken) = Notes::new();
        let executor = Executor::new(client, self.term.leadership(), notes, watch::Sender::new(None));
        tokio::spawn(drive(
            maker.clone(),
            self.feed.clone(),
            executor,
            Clock::begin(cluster.env.clone()),
            cancel.clone(),
        ))
    }
}

#[tokio::test(start_paused = true)]
async fn a_planner_never_misses_its_own_writes() {
    let cluster = TestCluster::start().await;
    let mut stage = stage(&cluster).await;
    let maker = Maker::new(20, true);
    let cancel = CancellationToken::new();
    let driving = stage.drive(&cluster, &maker, &cancel);
    let made = cluster.wait("20 frameworks", |view| (view.frameworks.len() == 20).then_some(()));
    tokio::select! {
        biased;
        () = stage.term.keep() => panic!("the lease was lost"),
        () = made => {}
    }
    assert_eq!(maker.planned.load(Ordering::Relaxed), 20, "each was planned once");
    cancel.cancel();
    assert_eq!(driving.await.expect("no panic"), Ended::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_tried_again_ever_later() {
    let cluster = TestCluster::start().await;
    let mut stage = stage(&cluster).await;
    let maker = Maker::new(1, false);
    let driving = stage.drive(&cluster, &maker, &CancellationToken::new());
    tokio::select! {
        biased;
        () = stage.term.keep() => panic!("the lease was lost"),
        () = tokio::time::sleep(Duration::from_secs(5)) => {}
    }
    driving.abort();
    let times = maker.times.lock().expect("times").clone();
    let gaps: Vec<u128> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!((6..=12).contains(&times.len()), "{gaps:?}");
    assert!(
        gaps.last() > gaps.first() && gaps.windows(2).all(|pair| pair[0] <= pair[1] + 2),
        "{gaps:?}"
    );
    assert!(cluster.view().frameworks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_driver_ends_when_somebody_else_leads() {
    let cluster = TestCluster::start().await;
    let stage = stage(&cluster).await;
    // Nobody renews; the lease ends in the store before the driver starts.
    let lease = (names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS);
    cluster.admin.release(stage.term.fence()).await.expect("taken away");
    let other = cluster.server.client(User::Controllers);
    other
        .create_ephemeral_lease(lease.0, lease.1, "other", Duration::from_secs(3))
        .await
        .expect("leads");
    let driving = stage.drive(&cluster, &Maker::new(1, true), &CancellationToken::new());
    assert_eq!(driving.await.expect("no panic"), Ended::Fenced);
    assert!(cluster.view().frameworks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_was_paused_past_its_deadline_writes_nothing() {
    let cluster = TestCluster::start().await;
    let stage = stage(&cluster).await;
    tokio::time::advance(Duration::from_millis(2100)).await;
    // The lease is still there, so the fence alone would let the write through.
    let driving = stage.drive(&cluster, &Maker::new(1, true), &CancellationToken::new());
    assert_eq!(driving.await.expect("no panic"), Ended::Fenced);
    assert!(cluster.view().frameworks.is_empty());
}

/// A write of offers that a pass has planned, of a tenth of a CPU of `a1`.
fn offering(seen: u64, env: &dyn Env) -> Write {
    let offer = json!({
        "apiVersion": names::API_VERSION, "kind": "Offer",
        "metadata": { "name": "o", "namespace": "default" },
        "spec": {
            "framework": "default", "role": "default", "agent": "a1",
            "resources": { "cpus": "0.1" },
            "expiresAt": (env.now() + jiff::SignedDuration::from_secs(30)).to_string(),
        },
    });
    let request = AgentOffers {
        seen_revision: seen,
        create: vec![serde_json::from_value(offer).expect("an offer")],
        delete: Vec::new(),
    };
    let agent = "a1".to_owned();
    Write::from(Action::AgentOffers { agent, request })
}

#[tokio::test(start_paused = true)]
async fn offers_that_nobody_answered_have_been_made_or_never_will_be_when_the_next_pass_plans() {
    for arrives in [true, false] {
        let cluster = TestCluster::start().await;
        let stage = stage(&cluster).await;
        let _agent = cluster.agent("a1", 4, Habit::Finish).await;
        // The answer to the first write of offers is lost; the write itself arrives, or is kept.
        let kept: Arc<Mutex<Vec<Request<Body>>>> = Arc::default();
        let (router, keeping) = (cluster.server.router(), kept.clone());
        let first = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |request: Request<Body>| {
            let lost = request.uri().path().ends_with("/offers") && first.fetch_add(1, Ordering::Relaxed) == 0;
            let (router, keeping) = (router.clone(), keeping.clone());
            async move {
                if lost && !arrives {
                    keeping.lock().expect("what is kept").push(request);
                } else {
                    let answer = router.oneshot(request).await?;
                    if !lost {
                        return Ok(answer);
                    }
                }
                Err::<_, BoxError>("connection reset".into())
            }
        });
        let client = Client::in_process(service, &cluster.server.token(User::Controllers));
        let (notes, _taken) = Notes::new();
        let leadership = stage.term.leadership();
        let executor = Executor::new(
            client.fenced(stage.term.fence()),
            leadership,
            notes,
            watch::Sender::new(None),
        );
        let seen = cluster.view().revision;
        let outcomes = executor.apply(vec![offering(seen, &*cluster.env)]).await;
        let [
            Outcome::Later {
                settled: Some(settled), ..
            },
        ] = outcomes.as_slice()
        else {
            panic!("{outcomes:?}")
        };
        stage.feed.reached(*settled).await;
        assert_eq!(
            stage.feed.view().offers.len(),
            usize::from(arrives),
            "arrives: {arrives}"
        );
        let late = kept.lock().expect("what is kept").pop();
        if let Some(late) = late {
            let answer = cluster.server.router().oneshot(late).await.expect("an answer");
            assert_eq!(answer.status(), http::StatusCode::CONFLICT);
        }
    }
}
