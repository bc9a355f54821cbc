//! Connecting to the legacy service.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::options;
use super::stream::TcpStream;

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
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => TcpStream::new(fd),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the first address of a host that accepts.
///
/// # Errors
/// Why the name could not be resolved, or the last address's error.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match start(address) {
            Ok(stream) => match stream.connected().await {
                Ok(()) => return Ok(stream),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}
