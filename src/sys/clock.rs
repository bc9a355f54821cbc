//! The one clock of the process.

use crate::liveness::Millis;

/// Milliseconds of `CLOCK_MONOTONIC`, which like TCP's own timers does not count suspended time.
#[must_use]
pub fn now() -> Millis {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither part is ever negative (clock_gettime(2)).
    t.tv_sec.unsigned_abs() * 1000 + t.tv_nsec.unsigned_abs() / 1_000_000
}
