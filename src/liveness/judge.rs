//! The judge of one TCP connection: what is known of its peer, and when that is gone.

use std::num::NonZeroU32;

use super::policy::{Policy, SLOWEST_QUESTION};
use super::proof::{APART, Counts, PROBE_EVERY, Proof, VOLLEY_PROBES};
use super::reason::{CloseReason, Evidence, Leg};
use super::sample::{AGE_JITTER, LegSample, TcpState};
use super::time::{Span, Time};
use super::verdict::{Action, Condition, LegVerdict, Timer};
use super::window::{self, KERNELS_OWN};

/// In the final phase a leg that the kernel asks at its own pace is observed this often.
const FINAL_EVERY: Span = Span::ms(100);
/// A leg with an unanswered question is observed this often until the final phase.
pub(super) const SUSPECT_EVERY: Span = Span::ms(1000);
/// Where a question was known to be unanswered so long before D, everything was asked that could be.
const IN_TIME: Span = Span::ms(500);
/// Without a verdict by then the peer is asked again: the answer to the last question is long overdue.
const ASK_AGAIN_AFTER: Span = Span::ms(2000);
/// From this D on there is time to ask a quiet peer enough.
const ENOUGH_TIME: Span = Span::ms(3000);
/// So long after the last sign of life at the latest, or after a third of D, the kernel is not to double
/// the gaps between its questions any more, where the round trip allows it.
const OVERDUE: Span = Span::ms(3000);
/// A volley, until its last probe has been counted.
const VOLLEY_SPAN: Span = Span::ms(PROBE_EVERY.as_millis() * (VOLLEY_PROBES as u64 + 1));

/// So many retransmissions of the same segment in vain, while the peer is heard, say that it does
/// not arrive.
const UNDELIVERED_AFTER: u32 = 3;

/// What the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Default)]
pub(super) enum Stream {
    /// There may be more.
    #[default]
    Open,
    /// It has said FIN.
    Complete,
    /// It has, and is owed nothing: it is neither asked nor judged.
    Over,
    /// It was found gone after its FIN, and what it had sent is still being delivered.
    Bequeathed,
}

/// A point in time after another one (mostly the last sign of life), or none, in four bytes, since there
/// are eight for each session. More than 49 days after the other it stands still.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Later(Option<NonZeroU32>);

impl Later {
    pub(super) fn at(time: Time, base: Time) -> Self {
        let span = u32::try_from((time - base).as_millis()).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(span.saturating_add(1)))
    }

    pub(super) fn get(self, base: Time) -> Option<Time> {
        self.0
            .map(|span| base + Span::ms(u64::from(span.get() - 1)))
    }
}

/// Judges the peer of one TCP connection by what the kernel says of it. It need not be one that
/// pulsegate made. See the [module documentation](super).
#[derive(Clone, Debug, Default)]
pub struct Judge {
    last_heard: Time,
    /// When payload last came from the peer, or waited to be read.
    pub(super) last_received: Time,
    /// Since when bytes have waited for the peer without one being acknowledged.
    stuck: Option<Time>,
    /// Since when, of that, its window has not been the reason.
    open: Later,
    /// `LegSample::bytes_acked` and `LegSample::busy` at the last observation, the lower halves.
    acked: u32,
    busy: u32,
    /// The last observation that had a sample of this leg.
    last_sample: Later,
    /// Since when a question is known to be unanswered.
    unanswered_since: Later,
    /// When the first probe of the last volley was requested.
    last_probe: Later,
    proof: Proof,
    /// The longest gap between two retransmissions that the kernel was told, in half seconds, roughly;
    /// 0 is its own.
    gap: u8,
    /// `LegSample::segs_in`, the lower half.
    segs_in: u16,
    /// Probes of that volley.
    volley: u8,
    condition: Condition,
    leg: Leg,
    /// Answers to keepalive probes, as far as an observation saw one.
    pub(super) probes_answered: u8,
    pub(super) stream: Stream,
}

