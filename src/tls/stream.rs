//! TLS over streams of tokio, for whoever asks a few servers: checks, `probe`, the subcommands.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{HandshakeError, KEPT};

/// TLS over a connection to a server.
pub type Secured<S> = TlsStream<Noted<S>>;

/// The handshake of a client.
///
/// # Errors
/// Why there is no TLS. A server that speaks something else is quoted.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
) -> Result<Secured<S>, HandshakeError> {
    let first = Vec::with_capacity(KEPT);
    let connect = TlsConnector::from(config).connect(name, Noted { stream, first });
    let failed = |(error, Noted { first, .. })| HandshakeError::of_stream(error, &first);
    connect.into_fallible().await.map_err(failed)
}

/// Ends a connection in good order: close_notify and FIN, then what the server says is read, because the
/// kernel answers what is left unread with RST. A server that does not end is left after this time.
///
/// # Errors
/// The server refuses with an alert. With TLS 1.3 a client learns only behind the handshake that its
/// certificate is not accepted.
pub async fn end<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    within: Duration,
) -> Result<(), HandshakeError> {
    let end = async {
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    match timeout(within, end).await {
        Ok(Err(error)) if is_of_tls(&error) => Err(HandshakeError::of_stream(error, &[])),
        _ => Ok(()),
    }
}

/// Whether the protocol says so, and not the socket.
#[must_use]
pub fn is_of_tls(error: &io::Error) -> bool {
    let said = error.get_ref();
    said.is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

/// A stream of which the first bytes are kept.
#[derive(Debug)]
pub struct Noted<S> {
    stream: S,
    first: Vec<u8>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        let more = read.len().min(KEPT - self.first.len());
        self.first.extend(&read[..more]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
