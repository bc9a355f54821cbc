//! Metrics in the Prometheus format.
//!
//! A [`ListenerMetrics`] holds every series of one listener with its labels resolved, so that
//! counting is one atomic addition. All values of all enum labels exist from the start, at 0: an
//! alert on a rate needs the series before the first event. No label has an unbounded set of
//! values.

mod host;
mod names;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use strum::{Display, IntoStaticStr, VariantArray};

use crate::liveness::{CloseReason, Condition, Evidence, LEGS, Leg, Traffic};
pub use host::{HostMetrics, HostSource, NetnsCounter, NetnsGauge};
use names::Family;

/// Why a client was reset right after it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum RejectReason {
    /// The listener holds `max_connections` sessions.
    MaxConnections,
    /// Too few file descriptors are left for both legs.
    Descriptors,
    /// Memory is short.
    Memory,
    /// The runtime could not watch its socket (epoll_ctl(2)).
    LocalError,
}

/// What was short when a session was ended to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum Shortage {
    /// Places of the listener (`on_full: shed`).
    Places,
    /// File descriptors.
    Descriptors,
    /// Memory.
    Memory,
}

/// How a connect to the upstream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum ConnectFailure {
    /// No answer within `connect_timeout`.
    Timeout,
    /// Refused by the upstream.
    Refused,
    /// No local port is left for its address (EADDRNOTAVAIL).
    SourcePorts,
    /// Unreachable, or its name could not be resolved, or another local failure.
    Failed,
}

/// Class of a failed accept().
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum AcceptErrorClass {
    /// No descriptor is left in the process or the system (EMFILE, ENFILE).
    Descriptors,
    /// The kernel has no memory left (ENOBUFS, ENOMEM).
    Memory,
    /// That one connection failed before it was accepted (ECONNABORTED and the like).
    Connection,
    /// Anything else.
    Other,
}

/// What came of a client that found its listener full and waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum Takeover {
    /// A holder was proven dead and made room.
    HolderDead,
    /// It waited until a holder ended by itself.
    Queued,
    /// A live holder made room (`on_full: replace`).
    Replaced,
    /// A quiet holder made room (`on_full: shed`).
    Shed,
    /// It was not served.
    NotServed,
}

