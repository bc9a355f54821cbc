//! `pulsegate doctor` and the metrics of the host, by the real binary.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_pulsegate");
const WITHIN: Duration = Duration::from_secs(20);
/// Every check that does not depend on a configuration.
const CHECKS: [&str; 21] = [
    "keepalive",
    "user_timeout",
    "rto_max",
    "window",
    "on_demand_probe",
    "descriptors",
    "ip_local_port_range",
    "time_wait",
    "cpu_quota",
    "memory_limit",
    "tcp_mem",
    "pipes",
    "somaxconn",
    "tcp_syncookies",
    "tcp_max_syn_backlog",
    "tcp_synack_retries",
    "handshakes",
    "listen_drops",
    "congestion_control",
    "tcp_retries2",
    "tcp_keepalive_time",
];

/// From good to bad.
const STATUSES: [&str; 5] = ["ok", "info", "unknown", "warn", "fail"];

fn doctor(args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("doctor").args(args).output().expect("ran")
}

/// Under a descriptor limit.
fn doctor_limited(descriptors: u32, args: &str) -> Output {
    let script = format!("ulimit -n {descriptors} && exec {BINARY} doctor {args}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).output().expect("ran")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is said of each check, in one line each; the summary is the last.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        assert!(
            line.chars().count() <= 80 || line.trim().split(' ').count() == 1,
            "{line}"
        );
        match (line.strip_prefix("        "), lines.last_mut()) {
            (Some(rest), Some(last)) => {
                last.push(' ');
                last.push_str(rest.trim_start());
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

/// What is said of a check: its status, and all of it.
#[track_caller]
fn line(text: &str, check: &str) -> (String, String) {
    let lines = lines(text);
    let mut lines = lines.iter().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let status = words.next()?;
        (words.next()? == check).then(|| (status.to_owned(), line.clone()))
    });
    let found = lines.next();
    assert!(lines.next().is_none(), "{check} twice in {text}");
    found.unwrap_or_else(|| panic!("no {check} in {text}"))
}

#[test]
fn every_check_has_its_line() {
    let output = doctor(&[]);
    let text = text(&output);
    assert_eq!(lines(&text).len(), CHECKS.len() + 1, "{text}");
    for check in CHECKS {
        let (status, line) = line(&text, check);
        assert!(STATUSES.contains(&&*status), "{line}");
        assert_eq!(
            line.contains(" set: "),
            line.contains("sysctl -w") || line.contains("ulimit") || line.contains("--workers"),
            "{line}"
        );
    }
    let fails = text.lines().any(|line| line.starts_with("fail"));
    assert!(
        !text.contains('\u{1b}'),
        "no colours without a terminal: {text}"
    );
    // The worst come last, and are counted.
    let all = lines(&text);
    let (summary, checks) = all.split_last().expect("a summary");
    let rank = |line: &String| {
        let status = line.split(' ').next();
        STATUSES.iter().position(|s| Some(*s) == status)
    };
    assert!(checks.is_sorted_by_key(rank), "{text}");
    let ok = checks.iter().filter(|line| rank(line) == Some(0)).count();
    assert!(summary.ends_with(&format!("{ok} ok")), "{summary}");
    assert_eq!(!summary.starts_with("0 failed"), fails, "{summary}");
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{text}");
    for ability in ["keepalive", "user_timeout", "on_demand_probe"] {
        assert_eq!(line(&text, ability).0, "ok", "{text}");
    }
}

#[test]
fn json_says_the_same() {
    let output = doctor(&["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("a list");
    let names: Vec<_> = checks.iter().map(|c| c["check"].as_str()).collect();
    assert_eq!(names, CHECKS.map(Some));
    let fails = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(report["worst"] == "fail", fails);
    assert_eq!(output.status.code(), Some(i32::from(fails)));
}

#[test]
fn limits_that_contradict_fail_and_name_the_setting() {
    let flags = "--listen 127.0.0.1:0 --upstream 127.0.0.1:1 --workers 2";
    let output = doctor_limited(256, &format!("{flags} --max-connections 81"));
    let said = text(&output);
    let (status, found) = line(&said, "descriptors");
    assert_eq!(
        (&*status, output.status.code()),
        ("fail", Some(1)),
        "{said}"
    );
    assert!(
        found.contains("256: room for 76 sessions") && found.contains("LimitNOFILE=266"),
        "{found}"
    );

    let output = doctor_limited(256, &format!("{flags} --max-connections 76"));
    assert_eq!(line(&text(&output), "descriptors").0, "ok");

    let said = text(&doctor_limited(256, flags));
    let (status, found) = line(&said, "descriptors");
    assert_eq!(status, "warn", "{said}");
    assert!(found.contains("ulimit -n 2104"), "{found}");
}

/// The limit that the doctor names is the one that `run` refuses at.
#[test]
fn run_refuses_what_the_doctor_fails() {
    let flags = "--listen 127.0.0.1:0 --upstream 127.0.0.1:1 --admin off --max-connections 81";
    let script = format!("ulimit -n 256 && exec {BINARY} run {flags}");
    let output = Command::new("sh").args(["-c", &script]).output();
    let output = output.expect("ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("LimitNOFILE"), "{said}");
}

/// Where not one session has room there is nothing to start.
#[test]
fn no_room_for_a_session_is_told_before_the_start() {
    let flags = "--listen 127.0.0.1:0 --upstream 127.0.0.1:1";
    let said = text(&doctor_limited(64, flags));
    let (status, found) = line(&said, "descriptors");
    assert_eq!(status, "fail", "{said}");
    assert!(found.contains("no room for a session"), "{found}");
    let script = format!("ulimit -n 64 && exec timeout 10 {BINARY} run {flags} --admin off");
    let output = Command::new("sh").args(["-c", &script]).output();
    let output = output.expect("ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("LimitNOFILE"), "{said}");
}

/// A socket for each listener and worker: what is left is for sessions, and the endpoint answers
/// however many clients come.
#[test]
fn many_listeners_leave_room_for_the_endpoint() {
    const LISTENERS: usize = 100;
    let service = TcpListener::bind("127.0.0.1:0").expect("bound");
    let upstream = service.local_addr().expect("bound");
    thread::spawn(move || service.incoming().collect::<Vec<_>>());
    let admin = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let admin = admin.expect("bound");
    let listener = |n| {
        format!("  - {{name: l{n}, address: '127.0.0.1:0', upstream: {{address: '{upstream}'}}}}\n")
    };
    let listeners: String = (0..LISTENERS).map(listener).collect();
    let yaml = format!("listeners:\n{listeners}admin: {{address: '{admin}'}}\nworkers: 2\n");
    let name = format!("pulsegate-many-listeners-{}.yaml", std::process::id());
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, yaml).expect("written");
    let config = format!("--config {}", file.display());

    let said = text(&doctor_limited(256, &config));
    assert_eq!(line(&said, "descriptors").0, "fail", "{said}");
    let said = text(&doctor_limited(512, &config));
    let (status, found) = line(&said, "descriptors");
    assert_eq!(status, "warn", "{said}");
    assert!(found.contains("room for 105 sessions"), "{found}");

    let script = format!("ulimit -n 512 && exec {BINARY} run {config} 2>&1");
    let mut run = Command::new("sh");
    run.args(["-c", &script]).stdout(Stdio::piped());
    let mut run = Running(run.spawn().expect("started"));
    let output = run.0.stdout.take().expect("piped");
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    let address = loop {
        let line = lines.recv_timeout(Duration::from_secs(20));
        let line = line.expect("starts");
        let words = line.split_whitespace();
        let address = words
            .filter_map(|word| word.strip_prefix("address="))
            .next();
        if let Some(address) = address.filter(|_| line.contains("listening")) {
            break address.to_owned();
        }
    };
    let answers = || {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while answers().is_err() {
        assert!(Instant::now() < deadline, "no endpoint");
        thread::sleep(Duration::from_millis(50));
    }
    let connect = |_| TcpStream::connect(&address).expect("connected");
    let clients: Vec<_> = (0..300).map(connect).collect();
    thread::sleep(Duration::from_secs(1));
    for _ in 0..10 {
        let answer = answers().expect("the endpoint answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop((clients, run));
    let failed: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("os error 24"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let _ = std::fs::remove_file(file);
}

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_wrong_configuration_is_told_apart() {
    let output = doctor(&["--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let output = doctor(&["--help"]);
    assert!(text(&output).contains("Exit codes:"), "{}", text(&output));
}

#[test]
fn a_service_that_does_not_accept_is_named() {
    let service = Service::that_does_not_accept();
    let upstream = service.address.to_string();
    let flags = ["--listen", "127.0.0.1:0", "--upstream", &upstream];
    let said = text(&doctor(&flags));
    assert_eq!(line(&said, "upstream_queue").0, "ok", "{said}");
    let _clients = [service.connect(), service.connect()];
    let said = text(&doctor(&flags));
    let (status, found) = line(&said, "upstream_queue");
    assert_eq!(status, "warn", "{said}");
    assert!(found.contains(&format!("2 of 1 at {upstream}")), "{found}");
}

/// Listens with a backlog of 1; its queue holds two.
struct Service {
    _listener: TcpListener,
    address: SocketAddr,
}

impl Service {
    fn that_does_not_accept() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        // Listening again changes the backlog.
        socket2::SockRef::from(&listener).listen(1).expect("set");
        let address = listener.local_addr().expect("bound");
        Self {
            _listener: listener,
            address,
        }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("connected")
    }
}

/// A running pulsegate; killed when dropped.
struct Proxy {
    child: Child,
    admin: SocketAddr,
    listen: SocketAddr,
}

impl Proxy {
    fn before(upstream: &str) -> Self {
        // Chosen by the kernel, and free again for the proxy.
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
            listener.local_addr().expect("bound")
        };
        let (listen, admin) = (free(), free());
        let child = Command::new(BINARY)
            .args(["run", "--listen", &listen.to_string()])
            .args(["--upstream", upstream, "--admin", &admin.to_string()])
            .args(["--workers", "2", "--backlog", "7"])
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let proxy = Self {
            child,
            admin,
            listen,
        };
        proxy.eventually(|metrics| metrics.contains("pulsegate_build_info"));
        proxy
    }

    fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    #[track_caller]
    fn eventually(&self, holds: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + WITHIN;
        loop {
            let metrics = self.metrics().unwrap_or_default();
            if holds(&metrics) {
                return metrics;
            }
            assert!(Instant::now() < end, "still not in {metrics}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn value(metrics: &str, series: &str) -> Option<u64> {
    let mut lines = metrics.lines();
    lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn the_host_is_in_the_metrics() {
    let service = Service::that_does_not_accept();
    let proxy = Proxy::before(&service.address.to_string());
    let metrics = proxy.eventually(|m| value(m, "pulsegate_on_demand_probe") == Some(1));
    for series in [
        "pulsegate_netns_listen_overflows_total",
        "pulsegate_netns_listen_drops_total",
        "pulsegate_netns_syncookies_sent_total",
        "pulsegate_netns_syncookies_received_total",
        "pulsegate_netns_request_queue_full_cookies_total",
        "pulsegate_netns_syn_recv",
        "pulsegate_netns_time_wait",
        "pulsegate_netns_orphans",
    ] {
        assert!(value(&metrics, series).is_some(), "{series}\n{metrics}");
    }
    let is = |metrics: &str, series: &str| {
        value(
            metrics,
            &format!("pulsegate_{series}{{listener=\"default\"}}"),
        )
    };
    assert_eq!(is(&metrics, "listen_queue_length"), Some(0), "{metrics}");
    assert_eq!(is(&metrics, "listen_queue_limit"), Some(14), "{metrics}");
    let (length, limit) = (
        "upstream_listen_queue_length",
        "upstream_listen_queue_limit",
    );
    assert_eq!(
        (is(&metrics, length), is(&metrics, limit)),
        (Some(0), Some(1))
    );

    let _client = TcpStream::connect(proxy.listen).expect("connected");
    proxy.eventually(|metrics| is(metrics, length) == Some(1));
    drop(service);
    proxy.eventually(|metrics| is(metrics, length).is_none() && is(metrics, limit).is_none());
}

#[test]
fn a_service_elsewhere_has_no_queue() {
    let proxy = Proxy::before("192.0.2.1:80");
    let metrics = proxy.metrics().expect("served");
    let series = "pulsegate_upstream_listen_queue_length{";
    assert!(!metrics.contains(series), "{metrics}");
}
