//! The composition root: the only module that may see every other.

mod environment;
mod takeover;

use std::collections::HashSet;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::admin::{self, Control, Readiness};
use crate::config::{self, Config, ConfigErrors, ListenerConfig, MemoryLimit, OnFull};
use crate::exit::{self, Exit};
use crate::host::MemoryMeter;
use crate::lifecycle::{self, DrainRequest, Drainable, Drained, EndSignals};
use crate::liveness::{Close, CloseHow, CloseReason, Span};
use crate::metrics::Metrics;
use crate::net::listen;
use crate::relay;
use crate::server::{
    BoundSockets, Hooks, Limiter, Listener, ListeningSockets, StartError, Workers,
};
use crate::session::{self, Session, SessionParams};
use crate::upstream::{self, Cluster};
use crate::view::{Shown, VerifiedSession};
use crate::{sys, telemetry};

use takeover::Estate;
pub use takeover::Succession;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing_appender::non_blocking::ErrorCounter;

/// Descriptors that are no sessions', whatever is configured: admin connections, log, clients that
/// wait for descriptors, margin.
const RESERVED_DESCRIPTORS: u64 = 88;
/// Those of a worker's runtime.
const PER_WORKER: u64 = 3;

/// Descriptors that are no sessions' under a limit.
#[must_use]
pub fn reserved_descriptors(limit: u64, workers: usize, listeners: &[ListenerConfig]) -> u64 {
    let pipes = 2 * relay::most_pipes(limit) as u64;
    // Each worker has a socket of each listener.
    let sockets = listeners.len().max(1) as u64;
    let of_workers = (pipes + sockets + PER_WORKER) * workers as u64;
    let dials = upstream::descriptors(listeners.iter().map(|l| &l.upstream));
    RESERVED_DESCRIPTORS + of_workers + dials
}
/// Admin connections that wait to be accepted.
const ADMIN_BACKLOG: u32 = 128;

/// Sessions whose peers are asked at a time, over all requests: each is looked at some hundred
/// times in a second until it answers.
const VERIFIED_AT_ONCE: usize = 512;

/// A running proxy without its signals: what [`run`] and the demo have in common.
#[derive(Debug)]
pub struct App {
    config: Config,
    metrics: Arc<Metrics>,
    workers: Workers,
    listeners: Vec<Arc<Listener>>,
    readiness: AtomicU8,
    drain: DrainRequest,
    /// Taken by the one that serves it.
    admin: Mutex<Option<OwnedFd>>,
    /// What the next instance is given; `None` where nobody is to ask, or somebody has it.
    estate: Mutex<Option<Estate>>,
    /// The next instance has the admin address and the clients.
    succeeded: watch::Sender<bool>,
    descriptor_limit: u64,
    dropped_lines: Option<ErrorCounter>,
    verifying: Arc<tokio::sync::Semaphore>,
}

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Flags or file are wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A listener or worker could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The admin endpoint could not be opened.
    #[error(
        "admin: cannot listen on {address}: {error}; choose another with --admin or switch it off with --admin off"
    )]
    Admin {
        /// Its address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// `--takeover` found nobody, and yet somebody listens there.
    #[error(
        "{error}; it cannot be taken over: no instance of this user has the admin address {address}"
    )]
    NotOurs {
        /// The listener.
        error: StartError,
        /// Where an instance was looked for.
        address: SocketAddr,
    },
    /// `--takeover` without an admin address.
    #[error("--takeover finds the running instance by the admin address: it must not be off")]
    NoAdmin,
    /// The running instance does not give its place.
    #[error("cannot take over: {0}")]
    Takeover(#[source] io::Error),
    /// A descriptor limit that cannot hold what was asked for.
    #[error(
        "the descriptor limit is {limit}, and {sessions} session{} with all listeners and workers need{} \
         {needed}: raise `ulimit -n` (systemd: LimitNOFILE=) or lower limits.max_connections",
        if *sessions == 1 { "" } else { "s" },
        if *sessions == 1 { "s" } else { "" }
    )]
    Descriptors {
        /// The hard limit.
        limit: u64,
        /// What `limits.max_connections` add up to; at least one.
        sessions: u64,
        /// Descriptors for them.
        needed: u64,
    },
    /// Anything else the system refused.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

