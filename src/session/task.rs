//! The task of a session: one hand-written future, because its size is paid for each idle
//! session. The stages that are rare or short live in boxes of their own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use super::opening::{self, Admission, Boxed, Client, Preamble};
use super::{Entry, Phase, Session, Table, Worker, aborted, closing, secure};
use crate::config::Dial;
use crate::liveness::{Close, CloseReason, LEGS, Leg};
use crate::net::leg::{DetachedLeg, LegStream};
use crate::net::sample;
use crate::net::stream::TcpStream;
use crate::relay::{End, Relay};
use crate::upstream::Connect;

/// Runs one session from its admission to its end.
pub struct Task<P> {
    entry: Entry,
    place: Option<P>,
    stage: Stage<P>,
}

enum Stage<P> {
    /// Between accept and dial.
    Opening(Boxed<'static, (Option<P>, Result<Client, Close>)>),
    /// Has its place, and has said what it had to say.
    Admitted(Client),
    Connecting(Boxed<'static, Result<(Relay, [LegStream; 2]), Close>>),
    /// Connected; the handshake of the upstream is under way.
    Securing(Boxed<'static, Result<(Relay, [LegStream; 2]), Close>>),
    Relaying(Relay, [LegStream; 2]),
    Ending(Boxed<'static, Close>),
    /// The books are closed; the place is kept for `reconnect_delay`.
    Leaving(Boxed<'static, ()>),
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
        Self::with_preambles(session, worker, downstream, admission, Vec::new())
    }

    /// The same for a client that has something to say before its upstream is dialled.
    #[must_use]
    pub fn with_preambles(
        session: Arc<Session>,
        worker: Arc<Worker>,
        downstream: LegStream,
        admission: Admission<P>,
        preambles: Vec<Arc<dyn Preamble>>,
    ) -> Self {
        let entry = Entry::new(session, worker, downstream.socket().raw_fd());
        let client = Client::from(downstream);
        let dial = entry.session.params.cluster.upstream().dial;
        let (place, stage) = match (admission, &preambles[..], dial) {
            (Admission::Now(place), [], Dial::Accept) => {
                entry.session.log_start();
                (Some(place), Stage::Admitted(client))
            }
            (admission, ..) => {
                let session = entry.session.clone();
                session.lock().phase = Phase::Preamble;
                entry.watch_soon();
                let opening = opening::open(session, client, admission, preambles);
                (None, Stage::Opening(Box::pin(opening)))
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
        entry.open(&legs[1], Phase::Open);
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
                Stage::Admitted(client) => self.connect(client),
                other => other,
            },
            Stage::Opening(opening) => {
                let (place, opened) = ready!(opening.as_mut().poll(cx));
                self.place = place;
                match opened {
                    Ok(client) => Stage::Admitted(client),
                    Err(close) => self.finish(&close),
                }
            }
            Stage::Connecting(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                Ok((relay, legs)) => self.connected(relay, legs),
                Err(close) => self.finish(&close),
            },
            Stage::Securing(securing) => match ready!(securing.as_mut().poll(cx)) {
                Ok((relay, legs)) => self.relay(relay, legs),
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
    fn connect(&mut self, mut client: Client) -> Stage<P> {
        let session = &self.entry.session;
        let address = {
            let mut state = session.lock();
            state.phase = Phase::Connecting;
            state.client.0
        };
        let cluster = &session.params.cluster;
        let is_asked = session.params.heartbeats[Leg::Upstream as usize].is_some();
        let is_layered = is_asked || cluster.tls().is_some();
        let mut relay = Relay::new(session.params.low_water);
        let greeting = session.greeting(&mut client);
        let Client {
            stream: downstream,
            unsent,
            ..
        } = client;
        let downstream = session.with_heartbeat(Leg::Downstream, downstream, &unsent);
        relay.begin_with(unsent, &session.counters);
        let early = |upstream: &TcpStream| {
            match relay.greet(upstream, &greeting) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                greeted => greeted?,
            }
            // What the service is told passes the layers of its leg.
            let took = !is_layered && relay.try_early(&downstream, upstream, &session.counters)?;
            Ok(took || !greeting.is_empty())
        };
        let connect = session
            .refuse_loop(&downstream)
            .and_then(|()| cluster.connect(address, |endpoint| session.assign(endpoint), early));
        match connect {
            Ok(Connect::Connected(upstream)) => {
                let legs = [downstream, session.upstream_leg(upstream)];
                self.connected(relay, legs)
            }
            Ok(Connect::Pending(dialling)) => {
                self.entry.watch_soon();
                let session = session.clone();
                let connect = opening::connect(session, relay, greeting, downstream, dialling);
                Stage::Connecting(Box::pin(connect))
            }
            Err(error) => {
                let close = session.cannot_connect(&error);
                session.turn_away(&close);
                self.finish(&close)
            }
        }
    }

    /// Both legs are up.
    fn connected(&mut self, relay: Relay, legs: [LegStream; 2]) -> Stage<P> {
        let session = &self.entry.session;
        if session.params.cluster.tls().is_none() {
            self.entry.open(&legs[1], Phase::Open);
            return self.relay(relay, legs);
        }
        self.entry.open(&legs[1], Phase::Securing);
        Stage::Securing(Box::pin(secure::upstream(session.clone(), relay, legs)))
    }

    /// Nothing but payload goes from here on.
    fn relay(&self, relay: Relay, [downstream, upstream]: [LegStream; 2]) -> Stage<P> {
        let session = &self.entry.session;
        let upstream = session.with_heartbeat(Leg::Upstream, upstream, &[]);
        Stage::Relaying(relay, [downstream, upstream])
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
        if self.counters.sent() != sent && !self.observed_soon.load(Ordering::Relaxed) {
            self.observe_soon(table, key);
        }
        if let Poll::Ready(end) = end {
            return Poll::Ready(Ended::Relay(end));
        }
        if relay.is_half_closed() && !half_closed {
            self.observe_now(table, key);
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

    /// Whether a peer that failed had said FIN and was owed nothing, and its RST only answers a
    /// keepalive probe, or the last words of a layer: it has closed, and forgotten the connection. That
    /// ends nothing.
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
        // With the FIN behind them.
        let last_words = stream.last_words() + 1;
        let answers_them = || {
            let unacknowledged = stream.unacknowledged();
            stream.last_words() > 0 && unacknowledged.is_some_and(|n| (1..=last_words).contains(&n))
        };
        said_fin
            && !relay.owes(leg)
            && (answers_them() || (stream.is_delivered() && (!is_reset || asked())))
    }
}
