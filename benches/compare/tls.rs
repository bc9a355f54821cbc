//! The load in TLS. All targets have the same certificate, and speak the same version, cipher and key exchange.
//! Clients do not verify the certificate: the ends are not what is measured.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup,
    SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::backend::{self, ARRIVED, CHUNK, pour};
use crate::load::{self, PATIENCE, Tally, ask, each, message, stopped};

/// Whether clients come back with what they know of the last session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    New,
    Resumed,
}

/// A certificate for all targets: the chain, its key, and both in one file.
pub fn certify(directory: &Path) -> io::Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let made = made.map_err(io::Error::other)?;
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text);
    write("tls.pem", &chain)?;
    write("tls.key", &key)?;
    write("tls-both.pem", &(chain + &key))
}

/// Believes everybody.
#[derive(Debug)]
struct Believer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn connector(sessions: Sessions) -> TlsConnector {
    let mut provider = CryptoProvider::clone(&pulsegate::tls::provider());
    let is_ours = |suite: CipherSuite| suite == CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider
        .cipher_suites
        .retain(|known| is_ours(known.suite()));
    provider
        .kx_groups
        .retain(|group| group.name() == NamedGroup::X25519);
    let believer = Believer(provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.expect("the version is known").dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(believer));
    let mut config = builder.with_no_client_auth();
    if sessions == Sessions::New {
        config.resumption = Resumption::disabled();
    }
    TlsConnector::from(Arc::new(config))
}

async fn dial(to: SocketAddr, tls: &TlsConnector, kind: u8) -> io::Result<TlsStream<TcpStream>> {
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut stream = timeout(PATIENCE, tls.connect(name, stream)).await??;
    stream.write_all(&[kind]).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Connections that ask again as soon as they have the answer.
pub fn ping(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    let tls = connector(Sessions::New);
    each(connections, tally, |_| {
        let (tally, tls) = (Arc::clone(tally), tls.clone());
        async move {
            let mut stream = dial(to, &tls, b'E').await?;
            let mut n = 0;
            while !tally.stopped() {
                let since = Instant::now();
                ask(&mut stream, &message(n)).await?;
                tally.unit(since);
                n += 1;
            }
            Ok(())
        }
    });
}

/// Connect, handshake, one message there and back, close_notify, FIN; again and again.
pub fn connect(to: SocketAddr, at_a_time: usize, sessions: Sessions, tally: &Arc<Tally>) {
    each(at_a_time, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            // Each has its own memory of sessions: none takes another's.
            let tls = connector(sessions);
            let mut n = 0;
            while !tally.stopped() {
                let since = Instant::now();
                let mut stream = dial(to, &tls, b'E').await?;
                let kind = stream.get_ref().1.handshake_kind();
                ask(&mut stream, &message(n)).await?;
                stream.shutdown().await?;
                tally.unit(since);
                if sessions == Sessions::Resumed && n > 0 && kind != Some(HandshakeKind::Resumed) {
                    return Err(io::Error::other("not resumed"));
                }
                n += 1;
            }
            Ok(())
        }
    });
}

/// Streams towards the service.
pub fn upload(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    let tls = connector(Sessions::New);
    each(connections, tally, |_| {
        let (tally, tls) = (Arc::clone(tally), tls.clone());
        async move {
            let mut stream = dial(to, &tls, b'D').await?;
            tokio::select! { sent = pour(&mut stream) => sent, () = stopped(&tally) => Ok(()) }
        }
    });
}

/// Streams from the service.
pub fn download(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    let tls = connector(Sessions::New);
    each(connections, tally, |_| {
        let (tally, tls) = (Arc::clone(tally), tls.clone());
        async move {
            let stream = dial(to, &tls, b'S').await?;
            tokio::select! { end = discard(stream) => end, () = stopped(&tally) => Ok(()) }
        }
    });
}

async fn discard(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => ARRIVED.fetch_add(n as u64, Ordering::Relaxed),
        };
    }
}

/// Connections that carry one message of `size` and are then held.
pub fn hold(to: SocketAddr, connections: usize, size: usize, tally: &Arc<Tally>) {
    let tls = connector(Sessions::New);
    backend::runtime().block_on(async {
        let (mut held, mut question) = (Vec::new(), vec![b'm'; size]);
        for n in 0..connections {
            let since = Instant::now();
            let greeted = async {
                let mut stream = dial(to, &tls, b'E').await?;
                question[..load::MESSAGE].copy_from_slice(&message(n as u64));
                ask(&mut stream, &question).await?;
                io::Result::Ok(stream)
            };
            match greeted.await {
                Ok(stream) => {
                    tally.unit(since);
                    held.push(stream);
                }
                Err(_) => tally.error(),
            }
        }
        stopped(tally).await;
        for mut stream in held {
            if ask(&mut stream, &message(0)).await.is_err() {
                tally.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}
