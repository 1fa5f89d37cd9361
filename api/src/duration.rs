//! Spans of time as people write them: `500ms`, `30s`, `1h30m`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A span of time, in whole milliseconds, at most 365 days (Mesos' longest filter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

const UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];
const MOST_MS: u64 = 365 * 86_400_000;

/// Why a text is not a span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// It does not read as numbers with units.
    #[error("`{0}` is not a span of time; write one like 500ms, 30s, 1h30m or 7d")]
    Malformed(String),
    /// It is over the most.
    #[error("`{0}` is too long; the most is 365d")]
    TooLong(String),
}

impl Span {
    /// From milliseconds.
    pub const fn from_millis(ms: u64) -> Span {
        Span(ms)
    }

    /// From seconds.
    pub const fn from_secs(secs: u64) -> Span {
        Span(secs * 1000)
    }

    /// In milliseconds.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// As the standard library has it.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// As an offset to a timestamp.
    pub fn signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_millis(self.0.min(MOST_MS) as i64)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let malformed = || SpanError::Malformed(text.chars().take(64).collect());
        let mut rest = text;
        let mut total: u64 = 0;
        if rest == "0" {
            return Ok(Span(0));
        }
        if rest.is_empty() || rest.len() > 64 {
            return Err(malformed());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
            let (number, behind) = rest.split_at(digits);
            let letters = behind.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(letters);
            let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
            if number.is_empty() {
                return Err(malformed());
            }
            let number: u64 = number.parse().map_err(|_| SpanError::TooLong(text.to_owned()))?;
            let added = number.checked_mul(*unit_ms).and_then(|ms| total.checked_add(ms));
            total = added
                .filter(|ms| *ms <= MOST_MS)
                .ok_or_else(|| SpanError::TooLong(text.to_owned()))?;
            rest = behind;
        }
        Ok(Span(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, unit_ms) in UNITS.into_iter().skip(1) {
            if rest >= unit_ms {
                write!(f, "{}{name}", rest / unit_ms)?;
                rest %= unit_ms;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A span of time, such as \"500ms\", \"30s\" or \"1h30m\"." })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
        ] {
            assert_eq!(text.parse::<Span>(), Ok(Span(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in ["", "5", "s", "-5s", "1.5h", "5 s", "5sec", "h5", "5s5"] {
            assert!(matches!(text.parse::<Span>(), Err(SpanError::Malformed(_))), "{text}");
        }
        for text in ["366d", "99999999999999999999s", "18446744073709551615w"] {
            assert!(matches!(text.parse::<Span>(), Err(SpanError::TooLong(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_a_span_gives_it_back(ms in 0u64..=MOST_MS) {
            prop_assert_eq!(Span(ms).to_string().parse(), Ok(Span(ms)));
        }
    }
}
