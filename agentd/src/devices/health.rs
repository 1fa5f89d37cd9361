//! Whether a GPU may be used: what was seen of it, turned into a verdict by one table. Pure.
//!
//! The table follows the recommended actions of NVIDIA's catalogue of XID errors. It promises: a fault of a program never costs a GPU; a
//! fault of a GPU never costs more than that GPU; a GPU that was taken out says why and what to do; a verdict only gets better by time
//! without a finding ([`Record::quiet`]) or by a person.
//!
//! Tested row by row.

use std::time::Duration;

use jiff::Timestamp;
use muster_api::device::DeviceHealth;
use serde::{Deserialize, Serialize};

/// How long a suspect has to be without a finding to be healthy again.
pub const SUSPECT_FOR: Duration = Duration::from_secs(10 * 60);

/// Within this, a second finding of the same kind counts as a repetition.
pub const REPEATS_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Something that was seen of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// The driver reported this XID.
    Xid(u64),
    /// The driver does not know it any more.
    Lost,
}

/// What a finding means, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What the GPU is the first time; healthy: a program did it, or it is for the record.
    pub first: DeviceHealth,
    /// What it is when it comes again soon.
    pub again: DeviceHealth,
    /// In words.
    pub meaning: &'static str,
}

/// The policy: one row for each finding that is known.
pub fn rule(finding: Finding) -> Rule {
    use DeviceHealth::{Cordoned, Faulty, Healthy, Suspect};
    let (first, again, meaning) = match finding {
        Finding::Lost | Finding::Xid(79) => (
            Faulty,
            Faulty,
            "it fell off the bus; restart the machine, and have it looked at if that happens again",
        ),
        Finding::Xid(13 | 31 | 43 | 45 | 68 | 109) => (Healthy, Healthy, "a program did something wrong on it"),
        Finding::Xid(94) => (
            Healthy,
            Healthy,
            "a memory error ended the program that met it, and nothing else",
        ),
        Finding::Xid(63 | 92) => (Healthy, Healthy, "its memory repaired itself"),
        Finding::Xid(48) => (
            Cordoned,
            Faulty,
            "its memory has an error that cannot be corrected; reset it",
        ),
        Finding::Xid(64) => (Cordoned, Faulty, "its memory could not be repaired; reset it"),
        Finding::Xid(74) => (Suspect, Cordoned, "one of its NVLinks had an error"),
        Finding::Xid(95) => (
            Cordoned,
            Faulty,
            "a memory error may have touched everything on it; reset it",
        ),
        Finding::Xid(119 | 120) => (Cordoned, Faulty, "its own processor does not answer; reset it"),
        Finding::Xid(_) => (
            Suspect,
            Suspect,
            "the driver reports an error that is not known here; look it up in NVIDIA's catalogue",
        ),
    };
    Rule { first, again, meaning }
}

/// What is known of one GPU's health. Kept over restarts of the agent; a restart of the machine begins anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The verdict.
    pub health: DeviceHealth,
    /// Why, for people; empty while it is healthy.
    pub message: String,
    /// The last finding that was not only noted, and when.
    pub last: Option<(Finding, Timestamp)>,
}

fn since(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or_default()
}

impl Record {
    /// After a finding.
    pub fn found(&self, finding: Finding, now: Timestamp) -> Record {
        let rule = rule(finding);
        let repeated = self
            .last
            .is_some_and(|(last, at)| last == finding && since(at, now) <= REPEATS_WITHIN);
        let health = if repeated { rule.again } else { rule.first };
        if health == DeviceHealth::Healthy {
            return self.clone();
        }
        let what = match finding {
            Finding::Xid(number) => format!("XID {number}: "),
            Finding::Lost => String::new(),
        };
        // A verdict does not get better by another fault.
        let worse = health >= self.health;
        Record {
            health: health.max(self.health),
            message: if worse {
                format!("{what}{}", rule.meaning)
            } else {
                self.message.clone()
            },
            last: Some((finding, now)),
        }
    }

