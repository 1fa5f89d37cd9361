//! Deletes events that are old, and the oldest when there are too many.

use jiff::Timestamp;
use muster_api::duration::Span;
use std::time::Duration;

use crate::Config;
use crate::runtime::{Action, Change, Context, Kind, Plan, Planner, View};

/// So many events are kept at most: about 10 MiB of memory.
const KEPT_MAX: usize = 10_000;

/// So many are deleted in one pass.
const DELETES_MAX: usize = 64;

/// Deletes old events.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    ttl: Span,
}

impl Events {
    /// As configured.
    pub fn new(config: &Config) -> Events {
        Events { ttl: config.event_ttl }
    }
}

impl Planner for Events {
    const NAME: &'static str = "events";
    type Key = ();
    /// Nobody waits for it.
    const COALESCE: Duration = Duration::from_secs(5);

    fn keys(&self, change: &Change, _: &View) -> Vec<()> {
        let added = change.kind() == Some(Kind::Event) && change.old.is_none();
        if added { vec![()] } else { Vec::new() }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let ends = |created: Timestamp| created.checked_add(self.ttl.signed()).unwrap_or(Timestamp::MAX);
        let surplus = view.events.len().saturating_sub(KEPT_MAX);
        for (index, (created, id, mark)) in view.events_by_age().enumerate() {
            if index >= surplus && ends(created) > context.now {
                plan.wake_by(ends(created));
                return plan;
            }
            if index >= DELETES_MAX {
                plan.wake_by(context.now);
                return plan;
            }
            plan.write(Action::delete(Kind::Event, id, &mark.version.uid));
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn old_events_are_deleted_and_the_next_is_waited_for() {
        let view = Cluster::default().event("old", -3600).event("young", -10).view();
        let plan = Events::new(&Config::default()).plan(&(), &view, &Context::at(now()));
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        assert!(
            matches!(&write.action, Action::Delete { id, .. } if &*id.name == "old"),
            "{write:?}"
        );
        assert_eq!(plan.wake, Some(at(3590)));
    }

    #[test]
    fn many_old_events_are_deleted_a_part_at_a_time() {
        let mut cluster = Cluster::default();
        for index in 0..DELETES_MAX + 1 {
            cluster = cluster.event(&format!("e{index}"), -4000);
        }
        let plan = Events::new(&Config::default()).plan(&(), &cluster.view(), &Context::at(now()));
        assert_eq!((plan.writes.len(), plan.wake), (DELETES_MAX, Some(now())));
    }
}
