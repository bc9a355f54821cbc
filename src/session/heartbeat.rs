//! The layer that asks the peer of a leg inside its connection, and what it has in common with the monitor.
//!
//! All that the peer is told and says passes here. When the monitor wants it asked, the layer puts the
//! question between two messages, and takes the answer out of what is heard: see [`crate::heartbeat`].

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};

use super::{Session, SessionParams};
use crate::heartbeat::{Heard, Heartbeat, OpaqueCause, State};
use crate::liveness::{Leg, Time};
use crate::net::leg::{Layer, LegStream, Wire};
use crate::net::sample;
use crate::sys;

/// What the layer and the monitor tell each other.
#[derive(Debug, Default)]
pub(super) struct Cell {
    wanted: AtomicBool,
    is_given_up: AtomicBool,
    /// An index of [`WORDS`], and flags.
    state: AtomicU32,
    answers: AtomicU32,
    /// A [`Time`] in ms, and 1: nothing is 0.
    asked_at: AtomicU64,
    answered_at: AtomicU64,
    /// Where in the stream to the peer the last question ends: never less.
    end: AtomicU64,
}

/// What can be done now, in a word; `state` has its place here.
const WORDS: [&str; 5] = ["starting", "ready", "busy", "asked", "opaque"];
const STARTING: u32 = 0;
const OPAQUE: u32 = 4;
const WORD: u32 = 0xff;
/// The peer owes an answer to somebody else.
const OWES: u32 = 0x100;
/// Both directions stand between two messages, and nothing is owed.
const BOUNDARY: u32 = 0x200;

impl Cell {
    /// Has the peer asked at the next opportunity, which may be now: the task is to be woken.
    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// The question was unanswered for too long, and no other one follows soon: the task is to be woken.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// What can be done now, in a word.
    pub(super) fn word(&self) -> &'static str {
        WORDS[(self.state() & WORD) as usize]
    }

    /// Whether the conversation is followed; if so, whether it can end here without cutting anything.
    pub(super) fn boundary(&self) -> Option<bool> {
        let state = self.state();
        let is_followed = ![STARTING, OPAQUE].contains(&(state & WORD));
        is_followed.then_some(state & BOUNDARY != 0)
    }

    /// Whether the peer owes an answer to somebody else.
    pub(super) fn owes(&self) -> bool {
        self.state() & OWES != 0
    }

    /// Answers so far.
    pub(super) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Since when an answer is waited for.
    pub(super) fn waits_since(&self) -> Option<Time> {
        time(&self.asked_at)
    }

    /// Whether the peer's kernel, which has acknowledged so many bytes, has the question whose answer is waited for.
    pub(super) fn has_question(&self, acked: u64) -> bool {
        self.waits_since().is_some() && acked >= self.end.load(Ordering::Relaxed)
    }

    /// When the last answer came.
    pub(super) fn answered_at(&self) -> Option<Time> {
        time(&self.answered_at)
    }

    fn state(&self) -> u32 {
        self.state.load(Ordering::Relaxed)
    }
}

fn take(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Acquire)
}

fn time(of: &AtomicU64) -> Option<Time> {
    let ms = of.load(Ordering::Relaxed).checked_sub(1)?;
    Some(Time::ms(ms))
}

fn set(to: &AtomicU64, time: Option<Time>) {
    let ms = time.map_or(0, |time| time.as_millis() + 1);
    to.store(ms, Ordering::Relaxed);
}

/// The layer, over another one or over the socket.
#[derive(Debug)]
struct Asked {
    below: Option<Box<dyn Layer>>,
    heartbeat: Heartbeat,
    leg: Leg,
    params: Arc<SessionParams>,
    cell: Arc<Cell>,
    /// What is left of a question.
    question: Vec<u8>,
    /// It is on its way, and not all of it is in the socket.
    is_asking: bool,
    /// Nothing more is told.
    is_finished: bool,
    /// Whose payload waits until the question was answered.
    waits: Option<Waker>,
    /// What is to be read instead of what came, and how much of it was.
    out: Vec<u8>,
    read: usize,
    /// What comes after it.
    end: Option<io::Result<usize>>,
}

impl Asked {
    fn read_below(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.below {
            Some(layer) => layer.poll_read(wire, cx, buf),
            None => wire.poll_read(cx, buf),
        }
    }