impl Judge {
    /// Of a connection that has just been made, which is a sign of life. [`Leg::Upstream`] is one that
    /// this host has dialled.
    #[must_use]
    pub fn new(now: Time, leg: Leg) -> Self {
        Self {
            leg,
            last_heard: now,
            last_received: now,
            // The SYN of a connection that we dialled counts.
            acked: u32::from(leg == Leg::Upstream),
            ..Self::default()
        }
    }

    /// Of a connection that was there before: what the kernel tells of its past counts.
    #[must_use]
    pub fn adopt(now: Time, leg: Leg, sample: &LegSample) -> Self {
        let silent = sample.last_heard_age();
        Self {
            acked: lower_32(sample.bytes_acked),
            busy: lower_32(sample.busy.as_millis()),
            segs_in: lower_16(sample.segs_in),
            last_sample: Later::at(now, now - silent),
            proof: Proof::of_the_past(silent, sample),
            ..Self::new(now - silent, leg)
        }
    }

    /// What is known of the peer.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// When the peer last gave a sign of life.
    #[must_use]
    pub fn last_heard(&self) -> Time {
        self.last_heard
    }

    /// When the first observation is due.
    pub(super) fn first_observation(&self, policy: &Policy) -> Time {
        self.next_observation(self.last_heard, policy, &LegSample::default())
    }

    /// The last observation; before the first one, when it was connected.
    pub(super) fn last_observed(&self) -> Time {
        self.last_sample
            .get(self.last_heard)
            .unwrap_or(self.last_heard)
    }

