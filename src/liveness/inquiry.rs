//! Verification on demand: asks one peer now, and judges its answer without waiting for D.
//!
//! The question is a keepalive probe, which injects no byte. The kernel sends one only when the
//! leg has been quiet for a second and nothing of ours is in flight; in flight the kernel's own
//! retransmissions are the question. The answer proves the kernel of the next hop, nothing more.

use super::policy::Millis;
use super::reason::Evidence;
use super::sample::{LegSample, TcpState};

/// Silence shorter than this is an answer in itself: the kernel asks nobody more often.
const RECENT: Millis = 1000;
const AGE_JITTER: Millis = 20;
/// Unanswered questions that prove a peer gone.
const PROOF: u32 = 3;
/// The same in flight, where the kernel's questions come at 0.2, 0.4, 0.8, 1.6 s.
const PROOF_IN_FLIGHT: u32 = 2;
/// An answer may take this long, and one and a half round trips where that is longer, ms.
const ANSWER_TAKES: Millis = 50;
/// A question repeated so shortly before the inquiry began is as good as one of its own: the
/// kernel's next one is a second away, and up to 80 ms late, ms.
const JUST_ASKED: Millis = 150;
/// A question that was asked just before has had its time after this, ms.
const JUST_ASKED_TAKES: Millis = 970;
/// Between two looks at most: a live peer's answer is not to lie about unseen, ms.
const LONGEST_PAUSE: Millis = 8;

/// How an inquiry is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Whether a sign of life of the last second is an answer. If not, the peer must say
    /// something after the inquiry began.
    pub recent_is_alive: bool,
    /// Between two questions, ms.
    pub ask_every: Millis,
    /// A peer that answers within this is never called silent, ms.
    pub patience: Millis,
    /// Where the patience did not suffice to ask enough, the verdict comes after this, ms.
    pub limit: Millis,
}

impl Method {
    /// For an operator who wants to know.
    pub const CHECK: Self = Self {
        recent_is_alive: true,
        ask_every: 200,
        patience: 800,
        limit: 1300,
    };
    /// For a newcomer who waits for the place of this one: it shall be served within 1.5 s, and
    /// a peer that was heard just before it vanished cannot be asked for a second.
    pub const TAKEOVER: Self = Self {
        recent_is_alive: false,
        ask_every: 100,
        patience: 1300,
        limit: 1450,
    };
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The peer's kernel answers.
    Alive {
        /// Since the peer was last heard, ms.
        silent_for: Millis,
        /// Whether that was after the inquiry began; if not, it was not asked.
        answered: bool,
    },
    /// Every question stayed unanswered.
    Silent {
        /// Since the peer was last heard, ms.
        silent_for: Millis,
        /// Which questions.
        evidence: Evidence,
    },
    /// Not enough was asked in the time there was: no judgement.
    Unknown(Millis),
    /// The peer has said FIN and is owed nothing: there is nothing to ask.
    Complete,
    /// The connection is over already.
    Over,
}

/// One inquiry into one leg.
#[derive(Clone, Debug)]
pub struct Inquiry {
    method: Method,
    began: Millis,
    segs_in: u32,
    /// When a probe was last requested.
    asked: Option<Millis>,
    /// Questions that were unanswered when it began.
    old_questions: u32,
    /// When a question of later date was first seen to be unanswered.
    unanswered_since: Option<Millis>,
    /// The last of the old questions was asked just before.
    just_asked: bool,
}

/// What to do after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the kernel send a probe, then look again after the pause (ms).
    Ask(Millis),
    /// Look again after the pause (ms).
    Wait(Millis),
    /// Done.
    Done(Answer),
}

