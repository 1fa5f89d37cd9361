//! What a server is among the machines of its cluster: by which authority it lets others in, and who they are.
//!
//! Promised: a join token is used once; of what a machine asks for, only its key counts; whoever guesses is soon told to wait. What
//! must never happen here: a secret in the store (it has hashes), or a comparison of secrets whose time depends on them. The routes are
//! tested in `tests/joining.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_api::join::{JoinToken, Server, TokenInfo};
use muster_api::names;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::auth::Tokens;
use crate::hub::{Filter, Part};
use crate::peers::Peers;
use crate::state::State;
use crate::tls::{AGENT_LIFE, Pki, hex};

/// Failed attempts to join from one address before it has to wait.
const FAILURES_MAX: u32 = 10;
/// For how long failures count.
const FAILURES_KEPT: SignedDuration = SignedDuration::from_mins(1);
/// Addresses whose failures are counted; what is beyond that waits with the oldest.
const ADDRESSES_MAX: usize = 10_000;

/// See the module. The default is a server that takes nobody in.
pub struct Membership {
    /// Its name; its presence lease is `server-NAME`.
    pub name: String,
    /// What signs the certificates of those who join.
    pub pki: Option<Arc<Pki>>,
    /// What a server that joins is given.
    pub tokens: Option<Arc<Tokens>>,
    /// How long agents' certificates last.
    pub agent_life: Duration,
    /// The keys by which secrets are sealed, as the file has them, for a server that joins.
    pub encryption_key: String,
    /// The way to the other servers.
    pub peers: Option<Arc<dyn Peers>>,
    pub(crate) failures: Failures,
    endpoints: OnceLock<Vec<String>>,
}

impl Default for Membership {
    fn default() -> Membership {
        Membership {
            name: String::new(),
            pki: None,
            tokens: None,
            agent_life: AGENT_LIFE,
            encryption_key: String::new(),
            peers: None,
            failures: Failures::default(),
            endpoints: OnceLock::new(),
        }
    }
}

impl Membership {
    /// Of a server that lets others in.
    pub fn new(name: &str, pki: Arc<Pki>, tokens: Arc<Tokens>) -> Membership {
        Membership {
            name: name.to_owned(),
            pki: Some(pki),
            tokens: Some(tokens),
            ..Membership::default()
        }
    }

    /// Says by which `HOST:PORT` others reach this server. The first word counts.
    pub fn reached_by(&self, endpoints: Vec<String>) {
        // A second listener in the same process would have a membership of its own.
        let _ = self.endpoints.set(endpoints);
    }

    /// By which `HOST:PORT` others reach this server.
    pub fn endpoints(&self) -> &[String] {
        self.endpoints.get().map_or(&[], Vec::as_slice)
    }
}

/// The servers that live, this one first.
pub(crate) fn servers(state: &State) -> Vec<Server> {
    let own = &state.membership;
    let mut found = Vec::new();
    if !own.endpoints().is_empty() {
        found.push(Server {
            name: own.name.clone(),
            endpoints: own.endpoints().to_vec(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
    }
    let Some(kind) = state.resources.stored("leases.coordination.k8s.io") else {
        return found;
    };
    let all = Filter::all(Some(names::NAMESPACE_SYSTEM));
    for lease in state.hub.list(kind.id, &all, &Part::default()).objects {
        let Some(name) = lease.name().strip_prefix(names::LEASE_SERVER_PREFIX) else {
            continue;
        };
        let json = lease.json();
        let endpoints = json["metadata"]["annotations"][names::ANNOTATION_ENDPOINTS].as_str();
        let endpoints: Vec<String> = endpoints.unwrap_or_default().split(',').map(str::to_owned).collect();
        if name != own.name && endpoints.iter().all(|endpoint| !endpoint.is_empty()) {
            found.push(Server {
                name: name.to_owned(),
                endpoints,
                version: json["metadata"]["annotations"][names::ANNOTATION_VERSION]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
    }
    found
}

/// What the store has of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) info: TokenInfo,
    /// The SHA-256 of the secret.
    pub(crate) digest: String,
    /// The SHA-256 of the public key that it was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
}

/// The SHA-256 of a secret, in hexadecimal digits.
pub(crate) fn digest(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Whether two digests are the same; the time taken does not depend on where they differ.
pub(crate) fn same(one: &str, other: &str) -> bool {
    let differs = one
        .bytes()
        .zip(other.bytes())
        .fold(0u8, |differs, (a, b)| differs | (a ^ b));
    differs == 0 && one.len() == other.len()
}

/// A fresh id and secret: 48 and 160 bits of two uids.
pub(crate) fn draw(uids: [uuid::Uuid; 2]) -> (String, String) {
    let drawn = hex(&Sha256::digest(format!("{}{}", uids[0], uids[1])));
    (drawn[..12].to_owned(), drawn[12..52].to_owned())
}

/// The word that a person carries to the machine that joins.
pub(crate) fn token(id: &str, secret: &str, pin: [u8; 32], servers: &[Server]) -> JoinToken {
    JoinToken {
        id: id.to_owned(),
        secret: secret.to_owned(),
        pin,
        endpoints: servers.iter().flat_map(|server| server.endpoints.clone()).collect(),
    }
}

/// Who has failed lately. Forgotten with the process: it only slows down whoever guesses.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<Option<IpAddr>, (u32, Timestamp)>>);

impl Failures {
    /// Whether this address has to wait.
    pub(crate) fn blocks(&self, address: Option<IpAddr>, now: Timestamp) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, since)| now.duration_since(*since) < FAILURES_KEPT);
        let failures = known.get(&address).map_or(0, |(failures, _)| *failures);
        failures >= FAILURES_MAX || known.len() >= ADDRESSES_MAX
    }

    /// Counts a failure.
    pub(crate) fn count(&self, address: Option<IpAddr>, now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(address).or_insert((0, now)).0 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_compared_whole() {
        let (id, secret) = draw([uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2)]);
        assert_eq!((id.len(), secret.len()), (12, 40));
        assert!(same(&digest(&secret), &digest(&secret)));
        assert!(!same(&digest(&secret), &digest(&id)));
        assert!(!same("ab", "abc") && !same("", "a") && same("", ""));
    }

    #[test]
    fn whoever_guesses_has_to_wait_and_nobody_else() {
        let failures = Failures::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let (bad, good) = ("10.0.0.1".parse().ok(), "10.0.0.2".parse().ok());
        for _ in 0..FAILURES_MAX {
            assert!(!failures.blocks(bad, at(5)));
            failures.count(bad, at(5));
        }
        assert!(failures.blocks(bad, at(6)) && !failures.blocks(good, at(6)));
        assert!(!failures.blocks(bad, at(65)), "it is forgotten");
    }
}
