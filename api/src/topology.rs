//! How GPUs reach each other, and which of them belong together.
//!
//! Agents report for every pair of GPUs the best way between them; whoever gives out several picks those that reach each other best.
//! Pure, and the same everywhere: the allocator offers by it, and accepting an offer binds by it.
//!
//! It promises: for up to [`EXACT_MAX`] candidates the set with the best weakest pair is found, whatever the machine looks like; equal
//! input gives equal output. Property tests compare with every possible set.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::device::Device;

/// The best way between two GPUs of a machine; better ways are greater. In words as `nvidia-smi topo -m` prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Nobody knows.
    #[default]
    Unknown,
    /// Across the link between sockets: `SYS`.
    System,
    /// Across the host bridges of one socket: `NODE`.
    Node,
    /// Through one host bridge: `PHB`.
    HostBridge,
    /// Through several PCIe switches: `PXB`.
    Switches,
    /// Through one PCIe switch: `PIX`.
    Switch,
    /// Over so many bonded NVLinks: `NV18`.
    NvLink(u8),
}

impl Path {
    /// Whether it spares the processor and its memory: what [`Topology::Required`] asks of every pair.
    pub fn is_close(self) -> bool {
        self >= Path::Switches
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Path::Unknown => "X",
            Path::System => "SYS",
            Path::Node => "NODE",
            Path::HostBridge => "PHB",
            Path::Switches => "PXB",
            Path::Switch => "PIX",
            Path::NvLink(links) => return write!(f, "NV{links}"),
        };
        f.write_str(word)
    }
}

/// The text is no [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a way between GPUs; those are SYS, NODE, PHB, PXB, PIX and NV1 to NV255")]
pub struct PathError(String);

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Path, PathError> {
        let path = match text {
            "X" => Some(Path::Unknown),
            "SYS" => Some(Path::System),
            "NODE" => Some(Path::Node),
            "PHB" => Some(Path::HostBridge),
            "PXB" => Some(Path::Switches),
            "PIX" => Some(Path::Switch),
            _ => text
                .strip_prefix("NV")
                .and_then(|links| links.parse().ok())
                .filter(|links| *links > 0)
                .map(Path::NvLink),
        };
        path.ok_or_else(|| PathError(text.chars().take(16).collect()))
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Path, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Path {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Path".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "The best way between two GPUs: SYS (across sockets), NODE (across host bridges), PHB (one host bridge), PXB (PCIe switches), \
                            PIX (one PCIe switch), NV18 (so many NVLinks).",
            "pattern": "^(X|SYS|NODE|PHB|PXB|PIX|NV[1-9][0-9]{0,2})$",
        })
    }
}

/// How much it matters that the GPUs of a task reach each other well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Every two of them reach each other over NVLink or PCIe switches alone; otherwise the task waits.
    Required,
    /// Those that reach each other best among what is free.
    #[default]
    Preferred,
    /// It does not matter; the first that are free.
    Any,
}

/// Up to so many candidates, every set is looked at: 12,870 sets at most.
pub const EXACT_MAX: usize = 16;

/// The way between two devices: the better of what the two report; with nothing reported, the NUMA nodes tell.
pub fn between(a: &Device, b: &Device) -> Path {
    let reported = a.links.get(&b.uuid).max(b.links.get(&a.uuid)).copied();
    reported.unwrap_or(match (a.numa_node, b.numa_node) {
        (Some(one), Some(other)) if one == other => Path::Node,
        (Some(_), Some(_)) => Path::System,
        _ => Path::Unknown,
    })
}

/// Picks `count` of the candidates, as places in the list, ascending: the set whose weakest pair is best; among those the set with
/// the best pairs in all; then the one that leaves the best-connected rest; then the first. `None` when there are too few, or when
/// closeness is required and no set is close.
///
/// Beyond [`EXACT_MAX`] candidates the set grows from each device in turn by the best next one, which finds islands but not every oddity.
pub fn choose(candidates: &[&Device], count: usize, topology: Topology) -> Option<Vec<usize>> {
    if candidates.len() < count {
        return None;
    }
    let first = || (0..count).collect::<Vec<usize>>();
    if count == 0 || topology == Topology::Any {
        return Some(first());
    }
    let ways = Ways::of(candidates);
    if topology == Topology::Preferred && (ways.are_equal() || candidates.len() == count) {
        return Some(first());
    }
    let chosen = if candidates.len() <= EXACT_MAX {
        ways.best_of_all(count)
    } else {
        ways.best_grown(count)
    };
    let close = topology != Topology::Required || ways.weakest(&chosen).is_none_or(Path::is_close);
    close.then_some(chosen)
}

