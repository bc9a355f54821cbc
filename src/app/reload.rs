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

use super::materials::Materials;
use super::{App, listeners, manager, order, resources};
use crate::admin::{Control, NotReloaded, Readiness};
use crate::config::{self, Config, ConfigErrors, Effect};
use crate::lifecycle::in_turns;
use crate::liveness::{CloseHow, CloseReason};
use crate::metrics::ReloadOutcome;
use crate::server::{Listener, StartError};
use crate::session::Session;
use crate::telemetry::LogSwitch;
use crate::view::{AskedBy, ReloadReport};

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

/// A configuration file, and what it was before it was read.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    stamp: Option<Stamp>,
}

/// The configuration file, the files that the configuration names, and what all of them were when they were
/// last looked at.
#[derive(Debug)]
pub(super) struct Watched {
    /// `None`: from flags.
    config: Option<PathBuf>,
    /// Certificates and keys.
    others: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    tried: Vec<Option<Stamp>>,
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
        let stamp = stamp(&path);
        Self { path, stamp }
    }
}

impl Watched {
    /// To be called before the files that the configuration names are read for the first time.
    pub fn new(file: Option<ConfigFile>, config: &Config) -> Self {
        let stamp = file.as_ref().map(|file| file.stamp);
        let mut watched = Self {
            config: file.map(|file| file.path),
            others: Vec::new(),
            seen: Vec::new(),
            tried: stamp.into_iter().collect(),
        };
        watched.follow(config);
        watched.seen = watched.tried.clone();
        watched
    }

    /// The configuration file.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Whether there is nothing to look at.
    fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }

    /// Whether any of them is another one than was read last, and all are still those that were seen last:
    /// whoever writes them is given the time between two looks.
    fn has_changed(&mut self) -> bool {
        let all = self.config.iter().chain(&self.others);
        let found: Vec<_> = all.map(|path| stamp(path)).collect();
        let is_settled = mem::replace(&mut self.seen, found.clone()) == found;
        is_settled && found != self.tried
    }

    /// What is wanted now. From flags: what is running, with what its files hold now.
    fn read(&mut self, running: &Config) -> Result<Config, ConfigErrors> {
        let wanted = match self.config.clone() {
            Some(path) => self.read_file(&path)?,
            None => running.clone(),
        };
        self.follow(&wanted);
        Ok(wanted)
    }

    fn read_file(&mut self, path: &Path) -> Result<Config, ConfigErrors> {
        self.tried[0] = stamp(path);
        // A FIFO would be waited for.
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                let line = format!("{}: is not a regular file", path.display());
                Err(ConfigErrors::one(line))
            }
            _ => config::load_file(path),
        }
    }

    /// The files that this configuration names are to be read next.
    fn follow(&mut self, config: &Config) {
        self.others = config.tls_files().map(Path::to_owned).collect();
        self.tried.truncate(usize::from(self.config.is_some()));
        self.tried
            .extend(self.others.iter().map(|path| stamp(path)));
    }
}

type Outcome = Result<ReloadReport, NotReloaded>;

/// One who asks, and waits for the outcome.
type Asked = (AskedBy, oneshot::Sender<Outcome>);

/// How the thread that follows the file is asked.
#[derive(Clone, Debug)]
pub(super) struct Requests(mpsc::Sender<Asked>);

/// What that thread begins with.
pub(super) type Followed = (Watched, mpsc::Receiver<Asked>);

impl Requests {
    /// With a file, what [`App::follow_file`] needs.
    pub fn new(watched: Watched) -> (Self, Option<Followed>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let followed = (!watched.is_empty()).then_some((watched, receiver));
        (Self(sender), followed)
    }

    /// Has the files read again.
    pub async fn ask(&self, by: AskedBy) -> Outcome {
        let (asked, outcome) = oneshot::channel();
        // Nobody follows a file.
        let no_file =
            |()| NotReloaded::Impossible("started from flags: there is no file".to_owned());
        let sent = self.0.send((by, asked)).await;
        sent.map_err(|_| no_file(()))?;
        outcome.await.map_err(|_| no_file(()))?
    }

