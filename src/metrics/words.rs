//! Labels with a closed set of values.

use strum::{Display, IntoStaticStr, VariantArray};

use super::series::Label;
use crate::liveness::{CloseReason, Evidence, Leg};

/// Why a client was reset right after it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum RejectReason {
    /// The listener holds `max_connections` sessions.
    MaxConnections,
    /// Its source holds `max_connections_per_source` sessions.
    SourceConnections,
    /// Its source connects more often than `rate_per_source`.
    SourceRate,
    /// `access` does not let it in.
    AccessDenied,
    /// Too few file descriptors are left for both legs.
    Descriptors,
    /// Memory is short.
    Memory,
    /// The runtime could not watch its socket (epoll_ctl(2)).
    LocalError,
    /// `proxy_protocol_trusted` does not list it.
    ProxyProtocolUntrusted,
}

/// What was short when a session was ended to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum Shortage {
    /// Places of the listener (`on_full: shed`).
    Places,
    /// File descriptors.
    Descriptors,
    /// Memory.
    Memory,
}

/// How a connect to the upstream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum ConnectFailure {
    /// No answer within `connect_timeout`.
    Timeout,
    /// Refused by the upstream.
    Refused,
    /// No local port is left for its address (EADDRNOTAVAIL).
    SourcePorts,
    /// Unreachable, or its name could not be resolved, or another local failure.
    Failed,
}

/// What came of a connect to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum ConnectOutcome {
    /// It was made.
    Connected,
    /// It was refused, failed otherwise, or was not answered in its time.
    Failed,
}

/// Class of a failed accept().
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum AcceptErrorClass {
    /// No descriptor is left in the process or the system (EMFILE, ENFILE).
    Descriptors,
    /// The kernel has no memory left (ENOBUFS, ENOMEM).
    Memory,
    /// That one connection failed before it was accepted (ECONNABORTED and the like).
    Connection,
    /// Anything else.
    Other,
}

/// What came of a client that found its listener full and waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum Takeover {
    /// A holder was proven dead and made room.
    HolderDead,
    /// It waited until a holder ended by itself.
    Queued,
    /// A live holder made room (`on_full: replace`).
    Replaced,
    /// A quiet holder made room (`on_full: shed`).
    Shed,
    /// It was not served.
    NotServed,
}

/// Where the state of the host is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum HostSource {
    /// `/proc/net/netstat`.
    Netstat,
    /// `/proc/net/sockstat`.
    Sockstat,
    /// sock_diag(7).
    SockDiag,
    /// The memory figures of the control group or of the process.
    Memory,
}

/// What came of an attempt to take up a changed configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum ReloadOutcome {
    /// It is in force, as far as it can be without a restart.
    Success,
    /// Nothing has changed.
    Failure,
}

/// Why there is no TLS on a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum HandshakeFailure {
    /// The peer's certificate, or one of its chain, is over.
    CertificateExpired,
    /// The same has not begun.
    CertificateNotYetValid,
    /// The certificate is not for the name that was dialled.
    WrongName,
    /// No CA that is trusted here has issued it.
    UnknownCa,
    /// The client sent none, and one is required.
    NoClientCertificate,
    /// It is revoked, malformed, for another purpose, or badly signed.
    BadCertificate,
    /// The versions of TLS of both sides do not meet.
    NoSharedVersion,
    /// The same for cipher suites, groups or signature schemes.
    NoSharedCipher,
    /// The same for the protocols inside TLS (ALPN).
    NoApplicationProtocol,
    /// No certificate here is for the name that the client asked for (`sni: strict`).
    UnknownServerName,
    /// The peer does not speak TLS.
    PlainText,
    /// The peer has sent an alert.
    RefusedByPeer,
    /// It took longer than `handshake_timeout`.
    Timeout,
    /// The peer ended the connection.
    Closed,
    /// A message that is not as the protocol has it, or not in its place.
    ProtocolError,
}

/// The version of TLS that was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[repr(u8)]
pub enum TlsVersion {
    /// RFC 5246.
    #[strum(serialize = "TLSv1.2")]
    V12,
    /// RFC 8446.
    #[strum(serialize = "TLSv1.3")]
    V13,
}

/// Label names of enums whose variants are numbered from 0.
macro_rules! labels {
    ($($name:literal: $words:ty;)+) => {
        $(impl Label for $words {
            const NAME: &'static str = $name;

            fn index(self) -> usize {
                self as usize
            }
        })+
    };
}

labels! {
    "leg": Leg;
    "evidence": Evidence;
    "reason": RejectReason;
    "reason": ConnectFailure;
    "class": AcceptErrorClass;
    "outcome": Takeover;
    "outcome": ConnectOutcome;
    "cause": Shortage;
    "source": HostSource;
    "outcome": ReloadOutcome;
    "reason": HandshakeFailure;
    "version": TlsVersion;
}

impl Label for CloseReason {
    const NAME: &'static str = "reason";

    fn index(self) -> usize {
        self as usize
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(Self::NAME, self.into()), ("initiator", self.initiator())]
    }
}
