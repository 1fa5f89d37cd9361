//! Whether a GPU may be used: what was seen of it, turned into a verdict by one table. Pure.
//!
//! What is seen are reports of the driver and what its readings say ([`findings`]). The table ([`rule`]) follows the recommended actions of
//! NVIDIA's catalogue of XID errors, and those that the driver recommends itself. It promises: a fault of a program never costs a GPU; a
//! fault of a GPU never costs more than that GPU; a GPU that was taken out says why, with what was seen, and what to do; a verdict only gets
//! better by time without a finding ([`Record::quiet`]) or by a person.
//!
//! Tested row by row.

use std::time::Duration;

use jiff::Timestamp;
use muster_api::device::DeviceHealth;
use muster_api::usage::{GpuReading, Recovery};
use serde::{Deserialize, Serialize};

/// How long a suspect has to be without a finding to be healthy again.
pub const SUSPECT_FOR: Duration = Duration::from_secs(10 * 60);

/// Within this, a second finding of the same kind counts as a repetition.
pub const REPEATS_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// How often something that goes on is noted: often enough that it does not look as if it were over ([`SUSPECT_FOR`]).
pub const NOTED_EVERY: Duration = Duration::from_secs(60);

/// Stands before what speaks against a GPU that was seen to.
const STILL: &str = "; it was seen to, but its self-test fails: ";

/// The bits of NVML for clocks that are low because the card is too hot, and because something outside wants it.
const HARDWARE_THERMAL: u64 = 0x40;
const POWER_BRAKE: u64 = 0x80;

/// Something that was seen of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// The driver reported this XID.
    Xid(u64),
    /// The driver does not know it any more.
    Lost,
    /// Its memory has had errors that could not be corrected.
    Uncorrected,
    /// Rows of its memory wait for a reset to be replaced.
    RemapPending,
    /// A row of its memory could not be replaced.
    RemapFailed,
    /// Pages of its memory wait for a restart to be retired.
    RetirementPending,
    /// It is too hot.
    Hot,
    /// Something outside slows it down.
    PowerBrake,
    /// The driver recommends this.
    Recovery(Recovery),
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
        Finding::Uncorrected => (
            Suspect,
            Cordoned,
            "its memory has had errors that could not be corrected; reset it when it is free",
        ),
        Finding::RemapPending => (
            Suspect,
            Suspect,
            "rows of its memory wait to be replaced; reset it when it is free",
        ),
        Finding::RetirementPending => (
            Suspect,
            Suspect,
            "pages of its memory wait to be retired; restart the machine when it is free",
        ),
        Finding::RemapFailed => (
            Faulty,
            Faulty,
            "a row of its memory could not be replaced; have the card exchanged",
        ),
        Finding::Hot => (
            Suspect,
            Suspect,
            "it is too hot and slows itself down; look at its cooling",
        ),
        Finding::PowerBrake => (
            Suspect,
            Suspect,
            "something outside slows it down; look at the power supply",
        ),
        Finding::Recovery(Recovery::None) => (Healthy, Healthy, "the driver recommends nothing"),
        Finding::Recovery(Recovery::DrainP2p) => (
            Suspect,
            Suspect,
            "the driver wants what uses other GPUs by way of it to end",
        ),
        Finding::Recovery(Recovery::DrainAndReset) => {
            (Suspect, Suspect, "the driver wants a reset; reset it when it is free")
        }
        Finding::Recovery(Recovery::Reset) => (Cordoned, Cordoned, "the driver wants a reset; reset it"),
        Finding::Recovery(Recovery::Reboot) => (Faulty, Faulty, "the driver wants a restart; restart the machine"),
        // What it recommends is read, and has a rule of its own.
        Finding::Xid(154) => (Healthy, Healthy, "the driver recommends something else than before"),
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

