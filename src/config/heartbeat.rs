//! The keys of heartbeats.

use std::time::Duration;

use strum::{Display, EnumString, VariantNames};

use super::bytes::Bytes;
use super::kind::{bytes, choice, count, protocol, span};
use super::read::{Reader, Scope};
use super::section::section;
use super::setting::section_of;
use crate::heartbeat::frame::{Framing, Length, Order};
use crate::heartbeat::profiles::Protocol;
use crate::heartbeat::profiles::custom::{Description, IdPlace};
use crate::liveness::{Asking, LEGS, Leg};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

section! {
    /// How an application is asked inside its connection.
    HeartbeatConfig {
        /// The protocol that is spoken there; custom: what frame, send and expect describe.
        profile: Option<Protocol> = protocol().or("off").default("off").flag("heartbeat");
        /// Whose application is asked, as far as the protocol can.
        leg: AskedLeg = choice().default("upstream").flag("heartbeat-leg");
        /// It is asked when no payload has passed in either direction for this long, and as often.
        after: Duration = span(SECOND..=HOUR).default("15s").flag("heartbeat-after");
        /// How long the answer may take.
        timeout: Duration = span(100 * MS..=HOUR).default("5s").flag("heartbeat-timeout");
        /// So many unanswered questions in a row end the session, if one was answered before.
        failures: u32 = count(1..=100).default("1").flag("heartbeat-failures");
        /// What is read (profile: modbus).
        modbus: Modbus = section_of();
        /// How the stream is cut into messages (profile: custom).
        frame: Frame = section_of();
        /// The question, one message (profile: custom). Without an id each message, not only this one, must be answered
        /// by exactly one.
        send: Bytes = bytes().default(r"PING\r\n").flag("heartbeat-send");
        /// What its answer begins with (profile: custom). Empty: nobody answers, so it proves nothing and keeps
        /// the path open.
        expect: Bytes = bytes().default(r"PONG\r\n").flag("heartbeat-expect");
        /// Where an id stands, in the question and in its answer (profile: custom): decimal digits where messages
        /// are lines, else binary.
        id: Option<Id> = section_of().or("off").default("off");
    }
    check |at, reader| {
        if let (Some(Some(profile)), Some(leg)) = (&profile, leg) {
            check_leg(at, reader, profile, leg);
        }
        if let (Some(Some(Protocol::Custom(_))), Some(frame), Some(send), Some(expect), Some(id)) =
            (&profile, &frame, &send, &expect, &id)
            && let Err(why) = describe(frame, send, expect, id.as_ref()).check()
        {
            reader.contradict(&at.child("send"), why.to_owned());
        }
    }
}

section! {
    /// A holding register of a device.
    Modbus {
        /// The device: 255 or 0 if it is the one at the address, else the one behind it.
        unit: u8 = count(0..=255).default("255").flag("heartbeat-modbus-unit");
        /// The register, from 0.
        register: u16 = count(0..=65_535).default("0").flag("heartbeat-modbus-register");
    }
}

section! {
    /// How a stream is cut into messages.
    Frame {
        /// line: each ends with `delimiter`; length: each begins with a header that says its length; fixed: each has
        /// `header` bytes.
        kind: FrameKind = choice().default("line").flag("heartbeat-frame");
        /// What a line ends with.
        delimiter: Bytes = bytes().default(r"\n").flag("heartbeat-delimiter");
        /// Bytes that must be there before the length is known.
        header: u16 = count(1..=512).default("4").flag("heartbeat-header");
        /// Where in them the length begins.
        offset: u16 = count(0..=511).default("0").flag("heartbeat-offset");
        /// The bytes of the length.
        size: u8 = count(1..=4).default("4").flag("heartbeat-size");
        /// Their order.
        order: ByteOrder = choice().default("big").flag("heartbeat-order");
        /// A message has as many bytes as the length says, and these.
        adjust: u16 = count(0..=65_535).default("4").flag("heartbeat-adjust");
    }
}

section! {
    /// Where an id stands.
    Id {
        /// Its first byte, counted from 0.
        offset: u16 = count(0..=511).flag("heartbeat-id-offset");
        /// Its bytes.
        size: u8 = count(1..=16).flag("heartbeat-id-size");
    }
}

/// Whose application is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum AskedLeg {
    /// The service.
    Upstream,
    /// The client.
    Downstream,
    /// Both.
    Both,
}

impl AskedLeg {
    fn has(self, leg: Leg) -> bool {
        match self {
            Self::Upstream => leg == Leg::Upstream,
            Self::Downstream => leg == Leg::Downstream,
            Self::Both => true,
        }
    }
}

/// How a stream is cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum FrameKind {
    /// By a delimiter.
    Line,
    /// By a length in the header.
    Length,
    /// Into pieces of one length.
    Fixed,
}

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ByteOrder {
    /// The highest first.
    Big,
    /// The lowest first.
    Little,
}

impl HeartbeatConfig {
    /// By leg, the protocol in which its peer is asked.
    #[must_use]
    pub fn protocol(&self, leg: Leg) -> Option<Protocol> {
        let mut protocol = self.profile.clone().filter(|_| self.leg.has(leg))?;
        match &mut protocol {
            Protocol::Custom(description) => {
                let id = self.id.as_ref();
                *description = describe(&self.frame, &self.send, &self.expect, id);
            }
            Protocol::Modbus(register) => {
                register.unit = self.modbus.unit;
                register.address = self.modbus.register;
            }
            _ => {}
        }
        protocol.profile(leg).map(|_| protocol)
    }

    /// The limits.
    #[must_use]
    pub fn asking(&self) -> Asking {
        Asking {
            after: self.after.into(),
            timeout: self.timeout.into(),
            failures: self.failures,
        }
    }
}

fn describe(frame: &Frame, send: &Bytes, expect: &Bytes, id: Option<&Id>) -> Description {
    let framing = match frame.kind {
        FrameKind::Line => Framing::Line(frame.delimiter.0.as_slice().into()),
        FrameKind::Fixed => Framing::Fixed(frame.header.into()),
        FrameKind::Length => Framing::Length(Length {
            header: frame.header.into(),
            offset: frame.offset.into(),
            size: frame.size.into(),
            order: match frame.order {
                ByteOrder::Big => Order::Big,
                ByteOrder::Little => Order::Little,
            },
            adjust: frame.adjust.into(),
        }),
    };
    Description {
        framing,
        send: send.0.as_slice().into(),
        expect: expect.0.as_slice().into(),
        id: id.map(|id| IdPlace {
            offset: id.offset.into(),
            size: id.size.into(),
        }),
    }
}

/// `both` is as far as the protocol can.
fn check_leg(at: &Scope<'_>, reader: &mut Reader<'_>, profile: &Protocol, leg: AskedLeg) {
    let can = |leg: &Leg| profile.profile(*leg).is_some();
    if !LEGS.iter().filter(|asked| leg.has(**asked)).any(can) {
        let message = format!("{leg} cannot be asked in {profile}");
        reader.contradict(&at.child("leg"), message);
    }
}
