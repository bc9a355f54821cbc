//! A client, a peer that answers in order, and a heartbeat between them. What each end sees is compared with
//! what it would see without.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;

use proptest::prelude::*;

use crate::heartbeat::{Heard, Heartbeat, Manner, Profile, State};

/// One step of a conversation, as the protocol has it. Each begins and ends between two messages.
#[derive(Clone)]
pub struct Exchange {
    /// What the peer is told; nothing, if it speaks by itself.
    pub told: Vec<u8>,
    /// What it says once it was told all of it; nothing, if it owes no answer.
    pub heard: Vec<u8>,
    /// When it is told.
    pub pace: Pace,
    /// How the peer answers a question that comes after this exchange; `None`: it must not be asked there.
    pub answer: Option<Answer>,
}

impl Exchange {
    /// After everything before was answered. Nothing may be asked after it.
    pub fn in_turn(told: impl Into<Vec<u8>>, heard: impl Into<Vec<u8>>) -> Self {
        Self {
            told: told.into(),
            heard: heard.into(),
            pace: Pace::InTurn,
            answer: None,
        }
    }

    /// The same, and a question that comes after it is answered so.
    pub fn answered(self, answer: Answer) -> Self {
        Self {
            answer: Some(answer),
            ..self
        }
    }

    /// What is told and heard, at any time.
    pub fn any_pace(
        both: impl Strategy<Value = (Vec<u8>, Vec<u8>)>,
        answer: Option<Answer>,
    ) -> impl Strategy<Value = Self> {
        let pace = prop_oneof![Just(Pace::InTurn), Just(Pace::Pipelined)];
        (both, pace).prop_map(move |((told, heard), pace)| Self {
            told,
            heard,
            pace,
            answer,
        })
    }
}

/// The answer to a question.
pub type Answer = fn(&[u8]) -> Vec<u8>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// After everything before was answered.
    InTurn,
    /// At once.
    Pipelined,
}

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The peer can be asked.
    Ready,
    /// It cannot, for now.
    NotReady,
    /// Not any more.
    Opaque,
}

/// What happens next, and how much of it.
#[derive(Clone)]
pub struct Moves(Vec<(u8, u16)>);

pub fn moves() -> impl Strategy<Value = Moves> {
    prop::collection::vec((0..12u8, any::<u16>()), 0..300).prop_map(Moves)
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (told, heard) = (self.told.escape_ascii(), self.heard.escape_ascii());
        let may = if self.answer.is_some() {
            "ask"
        } else {
            "do not"
        };
        write!(f, "\"{told}\" -> \"{heard}\" {:?} {may}", self.pace)
    }
}