impl Inquiry {
    /// Begins. `sample` is what the kernel says now, `window_probe_age` how long ago it last asked
    /// about a closed window (ms), where that is known.
    #[must_use]
    pub fn new(
        now: Millis,
        method: Method,
        sample: &LegSample,
        window_probe_age: Option<Millis>,
    ) -> Self {
        let last_question_age = if sample.unacked > 0 {
            // A retransmission is data sent.
            (sample.retransmits > 0).then_some(sample.last_sent_age)
        } else {
            window_probe_age
        };
        Self {
            method,
            began: now,
            segs_in: sample.segs_in,
            asked: None,
            old_questions: questions(sample),
            unanswered_since: None,
            just_asked: last_question_age.is_some_and(|age| age <= JUST_ASKED),
        }
    }

    /// Takes in what the kernel says now.
    pub fn look(&mut self, now: Millis, sample: &LegSample) -> Step {
        let silent_for = sample.last_ack_age.min(sample.last_data_age);
        let since_begin = now.saturating_sub(self.began);
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
        if questions(sample) > self.old_questions {
            self.unanswered_since.get_or_insert(now);
        }
        // An answer takes a round trip, however little patience there is.
        let far = u64::from(sample.rtt_us) * 4 / 1000;
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
        let pause = (since_begin / 4).clamp(2, LONGEST_PAUSE);
        let idle = sample.unacked == 0 && sample.notsent == 0;
        let due = self
            .asked
            .is_none_or(|at| now >= at + self.method.ask_every);
        if idle && due {
            self.asked = Some(now);
            return Step::Ask(pause);
        }
        Step::Wait(pause)
    }

    /// Enough questions are unanswered, and one of them was asked since the inquiry began (or just
    /// before) and has had its time: a peer that is back after an outage, and that nobody has
    /// asked since, is not gone.
    fn proof(&self, now: Millis, silent_for: Millis, sample: &LegSample) -> Option<Evidence> {
        let answer_takes = ANSWER_TAKES.max(u64::from(sample.rtt_us) * 3 / 2000);
        let asked = self
            .unanswered_since
            .is_some_and(|at| now >= at + answer_takes)
            || (self.just_asked && now >= self.began + JUST_ASKED_TAKES.max(answer_takes));
        let (evidence, unanswered, enough) = if sample.unacked > 0 {
            (Evidence::Retransmit, sample.retransmits, PROOF_IN_FLIGHT)
        } else if sample.notsent > 0 {
            (Evidence::WindowProbe, sample.probes, PROOF_IN_FLIGHT)
        } else {
            (Evidence::Keepalive, sample.probes, PROOF)
        };
        // Something may be written to a peer that was being asked by probes.
        let enough = unanswered >= enough || (unanswered > 0 && questions(sample) >= PROOF);
        (asked && enough && silent_for >= RECENT).then_some(evidence)
    }
}

