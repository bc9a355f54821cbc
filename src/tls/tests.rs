//! Our side against rustls' buffered one (tokio-rustls), over loopback.

use std::future::poll_fn;
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream as Socket};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Established, Handshake, HandshakeError, Side, TlsVersion};
use crate::net::leg::LegStream;
use crate::net::stream::TcpStream;

/// Issues certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "An authority");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots.into()
    }

    fn issue(&self, params: &CertificateParams) -> CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        CertifiedKey::from_der(vec![certificate.der().clone()], key, &super::provider()).unwrap()
    }
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

/// Tells what name was asked for, and has one certificate for all.
#[derive(Debug)]
struct OneForAll(Arc<CertifiedKey>);

impl ResolvesServerCert for OneForAll {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        super::note_server_name(hello.server_name());
        (hello.server_name() != Some("unknown.example")).then(|| self.0.clone())
    }
}

fn named(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

fn server_with(
    params: &CertificateParams,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let key = AUTHORITY.issue(params);
    ServerConfig::builder_with_provider(super::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(OneForAll(key.into())))
}

fn client_of(
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    ClientConfig::builder_with_provider(super::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth()
}

fn name() -> ServerName<'static> {
    "db.example".try_into().unwrap()
}

/// Our end of a connection and the peer's.
async fn sockets() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (peer, ours) = tokio::join!(
        Socket::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (peer, ours) = (peer.unwrap(), ours.unwrap().0.into_std().unwrap());
    peer.set_nodelay(true).unwrap();
    (TcpStream::new(ours.into()).unwrap(), peer)
}

async fn shake(side: Side, socket: TcpStream) -> Result<(LegStream, Established), HandshakeError> {
    let mut handshake = Handshake::new(side, Vec::new())?;
    let established = poll_fn(|cx| handshake.poll(&socket, cx)).await?;
    Ok((handshake.into_leg(socket), established))
}

/// Both ends of an established connection; ours is the server.
async fn serve(
    ours: ServerConfig,
    peer: ClientConfig,
) -> (LegStream, Established, TlsStream<Socket>) {
    let (socket, other) = sockets().await;
    let connector = TlsConnector::from(Arc::new(peer));
    let (ours, peer) = tokio::join!(
        shake(Side::Server(ours.into()), socket),
        connector.connect(name(), other)
    );
    let (leg, established) = ours.unwrap();
    (leg, established, peer.unwrap().into())
}

/// The same, where ours is the client.
async fn dial(
    ours: ClientConfig,
    peer: ServerConfig,
) -> (LegStream, Established, TlsStream<Socket>) {
    let (socket, other) = sockets().await;
    let acceptor = TlsAcceptor::from(Arc::new(peer));
    let (ours, peer) = tokio::join!(
        shake(Side::Client(ours.into(), name()), socket),
        acceptor.accept(other)
    );
    let (leg, established) = ours.unwrap();
    (leg, established, peer.unwrap().into())
}

async fn read(leg: &mut LegStream, buf: &mut [u8]) -> std::io::Result<usize> {
    poll_fn(|cx| leg.poll_read(cx, buf)).await
}

async fn write(leg: &mut LegStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| leg.poll_write(cx, bytes)).await.unwrap();
        bytes = &bytes[n..];
    }
    poll_fn(|cx| leg.poll_flush(cx)).await.unwrap();
}

#[tokio::test]
async fn both_versions_are_spoken_on_both_sides() {
    for (version, told) in [
        (&version::TLS12, TlsVersion::V12),
        (&version::TLS13, TlsVersion::V13),
    ] {
        let mut server = server_with(&named("db.example"), &[version]);
        server.alpn_protocols = vec![b"postgresql".to_vec()];
        let mut client = client_of(&AUTHORITY, &[version]);
        client.alpn_protocols = vec![b"postgresql".to_vec()];
        let (mut leg, established, mut peer) = serve(server.clone(), client.clone()).await;
        assert_eq!(established.version, told);
        assert_eq!(established.server_name.as_deref(), Some("db.example"));
        assert_eq!(established.alpn.as_deref(), Some("postgresql"));
        assert!(established.cipher.starts_with("TLS_"), "{established:?}");
        let mut buf = [0; 100];
        peer.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 4);
        write(&mut leg, b"pong").await;
        assert_eq!(peer.read(&mut buf).await.unwrap(), 4);
        assert_eq!(&buf[..4], b"pong");
        let (mut leg, established, mut peer) = dial(client, server).await;
        assert_eq!((established.version, established.server_name), (told, None));
        write(&mut leg, b"ping").await;
        assert_eq!(peer.read(&mut buf).await.unwrap(), 4);
        peer.write_all(b"pong").await.unwrap();
        assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 4);
    }
}
