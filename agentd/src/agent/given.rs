//! The part of the loop that is about what tasks take from elsewhere: Secrets and ConfigMaps are read, and directories taken away.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_api::v1::Task;
use muster_runtime::{Container, State};
use tokio::time::timeout;

use super::{Agent, Done};
use crate::limits::REQUEST_DEADLINE;
use crate::sources::{self, SourceKey};
use crate::spec;
use crate::volumes::Places;

impl Agent {
    /// Has read what is wanted and due.
    pub(super) fn read(&mut self, wanted: &BTreeSet<SourceKey>) {
        for key in self.sources.want(wanted, self.parts.env.now()) {
            let (client, slots) = (self.parts.client.clone(), Arc::clone(&self.report_slots));
            self.jobs.spawn(async move {
                let _slot = slots.acquire().await.expect("the semaphore is never closed");
                let read = timeout(REQUEST_DEADLINE, sources::read(&client, &key)).await;
                Done::Read(key, read.unwrap_or_else(|_| Err("no answer in time".to_owned())))
            });
        }
    }

    pub(super) fn resync(&mut self) {
        self.stale = true;
        let of = |task: &Arc<Task>| {
            let namespace = task.namespace().to_owned();
            let key = move |source| SourceKey {
                namespace: namespace.clone(),
                source,
            };
            task.spec.sources().into_iter().map(key)
        };
        self.sources.retain(&self.view.tasks().values().flat_map(of).collect());
    }

    /// What an earlier process has left is known before anything is taken away.
    pub(super) fn look_for_directories(&mut self) {
        let places = Arc::clone(&self.parts.places);
        if *places != Places::default() {
            self.jobs.spawn_blocking(move || Done::Left(places.found()));
        }
    }

    /// Takes away what goes with tasks that have ended, or are no more, and of which nothing runs.
    pub(super) fn clear(&mut self) {
        if self.given.is_empty() {
            return;
        }
        let mut used = self.view.live();
        let alive = |container: &&Container| !matches!(container.state, State::Exited(_));
        used.extend(
            self.containers
                .iter()
                .filter(alive)
                .filter_map(|container| Some(spec::owner(container)?.0)),
        );
        let gone = |uid: &&String| !used.contains(uid.as_str()) && !self.busy.contains(*uid);
        let gone: Vec<String> = self.given.iter().filter(gone).cloned().collect();
        for uid in gone {
            self.given.remove(&uid);
            // Nothing else is done about the task meanwhile.
            self.busy.insert(uid.clone());
            let places = Arc::clone(&self.parts.places);
            self.jobs.spawn_blocking(move || {
                places.remove(&uid);
                Done::Acted(uid, Vec::new())
            });
        }
    }
}
