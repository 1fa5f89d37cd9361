//! Images on their way: who wants which, how far each is, and when one that failed is tried again.
//!
//! The plan says which images are wanted ([`crate::plan::AgentPlan::images`]); this begins, ends and remembers. It promises: one image comes
//! once, however many tasks want it; not more than [`PULL_JOBS`] come at a time; what nobody wants any more is given up and leaves nothing.
//! It may be lost at any time: the next process fetches the rest.
//!
//! Tested by tables, with a puller that does as it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use muster_runtime::ContainerId;
use muster_runtime::registry::{Keys, Order, Progress, PullError, Puller, Seen};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::limits::{PULL_DEADLINE, PULL_JOBS, PULL_RETRY_FIRST, PULL_RETRY_MAX, PULL_TOLD_EVERY};
use crate::plan::after;
use crate::volumes::Content;

/// What tells one pull from another: tasks that agree in it wait for the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PullKey {
    /// The image.
    pub image: String,
    /// Whose credentials it is fetched with: a namespace and the names of Secrets in it, or nothing.
    pub whose: String,
}

impl PullKey {
    /// What is fetched, without credentials.
    fn order(&self) -> Order {
        Order {
            whose: self.whose.clone(),
            ..Order::of(&self.image)
        }
    }
}

/// What is wanted of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The containers that wait for it.
    pub ids: BTreeSet<ContainerId>,
    /// The credentials, if it may begin now.
    pub keys: Option<Vec<Content>>,
    /// Whether the registry is asked even if the image is here.
    pub anew: bool,
}

impl Want {
    /// What both want.
    pub fn and(&mut self, other: Want) {
        self.ids.extend(other.ids);
        self.keys = self.keys.take().or(other.keys);
        self.anew |= other.anew;
    }
}

/// What is known of an image that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pull {
    /// It comes, and was this far when it was last told.
    Comes(Seen),
    /// It did not come.
    Failed(FailedPull),
}

/// A pull that failed, several times in a row perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedPull {
    /// Why, the last time.
    pub error: PullError,
    /// How often, in a row.
    pub count: u32,
    /// Since when.
    pub since: Timestamp,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// What a pull that goes on is held by.
#[derive(Debug)]
struct Job {
    progress: Arc<Progress>,
    stop: CancellationToken,
    told_at: Timestamp,
    /// How it went before.
    before: Option<FailedPull>,
    /// The containers that waited for it when it was begun.
    ids: BTreeSet<ContainerId>,
}

/// All images that are wanted.
#[derive(Debug)]
pub struct Pulls {
    known: BTreeMap<PullKey, Pull>,
    jobs: BTreeMap<PullKey, Job>,
    slots: Arc<Semaphore>,
}

impl Default for Pulls {
    fn default() -> Pulls {
        Pulls {
            known: BTreeMap::new(),
            jobs: BTreeMap::new(),
            slots: Arc::new(Semaphore::new(PULL_JOBS)),
        }
    }
}

/// What became of a pull; `None`: it was given up.
pub type Pulled = Option<Result<(), PullError>>;

impl Pulls {
    /// What is known of the images that are wanted.
    pub fn known(&self) -> &BTreeMap<PullKey, Pull> {
        &self.known
    }

    /// Looks how far everything is. Rarely enough that statuses do not change all the time.
    pub fn look(&mut self, now: Timestamp) {
        for (image, job) in &mut self.jobs {
            if after(job.told_at, PULL_TOLD_EVERY) <= now {
                job.told_at = now;
                self.known.insert(image.clone(), Pull::Comes(job.progress.seen()));
            }
        }
    }

