//! The closed vocabulary: legs, evidence, close reasons. Logs, metrics, the admin API and the
//! docs print exactly these words.

use strum::{Display, FromRepr, IntoStaticStr, VariantArray};

/// One of the two TCP connections of a session.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Display,
    IntoStaticStr,
    VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub enum Leg {
    /// Client to pulsegate.
    #[default]
    Downstream = 0,
    /// Pulsegate to the legacy service.
    Upstream = 1,
}

/// Both legs, in index order.
pub const LEGS: [Leg; 2] = [Leg::Downstream, Leg::Upstream];

impl Leg {
    /// The leg on the other side of the proxy.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// What proved that a half-open peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum Evidence {
    /// Keepalive probes on a quiet connection stayed unanswered.
    Keepalive,
    /// Data in flight was retransmitted and never acknowledged.
    Retransmit,
    /// The peer's window was closed and window probes stayed unanswered.
    WindowProbe,
    /// A suspected peer answered a question with RST: it had forgotten the connection.
    Reset,
    /// The kernel gave the connection up by itself (ETIMEDOUT).
    KernelTimeout,
    /// The network says that the host cannot be reached (EHOSTUNREACH, ENETUNREACH).
    Unreachable,
    /// The application did not answer a question inside the connection, although its kernel did.
    Heartbeat,
}

/// Why a session ended. Chosen once for each session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Display, FromRepr, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum CloseReason {
    /// Both sides said FIN and everything was delivered.
    Finished,
    /// The client aborted (RST).
    DownstreamReset,
    /// The legacy service aborted (RST).
    UpstreamReset,
    /// The client was half-open: proven gone.
    DownstreamDead,
    /// The legacy service was half-open: proven gone.
    UpstreamDead,
    /// The client's kernel answers, but the client took no data for `stall_timeout`.
    DownstreamStalled,
    /// The service's kernel answers, but the service took no data for `stall_timeout`.
    UpstreamStalled,
    /// The client was heard, but data sent to it stayed unacknowledged for `delivery_timeout`.
    DownstreamUndelivered,
    /// The service was heard, but data sent to it stayed unacknowledged for `delivery_timeout`.
    UpstreamUndelivered,
    /// The client lives, but it sent no payload for its `receive_timeout`.
    DownstreamSilent,
    /// The service lives, but it sent no payload for its `receive_timeout`.
    UpstreamSilent,
    /// No byte passed for `idle_timeout`.
    IdleTimeout,
    /// One side had said FIN and no byte passed for `half_close_timeout`.
    HalfCloseTimeout,
    /// The session was older than `max_connection_duration`.
    MaxDuration,
    /// A request was delivered and no answer byte came for `first_response_timeout`.
    FirstResponseTimeout,
    /// The upstream's kernel completed the connect, its application never accepted (accept
    /// queue full), and that did not change for `first_response_timeout` or `detect_within`,
    /// or until its kernel gave up.
    UpstreamPhantom,
    /// The upstream did not answer the connect within `connect_timeout`.
    ConnectTimeout,
    /// The upstream refused the connection.
    ConnectRefused,
    /// The upstream could not be reached or its name not be resolved.
    ConnectFailed,
    /// The client aborted while the upstream was being connected, or in the queue.
    ConnectCancelled,
    /// The session waited longer than `queue_timeout` for a free place.
    QueueTimeout,
    /// There was no place for the new client, and none could be made; or it waited for one, and
    /// descriptors or memory ran short.
    Rejected,
    /// Ended to make room for a new client (`on_full: replace`).
    Replaced,
    /// Ended under pressure of a limit (`on_full: shed`, descriptors, memory).
    Shed,
    /// Still open when `drain.timeout` ran out.
    Drain,
    /// Ended by an operator.
    Admin,
    /// A local failure of pulsegate or its host (descriptors, memory).
    LocalError,
    /// The header of the PROXY protocol was malformed, cut, or not there within `proxy_protocol_timeout`.
    ProxyProtocolError,
    /// The client said FIN and had sent nothing; its service was not dialled.
    NoBytes,
    /// The client sent nothing for `first_byte_timeout`.
    FirstByteTimeout,
    /// Checks found its endpoint down (`check.on_down: close`).
    UpstreamDown,
    /// The client's connection ended by FIN before its TLS did (`close_notify`): what it sent is cut.
    DownstreamTruncated,
    /// The service's connection ended by FIN before its TLS did.
    UpstreamTruncated,
    /// There was no TLS with the client, or it broke.
    DownstreamTlsFailed,
    /// There was no TLS with the service, or it broke.
    UpstreamTlsFailed,
    /// The client's kernel answers, but the client did not answer a heartbeat.
    DownstreamUnresponsive,
    /// The service's kernel answers, but the service did not answer a heartbeat.
    UpstreamUnresponsive,
}

