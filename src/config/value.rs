//! One value: read by the kind of its key, or refused with the reason and what is accepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration::{parse as parse_duration, show};
use super::keys::Kind;
use super::size;
use super::types::UpstreamAddress;
use super::yaml::Content;

/// Up to here every whole number is a floating-point number: 2^53.
pub(super) const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// A value that its key accepts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Span(Duration),
    Count(u32),
    /// In bytes.
    Size(u64),
    /// One of the words of the key.
    Word(&'static str),
    Switch(bool),
    Name(String),
    Listen(SocketAddr),
    Dial(UpstreamAddress),
}

impl Kind {
    /// Reads a node of a file. The error is a whole sentence for the operator.
    pub(super) fn read(self, content: &Content) -> Result<Value, String> {
        let refuse = |what: &str| Err(format!("{what}; accepted: {}", self.accepted()));
        match (self, content) {
            (_, Content::Null) => refuse("has no value"),
            (Self::Count { .. }, Content::Int(n)) => self
                .read_count(&n.to_string())
                .or_else(|why| refuse(&format!("{n} {why}"))),
            (Self::Count { or, .. }, Content::Text(text)) if or != Some(text.as_str()) => {
                refuse(&format!("{} is text, not a number", quoted(text)))
            }
            // What `off` is in YAML 1.1, which Helm and others still read and write.
            (Self::Size { or: words, .. } | Self::Words(words), Content::Bool(false))
                if words.contains(&"off") =>
            {
                Ok(Value::Word("off"))
            }
            (Self::Switch, Content::Bool(b)) => Ok(Value::Switch(*b)),
            (Self::Switch, Content::Text(text)) => refuse(&format!("{} is text", quoted(text))),
            (Self::Span { .. } | Self::Size { .. }, Content::Int(n)) => {
                refuse(&format!("{n} has no unit"))
            }
            (_, Content::Text(text)) => self.read_text(text),
            (Self::Name, Content::Int(n)) => {
                refuse(&format!("{n} is a number; quoted it is a name"))
            }
            (_, Content::Int(n)) => refuse(&format!("{n} is a number")),
            (_, Content::OtherNumber(n)) => refuse(&format!("{n} is not accepted")),
            (_, Content::Bool(b)) => refuse(&format!("{b} is not accepted")),
            _ => refuse(&format!("is {}", content.kind())),
        }
    }

    /// Reads a flag, or a default of the key table.
    pub(super) fn read_text(self, text: &str) -> Result<Value, String> {
        let found = match self {
            Self::Section { .. } | Self::Inherited | Self::List => {
                Err("is not a section".to_owned())
            }
            Self::Name => read_name(text),
            Self::Listen => read_listen(text),
            Self::Dial => read_dial(text),
            Self::Span { .. } => self.read_span(text),
            Self::Count { .. } => self.read_count(text),
            Self::Size { min, max, or } => read_size(text, min..=max, or),
            Self::Words(words) => (words.iter().find(|word| **word == text))
                .map(|word| Value::Word(word))
                .ok_or_else(|| "is not one of the words".to_owned()),
            Self::Switch => (text.parse().map(Value::Switch))
                .map_err(|_| "is neither true nor false".to_owned()),
        };
        found.map_err(|why| format!("{} {why}; accepted: {}", quoted(text), self.accepted()))
    }

    fn read_span(self, text: &str) -> Result<Value, String> {
        let Self::Span {
            min,
            max,
            step,
            off,
        } = self
        else {
            return Err("is not a duration".to_owned());
        };
        let span = parse_duration(text)?;
        if off && span.is_zero() {
            Ok(Value::Span(span))
        } else if span < min {
            Err(format!("is below {}", show(min)))
        } else if span > max {
            Err(format!("is above {}", show(max)))
        } else if !span.as_millis().is_multiple_of(step.as_millis()) {
            Err(format!("is finer than {}", show(step)))
        } else {
            Ok(Value::Span(span))
        }
    }

    fn read_count(self, text: &str) -> Result<Value, String> {
        let Self::Count { min, max, or } = self else {
            return Err("is not a number".to_owned());
        };
        if let Some(word) = or.filter(|word| *word == text) {
            return Ok(Value::Word(word));
        }
        match whole(text).ok_or("is not a whole number")?.parse::<u32>() {
            Ok(n) if n < min => Err(format!("is below {min}")),
            Ok(n) if n <= max => Ok(Value::Count(n)),
            _ => Err(format!("is above {max}")),
        }
    }

