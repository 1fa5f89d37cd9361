//! The built-in scheduler: binds the pending tasks of built-in frameworks to their open offers.
//!
//! It uses what every framework has, offers and accept. Tasks go in order of priority and age to the first offer that has room
//! and matches; all that goes into one offer is one accept. An offer that none of the framework's tasks fits in is declined for
//! a while. The API server checks everything again and chooses devices and ports by the same rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use muster_api::device::Device;
use muster_api::duration::Span;
use muster_api::resources::Bundle;
use muster_api::task_state::Phase;
use muster_api::v1::{Offer, OfferPhase, Scheduler, Task};
use muster_api::wire::{AcceptRequest, DeclineRequest};

use super::queue_order;
use super::snapshot::{is_expired, requirement, wants_placement};
use crate::Config;
use crate::runtime::{Action, Change, Context, Id, Kind, Note, Plan, Planner, Severity, View, Write};

/// So many tasks go into one accept: the API server's bound.
const TASKS_MAX: usize = 100;

/// Binds pending tasks of built-in frameworks.
#[derive(Clone, Debug)]
pub struct Scheduling {
    refuse: Span,
}

impl Scheduling {
    /// As configured.
    pub fn new(config: &Config) -> Scheduling {
        Scheduling { refuse: config.refuse }
    }
}

impl Planner for Scheduling {
    const NAME: &'static str = "scheduling";
    type Key = ();
    const COALESCE: Duration = Duration::ZERO;

    fn keys(&self, change: &Change, _: &View) -> Vec<()> {
        let wakes = match change.kind() {
            Some(Kind::Offer | Kind::Framework) => change.new.is_some(),
            Some(Kind::Task) => change.tasks().any(|task| task.phase() == Phase::Pending),
            _ => false,
        };
        if wakes { vec![()] } else { Vec::new() }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let mut rooms = open_rooms(view, context.now);
        for ((framework, role), rooms) in &mut rooms {
            let tasks = pending(view, framework, role);
            if tasks.is_empty() {
                continue;
            }
            fill(rooms, &tasks, context.failures);
            for room in rooms.iter() {
                plan.writes.extend(self.answer(room, &tasks, context.failures));
            }
        }
        plan
    }
}

impl Scheduling {
    fn answer(&self, room: &Room<'_>, tasks: &[&Arc<Task>], failures: u32) -> Option<Write> {
        let meta = &room.offer.metadata;
        let offer = Id::of(meta);
        if !room.bound.is_empty() {
            let request = AcceptRequest {
                bind: room.bound.iter().map(|task| task.name().to_owned()).collect(),
                // An offer is accepted once; asking again gives the first answer.
                idempotency_key: meta.uid.clone(),
                ..AcceptRequest::default()
            };
            let then = room.bound.iter().map(|task| bound_note(task, room.offer)).collect();
            let action = Action::Accept { offer, request };
            return Some(Write { action, then });
        }
        let whole = Room::new(room.offer);
        let useless = failures == 0 && !tasks.iter().any(|task| whole.place(task).is_some());
        let request = DeclineRequest {
            refuse: Some(self.refuse),
        };
        useless.then(|| Action::Decline { offer, request }.into())
    }
}

fn bound_note(task: &Task, offer: &Offer) -> Note {
    let name = offer.metadata.name.as_deref().unwrap_or_default();
    let message = format!("bound to agent {} by offer {name}", offer.spec.agent);
    Note::about(Kind::Task, &task.metadata, Severity::Normal, "Bound", message)
}

/// The open offers of built-in frameworks, by framework and role.
fn open_rooms(view: &View, now: Timestamp) -> BTreeMap<(Id, String), Vec<Room<'_>>> {
    let mut rooms: BTreeMap<(Id, String), Vec<Room<'_>>> = BTreeMap::new();
    for (id, offer) in &view.offers {
        if offer.phase() != OfferPhase::Open || is_expired(offer, now) {
            continue;
        }
        let framework = Id::new(id.namespace.clone(), offer.spec.framework.as_str());
        let built_in = view.frameworks.get(&framework).is_some_and(|framework| {
            framework.spec.scheduler == Scheduler::BuiltIn && framework.metadata.deletion_timestamp.is_none()
        });
        if built_in {
            rooms
                .entry((framework, offer.spec.role.clone()))
                .or_default()
                .push(Room::new(offer));
        }
    }
    rooms
}

