//! PostgreSQL, protocol 3: `Sync`, while every request was answered by `ReadyForQuery`.
//!
//! A `Sync` changes nothing there, in a transaction either. Not asked: before the client has sent the `Sync` of
//! a pipeline (it would commit what is there), in `COPY`. Opaque: TLS and GSSAPI encryption once the server has
//! agreed, replication, cancel requests, a start-up message that is too long to look for replication in it.

use crate::heartbeat::frame::Order;
use crate::heartbeat::profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};

/// No message is longer (`PQ_LARGE_MESSAGE_LIMIT`).
const LONGEST: u64 = 0x3fff_ffff;

/// `CancelRequest`, `SSLRequest`, `GSSENCRequest`: a major version that there is not.
const CANCEL: u64 = 80_877_102;
const TLS: u64 = 80_877_103;
const GSSAPI: u64 = 80_877_104;

/// The conversation.
#[derive(Debug, Default)]
pub struct Postgres {
    has_started: bool,
    /// Requests for encryption, each of which is answered by one byte.
    negotiations: u64,
    /// `ReadyForQuery` that the server owes.
    owed: u64,
    /// Whether something was told after the last `Sync` that one is to follow.
    is_unsynced: bool,
    /// How often `Sync` was told since the last `Execute`, if no other request came after that.
    syncs: Option<u64>,
    /// The status of the transaction, once the server is ready.
    status: Option<u8>,
}

impl Postgres {
    /// The first messages of a client have no type.
    fn start(&mut self, head: &[u8]) -> Read {
        if head.len() < 8 {
            return Read::More;
        }
        let length = Order::Big.number(&head[..4]);
        let fits = (8..=HEAD as u64).contains(&length);
        match (Order::Big.number(&head[4..8]), length) {
            (CANCEL, _) => return Read::Opaque(OpaqueCause::Ended),
            (TLS | GSSAPI, 8) => self.negotiations += 1,
            (version, _) if version >> 16 != 3 => return Read::Opaque(OpaqueCause::Malformed),
            _ if !fits => return Read::Opaque(OpaqueCause::Unsupported),
            _ => {
                let Some(parameters) = head.get(8..length as usize) else {
                    return Read::More;
                };
                if parameters
                    .split(|byte| *byte == 0)
                    .any(|word| word == b"replication")
                {
                    return Read::Opaque(OpaqueCause::Streaming);
                }
                self.has_started = true;
                self.owed = 1;
            }
        }
        Read::End(length)
    }

