//! Metrics in the Prometheus format.
//!
//! A [`ListenerMetrics`] holds every series of one listener with its labels resolved, so that
//! counting is one atomic addition. All values of all enum labels exist from the start, at 0: an
//! alert on a rate needs the series before the first event. No label has an unbounded set of
//! values. `docs/METRICS.md` says more about each series; a test holds the two together.

mod certificates;
mod endpoints;
mod figures;
mod found;
mod guard;
mod series;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use crate::liveness::{CloseReason, Condition, Evidence, LEGS, Leg, Traffic};
pub use certificates::CertificateFigure;
use certificates::Certificates;
pub use endpoints::EndpointFigures;
use endpoints::EndpointSeries;
pub use figures::{ListenerFigures, PerLeg};
pub use found::{End, Found, FoundList, Group};
pub use guard::GuardMetrics;
use series::{
    By, Collectors, KnownCounter, KnownGauge, PerEndpoint, Registration, raise, saturating, series,
};
pub use words::{
    AcceptErrorClass, ConnectFailure, ConnectOutcome, HandshakeFailure, HostSource, RejectReason,
    ReloadOutcome, Shortage, Takeover, TlsVersion,
};

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

series! {
    /// The series of one listener.
    ListenerSeries {
        accepted: IntCounter = "pulsegate_connections_accepted_total",
            "Client connections taken from the accept queue, rejected ones included.";
        rejected: By<RejectReason, IntCounter> = "pulsegate_connections_rejected_total",
            "Client connections reset right after they were accepted, or after their PROXY header.";
        active: IntGauge = "pulsegate_connections_active",
            "Sessions now, those still connecting to the upstream included.";
        limit: KnownGauge = "pulsegate_connections_limit",
            "Sessions that there may be (limits.max_connections).";
        queued: IntGauge = "pulsegate_connections_queued",
            "Clients that wait for a place (limits.on_full).";
        takeovers: By<Takeover, IntCounter> = "pulsegate_takeovers_total",
            "Clients that found the listener full and waited, by the outcome.";
        closed: By<CloseReason, IntCounter> = "pulsegate_connections_closed_total",
            "Sessions ended, by who ended them and why.";
        shed: By<Shortage, IntCounter> = "pulsegate_shed_total",
            "Sessions and waiting clients ended to make room, by the resource that was short.";
        duration: Histogram = "pulsegate_connection_duration_seconds",
            "Age of sessions when they ended.", DURATION_BUCKETS;
        received: By<Leg, IntCounter> = "pulsegate_received_bytes_total",
            "Bytes read from peers on this leg.";
        sent: By<Leg, IntCounter> = "pulsegate_sent_bytes_total",
            "Bytes written to peers on this leg.";
        moved: IntCounter = "pulsegate_connections_moved_total",
            "Sessions that moved to another worker.";
        resets: By<Leg, IntCounter> = "pulsegate_resets_sent_total",
            "Connections ended with RST by pulsegate.";
        half_open: By<Leg, IntGauge> = "pulsegate_half_open_connections",
            "Sessions whose peer on this leg is suspected gone, awaiting the verdict.";
        half_open_detected: By<Leg, By<Evidence, IntCounter>> = "pulsegate_half_open_detected_total",
            "Peers proven gone while the kernel still said ESTABLISHED, by what proved it.";
        detection_delay: By<Leg, Histogram> = "pulsegate_half_open_detection_delay_seconds",
            "From the last sign of life of a peer to the verdict that it is gone.", DETECTION_DELAY_BUCKETS;
        found_late: By<Leg, IntCounter> = "pulsegate_half_open_found_late_total",
            "Peers proven gone later than detect_within and its tolerance allow.";
        detect_within: Gauge = "pulsegate_detect_within_seconds",
            "What detection delays are to be compared with (liveness.detect_within).";
        half_closed: IntGauge = "pulsegate_half_closed_connections",
            "Sessions in which one side has sent FIN and the other has not; legal, unlike half-open.";
        stalled: By<Leg, IntGauge> = "pulsegate_stalled_connections",
            "Sessions whose peer on this leg answers but takes no data.";
        undelivered: By<Leg, IntGauge> = "pulsegate_undelivered_connections",
            "Sessions whose peer on this leg is heard but acknowledges nothing of what is sent to it.";
        phantom: IntGauge = "pulsegate_phantom_connections",
            "Upstream connections that the service's kernel completed and its application never accepted.";
        probes: By<Leg, IntCounter> = "pulsegate_probes_sent_total",
            "Keepalive probes asked for on demand; those the kernel sends by its own timer do not count.";
        heartbeats_sent: By<Leg, IntCounter> = "pulsegate_heartbeats_sent_total",
            "Questions to applications inside their connections.";
        heartbeats_answered: By<Leg, IntCounter> = "pulsegate_heartbeats_answered_total",
            "Answers to these questions, late ones included.";
        heartbeats_missed: By<Leg, IntCounter> = "pulsegate_heartbeats_missed_total",
            "Questions that were not answered in time by a peer that owed nobody else an answer.";
        heartbeats_misfit: By<Leg, IntCounter> = "pulsegate_heartbeats_misfit_total",
            "Sessions in which something else came in place of an answer; nothing more is asked in them.";
        heartbeat_answer: By<Leg, Histogram> = "pulsegate_heartbeat_answer_seconds",
            "From a question to an application to its answer, if that came in time.", CONNECT_BUCKETS;
        connect_duration: Histogram = "pulsegate_upstream_connect_duration_seconds",
            "Time to connect to the upstream, successes only.", CONNECT_BUCKETS;
        connect_failures: By<ConnectFailure, IntCounter> = "pulsegate_upstream_connect_failures_total",
            "Upstream connects that failed.";
        handshakes: By<Leg, By<TlsVersion, IntCounter>> = "pulsegate_tls_handshakes_total",
            "TLS handshakes that were completed.";
        handshake_failures: By<Leg, By<HandshakeFailure, IntCounter>> = "pulsegate_tls_handshake_failures_total",
            "TLS handshakes that failed.";
        handshake_duration: By<Leg, Histogram> = "pulsegate_tls_handshake_duration_seconds",
            "Time from the first byte of a TLS handshake to its end, successes only.", CONNECT_BUCKETS;
        endpoint_active: PerEndpoint<IntGaugeVec> = "pulsegate_endpoint_active_connections",
            "Sessions now that are connected to the endpoint, or are being connected.";
        endpoint_connects: By<ConnectOutcome, PerEndpoint<IntCounterVec>> = "pulsegate_endpoint_connects_total",
            "Connects to the endpoint, by the outcome.";
        endpoint_ejections: PerEndpoint<IntCounterVec> = "pulsegate_endpoint_ejections_total",
            "Ejections of the endpoint, because sessions failed there one after the other.";
        endpoint_up: PerEndpoint<IntGaugeVec> = "pulsegate_endpoint_up",
            "1 if new sessions use the endpoint, 0 if they do so only where no other one connects.";
        accept_errors: By<AcceptErrorClass, IntCounter> = "pulsegate_accept_errors_total",
            "Failed accept() calls, by class of the error.";
        queue_length: IntGauge = "pulsegate_listen_queue_length",
            "Connections the kernel has completed and pulsegate has not accepted yet.";
        queue_limit: IntGauge = "pulsegate_listen_queue_limit",
            "Length of the accept queue from which on the kernel drops new connections.";
        upstream_queue_length: KnownGauge = "pulsegate_upstream_listen_queue_length",
            "Connections the service has not accepted yet, where it listens in this network namespace.";
        upstream_queue_limit: KnownGauge = "pulsegate_upstream_listen_queue_limit",
            "Length of the service's accept queue from which on the kernel drops new connections.";
        option_errors: IntCounter = "pulsegate_socket_option_errors_total",
            "Socket options that could not be set.";
    }
}