/// What the kernel has asked in vain; an answer sets it to 0.
fn questions(sample: &LegSample) -> u32 {
    let retransmits = if sample.unacked > 0 {
        sample.retransmits
    } else {
        0
    };
    sample.probes.saturating_add(retransmits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(age: Millis) -> LegSample {
        LegSample {
            last_ack_age: age,
            last_data_age: age,
            segs_in: 5,
            ..LegSample::default()
        }
    }

    /// A peer that answers nothing: the kernel sends a probe for each question once it has been
    /// quiet for a second.
    fn ask_a_vanished_peer(method: Method, age: Millis) -> (Millis, Answer) {
        let (mut now, mut probes) = (0, 0);
        let mut inquiry = Inquiry::new(now, method, &idle(age), None);
        loop {
            let sample = LegSample {
                probes,
                ..idle(age + now)
            };
            match inquiry.look(now, &sample) {
                Step::Done(answer) => return (now, answer),
                Step::Ask(pause) => {
                    probes += u32::from(age + now + 1 >= 1000);
                    now += pause;
                }
                Step::Wait(pause) => now += pause,
            }
        }
    }

    #[test]
    fn a_vanished_peer_is_proven_in_less_than_a_second() {
        let (took, answer) = ask_a_vanished_peer(Method::CHECK, 2000);
        assert!(
            took < 1000 && matches!(answer, Answer::Silent { .. }),
            "{took} {answer:?}"
        );
    }

    #[test]
    fn a_takeover_is_decided_in_time_even_right_after_the_last_word() {
        for age in [0, 1, 500, 999, 1000, 5000] {
            let (took, answer) = ask_a_vanished_peer(Method::TAKEOVER, age);
            assert!(
                took <= 1310 && matches!(answer, Answer::Silent { .. }),
                "{age}: {took} {answer:?}"
            );
        }
    }

    #[test]
    fn a_recent_word_is_enough_for_a_check_only() {
        let recent = idle(300);
        let mut check = Inquiry::new(0, Method::CHECK, &recent, None);
        assert_eq!(
            check.look(0, &recent),
            Step::Done(Answer::Alive {
                silent_for: 300,
                answered: false
            })
        );
        let mut takeover = Inquiry::new(0, Method::TAKEOVER, &recent, None);
        assert!(matches!(takeover.look(0, &recent), Step::Ask(_)));
    }

    #[test]
    fn any_segment_is_an_answer() {
        let mut inquiry = Inquiry::new(0, Method::TAKEOVER, &idle(5000), None);
        assert!(matches!(inquiry.look(0, &idle(5000)), Step::Ask(_)));
        let answered = LegSample {
            segs_in: 6,
            ..idle(5004)
        };
        assert_eq!(
            inquiry.look(4, &answered),
            Step::Done(Answer::Alive {
                silent_for: 4,
                answered: true
            })
        );
    }

    fn in_flight(age: Millis, retransmits: u32) -> LegSample {
        LegSample {
            unacked: 1,
            retransmits,
            ..idle(age)
        }
    }

    const UNPROVEN: Step = Step::Wait(LONGEST_PAUSE);

    #[test]
    fn without_enough_questions_there_is_no_judgement() {
        let mut inquiry = Inquiry::new(0, Method::CHECK, &in_flight(2000, 0), None);
        assert!(matches!(
            inquiry.look(0, &in_flight(2000, 0)),
            Step::Wait(_)
        ));
        assert_eq!(inquiry.look(800, &in_flight(2800, 1)), UNPROVEN);
        assert_eq!(
            inquiry.look(1300, &in_flight(3300, 1)),
            Step::Done(Answer::Unknown(3300))
        );
    }

    #[test]
    fn old_questions_prove_nothing_until_one_is_asked_again() {
        let mut inquiry = Inquiry::new(0, Method::CHECK, &in_flight(3000, 5), None);
        assert_eq!(inquiry.look(800, &in_flight(3800, 5)), UNPROVEN);
        assert_eq!(inquiry.look(900, &in_flight(3900, 6)), UNPROVEN);
        let silent = Step::Done(Answer::Silent {
            silent_for: 3950,
            evidence: Evidence::Retransmit,
        });
        assert_eq!(inquiry.look(950, &in_flight(3950, 6)), silent);
    }

    #[test]
    fn a_question_of_just_before_spares_the_wait_for_the_next() {
        let asked = |at: Millis, sent_age| LegSample {
            last_sent_age: sent_age + at,
            ..in_flight(9000 + at, 8)
        };
        let mut inquiry = Inquiry::new(0, Method::CHECK, &asked(0, 30), None);
        assert_eq!(inquiry.look(960, &asked(960, 30)), UNPROVEN);
        assert!(matches!(
            inquiry.look(970, &asked(970, 30)),
            Step::Done(Answer::Silent { .. })
        ));
        // The next one is due soon enough.
        let mut inquiry = Inquiry::new(0, Method::CHECK, &asked(0, 200), None);
        assert_eq!(inquiry.look(970, &asked(970, 200)), UNPROVEN);
        // Nothing is proven without a second question.
        let first = LegSample {
            retransmits: 1,
            ..asked(0, 30)
        };
        let mut inquiry = Inquiry::new(0, Method::CHECK, &first, None);
        assert_eq!(inquiry.look(970, &first), UNPROVEN);
    }

    #[test]
    fn a_window_probe_of_just_before_spares_the_wait_as_well() {
        let asked = |at: Millis, probes| LegSample {
            notsent: 1,
            probes,
            ..idle(9000 + at)
        };
        let begin = |probes, age| Inquiry::new(0, Method::CHECK, &asked(0, probes), age);
        let mut inquiry = begin(2, Some(30));
        assert_eq!(inquiry.look(960, &asked(960, 2)), UNPROVEN);
        assert_eq!(
            inquiry.look(970, &asked(970, 2)),
            Step::Done(Answer::Silent {
                silent_for: 9970,
                evidence: Evidence::WindowProbe
            })
        );
        // The next one is due soon enough, the time is unknown, or there was no second one.
        for (probes, age) in [(2, Some(200)), (2, None), (1, Some(30))] {
            let mut inquiry = begin(probes, age);
            assert_eq!(inquiry.look(970, &asked(970, probes)), UNPROVEN);
        }
        // A peer that is back says so.
        let back = LegSample {
            segs_in: 6,
            ..asked(950, 0)
        };
        assert!(matches!(
            begin(2, Some(30)).look(950, &back),
            Step::Done(Answer::Alive { .. })
        ));
    }

    /// The kernel asks a vanished peer each 1000 ms, and is up to 80 ms late.
    #[test]
    fn a_closed_window_is_judged_within_a_second_in_any_phase() {
        for (late, age) in (0..=80).flat_map(|late| (0..1000 + late).map(move |age| (late, age))) {
            let asked = |at: Millis| LegSample {
                notsent: 1,
                probes: 4 + u32::from(age + at >= 1000 + late),
                ..idle(9000 + at)
            };
            let last = Some(age.min(1000));
            let mut inquiry = Inquiry::new(0, Method::CHECK, &asked(0), last);
            let mut now = 0;
            while let Step::Wait(pause) = inquiry.look(now, &asked(now)) {
                now += pause;
            }
            assert!(now < 1000, "{age} late by {late}: {now}");
            let answer = inquiry.look(now, &asked(now));
            assert!(
                matches!(answer, Step::Done(Answer::Silent { .. })),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn a_late_write_adds_its_questions_to_the_probes() {
        let mut inquiry = Inquiry::new(0, Method::TAKEOVER, &idle(3000), None);
        assert!(matches!(inquiry.look(0, &idle(3000)), Step::Ask(_)));
        let written = |age, retransmits| LegSample {
            probes: 9,
            ..in_flight(age, retransmits)
        };
        assert_eq!(inquiry.look(1200, &written(4200, 0)), UNPROVEN);
        assert_eq!(inquiry.look(1300, &written(4300, 0)), UNPROVEN);
        assert!(matches!(
            inquiry.look(1400, &written(4400, 1)),
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
        let mut inquiry = Inquiry::new(0, Method::TAKEOVER, &far(5000, 0), None);
        assert!(matches!(inquiry.look(1450, &far(6450, 8)), Step::Ask(_)));
        assert!(matches!(inquiry.look(2350, &far(7350, 9)), Step::Ask(_)));
        assert_eq!(
            inquiry.look(2400, &far(7400, 9)),
            Step::Done(Answer::Silent {
                silent_for: 7400,
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
        let mut inquiry = Inquiry::new(0, Method::CHECK, &over, None);
        assert_eq!(inquiry.look(0, &over), Step::Done(Answer::Over));
        // Of one that has said FIN there is nothing to ask, unless it is owed something.
        let complete = LegSample {
            state: TcpState::CloseWait,
            ..idle(9000)
        };
        let mut inquiry = Inquiry::new(0, Method::CHECK, &complete, None);
        assert_eq!(inquiry.look(0, &complete), Step::Done(Answer::Complete));
        let owed = LegSample {
            unacked: 1,
            ..complete
        };
        assert!(matches!(inquiry.look(0, &owed), Step::Wait(_)));
    }
}
