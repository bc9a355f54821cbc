//! One end of a TCP connection under test. It sends a fixed pseudo-random stream from offset 0 on
//! and checks what it receives against the same stream, so that a byte that is lost, repeated or
//! changed shows. Everything happens on a thread of its own; the test gives orders and waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pulsegate::sys::netns::Namespace;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use socket2::{Domain, SockRef, Socket, Type};

use super::channel::{Channel, Speech};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK: usize = 64 << 10;

/// The stream repeats after this many bytes: a prime, so that no power of two hides a shift.
const PERIOD: usize = 1_048_573;

static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..PERIOD).map(|_| next()).collect()
});

/// Bytes of the stream from an offset on, as many as are contiguous.
pub fn stream_from(offset: u64) -> &'static [u8] {
    &STREAM[usize::try_from(offset % PERIOD as u64).expect("small")..]
}

/// How an end behaves from the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Sends as many bytes as it receives.
    pub echo: bool,
    /// Says FIN when the other end does.
    pub polite: bool,
    /// Does not read until told to.
    pub paused: bool,
    /// At most so many bytes are read each 20 ms.
    pub read_rate: Option<usize>,
    /// `SO_RCVBUF`.
    pub receive_buffer: Option<usize>,
}

/// How the other side ended the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN: a complete stream.
    Finished,
    /// RST: an abort.
    Reset,
    /// Something else.
    Failed(ErrorKind),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Its own address.
    pub local: SocketAddr,
    /// The address of the other end.
    pub peer: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    options: Options,
    queued: u64,
    pace: Option<Pace>,
    finish: bool,
    close: Option<Close>,

    sent: u64,
    received: u64,
    corrupt_at: Option<u64>,
    /// There is no handshake, or it is over.
    secured: bool,
    write_finished: bool,
    /// FIN or RST was noticed although nothing is read.
    hung_up: bool,
    failed: Option<End>,
    /// When reading came to the end, and how.
    ended: Option<(Instant, End)>,
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    bytes: u64,
    every: Duration,
    next: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    Orderly,
    Abort,
}

