//! One client's connection pair: dials the upstream, runs the relay, and ends both legs the way
//! the verdict or the peers ask for.

mod asking;
mod balancer;
mod books;
mod closing;
mod facts;
mod heartbeat;
mod monitor;
mod opening;
mod proxy_header;
mod secure;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod verify;
mod view;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use strum::VariantArray;

use crate::config::{Abandoned, OnDead, OnEnd};
use crate::heartbeat::profiles::Protocol;
use crate::liveness::{
    Asking, Close, CloseHow, CloseReason, Fault, Leg, Machine, Policy, Span, Time, Traffic,
};
use crate::metrics::{ConnectFailure, HandshakeFailure, ListenerMetrics};
use crate::net::leg::LegStream;
use crate::net::sample;
use crate::relay::{self, Counters};
use crate::sys;
use crate::telemetry::Repeated;
use crate::tls::Acceptor;
use crate::upstream::{ActiveSession, Cluster};

pub use balancer::{Balancer, Coming, Worker};
use facts::Facts;
pub use monitor::monitor;
pub use opening::{Admission, Boxed, Client, Preamble};
pub use proxy_header::ProxyHeader;
pub use table::Table;
use task::Ended;
pub use task::Task;
pub use verify::{Asked, verify_all};

/// What the sessions of one listener have in common.
#[derive(Debug)]
pub struct SessionParams {
    /// The listener's name.
    pub name: Arc<str>,
    /// How TLS with clients is spoken, if it is.
    pub tls: Option<Arc<Acceptor>>,
    /// Where clients are taken.
    pub cluster: Arc<Cluster>,
    /// Liveness limits.
    pub policy: Policy,
    /// What the live leg sees when the other one was found dead.
    pub on_dead: OnDead,
    /// What both legs see when pulsegate itself ends the session.
    pub on_end: OnEnd,
    /// Metric handles, labels resolved.
    pub metrics: Arc<ListenerMetrics>,
    /// How long a client may send nothing.
    pub first_byte_timeout: Option<Span>,
    /// How long a client may wait for a place.
    pub queue_timeout: Option<Duration>,
    /// What becomes of a client that says FIN while it waits for a place.
    pub abandoned: Abandoned,
    /// By leg, the protocol in which its peer is asked.
    pub heartbeats: [Option<Protocol>; 2],
    /// When it is asked.
    pub asking: Asking,
    /// Lines about answers that were none.
    pub misfit_lines: Repeated,
    /// Whether bulk streams wait for a low-water mark.
    pub low_water: bool,
    /// Pause between the end of a session and the next one in its place.
    pub reconnect_delay: Duration,
    /// Whether sessions that are merely quiet may be ended to make room.
    pub sheds: bool,
    /// By leg, whether a peer was ever seen to answer a keepalive probe.
    pub probes: [ProbeAnswers; 2],
    /// How many sessions there are, those that wait for a place included.
    pub sessions: AtomicUsize,
    /// Lines about connects that failed, one for each [`ConnectFailure`].
    pub connect_lines: [Repeated; ConnectFailure::VARIANTS.len()],
    /// Lines about TLS that failed, for each leg one for each [`HandshakeFailure`].
    pub tls_lines: [[Repeated; HandshakeFailure::VARIANTS.len()]; 2],
    /// Why the session ended that was the last to give back its place, as a [`CloseReason`].
    pub last_end: AtomicU8,
}

/// What an error of a connected leg says. Only these of the peer, or of the way to it, are: anything
/// else is wrong with this host. The kernel knows none of the two of a layer.
fn fault_of(error: &io::Error) -> Fault {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, InvalidData, NetworkDown,
        NetworkUnreachable, TimedOut, UnexpectedEof,
    };
    match error.kind() {
        // Its peer has said that it failed.
        ConnectionAborted if error.raw_os_error().is_none() => Fault::Layer,
        ConnectionReset | ConnectionAborted | BrokenPipe => Fault::Reset,
        TimedOut => Fault::TimedOut,
        HostUnreachable | NetworkUnreachable | NetworkDown => Fault::Unreachable,
        UnexpectedEof => Fault::Truncated,
        InvalidData => Fault::Layer,
        _ if error.raw_os_error() == Some(libc::EHOSTDOWN) => Fault::Unreachable,
        _ => Fault::Local,
    }
}

/// Whether the peers of a listener answer keepalive probes at all, or something on the way drops
/// them.
#[derive(Debug, Default)]
pub struct ProbeAnswers(AtomicU8);