    /// The same at each SIGHUP.
    pub async fn ask_at(self, hangups: Arc<Notify>) {
        loop {
            hangups.notified().await;
            if let Err(NotReloaded::Impossible(why)) = self.ask(AskedBy::Sighup).await {
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
        let Some((watched, asked)) = followed else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let app = self.clone();
        let thread = thread::Builder::new().name("reload".to_owned());
        let follow = move || runtime.block_on(follow(app, watched, asked));
        thread.spawn(follow).map(drop)
    }

    fn reload(self: &Arc<Self>, watched: &mut Watched, by: AskedBy) -> Outcome {
        if self.readiness() == Readiness::Draining {
            return Err(NotReloaded::Impossible("it drains".to_owned()));
        }
        manager::reloading();
        let outcome = self.read_again(watched, by);
        manager::ready();
        outcome
    }

    fn read_again(self: &Arc<Self>, watched: &mut Watched, by: AskedBy) -> Outcome {
        let wanted = watched.read(&self.running());
        let wanted = wanted.map_err(|errors| errors.lines().to_vec());
        let outcome = wanted.and_then(|wanted| self.take_up(&wanted, watched.file()));
        // What is over is forgotten, whether or not somebody asks for metrics.
        drop(self.registry.listeners());
        self.history
            .add(by, outcome.as_ref().map_err(Vec::as_slice));
        match outcome {
            Ok(report) => {
                self.metrics.reloaded(ReloadOutcome::Success);
                tell(&report);
                self.warn_of_unused_sockets();
                Ok(report)
            }
            Err(lines) => {
                self.metrics.reloaded(ReloadOutcome::Failure);
                let say = |line: &String| tracing::error!("the configuration is wrong: {line}");
                lines.iter().for_each(say);
                tracing::error!("the configuration was not reloaded: nothing has changed");
                Err(NotReloaded::Refused(lines))
            }
        }
    }

    /// Has a configuration be in force, as far as it can be. The error says why it is not at all.
    fn take_up(
        self: &Arc<Self>,
        wanted: &Config,
        file: Option<&Path>,
    ) -> Result<ReloadReport, Vec<String>> {
        let before = self.running();
        let after = before.within_reach(wanted);
        let workers = resources::workers(&after);
        let capacity = resources::session_capacity(&after, self.descriptor_limit, workers);
        let capacity = capacity.map_err(|error| vec![error.to_string()])?;
        let serving = self.registry.serving();
        let materials = Materials::load(&after, &serving, self.board.tls(), file);
        let mut materials = materials.map_err(|errors| errors.lines().to_vec())?;
        let removed = self
            .serve_on(&after, &materials)
            .map_err(|error| vec![error.to_string()])?;
        let mut report = report(&before, wanted);
        report.applied.extend(materials.put_in_force());
        materials.report(&self.metrics);
        self.board.post();
        self.registry.workers.resize(capacity);
        if let Some(log) = &self.log {
            log.set(&after.log);
        }
        tokio::spawn(self.clone().drain_removed(&removed, after.drain.timeout));
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        Ok(report)
    }

    /// Adds, replaces and removes listeners, so that they are those of a configuration. Nothing changes
    /// for the others, nor for any session. Returns those that are removed.
    ///
    /// # Errors
    /// The first address that could not be had; then all is as before.
    pub(super) fn serve_on(
        &self,
        config: &Config,
        materials: &Materials,
    ) -> Result<Vec<Arc<Listener>>, StartError> {
        let before = self.registry.listeners();
        let changed =
            listeners::apply(config, materials, &self.registry, &self.metrics, Vec::new())?;
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

async fn follow(app: Arc<App>, mut watched: Watched, mut asked: mpsc::Receiver<Asked>) {
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
            Some((by, asked)) => drop(asked.send(app.reload(&mut watched, by))),
            None if app.running().reload.watch && watched.has_changed() => {
                drop(app.reload(&mut watched, AskedBy::Watch));
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
