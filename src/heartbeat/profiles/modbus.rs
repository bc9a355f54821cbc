//! Modbus/TCP: one register is read (function 3), from the device, while it owes nothing.
//!
//! Which register the operator says: a device must have it, and reading it must be harmless. The answer has our
//! transaction id, which is half the range away from the client's: also an exception is one. Devices work on
//! one request at a time, and some answer the second one twice: a client's request waits until ours was
//! answered.

use crate::heartbeat::frame::{Length, Order};
use crate::heartbeat::profile::{Manner, OpaqueCause, Phase, Profile, Read};

/// Transaction id, protocol, length; the unit and the function.
const LENGTH: Length = Length {
    header: 8,
    offset: 4,
    size: 2,
    order: Order::Big,
    adjust: 6,
};

const LONGEST: u64 = 260;
const READ_HOLDING_REGISTERS: u8 = 3;
const EXCEPTION: u8 = 0x80;

/// What is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// The device: 255 or 0 if it is the one at this address, else the one behind it.
    pub unit: u8,
    /// Of a holding register, from 0.
    pub address: u16,
}

/// The conversation.
#[derive(Debug)]
pub(super) struct Modbus {
    register: Register,
    /// Id and function of the client's last request, until it is answered. A device that is silent about an
    /// earlier one will not answer it any more.
    request: Option<(u16, u8)>,
    /// The id of that.
    last: u16,
    /// Questions and their ids.
    asked: Vec<(u64, u16)>,
    has_begun: bool,
}

impl Modbus {
    pub(super) const fn new(register: Register) -> Self {
        Self {
            register,
            request: None,
            last: 0,
            asked: Vec::new(),
            has_begun: false,
        }
    }
}

/// The message that begins so: its length, id, unit and function.
fn message(head: &[u8]) -> Result<(u64, u16, u8, u8), Read> {
    let length = match LENGTH.read(head) {
        Read::End(length @ ..=LONGEST) if head[2..4] == [0, 0] => length,
        Read::More => return Err(Read::More),
        _ => return Err(Read::Opaque(OpaqueCause::Malformed)),
    };
    let id = Order::Big.number(&head[..2]) as u16;
    Ok((length, id, head[6], head[7]))
}

impl Profile for Modbus {
    fn told(&mut self, head: &[u8]) -> Read {
        let (length, id, _, function) = match message(head) {
            Ok(message) => message,
            Err(other) => return other,
        };
        if function == 0 || function & EXCEPTION != 0 {
            return Read::Opaque(OpaqueCause::Malformed);
        }
        self.request = Some((id, function));
        self.last = id;
        // The client has come half around: ours is lost, and the id is its own now.
        self.asked.retain(|(_, asked)| *asked != id);
        Read::End(length)
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let (length, id, unit, function) = match message(head) {
            Ok(message) => message,
            Err(other) => return other,
        };
        let asked = self
            .asked
            .iter()
            .position(|(token, asked)| *asked == id && due.contains(token));
        if let Some(asked) = asked {
            if unit != self.register.unit || function & !EXCEPTION != READ_HOLDING_REGISTERS {
                return Read::Opaque(OpaqueCause::Misfit);
            }
            let (token, _) = self.asked.remove(asked);
            return Read::Mine { token, length };
        }
        if self.request == Some((id, function & !EXCEPTION)) {
            self.request = None;
            self.has_begun = true;
        }
        Read::End(length)
    }