impl ProbeAnswers {
    const ANSWERED: u8 = 1;
    const WARNED: u8 = 2;

    fn note(&self, answers: u8) {
        if answers > 0 && self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(Self::ANSWERED, Ordering::Relaxed);
        }
    }

    /// True once, if none was ever answered.
    fn is_suspicious(&self) -> bool {
        let relaxed = Ordering::Relaxed;
        let exchanged = self.0.compare_exchange(0, Self::WARNED, relaxed, relaxed);
        exchanged.is_ok()
    }
}

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Says something before its upstream is dialled.
    Preamble,
    /// Waiting for a place (`limits.on_full`).
    Queued,
    /// Has its place, and has sent nothing yet (`upstream.dial: first_byte`).
    Mute,
    /// The upstream is being connected.
    Connecting,
    /// Both legs are up, and the handshake of TLS with the upstream is under way.
    Securing,
    /// Both legs are up.
    Open,
    /// Being ended.
    Closing,
    /// Being ended, and counted as refused.
    Refused,
}

/// One connection pair, as its task, the monitor and the admin endpoint share it.
#[derive(Debug)]
pub struct Session {
    /// Unique in the life of the process.
    pub id: u64,
    /// What it has in common with others.
    pub params: Arc<SessionParams>,
    counters: Counters,
    /// An order waits in the state: the only thing the task reads on each wake-up.
    ordered: AtomicBool,
    /// The monitor will observe it soon enough for a session that carries data.
    observed_soon: AtomicBool,
    /// How long it waited for a place, ms; 0 if it did not have to. Here it fills a gap of the record.
    queued_ms: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The client, in 20 bytes instead of the 32 of a `SocketAddr`.
    client: (IpAddr, u16),
    /// Descriptors of the legs while they are open; -1 otherwise.
    fds: [RawFd; 2],
    machine: Machine,
    /// When to observe next: the only valid entry of the monitor's queue. Before the first observation, its
    /// latest time.
    due: Time,
    /// The monitor has yet to put a leg under watch.
    watch_pending: bool,
    watch: Watch,
    /// The client said FIN while it waited.
    abandoned: bool,
    /// Boxed, since hardly any session has one.
    order: Option<Box<Close>>,
    waker: Option<Waker>,
    /// The endpoint that was dialled last.
    endpoint: Option<ActiveSession>,
    facts: Option<Box<Facts>>,
}

/// Of which legs keepalive and its companions are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Watch {
    None,
    /// It waits for a place, or for the upstream; or it did so until a moment ago.
    Downstream,
    Both,
}

fn aborted(reason: CloseReason) -> Close {
    Close {
        reason,
        how: CloseHow::Abort,
        evidence: None,
        silent_for: Span::ZERO,
    }
}

impl Session {
    /// A session that has just been accepted.
    #[must_use]
    pub fn new(id: u64, params: Arc<SessionParams>, client: SocketAddr, now: Time) -> Arc<Self> {
        Arc::new(Self {
            id,
            params,
            counters: Counters::default(),
            ordered: AtomicBool::new(false),
            observed_soon: AtomicBool::new(false),
            queued_ms: AtomicU32::new(0),
            state: Mutex::new(State {
                phase: Phase::Connecting,
                client: (client.ip(), client.port()),
                fds: [-1; 2],
                machine: Machine::accepted(now),
                due: Time::ms(u64::MAX),
                watch_pending: false,
                watch: Watch::None,
                abandoned: false,
                order: None,
                waker: None,
                endpoint: None,
                facts: None,
            }),
        })
    }

    /// Orders the session to end. The first order gives the reason; a harsher one leaves less time.
    pub fn order(&self, close: Close) {
        self.order_locked(&mut self.lock(), close);
    }

    /// True if it was the first order.
    fn order_locked(&self, state: &mut State, close: Close) -> bool {
        let is_first = state.order.is_none();
        match &mut state.order {
            Some(first) if close.how.is_harsher_than(first.how) => first.how = close.how,
            Some(_) => return false,
            None => state.order = Some(Box::new(close)),
        }
        self.ordered.store(true, Ordering::Release);
        if let Some(waker) = &state.waker {
            waker.wake_by_ref();
        }
        is_first
    }

