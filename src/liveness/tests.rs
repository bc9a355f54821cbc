//! One table for each rule. Times in milliseconds; sessions start at `T0`.

use proptest::prelude::*;

use super::time::ms;
use super::*;

const T0: Time = Time::ms(1_000_000);

/// D = 30 s, I = 6 s: the last questions from 28.8 s, the verdict at 30.75 s.
fn policy() -> Policy {
    Policy::without_limits(ms(30_000), ms(6000))
}

/// A leg that was heard `age` ago and has nothing under way.
fn heard(age: u64, segs_in: u32) -> LegSample {
    LegSample {
        last_ack_age: ms(age),
        last_data_age: Span::MAX,
        last_sent_age: Span::MAX,
        segs_in,
        bytes_acked: 1,
        rtt_us: 1000,
        ..LegSample::default()
    }
}

/// A quiet leg with unanswered keepalive probes.
fn probed(age: u64, probes: u32) -> LegSample {
    LegSample {
        probes,
        ..heard(age, 1)
    }
}

/// A leg with unacknowledged data, retransmitted, the last time a second ago.
fn retransmitting(age: u64) -> LegSample {
    LegSample {
        unacked: 1,
        retransmits: 6,
        last_sent_age: ms(1000),
        ..heard(age, 1)
    }
}

/// A leg whose peer takes no data, with so many unanswered window probes.
fn shut(age: u64, sent: u64, probes: u32) -> LegSample {
    LegSample {
        zero_window: true,
        notsent: 1000,
        probes,
        last_sent_age: ms(sent),
        busy: ms(sent),
        ..heard(age, 1)
    }
}

/// A leg with data in flight that is retransmitted each second since `sent`, and a peer that was
/// heard `age` ago.
fn undelivered(age: u64, sent: u64) -> LegSample {
    LegSample {
        unacked: 1,
        retransmits: 1 + sent as u32 / 1000,
        last_data_age: ms(age),
        last_sent_age: ms(sent % 1000),
        busy: ms(sent),
        ..heard(age, 1)
    }
}

/// A session of which only the downstream leg is told; upstream has just been heard.
struct Session {
    machine: Machine,
    policy: Policy,
    traffic: Traffic,
    answers_before: u64,
    segs: u32,
}

impl Session {
    fn new(policy: Policy) -> Self {
        let machine = Machine::new(T0);
        Self {
            machine,
            policy,
            traffic: Traffic::default(),
            answers_before: 0,
            segs: 1,
        }
    }

    fn observe(&mut self, after: u64, down: LegSample) -> Verdict {
        self.segs += 1;
        self.both(after, Some(down), Some(heard(0, self.segs)))
    }

    fn both(&mut self, after: u64, down: Option<LegSample>, up: Option<LegSample>) -> Verdict {
        let look = Observation {
            legs: [down, up],
            traffic: self.traffic,
            answers_before: self.answers_before,
        };
        self.machine.observe(T0 + ms(after), &self.policy, &look)
    }

    /// Looks whenever one is due, from `from` on, at a leg that stays as it is but for its ages,
    /// until the verdict.
    fn until_closed(&mut self, from: u64, at: impl Fn(u64) -> LegSample) -> (u64, Close) {
        let mut after = from;
        for _ in 0..1000 {
            let verdict = self.observe(after, at(after));
            if let Some(close) = verdict.close {
                return (after, close);
            }
            after = (verdict.next - T0).as_millis();
        }
        panic!("never closed");
    }
}

fn reason(verdict: &Verdict) -> Option<CloseReason> {
    verdict.close.map(|c| c.reason)
}

#[test]
fn a_machine_is_small() {
    assert!(
        size_of::<Machine>() <= 168,
        "{} bytes for each session",
        size_of::<Machine>()
    );
}

/// Before its upstream is up only the client is judged; no other clock runs.
#[test]
fn a_client_that_waits_is_judged_alone() {
    let limits = Policy {
        idle_timeout: Some(ms(1000)),
        half_close_timeout: Some(ms(1000)),
        first_response_timeout: Some(ms(1000)),
        max_duration: Some(ms(1000)),
        ..policy()
    };
    let mut session = Session::new(limits);
    session.machine = Machine::accepted(T0);
    assert_eq!(
        session.machine.first_observation(&session.policy),
        T0 + ms(28_800),
        "a leg that is not up is not looked for"
    );
    let mut gave_up = Session {
        machine: session.machine.clone(),
        ..Session::new(session.policy.clone())
    };
    let verdict = gave_up.both(5000, Some(complete(0)), None);
    assert_eq!(reason(&verdict), None);
    let verdict = session.both(5000, Some(heard(0, 1)), None);
    assert_eq!(
        (reason(&verdict), verdict.next),
        (None, T0 + ms(5000 + 28_800))
    );
    let mut after = 10_000;
    let close = loop {
        let verdict = session.both(after, Some(probed(after - 5000, 20)), None);
        if let Some(close) = verdict.close {
            break close;
        }
        after = (verdict.next - T0).as_millis();
    };
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!((35_750..=35_850).contains(&after), "closed after {after}");
}

/// The clock of another thread may have been read before the upstream came up.
#[test]
fn a_look_of_before_the_upstream_came_up_counts_as_of_then() {
    let mut session = Session::new(policy());
    session.machine = Machine::accepted(T0);
    session.machine.open(T0 + ms(100));
    let verdict = session.both(50, Some(heard(0, 1)), Some(heard(0, 1)));
    assert_eq!(reason(&verdict), None);
    assert!(verdict.next > T0 + ms(100));
}

/// The clocks of a session begin when its upstream is up; that of the client goes on.
#[test]
fn an_upstream_that_comes_up_says_nothing_about_the_client() {
    let limits = Policy {
        max_duration: Some(ms(60_000)),
        idle_timeout: Some(ms(50_000)),
        ..policy()
    };
    let mut session = Session::new(limits);
    session.machine = Machine::accepted(T0);
    session.both(10_000, Some(probed(10_000, 4)), None);
    let down = |machine: &Machine| machine.leg(Leg::Downstream).condition;
    assert_eq!(down(&session.machine), Condition::Suspect);
    session.machine.open(T0 + ms(20_000));
    assert_eq!(down(&session.machine), Condition::Suspect);
    let timers: Vec<_> = session.machine.timers(&session.policy).collect();
    let at = |reason| {
        let timer = timers.iter().find(|t| t.reason == reason);
        timer.map(|t| t.at - T0)
    };
    assert_eq!(at(CloseReason::DownstreamDead), Some(ms(30_750)));
    assert_eq!(at(CloseReason::UpstreamDead), Some(ms(50_750)));
    assert_eq!(at(CloseReason::MaxDuration), Some(ms(80_000)));
    assert_eq!(at(CloseReason::IdleTimeout), Some(ms(70_000)));
    let (after, close) = session.until_closed(20_100, |at| probed(at, 20));
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!((30_750..=30_850).contains(&after), "closed after {after}");
}

