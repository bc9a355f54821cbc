//! The admin endpoint over loopback, with a fake process behind it.
#![allow(clippy::disallowed_methods, reason = "measures real time")]
#![allow(missing_docs)]

#[path = "admin/bounds.rs"]
mod bounds;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pulsegate::admin::client::{self, Format, Health, Which};
use pulsegate::admin::view::{
    AnswerWord, AskedBy, Brief, ByLeg, CheckView, ConnectionView, EndpointState, EndpointView,
    LegView, ListenerSummary, OnSilent, Phase, Reload, ReloadReport, Shown, Summary, TimerView,
    VerifiedLeg, VerifiedSession,
};
use pulsegate::admin::{Control, NotReloaded, Readiness, serve};
use pulsegate::host::checks::{Check, Status};
use pulsegate::liveness::{CloseReason, Leg};
use pulsegate::metrics::{End, Metrics, wall_clock};
use tokio::sync::oneshot;

/// The process behind the endpoint.
#[derive(Default)]
struct Fake {
    readiness: AtomicU8,
    closed: Mutex<Vec<u64>>,
    reasons: Mutex<Vec<Option<String>>>,
    verified: Mutex<Vec<(Vec<u64>, bool)>>,
    drains: AtomicUsize,
    reloads: AtomicUsize,
    summaries: AtomicUsize,
    sessions: AtomicUsize,
    slow: AtomicBool,
}

impl Control for Fake {
    fn metrics(&self) -> String {
        // About what looking at so many sessions takes.
        let sessions = self.sessions.load(SeqCst) as u64;
        thread::sleep(Duration::from_micros(4 * sessions));
        let metrics = Metrics::new();
        let _listener = metrics.listener("db");
        metrics.render()
    }

    fn summary(&self) -> Summary {
        self.summaries.fetch_add(1, SeqCst);
        Summary {
            version: "0.0.0",
            now: 1,
            monotonic_ms: 1,
            draining: false,
            sessions: 3,
            listeners: vec![ListenerSummary {
                listener: "db".into(),
                address: "127.0.0.1:9000".into(),
                upstream: "127.0.0.1:5432".into(),
                detect_within_ms: 30_000,
                active: 3,
                limit: None,
                in_use: 3,
                on_full: "reject".into(),
                queue_timeout_ms: Some(30_000),
                proxy_protocol: ByLeg {
                    downstream: "require".into(),
                    upstream: "off".into(),
                },
                certificate_not_after: ByLeg {
                    downstream: Some(1_900_000_000),
                    upstream: None,
                },
                queued: 0,
                accept_queue: 0,
                accept_queue_limit: 1024,
                endpoints: 2,
                endpoints_up: 1,
                received_bytes: [7, 8].into(),
                sent_bytes: [8, 7].into(),
                figures: Metrics::new().listener("db").figures(),
            }],
        }
    }

    fn readiness(&self) -> Readiness {
        match self.readiness.load(SeqCst) {
            0 => Readiness::Ready,
            _ => Readiness::Draining,
        }
    }

    fn knows_listener(&self, name: &str) -> bool {
        ["db", "web"].contains(&name)
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        let ids = 1..=self.sessions.load(SeqCst) as u64;
        ids.rev()
            .map(|id| Arc::new(Known(id)) as Arc<dyn Shown>)
            .collect()
    }

    /// Session 2 has just ended.
    fn close(&self, ids: &[u64], reason: Option<&str>) -> usize {
        self.closed.lock().expect("not poisoned").extend(ids);
        let reason = reason.map(str::to_owned);
        self.reasons.lock().expect("not poisoned").push(reason);
        ids.iter().filter(|id| **id != 2).count()
    }

