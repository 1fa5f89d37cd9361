//! The table of task phases: what may follow what, and who may say so.
//!
//! A phase is what the agent last proved and only moves forward. Whether the agent can be reached is not a phase. The table
//! is an exhaustive `match`; the API server enforces it on every write, and the drawing in the documentation is made from it.
//! (The states are those of Mesos; `TASK_LOST`, `TASK_UNREACHABLE` and `TASK_UNKNOWN` have no place here because
//! reachability is a field of its own.)

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Waits for an offer.
    #[default]
    Pending,
    /// Bound to an agent by an accepted offer; the agent has not taken it up yet.
    Staging,
    /// The agent prepares it.
    Starting,
    /// Its command runs, or waits to be run again.
    Running,
    /// It is being stopped on request.
    Killing,
    /// Ended by itself, with exit code 0.
    Finished,
    /// Ended by itself, otherwise than with exit code 0, or hit a limit.
    Failed,
    /// Ended on request.
    Killed,
    /// Its description cannot be run anywhere; trying again is useless.
    Error,
    /// The agent never started it; trying again is safe.
    Dropped,
    /// It was running and is proven not to run any more; how it ended is not known.
    Gone,
}

/// What happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// An offer was accepted for it.
    Accept,
    /// Its description turned out to be impossible.
    Refuse,
    /// It was cancelled before it was bound.
    Cancel,
    /// The agent took it up.
    Prepare,
    /// Its command runs.
    Start,
    /// The agent began to stop it.
    Kill,
    /// It ended with exit code 0.
    Finish,
    /// It ended otherwise.
    Fail,
    /// It ended after it was asked to.
    Stop,
    /// The agent let go of it without having started it.
    Drop,
    /// It is proven not to run any more.
    Lose,
}

/// Who may say that an event happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writer {
    /// The API server, in the transaction that accepts an offer.
    Accept,
    /// The agent that the task is bound to.
    Agent,
    /// The leading controllers, fenced.
    Controllers,
}

/// All phases, in order.
pub const PHASES: [Phase; 11] = [
    Phase::Pending,
    Phase::Staging,
    Phase::Starting,
    Phase::Running,
    Phase::Killing,
    Phase::Finished,
    Phase::Failed,
    Phase::Killed,
    Phase::Error,
    Phase::Dropped,
    Phase::Gone,
];

/// All events.
pub const EVENTS: [Event; 11] = [
    Event::Accept,
    Event::Refuse,
    Event::Cancel,
    Event::Prepare,
    Event::Start,
    Event::Kill,
    Event::Finish,
    Event::Fail,
    Event::Stop,
    Event::Drop,
    Event::Lose,
];

impl Phase {
    /// Whether the task has ended. Nothing follows a terminal phase.
    pub const fn is_terminal(self) -> bool {
        match self {
            Phase::Pending | Phase::Staging | Phase::Starting | Phase::Running | Phase::Killing => false,
            Phase::Finished | Phase::Failed | Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone => true,
        }
    }

    /// Whether the task holds resources of an agent.
    pub const fn holds_resources(self) -> bool {
        match self {
            Phase::Staging | Phase::Starting | Phase::Running | Phase::Killing => true,
            Phase::Pending => false,
            Phase::Finished | Phase::Failed | Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone => false,
        }
    }

    /// How far: rises with every event.
    pub const fn rank(self) -> u8 {
        match self {
            Phase::Pending => 0,
            Phase::Staging => 10,
            Phase::Starting => 20,
            Phase::Running => 30,
            Phase::Killing => 40,
            Phase::Finished | Phase::Failed | Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone => 100,
        }
    }

    /// The phase after `event`; `None` when it cannot happen now.
    pub const fn next(self, event: Event) -> Option<Phase> {
        match (self, event) {
            (Phase::Pending, Event::Accept) => Some(Phase::Staging),
            (Phase::Pending, Event::Refuse) => Some(Phase::Error),
            (Phase::Pending, Event::Cancel) => Some(Phase::Killed),
            (
                Phase::Pending,
                Event::Prepare
                | Event::Start
                | Event::Kill
                | Event::Finish
                | Event::Fail
                | Event::Stop
                | Event::Drop
                | Event::Lose,
            ) => None,

            (Phase::Staging, Event::Prepare) => Some(Phase::Starting),
            (Phase::Staging, Event::Kill) => Some(Phase::Killing),
            (Phase::Staging, Event::Refuse) => Some(Phase::Error),
            (Phase::Staging, Event::Drop) => Some(Phase::Dropped),
            (Phase::Staging, Event::Stop) => Some(Phase::Killed),
            (Phase::Staging, Event::Lose) => Some(Phase::Gone),
            (Phase::Staging, Event::Accept | Event::Cancel | Event::Start | Event::Finish | Event::Fail) => None,

            (Phase::Starting, Event::Start) => Some(Phase::Running),
            (Phase::Starting, Event::Kill) => Some(Phase::Killing),
            (Phase::Starting, Event::Finish) => Some(Phase::Finished),
            (Phase::Starting, Event::Fail) => Some(Phase::Failed),
            (Phase::Starting, Event::Refuse) => Some(Phase::Error),
            (Phase::Starting, Event::Drop) => Some(Phase::Dropped),
            (Phase::Starting, Event::Stop) => Some(Phase::Killed),
            (Phase::Starting, Event::Lose) => Some(Phase::Gone),
            (Phase::Starting, Event::Accept | Event::Cancel | Event::Prepare) => None,

            (Phase::Running, Event::Kill) => Some(Phase::Killing),
            (Phase::Running, Event::Finish) => Some(Phase::Finished),
            (Phase::Running, Event::Fail) => Some(Phase::Failed),
            (Phase::Running, Event::Stop) => Some(Phase::Killed),
            (Phase::Running, Event::Lose) => Some(Phase::Gone),
            (
                Phase::Running,
                Event::Accept | Event::Cancel | Event::Prepare | Event::Start | Event::Refuse | Event::Drop,
            ) => None,

            (Phase::Killing, Event::Finish) => Some(Phase::Finished),
            (Phase::Killing, Event::Fail) => Some(Phase::Failed),
            (Phase::Killing, Event::Stop) => Some(Phase::Killed),
            (Phase::Killing, Event::Lose) => Some(Phase::Gone),
            (
                Phase::Killing,
                Event::Accept
                | Event::Cancel
                | Event::Prepare
                | Event::Start
                | Event::Kill
                | Event::Refuse
                | Event::Drop,
            ) => None,

            (
                Phase::Finished | Phase::Failed | Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone,
                Event::Accept
                | Event::Refuse
                | Event::Cancel
                | Event::Prepare
                | Event::Start
                | Event::Kill
                | Event::Finish
                | Event::Fail
                | Event::Stop
                | Event::Drop
                | Event::Lose,
            ) => None,
        }
    }

