//! Dialling endpoints.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::Semaphore;

use super::ejection::Ejector;
use super::endpoint::{ActiveSession, Endpoint};
use super::pick::Pick;
use crate::config::UpstreamAddress;
use crate::net::options;
use crate::net::stream::TcpStream;
use crate::sys;

/// Clients at a time whose upstream is dialled at two addresses at once; each holds a descriptor
/// more than a session has.
pub(super) const MOST_DOUBLE: usize = 32;

static DOUBLE: Semaphore = Semaphore::const_new(MOST_DOUBLE);

/// A connect that has begun. Its outcome is counted at the endpoint.
#[derive(Debug)]
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    pub(super) stream: TcpStream,
}

impl Attempt {
    /// Begins to connect.
    ///
    /// # Errors
    /// What socket(2) or connect(2) say at once (descriptors, no route, refused on loopback).
    pub(super) fn begin(endpoint: Arc<Endpoint>, round: Round<'_>) -> io::Result<Self> {
        match round.dialler.begin(endpoint.address()) {
            Ok(stream) => Ok(Self { endpoint, stream }),
            Err(error) => round.count(&endpoint, Err(error)),
        }
    }

    /// Whether it is connected already, as `early` finds out by using it.
    ///
    /// # Errors
    /// Why it cannot be connected.
    pub(super) fn try_early(
        &self,
        round: Round<'_>,
        early: impl FnOnce(&TcpStream) -> io::Result<bool>,
    ) -> io::Result<bool> {
        match early(&self.stream) {
            Ok(false) => Ok(false),
            outcome => round.count(&self.endpoint, outcome),
        }
    }

    fn poll_connected(&self, round: Round<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connected = ready!(self.stream.poll_connected(cx));
        Poll::Ready(round.count(&self.endpoint, connected))
    }

    /// It was not answered in its time, or others were dialled later and have answered.
    fn give_up(self, round: Round<'_>) {
        let late = io::ErrorKind::TimedOut.into();
        let _counted: io::Result<()> = round.count(&self.endpoint, Err(late));
    }
}

/// One of the times that a client dials its endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round<'a> {
    pub dialler: &'a Dialler,
    /// Whether the client has dialled them before, and they have failed.
    pub is_repeated: bool,
}

impl Round<'_> {
    /// Counts the outcome of a connect, and returns it. However often a client is refused by an endpoint,
    /// that is one failure. That the queue of a Unix socket is full is one when the client gives up.
    fn count<T>(self, endpoint: &Endpoint, outcome: io::Result<T>) -> io::Result<T> {
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match outcome {
            Err(error) if self.is_repeated || is_full(&error) => Err(error),
            outcome => endpoint.count(&self.dialler.ejector, outcome),
        }
    }
}

/// What all dials of a cluster have in common.
#[derive(Debug)]
pub(super) struct Dialler {
    pub ejector: Arc<Ejector>,
    /// Addresses of this host, if they are configured.
    sources: Vec<IpAddr>,
    /// Dials that had a choice of them.
    turns: AtomicUsize,
}

impl Dialler {
    pub(super) fn new(ejector: Arc<Ejector>, sources: &Option<Vec<IpAddr>>) -> Self {
        Self {
            ejector,
            sources: sources.clone().unwrap_or_default(),
            turns: AtomicUsize::new(0),
        }
    }

    /// Begins to connect, from the source whose turn it is; from another one where that has no port left.
    fn begin(&self, address: &UpstreamAddress) -> io::Result<TcpStream> {
        let address = match address {
            UpstreamAddress::Socket(address) => *address,
            UpstreamAddress::Unix(path) => return begin_unix(path),
            UpstreamAddress::Name { .. } => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if self.sources.is_empty() {
            return begin(address, None);
        }
        let is_ipv4 = address.ip().to_canonical().is_ipv4();
        let fits = |source: &&IpAddr| source.is_ipv4() == is_ipv4;
        let count = self.sources.iter().filter(fits).count().max(1);
        let first = self.turns.fetch_add(1, Ordering::Relaxed) % count;
        let sources = self.sources.iter().filter(fits).cycle();
        let missing = format!("no source_address is of the family of {address}");
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, missing);
        for source in sources.skip(first).take(count) {
            match begin(address, Some(*source)) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => last = error,
                begun => return begun,
            }
        }
        Err(last)
    }
}

/// Begins to connect a socket; it can be used once [`TcpStream::poll_connected`] says so.
fn begin(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    options::prepare_dialled(fd.as_raw_fd())?;
    if let Some(source) = source {
        bind(&fd, source, address).map_err(|error| {
            let why = format!("source_address {source}: {error}");
            io::Error::new(error.kind(), why)
        })?;
    }
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // TCP connects a socket to itself if nobody listens on a local port and the kernel chooses that
    // port for our end (RFC 9293, 3.5, simultaneous open).
    let local = sys::sockopt::local_address(fd.as_raw_fd());
    if local.is_some_and(|local| (local.ip(), local.port()) == (address.ip(), address.port())) {
        let nobody = "nothing listens there: the connection would have been to itself";
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, nobody));
    }
    TcpStream::new(fd)
}

