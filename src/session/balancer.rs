//! The workers as one balancer: a session moves to another worker when its own is too busy, and few
//! workers carry all of them when there is little to do.
//!
//! Each worker that wakes up for a message pays for the wake-up, and two workers that are nearly
//! idle pay it more often than one that has the work of both. So one worker begins, another is
//! taken into use as soon as one is too busy, and given up after a calm while, or when it has no
//! session in a calm moment. A session moves between two messages, when it holds no byte: its
//! sockets are registered with the other worker's epoll.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use tokio::sync::Notify;

use super::{Session, Table};
use crate::liveness::{Span, Time};
use crate::sys;

/// A worker is measured over at least this long, ms.
const WINDOW: Span = Span::ms(50);
/// Wake-ups of sessions between two readings of the clock.
const READ_CLOCK_EVERY: u32 = 64;
/// A measurement older than this says nothing: the worker has hardly woken up since, ms.
const STALE: Span = Span::ms(1000);
/// Busier than this is too busy, permille of the time.
const TOO_BUSY: u32 = 700;
/// So much busier than another one is uneven, permille.
const UNEVEN: u32 = 300;
/// One worker less will do when the others would not be busier than this, permille, ...
const CALM: u32 = 350;
/// ... for so long, ms, ...
const CALM_FOR: Span = Span::ms(2000);
/// ... and at least so many sessions wake up in a second. Fewer hardly ever wake up together, so
/// nothing would be saved, and each would have to move.
const FREQUENT: u32 = 2000;
/// A worker that gave sessions away is given time to show what that brought, ms.
const SETTLES: Span = Span::ms(200);
/// A worker has clearly more sessions than another when it has more than 9/8 of them.
const MORE: (usize, usize) = (9, 8);

/// Something to start on the thread of another worker.
pub type Job = Box<dyn FnOnce() + Send>;

/// All workers.
#[derive(Debug)]
pub struct Balancer {
    tables: Vec<Arc<Table>>,
    in_use: AtomicUsize,
    plan: Mutex<Plan>,
    /// Written by a session while it changes tables, read by who looks at all of them.
    moves: RwLock<()>,
    /// See [`Coming`].
    coming: AtomicUsize,
    /// None is left of them.
    gone: Notify,
}

/// Whoever accepts clients, an accepted client that is in no table yet, and a session whose books are
/// being closed.
#[derive(Debug)]
pub struct Coming(Arc<Balancer>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.gone.notify_one();
        }
    }
}

/// What a table knows of the balancer.
#[derive(Default)]
pub(super) struct Seat {
    balancer: OnceLock<(Weak<Balancer>, usize)>,
    /// An [`Advice`], 0 for none: the only thing that a session looks at on each wake-up.
    advice: AtomicU64,
    inbox: Mutex<Vec<Job>>,
    arrived: Notify,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

thread_local! {
    /// Of the worker of this thread: wake-ups since the window began, when that was, and what the
    /// thread's time was then.
    static METER: Cell<(u32, Time, u64)> = const { Cell::new((0, Time::ms(0), 0)) };
}

impl Balancer {
    /// Makes a balancer of workers, each known by its table.
    #[must_use]
    pub fn new(tables: Vec<Arc<Table>>) -> Arc<Self> {
        let balancer = Arc::new(Self {
            in_use: AtomicUsize::new(1),
            plan: Mutex::new(Plan::new(tables.len())),
            moves: RwLock::default(),
            coming: AtomicUsize::new(0),
            gone: Notify::new(),
            tables,
        });
        for (index, table) in balancer.tables.iter().enumerate() {
            let _set_once = table.seat.balancer.set((Arc::downgrade(&balancer), index));
        }
        balancer
    }

    /// Calls `each` once for every session of all workers; none moves meanwhile.
    pub fn for_each(&self, mut each: impl FnMut(&Arc<Session>)) {
        let _nobody_moves = self.moves.read().unwrap_or_else(PoisonError::into_inner);
        self.tables
            .iter()
            .for_each(|table| table.for_each(&mut each));
    }

    /// How many sessions all workers have; none moves meanwhile.
    #[must_use]
    pub fn sessions(&self) -> usize {
        let _nobody_moves = self.moves.read().unwrap_or_else(PoisonError::into_inner);
        self.tables.iter().map(|table| table.len()).sum()
    }

    /// One more, until it is dropped.
    #[must_use]
    pub fn coming(self: &Arc<Self>) -> Coming {
        self.coming.fetch_add(1, Ordering::Relaxed);
        Coming(self.clone())
    }

    /// Waits until there is no session, and none comes any more. One may wait.
    pub async fn emptied(&self) {
        let none = || self.coming.load(Ordering::Acquire) == 0;
        // In this order: whoever comes is in a table before it has gone from here, and is here again
        // before it leaves the table.
        while !(none() && self.sessions() == 0 && none()) {
            self.gone.notified().await;
        }
    }

