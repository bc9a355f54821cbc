//! The process as its supervisor meets it: signals, exit codes, standard output and standard error
//! that nobody reads.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

#[path = "process/addresses.rs"]
mod addresses;
#[path = "process/ends.rs"]
mod ends;
#[path = "process/log.rs"]
mod log;
#[path = "process/manager.rs"]
mod manager;
#[path = "process/refusing.rs"]
mod refusing;
#[path = "process/reload.rs"]
mod reload;
#[path = "process/rig.rs"]
mod rig;
#[path = "process/tls.rs"]
mod tls;
#[path = "process/top.rs"]
mod top;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use rig::{
    PATIENT, PROMPT, Ports, Proxy, Service, Temporary, ask, eventually, free_address, kept, nobody,
    pulsegate, text, wait,
};

// --- The log and its reader -----------------------------------------------------------------

/// Only what a full pipe and a full queue hold is written; the rest is dropped, and counted.
#[test]
fn a_log_that_nobody_reads_does_not_keep_the_process() {
    let mut proxy = Proxy::start(Ports::free(), nobody(), Stdio::piped(), &[]);
    let full = || proxy.metric("pulsegate_log_lines_dropped_total") > 0.0;
    let until = Instant::now() + PATIENT;
    while !full() {
        assert!(Instant::now() < until, "the log does not fill up");
        for _ in 0..500 {
            // Its service refuses: a session of one line or two.
            let _reset = TcpStream::connect(proxy.ports.clients).and_then(|mut s| s.read(&mut [0]));
        }
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn the_exit_code_is_said_to_a_broken_standard_error_too() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let nobody = free_address().to_string();
    let busy = ["run", "--listen", &taken, "--upstream", "127.0.0.1:1"];
    for (arguments, code) in [
        (&[&busy[..], &["--admin", "off"]].concat()[..], 3),
        (&["run", "--listen", "nonsense"], 2),
        (&["check", "--listen", "nonsense"], 2),
        (&["conns", "--admin", &nobody], 1),
        (&["nonsense"], 2),
    ] {
        for stderr in [broken_pipe(), full_pipe()] {
            let kept = stderr.1;
            let mut child = pulsegate(arguments)
                .stdout(Stdio::null())
                .stderr(stderr.0)
                .spawn()
                .expect("start it");
            assert_eq!(wait(&mut child, PROMPT).code(), Some(code), "{arguments:?}");
            drop(kept);
        }
    }
}

/// A pipe whose reader has gone.
fn broken_pipe() -> (Stdio, Option<OwnedFd>) {
    let (_, write) = rustix::pipe::pipe().expect("a pipe");
    (write.into(), None)
}

/// A pipe whose reader does not read; with the reader's end.
fn full_pipe() -> (Stdio, Option<OwnedFd>) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&write, 4096).expect("a small one");
    rustix::io::write(&write, &[b'x'; 4096]).expect("filled");
    (write.into(), Some(read))
}

// --- Signals --------------------------------------------------------------------------------

#[test]
fn other_signals_do_not_kill() {
    let (log, stdio) = kept();
    let mut proxy = Proxy::start(Ports::free(), nobody(), stdio, &[]);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        proxy.signal(signal);
        thread::sleep(Duration::from_millis(200));
        assert!(proxy.get("/livez").is_ok(), "{signal:?}");
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    let log = text(&log);
    let line = |word: &str| log.lines().find(|line| line.contains(word));
    assert!(line("SIGHUP").is_some_and(|l| l.contains("WARN")), "{log}");
    assert!(line("SIGUSR1 is ignored").is_some(), "{log}");
    assert!(line("SIGUSR2 is ignored").is_some(), "{log}");
}

/// While it still waits for its configuration.
#[test]
fn sigterm_is_heard_from_the_first_moment_on() {
    let fifo = Temporary::new("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo.0, kind, mode, 0).expect("a FIFO");
    let mut child = pulsegate(&["run", "--config"])
        .arg(&fifo.0)
        .spawn()
        .expect("start it");
    let handled = |signal: Signal| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
        let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:\t"));
        let mask = u64::from_str_radix(mask.expect("a mask"), 16).expect("hexadecimal");
        mask & (1 << (signal.as_raw() - 1)) != 0
    };
    let all = [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1];
    let heard = eventually(PROMPT, || all.into_iter().all(handled));
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).expect("signalled");
    let status = wait(&mut child, PROMPT);
    assert!(heard, "no handlers");
    assert_eq!(status.code(), Some(0), "{status}");
}