    /// Takes in what the kernel says and decides.
    pub fn observe(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> LegVerdict {
        let now = now.max(self.last_observed());
        let action = self.take(now, policy, sample);
        let is_over = sample.state == TcpState::Closed;
        let next = self.next_observation(now, policy, sample);
        LegVerdict {
            action,
            longest_gap: self.longest_gap(now, policy, sample),
            gone: self.gone(now, policy, sample),
            next: (!is_over).then(|| next.max(now + Span::ms(1))),
        }
    }

    fn take(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Action> {
        if sample.state == TcpState::Closed {
            // Nobody owes an answer any more, nor takes data. What else was known stays: the error
            // that may be waiting in the socket is judged by it.
            self.stuck = None;
            if matches!(self.condition, Condition::Stalled | Condition::Undelivered) {
                self.condition = Condition::Alive;
            }
            return None;
        }
        if sample.is_complete() || self.is_exempt() {
            return self.observe_exempt(now, policy, sample);
        }
        if sample.said_fin() {
            self.stream = Stream::Complete;
        }
        let mut action = None;
        let before = self.last_observed();
        let probed = self.last_probe().is_some();
        if self.hear(now, before, sample) {
            self.note_answer(sample);
            action = probed.then_some(Action::ProbeNormally);
        }
        self.last_sample = Later::at(now, self.last_heard);
        self.proof.take(now - self.last_heard, sample);
        // The first transmission alone is no unanswered question: its answer may be on the way.
        let retransmitted = sample.unacked == 0 || sample.unanswered_retransmissions() > 0;
        if self.proof.is_worth(1) && retransmitted && self.unanswered_since().is_none() {
            self.unanswered_since = Later::at(now, self.last_heard);
        }
        self.note_stuck(now, before, sample);
        // A segment that came after ours went out, and acknowledged none of them.
        let spoke_since = self.last_heard > now - sample.busy;
        self.condition = if self.leg == Leg::Upstream && sample.took_nothing() && spoke_since {
            Condition::Phantom
        } else {
            self.judge(now, policy, sample)
        };
        if sample.is_silent() && self.is_probed(policy) && self.wants_probe(now, policy) {
            self.note_probe(now);
            action = Some(Action::ProbeNow);
        }
        action
    }

    /// A peer that has said FIN and is owed nothing has nothing left to die of. When something is
    /// written to it again, its clock starts at the observation that finds out: nobody had asked it before.
    fn observe_exempt(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Action> {
        let before = self.last_observed();
        self.hear(now, before, sample);
        let action = match self.stream {
            Stream::Over if !sample.is_complete() => {
                self.stream = Stream::Complete;
                self.last_heard = now;
                self.is_probed(policy).then_some(Action::ResumeProbes)
            }
            Stream::Open | Stream::Complete => {
                self.stream = Stream::Over;
                self.is_probed(policy).then_some(Action::StopProbes)
            }
            Stream::Over | Stream::Bequeathed => None,
        };
        self.unanswered_since = Later::default();
        self.last_probe = Later::default();
        self.proof = Proof::after_life(now - self.last_heard, Counts::Older, sample);
        self.last_sample = Later::at(now, self.last_heard);
        self.note_stuck(now, before, sample);
        if self.stream == Stream::Bequeathed {
            self.stuck = None;
        }
        self.condition = if now - self.last_heard >= policy.suspect_after() {
            Condition::Quiet
        } else {
            Condition::Alive
        };
        action
    }

    /// Bytes may wait because the window is closed or too small, or because they do not arrive. Each
    /// has its own clock, and every byte that is acknowledged restarts both.
    fn note_stuck(&mut self, now: Time, before: Time, sample: &LegSample) {
        let moved = self.has_taken(sample);
        let busy = lower_32(sample.busy.as_millis());
        let waited = Span::ms(busy.wrapping_sub(self.busy).into());
        (self.acked, self.busy) = (lower_32(sample.bytes_acked), busy);
        if sample.is_silent() {
            self.stuck = None;
            return;
        }
        let known = self.stuck.filter(|_| !moved);
        let since = known.unwrap_or(if moved {
            // Acknowledged at that time or before.
            now - sample.last_ack_age
        } else {
            // Nothing waited at the last observation.
            before.max(now - waited)
        });
        // Where nothing is in flight although bytes wait, the window is too small for a segment.
        // For a moment that also happens between two segments.
        let too_small = sample.unacked == 0 && now >= since + SUSPECT_EVERY;
        let open = match self.open() {
            _ if sample.zero_window || too_small => None,
            Some(open) if known.is_some() => Some(open),
            _ if known.is_some() => Some(now),
            _ => Some(since),
        };
        self.stuck = Some(since);
        self.open = open.map_or(Later::default(), |at| Later::at(at, since));
    }

    /// Completes a sample of a local leg: what has changed since the last one has changed now, and else it
    /// was at the last `activity` of the session, or before.
    pub(super) fn complete(&self, now: Time, activity: Time, sample: &mut LegSample) {
        let age = |moved, last: Time| if moved { Span::ZERO } else { now - last };
        // A change of the segments that came is a sign of life, too: here each byte is one.
        sample.segs_in = sample.bytes_received as u32;
        let received = self.segs_in != lower_16(sample.segs_in);
        sample.last_data_age = age(received, self.last_received);
        sample.last_sent_age = age(self.has_taken(sample), activity);
    }

    /// Whether the peer has acknowledged something since the last observation.
    fn has_taken(&self, sample: &LegSample) -> bool {
        self.acked != lower_32(sample.bytes_acked)
    }

    /// When a byte last moved on this leg, as far as that can be told from a sample that was not
    /// observed yet. Data sent counts when it is acknowledged: before, it may be a retransmission.
    pub(super) fn last_payload(&self, now: Time, sample: &LegSample) -> Time {
        let acknowledged = if sample.unacked == 0 {
            Some(sample.last_sent_age)
        } else {
            self.has_taken(sample).then_some(sample.last_ack_age)
        };
        let received = sample.last_data_age;
        now - acknowledged.map_or(received, |age| age.min(received))
    }

    /// Takes in when payload came, as a sample tells, of which the relay has `read` so many bytes.
    /// What is left unread counts as sent now: a peer whose window is closed can send no more.
    pub(super) fn note_received(&mut self, now: Time, sample: &LegSample, read: u64) {
        let unread = sample.bytes_received > read;
        let last = match unread {
            true => now,
            false if sample.is_asked => self.last_received,
            false => now - sample.last_data_age,
        };
        self.last_received = self.last_received.max(last);
    }

    /// The limits of a peer that lives.
    pub(super) fn limits(&self, policy: &Policy) -> [Option<Timer>; 3] {
        let (leg, condition) = (self.leg, self.condition);
        // Whether a suspect is stalled or dead is not known before it answers or is proven dead.
        let shut = self.open().is_none() && condition != Condition::Suspect;
        let stalled = self.stuck.filter(|_| shut);
        let (is_undelivered, reason) = match condition {
            Condition::Phantom => (true, CloseReason::UpstreamPhantom),
            _ => (
                condition == Condition::Undelivered,
                CloseReason::undelivered(leg),
            ),
        };
        let undelivered = self.open().filter(|_| is_undelivered);
        let may_send = self.stream == Stream::Open && condition != Condition::Suspect;
        let silent = may_send.then_some(self.last_received);
        [
            Timer::new(CloseReason::stalled(leg), stalled, policy.stall_timeout),
            Timer::new(reason, undelivered, policy.delivery_timeout),
            Timer::new(
                CloseReason::silent(leg),
                silent,
                policy.receive_timeout[leg as usize],
            ),
        ]
    }

    fn open(&self) -> Option<Time> {
        self.open.get(self.stuck?)
    }

    /// The peer was heard while what was sent to it was retransmitted in vain.
    fn is_undelivered(&self, sample: &LegSample) -> bool {
        let heard_after = SUSPECT_EVERY.max(sample.answer_takes());
        let heard = |since| self.last_heard >= since + heard_after;
        sample.unacked > 0
            && sample.retransmits >= UNDELIVERED_AFTER
            && self.open().is_some_and(heard)
    }

    /// What the session is closed as when the peer is proven gone.
    pub(super) fn dead(&self) -> CloseReason {
        match self.condition {
            Condition::Phantom => CloseReason::UpstreamPhantom,
            _ => CloseReason::dead(self.leg),
        }
    }

    /// Whether it is not judged.
    pub(super) fn is_exempt(&self) -> bool {
        self.stream >= Stream::Over
    }

    /// Whether keepalive asks the peer. If not, it is asked nothing while nothing waits for it.
    fn is_probed(&self, policy: &Policy) -> bool {
        policy.probes[self.leg as usize]
    }

    fn deadline(&self, policy: &Policy) -> Time {
        self.silent_since(policy) + policy.detect_within
    }

    /// What the clock of the dead counts from: the last sign of life, or, where nothing asks a quiet
    /// peer, since when bytes have waited for it.
    fn silent_since(&self, policy: &Policy) -> Time {
        let asked_since = self.stuck.filter(|_| !self.is_probed(policy));
        self.last_heard.max(asked_since.unwrap_or_default())
    }

    /// When the peer is dead if it stays silent; `None` if nothing asks it.
    #[must_use]
    pub fn dead_at(&self, policy: &Policy) -> Option<Time> {
        let is_asked = (self.is_probed(policy) || self.stuck.is_some()) && !self.is_exempt();
        is_asked.then(|| self.deadline(policy) + policy.grace())
    }

    /// An acknowledgement that came alone, long after anything that it could acknowledge, is the
    /// answer to a probe. (The peer's own probes do not move its age.)
    fn note_answer(&mut self, sample: &LegSample) {
        let alone = sample.last_ack_age + SUSPECT_EVERY;
        if sample.is_silent() && sample.last_sent_age.min(sample.last_data_age) > alone {
            self.probes_answered = self.probes_answered.saturating_add(1);
        }
    }

    pub(super) fn unanswered_since(&self) -> Option<Time> {
        self.unanswered_since.get(self.last_heard)
    }

    fn last_probe(&self) -> Option<Time> {
        self.last_probe.get(self.last_heard)
    }

    /// Takes in signs of life; true if there was a new one since the observation `before`. It
    /// answers every question.
    fn hear(&mut self, now: Time, before: Time, sample: &LegSample) -> bool {
        let heard = now - sample.last_heard_age();
        let segs_in = lower_16(sample.segs_in);
        let segs_moved = self.segs_in != segs_in;
        self.segs_in = segs_in;
        let dated = heard > self.last_heard + AGE_JITTER;
        if segs_moved {
            // The kernel keeps no time for a segment that is neither data nor a valid
            // acknowledgement (the peer's own window or keepalive probe). It came after the last
            // observation: no later time may be assumed.
            self.last_heard = self.last_heard.max(heard).max(before);
        } else if dated {
            self.last_heard = heard;
        } else {
            return false;
        }
        self.unanswered_since = Later::default();
        self.last_probe = Later::default();
        // At the first observation everything that the kernel has counted came after it.
        let is_first = self.last_sample.get(self.last_heard).is_none();
        let counts = if dated || is_first {
            Counts::FromLife
        } else {
            Counts::Older
        };
        self.proof = Proof::after_life(now - self.last_heard, counts, sample);
        true
    }

    fn judge(&self, now: Time, policy: &Policy, sample: &LegSample) -> Condition {
        let age = now - self.last_heard;
        let answer_takes = sample.answer_takes();
        // A single question may be on its way at any time: the second one says that the first was not
        // answered, or, to a peer far away, the one that comes a round trip and a half later.
        let far = u8::try_from(answer_takes / APART).unwrap_or(u8::MAX);
        let probed = self.proof.is_worth(2 + far);
        let first = u8::from(!sample.is_shrunk());
        let retransmitted = self.proof.is_worth(2 + first)
            || (self.proof.is_worth(1 + first) && sample.last_sent_age >= answer_takes);
        let due_since = match sample.question() {
            Evidence::Retransmit if retransmitted => Some(SUSPECT_EVERY),
            Evidence::WindowProbe if probed => Some(SUSPECT_EVERY),
            // Those of keepalive, even if there is something in flight by now.
            _ if probed => Some(policy.suspect_after()),
            _ => None,
        };
        let undelivered = self.is_undelivered(sample);
        // It was heard without an answer to the same questions.
        let due_since = if undelivered {
            due_since.map(|_| policy.suspect_after())
        } else {
            due_since
        };
        let asked_for = now - self.silent_since(policy);
        let overdue =
            self.unanswered_since().is_some() && due_since.is_some_and(|span| asked_for >= span);
        if overdue {
            Condition::Suspect
        } else if undelivered {
            Condition::Undelivered
        } else if self.stuck.is_some() && self.open().is_none() {
            Condition::Stalled
        } else if age >= policy.suspect_after() {
            Condition::Quiet
        } else {
            Condition::Alive
        }
    }

    /// The last questions to a silent leg: volleys of probes until they prove enough, and one at D or
    /// later, however late the observation.
    fn wants_probe(&self, now: Time, policy: &Policy) -> bool {
        // The last one, where the rest of its volley was missed.
        let asked = self.last_probe().is_some_and(|at| {
            at >= self.deadline(policy) && (at + APART..at + ASK_AGAIN_AFTER).contains(&now)
        });
        now >= self.next_probe(policy) && !(asked && self.proof.is_complete())
    }

    fn note_probe(&mut self, now: Time) {
        let going_on = self.last_probe().is_some_and(|at| now < at + APART);
        if !going_on || self.volley >= VOLLEY_PROBES {
            self.last_probe = Later::at(now, self.last_heard);
            self.volley = 0;
        }
        self.proof.begin(now - self.last_heard);
        self.volley += 1;
    }

    fn next_probe(&self, policy: &Policy) -> Time {
        let deadline = self.deadline(policy);
        let independent = self.last_heard + self.proof.next();
        let Some(volley) = self.last_probe() else {
            let begin = deadline - policy.final_phase();
            let enough = self.proof.is_complete();
            return if enough {
                begin
            } else {
                begin.max(independent)
            };
        };
        if self.volley < VOLLEY_PROBES {
            return volley + PROBE_EVERY * u64::from(self.volley);
        }
        let next = independent.max(volley + APART);
        let last = deadline.max(volley + VOLLEY_SPAN);
        let in_grace = next + VOLLEY_SPAN <= deadline + policy.grace();
        match self.proof.is_complete() {
            true if volley < deadline => next.min(last),
            // The verdict is due before that.
            true if !in_grace => volley + ASK_AGAIN_AFTER,
            _ => next,
        }
    }

    /// What proves it: silent for D, and enough questions stayed unanswered, the last one asked at D.
    /// Told from a sample of this very moment: an answer that came since the last observation must not be
    /// missed.
    fn gone(&self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Evidence> {
        if self.is_exempt() {
            return None;
        }
        let deadline = self.deadline(policy);
        let last_question = if sample.is_silent() {
            // Where there was no time to ask enough there is none to ask once more.
            let complete = self.proof.is_complete();
            self.last_probe().filter(|at| *at >= deadline || !complete)
        } else {
            self.unanswered_since()
        };
        let dead = sample.state != TcpState::Closed
            && now >= deadline + policy.grace()
            && self.is_proven(now, policy, sample)
            && last_question.is_some_and(|at| now >= at + sample.answer_takes())
            && now >= self.answered_by(now, policy, sample);
        dead.then(|| sample.question())
    }

    /// Enough questions are unanswered; or as many as there were time for in D, since the verdict is
    /// not put off: on a quiet leg where D is below 3 s, elsewhere where the kernel asks too rarely.
    fn is_proven(&self, now: Time, policy: &Policy, sample: &LegSample) -> bool {
        if self.proof.is_complete() {
            return true;
        }
        let Some(asked) = self
            .unanswered_since()
            .filter(|_| now >= policy.latest(self.silent_since(policy)))
        else {
            return false;
        };
        if sample.is_silent() {
            let in_time = asked + IN_TIME <= self.deadline(policy);
            return in_time && policy.detect_within < ENOUGH_TIME;
        }
        // Window probes are rare where the kernel backs off: there have to be two.
        let least = if sample.question() == Evidence::WindowProbe {
            2
        } else {
            1
        };
        self.proof.is_worth(least)
    }

    /// A question that was asked just before the verdict has its time, as far as the tolerance goes.
    fn answered_by(&self, now: Time, policy: &Policy, sample: &LegSample) -> Time {
        if sample.unacked == 0 {
            return now;
        }
        // A retransmission is data sent.
        let asked = now - sample.last_sent_age;
        let latest = policy.latest(self.silent_since(policy));
        if sample.is_shrunk() && asked < window::back_by(self.deadline(policy), policy) {
            // These are rare: the last one is still to come.
            return latest;
        }
        latest.min(asked + sample.answer_takes())
    }

    /// The longest gap that the kernel is to leave between two of its questions, where that changes.
    fn longest_gap(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Span> {
        let gap = if sample.is_shrunk() {
            window::longest_gap(now, self.silent_since(policy), policy, sample)
        } else if sample.notsent > 0 && sample.zero_window {
            window::longest_probe_gap(now, self.silent_since(policy), policy, sample.probes)
        } else {
            self.gap_in_flight(now, policy, sample)
        };
        // These depend on the moment.
        let exact = sample.zero_window && gap > SLOWEST_QUESTION;
        self.set_gap(gap).or(exact.then_some(gap))
    }

    /// Somebody wants to know now: has the kernel retransmit what is in flight more often.
    pub(super) fn hasten(&mut self, sample: &LegSample) -> Option<Span> {
        let rare = sample.unacked > 0 && !sample.zero_window && self.gap == 0;
        let overdue = sample.last_heard_age() >= sample.usual_rto() * 2;
        (rare && overdue)
            .then(|| self.set_gap(sample.usual_gap()))
            .flatten()
    }

    fn set_gap(&mut self, gap: Span) -> Option<Span> {
        let kept = match gap {
            KERNELS_OWN => 0,
            gap => u8::try_from(gap.as_millis() / 500).unwrap_or(u8::MAX),
        };
        let changed = std::mem::replace(&mut self.gap, kept) != kept;
        changed.then_some(gap)
    }

    /// Once nothing was heard for longer than the round trip and its usual variation explain, the kernel
    /// is not to double the gap between its questions any more, until the peer is heard. What a full
    /// accept queue dropped is taken when there is room, if it comes again. And where a peer is heard
    /// that acknowledges nothing, there has to be a question within D should it vanish.
    fn gap_in_flight(&self, now: Time, policy: &Policy, sample: &LegSample) -> Span {
        let asked = sample.unacked > 0 && self.proof.is_worth(1);
        let overdue = self.gap != 0 || now >= self.overdue_from(policy, sample);
        let longest = (policy.detect_within / 3).max(sample.usual_rto() * 4);
        if sample.took_nothing() || (asked && overdue) {
            sample.usual_gap()
        } else if sample.unacked > 0 && sample.retransmits > 0 && sample.rto >= longest {
            longest
        } else {
            KERNELS_OWN
        }
    }

    fn overdue_from(&self, policy: &Policy, sample: &LegSample) -> Time {
        let soon = (policy.detect_within / 3).min(OVERDUE);
        self.silent_since(policy) + soon.max(sample.usual_rto() * 2)
    }

    fn next_observation(&self, now: Time, policy: &Policy, sample: &LegSample) -> Time {
        if self.is_exempt() {
            // Something may be written to it.
            return now + policy.busy_interval();
        }
        let next = self.next_for_verdict(now, policy, sample);
        if sample.is_shrunk() {
            next.min(window::next_observation(now, sample))
                .min(now + SUSPECT_EVERY)
        } else if sample.is_silent() {
            next
        } else {
            let overdue = Some(self.overdue_from(policy, sample)).filter(|at| *at > now);
            let busy = next.min(now + policy.busy_interval());
            overdue.map_or(busy, |at| at.min(busy))
        }
    }

    fn next_for_verdict(&self, now: Time, policy: &Policy, sample: &LegSample) -> Time {
        if !self.is_probed(policy) && sample.is_silent() {
            return now + policy.detect_within;
        }
        let deadline = self.deadline(policy);
        let final_phase = deadline - policy.final_phase();
        if now < final_phase {
            return match self.unanswered_since() {
                Some(_) => final_phase.min(now + SUSPECT_EVERY),
                None => final_phase,
            };
        }
        let pace = match self.condition {
            // Without TCP_RTO_MAX_MS the kernel asks a stalled peer ever more rarely.
            Condition::Stalled => SUSPECT_EVERY,
            _ => FINAL_EVERY,
        };
        // The deadline itself is one of them: the last question is asked there.
        let answered = self
            .last_probe()
            .map_or(deadline, |at| at + sample.answer_takes());
        let (probe, pace) = if sample.is_silent() {
            (
                self.next_probe(policy).max(now + PROBE_EVERY),
                ASK_AGAIN_AFTER,
            )
        } else {
            (deadline, pace)
        };
        // The last probe of a volley is counted, too.
        let counted = self.last_probe().map_or(deadline, |at| at + VOLLEY_SPAN);
        let stops = [
            deadline,
            deadline + policy.grace(),
            policy.latest(self.silent_since(policy)),
            self.answered_by(now, policy, sample),
            answered,
            probe,
            counted,
            now + pace,
        ];
        stops
            .into_iter()
            .filter(|at| *at > now)
            .min()
            .unwrap_or(now + pace)
    }
}

fn lower_16(count: u32) -> u16 {
    (count & 0xFFFF) as u16
}

fn lower_32(count: u64) -> u32 {
    (count & 0xFFFF_FFFF) as u32
}
