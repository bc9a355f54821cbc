//! A client for the endpoint, for the subcommands that talk to a running pulsegate. Blocking:
//! they do nothing else.
#![allow(
    clippy::disallowed_methods,
    reason = "runs in a process of its own, which may wait"
)]

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout_at;

use super::guard::{TokenFile, read_token};
use super::notice::{Notice, Place};
use super::query::Query;
pub use super::query::{Format, Sort};
use super::routes::OURS;
use super::server::Stream;
use super::table;
pub use super::table::age;
pub use super::trust::Trust;
use crate::config::ControlAddress;
use crate::view::{AnswerWord, OnSilent, VerifiedSession, VerifyList};

/// For one exchange of [`drain`] and [`connections`].
const TIMEOUT: Duration = Duration::from_secs(10);
/// For one exchange of [`verify`]: the endpoint itself takes up to 10 s.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(12);
/// Often enough to notice the end of a drain before the process goes (`App::serve`).
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Between two tries where the endpoint has no place for a request.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries where it closed the connection to make room for others.
const EVICTED_PAUSE: Duration = Duration::from_millis(20);
/// About half a million sessions as JSON.
const MAX_ANSWER: usize = 512 * 1024 * 1024;

/// An endpoint, and what it is told.
#[derive(Clone, Debug)]
pub struct Target {
    /// At least one. The next one is tried where nobody can be connected to.
    addresses: Vec<(ControlAddress, Option<Trust>)>,
    token: Option<String>,
}

impl From<ControlAddress> for Target {
    fn from(address: ControlAddress) -> Self {
        let (addresses, token) = (vec![(address, None)], None);
        Self { addresses, token }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        ControlAddress::Tcp(address).into()
    }
}

impl Target {
    /// One that speaks HTTPS.
    #[must_use]
    pub fn https(address: SocketAddr, trust: Trust) -> Self {
        let addresses = vec![(ControlAddress::Tcp(address), Some(trust))];
        let token = None;
        Self { addresses, token }
    }

    /// What is said there; `None`: the endpoint is off.
    pub fn of(Notice { places, token_file }: Notice) -> Option<Self> {
        let place = |Place {
                         address,
                         certificate,
                     }| {
            let pinned = certificate.map(|certificate| Trust::Pinned(vec![certificate]));
            (address, pinned)
        };
        let addresses: Vec<_> = places.into_iter().map(place).collect();
        let token = None;
        let target = (!addresses.is_empty()).then_some(Self { addresses, token })?;
        // Whoever may not read it can still ask.
        let token = token_file.and_then(|file| TokenFile::new(file).ok()?.read().ok());
        Some(Self { token, ..target })
    }

    /// The one for both, where they are at the same addresses: two instances that follow each other.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Option<Self> {
        if self.to_string() != other.to_string() {
            return None;
        }
        for ((_, ours), (_, theirs)) in self.addresses.iter_mut().zip(other.addresses) {
            if let (Some(Trust::Pinned(ours)), Some(Trust::Pinned(theirs))) = (ours, theirs) {
                ours.extend(theirs);
            }
        }
        Some(self)
    }

    /// The same with the token of this file, or pipe.
    ///
    /// # Errors
    /// In one line: why there is none.
    pub fn with_token(self, file: &Path) -> Result<Self, String> {
        let token = Some(read_token(file)?);
        Ok(Self { token, ..self })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(address, trust): &(ControlAddress, Option<Trust>)| match trust {
            Some(_) => format!("https://{address}"),
            None => address.to_string(),
        };
        let addresses: Vec<_> = self.addresses.iter().map(shown).collect();
        f.write_str(&addresses.join(", "))
    }
}

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
pub fn healthcheck(addr: &Target, timeout: Duration, health: Health) -> Result<(), String> {
    let path = match health {
        Health::Live => "/livez",
        Health::Ready => "/readyz",
    };
    let deadline = Instant::now() + timeout;
    let mut evicted = None;
    loop {
        match exchange_once(addr, &Method::GET, path, deadline) {
            Ok((StatusCode::OK, _)) => return Ok(()),
            // Of many connections it closes the least active ones. A process that has ended would
            // refuse.
            Err(error)
                if error.kind() != io::ErrorKind::ConnectionRefused
                    && is_gone(&error)
                    && Instant::now() < deadline =>
            {
                sleep(EVICTED_PAUSE);
                evicted = Some(error);
            }
            // The last try had no time left: what the others met says more.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(why(addr, Err(evicted.unwrap_or(error))));
            }
            other => return Err(why(addr, other)),
        }
    }
}

