//! Follows the configuration file: when somebody asks (`POST /reload`, SIGHUP), and when the file has
//! changed. docs/RELOAD.md says what becomes of each key.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::{App, listeners, order, resources};
use crate::admin::{Control, NotReloaded, Readiness};
use crate::config::{self, Config, ConfigErrors, Effect};
use crate::lifecycle::in_turns;
use crate::liveness::{CloseHow, CloseReason};
use crate::metrics::ReloadOutcome;
use crate::server::{Listener, StartError};
use crate::session::Session;
use crate::telemetry::LogSwitch;
use crate::view::ReloadReport;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Requests that may wait for their turn; the others are made to.
const WAITING: usize = 4;

/// Where the configuration came from, and what of it can change outside of the app.
#[derive(Debug, Default)]
pub struct Source {
    /// `None`: from flags.
    pub file: Option<ConfigFile>,
    /// `None`: nothing is logged.
    pub log: Option<LogSwitch>,
}

/// A configuration file, and what it was when it was last looked at.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    seen: Option<Stamp>,
    tried: Option<Stamp>,
}

/// What changes when a file is written or replaced, by a link to another one, too: device, inode,
/// size, and the times of the last change of its bytes and of its inode.
type Stamp = ([u64; 3], [i64; 4]);

/// `None` for what is no regular file: a pipe cannot be read again.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let written = [found.mtime(), found.mtime_nsec()];
    let changed = [found.ctime(), found.ctime_nsec()];
    let times = [written[0], written[1], changed[0], changed[1]];
    Some(([found.dev(), found.ino(), found.size()], times))
}

impl ConfigFile {
    /// To be called before it is read for the first time.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let found = stamp(&path);
        let (seen, tried) = (found, found);
        Self { path, seen, tried }
    }

    /// Whether it is another one than was read last, and still the one that was seen last: whoever
    /// writes it is given the time between two looks.
    fn has_changed(&mut self) -> bool {
        let found = stamp(&self.path);
        let is_settled = mem::replace(&mut self.seen, found) == found;
        is_settled && found != self.tried
    }

    fn read(&mut self) -> Result<Config, ConfigErrors> {
        self.tried = stamp(&self.path);
        // A FIFO would be waited for.
        match fs::metadata(&self.path) {
            Ok(found) if !found.is_file() => {
                let line = format!("{}: is not a regular file", self.path.display());
                Err(ConfigErrors::one(line))
            }
            _ => config::load_file(&self.path),
        }
    }
}

type Outcome = Result<ReloadReport, NotReloaded>;

/// One who asks, and waits for the outcome.
type Asked = oneshot::Sender<Outcome>;

/// How the thread that follows the file is asked.
#[derive(Clone, Debug)]
pub(super) struct Requests(mpsc::Sender<Asked>);

/// What that thread begins with.
pub(super) type Followed = (ConfigFile, mpsc::Receiver<Asked>);

impl Requests {
    /// With a file, what [`App::follow_file`] needs.
    pub fn new(file: Option<ConfigFile>) -> (Self, Option<Followed>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), file.map(|file| (file, receiver)))
    }

    /// Has the file read again.
    pub async fn ask(&self) -> Outcome {
        let (asked, outcome) = oneshot::channel();
        // Nobody follows a file.
        let no_file =
            |()| NotReloaded::Impossible("started from flags: there is no file".to_owned());
        let sent = self.0.send(asked).await;
        sent.map_err(|_| no_file(()))?;
        outcome.await.map_err(|_| no_file(()))?
    }

    /// The same at each SIGHUP.
    pub async fn ask_at(self, hangups: Arc<Notify>) {
        loop {
            hangups.notified().await;
            if let Err(NotReloaded::Impossible(why)) = self.ask().await {
                tracing::warn!("SIGHUP: the configuration is not read again: {why}");
            }
        }
    }
}

impl App {
    /// Follows the file, if there is one, for as long as the process runs. On a thread of its own: a
    /// disk may keep it waiting.
    pub(super) fn follow_file(self: &Arc<Self>) -> io::Result<()> {
        let followed = self.followed.lock();
        let followed = followed.unwrap_or_else(PoisonError::into_inner).take();
        let Some((file, asked)) = followed else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let app = self.clone();
        let thread = thread::Builder::new().name("reload".to_owned());
        let follow = move || runtime.block_on(follow(app, file, asked));
        thread.spawn(follow).map(drop)
    }

