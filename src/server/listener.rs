//! One address on which clients are accepted, as all workers share it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Limiter, StartError};
use crate::config::ListenerConfig;
use crate::liveness::CloseReason;
use crate::metrics::Takeover;
use crate::net::listen;
use crate::session::SessionParams;
use crate::sys;

/// A listener from bind(2) to its last session.
#[derive(Debug)]
pub struct Listener {
    /// What was asked for.
    pub config: ListenerConfig,
    /// Where clients connect: port 0 is replaced by the kernel's choice.
    pub bound: SocketAddr,
    /// What its sessions have in common.
    pub params: Arc<SessionParams>,
    /// Bounds its sessions, and those of a listener of the same name that it replaced.
    pub limiter: Arc<Limiter>,
    /// Whether its clients are accepted; until then they wait in the kernel.
    open: watch::Sender<bool>,
    /// Whether no more clients are taken.
    stop: watch::Sender<bool>,
    /// Those that are open, one for each worker.
    sockets: Mutex<Vec<Arc<OwnedFd>>>,
    /// Held by the client that makes room.
    pub(super) making_room: tokio::sync::Mutex<()>,
}

impl Listener {
    /// Binds the address once for each of `workers`. Where sockets for it are `inherited`, from
    /// another instance or another configuration, these are taken instead.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(super) fn bind(
        config: ListenerConfig,
        params: Arc<SessionParams>,
        limiter: Arc<Limiter>,
        workers: usize,
        inherited: &mut Vec<OwnedFd>,
    ) -> Result<Arc<Self>, StartError> {
        let refused = |error| StartError::refused(&config, error);
        let (bound, sockets) = sockets(&config, &params, workers, inherited).map_err(refused)?;
        Ok(Arc::new(Self {
            config,
            bound,
            params,
            limiter,
            open: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            sockets: Mutex::new(sockets.into_iter().map(Arc::new).collect()),
            making_room: tokio::sync::Mutex::new(()),
        }))
    }

    /// Has the kernel take clients.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub(super) fn listen(&self) -> Result<(), StartError> {
        let refused = |error| StartError::refused(&self.config, error);
        let listen = |socket: &Arc<OwnedFd>| listen::listen(&**socket, self.config.backlog);
        self.sockets().iter().try_for_each(listen).map_err(refused)
    }

    /// Has clients accepted.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Whether clients are accepted; it changes once.
    pub fn is_open(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Takes no more clients than those that wait in the kernel; sessions go on.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it takes no more clients; it changes once.
    pub fn is_stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Whether there is no session, and will be none. One that was never opened waits for the
    /// sessions of another instance.
    #[must_use]
    pub fn is_left(&self) -> bool {
        *self.open.borrow()
            && self.sockets().is_empty()
            && self.params.sessions.load(Ordering::Relaxed) == 0
    }

    /// Connections that wait to be accepted, and the limit of that; over all workers. In a
    /// listening state `TCP_INFO` has the two in other fields' places (`tcp_get_info`,
    /// net/ipv4/tcp.c). 1 us for each worker.
    #[must_use]
    pub fn queue(&self) -> (u64, u64) {
        let sockets = self.sockets();
        let infos = sockets
            .iter()
            .filter_map(|s| sys::tcp_info(s.as_raw_fd()).ok());
        infos.fold((0, 0), |(length, limit), info| {
            let more = (u64::from(info.unacked), u64::from(info.sacked));
            (length + more.0, limit + more.1)
        })
    }

    /// A second descriptor for each socket.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        self.sockets()
            .iter()
            .map(|socket| socket.try_clone())
            .collect()
    }

    pub(super) fn sockets(&self) -> MutexGuard<'_, Vec<Arc<OwnedFd>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a socket up.
    pub(super) fn close(&self, socket: &Arc<OwnedFd>) {
        self.sockets().retain(|open| !Arc::ptr_eq(open, socket));
    }

    /// Why the last place became free. Of two that are given back at the same moment, for
    /// different reasons, one is counted as the other: nothing but a metric depends on it.
    pub(super) fn freed_by(&self) -> Takeover {
        let last = self.params.last_end.load(Ordering::Relaxed);
        match CloseReason::from_repr(last) {
            Some(CloseReason::Replaced) => Takeover::Replaced,
            Some(CloseReason::Shed) => Takeover::Shed,
            Some(reason) if reason.dead_leg().is_some() => Takeover::HolderDead,
            _ => Takeover::Queued,
        }
    }
}

/// The sockets of a listener, and the address they are bound to.
fn sockets(
    config: &ListenerConfig,
    params: &SessionParams,
    workers: usize,
    inherited: &mut Vec<OwnedFd>,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let mut address = config.address;
    let is_its = |fd: &mut OwnedFd| listen::local_address(fd).ok() == Some(address);
    let mut sockets: Vec<_> = inherited.extract_if(.., is_its).collect();
    if sockets.is_empty() {
        listen::check_free(address)?;
        for _ in 0..workers {
            let socket = listen::bind(address, &params.policy)?;
            address = listen::local_address(&socket)?;
            sockets.push(socket);
        }
    } else {
        let prepare = |socket| listen::prepare(socket, &params.policy);
        sockets.iter().try_for_each(prepare)?;
    }
    Ok((address, sockets))
}
