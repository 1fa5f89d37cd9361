//! Every bound of the server, with its arithmetic.

use std::time::Duration;

use crate::lanes::seats::Limits as Lane;

/// The largest body of a request. As Kubernetes: room for an object of 1 MiB in any encoding, and its patch.
pub const BODY_BYTES: usize = 3 << 20;
/// What is read and thrown away of a larger body, so that its sender gets to see the answer: a few times what is allowed.
pub const BODY_BYTES_DISCARDED: usize = 16 << 20;
/// For how long.
pub const BODY_DISCARD_WAIT: Duration = Duration::from_secs(2);
/// How long a body may take to come, for its sender holds a seat meanwhile: the largest takes as long at 100 KB a second.
pub const BODY_WAIT: Duration = Duration::from_secs(30);

/// Requests of users that are worked on at once. One is worked on for a few milliseconds, and waits for the store most of them: so many are 25,000 a
/// second and more than the store can take, and with what each holds (3 MiB at most, a few KB as a rule) they fit into memory.
pub const USERS_SEATS: usize = 256;
/// The lane of users. What waits for 5 s behind seats that are left every few milliseconds is a flood.
pub const USERS: Lane = Lane {
    seats: USERS_SEATS,
    waiting_of_user: 128,
    waiting: 2_048,
};
/// The lane of agents and controllers: a status of each of 5,000 agents at once, and the plans of a leader, wait their turn.
pub const SYSTEM: Lane = Lane {
    seats: 256,
    waiting_of_user: 512,
    waiting: 12_000,
};
/// The lane of heartbeats, which take microseconds: two of each of 5,000 agents may come at once, and elections of teams.
pub const LEASES: Lane = Lane {
    seats: 64,
    waiting_of_user: 16,
    waiting: 12_000,
};
/// Those who are not counted.
pub const EXEMPT: Lane = Lane {
    seats: usize::MAX,
    waiting_of_user: 1,
    waiting: 1,
};
/// How long a request waits for a seat: half of the time that clients of ours give a call.
pub const SEAT_WAIT: Duration = Duration::from_secs(5);
/// How long a heartbeat waits: a leader has 3 s.
pub const LEASE_WAIT: Duration = Duration::from_secs(1);
/// When a request is to be tried again that found no seat. As Kubernetes.
pub const COME_AGAIN_SECONDS: u32 = 1;
/// When a watch is to be tried again that was one too many: those that are open stay so for minutes.
pub const COME_LATER_SECONDS: u32 = 10;
/// Watches, logs and sessions of one user that are open at once: a watch of each of 20 kinds from 50 places. Each costs a few KB.
pub const LASTING_OF_USER: usize = 1_000;
/// The largest object. The store takes transactions of 1.5 MB, as etcd does.
pub const OBJECT_BYTES: usize = 1 << 20;
/// Bytes of all values of a secret together, as Kubernetes.
pub const SECRET_BYTES: usize = 1 << 20;
/// How deep arrays and objects of a body may nest. The deepest field of any kind is at about 10.
pub const JSON_DEPTH: usize = 64;
/// Operations of a JSON patch, as Kubernetes.
pub const PATCH_OPERATIONS: usize = 10_000;
/// Labels of an object.
pub const LABELS: usize = 64;
/// Bytes of all annotations of an object, keys included, as Kubernetes.
pub const ANNOTATION_BYTES: usize = 256 << 10;
/// Finalizers, and likewise owner references, of an object.
pub const META_ITEMS: usize = 64;
/// The longest name of a writer, as Kubernetes.
pub const FIELD_MANAGER_CHARS: usize = 128;
/// Tasks of one accepted offer: with 20 offers, the ledger and the compares for namespace, fence, agent and presence they stay under
/// the 127 operations and compares of a transaction.
pub const TASKS_PER_ACCEPT: usize = 100;
/// Offers that are accepted together.
pub const OFFERS_PER_ACCEPT: usize = 20;
/// Offers that one call for an agent makes or deletes: with the ledger and the namespaces' compares under the 127 of a transaction.
pub const OFFERS_PER_AGENT_CALL: usize = 50;

