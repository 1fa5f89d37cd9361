//! Which task gets what of the accepted offers.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use muster_api::Timestamp;
use muster_api::device::{Device, GpuRequirement};
use muster_api::resources::{Amounts, Bundle};
use muster_api::task_state::Phase;
use muster_api::topology;
use muster_api::v1::{Desired, Offer, OfferPhase, Task};
use muster_api::validation::{FieldPath, Violation, Violations};

use crate::error::{ApiError, Result};

/// An offer that is to be accepted.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// What it is.
    pub offer: Offer,
}

/// A task that is to be bound.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Where it stands in the request, as in `launch[0]`.
    pub place: String,
    /// What it is.
    pub task: Task,
    /// Whether it exists already.
    pub exists: bool,
}

/// What a task gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Resources, ports and devices.
    Bound(Bundle),
    /// Nothing: it asks for what cannot be anywhere. It ends before it begins.
    Impossible(String),
}

/// Gives out what the offers hold, task by task in the order of the request.
///
/// All or nothing: the first reason against the whole call is its answer. Devices are taken as they reach each other best
/// ([`topology::choose`]), ports lowest number first, so that the same call always gives the same result.
pub fn accept(offers: &[Offered], tasks: &[Asked], now: Timestamp) -> Result<Vec<Placed>> {
    let total = check_offers(offers, now)?;
    let primary = &offers[0].offer;
    let devices = offers.iter().flat_map(|offered| &offered.offer.spec.devices);
    let mut pool = Pool {
        left: total,
        devices: devices.map(|device| (device.uuid.as_str(), device)).collect(),
    };
    let (mut placed, mut violations) = (Vec::new(), Vec::new());
    for asked in tasks {
        let found = check_task(asked, primary);
        if !found.is_empty() {
            violations.extend(found);
            continue;
        }
        match pool.take(asked) {
            Ok(given) => placed.push(given),
            Err(found) => violations.extend(found),
        }
    }
    if violations.is_empty() {
        return Ok(placed);
    }
    Err(ApiError::invalid(
        "AcceptRequest",
        muster_api::names::GROUP,
        &offers[0].name,
        violations,
    ))
}

fn offer_error(code: StatusCode, reason: &'static str, name: &str, why: &str) -> ApiError {
    let mut error = ApiError::new(code, reason, format!("offers.muster.dev \"{name}\" {why}"));
    error.details.group = muster_api::names::GROUP.to_owned();
    error.details.kind = "offers".to_owned();
    error.details.name = name.to_owned();
    error
}

/// What the offers hold together.
fn check_offers(offers: &[Offered], now: Timestamp) -> Result<Bundle> {
    let mut violations = Violations::new();
    let path = FieldPath::root("offers");
    let mut total = Bundle::default();
    let primary = &offers[0].offer.spec;
    for (index, Offered { name, offer }) in offers.iter().enumerate() {
        if offer.phase() == OfferPhase::Declined {
            return Err(offer_error(
                StatusCode::CONFLICT,
                "Conflict",
                name,
                "has been declined already",
            ));
        }
        if now >= offer.spec.expires_at.0 {
            let why = format!(
                "expired at {}; a new one comes if there is still a need",
                offer.spec.expires_at.0
            );
            return Err(offer_error(StatusCode::GONE, "Expired", name, &why));
        }
        let spec = &offer.spec;
        let parts = [
            ("agent", &spec.agent, &primary.agent),
            ("framework", &spec.framework, &primary.framework),
            ("role", &spec.role, &primary.role),
        ];
        for (what, own, first) in parts.into_iter().filter(|(_, own, first)| own != first) {
            let why = format!(
                "offers that are accepted together must have the same {what}; this one has {own}, the first {first}"
            );
            violations.invalid(&path.index(index.saturating_sub(1)), name, &why);
        }
        match total.checked_add(&offer.bundle()) {
            Some(sum) => total = sum,
            None => violations.duplicate(&path.index(index.saturating_sub(1)), name),
        }
    }
    if violations.is_empty() {
        Ok(total)
    } else {
        let violations = violations.into_vec();
        Err(ApiError::invalid(
            "AcceptRequest",
            muster_api::names::GROUP,
            &offers[0].name,
            violations,
        ))
    }
}

