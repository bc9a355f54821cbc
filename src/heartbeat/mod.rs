//! Asks the application at one end of a live connection, inside that connection. Pure: bytes in, bytes out;
//! no clock, no I/O.
//!
//! A [`Heartbeat`] is the conversation with the peer that is asked. It follows what that peer is *told* (all
//! that is written to it) and what it *says*, finds the places between two messages, puts a question there,
//! and takes exactly the answer out of what is heard. Both ends see the bytes that they would have seen
//! without it. When to ask, how long to wait and what silence means is decided elsewhere.
//!
//! # How it is driven
//! - Everything that is written to the peer passes [`Heartbeat::told`], in order, when it is written.
//! - Everything that is read from it passes [`Heartbeat::heard`], which says what is forwarded.
//! - [`Heartbeat::ask`] gives the question, or nothing where none may be asked. It is written to the peer at
//!   once and whole: what the peer is told next stands behind it. It does not pass `told`.
//! - While [`Heartbeat::must_wait`], nothing may be written to the peer: it is woken up by the next `heard`, or
//!   by `give_up`.
//! - While the state is [`State::Asked`] the answer is waited for. [`Heartbeat::give_up`] ends that. A late
//!   answer is still taken out.
//! - Where the peer's stream ends, [`Heartbeat::finish`] gives back what is held.
//!
//! Whatever does not fit makes the conversation opaque for good: all bytes pass, nothing is asked. It is never
//! an error and never a reason to close.
//!
//! # How a profile is written
//! A [`Profile`] knows one protocol. Its file in `profiles` has about a hundred lines:
//! 1. **Units.** [`Profile::told`] and [`Profile::heard`] get the first bytes of the next unit, at most
//!    [`HEAD`], and say how long the unit is: [`Read::Part`] of a message, or the [`Read::End`] of one. The
//!    rest of it is counted, never looked at. With too few bytes they say [`Read::More`], *and change nothing*:
//!    they are asked again, with more of the same bytes. [`frame`] has what is common.
//! 2. **Phase.** [`Profile::phase`]: `Starting` until a complete exchange was seen both ways; `Waiting` while
//!    the peer owes an answer or is in a state in which a question would do harm; else `Idle`.
//! 3. **Manner.** `InTurn` where answers have no id; `Interleaved` where they have; `OneWay` where there is
//!    none.
//! 4. **Question and answer.** [`Profile::question`] makes the bytes from a token. `heard` gets the tokens that
//!    are still to be answered, the oldest first, where a message begins. If the message is the answer to one
//!    of them it is [`Read::Mine`]. If it is another one that may come (a push, another id), it is a unit like
//!    any other, and the wait goes on. If it stands where the answer must stand, it is
//!    [`OpaqueCause::Misfit`]. While the answer may still be there, `More` holds the bytes back; without
//!    tokens nothing is ever held back.
//! 5. **Doubt is opaque.** What is not understood is [`Read::Opaque`], with its cause. If the peer was *told*
//!    what makes it so, an answer that is still due is taken out before the profile is dropped.
//! 6. **Shapes.** Where the first bytes of a message say all of it, a `profiles::framed::Table` is enough.
//! 7. A variant of [`profiles::Protocol`], a line in [`profiles::Protocol::profile`], and the property test of
//!    `tests::model` with exchanges of that protocol.

pub mod frame;
pub mod profiles;

mod cursor;
mod profile;
#[cfg(test)]
mod tests;

pub use profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};

use strum::IntoStaticStr;

use cursor::Cursor;

/// Questions that may be unanswered at once. The next one waits for an answer.
const MOST_UNANSWERED: usize = 8;

/// The conversation with one peer.
#[derive(Debug)]
pub struct Heartbeat {
    profile: Box<dyn Profile>,
    told: Cursor,
    heard: Cursor,
    /// Tokens of the questions whose answers are to be taken out, the oldest first.
    due: Vec<u64>,
    /// The newest question, while its answer is waited for.
    waited_for: Option<u64>,
    /// Of a question without an answer: whether the peer has owed one to somebody else ever since.
    owed_before: Option<bool>,
    opaque: Option<OpaqueCause>,
    counts: Counts,
}

/// What can be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum State {
    /// No complete exchange was seen yet, or none since the last login began.
    Starting,
    /// A question may be asked.
    Ready,
    /// The peer owes an answer to somebody else, or is in the middle of a message.
    Busy,
    /// A question was asked, and its answer is waited for.
    Asked,
    /// For good: nothing is asked any more.
    Opaque(OpaqueCause),
}

/// What becomes of bytes that were heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// They are forwarded as they are.
    All,
    /// What was appended to `out` is forwarded instead, which may be nothing.
    Instead,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions.
    pub asked: u64,
    /// Answers, the late ones included.
    pub answered: u64,
    /// Answers to questions that were given up.
    pub late: u64,
}

