//! The promises, over arbitrary snapshots: sane ones, grown by passes and answers, and wild ones that no caller would make.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};

use cluster::{Cluster, everything, id, task};
use muster_allocator::{
    AgentSnapshot, Allocation, Availability, DeclaredDemand, Filter, FrameworkSnapshot, Held, OpenOffer, Params,
    PendingTask, QuotaSnapshot, RoleDemand, Snapshot, allocate,
};
use muster_api::device::{Device, DeviceHealth, GpuSelector};
use muster_api::ports::{PortRequest, PortSet};
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::{Constraint, Operator, QuotaAmounts};
use proptest::prelude::*;
use proptest::sample::select;

const ROLES: [&str; 6] = ["a", "a/b", "a/b/c", "a/d", "e", "e/f"];
const FRAMEWORKS: [&str; 3] = ["fw1", "fw2", "fw3"];

fn some_amounts(most: u64) -> impl Strategy<Value = Amounts> {
    (0..=most, 0..=most, 0..=most / 4, 0u32..3, 0u32..4).prop_map(|(cpus, memory, disk, gpus, ports)| Amounts {
        cpus: Scalar::from_milli(cpus * 500),
        memory: ByteSize::from_mib(64 * u32::try_from(memory).expect("small")),
        disk: ByteSize::from_mib(u32::try_from(disk).expect("small")),
        gpus,
        ports,
    })
}

fn some_quota_amounts(most: u64) -> impl Strategy<Value = QuotaAmounts> {
    (some_amounts(most), any::<[bool; 4]>()).prop_map(|(amounts, named)| QuotaAmounts {
        cpus: named[0].then_some(amounts.cpus),
        memory: named[1].then_some(amounts.memory),
        disk: named[2].then_some(amounts.disk),
        gpus: named[3].then(|| Scalar::from_units(amounts.gpus)),
    })
}

fn some_constraints() -> impl Strategy<Value = Vec<Constraint>> {
    let operators = vec![Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist];
    let constraint = (select(operators), prop::collection::vec(select(vec!["x", "y"]), 1..3));
    let constraint = constraint.prop_map(|(operator, values)| Constraint {
        attribute: "zone".into(),
        operator,
        values: values.into_iter().map(str::to_owned).collect(),
    });
    prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(constraint, 1..3)]
}

fn some_task() -> impl Strategy<Value = PendingTask> {
    (some_amounts(8), some_constraints(), any::<bool>(), 0u16..4).prop_map(|(amounts, constraints, named, port)| {
        let these = PortRequest::These(PortSet::range(31_000 + port, 31_001 + port));
        let ports = if named && amounts.ports > 0 {
            these
        } else {
            PortRequest::Count(amounts.ports)
        };
        PendingTask {
            ports,
            constraints,
            ..task("", amounts)
        }
    })
}

fn some_declared() -> impl Strategy<Value = DeclaredDemand> {
    (some_amounts(3), any::<bool>(), 1u32..5).prop_map(|(minimum, gpu, max_offers)| DeclaredDemand {
        minimum,
        ports: PortRequest::Count(minimum.ports),
        gpu: gpu.then(|| GpuSelector::default().requirement().expect("the default reads")),
        max_offers,
    })
}

/// A cluster without malformed parts; nothing is held yet.
fn some_cluster() -> impl Strategy<Value = Cluster> {
    let agent = (
        some_amounts(32),
        any::<bool>(),
        prop::option::of(select(vec!["x", "y"])),
        0u32..6,
    );
    let demand = (
        prop::collection::vec(some_task(), 0..6),
        prop::option::of(some_declared()),
    );
    let demands = prop::collection::btree_map((select(&FRAMEWORKS[..]), select(&ROLES[..])), demand, 0..7);
    let quota = (
        some_quota_amounts(12),
        some_quota_amounts(40),
        some_quota_amounts(2),
        1u64..4000,
    );
    let quotas = prop::collection::btree_map(select(&ROLES[..]), quota, 0..4);
    (prop::collection::vec(agent, 0..7), demands, quotas).prop_map(|(agents, demands, quotas)| {
        let mut cluster = Cluster::new();
        for (index, (total, available, zone, gpus)) in agents.into_iter().enumerate() {
            let agent = cluster.gpu_agent(&format!("agent{index}"), gpus, "NVIDIA H100");
            (agent.total.cpus, agent.total.memory, agent.total.disk) = (total.cpus, total.memory, total.disk);
            if let Some(zone) = zone {
                agent.attributes.insert("zone".into(), zone.into());
            }
            if !available && index % 3 == 0 {
                agent.availability = Availability::Unavailable("the agent is lost".into());
            }
        }
        for (count, ((framework, role), (mut tasks, declared))) in demands.into_iter().enumerate() {
            for (index, task) in tasks.iter_mut().enumerate() {
                task.name = format!("task-{count}-{index}");
            }
            cluster.wants(framework, role, tasks).declared = declared;
        }
        for (role, (guarantee, limit, minimum_offer, weight)) in quotas {
            let quota = cluster.quota(role);
            *quota = QuotaSnapshot {
                guarantee,
                limit,
                minimum_offer,
                weight: Scalar::from_milli(weight),
                ..quota.clone()
            };
        }
        cluster
    })
}

