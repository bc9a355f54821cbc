//! The little of netlink(7) that is needed: the messages, which sock_diag(7) shares, and of
//! rtnetlink(7) what a private network takes for the demo and the tests.
//!
//! A link is cut *silently* by a neighbour entry with a foreign hardware address ([`NOBODY`]). The
//! sender's stack sees a successful transmission, no ARP request is sent because the entry is
//! permanent, and the receiver drops the frame as meant for somebody else. A host that vanished
//! behind a router looks like this. Each direction is cut by itself.

use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

/// A hardware address.
pub type Mac = [u8; 6];

/// A locally administered address that no interface of a private network has.
pub const NOBODY: Mac = [0x02, 0xde, 0xad, 0, 0, 0xff];

/// `VETH_INFO_PEER` (`include/uapi/linux/veth.h`); not among libc's constants.
const VETH_INFO_PEER: u16 = 1;
/// An IPv6 address is used at once, without asking whether somebody has it
/// (`include/uapi/linux/if_addr.h`); libc's is as wide as a newer attribute.
const IFA_F_NODAD: u8 = 2;
/// An interface is up; libc's is signed.
const IFF_UP: u32 = libc::IFF_UP as u32;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

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
        let socket = open(libc::NETLINK_ROUTE)?;
        let sequence = 0;
        Ok(Self { socket, sequence })
    }

    /// Makes a veth pair, `here` in this namespace and `there` in `other`. Both ends are down. An
    /// end is a name of at most 15 bytes and a hardware address.
    ///
    /// # Errors
    /// What the kernel answers, `EEXIST` for a name that is taken.
    pub fn add_veth(
        &mut self,
        here: (&str, Mac),
        there: (&str, Mac),
        other: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        m.interface(here.0, 0);
        m.attribute(libc::IFLA_ADDRESS, &here.1);
        m.nested(libc::IFLA_LINKINFO, |m| {
            m.text(libc::IFLA_INFO_KIND, "veth");
            m.nested(libc::IFLA_INFO_DATA, |m| {
                m.nested(VETH_INFO_PEER, |m| {
                    m.interface(there.0, 0);
                    m.attribute(libc::IFLA_ADDRESS, &there.1);
                    m.attribute(libc::IFLA_NET_NS_FD, &other.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.request(m)
    }

    /// Takes an interface up.
    ///
    /// # Errors
    /// What the kernel answers, `ENODEV` for an unknown name.
    pub fn set_up(&mut self, interface: &str) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.interface(interface, IFF_UP);
        self.request(m)
    }

    /// Gives an interface an address and a route to the network of that prefix length.
    ///
    /// # Errors
    /// What the kernel answers, `EEXIST` when it has the address already.
    pub fn add_address(&mut self, interface: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let index = self.index(interface)?;
        let mut m = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        m.bytes(&[
            family(address),
            prefix,
            IFA_F_NODAD,
            libc::RT_SCOPE_UNIVERSE,
        ]);
        m.bytes(&index.to_ne_bytes());
        m.address(libc::IFA_LOCAL, address);
        m.address(libc::IFA_ADDRESS, address);
        self.request(m)
    }

    /// Sets the hardware address of a neighbour for good; no ARP request is sent.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_neighbour(&mut self, interface: &str, address: IpAddr, mac: Mac) -> io::Result<()> {
        let index = self.index(interface)?;
        let mut m = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        m.bytes(&[family(address), 0, 0, 0]);
        m.bytes(&index.to_ne_bytes());
        // A state of 16 bits, then flags and a type of 8 bits each.
        m.bytes(&libc::NUD_PERMANENT.to_ne_bytes());
        m.address(libc::NDA_DST, address);
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

    fn index(&self, interface: &str) -> io::Result<u32> {
        let index = rustix::net::netdevice::name_to_index(&self.socket, interface);
        Ok(index?)
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

/// A netlink socket of that protocol in the namespace of the calling thread.
pub(super) fn open(protocol: i32) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::from(protocol)))
}

/// Finds the answer to the request with that number in a datagram.
pub(super) fn acknowledged(datagram: &[u8], sequence: u32) -> Option<io::Result<()>> {
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
            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
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
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
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

    /// `struct ifinfomsg` that sets these flags, and the interface's name.
    fn interface(&mut self, name: &str, flags: u32) {
        let flags = flags.to_ne_bytes();
        self.bytes(&[[0; 4], [0; 4], flags, flags].concat());
        self.text(libc::IFLA_IFNAME, name);
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
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
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
            m.bytes(&errno.wrapping_neg().to_ne_bytes());
            m.finish(sequence)
        };
        let datagram = [answer(1, 0), answer(2, libc::EPERM)].concat();
        assert!(acknowledged(&datagram, 1).expect("found").is_ok());
        let error = acknowledged(&datagram, 2).expect("found").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(acknowledged(&datagram, 3).is_none());
        assert!(acknowledged(&datagram[..10], 1).is_none());
        let nonsense = answer(1, i32::MIN);
        assert!(acknowledged(&nonsense, 1).expect("found").is_err());
    }

    #[test]
    fn an_unknown_interface_is_an_error() {
        let result = Netlink::open().expect("open").set_up("no-such-device");
        // Without privilege the kernel refuses before it looks for the device.
        let errno = result.unwrap_err().raw_os_error();
        assert!(
            matches!(errno, Some(libc::ENODEV | libc::EPERM)),
            "{errno:?}"
        );
    }
}
