//! What the operator promised, as plain numbers.

use std::borrow::Cow;

use super::spread::shortened;
use super::time::{Span, Time};

/// The keepalive options of the kernel count whole seconds.
const SECOND: Span = Span::ms(1000);
/// The kernel's questions to a peer that owes an answer are so far apart at most.
pub(super) const SLOWEST_QUESTION: Span = Span::ms(1000);
/// Its timers, coarse at this length, may be late by this.
pub(super) const LATE_QUESTION: Span = Span::ms(125);

/// Of the tolerance, what is left to the monitor and the kernel.
const MONITOR: Span = Span::ms(50);

/// How long before D the last questions begin, and how long where they are all there are.
const LAST_QUESTIONS: Span = Span::ms(1200);
const ALL_QUESTIONS: Span = Span::ms(2300);

/// Validated limits of one listener; `None` is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// D: a dead peer is closed this long after its last sign of life. At least 2000.
    pub detect_within: Span,
    /// I: a quiet peer is asked this often. At least 1000 and below `detect_within`.
    pub probe_interval: Span,
    /// Whether keepalive asks the peer of a leg, by [`super::Leg`]. Where it is false, a quiet peer is not judged.
    pub probes: [bool; 2],
    /// A session without a byte for this long is ended.
    pub idle_timeout: Option<Span>,
    /// A session with one FIN and without a byte for this long is ended.
    pub half_close_timeout: Option<Span>,
    /// A live peer that takes no data for this long is ended.
    pub stall_timeout: Option<Span>,
    /// Data that stays unacknowledged for this long, although the peer is heard and its window is
    /// open, ends the session.
    pub delivery_timeout: Option<Span>,
    /// A live peer that sends no payload for this long is ended, by [`super::Leg`].
    pub receive_timeout: [Option<Span>; 2],
    /// A request without an answer byte for this long ends the session.
    pub first_response_timeout: Option<Span>,
    /// A session is ended at this age.
    pub max_duration: Option<Span>,
}

impl Policy {
    /// Only the promise, without any other limit.
    #[must_use]
    pub const fn without_limits(detect_within: Span, probe_interval: Span) -> Self {
        Self {
            detect_within,
            probe_interval,
            probes: [true; 2],
            idle_timeout: None,
            half_close_timeout: None,
            stall_timeout: None,
            delivery_timeout: None,
            receive_timeout: [None; 2],
            first_response_timeout: None,
            max_duration: None,
        }
    }