#[test]
fn a_silent_peer_is_dead_d_after_its_last_sign_of_life() {
    let evidence = [
        (
            Evidence::Keepalive,
            (|at| probed(at, 20)) as fn(u64) -> LegSample,
        ),
        (Evidence::Retransmit, retransmitting),
        (Evidence::WindowProbe, |at| shut(at, at, 20)),
    ];
    for (expected, sample) in evidence {
        let mut session = Session::new(policy());
        session.observe(1, heard(0, 1));
        let (at, close) = session.until_closed(10_000, |at| sample(at - 1));
        assert!(
            (30_000..=30_850).contains(&at),
            "{expected}: closed after {at}"
        );
        assert_eq!(close.reason, CloseReason::DownstreamDead);
        assert_eq!(close.evidence, Some(expected));
        assert_eq!(close.how, CloseHow::AbortAfterFlush(Leg::Downstream));
        assert_eq!(close.silent_for, ms(at - 1));
    }
}

#[test]
fn a_late_write_does_not_restart_the_clock() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    session.observe(29_000, probed(28_999, 20));
    let (at, _) = session.until_closed(29_500, |at| LegSample {
        last_sent_age: ms(at - 29_400),
        unacked: 1,
        retransmits: 1,
        ..probed(at - 1, 20)
    });
    assert!(at <= 30_850, "closed after {at}");
}

#[test]
fn any_sign_of_life_restarts_the_clock() {
    let signs = [
        ("acknowledgement", heard(0, 2)),
        (
            "data",
            LegSample {
                last_data_age: ms(0),
                ..heard(29_000, 2)
            },
        ),
        ("segment without a date", heard(29_000, 2)),
    ];
    for (name, sign) in signs {
        let mut session = Session::new(policy());
        session.observe(1, heard(0, 1));
        session.observe(28_999, probed(28_998, 20));
        session.observe(29_000, sign);
        let last_heard = session.machine.leg(Leg::Downstream).last_heard;
        assert!(last_heard >= T0 + ms(28_996), "{name}: {last_heard:?}");
        assert_eq!(
            reason(&session.observe(31_000, probed(31_000, 20))),
            None,
            "{name}"
        );
    }
}

/// An undated segment came at some time since the last look. To believe "just now" would find a
/// peer that vanished right after it a whole look interval too late.
#[test]
fn an_undated_segment_counts_from_the_last_observation() {
    let mut session = Session::new(policy());
    session.observe(100, heard(100, 1));
    session.observe(28_000, probed(28_000, 20));
    let moved = LegSample {
        segs_in: 2,
        ..probed(28_900, 21)
    };
    session.observe(28_900, moved);
    assert_eq!(
        session.machine.leg(Leg::Downstream).last_heard,
        T0 + ms(28_000)
    );
}

#[test]
fn no_verdict_without_an_unanswered_question() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    for at in [28_900, 30_000, 30_800, 40_000, 90_000] {
        let verdict = session.observe(at, heard(at - 1, 1));
        assert_eq!(verdict.close, None, "at {at}");
        assert_eq!(verdict.actions[0], Some(Action::ProbeNow), "at {at}");
    }
}

#[test]
fn no_verdict_without_a_sample_of_that_moment() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    session.observe(29_900, probed(29_899, 20));
    session.observe(30_000, probed(29_999, 20));
    let verdict = session.both(30_800, None, Some(heard(0, 99)));
    assert_eq!(verdict.close, None);
    assert!(verdict.next <= T0 + ms(31_800));
    assert_eq!(reason(&session.observe(31_000, heard(900, 2))), None);
}

#[test]
fn the_last_question_is_asked_at_d_and_has_its_time() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    assert_eq!(
        session.observe(29_900, probed(29_899, 13)).actions[0],
        Some(Action::ProbeNow)
    );
    let at_d = session.observe(30_001, probed(30_000, 14));
    assert_eq!(
        at_d.actions[0],
        Some(Action::ProbeNow),
        "100 ms after the one before, but the last"
    );
    let late = session.observe(30_001 + 50, probed(30_050, 15));
    assert_eq!(late.close, None);
    // The paused monitor has asked nothing: its first look asks, it does not judge.
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    let late = session.observe(50_000, probed(49_999, 20));
    assert_eq!(
        (late.close, late.actions[0]),
        (None, Some(Action::ProbeNow))
    );
    let (at, close) = session.until_closed((late.next - T0).as_millis(), |at| probed(at - 1, 21));
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!(at <= 50_100, "{at}");
}

#[test]
fn a_slow_path_has_one_and_a_half_round_trips_for_its_answer() {
    let slow = |age, probes| LegSample {
        rtt_us: 400_000,
        ..probed(age, probes)
    };
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    session.observe(30_001, slow(30_000, 14));
    assert_eq!(session.observe(30_500, slow(30_499, 15)).close, None);
    assert!(session.observe(30_800, slow(30_799, 16)).close.is_some());
}

#[test]
fn one_lost_window_probe_proves_nothing() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    for at in [30_000, 40_000, 60_000] {
        let verdict = session.observe(at, shut(at, at, 1));
        assert_eq!(verdict.close, None, "at {at}");
        assert_eq!(
            session.machine.leg(Leg::Downstream).condition,
            Condition::Stalled
        );
    }
    assert_eq!(
        reason(&session.observe(90_000, shut(90_000, 90_000, 2))),
        Some(CloseReason::DownstreamDead)
    );
}

#[test]
fn a_retransmission_from_before_the_last_sign_of_life_is_no_question() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    let old = |at: u64| LegSample {
        last_sent_age: ms(at),
        ..retransmitting(at - 500)
    };
    for at in [10_000, 30_000, 31_000, 60_000] {
        assert_eq!(session.observe(at, old(at)).close, None, "at {at}");
    }
    let asked = |at: u64| LegSample {
        last_sent_age: ms(at - 69_800),
        retransmits: 7,
        ..old(at)
    };
    assert_eq!(session.observe(70_000, asked(70_000)).close, None);
    let verdict = session.observe(70_100, asked(70_100));
    assert_eq!(reason(&verdict), Some(CloseReason::DownstreamDead));
    // Of a bare FIN only the count tells.
    let fin = |at: u64, retransmits| LegSample {
        state: TcpState::FinWait1,
        last_sent_age: Span::MAX,
        retransmits,
        ..retransmitting(at - 500)
    };
    let mut session = Session::new(policy());
    session.observe(600, fin(600, 8));
    session.observe(30_700, fin(30_700, 8));
    assert_eq!(session.observe(30_900, fin(30_900, 8)).close, None);
    // It has its time.
    assert_eq!(session.observe(31_500, fin(31_500, 9)).close, None);
    assert!(session.observe(32_000, fin(32_000, 9)).close.is_some());
}

/// It has taken everything, and both FINs are through.
#[test]
fn a_leg_that_is_closed_is_not_stalled() {
    let mut session = Session::new(Policy {
        stall_timeout: Some(ms(10_000)),
        ..policy()
    });
    session.observe(1, heard(0, 1));
    session.observe(5000, shut(20, 5000, 0));
    assert_eq!(
        session.machine.leg(Leg::Downstream).condition,
        Condition::Stalled
    );
    let closed = LegSample {
        state: TcpState::Closed,
        ..heard(5900, 2)
    };
    assert_eq!(session.observe(6000, closed).close, None);
    assert_eq!(
        session.machine.leg(Leg::Downstream).condition,
        Condition::Alive
    );
    assert_eq!(session.observe(20_000, closed).close, None);
}

