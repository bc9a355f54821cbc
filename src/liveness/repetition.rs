//! The last question in flight.
//!
//! In flight the kernel's retransmissions are the questions, and at their slowest they come once
//! a second. Where a quiet leg is asked at intervals below two seconds, an outage that has to be
//! survived may end later than that before the verdict, and nobody would ask again. One option
//! moves a retransmission: when the kernel arms the next one, it brings it forward to the end of
//! `TCP_USER_TIMEOUT` (`tcp_clamp_rto_to_user_timeout`, net/ipv4/tcp_timer.c). So the timeout is
//! made to end just after the deadline, and is lifted once the last retransmission before that is
//! out: the kernel then repeats the data instead of giving up. If we are late to lift it, the
//! kernel ends the connection, and D is over by then.
//!
//! That is done only where it is certain from when the kernel counts. Else the verdict waits for
//! the kernel's next question by itself. So it does behind a closed window: the next probe of it
//! could be moved in the same way (`tcp_clamp_probe0_to_user_timeout`), but a window that opens only
//! a little does not end the count of an earlier stall (`tcp_ack_probe`, net/ipv4/tcp_input.c), and
//! nothing tells which one it is.

use super::Ask;
use super::policy::{LATE_QUESTION, Millis, Policy, SLOWEST_QUESTION};
use super::sample::LegSample;

/// The last repetition is made this long after the deadline, ms: a peer that was heard one probe
/// interval before an outage of D - I began is back by then.
const AFTER_DEADLINE: Millis = 50;
/// Between it and the one before, at least, ms: that one may be late by 80 ms (`HZ`=100), and the
/// timeout has to be lifted between the two.
const APART: Millis = 120;
/// It is arranged this long before the deadline at most, ms: once the one before is not yet out.
const ARRANGED_WITHIN: Millis = 1200;
/// While the one before is late, ms.
const LOOK_EVERY: Millis = 20;
/// A repetition has had its time after this, and after one and a half round trips, ms.
pub const ANSWER_TAKES: Millis = 50;
/// But not longer than this, ms.
const ANSWER_TAKES_AT_MOST: Millis = 1000;
/// Where the last repetition is arranged, the kernel repeats once a second at least; so its
/// repetitions, of which it counts 255, began less than this ago, ms.
const LONGEST: Millis = 300_000;
/// What is kept of the time in timeouts is in units of this, ms: 16 bits hold 524 s.
const UNIT: u32 = 8;

/// How far the last repetition is arranged, in one byte: there are two for each session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stage(u8);

impl Stage {
    /// The kernel repeats at its own pace.
    const FREE: Self = Self(0);
    /// The user timeout was lifted: the next repetition comes just after the deadline.
    const AWAITED: Self = Self(u8::MAX);

    /// The user timeout ends just after the deadline; so many repetitions were out by then.
    fn limited(repetitions: u8) -> Self {
        Self(repetitions.clamp(1, u8::MAX - 1))
    }

    fn limited_at(self) -> Option<u8> {
        (self != Self::FREE && self != Self::AWAITED).then_some(self.0)
    }
}

/// What is known of the retransmissions on one leg.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repetitions {
    /// `LegSample::timeouts_ms` when nothing was in flight, in units, the lower half.
    timeouts_ms: u16,
    /// `LegSample::repeated` at that time, the lower half.
    repeated: u16,
    /// `LegSample::timeouts` at that time, the lower byte.
    timeouts: u8,
    stage: Stage,
}

impl Repetitions {
    /// A sign of life was seen; true if the user timeout has to be lifted.
    pub fn answered(&mut self) -> bool {
        std::mem::take(&mut self.stage).limited_at().is_some()
    }

