//! Bounds how many sessions there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Gives out up to a number of permits at once; others queue, first come first served.
#[derive(Debug)]
pub struct Limiter {
    permits: Semaphore,
    limit: AtomicUsize,
    /// Permits beyond the limit that are held: it was lowered.
    excess: AtomicUsize,
    /// One clone for each that queues.
    queued: Arc<()>,
}

/// The right to be one of them; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Limiter>);

impl Limiter {
    /// So many permits at once; `None` is as many as there can be.
    #[must_use]
    pub fn new(limit: Option<usize>) -> Self {
        let limit = permits(limit);
        Self {
            permits: Semaphore::new(limit),
            limit: AtomicUsize::new(limit),
            excess: AtomicUsize::new(0),
            queued: Arc::default(),
        }
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
        let permit = self.permits.try_acquire().ok()?;
        Some(Permit::new(self, permit))
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

    /// Queues for a permit.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        match self.permits.acquire().await {
            Ok(permit) => Permit::new(self, permit),
            // Nobody closes the semaphore.
            Err(_closed) => std::future::pending().await,
        }
    }
}

impl Permit {
    /// A pointer instead of the permit itself: every session has two.
    fn new(limiter: &Arc<Limiter>, permit: SemaphorePermit<'_>) -> Self {
        permit.forget();
        Self(limiter.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.0.settle_excess() {
            self.0.permits.add_permits(1);
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

    #[tokio::test]
    async fn who_queues_comes_before_who_asks_later() {
        let limiter = Arc::new(Limiter::new(Some(1)));
        let held = limiter.try_acquire().expect("one fits");
        let mut waits = std::pin::pin!(limiter.acquire());
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
