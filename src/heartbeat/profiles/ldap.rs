//! LDAPv3: the extended request "Who am I?" (RFC 4532), to the server, once it has answered something.
//!
//! The answer has our message id, from the top of the range, far from the client's counter; an error is an
//! answer, too. Not asked: from a Bind request to its response, and between the steps of one (RFC 4511, 4.2.1).
//! Opaque: StartTLS, a Bind after which SASL may wrap the messages, LDAPv2.

use super::framed::{Sense, Stage, Table, Way};
use crate::heartbeat::frame::Order;
use crate::heartbeat::profile::{Manner, OpaqueCause, Read};

const WHO_AM_I: &[u8; 23] = b"1.3.6.1.4.1.4203.1.11.3";
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";
/// After it the client answers (RFC 4531).
const TURN: &[u8] = b"1.3.6.1.1.19";

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SIMPLE: u8 = 0x80;
const SASL: u8 = 0xa3;

/// Of SASL, what never wraps the messages that follow.
const BARE_MECHANISMS: [&[u8]; 5] = [b"EXTERNAL", b"PLAIN", b"ANONYMOUS", b"LOGIN", b"CRAM-MD5"];
/// What a response says that waits for the next step of a Bind.
const BIND_IN_PROGRESS: u8 = 14;

#[derive(Debug)]
pub(super) struct Ldap;

impl Table for Ldap {
    const MANNER: Manner = Manner::Interleaved;
    const FIRST: Stage = Stage::Fresh;

    fn length(&self, head: &[u8]) -> Read {
        match Ber(head).header() {
            Ok((SEQUENCE, length, rest)) => Read::End((head.len() - rest.0.len()) as u64 + length),
            Ok(_) => Read::Opaque(OpaqueCause::Malformed),
            Err(Missing::Bytes) => Read::More,
            Err(Missing::Sense) => Read::Opaque(OpaqueCause::Malformed),
        }
    }

    fn sense(&self, head: &[u8], way: Way) -> Sense {
        let is_whole =
            matches!(self.length(head), Read::End(length) if length <= head.len() as u64);
        match sense(head, way) {
            Ok(sense) => sense,
            Err(Missing::Bytes) if !is_whole => Sense::More,
            Err(_) => Sense::Opaque(OpaqueCause::Malformed),
        }
    }

    fn id(&self, token: u64) -> u32 {
        0x7f00_0000 | token as u32 & 0x00ff_ffff
    }

    fn question(&self, token: u64) -> Vec<u8> {
        let id = self.id(token).to_be_bytes();
        let head = [&[SEQUENCE, 33, INTEGER, 4], &id[..], &[0x77, 25, 0x80, 23]];
        [&head.concat()[..], WHO_AM_I].concat()
    }
}

fn sense(head: &[u8], way: Way) -> Result<Sense, Missing> {
    let (_, _, message) = Ber(head).header()?;
    let (id, message) = message.value(INTEGER)?;
    if !matches!(id.len(), 1..=4) {
        return Err(Missing::Sense);
    }
    let id = Order::Big.number(id) as u32;
    let (operation, _, body) = message.header()?;
    Ok(match (way, operation) {
        (Way::Told, 0x60) => return bind(body),
        (Way::Told, 0x42) => Sense::Closes,
        // Abandon
        (Way::Told, 0x50) => Sense::Plain,
        (Way::Told, 0x77) => match body.value(0x80)?.0 {
            START_TLS => Sense::Opaque(OpaqueCause::Changed),
            TURN => Sense::Opaque(OpaqueCause::Unsupported),
            _ => Sense::Request,
        },
        (Way::Told, 0x63 | 0x66 | 0x68 | 0x4a | 0x6c | 0x6e) => Sense::Request,
        (Way::Heard, 0x61) => match body.value(ENUMERATED)?.0 {
            [BIND_IN_PROGRESS] => Sense::Reply,
            _ => Sense::Opened,
        },
        // The notice of disconnection
        (Way::Heard, 0x78) if id == 0 => Sense::Closes,
        (Way::Heard, 0x78) => Sense::Answer(id),
        // Entries, references and intermediate responses come before the last one.
        (Way::Heard, 0x64 | 0x73 | 0x79) => Sense::Plain,
        (Way::Heard, 0x65 | 0x67 | 0x69 | 0x6b | 0x6d | 0x6f) => Sense::Reply,
        _ => return Err(Missing::Sense),
    })
}