// --- What a person types --------------------------------------------------------------------

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = pulsegate(arguments).output().expect("run it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, errors)
}

#[test]
fn help_and_version_are_asked_for_in_every_way() {
    for (arguments, words) in [
        (&["help"][..], "Usage: pulsegate"),
        (&["--help"], "Exit codes:"),
        (&["help", "run"], "--takeover"),
        (&["run", "--help"], "SIGTERM"),
        (
            &["version"],
            concat!("pulsegate ", env!("CARGO_PKG_VERSION")),
        ),
        (&["-V"], concat!("pulsegate ", env!("CARGO_PKG_VERSION"))),
        (
            &["--version"],
            concat!("pulsegate ", env!("CARGO_PKG_VERSION")),
        ),
    ] {
        let (code, out, errors) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {errors}");
        assert!(out.contains(words), "{arguments:?}: {out}");
    }
}

/// Nobody listens there: it is not even asked.
#[test]
fn wrong_words_are_refused_before_anything_is_asked() {
    let nobody = free_address().to_string();
    let admin = ["--admin", &nobody];
    for (arguments, word) in [
        (&["conns", "--condition", "dead"][..], "suspect"),
        (&["conns", "--sort", "size"], "last_life"),
        (&["conns", "--limit", "few"], "whole number"),
        (&["verify", "--all", "--phase", "shut"], "half_closed"),
        (&["verify", "--all", "--peer", "localhost"], "IP address"),
        (&["kill", "seven"], "seven"),
        (&["kill", "--peer", "192.0.2.7"], "filters go with --all"),
        (&["verify"], "name sessions"),
    ] {
        let (code, _, errors) = run(&[arguments, &admin].concat());
        assert_eq!(code, Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
    }
    let listen = ["check", "--listen", "127.0.0.1:1", "--upstream"];
    for upstream in ["http://service:80", "tcp://[::1]:80"] {
        let (code, _, errors) = run(&[&listen[..], &[upstream]].concat());
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains("is a URL; write host:port"), "{errors}");
    }
    let (code, _, errors) = run(&["demo", "--duration", "1s"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("12s"), "{errors}");
}

#[test]
fn the_admin_address_may_be_a_name_or_any_port() {
    let ports = Ports::free();
    let _proxy = {
        let name = format!("localhost:{}", ports.admin.port());
        let command = ["run", "--upstream", "127.0.0.1:1", "--admin", &name];
        let listen = ["--listen", &ports.clients.to_string()];
        let mut command = pulsegate(&[&command[..], &listen].concat());
        Proxy::of(command.stdout(Stdio::null()), ports)
    };
    let ready = || {
        run(&[
            "healthcheck",
            "--ready",
            "--admin",
            &format!("localhost:{}", ports.admin.port()),
        ])
        .0 == Some(0)
    };
    assert!(eventually(PATIENT, ready), "not ready");
    let (code, _, errors) = run(&["conns", "--admin", "no.such.host.invalid:9900"]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("cannot be looked up"), "{errors}");

    let any = Ports {
        clients: free_address(),
        admin: (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let (log, stdio) = kept();
    let _proxy = Proxy::spawn(any, nobody(), stdio, &[]);
    let port = || -> Option<u16> {
        let log = text(&log);
        let line = log
            .lines()
            .find(|line| line.contains("the admin endpoint"))?;
        let address = line.split("127.0.0.1:").nth(1)?;
        address.split_whitespace().next()?.parse().ok()
    };
    assert!(eventually(PATIENT, || port().is_some()), "{}", text(&log));
    let found = format!("127.0.0.1:{}", port().expect("a port"));
    assert!(eventually(PROMPT, || run(&[
        "healthcheck",
        "--admin",
        &found
    ])
    .0 == Some(0)));
}

// --- One instance after the other -----------------------------------------------------------

/// Not even the kernel lets a client in.
#[test]
fn no_client_is_taken_before_every_address_is_had() {
    let [first, second] = [free_address(), free_address()];
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = taken.local_addr().expect("bound");
    for (admin, second) in [(taken, second), (free_address(), taken)] {
        let listener = |name: &str, address: SocketAddr| {
            format!(
                "  - {{name: {name}, address: '{address}', upstream: {{address: '127.0.0.1:1'}}}}\n"
            )
        };
        let [a, b] = [listener("a", first), listener("b", second)];
        let yaml = format!("listeners:\n{a}{b}admin: {{address: '{admin}'}}\n");
        let file = Temporary::new("yaml");
        fs::write(&file.0, yaml).expect("written");
        let mut child = pulsegate(&["run", "--config"])
            .arg(&file.0)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start it");
        while child.try_wait().expect("wait for the child").is_none() {
            let refused = TcpStream::connect(first).map_err(|error| error.kind());
            assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
        }
        let output = child.wait_with_output().expect("ended");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{errors}");
        assert!(errors.contains(&taken.to_string()), "{errors}");
    }
}

#[test]
fn a_second_instance_is_refused_and_takes_over_where_it_is_told_to() {
    let service = Service::start();
    let ports = Ports::free();
    let old = Proxy::start(ports, service.address, kept().1, &[]);
    let (log, stdio) = kept();
    let mut second = Proxy::spawn(ports, service.address, stdio, &[]);
    assert_eq!(second.wait().code(), Some(3), "{}", text(&log));
    drop(old);

    // Without an admin address there is no way to it.
    let flags = ["--admin", "off"];
    let mut old = pulsegate(&["run", "--upstream", "127.0.0.1:1"]);
    let old = old
        .args(["--listen", &ports.clients.to_string()])
        .args(flags);
    let mut old = old.stdout(Stdio::null()).spawn().expect("start it");
    let listens = || TcpStream::connect(ports.clients).is_ok();
    assert!(eventually(PATIENT, listens), "does not listen");
    let output = pulsegate(&["run", "--takeover", "--upstream", "127.0.0.1:1"])
        .args(["--listen", &ports.clients.to_string()])
        .args(["--admin", &ports.admin.to_string()])
        .output()
        .expect("run it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("cannot be taken over"), "{errors}");
    let _ = old.kill();
    let _ = old.wait();
    let output = pulsegate(&["run", "--takeover", "--upstream", "127.0.0.1:1"])
        .args(["--listen", &ports.clients.to_string()])
        .args(flags)
        .output()
        .expect("run it");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_takeover_refuses_no_client() {
    const GENERATIONS: usize = 6;
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--takeover", "--workers", "2", "--drain-timeout", "60s"];
    // Nothing to take over yet.
    let mut running = Proxy::start(ports, service.address, kept().1, &flags);
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut client = TcpStream::connect(ports.clients).expect("not refused");
                    ask(&mut client).expect("not reset");
                    served.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        let handed_over = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for generation in 0..GENERATIONS {
                let mut session = TcpStream::connect(ports.clients).expect("connected");
                ask(&mut session).expect("served");
                // More workers than sockets, and fewer.
                let workers = ["--workers", ["1", "3"][generation % 2]];
                let (log, stdio) = kept();
                let flags = [&["--takeover", "--drain-timeout", "60s"], &workers[..]].concat();
                let next = Proxy::spawn(ports, service.address, stdio, &flags);
                let done = || text(&log).contains("took over");
                assert!(eventually(PATIENT, done), "{}", text(&log));
                let ready = || matches!(next.get("/readyz"), Ok(page) if page.contains(" 200 "));
                assert!(eventually(PROMPT, ready), "not ready");
                thread::sleep(Duration::from_millis(100));
                ask(&mut session).expect("the old one drains");
                drop(session);
                let mut old = std::mem::replace(&mut running, next);
                assert_eq!(old.wait().code(), Some(0));
            }
        }));
        over.store(true, Ordering::Relaxed);
        handed_over.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(served.into_inner() > 100);
}

/// Across two takeovers in a row.
#[test]
fn a_takeover_does_not_share_a_device() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = [
        "--takeover",
        "--max-connections",
        "1",
        "--drain-timeout",
        "60s",
    ];
    let flags = [&flags[..], &["--on-full", "queue"]].concat();
    let _first = Proxy::start(ports, service.address, kept().1, &flags);
    let mut holder = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut holder).expect("served");
    let mut instances = Vec::new();
    for _ in 0..2 {
        let (log, stdio) = kept();
        instances.push(Proxy::spawn(ports, service.address, stdio, &flags));
        let done = || text(&log).contains("took over");
        assert!(eventually(PATIENT, done), "{}", text(&log));
    }
    let mut next = TcpStream::connect(ports.clients).expect("waits in the kernel");
    next.set_read_timeout(Some(PATIENT)).expect("an option");
    next.write_all(b"question").expect("sent");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(service.connections.load(Ordering::Relaxed), 1);
    ask(&mut holder).expect("still served");
    drop(holder);
    next.read_exact(&mut [0; 8]).expect("served at last");
    assert_eq!(service.most.load(Ordering::Relaxed), 1, "two at once");
}

