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
        advice(error, address)
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

fn advice(error: &io::Error, address: &ListenAddress) -> &'static str {
    match (error.kind(), address) {
        (io::ErrorKind::AddrInUse, _) => {
            "; something listens there already: another process, or a listener of this configuration on an \
             overlapping address. Stop it or choose another"
        }
        (io::ErrorKind::PermissionDenied, ListenAddress::Unix(_)) => {
            "; the user that pulsegate runs as must be allowed to write into its folder"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one, or have systemd open it \
             (pulsegate@PORT.socket, and `fd:PORT` here)"
        }
        (io::ErrorKind::NotFound, ListenAddress::Activated(_)) => {
            "; start the socket unit that has FileDescriptorName= of this name (for the name 443: pulsegate@443.socket)"
        }
        (io::ErrorKind::AddrNotAvailable, _) => "; no interface of this host has that address",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::config::ListenAddress;

    use super::advice;

    #[test]
    fn advice_fits_the_kind_of_address() {
        let socket = ListenAddress::Socket(([0, 0, 0, 0], 443).into());
        let unix = ListenAddress::Unix("/run/orders.sock".into());
        let activated = ListenAddress::Activated("443".to_owned());
        for (kind, address, advised) in [
            (io::ErrorKind::PermissionDenied, &socket, "`fd:PORT`"),
            (io::ErrorKind::PermissionDenied, &unix, "into its folder"),
            (io::ErrorKind::NotFound, &activated, "start the socket unit"),
            (io::ErrorKind::AddrInUse, &unix, "listens there already"),
        ] {
            let said = advice(&kind.into(), address);
            assert!(said.contains(advised), "{address}: {said}");
        }
    }
}
