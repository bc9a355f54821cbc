//! What the log says of the start, of pulsegate and of sessions.

use std::io::Write;
use std::net::TcpStream;

use crate::rig::{PATIENT, Ports, Proxy, Service, ask, eventually, kept, text};

fn line<'a>(log: &'a str, word: &str) -> &'a str {
    let found = log.lines().find(|line| line.contains(word));
    found.unwrap_or_else(|| panic!("{word}: {log}"))
}

#[test]
fn the_line_of_the_start_says_what_runs() {
    let (log, stdio) = kept();
    let proxy = Proxy::start(Ports::free(), Service::start().address, stdio, &[]);
    assert!(eventually(PATIENT, || text(&log).contains("has started")));
    let log = text(&log);
    let found = line(&log, "pulsegate has started");
    for part in [
        format!("version=\"{}\"", env!("CARGO_PKG_VERSION")),
        "config=\"flags\"".to_owned(),
        format!("admin=\"{}\"", proxy.ports.admin),
        format!("listeners=\"default {}\"", proxy.ports.clients),
    ] {
        assert!(found.contains(&part), "{part}: {found}");
    }
    assert!(!log.contains("pulsegate::"), "no paths of modules: {log}");
}

#[test]
fn sessions_are_logged_as_asked_for() {
    let service = Service::start();
    for (access, started, ended) in [
        ("end", false, true),
        ("both", true, true),
        ("off", false, false),
        // As before there were words.
        ("true", false, true),
        ("false", false, false),
    ] {
        let (log, stdio) = kept();
        let flags = ["--access-log", access];
        let mut proxy = Proxy::start(Ports::free(), service.address, stdio, &flags);
        let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
        ask(&mut client).expect("served");
        let peer = client.local_addr().expect("bound").to_string();
        let log_now = text(&log);
        assert_eq!(
            log_now.contains("session started"),
            started,
            "{access}: {log_now}"
        );
        if started {
            let found = line(&log_now, "session started");
            let expected = format!("id=1 listener=\"default\" downstream={peer}");
            assert!(
                found.contains("INFO") && found.ends_with(&expected),
                "{found}"
            );
        }
        drop(client);
        proxy.signal(rustix::process::Signal::TERM);
        assert_eq!(proxy.wait().code(), Some(0));
        let log = text(&log);
        assert_eq!(log.contains("session ended"), ended, "{access}: {log}");
    }
}

#[test]
fn the_start_of_a_session_tells_client_and_proxy_apart() {
    let service = Service::start();
    let (log, stdio) = kept();
    let flags = [
        "--access-log",
        "both",
        "--proxy-protocol",
        "require",
        "--proxy-protocol-trusted",
        "127.0.0.0/8",
    ];
    let proxy = Proxy::start(Ports::free(), service.address, stdio, &flags);
    let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.9 5000 6000\r\n";
    client.write_all(header).expect("sent");
    ask(&mut client).expect("served");
    let log = text(&log);
    let balancer = client.local_addr().expect("bound");
    let expected = format!("downstream=192.0.2.7:5000 proxy={balancer}");
    assert!(line(&log, "session started").ends_with(&expected), "{log}");
}