/// What a reading tells, compared with the one before it, each with what was seen.
pub fn findings(before: Option<&GpuReading>, now: &GpuReading) -> Vec<(Finding, String)> {
    let mut found = Vec::new();
    let errors = |reading: &GpuReading| reading.ecc_volatile.uncorrected;
    if let (Some(earlier), Some(errors)) = (before.and_then(errors), errors(now))
        && errors > earlier
    {
        found.push((Finding::Uncorrected, format!("{errors} since the driver was loaded")));
    }
    let flags = [
        (now.remap_pending, Finding::RemapPending),
        (now.remap_failed, Finding::RemapFailed),
        (now.retirement_pending, Finding::RetirementPending),
    ];
    let set = flags.into_iter().filter(|(flag, _)| *flag == Some(true));
    found.extend(set.map(|(_, finding)| (finding, String::new())));
    let bit = |bit| now.throttle_reasons.is_some_and(|reasons| reasons & bit != 0);
    match (now.temperature, now.slowdown_temperature) {
        (Some(is), Some(limit)) if is >= limit && limit > 0 => {
            found.push((Finding::Hot, format!("{is}C, and {limit}C is the limit")));
        }
        (Some(is), _) if bit(HARDWARE_THERMAL) => found.push((Finding::Hot, format!("{is}C"))),
        _ => {}
    }
    if bit(POWER_BRAKE) {
        found.push((Finding::PowerBrake, String::new()));
    }
    if let Some(recovery) = now.recovery.filter(|recovery| *recovery != Recovery::None) {
        found.push((Finding::Recovery(recovery), String::new()));
    }
    found
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
        self.found_with(finding, "", now)
    }

    /// Whether a finding of something that goes on is worth noting: it is another one than the last, or that was a while ago.
    pub fn is_news(&self, finding: Finding, now: Timestamp) -> bool {
        self.last
            .is_none_or(|(last, at)| last != finding || since(at, now) >= NOTED_EVERY)
    }

    /// After a finding, with what was seen.
    pub fn found_with(&self, finding: Finding, seen: &str, now: Timestamp) -> Record {
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
            _ => String::new(),
        };
        let seen = if seen.is_empty() {
            String::new()
        } else {
            format!(" ({seen})")
        };
        // A verdict does not get better by another fault; and what goes on is said once, as it was when it began.
        let goes_on = repeated && health == self.health;
        let worse = health >= self.health && !goes_on;
        Record {
            health: health.max(self.health),
            message: if worse {
                format!("{what}{}{seen}", rule.meaning)
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

    /// After an operator has seen to it, and something still speaks against it.
    pub fn kept_out(&self, since: Timestamp, against: &str) -> Record {
        if self.health == DeviceHealth::Healthy || self.last.is_none_or(|(_, at)| at > since) {
            return self.clone();
        }
        let message = self.message.split(STILL).next().unwrap_or_default();
        Record {
            message: format!("{message}{STILL}{against}"),
            ..self.clone()
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
    use muster_api::usage::Counts;

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

    /// A test for each row: the finding, what the GPU is after it, what it is after it came again soon, and a part of what is said.
    macro_rules! rows {
        ($($name:ident: $finding:expr => $first:ident, $again:ident, $part:expr;)*) => {
            $(#[test]
            fn $name() {
                check(&[($finding, 0)], DeviceHealth::$first, $part);
                check(&[($finding, 0), ($finding, 60)], DeviceHealth::$again, $part);
                check(&[($finding, 0), ($finding, 100_000)], DeviceHealth::$first, $part);
            })*
        };
    }

    rows! {
        xid_13_graphics_exception: Finding::Xid(13) => Healthy, Healthy, "";
        xid_31_page_fault: Finding::Xid(31) => Healthy, Healthy, "";
        xid_43_program_stopped: Finding::Xid(43) => Healthy, Healthy, "";
        xid_45_cleanup: Finding::Xid(45) => Healthy, Healthy, "";
        xid_48_double_bit_error: Finding::Xid(48) => Cordoned, Faulty, "XID 48";
        xid_63_row_remapped: Finding::Xid(63) => Healthy, Healthy, "";
        xid_64_remap_failed: Finding::Xid(64) => Cordoned, Faulty, "reset";
        xid_68_video_exception: Finding::Xid(68) => Healthy, Healthy, "";
        xid_74_nvlink: Finding::Xid(74) => Suspect, Cordoned, "NVLink";
        xid_79_off_the_bus: Finding::Xid(79) => Faulty, Faulty, "restart the machine";
        xid_92_single_bit_rate: Finding::Xid(92) => Healthy, Healthy, "";
        xid_94_contained: Finding::Xid(94) => Healthy, Healthy, "";
        xid_95_uncontained: Finding::Xid(95) => Cordoned, Faulty, "reset";
        xid_109_context_switch: Finding::Xid(109) => Healthy, Healthy, "";
        xid_119_processor_silent: Finding::Xid(119) => Cordoned, Faulty, "does not answer";
        xid_120_processor_error: Finding::Xid(120) => Cordoned, Faulty, "reset";
        xid_154_recommendation: Finding::Xid(154) => Healthy, Healthy, "";
        xid_unknown: Finding::Xid(777) => Suspect, Suspect, "XID 777";
        lost: Finding::Lost => Faulty, Faulty, "fell off the bus";
        uncorrected: Finding::Uncorrected => Suspect, Cordoned, "could not be corrected";
        remap_pending: Finding::RemapPending => Suspect, Suspect, "wait to be replaced";
        remap_failed: Finding::RemapFailed => Faulty, Faulty, "exchanged";
        retirement_pending: Finding::RetirementPending => Suspect, Suspect, "wait to be retired";
        hot: Finding::Hot => Suspect, Suspect, "cooling";
        power_brake: Finding::PowerBrake => Suspect, Suspect, "power supply";
        recovery_none: Finding::Recovery(Recovery::None) => Healthy, Healthy, "";
        recovery_drain_p2p: Finding::Recovery(Recovery::DrainP2p) => Suspect, Suspect, "other GPUs";
        recovery_drain_and_reset: Finding::Recovery(Recovery::DrainAndReset) => Suspect, Suspect, "when it is free";
        recovery_reset: Finding::Recovery(Recovery::Reset) => Cordoned, Cordoned, "wants a reset";
        recovery_reboot: Finding::Recovery(Recovery::Reboot) => Faulty, Faulty, "restart the machine";
    }

    /// What a reading tells that is like a good one but for this, after a good one.
    #[track_caller]
    fn tells(change: impl Fn(&mut GpuReading), expect: &[Finding]) {
        let good = GpuReading {
            temperature: Some(60),
            slowdown_temperature: Some(90),
            ecc_volatile: Counts {
                corrected: Some(5),
                uncorrected: Some(2),
            },
            throttle_reasons: Some(4),
            recovery: Some(Recovery::None),
            ..GpuReading::default()
        };
        let mut now = good.clone();
        change(&mut now);
        let found: Vec<Finding> = findings(Some(&good), &now)
            .into_iter()
            .map(|(finding, _)| finding)
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn a_reading_tells_what_is_wrong_with_the_card() {
        tells(|_| {}, &[]);
        tells(|now| now.ecc_volatile.corrected = Some(9), &[]);
        tells(|now| now.ecc_volatile.uncorrected = Some(3), &[Finding::Uncorrected]);
        // The driver was loaded anew.
        tells(|now| now.ecc_volatile.uncorrected = Some(0), &[]);
        tells(|now| now.temperature = Some(90), &[Finding::Hot]);
        tells(|now| now.throttle_reasons = Some(HARDWARE_THERMAL), &[Finding::Hot]);
        tells(|now| now.throttle_reasons = Some(POWER_BRAKE), &[Finding::PowerBrake]);
        tells(|now| now.remap_pending = Some(true), &[Finding::RemapPending]);
        tells(|now| now.remap_failed = Some(true), &[Finding::RemapFailed]);
        tells(|now| now.retirement_pending = Some(true), &[Finding::RetirementPending]);
        let reset = Recovery::Reset;
        tells(|now| now.recovery = Some(reset), &[Finding::Recovery(reset)]);
        tells(|now| *now = GpuReading::default(), &[]);
        let errors = GpuReading {
            ecc_volatile: Counts {
                corrected: None,
                uncorrected: Some(7),
            },
            ..GpuReading::default()
        };
        assert_eq!(findings(None, &errors), [], "errors of before are no news");
    }

    #[test]
    fn what_goes_on_is_noted_from_time_to_time_and_said_once() {
        let begun = Record::default().found_with(Finding::Hot, "91C", at(0));
        assert!(begun.message.ends_with("(91C)"), "{begun:?}");
        assert!(!begun.is_news(Finding::Hot, at(30)) && begun.is_news(Finding::Hot, at(60)));
        assert!(begun.is_news(Finding::PowerBrake, at(1)));
        let later = begun.found_with(Finding::Hot, "95C", at(500));
        assert_eq!((&later.message, later.health), (&begun.message, begun.health));
        assert_eq!(
            later.quiet(at(700)).health,
            DeviceHealth::Suspect,
            "it was hot 200 s ago"
        );
        assert_eq!(later.quiet(at(1101)).health, DeviceHealth::Healthy);
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
    fn what_still_speaks_against_a_card_that_was_seen_to_is_said_once() {
        let cordoned = Record::default().found(Finding::Xid(48), at(10));
        assert_eq!(cordoned.kept_out(at(9), "x"), cordoned, "it was seen to before that");
        let kept = cordoned.kept_out(at(10), "process 7 uses it");
        assert_eq!(kept.health, DeviceHealth::Cordoned);
        assert!(
            kept.message.starts_with("XID 48") && kept.message.ends_with("fails: process 7 uses it"),
            "{kept:?}"
        );
        assert_eq!(kept.kept_out(at(11), "process 7 uses it"), kept);
        assert_eq!(kept.trusted(at(11)).health, DeviceHealth::Healthy);
        assert_eq!(Record::default().kept_out(at(1), "x"), Record::default());
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
