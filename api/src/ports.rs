//! Sets of ports, kept as sorted, disjoint, inclusive ranges.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A set of ports. On the wire: a list of `"31000-31999"` or `"31005"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    /// Sorted; neighbours neither overlap nor touch.
    ranges: Vec<(u16, u16)>,
}

/// Why a text is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of ports; write one like 31000-31999 or 31005, from 1 to 65535, the lower end first")]
pub struct PortRangeError(String);

/// Ranges of ports in one set at most; 1,000 scattered tasks of one agent fit.
const RANGES_MAX: usize = 4096;

impl PortSet {
    /// No ports.
    pub const fn new() -> PortSet {
        PortSet { ranges: Vec::new() }
    }

    /// All ports from `low` to `high`, both included; empty when `low` is above `high`.
    pub fn range(low: u16, high: u16) -> PortSet {
        PortSet {
            ranges: if low <= high { vec![(low, high)] } else { Vec::new() },
        }
    }

    /// The given ports.
    pub fn from_ports(ports: impl IntoIterator<Item = u16>) -> PortSet {
        PortSet::normalized(ports.into_iter().map(|port| (port, port)).collect())
    }

    fn normalized(mut ranges: Vec<(u16, u16)>) -> PortSet {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some((_, end)) if u32::from(low) <= u32::from(*end) + 1 => *end = (*end).max(high),
                _ => merged.push((low, high)),
            }
        }
        PortSet { ranges: merged }
    }

    /// How many ports.
    pub fn len(&self) -> u32 {
        self.ranges.iter().map(|(low, high)| u32::from(high - low) + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ports, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|(low, high)| *low..=*high)
    }

    /// The sorted, disjoint ranges.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    /// Whether every port of `other` is in here.
    pub fn contains(&self, other: &PortSet) -> bool {
        other
            .ranges
            .iter()
            .all(|(low, high)| self.ranges.iter().any(|(from, to)| from <= low && high <= to))
    }

    /// Whether no port is in both.
    pub fn is_disjoint(&self, other: &PortSet) -> bool {
        other
            .ranges
            .iter()
            .all(|(low, high)| self.ranges.iter().all(|(from, to)| to < low || high < from))
    }

    /// The ports of both; `None` when they share one.
    pub fn checked_union(&self, other: &PortSet) -> Option<PortSet> {
        self.is_disjoint(other)
            .then(|| PortSet::normalized([self.ranges.as_slice(), &other.ranges].concat()))
    }

    /// What is left without the ports of `other`; `None` when one of them is not in here.
    pub fn checked_difference(&self, other: &PortSet) -> Option<PortSet> {
        self.contains(other).then(|| self.difference(other))
    }

    /// The ports in here that are not in `other`.
    pub fn difference(&self, other: &PortSet) -> PortSet {
        let mut left = Vec::with_capacity(self.ranges.len());
        for (first, high) in &self.ranges {
            let mut low = *first;
            let mut done = false;
            for (from, to) in other.ranges.iter().filter(|(_, to)| to >= first) {
                if from > high {
                    break;
                }
                if *from > low {
                    left.push((low, from - 1));
                }
                if to >= high {
                    done = true;
                    break;
                }
                low = to + 1;
            }
            if !done {
                left.push((low, *high));
            }
        }
        PortSet { ranges: left }
    }

    /// The `count` lowest ports; `None` when there are fewer.
    pub fn lowest(&self, count: u32) -> Option<PortSet> {
        let mut missing = count;
        let mut taken = Vec::new();
        for (low, high) in &self.ranges {
            if missing == 0 {
                break;
            }
            let size = (u32::from(high - low) + 1).min(missing);
            taken.push((*low, low + (size - 1) as u16));
            missing -= size;
        }
        (missing == 0).then_some(PortSet { ranges: taken })
    }
}

fn parse_range(text: &str) -> Result<(u16, u16), PortRangeError> {
    let error = || PortRangeError(text.chars().take(64).collect());
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port > 0 && !text.starts_with('+'))
    };
    match (port(low), port(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        _ => Err(error()),
    }
}

impl FromStr for PortSet {
    type Err = PortRangeError;

    /// Reads ranges separated by commas.
    fn from_str(text: &str) -> Result<PortSet, PortRangeError> {
        let ranges: Result<_, _> = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(parse_range)
            .collect();
        ranges.map(PortSet::normalized)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", range_text(range))?;
        }
        Ok(())
    }
}

fn range_text((low, high): &(u16, u16)) -> String {
    if low == high {
        low.to_string()
    } else {
        format!("{low}-{high}")
    }
}

impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges.iter().map(range_text))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortItem {
    Number(u16),
    Text(String),
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
        let items = Vec::<PortItem>::deserialize(deserializer)?;
        if items.len() > RANGES_MAX {
            return Err(D::Error::custom(format!(
                "{} ranges of ports; at most {RANGES_MAX}",
                items.len()
            )));
        }
        let ranges: Result<Vec<_>, _> = items
            .into_iter()
            .map(|item| match item {
                PortItem::Number(port) => parse_range(&port.to_string()),
                PortItem::Text(text) => parse_range(&text),
            })
            .collect();
        ranges.map(PortSet::normalized).map_err(D::Error::custom)
    }
}

