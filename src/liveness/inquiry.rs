//! Verification on demand: asks one peer now, and judges its answer without waiting for D.
//!
//! The question is a keepalive probe, which injects no byte. The kernel sends one only when the
//! leg has been quiet for a second and nothing of ours is in flight; in flight the kernel's own
//! retransmissions are the question. The answer proves the kernel of the next hop, nothing more.

use super::proof::{APART, PROBE_EVERY, Proof, VOLLEY_PROBES};
use super::reason::Evidence;
use super::sample::{AGE_JITTER, LegSample, TcpState};
use super::time::{Span, Time};

/// Silence shorter than this is an answer in itself: the kernel asks nobody more often.
pub const RECENT: Span = Span::ms(1000);
/// Between two observations at most, so that a live peer's answer is soon seen.
const LONGEST_PAUSE: Span = Span::ms(8);

/// How an inquiry is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Whether a sign of life of the last second is an answer. If not, the peer must say
    /// something after the inquiry began.
    pub recent_is_alive: bool,
    /// A peer that answers within this is never called silent.
    pub patience: Span,
    /// Where not enough could be asked by then there is no judgement.
    pub limit: Span,
}

impl Method {
    /// For an operator who wants to know.
    pub const CHECK: Self = Self {
        recent_is_alive: true,
        patience: Span::ms(800),
        limit: Span::ms(2500),
    };
    /// For a new client that waits for the place of this one. A peer that was heard just before it
    /// vanished cannot be asked for a second; with data in flight the kernel asks at its own pace.
    pub const TAKEOVER: Self = Self {
        recent_is_alive: false,
        patience: Span::ms(800),
        limit: Span::ms(5000),
    };
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The peer's kernel answers.
    Alive {
        /// Since the peer was last heard.
        silent_for: Span,
        /// Whether that was after the inquiry began; if not, it was not asked.
        answered: bool,
    },
    /// Every question stayed unanswered.
    Silent {
        /// Since the peer was last heard.
        silent_for: Span,
        /// Which questions.
        evidence: Evidence,
    },
    /// Not enough was asked in the time there was: no judgement.
    Unknown(Span),
    /// The peer has said FIN and is owed nothing: there is nothing to ask.
    Complete,
    /// The connection is over already.
    Over,
}

/// One inquiry into one leg.
#[derive(Clone, Debug)]
pub struct Inquiry {
    method: Method,
    began: Time,
    segs_in: u32,
    /// The first probe of the last volley, and how many of it were requested.
    volley: Option<(Time, u8)>,
    /// A probe was requested before the leg was quiet for a second.
    requested: bool,
    proof: Proof,
    /// Questions that were unanswered when it began.
    old_questions: u32,
    /// When a question of later date was first seen to be unanswered.
    unanswered_since: Option<Time>,
}

/// What to do after an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the kernel send a probe, then observe again after the pause.
    Ask(Span),
    /// Observe again after the pause.
    Wait(Span),
    /// Done.
    Done(Answer),
}

impl Inquiry {
    /// Begins. `sample` is what the kernel says now.
    #[must_use]
    pub fn new(now: Time, method: Method, sample: &LegSample) -> Self {
        Self {
            method,
            began: now,
            segs_in: sample.segs_in,
            volley: None,
            requested: false,
            proof: Proof::of_the_past(sample.last_heard_age(), sample),
            old_questions: sample.unanswered(),
            unanswered_since: None,
        }
    }

    /// Takes in what the kernel says now.
    pub fn observe(&mut self, now: Time, sample: &LegSample) -> Step {
        let silent_for = sample.last_heard_age();
        let since_begin = now - self.began;
        if sample.state == TcpState::Closed {
            return Step::Done(Answer::Over);
        }
        if sample.is_complete() {
            return Step::Done(Answer::Complete);
        }
        // Ages are rounded to the kernel's clock: a small difference says nothing.
        let spoke = sample.segs_in != self.segs_in || silent_for + AGE_JITTER < since_begin;
        if spoke || (self.method.recent_is_alive && silent_for < RECENT) {
            return Step::Done(Answer::Alive {
                // Not every segment moves the ages.
                silent_for: if spoke {
                    silent_for.min(since_begin)
                } else {
                    silent_for
                },
                answered: spoke,
            });
        }
        // Retransmissions to a shrunk window are not counted; of the last one the time is known.
        let retransmitted = sample.is_shrunk() && sample.last_sent_age < since_begin;
        if sample.unanswered() != self.old_questions || retransmitted {
            self.unanswered_since.get_or_insert(now);
        }
        self.proof.take(silent_for, sample);
        // An answer takes a round trip, however little patience there is.
        let far = Span::ms(u64::from(sample.rtt_us) * 4 / 1000);
        let (patience, limit) = (self.method.patience.max(far), self.method.limit.max(far));
        if since_begin >= patience
            && let Some(evidence) = self.proof(now, silent_for, sample)
        {
            return Step::Done(Answer::Silent {
                silent_for,
                evidence,
            });
        }
        if since_begin >= limit {
            return Step::Done(Answer::Unknown(silent_for));
        }
        // Looks are close together at first, since a live peer on a near network answers at once.
        let pause = (since_begin / 4).clamp(Span::ms(2), LONGEST_PAUSE);
        let idle = sample.unacked == 0 && sample.notsent == 0;
        if idle && self.wants_probe(now, silent_for) {
            return Step::Ask(pause);
        }
        Step::Wait(pause)
    }

