//! Who goes first when there is no room: proven dead, half-closed past grace, never sent a byte,
//! longest quiet. Never an active one.

use super::time::Span;

/// A session that moved a byte within this time is active.
pub const ACTIVE: Span = Span::ms(5000);
/// How long a half-closed session may be quiet before it is one of the first to go.
const HALF_CLOSED_GRACE: Span = Span::ms(2000);

/// What the order is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A question to one of its peers has been unanswered for longer than expected.
    pub suspect: bool,
    /// One side has said FIN.
    pub half_closed: bool,
    /// It may go for nothing but being quiet.
    pub sheds: bool,
    /// The client has sent a byte.
    pub client_spoke: bool,
    /// Since it was accepted.
    pub age: Span,
    /// Since a byte moved.
    pub idle: Span,
}

/// The last class of the order.
const QUIET: u8 = 3;

/// The place in the order: the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8, std::cmp::Reverse<Span>);

impl Rank {
    /// Whether there is nothing to say against it but that it is quiet.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.0 == QUIET
    }
}

impl Candidate {
    /// Its place in the order; `None` if it must not be shed.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        let longest_first = |class, span| Some(Rank(class, std::cmp::Reverse(span)));
        if self.suspect {
            longest_first(0, self.idle)
        } else if self.half_closed && self.idle >= HALF_CLOSED_GRACE {
            longest_first(1, self.idle)
        } else if !self.client_spoke && self.age >= ACTIVE {
            longest_first(2, self.age)
        } else if self.idle >= ACTIVE {
            longest_first(QUIET, self.idle)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::ms;
    use super::*;

    const BUSY: Candidate = Candidate {
        suspect: false,
        half_closed: false,
        sheds: true,
        client_spoke: true,
        age: ms(60_000),
        idle: ms(10),
    };

    #[test]
    fn the_order() {
        let quiet = Candidate {
            idle: ms(50_000),
            ..BUSY
        };
        let quieter = Candidate {
            idle: ms(59_000),
            ..BUSY
        };
        let mute = Candidate {
            client_spoke: false,
            idle: ms(59_500),
            ..BUSY
        };
        let half_closed = Candidate {
            half_closed: true,
            idle: ms(3000),
            ..BUSY
        };
        let suspect = Candidate {
            suspect: true,
            idle: ms(100),
            ..BUSY
        };
        let mut all = [quiet, mute, half_closed, quieter, suspect];
        all.sort_by_key(Candidate::rank);
        assert_eq!(all, [suspect, half_closed, mute, quieter, quiet]);
    }

    #[test]
    fn an_active_one_never_goes() {
        assert_eq!(BUSY.rank(), None);
        assert_eq!(
            Candidate {
                half_closed: true,
                ..BUSY
            }
            .rank(),
            None
        );
        assert_eq!(
            Candidate {
                client_spoke: false,
                age: ms(100),
                ..BUSY
            }
            .rank(),
            None
        );
    }
}
