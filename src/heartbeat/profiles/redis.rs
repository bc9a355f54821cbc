//! Redis, RESP2 and RESP3: `PING` with a token, while nothing is owed.
//!
//! Not asked: within a transaction (the answer would stand in that of `EXEC`), before the command that `ASKING`
//! or `CLIENT CACHING` is about (`PING` would take its place), and in sessions that spoke inline only, which
//! other protocols of lines look like. Opaque: `MONITOR` and replication, `CLIENT REPLY`, `RESET`, `QUIT`, an
//! unsubscribing from everything (the number of its answers is not known), streamed types of RESP3.

use crate::heartbeat::frame::{find, line};
use crate::heartbeat::profile::{Manner, OpaqueCause, Phase, Profile, Read};

/// The longest word that is looked at.
const LONGEST_WORD: usize = 32;

/// The first words of a command or of an array. Those that are long, or are not there, are empty.
type Words<'a> = [&'a [u8]; 2];

/// The conversation.
#[derive(Debug, Default)]
pub struct Redis {
    /// Arguments of the command that is told, which are still to come.
    arguments: u64,
    /// Elements of the message that is heard, which are still to come.
    elements: u64,
    /// The message that is heard.
    message: Message,
    /// Whether a simple value that is heard was longer than what is looked at.
    is_in_line: bool,
    /// Answers that the server owes.
    owed: u64,
    /// Channels that it has not confirmed.
    unconfirmed: u64,
    /// Whether there was a subscription. In RESP2 messages look like answers from then on.
    has_subscribed: bool,
    transaction: Transaction,
    /// Whether the last command was about the next one.
    is_prefix: bool,
    /// Whether a command was told in RESP.
    has_commanded: bool,
    has_begun: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Message {
    /// The answer to a command.
    #[default]
    Answer,
    /// The same, and one that does not end a transaction.
    Refusal,
    /// To one inside a transaction.
    Queued,
    /// A channel was subscribed to, or left.
    Confirmation,
    Push,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Transaction {
    #[default]
    None,
    Open,
    /// Its end was told and not answered.
    Closing,
}

impl Redis {
    /// A command was told, of so many arguments.
    fn command(&mut self, words: Words<'_>, arguments: u64) -> Result<(), OpaqueCause> {
        let mut name = [0; LONGEST_WORD];
        let name = &mut name[..words[0].len()];
        name.copy_from_slice(words[0]);
        name.make_ascii_uppercase();
        let is_prefix = self.is_prefix;
        self.is_prefix = false;
        match &*name {
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" if arguments > 0 => {
                return self.subscription(arguments);
            }
            b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" => {
                return self.subscription(arguments);
            }
            b"MONITOR" | b"SYNC" | b"PSYNC" | b"REPLCONF" => return Err(OpaqueCause::Streaming),
            b"QUIT" => return Err(OpaqueCause::Ended),
            b"RESET" => return Err(OpaqueCause::Unsupported),
            b"CLIENT" if words[1].eq_ignore_ascii_case(b"REPLY") => {
                return Err(OpaqueCause::Unsupported);
            }
            b"CLIENT" => {
                self.is_prefix = words[1].eq_ignore_ascii_case(b"CACHING") || is_prefix;
            }
            b"ASKING" => self.is_prefix = true,
            b"MULTI" => self.transaction = Transaction::Open,
            // With arguments they are refused, and the transaction goes on.
            b"EXEC" | b"DISCARD" if arguments == 0 && self.transaction == Transaction::Open => {
                self.transaction = Transaction::Closing;
            }
            _ => {}
        }
        self.owed += 1;
        Ok(())
    }

    /// Each channel has a confirmation of its own.
    fn subscription(&mut self, channels: u64) -> Result<(), OpaqueCause> {
        if channels == 0 || self.transaction == Transaction::Open {
            return Err(OpaqueCause::Unsupported);
        }
        self.has_subscribed = true;
        self.unconfirmed += channels;
        Ok(())
    }

