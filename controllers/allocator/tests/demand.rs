//! The rules one by one: demand, filters, devices, ports, rescinds, and what the report says.

mod cluster;

use cluster::{Cluster, amounts, everything, gpus, id, lines, quota_amounts, task};
use muster_allocator::{Allocation, Availability, Filter, PendingTask, RescindReason, Verdict};
use muster_api::device::{DeviceHealth, GpuSelector};
use muster_api::ports::{PortRequest, PortSet};
use muster_api::resources::Amounts;
use muster_api::topology::{Path, Topology};
use muster_api::v1::{Constraint, Operator, QuotaAmounts};

fn gpu_task(name: &str, gpus: u32) -> PendingTask {
    task(
        name,
        Amounts {
            gpus,
            ..amounts("1", 64)
        },
    )
}

fn verdicts(cluster: &Cluster) -> Vec<(String, Verdict, String)> {
    let Allocation { report, .. } = cluster.decide();
    let verdicts = report.verdicts(&cluster.snapshot);
    verdicts
        .into_iter()
        .map(|task| (task.task.to_owned(), task.verdict, task.message.to_string()))
        .collect()
}

#[track_caller]
fn check_verdict(cluster: &Cluster, verdict: Verdict, message: &str) {
    let verdicts = verdicts(cluster);
    let last = verdicts.last().expect("a pending task");
    assert_eq!((last.1, last.2.as_str()), (verdict, message));
}

#[test]
fn no_demand_no_offers() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants("fw1", "one", Vec::new());
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
}

#[test]
fn offers_stop_when_they_hold_all_pending_tasks() {
    let mut cluster = Cluster::new();
    for agent in ["a1", "a2", "a3", "a4"] {
        cluster.agent(agent, "4", 4096);
    }
    let tasks = (0..6).map(|index| task(&format!("t{index}"), amounts("1.5", 512)));
    cluster.wants("fw1", "one", tasks.collect());
    assert_eq!(
        lines(&cluster.pass()),
        ["a1>fw1 4/4096", "a2>fw1 4/4096", "a3>fw1 4/4096"]
    );
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
}

#[test]
fn a_task_that_fits_nowhere_makes_no_offer() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants("fw1", "one", vec![task("huge", amounts("5", 64))]);
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
    check_verdict(
        &cluster,
        Verdict::ExceedsEveryAgent,
        "no agent could ever take it: agent a1 comes closest: needs 5 cpus, has 4; change the task or add such an agent",
    );
}

#[test]
fn a_declared_demand_is_bounded_by_its_number_of_offers_and_its_minimum() {
    let mut cluster = Cluster::new();
    for agent in ["a1", "a2", "a3"] {
        cluster.agent(agent, "4", 4096);
    }
    cluster.agent("a0", "1", 4096);
    let declared = cluster.wants_all("fw1", "one").declared.as_mut().expect("declared");
    (declared.max_offers, declared.minimum) = (2, amounts("2", 64));
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096", "a2>fw1 4/4096"]);
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
}

#[test]
fn constraints_choose_the_agents() {
    let mut cluster = Cluster::new();
    for (agent, zone) in [("a1", "a"), ("a2", "b")] {
        cluster
            .agent(agent, "4", 4096)
            .attributes
            .insert("zone".into(), zone.into());
    }
    let zone = |values: &[&str]| Constraint {
        attribute: "zone".into(),
        operator: Operator::In,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    let hostname = Constraint {
        attribute: "hostname".into(),
        operator: Operator::In,
        values: vec!["a2".into()],
    };
    let constrained = |constraint| PendingTask {
        constraints: vec![constraint],
        ..task("t1", amounts("1", 64))
    };
    cluster.wants("fw1", "one", vec![constrained(zone(&["b"]))]);
    assert_eq!(lines(&cluster.pass()), ["a2>fw1 4/4096"]);
    cluster.answer(|_| None);
    cluster.demand("fw1").tasks = vec![constrained(hostname)];
    assert_eq!(lines(&cluster.pass()), ["a2>fw1 4/4096"]);
    cluster.demand("fw1").tasks = vec![constrained(zone(&["c", "d"]))];
    check_verdict(
        &cluster,
        Verdict::ExceedsEveryAgent,
        "no agent could ever take it: agent a1 comes closest: wants zone in c|d, zone is a; change the task or add such an agent",
    );
}

#[test]
fn a_declined_agent_stays_away_until_the_filter_expires_or_more_is_free() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants("fw1", "one", vec![task("t1", amounts("1", 64))]);
    let filter = Filter {
        framework: id("fw1"),
        role: "one".into(),
        agent: "a1".into(),
        refused: amounts("4", 4096),
        until_ms: 5000,
    };
    cluster.snapshot.filters.push(filter);
    cluster.snapshot.now_ms = 1500;
    assert_eq!(lines(&cluster.pass()), Vec::<String>::new());
    check_verdict(
        &cluster,
        Verdict::Held,
        "agent a1 has room, but the framework declined such an offer; it is asked again in 3.5s",
    );
    cluster.snapshot.filters[0].refused = amounts("3", 4096);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096"]);
    cluster.answer(|_| None);
    cluster.snapshot.filters[0].refused = amounts("4", 4096);
    cluster.snapshot.now_ms = 5000;
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096"]);
}

