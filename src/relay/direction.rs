//! One direction of a session: from one leg to the other.
//!
//! The pump has one shape: what is held goes first, then the FIN, then the next bytes. How bytes
//! are moved is chosen below it: copied through the thread's scratch buffer, or, while they come
//! in bulk, spliced through a pipe.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::Counters;
use super::pipe::{Loan, Pipe};
use crate::net::leg::LegStream;
use crate::net::stream::TcpStream;

/// Read at once when copying, per thread. A read that fills it makes the direction bulk.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Moved per wake-up before others get their turn.
const WAKE_UP_BYTES: usize = 1024 * 1024;
/// In bulk the source wakes the task only when this much has come (`SO_RCVLOWAT`): several times
/// fewer wake-ups for each MB.
const LOW_WATER: i32 = 1024 * 1024;
/// How long a tail shorter than the low-water mark may have to wait for it.
const TAIL_WAIT: Duration = Duration::from_millis(2);
/// The mark is set once this much has come without a byte in the other direction: requests and
/// answers never wait for it.
const STEADY_BYTES: usize = 2 * 1024 * 1024;
/// A pipe is emptied for others when its destination has taken nothing between two checks so far
/// apart.
const STALL_WAIT: Duration = Duration::from_secs(1);
/// A wake-up that moved less than this ends bulk.
const BULK_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// What a direction holds, which is nothing while it is quiet.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// Copied bytes that the destination has not taken.
    Rest(Box<Rest>),
    /// In bulk, between two plain sockets.
    Bulk(Box<Bulk>),
}

impl Held {
    fn rest(bytes: Box<[u8]>, loan: Option<Loan>) -> Self {
        Self::Rest(Box::new(Rest {
            bytes,
            written: 0,
            loan,
        }))
    }
}

/// Never empty.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Box<[u8]>,
    written: usize,
    /// If they come out of a pipe of this thread.
    loan: Option<Loan>,
}

#[derive(Debug)]
pub(super) struct Bulk {
    pipe: Pipe,
    /// The next look at a destination that takes nothing, and what had been sent at the last.
    stall: Option<(Pin<Box<Sleep>>, u64)>,
    /// Bounds the wait for the low-water mark, and for more at all.
    tail: Pin<Box<Sleep>>,
    /// Bytes moved since the other direction last moved any.
    steady: usize,
    /// What the other direction had moved then.
    answers: u64,
    /// The low-water mark is set.
    marked: bool,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub held: Held,
    /// The destination had no room for what is held; an event tells when it has.
    pub blocked: bool,
    /// Bytes wait in the layer of the destination.
    pub unflushed: bool,
    /// The source has said FIN.
    pub eof: bool,
    /// The source was reset before the session was open.
    pub reset: bool,
    /// Writes to the destination before it gets `TCP_NODELAY`, and 0 from then on. The first
    /// write is sent at once with or without it, so that a short session does not pay for it.
    pub writes_to_nodelay: u8,
    /// The kernel may take more for the destination than it can send soon. Bounded as soon as that
    /// can matter, so that a quiet session does not pay for it.
    pub unbounded: bool,
    /// In bulk, let the source wait for [`LOW_WATER`].
    pub low_water: bool,
    /// The FIN was passed on, or is owed by whoever closes the destination.
    pub done: bool,
}

/// Why a direction stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The source said FIN, and everything before it has been written.
    Eof,
    SourceFailed(io::Error),
    DestinationFailed(io::Error),
}

/// The two legs and counters of one direction.
pub(super) struct Route<'a> {
    pub from: &'a mut LegStream,
    pub to: &'a mut LegStream,
    pub received: &'a AtomicU64,
    pub sent: &'a AtomicU64,
    /// Received in the other direction.
    pub answers: &'a AtomicU64,
}