    /// Session 2 is silent.
    fn verify(
        &self,
        ids: &[u64],
        on_silent: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        let quick = on_silent == OnSilent::End;
        let log = (ids.to_vec(), quick);
        self.verified.lock().expect("not poisoned").push(log);
        let known = self.sessions.load(SeqCst) as u64;
        let found = ids.iter().rev().filter(|id| **id <= known);
        let found: Vec<_> = found.map(|id| verified(*id, quick)).collect();
        let takes = if self.slow.load(SeqCst) { 2000 } else { 50 };
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(takes)).await;
            found
        })
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        let endpoint = |listener: &str, state| EndpointView {
            listener: listener.into(),
            endpoint: "192.0.2.1:5432".into(),
            name: None,
            state,
            since_ms: 2_000,
            active_sessions: 3,
            connects: 40,
            failures: 2,
            consecutive_failures: 2,
            ejections: 1,
            ejected_for_ms: (state == EndpointState::Ejected).then_some(1500),
            cause: (state == EndpointState::Down).then(|| "status 503".into()),
            last_check: (state == EndpointState::Down).then(|| CheckView {
                ago_ms: 700,
                error: Some("status 503".into()),
            }),
        };
        [("db", EndpointState::Ejected), ("web", EndpointState::Down)]
            .map(|(listener, state)| endpoint(listener, state))
            .to_vec()
    }

    /// The client of session 1 has vanished, and that of session 7 a minute ago.
    fn found(&self) -> Vec<End> {
        [(7, 0), (1, 60)].map(|(id, ago)| end(id, ago)).to_vec()
    }

    fn config(&self) -> String {
        "listeners: []\n".into()
    }

    /// Once, then the file is wrong, then there is none.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        let outcome = match self.reloads.fetch_add(1, SeqCst) {
            0 => Ok(ReloadReport {
                applied: vec!["listeners[db].backlog".into(), "log.level".into()],
                needs_restart: vec!["workers".into()],
                ..ReloadReport::default()
            }),
            1 => Err(NotReloaded::Refused(vec!["a".into(), "b".into()])),
            _ => Err(NotReloaded::Impossible("no file".into())),
        };
        Box::pin(std::future::ready(outcome))
    }

    fn reloads(&self) -> Vec<Reload> {
        let report = ReloadReport {
            applied: vec!["log.level".into()],
            ..ReloadReport::default()
        };
        vec![Reload {
            at: 1,
            asked_by: AskedBy::Sighup,
            outcome: "success",
            report,
            errors: Vec::new(),
        }]
    }

    fn explain(&self) -> String {
        "vanished, idle\n".into()
    }

    fn doctor(&self) -> Vec<Check> {
        [Status::Ok, Status::Warn, Status::Info]
            .map(|status| Check {
                name: "somaxconn",
                status,
                found: "128".into(),
                meaning: "short".into(),
                setting: None,
            })
            .to_vec()
    }

    fn drain(&self) {
        self.drains.fetch_add(1, SeqCst);
        self.readiness.store(2, SeqCst);
    }
}

/// A session of the fake process. Each thousandth has ended by the time it is to be shown.
struct Known(u64);

impl Shown for Known {
    fn id(&self) -> u64 {
        self.0
    }

    fn view(&self) -> Option<ConnectionView> {
        (!self.0.is_multiple_of(1000)).then(|| session(self.0))
    }

    fn brief(&self) -> Option<Brief> {
        let view = self.view()?;
        Some(Brief {
            listener: "db".into(),
            phase: view.phase,
            conditions: [view.downstream.condition; 2],
            age_ms: view.age_ms,
            idle_ms: view.idle_ms,
            last_life_ms: view.downstream.last_life_ms,
            received_bytes: view.legs().map(|leg| leg.received_bytes).sum(),
            sent_bytes: 0,
        })
    }

    fn peers(&self) -> [Option<SocketAddr>; 2] {
        [session(self.0).downstream.peer; 2]
    }
}

fn verified(id: u64, quick: bool) -> VerifiedSession {
    let (answer, evidence) = if id == 2 {
        (AnswerWord::Silent, "keepalive")
    } else {
        (AnswerWord::Alive, "answered")
    };
    VerifiedSession {
        id,
        listener: "db".into(),
        downstream: VerifiedLeg {
            answer,
            silent_ms: Some(2),
            evidence: Some(evidence.into()),
            took_ms: 2,
        },
        upstream: None,
        closed: quick && id == 2,
    }
}

