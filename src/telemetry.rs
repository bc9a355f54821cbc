//! What is written to standard output: diagnostics, and one line for each session when it ends.
//!
//! Lines go through a bounded queue to a thread that writes them. If the reader of standard
//! output blocks, lines are dropped and counted; the data plane never waits for it.

use std::env;
use std::ffi::OsString;
use std::io::{IsTerminal, stdout};
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber, event, event_enabled};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogAccess, LogFormat, LogLevel, UpstreamAddress};
use crate::liveness::{CloseReason, Evidence, Leg};

/// Target of the lines about sessions, so that they have a switch of their own.
const ACCESS: &str = "access";
/// The same for their first line. The longer of two targets decides.
const ACCESS_START: &str = "access_start";
/// Lines of some hundred bytes: a few MiB at worst.
const BUFFERED_LINES: usize = 16 * 1024;

/// How long the end of the process waits for the reader of the log.
const LAST_LINES: Duration = Duration::from_millis(1500);

/// Keeps the writing thread; dropping it writes what is queued, for 1.5 s at most. What a
/// reader that does not read has not taken by then is lost.
#[must_use = "lines are written as long as it lives"]
#[derive(Debug)]
pub struct LogGuard {
    worker: Option<WorkerGuard>,
    switch: LogSwitch,
}

/// What is written, which can change while the process runs.
#[derive(Clone, Debug)]
pub struct LogSwitch {
    filter: reload::Handle<Targets, Registry>,
    drops: ErrorCounter,
}

impl LogSwitch {
    /// Has the lines written that these settings ask for; their format stays as it is.
    pub fn set(&self, log: &Log) {
        // An error is the end of the subscriber, and with it of the log.
        let _ = self.filter.reload(filter(log));
    }

    /// How many lines were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.dropped_lines() as u64
    }
}

impl Drop for LogGuard {
    /// On a thread of its own: where the queue is full, the drop of the guard prints to standard
    /// output, whose lock is held by the writer that its reader blocks.
    fn drop(&mut self) {
        let Some(worker) = self.worker.take().map(ManuallyDrop::new) else {
            return;
        };
        let (done, is_done) = mpsc::channel::<()>();
        // Without a thread to be had the guard is left alone, not dropped here.
        let flush = thread::Builder::new().spawn(move || {
            drop(ManuallyDrop::into_inner(worker));
            drop(done);
        });
        if flush.is_ok() {
            let _written_or_not = is_done.recv_timeout(LAST_LINES);
        }
    }
}

impl LogGuard {
    /// What is written.
    #[must_use]
    pub fn switch(&self) -> LogSwitch {
        self.switch.clone()
    }
}

/// Starts logging to standard output, for the whole process.
///
/// # Errors
/// If it has been started before.
pub fn init(log: &Log) -> Result<LogGuard, TryInitError> {
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("log")
        .finish(stdout());
    let drops = writer.error_counter();
    let colours = colours_of(&stdout());
    let (subscriber, filter) = subscriber(log, writer, colours);
    subscriber.try_init()?;
    Ok(LogGuard {
        worker: Some(worker),
        switch: LogSwitch { filter, drops },
    })
}

/// Whether text has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// By escape sequences.
    Shown,
    /// None.
    Plain,
}

/// Those of an output: where it is a terminal that can show them, and the user wants them.
#[must_use]
pub fn colours_of(output: &impl IsTerminal) -> Colours {
    if output.is_terminal() {
        colours(|name| env::var_os(name))
    } else {
        Colours::Plain
    }
}

/// Colours are for a terminal that can show them and a user who wants them (<https://no-color.org>).
fn colours(variable: impl Fn(&str) -> Option<OsString>) -> Colours {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    if refused || variable("TERM").is_some_and(|term| term == "dumb") {
        Colours::Plain
    } else {
        Colours::Shown
    }
}

fn filter(log: &Log) -> Targets {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let written = |is_written| match is_written {
        true => LevelFilter::INFO,
        false => LevelFilter::OFF,
    };
    Targets::new()
        .with_default(level)
        .with_target(ACCESS, written(log.access != LogAccess::Off))
        .with_target(ACCESS_START, written(log.access == LogAccess::Both))
}

