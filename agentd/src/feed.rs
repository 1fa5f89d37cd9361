//! Keeps the view fed: a list, then a watch from there, for ever.
//!
//! It promises: events in the order of the server; no gap between a list and its watch, or between a watch and the next; a connection
//! that died silently is noticed within [`WATCH_TIMEOUT`] and a little. What must never happen here: an event dropped because somebody
//! is slow (the channel is bounded, so the connection waits).

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::Method;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use muster_client::{Call, Client, Error};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::limits::{REQUEST_DEADLINE, RETRY_FIRST, RETRY_MAX, WATCH_TIMEOUT};
use crate::view::{Row, ViewEvent};

const TASKS: &str = "/apis/muster.dev/v1/tasks";

/// How long after its end a watch that the server should have ended is given up.
const SLACK: Duration = Duration::from_secs(5);

/// A watch that lasted less than this was no good.
const SHORT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Tasks {
    metadata: ListMeta,
    items: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

/// The reader of the events is gone.
struct Unheard;

/// Why a watch ended.
enum End {
    /// It may go on from the last revision.
    Resume,
    /// The revision is not kept any more: list again.
    Expired,
    /// It failed.
    Failed(String),
}

struct Feed {
    client: Client,
    selector: String,
    events: mpsc::Sender<ViewEvent>,
    relist: Arc<Notify>,
}

/// Waits that double.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff(RETRY_FIRST)
    }

    /// How long to wait now; the next wait is twice as long.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY_MAX);
        wait
    }
}

/// Feeds the tasks of `agent` into `events`, until nobody listens.
/// `relist` has it list at once, wherever it is.
pub async fn feed(client: Client, agent: String, events: mpsc::Sender<ViewEvent>, relist: Arc<Notify>) {
    let feed = Feed {
        client,
        selector: format!("status.agent={agent}"),
        events,
        relist,
    };
    // The only way out of the loop is that nobody listens.
    let Err(Unheard) = feed.run().await;
}

impl Feed {
    async fn send(&self, event: ViewEvent) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }

    async fn run(&self) -> Result<std::convert::Infallible, Unheard> {
        let mut backoff = Backoff::new();
        loop {
            let (rows, mut revision) = match self.list().await {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(%error, "the tasks cannot be listed");
                    self.send(ViewEvent::Lost).await?;
                    sleep(backoff.next()).await;
                    continue;
                }
            };
            self.send(ViewEvent::Listed(rows, revision)).await?;
            let listed = revision;
            let end = loop {
                let opened = Instant::now();
                match self.watch(&mut revision).await? {
                    // A server that ends every watch at once, as one that stops does, must not be asked without end.
                    End::Resume if opened.elapsed() < SHORT => sleep(backoff.next()).await,
                    End::Resume => backoff = Backoff::new(),
                    end => break end,
                }
            };
            if revision != listed {
                backoff = Backoff::new();
            }
            // After a failure there is a list, too: a server that was restored from a backup does not know the revision.
            if let End::Failed(error) = end {
                tracing::warn!(%error, "the watch of the tasks failed");
                self.send(ViewEvent::Lost).await?;
                sleep(backoff.next()).await;
            }
        }
    }

    async fn list(&self) -> Result<(Vec<Row>, u64), Error> {
        let list = Request::new(TASKS).list(&ListParams::default().fields(&self.selector));
        let path = list.expect("a selector without paging is valid").uri().to_string();
        let tasks: Tasks = self
            .client
            .call(Call::new(Method::GET, path, "a list of tasks"))
            .await?;
        let revision = tasks
            .metadata
            .resource_version
            .parse()
            .map_err(|source| Error::Decode {
                what: "the revision of a list",
                source: Box::new(source),
            })?;
        Ok((tasks.items, revision))
    }

    async fn watch(&self, revision: &mut u64) -> Result<End, Unheard> {
        let seconds = u32::try_from(WATCH_TIMEOUT.as_secs()).expect("a watch lasts minutes");
        let params = WatchParams::default().fields(&self.selector).timeout(seconds);
        let request = Request::new(TASKS).watch(&params, &revision.to_string());
        let request = request.expect("a selector and a timeout of minutes are valid");
        let kube = self.client.kube();
        let stream = match timeout(REQUEST_DEADLINE, kube.request_events::<Row>(request)).await {
            Err(_) => return Ok(End::Failed("no answer in time".to_owned())),
            Ok(Err(error)) => return Ok(ended(&Error::from(error))),
            Ok(Ok(stream)) => stream,
        };
        self.send(ViewEvent::Live).await?;
        tokio::pin!(stream);
        let deadline = Instant::now() + WATCH_TIMEOUT + SLACK;
        loop {
            let next = tokio::select! {
                biased;
                () = self.relist.notified() => return Ok(End::Expired),
                next = tokio::time::timeout_at(deadline, stream.next()) => next,
            };
            let event = match next {
                Err(_) | Ok(None) => return Ok(End::Resume),
                Ok(Some(Err(error))) => return Ok(ended(&Error::from(error))),
                Ok(Some(Ok(event))) => event,
            };
            let event = match event {
                WatchEvent::Added(row) | WatchEvent::Modified(row) => {
                    *revision = (*revision).max(row.revision());
                    ViewEvent::Changed(row)
                }
                WatchEvent::Deleted(row) => {
                    *revision = (*revision).max(row.revision());
                    ViewEvent::Deleted(row.key(), row.revision())
                }
                WatchEvent::Bookmark(bookmark) => {
                    *revision = (*revision).max(bookmark.metadata.resource_version.parse().unwrap_or(0));
                    ViewEvent::Reached(*revision)
                }
                WatchEvent::Error(status) => return Ok(ended(&Error::from_status(*status, None))),
            };
            self.send(event).await?;
        }
    }
}

fn ended(error: &Error) -> End {
    match error {
        Error::Gone(_) => End::Expired,
        error => End::Failed(error.to_string()),
    }
}
