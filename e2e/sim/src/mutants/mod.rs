//! Planted bugs. Each must be caught within a few seeds, or the simulation proves nothing.
//!
//! Mutants live at the seams, so that no production code knows of them: in front of the store ([`store`]), compares are taken out of
//! transactions and watches are believed; in front of a process ([`traffic`]), requests and answers are changed as a process with the bug
//! would write and read them; in front of the machine ([`runtime`]), containers are named and shown as an agent with the bug would.
//! Each has the kind of trouble in which it shows soonest.

pub mod runtime;
pub mod store;
pub mod traffic;

use std::str::FromStr;

use crate::profile::Profile;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])* $name:ident in $profile:ident,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $doc])* $name,)*
        }

        /// All of them.
        pub const MUTANTS: &[Mutant] = &[$(Mutant::$name,)*];

        impl Mutant {
            /// The trouble in which it shows soonest.
            pub fn profile(self) -> Profile {
                match self {
                    $(Mutant::$name => Profile::$profile,)*
                }
            }
        }
    };
}

mutants! {
    /// Fences are not compared: a deposed leader's late write lands.
    DropFence in Pauses,
    /// The ledger is not compared: offers are made from a view that missed something.
    DropLedger in Late,
    /// The end of a task does not touch the ledger.
    LedgerNotTouched in Calm,
    /// Offers are not compared when they are accepted: the same offer is spent twice.
    AcceptTwice in Mixed,
    /// An accept takes the presence of an agent for given once it was present: tasks are bound to an agent that is lost.
    AcceptOfTheLost in Absences,
    /// Tasks are not compared when their status is written: a late report brings a terminal task back.
    TerminalResurrected in Stragglers,
    /// An agent's session is not compared when it writes a status: a superseded process speaks.
    SessionNotCompared in Successions,
    /// A lease is taken without a look at whether somebody holds it: two lead.
    LeaseNotExclusive in Calm,
    /// A write is acknowledged before it is committed.
    AcknowledgedTooSoon in Calm,
    /// Deletion does not wait for finalizers.
    DeletedAtOnce in Calm,
    /// The same device is given to every task of an agent.
    DevicesTwice in Calm,
    /// The hub takes a gap in its watch for silence.
    GapsIgnored in Lies,
    /// The hub resumes its watch from now, not from where it was.
    ResumedFromNow in Partitions,
    /// Agents know tasks by name instead of uid: a new task of an old name is taken for the old one.
    NameForUid in Calm,
    /// Agents report without identity: a late report about an old task is taken for one about the new.
    ReportedByName in Stragglers,
    /// A former leader gives back a lease that is its successor's.
    SuccessorsLeaseReleased in Pauses,
    /// A leader takes its renewals for granted and acts on after its time.
    RenewalsTakenForGranted in Pauses,
    /// The controllers take a write of which they know nothing for one that did not happen, and plan without it.
    UnknownTakenForFailed in Late,
    /// The controllers do not see quotas.
    QuotaForgotten in Calm,
    /// The controllers do not see that tasks end: what they held is not offered again.
    EndsForgotten in Calm,
    /// The controllers do not see refusals: what was declined is offered again at once.
    RefusalsForgotten in Calm,
    /// The controllers see only the first change of a revision.
    RevisionsTorn in Calm,
    /// A framework tries an accept again without an idempotency key: a task is launched twice.
    RetriedWithoutKey in Answers,
    /// An agent takes a task that a list forgot for one that does not exist, and kills it.
    KilledOnCacheMiss in Machines,
    /// A task that is run again uses the container of its first attempt again.
    AttemptReused in Calm,
    /// A task counts as ended as soon as it was told to stop.
    EndedTooSoon in Calm,
    /// A task is let go although its containers are still there.
    LetGoTooSoon in Calm,
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Mutant, String> {
        let known = MUTANTS.iter().find(|mutant| format!("{mutant:?}") == text);
        known
            .copied()
            .ok_or_else(|| format!("no mutant {text}; there are {MUTANTS:?}"))
    }
}
