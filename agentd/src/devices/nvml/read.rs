//! Reads one state of all GPUs from NVML. Every call goes to the driver, takes some microseconds, and may fail by itself; what a card does
//! not support is simply not known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_api::device::Device;
use muster_api::quantity::ByteSize;
use muster_api::topology::Path as Way;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::error::NvmlError;

/// The most NVLinks of one GPU that are asked for: as many as the interface of the driver knows.
const NVLINKS_MAX: u32 = 18;

/// One GPU as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpu {
    /// What is said of it, health aside.
    pub(super) device: Device,
    /// The number of its node.
    pub(super) minor: u32,
    /// Whether it is cut into instances, so that it cannot be given out whole.
    pub(super) is_cut: bool,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// The version of the driver.
    pub(super) driver: String,
    /// By UUID.
    pub(super) gpus: BTreeMap<String, Gpu>,
    /// GPUs that could not be read, in words.
    pub(super) problems: Vec<String>,
}

/// Which buses the NVLinks of a GPU lead to, and how many each.
type Links = BTreeMap<String, u8>;

/// Reads them all. `pci` is where the kernel shows the devices of the bus.
///
/// # Errors
/// When not even their number can be read.
pub(super) fn inventory(nvml: &Nvml, pci: &Path) -> Result<Inventory, NvmlError> {
    let mut inventory = Inventory {
        driver: nvml.sys_driver_version()?,
        ..Inventory::default()
    };
    let mut found: Vec<(nvml_wrapper::Device<'_>, String, String, Links)> = Vec::new();
    for index in 0..nvml.device_count()? {
        let read = nvml.device_by_index(index).and_then(|device| {
            let gpu = gpu(&device, pci)?;
            Ok((device, gpu))
        });
        match read {
            Ok((device, mut gpu)) => {
                gpu.device.driver = Some(inventory.driver.clone());
                let address = gpu.device.pci_address.clone().unwrap_or_default();
                let links = links(&device);
                found.push((device, gpu.device.uuid.clone(), address, links));
                inventory.gpus.insert(gpu.device.uuid.clone(), gpu);
            }
            Err(error) => inventory.problems.push(format!("GPU {index} cannot be read: {error}")),
        }
    }
    let addresses: Vec<&String> = found.iter().map(|(_, _, address, _)| address).collect();
    for (place, (device, uuid, address, links)) in found.iter().enumerate() {
        for (_, other_uuid, other_address, other_links) in &found[place + 1..] {
            let nvlinks = nvlinks((address, links), (other_address, other_links), &addresses);
            let way = match nvlinks {
                0 => over_pcie(nvml, device, other_uuid),
                links => Way::NvLink(links),
            };
            for (from, to) in [(uuid, other_uuid), (other_uuid, uuid)] {
                if let Some(gpu) = inventory.gpus.get_mut(from) {
                    gpu.device.links.insert(to.clone(), way);
                }
            }
        }
    }
    Ok(inventory)
}

fn gpu(device: &nvml_wrapper::Device<'_>, pci: &Path) -> Result<Gpu, NvmlError> {
    let address = address(&device.pci_info()?.bus_id);
    let capability = device.cuda_compute_capability().ok();
    let place = pci.join(&address);
    Ok(Gpu {
        minor: device.minor_number()?,
        is_cut: device.mig_mode().is_ok_and(|mode| mode.current == 1),
        device: Device {
            uuid: device.uuid()?,
            model: device.name()?,
            memory: ByteSize::from_bytes(device.memory_info()?.total),
            compute_capability: capability.map(|version| format!("{}.{}", version.major, version.minor)),
            numa_node: numa_node(&place),
            pcie_root: pcie_root(&place),
            pci_address: Some(address),
            ..Device::default()
        },
    })
}

/// The address as the kernel writes it: `0000:1b:00.0`, where NVML says `00000000:1B:00.0`.
fn address(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => format!("{}:{rest}", &domain[domain.len() - 4..]),
        _ => lower,
    }
}

