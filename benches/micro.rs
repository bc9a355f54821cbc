//! The pieces by themselves: one look of the liveness machine, the queue of looks, the relay.
//! `cargo bench --bench micro`; see benches/README.md.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use pulsegate::config::{self, Abandoned, OnDead, OnEnd};
use pulsegate::liveness::{LegSample, Machine, Observation, Policy, Span, TcpState, Time, Traffic};
use pulsegate::metrics::Metrics;
use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream as Socket;
use pulsegate::relay::{Counters, Relay};
use pulsegate::session::{Session, SessionParams, Table};
use pulsegate::upstream::Cluster;
use tokio::runtime::Runtime;

const SESSIONS: usize = 10_000;
/// Moved by one turn of the bulk benchmark.
const BULK: usize = 64 << 20;

fn main() {
    divan::main();
}

fn policy() -> Policy {
    Policy {
        delivery_timeout: None,
        receive_timeout: [None; 2],
        probes: [true; 2],
        detect_within: Span::ms(30_000),
        probe_interval: Span::ms(6_000),
        idle_timeout: Some(Span::ms(3_600_000)),
        half_close_timeout: Some(Span::ms(60_000)),
        stall_timeout: None,
        first_response_timeout: None,
        max_duration: None,
    }
}

/// A leg that has been quiet for so long.
fn quiet(age: u64) -> LegSample {
    LegSample {
        state: TcpState::Established,
        last_ack_age: Span::ms(age),
        last_data_age: Span::ms(age),
        last_sent_age: Span::ms(age),
        segs_in: 10,
        bytes_acked: 65,
        bytes_received: 64,
        rtt_us: 300,
        ..LegSample::default()
    }
}

fn look_at(legs: [LegSample; 2]) -> Observation {
    let carried = Traffic {
        received: [64; 2],
        sent: [64; 2],
    };
    Observation {
        legs: legs.map(Some),
        traffic: carried,
        answers_before: 64,
    }
}

/// A healthy idle session, looked at once in a while.
#[divan::bench]
fn look_idle(bencher: Bencher) {
    let (policy, look) = (policy(), look_at([quiet(2_000), quiet(2_000)]));
    let mut machine = Machine::new(Time::default());
    let mut now = Time::ms(10_000);
    bencher.bench_local(|| {
        now = now + Span::ms(20_000);
        divan::black_box(machine.observe(now, &policy, &look))
    });
}

/// One leg has left a question unanswered.
#[divan::bench]
fn look_suspect(bencher: Bencher) {
    let policy = policy();
    let asked = LegSample {
        probes: 2,
        ..quiet(12_000)
    };
    let look = look_at([asked, quiet(2_000)]);
    let suspect = Machine::new(Time::default());
    bencher
        .with_inputs(|| suspect.clone())
        .bench_local_refs(|machine| {
            divan::black_box(machine.observe(Time::ms(12_000), &policy, &look))
        });
}

/// Taking 64 sessions that are due out of 10,000, and queueing them for their next look.
#[divan::bench]
fn schedule_64_of_10k(bencher: Bencher) {
    const BATCH: usize = 64;
    let table = Table::default();
    let service = service();
    for n in 0..SESSIONS {
        let client = (Ipv4Addr::LOCALHOST, 1).into();
        let session = Session::new(n as u64, Arc::clone(&service), client, Time::default());
        let key = table.insert(session);
        table.schedule(Time::ms(n as u64), key);
    }
    let mut now = Time::default();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        now = now + Span::ms(BATCH as u64);
        for (_, key, session, _) in table.take_due(now, BATCH) {
            divan::black_box(&session);
            table.schedule(now + Span::ms(SESSIONS as u64), key);
        }
    });
}

fn service() -> Arc<SessionParams> {
    let flags = [("listen", "127.0.0.1:0"), ("upstream", "127.0.0.1:1")];
    let config = config::from_flags(&flags.map(|(flag, value)| (flag, value.to_owned())));
    let listener = config.unwrap().listeners.remove(0);
    let (upstream, heartbeat) = (listener.upstream, listener.liveness.heartbeat);
    Arc::new(SessionParams {
        name: "bench".into(),
        tls: None,
        cluster: Arc::new(Cluster::new("bench".into(), upstream)),
        connect_lines: Default::default(),
        tls_lines: Default::default(),
        policy: policy(),
        on_dead: OnDead::Reset,
        on_end: OnEnd::Reset,
        metrics: Metrics::new().listener("bench"),
        sheds: false,
        probes: Default::default(),
        low_water: true,
        first_byte_timeout: None,
        queue_timeout: None,
        abandoned: Abandoned::Serve,
        last_end: AtomicU8::default(),
        reconnect_delay: Duration::ZERO,
        sessions: AtomicUsize::new(0),
        heartbeats: [None, None],
        asking: heartbeat.asking(),
        misfit_lines: Default::default(),
    })
}

/// A relay between a client and a service, all on loopback.
struct Bench {
    runtime: Runtime,
    client: TcpStream,
    service: TcpStream,
    legs: [LegStream; 2],
    relay: Relay,
    counters: Counters,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let (client, downstream) = connected();
        let (service, upstream) = connected();
        let legs = {
            let _inside = runtime.enter();
            [downstream, upstream].map(|stream| {
                stream.set_nonblocking(true).expect("non-blocking");
                LegStream::from(Socket::new(stream.into()).expect("register"))
            })
        };
        Self {
            runtime,
            client,
            service,
            legs,
            relay: Relay::new(true),
            counters: Counters::default(),
        }
    }

    /// Polls the relay until it has passed on so many bytes in all.
    fn pump(&mut self, total: u64) {
        let Self {
            runtime,
            relay,
            counters,
            legs,
            ..
        } = self;
        runtime.block_on(poll_fn(|cx| {
            let ended = relay.poll(legs, counters, cx);
            assert!(ended.is_pending(), "{ended:?}");
            if counters.traffic().sent[1] >= total {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
    }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let far = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (near, _) = listener.accept().expect("accept");
    for end in [&far, &near] {
        end.set_nodelay(true).expect("an option");
    }
    (far, near)
}

/// A message from the client to the service: written, relayed, read.
#[divan::bench(args = [64, 16 << 10])]
fn relay_message(bencher: Bencher, bytes: usize) {
    let mut bench = Bench::new();
    let (message, mut taken) = (vec![7; bytes], vec![0; bytes]);
    let mut total = 0;
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        bench.client.write_all(&message).expect("send");
        total += bytes as u64;
        bench.pump(total);
        bench.service.read_exact(&mut taken).expect("receive");
    });
    assert_eq!(taken, message);
}

/// A stream as fast as it goes. The ends have threads of their own, so this needs idle processors.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn relay_bulk(bencher: Bencher) {
    let mut bench = Bench::new();
    let mut total = 0;
    bencher.counter(BytesCount::new(BULK)).bench_local(|| {
        total += BULK as u64;
        let mut source = bench.client.try_clone().expect("a second handle");
        let mut sink = bench.service.try_clone().expect("a second handle");
        thread::scope(|scope| {
            scope.spawn(move || send(&mut source));
            scope.spawn(move || discard(&mut sink));
            bench.pump(total);
        });
    });
}

fn send(stream: &mut TcpStream) {
    let chunk = vec![7; 256 << 10];
    for _ in 0..BULK / chunk.len() {
        stream.write_all(&chunk).expect("send");
    }
}

fn discard(stream: &mut TcpStream) {
    let mut chunk = vec![0; 256 << 10];
    let mut left = BULK;
    while left > 0 {
        left -= stream.read(&mut chunk).expect("receive");
    }
}
