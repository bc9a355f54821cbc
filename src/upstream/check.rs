//! Active checks: what one asks of an endpoint, and how many in a row count.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Cluster, Endpoint};
use crate::config::{Check, CheckKind, SendProxy, Statuses, UpstreamAddress};
use crate::proxy_protocol::Header;
use crate::tls::Connector;
use crate::tls::stream::{self, Secured};

/// Checks at a time, over all listeners; each holds a descriptor.
pub(super) const MOST: usize = 16;
static AT_ONCE: Semaphore = Semaphore::const_new(MOST);

/// An answer is read for a status no further than this.
const LONGEST_STATUS_LINE: usize = 1024;

/// The orderly end of a check may take so long.
const END_WITHIN: Duration = Duration::from_millis(500);

/// A connection, of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What came of a check.
struct Asked {
    answered: io::Result<()>,
    /// To be ended in good order.
    secured: Option<Secured<Box<dyn Stream>>>,
}

/// Whether an endpoint is up, by its checks. Pure.
#[derive(Debug, Default)]
pub(super) struct Health {
    down: bool,
    /// Results in a row that say otherwise.
    against: u32,
}

impl Health {
    pub fn is_up(&self) -> bool {
        !self.down
    }

    /// Takes in a result; true if that changes what it says.
    pub fn take(&mut self, passed: bool, check: &Check) -> bool {
        if passed == self.is_up() {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if passed { check.rise } else { check.fall };
        if self.against < needed {
            return false;
        }
        *self = Self {
            down: !passed,
            against: 0,
        };
        true
    }
}

impl Cluster {
    /// Checks an endpoint once, as it is configured.
    ///
    /// # Errors
    /// What was wrong.
    pub async fn check(&self, endpoint: &Endpoint) -> io::Result<()> {
        // Nobody closes it. The wait does not count.
        let _turn = AT_ONCE.acquire().await.map_err(io::Error::other)?;
        let within = self.upstream().check.timeout;
        let asked = timeout(within, self.ask(endpoint)).await;
        let late = |_| Err(io::Error::other("not answered within check.timeout"));
        let Asked { answered, secured } = asked.unwrap_or_else(late)?;
        if let Some(mut secured) = secured {
            let ended = stream::end(&mut secured, END_WITHIN).await;
            return answered.and(ended.map_err(io::Error::other));
        }
        answered
    }

    async fn ask(&self, endpoint: &Endpoint) -> io::Result<Asked> {
        let upstream = self.upstream();
        let check = &upstream.check;
        let to = endpoint.address();
        // What is checked elsewhere is another service, which is told nothing.
        let header = match (check.port, upstream.proxy_protocol) {
            (Some(_), _) | (None, SendProxy::Off) => Vec::new(),
            (None, SendProxy::V1) => Header::default().to_v1(),
            (None, SendProxy::V2) => Header::default().to_v2(),
        };
        let question = match check.kind {
            CheckKind::Send => check.send.0.clone(),
            CheckKind::Http => {
                let host = endpoint
                    .name()
                    .map_or_else(|| to.to_string(), ToString::to_string);
                let request = format!(
                    "GET {} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: pulsegate\r\n\r\n",
                    check.path
                );
                request.into_bytes()
            }
            CheckKind::Off | CheckKind::Tcp | CheckKind::Tls => Vec::new(),
        };
        let mut stream: Box<dyn Stream> = match to {
            UpstreamAddress::Socket(to) => {
                let to = SocketAddr::new(to.ip(), check.port.unwrap_or(to.port()));
                Box::new(connect(to, upstream.source_address.as_deref()).await?)
            }
            UpstreamAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
            // No endpoint has one.
            UpstreamAddress::Name { .. } => return Err(io::ErrorKind::Unsupported.into()),
        };
        let Some(connector) = self.secures(check) else {
            stream.write_all(&[header, question].concat()).await?;
            return Ok(Asked {
                answered: answered(&mut *stream, check).await,
                secured: None,
            });
        };
        stream.write_all(&header).await?;
        let mut stream = handshake(connector, endpoint, stream).await?;
        stream.write_all(&question).await?;
        stream.flush().await?;
        Ok(Asked {
            answered: answered(&mut stream, check).await,
            secured: Some(stream),
        })
    }

