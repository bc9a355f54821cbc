//! Ends that are due for many sessions at once, spread over time: else all their clients would come again in
//! one instant.

use super::time::Span;

/// Of the numbers 0 to 2^32, the place of a session. Sessions are numbered one after the other, and multiples
/// of the golden ratio divide a range most evenly, wherever they begin and end (Knuth, TAOCP 6.4).
fn place(id: u64) -> u64 {
    ((id & 0xFFFF_FFFF) * 0x9E37_79B9) & 0xFFFF_FFFF
}

/// Takes up to a tenth off a limit.
pub(super) fn shortened(limit: Span, id: u64) -> Span {
    let tenth = limit.as_millis() / 10;
    // The tenth of a year has 32 bits.
    limit - Span::ms((tenth * place(id)) >> 32)
}

/// How far the ends have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// From 1 on.
    pub step: u32,
    /// How many there are.
    pub steps: u32,
}

impl Turn {
    /// Whether the turn of a session has come; that of all has at the last step.
    #[must_use]
    pub fn has_come(self, id: u64) -> bool {
        place(id) * u64::from(self.steps) < u64::from(self.step) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_spread_evenly() {
        const SESSIONS: u64 = 1000;
        for first in [0, 1, 12_345, u64::MAX - SESSIONS] {
            let (steps, mut before) = (50, 0);
            for step in 1..=steps {
                let turn = Turn { step, steps };
                let come = (first..first + SESSIONS).filter(|id| turn.has_come(*id));
                let come = come.count();
                assert!((15..=25).contains(&(come - before)), "{first}: {step}");
                before = come;
            }
            assert_eq!(before as u64, SESSIONS);
        }
    }

    #[test]
    fn limits_are_shortened_by_a_tenth_at_most() {
        let limit = Span::ms(100_000);
        let all: Vec<_> = (1..=100).map(|id| shortened(limit, id)).collect();
        assert!(
            all.iter()
                .all(|l| *l <= limit && *l >= limit - Span::ms(10_000))
        );
        let early = all.iter().filter(|l| **l < Span::ms(95_000)).count();
        assert!((45..=55).contains(&early), "{early}");
        let year = Span::ms(8760 * 3_600_000);
        assert!(shortened(year, 1) >= year / 10 * 9);
        assert_eq!(shortened(Span::ZERO, 1), Span::ZERO);
    }
}