impl Direction {
    /// Whether bytes wait here for the destination.
    pub fn owes(&self) -> bool {
        self.unflushed
            || match &self.held {
                Held::Nothing => false,
                Held::Rest(_) => true,
                Held::Bulk(bulk) => bulk.pipe.held() > 0,
            }
    }

    /// Moves bytes until the source has none or the destination takes none.
    pub fn poll(&mut self, route: &mut Route<'_>, cx: &mut Context<'_>) -> Poll<Stop> {
        let mut moved = 0;
        loop {
            if let Err(error) = ready!(self.poll_held(route, cx)) {
                return Poll::Ready(Stop::DestinationFailed(error));
            }
            if self.eof {
                return Poll::Ready(Stop::Eof);
            }
            if self.reset {
                return Poll::Ready(Stop::SourceFailed(io::ErrorKind::ConnectionReset.into()));
            }
            if moved >= WAKE_UP_BYTES {
                yield_now(cx);
                return Poll::Pending;
            }
            match self.poll_next(route, moved, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) => moved += n,
                Poll::Ready(Err(stop)) => return Poll::Ready(stop),
            }
        }
    }

    /// Reads once without waiting to be told that there is something, and writes it. True if
    /// the destination took anything, an error if it cannot; what was read is kept for another one then.
    pub fn try_early(
        &mut self,
        [from, to]: [&TcpStream; 2],
        received: &AtomicU64,
        sent: &AtomicU64,
    ) -> io::Result<bool> {
        SCRATCH.with_borrow_mut(|scratch| {
            let n = match from.try_read(scratch) {
                Ok(n @ 1..) => n,
                // The next read finds the FIN again.
                Ok(_) => return Ok(false),
                Err(error) => {
                    // The next read would find a FIN: the kernel tells an error once.
                    self.reset = error.kind() != io::ErrorKind::WouldBlock;
                    return Ok(false);
                }
            };
            Counters::add(received, n);
            self.count_to_nodelay(to);
            let result = match to.try_write(&scratch[..n]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                result => result,
            };
            let written = *result.as_ref().unwrap_or(&0);
            Counters::add(sent, written);
            if written < n {
                self.keep(to, &scratch[written..n]);
            }
            result.map(|written| written > 0)
        })
    }

    /// Moves what the source has, whatever its readiness says, but no more than is `left`; ready
    /// when that is written, or cannot be.
    pub fn poll_drain(
        &mut self,
        route: &mut Route<'_>,
        left: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if ready!(self.poll_held(route, cx)).is_err() {
                return Poll::Ready(());
            }
            self.held = Held::Nothing;
            if *left == 0 {
                return Poll::Ready(());
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let most = scratch.len().min(*left);
                let read = route.from.poll_read_now(cx, &mut scratch[..most]);
                let Poll::Ready(Ok(n @ 1..)) = read else {
                    return false;
                };
                *left -= n;
                Counters::add(route.received, n);
                self.keep(route.to.socket(), &scratch[..n]);
                true
            });
            if !read {
                return Poll::Ready(());
            }
        }
    }

    /// Has bytes that were read already go first.
    pub fn begin_with(&mut self, bytes: Vec<u8>) {
        self.held = Held::rest(bytes.into(), None);
    }

    /// Gives up what belongs to this thread; false if that is not possible now.
    pub fn release(&mut self, route: &mut Route<'_>) -> io::Result<bool> {
        match &mut self.held {
            Held::Nothing => {}
            Held::Rest(rest) => rest.loan = None,
            Held::Bulk(bulk) if bulk.pipe.held() == 0 => self.end_bulk(route),
            Held::Bulk(bulk) => {
                let Some(emptied) = bulk.pipe.empty() else {
                    return Ok(false);
                };
                let (bytes, _of_this_thread) = emptied?;
                self.end_bulk(route);
                self.held = Held::rest(bytes, None);
            }
        }
        Ok(true)
    }

    fn keep(&mut self, to: &TcpStream, bytes: &[u8]) {
        self.bound_unsent(to);
        self.held = Held::rest(bytes.into(), None);
    }

    /// Gives the destination what is held.
    fn poll_held(&mut self, route: &mut Route<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It may be polled for many other reasons, and a write costs a system call.
        if self.blocked && route.to.socket().poll_writable(cx).is_ready() {
            self.blocked = false;
        }
        match &mut self.held {
            Held::Nothing => {}
            Held::Rest(_) if self.blocked => return Poll::Pending,
            Held::Rest(rest) => {
                while rest.written < rest.bytes.len() {
                    let written = route.to.poll_write(cx, &rest.bytes[rest.written..])?;
                    self.blocked = written.is_pending();
                    let n = ready!(written);
                    Counters::add(route.sent, n);
                    rest.written += n;
                }
                self.held = Held::Nothing;
            }
            Held::Bulk(bulk) => {
                self.blocked = self.blocked || bulk.poll_pipe(route, cx)?.is_pending();
                if self.blocked {
                    let (bytes, loan) = ready!(bulk.poll_stalled(route, cx))?;
                    self.end_bulk(route);
                    self.held = Held::rest(bytes, Some(loan));
                    return Poll::Pending;
                }
            }
        }
        let flushed = route.to.poll_flush(cx);
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// Moves the next bytes. `Ok(0)` is the FIN.
    fn poll_next(
        &mut self,
        route: &mut Route<'_>,
        moved: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Stop>> {
        let n = match &mut self.held {
            Held::Bulk(bulk) => match bulk.poll_fill(route, moved, self.low_water, cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stop::SourceFailed(error))),
                // The FIN, or the urgent mark, which may not have been told of yet.
                Poll::Ready(Ok(Some(0))) => {
                    self.end_bulk(route);
                    if route.from.socket().is_at_urgent()
                        && let Some(passed) = self.pass_urgent(route)
                    {
                        return Poll::Ready(passed);
                    }
                    return self.poll_next(route, moved, cx);
                }
                Poll::Ready(Ok(Some(n))) => n,
                Poll::Ready(Ok(None)) => {
                    self.end_bulk(route);
                    return self.poll_next(route, moved, cx);
                }
                Poll::Pending => return Poll::Pending,
            },
            Held::Nothing | Held::Rest(_) => match ready!(self.poll_copy(route, cx)) {
                Ok(n) => n,
                Err(stop) => return Poll::Ready(Err(stop)),
            },
        };
        self.eof = n == 0;
        Poll::Ready(Ok(n))
    }

    /// Passes one urgent byte on as such, or as an ordinary one where the destination does not take
    /// it at once. `None`: there is none.
    fn pass_urgent(&mut self, route: &mut Route<'_>) -> Option<Result<usize, Stop>> {
        let mut byte = [0];
        match route.from.as_plain()?.try_read(&mut byte) {
            Ok(1) => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // The kernel tells it once: the next read would find a FIN.
                return Some(Err(Stop::SourceFailed(error)));
            }
            _ => return None,
        }
        Counters::add(route.received, 1);
        self.count_to_nodelay(route.to.socket());
        let to = route.to.as_plain();
        match to.map_or(Ok(false), |to| to.try_write_urgent(byte[0])) {
            Ok(true) => Counters::add(route.sent, 1),
            Ok(false) => self.keep(route.to.socket(), &byte),
            Err(error) => return Some(Err(Stop::DestinationFailed(error))),
        }
        Some(Ok(1))
    }

    fn poll_copy(
        &mut self,
        route: &mut Route<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Stop>> {
        if route.from.as_plain().is_some_and(TcpStream::is_told_urgent)
            && let Some(passed) = self.pass_urgent(route)
        {
            return Poll::Ready(passed);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let n = match ready!(route.from.poll_read(cx, scratch)) {
                Ok(n) => n,
                Err(error) => return Poll::Ready(Err(Stop::SourceFailed(error))),
            };
            if n == 0 {
                return Poll::Ready(Ok(0));
            }
            Counters::add(route.received, n);
            self.count_to_nodelay(route.to.socket());
            let mut written = 0;
            while written < n {
                match route.to.poll_write(cx, &scratch[written..n]) {
                    Poll::Ready(Ok(more)) => {
                        Counters::add(route.sent, more);
                        written += more;
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(Stop::DestinationFailed(error)));
                    }
                    Poll::Pending => {
                        self.keep(route.to.socket(), &scratch[written..n]);
                        break;
                    }
                }
            }
            if n == scratch.len() && written == n {
                self.begin_bulk(route);
            }
            Poll::Ready(Ok(n))
        })
    }

    #[inline]
    fn count_to_nodelay(&mut self, to: &TcpStream) {
        if self.writes_to_nodelay > 0 {
            self.writes_to_nodelay -= 1;
            if self.writes_to_nodelay == 0 {
                to.set_nodelay();
            }
        }
    }

    fn begin_bulk(&mut self, route: &mut Route<'_>) {
        let (Some(_), Some(to)) = (route.from.as_plain(), route.to.as_plain()) else {
            return;
        };
        self.bound_unsent(to);
        // Writes from a pipe are not counted.
        if std::mem::take(&mut self.writes_to_nodelay) > 0 {
            to.set_nodelay();
        }
        let Some(pipe) = Pipe::take() else { return };
        let tail = Box::pin(tokio::time::sleep(TAIL_WAIT));
        let bulk = Bulk {
            pipe,
            stall: None,
            tail,
            steady: 0,
            answers: 0,
            marked: false,
        };
        self.held = Held::Bulk(Box::new(bulk));
    }

    fn bound_unsent(&mut self, to: &TcpStream) {
        if std::mem::take(&mut self.unbounded) {
            to.bound_unsent();
        }
    }

    fn end_bulk(&mut self, route: &mut Route<'_>) {
        if let Held::Bulk(bulk) = &mut self.held {
            bulk.unmark(route);
        }
        self.held = Held::Nothing;
    }
}

