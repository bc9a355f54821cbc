//! The handshake of one leg.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::layer::Tls;
use crate::metrics::{HandshakeFailure, TlsVersion};
use crate::net::leg::{LegStream, Wire};
use crate::net::stream::TcpStream;

/// Which side of the handshake this is, and with what.
#[derive(Clone, Debug)]
pub enum Side {
    /// Downstream: the peer says ClientHello.
    Server(Arc<ServerConfig>),
    /// Upstream: the name is that which the peer's certificate must have.
    Client(Arc<ClientConfig>, ServerName<'static>),
}

/// What came of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Of the protocol.
    pub version: TlsVersion,
    /// The peers knew each other: no certificate was sent.
    pub is_resumed: bool,
    /// The name that the client asked for (SNI); of a server's side only, and if its resolver of
    /// certificates told it to [`note_server_name`].
    pub server_name: Option<String>,
    /// The protocol above, as agreed.
    pub alpn: Option<String>,
    /// The cipher suite by its name at IANA.
    pub cipher: &'static str,
    /// The first SAN of the peer's certificate, else its CN. None without a certificate.
    pub identity: Option<String>,
}

/// Why there is no TLS on a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// For counting.
    pub failure: HandshakeFailure,
    /// For the operator.
    pub text: String,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for HandshakeError {}

/// A handshake that goes on. It may be dropped at any time, which does not close the socket.
#[derive(Debug)]
pub struct Handshake {
    layer: Box<Tls>,
    received: u64,
    sent: u64,
}

impl Handshake {
    /// Begins. `unread` was read from the socket already.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn new(side: Side, unread: Vec<u8>) -> Result<Self, HandshakeError> {
        let _ = (side, unread);
        Err(HandshakeError {
            failure: HandshakeFailure::ProtocolError,
            text: "not there yet".to_owned(),
        })
    }

    /// Goes on. Before an error the peer is told of it, as far as it takes that at once.
    pub fn poll(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Established, HandshakeError>> {
        let _ = (socket, cx);
        Poll::Pending
    }

    /// The leg, whose wire counts include the handshake.
    #[must_use]
    pub fn into_leg(self, socket: TcpStream) -> LegStream {
        LegStream::layered(
            Wire::with_counts(socket, self.received, self.sent),
            self.layer,
        )
    }
}

/// For resolvers of certificates, which alone see it: tells the handshake that runs on this thread what
/// name the client asked for.
pub fn note_server_name(name: Option<&str>) {
    let _ = name;
}