fn pending<'a>(view: &'a View, framework: &Id, role: &str) -> Vec<&'a Arc<Task>> {
    let wanted = |task: &&Arc<Task>| task.role() == role && wants_placement(task);
    let mut tasks: Vec<&Arc<Task>> = view.pending(framework).filter(wanted).collect();
    tasks.sort_by_key(|task| queue_order(task));
    tasks
}

/// An offer, and what is planned into it.
struct Room<'a> {
    offer: &'a Offer,
    left: Bundle,
    bound: Vec<&'a Arc<Task>>,
}

/// Puts tasks into offers, first fit.
///
/// After a refusal only one task goes out at a time, another each time, so that a task that the API server refuses for a
/// reason that is not known here never keeps the others waiting.
fn fill<'a>(rooms: &mut [Room<'a>], tasks: &[&'a Arc<Task>], failures: u32) {
    let skip = (failures as usize) % tasks.len().max(1);
    let order = tasks.iter().cycle().skip(skip).take(tasks.len());
    let most = if failures == 0 { usize::MAX } else { 1 };
    let mut placed = 0;
    let mut hopeless: Option<&Task> = None;
    for task in order {
        if placed >= most {
            return;
        }
        // Equal tasks come in rows; where the last one found no room, the next one finds none.
        if hopeless.is_some_and(|last| same_shape(last, task)) {
            continue;
        }
        let found = rooms.iter_mut().find_map(|room| {
            let left = if room.bound.len() < TASKS_MAX {
                room.place(task)?
            } else {
                return None;
            };
            Some((room, left))
        });
        match found {
            Some((room, left)) => {
                room.left = left;
                room.bound.push(task);
                placed += 1;
            }
            None => hopeless = Some(task),
        }
    }
}

fn same_shape(a: &Task, b: &Task) -> bool {
    a.spec.resources == b.spec.resources && a.spec.gpu == b.spec.gpu && a.spec.constraints == b.spec.constraints
}

