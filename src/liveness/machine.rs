//! The state machine of one session.

use std::num::{NonZeroU32, NonZeroU64};

use super::policy::{Millis, Policy};
use super::reason::{CloseHow, CloseReason, Evidence, LEGS, Leg};
use super::repetition::{self, Repetitions};
use super::sample::{LegSample, Look, TcpState};

/// Ages come from jiffies and are rounded; a shift this small is not a new sign of life.
const AGE_JITTER: Millis = 20;
/// Spacing of the last questions, and of the looks that wait for their answers.
const FINAL_ASK_EVERY: Millis = 200;
const FINAL_LOOK_EVERY: Millis = 100;
/// A leg with an unanswered question is looked at this often until the final phase.
const SUSPECT_LOOK_EVERY: Millis = 1000;
/// A question must have been pending for this long before its silence counts, and for one and a
/// half round trips where that is longer (up to the limit).
const MIN_UNANSWERED: Millis = 100;
const MAX_UNANSWERED: Millis = 1000;

/// A retransmission says something once the peer was silent for longer than the kernel's shortest
/// timer (`TCP_RTO_MIN`).
const REPEATED: Millis = 200;

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Condition {
    /// Heard within the probe interval.
    #[default]
    Alive,
    /// Nothing heard lately; no judgement.
    Quiet,
    /// A question has been unanswered for longer than expected: half-open, awaiting the verdict.
    Suspect,
    /// The peer's kernel answers, its application takes no data.
    Stalled,
    /// The upstream's kernel completed the connect and took no byte since: its application never
    /// accepted, because its accept queue was full.
    Phantom,
}

impl Condition {
    /// The word printed everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Quiet => "quiet",
            Self::Suspect => "suspect",
            Self::Stalled => "stalled",
            Self::Phantom => "phantom",
        }
    }
}

/// What to do to a leg's socket after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Have the kernel send a keepalive probe now.
    Probe,
    /// Have the kernel repeat what is in flight no later than this after it did so first, ms.
    RepeatBy(Millis),
    /// Have it repeat for as long as it takes.
    RepeatFreely,
    /// The peer has answered: return to the normal probe interval and pace.
    Rest,
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
    pub silent_for: Millis,
}

/// What one look led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Per leg, what to do to the socket.
    pub ask: [Option<Ask>; 2],
    /// End the session.
    pub close: Option<Close>,
    /// Look again at this time, always later than the look itself.
    pub next: Millis,
}

/// What will end the session next if nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The reason it would end with.
    pub reason: CloseReason,
    /// When.
    pub at: Millis,
}

/// A leg as shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegView {
    /// What is known of the peer.
    pub condition: Condition,
    /// When it last gave a sign of life.
    pub last_life: Millis,
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
}

/// A point in time, or none, in eight bytes: there is one machine for each session.
#[derive(Clone, Copy, Debug, Default)]
struct Mark(Option<NonZeroU64>);

impl Mark {
    fn at(time: Millis) -> Self {
        Self(NonZeroU64::new(time.saturating_add(1)))
    }

    fn get(self) -> Option<Millis> {
        self.0.map(|t| t.get() - 1)
    }
}

/// A point in time after the last sign of life of a leg, or none, in four bytes. Everything that
/// is measured so is forgotten at the next sign of life; without one for 49 days it stands still.
#[derive(Clone, Copy, Debug, Default)]
struct AfterLife(Option<NonZeroU32>);

impl AfterLife {
    fn at(time: Millis, life: Millis) -> Self {
        let span = u32::try_from(time.saturating_sub(life)).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(span.saturating_add(1)))
    }

    fn get(self, life: Millis) -> Option<Millis> {
        self.0.map(|span| life + Millis::from(span.get() - 1))
    }
}

#[derive(Clone, Debug, Default)]
struct LegState {
    /// Time of the last known sign of life.
    life: Millis,
    /// Since when the peer has taken no data although its kernel answers.
    stalled: Mark,
    /// The last look that had a sample of this leg.
    seen: AfterLife,
    /// Since when a question is known to be unanswered.
    asked: AfterLife,
    /// When the last probe was requested.
    probed: AfterLife,
    segs_in: u32,
    repetitions: Repetitions,
    /// Retransmissions so far when the last sign of life was seen.
    repeated_before: u8,
    condition: Condition,
}

/// Decides whether one session lives. See the [module documentation](super).
#[derive(Clone, Debug)]
pub struct Machine {
    start: Millis,
    last_look: Millis,
    /// When a byte last moved on either leg.
    activity: Millis,
    /// Since when one side has said FIN.
    half_closed: Mark,
    /// Since when a delivered request waits for its answer.
    waiting: Mark,
    legs: [LegState; 2],
}

