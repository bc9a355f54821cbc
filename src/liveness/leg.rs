//! What is known of one leg, and when its peer is dead.

use std::num::NonZeroU32;

use strum::{EnumString, IntoStaticStr, VariantNames};

use super::machine::Ask;
use super::policy::{Policy, SLOWEST_QUESTION};
use super::proof::{APART, PROBE_EVERY, Proof, VOLLEY_PROBES};
use super::reason::{CloseReason, Evidence, Leg};
use super::sample::{AGE_JITTER, LegSample, TcpState};
use super::time::{Span, Time};
use super::window::{self, KERNELS_OWN};

/// In the final phase a leg that the kernel asks at its own pace is looked at this often.
const FINAL_LOOK_EVERY: Span = Span::ms(100);
/// A leg with an unanswered question is looked at this often until the final phase.
pub const SUSPECT_LOOK_EVERY: Span = Span::ms(1000);
/// Where a question was known to be unanswered so long before D, everything was asked that could be.
const IN_TIME: Span = Span::ms(500);
/// If even then there is no verdict, it is asked again: the last one had its time long ago.
const ASK_AGAIN_AFTER: Span = Span::ms(2000);
/// From this D on there is time to ask a quiet peer enough.
const ENOUGH_TIME: Span = Span::ms(3000);
/// So long after the last sign of life at the latest, or after a third of D, the kernel is not to double
/// the gaps between its questions any more, where the round trip allows it, ms.
const OVERDUE: Span = Span::ms(3000);
/// A volley, until its last probe has been counted.
const VOLLEY_SPAN: Span = Span::ms(PROBE_EVERY.as_millis() * (VOLLEY_PROBES as u64 + 1));

/// So many retransmissions of the same segment in vain, while the peer is heard, say that it does
/// not arrive.
const UNDELIVERED_AFTER: u32 = 3;

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Condition {
    /// Heard within the probe interval.
    #[default]
    Alive,
    /// Nothing heard lately; no judgement.
    Quiet,
    /// A question has been unanswered for longer than expected: half-open, awaiting the verdict.
    Suspect,
    /// The peer's kernel answers, its application takes no data: the window is closed, or too small.
    Stalled,
    /// The peer is heard, its window is open, and data sent to it stays unacknowledged: larger
    /// segments, or all of one direction, are lost on the way.
    Undelivered,
    /// The upstream's kernel completed the connect and took no byte since: its application never
    /// accepted, because its accept queue was full.
    Phantom,
}

/// What the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Default)]
pub enum Stream {
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

/// A point in time after the last sign of life of a leg, or none, in four bytes. Everything that
/// is measured so is forgotten at the next sign of life; without one for 49 days it stands still.
#[derive(Clone, Copy, Debug, Default)]
struct AfterLife(Option<NonZeroU32>);

impl AfterLife {
    fn at(time: Time, life: Time) -> Self {
        let span = u32::try_from((time - life).as_millis()).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(span.saturating_add(1)))
    }

    fn get(self, life: Time) -> Option<Time> {
        self.0
            .map(|span| life + Span::ms(u64::from(span.get() - 1)))
    }
}

#[derive(Clone, Debug, Default)]
pub struct LegState {
    /// Time of the last known sign of life.
    pub life: Time,
    /// Since when bytes have waited for the peer without one being acknowledged.
    stuck: Option<Time>,
    /// Since when, of that, its window has not been the reason.
    open: AfterLife,
    /// `LegSample::bytes_acked` and `LegSample::busy` at the last look, the lower halves.
    acked: u32,
    busy: u32,
    /// The last look that had a sample of this leg.
    seen: AfterLife,
    /// Since when a question is known to be unanswered.
    asked: AfterLife,
    /// When the first probe of the last volley was requested.
    probed: AfterLife,
    proof: Proof,
    /// The longest gap between two retransmissions that the kernel was told, in half seconds, roughly;
    /// 0 is its own.
    gap: u8,
    /// `LegSample::segs_in`, the lower half.
    segs_in: u16,
    /// Probes of that volley.
    volley: u8,
    pub condition: Condition,
    /// Keepalive is off: while nothing waits, the peer is asked nothing.
    unprobed: bool,
    /// Answers to keepalive probes, as far as a look saw one.
    pub probes_answered: u8,
    pub stream: Stream,
}