    /// A message was heard to its end.
    fn ended(&mut self) -> Result<(), OpaqueCause> {
        match self.message {
            Message::Push => return Ok(()),
            // The server confirms by itself, too, where a slot of a cluster moves away.
            Message::Confirmation => self.unconfirmed = self.unconfirmed.saturating_sub(1),
            _ => self.owed = self.owed.checked_sub(1).ok_or(OpaqueCause::Unsolicited)?,
        }
        self.has_begun |= self.has_commanded;
        self.transaction = match (self.transaction, self.message) {
            _ if self.owed > 0 => self.transaction,
            (_, Message::Queued) => Transaction::Open,
            (Transaction::Closing, Message::Answer) => Transaction::None,
            (transaction, _) => transaction,
        };
        Ok(())
    }

    /// What kind of message begins so; `None`: too little to tell.
    fn message(&self, head: &[u8]) -> Option<Message> {
        let is_queued = b"+QUEUED\r\n".iter().zip(head).all(|(a, b)| a == b);
        let is_aborted = b"-EXECABORT ".iter().zip(head).all(|(a, b)| a == b);
        Some(match head[0] {
            b'*' if self.has_subscribed => subscribed(head)?.unwrap_or(Message::Answer),
            b'>' if self.unconfirmed > 0 => subscribed(head)?.unwrap_or(Message::Push),
            b'>' => Message::Push,
            b'+' if is_queued && head.len() < 9 => return None,
            b'+' if is_queued => Message::Queued,
            b'-' if is_aborted && head.len() < 11 => return None,
            b'-' if !is_aborted => Message::Refusal,
            _ => Message::Answer,
        })
    }

    /// The element that begins so: its length, and how many others it brings. Else what is to be said of it.
    fn element(&self, head: &[u8]) -> Result<(u64, u64), Read> {
        if self.is_in_line || b"+-:,(#_".contains(&head[0]) {
            return match line(head, b"\r\n") {
                Read::End(length) => Ok((length, 0)),
                other => Err(other),
            };
        }
        let (number, length) = counted(head).ok_or(Read::More)?;
        let (payload, brings) = match (head[0], number) {
            (b'$' | b'!' | b'=', Some(n @ 0..)) => (n.unsigned_abs() + 2, 0),
            (b'*' | b'~' | b'>', Some(n @ 0..)) => (0, n.unsigned_abs()),
            (b'%', Some(n @ 0..)) => (0, n.unsigned_abs() * 2),
            // What it is about comes after it.
            (b'|', Some(n @ 0..)) => (0, n.unsigned_abs() * 2 + 1),
            (b'$' | b'*', Some(-1)) => (0, 0),
            (b'$' | b'*' | b'~' | b'%', None) if head[1] == b'?' => {
                return Err(Read::Opaque(OpaqueCause::Unsupported));
            }
            _ => return Err(Read::Opaque(OpaqueCause::Malformed)),
        };
        Ok((length + payload, brings))
    }

    /// A command without framing, as people type it.
    fn inline(&mut self, head: &[u8]) -> Read {
        let Read::End(length) = line(head, b"\n") else {
            return Read::More;
        };
        let text = &head[..length as usize];
        if text.iter().any(|byte| b"\"'".contains(byte)) {
            return Read::Opaque(OpaqueCause::Unsupported);
        }
        let text = text.split(u8::is_ascii_whitespace);
        let mut text = text.filter(|word| !word.is_empty());
        let count = text.clone().count() as u64;
        let short = |word: &&[u8]| word.len() <= LONGEST_WORD;
        let words = [(); 2].map(|()| text.next().filter(short).unwrap_or_default());
        // An empty line has no answer.
        if let Some(arguments) = count.checked_sub(1)
            && let Err(cause) = self.command(words, arguments)
        {
            return Read::Opaque(cause);
        }
        Read::End(length)
    }
}

impl Profile for Redis {
    fn told(&mut self, head: &[u8]) -> Read {
        if self.arguments == 0 && head[0] != b'*' {
            return self.inline(head);
        }
        let Some((number, length)) = counted(head) else {
            return Read::More;
        };
        match (head[0], number) {
            (b'$', Some(n @ 0..)) if self.arguments > 0 => {
                self.arguments -= 1;
                part(length + n.unsigned_abs() + 2, self.arguments)
            }
            // No command, and no answer.
            (b'*', Some(..=0)) if self.arguments == 0 => Read::End(length),
            (b'*', Some(n)) if self.arguments == 0 => {
                let count = n.unsigned_abs();
                let Some(words) = words(head, 2) else {
                    return Read::More;
                };
                if let Err(cause) = self.command(words, count - 1) {
                    return Read::Opaque(cause);
                }
                self.has_commanded = true;
                self.arguments = count;
                Read::Part(length)
            }
            _ => Read::Opaque(OpaqueCause::Malformed),
        }
    }

