//! A fleet whose story is recorded, and what scenarios do with it.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use http::Method;
use muster_api::task_state::Phase;
use muster_api::v1::{Offer, OfferPhase, Task};
use muster_api::wire::{AcceptRequest, AcceptResult};
use muster_client::{Call, Client, Error, Fence};
use muster_e2e::PATIENCE;
use muster_e2e::fleet::{Fleet, Shape, TASKS, task, until};
use muster_e2e::lab::Lab;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::tape::Tape;

/// A cluster under test.
pub(crate) struct World {
    fleet: Fleet,
    /// What happened.
    pub(crate) tape: Tape,
    /// The first server, as an administrator.
    pub(crate) client: Client,
    tolerated: Vec<&'static str>,
}

impl Deref for World {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }
}

/// Runs a story on a cluster of this shape. Afterwards the story must have been consistent, and nothing may have run twice.
pub(crate) fn scenario(shape: Shape, story: impl AsyncFnOnce(&mut World) -> Result<()> + Send) {
    in_lab(async |lab| {
        let mut world = World::start(lab, shape).await?;
        let told = story(&mut world).await;
        let judged = world.judge().await;
        if let Err(error) = told.and(judged) {
            println!("{}", world.tape.show());
            return Err(error);
        }
        world.pass();
        Ok(())
    });
}

