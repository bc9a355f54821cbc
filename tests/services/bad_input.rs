//! What nobody should send or ask for: a clear error or a clean close, and nothing lost for
//! others.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream as AsyncStream;

use crate::Case;
use crate::bytes::Stream;
use crate::many;
use crate::process::{Folder, Process, free_address, read_to_any_end};
use crate::pulsegate::{Pulsegate, binary, connect};
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "silent_clients_take_nothing_from_others",
        &[],
        silent_clients_take_nothing_from_others,
    ),
    Case::new(
        "more_clients_than_descriptors_are_turned_away",
        &["sh"],
        more_clients_than_descriptors_are_turned_away,
    ),
    Case::new("garbage_at_the_admin_port", &[], garbage_at_the_admin_port),
    Case::new("a_port_in_use_is_named", &[], a_port_in_use_is_named),
    Case::new(
        "an_upstream_without_address_is_a_closed_client",
        &[],
        an_upstream_without_address_is_a_closed_client,
    ),
    Case::new(
        "a_name_is_resolved_where_no_thread_can_be_had",
        &["prlimit"],
        a_name_is_resolved_where_no_thread_can_be_had,
    ),
    Case::new(
        "an_upstream_that_refuses_is_a_closed_client",
        &[],
        an_upstream_that_refuses_is_a_closed_client,
    ),
    Case::new(
        "a_service_that_restarts_is_waited_for",
        &[],
        a_service_that_restarts_is_waited_for,
    ),
];

const PROMPT: Duration = Duration::from_secs(60);

/// Sends a message and expects it back.
fn round_trip(mut stream: &TcpStream, number: usize) {
    let message = Stream::new(number as u64);
    message.clone().send(&mut stream, 1000).expect("send");
    message
        .clone()
        .receive(&mut stream, 1000)
        .expect("the echo");
}

/// A client that works until it is told to stop; counts its round trips.
fn work(stream: &TcpStream, stop: &AtomicBool, rounds: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let round = rounds.load(Ordering::Relaxed);
        round_trip(stream, round);
        rounds.store(round + 1, Ordering::Relaxed);
        thread::sleep(ms(2));
    }
}

fn silent_clients_take_nothing_from_others() {
    let (sessions, _turn) = many::sessions(10_000);
    let runtime = many::runtime();
    let flags = ["--detect-within", "5s", "--connect-timeout", "60s"];
    let proxy = Pulsegate::start(many::echo(&runtime), &flags);
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let healthy = proxy.connect();
    let progress = || {
        let before = rounds.load(Ordering::Relaxed);
        let more = || rounds.load(Ordering::Relaxed) > before + 10;
        assert!(eventually(PROMPT, more), "the healthy client stands still");
    };
    thread::scope(|scope| {
        scope.spawn(|| work(&healthy, &stop, &rounds));
        // The worker must end for the scope to end, whatever fails here.
        let _stops = Stops(&stop);
        progress();
        let silent = runtime.block_on(async {
            let mut silent = Vec::new();
            for _ in 1..sessions {
                silent.push(AsyncStream::connect(proxy.address).await.expect("connect"));
            }
            silent
        });
        proxy.expect_active(sessions);
        progress();
        assert_eq!(proxy.get("/livez").expect("an answer").0, 200);
        drop(silent);
        proxy.expect_active(1);
        progress();
    });
    drop(healthy);
    proxy.expect_all_closed("finished", sessions);
}

/// The process keeps descriptors for its operator and for the sessions it has.
fn more_clients_than_descriptors_are_turned_away() {
    let runtime = many::runtime();
    let proxy = Pulsegate::start_limited(200, many::echo(&runtime), &["--detect-within", "5s"]);
    let healthy = proxy.connect();
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rejected = || {
        let labels = [("reason", "descriptors")];
        let metrics = proxy.metrics();
        metrics.value("pulsegate_connections_rejected_total", &labels)
    };
    thread::scope(|scope| {
        scope.spawn(|| work(&healthy, &stop, &rounds));
        let _stops = Stops(&stop);
        assert!(eventually(PROMPT, || rounds.load(Ordering::Relaxed) > 0));
        let silent: Vec<_> = (0..300)
            .map(|_| TcpStream::connect(proxy.address))
            .collect();
        assert!(eventually(PROMPT, || rejected() >= 200.0), "{}", rejected());
        assert!(proxy.active() >= 10.0, "{}", proxy.active());
        let before = rounds.load(Ordering::Relaxed);
        let more = || rounds.load(Ordering::Relaxed) > before + 10;
        assert!(eventually(PROMPT, more), "the healthy client stands still");
        drop(silent);
        proxy.expect_active(1);
        round_trip(&proxy.connect(), 1);
    });
    drop(healthy);
    proxy.expect_active(0);
}

