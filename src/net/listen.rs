//! Listening sockets: one per worker on the same address, so that the kernel spreads clients
//! over the workers. All are bound before the first one listens.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::options;
use crate::liveness::Policy;
use crate::sys;

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

/// Binds a socket file that has this mode. One on which nobody listens is replaced.
///
/// # Errors
/// EADDRINUSE where somebody listens there or it is no socket, and what else the system says.
pub fn bind_file(path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The file gets the mode of the socket (unix(7)), so that there is no moment in which it has more; umask
    // may have taken from it.
    rustix::fs::fchmod(&socket, mode)?;
    let address = SockAddr::unix(path)?;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        let tried = Socket::new(Domain::UNIX, Type::STREAM, None)?.connect(&address);
        if tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            fs::remove_file(path)?;
        }
    }
    socket.bind(&address)?;
    rustix::fs::chmod(path, mode)?;
    Ok(socket.into())
}

/// The sockets of this name that the process was started with (sd_listen_fds(3)).
///
/// # Errors
/// There is none, or it is no socket that streams.
pub fn activated(name: &str) -> io::Result<Vec<OwnedFd>> {
    let passed = sys::passed_descriptors();
    let its = passed.iter().filter(|(known, _)| known == name);
    let sockets: Vec<OwnedFd> = its
        .map(|(_, fd)| fd.try_clone())
        .collect::<io::Result<_>>()?;
    if sockets.is_empty() {
        let known: Vec<_> = passed.iter().map(|(name, _)| name.as_str()).collect();
        let known = known.join(", ");
        let why =
            format!("the process was started without a socket of this name; it has: [{known}]");
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    for socket in &sockets {
        let socket = SockRef::from(socket);
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::other("it is no stream socket (ListenStream=)"));
        }
        socket.set_nonblocking(true)?;
    }
    Ok(sockets)
}

/// Whether a socket is a local one (unix(7)).
///
/// # Errors
/// What getsockname(2) says.
pub fn is_local(socket: &OwnedFd) -> io::Result<bool> {
    Ok(SockRef::from(socket).local_addr()?.is_unix())
}

/// The file a unix socket is bound to.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_file(fd: impl AsFd) -> io::Result<PathBuf> {
    let address = SockRef::from(&fd).local_addr()?;
    let path = address.as_pathname().map(Path::to_owned);
    path.ok_or_else(|| io::ErrorKind::Unsupported.into())
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
    // `close` has taken it away.
    SockRef::from(&socket).set_reuse_address(true)?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
}

/// Has the kernel take none until [`listen`]: the socket stays bound (`tcp_disconnect`, net/ipv4/tcp.c).
/// shutdown(2) does the same to one that listens, but two in a row leave a mark that clients inherit.
/// Others could bind the address of one that does not listen if both had `SO_REUSEADDR`, and listen there
/// (`inet_bind_conflict`, net/ipv4/inet_connection_sock.c).
pub fn close(socket: impl AsFd) {
    // An open socket takes both.
    let _open = SockRef::from(&socket).set_reuse_address(false);
    let _open = rustix::net::connect_unspec(socket);
}

/// Whether the kernel takes clients.
#[must_use]
pub fn is_listening(socket: impl AsFd) -> bool {
    SockRef::from(&socket).is_listener().unwrap_or(false)
}

/// The address a socket is bound to.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    let address = SockRef::from(&fd).local_addr()?;
    address
        .as_socket()
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The client of a unix socket has no address of its own: this stands for it.
pub const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Takes one client out of the accept queue.
///
/// # Errors
/// `WouldBlock` when the queue is empty, else what accept4(2) says.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let address = |any: SocketAddrAny| match any.address_family() {
        AddressFamily::UNIX => Some(NO_ADDRESS),
        _ => SocketAddr::try_from(any).ok(),
    };
    let peer = peer.and_then(address);
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
