//! A client for the endpoint, for the subcommands that talk to a running pulsegate. Blocking:
//! they do nothing else.
#![allow(
    clippy::disallowed_methods,
    reason = "runs in a process of its own, which may wait"
)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use super::query::Format;
use super::query::{Query, encode};
use super::table;
use crate::view::{AnswerWord, VerifiedSession, VerifyList};

/// For one exchange of [`drain`] and [`connections`].
const TIMEOUT: Duration = Duration::from_secs(10);
/// For one exchange of [`verify`]: the endpoint itself takes up to 10 s.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(12);
/// Each poll makes the process describe all its sessions.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Between two tries where the endpoint has no place for a request.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries where it closed the connection to make room for others.
const EVICTED_PAUSE: Duration = Duration::from_millis(20);
/// About half a million sessions as JSON.
const MAX_ANSWER: u64 = 512 * 1024 * 1024;

/// Which question [`healthcheck`] asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Does the process answer? A draining one does.
    #[default]
    Live,
    /// Does it take new clients?
    Ready,
}

/// Succeeds if the process at `addr` is live or ready; `timeout` bounds the whole exchange.
///
/// # Errors
/// Says in one line why not.
pub fn healthcheck(addr: SocketAddr, timeout: Duration, health: Health) -> Result<(), String> {
    let path = match health {
        Health::Live => "/livez",
        Health::Ready => "/readyz",
    };
    let deadline = Instant::now() + timeout;
    loop {
        match exchange_once(addr, "GET", path, deadline) {
            Ok((200, _)) => return Ok(()),
            Ok((_, body)) => return Err(format!("{addr}: {}", body.trim())),
            // Of many connections it closes the least active ones. A process that has ended would
            // refuse.
            Err(error)
                if error.kind() != io::ErrorKind::ConnectionRefused
                    && is_gone(&error)
                    && Instant::now() < deadline =>
            {
                sleep(EVICTED_PAUSE);
            }
            Err(error) => return Err(at(addr, &error)),
        }
    }
}

/// Starts the drain. With `wait`, returns when no session is left or the process is gone.
///
/// # Errors
/// In one line: the endpoint cannot be reached or refuses, or sessions are left after `wait`.
pub fn drain(addr: SocketAddr, wait: Option<Duration>) -> Result<String, String> {
    let (status, body) = exchange(addr, "POST", "/drain", TIMEOUT).map_err(|e| at(addr, &e))?;
    if status != 202 {
        return Err(format!("{addr}: {}", body.trim()));
    }
    let Some(wait) = wait else {
        return Ok(body);
    };
    let deadline = Instant::now() + wait;
    loop {
        match sessions(addr) {
            Ok(0) => return Ok("drained\n".to_owned()),
            // The one that drains says 503.
            Ok(_) if healthcheck(addr, TIMEOUT, Health::Ready).is_ok() => {
                return Err(format!(
                    "{addr}: a new instance answers here; the old one drains on"
                ));
            }
            Ok(left) if Instant::now() >= deadline => {
                let plural = if left == 1 { "" } else { "s" };
                return Err(format!(
                    "{addr}: {left} session{plural} left after {wait:?}"
                ));
            }
            Ok(_) => sleep(POLL_EVERY.min(deadline.saturating_duration_since(Instant::now()))),
            // It drained and exited, which ends the answer that was under way.
            Err(error) if is_gone(&error) => return Ok("drained, the process has ended\n".into()),
            Err(error) => return Err(at(addr, &error)),
        }
    }
}

/// The sessions as the endpoint shows them. `query` holds its filters as names and values.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or does not accept the query.
pub fn connections(
    addr: SocketAddr,
    query: &[(&str, &str)],
    format: Format,
) -> Result<String, String> {
    let mut path = match format {
        Format::Json => "/connections?format=json".to_owned(),
        Format::Text => "/connections?format=text".to_owned(),
    };
    for (name, value) in query {
        path.push_str(&format!("&{}={}", encode(name), encode(value)));
    }
    match exchange(addr, "GET", &path, TIMEOUT) {
        Ok((200, body)) => Ok(body),
        Ok((_, body)) => Err(format!("{addr}: {}", body.trim())),
        Err(error) => Err(at(addr, &error)),
    }
}

