//! The task of a session: one hand-written future, because its size is paid for each idle
//! session. The stages that are rare or short live in boxes of their own.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use super::{Entry, Phase, Session, Table, Watch, aborted, closing};
use crate::config::Abandoned;
use crate::liveness::{Close, CloseReason, LEGS, Leg};
use crate::metrics::ConnectFailure;
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
    Admitted(TcpStream),
    Queued(Boxed<Result<(P, TcpStream), Close>>),
    Connecting(Boxed<Result<(Relay, [TcpStream; 2]), Close>>),
    Relaying(Relay, [TcpStream; 2]),
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
        table: Arc<Table>,
        downstream: TcpStream,
        admission: Admission<P>,
    ) -> Self {
        let entry = Entry::new(session, table, downstream.raw_fd());
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
                let both = [&legs[0], &legs[1]];
                let listed = (&*self.entry.table, self.entry.key);
                let end = match session.poll_relay(relay, both, listed, cx) {
                    Poll::Ready(end) => Some(end),
                    // A leg that is not read cannot tell that it failed. Most sessions are over
                    // or are read again before that matters.
                    Poll::Pending if session.is_old() && relay.is_deaf() => None,
                    Poll::Pending if relay.is_deaf() => {
                        session.deaf.store(true, Ordering::Relaxed);
                        return Poll::Pending;
                    }
                    Poll::Pending => match self.entry.table.elsewhere(session.id) {
                        Some(table) if relay.is_empty_handed() => {
                            return match self.entry.move_to(table) {
                                Some(entry) => Poll::Ready(self.leave_for(entry)),
                                None => Poll::Pending,
                            };
                        }
                        _ => return Poll::Pending,
                    },
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
    fn connect(&mut self, downstream: TcpStream) -> Stage<P> {
        let session = &self.entry.session;
        session.lock().phase = Phase::Connecting;
        let mut relay = Relay::new(session.params.low_water);
        let early =
            |upstream: &TcpStream| relay.try_early([&downstream, upstream], &session.counters);
        let cluster = &session.params.cluster;
        match cluster.connect(|endpoint| session.assign(endpoint), early) {
            Ok(Connect::Connected(upstream)) => {
                self.entry.shared().open(&upstream);
                Stage::Relaying(relay, [downstream, upstream])
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

    /// Ends the relay, at once where nothing has to be waited for. No `end`: goes on with the
    /// relay, watching for errors as well.
    fn end(&mut self, relay: Relay, legs: [TcpStream; 2], end: Option<Ended>) -> Stage<P> {
        if let Some(Ended::Relay(End::Finished { last })) = end
            && closing::finish_now(&self.entry.session, &legs, last)
        {
            let close = closing::finished();
            closing::drop_both(&self.entry.session, legs);
            return self.finish(&close);
        }
        let shared = self.entry.shared();
        Stage::Ending(Box::pin(async move {
            let mut relay = relay;
            let end = match end {
                Some(end) => end,
                None => watch_errors(&shared, &mut relay, [&legs[0], &legs[1]]).await,
            };
            closing::end(&shared.session, relay, legs, end).await
        }))
    }

    /// Goes on at another worker, as a task of its runtime. What comes meanwhile waits in the
    /// sockets: epoll says so when they are registered there.
    fn leave_for(&mut self, entry: Entry) -> Stage<P> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Relaying(relay, legs) => {
                let table = entry.table.clone();
                let place = self.place.take();
                let fds = legs.map(TcpStream::into_fd);
                table.post(Box::new(move || arrive(entry, place, relay, fds)));
                Stage::Over
            }
            other => other,
        }
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

/// A session begins its work at this thread's worker.
fn arrive<P: Send + Unpin + 'static>(
    mut entry: Entry,
    place: Option<P>,
    relay: Relay,
    fds: [OwnedFd; 2],
) {
    // A descriptor that cannot be registered is closed: nobody may look at it any more then.
    let known = std::mem::replace(&mut entry.session.lock().fds, [-1; 2]);
    let [downstream, upstream] = fds.map(TcpStream::new);
    match (downstream, upstream) {
        (Ok(downstream), Ok(upstream)) => {
            entry.session.lock().fds = known;
            drop(tokio::spawn(Task {
                entry,
                place,
                stage: Stage::Relaying(relay, [downstream, upstream]),
            }));
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
        self.entry.table.woken();
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
    downstream: TcpStream,
    wait: Boxed<Result<P, CloseReason>>,
) -> Result<(P, TcpStream), Close> {
    let place = tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        error = downstream.failed() => Err(session.client_failed(&error)),
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
async fn leaves(session: &Session, downstream: &TcpStream) {
    downstream.finished().await;
    if stays(session, downstream) {
        std::future::pending::<()>().await;
    }
}

/// Whether a client that has said FIN is to be served: it must have sent something.
fn stays(session: &Session, downstream: &TcpStream) -> bool {
    session.abandon();
    session.params.abandoned == Abandoned::Serve && !downstream.has_left()
}

/// What a boxed stage needs of the entry.
pub(super) struct Shared {
    pub session: Arc<Session>,
    pub table: Arc<Table>,
    pub key: u32,
}

/// Waits for a connect.
async fn connect(
    shared: Shared,
    relay: Relay,
    downstream: TcpStream,
    begun: Option<Attempt>,
) -> Result<(Relay, [TcpStream; 2]), Close> {
    let session = &shared.session;
    let cluster = &session.params.cluster;
    let connect = cluster.finish(begun, |endpoint| session.assign(endpoint));
    match while_wanted(session, &downstream, connect).await {
        Ok(upstream) => {
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
    downstream: &TcpStream,
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
        error = downstream.failed() => Err(session.client_failed(&error)),
        connected = connect => connected,
    }
}

/// Goes on with the relay, and notices failures of legs that are not read at present.
async fn watch_errors(shared: &Shared, relay: &mut Relay, legs: [&TcpStream; 2]) -> Ended {
    let session = &shared.session;
    let mut failed = [pin!(legs[0].failed()), pin!(legs[1].failed())];
    let mut half_closed = false;
    // Failures that do not matter: they are told once.
    let mut over = [false; 2];
    let listed = (&*shared.table, shared.key);
    poll_fn(|cx| {
        if let Poll::Ready(end) = session.poll_relay(relay, legs, listed, cx) {
            return Poll::Ready(end);
        }
        if relay.is_half_closed() && !std::mem::replace(&mut half_closed, true) {
            shared.hurry();
        }
        for leg in LEGS {
            if relay.unread(leg)
                && !over[leg as usize]
                && let Poll::Ready(error) = failed[leg as usize].as_mut().poll(cx)
            {
                over[leg as usize] = session.has_forgotten(relay, legs[leg as usize], leg, &error);
                if over[leg as usize] {
                    continue;
                }
                return Poll::Ready(Ended::Relay(End::Failed { leg, error }));
            }
        }
        Poll::Pending
    })
    .await
}

impl Shared {
    /// Both legs are up: the machine's clocks start.
    fn open(&self, upstream: &TcpStream) {
        self.session.open(upstream.raw_fd(), sys::now());
        self.watch_soon();
    }

    /// Has the legs that are up put under watch once the session is no longer young.
    fn watch_soon(&self) {
        let was_young = std::mem::replace(&mut self.session.lock().young, true);
        if !was_young {
            self.table.add_young(sys::now(), self.key, self.session.id);
        }
    }

    /// Has the monitor look at once: a clock has started to run. A young session is looked at
    /// soon enough.
    fn hurry(&self) {
        let now = sys::now();
        if self.session.hurry(now) {
            self.table.schedule(now, self.key);
        }
    }
}

impl Session {
    fn poll_relay(
        &self,
        relay: &mut Relay,
        legs: [&TcpStream; 2],
        (table, key): (&Table, u32),
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        if let Poll::Ready(close) = self.take_order() {
            return Poll::Ready(Ended::Ordered(close));
        }
        let before = self.counters.sent();
        let end = relay.poll(legs, &self.counters, cx);
        if self.counters.sent() != before && !self.looked_at.load(Ordering::Relaxed) {
            self.look_soon(table, key);
        }
        end.map(Ended::Relay)
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
        stream: &TcpStream,
        leg: Leg,
        error: &io::Error,
    ) -> bool {
        let said_fin = closing::is_after_fin(error)
            || relay.is_finished(leg)
            || self.lock().machine.said_fin(leg);
        let is_reset = matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET));
        let asked = || sample::sample(stream.raw_fd()).is_some_and(|s| s.probes > 0);
        said_fin && !relay.owes(leg) && closing::is_delivered(stream) && (!is_reset || asked())
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
