//! Planted bugs. Each must be caught within a few seeds, or the simulation proves nothing.
//!
//! Mutants live at the seams, so that no production code knows of them: in front of the store ([`store`]), compares are taken out of
//! transactions and watches are believed; in front of a process ([`traffic`]), requests and answers are changed as a process with the bug
//! would write and read them; in front of the machine ([`runtime`]), containers are named and shown as an agent with the bug would.
//! Each has the kind of trouble in which it shows soonest, and what is then said of it.

pub mod runtime;
pub mod store;
pub mod traffic;

use std::str::FromStr;

use crate::profile::Profile;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])* $name:ident in $profile:ident shows $phrase:literal,)*) => {
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

            /// What the violation says by which it is known: a run that fails for another reason has not caught it.
            pub fn shows(self) -> &'static str {
                match self {
                    $(Mutant::$name => $phrase,)*
                }
            }
        }
    };
}

mutants! {
    /// Fences are not compared: a deposed leader's late write lands.
    DropFence in Pauses shows "but the lease was at",
    /// The ledger is not compared: offers are made from a view that missed something.
    DropLedger in Late shows "holds a device or port",
    /// The end of a task does not touch the ledger.
    LedgerNotTouched in Calm shows "its ledger was not touched",
    /// Offers are not compared when they are accepted: the same offer is spent twice.
    AcceptTwice in Mixed shows "which was not open",
    /// An accept takes the presence of an agent for given once it was present: tasks are bound to an agent that is lost.
    AcceptOfTheLost in Absences shows "which is not present",
    /// Tasks are not compared when their status is written: a late report brings a terminal task back.
    TerminalResurrected in Stragglers shows " became ",
    /// An agent's session is not compared when it writes a status: a superseded process speaks.
    SessionNotCompared in Successions shows "but the lease was at",
    /// A lease is taken without a look at whether somebody holds it: two lead.
    LeaseNotExclusive in Calm shows "was changed in place",
    /// A write is acknowledged before it is committed.
    AcknowledgedTooSoon in Calm shows "was acknowledged at",
    /// Deletion does not wait for finalizers.
    DeletedAtOnce in Calm shows "while its agent still has it",
    /// The same device is given to every task of an agent.
    DevicesTwice in Calm shows "holds a device or port",
    /// The hub takes a gap in its watch for silence.
    GapsIgnored in Lies shows "which is not so",
    /// The hub resumes its watch from now, not from where it was.
    ResumedFromNow in Partitions shows "which is not so",
    /// Agents know tasks by name instead of uid: a new task of an old name is taken for the old one.
    NameForUid in Calm shows "started again",
    /// Agents report without identity: a late report about an old task is taken for one about the new.
    ReportedByName in Stragglers shows "came after",
    /// A former leader gives back a lease that is its successor's.
    SuccessorsLeaseReleased in Pauses shows "was ended by",
    /// A leader takes its renewals for granted and acts on after its time.
    RenewalsTakenForGranted in Pauses shows "after the last renewal",
    /// The controllers take a write of which they know nothing for one that did not happen, and plan without it.
    UnknownTakenForFailed in Late shows "more than its quota",
    /// The controllers do not see quotas.
    QuotaForgotten in Calm shows "more than its quota",
    /// The controllers do not see that tasks end: what they held is not offered again.
    EndsForgotten in Calm shows "although there is room",
    /// The controllers do not see refusals: what was declined is offered again at once.
    RefusalsForgotten in Calm shows "was refused and says so still",
    /// The controllers see only the first change of a revision.
    RevisionsTorn in Calm shows "more than its quota",
    /// A framework tries an accept again without an idempotency key: a task is launched twice.
    RetriedWithoutKey in Answers shows "had made task",
    /// An agent takes a task that a list forgot for one that does not exist, and kills it.
    KilledOnCacheMiss in Partitions shows "nobody asked for its end",
    /// A task that is run again uses the container of its first attempt again.
    AttemptReused in Calm shows "started again",
    /// A task counts as ended as soon as it was told to stop.
    EndedTooSoon in Calm shows "although its container",
    /// A task is let go although its containers are still there.
    LetGoTooSoon in Calm shows "let go although",
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