    fn heard(&mut self, head: &[u8], due: &[u64]) -> Read {
        let message = match self.elements {
            0 => self.message(head),
            _ => Some(self.message),
        };
        let Some(message) = message else {
            return Read::More;
        };
        let is_answer = !matches!(message, Message::Push | Message::Confirmation);
        if let (true, [token, ..]) = (is_answer, due) {
            return mine(head, *token);
        }
        let element = self.element(head);
        if element == Err(Read::More) {
            return Read::More;
        }
        if self.elements == 0 {
            // In RESP3 a message is told from an answer by its type.
            self.has_subscribed &= head[0] != b'>';
            self.message = message;
            self.elements = 1;
        }
        self.is_in_line = element.is_err();
        let (length, brings) = match element {
            Ok(element) => element,
            Err(other) => return other,
        };
        self.elements += brings;
        self.elements -= 1;
        if self.elements == 0
            && let Err(cause) = self.ended()
        {
            return Read::Opaque(cause);
        }
        part(length, self.elements)
    }

    fn phase(&self) -> Phase {
        let is_idle = self.owed == 0 && self.unconfirmed == 0 && !self.is_prefix;
        match self.transaction {
            _ if !self.has_begun => Phase::Starting,
            Transaction::None if is_idle => Phase::Idle,
            _ => Phase::Waiting,
        }
    }

    fn manner(&self) -> Manner {
        Manner::InTurn
    }

    fn question(&mut self, token: u64) -> Vec<u8> {
        format!("*2\r\n$4\r\nPING\r\n$16\r\n{token:016x}\r\n").into_bytes()
    }
}

/// The first words, at most so many; `None`: they are not there yet.
fn words(head: &[u8], most: usize) -> Option<Words<'_>> {
    let (count, at) = counted(head)?;
    let count = count.map_or(0, |count| usize::try_from(count).unwrap_or(0));
    let mut rest = &head[at as usize..];
    let mut words = Words::default();
    for word in words.iter_mut().take(most.min(count)) {
        if rest.first().is_some_and(|first| *first != b'$') {
            break;
        }
        let (length, at) = counted(rest)?;
        let length = length.and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| *length <= LONGEST_WORD) else {
            break;
        };
        rest = &rest[at as usize..];
        *word = rest.get(..length)?;
        rest = rest.get(length + 2..)?;
    }
    Some(words)
}

/// What an array is to a client that has subscribed; `None` inside: nothing special.
fn subscribed(head: &[u8]) -> Option<Option<Message>> {
    Some(match words(head, 1)?[0] {
        b"message" | b"pmessage" | b"smessage" => Some(Message::Push),
        word if word.ends_with(b"subscribe") => Some(Message::Confirmation),
        _ => None,
    })
}

/// A line of a type and a number: the number, if it is one, and the length of the line.
fn counted(head: &[u8]) -> Option<(Option<i64>, u64)> {
    let end = find(head, b"\r\n")?;
    let number = head
        .get(1..end)
        .and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    let number = number.filter(|number| *number <= i64::from(u32::MAX));
    Some((number, end as u64 + 2))
}

/// A unit, after which so many others belong to the same message.
const fn part(length: u64, left: u64) -> Read {
    match left {
        0 => Read::End(length),
        _ => Read::Part(length),
    }
}