#[test]
fn gpus_are_offered_only_to_those_who_ask_for_them() {
    let mut cluster = Cluster::new();
    cluster.gpu_agent("a1", 2, "NVIDIA H100");
    cluster.wants("fw1", "one", vec![task("t1", amounts("1", 64))]);
    let offers = cluster.pass();
    assert_eq!(
        (
            offers.len(),
            offers[0].bundle.devices.len(),
            offers[0].bundle.ports.len()
        ),
        (1, 0, 0)
    );
    cluster.answer(|_| None);
    cluster.demand("fw1").tasks = vec![gpu_task("t2", 1)];
    assert_eq!(cluster.pass()[0].devices.len(), 2);
    cluster.answer(|_| None);
    cluster.demand("fw1").tasks.clear();
    cluster.demand("fw1").declared = Some(everything());
    assert_eq!(cluster.pass()[0].devices.len(), 0);
    cluster.answer(|_| None);
    cluster.demand("fw1").declared.as_mut().expect("declared").gpu = Some(Default::default());
    let offers = cluster.pass();
    assert_eq!((offers[0].devices.len(), offers[0].bundle.ports.len()), (2, 10));
}

#[test]
fn tasks_without_gpus_go_to_agents_without_and_few_gpus_to_agents_with_few() {
    let mut cluster = Cluster::new();
    cluster.gpu_agent("a1", 8, "NVIDIA H100");
    cluster.gpu_agent("a2", 2, "NVIDIA H100");
    cluster.agent("a3", "64", 65_536);
    cluster.wants("cpu", "cpu", vec![task("t1", amounts("1", 64))]);
    cluster.wants("few", "few", vec![gpu_task("t2", 2)]);
    cluster.wants("many", "many", vec![gpu_task("t3", 8)]);
    let offers = cluster.pass();
    let pairs: Vec<_> = offers
        .iter()
        .map(|offer| (offer.agent.as_str(), offer.framework.name.as_str()))
        .collect();
    assert_eq!(pairs, [("a3", "cpu"), ("a2", "few"), ("a1", "many")]);
}

#[test]
fn only_matching_healthy_devices_are_offered() {
    let mut cluster = Cluster::new();
    let agent = cluster.gpu_agent("a1", 4, "NVIDIA A100");
    for index in [1, 2] {
        agent.devices[index].model = "NVIDIA H100".into();
    }
    agent.devices[2].health = DeviceHealth::Faulty;
    let selector = GpuSelector {
        model: Some("H100".into()),
        ..GpuSelector::default()
    };
    let gpu = selector.requirement().expect("selector");
    cluster.wants(
        "fw1",
        "one",
        vec![PendingTask {
            gpu: gpu.clone(),
            ..gpu_task("t1", 1)
        }],
    );
    let offers = cluster.pass();
    assert_eq!(
        offers[0]
            .devices
            .iter()
            .map(|device| device.uuid.as_str())
            .collect::<Vec<_>>(),
        ["GPU-a1-1"]
    );
    cluster.answer(|_| None);
    cluster.demand("fw1").tasks = vec![PendingTask {
        gpu,
        ..gpu_task("t1", 2)
    }];
    check_verdict(
        &cluster,
        Verdict::ExceedsEveryAgent,
        "no agent could ever take it: agent a1 comes closest: too few GPUs match: model NVIDIA A100 does not match h100; \
         change the task or add such an agent",
    );
}