    fn flush_below(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.below {
            Some(layer) => layer.poll_flush(wire, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn begin_question(&mut self) {
        if take(&self.cell.is_given_up) {
            self.heartbeat.give_up();
            self.publish();
        }
        let wanted = take(&self.cell.wanted);
        if !wanted || self.is_finished || !self.question.is_empty() {
            return;
        }
        self.heartbeat.give_up();
        let token = RandomState::new().hash_one(());
        if let Some(question) = self.heartbeat.ask(token) {
            self.question = question;
            self.is_asking = true;
        }
        self.publish();
    }

    /// What comes next stands behind the question.
    fn poll_question(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.question.is_empty() {
            let written = write_below(&mut self.below, wire, cx, &self.question);
            let n = ready!(written)?;
            self.question.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    fn end_question(&mut self, wire: &Wire) {
        if std::mem::take(&mut self.is_asking) {
            self.params.metrics.heartbeat_sent(self.leg);
            let is_waited_for = self.heartbeat.state() == State::Asked;
            let fd = wire.raw_fd();
            // In this order an acknowledgement in between makes it too much.
            let queued = sys::sockopt::send_queue_bytes(fd).unwrap_or(0);
            let acked = sample::sample(fd).map_or(u64::MAX, |sample| sample.bytes_acked);
            let end = acked.saturating_add(queued.into());
            self.cell.end.store(end, Ordering::Relaxed);
            set(&self.cell.asked_at, is_waited_for.then(sys::now));
        }
    }

    /// Reads what stands in place of what came, then the end.
    fn take_out(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let rest = &self.out[self.read..];
        if rest.is_empty() {
            return self.end.take();
        }
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.read += n;
        if self.read == self.out.len() {
            (self.out, self.read) = (Vec::new(), 0);
        }
        Some(Ok(n))
    }

    /// Tells the monitor what has changed.
    fn publish(&mut self) {
        let state = self.heartbeat.state();
        let word = match state {
            State::Starting => STARTING,
            State::Ready => 1,
            State::Busy => 2,
            State::Asked => 3,
            State::Opaque(_) => OPAQUE,
        };
        let owes = if self.heartbeat.owes() { OWES } else { 0 };
        let boundary = match self.heartbeat.at_boundary() && self.question.is_empty() {
            true => BOUNDARY,
            false => 0,
        };
        let before = self
            .cell
            .state
            .swap(word | owes | boundary, Ordering::Relaxed);
        if let State::Opaque(cause) = state
            && before & WORD != OPAQUE
        {
            set(&self.cell.asked_at, None);
            self.became_opaque(cause);
        }
        self.note_answers();
        if !self.heartbeat.must_wait()
            && let Some(waits) = self.waits.take()
        {
            waits.wake();
        }
    }

    fn note_answers(&self) {
        let counts = self.heartbeat.counts();
        let before = self.cell.answers.load(Ordering::Relaxed);
        let new = (counts.answered as u32).wrapping_sub(before);
        if new == 0 {
            return;
        }
        let now = sys::now();
        let took = self.cell.waits_since().map(|asked| now - asked);
        let in_time = self.heartbeat.state() != State::Asked;
        for _ in 0..new {
            self.params.metrics.heartbeat_answered(self.leg);
        }
        if let Some(took) = took.filter(|_| in_time) {
            self.params.metrics.heartbeat_took(self.leg, took.into());
            set(&self.cell.asked_at, None);
        }
        set(&self.cell.answered_at, Some(now));
        self.cell
            .answers
            .store(counts.answered as u32, Ordering::Relaxed);
    }

    fn became_opaque(&self, cause: OpaqueCause) {
        if cause != OpaqueCause::Misfit {
            let cause: &str = cause.into();
            tracing::debug!(
                listener = &*self.params.name,
                cause,
                "no more heartbeats in this session"
            );
            return;
        }
        self.params.metrics.heartbeat_misfit(self.leg);
        if !self.params.misfit_lines.begin() {
            return;
        }
        let leg: &str = self.leg.into();
        tracing::warn!(
            listener = &*self.params.name,
            leg,
            "something else than the answer to a heartbeat came, and was passed on; nothing is asked any more \
             in this session. Is liveness.heartbeat.profile the protocol that is spoken?"
        );
        let params = self.params.clone();
        tokio::spawn(async move {
            let write = |more| {
                tracing::warn!(
                    listener = &*params.name,
                    "something else than the answer to a heartbeat came: {more} more in the last 10 s"
                );
            };
            params.misfit_lines.sum_up(write).await;
        });
    }
}

fn write_below(
    below: &mut Option<Box<dyn Layer>>,
    wire: &mut Wire,
    cx: &mut Context<'_>,
    buf: &[u8],
) -> Poll<io::Result<usize>> {
    match below {
        Some(layer) => layer.poll_write(wire, cx, buf),
        None => wire.poll_write(cx, buf),
    }
}

impl Layer for Asked {
    fn poll_read(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(read) = self.take_out(buf) {
                return Poll::Ready(read);
            }
            let n = match ready!(self.read_below(wire, cx, buf)) {
                Ok(n @ 1..) => n,
                // What was held is no answer, and comes before the end.
                end => {
                    self.heartbeat.finish(&mut self.out);
                    self.publish();
                    self.end = Some(end);
                    continue;
                }
            };
            let heard = self.heartbeat.heard(&buf[..n], &mut self.out);
            self.publish();
            if heard == Heard::All {
                return Poll::Ready(Ok(n));
            }
        }
    }

    fn poll_write(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_question(wire, cx))?;
        if self.heartbeat.must_wait() {
            // Where the question was given up, another one may take its place.
            ready!(self.poll_flush(wire, cx))?;
            if self.heartbeat.must_wait() {
                self.waits = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let n = ready!(write_below(&mut self.below, wire, cx, buf))?;
        self.heartbeat.told(&buf[..n]);
        self.publish();
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.begin_question();
        ready!(self.poll_question(wire, cx))?;
        ready!(self.flush_below(wire, cx))?;
        self.end_question(wire);
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The peer may answer what was asked, or end its stream, too.
        self.is_finished = true;
        ready!(self.poll_flush(wire, cx))?;
        set(&self.cell.asked_at, None);
        match &mut self.below {
            Some(layer) => layer.poll_finish(wire, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn is_flushed(&self) -> bool {
        self.question.is_empty() && self.below.as_ref().is_none_or(|layer| layer.is_flushed())
    }

    fn buffered(&self) -> usize {
        let below = self.below.as_ref().map_or(0, |layer| layer.buffered());
        self.out.len() - self.read + self.heartbeat.held() + below
    }
}

impl Session {
    /// The leg, with the layer that asks its peer where that is wanted. `heard`: what was read from it before.
    pub(super) fn with_heartbeat(&self, leg: Leg, stream: LegStream, heard: &[u8]) -> LegStream {
        let Some(protocol) = self.params.heartbeats[leg as usize].as_ref() else {
            return stream;
        };
        let Some(profile) = protocol.profile(leg) else {
            return stream;
        };
        let mut heartbeat = Heartbeat::new(profile);
        // Nothing is due, so nothing is held back.
        let _all = heartbeat.heard(heard, &mut Vec::new());
        let cell = Arc::<Cell>::default();
        self.lock().begin_heartbeat(leg, cell.clone());
        let params = self.params.clone();
        stream.with_layer(|below| {
            let mut layer = Asked {
                below,
                heartbeat,
                leg,
                params,
                cell,
                question: Vec::new(),
                is_asking: false,
                is_finished: false,
                waits: None,
                out: Vec::new(),
                read: 0,
                end: None,
            };
            layer.publish();
            Box::new(layer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream as StdStream};
    use std::time::Duration;

    use super::super::tests::{ended, pair, params};
    use super::*;
    use crate::heartbeat::profiles::Protocol;
    use crate::heartbeat::profiles::custom::Description;
    use crate::heartbeat::profiles::modbus::Register;
    use crate::liveness::{CloseReason, Span};
    use crate::session::{Balancer, Task, monitor};

    /// Takes a byte, then waits, and says `bye` at the end.
    #[derive(Debug, Default)]
    struct Slow {
        waits: bool,
        said: usize,
    }

    impl Layer for Slow {
        fn poll_read(
            &mut self,
            wire: &mut Wire,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            wire.poll_read(cx, &mut buf[..1])
        }

        fn poll_write(
            &mut self,
            wire: &mut Wire,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.waits = !self.waits;
            if self.waits {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            wire.poll_write(cx, &buf[..1])
        }

        fn poll_flush(&mut self, _: &mut Wire, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_finish(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            while self.said < 3 {
                self.said += ready!(wire.poll_write(cx, &b"bye"[self.said..]))?;
            }
            Poll::Ready(Ok(()))
        }

        fn is_flushed(&self) -> bool {
            true
        }

        fn buffered(&self) -> usize {
            0
        }
    }

    /// A leg whose peer is asked by lines, and that peer.
    struct Rig {
        session: Arc<Session>,
        leg: LegStream,
        peer: StdStream,
    }

    impl Rig {
        fn new(below: impl FnOnce(LegStream) -> LegStream) -> Self {
            Self::speaking(Protocol::Custom(Description::default()), below)
        }

        fn speaking(protocol: Protocol, below: impl FnOnce(LegStream) -> LegStream) -> Self {
            let (ours, peer) = pair();
            let address = peer.0.local_addr().unwrap();
            let mut params = params(address);
            params.heartbeats[1] = Some(protocol);
            let session = Session::new(1, Arc::new(params), address, sys::now());
            let leg = session.with_heartbeat(Leg::Upstream, below(ours.into()), &[]);
            Self {
                session,
                leg,
                peer: peer.0,
            }
        }

        fn cell(&self) -> Arc<Cell> {
            self.session
                .lock()
                .asked(Leg::Upstream)
                .unwrap()
                .cell
                .clone()
        }

        async fn write(&mut self, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                let n = poll_fn(|cx| self.leg.poll_write(cx, bytes)).await.unwrap();
                bytes = &bytes[n..];
            }
        }

        async fn flush(&mut self) {
            poll_fn(|cx| self.leg.poll_flush(cx)).await.unwrap();
        }

        /// What is read within a moment.
        async fn read(&mut self) -> Option<Vec<u8>> {
            let mut buf = [0; 100];
            let read = poll_fn(|cx| self.leg.poll_read(cx, &mut buf));
            let n = tokio::time::timeout(Duration::from_millis(100), read).await;
            n.ok().map(|n| buf[..n.unwrap()].to_vec())
        }

        async fn read_exact(&mut self, n: usize) -> Vec<u8> {
            let mut all = Vec::new();
            while all.len() < n {
                all.extend(self.read().await.expect("more"));
            }
            all
        }

        fn hear(&mut self, bytes: &[u8]) {
            let mut heard = vec![0; bytes.len()];
            self.peer.read_exact(&mut heard).unwrap();
            assert_eq!(heard, bytes);
        }

        /// One exchange, then a question.
        async fn ask(&mut self) {
            self.write(b"hello\n").await;
            self.flush().await;
            self.hear(b"hello\n");
            self.peer.write_all(b"welcome\n").unwrap();
            assert_eq!(self.read_exact(8).await, b"welcome\n");
            self.cell().want();
            self.flush().await;
            self.hear(b"PING\r\n");
            assert_eq!(self.cell().word(), "asked");
        }
    }

    #[tokio::test]
    async fn an_answer_is_taken_out_and_nothing_is_read_in_its_place() {
        let mut rig = Rig::new(|leg| leg);
        rig.cell().want();
        rig.flush().await;
        rig.ask().await;
        assert!(rig.cell().waits_since().is_some());
        // Of 12 bytes, and a SYN; an acknowledgement meanwhile can double them.
        assert!(!rig.cell().has_question(11) && rig.cell().has_question(25));
        rig.peer.write_all(b"PONG\r\n").unwrap();
        assert_eq!(rig.read().await, None, "no end of the stream");
        let cell = rig.cell();
        assert_eq!((cell.word(), cell.answers()), ("ready", 1));
        assert!(cell.waits_since().is_none() && cell.answered_at().is_some());
        assert!(!cell.has_question(25));
        assert_eq!(cell.boundary(), Some(true));
        rig.write(b"more\n").await;
        rig.peer.write_all(b"and mo").unwrap();
        assert_eq!(rig.read().await, Some(b"and mo".to_vec()));
        assert_eq!(cell.boundary(), Some(false));
    }

    #[tokio::test]
    async fn what_follows_an_answer_is_read_and_a_buffer_may_be_small() {
        let mut rig = Rig::new(|leg| leg);
        rig.ask().await;
        rig.peer.write_all(b"PO").unwrap();
        assert_eq!(rig.read().await, None, "it may be the answer");
        assert_eq!(rig.leg.unread(), 2);
        rig.peer.write_all(b"NG is not all\n").unwrap();
        let mut buf = [0; 3];
        let n = poll_fn(|cx| rig.leg.poll_read(cx, &mut buf)).await.unwrap();
        let rest = rig.read_exact(16 - n).await;
        assert_eq!([&buf[..n], &rest].concat(), b"PONG is not all\n");
        // It has never answered, so this is taken for another protocol.
        assert_eq!((rig.cell().word(), rig.cell().boundary()), ("opaque", None));
        assert!(rig.cell().waits_since().is_none());
    }

    #[tokio::test]
    async fn what_is_held_comes_before_the_end_of_the_stream() {
        let mut rig = Rig::new(|leg| leg);
        rig.ask().await;
        rig.peer.write_all(b"PON").unwrap();
        rig.peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.read().await, Some(b"PON".to_vec()));
        assert_eq!(rig.read().await, Some(Vec::new()));
        assert_eq!(rig.read().await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn a_question_is_whole_and_goes_through_the_layer_below() {
        let mut rig = Rig::new(|leg| leg.with_layer(|_| Box::<Slow>::default()));
        rig.ask().await;
        rig.peer.write_all(b"PONG\r\n").unwrap();
        assert_eq!(rig.read().await, None);
        rig.cell().want();
        let begun = poll_fn(|cx| Poll::Ready(rig.leg.poll_flush(cx))).await;
        assert!(begun.is_pending() && !rig.leg.is_delivered());
        assert!(rig.cell().waits_since().is_none(), "it is not asked yet");
        rig.write(b"next\n").await;
        poll_fn(|cx| rig.leg.poll_finish(cx)).await.unwrap();
        rig.hear(b"PING\r\nnext\nbye");
        assert_eq!(rig.peer.read(&mut [0]).unwrap(), 0);
        // Both have finished: nobody waits for an answer, but one that comes is taken out.
        assert!(rig.cell().waits_since().is_none());
        rig.peer.write_all(b"PONG\r\nlast\n").unwrap();
        assert_eq!(rig.read_exact(5).await, b"last\n");
        assert_eq!(rig.cell().answers(), 2);
    }

    #[tokio::test]
    async fn a_leg_that_moves_takes_its_conversation_along() {
        let mut rig = Rig::new(|leg| leg);
        rig.ask().await;
        rig.peer.write_all(b"PON").unwrap();
        assert_eq!(rig.read().await, None);
        rig.leg = rig.leg.detach().attach().unwrap();
        rig.peer.write_all(b"G\r\nnews\n").unwrap();
        assert_eq!(rig.read_exact(5).await, b"news\n");
        assert_eq!(rig.cell().answers(), 1);
    }

    /// A session whose client has said `hello` and is silent from then on, and what its service does then.
    fn start(
        failures: u32,
        idle: Option<Span>,
        serve: impl FnOnce(&mut StdStream) + Send + 'static,
    ) -> (Arc<Session>, StdStream) {
        let [(downstream, client), (upstream, service)] = [pair(), pair()];
        let (mut client, mut service) = (client.0, service.0);
        let address = client.local_addr().unwrap();
        let mut params = params(address);
        params.heartbeats[1] = Some(Protocol::Custom(Description::default()));
        params.policy.idle_timeout = idle;
        params.asking.failures = failures;
        let all = Balancer::new([tokio::runtime::Handle::current()]);
        let worker = all.workers()[0].clone();
        let session = Session::new(1, Arc::new(params), address, sys::now());
        let upstream = session.with_heartbeat(Leg::Upstream, upstream.into(), &[]);
        let legs = [downstream.into(), upstream];
        let task = Task::<()>::open(session.clone(), worker.clone(), legs);
        tokio::spawn(task);
        tokio::spawn(monitor(worker));
        client.write_all(b"hello\n").unwrap();
        std::thread::spawn(move || {
            service.read_exact(&mut [0; 6]).unwrap();
            serve(&mut service);
            while service.read(&mut [0; 6]).is_ok_and(|n| n > 0) {}
        });
        (session, client)
    }

    /// The same where the service answers, and then so many questions.
    fn session(answers: usize, idle: Option<Span>) -> (Arc<Session>, StdStream) {
        start(1, idle, move |service| {
            service.write_all(b"hello\n").unwrap();
            for _ in 0..answers {
                if service.read_exact(&mut [0; 6]).is_err() {
                    return;
                }
                service.write_all(b"PONG\r\n").unwrap();
            }
        })
    }

    async fn received(session: &Session, bytes: u64) {
        while session.traffic().received[1] < bytes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_session_is_at_rest_between_two_messages_and_only_there() {
        let (goes_on, wait) = std::sync::mpsc::channel();
        let (session, mut client) = start(1, None, move |service| {
            service.read_exact(&mut [0; 6]).unwrap();
            service.write_all(b"hello\nhel").unwrap();
            wait.recv().unwrap();
            service.write_all(b"lo\n").unwrap();
        });
        client.write_all(b"hello\n").unwrap();
        received(&session, 9).await;
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!session.is_at_rest(sys::now()));
        goes_on.send(()).unwrap();
        received(&session, 12).await;
        let ended = sys::now();
        while !session.is_at_rest(sys::now()) {
            assert!(sys::now() - ended < Span::ms(800));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn what_a_client_sends_behind_a_question_does_not_hide_a_hang() {
        for failures in [1, 2] {
            let (asked, is_asked) = std::sync::mpsc::channel();
            let (session, mut client) = start(failures, None, move |service| {
                service.write_all(b"hello\n").unwrap();
                service.read_exact(&mut [0; 6]).unwrap();
                service.write_all(b"PONG\r\n").unwrap();
                service.read_exact(&mut [0; 6]).unwrap();
                asked.send(()).unwrap();
            });
            let writer = std::thread::spawn(move || {
                is_asked.recv().unwrap();
                client.write_all(b"more\n").unwrap();
                client
            });
            let end = tokio::time::timeout(Duration::from_secs(20), ended(&session)).await;
            assert_eq!(end, Ok(CloseReason::UpstreamUnresponsive as u8));
            let _client = writer.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_request_waits_while_a_device_is_asked() {
        let mut rig = Rig::speaking(Protocol::Modbus(Register::default()), |leg| leg);
        let request = |id| [0, id, 0, 0, 0, 6, 0, 3, 0, 0, 0, 1];
        let answer = |[a, b]: [u8; 2]| [a, b, 0, 0, 0, 5, 0, 3, 2, 0, 7];
        rig.write(&request(1)).await;
        rig.hear(&request(1));
        rig.peer.write_all(&answer([0, 1])).unwrap();
        assert_eq!(rig.read_exact(11).await, answer([0, 1]));
        for (id, is_answered) in [(2, true), (3, false)] {
            rig.cell().want();
            rig.flush().await;
            let mut question = [0; 12];
            rig.peer.read_exact(&mut question).unwrap();
            let woken = Arc::<Woken>::default();
            let waker = Waker::from(woken.clone());
            let mut cx = Context::from_waker(&waker);
            let written = rig.leg.poll_write(&mut cx, &request(id));
            assert!(written.is_pending() && !woken.0.load(Ordering::Relaxed));
            if is_answered {
                let id = [question[0], question[1]];
                rig.peer.write_all(&answer(id)).unwrap();
                assert_eq!(rig.read().await, None);
                assert!(woken.0.load(Ordering::Relaxed));
            } else {
                rig.cell().give_up();
            }
            rig.write(&request(id)).await;
            rig.hear(&request(id));
            rig.peer.write_all(&answer([0, id])).unwrap();
            assert_eq!(rig.read_exact(11).await, answer([0, id]));
        }
    }

    #[derive(Debug, Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_service_that_stops_answering_is_found() {
        let began = sys::now();
        let (session, mut client) = session(2, None);
        let reason = CloseReason::UpstreamUnresponsive as u8;
        assert_eq!(ended(&session).await, reason);
        // Asked after 1, 2 and 3 s.
        assert!(sys::now() - began >= Span::ms(3400));
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello\n");
        assert_eq!(session.traffic().received, [6, 6]);
    }

    #[tokio::test]
    async fn heartbeats_are_no_payload() {
        let began = sys::now();
        let (session, _client) = session(usize::MAX, Some(Span::ms(3500)));
        assert_eq!(ended(&session).await, CloseReason::IdleTimeout as u8);
        assert!(sys::now() - began < Span::ms(5500));
    }

    #[tokio::test]
    async fn a_service_that_never_answers_is_left_alone() {
        let (session, _client) = session(0, Some(Span::ms(3500)));
        assert_eq!(ended(&session).await, CloseReason::IdleTimeout as u8);
    }
}
