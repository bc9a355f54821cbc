//! Asks the peers of foreign connections at once, and ends those that are proven gone.
//!
//! A question is a keepalive probe that the kernel sends when `TCP_KEEPIDLE` becomes 1 s on a connection
//! that was quiet for longer. For that the socket is copied from its process for some microseconds each
//! time; the answer is read by sock_diag(7). Every option is put back.
//!
//! While it is asked, `TCP_KEEPCNT` is 127 and `TCP_USER_TIMEOUT` off, so that no question ends anything.
//! To end a peer that left three unanswered is left to the kernel: a last question with `TCP_KEEPCNT` 3.
//! An answer that comes before it saves the connection, for it sets the kernel's count to 0.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use tokio::time::sleep;

use super::options::Options;
use super::refusal::Refusal;
use super::survey::Seen;
use crate::liveness::{Span, Time};
use crate::sys::netns::Namespace;
use crate::sys::sock_diag::{Connected, Id, SockDiag};
use crate::sys::sockopt::{self, KEEPALIVE, KEEPCNT, KEEPIDLE, USER_TIMEOUT};
use crate::sys::{self, Foreign};

/// So many connections begin to be asked at a time, and so long after each other: what the queues on the
/// way hold (1,000 packets on the loopback).
const BATCH: usize = 200;
const BATCH_EVERY: Span = Span::ms(100);
/// An answer has had its time after this, or one and a half round trips.
const ANSWER_WITHIN: Span = Span::ms(200);
/// So many questions without an answer prove that a peer is gone.
const ENOUGH: u32 = 3;
/// From here on a few more could reach [`NEVER`].
const MANY: u32 = 100;
/// The kernel could not be brought to ask so often.
const TRIES: u32 = 8;
/// The kernel's timer of the last question has ended by then.
const ENDS_WITHIN: Span = Span::ms(50);
/// The kernel asks who was quiet for so long.
const QUIET: Span = Span::ms(1000);
const TICK: Duration = Duration::from_millis(10);
/// The most that `TCP_KEEPCNT` can be.
const NEVER: i32 = 127;

/// What silence leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is told.
    Tell,
    /// The connection is ended by the kernel: its application reads ETIMEDOUT.
    End,
}

/// What came of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer answered, or was heard within the last second.
    Answered,
    /// Three questions are unanswered.
    Silent,
    /// The same, and the connection is ended.
    Ended,
    /// It was over before.
    Over,
    /// Data is in flight or waits: it is judged by the kernel's own questions. Or the peer has said FIN.
    Busy,
    /// It could not be asked.
    Refused(Refusal),
    /// Its turn did not come.
    NotAsked,
}

/// A connection that is being asked.
struct Asked {
    at: usize,
    own: Options,
    since: Time,
    due: Time,
    /// Questions that were unanswered before: a peer may have come back since.
    before: u32,
    tries: u32,
    last: Last,
}

impl Asked {
    fn unanswered(&self, found: &Connected) -> u32 {
        u32::from(found.info.probes).saturating_sub(self.before)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// One more question.
    Question,
    /// The one that ends it.
    Verdict,
}

/// Asks all of them, 2,000 a second, after any other scan of this namespace; the outcomes have the same order. Before `stop` comes, each is told
/// within about a second of its turn. All options are put back in any case.
///
/// # Errors
/// What sock_diag(7) says.
pub async fn ask(
    diag: &mut SockDiag,
    seen: &[Seen],
    purpose: Purpose,
    stop: impl Future,
) -> io::Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::NotAsked; seen.len()];
    let mut asked = Vec::new();
    let here = Namespace::current()?;
    let done = tokio::select! {
        biased;
        _ = stop => Ok(()),
        done = async {
            // Two at once would take each other's options for those of the application.
            while here.lock().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                sleep(TICK).await;
            }
            ask_all(diag, seen, purpose, &mut asked, &mut outcomes).await
        } => done,
    };
    // Where it was ended early, the last questions may be answered yet.
    if let Some(due) = asked.iter().map(|one| one.due).max() {
        sleep((due - sys::now()).into()).await;
    }
    for one in &asked {
        let seen = &seen[one.at];
        let unanswered = match diag.find(&seen.id) {
            Ok(found) => found.map_or(0, |found| one.unanswered(&found)),
            Err(_) => one.tries,
        };
        give_back(seen, &one.own, unanswered);
    }
    done.map(|()| outcomes)
}

