//! Durations as the operator writes them: a whole number and a unit.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads `500ms`, `10s`, `5m`, `1h`. The error says what is wrong with the text.
pub(super) fn parse(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("is not a duration");
    }
    if unit.is_empty() {
        return Err("has no unit");
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("is not a whole number with one of the units ms, s, m, h");
    };
    let number: Option<u64> = number.parse().ok();
    let ms = number.and_then(|n| n.checked_mul(*factor));
    ms.map(Duration::from_millis).ok_or("is too long")
}

/// The text that is read as this duration (to the millisecond). Minutes are used
/// from two of them on, so that 60s stays 60s.
#[must_use]
pub fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    let fits = |factor: u64| ms.is_multiple_of(u128::from(factor));
    let enough = |factor: u64| ms >= u128::from(factor) * if factor > 1000 { 2 } else { 1 };
    let unit = UNITS
        .iter()
        .rev()
        .find(|(_, f)| fits(*f) && (enough(*f) || *f == 3_600_000));
    let (unit, factor) = unit.unwrap_or(&UNITS[0]);
    format!("{}{unit}", ms / u128::from(*factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            "0s", "1ms", "1500ms", "1s", "60s", "90s", "2m", "61m", "1h", "48h",
        ] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
        assert_eq!(parse("10"), Err("has no unit"));
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "1h30m",
            "99999999999999999999s",
            "10S",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("18446744073709551615h"), Err("is too long"));
    }
}
