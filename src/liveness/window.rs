//! A closed or shrunk window, and a kernel that would give up the peer behind it.
//!
//! `TCP_USER_TIMEOUT` does not put off two ends that the kernel has of its own (net/ipv4/tcp_timer.c).
//! Behind a closed window it gives up after `tcp_retries2` (15) unanswered probes (`tcp_probe_timer`). So
//! nine are a second apart, that an inquiry finds out soon, and the others last longer than D. A
//! receiver that runs out of memory shrinks its window while data is on the way to it (RFC 9293 3.8.6).
//! Then the kernel repeats the first segment, and gives up at the first retransmission that is due more
//! than twice `TCP_RTO_MAX_MS` after the last acknowledgement (`tcp_rtx_probe0_timed_out`): so the gap is
//! at least half of the silence at the next retransmission, and the silence grows by half with each.

use super::policy::{Policy, SLOWEST_QUESTION};
use super::sample::{ANSWER_TAKES, LegSample};
use super::time::{Span, Time};

/// Two readings of the kernel's clock, at its coarsest tick, and as much again.
const MARGIN: Span = Span::ms(40);
/// `TCP_RTO_MAX_MS` goes up to here (tcp(7)), which is what it is if nobody sets it.
pub const KERNELS_OWN: Span = Span::ms(120_000);

/// `tcp_retries2`, of which so many are a second apart.
const PROBES: u32 = 15;
const FIRST_PROBES: u32 = 9;

/// The longest gap between two questions to a peer that has closed or shrunk its window, and has been
/// silent since then.
pub fn longest_gap(now: Time, since: Time, policy: &Policy, sample: &LegSample) -> Span {
    let gap = if sample.is_shrunk() {
        let heard = now - sample.last_ack_age;
        (next_retransmission(now, sample) - heard) / 2 + MARGIN
    } else if sample.probes < FIRST_PROBES {
        SLOWEST_QUESTION
    } else {
        let left = PROBES.saturating_sub(sample.probes).max(1);
        let end = since + policy.detect_within + policy.detect_within / 6;
        (end - now) / u64::from(left)
    };
    gap.clamp(SLOWEST_QUESTION, KERNELS_OWN)
}

/// When to observe a shrunk window again: the gap behind a retransmission has to be set before it.
pub fn next_observation(now: Time, sample: &LegSample) -> Time {
    next_retransmission(now, sample) + ANSWER_TAKES
}

/// A retransmission is data sent, and sets the timer for the next one.
fn next_retransmission(now: Time, sample: &LegSample) -> Time {
    now.max(now + sample.rto - sample.last_sent_age)
}

#[cfg(test)]
mod tests {
    use super::super::policy::granule;
    use super::super::time::ms;
    use super::*;

    /// A kernel whose timers end on the grid of such ticks, and a peer that is silent from `heard` on.
    #[test]
    fn the_kernel_never_gives_up_a_shrunk_window_and_keeps_asking() {
        let policy = Policy::without_limits(ms(30_000), ms(6000));
        for (first, tick) in [(1, 1), (400, 4), (1000, 4), (1000, 10)] {
            let timer = |gap: u64| {
                let grid = granule(gap / tick) * tick;
                (gap / grid + 1) * grid
            };
            let heard = 1_000_000;
            let (mut sent, mut rto) = (heard + first - 1000, 1000);
            while sent < heard + 150_000 {
                let now = sent.max(heard) + ANSWER_TAKES.as_millis();
                let sample = LegSample {
                    unacked: 1,
                    zero_window: true,
                    rto: ms(rto),
                    last_ack_age: ms(now - heard),
                    last_data_age: ms(now - heard),
                    last_sent_age: ms(now - sent),
                    ..LegSample::default()
                };
                let gap = longest_gap(Time::ms(now), Time::ms(heard), &policy, &sample).as_millis();
                let due = sent + rto;
                assert!(due - heard <= 2 * gap, "given up at {}", due - heard);
                let asked = sent.saturating_sub(heard).max(2000);
                sent += timer(rto);
                rto = (2 * rto).min(gap);
                let next = next_observation(Time::ms(now), &sample).as_millis();
                assert!(next < sent + 1000, "observed too late, at {next}");
                assert!(sent - heard <= asked * 8 / 5, "{asked}, {}", sent - heard);
            }
        }
    }
}
