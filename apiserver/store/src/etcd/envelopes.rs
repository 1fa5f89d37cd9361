//! Transactions that travel together.
//!
//! etcd takes one round of consensus, one record of its log and one answer for a request, whatever is in it. So while requests are under way,
//! the transactions that come meanwhile wait, and leave together: each nested in one request, with compares, operations and an answer
//! of its own, as if it had been sent alone. Those that happen share a revision. Who comes while little is under way does not wait.
//!
//! etcd looks at the compares of all parts before it does anything, so no part may write what another compares or writes; and what etcd
//! refuses, it refuses whole, so a part may not bring anything that can be refused for itself (a lease that may be gone, more than fits). Such
//! transactions travel alone. A part can be sent again like any other transaction, because it has a slot of its own. What must never happen here: an
//! answer that is not the part's own; a transaction that waits behind nothing. Tested below, and by `tests/etcd_faults.rs`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::proto::{PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Txn as EtcdTxn, TxnOp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::members::{Sent, Trouble, kv};
use crate::types::{Key, Op, Txn};

/// Requests under way at once. More of them means smaller ones; fewer, that a slow one holds up more.
const REQUESTS: usize = 2;
/// Parts of one request. etcd takes 128 operations at a level, less what the level above has.
const PARTS: usize = 32;
/// Compares and operations of a transaction that may be a part: most have six.
const PART_OPS: usize = 32;
/// Bytes of one request: a third of what etcd takes.
const BYTES: usize = 512 << 10;

/// What is under way, and what waits.
#[derive(Default)]
pub(super) struct Envelopes {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    under_way: usize,
    waiting: VecDeque<Letter>,
}

/// A transaction that waits.
struct Letter {
    request: EtcdTxn,
    keys: Keys,
    bytes: usize,
    end: Instant,
    answer: oneshot::Sender<Sent<PbTxnResponse>>,
}

/// What a transaction writes and compares.
#[derive(Clone, Debug, Default)]
struct Keys {
    written: Vec<Key>,
    compared: Vec<Key>,
}

impl Keys {
    fn of(txn: &Txn) -> Keys {
        Keys {
            written: txn.ops.iter().map(|op| op.key().clone()).collect(),
            compared: txn.compares.iter().map(|compare| compare.key.clone()).collect(),
        }
    }
}

/// What the parts of a request write and compare.
#[derive(Default)]
struct Taken {
    written: BTreeSet<Key>,
    compared: BTreeSet<Key>,
}

impl Taken {
    /// Adds the keys of a part, unless it would touch another.
    fn add(&mut self, keys: &Keys) -> bool {
        let touches = |key: &Key| self.written.contains(key) || self.compared.contains(key);
        let free = !keys.written.iter().any(touches) && !keys.compared.iter().any(|key| self.written.contains(key));
        if free {
            self.written.extend(keys.written.iter().cloned());
            self.compared.extend(keys.compared.iter().cloned());
        }
        free
    }
}

impl Queue {
    /// The next parts, in the order that they came in but for those that touch an earlier one.
    fn next(&mut self) -> Vec<Letter> {
        let (mut parts, mut stay) = (Vec::new(), VecDeque::new());
        let (mut taken, mut bytes) = (Taken::default(), 0);
        while let Some(letter) = self.waiting.pop_front() {
            let fits = parts.len() < PARTS && (bytes + letter.bytes <= BYTES || parts.is_empty());
            if fits && taken.add(&letter.keys) {
                bytes += letter.bytes;
                parts.push(letter);
            } else {
                stay.push_back(letter);
            }
            if parts.len() == PARTS {
                break;
            }
        }
        stay.append(&mut self.waiting);
        self.waiting = stay;
        parts
    }
}

impl Envelopes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to have a request under way. When it ends, however it does, the next one begins.
struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        let parts = {
            let mut queue = self.0.envelopes.queue();
            let parts = queue.next();
            if parts.is_empty() {
                queue.under_way -= 1;
                return;
            }
            parts
        };
        let turn = Turn(Arc::clone(&self.0));
        // Not within any of the callers: each of them may be given up.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { turn.0.send_parts(parts).await })),
            // The process ends, and nobody waits.
            Err(_) => drop(parts),
        }
    }
}

impl Shared {
    /// Sends the request of a transaction, alone or with others, until somebody answers or `end` has come. `bytes`: its size.
    pub(super) async fn deliver(
        self: &Arc<Self>,
        txn: &Txn,
        request: EtcdTxn,
        bytes: usize,
        end: Instant,
    ) -> Sent<PbTxnResponse> {
        let leased = txn.ops.iter().any(|op| matches!(op, Op::Put { lease: Some(_), .. }));
        if leased || bytes > BYTES || txn.ops.len() + txn.compares.len() > PART_OPS {
            return self.send_request(request, end).await;
        }
        let waits = {
            let mut queue = self.envelopes.queue();
            if queue.under_way < REQUESTS {
                queue.under_way += 1;
                Err(request)
            } else {
                let (answer, waits) = oneshot::channel();
                queue.waiting.push_back(Letter {
                    request,
                    keys: Keys::of(txn),
                    bytes,
                    end,
                    answer,
                });
                Ok(waits)
            }
        };
        match waits {
            Err(request) => {
                let turn = Turn(Arc::clone(self));
                let sent = self.send_request(request, end).await;
                drop(turn);
                sent
            }
            Ok(waits) => waits.await.unwrap_or_else(|_| Sent {
                answer: Err(Trouble::Lost("the request was given up".to_owned())),
                alone: false,
            }),
        }
    }

