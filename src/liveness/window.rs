//! A closed window, and a kernel that would give up the peer behind it.
//!
//! `TCP_USER_TIMEOUT` puts off every end that the kernel has of its own but two.
//!
//! **A closed window.** The kernel gives up once `tcp_retries2` (15) probes of the window are unanswered
//! (`tcp_probe_timer`, net/ipv4/tcp_timer.c); with one in each second that is a verdict after 15 s. So
//! with a longer D the peer is asked each second for some 9 s, so that an inquiry finds out soon; then
//! rarely; and each second again at the end.
//!
//! **A shrunk window** (RFC 9293 3.8.6). A receiver that has no memory left for what is on its way drops
//! it and closes its window (Linux does since 6.6, `tcp_data_queue`, net/ipv4/tcp_input.c): a stalled
//! reader of a stream of tiny segments comes to that, because each takes much more memory than it has
//! bytes. From then on the sender's kernel retransmits the first segment as its question, doubling the gap
//! up to `TCP_RTO_MAX_MS`, and gives the connection up at the first one that is due more than twice
//! that after the last acknowledgement (`tcp_rtx_probe0_timed_out`, net/ipv4/tcp_timer.c). With a gap
//! of a second that is a verdict after two.
//!
//! So while such a peer is silent, the longest gap is raised ahead of each retransmission, so that the
//! kernel survives it, and no further than needed, since it is the next gap as well: the last
//! retransmission before the verdict is to come when a peer that was away for less than D - I is back.

use std::ops::RangeInclusive;

use super::policy::{LATE_QUESTION, Policy, SLOWEST_QUESTION};
use super::sample::LegSample;
use super::time::{Span, Time};

/// Two readings of the kernel's clock, at its coarsest tick, and as much again.
const MARGIN: Span = Span::ms(40);
/// The answer to a retransmission is waited for so long before the next gap is arranged, at most.
const LONGEST_PATIENCE: Span = Span::ms(500);
/// Of the probes that the kernel sends before it gives up, so many come at once, up to a second apart.
const FIRST_PROBES: u32 = 9;
/// So many are spread over the time that is left; the others are for the end.
const SPREAD_PROBES: u32 = 2;
/// So long before D probes are a second apart again.
const CLOSE_PROBES: Span = Span::ms(1000);
/// `TCP_RTO_MAX_MS` goes up to here (tcp(7)), which is what it is if nobody sets it.
pub const KERNELS_OWN: Span = Span::ms(120_000);

/// Between two probes of a closed window, of which so many are unanswered, at most.
pub fn longest_probe_gap(now: Time, since: Time, policy: &Policy, unanswered: u32) -> Span {
    if unanswered < FIRST_PROBES {
        return SLOWEST_QUESTION;
    }
    let spread = (FIRST_PROBES + SPREAD_PROBES)
        .saturating_sub(unanswered)
        .max(1);
    let left = (since + policy.detect_within) - (now + CLOSE_PROBES);
    let on_time = left / u64::from(spread);
    // Long timers are late by up to an eighth.
    (on_time * 8 / 9).clamp(SLOWEST_QUESTION, KERNELS_OWN)
}

/// Between two retransmissions of what is on its way to a shrunk window, at most.
pub fn longest_gap(now: Time, since: Time, policy: &Policy, sample: &LegSample) -> Span {
    let next = next_retransmission(now, sample);
    let heard = now - sample.last_ack_age;
    let least = SLOWEST_QUESTION.max((next - heard) / 2 + MARGIN);
    let may_be_answered =
        sample.last_sent_age >= sample.last_ack_age || sample.last_sent_age < patience(sample);
    if may_be_answered {
        return least;
    }
    // The kernel doubles it at most.
    let most = least.max(sample.rto * 2);
    let silent = next - heard;
    let last = last_retransmission(since, policy);
    let stop = stop_within(silent + least..=silent + most, last - heard);
    let gap = match stop {
        Some(stop) => stop - silent,
        // Two in time are better than one, and one late is better than one too soon.
        None if next + most > last || (silent + least) * 3 / 2 <= policy.detect_within => least,
        None => most,
    };
    gap.min(KERNELS_OWN)
}