    /// The same for the session of this number: it ends by its age in the last tenth of the limit, each at
    /// its own time.
    #[must_use]
    pub fn of_session(&self, id: u64) -> Cow<'_, Self> {
        match self.max_duration {
            None => Cow::Borrowed(self),
            Some(limit) => Cow::Owned(Self {
                max_duration: Some(shortened(limit, id)),
                ..self.clone()
            }),
        }
    }

    /// When the kernel is to ask a quiet peer: whole seconds, in ms. A second sooner than
    /// promised, where that is possible: after an outage of nearly D - I the kernel's next
    /// question is up to a second away when data was written meanwhile, and its longer timers
    /// are late by up to 1/8. Where it is not, less is survived: see [`Self::survives`].
    #[must_use]
    pub fn keepalive_idle(&self) -> Span {
        let promised = self.probe_interval / SECOND;
        let seconds = if promised > 2 { promised - 1 } else { 1 };
        // Before the verdict there has to be time for enough questions.
        let latest = (self.detect_within - SECOND * 2) / SECOND;
        SECOND * seconds.min(latest).max(1)
    }

    /// How often the kernel is to repeat a keepalive probe that stays unanswered: whole seconds, in
    /// ms. Its longer timers end on a coarse grid, so that of thousands of quiet legs hundreds are
    /// asked in one tick, and a queue on the way may drop the last of them. Repeated on the same
    /// grid, they would meet as many others again, and be dropped again, for long: so the first of
    /// these intervals is taken that leaves it. `tick` is that of the kernel's clock, microseconds.
    #[must_use]
    pub fn keepalive_interval(&self, tick: u64) -> Span {
        let grid = granule(self.keepalive_idle().as_millis() * 1000 / tick);
        let leaves = |interval: &Span| {
            let ticks = interval.as_millis() * 1000 / tick;
            let granule = granule(ticks);
            !((ticks / granule + 1) * granule).is_multiple_of(grid)
        };
        [1, 2, 3]
            .map(|n| SECOND * n)
            .into_iter()
            .find(leaves)
            .unwrap_or(SECOND)
    }

    /// How long after D the last question may still be answered: half of the tolerance that the
    /// promise allows (5 %, at least 300 ms). The other half is for the monitor and the kernel.
    #[must_use]
    pub fn grace(&self) -> Span {
        (self.detect_within / 20).max(Span::ms(300)) / 2
    }

    /// A verdict after more silence than this is late: D, its tolerance, and the second that the
    /// last answer of a peer far away is waited for.
    #[must_use]
    pub fn late(&self) -> Span {
        self.detect_within + self.grace() * 2 + SECOND
    }

    /// The latest time for the verdict on a silent peer: the rest of the tolerance that the promise
    /// allows is for the monitor.
    pub(super) fn latest(&self, last_heard: Time) -> Time {
        last_heard + self.detect_within + self.grace() * 2 - MONITOR
    }

    /// An outage shorter than this ends nothing. Under suspicion the kernel's questions are up to
    /// a second apart, so the peer has to be back a second before D; and when the outage began, it
    /// had been heard a second before, or `probe_interval`.
    #[must_use]
    pub fn survives(&self) -> Span {
        self.detect_within - self.probe_interval.max(SLOWEST_QUESTION * 2)
    }

    /// A leg that carries data is observed this often, and so soon after it begins to: its peer may
    /// shrink the window, or vanish while the kernel still doubles the gaps between its questions.
    #[must_use]
    pub fn busy_interval(&self) -> Span {
        (self.detect_within / 3).min(Span::ms(1500))
    }

    /// How long before D a silent leg is observed for the last questions. The keepalive answer
    /// of a live quiet peer has come by then.
    #[must_use]
    pub fn final_phase(&self) -> Span {
        let after_probe = self.detect_within - (self.keepalive_idle() + LATE_QUESTION);
        // Where the kernel has asked often enough by then, the last one is all that is missing.
        let asked = (after_probe - LAST_QUESTIONS) / Span::ms(3000);
        let span = if asked >= 5 {
            LAST_QUESTIONS
        } else {
            ALL_QUESTIONS
        };
        after_probe.min(span)
    }

    /// A quiet leg is suspected when it has said nothing for this long, and two probes are
    /// unanswered. (The second may come a second later than this where they are 3 s apart.)
    #[must_use]
    pub fn suspect_after(&self) -> Span {
        self.probe_interval + SECOND
    }
}

/// How exact a timer of so many ticks is, in ticks: it ends at a multiple of this. The kernel's timer
/// wheel is eight times coarser with each level (kernel/time/timer.c, the table of levels).
pub(super) const fn granule(ticks: u64) -> u64 {
    let mut granule = 1;
    while ticks >= 63 * granule {
        granule *= 8;
    }
    granule
}

#[cfg(test)]
mod tests {
    use super::super::time::ms;
    use super::*;

    fn interval(probe_interval: u64, hz: u64) -> u64 {
        let policy = Policy::without_limits(ms(5 * probe_interval), ms(probe_interval));
        policy.keepalive_interval(1_000_000 / hz).as_millis()
    }

    /// A timer of 1 s takes 1024 ms at 250 Hz, four times the grid of one of 5 s; one of 2 s takes 2016.
    #[test]
    fn probes_are_repeated_off_the_grid() {
        let of_30s = [100, 250, 300, 1000].map(|hz| interval(6000, hz));
        assert_eq!(of_30s, [1000, 2000, 1000, 3000]);
        // That of a short one is so fine that few meet.
        let of_10s = [100, 250, 300, 1000].map(|hz| interval(2000, hz));
        assert_eq!(of_10s, [1000; 4]);
        assert_eq!(interval(30_000, 250), 1000);
    }
}
