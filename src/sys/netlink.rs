//! The little of rtnetlink(7) that a private test network needs: veth pairs, addresses, fixed
//! neighbours, routes.
//!
//! It also cuts a link *silently*, with neither nftables nor a special device: the neighbour entry
//! of the peer is replaced by one with a foreign hardware address ([`NOBODY`]). The sender's stack
//! sees a successful transmission, no ARP is asked because the entry is permanent, and the receiver
//! drops the frame as meant for somebody else. That is what a host which vanished behind a router
//! looks like. Each direction is cut by itself.

use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::netns::Namespace;

/// A hardware address.
pub type Mac = [u8; 6];

/// A locally administered address that no interface here has.
pub const NOBODY: Mac = [0x02, 0xde, 0xad, 0, 0, 0xff];

/// `VETH_INFO_PEER` (`include/uapi/linux/veth.h`); not among libc's constants.
const VETH_INFO_PEER: u16 = 1;
/// An address is used at once, without asking whether somebody has it
/// (`include/uapi/linux/if_addr.h`); libc's is as wide as a newer attribute.
const IFA_F_NODAD: u8 = 2;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface name, at most 15 bytes.
    pub name: &'a str,
    /// Hardware address.
    pub mac: Mac,
}

/// A NETLINK_ROUTE socket; it acts on the namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        let domain = Domain::from(libc::AF_NETLINK);
        let protocol = Protocol::from(libc::NETLINK_ROUTE);
        let socket = Socket::new(domain, Type::RAW.cloexec(), Some(protocol))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a veth pair: `here` in this namespace, `there` in `other`. Both are down.
    ///
    /// # Errors
    /// What the kernel answers, `EEXIST` for a name that is taken.
    pub fn add_veth(
        &mut self,
        here: VethEnd<'_>,
        there: VethEnd<'_>,
        other: &Namespace,
    ) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        m.link_header(0, 0);
        m.text(libc::IFLA_IFNAME, here.name);
        m.attribute(libc::IFLA_ADDRESS, &here.mac);
        m.nested(libc::IFLA_LINKINFO, |m| {
            m.text(libc::IFLA_INFO_KIND, "veth");
            m.nested(libc::IFLA_INFO_DATA, |m| {
                m.nested(VETH_INFO_PEER, |m| {
                    m.link_header(0, 0);
                    m.text(libc::IFLA_IFNAME, there.name);
                    m.attribute(libc::IFLA_ADDRESS, &there.mac);
                    m.attribute(libc::IFLA_NET_NS_FD, &other.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.request(m)
    }

    /// Takes an interface up or down.
    ///
    /// # Errors
    /// What the kernel answers, `ENODEV` for an unknown name.
    pub fn set_up(&mut self, interface: &str, up: bool) -> io::Result<()> {
        let flag = u32::try_from(libc::IFF_UP).unwrap_or_default();
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.link_header(if up { flag } else { 0 }, flag);
        m.text(libc::IFLA_IFNAME, interface);
        self.request(m)
    }

    /// Gives an interface an address and a route to the network of that prefix length.
    ///
    /// # Errors
    /// What the kernel answers, `EEXIST` when it has the address already.
    pub fn add_address(&mut self, interface: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let index = self.index(interface)?;
        let mut m = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // The network is private: nobody else can have the address (IPv6 would ask for a second).
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        m.bytes(&[family(address), prefix, flags, libc::RT_SCOPE_UNIVERSE]);
        m.bytes(&index.to_ne_bytes());
        m.address(libc::IFA_LOCAL, address);
        m.address(libc::IFA_ADDRESS, address);
        self.request(m)
    }

    /// Fixes the hardware address of a neighbour, for ever; no ARP is asked.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_neighbour(&mut self, interface: &str, address: IpAddr, mac: Mac) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut m = self.neighbour(libc::RTM_NEWNEIGH, flags, interface, address)?;
        m.attribute(libc::NDA_LLADDR, &mac);
        self.request(m)
    }

    /// Routes everything that is on no attached network through a gateway.
    ///
    /// # Errors
    /// What the kernel answers, `ENETUNREACH` when the gateway is on no attached network.
    pub fn add_default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
        let (scope, kind) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
        m.bytes(&[family(gateway), 0, 0, 0, table, protocol, scope, kind]);
        m.bytes(&0_u32.to_ne_bytes());
        m.address(libc::RTA_GATEWAY, gateway);
        self.request(m)
    }

    fn neighbour(
        &self,
        kind: u16,
        flags: i32,
        interface: &str,
        address: IpAddr,
    ) -> io::Result<Message> {
        let index = self.index(interface)?;
        let mut m = Message::new(kind, flags);
        m.bytes(&[family(address), 0, 0, 0]);
        m.bytes(&index.to_ne_bytes());
        let [low, high] = libc::NUD_PERMANENT.to_ne_bytes();
        m.bytes(&[low, high, 0, 0]);
        m.address(libc::NDA_DST, address);
        Ok(m)
    }

    fn index(&self, interface: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(
            &self.socket,
            interface,
        )?)
    }

    /// Sends a request and waits for the kernel's acknowledgement, which comes at once.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&message.finish(self.sequence))?;
        let mut answer = [0; 4096];
        loop {
            let n = (&self.socket).read(&mut answer)?;
            if let Some(result) = acknowledged(&answer[..n], self.sequence) {
                return result;
            }
        }
    }
}

/// Finds the answer to the request with that number in a datagram.
fn acknowledged(datagram: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let mut answers = messages(datagram);
    let answer = answers.find(|m| m.kind == libc::NLMSG_ERROR && m.sequence == sequence)?;
    answer.error()
}

/// A message of the kernel.
pub(super) struct Received<'a> {
    /// `NLMSG_...`, or what the protocol of the socket defines.
    pub kind: i32,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Received<'_> {
    /// What an `NLMSG_ERROR` (or the status that ends a dump) says.
    pub(super) fn error(&self) -> Option<io::Result<()>> {
        let code = self.payload.get(..4)?;
        Some(match u32_at(code, 0).cast_signed() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        })
    }
}

