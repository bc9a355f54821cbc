//! IRC: `PING` with a token, to either end, once the client is registered. Between servers nothing is asked.
//!
//! The answer is the `PONG` with that token. All else may stand in between. Servers count `PING` among the
//! lines by which a client floods, and some clients show that they were asked.

use crate::heartbeat::frame::{Frames, Framing};
use crate::heartbeat::profile::{HEAD, Manner, OpaqueCause, Phase, Profile, Read};
use crate::liveness::Leg;

/// The conversation.
#[derive(Debug)]
pub(super) struct Irc {
    /// Whose peer is asked.
    leg: Leg,
    told: Frames,
    heard: Frames,
    is_registered: bool,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Client,
    Server,
}

/// The beginning of a line.
struct Line<'a> {
    command: &'a [u8],
    /// What it is said with.
    words: Vec<&'a [u8]>,
}

impl Irc {
    pub(super) fn new(leg: Leg) -> Self {
        // Lines end with CR LF. LF alone is taken by most.
        let lines = Frames::new(Framing::Line(Box::from(*b"\n")));
        Self {
            leg,
            told: lines.clone(),
            heard: lines,
            is_registered: false,
        }
    }

    fn follow(&mut self, speaker: Speaker, command: &[u8]) -> Result<(), OpaqueCause> {
        let is = |name: &[u8]| command.eq_ignore_ascii_case(name);
        match speaker {
            _ if command.contains(&0) => return Err(OpaqueCause::Malformed),
            Speaker::Client if is(b"QUIT") => return Err(OpaqueCause::Ended),
            Speaker::Client if is(b"STARTTLS") => return Err(OpaqueCause::Changed),
            Speaker::Server if is(b"001") => self.is_registered = true,
            Speaker::Server if is(b"ERROR") => self.is_registered = false,
            _ => {}
        }
        Ok(())
    }
}

/// The first unit of a line, which ends in `head` or is longer.
fn whole_line(frames: &Frames, head: &[u8]) -> Read {
    match frames.peek(head) {
        Read::Part(_) if frames.is_at_start() && head.len() < HEAD => Read::More,
        unit => unit,
    }
}

/// Tags and the source are passed over.
fn line(head: &[u8]) -> Line<'_> {
    let end = head.iter().position(|byte| *byte == b'\n');
    let words = head[..end.unwrap_or(head.len())]
        .trim_ascii_end()
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let mut words = words.peekable();
    words.next_if(|word| word[0] == b'@');
    words.next_if(|word| word[0] == b':');
    Line {
        command: words.next().unwrap_or_default(),
        words: words.collect(),
    }
}

fn text(token: u64) -> String {
    format!("pg-{token:016x}")
}

impl Profile for Irc {
    fn told(&mut self, head: &[u8]) -> Read {
        let unit = whole_line(&self.told, head);
        if unit == Read::More {
            return Read::More;
        }
        let speaker = match self.leg {
            Leg::Upstream => Speaker::Client,
            Leg::Downstream => Speaker::Server,
        };
        if self.told.is_at_start()
            && let Err(cause) = self.follow(speaker, line(head).command)
        {
            return Read::Opaque(cause);
        }
        self.told.next(head)
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let unit = whole_line(&self.heard, head);
        if unit == Read::More {
            return Read::More;
        }
        if self.heard.is_at_start() {
            let Line { command, words } = line(head);
            let is_named = |token: &&u64| {
                let is_text = |word: &&[u8]| {
                    word.strip_prefix(b":").unwrap_or(word) == text(**token).as_bytes()
                };
                words.iter().any(is_text)
            };
            if command.eq_ignore_ascii_case(b"PONG")
                && let (Some(token), Read::End(length)) = (due.iter().find(is_named), unit)
            {
                return Read::Mine {
                    token: *token,
                    length,
                };
            }
            let speaker = match self.leg {
                Leg::Upstream => Speaker::Server,
                Leg::Downstream => Speaker::Client,
            };
            if let Err(cause) = self.follow(speaker, command) {
                return Read::Opaque(cause);
            }
        }
        self.heard.next(head)
    }

    fn phase(&self) -> Phase {
        if self.is_registered {
            Phase::Idle
        } else {
            Phase::Starting
        }
    }

