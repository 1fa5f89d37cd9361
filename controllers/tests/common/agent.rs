//! An agent driven by hand: it has capacity, takes tasks and says how they go. It runs nothing.

use std::time::Duration;

use futures::{Stream, StreamExt};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Task};
use muster_api::wire::WatchLine;
use muster_client::{Client, Error, Fence, Patch};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What an agent does with a task that was bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Runs it to its end at once.
    Finish,
    /// Starts it, and goes on for ever.
    Keep,
}

/// An agent that is present.
pub struct TestAgent {
    /// Its name.
    pub name: String,
    client: Client,
    fence: Fence,
    stop: CancellationToken,
    working: tokio::task::JoinHandle<()>,
}

/// How long presence lasts; longer than any test.
const PRESENCE: Duration = Duration::from_secs(3600);

/// Between two watches.
const PAUSE: Duration = Duration::from_millis(100);

impl TestAgent {
    /// Joins the cluster with so many CPUs and a GiB of memory for each, and works.
    pub async fn join(client: Client, name: &str, cpus: u32, habit: Habit) -> TestAgent {
        let fence = client
            .create_ephemeral_lease("muster-agents", name, name, PRESENCE)
            .await
            .expect("present");
        let fenced = client.fenced(&fence);
        let agent = Agent::new(name, Default::default());
        match fenced.create::<Agent>(None, &agent).await {
            Ok(_) | Err(Error::AlreadyExists(_)) => {}
            Err(error) => panic!("no agent object: {error:?}"),
        }
        let capacity = json!({ "cpus": cpus, "memory": format!("{cpus}Gi"), "disk": "0", "ports": ["31000-31999"] });
        let status = json!({ "status": { "capacity": capacity, "session": fence.revision } });
        fenced
            .patch_status::<Agent>(None, name, &Patch::Merge(status))
            .await
            .expect("a status");
        let stop = CancellationToken::new();
        let work = work(fenced.clone(), name.to_owned(), habit);
        let working = tokio::spawn({
            let stop = stop.clone();
            async move {
                stop.run_until_cancelled(work).await;
            }
        });
        TestAgent {
            name: name.to_owned(),
            client: fenced,
            fence,
            stop,
            working,
        }
    }

    /// Its presence ends; its object and what it ran stay.
    pub async fn vanish(self) {
        self.stop.cancel();
        self.working.await.expect("no panic");
        self.client.release(&self.fence).await.expect("released");
    }
}

/// Brings every task that is bound to `name` forward, one write at a time.
async fn work(client: Client, name: String, habit: Habit) {
    loop {
        if let Ok(lines) = client.ordered_watch(&["tasks.muster.dev"], None).await {
            follow(&client, &name, habit, lines).await;
        }
        // A server that is gone answers at once; an agent that asked again at once would never let go of its thread.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(
    client: &Client,
    name: &str,
    habit: Habit,
    lines: impl Stream<Item = muster_client::Result<WatchLine>>,
) {
    let mut lines = std::pin::pin!(lines);
    while let Some(Ok(line)) = lines.next().await {
        let (WatchLine::Snapshot { changes, .. } | WatchLine::Batch { changes, .. }) = line else {
            continue;
        };
        for change in changes {
            let task: Task = serde_json::from_value(change.object).expect("a task");
            if task.agent() == Some(name) {
                forward(client, &task, habit).await;
            }
        }
    }
}

async fn forward(client: &Client, task: &Task, habit: Habit) {
    let status = match (task.phase(), habit) {
        (Phase::Staging | Phase::Starting, _) => json!({ "phase": "Running", "reason": "Started" }),
        (Phase::Running, Habit::Finish) => {
            let finished = task.metadata.creation_timestamp.clone();
            json!({ "phase": "Finished", "reason": "Completed", "exitCode": 0, "finishedAt": finished })
        }
        _ => return,
    };
    let body = json!({ "metadata": { "resourceVersion": task.metadata.resource_version }, "status": status });
    let patch = Patch::Merge(body);
    match client
        .patch_status::<Task>(Some(task.namespace()), task.name(), &patch)
        .await
    {
        // What changed meanwhile comes by the watch.
        Ok(_) | Err(Error::Conflict(_) | Error::NotFound(_)) => {}
        Err(error) => panic!("a task's status is refused: {error:?}"),
    }
}
