//! The worker threads, and which of them carry the sessions.
//!
//! Each worker that wakes up for a message pays for the wake-up, and two workers that are nearly
//! idle pay it more often than one that has the work of both. So one worker begins, another one is
//! taken into use when one runs all the time, and it is given up when the others can
//! do its work. A session migrates when it was woken up, with the bytes it holds: its sockets are
//! registered with the other worker's epoll.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::Notify;

use super::{Session, Table};
use crate::liveness::{Span, Time};
use crate::sys;

/// A worker is measured over at least this long.
const WINDOW: Span = Span::ms(200);
/// Wake-ups of sessions between two readings of the clock.
const READ_CLOCK_EVERY: u32 = 64;
/// A measurement older than this says nothing: the worker has hardly woken up since.
const STALE: Span = Span::ms(1000);
/// A worker that runs for longer than this is full, permille of the time. One that waits for a
/// processor is not: where there is none left, another worker has none, either.
const FULL: u32 = 900;
/// So much busier than another one is uneven, permille.
const UNEVEN: u32 = 300;
/// One worker less will do when the others would not be busier than this, permille, ...
const CALM: u32 = 500;
/// ... for so long.
const CALM_FOR: Span = Span::ms(1000);
/// A worker that gave sessions away is given time to show what that brought.
const SETTLES: Span = Span::ms(500);
/// A worker has clearly more sessions than another when it has more than 9/8 of them.
const MORE: (usize, usize) = (9, 8);

/// All workers.
#[derive(Debug)]
pub struct Balancer {
    workers: Vec<Arc<Worker>>,
    in_use: AtomicUsize,
    plan: Mutex<Plan>,
    /// Written by a session while it changes tables, read by whoever lists them.
    moves: RwLock<()>,
    /// See [`Coming`].
    coming: AtomicUsize,
    /// None is left of them.
    gone: Notify,
}

/// One data-plane thread: its runtime, its sessions, and its place among the others.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    runtime: Handle,
    table: Table,
    /// An [`Advice`]: the only thing that a session reads on each wake-up.
    advice: AtomicU32,
    all: Weak<Balancer>,
}

/// Makes a drain wait: held while clients are accepted, and while a session's books are closed.
#[derive(Debug)]
pub struct Coming(Arc<Balancer>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.gone.notify_one();
        }
    }
}

thread_local! {
    /// Of the worker of this thread: wake-ups since the window began, when that was, and what the
    /// thread's time was then.
    static METER: Cell<(u32, Time, u64)> = const { Cell::new((0, Time::ms(0), 0)) };
}

impl Balancer {
    /// One worker for each runtime. There must be one at least.
    #[must_use]
    pub fn new(runtimes: impl IntoIterator<Item = Handle>) -> Arc<Self> {
        Arc::new_cyclic(|all| {
            let worker = |(index, runtime)| Worker {
                index,
                runtime,
                table: Table::default(),
                advice: AtomicU32::new(0),
                all: all.clone(),
            };
            let workers = runtimes.into_iter().enumerate().map(worker).map(Arc::new);
            let workers: Vec<_> = workers.collect();
            Self {
                in_use: AtomicUsize::new(1),
                plan: Mutex::new(Plan::new(workers.len())),
                moves: RwLock::default(),
                coming: AtomicUsize::new(0),
                gone: Notify::new(),
                workers,
            }
        })
    }

    /// All of them.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Calls `each` once for every session of all workers; none migrates meanwhile.
    pub fn for_each(&self, mut each: impl FnMut(&Arc<Session>)) {
        let _nobody_moves = self.moves.read().unwrap_or_else(PoisonError::into_inner);
        let tables = self.workers.iter().map(|worker| &worker.table);
        tables.for_each(|table| table.for_each(&mut each));
    }

    /// How many sessions all workers have; none migrates meanwhile.
    #[must_use]
    pub fn sessions(&self) -> usize {
        let _nobody_moves = self.moves.read().unwrap_or_else(PoisonError::into_inner);
        self.workers.iter().map(|worker| worker.table.len()).sum()
    }

    /// How many workers carry sessions at present.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Waits until there is no session, and none comes any more. One may wait.
    pub async fn emptied(&self) {
        let none = || self.coming.load(Ordering::Acquire) == 0;
        // In this order: whoever accepts has put its clients into a table before it goes, and a session
        // is here again before it leaves the table.
        while !(none() && self.sessions() == 0 && none()) {
            self.gone.notified().await;
        }
    }