impl<'a> Room<'a> {
    fn new(offer: &'a Offer) -> Room<'a> {
        Room {
            offer,
            left: offer.bundle(),
            bound: Vec::new(),
        }
    }

    /// What is left after the task; `None`: it does not fit.
    fn place(&self, task: &Task) -> Option<Bundle> {
        let attributes = &self.offer.spec.attributes;
        let matches = |attribute: &str| match attributes.get(attribute) {
            None if attribute == "hostname" => Some(self.offer.spec.agent.as_str()),
            value => value.map(String::as_str),
        };
        if !task
            .spec
            .constraints
            .iter()
            .all(|constraint| constraint.holds(matches(&constraint.attribute)))
        {
            return None;
        }
        let resources = &task.spec.resources;
        let taken = Bundle {
            cpus: resources.cpus,
            memory: resources.memory,
            disk: resources.disk,
            ports: resources.ports.choose(&self.left.ports)?,
            devices: self.devices(task)?,
        };
        self.left.checked_sub(&taken)
    }

    /// The first devices by UUID that do.
    fn devices(&self, task: &Task) -> Option<BTreeSet<String>> {
        let count = task.spec.resources.gpus.units()? as usize;
        if count == 0 {
            return Some(BTreeSet::new());
        }
        let requirement = requirement(task)?;
        let free = |device: &&Device| self.left.devices.contains(&device.uuid);
        let fitting = self
            .offer
            .spec
            .devices
            .iter()
            .filter(free)
            .filter(|device| requirement.mismatch(device).is_none());
        let uuids: BTreeSet<String> = fitting.map(|device| device.uuid.clone()).collect();
        (uuids.len() >= count).then(|| uuids.into_iter().take(count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// What each offer is answered with: the names of the tasks, or `declined`.
    fn answers(view: &View, failures: u32) -> Vec<(String, Vec<String>)> {
        let context = Context {
            failures,
            ..Context::at(now())
        };
        let plan = Scheduling::new(&Config::default()).plan(&(), view, &context);
        let answer = |write: Write| match write.action {
            Action::Accept { offer, request } => (offer.name.to_string(), request.bind),
            Action::Decline { offer, .. } => (offer.name.to_string(), vec!["declined".to_owned()]),
            other => panic!("unexpected {other:?}"),
        };
        plan.writes.into_iter().map(answer).collect()
    }

    #[track_caller]
    fn check(cluster: Cluster, expect: &[(&str, &[&str])]) {
        let expect: Vec<(String, Vec<String>)> = expect
            .iter()
            .map(|(offer, tasks)| {
                (
                    (*offer).to_owned(),
                    tasks.iter().map(|task| (*task).to_owned()).collect(),
                )
            })
            .collect();
        assert_eq!(answers(&cluster.view(), 0), expect);
    }

    #[test]
    fn tasks_go_in_the_order_of_priority_and_age() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("old", |task| task.created(1).cpus(1))
            .task("young", |task| task.created(2).cpus(1))
            .task("urgent", |task| task.created(3).cpus(1).priority(5))
            .offer("o1", "a1", 2);
        check(cluster, &[("o1", &["urgent", "old"])]);
    }

    #[test]
    fn what_does_not_fit_does_not_keep_others_out() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("big", |task| task.created(1).cpus(3))
            .task("small", |task| task.created(2).cpus(1))
            .offer("o1", "a1", 2);
        check(cluster, &[("o1", &["small"])]);
    }

    #[test]
    fn an_offer_that_nothing_fits_in_is_declined() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("big", |task| task.cpus(3))
            .offer("o1", "a1", 2);
        check(cluster, &[("o1", &["declined"])]);
    }

    #[test]
    fn an_offer_that_is_not_needed_is_left_to_the_allocator() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1))
            .offer("o1", "a1", 2)
            .offer("o2", "a1", 2);
        check(cluster, &[("o1", &["t1"])]);
        check(Cluster::default().agent("a1", 4).offer("o1", "a1", 2), &[]);
    }

    #[test]
    fn constraints_keep_a_task_to_its_agents() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .agent("a2", 4)
            .task("t1", |task| task.cpus(1).on("hostname", "a2"))
            .task("t2", |task| task.cpus(1).on("zone", "z"))
            .offer("o1", "a1", 2)
            .offer("o2", "a2", 2);
        check(cluster, &[("o1", &["declined"]), ("o2", &["t1"])]);
    }

    #[test]
    fn other_roles_and_killed_tasks_are_not_bound() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("other", |task| task.cpus(1).role("other"))
            .task("killed", |task| task.cpus(1).killed())
            .offer("o1", "a1", 2);
        check(cluster, &[]);
    }

    #[test]
    fn offers_of_external_frameworks_and_expired_ones_are_left_alone() {
        let external = Cluster::default()
            .external("default")
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1))
            .offer("o1", "a1", 2);
        check(external, &[]);
        let expired = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1))
            .expired_offer("o1", "a1", 2);
        check(expired, &[]);
    }

    #[test]
    fn no_more_goes_into_one_accept_than_the_server_takes() {
        let mut cluster = Cluster::default().agent("a1", 1000);
        for index in 0..150 {
            cluster = cluster.task(&format!("t{index:03}"), |task| task.cpus(1));
        }
        let answers = answers(&cluster.offer("o1", "a1", 1000).view(), 0);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].1.len(), 100);
        assert_eq!(answers[0].1[0], "t000");
    }

    #[test]
    fn after_a_refusal_another_task_is_tried_each_time() {
        let mut cluster = Cluster::default().agent("a1", 9);
        for index in 0..3 {
            cluster = cluster.task(&format!("t{index}"), |task| task.cpus(1));
        }
        let view = cluster.offer("o1", "a1", 9).view();
        let tried: Vec<String> = (1..=3)
            .map(|failures| answers(&view, failures)[0].1.join(","))
            .collect();
        assert_eq!(tried, ["t1", "t2", "t0"]);
    }

    #[test]
    fn devices_and_ports_are_given_once() {
        let cluster = Cluster::default()
            .gpu_agent("a1", 8, 2)
            .task("g1", |task| task.created(1).cpus(1).gpus(1))
            .task("g2", |task| task.created(2).cpus(1).gpus(1))
            .task("g3", |task| task.created(3).cpus(1).gpus(1))
            .whole_offer("o1", "a1");
        check(cluster, &[("o1", &["g1", "g2"])]);
    }
}
