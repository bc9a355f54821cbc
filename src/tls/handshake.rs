//! The handshake of one leg.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, CommonState, HandshakeKind, ProtocolVersion,
    ServerConfig,
};

use super::certificate::Certificate;
use super::connection::{Connection, Step};
use super::failure::{HandshakeError, KEPT, Told};
use super::layer::Tls;
use crate::metrics::{HandshakeFailure, TlsVersion};
use crate::net::leg::Layer;
use crate::net::stream::TcpStream;

/// Read at once. Most messages of a handshake are shorter.
const CHUNK_BYTES: usize = 4096;

thread_local! {
    static TOLD: RefCell<Told> = const {
        RefCell::new(Told {
            server_name: None,
            refused: None,
        })
    };
}

/// For resolvers of certificates, which alone see it: tells the handshake that runs on this thread what
/// name the client asked for.
pub fn note_server_name(name: Option<&str>) {
    TOLD.with_borrow_mut(|told| told.server_name = name.map(str::to_owned));
}

/// The same for verifiers: this certificate is not accepted.
pub(super) fn note_refused(certificate: &CertificateDer<'_>) {
    let refused = Certificate::of(certificate).map(Box::new);
    TOLD.with_borrow_mut(|told| told.refused = refused);
}

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

impl Established {
    /// As far as the state of a connection tells.
    #[must_use]
    pub fn of(state: &CommonState) -> Self {
        let suite = state.negotiated_cipher_suite();
        let alpn = state.alpn_protocol().map(String::from_utf8_lossy);
        Self {
            version: match state.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => TlsVersion::V13,
                _ => TlsVersion::V12,
            },
            is_resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
            server_name: None,
            alpn: alpn.map(Into::into),
            cipher: suite.map_or("unknown", |suite| cipher_name(suite.suite())),
            identity: identity(state.peer_certificates()),
        }
    }
}

/// A handshake that goes on. It may be dropped at any time, which does not close the socket.
#[derive(Debug)]
pub struct Handshake {
    pub(super) layer: Box<Tls>,
    told: Told,
    first: Vec<u8>,
}

impl Handshake {
    /// Begins. `unread` was read from the socket already.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn new(side: Side, unread: Vec<u8>) -> Result<Self, HandshakeError> {
        let connection = Connection::new(side).map_err(|error| HandshakeError::from(&error))?;
        Ok(Self {
            first: unread[..unread.len().min(KEPT)].to_vec(),
            told: Told::default(),
            layer: Box::new(Tls::new(connection, unread)),
        })
    }

    /// Goes on. Before an error the peer is told of it, as far as it takes that at once.
    pub fn poll(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Established, HandshakeError>> {
        self.poll_steps(socket, cx).map_err(|error| HandshakeError {
            server_name: self.told.server_name.take(),
            ..error
        })
    }

    fn poll_steps(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Established, HandshakeError>> {
        loop {
            let state = self.layer.state();
            if !state.is_handshaking() && !state.wants_write() {
                ready!(self.poll_flush(socket, cx))?;
                return Poll::Ready(Ok(self.established()));
            }
            TOLD.set(Told::default());
            let step = self.layer.shake();
            let told = TOLD.take();
            self.told.server_name = told.server_name.or(self.told.server_name.take());
            self.told.refused = told.refused;
            match step {
                Ok(Step::Done(_)) if self.layer.state().is_handshaking() => {
                    ready!(self.poll_flush(socket, cx))?;
                    ready!(self.poll_receive(socket, cx))?;
                }
                Ok(_) => {}
                Err(error) => {
                    let error = HandshakeError::of(&error, &self.first, &self.told);
                    if error.failure == HandshakeFailure::UnknownServerName {
                        // RFC 6066, 3. rustls says access_denied.
                        self.layer.amend_alert(AlertDescription::UnrecognisedName);
                    }
                    let _best_effort = self.poll_flush(socket, cx);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// TLS, for the leg that it was made on.
    #[must_use]
    pub fn into_layer(self) -> Box<dyn Layer> {
        self.layer
    }
}

impl Handshake {
    fn poll_flush(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.layer
            .poll_put(|records| socket.poll_write(cx, records))
    }

    fn poll_receive(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        let mut chunk = [0; CHUNK_BYTES];
        let n = ready!(socket.poll_read(cx, &mut chunk))?;
        if n == 0 {
            return Poll::Ready(Err(HandshakeError::ended(&self.first)));
        }
        let more = n.min(KEPT - self.first.len());
        self.first.extend(&chunk[..more]);
        Poll::Ready(
            self.layer
                .receive(&chunk[..n])
                .map_err(HandshakeError::from),
        )
    }

    fn established(&mut self) -> Established {
        Established {
            server_name: self.told.server_name.take(),
            ..Established::of(self.layer.state())
        }
    }
}

/// Whose the first certificate of a chain is.
fn identity(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    Certificate::of(chain?.first()?)?.identity
}

/// rustls tells those of TLS 1.3 by a prefix of its own.
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite.as_str().unwrap_or("unknown"),
    }
}
