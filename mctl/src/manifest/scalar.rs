//! What a plain word of YAML is: text, a number, a boolean or nothing.
//!
//! Words mean what they mean to kubectl, which reads YAML 1.1: `yes` and `off` are booleans. Where 1.1 and 1.2 read different
//! *numbers* from one text (`010` is 8 or 10), neither is taken: it is an error to be resolved by whoever wrote it.

use serde_json::Number;

use super::node::NodeValue;

/// A plain word, read; or why it cannot be.
pub(super) fn resolve(text: &str) -> Result<NodeValue, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(NodeValue::Null),
        _ => {}
    }
    if let Some(value) = boolean(text) {
        return Ok(NodeValue::Bool(value, text.to_owned()));
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Ok(NodeValue::String(text.to_owned()));
    }
    number(text).map(|number| number.unwrap_or_else(|| NodeValue::String(text.to_owned())))
}

/// The booleans of YAML 1.1, as kubectl reads them.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}

fn number(text: &str) -> Result<Option<NodeValue>, String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let odd = || Ok(Some(NodeValue::Number(None, text.to_owned())));
    if matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return odd();
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if unsigned.len() > 1 && unsigned.starts_with('0') && digits(unsigned) {
        let plain = unsigned.trim_start_matches('0');
        let plain = if plain.is_empty() { "0" } else { plain };
        return Err(format!(
            "`{text}` is octal to some readers and decimal to others; write `{plain}`, or \"{text}\" in quotes if it is text"
        ));
    }
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, radix)| {
            let digits = unsigned.strip_prefix(prefix)?;
            (!digits.is_empty() && digits.chars().all(|c| c.is_digit(radix) || c == '_')).then_some(radix)
        });
    if radix.is_some() {
        return Err(format!(
            "`{text}` is a number to some readers and text to others; write it in decimal, or in quotes if it is text"
        ));
    }
    if unsigned.contains('_') && digits(&unsigned.replace('_', "")) {
        return Err(format!(
            "`{text}` is a number to some readers and text to others; write it without `_`, or in quotes if it is text"
        ));
    }
    if digits(unsigned) {
        if let Ok(value) = text.parse::<u64>() {
            return Ok(Some(NodeValue::Number(Some(value.into()), text.to_owned())));
        }
        if let Ok(value) = text.parse::<i64>() {
            return Ok(Some(NodeValue::Number(Some(value.into()), text.to_owned())));
        }
        return odd();
    }
    if !is_decimal(unsigned) {
        return Ok(None);
    }
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
    Ok(Some(NodeValue::Number(
        value.and_then(Number::from_f64),
        text.to_owned(),
    )))
}

/// `[digits] [. digits] [e [sign] digits]` with at least one digit before the exponent.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fine = exponent.is_none_or(|exponent| {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !unsigned.is_empty() && digits(unsigned)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_fine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &str) {
        let read = match resolve(text) {
            Ok(NodeValue::Null) => "null".to_owned(),
            Ok(NodeValue::Bool(value, _)) => format!("bool {value}"),
            Ok(NodeValue::Number(Some(number), _)) => format!("number {number}"),
            Ok(NodeValue::Number(None, text)) => format!("odd {text}"),
            Ok(NodeValue::String(text)) => format!("text {text}"),
            Ok(_) => unreachable!("a word is no collection"),
            Err(_) => "error".to_owned(),
        };
        assert_eq!(read, expect, "{text}");
    }

    #[test]
    fn words_are_what_kubectl_takes_them_for() {
        for (text, expect) in [
            ("~", "null"),
            ("yes", "bool true"),
            ("Off", "bool false"),
            ("n", "bool false"),
            ("12", "number 12"),
            ("-3", "number -3"),
            ("0.5", "number 0.5"),
            ("1e3", "number 1000.0"),
            ("64Mi", "text 64Mi"),
            ("500m", "text 500m"),
            ("1.2.3", "text 1.2.3"),
            ("2026-01-02", "text 2026-01-02"),
            ("-", "text -"),
            (".", "text ."),
            ("12:30", "text 12:30"),
            ("1e999", "odd 1e999"),
            (".nan", "odd .nan"),
            ("99999999999999999999999", "odd 99999999999999999999999"),
        ] {
            check(text, expect);
        }
    }

    #[test]
    fn numbers_that_readers_disagree_about_are_refused() {
        for text in ["010", "-007", "0x1F", "0o17", "0b11", "1_000"] {
            check(text, "error");
        }
        check("0", "number 0");
        check("0.10", "number 0.1");
    }
}
