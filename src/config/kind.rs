//! The kinds of values. A new kind is one function.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value as Json, json};
use strum::VariantNames;

use super::bytes::{Bytes, Statuses};
use super::network::Network;
use super::section::{Accepted, Form};
use super::setting::{Items, Setting, Type, list, value};
use super::table::nearest;
use super::tls::{MinVersion, Roots};
use super::types::{ControlAddress, ListenAddress, MemoryLimit, Rate, UpstreamAddress};
use super::units::{self, show, show_rate, show_size};
use crate::heartbeat::profiles::{Protocol, refusal};

/// Up to here every whole number is a floating-point number: 2^53.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

fn form(words: impl Into<String>, placeholder: impl Into<String>, schema: Json) -> Form {
    let (words, placeholder) = (words.into(), placeholder.into());
    Form::Value(Accepted {
        words,
        schema,
        placeholder,
    })
}

fn within<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    match value {
        value if value < *range.start() => Err(format!("is below {}", show(range.start()))),
        value if value > *range.end() => Err(format!("is above {}", show(range.end()))),
        value => Ok(value),
    }
}

/// A whole number and a unit of time, in steps of a millisecond or second.
fn stepped(range: RangeInclusive<Duration>, step: Duration, words: &str) -> Setting<Duration> {
    let (min, max) = (show(*range.start()), show(*range.end()));
    let accepted = format!("a duration such as 10s, from {min} to {max}{words}");
    let schema = json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" });
    let parse = move |text: &str| {
        let span = within(units::duration(text)?, &range, |bound| show(*bound))?;
        let fits = span.as_millis().is_multiple_of(step.as_millis());
        fits.then_some(span)
            .ok_or_else(|| format!("is finer than {}", show(step)))
    };
    value(
        Type::Amount,
        form(accepted, "DURATION", schema),
        parse,
        |span| show(*span).into(),
    )
}

/// A whole number and a unit of time.
pub(super) fn span(range: RangeInclusive<Duration>) -> Setting<Duration> {
    stepped(range, Duration::from_millis(1), "")
}

/// The same in whole seconds.
pub(super) fn seconds(range: RangeInclusive<Duration>) -> Setting<Duration> {
    stepped(range, Duration::from_secs(1), " in whole seconds")
}

/// A limit that can be off. Below 100 ms a timer ends healthy sessions; above a year it is a mistake.
pub(super) fn timeout() -> Setting<Option<Duration>> {
    span(Duration::from_millis(100)..=Duration::from_secs(8760 * 3600)).or_off()
}

/// A whole number.
pub(super) fn count<T>(range: RangeInclusive<T>) -> Setting<T>
where
    T: Copy + Display + FromStr + PartialOrd + Into<u64> + 'static,
{
    let (min, max): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
    let accepted = format!("a whole number from {min} to {max}");
    let schema = json!({ "type": "integer", "minimum": min, "maximum": max });
    let parse = move |text: &str| {
        let digits = whole(text).ok_or("is not a whole number")?;
        let number = digits.parse().map_err(|_| format!("is above {max}"))?;
        within(number, &range, T::to_string)
    };
    value(Type::Number, form(accepted, "N", schema), parse, |n| {
        Into::<u64>::into(*n).into()
    })
}

/// One of the words of `T`.
pub(super) fn choice<T: FromStr + Display + VariantNames + 'static>() -> Setting<T> {
    let words = T::VARIANTS;
    let form = form(words.join(", "), words.join("|"), enumeration(words));
    let parse = |text: &str| text.parse().map_err(|_| no_word(text, words));
    value(Type::Text, form, parse, |word: &T| word.to_string().into())
}

/// Says which word may be meant.
fn no_word(text: &str, words: &[&str]) -> String {
    match nearest(text, words.iter().copied()) {
        Some(near) => format!("is not one of the words, did you mean {near}?"),
        None => "is not one of the words".to_owned(),
    }
}

/// A protocol in which an application is asked. Of those in which it cannot be, the message says why.
pub(super) fn protocol() -> Setting<Protocol> {
    let words = Protocol::VARIANTS;
    let form = form(words.join(", "), words.join("|"), enumeration(words));
    let parse = |text: &str| {
        text.parse().map_err(|_| match refusal(text) {
            Some(reason) => format!("cannot be asked in: {reason}"),
            None => no_word(text, words),
        })
    };
    value(Type::Text, form, parse, |word: &Protocol| {
        word.to_string().into()
    })
}