series! {
    /// The series of the process.
    ProcessSeries {
        observations: IntCounter = "pulsegate_liveness_looks_total",
            "Observations of sessions, to judge their liveness.";
        draining: IntGauge = "pulsegate_draining",
            "1 while the process drains, else 0.";
        workers_in_use: IntGauge = "pulsegate_workers_in_use",
            "Workers that carry sessions; the others wait until these are busy.";
        log_lines_dropped: IntCounter = "pulsegate_log_lines_dropped_total",
            "Log lines dropped because standard output was not read fast enough.";
        reloads: By<ReloadOutcome, IntCounter> = "pulsegate_config_reloads_total",
            "Attempts to take up a changed configuration, by the outcome.";
        last_reload_successful: IntGauge = "pulsegate_config_last_reload_successful",
            "1 if the last attempt succeeded, or none was made, else 0.";
        last_reload: IntGauge = "pulsegate_config_last_reload_timestamp_seconds",
            "When the configuration in force was taken up, in seconds since the Unix epoch.";
        certificates: Certificates = "pulsegate_certificate_not_after_seconds",
            "Until when a certificate in force is good, in seconds since the Unix epoch.";
        start_time: IntGauge = "process_start_time_seconds",
            "When the process started, in seconds since the Unix epoch.";
        open_descriptors: IntGauge = "process_open_fds",
            "File descriptors the process holds.";
        descriptor_limit: IntGauge = "process_max_fds",
            "File descriptors the process may hold.";
        resident: KnownGauge = "process_resident_memory_bytes",
            "Resident memory of the process.";
        cpu: Counter = "process_cpu_seconds_total",
            "User and system CPU time of the process.";
    }
}