    /// A message of the server while one of ours may be due.
    fn said(&mut self, kind: u8, status: Option<&u8>, due: &[u64]) -> Result<(), Read> {
        let may_come_by_itself = b"NASE".contains(&kind);
        match (kind, due) {
            (b'Z', [token, ..]) if status == self.status.as_ref() => {
                return Err(Read::Mine {
                    token: *token,
                    length: 6,
                });
            }
            _ if may_come_by_itself => {}
            (_, [_, ..]) => return Err(Read::Opaque(OpaqueCause::Misfit)),
            (b'Z', _) if self.owed > 0 => {
                self.owed -= 1;
                self.status = status.copied();
            }
            (b'W', _) => return Err(Read::Opaque(OpaqueCause::Streaming)),
            (b'Z', _) => return Err(Read::Opaque(OpaqueCause::Unsolicited)),
            _ if self.owed == 0 && !self.is_unsynced => {
                return Err(Read::Opaque(OpaqueCause::Unsolicited));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Profile for Postgres {
    fn told(&mut self, head: &[u8]) -> Read {
        if !self.has_started {
            return self.start(head);
        }
        let unit = message(head);
        if !matches!(unit, Read::End(_)) {
            return unit;
        }
        match head[0] {
            b'Q' | b'F' => (self.owed, self.syncs) = (self.owed + 1, None),
            b'S' => {
                self.owed += 1;
                self.syncs = self.syncs.map(|syncs| syncs + 1);
                self.is_unsynced = false;
            }
            b'P' | b'B' | b'D' | b'C' | b'H' => self.is_unsynced = true,
            b'E' => (self.is_unsynced, self.syncs) = (true, Some(0)),
            // What COPY was told before its data ended was ignored, and a `Sync` is to follow.
            b'c' | b'f' => {
                if let Some(syncs) = self.syncs.take() {
                    self.owed = self.owed.saturating_sub(syncs);
                    self.is_unsynced = true;
                }
            }
            b'd' | b'p' => {}
            b'X' => return Read::Opaque(OpaqueCause::Ended),
            _ => return Read::Opaque(OpaqueCause::Malformed),
        }
        unit
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        if self.negotiations > 0 {
            self.negotiations -= 1;
            return match head[0] {
                b'N' => Read::End(1),
                _ => Read::Opaque(OpaqueCause::Changed),
            };
        }
        let unit = message(head);
        match unit {
            Read::End(6) if head[0] == b'Z' && head.len() < 6 => return Read::More,
            Read::End(6) if head[0] == b'Z' => {}
            Read::End(_) if b"RKSTDCIENA123nstVGHWdcv".contains(&head[0]) => {}
            Read::End(_) => return Read::Opaque(OpaqueCause::Malformed),
            other => return other,
        }
        self.said(head[0], head.get(5), due).err().unwrap_or(unit)
    }

    fn phase(&self) -> Phase {
        match self.status {
            None => Phase::Starting,
            Some(_) if self.owed > 0 || self.is_unsynced => Phase::Waiting,
            Some(_) => Phase::Idle,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn question(&mut self, _: u64) -> Vec<u8> {
        b"S\0\0\0\x04".to_vec()
    }
}

/// A type, and a length that does not count it.
fn message(head: &[u8]) -> Read {
    if head.len() < 5 {
        return Read::More;
    }
    match Order::Big.number(&head[1..5]) {
        length @ 4..=LONGEST => Read::End(length + 1),
        _ => Read::Opaque(OpaqueCause::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{
        Answer, Ends, Exchange, Pace, moves, pieces, play, survive,
    };
    use crate::heartbeat::{Heartbeat, State};

    fn typed(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    fn untyped(code: u64, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u32 + 8;
        [
            &length.to_be_bytes()[..],
            &(code as u32).to_be_bytes(),
            body,
        ]
        .concat()
    }

    fn ready(status: u8) -> Vec<u8> {
        typed(b'Z', &[status])
    }

    fn answer(status: u8) -> Answer {
        match status {
            b'I' => |_| ready(b'I'),
            b'T' => |_| ready(b'T'),
            _ => |_| ready(b'E'),
        }
    }

    fn step(told: Vec<u8>, heard: Vec<u8>, answer: Option<Answer>) -> Exchange {
        Exchange {
            told,
            heard,
            pace: Pace::Pipelined,
            answer,
        }
    }

    const PARAMETERS: &[u8] = b"user\0me\0database\0replications\0\0";

    fn started(parameters: &[u8]) -> Vec<Exchange> {
        let hello = untyped(0x3_0000, parameters);
        let rest = [
            typed(b'R', &[0; 4]),
            typed(b'S', b"a\0b\0"),
            typed(b'K', &[7; 8]),
            ready(b'I'),
        ];
        vec![
            step(untyped(TLS, b""), b"N".to_vec(), None),
            step(untyped(GSSAPI, b""), b"N".to_vec(), None),
            step(hello, typed(b'R', &[0, 0, 0, 10, 0]), None),
            step(typed(b'p', b"SCRAM"), typed(b'R', &[0, 0, 0, 12]), None),
            step(typed(b'p', b"again"), rest.concat(), Some(answer(b'I'))),
        ]
    }

    fn rows() -> impl Strategy<Value = Vec<u8>> {
        let row = prop::collection::vec(any::<u8>(), 0..40).prop_map(|row| typed(b'D', &row));
        let row = prop_oneof![5 => row, 1 => Just(typed(b'D', &[9; 2000])), 1 => Just(typed(b'E', b"SERROR\0\0"))];
        prop::collection::vec(row, 0..5).prop_map(|rows| rows.concat())
    }

    #[derive(Clone, Copy, Debug)]
    enum Part {
        Query,
        Pipeline,
        CopyIn,
        CopyInPipeline,
        CopyOut,
        ByItself,
    }

    /// What is told and heard, and the status of the transaction before and after.
    fn part(part: Part, rows: &[u8], before: u8, after: u8) -> Vec<Exchange> {
        let may = Some(answer(after));
        let tell = |kind, heard: &[u8]| step(typed(kind, b"text\0"), heard.to_vec(), None);
        let last =
            |kind, heard: Vec<u8>| step(typed(kind, b""), [heard, ready(after)].concat(), may);
        let done = typed(b'C', b"COPY 1\0");
        let copying = |kind| typed(kind, &[0; 3]);
        match part {
            Part::Query => vec![step(
                typed(b'Q', b"select\0"),
                [rows, &ready(after)].concat(),
                may,
            )],
            Part::Pipeline => {
                let told = [b'P', b'B', b'D', b'E', b'H', b'B', b'E', b'C'];
                let mut steps: Vec<_> = told.map(|kind| tell(kind, b"")).into();
                steps.push(last(b'S', [&typed(b'1', b""), rows].concat()));
                steps
            }
            Part::CopyIn => vec![
                tell(b'Q', &copying(b'G')),
                tell(b'd', b""),
                tell(b'd', b""),
                last(if before == after { b'c' } else { b'f' }, done),
            ],
            Part::CopyInPipeline => vec![
                tell(b'P', b""),
                tell(b'E', b""),
                step(typed(b'S', b""), copying(b'G'), None),
                step(typed(b'd', b"data"), vec![], None),
                tell(b'c', &done),
                last(b'S', vec![]),
            ],
            Part::CopyOut => vec![last(
                b'Q',
                [copying(b'H'), typed(b'd', b"1"), copying(b'c'), done].concat(),
            )],
            Part::ByItself => {
                let all = [
                    typed(b'N', b"SNOTICE\0\0"),
                    typed(b'A', &[0; 9]),
                    typed(b'S', b"a\0b\0"),
                ];
                vec![step(Vec::new(), all.concat(), Some(answer(before)))]
            }
        }
    }

    fn script() -> impl Strategy<Value = Vec<Exchange>> {
        use Part::{ByItself, CopyIn, CopyInPipeline, CopyOut, Pipeline, Query};
        let kind =
            prop::sample::select(&[Query, Pipeline, CopyIn, CopyInPipeline, CopyOut, ByItself][..]);
        let parts = (kind, rows(), prop::sample::select(&b"ITE"[..]));
        let paces = prop_oneof![Just(Pace::InTurn), Just(Pace::Pipelined)];
        let paces = prop::collection::vec(paces, 100);
        (prop::collection::vec(parts, 0..8), paces).prop_map(|(parts, paces)| {
            let mut script = started(PARAMETERS);
            let mut before = b'I';
            for (kind, rows, mut after) in parts {
                if matches!(kind, ByItself) {
                    after = before;
                }
                script.extend(part(kind, &rows, before, after));
                before = after;
            }
            let told = script.iter_mut().filter(|step| !step.told.is_empty());
            for (step, pace) in told.zip(paces) {
                step.pace = pace;
            }
            script
        })
    }

    proptest! {
        #[test]
        fn conversations_are_transparent(script in script(), moves in moves()) {
            play(Box::new(Postgres::default()), &script, &moves, Ends::Ready);
        }

        #[test]
        fn what_is_not_followed_is_opaque(script in script(), moves in moves(), last in 0..4usize) {
            let last = [
                step(typed(b'Q', b"START_REPLICATION\0"), typed(b'W', &[0; 3]), None),
                step(typed(b'X', b""), vec![], None),
                step(typed(b'Q', b"?\0"), typed(b'?', b""), None),
                step(b"\0\0\0\0\0".to_vec(), vec![], None),
            ][last].clone();
            let last = Exchange { pace: Pace::InTurn, ..last };
            play(Box::new(Postgres::default()), &[script, vec![last]].concat(), &moves, Ends::Opaque);
        }

        #[test]
        fn nothing_is_asked_within_a_pipeline_or_behind_a_query(
            script in script(),
            moves in moves(),
            kind in prop::sample::select(&b"QPBEDCHF"[..]),
        ) {
            let last = step(typed(kind, b"\0"), typed(b'N', b"\0"), None);
            play(Box::new(Postgres::default()), &[script, vec![last]].concat(), &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"\0\0\0\x09\0\x03\0\0\0", b"\0\0\0\x08\x04\xd2\x16\x2f", b"N", b"Z\0\0\0\x05I", b"Q\0\0\0\x05\0",
            b"S\0\0\0\x04", b"Z\0\0\0\x05", b"C\0\0\0\x04", b"E\0\0\0\x04", b"c\0\0\0\x04", b"\xff",
        ])) {
            survive(Box::new(Postgres::default()), &pieces);
        }
    }

    fn state_after(told: &[u8], heard: &[u8]) -> State {
        let mut heartbeat = Heartbeat::new(Box::new(Postgres::default()));
        heartbeat.told(told);
        let _ = heartbeat.heard(heard, &mut Vec::new());
        heartbeat.state()
    }

    #[test]
    fn what_cannot_be_asked_is_opaque_from_the_start() {
        let replication = untyped(0x3_0000, b"user\0me\0replication\0true\0\0");
        let long = untyped(0x3_0000, &[b'x'; HEAD]);
        let (old, cancel) = (untyped(0x2_0000, b"me"), untyped(CANCEL, &[0; 8]));
        let (tls, gssapi) = (untyped(TLS, b""), untyped(GSSAPI, b""));
        for (told, heard, cause) in [
            (&replication, &b""[..], OpaqueCause::Streaming),
            (&long, b"", OpaqueCause::Unsupported),
            (&old, b"", OpaqueCause::Malformed),
            (&cancel, b"", OpaqueCause::Ended),
            (&tls, b"S", OpaqueCause::Changed),
            (&gssapi, b"G", OpaqueCause::Changed),
            (&tls, b"E", OpaqueCause::Changed),
            (&tls, b"NR\0\0\0\x04", OpaqueCause::Unsolicited),
        ] {
            assert_eq!(state_after(told, heard), State::Opaque(cause));
        }
    }

    #[test]
    fn another_status_is_a_misfit() {
        let hello = untyped(0x3_0000, PARAMETERS);
        let mut heartbeat = Heartbeat::new(Box::new(Postgres::default()));
        heartbeat.told(&hello);
        let _ = heartbeat.heard(&ready(b'I'), &mut Vec::new());
        assert_eq!(heartbeat.ask(1), Some(b"S\0\0\0\x04".to_vec()));
        let _ = heartbeat.heard(&ready(b'T'), &mut Vec::new());
        assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Misfit));
    }
}
