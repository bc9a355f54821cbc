//! The sessions of one worker, and when each is to be observed.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tokio::sync::Notify;

use super::Session;
use crate::liveness::{Span, Time};

/// How old a session is before it is put under watch: a shorter one does not pay for it.
const WATCH_AFTER: Span = Span::ms(250);
/// So many entries of the queue beyond twice the sessions are not worth the work.
const STALE: usize = 1024;
/// Sessions that come one after the other are put under watch together, at a multiple of this.
const WATCH_GRID: Span = Span::ms(50);

/// The sessions of one worker. Locked for moments only: at a session's begin and end, and by the
/// monitor.
#[derive(Debug, Default)]
pub struct Table {
    inner: Mutex<Inner>,
    count: AtomicUsize,
    /// Something is due earlier than the monitor knew.
    pub(super) earlier: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: Slab<Arc<Session>>,
    /// When to observe which session. An entry whose time is not the session's `due` is stale.
    queue: BinaryHeap<Reverse<(Time, u32)>>,
    /// Sessions that are not under watch yet, oldest first.
    unwatched: VecDeque<(Time, u32, u64)>,
    /// When the monitor will wake up.
    wakes_at: Option<Time>,
}

impl Table {
    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` for every session, without holding the table for longer than it takes to
    /// copy a slice of it.
    pub fn for_each(&self, mut each: impl FnMut(&Arc<Session>)) {
        const SLICE: usize = 256;
        let mut from = 0;
        loop {
            let slice: Vec<Arc<Session>> = {
                let inner = self.lock();
                let capacity = inner.sessions.capacity();
                if from >= capacity {
                    return;
                }
                let keys = from..capacity.min(from + SLICE);
                from = keys.end;
                keys.filter_map(|key| inner.sessions.get(key).cloned())
                    .collect()
            };
            slice.iter().for_each(&mut each);
        }
    }

    /// Takes a session in; returns its key.
    pub fn insert(&self, session: Arc<Session>) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // Two descriptors a session: there can never be that many.
        u32::try_from(self.lock().sessions.insert(session)).unwrap_or(u32::MAX)
    }

    pub(super) fn remove(&self, key: u32) {
        self.count.fetch_sub(1, Ordering::Release);
        let mut inner = self.lock();
        inner.sessions.try_remove(key as usize);
        if inner.sessions.is_empty() {
            // A burst is over: its memory goes back.
            inner.sessions.shrink_to_fit();
            inner.queue.clear();
            inner.queue.shrink_to_fit();
            inner.unwatched.clear();
            inner.unwatched.shrink_to_fit();
        }
    }

    /// Has the monitor put the session under watch once it is old enough.
    pub(super) fn watch_later(&self, now: Time, key: u32, id: u64) {
        let mut inner = self.lock();
        let due = (now + WATCH_AFTER).next_multiple_of(WATCH_GRID);
        inner.unwatched.push_back((due, key, id));
        self.wake_for(&inner, due);
    }

    /// Has the monitor observe the session at `due`.
    pub fn schedule(&self, due: Time, key: u32) {
        let mut inner = self.lock();
        inner.queue.push(Reverse((due, key)));
        self.wake_for(&inner, due);
    }

    /// Takes up to `most` sessions that are due; the flag says that it is not under watch
    /// yet.
    pub fn take_due(&self, now: Time, most: usize) -> Vec<(Time, u32, Arc<Session>, bool)> {
        let mut inner = self.lock();
        let mut due = Vec::new();
        while due.len() < most {
            let Some(&(at, key, id)) = inner.unwatched.front().filter(|(at, ..)| *at <= now) else {
                break;
            };
            inner.unwatched.pop_front();
            if let Some(session) = inner.sessions.get(key as usize).filter(|s| s.id == id) {
                due.push((at, key, session.clone(), true));
            }
        }
        while due.len() < most {
            let Some(&Reverse((at, key))) = inner.queue.peek().filter(|e| e.0.0 <= now) else {
                break;
            };
            inner.queue.pop();
            if let Some(session) = inner.sessions.get(key as usize) {
                due.push((at, key, session.clone(), false));
            }
        }
        due
    }

    /// Keeps the queue from growing with entries of sessions that have ended, or were observed
    /// sooner: where these are most of it, it is made anew of those that hold.
    pub(super) fn drop_stale(&self, holds: impl Fn(Time, &Session) -> bool) {
        let old: Vec<_> = {
            let mut inner = self.lock();
            if inner.queue.len() < 2 * inner.sessions.len() + STALE {
                return;
            }
            let old = std::mem::take(&mut inner.queue);
            let session = |key: u32| inner.sessions.get(key as usize).cloned();
            let entries = old.into_iter().map(|Reverse(entry)| entry);
            entries
                .filter_map(|(at, key)| Some((at, key, session(key)?)))
                .collect()
        };
        // A session is never locked while the table is.
        let kept = old.iter().filter(|(at, _, session)| holds(*at, session));
        let kept = kept.map(|(at, key, _)| Reverse((*at, *key)));
        let kept: BTreeSet<_> = kept.collect();
        self.lock().queue.extend(kept);
    }

    /// When something is due next; the monitor will sleep until then.
    pub(super) fn sleep_until(&self) -> Option<Time> {
        let mut inner = self.lock();
        let unwatched = inner.unwatched.front().map(|(at, ..)| *at);
        let next = inner
            .queue
            .peek()
            .map(|e| e.0.0)
            .into_iter()
            .chain(unwatched)
            .min();
        inner.wakes_at = next;
        next
    }

    fn wake_for(&self, inner: &Inner, due: Time) {
        if inner.wakes_at.is_none_or(|at| due < at) {
            self.earlier.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a long D their observations are due in a day, and sessions come and go.
    #[test]
    fn sessions_that_have_ended_leave_nothing_in_the_queue() {
        let table = Table::default();
        for n in 0..100_000 {
            table.schedule(Time::ms(86_400_000 + n), 0);
            table.drop_stale(|_, _| true);
        }
        let left = table.lock().queue.len();
        assert!(left <= STALE, "{left} entries");
    }
}