/// Runs something in a lab of its own; an error is a panic.
///
/// The thread is its own, too, because it moves into another network.
pub(crate) fn in_lab(story: impl AsyncFnOnce(Lab) -> Result<()> + Send) {
    let run = || {
        // Before there are other threads: they are to be on the same network.
        let lab = Lab::new()?;
        let workers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        workers.expect("the machine has threads").block_on(story(lab))
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl World {
    async fn start(lab: Lab, shape: Shape) -> Result<World> {
        let fleet = Fleet::start(lab, shape).await?;
        let tape = Tape::default();
        for server in fleet.servers() {
            tape.follow(&server, fleet.client(&server).await?);
        }
        let client = fleet.client(&fleet.first_server()).await?;
        let begun = async || (tape.revision() > 0).then_some(());
        until("the recording to begin", PATIENCE, begun)
            .await
            .with_context(|| tape.show())?;
        Ok(World {
            fleet,
            tape,
            client,
            tolerated: Vec::new(),
        })
    }

    /// This scenario breaks this promise on purpose.
    pub(crate) fn tolerate(&mut self, violation: &'static str) {
        self.tolerated.push(violation);
    }

    async fn judge(&mut self) -> Result<()> {
        let last = self.mark("the-end").await?;
        let (tape, whole) = (&self.tape, "every server to tell the whole story");
        until(whole, PATIENCE, async || tape.reached(last).then_some(())).await?;
        let mut wrong = self.tape.verdict();
        wrong.extend(self.evidence.double_runs());
        wrong.retain(|line| !self.tolerated.iter().any(|tolerated| line.contains(tolerated)));
        self.tape.stop();
        ensure!(self.tape.len() > 2, "nothing happened");
        ensure!(
            wrong.is_empty(),
            "{} things are wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(())
    }

    /// Writes something, and gives the revision of it.
    pub(crate) async fn mark(&self, name: &str) -> Result<u64> {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "generateName": format!("{name}-"), "namespace": "default" },
        });
        let write = async || {
            let made: Result<Value, Error> = self
                .client
                .create_at("/api/v1/namespaces/default/configmaps", &body)
                .await;
            made.ok()
        };
        let made = until("a write to be taken", PATIENCE, write).await?;
        self.tape.acknowledged("configmaps", &made);
        Ok(made["metadata"]["resourceVersion"]
            .as_str()
            .context("no revision")?
            .parse()?)
    }

    /// Creates a task that must be taken.
    pub(crate) async fn run(&self, name: &str, script: &str) -> Result<Task> {
        self.submit(task(name, script)).await
    }

    /// Creates an object of tasks that must be taken.
    pub(crate) async fn submit(&self, body: Value) -> Result<Task> {
        let made: Value = self.client.create_at(TASKS, &body).await?;
        self.tape.acknowledged("tasks.muster.dev", &made);
        Ok(serde_json::from_value(made)?)
    }

    /// Waits until so many tasks whose name begins like this satisfy something.
    pub(crate) async fn until_tasks(
        &self,
        prefix: &str,
        count: usize,
        what: &str,
        holds: impl Fn(&Task) -> bool,
    ) -> Result<Duration> {
        self.until_tasks_within(PATIENCE, prefix, count, what, holds).await
    }

    /// The same, within some time.
    pub(crate) async fn until_tasks_within(
        &self,
        limit: Duration,
        prefix: &str,
        count: usize,
        what: &str,
        holds: impl Fn(&Task) -> bool,
    ) -> Result<Duration> {
        let began = Instant::now();
        let matching = || {
            self.tape
                .tasks()
                .into_iter()
                .filter(|task| task.name().starts_with(prefix))
        };
        let reached = async || (matching().filter(|task| holds(task)).count() >= count).then_some(());
        let waited = until(&format!("{count} of {prefix}* to be {what}"), limit, reached).await;
        waited.with_context(|| {
            let phases = matching().map(|task| format!("{} {:?}", task.name(), task.phase()));
            phases.collect::<Vec<_>>().join(", ")
        })?;
        Ok(began.elapsed())
    }

    /// Waits until so many tasks whose name begins like this are in a phase.
    pub(crate) async fn until_phase(&self, prefix: &str, count: usize, phase: Phase) -> Result<Duration> {
        self.until_tasks(prefix, count, phase.to_string().as_str(), |task| task.phase() == phase)
            .await
    }

    /// Asks for a task to be stopped.
    pub(crate) async fn stop_task(&self, name: &str) -> Result<()> {
        let body = json!({ "spec": { "desired": "Killed" } });
        let patch = muster_client::Patch::Merge(body);
        self.client
            .patch::<Task>(Some("default"), name, &patch)
            .await
            .map(drop)
            .map_err(Into::into)
    }

    /// Makes an external framework that wants offers of at least one CPU.
    pub(crate) async fn framework(&self, name: &str, offers: u32) -> Result<()> {
        let body = json!({
            "apiVersion": "muster.dev/v1", "kind": "Framework",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "roles": ["default"], "scheduler": "External",
                "demand": { "minimum": { "cpus": "1", "memory": "64Mi" }, "maxOffers": offers },
            },
        });
        let made: Value = self
            .client
            .create_at("/apis/muster.dev/v1/namespaces/default/frameworks", &body)
            .await?;
        self.tape.acknowledged("frameworks.muster.dev", &made);
        Ok(())
    }

    /// The open offers of a framework.
    pub(crate) fn open_offers(&self, framework: &str) -> Vec<Offer> {
        let offers = self.tape.offers().into_iter();
        offers
            .filter(|offer| offer.spec.framework == framework && offer.phase() == OfferPhase::Open)
            .collect()
    }

    /// Waits for an open offer of a framework that is none of these.
    pub(crate) async fn offer(&self, framework: &str, but: &BTreeSet<String>) -> Result<Offer> {
        let open = async || {
            let mut offers = self.open_offers(framework).into_iter();
            offers.find(|offer| offer.metadata.name.as_ref().is_some_and(|name| !but.contains(name)))
        };
        until(&format!("an offer for {framework}"), PATIENCE, open).await
    }

    /// Takes all cuts back; they must have held something up.
    pub(crate) fn heal(&self) -> Result<()> {
        ensure!(self.lab.heal()? > 0, "the cut has held nothing up");
        Ok(())
    }

    /// Waits until somebody leads under another fence than this, and says who.
    pub(crate) async fn next_leader(&self, before: u64) -> Result<(u64, String)> {
        let changed = async || self.tape.leader().filter(|(revision, _)| *revision != before);
        until("another leader", PATIENCE, changed).await
    }

    /// The fence of the leader.
    pub(crate) async fn leader(&self) -> Result<(u64, String)> {
        until("a leader", PATIENCE, async || self.tape.leader()).await
    }

    /// The member that leads etcd, among those that can be asked.
    pub(crate) async fn etcd_leader(&self, among: &[&str]) -> Result<String> {
        until("etcd to have a leader", PATIENCE, async || {
            self.fleet.etcd_leader(among)
        })
        .await
    }

    /// The server whose controllers lead: whose log says so last.
    pub(crate) async fn leading_server(&mut self) -> Result<String> {
        let (fence, _) = self.leader().await?;
        let line = format!("leading fence=muster-system/muster-controllers@{fence} ");
        let servers = self.servers();
        let leads = async || {
            servers
                .iter()
                .find(|name| self.process(&format!("{name}/server")).log().contains(&line))
                .cloned()
        };
        until("the log of the leader", PATIENCE, leads).await
    }

    /// Adds hosts with controllers of their own, c1, c2, …, and has the first of them lead.
    pub(crate) async fn controllers_apart(&mut self, identities: &[&str], ttl: Duration) -> Result<()> {
        for (index, identity) in identities.iter().enumerate() {
            self.add_controllers(u8::try_from(index + 1)?, identity, ttl.as_secs())?;
        }
        self.make_lead(identities.first().context("no controllers")?).await
    }

    /// Takes leadership from whoever has it until this one leads.
    pub(crate) async fn make_lead(&self, identity: &str) -> Result<()> {
        let lead = async || {
            match self.tape.leader() {
                Some((_, holder)) if holder == identity => return Some(()),
                Some((revision, _)) => {
                    self.depose(revision).await.ok();
                    let _ = until("another", Duration::from_secs(2), async || {
                        self.tape.leader().filter(|(now, _)| *now != revision)
                    })
                    .await;
                }
                None => {}
            }
            None
        };
        until(&format!("{identity} to lead"), PATIENCE, lead).await
    }

    /// Deletes the leader's lease, as an administrator may.
    pub(crate) async fn depose(&self, revision: u64) -> Result<()> {
        let path = "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers";
        let only = muster_client::Preconditions {
            resource_version: Some(revision.to_string()),
            ..Default::default()
        };
        self.client
            .delete_at::<Value>(path, &only)
            .await
            .map(drop)
            .map_err(Into::into)
    }

    /// The fence of the controllers at this revision.
    pub(crate) fn controllers_fence(revision: u64) -> Fence {
        Fence {
            namespace: "muster-system".into(),
            name: "muster-controllers".into(),
            revision,
        }
    }
}