/// Bytes with escapes.
pub(super) fn bytes() -> Setting<Bytes> {
    let words = r"text with the escapes \r \n \t \0 \\ \xHH";
    let form = form(words, "TEXT", json!({ "type": "string" }));
    value(Type::Text, form, str::parse, |bytes: &Bytes| {
        bytes.to_string().into()
    })
}

/// The path of a URL.
pub(super) fn path() -> Setting<String> {
    let form = form(
        "a path such as /health",
        "PATH",
        json!({ "type": "string", "pattern": "^/" }),
    );
    let parse =
        |text: &str| match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(text.to_owned()),
            false => Err("is no path".to_owned()),
        };
    value(Type::Text, form, parse, |path| path.as_str().into())
}

/// Status codes of HTTP. A single one is a number without quotes.
pub(super) fn statuses() -> Setting<Statuses> {
    let range = json!({ "type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$" });
    let single = json!({ "type": "integer", "minimum": 100, "maximum": 599 });
    let schema = json!({ "anyOf": [range, single] });
    let form = form("status codes such as 200 or 200-299", "CODES", schema);
    value(Type::Code, form, str::parse, |codes: &Statuses| {
        codes.to_string().into()
    })
}

/// In YAML 1.1 `off` is `false`, which is accepted, too.
pub(super) fn enumeration(accepted: &[&str]) -> Json {
    let mut words: Vec<Json> = accepted.iter().map(|word| json!(word)).collect();
    if accepted.contains(&"off") {
        words.push(json!(false));
    }
    json!({ "enum": words })
}

/// `true` or `false`.
pub(super) fn switch() -> Setting<bool> {
    let form = form("true, false", "true|false", json!({ "type": "boolean" }));
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| "is neither true nor false".to_owned())
    };
    value(Type::Switch, form, parse, |on: &bool| (*on).into())
}

/// A whole number and a unit of memory, or `auto`, or `off`.
pub(super) fn memory(range: RangeInclusive<u64>) -> Setting<MemoryLimit> {
    let (min, max) = (show_size(*range.start()), show_size(*range.end()));
    let accepted = format!("auto, off, or a size such as 64MiB, from {min} to {max}");
    let size = json!({ "type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)$" });
    let schema = json!({ "anyOf": [size, enumeration(&["auto", "off"])] });
    let parse = move |text: &str| match text {
        "auto" => Ok(MemoryLimit::Auto),
        "off" => Ok(MemoryLimit::Off),
        text => within(units::size(text)?, &range, |size| show_size(*size)).map(MemoryLimit::Bytes),
    };
    let form = form(accepted, "SIZE|auto|off", schema);
    value(Type::Amount, form, parse, |limit| limit.to_string().into())
}

/// A whole number of connections and a unit of time.
pub(super) fn rate(range: RangeInclusive<u32>) -> Setting<Rate> {
    let (min, max) = (range.start(), range.end());
    let accepted = format!("a rate such as 20/s or 100/m, from {min} to {max}");
    let schema = json!({ "type": "string", "pattern": "^[0-9]+/[sm]$" });
    let parse = move |text: &str| {
        let rate = units::rate(text)?;
        within(rate.connections, &range, u32::to_string)?;
        Ok(rate)
    };
    let form = form(accepted, "RATE", schema);
    value(Type::Amount, form, parse, |rate| show_rate(*rate).into())
}

/// Letters, digits, `-`, `_`, `.`; at most 63.
pub(super) fn name() -> Setting<String> {
    let schema = json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$" });
    let form = form(
        "1 to 63 letters, digits, \"-\", \"_\" or \".\"",
        "TEXT",
        schema,
    );
    value(Type::Name, form, parse_name, |name| name.as_str().into())
}

/// A local `IP:port`.
pub(super) fn listen() -> Setting<SocketAddr> {
    address("IP:port, such as 0.0.0.0:9000 or [::1]:9000", parse_listen)
}