/// The same after some passes, each followed by answers: an offer stays open, comes back, or part of it is used.
fn some_used_cluster() -> impl Strategy<Value = Cluster> {
    (some_cluster(), prop::collection::vec(0u8..3, 0..12)).prop_map(|(mut cluster, answers)| {
        let mut answers = answers.into_iter();
        for _ in 0..2 {
            cluster.pass();
            for agent in &mut cluster.snapshot.agents {
                for offer in std::mem::take(&mut agent.offers) {
                    match answers.next() {
                        None | Some(0) => agent.offers.push(offer),
                        Some(1) => {}
                        Some(_) => {
                            let mut bundle = offer.bundle;
                            bundle.cpus = Scalar::from_milli(bundle.cpus.milli() / 2);
                            bundle.devices.pop_first();
                            agent.tasks.push(Held {
                                framework: offer.framework,
                                role: offer.role,
                                bundle,
                            });
                        }
                    }
                }
            }
        }
        cluster
    })
}

fn wild_number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..10, Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()]
}

fn wild_amounts() -> impl Strategy<Value = Amounts> {
    (wild_number(), wild_number(), wild_number(), any::<u32>(), any::<u32>()).prop_map(
        |(cpus, memory, disk, gpus, ports)| Amounts {
            cpus: Scalar::from_milli(cpus),
            memory: ByteSize::from_bytes(memory),
            disk: ByteSize::from_bytes(disk),
            gpus,
            ports,
        },
    )
}

fn wild_quota_amounts() -> impl Strategy<Value = QuotaAmounts> {
    prop::option::of(wild_amounts()).prop_map(|amounts| {
        amounts.map_or(QuotaAmounts::default(), |amounts| QuotaAmounts {
            cpus: Some(amounts.cpus),
            memory: Some(amounts.memory),
            disk: Some(amounts.disk),
            gpus: Some(Scalar::from_milli(u64::from(amounts.gpus))),
        })
    })
}

fn wild_bundle() -> impl Strategy<Value = Bundle> {
    let devices = prop::collection::btree_set("[a-d]", 0..3);
    (wild_amounts(), prop::collection::btree_set(0u16..9, 0..4), devices).prop_map(|(amounts, ports, devices)| Bundle {
        cpus: amounts.cpus,
        memory: amounts.memory,
        disk: amounts.disk,
        ports: PortSet::from_ports(ports),
        devices,
    })
}

fn wild_role() -> impl Strategy<Value = String> {
    select(vec!["a", "a/b", "a/b/c", "", "/", "a//b", "A", "*"]).prop_map(str::to_owned)
}

