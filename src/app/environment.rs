//! What is read of the host while metrics are served, and tried once at the start.

use std::io;
use std::sync::Arc;
use std::thread;

use crate::host::{self, Counters, Sockets};
use crate::metrics::{HostMetrics, HostSource, Metrics, NetnsCounter, NetnsGauge};
use crate::server::Listener;
use crate::sys::sock_diag;

/// Brings the series of the host up to date. What it costs is said in `docs/METRICS.md`.
pub(super) fn refresh(listeners: &[Arc<Listener>], host: &HostMetrics) {
    for listener in listeners {
        refresh_queues(listener, host);
    }
    let counters = known(host, HostSource::Netstat, Counters::read());
    set_counters(host, &counters.unwrap_or_default());
    let sockets = known(host, HostSource::Sockstat, Sockets::read());
    let sockets = sockets.unwrap_or_default();
    host.set_gauge(NetnsGauge::TimeWait, sockets.time_wait);
    host.set_gauge(NetnsGauge::Orphans, sockets.orphans);
    let handshakes = known(host, HostSource::SockDiag, sock_diag::handshakes());
    let handshakes = handshakes.map(|ports| ports.values().sum());
    host.set_gauge(NetnsGauge::SynRecv, handshakes);
}

/// The queues in front of a listener, and of a service in the same network namespace.
fn refresh_queues(listener: &Listener, host: &HostMetrics) {
    let params = &listener.params;
    let (length, limit) = listener.sockets.queue();
    params.metrics.set_listen_queue(length, limit);
    let literal = params.cluster.upstream().address.literal();
    let queue = |address| known(host, HostSource::SockDiag, host::accept_queue(address));
    let upstream = literal.and_then(queue).flatten();
    let pair = upstream.map(|queue| (queue.length, queue.limit));
    params.metrics.set_upstream_queue(pair);
}

fn set_counters(host: &HostMetrics, counters: &Counters) {
    for (series, total) in [
        (NetnsCounter::ListenOverflows, counters.listen_overflows),
        (NetnsCounter::ListenDrops, counters.listen_drops),
        (NetnsCounter::SyncookiesSent, counters.syncookies_sent),
        (
            NetnsCounter::SyncookiesReceived,
            counters.syncookies_received,
        ),
        (
            NetnsCounter::RequestQueueFullCookies,
            counters.request_queue_full_cookies,
        ),
    ] {
        host.set_counter(series, total);
    }
}

fn known<T>(host: &HostMetrics, source: HostSource, read: io::Result<T>) -> Option<T> {
    read.inspect_err(|error| {
        host.read_failed(source);
        tracing::debug!("cannot read {source}: {error}");
    })
    .ok()
}

/// Tries in the background whether the kernel probes on demand; the start does not wait for it.
pub(super) fn try_on_demand_probe(metrics: Arc<Metrics>) {
    let thread = thread::Builder::new().name("self-test".to_owned());
    let started = thread.spawn(move || match host::probe_on_demand() {
        Ok(present) => {
            metrics.host().set_on_demand_probe(present);
            if !present {
                tracing::warn!(
                    "this kernel does not send keepalive probes on demand: suspects are asked by \
                     its timer only, vanished peers are still found within detect_within"
                );
            }
        }
        Err(error) => tracing::debug!("cannot try the on-demand probe: {error}"),
    });
    if let Err(error) = started {
        tracing::debug!("cannot try the on-demand probe: {error}");
    }
}
