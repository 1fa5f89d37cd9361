//! Somebody who watches and lists, and compares every claim with history.
//!
//! A client of the API like any other, through the same bad network: whenever the ordered watch says “this is everything up to revision
//! R”, what it has shown until then must be what the store held at R, object by object and version by version. The same for lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams};
use muster_api::v1::Task;
use muster_api::wire::{ChangeKind, WatchChange, WatchLine};
use muster_client::{Client, Error};
use muster_store::Revision;

use crate::recorder::Recorder;

/// What is watched, and where it is in the store.
const KINDS: [(&str, &str); 6] = [
    ("tasks.muster.dev", "objects/muster.dev/tasks/"),
    ("offers.muster.dev", "objects/muster.dev/offers/"),
    ("agents.muster.dev", "objects/muster.dev/agents/"),
    ("frameworks.muster.dev", "objects/muster.dev/frameworks/"),
    ("quotas.muster.dev", "objects/muster.dev/quotas/"),
    ("leases.coordination.k8s.io", "objects/coordination.k8s.io/leases/"),
];

/// A list is compared after so many lines of the watch.
const LIST_EVERY: u64 = 16;

/// The versions of objects, by their keys.
type Versions = BTreeMap<String, Revision>;

struct Observer {
    client: Client,
    recorder: Arc<Recorder>,
    versions: Versions,
    revision: Revision,
    lines: u64,
}

/// Watches for ever.
pub async fn observe(client: Client, recorder: Arc<Recorder>) {
    let mut observer = Observer {
        client,
        recorder,
        versions: Versions::new(),
        revision: 0,
        lines: 0,
    };
    let mut from = None;
    loop {
        from = match observer.follow(from).await {
            Err(Error::Gone(_)) => None,
            Ok(()) | Err(_) => Some(observer.revision).filter(|revision| *revision > 0),
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Observer {
    async fn follow(&mut self, from: Option<Revision>) -> Result<(), Error> {
        let resources = KINDS.map(|(resource, _)| resource);
        let stream = self.client.ordered_watch(&resources, from).await?;
        let mut stream = std::pin::pin!(stream);
        let mut incoming = Versions::new();
        while let Some(line) = stream.next().await {
            self.take(line?, &mut incoming);
            self.lines += 1;
            if self.lines.is_multiple_of(LIST_EVERY) {
                self.list().await;
            }
        }
        Ok(())
    }

    fn take(&mut self, line: WatchLine, incoming: &mut Versions) {
        match line {
            WatchLine::Snapshot {
                revision,
                changes,
                more,
            } => {
                changes.iter().for_each(|change| apply(incoming, change));
                if !more {
                    self.versions = std::mem::take(incoming);
                    self.compare(revision, "a snapshot");
                }
            }
            // A server that is behind may repeat what another one has shown.
            WatchLine::Batch { revision, .. } | WatchLine::Progress { revision } if revision < self.revision => {}
            WatchLine::Batch { revision, changes } => {
                changes.iter().for_each(|change| apply(&mut self.versions, change));
                self.compare(revision, "a batch");
            }
            WatchLine::Progress { revision } => self.compare(revision, "progress"),
            WatchLine::Error { .. } => {}
        }
    }

    fn compare(&mut self, revision: Revision, what: &str) {
        self.revision = revision;
        self.recorder.listen();
        let mut checker = self.recorder.checker();
        if revision > checker.revision() {
            return checker.violated(format!(
                "a watch claims {what} of revision {revision}, which is yet to come"
            ));
        }
        for (_, prefix) in KINDS {
            let shown = self
                .versions
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix));
            let shown: BTreeMap<&str, Revision> = shown.map(|(key, at)| (key.as_str(), *at)).collect();
            let history = checker.at(prefix, revision);
            if shown != history {
                let difference = difference(&shown, &history);
                return checker.violated(format!("{what} of a watch at revision {revision} shows {difference}"));
            }
        }
    }

    /// A list says what was there at its revision.
    async fn list(&mut self) {
        let api: Api<Task> = Api::namespaced(self.client.kube(), "default");
        let Ok(listed) = api.list(&ListParams::default()).await else {
            return;
        };
        let revision = listed
            .metadata
            .resource_version
            .as_deref()
            .and_then(|text| text.parse().ok());
        let (Some(revision), prefix) = (revision, "objects/muster.dev/tasks/default/") else {
            return;
        };
        let shown = listed.items.iter().filter_map(|task| {
            let at = task.metadata.resource_version.as_deref()?.parse().ok()?;
            Some((format!("{prefix}{}", task.name()), at))
        });
        let shown: Versions = shown.collect();
        let shown: BTreeMap<&str, Revision> = shown.iter().map(|(key, at)| (key.as_str(), *at)).collect();
        self.recorder.listen();
        let mut checker = self.recorder.checker();
        let history = checker.at(prefix, revision);
        if shown != history {
            let difference = difference(&shown, &history);
            checker.violated(format!("a list at revision {revision} shows {difference}"));
        }
    }
}

fn difference(shown: &BTreeMap<&str, Revision>, history: &BTreeMap<&str, Revision>) -> String {
    let other = |(key, at): &(&&str, &Revision)| history.get(**key) != Some(*at);
    let wrong = shown.iter().find(other);
    let missing = history.iter().find(|(key, _)| !shown.contains_key(**key));
    format!("{wrong:?} which is not so, and lacks {missing:?}")
}

fn apply(versions: &mut Versions, change: &WatchChange) {
    let Some((_, prefix)) = KINDS.iter().find(|(resource, _)| *resource == change.resource) else {
        return;
    };
    let meta = &change.object["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or("_");
    let key = format!("{prefix}{namespace}/{}", meta["name"].as_str().unwrap_or_default());
    let revision = meta["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    match (change.kind, revision) {
        (ChangeKind::Deleted, _) => drop(versions.remove(&key)),
        (ChangeKind::Added | ChangeKind::Modified, Some(revision)) => drop(versions.insert(key, revision)),
        // No object is at revision zero, so this is found out.
        (ChangeKind::Added | ChangeKind::Modified, None) => drop(versions.insert(key, 0)),
    }
}
