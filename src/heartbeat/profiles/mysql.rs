//! MySQL and MariaDB: `COM_PING`, to the server, between two commands.
//!
//! An answer may be many packets: it is followed to its last one, also over several results. `ROW_COUNT()` is
//! reset by what is asked; warnings, `FOUND_ROWS()` and transactions are kept.
//!
//! Opaque: TLS and compression; replication; `LOAD DATA LOCAL`, `COM_CHANGE_USER`, commands that are told before
//! the one before was answered, clients of MySQL that can do without descriptions of columns. (What MariaDB
//! leaves out of them does not matter: what ends them is there.)

use crate::heartbeat::frame::{Length, Order, find};
use crate::heartbeat::profile::{Manner, OpaqueCause, Phase, Profile, Read};

/// The length of the payload, and the number of the packet in its exchange.
const HEADER: Length = Length {
    header: 4,
    offset: 0,
    size: 3,
    order: Order::Little,
    adjust: 4,
};
/// A packet of this payload is continued by the next one.
const FULL: u64 = 0xff_ffff;

/// What client and server can do.
const COMPRESS: u32 = 1 << 5 | 1 << 26;
const PROTOCOL_41: u32 = 1 << 9;
const TLS: u32 = 1 << 11;
const DEPRECATE_EOF: u32 = 1 << 24;
const OPTIONAL_METADATA: u32 = 1 << 25;

/// What a server says at the end of a result.
const MORE_RESULTS: u64 = 0x0008;
const CURSOR_EXISTS: u64 = 0x0040;

const OK: u8 = 0;
const LOCAL_FILE: u8 = 0xfb;
const EOF: u8 = 0xfe;
const ERROR: u8 = 0xff;

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Mysql {
    stage: Stage,
    capabilities: u32,
    is_told_continued: bool,
    is_heard_continued: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The server's greeting.
    #[default]
    Greeting,
    /// What the client can do.
    Response,
    /// Whatever they need, until the server says that it is done.
    Authentication,
    /// A command.
    Command,
    /// The answer to it.
    Answer(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// One packet.
    One,
    /// One packet, or columns and rows.
    Result,
    Columns,
    Rows,
    /// What a statement has.
    Prepared,
    /// So many packets.
    Packets(u32),
}

/// The payload of a packet, as far as it is looked at.
struct Packet<'a> {
    number: u8,
    length: u64,
    payload: &'a [u8],
}

impl Packet<'_> {
    /// Those that are to be understood are small. Of the others the beginning is enough.
    fn read(head: &[u8], enough: usize) -> Result<Packet<'_>, Read> {
        let length = match HEADER.read(head) {
            Read::End(length) => length - 4,
            other => return Err(other),
        };
        let end = head.len().min(4 + length as usize);
        let payload = &head[4..end];
        if payload.len() < enough.min(length as usize) {
            return Err(Read::More);
        }
        Ok(Packet {
            number: head[3],
            length,
            payload,
        })
    }

    fn number_at(&self, at: usize, size: usize) -> Option<u64> {
        Some(Order::Little.number(self.payload.get(at..at + size)?))
    }

    /// Where the number of variable length ends that begins there.
    fn after_number(&self, at: usize) -> Option<usize> {
        let size = match self.payload.get(at)? {
            ..=0xfa => 0,
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            _ => return None,
        };
        Some(at + 1 + size)
    }

    /// What the end of a result says of the server.
    fn status(&self, has_eof: bool) -> Option<u64> {
        if has_eof && self.payload[0] == EOF {
            return self.number_at(3, 2);
        }
        self.number_at(self.after_number(self.after_number(1)?)?, 2)
    }
}

impl Mysql {
    /// What the server can do.
    fn greeting(&mut self, packet: &Packet<'_>) -> Option<Stage> {
        let name = packet.payload.strip_prefix(&[10])?;
        // Version, thread, and the first half of the challenge.
        let at = 1 + find(name, b"\0")? + 1 + 4 + 8 + 1;
        let (low, high) = (packet.number_at(at, 2)?, packet.number_at(at + 5, 2)?);
        self.capabilities = (high << 16 | low) as u32;
        Some(Stage::Response)
    }

    /// What the client wants of it.
    fn response(&mut self, packet: &Packet<'_>) -> Result<Stage, OpaqueCause> {
        let wanted = packet.number_at(0, 4).ok_or(OpaqueCause::Malformed)? as u32;
        if wanted & (TLS | COMPRESS) != 0 {
            return Err(OpaqueCause::Changed);
        }
        self.capabilities &= wanted;
        if self.capabilities & PROTOCOL_41 == 0 || self.capabilities & OPTIONAL_METADATA != 0 {
            return Err(OpaqueCause::Unsupported);
        }
        Ok(Stage::Authentication)
    }