fn end(id: u64, seconds_ago: i64) -> End {
    End {
        at: wall_clock() - seconds_ago,
        id,
        listener: "db".into(),
        reason: "downstream_dead",
        evidence: Some("keepalive"),
        leg: Leg::Downstream,
        downstream: Some("10.0.3.7:40000".parse().expect("valid")),
        upstream: Some("10.0.0.9:5432".into()),
        silent_ms: Some(29_900),
        detect_within_ms: 30_000,
        duration_ms: 90_000,
        downstream_received: 1,
        downstream_sent: 2,
        upstream_received: 3,
        upstream_sent: 4,
    }
}

fn session(id: u64) -> ConnectionView {
    let timer = Some(TimerView {
        reason: CloseReason::DownstreamDead.into(),
        in_ms: 12_300,
    });
    let leg = LegView {
        local: Some("10.0.0.5:9000".parse().expect("valid")),
        peer: Some(SocketAddr::from(([192, 0, 2, id as u8], 700))),
        state: "ESTAB",
        condition: if id == 2 { "suspect" } else { "alive" },
        last_life_ms: 400,
        received_bytes: id,
        sent_bytes: 0,
        unacked: 0,
        notsent_bytes: 0,
        retransmits: 0,
        probes: 0,
        rtt_us: 250,
        heartbeat: None,
        timer: timer.clone(),
        tls: None,
    };
    ConnectionView {
        id,
        listener: "db".into(),
        phase: Phase::Open,
        age_ms: 1000 * id,
        idle_ms: 400,
        proxy: None,
        downstream: leg.clone(),
        upstream: Some(leg),
        timer,
        verdict: None,
    }
}

/// The endpoint, on a thread of its own as in the real process.
struct Endpoint {
    fake: Arc<Fake>,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    fn start_on(bind: &str) -> Self {
        let listener = std::net::TcpListener::bind(bind).expect("bound");
        listener.set_nonblocking(true).expect("set");
        let port = listener.local_addr().expect("bound").port();
        let fake = Arc::new(Fake::default());
        fake.sessions.store(3, SeqCst);
        let control: Arc<dyn Control> = fake.clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("registered");
                serve(listener.into(), None, control, stopped).await;
            });
        });
        Self {
            fake,
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("connected");
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).expect("set");
        stream
    }

    /// Sends bytes as they are; what comes back until the end, as text.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // A reset behind the answer is an end too.
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            answer.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request with further header lines.
    fn ask_with(&self, method: &str, path: &str, headers: &str) -> Answer {
        let addr = self.addr;
        let host = if headers.contains("Host:") {
            String::new()
        } else {
            format!("Host: {addr}\r\n")
        };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n");
        Answer(self.raw(head.as_bytes()))
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        self.ask_with(method, path, "")
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        let thread = self.thread.take().expect("joined once");
        assert!(thread.join().is_ok() || thread::panicking());
    }
}

/// A whole answer, head and body.
struct Answer(String);

impl Answer {
    fn status(&self) -> u16 {
        let status = self.0.split(' ').nth(1).and_then(|s| s.parse().ok());
        status.unwrap_or_else(|| panic!("no status: {:?}", self.0))
    }

    fn head(&self) -> &str {
        self.0.split("\r\n\r\n").next().unwrap_or_default()
    }

    fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head().lines().filter_map(|l| l.split_once(": "));
        headers
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    #[track_caller]
    fn expect(self, status: u16, body: &str) -> Self {
        assert!(self.status() == status, "{status} {body}: {:?}", self.0);
        assert!(self.body().contains(body), "{body}: {:?}", self.0);
        // The parser answers by itself where a head is too large.
        let ours = (status != 431).then_some("admin");
        assert_eq!(self.header("pulsegate"), ours, "{:?}", self.0);
        self
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(self.body()).expect("JSON")
    }
}

