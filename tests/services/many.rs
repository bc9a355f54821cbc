//! Many sessions, many bytes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream as AsyncStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Case;
use crate::bytes::{Stream, expect_end};
use crate::process::free_address;
use crate::pulsegate::{Pulsegate, bytes_on, connect, figure};
use crate::support::eventually;

pub const CASES: &[Case] = &[
    Case::new("ten_thousand_sessions", &[], ten_thousand_sessions),
    Case::new(
        "answers_that_nobody_reads_take_little_memory",
        &[],
        answers_that_nobody_reads_take_little_memory,
    ),
    Case::new("one_session_both_ways_at_once", &[], || {
        both_ways_at_once(1, 200_000_000);
    }),
    Case::new("fifty_sessions_both_ways_at_once", &[], || {
        both_ways_at_once(50, 4_000_000);
    }),
];

/// What descriptors are kept for other tests of this process, files and the proxy itself.
const OTHER_DESCRIPTORS: u64 = 1000;
/// Connects at once, so that no accept queue overflows.
const AT_ONCE: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

/// How many of `wanted` sessions the descriptors of this process, which has both ends of each,
/// allow; and the right to use that many, which one test has at a time.
pub fn sessions(wanted: usize) -> (usize, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let allowed = limit.saturating_sub(OTHER_DESCRIPTORS) / 2;
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    if allowed < wanted {
        eprintln!("{wanted} sessions are wanted, the descriptor limit {limit} allows {allowed}");
    }
    (wanted.min(allowed), turn)
}

/// A runtime for tests that hold thousands of connections.
pub fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    builder.build().expect("a runtime")
}

/// Starts a service that sends back what it receives.
pub fn echo(runtime: &Runtime) -> SocketAddr {
    let address = free_address();
    let _guard = runtime.enter();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).expect("bind");
    let listener = socket.listen(4096).expect("listen");
    runtime.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // A client that aborts is its own affair.
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

/// Sends a message of its own and expects it back; the session stays open.
async fn echo_once(to: SocketAddr, number: usize) -> io::Result<AsyncStream> {
    let mut stream = AsyncStream::connect(to).await?;
    let mut message = Vec::new();
    Stream::new(number as u64).send(&mut message, 64 + number % 64)?;
    stream.write_all(&message).await?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, message, "session {number}");
    Ok(stream)
}

async fn open_all(to: SocketAddr, sessions: usize) -> Vec<AsyncStream> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for number in 0..sessions {
        let places = places.clone();
        clients.spawn(async move {
            let _place = places.acquire().await.expect("not closed");
            let echoed = tokio::time::timeout(PATIENCE, echo_once(to, number)).await;
            echoed.expect("in time").expect("echoed")
        });
    }
    clients.join_all().await
}

fn ten_thousand_sessions() {
    let (sessions, _turn) = sessions(10_000);
    let runtime = runtime();
    let flags = ["--detect-within", "5s", "--connect-timeout", "60s"];
    let proxy = Pulsegate::start(echo(&runtime), &flags);
    let open = runtime.block_on(open_all(proxy.address, sessions));
    proxy.expect_active(sessions);
    // Held for longer than detect_within: none is dead.
    thread::sleep(Duration::from_secs(6));
    proxy.expect_active(sessions);
    let sent = (0..sessions).map(|number| 64 + number % 64).sum();
    drop(open);
    let metrics = proxy.expect_all_closed("finished", sessions);
    for leg in ["downstream", "upstream"] {
        assert_eq!(
            bytes_on(&metrics, leg),
            (figure(sent), figure(sent)),
            "{leg}"
        );
    }
}

/// Sends and receives at once, says FIN after the last byte, and expects it from the other side.
pub fn exchange(stream: &TcpStream, sends: u64, receives: u64, bytes: usize) -> io::Result<()> {
    let (mut to, mut from) = (stream, stream);
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            Stream::new(sends).send(&mut to, bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        Stream::new(receives).receive(&mut from, bytes)?;
        expect_end(&mut from)?;
        sender.join().expect("the sender")
    })
}

/// The service's end: the client says first which session it is.
fn serve(mut stream: &TcpStream, bytes: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut number = [0; 8];
    stream.read_exact(&mut number)?;
    let number = u64::from_le_bytes(number);
    exchange(stream, !number, number, bytes)
}

/// Accepts a connection that is about to come.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let mut stream = None;
    eventually(PATIENCE, || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    stream.expect("a connection").0
}

/// All sessions as JSON are some 5 MiB, for each of 64 operators: more than the kernel takes.
fn answers_that_nobody_reads_take_little_memory() {
    const MOST_KIB: u64 = 16 << 10;
    let (wanted, _turn) = sessions(8000);
    let runtime = runtime();
    let pulsegate = Pulsegate::start(echo(&runtime), &[]);
    let clients = runtime.block_on(open_all(pulsegate.address, wanted));
    pulsegate.expect_active(wanted);
    // What one answer takes is not of interest here.
    let (status, all) = pulsegate.get("/connections").expect("answered");
    assert!(status == 200 && all.len() > 500 * wanted, "{status}");
    let before = pulsegate.resident();
    let request = "GET /connections HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let readers = (0..64).map(|_| {
        // A small window, so that the answer is not held by its reader's kernel.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("an option");
        socket.connect(&pulsegate.admin.into()).expect("connect");
        let mut stream = TcpStream::from(socket);
        stream.write_all(request.as_bytes()).expect("written");
        stream
    });
    let readers: Vec<_> = readers.collect();
    for _ in 0..30 {
        let held = pulsegate.resident().saturating_sub(before);
        assert!(held < MOST_KIB, "{held} KiB");
        assert_eq!(pulsegate.active(), figure(wanted));
        thread::sleep(Duration::from_millis(100));
    }
    drop(readers);
    drop(clients);
    pulsegate.expect_active(0);
}

fn both_ways_at_once(sessions: usize, bytes: usize) {
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    listener.set_nonblocking(true).expect("an option");
    let proxy = Pulsegate::start(address, &["--detect-within", "5s"]);
    thread::scope(|scope| {
        for number in 0..sessions as u64 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut stream = connect(proxy.address);
                stream.write_all(&number.to_le_bytes()).expect("send");
                exchange(&stream, number, !number, bytes).expect("the client's end");
            });
        }
        for _ in 0..sessions {
            let stream = accept(&listener);
            scope.spawn(move || serve(&stream, bytes).expect("the service's end"));
        }
    });
    let metrics = proxy.expect_all_closed("finished", sessions);
    let (up, down) = (figure(sessions * (bytes + 8)), figure(sessions * bytes));
    assert_eq!(bytes_on(&metrics, "downstream"), (up, down));
    assert_eq!(bytes_on(&metrics, "upstream"), (down, up));
}