    const fn has_no_eof(&self) -> bool {
        self.capabilities & DEPRECATE_EOF != 0
    }

    /// The last packet of an answer, or of a part of it.
    fn end(&self, packet: &Packet<'_>, answer: Answer) -> Result<Stage, OpaqueCause> {
        let has_eof = !self.has_no_eof();
        let status = packet.status(has_eof).ok_or(OpaqueCause::Malformed)?;
        Ok(match answer {
            Answer::Columns if has_eof && status & CURSOR_EXISTS == 0 => {
                Stage::Answer(Answer::Rows)
            }
            _ if status & MORE_RESULTS != 0 => Stage::Answer(Answer::Result),
            _ => Stage::Command,
        })
    }

    /// A packet of an answer: what comes after it.
    fn follow(&self, answer: Answer, packet: &Packet<'_>) -> Result<Stage, OpaqueCause> {
        let kind = *packet.payload.first().ok_or(OpaqueCause::Malformed)?;
        let is_end = kind == EOF && packet.length < FULL;
        // How far it is: no end.
        if kind == ERROR && packet.number_at(1, 2) == Some(0xffff) {
            return Ok(Stage::Answer(answer));
        }
        Ok(match (answer, kind) {
            (Answer::Packets(1), _) | (Answer::One, _) => Stage::Command,
            (Answer::Packets(n), _) => Stage::Answer(Answer::Packets(n - 1)),
            (_, ERROR) => Stage::Command,
            (Answer::Prepared, OK) => self.prepared(packet).ok_or(OpaqueCause::Malformed)?,
            (Answer::Result, OK) => self.end(packet, answer)?,
            (Answer::Result, LOCAL_FILE) => return Err(OpaqueCause::Unsupported),
            (Answer::Prepared, _) => return Err(OpaqueCause::Malformed),
            (Answer::Result, _) if !is_end => Stage::Answer(Answer::Columns),
            (Answer::Columns | Answer::Rows, _) if is_end => self.end(packet, answer)?,
            (Answer::Columns | Answer::Rows, _) => Stage::Answer(answer),
            (Answer::Result, _) => return Err(OpaqueCause::Malformed),
        })
    }

    /// Columns and parameters follow, and an EOF after each of both.
    fn prepared(&self, packet: &Packet<'_>) -> Option<Stage> {
        let counts = [
            packet.number_at(5, 2)? as u32,
            packet.number_at(7, 2)? as u32,
        ];
        let eofs = counts
            .iter()
            .filter(|count| **count > 0 && !self.has_no_eof());
        Some(match counts[0] + counts[1] + eofs.count() as u32 {
            0 => Stage::Command,
            packets => Stage::Answer(Answer::Packets(packets)),
        })
    }
}

/// The answer that a command has, if it has one.
fn answer(command: u8) -> Result<Option<Answer>, OpaqueCause> {
    Ok(Some(match command {
        // COM_QUIT
        0x01 => return Err(OpaqueCause::Ended),
        // Replication and its relatives.
        0x12 | 0x13 | 0x15 | 0x1e | 0x20 => return Err(OpaqueCause::Streaming),
        // COM_STMT_SEND_LONG_DATA, COM_STMT_CLOSE
        0x18 | 0x19 => return Ok(None),
        // COM_QUERY, COM_PROCESS_INFO, COM_STMT_EXECUTE
        0x03 | 0x0a | 0x17 => Answer::Result,
        // COM_FIELD_LIST, COM_STMT_FETCH
        0x04 | 0x1c => Answer::Rows,
        0x16 => Answer::Prepared,
        // INIT_DB, CREATE_DB, DROP_DB, REFRESH, SHUTDOWN, STATISTICS, PROCESS_KILL, DEBUG, PING, STMT_RESET,
        // SET_OPTION, RESET_CONNECTION
        0x02 | 0x05..=0x09 | 0x0c..=0x0e | 0x1a | 0x1b | 0x1f => Answer::One,
        _ => return Err(OpaqueCause::Unsupported),
    }))
}