fn wild_snapshot() -> impl Strategy<Value = Snapshot> {
    let name = || select(vec!["fw1", "fw2", ""]);
    let held = (name(), wild_role(), wild_bundle());
    let device = ("[a-e]", any::<bool>()).prop_map(|(uuid, healthy)| Device {
        uuid,
        model: "M".into(),
        health: if healthy {
            DeviceHealth::Healthy
        } else {
            DeviceHealth::Faulty
        },
        ..Device::default()
    });
    let agent = (
        select(vec!["a", "b", ""]),
        wild_bundle(),
        prop::collection::vec(device, 0..5),
        prop::collection::vec(held, 0..4),
        any::<bool>(),
    );
    let agent = agent.prop_map(|(name, total, devices, held, available)| {
        let (tasks, offers) = held.split_at(held.len() / 2);
        let task = |(framework, role, bundle): &(&str, String, Bundle)| Held {
            framework: id(framework),
            role: role.clone(),
            bundle: bundle.clone(),
        };
        let offer = |(framework, role, bundle): &(&str, String, Bundle)| OpenOffer {
            name: format!("offer-{role}"),
            framework: id(framework),
            role: role.clone(),
            bundle: bundle.clone(),
        };
        AgentSnapshot {
            name: name.into(),
            total,
            devices,
            tasks: tasks.iter().map(task).collect(),
            offers: offers.iter().map(offer).collect(),
            availability: if available {
                Availability::Available
            } else {
                Availability::Unavailable("lost".into())
            },
            ..AgentSnapshot::default()
        }
    });
    let pending = (wild_amounts(), some_constraints(), any::<bool>()).prop_map(|(amounts, constraints, named)| {
        let ports = if named {
            PortRequest::These(PortSet::range(3, 5))
        } else {
            PortRequest::Count(amounts.ports)
        };
        PendingTask {
            name: "t".into(),
            amounts,
            ports,
            constraints,
            ..PendingTask::default()
        }
    });
    let declared = (wild_amounts(), any::<u32>()).prop_map(|(minimum, max_offers)| DeclaredDemand {
        minimum,
        max_offers,
        ..everything()
    });
    let demand = (
        wild_role(),
        prop::collection::vec(pending, 0..4),
        prop::option::of(declared),
        wild_number(),
    );
    let demand = demand.prop_map(|(role, tasks, declared, offers_made)| RoleDemand {
        role,
        tasks,
        declared,
        offers_made,
    });
    let framework = (name(), prop::collection::vec(demand, 0..4))
        .prop_map(|(name, roles)| FrameworkSnapshot { id: id(name), roles });
    let quota = (
        wild_role(),
        wild_number(),
        wild_quota_amounts(),
        wild_quota_amounts(),
        wild_quota_amounts(),
    );
    let quota = quota.prop_map(|(role, weight, guarantee, limit, minimum_offer)| QuotaSnapshot {
        name: role.clone(),
        role,
        weight: Scalar::from_milli(weight),
        guarantee,
        limit,
        minimum_offer,
    });
    let filter =
        (name(), wild_role(), wild_amounts(), any::<i64>()).prop_map(|(name, role, refused, until_ms)| Filter {
            framework: id(name),
            role,
            agent: "a".into(),
            refused,
            until_ms,
        });
    let parts = (
        prop::collection::vec(agent, 0..4),
        prop::collection::vec(framework, 0..4),
        prop::collection::vec(quota, 0..4),
        prop::collection::vec(filter, 0..3),
        any::<i64>(),
    );
    parts.prop_map(|(agents, frameworks, quotas, filters, now_ms)| Snapshot {
        now_ms,
        agents,
        frameworks,
        quotas,
        filters,
    })
}

/// What stays open of an agent after the decisions.
fn kept<'a>(agent: &'a AgentSnapshot, allocation: &'a Allocation) -> impl Iterator<Item = &'a OpenOffer> {
    agent.offers.iter().filter(|offer| {
        !allocation.rescinds.iter().any(|rescind| {
            (&rescind.agent, &rescind.namespace, &rescind.name)
                == (&agent.name, &offer.framework.namespace, &offer.name)
        })
    })
}

/// Everything that is held after the decisions: role, amounts, and whether an offer holds it.
fn holdings(snapshot: &Snapshot, allocation: &Allocation) -> Vec<(String, Amounts, bool)> {
    let mut held = Vec::new();
    for agent in &snapshot.agents {
        held.extend(
            agent
                .tasks
                .iter()
                .map(|task| (task.role.clone(), task.bundle.amounts(), false)),
        );
        held.extend(kept(agent, allocation).map(|offer| (offer.role.clone(), offer.bundle.amounts(), true)));
    }
    held.extend(
        allocation
            .offers
            .iter()
            .map(|offer| (offer.role.clone(), offer.bundle.amounts(), true)),
    );
    held
}