/// Accepts an offer with one new task.
pub(crate) async fn accept(
    client: &Client,
    offer: &Offer,
    body: Value,
    idempotency: Option<&str>,
) -> Result<AcceptResult, Error> {
    let request = AcceptRequest {
        launch: vec![body],
        idempotency_key: idempotency.map(str::to_owned),
        ..Default::default()
    };
    client
        .accept("default", offer.metadata.name.as_deref().unwrap_or_default(), &request)
        .await
}

/// What a server answers to a GET.
pub(crate) async fn read(client: &Client, path: &str) -> Result<Value, Error> {
    client.call(Call::new(Method::GET, path.to_owned(), "an answer")).await
}

/// Has a framework's offers accepted by these clients at once, again and again, until so many were. Exactly one wins each, unless the
/// offer was taken back before; who loses is told so.
pub(crate) async fn contend(world: &World, framework: &str, clients: &[Client], rounds: usize) -> Result<()> {
    let mut won = 0;
    for round in 0..rounds * 5 {
        let offer = world.offer(framework, &BTreeSet::new()).await?;
        let calls = clients.iter().enumerate().map(|(index, client)| {
            accept(
                client,
                &offer,
                task_of(framework, &format!("{framework}-{round}-{index}"), "true"),
                None,
            )
        });
        let answers = join_all(calls).await;
        let winners = answers.iter().filter(|answer| answer.is_ok()).count();
        ensure!(winners <= 1, "round {round}: {answers:?}");
        ensure!(
            answers.iter().all(|answer| answer.is_ok() || too_late(answer)),
            "round {round}: {answers:?}"
        );
        won += winners;
        if won == rounds {
            world
                .until_phase(&format!("{framework}-"), rounds, Phase::Finished)
                .await?;
            let made = world
                .tape
                .tasks()
                .iter()
                .filter(|task| task.name().starts_with(framework))
                .count();
            ensure!(made == rounds, "who lost has left nothing: {made} tasks");
            return Ok(());
        }
        let name = offer.metadata.name.clone();
        let gone = async || {
            (!world
                .open_offers(framework)
                .iter()
                .any(|open| open.metadata.name == name))
            .then_some(())
        };
        until("the offer to be seen gone", PATIENCE, gone).await?;
    }
    bail!("only {won} of {} offers were accepted by anybody", rounds * 5)
}