    /// Takes in which images are wanted. What has to be done is returned, each with its key; the result is to be given to
    /// [`ended`](Pulls::ended).
    pub fn want(
        &mut self,
        wanted: &BTreeMap<PullKey, Want>,
        puller: &Arc<dyn Puller>,
        now: Timestamp,
    ) -> Vec<(PullKey, impl Future<Output = Pulled> + Send + 'static + use<>)> {
        for (key, job) in &self.jobs {
            if !wanted.contains_key(key) {
                job.stop.cancel();
            }
        }
        // What failed and nobody waits for any more leaves nothing either. At once: the next to want it begins anew.
        for key in self.known.keys().filter(|key| !wanted.contains_key(*key)) {
            if !self.jobs.contains_key(key) {
                puller.forget(&key.order());
            }
        }
        self.known.retain(|key, _| wanted.contains_key(key));
        let due = |key: &PullKey| match self.known.get(key) {
            None => true,
            Some(Pull::Comes(_)) => false,
            Some(Pull::Failed(failed)) => !failed.error.is_final() && failed.retry_at <= now,
        };
        // One that is being given up is begun anew when that is done.
        let begin: Vec<(PullKey, BTreeSet<ContainerId>, Order)> = wanted
            .iter()
            .filter(|(key, _)| due(key) && !self.jobs.contains_key(*key))
            .filter_map(|(key, want)| {
                let keys = want.keys.as_ref()?;
                let order = Order {
                    keys: keys.iter().map(|keys| Keys::from(keys.bytes())).collect(),
                    anew: want.anew,
                    ..key.order()
                };
                Some((key.clone(), want.ids.clone(), order))
            })
            .collect();
        begin
            .into_iter()
            .map(|(key, ids, order)| {
                let before = match self.known.insert(key.clone(), Pull::Comes(Seen::default())) {
                    Some(Pull::Failed(failed)) => Some(failed),
                    _ => None,
                };
                let (progress, stop) = (Arc::new(Progress::default()), CancellationToken::new());
                let shared = (Arc::clone(&progress), stop.clone());
                let work = work(Arc::clone(puller), order, shared, Arc::clone(&self.slots));
                let job = Job {
                    progress,
                    stop,
                    told_at: now,
                    before,
                    ids,
                };
                self.jobs.insert(key.clone(), job);
                (key, work)
            })
            .collect()
    }

    /// Takes in what became of a pull. When the image is here now: the containers that waited for it when the pull was begun.
    pub fn ended(&mut self, key: &PullKey, pulled: Pulled, now: Timestamp) -> Option<BTreeSet<ContainerId>> {
        let (before, ids) = self
            .jobs
            .remove(key)
            .map(|job| (job.before, job.ids))
            .unwrap_or_default();
        let error = match pulled {
            None => {
                self.known.remove(key);
                return None;
            }
            Some(Ok(())) => {
                self.known.remove(key);
                return Some(ids);
            }
            Some(Err(error)) => error,
        };
        let count = before.as_ref().map_or(1, |before| before.count.saturating_add(1));
        let doubled = PULL_RETRY_FIRST
            .saturating_mul(1 << count.saturating_sub(1).min(16))
            .min(PULL_RETRY_MAX);
        let wait = match &error {
            PullError::Later { after: Some(after), .. } => doubled.max(*after),
            _ => doubled,
        };
        let failed = FailedPull {
            error,
            count,
            since: before.map_or(now, |before| before.since),
            retry_at: after(now, wait),
        };
        // Nobody may want it any more.
        if let Some(known) = self.known.get_mut(key) {
            *known = Pull::Failed(failed);
        }
        None
    }
}

/// The same with what is done about it. Dropping it leaves what has come for the next process.
pub(crate) struct Pulling {
    puller: Option<Arc<dyn Puller>>,
    pulls: Pulls,
    jobs: JoinSet<(PullKey, Pulled)>,
}

impl Pulling {
    pub(crate) fn new(puller: Option<Arc<dyn Puller>>) -> Pulling {
        Pulling {
            puller,
            pulls: Pulls::default(),
            jobs: JoinSet::new(),
        }
    }