impl CloseReason {
    /// The reason for a leg proven dead.
    #[must_use]
    pub const fn dead(leg: Leg) -> Self {
        [Self::DownstreamDead, Self::UpstreamDead][leg as usize]
    }

    /// The reason for a leg that was reset by its peer.
    #[must_use]
    pub const fn reset(leg: Leg) -> Self {
        [Self::DownstreamReset, Self::UpstreamReset][leg as usize]
    }

    /// The reason for a leg that stalled for too long.
    #[must_use]
    pub const fn stalled(leg: Leg) -> Self {
        [Self::DownstreamStalled, Self::UpstreamStalled][leg as usize]
    }

    /// The reason for a leg on which data was not delivered for too long.
    #[must_use]
    pub const fn undelivered(leg: Leg) -> Self {
        [Self::DownstreamUndelivered, Self::UpstreamUndelivered][leg as usize]
    }

    /// The reason for a leg whose live peer sent no payload for too long.
    #[must_use]
    pub const fn silent(leg: Leg) -> Self {
        [Self::DownstreamSilent, Self::UpstreamSilent][leg as usize]
    }

    /// The reason for a leg whose connection ended before its TLS did.
    #[must_use]
    pub const fn truncated(leg: Leg) -> Self {
        [Self::DownstreamTruncated, Self::UpstreamTruncated][leg as usize]
    }

    /// The reason for a leg whose TLS failed.
    #[must_use]
    pub const fn tls_failed(leg: Leg) -> Self {
        [Self::DownstreamTlsFailed, Self::UpstreamTlsFailed][leg as usize]
    }

    /// The reason for a leg whose application answers no heartbeat.
    #[must_use]
    pub const fn unresponsive(leg: Leg) -> Self {
        [Self::DownstreamUnresponsive, Self::UpstreamUnresponsive][leg as usize]
    }

    /// The leg that was proven dead, if that is the reason.
    #[must_use]
    pub const fn dead_leg(self) -> Option<Leg> {
        match self {
            Self::DownstreamDead => Some(Leg::Downstream),
            Self::UpstreamDead => Some(Leg::Upstream),
            _ => None,
        }
    }

    /// The leg whose peer was found gone or hanging, if that is the reason.
    #[must_use]
    pub const fn found_leg(self) -> Option<Leg> {
        match self {
            Self::DownstreamDead
            | Self::DownstreamStalled
            | Self::DownstreamUndelivered
            | Self::DownstreamSilent
            | Self::DownstreamUnresponsive => Some(Leg::Downstream),
            Self::UpstreamDead
            | Self::UpstreamStalled
            | Self::UpstreamUndelivered
            | Self::UpstreamSilent
            | Self::UpstreamUnresponsive
            | Self::UpstreamPhantom
            | Self::FirstResponseTimeout => Some(Leg::Upstream),
            _ => None,
        }
    }

    /// Whether the service failed a session that was connected. An RST is not counted, nor a FIN without the
    /// end of TLS: some services end each session so.
    #[must_use]
    pub const fn blames_upstream(self) -> bool {
        matches!(self.found_leg(), Some(Leg::Upstream)) || matches!(self, Self::UpstreamTlsFailed)
    }

    /// Whether the service broke a session off, and nobody can tell whether by intent.
    #[must_use]
    pub const fn is_broken_off(self) -> bool {
        matches!(self, Self::UpstreamReset | Self::UpstreamTruncated)
    }

    /// Who ended the session: `downstream`, `upstream`, `proxy`, or `peers` where both finished.
    #[must_use]
    pub const fn initiator(self) -> &'static str {
        match self {
            Self::Finished => "peers",
            Self::DownstreamReset
            | Self::ConnectCancelled
            | Self::DownstreamDead
            | Self::ProxyProtocolError
            | Self::NoBytes
            | Self::DownstreamTruncated
            | Self::DownstreamTlsFailed => "downstream",
            Self::UpstreamReset
            | Self::UpstreamPhantom
            | Self::UpstreamDead
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed
            | Self::UpstreamTruncated
            | Self::UpstreamTlsFailed => "upstream",
            _ => "proxy",
        }
    }
}

/// How the legs are to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseHow {
    /// The named leg is gone: RST on it at once; on the other leg RST after what was received
    /// has been delivered (bounded).
    AbortAfterFlush(Leg),
    /// What was received is delivered to both (bounded), then RST on both legs, or FIN where
    /// `on_end` says so.
    Flush,
    /// RST on both legs at once.
    Abort,
}

impl CloseHow {
    /// Whether it leaves the peers less time.
    #[must_use]
    pub const fn is_harsher_than(self, other: Self) -> bool {
        self.harshness() > other.harshness()
    }

    const fn harshness(self) -> u8 {
        match self {
            Self::AbortAfterFlush(_) => 0,
            Self::Flush => 1,
            Self::Abort => 2,
        }
    }
}
