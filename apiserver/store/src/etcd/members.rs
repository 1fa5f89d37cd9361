//! The members of an etcd: which one is asked, what their failures mean, and how long anything may take.
//!
//! One member is asked at a time. Who finds that it does not answer moves everybody on to the next one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, KvClient, TlsOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::EtcdConfig;
use crate::types::Error;

/// How long a member may take for something that can be asked elsewhere: 50 times what a loaded one needs, and a third of an
/// agent's shortest lease.
pub(super) const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a call may take in all. A new leader is found within 2.2 s by default; twice that, and some.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How long a lease may wait for its renewal in all: longer than its holder waits, who then asks again.
pub(super) const RENEWAL: Duration = Duration::from_secs(3);
/// How long a member may be silent until what can be sent twice is sent to another one, too: a follower that has passed it on to a
/// leader that died says nothing. A new leader takes half a second at the least.
const HEDGE: Duration = Duration::from_millis(500);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How seldom a change of members is said aloud: without a quorum nobody answers, and everybody's turn comes many times a second.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// A member whose connection is silent for this long is asked for a sign of life: etcd takes offence at less than 5 s.
const ALIVE_EVERY: Duration = Duration::from_secs(6);
/// How long the sign may take. So a watch on a stopped member ends after 8 s, if nobody found out sooner.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);
/// The largest answer: a transaction whose 128 compares all fail returns as many entries of up to 1.5 MiB.
const MESSAGE_BYTES: usize = 256 << 20;
/// The largest part of a watch's answer: etcd cuts them at 1.5 MiB, but not an event in two.
pub(super) const EVENT_BYTES: usize = 16 << 20;

/// What went wrong with a call, as far as it matters.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// It has not happened and never will.
    NotSent(String),
    /// There is no answer; it may have happened, or may yet.
    Lost(String),
    /// etcd has no room.
    Full,
    /// More than etcd takes at once.
    TooLarge(String),
    /// The answer is more than we take at once.
    AnswerTooLarge,
    /// The lease is gone.
    NoLease,
    /// The revision is forgotten.
    Compacted,
    /// The revision is yet to come.
    Future,
    /// etcd says no, and will again.
    Refused(String),
}

impl Trouble {
    fn worth_another_try(&self) -> bool {
        matches!(self, Trouble::NotSent(_) | Trouble::Lost(_))
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Error {
        match trouble {
            Trouble::NotSent(why) => Error::Unavailable(format!("etcd: {why}")),
            Trouble::Lost(why) => Error::Unavailable(format!("etcd: {why}")),
            Trouble::Full => Error::Full(
                "etcd has reached its quota (alarm NOSPACE) and takes deletions only; delete what can go, wait for the next \
                 compaction or run `etcdctl compaction`, then `etcdctl defrag` for each member and `etcdctl alarm disarm`, or start \
                 etcd with a larger --quota-backend-bytes"
                    .to_owned(),
            ),
            Trouble::TooLarge(why) => Error::Fatal(format!("etcd: {why}")),
            Trouble::AnswerTooLarge => Error::Fatal("etcd: the answer is too large".to_owned()),
            Trouble::NoLease => Error::Fatal("etcd: the lease is gone".to_owned()),
            Trouble::Compacted => Error::Unavailable("etcd: the revision was forgotten meanwhile".to_owned()),
            Trouble::Future => Error::Fatal("etcd: the revision is yet to come".to_owned()),
            Trouble::Refused(why) => Error::Fatal(format!("etcd: {why}")),
        }
    }
}

impl From<etcd_client::Error> for Trouble {
    fn from(error: etcd_client::Error) -> Trouble {
        match error {
            etcd_client::Error::GRpcStatus(status) => of_status(&status),
            etcd_client::Error::LeaseKeepAliveError(_) => Trouble::NoLease,
            etcd_client::Error::InvalidArgs(_)
            | etcd_client::Error::InvalidUri(_)
            | etcd_client::Error::Utf8Error(_)
            | etcd_client::Error::InvalidMetadataValue(_) => Trouble::Refused(error.to_string()),
            other => Trouble::Lost(other.to_string()),
        }
    }
}

/// Waits until then; not at all when it is now. A timer rounds up to whole milliseconds, which is longer than etcd takes.
async fn due(at: Instant) {
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

fn of_status(status: &tonic::Status) -> Trouble {
    use tonic::Code;
    let text = status.message();
    // Without a connection nothing was sent.
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return Trouble::NotSent(format!("cannot connect: {error}"));
        }
        cause = error.source();
    }
    match (status.code(), text) {
        // Said before anything is proposed: by the interceptor, and when too much is waiting to be applied.
        (_, "etcdserver: no leader" | "etcdserver: too many requests") => Trouble::NotSent(text.to_owned()),
        (_, "etcdserver: mvcc: database space exceeded") => Trouble::Full,
        (_, "etcdserver: requested lease not found") => Trouble::NoLease,
        (_, "etcdserver: mvcc: required revision has been compacted") => Trouble::Compacted,
        (_, "etcdserver: mvcc: required revision is a future revision") => Trouble::Future,
        (_, "etcdserver: request is too large" | "etcdserver: too many operations in txn request") => {
            Trouble::TooLarge(text.to_owned())
        }
        (Code::OutOfRange, text) if text.contains("message length too large") => Trouble::AnswerTooLarge,
        (Code::ResourceExhausted, text) if text.contains("larger than max") => Trouble::TooLarge(text.to_owned()),
        (
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::DataLoss,
            _,
        ) => Trouble::Refused(text.to_owned()),
        (code, "") => Trouble::Lost(code.to_string()),
        _ => Trouble::Lost(text.to_owned()),
    }
}

