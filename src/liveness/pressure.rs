//! Whether memory is short, and how many sessions may be ended for it at a time.
//!
//! Freed memory shows late: what a session held is given back when its last bytes are delivered,
//! and reclaim has its own pace. So a round ends a small share only, and rounds that did not help
//! are not repeated: the memory is somebody else's then, and sessions would end in vain.

/// Shedding begins here, percent of the limit.
const HIGH: u64 = 95;
/// And stops below this.
const LOW: u64 = 90;
/// A round ends at most one session of so many.
const SHARE: usize = 32;
/// Rounds that may end sessions without any effect.
const TRIES: u32 = 5;
/// Less memory by this share of the limit is an effect.
const EFFECT: u64 = 200;
/// After rounds in vain it must rise by this share of the limit for another try.
const RISE: u64 = 100;

/// What is known of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that may be.
    pub limit: u64,
    /// Sessions that hold some of it.
    pub sessions: usize,
}

/// What follows from the readings so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Nothing has to be done.
    Calm,
    /// Sessions are ended, in rounds.
    Short {
        /// The most that was in use since a round had an effect. What was freed is seen by
        /// comparison with this, although other sessions may have grown at the same time.
        highest: u64,
        /// Rounds since then that ended sessions.
        tries: u32,
    },
    /// Ending sessions does not help: nothing is done, up to so many bytes in use.
    Vain {
        /// Another try from here on.
        up_to: u64,
    },
}

impl Pressure {
    /// Before the first session. What is in use then is not theirs, so where it leaves no room
    /// below the marks no session is ever ended for it.
    #[must_use]
    pub const fn new(at_start: Reading) -> Self {
        if at_start.used < at_start.low() {
            Self::Calm
        } else {
            Self::Vain { up_to: u64::MAX }
        }
    }

    /// What follows from another reading. `ended`: sessions that the last round has ended.
    #[must_use]
    pub fn next(self, now: Reading, ended: usize) -> Self {
        let used = now.used;
        let try_again = Self::Short {
            highest: used,
            tries: 0,
        };
        match self {
            _ if used < now.low() => Self::Calm,
            Self::Calm if used < now.high() => Self::Calm,
            Self::Calm | Self::Short { .. } if now.sessions == 0 => Self::Vain { up_to: u64::MAX },
            Self::Calm => try_again,
            Self::Short { highest, .. } if used + now.limit / EFFECT <= highest => try_again,
            Self::Short { highest, tries } => {
                let highest = highest.max(used);
                let tries = tries + u32::from(ended > 0);
                if tries < TRIES {
                    Self::Short { highest, tries }
                } else {
                    let up_to = used.saturating_add(now.limit / RISE);
                    Self::Vain { up_to }
                }
            }
            Self::Vain { up_to } if used >= up_to => try_again,
            Self::Vain { .. } => self,
        }
    }

    /// How many sessions may be ended now, at most.
    #[must_use]
    pub fn most(self, now: Reading) -> usize {
        match self {
            Self::Short { .. } => (now.sessions / SHARE).max(1),
            Self::Calm | Self::Vain { .. } => 0,
        }
    }

    /// Whether new clients have to wait: each would end another one's session, or the process.
    #[must_use]
    pub const fn is_full(self, now: Reading) -> bool {
        matches!(self, Self::Short { .. }) && now.used >= now.high()
    }
}

impl Reading {
    const fn high(self) -> u64 {
        self.limit / 100 * HIGH
    }

    const fn low(self) -> u64 {
        self.limit / 100 * LOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(percent: u64) -> Reading {
        Reading {
            used: percent * 1000,
            limit: 100_000,
            sessions: 640,
        }
    }

    fn begun() -> Pressure {
        Pressure::new(at(20)).next(at(95), 0)
    }

    #[test]
    fn begins_at_the_high_mark_and_stops_below_the_low_one() {
        let calm = Pressure::new(at(20));
        assert_eq!(calm.next(at(94), 0), Pressure::Calm);
        assert_eq!(calm.most(at(94)), 0);
        let short = calm.next(at(95), 0);
        assert_eq!(short.most(at(95)), 20);
        assert!(short.is_full(at(95)));
        let short = short.next(at(90), 20);
        assert_eq!(short.most(at(90)), 20);
        assert!(
            !short.is_full(at(90)),
            "there is room for new clients again"
        );
        assert_eq!(short.next(at(89), 20), Pressure::Calm);
    }

    #[test]
    fn a_round_is_a_small_share_and_never_none() {
        let few = Reading {
            sessions: 3,
            ..at(99)
        };
        assert_eq!(begun().most(few), 1);
    }

    #[test]
    fn rounds_that_help_go_on() {
        let mut pressure = begun();
        for tenths in (901..=950).rev().step_by(3) {
            let now = Reading {
                used: tenths * 100,
                ..at(0)
            };
            pressure = pressure.next(now, 20);
            assert!(pressure.most(now) > 0, "{tenths}");
        }
    }

    /// Sessions that grow take what the first rounds free, and more.
    #[test]
    fn rounds_help_although_the_memory_rose_meanwhile() {
        let mut pressure = begun();
        for tenths in [952, 961, 966, 964, 958, 957, 952, 951] {
            let now = Reading {
                used: tenths * 100,
                ..at(0)
            };
            pressure = pressure.next(now, 20);
            assert!(pressure.most(now) > 0, "{tenths}");
        }
    }

    #[test]
    fn rounds_in_vain_end_and_are_tried_again_when_it_rises() {
        let mut pressure = begun();
        let mut rounds = 0;
        while pressure.most(at(95)) > 0 {
            rounds += 1;
            pressure = pressure.next(at(95), 20);
        }
        assert_eq!(rounds, 5);
        assert!(!pressure.is_full(at(95)), "new clients are let in");
        pressure = pressure.next(at(95), 0);
        assert_eq!(pressure.most(at(95)), 0);
        assert!(pressure.next(at(96), 0).most(at(96)) > 0);
        assert_eq!(pressure.next(at(89), 0), Pressure::Calm);
    }

    #[test]
    fn rounds_that_ended_nobody_are_not_counted() {
        let pressure = (0..100).fold(begun(), |pressure, _| pressure.next(at(97), 0));
        assert!(pressure.most(at(97)) > 0 && pressure.is_full(at(97)));
    }

    #[test]
    fn what_is_used_without_sessions_is_not_theirs() {
        let too_small = Pressure::new(at(93));
        assert_eq!(too_small.next(at(120), 0).most(at(120)), 0);
        assert_eq!(too_small.next(at(80), 0), Pressure::Calm);
        let none = Reading {
            sessions: 0,
            ..at(99)
        };
        let pressure = begun().next(none, 1);
        assert_eq!(pressure, Pressure::Vain { up_to: u64::MAX });
        assert_eq!(Pressure::Calm.next(none, 0), pressure);
    }
}