fn subscriber<W>(
    log: &Log,
    writer: W,
    colours: Colours,
) -> (
    impl Subscriber + Send + Sync + use<W>,
    reload::Handle<Targets, Registry>,
)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(log));
    let lines = fmt::layer().with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => lines
            .with_target(false)
            .with_ansi(colours == Colours::Shown)
            .boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    (subscriber, handle)
}

/// A line that may be due very often, such as one for each client while a service is down: it is
/// written once, and then how many more there would have been, every 10 s.
#[derive(Debug, Default)]
pub struct Repeated(AtomicU64);

/// Between the first line and the sum, and between sums.
const SUM_EVERY: Duration = Duration::from_secs(10);

impl Repeated {
    /// For a static one.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts the line. `true`: it is to be written, and [`Repeated::sum_up`] to be awaited.
    pub fn begin(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Has the sums written, until nothing came for 10 s.
    pub async fn sum_up(&self, write: impl Fn(u64)) {
        loop {
            tokio::time::sleep(SUM_EVERY).await;
            // The first one stands for itself, or for the sum before.
            match self.0.swap(1, Ordering::Relaxed).saturating_sub(1) {
                0 if self
                    .0
                    .compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok() =>
                {
                    return;
                }
                0 => {}
                more => write(more),
            }
        }
    }
}

/// Writes the first line of a session, if that is asked for: its client is known, and has no place yet.
pub fn session_started(
    id: u64,
    listener: &str,
    client: impl FnOnce() -> (Option<SocketAddr>, Option<SocketAddr>),
) {
    if !event_enabled!(target: ACCESS_START, Level::INFO) {
        return;
    }
    let (downstream, proxy) = client();
    event!(
        target: ACCESS_START,
        Level::INFO,
        id,
        listener,
        downstream = downstream.map(display),
        proxy = proxy.map(display),
        "session started"
    );
}

/// One session, when it has ended.
#[derive(Clone, Debug)]
pub struct AccessRecord<'a> {
    /// The id that `/connections` showed.
    pub id: u64,
    /// Name of the listener.
    pub listener: &'a str,
    /// Why it ended.
    pub reason: CloseReason,
    /// What proved a peer gone.
    pub evidence: Option<Evidence>,
    /// The leg whose peer was found gone.
    pub dead_leg: Option<Leg>,
    /// The client; `None`: it came by a unix socket.
    pub downstream: Option<SocketAddr>,
    /// The peer of the client's connection, if that told by the PROXY protocol who the client is.
    pub proxy: Option<SocketAddr>,
    /// The address that was dialled last, or would have been.
    pub upstream: Option<&'a UpstreamAddress>,
    /// The name that it comes from; what is configured, if nothing was dialled.
    pub upstream_name: Option<&'a str>,
    /// Bytes read from each leg, by [`Leg`].
    pub received: [u64; 2],
    /// Bytes written to each leg, by [`Leg`].
    pub sent: [u64; 2],
    /// From its acceptance to its end.
    pub duration: Duration,
    /// How long it waited for a place; `None` if it did not have to.
    pub queued: Option<Duration>,
    /// The client said FIN while it waited.
    pub abandoned: bool,
    /// What connecting the upstream took; `None` if it was never connected.
    pub connect: Option<Duration>,
    /// From the last sign of life of the leg found gone to the verdict.
    pub silent: Option<Duration>,
    /// Keepalive probes that each peer was seen to answer, by [`Leg`]; 255 is that many or more.
    pub probes_answered: [u8; 2],
    /// What is known of TLS, by [`Leg`].
    pub tls: [Option<TlsRecord<'a>>; 2],
    /// Why there is no TLS, or none any more.
    pub tls_failure: Option<&'static str>,
    /// The name that a client asked for (SNI) whose handshake failed.
    pub asked_for: Option<&'a str>,
}

/// TLS of one leg.
#[derive(Clone, Copy, Debug)]
pub struct TlsRecord<'a> {
    /// Of the protocol.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher: &'static str,
    /// The name that the client asked for (SNI).
    pub server_name: Option<&'a str>,
    /// The protocol that was agreed on (ALPN).
    pub alpn: Option<&'a str>,
    /// Whose certificate the peer has shown.
    pub identity: Option<&'a str>,
}