impl Heartbeat {
    /// A conversation that begins with the first byte of the connection.
    #[must_use]
    pub fn new(profile: Box<dyn Profile>) -> Self {
        Self {
            profile,
            told: Cursor::default(),
            heard: Cursor::default(),
            due: Vec::new(),
            waited_for: None,
            owed_before: None,
            opaque: None,
            counts: Counts::default(),
        }
    }

    /// The peer is told `bytes`, by whoever speaks to it.
    pub fn told(&mut self, bytes: &[u8]) {
        if self.opaque.is_some() {
            return;
        }
        let profile = &mut self.profile;
        let (_, opaque) = self.told.walk(
            bytes,
            &mut Vec::new(),
            |head, _| profile.told(head),
            &mut Vec::new(),
        );
        // What is due is still taken out: the peer answers it before it comes to these bytes.
        self.opaque = opaque;
    }

    /// The peer says `bytes`.
    pub fn heard(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Heard {
        if self.opaque.is_some() && self.due.is_empty() {
            return self.heard.release(bytes, out);
        }
        let before = self.due.len();
        let profile = &mut self.profile;
        let (heard, opaque) = self.heard.walk(
            bytes,
            &mut self.due,
            |head, due| profile.heard(head, due),
            out,
        );
        self.count_answers(before - self.due.len());
        self.owed_before = self.owed_before.map(|owed| owed && self.is_at_work());
        if opaque.is_some() {
            self.opaque = self.opaque.or(opaque);
            self.due.clear();
            self.waited_for = None;
        }
        heard
    }

    /// What can be done now.
    #[must_use]
    pub fn state(&self) -> State {
        if let Some(cause) = self.opaque {
            return State::Opaque(cause);
        }
        if self.waited_for.is_some() {
            return State::Asked;
        }
        // What the peer still says may be the rest of an answer.
        let in_turn = self.profile.manner() == Manner::InTurn;
        let is_between = self.told.is_between() && (self.heard.is_between() || !in_turn);
        match self.profile.phase() {
            Phase::Starting => State::Starting,
            _ if !is_between || self.due.len() >= MOST_UNANSWERED => State::Busy,
            Phase::Waiting if in_turn => State::Busy,
            Phase::Idle | Phase::Waiting => State::Ready,
        }
    }

    /// Whether [`Self::ask`] gives a question.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        self.state() == State::Ready
    }

    /// The question, to be written to the peer before anything else. The token is random: an answer is told
    /// by it from what others say.
    #[must_use]
    pub fn ask(&mut self, token: u64) -> Option<Vec<u8>> {
        if !self.may_ask() {
            return None;
        }
        let question = self.profile.question(token);
        self.counts.asked += 1;
        if self.proves() {
            let owes = self.is_at_work();
            self.owed_before.get_or_insert(owes);
            self.due.push(token);
            self.waited_for = Some(token);
        }
        Some(question)
    }

    /// Whether the peer must not be told anything: it is still asked, and works on one request at a time.
    #[must_use]
    pub fn must_wait(&self) -> bool {
        self.waited_for.is_some() && self.profile.is_sequential()
    }

    /// The answer is no longer waited for. If it comes, it is taken out.
    pub fn give_up(&mut self) {
        self.waited_for = None;
    }

    /// The peer says nothing more: what is held is no answer. It is appended to `out`.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.opaque = self.opaque.or(Some(OpaqueCause::Ended));
        self.due.clear();
        self.waited_for = None;
        let _ = self.heard.release(&[], out);
    }

    /// Whether a question has an answer.
    #[must_use]
    pub fn proves(&self) -> bool {
        self.profile.manner() != Manner::OneWay
    }

    /// Whether both directions stand between two messages and the peer owes nothing: the connection can end
    /// here without cutting anything.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.opaque.is_none()
            && self.due.is_empty()
            && self.told.is_between()
            && self.heard.is_between()
            && self.profile.phase() == Phase::Idle
    }

    /// Whether the peer owes an answer to somebody else. After a question: one that it owed before, since what it
    /// was told later excuses no silence.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.owed_before.unwrap_or_else(|| self.is_at_work())
    }

    fn is_at_work(&self) -> bool {
        self.profile.phase() == Phase::Waiting
    }

    /// Bytes that are held back, as the beginning of what may be an answer: fewer than [`HEAD`].
    #[must_use]
    pub fn held(&self) -> usize {
        self.heard.held()
    }

    /// What happened so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    fn count_answers(&mut self, answers: usize) {
        let in_time = usize::from(
            self.waited_for
                .is_some_and(|token| !self.due.contains(&token)),
        );
        if in_time > 0 {
            self.waited_for = None;
        }
        if answers > 0 {
            self.owed_before = self.waited_for.map(|_| self.is_at_work());
        }
        self.counts.answered += answers as u64;
        self.counts.late += (answers - in_time) as u64;
    }
}
