//! Data-plane threads, each with a runtime, listening sockets, sessions and a monitor of its own.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;

use super::admission::Resources;
use super::bind::{BoundSockets, Sockets};
use super::memory::Watch;
use super::wait_queue::WaitQueue;
use super::{Limiter, Listener, Permit, Serial, accept};
use crate::host::MemoryMeter;
use crate::metrics::Metrics;
use crate::relay;
use crate::session::{Balancer, Coming, Session, Table, monitor};

/// Clients that may wait for descriptors or memory at a time.
const MOST_WAITING: usize = 32;

/// What the embedding program wants to happen on data-plane threads.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Called on each thread that opens or accepts sockets, before it does.
    pub on_start: Option<Arc<dyn Fn() -> io::Result<()> + Send + Sync>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("on_start", &self.on_start.is_some())
            .finish()
    }
}

/// A client on its way to a worker.
#[derive(Debug)]
pub(super) struct Incoming {
    pub fd: OwnedFd,
    pub client: SocketAddr,
    pub listener: Arc<Listener>,
    /// Its place at the listener, if there was one.
    pub place: Option<Permit>,
    /// What it needs of the process.
    pub resources: Resources,
    /// It is in no table yet.
    pub coming: Option<Coming>,
}

/// One data-plane thread, as others see it.
#[derive(Debug)]
pub struct Worker {
    pub(super) table: Arc<Table>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) serial: Arc<Serial>,
    pub(super) descriptors: Arc<Limiter>,
    /// Bounds the clients that wait for descriptors or memory: each holds one descriptor of the
    /// reserve.
    pub(super) waiting_room: Arc<Limiter>,
    /// Held by whoever sheds for descriptors or memory.
    pub(super) shedding: Arc<tokio::sync::Mutex<()>>,
    /// The clients of all workers that wait for a place.
    pub(super) wait_queue: Arc<WaitQueue>,
    /// Incoming clients have to wait for memory.
    pub(super) out_of_memory: watch::Receiver<bool>,
    /// Its number, and the balancer it belongs to; set once all exist.
    seat: OnceLock<(usize, Arc<Balancer>)>,
    /// The others, this one included; set once all exist.
    all: OnceLock<Vec<Arc<Self>>>,
}

impl Worker {
    /// So many, that share what is not theirs alone.
    fn balancer(
        count: usize,
        descriptors: &Arc<Limiter>,
        stop: &watch::Receiver<bool>,
        out_of_memory: &watch::Receiver<bool>,
    ) -> Vec<Arc<Self>> {
        let serial = Arc::new(Serial::default());
        let waiting_room = Arc::new(Limiter::new(Some(MOST_WAITING)));
        let shedding: Arc<tokio::sync::Mutex<()>> = Arc::default();
        let wait_queue: Arc<WaitQueue> = Arc::default();
        let worker = || Self {
            table: Arc::new(Table::default()),
            stop: stop.clone(),
            serial: serial.clone(),
            descriptors: descriptors.clone(),
            waiting_room: waiting_room.clone(),
            shedding: shedding.clone(),
            wait_queue: wait_queue.clone(),
            out_of_memory: out_of_memory.clone(),
            seat: OnceLock::new(),
            all: OnceLock::new(),
        };
        (0..count).map(|_| Arc::new(worker())).collect()
    }

    /// One that works alone.
    #[cfg(test)]
    pub(super) fn alone() -> Arc<Self> {
        let (_, never) = watch::channel(false);
        let all = Self::balancer(1, &Arc::new(Limiter::new(None)), &never, &never);
        let balancer = Balancer::new(vec![all[0].table.clone()]);
        let _set_once = all[0].seat.set((0, balancer));
        all[0].clone()
    }

    /// The worker that a client accepted here belongs to, if another one.
    pub(super) fn elsewhere(&self) -> Option<&Arc<Self>> {
        let (index, balancer) = self.seat.get()?;
        self.all.get()?.get(balancer.for_incoming(*index)?)
    }

    /// Has a drain wait for one who accepts clients, or for a client.
    pub(super) fn coming(&self) -> Option<Coming> {
        self.seat.get().map(|(_, balancer)| balancer.coming())
    }

    /// Calls `each` once for every session of all workers.
    pub(super) fn for_each_session(&self, each: impl FnMut(&Arc<Session>)) {
        if let Some((_, balancer)) = self.seat.get() {
            balancer.for_each(each);
        }
    }

    /// How many sessions all workers have, without the clients that wait for descriptors or memory.
    pub(super) fn sessions(&self) -> usize {
        let all = self
            .seat
            .get()
            .map_or(0, |(_, balancer)| balancer.sessions());
        all.saturating_sub(self.waiting_room.in_use())
    }

