//! memcached: `version` in text, `NOOP` with a token in binary, while nothing is owed.
//!
//! A quiet request may be answered or not. After one nothing is asked until the client has asked for `MN` or
//! `NOOP` and got it, which ends all doubt. Opaque: what the server did not understand, since it may have read
//! data as commands; `watch`, `quit`, and commands that are not listed here.

use crate::heartbeat::frame::{Length, Order, line};
use crate::heartbeat::profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};

/// No value is longer (`-I` of memcached allows 1 GiB).
const LONGEST: u64 = 1 << 30;

/// The messages of the binary protocol.
const BINARY: Length = Length {
    header: 24,
    offset: 8,
    size: 4,
    order: Order::Big,
    adjust: 24,
};
const NOOP: u8 = 0x0a;
const STAT: u8 = 0x10;

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Memcached {
    /// As the first byte of the client says.
    language: Option<Language>,
    /// Whether the rest of a long line is told.
    is_in_line: bool,
    has_begun: bool,
    owed: Owed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Text,
    Binary,
}

/// What a request is to the count of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// It has one.
    Plain,
    /// It has one or none.
    Quiet,
    /// It has none.
    Silent,
    /// It has one of its own kind, behind all others.
    Fence,
}

/// The same of a message that is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The next message goes on with it.
    Part,
    Plain,
    Fence,
}

/// Answers that the server owes.
#[derive(Debug, Default)]
struct Owed {
    count: u64,
    /// Whether some of these may not come.
    is_vague: bool,
    fences: u64,
    /// The same two, of requests behind the last fence.
    count_behind: u64,
    is_vague_behind: bool,
}

impl Owed {
    const fn request(&mut self, request: Request) {
        match request {
            Request::Silent => {}
            Request::Quiet => (self.is_vague, self.is_vague_behind) = (true, true),
            Request::Plain => {
                (self.count, self.count_behind) = (self.count + 1, self.count_behind + 1);
            }
            Request::Fence => {
                (self.count, self.fences) = (self.count + 1, self.fences + 1);
                (self.count_behind, self.is_vague_behind) = (0, false);
            }
        }
    }

    fn answer(&mut self, answer: Answer) -> Result<(), OpaqueCause> {
        if answer == Answer::Part {
            return Ok(());
        }
        self.count = match self.count.checked_sub(1) {
            Some(count) => count,
            None if self.is_vague => 0,
            None => return Err(OpaqueCause::Unsolicited),
        };
        if answer == Answer::Fence {
            self.fences = self.fences.checked_sub(1).ok_or(OpaqueCause::Unsolicited)?;
            if self.fences == 0 {
                (self.count, self.is_vague) = (self.count_behind, self.is_vague_behind);
            }
        }
        Ok(())
    }
}

impl Memcached {
    /// A command, and the data that comes after its line.
    fn command(&mut self, head: &[u8]) -> Read {
        let unit = line(head, b"\n");
        if self.is_in_line {
            self.is_in_line = matches!(unit, Read::Part(_));
            return unit;
        }
        let name = words(head).next().unwrap_or_default();
        let request = match (unit, name) {
            (Read::End(_), _) => request(head),
            // Only these lines may be long.
            (_, b"get" | b"gets" | b"gat" | b"gats") if head.len() == HEAD => {
                self.is_in_line = true;
                Ok((Request::Plain, 0))
            }
            _ => return Read::More,
        };
        match (request, unit) {
            (Ok((request, data)), Read::End(length)) => {
                self.owed.request(request);
                Read::End(length + data)
            }
            (Ok((request, _)), other) => {
                self.owed.request(request);
                other
            }
            (Err(cause), _) => Read::Opaque(cause),
        }
    }

    fn packet(&mut self, head: &[u8]) -> Read {
        let unit = packet(head, 0x80);
        if !matches!(unit, Read::End(_)) {
            return unit;
        }
        let request = match head[1] {
            NOOP => Request::Fence,
            0x07 | 0x17 => return Read::Opaque(OpaqueCause::Ended),
            0x09 | 0x0d | 0x11..=0x16 | 0x18..=0x1a | 0x1e | 0x24 => Request::Quiet,
            0x00..=0x26 => Request::Plain,
            _ => return Read::Opaque(OpaqueCause::Unsupported),
        };
        self.owed.request(request);
        unit
    }

