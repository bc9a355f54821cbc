//! What an observation leads to.

use strum::{EnumString, IntoStaticStr, VariantNames};

use super::reason::{CloseHow, CloseReason, Evidence};
use super::time::{Span, Time};

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Condition {
    /// Heard within the probe interval.
    #[default]
    Alive,
    /// Nothing heard lately; no judgement.
    Quiet,
    /// A question has been unanswered for longer than expected: half-open, awaiting the verdict.
    Suspect,
    /// The peer's kernel answers, its application takes no data: the window is closed, or too small.
    Stalled,
    /// The peer is heard, its window is open, and data sent to it stays unacknowledged: larger
    /// segments, or all of one direction, are lost on the way.
    Undelivered,
    /// The upstream's kernel completed the connect and took no byte since: its application never
    /// accepted, because its accept queue was full.
    Phantom,
}

/// What to do to a socket after an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the kernel send a keepalive probe now.
    ProbeNow,
    /// The peer has answered: return to the normal probe interval.
    ProbeNormally,
    /// The peer has said FIN and is owed nothing: send it no keepalive probe any more.
    StopProbes,
    /// It is owed something again: send it keepalive probes again.
    ResumeProbes,
}

/// What one observation of one connection led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegVerdict {
    /// What to do to the socket.
    pub action: Option<Action>,
    /// The longest gap that the kernel is to leave between two of its questions, where that is to be
    /// set (`TCP_RTO_MAX_MS`).
    pub longest_gap: Option<Span>,
    /// What proves that the peer is gone.
    pub gone: Option<Evidence>,
    /// Observe again at this time, always later than this observation. `None`: the connection is over.
    pub next: Option<Time>,
}

/// The decision to end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Why.
    pub reason: CloseReason,
    /// How each leg is ended.
    pub how: CloseHow,
    /// What proved it, where a peer was found gone.
    pub evidence: Option<Evidence>,
    /// Since the last sign of life of the leg that was found gone.
    pub silent_for: Span,
}

/// What one observation of a session led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Per leg, what to do to the socket.
    pub actions: [Option<Action>; 2],
    /// Per leg, as in [`LegVerdict`].
    pub longest_gap: [Option<Span>; 2],
    /// End the session.
    pub close: Option<Close>,
    /// Observe again at this time, always later than this observation.
    pub next: Time,
}

/// What will end the session next if nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The reason it would end with.
    pub reason: CloseReason,
    /// When.
    pub at: Time,
}

impl Timer {
    /// One that runs `since` then, where its limit is set.
    pub(super) fn new(
        reason: CloseReason,
        since: Option<Time>,
        limit: Option<Span>,
    ) -> Option<Self> {
        let at = since? + limit?;
        Some(Self { reason, at })
    }
}

/// A leg as shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegView {
    /// What is known of the peer.
    pub condition: Condition,
    /// When it last gave a sign of life.
    pub last_heard: Time,
}

/// How a leg failed, as its socket reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ECONNRESET, EPIPE: the peer sent RST.
    Reset,
    /// ETIMEDOUT: the kernel gave up.
    TimedOut,
    /// EHOSTUNREACH, ENETUNREACH and the like.
    Unreachable,
    /// FIN came before the layer of the leg (TLS) was at its end.
    Truncated,
    /// The layer of the leg cannot go on: the peer said what it must not, or that it failed.
    Layer,
    /// Anything else (ENOMEM, EPROTO): the peer has no part in it.
    Local,
}
