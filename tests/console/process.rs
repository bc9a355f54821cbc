//! What a console shows: a process of known figures, which move as those of a real one do.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pulsegate::admin::view::{
    AnswerWord, AskedBy, Brief, ByLeg, CheckView, ConnectionView, EndpointState, EndpointView,
    HeartbeatView, LegView, ListenerSummary, OnSilent, Phase, Reload, ReloadReport, SessionDetail,
    Shown, Summary, TcpInfoView, TimerView, TlsView, VerifiedLeg, VerifiedSession,
};
use pulsegate::admin::{Control, NotReloaded, Readiness, TokenFile, serve};
use pulsegate::host::checks::{Check, Status};
use pulsegate::liveness::Leg;
use pulsegate::metrics::{End, ListenerFigures, wall_clock};
use tokio::sync::oneshot;

type Ended = Vec<(u64, Option<String>)>;

/// What the endpoint asks.
struct Known {
    start: Instant,
    sessions: AtomicU64,
    draining: AtomicBool,
    reloaded: AtomicBool,
    ended: Mutex<Ended>,
}

/// What lets its bearer change something at the address that is not of this host only.
pub const TOKEN: &str = "0123456789abcdef";

/// The process with its endpoints, on a thread of their own: one of this host, and one of all addresses.
pub struct Process {
    known: Arc<Known>,
    of_host: SocketAddr,
    of_network: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn bound(address: &str) -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind(address).expect("bound");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    (listener, SocketAddr::from(([127, 0, 0, 1], port)))
}

impl Process {
    pub fn start() -> Self {
        let (host, of_host) = bound("127.0.0.1:0");
        let (network, of_network) = bound("0.0.0.0:0");
        let file = std::env::temp_dir().join(format!("pulsegate-console-{}", of_host.port()));
        std::fs::write(&file, TOKEN).expect("written");
        let token = TokenFile::new(file).expect("a token");
        let known = Arc::new(Known {
            start: Instant::now(),
            sessions: AtomicU64::new(120),
            draining: AtomicBool::new(false),
            reloaded: AtomicBool::new(false),
            ended: Mutex::default(),
        });
        let control: Arc<dyn Control> = known.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let registered = |l| tokio::net::TcpListener::from_std(l).expect("registered");
                let (host, network) = (registered(host), registered(network));
                let never = std::future::pending::<()>();
                tokio::spawn(serve(network.into(), Some(token), control.clone(), never));
                serve(host.into(), None, control, stopped).await;
            });
        });
        Self {
            known,
            of_host,
            of_network,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where changes are accepted.
    pub fn url(&self) -> String {
        format!("http://{}/", self.of_host)
    }

    /// Where they take the token.
    pub fn url_of_network(&self) -> String {
        format!("http://{}/", self.of_network)
    }

    pub fn add_a_session(&self) {
        self.known.sessions.fetch_add(1, SeqCst);
    }

    pub fn set_sessions(&self, sessions: u64) {
        self.known.sessions.store(sessions, SeqCst);
    }

    /// What an operator has ended, and why.
    pub fn ended(&self) -> Ended {
        self.known.ended.lock().expect("not poisoned").clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stop.take());
        let thread = self.thread.take().expect("joined once");
        assert!(thread.join().is_ok() || thread::panicking());
        let file = format!("pulsegate-console-{}", self.of_host.port());
        let _removed = std::fs::remove_file(std::env::temp_dir().join(file));
    }
}

