//! What one process of the agent remembers between plans. It may be lost at any time: it only saves repetition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_runtime::{Container, ContainerId, Error, Rootfs};

use super::Action;
use crate::limits::{RETRY_FIRST, RETRY_MAX};
use crate::spec;

/// A call to the runtime, without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Prepare.
    Create,
    /// Run.
    Start,
    /// Begin to stop.
    Stop,
    /// Remove.
    Remove,
}

/// A call that failed, several times in a row perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whether trying again is useless.
    pub invalid: bool,
    /// The image that is not here, if that is why.
    pub no_image: Option<String>,
    /// How often, in a row.
    pub count: u32,
    /// Since when.
    pub since: Timestamp,
    /// When to try again.
    pub retry_at: Timestamp,
    /// What the runtime said last.
    pub message: String,
}

/// What one process remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    stopped: BTreeMap<ContainerId, Timestamp>,
    failures: BTreeMap<(ContainerId, Verb), Failure>,
    attempts: BTreeMap<String, u32>,
    fetched: BTreeSet<ContainerId>,
}

fn absent_image(action: &Action, error: &Error) -> Option<String> {
    match (action, error) {
        (Action::Create { spec, .. }, Error::ImageNotFound(_)) => match &spec.rootfs {
            Rootfs::Image { name, .. } => Some(name.clone()),
            Rootfs::Host | Rootfs::Directory(_) => None,
        },
        _ => None,
    }
}

/// A time later by this much; the end of time when there is none.
pub(crate) fn after(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| time.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}

impl Memory {
    /// When the container was told to stop.
    pub fn stopped(&self, id: &ContainerId) -> Option<Timestamp> {
        self.stopped.get(id).copied()
    }

    /// How this call failed, if it did the last time.
    pub fn failure(&self, id: &ContainerId, verb: Verb) -> Option<&Failure> {
        self.failures.get(&(id.clone(), verb))
    }

    /// The highest attempt of the task that was ever seen here.
    pub fn attempt(&self, uid: &str) -> u32 {
        self.attempts.get(uid).copied().unwrap_or(0)
    }

    /// Whether the registry was asked for the image of this container before it is made.
    pub fn is_fetched(&self, id: &ContainerId) -> bool {
        self.fetched.contains(id)
    }

    /// Takes in the answer of the runtime to an action.
    pub fn acted(&mut self, action: &Action, answer: &Result<(), Error>, now: Timestamp) {
        let key = (action.id().clone(), action.verb());
        match answer {
            Ok(()) => {
                self.failures.remove(&key);
                if let Action::Create { id, .. } = action {
                    self.fetched.remove(id);
                }
                if let Action::Stop(id, _) = action {
                    self.stopped.insert(id.clone(), now);
                }
            }
            Err(error) => {
                let before = self.failures.get(&key);
                let count = before.map_or(1, |before| before.count.saturating_add(1));
                let wait = RETRY_FIRST
                    .saturating_mul(1 << count.saturating_sub(1).min(16))
                    .min(RETRY_MAX);
                let no_image = absent_image(action, error);
                if no_image.is_some() {
                    // Somebody has deleted it since.
                    self.fetched.remove(action.id());
                }
                let failure = Failure {
                    invalid: matches!(error, Error::Invalid(_) | Error::ImageNotFound(_)),
                    no_image,
                    count,
                    since: before.map_or(now, |before| before.since),
                    retry_at: after(now, wait),
                    message: error.to_string(),
                };
                self.failures.insert(key, failure);
            }
        }
    }

    /// An image is here now, and was asked for on behalf of these containers: what failed for want of it may be tried again.
    pub fn image_is_here(&mut self, image: &str, ids: BTreeSet<ContainerId>) {
        self.fetched.extend(ids);
        self.failures
            .retain(|_, failure| failure.no_image.as_deref() != Some(image));
    }

    /// Takes in which containers are here, and forgets what is about tasks that neither exist nor have containers.
    pub fn listed<'a>(&mut self, containers: &'a [Container], tasks: impl IntoIterator<Item = &'a str>) {
        let mut uids: BTreeSet<&str> = tasks.into_iter().collect();
        for (uid, attempt) in containers.iter().filter_map(spec::owner) {
            uids.insert(uid);
            let seen = self.attempts.entry(uid.to_owned()).or_default();
            *seen = (*seen).max(attempt);
        }
        self.attempts.retain(|uid, _| uids.contains(uid.as_str()));
        // An id is a uid, a dash and a number.
        let alive = |id: &ContainerId| id.as_str().rsplit_once('-').is_some_and(|(uid, _)| uids.contains(uid));
        self.stopped.retain(|id, _| alive(id));
        self.failures.retain(|(id, _), _| alive(id));
        self.fetched.retain(alive);
    }
}
