//! How often each source connects, in a table whose size does not depend on how many sources there are.

use std::hash::{BuildHasher, RandomState};

use crate::config::{Network, Rate};
use crate::liveness::Time;

/// Sources that are remembered at a time: 1 MiB.
const SLOTS: usize = 1 << 16;
/// A source is remembered in one of so many slots; which ones, no client can know.
const WAYS: usize = 8;

/// The rates of the sources of one listener: the generic cell rate algorithm, exact for each source that is
/// remembered. Where there is no slot for another one, the source is forgotten that would be free to connect
/// soonest: it gains at most what it has used of its burst. A source that goes on connecting is not it.
#[derive(Debug)]
pub(super) struct Rates {
    /// With a secret: nobody can choose addresses that push a certain other one out.
    hasher: RandomState,
    slots: Box<[Slot]>,
    /// Between two connections of a source, microseconds.
    interval: u64,
    /// How far a source may be ahead of its rate, microseconds.
    tolerance: u64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    source: u64,
    /// When its connections so far would all have come at the rate, microseconds.
    due: u64,
}

impl Rates {
    pub fn new(rate: Rate, burst: u32) -> Self {
        let per = u64::try_from(rate.per.as_micros()).unwrap_or(u64::MAX);
        let interval = per / u64::from(rate.connections);
        Self {
            hasher: RandomState::new(),
            slots: vec![Slot::default(); SLOTS].into(),
            interval,
            tolerance: interval * u64::from(burst - 1),
        }
    }

    /// Whether a source may connect now; counts it if so.
    pub fn admits(&mut self, source: Network, now: Time) -> bool {
        let now = now.as_millis() * 1000;
        let source = self.hasher.hash_one(source);
        let first = source as usize % (SLOTS / WAYS) * WAYS;
        let slots = &mut self.slots[first..first + WAYS];
        let known = slots.iter().position(|slot| slot.source == source);
        let soonest = || (0..WAYS).min_by_key(|i| slots[*i].due).unwrap_or_default();
        let place = known.unwrap_or_else(soonest);
        let slot = &mut slots[place];
        let due = if slot.source == source { slot.due } else { 0 };
        let due = due.max(now);
        if due - now > self.tolerance {
            return false;
        }
        *slot = Slot {
            source,
            due: due + self.interval,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};
    use std::time::Duration;

    use super::*;

    fn rates(connections: u32, per: u64, burst: u32) -> Rates {
        let per = Duration::from_secs(per);
        Rates::new(Rate { connections, per }, burst)
    }

    fn source(n: u128) -> Network {
        let ip = Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 64);
        Network::around(IpAddr::from(ip), [32, 64])
    }

    fn admitted(rates: &mut Rates, tries: usize, now: u64) -> usize {
        let admits = |_: &usize| rates.admits(source(7), Time::ms(now));
        (0..tries).filter(admits).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rates = rates(20, 1, 5);
        assert_eq!(admitted(&mut rates, 100, 1000), 5);
        assert_eq!(admitted(&mut rates, 100, 1049), 0);
        assert_eq!(admitted(&mut rates, 100, 1050), 1);
        assert_eq!(
            admitted(&mut rates, 100, 1500),
            5,
            "what is not used is not saved up"
        );
        let each_ms = (2000..12_000).map(|now| admitted(&mut rates, 1, now));
        assert_eq!(each_ms.sum::<usize>(), 5 + 199);
    }

    #[test]
    fn rates_above_the_resolution_of_the_clock() {
        let mut rates = rates(5000, 1, 20);
        let each_ms = (1000..2000).map(|now| admitted(&mut rates, 100, now));
        assert_eq!(each_ms.sum::<usize>(), 20 + 5 * 999);
    }

    /// A million of them cost nothing and do not help the one that goes on.
    #[test]
    fn spoofed_sources_take_no_memory_and_set_nobody_free() {
        let mut rates = rates(6, 60, 20);
        assert_eq!(size_of_val(&*rates.slots), 1 << 20);
        let mut let_in = admitted(&mut rates, 100, 0);
        for n in 0..1_000_000 {
            let now = n as u64 / 100;
            // Beyond what is remembered they are let in.
            assert!(rates.admits(source(1000 + n), Time::ms(now)));
            if n % 100 == 0 {
                let_in += admitted(&mut rates, 1, now);
            }
        }
        assert_eq!(let_in, 20, "10 s have passed, and nothing is due before");
        assert_eq!(size_of_val(&*rates.slots), 1 << 20);
    }
}