/// Starts the drain. With `wait`, returns when it is over and the process goes, or after that time: a process
/// without sessions still accepts until `drain.delay` is over.
///
/// # Errors
/// In one line: the endpoint cannot be reached or refuses, or sessions are left after `wait`.
pub fn drain(addr: &Target, wait: Option<Duration>) -> Result<String, String> {
    let body = text(addr, &Method::POST, "/drain", StatusCode::ACCEPTED)?;
    let Some(wait) = wait else {
        return Ok(body);
    };
    let deadline = Instant::now() + wait;
    let over = |error: io::Error| {
        // It closes the endpoint, which ends the answer that was under way and removes a unix socket.
        if is_gone(&error) || error.kind() == io::ErrorKind::NotFound {
            return Ok("drained, the process ends\n".into());
        }
        Err(why(addr, Err(error)))
    };
    loop {
        match exchange(addr, &Method::GET, "/readyz", TIMEOUT) {
            // The one that drains says 503.
            Ok((StatusCode::OK, _)) => {
                return Err(format!(
                    "{addr}: a new instance answers here; the old one drains on"
                ));
            }
            Ok(_) if Instant::now() >= deadline => break,
            Ok(_) => sleep(POLL_EVERY.min(deadline.saturating_duration_since(Instant::now()))),
            Err(error) => return over(error),
        }
    }
    match sessions(addr) {
        Ok(0) => Ok("drained\n".to_owned()),
        Ok(left) => {
            let plural = if left == 1 { "" } else { "s" };
            Err(format!(
                "{addr}: {left} session{plural} left after {wait:?}"
            ))
        }
        Err(error) => over(error),
    }
}

/// Has the configuration file read again. What the endpoint says of it: what became of each change, or
/// what is wrong with the file.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or refuses.
pub fn reload(addr: &Target, format: Format) -> Result<Result<String, String>, String> {
    let path = format!("/reload?format={format}");
    match exchange(addr, &Method::POST, &path, TIMEOUT) {
        Ok((StatusCode::OK, report)) => Ok(Ok(report)),
        Ok((StatusCode::UNPROCESSABLE_ENTITY, lines)) => Ok(Err(lines)),
        other => Err(why(addr, other)),
    }
}

/// The sessions as the endpoint shows them. `query` holds its filters as names and values.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or does not accept the query.
pub fn connections(
    addr: &Target,
    query: &[(&str, &str)],
    format: Format,
) -> Result<String, String> {
    let query = encoded(&[query, &[("format", &format.to_string())]].concat());
    let path = format!("/connections?{query}");
    text(addr, &Method::GET, &path, StatusCode::OK)
}

/// The figures of each listener, as JSON.
///
/// # Errors
/// In one line: the endpoint cannot be reached.
pub fn summary(addr: &Target) -> Result<String, String> {
    text(addr, &Method::GET, "/summary", StatusCode::OK)
}

/// The endpoints of the services. `query` is as for [`connections`].
///
/// # Errors
/// In one line: the endpoint cannot be reached, or does not accept the query.
pub fn upstreams(addr: &Target, query: &[(&str, &str)], format: Format) -> Result<String, String> {
    let query = encoded(&[query, &[("format", &format.to_string())]].concat());
    let path = format!("/upstreams?{query}");
    text(addr, &Method::GET, &path, StatusCode::OK)
}

/// The last ends because a peer was gone, or hung: of a listener, where the query names one.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or does not accept the query.
pub fn found(addr: &Target, query: &[(&str, &str)], format: Format) -> Result<String, String> {
    let query = encoded(&[query, &[("format", &format.to_string())]].concat());
    let path = format!("/found?{query}");
    text(addr, &Method::GET, &path, StatusCode::OK)
}

