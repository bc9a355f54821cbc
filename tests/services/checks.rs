//! Active checks: what is asked of an endpoint, who is dialled then, and what becomes of live sessions.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::Case;
use crate::papers::{self, Papers, TlsServer};
use crate::postgres::{Postgres, psql, query};
use crate::process::{Folder, Process, free_address, read_to_any_end};
use crate::pulsegate::{Pulsegate, closed};
use crate::support::certificates::{self, Subject};
use crate::support::eventually;

pub const CASES: &[Case] = &[
    Case::new(
        "checks_follow_the_primary_of_postgres",
        &["initdb", "postgres", "psql"],
        checks_follow_the_primary_of_postgres,
    ),
    Case::new(
        "checks_ask_and_expect_behind_a_header_of_their_own",
        &[],
        checks_ask_and_expect_behind_a_header_of_their_own,
    ),
    Case::new(
        "checks_close_the_port_while_all_is_down",
        &[],
        checks_close_the_port_while_all_is_down,
    ),
    Case::new(
        "checks_that_connect_see_a_service_go_and_come",
        &[],
        checks_that_connect_see_a_service_go_and_come,
    ),
    Case::new(
        "checks_look_at_the_certificate",
        &[],
        checks_look_at_the_certificate,
    ),
    Case::new("checks_ask_inside_tls", &[], checks_ask_inside_tls),
];

const PROMPT: Duration = Duration::from_secs(30);

/// A server, and the answer that Patroni would give to `GET /primary` there.
struct Member {
    postgres: Postgres,
    is_primary: Arc<AtomicBool>,
}

impl Member {
    fn start(ip: Ipv4Addr, port: u16, patroni: u16, is_primary: bool) -> Self {
        let address = SocketAddr::from((ip, port));
        let postgres = Postgres::start_at(address, Process::start);
        let is_primary = Arc::new(AtomicBool::new(is_primary));
        let listener = TcpListener::bind((ip, patroni)).expect("listen");
        let answer = is_primary.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a check");
                let mut line = String::new();
                let _cut = BufReader::new(&stream).read_line(&mut line);
                let status = match (line.starts_with("GET /primary "), &answer) {
                    (true, answer) if answer.load(Ordering::Relaxed) => "200 OK",
                    (true, _) => "503 Service Unavailable",
                    (false, _) => "404 Not Found",
                };
                let _cut = write!(stream, "HTTP/1.0 {status}\r\n\r\n{{}}");
            }
        });
        Self {
            postgres,
            is_primary,
        }
    }
}

/// Waits until the endpoints have these states, in the order of the list.
#[track_caller]
fn expect_states(proxy: &Pulsegate, states: &[&str]) {
    let shown = || {
        let (_, body) = proxy.get("/upstreams").expect("an answer");
        let list: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let endpoints = list.as_array().cloned().unwrap_or_default();
        let states = endpoints
            .iter()
            .map(|e| e["state"].as_str().unwrap_or("?").to_owned());
        states.collect::<Vec<_>>()
    };
    assert!(eventually(PROMPT, || shown() == states), "{:?}", shown());
}

/// One passes, one fails; both are asked again and again.
#[track_caller]
fn expect_checks(proxy: &Pulsegate) {
    let (_, body) = proxy.get("/upstreams").expect("an answer");
    let list: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let check = |n: usize| &list[n]["last_check"];
    assert!(check(0)["error"].is_null(), "{body}");
    assert_eq!(check(1)["error"], "status 503", "{body}");
    for n in [0, 1] {
        let (ago, since) = (&check(n)["ago_ms"], &list[n]["since_ms"]);
        assert!(
            ago.as_u64() < Some(5_000) && since.as_u64() < Some(60_000),
            "{body}"
        );
    }
}