    /// As [`Pulls::look`] and [`Pulls::known`]; `None`: there is nobody who fetches images.
    pub(crate) fn look(&mut self, now: Timestamp) -> Option<&BTreeMap<PullKey, Pull>> {
        self.pulls.look(now);
        self.puller.as_ref().map(|_| self.pulls.known())
    }

    /// Takes in which images are wanted, and does what is to be done.
    pub(crate) fn want(&mut self, wanted: &BTreeMap<PullKey, Want>, now: Timestamp) {
        let Some(puller) = &self.puller else { return };
        for (key, work) in self.pulls.want(wanted, puller, now) {
            self.jobs.spawn(async move { (key, work.await) });
        }
    }

    /// Waits for the end of a pull; for ever when there is none. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<(PullKey, Pulled), JoinError> {
        match self.jobs.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// As [`Pulls::ended`].
    pub(crate) fn ended(&mut self, key: &PullKey, pulled: Pulled, now: Timestamp) -> Option<BTreeSet<ContainerId>> {
        self.pulls.ended(key, pulled, now)
    }
}

async fn work(
    puller: Arc<dyn Puller>,
    order: Order,
    (progress, stop): (Arc<Progress>, CancellationToken),
    slots: Arc<Semaphore>,
) -> Pulled {
    let image = order.image.as_str();
    let pulling = async {
        let _slot = slots.acquire().await.expect("the semaphore is never closed");
        tracing::info!(image, "pulled");
        let late = PullError::Later {
            message: format!("not here after {} minutes", PULL_DEADLINE.as_secs() / 60),
            after: None,
        };
        timeout(PULL_DEADLINE, puller.pull(&order, &progress))
            .await
            .unwrap_or(Err(late))
    };
    let pulled = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        pulled = pulling => Some(pulled),
    };
    match &pulled {
        None => {
            tracing::info!(image, "nobody wants it any more");
            puller.forget(&order);
        }
        Some(Ok(())) => tracing::info!(image, "is here"),
        Some(Err(error)) => tracing::warn!(image, %error, "did not come"),
    }
    pulled
}

/// How far a pull is, in words.
pub fn words(seen: Seen) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    match seen {
        Seen { unpacking: true, .. } => "unpacking it".to_owned(),
        Seen { total: 0, .. } => "asking the registry".to_owned(),
        Seen { fetched, total, .. } => format!("{:.1} of {:.1} MiB are here", mib(fetched), mib(total)),
    }
}

