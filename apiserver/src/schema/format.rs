//! Texts and numbers of a certain form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use serde_json::Value;

use super::Format;

impl Format {
    /// The format of that name; `None`: one that restricts nothing.
    pub(super) fn parse(name: &str) -> Option<Format> {
        Some(match name {
            "int32" => Format::Int32,
            "int64" => Format::Int64,
            "uint" | "uint8" | "uint16" | "uint32" | "uint64" => Format::Unsigned,
            "date-time" | "datetime" | "micro-time" => Format::DateTime,
            "byte" => Format::Byte,
            "date" => Format::Date,
            "duration" => Format::Duration,
            "email" => Format::Email,
            "uri" => Format::Uri,
            "hostname" => Format::Hostname,
            "ipv4" => Format::Ipv4,
            "ipv6" => Format::Ipv6,
            "cidr" => Format::Cidr,
            "mac" => Format::Mac,
            "uuid" | "uuid3" | "uuid4" | "uuid5" => Format::Uuid,
            _ => return None,
        })
    }

    /// As it is called in messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Format::Int32 => "int32",
            Format::Int64 => "int64",
            Format::Unsigned => "a whole number, zero or more",
            Format::DateTime => "date-time",
            Format::Byte => "byte",
            Format::Date => "date",
            Format::Duration => "duration",
            Format::Email => "email",
            Format::Uri => "uri",
            Format::Hostname => "hostname",
            Format::Ipv4 => "ipv4",
            Format::Ipv6 => "ipv6",
            Format::Cidr => "cidr",
            Format::Mac => "mac",
            Format::Uuid => "uuid",
        }
    }

    /// Whether the value is of this form. A value of another type is the business of the type.
    pub(super) fn fits(self, value: &Value) -> bool {
        match value {
            Value::Number(number) => match self {
                Format::Int32 => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
                Format::Int64 => number.is_i64(),
                Format::Unsigned => number.is_u64(),
                _ => true,
            },
            Value::String(text) => self.reads(text),
            _ => true,
        }
    }

    fn reads(self, text: &str) -> bool {
        match self {
            Format::Int32 | Format::Int64 | Format::Unsigned => true,
            Format::DateTime => text.parse::<jiff::Timestamp>().is_ok(),
            Format::Byte => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
            Format::Date => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
            Format::Duration => is_duration(text),
            Format::Email => text.split_once('@').is_some_and(|(name, host)| {
                !name.is_empty() && !host.is_empty() && !text.contains(char::is_whitespace) && !host.contains('@')
            }),
            Format::Uri => text
                .parse::<http::Uri>()
                .is_ok_and(|uri| uri.scheme().is_some() || text.starts_with('/')),
            Format::Hostname => text.len() <= 255 && text.trim_end_matches('.').split('.').all(is_label),
            Format::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Format::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Format::Cidr => text.split_once('/').is_some_and(|(address, bits)| {
                let bits = bits.parse::<u8>().ok();
                let most = address
                    .parse::<IpAddr>()
                    .map(|address| if address.is_ipv4() { 32 } else { 128 });
                most.is_ok_and(|most| bits.is_some_and(|bits| bits <= most))
            }),
            Format::Mac => {
                let parts: Vec<&str> = text.split([':', '-']).collect();
                let pair = |part: &&str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
                [6, 8].contains(&parts.len()) && parts.iter().all(pair)
            }
            Format::Uuid => uuid::Uuid::try_parse(text).is_ok(),
        }
    }
}

fn is_label(label: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.chars().all(fine)
}

/// As Go writes spans of time (`1h30m`, `-1.5s`), or as words (`2 weeks`).
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 23] = [
        "ns",
        "us",
        "\u{b5}s",
        "\u{3bc}s",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "w",
        "nanosecond",
        "nanoseconds",
        "second",
        "seconds",
        "sec",
        "minute",
        "minutes",
        "min",
        "hour",
        "hours",
        "day",
        "days",
        "week",
    ];
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let behind = behind.trim_start();
        let letters = behind.find(|c: char| !c.is_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        if number.parse::<f64>().is_err() || !(UNITS.contains(&unit) || unit == "weeks") {
            return false;
        }
        parts += 1;
        rest = behind.trim_start();
    }
    parts > 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn forms_are_told_apart() {
        let check = |name: &str, fine: &[&str], wrong: &[&str]| {
            let format = Format::parse(name).expect("it is known");
            for text in fine {
                assert!(format.fits(&json!(text)), "{name} {text}");
            }
            for text in wrong {
                assert!(!format.fits(&json!(text)), "{name} {text}");
            }
        };
        check(
            "date-time",
            &["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5+02:00"],
            &["2024-01-01", "now"],
        );
        check(
            "date",
            &["2024-02-29"],
            &["2023-02-29", "2024-1-1", "2024-01-01T00:00:00Z"],
        );
        check(
            "duration",
            &["1h30m", "0", "-1.5s", "2 weeks", "300ms"],
            &["", "1", "h", "1x", "s1"],
        );
        check("email", &["a@b.c"], &["a", "@b", "a@", "a b@c"]);
        check("uri", &["https://a.b/c?d", "/path"], &["a b", "host/path"]);
        check("hostname", &["a.b-c.d", "localhost"], &["-a", "a..b", "a b", ""]);
        check("ipv4", &["10.0.0.1"], &["10.0.0", "::1", "300.0.0.1"]);
        check("ipv6", &["::1", "fe80::1"], &["10.0.0.1", ":"]);
        check("cidr", &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33", "/8"]);
        check(
            "mac",
            &["01:23:45:67:89:ab", "01-23-45-67-89-AB"],
            &["01:23", "0123456789ab", "zz:23:45:67:89:ab"],
        );
        check("uuid", &["67e55044-10b1-426f-9247-bb680e5fe0c8"], &["67e55044", "x"]);
        check("byte", &["AP8H", ""], &["A", "*"]);
        assert!(!Format::Int32.fits(&json!(1u64 << 31)) && Format::Int64.fits(&json!(1u64 << 31)));
        assert!(!Format::Unsigned.fits(&json!(-1)) && Format::parse("phone").is_none());
    }
}
