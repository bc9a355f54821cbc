//! The composition root: the only module that may see every other.

mod board;
mod control;
pub mod doctor;
mod environment;
mod error;
pub mod explain;
mod history;
mod listeners;
mod manager;
mod materials;
mod reload;
mod resources;
mod takeover;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::admin::{self, Control, Readiness, TokenFile};
use crate::config::{Config, ConfigErrors, ControlAddress, ListenAddress};
use crate::exit::{self, Exit};
use crate::lifecycle::{self, Cause, DrainRequest, Drainable, Drained, EndSignals};
use crate::liveness::{Close, CloseHow, CloseReason, Span, Turn};
use crate::metrics::Metrics;
use crate::server::{Hooks, Limiter, Listener, Registry, StartError, Workers};
use crate::session::{Balancer, Session};
use crate::sys;
use crate::telemetry::{self, LogSwitch};

use board::Board;
pub use error::AppError;
use history::History;
use materials::Materials;
pub use materials::TlsFiles;
use reload::Watched;
pub use reload::{ConfigFile, Source};
pub use resources::{default_workers, reserved_descriptors};
use takeover::Estate;
pub use takeover::Succession;

/// Sessions whose peers are asked at a time, over all requests: each is observed some hundred
/// times in a second until it answers.
const VERIFIED_AT_ONCE: usize = 512;

/// Between the end of the endpoint and that of the process: whoever waits for the drain notices.
const FAREWELL: Duration = Duration::from_millis(500);

/// A running proxy without its signals: what [`run`] and the demo have in common.
#[derive(Debug)]
pub struct App {
    /// What is in force.
    config: Mutex<Arc<Config>>,
    metrics: Arc<Metrics>,
    registry: Registry,
    readiness: AtomicU8,
    drain: DrainRequest,
    /// Taken by the one that serves them.
    admin: Mutex<Vec<OwnedFd>>,
    token: Option<TokenFile>,
    /// Where the subcommands find this instance.
    board: Board,
    /// What the next instance is given; `None` where nobody is to ask, or somebody has it.
    estate: Mutex<Option<Estate>>,
    /// The next instance has the admin address and the clients.
    succeeded: watch::Sender<bool>,
    descriptor_limit: u64,
    log: Option<LogSwitch>,
    /// Whether the kernel does, once that was tried.
    probes_on_demand: Arc<OnceLock<bool>>,
    reloads: reload::Requests,
    history: History,
    /// Taken by the one that follows the file.
    followed: Mutex<Option<reload::Followed>>,
    verifying: Arc<tokio::sync::Semaphore>,
}

/// So many listeners are named in the line of the start.
const LISTED: usize = 16;

impl App {
    /// Binds every address, the admin's first, and starts the data plane; clients are accepted
    /// when it returns.
    ///
    /// # Errors
    /// The first thing that could not be started; nothing is left running, and no client was taken.
    pub fn start(
        config: Config,
        source: Source,
        hooks: &Hooks,
        succession: Succession,
    ) -> Result<Arc<Self>, AppError> {
        let watched = Watched::new(source.file, &config);
        let materials = Materials::for_start(&config, watched.file())?;
        let (admin, mut before) = takeover::admin_sockets(config.admin.as_ref(), succession)?;
        let metrics = Arc::new(Metrics::new());
        let descriptor_limit = resources::raise_descriptor_limit();
        let count = resources::workers(&config);
        let capacity = resources::session_capacity(&config, descriptor_limit, count)?;
        let limiter = Limiter::new(Some(capacity));
        let workers = workers(&config, count, limiter, hooks, &metrics)?;
        let registry = Registry::new(workers, hooks.clone(), metrics.clone());
        let inherited = before.as_mut().map(|b| std::mem::take(&mut b.listeners));
        let inherited = inherited.unwrap_or_default();
        let applied = listeners::apply(&config, &materials, &registry, &metrics, inherited);
        let listeners::Changed { added, .. } = applied.map_err(|error| {
            takeover::explain(error, admin.as_ref(), before.as_ref(), succession)
        })?;
        announce(&added, count);
        materials.report(&metrics);
        let board = Board::announce(config.admin.as_ref(), admin.as_ref(), materials.admin());
        let probes_on_demand = environment::try_on_demand_probe(metrics.clone());
        if let Some(before) = &before {
            before.relieve().map_err(AppError::Takeover)?;
            tracing::info!("took over from the running instance, which drains");
        }
        let estate = match &admin {
            Some(admin) if succession != Succession::None => {
                takeover::estate(admin, before.as_mut())?
            }
            _ => None,
        };
        takeover::open(&added, before)?;
        let (reloads, followed) = reload::Requests::new(watched);
        let sockets = admin.into_iter().flat_map(|a| [Some(a.main), a.control]);
        Ok(Arc::new(Self {
            config: Mutex::new(Arc::new(config)),
            metrics,
            registry,
            readiness: AtomicU8::new(Readiness::Ready as u8),
            drain: DrainRequest::default(),
            admin: Mutex::new(sockets.flatten().collect()),
            token: materials.token(),
            board,
            estate: Mutex::new(estate),
            succeeded: watch::Sender::new(false),
            descriptor_limit,
            log: source.log,
            probes_on_demand,
            reloads,
            history: History::default(),
            followed: Mutex::new(followed),
            verifying: Arc::new(tokio::sync::Semaphore::new(VERIFIED_AT_ONCE)),
        }))
    }

