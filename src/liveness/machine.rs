//! The state machine of one session.

use super::leg::{Condition, LegState, SUSPECT_LOOK_EVERY, Stream, is_asked};
use super::policy::Policy;
use super::reason::{CloseHow, CloseReason, Evidence, LEGS, Leg};
use super::sample::{LegSample, Look, TcpState};
use super::time::{Span, Time};

/// A retransmission says something once the peer was silent for longer than the kernel's shortest
/// timer (`TCP_RTO_MIN`).
const REPEATED: Span = Span::ms(200);

/// A live peer acknowledges data within less than this; an RST that answers data after longer silence
/// comes from a host that has forgotten the connection.
const FORGOT: Span = Span::ms(1000);

/// What to do to a leg's socket after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Have the kernel send a keepalive probe now.
    Probe,
    /// The peer has answered: return to the normal probe interval.
    Rest,
    /// The peer has said FIN and is owed nothing: send it no keepalive probe any more.
    Nothing,
    /// It is owed something again: send it keepalive probes again.
    Again,
}

/// The decision to end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Why.
    pub reason: CloseReason,
    /// How each leg is ended.
    pub how: CloseHow,
    /// What proved it, where a peer was found gone.
    pub evidence: Option<Evidence>,
    /// Since the last sign of life of the leg that was found gone, ms.
    pub silent_for: Span,
}

/// What one look led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Per leg, what to do to the socket.
    pub ask: [Option<Ask>; 2],
    /// Per leg, the longest gap that the kernel is to leave between two of its questions, ms, where
    /// that is to be set (`TCP_RTO_MAX_MS`).
    pub longest_gap: [Option<Span>; 2],
    /// End the session.
    pub close: Option<Close>,
    /// Look again at this time, always later than the look itself.
    pub next: Time,
}

/// What will end the session next if nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The reason it would end with.
    pub reason: CloseReason,
    /// When.
    pub at: Time,
}

/// A leg as shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegView {
    /// What is known of the peer.
    pub condition: Condition,
    /// When it last gave a sign of life.
    pub last_life: Time,
}

/// How a leg failed, as its socket reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ECONNRESET, EPIPE: the peer sent RST.
    Reset,
    /// ETIMEDOUT: the kernel gave up.
    TimedOut,
    /// EHOSTUNREACH, ENETUNREACH and the like.
    Unreachable,
    /// Anything else (ENOMEM, EPROTO): the peer has no part in it.
    Local,
}

/// Decides whether one session lives. See the [module documentation](super).
#[derive(Clone, Debug)]
pub struct Machine {
    start: Time,
    /// Since when both legs are up.
    opened: Option<Time>,
    last_look: Time,
    /// When a byte last moved on either leg.
    activity: Time,
    /// Since when one side has said FIN.
    half_closed: Option<Time>,
    /// Since when a delivered request waits for its answer.
    waiting: Option<Time>,
    legs: [LegState; 2],
}

impl Machine {
    /// A session whose legs have just been connected; that is a sign of life of both.
    #[must_use]
    pub fn new(now: Time) -> Self {
        let mut machine = Self::accepted(now);
        machine.open(now);
        machine
    }

    /// A session whose client has just been accepted: it has no upstream yet. Only the client is
    /// judged then; the clocks of a session do not run.
    #[must_use]
    pub fn accepted(now: Time) -> Self {
        Self {
            start: now,
            opened: None,
            last_look: now,
            activity: now,
            half_closed: None,
            waiting: None,
            legs: LEGS.map(|leg| LegState::new(now, leg)),
        }
    }

    /// The upstream has just been connected, which is a sign of life of it. What is known of the
    /// client stays.
    pub fn open(&mut self, now: Time) {
        let now = now.max(self.last_look);
        // Whoever looks next may have read the clock before.
        self.last_look = now;
        self.opened = Some(now);
        self.activity = now;
        self.legs[Leg::Upstream as usize] = LegState::new(now, Leg::Upstream);
    }

    /// When the client was accepted.
    #[must_use]
    pub fn started(&self) -> Time {
        self.start
    }

    /// Since when both legs are up.
    #[must_use]
    pub fn opened(&self) -> Option<Time> {
        self.opened
    }

    /// When the first look is due.
    #[must_use]
    pub fn first_look(&self, policy: &Policy) -> Time {
        let legs = LEGS.map(|leg| self.is_up(leg).then(LegSample::default));
        self.next_look(self.start, policy, legs, true)
    }

    fn is_up(&self, leg: Leg) -> bool {
        leg == Leg::Downstream || self.opened.is_some()
    }

