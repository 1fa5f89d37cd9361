//! Watches on etcd.
//!
//! Each follows everything under the cluster's prefix and shows what lies under its own: only so does it see marks. It starts at
//! the revision that its reader has, not after it, and drops what it sees of that one: then etcd's own check refuses it exactly
//! when something after it may be gone. Events of one revision come in one answer, or in parts of one that are put together.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{WatchOptions, WatchStream as EtcdWatch};
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::layout;
use super::members::{ATTEMPT, EVENT_BYTES, Member, Trouble};
use crate::types::{Change, Error, Prefix, Revision, WatchError, WatchEvent, WatchStream};

/// How long a watch may be silent after a mark was written, until it is started anew elsewhere.
const STALLED: Duration = Duration::from_secs(2);
/// How long a new watch may take to begin: etcd looks for watches that have to catch up every 100 ms.
const BEGIN: Duration = Duration::from_millis(300);

type Marking = Pin<Box<dyn Future<Output = Result<Revision, Error>> + Send>>;

/// The changes under `prefix` after `after`.
pub(super) fn stream(shared: &Arc<Shared>, prefix: Prefix, after: Revision) -> WatchStream {
    let watch = Watch {
        shared: Arc::clone(shared),
        prefix,
        position: after,
        ready: VecDeque::new(),
        building: None,
        open: None,
        marking: None,
        marked: false,
        quiet_until: Instant::now(),
    };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(event) => Some((Ok(event), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Watch {
    shared: Arc<Shared>,
    prefix: Prefix,
    /// Everything up to here has been seen.
    position: Revision,
    ready: VecDeque<WatchEvent>,
    /// A revision whose changes may not all have come yet.
    building: Option<(Revision, Vec<Change>)>,
    open: Option<(Member, EtcdWatch)>,
    /// The mark that is being written, if one is.
    marking: Option<Marking>,
    /// A mark was written and has not been seen.
    marked: bool,
    /// Until then, silence means nothing.
    quiet_until: Instant,
}

enum Step {
    Answer(Result<Option<etcd_client::WatchResponse>, etcd_client::Error>),
    Moved,
    Newer,
    Marked(Result<Revision, Error>),
    Silence,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchEvent, WatchError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if self.open.is_none() {
                self.open = Some(self.start().await?);
                self.quiet_until = Instant::now() + BEGIN.max(self.shared.progress_after);
            }
            match self.step().await {
                Step::Answer(Ok(Some(answer))) => {
                    self.marked = false;
                    self.rest(self.shared.progress_after);
                    self.take(answer.0)?;
                }
                Step::Answer(Ok(None)) => return Err(self.broken("etcd ended the watch")),
                // Whatever it was, watching again tells more.
                Step::Answer(Err(error)) => {
                    return Err(self.broken(&Error::from(Trouble::from(error)).to_string()));
                }
                Step::Moved => return Err(lost("another member of etcd is asked now")),
                Step::Newer => self.rest(self.shared.progress_after),
                Step::Marked(Ok(revision)) => {
                    self.marking = None;
                    // Its event may be here sooner than the answer to it.
                    self.marked = revision > self.position;
                    self.rest(if self.marked {
                        STALLED
                    } else {
                        self.shared.progress_after
                    });
                }
                Step::Marked(Err(error)) => {
                    self.marking = None;
                    self.shared.check()?;
                    tracing::debug!(%error, "no mark could be written");
                    self.rest(ATTEMPT);
                }
                Step::Silence if self.marked => return Err(self.broken("the watch is silent although there is news")),
                Step::Silence => {
                    let shared = Arc::clone(&self.shared);
                    self.marking = Some(Box::pin(async move { shared.mark().await }));
                }
            }
        }
    }

    fn rest(&mut self, patience: Duration) {
        self.quiet_until = Instant::now() + patience;
    }

    /// The end of the watch, by the fault of the member.
    fn broken(&self, why: &str) -> WatchError {
        if let Some((member, _)) = &self.open {
            self.shared.members.distrust(member, why);
        }
        lost(why)
    }

    /// Waits for whatever comes first.
    async fn step(&mut self) -> Step {
        let mut newest = self.shared.newest.subscribe();
        let behind = *newest.borrow_and_update() > self.position;
        let (member, open) = self.open.as_mut().expect("opened by the caller");
        let silence = behind && self.marking.is_none();
        let marked = async {
            match &mut self.marking {
                Some(marking) => marking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = open.message() => Step::Answer(answer),
            () = self.shared.members.moved_on(member) => Step::Moved,
            result = marked => Step::Marked(result),
            _ = newest.changed(), if !behind => Step::Newer,
            () = sleep_until(self.quiet_until), if silence => Step::Silence,
        }
    }

    async fn start(&mut self) -> Result<(Member, EtcdWatch), WatchError> {
        self.shared.recognise().await?;
        let compacted = self.shared.layout.offset();
        if self.position < compacted {
            return Err(WatchError::Compacted { compacted });
        }
        let member = self.shared.members.current();
        let root = self.shared.layout.root();
        let options = WatchOptions::new()
            .with_range(layout::end(root))
            .with_start_revision(self.shared.layout.number(self.position).max(1))
            .with_fragment();
        let mut client = member.client.watch_client().max_decoding_message_size(EVENT_BYTES);
        let trouble = match timeout(ATTEMPT, client.watch(root, Some(options))).await {
            Ok(Ok(open)) => return Ok((member, open)),
            Ok(Err(error)) => Error::from(Trouble::from(error)).to_string(),
            Err(_) => format!("no watch within {ATTEMPT:?}"),
        };
        self.shared.members.distrust(&member, &trouble);
        Err(lost(&trouble))
    }

    /// Takes in an answer, or a part of one.
    fn take(&mut self, answer: PbWatchResponse) -> Result<(), WatchError> {
        self.shared.origin(answer.header.as_ref())?;
        if answer.compact_revision > 0 {
            let compacted = self.shared.layout.revision(answer.compact_revision);
            return Err(WatchError::Compacted { compacted });
        }
        if answer.canceled {
            return Err(self.broken(&format!("etcd cancelled the watch: {}", answer.cancel_reason)));
        }
        for event in answer.events {
            self.add(event)?;
        }
        if !answer.fragment {
            self.finish();
        }
        Ok(())
    }

    fn add(&mut self, event: PbEvent) -> Result<(), WatchError> {
        let deleted = event.r#type == etcd_client::EventType::Delete as i32;
        let Some(found) = event.kv else {
            return Err(self.broken("an event without a key"));
        };
        let revision = self.shared.layout.revision(found.mod_revision);
        // Repeated, or from before the start: etcd of 3.4 may do so.
        if revision <= self.position {
            return Ok(());
        }
        match &self.building {
            Some((building, _)) if *building > revision => {
                return Err(self.broken("the watch went back in time"));
            }
            Some((building, _)) if *building == revision => {}
            _ => self.finish(),
        }
        let changes = &mut self.building.get_or_insert_with(|| (revision, Vec::new())).1;
        let layout = &self.shared.layout;
        if deleted {
            changes.extend(layout.key(&found.key).map(|key| Change { key, current: None }));
        } else if !found.key.starts_with(layout.meta().as_bytes()) {
            let entry = layout.entry(found);
            changes.extend(entry.map(|entry| Change {
                key: entry.key.clone(),
                current: Some(entry),
            }));
        }
        Ok(())
    }

    /// The revision that was put together is whole.
    fn finish(&mut self) {
        let Some((revision, mut changes)) = self.building.take() else {
            return;
        };
        self.position = revision;
        self.shared.saw(revision);
        changes.retain(|change| self.prefix.contains(&change.key));
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        if !changes.is_empty() {
            self.ready.push_back(WatchEvent::Batch { revision, changes });
        } else if let Some(WatchEvent::Progress(last)) = self.ready.back_mut() {
            *last = revision;
        } else {
            self.ready.push_back(WatchEvent::Progress(revision));
        }
    }
}

fn lost(why: &str) -> WatchError {
    WatchError::Store(Error::Unavailable(format!("etcd: {why}")))
}