impl Bulk {
    /// Gives the destination what is in the pipe.
    fn poll_pipe(&mut self, route: &mut Route<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pipe.held() > 0 {
            let held = self.pipe.held();
            let n = ready!(
                route
                    .to
                    .socket()
                    .poll_splice_from(cx, self.pipe.outlet(), held)
            )?;
            Counters::add(route.sent, n);
            self.pipe.drained(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Empties the pipe when the destination has stalled.
    fn poll_stalled(
        &mut self,
        route: &mut Route<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Box<[u8]>, Loan)>> {
        let sent = route.sent.load(Ordering::Relaxed);
        let first = || (Box::pin(tokio::time::sleep(STALL_WAIT)), sent);
        let (look, before) = self.stall.get_or_insert_with(first);
        loop {
            ready!(look.as_mut().poll(cx));
            look.set(tokio::time::sleep(STALL_WAIT));
            if std::mem::replace(before, sent) == sent
                && let Some(emptied) = self.pipe.empty()
            {
                return Poll::Ready(emptied);
            }
        }
    }

    /// Fills the empty pipe. `Some(0)`: there is the FIN or the urgent mark; `None`: the stream is not bulk any more.
    fn poll_fill(
        &mut self,
        route: &mut Route<'_>,
        moved: usize,
        may_mark: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<usize>>> {
        if let Poll::Ready(filled) = route.from.socket().poll_splice_into(cx, self.pipe.inlet()) {
            return Poll::Ready(self.took(route, filled));
        }
        // The source is below the low-water mark and will say when it is not. What is there may
        // be the tail of the stream.
        if moved >= BULK_BYTES {
            self.tail.set(tokio::time::sleep(TAIL_WAIT));
            if may_mark {
                self.mark(route);
            }
        } else if moved > 0 {
            return Poll::Ready(Ok(None));
        }
        ready!(self.tail.as_mut().poll(cx));
        Poll::Ready(self.took(
            route,
            route.from.socket().try_splice_into(self.pipe.inlet()),
        ))
    }

    /// Sets the low-water mark on a stream, and takes it off where each side waits for the other:
    /// there, whatever is short of the mark is all there is.
    fn mark(&mut self, route: &mut Route<'_>) {
        let answers = route.answers.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.answers, answers) != answers {
            self.steady = 0;
            self.unmark(route);
        } else if !self.marked && self.steady >= STEADY_BYTES {
            self.marked = true;
            route.from.socket().set_low_water(LOW_WATER);
        }
    }

    fn unmark(&mut self, route: &mut Route<'_>) {
        if std::mem::take(&mut self.marked) {
            route.from.socket().set_low_water(1);
        }
    }

    fn took(
        &mut self,
        route: &mut Route<'_>,
        filled: io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        match filled {
            Ok(n) => {
                Counters::add(route.received, n);
                self.pipe.filled(n);
                self.steady += n;
                Ok(Some(n))
            }
            // Nothing came for a while; or this kind of socket cannot be spliced.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Has the runtime look at its sockets before it polls this task again.
fn yield_now(cx: &mut Context<'_>) {
    let again = std::pin::pin!(tokio::task::yield_now());
    let _pending = again.poll(cx);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream as StdStream};
    use std::os::fd::RawFd;

    use super::*;
    use crate::relay::Relay;
    use crate::sys::sockopt;

    /// A relay's end and its peer's.
    fn pair() -> (TcpStream, StdStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let peer = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        (TcpStream::new(ours.into()).unwrap(), peer)
    }

    /// Relays what the client sends; returns the client, the service and the relay's upstream leg.
    fn relay(client_sends: &'static [u8]) -> (StdStream, StdStream, RawFd) {
        let [(down, mut client), (up, service)] = [pair(), pair()];
        let fd = up.raw_fd();
        // What fits, before the relay reads at all.
        client.set_nonblocking(true).unwrap();
        let first = client.write(client_sends).unwrap();
        client.set_nonblocking(false).unwrap();
        let mut writer = client.try_clone().unwrap();
        std::thread::spawn(move || writer.write_all(&client_sends[first..]).unwrap());
        tokio::spawn(async move {
            let (mut relay, counters) = (Relay::new(true), Counters::default());
            let mut legs = [down.into(), up.into()];
            poll_fn(|cx| relay.poll(&mut legs, &counters, cx)).await
        });
        (client, service, fd)
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    async fn eventually(mut condition: impl FnMut() -> bool) -> bool {
        for _ in 0..1000 {
            if condition() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[test]
    fn stalled_streams_give_their_pipes_back_and_lose_nothing() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 3) as u8).collect();
        let bytes: &[u8] = bytes.leak();
        block_on(async {
            let streams: Vec<_> = (0..40).map(|_| relay(bytes)).collect();
            assert!(eventually(|| Pipe::take().is_none()).await, "few are bulk");
            assert!(eventually(|| Pipe::take().is_some()).await, "none is free");
            for (client, mut service, _) in streams {
                let read = std::thread::spawn(move || {
                    let mut got = vec![0; bytes.len()];
                    service.read_exact(&mut got).unwrap();
                    got == bytes
                });
                assert!(eventually(|| read.is_finished()).await);
                assert!(read.join().unwrap(), "other bytes");
                drop(client);
            }
        });
    }

    #[test]
    fn a_stream_that_begins_with_bulk_has_no_nagle_delay() {
        block_on(async {
            let (_client, mut service, upstream) = relay(&[7; 2 * SCRATCH_BYTES]);
            let read = std::thread::spawn(move || {
                service.read_exact(&mut [0; 2 * SCRATCH_BYTES]).unwrap();
                service
            });
            assert!(eventually(|| read.is_finished()).await);
            assert_eq!(sockopt::get_int(upstream, sockopt::NODELAY).unwrap(), 1);
        });
    }
}