#[test]
fn probes_and_pages() {
    let e = Endpoint::start();
    e.get("/livez").expect(200, "ok");
    e.get("/readyz").expect(200, "ready");
    e.fake.readiness.store(2, SeqCst);
    e.get("/readyz").expect(503, "draining");
    e.get("/livez").expect(200, "ok");

    let metrics = e
        .get("/metrics")
        .expect(200, "pulsegate_connections_active");
    let kind = metrics.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let config = e.get("/config").expect(200, "listeners:");
    assert_eq!(config.header("content-type"), Some("application/yaml"));
    assert_eq!(config.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(config.header("cache-control"), Some("no-store"));
    e.get("/").expect(200, "/connections/ID");
    let page = e.ask_with("GET", "/", "Accept: text/html,*/*;q=0.8\r\n");
    let page = page.expect(200, "<body data-changes=\"open\">");
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    e.get("/explain").expect(200, "vanished, idle");
    assert_eq!(e.get("/doctor").json()["worst"], "warn");
    let reloads = e.get("/reloads").json();
    assert_eq!(reloads[0]["asked_by"], "sighup");
    assert_eq!(reloads[0]["applied"], serde_json::json!(["log.level"]));
    e.get("/console.js").expect(200, "\"use strict\"");
    e.get("/console.css").expect(200, "prefers-color-scheme");
    e.get("/nope").expect(404, "/connections/ID");
}

#[test]
fn upstreams_as_json_and_as_text() {
    let e = Endpoint::start();
    let all = e.get("/upstreams").json();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    assert_eq!(all[0]["state"], "ejected");
    assert_eq!(all[0]["ejected_for_ms"], 1500);
    let text =
        client::upstreams(&e.addr.into(), &[("listener", "db")], Format::Text).expect("a table");
    let expected = "\
LISTENER  ENDPOINT        NAME  STATE    SESSIONS  CONNECTS  FAILURES  IN-A-ROW  EJECTIONS  EJECTED-FOR  CAUSE
db        192.0.2.1:5432  -     ejected  3         40        2         2         1          1.5s         -
";
    assert_eq!(text, expected);
    assert!(all[0]["cause"].is_null());
    assert_eq!(all[1]["cause"], "status 503");
    assert_eq!(all[0]["since_ms"], 2_000);
    assert!(all[0]["last_check"].is_null());
    assert_eq!(all[1]["last_check"]["error"], "status 503");
    e.get("/upstreams?phase=open")
        .expect(400, "phase: unknown; accepted are listener, format");
    for (method, path) in [
        ("GET", "/upstreams"),
        ("GET", "/connections"),
        ("DELETE", "/connections"),
        ("POST", "/verify"),
    ] {
        e.ask(method, &format!("{path}?listener=dbs"))
            .expect(400, "listener: there is none of the name 'dbs'");
    }
}

#[test]
fn ends_as_json_and_as_text() {
    let e = Endpoint::start();
    let all = e.get("/found").json();
    assert_eq!(all["ends"][0]["id"], 7);
    assert_eq!(all["ends"][1]["leg"], "downstream");
    assert_eq!(all["groups"][0]["times"], 2);
    assert_eq!(all["groups"][0]["peer"], "10.0.3.7");
    let of_web = e.get("/found?listener=web").json();
    assert_eq!(of_web["ends"].as_array().map(Vec::len), Some(0));
    let text = client::found(&e.addr.into(), &[("listener", "db")], Format::Text).expect("a table");
    let words = |line: usize| {
        let line = text.lines().nth(line).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().collect::<Vec<_>>()
    };
    let [group, end] = [words(1), words(5)];
    assert_eq!(group[0], "2", "{text}");
    assert_eq!(group[2..], ["10.0.3.7", "downstream_dead", "db"], "{text}");
    let expected = "1 db downstream_dead keepalive 10.0.3.7 29.9s 1m30s 1 2";
    assert_eq!(end[1..].join(" "), expected, "{text}");
    let none = client::found(&e.addr.into(), &[("listener", "web")], Format::Text);
    let none = none.expect("a line");
    assert_eq!(none, "no peer was found gone or hanging\n");
    e.get("/found?peer=::1")
        .expect(400, "peer: unknown; accepted are listener, format");
}

#[test]
fn an_overview_is_made_once_for_all_who_ask() {
    let e = Endpoint::start();
    let first = e.get("/summary").json();
    assert_eq!(first["listeners"][0]["received_bytes"]["upstream"], 8);
    assert_eq!(first["listeners"][0]["half_open"]["downstream"], 0);
    assert_eq!(
        first["listeners"][0]["proxy_protocol"]["downstream"],
        "require"
    );
    assert!(first["listeners"][0]["certificate_not_after"]["upstream"].is_null());
    for _ in 0..20 {
        e.get("/summary").expect(200, "detect_within_ms");
    }
    let made = e.fake.summaries.load(SeqCst);
    assert!(made < 10, "{made}");
}

#[test]
fn events_come_each_second_for_a_few_clients() {
    let e = Endpoint::start();
    let watch = || {
        let mut stream = e.connect();
        let head = format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", e.addr);
        stream.write_all(head.as_bytes()).expect("written");
        stream
    };
    let until = |stream: &mut TcpStream, times: usize| {
        let mut told = Vec::new();
        let mut chunk = [0; 4096];
        while String::from_utf8_lossy(&told).matches("data: {").count() < times {
            let n = stream.read(&mut chunk).expect("an event");
            assert!(n > 0, "{:?}", String::from_utf8_lossy(&told));
            told.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8_lossy(&told).into_owned()
    };
    let mut watchers: Vec<_> = (0..8).map(|_| watch()).collect();
    let start = Instant::now();
    let told = until(&mut watchers[0], 3);
    assert!(start.elapsed() >= Duration::from_millis(1900), "{told}");
    assert!(told.contains("content-type: text/event-stream"), "{told}");
    watchers.iter_mut().skip(1).for_each(|watcher| {
        until(watcher, 1);
    });
    e.get("/events").expect(503, "ask /summary instead");
    drop(watchers);
    let again = || {
        let mut stream = watch();
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        head == *b"HTTP/1.1 200"
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !again() {
        assert!(Instant::now() < deadline, "no place came back");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn connections_as_json() {
    let e = Endpoint::start();
    let all = e.get("/connections").json();
    assert_eq!(all["total"], 3);
    assert_eq!(all["connections"][0]["id"], 1);
    assert_eq!(all["connections"][0]["timer"]["reason"], "downstream_dead");
    let some = e.get("/connections?condition=suspect&limit=5").json();
    assert_eq!((&some["matched"], &some["total"]), (&1.into(), &3.into()));
    assert_eq!(some["connections"][0]["id"], 2);
    assert_eq!(
        e.get("/connections?sort=age&limit=1").json()["connections"][0]["id"],
        3
    );
    assert_eq!(
        e.get("/connections?peer=192.0.2.3:700").json()["matched"],
        1
    );
    e.get("/connections?sort=size")
        .expect(400, "sort: expected age, idle");
    e.get("/connections?x=1")
        .expect(400, "x: unknown; accepted are listener");

    assert_eq!(
        e.get("/connections/2").json()["downstream"]["condition"],
        "suspect"
    );
    e.get("/connections/9").expect(404, "no session 9");
    e.get("/connections/abc").expect(400, "whole number");
    e.get("/connections/").expect(400, "whole number");
    e.get("/connections/1/x").expect(400, "whole number");
}

#[test]
fn connections_as_a_table() {
    let e = Endpoint::start();
    for table in [
        e.get("/connections?format=text"),
        e.ask_with("GET", "/connections", "Accept: text/plain\r\n"),
    ] {
        let table = table.expect(200, "suspect");
        assert_eq!(table.body().lines().count(), 2 + 3 * 3 + 1);
        for line in table.body().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert_eq!(
            table.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
    }
    let one = e.get("/connections/2?format=text").expect(200, "suspect");
    assert_eq!(one.body().lines().count(), 5);
    let wide = e.get("/connections?format=text&wide=true");
    let wide = wide.expect(200, "timer:(downstream_dead,12.3s)");
    assert_eq!(wide.body().lines().count(), 1 + 2 * 3 + 1);
    let one = e.get("/connections/2?format=text&wide=true");
    assert_eq!(one.expect(200, "suspect").body().lines().count(), 3);
}

#[test]
fn changes() {
    let e = Endpoint::start();
    e.ask("DELETE", "/connections/1")
        .expect(202, "session 1 is being ended");
    e.ask("DELETE", "/connections/2")
        .expect(404, "no session 2");
    assert_eq!(*e.fake.closed.lock().expect("not poisoned"), [1, 2]);
    e.ask("POST", "/drain").expect(202, "draining");
    e.ask_with("POST", "/drain", "Content-Length: 0\r\n")
        .expect(202, "");
    assert_eq!(e.fake.drains.load(SeqCst), 2);
}

#[test]
fn ending_many() {
    let e = Endpoint::start();
    e.ask("DELETE", "/connections").expect(400, "all=true");
    e.ask("DELETE", "/connections?all=false&sort=age&limit=9&reason=x")
        .expect(400, "all=true");
    e.ask("DELETE", "/connections?all=maybe").expect(400, "all");
    let long = format!("/connections?all&reason={}", "x".repeat(201));
    e.ask("DELETE", &long).expect(400, "200 bytes");
    e.ask("GET", "/connections?all=true").expect(400, "all");
    assert!(e.fake.closed.lock().expect("not poisoned").is_empty());

    e.ask("DELETE", "/connections?condition=suspect&reason=a+b")
        .expect(202, "0 sessions are being ended");
    let ended = client::kill_all(&e.addr.into(), &[("sort", "age"), ("limit", "2")]);
    assert!(ended.expect("ended").contains("1 session is being ended"));
    assert_eq!(*e.fake.closed.lock().expect("not poisoned"), [2, 3, 2]);
    let reasons = e.fake.reasons.lock().expect("not poisoned").clone();
    assert_eq!(reasons, [Some("a b".to_owned()), None]);
}

#[test]
fn verifying_one() {
    let e = Endpoint::start();
    let one = e.ask("POST", "/connections/2/verify").expect(200, "silent");
    let one = one.json();
    assert_eq!(one["downstream"]["answer"], "silent");
    assert_eq!(one["downstream"]["evidence"], "keepalive");
    assert_eq!(one["downstream"]["took_ms"], 2);
    assert_eq!(one["upstream"], serde_json::Value::Null);
    assert_eq!(one["closed"], false);
    let quick = e.ask("POST", "/connections/2/verify?quick=true").json();
    assert_eq!(quick["closed"], true);
    e.ask("POST", "/connections/1/verify?format=text")
        .expect(200, "answered");
    e.ask("POST", "/connections/9/verify")
        .expect(404, "no session 9");
    e.ask("POST", "/connections/x/verify")
        .expect(400, "whole number");
    e.ask("POST", "/connections/1/verify?quick=perhaps")
        .expect(400, "quick: expected true or false");
    let log = e.fake.verified.lock().expect("not poisoned");
    let quick: Vec<bool> = log.iter().map(|(_, quick)| *quick).collect();
    assert_eq!(quick, [false, true, false, false]);
}

#[test]
fn verifying_many() {
    let e = Endpoint::start();
    let all = e.ask("POST", "/verify?sort=age").json();
    let figures = ["asked", "alive", "silent", "unknown", "over", "closed"];
    assert_eq!(
        figures.map(|name| all[name].as_u64()),
        [3, 2, 1, 0, 0, 0].map(Some)
    );
    let ids = all["sessions"].as_array().expect("a list").iter();
    let ids: Vec<_> = ids.map(|s| s["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids, [3, 2, 1], "in the order that was asked for");
    let some = e.ask("POST", "/verify?quick=true&condition=suspect").json();
    assert_eq!((&some["asked"], &some["closed"]), (&1.into(), &1.into()));
    e.ask("POST", "/verify?format=text").expect(
        200,
        "3 asked: 2 alive, 1 silent, 0 unknown, 0 over; 0 closed, 0 skipped",
    );
    e.ask("POST", "/verify?colour=red").expect(400, "quick");
    e.ask("GET", "/verify").expect(405, "");
}

#[test]
fn verifying_by_the_client() {
    let e = Endpoint::start();
    let text = |which, on_silent| client::verify(&e.addr.into(), which, on_silent, Format::Text);
    let one = text(Which::Ids(&[1, 3]), OnSilent::Report).expect("asked");
    assert!(one.answered && one.errors.is_empty(), "{one:?}");
    let some = text(Which::Ids(&[1, 2, 9]), OnSilent::Report).expect("asked");
    assert!(!some.answered && some.text.contains("silent"), "{some:?}");
    assert_eq!(some.errors, [format!("{}: no session 9", e.addr)]);
    let all = text(Which::All(&[("listener", "db")]), OnSilent::End).expect("asked");
    assert!(!all.answered && all.text.contains("1 closed"), "{all:?}");
    let bad = text(Which::All(&[("sort", "size")]), OnSilent::End).expect_err("refused");
    assert!(bad.contains("sort: expected"), "{bad}");
    let killed = client::kill(&e.addr.into(), 1, &[("reason", "why")]).expect("ended");
    assert!(killed.contains("session 1 is being ended"), "{killed}");
    assert!(client::kill(&e.addr.into(), 2, &[]).is_err());
}

#[test]
fn wrong_methods_change_nothing() {
    let e = Endpoint::start();
    for (method, path, allowed) in [
        ("GET", "/drain", "POST"),
        ("HEAD", "/drain", "POST"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/connections", "GET, HEAD, DELETE"),
        ("PUT", "/connections/1", "GET, HEAD, DELETE"),
        ("GET", "/connections/1/verify", "POST"),
        ("OPTIONS", "/livez", "GET, HEAD"),
    ] {
        let answer = e.ask(method, path).expect(405, "");
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
    assert_eq!(e.fake.drains.load(SeqCst), 0);
}

#[test]
fn head_is_get_without_the_body() {
    let e = Endpoint::start();
    for path in [
        "/",
        "/metrics",
        "/livez",
        "/readyz",
        "/connections",
        "/connections/1",
        "/config",
    ] {
        let (get, head) = (e.get(path), e.ask("HEAD", path));
        assert_eq!(head.status(), 200, "{path}");
        assert_eq!(head.body(), "", "{path}");
        for name in ["content-type", "content-length"] {
            // The start time in the metrics has the same length each time.
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

#[test]
fn cross_site_changes_are_refused() {
    let e = Endpoint::start();
    let own = format!(
        "Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n",
        e.addr
    );
    for headers in [
        "Host: evil.example\r\n",
        "Host: evil.example:9900\r\nOrigin: http://evil.example:9900\r\n",
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        e.ask_with("POST", "/drain", headers).expect(403, "refused");
        e.ask_with("DELETE", "/connections/1", headers)
            .expect(403, "refused");
        e.ask_with("POST", "/verify?quick=true", headers)
            .expect(403, "refused");
        e.ask_with("POST", "/connections/1/verify", headers)
            .expect(403, "refused");
    }
    assert_eq!(e.fake.drains.load(SeqCst), 0);
    assert!(e.fake.closed.lock().expect("not poisoned").is_empty());
    // A name that was rebound to 127.0.0.1 is same-origin to the browser.
    for path in ["/metrics", "/connections", "/config", "/livez", "/"] {
        e.ask_with("GET", path, "Host: evil.example:9900\r\n")
            .expect(403, "refused: the Host header");
    }
    e.ask_with("GET", "/metrics", "Host: localhost\r\n")
        .expect(200, "");
    Answer(e.raw(b"GET /livez HTTP/1.0\r\n\r\n")).expect(200, "ok");
    e.ask_with("POST", "/drain", &own).expect(202, "");
}

#[test]
fn changes_are_refused_on_all_addresses() {
    let e = Endpoint::start_on("0.0.0.0:0");
    e.get("/connections").expect(200, "");
    // Prometheus comes by the name of a Service.
    e.ask_with("GET", "/metrics", "Host: proxy.example\r\n")
        .expect(200, "");
    e.ask("POST", "/drain").expect(403, "loopback");
    e.ask("DELETE", "/connections/1").expect(403, "loopback");
    e.ask("POST", "/connections/1/verify")
        .expect(403, "loopback");
    e.ask("POST", "/verify").expect(403, "loopback");
    assert_eq!(e.fake.drains.load(SeqCst), 0);
}

#[test]
fn the_client_speaks_with_it() {
    let e = Endpoint::start();
    let second = Duration::from_secs(1);
    assert_eq!(
        client::healthcheck(&e.addr.into(), second, Health::Live),
        Ok(())
    );
    assert_eq!(
        client::healthcheck(&e.addr.into(), second, Health::Ready),
        Ok(())
    );
    let filters = [("peer", "192.0.2.1:700"), ("min_idle", "100ms")];
    let table = client::connections(&e.addr.into(), &filters, Format::Text).expect("a table");
    assert!(table.ends_with("1 shown, 1 matched, 3 in all\n"), "{table}");
    let json = client::connections(&e.addr.into(), &[], Format::Json).expect("JSON");
    assert!(json.starts_with("{\"total\":3,"), "{json}");
    let error = client::connections(&e.addr.into(), &[("limit", "a b&c")], Format::Json);
    let error = error.expect_err("a bad query");
    assert!(
        error.ends_with("limit: expected a whole number, got 'a b&c'"),
        "{error}"
    );

    assert_eq!(client::drain(&e.addr.into(), None), Ok("draining\n".into()));
    assert_eq!(
        client::healthcheck(&e.addr.into(), second, Health::Live),
        Ok(())
    );
    let not_ready = client::healthcheck(&e.addr.into(), second, Health::Ready);
    assert_eq!(not_ready, Err(format!("{}: draining", e.addr)));
}

#[test]
fn a_reload_says_what_became_of_each_change() {
    let e = Endpoint::start();
    let report = client::reload(&e.addr.into(), Format::Text).expect("asked");
    let expected = "\
applied            listeners[db].backlog
applied            log.level
needs a restart    workers
";
    assert_eq!(report, Ok(expected.to_owned()));
    let refused = client::reload(&e.addr.into(), Format::Json).expect("asked");
    assert_eq!(refused, Err("a\nb\n".to_owned()));
    let none = client::reload(&e.addr.into(), Format::Json).expect_err("no file");
    assert!(none.contains("no file"), "{none}");

    e.fake.reloads.store(0, SeqCst);
    let answers = [0, 1, 2].map(|_| e.ask("POST", "/reload"));
    assert_eq!(answers.each_ref().map(Answer::status), [200, 422, 409]);
    let report: serde_json::Value = serde_json::from_str(answers[0].body()).expect("JSON");
    assert_eq!(report["new_sessions_only"], serde_json::json!([]));
    assert_eq!(report["needs_restart"], serde_json::json!(["workers"]));
    assert_eq!(e.get("/reload").status(), 405);
}

#[test]
fn the_client_waits_for_the_drain() {
    let e = Endpoint::start();
    let left =
        client::drain(&e.addr.into(), Some(Duration::from_millis(100))).expect_err("sessions");
    assert!(left.contains("3 sessions left"), "{left}");
    e.fake.sessions.store(0, SeqCst);
    // It has no session, and accepts until drain.delay is over.
    let since = Instant::now();
    let delay = Duration::from_millis(300);
    assert_eq!(
        client::drain(&e.addr.into(), Some(delay)),
        Ok("drained\n".into())
    );
    assert!(since.elapsed() >= delay);

    let addr = e.addr;
    let finisher = thread::spawn(move || {
        thread::sleep(delay);
        drop(e);
    });
    let drained = client::drain(&addr.into(), Some(Duration::from_secs(10)));
    assert_eq!(drained, Ok("drained, the process ends\n".into()));
    finisher.join().expect("no panic");
    let error = client::drain(&addr.into(), None).expect_err("nobody there");
    assert!(error.contains("refused"), "{error}");
}