/// Events that watches may resume from. A power of two, as the memory for them grows.
pub const RING_EVENTS: usize = 1 << 17;
/// Bytes that the ring may hold. An event of a task takes about 180, so they are enough for all events of 100,000 writes; objects that
/// are deleted at once, which have no newer version to differ from, about 450. The whole server shall stay under 150 MB.
pub const RING_BYTES: usize = 32 << 20;
/// Events that hold their objects themselves: a watch that is less behind costs nothing, and at 8,000 writes a second it has a quarter of
/// a second.
pub const RING_FRESH_EVENTS: usize = 2_048;
/// Bytes of objects that those events may hold: 1.5 KB each, and a quarter more.
pub const RING_FRESH_BYTES: usize = 4 << 20;
/// Bytes that a list or a watch gives to the connection at a time.
pub const CHUNK_BYTES: usize = 128 << 10;
/// Events that a watch looks at before it lets others run: with few of them wanted, still microseconds.
pub const WATCH_BATCH: usize = 1_024;
/// Bytes of events that a watch takes at a time: those of 700 tasks, or one of the largest objects.
pub const WATCH_BYTES: usize = 1 << 20;
/// Objects in a part of the snapshot of an ordered watch.
pub const SNAPSHOT_OBJECTS: usize = 1_000;
/// Silence after which an ordered watch says how far it is.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Silence after which a watch says how far it is, if it was asked to. As Kubernetes.
pub const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch says how far it is.
pub const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// How long a watch runs that did not say; a random part of the same length comes on top, so that clients don't come back at once.
pub const WATCH_SECONDS: u64 = 1_800;
/// How long a read waits for a revision that the server has not seen.
pub const READ_WAIT: Duration = Duration::from_secs(3);
/// How long a write waits for the hub to show it; it is committed by then.
pub const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How often a write that names no version is tried again when others get in between.
pub const WRITE_ATTEMPTS: usize = 64;
/// How often a generated name is drawn again when it is taken. As Kubernetes.
pub const NAME_ATTEMPTS: usize = 8;
/// How long events are kept. As Kubernetes.
pub const EVENT_TTL: Duration = Duration::from_secs(3_600);
/// How often expired events are looked for.
pub const EVENT_SWEEP: Duration = Duration::from_secs(60);
/// Deletions in one transaction of a sweep; half of what a transaction may hold.
pub const SWEEP_OPS: usize = 64;
/// Steps that the rules of a kind may take for one object, by an estimate that is never too low for what they read: a list of 200 items may
/// be held against itself by a rule of a hundred words. At 10 million steps a second, half a second.
pub const RULE_STEPS: u64 = 5_000_000;
/// Bytes of text that one rule may make.
pub const RULE_BYTES: u64 = 64 << 20;
/// Rules in one place of a schema.
pub const RULES: usize = 100;
/// The longest rule. Its parser recurses with what lies in each other, so that is bounded before it begins.
pub const RULE_CHARS: usize = 4_096;
/// How deep brackets of a rule may lie in each other. As Kubernetes.
pub const RULE_DEPTH: usize = 32;
/// How deep expressions of a rule may lie in each other: evaluating recurses as deep, on threads with 2 MiB of stack.
pub const RULE_LEVELS: u32 = 100;
/// Conditionals (`a ? b : c`) in a rule.
pub const RULE_CONDITIONALS: usize = 32;

/// When a change is to be tried again that is refused because the audit log cannot be written: nobody makes room within a second.
pub const AUDIT_RETRY_SECONDS: u32 = 10;

/// Agents that are asked at once for what they measure: a connection each.
pub const AGENTS_ASKED_AT_ONCE: usize = 64;
/// How long an agent has to say what it measures, connection and handshake included: it has it in memory.
pub const AGENT_ANSWER: Duration = Duration::from_secs(3);

/// Deletions of a collection that are under way at once: enough that they travel together, few enough that others get their turn.
pub const DELETIONS_AT_ONCE: usize = 16;