series! {
    /// The series that tell of the host rather than of pulsegate. What is unknown has no series: a
    /// 0 would be a lie.
    HostMetrics {
        listen_overflows: KnownCounter = "pulsegate_netns_listen_overflows_total",
            "New connections dropped by full accept queues, of the whole network namespace.";
        listen_drops: KnownCounter = "pulsegate_netns_listen_drops_total",
            "New connections dropped by listening sockets, of the whole network namespace.";
        syncookies_sent: KnownCounter = "pulsegate_netns_syncookies_sent_total",
            "Handshakes answered with a SYN cookie, of the whole network namespace.";
        syncookies_received: KnownCounter = "pulsegate_netns_syncookies_received_total",
            "SYN cookies that came back, of the whole network namespace.";
        full_cookies: KnownCounter = "pulsegate_netns_request_queue_full_cookies_total",
            "SYNs answered with a cookie because a queue was full, of the whole network namespace.";
        syn_recv: KnownGauge = "pulsegate_netns_syn_recv",
            "Handshakes in progress (SYN_RECV), of the whole network namespace.";
        time_wait: KnownGauge = "pulsegate_netns_time_wait",
            "Connections in TIME_WAIT, of the whole network namespace.";
        orphans: KnownGauge = "pulsegate_netns_orphans",
            "Connections that no process holds and the kernel still closes, of the whole network namespace.";
        read_errors: By<HostSource, IntCounter> = "pulsegate_host_read_errors_total",
            "Reads of the host's state that failed while metrics were served.";
        on_demand_probe: KnownGauge = "pulsegate_on_demand_probe",
            "1 if the kernel sends keepalive probes on demand, else 0; tested in the first seconds.";
        memory_used: KnownGauge = "pulsegate_memory_used_bytes",
            "Memory in use, as it counts for the memory limit.";
        memory_limit: KnownGauge = "pulsegate_memory_limit_bytes",
            "Memory that may be used; sessions are shed at 95 % of it.";
    }
}

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    process: ProcessSeries,
    host: HostMetrics,
    found: Arc<Found>,
    /// By name, with what is to be removed from the registry.
    listeners: Mutex<BTreeMap<String, (Arc<ListenerMetrics>, Collectors)>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registry.fmt(f)
    }
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
    pub fn new() -> Self {
        let registry = Registry::new();
        let mut registration = Registration::new(&registry, &[]);
        let process = ProcessSeries::register(&mut registration);
        let host = HostMetrics::register(&mut registration);
        process.start_time.set(wall_clock());
        process.last_reload.set(wall_clock());
        process.last_reload_successful.set(1);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let build_info: IntGauge = Registration::new(&registry, &version).add(
            "pulsegate_build_info",
            "Always 1; the version is the label.",
            &[],
        );
        build_info.set(1);
        Self {
            registry,
            process,
            host,
            found: Arc::default(),
            listeners: Mutex::default(),
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
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (known, _) = listeners.entry(name.to_owned()).or_insert_with(|| {
            let mut registration = Registration::new(&self.registry, &[("listener", name)]);
            let listener = ListenerMetrics {
                series: ListenerSeries::register(&mut registration),
                observations: self.process.observations.clone(),
                found: self.found.clone(),
                settled: Default::default(),
                endpoints: Mutex::default(),
            };
            (Arc::new(listener), registration.into_collectors())
        });
        known.clone()
    }

    /// Removes the series of a listener; what its last sessions still count is not served. A
    /// listener that is added later under the same name begins at 0.
    pub fn remove_listener(&self, name: &str) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for collector in listeners.remove(name).into_iter().flat_map(|(_, all)| all) {
            // Each was registered, and is removed once.
            let _ = self.registry.unregister(collector);
        }
    }

    /// The process drains from now on.
    pub fn set_draining(&self) {
        self.process.draining.set(1);
    }

    /// What came of an attempt to take up a changed configuration.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.process.reloads[outcome].inc();
        let successful = outcome == ReloadOutcome::Success;
        self.process.last_reload_successful.set(successful.into());
        if successful {
            self.process.last_reload.set(wall_clock());
        }
    }

    /// The certificates in force, all of them.
    pub fn set_certificates(&self, figures: Vec<CertificateFigure>) {
        self.process.certificates.set(figures);
    }

    /// File descriptors held, and the limit of the process. The last number stays where there is
    /// none.
    pub fn set_descriptors(&self, open: Option<u64>, limit: u64) {
        if let Some(open) = open {
            self.process.open_descriptors.set(saturating(open));
        }
        self.process.descriptor_limit.set(saturating(limit));
    }

    /// CPU time since the start, to be told from one thread; resident memory, where it can be read.
    pub fn set_usage(&self, cpu: Duration, resident: Option<u64>) {
        let more = cpu.as_secs_f64() - self.process.cpu.get();
        self.process.cpu.inc_by(more.max(0.0));
        self.process.resident.set(resident);
    }

    /// Workers that carry sessions.
    pub fn set_workers_in_use(&self, workers: usize) {
        self.process.workers_in_use.set(saturating(workers as u64));
    }

    /// Log lines dropped since the start of the process; a lower total than before is ignored.
    /// To be called from one thread.
    pub fn set_log_lines_dropped(&self, total: u64) {
        raise(&self.process.log_lines_dropped, total);
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

/// Seconds since the Unix epoch: the dates of certificates are of that clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "for people: decides nothing")]
pub fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    saturating(since.unwrap_or_default().as_secs())
}

