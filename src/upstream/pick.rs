//! Which endpoint is dialled next, and how long it is waited for. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use super::endpoint::Endpoint;
use crate::config::Balance;

/// An endpoint that does not answer is not waited for alone for longer (RFC 8305, 8).
const STAGGER: Duration = Duration::from_millis(250);
/// However many endpoints there are, each is given this part of the time, up to [`STAGGER`]: with a
/// share shorter than a round trip none of many would ever be connected.
const LEAST_PART: u32 = 8;

/// What decides between endpoints for one session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub balance: Balance,
    /// How many sessions had a choice before.
    pub number: usize,
    /// The client.
    pub source: IpAddr,
}

impl Turn {
    /// The endpoint that is dialled first. Allocates nothing.
    pub fn first<'a>(&self, endpoints: &'a [Arc<Endpoint>]) -> Option<&'a Arc<Endpoint>> {
        let best = endpoints.iter().map(|e| e.standing()).min()?;
        let equals = || endpoints.iter().filter(|e| e.standing() == best);
        let count = equals().count();
        let ranked = equals().enumerate();
        let first = ranked.min_by_key(|(place, e)| self.rank(e, *place, count));
        // An ejection may have ended meanwhile.
        first.map(|(_, e)| e).or(endpoints.first())
    }

    /// All of them, in the order in which they are dialled.
    pub fn order(&self, endpoints: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
        let mut standings: Vec<_> = endpoints.iter().map(|e| (e.standing(), e)).collect();
        standings.sort_by_key(|(standing, _)| *standing);
        let equals = standings.chunk_by(|(a, _), (b, _)| a == b);
        let ordered = equals.flat_map(|equals| {
            let places = equals.iter().enumerate();
            let mut ranked: Vec<_> = places
                .map(|(place, (_, e))| (self.rank(e, place, equals.len()), *e))
                .collect();
            ranked.sort_by_key(|(rank, _)| *rank);
            ranked.into_iter().map(|(_, e)| e.clone())
        });
        ordered.collect()
    }

    /// Of endpoints of one standing the one with the lowest is dialled first; `place` is its place among
    /// so many.
    fn rank(&self, endpoint: &Endpoint, place: usize, count: usize) -> (u64, usize) {
        // Where several are equal, each has its turn.
        let turn = (place + count - self.number % count) % count;
        match self.balance {
            Balance::LeastConnections => (endpoint.active() as u64, turn),
            Balance::RoundRobin => (0, turn),
            Balance::FirstAvailable => (0, place),
            Balance::SourceHash => (!endpoint.affinity(self.source), place),
        }
    }
}

/// The endpoints that one session may dial, each once.
#[derive(Debug)]
pub(super) struct Pick {
    endpoints: vec::IntoIter<Arc<Endpoint>>,
    /// The time that each endpoint is given, at least.
    share: Duration,
}

