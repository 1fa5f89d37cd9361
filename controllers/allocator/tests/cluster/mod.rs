//! A cluster as small as can be: it applies what a pass decides and lets tests answer offers.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use muster_allocator::{
    AgentSnapshot, Allocation, DeclaredDemand, FrameworkId, FrameworkSnapshot, Held, NewOffer, OpenOffer, Params,
    PendingTask, QuotaSnapshot, RoleDemand, Snapshot, allocate,
};
use muster_api::device::Device;
use muster_api::ports::{PortRequest, PortSet};
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::QuotaAmounts;

#[derive(Debug, Default)]
pub struct Cluster {
    pub snapshot: Snapshot,
    pub params: Params,
    offers: u64,
}

pub fn amounts(cpus: &str, mib: u32) -> Amounts {
    Amounts {
        cpus: cpus.parse().expect("cpus"),
        memory: ByteSize::from_mib(mib),
        ..Amounts::ZERO
    }
}

pub fn quota_amounts(cpus: &str, mib: u32) -> QuotaAmounts {
    let amounts = amounts(cpus, mib);
    QuotaAmounts {
        cpus: Some(amounts.cpus),
        memory: Some(amounts.memory),
        ..QuotaAmounts::default()
    }
}

pub fn gpus(count: u32) -> QuotaAmounts {
    QuotaAmounts {
        gpus: Some(Scalar::from_units(count)),
        ..QuotaAmounts::default()
    }
}

pub fn task(name: &str, amounts: Amounts) -> PendingTask {
    PendingTask {
        name: name.into(),
        amounts,
        ports: PortRequest::Count(amounts.ports),
        ..PendingTask::default()
    }
}

pub fn id(name: &str) -> FrameworkId {
    FrameworkId {
        namespace: "team".into(),
        name: name.into(),
    }
}

pub fn everything() -> DeclaredDemand {
    DeclaredDemand {
        max_offers: 100,
        ..DeclaredDemand::default()
    }
}

impl Cluster {
    /// With small offers allowed: the examples use small numbers.
    pub fn new() -> Cluster {
        Cluster::default()
    }

    pub fn agent(&mut self, name: &str, cpus: &str, mib: u32) -> &mut AgentSnapshot {
        let Amounts { cpus, memory, .. } = amounts(cpus, mib);
        let total = Bundle {
            cpus,
            memory,
            ..Bundle::default()
        };
        self.snapshot.agents.push(AgentSnapshot {
            name: name.into(),
            total,
            ..AgentSnapshot::default()
        });
        self.snapshot.agents.last_mut().expect("just pushed")
    }

    pub fn gpu_agent(&mut self, name: &str, count: u32, model: &str) -> &mut AgentSnapshot {
        let device = |index| Device {
            uuid: format!("GPU-{name}-{index}"),
            model: model.into(),
            memory: "79Gi".parse().expect("size"),
            compute_capability: Some("9.0".into()),
            ..Device::default()
        };
        let agent = self.agent(name, "64", 65_536);
        agent.devices = (0..count).map(device).collect();
        agent.total.devices = agent.devices.iter().map(|device| device.uuid.clone()).collect();
        agent.total.ports = PortSet::range(31_000, 31_009);
        agent
    }

    fn framework(&mut self, name: &str) -> &mut FrameworkSnapshot {
        let known = self
            .snapshot
            .frameworks
            .iter()
            .position(|framework| framework.id == id(name));
        let index = known.unwrap_or_else(|| {
            self.snapshot.frameworks.push(FrameworkSnapshot {
                id: id(name),
                roles: Vec::new(),
            });
            self.snapshot.frameworks.len() - 1
        });
        &mut self.snapshot.frameworks[index]
    }

    /// A framework that wants everything.
    pub fn wants_all(&mut self, name: &str, role: &str) -> &mut RoleDemand {
        let demand = self.wants(name, role, Vec::new());
        demand.declared = Some(everything());
        demand
    }

    /// A framework that wants room for tasks.
    pub fn wants(&mut self, name: &str, role: &str, tasks: Vec<PendingTask>) -> &mut RoleDemand {
        let framework = self.framework(name);
        framework.roles.push(RoleDemand {
            role: role.into(),
            tasks,
            ..RoleDemand::default()
        });
        framework.roles.last_mut().expect("just pushed")
    }

    pub fn demand(&mut self, name: &str) -> &mut RoleDemand {
        &mut self.framework(name).roles[0]
    }

    pub fn quota(&mut self, role: &str) -> &mut QuotaSnapshot {
        self.snapshot.quotas.push(QuotaSnapshot {
            name: role.replace('/', "-"),
            role: role.into(),
            ..Default::default()
        });
        self.snapshot.quotas.last_mut().expect("just pushed")
    }

    /// What a pass decides, not applied.
    pub fn decide(&self) -> Allocation {
        allocate(&self.snapshot, &self.params)
    }

    /// One pass, applied: offers are open now.
    pub fn pass(&mut self) -> Vec<NewOffer> {
        let allocation = self.decide();
        assert_eq!(allocation.report.problems, Vec::<String>::new());
        for rescind in &allocation.rescinds {
            let agent = self.agent_named(&rescind.agent);
            agent
                .offers
                .retain(|offer| (&offer.framework.namespace, &offer.name) != (&rescind.namespace, &rescind.name));
        }
        for offer in &allocation.offers {
            self.offers += 1;
            let name = format!("offer-{:05}", self.offers);
            let (framework, role, bundle) = (offer.framework.clone(), offer.role.clone(), offer.bundle.clone());
            self.agent_named(&offer.agent).offers.push(OpenOffer {
                name,
                framework,
                role,
                bundle,
            });
        }
        allocation.offers
    }

    pub fn agent_named(&mut self, name: &str) -> &mut AgentSnapshot {
        self.snapshot
            .agents
            .iter_mut()
            .find(|agent| agent.name == name)
            .expect("an agent of that name")
    }

    /// All open offers are answered: a task of `size` in each for which `wanted` says so, the rest is given back.
    pub fn answer(&mut self, mut size: impl FnMut(&OpenOffer) -> Option<Amounts>) {
        for agent in &mut self.snapshot.agents {
            for offer in std::mem::take(&mut agent.offers) {
                if let Some(size) = size(&offer) {
                    let bundle = Bundle {
                        cpus: size.cpus,
                        memory: size.memory,
                        ..Bundle::default()
                    };
                    assert!(offer.bundle.contains(&bundle), "the task fits in the offer");
                    agent.tasks.push(Held {
                        framework: offer.framework,
                        role: offer.role,
                        bundle,
                    });
                }
            }
        }
    }

    /// How many tasks of a framework live.
    pub fn tasks_of(&self, name: &str) -> usize {
        let tasks = self.snapshot.agents.iter().flat_map(|agent| &agent.tasks);
        tasks.filter(|task| task.framework == id(name)).count()
    }
}

/// `agent>framework cpus/MiB` of each offer.
pub fn lines(offers: &[NewOffer]) -> Vec<String> {
    let line = |offer: &NewOffer| {
        let amounts = offer.bundle.amounts();
        format!(
            "{}>{} {}/{}",
            offer.agent,
            offer.framework.name,
            amounts.cpus,
            amounts.memory.bytes() >> 20
        )
    };
    offers.iter().map(line).collect()
}
