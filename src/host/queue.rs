//! The accept queue of a service in the same network namespace: the place where phantom
//! connections come from, which its clients believe to be connected.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::sys::sock_diag::{self, Listening};

/// What waits in front of a listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that are complete and not accepted yet.
    pub length: u64,
    /// Beyond this length the kernel drops new connections.
    pub limit: u64,
}

/// The accept queue that a connection to `address` would enter; sockets that share the address
/// are added up. `None`: no socket of this network namespace listens there. Some 30 us.
///
/// An address that the host's packet filter translates is reported as it is before translation.
///
/// # Errors
/// Where the kernel or a sandbox refuses to say.
pub fn accept_queue(address: SocketAddr) -> io::Result<Option<AcceptQueue>> {
    let ip = reached(address.ip());
    if !is_local(ip) {
        return Ok(None);
    }
    let listening = sock_diag::listening(address.port())?;
    Ok(entered(&listening, ip))
}

/// Adds up the sockets that the kernel prefers for an address: those bound to it, else those
/// bound to every address of its family, else IPv6 sockets that take IPv4, too.
fn entered(listening: &[Listening], ip: IpAddr) -> Option<AcceptQueue> {
    let exact = |l: &Listening| l.address.ip().to_canonical() == ip;
    let any = |l: &Listening| l.address.ip().is_unspecified();
    let own_family = |l: &Listening| any(l) && l.address.is_ipv4() == ip.is_ipv4();
    let preferences: [&dyn Fn(&Listening) -> bool; 3] =
        [&exact, &own_family, &|l| any(l) && l.dual_stack];
    let group = preferences
        .iter()
        .map(|takes| listening.iter().filter(|l| takes(l)).collect::<Vec<_>>())
        .find(|group| !group.is_empty())?;
    let mut queue = AcceptQueue::default();
    for socket in group {
        queue.length += u64::from(socket.length);
        queue.limit += u64::from(socket.limit);
    }
    Some(queue)
}

/// Connecting to the unspecified address reaches the host itself (ip(7)).
fn reached(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Whether this namespace owns an address: the way to an own address starts at that address.
/// Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let from = || {
        let any: IpAddr = match ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || from().is_ok_and(|address| address.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(address: &str, length: u32) -> Listening {
        Listening {
            address: address.parse().expect("an address"),
            dual_stack: address.starts_with("[::]"),
            length,
            limit: 10,
            inode: 0,
        }
    }

    fn length(listening: &[Listening], ip: &str) -> Option<u64> {
        let ip = reached(ip.parse().expect("an address"));
        entered(listening, ip).map(|queue| queue.length)
    }

    #[test]
    fn the_most_specific_socket_takes_the_connection() {
        let all = [
            socket("10.0.0.1:80", 1),
            socket("0.0.0.0:80", 2),
            socket("[::]:80", 4),
            socket("[2001:db8::1]:80", 8),
        ];
        assert_eq!(length(&all, "10.0.0.1"), Some(1));
        assert_eq!(length(&all, "::ffff:10.0.0.1"), Some(1));
        assert_eq!(length(&all, "127.0.0.1"), Some(2));
        assert_eq!(length(&all, "0.0.0.0"), Some(2));
        assert_eq!(length(&all, "2001:db8::1"), Some(8));
        assert_eq!(length(&all, "::1"), Some(4));
        assert_eq!(length(&all[2..3], "127.0.0.1"), Some(4));
        assert_eq!(length(&all[3..], "127.0.0.1"), None);
        let only_v6 = Listening {
            dual_stack: false,
            ..all[2]
        };
        assert_eq!(length(&[only_v6], "127.0.0.1"), None);
    }

    #[test]
    fn sockets_that_share_an_address_are_added_up() {
        let all = [socket("127.0.0.1:80", 1), socket("127.0.0.1:80", 2)];
        let queue = entered(&all, Ipv4Addr::LOCALHOST.into()).expect("found");
        assert_eq!((queue.length, queue.limit), (3, 20));
    }

    #[test]
    fn only_addresses_of_this_namespace_have_a_queue() {
        assert!(is_local("127.0.0.5".parse().expect("an address")));
        assert!(!is_local("192.0.2.1".parse().expect("an address")));
        let foreign = SocketAddr::from(([192, 0, 2, 1], 80));
        assert_eq!(accept_queue(foreign).expect("asked"), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let queue = accept_queue(address).expect("asked").expect("listens");
        assert_eq!(queue.length, 0);
        assert!(queue.limit > 0);
        drop(listener);
        assert_eq!(accept_queue(address).expect("asked"), None);
    }
}