fn bind(body: Ber<'_>) -> Result<Sense, Missing> {
    let (version, body) = body.value(INTEGER)?;
    let (_, body) = body.value(OCTETS)?;
    let (choice, _, body) = body.header()?;
    let mechanism = match choice {
        SASL => body.value(OCTETS)?.0,
        _ => b"",
    };
    Ok(match choice {
        _ if version != [3] => Sense::Opaque(OpaqueCause::Unsupported),
        SIMPLE => Sense::Opens,
        SASL if BARE_MECHANISMS.contains(&mechanism) || mechanism.starts_with(b"SCRAM-") => {
            Sense::Opens
        }
        _ => Sense::Opaque(OpaqueCause::Changed),
    })
}

/// Encoded values, one after the other.
#[derive(Clone, Copy)]
struct Ber<'a>(&'a [u8]);

/// Why one cannot be read.
enum Missing {
    Bytes,
    Sense,
}

impl<'a> Ber<'a> {
    /// The tag and the length of the first value, and what stands behind them.
    fn header(self) -> Result<(u8, u64, Self), Missing> {
        let [tag, first, rest @ ..] = self.0 else {
            return Err(Missing::Bytes);
        };
        match usize::from(first & 0x7f) {
            length if first & 0x80 == 0 => Ok((*tag, length as u64, Self(rest))),
            size @ 1..=4 => {
                let (length, rest) = rest.split_at_checked(size).ok_or(Missing::Bytes)?;
                Ok((*tag, Order::Big.number(length), Self(rest)))
            }
            _ => Err(Missing::Sense),
        }
    }

