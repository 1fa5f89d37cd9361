//! Quantities, parsed exactly.
//!
//! The grammar is Kubernetes' (`resource.Quantity`): digits with an optional fraction, then nothing, a decimal suffix (`n u m k
//! M G T P E`), a binary suffix (`Ki Mi Gi Ti Pi Ei`) or an exponent (`e3`). The precision is Mesos': three decimals for
//! scalars, whole bytes for sizes. Nothing is rounded: what cannot be held exactly is refused.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// There is no number.
    #[error("`{0}` is not a number; write one like 2, 0.5, 500m or 64Mi")]
    NotANumber(String),
    /// The suffix is none of the known ones.
    #[error(
        "`{suffix}` is not a unit; use one of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei{}",
        hint(suffix)
    )]
    UnknownSuffix {
        /// What stands behind the number.
        suffix: String,
    },
    /// Quantities of resources are never negative.
    #[error("`{0}` is negative; a quantity is zero or more")]
    Negative(String),
    /// More than three decimals of a scalar.
    #[error("`{0}` has more than three decimals; the smallest step is 0.001")]
    TooPrecise(String),
    /// A fraction of a byte.
    #[error("`{0}` is not a whole number of bytes; m means thousandths, mebibytes are Mi")]
    FractionOfByte(String),
    /// More than the type can hold.
    #[error("`{text}` is too large; the most is {most}")]
    TooLarge {
        /// What was written.
        text: String,
        /// The largest that would be taken.
        most: &'static str,
    },
}

fn hint(suffix: &str) -> &'static str {
    match suffix {
        "b" | "B" => "; bytes need no unit",
        "K" => "; kilo is k, kibi is Ki",
        "KB" | "kB" | "kb" => "; write k or Ki",
        "MB" | "mb" | "Mb" | "MiB" => "; write M or Mi",
        "g" | "gb" | "GB" | "Gb" | "GiB" => "; write G or Gi",
        "TB" | "TiB" => "; write T or Ti",
        _ => "",
    }
}

/// The longest text looked at. The longest exact quantity has 20 digits, a point, a suffix; leading zeros get some room.
const TEXT_MAX: usize = 64;

/// The value of `text` in units of `10^-exponent`, exactly; `None` inside when it has a remainder there.
fn parse(text: &str, exponent: u32) -> Result<Option<u128>, QuantityError> {
    let not_a_number = || QuantityError::NotANumber(text.chars().take(TEXT_MAX).collect());
    if text.len() > TEXT_MAX {
        return Err(not_a_number());
    }
    if text.starts_with('-') && text[1..].starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(not_a_number());
    }
    let (decimal, binary) = scale(suffix).ok_or_else(|| QuantityError::UnknownSuffix {
        suffix: suffix.to_owned(),
    })?;
    let fraction = fraction.trim_end_matches('0');
    let too_large = || QuantityError::TooLarge {
        text: text.to_owned(),
        most: "16Pi",
    };
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(Some(0));
    }
    let mantissa: u128 = digits.parse().map_err(|_| too_large())?;
    let mantissa = mantissa.checked_mul(1u128 << binary).ok_or_else(too_large)?;
    let power = i64::from(decimal) + i64::from(exponent) - i64::try_from(fraction.len()).map_err(|_| too_large())?;
    let factor = |power: i64| u32::try_from(power).ok().and_then(|power| 10u128.checked_pow(power));
    if power >= 0 {
        factor(power)
            .and_then(|factor| mantissa.checked_mul(factor))
            .map(Some)
            .ok_or_else(too_large)
    } else {
        // A divisor that does not fit is larger than any mantissa: there is a remainder.
        Ok(factor(-power)
            .filter(|divisor| mantissa % divisor == 0)
            .map(|divisor| mantissa / divisor))
    }
}

/// The powers of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            let known = !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
            // An exponent that does not fit an i32 is as good as the largest: it is refused as too large or too precise.
            let limit = if digits.starts_with('-') { -100_000 } else { 100_000 };
            return known.then(|| (digits.parse().unwrap_or(limit).clamp(-100_000, 100_000), 0));
        }
    })
}

/// A number with three decimals: CPUs, GPUs. Held in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scalar(u64);

impl Scalar {
    /// Nothing.
    pub const ZERO: Scalar = Scalar(0);

    /// From thousandths.
    pub const fn from_milli(milli: u64) -> Scalar {
        Scalar(milli)
    }

    /// From whole units.
    pub const fn from_units(units: u32) -> Scalar {
        Scalar(units as u64 * 1000)
    }

    /// In thousandths.
    pub const fn milli(self) -> u64 {
        self.0
    }

    /// In whole units, when it is whole and fits.
    pub fn units(self) -> Option<u32> {
        self.0
            .is_multiple_of(1000)
            .then(|| u32::try_from(self.0 / 1000).ok())
            .flatten()
    }
}