/// Those that are being asked are in `asked`, whenever it waits or fails.
async fn ask_all(
    diag: &mut SockDiag,
    seen: &[Seen],
    purpose: Purpose,
    asked: &mut Vec<Asked>,
    outcomes: &mut [Outcome],
) -> io::Result<()> {
    let mut waiting = 0..seen.len();
    let mut next_batch = sys::now();
    while !(waiting.is_empty() && asked.is_empty()) {
        let now = sys::now();
        if now >= next_batch {
            next_batch = now + BATCH_EVERY;
            for at in waiting.by_ref().take(BATCH) {
                match begin(diag, &seen[at], at)? {
                    Ok(begun) => asked.push(begun),
                    Err(outcome) => outcomes[at] = outcome,
                }
            }
        }
        let mut n = 0;
        while let Some(one) = asked.get_mut(n) {
            match step(diag, &seen[one.at], one, purpose)? {
                None => n += 1,
                Some(outcome) => {
                    outcomes[one.at] = outcome;
                    asked.swap_remove(n);
                }
            }
        }
        sleep(TICK).await;
    }
    Ok(())
}

/// Whether it can be asked now; if not, what that means.
fn askable(found: Option<&Connected>) -> Result<&Connected, Outcome> {
    const ESTABLISHED: u8 = 1;
    /// This end has said FIN, which was acknowledged, and its process waits for the peer.
    const FIN_WAIT2: u8 = 5;
    let found = found.ok_or(Outcome::Over)?;
    let info = &found.info;
    let is_open = [ESTABLISHED, FIN_WAIT2].contains(&info.state);
    if !is_open || info.unacked > 0 || info.notsent_bytes > 0 {
        return Err(Outcome::Busy);
    }
    Ok(found)
}

fn heard(found: &Connected) -> Span {
    let info = &found.info;
    Span::ms(info.last_ack_recv_ms.min(info.last_data_recv_ms).into())
}

fn begin(diag: &mut SockDiag, seen: &Seen, at: usize) -> io::Result<Result<Asked, Outcome>> {
    let found = diag.find(&seen.id)?;
    let is_heard = |found: &Connected| heard(found) < QUIET;
    let found = match askable(found.as_ref()) {
        _ if found.as_ref().is_some_and(is_heard) => return Ok(Err(Outcome::Answered)),
        Ok(found) => found,
        Err(outcome) => return Ok(Err(outcome)),
    };
    let before = u32::from(found.info.probes);
    if before >= MANY {
        let why = format!("{before} questions of the kernel are unanswered already");
        return Ok(Err(Outcome::Refused(Refusal::Other(why))));
    }
    let since = sys::now();
    let begun = copy(seen).and_then(|socket| {
        let fd = socket.as_raw_fd();
        let refused = |error: io::Error| Refusal::Other(error.to_string());
        let mut own = Options::read(fd).map_err(refused)?;
        // Its own kernel asks, and one unanswered question would end it.
        if own.keepalive != 0 && own.user_timeout != 0 {
            let why = "the kernel asks it already, with a TCP_USER_TIMEOUT of its application";
            return Err(Refusal::Other(why.to_owned()));
        }
        question(fd, &mut own).map_err(|error| {
            let _ = Options::read(fd).and_then(|has| own.give(fd, &has));
            refused(error)
        })?;
        Ok(own)
    });
    Ok(match begun {
        Ok(own) => Ok(Asked {
            at,
            own,
            since,
            due: since + answer_within(found),
            before,
            tries: 1,
            last: Last::Question,
        }),
        Err(refusal) => Err(Outcome::Refused(refusal)),
    })
}

fn answer_within(found: &Connected) -> Span {
    let trips = Span::ms(u64::from(found.info.rtt_us) * 3 / 2000);
    ANSWER_WITHIN.max(trips)
}

