//! The conversation itself, with a protocol of lines.

pub mod model;

use super::frame::{Framing, Length, Order};
use super::profiles::Protocol;
use super::profiles::custom::{Description, IdPlace};
use super::*;
use crate::liveness::Leg;

fn description(send: &str, expect: &str, id: Option<IdPlace>) -> Description {
    Description {
        framing: Framing::Line(Box::from(*b"\n")),
        send: send.as_bytes().into(),
        expect: expect.as_bytes().into(),
        id,
    }
}

/// A peer that knows PING, and one exchange with it.
fn started(description: Description) -> Heartbeat {
    assert_eq!(description.check(), Ok(()));
    let profile = Protocol::Custom(description).profile(Leg::Upstream);
    let mut heartbeat = Heartbeat::new(profile.expect("both legs can be asked"));
    assert_eq!(heartbeat.state(), State::Starting);
    heartbeat.told(b"hello\n");
    assert_eq!(hear(&mut heartbeat, "world\n"), "world\n");
    heartbeat
}

fn ping() -> Heartbeat {
    started(description("PING\n", "PONG\n", None))
}

fn numbered() -> Heartbeat {
    let id = Some(IdPlace { offset: 5, size: 4 });
    started(description("PING ....\n", "PONG ", id))
}

fn hear(heartbeat: &mut Heartbeat, text: &str) -> String {
    let mut out = Vec::new();
    match heartbeat.heard(text.as_bytes(), &mut out) {
        Heard::All => text.to_owned(),
        Heard::Instead => String::from_utf8(out).expect("text"),
    }
}

fn ask(heartbeat: &mut Heartbeat, token: u64) -> Option<String> {
    let question = heartbeat.ask(token)?;
    Some(String::from_utf8(question).expect("text"))
}

#[test]
fn an_answer_is_taken_out_and_nothing_else() {
    for cut in 0..=5 {
        let mut heartbeat = ping();
        assert_eq!(ask(&mut heartbeat, 1).as_deref(), Some("PING\n"));
        assert_eq!(heartbeat.state(), State::Asked);
        let (a, b) = "PONG\n".split_at(cut);
        assert_eq!(hear(&mut heartbeat, a), "");
        assert_eq!(heartbeat.held(), cut % 5);
        heartbeat.told(b"hello\n");
        assert_eq!(hear(&mut heartbeat, &format!("{b}PONG\n")), "PONG\n");
        assert_eq!((heartbeat.state(), heartbeat.held()), (State::Ready, 0));
        let counts = heartbeat.counts();
        assert_eq!((counts.asked, counts.answered, counts.late), (1, 1, 0));
    }
}

#[test]
fn nothing_is_asked_within_a_message_or_while_an_answer_is_owed() {
    let mut heartbeat = ping();
    heartbeat.told(b"he");
    assert_eq!(
        (ask(&mut heartbeat, 1), heartbeat.state()),
        (None, State::Busy)
    );
    heartbeat.told(b"llo\nhello\n");
    assert_eq!(hear(&mut heartbeat, "world\nwor"), "world\nwor");
    assert_eq!(
        (ask(&mut heartbeat, 1), heartbeat.state()),
        (None, State::Busy)
    );
    assert!(!heartbeat.at_boundary());
    assert_eq!(hear(&mut heartbeat, "ld\n"), "ld\n");
    assert!(heartbeat.at_boundary());
    assert!(ask(&mut heartbeat, 1).is_some() && !heartbeat.at_boundary());
    assert_eq!(ask(&mut heartbeat, 2), None, "one at a time");
}

#[test]
fn what_a_peer_is_told_behind_a_question_excuses_no_silence() {
    for mut heartbeat in [ping(), numbered()] {
        heartbeat.told(b"hello\n");
        assert!(heartbeat.owes());
        let _ = hear(&mut heartbeat, "world\n");
        assert!(!heartbeat.owes() && ask(&mut heartbeat, 1).is_some());
        heartbeat.told(b"hello\n");
        assert!(!heartbeat.owes());
        heartbeat.give_up();
        let _ = ask(&mut heartbeat, 2);
        assert!(!heartbeat.owes());
    }
}

#[test]
fn a_request_before_a_question_may_be_slow() {
    let mut heartbeat = numbered();
    heartbeat.told(b"slow\n");
    assert!(ask(&mut heartbeat, 1).is_some() && heartbeat.owes());
    heartbeat.told(b"slow\n");
    let _ = hear(&mut heartbeat, "one\n");
    assert!(heartbeat.owes());
    let _ = hear(&mut heartbeat, "two\n");
    assert!(!heartbeat.owes());
    heartbeat.told(b"later\n");
    assert!(!heartbeat.owes());
    let _ = hear(&mut heartbeat, "PONG 0001\n");
    assert!(heartbeat.owes());
}