/// The same command again, while the first one drains.
#[test]
fn a_draining_instance_gives_its_admin_address_to_the_next_one() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--drain-timeout", "60s"];
    let mut old = Proxy::start(ports, service.address, kept().1, &flags);
    let mut session = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut session).expect("served");
    old.signal(Signal::TERM);
    let closed = || TcpStream::connect(ports.clients).is_err();
    assert!(eventually(PROMPT, closed), "still accepts");
    assert!(old.get("/readyz").expect("answers").contains(" 503 "));
    let next = Proxy::start(ports, service.address, kept().1, &flags);
    let mut other = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut other).expect("served");
    ask(&mut session).expect("the old one drains");
    assert_eq!(
        next.metric("pulsegate_connections_accepted_total{listener=\"default\"}"),
        1.0
    );
    drop(session);
    assert_eq!(old.wait().code(), Some(0));
}

// --- What one session is shown with -----------------------------------------------------------

#[test]
fn one_session_has_all_its_clocks_and_more_of_tcp_info() {
    let service = Service::start();
    let flags = ["--detect-within", "10s", "--max-connection-duration", "1h"];
    let flags = [
        &flags[..],
        &["--max-connections", "1", "--on-full", "queue"],
    ]
    .concat();
    let proxy = Proxy::start(Ports::free(), service.address, kept().1, &flags);
    let mut holder = TcpStream::connect(proxy.ports.clients).expect("connected");
    ask(&mut holder).expect("answered");
    let list = proxy.json("/connections");
    assert!(list["connections"][0]["clocks"].is_null(), "{list}");
    let session = proxy.json(&format!("/connections/{}", list["connections"][0]["id"]));
    let clocks = session["clocks"].as_array().expect("a list");
    let left: Vec<_> = clocks.iter().map(|clock| clock["in_ms"].as_u64()).collect();
    assert!(left.is_sorted(), "{session}");
    assert_eq!(clocks[0]["reason"], session["timer"]["reason"]);
    let runs = |reason: &str| clocks.iter().any(|clock| clock["reason"] == reason);
    let all = [
        "downstream_dead",
        "upstream_dead",
        "idle_timeout",
        "max_duration",
    ];
    assert!(all.into_iter().all(runs), "{session}");
    for leg in ["downstream", "upstream"] {
        let info = &session["tcp_info"][leg];
        assert_eq!(info["bytes_received"], 8, "{session}");
        assert!(info["rto_us"].as_u64() > Some(0), "{session}");
    }
    // One that waits has no upstream, and does not wait for ever.
    let _waits = TcpStream::connect(proxy.ports.clients).expect("connected");
    let queued = || proxy.json("/connections?phase=queued")["connections"][0]["id"].as_u64();
    assert!(eventually(PROMPT, || queued().is_some()));
    let session = proxy.json(&format!("/connections/{}", queued().expect("it waits")));
    let clocks = session["clocks"].as_array().expect("a list");
    assert!(
        clocks
            .iter()
            .any(|clock| clock["reason"] == "queue_timeout"),
        "{session}"
    );
    assert!(session["tcp_info"]["upstream"].is_null(), "{session}");
    let listener = &proxy.json("/summary")["listeners"][0];
    assert_eq!(
        (&listener["in_use"], &listener["limit"]),
        (&1.into(), &1.into())
    );
}
