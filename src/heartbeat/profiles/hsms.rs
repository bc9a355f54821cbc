//! HSMS (SEMI E37), equipment of semiconductor fabs: `Linktest.req`, to either end, once it is selected.
//!
//! The answer has our system bytes. Their top bit is set and the rest is random: far from both ends' counters.
//! An end that does not know the request rejects it, with the same bytes.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::frame::{Length, Order};
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

/// The length, and the header of ten bytes that each message has.
const LENGTH: Length = Length {
    header: 14,
    offset: 0,
    size: 4,
    order: Order::Big,
    adjust: 4,
};

#[derive(Debug)]
pub(super) struct Hsms;

impl Table for Hsms {
    const MANNER: Manner = Manner::Interleaved;
    const FIRST: Stage = Stage::Closed;

    fn length(&self, head: &[u8]) -> Read {
        LENGTH.read(head)
    }

    fn sense(&self, head: &[u8], _: Way) -> Sense {
        let (wants_reply, function) = (head[6] & 0x80 != 0, head[7]);
        let is_short = head[..4] == [0, 0, 0, 10];
        let system_bytes = Order::Big.number(&head[10..14]) as u32;
        match (head[8], head[9]) {
            (0, 0) if function % 2 == 0 => Sense::Reply,
            (0, 0) if wants_reply => Sense::Request,
            (0, 0) => Sense::Plain,
            (0, _) if !is_short => Sense::Opaque(OpaqueCause::Malformed),
            (0, 1) => Sense::Opens,
            // Accepted, or selected already.
            (0, 2) if function <= 1 => Sense::Opened,
            (0, 2 | 4) => Sense::Reply,
            (0, 3 | 5) => Sense::Request,
            (0, 6 | 7) => Sense::Answer(system_bytes),
            (0, 9) => Sense::Closes,
            _ => Sense::Opaque(OpaqueCause::Unsupported),
        }
    }

    fn id(&self, token: u64) -> u32 {
        0x8000_0000 | token as u32
    }

    fn question(&self, token: u64) -> Vec<u8> {
        let header = [0, 0, 0, 10, 0xff, 0xff, 0, 0, 0, 5];
        [&header[..], &self.id(token).to_be_bytes()].concat()
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
        Box::new(Framed::new(Hsms))
    }

    fn message(header: [u8; 6], system_bytes: u32, text: &[u8]) -> Vec<u8> {
        let length = (text.len() as u32 + 10).to_be_bytes();
        [&length[..], &header, &system_bytes.to_be_bytes(), text].concat()
    }

    fn control(kind: u8, system_bytes: u32) -> Vec<u8> {
        message([0xff, 0xff, 0, 0, 0, kind], system_bytes, b"")
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let mut answer = question.to_vec();
        answer[9] = if question[13] & 16 == 0 { 7 } else { 6 };
        answer
    }

    fn selected() -> Vec<Exchange> {
        vec![
            Exchange::in_turn(control(5, 1), control(6, 1)),
            Exchange::in_turn(control(1, 2), control(2, 2)).answered(answer),
        ]
    }

    fn data(function: u8) -> impl Strategy<Value = Vec<u8>> {
        let text = prop::collection::vec(any::<u8>(), 0..700);
        let header = [0, 7, 0x81, function, 0, 0];
        (1..9u32, text).prop_map(move |(n, text)| message(header, n, &text))
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let both = prop_oneof![
            (data(13), data(14)),
            (data(13), Just(Vec::new())),
            (Just(Vec::new()), data(11)),
            (data(12), Just(Vec::new())),
            (1..9u32).prop_map(|n| (control(5, n), control(6, n))),
            (1..9u32).prop_map(|n| (Vec::new(), control(5, n))),
            (1..9u32).prop_map(|n| (control(6, n), control(7, n))),
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn linktests_are_transparent(
            script in prop::collection::vec(exchange(), 0..12),
            moves in moves(),
        ) {
            let mut script = [selected(), script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn(control(9, 3), Vec::new()));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\0\0\0\x0a\xff\xff\0\0\0\x01\0\0\0\x01", b"\0\0\0\x0a\xff\xff\0\0\0\x02\0\0\0\x01",
            b"\0\0\0\x0a\xff\xff\0\0\0\x06", b"\x80\0\0\x01", b"\0\0\0\x0a\0\x01\x81\x0d\0\0\0\0\0\x01",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn an_unselected_end_is_not_asked() {
        let refused = message([0xff, 0xff, 0, 2, 0, 2], 2, b"");
        let script = [Exchange::in_turn(control(1, 2), refused)];
        play(profile(), &script, &[], Ends::NotReady);
    }

    #[test]
    fn what_is_no_hsms_is_not_followed() {
        for strange in [
            message([0, 1, 0x81, 1, 1, 0], 1, b""),
            message([0, 1, 0, 0, 0, 8], 1, b""),
            message([0xff, 0xff, 0, 0, 0, 5], 1, b"text"),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let mut script = selected();
            script.push(Exchange::in_turn(strange, Vec::new()));
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
