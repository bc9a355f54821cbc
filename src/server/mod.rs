//! Accepts clients and gives each a session: threads, listening sockets, admission.

mod accept;
mod admission;
mod bind;
mod limiter;
mod memory;
mod sockets;
mod wait_queue;
mod worker;

pub use bind::BoundSockets;
pub use limiter::Limiter;
use limiter::Permit;
pub use sockets::ListeningSockets;
pub use worker::{Hooks, StartError, Workers};

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::Limits;
use crate::liveness::CloseReason;
use crate::metrics::Takeover;
use crate::session::SessionParams;

use tokio::sync::watch;

/// One address on which clients are accepted, as all workers share it.
#[derive(Debug)]
pub struct Listener {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The same with port 0 replaced by the kernel's choice; set when it is bound.
    pub bound: OnceLock<SocketAddr>,
    /// Whether its clients are accepted; until then they wait in the kernel.
    pub open: watch::Sender<bool>,
    /// Length of each worker's accept queue.
    pub backlog: u32,
    /// The sockets of all workers.
    pub sockets: Arc<ListeningSockets>,
    /// What its sessions have in common.
    pub params: Arc<SessionParams>,
    /// Admission limits.
    pub limits: Limits,
    /// Bounds its sessions.
    pub limiter: Arc<Limiter>,
    /// Held by the incoming that makes room.
    pub making_room: tokio::sync::Mutex<()>,
}

impl Listener {
    /// Whether nobody is, or is about to be, in a session, and nobody will be.
    #[must_use]
    pub fn is_left(&self) -> bool {
        let opened = *self.open.borrow();
        opened
            && self.sockets.is_closed()
            && self.limiter.in_use() == 0
            && self.params.sessions.load(Ordering::Relaxed) == 0
    }

    /// Why the last place became free. Of two that are given back at the same moment, for
    /// different reasons, one is counted as the other: nothing but a metric depends on it.
    fn freed_by(&self) -> Takeover {
        let last = self.params.last_end.load(Ordering::Relaxed);
        match CloseReason::from_repr(last) {
            Some(CloseReason::Replaced) => Takeover::Replaced,
            Some(CloseReason::Shed) => Takeover::Shed,
            Some(reason) if reason.dead_leg().is_some() => Takeover::HolderDead,
            _ => Takeover::Queued,
        }
    }
}

/// Numbers sessions through the life of the process.
#[derive(Debug, Default)]
pub struct Serial(AtomicU64);

impl Serial {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}
