//! Version 1: a line of text (2.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Addresses, Header, LONGEST_V1, Malformed};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";

pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let Some(end) = bytes.iter().take(LONGEST_V1 - 1).position(line_end) else {
        return if bytes.len() < LONGEST_V1 {
            Ok(None)
        } else {
            Err(Malformed("version 1: the line is longer than 107 bytes"))
        };
    };
    match bytes[end..] {
        [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => {}
        _ => return Err(Malformed("version 1: the line does not end in CR LF")),
    }
    let line = bytes[..end].strip_prefix(SIGNATURE);
    let addresses = addresses(line.unwrap_or_default())?;
    let tlvs = Vec::new();
    Ok(Some((Header { addresses, tlvs }, end + 2)))
}

/// What stands behind the signature.
fn addresses(line: &[u8]) -> Result<Option<Addresses>, Malformed> {
    // Whatever follows is to be ignored.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let text = str::from_utf8(line).map_err(|_| Malformed("version 1: the line is no text"))?;
    let fields: Vec<&str> = text.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = fields[..] else {
        return Err(Malformed("version 1: the line has not six fields"));
    };
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let address = |text, port| Some(SocketAddr::new(ip(text)?, self::port(port)?));
    let ends = address(source, source_port).zip(address(destination, destination_port));
    let (source, destination) =
        ends.ok_or(Malformed("version 1: the addresses or ports are none"))?;
    Ok(Some(Addresses {
        source,
        destination,
    }))
}

/// Decimal, without a sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    (port.to_string() == text).then_some(port)
}

pub(super) fn line(addresses: Option<Addresses>) -> Vec<u8> {
    let Some(Addresses {
        source,
        destination,
    }) = addresses
    else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (source_port, destination_port) = (source.port(), destination.port());
    let (source, destination) = (source.ip(), destination.ip());
    let line =
        format!("PROXY {family} {source} {destination} {source_port} {destination_port}\r\n");
    line.into_bytes()
}
