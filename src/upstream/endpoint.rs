//! One address of an upstream, and what is counted there.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// One address of an upstream. It lives for as long as its cluster has it, or a session uses it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    active: AtomicUsize,
    connects: AtomicU64,
    failures: AtomicU64,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            active: AtomicUsize::new(0),
            connects: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sessions that are connected to it, or are being connected.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Connections made.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// Connects that were refused, failed otherwise, or were not answered in their time.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Counts the outcome of a connect, and returns it.
    pub(super) fn count<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        let counter = match outcome {
            Ok(_) => &self.connects,
            Err(_) => &self.failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Counts a connect that was not answered in its time.
    pub(super) fn timed_out(&self) -> io::Error {
        self.failures.fetch_add(1, Ordering::Relaxed);
        io::ErrorKind::TimedOut.into()
    }
}

/// A session counted as active at its endpoint, until it is dropped.
#[derive(Debug)]
pub struct ActiveSession(Arc<Endpoint>);

impl ActiveSession {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl Deref for ActiveSession {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
