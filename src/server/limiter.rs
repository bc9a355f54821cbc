//! Bounds how many sessions there are, in all and of one source.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Semaphore;

use crate::config::Network;

/// Gives out up to a number of permits at once; others queue, first come first served.
#[derive(Debug)]
pub struct Limiter {
    permits: Semaphore,
    limit: AtomicUsize,
    /// Permits beyond the limit that are held: it was lowered.
    excess: AtomicUsize,
    /// One clone for each that queues.
    queued: Arc<()>,
    /// Held by the one that makes room.
    pub(super) making_room: tokio::sync::Mutex<()>,
    /// Those of single sources that are in use: not more than there are sessions and waiting clients.
    sources: Mutex<HashMap<Network, Weak<Self>>>,
    /// Of a single source: that of all, and which one.
    within: Option<(Arc<Self>, Network)>,
}

/// The right to be one of them, of the source's and of all; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Limiter>);

/// The right to be one of a limiter's own; given back on drop.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Arc<Limiter>);

impl Limiter {
    /// So many permits at once; `None` is as many as there can be.
    #[must_use]
    pub fn new(limit: Option<usize>) -> Self {
        Self::within(limit, None)
    }

    fn within(limit: Option<usize>, within: Option<(Arc<Self>, Network)>) -> Self {
        let limit = permits(limit);
        Self {
            permits: Semaphore::new(limit),
            limit: AtomicUsize::new(limit),
            excess: AtomicUsize::new(0),
            queued: Arc::default(),
            making_room: tokio::sync::Mutex::default(),
            sources: Mutex::default(),
            within,
        }
    }

    /// The limiter of one source among all; it lives as long as somebody uses it.
    pub(super) fn of_source(self: &Arc<Self>, source: Network, limit: usize) -> Arc<Self> {
        let mut sources = self.sources();
        if let Some(known) = sources.get(&source).and_then(Weak::upgrade) {
            if known.limit.load(Ordering::Relaxed) != limit {
                known.resize(Some(limit));
            }
            return known;
        }
        let new = Arc::new(Self::within(Some(limit), Some((self.clone(), source))));
        sources.insert(source, Arc::downgrade(&new));
        new
    }

    /// The limiter of all that this one of a source is within.
    pub(super) fn of_all(&self) -> Option<&Arc<Self>> {
        self.within.as_ref().map(|(all, _)| all)
    }

    /// The source that this is the limiter of.
    pub(super) fn source(&self) -> Option<&Network> {
        self.within.as_ref().map(|(_, source)| source)
    }

    /// Whether it has nothing to give out itself.
    pub(super) fn is_full(&self) -> bool {
        self.permits.available_permits() == 0
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<Network, Weak<Self>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Permits that are held.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let all = self.limit.load(Ordering::Relaxed) + self.excess.load(Ordering::Relaxed);
        all.saturating_sub(self.permits.available_permits())
    }

    /// Changes the limit. Where more permits are held than it allows, none is given out until
    /// enough have come back. One may do so at a time.
    pub fn resize(&self, limit: Option<usize>) {
        let limit = permits(limit);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if limit < before {
            let fewer = before - limit;
            let held = fewer - self.permits.forget_permits(fewer);
            self.excess.fetch_add(held, Ordering::Relaxed);
        }
        let more = limit.saturating_sub(before);
        let settled = |excess: usize| Some(excess.saturating_sub(more));
        let relaxed = Ordering::Relaxed;
        let excess = self.excess.fetch_update(relaxed, relaxed, settled);
        let excess = excess.unwrap_or_default();
        self.permits.add_permits(more.saturating_sub(excess));
    }

    /// Whether a permit that is over was one beyond the limit.
    fn settle_excess(&self) -> bool {
        let relaxed = Ordering::Relaxed;
        let less = |excess: usize| excess.checked_sub(1);
        self.excess.fetch_update(relaxed, relaxed, less).is_ok()
    }

    /// A permit, unless all are held or others queue.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let turn = self.try_turn()?;
        let of_all = match self.of_all() {
            Some(all) => Some(all.try_turn()?),
            None => None,
        };
        Some(turn.with(of_all))
    }

    fn try_turn(self: &Arc<Self>) -> Option<Turn<'_>> {
        self.permits.try_acquire().ok()?.forget();
        Some(Turn(self))
    }

    /// Counts one that queues, until the result is dropped.
    #[must_use]
    pub fn count_queued(&self) -> Arc<()> {
        self.queued.clone()
    }

    /// How many were counted.
    #[must_use]
    pub fn queued(&self) -> usize {
        Arc::strong_count(&self.queued) - 1
    }

    /// Queues for one of its own.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn<'_> {
        match self.permits.acquire().await {
            Ok(permit) => permit.forget(),
            // Nobody closes the semaphore.
            Err(_closed) => std::future::pending().await,
        }
        Turn(self)
    }

    fn give_back(&self) {
        if !self.settle_excess() {
            self.permits.add_permits(1);
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        let Some((all, source)) = &self.within else {
            return;
        };
        let mut sources = all.sources();
        // The source may have come back meanwhile.
        let is_unused = |limiter: &Weak<Self>| limiter.strong_count() == 0;
        if sources.get(source).is_some_and(is_unused) {
            sources.remove(source);
        }
    }
}