impl Endpoint {
    /// Connects from inside a namespace.
    pub fn connect(
        from: &Namespace,
        to: SocketAddr,
        speech: Speech,
        options: Options,
    ) -> io::Result<Self> {
        let socket = from.run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))??;
        if let Some(bytes) = options.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect_timeout(&to.into(), CONNECT_TIMEOUT)?;
        Self::start(socket.into(), speech, options)
    }

    /// Takes over a connected stream.
    pub fn start(stream: TcpStream, speech: Speech, options: Options) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let state = State {
            options,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake: eventfd()?,
        });
        let theirs = Arc::clone(&shared);
        let channel = Channel::new(stream, speech);
        let thread = thread::Builder::new().spawn(move || serve(channel, &theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            local,
            peer,
        })
    }

    /// Sends the next `bytes` of the stream.
    pub fn send(&self, bytes: u64) {
        self.order(|s| s.queued += bytes);
    }

    /// Sends `bytes` now and after each such time.
    pub fn send_every(&self, bytes: u64, every: Duration) {
        let next = Instant::now();
        self.order(|s| {
            s.pace = Some(Pace { bytes, every, next });
        });
    }

    /// Ends [`Endpoint::send_every`].
    pub fn stop_sending(&self) {
        self.order(|s| s.pace = None);
    }

    /// Says FIN after what is queued.
    pub fn finish(&self) {
        self.order(|s| s.finish = true);
    }

    /// Stops reading; the window closes.
    pub fn pause(&self) {
        self.order(|s| s.options.paused = true);
    }

    /// Reads again.
    pub fn resume(&self) {
        self.order(|s| s.options.paused = false);
    }

    /// Closes with RST; returns how many bytes it had given to the kernel.
    pub fn reset(mut self) -> u64 {
        self.stop(Close::Abort);
        self.sent()
    }

    /// Closes as close(2) does; returns how many bytes it had given to the kernel.
    pub fn close(mut self) -> u64 {
        self.stop(Close::Orderly);
        self.sent()
    }

    /// Bytes given to the kernel.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// Bytes received.
    pub fn received(&self) -> u64 {
        self.state().received
    }

    /// Offset of the first wrong byte.
    pub fn corrupt_at(&self) -> Option<u64> {
        self.state().corrupt_at
    }

    /// How and when the other side ended the stream, if it did.
    pub fn ended(&self) -> Option<(Instant, End)> {
        self.state().ended
    }

    /// Whether nothing at all was heard of an end: neither read, nor noticed while paused.
    pub fn is_open(&self) -> bool {
        let s = self.state();
        s.ended.is_none() && s.failed.is_none() && !s.hung_up
    }

    /// Whether RST came, before the end of the stream or after it.
    pub fn was_reset(&self) -> bool {
        let s = self.state();
        s.failed == Some(End::Reset) || s.ended.is_some_and(|(_, end)| end == End::Reset)
    }

    /// Waits until payload can be sent.
    pub fn wait_secured(&self, within: Duration) -> bool {
        self.wait(within, |s| s.secured)
    }

    /// Waits for this many bytes in all.
    pub fn wait_received(&self, bytes: u64, within: Duration) -> bool {
        self.wait(within, |s| s.received >= bytes)
    }

    /// Waits for RST, which may come after the end of the stream.
    pub fn wait_reset(&self, within: Duration) -> bool {
        super::eventually(within, || self.was_reset())
    }

    /// Waits until everything that was ordered has been given to the kernel.
    pub fn wait_sent(&self, within: Duration) -> bool {
        self.wait(within, |s| s.sent >= s.queued)
    }

    /// Waits for the end of the stream.
    #[track_caller]
    pub fn wait_end(&self, within: Duration) -> (Instant, End) {
        self.wait(within, |s| s.ended.is_some());
        self.ended().unwrap_or_else(|| {
            panic!(
                "the stream did not end within {within:?}: {:?}",
                self.state()
            );
        })
    }

    fn wait(&self, within: Duration, condition: impl Fn(&State) -> bool) -> bool {
        let changed = &self.shared.changed;
        let (state, _) = changed
            .wait_timeout_while(self.state(), within, |s| !condition(s))
            .expect("not poisoned");
        condition(&state)
    }

    fn order(&self, order: impl FnOnce(&mut State)) {
        order(&mut self.state());
        self.shared.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("not poisoned")
    }

    fn stop(&mut self, how: Close) {
        if let Some(thread) = self.thread.take() {
            self.shared.state.lock().expect("not poisoned").close = Some(how);
            self.shared.wake();
            thread.join().expect("the endpoint's thread");
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop(Close::Orderly);
        } else if let Ok(mut state) = self.shared.state.lock() {
            state.close = Some(Close::Orderly);
            self.shared.wake();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // It can fail only when 2^64 wake-ups are pending.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The endpoint's thread: does what is ordered until it is told to close.
fn serve(mut channel: Channel, shared: &Shared) {
    let mut next_read = Instant::now();
    loop {
        let mut state = shared.state.lock().expect("not poisoned");
        if let Some(close) = state.close {
            match close {
                Close::Abort => {
                    let socket = SockRef::from(&channel.socket);
                    let _ = socket.set_linger(Some(Duration::ZERO));
                }
                Close::Orderly => state.sent += channel.last_words() as u64,
            }
            return;
        }
        let now = Instant::now();
        state.pace(now);
        state.shake(&mut channel);
        state.write(&mut channel);
        if state.reads() && now >= next_read {
            next_read = now + state.read(&mut channel);
        }
        state.finish_writing(&mut channel);
        let events = state.events(&channel, now >= next_read);
        let timeout = state.timeout(now, next_read);
        shared.changed.notify_all();
        drop(state);
        let stream = &channel.socket;
        if wait_for(stream, events, &shared.wake, timeout) {
            shared.state.lock().expect("not poisoned").hang_up(stream);
        }
    }
}

/// Waits for an event or an order. True if a paused end should look at how the other one ended.
fn wait_for(
    stream: &TcpStream,
    events: Option<PollFlags>,
    wake: &OwnedFd,
    timeout: Duration,
) -> bool {
    let timeout = Timespec::try_from(timeout).expect("small");
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(events.map(|e| PollFd::new(stream, e)));
    // An interrupted wait only leads to one more look at everything.
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
    if !fds[0].revents().is_empty() {
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
    let ends = PollFlags::RDHUP | PollFlags::ERR | PollFlags::HUP;
    fds.get(1).is_some_and(|fd| fd.revents().intersects(ends))
}

impl State {
    fn pace(&mut self, now: Instant) {
        if let Some(pace) = &mut self.pace
            && now >= pace.next
        {
            self.queued += pace.bytes;
            pace.next = now + pace.every;
        }
    }

    /// A handshake is read even by an end that is paused.
    fn shake(&mut self, channel: &mut Channel) {
        if self.secured || self.ended.is_some() {
            return;
        }
        match channel.shake() {
            Ok(()) => self.secured = !channel.is_shaking(),
            Err(e) => self.end(End::from(e.kind())),
        }
    }

    fn reads(&self) -> bool {
        self.secured && !self.options.paused && self.ended.is_none()
    }

    fn write(&mut self, channel: &mut Channel) {
        while self.sent < self.queued && self.failed.is_none() {
            let rest = usize::try_from(self.queued - self.sent).unwrap_or(CHUNK);
            let bytes = stream_from(self.sent);
            match channel.write(&bytes[..bytes.len().min(rest).min(CHUNK)]) {
                Ok(n) => self.sent += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => self.failed = Some(End::from(e.kind())),
            }
        }
    }

    fn finish_writing(&mut self, channel: &mut Channel) {
        if self.finish && self.sent == self.queued && !self.write_finished {
            self.write_finished = channel.finish();
        }
    }

    /// Reads what is there; returns how long to wait before the next read.
    fn read(&mut self, channel: &mut Channel) -> Duration {
        let limit = self.options.read_rate.unwrap_or(16 * CHUNK);
        let mut buffer = [0; CHUNK];
        let mut taken = 0;
        while taken < limit && self.ended.is_none() {
            match channel.read(&mut buffer[..CHUNK.min(limit - taken)]) {
                // What was received before RST can be read, and then the error that RST left; if
                // a write got that error first, the end looks like FIN here.
                Ok(0) => self.end(self.failed.unwrap_or(End::Finished)),
                Ok(n) => {
                    self.check(&buffer[..n]);
                    taken += n;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => self.end(self.failed.unwrap_or(End::from(e.kind()))),
            }
        }
        match self.options.read_rate {
            Some(_) => Duration::from_millis(20),
            // There may be more, of which the socket knows nothing any more.
            None if taken == limit => Duration::from_millis(1),
            None => Duration::ZERO,
        }
    }

    fn end(&mut self, end: End) {
        self.ended = Some((Instant::now(), end));
        self.finish |= self.options.polite;
    }

    fn check(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let expected = stream_from(self.received);
            let n = expected.len().min(rest.len());
            let wrong = rest.iter().zip(expected).position(|(a, b)| a != b);
            if let Some(at) = wrong {
                self.corrupt_at.get_or_insert(self.received + at as u64);
            }
            self.received += n as u64;
            rest = &rest[n..];
        }
        if self.options.echo {
            self.queued += bytes.len() as u64;
        }
    }

    /// A paused end looks at the socket's error instead of reading.
    fn hang_up(&mut self, stream: &TcpStream) {
        if self.options.paused || self.ended.is_some() {
            self.hung_up = true;
            if let Ok(Some(e)) = stream.take_error() {
                self.failed.get_or_insert(End::from(e.kind()));
            }
        }
    }

    /// What to wait for on the socket; nothing once no event could mean anything new.
    fn events(&self, channel: &Channel, may_read: bool) -> Option<PollFlags> {
        let mut events = PollFlags::empty();
        if self.ended.is_none() && self.failed.is_none() {
            events |= channel.wants();
        }
        if self.ended.is_none() && !self.options.paused && may_read {
            events |= PollFlags::IN;
        } else if self.ended.is_none() && self.options.paused && !self.hung_up {
            events |= PollFlags::RDHUP;
        }
        if self.secured && self.sent < self.queued && self.failed.is_none() {
            events |= PollFlags::OUT;
        }
        let quiet = self.failed.is_some() || self.hung_up || self.write_finished;
        (!events.is_empty() || (!quiet && may_read)).then_some(events)
    }

    fn timeout(&self, now: Instant, next_read: Instant) -> Duration {
        let paced = self.pace.map(|p| p.next);
        let reads = (next_read > now).then_some(next_read);
        let next = paced.into_iter().chain(reads).min();
        next.map_or(Duration::from_secs(60), |at| at.duration_since(now))
    }
}

impl From<ErrorKind> for End {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            // RST on a socket that already had FIN is reported as EPIPE.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            other => Self::Failed(other),
        }
    }
}

/// The legacy service: every connection becomes an [`Endpoint`].
#[derive(Debug)]
pub struct Service {
    accepted: Receiver<Endpoint>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Listens inside a namespace.
    pub fn start(
        at: &Namespace,
        address: SocketAddr,
        speech: Speech,
        options: Options,
    ) -> io::Result<Self> {
        let socket = at.run(|| Socket::new(Domain::for_address(address), Type::STREAM, None))??;
        socket.set_reuse_address(true)?;
        if let Some(bytes) = options.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        let listener: TcpListener = socket.into();
        listener.set_nonblocking(true)?;
        let stop = Arc::new(eventfd()?);
        let (sender, accepted) = mpsc::channel();
        let told = Arc::clone(&stop);
        let serve = move |stream| Endpoint::start(stream, speech, options);
        let thread =
            thread::Builder::new().spawn(move || accept(&listener, &told, serve, &sender))?;
        Ok(Self {
            accepted,
            stop,
            thread: Some(thread),
        })
    }

    /// The next connection.
    #[track_caller]
    pub fn next(&self) -> Endpoint {
        self.next_within(Duration::from_secs(5))
            .expect("a connection to the service")
    }

    /// The next connection, if there is one in time.
    pub fn next_within(&self, within: Duration) -> Option<Endpoint> {
        let endpoint = self.accepted.recv_timeout(within).ok()?;
        endpoint.wait_secured(within);
        Some(endpoint)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    stop: &OwnedFd,
    serve: impl Fn(TcpStream) -> io::Result<Endpoint>,
    to: &Sender<Endpoint>,
) {
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return;
        }
        if let Ok((stream, _)) = listener.accept()
            && let Ok(endpoint) = serve(stream)
            && to.send(endpoint).is_err()
        {
            return;
        }
    }
}

fn eventfd() -> io::Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(rustix::event::eventfd(0, flags)?)
}