/// A machine of two sockets, whose GPUs are on one switch for each socket.
fn two_switches(cluster: &mut Cluster) {
    let agent = cluster.gpu_agent("a1", 4, "NVIDIA L40S");
    let uuids: Vec<String> = agent.devices.iter().map(|device| device.uuid.clone()).collect();
    for (place, device) in agent.devices.iter_mut().enumerate() {
        let path = |other: usize| {
            if place / 2 == other / 2 {
                Path::Switch
            } else {
                Path::System
            }
        };
        let others = (0..4).filter(|other| *other != place);
        device.links = others.map(|other| (uuids[other].clone(), path(other))).collect();
    }
}

fn close_task(name: &str, gpus: u32) -> PendingTask {
    let selector = GpuSelector {
        topology: Topology::Required,
        ..GpuSelector::default()
    };
    PendingTask {
        gpu: selector.requirement().expect("selector"),
        ..gpu_task(name, gpus)
    }
}

#[test]
fn a_part_of_the_devices_is_a_part_that_belongs_together() {
    let mut cluster = Cluster::new();
    two_switches(&mut cluster);
    cluster.quota("one").limit = QuotaAmounts {
        gpus: gpus(2).gpus,
        ..quota_amounts("64", 65_536)
    };
    cluster.snapshot.agents[0].devices[0].health = DeviceHealth::Suspect;
    cluster.wants("fw1", "one", vec![gpu_task("t1", 2)]);
    let devices = cluster.pass().remove(0).bundle.devices;
    assert_eq!(devices.into_iter().collect::<Vec<_>>(), ["GPU-a1-2", "GPU-a1-3"]);
}

#[test]
fn devices_that_are_required_to_be_close_wait_for_a_close_set_and_say_so() {
    let mut cluster = Cluster::new();
    two_switches(&mut cluster);
    cluster.wants("fw1", "one", vec![close_task("t1", 3)]);
    check_verdict(
        &cluster,
        Verdict::ExceedsEveryAgent,
        "no agent could ever take it: agent a1 comes closest: too few GPUs reach each other over NVLink or PCIe switches alone; \
         change the task or add such an agent",
    );
    cluster.demand("fw1").tasks = vec![close_task("t1", 2), close_task("t2", 2)];
    let offers = cluster.pass();
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].devices.len(), 4, "one offer has room for both");
}

#[test]
fn the_devices_of_an_offer_that_was_cut_are_not_offered_again() {
    let mut cluster = Cluster::new();
    cluster.gpu_agent("a1", 3, "NVIDIA H100");
    let limit = &mut cluster.quota("one").limit;
    (*limit).clone_from(&quota_amounts("4", 4096));
    limit.gpus = gpus(1).gpus;
    for (name, role) in [("fw1", "one"), ("fw2", "two")] {
        cluster.wants(name, role, vec![gpu_task(name, 1)]);
    }
    let offers = cluster.pass();
    let uuids = |index: usize| {
        offers[index]
            .bundle
            .devices
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&offers), ["a1>fw1 4/4096", "a1>fw2 60/61440"]);
    assert_eq!((uuids(0), uuids(1)), (vec!["GPU-a1-0"], vec!["GPU-a1-1", "GPU-a1-2"]));
}

#[test]
fn named_ports_are_counted_once() {
    let mut cluster = Cluster::new();
    for agent in ["a1", "a2"] {
        cluster.agent(agent, "4", 4096).total.ports = PortSet::range(31_000, 31_009);
    }
    let named = |name: &str| PendingTask {
        ports: PortRequest::These(PortSet::range(31_000, 31_000)),
        ..task(name, amounts("1", 64))
    };
    cluster.wants("fw1", "one", vec![named("t1"), named("t2"), named("t3")]);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096", "a2>fw1 4/4096"]);
    let kinds: Vec<Verdict> = verdicts(&cluster).into_iter().map(|(_, verdict, _)| verdict).collect();
    assert_eq!(kinds, [Verdict::Offered, Verdict::Offered, Verdict::Waiting]);
}