#[test]
fn stalled_is_not_dead_and_has_its_own_clock() {
    let stall_timeout = Some(ms(60_000));
    let mut session = Session::new(Policy {
        stall_timeout,
        ..policy()
    });
    session.observe(1, heard(0, 1));
    let answering = |at: u64| LegSample {
        segs_in: 1 + at as u32 / 1000,
        ..shut(at % 1000, at, 0)
    };
    let (at, close) = session.until_closed(500, answering);
    assert_eq!(close.reason, CloseReason::DownstreamStalled);
    assert_eq!(close.evidence, None);
    assert!((60_000..=60_010).contains(&at), "closed after {at}");
    let mut session = Session::new(policy());
    for at in 1..200 {
        let verdict = session.observe(at * 1000, shut(0, at * 1000, 0));
        assert_eq!(
            verdict.close, None,
            "without stall_timeout it may stall for ever"
        );
    }
}

#[test]
fn a_window_that_was_closed_while_nothing_waited_is_no_stall() {
    let stall_timeout = Some(ms(60_000));
    let mut session = Session::new(Policy {
        stall_timeout,
        ..policy()
    });
    let idle = LegSample {
        zero_window: true,
        notsent: 0,
        ..heard(0, 2)
    };
    session.observe(
        299_000,
        LegSample {
            last_sent_age: ms(299_000),
            ..idle
        },
    );
    assert_eq!(reason(&session.observe(300_000, shut(0, 300_000, 0))), None);
    assert_eq!(reason(&session.observe(358_900, shut(0, 358_900, 0))), None);
    assert_eq!(
        reason(&session.observe(359_001, shut(0, 359_001, 0))),
        Some(CloseReason::DownstreamStalled)
    );
}

/// The kernel repeats what is on its way to a window that was taken back: that is no activity, and
/// does not hide that nothing is taken, whatever window the peer's own segments tell.
#[test]
fn retransmissions_to_a_stalled_peer_are_no_activity() {
    let (idle_timeout, stall_timeout) = (Some(ms(60_000)), Some(ms(20_000)));
    let withdrawn = |at: u64| LegSample {
        zero_window: !at.is_multiple_of(2000),
        retransmits: 0,
        ..undelivered(0, at)
    };
    for policy in [
        Policy {
            idle_timeout,
            ..policy()
        },
        Policy {
            stall_timeout,
            ..policy()
        },
    ] {
        let span = policy.idle_timeout.or(policy.stall_timeout).unwrap();
        let mut session = Session::new(policy);
        session.observe(1, heard(0, 1));
        // It says something valid, but no new byte.
        let quiet = |at| LegSample {
            last_data_age: Span::MAX,
            ..withdrawn(at)
        };
        let (at, close) = session.until_closed(500, quiet);
        assert_ne!(close.evidence, Some(Evidence::Retransmit));
        assert!(
            (span..=span + ms(1600)).contains(&ms(at)),
            "closed after {at}"
        );
    }
}

/// Nothing is in flight, and yet bytes wait: the window is too small for a segment.
#[test]
fn a_window_too_small_for_a_segment_is_a_stall() {
    let mut session = Session::new(Policy {
        stall_timeout: Some(ms(10_000)),
        ..policy()
    });
    session.observe(1, heard(0, 1));
    let (at, close) = session.until_closed(500, |at| LegSample {
        zero_window: false,
        segs_in: 1 + at as u32 / 1000,
        ..shut(at % 1000, at, 0)
    });
    assert_eq!(close.reason, CloseReason::DownstreamStalled);
    assert!((10_000..=10_010).contains(&at), "closed after {at}");
}

#[test]
fn data_that_does_not_arrive_at_a_peer_that_talks_has_its_own_clock() {
    for leg in LEGS {
        let mut machine = Machine::new(T0);
        let policy = Policy {
            delivery_timeout: Some(ms(60_000)),
            ..policy()
        };
        let mut looks = |at: u64, sample| {
            let mut legs = [Some(heard(0, at as u32)); 2];
            legs[leg as usize] = Some(sample);
            let look = Observation {
                legs,
                ..Observation::default()
            };
            let close = machine.observe(T0 + ms(at), &policy, &look).close;
            (machine.leg(leg).condition, close)
        };
        // Its first bytes were taken.
        let stuck = |at: u64| LegSample {
            bytes_acked: 100,
            ..undelivered(at % 1000, at)
        };
        assert_eq!(looks(1, heard(0, 1)), (Condition::Alive, None));
        let taken = LegSample {
            bytes_acked: 100,
            ..heard(0, 2)
        };
        assert_eq!(looks(2, taken), (Condition::Alive, None));
        assert_eq!(looks(1000, stuck(1000)), (Condition::Alive, None));
        for at in (2500..60_000).step_by(1500) {
            assert_eq!(looks(at, stuck(at)), (Condition::Undelivered, None), "{at}");
        }
        let close = looks(60_002, stuck(60_002)).1.unwrap();
        assert_eq!(close.reason, CloseReason::undelivered(leg));
        assert_eq!(close.how, CloseHow::AbortAfterFlush(leg));
        assert_eq!(close.evidence, None);
    }
}

/// Every byte that is acknowledged restarts the clock, and so does a window that was closed.
#[test]
fn a_slow_link_is_not_undelivered() {
    let mut session = Session::new(Policy {
        delivery_timeout: Some(ms(10_000)),
        ..policy()
    });
    session.observe(1, heard(0, 1));
    for at in (1000..200_000).step_by(1000) {
        let slow = LegSample {
            bytes_acked: 1 + at / 9000,
            ..undelivered(0, at % 9000)
        };
        assert_eq!(session.observe(at, slow).close, None, "{at}");
    }
    let shut = LegSample {
        notsent: 1000,
        zero_window: true,
        bytes_acked: 50,
        ..heard(0, 2)
    };
    for at in (200_000..400_000).step_by(1000) {
        assert_eq!(session.observe(at, shut).close, None, "{at}");
    }
    let opened = LegSample {
        bytes_acked: 50,
        ..undelivered(0, 9000)
    };
    assert_eq!(session.observe(401_000, opened).close, None);
    assert_eq!(
        reason(&session.observe(411_001, opened)),
        Some(CloseReason::DownstreamUndelivered)
    );
}

/// Where probes are off a quiet peer is not judged; data sent to it is a question, and D counts from
/// then.
#[test]
fn without_probes_a_peer_is_judged_by_data_only() {
    let mut session = Session::new(Policy {
        probes: [false, true],
        ..policy()
    });
    session.observe(1, heard(0, 1));
    for at in (30_000..600_000).step_by(5000) {
        let verdict = session.observe(at, heard(at, 1));
        assert_eq!((verdict.close, verdict.actions), (None, [None; 2]), "{at}");
        assert!(verdict.next >= T0 + ms(at + 5000), "looked at without need");
        let view = session.machine.leg(Leg::Downstream);
        assert_eq!(view.condition, Condition::Quiet);
        let timer = session.machine.leg_timer(&session.policy, Leg::Downstream);
        assert_eq!(timer, None);
    }
    let written = 601_000;
    let (at, close) = session.until_closed(written + 1000, |at| {
        let sent = at - written;
        LegSample {
            last_ack_age: ms(at),
            last_data_age: ms(at),
            ..undelivered(at, sent)
        }
    });
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    let after = at - written;
    assert!((30_000..=30_850).contains(&after), "dead after {after}");
}