/// Tells a worker to stop when it is dropped.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn garbage() -> Vec<Vec<u8>> {
    let mut random = Vec::new();
    Stream::new(7).send(&mut random, 100_000).expect("written");
    let long_header = [b"GET / HTTP/1.1\r\nX: ", vec![b'x'; 200_000].as_slice()].concat();
    // A TLS 1.2 ClientHello as far as the random bytes.
    let hello = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &random[..32],
    ]
    .concat();
    let words: [&[u8]; 6] = [
        b"\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /drain HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        &[0; 5000],
    ];
    let words = words.into_iter().map(<[u8]>::to_vec);
    words.chain([random, long_header, hello]).collect()
}

fn garbage_at_the_admin_port() {
    let runtime = many::runtime();
    let proxy = Pulsegate::start(many::echo(&runtime), &["--detect-within", "5s"]);
    for bytes in garbage() {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let mut stream = connect(proxy.admin);
        // It may be refused before it is all sent.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let answer = read_to_any_end(&mut stream);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{shown:?}: {answer}");
        assert_eq!(proxy.get("/livez").expect("an answer").0, 200, "{shown:?}");
        assert_eq!(proxy.get("/readyz").expect("an answer").0, 200, "{shown:?}");
    }
    // More silent connections than the endpoint serves: the operator still gets through.
    let silent: Vec<_> = (0..100).map(|_| connect(proxy.admin)).collect();
    assert_eq!(proxy.get("/readyz").expect("an answer").0, 200);
    drop(silent);
    proxy.expect_settled();
}

fn a_port_in_use_is_named() {
    let taken = free_address();
    let _holder = TcpListener::bind(taken).expect("listen");
    let free = || free_address().to_string();
    let taken = taken.to_string();
    for (listen, admin, what) in [
        (taken.clone(), free(), "listener"),
        (free(), taken.clone(), "admin"),
    ] {
        let mut command = binary();
        command
            .args(["--listen", &listen, "--admin", &admin])
            .args(["--upstream", "127.0.0.1:1"]);
        let mut process = Process::start(&mut command);
        let status = process.wait(PROMPT);
        let said = process.errors();
        assert_eq!(status.code(), Some(3), "{said}");
        for word in [what, &taken, "in use"] {
            assert!(said.contains(word), "{word:?} is missing: {said}");
        }
    }
}

/// Clients are closed without a byte, for this reason, and the process goes on.
#[track_caller]
fn expect_clients_closed(proxy: &Pulsegate, reason: &str, failure: &str) {
    // The end may come before connect() has returned.
    let clients = (0..5).map(|_| TcpStream::connect(proxy.address));
    let clients: Vec<_> = clients.collect();
    for mut client in clients.into_iter().flatten() {
        client.set_read_timeout(Some(PROMPT)).expect("an option");
        // Some clients speak first, and not all get that far.
        let _ = client.write_all(b"hello");
        assert_eq!(read_to_any_end(&mut client), b"");
    }
    assert_eq!(proxy.get("/livez").expect("an answer").0, 200);
    let metrics = proxy.expect_all_closed(reason, 5);
    let failed = |labels: &[(&str, &str)]| {
        metrics.value("pulsegate_upstream_connect_failures_total", labels)
    };
    assert_eq!((failed(&[("reason", failure)]), failed(&[])), (5.0, 5.0));
}

fn an_upstream_without_address_is_a_closed_client() {
    // `.invalid` never resolves (RFC 2606). Where no name server answers, finding that out takes
    // a while: longer than the default connect timeout.
    let flags = ["--detect-within", "5s", "--connect-timeout", "50s"];
    let proxy = Pulsegate::start("nobody.invalid.:80", &flags);
    expect_clients_closed(&proxy, "connect_failed", "failed");
}

/// A thread for a look-up that is not to be had must not end what others have.
fn a_name_is_resolved_where_no_thread_can_be_had() {
    let runtime = many::runtime();
    let folder = Folder::new();
    let upstream = format!("localhost:{}", many::echo(&runtime).port());
    let proxy = Pulsegate::start_without_threads(&folder, upstream);
    let clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        round_trip(client, number);
    }
    drop(clients);
    proxy.expect_all_closed("finished", 3);
}

fn an_upstream_that_refuses_is_a_closed_client() {
    let proxy = Pulsegate::start(free_address(), &["--detect-within", "5s"]);
    expect_clients_closed(&proxy, "connect_refused", "refused");
}

/// What a client has sent is read before the first connect is refused, or after it.
fn a_service_that_restarts_is_waited_for() {
    const CLIENTS: usize = 20;
    let address = free_address();
    let flags = ["--connect-retry", "50ms", "--connect-timeout", "60s"];
    let proxy = Pulsegate::start(address, &flags);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut client = proxy.connect();
            client.write_all(&[number as u8]).expect("send");
            client
        })
        .collect();
    thread::sleep(ms(500));
    let service = TcpListener::bind(address).expect("bind");
    let mut told: Vec<u8> = (0..CLIENTS)
        .map(|_| {
            let (mut taken, _) = service.accept().expect("a client that has waited");
            taken.set_read_timeout(Some(PROMPT)).expect("an option");
            let mut request = [0];
            taken.read_exact(&mut request).expect("its request");
            request[0]
        })
        .collect();
    told.sort_unstable();
    assert!(told.into_iter().eq(0..CLIENTS as u8));
    drop(clients);
}
