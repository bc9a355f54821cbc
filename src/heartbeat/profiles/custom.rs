//! A protocol that the operator describes: a framing, a question, and how its answer begins.
//!
//! Without an id each message that the peer is told must be answered by exactly one message, in order: then the
//! peer is asked while it has said as many as it was told, and the first message after a question is the answer.
//! What contradicts that (a push, a second message of an answer) ends the asking at once. Where one-way messages
//! are told it is not asked again.

use std::iter;

use crate::heartbeat::frame::{Frames, Framing};
use crate::heartbeat::profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};

/// What the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Of both directions.
    pub framing: Framing,
    /// The question: one message.
    pub send: Box<[u8]>,
    /// How its answer begins. Empty: there is none.
    pub expect: Box<[u8]>,
    /// Where an id stands, in `send` and in the answer: there the bytes of `send` and `expect` do not matter.
    /// In lines it is written in decimal digits, elsewhere in binary.
    pub id: Option<IdPlace>,
}

/// Where an id stands in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPlace {
    /// Its first byte.
    pub offset: usize,
    /// Its bytes, 1 to 16.
    pub size: usize,
}

impl Default for Description {
    fn default() -> Self {
        Self {
            framing: Framing::Line(Box::from(*b"\n")),
            send: Box::from(*b"PING\r\n"),
            expect: Box::from(*b"PONG\r\n"),
            id: None,
        }
    }
}

impl Description {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not, for the operator.
    pub fn check(&self) -> Result<(), &'static str> {
        match &self.framing {
            Framing::Line(delimiter) if delimiter.is_empty() || delimiter.len() > 8 => {
                return Err("a delimiter has 1 to 8 bytes");
            }
            Framing::Length(length) if !length.is_valid() => {
                return Err(
                    "size is 1 to 4, and the length stands within the header of at most 512 bytes",
                );
            }
            Framing::Fixed(0) => return Err("a message has one byte at least"),
            _ => {}
        }
        let is_one = self.send.len() <= HEAD
            && Frames::new(self.framing.clone()).peek(&self.send)
                == Read::End(self.send.len() as u64);
        if !is_one {
            return Err(
                "what is sent is not one whole message of this framing, of 512 bytes at most",
            );
        }
        if self.expect.len() > HEAD / 2 {
            return Err("what is expected has more than 256 bytes; its beginning is enough");
        }
        match self.id {
            Some(id) if !matches!(id.size, 1..=16) => Err("an id has 1 to 16 bytes"),
            Some(id) if id.offset.saturating_add(id.size) > self.send.len() => {
                Err("the id stands outside of what is sent")
            }
            Some(_) if self.expect.is_empty() => Err("an id needs something that is expected"),
            _ => Ok(()),
        }
    }

    fn id(&self, token: u64) -> Vec<u8> {
        let size = self.id.map_or(0, |id| id.size);
        if matches!(self.framing, Framing::Line(_)) {
            let digits = iter::successors(Some(token), |rest| Some(rest / 10));
            let digits: Vec<u8> = digits
                .take(size)
                .map(|rest| b'0' + (rest % 10) as u8)
                .collect();
            return digits.into_iter().rev().collect();
        }
        let mut id = iter::repeat_n(0, size.saturating_sub(8)).collect::<Vec<_>>();
        id.extend_from_slice(&token.to_be_bytes()[8_usize.saturating_sub(size)..]);
        // Far from the ids of both ends, which count from below.
        if let Some(first) = id.first_mut() {
            *first |= 0x80;
        }
        id
    }

    /// Whether the first bytes of a message are those of an answer; `None`: too few to tell.
    fn answers<'a>(&self, head: &[u8], due: &'a [u64]) -> Option<Option<&'a u64>> {
        let id = self.id.map_or(0..0, |id| id.offset..id.offset + id.size);
        let mut fixed = head.iter().zip(&self.expect).enumerate();
        if fixed.any(|(at, (is, expected))| is != expected && !id.contains(&at)) {
            return Some(None);
        }
        if head.len() < self.expect.len().max(id.end) {
            return None;
        }
        Some(
            due.iter()
                .find(|token| self.id(**token) == head[id.clone()]),
        )
    }
}

/// The conversation.
#[derive(Debug)]
pub struct Custom {
    description: Description,
    told: Frames,
    heard: Frames,
    /// Messages that were told and not answered.
    unanswered: u64,
    /// The first of them is the question itself, in the words of somebody else.
    is_same: bool,
    phase: Phase,
}

