//! Every metric by name, with its labels and help text. `docs/METRICS.md` says more about each;
//! a test holds the two together.

/// A metric family before it is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Full name, prefix included.
    pub name: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// The `# HELP` line.
    pub help: &'static str,
}

const fn family(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, labels, help }
}

const LISTENER: &[&str] = &["listener"];
const LEG: &[&str] = &["listener", "leg"];

pub(super) const CONNECTIONS_ACCEPTED: Family = family(
    "pulsegate_connections_accepted_total",
    LISTENER,
    "Client connections taken from the accept queue, rejected ones included.",
);
pub(super) const CONNECTIONS_REJECTED: Family = family(
    "pulsegate_connections_rejected_total",
    &["listener", "reason"],
    "Client connections reset right after they were accepted.",
);
pub(super) const CONNECTIONS_ACTIVE: Family = family(
    "pulsegate_connections_active",
    LISTENER,
    "Sessions now, those still connecting to the upstream included.",
);
pub(super) const CONNECTIONS_CLOSED: Family = family(
    "pulsegate_connections_closed_total",
    &["listener", "initiator", "reason"],
    "Sessions ended, by who ended them and why.",
);
pub(super) const HALF_OPEN: Family = family(
    "pulsegate_half_open_connections",
    LEG,
    "Sessions whose peer on this leg is suspected gone, awaiting the verdict.",
);
pub(super) const HALF_OPEN_DETECTED: Family = family(
    "pulsegate_half_open_detected_total",
    &["listener", "leg", "evidence"],
    "Peers proven gone while the kernel still said ESTABLISHED, by what proved it.",
);
pub(super) const HALF_OPEN_DETECTION_DELAY: Family = family(
    "pulsegate_half_open_detection_delay_seconds",
    LEG,
    "From the last sign of life of a peer to the verdict that it is gone.",
);
pub(super) const HALF_CLOSED: Family = family(
    "pulsegate_half_closed_connections",
    LISTENER,
    "Sessions in which one side has sent FIN and the other has not; legal, unlike half-open.",
);
pub(super) const STALLED: Family = family(
    "pulsegate_stalled_connections",
    LEG,
    "Sessions whose peer on this leg answers but takes no data.",
);
pub(super) const UNDELIVERED: Family = family(
    "pulsegate_undelivered_connections",
    LEG,
    "Sessions whose peer on this leg is heard but acknowledges nothing of what is sent to it.",
);
pub(super) const RECEIVED_BYTES: Family = family(
    "pulsegate_received_bytes_total",
    LEG,
    "Bytes read from peers on this leg.",
);
pub(super) const SENT_BYTES: Family = family(
    "pulsegate_sent_bytes_total",
    LEG,
    "Bytes written to peers on this leg.",
);
pub(super) const RESETS_SENT: Family = family(
    "pulsegate_resets_sent_total",
    LEG,
    "Connections ended with RST by pulsegate.",
);
pub(super) const PROBES_SENT: Family = family(
    "pulsegate_probes_sent_total",
    LEG,
    "Keepalive probes asked for on demand; those the kernel sends by its own timer do not count.",
);
pub(super) const CONNECTION_DURATION: Family = family(
    "pulsegate_connection_duration_seconds",
    LISTENER,
    "Age of sessions when they ended.",
);
pub(super) const CONNECT_DURATION: Family = family(
    "pulsegate_upstream_connect_duration_seconds",
    LISTENER,
    "Time to connect to the upstream, successes only.",
);
pub(super) const CONNECT_FAILURES: Family = family(
    "pulsegate_upstream_connect_failures_total",
    &["listener", "reason"],
    "Upstream connects that failed.",
);
pub(super) const ACCEPT_ERRORS: Family = family(
    "pulsegate_accept_errors_total",
    &["listener", "class"],
    "Failed accept() calls, by class of the error.",
);
pub(super) const LISTEN_QUEUE_LENGTH: Family = family(
    "pulsegate_listen_queue_length",
    LISTENER,
    "Connections the kernel has completed and pulsegate has not accepted yet.",
);
pub(super) const LISTEN_QUEUE_LIMIT: Family = family(
    "pulsegate_listen_queue_limit",
    LISTENER,
    "Length of the accept queue beyond which the kernel drops newcomers.",
);
pub(super) const UPSTREAM_QUEUE_LENGTH: Family = family(
    "pulsegate_upstream_listen_queue_length",
    LISTENER,
    "Connections the service has not accepted yet, where it listens in this network namespace.",
);
pub(super) const UPSTREAM_QUEUE_LIMIT: Family = family(
    "pulsegate_upstream_listen_queue_limit",
    LISTENER,
    "Length of the service's accept queue beyond which the kernel drops newcomers.",
);
pub(super) const NETNS_LISTEN_OVERFLOWS: Family = family(
    "pulsegate_netns_listen_overflows_total",
    &[],
    "Newcomers dropped by full accept queues, of the whole network namespace.",
);
pub(super) const NETNS_LISTEN_DROPS: Family = family(
    "pulsegate_netns_listen_drops_total",
    &[],
    "Newcomers dropped by listening sockets, of the whole network namespace.",
);
pub(super) const NETNS_SYNCOOKIES_SENT: Family = family(
    "pulsegate_netns_syncookies_sent_total",
    &[],
    "Handshakes answered with a SYN cookie, of the whole network namespace.",
);
pub(super) const NETNS_SYNCOOKIES_RECEIVED: Family = family(
    "pulsegate_netns_syncookies_received_total",
    &[],
    "SYN cookies that came back, of the whole network namespace.",
);
pub(super) const NETNS_FULL_COOKIES: Family = family(
    "pulsegate_netns_request_queue_full_cookies_total",
    &[],
    "SYNs answered with a cookie because a queue was full, of the whole network namespace.",
);
pub(super) const NETNS_SYN_RECV: Family = family(
    "pulsegate_netns_syn_recv",
    &[],
    "Handshakes in progress (SYN_RECV), of the whole network namespace.",
);
pub(super) const NETNS_TIME_WAIT: Family = family(
    "pulsegate_netns_time_wait",
    &[],
    "Connections in TIME_WAIT, of the whole network namespace.",
);
pub(super) const NETNS_ORPHANS: Family = family(
    "pulsegate_netns_orphans",
    &[],
    "Connections no process holds and the kernel still ends, of the whole network namespace.",
);
pub(super) const HOST_READ_ERRORS: Family = family(
    "pulsegate_host_read_errors_total",
    &["source"],
    "Reads of the host's state that failed while metrics were served.",
);
pub(super) const ON_DEMAND_PROBE: Family = family(
    "pulsegate_on_demand_probe",
    &[],
    "1 if the kernel sends keepalive probes on demand, else 0; found out in the first seconds.",
);
pub(super) const PHANTOM: Family = family(
    "pulsegate_phantom_connections",
    &["listener"],
    "Upstream connections that the service's kernel completed and its application never accepted.",
);
pub(super) const CONNECTIONS_QUEUED: Family = family(
    "pulsegate_connections_queued",
    &["listener"],
    "Clients that wait for a place (limits.on_full).",
);
pub(super) const TAKEOVERS: Family = family(
    "pulsegate_takeovers_total",
    &["listener", "outcome"],
    "Clients that found the listener full and waited, by what came of it.",
);
pub(super) const SHED: Family = family(
    "pulsegate_shed_total",
    &["listener", "cause"],
    "Sessions and waiting clients ended to make room, by what was short.",
);
pub(super) const SOCKET_OPTION_ERRORS: Family = family(
    "pulsegate_socket_option_errors_total",
    &["listener"],
    "Socket options that could not be set.",
);
pub(super) const CONNECTIONS_MOVED: Family = family(
    "pulsegate_connections_moved_total",
    &["listener"],
    "Sessions that went on at another worker.",
);
pub(super) const WORKERS_IN_USE: Family = family(
    "pulsegate_workers_in_use",
    &[],
    "Workers that carry sessions; the others wait until these are busy.",
);
pub(super) const LIVENESS_LOOKS: Family = family(
    "pulsegate_liveness_looks_total",
    &[],
    "Looks taken at sessions to judge their liveness.",
);
pub(super) const DRAINING: Family = family(
    "pulsegate_draining",
    &[],
    "1 while the process drains, else 0.",
);
pub(super) const OPEN_DESCRIPTORS: Family = family(
    "pulsegate_open_descriptors",
    &[],
    "File descriptors the process holds.",
);
pub(super) const DESCRIPTOR_LIMIT: Family = family(
    "pulsegate_descriptor_limit",
    &[],
    "File descriptors the process may hold.",
);
pub(super) const MEMORY_USED: Family = family(
    "pulsegate_memory_used_bytes",
    &[],
    "Memory in use, as it counts for the memory limit.",
);
pub(super) const MEMORY_LIMIT: Family = family(
    "pulsegate_memory_limit_bytes",
    &[],
    "Memory that may be in use; sessions are shed from 95 % of it on.",
);
pub(super) const LOG_LINES_DROPPED: Family = family(
    "pulsegate_log_lines_dropped_total",
    &[],
    "Log lines dropped because standard output was not read fast enough.",
);
pub(super) const BUILD_INFO: Family = family(
    "pulsegate_build_info",
    &["version"],
    "Always 1; the version is the label.",
);
pub(super) const PROCESS_START_TIME: Family = family(
    "pulsegate_process_start_time_seconds",
    &[],
    "When the process started, in seconds since the Unix epoch.",
);