#[test]
fn a_late_answer_is_taken_out_once() {
    let mut heartbeat = ping();
    assert!(ask(&mut heartbeat, 1).is_some());
    heartbeat.give_up();
    assert_eq!(heartbeat.state(), State::Ready);
    assert!(ask(&mut heartbeat, 2).is_some());
    assert_eq!(hear(&mut heartbeat, "PONG\n"), "");
    assert_eq!(heartbeat.state(), State::Asked, "that was the first one's");
    assert_eq!(hear(&mut heartbeat, "PONG\nPONG\n"), "PONG\n");
    let counts = heartbeat.counts();
    assert_eq!((counts.asked, counts.answered, counts.late), (2, 2, 1));
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Unsolicited));
}

#[test]
fn a_second_message_or_a_push_ends_the_asking_before_the_next_question() {
    let mut heartbeat = ping();
    assert_eq!(hear(&mut heartbeat, "ne"), "ne");
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Unsolicited));
    assert_eq!(hear(&mut heartbeat, "ws\n"), "ws\n");
    assert_eq!(ask(&mut heartbeat, 1), None);
}

#[test]
fn the_answer_to_the_same_question_of_somebody_else_is_not_taken_out() {
    for others in ["PING\n", "PING\nhello\n"] {
        let mut heartbeat = ping();
        assert!(ask(&mut heartbeat, 1).is_some());
        heartbeat.told(others.as_bytes());
        assert_eq!(hear(&mut heartbeat, "PONG\n"), "PONG\n");
        let mut lost = ping();
        assert!(ask(&mut lost, 1).is_some());
        lost.give_up();
        lost.told(others.as_bytes());
        assert_eq!(hear(&mut lost, "PONG\nworld\n"), "PONG\nworld\n");
        assert_eq!(lost.state(), State::Opaque(OpaqueCause::Misfit));
        assert_eq!(hear(&mut heartbeat, "PONG\n"), "");
        assert_eq!(heartbeat.counts().answered, 1);
    }
}

#[test]
fn only_so_many_questions_stay_unanswered() {
    let mut heartbeat = ping();
    let mut asked = 0;
    while ask(&mut heartbeat, asked).is_some() {
        heartbeat.give_up();
        asked += 1;
    }
    assert_eq!(
        (asked as usize, heartbeat.state()),
        (MOST_UNANSWERED, State::Busy)
    );
    assert_eq!(hear(&mut heartbeat, "PONG\n"), "");
    assert_eq!(heartbeat.state(), State::Ready);
}

#[test]
fn a_foreign_answer_is_passed_on_and_ends_the_asking() {
    let mut heartbeat = ping();
    assert!(ask(&mut heartbeat, 1).is_some());
    assert_eq!(hear(&mut heartbeat, "PO"), "");
    assert_eq!(hear(&mut heartbeat, "EM\nPONG\n"), "POEM\nPONG\n");
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Misfit));
    assert_eq!(ask(&mut heartbeat, 2), None);
}

#[test]
fn a_peer_that_has_answered_once_is_no_longer_asked_either() {
    let mut heartbeat = ping();
    assert!(ask(&mut heartbeat, 1).is_some());
    assert_eq!(hear(&mut heartbeat, "PONG\n"), "");
    assert!(ask(&mut heartbeat, 2).is_some());
    assert_eq!(hear(&mut heartbeat, "POEM\nPONG\n"), "POEM\nPONG\n");
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Misfit));
}

#[test]
fn an_id_tells_answers_apart() {
    let mut heartbeat = numbered();
    heartbeat.told(b"slow\n");
    assert_eq!(ask(&mut heartbeat, 12_345).as_deref(), Some("PING 2345\n"));
    heartbeat.give_up();
    assert_eq!(ask(&mut heartbeat, 7).as_deref(), Some("PING 0007\n"));
    let heard = hear(
        &mut heartbeat,
        "PONG 0008\nPONG 0007 ok\nsorry\nPONG 2345\nPONG 2345\n",
    );
    assert_eq!(heard, "PONG 0008\nsorry\nPONG 2345\n");
    let counts = heartbeat.counts();
    assert_eq!((counts.asked, counts.answered, counts.late), (2, 2, 1));
}

