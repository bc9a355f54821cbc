//! Points and spans of time, in milliseconds. All arithmetic saturates: a clock that is read on two
//! threads may seem to go backwards, and a span that was configured as "for ever" has no end.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, Div, Mul, Sub};
use std::time::Duration;

/// A point of a monotonic clock, milliseconds since an arbitrary epoch. `Option<Time>` takes no more
/// room than this: there are several for each session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(NonZeroU64);

/// A span of time, milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u64);

impl Time {
    /// So many milliseconds after the epoch of the clock.
    #[must_use]
    pub const fn ms(since_epoch: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(since_epoch))
    }

    /// Milliseconds since the epoch of the clock.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0.get() - 1
    }

    /// This time, or the first one after it that lies on a grid of so wide meshes.
    #[must_use]
    pub const fn next_multiple_of(self, grid: Span) -> Self {
        Self::ms(self.as_millis().next_multiple_of(grid.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// Longer than anything lasts.
    pub const MAX: Self = Self(u64::MAX);

    /// So many milliseconds.
    #[must_use]
    pub const fn ms(millis: u64) -> Self {
        Self(millis)
    }

    /// The same in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl Default for Time {
    /// The epoch of the clock.
    fn default() -> Self {
        Self::ms(0)
    }
}

impl Sub for Time {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        Span(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Span> for Time {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Time {
    type Output = Self;

    fn sub(self, span: Span) -> Self {
        Self::ms(self.as_millis().saturating_sub(span.0))
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Span {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Mul<u64> for Span {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self(self.0.saturating_mul(times))
    }
}

impl Div<u64> for Span {
    type Output = Self;

    fn div(self, parts: u64) -> Self {
        Self(self.0 / parts)
    }
}

/// How often the other span fits into this one.
impl Div for Span {
    type Output = u64;

    fn div(self, other: Self) -> u64 {
        self.0 / other.0
    }
}

impl From<Duration> for Span {
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms", self.as_millis())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

#[cfg(test)]
pub(super) const fn ms(millis: u64) -> Span {
    Span::ms(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let [early, late] = [Time::ms(5), Time::ms(7)];
        assert_eq!(late - early, Span::ms(2));
        assert_eq!(early - late, Span::ZERO);
        assert_eq!(early - Span::ms(9), Time::default());
        assert_eq!((late + Span::MAX) - Span::MAX, Time::default());
        assert_eq!(Span::MAX * 2, Span::MAX);
        assert_eq!(Span::from(Duration::MAX), Span::MAX);
    }

    #[test]
    fn a_time_that_may_be_missing_is_no_larger() {
        assert_eq!(size_of::<Option<Time>>(), 8);
        assert_eq!(Time::ms(120).next_multiple_of(Span::ms(50)), Time::ms(150));
        assert_eq!(Time::ms(150).next_multiple_of(Span::ms(50)), Time::ms(150));
    }
}