    /// What has to be done for the last repetition; `life` is the last sign of life.
    pub fn arrange(
        &mut self,
        now: Millis,
        life: Millis,
        policy: &Policy,
        sample: &LegSample,
    ) -> Option<Ask> {
        if sample.nothing_lost && sample.unacked == 0 {
            self.timeouts_ms = lower_half(sample.timeouts_ms / UNIT);
            self.timeouts = lower_byte(sample.timeouts);
            self.repeated = lower_half(sample.repeated);
        }
        if let Some(span) = self.user_timeout(now, life, policy, sample) {
            self.stage = Stage::limited(count(sample));
            return Some(Ask::RepeatBy(span));
        }
        let limited_at = self.stage.limited_at()?;
        // One that was made under the timeout has moved the next, if that would have come later.
        let due = life + policy.detect_within + AFTER_DEADLINE;
        let moved = count(sample) > limited_at && sample.next_repetition(now) >= due;
        self.stage = if moved { Stage::AWAITED } else { Stage::FREE };
        Some(Ask::RepeatFreely)
    }

    /// The user timeout that lets the last repetition come in time, while the one before it is
    /// not yet out. The kernel counts it from the first one.
    fn user_timeout(
        &self,
        now: Millis,
        life: Millis,
        policy: &Policy,
        sample: &LegSample,
    ) -> Option<Millis> {
        let deadline = life + policy.detect_within;
        let wanted = policy.needs_last_repetition() && now + ARRANGED_WITHIN >= deadline;
        if !wanted || !sample.is_repeating() || sample.zero_window {
            return None;
        }
        let due = deadline + AFTER_DEADLINE;
        let next = sample.next_repetition(now);
        if sample.is_bare_fin(now) {
            // Of that no time is known, only that one more is out; it may be at any moment.
            let out = self.stage.limited_at().is_some_and(|n| count(sample) > n);
            let last = out && next >= due;
            let due = due.max(now + LOOK_EVERY + APART);
            let in_time = due + sample.answer_takes() <= latest(deadline, policy);
            let wanted = self.stage != Stage::AWAITED && !last && in_time;
            return self
                .first(now, life, sample)
                .filter(|_| wanted)
                .map(|first| due - first);
        }
        if next >= due || now >= due {
            return None;
        }
        let apart = APART.max(Millis::from(sample.rtt_us) / 500);
        let due = due.max(next + apart);
        let in_time = due + sample.answer_takes() <= latest(deadline, policy);
        let first = self.first(now, life, sample)?;
        in_time.then_some(due - first)
    }

    /// When the repetitions since the last sign of life began. `None` unless it is certain that
    /// the kernel counts from the same one: what was repeated before, on the word of the peer,
    /// would have started its clock earlier.
    fn first(&self, now: Millis, life: Millis, sample: &LegSample) -> Option<Millis> {
        let silent_for = now - life;
        let others = u32::from(lower_half(sample.repeated).wrapping_sub(self.repeated))
            .checked_sub(sample.retransmits)?;
        // One other is the loss probe (RFC 8985, section 7), unless the peer told of a hole. If one is
        // missing, the first repetition may have failed: while the neighbour does not answer, what
        // was sent before still waits in its queue. The kernel counts from when it was sent, then.
        // And if there were timeouts before these, of which a part arrived, it counts from them.
        let only_these = lower_byte(sample.timeouts).wrapping_sub(self.timeouts) == 1;
        let all_repeated = others == u32::from(sample.sack) && !sample.hole_reported;
        let certain = only_these && all_repeated;
        let units = lower_half(sample.timeouts_ms / UNIT).wrapping_sub(self.timeouts_ms);
        let since = Millis::from(units) * Millis::from(UNIT);
        let known =
            sample.timeouts_ms > 0 && sample.rto_ms <= SLOWEST_QUESTION && since <= silent_for;
        (certain && known && silent_for < LONGEST).then(|| now - since)
    }