/// Where a listener is.
pub(super) fn listener_address() -> Setting<ListenAddress> {
    let accepted = "IP:port, such as 0.0.0.0:9000 or [::1]:9000; or unix:/PATH, or fd:NAME";
    let schema = json!({ "type": "string", "pattern": "^(unix:/.+|fd:.+|.+:[0-9]{1,5})$" });
    let form = form(accepted, "ADDR", schema);
    value(Type::Text, form, parse_listener, |a| a.to_string().into())
}

/// A loopback address, or the path of a socket.
pub(super) fn control() -> Setting<ControlAddress> {
    let accepted = "a loopback IP:port, such as 127.0.0.1:9901, or unix:/PATH";
    let schema = json!({ "type": "string", "pattern": "^(unix:/.+|.+:[0-9]{1,5})$" });
    let form = form(accepted, "ADDR", schema);
    value(Type::Text, form, parse_control, |a| a.to_string().into())
}

/// The path of a file.
pub(super) fn file() -> Setting<PathBuf> {
    let form = form(
        "the path of a file",
        "FILE",
        json!({ "type": "string", "minLength": 1 }),
    );
    let parse = |text: &str| match text {
        "" => Err("is no path".to_owned()),
        text => Ok(text.into()),
    };
    value(Type::Text, form, parse, |path: &PathBuf| {
        path.display().to_string().into()
    })
}

/// The authorities that are trusted.
pub(super) fn roots() -> Setting<Roots> {
    let schema = json!({ "type": "string", "minLength": 1 });
    let form = form("system, or the path of a file", "system|FILE", schema);
    let parse = |text: &str| match text {
        "" => Err("is no path".to_owned()),
        "system" => Ok(Roots::System),
        path => Ok(Roots::File(path.into())),
    };
    value(Type::Text, form, parse, |roots| roots.to_string().into())
}

/// A version of TLS. Without quotes it is a number.
pub(super) fn version() -> Setting<MinVersion> {
    let words = MinVersion::VARIANTS;
    let numbers: Vec<f64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let schema = json!({ "anyOf": [{ "enum": words }, { "enum": numbers }] });
    let form = form(words.join(", "), words.join("|"), schema);
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| "is not one of the versions".to_owned())
    };
    value(Type::Version, form, parse, |version: &MinVersion| {
        version.to_string().into()
    })
}

/// Names of protocols inside TLS.
pub(super) fn alpn() -> Setting<Vec<String>> {
    let schema = json!({ "type": "string", "minLength": 1, "maxLength": 255 });
    let form = form("the name of a protocol, such as h2", "NAME,...", schema);
    let parse = |text: &str| {
        let fits = |b: u8| b.is_ascii_graphic() && b != b',';
        match text.len() {
            1..=255 if text.bytes().all(fits) => Ok(text.to_owned()),
            _ => Err("is no name of a protocol".to_owned()),
        }
    };
    let of = value(Type::Text, form, parse, |name: &String| {
        name.as_str().into()
    });
    let (needed, template) = (None, None);
    list(Items {
        of,
        needed,
        template,
    })
}

/// What a certificate can name: a host, or an IP address.
pub(super) fn server_name() -> Setting<String> {
    let words = "a DNS name or an IP address, such as db.example";
    let form = form(words, "NAME", json!({ "type": "string", "minLength": 1 }));
    let parse = |text: &str| match text.parse::<IpAddr>().is_ok() || valid_host(text) {
        true => Ok(text.to_owned()),
        false => Err("is neither a DNS name nor an IP address".to_owned()),
    };
    value(Type::Text, form, parse, |name| name.as_str().into())
}

/// `host:port` of a service, or its Unix socket.
pub(super) fn dial() -> Setting<UpstreamAddress> {
    let schema = json!({ "type": "string", "pattern": "^(.+:[0-9]{1,5}|unix:/.+)$" });
    value(
        Type::Text,
        form(DIAL, "ADDR", schema),
        parse_service,
        |address: &UpstreamAddress| address.to_string().into(),
    )
}

/// What is accepted as the address of a service.
pub(super) const DIAL: &str =
    "host:port, such as 127.0.0.1:8080 or db.internal:5432; or unix:/path of a socket";
fn parse_service(text: &str) -> Result<UpstreamAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) => parse_socket_path(path).map(UpstreamAddress::Unix),
        None => parse_dial(text),
    }
}