    /// One line with what a person looks for first.
    fn announce_start(&self, config: &str) {
        let listeners = self.registry.serving();
        let place =
            |listener: &Arc<Listener>| format!("{} {}", listener.config.name, listener.bound);
        let mut places: Vec<_> = listeners.iter().take(LISTED).map(place).collect();
        if let Some(more @ 1..) = listeners.len().checked_sub(LISTED) {
            places.push(format!("{more} more"));
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            config,
            admin = self
                .board
                .admin()
                .map_or("off".to_owned(), |at| at.to_string()),
            listeners = places.join(", "),
            "pulsegate has started"
        );
        self.warn_of_unused_sockets();
    }

    /// The clients of a socket that systemd holds and no listener uses connect, and then wait.
    fn warn_of_unused_sockets(&self) {
        let listeners = self.registry.serving();
        let is_used = |name: &str| {
            let own = |address: &ListenAddress| matches!(address, ListenAddress::Activated(own) if own == name);
            listeners
                .iter()
                .any(|listener| own(&listener.config.address))
        };
        for (name, _) in sys::passed_descriptors() {
            if !is_used(name) {
                tracing::warn!(
                    name,
                    "no listener uses a socket of the service manager: its clients are not served"
                );
            }
        }
    }

    /// The configuration in force.
    fn running(&self) -> Arc<Config> {
        let config = self.config.lock();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves until a signal or the admin endpoint asks for the end, then drains.
    ///
    /// # Errors
    /// When the admin endpoint cannot be set up.
    pub async fn serve(self: &Arc<Self>, signals: &mut EndSignals) -> Result<Drained, AppError> {
        let endpoint = self.serve_admin()?;
        self.listen_for_successors()?;
        self.follow_file()?;
        tokio::spawn(self.reloads.clone().ask_at(signals.hangups()));
        manager::ready();
        tokio::spawn(manager::feed_watchdog(self.balancer().workers().to_vec()));
        let mut succeeded = self.succeeded.subscribe();
        let cause = tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: draining");
                Cause::Signal
            }
            () = self.drain.asked() => {
                tracing::info!("the admin endpoint asked for it: draining");
                Cause::Admin
            }
            _ = succeeded.wait_for(|over| *over) => Cause::Successor,
        };
        let mut limits = self.running().drain.clone();
        if *self.succeeded.borrow() {
            // Nobody has to notice: the next one is ready.
            limits.delay = Duration::ZERO;
        }
        manager::stopping(&limits);
        let drained = lifecycle::drain(&limits, &**self, signals, cause).await;
        if !self.succeeded.send_replace(true) {
            self.remove_control_file();
            // Its copies keep the addresses open. Whoever asks for them at this moment still gets them.
            drop(self.estate.try_lock().map(|mut estate| estate.take()));
        }
        let limit = Duration::from_millis(200);
        let _answered_or_not = tokio::time::timeout(limit, endpoint.join_all()).await;
        if cause == Cause::Admin {
            // The kernel kills a preStop hook with the first process of its container: `drain --wait` goes first.
            tokio::time::sleep(FAREWELL).await;
        }
        Ok(drained)
    }

    /// Serves the admin endpoint until the process ends or another one has the addresses.
    fn serve_admin(self: &Arc<Self>) -> io::Result<JoinSet<()>> {
        let mut sockets = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        let mut endpoint = JoinSet::new();
        // The first socket is that of admin.address. What comes by the other one does not leave this host.
        let mut tls = self.board.tls().cloned();
        for socket in sockets.drain(..) {
            let socket = admin::Socket::new(socket, tls.take())?;
            let control: Arc<dyn Control> = self.clone();
            endpoint.spawn(admin::serve(
                socket,
                self.token.clone(),
                control,
                self.over(),
            ));
        }
        Ok(endpoint)
    }

    /// Unless the next instance has the socket.
    fn remove_control_file(&self) {
        let config = self.running();
        let control = config
            .admin
            .as_ref()
            .and_then(|admin| admin.control.as_ref());
        if let Some(ControlAddress::Unix(path)) = control {
            // Whoever starts next removes what is left.
            let _gone = std::fs::remove_file(path);
        }
    }

    /// Waits for the end of serving the operator.
    fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut succeeded = self.succeeded.subscribe();
        async move {
            let _over = succeeded.wait_for(|over| *over).await;
        }
    }

    /// The sessions of all listeners.
    fn balancer(&self) -> &Balancer {
        self.registry.workers.sessions()
    }

    /// Ends those sessions whose turn in a drain has come, and that are at rest.
    fn finish_quiet_of(&self, turn: Turn, of: impl Fn(&Session) -> bool) {
        let now = sys::now();
        let due =
            |session: &Session| turn.has_come(session.id) && of(session) && session.is_at_rest(now);
        self.balancer().for_each(|session| {
            if due(session) {
                session.order(order(CloseReason::Drain, CloseHow::Flush));
            }
        });
    }

    fn order_all(&self, reason: CloseReason, how: CloseHow) {
        let close = order(reason, how);
        self.balancer().for_each(|session| session.order(close));
    }
}