/// What speaks against giving a task anything of these offers.
fn check_task(asked: &Asked, offer: &Offer) -> Vec<Violation> {
    let mut violations = Violations::new();
    let path = FieldPath::root(&asked.place);
    let task = &asked.task;
    let name = task.name();
    if asked.exists {
        if task.phase() != Phase::Pending {
            let why = format!("only pending tasks can be bound; this one is {}", task.phase());
            violations.invalid(&path, name, &why);
        } else if task.metadata.deletion_timestamp.is_some() {
            violations.invalid(&path, name, "the task is being deleted");
        }
    }
    if task.spec.desired == Desired::Killed {
        violations.invalid(&path, name, "the task was asked to end");
    }
    let parts = [
        ("framework", task.spec.framework.as_str(), offer.spec.framework.as_str()),
        ("role", task.role(), offer.spec.role.as_str()),
    ];
    for (what, own, offered) in parts.into_iter().filter(|(_, own, offered)| own != offered) {
        let why = format!("the task is of the {what} {own}, the offer is for the {what} {offered}");
        violations.invalid(&path, name, &why);
    }
    for constraint in &task.spec.constraints {
        let value = offer.spec.attributes.get(&constraint.attribute).map(String::as_str);
        if !constraint.holds(value) {
            let why = format!(
                "the constraint on the attribute {} does not hold on agent {}, where it is {}",
                constraint.attribute,
                offer.spec.agent,
                value.unwrap_or("not set")
            );
            violations.invalid(&path, name, &why);
        }
    }
    violations.into_vec()
}

/// What is left of the offers.
struct Pool<'a> {
    left: Bundle,
    devices: BTreeMap<&'a str, &'a Device>,
}

