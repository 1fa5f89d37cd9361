//! Watching one object: each state it is in, from now on, whatever happens to connections.

use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio::time::Instant;

use crate::discovery::Resource;
use crate::rest::{CallError, JSON, Lines, Rest, with_query};

/// How long the server may be away before an observer gives up: longer than a restart of it takes.
pub const AWAY_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// The object as it is, or that it is not.
pub type Seen = Option<Value>;

/// What one look has shown.
#[derive(Debug)]
pub enum Look {
    /// A state.
    Seen(Seen),
    /// That nothing has changed.
    Same,
    /// That the server is away; a further look, after a pause, may do better.
    Away(CallError),
}

/// Watches one object.
pub struct Observer {
    rest: Rest,
    path: String,
    selector: String,
    revision: Option<String>,
    lines: Option<Lines>,
    away_since: Option<Instant>,
}

impl Observer {
    /// Watches an object that may or may not be there.
    pub fn new(rest: &Rest, resource: &Resource, namespace: &str, name: &str) -> Observer {
        Observer {
            rest: rest.clone(),
            path: resource.path(Some(namespace)),
            selector: format!("metadata.name={name}"),
            revision: None,
            lines: None,
            away_since: None,
        }
    }

    /// The next state; the first call says what is now.
    pub async fn next(&mut self) -> Result<Seen, CallError> {
        loop {
            match self.look().await? {
                Look::Seen(seen) => {
                    self.away_since = None;
                    return Ok(seen);
                }
                Look::Same => self.away_since = None,
                Look::Away(error) => {
                    let since = *self.away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Looks once, and waits for as long as nothing happens. For whoever wants to know when the server is away, and gives up by himself.
    pub async fn look(&mut self) -> Result<Look, CallError> {
        let step = if self.revision.is_none() {
            self.list().await.map(Some)
        } else {
            self.event().await
        };
        match step {
            Ok(seen) => Ok(seen.map_or(Look::Same, Look::Seen)),
            Err(error) if error.is_expired() => {
                self.anew();
                Ok(Look::Same)
            }
            Err(error) if error.is_passing() => {
                self.lines = None;
                Ok(Look::Away(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the next look say what is, and not only what has changed.
    pub fn anew(&mut self) {
        self.revision = None;
        self.lines = None;
    }

    async fn list(&mut self) -> Result<Seen, CallError> {
        let mut list = self
            .rest
            .get(&with_query(&self.path, &[("fieldSelector", &self.selector)]))
            .await?;
        self.revision = Some(list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned());
        let first = list["items"]
            .as_array_mut()
            .and_then(|items| if items.is_empty() { None } else { Some(items.remove(0)) });
        Ok(first)
    }

    /// The next event; `None` for what changes nothing.
    async fn event(&mut self) -> Result<Option<Seen>, CallError> {
        if self.lines.is_none() {
            let revision = self.revision.as_deref().unwrap_or("0");
            let parameters = [
                ("fieldSelector", self.selector.as_str()),
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("resourceVersion", revision),
            ];
            self.lines = Some(self.rest.lines(&with_query(&self.path, &parameters), JSON).await?);
        }
        let Some(line) = self.lines.as_mut().expect("it was set above").next().await else {
            self.lines = None;
            // A server that ends watches at once must not be called in a tight loop.
            tokio::time::sleep(PAUSE).await;
            return Ok(None);
        };
        let mut event: Value = serde_json::from_str(&line?).map_err(|error| CallError::Garbled(error.to_string()))?;
        let object = event["object"].take();
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            let status = serde_json::from_value(object).map_err(|error| CallError::Garbled(error.to_string()))?;
            return Err(CallError::Status(Box::new(status)));
        }
        if let Some(revision) = object["metadata"]["resourceVersion"].as_str() {
            self.revision = Some(revision.to_owned());
        }
        Ok(match kind {
            "ADDED" | "MODIFIED" => Some(Some(object)),
            "DELETED" => Some(None),
            _ => None,
        })
    }
}