/// When words about how far a pull is are old.
pub const OLD: Duration = PULL_TOLD_EVERY;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use futures::FutureExt as _;

    use super::*;

    /// Hangs, or does what is said next.
    struct Told {
        says: Mutex<Vec<Result<(), PullError>>>,
        forgotten: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Puller for Told {
        async fn pull(&self, _: &Order, _: &Progress) -> Result<(), PullError> {
            let next = self.says.lock().expect("not poisoned").pop();
            match next {
                Some(says) => says,
                None => std::future::pending().await,
            }
        }

        fn forget(&self, order: &Order) {
            self.forgotten.lock().expect("not poisoned").push(order.image.clone());
        }
    }

    /// The answers are taken from the end.
    fn puller(says: &[Result<(), PullError>]) -> (Arc<Told>, Arc<dyn Puller>) {
        let told = Arc::new(Told {
            says: Mutex::new(says.to_vec()),
            forgotten: Mutex::default(),
        });
        (Arc::clone(&told), told)
    }

    fn key(image: &str) -> PullKey {
        PullKey {
            image: image.to_owned(),
            whose: String::new(),
        }
    }

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).expect("a plain name")
    }

    fn want(ids: &[&str]) -> Want {
        Want {
            ids: ids.iter().map(|name| id(name)).collect(),
            keys: Some(Vec::new()),
            anew: false,
        }
    }

    fn set(images: &[&str]) -> BTreeMap<PullKey, Want> {
        images.iter().map(|image| (key(image), want(&["u-1"]))).collect()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    fn later(after: Option<Duration>) -> PullError {
        let message = "busy".to_owned();
        PullError::Later { message, after }
    }

    fn failed(pulls: &Pulls) -> &FailedPull {
        match pulls.known().get(&key("r.io/a:1")) {
            Some(Pull::Failed(failed)) => failed,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_image_comes_once_however_many_want_it_and_is_forgotten_when_it_is_here() {
        let (_, puller) = puller(&[Ok(())]);
        let mut pulls = Pulls::default();
        let wanted = set(&["r.io/a:1"]);
        let mut begun = pulls.want(&wanted, &puller, at(0));
        assert_eq!(pulls.known()[&key("r.io/a:1")], Pull::Comes(Seen::default()));
        assert!(pulls.want(&wanted, &puller, at(1)).is_empty(), "it is on its way");
        let (image, work) = begun.pop().expect("one");
        assert_eq!(pulls.ended(&image, work.await, at(2)), Some([id("u-1")].into()));
        assert!(pulls.known().is_empty());
    }

    #[tokio::test]
    async fn what_may_go_better_later_is_tried_again_and_longer_apart() {
        let (_, puller) = puller(&[
            Err(later(None)),
            Err(later(Some(Duration::from_secs(100)))),
            Err(later(None)),
        ]);
        let (mut pulls, wanted) = (Pulls::default(), set(&["r.io/a:1"]));
        let first = i64::try_from(PULL_RETRY_FIRST.as_secs()).expect("short");
        for (now, wait) in [(0, first), (10, 100), (200, 4 * first)] {
            let (image, work) = pulls.want(&wanted, &puller, at(now)).pop().expect("it is due");
            assert_eq!(pulls.ended(&image, work.await, at(now)), None);
            assert_eq!(failed(&pulls).retry_at, at(now + wait));
            assert_eq!(failed(&pulls).since, at(0));
            assert!(pulls.want(&wanted, &puller, at(now + wait - 1)).is_empty(), "not yet");
        }
        assert_eq!(failed(&pulls).count, 3);
    }

    #[tokio::test]
    async fn what_is_final_is_not_tried_again_until_nobody_wants_it_any_more() {
        let no = PullError::NotFound("404".to_owned());
        let (_, puller) = puller(&[Ok(()), Err(no)]);
        let (mut pulls, wanted) = (Pulls::default(), set(&["r.io/a:1"]));
        let (image, work) = pulls.want(&wanted, &puller, at(0)).pop().expect("one");
        pulls.ended(&image, work.await, at(0));
        assert!(pulls.want(&wanted, &puller, at(1_000_000)).is_empty());
        assert!(pulls.want(&set(&[]), &puller, at(1_000_001)).is_empty());
        assert_eq!(
            pulls.want(&wanted, &puller, at(1_000_002)).len(),
            1,
            "another task asks"
        );
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_is_given_up_and_leaves_nothing() {
        let (told, puller) = puller(&[]);
        let (mut pulls, wanted) = (Pulls::default(), set(&["r.io/a:1"]));
        let (image, work) = pulls.want(&wanted, &puller, at(0)).pop().expect("one");
        let mut work = Box::pin(work);
        assert!(work.as_mut().now_or_never().is_none(), "it hangs");
        assert!(pulls.want(&set(&[]), &puller, at(1)).is_empty());
        assert!(pulls.want(&wanted, &puller, at(1)).is_empty(), "first it is given up");
        let pulled = work.await;
        assert_eq!(pulled, None);
        assert_eq!(*told.forgotten.lock().expect("not poisoned"), ["r.io/a:1"]);
        assert_eq!(pulls.ended(&image, pulled, at(2)), None);
        assert_eq!(pulls.want(&wanted, &puller, at(3)).len(), 1);
    }

    #[tokio::test]
    async fn what_failed_leaves_nothing_either_when_nobody_wants_it_any_more() {
        let (told, puller) = puller(&[Err(later(None))]);
        let (mut pulls, wanted) = (Pulls::default(), set(&["r.io/a:1"]));
        let (key, work) = pulls.want(&wanted, &puller, at(0)).pop().expect("one");
        pulls.ended(&key, work.await, at(0));
        let forgotten = || told.forgotten.lock().expect("not poisoned").clone();
        assert!(
            pulls.want(&wanted, &puller, at(1)).is_empty() && forgotten().is_empty(),
            "it is gone on with"
        );
        assert!(pulls.want(&set(&[]), &puller, at(1)).is_empty());
        assert_eq!(forgotten(), ["r.io/a:1"]);
    }

    #[tokio::test]
    async fn who_comes_while_an_image_is_on_its_way_was_not_asked_for() {
        let (_, puller) = puller(&[Ok(()), Ok(())]);
        let mut pulls = Pulls::default();
        let (key, work) = pulls.want(&set(&["r.io/a:1"]), &puller, at(0)).pop().expect("one");
        let both = BTreeMap::from([(key.clone(), want(&["u-1", "v-1"]))]);
        assert!(pulls.want(&both, &puller, at(1)).is_empty(), "it is on its way");
        assert_eq!(pulls.ended(&key, work.await, at(2)), Some([id("u-1")].into()));
        let second = BTreeMap::from([(key.clone(), want(&["v-1"]))]);
        let (_, work) = pulls.want(&second, &puller, at(3)).pop().expect("it is asked for anew");
        assert_eq!(pulls.ended(&key, work.await, at(4)), Some([id("v-1")].into()));
    }

    #[tokio::test]
    async fn a_pull_begins_when_its_credentials_are_known_and_each_set_has_its_own() {
        let (_, puller) = puller(&[]);
        let mut pulls = Pulls::default();
        let mine = PullKey {
            whose: "ml/registry".to_owned(),
            ..key("r.io/a:1")
        };
        let unread = Want {
            keys: None,
            ..want(&["u-1"])
        };
        assert!(
            pulls
                .want(&[(mine.clone(), unread.clone())].into(), &puller, at(0))
                .is_empty()
        );
        let mut read = unread;
        let keys = vec![Content::from(b"s3cret".to_vec())];
        read.and(Want {
            keys: Some(keys),
            ..Want::default()
        });
        assert!(!format!("{read:?}").contains("s3cret"), "nothing of them is shown");
        let wanted = BTreeMap::from([(mine, read), (key("r.io/a:1"), want(&["v-1"]))]);
        assert_eq!(pulls.want(&wanted, &puller, at(1)).len(), 2);
    }

    #[tokio::test]
    async fn only_so_many_come_at_a_time() {
        let (told, puller) = puller(&[]);
        let names: Vec<String> = (0..=PULL_JOBS).map(|n| format!("r.io/a:{n}")).collect();
        let wanted = set(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut pulls = Pulls::default();
        let mut works: Vec<_> = pulls
            .want(&wanted, &puller, at(0))
            .into_iter()
            .map(|(_, work)| Box::pin(work))
            .collect();
        for work in &mut works {
            assert!(work.as_mut().now_or_never().is_none());
        }
        let more = std::iter::repeat_n(Ok(()), PULL_JOBS + 1);
        told.says.lock().expect("not poisoned").extend(more);
        // The last one waits for its turn, and takes that of one that is given up.
        assert!(works[PULL_JOBS].as_mut().now_or_never().is_none());
        drop(works.remove(0));
        assert_eq!(works[PULL_JOBS - 1].as_mut().now_or_never(), Some(Some(Ok(()))));
    }

    #[test]
    fn words_say_how_far_it_is() {
        let seen = |fetched, total, unpacking| {
            words(Seen {
                fetched,
                total,
                unpacking,
            })
        };
        assert_eq!(seen(0, 0, false), "asking the registry");
        assert_eq!(seen(3 << 19, 4 << 20, false), "1.5 of 4.0 MiB are here");
        assert_eq!(seen(4 << 20, 4 << 20, true), "unpacking it");
    }
}
