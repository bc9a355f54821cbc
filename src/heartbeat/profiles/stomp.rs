//! STOMP 1.1 and 1.2: an end of line between two frames, to either end, once it is connected.
//!
//! Nobody answers it: it keeps the path open and proves nothing. Opaque: STOMP 1.0, which does not have it.

use crate::heartbeat::frame::line;
use crate::heartbeat::profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Stomp {
    told: Direction,
    heard: Direction,
    is_connected: bool,
}

/// Where in a frame a direction stands.
#[derive(Clone, Copy, Debug, Default)]
struct Direction {
    place: Place,
    /// Whether the line goes on.
    is_in_line: bool,
    command: Command,
    /// The length of the body, if the frame says it.
    length: Option<u64>,
    has_version: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before a frame.
    #[default]
    Between,
    Headers,
    /// Up to NUL.
    Body,
    /// Only NUL is left.
    End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Command {
    #[default]
    Other,
    Connected,
    /// DISCONNECT, ERROR.
    Last,
}

/// What a unit is to the conversation.
enum Event {
    Nothing,
    /// A frame has ended.
    Frame(Command),
}

impl Direction {
    fn next(&mut self, head: &[u8]) -> (Read, Event) {
        let read = match self.place {
            Place::Between if head[0] == b'\n' => Read::End(1),
            Place::Between if head == b"\r" => Read::More,
            Place::Between if head.starts_with(b"\r\n") => Read::End(2),
            Place::Between | Place::Headers => self.line(head),
            Place::Body => line(head, b"\0"),
            Place::End if head[0] == 0 => Read::End(1),
            Place::End => Read::Opaque(OpaqueCause::Malformed),
        };
        let is_last = matches!(self.place, Place::Body | Place::End);
        if is_last && matches!(read, Read::End(_)) {
            self.place = Place::Between;
            return (read, Event::Frame(self.command));
        }
        (read, Event::Nothing)
    }

    /// A line of the head of a frame, or as much as is looked at.
    fn line(&mut self, head: &[u8]) -> Read {
        let unit = line(head, b"\n");
        let (length, is_end) = match unit {
            Read::End(length) => (length, true),
            // A header that is longer says nothing to us.
            Read::Part(length) if self.is_in_line || head.len() >= HEAD => (length, false),
            _ => return Read::More,
        };
        let text = &head[..length as usize];
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let is_rest = self.is_in_line;
        self.is_in_line = !is_end;
        match self.place {
            _ if is_rest => {}
            Place::Between if text.is_empty() || !text.iter().all(u8::is_ascii_uppercase) => {
                return Read::Opaque(OpaqueCause::Malformed);
            }
            Place::Between => self.begin(text),
            _ if text.is_empty() => return self.end_of_head(length),
            _ => {
                if let Err(cause) = self.header(text) {
                    return Read::Opaque(cause);
                }
            }
        }
        Read::Part(length)
    }

    fn begin(&mut self, command: &[u8]) {
        *self = Self {
            place: Place::Headers,
            is_in_line: self.is_in_line,
            command: match command {
                b"CONNECTED" => Command::Connected,
                b"DISCONNECT" | b"ERROR" => Command::Last,
                _ => Command::Other,
            },
            ..Self::default()
        };
    }

    /// Of those that are repeated the first one counts.
    fn header(&mut self, header: &[u8]) -> Result<(), OpaqueCause> {
        if let Some(length) = header.strip_prefix(b"content-length:") {
            let length = str::from_utf8(length)
                .ok()
                .and_then(|n| n.trim().parse().ok());
            self.length = Some(self.length.or(length).ok_or(OpaqueCause::Malformed)?);
        }
        self.has_version |=
            header.starts_with(b"version:1.1") || header.starts_with(b"version:1.2");
        Ok(())
    }

