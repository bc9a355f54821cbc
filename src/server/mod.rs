//! Accepts clients and gives each a session: threads, listening sockets, admission.

mod accept;
mod admission;
mod checks;
mod limiter;
mod listener;
mod memory;
mod rate;
mod registry;
mod wait_queue;
mod workers;

use std::io;

use crate::config::{ListenAddress, ListenerConfig};

pub use limiter::Limiter;
use limiter::Permit;
pub use listener::Listener;
pub use registry::Registry;
pub use workers::{Hooks, Workers};

/// Why the data plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error(
        "listener `{name}`: cannot listen on {address}: {error}{}",
        advice(error)
    )]
    Listen {
        /// The listener.
        name: String,
        /// Its address.
        address: ListenAddress,
        /// What the kernel said.
        error: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("cannot start a listener or a worker: {0}")]
    Thread(#[from] io::Error),
}

impl StartError {
    fn refused(config: &ListenerConfig, error: io::Error) -> Self {
        Self::Listen {
            name: config.name.clone(),
            address: config.address.clone(),
            error,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; something listens there already: another process, or a listener of this configuration on an \
             overlapping address. Stop it or choose another"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
        _ => "",
    }
}
