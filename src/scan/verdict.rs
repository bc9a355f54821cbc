//! One reading of a connection to one word. Pure.

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

use crate::liveness::{Condition, Judge, Leg, LegSample, Policy, Span, TcpState, Time};
use crate::sys::sock_diag::Timer;

/// What is known of a connection. Those of the proxy's conditions that one reading can tell, and, where
/// the peer is quiet, who will ever find out.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray, Serialize,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Word {
    /// Heard lately.
    Alive,
    /// Quiet; the kernel asks, or retransmits, within D.
    Quiet,
    /// Quiet; the kernel asks, but not within D.
    Late,
    /// Quiet, and no timer runs: nobody will ever notice that the peer is gone.
    Unprotected,
    /// Questions of the kernel are unanswered.
    Suspect,
    /// The peer's window is closed, and its kernel answers.
    Stalled,
    /// The peer is heard, and what was sent to it is not acknowledged.
    Undelivered,
    /// The service that was dialled has not accepted: its accept queue is full.
    Phantom,
    /// The peer has said FIN longer than D ago, and the process has not closed: a leak.
    HalfClosed,
}

impl Word {
    /// Nothing is wrong with it.
    #[must_use]
    pub const fn is_fine(self) -> bool {
        matches!(self, Self::Alive | Self::Quiet)
    }

    /// The peer is, or may be, gone without anybody noticing.
    #[must_use]
    pub const fn is_found(self) -> bool {
        matches!(self, Self::Unprotected | Self::Suspect)
    }
}

/// Judges one reading; the timer ends `expires` later. [`Leg::Upstream`] is one that this host has dialled.
#[must_use]
pub fn judge(
    now: Time,
    leg: Leg,
    policy: &Policy,
    sample: &LegSample,
    (timer, expires): (Timer, Span),
) -> Word {
    let mut judge = Judge::adopt(now, leg, sample);
    judge.observe(now, policy, sample);
    let is_old = sample.last_heard_age() >= policy.detect_within;
    match judge.condition() {
        Condition::Suspect => Word::Suspect,
        Condition::Stalled => Word::Stalled,
        Condition::Undelivered => Word::Undelivered,
        Condition::Phantom => Word::Phantom,
        Condition::Alive => Word::Alive,
        Condition::Quiet if sample.state == TcpState::CloseWait && is_old => Word::HalfClosed,
        Condition::Quiet => match timer {
            Timer::None => Word::Unprotected,
            Timer::Keepalive if expires > policy.detect_within => Word::Late,
            _ => Word::Quiet,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Span = Span::ms(3_600_000);

    fn word(sample: &LegSample, timer: Timer, expires: Span) -> Word {
        let policy = Policy::without_limits(Span::ms(30_000), Span::ms(6000));
        let now = Time::ms(1 << 40);
        judge(now, Leg::Downstream, &policy, sample, (timer, expires))
    }

    fn silent(span: Span) -> LegSample {
        LegSample {
            last_ack_age: span,
            last_data_age: span,
            last_sent_age: span,
            bytes_acked: 100,
            bytes_received: 100,
            rtt_us: 200,
            ..LegSample::default()
        }
    }

    #[test]
    fn a_quiet_peer_is_named_by_who_will_notice() {
        let soon = Span::ms(5000);
        assert_eq!(word(&silent(soon), Timer::None, Span::ZERO), Word::Alive);
        let old = silent(HOUR);
        assert_eq!(word(&old, Timer::None, Span::ZERO), Word::Unprotected);
        assert_eq!(word(&old, Timer::Keepalive, soon), Word::Quiet);
        assert_eq!(word(&old, Timer::Keepalive, HOUR), Word::Late);
        let closing = LegSample {
            state: TcpState::CloseWait,
            ..old
        };
        assert_eq!(word(&closing, Timer::None, Span::ZERO), Word::HalfClosed);
        let closing = LegSample {
            state: TcpState::CloseWait,
            ..silent(soon)
        };
        assert_eq!(word(&closing, Timer::None, Span::ZERO), Word::Alive);
    }

    #[test]
    fn unanswered_questions_make_a_suspect() {
        let asked = LegSample {
            probes: 3,
            ..silent(Span::ms(60_000))
        };
        assert_eq!(
            word(&asked, Timer::Keepalive, Span::ms(1000)),
            Word::Suspect
        );
        let in_flight = LegSample {
            unacked: 1,
            retransmits: 4,
            busy: Span::ms(20_000),
            last_sent_age: Span::ms(8000),
            ..silent(Span::ms(20_000))
        };
        assert_eq!(
            word(&in_flight, Timer::Retransmit, Span::ms(9)),
            Word::Suspect
        );
        let shut = LegSample {
            notsent: 9000,
            zero_window: true,
            busy: Span::ms(60_000),
            ..silent(Span::ms(900))
        };
        assert_eq!(word(&shut, Timer::WindowProbe, Span::ms(9)), Word::Stalled);
    }
}
