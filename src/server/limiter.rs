//! Bounds how many sessions there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Gives out up to a number of permits at once; others queue, first come first served.
#[derive(Debug)]
pub struct Limiter {
    permits: Semaphore,
    limit: usize,
    queued: AtomicUsize,
}

/// The right to be one of them; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Limiter>);

impl Limiter {
    /// So many permits at once; `None` is as many as there can be.
    #[must_use]
    pub fn new(limit: Option<usize>) -> Self {
        let limit = limit
            .unwrap_or(Semaphore::MAX_PERMITS)
            .min(Semaphore::MAX_PERMITS);
        Self {
            permits: Semaphore::new(limit),
            limit,
            queued: AtomicUsize::new(0),
        }
    }

    /// Permits that are held.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.limit - self.permits.available_permits()
    }

    /// A permit, unless all are held or others queue.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let permit = self.permits.try_acquire().ok()?;
        Some(Permit::new(self, permit))
    }

    /// Counts one that queues, until it is dropped.
    pub fn count_queued(&self) -> impl Drop + use<'_> {
        Queued::new(&self.queued)
    }

    /// How many were counted.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
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
        self.0.permits.add_permits(1);
    }
}

/// Counts one that queues, until it is dropped.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