pub use prometheus::TEXT_FORMAT;

/// What is counted for one listener. Every method that sessions call often is a few atomic operations and
/// takes no lock.
///
/// Once every session has been counted, accepted = rejected + closed + active.
#[derive(Debug)]
pub struct ListenerMetrics {
    series: ListenerSeries,
    /// Of all listeners.
    observations: IntCounter,
    found: Arc<Found>,
    /// Bytes received and sent by sessions that have ended, by leg.
    settled: [[AtomicU64; 2]; 2],
    /// The endpoints that have series.
    endpoints: Mutex<endpoints::Known>,
}

impl ListenerMetrics {
    /// A client was taken from the accept queue.
    pub fn accepted(&self) {
        self.series.accepted.inc();
    }

    /// An accepted client was reset at once.
    pub fn rejected(&self, reason: RejectReason) {
        self.series.rejected[reason].inc();
        self.reset_sent(Leg::Downstream);
    }

    /// How many sessions there are.
    pub fn set_active(&self, sessions: usize) {
        self.series.active.set(saturating(sessions as u64));
    }

    /// How many clients wait for a place.
    pub fn set_queued(&self, clients: usize) {
        self.series.queued.set(saturating(clients as u64));
    }

    /// What came of a client that found the listener full and waited.
    pub fn takeover(&self, outcome: Takeover) {
        self.series.takeovers[outcome].inc();
    }

    /// A session or a client that waited was ended to make room.
    pub fn shed(&self, shortage: Shortage) {
        self.series.shed[shortage].inc();
    }

    /// A session ended; once for each session. `duration` counts from its acceptance.
    pub fn closed(&self, reason: CloseReason, duration: Duration, moved: &Traffic) {
        for leg in LEGS {
            let [received, sent] = &self.settled[leg as usize];
            received.fetch_add(moved.received[leg as usize], Ordering::Relaxed);
            sent.fetch_add(moved.sent[leg as usize], Ordering::Relaxed);
        }
        self.series.closed[reason].inc();
        self.series.duration.observe(duration.as_secs_f64());
    }

    /// What is known of a peer has changed. The session keeps what it was; a guard here would
    /// cost memory in each session.
    pub fn condition_changed(&self, leg: Leg, was: Condition, is: Condition) {
        let gauge = |condition| match condition {
            Condition::Alive | Condition::Quiet => None,
            Condition::Suspect => Some(&self.series.half_open[leg]),
            Condition::Stalled => Some(&self.series.stalled[leg]),
            Condition::Undelivered => Some(&self.series.undelivered[leg]),
            Condition::Phantom => Some(&self.series.phantom),
        };
        if was != is {
            gauge(was).inspect(|gauge| gauge.dec());
            gauge(is).inspect(|gauge| gauge.inc());
        }
    }

    /// A session has become half-closed (1), or is not any more (-1).
    pub fn half_closed_changed(&self, by: i64) {
        self.series.half_closed.add(by);
    }

    /// A half-open peer was proven gone, `delay` after its last sign of life.
    pub fn half_open_found(&self, leg: Leg, evidence: Evidence, delay: Duration) {
        self.series.half_open_detected[leg][evidence].inc();
        self.series.detection_delay[leg].observe(delay.as_secs_f64());
    }

