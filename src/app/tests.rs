#![expect(clippy::disallowed_methods, reason = "the threads of a test may sleep")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::config;

/// Sends back what it gets; for as long as the test runs.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut writer = stream.try_clone()?;
                std::io::copy(&mut stream, &mut writer)?;
                writer.shutdown(Shutdown::Write)
            });
        }
    });
    address
}

fn app(workers: usize, upstream: SocketAddr, more: &[(&'static str, &str)]) -> Arc<App> {
    let flags = [
        ("listen", "127.0.0.1:0".to_owned()),
        ("upstream", upstream.to_string()),
        ("admin", "off".to_owned()),
        ("workers", workers.to_string()),
    ];
    let more = more
        .iter()
        .map(|(flag, value)| (*flag, (*value).to_owned()));
    let flags: Vec<_> = flags.into_iter().chain(more).collect();
    let config = config::from_flags(&flags).expect("flags");
    App::start(config, None, &Hooks::default(), Succession::None).expect("started")
}

fn listens_on(app: &App) -> SocketAddr {
    *app.listeners[0].bound.get().expect("bound")
}

/// Asks again for up to a minute.
fn eventually(mut what: impl FnMut() -> bool) -> bool {
    (0..6000).any(|_| {
        let holds = what();
        if !holds {
            thread::sleep(Duration::from_millis(10));
        }
        holds
    })
}

fn moved(app: &App) -> u64 {
    let name = "pulsegate_connections_moved_total{listener=\"default\"} ";
    let text = app.metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|n| n.parse().ok()).expect(name)
}

/// Rounds of messages of all sizes, each checked byte by byte; then the end of the stream.
fn talk(to: SocketAddr, seed: usize, rounds: usize) {
    let mut stream = TcpStream::connect(to).expect("connect");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("time-out");
    for round in 0..rounds {
        // Mostly small, now and then more than the sockets hold.
        let length =
            1 + (seed * 7919 + round * 104_729) % [50, 5_000, 150_000, 1_500_000][round % 4];
        let byte = |i: usize| u8::try_from((i * 31 + seed + round) % 251).unwrap_or_default();
        let sent: Vec<u8> = (0..length).map(byte).collect();
        let mut writer = stream.try_clone().expect("clone");
        let writing = thread::spawn({
            let sent = sent.clone();
            move || writer.write_all(&sent)
        });
        let mut got = vec![0; length];
        stream.read_exact(&mut got).expect("an echo");
        assert!(got == sent, "round {round} of {seed}");
        writing.join().expect("written").expect("written");
    }
    stream.shutdown(Shutdown::Write).expect("FIN");
    assert_eq!(stream.read(&mut [0; 1]).expect("FIN"), 0);
}

/// Small messages, as fast as they come back.
fn ping(to: SocketAddr, done: &AtomicBool) {
    let mut stream = TcpStream::connect(to).expect("connect");
    while !done.load(Ordering::Relaxed) {
        stream.write_all(&[7; 64]).expect("sent");
        stream.read_exact(&mut [0; 64]).expect("an echo");
    }
}

#[test]
fn sessions_that_move_in_mid_stream_lose_nothing() {
    let app = app(3, echo(), &[]);
    let to = listens_on(&app);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut from = 0;
            while !done.load(Ordering::Relaxed) {
                app.workers.move_all(from, (from + 1) % 3);
                // Each is seen once, wherever it is.
                let mut seen = HashSet::new();
                app.for_each_session(|session| assert!(seen.insert(session.id)));
                from = (from + 1) % 3;
                thread::sleep(Duration::from_millis(1));
            }
        });
        let talks: Vec<_> = (0..12)
            .map(|seed| scope.spawn(move || talk(to, seed, 120)))
            .collect();
        let ended: Vec<_> = talks
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        mover.join().expect("moved");
        assert!(ended.iter().all(Result::is_ok), "a stream was not whole");
    });
    assert!(moved(&app) >= 100, "{}", moved(&app));
    assert!(eventually(|| app.workers.sessions() == 0));
}