/// Whether the endpoint would accept these filters, as names and values.
///
/// # Errors
/// In one line: which one it would not, and what is accepted.
pub fn check(filters: &[(&str, &str)]) -> Result<(), String> {
    Query::parse(&encoded(filters)).map(drop)
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

/// Asks the peers of sessions now.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or refuses.
pub fn verify(
    addr: &Target,
    which: Which<'_>,
    on_silent: OnSilent,
    format: Format,
) -> Result<Verification, String> {
    let quick = on_silent == OnSilent::End;
    let mut errors = Vec::new();
    let list = match which {
        Which::All(filters) => {
            let path = format!("/verify?quick={quick}&{}", encoded(filters));
            parsed(addr, exchange(addr, &Method::POST, &path, VERIFY_TIMEOUT))?
        }
        Which::Ids(ids) => {
            let mut sessions = Vec::<VerifiedSession>::new();
            for id in ids {
                let path = format!("/connections/{id}/verify?quick={quick}");
                match exchange(addr, &Method::POST, &path, VERIFY_TIMEOUT) {
                    unknown @ Ok((StatusCode::NOT_FOUND, _)) => errors.push(why(addr, unknown)),
                    answer => sessions.push(parsed(addr, answer)?),
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
        text: printable(text),
        answered: list.skipped == 0 && list.sessions.iter().all(answers),
        errors,
    })
}

/// Ends a session. The query has the `reason` for the log, or nothing.
///
/// # Errors
/// In one line: the endpoint cannot be reached, refuses, or knows no such session.
pub fn kill(addr: &Target, id: u64, query: &[(&str, &str)]) -> Result<String, String> {
    let path = format!("/connections/{id}?{}", encoded(query));
    text(addr, &Method::DELETE, &path, StatusCode::ACCEPTED)
}

/// Ends all sessions, or those that the filters of the query leave; it may have a `reason`, too.
///
/// # Errors
/// In one line: the endpoint cannot be reached, or refuses.
pub fn kill_all(addr: &Target, query: &[(&str, &str)]) -> Result<String, String> {
    let path = format!("/connections?all=true&{}", encoded(query));
    text(addr, &Method::DELETE, &path, StatusCode::ACCEPTED)
}

/// The body of an answer with this status; any other one is an error that says why.
fn text(
    addr: &Target,
    method: &Method,
    path: &str,
    expected: StatusCode,
) -> Result<String, String> {
    match exchange(addr, method, path, TIMEOUT) {
        Ok((status, body)) if status == expected => Ok(body),
        other => Err(why(addr, other)),
    }
}

fn encoded(query: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish()
}

/// What the endpoint says with status 200.
fn parsed<T: DeserializeOwned>(addr: &Target, answer: Answer) -> Result<T, String> {
    match answer {
        Ok((StatusCode::OK, body)) => {
            serde_json::from_str(&body).map_err(|error| format!("{addr}: {error}"))
        }
        other => Err(why(addr, other)),
    }
}

/// Why an answer is not the one that was asked for.
fn why(addr: &Target, answer: Answer) -> String {
    let why = match answer {
        Ok((status, body)) if body.trim().is_empty() => status.to_string(),
        Ok((_, body)) => body.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        // It may quote a certificate.
        Err(error) => printable(error.to_string()),
    };
    format!("{addr}: {why}")
}

/// Names that strangers chose must not command a terminal.
fn printable(text: String) -> String {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(commands) {
        true => text.replace(commands, "\u{fffd}"),
        false => text,
    }
}

fn sessions(addr: &Target) -> io::Result<u64> {
    let (_, body) = exchange(addr, &Method::GET, "/connections?limit=0", TIMEOUT)?;
    serde_json::from_str::<serde_json::Value>(&body)
        .ok()
        .and_then(|list| list.get("total")?.as_u64())
        .ok_or_else(|| foreign("it does not count its sessions"))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};

    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

/// Status and body.
type Answer = io::Result<(StatusCode, String)>;

/// One request: status and body. Where the endpoint has no place for it, it is asked again.
fn exchange(addr: &Target, method: &Method, path: &str, timeout: Duration) -> Answer {
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
fn exchange_once(addr: &Target, method: &Method, path: &str, deadline: Instant) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = ask(addr, method, path);
    let answer = runtime.block_on(async { timeout_at(deadline.into(), answer).await });
    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// To the first address that can be connected to, with the name of the host there.
async fn connect(addr: &Target) -> io::Result<(Box<dyn Stream>, String)> {
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    for (address, trust) in &addr.addresses {
        match connect_to(address, trust.as_ref()).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn connect_to(
    address: &ControlAddress,
    trust: Option<&Trust>,
) -> io::Result<(Box<dyn Stream>, String)> {
    let address = match address {
        ControlAddress::Tcp(address) => reachable(*address),
        ControlAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            return Ok((Box::new(stream), "localhost".to_owned()));
        }
    };
    let stream = TcpStream::connect(address).await?;
    let Some(trust) = trust else {
        return Ok((Box::new(stream), address.to_string()));
    };
    let host = trust.host(address);
    Ok((Box::new(trust.connect(stream, address.ip()).await?), host))
}

async fn ask(addr: &Target, method: &Method, path: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONNECTION, "close");
    let request = match &addr.token {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    };
    let (stream, host) = connect(addr).await?;
    let request = request.header(HOST, host).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failure(&e))?;
    tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| failure(&e))?;
    let status = answer.status();
    if !answer.headers().contains_key(OURS) {
        return Err(foreign(&format!("it answers {status}")));
    }
    let is_busy =
        status == StatusCode::SERVICE_UNAVAILABLE && answer.headers().contains_key(RETRY_AFTER);
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| failure(&*e))?.to_bytes();
    let body = String::from_utf8(body.into()).map_err(|_| foreign("the answer is not text"))?;
    let body = printable(body);
    if is_busy {
        let kind = io::ErrorKind::ResourceBusy;
        return Err(io::Error::new(kind, body.trim().to_owned()));
    }
    Ok((status, body))
}

/// What the system said, or what is wrong with the answer. One that was cut short is UnexpectedEof.
fn failure(error: &(dyn Error + 'static)) -> io::Error {
    if error.is::<LengthLimitError>() {
        return io::Error::other("the answer is too long");
    }
    if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
        return foreign("the answer is not HTTP");
    }
    let cause = error.source().and_then(|e| e.downcast_ref());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::ErrorKind::UnexpectedEof.into(),
    }
}