fn checks_follow_the_primary_of_postgres() {
    let [first, second] = [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)];
    let (port, patroni) = (free_address().port(), free_address().port());
    let (a, b) = thread::scope(|scope| {
        let a = scope.spawn(|| Member::start(first, port, patroni, true));
        let b = Member::start(second, port, patroni, false);
        (a.join().expect("started"), b)
    });
    let folder = Folder::new();
    let where_am_i = "select host(inet_server_addr())";
    for on_down in ["keep", "verify", "close"] {
        a.is_primary.store(true, Ordering::Relaxed);
        b.is_primary.store(false, Ordering::Relaxed);
        let (address, admin) = (free_address(), free_address());
        let file = folder.join(on_down);
        let text = format!(
            "listeners:\n- address: '{address}'\n  upstream:\n    \
             endpoints: [{{ address: '{}' }}, {{ address: '{}' }}]\n    \
             check: {{ kind: http, path: /primary, port: {patroni}, interval: 100ms, fall: 2, \
             on_down: {on_down} }}\nadmin: {{ address: '{admin}', ready: upstream }}\n",
            a.postgres.address, b.postgres.address
        );
        fs::write(&file, text).expect("write a file");
        let proxy = Pulsegate::start_config(&file, address, admin);
        expect_states(&proxy, &["up", "down"]);
        expect_checks(&proxy);
        let asks = |expected: IpAddr| assert_eq!(query(address, where_am_i), expected.to_string());
        (0..3).for_each(|_| asks(first.into()));
        let mut live = Process::start(&mut psql(address));
        let ask = |live: &mut Process| {
            writeln!(live.input(), "{where_am_i};").expect("psql reads");
        };
        ask(&mut live);
        let answers = |live: &Process| live.output().matches("127.0.0.1").count();
        assert!(eventually(PROMPT, || answers(&live) == 1));

        // Nobody is the primary for a moment.
        a.is_primary.store(false, Ordering::Relaxed);
        expect_states(&proxy, &["down", "down"]);
        let (status, why) = proxy.get("/readyz").expect("an answer");
        assert_eq!(status, 503, "{why}");
        assert!(why.contains("default"), "{why}");
        b.is_primary.store(true, Ordering::Relaxed);
        expect_states(&proxy, &["down", "up"]);
        assert_eq!(proxy.get("/readyz").expect("an answer").0, 200);
        (0..3).for_each(|_| asks(second.into()));
        let ended = || closed(&proxy.metrics(), "upstream_down");
        if on_down == "close" {
            assert!(eventually(PROMPT, || ended() == 1.0));
        } else {
            // The server that is no primary any more lives.
            ask(&mut live);
            assert!(eventually(PROMPT, || answers(&live) == 2), "{on_down}");
            assert_eq!(ended(), 0.0);
        }
    }
}

fn checks_ask_and_expect_behind_a_header_of_their_own() {
    for (version, header) in [
        ("off", &b""[..]),
        ("v1", b"PROXY UNKNOWN\r\n"),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ] {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let upstream = service.local_addr().expect("bound");
        let asked = [header, b"PING\r\n"].concat();
        let right = Arc::new(AtomicBool::new(true));
        let answers = right.clone();
        thread::spawn(move || {
            for stream in service.incoming() {
                let mut stream = stream.expect("a check");
                let mut got = vec![0; asked.len()];
                let whole = stream.read_exact(&mut got).is_ok() && got == asked;
                let answer: &[u8] = match whole && answers.load(Ordering::Relaxed) {
                    true => b"+PONG\r\nand more",
                    false => b"-LOADING",
                };
                let _cut = stream.write_all(answer);
            }
        });
        let flags = [
            "--check",
            "send",
            "--check-send",
            "PING\\r\\n",
            "--check-expect",
            "+PONG",
            "--check-interval",
            "100ms",
            "--upstream-proxy-protocol",
            version,
        ];
        let proxy = Pulsegate::start(upstream, &flags);
        right.store(false, Ordering::Relaxed);
        expect_states(&proxy, &["down"]);
        right.store(true, Ordering::Relaxed);
        expect_states(&proxy, &["up"]);
        let log = proxy.log();
        assert!(log.contains("another answer than check.expect"), "{log}");
    }
}

fn checks_that_connect_see_a_service_go_and_come() {
    let upstream = free_address();
    let proxy = Pulsegate::start(upstream, &["--check", "tcp", "--check-interval", "100ms"]);
    expect_states(&proxy, &["down"]);
    // One that is down is dialled where there is no other.
    // The end may come before connect() has returned.
    if let Ok(mut client) = TcpStream::connect(proxy.address) {
        assert_eq!(read_to_any_end(&mut client), b"");
    }
    let service = TcpListener::bind(upstream).expect("listen");
    expect_states(&proxy, &["up"]);
    drop(service);
    expect_states(&proxy, &["down"]);
    proxy.expect_active(0);
    assert_eq!(closed(&proxy.metrics(), "connect_refused"), 1.0);
}

/// A proxy in front of a service of TLS, by the addresses of which its certificate may have one.
fn in_front_of(service: &TlsServer, papers: &Papers, flags: &[&str]) -> Pulsegate {
    let ca = papers.named("ca.pem");
    let checked = ["--check-interval", "100ms", "--upstream-tls-ca", &ca];
    Pulsegate::start(service.address, &[&checked, flags].concat())
}