/// An acknowledgement long after everything else answers a probe; one of data, or the peer's own
/// data, does not.
#[test]
fn answers_to_probes_are_counted_where_a_look_sees_them() {
    let mut session = Session::new(policy());
    let answered = |session: &Session| session.machine.probes_answered()[0];
    let sample = |ack, data, segs_in| LegSample {
        last_data_age: ms(data),
        last_sent_age: ms(ack),
        ..heard(ack, segs_in)
    };
    session.observe(1000, sample(10, 10, 2));
    session.observe(9000, sample(8000, 10, 3));
    assert_eq!(answered(&session), 0);
    for n in 1..300 {
        let at = 9000 + n * 6000;
        let alone = LegSample {
            last_sent_age: ms(at),
            ..sample(500, at, 3 + n as u32)
        };
        session.observe(at, alone);
        session.observe(
            at + 1,
            LegSample {
                last_ack_age: ms(501),
                ..alone
            },
        );
        assert_eq!(u64::from(answered(&session)), n.min(255));
    }
}

/// A peer that says nothing is not called undelivered: it may be gone.
#[test]
fn a_silent_peer_is_dead_and_not_undelivered() {
    let mut session = Session::new(Policy {
        delivery_timeout: Some(ms(5000)),
        ..policy()
    });
    session.observe(1, heard(0, 1));
    let (at, close) = session.until_closed(500, |at| undelivered(at, at));
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!(at >= 30_000, "closed after {at}");
}

#[test]
fn a_suspect_is_not_called_stalled() {
    let stall_timeout = Some(ms(5000));
    let mut session = Session::new(Policy {
        stall_timeout,
        ..policy()
    });
    session.observe(1, heard(0, 1));
    let (at, close) = session.until_closed(6000, |at| shut(at, at, 6));
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!((30_000..=30_850).contains(&at), "closed after {at}");
}

#[test]
fn conditions() {
    let table = [
        (1000, heard(999, 1), Condition::Alive),
        (6900, heard(6899, 1), Condition::Alive),
        (7100, heard(7099, 1), Condition::Quiet),
        // Its answer may be on its way.
        (7100, probed(7099, 1), Condition::Quiet),
        (7100, probed(7099, 2), Condition::Suspect),
        (900, retransmitting(899), Condition::Alive),
        (1100, retransmitting(1099), Condition::Suspect),
        (1100, shut(1099, 1099, 1), Condition::Stalled),
        (2100, shut(2099, 2099, 2), Condition::Suspect),
    ];
    for (at, sample, expected) in table {
        let mut session = Session::new(policy());
        session.observe(1, heard(0, 1));
        session.observe(at, sample);
        let condition = session.machine.leg(Leg::Downstream).condition;
        assert_eq!(condition, expected, "{sample:?}");
    }
}

#[test]
fn rest_follows_the_answer_once() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    assert_eq!(
        session.observe(29_000, heard(28_999, 1)).actions[0],
        Some(Action::ProbeNow)
    );
    assert_eq!(
        session.observe(29_100, heard(90, 2)).actions[0],
        Some(Action::ProbeNormally)
    );
    assert_eq!(session.observe(29_200, heard(190, 2)).actions[0], None);
}

/// A leg whose peer has said FIN and is owed nothing.
fn complete(age: u64) -> LegSample {
    LegSample {
        state: TcpState::CloseWait,
        ..heard(age, 1)
    }
}

#[test]
fn a_peer_that_said_fin_and_is_owed_nothing_is_neither_asked_nor_judged() {
    let mut session = Session::new(policy());
    assert_eq!(
        session.observe(1000, complete(1000)).actions[0],
        Some(Action::StopProbes)
    );
    for second in 2..200 {
        let after = second * 1000;
        let unanswered = LegSample {
            probes: 9,
            ..complete(after)
        };
        let verdict = session.observe(after, unanswered);
        assert_eq!(
            (verdict.actions[0], verdict.close),
            (None, None),
            "{second}"
        );
        assert!(verdict.next <= T0 + ms(after + 1500), "{second}");
        let condition = session.machine.leg(Leg::Downstream).condition;
        assert_ne!(condition, Condition::Suspect, "{second}");
        let timer = session.machine.leg_timer(&session.policy, Leg::Downstream);
        assert_eq!(timer, None, "{second}");
    }
}

#[test]
fn it_is_judged_from_when_it_is_seen_to_be_owed_something() {
    let mut session = Session::new(policy());
    session.observe(1000, complete(1000));
    session.observe(60_000, complete(60_000));
    let owed = |after: u64| LegSample {
        state: TcpState::CloseWait,
        retransmits: (after / 1000) as u32 - 60,
        ..retransmitting(after)
    };
    assert_eq!(
        session.observe(61_000, owed(61_000)).actions[0],
        Some(Action::ResumeProbes)
    );
    let (after, close) = session.until_closed(62_000, owed);
    assert_eq!(close.reason, CloseReason::DownstreamDead);
    assert!((91_750..93_000).contains(&after), "{after}");
    // What it had sent is delivered: it is not judged twice.
    assert!(session.machine.said_fin(Leg::Downstream));
    session.machine.give_up(Leg::Downstream);
    assert_eq!(session.observe(200_000, owed(200_000)).close, None);
}

#[test]
fn the_half_close_clock_stands_still_while_a_live_peer_is_owed_bytes() {
    let mut session = Session::new(Policy {
        half_close_timeout: Some(ms(10_000)),
        ..policy()
    });
    let owed = |segs| Some(shut_but_heard(segs));
    for second in 1..100 {
        let verdict = session.both(
            second * 1000,
            Some(complete(second * 1000)),
            owed(second as u32),
        );
        assert_eq!(verdict.close, None, "{second}");
    }
    let taken = |segs| Some(heard(0, segs));
    assert_eq!(
        session
            .both(108_000, Some(complete(108_000)), taken(200))
            .close,
        None
    );
    let verdict = session.both(109_000, Some(complete(109_000)), taken(201));
    assert_eq!(reason(&verdict), Some(CloseReason::HalfCloseTimeout));
}

/// A peer that takes no data, and answers.
fn shut_but_heard(segs_in: u32) -> LegSample {
    LegSample {
        segs_in,
        ..shut(0, u64::MAX, 0)
    }
}

#[test]
fn half_close_is_rearmed_by_bytes() {
    let half_close_timeout = Some(ms(10_000));
    let mut session = Session::new(Policy {
        half_close_timeout,
        ..policy()
    });
    let fin = |sent, segs| LegSample {
        state: TcpState::CloseWait,
        last_sent_age: ms(sent),
        ..heard(0, segs)
    };
    assert!(!session.machine.is_half_closed());
    session.observe(5000, fin(5000, 2));
    assert!(session.machine.is_half_closed());
    assert_eq!(session.observe(14_999, fin(1000, 3)).close, None);
    assert_eq!(session.observe(23_998, fin(9999, 4)).close, None);
    let close = session.observe(23_999, fin(10_000, 5)).close.unwrap();
    assert_eq!(
        (close.reason, close.how),
        (CloseReason::HalfCloseTimeout, CloseHow::Flush)
    );
}

