//! What a driver has to look at, and when.
//!
//! A key is in the queue at most once, at the earliest time it was asked for. A key that failed comes back after a delay that
//! doubles each time; until then nothing wakes it. A key whose view was old is woken by what it lacked, and, should that not
//! come, by a delay of its own. Bounded by the number of keys. Time is tokio's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The first delay of a key that failed.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest delay of a key that fails again and again.
pub const BACKOFF_MOST: Duration = Duration::from_secs(10);

/// The first delay of a key whose view was old; longer than the watch takes to bring what it lacked.
pub const OUTDATED_FIRST: Duration = Duration::from_millis(100);

struct State<K> {
    due: BTreeMap<K, (Instant, u64)>,
    order: BTreeSet<(Instant, u64, K)>,
    failures: BTreeMap<K, (u32, Instant)>,
    outdated: BTreeMap<K, u32>,
    sequence: u64,
}

/// Keys that wait to be looked at. For one consumer.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    coalesce: Duration,
}

impl<K: Ord + Clone> Queue<K> {
    /// An empty queue. A key that is woken is due only after `coalesce`, so that a burst of changes is one.
    pub fn new(coalesce: Duration) -> Queue<K> {
        let state = State {
            due: BTreeMap::new(),
            order: BTreeSet::new(),
            failures: BTreeMap::new(),
            outdated: BTreeMap::new(),
            sequence: 0,
        };
        Queue {
            state: Mutex::new(state),
            changed: Notify::new(),
            coalesce,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed about the key.
    pub fn wake(&self, key: K) {
        self.wake_at(key, Instant::now() + self.coalesce);
    }

    /// Look at the key then, or earlier. A key that failed waits for its delay to end.
    pub fn wake_at(&self, key: K, at: Instant) {
        let mut state = self.lock();
        let not_before = state.failures.get(&key).map(|(_, until)| *until);
        let at = not_before.map_or(at, |until| at.max(until));
        if state.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        if let Some((due, sequence)) = state.due.remove(&key) {
            state.order.remove(&(due, sequence, key.clone()));
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.due.insert(key.clone(), (at, sequence));
        state.order.insert((at, sequence, key));
        drop(state);
        self.changed.notify_one();
    }

    /// The key failed: look again after its delay, or after `at_least` if that is longer.
    pub fn failed(&self, key: K, at_least: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.lock();
        let count = state.failures.get(&key).map_or(0, |(count, _)| *count);
        let delay = BACKOFF_FIRST.saturating_mul(1 << count.min(16)).min(BACKOFF_MOST);
        let until = now + delay.max(at_least.unwrap_or_default());
        state.failures.insert(key.clone(), (count + 1, until));
        // What woke it meanwhile waits as well.
        if let Some((due, sequence)) = state.due.remove(&key) {
            state.order.remove(&(due, sequence, key.clone()));
        }
        drop(state);
        self.wake_at(key, until);
    }

    /// The view was old for what was planned: look again when something changes, or after a while.
    pub fn outdated(&self, key: K) {
        let mut state = self.lock();
        state.failures.remove(&key);
        let count = state.outdated.entry(key.clone()).or_default();
        let delay = OUTDATED_FIRST.saturating_mul(1 << (*count).min(16)).min(BACKOFF_MOST);
        *count += 1;
        drop(state);
        self.wake_at(key, Instant::now() + delay);
    }

    /// The key did not fail; its next delays are the first again.
    pub fn succeeded(&self, key: &K) {
        let mut state = self.lock();
        state.failures.remove(key);
        state.outdated.remove(key);
    }

    /// How often the key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).map_or(0, |(count, _)| *count)
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        self.lock().due.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until keys are due and takes them, at most `most`, longest due first.
    pub async fn next(&self, most: usize) -> Vec<K> {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.lock();
                let now = Instant::now();
                let mut taken = Vec::new();
                while taken.len() < most
                    && let Some((at, _, _)) = state.order.first()
                    && *at <= now
                    && let Some((_, _, key)) = state.order.pop_first()
                {
                    state.due.remove(&key);
                    taken.push(key);
                }
                if !taken.is_empty() {
                    return taken;
                }
                state.order.first().map(|(at, _, _)| *at)
            };
            match next {
                None => changed.await,
                Some(at) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_woken_often_is_taken_once() {
        let queue = Queue::new(Duration::ZERO);
        for key in [2, 1, 2, 2, 1] {
            queue.wake(key);
        }
        assert_eq!(
            queue.next(10).await,
            [2, 1],
            "in the order in which they were first woken"
        );
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_and_waits_no_longer_than_the_first_of_it() {
        let start = Instant::now();
        let queue = Queue::new(5 * MS);
        queue.wake(1);
        tokio::time::advance(4 * MS).await;
        queue.wake(1);
        assert_eq!(queue.next(10).await, [1]);
        assert_eq!(start.elapsed(), 5 * MS);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_wish_counts() {
        let start = Instant::now();
        let queue = Queue::new(Duration::ZERO);
        queue.wake_at(1, start + 500 * MS);
        queue.wake_at(1, start + 100 * MS);
        queue.wake_at(1, start + 300 * MS);
        queue.wake_at(2, start + 200 * MS);
        assert_eq!(queue.next(10).await, [1]);
        assert_eq!(start.elapsed(), 100 * MS);
        assert_eq!(queue.next(10).await, [2]);
        assert_eq!(start.elapsed(), 200 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_comes_back_ever_later_and_is_not_woken_before() {
        let queue = Queue::new(Duration::ZERO);
        let mut waited = Vec::new();
        for _ in 0..12 {
            let start = Instant::now();
            queue.failed(1, None);
            queue.wake(1);
            assert_eq!(queue.next(1).await, [1]);
            waited.push(start.elapsed().as_millis());
        }
        assert_eq!(
            waited,
            [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_000, 10_000]
        );
        queue.succeeded(&1);
        assert_eq!(queue.failures(&1), 0);
        let start = Instant::now();
        queue.wake(1);
        assert_eq!(queue.next(1).await, [1]);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_with_an_old_view_is_woken_by_changes_and_comes_back_without() {
        let start = Instant::now();
        let queue = Queue::new(Duration::ZERO);
        queue.outdated(1);
        queue.wake(1);
        assert_eq!(queue.next(1).await, [1]);
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.outdated(1);
        assert_eq!(queue.next(1).await, [1]);
        assert_eq!(start.elapsed(), 2 * OUTDATED_FIRST);
        queue.succeeded(&1);
        queue.outdated(1);
        assert_eq!(queue.next(1).await, [1]);
        assert_eq!(start.elapsed(), 3 * OUTDATED_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_names_a_time_is_heard() {
        let start = Instant::now();
        let queue = Queue::new(Duration::ZERO);
        queue.failed(1, Some(Duration::from_secs(3)));
        assert_eq!(queue.next(1).await, [1]);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_consumer_sees_a_key_at_once() {
        let queue = std::sync::Arc::new(Queue::new(Duration::ZERO));
        queue.wake_at(1, Instant::now() + Duration::from_secs(60));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next(1).await }
        });
        tokio::task::yield_now().await;
        queue.wake(2);
        assert_eq!(waiting.await.expect("task"), [2]);
    }
}
