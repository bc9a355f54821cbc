//! The task of a session: one hand-written future, because its size is paid for each idle
//! session. The stages that are rare or short live in boxes of their own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use super::{Entry, Phase, Session, Table, Watch, Worker, aborted, closing};
use crate::config::Abandoned;
use crate::liveness::{Close, CloseReason, LEGS, Leg};
use crate::metrics::ConnectFailure;
use crate::net::leg::{DetachedLeg, LegStream};
use crate::net::stream::TcpStream;
use crate::net::{options, sample};
use crate::relay::{End, Relay};
use crate::sys;
use crate::upstream::{ActiveSession, Attempt, Connect};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Whether a client has its place; `P` is the place, given back when the session has ended.
pub enum Admission<P> {
    /// It has.
    Now(P),
    /// It has to wait; ends with the place, or with the reason why there is none.
    Wait(Boxed<Result<P, CloseReason>>),
}

/// Runs one session from its admission to its end.
pub struct Task<P> {
    entry: Entry,
    place: Option<P>,
    stage: Stage<P>,
}

enum Stage<P> {
    /// Has its place.
    Admitted(LegStream),
    Queued(Boxed<Result<(P, LegStream), Close>>),
    Connecting(Boxed<Result<(Relay, [LegStream; 2]), Close>>),
    Relaying(Relay, [LegStream; 2]),
    Ending(Boxed<Close>),
    /// The books are closed; the place is kept for `reconnect_delay`.
    Leaving(Boxed<()>),
    Over,
}

/// Why the relay of a session ended.
pub(super) enum Ended {
    Relay(End),
    Ordered(Close),
}