impl Deref for Moves {
    type Target = [(u8, u16)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Plays a conversation. Returns it at its end, with everything delivered.
pub fn play(
    profile: Box<dyn Profile>,
    script: &[Exchange],
    moves: &[(u8, u16)],
    ends: Ends,
) -> Heartbeat {
    let mut model = Model::new(profile, script);
    for (what, size) in moves {
        match what {
            0..4 => model.tell(usize::from(*size)),
            4..6 => model.process(),
            6..10 => model.deliver(usize::from(*size)),
            10 => model.ask(),
            _ => model.heartbeat.give_up(),
        }
    }
    model.run_out(ends);
    model.heartbeat
}

enum Input {
    Exchange(usize),
    Question(Vec<u8>, Answer),
}

struct Model<'a> {
    script: &'a [Exchange],
    heartbeat: Heartbeat,
    manner: Manner,
    /// The exchange that is told, and how much of it was.
    next: usize,
    told: usize,
    /// What the peer was told and has not come to.
    input: VecDeque<Input>,
    /// What it has said and did not arrive: bytes, each with whether they are payload.
    output: VecDeque<(u8, bool)>,
    /// Payload that arrived at the heartbeat.
    delivered: Vec<u8>,
    /// What came out of it.
    seen: Vec<u8>,
    token: u64,
}

impl<'a> Model<'a> {
    fn new(profile: Box<dyn Profile>, script: &'a [Exchange]) -> Self {
        Self {
            script,
            manner: profile.manner(),
            heartbeat: Heartbeat::new(profile),
            next: 0,
            told: 0,
            input: VecDeque::new(),
            output: VecDeque::new(),
            delivered: Vec::new(),
            seen: Vec::new(),
            token: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Payload that the peer says up to an exchange.
    fn said(&self, exchanges: usize) -> usize {
        let heard = self.script[..exchanges].iter().map(|e| e.heard.len());
        heard.sum()
    }

    fn tell(&mut self, size: usize) {
        let Some(exchange) = self.script.get(self.next) else {
            return;
        };
        if self.heartbeat.must_wait() {
            return;
        }
        let must_wait = exchange.pace == Pace::InTurn && self.told == 0;
        if must_wait && self.seen.len() < self.said(self.next) {
            return;
        }
        let rest = &exchange.told[self.told..];
        let n = cut(size, rest.len());
        self.heartbeat.told(&rest[..n]);
        self.told += n;
        if self.told == exchange.told.len() {
            self.input.push_back(Input::Exchange(self.next));
            (self.next, self.told) = (self.next + 1, 0);
        }
    }

    fn process(&mut self) {
        match self.input.pop_front() {
            Some(Input::Exchange(n)) => {
                let said = self.script[n].heard.iter();
                self.output.extend(said.map(|byte| (*byte, true)));
            }
            Some(Input::Question(question, answer)) => {
                let said = answer(&question).into_iter();
                self.output.extend(said.map(|byte| (byte, false)));
            }
            None => {}
        }
    }

    fn deliver(&mut self, size: usize) {
        let n = cut(size, self.output.len());
        let (bytes, is_payload): (Vec<u8>, Vec<bool>) = self.output.drain(..n).unzip();
        let payload = bytes.iter().zip(is_payload).filter(|(_, is)| *is);
        self.delivered.extend(payload.map(|(byte, _)| *byte));
        let mut out = Vec::new();
        match self.heartbeat.heard(&bytes, &mut out) {
            Heard::All => {
                assert!(out.is_empty(), "something else was forwarded, too");
                self.seen.extend_from_slice(&bytes);
            }
            Heard::Instead => self.seen.extend_from_slice(&out),
        }
        assert!(
            self.delivered.starts_with(&self.seen),
            "{:?} was made of {:?}",
            self.seen.escape_ascii().to_string(),
            self.delivered.escape_ascii().to_string()
        );
        let counts = self.heartbeat.counts();
        if counts.answered == counts.asked || self.manner == Manner::OneWay {
            assert_eq!(self.heartbeat.held(), 0);
            assert_eq!(self.seen.len(), self.delivered.len());
        }
    }

    fn ask(&mut self) {
        self.token = self.token.wrapping_mul(0x5851_f42d_4c95_7f2d) | 1;
        let Some(question) = self.heartbeat.ask(self.token) else {
            return;
        };
        assert_eq!(self.told, 0, "asked within {:?}", self.script[self.next]);
        let last = self.next.checked_sub(1).map(|last| &self.script[last]);
        let last = last.expect("asked before anything was said");
        let answer = last
            .answer
            .unwrap_or_else(|| panic!("asked after {last:?}"));
        if self.manner == Manner::InTurn {
            // What the peer says by itself may still be under way.
            let owes = |n: &usize| {
                let Exchange { told, heard, .. } = &self.script[*n];
                let is_answered = !told.is_empty() && !heard.is_empty();
                is_answered && self.delivered.len() < self.said(n + 1)
            };
            let owed = (0..self.next).find(owes);
            assert_eq!(owed, None, "asked while an answer was owed");
        }
        self.input.push_back(Input::Question(question, answer));
    }

    fn run_out(&mut self, ends: Ends) {
        while self.next < self.script.len() || !self.input.is_empty() || !self.output.is_empty() {
            self.tell(usize::MAX);
            self.process();
            self.deliver(usize::MAX);
        }
        let all = self.script.iter().flat_map(|e| e.heard.iter());
        assert!(self.seen.iter().eq(all), "not everything came through");
        self.heartbeat.give_up();
        let state = self.heartbeat.state();
        match ends {
            Ends::Opaque => assert!(matches!(state, State::Opaque(_)), "{state:?}"),
            Ends::NotReady => assert!(!matches!(state, State::Opaque(_) | State::Ready)),
            Ends::Ready => {
                assert_eq!(state, State::Ready, "after {:?}", self.script.last());
                let before = self.heartbeat.counts().answered;
                self.ask();
                self.process();
                self.deliver(usize::MAX);
                let proven = self.heartbeat.counts().answered - before;
                assert_eq!(proven, u64::from(self.manner != Manner::OneWay));
                assert!(self.seen == self.delivered && self.heartbeat.held() == 0);
            }
        }
    }
}

/// How much of so many bytes: often only a few.
fn cut(size: usize, of: usize) -> usize {
    match size {
        _ if of == 0 => 0,
        usize::MAX => of,
        _ if size.is_multiple_of(2) => (1 + size / 2 % 7).min(of),
        _ => 1 + size / 2 % of,
    }
}

/// Both directions carry anything at all: nothing panics, and nothing but a whole answer is kept.
pub fn survive(profile: Box<dyn Profile>, pieces: &[(bool, Vec<u8>)]) {
    let mut heartbeat = Heartbeat::new(profile);
    let (mut said, mut seen) = (Vec::new(), Vec::new());
    for (at, (is_told, bytes)) in pieces.iter().enumerate() {
        if *is_told {
            heartbeat.told(bytes);
        } else {
            let mut out = Vec::new();
            said.extend_from_slice(bytes);
            match heartbeat.heard(bytes, &mut out) {
                Heard::All => seen.extend_from_slice(bytes),
                Heard::Instead => seen.append(&mut out),
            }
        }
        let _ = heartbeat.ask((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    heartbeat.finish(&mut seen);
    assert!(heartbeat.counts().answered > 0 || seen == said);
    let mut rest = said.iter();
    assert!(seen.iter().all(|byte| rest.any(|said| said == byte)));
}

/// Pieces for [`survive`], made of `parts` of the protocol, and of anything.
pub fn pieces(parts: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    let part = prop_oneof![
        4 => prop::sample::select(parts).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..40),
    ];
    prop::collection::vec((any::<bool>(), part), 0..60)
}