#[test]
fn idle_counts_from_the_last_byte() {
    let idle_timeout = Some(ms(20_000));
    let mut session = Session::new(Policy {
        idle_timeout,
        ..policy()
    });
    let last = |data, segs| LegSample {
        last_data_age: ms(data),
        ..heard(0, segs)
    };
    assert_eq!(session.observe(19_999, last(19_999, 2)).close, None);
    let verdict = session.observe(20_000, last(5000, 3));
    assert_eq!((verdict.close, verdict.next), (None, T0 + ms(35_000)));
    assert_eq!(session.machine.last_activity(), T0 + ms(15_000));
    // Bytes may have passed on a leg that could not be asked.
    let blind = session.both(35_000, None, Some(heard(0, 99)));
    assert_eq!(blind.close, None);
    let close = session.observe(35_001, last(20_001, 5)).close.unwrap();
    assert_eq!(
        (close.reason, close.how),
        (CloseReason::IdleTimeout, CloseHow::Flush)
    );
}

/// Each leg has its own clock: it counts from the last payload of its peer, whatever goes the other way.
#[test]
fn a_live_peer_that_sends_nothing_is_silent() {
    for leg in LEGS {
        let mut policy = policy();
        policy.receive_timeout[leg as usize] = Some(ms(20_000));
        let mut session = Session::new(policy);
        let mut quiet_leg = |at: u64, age, unread: u64| {
            session.traffic.received[leg as usize] = 9;
            let quiet = LegSample {
                last_data_age: ms(age),
                bytes_received: 9 + unread,
                ..heard(0, at as u32)
            };
            let mut legs = [Some(heard(0, at as u32)); 2];
            legs[leg as usize] = Some(quiet);
            let verdict = session.both(at, legs[0], legs[1]);
            let timer = session.machine.leg_timer(&session.policy, leg);
            let timer = timer.filter(|t| t.reason == CloseReason::silent(leg));
            (verdict, timer.map(|t| t.at))
        };
        let (verdict, timer) = quiet_leg(15_000, 5000, 0);
        assert_eq!((verdict.close, timer), (None, Some(T0 + ms(30_000))));
        assert!(verdict.next <= T0 + ms(30_000));
        // What we do not read because the other peer takes nothing was sent all the same.
        assert_eq!(quiet_leg(29_000, 19_000, 4).0.close, None);
        assert_eq!(quiet_leg(48_999, 38_999, 0).0.close, None);
        let close = quiet_leg(49_000, 39_000, 0).0.close.expect("in time");
        assert_eq!(close.reason, CloseReason::silent(leg));
        assert_eq!(close.how, CloseHow::Flush);
        assert_eq!(close.evidence, None);
        assert_eq!(close.reason.initiator(), "proxy");
    }
}

/// Nor is one that has said FIN, or whose upstream is being dialled.
#[test]
fn a_peer_that_may_send_nothing_yet_or_any_more_is_not_called_silent() {
    let policy = Policy {
        receive_timeout: [Some(ms(10_000)); 2],
        ..policy()
    };
    let mut session = Session::new(policy);
    session.machine = Machine::accepted(T0);
    assert_eq!(session.both(15_000, Some(heard(0, 2)), None).close, None);
    session.machine.open(T0 + ms(15_000));
    let talks = |at| {
        Some(LegSample {
            last_data_age: ms(0),
            ..heard(0, at)
        })
    };
    let silent = Some(LegSample {
        last_data_age: ms(24_999),
        ..heard(0, 3)
    });
    assert_eq!(session.both(24_999, silent, talks(2)).close, None);
    let fin = Some(LegSample {
        state: TcpState::CloseWait,
        ..heard(0, 4)
    });
    for at in 25..60 {
        assert_eq!(
            session.both(at * 1000, fin, talks(at as u32)).close,
            None,
            "{at}"
        );
    }
}

#[test]
fn a_request_waits_for_its_first_response() {
    let first_response_timeout = Some(ms(5000));
    let request = LegSample {
        last_sent_age: ms(1000),
        ..heard(0, 2)
    };
    let table = [
        (
            "answered",
            LegSample {
                last_data_age: ms(500),
                bytes_received: 9,
                ..request
            },
            None,
        ),
        ("no answer", request, Some(T0 + ms(2000 - 1000 + 5000))),
        (
            "connected in the same tick",
            LegSample {
                last_data_age: ms(1000),
                ..request
            },
            Some(T0 + ms(6000)),
        ),
        (
            "unacknowledged",
            LegSample {
                unacked: 1,
                ..request
            },
            None,
        ),
        (
            "said FIN",
            LegSample {
                state: TcpState::CloseWait,
                ..request
            },
            None,
        ),
    ];
    for (name, up, expected) in table {
        let mut session = Session::new(Policy {
            first_response_timeout,
            ..policy()
        });
        session.traffic.sent[1] = 10;
        session.both(2000, Some(heard(0, 2)), Some(up));
        let timer = session.machine.next_timer(&session.policy);
        let timer = timer.filter(|t| t.reason == CloseReason::FirstResponseTimeout);
        assert_eq!(timer.map(|t| t.at), expected, "{name}");
    }
}

/// The kernel's ages do not tell which came first; the relay had read 9 bytes when it wrote.
#[test]
fn an_answer_and_the_next_request_may_share_a_tick() {
    for (name, received, expected) in [
        ("asked again", 9, Some(T0 + ms(6000))),
        ("answered", 18, None),
        ("answered before the request was written", 10, None),
    ] {
        let mut session = Session::new(Policy {
            first_response_timeout: Some(ms(5000)),
            ..policy()
        });
        session.traffic.sent[1] = 10;
        session.answers_before = 9;
        let up = LegSample {
            last_sent_age: ms(1000),
            last_data_age: ms(1000),
            bytes_received: received,
            ..heard(0, 2)
        };
        session.both(2000, Some(heard(0, 2)), Some(up));
        let timer = session.machine.next_timer(&session.policy);
        let timer = timer.filter(|t| t.reason == CloseReason::FirstResponseTimeout);
        assert_eq!(timer.map(|t| t.at), expected, "{name}");
    }
}

/// `close_notify` is the last data sent on a leg of TLS, long after the answer. Plain data behind an answer
/// is a request.
#[test]
fn the_end_of_a_layer_is_no_request() {
    for (state, is_layered, is_request) in [
        (TcpState::FinWait2, true, false),
        (TcpState::Established, true, true),
        (TcpState::FinWait2, false, true),
    ] {
        let mut session = Session::new(Policy {
            first_response_timeout: Some(ms(5000)),
            ..policy()
        });
        session.traffic.sent[1] = 10;
        let up = LegSample {
            state,
            is_layered,
            last_sent_age: ms(1000),
            last_data_age: ms(1500),
            bytes_received: 9,
            ..heard(0, 2)
        };
        session.both(2000, Some(heard(0, 2)), Some(up));
        let timer = session.machine.next_timer(&session.policy);
        let is_due = timer.is_some_and(|t| t.reason == CloseReason::FirstResponseTimeout);
        assert_eq!(is_due, is_request, "{state:?}, {is_layered}");
    }
}