/// Writes the line of a session: a warning where a peer was gone, or hung. Fields that do not apply are left out.
pub fn access_log(record: &AccessRecord<'_>) {
    let [down, up] = [Leg::Downstream as usize, Leg::Upstream as usize];
    let [client, service] = record.tls;
    // The level of an event is a constant.
    macro_rules! line {
        ($level:expr) => {
            event!(
                target: ACCESS,
                $level,
                id = record.id,
                listener = record.listener,
                reason = <&str>::from(record.reason),
                initiator = record.reason.initiator(),
                evidence = record.evidence.map(<&str>::from),
                dead_leg = record.dead_leg.map(<&str>::from),
                downstream = record.downstream.map(display),
                proxy = record.proxy.map(display),
                upstream = record.upstream.map(display),
                upstream_name = record.upstream_name.map(display),
                tls = client.map(|tls| tls.version),
                tls_cipher = client.map(|tls| tls.cipher),
                sni = client.and_then(|tls| tls.server_name).or(record.asked_for),
                alpn = client.and_then(|tls| tls.alpn),
                client_identity = client.and_then(|tls| tls.identity),
                upstream_tls = service.map(|tls| tls.version),
                upstream_tls_cipher = service.map(|tls| tls.cipher),
                tls_failure = record.tls_failure,
                downstream_received = record.received[down],
                downstream_sent = record.sent[down],
                upstream_received = record.received[up],
                upstream_sent = record.sent[up],
                duration_ms = millis(record.duration),
                queued_ms = record.queued.map(millis),
                abandoned = record.abandoned.then_some(true),
                connect_ms = record.connect.map(millis),
                silent_ms = record.silent.map(millis),
                downstream_probes_answered = record.probes_answered[down],
                upstream_probes_answered = record.probes_answered[up],
                "session ended"
            )
        };
    }
    if record.reason.found_leg().is_some() {
        line!(Level::WARN);
    } else {
        line!(Level::INFO);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::LazyLock;
    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::{Value, json};
    use tracing::{debug, subscriber::with_default, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(log: &Log, act: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, _) = subscriber(log, move || writer.clone(), Colours::Plain);
        with_default(subscriber, act);
        let bytes = sink.0.lock().expect("not poisoned");
        String::from_utf8(bytes.clone()).expect("UTF-8")
    }

    static UPSTREAM: LazyLock<UpstreamAddress> =
        LazyLock::new(|| UpstreamAddress::Socket("10.0.0.9:5432".parse().expect("valid")));

    fn record() -> AccessRecord<'static> {
        AccessRecord {
            id: 7,
            listener: "db",
            reason: CloseReason::UpstreamDead,
            evidence: Some(Evidence::Retransmit),
            dead_leg: Some(Leg::Upstream),
            downstream: Some("192.0.2.7:51234".parse().expect("valid")),
            proxy: Some("10.0.0.2:40000".parse().expect("valid")),
            upstream: Some(&UPSTREAM),
            upstream_name: None,
            received: [1, 2],
            sent: [3, 4],
            duration: Duration::from_secs(90),
            queued: Some(Duration::from_millis(40)),
            abandoned: true,
            connect: Some(Duration::from_millis(3)),
            silent: Some(Duration::from_millis(29_900)),
            probes_answered: [5, 6],
            tls: [
                Some(TlsRecord {
                    version: "TLSv1.3",
                    cipher: "TLS_AES_256_GCM_SHA384",
                    server_name: Some("db.example"),
                    alpn: Some("redis"),
                    identity: Some("client 7"),
                }),
                None,
            ],
            tls_failure: None,
            asked_for: None,
        }
    }

    const JSON: Log = Log {
        level: LogLevel::Warn,
        format: LogFormat::Json,
        access: LogAccess::End,
    };

    #[test]
    fn a_session_is_one_json_line() {
        let text = written(&JSON, || access_log(&record()));
        assert_eq!(text.lines().count(), 1);
        let mut line: Value = serde_json::from_str(&text).expect("JSON");
        let fields = line.as_object_mut().expect("an object");
        assert!(fields.remove("timestamp").is_some());
        let expected = json!({
            "level": "WARN", "target": "access", "message": "session ended",
            "id": 7, "listener": "db", "reason": "upstream_dead", "initiator": "upstream",
            "evidence": "retransmit", "dead_leg": "upstream",
            "downstream": "192.0.2.7:51234", "proxy": "10.0.0.2:40000", "upstream": "10.0.0.9:5432",
            "tls": "TLSv1.3", "tls_cipher": "TLS_AES_256_GCM_SHA384", "sni": "db.example", "alpn": "redis",
            "client_identity": "client 7", "queued_ms": 40, "abandoned": true, "downstream_received": 1, "downstream_sent": 3,
            "upstream_received": 2, "upstream_sent": 4,
            "duration_ms": 90_000, "connect_ms": 3, "silent_ms": 29_900,
            "downstream_probes_answered": 5, "upstream_probes_answered": 6,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn the_document_lists_every_field() {
        let mut full = record();
        full.upstream_name = Some("db.example:5432");
        full.tls[1] = full.tls[0];
        full.tls_failure = Some("timeout");
        let text = written(&JSON, || access_log(&full));
        let line: Value = serde_json::from_str(&text).expect("JSON");
        let of_every_line = ["timestamp", "level", "target", "message"];
        let fields = line.as_object().expect("an object").keys();
        let mut fields: Vec<_> = fields.map(String::as_str).collect();
        fields.retain(|field| !of_every_line.contains(field));
        let document = include_str!("../docs/LOG.md");
        let section = document
            .split("\n## ")
            .find(|section| section.starts_with("The access line"));
        let rows = section.expect("a section").lines();
        let listed = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        let mut listed: Vec<_> = listed.collect();
        fields.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, fields);
    }

    #[test]
    fn a_peer_that_was_gone_or_hung_is_a_warning() {
        for (reason, level) in [
            (CloseReason::Finished, "INFO"),
            (CloseReason::DownstreamReset, "INFO"),
            (CloseReason::Admin, "INFO"),
            (CloseReason::DownstreamDead, "WARN"),
            (CloseReason::UpstreamUndelivered, "WARN"),
            (CloseReason::UpstreamPhantom, "WARN"),
        ] {
            let record = AccessRecord { reason, ..record() };
            let text = written(&JSON, || access_log(&record));
            let line: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(line["level"], level, "{reason}");
        }
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let mut record = record();
        record.evidence = None;
        record.connect = None;
        record.silent = None;
        record.dead_leg = None;
        record.proxy = None;
        let text = written(&JSON, || access_log(&record));
        for field in ["evidence", "connect_ms", "silent_ms", "dead_leg", "proxy"] {
            assert!(!text.contains(&format!("\"{field}\":")), "{field}: {text}");
        }
    }

    /// Whoever has a certificate may have any name in it.
    #[test]
    fn a_name_of_a_certificate_forges_no_line() {
        let mut record = record();
        let name = "x\u{1b}[2J\n2026-01-01 INFO access: session ended id=1";
        if let Some(tls) = &mut record.tls[0] {
            tls.identity = Some(name);
        }
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = written(&Log { format, ..JSON }, || access_log(&record));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }

    #[test]
    fn the_address_dialled_stands_beside_the_name() {
        let line = |dialled: AccessRecord<'_>| {
            let text = written(&JSON, || access_log(&dialled));
            serde_json::from_str::<Value>(&text).expect("JSON")
        };
        let mut record = record();
        record.upstream_name = Some("db.example:5432");
        let dialled = line(record.clone());
        assert_eq!(dialled["upstream"], "10.0.0.9:5432");
        assert_eq!(dialled["upstream_name"], "db.example:5432");
        record.upstream = None;
        let not_yet = line(record);
        assert_eq!(not_yet.get("upstream"), None);
        assert_eq!(not_yet["upstream_name"], "db.example:5432");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_repeats_is_summed_up() {
        let lines = Arc::new(Repeated::default());
        let sums = Arc::new(Mutex::new(Vec::new()));
        assert!(lines.begin());
        assert!((0..7).all(|_| !lines.begin()));
        let (of, into) = (lines.clone(), sums.clone());
        let summing = tokio::spawn(async move {
            of.sum_up(|more| into.lock().expect("not poisoned").push(more))
                .await;
        });
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(*sums.lock().expect("not poisoned"), [7]);
        assert!(!lines.begin(), "another one within 10 s");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*sums.lock().expect("not poisoned"), [7, 1]);
        summing.await.expect("ends when nothing comes");
        assert!(lines.begin(), "the first one after a pause is written");
    }

    #[test]
    fn level_and_access_are_separate() {
        let act = || {
            warn!("grave");
            debug!("detail");
            session_started(7, "db", || (record().downstream, record().proxy));
            access_log(&record());
        };
        for (level, access, expected) in [
            (
                LogLevel::Error,
                LogAccess::Off,
                [false, false, false, false],
            ),
            (LogLevel::Error, LogAccess::End, [false, false, false, true]),
            (LogLevel::Error, LogAccess::Both, [false, false, true, true]),
            (LogLevel::Warn, LogAccess::Both, [true, false, true, true]),
            (LogLevel::Debug, LogAccess::End, [true, true, false, true]),
            (LogLevel::Debug, LogAccess::Off, [true, true, false, false]),
        ] {
            let log = Log {
                level,
                format: LogFormat::Text,
                access,
            };
            let text = written(&log, act);
            let words = ["grave", "detail", "session started", "session ended"];
            let found = words.map(|word| text.contains(word));
            assert_eq!(found, expected, "{log:?}\n{text}");
            assert!(!text.contains("pulsegate::"), "no path of a module: {text}");
        }
    }

    #[test]
    fn the_first_line_of_a_session_says_who_the_client_is() {
        let log = Log {
            access: LogAccess::Both,
            ..JSON
        };
        let text = written(&log, || {
            session_started(7, "db", || (record().downstream, None));
        });
        let mut line: Value = serde_json::from_str(&text).expect("JSON");
        let fields = line.as_object_mut().expect("an object");
        assert!(fields.remove("timestamp").is_some());
        let expected = json!({ "level": "INFO", "target": "access_start", "message": "session started",
            "id": 7, "listener": "db", "downstream": "192.0.2.7:51234" });
        assert_eq!(line, expected);
        let nobody_asks = || panic!("nothing is done for a line that is not written");
        assert_eq!(written(&JSON, || session_started(7, "db", nobody_asks)), "");
    }

    #[test]
    fn colours_can_be_refused() {
        for (variables, expected) in [
            (&[][..], Colours::Shown),
            (&[("TERM", "xterm")], Colours::Shown),
            (&[("NO_COLOR", "")], Colours::Shown),
            (&[("NO_COLOR", "1")], Colours::Plain),
            (&[("TERM", "dumb")], Colours::Plain),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| OsString::from(value))
            };
            assert_eq!(colours(variable), expected, "{variables:?}");
        }
    }

    #[test]
    fn a_blocked_reader_costs_lines_and_no_time() {
        struct Blocked;
        impl Write for Blocked {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                loop {
                    std::thread::park();
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (writer, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(8)
            .finish(Blocked);
        let drops = writer.error_counter();
        with_default(subscriber(&JSON, writer, Colours::Plain).0, || {
            (0..100).for_each(|_| access_log(&record()));
        });
        assert!(drops.dropped_lines() >= 90, "{}", drops.dropped_lines());
        // Its drop waits for the writer, which never comes.
        std::mem::forget(worker);
    }
}