    /// Returns at once unless memory is short.
    pub(super) async fn wait_for_memory(&self) {
        let mut full = self.out_of_memory.clone();
        // An error is the end of the watch: nobody waits for it.
        let _enough = full.wait_for(|full| !*full).await;
    }

    pub(super) fn hand_over(self: &Arc<Self>, incoming: Incoming) {
        let worker = self.clone();
        let start = move || accept::start(&worker, incoming);
        self.table.post(Box::new(start));
    }
}

/// The data plane.
#[derive(Debug)]
pub struct Workers {
    balancer: Arc<Balancer>,
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    quit: watch::Sender<bool>,
}

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
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("cannot start a worker: {0}")]
    Thread(#[from] io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: stop it or choose another",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
        _ => "",
    }
}

impl Workers {
    /// Starts a thread for the sockets of each worker. Clients are accepted once their listener
    /// is open.
    ///
    /// # Errors
    /// The first thread that failed; nothing is left running.
    pub fn start(
        bound: BoundSockets,
        descriptors: &Arc<Limiter>,
        memory: Option<MemoryMeter>,
        metrics: &Arc<Metrics>,
        hooks: &Hooks,
    ) -> Result<Self, StartError> {
        let (full, out_of_memory) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let (quit, quitting) = watch::channel(false);
        let count = bound.sockets.len();
        let all = Worker::balancer(count, descriptors, &stopped, &out_of_memory);
        let balancer = Balancer::new(all.iter().map(|worker| worker.table.clone()).collect());
        let mut workers = Self {
            balancer: balancer.clone(),
            threads: Vec::new(),
            stop,
            quit,
        };
        for (index, (worker, sockets)) in all.iter().zip(bound.sockets).enumerate() {
            let _set_once = worker.all.set(all.clone());
            let _set_once = worker.seat.set((index, balancer.clone()));
            let seat = Seat {
                worker: worker.clone(),
                sockets,
                hooks: hooks.clone(),
                quit: quitting.clone(),
            };
            let (ready, is_ready) = mpsc::channel();
            let thread = thread::Builder::new().name(format!("worker-{index}"));
            workers
                .threads
                .push(thread.spawn(move || seat.run(&ready))?);
            match is_ready.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::Error::other("a worker ended at its start").into()),
            }
        }
        if let (Some(meter), Some(worker)) = (memory, all.first()) {
            let watch = Watch {
                meter,
                worker: worker.clone(),
                full,
                metrics: metrics.clone(),
                quit: quitting,
            };
            workers.threads.push(watch.start()?);
        }
        Ok(workers)
    }

    /// Whether it was told to stop accepting.
    #[must_use]
    pub fn stopped_accepting(&self) -> bool {
        *self.stop.borrow()
    }

    /// Stops accepting; sessions go on.
    pub fn stop_accepting(&self) {
        self.stop.send_replace(true);
    }

    /// Calls `each` once for every session.
    pub fn for_each_session(&self, each: impl FnMut(&Arc<Session>)) {
        self.balancer.for_each(each);
    }

    /// How many workers carry sessions at present.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.balancer.in_use()
    }

    /// Has every session of one worker move to another one.
    #[cfg(test)]
    pub(crate) fn move_all(&self, from: usize, to: usize) {
        self.balancer.move_all(from, to);
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.balancer.sessions()
    }

    /// Waits until nobody accepts, and there is no session.
    pub async fn emptied(&self) {
        self.balancer.emptied().await;
    }
}

impl Drop for Workers {
    /// Ends the threads; sessions that are left are aborted.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.quit.send_replace(true);
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on standard error.
            let _panicked = thread.join();
        }
    }
}

/// What a worker's thread starts with.
struct Seat {
    worker: Arc<Worker>,
    sockets: Sockets,
    hooks: Hooks,
    quit: watch::Receiver<bool>,
}

impl Seat {
    fn run(mut self, ready: &mpsc::Sender<Result<(), StartError>>) {
        let runtime = match self.prepare() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async {
            for (listener, socket) in std::mem::take(&mut self.sockets) {
                tokio::spawn(accept::accept(self.worker.clone(), listener, socket));
            }
            drop(ready.send(Ok(())));
            tokio::spawn(monitor(self.worker.table.clone()));
            tokio::spawn(self.worker.table.clone().work_off());
            // The sender lives as long as the data plane.
            let _ended = self.quit.wait_for(|quit| *quit).await;
        });
    }

    fn prepare(&self) -> Result<tokio::runtime::Runtime, StartError> {
        if let Some(on_start) = &self.hooks.on_start {
            on_start()?;
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        relay::allow_pipes(relay::most_pipes(limit));
        Ok(tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?)
    }
}
