//! Telnet, TN3270, TN5250: `DO TIMING-MARK` (RFC 860), to either end, once two options were negotiated.
//!
//! Whoever speaks options answers, by `WILL` or by `WONT`. Services that only look like telnet would take the
//! question for data: so an offer of one end must have been answered by the other before. The answer has no id.
//! Those that the ends want of each other are counted, and we do not ask before theirs came. Nothing is asked
//! inside a command, a subnegotiation, a record of a terminal, and behind a CR whose other half is to come (it has
//! none in BINARY, RFC 856, which clients on a terminal use).
//! Opaque: encryption, TLS and compression, where they begin.

use crate::heartbeat::profile::{Manner, OpaqueCause, Phase, Profile, Read};

const IAC: u8 = 255;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
const SUB: u8 = 250;
const SUB_END: u8 = 240;
const END_OF_RECORD: u8 = 239;

const BINARY: u8 = 0;
const TIMING_MARK: u8 = 6;
/// Options of records that `IAC EOR` ends: in the direction in which it is, and in both.
const RECORDS: u8 = 25;
const TN3270E: u8 = 40;
/// What it becomes another stream by: START_TLS, three ways to compress,
const CHANGES: [u8; 4] = [46, 85, 86, 87];
/// and ENCRYPT, whose other messages are harmless.
const ENCRYPT: u8 = 38;
const START: u8 = 3;

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Telnet {
    told: Direction,
    heard: Direction,
    /// Whether a record that is told has begun.
    is_in_record: bool,
    /// Timing marks that the other end wants and did not get.
    owed: u64,
    /// Whether an offer was answered.
    has_negotiated: bool,
}

#[derive(Debug, Default)]
struct Direction {
    is_in_sub: bool,
    /// Options, of those below 64, for which `DO` was said last, and `WILL`.
    wants: u64,
    offers: u64,
}

/// The next unit of a direction.
enum Unit {
    Data(usize),
    /// `IAC IAC` is data, too.
    Command(u8),
    Option {
        verb: u8,
        option: u8,
    },
    SubBegins(u8),
    SubGoesOn(usize),
    SubEnds,
}

impl Direction {
    fn unit(&self, head: &[u8]) -> Result<Unit, Read> {
        let run = head.iter().position(|byte| *byte == IAC);
        Ok(match (head, self.is_in_sub) {
            ([IAC], _) => return Err(Read::More),
            ([IAC, SUB_END, ..], true) => Unit::SubEnds,
            ([IAC, IAC, ..], true) => Unit::SubGoesOn(2),
            ([IAC, SUB | WILL..=254], false) => return Err(Read::More),
            ([IAC, SUB, ENCRYPT], false) => return Err(Read::More),
            ([IAC, SUB, ENCRYPT, START, ..], false) => {
                return Err(Read::Opaque(OpaqueCause::Changed));
            }
            ([IAC, SUB, option, ..], false) => Unit::SubBegins(*option),
            ([IAC, verb @ WILL..=254, option, ..], false) => Unit::Option {
                verb: *verb,
                option: *option,
            },
            ([IAC, command @ (236..=239 | 241..=249 | IAC), ..], false) => Unit::Command(*command),
            ([IAC, ..], _) => return Err(Read::Opaque(OpaqueCause::Malformed)),
            (_, true) => Unit::SubGoesOn(run.unwrap_or(head.len())),
            (_, false) => Unit::Data(run.unwrap_or(head.len())),
        })
    }
}

/// Whether an option has been agreed on.
fn agreed(offerer: &Direction, other: &Direction, option: u8) -> bool {
    offerer.offers & other.wants & 1 << option != 0
}

