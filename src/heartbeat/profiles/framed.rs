//! Protocols whose messages say all at their beginning: a table for each, one conversation for all.

use std::fmt;

use crate::heartbeat::profile::{Manner, OpaqueCause, Phase, Profile, Read};

/// What one protocol has of its own.
pub(super) trait Table: fmt::Debug + Send + Sync {
    const MANNER: Manner;
    /// Where its conversation begins.
    const FIRST: Stage;

    /// The length of the message that begins so.
    fn length(&self, head: &[u8]) -> Read;

    /// What it is to the conversation. Its length is known.
    fn sense(&self, head: &[u8], way: Way) -> Sense;

    fn question(&self, token: u64) -> Vec<u8>;

    /// By which the answer to a question is known; without ids all are the same.
    fn id(&self, _token: u64) -> u32 {
        0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Told,
    Heard,
}

/// What a message is to the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    /// Too little to tell.
    More,
    /// Neither of what follows.
    Plain,
    /// Something that the other end answers.
    Request,
    /// The answer to a request.
    Reply,
    /// A request. Until it is granted, nothing may be asked.
    Opens,
    /// The answer that grants it.
    Opened,
    /// A reply such as our questions have, with this id.
    Answer(u32),
    /// Nothing may be asked any more, unless it is opened again.
    Closes,
    Opaque(OpaqueCause),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Any exchange opens it.
    Fresh,
    /// A request of its own opens it,
    Closed,
    /// once it is granted.
    Opening,
    Open,
}

/// The conversation.
#[derive(Debug)]
pub(super) struct Framed<T> {
    table: T,
    stage: Stage,
    /// Requests that were told and not answered.
    told: u64,
    /// The same, of those that were heard.
    heard: u64,
}

impl<T: Table> Framed<T> {
    pub(super) const fn new(table: T) -> Self {
        Self {
            table,
            stage: T::FIRST,
            told: 0,
            heard: 0,
        }
    }

    /// A message of this sense and length went this way.
    fn follow(&mut self, sense: Sense, way: Way, length: u64) -> Read {
        let (own, others) = match way {
            Way::Told => (&mut self.told, &mut self.heard),
            Way::Heard => (&mut self.heard, &mut self.told),
        };
        match sense {
            Sense::More => return Read::More,
            Sense::Opaque(cause) => return Read::Opaque(cause),
            Sense::Plain => {}
            Sense::Closes => self.stage = Stage::Closed,
            Sense::Request => *own += 1,
            Sense::Opens => {
                *own += 1;
                self.stage = Stage::Opening;
            }
            // Only their number tells such answers apart.
            _ if *others == 0 && T::MANNER == Manner::InTurn => {
                return Read::Opaque(OpaqueCause::Unsolicited);
            }
            Sense::Reply | Sense::Opened | Sense::Answer(_) => {
                self.stage = match self.stage {
                    Stage::Opening if sense == Sense::Opened => Stage::Open,
                    Stage::Fresh if *others > 0 => Stage::Open,
                    stage => stage,
                };
                *others = others.saturating_sub(1);
            }
        }
        Read::End(length)
    }
}

impl<T: Table> Profile for Framed<T> {
    fn told(&mut self, head: &[u8]) -> Read {
        match self.table.length(head) {
            Read::End(length) => self.follow(self.table.sense(head, Way::Told), Way::Told, length),
            other => other,
        }
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let length = match self.table.length(head) {
            Read::End(length) => length,
            other => return other,
        };
        let sense = self.table.sense(head, Way::Heard);
        if let Sense::Answer(id) = sense
            && let Some(token) = due.iter().find(|token| self.table.id(**token) == id)
        {
            return Read::Mine {
                token: *token,
                length,
            };
        }
        self.follow(sense, Way::Heard, length)
    }

    fn phase(&self) -> Phase {
        match self.stage {
            Stage::Open if self.told > 0 || self.heard > 0 => Phase::Waiting,
            Stage::Open => Phase::Idle,
            Stage::Fresh | Stage::Closed | Stage::Opening => Phase::Starting,
        }
    }

    fn manner(&self) -> Manner {
        T::MANNER
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        self.table.question(token)
    }
}
