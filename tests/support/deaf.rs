//! A service that listens and accepts nobody until it is told to. Its accept queue can be filled
//! while a handshake is in progress: then the last word of that handshake is dropped, and one end
//! is connected to nobody.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use pulsegate::sys::netns::Namespace;
use pulsegate::sys::sockopt::{self, IntOption};
use socket2::{Domain, SockRef, Socket, Type};

use super::channel::Speech;
use super::endpoint::{Endpoint, Options};
use super::eventually;
use super::net::tcp_table;

/// The queue holds one more. SYN cookies do not set in before as many handshakes are in progress.
const BACKLOG: usize = 3;
/// A handshake in progress, in the kernel's table (`include/net/tcp_states.h`).
const SYN_RECV: &str = "03";

/// The listening socket.
#[derive(Debug)]
pub struct Deaf {
    listener: TcpListener,
    host: Namespace,
    /// Where it listens.
    pub address: SocketAddr,
    fillers: Vec<TcpStream>,
}

impl Deaf {
    /// Listens inside a namespace, with these options set on the listening socket.
    pub fn start(at: &Namespace, address: SocketAddr, options: &[(IntOption, i32)]) -> Self {
        let make =
            || Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        let socket = at.run(make).expect("enter the namespace");
        socket.bind(&address.into()).expect("bind");
        for (option, value) in options {
            sockopt::set_int(socket.as_raw_fd(), *option, *value).expect(option.label);
        }
        socket.listen(BACKLOG as i32).expect("listen");
        let listener: TcpListener = socket.into();
        listener.set_nonblocking(true).expect("set");
        Self {
            listener,
            host: at.run(Namespace::current).expect("enter").expect("open"),
            address,
            fillers: Vec::new(),
        }
    }

    /// Clients on its own host take every place in the queue.
    pub fn fill(&mut self) {
        while self.fillers.len() <= BACKLOG {
            let connect = || TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
            let connected = self.host.run(connect).expect("enter the namespace");
            let mut filler = connected.expect("room in the queue");
            // It may wait for data before it lets anybody into the queue.
            filler.write_all(b"x").expect("sent");
            self.fillers.push(filler);
        }
    }

    /// Handshakes in progress.
    pub fn handshakes(&self) -> usize {
        let table = tcp_table(&self.host, self.address);
        let port = format!(":{:04X}", self.address.port());
        let in_progress = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.len() > 3 && words[1].ends_with(&port) && words[3] == SYN_RECV
        };
        table.lines().filter(in_progress).count()
    }

    /// Lets in whoever filled the queue, and sends them away.
    pub fn make_room(&mut self) {
        for filler in self.fillers.drain(..) {
            let address = filler.local_addr().expect("connected");
            let (_, first) = self.listener.accept().expect("a filler waits");
            assert_eq!(first, address, "the first in the queue");
        }
    }

    /// Accepts the next connection, if there is one in time.
    pub fn next_within(
        &self,
        within: Duration,
        speech: Speech,
        options: Options,
    ) -> Option<Endpoint> {
        let mut next = None;
        eventually(within, || {
            next = self.listener.accept().ok();
            next.is_some()
        });
        next.map(|(stream, _)| Endpoint::start(stream, speech, options).expect("an endpoint"))
    }
}

impl Drop for Deaf {
    /// The fillers' ports are not to stay in TIME_WAIT.
    fn drop(&mut self) {
        for filler in &self.fillers {
            let _ = SockRef::from(filler).set_linger(Some(Duration::ZERO));
        }
    }
}
