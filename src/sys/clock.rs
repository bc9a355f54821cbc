//! The one clock of the process.

use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_getres, clock_gettime};

use crate::liveness::Time;

/// The time of `CLOCK_MONOTONIC`, which like TCP's own timers does not count suspended time.
#[must_use]
pub fn now() -> Time {
    let t = clock_gettime(ClockId::Monotonic);
    // Neither part is ever negative (clock_gettime(2)).
    Time::ms(t.tv_sec.unsigned_abs() * 1000 + t.tv_nsec.unsigned_abs() / 1_000_000)
}

/// The same time in microseconds: service managers compare it with their own.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1000
}

/// How long a tick of the kernel's clock is (1/`HZ`), microseconds: the coarse clocks have its
/// resolution (clock_getres(2)).
#[must_use]
pub fn tick() -> u64 {
    static TICK: OnceLock<u64> = OnceLock::new();
    *TICK.get_or_init(|| {
        let resolution = clock_getres(ClockId::MonotonicCoarse);
        resolution.tv_nsec.unsigned_abs().div_ceil(1000).max(1)
    })
}

/// Microseconds of processor time that this thread has used.
#[must_use]
pub fn thread_time() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1000
}

/// Processor time that the process has used, that of threads which have ended included.
#[must_use]
pub fn process_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::from_micros(t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::liveness::Span;

    #[test]
    fn a_thread_that_works_has_its_time_counted() {
        let (began, before) = (now(), thread_time());
        // However long it has to wait for a processor.
        while thread_time() < before + 5000 {}
        assert!(now() >= began + Span::ms(4), "more than it ran");
    }
}