/// Whatever makes sessions fail has the endpoint be down, and the log says what it is.
fn checks_look_at_the_certificate() {
    let papers = Papers::new();
    let subject = || Subject::named(&["127.0.0.1"]);
    let good = papers.issue("good", subject());
    let others = Papers::new();
    let foreign = others.issue("foreign", subject());
    let service = TlsServer::start(certificates::server(&good), |_| Ok(()));
    let client = [papers.named("good.pem"), papers.named("good.key")];
    let known = [
        "--upstream-tls-certificate",
        &client[0],
        "--upstream-tls-key",
        &client[1],
    ];
    let flags = ["--check", "tls"];
    let [anybody, somebody] = [&flags[..], &[&flags, &known[..]].concat()];
    let proxy = in_front_of(&service, &papers, anybody);
    expect_states(&proxy, &["up"]);
    for (config, why) in [
        (
            certificates::server(&papers.issue("old", subject().expired())),
            "expired",
        ),
        (
            certificates::server(&papers.issue("new", subject().not_yet_valid())),
            "not valid for another",
        ),
        (
            certificates::server(&papers.issue("other", Subject::named(&["b.example"]))),
            "b.example",
        ),
        (certificates::server(&foreign), "CA"),
        (
            certificates::server_for(&good, &papers.path("ca.pem")),
            "certificate required",
        ),
    ] {
        service.become_another(config);
        expect_states(&proxy, &["down"]);
        let said = || {
            let log = proxy.log();
            let last = log
                .lines()
                .rfind(|line| line.contains("an endpoint is down"));
            last.unwrap_or_default().to_owned()
        };
        assert!(
            eventually(PROMPT, || said().contains(why)),
            "{why}: {}",
            said()
        );
        service.become_another(certificates::server(&good));
        expect_states(&proxy, &["up"]);
    }
    // One that may come in.
    service.become_another(certificates::server_for(&good, &papers.path("ca.pem")));
    let proxy = in_front_of(&service, &papers, somebody);
    expect_states(&proxy, &["up"]);
    let [ended, _] = service.ends();
    let more = || service.ends()[0] > ended + 5;
    assert!(eventually(PROMPT, more), "checks go on");
    assert_eq!(proxy.get("/upstreams").expect("an answer").0, 200);
}

fn checks_ask_inside_tls() {
    let papers = Papers::new();
    let own = papers.issue("own", Subject::named(&["127.0.0.1"]));
    let serve: papers::Serve = |stream| {
        let mut question = [0; 64];
        let n = stream.read(&mut question)?;
        let answer: &[u8] = match &question[..n] {
            b"PING\r\n" => b"+PONG\r\n",
            [b'G', b'E', b'T', ..] => b"HTTP/1.0 204 No Content\r\n\r\n",
            _ => b"",
        };
        stream.write_all(answer)
    };
    let send = [
        "--check",
        "send",
        "--check-send",
        "PING\\r\\n",
        "--check-expect",
        "+PONG",
    ];
    for flags in [&send[..], &["--check", "http"], &["--check", "tls"]] {
        let service = TlsServer::start(certificates::server(&own), serve);
        let proxy = in_front_of(&service, &papers, flags);
        assert!(eventually(PROMPT, || service.ends()[0] > 3));
        expect_states(&proxy, &["up"]);
        // Every check ends with close_notify, also one that has failed.
        assert_eq!(service.ends()[1], 0, "{flags:?}");
    }
    let service = TlsServer::start(certificates::server(&own), serve);
    let wrong = ["--check", "http", "--check-status", "200"];
    let proxy = in_front_of(&service, &papers, &wrong);
    expect_states(&proxy, &["down"]);
    assert_eq!(service.ends()[1], 0);
    assert!(proxy.log().contains("status 204"), "{}", proxy.log());
}

/// The port is refused while the service is away, again and again, and taken once it is there.
fn checks_close_the_port_while_all_is_down() {
    let upstream = free_address();
    let flags = [
        "--check",
        "tcp",
        "--check-interval",
        "100ms",
        "--when-down",
        "refuse",
    ];
    let proxy = Pulsegate::start(upstream, &flags);
    let is_refused = || {
        let connected = TcpStream::connect(proxy.address);
        connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    for _ in 0..3 {
        assert!(eventually(PROMPT, is_refused));
        let service = TcpListener::bind(upstream).expect("listen");
        assert!(eventually(PROMPT, || TcpStream::connect(proxy.address).is_ok()));
        let serve = || {
            let mut client = TcpStream::connect(proxy.address).ok()?;
            client.write_all(b"hello").ok()?;
            client.shutdown(Shutdown::Write).ok()?;
            let mut got = String::new();
            // Checks connect, too.
            while got != "hello" {
                got.clear();
                service.accept().ok()?.0.read_to_string(&mut got).ok()?;
            }
            Some(())
        };
        serve().expect("served");
    }
}
