//! One address on which clients are accepted, as all workers share it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Mode;
use strum::VariantArray;
use tokio::sync::watch;

use super::limiter::Permit;
use super::rate::Rates;
use super::{Limiter, StartError};
use crate::config::{Limits, ListenAddress, ListenerConfig, OnFull, WhenDown};
use crate::liveness::CloseReason;
use crate::metrics::{RejectReason, Takeover};
use crate::net::leg::LegStream;
use crate::net::listen;
use crate::net::stream::TcpStream;
use crate::session::{ProxyHeader, SessionParams};
use crate::sys;
use crate::telemetry::Repeated;

/// Of the file of a unix socket: whoever may write to it may connect.
const GROUP: Mode = Mode::RUSR
    .union(Mode::WUSR)
    .union(Mode::RGRP)
    .union(Mode::WGRP);

/// A listener from bind(2) to its last session.
#[derive(Debug)]
pub struct Listener {
    /// What was asked for.
    pub config: ListenerConfig,
    /// Where clients connect: port 0 is replaced by the kernel's choice.
    pub bound: ListenAddress,
    /// Whether its clients come by a unix socket.
    is_local: bool,
    /// What its sessions have in common.
    pub params: Arc<SessionParams>,
    /// What its clients begin with.
    pub(super) header: Option<Arc<ProxyHeader>>,
    /// Bounds its sessions, and those of a listener of the same name that it replaced.
    pub limiter: Arc<Limiter>,
    /// Whether its clients are accepted; until then they wait in the kernel. Shared with the listener that it
    /// replaced.
    open: Arc<watch::Sender<bool>>,
    /// Whether the kernel refuses clients, because every endpoint is down.
    refusing: watch::Sender<bool>,
    /// Whether no more clients are taken.
    stop: watch::Sender<bool>,
    /// Those that are open, one for each worker.
    sockets: Mutex<Vec<Arc<OwnedFd>>>,
    /// How often each source has connected, where that is limited.
    rates: Option<Arc<Mutex<Rates>>>,
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
        inherited: &mut Vec<(ListenAddress, OwnedFd)>,
    ) -> Result<Arc<Self>, StartError> {
        let refused = |error| StartError::refused(&config, error);
        let serves = |before: &&Self| !*before.stop.borrow();
        let stays = |before: &&Self| before.config.address == config.address;
        // Where the kernel has chosen the port, the choice stays.
        let address = before.filter(serves).filter(stays);
        let address = address.map_or(&config.address, |before| &before.bound);
        let found = sockets(address, workers, inherited);
        let Found {
            bound,
            sockets,
            are_closed,
        } = found.map_err(refused)?;
        let refusing = are_closed && config.upstream.when_down == WhenDown::Refuse;
        let is_local = sockets.first().map_or(Ok(false), listen::is_local);
        let is_local = is_local.map_err(refused)?;
        let (limiter, open) = match before {
            Some(before) => (before.limiter.clone(), before.open.clone()),
            None => (Arc::new(Limiter::new(places(&config))), Arc::default()),
        };
        let rates = rates(&config.limits, before);
        Ok(Arc::new(Self {
            header: ProxyHeader::of(&config),
            config,
            is_local,
            bound,
            params,
            limiter,
            open,
            refusing: watch::Sender::new(refusing),
            stop: watch::Sender::new(false),
            sockets: Mutex::new(sockets.into_iter().map(Arc::new).collect()),
            rates,
            refused: Default::default(),
        }))
    }

    /// Has the kernel take clients, unless it refused them for a listener before this one: then it does so
    /// until a check has passed.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub(super) fn listen(&self) -> Result<(), StartError> {
        let refused = |error| StartError::refused(&self.config, error);
        let sockets = self.sockets();
        let prepare = |socket: &Arc<OwnedFd>| listen::prepare(&**socket, &self.params.policy);
        sockets.iter().try_for_each(prepare).map_err(refused)?;
        match *self.refusing.borrow() {
            true => Ok(()),
            false => self.listen_on(sockets.iter()),
        }
    }

    fn listen_on<'a>(
        &self,
        mut sockets: impl Iterator<Item = &'a Arc<OwnedFd>>,
    ) -> Result<(), StartError> {
        let listened = sockets.try_for_each(|socket| listen::listen(socket, self.config.backlog));
        listened.map_err(|error| StartError::refused(&self.config, error))
    }

    /// The leg to a client.
    pub(super) fn leg(&self, client: TcpStream) -> LegStream {
        if self.is_local {
            LegStream::local(client)
        } else {
            client.into()
        }
    }

    /// Has clients accepted.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Whether clients are accepted; it changes once.
    pub fn is_open(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Whether the kernel refuses clients for now.
    pub(super) fn is_refusing(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    /// Has the kernel refuse clients, and reset those that wait to be accepted.
    pub(super) fn refuse_connects(&self) {
        let sockets = self.sockets();
        // Another listener may have them.
        if *self.stop.borrow() {
            return;
        }
        // First, so that nobody waits for a socket that is about to be closed.
        if !self.refusing.send_replace(true) {
            let name = &*self.params.name;
            tracing::warn!(
                listener = name,
                "every endpoint is down: clients are refused"
            );
        }
        sockets.iter().for_each(listen::close);
    }

    /// Has it take them again.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub(super) fn take_connects(&self) -> Result<(), StartError> {
        let sockets = self.sockets();
        self.reopen(&sockets)?;
        if !*self.stop.borrow() && self.refusing.send_replace(false) {
            let name = &*self.params.name;
            tracing::info!(
                listener = name,
                "an endpoint is up: clients are taken again"
            );
        }
        Ok(())
    }

    /// Has it take them where another instance, which had the sockets for a moment, has closed them.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub fn stay_open(&self) -> Result<(), StartError> {
        let sockets = self.sockets();
        match *self.refusing.borrow() {
            true => Ok(()),
            false => self.reopen(&sockets),
        }
    }

    fn reopen(&self, sockets: &[Arc<OwnedFd>]) -> Result<(), StartError> {
        // Another listener may have them.
        if *self.stop.borrow() {
            return Ok(());
        }
        let closed = sockets
            .iter()
            .filter(|socket| !listen::is_listening(socket));
        self.listen_on(closed)
    }

    /// Takes no more clients than those that wait in the kernel; sessions go on. From now on the sockets
    /// are left as they are.
    pub fn stop(&self) {
        let _nobody_closes_them = self.sockets();
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

    /// A second descriptor for each socket, with the address that it serves.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn duplicates(&self) -> io::Result<Vec<(ListenAddress, OwnedFd)>> {
        let sockets = self.sockets();
        let copy = |socket: &Arc<OwnedFd>| Ok((self.bound.clone(), socket.try_clone()?));
        sockets.iter().map(copy).collect()
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

    /// Lets a client in by who it is.
    pub(super) fn admits(&self, client: IpAddr) -> Result<(), RejectReason> {
        if !self.config.access.admits(client) {
            return Err(RejectReason::AccessDenied);
        }
        if let Some(rates) = &self.rates {
            let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
            if !rates.admits(self.config.limits.source_of(client), sys::now()) {
                return Err(RejectReason::SourceRate);
            }
        }
        Ok(())
    }

    /// A place for a client, or none where it may wait for that.
    pub(super) fn place(&self, client: IpAddr) -> Result<Option<Permit>, RejectReason> {
        let limits = &self.config.limits;
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

    /// Says who a client is that is refused.
    pub(super) fn report_refused(self: &Arc<Self>, client: IpAddr, reason: RejectReason) {
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

/// The rates of the listener that is replaced, if the limits stay: a source that used up its burst gets no new one.
fn rates(limits: &Limits, before: Option<&Listener>) -> Option<Arc<Mutex<Rates>>> {
    let (rate, burst) = (limits.rate_per_source, limits.burst_per_source);
    let stays = |before: &&Listener| {
        let before = &before.config.limits;
        (before.rate_per_source, before.burst_per_source) == (rate, burst)
    };
    match before.filter(stays) {
        Some(before) => before.rates.clone(),
        None => rate.map(|rate| Arc::new(Mutex::new(Rates::new(rate, burst)))),
    }
}

/// The sockets of a listener.
struct Found {
    /// The address they are bound to.
    bound: ListenAddress,
    sockets: Vec<OwnedFd>,
    /// Whoever had them before has had the kernel refuse clients.
    are_closed: bool,
}

fn sockets(
    address: &ListenAddress,
    workers: usize,
    inherited: &mut Vec<(ListenAddress, OwnedFd)>,
) -> io::Result<Found> {
    let found = |bound, sockets| Found {
        bound,
        sockets,
        are_closed: false,
    };
    let is_its = |(of, _): &mut (ListenAddress, OwnedFd)| of == address && is_reachable(of);
    let sockets = inherited.extract_if(.., is_its);
    let sockets: Vec<_> = sockets.map(|(_, socket)| socket).collect();
    if !sockets.is_empty() {
        return Ok(Found {
            are_closed: !sockets.iter().any(listen::is_listening),
            ..found(address.clone(), sockets)
        });
    }
    match address {
        ListenAddress::Socket(address) => {
            let (mut address, mut sockets) = (*address, Vec::new());
            listen::check_free(address)?;
            for _ in 0..workers {
                let socket = listen::bind(address)?;
                address = listen::local_address(&socket)?;
                sockets.push(socket);
            }
            Ok(found(ListenAddress::Socket(address), sockets))
        }
        ListenAddress::Unix(path) => Ok(found(
            address.clone(),
            vec![listen::bind_file(path, GROUP)?],
        )),
        ListenAddress::Activated(name) => Ok(found(address.clone(), listen::activated(name)?)),
    }
}

/// A socket whose file was removed is found by no client.
fn is_reachable(address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Unix(path) => path.exists(),
        _ => true,
    }
}
