//! The little of sock_diag(7) that tells what waits in front of a service: accept queues of any
//! listening socket of the network namespace, whoever owns it, and handshakes in progress. And of
//! one connection, when its closed window is asked about next.
//!
//! Needs no privilege. A kernel or sandbox without it answers with an error, which the caller
//! takes for "unknown". A dump is read up to [`LONGEST`] and [`MOST_BYTES`], and cut there: under a
//! flood "20,000 or more" is the better answer than none. What the kernel has to walk through is
//! bounded by its own tables.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::netlink::{self, Message, Received, messages, u32_at};

/// How long the answer to one dump may take.
pub const LONGEST: Duration = Duration::from_millis(250);
/// How much of one dump is read: some 20,000 sockets.
pub const MOST_BYTES: usize = 2 << 20;

/// `SOCK_DIAG_BY_FAMILY` (`include/uapi/linux/sock_diag.h`); not among libc's constants, nor are
/// the next ones.
const BY_FAMILY: u16 = 20;
/// `TCP_SYN_RECV` and `TCP_LISTEN` (`include/net/tcp_states.h`) as bits of a state mask.
const SYN_RECV: u32 = 1 << 3;
const LISTEN: u32 = 1 << 10;
/// `INET_DIAG_SKV6ONLY` (`include/uapi/linux/inet_diag.h`).
const V6ONLY: u16 = 11;
/// Lengths of `struct inet_diag_msg` and of `struct inet_diag_sockid` without its two ports.
const FIXED: usize = 72;
const REST_OF_ID: usize = 44;

/// A listening socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// What it is bound to; unspecified for every address of its family.
    pub address: SocketAddr,
    /// Whether an IPv6 socket takes IPv4 clients, too.
    pub dual_stack: bool,
    /// Connections that are complete and not accepted yet.
    pub length: u32,
    /// Beyond this length the kernel drops newcomers.
    pub limit: u32,
}

/// The sockets that listen on a port, IPv4 first. Some 30 us.
///
/// # Errors
/// What the kernel answers, `TimedOut` where it answers nothing.
pub fn listening(port: u16) -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, LISTEN, port, |m| found.extend(read_listening(m)))?;
    }
    Ok(found)
}

/// Handshakes in progress: SYN received, the last ACK is missing. Some 0.4 ms: the kernel walks
/// through its table of connections.
///
/// # Errors
/// As [`listening`].
pub fn handshakes() -> io::Result<u64> {
    let mut found = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, SYN_RECV, 0, |_| found += 1)?;
    }
    Ok(found)
}

/// Asks for all TCP sockets of a family in some states; port 0 is every local port.
fn dump(family: i32, states: u32, port: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = netlink::open(libc::NETLINK_SOCK_DIAG)?;
    socket.set_read_timeout(Some(LONGEST))?;
    socket.send(&request(family, states, port))?;
    let end = super::now() + LONGEST.into();
    let mut answer = vec![0; 32 << 10];
    let mut left = MOST_BYTES;
    loop {
        let n = match (&socket).read(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            read => read?,
        };
        for message in messages(&answer[..n]) {
            if let Some(end) = ends(&message) {
                return end;
            }
            each(message.payload);
        }
        left = left.saturating_sub(n);
        if left == 0 || super::now() > end {
            return Ok(());
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: i32, states: u32, port: u16) -> Vec<u8> {
    let mut m = Message::new(BY_FAMILY, libc::NLM_F_DUMP);
    m.bytes(&[family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    m.bytes(&states.to_ne_bytes());
    let [high, low] = port.to_be_bytes();
    m.bytes(&[high, low, 0, 0]);
    m.bytes(&[0; REST_OF_ID]);
    m.finish(1)
}

fn ends(message: &Received<'_>) -> Option<io::Result<()>> {
    match message.kind {
        libc::NLMSG_ERROR => message.error(),
        // Its status, if there is one: a dump that failed half-way.
        libc::NLMSG_DONE => Some(message.error().unwrap_or(Ok(()))),
        _ => None,
    }
}

fn local_port(message: &[u8]) -> Option<u16> {
    let port = message.get(4..6)?;
    Some(u16::from_be_bytes([port[0], port[1]]))
}

/// For the fuzz target.
#[cfg(fuzzing)]
pub(super) fn parse(message: &Received<'_>) {
    let _end = ends(message);
    let _socket = read_listening(message.payload);
}

fn read_listening(message: &[u8]) -> Option<Listening> {
    let (fixed, attributes) = message.split_at_checked(FIXED)?;
    let v6 = i32::from(fixed[0]) == libc::AF_INET6;
    let ip = if v6 {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?))
    } else {
        IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[8..12]).ok()?))
    };
    Some(Listening {
        address: SocketAddr::new(ip, local_port(message)?),
        dual_stack: v6 && attribute(attributes, V6ONLY).is_some_and(|value| value == [0]),
        length: u32_at(fixed, 56),
        limit: u32_at(fixed, 60),
    })
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(head) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_request_has_the_layout_of_the_header_file() {
        let bytes = request(libc::AF_INET6, LISTEN, 0x1f90);
        assert_eq!(bytes.len(), 16 + 56);
        assert_eq!(bytes[16..18], [10, 6]);
        assert_eq!(u32_at(&bytes, 20), LISTEN);
        assert_eq!(bytes[24..26], [0x1f, 0x90]);
        assert!(bytes[26..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_queue_that_nobody_empties_is_seen() {
        for bind in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else {
                eprintln!("SKIPPED: {bind} cannot be listened on");
                continue;
            };
            // Listening again changes the backlog.
            socket2::SockRef::from(&listener).listen(1).expect("set");
            let address = listener.local_addr().expect("bound");
            let at = |address: SocketAddr| {
                let all = listening(address.port()).expect("dumped");
                let mut all = all.into_iter().filter(|l| l.address == address);
                let found = all.next().expect("the own socket");
                assert_eq!(all.next(), None);
                found
            };
            assert_eq!((at(address).length, at(address).limit), (0, 1));
            assert_eq!(at(address).dual_stack, address.is_ipv6());
            let client = TcpStream::connect(("localhost", address.port()));
            let _client = client.expect("connected");
            assert_eq!(at(address).length, 1);
            let own = crate::sys::tcp_info(listener.as_raw_fd()).expect("asked");
            assert_eq!((own.unacked, own.sacked), (1, 1));
        }
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        assert_eq!(read_listening(&[0; FIXED - 1]), None);
        assert_eq!(local_port(&[0; 5]), None);
        assert_eq!(attribute(&[3, 0, 11, 0], V6ONLY), None);
        assert_eq!(attribute(&[9, 0, 11, 0, 1], V6ONLY), None);
        let two = [5, 0, 8, 0, 7, 0, 0, 0, 5, 0, 11, 0, 1, 0, 0, 0];
        assert_eq!(attribute(&two, V6ONLY), Some(&[1_u8][..]));
        assert_eq!(attribute(&two, 9), None);
    }

    #[test]
    fn a_refusal_ends_a_dump() {
        let refused = [&(-libc::EPERM).to_ne_bytes()[..], &[0; 16]].concat();
        let message = |kind, payload| Received {
            kind,
            sequence: 1,
            payload,
        };
        let end = ends(&message(libc::NLMSG_ERROR, &refused)).expect("an end");
        assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(matches!(
            ends(&message(libc::NLMSG_DONE, &[])),
            Some(Ok(()))
        ));
        assert!(ends(&message(i32::from(BY_FAMILY), &[])).is_none());
    }
}