impl JsonSchema for PortSet {
    fn schema_name() -> Cow<'static, str> {
        "PortSet".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": { "x-kubernetes-int-or-string": true },
            "x-kubernetes-list-type": "atomic",
            "description": "Ports, as inclusive ranges such as \"31000-31999\" or single ports."
        })
    }
}

/// The ports that a task asks for. On the wire: a number, or a list of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRequest {
    /// Any so many ports of the agent.
    Count(u32),
    /// Exactly these.
    These(PortSet),
}

impl Default for PortRequest {
    fn default() -> PortRequest {
        PortRequest::Count(0)
    }
}

impl PortRequest {
    /// How many ports.
    pub fn count(&self) -> u32 {
        match self {
            PortRequest::Count(count) => *count,
            PortRequest::These(ports) => ports.len(),
        }
    }

    /// Chooses from what is free; `None` when it cannot be had.
    pub fn choose(&self, free: &PortSet) -> Option<PortSet> {
        match self {
            PortRequest::Count(count) => free.lowest(*count),
            PortRequest::These(ports) => free.contains(ports).then(|| ports.clone()),
        }
    }

    /// Whether no port is asked for.
    pub fn is_none(&self) -> bool {
        self.count() == 0
    }
}

impl Serialize for PortRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PortRequest::Count(count) => serializer.serialize_u32(*count),
            PortRequest::These(ports) => ports.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PortRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortRequest, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match &value {
            serde_json::Value::Number(number) => {
                let count = number
                    .as_u64()
                    .and_then(|count| u32::try_from(count).ok())
                    .filter(|count| *count <= 65_535);
                let count =
                    count.ok_or_else(|| D::Error::custom(format!("{number} is not a number of ports (0 to 65535)")))?;
                Ok(PortRequest::Count(count))
            }
            serde_json::Value::Array(_) => PortSet::deserialize(value)
                .map(PortRequest::These)
                .map_err(D::Error::custom),
            _ => Err(D::Error::custom(
                "expected a number of ports, or a list of ranges such as [\"31000-31001\"]",
            )),
        }
    }
}

impl JsonSchema for PortRequest {
    fn schema_name() -> Cow<'static, str> {
        "PortRequest".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-preserve-unknown-fields": true,
            "description": "How many ports, or a list of ranges such as [\"31000-31001\"]."
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ports(text: &str) -> PortSet {
        text.parse().expect(text)
    }

    #[test]
    fn ranges_are_merged_and_printed() {
        assert_eq!(ports("5,1-2,3,9-12,10").to_string(), "1-3,5,9-12");
        assert_eq!(ports("1-65535").len(), 65_535);
        for text in ["0", "70000", "5-4", "a", "1-2-3", "-", "+5"] {
            assert!(text.parse::<PortSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn requests_choose_from_what_is_free() {
        let free = ports("31000-31001,31005");
        assert_eq!(PortRequest::Count(3).choose(&free), Some(free.clone()));
        assert_eq!(PortRequest::Count(4).choose(&free), None);
        assert_eq!(PortRequest::These(ports("31001")).choose(&free), Some(ports("31001")));
        assert_eq!(PortRequest::These(ports("31004-31005")).choose(&free), None);
    }

    #[test]
    fn requests_are_read_from_json() {
        let read = |json: &str| serde_json::from_str::<PortRequest>(json).map_err(|error| error.to_string());
        assert_eq!(read("2"), Ok(PortRequest::Count(2)));
        assert_eq!(
            read("[\"31000-31001\", 31005]"),
            Ok(PortRequest::These(ports("31000-31001,31005")))
        );
        for json in ["-1", "1.5", "70000", "\"2\"", "[0]", "[\"x\"]", "{}"] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    fn any_set() -> impl Strategy<Value = BTreeSet<u16>> {
        prop::collection::btree_set(1u16..60, 0..30)
    }

    proptest! {
        #[test]
        fn the_algebra_is_that_of_sets(a in any_set(), b in any_set(), count in 0u32..40) {
            let (left, right) = (PortSet::from_ports(a.iter().copied()), PortSet::from_ports(b.iter().copied()));
            prop_assert_eq!(left.len() as usize, a.len());
            prop_assert_eq!(left.contains(&right), b.is_subset(&a));
            prop_assert_eq!(left.is_disjoint(&right), a.is_disjoint(&b));
            prop_assert_eq!(left.difference(&right), PortSet::from_ports(a.difference(&b).copied()));
            prop_assert_eq!(left.checked_difference(&right).is_some(), b.is_subset(&a));
            let union = left.checked_union(&right);
            prop_assert_eq!(union.is_some(), a.is_disjoint(&b));
            if let Some(union) = union {
                prop_assert_eq!(union, PortSet::from_ports(a.union(&b).copied()));
            }
            let lowest = left.lowest(count).map(|set| set.iter().collect::<Vec<_>>());
            let expected: Vec<u16> = a.iter().copied().take(count as usize).collect();
            prop_assert_eq!(lowest, (count as usize <= a.len()).then_some(expected));
        }

        #[test]
        fn the_wire_form_gives_the_set_back(a in any_set()) {
            let set = PortSet::from_ports(a);
            let json = serde_json::to_string(&set).expect("serializes");
            prop_assert_eq!(serde_json::from_str::<PortSet>(&json).expect("parses"), set);
        }
    }
}