fn order(reason: CloseReason, how: CloseHow) -> Close {
    Close {
        reason,
        how,
        evidence: None,
        silent_for: Span::ZERO,
    }
}

/// Runs the proxy with the configuration that `load` finds, perhaps in a `file`, until it is told to end;
/// then ends the process, whatever its threads still wait for. The signals that end it may be held
/// ([`sys::hold_end_signals`]); they are heard from here on.
pub fn run(
    load: impl FnOnce() -> Result<Config, ConfigErrors> + Send + 'static,
    file: Option<PathBuf>,
    succession: Succession,
) -> ! {
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::from)
        // Never dropped: that waits for its threads, one of which may look a name up.
        .and_then(|runtime| {
            ManuallyDrop::new(runtime).block_on(run_loaded(load, file, succession))
        });
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
    file: Option<PathBuf>,
    succession: Succession,
) -> Result<(), AppError> {
    let mut signals = EndSignals::install()?;
    sys::release_end_signals();
    // On a thread of its own: no file and no name that a start waits for keeps a signal waiting.
    let (started, has_started) = oneshot::channel();
    let start = move || -> Result<_, AppError> {
        let path = file.as_ref().map(|path| path.display().to_string());
        let file = file.map(ConfigFile::new);
        let config = load()?;
        let log = telemetry::init(&config.log).map_err(io::Error::other)?;
        let source = Source {
            file,
            log: Some(log.switch()),
        };
        let app = App::start(config, source, &Hooks::default(), succession);
        app.map(|app| {
            app.announce_start(path.as_deref().unwrap_or("flags"));
            (app, log)
        })
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
        Drained::TimedOut(left) => {
            tracing::warn!(sessions = left, "drained: drain.timeout ended the rest");
        }
        Drained::Forced(left) => {
            tracing::warn!(sessions = left, "ended by force: a second signal came");
        }
    }
    drop(log);
    Ok(())
}

/// The data-plane threads, and the one that watches the memory.
fn workers(
    config: &Config,
    count: usize,
    limiter: Limiter,
    hooks: &Hooks,
    metrics: &Arc<Metrics>,
) -> Result<Workers, StartError> {
    let workers = Workers::start(count, limiter, hooks);
    let mut workers = workers.map_err(StartError::Thread)?;
    if let Some(meter) = resources::memory_meter(config) {
        let watched = workers.watch_memory(meter, metrics.clone());
        watched.map_err(StartError::Thread)?;
    }
    Ok(workers)
}

fn announce(listeners: &[Arc<Listener>], workers: usize) {
    for Listener { config, bound, .. } in listeners.iter().map(|listener| &**listener) {
        tracing::info!(
            listener = config.name,
            address = %bound,
            upstream = %config.upstream,
            detect_within_ms = config.liveness.detect_within.as_millis() as u64,
            probe_interval_ms = config.liveness.probe_interval.as_millis() as u64,
            workers,
            "listening"
        );
    }
}

impl Drainable for App {
    fn refuse_readiness(&self) {
        self.readiness
            .store(Readiness::Draining as u8, Ordering::Relaxed);
        self.metrics.set_draining();
    }

    fn stop_accepting(&self) {
        // Before they are forgotten.
        let listeners = self.registry.listeners();
        self.registry.close();
        if !*self.succeeded.borrow() {
            listeners::remove_files(&listeners, &[]);
        }
    }

    /// Those of the instance before this one, too, where somebody waits for their end: the next
    /// instance knows of them by this one.
    fn sessions(&self) -> usize {
        let listeners = self.registry.listeners();
        let held = listeners.iter().filter(|l| !*l.is_open().borrow()).count();
        self.balancer().sessions() + held
    }

    async fn emptied(&self) {
        for listener in self.registry.listeners() {
            let mut open = listener.is_open();
            // The sender is the listener's own.
            let _opened = open.wait_for(|open| *open).await;
        }
        self.balancer().emptied().await;
    }

    fn finish_quiet(&self, turn: Turn) {
        self.finish_quiet_of(turn, |_| true);
    }

    fn finish_all(&self) {
        self.order_all(CloseReason::Drain, CloseHow::Flush);
    }

    fn abort_all(&self) {
        self.order_all(CloseReason::Drain, CloseHow::Abort);
    }
}

#[cfg(test)]
mod tests;
