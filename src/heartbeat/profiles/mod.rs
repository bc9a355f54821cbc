//! The protocols. Each is followed as far as its answers can be told for certain; the rest is opaque.

pub mod custom;
pub mod modbus;

mod amqp;
mod framed;
mod hsms;
mod iec104;
mod irc;
mod ldap;
mod memcached;
mod mqtt;
mod mysql;
mod postgres;
mod redis;
mod refused;
mod smpp;
mod stomp;
mod telnet;

use strum::{Display, EnumString, IntoStaticStr, VariantNames};

use self::framed::Framed;
pub use self::refused::refusal;
use super::profile::Profile;
use crate::liveness::Leg;

/// The protocols that are known, by the names of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantNames)]
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
    /// Telnet, TN3270, TN5250.
    Telnet,
    /// Modbus/TCP: this register is read. The device is asked.
    Modbus(modbus::Register),
    /// IRC.
    Irc,
    /// LDAP. The server is asked.
    Ldap,
    /// MySQL and MariaDB. The server is asked.
    Mysql,
    /// STOMP. Nobody answers.
    Stomp,
    /// AMQP 0-9-1. Nobody answers.
    Amqp,
    /// memcached, text and binary. The server is asked.
    Memcached,
    /// What the operator describes.
    Custom(custom::Description),
}

impl Protocol {
    /// How the peer of this leg is asked, if it can be in this protocol.
    #[must_use]
    pub fn profile(&self, leg: Leg) -> Option<Box<dyn Profile>> {
        let profile: Box<dyn Profile> = match (self, leg) {
            (
                Self::Mqtt
                | Self::Redis
                | Self::Postgres
                | Self::Modbus(_)
                | Self::Ldap
                | Self::Mysql
                | Self::Memcached,
                Leg::Downstream,
            ) => return None,
            (Self::Hsms, _) => Box::new(Framed::new(hsms::Hsms)),
            (Self::Iec104, _) => Box::new(Framed::new(iec104::Iec104)),
            (Self::Smpp, _) => Box::new(Framed::new(smpp::Smpp)),
            (Self::Mqtt, _) => Box::new(Framed::new(mqtt::Mqtt)),
            (Self::Redis, _) => Box::new(redis::Redis::default()),
            (Self::Postgres, _) => Box::new(postgres::Postgres::default()),
            (Self::Telnet, _) => Box::new(telnet::Telnet::default()),
            (Self::Modbus(register), _) => Box::new(modbus::Modbus::new(*register)),
            (Self::Irc, leg) => Box::new(irc::Irc::new(leg)),
            (Self::Ldap, _) => Box::new(Framed::new(ldap::Ldap)),
            (Self::Mysql, _) => Box::new(mysql::Mysql::default()),
            (Self::Stomp, _) => Box::new(stomp::Stomp::default()),
            (Self::Amqp, _) => Box::new(Framed::new(amqp::Amqp)),
            (Self::Memcached, _) => Box::new(memcached::Memcached::default()),
            (Self::Custom(description), _) => Box::new(custom::Custom::new(description)),
        };
        Some(profile)
    }
}
