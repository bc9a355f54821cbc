//! When the application at the end of a leg is asked inside the connection, and what its silence means.
//!
//! Its kernel answers the questions of the [`Judge`](super::Judge); this is for an application that hangs
//! behind it. A question is asked where no payload has passed for a while, and only while the peer of the
//! other leg is known to live: it must not keep a session going for somebody who is gone. Silence is a
//! failure only if the question was acknowledged, nothing was heard since, and the peer owes an answer to
//! nobody else. It ends a session only if an earlier question of that session was answered: else the
//! protocol may be another one.

use super::time::{Span, Time};

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Without payload for this long the peer is asked, and as often.
    pub after: Span,
    /// An answer takes no longer.
    pub timeout: Span,
    /// So many questions in a row are unanswered when the session is ended.
    pub failures: u32,
}

/// What is known of the conversation, and of the session, at an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Payload that was read from the leg and written to it, bytes.
    pub moved: [u64; 2],
    /// When payload last moved on either leg.
    pub activity: Time,
    /// When payload last came from the peer.
    pub received: Time,
    /// Since when an answer is waited for.
    pub waits_since: Option<Time>,
    /// Answers so far.
    pub answers: u32,
    /// Whether the peer can be asked, and whether its silence would say something.
    pub peer: Peer,
    /// Whether the peer of the other leg is known to live.
    pub other: Other,
}

/// Whether silence of a peer says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It has acknowledged everything (or the question, while one is out), nothing of it waits to be read, and it
    /// owes nobody an answer; while a question is out, none that was due before it.
    Free,
    /// Not so.
    Busy,
}

/// Whether a peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It was heard within D.
    Alive,
    /// It was not.
    Unknown,
}

/// What an observation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing before that time.
    Wait(Time),
    /// Ask the peer, if there is a place for it in the conversation; what is still unanswered is given up.
    Ask,
    /// A question was unanswered for too long.
    Missed(Then),
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is asked again.
    Ask,
    /// The next question has time, since it has never answered.
    Wait(Time),
    /// The application hangs.
    End,
}

/// The state of one leg.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    /// Failures in a row.
    failures: u32,
    answers: u32,
    /// When it was last to be asked, and what had moved then.
    asked: Option<(Time, [u64; 2])>,
    /// The question whose failure was counted, and when.
    counted: Option<(Time, Time)>,
}

impl Pulse {
    /// Whether the last bytes on the leg, each way, may be a question and its answer: no payload has moved
    /// since it was to be asked.
    #[must_use]
    pub fn is_alone(&self, moved: [u64; 2]) -> bool {
        self.asked.is_some_and(|(_, before)| before == moved)
    }

    /// Takes in what is known and decides.
    pub fn observe(&mut self, now: Time, asking: &Asking, moment: &Moment) -> Beat {
        if self.answers != moment.answers {
            self.answers = moment.answers;
            self.failures = 0;
        }
        let Some(asked) = moment.waits_since else {
            return self.next_question(now, asking, moment);
        };
        if self.answers == 0 && self.failed_at(asked).is_some() {
            return self.next_question(now, asking, moment);
        }
        let due = self.silent_from(asked, moment) + asking.timeout;
        if now < due {
            return Beat::Wait(due);
        }
        if moment.peer == Peer::Busy {
            return Beat::Wait(now + asking.timeout);
        }
        self.counted = Some((asked, now));
        self.failures = self.failures.saturating_add(1);
        Beat::Missed(if self.answers == 0 {
            self.note_question(now, moment);
            Then::Wait(now + asking.after)
        } else if self.failures >= asking.failures {
            Then::End
        } else if moment.other == Other::Alive {
            self.note_question(now, moment);
            Then::Ask
        } else {
            Then::Wait(now + asking.after)
        })
    }

    /// When the session is ended if nothing changes.
    #[must_use]
    pub fn ends_at(&self, asking: &Asking, moment: &Moment) -> Option<Time> {
        let asked = moment.waits_since?;
        let left = asking.failures.saturating_sub(self.failures).max(1);
        let due = self.silent_from(asked, moment) + asking.timeout * u64::from(left);
        (moment.answers > 0 && moment.peer == Peer::Free).then_some(due)
    }