impl Pick {
    /// In this order. All of them have to answer `within` this time together.
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>, within: Duration) -> Self {
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let least = STAGGER.min(within / LEAST_PART);
        Self {
            endpoints: endpoints.into_iter(),
            share: least.max(within / count.max(1)),
        }
    }

    pub(super) fn has_more(&self) -> bool {
        !self.endpoints.as_slice().is_empty()
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
        self.endpoints.next()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::UpstreamAddress;
    use crate::upstream::endpoint::ActiveSession;

    fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
        let address = |n| UpstreamAddress::Socket(([192, 0, 2, n], 80).into());
        (0..count)
            .map(|n| Endpoint::new(address(n), None))
            .collect()
    }

    fn turn(balance: Balance, number: usize, source: u32) -> Turn {
        Turn {
            balance,
            number,
            source: IpAddr::V4(source.into()),
        }
    }

    /// The places of endpoints in the order of a turn.
    fn order(turn: Turn, endpoints: &[Arc<Endpoint>]) -> Vec<usize> {
        let place = |e: &Arc<Endpoint>| endpoints.iter().position(|other| Arc::ptr_eq(e, other));
        let order = turn.order(endpoints);
        let first = turn.first(endpoints).expect("there are some");
        assert!(Arc::ptr_eq(first, &order[0]), "{turn:?}");
        order.iter().filter_map(place).collect()
    }

    #[test]
    fn the_first_available_is_tried_in_the_order_of_the_list() {
        let turn = turn(Balance::FirstAvailable, 7, 1);
        assert_eq!(order(turn, &endpoints(3)), [0, 1, 2]);
        assert!(turn.first(&[]).is_none() && turn.order(&[]).is_empty());
    }

    #[test]
    fn each_has_its_turn() {
        let all = endpoints(3);
        let starts = |balance| {
            (0..6)
                .map(|n| order(turn(balance, n, 1), &all)[0])
                .collect()
        };
        let starts: [Vec<_>; 2] = [Balance::RoundRobin, Balance::LeastConnections].map(starts);
        assert_eq!(starts[0], [0, 1, 2, 0, 1, 2]);
        assert_eq!(starts[1], starts[0], "all are equal");
        let wrapped = turn(Balance::RoundRobin, usize::MAX, 1);
        assert_eq!(order(wrapped, &all).len(), 3);
    }

    #[test]
    fn the_fewest_sessions_come_first() {
        let all = endpoints(3);
        let at = |n: usize| ActiveSession::new(all[n].clone());
        let _sessions = [at(0), at(0), at(2)];
        for number in 0..3 {
            let turn = turn(Balance::LeastConnections, number, 1);
            assert_eq!(order(turn, &all), [1, 2, 0]);
        }
    }

    #[test]
    fn those_that_are_down_come_last_and_are_tried_all_the_same() {
        let all = endpoints(4);
        all[0].set_up(false);
        let starts: Vec<_> = (0..6)
            .map(|n| order(turn(Balance::RoundRobin, n, 1), &all)[0])
            .collect();
        assert_eq!(starts, [1, 2, 3, 1, 2, 3], "the others share its sessions");
        let first = turn(Balance::FirstAvailable, 0, 1);
        assert_eq!(order(first, &all), [1, 2, 3, 0]);
        all.iter().for_each(|endpoint| endpoint.set_up(false));
        assert_eq!(order(first, &all), [0, 1, 2, 3]);
    }

    #[test]
    fn a_client_keeps_its_endpoint_while_others_come_and_go() {
        let all = endpoints(5);
        let chosen = |among: &[Arc<Endpoint>], source| {
            let turn = turn(Balance::SourceHash, source as usize, source);
            turn.first(among).expect("there are some").address().clone()
        };
        let mut moved = 0;
        let mut used = BTreeSet::new();
        for source in 0..1000 {
            let before = chosen(&all, source);
            used.insert(before.clone());
            let after = chosen(&all[1..], source);
            if before == *all[0].address() {
                moved += 1;
            } else {
                assert_eq!(after, before, "only clients of the one that went move");
            }
            let mut reversed = all.clone();
            reversed.reverse();
            assert_eq!(chosen(&reversed, source), before, "the order says nothing");
        }
        assert_eq!(used.len(), all.len());
        assert!(
            (150..250).contains(&moved),
            "{moved} of 1000 at one of five"
        );
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
    fn an_endpoint_is_given_its_share_unless_another_can_be_dialled_beside_it() {
        let ms = Duration::from_millis;
        let pick = Pick::new(endpoints(4), ms(4000));
        assert_eq!(pick.patience(1, 2), ms(250));
        assert_eq!(pick.patience(1, 1), ms(1000));
        assert_eq!(pick.patience(2, 2), ms(1000));
        let hurried = Pick::new(endpoints(4), ms(400));
        assert_eq!(hurried.patience(1, 2), ms(100));
        assert_eq!(Pick::new(endpoints(0), ms(1)).patience(0, 1), ms(1));
        let many = Pick::new(endpoints(200), ms(5000));
        assert_eq!(many.patience(2, 2), ms(250), "a round trip at least");
        let many = Pick::new(endpoints(200), ms(400));
        assert_eq!(many.patience(2, 2), ms(50));
    }
}