/// Whether the endpoint would accept these filters, as names and values.
///
/// # Errors
/// In one line: which one it would not, and what is accepted.
pub fn check(filters: &[(&str, &str)]) -> Result<(), String> {
    let query = filters
        .iter()
        .map(|(name, value)| format!("&{name}={}", encode(value)));
    Query::parse(&query.collect::<String>()).map(drop)
}

/// Whose peers [`verify`] asks.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// The sessions with these ids.
    Ids(&'a [u64]),
    /// All sessions that these filters leave, as names and values.
    All(&'a [(&'a str, &'a str)]),
}

/// What [`verify`] found.
#[derive(Debug)]
pub struct Verification {
    /// In the form that was asked for.
    pub text: String,
    /// Whether every peer answered.
    pub answered: bool,
    /// What could not be asked, one line each.
    pub errors: Vec<String>,
}

/// Asks the peers of sessions now; with `quick`, sessions whose peer is proven gone are ended.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or refuses.
pub fn verify(
    addr: SocketAddr,
    which: Which<'_>,
    quick: bool,
    format: Format,
) -> Result<Verification, String> {
    let mut errors = Vec::new();
    let list = match which {
        Which::All(filters) => {
            let query = filters
                .iter()
                .map(|(name, value)| format!("&{name}={}", encode(value)));
            let path = format!("/verify?quick={quick}{}", query.collect::<String>());
            let body = post(addr, &path)??;
            serde_json::from_str(&body).map_err(|e| format!("{addr}: {e}"))?
        }
        Which::Ids(ids) => {
            let mut sessions = Vec::<VerifiedSession>::new();
            for id in ids {
                match post(addr, &format!("/connections/{id}/verify?quick={quick}"))? {
                    Ok(body) => sessions
                        .push(serde_json::from_str(&body).map_err(|e| format!("{addr}: {e}"))?),
                    Err(error) => errors.push(error),
                }
            }
            let asked = sessions.len();
            VerifyList::of(sessions, asked)
        }
    };
    let answers = |s: &VerifiedSession| matches!(s.worst(), AnswerWord::Alive | AnswerWord::Over);
    let text = match format {
        Format::Text => table::verify_list(&list),
        Format::Json => serde_json::to_string(&list).map_err(|e| e.to_string())? + "\n",
    };
    Ok(Verification {
        text,
        answered: list.skipped == 0 && list.sessions.iter().all(answers),
        errors,
    })
}

/// Ends a session.
///
/// # Errors
/// In one line: the endpoint cannot be reached, refuses, or knows no such session.
pub fn kill(addr: SocketAddr, id: u64) -> Result<String, String> {
    let path = format!("/connections/{id}");
    match exchange(addr, "DELETE", &path, TIMEOUT) {
        Ok((202, body)) => Ok(body),
        Ok((_, body)) => Err(format!("{addr}: {}", body.trim())),
        Err(error) => Err(at(addr, &error)),
    }
}

/// The outer error is the endpoint's, the inner one this request's.
fn post(addr: SocketAddr, path: &str) -> Result<Result<String, String>, String> {
    match exchange(addr, "POST", path, VERIFY_TIMEOUT) {
        Ok((200, body)) => Ok(Ok(body)),
        Ok((404, body)) => Ok(Err(format!("{addr}: {}", body.trim()))),
        Ok((_, body)) => Err(format!("{addr}: {}", body.trim())),
        Err(error) => Err(at(addr, &error)),
    }
}

fn sessions(addr: SocketAddr) -> io::Result<u64> {
    let (_, body) = exchange(addr, "GET", "/connections?limit=0", TIMEOUT)?;
    serde_json::from_str::<serde_json::Value>(&body)
        .ok()
        .and_then(|list| list.get("total")?.as_u64())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a pulsegate admin address"))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};

    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

fn at(addr: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        // Reads and writes report their timeouts as WouldBlock.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("{addr}: no answer in time"),
        _ => format!("{addr}: {error}"),
    }
}

/// One request: status and body. Where the endpoint has no place for it, it is asked again.
fn exchange(
    addr: SocketAddr,
    method: &str,
    path: &str,
    timeout: Duration,
) -> io::Result<(u16, String)> {
    let deadline = Instant::now() + timeout;
    loop {
        match exchange_once(addr, method, path, deadline) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && Instant::now() + BUSY_PAUSE < deadline =>
            {
                sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

/// The same on one connection.
fn exchange_once(
    addr: SocketAddr,
    method: &str,
    path: &str,
    deadline: Instant,
) -> io::Result<(u16, String)> {
    let addr = reachable(addr);
    let mut stream = TcpStream::connect_timeout(&addr, remaining(deadline)?)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(&mut chunk)? {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(io::Error::other("the answer is too long"));
        }
    }
    parse(&answer)
}

/// A listener on all addresses is reached on loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// What is left; a timeout of zero would mean none to the socket.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// Splits an answer; one that was cut short is UnexpectedEof.
fn parse(answer: &[u8]) -> io::Result<(u16, String)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let head = head.ok_or_else(invalid)?;
    let (head, body) = (&answer[..head], &answer[head + 4..]);
    let mut lines = std::str::from_utf8(head).map_err(|_| invalid())?.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(invalid)?;
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |wanted: &str| {
        let mut found = headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(wanted));
        found.next().map(|(_, value)| value.trim())
    };
    let body = if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        joined(body)?
    } else {
        let length = header("content-length").and_then(|v| v.parse::<usize>().ok());
        if length.is_some_and(|length| length > body.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        body.to_vec()
    };
    let body = String::from_utf8(body).map_err(|_| invalid())?;
    if status == 503 && header("retry-after").is_some() {
        let kind = io::ErrorKind::ResourceBusy;
        return Err(io::Error::new(kind, body.trim().to_owned()));
    }
    Ok((status, body))
}

/// What was sent in chunks (RFC 9112, 7.1); an answer whose last one is missing is cut short.
fn joined(mut chunked: &[u8]) -> io::Result<Vec<u8>> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut body = Vec::with_capacity(chunked.len());
    loop {
        let end = chunked.windows(2).position(|w| w == b"\r\n");
        let (size, rest) = chunked.split_at(end.ok_or_else(cut)?);
        let size = std::str::from_utf8(size).ok();
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let size = size
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))?;
        if size == 0 {
            return Ok(body);
        }
        if size > rest.len() {
            return Err(cut());
        }
        body.extend_from_slice(rest.get(2..2 + size).ok_or_else(cut)?);
        chunked = rest.get(2 + size + 2..).ok_or_else(cut)?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers() {
        let ok = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").expect("valid");
        assert_eq!(ok, (200, "ok\n".to_owned()));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            4\r\nabcd\r\nA\r\n0123456789\r\n0\r\n\r\n";
        let all = parse(chunked).expect("valid");
        assert_eq!(all, (200, "abcd0123456789".to_owned()));
        for cut in [5, 6, 9, 12, 18, 21] {
            let cut = parse(&chunked[..chunked.len() - cut]).expect_err("cut short");
            assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        }
        let busy = parse(b"HTTP/1.1 503 x\r\nRetry-After: 1\r\n\r\n").expect_err("busy");
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        for (answer, kind) in [
            (&b""[..], io::ErrorKind::UnexpectedEof),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok\n",
                io::ErrorKind::UnexpectedEof,
            ),
            (b"SSH-2.0-OpenSSH\r\n", io::ErrorKind::InvalidData),
            (b"SSH-2.0-OpenSSH\r\n\r\n", io::ErrorKind::InvalidData),
        ] {
            assert_eq!(parse(answer).expect_err("bad").kind(), kind);
        }
    }

    #[test]
    fn a_silent_server_costs_the_timeout_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addr = listener.local_addr().expect("bound");
        let start = Instant::now();
        let result = healthcheck(addr, Duration::from_millis(200), Health::Live);
        assert_eq!(result, Err(format!("{addr}: no answer in time")));
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn all_addresses_are_reached_on_loopback() {
        for (addr, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            let addr = addr.parse().expect("valid");
            assert_eq!(reachable(addr).to_string(), expected);
        }
    }
}