    /// A volley of probes, and another one when it is another question. Before the leg was quiet for a
    /// second the kernel sends none: the first request has it send one then.
    fn wants_probe(&mut self, now: Time, silent_for: Span) -> bool {
        if silent_for < RECENT {
            return !std::mem::replace(&mut self.requested, true);
        }
        let (volley, probes) = match self.volley {
            None => (now, 0),
            Some((at, probes)) if probes < VOLLEY_PROBES => (at, probes),
            Some((at, _)) if now < at + APART || silent_for < self.proof.next() => return false,
            Some(_) => (now, 0),
        };
        let due = now >= volley + PROBE_EVERY * u64::from(probes);
        if due {
            self.volley = Some((volley, probes + 1));
        }
        due
    }

    /// Enough questions are unanswered, and one of them was asked since the inquiry began and has had
    /// its time: a peer that is back after an outage, and that nobody has asked since, is not gone.
    fn proof(&self, now: Time, silent_for: Span, sample: &LegSample) -> Option<Evidence> {
        let asked = self
            .unanswered_since
            .is_some_and(|at| now >= at + sample.answer_takes());
        (asked && self.proof.is_complete() && silent_for >= RECENT).then(|| sample.question())
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::ms;
    use super::*;

    fn idle(age: u64) -> LegSample {
        LegSample {
            last_ack_age: ms(age),
            last_data_age: ms(age),
            segs_in: 5,
            ..LegSample::default()
        }
    }

    /// A peer that answers nothing: the kernel sends a probe for each question once it has been
    /// quiet for a second.
    fn ask_a_vanished_peer(method: Method, age: u64) -> (u64, Answer) {
        let (mut now, mut probes) = (0, 0);
        let mut inquiry = Inquiry::new(Time::ms(now), method, &idle(age));
        loop {
            let sample = LegSample {
                probes,
                ..idle(age + now)
            };
            match inquiry.observe(Time::ms(now), &sample) {
                Step::Done(answer) => return (now, answer),
                Step::Ask(pause) => {
                    probes += u32::from(age + now + 1 >= 1000);
                    now += pause.as_millis();
                }
                Step::Wait(pause) => now += pause.as_millis(),
            }
        }
    }

    /// Five volleys, less what the kernel had asked before.
    #[test]
    fn a_vanished_peer_is_proven_gone_in_time() {
        for (method, age, most) in [
            (Method::CHECK, 2000, 2200),
            (Method::TAKEOVER, 5000, 2200),
            (Method::TAKEOVER, 999, 2200),
            (Method::TAKEOVER, 500, 2700),
            (Method::TAKEOVER, 0, 3200),
        ] {
            let (took, answer) = ask_a_vanished_peer(method, age);
            let silent = matches!(answer, Answer::Silent { .. });
            assert!(
                took <= most && took >= 2000 && silent,
                "{age}: {took} {answer:?}"
            );
        }
    }

    #[test]
    fn a_recent_word_is_enough_for_a_check_only() {
        let recent = idle(300);
        let mut check = Inquiry::new(Time::ms(0), Method::CHECK, &recent);
        assert_eq!(
            check.observe(Time::ms(0), &recent),
            Step::Done(Answer::Alive {
                silent_for: ms(300),
                answered: false
            })
        );
        let mut takeover = Inquiry::new(Time::ms(0), Method::TAKEOVER, &recent);
        assert!(matches!(
            takeover.observe(Time::ms(0), &recent),
            Step::Ask(_)
        ));
    }

    #[test]
    fn any_segment_is_an_answer() {
        let mut inquiry = Inquiry::new(Time::ms(0), Method::TAKEOVER, &idle(5000));
        assert!(matches!(
            inquiry.observe(Time::ms(0), &idle(5000)),
            Step::Ask(_)
        ));
        let answered = LegSample {
            segs_in: 6,
            ..idle(5004)
        };
        assert_eq!(
            inquiry.observe(Time::ms(4), &answered),
            Step::Done(Answer::Alive {
                silent_for: ms(4),
                answered: true
            })
        );
    }

    fn in_flight(age: u64, retransmits: u32) -> LegSample {
        LegSample {
            unacked: 1,
            retransmits,
            ..idle(age)
        }
    }

    const UNPROVEN: Step = Step::Wait(LONGEST_PAUSE);

    #[test]
    fn without_enough_questions_there_is_no_judgement() {
        let mut inquiry = Inquiry::new(Time::ms(0), Method::CHECK, &in_flight(2000, 0));
        assert!(matches!(
            inquiry.observe(Time::ms(0), &in_flight(2000, 0)),
            Step::Wait(_)
        ));
        assert_eq!(
            inquiry.observe(Time::ms(800), &in_flight(2800, 1)),
            UNPROVEN
        );
        assert_eq!(
            inquiry.observe(Time::ms(2500), &in_flight(4500, 1)),
            Step::Done(Answer::Unknown(ms(4500)))
        );
    }

    #[test]
    fn old_questions_prove_nothing_until_one_is_asked_again() {
        let mut inquiry = Inquiry::new(Time::ms(0), Method::CHECK, &in_flight(3000, 5));
        assert_eq!(
            inquiry.observe(Time::ms(800), &in_flight(3800, 5)),
            UNPROVEN
        );
        assert_eq!(
            inquiry.observe(Time::ms(900), &in_flight(3900, 6)),
            UNPROVEN
        );
        let silent = Step::Done(Answer::Silent {
            silent_for: ms(3950),
            evidence: Evidence::Retransmit,
        });
        assert_eq!(inquiry.observe(Time::ms(950), &in_flight(3950, 6)), silent);
    }

    #[test]
    fn a_late_write_adds_its_questions_to_the_probes() {
        let mut inquiry = Inquiry::new(Time::ms(0), Method::TAKEOVER, &idle(3000));
        assert!(matches!(
            inquiry.observe(Time::ms(0), &idle(3000)),
            Step::Ask(_)
        ));
        let written = |age, retransmits| LegSample {
            probes: 3,
            ..in_flight(age, retransmits)
        };
        // One volley, the first transmission, and three more.
        for (at, retransmits) in [(60, 0), (500, 1), (900, 2), (1800, 3)] {
            assert!(matches!(
                inquiry.observe(Time::ms(at), &written(3000 + at, retransmits)),
                Step::Wait(_)
            ));
        }
        assert!(matches!(
            inquiry.observe(Time::ms(2700), &written(5700, 4)),
            Step::Done(Answer::Silent { .. })
        ));
    }

    #[test]
    fn a_long_round_trip_gets_its_time() {
        let far = |age, probes| LegSample {
            rtt_us: 600_000,
            probes,
            ..idle(age)
        };
        let mut inquiry = Inquiry::new(Time::ms(0), Method::TAKEOVER, &far(5000, 6));
        assert!(matches!(
            inquiry.observe(Time::ms(1450), &far(6450, 8)),
            Step::Ask(_)
        ));
        assert!(matches!(
            inquiry.observe(Time::ms(2350), &far(7350, 9)),
            Step::Ask(_)
        ));
        assert_eq!(
            inquiry.observe(Time::ms(2400), &far(7400, 9)),
            Step::Done(Answer::Silent {
                silent_for: ms(7400),
                evidence: Evidence::Keepalive
            })
        );
    }

    #[test]
    fn a_connection_that_is_over_is_said_to_be() {
        let over = LegSample {
            state: TcpState::Closed,
            ..idle(10)
        };
        let mut inquiry = Inquiry::new(Time::ms(0), Method::CHECK, &over);
        assert_eq!(
            inquiry.observe(Time::ms(0), &over),
            Step::Done(Answer::Over)
        );
        // Of one that has said FIN there is nothing to ask, unless it is owed something.
        let complete = LegSample {
            state: TcpState::CloseWait,
            ..idle(9000)
        };
        let mut inquiry = Inquiry::new(Time::ms(0), Method::CHECK, &complete);
        assert_eq!(
            inquiry.observe(Time::ms(0), &complete),
            Step::Done(Answer::Complete)
        );
        let owed = LegSample {
            unacked: 1,
            ..complete
        };
        assert!(matches!(inquiry.observe(Time::ms(0), &owed), Step::Wait(_)));
    }
}