    /// The first value, which has this tag, and what stands behind it.
    fn value(self, tag: u8) -> Result<(&'a [u8], Self), Missing> {
        let (is, length, rest) = self.header()?;
        if is != tag {
            return Err(Missing::Sense);
        }
        let (value, rest) = rest
            .0
            .split_at_checked(length as usize)
            .ok_or(Missing::Bytes)?;
        Ok((value, Self(rest)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::profiles::framed::Framed;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};
    use crate::heartbeat::{Heartbeat, Profile, State};

    fn profile() -> Box<dyn Profile> {
        Box::new(Framed::new(Ldap))
    }

    /// A value, its length written as short as it can be.
    fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let length = (body.len() as u32).to_be_bytes();
        let length = match body.len() {
            0..128 => vec![length[3]],
            128..256 => vec![0x81, length[3]],
            _ => vec![0x82, length[2], length[3]],
        };
        [&[tag], &length[..], &body].concat()
    }

    fn message(id: u32, operation: u8, parts: &[&[u8]]) -> Vec<u8> {
        let id = id.to_be_bytes();
        let id = &id[(0..3).find(|at| id[*at] != 0).unwrap_or(3)..];
        value(
            SEQUENCE,
            &[&value(INTEGER, &[id]), &value(operation, parts)],
        )
    }

    fn response(id: u32, operation: u8, code: u8) -> Vec<u8> {
        message(
            id,
            operation,
            &[&[ENUMERATED, 1, code, OCTETS, 0, OCTETS, 0]],
        )
    }

    fn bind(name: &str, choice: u8, parts: &[&[u8]]) -> Vec<u8> {
        let name = value(OCTETS, &[name.as_bytes()]);
        message(1, 0x60, &[&[INTEGER, 1, 3], &name, &value(choice, parts)])
    }

    fn sasl(mechanism: &[u8]) -> Vec<u8> {
        bind(
            "",
            SASL,
            &[&value(OCTETS, &[mechanism]), &value(OCTETS, &[b"secret"])],
        )
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let id = Order::Big.number(&question[4..8]) as u32;
        assert_eq!(question, message(id, 0x77, &[&value(0x80, &[WHO_AM_I])]));
        match id & 16 {
            0 => response(id, 0x78, 2),
            _ => {
                let name = value(0x8b, &[b"dn:", &[b'x'; 200]]);
                message(
                    id,
                    0x78,
                    &[&[ENUMERATED, 1, 0, OCTETS, 0, OCTETS, 0], &name],
                )
            }
        }
    }

    fn bound() -> Vec<Exchange> {
        vec![
            // A Bind in two steps.
            Exchange::in_turn(sasl(b"SCRAM-SHA-256"), response(1, 0x61, 14)),
            Exchange::in_turn(sasl(b"SCRAM-SHA-256"), response(1, 0x61, 0)).answered(answer),
        ]
    }

    fn messages(operations: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let operation = prop::sample::select(operations);
        let body = prop::collection::vec(any::<u8>(), 0..700);
        (0..0x1_0000_u32, operation, body).prop_map(|(id, operation, body)| {
            message(id + 1, operation, &[&[ENUMERATED, 1, 0], &body])
        })
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let whole = || messages(&[0x63, 0x66, 0x68, 0x4a, 0x6c, 0x6e, 0x50]);
        let last = || messages(&[0x65, 0x67, 0x69, 0x6b, 0x6d, 0x6f, 0x78]);
        let entry = messages(&[0x64, 0x73, 0x79]);
        let other = (1..99u32).prop_map(|id| {
            let told = message(id, 0x77, &[&value(0x80, &[WHO_AM_I])]);
            (told, response(id, 0x78, 0))
        });
        let again = Just((bind("cn=me", SIMPLE, &[b"secret"]), response(1, 0x61, 49)));
        let both = prop_oneof![
            (whole(), last()),
            (whole(), Just(Vec::new())),
            (Just(Vec::new()), last()),
            (Just(Vec::new()), entry),
            other,
            again,
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn questions_are_transparent(
            script in prop::collection::vec(exchange(), 0..12),
            moves in moves(),
        ) {
            let mut script = [bound(), script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn(message(9, 0x42, &[]), []));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0", b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0",
            b"\x30\x0e\x02\x04\x7f\0\0", b"\x30\x84\0\0", b"\x78\x07\x0a\x01\0", b"\x30\x05\x02\x01\x02\x42\0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn nothing_is_asked_while_a_bind_goes_on() {
        let mut heartbeat = Heartbeat::new(profile());
        heartbeat.told(&message(1, 0x63, &[b"search"]));
        assert_eq!(heartbeat.state(), State::Starting);
        let _ = heartbeat.heard(&response(1, 0x65, 0), &mut Vec::new());
        assert_eq!(heartbeat.state(), State::Ready);
        heartbeat.told(&message(2, 0x63, &[b"search"]));
        assert!(
            heartbeat.may_ask() && !heartbeat.at_boundary(),
            "there are ids"
        );
        heartbeat.told(&bind("cn=me", SIMPLE, &[b"secret"]));
        assert!(!heartbeat.may_ask());
        let _ = heartbeat.heard(&response(2, 0x65, 0), &mut Vec::new());
        assert!(!heartbeat.may_ask());
        let _ = heartbeat.heard(&response(1, 0x61, 0), &mut Vec::new());
        assert!(heartbeat.may_ask() && heartbeat.at_boundary());
    }

    #[test]
    fn a_server_that_leaves_is_not_asked() {
        let mut script = bound();
        script.push(Exchange::in_turn([], response(0, 0x78, 52)));
        play(profile(), &script, &[], Ends::NotReady);
    }

    #[test]
    fn what_is_wrapped_or_not_understood_is_not_followed() {
        for strange in [
            message(2, 0x77, &[&value(0x80, &[START_TLS])]),
            message(2, 0x77, &[&value(0x80, &[TURN])]),
            sasl(b"GSSAPI"),
            sasl(b"DIGEST-MD5"),
            bind("", 0x8a, &[b"NTLMSSP"]),
            bind(&"cn=x,".repeat(120), SIMPLE, &[b"secret"]),
            message(1, 0x60, &[&[INTEGER, 1, 2, OCTETS, 0], &value(SIMPLE, &[])]),
            message(1, 0x60, &[b""]),
            message(1, 0x61, &[b""]),
            b"\x30\x80\x02\x01\x01".to_vec(),
            b"\x30\x03\x02\x05\x01".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ] {
            let mut script = bound();
            script.push(Exchange::in_turn(strange, []));
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
