//! AMQP 0-9-1: a heartbeat frame, to either end, between `open-ok` and `close`.
//!
//! Nobody answers it (any frame is a heartbeat, too): it keeps the path open and proves nothing. It may stand
//! between all frames, also those of one content. AMQP 1.0 is not followed.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::frame::{Length, Order};
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

/// Type, channel and size. An octet ends the frame.
const LENGTH: Length = Length {
    header: 7,
    offset: 3,
    size: 4,
    order: Order::Big,
    adjust: 8,
};

/// What a client says first.
const PREAMBLE: &[u8; 8] = b"AMQP\0\0\x09\x01";

const METHOD: u8 = 1;
const HEARTBEAT: u8 = 8;
/// The class of methods about the connection itself.
const CONNECTION: u16 = 10;

#[derive(Debug)]
pub(super) struct Amqp;

impl Table for Amqp {
    const MANNER: Manner = Manner::OneWay;
    const FIRST: Stage = Stage::Closed;

    fn length(&self, head: &[u8]) -> Read {
        match head[0] {
            METHOD..=3 | HEARTBEAT => match LENGTH.read(head) {
                // Methods have a class and a number.
                Read::End(..12) if head[0] == METHOD => Read::Opaque(OpaqueCause::Malformed),
                other => other,
            },
            b'A' if head.starts_with(PREAMBLE) => Read::End(8),
            b'A' if PREAMBLE.starts_with(head) => Read::More,
            b'A' => Read::Opaque(OpaqueCause::Unsupported),
            _ => Read::Opaque(OpaqueCause::Malformed),
        }
    }

    fn sense(&self, head: &[u8], _: Way) -> Sense {
        if head[0] != METHOD {
            return Sense::Plain;
        }
        let Some(method) = head.get(7..11) else {
            return Sense::More;
        };
        let number = |bytes: &[u8]| Order::Big.number(bytes) as u16;
        match (number(&method[..2]), number(&method[2..])) {
            (CONNECTION, 40) => Sense::Opens,
            (CONNECTION, 41) => Sense::Opened,
            (CONNECTION, 50 | 51) => Sense::Closes,
            _ => Sense::Plain,
        }
    }

    fn question(&self, _: u64) -> Vec<u8> {
        vec![HEARTBEAT, 0, 0, 0, 0, 0, 0, 0xce]
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
        Box::new(Framed::new(Amqp))
    }

    fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, channel], &size[..], payload, &[0xce]].concat()
    }

    fn method(number: u8) -> Vec<u8> {
        frame(METHOD, 0, &[0, 10, 0, number, 1, 2, 3])
    }

    fn none(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, frame(HEARTBEAT, 0, b""));
        Vec::new()
    }

    fn opened() -> Vec<Exchange> {
        vec![
            Exchange::in_turn(*PREAMBLE, method(10)),
            Exchange::in_turn(method(11), method(30)),
            Exchange::in_turn(method(31), []),
            Exchange::in_turn(method(40), method(41)).answered(none),
        ]
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let payload = prop::collection::vec(any::<u8>(), 0..700);
        prop_oneof![
            4 => (1..4u8, payload).prop_map(|(kind, payload)| {
                frame(kind, 1, &[&[0, 60, 0, 40][..], &payload].concat())
            }),
            1 => Just(frame(HEARTBEAT, 0, b"")),
            1 => Just(Vec::new()),
        ]
    }

    proptest! {
        #[test]
        fn heartbeats_stand_between_frames(
            script in prop::collection::vec(
                Exchange::any_pace((frames(), frames()), Some(none)),
                0..12,
            ),
            moves in moves(),
        ) {
            let mut script = [opened(), script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn(method(50), method(51)));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            PREAMBLE, b"AMQP", b"\x01\0\0\0\0\0\x05\0\x0a\0\x28\0\xce", b"\x01\0\0\0\0\0\x05\0\x0a\0\x29\0\xce", b"\x08\0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn what_is_no_amqp_0_9_1_is_not_followed() {
        for strange in [
            &b"AMQP\0\x01\0\0"[..],
            b"AMQP\x03\x01\0\0",
            b"\x01\0\0\0\0\0\x03\0\x0a\0\xce",
            b"\x04\0",
            b"\0",
        ] {
            let script = [Exchange::in_turn(strange, [])];
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