    /// Who may say that `event` happened to a task in this phase; empty where it cannot happen.
    pub const fn writers(self, event: Event) -> &'static [Writer] {
        if self.next(event).is_none() {
            return &[];
        }
        match event {
            Event::Accept => &[Writer::Accept],
            Event::Refuse => match self {
                Phase::Pending => &[Writer::Accept, Writer::Controllers],
                _ => &[Writer::Agent],
            },
            Event::Cancel | Event::Lose => &[Writer::Controllers],
            Event::Prepare | Event::Start | Event::Kill | Event::Finish | Event::Fail | Event::Stop | Event::Drop => {
                &[Writer::Agent]
            }
        }
    }

    /// Whether `writer` may move a task from this phase to `to`; staying is always allowed.
    ///
    /// A level-triggered writer may have missed phases between: a task that exited before its agent said Running goes from
    /// Staging to Finished in one write. So every path of events that `writer` may all say is allowed.
    pub fn may_move(self, to: Phase, writer: Writer) -> bool {
        if self == to {
            return true;
        }
        EVENTS.into_iter().any(|event| {
            let allowed = self.writers(event).contains(&writer);
            self.next(event)
                .is_some_and(|next| allowed && next.may_move(to, writer))
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The table as a drawing, in Mermaid's language.
pub fn drawing() -> String {
    let mut lines = vec!["stateDiagram-v2".to_owned(), "    [*] --> Pending".to_owned()];
    for phase in PHASES {
        for event in EVENTS {
            if let Some(next) = phase.next(event) {
                let writers: Vec<String> = phase
                    .writers(event)
                    .iter()
                    .map(|writer| format!("{writer:?}"))
                    .collect();
                lines.push(format!("    {phase} --> {next}: {event:?} ({})", writers.join(", ")));
            }
        }
    }
    lines.extend(
        PHASES
            .into_iter()
            .filter(|phase| phase.is_terminal())
            .map(|phase| format!("    {phase} --> [*]")),
    );
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WRITERS: [Writer; 3] = [Writer::Accept, Writer::Agent, Writer::Controllers];

    #[test]
    fn the_table_is_what_the_drawing_shows() {
        insta::assert_snapshot!(drawing());
    }

    #[test]
    fn rank_rises_with_every_event() {
        for (phase, event) in PHASES.into_iter().flat_map(|phase| EVENTS.map(|event| (phase, event))) {
            if let Some(next) = phase.next(event) {
                assert!(next.rank() > phase.rank(), "{phase} -{event:?}-> {next}");
                assert!(!phase.writers(event).is_empty(), "nobody may say {event:?} in {phase}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_terminal_phase() {
        for phase in PHASES.into_iter().filter(|phase| phase.is_terminal()) {
            for to in PHASES.into_iter().filter(|to| *to != phase) {
                assert!(
                    WRITERS.into_iter().all(|writer| !phase.may_move(to, writer)),
                    "{phase} to {to}"
                );
            }
        }
    }

    #[test]
    fn only_accepting_an_offer_binds_a_task() {
        for to in PHASES.into_iter().filter(|to| to.holds_resources()) {
            assert_eq!(
                Phase::Pending.may_move(to, Writer::Accept),
                to == Phase::Staging,
                "{to}"
            );
            assert!(!Phase::Pending.may_move(to, Writer::Agent), "{to}");
            assert!(!Phase::Pending.may_move(to, Writer::Controllers), "{to}");
        }
    }

    #[test]
    fn an_agent_may_skip_phases_that_it_missed_but_never_go_back() {
        assert!(Phase::Staging.may_move(Phase::Finished, Writer::Agent));
        assert!(!Phase::Running.may_move(Phase::Starting, Writer::Agent));
        assert!(!Phase::Running.may_move(Phase::Dropped, Writer::Agent));
        assert!(!Phase::Staging.may_move(Phase::Finished, Writer::Controllers));
    }

    proptest! {
        #[test]
        fn every_history_moves_forward_and_ends(events in prop::collection::vec(0usize..EVENTS.len(), 0..200)) {
            let mut phase = Phase::Pending;
            let mut moves = 0;
            for event in events {
                if let Some(next) = phase.next(EVENTS[event]) {
                    prop_assert!(next.rank() > phase.rank());
                    prop_assert!(!phase.is_terminal());
                    phase = next;
                    moves += 1;
                }
            }
            prop_assert!(moves <= 5);
        }
    }
}