    /// No verdict before this: the last repetition is on its way, or has to have its time. `None`
    /// where the kernel keeps to its own pace and has not repeated anything since the deadline.
    pub fn answered_by(
        &self,
        now: Millis,
        deadline: Millis,
        policy: &Policy,
        sample: &LegSample,
    ) -> Option<Millis> {
        let last = now - sample.last_sent_age;
        let latest = latest(deadline, policy);
        let asked = last + sample.answer_takes();
        if !policy.needs_last_repetition() || sample.rto_ms > SLOWEST_QUESTION {
            return Some(latest.min(asked));
        }
        let moved = self.stage == Stage::AWAITED && last < deadline;
        let next = sample.next_repetition(now);
        let comes_by_itself = next + LATE_QUESTION > now && next + sample.answer_takes() <= latest;
        if moved || comes_by_itself {
            return Some(latest);
        }
        (last >= deadline).then_some(asked)
    }

    /// When to look again because of it.
    pub fn next_look(&self, now: Millis, sample: &LegSample) -> Option<Millis> {
        match self.stage {
            Stage::FREE => None,
            Stage::AWAITED => Some(now + ANSWER_TAKES),
            _ if sample.is_bare_fin(now) => Some(now + LOOK_EVERY),
            _ => Some(sample.next_repetition(now).max(now + LOOK_EVERY)),
        }
    }
}

/// The promise allows twice the grace; the rest is for the monitor.
pub fn latest(deadline: Millis, policy: &Policy) -> Millis {
    deadline + 2 * policy.grace() - ANSWER_TAKES
}

/// `LegSample::retransmits`, as far as one byte can tell.
fn count(sample: &LegSample) -> u8 {
    u8::try_from(sample.retransmits).unwrap_or(u8::MAX)
}

pub fn lower_half(count: u32) -> u16 {
    (count & 0xFFFF) as u16
}

impl LegSample {
    /// Data of ours was repeated because of a timeout, and was not acknowledged since.
    fn is_repeating(&self) -> bool {
        self.unacked > 0 && self.retransmits > 0
    }

    /// When the kernel's timer makes the next repetition, at the latest.
    fn next_repetition(&self, now: Millis) -> Millis {
        if self.is_bare_fin(now) {
            return now + self.rto_ms;
        }
        // A retransmission is data sent.
        now - self.last_sent_age + self.rto_ms
    }

    /// A repetition was due for long, and the time of the last data says nothing of it.
    fn is_bare_fin(&self, now: Millis) -> bool {
        self.is_repeating() && now - self.last_sent_age + self.rto_ms + APART <= now
    }

    /// How long a question has to be unanswered, ms.
    pub(super) fn answer_takes(&self) -> Millis {
        (Millis::from(self.rtt_us) * 3 / 2000).clamp(ANSWER_TAKES, ANSWER_TAKES_AT_MOST)
    }
}

