//! What is known of one leg, and when its peer is dead.

use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

use super::machine::Ask;
use super::policy::{LATE_QUESTION, Millis, Policy, SLOWEST_QUESTION};
use super::reason::{CloseReason, Evidence, Leg};
use super::repetition::{Repetitions, lower_half};
use super::sample::{LegSample, TcpState};
use super::window::{self, Window};

/// Ages come from jiffies and are rounded; a shift this small is not a new sign of life.
const AGE_JITTER: Millis = 20;
/// Spacing of the last questions, and of the looks that wait for their answers.
const FINAL_ASK_EVERY: Millis = 200;
const FINAL_LOOK_EVERY: Millis = 100;
/// The same while the kernel's own next question is all that is awaited.
const AWAITED_LOOK_EVERY: Millis = 20;
/// A leg with an unanswered question is looked at this often until the final phase.
pub const SUSPECT_LOOK_EVERY: Millis = 1000;
/// A leg that carries data is looked at this often, and so it is to be soon after it begins to: its
/// peer may take the window back, and the kernel would give it up 2 s after it fell silent, ms.
pub const BUSY_LOOK_EVERY: Millis = 1500;
/// A question must have been pending for this long before its silence counts, and for one and a
/// half round trips where that is longer.
const MIN_UNANSWERED: Millis = 100;
/// If even then there is no verdict, it is asked again: the last one had its time long ago.
const ASK_AGAIN_AFTER: Millis = 2000;

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

/// A point in time, or none, in eight bytes: there is one machine for each session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(Option<NonZeroU64>);

impl Mark {
    pub fn at(time: Millis) -> Self {
        Self(NonZeroU64::new(time.saturating_add(1)))
    }