impl App {
    /// Binds every address, the admin's first, and starts the data plane; clients are accepted
    /// when it returns.
    ///
    /// # Errors
    /// The first thing that could not be started; nothing is left running, and no client was taken.
    pub fn start(
        config: Config,
        dropped_lines: Option<ErrorCounter>,
        hooks: &Hooks,
        succession: Succession,
    ) -> Result<Arc<Self>, AppError> {
        let (admin, mut before) = takeover::admin_socket(config.admin.as_ref(), succession)?;
        let metrics = Arc::new(Metrics::new());
        let descriptor_limit = raise_descriptor_limit();
        let count = config.workers.map_or_else(default_workers, usize::from);
        let capacity = session_capacity(&config, descriptor_limit, count)?;
        let descriptors = Arc::new(Limiter::new(Some(capacity)));
        let listeners = listeners(&config, &metrics)?;
        let inherited = before.as_mut().map(|b| std::mem::take(&mut b.listeners));
        let bound = BoundSockets::bind(count, &listeners, inherited.unwrap_or_default(), hooks)
            .map_err(|error| {
                takeover::explain(error, admin.as_ref(), before.as_ref(), succession)
            })?;
        if let Some((socket, address)) = &admin {
            let listening = listen::listen(socket, ADMIN_BACKLOG);
            listening.map_err(|error| AppError::admin(*address, error))?;
        }
        bound.listen()?;
        let memory = memory_meter(&config);
        let workers = Workers::start(bound, &descriptors, memory, &metrics, hooks)?;
        announce(
            &config,
            &listeners,
            admin.as_ref().map(|(_, address)| *address),
            count,
        );
        environment::try_on_demand_probe(metrics.clone());
        if let Some(before) = &before {
            before.relieve().map_err(AppError::Takeover)?;
            tracing::info!("took over from the running instance, which drains");
        }
        let estate = match &admin {
            Some((socket, address)) if succession != Succession::None => {
                takeover::estate(socket, *address, before.as_mut())?
            }
            _ => None,
        };
        takeover::open(&listeners, before)?;
        Ok(Arc::new(Self {
            config,
            metrics,
            workers,
            listeners,
            readiness: AtomicU8::new(Readiness::Ready as u8),
            drain: DrainRequest::default(),
            admin: Mutex::new(admin.map(|(socket, _)| socket)),
            estate: Mutex::new(estate),
            succeeded: watch::Sender::new(false),
            descriptor_limit,
            dropped_lines,
            verifying: Arc::new(tokio::sync::Semaphore::new(VERIFIED_AT_ONCE)),
        }))
    }

    /// Serves until a signal or the admin endpoint asks for the end, then drains.
    ///
    /// # Errors
    /// When the admin endpoint cannot be set up.
    pub async fn serve(self: &Arc<Self>, signals: &mut EndSignals) -> Result<Drained, AppError> {
        let endpoint = self.serve_admin()?;
        self.listen_for_successors()?;
        let mut succeeded = self.succeeded.subscribe();
        let mut limits = self.config.drain.clone();
        tokio::select! {
            name = signals.next() => tracing::info!("{name}: draining"),
            () = self.drain.asked() => tracing::info!("the admin endpoint asks: draining"),
            // Nobody has to notice: the next one is ready.
            _ = succeeded.wait_for(|over| *over) => limits.delay = Duration::ZERO,
        }
        let drained = lifecycle::drain(&limits, &**self, signals).await;
        self.succeeded.send_replace(true);
        if let Some(endpoint) = endpoint {
            let limit = Duration::from_millis(200);
            let _answered_or_not = tokio::time::timeout(limit, endpoint).await;
        }
        Ok(drained)
    }

    /// Serves the admin endpoint until the process ends or another one has the address.
    fn serve_admin(self: &Arc<Self>) -> io::Result<Option<JoinHandle<()>>> {
        let socket = self
            .admin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(socket) = socket else {
            return Ok(None);
        };
        let listener = tokio::net::TcpListener::from_std(socket.into())?;
        let control: Arc<dyn Control> = self.clone();
        let over = self.over();
        Ok(Some(tokio::spawn(admin::serve(listener, control, over))))
    }

    /// Waits for the end of serving the operator.
    fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut succeeded = self.succeeded.subscribe();
        async move {
            let _over = succeeded.wait_for(|over| *over).await;
        }
    }

    fn for_each_session(&self, each: impl FnMut(&Arc<Session>)) {
        self.workers.for_each_session(each);
    }

    fn order_all(&self, reason: CloseReason, how: CloseHow) {
        let close = Close {
            reason,
            how,
            evidence: None,
            silent_for: Span::ZERO,
        };
        self.for_each_session(|session| session.order(close));
    }
}