fn lower_byte(count: u16) -> u8 {
    count.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Millis = 103_000;
    const LIFE: Millis = 100_000;

    fn policy(probe_interval: Millis) -> Policy {
        Policy::without_limits(DEADLINE - LIFE, probe_interval)
    }

    /// Written 300 ms after the last sign of life; loss probe at 500, timeouts at 700, 1100,
    /// 1900 and 2900 ms after it.
    fn repeating(now: Millis) -> LegSample {
        let timeouts = [100_700, 101_100, 101_900, 102_900];
        let past: Vec<_> = timeouts.into_iter().filter(|at| *at <= now).collect();
        LegSample {
            unacked: 1,
            retransmits: past.len() as u32,
            repeated: past.len() as u32 + 1,
            rto_ms: (200 << past.len()).min(1000),
            timeouts_ms: past.first().map_or(0, |at| now - at) as u32,
            timeouts: 1,
            last_sent_age: now - past.last().unwrap_or(&100_500),
            sack: true,
            rtt_us: 500,
            ..LegSample::default()
        }
    }

    fn arranged(probe_interval: Millis, at: Millis, sample: &LegSample) -> Option<Ask> {
        Repetitions::default().arrange(at, LIFE, &policy(probe_interval), sample)
    }

    #[test]
    fn the_last_repetition_is_moved_and_the_timeout_lifted() {
        let mut repetitions = Repetitions::default();
        let mut asks = Vec::new();
        let mut now = 101_850;
        while now < DEADLINE {
            let sample = repeating(now);
            let ask = repetitions.arrange(now, LIFE, &policy(1000), &sample);
            asks.extend(ask.map(|ask| (now, ask)));
            now = repetitions.next_look(now, &sample).unwrap_or(DEADLINE);
        }
        // 700 + 2350 = 3050: 50 ms after the deadline, give or take what the marks are rounded by.
        let by = asks.iter().filter_map(|(at, ask)| match ask {
            Ask::RepeatBy(span) => Some((*at, *span)),
            _ => None,
        });
        let by: Vec<_> = by.collect();
        assert!(
            by.iter().all(|(_, span)| span.abs_diff(2350) <= 8),
            "{by:?}"
        );
        assert!(by.iter().all(|(at, _)| *at < 102_900), "{by:?}");
        let (lifted, ask) = asks[asks.len() - 1];
        assert_eq!(ask, Ask::RepeatFreely);
        assert!((102_900..102_950).contains(&lifted), "{lifted}");
        // The verdict waits for it.
        let until = |at: Millis, sample: &LegSample| {
            repetitions.answered_by(at, DEADLINE, &policy(1000), sample)
        };
        assert_eq!(until(DEADLINE, &repeating(DEADLINE)), Some(DEADLINE + 250));
        let repeated = LegSample {
            last_sent_age: 20,
            ..repeating(DEADLINE + 70)
        };
        assert_eq!(until(DEADLINE + 70, &repeated), Some(DEADLINE + 100));
    }

    /// Written so late that the kernel repeats it of its own accord just after the deadline.
    #[test]
    fn the_verdict_waits_for_a_repetition_that_is_due() {
        let until = |probe_interval, last_sent_age, rto_ms| {
            let sample = LegSample {
                unacked: 1,
                probes: 1,
                last_sent_age,
                rto_ms,
                ..LegSample::default()
            };
            let at = DEADLINE + 150;
            Repetitions::default().answered_by(at, DEADLINE, &policy(probe_interval), &sample)
        };
        assert_eq!(until(1000, 160, 200), Some(DEADLINE + 250));
        // The kernel is late, but not that late.
        assert_eq!(until(1000, 320, 200), Some(DEADLINE + 250));
        assert_eq!(until(1000, 330, 200), None);
        // Its answer would come later than promised, but the peer may be back since it was last asked.
        assert_eq!(until(1000, 450, 800), None);
        assert_eq!(until(1000, 140, 200), Some(DEADLINE + 60));
        // It would not come for long.
        assert_eq!(until(1000, 450, 1600), Some(DEADLINE - 250));
        // An outage that has to be survived was over long ago.
        assert_eq!(until(2000, 160, 200), Some(DEADLINE + 40));
    }

    /// Nothing else is repeated without SACK: no loss probe goes before.
    #[test]
    fn it_is_moved_without_sack_as_well() {
        let with_one_less = LegSample {
            sack: false,
            repeated: 3,
            ..repeating(101_950)
        };
        assert_eq!(with_one_less.retransmits, 3);
        let ask = arranged(1000, 101_950, &with_one_less);
        assert!(matches!(ask, Some(Ask::RepeatBy(2344..=2358))), "{ask:?}");
    }

    /// Where certainty is lost before a repetition was made under the timeout, none is moved, and the
    /// verdict must not count on one.
    #[test]
    fn a_timeout_that_moved_nothing_is_forgotten() {
        let mut repetitions = Repetitions::default();
        let sample = repeating(101_850);
        let ask = repetitions.arrange(101_850, LIFE, &policy(1000), &sample);
        assert!(matches!(ask, Some(Ask::RepeatBy(_))), "{ask:?}");
        let uncertain = LegSample {
            hole_reported: true,
            ..repeating(101_870)
        };
        let ask = repetitions.arrange(101_870, LIFE, &policy(1000), &uncertain);
        assert_eq!(ask, Some(Ask::RepeatFreely));
        let at = DEADLINE + 100;
        let sample = LegSample {
            last_sent_age: 200,
            ..repeating(at)
        };
        let until = repetitions.answered_by(at, DEADLINE, &policy(1000), &sample);
        assert_eq!(until, None, "the kernel's next question is awaited");
    }

    #[test]
    fn two_repetitions_are_not_too_close() {
        // The next one is due 50 ms before the one that is wanted.
        let sample = LegSample {
            last_sent_age: 0,
            rto_ms: 1000,
            ..repeating(102_000)
        };
        let span = 102_000 + 1000 + APART - 100_700;
        let Some(Ask::RepeatBy(by)) = arranged(1000, 102_000, &sample) else {
            panic!("not arranged");
        };
        assert!(by.abs_diff(span) <= 8, "{by}, not {span}");
    }

    #[test]
    fn nothing_is_moved_without_need_or_certainty() {
        let sample = repeating(101_850);
        let at = |sample: &LegSample| arranged(1000, 101_850, sample);
        assert!(matches!(at(&sample), Some(Ask::RepeatBy(_))));
        // The kernel asks often enough.
        assert_eq!(arranged(2000, 101_850, &sample), None);
        // Too early, and too late.
        assert_eq!(arranged(1000, 101_700, &repeating(101_700)), None);
        assert_eq!(arranged(1000, 102_950, &repeating(102_950)), None);
        let uncertain = [
            LegSample {
                repeated: 5,
                ..sample
            },
            LegSample {
                hole_reported: true,
                ..sample
            },
            // Without SACK there is no loss probe: that was something else.
            LegSample {
                sack: false,
                ..sample
            },
            LegSample {
                timeouts_ms: 0,
                ..sample
            },
            // No loss probe, or one and a repetition that failed.
            LegSample {
                repeated: sample.repeated - 1,
                ..sample
            },
            // Some of what was lost before has arrived.
            LegSample {
                timeouts: 2,
                ..sample
            },
            LegSample {
                timeouts_ms: 2500,
                ..sample
            },
            LegSample {
                rto_ms: 1600,
                ..sample
            },
            LegSample {
                zero_window: true,
                ..sample
            },
            LegSample {
                unacked: 0,
                ..sample
            },
            LegSample {
                retransmits: 0,
                ..sample
            },
        ];
        for sample in uncertain {
            assert_eq!(at(&sample), None, "{sample:?}");
        }
    }

    /// The time of a repetition is not known, but that one more is out.
    #[test]
    fn a_bare_fin_is_repeated_in_time_as_well() {
        let fin = |now: Millis| LegSample {
            last_sent_age: now - 99_000,
            ..repeating(now)
        };
        let mut repetitions = Repetitions::default();
        let mut ask = |now| repetitions.arrange(now, LIFE, &policy(1000), &fin(now));
        for now in [101_850, 101_950, 102_890] {
            assert!(
                matches!(ask(now), Some(Ask::RepeatBy(2344..=2358))),
                "{now}"
            );
        }
        assert_eq!(ask(102_910), Some(Ask::RepeatFreely));
        assert_eq!(ask(102_930), None);
        // One that comes later leaves as much time to lift the timeout.
        let mut repetitions = Repetitions::default();
        let mut ask = |now: Millis, count| {
            let sample = LegSample {
                retransmits: count,
                repeated: count + 1,
                ..fin(now)
            };
            repetitions.arrange(now, LIFE, &policy(1000), &sample)
        };
        assert!(matches!(ask(101_950, 3), Some(Ask::RepeatBy(2344..=2358))));
        assert!(matches!(ask(102_960, 3), Some(Ask::RepeatBy(2394..=2408))));
        assert_eq!(ask(102_990, 4), Some(Ask::RepeatFreely));
        assert_eq!(repetitions.stage, Stage::AWAITED);
    }

    #[test]
    fn an_answer_lifts_the_timeout() {
        let sample = repeating(101_850);
        let mut repetitions = Repetitions::default();
        assert!(!repetitions.answered());
        repetitions.arrange(101_850, LIFE, &policy(1000), &sample);
        assert!(repetitions.answered());
        assert!(!repetitions.answered());
    }
}