    /// Has every session of one worker migrate to another one, until the next measurement.
    #[cfg(test)]
    pub(crate) fn move_all(&self, from: usize, to: usize) {
        self.advise(from, Advice::everything(to));
        self.advise(to, Advice::default());
    }

    /// As if this worker had run all the time.
    #[cfg(test)]
    pub(crate) fn fill(&self, worker: usize) {
        let seen = Seen {
            busy: 1000,
            sessions: self.workers[worker].table.len(),
        };
        self.report(sys::now(), worker, seen);
    }

    /// Tasks of all workers.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> usize {
        let tasks = |worker: &Arc<Worker>| worker.runtime.metrics().num_alive_tasks();
        self.workers.iter().map(tasks).sum()
    }

    /// The worker that accepts clients at the socket of `own`: another one while `own` is not in
    /// use, so that its thread is not woken up only to hand clients over.
    #[must_use]
    pub fn acceptor(&self, own: &Worker) -> &Arc<Worker> {
        &self.workers[own.index % self.in_use()]
    }

    /// The worker that a client at the socket of `own` belongs to: `own`, or one in use that has
    /// clearly fewer sessions.
    #[must_use]
    pub fn place(&self, own: &Worker) -> &Arc<Worker> {
        if self.in_use() > 1 && self.sessions() == 0 {
            // The next load begins on one.
            self.plan().in_use = 1;
            self.in_use.store(1, Ordering::Relaxed);
        }
        let sessions = |index: usize| self.workers[index].table.len();
        let in_use = self.in_use();
        let least = (0..in_use).min_by_key(|index| sessions(*index));
        let least = least.unwrap_or_default();
        let clearly = || sessions(own.index) * MORE.1 > (sessions(least) + 1) * MORE.0;
        if own.index >= in_use || clearly() {
            &self.workers[least]
        } else {
            &self.workers[own.index]
        }
    }

    fn report(&self, now: Time, worker: usize, seen: Seen) {
        let mut plan = self.plan();
        for (worker, advice) in plan.report(now, worker, seen) {
            self.advise(worker, advice);
        }
        self.in_use.store(plan.in_use, Ordering::Relaxed);
    }

    fn advise(&self, worker: usize, advice: Advice) {
        let advice = advice.pack();
        self.workers[worker].advice.store(advice, Ordering::Relaxed);
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Its sessions.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Runs a task on its thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// Sockets are registered with its epoll for as long as the result lives.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Has a drain wait until the result is dropped.
    #[must_use]
    pub fn coming(&self) -> Option<Coming> {
        let all = self.all.upgrade()?;
        all.coming.fetch_add(1, Ordering::Relaxed);
        Some(Coming(all))
    }

    /// Where a session is to migrate to, if anywhere. Asked at each wake-up.
    pub(super) fn migration(&self, id: u64) -> Option<Arc<Self>> {
        let advice = Advice::unpack(self.advice.load(Ordering::Relaxed));
        if !advice.concerns(id) {
            return None;
        }
        let all = self.all.upgrade()?;
        all.workers.get(usize::from(advice.to)).cloned()
    }

    /// Has a session change tables by `change`, unless somebody lists them, or another
    /// one migrates: it can as well do so the next time.
    pub(super) fn unless_listed<T>(&self, change: impl FnOnce() -> T) -> Option<T> {
        let all = self.all.upgrade()?;
        let _moving = all.moves.try_write().ok()?;
        Some(change())
    }

    /// A session of this worker has been woken up. Called on the worker's thread.
    pub(super) fn woken(&self) {
        let (wake_ups, since, before) = METER.get();
        let wake_ups = wake_ups.wrapping_add(1);
        METER.set((wake_ups, since, before));
        if !wake_ups.is_multiple_of(READ_CLOCK_EVERY) {
            return;
        }
        let now = sys::now();
        let span = now - since;
        if span < WINDOW {
            return;
        }
        let time = sys::thread_time();
        METER.set((0, now, time));
        let used = time.saturating_sub(before);
        let seen = Seen {
            // Microseconds in a millisecond are permille.
            busy: u32::try_from(used / span.as_millis()).unwrap_or(u32::MAX),
            sessions: self.table.len(),
        };
        if let Some(all) = self.all.upgrade().filter(|all| all.workers.len() > 1) {
            all.report(now, self.index, seen);
        }
    }
}