    /// From when on silence after a question counts. Where there is no place for the next question, as behind a
    /// request that came meanwhile, the old one goes on waiting.
    fn silent_from(&self, asked: Time, moment: &Moment) -> Time {
        // Whatever comes after the question shows that somebody is at work there.
        self.failed_at(asked).unwrap_or(asked).max(moment.received)
    }

    fn failed_at(&self, asked: Time) -> Option<Time> {
        let counted = self.counted.filter(|(question, _)| *question == asked);
        counted.map(|(_, at)| at)
    }

    fn next_question(&mut self, now: Time, asking: &Asking, moment: &Moment) -> Beat {
        let last = self.asked.map_or(moment.activity, |(at, _)| at);
        let due = last.max(moment.activity) + asking.after;
        if now < due {
            return Beat::Wait(due);
        }
        if moment.other == Other::Unknown || moment.peer == Peer::Busy {
            return Beat::Wait(now + asking.after);
        }
        self.note_question(now, moment);
        Beat::Ask
    }

    fn note_question(&mut self, now: Time, moment: &Moment) {
        self.asked = Some((now, moment.moved));
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::ms;
    use super::*;

    const T0: Time = Time::ms(1_000_000);
    const ASKING: Asking = Asking {
        after: Span::ms(15_000),
        timeout: Span::ms(5000),
        failures: 1,
    };

    fn quiet() -> Moment {
        Moment {
            moved: [10, 20],
            activity: T0,
            received: T0,
            waits_since: None,
            answers: 0,
            peer: Peer::Free,
            other: Other::Alive,
        }
    }

    /// A pulse whose first question was answered, and whose second one, at 30 s, was not.
    fn unanswered() -> (Pulse, Moment) {
        let mut pulse = Pulse::default();
        let mut moment = quiet();
        assert_eq!(pulse.observe(T0 + ms(15_000), &ASKING, &moment), Beat::Ask);
        moment.answers = 1;
        assert_eq!(pulse.observe(T0 + ms(30_000), &ASKING, &moment), Beat::Ask);
        moment.waits_since = Some(T0 + ms(30_001));
        (pulse, moment)
    }

    #[test]
    fn a_peer_is_asked_when_nothing_has_moved_and_as_often() {
        let mut pulse = Pulse::default();
        let mut moment = quiet();
        let at = |after| T0 + ms(after);
        assert!(!pulse.is_alone(moment.moved));
        let mut observe = |now, moment: &Moment| pulse.observe(at(now), &ASKING, moment);
        assert_eq!(observe(100, &moment), Beat::Wait(at(15_000)));
        assert_eq!(observe(15_000, &moment), Beat::Ask);
        moment.answers = 1;
        assert_eq!(observe(16_000, &moment), Beat::Wait(at(30_000)));
        moment.activity = at(20_000);
        assert_eq!(observe(30_000, &moment), Beat::Wait(at(35_000)));
        assert_eq!(observe(35_000, &moment), Beat::Ask);
        assert!(pulse.is_alone([10, 20]) && !pulse.is_alone([10, 21]));
    }

    #[test]
    fn nobody_is_asked_for_a_peer_that_may_be_gone_or_while_it_owes_an_answer() {
        for moment in [
            Moment {
                other: Other::Unknown,
                ..quiet()
            },
            Moment {
                peer: Peer::Busy,
                ..quiet()
            },
        ] {
            let now = T0 + ms(20_000);
            let beat = Pulse::default().observe(now, &ASKING, &moment);
            assert_eq!(beat, Beat::Wait(now + ASKING.after));
        }
    }

    #[test]
    fn silence_ends_a_session_whose_peer_has_answered_before() {
        let (mut pulse, moment) = unanswered();
        let due = T0 + ms(35_001);
        assert_eq!(pulse.ends_at(&ASKING, &moment), Some(due));
        let beat = pulse.observe(T0 + ms(31_500), &ASKING, &moment);
        assert_eq!(beat, Beat::Wait(due));
        assert_eq!(
            pulse.observe(due, &ASKING, &moment),
            Beat::Missed(Then::End)
        );
    }

    #[test]
    fn as_many_failures_in_a_row_as_were_asked_for() {
        let asking = Asking {
            failures: 3,
            ..ASKING
        };
        let (mut pulse, mut moment) = unanswered();
        assert_eq!(pulse.ends_at(&asking, &moment), Some(T0 + ms(45_001)));
        for (at, then) in [
            (35_001, Then::Ask),
            (40_001, Then::Ask),
            (45_001, Then::End),
        ] {
            let now = T0 + ms(at);
            let beat = pulse.observe(now, &asking, &moment);
            assert_eq!(beat, Beat::Missed(then));
            // The same one is not counted twice.
            let again = pulse.observe(now + ms(1), &asking, &moment);
            assert!(matches!(again, Beat::Wait(_)), "{again:?}");
            moment.waits_since = Some(now);
        }
    }

    #[test]
    fn a_question_that_cannot_be_repeated_goes_on_waiting() {
        let asking = Asking {
            failures: 2,
            ..ASKING
        };
        let (mut pulse, moment) = unanswered();
        let (first, second) = (T0 + ms(35_001), T0 + ms(40_001));
        let ask = Beat::Missed(Then::Ask);
        assert_eq!(pulse.observe(first, &asking, &moment), ask);
        assert_eq!(pulse.ends_at(&asking, &moment), Some(second));
        let beat = pulse.observe(first + ms(10), &asking, &moment);
        assert_eq!(beat, Beat::Wait(second));
        let end = Beat::Missed(Then::End);
        assert_eq!(pulse.observe(second, &asking, &moment), end);
    }

    #[test]
    fn one_that_never_answered_is_asked_again_and_never_ended() {
        let mut pulse = Pulse::default();
        let mut moment = quiet();
        for n in 0..20 {
            let now = T0 + ms(15_000 + 20_000 * n);
            assert_eq!(pulse.observe(now, &ASKING, &moment), Beat::Ask);
            moment.waits_since = Some(now);
            assert_eq!(pulse.ends_at(&ASKING, &moment), None);
            let missed = now + ASKING.timeout;
            let then = Then::Wait(missed + ASKING.after);
            assert_eq!(pulse.observe(missed, &ASKING, &moment), Beat::Missed(then));
        }
    }

    #[test]
    fn a_peer_that_is_at_work_is_not_ended() {
        let (mut pulse, moment) = unanswered();
        let now = T0 + ms(100_000);
        let busy = Moment {
            peer: Peer::Busy,
            ..moment
        };
        let beat = pulse.observe(now, &ASKING, &busy);
        assert_eq!(beat, Beat::Wait(now + ASKING.timeout));
        let speaks = Moment {
            received: now - ms(1),
            ..moment
        };
        let beat = pulse.observe(now, &ASKING, &speaks);
        assert_eq!(beat, Beat::Wait(now + ms(4999)));
    }

    #[test]
    fn an_answer_forgives_earlier_failures() {
        let asking = Asking {
            failures: 2,
            ..ASKING
        };
        let (mut pulse, mut moment) = unanswered();
        let due = T0 + ms(35_001);
        assert_eq!(
            pulse.observe(due, &asking, &moment),
            Beat::Missed(Then::Ask)
        );
        moment.answers = 2;
        moment.waits_since = None;
        let next = due + asking.after;
        assert_eq!(
            pulse.observe(due + ms(10), &asking, &moment),
            Beat::Wait(next)
        );
        assert_eq!(pulse.observe(next, &asking, &moment), Beat::Ask);
        moment.waits_since = Some(next);
        let missed = next + asking.timeout;
        assert_eq!(
            pulse.observe(missed, &asking, &moment),
            Beat::Missed(Then::Ask)
        );
    }
}
