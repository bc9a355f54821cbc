//! Asks a server step by step; each has its time.
#![allow(
    clippy::disallowed_methods,
    reason = "tells a person how long each step took"
)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::trust::Trust;
use super::{Met, Step};
use crate::config::{Bytes, UpstreamAddress, show};
use crate::exit::Exit;
use crate::tls::stream::{self, Secured};
use crate::tls::{Established, HandshakeError, HandshakeFailure};

/// Of what a server says first, so much is read at once, and so much of that shown.
const READ: usize = 4096;
const SHOWN: usize = 80;
/// The orderly end may take so long.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Asks; `tell` gets each line as soon as it is known.
pub(super) async fn meet(
    server: &UpstreamAddress,
    trust: Option<&Trust>,
    within: Duration,
    tell: &mut impl FnMut(Met),
) -> Exit {
    let mut stream = match connect(server, within).await {
        Ok((stream, met)) => {
            tell(met);
            stream
        }
        Err((why, exit)) => {
            tell(Met::fail(Step::Connect, why));
            return exit;
        }
    };
    let Some(trust) = trust else {
        return first_byte(&mut stream, within, tell).await;
    };
    let mut stream = match handshake(stream, trust, within).await {
        Ok((stream, met)) => {
            tell(met);
            stream
        }
        Err(met) => {
            tell(met);
            return Exit::NoHandshake;
        }
    };
    match trust.tell(tell) {
        Exit::Ok => first_byte(&mut stream, within, tell).await,
        refused => {
            let _told = stream::end(&mut stream, END_WITHIN).await;
            refused
        }
    }
}

/// To the first address that accepts.
async fn connect(
    server: &UpstreamAddress,
    within: Duration,
) -> Result<(TcpStream, Met), (String, Exit)> {
    let deadline = Instant::now() + within;
    let unknown = |why| (why, Exit::NotConnected);
    let addresses = addresses(server, within).await.map_err(unknown)?;
    let (mut refused, mut exit) = (String::new(), Exit::NotConnected);
    for (i, address) in addresses.iter().enumerate() {
        let others = (addresses.len() - i) as u32;
        let share = deadline.saturating_duration_since(Instant::now()) / others;
        let start = Instant::now();
        match timed(share, TcpStream::connect(address)).await {
            Ok(stream) => {
                let took = start.elapsed();
                let met = Met::ok(
                    Step::Connect,
                    format!("{address} in {}{refused}", Took(took)),
                )
                .with("address", address.to_string())
                .with("took_ms", ms(took));
                return Ok((stream, met));
            }
            // It was accepted: who does not listen refuses.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                exit = Exit::EndedEarly;
                refused += &format!("; {address}: the server resets the connection at once");
            }
            Err(error) => refused += &format!("; {address}: {error}"),
        }
    }
    Err((refused.trim_start_matches("; ").to_owned(), exit))
}

async fn addresses(server: &UpstreamAddress, within: Duration) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = match server {
        UpstreamAddress::Socket(address) => return Ok(vec![*address]),
        UpstreamAddress::Name { host, port } => (host, *port),
        UpstreamAddress::Unix(_) => return Err(format!("{server} is no address of a host")),
    };
    match timed(within, lookup_host((&**host, port))).await {
        Ok(found) => match Vec::from_iter(found) {
            none if none.is_empty() => Err(format!("{host} has no address")),
            found => Ok(found),
        },
        Err(why) => Err(format!("{host} cannot be looked up: {why}")),
    }
}

async fn handshake(
    stream: TcpStream,
    trust: &Trust,
    within: Duration,
) -> Result<(Secured<TcpStream>, Met), Met> {
    let start = Instant::now();
    let done = stream::connect(trust.config(), trust.name(), stream);
    let stream = match timeout(within, done).await {
        Err(_) => return Err(silent(within)),
        Ok(Err(error)) => return Err(failed(Step::Handshake, error)),
        Ok(Ok(stream)) => stream,
    };
    let took = start.elapsed();
    let (_, connection) = stream.get_ref();
    let Established {
        version,
        cipher,
        alpn,
        ..
    } = Established::of(connection);
    let alpn = alpn.map(|name| Bytes(name.into_bytes()).to_string());
    let inside = alpn
        .as_ref()
        .map_or_else(|| "no ALPN".to_owned(), |name| format!("ALPN {name}"));
    let text = format!("{version}, {cipher}, {inside}, in {}", Took(took));
    let met = Met::ok(Step::Handshake, text)
        .with("version", version.to_string())
        .with("cipher", cipher)
        .with("alpn", alpn)
        .with("took_ms", ms(took));
    Ok((stream, met))
}

fn silent(within: Duration) -> Met {
    let text = format!("no answer within {}", show(within));
    let failure = HandshakeFailure::Timeout;
    Met::fail(Step::Handshake, text).with("reason", failure.to_string())
}

fn failed(step: Step, HandshakeError { failure, text, .. }: HandshakeError) -> Met {
    Met::fail(step, text).with("reason", failure.to_string())
}

/// What is said without a question. With TLS 1.3 a refused client learns that here.
async fn first_byte<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    within: Duration,
    tell: &mut impl FnMut(Met),
) -> Exit {
    let mut bytes = [0; READ];
    let start = Instant::now();
    let read = timeout(within, stream.read(&mut bytes)).await;
    let took = start.elapsed();
    let (met, exit) = match read {
        Err(_) => {
            let text = format!("says nothing first (waited {})", show(within));
            let met = Met::ok(Step::FirstByte, text);
            (met.with("bytes", serde_json::Value::Null), Exit::Ok)
        }
        Ok(Ok(0)) => {
            let text = format!("the server ends the connection after {}", Took(took));
            (Met::fail(Step::FirstByte, text), Exit::EndedEarly)
        }
        Ok(Ok(n)) => {
            let shown = Bytes(bytes[..n.min(SHOWN)].to_vec());
            let more = if n > SHOWN { " …" } else { "" };
            let met = Met::ok(
                Step::FirstByte,
                format!("\"{shown}\"{more} after {}", Took(took)),
            );
            (met.with("bytes", shown.to_string()), Exit::Ok)
        }
        Ok(Err(error)) if stream::is_of_tls(&error) => {
            let error = HandshakeError::of_stream(error, &[]);
            (failed(Step::FirstByte, error), Exit::NoHandshake)
        }
        Ok(Err(error)) => {
            let how = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    "ends the connection without close_notify".to_owned()
                }
                io::ErrorKind::ConnectionReset => "resets the connection".to_owned(),
                _ => format!("cannot be read from: {error}"),
            };
            let text = format!("the server {how}, after {}", Took(took));
            (Met::fail(Step::FirstByte, text), Exit::EndedEarly)
        }
    };
    tell(met.with("took_ms", ms(took)));
    let _told = stream::end(stream, END_WITHIN).await;
    exit
}

async fn timed<T>(within: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let silent = |_| {
        Err(io::Error::other(format!(
            "no answer within {}",
            show(within)
        )))
    };
    timeout(within, step).await.unwrap_or_else(silent)
}

fn ms(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e4).round() / 10.0
}

/// A time, for people.
struct Took(Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", ms(self.0))
    }
}