/// The default budget is 30 s and the largest sensible one some minutes.
const DETECTION_DELAY_BUCKETS: &[f64] = &[
    1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0,
];
/// From a health check to a session of a week.
const DURATION_BUCKETS: &[f64] = &[
    0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0,
];
/// From loopback to the largest `connect_timeout`.
const CONNECT_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    host: HostMetrics,
    looks: IntCounter,
    draining: IntGauge,
    open_descriptors: IntGauge,
    descriptor_limit: IntGauge,
    workers_in_use: IntGauge,
    log_lines_dropped: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An own registry, so that several may exist in one process. The start time that it reports
    /// is the time of this call.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the start time is a wall-clock time"
    )]
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families::new(&registry);
        let (looks, draining) = (
            counters(&registry, names::LIVENESS_LOOKS),
            gauges(&registry, names::DRAINING),
        );
        let open_descriptors = gauges(&registry, names::OPEN_DESCRIPTORS);
        let descriptor_limit = gauges(&registry, names::DESCRIPTOR_LIMIT);
        let workers_in_use = gauges(&registry, names::WORKERS_IN_USE);
        let log_lines_dropped = counters(&registry, names::LOG_LINES_DROPPED);
        gauges(&registry, names::BUILD_INFO)
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        gauges(&registry, names::PROCESS_START_TIME)
            .with_label_values::<&str>(&[])
            .set(i64::try_from(started.as_secs()).unwrap_or(i64::MAX));
        Self {
            looks: looks.with_label_values::<&str>(&[]),
            draining: draining.with_label_values::<&str>(&[]),
            open_descriptors: open_descriptors.with_label_values::<&str>(&[]),
            descriptor_limit: descriptor_limit.with_label_values::<&str>(&[]),
            workers_in_use: workers_in_use.with_label_values::<&str>(&[]),
            log_lines_dropped: log_lines_dropped.with_label_values::<&str>(&[]),
            host: HostMetrics::new(&registry),
            registry,
            families,
        }
    }

    /// The series that tell of the host.
    #[must_use]
    pub const fn host(&self) -> &HostMetrics {
        &self.host
    }

    /// The series of one listener, created at 0. The same name gives the same series.
    #[must_use]
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        Arc::new(ListenerMetrics::new(
            &self.families,
            name,
            self.looks.clone(),
        ))
    }

    /// Whether the process drains.
    pub fn set_draining(&self, draining: bool) {
        self.draining.set(i64::from(draining));
    }

    /// File descriptors held, and the limit of the process. The last number stays where there is
    /// none.
    pub fn set_descriptors(&self, open: Option<u64>, limit: u64) {
        if let Some(open) = open {
            self.open_descriptors.set(saturating(open));
        }
        self.descriptor_limit.set(saturating(limit));
    }

    /// Workers that carry sessions.
    pub fn set_workers_in_use(&self, workers: usize) {
        self.workers_in_use.set(saturating(workers as u64));
    }

    /// Log lines dropped since the start of the process; a lower total than before is ignored.
    /// To be called from one thread.
    pub fn set_log_lines_dropped(&self, total: u64) {
        let known = self.log_lines_dropped.get();
        self.log_lines_dropped.inc_by(total.saturating_sub(known));
    }

    /// Everything in the Prometheus text format ([`TEXT_FORMAT`]).
    #[must_use]
    pub fn render(&self) -> String {
        // Encoding fails only for a family without a name or without series; gather() gives
        // neither.
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

pub use prometheus::TEXT_FORMAT;

/// The families that have a `listener` label.
#[derive(Debug)]
struct Families {
    accepted: IntCounterVec,
    rejected: IntCounterVec,
    active: IntGaugeVec,
    closed: IntCounterVec,
    half_open: IntGaugeVec,
    half_open_detected: IntCounterVec,
    detection_delay: HistogramVec,
    half_closed: IntGaugeVec,
    stalled: IntGaugeVec,
    undelivered: IntGaugeVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    resets: IntCounterVec,
    probes: IntCounterVec,
    duration: HistogramVec,
    connect_duration: HistogramVec,
    connect_failures: IntCounterVec,
    accept_errors: IntCounterVec,
    queue_length: IntGaugeVec,
    queue_limit: IntGaugeVec,
    upstream_queue: [IntGaugeVec; 2],
    option_errors: IntCounterVec,
    moved: IntCounterVec,
    queued: IntGaugeVec,
    phantom: IntGaugeVec,
    takeovers: IntCounterVec,
    shed: IntCounterVec,
}

impl Families {
    fn new(r: &Registry) -> Self {
        Self {
            accepted: counters(r, names::CONNECTIONS_ACCEPTED),
            rejected: counters(r, names::CONNECTIONS_REJECTED),
            active: gauges(r, names::CONNECTIONS_ACTIVE),
            closed: counters(r, names::CONNECTIONS_CLOSED),
            half_open: gauges(r, names::HALF_OPEN),
            half_open_detected: counters(r, names::HALF_OPEN_DETECTED),
            detection_delay: histograms(
                r,
                names::HALF_OPEN_DETECTION_DELAY,
                DETECTION_DELAY_BUCKETS,
            ),
            half_closed: gauges(r, names::HALF_CLOSED),
            stalled: gauges(r, names::STALLED),
            undelivered: gauges(r, names::UNDELIVERED),
            received: counters(r, names::RECEIVED_BYTES),
            sent: counters(r, names::SENT_BYTES),
            resets: counters(r, names::RESETS_SENT),
            probes: counters(r, names::PROBES_SENT),
            duration: histograms(r, names::CONNECTION_DURATION, DURATION_BUCKETS),
            connect_duration: histograms(r, names::CONNECT_DURATION, CONNECT_BUCKETS),
            connect_failures: counters(r, names::CONNECT_FAILURES),
            accept_errors: counters(r, names::ACCEPT_ERRORS),
            queue_length: gauges(r, names::LISTEN_QUEUE_LENGTH),
            queue_limit: gauges(r, names::LISTEN_QUEUE_LIMIT),
            upstream_queue: [names::UPSTREAM_QUEUE_LENGTH, names::UPSTREAM_QUEUE_LIMIT]
                .map(|family| gauges(r, family)),
            option_errors: counters(r, names::SOCKET_OPTION_ERRORS),
            moved: counters(r, names::CONNECTIONS_MOVED),
            queued: gauges(r, names::CONNECTIONS_QUEUED),
            phantom: gauges(r, names::PHANTOM),
            takeovers: counters(r, names::TAKEOVERS),
            shed: counters(r, names::SHED),
        }
    }
}

/// The series of one listener. Every method is a few atomic operations; none takes a lock.
///
/// Once every session has been counted, accepted = rejected + closed + active.
#[derive(Debug)]
pub struct ListenerMetrics {
    accepted: IntCounter,
    rejected: Box<[IntCounter]>,
    active: IntGauge,
    closed: Box<[IntCounter]>,
    half_closed: IntGauge,
    duration: Histogram,
    connect_duration: Histogram,
    connect_failures: Box<[IntCounter]>,
    accept_errors: Box<[IntCounter]>,
    queue_length: IntGauge,
    queue_limit: IntGauge,
    /// Length and limit; with the name, since they may have no series.
    upstream_queue: ([IntGaugeVec; 2], Box<str>),
    option_errors: IntCounter,
    moved: IntCounter,
    /// Of all listeners.
    looks: IntCounter,
    queued: IntGauge,
    phantom: IntGauge,
    takeovers: Box<[IntCounter]>,
    shed: Box<[IntCounter]>,
    legs: [LegMetrics; 2],
}

#[derive(Debug)]
struct LegMetrics {
    half_open: IntGauge,
    half_open_detected: Box<[IntCounter]>,
    detection_delay: Histogram,
    stalled: IntGauge,
    undelivered: IntGauge,
    received: IntCounter,
    sent: IntCounter,
    /// Bytes received and sent by sessions that have ended.
    settled: [AtomicU64; 2],
    resets: IntCounter,
    probes: IntCounter,
}

impl ListenerMetrics {
    fn new(f: &Families, name: &str, looks: IntCounter) -> Self {
        let reason = |r: &CloseReason| f.closed.with_label_values(&[name, r.initiator(), r.into()]);
        Self {
            accepted: f.accepted.with_label_values(&[name]),
            rejected: each::<RejectReason>(&f.rejected, name),
            active: f.active.with_label_values(&[name]),
            closed: CloseReason::VARIANTS.iter().map(reason).collect(),
            half_closed: f.half_closed.with_label_values(&[name]),
            duration: f.duration.with_label_values(&[name]),
            connect_duration: f.connect_duration.with_label_values(&[name]),
            connect_failures: each::<ConnectFailure>(&f.connect_failures, name),
            accept_errors: each::<AcceptErrorClass>(&f.accept_errors, name),
            queue_length: f.queue_length.with_label_values(&[name]),
            queue_limit: f.queue_limit.with_label_values(&[name]),
            upstream_queue: (f.upstream_queue.clone(), name.into()),
            option_errors: f.option_errors.with_label_values(&[name]),
            moved: f.moved.with_label_values(&[name]),
            looks,
            queued: f.queued.with_label_values(&[name]),
            phantom: f.phantom.with_label_values(&[name]),
            takeovers: each::<Takeover>(&f.takeovers, name),
            shed: each::<Shortage>(&f.shed, name),
            legs: LEGS.map(|leg| LegMetrics::new(f, name, leg)),
        }
    }

    /// A client was taken from the accept queue.
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    /// An accepted client was reset at once.
    pub fn rejected(&self, reason: RejectReason) {
        self.rejected[reason as usize].inc();
        self.reset_sent(Leg::Downstream);
    }

    /// How many sessions there are.
    pub fn set_active(&self, sessions: usize) {
        self.active.set(saturating(sessions as u64));
    }

    /// How many clients wait for a place.
    pub fn set_queued(&self, clients: usize) {
        self.queued.set(saturating(clients as u64));
    }

    /// What came of a client that found the listener full and waited.
    pub fn takeover(&self, outcome: Takeover) {
        self.takeovers[outcome as usize].inc();
    }

    /// A session or a client that waited was ended to make room.
    pub fn shed(&self, shortage: Shortage) {
        self.shed[shortage as usize].inc();
    }

    /// A session ended; once for each session. `duration` counts from its acceptance.
    pub fn closed(&self, reason: CloseReason, duration: Duration, moved: &Traffic) {
        for leg in LEGS {
            let settled = &self.legs[leg as usize].settled;
            settled[0].fetch_add(moved.received[leg as usize], Ordering::Relaxed);
            settled[1].fetch_add(moved.sent[leg as usize], Ordering::Relaxed);
        }
        self.closed[reason as usize].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// What is known of a peer has changed. The session keeps what it was; a guard here would
    /// cost memory in each session.
    pub fn condition_changed(&self, leg: Leg, was: Condition, is: Condition) {
        let gauge = |condition| match condition {
            Condition::Alive | Condition::Quiet => None,
            Condition::Suspect => Some(&self.legs[leg as usize].half_open),
            Condition::Stalled => Some(&self.legs[leg as usize].stalled),
            Condition::Undelivered => Some(&self.legs[leg as usize].undelivered),
            Condition::Phantom => Some(&self.phantom),
        };
        if was != is {
            gauge(was).inspect(|gauge| gauge.dec());
            gauge(is).inspect(|gauge| gauge.inc());
        }
    }

    /// A session has become half-closed (1), or is not any more (-1).
    pub fn half_closed_changed(&self, by: i64) {
        self.half_closed.add(by);
    }

    /// A half-open peer was proven gone, `delay` after its last sign of life.
    pub fn half_open_found(&self, leg: Leg, evidence: Evidence, delay: Duration) {
        let leg = &self.legs[leg as usize];
        leg.half_open_detected[evidence as usize].inc();
        leg.detection_delay.observe(delay.as_secs_f64());
    }

    /// What the sessions that have ended had moved. To be asked before the living are added up.
    #[must_use]
    pub fn settled(&self) -> Traffic {
        let load =
            |i: usize| LEGS.map(|l| self.legs[l as usize].settled[i].load(Ordering::Relaxed));
        Traffic {
            received: load(0),
            sent: load(1),
        }
    }

    /// All that was ever moved. A session that ended while the living were added up may be
    /// missing; the counters wait until it is back. To be called from one thread.
    pub fn set_bytes(&self, total: &Traffic) {
        for leg in LEGS {
            let (i, leg) = (leg as usize, &self.legs[leg as usize]);
            leg.received
                .inc_by(total.received[i].saturating_sub(leg.received.get()));
            leg.sent
                .inc_by(total.sent[i].saturating_sub(leg.sent.get()));
        }
    }

    /// A leg was ended with RST by pulsegate.
    pub fn reset_sent(&self, leg: Leg) {
        self.legs[leg as usize].resets.inc();
    }

    /// A keepalive probe was asked for on demand.
    pub fn probe_sent(&self, leg: Leg) {
        self.legs[leg as usize].probes.inc();
    }

    /// The upstream was connected within `duration`.
    pub fn connected(&self, duration: Duration) {
        self.connect_duration.observe(duration.as_secs_f64());
    }

    /// A connect to the upstream failed.
    pub fn connect_failed(&self, reason: ConnectFailure) {
        self.connect_failures[reason as usize].inc();
    }

    /// accept() failed.
    pub fn accept_error(&self, class: AcceptErrorClass) {
        self.accept_errors[class as usize].inc();
    }

    /// The accept queue now, and the kernel's limit of it.
    pub fn set_listen_queue(&self, length: u64, limit: u64) {
        self.queue_length.set(saturating(length));
        self.queue_limit.set(saturating(limit));
    }

    /// The accept queue of the service and its limit; `None` where they cannot be seen, which
    /// then have no series.
    pub fn set_upstream_queue(&self, queue: Option<(u64, u64)>) {
        let ([length, limit], name) = &self.upstream_queue;
        let labels = &[&**name];
        match queue {
            Some(known) => {
                length.with_label_values(labels).set(saturating(known.0));
                limit.with_label_values(labels).set(saturating(known.1));
            }
            None => {
                // An error says that there was no series.
                let _ = length.remove_label_values(labels);
                let _ = limit.remove_label_values(labels);
            }
        }
    }

    /// The kernel was asked about a session, whoever wanted to know.
    pub fn looked(&self) {
        self.looks.inc();
    }

    /// A session went on at another worker.
    pub fn moved(&self) {
        self.moved.inc();
    }

    /// A socket option could not be set.
    pub fn socket_option_failed(&self) {
        self.option_errors.inc();
    }
}

impl LegMetrics {
    fn new(f: &Families, name: &str, leg: Leg) -> Self {
        let labels = &[name, leg.into()];
        let evidence = |e: &Evidence| {
            f.half_open_detected
                .with_label_values(&[name, leg.into(), e.into()])
        };
        Self {
            half_open: f.half_open.with_label_values(labels),
            half_open_detected: Evidence::VARIANTS.iter().map(evidence).collect(),
            detection_delay: f.detection_delay.with_label_values(labels),
            stalled: f.stalled.with_label_values(labels),
            undelivered: f.undelivered.with_label_values(labels),
            received: f.received.with_label_values(labels),
            sent: f.sent.with_label_values(labels),
            settled: [AtomicU64::new(0), AtomicU64::new(0)],
            resets: f.resets.with_label_values(labels),
            probes: f.probes.with_label_values(labels),
        }
    }
}

/// One counter for each word of a vocabulary, in its order: indexed by `word as usize`.
fn each<W>(family: &IntCounterVec, listener: &str) -> Box<[IntCounter]>
where
    W: VariantArray + 'static,
    &'static str: From<&'static W>,
{
    let series = |word: &'static W| family.with_label_values(&[listener, word.into()]);
    W::VARIANTS.iter().map(series).collect()
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn counters(registry: &Registry, family: Family) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(Opts::new(family.name, family.help), family.labels),
    )
}

fn gauges(registry: &Registry, family: Family) -> IntGaugeVec {
    register(
        registry,
        IntGaugeVec::new(Opts::new(family.name, family.help), family.labels),
    )
}

fn histograms(registry: &Registry, family: Family, buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(family.name, family.help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(opts, family.labels))
}

/// Registration depends on the constants of [`names`] alone; any test that makes a [`Metrics`]
/// proves that they are valid and distinct.
#[expect(clippy::expect_used, reason = "constants only, see above")]
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("the names are valid");
    registry
        .register(Box::new(collector.clone()))
        .expect("the names are distinct");
    collector
}

#[cfg(test)]
mod tests;