    pub fn get(self) -> Option<Millis> {
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

/// A point in time up to 2 s after a peer has to be back, or none, in one byte.
#[derive(Clone, Copy, Debug, Default)]
struct AfterBack(Option<NonZeroU8>);

impl AfterBack {
    const UNIT: Millis = 8;

    fn at(time: Millis, back: Millis) -> Self {
        let span = time.saturating_sub(back).div_ceil(Self::UNIT);
        Self(NonZeroU8::new(u8::try_from(span + 1).unwrap_or(u8::MAX)))
    }

    fn get(self, back: Millis) -> Option<Millis> {
        self.0
            .map(|span| back + Millis::from(span.get() - 1) * Self::UNIT)
    }
}

#[derive(Clone, Debug, Default)]
pub struct LegState {
    /// Time of the last known sign of life.
    pub life: Millis,
    /// Since when the peer has taken no data although its kernel answers.
    pub stalled: Mark,
    /// The last look that had a sample of this leg.
    seen: AfterLife,
    /// Since when a question is known to be unanswered.
    asked: AfterLife,
    /// When the last probe was requested.
    probed: AfterLife,
    /// `LegSample::segs_in`, the lower half.
    segs_in: u16,
    repetitions: Repetitions,
    /// Unanswered questions when the last sign of life was seen, and later when a peer that was away
    /// for as long as it may be was back at the latest.
    questions_before: u8,
    /// When one more was seen to be unanswered after that.
    asked_late: AfterBack,
    pub condition: Condition,
    window: Window,
}

impl LegState {
    /// Of a peer that has just been connected.
    pub fn new(now: Millis) -> Self {
        Self {
            life: now,
            ..Self::default()
        }
    }

    /// Takes in what the kernel says; returns what to do to the socket.
    pub fn observe(
        &mut self,
        now: Millis,
        policy: &Policy,
        leg: Leg,
        sample: &LegSample,
    ) -> Option<Ask> {
        if sample.state == TcpState::Closed {
            // Nobody owes an answer any more, nor takes data. What else was known stays: the error
            // that may be waiting in the socket is judged by it.
            self.stalled = Mark::default();
            if self.condition == Condition::Stalled {
                self.condition = Condition::Alive;
            }
            return None;
        }
        let mut ask = None;
        let seen = self.seen.get(self.life).unwrap_or(self.life);
        let probed = self.probed().is_some();
        if self.hear(now, seen, sample) {
            self.questions_before = questions(sample);
            self.asked_late = AfterBack::default();
            let limited = self.repetitions.answered();
            ask = (limited || probed).then_some(Ask::Rest);
        }
        self.note_late_question(now, seen, policy, sample);
        self.seen = AfterLife::at(now, self.life);
        let asked = question(sample).is_some() && self.was_asked_since(now, sample);
        if asked && self.asked().is_none() {
            self.asked = AfterLife::at(now, self.life);
        }
        self.note_stall(now, seen, sample);
        // A segment that came after ours went out, and acknowledged none of them.
        let spoke_since = self.life > now - sample.busy_ms;
        self.condition = if leg == Leg::Upstream && sample.took_nothing() && spoke_since {
            Condition::Phantom
        } else {
            self.judge(now, policy, sample)
        };
        if sample.is_silent() && self.wants_probe(now, policy, sample) {
            self.probed = AfterLife::at(now, self.life);
            ask = Some(Ask::Probe);
        }
        let repeat = self.repetitions.arrange(now, self.life, policy, sample);
        repeat.or(ask)
    }

    fn note_stall(&mut self, now: Millis, seen: Millis, sample: &LegSample) {
        let took_some = self.window.moved(sample);
        let taking_no_data = sample.zero_window && !sample.is_silent();
        // The window may have been closed for long before there was anything to send, and its
        // opening be lost: only the time since the last look that saw no stall can count.
        let since = self.stalled.get().unwrap_or(seen);
        self.stalled = if taking_no_data && sample.is_withdrawn() && !took_some {
            // What is repeated is sent, too.
            Mark::at(since)
        } else if taking_no_data {
            Mark::at(since.max(now - sample.last_sent_age))
        } else {
            Mark::default()
        };
    }

    /// What the session is closed as when the peer stays silent.
    pub fn silent(&self, leg: Leg) -> CloseReason {
        match self.condition {
            Condition::Phantom => CloseReason::UpstreamPhantom,
            _ => CloseReason::dead(leg),
        }
    }

    fn deadline(&self, policy: &Policy) -> Millis {
        self.life + policy.detect_within
    }

    pub fn asked(&self) -> Option<Millis> {
        self.asked.get(self.life)
    }

    fn probed(&self) -> Option<Millis> {
        self.probed.get(self.life)
    }

    /// Takes in signs of life; true if there was a new one since the leg was last `seen`. It
    /// answers every question.
    fn hear(&mut self, now: Millis, seen: Millis, sample: &LegSample) -> bool {
        let heard = now - sample.last_life_age();
        let segs_in = lower_half(sample.segs_in);
        let segs_moved = self.segs_in != segs_in;
        self.segs_in = segs_in;
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
        let answer_takes = sample.answer_takes();
        // A single probe may be on its way at any time: the second one says that the first was
        // not answered, or, to a peer far away, the one that comes a round trip and a half later.
        let probed = Millis::from(sample.probes) >= 2 + answer_takes / FINAL_ASK_EVERY;
        let repetitions = sample.unanswered_repetitions();
        let repeated =
            repetitions >= 2 || (repetitions == 1 && sample.last_sent_age >= answer_takes);
        let due_since = match question(sample) {
            None => None,
            Some(Evidence::Retransmit) if repeated => Some(SUSPECT_LOOK_EVERY),
            Some(Evidence::WindowProbe) if probed => Some(SUSPECT_LOOK_EVERY),
            // Those of keepalive, even if there is something in flight by now.
            Some(_) if probed => Some(policy.suspect_after()),
            Some(_) => None,
        };
        let overdue = self.asked().is_some() && due_since.is_some_and(|span| age >= span);
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

    /// The last questions to a silent leg: every 200 ms in the final phase and for as long as the
    /// grace has time for an answer, and one at D or later, however late the look. Asking again
    /// before that one had its time would put the verdict off for ever.
    fn wants_probe(&self, now: Millis, policy: &Policy, sample: &LegSample) -> bool {
        let deadline = self.life + policy.detect_within;
        if now + policy.final_phase() < deadline {
            return false;
        }
        let Some(at) = self.probed() else {
            return true;
        };
        let every = if now + patience(sample) <= deadline + policy.grace() {
            FINAL_ASK_EVERY
        } else {
            ASK_AGAIN_AFTER
        };
        (at < deadline && now >= deadline) || now >= at + every
    }

    /// What proves it: silent for D, and the last question stayed unanswered. Told from a sample of
    /// this very moment: an answer that came since the last look must not be missed.
    pub fn death(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Option<Evidence> {
        let deadline = self.life + policy.detect_within;
        let last_question = if sample.is_silent() {
            self.probed().filter(|at| *at >= deadline)
        } else {
            self.asked()
        };
        let dead = sample.state != TcpState::Closed
            && now >= deadline + policy.grace()
            && is_unanswered(sample)
            && self.was_asked_since(now, sample)
            && last_question.is_some_and(|at| now >= at + patience(sample))
            && now >= self.answered_by(now, policy, sample);
        question(sample).filter(|_| dead)
    }

    /// No verdict before this.
    fn answered_by(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Millis {
        if sample.is_silent() {
            return now;
        }
        let back = self.back_by(policy, sample);
        if sample.is_withdrawn() {
            let sent = now - sample.last_sent_age;
            let awaited_until = window::awaited_until(self.deadline(policy), policy);
            return if sent >= back {
                awaited_until.min(sent + sample.answer_takes())
            } else {
                awaited_until
            };
        }
        // By then one more question was asked, whatever else is known of it. Without such an end a
        // peer a second away would be waited for again with each question.
        let last_chance = back + SLOWEST_QUESTION + LATE_QUESTION + sample.answer_takes();
        if sample.unacked > 0 {
            let deadline = self.life + policy.detect_within;
            let last = self.repetitions.answered_by(now, deadline, policy, sample);
            if let Some(answered_by) = last {
                return answered_by.min(last_chance);
            }
        } else if !policy.needs_last_repetition() {
            return now;
        }
        let asked = self.asked_late.get(back);
        asked.map_or(last_chance, |at| at + sample.answer_takes())
    }

    /// A peer that was away for less than D - I is back by then. When that began it had been heard
    /// one probe interval before at most, and behind a closed window one window probe.
    fn back_by(&self, policy: &Policy, sample: &LegSample) -> Millis {
        let deadline = self.deadline(policy);
        if sample.is_withdrawn() {
            return window::back_by(deadline, policy);
        }
        if sample.unacked > 0 {
            return deadline;
        }
        deadline - policy.back_sooner(sample.gap_after_life())
    }

    /// Where the kernel asks at its own pace, about once a second, a question from before the peer
    /// was back proves nothing.
    fn note_late_question(
        &mut self,
        now: Millis,
        seen: Millis,
        policy: &Policy,
        sample: &LegSample,
    ) {
        let back = self.back_by(policy, sample);
        let rare = sample.unacked > 0 && sample.rto_ms > SLOWEST_QUESTION;
        if !policy.needs_last_repetition() || rare || now < back {
            return;
        }
        if seen < back {
            self.questions_before = questions(sample);
            self.asked_late = AfterBack::default();
        } else if self.asked_late.0.is_none() && questions(sample) != self.questions_before {
            self.asked_late = AfterBack::at(now, back);
        }
    }

    /// Without TCP_RTO_MAX_MS a sign of life that acknowledges nothing new may be followed by
    /// minutes without a retransmission; the count then tells of questions from before it. A
    /// retransmission is data sent, but for that of a bare FIN: of that only the count tells.
    fn was_asked_since(&self, now: Millis, sample: &LegSample) -> bool {
        let sent = now - sample.last_sent_age;
        sample.unacked == 0
            || sample.probes > 0
            || sent > self.life + AGE_JITTER
            || questions(sample) > self.questions_before
    }

    /// The longest gap that the kernel is to leave between two repetitions, if it is to be set.
    pub fn longest_gap(
        &mut self,
        now: Millis,
        policy: &Policy,
        sample: &LegSample,
    ) -> Option<Millis> {
        self.window.longest_gap(now, self.life, policy, sample)
    }

    pub fn next_look(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Millis {
        let next = self.next_look_for_life(now, policy, sample);
        if sample.is_withdrawn() {
            next.min(window::next_look(now, sample))
                .min(now + SUSPECT_LOOK_EVERY)
        } else if sample.is_silent() {
            next
        } else {
            next.min(now + BUSY_LOOK_EVERY)
        }
    }

    fn next_look_for_life(&self, now: Millis, policy: &Policy, sample: &LegSample) -> Millis {
        let deadline = self.deadline(policy);
        let final_phase = deadline - policy.final_phase();
        if now < final_phase {
            return match self.asked() {
                Some(_) => final_phase.min(now + SUSPECT_LOOK_EVERY),
                None => final_phase,
            };
        }
        let back = self.back_by(policy, sample);
        let awaits_question = policy.needs_last_repetition()
            && !sample.is_silent()
            && now >= back
            && self.asked_late.0.is_none();
        let pace = match self.condition {
            // Without TCP_RTO_MAX_MS the kernel asks a stalled peer ever more rarely.
            Condition::Stalled => SUSPECT_LOOK_EVERY,
            _ if awaits_question => AWAITED_LOOK_EVERY,
            _ => FINAL_LOOK_EVERY,
        };
        // The deadline itself is one of the looks: the last question is asked there. What was asked
        // until the peer has to be back is counted then, so that look must not be late.
        let stops = [
            back - FINAL_LOOK_EVERY,
            back,
            deadline,
            deadline + policy.grace(),
            self.answered_by(now, policy, sample),
            now + pace,
        ];
        let repetition = self.repetitions.next_look(now, sample);
        stops
            .into_iter()
            .chain(repetition)
            .filter(|at| *at > now)
            .min()
            .unwrap_or(now + pace)
    }
}

/// How long a question must have been pending for its silence to count, ms.
fn patience(sample: &LegSample) -> Millis {
    sample.answer_takes().max(MIN_UNANSWERED)
}

/// What the kernel has asked the peer and got no answer to.
pub fn question(sample: &LegSample) -> Option<Evidence> {
    if sample.probes == 0 && sample.unanswered_repetitions() == 0 {
        None
    } else if sample.unacked > 0 {
        Some(Evidence::Retransmit)
    } else if sample.notsent > 0 {
        Some(Evidence::WindowProbe)
    } else {
        Some(Evidence::Keepalive)
    }
}

/// How many of them, as far as one byte can tell.
fn questions(sample: &LegSample) -> u8 {
    let questions = sample
        .probes
        .saturating_add(sample.unanswered_repetitions());
    u8::try_from(questions).unwrap_or(u8::MAX)
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
