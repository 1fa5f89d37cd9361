//! Processes that are stopped and continued, as by SIGSTOP and SIGCONT.
//!
//! A gate stands wherever a process meets the world: its loop, its requests and their answers, its calls of the store or the runtime.
//! While it is closed, none of them makes progress, and the world goes on. Timers inside a process may still fire while it is stopped,
//! where a real process would fire them late; nothing that they cause gets out before the gate opens, and then all of it does, late. So
//! what a stopped process does afterwards is at least as bad as what a real one could do.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

/// See the module. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    closed_until: Arc<Mutex<Instant>>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            closed_until: Arc::new(Mutex::new(Instant::now())),
        }
    }
}

impl Gate {
    fn until(&self) -> Instant {
        *self.closed_until.lock().expect("no one panics with the time")
    }

    /// Closes the gate for so long from now on.
    pub fn close(&self, time: Duration) {
        let mut until = self.closed_until.lock().expect("no one panics with the time");
        *until = (*until).max(Instant::now() + time);
    }

    /// Opens the gate, for a new process in the place of a stopped one.
    pub fn open(&self) {
        *self.closed_until.lock().expect("no one panics with the time") = Instant::now();
    }

    /// Whether the process runs.
    pub fn is_open(&self) -> bool {
        self.until() <= Instant::now()
    }

    /// Whether the process has run for that long at least.
    pub fn has_been_open(&self, time: Duration) -> bool {
        self.until() + time <= Instant::now()
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        while !self.is_open() {
            sleep_until(self.until()).await;
        }
    }

    /// The same future, but it makes no progress while the gate is closed.
    pub fn hold<F: Future>(&self, future: F) -> Held<F> {
        Held {
            gate: self.clone(),
            waiting: None,
            inner: Box::pin(future),
        }
    }
}

/// See [`Gate::hold`].
pub struct Held<F> {
    gate: Gate,
    waiting: Option<BoxFuture<'static, ()>>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Held<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        while !self.gate.is_open() {
            let gate = self.gate.clone();
            let waiting = self
                .waiting
                .get_or_insert_with(|| async move { gate.pass().await }.boxed());
            if waiting.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
        }
        self.inner.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_held_future_does_nothing_until_the_gate_opens() {
        let gate = Gate::default();
        let start = Instant::now();
        let held = tokio::spawn(gate.hold(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            Instant::now()
        }));
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.close(Duration::from_secs(9));
        gate.close(Duration::from_secs(3));
        let ended = held.await.expect("it does not panic");
        assert_eq!(ended - start, Duration::from_millis(10_500));
    }
}
