//! Real sessions over loopback sockets, with legs that production has not yet.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use super::*;
use crate::config::{Liveness, Upstream, UpstreamAddress};
use crate::liveness::Evidence;
use crate::metrics::Metrics;
use crate::net::leg::{Layer, LegStream, Wire};
use crate::net::stream::TcpStream;
use crate::tls::{Established, TlsVersion};
use crate::upstream::Cluster;

/// A listener's parameters, with defaults.
pub(super) fn params(upstream: SocketAddr) -> SessionParams {
    SessionParams {
        name: "db".into(),
        tls: None,
        cluster: Arc::new(Cluster::new(
            "db".into(),
            Upstream::of(UpstreamAddress::Socket(upstream)),
        )),
        connect_lines: Default::default(),
        tls_lines: Default::default(),
        policy: Liveness::default().policy(),
        on_dead: OnDead::Reset,
        on_end: OnEnd::Reset,
        metrics: Metrics::new().listener("db"),
        first_byte_timeout: None,
        queue_timeout: None,
        abandoned: Abandoned::Serve,
        heartbeats: [None, None],
        asking: Asking {
            after: Span::ms(1000),
            timeout: Span::ms(500),
            failures: 1,
        },
        misfit_lines: Default::default(),
        low_water: true,
        probes: Default::default(),
        reconnect_delay: Duration::ZERO,
        sheds: false,
        sessions: AtomicUsize::new(0),
        last_end: AtomicU8::new(u8::MAX),
    }
}

/// Payload of one frame at most.
const FRAME: usize = 5000;
/// Bytes that may wait in the layer.
const WAITING: usize = 3 * FRAME;

/// Payload in frames: a byte `F`, the length in two bytes, the payload inverted. Length 0 is the end.
#[derive(Debug, Default)]
struct Frames {
    outgoing: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    payload: Vec<u8>,
    said_end: bool,
    at_end: bool,
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let inverted = payload.iter().map(|byte| !byte);
    [b'F', high, low].into_iter().chain(inverted).collect()
}

impl Frames {
    /// Takes whole frames out of what came.
    fn decode(&mut self) {
        while let [b'F', high, low, rest @ ..] = &self.incoming[..] {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if rest.len() < length {
                return;
            }
            self.at_end |= length == 0;
            self.payload.extend(rest[..length].iter().map(|byte| !byte));
            self.incoming.drain(..3 + length);
        }
    }
}

impl Layer for Frames {
    fn poll_read(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if !self.payload.is_empty() || self.at_end {
                let n = buf.len().min(self.payload.len());
                buf[..n].copy_from_slice(&self.payload[..n]);
                self.payload.drain(..n);
                return Poll::Ready(Ok(n));
            }
            let mut bytes = [0; 2000];
            let n = ready!(wire.poll_read(cx, &mut bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.incoming.extend(&bytes[..n]);
            self.decode();
        }
    }

    fn poll_write(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.len() - self.sent > WAITING {
            ready!(self.poll_flush(wire, cx))?;
        }
        let n = buf.len().min(FRAME);
        self.outgoing.extend(frame(&buf[..n]));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            self.sent += ready!(wire.poll_write(cx, &self.outgoing[self.sent..]))?;
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.said_end, true) {
            self.outgoing.extend(frame(&[]));
        }
        self.poll_flush(wire, cx)
    }

    fn is_flushed(&self) -> bool {
        self.sent == self.outgoing.len()
    }

    fn buffered(&self) -> usize {
        self.incoming.len() + self.payload.len()
    }
}

/// A peer that speaks in frames.
pub(super) struct Peer(pub StdStream);

impl Peer {
    fn send(&mut self, payload: &[u8]) {
        payload
            .chunks(FRAME)
            .for_each(|part| self.0.write_all(&frame(part)).unwrap());
    }

    fn finish(&mut self) {
        self.0.write_all(&frame(&[])).unwrap();
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// One frame; empty at the end of the stream.
    fn receive(&mut self) -> Vec<u8> {
        let mut head = [0; 3];
        self.0.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        self.0.read_exact(&mut payload).unwrap();
        payload.iter_mut().for_each(|byte| *byte = !*byte);
        payload
    }

    /// Everything up to the end of the stream, and the FIN.
    fn receive_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let payload = self.receive();
            if payload.is_empty() {
                assert_eq!(self.0.read(&mut [0]).unwrap(), 0, "a byte after the end");
                return all;
            }
            all.extend(payload);
        }
    }

    fn again(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }
}

/// Our end of a connection and the peer's.
pub(super) fn pair() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    let ours = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    (TcpStream::new(ours.into()).unwrap(), Peer(peer))
}

/// As if the frames were TLS.
fn established() -> Established {
    Established {
        version: TlsVersion::V13,
        is_resumed: false,
        server_name: None,
        alpn: None,
        cipher: "frames",
        identity: None,
    }
}