    /// Whether it was ordered to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.lock().order.is_some()
    }

    fn take_order(&self) -> Poll<Close> {
        if !self.ordered.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Taken once; the flag stays up so that later orders are seen as too late.
        self.lock()
            .order
            .as_deref()
            .map_or(Poll::Pending, |close| Poll::Ready(*close))
    }

    /// An order was carried out as far as it goes for now; others may come.
    fn take_back_order(&self, state: &mut State) {
        state.order = None;
        self.ordered.store(false, Ordering::Release);
    }

    /// Whether RST at once was ordered.
    fn is_to_abort(&self) -> bool {
        let state = self.lock();
        let order = state.order.as_deref();
        order.is_some_and(|close| close.how == CloseHow::Abort)
    }

    /// Both legs are up.
    fn open(&self, upstream: RawFd, phase: Phase, now: Time) {
        let mut state = self.lock();
        state.fds[Leg::Upstream as usize] = upstream;
        state.machine.open(now);
        state.phase = phase;
        let took = now - state.machine.waits_since();
        drop(state);
        self.params.metrics.connected(took.into());
    }

    /// How long it waited for a place.
    fn queued(&self) -> Span {
        Span::ms(self.queued_ms.load(Ordering::Relaxed).into())
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.lock().client.into()
    }

    /// What it has moved so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.counters.traffic()
    }

    /// What a failed socket says about its leg.
    fn fault(&self, leg: Leg, error: &io::Error) -> Close {
        let fault = fault_of(error);
        if fault == Fault::Local {
            let leg = <&str>::from(leg);
            tracing::debug!(id = self.id, leg, "a socket failed on this host: {error}");
        }
        let mut state = self.lock();
        let after = sample::sample(state.fds[leg as usize]);
        state.machine.fault(sys::now(), leg, fault, after.as_ref())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place in the table; gives it back, and settles the books, once.
struct Entry {
    session: Arc<Session>,
    worker: Arc<Worker>,
    key: u32,
    settled: bool,
    introduced: bool,
}

impl Entry {
    fn new(session: Arc<Session>, worker: Arc<Worker>, downstream: RawFd) -> Self {
        session.lock().fds[Leg::Downstream as usize] = downstream;
        session.params.sessions.fetch_add(1, Ordering::Relaxed);
        let key = worker.table().insert(session.clone());
        Self {
            session,
            worker,
            key,
            settled: false,
            introduced: false,
        }
    }

    /// Tells the others how to wake the task, on its first poll. The waker of a task is always
    /// the same.
    fn introduce(&mut self, cx: &Context<'_>) {
        if !std::mem::replace(&mut self.introduced, true) {
            self.session.lock().waker = Some(cx.waker().clone());
        }
    }

    /// The same session in the table of another worker; this entry has nothing left to settle then.
    /// `None`: not now.
    fn move_to(&mut self, worker: Arc<Worker>) -> Option<Self> {
        let session = self.session.clone();
        let key = self.worker.unless_listed(|| {
            self.leave_table();
            worker.table().insert(session.clone())
        })?;
        self.settled = true;
        session.params.metrics.moved();
        let (watch_pending, due) = {
            let state = session.lock();
            (state.watch_pending, state.due)
        };
        if watch_pending {
            worker.table().watch_later(sys::now(), key, session.id);
        } else {
            worker.table().schedule(due, key);
        }
        Some(Self {
            session,
            worker,
            key,
            settled: false,
            introduced: false,
        })
    }

    /// Both legs are up: the machine's clocks start.
    fn open(&self, upstream: &LegStream, phase: Phase) {
        self.session
            .open(upstream.socket().raw_fd(), phase, sys::now());
        self.watch_soon();
    }

    /// Has the legs that are up put under watch once the session is old enough.
    fn watch_soon(&self) {
        let was_pending = std::mem::replace(&mut self.session.lock().watch_pending, true);
        if !was_pending {
            let (key, id) = (self.key, self.session.id);
            self.worker.table().watch_later(sys::now(), key, id);
        }
    }

    fn finish(&mut self, close: &Close) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let _until_settled = self.worker.coming();
        self.leave_table();
        self.session.params.sessions.fetch_sub(1, Ordering::Relaxed);
        self.session.settle(close);
    }

    fn leave_table(&self) {
        self.worker.table().remove(self.key);
        if self.worker.table().is_empty() {
            relay::close_spare_pipes();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Only a runtime that is torn down drops a session without a reason.
        self.finish(&aborted(CloseReason::Drain));
    }
}
