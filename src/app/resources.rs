//! What the process may use of the machine: processors, descriptors, memory.

use std::thread;

use super::AppError;
use crate::admin::MAX_CONNECTIONS;
use crate::config::{Admin, Config, ListenerConfig, MemoryLimit};
use crate::host::MemoryMeter;
use crate::relay;
use crate::upstream;

/// Descriptors that are no sessions', whatever is configured: admin connections, log, clients that
/// wait for descriptors, margin.
const RESERVED_DESCRIPTORS: u64 = 88;
/// Those of a worker's runtime.
const PER_WORKER: u64 = 3;

/// Descriptors that are no sessions' under a limit.
#[must_use]
pub fn reserved_descriptors(
    limit: u64,
    workers: usize,
    listeners: &[ListenerConfig],
    admin: Option<&Admin>,
) -> u64 {
    let pipes = 2 * relay::most_pipes(limit) as u64;
    // Each worker has a socket of each listener.
    let sockets = listeners.len().max(1) as u64;
    let of_workers = (pipes + sockets + PER_WORKER) * workers as u64;
    let dials = upstream::descriptors(listeners.iter().map(|l| &l.upstream));
    let has_control = admin.is_some_and(|admin| admin.control.is_some());
    let of_control = if has_control {
        MAX_CONNECTIONS as u64
    } else {
        0
    };
    RESERVED_DESCRIPTORS + of_control + of_workers + dials
}

/// The processors that the process may use, cgroup quota included.
#[must_use]
pub fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Data-plane threads at most.
pub(super) fn workers(config: &Config) -> usize {
    config.workers.map_or_else(default_workers, usize::from)
}

/// Raises the soft descriptor limit to the hard one; returns it.
pub(super) fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the descriptor limit: {error}");
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// `None` where nothing limits the memory.
pub(super) fn memory_meter(config: &Config) -> Option<MemoryMeter> {
    match config.limits.memory {
        MemoryLimit::Auto => MemoryMeter::of_group(),
        MemoryLimit::Off => None,
        MemoryLimit::Bytes(limit) => Some(MemoryMeter::of_process(limit)),
    }
}

/// How many sessions the descriptors allow: two each.
pub(super) fn session_capacity(
    config: &Config,
    limit: u64,
    workers: usize,
) -> Result<usize, AppError> {
    let reserved = reserved_descriptors(limit, workers, &config.listeners, config.admin.as_ref());
    let capacity = limit.saturating_sub(reserved) / 2;
    let limits = config.listeners.iter().map(|l| l.limits.max_connections);
    let asked = limits.flatten().map(u64::from).sum::<u64>().max(1);
    if asked > capacity {
        let needed = asked * 2 + reserved;
        return Err(AppError::Descriptors {
            limit,
            sessions: asked,
            needed,
        });
    }
    Ok(usize::try_from(capacity).unwrap_or(usize::MAX))
}
