//! One direction of a conversation: from unit to unit, however the bytes come.

use std::mem;
use std::ops::Range;

use super::Heard;
use super::profile::{HEAD, OpaqueCause, Read};

/// Where in the units a direction stands.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The beginning of a unit, too short to tell its length.
    head: Vec<u8>,
    /// What is left of the unit before.
    left: u64,
    /// What becomes of that.
    fate: Fate,
    /// Whether the message of the unit before goes on.
    is_inside: bool,
    /// Whether this message may be an answer. If so, `head` was not forwarded.
    is_candidate: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Forward,
    Swallow,
}

impl Cursor {
    /// Whether it stands between two messages.
    pub(super) const fn is_between(&self) -> bool {
        self.head.is_empty() && self.left == 0 && !self.is_inside
    }

    /// Bytes that are held back.
    pub(super) const fn held(&self) -> usize {
        if self.is_candidate {
            self.head.len()
        } else {
            0
        }
    }

    /// Goes on over `bytes`. Answers to what is `due` are taken out of them, and of `due`.
    pub(super) fn walk(
        &mut self,
        bytes: &[u8],
        due: &mut Vec<u64>,
        mut read: impl FnMut(&[u8], &[u64]) -> Read,
        out: &mut Vec<u8>,
    ) -> (Heard, Option<OpaqueCause>) {
        let before = mem::take(&mut self.head);
        let mut text = Text::new(&before, bytes, self.is_candidate, out);
        let mut at = 0;
        loop {
            at = self.go_on(&mut text, at);
            if at == text.end {
                return (text.finish(), None);
            }
            if !self.is_inside && (at > 0 || before.is_empty()) {
                self.is_candidate = !due.is_empty() && text.is_withheld(at);
            }
            let head = text.head(at);
            let unit = read(head, if self.is_candidate { due } else { &[] });
            match unit {
                Read::More if head.len() < HEAD => {
                    self.head = head.to_vec();
                    if !self.is_candidate {
                        text.forward(at..text.end);
                    }
                    return (text.finish(), None);
                }
                Read::Part(1..) | Read::End(1..) => self.enter(unit),
                Read::Mine { token, length: 1.. } if self.is_candidate && due.contains(&token) => {
                    due.retain(|due| *due != token);
                    self.enter(unit);
                }
                _ => {
                    self.is_candidate = false;
                    text.forward(at..text.end);
                    let cause = match unit {
                        Read::Opaque(cause) => cause,
                        _ => OpaqueCause::Malformed,
                    };
                    return (text.finish(), Some(cause));
                }
            }
        }
    }

    /// Gives back what is held, in front of `bytes`.
    pub(super) fn release(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Heard {
        if self.held() == 0 {
            return Heard::All;
        }
        out.append(&mut self.head);
        out.extend_from_slice(bytes);
        Heard::Instead
    }

    fn enter(&mut self, unit: Read) {
        (self.left, self.fate) = match unit {
            Read::Part(n) | Read::End(n) => (n, Fate::Forward),
            Read::Mine { length, .. } => (length, Fate::Swallow),
            Read::More | Read::Opaque(_) => (0, Fate::Forward),
        };
        self.is_inside = matches!(unit, Read::Part(_));
        self.is_candidate = false;
    }

    /// To the end of the unit, or of the text.
    fn go_on(&mut self, text: &mut Text<'_>, at: usize) -> usize {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX);
        let n = n.min(text.end - at);
        if self.fate == Fate::Forward {
            text.forward(at..at + n);
        }
        self.left -= n as u64;
        at + n
    }
}

/// What came `before` and was too short to tell, followed by what has come now. Of these, what is forwarded.
struct Text<'a> {
    before: &'a [u8],
    bytes: &'a [u8],
    end: usize,
    /// Both, as far as the head of a unit that begins in `before` can reach.
    joined: Vec<u8>,
    /// Whether `before` has not been forwarded.
    is_withheld: bool,
    out: &'a mut Vec<u8>,
    /// The last piece of `bytes` that is forwarded and not in `out` yet.
    piece: Range<usize>,
    heard: Heard,
}

impl<'a> Text<'a> {
    fn new(before: &'a [u8], bytes: &'a [u8], is_withheld: bool, out: &'a mut Vec<u8>) -> Self {
        let joined = if before.is_empty() {
            Vec::new()
        } else {
            [before, &bytes[..bytes.len().min(HEAD)]].concat()
        };
        Self {
            before,
            bytes,
            end: before.len() + bytes.len(),
            joined,
            is_withheld,
            out,
            piece: 0..0,
            heard: Heard::All,
        }
    }

    /// The first bytes of a unit that begins at `at`.
    fn head(&self, at: usize) -> &[u8] {
        let rest = match at.checked_sub(self.before.len()) {
            Some(at) => &self.bytes[at..],
            None => &self.joined[at..],
        };
        &rest[..rest.len().min(HEAD)]
    }

    /// Whether nothing from there on was forwarded.
    const fn is_withheld(&self, at: usize) -> bool {
        self.is_withheld || at >= self.before.len()
    }

    fn forward(&mut self, range: Range<usize>) {
        let old = self.before.len();
        if range.start < old && self.is_withheld {
            self.out
                .extend_from_slice(&self.before[range.start..range.end.min(old)]);
            self.heard = Heard::Instead;
        }
        let new = range.start.max(old) - old..range.end.max(old) - old;
        if self.piece.end == new.start {
            self.piece.end = new.end;
        } else if !new.is_empty() {
            self.out.extend_from_slice(&self.bytes[self.piece.clone()]);
            self.piece = new;
        }
    }

    fn finish(self) -> Heard {
        if self.heard == Heard::All && self.piece == (0..self.bytes.len()) {
            return Heard::All;
        }
        self.out.extend_from_slice(&self.bytes[self.piece]);
        Heard::Instead
    }
}
