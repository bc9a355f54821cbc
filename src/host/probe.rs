//! What the kernel is able to do, found out by doing it: not every stack under a Linux name is
//! Linux (gVisor and the like), and the version number of a kernel says little.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::sys::sockopt::{self, IntOption};
use crate::sys::{self, tcp_info};

/// The on-demand probe asks a peer that has been quiet for a second.
const QUIET: Duration = Duration::from_millis(1050);
/// On loopback the answer comes at the next tick of the kernel, 10 ms at most.
const ANSWER: Duration = Duration::from_millis(100);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Whether the kernel does what the promise rests on. `None`: could not be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// `TCP_RTO_MAX_MS` can be set: retransmissions do not back off into silence.
    pub rto_max: Option<bool>,
    /// `TCP_INFO` has the peer's window.
    pub window: Option<bool>,
    /// `TCP_USER_TIMEOUT` can be set: the kernel leaves the verdict to pulsegate.
    pub user_timeout: Option<bool>,
    /// Keepalive probes can be asked for, and timed.
    pub keepalive: Option<bool>,
    /// See [`probe_on_demand`].
    pub probe_on_demand: Option<bool>,
}

impl Abilities {
    /// Tries everything; takes 1.1 s.
    #[must_use]
    pub fn find() -> Self {
        Self::but(probe_on_demand().ok())
    }

    /// Tries everything but [`probe_on_demand`], the only one that takes long.
    #[must_use]
    pub fn but(probe_on_demand: Option<bool>) -> Self {
        Self {
            probe_on_demand,
            ..Self::of_options()
        }
    }

    /// Sets options on a fresh socket and reads them back.
    fn of_options() -> Self {
        let Ok(socket) = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        ) else {
            return Self::default();
        };
        let takes = |option: IntOption, value| {
            let fd = socket.as_raw_fd();
            sockopt::set_int(fd, option, value).is_ok()
                && sockopt::get_int(fd, option).is_ok_and(|read| read == value)
        };
        let keepalive = [
            (sockopt::KEEPALIVE, 1),
            (sockopt::KEEPIDLE, 7),
            (sockopt::KEEPINTVL, 1),
        ];
        Self {
            window: sys::tcp_info(socket.as_raw_fd())
                .ok()
                .map(|info| info.snd_wnd != sys::UNKNOWN_WINDOW),
            rto_max: Some(takes(sockopt::RTO_MAX_MS, 1000)),
            user_timeout: Some(takes(sockopt::USER_TIMEOUT, i32::MAX)),
            keepalive: Some(
                keepalive
                    .iter()
                    .all(|(option, value)| takes(*option, *value)),
            ),
            probe_on_demand: None,
        }
    }
}

/// Whether lowering `TCP_KEEPIDLE` on a quiet connection sends a probe at once, tried on a
/// loopback connection of its own. Blocks for 1.1 s: not for a thread that has anything else to
/// do.
///
/// # Errors
/// When there is no loopback connection to try it on.
pub fn probe_on_demand() -> io::Result<bool> {
    let (client, _server) = pair()?;
    let fd = client.as_raw_fd();
    sockopt::set_int(fd, sockopt::KEEPALIVE, 1)?;
    sockopt::set_int(fd, sockopt::KEEPIDLE, 7200)?;
    wait(&client, QUIET)?;
    let before = tcp_info(fd)?.segs_in;
    sockopt::set_int(fd, sockopt::KEEPIDLE, 1)?;
    let end = sys::now() + ANSWER.into();
    loop {
        // The clock first: a thread that got no processor for long still looks once at the end.
        let last = sys::now() >= end;
        if tcp_info(fd)?.segs_in != before {
            return Ok(true);
        }
        if last {
            return Ok(false);
        }
        wait(&client, LOOK_AGAIN)?;
    }
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| TcpListener::bind((Ipv6Addr::LOCALHOST, 0)))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    loop {
        // Somebody else may have found the port.
        let (server, peer) = listener.accept()?;
        if peer == client.local_addr()? {
            return Ok((client, server));
        }
    }
}

/// Waits on a connection that nobody writes to.
fn wait(mut stream: &TcpStream, time: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(time))?;
    match stream.read(&mut [0]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_probes_on_demand() {
        let begin = sys::now();
        assert!(probe_on_demand().expect("tried"));
        let took = (sys::now() - begin).as_millis();
        assert!((1050..3000).contains(&took), "{took} ms");
    }

    #[test]
    fn options_are_tried() {
        let found = Abilities::of_options();
        assert_eq!(found.user_timeout, Some(true));
        assert_eq!(found.keepalive, Some(true));
        assert!(found.rto_max.is_some());
        assert_eq!(found.probe_on_demand, None);
    }
}