    /// The empty line has this length.
    fn end_of_head(&mut self, line: u64) -> Read {
        if self.command == Command::Connected && !self.has_version {
            return Read::Opaque(OpaqueCause::Unsupported);
        }
        self.place = match self.length {
            Some(_) => Place::End,
            None => Place::Body,
        };
        Read::Part(line.saturating_add(self.length.unwrap_or(0)))
    }
}

impl Stomp {
    fn follow(&mut self, (read, event): (Read, Event)) -> Read {
        match event {
            Event::Frame(Command::Connected) => self.is_connected = true,
            Event::Frame(Command::Last) => self.is_connected = false,
            _ => {}
        }
        read
    }
}

impl Profile for Stomp {
    fn told(&mut self, head: &[u8]) -> Read {
        let next = self.told.next(head);
        self.follow(next)
    }

    fn heard(&mut self, head: &[u8], _: &[u64]) -> Read {
        let next = self.heard.next(head);
        self.follow(next)
    }

    fn phase(&self) -> Phase {
        if self.is_connected {
            Phase::Idle
        } else {
            Phase::Starting
        }
    }

    fn manner(&self) -> Manner {
        Manner::OneWay
    }

    fn question(&mut self, _: u64) -> Vec<u8> {
        b"\n".to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};

    fn profile() -> Box<dyn Profile> {
        Box::new(Stomp::default())
    }

    fn none(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, b"\n");
        Vec::new()
    }

    fn connected() -> Exchange {
        let connect = "CONNECT\naccept-version:1.0,1.1,1.2\nhost:a\n\n\0";
        let connected = "CONNECTED\r\nversion:1.2\r\nheart-beat:0,0\r\n\r\n\0\n";
        Exchange::in_turn(connect, connected).answered(none)
    }

    /// Frames, and ends of lines between them.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let command = prop::sample::select(vec!["SEND", "MESSAGE", "RECEIPT", "ACK"]);
        let end = prop::sample::select(vec!["\n", "\r\n"]);
        let header = prop::sample::select(vec!["", "destination:/q", "version:1", "long"]);
        let body = prop::collection::vec(any::<u8>(), 0..700);
        let frame = (command, end, header, body, any::<bool>()).prop_map(
            |(command, end, header, mut body, has_length)| {
                let header = match header {
                    "" => String::new(),
                    "long" => format!("{}:content-length:1{end}", "x".repeat(600)),
                    _ => format!("{header}{end}"),
                };
                let length = if has_length {
                    format!("content-length:{}{end}content-length:3{end}", body.len())
                } else {
                    body.retain(|byte| *byte != 0);
                    String::new()
                };
                let head = format!("{command}{end}{header}{length}{end}");
                [head.as_bytes(), &body, b"\0"].concat()
            },
        );
        prop_oneof![
            5 => frame,
            1 => Just(b"\n".to_vec()),
            1 => Just(b"\r\n".to_vec()),
            1 => Just(Vec::new()),
        ]
    }

    proptest! {
        #[test]
        fn ends_of_lines_stand_between_frames(
            script in prop::collection::vec(
                Exchange::any_pace((frames(), frames()), Some(none)),
                0..12,
            ),
            moves in moves(),
        ) {
            let mut script = [vec![connected()], script].concat();
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn("DISCONNECT\nreceipt:1\n\n\0", "RECEIPT\n\n\0"));
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"CONNECTED\nversion:1.1\n\n\0", b"SEND\n", b"\n", b"\r", b"\0", b"content-length:5\n", b"content-length:x\n",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn what_has_no_ends_of_lines_between_frames_is_not_followed() {
        for strange in [
            "CONNECTED\nsession:1\n\n\0",
            "SEND\ncontent-length:many\n\n\0",
            "SEND\ncontent-length:1\n\nxx\0",
            "send\n\n\0",
            "\rX\n",
            " \n",
        ] {
            let script = [connected(), Exchange::in_turn([], strange)];
            play(profile(), &script, &[], Ends::Opaque);
        }
    }
}