fn foreign(why: &str) -> io::Error {
    let why = format!("not a pulsegate: {why}");
    io::Error::new(io::ErrorKind::InvalidData, why)
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What is made of an answer of these bytes, which ends the connection.
    fn answered(bytes: &'static [u8]) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addr = listener.local_addr().expect("bound");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).expect("asked") > 0);
            stream.write_all(bytes).expect("written");
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        let answer = exchange_once(&addr.into(), &Method::GET, "/", deadline);
        server.join().expect("no panic");
        answer
    }

    #[test]
    fn answers() {
        let ok = answered(b"HTTP/1.1 200 OK\r\nPulsegate: admin\r\nContent-Length: 3\r\n\r\nok\n")
            .expect("valid");
        assert_eq!(ok, (StatusCode::OK, "ok\n".to_owned()));
        let chunked = b"HTTP/1.1 200 OK\r\nPulsegate: admin\r\nTransfer-Encoding: chunked\r\n\r\n\
            4\r\nabcd\r\nA\r\n0123456789\r\n0\r\n\r\n";
        let all = answered(chunked).expect("valid");
        assert_eq!(all, (StatusCode::OK, "abcd0123456789".to_owned()));
        for cut in [5, 6, 9, 12, 18, 21] {
            let cut = answered(&chunked[..chunked.len() - cut]).expect_err("cut short");
            assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        }
        for (answer, kind) in [
            (
                &b"HTTP/1.1 503 x\r\nPulsegate: admin\r\nRetry-After: 1\r\n\r\n"[..],
                io::ErrorKind::ResourceBusy,
            ),
            (b"", io::ErrorKind::UnexpectedEof),
            (
                b"HTTP/1.1 200 OK\r\nPulsegate: admin\r\ncontent-length: 9\r\n\r\nok\n",
                io::ErrorKind::UnexpectedEof,
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
                io::ErrorKind::InvalidData,
            ),
            (
                b"HTTP/1.1 503 x\r\nRetry-After: 1\r\n\r\n",
                io::ErrorKind::InvalidData,
            ),
            (b"SSH-2.0-OpenSSH\r\n", io::ErrorKind::InvalidData),
            (b"SSH-2.0-OpenSSH\r\n\r\n", io::ErrorKind::InvalidData),
        ] {
            assert_eq!(answered(answer).expect_err("bad").kind(), kind);
        }
    }

    #[test]
    fn what_is_printed_commands_no_terminal_and_says_something() {
        let said = answered(
            b"HTTP/1.1 404 Not Found\r\nPulsegate: admin\r\nContent-Length: 14\r\n\r\n\x1b[31m\ta\r\n\xc2\x9bb\x07\n",
        );
        let addr = Target::from(SocketAddr::from(([127, 0, 0, 1], 1)));
        let expected = "127.0.0.1:1: \u{fffd}[31m\ta\u{fffd}\n\u{fffd}b\u{fffd}";
        assert_eq!(why(&addr, said), expected);
        let empty = Ok((StatusCode::MOVED_PERMANENTLY, "\n".to_owned()));
        assert_eq!(why(&addr, empty), "127.0.0.1:1: 301 Moved Permanently");
    }

    #[test]
    fn a_silent_server_costs_the_timeout_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addr = listener.local_addr().expect("bound");
        let start = Instant::now();
        let result = healthcheck(&addr.into(), Duration::from_millis(200), Health::Live);
        assert_eq!(result, Err(format!("{addr}: no answer in time")));
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_server_that_resets_is_told_from_a_silent_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addr = listener.local_addr().expect("bound");
        // Closed with a request that was not read: RST.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _asked = stream.peek(&mut [0]);
            }
        });
        let result = healthcheck(&addr.into(), Duration::from_millis(200), Health::Live);
        let why = result.expect_err("no answer");
        assert!(why.contains("Connection reset"), "{why}");
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
