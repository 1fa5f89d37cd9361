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
            let step = if self.revision.is_none() {
                self.list().await.map(Some)
            } else {
                self.event().await
            };
            match step {
                Ok(seen) => {
                    self.away_since = None;
                    if let Some(seen) = seen {
                        return Ok(seen);
                    }
                }
                Err(error) if error.is_expired() => {
                    self.revision = None;
                    self.lines = None;
                }
                Err(error) if error.is_passing() => {
                    self.lines = None;
                    let since = *self.away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
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
