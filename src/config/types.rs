//! What the operator asked for, checked, with every default filled in.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::liveness::{Policy, Span};

/// Defines a choice together with its words, so that the key table cannot miss one.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every accepted word, in declaration order.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];

            /// The word in the configuration.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The choice that a word stands for.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// Everything pulsegate needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// At least one; addresses and names are unique.
    pub listeners: Vec<ListenerConfig>,
    /// The HTTP endpoint for metrics and administration; `None` is off.
    pub admin: Option<Admin>,
    /// Limits of the whole process.
    pub limits: ProcessLimits,
    /// How the process ends.
    pub drain: Drain,
    /// What is written to standard output.
    pub log: Log,
    /// How bytes are moved.
    pub relay: Relay,
    /// Data-plane threads; `None` chooses by the processors that the process may use.
    pub workers: Option<NonZeroUsize>,
}

/// One address on which clients are accepted, and where they are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Label of its metrics. Letters, digits, `-`, `_`, `.`; at most 63.
    pub name: String,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Length of the accept queue; the kernel cuts it to `net.core.somaxconn`.
    pub backlog: u32,
    /// The legacy service.
    pub upstream: Upstream,
    /// Liveness limits.
    pub liveness: Liveness,
    /// Admission limits.
    pub limits: Limits,
}

/// How bytes are moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Whether the source of a bulk stream waits for a low-water mark.
    pub low_water: bool,
}

/// The legacy service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub address: UpstreamAddress,
    /// From 1 ms to 5 min.
    pub connect_timeout: Duration,
    /// How often a DNS name is looked up; from 1 s to 1 h.
    pub resolve_interval: Duration,
}

/// `host:port`; the host is an IP address or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A literal address.
    Socket(SocketAddr),
    /// A DNS name.
    Name {
        /// Host name.
        host: String,
        /// TCP port.
        port: u16,
    },
}

/// Liveness limits; `None` is off (`0s`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// D: a dead peer is found within this time. From 2 s.
    pub detect_within: Duration,
    /// I: a quiet peer is asked this often. Whole seconds from 1 s, below `detect_within`.
    pub probe_interval: Duration,
    /// Whether keepalive asks the peer of each leg; on by default.
    pub probes: [bool; 2],
    /// Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Default 60 s.
    pub half_close_timeout: Option<Duration>,
    /// Off by default.
    pub stall_timeout: Option<Duration>,
    /// Default 2 min.
    pub delivery_timeout: Option<Duration>,
    /// Off by default.
    pub first_response_timeout: Option<Duration>,
    /// Off by default.
    pub max_connection_duration: Option<Duration>,
    /// What the live leg sees when the other one was found dead.
    pub on_dead: OnDead,
    /// What both legs see when pulsegate itself ends the session.
    pub on_end: OnEnd,
}

words! {
    /// What both legs see when a limit, an operator or the drain ends the session.
    OnEnd {
        /// RST, after what was received was delivered: a cut stream is never taken for a whole one.
        Reset = "reset",
        /// FIN, and RST after a second.
        Close = "close",
    }
}

words! {
    /// What the live leg sees when the other one was found dead or was reset.
    OnDead {
        /// RST: the application sees an abort and never takes a cut stream for a whole one.
        Reset = "reset",
        /// FIN: for applications that treat ECONNRESET badly.
        Close = "close",
    }
}

/// Admission limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once on this listener; `None` is bounded by descriptors only.
    pub max_connections: Option<u32>,
    /// What a newcomer meets when `max_connections` is reached.
    pub on_full: OnFull,
    /// How long a newcomer may wait for a place; `None` is for ever.
    pub queue_timeout: Option<Duration>,
    /// What becomes of a client that says FIN while it waits.
    pub abandoned: Abandoned,
    /// Pause between the end of a session and the next one in its place.
    pub reconnect_delay: Duration,
}