/// How good a set is; greater is better.
type Score = (Option<Path>, u64, u64, Reverse<Vec<usize>>);

/// The ways between every two candidates.
struct Ways {
    size: usize,
    paths: Vec<Path>,
}

impl Ways {
    fn of(candidates: &[&Device]) -> Ways {
        let pairs = candidates
            .iter()
            .flat_map(|a| candidates.iter().map(move |b| between(a, b)));
        Ways {
            size: candidates.len(),
            paths: pairs.collect(),
        }
    }

    fn path(&self, a: usize, b: usize) -> Path {
        self.paths[a * self.size + b]
    }

    fn pairs(set: &[usize]) -> impl Iterator<Item = (usize, usize)> {
        set.iter()
            .enumerate()
            .flat_map(|(place, a)| set[place + 1..].iter().map(|b| (*a, *b)))
    }

    fn are_equal(&self) -> bool {
        let all: Vec<usize> = (0..self.size).collect();
        let mut paths = Ways::pairs(&all).map(|(a, b)| self.path(a, b));
        let first = paths.next();
        paths.all(|path| Some(path) == first)
    }

    /// The weakest pair; `None` in a set of one.
    fn weakest(&self, set: &[usize]) -> Option<Path> {
        Ways::pairs(set).map(|(a, b)| self.path(a, b)).min()
    }

    /// The ways within a set in one number; each step of [`Path`] counts more than any number of NVLinks differ.
    fn sum(&self, set: &[usize]) -> u64 {
        let value = |path| match path {
            Path::Unknown => 0,
            Path::System => 1,
            Path::Node => 2,
            Path::HostBridge => 3,
            Path::Switches => 4,
            Path::Switch => 5,
            Path::NvLink(links) => 5 + u64::from(links),
        };
        Ways::pairs(set).map(|(a, b)| value(self.path(a, b))).sum()
    }

    fn score(&self, set: Vec<usize>) -> Score {
        let rest: Vec<usize> = (0..self.size).filter(|place| !set.contains(place)).collect();
        (self.weakest(&set), self.sum(&set), self.sum(&rest), Reverse(set))
    }

    fn best_of_all(&self, count: usize) -> Vec<usize> {
        let sets = (0u32..1 << self.size).filter(|bits| bits.count_ones() as usize == count);
        let members = |bits: u32| (0..self.size).filter(|place| bits & (1 << place) != 0).collect();
        self.best(sets.map(members))
    }

    fn best_grown(&self, count: usize) -> Vec<usize> {
        self.best((0..self.size).map(|seed| {
            let mut set = vec![seed];
            while set.len() < count {
                let joined = |next: &usize| {
                    let ways = set.iter().map(|member| self.path(*member, *next));
                    (ways.clone().min(), ways.max(), Reverse(*next))
                };
                let next = (0..self.size).filter(|place| !set.contains(place)).max_by_key(joined);
                set.extend(next);
            }
            set.sort_unstable();
            set
        }))
    }