/// What came of something that was sent until somebody answered.
pub(super) struct Sent<T> {
    /// The first answer, or why there is none.
    pub(super) answer: Result<T, Trouble>,
    /// Whether nothing else that was sent may have arrived, or may arrive yet.
    pub(super) alone: bool,
}

/// A client for each member. See the module.
pub(super) struct Members {
    clients: Vec<(String, Client)>,
    /// Whose turn it is; grows, so that late complaints about a former one are told from new ones.
    turn: signal::Sender<usize>,
    pulse: Mutex<Pulse>,
    /// When a change of members was last said aloud.
    said: Mutex<Option<Instant>>,
}

/// What was heard of what was sent: etcd answers in the order of its log, so whoever waits can tell a queue from a loss.
#[derive(Debug)]
struct Pulse {
    sent: u64,
    /// The latest of those that were answered.
    answered: u64,
    at: Instant,
}

impl Pulse {
    /// How long whoever sent `number` should go on to wait: others that were sent no later are being answered.
    fn queued(&self, number: u64) -> Option<Instant> {
        let patient = self.at + HEDGE;
        (self.answered < number && patient > Instant::now()).then_some(patient)
    }
}

/// The member whose turn it was.
#[derive(Clone)]
pub(super) struct Member {
    turn: usize,
    pub(super) client: Client,
}

