//! Version 2: binary (2.2).

use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Header, LONGEST_V2, Malformed};

pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, command, family and length.
const FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP_IPV4: u8 = 0x11;
const TCP_IPV6: u8 = 0x21;
/// A checksum of the whole header (2.2.3).
const CRC32C: u8 = 0x03;
/// Padding (2.2.4).
const NOOP: u8 = 0x04;

pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if ![LOCAL, PROXY].contains(&command) {
        return Err(Malformed("version 2: another version or command"));
    }
    // 2.2: UNSPEC, then IPv4, IPv6 and unix, each as a stream and as datagrams.
    let of_addresses = match family {
        0x00 => 0,
        TCP_IPV4 | 0x12 => 12,
        TCP_IPV6 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Malformed("version 2: an unknown family or protocol")),
    };
    if FIXED + length > LONGEST_V2 {
        return Err(Malformed("version 2: the header is longer than 4112 bytes"));
    }
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let whole = &bytes[..FIXED + length];
    let header = match command {
        // The rest is to be ignored.
        LOCAL => Header::default(),
        _ => {
            let short = Malformed("version 2: the length has no room for the addresses");
            let (addresses, tlvs) = body.split_at_checked(of_addresses).ok_or(short)?;
            Header {
                addresses: self::addresses(family, addresses),
                tlvs: kept(whole, tlvs)?,
            }
        }
    };
    Ok(Some((header, whole.len())))
}

fn addresses(family: u8, bytes: &[u8]) -> Option<Addresses> {
    let (ips, ports) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let (source, destination) = ips.split_at(ips.len() / 2);
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match family {
            TCP_IPV4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            TCP_IPV6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            _ => None,
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(Addresses {
        source: SocketAddr::new(ip(source)?, port(0)),
        destination: SocketAddr::new(ip(destination)?, port(2)),
    })
}

/// The TLVs that are kept. A checksum is compared, where there is one.
fn kept(whole: &[u8], tlvs: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut kept = Vec::new();
    let mut tlvs = Tlvs(tlvs);
    while let Some(tlv) = tlvs.next() {
        let tlv = tlv?;
        match tlv.kind {
            CRC32C => {
                let at = whole.len() - tlvs.0.len() - tlv.value.len();
                let parts = [&whole[..at], &[0; 4], &whole[at + tlv.value.len()..]];
                if tlv.value != crc32c(parts.into_iter().flatten()).to_be_bytes() {
                    return Err(Malformed("version 2: the checksum is wrong"));
                }
            }
            NOOP => {}
            _ => kept.extend(tlv.whole),
        }
    }
    Ok(kept)
}

pub(super) struct Tlv<'a> {
    pub kind: u8,
    value: &'a [u8],
    whole: &'a [u8],
}

/// The TLVs of these bytes.
pub(super) struct Tlvs<'a>(pub &'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<Tlv<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let all = self.0;
        if all.is_empty() {
            return None;
        }
        // After one that is wrong there is nothing to be found.
        self.0 = &[];
        let wrong = Malformed("version 2: a TLV is longer than the rest of the header");
        let [kind, high, low, rest @ ..] = all else {
            return Some(Err(wrong));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, rest)) = rest.split_at_checked(length) else {
            return Some(Err(wrong));
        };
        self.0 = rest;
        Some(Ok(Tlv {
            kind: *kind,
            value,
            whole: &all[..3 + length],
        }))
    }
}

pub(super) fn header(addresses: Option<Addresses>, tlvs: &[u8]) -> Vec<u8> {
    let (command, family) = match addresses {
        Some(ends) if ends.source.is_ipv4() => (PROXY, TCP_IPV4),
        Some(_) => (PROXY, TCP_IPV6),
        None => (LOCAL, 0x00),
    };
    let mut body = Vec::new();
    if let Some(ends) = addresses {
        let ends = [ends.source, ends.destination];
        for ip in ends.map(|end| end.ip()) {
            match ip {
                IpAddr::V4(ip) => body.extend(ip.octets()),
                IpAddr::V6(ip) => body.extend(ip.octets()),
            }
        }
        ends.iter()
            .for_each(|end| body.extend(end.port().to_be_bytes()));
    }
    body.extend(tlvs);
    // TLVs are those of a header that was accepted, and few others.
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let fixed = [&SIGNATURE[..], &[command, family], &length.to_be_bytes()].concat();
    [fixed, body].concat()
}

/// RFC 4960, appendix B. Bit by bit: few headers have one, and none is long.
pub(super) fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const REFLECTED: u32 = 0x82F6_3B78;
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let carry = REFLECTED * (crc & 1);
            (crc >> 1) ^ carry
        })
    };
    !bytes.fold(u32::MAX, step)
}