impl Custom {
    /// At the first byte.
    #[must_use]
    pub fn new(description: &Description) -> Self {
        Self {
            told: Frames::new(description.framing.clone()),
            heard: Frames::new(description.framing.clone()),
            description: description.clone(),
            unanswered: 0,
            is_same: false,
            phase: Phase::Starting,
        }
    }

    fn is_in_turn(&self) -> bool {
        self.manner() == Manner::InTurn
    }

    fn other(&mut self, head: &[u8]) -> Read {
        // A greeting stands before everything.
        let is_greeting = self.phase == Phase::Starting;
        if self.unanswered == 0 && self.is_in_turn() && !is_greeting {
            return Read::Opaque(OpaqueCause::Unsolicited);
        }
        let unit = self.heard.next(head);
        if matches!(unit, Read::End(_)) {
            // An exchange is complete once both have spoken.
            if self.unanswered > 0 {
                self.phase = Phase::Idle;
            }
            self.unanswered = self.unanswered.saturating_sub(1);
            self.is_same = false;
        }
        unit
    }
}

impl Profile for Custom {
    fn told(&mut self, head: &[u8]) -> Read {
        let unit = self.told.next(head);
        if let Read::End(n) = unit {
            if self.unanswered == 0 {
                let whole = usize::try_from(n).ok().and_then(|n| head.get(..n));
                self.is_same = whole == Some(&self.description.send);
            }
            self.unanswered += 1;
        }
        unit
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        if !due.is_empty() {
            let frame = self.heard.peek(head);
            match (self.description.answers(head, due), frame) {
                // It ends before an answer can.
                (None, Read::End(n)) if n <= head.len() as u64 => {}
                (None, Read::Opaque(_)) => {}
                (None, _) => return Read::More,
                // The answers to both are the same. Should there be only one of them, it is not ours.
                (Some(Some(_)), Read::End(_)) if self.is_same && self.is_in_turn() => {
                    return self.other(head);
                }
                (Some(Some(token)), Read::End(length)) => {
                    let token = *token;
                    return Read::Mine { token, length };
                }
                (Some(Some(_)), Read::Part(_) | Read::More) => return Read::More,
                _ => {}
            }
            if self.is_in_turn() {
                return Read::Opaque(OpaqueCause::Misfit);
            }
        }
        self.other(head)
    }

    fn phase(&self) -> Phase {
        match self.phase {
            Phase::Idle if self.unanswered > 0 => Phase::Waiting,
            phase => phase,
        }
    }

    fn manner(&self) -> Manner {
        match self.description.id {
            _ if self.description.expect.is_empty() => Manner::OneWay,
            Some(_) => Manner::Interleaved,
            None => Manner::InTurn,
        }
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        let mut question = self.description.send.to_vec();
        if let Some(IdPlace { offset, size }) = self.description.id {
            question[offset..offset + size].copy_from_slice(&self.description.id(token));
        }
        question
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::frame::{Length, Order};
    use crate::heartbeat::tests::model::{Ends, Exchange, Pace, moves, pieces, play, survive};

    const LENGTH: Length = Length {
        header: 4,
        offset: 0,
        size: 4,
        order: Order::Big,
        adjust: 4,
    };

    fn lines(send: &[u8], expect: &[u8], id: Option<IdPlace>) -> Description {
        Description {
            framing: Framing::Line(Box::from(*b"\r\n")),
            send: send.into(),
            expect: expect.into(),
            id,
        }
    }

    fn lengths(send: &[u8], expect: &[u8], id: Option<IdPlace>) -> Description {
        Description {
            framing: Framing::Length(LENGTH),
            ..lines(send, expect, id)
        }
    }

    #[test]
    fn descriptions_are_checked() {
        let id = |offset, size| Some(IdPlace { offset, size });
        for (description, is_valid) in [
            (lines(b"PING\r\n", b"PONG\r\n", None), true),
            (lines(b"PING\r\n", b"", None), true),
            (lines(b"PING\n", b"PONG\r\n", None), false),
            (lines(b"PING\r\nPING\r\n", b"PONG\r\n", None), false),
            (lines(b"", b"", None), false),
            (lines(b"PING 0000\r\n", b"PONG", id(5, 4)), true),
            (lines(b"PING 0000\r\n", b"PONG", id(5, 7)), false),
            (lines(b"PING 0000\r\n", b"PONG", id(usize::MAX, 4)), false),
            (lines(b"PING 0000\r\n", b"PONG", id(5, 0)), false),
            (lines(b"PING 0000\r\n", b"", id(5, 4)), false),
            (lengths(b"\0\0\0\x01p", b"\0\0\0\x01P", None), true),
            (lengths(b"\0\0\0\0", b"", None), true),
            (lengths(b"\0\0\0\x02p", b"\0\0\0\x01P", None), false),
        ] {
            assert_eq!(description.check().is_ok(), is_valid, "{description:?}");
        }
    }

    #[test]
    fn ids_are_far_from_those_of_others() {
        let id = |size| Some(IdPlace { offset: 4, size });
        for (size, is) in [
            (2, &[0x83, 4][..]),
            (4, &[0x81, 2, 3, 4]),
            (10, &[0x80, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ] {
            assert_eq!(lengths(b"", b"", id(size)).id(0x0102_0304), is);
        }
        assert_eq!(lines(b"", b"", id(4)).id(42), b"0042");
    }

    fn exchange(
        told: impl Strategy<Value = Vec<u8>>,
        heard: impl Strategy<Value = Vec<u8>>,
        answer: fn(&[u8]) -> Vec<u8>,
    ) -> impl Strategy<Value = Exchange> {
        let pace = prop_oneof![Just(Pace::InTurn), Just(Pace::Pipelined)];
        (told, heard, pace).prop_map(move |(told, heard, pace)| Exchange {
            told,
            heard,
            pace,
            answer: Some(answer),
        })
    }

    /// A line, which may be long, or look like the answer at first.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            "[a-zPONG\r ]{0,12}",
            "PON[G]{0,2}",
            "PONG [0-9]{0,4}",
            "x{500,1200}",
        ];
        text.prop_map(|text| format!("{text}\r\n").into_bytes())
    }

    fn record() -> impl Strategy<Value = Vec<u8>> {
        let body = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            Just(vec![b'P', 0x80, 1]),
            Just(vec![7; 1000]),
        ];
        body.prop_map(|body| [&(body.len() as u32).to_be_bytes()[..], &body].concat())
    }

