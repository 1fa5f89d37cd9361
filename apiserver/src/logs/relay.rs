//! From the lines of agents to the text of an answer, for as long as it takes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use muster_api::v1::Task;

use super::{LogError, LogLine, Target, Wanted};
use crate::state::State;

/// Lines that go out together when they are there already; about 64 KB of ordinary ones.
const LINES_TOGETHER: usize = 512;
/// How long until a broken connection is made anew; twice that after each failure, up to the most.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(5);

type Lines = BoxStream<'static, Vec<Result<LogLine, LogError>>>;

/// See the module.
pub(super) struct Relay {
    state: Arc<State>,
    namespace: String,
    name: String,
    uid: String,
    wanted: Wanted,
    target: Target,
    /// Behind the last line that went out.
    after: Option<String>,
    lines: Option<Lines>,
    failures: u32,
    broken: Option<LogError>,
}

impl Relay {
    pub(super) fn new(
        state: Arc<State>,
        task: &Task,
        wanted: Wanted,
        target: Target,
        lines: BoxStream<'static, Result<LogLine, LogError>>,
    ) -> Relay {
        let metadata = &task.metadata;
        Relay {
            state,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            wanted,
            target,
            after: None,
            lines: Some(together(lines)),
            failures: 0,
            broken: None,
        }
    }

    /// The text. Ends with an error, which cuts the connection off, when it could not be completed.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let stopping = self.state.stopping().clone();
        let text = stream::unfold(self, |mut relay| async move {
            let next = relay.next().await?;
            Some((next, relay))
        });
        text.take_until(stopping.cancelled_owned())
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(error) = self.broken.take() {
                return Some(Err(io::Error::other(error.to_string())));
            }
            let Some(lines) = &mut self.lines else {
                self.reopen().await;
                continue;
            };
            match lines.next().await {
                Some(batch) => {
                    let text = self.text(batch);
                    if !text.is_empty() {
                        return Some(Ok(text.into()));
                    }
                }
                None if self.wanted.follow && self.next_attempt().await => self.lines = None,
                None => return None,
            }
        }
    }

    fn text(&mut self, batch: Vec<Result<LogLine, LogError>>) -> String {
        let mut text = String::new();
        for line in batch {
            match line {
                Ok(line) => {
                    self.failures = 0;
                    if !line.position.is_empty() {
                        self.after = Some(line.position);
                    }
                    if self.wanted.timestamps {
                        text.push_str(&stamp(line.time_ms));
                        text.push(' ');
                    }
                    text.push_str(&line.text);
                }
                Err(error) => {
                    tracing::debug!(agent = self.target.agent, %error, "the logs of a task break off");
                    let over = !self.wanted.follow || !matches!(error, LogError::Unreachable(_));
                    if over {
                        self.broken = Some(error);
                    }
                    self.lines = None;
                    break;
                }
            }
        }
        text
    }

    /// Asks again, behind the last line that went out.
    async fn reopen(&mut self) {
        if self.failures > 0 {
            tokio::time::sleep((RETRY * 2u32.saturating_pow(self.failures - 1)).min(RETRY_MOST)).await;
        }
        self.failures = self.failures.saturating_add(1).min(16);
        // A restarted agent may listen elsewhere.
        if let Ok(address) = super::address(&self.state, &self.target.agent, "the logs") {
            self.target.address = address;
        }
        let mut query = self.wanted.query();
        query.after.clone_from(&self.after);
        match self
            .state
            .logs
            .open(self.target.node(), &self.target.container, &query)
            .await
        {
            Ok(lines) => self.lines = Some(together(lines)),
            Err(LogError::Unreachable(_)) => {}
            Err(error) => self.broken = Some(error),
        }
    }

    /// Waits for the attempt after this one and turns to it; no more when the task is over or gone.
    async fn next_attempt(&mut self) -> bool {
        // Who asked for one attempt gets that one.
        if self.wanted.attempt.is_some() || self.wanted.previous {
            return false;
        }
        let Some(kind) = self.state.hub.find("tasks.muster.dev") else {
            return false;
        };
        let mut changes = self.state.hub.touched(kind);
        loop {
            changes.borrow_and_update();
            let Ok(Some(task)) = super::task(&self.state, &self.namespace, &self.name) else {
                return false;
            };
            if task.metadata.uid.as_deref() != Some(self.uid.as_str()) {
                return false;
            }
            let status = task.status.unwrap_or_default();
            let next = status
                .attempts
                .iter()
                .map(|attempt| attempt.number)
                .find(|number| *number > self.target.number);
            if let Some(number) = next {
                self.target.number = number;
                self.target.container = format!("{}-{number}", self.uid);
                self.after = None;
                self.failures = 0;
                // What was asked about time and number of lines is served by the first attempt.
                self.wanted.tail = None;
                self.wanted.since_ms = None;
                return true;
            }
            if status.phase.is_terminal() || changes.changed().await.is_err() {
                return false;
            }
        }
    }
}

fn together(lines: BoxStream<'static, Result<LogLine, LogError>>) -> Lines {
    lines.ready_chunks(LINES_TOGETHER).boxed()
}

fn stamp(time_ms: i64) -> String {
    let time = Timestamp::from_millisecond(time_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
