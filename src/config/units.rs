//! Durations, amounts of memory and rates as the operator writes them: a whole number and a unit.

use std::time::Duration;

use super::types::Rate;

/// A unit and how many of the smallest one it is, in ascending order.
type Units = [(&'static str, u64)];

const TIME: &Units = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const RATE: [(&str, Duration); 2] = [
    ("s", Duration::from_secs(1)),
    ("m", Duration::from_secs(60)),
];
const MEMORY: &Units = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads `500ms`, `10s`, `5m`, `1h`. The error says what is wrong with the text.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse(text, TIME, "is not a duration", "is too long").map(Duration::from_millis)
}

/// Reads `20/s`, `100/m`. The error says what is wrong with the text.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let (number, unit) = text.split_once('/').ok_or("has no unit")?;
    let unit = RATE.iter().find(|(name, _)| *name == unit);
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    match unit {
        Some((_, per)) if digits => Ok(Rate {
            connections: number.parse().map_err(|_| "is too high")?,
            per: *per,
        }),
        _ => Err("is not a whole number with one of the units /s, /m".to_owned()),
    }
}

/// Reads `512KiB`, `64MiB`, `2GiB` as bytes. The error says what is wrong with the text.
pub(super) fn size(text: &str) -> Result<u64, String> {
    parse(text, MEMORY, "is not a size", "is too large")
}

fn parse(text: &str, units: &Units, no_number: &str, too_large: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(no_number.to_owned());
    }
    if unit.is_empty() {
        return Err("has no unit".to_owned());
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        return Err(format!(
            "is not a whole number with one of the units {names}"
        ));
    };
    let number: Option<u64> = number.parse().ok();
    let product = number.and_then(|n| n.checked_mul(*factor));
    product.ok_or_else(|| too_large.to_owned())
}

/// The text that is read as this duration (to the millisecond). Minutes are used
/// from two of them on, so that 60s stays 60s.
#[must_use]
pub fn show(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match ms {
        0 => "0s".to_owned(),
        60_000 => "60s".to_owned(),
        _ => with_unit(ms, TIME),
    }
}

/// The text that is read as this size (to the KiB).
pub(super) fn show_size(bytes: u64) -> String {
    with_unit(bytes, MEMORY)
}

/// The text that is read as this rate.
pub(super) fn show_rate(rate: Rate) -> String {
    let unit = RATE.iter().find(|(_, per)| *per == rate.per);
    format!("{}/{}", rate.connections, unit.unwrap_or(&RATE[0]).0)
}

/// In the largest unit that has no remainder.
fn with_unit(amount: u64, units: &Units) -> String {
    let unit = units.iter().rev().find(|(_, f)| amount.is_multiple_of(*f));
    let (unit, factor) = unit.unwrap_or(&units[0]);
    format!("{}{unit}", amount / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_they_are_read() {
        for text in [
            "0s", "1ms", "1500ms", "1s", "60s", "90s", "2m", "61m", "1h", "48h",
        ] {
            assert_eq!(show(duration(text).unwrap()), text);
        }
        assert_eq!(duration("10"), Err("has no unit".to_owned()));
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
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(
            duration("18446744073709551615h"),
            Err("is too long".to_owned())
        );
    }

    #[test]
    fn rates_are_shown_as_they_are_read() {
        for text in ["1/s", "20/s", "100/m", "4294967295/s"] {
            assert_eq!(show_rate(rate(text).unwrap()), text);
        }
        assert_eq!(rate("20"), Err("has no unit".to_owned()));
        assert_eq!(rate("4294967296/s"), Err("is too high".to_owned()));
        for text in ["", "/s", "-1/s", "1.5/s", "20/h", "20/", "20 /s", "+1/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_read() {
        for text in ["1KiB", "1536KiB", "64MiB", "1025MiB", "2GiB"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
        assert_eq!(show_size(size("2048MiB").unwrap()), "2GiB");
        assert_eq!(size("64"), Err("has no unit".to_owned()));
        for text in ["", "MiB", "-1MiB", "1.5GiB", "1 MiB", "1MB", "1Mi", "1mib"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(
            size("18446744073709551615KiB"),
            Err("is too large".to_owned())
        );
    }
}