impl<P: Send + Unpin + 'static> Task<P> {
    /// Takes the session into the table.
    #[must_use]
    pub fn new(
        session: Arc<Session>,
        worker: Arc<Worker>,
        downstream: LegStream,
        admission: Admission<P>,
    ) -> Self {
        let entry = Entry::new(session, worker, downstream.socket().raw_fd());
        let (place, stage) = match admission {
            Admission::Now(place) => (Some(place), Stage::Admitted(downstream)),
            Admission::Wait(wait) => {
                let shared = entry.shared();
                shared.session.lock().phase = Phase::Queued;
                shared.watch_soon();
                let queued = queue(shared.session, downstream, wait);
                (None, Stage::Queued(Box::pin(queued)))
            }
        };
        Self {
            entry,
            place,
            stage,
        }
    }

    /// A session whose legs are both up.
    #[cfg(test)]
    pub(super) fn open(session: Arc<Session>, worker: Arc<Worker>, legs: [LegStream; 2]) -> Self
    where
        P: Default,
    {
        let entry = Entry::new(session, worker, legs[0].socket().raw_fd());
        entry.shared().open(&legs[1]);
        let relay = Relay::new(entry.session.params.low_water);
        Self {
            entry,
            place: Some(P::default()),
            stage: Stage::Relaying(relay, legs),
        }
    }

    /// Leaves a stage for the next; `None` while there is nothing to do.
    fn poll_stage(&mut self, cx: &mut Context<'_>) -> Poll<Stage<P>> {
        let session = &self.entry.session;
        Poll::Ready(match &mut self.stage {
            Stage::Admitted(_) => match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Admitted(downstream) => self.connect(downstream),
                other => other,
            },
            Stage::Queued(queued) => match ready!(queued.as_mut().poll(cx)) {
                Ok((place, downstream)) => {
                    self.place = Some(place);
                    Stage::Admitted(downstream)
                }
                Err(close) => self.finish(&close),
            },
            Stage::Connecting(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                Ok((relay, legs)) => Stage::Relaying(relay, legs),
                Err(close) => self.finish(&close),
            },
            Stage::Relaying(relay, legs) => {
                let listed = (self.entry.worker.table(), self.entry.key);
                let end = match session.poll_relay(relay, legs, listed, cx) {
                    Poll::Ready(end) => end,
                    Poll::Pending => {
                        let Some(worker) = self.entry.worker.migration(session.id) else {
                            return Poll::Pending;
                        };
                        match relay.release(legs, &session.counters) {
                            Ok(true) => return self.leave_for(worker),
                            Ok(false) => return Poll::Pending,
                            Err(end) => Ended::Relay(end),
                        }
                    }
                };
                match std::mem::replace(&mut self.stage, Stage::Over) {
                    Stage::Relaying(relay, legs) => self.end(relay, legs, end),
                    other => other,
                }
            }
            Stage::Ending(ending) => {
                let close = ready!(ending.as_mut().poll(cx));
                self.finish(&close)
            }
            Stage::Leaving(pause) => {
                ready!(pause.as_mut().poll(cx));
                Stage::Over
            }
            Stage::Over => Stage::Over,
        })
    }

    /// Connects; without waiting for anything where the client has spoken already and the
    /// upstream takes it at once.
    fn connect(&mut self, downstream: LegStream) -> Stage<P> {
        let session = &self.entry.session;
        session.lock().phase = Phase::Connecting;
        let mut relay = Relay::new(session.params.low_water);
        let early =
            |upstream: &TcpStream| relay.try_early(&downstream, upstream, &session.counters);
        let cluster = &session.params.cluster;
        match cluster.connect(|endpoint| session.assign(endpoint), early) {
            Ok(Connect::Connected(upstream)) => {
                let legs = [downstream, upstream.into()];
                self.entry.shared().open(&legs[1]);
                Stage::Relaying(relay, legs)
            }
            Ok(Connect::Pending(begun)) => {
                let shared = self.entry.shared();
                shared.watch_soon();
                Stage::Connecting(Box::pin(connect(shared, relay, downstream, begun)))
            }
            Err(error) => {
                let close = session.cannot_connect(&error);
                session.turn_away(&close);
                drop(downstream);
                self.finish(&close)
            }
        }
    }

    /// Ends the relay, at once where nothing has to be waited for.
    fn end(&mut self, relay: Relay, legs: [LegStream; 2], end: Ended) -> Stage<P> {
        let session = &self.entry.session;
        if let Ended::Relay(End::Finished { last }) = end
            && closing::finish_now(session, &legs, last)
        {
            let close = closing::finished();
            closing::drop_both(session, legs);
            return self.finish(&close);
        }
        let session = session.clone();
        Stage::Ending(Box::pin(async move {
            closing::end(&session, relay, legs, end).await
        }))
    }

    /// Goes on at another worker, as a task of its runtime, if it may leave its table now. What comes
    /// meanwhile waits in the sockets: epoll says so when they are registered there.
    fn leave_for(&mut self, worker: Arc<Worker>) -> Poll<Stage<P>> {
        let Some(entry) = self.entry.move_to(worker) else {
            return Poll::Pending;
        };
        Poll::Ready(match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Relaying(relay, legs) => {
                arrive(entry, self.place.take(), relay, legs.map(LegStream::detach));
                Stage::Over
            }
            other => other,
        })
    }

    /// Closes the books and gives the place back.
    fn finish(&mut self, close: &Close) -> Stage<P> {
        self.entry.finish(close);
        let Some(place) = self.place.take() else {
            return Stage::Over;
        };
        let params = &self.entry.session.params;
        let reason = close.reason as u8;
        if params.reconnect_delay.is_zero() {
            // Whoever gets the place wants to know why it is free.
            params.last_end.store(reason, Ordering::Relaxed);
            drop(place);
            return Stage::Over;
        }
        let params = params.clone();
        Stage::Leaving(Box::pin(async move {
            tokio::time::sleep(params.reconnect_delay).await;
            params.last_end.store(reason, Ordering::Relaxed);
            drop(place);
        }))
    }
}

/// Goes on at the worker that the session is with now.
fn arrive<P: Send + Unpin + 'static>(
    mut entry: Entry,
    place: Option<P>,
    relay: Relay,
    legs: [DetachedLeg; 2],
) {
    // A descriptor that cannot be registered is closed: nobody may look at it any more then.
    let known = std::mem::replace(&mut entry.session.lock().fds, [-1; 2]);
    let worker = entry.worker.clone();
    let _registers_there = worker.enter();
    let [downstream, upstream] = legs.map(DetachedLeg::attach);
    match (downstream, upstream) {
        (Ok(downstream), Ok(upstream)) => {
            entry.session.lock().fds = known;
            worker.spawn(Task {
                entry,
                place,
                stage: Stage::Relaying(relay, [downstream, upstream]),
            });
        }
        // The drop of its sockets is an RST.
        _ => {
            LEGS.into_iter()
                .for_each(|leg| entry.session.params.metrics.reset_sent(leg));
            entry.finish(&aborted(CloseReason::LocalError));
        }
    }
}

impl<P: Send + Unpin + 'static> Future for Task<P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.entry.introduce(cx);
        self.entry.worker.woken();
        loop {
            self.stage = ready!(self.poll_stage(cx));
            if matches!(self.stage, Stage::Over) {
                return Poll::Ready(());
            }
        }
    }
}

