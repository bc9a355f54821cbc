//! What a console shows: a process of known figures, which move as those of a real one do.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pulsegate::admin::view::{
    AnswerWord, Brief, ConnectionView, EndpointState, EndpointView, LegView, ListenerSummary,
    OnSilent, Phase, ReloadReport, Shown, Summary, TimerView, TlsView, VerifiedLeg,
    VerifiedSession,
};
use pulsegate::admin::{Control, NotReloaded, Readiness, TokenFile, serve};
use pulsegate::liveness::Leg;
use pulsegate::metrics::{End, ListenerFigures, wall_clock};
use tokio::sync::oneshot;

type Ended = Vec<(u64, Option<String>)>;

/// What the endpoint asks.
struct Known {
    start: Instant,
    sessions: AtomicU64,
    draining: AtomicBool,
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
        let seconds = self.seconds();
        // Some waves.
        let moved = 1_000_000 + (0..seconds).map(|s| 40_000 + 30_000 * (s % 7)).sum::<u64>();
        let is_plc = name == "plc";
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
            queued: usize::from(is_plc) * 2,
            accept_queue: 0,
            accept_queue_limit: 1024,
            received_bytes: [moved / 3, moved].into(),
            sent_bytes: [moved, moved / 3].into(),
            figures: ListenerFigures {
                half_open: [2 * u64::from(is_plc), 0].into(),
                stalled: [0, 1].into(),
                half_closed: 3,
                accepted: 9_120,
                closed: 9_000,
                half_open_detected: [14, 2].into(),
                found: 17 + seconds / 4,
                connect_failures: 1,
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
            version: "1.2.3",
            now: wall_clock(),
            draining: self.draining.load(SeqCst),
            sessions,
            listeners: vec![
                self.listener("db", 9000, sessions - 20, None),
                self.listener("plc", 9001, 20, Some(20)),
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
        ids.map(|id| Arc::new(One(id)) as Arc<dyn Shown>).collect()
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
        let leg = |answer, evidence: &str, took_ms| VerifiedLeg {
            answer,
            silent_ms: Some(took_ms),
            evidence: Some(evidence.into()),
            took_ms,
        };
        let session = |id: &u64| VerifiedSession {
            id: *id,
            listener: "db".into(),
            downstream: leg(AnswerWord::Silent, "keepalive", 802),
            upstream: Some(leg(AnswerWord::Alive, "answered", 3)),
            closed: false,
        };
        let verified = ids.iter().map(session).collect();
        Box::pin(std::future::ready(verified))
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        let endpoint = |listener: &str, endpoint: &str, state| EndpointView {
            listener: listener.into(),
            endpoint: endpoint.into(),
            name: (listener == "db").then(|| "db.example:5432".into()),
            state,
            active_sessions: 20,
            connects: 4_711,
            failures: 1,
            consecutive_failures: 0,
            ejections: u64::from(state == EndpointState::Ejected),
            ejected_for_ms: (state == EndpointState::Ejected).then_some(12_300),
            cause: None,
        };
        vec![
            endpoint("db", "10.0.9.7:5432", EndpointState::Up),
            endpoint("db", "10.0.9.8:5432", EndpointState::Ejected),
            endpoint("plc", "10.0.9.5:502", EndpointState::Up),
        ]
    }

    fn found(&self) -> Vec<End> {
        (0..17 + self.seconds() / 4).rev().map(end).collect()
    }

    fn config(&self) -> String {
        "listeners:\n- name: db\n  address: 127.0.0.1:9000\n  upstream: db.example:5432\n".into()
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        Box::pin(std::future::ready(Ok(ReloadReport::default())))
    }

    fn drain(&self) {
        self.draining.store(true, SeqCst);
    }
}

/// Mostly the same client that vanishes.
fn end(i: u64) -> End {
    let (reason, evidence, leg) = match i % 6 {
        4 => ("upstream_stalled", None, Leg::Upstream),
        5 => ("upstream_dead", Some("retransmit"), Leg::Upstream),
        _ => ("downstream_dead", Some("keepalive"), Leg::Downstream),
    };
    let host = if i % 6 == 3 { 9 } else { 7 };
    let client = SocketAddr::from(([10, 0, 3, host], 40_000 + i as u16));
    End {
        at: wall_clock() - 40 * (60 - i as i64).max(0),
        id: 4_000 + 17 * i,
        listener: if i.is_multiple_of(2) { "plc" } else { "db" }.into(),
        reason,
        evidence,
        leg,
        downstream: Some(client),
        upstream: Some("10.0.9.7:5432".into()),
        silent_ms: evidence.map(|_| {
            if i.is_multiple_of(2) {
                10_000 + 9 * (i % 7)
            } else {
                27_000 + 400 * (i % 7)
            }
        }),
        duration_ms: 1_000_000 + 77_777 * i,
        downstream_received: 1_200 + i,
        downstream_sent: 90_000 + i,
        upstream_received: 90_000 + i,
        upstream_sent: 1_200 + i,
    }
}

/// A session by its number.
struct One(u64);

impl Shown for One {
    fn id(&self) -> u64 {
        self.0
    }