/// Runs the proxy with the configuration that `load` finds, until it is told to end; then ends
/// the process, whatever its threads still wait for. The signals that end it may be held
/// ([`sys::hold_end_signals`]); they are heard from here on.
pub fn run(
    load: impl FnOnce() -> Result<Config, ConfigErrors> + Send + 'static,
    succession: Succession,
) -> ! {
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::from)
        // Never dropped: that waits for its threads, one of which may look a name up.
        .and_then(|runtime| ManuallyDrop::new(runtime).block_on(run_loaded(load, succession)));
    let exit = match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            // The log may be JSON, or be read by nobody: the operator's terminal gets it.
            exit::complain(&error.for_a_person());
            error.exit()
        }
    };
    std::process::exit(exit as i32)
}

async fn run_loaded(
    load: impl FnOnce() -> Result<Config, ConfigErrors> + Send + 'static,
    succession: Succession,
) -> Result<(), AppError> {
    let mut signals = EndSignals::install()?;
    sys::release_end_signals();
    // On a thread of its own: no file and no name that a start waits for keeps a signal waiting.
    let (started, has_started) = oneshot::channel();
    let start = move || -> Result<_, AppError> {
        let config = load()?;
        let log = telemetry::init(&config.log).map_err(io::Error::other)?;
        let app = App::start(config, Some(log.drops()), &Hooks::default(), succession);
        app.map(|app| (app, log))
    };
    thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || drop(started.send(start())))?;
    let (app, log) = tokio::select! {
        started = has_started => started.map_err(io::Error::other)??,
        name = signals.next() => {
            tracing::info!("{name}: ended before it served");
            return Ok(());
        }
    };
    // Never dropped: the process ends, which aborts what is left.
    let app = ManuallyDrop::new(app);
    match app.serve(&mut signals).await? {
        Drained::Clean => tracing::info!("drained: every session has finished"),
        Drained::TimedOut(left) => tracing::warn!(sessions = left, "drained by drain.timeout"),
        Drained::Forced(left) => tracing::warn!(sessions = left, "ended by force"),
    }
    drop(log);
    Ok(())
}

impl AppError {
    fn admin(address: SocketAddr, error: io::Error) -> Self {
        Self::Admin { address, error }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Admin { .. } | Self::NotOurs { .. } | Self::Start(StartError::Listen { .. }) => {
                Exit::CannotListen
            }
            Self::Config(_) | Self::NoAdmin => Exit::Usage,
            _ => Exit::Failure,
        }
    }

    fn for_a_person(&self) -> String {
        match self {
            Self::Config(errors) => errors.to_string(),
            other => format!("pulsegate: {other}"),
        }
    }
}

fn announce(
    config: &Config,
    listeners: &[Arc<Listener>],
    admin: Option<SocketAddr>,
    workers: usize,
) {
    for (configured, listener) in config.listeners.iter().zip(listeners) {
        tracing::info!(
            listener = configured.name,
            address = %listener.bound.get().unwrap_or(&listener.address),
            upstream = %configured.upstream.address,
            detect_within_ms = configured.liveness.detect_within.as_millis() as u64,
            probe_interval_ms = configured.liveness.probe_interval.as_millis() as u64,
            workers,
            "listening"
        );
    }
    match admin {
        Some(address) => tracing::info!(%address, "the admin endpoint"),
        None => tracing::info!("no admin endpoint"),
    }
}

/// Those of all listeners; names are looked up from now on.
fn listeners(config: &Config, metrics: &Metrics) -> io::Result<Vec<Arc<Listener>>> {
    let low_water = config.relay.low_water;
    let listeners = config.listeners.iter().enumerate();
    let listeners: Vec<_> = listeners
        .map(|(index, configured)| Arc::new(listener(index, configured, low_water, metrics)))
        .collect();
    upstream::start_resolving(listeners.iter().map(|l| &l.params.cluster))?;
    Ok(listeners)
}

fn listener(index: usize, config: &ListenerConfig, low_water: bool, metrics: &Metrics) -> Listener {
    let limit = config.limits.max_connections.map(|n| n as usize);
    Listener {
        address: config.address,
        open: watch::Sender::new(false),
        bound: OnceLock::new(),
        backlog: config.backlog,
        sockets: Arc::new(ListeningSockets::default()),
        params: Arc::new(SessionParams {
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
            index,
            reconnect_delay: config.limits.reconnect_delay,
            sheds: config.limits.on_full == OnFull::Shed,
            sessions: AtomicUsize::new(0),
            last_end: AtomicU8::default(),
        }),
        limits: config.limits.clone(),
        limiter: Arc::new(Limiter::new(limit)),
        making_room: tokio::sync::Mutex::new(()),
    }
}