impl Pool<'_> {
    fn take(&mut self, asked: &Asked) -> Result<Placed, Vec<Violation>> {
        let task = &asked.task;
        let request = &task.spec.resources;
        let path = FieldPath::root(&asked.place);
        let mut violations = Violations::new();
        let Some(amounts) = request.amounts() else {
            let why = format!(
                "GPUs are given out whole, and the task asks for {}; ask for 1 and let several processes share it inside one task, \
                 or ask for none",
                request.gpus
            );
            return Ok(Placed::Impossible(why));
        };
        let requirement = match task.spec.gpu.as_ref().map(|gpu| gpu.requirement()).transpose() {
            Ok(requirement) => requirement.unwrap_or_default(),
            Err(error) => {
                violations.invalid(&path.field("spec").field("gpu").field(error.field), "", &error.message);
                return Err(violations.into_vec());
            }
        };
        let devices = self.choose_devices(amounts.gpus, &requirement);
        let ports = request.ports.choose(&self.left.ports);
        let have = Amounts {
            gpus: devices
                .as_ref()
                .map_or_else(|available| *available, |devices| devices.len() as u32),
            ..self.left.amounts()
        };
        let mut problems = have.shortfall(&amounts);
        if ports.is_none() && have.ports >= amounts.ports {
            problems.push(format!("needs other ports than {}, which are left", self.left.ports));
        }
        if let Err(found) = devices
            && found >= amounts.gpus
        {
            problems.push(format!(
                "needs {} GPUs that reach each other over NVLink or PCIe switches alone (spec.gpu.topology is required), and of the \
                 {found} that are left no so many do",
                amounts.gpus
            ));
        }
        if let (Ok(devices), Some(ports), true) = (devices, ports, problems.is_empty()) {
            let bundle = Bundle {
                cpus: amounts.cpus,
                memory: amounts.memory,
                disk: amounts.disk,
                ports,
                devices,
            };
            if let Some(left) = self.left.checked_sub(&bundle) {
                self.left = left;
                return Ok(Placed::Bound(bundle));
            }
            problems.push(format!("needs {amounts}, has {}", self.left.amounts()));
        }
        let why = format!("it asks for more than is left of the offers: {}", problems.join("; "));
        violations.invalid(&path, task.name(), &why);
        Err(violations.into_vec())
    }

    /// The best-connected so many that do; or how many there are, if those are too few or too far apart.
    fn choose_devices(&self, count: u32, requirement: &GpuRequirement) -> Result<BTreeSet<String>, u32> {
        let left = self.left.devices.iter();
        let fitting: Vec<&Device> = left
            .filter_map(|uuid| self.devices.get(uuid.as_str()).copied())
            .filter(|device| requirement.mismatch(device).is_none())
            .collect();
        match topology::choose(&fitting, count as usize, requirement.topology) {
            Some(chosen) => Ok(chosen.into_iter().map(|place| fitting[place].uuid.clone()).collect()),
            None => Err(u32::try_from(fitting.len()).unwrap_or(u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::device::GpuSelector;
    use muster_api::ports::{PortRequest, PortSet};
    use muster_api::quantity::{ByteSize, Scalar};
    use muster_api::resources::ResourceRequest;
    use muster_api::topology::{Path, Topology};
    use muster_api::v1::{OfferSpec, OfferedResources, TaskSpec};
    use proptest::prelude::*;

    use super::*;

    fn offered(index: usize, cpus: u64, devices: &[u8], ports: PortSet) -> Offered {
        let devices: Vec<Device> = devices
            .iter()
            .map(|number| Device {
                uuid: format!("GPU-{index}-{number}"),
                model: "H100".to_owned(),
                memory: ByteSize::from_mib(1),
                ..Device::default()
            })
            .collect();
        let spec = OfferSpec {
            framework: "f".to_owned(),
            role: "r".to_owned(),
            agent: "a".to_owned(),
            resources: OfferedResources {
                cpus: Scalar::from_milli(cpus),
                memory: ByteSize::from_mib(100),
                disk: ByteSize::from_mib(100),
                gpus: devices.len() as u32,
                ports,
            },
            devices,
            attributes: BTreeMap::new(),
            expires_at: muster_api::Time(Timestamp::MAX),
        };
        Offered {
            name: format!("o{index}"),
            offer: Offer::new("o", spec),
        }
    }

    fn asked(index: usize, cpus: u64, gpus: u64, ports: u32) -> Asked {
        let spec = TaskSpec {
            framework: "f".to_owned(),
            role: Some("r".to_owned()),
            command: vec!["x".to_owned()],
            resources: ResourceRequest {
                cpus: Scalar::from_milli(cpus),
                gpus: Scalar::from_milli(gpus),
                ports: PortRequest::Count(ports),
                ..ResourceRequest::default()
            },
            ..TaskSpec::default()
        };
        Asked {
            place: format!("launch[{index}]"),
            task: Task::new(&format!("t{index}"), spec),
            exists: false,
        }
    }

    fn any_offers() -> impl Strategy<Value = Vec<Offered>> {
        let one = (0u64..4000, prop::collection::btree_set(0u8..4, 0..4), 0u16..5);
        prop::collection::vec(one, 1..4).prop_map(|offers| {
            let offers = offers.into_iter().enumerate();
            offers
                .map(|(index, (cpus, devices, ports))| {
                    let base = 100 * (index as u16 + 1);
                    let devices: Vec<u8> = devices.into_iter().collect();
                    offered(index, cpus, &devices, PortSet::from_ports(base..base + ports))
                })
                .collect()
        })
    }

    fn any_tasks() -> impl Strategy<Value = Vec<Asked>> {
        let gpus = prop_oneof![3 => Just(0u64), 3 => Just(1000), 1 => Just(2000), 1 => Just(500)];
        let one = (0u64..1500, gpus, 0u32..3);
        prop::collection::vec(one, 1..6).prop_map(|tasks| {
            let tasks = tasks.into_iter().enumerate();
            tasks
                .map(|(index, (cpus, gpus, ports))| asked(index, cpus, gpus, ports))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn tasks_never_get_more_than_the_offers_hold(offers in any_offers(), tasks in any_tasks()) {
            let total = offers.iter().try_fold(Bundle::default(), |sum, offered| sum.checked_add(&offered.offer.bundle()));
            let total = total.expect("the offers are disjoint");
            match accept(&offers, &tasks, Timestamp::UNIX_EPOCH) {
                Ok(placed) => {
                    prop_assert_eq!(placed.len(), tasks.len());
                    let mut given = Bundle::default();
                    for (placed, asked) in placed.iter().zip(&tasks) {
                        match placed {
                            Placed::Bound(bundle) => {
                                prop_assert_eq!(Some(bundle.amounts()), asked.task.spec.resources.amounts());
                                given = given.checked_add(bundle).expect("nothing is given twice");
                            }
                            Placed::Impossible(_) => prop_assert_eq!(asked.task.spec.resources.gpus.units(), None),
                        }
                    }
                    prop_assert!(total.contains(&given));
                }
                Err(error) => {
                    prop_assert_eq!(error.code.as_u16(), 422);
                    let wanted = tasks.iter().filter_map(|asked| asked.task.spec.resources.amounts());
                    let sum = wanted.fold(Amounts::ZERO, |sum, amounts| sum.checked_add(&amounts).expect("small"));
                    prop_assert!(!total.amounts().contains(&sum), "what fits is not refused");
                }
            }
        }
    }

    #[test]
    fn devices_that_belong_together_are_taken_together() {
        let mut offer = offered(0, 4000, &[0, 1, 2, 3], PortSet::new());
        let uuids: Vec<String> = offer
            .offer
            .spec
            .devices
            .iter()
            .map(|device| device.uuid.clone())
            .collect();
        for (place, device) in offer.offer.spec.devices.iter_mut().enumerate() {
            // 0 and 3 are linked, and 1 and 2.
            device.links.insert(uuids[3 - place].clone(), Path::NvLink(4));
        }
        let close = |index, gpus| {
            let mut task = asked(index, 1000, gpus, 0);
            task.task.spec.gpu = Some(GpuSelector {
                topology: Topology::Required,
                ..GpuSelector::default()
            });
            task
        };
        let tasks = [asked(0, 1000, 1000, 0), close(1, 2000)];
        let placed = accept(&[offer.clone()], &tasks, Timestamp::UNIX_EPOCH).expect("it fits");
        let Placed::Bound(pair) = &placed[1] else {
            panic!("{placed:?}");
        };
        let places: Vec<usize> = (0..4).filter(|place| pair.devices.contains(&uuids[*place])).collect();
        assert_eq!(places.iter().sum::<usize>(), 3, "{places:?}");
        let error = accept(&[offer], &[close(0, 3000)], Timestamp::UNIX_EPOCH).expect_err("three are never close");
        assert!(format!("{error:?}").contains("reach each other"), "{error:?}");
    }

    #[test]
    fn the_lowest_devices_and_ports_are_taken_first() {
        let offers = [
            offered(1, 1000, &[2, 0], PortSet::from_ports([7, 5])),
            offered(0, 1000, &[3], PortSet::from_ports([6])),
        ];
        let placed = accept(&offers, &[asked(0, 2000, 2000, 2)], Timestamp::UNIX_EPOCH).expect("it fits");
        let Placed::Bound(bundle) = &placed[0] else {
            panic!("{placed:?}");
        };
        assert_eq!(bundle.devices.iter().collect::<Vec<_>>(), ["GPU-0-3", "GPU-1-0"]);
        assert_eq!(bundle.ports.to_string(), "5-6");
        assert_eq!(bundle.cpus, Scalar::from_units(2), "several offers add up");
    }
}