    /// Takes in what the kernel says and decides. `now` may not be trusted to be monotonic; a
    /// step back counts as standing still.
    pub fn look(&mut self, now: Time, policy: &Policy, look: &Look) -> Verdict {
        let now = now.max(self.last_look);
        let mut ask = [None; 2];
        let mut longest_gap = [None; 2];
        let mut dead = [None; 2];
        for leg in LEGS {
            if let Some(sample) = &look.legs[leg as usize] {
                let sample = sample.clamped(now - self.start);
                let state = &mut self.legs[leg as usize];
                self.activity = self.activity.max(state.last_payload(now, &sample));
                ask[leg as usize] = state.observe(now, policy, leg, &sample);
                longest_gap[leg as usize] = state.longest_gap(now, policy, &sample);
                dead[leg as usize] = state.death(now, policy, &sample);
            }
        }
        self.observe_session(now, look);
        self.last_look = now;
        let seen = |leg: Leg| look.legs[leg as usize].is_some();
        let whole = LEGS.into_iter().all(|leg| seen(leg) || !self.is_up(leg));
        let close = self.due(now, policy, dead, whole);
        let watched = look.legs.map(|s| s.filter(|s| s.state != TcpState::Closed));
        let next = self.next_look(now, policy, watched, whole);
        self.check_invariants(now, next);
        Verdict {
            ask,
            longest_gap,
            close,
            next,
        }
    }

    /// A socket reported an error. `after` is a sample taken after it: a question that was
    /// pending when RST came was answered by it, so the peer had forgotten the connection.
    pub fn fault(&mut self, now: Time, leg: Leg, fault: Fault, after: Option<&LegSample>) -> Close {
        let now = now.max(self.last_look);
        let state = &self.legs[leg as usize];
        // A segment that is lost and repeated on a busy path is no unanswered question yet.
        // One that was silent and answers what we sent with RST instead of an acknowledgement knows
        // nothing of the connection; unless it had said FIN, and its application has closed since.
        let forgot = !self.is_half_closed()
            && after.is_some_and(|s| {
                s.last_life_age() >= FORGOT && s.last_sent_age < s.last_life_age()
            });
        // A Linux peer answers only some of the probes of its closed window (twice a second at most):
        // a single unanswered one says nothing.
        let unanswered = |s: &LegSample| is_asked(s) && !s.zero_window;
        let asked = state.condition == Condition::Suspect
            || forgot
            || after.is_some_and(|s| unanswered(s) && s.last_life_age() >= REPEATED);
        let phantom =
            state.condition == Condition::Phantom && after.is_none_or(|s| !s.anything_taken());
        let (reason, evidence) = match fault {
            // Its kernel has given up the handshake.
            Fault::Reset if phantom => (CloseReason::UpstreamPhantom, None),
            Fault::Reset if asked => (CloseReason::dead(leg), Some(Evidence::Reset)),
            Fault::Reset => (CloseReason::reset(leg), None),
            Fault::Local => (CloseReason::LocalError, None),
            Fault::TimedOut => (CloseReason::dead(leg), Some(Evidence::KernelTimeout)),
            Fault::Unreachable => (CloseReason::dead(leg), Some(Evidence::Unreachable)),
        };
        let heard = after.map_or(state.life, |s| {
            now - s.clamped(now - self.start).last_life_age()
        });
        let silent_for = now - heard.max(state.life);
        Close {
            reason,
            how: CloseHow::AbortAfterFlush(leg),
            evidence,
            silent_for,
        }
    }

    /// The kernel was told to ask the peer of a leg, whatever it was told before.
    pub fn is_asked(&mut self, leg: Leg) {
        let stream = &mut self.legs[leg as usize].stream;
        if *stream == Stream::Over {
            *stream = Stream::Complete;
        }
    }

    /// Whether the peer of a leg is known to have said FIN.
    #[must_use]
    pub fn said_fin(&self, leg: Leg) -> bool {
        self.legs[leg as usize].stream != Stream::Open
    }

    /// The peer of a leg is gone, and what it had sent is still to be delivered: from now on only
    /// the other peer and the limits of the session can end that.
    pub fn give_up(&mut self, leg: Leg) {
        self.legs[leg as usize].stream = Stream::Bequeathed;
    }

    /// Somebody asks the peer of a leg now: the longest gap that the kernel is to leave between two
    /// questions meanwhile, ms, where that is to be set.
    pub fn hasten(&mut self, leg: Leg, sample: &LegSample) -> Option<Span> {
        self.legs[leg as usize].hasten(sample)
    }

