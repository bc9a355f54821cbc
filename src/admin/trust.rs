//! How the subcommands know an endpoint that speaks HTTPS.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, Error, OtherError};
use tokio::net::TcpStream;

use crate::config::{Roots, UpstreamTls};
use crate::tls::stream::{self, Secured};
use crate::tls::{HandshakeError, HandshakeFailure, Judge, judged_by};

/// What its certificate must be.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The one that the process itself shows those who may look into it, or of two that follow each other
    /// either one. Names and dates do not matter then.
    Pinned(Vec<CertificateDer<'static>>),
    /// One that is issued for this name, by an authority of the configuration.
    Issued(ServerName<'static>, Arc<ClientConfig>),
}

impl Trust {
    /// As the `Host` header has it.
    pub(super) fn host(&self, address: SocketAddr) -> String {
        match self {
            Self::Issued(ServerName::DnsName(name), _) => {
                format!("{}:{}", name.as_ref(), address.port())
            }
            Self::Issued(..) | Self::Pinned(_) => address.to_string(),
        }
    }

    /// TLS over a connection.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        to: IpAddr,
    ) -> io::Result<Secured<TcpStream>> {
        let (name, config) = match self {
            Self::Pinned(certificates) => (to.into(), pinned(certificates.clone())?),
            Self::Issued(name, config) => (name.clone(), config.clone()),
        };
        let connected = stream::connect(config, name, stream).await;
        connected.map_err(explained)
    }
}

fn explained(
    HandshakeError {
        failure, text, io, ..
    }: HandshakeError,
) -> io::Error {
    // Whether the process is gone is to be seen.
    if let Some(error) = io {
        return error;
    }
    let advice = match failure {
        HandshakeFailure::UnknownCa => "; name the authority by --admin-ca FILE",
        HandshakeFailure::PlainText => "; leave out https://",
        HandshakeFailure::Closed => return io::Error::new(io::ErrorKind::UnexpectedEof, text),
        _ => "",
    };
    io::Error::new(io::ErrorKind::InvalidData, text + advice)
}

fn pinned(expected: Vec<CertificateDer<'static>>) -> io::Result<Arc<ClientConfig>> {
    let judge = Judge::new(move |shown| match expected.contains(shown.certificate) {
        true => Ok(()),
        false => {
            let other = CertificateError::Other(OtherError(Arc::new(Another)));
            Err(Error::InvalidCertificate(other))
        }
    });
    let client = judged_by(&UpstreamTls::of(Roots::System), Arc::new(judge));
    client.map(Arc::new).map_err(io::Error::other)
}

#[derive(Debug)]
struct Another;

impl fmt::Display for Another {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server shows another certificate than the one of admin.tls; if its file was renewed meanwhile, \
             ask by --pid PID",
        )
    }
}

impl std::error::Error for Another {}