    /// What the key takes, in words.
    #[must_use]
    pub fn accepted(self) -> String {
        match self {
            Self::Section { or: None } | Self::Inherited => "a mapping of keys".to_owned(),
            Self::Section { or: Some(word) } => format!("a mapping of keys, or {word}"),
            Self::List => "a list of at least one mapping".to_owned(),
            Self::Name => "1 to 63 letters, digits, \"-\", \"_\" or \".\"".to_owned(),
            Self::Listen => "IP:port, such as 0.0.0.0:9000 or [::1]:9000".to_owned(),
            Self::Dial => "host:port, such as 127.0.0.1:8080 or db.internal:5432".to_owned(),
            Self::Span {
                min,
                max,
                step,
                off,
            } => {
                let whole = if step.subsec_millis() == 0 {
                    " in whole seconds"
                } else {
                    ""
                };
                let off = if off { ", or 0s (off)" } else { "" };
                format!(
                    "a duration such as 10s, from {} to {}{whole}{off}",
                    show(min),
                    show(max)
                )
            }
            Self::Count { min, max, or } => {
                let or = or.map(|word| format!(", or {word}")).unwrap_or_default();
                format!("a whole number from {min} to {max}{or}")
            }
            Self::Size { min, max, or } => format!(
                "{}, or a size such as 64MiB, from {} to {}",
                or.join(", "),
                size::show(min),
                size::show(max)
            ),
            Self::Words(words) => words.join(", "),
            Self::Switch => "true, false".to_owned(),
        }
    }
}

/// The digits of a whole number, which may be written with an exponent: Helm makes 1e+06 of 1000000.
fn whole(text: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(text) {
        return Some(text.to_owned());
    }
    let (mantissa, exponent) = text.split_once(['e', 'E'])?;
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
    let number: f64 = text.parse().ok()?;
    let plain = digits(&mantissa.replacen('.', "", 1)) && digits(exponent);
    (plain && number.fract() == 0.0 && number <= LARGEST_WHOLE).then(|| format!("{number}"))
}

fn read_size(
    text: &str,
    accepted: RangeInclusive<u64>,
    or: &'static [&'static str],
) -> Result<Value, String> {
    if let Some(word) = or.iter().find(|word| **word == text) {
        return Ok(Value::Word(word));
    }
    match size::parse(text)? {
        bytes if bytes < *accepted.start() => {
            Err(format!("is below {}", size::show(*accepted.start())))
        }
        bytes if bytes > *accepted.end() => {
            Err(format!("is above {}", size::show(*accepted.end())))
        }
        bytes => Ok(Value::Size(bytes)),
    }
}

/// Text from the operator, safe to print: escaped, and not longer than a line can hold.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

fn read_name(text: &str) -> Result<Value, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err("is not a name".to_owned());
    }
    Ok(Value::Name(text.to_owned()))
}

fn read_listen(text: &str) -> Result<Value, String> {
    if let Ok(address) = text.parse() {
        return Ok(Value::Listen(address));
    }
    if let Ok((host, port)) = split_port(text)
        && host.eq_ignore_ascii_case("localhost")
    {
        return Ok(Value::Listen((Ipv4Addr::LOCALHOST, port).into()));
    }
    Err(match split_port(text) {
        Ok(("", _)) => "has no IP address".to_owned(),
        Ok((host, _)) if valid_host(host) => format!("names no IP address: {host}"),
        Ok(_) => "is not an address".to_owned(),
        Err(why) => why,
    })
}

fn read_dial(text: &str) -> Result<Value, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err("has port 0".to_owned());
        }
        if address.ip().to_canonical().is_unspecified() {
            return Err("is not the address of one host".to_owned());
        }
        return Ok(Value::Dial(UpstreamAddress::Socket(address)));
    }
    let (host, port) = split_port(text)?;
    if port == 0 {
        return Err("has port 0".to_owned());
    }
    if !valid_host(host) {
        return Err("has no valid host".to_owned());
    }
    let host = host.to_owned();
    Ok(Value::Dial(UpstreamAddress::Name { host, port }))
}

fn split_port(text: &str) -> Result<(&str, u16), String> {
    if text.contains("://") {
        return Err("is a URL; write host:port".to_owned());
    }
    let bare_v6 = text.matches(':').count() > 1 && !text.contains(']');
    if bare_v6 {
        return Err("is an IPv6 address without brackets".to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits => Ok((host, port)),
        _ => Err(format!("has no valid port: {}", quoted(port))),
    }
}

/// A DNS name; text that ends in a number is an IP address gone wrong (as in URLs).
fn valid_host(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}