/// Connects to a Unix socket, which is done at once or not at all.
fn begin_unix(path: &Path) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &SocketAddrUnix::new(path)?) {
        Ok(()) => TcpStream::new(fd),
        Err(rustix::io::Errno::AGAIN) => {
            let full = "the accept queue of the service is full";
            Err(io::Error::new(io::ErrorKind::WouldBlock, full))
        }
        Err(error) => Err(error.into()),
    }
}

/// Binds a socket to an address of this host. Its port is chosen at the connect, so that only the pair of
/// both ends has to be unique.
fn bind(fd: &OwnedFd, source: IpAddr, to: SocketAddr) -> io::Result<()> {
    sys::sockopt::set_int(fd.as_raw_fd(), sys::sockopt::BIND_ADDRESS_NO_PORT, 1)?;
    let source = match (source, to) {
        // An IPv4 address in the form of IPv6.
        (IpAddr::V4(ip), SocketAddr::V6(_)) => ip.to_ipv6_mapped().into(),
        _ => source,
    };
    Ok(rustix::net::bind(fd, &SocketAddr::new(source, 0))?)
}

/// What was done about the first endpoint.
#[derive(Debug)]
pub(super) enum Begun {
    Attempt(Attempt),
    Failed(Arc<Endpoint>, io::Error),
}

impl Begun {
    /// The endpoint.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        match self {
            Self::Attempt(attempt) => &attempt.endpoint,
            Self::Failed(endpoint, _) => endpoint,
        }
    }
}

/// Why no endpoint could be connected, and the last one, where it failed by itself.
pub(super) type Failed = (io::Error, Option<Arc<Endpoint>>);

/// Connects to the first endpoint that accepts, in the spirit of RFC 8305: the next one is dialled
/// as soon as one fails, or does not answer for 250 ms, while that one is still waited for. At most
/// two are dialled at once, and each is given its share of the time, at least. The first one may have
/// been dialled. `assign` gets each endpoint that is dialled, and in the end the one that counts.
///
/// # Errors
/// The error of the endpoint that failed last, or that the time is over.
pub(super) async fn first_of(
    mut pick: Pick,
    begun: Option<Begun>,
    within: Duration,
    round: Round<'_>,
    assign: impl Fn(ActiveSession),
) -> Result<TcpStream, Failed> {
    let began = sys::now();
    let left = || within.saturating_sub((sys::now() - began).into());
    let mut last = (io::Error::from(io::ErrorKind::NotFound), None);
    let mut dialled: VecDeque<Attempt> = VecDeque::new();
    match begun {
        Some(Begun::Attempt(attempt)) => dialled.push_back(attempt),
        Some(Begun::Failed(endpoint, error)) => last = (error, Some(endpoint)),
        None => {}
    }
    let mut double = None;
    let mut is_due = dialled.is_empty();
    loop {
        if std::mem::replace(&mut is_due, true)
            && let Some(endpoint) = pick.next()
        {
            if dialled.len() > usize::from(double.is_some())
                && let Some(oldest) = dialled.pop_front()
            {
                oldest.give_up(round);
            }
            assign(ActiveSession::new(endpoint.clone()));
            match Attempt::begin(endpoint.clone(), round) {
                Ok(attempt) => dialled.push_back(attempt),
                Err(error) => {
                    last = (error, Some(endpoint));
                    continue;
                }
            }
        }
        if dialled.is_empty() {
            let active = last.1.clone().map(ActiveSession::new);
            active.into_iter().for_each(assign);
            return Err(last);
        }
        if dialled.len() == 1 {
            double = pick.has_more().then(|| DOUBLE.try_acquire().ok()).flatten();
        }
        let patience = match pick.has_more() {
            true => pick.patience(dialled.len(), 1 + usize::from(double.is_some())),
            false => left(),
        };
        let any = poll_fn(|cx| poll_any(&dialled, round, cx));
        tokio::select! {
            (n, connected) = any => {
                let Some(attempt) = dialled.remove(n) else { continue };
                match connected {
                    Ok(()) => {
                        dialled.drain(..n).for_each(|late| late.give_up(round));
                        assign(ActiveSession::new(attempt.endpoint));
                        return Ok(attempt.stream);
                    }
                    Err(error) => last = (error, Some(attempt.endpoint)),
                }
            }
            () = tokio::time::sleep(patience) => if !pick.has_more() {
                dialled.drain(..).for_each(|late| late.give_up(round));
                return Err((io::ErrorKind::TimedOut.into(), None));
            }
        }
    }
}

/// The first that has connected or failed.
fn poll_any(
    dialled: &VecDeque<Attempt>,
    round: Round<'_>,
    cx: &mut Context<'_>,
) -> Poll<(usize, io::Result<()>)> {
    for (n, attempt) in dialled.iter().enumerate() {
        if let Poll::Ready(connected) = attempt.poll_connected(round, cx) {
            return Poll::Ready((n, connected));
        }
    }
    Poll::Pending
}