/// Only payload restarts the clocks that count it.
#[test]
fn a_heartbeat_is_no_payload() {
    for (is_asked, moved) in [(true, 0), (false, 4000)] {
        let mut session = Session::new(policy());
        let up = LegSample {
            is_asked,
            last_sent_age: ms(1000),
            last_data_age: ms(1000),
            ..heard(0, 2)
        };
        session.both(5000, Some(heard(0, 2)), Some(up));
        let machine = &session.machine;
        assert_eq!(machine.last_activity(), T0 + ms(moved), "{is_asked}");
        assert_eq!(machine.last_received(Leg::Upstream), T0 + ms(moved));
    }
}

/// It may stand between a request and its answer.
#[test]
fn a_heartbeat_is_neither_a_request_nor_an_answer() {
    let mut session = Session::new(Policy {
        first_response_timeout: Some(ms(5000)),
        ..policy()
    });
    session.traffic.sent[1] = 10;
    let request = LegSample {
        last_sent_age: ms(1000),
        last_data_age: ms(1500),
        bytes_received: 9,
        ..heard(0, 2)
    };
    session.both(2000, Some(heard(0, 2)), Some(request));
    let due = session.machine.next_timer(&session.policy);
    assert_eq!(due.map(|t| t.at), Some(T0 + ms(6000)));
    let asked = LegSample {
        is_asked: true,
        last_sent_age: ms(200),
        last_data_age: ms(100),
        ..request
    };
    session.both(4000, Some(heard(0, 3)), Some(asked));
    assert_eq!(session.machine.next_timer(&session.policy), due);
}

#[test]
fn a_session_ends_at_its_greatest_age_whatever_it_does() {
    let max_duration = Some(ms(60_000));
    let mut session = Session::new(Policy {
        max_duration,
        ..policy()
    });
    assert_eq!(session.observe(59_999, heard(0, 2)).close, None);
    let close = session.both(60_000, None, None).close.unwrap();
    assert_eq!(
        (close.reason, close.how),
        (CloseReason::MaxDuration, CloseHow::Flush)
    );
}

#[test]
fn ties_go_to_the_gravest_and_the_longest_silent() {
    let all = Policy {
        idle_timeout: Some(ms(30_000)),
        half_close_timeout: Some(ms(30_000)),
        max_duration: Some(ms(30_000)),
        ..policy()
    };
    let mut session = Session::new(all);
    session.observe(1, heard(0, 1));
    let dead = |age| probed(age, 20);
    session.both(29_000, Some(dead(28_999)), Some(dead(28_500)));
    session.both(29_999, Some(dead(29_998)), Some(dead(29_499)));
    session.both(30_600, Some(dead(30_599)), Some(dead(30_100)));
    let verdict = session.both(30_800, Some(dead(30_799)), Some(dead(30_300)));
    assert_eq!(reason(&verdict), Some(CloseReason::DownstreamDead));
    let mut session = Session::new(Policy {
        idle_timeout: Some(ms(60_000)),
        max_duration: Some(ms(60_000)),
        ..policy()
    });
    assert_eq!(
        reason(&session.observe(60_000, heard(0, 2))),
        Some(CloseReason::IdleTimeout)
    );
}

#[test]
fn time_that_runs_backwards_stands_still() {
    let mut session = Session::new(policy());
    session.observe(20_000, heard(0, 2));
    let verdict = session.observe(5000, heard(15_000, 2));
    assert_eq!(verdict.close, None);
    assert!(verdict.next > T0 + ms(20_000));
    assert_eq!(
        session.machine.leg(Leg::Downstream).last_heard,
        T0 + ms(20_000)
    );
}

/// What never happened has the age of the host.
#[test]
fn ages_reach_back_to_the_start_at_most() {
    let idle_timeout = Some(ms(10_000));
    let mut session = Session::new(Policy {
        idle_timeout,
        ..policy()
    });
    let verdict = session.observe(100, heard(u64::MAX, 1));
    assert_eq!(verdict.close, None);
    assert_eq!(session.machine.last_activity(), T0);
    assert_eq!(session.machine.leg(Leg::Downstream).last_heard, T0);
}

#[test]
fn a_session_may_live_for_years() {
    let year = 365 * 24 * 3_600_000;
    let mut session = Session::new(policy());
    session.observe(2 * year, heard(0, 2));
    assert_eq!(
        session.machine.leg(Leg::Downstream).last_heard,
        T0 + ms(2 * year)
    );
    // Even a leg that gives no sign of life and is never asked.
    session.observe(3 * year, heard(year, 2));
    session.observe(4 * year, heard(2 * year, 2));
    let (at, close) = session.until_closed(4 * year + 1000, |at| LegSample {
        segs_in: 2,
        ..probed(at - 2 * year, 20)
    });
    assert_eq!(close.silent_for, ms(at - 2 * year));
}

#[test]
fn faults() {
    let asked = probed(3000, 1);
    let table = [
        (
            Fault::Reset,
            heard(3000, 1),
            CloseReason::UpstreamReset,
            None,
        ),
        (
            Fault::Reset,
            asked,
            CloseReason::UpstreamDead,
            Some(Evidence::Reset),
        ),
        // A live peer need not answer one probe of its closed window.
        (
            Fault::Reset,
            shut(3000, 4000, 1),
            CloseReason::UpstreamReset,
            None,
        ),
        (
            Fault::TimedOut,
            asked,
            CloseReason::UpstreamDead,
            Some(Evidence::KernelTimeout),
        ),
        (
            Fault::Unreachable,
            asked,
            CloseReason::UpstreamDead,
            Some(Evidence::Unreachable),
        ),
    ];
    for (fault, sample, reason, evidence) in table {
        let mut machine = Machine::new(T0);
        let close = machine.fault(T0 + ms(5000), Leg::Upstream, fault, Some(&sample));
        assert_eq!((close.reason, close.evidence), (reason, evidence));
        assert_eq!(close.how, CloseHow::AbortAfterFlush(Leg::Upstream));
        assert_eq!(close.silent_for, ms(3000));
    }
}

/// The reset arrives, a look comes before the error is read: the suspicion must survive it.
#[test]
fn a_closed_socket_keeps_what_was_known() {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    session.observe(8000, retransmitting(7999));
    let closed = LegSample {
        state: TcpState::Closed,
        ..heard(8000, 2)
    };
    session.observe(8001, closed);
    let close = session
        .machine
        .fault(T0 + ms(8002), Leg::Downstream, Fault::Reset, Some(&closed));
    assert_eq!(close.evidence, Some(Evidence::Reset));
}

