//! What a protocol must say about itself.

use std::fmt;
use strum::{IntoStaticStr, VariantArray};

/// Bytes of a unit that a profile may look at. Nothing longer is held back.
pub const HEAD: usize = 512;

/// One protocol, as it is spoken on one connection.
pub trait Profile: fmt::Debug + Send + Sync {
    /// The next unit of what the peer is told begins so.
    fn told(&mut self, head: &[u8]) -> Read;

    /// The next unit of what the peer says begins so. `due`: the questions whose answer it may be, the oldest
    /// first; empty inside a message, and in one that began before the question.
    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read;

    /// Where the conversation stands. Whether a message is incomplete is not asked here.
    fn phase(&self) -> Phase;

    /// How answers are told from the rest.
    fn manner(&self) -> Manner;

    /// Whether the peer works on one request at a time, and confuses two. What it is told next then waits until
    /// the question was answered or given up.
    fn is_sequential(&self) -> bool {
        false
    }

    /// The question. It will be written between two messages.
    fn question(&mut self, token: u64) -> Vec<u8>;
}

/// What the first bytes of a unit say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Too little to tell. Nothing was changed.
    More,
    /// A unit of so many bytes (at least one), and the message goes on after it.
    Part(u64),
    /// The same, and the message ends with it.
    End(u64),
    /// The whole message is the answer to a question.
    Mine {
        /// Which.
        token: u64,
        /// Its length, at least one.
        length: u64,
    },
    /// From here on nothing is understood.
    Opaque(OpaqueCause),
}

/// Where a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No complete exchange was seen; or nothing may be asked in any manner, as while a login goes on.
    Starting,
    /// The peer owes nothing.
    Idle,
    /// The peer owes an answer, or must not be asked now.
    Waiting,
}

/// How answers are told from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// By their place: a question is asked only while the peer owes nothing.
    InTurn,
    /// By an id: a question may stand between a request and its answer.
    Interleaved,
    /// There are none. The question keeps the path open and proves nothing.
    OneWay,
}

/// Why a conversation is not followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OpaqueCause {
    /// Something else stood where the answer must stand: the profile is wrong.
    Misfit,
    /// The bytes are no message of this protocol.
    Malformed,
    /// The peer answered more than it was asked.
    Unsolicited,
    /// An upgrade to TLS, to another protocol, or compression.
    Changed,
    /// The connection became a stream of another kind (replication, monitoring).
    Streaming,
    /// A part of the protocol that the profile does not follow.
    Unsupported,
    /// The peer has ended its stream.
    Ended,
}
