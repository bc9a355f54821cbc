//! Both directions of a conversation in each protocol, of anything at all, cut anywhere, with questions where they
//! may be asked. Nothing panics; what comes out is what came in, less answers to questions; little is held back;
//! what is opaque is so for good.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pulsegate::heartbeat::profiles::Protocol;
use pulsegate::heartbeat::{HEAD, Heard, Heartbeat, State};
use pulsegate::liveness::LEGS;
use strum::VariantNames;

#[derive(Arbitrary, Debug)]
struct Input {
    protocol: u8,
    leg: bool,
    /// How a connection of this protocol begins, before anything else.
    greets: bool,
    moves: Vec<Move>,
}

#[derive(Arbitrary, Debug)]
enum Move {
    Told(Vec<u8>),
    Heard(Vec<u8>),
    Ask(u64),
    /// The right answer to the last question, cut here.
    Answer(u8),
    GiveUp,
}

fuzz_target!(|input: Input| {
    let name = Protocol::VARIANTS[usize::from(input.protocol) % Protocol::VARIANTS.len()];
    let protocol: Protocol = name.parse().expect("a name");
    let Some(profile) = protocol.profile(LEGS[usize::from(input.leg)]) else { return };
    let mut talk = Talk::new(Heartbeat::new(profile));
    if input.greets {
        for (told, heard) in greeting(name) {
            talk.heartbeat.told(told);
            talk.hear(heard);
        }
    }
    for step in &input.moves {
        match step {
            Move::Told(bytes) => talk.heartbeat.told(bytes),
            Move::Heard(bytes) => talk.hear(bytes),
            Move::Ask(token) => talk.ask(*token),
            Move::Answer(cut) => {
                let answer = answer(name, &talk.question);
                let (first, rest) = answer.split_at(usize::from(*cut) % (answer.len() + 1));
                talk.hear(first);
                talk.hear(rest);
            }
            Move::GiveUp => talk.heartbeat.give_up(),
        }
        talk.check();
    }
    talk.heartbeat.finish(&mut talk.out);
    talk.held.clear();
    talk.compare();
});

struct Talk {
    heartbeat: Heartbeat,
    question: Vec<u8>,
    /// What was held back after the last bytes.
    held: Vec<u8>,
    /// What came since the last comparison, and what came out.
    came: Vec<u8>,
    out: Vec<u8>,
    opaque: Option<State>,
}

impl Talk {
    fn new(heartbeat: Heartbeat) -> Self {
        Self {
            heartbeat,
            question: Vec::new(),
            held: Vec::new(),
            came: Vec::new(),
            out: Vec::new(),
            opaque: None,
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.came.extend_from_slice(bytes);
        match self.heartbeat.heard(bytes, &mut self.out) {
            Heard::All => {
                assert!(self.held.is_empty(), "what was held comes first");
                self.out.extend_from_slice(bytes);
            }
            Heard::Instead => {}
        }
        let held = self.heartbeat.held();
        assert!(held < HEAD && held <= self.came.len());
        self.held = self.came[self.came.len() - held..].to_vec();
        self.compare();
    }

    /// Until a question was answered all has come out but what is held; then nothing is added, and nothing moved.
    fn compare(&mut self) {
        let all = &self.came[..self.came.len() - self.held.len()];
        if self.heartbeat.counts().answered == 0 {
            assert!(self.out == all);
        } else {
            let mut rest = all.iter();
            assert!(self.out.iter().all(|byte| rest.any(|came| came == byte)));
        }
        (self.came, self.out) = (self.held.clone(), Vec::new());
    }

    fn ask(&mut self, token: u64) {
        let may = self.heartbeat.may_ask();
        let question = self.heartbeat.ask(token);
        assert_eq!(question.is_some(), may);
        if let Some(question) = question {
            assert!(!question.is_empty());
            self.question = question;
        }
    }

    fn check(&mut self) {
        let counts = self.heartbeat.counts();
        assert!(counts.answered <= counts.asked && counts.late <= counts.answered);
        let state = self.heartbeat.state();
        assert!(self.opaque.is_none_or(|before| before == state), "{state:?}");
        if let State::Opaque(_) = state {
            assert!(!self.heartbeat.at_boundary());
            self.opaque = Some(state);
        }
    }
}

/// An exchange after which the peer may be asked.
fn greeting(name: &str) -> &'static [(&'static [u8], &'static [u8])] {
    match name {
        "redis" => &[(b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")],
        "postgres" => &[
            (b"\0\0\0\x08\0\x03\0\0", b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I"),
            (b"Q\0\0\0\x05\0", b"I\0\0\0\x04Z\0\0\0\x05I"),
        ],
        "mqtt" => &[(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c", b"\x20\x02\0\0")],
        "telnet" => &[(b"\xff\xfd\x01\xff\xfd\x03", b"\xff\xfb\x01\xff\xfb\x03")],
        "memcached" => &[(b"get a\r\n", b"END\r\n")],
        "custom" => &[(b"hello\n", b"world\n")],
        "hsms" => &[(
            b"\0\0\0\x0a\xff\xff\0\0\0\x01\0\0\0\x01",
            b"\0\0\0\x0a\xff\xff\0\0\0\x02\0\0\0\x01",
        )],
        "iec104" => &[(b"\x68\x04\x07\0\0\0", b"\x68\x04\x0b\0\0\0")],
        "smpp" => &[(
            b"\0\0\0\x10\0\0\0\x09\0\0\0\0\0\0\0\x01",
            b"\0\0\0\x10\x80\0\0\x09\0\0\0\0\0\0\0\x01",
        )],
        _ => &[],
    }
}

/// What a peer says to a question; nothing, where there is no answer.
fn answer(name: &str, question: &[u8]) -> Vec<u8> {
    let with = |at: usize, byte: u8| {
        let mut all = question.to_vec();
        if let Some(place) = all.get_mut(at) {
            *place = byte;
        }
        all
    };
    match name {
        "redis" => question.get(14..).unwrap_or_default().to_vec(),
        "postgres" => b"Z\0\0\0\x05I".to_vec(),
        "mqtt" => b"\xd0\0".to_vec(),
        "telnet" => with(1, 0xfb),
        "memcached" => b"VERSION 1.6.18\r\n".to_vec(),
        "custom" => b"PONG\r\n".to_vec(),
        "hsms" => with(9, 6),
        "iec104" => with(2, 0x83),
        "smpp" => with(4, 0x80),
        _ => Vec::new(),
    }
}