/// Sessions of a worker that are to migrate as soon as they wake up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Advice {
    /// To this worker.
    to: u16,
    /// So many of 256; all where it is the largest.
    share: u8,
    /// Others than last time.
    salt: u8,
}

impl Advice {
    fn everything(to: usize) -> Self {
        Self {
            to: u16::try_from(to).unwrap_or(u16::MAX),
            share: u8::MAX,
            salt: 0,
        }
    }

    const fn pack(self) -> u32 {
        let [low, high] = self.to.to_le_bytes();
        u32::from_le_bytes([low, high, self.share, self.salt])
    }

    const fn unpack(packed: u32) -> Self {
        let [low, high, share, salt] = packed.to_le_bytes();
        let to = u16::from_le_bytes([low, high]);
        Self { to, share, salt }
    }

    /// Whether the session is one of the share.
    fn concerns(self, id: u64) -> bool {
        // Fibonacci hashing: neighbours are spread, and each salt chooses others.
        let salted = id ^ u64::from(self.salt) << 32;
        let hash = salted.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        self.share == u8::MAX || hash < u64::from(self.share)
    }
}

/// Which workers are in use. Pure: measurements and time in, advice out.
#[derive(Debug)]
struct Plan {
    in_use: usize,
    workers: Vec<Load>,
    /// Since when one less would do.
    calm_since: Option<Time>,
    salt: u8,
}

/// A measurement of a worker.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// What its thread ran, permille of the time.
    busy: u32,
    sessions: usize,
}

/// What is known of a worker.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    busy: u32,
    at: Time,
    /// When it last gave sessions away.
    gave: Time,
}

impl Plan {
    fn new(workers: usize) -> Self {
        Self {
            in_use: 1,
            workers: vec![Load::default(); workers],
            calm_since: None,
            salt: 0,
        }
    }

    /// Takes in how busy a worker was; returns the advice that changes with it.
    fn report(&mut self, now: Time, me: usize, seen: Seen) -> Vec<(usize, Advice)> {
        let busy = seen.busy;
        self.workers[me].busy = busy;
        self.workers[me].at = now;
        if me >= self.in_use {
            // Its advice stays: whoever is left there goes.
            return Vec::new();
        }
        if let Some(dropped) = self.one_less(now) {
            let to = self.least_busy(now, dropped);
            return vec![(dropped, Advice::everything(to))];
        }
        // What was advised at the last measurement has been done.
        let mut advice = vec![(me, Advice::default())];
        // One session alone is as heavy elsewhere.
        if busy < FULL || seen.sessions < 2 || now < self.workers[me].gave + SETTLES {
            return advice;
        }
        let mut to = self.least_busy(now, me);
        if self.busy(now, to) + UNEVEN > busy || to == me {
            if self.in_use == self.workers.len() {
                return advice;
            }
            to = self.in_use;
            self.in_use += 1;
            self.calm_since = None;
            advice.push((to, Advice::default()));
        }
        let surplus = busy.saturating_sub(self.busy(now, to)) / 2;
        self.salt = self.salt.wrapping_add(1);
        self.workers[me].gave = now;
        advice[0].1 = Advice {
            // Under one half, so never all.
            share: u8::try_from(surplus * 256 / busy.max(1)).unwrap_or(128),
            salt: self.salt,
            ..Advice::everything(to)
        };
        advice
    }

    /// Takes a worker out of use when the others could do its work for a while.
    fn one_less(&mut self, now: Time) -> Option<usize> {
        let all: u32 = (0..self.workers.len()).map(|w| self.busy(now, w)).sum();
        let others = u32::try_from(self.in_use - 1).unwrap_or(u32::MAX);
        if self.in_use == 1 || all > CALM.saturating_mul(others) {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now < since + CALM_FOR {
            return None;
        }
        self.calm_since = None;
        self.in_use -= 1;
        Some(self.in_use)
    }

    fn busy(&self, now: Time, worker: usize) -> u32 {
        let load = self.workers[worker];
        if load.at + STALE < now { 0 } else { load.busy }
    }

    /// Of those in use, other than one of them.
    fn least_busy(&self, now: Time, but: usize) -> usize {
        let others = (0..self.in_use).filter(|worker| *worker != but);
        others.min_by_key(|w| self.busy(now, *w)).unwrap_or(but)
    }
}

#[cfg(test)]
mod tests;