impl Machine {
    /// A session whose legs have just been connected; that is a sign of life of both.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        let leg = LegState {
            life: now,
            ..LegState::default()
        };
        Self {
            start: now,
            last_look: now,
            activity: now,
            half_closed: Mark::default(),
            waiting: Mark::default(),
            legs: [leg.clone(), leg],
        }
    }

    /// When the first look is due.
    #[must_use]
    pub fn first_look(&self, policy: &Policy) -> Millis {
        self.next_look(self.start, policy, [Some(LegSample::default()); 2], true)
    }

    /// Takes in what the kernel says and decides. `now` may not be trusted to be monotonic; a
    /// step back counts as standing still.
    pub fn look(&mut self, now: Millis, policy: &Policy, look: &Look) -> Verdict {
        let now = now.max(self.last_look);
        let mut ask = [None; 2];
        let mut dead = [None; 2];
        for leg in LEGS {
            if let Some(sample) = &look.legs[leg as usize] {
                let sample = sample.clamped(now - self.start);
                ask[leg as usize] = self.observe_leg(now, policy, leg, &sample);
                dead[leg as usize] = self.legs[leg as usize].death(now, policy, &sample);
            }
        }
        self.observe_session(now, look);
        self.last_look = now;
        let whole = look.legs.iter().all(Option::is_some);
        let close = self.due(now, policy, dead, whole);
        let watched = look.legs.map(|s| s.filter(|s| s.state != TcpState::Closed));
        let next = self.next_look(now, policy, watched, whole);
        self.check_invariants(now, next);
        Verdict { ask, close, next }
    }

    /// A socket reported an error. `after` is a sample taken after it: a question that was
    /// pending when RST came was answered by it, so the peer had forgotten the connection.
    pub fn fault(
        &mut self,
        now: Millis,
        leg: Leg,
        fault: Fault,
        after: Option<&LegSample>,
    ) -> Close {
        let now = now.max(self.last_look);
        let state = &self.legs[leg as usize];
        // A segment that is lost and repeated on a busy path is no unanswered question yet.
        let asked = state.condition == Condition::Suspect
            || after.is_some_and(|s| question(s).is_some() && s.last_life_age() >= REPEATED);
        let phantom =
            state.condition == Condition::Phantom && after.is_none_or(|s| !s.anything_taken());
        let (reason, evidence) = match fault {
            // Its kernel has given up the handshake.
            Fault::Reset if phantom => (CloseReason::UpstreamPhantom, None),
            Fault::Reset if asked => (CloseReason::dead(leg), Some(Evidence::Reset)),
            Fault::Reset => (CloseReason::reset(leg), None),
            Fault::TimedOut => (CloseReason::dead(leg), Some(Evidence::KernelTimeout)),
            Fault::Unreachable => (CloseReason::dead(leg), Some(Evidence::Unreachable)),
        };
        let heard = after.map_or(state.life, |s| {
            now - s.clamped(now - self.start).last_life_age()
        });
        let silent_for = now - heard.max(state.life).min(now);
        Close {
            reason,
            how: CloseHow::AbortAfterFlush(leg),
            evidence,
            silent_for,
        }
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

    /// What the session is closed as when the peer of a leg stays silent.
    #[must_use]
    pub fn silent(&self, leg: Leg) -> CloseReason {
        match self.legs[leg as usize].condition {
            Condition::Phantom => CloseReason::UpstreamPhantom,
            _ => CloseReason::dead(leg),
        }
    }

    /// When a byte last moved on either leg.
    #[must_use]
    pub fn last_activity(&self) -> Millis {
        self.activity
    }

    /// Whether exactly one side has said FIN.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.get().is_some()
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
        let own = [self.silent(leg), CloseReason::stalled(leg)];
        let timers = self.timers(policy).into_iter().flatten();
        timers
            .filter(|t| own.contains(&t.reason))
            .min_by_key(|t| t.at)
    }

    fn observe_leg(
        &mut self,
        now: Millis,
        policy: &Policy,
        leg: Leg,
        sample: &LegSample,
    ) -> Option<Ask> {
        if sample.state == TcpState::Closed {
            // Nobody owes an answer any more. What was known stays: the error that may be
            // waiting in the socket is judged by it.
            return None;
        }
        let state = &mut self.legs[leg as usize];
        let mut ask = None;
        let seen = state.seen.get(state.life).unwrap_or(state.life);
        let probed = state.probed().is_some();
        if state.hear(now, seen, sample) {
            state.repeated_before = repetition::count(sample);
            let limited = state.repetitions.answered();
            ask = (limited || probed).then_some(Ask::Rest);
        }
        state.seen = AfterLife::at(now, state.life);
        if question(sample).is_some() && state.asked().is_none() {
            state.asked = AfterLife::at(now, state.life);
        }
        let taking_no_data = sample.zero_window && sample.notsent > 0;
        // The window may have been closed for long before there was anything to send, and its
        // opening be lost: only the time since the last look that saw no stall can count.
        let since = state.stalled.get().unwrap_or(seen);
        state.stalled = if taking_no_data {
            Mark::at(since.max(now - sample.last_sent_age))
        } else {
            Mark::default()
        };
        // A segment that came after ours went out, and acknowledged none of them.
        let spoke_since = state.life > now - sample.busy_ms;
        state.condition = if leg == Leg::Upstream && sample.took_nothing() && spoke_since {
            Condition::Phantom
        } else {
            state.judge(now, policy, sample)
        };
        if sample.is_silent() && state.wants_probe(now, policy) {
            state.probed = AfterLife::at(now, state.life);
            ask = Some(Ask::Probe);
        }
        let repeat = state.repetitions.arrange(now, state.life, policy, sample);
        repeat.or(ask)
    }

    fn observe_session(&mut self, now: Millis, look: &Look) {
        let samples = || {
            look.legs
                .iter()
                .flatten()
                .map(|s| s.clamped(now - self.start))
        };
        if let Some(age) = samples()
            .map(|s| s.last_data_age.min(s.last_sent_age))
            .min()
        {
            self.activity = self.activity.max(now - age);
        }
        if samples().any(|s| s.state != TcpState::Established) {
            let since = self.half_closed.get().unwrap_or(now);
            self.half_closed = Mark::at(since);
        }
        let sent = look.traffic.sent[Leg::Upstream as usize] > 0;
        let phantom = self.legs[Leg::Upstream as usize].condition == Condition::Phantom;
        self.waiting = look.legs[Leg::Upstream as usize]
            .filter(|s| sent && (phantom || s.awaits_answer(look.answers_before)))
            .map(|s| s.clamped(now - self.start))
            // Repeating a request is not sending it.
            .map(|s| if phantom { s.busy_ms } else { s.last_sent_age })
            .map_or(Mark::default(), |age| Mark::at(now - age));
    }

    /// The close that is due now, the gravest first. Without a sample of each leg (`whole`)
    /// bytes may have passed unseen: then only the age of the session can end it.
    fn due(
        &self,
        now: Millis,
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
            CloseReason::DownstreamStalled => CloseHow::AbortAfterFlush(Leg::Downstream),
            CloseReason::UpstreamStalled
            | CloseReason::FirstResponseTimeout
            | CloseReason::UpstreamPhantom => CloseHow::AbortAfterFlush(Leg::Upstream),
            CloseReason::HalfCloseTimeout => CloseHow::Abort,
            _ => CloseHow::Finish,
        };
        Some(Close {
            reason: timer.reason,
            how,
            evidence: None,
            silent_for: 0,
        })
    }

    /// The leg that is proven dead; of two, the one silent for longer.
    fn dead_leg(&self, dead: [Option<Evidence>; 2]) -> Option<(Leg, Evidence)> {
        LEGS.into_iter()
            .filter_map(|leg| Some((leg, dead[leg as usize]?)))
            .min_by_key(|(leg, _)| self.legs[*leg as usize].life)
    }

    fn timers(&self, policy: &Policy) -> [Option<Timer>; 8] {
        let dead = LEGS.map(|leg| {
            let state = &self.legs[leg as usize];
            let at = state.life + policy.detect_within + policy.grace();
            Timer {
                reason: self.silent(leg),
                at,
            }
        });
        let [a, b, c, d, e, f] = self.policy_timers(policy);
        [Some(dead[0]), Some(dead[1]), a, b, c, d, e, f]
    }

    /// Every clock but the one of the dead, in the order in which they win.
    fn policy_timers(&self, policy: &Policy) -> [Option<Timer>; 6] {
        let timer = |since: Option<Millis>, span: Option<Millis>, reason| {
            Some(Timer {
                reason,
                at: since? + span?,
            })
        };
        // Whether a suspect is stalled or dead is not known before it answers or is proven dead.
        let stalled = |leg: Leg| {
            let state = &self.legs[leg as usize];
            let since = state
                .stalled
                .get()
                .filter(|_| state.condition != Condition::Suspect);
            timer(since, policy.stall_timeout, CloseReason::stalled(leg))
        };
        let half_closed = self.half_closed.get().map(|at| at.max(self.activity));
        [
            stalled(Leg::Downstream),
            stalled(Leg::Upstream),
            timer(
                self.waiting.get(),
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
            timer(
                Some(self.start),
                policy.max_duration,
                CloseReason::MaxDuration,
            ),
        ]
    }

    fn next_look(
        &self,
        now: Millis,
        policy: &Policy,
        watched: [Option<LegSample>; 2],
        whole: bool,
    ) -> Millis {
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
        let spans = [policy.stall_timeout, policy.first_response_timeout];
        let paces = spans.into_iter().flatten().map(|span| now + span);
        // A leg that could not be asked is asked again soon.
        let lost = (!whole).then_some(now + SUSPECT_LOOK_EVERY);
        legs.chain(timers)
            .chain(paces)
            .chain(lost)
            .min()
            .unwrap_or(now + SUSPECT_LOOK_EVERY)
            .max(now + 1)
    }

    fn check_invariants(&self, now: Millis, next: Millis) {
        debug_assert!(next > now, "a look must be followed by a later one");
        debug_assert!(self.activity <= now && self.start <= now);
        for state in &self.legs {
            debug_assert!(state.life <= now, "life lies in the future");
            debug_assert!(state.asked().is_none_or(|at| at <= now));
            debug_assert!(state.condition != Condition::Suspect || state.asked().is_some());
        }
    }
}