    /// With what a check speaks TLS. At another port there is another service, which is only asked for it by
    /// a check that is nothing else.
    fn secures(&self, check: &Check) -> Option<&Connector> {
        let is_secured = match check.kind {
            CheckKind::Off | CheckKind::Tcp => false,
            CheckKind::Tls => true,
            CheckKind::Send | CheckKind::Http => check.port.is_none(),
        };
        self.tls().filter(|_| is_secured).map(|tls| &**tls)
    }
}

/// As sessions do it, but never resumed: a certificate is looked at each time.
async fn handshake(
    connector: &Connector,
    endpoint: &Endpoint,
    stream: Box<dyn Stream>,
) -> io::Result<Secured<Box<dyn Stream>>> {
    let name = connector.server_name(&endpoint.host());
    let name = name.map_err(io::Error::other)?;
    let mut config = ClientConfig::clone(&connector.config());
    config.resumption = Resumption::disabled();
    let connected = stream::connect(Arc::new(config), name, stream).await;
    connected.map_err(io::Error::other)
}

async fn answered(stream: &mut dyn Stream, check: &Check) -> io::Result<()> {
    match check.kind {
        CheckKind::Send => answered_bytes(stream, &check.expect.0).await,
        CheckKind::Http => answered_status(stream, check.status).await,
        CheckKind::Off | CheckKind::Tcp | CheckKind::Tls => Ok(()),
    }
}

async fn connect(to: SocketAddr, sources: Option<&[IpAddr]>) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let mut sources = sources.unwrap_or_default().iter();
    if let Some(source) = sources.find(|source| source.is_ipv4() == to.is_ipv4()) {
        socket.bind(SocketAddr::new(*source, 0))?;
    }
    socket.connect(to).await
}

async fn answered_bytes(stream: &mut dyn Stream, expected: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).await?;
    if answer != expected {
        return Err(io::Error::other("another answer than check.expect"));
    }
    Ok(())
}

async fn answered_status(stream: &mut dyn Stream, wanted: Statuses) -> io::Result<()> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < LONGEST_STATUS_LINE {
        let mut bytes = [0; 256];
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            break;
        }
        line.extend(&bytes[..n]);
    }
    match status(&line) {
        Some(code) if wanted.contain(code) => Ok(()),
        Some(code) => Err(io::Error::other(format!("status {code}"))),
        None => Err(io::Error::other("no answer of HTTP/1")),
    }
}

/// The code of a status line (RFC 9112, 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let rest = str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let code = rest.split_ascii_whitespace().nth(1)?;
    code.parse().ok().filter(|_| code.len() == 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Upstream;

    fn check(rise: u32, fall: u32) -> Check {
        let address = UpstreamAddress::Socket(([127, 0, 0, 1], 1).into());
        Check {
            rise,
            fall,
            ..Upstream::of(address).check
        }
    }

    #[test]
    fn so_many_in_a_row_count() {
        let check = check(2, 3);
        let mut health = Health::default();
        let mut take = |passed| (health.take(passed, &check), health.is_up());
        assert_eq!([false, false, true].map(&mut take), [(false, true); 3]);
        assert_eq!([false, false].map(&mut take), [(false, true); 2]);
        assert_eq!(take(false), (true, false));
        assert_eq!([true, false, true].map(&mut take), [(false, false); 3]);
        assert_eq!(take(true), (true, true));
    }

    #[test]
    fn a_status_line_has_a_code() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nA: b"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some(503));
        for wrong in [
            &b""[..],
            b"HTTP/2 200",
            b"HTTP/1.1",
            b"HTTP/1.1 20",
            b"SSH-2.0",
        ] {
            assert_eq!(status(wrong), None);
        }
    }
}