/// When in this stretch of silence to retransmit, so that a later retransmission falls at `last`.
/// Each has to come after half as much silence again at least, and a part of that may be lost on late
/// timers; and not after much more, since the gap before it, doubled, has to suffice.
fn stop_within(stretch: RangeInclusive<Span>, last: Span) -> Option<Span> {
    let (mut low, mut high) = (last, last);
    while high >= *stretch.start() {
        let common = low.max(*stretch.start())..=high.min(*stretch.end());
        if !common.is_empty() {
            return Some((*common.start() + *common.end()) / 2);
        }
        (low, high) = (low * 5 / 9, high * 25 / 38);
    }
    None
}

/// When to observe it again: the gap behind the next retransmission has to be arranged before that one.
pub fn next_observation(now: Time, sample: &LegSample) -> Time {
    let asked = now - sample.last_sent_age + patience(sample);
    if asked > now {
        return asked;
    }
    next_retransmission(now, sample) + patience(sample)
}

/// From a retransmission to the observation that tells whether it was answered.
fn patience(sample: &LegSample) -> Span {
    sample.answer_takes().min(LONGEST_PATIENCE)
}

/// A peer that was away for no longer than is survived is back by then; it was heard one question
/// before.
pub fn back_by(deadline: Time, policy: &Policy) -> Time {
    deadline - policy.detect_within + policy.survives() + SLOWEST_QUESTION
}

/// When the last retransmission before the verdict is to come.
fn last_retransmission(since: Time, policy: &Policy) -> Time {
    let deadline = since + policy.detect_within;
    let early = deadline - policy.detect_within / 16;
    early.max(back_by(deadline, policy) + LATE_QUESTION + MARGIN)
}

/// A retransmission is data sent, and the kernel's timer was set then.
fn next_retransmission(now: Time, sample: &LegSample) -> Time {
    now.max(now + sample.rto - sample.last_sent_age)
}

#[cfg(test)]
mod tests {
    use super::super::policy::granule;
    use super::super::sample::ANSWER_TAKES;
    use super::super::time::ms;
    use super::*;

    /// When a peer is asked that is silent from 0 on, by a kernel whose retransmissions were a second
    /// apart, whose timers end on the grid of such ticks, and that gives up as Linux does.
    fn asked_at(policy: &Policy, first: u64, tick: u64, until: u64) -> Vec<u64> {
        const LIFE: u64 = 1_000_000;
        let at = Time::ms;
        let timer = |gap: u64| {
            let grid = granule(gap / tick) * tick;
            (gap / grid + 1) * grid
        };
        let (mut sent, mut rto, mut asked) = (LIFE + first - 1000, 1000, Vec::new());
        loop {
            let fires = sent.max(LIFE) + ANSWER_TAKES.as_millis();
            let sample = LegSample {
                unacked: 1,
                zero_window: true,
                rto: ms(rto),
                last_ack_age: ms(fires - LIFE),
                last_data_age: ms(fires - LIFE),
                last_sent_age: ms(fires - sent),
                ..LegSample::default()
            };
            let gap = longest_gap(at(fires), at(LIFE), policy, &sample).as_millis();
            let due = sent + rto;
            assert!(due - LIFE <= 2 * gap, "given up at {}", due - LIFE);
            sent += timer(rto);
            rto = (2 * rto).min(gap);
            asked.push(sent - LIFE);
            if sent >= LIFE + until {
                return asked;
            }
        }
    }

    #[test]
    fn the_kernel_never_gives_up_and_asks_before_the_verdict() {
        for seconds in 2..=120 {
            for probe_interval in [1000, 1500, 2000, 200 * seconds, 500 * seconds] {
                let detect_within = 1000 * seconds;
                let policy = Policy::without_limits(ms(detect_within), ms(probe_interval));
                if probe_interval >= detect_within || probe_interval < 1000 {
                    continue;
                }
                let back = back_by(Time::ms(detect_within), &policy).as_millis();
                let end = policy.latest(Time::ms(0)).as_millis();
                for (first, tick) in [(1, 1), (400, 4), (1000, 4), (1000, 10)] {
                    let asked = asked_at(&policy, first, tick, back);
                    let in_time = asked.last().is_some_and(|last| *last <= end);
                    assert!(in_time, "{policy:?}: not in {back}..{end}: {asked:?}");
                }
            }
        }
    }
}