fn rescinds(allocation: &Allocation) -> Vec<(&str, &RescindReason)> {
    allocation
        .rescinds
        .iter()
        .map(|rescind| (rescind.agent.as_str(), &rescind.reason))
        .collect()
}

#[test]
fn offers_of_an_unavailable_agent_are_rescinded() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants_all("fw1", "one");
    cluster.pass();
    let why = "the agent is unschedulable".to_owned();
    cluster.agent_named("a1").availability = Availability::Unavailable(why.clone());
    let allocation = cluster.decide();
    assert_eq!(rescinds(&allocation), [("a1", &RescindReason::AgentUnavailable(why))]);
    assert_eq!(allocation.offers, []);
}

#[test]
fn offers_without_demand_are_rescinded_and_given_to_others_at_once() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants("fw1", "one", vec![task("t1", amounts("1", 64))]);
    cluster.wants("fw2", "two", vec![task("t2", amounts("1", 64))]);
    assert_eq!(lines(&cluster.pass()), ["a1>fw1 4/4096"]);
    cluster.demand("fw1").tasks.clear();
    let allocation = cluster.decide();
    assert_eq!(rescinds(&allocation), [("a1", &RescindReason::NoDemand)]);
    assert_eq!(lines(&allocation.offers), ["a1>fw2 4/4096"]);
}

#[test]
fn offers_are_rescinded_when_a_guarantee_needs_them() {
    let mut cluster = Cluster::new();
    for agent in ["a1", "a2", "a3"] {
        cluster.agent(agent, "4", 4096);
    }
    cluster.wants_all("fw1", "one");
    assert_eq!(cluster.pass().len(), 3);
    cluster.quota("two").guarantee = quota_amounts("4", 4096);
    cluster.wants("fw2", "two", vec![task("t1", amounts("3", 64))]);
    let allocation = cluster.decide();
    assert_eq!(
        rescinds(&allocation),
        [("a1", &RescindReason::GuaranteeUnmet("two".into()))]
    );
    assert_eq!(lines(&allocation.offers), ["a1>fw2 4/4096"]);
}

#[test]
fn a_guarantee_is_not_filled_from_another_guarantee() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.quota("one").guarantee = quota_amounts("4", 4096);
    cluster.wants_all("fw1", "one");
    assert_eq!(cluster.pass().len(), 1);
    cluster.quota("two").guarantee = quota_amounts("4", 4096);
    cluster.wants_all("fw2", "two");
    let allocation = cluster.decide();
    assert_eq!((rescinds(&allocation), lines(&allocation.offers)), (vec![], vec![]));
}

#[test]
fn offers_above_a_lowered_limit_are_rescinded() {
    let mut cluster = Cluster::new();
    for agent in ["a1", "a2"] {
        cluster.agent(agent, "4", 4096);
    }
    cluster.wants_all("fw1", "one/two");
    assert_eq!(cluster.pass().len(), 2);
    cluster.quota("one").limit = quota_amounts("4", 8192);
    let allocation = cluster.decide();
    assert_eq!(
        rescinds(&allocation),
        [("a2", &RescindReason::LimitExceeded("one".into()))]
    );
}

#[test]
fn offers_of_an_agent_that_shrank_are_rescinded() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.wants_all("fw1", "one");
    cluster.pass();
    cluster.agent_named("a1").total.cpus = amounts("2", 0).cpus;
    let allocation = cluster.decide();
    assert_eq!(rescinds(&allocation), [("a1", &RescindReason::AgentOverCommitted)]);
    assert_eq!(lines(&allocation.offers), ["a1>fw1 2/4096"]);
}

#[test]
fn a_role_at_its_limit_says_so() {
    let mut cluster = Cluster::new();
    cluster.gpu_agent("a1", 4, "NVIDIA H100");
    cluster.quota("ml").limit = gpus(2);
    cluster.wants("fw1", "ml/train", vec![gpu_task("t1", 2), gpu_task("t2", 1)]);
    let offers = cluster.pass();
    assert_eq!(offers[0].devices.len(), 2, "the offer is cut to the limit");
    check_verdict(
        &cluster,
        Verdict::QuotaReached,
        "needs 1 gpus, but role ml holds 2 of the 2 gpus that quota ml allows it; it waits for others of the role to end, \
         or raise the limit",
    );
}

