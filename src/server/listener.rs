//! One address on which clients are accepted, as all workers share it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strum::VariantArray;
use tokio::sync::watch;

use super::limiter::Permit;
use super::rate::Rates;
use super::{Limiter, StartError};
use crate::config::{ListenerConfig, OnFull};
use crate::liveness::CloseReason;
use crate::metrics::{RejectReason, Takeover};
use crate::net::listen;
use crate::session::{ProxyHeader, SessionParams};
use crate::sys;
use crate::telemetry::Repeated;

/// A listener from bind(2) to its last session.
#[derive(Debug)]
pub struct Listener {
    /// What was asked for.
    pub config: ListenerConfig,
    /// Where clients connect: port 0 is replaced by the kernel's choice.
    pub bound: SocketAddr,
    /// What its sessions have in common.
    pub params: Arc<SessionParams>,
    /// What its clients begin with.
    pub(super) header: Option<Arc<ProxyHeader>>,
    /// Bounds its sessions, and those of a listener of the same name that it replaced.
    pub limiter: Arc<Limiter>,
    /// Whether its clients are accepted; until then they wait in the kernel. Shared with the listener that it
    /// replaced.
    open: Arc<watch::Sender<bool>>,
    /// Whether no more clients are taken.
    stop: watch::Sender<bool>,
    /// Those that are open, one for each worker.
    sockets: Mutex<Vec<Arc<OwnedFd>>>,
    /// How often each source has connected, where that is limited.
    rates: Option<Mutex<Rates>>,
    /// Lines about clients that were refused, one for each [`RejectReason`].
    refused: [Repeated; RejectReason::VARIANTS.len()],
}

impl Listener {
    /// Binds the address once for each of `workers`. Where sockets for it are `inherited`, from
    /// another instance or another configuration, these are taken instead. One that has a session yet, or
    /// serves, under the same name is `before`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(super) fn bind(
        config: ListenerConfig,
        params: Arc<SessionParams>,
        before: Option<&Self>,
        workers: usize,
        inherited: &mut Vec<OwnedFd>,
    ) -> Result<Arc<Self>, StartError> {
        let refused = |error| StartError::refused(&config, error);
        let serves = |before: &&Self| !*before.stop.borrow();
        let stays = |before: &&Self| before.config.address == config.address;
        // Where the kernel has chosen the port, the choice stays.
        let address = before.filter(serves).filter(stays);
        let address = address.map_or(config.address, |before| before.bound);
        let found = sockets(address, workers, inherited);
        let (bound, sockets) = found.map_err(refused)?;
        let (limiter, open) = match before {
            Some(before) => (before.limiter.clone(), before.open.clone()),
            None => (Arc::new(Limiter::new(places(&config))), Arc::default()),
        };
        let limits = &config.limits;
        let rates = limits
            .rate_per_source
            .map(|rate| Rates::new(rate, limits.burst_per_source));
        Ok(Arc::new(Self {
            header: ProxyHeader::of(&config),
            config,
            bound,
            params,
            limiter,
            open,
            stop: watch::Sender::new(false),
            sockets: Mutex::new(sockets.into_iter().map(Arc::new).collect()),
            rates: rates.map(Mutex::new),
            refused: Default::default(),
        }))
    }

    /// Has the kernel take clients.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub(super) fn listen(&self) -> Result<(), StartError> {
        let refused = |error| StartError::refused(&self.config, error);
        let listen = |socket: &Arc<OwnedFd>| {
            listen::prepare(&**socket, &self.params.policy)?;
            listen::listen(&**socket, self.config.backlog)
        };
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

    /// Gives a socket up. Whoever does not find it in the list can have its address.
    pub(super) fn close(&self, socket: Option<Arc<OwnedFd>>) {
        let mut sockets = self.sockets();
        if let Some(socket) = socket {
            sockets.retain(|open| !Arc::ptr_eq(open, &socket));
        }
    }

    /// Lets a client in by who it is: with a place, or without one where it may wait for that.
    pub(super) fn admit(&self, client: IpAddr) -> Result<Option<Permit>, RejectReason> {
        let limits = &self.config.limits;
        if !self.config.access.admits(client) {
            return Err(RejectReason::AccessDenied);
        }
        if let Some(rates) = &self.rates {
            let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
            if !rates.admits(limits.source_of(client), sys::now()) {
                return Err(RejectReason::SourceRate);
            }
        }
        let limiter = self.limiter_for(client);
        match limiter.try_acquire() {
            None if limits.on_full == OnFull::Reject => Err(match limiter.source() {
                Some(_) if limiter.is_full() => RejectReason::SourceConnections,
                _ => RejectReason::MaxConnections,
            }),
            place => Ok(place),
        }
    }

    /// What a client needs a permit of.
    pub(super) fn limiter_for(&self, client: IpAddr) -> Arc<Limiter> {
        let limits = &self.config.limits;
        match limits.max_connections_per_source {
            Some(n) => self.limiter.of_source(limits.source_of(client), n as usize),
            None => self.limiter.clone(),
        }
    }

    /// Counts a client that is refused, and says who it is.
    pub(super) fn refuse(self: &Arc<Self>, client: IpAddr, reason: RejectReason) {
        self.params.metrics.rejected(reason);
        if !self.refused[reason as usize].begin() {
            return;
        }
        let (name, client) = (&*self.params.name, client.to_canonical());
        let word = <&str>::from(reason);
        tracing::warn!(listener = name, %client, reason = word, "a client is refused");
        let listener = self.clone();
        tokio::spawn(async move {
            let name = &*listener.params.name;
            let write = |more| {
                tracing::warn!(
                    listener = name,
                    reason = word,
                    "clients are refused: {more} more in the last 10 s"
                );
            };
            listener.refused[reason as usize].sum_up(write).await;
        });
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

/// How many sessions there may be at once.
pub(super) fn places(config: &ListenerConfig) -> Option<usize> {
    config.limits.max_connections.map(|n| n as usize)
}

/// The sockets of a listener, and the address they are bound to.
fn sockets(
    mut address: SocketAddr,
    workers: usize,
    inherited: &mut Vec<OwnedFd>,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let is_its = |fd: &mut OwnedFd| listen::local_address(fd).ok() == Some(address);
    let mut sockets: Vec<_> = inherited.extract_if(.., is_its).collect();
    if sockets.is_empty() {
        listen::check_free(address)?;
        for _ in 0..workers {
            let socket = listen::bind(address)?;
            address = listen::local_address(&socket)?;
            sockets.push(socket);
        }
    }
    Ok((address, sockets))
}
