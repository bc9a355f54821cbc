//! The listening sockets of one address, as all workers hold them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// Knows which sockets are open, so that their accept queues can be read from any thread.
#[derive(Debug, Default)]
pub struct ListeningSockets(Mutex<Vec<RawFd>>);

impl ListeningSockets {
    /// Connections that wait to be accepted, and the limit of that; over all workers. In a
    /// listening state `TCP_INFO` has the two in other fields' places (`tcp_get_info`,
    /// net/ipv4/tcp.c). 1 us for each worker.
    #[must_use]
    pub fn queue(&self) -> (u64, u64) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let infos = open.iter().filter_map(|fd| sys::tcp_info(*fd).ok());
        infos.fold((0, 0), |(length, limit), info| {
            (
                length + u64::from(info.unacked),
                limit + u64::from(info.sacked),
            )
        })
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.is_empty()
    }

    /// A second descriptor for each.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|fd| sys::duplicate(*fd)).collect()
    }

    /// Adds a socket for as long as the result lives; drop it before the socket is closed.
    pub(super) fn add(&self, socket: &impl AsRawFd) -> Open<'_> {
        let fd = socket.as_raw_fd();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(fd);
        Open { of: self, fd }
    }
}

/// A socket that is open.
#[derive(Debug)]
pub(super) struct Open<'a> {
    of: &'a ListeningSockets,
    fd: RawFd,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut open = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|fd| *fd != self.fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn queues_of_all_workers_are_added_up() {
        let flags = [("listen", "127.0.0.1:1"), ("upstream", "127.0.0.1:2")];
        let flags = flags.map(|(flag, address)| (flag, address.to_owned()));
        let config = crate::config::from_flags(&flags).expect("flags");
        let policy = config.listeners[0].liveness.policy();
        let listen = |address: &str| {
            let address = address.parse().expect("an address");
            let socket = crate::net::listen::bind(address, &policy).expect("bound");
            crate::net::listen::listen(&socket, 3).expect("listens");
            socket
        };
        let (a, b) = (listen("127.0.0.1:0"), listen("127.0.0.1:0"));
        let sockets = ListeningSockets::default();
        let open_a = sockets.add(&a);
        assert_eq!(sockets.queue(), (0, 3));
        let open_b = sockets.add(&b);
        let address = crate::net::listen::local_address(&b).expect("bound");
        let _client = TcpStream::connect(address).expect("connected");
        assert_eq!(sockets.queue(), (1, 6));
        drop(open_b);
        assert_eq!(sockets.queue(), (0, 3));
        drop(open_a);
        assert_eq!(sockets.queue(), (0, 0));
    }
}
