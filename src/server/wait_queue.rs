//! Clients that wait for a place, whichever listener they want it of.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::metrics::Shortage;

/// Those who wait, in the order in which they came. Each holds what its session will need of the
/// process, so under pressure the last to come are turned away, before any session is ended: they
/// have lost the least and had the longest to wait.
#[derive(Debug, Default)]
pub(super) struct WaitQueue(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Shortage>>,
}

/// One that waits; leaves the queue on drop.
#[derive(Debug)]
pub(super) struct Waiter<'a> {
    queue: &'a WaitQueue,
    number: u64,
    turned_away: oneshot::Receiver<Shortage>,
}

impl WaitQueue {
    pub fn join(&self) -> Waiter<'_> {
        let (sender, turned_away) = oneshot::channel();
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.waiting.insert(number, sender);
        Waiter {
            queue: self,
            number,
            turned_away,
        }
    }

    /// False if nobody waits.
    pub fn turn_away_last(&self, why: Shortage) -> bool {
        // One that is leaving by itself does not make the others stay.
        loop {
            let Some((_, sender)) = self.lock().waiting.pop_last() else {
                return false;
            };
            if sender.send(why).is_ok() {
                return true;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Ends when it has to leave, and says why.
    pub async fn turned_away(&mut self) -> Shortage {
        match (&mut self.turned_away).await {
            Ok(why) => why,
            // The queue keeps the sender for as long as this waits.
            Err(_closed) => std::future::pending().await,
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.queue.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its future is gone, and it has not left the queue yet.
    #[test]
    fn one_that_leaves_by_itself_does_not_make_the_others_stay() {
        let queue = WaitQueue::default();
        let _first = queue.join();
        let mut last = queue.join();
        last.turned_away.close();
        assert!(queue.turn_away_last(Shortage::Memory));
    }

    #[tokio::test]
    async fn the_last_to_come_goes_first() {
        let queue = WaitQueue::default();
        assert!(!queue.turn_away_last(Shortage::Memory));
        let mut first = queue.join();
        let left = queue.join();
        let mut last = queue.join();
        drop(left);
        assert!(queue.turn_away_last(Shortage::Memory));
        assert_eq!(last.turned_away().await, Shortage::Memory);
        assert!(queue.turn_away_last(Shortage::Descriptors));
        assert_eq!(first.turned_away().await, Shortage::Descriptors);
        assert!(!queue.turn_away_last(Shortage::Memory));
    }
}