    fn heard_line(head: &[u8], due: &[u64]) -> Result<(Answer, u64), Read> {
        let Read::End(length) = line(head, b"\n") else {
            return Err(Read::More);
        };
        let mut words = words(head);
        let name = words.next().unwrap_or_default();
        if let [token, ..] = due {
            return Err(match name {
                b"VERSION" => Read::Mine {
                    token: *token,
                    length,
                },
                _ => Read::Opaque(OpaqueCause::Misfit),
            });
        }
        let mut data = |at| match size(words.nth(at)) {
            Ok(size) => Ok(length + size),
            Err(cause) => Err(Read::Opaque(cause)),
        };
        match name {
            b"VALUE" => Ok((Answer::Part, data(2)?)),
            b"VA" => Ok((Answer::Plain, data(0)?)),
            b"STAT" | b"ITEM" | b"PREFIX" => Ok((Answer::Part, length)),
            b"MN" => Ok((Answer::Fence, length)),
            b"ERROR" | b"CLIENT_ERROR" => Err(Read::Opaque(OpaqueCause::Unsupported)),
            b"END" | b"STORED" | b"NOT_STORED" | b"EXISTS" | b"NOT_FOUND" | b"DELETED"
            | b"TOUCHED" | b"OK" | b"RESET" | b"VERSION" | b"HD" | b"EN" | b"NS" | b"EX"
            | b"NF" | b"ME" | b"SERVER_ERROR" => Ok((Answer::Plain, length)),
            // The new value of a counter.
            [b'0'..=b'9', ..] => Ok((Answer::Plain, length)),
            _ => Err(Read::Opaque(OpaqueCause::Malformed)),
        }
    }

    fn heard_packet(head: &[u8], due: &[u64]) -> Result<(Answer, u64), Read> {
        let Read::End(length) = packet(head, 0x81) else {
            return Err(packet(head, 0x81));
        };
        let id = &head[12..16];
        if !due.is_empty() {
            let mine = due.iter().find(|token| opaque(**token) == id);
            return Err(match (head[1], mine) {
                (NOOP, Some(token)) => Read::Mine {
                    token: *token,
                    length,
                },
                _ => Read::Opaque(OpaqueCause::Misfit),
            });
        }
        match head[1] {
            NOOP => Ok((Answer::Fence, length)),
            // An empty one is the last.
            STAT if head[2..4] != [0, 0] => Ok((Answer::Part, length)),
            _ => Ok((Answer::Plain, length)),
        }
    }
}

impl Profile for Memcached {
    fn told(&mut self, head: &[u8]) -> Read {
        let language = match head[0] {
            0x80 => Language::Binary,
            _ => Language::Text,
        };
        match *self.language.get_or_insert(language) {
            Language::Text => self.command(head),
            Language::Binary => self.packet(head),
        }
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let heard = match self.language {
            Some(Language::Text) => Self::heard_line(head, due),
            Some(Language::Binary) => Self::heard_packet(head, due),
            None => Err(Read::Opaque(OpaqueCause::Unsolicited)),
        };
        let (answer, length) = match heard {
            Ok(heard) => heard,
            Err(read) => return read,
        };
        match self.owed.answer(answer) {
            Err(cause) => Read::Opaque(cause),
            Ok(()) if answer == Answer::Part => Read::Part(length),
            Ok(()) => {
                self.has_begun = true;
                Read::End(length)
            }
        }
    }

