//! From the configuration of listeners to listeners that serve.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize};

use super::materials::Materials;
use crate::config::{Config, ListenAddress, ListenerConfig, OnFull};
use crate::liveness::{LEGS, Span};
use crate::metrics::Metrics;
use crate::server::{Listener, Registry, StartError};
use crate::session::SessionParams;
use crate::upstream::{self, Cluster};

/// Which listeners have come and gone.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// They take clients when they are opened. Those that replaced another one are as open as that was.
    pub added: Vec<Arc<Listener>>,
    /// With those that they had replaced: they have sessions yet.
    pub removed: Vec<Arc<Listener>>,
}

/// Has the listeners that serve be those of the configuration, all or none. One that changes is replaced by
/// another one, which gets its sockets, its places, and its endpoints if these stay. The sessions of the old
/// one go on as they began.
pub(super) fn apply(
    config: &Config,
    materials: &Materials,
    registry: &Registry,
    metrics: &Metrics,
    mut inherited: Vec<(ListenAddress, OwnedFd)>,
) -> Result<Changed, StartError> {
    let low_water = config.relay.low_water;
    let _one_at_a_time = registry.change();
    let serving = registry.serving();
    let named = |name: &str| serving.iter().find(|old| old.config.name == name);
    let stays = |old: &Listener, new: &ListenerConfig| {
        old.config == *new && old.params.low_water == low_water
    };
    let wanted: Vec<_> = config
        .listeners
        .iter()
        .filter(|new| !named(&new.name).is_some_and(|old| stays(old, new)))
        .map(|new| (new, cluster(new, materials, named(&new.name))))
        .collect();
    let goes = |old: &&Arc<Listener>| {
        let is_it = |new: &ListenerConfig| new.name == old.config.name && stays(old, new);
        !config.listeners.iter().any(is_it)
    };
    let outgoing: Vec<_> = serving.iter().filter(goes).collect();
    inherited.extend(sockets(&registry.listeners())?);
    let clusters: Vec<_> = wanted.iter().map(|(_, cluster)| cluster.clone()).collect();
    let is_new = |cluster: &&Arc<Cluster>| {
        let mut old = serving.iter().map(|old| &old.params.cluster);
        !old.any(|old| Arc::ptr_eq(old, cluster))
    };
    upstream::start_resolving(clusters.iter().filter(is_new))?;
    let wanted = wanted.into_iter().map(|(new, cluster)| {
        let mut params = params(new, cluster, low_water, metrics);
        params.tls = materials.acceptor(&new.name);
        (new.clone(), Arc::new(params))
    });
    let added = registry.add(wanted.collect(), inherited);
    let added = added.inspect_err(|_| forget(&config.listeners, registry, metrics))?;
    for listener in &outgoing {
        listener.stop();
        let cluster = &listener.params.cluster;
        if !clusters.iter().any(|kept| Arc::ptr_eq(kept, cluster)) {
            cluster.retire();
        }
    }
    let is_gone = |l: &Arc<Listener>| {
        let has_name = |other: &Arc<Listener>| other.config.name == l.config.name;
        outgoing.iter().any(|old| has_name(old)) && !added.iter().any(has_name)
    };
    let removed = registry.listeners().into_iter().filter(is_gone).collect();
    remove_files(outgoing.iter().copied(), &added);
    Ok(Changed { added, removed })
}

/// What is known of the endpoints of a listener that changes stays.
fn cluster(
    new: &ListenerConfig,
    materials: &Materials,
    old: Option<&Arc<Listener>>,
) -> Arc<Cluster> {
    let upstream = new.upstream.clone();
    let made = match old.map(|old| &old.params.cluster) {
        Some(old) if *old.upstream() == upstream => return old.clone(),
        Some(old) => old.followed_by(upstream),
        None => Cluster::new(new.name.as_str().into(), upstream),
    };
    Arc::new(made.with_tls(materials.connector(&new.name)))
}

/// Removes the series of those that did not come to be.
fn forget(wanted: &[ListenerConfig], registry: &Registry, metrics: &Metrics) {
    let known = registry.listeners();
    let is_new = |new: &&ListenerConfig| known.iter().all(|l| l.config.name != new.name);
    let new = wanted.iter().filter(is_new);
    new.for_each(|new| metrics.remove_listener(&new.name));
}

/// Removes the files of unix sockets on which these listened and nobody else does now.
pub(super) fn remove_files<'a>(
    stopped: impl IntoIterator<Item = &'a Arc<Listener>>,
    serving: &[Arc<Listener>],
) {
    for Listener { bound, .. } in stopped.into_iter().map(|listener| &**listener) {
        if let ListenAddress::Unix(path) = bound
            && serving.iter().all(|other| other.bound != *bound)
        {
            // Whoever starts next replaces what is left.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// A second descriptor for each socket that is open, of one that was removed a moment ago, too. Those of
/// an address may have several listeners, one after the other: the last one has all that are left.
fn sockets(listeners: &[Arc<Listener>]) -> io::Result<Vec<(ListenAddress, OwnedFd)>> {
    let mut sockets = BTreeMap::new();
    for listener in listeners {
        let open = listener.duplicates()?;
        if !open.is_empty() {
            sockets.insert(&listener.bound, open);
        }
    }
    Ok(sockets.into_values().flatten().collect())
}

fn params(
    config: &ListenerConfig,
    cluster: Arc<Cluster>,
    low_water: bool,
    metrics: &Metrics,
) -> SessionParams {
    SessionParams {
        name: config.name.as_str().into(),
        tls: None,
        cluster,
        connect_lines: Default::default(),
        tls_lines: Default::default(),
        policy: config.liveness.policy(),
        on_dead: config.liveness.on_dead,
        on_end: config.liveness.on_end,
        metrics: metrics.listener(&config.name),
        first_byte_timeout: config.limits.first_byte_timeout.map(Span::from),
        queue_timeout: config.limits.queue_timeout,
        abandoned: config.limits.abandoned,
        heartbeats: LEGS.map(|leg| config.liveness.heartbeat.protocol(leg)),
        asking: config.liveness.heartbeat.asking(),
        misfit_lines: Default::default(),
        low_water,
        probes: Default::default(),
        reconnect_delay: config.limits.reconnect_delay,
        sheds: config.limits.on_full == OnFull::Shed,
        sessions: AtomicUsize::new(0),
        last_end: AtomicU8::default(),
    }
}