#[test]
fn derived_spans() {
    let table = [
        // D, I, grace, final phase
        [2000, 1000, 150, 875],
        [2000, 1999, 150, 875],
        [3000, 2999, 150, 1875],
        [8000, 1600, 200, 2300],
        [30_000, 6000, 750, 1200],
        [60_000, 59_000, 1500, 1875],
    ];
    for spans in table {
        let [detect_within, probe_interval, grace, final_phase] = spans.map(ms);
        let policy = Policy {
            detect_within,
            probe_interval,
            ..policy()
        };
        assert_eq!((policy.grace(), policy.final_phase()), (grace, final_phase));
        assert!(
            policy.grace() <= (detect_within / 20).max(ms(300)),
            "within the tolerance"
        );
        assert_eq!(policy.suspect_after(), probe_interval + ms(1000));
    }
}

fn any_sample() -> impl Strategy<Value = LegSample> {
    let states = prop::sample::select(vec![
        TcpState::Established,
        TcpState::CloseWait,
        TcpState::FinWait1,
        TcpState::FinWait2,
        TcpState::LastAck,
        TcpState::Closed,
    ]);
    let age = prop_oneof![0..100_000u64, Just(0), Just(u64::MAX), any::<u64>()];
    let count = prop_oneof![Just(0u32), 0..5u32, any::<u32>()];
    let ages = [age.clone(), age.clone(), age];
    let counts = [
        count.clone(),
        count.clone(),
        count.clone(),
        count.clone(),
        count,
    ];
    (states, ages, counts, any::<bool>(), any::<u64>()).prop_map(
        |(state, ages, counts, zero_window, bytes)| LegSample {
            state,
            unacked: counts[0],
            retransmits: counts[1],
            probes: counts[2],
            backoff: counts[3] as u8,
            notsent: counts[3],
            busy: ms(0),
            segs_in: counts[4],
            rtt_us: counts[4],
            rttvar_us: counts[3],
            zero_window,
            last_ack_age: ms(ages[0]),
            last_data_age: ms(ages[1]),
            last_sent_age: ms(ages[2]),
            bytes_acked: bytes,
            bytes_received: bytes,
            rto: ms(ages[2] % 2000),
            is_local: counts[1] == 4,
            is_layered: counts[2] == 4,
            is_asked: counts[0] == 4,
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let span = || {
        prop::option::of(prop_oneof![
            1000..100_000u64,
            Just(u64::from(u32::MAX) * 100)
        ])
    };
    (
        2000..60_000u64,
        0..1000u64,
        [span(), span(), span(), span(), span(), span()],
    )
        .prop_map(|(d, i, spans)| Policy {
            detect_within: ms(d),
            probe_interval: ms(1000 + (d - 1001) * i / 1000),
            idle_timeout: spans[0].map(ms),
            half_close_timeout: spans[1].map(ms),
            stall_timeout: spans[2].map(ms),
            delivery_timeout: spans[5].map(ms),
            receive_timeout: [spans[0].map(ms), spans[2].map(ms)],
            probes: [spans[5].is_some(), true],
            first_response_timeout: spans[3].map(ms),
            max_duration: spans[4].map(ms),
        })
}

fn any_look() -> impl Strategy<Value = (Time, Observation)> {
    let leg = || prop::option::weighted(0.9, any_sample());
    let start = T0.as_millis();
    let time = prop_oneof![
        start..start + 200_000,
        0..start,
        Just(u64::from(u32::MAX) * 1000)
    ];
    (time, [leg(), leg()], any::<u64>()).prop_map(|(now, legs, bytes)| {
        let traffic = Traffic {
            received: [bytes; 2],
            sent: [bytes; 2],
        };
        (
            Time::ms(now),
            Observation {
                legs,
                traffic,
                ..Observation::default()
            },
        )
    })
}

proptest! {
    /// Whatever the kernel claims and whichever way the clock goes: no panic, time goes on, a
    /// verdict of death has evidence and D of silence, and the same inputs give the same outputs.
    #[test]
    fn survives_any_samples(policy in any_policy(), looks in prop::collection::vec(any_look(), 1..60)) {
        let mut machine = Machine::new(T0);
        let mut last = T0;
        prop_assert!(machine.first_observation(&policy) > T0);
        for (now, look) in looks {
            let mut twin = machine.clone();
            let verdict = machine.observe(now, &policy, &look);
            prop_assert_eq!(verdict, twin.observe(now, &policy, &look));
            last = last.max(machine.last_observed());
            prop_assert!(verdict.next > last && verdict.next > now);
            if let Some(close) = verdict.close {
                let dead = LEGS.map(CloseReason::dead).contains(&close.reason);
                prop_assert_eq!(dead, close.evidence.is_some());
                prop_assert!(!dead || close.silent_for >= policy.detect_within);
            }
            for leg in LEGS {
                prop_assert!(machine.leg(leg).last_heard <= last);
                let fault = machine.fault(now, leg, Fault::Reset, look.legs[leg as usize].as_ref());
                prop_assert!(fault.silent_for <= last.max(now) - Time::default());
            }
        }
    }

    /// A peer that is heard at every look is never dead, and suspected of nothing.
    #[test]
    fn a_heard_peer_lives(policy in any_policy(), ages in prop::collection::vec(0..500u64, 1..100)) {
        let policy = Policy { max_duration: None, ..policy };
        let mut machine = Machine::new(T0);
        let mut now = machine.first_observation(&policy);
        for (count, age) in ages.into_iter().enumerate() {
            let look = Observation { legs: [Some(heard(age, 2 + count as u32)); 2], ..Observation::default() };
            let verdict = machine.observe(now, &policy, &look);
            prop_assert!(verdict.close.is_none_or(|c| c.evidence.is_none()));
            prop_assert_eq!(machine.leg(Leg::Upstream).condition, Condition::Alive);
            now = verdict.next;
        }
    }
}

/// An upstream whose accept queue was full: the handshake was completed on our side only. The
/// server repeats its SYN-ACK at 1, 3, 7, 15 s, which is a sign of life of its kernel.
#[test]
fn a_service_that_never_accepted_is_a_phantom() {
    let phantom = |at: u64| {
        let heard = [1, 1000, 3000, 7000, 15_000]
            .into_iter()
            .rfind(|t| *t <= at)
            .unwrap_or(0);
        LegSample {
            unacked: 1,
            retransmits: u32::try_from(at / 1000).expect("small"),
            bytes_acked: 1,
            segs_in: 1 + u32::try_from(at / 1000).expect("small").min(4),
            last_ack_age: ms(at - heard),
            last_data_age: ms(at),
            last_sent_age: ms(at % 1000),
            busy: ms(at - 500),
            ..LegSample::default()
        }
    };
    let traffic = Traffic {
        sent: [0, 10],
        received: [10, 0],
    };
    let policy = Policy {
        first_response_timeout: Some(ms(5000)),
        ..policy()
    };
    let mut machine = Machine::new(Time::default());
    let client = LegSample {
        last_ack_age: ms(100),
        segs_in: 9,
        ..LegSample::default()
    };
    for at in [2500, 3500, 4500, 5400] {
        let look = Observation {
            legs: [Some(client), Some(phantom(at))],
            traffic,
            ..Observation::default()
        };
        let verdict = machine.observe(Time::ms(at), &policy, &look);
        assert_eq!(verdict.close, None, "at {at}");
        assert_eq!(
            machine.leg(Leg::Upstream).condition,
            Condition::Phantom,
            "at {at}"
        );
    }
    // Whatever ends it, it is called what it is: the clock of the dead, or an RST because the
    // service's kernel has given up the handshake.
    let timer = machine.leg_timer(&policy, Leg::Upstream);
    let reason = timer.map(|t| t.reason);
    assert_eq!(reason, Some(CloseReason::UpstreamPhantom));
    let over = LegSample {
        state: TcpState::Closed,
        unacked: 0,
        ..phantom(5400)
    };
    let mut reset = |after: &LegSample| {
        let close = machine.fault(Time::ms(5400), Leg::Upstream, Fault::Reset, Some(after));
        (close.reason, close.evidence)
    };
    assert_eq!(reset(&over), (CloseReason::UpstreamPhantom, None));
    // Accepted since the last look, and then reset.
    let accepted = LegSample {
        bytes_acked: 11,
        last_ack_age: ms(0),
        ..over
    };
    assert_eq!(reset(&accepted), (CloseReason::UpstreamReset, None));
    let look = Observation {
        legs: [Some(client), Some(phantom(5500))],
        traffic,
        ..Observation::default()
    };
    let close = machine
        .observe(Time::ms(5500), &policy, &look)
        .close
        .expect("in time");
    assert_eq!(
        (close.reason, close.evidence),
        (CloseReason::UpstreamPhantom, None)
    );
    // A host that vanished before the first request says nothing after it.
    let vanished = LegSample {
        segs_in: 0,
        last_ack_age: ms(2600),
        last_data_age: ms(2600),
        ..phantom(3000)
    };
    let mut machine = Machine::new(Time::default());
    machine.observe(
        Time::ms(3000),
        &policy,
        &Observation {
            legs: [Some(client), Some(vanished)],
            traffic,
            ..Observation::default()
        },
    );
    assert_ne!(machine.leg(Leg::Upstream).condition, Condition::Phantom);
}

/// What the kernel is told of its questions in flight: `(seconds of silence, milliseconds)`.
fn gaps_told(rtt_us: u32, retransmits: fn(u64) -> u32, until: u64) -> Vec<(u64, u64)> {
    let mut session = Session::new(policy());
    session.observe(1, heard(0, 1));
    let mut told = Vec::new();
    let mut after = 100;
    while after < until {
        let silent = after - 1;
        let verdict = session.observe(
            after,
            LegSample {
                unacked: 9,
                retransmits: retransmits(silent),
                last_sent_age: ms(silent - 50),
                rto: ms(200),
                rtt_us,
                rttvar_us: rtt_us / 8,
                bytes_acked: 5000,
                ..heard(silent, 1)
            },
        );
        told.extend(verdict.longest_gap[0].map(|gap| (silent / 1000, gap.as_millis())));
        after = (verdict.next - T0).as_millis();
    }
    told
}

/// On a slow path an acknowledgement takes seconds: to repeat what is only queued makes it slower.
#[test]
fn a_leg_whose_acknowledgements_come_keeps_the_pace_of_its_kernel() {
    let mut session = Session::new(policy());
    for round in 1..200u64 {
        let acknowledged = LegSample {
            unacked: 9,
            bytes_acked: round * 1000,
            last_sent_age: ms(100),
            rto: ms(16_000),
            rtt_us: 12_000_000,
            rttvar_us: 1_000_000,
            ..heard(2000, 1 + round as u32)
        };
        let verdict = session.observe(round * 2500, acknowledged);
        assert_eq!(verdict.longest_gap[0], None, "round {round}");
    }
}

#[test]
fn a_silent_leg_is_asked_no_more_often_than_its_round_trips_ask_for() {
    // A second on a near path, and from 3 s on.
    assert_eq!(
        gaps_told(1000, |silent| (silent / 400) as u32, 20_000),
        [(3, 1000)]
    );
    // Here a round trip takes 2 s, and the timeout is 3 s.
    let far = gaps_told(2_000_000, |silent| (silent / 3000) as u32, 20_000);
    assert_eq!(far, [(6, 3000)]);
    // And nothing is told while that explains the silence.
    assert_eq!(gaps_told(12_000_000, |_| 0, 20_000), []);
}

/// A client on a local socket, of which the kernel tells its state only.
#[test]
fn a_local_leg_is_judged_by_its_socket_and_by_what_moves() {
    let policy = Policy {
        idle_timeout: Some(ms(60_000)),
        receive_timeout: [Some(ms(45_000)), None],
        ..Policy::without_limits(ms(10_000), ms(2000))
    };
    let local = LegSample {
        is_local: true,
        ..LegSample::default()
    };
    let at = |seconds: u64| Time::ms(seconds * 1000);
    let mut machine = Machine::new(at(0));
    let mut observation = Observation {
        legs: [Some(local); 2],
        ..Observation::default()
    };
    let mut close = None;
    for second in 1..=60 {
        if second <= 12 {
            observation.traffic.received[0] += 100;
            observation.traffic.sent[1] += 100;
        }
        let verdict = machine.observe(at(second), &policy, &observation);
        assert_eq!(machine.leg(Leg::Downstream).condition, Condition::Alive);
        assert_eq!(verdict.actions, [None; 2]);
        if let Some(found) = verdict.close {
            close = Some((second, found.reason));
            break;
        }
    }
    assert_eq!(close, Some((57, CloseReason::DownstreamSilent)));
    assert_eq!(machine.last_activity(), at(12));
}

/// A session whose upstream is a Unix socket, and whose client is heard all the time.
fn at_unix_socket(session: &mut Session, after: u64, state: TcpState) -> Verdict {
    let local = LegSample {
        is_local: true,
        state,
        ..LegSample::default()
    };
    session.both(after, Some(heard(0, 1)), Some(local))
}

#[test]
fn a_service_at_a_unix_socket_is_never_dead() {
    let mut session = Session::new(policy());
    for after in (1000..3_600_000).step_by(10_000) {
        let verdict = at_unix_socket(&mut session, after, TcpState::Established);
        assert_eq!((verdict.close, verdict.actions[1]), (None, None));
        let upstream = session.machine.leg(Leg::Upstream);
        assert_eq!(upstream.condition, Condition::Alive);
    }
    at_unix_socket(&mut session, 3_600_000, TcpState::CloseWait);
    assert!(session.machine.said_fin(Leg::Upstream) && session.machine.is_half_closed());
}

#[test]
fn a_request_to_a_unix_socket_is_waited_for() {
    let mut session = Session::new(Policy {
        first_response_timeout: Some(ms(10_000)),
        ..policy()
    });
    let mut observe = |after: u64, sent: u64, received: u64, answers_before: u64| {
        session.traffic.sent[1] = sent;
        session.traffic.received[1] = received;
        session.answers_before = answers_before;
        let verdict = at_unix_socket(&mut session, after, TcpState::Established);
        verdict.close.map(|close| close.reason)
    };
    assert_eq!(observe(1000, 9, 0, 0), None);
    // It was answered, and another one was sent.
    assert_eq!(observe(10_000, 18, 4, 4), None);
    assert_eq!(observe(19_000, 18, 4, 4), None);
    let late = Some(CloseReason::FirstResponseTimeout);
    assert_eq!(observe(20_000, 18, 4, 4), late);
    assert_eq!(observe(21_000, 18, 5, 4), None, "answered");
}