/// An open session over two layered legs, the client and the service.
fn open(params: SessionParams) -> (Arc<Session>, Peer, Peer) {
    let [(downstream, client), (upstream, service)] = [pair(), pair()];
    let layered = |socket| LegStream::from(socket).under(Box::<Frames>::default());
    let legs = [layered(downstream), layered(upstream)];
    let all = Balancer::new([tokio::runtime::Handle::current()]);
    let (worker, address) = (all.workers()[0].clone(), client.0.local_addr().unwrap());
    let session = Session::new(1, Arc::new(params), address, sys::now());
    session.lock().facts_mut().tls = [(); 2].map(|()| Some(Box::new(established())));
    let task = Task::<()>::open(session.clone(), worker.clone(), legs);
    tokio::spawn(task);
    tokio::spawn(monitor(worker));
    (session, client, service)
}

pub(super) async fn ended(session: &Session) -> u8 {
    let began = sys::now();
    loop {
        let reason = session.params.last_end.load(Ordering::Relaxed);
        if reason != u8::MAX {
            return reason;
        }
        assert!(sys::now() < began + Span::ms(30_000), "it does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    let byte = |n: usize| ((n * 31 + n / 251 + seed) % 256) as u8;
    (0..count).map(byte).collect()
}

#[tokio::test]
async fn layered_legs_carry_bulk_and_messages_and_half_closes() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let (session, mut client, mut service) = open(params(nowhere));
    let (request, last) = (bytes(6_000_000, 1), bytes(2_000_000, 2));
    let (expected, told) = (request.clone(), last.clone());
    let serving = thread::spawn(move || {
        for _ in 0..50 {
            let message = service.receive();
            service.send(&message);
        }
        let mut reader = service.again();
        let reading = thread::spawn(move || reader.receive_all());
        // Both ways at once, and on after the client's end.
        service.send(&last);
        assert!(reading.join().unwrap() == expected, "other bytes");
        service.send(&last);
        service.finish();
    });
    let asking = thread::spawn(move || {
        for n in 1..=50 {
            let message = bytes(n, n);
            client.send(&message);
            assert_eq!(client.receive(), message);
        }
        let mut reader = client.again();
        let reading = thread::spawn(move || reader.receive_all());
        client.send(&request);
        client.finish();
        let got = reading.join().unwrap();
        assert!(got == [&told[..], &told].concat(), "other bytes");
    });
    assert_eq!(ended(&session).await, CloseReason::Finished as u8);
    serving.join().unwrap();
    asking.join().unwrap();
    let messages: u64 = (1..=50).sum();
    let traffic = session.traffic();
    assert_eq!(
        traffic.received,
        [messages + 6_000_000, messages + 4_000_000]
    );
    assert_eq!(traffic.sent, [messages + 4_000_000, messages + 6_000_000]);
}

/// The kernel counts what is on the wire, the relay what is inside.
#[tokio::test]
async fn an_unanswered_request_of_a_layered_leg_is_noticed() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut params = params(nowhere);
    params.policy.first_response_timeout = Some(Span::ms(1000));
    let (session, mut client, mut service) = open(params);
    let talking = thread::spawn(move || {
        let mut answers = 0;
        for n in 1..=20 {
            client.send(&bytes(n, 0));
            let request = service.receive();
            service.send(&request[..n.min(3)]);
            answers += n.min(3);
            client.receive();
        }
        client.send(b"the last");
        assert_eq!(service.receive(), b"the last");
        // Bytes of the layer are no answer.
        service.0.write_all(&[b'F', 0, 9]).unwrap();
        (answers as u64, client, service)
    });
    assert_eq!(
        ended(&session).await,
        CloseReason::FirstResponseTimeout as u8
    );
    let (answers, ..) = talking.join().unwrap();
    assert_eq!(session.counters.answers_before(), answers);
}

/// Who the client is, in a line of its own.
#[derive(Debug)]
struct Line;

impl Preamble for Line {
    fn limit(&self) -> Duration {
        Duration::from_millis(300)
    }

    fn late(&self, _: &Session) -> CloseReason {
        CloseReason::Rejected
    }

    fn read<'a>(
        &'a self,
        session: &'a Session,
        client: &'a mut Client,
    ) -> Boxed<'a, Result<Option<Box<dyn Layer>>, Close>> {
        Box::pin(async move {
            let wrong = || aborted(CloseReason::LocalError);
            let mut said = Vec::new();
            while said.len() < 100 {
                let mut bytes = [0; 32];
                let read = poll_fn(|cx| client.stream.poll_read(cx, &mut bytes)).await;
                let Ok(n @ 1..) = read else { break };
                said.extend(&bytes[..n]);
                let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
                    continue;
                };
                let line = std::str::from_utf8(&said[..end]).ok();
                let address = line.and_then(|line| line.parse().ok());
                session
                    .lock()
                    .told_of(Some(address.ok_or_else(wrong)?), end + 1);
                client.unsent = said.split_off(end + 1);
                return Ok(None);
            }
            Err(wrong())
        })
    }
}

