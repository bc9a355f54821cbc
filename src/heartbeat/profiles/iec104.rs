//! IEC 60870-5-104, telecontrol: `TESTFR act`, to either end.
//!
//! Its confirmation has no id. Each `act` has one `con`, in order, so that those of the ends are counted: we do
//! not ask before theirs are confirmed. All else may stand in between. What is asked restarts the timer t3 of
//! the peer, which then does not ask by itself.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::frame::{Length, Order};
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

/// The start byte, the length, and the control field that each message has.
const LENGTH: Length = Length {
    header: 6,
    offset: 1,
    size: 1,
    order: Order::Big,
    adjust: 2,
};

#[derive(Debug)]
pub(super) struct Iec104;

impl Table for Iec104 {
    const MANNER: Manner = Manner::InTurn;
    // Connections that stand by have nothing but TESTFR.
    const FIRST: Stage = Stage::Fresh;

    fn length(&self, head: &[u8]) -> Read {
        if head[0] != 0x68 || head.get(1).is_some_and(|length| *length > 253) {
            return Read::Opaque(OpaqueCause::Malformed);
        }
        LENGTH.read(head)
    }

    fn sense(&self, head: &[u8], _: Way) -> Sense {
        match (head[1], head[2]) {
            // I: a telegram.
            (_, control) if control & 1 == 0 => Sense::Plain,
            // S: an acknowledgement.
            (4, 1) => Sense::Plain,
            // U.
            (4, control) if head[3..6] == [0; 3] => match control {
                0x07 => Sense::Opens,
                0x0b => Sense::Opened,
                0x13 | 0x23 => Sense::Plain,
                0x43 => Sense::Request,
                0x83 => Sense::Answer(0),
                _ => Sense::Opaque(OpaqueCause::Malformed),
            },
            _ => Sense::Opaque(OpaqueCause::Malformed),
        }
    }

    fn question(&self, _: u64) -> Vec<u8> {
        vec![0x68, 4, 0x43, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::Profile;
    use crate::heartbeat::profiles::framed::Framed;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};

    fn profile() -> Box<dyn Profile> {
        Box::new(Framed::new(Iec104))
    }

    fn u(control: u8) -> Vec<u8> {
        vec![0x68, 4, control, 0, 0, 0]
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, u(0x43));
        u(0x83)
    }

    fn telegrams() -> impl Strategy<Value = Vec<u8>> {
        let telegram = (any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..249)).prop_map(
            |([a, b, c, d], asdu)| {
                let head = [0x68, asdu.len() as u8 + 4, a & 0xfe, b, c & 0xfe, d];
                [&head[..], &asdu].concat()
            },
        );
        let acknowledgement = any::<u8>().prop_map(|n| vec![0x68, 4, 1, 0, n & 0xfe, 1]);
        prop_oneof![telegram, acknowledgement, Just(Vec::new())]
    }

    /// Telegrams are answered by others, but not each by one. Here they are told and heard on their own.
    fn steps() -> impl Strategy<Value = Vec<Exchange>> {
        let told = Exchange::any_pace((telegrams(), Just(Vec::new())), Some(answer));
        let heard = Exchange::any_pace((Just(Vec::new()), telegrams()), Some(answer));
        let test = Exchange::any_pace(Just((u(0x43), u(0x83))), Some(answer));
        // The peer asks the other end. Until that answers it is not asked.
        let tested = Just(vec![
            Exchange::in_turn([], u(0x43)).answered(answer),
            Exchange::in_turn(u(0x83), []).answered(answer),
        ]);
        prop_oneof![
            told.prop_map(|told| vec![told]),
            heard.prop_map(|heard| vec![heard]),
            test.prop_map(|test| vec![test]),
            tested,
        ]
    }

    proptest! {
        #[test]
        fn tests_are_transparent(
            starts in any::<bool>(),
            steps in prop::collection::vec(steps(), 0..12),
            moves in moves(),
        ) {
            let (act, con) = if starts { (0x07, 0x0b) } else { (0x43, 0x83) };
            let first = vec![Exchange::in_turn(u(act), u(con)).answered(answer)];
            let script = [vec![first], steps].concat().concat();
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\x68\x04\x43\0\0\0", b"\x68\x04\x83\0\0\0", b"\x68\x04", b"\x07\0\0\0", b"\x68\x04\x0b\0\0\0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn a_confirmation_that_nobody_wanted_ends_the_asking() {
        let started = Exchange::in_turn(u(0x07), u(0x0b));
        let script = [started, Exchange::in_turn([], u(0x83))];
        play(profile(), &script, &[], Ends::Opaque);
    }

    #[test]
    fn what_is_no_telegram_is_not_followed() {
        let strange: [&[u8]; 5] = [
            b"\x67\x04\x43\0\0\0",
            b"\x68\x03\x43\0\0\0",
            b"\x68\xfe\0\0\0\0",
            b"\x68\x04\x43\0\0\x01",
            b"\x68\x05\x43\0\0\0\0",
        ];
        for strange in strange {
            play(
                profile(),
                &[Exchange::in_turn(strange, [])],
                &[],
                Ends::Opaque,
            );
        }
    }
}
