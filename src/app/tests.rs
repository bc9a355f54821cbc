#![expect(clippy::disallowed_methods, reason = "the threads of a test may sleep")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::config::{self, ListenAddress, ListenerConfig};
use std::collections::HashSet;

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
    App::start(
        config,
        Source::default(),
        &Hooks::default(),
        Succession::None,
    )
    .expect("started")
}

fn listens_on(app: &App) -> SocketAddr {
    bound(&app.registry.listeners()[0])
}

fn bound(listener: &Listener) -> SocketAddr {
    listener.bound.socket().expect("an IP address and port")
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
                app.balancer().move_all(from, (from + 1) % 3);
                // Each is seen once, wherever it is.
                let mut seen = HashSet::new();
                app.balancer()
                    .for_each(|session| assert!(seen.insert(session.id)));
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
    assert!(eventually(|| app.balancer().sessions() == 0));
}

/// The client has said FIN, and takes little at a time.
#[test]
fn half_closed_and_blocked_sessions_move() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let app = app(2, upstream.local_addr().expect("an address"), &[]);
    let byte = |i: usize| u8::try_from(i % 251).unwrap_or_default();
    let bytes: Vec<u8> = (0..24 << 20).map(byte).collect();
    let expected = bytes.clone();
    let serving = thread::spawn(move || {
        let (mut stream, _) = upstream.accept().expect("a client");
        stream.read_to_end(&mut Vec::new()).expect("FIN");
        stream.write_all(&bytes).expect("sent");
    });
    let mut client = TcpStream::connect(listens_on(&app)).expect("connect");
    client.shutdown(Shutdown::Write).expect("FIN");
    let mut got: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 128 << 10];
    let mut from = 0;
    loop {
        app.balancer().move_all(from, 1 - from);
        from = 1 - from;
        match client.read(&mut chunk).expect("more") {
            0 => break,
            n => got.extend(&chunk[..n]),
        }
        thread::sleep(Duration::from_millis(2));
    }
    serving.join().expect("served");
    assert!(got == expected, "other bytes");
    assert!(moved(&app) >= 10, "{}", moved(&app));
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
        let connected = eventually(|| app.balancer().sessions() == SESSIONS);
        let mut counts = HashSet::new();
        for look in 0..3000 {
            app.balancer().move_all(look % 3, (look + 1) % 3);
            counts.insert(app.balancer().sessions());
            let mut seen = Vec::new();
            app.balancer().for_each(|session| seen.push(session.id));
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

/// The measurement is injected: on a loaded machine no thread runs for 90 % of any time.
#[test]
fn a_second_worker_is_used_when_one_is_full() {
    let app = app(2, echo(), &[]);
    let to = listens_on(&app);
    assert_eq!(app.balancer().in_use(), 1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings: Vec<_> = (0..16).map(|_| scope.spawn(|| ping(to, &done))).collect();
        let connected = eventually(|| app.balancer().sessions() == 16);
        app.balancer().fill(0);
        let in_use = app.balancer().in_use();
        let spread = eventually(|| moved(&app) > 0);
        done.store(true, Ordering::Relaxed);
        assert!(pings.into_iter().all(|ping| ping.join().is_ok()));
        assert!(connected && spread, "no session has migrated");
        assert_eq!(in_use, 2);
    });
    let given_up = eventually(|| TcpStream::connect(to).is_ok() && app.balancer().in_use() == 1);
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
            app.balancer().move_all(tries % 2, 1 - tries % 2);
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
    let listeners = app.registry.listeners();
    let cluster = &listeners[0].params.cluster;
    let mut before = greeted(to);
    let old = cluster.endpoints();
    assert_eq!(
        (old[0].address().literal(), old[0].active()),
        (Some(old_address), 1)
    );
    cluster.replace(&[new_address]);
    let new = cluster.endpoints();
    let after = greeted(to);
    assert_eq!(
        (new[0].address().literal(), new[0].active()),
        (Some(new_address), 1)
    );
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

fn serving(app: &App, name: &str) -> Arc<Listener> {
    let serving = app.registry.serving();
    let found = serving.into_iter().find(|l| l.config.name == name);
    found.expect("it serves")
}

fn set_listeners(app: &App, listeners: &[ListenerConfig]) {
    let config = Config {
        listeners: listeners.to_vec(),
        ..(*app.running()).clone()
    };
    app.serve_on(&config, &Materials::default())
        .expect("changed");
}

fn named(app: &App, name: &str) -> ListenerConfig {
    ListenerConfig {
        name: name.to_owned(),
        ..app.running().listeners[0].clone()
    }
}

#[test]
fn a_listener_is_added_and_removed_while_others_serve() {
    let app = app(2, echo(), &[]);
    let first = named(&app, "default");
    let both = [first.clone(), named(&app, "second")];
    set_listeners(&app, &both);
    let to = bound(&serving(&app, "second"));
    let mut live = greeted(to);
    let active = "pulsegate_connections_active{listener=\"second\"} 1\n";
    assert!(Control::metrics(&*app).contains(active));

    set_listeners(&app, std::slice::from_ref(&first));
    let refused = || {
        let refused = TcpStream::connect(to).err().map(|error| error.kind());
        refused == Some(ErrorKind::ConnectionRefused)
    };
    assert!(eventually(refused), "clients are still taken");
    greet(&mut live);
    greeted(listens_on(&app));
    assert!(Control::metrics(&*app).contains(active), "it is not named");
    let shown = Control::sessions(&*app);
    let is_named = |view: crate::view::ConnectionView| view.listener == "second";
    assert!(
        shown
            .iter()
            .any(|session| session.view().is_some_and(is_named))
    );
}

/// It may have a table of rates.
#[test]
fn a_removed_listener_is_not_kept_by_its_drain() {
    let app = app(1, echo(), &[]);
    let first = named(&app, "default");
    set_listeners(&app, &[first, named(&app, "second")]);
    let second = Arc::downgrade(&serving(&app, "second"));
    let removed = app
        .serve_on(&app.running(), &Materials::default())
        .expect("removed");
    let drain = app.clone().drain_removed(&removed, Duration::from_secs(60));
    drop(removed);
    let is_forgotten = || {
        drop(app.registry.listeners());
        second.upgrade().is_none()
    };
    assert!(eventually(is_forgotten));
    drop(drain);
}

#[test]
fn a_listener_that_changes_refuses_nobody_and_counts_on() {
    let app = app(2, echo(), &[("max-connections", "1")]);
    let to = listens_on(&app);
    let mut holder = greeted(to);
    let limited = |limit| {
        let mut wanted = ListenerConfig {
            address: ListenAddress::Socket(to),
            ..named(&app, "default")
        };
        wanted.limits.max_connections = Some(limit);
        set_listeners(&app, &[wanted]);
    };
    // A client that is turned away is reset.
    let served = || {
        let mut stream = TcpStream::connect(to).expect("never refused");
        let _reset = stream.write_all(b"hello");
        stream.read_exact(&mut [0; 5]).is_ok().then_some(stream)
    };
    assert!(served().is_none());
    limited(2);
    let second = greeted(to);
    assert!(served().is_none());
    limited(1);
    drop(second);
    assert!(eventually(|| app.balancer().sessions() == 1));
    assert!(served().is_none(), "the first one holds the only place");
    greet(&mut holder);
    drop(holder);
    assert!(eventually(|| served().is_some()));
}

#[test]
fn a_listener_that_changes_gives_nobody_a_new_burst() {
    let limits = [("rate-per-source", "1/m"), ("burst-per-source", "2")];
    let app = app(1, echo(), &limits);
    let to = listens_on(&app);
    let (_first, _second) = (greeted(to), greeted(to));
    let served = || {
        let mut stream = TcpStream::connect(to).expect("never refused");
        let _reset = stream.write_all(b"hello");
        stream.read_exact(&mut [0; 5]).is_ok()
    };
    assert!(!served());
    let mut wanted = named(&app, "default");
    wanted.address = ListenAddress::Socket(to);
    wanted.limits.max_connections = Some(7);
    set_listeners(&app, &[wanted.clone()]);
    assert!(!served());
    wanted.limits.burst_per_source = 3;
    set_listeners(&app, &[wanted]);
    // For a moment the old acceptor still takes clients.
    let mut clients = 0;
    let burst = || {
        clients += u32::from(served());
        clients == 3
    };
    assert!(eventually(burst), "other limits begin anew");
}

#[test]
fn listeners_that_come_and_go_leave_nothing_behind() {
    let app = app(2, echo(), &[]);
    let (first, mut other) = (named(&app, "default"), named(&app, "other"));
    // It comes again before the last acceptor has left.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    other.address = ListenAddress::Socket(free.local_addr().expect("an address"));
    drop(free);
    let accepting = || app.balancer().tasks();
    // Of each of the two workers the monitor and the acceptor, which start by themselves.
    let before = 4;
    assert!(eventually(|| accepting() == before), "{}", accepting());
    let mut gone = Vec::new();
    for _ in 0..1000 {
        set_listeners(&app, &[first.clone(), other.clone()]);
        gone.push(Arc::downgrade(&serving(&app, "other")));
        set_listeners(&app, std::slice::from_ref(&first));
    }
    // Its sockets are open for as long as a listener or an accepting task lives.
    assert!(eventually(|| accepting() == before), "{}", accepting());
    assert_eq!(app.registry.listeners().len(), 1);
    assert!(gone.iter().all(|listener| listener.upgrade().is_none()));
    assert!(!Control::metrics(&*app).contains("listener=\"other\""));
}