    /// After an operator has seen to it: what was found until then counts no more, but for telling a repetition.
    pub fn trusted(&self, since: Timestamp) -> Record {
        if self.last.is_none_or(|(_, at)| at > since) {
            return self.clone();
        }
        Record {
            last: self.last,
            ..Record::default()
        }
    }

    /// After some time without a finding: suspects are healthy again.
    pub fn quiet(&self, now: Timestamp) -> Record {
        let long = self.last.is_none_or(|(_, at)| since(at, now) >= SUSPECT_FOR);
        if self.health != DeviceHealth::Suspect || !long {
            return self.clone();
        }
        Record {
            health: DeviceHealth::Healthy,
            message: String::new(),
            last: self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    #[track_caller]
    fn check(findings: &[(Finding, i64)], health: DeviceHealth, part: &str) {
        let record = findings.iter().fold(Record::default(), |record, (finding, seconds)| {
            record.found(*finding, at(*seconds))
        });
        assert_eq!(record.health, health, "{record:?}");
        assert!(record.message.contains(part), "{record:?}");
        assert_eq!(record.message.is_empty(), health == DeviceHealth::Healthy);
    }

    #[test]
    fn every_row_of_the_policy() {
        use DeviceHealth::{Cordoned, Faulty, Healthy, Suspect};
        use Finding::{Lost, Xid};
        for harmless in [13, 31, 43, 45, 68, 109, 94, 63, 92] {
            check(&[(Xid(harmless), 0), (Xid(harmless), 1)], Healthy, "");
        }
        for (number, part) in [
            (48, "XID 48"),
            (64, "reset"),
            (95, "reset"),
            (119, "does not answer"),
            (120, "reset"),
        ] {
            check(&[(Xid(number), 0)], Cordoned, part);
            check(&[(Xid(number), 0), (Xid(number), 60)], Faulty, part);
            check(&[(Xid(number), 0), (Xid(number), 100_000)], Cordoned, part);
        }
        check(&[(Xid(74), 0)], Suspect, "NVLink");
        check(&[(Xid(74), 0), (Xid(74), 60)], Cordoned, "NVLink");
        check(&[(Xid(79), 0)], Faulty, "restart the machine");
        check(&[(Lost, 0)], Faulty, "fell off the bus");
        check(&[(Xid(777), 0), (Xid(777), 1)], Suspect, "XID 777");
    }

    #[test]
    fn a_lesser_fault_does_not_hide_a_greater_one() {
        check(
            &[(Finding::Xid(79), 0), (Finding::Xid(74), 1)],
            DeviceHealth::Faulty,
            "XID 79",
        );
        check(
            &[(Finding::Xid(48), 0), (Finding::Xid(31), 1)],
            DeviceHealth::Cordoned,
            "XID 48",
        );
    }

    #[test]
    fn an_operators_word_is_about_what_was_found_before() {
        let cordoned = Record::default().found(Finding::Xid(48), at(10));
        assert_eq!(cordoned.trusted(at(9)), cordoned);
        let back = cordoned.trusted(at(10));
        assert_eq!(back.health, DeviceHealth::Healthy);
        assert_eq!(
            back.found(Finding::Xid(48), at(60)).health,
            DeviceHealth::Faulty,
            "a repetition is remembered"
        );
    }

    #[test]
    fn a_suspect_comes_back_by_itself_and_others_do_not() {
        let suspect = Record::default().found(Finding::Xid(74), at(0));
        assert_eq!(suspect.quiet(at(60)).health, DeviceHealth::Suspect);
        let back = suspect.quiet(at(601));
        assert_eq!((back.health, back.message.as_str()), (DeviceHealth::Healthy, ""));
        assert_eq!(
            back.found(Finding::Xid(74), at(700)).health,
            DeviceHealth::Cordoned,
            "a repetition is remembered"
        );
        let cordoned = Record::default().found(Finding::Xid(48), at(0));
        assert_eq!(cordoned.quiet(at(1_000_000)), cordoned);
    }
}