/// What stands where the answer must stand. A server that cannot answer says why (`-NOAUTH`, `-BUSY`,
/// `-MISCONF`): it lives.
fn mine(head: &[u8], token: u64) -> Read {
    if head[0] == b'-' {
        return match line(head, b"\r\n") {
            Read::End(length) => Read::Mine { token, length },
            _ => Read::More,
        };
    }
    let bulk = format!("$16\r\n{token:016x}\r\n");
    // To a client that has subscribed, in RESP2.
    let array = format!("*2\r\n$4\r\npong\r\n{bulk}");
    for answer in [bulk.as_bytes(), array.as_bytes()] {
        let length = answer.len() as u64;
        if head.starts_with(answer) {
            return Read::Mine { token, length };
        }
        if answer.starts_with(head) {
            return Read::More;
        }
    }
    Read::Opaque(OpaqueCause::Misfit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heartbeat::tests::model::{
        Answer, Ends, Exchange, Moves, Pace, moves, pieces, play, survive,
    };
    use crate::heartbeat::{Heard, Heartbeat, State};

    fn resp(words: &[&str]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        bytes.into_bytes()
    }

    fn bulk(question: &[u8]) -> Vec<u8> {
        question[question.len() - 23..].to_vec()
    }

    fn array(question: &[u8]) -> Vec<u8> {
        [b"*2\r\n$4\r\npong\r\n", &bulk(question)[..]].concat()
    }

    fn refusal(_: &[u8]) -> Vec<u8> {
        b"-NOAUTH Authentication required.\r\n".to_vec()
    }

    fn step(told: Vec<u8>, heard: impl Into<Vec<u8>>, answer: Option<Answer>) -> Exchange {
        Exchange {
            told,
            heard: heard.into(),
            pace: Pace::Pipelined,
            answer,
        }
    }

    /// A value of any type, with others inside.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let simple = prop_oneof![
            "[+:,(#][a-z0-9]{0,9}\r\n".prop_map(String::into_bytes),
            Just(b"-ERR no\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"*-1\r\n".to_vec()),
            Just(b"_\r\n".to_vec()),
            Just([&b"+"[..], &[b'x'; 1300], b"\r\n"].concat()),
            "[$!=]".prop_flat_map(|kind| {
                prop::collection::vec(any::<u8>(), 0..40).prop_map(move |payload| {
                    [
                        format!("{kind}{}\r\n", payload.len()).as_bytes(),
                        &payload,
                        b"\r\n",
                    ]
                    .concat()
                })
            }),
        ];
        simple.prop_recursive(4, 20, 4, |inner| {
            (prop::collection::vec(inner, 1..5), 0..4).prop_map(|(values, kind)| {
                let n = values.len();
                let (head, values) = match kind {
                    0 => (format!("*{n}\r\n"), &values[..]),
                    1 => (format!("~{n}\r\n"), &values[..]),
                    2 if n % 2 == 0 => (format!("%{}\r\n", n / 2), &values[..]),
                    _ if n % 2 == 1 => (format!("|{}\r\n", n / 2), &values[..]),
                    _ => ("*0\r\n".to_owned(), &[][..]),
                };
                [head.as_bytes(), &values.concat()].concat()
            })
        })
    }

    fn command() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof!["[a-z\r\n*$]{0,50}", "MULTI", "x{600}", "\\*2\r\n"];
        prop::collection::vec(word, 1..4).prop_map(|words| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            resp(&[&["GET"], &words[..]].concat())
        })
    }

    fn plain() -> impl Strategy<Value = Vec<Exchange>> {
        let answer = prop_oneof![5 => Just(bulk as Answer), 1 => Just(refusal as Answer)];
        let inline = prop_oneof![Just(b"ping\r\n".to_vec()), Just(b"  get a\n".to_vec())];
        let told = prop_oneof![5 => command(), 1 => inline];
        (told, value(), answer)
            .prop_map(|(told, heard, answer)| vec![step(told, heard, Some(answer))])
    }

    /// Commands that have no answer.
    fn silent() -> impl Strategy<Value = Vec<Exchange>> {
        let told = prop::sample::select(&["\r\n", "*0\r\n", "*-1\r\n", "  \n"][..]);
        told.prop_map(|told| vec![step(told.into(), "", Some(bulk))])
    }

    /// What a server of RESP3 says by itself.
    fn pushed() -> impl Strategy<Value = Vec<Exchange>> {
        let push = "[a-z]{1,9}".prop_map(|kind| [b">", &resp(&[&kind, "text"])[1..]].concat());
        push.prop_map(|push| vec![step(Vec::new(), push, Some(bulk))])
    }

    fn transaction() -> impl Strategy<Value = Vec<Exchange>> {
        let ends = prop_oneof![
            value().prop_map(|value| ("EXEC", [b"*1\r\n", &value[..]].concat())),
            Just(("exec", b"*-1\r\n".to_vec())),
            Just(("EXEC", b"-EXECABORT it\r\n".to_vec())),
            Just(("DISCARD", b"+OK\r\n".to_vec())),
        ];
        let refused = step(resp(&["EXEC", "now"]), "-ERR wrong number\r\n", None);
        (prop::collection::vec(command(), 0..4), any::<bool>(), ends).prop_map(
            move |(commands, is_refused, (end, heard))| {
                let mut steps = vec![step(resp(&["multi"]), "+OK\r\n", None)];
                steps.extend(
                    commands
                        .into_iter()
                        .map(|told| step(told, "+QUEUED\r\n", None)),
                );
                steps.extend(is_refused.then(|| refused.clone()));
                steps.push(step(resp(&[end]), heard, Some(bulk)));
                steps
            },
        )
    }

    /// A prefix, and the command that it is about.
    fn prefixed() -> impl Strategy<Value = Vec<Exchange>> {
        let caching = resp(&["CLIENT", "caching", "YES"]);
        let prefix = prop_oneof![Just(resp(&["asking"])), Just(caching)];
        (prefix, command(), value()).prop_map(|(prefix, command, value)| {
            vec![
                step(prefix, "+OK\r\n", None),
                step(command, value, Some(bulk)),
            ]
        })
    }

    /// Subscriptions, as version 2 and 3 of RESP have them.
    fn subscribed(kind: char, answer: Answer) -> impl Strategy<Value = Vec<Exchange>> {
        let message = move |kinds: &[&str]| [&[kind as u8], &resp(kinds)[1..]].concat();
        let confirmed = move |what: &str, n: usize| {
            let one = format!("{kind}3\r\n${}\r\n{what}\r\n$1\r\na\r\n:1\r\n", what.len());
            one.repeat(n)
        };
        (1..4usize, 0..3usize, 0..3usize).prop_map(move |(channels, before, between)| {
            let names = &["a", "b", "c"][..channels];
            let command = |what| resp(&[&[what], names].concat());
            let push = step(Vec::new(), message(&["message", "a", "text"]), Some(answer));
            let pattern = step(
                Vec::new(),
                message(&["pmessage", "*", "a", "text"]),
                Some(answer),
            );
            let mut steps = vec![step(
                command("SUBSCRIBE"),
                confirmed("subscribe", channels),
                Some(answer),
            )];
            steps.extend(vec![push.clone(); before]);
            steps.push(step(
                resp(&["PING"]),
                if kind == '*' {
                    "*2\r\n$4\r\npong\r\n$0\r\n\r\n"
                } else {
                    "+PONG\r\n"
                },
                Some(answer),
            ));
            steps.push(step(
                resp(&["get", "a"]),
                "-ERR Can't execute 'get'\r\n",
                Some(answer),
            ));
            steps.extend(vec![pattern; between]);
            steps.push(step(
                command("unsubscribe"),
                confirmed("unsubscribe", channels),
                Some(bulk),
            ));
            steps
        })
    }

    fn script() -> impl Strategy<Value = Vec<Exchange>> {
        let own = prop_oneof![
            Just(subscribed('*', array).boxed()),
            Just(prop_oneof![pushed(), subscribed('>', bulk)].boxed()),
        ];
        let parts = own.prop_flat_map(|own| {
            let part = prop_oneof![
                4 => plain(),
                1 => silent(),
                2 => transaction(),
                1 => prefixed(),
                2 => own,
            ];
            prop::collection::vec(part, 0..8)
        });
        let paces = prop_oneof![Just(Pace::InTurn), Just(Pace::Pipelined)];
        (parts, prop::collection::vec(paces, 200)).prop_map(|(parts, paces)| {
            let ping = step(resp(&["PING"]), "+PONG\r\n", Some(bulk));
            let mut script = [vec![ping.clone()], parts.concat(), vec![ping]].concat();
            for (step, pace) in script.iter_mut().zip(paces) {
                step.pace = pace;
            }
            script
        })
    }

    fn played(script: &[Exchange], moves: &Moves, ends: Ends) -> Heartbeat {
        play(Box::new(Redis::default()), script, moves, ends)
    }

    /// What is told, and what is heard then.
    const OPAQUE: [(&[&str], &str); 12] = [
        (
            &["MONITOR"],
            "+OK\r\n+1339518083.107412 [0 127.0.0.1:1] \"get\" \"a\"\r\n",
        ),
        (
            &["PSYNC", "?", "-1"],
            "+FULLRESYNC x 0\r\n$10\r\nREDIS0011\n",
        ),
        (&["sync"], "$2\r\nab"),
        (&["REPLCONF", "ack", "0"], ""),
        (&["CLIENT", "reply", "OFF"], ""),
        (&["CLIENT", "REPLY", "SKIP"], ""),
        (
            &["UNSUBSCRIBE"],
            "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n",
        ),
        (&["RESET"], "+RESET\r\n"),
        (&["QUIT"], "+OK\r\n"),
        (&["GET", "a"], "$?\r\n;1\r\na\r\n;0\r\n"),
        (&["GET", "a"], "what is this\r\n"),
        (&["SUBSCRIBE", "a", "b"], "-NOPERM no\r\n"),
    ];

    proptest! {
        #[test]
        fn conversations_are_transparent(script in script(), moves in moves()) {
            played(&script, &moves, Ends::Ready);
        }

        #[test]
        fn what_is_not_followed_is_opaque(
            script in script(),
            moves in moves(),
            (told, heard) in prop::sample::select(&OPAQUE[..]),
        ) {
            let last = step(resp(told), heard, None);
            let last = Exchange { pace: Pace::InTurn, ..last };
            played(&[script, vec![last]].concat(), &moves, Ends::Opaque);
        }

        #[test]
        fn nothing_is_asked_while_a_command_blocks(script in script(), moves in moves()) {
            let last = step(resp(&["BLPOP", "a", "0"]), "", None);
            played(&[script, vec![last]].concat(), &moves, Ends::NotReady);
        }

        #[test]
        fn anything_is_survived(pieces in pieces(&[
            b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", b"*2\r\n", b"$4\r\npong\r\n", b"$16\r\n", b"$-1\r\n",
            b">2\r\n", b"*3\r\n$7\r\nmessage\r\n", b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n", b"|1\r\n",
            b"%99999999999\r\n", b"*4294967295\r\n", b"-ERR\r\n", b"*1\r\n$5\r\nMULTI\r\n", b"\r\n",
        ])) {
            survive(Box::new(Redis::default()), &pieces);
        }
    }

    #[test]
    fn a_session_that_spoke_no_resp_is_not_asked() {
        let mut heartbeat = Heartbeat::new(Box::new(Redis::default()));
        heartbeat.told(b"USER somebody\r\n");
        let _ = heartbeat.heard(b"+OK\r\n", &mut Vec::new());
        assert_eq!(heartbeat.state(), State::Starting);
    }

    #[test]
    fn an_answer_to_nothing_makes_it_opaque() {
        let mut heartbeat = Heartbeat::new(Box::new(Redis::default()));
        heartbeat.told(&resp(&["GET", "a"]));
        let _ = heartbeat.heard(b"+1\r\n+2\r\n", &mut Vec::new());
        let unsolicited = OpaqueCause::Unsolicited;
        assert_eq!(heartbeat.state(), State::Opaque(unsolicited));
    }

    #[test]
    fn a_token_that_is_queued_is_a_misfit() {
        let mut heartbeat = Heartbeat::new(Box::new(Redis::default()));
        heartbeat.told(&resp(&["EVAL", "redis.setresp(3)", "0"]));
        let _ = heartbeat.heard(b"$-1\r\n", &mut Vec::new());
        assert!(heartbeat.ask(1).is_some());
        let mut out = Vec::new();
        assert_eq!(heartbeat.heard(b"+QUEUED\r\n", &mut out), Heard::All);
        assert_eq!(heartbeat.state(), State::Opaque(OpaqueCause::Misfit));
    }
}