words! {
    /// What becomes of a client that sends something and says FIN while it waits for a place.
    Abandoned {
        /// What it sent is delivered when its turn comes.
        Serve = "serve",
        /// It leaves the queue, and what it sent is thrown away.
        Drop = "drop",
    }
}

words! {
    /// What a newcomer meets when the listener is full.
    OnFull {
        /// It is reset.
        Reject = "reject",
        /// It waits for a place.
        Queue = "queue",
        /// The sessions inside are asked at once; a dead one makes room, else it waits.
        Verify = "verify",
        /// The longest quiet session makes room.
        Replace = "replace",
        /// As `verify`; then half-closed, mute and long quiet sessions make room, in this order.
        /// It is reset when all are active.
        Shed = "shed",
    }
}

/// The HTTP endpoint for metrics and administration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens. Mutating verbs answer only when this is a loopback address.
    pub address: SocketAddr,
}

/// Limits of the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessLimits {
    /// From 95 % of it on, sessions are shed.
    pub memory: MemoryLimit,
}

/// How much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// As much as the control group allows; no limit where it has none.
    Auto,
    /// No limit.
    Off,
    /// So many bytes for the process alone.
    Bytes(u64),
}

impl MemoryLimit {
    /// The words that stand for no size.
    pub const WORDS: &'static [&'static str] = &["auto", "off"];

    /// The choice that a word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

impl std::fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Bytes(bytes) => f.write_str(&super::size::show(*bytes)),
        }
    }
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Between "not ready" and the end of accepting; default 0 s.
    pub delay: Duration,
    /// How long sessions may take to finish; default 25 s.
    pub timeout: Duration,
}

/// What is written to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// Text or JSON lines.
    pub format: LogFormat,
    /// One line for each session when it ends.
    pub access: bool,
}

words! {
    /// The least severe level that is written.
    LogLevel {
        /// What needs a person.
        Error = "error",
        /// What is wrong and survivable.
        Warn = "warn",
        /// What changed.
        Info = "info",
        /// What was decided, and why.
        Debug = "debug",
    }
}

words! {
    /// The form of a log line.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            detect_within: Duration::from_secs(30),
            probe_interval: Duration::from_secs(6),
            probes: [true; 2],
            idle_timeout: Some(Duration::from_secs(3600)),
            half_close_timeout: Some(Duration::from_secs(60)),
            stall_timeout: None,
            delivery_timeout: Some(Duration::from_secs(120)),
            first_response_timeout: None,
            max_connection_duration: None,
            on_dead: OnDead::Reset,
            on_end: OnEnd::Reset,
        }
    }
}

impl Liveness {
    /// The probe interval that follows from a budget: a fifth of it in whole seconds (the kernel's
    /// keepalive timer has no finer unit), at least 1 s.
    #[must_use]
    pub const fn default_probe_interval(detect_within: Duration) -> Duration {
        let fifth = detect_within.as_secs() / 5;
        Duration::from_secs(if fifth == 0 { 1 } else { fifth })
    }

    /// How long a leg is quiet before the kernel asks it (`TCP_KEEPIDLE`).
    #[must_use]
    pub fn keepalive_idle(&self) -> Duration {
        self.policy().keepalive_idle().into()
    }

    /// The same limits for the pure machine.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            detect_within: self.detect_within.into(),
            probe_interval: self.probe_interval.into(),
            probes: self.probes,
            idle_timeout: self.idle_timeout.map(Span::from),
            half_close_timeout: self.half_close_timeout.map(Span::from),
            stall_timeout: self.stall_timeout.map(Span::from),
            delivery_timeout: self.delivery_timeout.map(Span::from),
            first_response_timeout: self.first_response_timeout.map(Span::from),
            max_duration: self.max_connection_duration.map(Span::from),
        }
    }
}

impl UpstreamAddress {
    /// The literal address, if it is one.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Name { .. } => None,
        }
    }

    /// The DNS name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Socket(_) => None,
            Self::Name { host, .. } => Some(host),
        }
    }
}

impl std::fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
