//! The brake: when many agents are lost at once, it is more likely that something between them and here broke than that they all did,
//! and what is done about a lost agent would then do more harm than its loss. Pure, and derived from the objects, so that a new leader
//! brakes as its predecessor did.

use jiff::{SignedDuration, Timestamp};
use muster_api::v1::Agent;

/// Agents lost within such a time were lost together.
const TOGETHER: SignedDuration = SignedDuration::from_secs(60);

/// Of how many agents one may be lost: a tenth may be lost together.
const SHARE: usize = 10;

/// Many agents were lost together and are lost still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brake {
    /// So many, within a minute.
    pub(crate) lost: usize,
    /// Of so many.
    pub(crate) total: usize,
}

/// Whether the brake is on: more than a tenth of all agents, and more than one, were lost within a minute and are not back. Those that an
/// operator has looked at do not count.
pub(crate) fn brake<'a>(agents: impl Iterator<Item = &'a Agent>) -> Option<Brake> {
    let mut total = 0;
    let mut times: Vec<Timestamp> = agents
        .inspect(|_| total += 1)
        .filter(|agent| !is_looked_at(agent))
        .filter_map(Agent::lost_since)
        .collect();
    times.sort_unstable();
    let lost = (0..times.len())
        .map(|first| times[first..].partition_point(|time| time.duration_since(times[first]) <= TOGETHER));
    let lost = lost.max().unwrap_or(0);
    (lost > (total / SHARE).max(1)).then_some(Brake { lost, total })
}

/// Whether an operator has said that this loss is real: the machine is off, or the brake is released for it. What was said before the loss
/// is about another one.
pub(crate) fn is_looked_at(agent: &Agent) -> bool {
    let released = agent.spec.brake_released_at.as_ref();
    let released = released.is_some_and(|said| agent.lost_since().is_some_and(|since| said.0 >= since));
    released || agent.is_powered_off()
}

#[cfg(test)]
mod tests {
    use muster_api::Time;
    use muster_api::v1::{AgentSpec, AgentStatus, Reachability};

    use super::super::testing::at;
    use super::*;

    /// `total` agents, of which these were lost after so many seconds.
    fn agents(total: usize, lost: &[i64]) -> Vec<Agent> {
        let agent = |index: usize| {
            let since = lost.get(index).map(|seconds| at(*seconds));
            let mut agent = Agent::new(&format!("a{index}"), AgentSpec::default());
            agent.status = Some(AgentStatus {
                reachability: since.map_or(Reachability::Reachable, |_| Reachability::Unknown),
                reachability_since: since.map(Time),
                ..AgentStatus::default()
            });
            agent
        };
        (0..total).map(agent).collect()
    }

    #[track_caller]
    fn check(total: usize, lost: &[i64], expect: Option<usize>) {
        let agents = agents(total, lost);
        assert_eq!(brake(agents.iter()).map(|brake| brake.lost), expect, "{total} {lost:?}");
    }

    #[test]
    fn more_than_a_tenth_and_more_than_one_within_a_minute_brake() {
        check(0, &[], None);
        check(1, &[0], None);
        check(2, &[0], None);
        check(2, &[0, 0], Some(2));
        check(3, &[0, 60], Some(2));
        check(3, &[0, 61], None);
        check(20, &[0, 0], None);
        check(20, &[0, 0, 0], Some(3));
        check(39, &[0, 10, 20], None);
        check(39, &[0, 10, 20, 30], Some(4));
    }

    #[test]
    fn losses_one_after_another_do_not_add_up() {
        let slowly: Vec<i64> = (0..20).map(|index| index * 61).collect();
        check(20, &slowly, None);
        let mut then_many = slowly.clone();
        then_many.extend([5000, 5010, 5020, 5030, 5040]);
        check(40, &then_many, Some(5));
    }

    #[test]
    fn what_an_operator_has_looked_at_since_does_not_count() {
        let mut agents = agents(4, &[0, 0, 0]);
        agents[0].spec.brake_released_at = Some(Time(at(-1)));
        assert!(
            brake(agents.iter()).is_some_and(|brake| brake.lost == 3),
            "that was another loss"
        );
        agents[0].spec.brake_released_at = Some(Time(at(0)));
        assert!(brake(agents.iter()).is_some_and(|brake| brake.lost == 2));
        agents[1].spec.powered_off_at = Some(Time(at(5)));
        assert_eq!(brake(agents.iter()), None);
    }
}