impl LegState {
    /// Of a peer that has just been connected.
    pub fn new(now: Time, leg: Leg) -> Self {
        Self {
            life: now,
            // The SYN of a connection that we dialled counts.
            acked: u32::from(leg == Leg::Upstream),
            ..Self::default()
        }
    }

    /// Takes in what the kernel says; returns what to do to the socket.
    pub fn observe(
        &mut self,
        now: Time,
        policy: &Policy,
        leg: Leg,
        sample: &LegSample,
    ) -> Option<Ask> {
        if sample.state == TcpState::Closed {
            // Nobody owes an answer any more, nor takes data. What else was known stays: the error
            // that may be waiting in the socket is judged by it.
            self.stuck = None;
            if matches!(self.condition, Condition::Stalled | Condition::Undelivered) {
                self.condition = Condition::Alive;
            }
            return None;
        }
        self.unprobed = !policy.probes[leg as usize];
        if sample.is_complete() || self.is_exempt() {
            return self.observe_exempt(now, policy, sample);
        }
        if sample.said_fin() {
            self.stream = Stream::Complete;
        }
        let mut ask = None;
        let seen = self.seen.get(self.life).unwrap_or(self.life);
        let probed = self.probed().is_some();
        if self.hear(now, seen, sample) {
            self.note_answer(sample);
            ask = probed.then_some(Ask::Rest);
        }
        self.seen = AfterLife::at(now, self.life);
        self.proof.take(now - self.life, sample);
        // The first transmission alone is no unanswered question: it may be on its way.
        let repeated = sample.unacked == 0 || sample.unanswered_repetitions() > 0;
        if self.proof.is_worth(1) && repeated && self.asked().is_none() {
            self.asked = AfterLife::at(now, self.life);
        }
        self.note_stuck(now, seen, sample);
        // A segment that came after ours went out, and acknowledged none of them.
        let spoke_since = self.life > now - sample.busy;
        self.condition = if leg == Leg::Upstream && sample.took_nothing() && spoke_since {
            Condition::Phantom
        } else {
            self.judge(now, policy, sample)
        };
        if sample.is_silent() && !self.unprobed && self.wants_probe(now, policy) {
            self.note_probe(now);
            ask = Some(Ask::Probe);
        }
        ask
    }