fn is_below(role: &str, above: &str) -> bool {
    role.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_offered_twice_or_beyond_what_an_agent_has(cluster in some_used_cluster()) {
        let allocation = cluster.decide();
        for agent in &cluster.snapshot.agents {
            let tasks = agent.tasks.iter().map(|task| &task.bundle);
            let open = kept(agent, &allocation).map(|offer| &offer.bundle);
            let new = allocation.offers.iter().filter(|offer| offer.agent == agent.name).map(|offer| &offer.bundle);
            let mut left = agent.total.clone();
            for bundle in tasks.chain(open).chain(new) {
                let rest = left.checked_sub(bundle);
                prop_assert!(rest.is_some(), "{} has no {bundle:?} left in {left:?}", agent.name);
                left = rest.expect("just checked");
            }
        }
        for offer in &allocation.offers {
            let uuids: BTreeSet<String> = offer.devices.iter().map(|device| device.uuid.clone()).collect();
            prop_assert_eq!(&uuids, &offer.bundle.devices);
        }
    }

    #[test]
    fn no_offer_takes_a_role_of_any_level_above_its_limit(cluster in some_used_cluster()) {
        let allocation = cluster.decide();
        let held = holdings(&cluster.snapshot, &allocation);
        for quota in &cluster.snapshot.quotas {
            let below = held.iter().filter(|(role, ..)| is_below(role, &quota.role));
            for (index, limit) in quota.limit.values().into_iter().enumerate() {
                let Some(limit) = limit else { continue };
                let used: u64 = below.clone().map(|(_, amounts, _)| amounts.values()[index]).sum();
                let offered = below.clone().any(|(_, amounts, offer)| *offer && amounts.values()[index] > 0);
                prop_assert!(used <= limit || !offered, "{} holds {used} of {limit}", quota.role);
            }
        }
    }

    #[test]
    fn guarantees_are_met_when_the_cluster_is_large_enough(
        agents in prop::collection::vec(some_amounts(32), 1..6),
        parts in prop::collection::vec(1u64..100, 3),
        greedy_first in any::<bool>(),
    ) {
        let mut cluster = Cluster::new();
        cluster.params = Params { minimum_offer: Vec::new(), ..Params::default() };
        for (index, total) in agents.iter().enumerate() {
            let agent = cluster.agent(&format!("agent{index}"), "0", 0);
            (agent.total.cpus, agent.total.memory) = (total.cpus, total.memory);
        }
        cluster.wants_all("greedy", "zz");
        if greedy_first {
            cluster.pass();
        }
        let total = |f: fn(&Amounts) -> u64| agents.iter().map(f).sum::<u64>();
        let (cpus, memory) = (total(|amounts| amounts.cpus.milli()), total(|amounts| amounts.memory.bytes()));
        for (part, role) in parts.iter().zip(["a", "b", "c"]) {
            // A third at most for each of the three.
            let (cpus, memory) = (cpus * part / 300, memory * part / 300);
            cluster.quota(role).guarantee = QuotaAmounts {
                cpus: Some(Scalar::from_milli(cpus)),
                memory: Some(ByteSize::from_bytes(memory)),
                ..QuotaAmounts::default()
            };
            cluster.wants_all(role, role);
        }
        let allocation = cluster.decide();
        let held = holdings(&cluster.snapshot, &allocation);
        for quota in &cluster.snapshot.quotas {
            for (index, guarantee) in quota.guarantee.values().into_iter().enumerate() {
                let of_role = held.iter().filter(|(role, ..)| *role == quota.role);
                let used: u64 = of_role.map(|(_, amounts, _)| amounts.values()[index]).sum();
                prop_assert!(used >= guarantee.unwrap_or(0), "{}: {used} of {guarantee:?}", quota.role);
            }
        }
    }

    #[test]
    fn there_is_no_offer_without_demand(cluster in some_used_cluster()) {
        let allocation = cluster.decide();
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        let open = cluster.snapshot.agents.iter().flat_map(|agent| kept(agent, &allocation));
        let all = open.map(|offer| (&offer.framework, &offer.role));
        for (framework, role) in all.chain(allocation.offers.iter().map(|offer| (&offer.framework, &offer.role))) {
            *counts.entry((framework.name.clone(), role.clone())).or_default() += 1;
        }
        let demand = |framework: &str, role: &str| {
            let framework = cluster.snapshot.frameworks.iter().find(|known| known.id == id(framework));
            framework.and_then(|framework| framework.roles.iter().find(|demand| demand.role == role))
        };
        for ((framework, role), count) in counts {
            let demand = demand(&framework, &role);
            let most = demand.map_or(0, |demand| {
                demand.tasks.len() + demand.declared.as_ref().map_or(0, |declared| declared.max_offers as usize)
            });
            prop_assert!(count <= most, "{count} offers for a demand of {most}");
        }
        for offer in &allocation.offers {
            let demand = demand(&offer.framework.name, &offer.role).expect("counted above");
            let fits = |wanted: &Amounts| offer.bundle.amounts().contains(wanted);
            let declared = demand.declared.iter().any(|declared| fits(&declared.minimum));
            prop_assert!(declared || demand.tasks.iter().any(|task| fits(&task.amounts)));
        }
    }

    #[test]
    fn the_same_input_in_any_order_gives_the_same_output(cluster in some_used_cluster()) {
        let allocation = cluster.decide();
        prop_assert_eq!(&allocation, &cluster.decide());
        let mut other = cluster.snapshot.clone();
        other.agents.reverse();
        other.frameworks.reverse();
        other.quotas.reverse();
        let turned = allocate(&other, &cluster.params);
        prop_assert_eq!(&allocation.offers, &turned.offers);
        prop_assert_eq!(&allocation.rescinds, &turned.rescinds);
        prop_assert_eq!(
            allocation.report.to_wire(&cluster.snapshot, 1).problems,
            turned.report.to_wire(&other, 1).problems
        );
    }

    #[test]
    fn a_declined_offer_does_not_come_again_before_its_filter_expires(mut cluster in some_used_cluster()) {
        for agent in &mut cluster.snapshot.agents {
            agent.offers.clear();
        }
        let declined = cluster.decide().offers;
        let filters = declined.iter().map(|offer| Filter {
            framework: offer.framework.clone(),
            role: offer.role.clone(),
            agent: offer.agent.clone(),
            refused: offer.bundle.amounts(),
            until_ms: 5000,
        });
        cluster.snapshot.filters = filters.collect();
        cluster.snapshot.now_ms = 4999;
        for offer in cluster.decide().offers {
            let same = |old: &&muster_allocator::NewOffer| {
                (&old.agent, &old.framework, &old.role) == (&offer.agent, &offer.framework, &offer.role)
            };
            let refused = declined.iter().filter(same).any(|old| old.bundle.amounts().contains(&offer.bundle.amounts()));
            prop_assert!(!refused, "{offer:?} was declined");
        }
        cluster.snapshot.now_ms = 5000;
        prop_assert_eq!(cluster.decide().offers, declined);
    }

    #[test]
    fn every_pending_task_has_a_verdict_with_words(cluster in some_used_cluster()) {
        let allocation = cluster.decide();
        let verdicts = allocation.report.verdicts(&cluster.snapshot);
        let mut expected: Vec<&str> = Vec::new();
        for framework in &cluster.snapshot.frameworks {
            expected.extend(framework.roles.iter().flat_map(|role| &role.tasks).map(|task| task.name.as_str()));
        }
        let mut names: Vec<&str> = verdicts.iter().map(|verdict| verdict.task).collect();
        expected.sort_unstable();
        names.sort_unstable();
        prop_assert_eq!(names, expected);
        prop_assert!(verdicts.iter().all(|verdict| !verdict.message.is_empty()));
        let wire = allocation.report.to_wire(&cluster.snapshot, 1);
        for why in &wire.tasks {
            let counted: usize = why.agents.iter().map(|agent| agent.count).sum();
            prop_assert_eq!(counted, cluster.snapshot.agents.len(), "every agent is in a line of {}", why.task);
            let alone = allocation.report.why(&cluster.snapshot, &why.namespace, &why.task);
            prop_assert_eq!(alone.as_ref(), Some(why));
        }
    }

    #[test]
    fn passes_come_to_rest_when_nobody_answers(mut cluster in some_used_cluster()) {
        for _ in 0..4 {
            cluster.pass();
        }
        let allocation = cluster.decide();
        prop_assert_eq!(allocation.rescinds, []);
        prop_assert_eq!(allocation.offers, []);
    }

    #[test]
    fn arbitrary_input_does_no_harm(snapshot in wild_snapshot(), offers_max in 0usize..20) {
        let params = Params { offers_max, minimum_offer: Vec::new(), ..Params::default() };
        let allocation = allocate(&snapshot, &params);
        prop_assert!(allocation.offers.len() <= offers_max);
        let tasks: usize = snapshot.frameworks.iter().flat_map(|framework| &framework.roles).map(|role| role.tasks.len()).sum();
        prop_assert_eq!(allocation.report.to_wire(&snapshot, 1).tasks.len(), tasks);
        allocation.report.why(&snapshot, "team", "t");
        for offer in &allocation.offers {
            let agent = snapshot.agents.iter().find(|agent| agent.name == offer.agent).expect("it exists");
            prop_assert!(agent.total.contains(&offer.bundle));
            for task in &agent.tasks {
                prop_assert!(task.bundle.ports.is_disjoint(&offer.bundle.ports));
                prop_assert!(task.bundle.devices.is_disjoint(&offer.bundle.devices));
            }
        }
    }
}