/// Networks, such as `10.0.0.0/8`; of single addresses the prefix may be left out.
pub(super) fn networks() -> Setting<Vec<Network>> {
    let schema = json!({ "type": "string", "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$" });
    let form = form(
        "a network, such as 10.0.0.0/8 or fd00::/8",
        "CIDR,...",
        schema,
    );
    let of = value(Type::Text, form, str::parse, |network: &Network| {
        network.to_string().into()
    });
    let (needed, template) = (None, None);
    list(Items {
        of,
        needed,
        template,
    })
}

/// Addresses of this host.
pub(super) fn sources() -> Setting<Vec<IpAddr>> {
    let schema = json!({ "type": "string", "pattern": "^[0-9a-fA-F.:]+$" });
    let form = form("a local IP address, such as 10.0.0.5", "IP,...", schema);
    let of = value(Type::Text, form, parse_source, |ip: &IpAddr| {
        ip.to_string().into()
    });
    let (needed, template) = (None, None);
    let items = Items {
        of,
        needed,
        template,
    };
    list(items).or_text()
}

fn parse_source(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| "is not an IP address")?;
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err("is not the address of one host".to_owned());
    }
    Ok(ip)
}

fn address<T>(accepted: &str, parse: fn(&str) -> Result<T, String>) -> Setting<T>
where
    T: Display + 'static,
{
    let schema = json!({ "type": "string", "pattern": "^.+:[0-9]{1,5}$" });
    value(
        Type::Text,
        form(accepted, "ADDR", schema),
        parse,
        |address| address.to_string().into(),
    )
}

/// The digits of a whole number, which may be written with an exponent or a fraction of zero: Helm
/// makes 1e+06 of 1000000.
pub(super) fn whole(text: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(text) {
        return Some(text.to_owned());
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
    let number: f64 = text.parse().ok()?;
    let plain = digits(&mantissa.replacen('.', "", 1)) && digits(exponent);
    (plain && number.fract() == 0.0 && number <= LARGEST_WHOLE).then(|| format!("{number}"))
}

/// Text from the operator, safe to print: escaped, and not longer than a line can hold.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err("is not a name".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match split_port(text)? {
        ("", _) => Err("has no IP address".to_owned()),
        (host, port) if host.eq_ignore_ascii_case("localhost") => {
            Ok((Ipv4Addr::LOCALHOST, port).into())
        }
        (host, _) if valid_host(host) => Err(format!("names no IP address: {host}")),
        _ => Err("is not an address".to_owned()),
    }
}

pub(super) fn parse_listener(text: &str) -> Result<ListenAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_socket_path(path).map(ListenAddress::Unix);
    }
    if let Some(name) = text.strip_prefix("fd:") {
        return parse_name(name).map(ListenAddress::Activated);
    }
    parse_listen(text).map(ListenAddress::Socket)
}

fn parse_control(text: &str) -> Result<ControlAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_socket_path(path).map(ControlAddress::Unix);
    }
    match parse_listen(text)? {
        address if address.ip().to_canonical().is_loopback() => Ok(ControlAddress::Tcp(address)),
        _ => Err("is no loopback address".to_owned()),
    }
}

/// The longest path is what fits into `sun_path`, with a zero byte (unix(7)).
pub(super) fn parse_socket_path(path: &str) -> Result<PathBuf, String> {
    match path {
        path if !path.starts_with('/') => Err("is not an absolute path".to_owned()),
        path if path.len() > 107 => Err("is longer than 107 bytes".to_owned()),
        path if path.contains('\0') => Err("has a zero byte".to_owned()),
        path => Ok(path.into()),
    }
}

pub(super) fn parse_dial(text: &str) -> Result<UpstreamAddress, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err("has port 0".to_owned());
        }
        if address.ip().to_canonical().is_unspecified() {
            return Err("is not the address of one host".to_owned());
        }
        return Ok(UpstreamAddress::Socket(address));
    }
    let (host, port) = split_port(text)?;
    if port == 0 {
        return Err("has port 0".to_owned());
    }
    if !valid_host(host) {
        return Err("has no valid host".to_owned());
    }
    let host = host.to_owned();
    Ok(UpstreamAddress::Name { host, port })
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
