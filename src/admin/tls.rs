//! HTTPS: the handshake with a client, which may speak something else.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::telemetry::Repeated;
use crate::tls::{AdminAcceptor, HandshakeError};

/// From the connect on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What may be held of an answer that a client does not take.
const BUFFER: usize = 16 * 1024;
/// The first byte of a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// A client that speaks HTTP may take so long to hear what is wrong, and say so much meanwhile.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 * 1024;
const NOT_HTTPS: &str = "HTTP/1.1 400 Bad Request\r\nPulsegate: admin\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 40\r\nConnection: close\r\n\r\nthis address speaks HTTPS: use https://\n";

/// Lines about clients without TLS.
static LINES: Repeated = Repeated::new();

/// The connection, once TLS is agreed on; `None`: it is over.
pub(super) async fn accept(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &AdminAcceptor,
) -> Option<TlsStream<TcpStream>> {
    let why = match timeout(HANDSHAKE_TIMEOUT, handshake(stream, acceptor)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(NoTls::Nothing)) => {
            debug!(%peer, "admin: the client said nothing");
            return None;
        }
        Ok(Err(NoTls::Why(why))) => why,
        Err(_) => format!("the handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
    };
    if LINES.begin() {
        warn!(%peer, "admin: the TLS handshake failed: {why}");
        tokio::spawn(LINES.sum_up(|more| {
            warn!("admin: the TLS handshake failed with {more} more clients in the last 10 s");
        }));
    }
    None
}

enum NoTls {
    /// It left without a byte, as checks of a port do.
    Nothing,
    /// For the operator.
    Why(String),
}

async fn handshake(
    stream: TcpStream,
    acceptor: &AdminAcceptor,
) -> Result<TlsStream<TcpStream>, NoTls> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(NoTls::Nothing),
        Ok(_) if first != [HANDSHAKE] => {
            if first[0].is_ascii_uppercase() {
                let _heard_or_not = timeout(FAREWELL, farewell(stream)).await;
            }
            return Err(NoTls::Why("the client speaks plain text".to_owned()));
        }
        Ok(_) => {}
    }
    let accepted = TlsAcceptor::from(acceptor.config()).accept(stream).await;
    let mut stream =
        accepted.map_err(|error| NoTls::Why(HandshakeError::of_stream(error, &first).text))?;
    stream.get_mut().1.set_buffer_limit(Some(BUFFER));
    Ok(stream)
}

/// Says what is wrong, and reads what the client says: to close before would take the answer from it.
async fn farewell(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(NOT_HTTPS.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(FAREWELL_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink())
        .await
        .map(drop)
}
