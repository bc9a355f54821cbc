//! Framings that many protocols share. They count the payload and never keep it.

use super::profile::{HEAD, OpaqueCause, Read};

/// How a stream is cut into messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each ends with these bytes.
    Line(Box<[u8]>),
    /// Each begins with a header that says its length.
    Length(Length),
    /// Each has so many bytes.
    Fixed(u64),
}

/// Where a header says how long its message is: `value + adjust` bytes, the header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Bytes that must be there before the length is known.
    pub header: usize,
    /// Where the value begins.
    pub offset: usize,
    /// Its bytes, 1 to 4.
    pub size: usize,
    /// Their order.
    pub order: Order,
    /// What is added to it.
    pub adjust: i64,
}

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The highest first, as in most protocols.
    Big,
    /// The lowest first.
    Little,
}

/// A framing, on its way through one direction.
#[derive(Clone, Debug)]
pub struct Frames {
    framing: Framing,
    is_inside: bool,
}

impl Frames {
    /// At the first byte.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        Self {
            framing,
            is_inside: false,
        }
    }

    /// Whether the next unit begins a message.
    #[must_use]
    pub const fn is_at_start(&self) -> bool {
        !self.is_inside
    }

    /// The next unit, which begins so, and goes past it.
    pub fn next(&mut self, head: &[u8]) -> Read {
        let unit = self.peek(head);
        match unit {
            Read::Part(_) => self.is_inside = true,
            Read::End(_) => self.is_inside = false,
            _ => {}
        }
        unit
    }

    /// The next unit, which begins so.
    #[must_use]
    pub fn peek(&self, head: &[u8]) -> Read {
        match &self.framing {
            Framing::Line(delimiter) => line(head, delimiter),
            Framing::Length(length) => length.read(head),
            Framing::Fixed(length) => Read::End(*length),
        }
    }
}

/// A line, or as much of it as is there.
#[must_use]
pub fn line(head: &[u8], delimiter: &[u8]) -> Read {
    if let Some(end) = find(head, delimiter) {
        return Read::End((end + delimiter.len()) as u64);
    }
    // The delimiter may have begun.
    let most = delimiter.len().saturating_sub(1).min(head.len());
    let begun = (1..=most).rev().find(|n| head.ends_with(&delimiter[..*n]));
    match head.len() - begun.unwrap_or(0) {
        0 => Read::More,
        n => Read::Part(n as u64),
    }
}

/// Where `needle`, which is not empty, stands first.
#[must_use]
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        from += bytes[from..].iter().position(|byte| *byte == first)?;
        if bytes[from..].starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
}

impl Length {
    /// The message that begins so. What says a length shorter than its header is malformed.
    #[must_use]
    pub fn read(&self, head: &[u8]) -> Read {
        if head.len() < self.header {
            return Read::More;
        }
        let value = self
            .order
            .number(&head[self.offset..self.offset + self.size]);
        match u64::try_from(value as i64 + self.adjust) {
            Ok(length) if length >= self.header.max(1) as u64 => Read::End(length),
            _ => Read::Opaque(OpaqueCause::Malformed),
        }
    }

    /// Whether the value stands within the header, and the header within what is looked at.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        matches!(self.size, 1..=4)
            && self.header <= HEAD
            && self.offset.saturating_add(self.size) <= self.header
    }
}

impl Order {
    /// The number of these bytes, at most eight.
    #[must_use]
    pub fn number(self, bytes: &[u8]) -> u64 {
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Self::Big => bytes.iter().fold(0, digit),
            Self::Little => bytes.iter().rev().fold(0, digit),
        }
    }
}