/// The processors that the process may use, cgroup quota included.
#[must_use]
pub fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Raises the soft descriptor limit to the hard one; returns it.
fn raise_descriptor_limit() -> u64 {
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
fn memory_meter(config: &Config) -> Option<MemoryMeter> {
    match config.limits.memory {
        MemoryLimit::Auto => MemoryMeter::of_group(),
        MemoryLimit::Off => None,
        MemoryLimit::Bytes(limit) => Some(MemoryMeter::of_process(limit)),
    }
}

/// How many sessions the descriptors allow: two each.
fn session_capacity(config: &Config, limit: u64, workers: usize) -> Result<usize, AppError> {
    let reserved = reserved_descriptors(limit, workers, &config.listeners);
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

impl Drainable for App {
    fn refuse_readiness(&self) {
        self.readiness
            .store(Readiness::Draining as u8, Ordering::Relaxed);
        self.metrics.set_draining(true);
    }

    fn stop_accepting(&self) {
        self.workers.stop_accepting();
    }

    /// Those of the instance before this one, too, where somebody waits for their end: the next
    /// instance knows of them by this one.
    fn sessions(&self) -> usize {
        let held = self.listeners.iter().filter(|e| !*e.open.borrow()).count();
        self.workers.sessions() + held
    }

    async fn emptied(&self) {
        for listener in &self.listeners {
            let mut open = listener.open.subscribe();
            // The sender is the listener's own.
            let _opened = open.wait_for(|open| *open).await;
        }
        self.workers.emptied().await;
    }

    fn finish_all(&self) {
        self.order_all(CloseReason::Drain, CloseHow::Flush);
    }

    fn abort_all(&self) {
        self.order_all(CloseReason::Drain, CloseHow::Abort);
    }
}

impl Control for App {
    fn metrics(&self) -> String {
        let now = sys::now();
        let params = || self.listeners.iter().map(|listener| &listener.params);
        let mut moved: Vec<_> = params().map(|s| s.metrics.settled()).collect();
        self.for_each_session(|session| {
            session.refresh(now);
            moved[session.params.index] += session.traffic();
        });
        for (params, moved) in params().zip(&moved) {
            params
                .metrics
                .set_active(params.sessions.load(Ordering::Relaxed));
            params.metrics.set_bytes(moved);
        }
        for listener in &self.listeners {
            listener
                .params
                .metrics
                .set_queued(listener.limiter.queued());
        }
        environment::refresh(&self.listeners, self.metrics.host());
        self.metrics
            .set_descriptors(open_descriptors(), self.descriptor_limit);
        self.metrics.set_workers_in_use(self.workers.in_use());
        if let Some(dropped) = &self.dropped_lines {
            self.metrics
                .set_log_lines_dropped(dropped.dropped_lines() as u64);
        }
        self.metrics.render()
    }

    fn readiness(&self) -> Readiness {
        if self.readiness.load(Ordering::Relaxed) == Readiness::Draining as u8 {
            Readiness::Draining
        } else {
            Readiness::Ready
        }
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        let mut sessions: Vec<Arc<dyn Shown>> = Vec::with_capacity(self.workers.sessions());
        self.for_each_session(|session| sessions.push(session.clone()));
        sessions
    }

    fn close(&self, id: u64) -> bool {
        let mut found = false;
        self.for_each_session(|session| {
            if session.id == id {
                session.order(Close {
                    reason: CloseReason::Admin,
                    // Who asks twice does not want to wait.
                    how: if session.is_ending() {
                        CloseHow::Abort
                    } else {
                        CloseHow::Flush
                    },
                    evidence: None,
                    silent_for: Span::ZERO,
                });
                found = true;
            }
        });
        found
    }

    fn verify(
        &self,
        ids: &[u64],
        quick: bool,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        let ids: HashSet<u64> = ids.iter().copied().collect();
        let mut sessions = Vec::new();
        self.for_each_session(|session| {
            if ids.contains(&session.id) {
                sessions.push(session.clone());
            }
        });
        Box::pin(session::verify_all(sessions, quick, self.verifying.clone()))
    }

    fn config(&self) -> String {
        config::to_yaml(&self.config)
    }

    fn drain(&self) {
        self.refuse_readiness();
        self.drain.ask();
    }
}

/// Descriptors that the process holds; `None` where that cannot be found out.
fn open_descriptors() -> Option<u64> {
    const OWN: &str = "/proc/self/fd";
    // The kernel says so from 6.2 on. Before, the directory has to be read, which takes a descriptor.
    let said = std::fs::metadata(OWN).map_or(0, |directory| directory.len());
    let counted = || Some(std::fs::read_dir(OWN).ok()?.count() as u64);
    (said > 0).then_some(said).or_else(counted)
}

#[cfg(test)]
mod tests;
