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
    let clusters: Vec<_> = wanted
        .iter()
        .map(|config| cluster(config, &outgoing))
        .collect();
    // The others are resolved already.
    let new_clusters = clusters.iter().filter(|c| Arc::strong_count(c) == 1);
    upstream::start_resolving(new_clusters)?;
    let wanted = wanted.into_iter().zip(&clusters).map(|(config, cluster)| {
        let params = params(config, cluster.clone(), low_water, metrics);
        (config.clone(), Arc::new(params))
    });
    let added = registry.add(wanted.collect(), inherited)?;
    for listener in &outgoing {
        listener.stop();
        let cluster = &listener.params.cluster;
        if !clusters.iter().any(|kept| Arc::ptr_eq(kept, cluster)) {
            cluster.retire();
        }
    }
    Ok(added)
}

/// What is known of the endpoints of a listener that changes stays.
fn cluster(config: &ListenerConfig, outgoing: &[&Arc<Listener>]) -> Arc<Cluster> {
    let old = outgoing.iter().find(|old| old.config.name == config.name);
    let old = old.map(|old| &old.params.cluster);
    match old {
        Some(old) if *old.upstream() == config.upstream => old.clone(),
        Some(old) => Arc::new(old.followed_by(config.upstream.clone())),
        None => Arc::new(Cluster::new(
            config.name.as_str().into(),
            config.upstream.clone(),
        )),
    }
}

fn params(
    config: &ListenerConfig,
    cluster: Arc<Cluster>,
    low_water: bool,
    metrics: &Metrics,
) -> SessionParams {
    SessionParams {
        name: config.name.as_str().into(),
        cluster,
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