    /// A leg as shown to the operator.
    #[must_use]
    pub fn leg(&self, leg: Leg) -> LegView {
        let state = &self.legs[leg as usize];
        LegView {
            condition: state.condition,
            last_life: state.life,
        }
    }

    /// How many keepalive probes the peers answered, as far as a look saw it.
    #[must_use]
    pub fn probes_answered(&self) -> [u8; 2] {
        self.legs.each_ref().map(|leg| leg.probes_answered)
    }

    /// What the session is closed as when the peer of a leg stays silent.
    #[must_use]
    pub fn silent(&self, leg: Leg) -> CloseReason {
        self.legs[leg as usize].silent(leg)
    }

    /// When the last look was.
    #[must_use]
    pub fn last_look(&self) -> Time {
        self.last_look
    }

    /// When a byte last moved on either leg.
    #[must_use]
    pub fn last_activity(&self) -> Time {
        self.activity
    }

    /// Whether exactly one side has said FIN.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.is_some()
    }

    /// What will end the session next if nothing changes, and when.
    #[must_use]
    pub fn next_timer(&self, policy: &Policy) -> Option<Timer> {
        self.timers(policy)
            .into_iter()
            .flatten()
            .min_by_key(|t| t.at)
    }

    /// What will end the session because of this leg, if nothing more is heard of it.
    #[must_use]
    pub fn leg_timer(&self, policy: &Policy, leg: Leg) -> Option<Timer> {
        let own = [
            self.silent(leg),
            CloseReason::stalled(leg),
            CloseReason::undelivered(leg),
        ];
        let timers = self.timers(policy).into_iter().flatten();
        timers
            .filter(|t| own.contains(&t.reason))
            .min_by_key(|t| t.at)
    }

    fn observe_session(&mut self, now: Time, look: &Look) {
        let samples = || {
            // Of a peer that is gone only repetitions are to be seen.
            let legs = self.legs.iter().zip(&look.legs);
            legs.filter_map(|(leg, sample)| sample.filter(|_| leg.stream != Stream::Bequeathed))
                .map(|s| s.clamped(now - self.start))
        };
        let open = self.opened.is_some();
        let given_up = self.legs.iter().any(|leg| leg.stream == Stream::Bequeathed);
        if open && (given_up || samples().any(|s| s.state != TcpState::Established)) {
            // Its clock stands still while a live peer is owed bytes: how long that may take is for
            // the clocks of that peer to say.
            let owed = samples().any(|s| s.state != TcpState::Closed && !s.is_silent());
            let since = self.half_closed.filter(|_| !owed).unwrap_or(now);
            self.half_closed = Some(since);
        }
        let sent = look.traffic.sent[Leg::Upstream as usize] > 0;
        let phantom = self.legs[Leg::Upstream as usize].condition == Condition::Phantom;
        self.waiting = look.legs[Leg::Upstream as usize]
            .filter(|s| sent && (phantom || s.awaits_answer(look.answers_before)))
            .map(|s| s.clamped(now - self.start))
            // Repeating a request is not sending it.
            .map(|s| if phantom { s.busy } else { s.last_sent_age })
            .map(|age| now - age);
    }

    /// The close that is due now, the gravest first. Without a sample of each leg that is up (`whole`)
    /// bytes may have passed unseen: then only the age of the session can end it.
    fn due(
        &self,
        now: Time,
        policy: &Policy,
        dead: [Option<Evidence>; 2],
        whole: bool,
    ) -> Option<Close> {
        if let Some((leg, evidence)) = self.dead_leg(dead) {
            let state = &self.legs[leg as usize];
            let reason = self.silent(leg);
            return Some(Close {
                reason,
                how: CloseHow::AbortAfterFlush(leg),
                evidence: reason.dead_leg().map(|_| evidence),
                silent_for: now - state.life,
            });
        }
        let timer = self
            .policy_timers(policy)
            .into_iter()
            .flatten()
            .find(|t| t.at <= now && (whole || t.reason == CloseReason::MaxDuration))?;
        let how = match timer.reason {
            CloseReason::DownstreamStalled | CloseReason::DownstreamUndelivered => {
                CloseHow::AbortAfterFlush(Leg::Downstream)
            }
            CloseReason::UpstreamStalled
            | CloseReason::UpstreamUndelivered
            | CloseReason::FirstResponseTimeout
            | CloseReason::UpstreamPhantom => CloseHow::AbortAfterFlush(Leg::Upstream),
            _ => CloseHow::Flush,
        };
        Some(Close {
            reason: timer.reason,
            how,
            evidence: None,
            silent_for: Span::ZERO,
        })
    }

    /// The leg that is proven dead; of two, the one silent for longer.
    fn dead_leg(&self, dead: [Option<Evidence>; 2]) -> Option<(Leg, Evidence)> {
        LEGS.into_iter()
            .filter_map(|leg| Some((leg, dead[leg as usize]?)))
            .min_by_key(|(leg, _)| self.legs[*leg as usize].life)
    }

    pub(super) fn timers(&self, policy: &Policy) -> [Option<Timer>; 10] {
        let dead = LEGS.map(|leg| {
            let state = &self.legs[leg as usize];
            let at = state.dead_at(policy).filter(|_| self.is_up(leg))?;
            Some(Timer {
                reason: self.silent(leg),
                at,
            })
        });
        let [a, b, c, d, e, f, g, h] = self.policy_timers(policy);
        [dead[0], dead[1], a, b, c, d, e, f, g, h]
    }

    /// Every clock but the one of the dead, in the order in which they win.
    fn policy_timers(&self, policy: &Policy) -> [Option<Timer>; 8] {
        let Some(opened) = self.opened else {
            return [None; 8];
        };
        let timer = |since: Option<Time>, span: Option<Span>, reason| {
            Some(Timer {
                reason,
                at: since? + span?,
            })
        };
        let stalled = |leg: Leg| {
            let since = self.legs[leg as usize].stalled();
            timer(since, policy.stall_timeout, CloseReason::stalled(leg))
        };
        let undelivered = |leg: Leg| {
            let state = &self.legs[leg as usize];
            let reason = match state.condition {
                Condition::Phantom => CloseReason::UpstreamPhantom,
                _ => CloseReason::undelivered(leg),
            };
            timer(state.undelivered(), policy.delivery_timeout, reason)
        };
        let half_closed = self.half_closed.map(|at| at.max(self.activity));
        [
            stalled(Leg::Downstream),
            stalled(Leg::Upstream),
            undelivered(Leg::Downstream),
            undelivered(Leg::Upstream),
            timer(
                self.waiting,
                policy.first_response_timeout,
                if self.legs[Leg::Upstream as usize].condition == Condition::Phantom {
                    CloseReason::UpstreamPhantom
                } else {
                    CloseReason::FirstResponseTimeout
                },
            ),
            timer(
                half_closed,
                policy.half_close_timeout,
                CloseReason::HalfCloseTimeout,
            ),
            timer(
                Some(self.activity),
                policy.idle_timeout,
                CloseReason::IdleTimeout,
            ),
            timer(Some(opened), policy.max_duration, CloseReason::MaxDuration),
        ]
    }

    fn next_look(
        &self,
        now: Time,
        policy: &Policy,
        watched: [Option<LegSample>; 2],
        whole: bool,
    ) -> Time {
        let legs = self.legs.iter().zip(watched);
        let legs = legs.filter_map(|(leg, sample)| {
            let sample = sample?.clamped(now - self.start);
            Some(leg.next_look(now, policy, &sample))
        });
        let timers = self.policy_timers(policy).into_iter().flatten();
        // A clock that has run out while a leg could not be asked is judged at the next attempt.
        let timers = timers.map(|t| {
            let earliest = if whole { now } else { now + SUSPECT_LOOK_EVERY };
            t.at.max(earliest)
        });
        // These clocks can start at any moment after a look, and a look finds out when they did:
        // one look inside each span is enough.
        let spans = [
            policy.stall_timeout,
            policy.delivery_timeout,
            policy.first_response_timeout,
        ];
        let open = self.opened.is_some();
        let paces = spans.into_iter().flatten().map(|span| now + span);
        let paces = paces.filter(|_| open);
        // A leg that could not be asked is asked again soon.
        let lost = (!whole).then_some(now + SUSPECT_LOOK_EVERY);
        legs.chain(timers)
            .chain(paces)
            .chain(lost)
            .min()
            .unwrap_or(now + SUSPECT_LOOK_EVERY)
            .max(now + Span::ms(1))
    }

    fn check_invariants(&self, now: Time, next: Time) {
        debug_assert!(next > now, "a look must be followed by a later one");
        debug_assert!(self.activity <= now && self.start <= now);
        for state in &self.legs {
            debug_assert!(state.life <= now, "life lies in the future");
            debug_assert!(state.asked().is_none_or(|at| at <= now));
            debug_assert!(state.condition != Condition::Suspect || state.asked().is_some());
        }
    }
}
