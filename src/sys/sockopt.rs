//! Socket options by number. Values are those of Linux on every architecture pulsegate runs on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A socket option whose value is an int.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntOption {
    level: libc::c_int,
    name: libc::c_int,
    /// Its name in the man pages.
    pub label: &'static str,
}

const fn tcp(name: libc::c_int, label: &'static str) -> IntOption {
    IntOption {
        level: libc::IPPROTO_TCP,
        name,
        label,
    }
}

/// `SO_KEEPALIVE`: on or off.
pub const KEEPALIVE: IntOption = IntOption {
    level: libc::SOL_SOCKET,
    name: libc::SO_KEEPALIVE,
    label: "SO_KEEPALIVE",
};
/// `SO_RCVLOWAT`, bytes: readiness is signalled from this much on (FIN and RST regardless).
pub const RCVLOWAT: IntOption = IntOption {
    level: libc::SOL_SOCKET,
    name: libc::SO_RCVLOWAT,
    label: "SO_RCVLOWAT",
};
/// `SO_OOBINLINE`: an urgent byte stays in the stream.
pub const OOBINLINE: IntOption = IntOption {
    level: libc::SOL_SOCKET,
    name: libc::SO_OOBINLINE,
    label: "SO_OOBINLINE",
};
/// `IP_BIND_ADDRESS_NO_PORT`: bind(2) to port 0 leaves the choice to connect(2), which may choose a port
/// that is in use to another address (ip(7)); of IPv6 sockets, too.
pub const BIND_ADDRESS_NO_PORT: IntOption = IntOption {
    level: libc::IPPROTO_IP,
    name: libc::IP_BIND_ADDRESS_NO_PORT,
    label: "IP_BIND_ADDRESS_NO_PORT",
};
/// Seconds of silence before the first probe, from 1. Each set re-arms the timer for the time
/// that is left, so that 1 on a quiet connection sends a probe at once
/// (`tcp_sock_set_keepidle_locked`, net/ipv4/tcp.c).
pub const KEEPIDLE: IntOption = tcp(libc::TCP_KEEPIDLE, "TCP_KEEPIDLE");
/// Seconds between unanswered probes, from 1.
pub const KEEPINTVL: IntOption = tcp(libc::TCP_KEEPINTVL, "TCP_KEEPINTVL");
/// Unanswered probes before the kernel gives up, 1..=127; ignored under `TCP_USER_TIMEOUT`.
pub const KEEPCNT: IntOption = tcp(libc::TCP_KEEPCNT, "TCP_KEEPCNT");
/// Milliseconds after which the kernel itself gives up; 0 is the system's default.
pub const USER_TIMEOUT: IntOption = tcp(libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT");
/// No Nagle delay.
pub const NODELAY: IntOption = tcp(libc::TCP_NODELAY, "TCP_NODELAY");
/// Bytes that may wait unsent in the kernel before writing blocks.
pub const NOTSENT_LOWAT: IntOption = tcp(libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT");
/// The longest gap between retransmissions or window probes, ms, 1000..=120000
/// (Linux >= 6.15, `include/uapi/linux/tcp.h`).
pub const RTO_MAX_MS: IntOption = tcp(44, "TCP_RTO_MAX_MS");
/// How often SYN is repeated, and on a listening socket SYN-ACK, 1..=127. For the tests.
pub const SYNCNT: IntOption = tcp(libc::TCP_SYNCNT, "TCP_SYNCNT");
/// Seconds for which a listening socket waits for the client's first data before it takes a
/// handshake for complete. For the tests.
pub const DEFER_ACCEPT: IntOption = tcp(libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT");

/// Sets an option.
///
/// # Errors
/// What setsockopt(2) says; `ENOPROTOOPT` where the kernel does not know the option.
pub fn set_int(fd: RawFd, option: IntOption, value: i32) -> io::Result<()> {
    set(fd, option.level, option.name, &value)
}

/// Reads an option.
///
/// # Errors
/// What getsockopt(2) says.
pub fn get_int(fd: RawFd, option: IntOption) -> io::Result<i32> {
    let mut value: i32 = 0;
    get(fd, option.level, option.name, &mut value)?;
    Ok(value)
}

/// Makes close(2) an abort: RST, and nothing left behind in the kernel (socket(7), `SO_LINGER`).
/// It is inherited by accepted sockets, and it holds when the process is killed.
///
/// # Errors
/// What setsockopt(2) says.
pub fn arm_abort(fd: RawFd) -> io::Result<()> {
    set_linger(fd, 1)
}

/// Makes close(2) orderly again.
///
/// # Errors
/// What setsockopt(2) says.
pub fn disarm_abort(fd: RawFd) -> io::Result<()> {
    set_linger(fd, 0)
}

fn set_linger(fd: RawFd, l_onoff: libc::c_int) -> io::Result<()> {
    let value = libc::linger {
        l_onoff,
        l_linger: 0,
    };
    set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &value)
}

/// Takes the pending error of a socket (`SO_ERROR`), if there is one.
#[must_use]
pub fn take_error(fd: RawFd) -> Option<io::Error> {
    let mut code: i32 = 0;
    match get(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut code) {
        Ok(_) if code == 0 => None,
        Ok(_) => Some(io::Error::from_raw_os_error(code)),
        Err(error) => Some(error),
    }
}

/// Bytes written to the socket, FIN included, that the peer has not acknowledged
/// (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// What ioctl(2) says.
pub fn send_queue_bytes(fd: RawFd) -> io::Result<u32> {
    // The same number as SIOCOUTQ.
    ask_int(fd, libc::TIOCOUTQ).map(i32::unsigned_abs)
}

/// Whether the next byte to be read is the urgent one (`SIOCATMARK`, tcp(7)).
#[must_use]
pub fn at_urgent_mark(fd: RawFd) -> bool {
    const SIOCATMARK: libc::Ioctl = 0x8905;
    ask_int(fd, SIOCATMARK).is_ok_and(|at_mark| at_mark != 0)
}

/// Bytes that were received and not read yet (`SIOCINQ`, tcp(7)).
///
/// # Errors
/// What ioctl(2) says.
pub fn receive_queue_bytes(fd: RawFd) -> io::Result<u32> {
    // The same number as SIOCINQ.
    ask_int(fd, libc::FIONREAD).map(i32::unsigned_abs)
}

/// One of the requests above, each of which answers with an int.
fn ask_int(fd: RawFd, request: libc::Ioctl) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: each caller passes a request that stores one int through the pointer, which is valid
    // for the call.
    let rc = unsafe { libc::ioctl(fd, request, &raw mut value) };
    answered(rc, value)
}

/// The own end of a connection.
#[must_use]
pub fn local_address(fd: RawFd) -> Option<SocketAddr> {
    borrowed(fd, |socket| socket.local_addr().ok()?.as_socket())
}

/// The other end of a connection.
#[must_use]
pub fn peer_address(fd: RawFd) -> Option<SocketAddr> {
    borrowed(fd, |socket| socket.peer_addr().ok()?.as_socket())
}

/// A second descriptor for the same socket.
///
/// # Errors
/// What fcntl(2) says.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed; the kernel answers an invalid descriptor with EBADF.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Which ways of a connected socket are shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// None that poll(2) tells of.
    None,
    /// The peer's.
    OfPeer,
    /// Both, or the peer has closed.
    OfBoth,
}