    /// Lines that the peer says, without those that no one could tell from an answer.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        text().prop_filter("an answer", |text| text != b"PONG\r\n")
    }

    proptest! {
        #[test]
        fn numbered_lines_are_transparent(
            script in prop::collection::vec(exchange(text(), text(), |question| {
                let id = &question[5..9];
                [b"PONG!", id, b" and more\r\n"].concat()
            }), 1..12),
            moves in moves(),
        ) {
            let id = Some(IdPlace { offset: 5, size: 4 });
            let description = lines(b"PING ....\r\n", b"PONG!", id);
            prop_assert_eq!(description.check(), Ok(()));
            play(Box::new(Custom::new(&description)), &script, &moves, Ends::Ready);
        }

        #[test]
        fn numbered_records_are_transparent(
            script in prop::collection::vec(exchange(record(), record(), |question| {
                [&[0, 0, 2, 5, b'P'], &question[5..9], &[1; 512]].concat()
            }), 1..12),
            moves in moves(),
        ) {
            let id = Some(IdPlace { offset: 5, size: 4 });
            let description = lengths(b"\0\0\0\x05p....", b"\0\0\x02\x05P", id);
            prop_assert_eq!(description.check(), Ok(()));
            play(Box::new(Custom::new(&description)), &script, &moves, Ends::Ready);
        }

        #[test]
        fn lines_in_turn_are_transparent(
            script in prop::collection::vec(
                exchange(text(), said(), |_| b"PONG\r\n".to_vec()),
                1..12,
            ),
            moves in moves(),
        ) {
            let description = lines(b"PING\r\n", b"PONG\r\n", None);
            play(Box::new(Custom::new(&description)), &script, &moves, Ends::Ready);
        }

        #[test]
        fn empty_messages_stand_between_two_others(
            script in prop::collection::vec(
                exchange(record(), record(), |_| Vec::new()),
                1..12,
            ),
            moves in moves(),
        ) {
            let description = lengths(b"\0\0\0\0", b"", None);
            play(Box::new(Custom::new(&description)), &script, &moves, Ends::Ready);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"PONG\r\n", b"PING\r\n", b"\r", b"\0\0\0\x01P", b"\xff\xff\xff\xff", b"\0\0\0",
        ])) {
            let description = lines(b"PING\r\n", b"PONG\r\n", None);
            survive(Box::new(Custom::new(&description)), &pieces);
            let description = lengths(b"\0\0\0\x01p", b"\0\0\0\x01P", None);
            survive(Box::new(Custom::new(&description)), &pieces);
        }
    }
}