impl Turn<'_> {
    /// The whole right. Within another limiter it takes a turn `of_all`, too.
    pub fn with(self, of_all: Option<Turn<'_>>) -> Permit {
        let permit = Permit(self.0.clone());
        mem::forget((self, of_all));
        permit
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back();
        if let Some(all) = self.0.of_all() {
            all.give_back();
        }
    }
}

fn permits(limit: Option<usize>) -> usize {
    limit.map_or(Semaphore::MAX_PERMITS, |n| n.min(Semaphore::MAX_PERMITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_up_to_the_limit_and_takes_passes_back() {
        let limiter = Arc::new(Limiter::new(Some(2)));
        let first = limiter.try_acquire();
        let _second = limiter.try_acquire().expect("two fit");
        assert!(first.is_some() && limiter.try_acquire().is_none());
        assert_eq!(limiter.in_use(), 2);
        drop(first);
        assert!(limiter.try_acquire().is_some());
    }

    #[test]
    fn the_limit_grows_and_shrinks_under_held_permits() {
        let limiter = Arc::new(Limiter::new(Some(3)));
        let mut held: Vec<_> = std::iter::from_fn(|| limiter.try_acquire()).collect();
        limiter.resize(Some(1));
        assert_eq!((held.len(), limiter.in_use()), (3, 3));
        held.truncate(1);
        assert!(limiter.try_acquire().is_none(), "one is held");
        assert_eq!(limiter.in_use(), 1);
        held.clear();
        held.extend(limiter.try_acquire());
        assert!(held.len() == 1 && limiter.try_acquire().is_none());
        limiter.resize(Some(3));
        held.extend(std::iter::from_fn(|| limiter.try_acquire()));
        assert_eq!(held.len(), 3);
        // Up again while some are beyond the limit.
        limiter.resize(Some(0));
        limiter.resize(Some(4));
        held.extend(std::iter::from_fn(|| limiter.try_acquire()));
        assert_eq!((held.len(), limiter.in_use()), (4, 4));
        limiter.resize(None);
        drop(held);
        assert!(limiter.try_acquire().is_some());
        assert_eq!(limiter.in_use(), 0);
    }

    #[test]
    fn a_source_has_its_own_limit_within_that_of_all() {
        let all = Arc::new(Limiter::new(Some(3)));
        let source = |text: &str| all.of_source(text.parse().expect("a network"), 2);
        let (first, other) = (source("192.0.2.1"), source("192.0.2.2"));
        let mut held: Vec<_> = std::iter::from_fn(|| first.try_acquire()).collect();
        assert_eq!((held.len(), all.in_use()), (2, 2));
        assert!(source("192.0.2.1").is_full(), "it is the same one");
        held.extend(std::iter::from_fn(|| other.try_acquire()));
        assert_eq!(held.len(), 3, "all are full before the source is");
        assert_eq!((other.in_use(), all.in_use()), (1, 3));
        drop((first, other));
        assert_eq!(all.sources().len(), 2);
        held.clear();
        assert_eq!((all.sources().len(), all.in_use()), (0, 0));
    }

    #[test]
    fn the_limit_of_a_source_changes_when_it_is_asked_for() {
        let all = Arc::new(Limiter::new(None));
        let source = |limit| all.of_source("192.0.2.1".parse().expect("a network"), limit);
        let _held = source(1).try_acquire().expect("one");
        assert!(source(1).try_acquire().is_none());
        let _second = source(2).try_acquire().expect("two");
        assert!(source(1).try_acquire().is_none());
        assert_eq!(source(1).in_use(), 2);
    }

    #[tokio::test]
    async fn who_queues_comes_before_who_asks_later() {
        let limiter = Arc::new(Limiter::new(Some(1)));
        let held = limiter.try_acquire().expect("one fits");
        let mut waits = std::pin::pin!(limiter.turn());
        assert!(futures_poll(waits.as_mut()).await.is_none());
        drop(held);
        assert!(
            limiter.try_acquire().is_none(),
            "it belongs to the one that queued"
        );
        assert!(futures_poll(waits).await.is_some());
    }

    async fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = Some(future);
        std::future::poll_fn(|cx| {
            let polled = future.take().map(|f| f.poll(cx));
            std::task::Poll::Ready(match polled {
                Some(std::task::Poll::Ready(output)) => Some(output),
                _ => None,
            })
        })
        .await
    }
}
