//! The state machine of one session.

use super::judge::{Judge, Later, SUSPECT_EVERY, Stream};
use super::policy::Policy;
use super::reason::{CloseHow, CloseReason, Evidence, LEGS, Leg};
use super::sample::{LegSample, Observation, TcpState};
use super::time::{Span, Time};
use super::verdict::{Close, Condition, Fault, LegVerdict, LegView, Timer, Verdict};

/// A retransmission says something once the peer was silent for longer than the kernel's shortest
/// timer (`TCP_RTO_MIN`).
const REPEATED: Span = Span::ms(200);

/// A live peer acknowledges data within less than this; an RST that answers data after longer silence
/// comes from a host that has forgotten the connection.
const FORGOT: Span = Span::ms(1000);

/// Without a byte for this long a session is between two exchanges.
const REST: Span = Span::ms(1000);

/// Decides whether one session lives. See the [module documentation](super).
#[derive(Clone, Debug)]
pub struct Machine {
    start: Time,
    /// When it began to wait for its place, or for its upstream.
    waits: Later,
    /// Since when both legs are up.
    opened: Later,
    /// When a byte last moved on either leg.
    activity: Time,
    /// Since when one side has said FIN.
    half_closed: Option<Time>,
    /// Since when a delivered request waits for its answer.
    waiting: Option<Time>,
    legs: [Judge; 2],
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
            waits: Later::default(),
            opened: Later::default(),
            activity: now,
            half_closed: None,
            waiting: None,
            legs: LEGS.map(|leg| Judge::new(now, leg)),
        }
    }

    /// The upstream has just been connected, which is a sign of life of it. What is known of the
    /// client stays.
    pub fn open(&mut self, now: Time) {
        let now = now.max(self.last_observed());
        self.opened = Later::at(now, self.start);
        self.activity = now;
        self.legs[Leg::Downstream as usize].last_received = now;
        self.legs[Leg::Upstream as usize] = Judge::new(now, Leg::Upstream);
    }

    /// It begins to wait for its place, or for its upstream.
    pub fn wait(&mut self, now: Time) {
        self.waits = Later::at(now, self.start);
    }

    /// When it began to wait for its place, or for its upstream.
    #[must_use]
    pub fn waits_since(&self) -> Time {
        self.waits.get(self.start).unwrap_or(self.start)
    }

    /// When the client was accepted.
    #[must_use]
    pub fn started(&self) -> Time {
        self.start
    }

    /// Since when both legs are up.
    #[must_use]
    pub fn opened(&self) -> Option<Time> {
        self.opened.get(self.start)
    }

    /// When the first observation is due.
    #[must_use]
    pub fn first_observation(&self, policy: &Policy) -> Time {
        let legs = LEGS.into_iter().filter(|leg| self.is_up(*leg));
        let legs = legs.map(|leg| self.legs[leg as usize].first_observation(policy));
        self.next_observation(self.last_observed(), policy, legs, true)
    }

    fn is_up(&self, leg: Leg) -> bool {
        leg == Leg::Downstream || self.opened().is_some()
    }

    /// Takes in what the kernel says and decides. `now` need not be monotonic: a step back counts as
    /// standing still.
    pub fn observe(&mut self, now: Time, policy: &Policy, observation: &Observation) -> Verdict {
        let now = now.max(self.last_observed());
        let observation = &self.with_ages(now, observation);
        let of_legs = LEGS.map(|leg| self.observe_leg(now, policy, leg, observation));
        self.observe_session(now, observation);
        let is_known = |leg: Leg| of_legs[leg as usize].is_some() || !self.is_up(leg);
        let whole = LEGS.into_iter().all(is_known);
        let legs = of_legs.iter().flatten().filter_map(|leg| leg.next);
        let next = self.next_observation(now, policy, legs, whole);
        self.check_invariants(now);
        Verdict {
            actions: of_legs.map(|leg| leg?.action),
            longest_gap: of_legs.map(|leg| leg?.longest_gap),
            close: self.due(now, policy, of_legs.map(|leg| leg?.gone), whole),
            next,
        }
    }

    /// Of local legs only the relay knows when bytes moved.
    fn with_ages(&self, now: Time, observation: &Observation) -> Observation {
        let mut observation = *observation;
        for leg in LEGS.map(|leg| leg as usize) {
            let traffic = &observation.traffic;
            if let Some(sample) = observation.legs[leg].as_mut().filter(|s| s.is_local) {
                sample.bytes_received = traffic.received[leg];
                // As TCP counts them: with the SYN of a connection that was dialled.
                sample.bytes_acked = traffic.sent[leg] + leg as u64;
                self.legs[leg].complete(now, self.activity, sample);
            }
        }
        observation
    }

    fn observe_leg(
        &mut self,
        now: Time,
        policy: &Policy,
        leg: Leg,
        observation: &Observation,
    ) -> Option<LegVerdict> {
        let sample = observation.legs[leg as usize].as_ref()?;
        let judge = &mut self.legs[leg as usize];
        if !sample.is_asked {
            self.activity = self.activity.max(judge.last_payload(now, sample));
        }
        judge.note_received(now, sample, observation.traffic.received[leg as usize]);
        Some(judge.observe(now, policy, sample))
    }

    /// A socket reported an error. `after` is a sample taken after it: a question that was
    /// pending when RST came was answered by it, so the peer had forgotten the connection.
    pub fn fault(&mut self, now: Time, leg: Leg, fault: Fault, after: Option<&LegSample>) -> Close {
        let now = now.max(self.last_observed());
        let state = &self.legs[leg as usize];
        // A segment that is lost and retransmitted on a busy path is no unanswered question yet.
        // One that was silent and answers what we sent with RST instead of an acknowledgement knows
        // nothing of the connection; unless it had said FIN, and its application has closed since.
        let forgot = !self.is_half_closed()
            && after.is_some_and(|s| {
                s.last_heard_age() >= FORGOT && s.last_sent_age < s.last_heard_age()
            });
        // A Linux peer answers only some of the probes of its closed window (twice a second at most):
        // a single unanswered one says nothing.
        let unanswered = |s: &LegSample| s.unanswered() > 0 && !s.zero_window;
        let asked = state.condition() == Condition::Suspect
            || forgot
            || after.is_some_and(|s| unanswered(s) && s.last_heard_age() >= REPEATED);
        let phantom =
            state.condition() == Condition::Phantom && after.is_none_or(|s| !s.anything_taken());
        let (reason, evidence) = match fault {
            // Its kernel has given up the handshake.
            Fault::Reset if phantom => (CloseReason::UpstreamPhantom, None),
            Fault::Reset if asked => (CloseReason::dead(leg), Some(Evidence::Reset)),
            Fault::Reset => (CloseReason::reset(leg), None),
            Fault::Truncated => (CloseReason::truncated(leg), None),
            Fault::Layer => (CloseReason::tls_failed(leg), None),
            Fault::Local => (CloseReason::LocalError, None),
            Fault::TimedOut => (CloseReason::dead(leg), Some(Evidence::KernelTimeout)),
            Fault::Unreachable => (CloseReason::dead(leg), Some(Evidence::Unreachable)),
        };
        let heard = after.map_or(state.last_heard(), |s| now - s.last_heard_age());
        let silent_for = now - heard.max(state.last_heard());
        Close {
            reason,
            how: CloseHow::AbortAfterFlush(leg),
            evidence,
            silent_for,
        }
    }

    /// The kernel was told to send keepalive probes to the peer of a leg, whatever it was told before.
    pub fn probes_resumed(&mut self, leg: Leg) {
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
    /// questions meanwhile, where that is to be set.
    pub fn hasten(&mut self, leg: Leg, sample: &LegSample) -> Option<Span> {
        self.legs[leg as usize].hasten(sample)
    }

    /// A leg as shown to the operator.
    #[must_use]
    pub fn leg(&self, leg: Leg) -> LegView {
        let state = &self.legs[leg as usize];
        LegView {
            condition: state.condition(),
            last_heard: state.last_heard(),
        }
    }

    /// How many keepalive probes the peers answered, as far as observations saw it.
    #[must_use]
    pub fn probes_answered(&self) -> [u8; 2] {
        self.legs.each_ref().map(|leg| leg.probes_answered)
    }

    /// What the session is closed as when the peer of a leg is proven gone.
    #[must_use]
    pub fn dead(&self, leg: Leg) -> CloseReason {
        self.legs[leg as usize].dead()
    }

    /// When the last observation was.
    #[must_use]
    pub fn last_observed(&self) -> Time {
        let [downstream, upstream] = self.legs.each_ref().map(Judge::last_observed);
        downstream.max(upstream).max(self.activity)
    }

    /// When a byte last moved on either leg.
    #[must_use]
    pub fn last_activity(&self) -> Time {
        self.activity
    }

    /// When payload last came from the peer of a leg.
    #[must_use]
    pub fn last_received(&self, leg: Leg) -> Time {
        self.legs[leg as usize].last_received
    }

    /// Whether an end does little harm now: nothing is on its way, no request waits for its answer, and no
    /// byte has moved for a second. To be asked after an observation, with another one.
    #[must_use]
    pub fn is_at_rest(&self, now: Time, observation: &Observation) -> bool {
        let mut legs = observation.legs.iter().flatten();
        legs.all(LegSample::is_silent) && self.waiting.is_none() && now >= self.activity + REST
    }

    /// Whether nothing is on its way to either peer.
    #[must_use]
    pub fn is_delivered(&self, observation: &Observation) -> bool {
        let mut legs = observation.legs.iter().flatten();
        legs.all(LegSample::is_silent)
    }

    /// Whether exactly one side has said FIN.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.is_some()
    }

    /// What will end the session next if nothing changes, and when.
    #[must_use]
    pub fn next_timer(&self, policy: &Policy) -> Option<Timer> {
        self.timers(policy).min_by_key(|t| t.at)
    }

    /// What will end the session because of this leg, if nothing more is heard of it.
    #[must_use]
    pub fn leg_timer(&self, policy: &Policy, leg: Leg) -> Option<Timer> {
        let own = [
            self.dead(leg),
            CloseReason::stalled(leg),
            CloseReason::undelivered(leg),
            CloseReason::silent(leg),
        ];
        let timers = self.timers(policy).filter(|t| own.contains(&t.reason));
        timers.min_by_key(|t| t.at)
    }

    fn observe_session(&mut self, now: Time, observation: &Observation) {
        let samples = || {
            // Of a peer that is gone only retransmissions are to be seen.
            let legs = self.legs.iter().zip(&observation.legs);
            legs.filter_map(|(leg, sample)| sample.filter(|_| leg.stream != Stream::Bequeathed))
        };
        let open = self.opened().is_some();
        let given_up = self.legs.iter().any(|leg| leg.stream == Stream::Bequeathed);
        if open && (given_up || samples().any(|s| s.state != TcpState::Established)) {
            // Its clock stands still while a live peer is owed bytes: how long that may take is for
            // the clocks of that peer to say.
            let owed = samples().any(|s| s.state != TcpState::Closed && !s.is_silent());
            let since = self.half_closed.filter(|_| !owed).unwrap_or(now);
            self.half_closed = Some(since);
        }
        let sent = observation.traffic.sent[Leg::Upstream as usize] > 0;
        let phantom = self.legs[Leg::Upstream as usize].condition() == Condition::Phantom;
        let upstream = observation.legs[Leg::Upstream as usize];
        if upstream.is_some_and(|s| s.is_asked) {
            // No payload has moved, and the ages are not those of the request.
            return;
        }
        self.waiting = upstream
            .filter(|s| sent && (phantom || s.awaits_answer(observation.answers_before)))
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
            let reason = self.dead(leg);
            return Some(Close {
                reason,
                how: CloseHow::AbortAfterFlush(leg),
                evidence: reason.dead_leg().map(|_| evidence),
                silent_for: now - state.last_heard(),
            });
        }
        let timer = self
            .limits(policy)
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
            .min_by_key(|(leg, _)| self.legs[*leg as usize].last_heard())
    }

    /// Every clock that runs.
    pub fn timers(&self, policy: &Policy) -> impl Iterator<Item = Timer> {
        let dead = LEGS.into_iter().filter(|leg| self.is_up(*leg)).map(|leg| {
            let reason = self.dead(leg);
            let at = self.legs[leg as usize].dead_at(policy)?;
            Some(Timer { reason, at })
        });
        dead.flatten().chain(self.limits(policy))
    }

    /// Every clock but the one of the dead, in the order in which they win.
    fn limits(&self, policy: &Policy) -> impl Iterator<Item = Timer> {
        let no_answer = match self.legs[Leg::Upstream as usize].condition() {
            Condition::Phantom => CloseReason::UpstreamPhantom,
            _ => CloseReason::FirstResponseTimeout,
        };
        let half_closed = self.half_closed.map(|at| at.max(self.activity));
        let (idle, opened) = (Some(self.activity), self.opened());
        let of_legs = self.legs.each_ref().map(|leg| leg.limits(policy));
        let of_pair = [
            Timer::new(no_answer, self.waiting, policy.first_response_timeout),
            Timer::new(
                CloseReason::HalfCloseTimeout,
                half_closed,
                policy.half_close_timeout,
            ),
            Timer::new(CloseReason::IdleTimeout, idle, policy.idle_timeout),
            Timer::new(CloseReason::MaxDuration, opened, policy.max_duration),
        ];
        let all = of_legs.into_iter().flatten().chain(of_pair).flatten();
        all.filter(move |_| opened.is_some())
    }

    fn next_observation(
        &self,
        now: Time,
        policy: &Policy,
        legs: impl Iterator<Item = Time>,
        whole: bool,
    ) -> Time {
        let timers = self.limits(policy);
        // A clock that has run out while a leg could not be asked is judged at the next attempt.
        let timers = timers.map(|t| {
            let earliest = if whole { now } else { now + SUSPECT_EVERY };
            t.at.max(earliest)
        });
        // These clocks can start at any moment after an observation, and the next one finds out when
        // they did: one inside each span is enough.
        let spans = [
            policy.stall_timeout,
            policy.delivery_timeout,
            policy.first_response_timeout,
        ];
        let open = self.opened().is_some();
        let paces = spans.into_iter().flatten().map(|span| now + span);
        let paces = paces.filter(|_| open);
        // A leg that could not be asked is asked again soon.
        let lost = (!whole).then_some(now + SUSPECT_EVERY);
        legs.chain(timers)
            .chain(paces)
            .chain(lost)
            .min()
            .unwrap_or(now + SUSPECT_EVERY)
            .max(now + Span::ms(1))
    }

    fn check_invariants(&self, now: Time) {
        debug_assert!(self.activity <= now);
        for state in &self.legs {
            debug_assert!(state.last_heard() <= now, "heard in the future");
            debug_assert!(state.unanswered_since().is_none_or(|at| at <= now));
            debug_assert!(
                state.condition() != Condition::Suspect || state.unanswered_since().is_some()
            );
        }
    }
}