    async fn send_request(&self, request: EtcdTxn, end: Instant) -> Sent<PbTxnResponse> {
        let sent = self.members.insist(end, |client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        });
        let Sent { answer, alone } = sent.await;
        Sent {
            answer: answer.map(|answer| answer.0),
            alone,
        }
    }

    /// Sends parts, and gives each its answer.
    async fn send_parts(&self, mut parts: Vec<Letter>) {
        // Nobody waits for what was given up, and what has waited too long may not be sent.
        let now = Instant::now();
        parts.retain(|part| !part.answer.is_closed());
        let late: Vec<Letter> = parts.extract_if(.., |part| part.end <= now).collect();
        let unsent = || Sent {
            answer: Err(Trouble::NotSent("etcd was busy for too long".to_owned())),
            alone: true,
        };
        deal(late, std::iter::repeat_with(unsent));
        let Some(end) = parts.iter().map(|part| part.end).min() else {
            return;
        };
        if let [part] = parts.as_mut_slice() {
            let sent = self.send_request(std::mem::take(&mut part.request), end).await;
            deal(parts, [sent]);
            return;
        }
        let requests = parts.iter_mut().map(|part| std::mem::take(&mut part.request));
        let nested: Vec<TxnOp> = requests.map(TxnOp::txn).collect();
        let Sent { answer, alone } = self.send_request(EtcdTxn::new().and_then(nested), end).await;
        let answers = match answer {
            Ok(answer) => opened(answer, parts.len()),
            Err(trouble) => vec![Err(trouble); parts.len()],
        };
        deal(parts, answers.into_iter().map(|answer| Sent { answer, alone }));
    }
}

fn deal(parts: Vec<Letter>, answers: impl IntoIterator<Item = Sent<PbTxnResponse>>) {
    for (part, answer) in parts.into_iter().zip(answers) {
        // Whoever has given up does not want it.
        let _ = part.answer.send(answer);
    }
}

/// The answers of the parts; each says what the whole says of itself.
fn opened(answer: PbTxnResponse, parts: usize) -> Vec<Result<PbTxnResponse, Trouble>> {
    let header = answer.header;
    let mut answers: Vec<_> = answer
        .responses
        .into_iter()
        .map(|part| match part.response {
            Some(PbTxnOpResponse::ResponseTxn(part)) => Ok(PbTxnResponse { header, ..part }),
            _ => Err(Trouble::Lost("etcd answered something else than was asked".to_owned())),
        })
        .collect();
    let missing = || Err(Trouble::Lost("etcd answered less than was asked".to_owned()));
    answers.resize_with(parts, missing);
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Compare;

    fn key(text: &str) -> Key {
        Key::new(text)
    }

    fn letter(written: &[&str], compared: &[&str], bytes: usize) -> Letter {
        let txn = Txn {
            compares: compared.iter().map(|name| Compare::absent(key(name))).collect(),
            ops: written.iter().map(|name| Op::put(key(name), &b"x"[..])).collect(),
        };
        Letter {
            request: EtcdTxn::new(),
            keys: Keys::of(&txn),
            bytes,
            end: Instant::now(),
            answer: oneshot::channel().0,
        }
    }

    fn next(queue: &mut Queue) -> Vec<String> {
        let first = |letter: &Letter| letter.keys.written[0].to_string();
        queue.next().iter().map(first).collect()
    }

    #[test]
    fn what_touches_an_earlier_part_waits_for_the_next_request() {
        let mut queue = Queue::default();
        let reads_shared = letter(&["b"], &["shared"], 1);
        queue.waiting.extend([
            letter(&["a"], &["a", "shared"], 1),
            reads_shared,
            letter(&["a"], &[], 1),
            letter(&["c"], &["b"], 1),
            letter(&["shared"], &[], 1),
            letter(&["d"], &["shared"], 1),
        ]);
        assert_eq!(next(&mut queue), ["a", "b", "d"]);
        assert_eq!(next(&mut queue), ["a", "c", "shared"]);
        assert!(next(&mut queue).is_empty());
    }

    #[test]
    fn a_request_has_so_many_parts_and_bytes() {
        let mut queue = Queue::default();
        let names: Vec<String> = (0..PARTS + 3).map(|number| format!("k{number}")).collect();
        queue.waiting.extend(names.iter().map(|name| letter(&[name], &[], 1)));
        assert_eq!(next(&mut queue).len(), PARTS);
        assert_eq!(next(&mut queue).len(), 3);
        queue
            .waiting
            .extend(names[..4].iter().map(|name| letter(&[name], &[], BYTES / 3)));
        assert_eq!((next(&mut queue).len(), next(&mut queue).len()), (3, 1));
        queue.waiting.push_back(letter(&["big"], &[], BYTES + 1));
        assert_eq!(next(&mut queue), ["big"]);
    }

    #[test]
    fn an_answer_that_is_short_of_parts_is_lost_for_the_rest() {
        let part = etcd_client::proto::PbResponseOp {
            response: Some(PbTxnOpResponse::ResponseTxn(PbTxnResponse {
                succeeded: true,
                ..PbTxnResponse::default()
            })),
        };
        let answer = PbTxnResponse {
            header: Some(etcd_client::proto::PbResponseHeader {
                revision: 7,
                ..Default::default()
            }),
            responses: vec![part],
            succeeded: true,
        };
        let answers = opened(answer, 2);
        let first = answers[0].as_ref().expect("it was answered");
        assert_eq!(
            (first.succeeded, first.header.as_ref().map(|header| header.revision)),
            (true, Some(7))
        );
        assert!(matches!(&answers[1], Err(Trouble::Lost(_))));
    }
}
