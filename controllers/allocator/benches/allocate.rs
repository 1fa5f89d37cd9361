//! Whole passes over large clusters: agents × frameworks, each framework in a role of its own.
//!
//! * `whole`: nothing is held yet, every framework wants everything; each agent is offered.
//! * `tasks`: each agent half in use, every framework has 20 pending tasks; most of the cluster is offered.
//! * `full`: each agent in use, every framework has a pending task that fits nowhere; nothing is offered.
//! * `verdicts` is the report for all pending tasks of `full`.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark measures time; its macros make the rest"
)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use muster_allocator::{
    AgentSnapshot, DeclaredDemand, FrameworkId, FrameworkSnapshot, Held, Params, PendingTask, QuotaSnapshot,
    RoleDemand, Snapshot, allocate,
};
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::{Constraint, Operator, QuotaAmounts};

fn bundle(cpus: u32, mib: u32, ports: PortSet) -> Bundle {
    Bundle {
        cpus: Scalar::from_units(cpus),
        memory: ByteSize::from_mib(mib),
        disk: ByteSize::from_mib(mib),
        ports,
        ..Bundle::default()
    }
}

fn snapshot(agents: u32, frameworks: u32, used: u32, tasks: u32, size: u32) -> Snapshot {
    let id = |index: u32| FrameworkId {
        namespace: "team".into(),
        name: format!("framework-{index:05}"),
    };
    let agent = |index: u32| {
        let ports = PortSet::from_ports((0..16).map(|port| 31_000 + 2 * port));
        let held = Held {
            framework: id(index % frameworks),
            role: format!("role-{:05}", index % frameworks),
            bundle: bundle(used, used * 128, ports),
        };
        AgentSnapshot {
            name: format!("agent-{index:05}"),
            total: bundle(24, 4096, PortSet::range(31_000, 31_999)),
            tasks: if used > 0 { vec![held] } else { Vec::new() },
            ..AgentSnapshot::default()
        }
    };
    let framework = |index: u32| {
        let amounts = Amounts {
            cpus: Scalar::from_units(size),
            memory: ByteSize::from_mib(size * 64),
            ..Amounts::ZERO
        };
        let pending = (0..tasks).map(|task| PendingTask {
            name: format!("task-{index}-{task}"),
            amounts,
            ..PendingTask::default()
        });
        let everything = DeclaredDemand {
            max_offers: 1_000_000,
            ..DeclaredDemand::default()
        };
        let role = RoleDemand {
            role: format!("role-{index:05}"),
            tasks: pending.collect(),
            declared: (tasks == 0).then_some(everything),
            offers_made: 0,
        };
        FrameworkSnapshot {
            id: id(index),
            roles: vec![role],
        }
    };
    Snapshot {
        agents: (0..agents).map(agent).collect(),
        frameworks: (0..frameworks).map(framework).collect(),
        ..Snapshot::default()
    }
}

/// Two cases with much work for each agent. `crumbs`: every agent has a little free, nobody's task fits in it, one agent is
/// empty, and a small task matches no agent, so that no shortcut applies. `guarantees`: half of the roles have one that is not met.
fn worst(criterion: &mut Criterion, params: &Params) {
    let mut group = criterion.benchmark_group("worst");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for frameworks in [200, 1_000] {
        let mut crumbs = snapshot(10_000, frameworks, 22, 1, 8);
        crumbs.agents[9_999].tasks.clear();
        let task = &mut crumbs.frameworks[0].roles[0].tasks[0];
        task.amounts.cpus = Scalar::from_units(1);
        task.constraints = vec![Constraint {
            attribute: "zone".into(),
            operator: Operator::Exists,
            values: Vec::new(),
        }];
        group.bench_with_input(BenchmarkId::new("crumbs", frameworks), &crumbs, |bencher, snapshot| {
            bencher.iter_with_large_drop(|| allocate(snapshot, params));
        });
        let mut guarantees = snapshot(10_000, frameworks, 12, 0, 0);
        let roles = guarantees
            .frameworks
            .iter()
            .step_by(2)
            .map(|framework| &framework.roles[0].role);
        let quota = |role: &String| QuotaSnapshot {
            name: role.clone(),
            role: role.clone(),
            guarantee: QuotaAmounts {
                cpus: Some(Scalar::from_units(200_000 / frameworks)),
                ..QuotaAmounts::default()
            },
            ..QuotaSnapshot::default()
        };
        guarantees.quotas = roles.map(quota).collect();
        group.bench_with_input(
            BenchmarkId::new("guarantees", frameworks),
            &guarantees,
            |bencher, snapshot| {
                bencher.iter_with_large_drop(|| allocate(snapshot, params));
            },
        );
    }
    group.finish();
}

fn passes(criterion: &mut Criterion) {
    let params = Params {
        offers_max: usize::MAX,
        ..Params::default()
    };
    for (name, used, tasks, size) in [("whole", 0, 0, 0), ("tasks", 12, 20, 8), ("full", 24, 1, 2)] {
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for agents in [1_000, 10_000] {
            for frameworks in [1, 200, 1_000] {
                let snapshot = snapshot(agents, frameworks, used, tasks, size);
                let id = BenchmarkId::new(format!("{agents} agents"), format!("{frameworks} frameworks"));
                group.bench_with_input(id, &snapshot, |bencher, snapshot| {
                    bencher.iter_with_large_drop(|| allocate(snapshot, &params));
                });
            }
        }
        group.finish();
    }
    worst(criterion, &params);
    let mut group = criterion.benchmark_group("verdicts");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let snapshot = snapshot(10_000, 1_000, 24, 1, 2);
    let allocation = allocate(&snapshot, &params);
    group.bench_function("10000 agents/1000 frameworks", |bencher| {
        bencher.iter_with_large_drop(|| allocation.report.verdicts(&snapshot));
    });
    group.bench_function("10000 agents/1000 frameworks on the wire", |bencher| {
        bencher.iter_with_large_drop(|| allocation.report.to_wire(&snapshot, 1));
    });
    group.finish();
}

criterion_group!(benches, passes);
criterion_main!(benches);