    fn best(&self, sets: impl Iterator<Item = Vec<usize>>) -> Vec<usize> {
        let best = sets.map(|set| self.score(set)).max();
        best.expect("a set of this size exists").3.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Devices whose ways are given by a function of their places.
    fn machine(size: usize, way: impl Fn(usize, usize) -> Path) -> Vec<Device> {
        let uuid = |place: usize| format!("GPU-{place:02}");
        let device = |place: usize| Device {
            uuid: uuid(place),
            links: (0..size)
                .filter(|other| *other != place)
                .map(|other| (uuid(other), way(place.min(other), place.max(other))))
                .collect::<BTreeMap<String, Path>>(),
            ..Device::default()
        };
        (0..size).map(device).collect()
    }

    #[track_caller]
    fn check(devices: &[Device], free: &[usize], count: usize, topology: Topology, expect: Option<&[usize]>) {
        let candidates: Vec<&Device> = free.iter().map(|place| &devices[*place]).collect();
        let chosen = choose(&candidates, count, topology);
        let places = chosen.map(|chosen| chosen.into_iter().map(|place| free[place]).collect::<Vec<usize>>());
        assert_eq!(places.as_deref(), expect);
    }

    /// Two sockets with two switches of two GPUs each.
    fn two_sockets() -> Vec<Device> {
        machine(8, |a, b| match (a / 2 == b / 2, a / 4 == b / 4) {
            (true, _) => Path::Switch,
            (_, true) => Path::Node,
            _ => Path::System,
        })
    }

    #[test]
    fn neighbours_are_chosen_and_whole_islands_are_left() {
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        check(&two_sockets(), &all, 2, Topology::Preferred, Some(&[0, 1]));
        check(&two_sockets(), &[1, 2, 4, 5], 2, Topology::Preferred, Some(&[4, 5]));
        check(
            &two_sockets(),
            &[1, 2, 3, 4, 5, 6, 7],
            4,
            Topology::Preferred,
            Some(&[4, 5, 6, 7]),
        );
        check(&two_sockets(), &[0, 1, 2], 1, Topology::Preferred, Some(&[2]));
        check(&two_sockets(), &all, 3, Topology::Any, Some(&[0, 1, 2]));
    }

    #[test]
    fn required_waits_for_a_set_without_the_processor_between() {
        check(&two_sockets(), &[0, 2, 4, 6], 2, Topology::Required, None);
        check(&two_sockets(), &[0, 2, 3, 6], 2, Topology::Required, Some(&[2, 3]));
        check(&two_sockets(), &[0, 1, 2, 3], 3, Topology::Required, None);
        check(&two_sockets(), &[5], 1, Topology::Required, Some(&[5]));
        check(
            &machine(8, |_, _| Path::NvLink(18)),
            &[3, 4, 6, 7],
            4,
            Topology::Required,
            Some(&[3, 4, 6, 7]),
        );
    }

    #[test]
    fn more_nvlinks_are_better() {
        let cube = machine(4, |a, b| {
            if (a, b) == (1, 3) {
                Path::NvLink(4)
            } else {
                Path::NvLink(2)
            }
        });
        check(&cube, &[0, 1, 2, 3], 2, Topology::Preferred, Some(&[1, 3]));
    }

    #[test]
    fn many_devices_are_grown_from_islands() {
        let islands = machine(32, |a, b| if a / 8 == b / 8 { Path::NvLink(12) } else { Path::System });
        let free: Vec<usize> = (3..32).collect();
        check(
            &islands,
            &free,
            8,
            Topology::Required,
            Some(&[8, 9, 10, 11, 12, 13, 14, 15]),
        );
    }

    #[test]
    fn paths_are_written_as_they_are_read() {
        for text in ["X", "SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV18"] {
            assert_eq!(text.parse::<Path>().map(|path| path.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "NV", "NV0", "NV999", "nv1"] {
            assert!(text.parse::<Path>().is_err(), "{text}");
        }
    }

    fn any_path() -> impl Strategy<Value = Path> {
        let words = vec![Path::System, Path::Node, Path::HostBridge, Path::Switches, Path::Switch];
        prop_oneof![proptest::sample::select(words), (1u8..20).prop_map(Path::NvLink)]
    }

    proptest! {
        #[test]
        fn no_other_set_has_a_better_weakest_pair(
            paths in proptest::collection::vec(any_path(), 64), size in 1usize..9, count in 1usize..9,
        ) {
            let devices = machine(size, |a, b| paths[a * 8 + b]);
            let candidates: Vec<&Device> = devices.iter().collect();
            let chosen = choose(&candidates, count, Topology::Preferred);
            prop_assert_eq!(chosen.is_some(), count <= size);
            let ways = Ways::of(&candidates);
            let sets = (0u32..1 << size).filter(|bits| bits.count_ones() as usize == count);
            let best = sets
                .map(|bits| ways.weakest(&(0..size).filter(|place| bits & (1 << place) != 0).collect::<Vec<_>>()))
                .max();
            if let Some(chosen) = chosen {
                prop_assert_eq!(Some(ways.weakest(&chosen)), best);
                let close = ways.weakest(&chosen).is_none_or(Path::is_close);
                prop_assert_eq!(choose(&candidates, count, Topology::Required).is_some(), close);
            }
        }
    }
}
