//! Amounts of memory as the operator writes them: a whole number and a unit.

const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads `512KiB`, `64MiB`, `2GiB`. The error says what is wrong with the text.
pub(super) fn parse(text: &str) -> Result<u64, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("is not a size");
    }
    if unit.is_empty() {
        return Err("has no unit");
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("is not a whole number with one of the units KiB, MiB, GiB");
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|n| n.checked_mul(*factor))
        .ok_or("is too large")
}

/// The text that is read as this size (to the KiB).
pub(super) fn show(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, f)| bytes.is_multiple_of(*f));
    let (unit, factor) = unit.unwrap_or(&UNITS[0]);
    format!("{}{unit}", bytes / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["1KiB", "1536KiB", "64MiB", "1025MiB", "2GiB"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
        assert_eq!(show(parse("2048MiB").unwrap()), "2GiB");
        assert_eq!(parse("64"), Err("has no unit"));
        for text in ["", "MiB", "-1MiB", "1.5GiB", "1 MiB", "1MB", "1Mi", "1mib"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("18446744073709551615KiB"), Err("is too large"));
    }
}