    /// A peer that has said FIN and is owed nothing has nothing left to die of. When something is
    /// written to it again, its clock starts at the look that finds out: nobody had asked it before.
    fn observe_exempt(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Ask> {
        let seen = self.seen.get(self.life).unwrap_or(self.life);
        self.hear(now, seen, sample);
        let ask = match self.stream {
            Stream::Over if !sample.is_complete() => {
                self.stream = Stream::Complete;
                self.life = now;
                (!self.unprobed).then_some(Ask::Again)
            }
            Stream::Open | Stream::Complete => {
                self.stream = Stream::Over;
                (!self.unprobed).then_some(Ask::Nothing)
            }
            Stream::Over | Stream::Bequeathed => None,
        };
        self.asked = AfterLife::default();
        self.probed = AfterLife::default();
        self.proof = Proof::after_life(now - self.life, false, sample);
        self.seen = AfterLife::at(now, self.life);
        self.note_stuck(now, seen, sample);
        if self.stream == Stream::Bequeathed {
            self.stuck = None;
        }
        self.condition = if now - self.life >= policy.suspect_after() {
            Condition::Quiet
        } else {
            Condition::Alive
        };
        ask
    }

    /// Bytes may wait because the window is closed or too small, or because they do not arrive. Each
    /// has its own clock, and every byte that is acknowledged restarts both.
    fn note_stuck(&mut self, now: Time, seen: Time, sample: &LegSample) {
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
            // Nothing waited at the last look.
            seen.max(now - waited)
        });
        // Where nothing is in flight although bytes wait, the window is too small for a segment.
        // For a moment that also happens between two segments.
        let too_small = sample.unacked == 0 && now >= since + SUSPECT_LOOK_EVERY;
        let open = match self.open() {
            _ if sample.zero_window || too_small => None,
            Some(open) if known.is_some() => Some(open),
            _ if known.is_some() => Some(now),
            _ => Some(since),
        };
        self.stuck = Some(since);
        self.open = open.map_or(AfterLife::default(), |at| AfterLife::at(at, since));
    }

    /// Whether the peer has acknowledged something since the last look.
    fn has_taken(&self, sample: &LegSample) -> bool {
        self.acked != lower_32(sample.bytes_acked)
    }

    /// When a byte last moved on this leg, as far as that can be told from a sample that was not
    /// observed yet. Data sent counts when it is acknowledged: before, it may be a retransmission.
    pub fn last_payload(&self, now: Time, sample: &LegSample) -> Time {
        let acknowledged = if sample.unacked == 0 {
            Some(sample.last_sent_age)
        } else {
            self.has_taken(sample).then_some(sample.last_ack_age)
        };
        let received = sample.last_data_age;
        now - acknowledged.map_or(received, |age| age.min(received))
    }

    /// Since when the peer has taken nothing although its kernel answers, because of its window.
    /// Whether a suspect is stalled or dead is not known before it answers or is proven dead.
    pub fn stalled(&self) -> Option<Time> {
        let shut = self.open().is_none() && self.condition != Condition::Suspect;
        self.stuck.filter(|_| shut)
    }

    /// Since when what was sent to a peer that is heard stays unacknowledged.
    pub fn undelivered(&self) -> Option<Time> {
        let is = matches!(self.condition, Condition::Undelivered | Condition::Phantom);
        self.open().filter(|_| is)
    }

    fn open(&self) -> Option<Time> {
        self.open.get(self.stuck?)
    }

    /// The peer was heard while what was sent to it was retransmitted in vain.
    fn is_undelivered(&self, sample: &LegSample) -> bool {
        let heard_after = SUSPECT_LOOK_EVERY.max(sample.answer_takes());
        let heard = |since| self.life >= since + heard_after;
        sample.unacked > 0
            && sample.retransmits >= UNDELIVERED_AFTER
            && self.open().is_some_and(heard)
    }

    /// What the session is closed as when the peer stays silent.
    pub fn silent(&self, leg: Leg) -> CloseReason {
        match self.condition {
            Condition::Phantom => CloseReason::UpstreamPhantom,
            _ => CloseReason::dead(leg),
        }
    }

    /// Whether it is not judged.
    pub fn is_exempt(&self) -> bool {
        self.stream >= Stream::Over
    }

    fn deadline(&self, policy: &Policy) -> Time {
        self.silent_since() + policy.detect_within
    }

    /// What the clock of the dead counts from: the last sign of life, or, where nothing asks a quiet
    /// peer, since when bytes have waited for it.
    fn silent_since(&self) -> Time {
        let asked_since = self.stuck.filter(|_| self.unprobed);
        self.life.max(asked_since.unwrap_or_default())
    }

    /// When the peer is dead if it stays silent; `None` if nothing asks it.
    pub fn dead_at(&self, policy: &Policy) -> Option<Time> {
        let is_asked = (!self.unprobed || self.stuck.is_some()) && !self.is_exempt();
        is_asked.then(|| self.deadline(policy) + policy.grace())
    }

    /// An acknowledgement that came alone, long after anything that it could acknowledge, is the
    /// answer to a probe. (The peer's own probes do not move its age.)
    fn note_answer(&mut self, sample: &LegSample) {
        let alone = sample.last_ack_age + SUSPECT_LOOK_EVERY;
        if sample.is_silent() && sample.last_sent_age.min(sample.last_data_age) > alone {
            self.probes_answered = self.probes_answered.saturating_add(1);
        }
    }

    pub fn asked(&self) -> Option<Time> {
        self.asked.get(self.life)
    }

    fn probed(&self) -> Option<Time> {
        self.probed.get(self.life)
    }

    /// Takes in signs of life; true if there was a new one since the leg was last `seen`. It
    /// answers every question.
    fn hear(&mut self, now: Time, seen: Time, sample: &LegSample) -> bool {
        let heard = now - sample.last_life_age();
        let segs_in = (sample.segs_in & 0xFFFF) as u16;
        let segs_moved = self.segs_in != segs_in;
        self.segs_in = segs_in;
        let dated = heard > self.life + AGE_JITTER;
        if segs_moved {
            // The kernel keeps no time for a segment that is neither data nor a valid
            // acknowledgement (the peer's own window or keepalive probe): it came after the last
            // look, and that is all that may be believed.
            self.life = self.life.max(heard).max(seen);
        } else if dated {
            self.life = heard;
        } else {
            return false;
        }
        self.asked = AfterLife::default();
        self.probed = AfterLife::default();
        // The kernel's count is that of this life as well if nobody has looked before.
        let counts_from_life = dated || self.seen.get(self.life).is_none();
        self.proof = Proof::after_life(now - self.life, counts_from_life, sample);
        true
    }

    fn judge(&self, now: Time, policy: &Policy, sample: &LegSample) -> Condition {
        let age = now - self.life;
        let answer_takes = sample.answer_takes();
        // A single question may be on its way at any time: the second one says that the first was not
        // answered, or, to a peer far away, the one that comes a round trip and a half later.
        let far = u8::try_from(answer_takes / APART).unwrap_or(u8::MAX);
        let probed = self.proof.is_worth(2 + far);
        let first = u8::from(!sample.is_withdrawn());
        let repeated = self.proof.is_worth(2 + first)
            || (self.proof.is_worth(1 + first) && sample.last_sent_age >= answer_takes);
        let due_since = match kind(sample) {
            Evidence::Retransmit if repeated => Some(SUSPECT_LOOK_EVERY),
            Evidence::WindowProbe if probed => Some(SUSPECT_LOOK_EVERY),
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
        let asked_for = now - self.silent_since();
        let overdue = self.asked().is_some() && due_since.is_some_and(|span| asked_for >= span);
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
    /// later, however late the look.
    fn wants_probe(&self, now: Time, policy: &Policy) -> bool {
        // The last one, where the rest of its volley was missed.
        let asked = self.probed().is_some_and(|at| {
            at >= self.deadline(policy) && (at + APART..at + ASK_AGAIN_AFTER).contains(&now)
        });
        now >= self.next_probe(policy) && !(asked && self.proof.is_complete())
    }

    fn note_probe(&mut self, now: Time) {
        let going_on = self.probed().is_some_and(|at| now < at + APART);
        if !going_on || self.volley >= VOLLEY_PROBES {
            self.probed = AfterLife::at(now, self.life);
            self.volley = 0;
        }
        self.proof.begin(now - self.life);
        self.volley += 1;
    }

    fn next_probe(&self, policy: &Policy) -> Time {
        let deadline = self.deadline(policy);
        let independent = self.life + self.proof.next();
        let Some(volley) = self.probed() else {
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
    /// Told from a sample of this very moment: an answer that came since the last look must not be
    /// missed.
    pub fn death(&self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Evidence> {
        if self.is_exempt() {
            return None;
        }
        let deadline = self.deadline(policy);
        let last_question = if sample.is_silent() {
            // Where there was no time to ask enough there is none to ask once more.
            let complete = self.proof.is_complete();
            self.probed().filter(|at| *at >= deadline || !complete)
        } else {
            self.asked()
        };
        let dead = sample.state != TcpState::Closed
            && now >= deadline + policy.grace()
            && self.is_proven(now, policy, sample)
            && last_question.is_some_and(|at| now >= at + sample.answer_takes())
            && now >= self.answered_by(now, policy, sample);
        dead.then(|| kind(sample))
    }

    /// Enough questions are unanswered; or as many as there were time for in D, since the verdict is
    /// not put off: on a quiet leg where D is below 3 s, elsewhere where the kernel asks too rarely.
    fn is_proven(&self, now: Time, policy: &Policy, sample: &LegSample) -> bool {
        if self.proof.is_complete() {
            return true;
        }
        let Some(asked) = self
            .asked()
            .filter(|_| now >= policy.latest(self.silent_since()))
        else {
            return false;
        };
        if sample.is_silent() {
            let in_time = asked + IN_TIME <= self.deadline(policy);
            return in_time && policy.detect_within < ENOUGH_TIME;
        }
        // Window probes are rare where the kernel backs off: there have to be two.
        let least = if kind(sample) == Evidence::WindowProbe {
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
        let latest = policy.latest(self.silent_since());
        if sample.is_withdrawn() && asked < window::back_by(self.deadline(policy), policy) {
            // These are rare: the last one is still to come.
            return latest;
        }
        latest.min(asked + sample.answer_takes())
    }

    /// The longest gap that the kernel is to leave between two of its questions, where that changes.
    pub fn longest_gap(&mut self, now: Time, policy: &Policy, sample: &LegSample) -> Option<Span> {
        let gap = if sample.is_withdrawn() {
            window::longest_gap(now, self.silent_since(), policy, sample)
        } else if sample.notsent > 0 && sample.zero_window {
            window::longest_probe_gap(now, self.silent_since(), policy, sample.probes)
        } else {
            self.gap_in_flight(now, policy, sample)
        };
        // These depend on the moment.
        let exact = sample.zero_window && gap > SLOWEST_QUESTION;
        self.set_gap(gap).or(exact.then_some(gap))
    }

    /// Somebody wants to know now: has the kernel repeat what is in flight more often.
    pub fn hasten(&mut self, sample: &LegSample) -> Option<Span> {
        let rare = sample.unacked > 0 && !sample.zero_window && self.gap == 0;
        let overdue = sample.last_life_age() >= sample.usual_rto() * 2;
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
        self.silent_since() + soon.max(sample.usual_rto() * 2)
    }

    pub fn next_look(&self, now: Time, policy: &Policy, sample: &LegSample) -> Time {
        if self.is_exempt() {
            // Something may be written to it.
            return now + policy.busy_look_every();
        }
        let next = self.next_look_for_life(now, policy, sample);
        if sample.is_withdrawn() {
            next.min(window::next_look(now, sample))
                .min(now + SUSPECT_LOOK_EVERY)
        } else if sample.is_silent() {
            next
        } else {
            let overdue = Some(self.overdue_from(policy, sample)).filter(|at| *at > now);
            let busy = next.min(now + policy.busy_look_every());
            overdue.map_or(busy, |at| at.min(busy))
        }
    }

    fn next_look_for_life(&self, now: Time, policy: &Policy, sample: &LegSample) -> Time {
        if self.unprobed && sample.is_silent() {
            return now + policy.detect_within;
        }
        let deadline = self.deadline(policy);
        let final_phase = deadline - policy.final_phase();
        if now < final_phase {
            return match self.asked() {
                Some(_) => final_phase.min(now + SUSPECT_LOOK_EVERY),
                None => final_phase,
            };
        }
        let pace = match self.condition {
            // Without TCP_RTO_MAX_MS the kernel asks a stalled peer ever more rarely.
            Condition::Stalled => SUSPECT_LOOK_EVERY,
            _ => FINAL_LOOK_EVERY,
        };
        // The deadline itself is one of the looks: the last question is asked there.
        let answered = self
            .probed()
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
        let counted = self.probed().map_or(deadline, |at| at + VOLLEY_SPAN);
        let stops = [
            deadline,
            deadline + policy.grace(),
            policy.latest(self.silent_since()),
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

fn lower_32(count: u64) -> u32 {
    (count & 0xFFFF_FFFF) as u32
}

/// What the kernel asks by.
pub fn kind(sample: &LegSample) -> Evidence {
    if sample.unacked > 0 {
        Evidence::Retransmit
    } else if sample.notsent > 0 {
        Evidence::WindowProbe
    } else {
        Evidence::Keepalive
    }
}

/// Whether the kernel has a question that is not answered.
pub fn is_asked(sample: &LegSample) -> bool {
    sample.probes > 0 || sample.unanswered_repetitions() > 0
}