impl FromStr for Scalar {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Scalar, QuantityError> {
        let milli = parse(text, 3)?.ok_or_else(|| QuantityError::TooPrecise(text.to_owned()))?;
        // The most keeps sums of many quantities far from overflow.
        let most = QuantityError::TooLarge {
            text: text.to_owned(),
            most: "1e12",
        };
        u64::try_from(milli)
            .ok()
            .filter(|milli| *milli <= 1_000_000_000_000_000)
            .map(Scalar)
            .ok_or(most)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, milli) = (self.0 / 1000, self.0 % 1000);
        if milli == 0 {
            return write!(f, "{whole}");
        }
        let text = format!("{whole}.{milli:03}");
        f.write_str(text.trim_end_matches('0'))
    }
}

/// A number of bytes: memory, disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Nothing.
    pub const ZERO: ByteSize = ByteSize(0);

    /// From bytes.
    pub const fn from_bytes(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// From mebibytes.
    pub const fn from_mib(mib: u32) -> ByteSize {
        ByteSize((mib as u64) << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<ByteSize, QuantityError> {
        let bytes = parse(text, 0)?.ok_or_else(|| QuantityError::FractionOfByte(text.to_owned()))?;
        let most = QuantityError::TooLarge {
            text: text.to_owned(),
            most: "16Pi",
        };
        u64::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= 1 << 54)
            .map(ByteSize)
            .ok_or(most)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Reads a quantity from a string or a number. A fraction comes as a binary float; its shortest decimal text is what was written.
struct TextOrNumber<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = QuantityError>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity: a number, or a string like \"500m\" or \"64Mi\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

macro_rules! quantity_serde {
    ($type:ident, $description:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                deserializer.deserialize_any(TextOrNumber(std::marker::PhantomData))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "x-kubernetes-int-or-string": true, "description": $description })
            }
        }
    };
}

quantity_serde!(
    Scalar,
    "A number with at most three decimals, such as 2, \"0.5\" or \"500m\"."
);
quantity_serde!(ByteSize, "A number of bytes, such as 1048576, \"64Mi\" or \"1.5G\".");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scalars_are_read_exactly() {
        for (text, milli) in [
            ("0", 0),
            ("2", 2000),
            ("0.5", 500),
            (".5", 500),
            ("500m", 500),
            ("0.001", 1),
            ("1000000n", 1),
            ("1e3", 1_000_000),
            ("1E-3", 1),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("+1", 1000),
            ("000.500000000", 500),
        ] {
            assert_eq!(text.parse::<Scalar>(), Ok(Scalar::from_milli(milli)), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_exactly() {
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("1e3", 1000),
            ("2000m", 2),
            ("1Pi", 1 << 50),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize::from_bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_held_exactly_is_refused() {
        for text in [
            "", "NaN", "inf", "-", ".", "abc", "1.2.3", "0x10", " 1", "1 ", "1e", "1e+", "٣",
        ] {
            let error = text.parse::<Scalar>().expect_err(text);
            let expected = matches!(
                error,
                QuantityError::NotANumber(_) | QuantityError::UnknownSuffix { .. }
            );
            assert!(expected, "{text}: {error:?}");
        }
        for text in [
            "1e999",
            "1e99999999999",
            "99999999999999999999999999999999999999999",
            "16Ei",
            "1e13",
        ] {
            assert!(
                matches!(text.parse::<Scalar>(), Err(QuantityError::TooLarge { .. })),
                "{text}"
            );
        }
        for text in ["0.0001", "1n", "1e-4", "1e-999", "0.5m"] {
            assert!(
                matches!(text.parse::<Scalar>(), Err(QuantityError::TooPrecise(_))),
                "{text}"
            );
        }
        for text in ["-1", "-0.5", "-.5"] {
            assert!(
                matches!(text.parse::<Scalar>(), Err(QuantityError::Negative(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "100m".parse::<ByteSize>(),
            Err(QuantityError::FractionOfByte(_))
        ));
        assert!(matches!(
            "17Pi".parse::<ByteSize>(),
            Err(QuantityError::TooLarge { .. })
        ));
        let error = "64MB".parse::<ByteSize>().expect_err("not a unit").to_string();
        assert!(error.ends_with("write M or Mi"), "{error}");
    }

    #[test]
    fn json_numbers_and_strings_are_the_same() {
        let read = |json: &str| {
            serde_json::from_str::<Scalar>(json)
                .map(Scalar::milli)
                .map_err(|e| e.to_string())
        };
        assert_eq!(read("0.1"), Ok(100));
        assert_eq!(read("\"100m\""), Ok(100));
        assert_eq!(read("2"), Ok(2000));
        assert!(read("-1").is_err_and(|e| e.contains("negative")));
        assert!(read("1e300").is_err());
        assert!(read("true").is_err_and(|e| e.contains("a quantity")));
    }

    proptest! {
        #[test]
        fn printing_and_reading_a_scalar_gives_it_back(milli in 0u64..=1_000_000_000_000_000) {
            let scalar = Scalar::from_milli(milli);
            prop_assert_eq!(scalar.to_string().parse(), Ok(scalar));
        }

        #[test]
        fn printing_and_reading_a_size_gives_it_back(bytes in 0u64..=1 << 54) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Scalar>();
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn no_number_like_text_makes_the_parser_panic(text in "[-+]?[0-9.]{0,45}([eE][-+]?[0-9]{0,12}|[numkMGTPE]i?)?") {
            let _ = text.parse::<Scalar>();
            let _ = text.parse::<ByteSize>();
        }
    }
}
