//! Networks of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// The addresses that begin with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl Network {
    /// The one around an address with a prefix of this many bits: of IPv4, of IPv6.
    #[must_use]
    pub fn around(ip: IpAddr, [ipv4, ipv6]: [u8; 2]) -> Self {
        let ip = ip.to_canonical();
        let length = if ip.is_ipv4() { ipv4 } else { ipv6 };
        let network = IpNet::new(ip, length);
        Self(network.map_or_else(|_| ip.into(), |network| network.trunc()))
    }

    /// Whether an address is one of them. An IPv4-mapped IPv6 address counts as the IPv4 address: a socket
    /// of `[::]` has all its IPv4 clients in that form.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.parse().or_else(|_| text.parse().map(IpAddr::into));
        let network = unmapped(network.map_err(|_| "is not a network")?);
        if network.addr() != network.network() {
            let meant = network.trunc();
            return Err(format!("has host bits set; the network is {meant}"));
        }
        Ok(Self(network))
    }
}

/// Of IPv4-mapped addresses, the network of the IPv4 addresses.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else {
        return network;
    };
    let (v4, length) = (mapped.addr().to_ipv4_mapped(), mapped.prefix_len());
    let v4 = v4.zip(length.checked_sub(96));
    let v4 = v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect(text)
    }

    #[test]
    fn clients_of_both_families() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::a01:203"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "::ffff:192.0.2.7", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::/0", "fe80::1", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.7", "192.0.3.7"),
        ] {
            let network = network(text);
            assert!(network.contains(inside.parse().expect(inside)), "{text}");
            assert!(!network.contains(outside.parse().expect(outside)), "{text}");
        }
    }

    #[test]
    fn around_an_address() {
        for (ip, expected) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:0:7:8::9", "2001:db8:0:7::/64"),
        ] {
            let network = Network::around(ip.parse().expect(ip), [24, 64]);
            assert_eq!(network.to_string(), expected);
        }
    }

    #[test]
    fn host_bits_are_refused() {
        for (text, why) in [
            ("10.1.0.0/8", "has host bits set; the network is 10.0.0.0/8"),
            (
                "2001:db8::1/64",
                "has host bits set; the network is 2001:db8::/64",
            ),
            (
                "::ffff:10.0.0.1/104",
                "has host bits set; the network is 10.0.0.0/8",
            ),
            ("10.0.0.0/33", "is not a network"),
            ("10.0.0/8", "is not a network"),
            ("example.org", "is not a network"),
            ("", "is not a network"),
        ] {
            assert_eq!(text.parse::<Network>(), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn they_are_shown_as_they_are_read() {
        for text in ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::1/128"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }
}