    /// How many workers carry sessions at present.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The worker that a client accepted by worker `own` is to be handed to, if another one.
    #[must_use]
    pub fn for_incoming(&self, own: usize) -> Option<usize> {
        let in_use = self.in_use();
        if in_use > 1 && self.tables[in_use - 1].is_empty() {
            self.give_up_idle(sys::now());
        }
        let in_use = &self.tables[..self.in_use()];
        let (least, table) = in_use.iter().enumerate().min_by_key(|(_, t)| t.len())?;
        let Some(own) = in_use.get(own) else {
            return Some(least);
        };
        (own.len() * MORE.1 > (table.len() + 1) * MORE.0).then_some(least)
    }

    /// Gives up workers that have no session, where the others can do with less.
    fn give_up_idle(&self, now: Time) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if !plan.is_calm(now) {
            return;
        }
        let needed = self.tables.iter().rposition(|table| !table.is_empty());
        plan.in_use = plan.in_use.min(needed.map_or(1, |last| last + 1));
        self.in_use.store(plan.in_use, Ordering::Relaxed);
        // Nor does anybody move to them.
        (0..self.tables.len()).for_each(|worker| self.advise(worker, None));
    }

    /// Has every session of one worker move to another one, until the next measurement.
    #[cfg(test)]
    pub(crate) fn move_all(&self, from: usize, to: usize) {
        self.advise(from, Some(Advice::everything(to)));
        self.advise(to, None);
    }

    fn advise(&self, worker: usize, advice: Option<Advice>) {
        let advice = advice.map_or(0, Advice::pack);
        self.tables[worker]
            .seat
            .advice
            .store(advice, Ordering::Relaxed);
    }

    fn report(&self, now: Time, worker: usize, seen: Seen) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        for (worker, advice) in plan.report(now, worker, seen) {
            self.advise(worker, advice);
        }
        self.in_use.store(plan.in_use, Ordering::Relaxed);
    }
}

impl Table {
    /// Has the worker of this table do something on its own thread.
    pub fn post(&self, job: Job) {
        let mut inbox = self
            .seat
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        inbox.push(job);
        drop(inbox);
        self.seat.arrived.notify_one();
    }

    /// Does what was posted; for as long as the worker runs.
    pub async fn work_off(self: Arc<Self>) {
        loop {
            let jobs = {
                let inbox = &self.seat.inbox;
                std::mem::take(&mut *inbox.lock().unwrap_or_else(PoisonError::into_inner))
            };
            jobs.into_iter().for_each(|job| job());
            self.seat.arrived.notified().await;
        }
    }

    /// Has a drain wait until it is dropped.
    pub(super) fn coming(&self) -> Option<Coming> {
        let (balancer, _) = self.seat.balancer.get()?;
        balancer.upgrade().map(|balancer| balancer.coming())
    }

    /// Where the session is to go, if anywhere.
    pub(super) fn elsewhere(&self, id: u64) -> Option<Arc<Self>> {
        let advice = Advice::unpack(self.seat.advice.load(Ordering::Relaxed))?;
        if !advice.concerns(id) {
            return None;
        }
        let (balancer, _) = self.seat.balancer.get()?;
        balancer.upgrade()?.tables.get(advice.to).cloned()
    }

    /// Has a session change tables by `change`, unless somebody looks at all of them, or another
    /// one moves: it can as well move the next time.
    pub(super) fn unless_looked_at<T>(&self, change: impl FnOnce() -> T) -> Option<T> {
        let (balancer, _) = self.seat.balancer.get()?;
        let balancer = balancer.upgrade()?;
        let _moving = balancer.moves.try_write().ok()?;
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
        let Some((balancer, worker)) = self.seat.balancer.get() else {
            return;
        };
        let time = sys::thread_time();
        METER.set((0, now, time));
        let limited = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let seen = Seen {
            // Microseconds in a millisecond are permille.
            busy: limited(time.saturating_sub(before) / span.as_millis()),
            wake_ups: limited(u64::from(wake_ups) * 1000 / span.as_millis()),
        };
        if let Some(balancer) = balancer
            .upgrade()
            .filter(|balancer| balancer.tables.len() > 1)
        {
            balancer.report(now, *worker, seen);
        }
    }
}

/// Sessions of a worker that are to move as soon as they wake up and hold no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Advice {
    /// To this worker.
    to: usize,
    /// So many of 256.
    share: u8,
    /// Others than last time.
    salt: u16,
}

impl Advice {
    const fn everything(to: usize) -> Self {
        Self {
            to,
            share: u8::MAX,
            salt: 0,
        }
    }