    /// It was found later than was promised.
    pub fn half_open_found_late(&self, leg: Leg) {
        self.series.found_late[leg].inc();
    }

    /// What is configured, and compared with what is measured.
    pub fn set_settings(&self, detect_within: Duration, max_connections: Option<u64>) {
        self.series.detect_within.set(detect_within.as_secs_f64());
        self.series.limit.set(max_connections);
    }

    /// What the sessions that have ended had moved. To be asked before the living are added up.
    #[must_use]
    pub fn settled(&self) -> Traffic {
        let load = |i: usize| LEGS.map(|leg| self.settled[leg as usize][i].load(Ordering::Relaxed));
        Traffic {
            received: load(0),
            sent: load(1),
        }
    }

    /// All that was ever moved. A session that ended while the living were added up may be
    /// missing; the counters wait until it is back. To be called from one thread.
    pub fn set_bytes(&self, total: &Traffic) {
        for leg in LEGS {
            raise(&self.series.received[leg], total.received[leg as usize]);
            raise(&self.series.sent[leg], total.sent[leg as usize]);
        }
    }

    /// A leg was ended with RST by pulsegate.
    pub fn reset_sent(&self, leg: Leg) {
        self.series.resets[leg].inc();
    }

    /// A keepalive probe was asked for on demand.
    pub fn probe_sent(&self, leg: Leg) {
        self.series.probes[leg].inc();
    }

    /// The application at a leg was asked.
    pub fn heartbeat_sent(&self, leg: Leg) {
        self.series.heartbeats_sent[leg].inc();
    }

    /// It answered.
    pub fn heartbeat_answered(&self, leg: Leg) {
        self.series.heartbeats_answered[leg].inc();
    }

    /// It answered in time.
    pub fn heartbeat_took(&self, leg: Leg, took: Duration) {
        self.series.heartbeat_answer[leg].observe(took.as_secs_f64());
    }

    /// It did not answer in time.
    pub fn heartbeat_missed(&self, leg: Leg) {
        self.series.heartbeats_missed[leg].inc();
    }

    /// Something else came in place of its answer.
    pub fn heartbeat_misfit(&self, leg: Leg) {
        self.series.heartbeats_misfit[leg].inc();
    }

    /// The upstream was connected within `duration`.
    pub fn connected(&self, duration: Duration) {
        self.series.connect_duration.observe(duration.as_secs_f64());
    }

    /// A connect to the upstream failed.
    pub fn connect_failed(&self, reason: ConnectFailure) {
        self.series.connect_failures[reason].inc();
    }

    /// A TLS handshake was completed within `duration`.
    pub fn handshake_made(&self, leg: Leg, version: TlsVersion, duration: Duration) {
        self.series.handshakes[leg][version].inc();
        self.series.handshake_duration[leg].observe(duration.as_secs_f64());
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self, leg: Leg, failure: HandshakeFailure) {
        self.series.handshake_failures[leg][failure].inc();
    }

    /// The endpoints now. The series of others are removed.
    pub fn set_endpoints(&self, figures: &[EndpointFigures]) {
        let series = EndpointSeries {
            active: &self.series.endpoint_active,
            up: &self.series.endpoint_up,
            connects: &self.series.endpoint_connects,
            ejections: &self.series.endpoint_ejections,
        };
        let known = self.endpoints.lock();
        series.update(&mut known.unwrap_or_else(PoisonError::into_inner), figures);
    }

    /// accept() failed.
    pub fn accept_error(&self, class: AcceptErrorClass) {
        self.series.accept_errors[class].inc();
    }

    /// The accept queue now, and the kernel's limit of it.
    pub fn set_listen_queue(&self, length: u64, limit: u64) {
        self.series.queue_length.set(saturating(length));
        self.series.queue_limit.set(saturating(limit));
    }

    /// The accept queue of the service and its limit; `None` where they cannot be seen, which
    /// then have no series.
    pub fn set_upstream_queue(&self, queue: Option<(u64, u64)>) {
        let (length, limit) = queue.unzip();
        self.series.upstream_queue_length.set(length);
        self.series.upstream_queue_limit.set(limit);
    }

    /// The kernel was asked about a session, for whatever reason.
    pub fn observed(&self) {
        self.observations.inc();
    }

    /// A session went on at another worker.
    pub fn moved(&self) {
        self.series.moved.inc();
    }

    /// A socket option could not be set.
    pub fn socket_option_failed(&self) {
        self.series.option_errors.inc();
    }
}

#[cfg(test)]
mod tests;
