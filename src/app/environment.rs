//! What is read of the host while metrics are served, and tried once at the start.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::config::UpstreamAddress;
use crate::host::{self, Counters, Sockets};
use crate::metrics::{HostMetrics, HostSource, Metrics};
use crate::server::Listener;
use crate::sys::sock_diag;

/// Brings the series of the host up to date. What it costs is said in `docs/METRICS.md`.
pub(super) fn refresh(listeners: &[Arc<Listener>], host: &HostMetrics) {
    for listener in listeners {
        refresh_queues(listener, host);
    }
    let counters = known(host, HostSource::Netstat, Counters::read()).unwrap_or_default();
    host.listen_overflows.raise(counters.listen_overflows);
    host.listen_drops.raise(counters.listen_drops);
    host.syncookies_sent.raise(counters.syncookies_sent);
    host.syncookies_received.raise(counters.syncookies_received);
    host.full_cookies.raise(counters.request_queue_full_cookies);
    let sockets = known(host, HostSource::Sockstat, Sockets::read());
    let sockets = sockets.unwrap_or_default();
    host.time_wait.set(sockets.time_wait);
    host.orphans.set(sockets.orphans);
    let handshakes = known(host, HostSource::SockDiag, sock_diag::handshakes());
    host.syn_recv.set(handshakes);
}

/// The queues in front of a listener, and of a service in the same network namespace.
fn refresh_queues(listener: &Listener, host: &HostMetrics) {
    let params = &listener.params;
    let (length, limit) = listener.queue();
    params.metrics.set_listen_queue(length, limit);
    let queue = |address| known(host, HostSource::SockDiag, host::accept_queue(address)).flatten();
    let upstream = params.cluster.upstream();
    let literals = upstream.addresses().filter_map(UpstreamAddress::literal);
    let queues = literals
        .filter_map(queue)
        .map(|queue| (queue.length, queue.limit));
    let sum = queues.reduce(|(length, limit), more| (length + more.0, limit + more.1));
    params.metrics.set_upstream_queue(sum);
}

fn known<T>(host: &HostMetrics, source: HostSource, read: io::Result<T>) -> Option<T> {
    read.inspect_err(|error| {
        host.read_errors[source].inc();
        tracing::debug!("cannot read {source}: {error}");
    })
    .ok()
}

/// Tries in the background whether the kernel probes on demand; the start does not wait for it.
pub(super) fn try_on_demand_probe(metrics: Arc<Metrics>) -> Arc<OnceLock<bool>> {
    let known = Arc::new(OnceLock::new());
    let told = known.clone();
    let thread = thread::Builder::new().name("self-test".to_owned());
    let started = thread.spawn(move || match host::probe_on_demand() {
        Ok(present) => {
            metrics.host().on_demand_probe.set(Some(present.into()));
            // It is tried once.
            let _new = told.set(present);
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
    known
}
