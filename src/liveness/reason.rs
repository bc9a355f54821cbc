//! The closed vocabulary: legs, evidence, close reasons. Logs, metrics, the admin API and the
//! docs print exactly these words.

/// One of the two TCP connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Leg {
    /// Client to pulsegate.
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

    /// The word printed everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        }
    }
}

/// Defines a closed enum together with its printed words, so that neither can miss the other.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every word, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word printed in logs, metrics, the admin API and the docs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use vocabulary;

vocabulary! {
    /// What proved that a half-open peer is gone.
    Evidence {
        /// Keepalive probes on a quiet connection stayed unanswered.
        Keepalive = "keepalive",
        /// Data in flight was retransmitted and never acknowledged.
        Retransmit = "retransmit",
        /// The peer's window was closed and window probes stayed unanswered.
        WindowProbe = "window_probe",
        /// A suspected peer answered a question with RST: it had forgotten the connection.
        Reset = "reset",
        /// The kernel gave the connection up by itself (ETIMEDOUT).
        KernelTimeout = "kernel_timeout",
        /// The network says that the host cannot be reached (EHOSTUNREACH, ENETUNREACH).
        Unreachable = "unreachable",
    }
}

vocabulary! {
    /// Why a session ended. Chosen once for each session.
    CloseReason {
        /// Both sides said FIN and everything was delivered.
        Finished = "finished",
        /// The client aborted (RST).
        DownstreamReset = "downstream_reset",
        /// The legacy service aborted (RST).
        UpstreamReset = "upstream_reset",
        /// The client was half-open: proven gone.
        DownstreamDead = "downstream_dead",
        /// The legacy service was half-open: proven gone.
        UpstreamDead = "upstream_dead",
        /// The client's kernel answers, but the client took no data for `stall_timeout`.
        DownstreamStalled = "downstream_stalled",
        /// The service's kernel answers, but the service took no data for `stall_timeout`.
        UpstreamStalled = "upstream_stalled",
        /// The client was heard, but data sent to it stayed unacknowledged for `delivery_timeout`.
        DownstreamUndelivered = "downstream_undelivered",
        /// The service was heard, but data sent to it stayed unacknowledged for `delivery_timeout`.
        UpstreamUndelivered = "upstream_undelivered",
        /// No byte passed for `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// One side had said FIN and no byte passed for `half_close_timeout`.
        HalfCloseTimeout = "half_close_timeout",
        /// The session was older than `max_connection_duration`.
        MaxDuration = "max_duration",
        /// A request was delivered and no answer byte came for `first_response_timeout`.
        FirstResponseTimeout = "first_response_timeout",
        /// The upstream's kernel completed the connect, its application never accepted (accept
        /// queue full), and that did not change for `first_response_timeout` or `detect_within`,
        /// or until its kernel gave up.
        UpstreamPhantom = "upstream_phantom",
        /// The upstream did not answer the connect within `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// The upstream refused the connection.
        ConnectRefused = "connect_refused",
        /// The upstream could not be reached or its name not be resolved.
        ConnectFailed = "connect_failed",
        /// The client aborted while the upstream was being connected, or in the queue.
        ConnectCancelled = "connect_cancelled",
        /// The session waited longer than `queue_timeout` for a free place.
        QueueTimeout = "queue_timeout",
        /// There was no place for the newcomer, and none could be made; or it waited for one, and
        /// descriptors or memory ran short.
        Rejected = "rejected",
        /// Ended to make room for a newcomer (`on_full: replace`).
        Replaced = "replaced",
        /// Ended under pressure of a limit (`on_full: shed`, descriptors, memory).
        Shed = "shed",
        /// Still open when `drain.timeout` ran out.
        Drain = "drain",
        /// Ended by an operator.
        Admin = "admin",
        /// A local failure of pulsegate or its host (descriptors, memory).
        LocalError = "local_error",
    }
}

impl CloseReason {
    /// The reason for a leg proven dead.
    #[must_use]
    pub const fn dead(leg: Leg) -> Self {
        match leg {
            Leg::Downstream => Self::DownstreamDead,
            Leg::Upstream => Self::UpstreamDead,
        }
    }

    /// The reason for a leg that was reset by its peer.
    #[must_use]
    pub const fn reset(leg: Leg) -> Self {
        match leg {
            Leg::Downstream => Self::DownstreamReset,
            Leg::Upstream => Self::UpstreamReset,
        }
    }

    /// The reason for a leg that stalled for too long.
    #[must_use]
    pub const fn stalled(leg: Leg) -> Self {
        match leg {
            Leg::Downstream => Self::DownstreamStalled,
            Leg::Upstream => Self::UpstreamStalled,
        }
    }

    /// The reason for a leg on which data was not delivered for too long.
    #[must_use]
    pub const fn undelivered(leg: Leg) -> Self {
        match leg {
            Leg::Downstream => Self::DownstreamUndelivered,
            Leg::Upstream => Self::UpstreamUndelivered,
        }
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

    /// Who ended the session: `downstream`, `upstream`, `proxy`, or `peers` where both finished.
    #[must_use]
    pub const fn initiator(self) -> &'static str {
        match self {
            Self::Finished => "peers",
            Self::DownstreamReset | Self::ConnectCancelled | Self::DownstreamDead => "downstream",
            Self::UpstreamReset
            | Self::UpstreamPhantom
            | Self::UpstreamDead
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed => "upstream",
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