    fn phase(&self) -> Phase {
        match self.request {
            _ if !self.has_begun => Phase::Starting,
            None => Phase::Idle,
            Some(_) => Phase::Waiting,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn is_sequential(&self) -> bool {
        true
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        // Clients count from wherever they are; several of ours differ by some bits of the token.
        let id = self.last.wrapping_add(0x8000 | token as u16 & 0x0fff);
        self.asked.push((token, id));
        let Register { unit, address } = self.register;
        let ([a, b], [c, d]) = (id.to_be_bytes(), address.to_be_bytes());
        vec![a, b, 0, 0, 0, 6, unit, READ_HOLDING_REGISTERS, c, d, 0, 1]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};
    use crate::heartbeat::{Heard, Heartbeat, State};

    fn profile() -> Box<dyn Profile> {
        Box::new(Modbus::new(Register {
            unit: 255,
            address: 7,
        }))
    }

    fn message(id: u16, unit: u8, function: u8, data: &[u8]) -> Vec<u8> {
        let ([a, b], length) = (id.to_be_bytes(), data.len() as u8 + 2);
        [&[a, b, 0, 0, 0, length, unit, function], data].concat()
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let id = u16::from_be_bytes([question[0], question[1]]);
        assert_eq!(question, message(id, 255, 3, &[0, 7, 0, 1]));
        match id % 8 {
            0 => message(id, 255, 0x83, &[2]),
            _ => message(id, 255, 3, &[2, 1, 2]),
        }
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let data = || prop::collection::vec(any::<u8>(), 0..250);
        let both =
            (1..90u8, data(), data(), any::<bool>()).prop_map(|(function, ask, say, is_error)| {
                let says = if is_error { EXCEPTION } else { 0 };
                (
                    message(0, 1, function, &ask),
                    message(0, 1, function | says, &say),
                )
            });
        Exchange::any_pace(both, Some(answer))
    }

    /// With ids, which a client counts up from somewhere.
    fn script() -> impl Strategy<Value = Vec<Exchange>> {
        (any::<u16>(), prop::collection::vec(exchange(), 1..12)).prop_map(|(from, mut script)| {
            for (at, exchange) in script.iter_mut().enumerate() {
                let id = from.wrapping_add(at as u16).to_be_bytes();
                exchange.told[..2].copy_from_slice(&id);
                exchange.heard[..2].copy_from_slice(&id);
            }
            script
        })
    }

    proptest! {
        #[test]
        fn readings_are_transparent(script in script(), moves in moves()) {
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\0\x01\0\0\0\x02\x01\x03", b"\0\x02\0\0\0\x03\x01\x83\x02", b"\x80\x01\0\0\0\x05\xff\x03\x02\0\0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    fn hear(heartbeat: &mut Heartbeat, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match heartbeat.heard(bytes, &mut out) {
            Heard::All => bytes.to_vec(),
            Heard::Instead => out,
        }
    }

    #[test]
    fn a_device_that_leaves_a_request_unanswered_is_asked_again_after_the_next_one() {
        let mut heartbeat = Heartbeat::new(profile());
        heartbeat.told(&message(1, 9, 3, &[]));
        assert_eq!(heartbeat.state(), State::Starting);
        heartbeat.told(&message(2, 1, 3, &[]));
        let _ = hear(&mut heartbeat, &message(2, 1, 3, &[]));
        assert_eq!(heartbeat.state(), State::Ready);
    }

    #[test]
    fn an_id_that_the_client_came_to_is_the_clients() {
        let mut heartbeat = Heartbeat::new(profile());
        heartbeat.told(&message(1, 1, 3, &[]));
        let _ = hear(&mut heartbeat, &message(1, 1, 3, &[]));
        let question = heartbeat.ask(0).expect("it owes nothing");
        assert_eq!(question[..2], [0x80, 1]);
        assert!(heartbeat.must_wait());
        heartbeat.give_up();
        assert!(!heartbeat.must_wait());
        heartbeat.told(&message(0x8001, 1, 3, &[]));
        let answer = message(0x8001, 1, 3, &[2, 1, 2]);
        assert_eq!(hear(&mut heartbeat, &answer), answer);
        assert_eq!(heartbeat.state(), State::Ready);
    }

    #[test]
    fn what_is_no_modbus_is_not_followed() {
        for strange in [
            &b"\0\x01\0\x01\0\x02\x01\x03"[..],
            b"\0\x01\0\0\0\x01\x01\x03",
            b"\0\x01\0\0\x01\0\x01\x03",
            b"\0\x01\0\0\0\x02\x01\x83",
        ] {
            play(
                profile(),
                &[Exchange::in_turn(strange, [])],
                &[],
                Ends::Opaque,
            );
        }
    }
}