/// A session that begins with a line, its client, and where its upstream is awaited.
fn begin() -> (Arc<Session>, Peer, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let params = params(upstream.local_addr().unwrap());
    let (downstream, client) = pair();
    let all = Balancer::new([tokio::runtime::Handle::current()]);
    let (worker, address) = (all.workers()[0].clone(), client.0.local_addr().unwrap());
    let session = Session::new(1, Arc::new(params), address, sys::now());
    let preamble: Arc<dyn Preamble> = Arc::new(Line);
    let task = Task::with_preambles(
        session.clone(),
        worker.clone(),
        downstream.into(),
        Admission::Now(()),
        vec![preamble],
    );
    tokio::spawn(task);
    tokio::spawn(monitor(worker));
    (session, client, upstream)
}

#[tokio::test]
async fn a_preamble_says_who_the_client_is_and_the_rest_is_relayed() {
    let (session, mut client, upstream) = begin();
    let talking = thread::spawn(move || {
        client.0.write_all(b"203.0.113.7:4711\nhel").unwrap();
        let mut service = upstream.accept().unwrap().0;
        client.0.write_all(b"lo").unwrap();
        client.0.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        service.read_to_string(&mut got).unwrap();
        got
    });
    assert_eq!(ended(&session).await, CloseReason::Finished as u8);
    assert_eq!(talking.join().unwrap(), "hello");
    assert_eq!(session.client(), "203.0.113.7:4711".parse().unwrap());
    assert_eq!(session.traffic().received, [5, 0]);
}

#[tokio::test]
async fn a_preamble_that_comes_too_late_or_is_wrong_ends_the_session() {
    for (says, reason) in [
        ("203.0.113.7:4", CloseReason::Rejected),
        ("nobody\n", CloseReason::LocalError),
        (&"x".repeat(200), CloseReason::LocalError),
    ] {
        let (session, mut client, upstream) = begin();
        upstream.set_nonblocking(true).unwrap();
        client.0.write_all(says.as_bytes()).unwrap();
        assert_eq!(ended(&session).await, reason as u8, "{says}");
        assert!(upstream.accept().is_err(), "it was dialled for {says}");
    }
}

/// D is 30 s, its tolerance 1.5 s.
#[test]
fn a_verdict_that_comes_late_is_counted() {
    let address = "127.0.0.1:1".parse().unwrap();
    for (silent, probes, late) in [(32_500, true, 0), (32_501, true, 1), (90_000, false, 0)] {
        let metrics = Metrics::new();
        let mut params = params(address);
        params.policy.probes = [probes; 2];
        params.metrics = metrics.listener("db");
        let session = Session::new(1, Arc::new(params), address, sys::now());
        session.settle(&Close {
            reason: CloseReason::UpstreamDead,
            how: CloseHow::AbortAfterFlush(Leg::Upstream),
            evidence: Some(Evidence::Keepalive),
            silent_for: Span::ms(silent),
        });
        let name = "pulsegate_half_open_found_late_total";
        let line = format!("{name}{{leg=\"upstream\",listener=\"db\"}} {late}\n");
        assert!(metrics.render().contains(&line), "{}", metrics.render());
    }
}

#[tokio::test]
async fn a_fin_for_a_peer_that_has_reset_tells_of_the_reset() {
    let (ours, peer) = pair();
    let no_linger = Some(Duration::ZERO);
    socket2::SockRef::from(&peer.0)
        .set_linger(no_linger)
        .unwrap();
    drop(peer);
    for _ in 0..2 {
        let error = ours.finish().unwrap_err();
        assert_eq!(fault_of(&error), Fault::Reset, "{error}");
    }
}

#[test]
fn only_errors_of_the_peer_are_blamed_on_it() {
    let table = [
        (libc::ECONNRESET, Fault::Reset),
        (libc::EPIPE, Fault::Reset),
        (libc::ECONNABORTED, Fault::Reset),
        (libc::ETIMEDOUT, Fault::TimedOut),
        (libc::EHOSTUNREACH, Fault::Unreachable),
        (libc::ENETUNREACH, Fault::Unreachable),
        (libc::EHOSTDOWN, Fault::Unreachable),
        (libc::ENETDOWN, Fault::Unreachable),
        (libc::ENOMEM, Fault::Local),
        (libc::ENOBUFS, Fault::Local),
        (libc::EPROTO, Fault::Local),
        (libc::EIO, Fault::Local),
    ];
    let of_layer = [
        (io::ErrorKind::UnexpectedEof, Fault::Truncated),
        (io::ErrorKind::InvalidData, Fault::Layer),
    ];
    for (kind, fault) in of_layer {
        assert_eq!(fault_of(&kind.into()), fault, "{kind}");
    }
    for (errno, fault) in table {
        assert_eq!(
            fault_of(&io::Error::from_raw_os_error(errno)),
            fault,
            "{errno}"
        );
    }
}