impl Members {
    /// Nothing is sent yet.
    pub(super) async fn new(config: &EtcdConfig) -> Result<Members, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(ALIVE_EVERY, ALIVE_WITHIN)
            .with_keep_alive_while_idle(true)
            // A member that has lost its leader says so, and ends its watches.
            .with_require_leader(true);
        if let Some(tls) = &config.tls {
            let mut settings = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                settings = settings.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(settings);
        }
        let mut clients = Vec::new();
        for url in config.endpoints.iter().map(|url| url.trim().trim_end_matches('/')) {
            if !(url.starts_with("http://") || url.starts_with("https://")) {
                return Err(Error::Fatal(format!(
                    "{url:?} is no URL of an etcd; write http://HOST:PORT or https://HOST:PORT"
                )));
            }
            let client = Client::connect([url], Some(options.clone())).await;
            let client = client.map_err(|error| Error::Fatal(format!("cannot use the etcd at {url}: {error}")))?;
            clients.push((url.to_owned(), client));
        }
        if clients.is_empty() {
            return Err(Error::Fatal("no endpoint of etcd is given".to_owned()));
        }
        Ok(Members {
            clients,
            turn: signal::Sender::new(0),
            pulse: Mutex::new(Pulse {
                sent: 0,
                answered: 0,
                at: Instant::now(),
            }),
            said: Mutex::new(None),
        })
    }

    /// The member to ask.
    pub(super) fn current(&self) -> Member {
        let turn = *self.turn.borrow();
        Member {
            turn,
            client: self.clients[turn % self.clients.len()].1.clone(),
        }
    }

    /// Moves on to the next member, unless somebody has already.
    pub(super) fn distrust(&self, member: &Member, why: &str) {
        let moved = self.turn.send_if_modified(|turn| {
            let moved = *turn == member.turn;
            *turn += usize::from(moved);
            moved
        });
        if moved && self.clients.len() > 1 {
            let (from, to) = (self.url(member.turn), self.url(member.turn + 1));
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_some_and(|at| at.elapsed() < SAY_EVERY) {
                tracing::debug!(from, to, why, "going on with another member of etcd");
            } else {
                *said = Some(Instant::now());
                tracing::warn!(from, to, why, "going on with another member of etcd");
            }
        }
    }

    fn url(&self, turn: usize) -> &str {
        &self.clients[turn % self.clients.len()].0
    }

    /// Waits until another member's turn has come than `member`'s.
    pub(super) async fn moved_on(&self, member: &Member) {
        let count = self.clients.len();
        let mut turn = self.turn.subscribe();
        // The sender lives as long as we do.
        let _ = turn.wait_for(|turn| *turn % count != member.turn % count).await;
    }

    /// Asks until somebody answers, or `deadline` is over. For what may be asked twice.
    pub(super) async fn ask<T, F>(&self, deadline: Duration, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let end = Instant::now() + deadline;
        loop {
            let member = self.current();
            let patience = ATTEMPT.min(end.saturating_duration_since(Instant::now()));
            let trouble = match timeout(patience, call(member.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Trouble::from(error),
                Err(_) => Trouble::Lost(format!("no answer from {} within {patience:?}", self.url(member.turn))),
            };
            if !trouble.worth_another_try() {
                return Err(trouble);
            }
            self.complain(&member, &trouble);
            if Instant::now() + PAUSE >= end {
                return Err(trouble);
            }
            sleep(PAUSE).await;
        }
    }

    /// Sends once; again only what provably did not arrive.
    pub(super) async fn send<T, F>(&self, deadline: Duration, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let end = Instant::now() + deadline;
        loop {
            let member = self.current();
            let patience = end.saturating_duration_since(Instant::now());
            let trouble = match timeout(patience, call(member.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Trouble::from(error),
                Err(_) => Trouble::Lost(format!("no answer from {} within {deadline:?}", self.url(member.turn))),
            };
            if trouble.worth_another_try() {
                self.complain(&member, &trouble);
            }
            if !matches!(trouble, Trouble::NotSent(_)) || Instant::now() + PAUSE >= end {
                return Err(trouble);
            }
            sleep(PAUSE).await;
        }
    }

    /// Sends until somebody answers, or `end` has come: to another member as soon as one is silent, without giving the first one up. For
    /// what happens once, however often it is sent.
    pub(super) async fn insist<T, F>(&self, end: Instant, call: impl Fn(Client) -> F) -> Sent<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut under_way = FuturesUnordered::new();
        let (mut first, mut latest): (Option<(Member, Instant)>, Option<Member>) = (None, None);
        let (mut patience, mut next) = (HEDGE, Instant::now());
        let (mut lost, mut sent) = (false, 0);
        let mut trouble = Trouble::NotSent("no member was asked in time".to_owned());
        loop {
            tokio::select! {
                biased;
                Some((number, member, result)) = under_way.next(), if !under_way.is_empty() => {
                    let found: Result<T, Trouble> = Result::map_err(result, Trouble::from);
                    match found {
                        Err(found) if found.worth_another_try() => {
                            self.complain(&member, &found);
                            lost |= matches!(found, Trouble::Lost(_));
                            trouble = found;
                            next = next.min(Instant::now() + PAUSE);
                        }
                        answer => {
                            let mut pulse = self.pulse();
                            (pulse.answered, pulse.at) = (pulse.answered.max(number), Instant::now());
                            return Sent { answer, alone: !lost && under_way.is_empty() };
                        }
                    }
                }
                () = sleep_until(end) => break,
                () = due(next) => {
                    // A slow etcd is not to be flooded with repetitions.
                    if !under_way.is_empty() && let Some(patient) = self.pulse().queued(sent) {
                        next = patient;
                        continue;
                    }
                    if let Some((member, since)) = &first && since.elapsed() >= ATTEMPT {
                        self.distrust(member, "it is silent");
                    }
                    let member = self.after(latest.as_ref());
                    first.get_or_insert_with(|| (member.clone(), Instant::now()));
                    latest = Some(member.clone());
                    let request = call(member.client.clone());
                    let number = {
                        let mut pulse = self.pulse();
                        pulse.sent += 1;
                        pulse.sent
                    };
                    sent = number;
                    under_way.push(async move { (number, member, request.await) });
                    next = Instant::now() + patience;
                    // After 0.5, 1, 2 and 4 s, if nothing is heard. Others may fail at once a hundred times meanwhile.
                    patience = if under_way.len() > 1 { (patience * 2).min(DEADLINE) } else { patience };
                }
            }
        }
        let silent = lost || !under_way.is_empty();
        let answer = Err(match trouble {
            Trouble::NotSent(_) if silent => Trouble::Lost("no answer from any member in time".to_owned()),
            trouble => trouble,
        });
        Sent { answer, alone: !silent }
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member to send to after this one was: whose turn it is, or the next.
    fn after(&self, latest: Option<&Member>) -> Member {
        let turn = *self.turn.borrow();
        let turn = latest.map_or(turn, |latest| turn.max(latest.turn + 1));
        Member {
            turn,
            client: self.clients[turn % self.clients.len()].1.clone(),
        }
    }

    fn complain(&self, member: &Member, trouble: &Trouble) {
        if let Trouble::NotSent(why) | Trouble::Lost(why) = trouble {
            self.distrust(member, why);
        }
    }
}

/// The part of a client that reads and writes keys.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: tonic::Code, text: &str) -> Trouble {
        of_status(&tonic::Status::new(code, text))
    }

    #[test]
    fn only_what_provably_did_not_arrive_counts_as_not_sent() {
        use tonic::Code::{ResourceExhausted, Unavailable, Unknown};
        for (code, text) in [
            (Unavailable, "etcdserver: no leader"),
            (ResourceExhausted, "etcdserver: too many requests"),
        ] {
            assert!(matches!(status(code, text), Trouble::NotSent(_)), "{text}");
        }
        for (code, text) in [
            (Unavailable, "etcdserver: request timed out"),
            (
                Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (Unavailable, "etcdserver: server stopped"),
            (Unavailable, "error reading a body from connection"),
            (Unknown, "raft proposal dropped"),
            (Unknown, ""),
        ] {
            assert!(matches!(status(code, text), Trouble::Lost(_)), "{text}");
        }
    }

    #[test]
    fn a_full_etcd_says_what_to_do() {
        let trouble = status(
            tonic::Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        );
        let error = Error::from(trouble);
        assert!(
            matches!(&error, Error::Full(text) if text.contains("etcdctl alarm disarm")),
            "{error}"
        );
        assert!(!error.is_retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_in_a_queue_is_patient_and_whoever_was_passed_over_is_not() {
        let pulse = Pulse {
            sent: 9,
            answered: 5,
            at: Instant::now(),
        };
        assert_eq!(
            pulse.queued(7),
            Some(Instant::now() + HEDGE),
            "those before it are answered"
        );
        assert_eq!(pulse.queued(4), None, "one that was sent later was answered");
        sleep(HEDGE).await;
        assert_eq!(pulse.queued(7), None, "nobody is answered");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_among_many_that_fail_at_once_is_waited_for_until_the_end() {
        let nowhere = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(str::to_owned);
        let config = EtcdConfig::new(nowhere.into(), "/muster/test", 1);
        let members = Members::new(&config).await.expect("nothing is sent yet");
        let calls = std::cell::Cell::new(0u32);
        let end = Instant::now() + DEADLINE;
        let sent = members.insist(end, |_| {
            calls.set(calls.get() + 1);
            let first = calls.get() == 1;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                let refused = tonic::Status::unavailable("etcdserver: no leader");
                Err::<(), _>(etcd_client::Error::GRpcStatus(refused))
            }
        });
        let sent = sent.await;
        assert!(matches!(sent.answer, Err(Trouble::Lost(_))), "{:?}", sent.answer);
        assert!(!sent.alone, "the first may have arrived");
        assert_eq!(Instant::now(), end);
        assert!(calls.get() > 64, "{} attempts", calls.get());
    }
}
