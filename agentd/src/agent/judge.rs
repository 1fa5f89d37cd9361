//! The part of the loop that is about trust: whether what the API server says counts, and what it is asked for besides.

use muster_runtime::Container;
use tokio::time::Instant;

use super::{Agent, Done};
use crate::limits::LOOK_AGAIN;
use crate::register::Health;
use crate::{ask, spec};

impl Agent {
    /// Compares the server with what is known of it; whether it can be trusted.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let token = || self.parts.env.uid().to_string();
        let clusters = self.parts.clusters.borrow_and_update().clone();
        self.trust.answered(&clusters, token);
        self.trust.reached(self.view.highest());
        let confirmed = self.parts.confirmed.borrow_and_update().clone();
        if confirmed.is_some_and(|token| self.trust.confirmed(&token, self.view.revision())) {
            self.view.accept_regression();
        }
        let quarantine = self.trust.quarantine();
        if quarantine.is_none() {
            self.look(now);
        }
        let health = Health {
            quarantine,
            disk: self.parts.data.pressure(),
        };
        let trusted = health.quarantine.is_none() && !self.view.regressed();
        self.parts.health.send_if_modified(|shown| {
            let news = *shown != health;
            *shown = health;
            news
        });
        self.note(now);
        trusted
    }

    /// Has the server asked where it is: from time to time, because a watch of a store that lost something only waits; and soon when a list
    /// was older than the view. A server may be late once, a store that lost something is so for good.
    fn look(&mut self, now: Instant) {
        let Some(at) = self.look_at else { return };
        let soon = now + LOOK_AGAIN;
        if self.view.regressed() && at > soon {
            self.look_at = Some(soon);
        } else if at <= now {
            self.look_at = None;
            let (client, highest) = (self.parts.client.clone(), self.view.highest());
            self.jobs
                .spawn(async move { Done::Looked(highest, ask::revision(&client).await) });
        }
    }

    /// Has what is known of the cluster written down: at once when it is about trust, seldom when only time has passed.
    fn note(&mut self, now: Instant) {
        if !self.parts.data.is_kept() {
            return;
        }
        let known = self.trust.known();
        let (noted, due) = &self.noted;
        let urgent = (&known.cluster, &known.quarantine) != (&noted.cluster, &noted.quarantine);
        if due.is_some_and(|due| due <= now || urgent) && known != noted {
            self.noted.1 = None;
            let (known, data) = (known.clone(), self.parts.data.clone());
            self.jobs.spawn(async move {
                let writing = known.clone();
                let written = tokio::task::spawn_blocking(move || data.write(&writing)).await;
                Done::Noted(known, written.unwrap_or_else(|error| Err(std::io::Error::other(error))))
            });
        }
    }

    /// Has the API server asked for tasks that are missing.
    pub(super) fn ask(&mut self, now: Instant) {
        for uid in self.orphans.ask(now) {
            let owner = |container: &&Container| spec::owner(container).is_some_and(|(owner, _)| owner == uid);
            let Some(key) = self.containers.iter().find(owner).and_then(spec::task_key) else {
                continue;
            };
            let client = self.parts.client.clone();
            self.jobs.spawn(async move {
                let answer = ask::is_absent(&client, &key, &uid).await;
                Done::Asked(uid, answer)
            });
        }
    }
}
