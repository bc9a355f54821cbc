//! Listening sockets: one per worker on the same address, so that the kernel spreads clients
//! over the workers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::options;
use crate::liveness::Policy;

/// Makes sure that nobody else listens on the address. Workers share it among themselves by
/// `SO_REUSEPORT`, which would also let a second pulsegate join in silently.
///
/// # Errors
/// EADDRINUSE and whatever else bind(2) says.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// Listens on an address next to the other workers of this process, for clients that are to be
/// watched by `policy`.
///
/// # Errors
/// What socket(2), bind(2) or listen(2) say.
pub fn listen(address: SocketAddr, backlog: u32, policy: &Policy) -> io::Result<OwnedFd> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    options::prepare_listener(socket.as_raw_fd(), policy)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// The address a socket is bound to.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    let address = socket2::SockRef::from(&fd).local_addr()?;
    address
        .as_socket()
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Takes one client out of the accept queue.
///
/// # Errors
/// `WouldBlock` when the queue is empty, else what accept4(2) says.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|any| SocketAddr::try_from(any).ok());
    let peer = peer.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
    Ok((fd, peer))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}