/// Whether a call was refused because the offer is not there to be taken any more.
pub(crate) fn too_late<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::NotFound(_) | Error::Conflict(_) | Error::Gone(_)))
}

/// A task for the offer of an external framework.
pub(crate) fn task_of(framework: &str, name: &str, script: &str) -> Value {
    let mut body = task(name, script);
    body["spec"]["framework"] = json!(framework);
    body["spec"]["role"] = json!("default");
    body
}

/// Creates tasks without end, one after the other, at every server in turn.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    job: JoinHandle<Loaded>,
}

/// What became of a load.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Names of the tasks that were acknowledged.
    pub(crate) acknowledged: Vec<String>,
    /// Names of those that may or may not be there.
    pub(crate) unclear: Vec<String>,
    /// How many were refused for now.
    pub(crate) refused: usize,
}

impl Load {
    /// Begins.
    pub(crate) fn start(world: &World, clients: Vec<Client>, pause: Duration) -> Load {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let (stopped, count, tape) = (stop.clone(), made.clone(), world.tape.clone());
        let job = tokio::spawn(async move {
            let mut loaded = Loaded::default();
            let script = format!("{}true", muster_e2e::evidence::PROBE);
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let name = format!("load-{number}");
                let client = &clients[number % clients.len()];
                number += 1;
                let made: Result<Value, Error> = client.create_at(TASKS, &task(&name, &script)).await;
                match made {
                    Ok(made) => {
                        tape.acknowledged("tasks.muster.dev", &made);
                        count.fetch_add(1, Ordering::Relaxed);
                        loaded.acknowledged.push(name);
                    }
                    Err(Error::Retryable { .. }) => loaded.refused += 1,
                    Err(_) => loaded.unclear.push(name),
                }
                tokio::time::sleep(pause).await;
            }
            loaded
        });
        Load { stop, made, job }
    }

    /// Waits until so many more are acknowledged.
    pub(crate) async fn more(&self, count: usize) -> Result<()> {
        let from = self.made.load(Ordering::Relaxed);
        let made = async || (self.made.load(Ordering::Relaxed) >= from + count).then_some(());
        until(&format!("{count} more tasks to be taken"), PATIENCE, made).await
    }

    /// Ends it, and waits until every acknowledged task has finished.
    pub(crate) async fn finish(self, world: &World) -> Result<Loaded> {
        self.stop.store(true, Ordering::Relaxed);
        let loaded = self.job.await?;
        let names: BTreeSet<&str> = loaded.acknowledged.iter().map(String::as_str).collect();
        let tasks = || {
            world
                .tape
                .tasks()
                .into_iter()
                .filter(|task| names.contains(task.name()))
        };
        let all =
            async || (tasks().filter(|task| task.phase() == Phase::Finished).count() == names.len()).then_some(());
        let ended = until("the load to have finished", PATIENCE * 2, all).await;
        if let Err(error) = ended {
            let left = tasks().filter(|task| task.phase() != Phase::Finished);
            let left: Vec<String> = left
                .map(|task| format!("{} {:?}", task.name(), task.status))
                .take(5)
                .collect();
            bail!("{error}: {} of {}; {left:?}", left.len(), names.len());
        }
        Ok(loaded)
    }
}

/// Real time that a fault lasts.
pub(crate) async fn lasting(time: Duration) {
    tokio::time::sleep(time).await;
}