/// Waits for a place; what the client sends meanwhile stays in its socket.
async fn queue<P>(
    session: Arc<Session>,
    downstream: LegStream,
    wait: Boxed<Result<P, CloseReason>>,
) -> Result<(P, LegStream), Close> {
    let place = tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        error = downstream.socket().failed() => Err(session.client_failed(&error)),
        () = leaves(&session, &downstream) => Err(aborted(CloseReason::ConnectCancelled)),
        place = wait => place.map_err(aborted),
    };
    // A FIN may have come in this moment.
    let place = match place {
        Ok(_) if session.client_said_fin() && !stays(&session, &downstream) => {
            Err(aborted(CloseReason::ConnectCancelled))
        }
        place => place,
    };
    match place {
        Ok(place) => {
            let mut state = session.lock();
            let waited = (sys::now() - session.started).as_millis().max(1);
            state.queued_ms = u32::try_from(waited).unwrap_or(u32::MAX);
            drop(state);
            Ok((place, downstream))
        }
        Err(close) => {
            session.turn_away(&close);
            Err(close)
        }
    }
}

/// Returns when the client has said FIN and does not stay in the queue.
async fn leaves(session: &Session, downstream: &LegStream) {
    downstream.socket().finished().await;
    if stays(session, downstream) {
        std::future::pending::<()>().await;
    }
}

/// Whether a client that has said FIN is to be served: it must have sent something.
fn stays(session: &Session, downstream: &LegStream) -> bool {
    session.abandon();
    session.params.abandoned == Abandoned::Serve && !downstream.socket().has_left()
}

/// What a boxed stage needs of the entry.
pub(super) struct Shared {
    pub session: Arc<Session>,
    pub worker: Arc<Worker>,
    pub key: u32,
}

/// Waits for a connect.
async fn connect(
    shared: Shared,
    relay: Relay,
    downstream: LegStream,
    begun: Option<Attempt>,
) -> Result<(Relay, [LegStream; 2]), Close> {
    let session = &shared.session;
    let cluster = &session.params.cluster;
    let connect = cluster.finish(begun, |endpoint| session.assign(endpoint));
    match while_wanted(session, &downstream, connect).await {
        Ok(upstream) => {
            let upstream = LegStream::from(upstream);
            shared.open(&upstream);
            Ok((relay, [downstream, upstream]))
        }
        Err(close) => {
            shared.session.turn_away(&close);
            Err(close)
        }
    }
}

/// Waits for a connect for as long as the client and the operator allow. A client that does not answer
/// then is waited for, so that none of its bytes goes on if it has gone.
async fn while_wanted(
    session: &Session,
    downstream: &LegStream,
    connect: impl Future<Output = io::Result<TcpStream>>,
) -> Result<TcpStream, Close> {
    let connect = async {
        let connected = connect.await;
        let connected = connected.map_err(|error| session.cannot_connect(&error))?;
        session.until_client_answers().await;
        Ok(connected)
    };
    tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        error = downstream.socket().failed() => Err(session.client_failed(&error)),
        connected = connect => connected,
    }
}

impl Shared {
    /// Both legs are up: the machine's clocks start.
    fn open(&self, upstream: &LegStream) {
        self.session.open(upstream.socket().raw_fd(), sys::now());
        self.watch_soon();
    }

    /// Has the legs that are up put under watch once the session is no longer young.
    fn watch_soon(&self) {
        let was_young = std::mem::replace(&mut self.session.lock().young, true);
        if !was_young {
            self.worker
                .table()
                .add_young(sys::now(), self.key, self.session.id);
        }
    }
}

impl Session {
    fn poll_relay(
        &self,
        relay: &mut Relay,
        legs: &mut [LegStream; 2],
        (table, key): (&Table, u32),
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        if let Poll::Ready(close) = self.take_order() {
            return Poll::Ready(Ended::Ordered(close));
        }
        let (sent, half_closed) = (self.counters.sent(), relay.is_half_closed());
        let end = relay.poll(legs, &self.counters, cx);
        if self.counters.sent() != sent && !self.looked_at.load(Ordering::Relaxed) {
            self.look_soon(table, key);
        }
        if let Poll::Ready(end) = end {
            return Poll::Ready(Ended::Relay(end));
        }
        if relay.is_half_closed() && !half_closed {
            self.look_now(table, key);
        }
        self.poll_unread(relay, legs, cx).map(Ended::Relay)
    }

