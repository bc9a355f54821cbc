//! MQTT 3.1, 3.1.1 and 5: `PINGREQ`, to the broker, between CONNACK and DISCONNECT. A broker cannot ask.
//!
//! `PINGRESP` has no id. Those of the client are counted: we do not ask before they are answered. All else may
//! stand in between. The broker takes what is asked for a sign of life of the client.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

#[derive(Debug)]
pub(super) struct Mqtt;

impl Table for Mqtt {
    const MANNER: Manner = Manner::InTurn;
    const FIRST: Stage = Stage::Closed;

    fn length(&self, head: &[u8]) -> Read {
        match remaining(head) {
            Some((_, 4..)) => Read::Opaque(OpaqueCause::Malformed),
            Some((length, digits)) => Read::End(2 + digits + length),
            None => Read::More,
        }
    }

    fn sense(&self, head: &[u8], way: Way) -> Sense {
        let Some((length, digits)) = remaining(head) else {
            return Sense::More;
        };
        let body = &head[2 + digits as usize..];
        let flags = head[0] & 15;
        match (head[0] >> 4, way) {
            (1, Way::Told) if flags == 0 => connect(body),
            (2, Way::Heard) if flags == 0 => match body {
                // Of these the second says whether the connect is granted.
                [_, 0, ..] => Sense::Opened,
                [_, _, ..] => Sense::Reply,
                _ if length < 2 => Sense::Opaque(OpaqueCause::Malformed),
                _ => Sense::More,
            },
            (3, _) if flags & 6 != 6 => Sense::Plain,
            (6, _) | (8 | 10, Way::Told) if flags == 2 => Sense::Plain,
            (4 | 5 | 7 | 15, _) | (9 | 11, Way::Heard) if flags == 0 => Sense::Plain,
            (12, Way::Told) if flags == 0 && length == 0 => Sense::Request,
            (13, Way::Heard) if flags == 0 && length == 0 => Sense::Answer(0),
            (14, _) if flags == 0 => Sense::Closes,
            _ => Sense::Opaque(OpaqueCause::Malformed),
        }
    }

    fn question(&self, _: u64) -> Vec<u8> {
        vec![0xc0, 0]
    }
}

/// Of the length that stands behind the first byte: its value, and its digits but the last one.
fn remaining(head: &[u8]) -> Option<(u64, u64)> {
    let mut length = 0;
    for (at, digit) in head[1..].iter().take(5).enumerate() {
        length |= u64::from(digit & 0x7f) << (7 * at);
        if digit & 0x80 == 0 {
            return Some((length, at as u64));
        }
    }
    // The fifth is none.
    (head.len() > 5).then_some((0, 4))
}

/// Whether it is one, by the name of the protocol.
fn connect(body: &[u8]) -> Sense {
    let names: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];
    if names.iter().any(|name| body.starts_with(name)) {
        Sense::Opens
    } else if names.iter().any(|name| name.starts_with(body)) {
        Sense::More
    } else {
        Sense::Opaque(OpaqueCause::Malformed)
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
        Box::new(Framed::new(Mqtt))
    }

    fn packet(first: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![first];
        let mut left = body.len();
        loop {
            let more = if left > 127 { 0x80 } else { 0 };
            packet.push((left % 128) as u8 | more);
            left /= 128;
            if left == 0 {
                return [&packet, body].concat();
            }
        }
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, [0xc0, 0]);
        vec![0xd0, 0]
    }

    const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a";

    fn connected() -> Exchange {
        Exchange::in_turn(CONNECT, *b"\x20\x02\0\0").answered(answer)
    }

    fn packets(first: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let body = prop_oneof![
            prop::collection::vec(any::<u8>(), 2..20),
            prop::collection::vec(any::<u8>(), 120..140),
            Just(vec![0xd0; 20_000]),
        ];
        let first = prop::sample::select(first);
        (first, body).prop_map(|(first, body)| packet(first, &body))
    }

    /// Packets are answered by others, but not each by one. Here they are told and heard on their own.
    fn exchange() -> impl Strategy<Value = Exchange> {
        let told = packets(&[0x30, 0x32, 0x3d, 0x40, 0x50, 0x62, 0x70, 0x82, 0xa2, 0xf0]);
        let heard = packets(&[0x30, 0x32, 0x3d, 0x40, 0x50, 0x62, 0x70, 0x90, 0xb0, 0xf0]);
        let both = prop_oneof![
            told.prop_map(|told| (told, Vec::new())),
            heard.prop_map(|heard| (Vec::new(), heard)),
            Just((vec![0xc0, 0], vec![0xd0, 0])),
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn pings_are_transparent(
            script in prop::collection::vec(exchange(), 0..12),
            moves in moves(),
        ) {
            let mut script = [vec![connected()], script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn([0xe0, 0], []));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            CONNECT, b"\x20\x02\0\0", b"\xd0\0", b"\xc0\0", b"\xd0", b"\x30\xff\xff", b"\x30\x80",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn a_refused_client_is_not_asked_for() {
        let script = [Exchange::in_turn(CONNECT, *b"\x20\x02\0\x05")];
        play(profile(), &script, &[], Ends::NotReady);
        let script = [Exchange::in_turn([0xc0, 0], [0xd0, 0])];
        play(profile(), &script, &[], Ends::NotReady);
    }

    #[test]
    fn what_is_no_mqtt_is_not_followed() {
        let strange: [&[u8]; 8] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x10\x0c\0\x06MQTT 1",
            b"\x30\x80\x80\x80\x80\x01",
            b"\x36\0",
            b"\xc0\x01\0",
            b"\x20\x02\0\0",
            b"\x80\0",
            b"\0\0",
        ];
        for strange in strange {
            let script = [connected(), Exchange::in_turn(strange, [])];
            play(profile(), &script, &[], Ends::Opaque);
        }
        for strange in [&b"\xd0\0"[..], b"\xd0\x01\0", b"\xc0\0", CONNECT, b"\x20\0"] {
            let script = [connected(), Exchange::in_turn([], strange)];
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