    fn reload(self: &Arc<Self>, file: &mut ConfigFile) -> Outcome {
        if self.readiness() == Readiness::Draining {
            return Err(NotReloaded::Impossible("it drains".to_owned()));
        }
        let wanted = file.read().map_err(|errors| errors.lines().to_vec());
        let outcome = wanted.and_then(|wanted| self.take_up(&wanted));
        // What is over is forgotten, whether or not somebody asks for metrics.
        drop(self.registry.listeners());
        match outcome {
            Ok(report) => {
                self.metrics.reloaded(ReloadOutcome::Success);
                tell(&report);
                Ok(report)
            }
            Err(lines) => {
                self.metrics.reloaded(ReloadOutcome::Failure);
                lines.iter().for_each(|line| tracing::error!("{line}"));
                tracing::error!("the configuration was not reloaded: nothing has changed");
                Err(NotReloaded::Refused(lines))
            }
        }
    }

    /// Has a configuration be in force, as far as it can be. The error says why it is not at all.
    fn take_up(self: &Arc<Self>, wanted: &Config) -> Result<ReloadReport, Vec<String>> {
        let before = self.running();
        let after = before.within_reach(wanted);
        let workers = resources::workers(&after);
        let capacity = resources::session_capacity(&after, self.descriptor_limit, workers);
        let capacity = capacity.map_err(|error| vec![error.to_string()])?;
        let removed = self
            .serve_on(&after)
            .map_err(|error| vec![error.to_string()])?;
        self.registry.workers.resize(capacity);
        if let Some(log) = &self.log {
            log.set(&after.log);
        }
        tokio::spawn(self.clone().drain_removed(&removed, after.drain.timeout));
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        Ok(report(&before, wanted))
    }

    /// Adds, replaces and removes listeners, so that they are those of a configuration. Nothing changes
    /// for the others, nor for any session. Returns those that are removed.
    ///
    /// # Errors
    /// The first address that could not be had; then all is as before.
    pub(super) fn serve_on(&self, config: &Config) -> Result<Vec<Arc<Listener>>, StartError> {
        let before = self.registry.listeners();
        let changed = listeners::apply(config, &self.registry, &self.metrics, Vec::new())?;
        // One that takes the place of another is as open as that: it may wait for a device.
        let is_new = |l: &&Arc<Listener>| before.iter().all(|b| b.config.name != l.config.name);
        for listener in changed.added.iter().filter(is_new) {
            listener.open();
        }
        Ok(changed.removed)
    }

    /// The sessions of listeners that were removed may finish, like those of a process that drains. A
    /// listener itself is not kept for that long: it has a table of rates.
    pub(super) fn drain_removed(
        self: Arc<Self>,
        removed: &[Arc<Listener>],
        timeout: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let removed: Vec<_> = removed.iter().map(|l| Arc::downgrade(&l.params)).collect();
        async move {
            if removed.is_empty() {
                return;
            }
            let is_of = |session: &Session| {
                let params = Arc::as_ptr(&session.params);
                removed.iter().any(|removed| removed.as_ptr() == params)
            };
            in_turns(timeout, |turn| self.finish_quiet_of(turn, is_of)).await;
            let over = order(CloseReason::Drain, CloseHow::Flush);
            self.balancer().for_each(|session| {
                if is_of(session) {
                    session.order(over);
                }
            });
        }
    }
}

async fn follow(app: Arc<App>, mut file: ConfigFile, mut asked: mpsc::Receiver<Asked>) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            asked = asked.recv() => match asked {
                Some(asked) => Some(asked),
                None => return,
            },
            _ = looks.tick() => None,
        };
        match asked {
            // He may have gone.
            Some(asked) => drop(asked.send(app.reload(&mut file))),
            None if app.running().reload.watch && file.has_changed() => {
                drop(app.reload(&mut file));
            }
            None => {}
        }
    }
}

/// What becomes of each key that differs.
fn report(before: &Config, wanted: &Config) -> ReloadReport {
    let mut report = ReloadReport::default();
    for config::Difference { path, effect } in config::diff(before, wanted) {
        match effect {
            Effect::Applied => report.applied.push(path),
            Effect::NewSessions => report.new_sessions_only.push(path),
            Effect::Restart => report.needs_restart.push(path),
        }
    }
    report
}

fn tell(report: &ReloadReport) {
    let list = |keys: &[String]| (!keys.is_empty()).then(|| keys.join(", "));
    tracing::info!(
        applied = list(&report.applied),
        new_sessions_only = list(&report.new_sessions_only),
        needs_restart = list(&report.needs_restart),
        "the configuration was reloaded{}",
        if report.is_empty() {
            ": nothing differs"
        } else {
            ""
        },
    );
}
