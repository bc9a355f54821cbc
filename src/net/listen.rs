//! Listening sockets: one per worker on the same address, so that the kernel spreads clients
//! over the workers. All are bound before the first one listens.

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
    socket(address)?.bind(&address.into())
}

/// Binds an address next to the other workers of this process.
///
/// # Errors
/// What socket(2) or bind(2) say.
pub fn bind(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Binds an address that nobody else is to share.
///
/// # Errors
/// What socket(2) or bind(2) say.
pub fn bind_alone(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Has the clients of a socket, its own or another instance's, be watched by `policy` from now on.
///
/// # Errors
/// What setsockopt(2) says.
pub fn prepare(socket: &impl AsRawFd, policy: &Policy) -> io::Result<()> {
    options::prepare_listener(socket.as_raw_fd(), policy)
}

/// Has the kernel take clients, `backlog` of them at most before they are accepted.
///
/// # Errors
/// What listen(2) says.
pub fn listen(socket: impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
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
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says: `[::]` takes IPv4 clients, too.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}