fn numa_node(place: &Path) -> Option<u32> {
    // The kernel says -1 where there is only one.
    std::fs::read_to_string(place.join("numa_node"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn pcie_root(place: &Path) -> Option<String> {
    let real: PathBuf = place.canonicalize().ok()?;
    let mut parts = real
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    parts.find(|part| part.starts_with("pci") && part.contains(':'))
}

fn links(device: &nvml_wrapper::Device<'_>) -> Links {
    let mut links = Links::new();
    for number in 0..NVLINKS_MAX {
        let link = device.link_wrapper_for(number);
        match link.is_active() {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => break,
        }
        // A link whose other end is not told leads to a switch.
        let remote = link
            .remote_pci_info()
            .map(|remote| address(&remote.bus_id))
            .unwrap_or_default();
        let count = links.entry(remote).or_default();
        *count = u8::saturating_add(*count, 1);
    }
    links
}

/// How many NVLinks join two GPUs: those from one to the other, and through switches as many as both have.
fn nvlinks(a: (&String, &Links), b: (&String, &Links), gpus: &[&String]) -> u8 {
    let direct = a.1.get(b.0).or(b.1.get(a.0)).copied().unwrap_or(0);
    let switched = |links: &Links| {
        let others = links.iter().filter(|(remote, _)| !gpus.contains(remote));
        others.fold(0u8, |sum, (_, count)| sum.saturating_add(*count))
    };
    direct.saturating_add(switched(a.1).min(switched(b.1)))
}

fn over_pcie(nvml: &Nvml, device: &nvml_wrapper::Device<'_>, other: &str) -> Way {
    let other = nvml.device_by_uuid(other);
    let level = other.and_then(|other| device.topology_common_ancestor(other));
    level.map_or(Way::Unknown, way)
}

fn way(level: TopologyLevel) -> Way {
    match level {
        TopologyLevel::Internal | TopologyLevel::Single => Way::Switch,
        TopologyLevel::Multiple => Way::Switches,
        TopologyLevel::HostBridge => Way::HostBridge,
        TopologyLevel::Node => Way::Node,
        TopologyLevel::System => Way::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_writes_them() {
        assert_eq!(address("00000000:1B:00.0"), "0000:1b:00.0");
        assert_eq!(address("0000:1b:00.0"), "0000:1b:00.0");
    }

    #[test]
    fn nvlinks_are_direct_or_through_switches() {
        let gpus = ["a", "b", "c"].map(str::to_owned);
        let all: Vec<&String> = gpus.iter().collect();
        let links = |pairs: &[(&str, u8)]| {
            pairs
                .iter()
                .map(|(to, count)| ((*to).to_owned(), *count))
                .collect::<Links>()
        };
        let (a, b, c) = (
            links(&[("b", 4), ("s0", 6), ("s1", 6)]),
            links(&[("a", 4)]),
            links(&[("s0", 6)]),
        );
        assert_eq!(nvlinks((&gpus[0], &a), (&gpus[1], &b), &all), 4);
        assert_eq!(nvlinks((&gpus[0], &a), (&gpus[2], &c), &all), 6);
        assert_eq!(nvlinks((&gpus[1], &b), (&gpus[2], &c), &all), 0);
    }

    #[test]
    fn where_a_card_hangs_is_read_from_the_kernel() {
        let root = tempfile::tempdir().expect("a directory");
        let card = root.path().join("sys/devices/pci0000:17/0000:17:01.0/0000:1b:00.0");
        std::fs::create_dir_all(&card).expect("made");
        std::fs::write(card.join("numa_node"), "1\n").expect("written");
        let place = root.path().join("0000:1b:00.0");
        std::os::unix::fs::symlink(&card, &place).expect("linked");
        assert_eq!(pcie_root(&place).as_deref(), Some("pci0000:17"));
        assert_eq!(numa_node(&place), Some(1));
        assert_eq!(numa_node(Path::new("/nowhere")), None);
    }
}