    fn phase(&self) -> Phase {
        match self.owed {
            _ if !self.has_begun => Phase::Starting,
            Owed {
                count: 0,
                is_vague: false,
                ..
            } => Phase::Idle,
            _ => Phase::Waiting,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        if self.language == Some(Language::Text) {
            return b"version\r\n".to_vec();
        }
        let mut noop = [0; 24];
        (noop[0], noop[1]) = (0x80, NOOP);
        noop[12..16].copy_from_slice(&opaque(token));
        noop.to_vec()
    }
}

/// What comes back with the answer: far from what clients count.
fn opaque(token: u64) -> [u8; 4] {
    (token as u32 | 0x8000_0000).to_be_bytes()
}

/// Of a line, separated by spaces.
fn words(head: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
}

/// The size of the data that comes after the line, with the end of that.
fn size(word: Option<&[u8]>) -> Result<u64, OpaqueCause> {
    let size = word.and_then(|word| str::from_utf8(word).ok()?.parse().ok());
    let size = size.filter(|size| *size <= LONGEST);
    size.map_or(Err(OpaqueCause::Malformed), |size: u64| Ok(size + 2))
}

/// What a command is to the count of answers, and the data that comes after its line.
fn request(line: &[u8]) -> Result<(Request, u64), OpaqueCause> {
    let mut words = words(line);
    let name = words.next().unwrap_or_default();
    let spoken = match words.clone().last() {
        Some(b"noreply") => Request::Silent,
        _ => Request::Plain,
    };
    let is_quiet = words.clone().skip(1).any(|flag| flag[0] == b'q');
    let meta = if is_quiet {
        Request::Quiet
    } else {
        Request::Plain
    };
    match name {
        b"get" | b"gets" | b"gat" | b"gats" | b"version" | b"stats" | b"me" => {
            Ok((Request::Plain, 0))
        }
        b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => {
            Ok((spoken, size(words.nth(3))?))
        }
        b"delete" | b"incr" | b"decr" | b"touch" | b"flush_all" | b"verbosity" => Ok((spoken, 0)),
        b"mn" => Ok((Request::Fence, 0)),
        b"mg" | b"md" | b"ma" => Ok((meta, 0)),
        b"ms" => Ok((meta, size(words.nth(1))?)),
        b"watch" => Err(OpaqueCause::Streaming),
        b"quit" => Err(OpaqueCause::Ended),
        _ => Err(OpaqueCause::Unsupported),
    }
}

fn packet(head: &[u8], magic: u8) -> Read {
    match BINARY.read(head) {
        _ if head[0] != magic => Read::Opaque(OpaqueCause::Malformed),
        Read::End(LONGEST..) => Read::Opaque(OpaqueCause::Malformed),
        unit => unit,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{
        Answer as Asked, Ends, Exchange, Pace, moves, pieces, play, survive,
    };
    use crate::heartbeat::{Heartbeat, State};

    fn profile() -> Box<Memcached> {
        Box::default()
    }

    fn version(_: &[u8]) -> Vec<u8> {
        b"VERSION 1.6.18\r\n".to_vec()
    }

    fn noop(question: &[u8]) -> Vec<u8> {
        [&[0x81], &question[1..]].concat()
    }

    /// A packet, with as much of a body.
    fn binary(magic: u8, opcode: u8, key: u8, body: usize) -> Vec<u8> {
        let length = (body as u32).to_be_bytes();
        let head = [&[magic, opcode, 0, key, 0, 0, 0, 0], &length[..], &[7; 12]].concat();
        [&head[..], &vec![opcode; body]].concat()
    }

    fn step(
        told: impl Into<Vec<u8>>,
        heard: impl Into<Vec<u8>>,
        answer: Option<Asked>,
    ) -> Exchange {
        let step = Exchange::in_turn(told, heard);
        Exchange {
            pace: Pace::Pipelined,
            answer,
            ..step
        }
    }

    /// Data that looks like anything.
    fn data() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z\r\n ]{0,30}", "END\r\n", "set a 0 0 1", "x{3000}"]
    }

    fn text() -> impl Strategy<Value = Vec<Exchange>> {
        let may = Some(version as Asked);
        let key = "[a-z]{1,200}";
        prop_oneof![
            (key, data()).prop_map(move |(key, data)| vec![
                step(
                    format!("set {key} 0 0 {}\r\n{data}\r\n", data.len()),
                    "STORED\r\n",
                    may
                ),
                step(
                    format!("cas {key} 0 0 {} 7 noreply\r\n{data}\r\n", data.len()),
                    "",
                    may
                ),
            ]),
            (prop::collection::vec(key, 1..9), data()).prop_map(move |(keys, data)| {
                let value = format!("VALUE {} 0 {}\r\n{data}\r\n", keys[0], data.len());
                let heard = value.repeat(keys.len() / 2) + "END\r\n";
                vec![step(format!("get {}\r\n", keys.join(" ")), heard, may)]
            }),
            prop::sample::select(
                &[
                    ("incr a 5\r\n", "17\r\n"),
                    ("delete a noreply\r\n", ""),
                    ("delete a\n", "NOT_FOUND\r\n"),
                    ("flush_all 10\r\n", "OK\r\n"),
                    ("stats\r\n", "STAT pid 1\r\nSTAT uptime 1\r\nEND\r\n"),
                    ("version\r\n", "VERSION 1.6\r\n"),
                    ("mn\r\n", "MN\r\n"),
                    ("mg a v\r\n", "VA 5\r\nEND\r\n\r\n"),
                    ("ms a 2 T0\r\n\r\n\r\n", "HD\r\n"),
                    (
                        "set a 0 0 1\r\n1\r\n",
                        "SERVER_ERROR out of memory storing object\r\n"
                    ),
                ][..]
            )
            .prop_map(move |(told, heard)| vec![step(told, heard, may)]),
            any::<bool>().prop_map(move |is_hit| vec![
                step("get b\r\n", "END\r\n", may),
                step(
                    "mg a v q\r\n",
                    if is_hit { "VA 1\r\nx\r\n" } else { "" },
                    None
                ),
                step("get b\r\n", "END\r\n", None),
                step("mn\r\n", "MN\r\n", may),
            ]),
        ]
    }