    fn manner(&self) -> Manner {
        Manner::Interleaved
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        format!("PING :{}\r\n", text(token)).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{Ends, Exchange, moves, pieces, play, survive};

    fn profile(leg: Leg) -> Box<dyn Profile> {
        Box::new(Irc::new(leg))
    }

    fn token(question: &[u8]) -> &str {
        let question = str::from_utf8(question).expect("text");
        let token = question
            .strip_prefix("PING :")
            .and_then(|text| text.strip_suffix("\r\n"));
        token.expect("a ping")
    }

    fn server(question: &[u8]) -> Vec<u8> {
        let token = token(question);
        match token.as_bytes()[18] % 2 {
            0 => format!(":irc.example PONG irc.example :{token}\r\n"),
            _ => {
                format!("@time=2027-01-01T00:00:00.000Z :irc.example PONG irc.example {token}\r\n")
            }
        }
        .into_bytes()
    }

    fn client(question: &[u8]) -> Vec<u8> {
        format!("PONG :{}\r\n", token(question)).into_bytes()
    }

    const HELLO: &str = "NICK me\r\nUSER me 0 * :Me\r\n";
    const WELCOME: &str = ":irc.example 001 me :Welcome\r\n";

    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "PONG :pg-[0-9a-f]{16}\r",
            ":a!b@c PRIVMSG #d :PONG pg-[0-9a-f]{0,16}\r?",
            "@label=[a-z]{0,600} PRIVMSG #d :[ -~]{0,600}\r",
            "PONG",
            "PING :1\r",
            "",
            "\r",
        ];
        line.prop_map(|line| format!("{line}\n").into_bytes())
    }

    fn exchange(answer: fn(&[u8]) -> Vec<u8>) -> impl Strategy<Value = Exchange> {
        let both = prop_oneof![
            (lines(), Just(Vec::new())),
            (Just(Vec::new()), lines()),
            (lines(), lines()),
            Just((b"PING 7\r\n".to_vec(), b"PONG x :7\r\n".to_vec())),
        ];
        Exchange::any_pace(both, Some(answer))
    }

    proptest! {
        #[test]
        fn pings_of_a_server_are_transparent(
            script in prop::collection::vec(exchange(server), 0..12),
            moves in moves(),
        ) {
            let welcome = format!(":irc.example NOTICE * :Wait\r\n{WELCOME}");
            let first = vec![Exchange::in_turn(HELLO, welcome).answered(server)];
            let mut script = [first, script].concat();
            play(profile(Leg::Upstream), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn("quit :bye\r\n", "ERROR :Bye\r\n"));
            play(profile(Leg::Upstream), &script, &moves, Ends::Opaque);
        }

        #[test]
        fn pings_of_a_client_are_transparent(
            script in prop::collection::vec(exchange(client), 0..12),
            moves in moves(),
        ) {
            let first = vec![
                Exchange::in_turn([], HELLO),
                Exchange::in_turn(WELCOME, []).answered(client),
            ];
            let mut script = [first, script].concat();
            play(profile(Leg::Downstream), &script, &moves, Ends::Ready);
            script.push(Exchange::in_turn("ERROR :Bye\r\n", []));
            play(profile(Leg::Downstream), &script, &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b":a 001 b\r\n", b"PONG :pg-", b"\r\n", b"PONG", b"@a :b PONG c :pg-0000000000000001\r\n",
        ])) {
            survive(profile(Leg::Upstream), &pieces);
            survive(profile(Leg::Downstream), &pieces);
        }
    }

    #[test]
    fn servers_among_themselves_are_not_asked() {
        let link = "SERVER irc2.example 1 :Two\r\n";
        let script = [Exchange::in_turn(link, link)];
        play(profile(Leg::Upstream), &script, &[], Ends::NotReady);
    }

    #[test]
    fn what_is_no_irc_is_not_followed() {
        for strange in ["STARTTLS\r\n", "QUIT\r\n", "\0\n"] {
            let script = [Exchange::in_turn(strange, [])];
            play(profile(Leg::Upstream), &script, &[], Ends::Opaque);
        }
    }
}
