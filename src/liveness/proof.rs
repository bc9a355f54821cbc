//! How much unanswered questions prove.
//!
//! A live peer may be silent because the path loses packets. The requirement: at 10 % loss each way,
//! fewer than 1 in 10,000 rows of questions to a live peer are taken for proof that it is gone.
//!
//! * One question and its answer: 1 - 0.9 * 0.9 = 0.19 that no answer comes.
//! * Linux answers the probes of a connection once in 500 ms (`tcp_invalid_ratelimit`), counted from
//!   the last answer it *sent*. So probes closer together are one question. But a probe that is lost
//!   on the way does not use up the answer: of three probes 20 ms apart one arrives for certain
//!   (0.999), and only its answer can be lost: 0.1. Such three are a **volley**.
//! * Retransmissions of data are answered each time. The first transmission counts as well.
//!
//! Chances multiply, so their logarithms add up: [`PROOF`] is 10^-4.1. That takes five volleys less
//! one probe (2.1 s), six questions of the kernel's own, or a mixture of both.

use super::sample::{AGE_JITTER, LegSample};
use super::time::Span;

/// -10 log10 of the chance that a live peer leaves a single question unanswered: 0.19 is 10^-0.72.
const SINGLE: u8 = 7;
/// The same of a volley: 0.1.
const VOLLEY: u8 = 10;
/// So many probes make a volley.
pub const VOLLEY_PROBES: u8 = 3;
/// The current one is complete, and was counted as such.
const WHOLE: u8 = u8::MAX;
/// They are this far apart: two ticks of the slowest kernel clock.
pub const PROBE_EVERY: Span = Span::ms(20);
/// Probes closer together than this are one question (`tcp_invalid_ratelimit`).
pub const APART: Span = Span::ms(500);
/// The kernel sends no keepalive probe before so much silence.
const FIRST_PROBE: Span = Span::ms(1000);
/// What has to be added up before a peer is gone.
const PROOF: u8 = 41;

/// What the unanswered questions since the last sign of life prove. All times are spans of silence:
/// they count from that sign of life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proof {
    weight: u8,
    /// The kernel's count of probes, one byte wide as in the kernel, when it was last read.
    probes: u8,
    /// The same of transmissions in flight.
    transmissions: u8,
    /// Probes since `counted`.
    volley: u8,
    /// When a question was last counted; 0: never.
    counted: u32,
}

/// Since when the kernel counts its unanswered questions: an acknowledgement sets its counts to 0, another
/// segment does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Since the last sign of life.
    FromLife,
    /// Some of them may be older.
    Older,
}

impl Proof {
    /// After a sign of life, as told by a sample taken `silent` after it.
    pub fn after_life(silent: Span, counts: Counts, sample: &LegSample) -> Self {
        let earlier = |count: u8| if counts == Counts::FromLife { 0 } else { count };
        let sent_since = sample.last_sent_age + AGE_JITTER < silent;
        let transmissions = match sample.unacked {
            0 => 0,
            // Of those that are counted, one at least came after it, or none.
            _ if sent_since => byte(sample.retransmits),
            _ => byte(sample.retransmits).wrapping_add(1),
        };
        Self {
            probes: earlier(byte(sample.probes)),
            transmissions,
            ..Self::default()
        }
    }

    /// What the kernel has asked on its own, where nobody has observed it: its probes are a second apart at
    /// least, its retransmissions further and further.
    pub fn of_the_past(silent: Span, sample: &LegSample) -> Self {
        let mut proof = Self::after_life(silent, Counts::FromLife, sample);
        let most = u32::try_from(2 + silent / FIRST_PROBE).unwrap_or(u32::MAX);
        if sample.unacked > 0 && sample.last_sent_age + AGE_JITTER < silent {
            proof.add(byte(sample.retransmits.min(most)).saturating_add(1));
            proof.transmissions = byte(sample.retransmits).wrapping_add(1);
        }
        let probes = sample.probes.min(most.saturating_sub(2));
        if probes > 0 {
            proof.count(silent, byte(probes));
        } else {
            proof.begin(silent);
        }
        proof.probes = byte(sample.probes);
        proof
    }

    /// A probe is requested now. Should the first observation after it be late, its whole volley is one
    /// question all the same.
    pub fn begin(&mut self, silent: Span) {
        if self.counted == 0 {
            self.counted = in_ms(silent - APART);
        }
    }

    /// Takes in what the kernel says after so much silence.
    pub fn take(&mut self, silent: Span, sample: &LegSample) {
        self.take_probes(silent, sample);
        if sample.is_shrunk() {
            self.take_shrunk(silent, sample);
        } else if sample.unacked > 0 {
            let now = byte(sample.retransmits).wrapping_add(1);
            let new = now.wrapping_sub(self.transmissions);
            // The first transmission may be older than the sign of life: it was counted off.
            if new > 0 && new < 128 {
                self.transmissions = now;
                self.add(new);
            }
        }
    }

    fn take_probes(&mut self, silent: Span, sample: &LegSample) {
        let new = byte(sample.probes).wrapping_sub(self.probes);
        let windows = match self.counted {
            // A window probe may come sooner; but then the peer has just used its answer.
            0 => (silent + APART - FIRST_PROBE) / APART,
            at => (silent - Span::ms(at.into())) / APART,
        };
        if new == 0 || (self.counted == 0 && windows == 0) {
            return;
        }
        self.probes = byte(sample.probes);
        let independent = u8::try_from(windows).unwrap_or(u8::MAX).min(new);
        if independent > 0 {
            self.count(silent, independent);
            self.volley = (new - independent).saturating_add(1);
        } else {
            self.volley = self.volley.saturating_add(new);
        }
        if self.volley >= VOLLEY_PROBES && self.volley != WHOLE {
            self.weight = self.weight.saturating_add(VOLLEY - SINGLE);
            self.volley = WHOLE;
        }
    }

    /// Retransmissions to a window that was taken back are not counted by the kernel; of each the
    /// time is known.
    fn take_shrunk(&mut self, silent: Span, sample: &LegSample) {
        let sent = silent - sample.last_sent_age;
        if sent > Span::ms(self.counted.into()) + APART / 2
            && sample.last_sent_age < sample.last_ack_age
        {
            self.count(sent, 1);
        }
    }

    fn add(&mut self, questions: u8) {
        self.weight = self.weight.saturating_add(SINGLE.saturating_mul(questions));
    }

    fn count(&mut self, silent: Span, questions: u8) {
        self.add(questions);
        self.counted = in_ms(silent).max(1);
        self.volley = 0;
    }

    /// From how much silence on a probe is another question.
    pub fn next(&self) -> Span {
        match self.counted {
            0 => Span::ZERO,
            at => Span::ms(at.into()) + APART,
        }
    }

    /// At least so many single questions are unanswered.
    pub fn is_worth(&self, questions: u8) -> bool {
        self.weight >= SINGLE.saturating_mul(questions)
    }

    /// The peer is gone.
    pub fn is_complete(&self) -> bool {
        self.weight >= PROOF
    }
}

fn in_ms(span: Span) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// The kernel's counters are one byte wide, and wrap.
fn byte(count: u32) -> u8 {
    (count & 0xFF) as u8
}
