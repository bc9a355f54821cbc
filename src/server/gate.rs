//! Bounds how many sessions there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Admits up to a number of sessions at once, and lets others queue, first come first served.
#[derive(Debug)]
pub struct Gate {
    places: Semaphore,
    limit: usize,
    queued: AtomicUsize,
}

/// One admission; given back on drop.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Gate {
    /// A gate for `limit` sessions at once; `None` is as many as there can be.
    #[must_use]
    pub fn new(limit: Option<usize>) -> Self {
        let limit = limit
            .unwrap_or(Semaphore::MAX_PERMITS)
            .min(Semaphore::MAX_PERMITS);
        Self {
            places: Semaphore::new(limit),
            limit,
            queued: AtomicUsize::new(0),
        }
    }

    /// How many are inside.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// Admits one more, unless the limit is reached or others queue.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Pass> {
        let permit = self.places.try_acquire().ok()?;
        Some(Pass::new(self, permit))
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

    /// Queues until there is a place.
    pub async fn queue(self: &Arc<Self>) -> Pass {
        match self.places.acquire().await {
            Ok(permit) => Pass::new(self, permit),
            // Nobody closes the semaphore.
            Err(_closed) => std::future::pending().await,
        }
    }
}

impl Pass {
    /// A pointer instead of the permit itself: every session has two passes.
    fn new(gate: &Arc<Gate>, permit: SemaphorePermit<'_>) -> Self {
        permit.forget();
        Self(gate.clone())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.places.add_permits(1);
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
        let gate = Arc::new(Gate::new(Some(2)));
        let first = gate.enter();
        let _second = gate.enter().expect("two fit");
        assert!(first.is_some() && gate.enter().is_none());
        assert_eq!(gate.inside(), 2);
        drop(first);
        assert!(gate.enter().is_some());
    }

    #[tokio::test]
    async fn who_queues_comes_before_who_asks_later() {
        let gate = Arc::new(Gate::new(Some(1)));
        let inside = gate.enter().expect("one fits");
        let mut queue = std::pin::pin!(gate.queue());
        assert!(futures_poll(queue.as_mut()).await.is_none());
        drop(inside);
        assert!(
            gate.enter().is_none(),
            "the place belongs to the one that queued"
        );
        assert!(futures_poll(queue).await.is_some());
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