impl Profile for Mysql {
    fn told(&mut self, head: &[u8]) -> Read {
        let enough = if self.stage == Stage::Response { 32 } else { 1 };
        let packet = match Packet::read(head, enough) {
            Ok(packet) => packet,
            Err(other) => return other,
        };
        let next = match self.stage {
            _ if self.is_told_continued => Ok(self.stage),
            Stage::Greeting => Err(OpaqueCause::Malformed),
            Stage::Response => self.response(&packet),
            Stage::Authentication => Ok(Stage::Authentication),
            Stage::Command | Stage::Answer(_) if packet.number != 0 || packet.length == 0 => {
                Err(OpaqueCause::Malformed)
            }
            Stage::Command => {
                answer(packet.payload[0]).map(|answer| answer.map_or(Stage::Command, Stage::Answer))
            }
            // Behind one that is not answered yet there may be those that never are.
            Stage::Answer(_) => match answer(packet.payload[0]) {
                Ok(None) => Ok(self.stage),
                Ok(Some(_)) => Err(OpaqueCause::Unsupported),
                Err(cause) => Err(cause),
            },
        };
        match next {
            Ok(next) => self.stage = next,
            Err(cause) => return Read::Opaque(cause),
        }
        self.is_told_continued = packet.length == FULL;
        part(&packet)
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        // Enough for the numbers in front of a status, and for a greeting.
        let enough = match self.stage {
            Stage::Greeting => 256,
            _ => 32,
        };
        let packet = match Packet::read(head, enough) {
            Ok(packet) => packet,
            Err(other) => return other,
        };
        if let [token, ..] = due {
            return mine(&packet, *token);
        }
        let next = match self.stage {
            _ if self.is_heard_continued => Ok(self.stage),
            Stage::Greeting => self.greeting(&packet).ok_or(OpaqueCause::Malformed),
            Stage::Response => Err(OpaqueCause::Unsolicited),
            Stage::Authentication => match packet.payload.first() {
                Some(&OK) => Ok(Stage::Command),
                Some(&ERROR) => Err(OpaqueCause::Ended),
                _ => Ok(Stage::Authentication),
            },
            // The server says why it leaves.
            Stage::Command => Err(OpaqueCause::Unsolicited),
            Stage::Answer(answer) => self.follow(answer, &packet),
        };
        match next {
            Ok(next) => self.stage = next,
            Err(cause) => return Read::Opaque(cause),
        }
        self.is_heard_continued = packet.length == FULL;
        part(&packet)
    }

