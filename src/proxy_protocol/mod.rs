//! The PROXY protocol, versions 1 and 2: who the client of a connection is, told in front of its payload
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>). Pure: bytes in, a header out, and back.
//!
//! Strict: what the specification does not allow is refused. Bounded: a header of version 1 has at most
//! [`LONGEST_V1`] bytes, one of version 2 at most [`LONGEST_V2`], of the 65,551 that its length could say.

mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

/// The longest line of version 1, CRLF included (2.1).
pub const LONGEST_V1: usize = 107;
/// The longest header of version 2 that is accepted: 16 bytes, then 4 KiB of addresses and TLVs. A sender should
/// stay below 536 in all (2); with the certificate names that HAProxy can add it needs about 1 KiB.
pub const LONGEST_V2: usize = 16 + 4096;

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The two ends of the connection that it speaks of. `None`: it speaks of none over TCP and IP (`LOCAL`,
    /// `UNKNOWN`), and the ends of the connection that it came on count.
    pub addresses: Option<Addresses>,
    /// What else it says, as it stood there: type, length, value, one after the other. A checksum and
    /// padding are not kept.
    pub tlvs: Vec<u8>,
}

/// The ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// The protocol above TLS (2.2.1).
pub const ALPN: u8 = 0x01;
/// The host name that the client asked for (2.2.2).
pub const AUTHORITY: u8 = 0x02;
/// What identifies the connection over several proxies, at most 128 bytes (2.2.5).
pub const UNIQUE_ID: u8 = 0x05;

/// TLS of the client's connection (2.2.6).
pub const SSL: u8 = 0x20;

/// What is told of the client's TLS.
#[derive(Clone, Copy, Debug)]
pub struct Ssl<'a> {
    /// `TLSv1.3` and the like.
    pub version: &'a str,
    /// The cipher suite.
    pub cipher: &'a str,
    /// Whose certificate the client has shown, which was verified.
    pub common_name: Option<&'a str>,
}

impl Ssl<'_> {
    /// The value of its TLV.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        const OVER_TLS: u8 = 0x01;
        const CERTIFICATE_IN_CONNECTION: u8 = 0x02;
        const CERTIFICATE_IN_SESSION: u8 = 0x04;
        // A certificate is shown each time, so in the connection, too. The result of the verification is 0 only for
        // one that was verified.
        let (certificate, result) = match self.common_name {
            Some(_) => (CERTIFICATE_IN_CONNECTION | CERTIFICATE_IN_SESSION, 0_u32),
            None => (0, 1),
        };
        let flags = OVER_TLS | certificate;
        let mut value = [&[flags][..], &result.to_be_bytes()].concat();
        let parts = [
            (0x21, Some(self.version)),
            (0x22, self.common_name),
            (0x23, Some(self.cipher)),
        ];
        for (kind, part) in parts {
            part.into_iter()
                .for_each(|part| put(&mut value, kind, part.as_bytes()));
        }
        value
    }
}

/// Appends a TLV. One longer than its length can say is left out.
fn put(tlvs: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        tlvs.push(kind);
        tlvs.extend(length.to_be_bytes());
        tlvs.extend(value);
    }
}

/// Reads a header, of which `bytes` are the first that have come. Returns it with its length, or `None` while
/// it is not complete.
///
/// # Errors
/// Why it is none, as soon as that is known.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if begins(bytes, &v2::SIGNATURE) {
        v2::parse(bytes)
    } else if begins(bytes, v1::SIGNATURE) {
        v1::parse(bytes)
    } else {
        Err(Malformed("the first bytes begin no header"))
    }
}

/// Whether what has come so far may be the beginning of something that begins so.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let known = bytes.len().min(with.len());
    bytes[..known] == with[..known]
}

impl Header {
    /// As a line of version 1, which has no room for TLVs.
    #[must_use]
    pub fn to_v1(&self) -> Vec<u8> {
        v1::line(self.addresses.map(Addresses::of_one_family))
    }

    /// As a header of version 2: of a client, or `LOCAL` where it speaks of none.
    #[must_use]
    pub fn to_v2(&self) -> Vec<u8> {
        v2::header(self.addresses.map(Addresses::of_one_family), &self.tlvs)
    }

    /// Adds a TLV, unless there is one of this type. One longer than its length can say is left out.
    pub fn add(&mut self, kind: u8, value: &[u8]) {
        let known = v2::Tlvs(&self.tlvs).any(|tlv| tlv.is_ok_and(|tlv| tlv.kind == kind));
        if !known {
            put(&mut self.tlvs, kind, value);
        }
    }
}

impl Addresses {
    /// Both as IPv4, where that is what they are, else both as IPv6.
    fn of_one_family(self) -> Self {
        let ips = [self.source, self.destination].map(|address| address.ip().to_canonical());
        let [source, destination] = match ips {
            [IpAddr::V4(_), IpAddr::V4(_)] => ips,
            mixed => mixed.map(|ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
                ip => ip,
            }),
        };
        Self {
            source: (source, self.source.port()).into(),
            destination: (destination, self.destination.port()).into(),
        }
    }
}

#[cfg(test)]
mod tests;
