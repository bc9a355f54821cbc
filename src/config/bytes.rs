//! Bytes and status codes as the operator writes them.

use std::fmt;
use std::str::FromStr;

/// Bytes, written as text with the escapes `\r \n \t \0 \\ \xHH`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [byte, after @ ..] = rest {
            let (byte, after) = match (*byte, after) {
                (b'\\', [b'r', after @ ..]) => (b'\r', after),
                (b'\\', [b'n', after @ ..]) => (b'\n', after),
                (b'\\', [b't', after @ ..]) => (b'\t', after),
                (b'\\', [b'0', after @ ..]) => (0, after),
                (b'\\', [b'\\', after @ ..]) => (b'\\', after),
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    let digits = digit(*high).zip(digit(*low));
                    let (high, low) = digits.ok_or("has \\x without two hexadecimal digits")?;
                    (u8::try_from(high * 16 + low).unwrap_or_default(), after)
                }
                (b'\\', _) => return Err("has a backslash that begins no escape".to_owned()),
                (byte, after) => (byte, after),
            };
            bytes.push(byte);
            rest = after;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| match byte {
            b'\r' => f.write_str("\\r"),
            b'\n' => f.write_str("\\n"),
            b'\t' => f.write_str("\\t"),
            0 => f.write_str("\\0"),
            b'\\' => f.write_str("\\\\"),
            b' '..=b'~' => write!(f, "{}", char::from(*byte)),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

/// Status codes of HTTP, the first and the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses(pub u16, pub u16);

impl Statuses {
    /// Whether a code is one of them.
    #[must_use]
    pub fn contain(self, code: u16) -> bool {
        (self.0..=self.1).contains(&code)
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let code = |text: &str| -> Option<u16> {
            let code = text.parse().ok().filter(|code| (100..=599).contains(code));
            code.filter(|_| text.len() == 3)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first, last)),
            _ => Err("is no range of status codes".to_owned()),
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_they_are_shown() {
        let all: Vec<u8> = (0..=255).collect();
        let shown = Bytes(all.clone()).to_string();
        assert_eq!(shown.parse(), Ok(Bytes(all)));
        let text = r"PING\r\n\t\0\\\x7F";
        assert_eq!(text.parse(), Ok(Bytes(b"PING\r\n\t\0\\\x7F".to_vec())));
        for wrong in [r"\", r"\a", r"\x", r"\x1", r"\xg0"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!("200-299".parse(), Ok(Statuses(200, 299)));
        assert_eq!("204".parse(), Ok(Statuses(204, 204)));
        assert!(Statuses(200, 299).contain(299) && !Statuses(200, 299).contain(300));
        for wrong in [
            "",
            "2",
            "200-",
            "299-200",
            "+20",
            "99",
            "600",
            "200-299-300",
        ] {
            assert!(wrong.parse::<Statuses>().is_err(), "{wrong}");
        }
    }
}