#[test]
fn a_role_is_offered_nothing_below_its_smallest_offer() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.agent("a2", "8", 4096);
    cluster.quota("one").minimum_offer = quota_amounts("6", 64);
    cluster.wants_all("fw1", "one/two");
    assert_eq!(lines(&cluster.pass()), ["a2>fw1 8/4096"]);
}

#[test]
fn what_is_kept_for_a_guarantee_says_so() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.quota("absent").guarantee = quota_amounts("4", 4096);
    cluster.wants("fw1", "one", vec![task("t1", amounts("1", 64))]);
    check_verdict(
        &cluster,
        Verdict::Held,
        "agent a1 has room, but it is kept free for guarantees of other roles; lower those or wait",
    );
}

#[test]
fn malformed_parts_become_problems_and_the_rest_goes_on() {
    let mut cluster = Cluster::new();
    cluster.agent("a1", "4", 4096);
    cluster.agent("a1", "8", 8192);
    cluster.wants("fw1", "NOT A ROLE", vec![task("t1", amounts("1", 64))]);
    cluster.wants("fw2", "two", vec![task("t2", amounts("1", 64))]);
    cluster.quota("two");
    cluster.quota("two").name = "zwei".into();
    cluster.quota("-");
    let allocation = cluster.decide();
    assert_eq!(lines(&allocation.offers), ["a1>fw2 4/4096"]);
    assert_eq!(
        allocation.report.problems,
        [
            "agent a1 is there twice; the first counts",
            "framework team/fw1: `NOT A ROLE` is not a role; it gets no offers",
            "quota -: `-` is not a role; it is left out",
            "quota zwei: quota two is the one in force for role two",
        ]
    );
    let names: Vec<String> = verdicts(&cluster).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["t2", "t1"]);
}

#[test]
fn the_report_explains_agent_by_agent() {
    let mut cluster = Cluster::new();
    for index in 0..20 {
        cluster.agent(&format!("small-{index:02}"), "2", 1024);
    }
    for (agent, zone) in [("big-a", "a"), ("big-b", "b"), ("big-c", "a")] {
        cluster
            .agent(agent, "16", 16_384)
            .attributes
            .insert("zone".into(), zone.into());
    }
    cluster.agent_named("big-c").availability = Availability::Unavailable("the agent is unschedulable".into());
    cluster
        .wants_all("other", "other")
        .declared
        .as_mut()
        .expect("declared")
        .minimum = amounts("10", 64);
    cluster.pass();
    cluster.answer(|_| Some(amounts("10", 1024)));
    cluster.snapshot.frameworks.clear();
    let zone = Constraint {
        attribute: "zone".into(),
        operator: Operator::In,
        values: vec!["a".into()],
    };
    let tasks = vec![
        PendingTask {
            constraints: vec![zone],
            ..task("zoned", amounts("8", 2048))
        },
        task("small", amounts("0.5", 64)),
        task("small-too", amounts("0.5", 64)),
        task("huge", amounts("32", 65_536)),
    ];
    cluster.wants("fw1", "one", tasks);
    let wire = cluster.decide().report.to_wire(&cluster.snapshot, 7);
    let mut text = String::new();
    for task in &wire.tasks {
        text += &format!(
            "{}/{} in {} ({} of {}) needs {}\n",
            task.namespace, task.task, task.role, task.position, task.queue, task.needs
        );
        text += &format!("  {}\n", task.summary);
        for agent in &task.agents {
            let mark = if agent.fits { "+" } else { "-" };
            text += &format!(
                "  {mark} {} ({}): {}\n",
                agent.agent,
                agent.count,
                agent.reasons.join("; ")
            );
        }
    }
    insta::assert_snapshot!(text);
    let allocation = cluster.decide();
    assert_eq!(
        allocation.report.why(&cluster.snapshot, "team", "zoned").as_ref(),
        Some(&wire.tasks[0])
    );
    assert_eq!(allocation.report.why(&cluster.snapshot, "team", "unknown"), None);
}
