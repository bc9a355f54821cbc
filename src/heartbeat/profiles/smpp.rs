//! SMPP, short messages: `enquire_link`, to either end, once it is bound.
//!
//! The answer has our sequence number. It is from the top of the range, far from both ends' counters. An end
//! that does not know the request answers with `generic_nack` and the same number. Some services count
//! `enquire_link` against the rate that a client may have.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::frame::{Length, Order};
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

/// Length, command, status and sequence number.
const LENGTH: Length = Length {
    header: 16,
    offset: 0,
    size: 4,
    order: Order::Big,
    adjust: 0,
};

/// The longest parameter has 64 KiB. More is no SMPP.
const LONGEST: u64 = 1 << 20;

const RESPONSE: u32 = 0x8000_0000;
const ENQUIRE_LINK: u32 = 0x15;

#[derive(Debug)]
pub(super) struct Smpp;

impl Table for Smpp {
    const MANNER: Manner = Manner::Interleaved;
    const FIRST: Stage = Stage::Closed;

    fn length(&self, head: &[u8]) -> Read {
        match LENGTH.read(head) {
            Read::End(LONGEST..) => Read::Opaque(OpaqueCause::Malformed),
            other => other,
        }
    }

    fn sense(&self, head: &[u8], _: Way) -> Sense {
        let number = |at: usize| Order::Big.number(&head[at..at + 4]) as u32;
        let (command, status, sequence) = (number(4), number(8), number(12));
        match (command & RESPONSE != 0, command & !RESPONSE) {
            // Those of the specification, and those that are left to vendors.
            (_, 0x400..) => Sense::Opaque(OpaqueCause::Malformed),
            (true, 0 | ENQUIRE_LINK) => Sense::Answer(sequence),
            (false, 1 | 2 | 9) => Sense::Opens,
            (true, 1 | 2 | 9) if status == 0 => Sense::Opened,
            // unbind
            (false, 6) => Sense::Closes,
            // outbind and alert_notification are not answered.
            (false, 0x0b | 0x102) => Sense::Plain,
            (false, _) => Sense::Request,
            (true, _) => Sense::Reply,
        }
    }

    fn id(&self, token: u64) -> u32 {
        0x7f00_0000 | token as u32 & 0x00ff_ffff
    }

    fn question(&self, token: u64) -> Vec<u8> {
        let words = [16, ENQUIRE_LINK, 0, self.id(token)];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
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
        Box::new(Framed::new(Smpp))
    }

    fn pdu(command: u32, status: u32, sequence: u32, body: &[u8]) -> Vec<u8> {
        let words = [16 + body.len() as u32, command, status, sequence];
        let header = words.iter().flat_map(|word| word.to_be_bytes());
        header.chain(body.iter().copied()).collect()
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let sequence = Order::Big.number(&question[12..]) as u32;
        assert_eq!(question, pdu(0x15, 0, sequence, b""));
        match sequence & 16 {
            0 => pdu(RESPONSE, 3, sequence, b""),
            _ => pdu(RESPONSE | 0x15, 0, sequence, b""),
        }
    }

    fn bound() -> Vec<Exchange> {
        vec![
            Exchange::in_turn(pdu(0x15, 0, 1, b""), pdu(RESPONSE | 0x15, 0, 1, b"")),
            Exchange::in_turn(pdu(9, 0, 2, b"me\0"), pdu(RESPONSE | 9, 13, 2, b"")),
            Exchange::in_turn(pdu(9, 0, 3, b"me\0"), pdu(RESPONSE | 9, 0, 3, b"you\0"))
                .answered(answer),
        ]
    }

    fn pdus(command: u32) -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(any::<u8>(), 0..700);
        (4..9u32, body).prop_map(move |(n, body)| pdu(command, 0, n, &body))
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let (submit, deliver) = (4, 5);
        let both = prop_oneof![
            (pdus(submit), pdus(RESPONSE | submit)),
            (pdus(submit), Just(Vec::new())),
            (Just(Vec::new()), pdus(RESPONSE | submit)),
            (Just(Vec::new()), pdus(deliver)),
            (Just(Vec::new()), pdus(0x102)),
            (pdus(RESPONSE | deliver), Just(Vec::new())),
            (4..9u32).prop_map(|n| (pdu(0x15, 0, n, b""), pdu(RESPONSE | 0x15, 0, n, b""))),
            (4..9u32).prop_map(|n| (pdu(0x3ff, 0, n, b""), pdu(RESPONSE, 3, n, b""))),
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn enquiries_are_transparent(
            script in prop::collection::vec(exchange(), 0..12),
            moves in moves(),
        ) {
            let mut script = [bound(), script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            let unbind = (pdu(6, 0, 9, b""), pdu(RESPONSE | 6, 0, 9, b""));
            script.push(Exchange::in_turn(unbind.0, unbind.1));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\0\0\0\x10\0\0\0\x09\0\0\0\0\0\0\0\x01", b"\0\0\0\x10\x80\0\0\x09\0\0\0\0\0\0\0\x01",
            b"\0\0\0\x10\x80\0\0\x15\0\0\0\0", b"\x7f\0\0\0", b"\0\0\0\x14\0\0\0\x04",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn what_is_no_smpp_is_not_followed() {
        for strange in [
            pdu(0x400, 0, 9, b""),
            pdu(0x4745_5420, 0, 9, b""),
            [&[0, 0, 0, 15][..], &[0; 12]].concat(),
            [&[0, 16, 0, 0][..], &[0; 12]].concat(),
        ] {
            let mut script = bound();
            script.push(Exchange::in_turn(strange, []));
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
