//! Series that tell of the host rather than of pulsegate. What is unknown has no series: a 0 would
//! be a lie.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};
use strum::{Display, IntoStaticStr, VariantArray};

use super::names::{self, Family};
use super::{counters, gauges, saturating};

/// Where the state of the host is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum HostSource {
    /// `/proc/net/netstat`.
    Netstat,
    /// `/proc/net/sockstat`.
    Sockstat,
    /// sock_diag(7).
    SockDiag,
    /// The memory figures of the control group or of the process.
    Memory,
}

/// A counter of the network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NetnsCounter {
    ListenOverflows,
    ListenDrops,
    SyncookiesSent,
    SyncookiesReceived,
    RequestQueueFullCookies,
}

/// A gauge of the network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NetnsGauge {
    SynRecv,
    TimeWait,
    Orphans,
}

/// In the order of [`NetnsCounter`].
const COUNTERS: [Family; 5] = [
    names::NETNS_LISTEN_OVERFLOWS,
    names::NETNS_LISTEN_DROPS,
    names::NETNS_SYNCOOKIES_SENT,
    names::NETNS_SYNCOOKIES_RECEIVED,
    names::NETNS_FULL_COOKIES,
];
/// In the order of [`NetnsGauge`].
const GAUGES: [Family; 3] = [
    names::NETNS_SYN_RECV,
    names::NETNS_TIME_WAIT,
    names::NETNS_ORPHANS,
];

const NO_LABELS: &[&str] = &[];

/// The series that tell of the host.
#[derive(Debug)]
pub struct HostMetrics {
    counters: [IntCounterVec; 5],
    gauges: [IntGaugeVec; 3],
    read_errors: Box<[IntCounter]>,
    on_demand_probe: IntGaugeVec,
    /// Used and limit.
    memory: [IntGaugeVec; 2],
}

impl HostMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let read_errors = counters(registry, names::HOST_READ_ERRORS);
        let source = |s: &HostSource| read_errors.with_label_values(&[<&str>::from(s)]);
        Self {
            counters: COUNTERS.map(|family| counters(registry, family)),
            gauges: GAUGES.map(|family| gauges(registry, family)),
            read_errors: HostSource::VARIANTS.iter().map(source).collect(),
            on_demand_probe: gauges(registry, names::ON_DEMAND_PROBE),
            memory: [names::MEMORY_USED, names::MEMORY_LIMIT]
                .map(|family| gauges(registry, family)),
        }
    }

    /// What the kernel has counted since the namespace was made; a lower total than before is
    /// ignored. To be called from one thread.
    pub fn set_counter(&self, counter: NetnsCounter, total: Option<u64>) {
        let Some(total) = total else { return };
        let series = self.counters[counter as usize].with_label_values(NO_LABELS);
        series.inc_by(total.saturating_sub(series.get()));
    }

    /// What there is now in the namespace.
    pub fn set_gauge(&self, gauge: NetnsGauge, now: Option<u64>) {
        let family = &self.gauges[gauge as usize];
        match now {
            Some(now) => family.with_label_values(NO_LABELS).set(saturating(now)),
            None => family.reset(),
        }
    }

    /// The state of the host could not be read.
    pub fn read_failed(&self, source: HostSource) {
        self.read_errors[source as usize].inc();
    }

    /// Memory in use, if that is known, and what may be.
    pub fn set_memory(&self, used: Option<u64>, limit: u64) {
        for (family, bytes) in self.memory.iter().zip([used, Some(limit)]) {
            match bytes {
                Some(bytes) => family.with_label_values(NO_LABELS).set(saturating(bytes)),
                None => family.reset(),
            }
        }
    }

    /// Whether the kernel probes on demand, once that is known.
    pub fn set_on_demand_probe(&self, present: bool) {
        let series = self.on_demand_probe.with_label_values(NO_LABELS);
        series.set(i64::from(present));
    }
}