#[test]
fn a_message_that_began_before_the_question_is_not_held() {
    let mut heartbeat = numbered();
    assert_eq!(hear(&mut heartbeat, "PONG "), "PONG ");
    assert!(ask(&mut heartbeat, 7).is_some());
    assert_eq!(hear(&mut heartbeat, "00"), "00");
    assert_eq!(hear(&mut heartbeat, "07\nPONG 0007\n"), "07\n");
}

#[test]
fn what_is_held_at_the_end_is_given_back() {
    let mut heartbeat = ping();
    assert!(ask(&mut heartbeat, 1).is_some());
    assert_eq!(hear(&mut heartbeat, "PON"), "");
    let mut out = Vec::new();
    heartbeat.finish(&mut out);
    assert_eq!(out, b"PON");
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Ended));
    assert_eq!(hear(&mut heartbeat, "G\n"), "G\n");
}

/// A protocol of single bytes: a letter is answered by itself, `!` is not understood.
#[derive(Debug)]
struct Letters;

impl Profile for Letters {
    fn told(&mut self, head: &[u8]) -> Read {
        self.heard(head, &[])
    }
    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        match (head[0], due) {
            (b'!', _) => Read::Opaque(OpaqueCause::Unsupported),
            (b'?', [token, ..]) => Read::Mine {
                token: *token,
                length: 1,
            },
            (b'0', _) => Read::End(0),
            (b'>', _) => Read::More,
            _ => Read::End(1),
        }
    }
    fn phase(&self) -> Phase {
        Phase::Idle
    }
    fn manner(&self) -> Manner {
        Manner::InTurn
    }
    fn question(&mut self, _: u64) -> Vec<u8> {
        b"?".to_vec()
    }
}

#[test]
fn an_answer_that_is_due_is_taken_out_although_the_peer_was_told_something_strange() {
    let mut heartbeat = Heartbeat::new(Box::new(Letters));
    assert!(ask(&mut heartbeat, 1).is_some());
    heartbeat.told(b"a!");
    assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Unsupported));
    assert_eq!(hear(&mut heartbeat, "b?a?"), "ba?");
    assert_eq!(hear(&mut heartbeat, "!"), "!");
}

#[test]
fn what_a_profile_cannot_read_is_malformed() {
    let long = format!("a{}", ">".repeat(HEAD));
    for strange in ["a0", &long] {
        let mut heartbeat = Heartbeat::new(Box::new(Letters));
        assert!(ask(&mut heartbeat, 1).is_some());
        assert_eq!(hear(&mut heartbeat, strange), strange);
        assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Malformed));
    }
    let mut heartbeat = Heartbeat::new(Box::new(Letters));
    assert!(ask(&mut heartbeat, 1).is_some());
    assert_eq!(hear(&mut heartbeat, &long[..HEAD]), "a");
    assert_eq!(heartbeat.held(), HEAD - 1);
    assert_eq!(hear(&mut heartbeat, ">>"), long[1..].to_owned() + ">");
}

#[test]
fn lengths_are_read_where_they_stand() {
    let length = |size, order, adjust| Length {
        header: 6,
        offset: 1,
        size,
        order,
        adjust,
    };
    for (length, is) in [
        (
            length(1, Order::Big, 0),
            Read::Opaque(OpaqueCause::Malformed),
        ),
        (length(1, Order::Big, 6), Read::End(7)),
        (length(2, Order::Big, 0), Read::End(0x0102)),
        (length(3, Order::Little, 0), Read::End(0x03_0201)),
        (length(4, Order::Little, 0), Read::End(0x0403_0201)),
        (
            length(2, Order::Big, -0x103),
            Read::Opaque(OpaqueCause::Malformed),
        ),
    ] {
        assert_eq!(length.read(&[0, 1, 2, 3, 4, 5]), is, "{length:?}");
        assert_eq!(length.read(&[0, 1, 2, 3, 4]), Read::More);
    }
}

#[test]
fn lines_end_with_the_whole_delimiter() {
    for (text, is) in [
        ("", Read::More),
        ("\r", Read::More),
        ("a", Read::Part(1)),
        ("a\r", Read::Part(1)),
        ("\r\r", Read::Part(1)),
        ("a\n", Read::Part(2)),
        ("a\r\r\nb\r\n", Read::End(4)),
    ] {
        assert_eq!(frame::line(text.as_bytes(), b"\r\n"), is, "{text:?}");
    }
}