/// Looks at one whose time has come; `None`: once more.
fn step(
    diag: &mut SockDiag,
    seen: &Seen,
    asked: &mut Asked,
    purpose: Purpose,
) -> io::Result<Option<Outcome>> {
    let now = sys::now();
    if now < asked.due {
        return Ok(None);
    }
    let found = diag.find(&seen.id)?;
    let is_heard = found.as_ref().is_some_and(|c| heard(c) < now - asked.since);
    let found = match askable(found.as_ref()) {
        Ok(found) => found,
        Err(Outcome::Over) if asked.last == Last::Verdict => return Ok(Some(Outcome::Ended)),
        Err(outcome) => {
            give_back(seen, &asked.own, 0);
            let answered = is_heard.then_some(Outcome::Answered);
            return Ok(answered.or(Some(outcome)));
        }
    };
    let unanswered = asked.unanswered(found);
    let is_proven = unanswered >= ENOUGH;
    let outcome = if is_heard {
        Some(Outcome::Answered)
    } else if is_proven && (purpose == Purpose::Tell || asked.tries >= TRIES) {
        Some(Outcome::Silent)
    } else if asked.tries >= TRIES {
        let why = "the kernel sent no question".to_owned();
        Some(Outcome::Refused(Refusal::Other(why)))
    } else {
        None
    };
    if let Some(outcome) = outcome {
        give_back(seen, &asked.own, unanswered);
        return Ok(Some(outcome));
    }
    asked.tries += 1;
    asked.last = match is_proven {
        true => Last::Verdict,
        false => Last::Question,
    };
    let again = copy(seen).and_then(|socket| {
        let fd = socket.as_raw_fd();
        let sent = match asked.last {
            Last::Verdict => verdict(fd),
            Last::Question => question(fd, &mut asked.own),
        };
        sent.map_err(|error| Refusal::Other(error.to_string()))
    });
    asked.due = now
        + match asked.last {
            Last::Verdict => ENDS_WITHIN,
            Last::Question => answer_within(found),
        };
    Ok(again.err().map(|refusal| {
        give_back(seen, &asked.own, unanswered);
        Outcome::Refused(refusal)
    }))
}

/// Copies the socket of a connection from the process that holds it.
///
/// # Errors
/// Why that is not possible, with what to grant.
pub fn copy(seen: &Seen) -> Result<Foreign, Refusal> {
    let owner = seen.owner.ok_or(Refusal::UnknownProcess(seen.uid))?;
    Foreign::copy(owner.pid, owner.fd, seen.id.cookie())
        .map_err(|error| Refusal::of(owner.pid, &error))
}

/// Has the kernel send a keepalive probe that ends nothing. If another has put the options back meanwhile,
/// these are its `own`. The count comes first, and is put back last: it tells the options of a question.
fn question(fd: RawFd, own: &mut Options) -> io::Result<()> {
    let has = Options::read(fd)?;
    if !is_asking(&has) {
        *own = has;
    }
    sockopt::set_int(fd, KEEPCNT, NEVER)?;
    if own.user_timeout != 0 {
        sockopt::set_int(fd, USER_TIMEOUT, 0)?;
    }
    sockopt::set_int(fd, KEEPALIVE, 1)?;
    sockopt::set_int(fd, KEEPIDLE, 1)
}

/// Whether these are the options of a question, or of a verdict.
pub fn is_asking(has: &Options) -> bool {
    let is_verdict = has.count == ENOUGH.cast_signed() && has.keepalive == 1 && has.idle == 1;
    is_question(has) || is_verdict
}

/// Whether these are the options of a question.
pub fn is_question(has: &Options) -> bool {
    has.count == NEVER
}

/// Whether a scan of this namespace asks just now.
pub fn is_underway() -> bool {
    let alone = Namespace::current().and_then(|here| here.lock());
    alone.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Has the kernel end the connection, unless the peer has answered.
fn verdict(fd: RawFd) -> io::Result<()> {
    sockopt::set_int(fd, KEEPCNT, ENOUGH.cast_signed())?;
    sockopt::set_int(fd, KEEPIDLE, 1)
}

/// Puts the options back. A connection that is closed by now needs none.
fn give_back(seen: &Seen, own: &Options, unanswered: u32) {
    if let Ok(socket) = copy(seen) {
        let _closed = give(socket.as_raw_fd(), own, unanswered);
    }
}

/// Where the application has keepalive of its own, our questions must not be what ends a peer that is only
/// away for a second: they do not count. What another has changed meanwhile is left alone.
fn give(fd: RawFd, own: &Options, unanswered: u32) -> io::Result<()> {
    let has = Options::read(fd)?;
    if !is_asking(&has) {
        return Ok(());
    }
    let count = match own.keepalive {
        0 => own.count,
        _ => (own.count + unanswered.cast_signed()).min(NEVER),
    };
    Options { count, ..*own }.give(fd, &has)
}

/// Ends one connection that may be alive: by SOCK_DESTROY where that is allowed, else by dissolving a copy
/// of it. Says how.
///
/// # Errors
/// Why it could not be ended either way.
pub fn end(diag: &mut SockDiag, seen: &Seen) -> Result<&'static str, String> {
    let id: &Id = &seen.id;
    match diag.destroy(id) {
        Ok(()) => return Ok("SOCK_DESTROY: its process reads ECONNABORTED, its peer RST"),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            return Err("it is over already".to_owned());
        }
        Err(_) => {}
    }
    let socket = copy(seen).map_err(|refusal| refusal.to_string())?;
    let dissolved = socket.dissolve().map_err(|error| error.to_string());
    dissolved.map(|()| "connect(AF_UNSPEC): its process reads ECONNRESET, its peer RST")
}
