//! The little of sock_diag(7) that tells what waits in front of a service: accept queues of any
//! listening socket of the network namespace, whoever owns it, and handshakes in progress. And what
//! the kernel knows of every TCP socket of the namespace, whoever owns it ([`SockDiag`]).
//!
//! Needs no privilege. A kernel or sandbox without it answers with an error, which the caller
//! takes for "unknown". [`listening`] and [`handshakes`] read up to [`LONGEST`] and [`MOST_BYTES`], and
//! stop there: under a flood "20,000 or more" is the better answer than none. What the kernel has to walk
//! through is bounded by its own tables.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::Socket;

use super::TcpInfo;
use super::netlink::{self, Message, Received, messages, u32_at};

/// How long the answer to one dump may take.
pub const LONGEST: Duration = Duration::from_millis(250);
/// How much of one dump is read: some 20,000 sockets.
pub const MOST_BYTES: usize = 2 << 20;

/// How long the kernel may take for the next part of an answer.
const PART_WITHIN: Duration = Duration::from_secs(10);

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`); not among libc's
/// constants, nor are the next ones.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `TCP_SYN_RECV` and `TCP_LISTEN` (`include/net/tcp_states.h`) as bits of a state mask.
const SYN_RECV: u32 = 1 << 3;
const LISTEN: u32 = 1 << 10;
/// `TCP_ESTABLISHED`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `INET_DIAG_INFO`; in a request as a bit, counted from 1.
const INFO: u16 = 2;
/// `INET_DIAG_SKV6ONLY` (`include/uapi/linux/inet_diag.h`).
const V6ONLY: u16 = 11;
/// Lengths of `struct inet_diag_msg` and of `struct inet_diag_sockid` without its two ports.
const FIXED: usize = 72;
const REST_OF_ID: usize = 44;
const ID: usize = 48;

/// A listening socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// What it is bound to; unspecified for every address of its family.
    pub address: SocketAddr,
    /// Whether an IPv6 socket takes IPv4 clients, too.
    pub dual_stack: bool,
    /// Connections that are complete and not accepted yet.
    pub length: u32,
    /// Beyond this length the kernel drops new connections.
    pub limit: u32,
    /// Of `/proc/PID/fd`.
    pub inode: u32,
}

/// The sockets that listen on a port, IPv4 first. Some 30 us.
///
/// # Errors
/// What the kernel answers, `TimedOut` where it answers nothing.
pub fn listening(port: u16) -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, LISTEN, port, |m| {
            found.extend(read_listening(m));
        })?;
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

/// Which socket of the kernel: its addresses and its cookie, which no other socket of the namespace has
/// until the host is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    family: u8,
    /// `struct inet_diag_sockid`.
    raw: [u8; ID],
}

impl Id {
    /// The end of this host; an IPv4 address is shown as such.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.end(0)
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.end(1)
    }

    fn end(&self, n: usize) -> SocketAddr {
        let port = u16::from_be_bytes([self.raw[2 * n], self.raw[2 * n + 1]]);
        let ip = ip(self.family, &self.raw[4 + 16 * n..20 + 16 * n]);
        SocketAddr::new(ip.to_canonical(), port)
    }

    /// What `SO_COOKIE` says of the socket.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        u64::from(u32_at(&self.raw, 40)) | u64::from(u32_at(&self.raw, 44)) << 32
    }
}

/// The timer of a connection that ends next (`idiag_timer`, net/ipv4/inet_diag.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// None runs.
    None,
    /// The next retransmission.
    Retransmit,
    /// The next keepalive probe.
    Keepalive,
    /// The next window probe.
    WindowProbe,
    /// Another one.
    Other,
}

/// A TCP socket of this network namespace that is connected.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// Which one.
    pub id: Id,
    /// What ends next.
    pub timer: Timer,
    /// In so many milliseconds.
    pub expires_ms: u32,
    /// User number of its owner.
    pub uid: u32,
    /// Of `/proc/PID/fd`; 0 of one that no process holds.
    pub inode: u32,
    /// As `TCP_INFO` has it.
    pub info: TcpInfo,
}

/// A socket to ask by, which sees the namespace in which it was opened.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    answer: Vec<u8>,
    sequence: u32,
}

impl SockDiag {
    /// Opens one in the namespace of the calling thread.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        Self::within(PART_WITHIN)
    }

    fn within(time: Duration) -> io::Result<Self> {
        let socket = netlink::open(libc::NETLINK_SOCK_DIAG)?;
        socket.set_read_timeout(Some(time))?;
        Ok(Self {
            socket,
            answer: vec![0; 32 << 10],
            sequence: 0,
        })
    }

    /// Tells of every connection, IPv4 first, without keeping any (some 1 us each). One that comes or goes
    /// meanwhile may be missing.
    ///
    /// # Errors
    /// What the kernel answers, `TimedOut` where it answers nothing.
    pub fn each(&mut self, mut each: impl FnMut(&Connected)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = request(family, CONNECTED, 0, INFO);
            self.ask(request, |m| {
                read_connected(m).iter().for_each(&mut each);
                More::Wanted
            })?;
        }
        Ok(())
    }

    /// Every listening socket.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn listening(&mut self) -> io::Result<Vec<Listening>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.ask(request(family, LISTEN, 0, 0), |m| {
                found.extend(read_listening(m));
                More::Wanted
            })?;
        }
        Ok(found)
    }

    /// What is known of one connection now; `None` if it is over.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn find(&mut self, id: &Id) -> io::Result<Option<Connected>> {
        let mut found = None;
        let asked = self.ask(of_one(BY_FAMILY, id), |m| {
            found = read_connected(m);
            More::Wanted
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            asked => asked.map(|()| found),
        }
    }

    /// Ends a connection: its application reads ECONNABORTED, its peer RST.
    ///
    /// # Errors
    /// EPERM without `CAP_NET_ADMIN` over the namespace, ENOENT if it is over, EOPNOTSUPP where the kernel
    /// was built without it.
    pub fn destroy(&mut self, id: &Id) -> io::Result<()> {
        self.ask(of_one(DESTROY, id), |_| More::Wanted)
    }

    /// Sends a request and hands out what is answered, to its end or as long as more is wanted. Another
    /// one may follow only if it came to its end.
    fn ask(&mut self, message: Message, mut each: impl FnMut(&[u8]) -> More) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&message.finish(self.sequence))?;
        loop {
            let n = match (&self.socket).read(&mut self.answer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                read => read?,
            };
            let current = messages(&self.answer[..n]).filter(|m| m.sequence == self.sequence);
            let mut more = More::Wanted;
            for message in current {
                if let Some(end) = ends(&message) {
                    return end;
                }
                more = each(message.payload);
            }
            if more == More::Unwanted {
                return Ok(());
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Wanted,
    Unwanted,
}

/// Asks for all TCP sockets of a family in some states; port 0 is every local port. What takes too long
/// or is too much is left out.
fn dump(family: i32, states: u32, port: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let end = super::now() + LONGEST.into();
    let mut left = MOST_BYTES;
    SockDiag::within(LONGEST)?.ask(request(family, states, port, 0), |message| {
        each(message);
        left = left.saturating_sub(message.len());
        match left == 0 || super::now() > end {
            true => More::Unwanted,
            false => More::Wanted,
        }
    })
}

/// `struct inet_diag_req_v2`.
fn request(family: i32, states: u32, port: u16, extension: u16) -> Message {
    let mut m = Message::new(BY_FAMILY, libc::NLM_F_DUMP);
    let extensions = 1_u8.checked_shl(u32::from(extension)).unwrap_or(0) >> 1;
    m.bytes(&[family as u8, libc::IPPROTO_TCP as u8, extensions, 0]);
    m.bytes(&states.to_ne_bytes());
    let [high, low] = port.to_be_bytes();
    m.bytes(&[high, low, 0, 0]);
    m.bytes(&[0; REST_OF_ID]);
    m
}

/// The same about one socket.
fn of_one(kind: u16, id: &Id) -> Message {
    let mut m = Message::new(kind, 0);
    m.bytes(&[id.family, libc::IPPROTO_TCP as u8, 1 << (INFO - 1), 0]);
    m.bytes(&u32::MAX.to_ne_bytes());
    m.bytes(&id.raw);
    m
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
    let _connected = read_connected(message.payload);
}

fn ip(family: u8, bytes: &[u8]) -> IpAddr {
    let mut all = [0; 16];
    all.copy_from_slice(bytes);
    if i32::from(family) == libc::AF_INET6 {
        IpAddr::V6(Ipv6Addr::from(all))
    } else {
        IpAddr::V4(Ipv4Addr::new(all[0], all[1], all[2], all[3]))
    }
}

fn read_connected(message: &[u8]) -> Option<Connected> {
    let (fixed, attributes) = message.split_at_checked(FIXED)?;
    let id = Id {
        family: fixed[0],
        raw: fixed[4..4 + ID].try_into().ok()?,
    };
    Some(Connected {
        id,
        timer: match fixed[2] {
            0 => Timer::None,
            1 => Timer::Retransmit,
            2 => Timer::Keepalive,
            4 => Timer::WindowProbe,
            _ => Timer::Other,
        },
        expires_ms: u32_at(fixed, 52),
        uid: u32_at(fixed, 64),
        inode: u32_at(fixed, 68),
        info: TcpInfo::read(attribute(attributes, INFO)?),
    })
}

fn read_listening(message: &[u8]) -> Option<Listening> {
    let (fixed, attributes) = message.split_at_checked(FIXED)?;
    let v6 = i32::from(fixed[0]) == libc::AF_INET6;
    Some(Listening {
        address: SocketAddr::new(ip(fixed[0], &fixed[8..24]), local_port(message)?),
        dual_stack: v6 && attribute(attributes, V6ONLY).is_some_and(|value| value == [0]),
        length: u32_at(fixed, 56),
        limit: u32_at(fixed, 60),
        inode: u32_at(fixed, 68),
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
        let bytes = request(libc::AF_INET6, LISTEN, 0x1f90, INFO).finish(1);
        assert_eq!(bytes.len(), 16 + 56);
        assert_eq!(bytes[16..20], [10, 6, 2, 0]);
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

    /// Two ends of a connection on loopback.
    fn pair() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        [near, listener.accept().expect("accepted").0]
    }

    fn seen(diag: &mut SockDiag, stream: &TcpStream) -> Option<Connected> {
        let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        let mut found = None;
        let each = |c: &Connected| {
            if (c.id.local(), c.id.peer()) == (local, peer) {
                found = Some(*c);
            }
        };
        diag.each(each).expect("dumped");
        found
    }

    #[test]
    fn a_connection_is_seen_as_its_socket_tells() {
        let [near, _far] = pair();
        let mut diag = SockDiag::open().expect("opened");
        let found = seen(&mut diag, &near).expect("the own socket");
        let cookie = rustix::net::sockopt::socket_cookie(&near).expect("asked");
        assert_eq!(found.id.cookie(), cookie);
        assert_eq!(found.timer, Timer::None);
        let own = crate::sys::tcp_info(near.as_raw_fd()).expect("asked");
        assert_eq!((found.info.state, found.info.rtt_us), (1, own.rtt_us));
        assert_eq!(found.info.segs_in, own.segs_in);
        let link = format!("/proc/self/fd/{}", near.as_raw_fd());
        let link = std::fs::read_link(link).expect("open");
        assert_eq!(link.to_string_lossy(), format!("socket:[{}]", found.inode));
        socket2::SockRef::from(&near)
            .set_keepalive(true)
            .expect("set");
        let found = diag.find(&found.id).expect("asked").expect("open");
        assert_eq!(found.timer, Timer::Keepalive);
        assert!(found.expires_ms > 1000, "{found:?}");
        drop(near);
        // The peer has not closed: its end is there, without an owner.
        let left = diag.find(&found.id).expect("asked");
        assert!(left.is_none_or(|c| c.inode == 0), "{left:?}");
    }

    #[test]
    fn a_connection_is_ended_or_the_refusal_is_told() {
        let [mut near, mut far] = pair();
        let mut diag = SockDiag::open().expect("opened");
        let id = seen(&mut diag, &near).expect("the own socket").id;
        match diag.destroy(&id) {
            Ok(()) => {
                let error = near.read(&mut [0]).expect_err("ended");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                let error = far.read(&mut [0]).expect_err("ended");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                assert!(diag.find(&id).expect("asked").is_none());
                let again = diag.destroy(&id).expect_err("it is over");
                assert_eq!(again.raw_os_error(), Some(libc::ENOENT));
            }
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)),
                "{error}"
            ),
        }
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        assert!(read_connected(&[0; FIXED]).is_none());
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
