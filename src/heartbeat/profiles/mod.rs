//! The protocols. Each is followed as far as its answers can be told for certain; the rest is opaque.

pub mod custom;

mod framed;
mod hsms;
mod iec104;
mod mqtt;
mod postgres;
mod redis;
mod smpp;

use strum::IntoStaticStr;

use self::framed::Framed;
use super::profile::Profile;
use crate::liveness::Leg;

/// The protocols that are known, by the names of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Protocol {
    /// HSMS (SEMI E37).
    Hsms,
    /// IEC 60870-5-104.
    Iec104,
    /// SMPP.
    Smpp,
    /// MQTT. The broker is asked.
    Mqtt,
    /// Redis, and what speaks like it. The server is asked.
    Redis,
    /// PostgreSQL. The server is asked.
    Postgres,
    /// What the operator describes.
    Custom(custom::Description),
}

impl Protocol {
    /// How the peer of this leg is asked, if it can be in this protocol.
    #[must_use]
    pub fn profile(&self, leg: Leg) -> Option<Box<dyn Profile>> {
        match (self, leg) {
            (Self::Hsms, _) => Some(Box::new(Framed::new(hsms::Hsms))),
            (Self::Iec104, _) => Some(Box::new(Framed::new(iec104::Iec104))),
            (Self::Smpp, _) => Some(Box::new(Framed::new(smpp::Smpp))),
            (Self::Mqtt, Leg::Upstream) => Some(Box::new(Framed::new(mqtt::Mqtt))),
            (Self::Mqtt, Leg::Downstream) => None,
            (Self::Redis, Leg::Upstream) => Some(Box::new(redis::Redis::default())),
            (Self::Postgres, Leg::Upstream) => Some(Box::new(postgres::Postgres::default())),
            (Self::Redis | Self::Postgres, Leg::Downstream) => None,
            (Self::Custom(description), _) => Some(Box::new(custom::Custom::new(description))),
        }
    }
}