    /// Notices the failure of a leg that is not read at present.
    fn poll_unread(&self, relay: &Relay, legs: &[LegStream; 2], cx: &mut Context<'_>) -> Poll<End> {
        for leg in LEGS {
            let stream = &legs[leg as usize];
            if relay.unread(leg)
                && let Poll::Ready(error) = stream.socket().poll_failed(cx)
                && !self.has_forgotten(relay, stream, leg, &error)
            {
                return Poll::Ready(End::Failed { leg, error });
            }
        }
        Poll::Pending
    }

    /// What the failure of a client's socket says before both legs are up.
    fn client_failed(&self, error: &io::Error) -> Close {
        match self.fault(Leg::Downstream, error) {
            close if close.reason == CloseReason::DownstreamReset => {
                aborted(CloseReason::ConnectCancelled)
            }
            dead => dead,
        }
    }

    /// The client has said FIN while it waited. It is left alone from now on.
    fn abandon(&self) {
        self.refresh(sys::now());
        let mut state = self.lock();
        state.abandoned = true;
        if std::mem::replace(&mut state.watch, Watch::None) != Watch::None {
            let fd = state.fds[Leg::Downstream as usize];
            self.check_option(options::leave_alone(fd));
        }
    }

    fn assign(&self, endpoint: ActiveSession) {
        self.lock().endpoint = Some(endpoint);
    }

    /// Whether a peer that failed had said FIN and was owed nothing, and its RST only answers a
    /// keepalive probe: it has closed, and forgotten the connection. That ends nothing.
    fn has_forgotten(
        &self,
        relay: &Relay,
        stream: &LegStream,
        leg: Leg,
        error: &io::Error,
    ) -> bool {
        let said_fin = closing::is_after_fin(error)
            || relay.is_finished(leg)
            || self.lock().machine.said_fin(leg);
        let is_reset = matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET));
        let asked = || sample::sample(stream.socket().raw_fd()).is_some_and(|s| s.probes > 0);
        said_fin && !relay.owes(leg) && stream.is_delivered() && (!is_reset || asked())
    }

    fn cannot_connect(&self, error: &io::Error) -> Close {
        let (reason, failure) = match error.kind() {
            io::ErrorKind::TimedOut => (CloseReason::ConnectTimeout, ConnectFailure::Timeout),
            io::ErrorKind::ConnectionRefused => {
                (CloseReason::ConnectRefused, ConnectFailure::Refused)
            }
            io::ErrorKind::AddrNotAvailable => {
                (CloseReason::LocalError, ConnectFailure::SourcePorts)
            }
            _ if is_local(error) => (CloseReason::LocalError, ConnectFailure::Failed),
            _ => (CloseReason::ConnectFailed, ConnectFailure::Failed),
        };
        let params = &self.params;
        params.metrics.connect_failed(failure);
        if params.connect_lines[failure as usize].begin() {
            let advice = advice(error);
            let upstream = match &self.lock().endpoint {
                Some(endpoint) => endpoint.address().to_string(),
                None => params.cluster.upstream().address.to_string(),
            };
            tracing::warn!(
                listener = &*params.name,
                upstream,
                reason = <&str>::from(reason),
                "cannot connect to the upstream: {error}{advice}"
            );
            let params = params.clone();
            tokio::spawn(async move {
                let lines = &params.connect_lines[failure as usize];
                let upstream = &params.cluster.upstream().address;
                let write = |more| {
                    tracing::warn!(
                        listener = &*params.name,
                        %upstream,
                        reason = <&str>::from(reason),
                        "cannot connect to the upstream: {more} more in the last 10 s"
                    );
                };
                lines.sum_up(write).await;
            });
        }
        aborted(reason)
    }

    /// A client that was not served is about to be reset, unless it has aborted itself.
    fn turn_away(&self, close: &Close) {
        self.lock().fds = [-1; 2];
        if close.reason != CloseReason::ConnectCancelled {
            self.params.metrics.reset_sent(Leg::Downstream);
        }
    }
}

/// Whether this host ran out of something; the upstream has no part in it.
fn is_local(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(
        code,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

/// What helps.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "; no descriptor is left: raise `ulimit -n` (systemd: LimitNOFILE=) or lower \
             limits.max_connections"
        }
        Some(libc::EADDRNOTAVAIL) => {
            "; no local port is left for that address (sysctl net.ipv4.ip_local_port_range), or no \
             local address leads to it"
        }
        _ => "",
    }
}