    fn phase(&self) -> Phase {
        match self.stage {
            Stage::Command => Phase::Idle,
            Stage::Answer(_) => Phase::Waiting,
            _ => Phase::Starting,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn question(&mut self, _: u64) -> Vec<u8> {
        vec![1, 0, 0, 0, 0x0e]
    }
}

const fn part(packet: &Packet<'_>) -> Read {
    match packet.length {
        FULL => Read::Part(4 + FULL),
        length => Read::End(4 + length),
    }
}

/// What stands where the answer must stand: OK, or what prevents it. A server that leaves says so with another
/// number.
fn mine(packet: &Packet<'_>, token: u64) -> Read {
    match (packet.number, packet.payload) {
        (1, [OK | ERROR, ..]) if packet.length < FULL => Read::Mine {
            token,
            length: 4 + packet.length,
        },
        _ => Read::Opaque(OpaqueCause::Misfit),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};
    use crate::heartbeat::{Heard, Heartbeat, State};

    fn profile() -> Box<dyn Profile> {
        Box::new(Mysql::default())
    }

    fn packet(number: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_le_bytes();
        [&length[..3], &[number], payload].concat()
    }

    /// Packets, numbered from one.
    fn packets(payloads: &[Vec<u8>]) -> Vec<u8> {
        let packets = payloads.iter().zip(1..);
        let packets = packets.map(|(payload, number)| packet(number, payload));
        packets.collect::<Vec<_>>().concat()
    }

    const BASE: u32 = PROTOCOL_41 | 1 << 15;

    fn greeting(capabilities: u32) -> Vec<u8> {
        let [a, b, c, d] = capabilities.to_le_bytes();
        let head = b"\x0a11.4.2-MariaDB\0\x07\0\0\0challeng\0";
        let caps = [a, b, 45, 2, 0, c, d, 21, 0, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0];
        let tail = b"ethesecondhalf\0mysql_native_password\0";
        packet(0, &[&head[..], &caps, tail].concat())
    }

    fn response(capabilities: u32) -> Vec<u8> {
        let head = [&capabilities.to_le_bytes()[..], &[0, 0, 0, 1, 45], &[0; 23]].concat();
        packet(1, &[&head[..], b"me\0\0"].concat())
    }

    fn handshake(client: u32) -> Vec<Exchange> {
        let server = BASE | DEPRECATE_EOF | COMPRESS | TLS | OPTIONAL_METADATA;
        vec![
            Exchange::in_turn([], greeting(server)),
            Exchange::in_turn(response(client), packet(2, b"\xfecaching_sha2_password\0")),
            Exchange::in_turn(packet(3, b"scramble"), packet(4, b"\x01\x03")),
            Exchange::in_turn([], packet(5, &ok(0))).answered(answer),
        ]
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        assert_eq!(question, packet(0, b"\x0e"));
        packet(1, &ok(0))
    }

    fn ok(status: u8) -> Vec<u8> {
        vec![OK, 0xfc, 1, 2, 3, 2 | status, 0, 0, 0]
    }

    /// The end of a result.
    fn end(has_eof: bool, status: u8) -> Vec<u8> {
        if has_eof {
            vec![EOF, 0, 0, status, 0]
        } else {
            vec![EOF, 0, 0, status, 0, 0, 0]
        }
    }

    fn columns(count: usize) -> Vec<Vec<u8>> {
        vec![b"\x03def\x01a\x01b".to_vec(); count]
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let row = prop_oneof![
            Just(vec![0]),
            Just(vec![0xfb, 0xfb]),
            Just([&[0xfc, 0, 2][..], &[7; 512]].concat()),
            "[a-z]{1,40}".prop_map(String::into_bytes),
        ];
        prop::collection::vec(row, 0..6)
    }

    fn result(has_eof: bool) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let rows = || {
            (rows(), 1..4usize).prop_map(move |(rows, n)| {
                let eof = if has_eof { vec![end(true, 8)] } else { vec![] };
                [vec![vec![n as u8]], columns(n), eof, rows].concat()
            })
        };
        let more = rows().prop_map(move |rows| [rows, vec![end(has_eof, 8)]].concat());
        let error = vec![ERROR, 1, 2, b'#'];
        let cursor = Just([vec![vec![2]], columns(2), vec![end(has_eof, 0x40)]].concat());
        let last = prop_oneof![
            Just(vec![ok(0)]),
            Just(vec![error.clone()]),
            Just(vec![vec![ERROR, 0xff, 0xff, 1, 2], error.clone()]),
            rows().prop_map(move |rows| [rows, vec![end(has_eof, 0)]].concat()),
            rows().prop_map(move |rows| [rows, vec![error.clone()]].concat()),
            cursor,
        ];
        let before = prop_oneof![3 => Just(Vec::new()), 1 => more, 1 => Just(vec![ok(8)])];
        (before, last).prop_map(|(before, last)| [before, last].concat())
    }

    fn prepared(has_eof: bool, columns_: u8, parameters: u8) -> Vec<Vec<u8>> {
        let mut answer = vec![vec![OK, 9, 0, 0, 0, columns_, 0, parameters, 0, 0, 0, 0]];
        for count in [columns_, parameters] {
            answer.extend(columns(count.into()));
            if has_eof && count > 0 {
                answer.push(end(true, 2));
            }
        }
        answer
    }

    fn command(has_eof: bool) -> impl Strategy<Value = Exchange> {
        let text = prop_oneof!["[ -~]{0,60}", "x{600}"];
        let told = |command: u8, text: String| packet(0, &[&[command], text.as_bytes()].concat());
        let single =
            prop::sample::select(vec![ok(0), vec![ERROR, 1, 2, b'#'], b"Uptime: 1".to_vec()]);
        let both = prop_oneof![
            4 => (prop::sample::select(vec![0x03, 0x0a, 0x17]), text.clone(), result(has_eof))
                .prop_map(move |(command, text, result)| (told(command, text), packets(&result))),
            1 => (text.clone(), 0..3u8, 0..3u8).prop_map(move |(text, a, b)| {
                (told(0x16, text), packets(&prepared(has_eof, a, b)))
            }),
            1 => (text.clone(), rows()).prop_map(move |(text, rows)| {
                let rows = [rows, vec![end(has_eof, 0)]].concat();
                (told(0x1c, text), packets(&rows))
            }),
            1 => (prop::sample::select(vec![0x02, 0x09, 0x0e, 0x1a, 0x1f]), text.clone(), single)
                .prop_map(move |(command, text, single)| (told(command, text), packets(&[single]))),
        ];
        let unanswered = (prop::sample::select(vec![0x18, 0x19]), text)
            .prop_map(move |(command, text)| (told(command, text), Vec::new()));
        prop_oneof![
            4 => both.prop_map(|(told, heard)| Exchange::in_turn(told, heard).answered(answer)),
            1 => Exchange::any_pace(unanswered, Some(answer)),
        ]
    }

    fn conversation() -> impl Strategy<Value = Vec<Exchange>> {
        any::<bool>().prop_flat_map(|has_eof| {
            let client = if has_eof { BASE } else { BASE | DEPRECATE_EOF };
            let commands = prop::collection::vec(command(has_eof), 0..12);
            commands.prop_map(move |commands| [handshake(client), commands].concat())
        })
    }

    proptest! {
        #[test]
        fn pings_are_transparent(mut script in conversation(), moves in moves()) {
            play(profile(), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn(packet(0, b"\x01"), []));
            play(profile(), &script, &moves, Ends::Opaque);
        }

        #[test]
        fn anything_is_survived(
            begins in any::<bool>(),
            pieces in pieces(&[
                b"\x01\0\0\0\x03", b"\x07\0\0\x01\0\0\0\x02\0\0\0", b"\x05\0\0\x01\xfe\0\0\x02\0",
                b"\x01\0\0\x01\x01", b"\x04\0\0\x01\xff\x01\x02#", b"\xff\xff\xff\0\x03", b"\0\0\0\x01",
            ]),
        ) {
            let handshake = handshake(BASE);
            let first = handshake.iter().flat_map(|e| [(true, e.told.clone()), (false, e.heard.clone())]);
            let first = first.filter(|_| begins).collect::<Vec<_>>();
            survive(profile(), &[first, pieces].concat());
        }
    }

    #[test]
    fn long_packets_are_continued() {
        let full = FULL as usize;
        let row = [
            [&[0xff, 0xff, 0xff, 1, 0xfe][..], &vec![EOF; full - 1]].concat(),
            packet(2, &[EOF; 7]),
        ];
        let query = [
            [&[0xff, 0xff, 0xff, 0, 3][..], &vec![b'x'; full - 1]].concat(),
            packet(1, b""),
        ];
        let mut heartbeat = ready();
        heartbeat.told(&query[0]);
        assert_eq!(heartbeat.state(), State::Busy);
        heartbeat.told(&query[1]);
        for part in [packet(1, &[1]), row.concat(), packet(3, &end(false, 0))] {
            assert_eq!(heartbeat.state(), State::Busy);
            assert_eq!(heartbeat.heard(&part, &mut Vec::new()), Heard::All);
        }
        assert_eq!(heartbeat.state(), State::Ready);
    }

    #[test]
    fn what_changes_the_conversation_is_not_followed() {
        for client in [
            BASE | TLS,
            BASE | COMPRESS,
            BASE | OPTIONAL_METADATA | DEPRECATE_EOF,
            0,
        ] {
            let mut script = handshake(client);
            script
                .iter_mut()
                .for_each(|exchange| exchange.answer = None);
            play(profile(), &script, &[], Ends::Opaque);
        }
        for command in [b"\x11", b"\x12", b"\x15", b"\x1e", b"\xfa"] {
            let mut script = handshake(BASE | DEPRECATE_EOF);
            script.push(Exchange::in_turn(packet(0, command), packet(1, &ok(0))));
            play(profile(), &script, &[], Ends::Opaque);
        }
        let answers = [
            packet(1, b"\xfbfile"),
            packet(1, b""),
            packet(0, b"\xff\x01\x02#"),
        ];
        for answer in answers {
            let mut script = handshake(BASE | DEPRECATE_EOF);
            script.push(Exchange::in_turn(packet(0, b"\x03LOAD DATA"), answer));
            script.push(Exchange::in_turn([], packet(0, b"\xff\x01\x02#")));
            play(profile(), &script, &[], Ends::Opaque);
        }
    }

    /// After the handshake.
    fn ready() -> Heartbeat {
        let mut heartbeat = Heartbeat::new(profile());
        for Exchange { told, heard, .. } in handshake(BASE | DEPRECATE_EOF) {
            heartbeat.told(&told);
            assert_eq!(heartbeat.heard(&heard, &mut Vec::new()), Heard::All);
        }
        heartbeat
    }

    #[test]
    fn commands_that_do_not_wait_are_not_followed() {
        let mut heartbeat = ready();
        heartbeat.told(&packet(0, b"\x03A"));
        heartbeat.told(&packet(0, b"\x19\0\0\0\0"));
        assert_eq!(heartbeat.state(), State::Busy);
        heartbeat.told(&packet(0, b"\x03B"));
        assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Unsupported));
    }

    #[test]
    fn another_answer_is_a_misfit() {
        let mut heartbeat = ready();
        assert!(heartbeat.ask(1).is_some());
        let leaves = packet(0, b"\xff\xbf\x0f#08S01idle");
        assert_eq!(heartbeat.heard(&leaves, &mut Vec::new()), Heard::All);
        assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Misfit));
    }
}