    fn view(&self) -> Option<ConnectionView> {
        Some(session(self.0))
    }

    fn brief(&self) -> Option<Brief> {
        let view = session(self.0);
        let upstream = view.upstream.as_ref();
        Some(Brief {
            listener: view.listener.as_str().into(),
            phase: view.phase,
            peers: [view.downstream.peer, upstream.and_then(|leg| leg.peer)],
            conditions: [
                view.downstream.condition,
                upstream.map_or("alive", |leg| leg.condition),
            ],
            age_ms: view.age_ms,
            idle_ms: view.idle_ms,
            received_bytes: view.legs().map(|leg| leg.received_bytes).sum(),
            sent_bytes: view.legs().map(|leg| leg.sent_bytes).sum(),
        })
    }
}

fn session(id: u64) -> ConnectionView {
    let is_suspect = id % 50 == 2;
    let silent = if is_suspect {
        24_100
    } else {
        400 + 311 * (id % 23)
    };
    let timer = |reason, in_ms| Some(TimerView { reason, in_ms });
    let identity = match id {
        1 => "plc-7.example",
        _ => "<img src=x onerror=alert(1)>",
    };
    let tls = TlsView {
        version: "TLSv1.3",
        cipher: "TLS13_AES_256_GCM_SHA384",
        resumed: false,
        server_name: Some("db.example".into()),
        alpn: None,
        identity: Some(identity.into()),
    };
    let leg = |local: &str, peer: SocketAddr| LegView {
        local: Some(local.parse().expect("valid")),
        peer: Some(peer),
        state: "ESTAB",
        condition: "alive",
        last_life_ms: 400,
        received_bytes: 1_000 * id,
        sent_bytes: 77 * id,
        unacked: 0,
        notsent_bytes: 0,
        retransmits: 0,
        probes: 0,
        rtt_us: 250 + id as u32,
        heartbeat: None,
        timer: timer("upstream_dead", 29_600),
        tls: None,
    };
    let client = SocketAddr::from(([192, 0, 2, id as u8], 51_000));
    let downstream = LegView {
        condition: if is_suspect { "suspect" } else { "alive" },
        last_life_ms: silent,
        probes: u32::from(is_suspect) * 6,
        timer: timer("downstream_dead", 30_000 - silent),
        tls: Some(tls),
        ..leg("10.0.0.5:9000", client)
    };
    let mut upstream = leg("10.0.0.5:41000", SocketAddr::from(([10, 0, 9, 7], 5432)));
    if id % 40 == 5 {
        upstream.condition = "stalled";
        upstream.notsent_bytes = 65_536;
    }
    ConnectionView {
        id,
        listener: "db".into(),
        phase: if id % 40 == 7 {
            Phase::HalfClosed
        } else {
            Phase::Open
        },
        age_ms: 3_723_000 + 60_000 * id,
        idle_ms: silent,
        proxy: None,
        timer: downstream.timer.clone(),
        downstream,
        upstream: Some(upstream),
        verdict: None,
    }
}