impl Telnet {
    /// A unit of the direction `own`, by which `other` may have been answered.
    fn follow(own: &mut Direction, other: &Direction, unit: &Unit) -> Result<bool, OpaqueCause> {
        match *unit {
            Unit::SubBegins(option) if CHANGES.contains(&option) => {
                return Err(OpaqueCause::Changed);
            }
            Unit::SubBegins(_) => own.is_in_sub = true,
            Unit::SubEnds => own.is_in_sub = false,
            Unit::Option { verb, option } => {
                let bit = 1_u64.checked_shl(option.into()).unwrap_or(0);
                let (said, answers) = match verb {
                    WILL | WONT => (&mut own.offers, other.wants),
                    _ => (&mut own.wants, other.offers),
                };
                match verb {
                    WILL | DO => *said |= bit,
                    _ => *said &= !bit,
                }
                return Ok(option != TIMING_MARK && answers & bit != 0);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Whether what the peer is told comes in records.
    fn has_records(&self) -> bool {
        agreed(&self.told, &self.heard, RECORDS)
            || agreed(&self.told, &self.heard, TN3270E)
            || agreed(&self.heard, &self.told, TN3270E)
    }
}

fn length(unit: &Unit) -> Read {
    match *unit {
        Unit::SubBegins(_) => Read::Part(3),
        Unit::SubGoesOn(n) => Read::Part(n as u64),
        Unit::Data(n) => Read::End(n as u64),
        Unit::Option { .. } => Read::End(3),
        Unit::Command(_) | Unit::SubEnds => Read::End(2),
    }
}

impl Profile for Telnet {
    fn told(&mut self, head: &[u8]) -> Read {
        let is_text = !agreed(&self.told, &self.heard, BINARY);
        let unit = match self.told.unit(head) {
            // The other half of a CR is to come: LF or NUL.
            Ok(Unit::Data(1)) if is_text && head == b"\r" => return Read::More,
            Ok(Unit::Data(n)) if is_text && n == head.len() && head[n - 1] == b'\r' => {
                Unit::Data(n - 1)
            }
            Ok(unit) => unit,
            Err(other) => return other,
        };
        match Self::follow(&mut self.told, &self.heard, &unit) {
            Ok(is_answer) => self.has_negotiated |= is_answer,
            Err(cause) => return Read::Opaque(cause),
        }
        match unit {
            Unit::Option {
                verb: DO,
                option: TIMING_MARK,
            } => self.owed += 1,
            Unit::Data(_) | Unit::Command(IAC) => self.is_in_record = self.has_records(),
            Unit::Command(END_OF_RECORD) => self.is_in_record = false,
            _ => {}
        }
        match length(&unit) {
            Read::End(length) if self.is_in_record => Read::Part(length),
            length => length,
        }
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let unit = match self.heard.unit(head) {
            Ok(unit) => unit,
            Err(other) => return other,
        };
        if let Unit::Option {
            verb: WILL | WONT,
            option: TIMING_MARK,
        } = unit
        {
            match (due, self.owed) {
                ([token, ..], _) => {
                    let (token, length) = (*token, 3);
                    return Read::Mine { token, length };
                }
                ([], 0) => return Read::Opaque(OpaqueCause::Unsolicited),
                ([], _) => self.owed -= 1,
            }
        }
        match Self::follow(&mut self.heard, &self.told, &unit) {
            Ok(is_answer) => self.has_negotiated |= is_answer,
            Err(cause) => return Read::Opaque(cause),
        }
        length(&unit)
    }

    fn phase(&self) -> Phase {
        match self.owed {
            _ if !self.has_negotiated => Phase::Starting,
            0 => Phase::Idle,
            _ => Phase::Waiting,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn question(&mut self, _: u64) -> Vec<u8> {
        vec![IAC, DO, TIMING_MARK]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{Ends, Exchange, Pace, moves, pieces, play, survive};
    use crate::heartbeat::{Heard, Heartbeat, State};

    fn profile() -> Box<dyn Profile> {
        Box::new(Telnet::default())
    }

    /// What an end that knows the option says, and one that does not.
    fn answer(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, [IAC, DO, TIMING_MARK]);
        vec![IAC, WILL, TIMING_MARK]
    }

    fn refuse(_: &[u8]) -> Vec<u8> {
        vec![IAC, WONT, TIMING_MARK]
    }

    fn negotiated() -> Exchange {
        Exchange::in_turn(*b"\xff\xfd\x01", *b"login: \xff\xfc\x01").answered(refuse)
    }

    /// What cannot be cut by a question.
    fn atoms() -> impl Strategy<Value = Vec<u8>> {
        let atoms: &[&[u8]] = &[
            b"a",
            b"\r\0",
            b"\r\n",
            b"\n",
            b"\xff\xff",
            b"\xff\xf1",
            b"\xff\xfb\x00",
            b"\xff\xfe\x7f",
            b"\xff\xfa\x1f\0P\0\xff\xff\x18\xff\xf0",
            b"\xff\xfa\x18\xff\xf0",
            b"\xff\xfa\x26\x01\x03\xff\xf0",
        ];
        prop_oneof![
            5 => prop::sample::select(atoms).prop_map(<[u8]>::to_vec),
            1 => Just([b"\xff\xfa\x27", &[7; 900][..], b"\xff\xf0"].concat()),
        ]
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let said = prop::collection::vec(atoms(), 0..9).prop_map(|atoms| atoms.concat());
        let both = prop_oneof![
            8 => (atoms(), Just(Vec::new())),
            8 => (Just(Vec::new()), said),
            1 => (Just(Vec::new()), Just(vec![b'x'; 900])),
            1 => Just((vec![IAC, DO, TIMING_MARK], vec![IAC, WILL, TIMING_MARK])),
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn marks_are_transparent(
            script in prop::collection::vec(exchange(), 0..20),
            moves in moves(),
        ) {
            let script = [vec![negotiated()], script].concat();
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn records_are_not_cut(
            records in prop::collection::vec("[a-z\r]{0,600}", 1..6),
            way in 0..3u8,
            moves in moves(),
        ) {
            let agreement: [&[u8]; 2] = match way {
                0 => [b"\xff\xfd\x28", b"\xff\xfb\x28"],
                1 => [b"\xff\xfb\x28", b"\xff\xfd\x28"],
                _ => [b"\xff\xfb\x19", b"\xff\xfd\x19"],
            };
            let [told, heard] = agreement;
            let agreed = Exchange::in_turn(told, heard).answered(answer);
            let mut script = vec![agreed, Exchange::in_turn([], "record").answered(answer)];
            for record in records {
                let told = [b"\xff\xff", record.as_bytes(), b"\xff\xf1\xff\xfe\x07\xff\xef"].concat();
                for exchange in [Exchange::in_turn(told, []), Exchange::in_turn([], record)] {
                    let exchange = exchange.answered(answer);
                    // Records begin after the agreement.
                    let pace = if script.len() > 2 { Pace::Pipelined } else { Pace::InTurn };
                    script.push(Exchange { pace, ..exchange });
                }
            }
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn places_do_not_depend_on_how_the_bytes_come(
            atoms in prop::collection::vec(atoms(), 0..20),
            cuts in prop::collection::vec(1..20usize, 0..60),
        ) {
            let text = atoms.concat();
            let mut heartbeat = Heartbeat::new(profile());
            heartbeat.told(b"\xff\xfd\x01");
            prop_assert_eq!(heartbeat.heard(b"\xff\xfb\x01", &mut Vec::new()), Heard::All);
            let mut rest = &text[..];
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                heartbeat.told(now);
                rest = later;
                let told = text.len() - rest.len();
                let ends = (1..=atoms.len()).map(|n| atoms[..n].concat().len());
                let is_end = told == 0 || ends.into_iter().any(|end| end == told);
                let is_within = is_inside(&atoms, told);
                prop_assert!(heartbeat.may_ask() || !is_end);
                prop_assert!(!heartbeat.may_ask() || !is_within);
            }
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\xff\xfd\x01", b"\xff\xfb\x01", b"\xff\xfb\x06", b"\xff\xfc", b"\xff", b"\xff\xfa\x18", b"\r", b"\xff\xf0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    fn is_inside(atoms: &[Vec<u8>], told: usize) -> bool {
        let mut start = 0;
        for atom in atoms {
            if told > start && told < start + atom.len() {
                return true;
            }
            start += atom.len();
        }
        false
    }

    #[test]
    fn who_does_not_speak_options_is_not_asked() {
        for (told, heard) in [
            (&b"hello\r\n"[..], &b"world\r\n"[..]),
            (b"\xff\xfd\x01", b"login: "),
            (b"\xff\xfd\x01", b"\xff\xfb\x03"),
            (b"\xff\xf1", b"\xff\xf1"),
            (b"\xff\xfd\x06", b"\xff\xfb\x06"),
        ] {
            play(
                profile(),
                &[Exchange::in_turn(told, heard)],
                &[],
                Ends::NotReady,
            );
        }
    }

    #[test]
    fn nothing_is_asked_where_it_would_be_in_the_way() {
        let mut heartbeat = Heartbeat::new(profile());
        heartbeat.told(b"\xff\xfd\x01");
        assert_eq!(
            heartbeat.heard(b"\xff\xfb\x01", &mut Vec::new()),
            Heard::All
        );
        let busy: [&[u8]; 6] = [
            b"a\r",
            b"\0\xff",
            b"\xff\xff\xfa",
            b"\x18\xff",
            b"\xff\xff",
            b"\xf0\xff\xfd",
        ];
        for told in busy {
            heartbeat.told(told);
            assert_eq!(heartbeat.state(), State::Busy, "after {told:?}");
        }
        // The client wants one itself.
        heartbeat.told(b"\x06");
        assert_eq!(heartbeat.state(), State::Busy);
        assert_eq!(
            heartbeat.heard(b"\xff\xfb\x06", &mut Vec::new()),
            Heard::All
        );
        assert_eq!(heartbeat.state(), State::Ready);
    }

    #[test]
    fn a_line_ends_with_a_bare_cr_while_both_have_agreed_on_binary() {
        let mut heartbeat = Heartbeat::new(profile());
        let mut tell = |heard: &[u8], told: &[u8]| {
            assert_eq!(heartbeat.heard(heard, &mut Vec::new()), Heard::All);
            heartbeat.told(told);
            heartbeat.state()
        };
        assert_eq!(tell(b"\xff\xfd\x01", b"\xff\xfb\x01ls\r"), State::Busy);
        assert_eq!(tell(b"\xff\xfd\0", b"\0\xff\xfb\0ls\r"), State::Ready);
        assert_eq!(tell(b"\xff\xfe\0", b"\xff\xfc\0ls\r"), State::Busy);
    }

    #[test]
    fn what_becomes_something_else_is_not_followed() {
        for strange in [
            &b"\xff\xfb\x06"[..],
            b"\xff\xfa\x26\x03\x01\xff\xf0encrypted",
            b"\xff\xfa\x2e\x01\xff\xf0",
            b"\xff\xfa\x55\xfb\xf0compressed",
            b"\xff\xfa\x56\xff\xf0compressed",
            b"\xff\x20",
            b"\xff\xfa\x18\xff\xfb",
        ] {
            let script = [negotiated(), Exchange::in_turn([], strange)];
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
