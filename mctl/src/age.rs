//! How long ago something was, as kubectl says it.

use jiff::Timestamp;
use muster_api::env::{Env as _, SystemEnv};
use serde_json::Value;

/// Now.
pub fn now() -> Timestamp {
    SystemEnv.now()
}

/// `4m12s`: two units at most, the second one only while it matters.
pub fn human(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

/// How long ago the time in a field was.
pub fn since(value: &Value, now: Timestamp) -> Option<String> {
    let then: Timestamp = value.as_str()?.parse().ok()?;
    Some(human(now.duration_since(then).as_secs()))
}

/// How long it was from one field to the other, or to now.
pub fn between(from: &Value, to: &Value, now: Timestamp) -> Option<String> {
    let from: Timestamp = from.as_str()?.parse().ok()?;
    let to: Timestamp = to.as_str().and_then(|to| to.parse().ok()).unwrap_or(now);
    Some(human(to.duration_since(from).as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_those_of_kubectl() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (252, "4m12s"),
            (3599, "59m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
