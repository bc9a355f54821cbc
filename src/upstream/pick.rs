//! Which endpoint is dialled next, and how long it is waited for. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;

/// An endpoint that does not answer is not waited for alone for longer (RFC 8305, 8).
const STAGGER: Duration = Duration::from_millis(250);

/// The endpoint, where there is no choice.
pub(super) fn only(endpoints: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
    match endpoints {
        [endpoint] => Some(endpoint.clone()),
        _ => None,
    }
}

/// The endpoints that one session may dial, each once, in the order of the resolver (RFC 6724).
#[derive(Debug)]
pub(super) struct Pick {
    endpoints: Arc<[Arc<Endpoint>]>,
    next: usize,
    /// The time that each endpoint is given, at least.
    share: Duration,
}

impl Pick {
    /// All of them have to answer `within` this time together.
    pub(super) fn new(endpoints: Arc<[Arc<Endpoint>]>, within: Duration) -> Self {
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        Self {
            endpoints,
            next: 0,
            share: within / count.max(1),
        }
    }

    pub(super) fn has_more(&self) -> bool {
        self.next < self.endpoints.len()
    }

    /// How long `pending` dials are waited for before the next endpoint is dialled beside them, or
    /// instead of the oldest if there may be no more than `most`.
    pub(super) fn patience(&self, pending: usize, most: usize) -> Duration {
        if pending < most {
            STAGGER.min(self.share)
        } else {
            self.share
        }
    }
}

impl Iterator for Pick {
    type Item = Arc<Endpoint>;

    fn next(&mut self) -> Option<Arc<Endpoint>> {
        let endpoint = self.endpoints.get(self.next)?;
        self.next += 1;
        Some(endpoint.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Arc<[Arc<Endpoint>]> {
        let address = |n| ([192, 0, 2, n], 80).into();
        (0..count).map(|n| Endpoint::new(address(n))).collect()
    }

    #[test]
    fn each_is_picked_once_in_order() {
        let all = endpoints(3);
        let mut pick = Pick::new(all.clone(), Duration::from_secs(3));
        for endpoint in &*all {
            assert!(pick.has_more());
            assert_eq!(pick.next().unwrap().address(), endpoint.address());
        }
        assert!(!pick.has_more() && pick.next().is_none());
    }

    #[test]
    fn only_one_is_no_choice() {
        assert!(only(&endpoints(0)).is_none());
        assert!(only(&endpoints(1)).is_some());
        assert!(only(&endpoints(2)).is_none());
    }

    #[test]
    fn an_endpoint_is_given_its_share_unless_another_can_be_dialled_beside_it() {
        let ms = Duration::from_millis;
        let pick = Pick::new(endpoints(4), ms(4000));
        assert_eq!(pick.patience(1, 2), ms(250));
        assert_eq!(pick.patience(1, 1), ms(1000));
        assert_eq!(pick.patience(2, 2), ms(1000));
        let hurried = Pick::new(endpoints(4), ms(400));
        assert_eq!(hurried.patience(1, 2), ms(100));
        assert_eq!(Pick::new(endpoints(0), ms(1)).patience(0, 1), ms(1));
    }
}
