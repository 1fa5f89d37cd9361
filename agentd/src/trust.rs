//! Whether the API server is the one that this agent knows, and as new. Pure.
//!
//! An agent remembers, across restarts, the uid of its cluster and the highest revision that it has seen. When the uid is another one, or
//! the revision lower than one that was seen before it was asked for, the store was lost, restored from a backup, or belongs to somebody else: then
//! the absence of a task proves nothing, and a task that seems to wait may have run long ago. So the agent is in *quarantine*: it starts
//! nothing, stops nothing and says nothing about tasks, until an operator has looked and confirms.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Annotation on an Agent by which an operator confirms what the store says now: the token in the message of the condition.
pub const ANNOTATION_CONFIRMED: &str = "muster.dev/confirmed-store";

/// The token in such a message.
pub fn token_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once(&format!("{ANNOTATION_CONFIRMED}="))?;
    rest.split([')', ' ', '`']).next().filter(|token| !token.is_empty())
}

/// What an agent remembers of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The uid of the cluster; empty before it was ever told.
    pub cluster: String,
    /// The highest revision seen.
    pub highest: u64,
    /// The token of the quarantine, while there is one.
    pub quarantine: Option<String>,
}

/// Why nothing is done, and how to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// What an operator has to confirm with.
    pub token: String,
    /// The same in a sentence.
    pub message: String,
}

/// What is known, and whether the server can be trusted.
#[derive(Debug, Default)]
pub struct Trust {
    known: Known,
    /// Another cluster that answered.
    foreign: Option<String>,
    /// The lower revision that the server was at.
    lower: Option<u64>,
}

impl Trust {
    /// With what was remembered.
    pub fn new(known: Known) -> Trust {
        Trust {
            known,
            ..Trust::default()
        }
    }

    /// What is to be remembered.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// These clusters have answered since the agent was started.
    pub fn answered(&mut self, clusters: &BTreeSet<String>, token: impl FnOnce() -> String) {
        if self.known.cluster.is_empty()
            && let Some(first) = clusters.first()
        {
            self.known.cluster = first.clone();
        }
        let foreign = clusters.iter().find(|cluster| **cluster != self.known.cluster);
        if let Some(foreign) = foreign.filter(|foreign| self.foreign.as_ref() != Some(foreign)) {
            self.foreign = Some(foreign.clone());
            self.doubt(token);
        }
    }

    /// The server is at this revision.
    pub fn reached(&mut self, revision: u64) {
        if self.known.quarantine.is_none() {
            self.known.highest = self.known.highest.max(revision);
        }
    }

    /// The server, asked for it, is at this revision; `highest` was seen before it was asked.
    pub fn looked(&mut self, revision: u64, highest: u64, token: impl FnOnce() -> String) {
        if revision < highest {
            self.lower = Some(revision);
            self.doubt(token);
        }
    }

    fn doubt(&mut self, token: impl FnOnce() -> String) {
        if self.known.quarantine.is_none() {
            let token = token();
            tracing::error!(
                token,
                "the API server is not as it was known; nothing is started or stopped until that is confirmed"
            );
            self.known.quarantine = Some(token);
        }
    }

    /// The quarantine, if there is one.
    pub fn quarantine(&self) -> Option<Quarantine> {
        let token = self.known.quarantine.clone()?;
        let what = match (&self.foreign, self.lower) {
            (Some(foreign), _) => format!(
                "the API server belongs to cluster {foreign}, this agent to cluster {}",
                self.known.cluster
            ),
            (None, Some(lower)) => format!(
                "the API server is at revision {lower}, this agent has seen {}: a backup was restored",
                self.known.highest
            ),
            (None, None) => "the API server was not as this agent knew it".to_owned(),
        };
        let message = format!(
            "{what}. Nothing is started or stopped here. If what the server says now is to hold, confirm it: `mctl agent confirm NAME` \
             (or annotate the Agent with {ANNOTATION_CONFIRMED}={token}); tasks that it does not know are then stopped"
        );
        Some(Quarantine { token, message })
    }

    /// An operator confirms. Whether that was about this quarantine; then the server counts as it is, at this revision.
    pub fn confirmed(&mut self, token: &str, revision: u64) -> bool {
        if self.known.quarantine.as_deref() != Some(token) {
            return false;
        }
        tracing::warn!(revision, "an operator has confirmed what the API server says now");
        self.known = Known {
            cluster: self.foreign.take().unwrap_or_else(|| self.known.cluster.clone()),
            highest: revision,
            quarantine: None,
        };
        self.lower = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn token() -> String {
        "t".to_owned()
    }

    fn known() -> Trust {
        let mut trust = Trust::default();
        trust.answered(&clusters(&["c1"]), token);
        trust.reached(100);
        trust
    }

    #[test]
    fn the_first_cluster_is_the_agents_own_for_ever() {
        let mut trust = known();
        assert_eq!((trust.known().cluster.as_str(), trust.quarantine()), ("c1", None));
        trust.answered(&clusters(&["c1"]), token);
        assert_eq!(trust.quarantine(), None);
        trust.answered(&clusters(&["c1", "c2"]), token);
        assert!(trust.quarantine().is_some_and(|it| it.message.contains("cluster c2")));
        // After a restart, too.
        let mut again = Trust::new(known().known().clone());
        again.answered(&clusters(&["c2"]), token);
        assert!(again.quarantine().is_some());
    }

    #[test]
    fn a_lower_revision_makes_a_quarantine_that_outlives_the_process_and_newer_revisions() {
        let mut trust = known();
        trust.looked(100, 100, token);
        assert_eq!(trust.quarantine(), None);
        trust.looked(40, 100, token);
        assert!(trust.quarantine().is_some_and(|it| it.message.contains("revision 40")));
        trust.reached(500);
        assert_eq!(trust.known().highest, 100, "what is seen in quarantine does not count");
        let again = Trust::new(trust.known().clone()).quarantine();
        assert_eq!(again.as_ref().and_then(|it| token_in(&it.message)), Some("t"));
        assert_eq!(token_in("nothing to confirm"), None);
    }

    #[test]
    fn only_a_word_about_this_quarantine_ends_it() {
        let mut trust = known();
        trust.answered(&clusters(&["c1", "c2"]), token);
        assert!(!trust.confirmed("an earlier one", 7) && trust.quarantine().is_some());
        assert!(trust.confirmed("t", 7));
        assert_eq!(trust.quarantine(), None);
        assert_eq!((trust.known().cluster.as_str(), trust.known().highest), ("c2", 7));
        trust.answered(&clusters(&["c2"]), token);
        assert_eq!(trust.quarantine(), None);
        trust.answered(&clusters(&["c1", "c2"]), token);
        assert!(trust.quarantine().is_some(), "the old one is the foreign one now");
    }
}
