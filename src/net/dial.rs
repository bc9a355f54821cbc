//! Connecting to the legacy service.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::Semaphore;

use super::options;
use super::stream::TcpStream;
use crate::sys;

/// An address that does not answer is not waited for alone for longer (RFC 8305, 8).
const STAGGER: Duration = Duration::from_millis(250);
/// Clients at a time whose upstream is dialled at two addresses at once; each holds a descriptor
/// more than a session has.
pub const MOST_DOUBLE: usize = 32;

static DOUBLE: Semaphore = Semaphore::const_new(MOST_DOUBLE);

/// Starts to connect; the stream is usable once [`TcpStream::connected`] says so.
///
/// # Errors
/// What socket(2) or connect(2) say at once (descriptors, no route, refused on loopback).
pub fn start(address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    options::prepare_dialled(fd.as_raw_fd())?;
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // Where nobody listens on a local port, and the kernel chooses just that one for our end, TCP
    // connects the socket to itself (RFC 9293, 3.5, simultaneous open).
    let local = sys::sockopt::local_address(fd.as_raw_fd());
    if local.is_some_and(|local| (local.ip(), local.port()) == (address.ip(), address.port())) {
        let nobody = "nothing listens there: the connection would have been to itself";
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, nobody));
    }
    TcpStream::new(fd)
}

/// Connects to the first of several addresses that accepts, in the spirit of RFC 8305: the next one
/// is tried as soon as one fails, or does not answer for 250 ms, while that one is still waited
/// for. Each is given its share of the time, at least, and two are dialled at once, at most.
/// `tell` is told each address that is dialled, and in the end the one that counts.
///
/// # Errors
/// The last address's error. That the time is over is left to the caller.
pub async fn first_of(
    addresses: &[SocketAddr],
    within: Duration,
    tell: impl Fn(SocketAddr),
) -> io::Result<TcpStream> {
    let share = within / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = (io::Error::from(io::ErrorKind::NotFound), None);
    let mut next = addresses.iter().copied().peekable();
    let mut dialled: VecDeque<(TcpStream, SocketAddr)> = VecDeque::new();
    let mut double = None;
    loop {
        if let Some(address) = next.next() {
            if dialled.len() > usize::from(double.is_some()) {
                dialled.pop_front();
            }
            tell(address);
            match start(address) {
                Ok(stream) => dialled.push_back((stream, address)),
                Err(error) => {
                    last = (error, Some(address));
                    continue;
                }
            }
        }
        if dialled.is_empty() {
            last.1.map(tell);
            return Err(last.0);
        }
        if dialled.len() == 1 {
            double = next.peek().and_then(|_| DOUBLE.try_acquire().ok());
        }
        let alone = dialled.len() == 1 && double.is_some();
        let patience = if alone { STAGGER.min(share) } else { share };
        let any = poll_fn(|cx| poll_any(&dialled, cx));
        tokio::select! {
            (n, connected) = any => {
                let Some((stream, address)) = dialled.remove(n) else { continue };
                match connected {
                    Ok(()) => {
                        tell(address);
                        return Ok(stream);
                    }
                    Err(error) => last = (error, Some(address)),
                }
            }
            () = tokio::time::sleep(patience), if next.peek().is_some() => {}
        }
    }
}

/// The first that has connected or failed.
fn poll_any(
    dialled: &VecDeque<(TcpStream, SocketAddr)>,
    cx: &mut Context<'_>,
) -> Poll<(usize, io::Result<()>)> {
    for (n, (stream, _)) in dialled.iter().enumerate() {
        if let Poll::Ready(connected) = stream.poll_connected(cx) {
            return Poll::Ready((n, connected));
        }
    }
    Poll::Pending
}