    fn packets() -> impl Strategy<Value = Vec<Exchange>> {
        let may = Some(noop as Asked);
        prop_oneof![
            (0..7u8, 0..2000usize).prop_map(move |(opcode, body)| vec![step(
                binary(0x80, opcode, 3, body),
                binary(0x81, opcode, 0, body),
                may
            )]),
            any::<bool>().prop_map(move |is_hit| {
                let heard = if is_hit {
                    binary(0x81, 9, 0, 30)
                } else {
                    vec![]
                };
                vec![
                    step(binary(0x80, 9, 3, 3), heard, None),
                    step(binary(0x80, 0, 3, 3), binary(0x81, 0, 3, 3), None),
                    step(binary(0x80, NOOP, 0, 0), binary(0x81, NOOP, 0, 0), may),
                ]
            }),
            (0..4usize).prop_map(move |stats| {
                let heard = binary(0x81, STAT, 3, 9).repeat(stats);
                let heard = [heard, binary(0x81, STAT, 0, 0)].concat();
                vec![step(binary(0x80, STAT, 0, 0), heard, may)]
            }),
        ]
    }

    fn script(
        part: impl Strategy<Value = Vec<Exchange>>,
        last: Exchange,
    ) -> impl Strategy<Value = Vec<Exchange>> {
        let paces = prop_oneof![Just(Pace::InTurn), Just(Pace::Pipelined)];
        let paces = prop::collection::vec(paces, 100);
        (prop::collection::vec(part, 0..9), paces).prop_map(move |(parts, paces)| {
            let mut script = [parts.concat(), vec![last.clone()]].concat();
            for (step, pace) in script.iter_mut().zip(paces) {
                step.pace = pace;
            }
            script
        })
    }

    proptest! {
        #[test]
        fn text_is_transparent(
            script in script(text(), step("get a\r\n", "END\r\n", Some(version))),
            moves in moves(),
        ) {
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn packets_are_transparent(
            script in script(packets(), step(binary(0x80, 1, 3, 3), binary(0x81, 1, 0, 0), Some(noop))),
            moves in moves(),
        ) {
            play(profile(), &script, &moves, Ends::Ready);
        }

        #[test]
        fn what_is_not_followed_is_opaque(
            script in script(text(), step("get a\r\n", "END\r\n", Some(version))),
            moves in moves(),
            (told, heard) in prop::sample::select(&[
                ("watch evictions\r\n", "OK\r\n"),
                ("quit\r\n", ""),
                ("lru_crawler metadump all\r\n", "key=a exp=-1\r\nEND\r\n"),
                ("set a 0 0 -1\r\n", "CLIENT_ERROR bad data chunk\r\n"),
                ("incr a b\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
                ("get\r\n", "ERROR\r\n"),
                ("get a\r\n", "HELLO\r\n"),
            ][..]),
        ) {
            let script = [script, vec![Exchange::in_turn(told, heard)]].concat();
            play(profile(), &script, &moves, Ends::Opaque);
        }

        #[test]
        fn nothing_is_asked_within_data_or_behind_a_quiet_request(
            script in script(text(), step("get a\r\n", "END\r\n", Some(version))),
            moves in moves(),
            told in prop::sample::select(&["mg a v q\r\n", "get a\r\n", "ms a 3 q\r\n...\r\n"][..]),
        ) {
            let script = [script, vec![step(told, "", None)]].concat();
            play(profile(), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"get a\r\n", b"END\r\n", b"VERSION 1\r\n", b"set a 0 0 5\r\n", b"12345\r\n", b"MN\r\n", b"mn\r\n",
            b"VALUE a 0 5\r\n", b"\x80\x0a", b"\x81\x0a", b" \r\n", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ])) {
            survive(profile(), &pieces);
        }
    }

    #[test]
    fn an_answer_to_nothing_makes_it_opaque() {
        for heard in ["END\r\nEND\r\n", "MN\r\n"] {
            let mut heartbeat = Heartbeat::new(profile());
            heartbeat.told(b"get a\r\n");
            let _ = heartbeat.heard(heard.as_bytes(), &mut Vec::new());
            let unsolicited = OpaqueCause::Unsolicited;
            assert_eq!(heartbeat.state(), State::Opaque(unsolicited));
        }
    }
}
