//! From the configuration of listeners to listeners that serve.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize};

use crate::config::{self, Change, ListenerConfig, OnFull};
use crate::metrics::Metrics;
use crate::server::{Listener, Registry, StartError};
use crate::session::SessionParams;
use crate::upstream::{self, Cluster};

/// Has the listeners that serve be those of `after`, all or none. Returns those that are new: they take
/// clients when they are opened. A listener that changes is replaced by another one, which gets its
/// sockets and its count of sessions; the sessions of the old one go on as they began.
pub(super) fn apply(
    after: &[ListenerConfig],
    registry: &Registry,
    metrics: &Metrics,
    low_water: bool,
    mut inherited: Vec<OwnedFd>,
) -> Result<Vec<Arc<Listener>>, StartError> {
    let (mut wanted, mut outgoing) = (Vec::new(), Vec::new());
    let _one_at_a_time = registry.change();
    let serving = registry.serving();
    let before: Vec<_> = serving.iter().map(|l| l.config.clone()).collect();
    for change in config::diff(&before, after) {
        let (old, new) = match change {
            Change::Added(new) => (None, Some(new)),
            Change::Removed(old) => (Some(old), None),
            Change::Changed(old, new, _) => (Some(old), Some(new)),
        };
        wanted.extend(new);
        outgoing.extend(serving.iter().filter(|l| Some(&l.config) == old));
    }
    for listener in &outgoing {
        inherited.extend(listener.duplicates()?);
    }
    let wanted: Vec<_> = wanted
        .into_iter()
        .map(|config| (config.clone(), Arc::new(params(config, low_water, metrics))))
        .collect();
    upstream::start_resolving(wanted.iter().map(|(_, params)| &params.cluster))?;
    let added = registry.add(wanted, inherited)?;
    outgoing.iter().for_each(|listener| listener.stop());
    Ok(added)
}

fn params(config: &ListenerConfig, low_water: bool, metrics: &Metrics) -> SessionParams {
    SessionParams {
        name: config.name.as_str().into(),
        cluster: Arc::new(Cluster::new(config.upstream.clone())),
        connect_lines: Default::default(),
        policy: config.liveness.policy(),
        on_dead: config.liveness.on_dead,
        on_end: config.liveness.on_end,
        metrics: metrics.listener(&config.name),
        queue_timeout: config.limits.queue_timeout,
        abandoned: config.limits.abandoned,
        low_water,
        probes: Default::default(),
        reconnect_delay: config.limits.reconnect_delay,
        sheds: config.limits.on_full == OnFull::Shed,
        sessions: AtomicUsize::new(0),
        last_end: AtomicU8::default(),
    }
}