    const fn pack(self) -> u64 {
        1 << 63 | (self.to as u64) << 32 | (self.salt as u64) << 8 | self.share as u64
    }

    fn unpack(packed: u64) -> Option<Self> {
        let [share, low, high, ..] = packed.to_le_bytes();
        (packed != 0).then(|| Self {
            to: usize::try_from(packed >> 32 & 0xffff).unwrap_or_default(),
            share,
            salt: u16::from_le_bytes([low, high]),
        })
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
    salt: u16,
}

/// A measurement of a worker.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Permille of the time.
    busy: u32,
    /// Of its sessions, in a second.
    wake_ups: u32,
}

/// What is known of a worker.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    last: Seen,
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
    fn report(&mut self, now: Time, me: usize, seen: Seen) -> Vec<(usize, Option<Advice>)> {
        let busy = seen.busy;
        self.workers[me].last = seen;
        self.workers[me].at = now;
        if me >= self.in_use {
            // Its advice stays: whoever is left there goes.
            return Vec::new();
        }
        if let Some(dropped) = self.one_less(now) {
            let to = self.least_busy(now, dropped);
            return vec![(dropped, Some(Advice::everything(to)))];
        }
        // What was advised at the last measurement has been done.
        let mut advice = vec![(me, None)];
        if busy < TOO_BUSY || now < self.workers[me].gave + SETTLES {
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
            advice.push((to, None));
        }
        let surplus = busy.saturating_sub(self.busy(now, to)) / 2;
        self.salt = self.salt.wrapping_add(1);
        self.workers[me].gave = now;
        advice[0].1 = Some(Advice {
            to,
            // Under one half, so never all.
            share: u8::try_from(surplus * 256 / busy.max(1)).unwrap_or(128),
            salt: self.salt,
        });
        advice
    }

    /// Takes a worker out of use when the others could do its work for a while.
    fn one_less(&mut self, now: Time) -> Option<usize> {
        let wake_ups = self.all(now, |seen| seen.wake_ups);
        if self.in_use == 1 || !self.is_calm(now) || wake_ups < FREQUENT {
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

    /// Whether one worker less would do.
    fn is_calm(&self, now: Time) -> bool {
        let others = u32::try_from(self.in_use - 1).unwrap_or(u32::MAX);
        self.all(now, |seen| seen.busy) <= CALM.saturating_mul(others)
    }

    fn all(&self, now: Time, what: fn(Seen) -> u32) -> u32 {
        let loads = self.workers.iter();
        loads.map(|load| what(load.recent(now))).sum()
    }

    fn busy(&self, now: Time, worker: usize) -> u32 {
        self.workers[worker].recent(now).busy
    }

    /// Of those in use, other than one of them.
    fn least_busy(&self, now: Time, but: usize) -> usize {
        let others = (0..self.in_use).filter(|worker| *worker != but);
        others.min_by_key(|w| self.busy(now, *w)).unwrap_or(but)
    }
}

impl Load {
    fn recent(&self, now: Time) -> Seen {
        if self.at + STALE < now {
            Seen::default()
        } else {
            self.last
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn busy(busy: u32) -> Seen {
        Seen {
            busy,
            wake_ups: FREQUENT,
        }
    }

    fn share(advice: &[(usize, Option<Advice>)], of: usize) -> Option<(usize, u8)> {
        let (_, advice) = advice.iter().find(|(worker, _)| *worker == of)?;
        advice.map(|advice| (advice.to, advice.share))
    }

    fn spread(workers: usize) -> Plan {
        Plan {
            in_use: workers,
            ..Plan::new(workers)
        }
    }

    #[test]
    fn one_worker_does_what_one_can() {
        let mut plan = Plan::new(4);
        for now in (1000..9000).step_by(50) {
            assert_eq!(share(&plan.report(Time::ms(now), 0, busy(600)), 0), None);
        }
        assert_eq!(plan.in_use, 1);
    }

    #[test]
    fn a_busy_worker_gives_half_to_the_next() {
        let mut plan = Plan::new(2);
        assert_eq!(
            share(&plan.report(Time::ms(1000), 0, busy(900)), 0),
            Some((1, 128))
        );
        assert_eq!(plan.in_use, 2);
        // It is given time, and then all is well.
        assert_eq!(share(&plan.report(Time::ms(1050), 0, busy(900)), 0), None);
        plan.report(Time::ms(1200), 1, busy(500));
        assert_eq!(share(&plan.report(Time::ms(1250), 0, busy(500)), 0), None);
        assert_eq!(plan.in_use, 2);
    }

    #[test]
    fn work_goes_to_the_idler_one_before_another_is_used() {
        let mut plan = Plan::new(3);
        plan.report(Time::ms(1000), 0, busy(1000));
        plan.report(Time::ms(1300), 1, busy(200));
        let Some((1, given)) = share(&plan.report(Time::ms(1300), 0, busy(1000)), 0) else {
            panic!("nothing given");
        };
        assert!((100..=104).contains(&given), "{given}");
        assert_eq!(plan.in_use, 2);
        plan.report(Time::ms(1600), 1, busy(900));
        assert_eq!(
            share(&plan.report(Time::ms(1600), 0, busy(1000)), 0),
            Some((2, 128))
        );
        assert_eq!(plan.in_use, 3);
    }

    #[test]
    fn a_worker_without_a_session_is_given_up_at_once() {
        let balancer = Balancer::new((0..2).map(|_| Arc::default()).collect());
        balancer.report(Time::ms(1000), 0, busy(900));
        assert_eq!(balancer.in_use(), 2);
        balancer.give_up_idle(Time::ms(1001));
        assert_eq!(balancer.in_use(), 2, "it may be needed yet");
        balancer.give_up_idle(Time::ms(1001) + STALE);
        assert_eq!(balancer.in_use(), 1);
        assert!(balancer.tables[0].elsewhere(0).is_none());
        assert_eq!(balancer.for_incoming(0), None);
        assert_eq!(balancer.for_incoming(1), Some(0));
        balancer.report(Time::ms(9000), 0, busy(900));
        assert_eq!(balancer.in_use(), 2);
        balancer.report(Time::ms(9100), 0, busy(CALM));
        balancer.give_up_idle(Time::ms(9101));
        assert_eq!(balancer.in_use(), 1);
    }

    /// A client that was accepted is in a worker's inbox, and in no table.
    #[tokio::test]
    async fn whoever_comes_is_waited_for() {
        let balancer = Balancer::new((0..2).map(|_| Arc::default()).collect());
        let within = |span| {
            let balancer = balancer.clone();
            async move { tokio::time::timeout(span, balancer.emptied()).await.is_ok() }
        };
        let [short, long] = [Duration::from_millis(20), Duration::from_secs(20)];
        assert!(within(short).await);
        let [first, second] = [balancer.coming(), balancer.coming()];
        balancer.tables[1].post(Box::new(move || drop(second)));
        drop(first);
        assert!(!within(short).await, "it is in the inbox");
        let waits = tokio::spawn(within(long));
        tokio::time::sleep(short).await;
        tokio::spawn(balancer.tables[1].clone().work_off());
        assert!(waits.await.expect("no panic"), "nobody said so");
    }

    #[test]
    fn when_all_are_busy_nothing_moves() {
        let mut plan = spread(2);
        plan.report(Time::ms(1000), 0, busy(1000));
        for now in (1300..3000).step_by(50) {
            plan.report(Time::ms(now), 1, busy(1000));
            assert_eq!(share(&plan.report(Time::ms(now), 0, busy(1000)), 0), None);
        }
    }

    #[test]
    fn a_worker_is_given_up_after_a_calm_while() {
        let mut plan = spread(2);
        plan.report(Time::ms(1000), 0, busy(1000));
        plan.report(Time::ms(1300), 1, busy(100));
        for now in (1300..3300).step_by(100) {
            plan.report(Time::ms(now), 0, busy(200));
            assert_eq!(plan.in_use, 2, "{now}");
        }
        // The other one has not been heard of for a while: it hardly wakes up.
        let advice = plan.report(Time::ms(3300), 0, busy(200));
        assert_eq!(plan.in_use, 1);
        assert_eq!(share(&advice, 1), Some((0, u8::MAX)));
    }

    #[test]
    fn sessions_that_seldom_wake_up_stay_where_they_are() {
        let mut plan = spread(2);
        let seldom = Seen {
            busy: 50,
            wake_ups: FREQUENT - 1,
        };
        for now in (1000..9000).step_by(100) {
            assert_eq!(share(&plan.report(Time::ms(now), 0, seldom), 1), None);
        }
        assert_eq!(plan.in_use, 2);
    }

    #[test]
    fn advice_survives_its_packing_and_concerns_its_share() {
        let advice = Advice {
            to: 513,
            share: 64,
            salt: 40_000,
        };
        assert_eq!(Advice::unpack(advice.pack()), Some(advice));
        assert_eq!(Advice::unpack(0), None);
        let concerned = (0..10_000).filter(|id| advice.concerns(*id)).count();
        assert!((2_200..2_800).contains(&concerned), "{concerned}");
        let other = Advice { salt: 7, ..advice };
        let both = |id: &u64| advice.concerns(*id) && other.concerns(*id);
        assert!((0..10_000).filter(both).count() < 2_000);
        assert!((0..1000).all(|id| Advice::everything(1).concerns(id)));
    }
}