/// Asks poll(2) which ways are shut.
///
/// # Errors
/// EBADF, and what else poll(2) says.
pub fn hangup(fd: RawFd) -> io::Result<Hangup> {
    let mut asked = libc::pollfd {
        fd,
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one valid record, for the length of the call, which does not wait.
    let rc = unsafe { libc::poll(&raw mut asked, 1, 0) };
    answered(rc, ())?;
    match asked.revents {
        told if told & libc::POLLNVAL != 0 => Err(io::Error::from_raw_os_error(libc::EBADF)),
        told if told & libc::POLLHUP != 0 => Ok(Hangup::OfBoth),
        told if told & libc::POLLRDHUP != 0 => Ok(Hangup::OfPeer),
        _ => Ok(Hangup::None),
    }
}

fn borrowed<T>(fd: RawFd, ask: impl FnOnce(&socket2::Socket) -> Option<T>) -> Option<T> {
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor is not -1, it is only used during this call, and the wrapper that
    // would close it is never dropped.
    let socket = std::mem::ManuallyDrop::new(unsafe { socket2::Socket::from_raw_fd(fd) });
    ask(&socket)
}

fn set<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer is valid for reads of the given length; the kernel only copies it.
    let rc = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_len::<T>(),
        )
    };
    answered(rc, ())
}

/// Reads an option into plain old data; returns the number of bytes the kernel filled in.
pub(super) fn get<T>(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut len = size_of_len::<T>();
    // SAFETY: the pointer is valid for writes of `len` bytes, and every caller passes a type of
    // integers only, for which each bit pattern is a value.
    let rc = unsafe {
        libc::getsockopt(
            fd,
            level,
            name,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    answered(rc, len as usize)
}

/// What a call gave, or why it failed: a negative result.
fn answered<T>(rc: libc::c_int, value: T) -> io::Result<T> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

fn size_of_len<T>() -> libc::socklen_t {
    // Option values are a few hundred bytes at most.
    size_of::<T>() as libc::socklen_t
}