impl LegState {
    fn asked(&self) -> Option<Millis> {
        self.asked.get(self.life)
    }

    fn probed(&self) -> Option<Millis> {
        self.probed.get(self.life)
    }

    /// Takes in signs of life; true if there was a new one since the leg was last `seen`. It
    /// answers every question.
    fn hear(&mut self, now: Millis, seen: Millis, sample: &LegSample) -> bool {
        let heard = now - sample.last_life_age();
        let segs_moved = self.segs_in != sample.segs_in;
        self.segs_in = sample.segs_in;
        if segs_moved {
            // The kernel keeps no time for a segment that is neither data nor a valid
            // acknowledgement (the peer's own window or keepalive probe): it came after the last
            // look, and that is all that may be believed.
            self.life = self.life.max(heard).max(seen);
        } else if heard > self.life + AGE_JITTER {
            self.life = heard;
        } else {
            return false;
        }
        self.asked = AfterLife::default();
        self.probed = AfterLife::default();
        true
    }

    fn judge(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Condition {
        let age = now - self.life;
        // A single probe may be on its way at any time: the second one says that the first was
        // not answered.
        let overdue = match question(sample) {
            None => false,
            Some(Evidence::Keepalive) => sample.probes >= 2 && age >= policy.suspect_after(),
            Some(_) => {
                let repeated = sample.probes >= 2 || sample.retransmits > 0;
                repeated && age >= SUSPECT_LOOK_EVERY
            }
        };
        if overdue {
            Condition::Suspect
        } else if self.stalled.get().is_some() {
            Condition::Stalled
        } else if age >= policy.suspect_after() {
            Condition::Quiet
        } else {
            Condition::Alive
        }
    }

    /// The last questions to a silent leg: every 200 ms in the final phase, and the very last one
    /// at D or later, however late the look. Asking again before that one had its time would put
    /// the verdict off for ever.
    fn wants_probe(&self, now: Millis, policy: &Policy) -> bool {
        let deadline = self.life + policy.detect_within;
        if now + policy.final_phase() < deadline {
            return false;
        }
        let Some(at) = self.probed() else {
            return true;
        };
        let every = if now < deadline {
            FINAL_ASK_EVERY
        } else {
            2 * MAX_UNANSWERED
        };
        (at < deadline && now >= deadline) || now >= at + every
    }

    /// What proves it: silent for D, and the last question stayed unanswered. Told from a sample of
    /// this very moment: an answer that came since the last look must not be missed.
    fn death(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Option<Evidence> {
        let deadline = self.life + policy.detect_within;
        let last_question = if sample.is_silent() {
            self.probed().filter(|at| *at >= deadline)
        } else {
            self.asked()
        };
        let answer_takes = Millis::from(sample.rtt_us) * 3 / 2000;
        let patience = answer_takes.clamp(MIN_UNANSWERED, MAX_UNANSWERED);
        let dead = sample.state != TcpState::Closed
            && now >= deadline + policy.grace()
            && is_unanswered(sample)
            && self.was_asked_since(now, sample)
            && last_question.is_some_and(|at| now >= at + patience)
            && now >= self.answered_by(now, policy, sample);
        question(sample).filter(|_| dead)
    }

    /// No verdict before this, in flight.
    fn answered_by(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Millis {
        if sample.unacked == 0 {
            return now;
        }
        let deadline = self.life + policy.detect_within;
        self.repetitions.answered_by(now, deadline, policy, sample)
    }

    /// Without TCP_RTO_MAX_MS a sign of life that acknowledges nothing new may be followed by
    /// minutes without a retransmission; the count then tells of questions from before it. A
    /// retransmission is data sent, but for that of a bare FIN: of that only the count tells.
    fn was_asked_since(&self, now: Millis, sample: &LegSample) -> bool {
        let sent = now - sample.last_sent_age;
        sample.unacked == 0
            || sample.probes > 0
            || sent > self.life + AGE_JITTER
            || repetition::count(sample) > self.repeated_before
    }

    fn next_look(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Millis {
        let deadline = self.life + policy.detect_within;
        let final_phase = deadline - policy.final_phase();
        if now < final_phase {
            return match self.asked() {
                Some(_) => final_phase.min(now + SUSPECT_LOOK_EVERY),
                None => final_phase,
            };
        }
        if self.condition == Condition::Stalled {
            // Without TCP_RTO_MAX_MS the kernel asks a stalled peer ever more rarely.
            return now + SUSPECT_LOOK_EVERY;
        }
        // The deadline itself is one of the looks: the last question is asked there.
        let stops = [
            deadline,
            deadline + policy.grace(),
            self.answered_by(now, policy, sample),
            now + FINAL_LOOK_EVERY,
        ];
        let repetition = self.repetitions.next_look(now, sample);
        stops
            .into_iter()
            .chain(repetition)
            .filter(|at| *at > now)
            .min()
            .unwrap_or(now + FINAL_LOOK_EVERY)
    }
}

/// What the kernel has asked the peer and got no answer to.
fn question(sample: &LegSample) -> Option<Evidence> {
    let retransmitted = sample.unacked > 0 && sample.retransmits > 0;
    if sample.probes == 0 && !retransmitted {
        None
    } else if sample.unacked > 0 {
        Some(Evidence::Retransmit)
    } else if sample.notsent > 0 {
        Some(Evidence::WindowProbe)
    } else {
        Some(Evidence::Keepalive)
    }
}

/// Whether the silence after a question means something. Window probes are rare where the kernel
/// backs off (up to two minutes apart), so the loss of one is no proof: there have to be two.
fn is_unanswered(sample: &LegSample) -> bool {
    match question(sample) {
        None => false,
        Some(Evidence::WindowProbe) => sample.probes >= 2,
        Some(_) => true,
    }
}

impl LegSample {
    /// Since the last acknowledgement or data.
    #[must_use]
    pub fn last_life_age(&self) -> Millis {
        self.last_ack_age.min(self.last_data_age)
    }

    /// Nothing of ours is on its way, so the kernel's questions are keepalive probes.
    fn is_silent(&self) -> bool {
        self.unacked == 0 && self.notsent == 0
    }

    /// What we sent last has been acknowledged, no data came after it, and some still may. The
    /// ages tell the order of two events only where they lie in different ticks of the kernel's
    /// clock. Of an answer and the next request within one tick the relay knows: it had read the
    /// answer when it wrote the request. (Were it written unread, they count as answered.)
    fn awaits_answer(&self, answers_before: u64) -> bool {
        let may_answer = matches!(
            self.state,
            TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2
        );
        let no_answer =
            self.bytes_received == answers_before || self.last_sent_age < self.last_data_age;
        may_answer && self.is_silent() && no_answer
    }

    /// The first segments of ours are being repeated, and none was ever acknowledged. If the
    /// peer's kernel speaks all the same, it repeats its SYN-ACK: it dropped our last word of the
    /// handshake because the accept queue was full (`tcp_check_req`, net/ipv4/tcp_minisocks.c).
    fn took_nothing(&self) -> bool {
        !self.anything_taken() && self.unacked > 0 && self.retransmits >= 2
    }

    /// The peer has acknowledged or sent a byte at some time; the SYN counts as one.
    fn anything_taken(&self) -> bool {
        self.bytes_acked > 1 || self.bytes_received > 0
    }

    /// Ages of things that never happened count from boot; nothing is older than the session.
    fn clamped(&self, oldest: Millis) -> Self {
        Self {
            last_ack_age: self.last_ack_age.min(oldest),
            last_data_age: self.last_data_age.min(oldest),
            last_sent_age: self.last_sent_age.min(oldest),
            busy_ms: self.busy_ms.min(oldest),
            ..*self
        }
    }
}
