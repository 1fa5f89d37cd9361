//! Whether a GPU is as clean as the next task may expect: what its last reading says of that. Pure.
//!
//! It promises: between two tasks a GPU has no program and no memory of the first, as far as the driver tells; one that an operator has seen
//! to is let in again only when nothing in its readings speaks against it. Programs that draw (a desktop) have their memory and are no
//! reason. Tested below by tables, and with a driver that plays a script.

use std::time::Duration;

use muster_api::usage::{GpuReading, Recovery};

/// Memory that is in use although nobody is there: what drivers were seen to keep for themselves, twice over.
pub const LEFT_BYTES: u64 = 1 << 30;

/// How long a GPU may take to be free after its task before it is shown as cordoned: contexts of programs that were killed take a second.
pub const LEFT_FOR: Duration = Duration::from_secs(3);

fn gib(bytes: u64) -> String {
    let tenths = (bytes >> 20) * 10 / 1024;
    format!("{}.{}Gi", tenths / 10, tenths % 10)
}

/// What is left on it, in words; `None`: nothing, or nobody knows.
pub fn left_behind(reading: &GpuReading) -> Option<String> {
    let mut programs = reading.processes.iter().flatten();
    if let Some((pid, bytes)) = programs.next() {
        let more = match programs.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Some(format!(
            "process {pid} uses it, with {} of its memory{more}",
            gib(*bytes)
        ));
    }
    let drawn = reading.drawing_bytes.unwrap_or(0);
    let used = reading.memory_used_bytes?.saturating_sub(drawn);
    (used > LEFT_BYTES).then(|| {
        format!(
            "{} of its memory are in use, by no process that the driver names",
            gib(used)
        )
    })
}

/// What speaks against letting it in again after somebody has seen to it; nothing: it passes. `unanswered`: what the driver could not read, in
/// words.
pub fn self_test(reading: Option<&GpuReading>, unanswered: Option<&str>, is_held: bool) -> Vec<String> {
    let Some(reading) = reading else {
        return vec!["the driver tells nothing about it".to_owned()];
    };
    let mut against: Vec<String> = unanswered
        .map(|what| format!("the driver does not answer: {what}"))
        .into_iter()
        .collect();
    if !is_held {
        against.extend(left_behind(reading));
    }
    let flags = [
        (
            reading.remap_pending,
            "rows of its memory wait for a reset to be replaced",
        ),
        (reading.remap_failed, "a row of its memory could not be replaced"),
        (
            reading.retirement_pending,
            "pages of its memory wait for a restart to be retired",
        ),
    ];
    let set = flags.iter().filter(|(flag, _)| *flag == Some(true));
    against.extend(set.map(|(_, what)| (*what).to_owned()));
    match reading.recovery {
        Some(Recovery::Reset | Recovery::DrainAndReset) => against.push("the driver wants it to be reset".to_owned()),
        Some(Recovery::Reboot) => against.push("the driver wants the machine to be restarted".to_owned()),
        Some(Recovery::None | Recovery::DrainP2p) | None => {}
    }
    against
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> GpuReading {
        GpuReading {
            memory_used_bytes: Some(4 << 20),
            processes: Some([].into()),
            ..GpuReading::default()
        }
    }

    #[track_caller]
    fn left(change: impl Fn(&mut GpuReading), expect: Option<&str>) {
        let mut reading = free();
        change(&mut reading);
        assert_eq!(left_behind(&reading).as_deref(), expect);
    }

    #[test]
    fn programs_and_memory_are_left_behind_and_a_desktop_is_not() {
        left(|_| {}, None);
        left(|now| *now = GpuReading::default(), None);
        left(
            |now| now.processes = Some([(4711, 3 << 30), (4712, 0)].into()),
            Some("process 4711 uses it, with 3.0Gi of its memory and 1 more"),
        );
        left(
            |now| now.memory_used_bytes = Some(3 << 30),
            Some("3.0Gi of its memory are in use, by no process that the driver names"),
        );
        left(
            |now| (now.memory_used_bytes, now.drawing_bytes) = (Some(3 << 30), Some(3 << 30)),
            None,
        );
    }

    #[track_caller]
    fn tested(change: impl Fn(&mut GpuReading), part: &str) {
        let mut reading = free();
        change(&mut reading);
        let against = self_test(Some(&reading), None, false);
        assert!(against.len() == 1 && against[0].contains(part), "{against:?}");
    }

    #[test]
    fn what_speaks_against_a_card_keeps_it_out() {
        assert_eq!(self_test(Some(&free()), None, false), [] as [&str; 0]);
        assert_eq!(self_test(None, None, false).len(), 1);
        assert_eq!(self_test(Some(&free()), Some("temperature"), false).len(), 1);
        tested(|now| now.processes = Some([(7, 0)].into()), "process 7");
        tested(|now| now.remap_pending = Some(true), "wait for a reset");
        tested(|now| now.remap_failed = Some(true), "could not be replaced");
        tested(|now| now.retirement_pending = Some(true), "wait for a restart");
        tested(|now| now.recovery = Some(Recovery::Reset), "reset");
        tested(|now| now.recovery = Some(Recovery::Reboot), "restarted");
        let mut busy = free();
        busy.processes = Some([(7, 0)].into());
        assert_eq!(
            self_test(Some(&busy), None, true),
            [] as [&str; 0],
            "a task has it, and may use it"
        );
    }
}