impl Known {
    fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    fn listener(
        &self,
        name: &str,
        port: u16,
        active: usize,
        limit: Option<u32>,
    ) -> ListenerSummary {
        const DAY: i64 = 86_400;
        let seconds = self.seconds();
        // Some waves.
        let passed = self.start.elapsed().as_secs_f64();
        let moved = (1e6 + 190e3 * passed + 40e3 * (passed / 3.0).sin()) as u64;
        let is_plc = name == "plc";
        let moved = if is_plc { moved / 700 } else { moved };
        ListenerSummary {
            listener: name.into(),
            address: format!("127.0.0.1:{port}"),
            upstream: if is_plc {
                "10.0.9.5:502"
            } else {
                "db.example:5432"
            }
            .into(),
            detect_within_ms: if is_plc { 10_000 } else { 30_000 },
            active,
            limit,
            in_use: if is_plc { 1 } else { active },
            on_full: if is_plc { "verify" } else { "reject" }.into(),
            queue_timeout_ms: Some(30_000),
            proxy_protocol: ByLeg {
                downstream: if is_plc { "off" } else { "require" }.into(),
                upstream: "off".into(),
            },
            certificate_not_after: ByLeg {
                downstream: (!is_plc).then(|| wall_clock() + 61 * DAY + 60),
                upstream: (!is_plc).then(|| wall_clock() + 5 * DAY + 60),
            },
            queued: usize::from(is_plc) * 2,
            accept_queue: 0,
            accept_queue_limit: 1024,
            endpoints: if is_plc { 1 } else { 3 },
            endpoints_up: 1,
            received_bytes: [moved / 3, moved].into(),
            sent_bytes: [moved, moved / 3].into(),
            figures: ListenerFigures {
                half_open: [3 * u64::from(!is_plc), 0].into(),
                stalled: [0, 3 * u64::from(!is_plc)].into(),
                half_closed: 3 * u64::from(!is_plc),
                accepted: if is_plc {
                    212
                } else {
                    9_120 + (3.0 * passed) as u64
                },
                closed: if is_plc { 209 } else { 9_003 },
                half_open_detected: [14, 2].into(),
                found: if is_plc { 9 } else { 8 + seconds / 4 },
                connect_failures: u64::from(!is_plc) + seconds / 30,
                ..ListenerFigures::default()
            },
        }
    }
}

impl Control for Known {
    fn metrics(&self) -> String {
        String::new()
    }

