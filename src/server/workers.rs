//! Data-plane threads, each with a runtime, sessions and a monitor of its own.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::Limiter;
use super::memory::Watch;
use super::wait_queue::WaitQueue;
use crate::host::MemoryMeter;
use crate::metrics::Metrics;
use crate::relay;
use crate::session::{Balancer, Worker, monitor};

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

/// What the workers share.
#[derive(Debug)]
pub(super) struct Pool {
    pub balancer: Arc<Balancer>,
    /// Bounds the sessions of all listeners: each needs two descriptors.
    pub descriptors: Arc<Limiter>,
    /// Bounds the clients that wait for descriptors or memory: each holds one descriptor of the
    /// reserve.
    pub waiting_room: Arc<Limiter>,
    /// Held by whoever sheds for descriptors or memory.
    pub shedding: tokio::sync::Mutex<()>,
    /// The clients of all listeners that wait for a place.
    pub wait_queue: WaitQueue,
    /// Whether incoming clients have to wait for memory.
    pub out_of_memory: watch::Sender<bool>,
    /// Sessions are numbered through the life of the process.
    pub last_id: AtomicU64,
}

impl Pool {
    pub fn new(balancer: Arc<Balancer>, descriptors: Limiter) -> Arc<Self> {
        Arc::new(Self {
            balancer,
            descriptors: Arc::new(descriptors),
            waiting_room: Arc::new(Limiter::new(Some(MOST_WAITING))),
            shedding: tokio::sync::Mutex::default(),
            wait_queue: WaitQueue::default(),
            out_of_memory: watch::Sender::new(false),
            last_id: AtomicU64::new(0),
        })
    }

    /// How many sessions there are, without the clients that wait for descriptors or memory.
    pub fn served(&self) -> usize {
        let all = self.balancer.sessions();
        all.saturating_sub(self.waiting_room.in_use())
    }
}

/// The data-plane threads.
#[derive(Debug)]
pub struct Workers {
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
    quit: watch::Sender<bool>,
}

impl Workers {
    /// Starts `count` threads that carry as many sessions as `descriptors` allows.
    ///
    /// # Errors
    /// The first thread that failed; nothing is left running.
    pub fn start(count: usize, descriptors: Limiter, hooks: &Hooks) -> io::Result<Self> {
        let runtime = |_| Builder::new_current_thread().enable_all().build();
        let runtimes: Vec<Runtime> = (0..count).map(runtime).collect::<io::Result<_>>()?;
        let balancer = Balancer::new(runtimes.iter().map(|runtime| runtime.handle().clone()));
        let mut workers = Self {
            pool: Pool::new(balancer.clone(), descriptors),
            threads: Vec::new(),
            quit: watch::Sender::new(false),
        };
        for (index, (worker, runtime)) in balancer.workers().iter().zip(runtimes).enumerate() {
            let (worker, hooks) = (worker.clone(), hooks.clone());
            let quit = workers.quit.subscribe();
            let (ready, is_ready) = mpsc::channel();
            let run = move || {
                let prepared = prepare(&hooks);
                let is_prepared = prepared.is_ok();
                let _starter_waits = ready.send(prepared);
                if is_prepared {
                    runtime.block_on(run(worker, quit));
                }
            };
            let thread = thread::Builder::new().name(format!("worker-{index}"));
            workers.threads.push(thread.spawn(run)?);
            let died = |_| io::Error::other("a worker ended at its start");
            is_ready.recv().map_err(died)??;
        }
        Ok(workers)
    }

    /// Has sessions ended before the memory that `meter` measures runs out.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn watch_memory(&mut self, meter: MemoryMeter, metrics: Arc<Metrics>) -> io::Result<()> {
        let watch = Watch {
            meter,
            pool: self.pool.clone(),
            metrics,
        };
        self.threads.push(watch.start(self.quit.subscribe())?);
        Ok(())
    }

    /// Has them carry as many sessions as `descriptors` allows. One may do so at a time.
    pub fn resize(&self, descriptors: usize) {
        self.pool.descriptors.resize(Some(descriptors));
    }

    /// Their sessions.
    #[must_use]
    pub fn sessions(&self) -> &Balancer {
        &self.pool.balancer
    }

    pub(super) const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Workers {
    /// Ends the threads; sessions that are left are aborted.
    fn drop(&mut self) {
        self.quit.send_replace(true);
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on standard error.
            let _panicked = thread.join();
        }
    }
}

/// On the thread of a worker.
fn prepare(hooks: &Hooks) -> io::Result<()> {
    if let Some(on_start) = &hooks.on_start {
        on_start()?;
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    relay::allow_pipes(relay::most_pipes(limit));
    Ok(())
}

async fn run(worker: Arc<Worker>, mut quit: watch::Receiver<bool>) {
    tokio::spawn(monitor(worker));
    // The sender lives as long as the data plane.
    let _ended = quit.wait_for(|quit| *quit).await;
}
