//! Descriptors of other processes (pidfd_getfd(2)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::net::{ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// A copy of a socket that another process holds, closed when it is dropped. While it is open, a close by
/// that process sends no FIN: keep it for some system calls only.
#[derive(Debug)]
pub struct Foreign(OwnedFd);

impl Foreign {
    /// Copies a descriptor of a process, if it is the socket with that `SO_COOKIE`.
    ///
    /// # Errors
    /// `EPERM` where the kernel, Yama or seccomp refuses; `ESRCH` if there is no such process; `EBADF` if it
    /// has no such descriptor; `NotFound` if that is another socket by now; `Unsupported` if it is one of
    /// MPTCP, which has connections of its own below.
    pub fn copy(pid: u32, fd: RawFd, cookie: u64) -> io::Result<Self> {
        let no_process = io::Error::from_raw_os_error(libc::ESRCH);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = pidfd_open(pid.ok_or(no_process)?, PidfdFlags::empty())?;
        let copy = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
        if sockopt::socket_cookie(&copy)? != cookie {
            return Err(match sockopt::socket_protocol(&copy)? {
                Some(ipproto::MPTCP) => io::ErrorKind::Unsupported.into(),
                _ => io::ErrorKind::NotFound.into(),
            });
        }
        Ok(Self(copy))
    }

    /// Ends the connection by dissolving it (connect(2), `AF_UNSPEC`): its peer gets RST, its application
    /// ECONNRESET or EPIPE.
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn dissolve(&self) -> io::Result<()> {
        Ok(rustix::net::connect_unspec(&self.0)?)
    }
}

impl AsRawFd for Foreign {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use socket2::{Domain, Protocol, Socket, Type};

    use super::*;

    /// A process may copy its own descriptors.
    #[test]
    fn the_socket_is_copied_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (mut far, _) = listener.accept().expect("accepted");
        let cookie = rustix::net::sockopt::socket_cookie(&near).expect("asked");
        let me = std::process::id();
        let other = Foreign::copy(me, near.as_raw_fd(), cookie + 1).expect_err("another socket");
        assert_eq!(other.kind(), io::ErrorKind::NotFound);
        let none = Foreign::copy(me, 1 << 20, cookie).expect_err("no such descriptor");
        assert_eq!(none.raw_os_error(), Some(libc::EBADF));
        // Some kernels have no MPTCP.
        if let Ok(multipath) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
            let other = Foreign::copy(me, multipath.as_raw_fd(), cookie).expect_err("another");
            assert_eq!(other.kind(), io::ErrorKind::Unsupported);
        }
        let copy = Foreign::copy(me, near.as_raw_fd(), cookie).expect("allowed");
        assert_ne!(copy.as_raw_fd(), near.as_raw_fd());
        copy.dissolve().expect("ended");
        let error = far.read(&mut [0]).expect_err("ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