    fn summary(&self) -> Summary {
        let sessions = self.sessions.load(SeqCst) as usize;
        Summary {
            version: env!("CARGO_PKG_VERSION"),
            now: wall_clock(),
            monotonic_ms: self.start.elapsed().as_millis() as u64,
            draining: self.draining.load(SeqCst),
            sessions,
            listeners: vec![
                self.listener("db", 9000, sessions - 3, None),
                self.listener("plc", 9001, 3, Some(1)),
            ],
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn knows_listener(&self, name: &str) -> bool {
        ["db", "plc"].contains(&name)
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        let ids = 1..=self.sessions.load(SeqCst);
        let passed = self.start.elapsed();
        ids.map(|id| Arc::new(One(id, passed)) as Arc<dyn Shown>)
            .collect()
    }

    fn close(&self, ids: &[u64], reason: Option<&str>) -> usize {
        let mut ended = self.ended.lock().expect("not poisoned");
        ended.extend(ids.iter().map(|id| (*id, reason.map(str::to_owned))));
        ids.len()
    }

    fn verify(
        &self,
        ids: &[u64],
        _: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        let answer = |answer, evidence: &str, took_ms| VerifiedLeg {
            answer,
            silent_ms: Some(took_ms),
            evidence: Some(evidence.into()),
            took_ms,
        };
        let session = |id: &u64| VerifiedSession {
            id: *id,
            listener: "db".into(),
            downstream: answer(AnswerWord::Silent, "keepalive", 802),
            upstream: Some(answer(AnswerWord::Alive, "answered", 3)),
            closed: false,
        };
        let verified = ids.iter().map(session).collect();
        Box::pin(std::future::ready(verified))
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        let endpoint = |listener: &str, endpoint: &str, state, active_sessions| EndpointView {
            listener: listener.into(),
            endpoint: endpoint.into(),
            name: (listener == "db").then(|| "db.example:5432".into()),
            state,
            since_ms: match state {
                EndpointState::Up => 86_400_000,
                EndpointState::Ejected => 17_700,
                EndpointState::Down => 252_000,
            },
            active_sessions,
            connects: 4_711,
            failures: if state == EndpointState::Up { 0 } else { 5 },
            consecutive_failures: if state == EndpointState::Up { 0 } else { 5 },
            ejections: u64::from(state == EndpointState::Ejected),
            ejected_for_ms: (state == EndpointState::Ejected).then_some(12_300),
            cause: (state == EndpointState::Down).then(|| "status 503".into()),
            last_check: (listener == "db").then(|| CheckView {
                ago_ms: 812,
                error: (state == EndpointState::Down).then(|| "status 503".into()),
            }),
        };
        vec![
            endpoint("db", "10.0.9.7:5432", EndpointState::Up, 117),
            endpoint("db", "10.0.9.8:5432", EndpointState::Ejected, 0),
            endpoint("db", "10.0.9.9:5432", EndpointState::Down, 0),
            endpoint("plc", "10.0.9.5:502", EndpointState::Up, 1),
        ]
    }

    fn found(&self) -> Vec<End> {
        let known = 17 + self.seconds() / 4;
        (0..known).rev().map(|i| end(i, known)).collect()
    }

    fn config(&self) -> String {
        "listeners:\n- name: db\n  address: 127.0.0.1:9000\n  upstream: db.example:5432\n".into()
    }

    fn explain(&self) -> String {
        "  LEG     FAULT           EVIDENCE   CLOSED AS  AT THE LATEST AFTER\n  \
           either  vanished, idle  keepalive  *_dead     30.75s\n"
            .into()
    }

    fn reloads(&self) -> Vec<Reload> {
        let reload = |ago, asked_by, errors: Vec<String>| Reload {
            at: wall_clock() - ago,
            asked_by,
            outcome: if errors.is_empty() {
                "success"
            } else {
                "failure"
            },
            report: if errors.is_empty() {
                report()
            } else {
                ReloadReport::default()
            },
            errors,
        };
        let mut reloads = vec![
            reload(250, AskedBy::Sighup, Vec::new()),
            reload(
                4000,
                AskedBy::Watch,
                vec!["listeners[db].backlog: 0 is not positive".into()],
            ),
        ];
        if self.reloaded.load(SeqCst) {
            reloads.insert(0, reload(0, AskedBy::Admin, Vec::new()));
        }
        reloads
    }

    fn doctor(&self) -> Vec<Check> {
        let check = |name, status, found: &str, meaning: &str, setting: Option<&str>| Check {
            name,
            status,
            found: found.into(),
            meaning: meaning.into(),
            setting: setting.map(str::to_owned),
        };
        vec![
            check(
                "on_demand_probe",
                Status::Ok,
                "a probe on demand (tried on loopback) works",
                "a peer quiet for a second can be asked at any time",
                None,
            ),
            check(
                "somaxconn",
                Status::Warn,
                "128, backlog 4096",
                "the kernel cuts each accept queue to 128",
                Some("sysctl -w net.core.somaxconn=4096"),
            ),
        ]
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        self.reloaded.store(true, SeqCst);
        Box::pin(std::future::ready(Ok(report())))
    }

    fn drain(&self) {
        self.draining.store(true, SeqCst);
    }
}

fn report() -> ReloadReport {
    ReloadReport {
        applied: vec!["listeners[db].limits.max_connections".into()],
        new_sessions_only: vec!["listeners[db].liveness.detect_within".into()],
        needs_restart: vec!["workers".into()],
    }
}

/// Mostly the same client that vanishes.
fn end(i: u64, known: u64) -> End {
    let (reason, evidence, leg) = match i % 6 {
        4 => ("upstream_stalled", None, Leg::Upstream),
        5 => ("upstream_dead", Some("retransmit"), Leg::Upstream),
        _ => ("downstream_dead", Some("keepalive"), Leg::Downstream),
    };
    let host = if i % 6 == 3 { 9 } else { 7 };
    let is_plc = i.is_multiple_of(2);
    let client = SocketAddr::from(([10, 0, 3, host], 40_000 + i as u16));
    End {
        at: wall_clock() - 2 - 95 * (known - 1 - i) as i64,
        id: 4_000 + 17 * i,
        listener: if is_plc { "plc" } else { "db" }.into(),
        reason,
        evidence,
        leg,
        downstream: Some(client),
        upstream: Some(
            if is_plc {
                "10.0.9.5:502"
            } else {
                "10.0.9.7:5432"
            }
            .into(),
        ),
        silent_ms: evidence.map(|_| {
            if is_plc {
                10_000 + 40 * (i % 7)
            } else {
                30_000 + 110 * (i % 7)
            }
        }),
        detect_within_ms: if is_plc { 10_000 } else { 30_000 },
        duration_ms: 1_000_000 + 77_777 * i,
        downstream_received: 1_200 + i,
        downstream_sent: 90_000 + i,
        upstream_received: 90_000 + i,
        upstream_sent: 1_200 + i,
    }
}

/// A session by its number, as it is so long after the start.
struct One(u64, Duration);

impl Shown for One {
    fn id(&self) -> u64 {
        self.0
    }

    fn view(&self) -> Option<ConnectionView> {
        Some(session(self.0, self.1.as_millis() as u64))
    }

    fn brief(&self) -> Option<Brief> {
        let view = self.view()?;
        let upstream = view.upstream.as_ref();
        Some(Brief {
            listener: view.listener.as_str().into(),
            phase: view.phase,
            conditions: [
                view.downstream.condition,
                upstream.map_or("alive", |leg| leg.condition),
            ],
            age_ms: view.age_ms,
            idle_ms: view.idle_ms,
            last_life_ms: view.legs().map(|leg| leg.last_life_ms).max().unwrap_or(0),
            received_bytes: view.legs().map(|leg| leg.received_bytes).sum(),
            sent_bytes: view.legs().map(|leg| leg.sent_bytes).sum(),
        })
    }

    fn peers(&self) -> [Option<SocketAddr>; 2] {
        self.view().map_or([None; 2], |view| {
            let upstream = view.upstream.and_then(|leg| leg.peer);
            [view.downstream.peer, upstream]
        })
    }

    fn detail(&self) -> SessionDetail {
        let Some(view) = self.view() else {
            return SessionDetail::default();
        };
        let idle = TimerView {
            reason: "idle_timeout",
            in_ms: 3_600_000 - view.idle_ms,
        };
        let legs = view.legs().filter_map(|leg| leg.timer.clone());
        let mut clocks: Vec<_> = legs.chain([idle]).collect();
        clocks.sort_by_key(|clock| clock.in_ms);
        let of = |leg: &LegView| TcpInfoView {
            last_ack_recv_ms: leg.last_life_ms as u32,
            last_data_recv_ms: view.idle_ms as u32,
            last_data_sent_ms: view.idle_ms as u32,
            rto_us: 204_000,
            rttvar_us: 90,
            min_rtt_us: 181,
            snd_cwnd: 10,
            snd_wnd: Some(65_536),
            bytes_acked: leg.sent_bytes,
            bytes_received: leg.received_bytes,
            ..TcpInfoView::default()
        };
        SessionDetail {
            clocks,
            tcp_info: ByLeg {
                downstream: Some(of(&view.downstream)),
                upstream: view.upstream.as_ref().map(of),
            },
        }
    }
}

fn timer(reason: &'static str, in_ms: u64) -> Option<TimerView> {
    Some(TimerView { reason, in_ms })
}

fn leg(local: &str, peer: SocketAddr) -> LegView {
    LegView {
        local: Some(local.parse().expect("valid")),
        peer: Some(peer),
        state: "ESTAB",
        condition: "alive",
        last_life_ms: 400,
        received_bytes: 0,
        sent_bytes: 0,
        unacked: 0,
        notsent_bytes: 0,
        retransmits: 0,
        probes: 0,
        rtt_us: 250,
        heartbeat: None,
        timer: None,
        tls: None,
    }
}

/// The device has one place; two wait for it.
const OF_PLC: std::ops::RangeInclusive<u64> = 118..=120;

fn session(id: u64, passed: u64) -> ConnectionView {
    if OF_PLC.contains(&id) {
        return of_plc(id, passed);
    }
    const IDENTITIES: [&str; 2] = ["billing.example", "<img src=x onerror=alert(1)>"];
    let is_suspect = id % 50 == 2;
    // A peer is asked each 6 s, and says something each 12 s.
    let turn = passed + 311 * id;
    let silent = match is_suspect {
        true => 17_600 + (passed + 40 * id) % 12_000,
        false => turn % 6_000,
    };
    let of_service = (passed + 777 * id) % 6_000;
    let said = if is_suspect { 0 } else { 40 * (turn / 12_000) };
    let tls = TlsView {
        version: "TLSv1.3",
        cipher: "TLS13_AES_256_GCM_SHA384",
        resumed: false,
        server_name: Some("db.example".into()),
        alpn: None,
        identity: Some(IDENTITIES[usize::from(id == 3)].into()),
    };
    let client = SocketAddr::from(([192, 0, 2, id as u8], 51_000));
    let downstream = LegView {
        condition: if is_suspect { "suspect" } else { "alive" },
        last_life_ms: silent,
        received_bytes: 1_000 * id + said,
        sent_bytes: 77 * id + 3 * said,
        probes: if is_suspect {
            ((silent - 6_000) / 2_000) as u32
        } else {
            0
        },
        rtt_us: 250 + id as u32,
        timer: timer("downstream_dead", 30_750 - silent),
        tls: Some(tls),
        ..leg("10.0.0.5:9000", client)
    };
    let service = SocketAddr::from(([10, 0, 9, 7], 5432));
    let mut upstream = LegView {
        last_life_ms: of_service,
        received_bytes: downstream.sent_bytes,
        sent_bytes: downstream.received_bytes,
        timer: timer("upstream_dead", 30_750 - of_service),
        ..leg(&format!("10.0.0.5:{}", 41_000 + id), service)
    };
    if id % 40 == 5 {
        upstream.condition = "stalled";
        upstream.notsent_bytes = 65_536;
    }
    let timers = [&downstream.timer, &upstream.timer].into_iter().flatten();
    ConnectionView {
        id,
        listener: "db".into(),
        phase: if id % 40 == 7 {
            Phase::HalfClosed
        } else {
            Phase::Open
        },
        age_ms: 3_723_000 + 60_000 * (120 - id.min(120)) + passed,
        idle_ms: if is_suspect { silent } else { turn % 12_000 },
        proxy: None,
        timer: timers.min_by_key(|timer| timer.in_ms).cloned(),
        downstream,
        upstream: Some(upstream),
        verdict: None,
    }
}

fn of_plc(id: u64, passed: u64) -> ConnectionView {
    let waits = id - OF_PLC.start();
    let silent = (passed + 700 * id) % 1_000;
    let client = SocketAddr::from(([10, 0, 3, 7 + 2 * waits as u8], 40_000 + id as u16));
    let age_ms = match waits {
        0 => 7_323_000 + passed,
        _ => (12_000 / waits + passed) % 29_000,
    };
    let downstream = LegView {
        last_life_ms: silent,
        received_bytes: 12_000 * id,
        timer: timer("downstream_dead", 10_300 - silent),
        ..leg("10.0.0.5:9001", client)
    };
    let device = SocketAddr::from(([10, 0, 9, 5], 502));
    let beat = HeartbeatView {
        profile: "modbus",
        state: "ready",
        answers: (passed / 5_000) as u32,
        last_answer_ms: Some(passed % 5_000),
    };
    let upstream = LegView {
        last_life_ms: passed % 5_000,
        heartbeat: Some(beat),
        timer: timer("upstream_dead", 10_300 - passed % 5_000),
        ..leg("10.0.0.5:42000", device)
    };
    ConnectionView {
        id,
        listener: "plc".into(),
        phase: if waits == 0 {
            Phase::Open
        } else {
            Phase::Queued
        },
        age_ms,
        idle_ms: silent,
        proxy: None,
        timer: match waits {
            0 => upstream.timer.clone(),
            _ => timer("queue_timeout", 30_000 - age_ms),
        },
        downstream,
        upstream: (waits == 0).then_some(upstream),
        verdict: None,
    }
}