/// Takes a datagram apart; what does not hold a whole message is left out.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        if datagram.len() < HEADER {
            return None;
        }
        let length = usize::try_from(u32_at(datagram, 0)).ok()?;
        let message = datagram.get(..length.max(HEADER))?;
        datagram = datagram
            .get(message.len().next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Received {
            kind: i32::from(u16::from_ne_bytes([message[4], message[5]])),
            sequence: u32_at(message, 8),
            payload: &message[HEADER..],
        })
    })
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The address family as the one byte that it takes in a message.
fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or_default()
}

/// A request under construction: header, a fixed part, attributes. Lengths are filled in at the
/// end of each part, and every part is padded to 4 bytes.
pub(super) struct Message {
    buffer: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let flags = u16::try_from(flags).unwrap_or_default();
        let mut buffer = vec![0; HEADER];
        buffer[4..6].copy_from_slice(&kind.to_ne_bytes());
        buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { buffer }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// `struct ifinfomsg` for an interface that is named by an attribute.
    fn link_header(&mut self, flags: u32, change: u32) {
        self.bytes(&[0; 8]);
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&change.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.bytes(value);
    }

    fn address(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.attribute(kind, &[]);
        fill(self);
        let length = u16::try_from(self.buffer.len() - start).unwrap_or(u16::MAX);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_lengths_cover_their_contents() {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.nested(7, |m| m.text(3, "lo"));
        let bytes = m.finish(9);
        assert_eq!(bytes.len(), HEADER + 4 + 8);
        assert_eq!(u32_at(&bytes, 0), 28);
        assert_eq!(u32_at(&bytes, 8), 9);
        let expected: Vec<u8> = [12_u16, 7, 7, 3]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .chain(*b"lo\0\0")
            .collect();
        assert_eq!(&bytes[HEADER..], expected);
    }

    #[test]
    fn an_answer_is_found_by_its_number_and_carries_the_error() {
        let answer = |sequence: u32, errno: i32| {
            let mut m = Message::new(u16::try_from(libc::NLMSG_ERROR).expect("small"), 0);
            m.bytes(&(-errno).to_ne_bytes());
            m.finish(sequence)
        };
        let datagram = [answer(1, 0), answer(2, libc::EPERM)].concat();
        assert!(acknowledged(&datagram, 1).expect("found").is_ok());
        let error = acknowledged(&datagram, 2).expect("found").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(acknowledged(&datagram, 3).is_none());
        assert!(acknowledged(&datagram[..10], 1).is_none());
    }

    #[test]
    fn an_unknown_interface_is_an_error() {
        let result = Netlink::open()
            .expect("open")
            .set_up("no-such-device", false);
        // Without privilege the kernel refuses before it looks for the device.
        let errno = result.unwrap_err().raw_os_error();
        assert!(
            matches!(errno, Some(libc::ENODEV | libc::EPERM)),
            "{errno:?}"
        );
    }
}
