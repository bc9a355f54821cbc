//! What the log says of the start, of pulsegate and of sessions.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::rig::{
    PATIENT, Ports, Proxy, Service, Temporary, ask, eventually, kept, pulsegate, text,
};

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
        // Lines are written by a thread of their own.
        let as_asked = || text(&log).contains("session started") == started;
        assert!(eventually(PATIENT, as_asked), "{access}: {}", text(&log));
        let log_now = text(&log);
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

#[test]
fn the_log_says_who_asks_for_a_change() {
    let service = Service::start();
    let (log, stdio) = kept();
    let control = Temporary::new("sock");
    let path = format!("unix:{}", control.0.display());
    let mut proxy = Proxy::start(
        Ports::free(),
        service.address,
        stdio,
        &["--admin-control", &path],
    );
    let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
    ask(&mut client).expect("served");
    let admin = proxy.ports.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = pulsegate(arguments).output().expect("ran");
        assert!(output.status.success(), "{output:?}");
    };
    let mut stranger = TcpStream::connect(proxy.ports.admin).expect("connected");
    let request = format!(
        "POST /drain HTTP/1.1\r\nHost: {admin}\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n"
    );
    stranger.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stranger.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    run(&["kill", "1", "--reason", "it hangs", "--admin", &admin]);
    run(&["drain", "--admin", &path]);
    assert_eq!(proxy.wait().code(), Some(0));
    let log = text(&log);
    let killed = line(&log, "method=DELETE");
    for part in ["by=\"127.0.0.1:", "request=/connections/1?reason=it+hangs"] {
        assert!(killed.contains(part), "{part}: {killed}");
    }
    let refused = line(
        &log,
        "admin: a change is refused: cross-site request (Origin)",
    );
    for part in ["WARN ", "by=\"127.0.0.1:", "method=POST request=/drain"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let drained = line(&log, "by=\"uid");
    let user = format!("by=\"uid {}, pid ", rustix::process::geteuid().as_raw());
    assert!(drained.contains(&user), "{user}: {drained}");
    assert!(drained.contains("request=/drain"), "{drained}");
    let ended = line(&log, "an operator ends sessions");
    assert!(
        ended.contains("sessions=1 id=1 reason=\"it hangs\""),
        "{ended}"
    );
}