/// Nobody comes or goes meanwhile.
#[test]
fn sessions_that_move_are_counted_once_each() {
    const SESSIONS: usize = 8;
    let app = app(3, echo(), &[]);
    let to = listens_on(&app);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings: Vec<_> = (0..SESSIONS)
            .map(|_| scope.spawn(|| ping(to, &done)))
            .collect();
        let connected = eventually(|| app.workers.sessions() == SESSIONS);
        let mut counts = HashSet::new();
        for look in 0..3000 {
            app.workers.move_all(look % 3, (look + 1) % 3);
            counts.insert(app.workers.sessions());
            let mut seen = Vec::new();
            app.for_each_session(|session| seen.push(session.id));
            counts.insert(seen.len());
            thread::sleep(Duration::from_micros(200));
        }
        done.store(true, Ordering::Relaxed);
        assert!(pings.into_iter().all(|ping| ping.join().is_ok()));
        assert!(connected, "some were not taken");
        assert_eq!(counts, HashSet::from([SESSIONS]));
    });
    assert!(moved(&app) >= 100, "{}", moved(&app));
}

#[test]
fn a_second_worker_is_used_when_one_is_too_busy() {
    let app = app(2, echo(), &[]);
    let to = listens_on(&app);
    assert_eq!(app.workers.in_use(), 1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings: Vec<_> = (0..16).map(|_| scope.spawn(|| ping(to, &done))).collect();
        let spread = eventually(|| app.workers.in_use() == 2);
        done.store(true, Ordering::Relaxed);
        assert!(pings.into_iter().all(|ping| ping.join().is_ok()));
        assert!(spread, "the second worker was never used");
    });
    let given_up = eventually(|| TcpStream::connect(to).is_ok() && app.workers.in_use() == 1);
    assert!(given_up, "the second worker is in use without a session");
}

/// The monitor of the other worker takes over, whether or not it was under watch already.
#[test]
fn sessions_that_moved_are_watched_on() {
    for age in [0, 500] {
        let app = app(2, echo(), &[("idle-timeout", "1s")]);
        let mut stream = TcpStream::connect(listens_on(&app)).expect("connect");
        thread::sleep(Duration::from_millis(age));
        let mut tries = 0;
        while moved(&app) == 0 && tries < 100 {
            // It is with one of the two.
            app.workers.move_all(tries % 2, 1 - tries % 2);
            stream.write_all(&[7; 64]).expect("sent");
            stream.read_exact(&mut [0; 64]).expect("an echo");
            tries += 1;
        }
        assert!(moved(&app) > 0, "{age}");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("time-out");
        let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{age}");
        let ended = || {
            let metrics = app.metrics.render();
            metrics.contains("reason=\"idle_timeout\"} 1")
        };
        assert!(eventually(ended), "{age}");
    }
}

/// A session on the echo, and that it works.
fn greeted(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("connect");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("time-out");
    greet(&mut stream);
    stream
}

fn greet(stream: &mut TcpStream) {
    stream.write_all(b"hello").expect("sent");
    let mut got = [0; 5];
    stream.read_exact(&mut got).expect("an echo");
    assert_eq!(&got, b"hello");
}

#[test]
fn an_endpoint_is_swapped_under_live_sessions() {
    let (old_address, new_address) = (echo(), echo());
    let app = app(2, old_address, &[]);
    let to = listens_on(&app);
    let cluster = &app.listeners[0].params.cluster;
    let mut before = greeted(to);
    let old = cluster.endpoints();
    assert_eq!((old[0].address(), old[0].active()), (old_address, 1));
    cluster.replace([new_address]);
    let new = cluster.endpoints();
    let after = greeted(to);
    assert_eq!((new[0].address(), new[0].active()), (new_address, 1));
    greet(&mut before);
    assert_eq!((old[0].active(), old[0].connects()), (1, 1));
    let gone = Arc::downgrade(&old[0]);
    drop(old);
    assert!(gone.upgrade().is_some(), "a session uses it");
    drop(before);
    assert!(eventually(|| gone.upgrade().is_none()), "nobody uses it");
    drop(after);
    assert!(eventually(|| new[0].active() == 0));
}
