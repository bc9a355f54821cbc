//! Our side against rustls' buffered one (tokio-rustls), over loopback.

pub(super) mod lab;

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use proptest::collection::vec;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream as Socket};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::layer::Tls;
use super::{
    Acceptor, Connector, Established, Handshake, HandshakeError, HandshakeFailure, Side, TlsVersion,
};
use crate::net::leg::{Layer, LegStream, Wire};
use crate::net::stream::TcpStream;

const BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// Issues certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
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

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("ours"));

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

fn server() -> ServerConfig {
    server_with(&named("db.example"), &BOTH)
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

fn client() -> ClientConfig {
    client_of(&AUTHORITY, &BOTH)
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
    Ok((
        LegStream::from(socket).under(handshake.into_layer()),
        established,
    ))
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

async fn read(leg: &mut LegStream, buf: &mut [u8]) -> io::Result<usize> {
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

/// How a handshake of ours fails, and what the peer is told.
async fn failure(side: Side, other: Other) -> (HandshakeError, String) {
    let (socket, peer) = sockets().await;
    let peer = async {
        let told = match other {
            Other::Server(config) => TlsAcceptor::from(Arc::new(config))
                .accept(peer)
                .await
                .map(TlsStream::from),
            Other::Client(config, name) => {
                let connector = TlsConnector::from(Arc::new(config));
                connector
                    .connect(name.try_into().unwrap(), peer)
                    .await
                    .map(TlsStream::from)
            }
        };
        match told {
            Err(error) => error.to_string(),
            // What comes after its side of the handshake.
            Ok(mut peer) => peer
                .read(&mut [0])
                .await
                .map_or_else(|error| error.to_string(), |_| String::new()),
        }
    };
    let (ours, told) = tokio::join!(shake(side, socket), peer);
    (ours.unwrap_err(), told)
}

enum Other {
    Server(ServerConfig),
    Client(ClientConfig, &'static str),
}

fn ours(config: ServerConfig) -> Side {
    Side::Server(config.into())
}

#[tokio::test]
async fn a_servers_handshake_says_why_it_fails() {
    let older = || client_of(&AUTHORITY, &[&version::TLS12]);
    let newer = server_with(&named("db.example"), &[&version::TLS13]);
    let mut redis = server();
    redis.alpn_protocols = vec![b"redis".to_vec()];
    let mut smtp = client();
    smtp.alpn_protocols = vec![b"smtp".to_vec()];
    let verifier =
        WebPkiClientVerifier::builder_with_provider(AUTHORITY.roots(), super::provider());
    let mut mutual = server();
    mutual = ServerConfig::builder_with_provider(super::provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_cert_resolver(mutual.cert_resolver.clone());
    let stranger = || client_of(&Authority::new("another"), &BOTH);
    for (server, client, failure_expected, words, told) in [
        (
            newer,
            older(),
            HandshakeFailure::NoSharedVersion,
            "min_version",
            "ProtocolVersion",
        ),
        (
            redis,
            smtp,
            HandshakeFailure::NoApplicationProtocol,
            "(ALPN)",
            "NoApplicationProtocol",
        ),
        (
            mutual.clone(),
            client(),
            HandshakeFailure::NoClientCertificate,
            "no certificate",
            "CertificateRequired",
        ),
        (
            mutual,
            older(),
            HandshakeFailure::NoClientCertificate,
            "no certificate",
            "CertificateRequired",
        ),
        (
            server(),
            stranger(),
            HandshakeFailure::RefusedByPeer,
            "\"unknown ca\" (48)",
            "UnknownIssuer",
        ),
    ] {
        let other = Other::Client(client, "db.example");
        let (error, peer) = failure(ours(server), other).await;
        assert_eq!(error.failure, failure_expected, "{error}");
        assert!(error.text.contains(words), "{error}");
        assert!(peer.contains(told), "{error}: {peer}");
    }
    let other = Other::Client(client(), "unknown.example");
    let (error, told) = failure(ours(server()), other).await;
    assert_eq!(error.failure, HandshakeFailure::UnknownServerName);
    assert!(error.text.contains("unknown.example"), "{error}");
    assert!(told.contains("UnrecognisedName"), "{told}");
}

#[tokio::test]
async fn a_clients_handshake_says_why_it_fails() {
    let day = |year| rcgen::date_time_ymd(year, 1, 1);
    let mut over = named("db.example");
    over.not_after = day(2020);
    let mut early = named("db.example");
    (early.not_before, early.not_after) = (day(2200), day(2201));
    let mut purpose = named("db.example");
    purpose.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let stranger = client_of(&Authority::new("another"), &BOTH);
    let again = client_of(&Authority::new("ours"), &BOTH);
    for (params, ours, expected, words) in [
        (
            named("db.example"),
            again,
            HandshakeFailure::BadCertificate,
            "another key",
        ),
        (
            over,
            client(),
            HandshakeFailure::CertificateExpired,
            "expired 2",
        ),
        (
            early,
            client(),
            HandshakeFailure::CertificateNotYetValid,
            "not valid for another",
        ),
        (
            named("other.example"),
            client(),
            HandshakeFailure::WrongName,
            "other.example",
        ),
        (
            named("db.example"),
            stranger,
            HandshakeFailure::UnknownCa,
            "chain",
        ),
        (
            purpose,
            client(),
            HandshakeFailure::BadCertificate,
            "certificate",
        ),
    ] {
        let (side, other) = (
            Side::Client(ours.into(), name()),
            server_with(&params, &BOTH),
        );
        let (error, told) = failure(side, Other::Server(other)).await;
        assert_eq!(error.failure, expected, "{error}");
        assert!(error.text.contains(words), "{error}");
        assert!(told.contains("received fatal alert"), "{error}: {told}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_named() {
    let lab = lab::Lab::new();
    let [ca, others] = ["ca", "others"].map(|name| lab.authority(name));
    lab.issue("server", &["db.example"], &ca);
    lab.issue("foreign", &["printer-7.example"], &others);
    let path = |name: &str| lab.path(name).display().to_string();
    let clients = format!("client_ca: {}", path("ca.crt"));
    let server = Acceptor::load(&lab.server(&["server"], &clients)).unwrap();
    let client = |authority: &str| {
        let (crt, key) = (path("foreign.crt"), path("foreign.key"));
        let keys = format!("certificate: {crt}, key: {key}");
        Connector::load(&lab.client(authority, &keys))
            .unwrap()
            .config()
    };
    let other = Other::Client((*client("ca")).clone(), "db.example");
    let (error, _) = failure(Side::Server(server.config()), other).await;
    assert_eq!(error.failure, HandshakeFailure::UnknownCa);
    let whose = "; it is that of printer-7.example, issued by others, ";
    assert!(error.text.contains(whose), "{error}");
    assert_eq!(error.server_name.as_deref(), Some("db.example"));
    let other = Other::Server((*server.config()).clone());
    let (error, _) = failure(Side::Client(client("others"), name()), other).await;
    assert_eq!(error.failure, HandshakeFailure::UnknownCa);
    let whose = "; it is that of db.example, issued by ca, ";
    assert!(error.text.contains(whose), "{error}");
}

#[test]
fn no_word_is_one_of_rustls_own() {
    use rustls::{Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

    for (error, expected) in [
        (PeerIncompatible::NoKxGroupsInCommon.into(), "X25519"),
        (PeerIncompatible::NoCipherSuitesInCommon.into(), "AES-GCM"),
        (
            PeerIncompatible::NoSignatureSchemesInCommon.into(),
            "key of our certificate",
        ),
        (
            PeerIncompatible::SignatureAlgorithmsExtensionRequired.into(),
            "min_version",
        ),
        (
            PeerIncompatible::SupportedVersionsExtensionRequired.into(),
            "min_version",
        ),
        (
            PeerIncompatible::NoEcPointFormatsInCommon.into(),
            "no ec point formats in common",
        ),
        (
            PeerMisbehaved::ServerNameMustContainOneHostName.into(),
            "(SNI)",
        ),
        (
            PeerMisbehaved::IncorrectBinder.into(),
            "rules of TLS: incorrect binder",
        ),
        (
            InvalidMessage::MessageTooLarge.into(),
            "longer than TLS allows",
        ),
        (
            InvalidMessage::InvalidCcs.into(),
            "no message of TLS: invalid ccs",
        ),
    ] {
        let error: Error = error;
        let text = HandshakeError::from(&error).text;
        assert!(text.contains(expected), "{error}: {text}");
    }
}

#[tokio::test]
async fn an_echo_is_told_apart() {
    let (socket, peer) = sockets().await;
    let echo = async {
        let (mut from, mut to) = peer.into_split();
        tokio::io::copy(&mut from, &mut to).await
    };
    let side = Side::Client(client().into(), name());
    let error = tokio::select! {
        error = shake(side, socket) => error.unwrap_err(),
        ended = echo => panic!("{ended:?}"),
    };
    assert_eq!(error.failure, HandshakeFailure::PlainText, "{error}");
    assert!(error.text.ends_with("sends back what it gets"), "{error}");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_apart() {
    for (said, words) in [
        (&b"GET / HTTP/1.1\r\n"[..], "plain HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "sslnegotiation=direct"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", "proxy_protocol"),
        (b"*1\r\n$4\r\nPING\r\n", "begins with \"*1"),
    ] {
        for is_server in [true, false] {
            let (socket, mut peer) = sockets().await;
            peer.write_all(said).await.unwrap();
            let side = match is_server {
                true => ours(server()),
                false => Side::Client(client().into(), name()),
            };
            let error = shake(side, socket).await.unwrap_err();
            assert_eq!(error.failure, HandshakeFailure::PlainText);
            assert!(error.text.contains(words), "{error}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_leaves_the_handshake_is_told_apart() {
    for (said, words) in [
        (&b""[..], "before it said"),
        (b"\x16\x03\x01", "in the middle of"),
    ] {
        let (socket, mut peer) = sockets().await;
        peer.write_all(said).await.unwrap();
        peer.shutdown().await.unwrap();
        let error = shake(ours(server()), socket).await.unwrap_err();
        assert_eq!(error.failure, HandshakeFailure::Closed);
        assert!(error.text.contains(words), "{error}");
    }
    let (socket, peer) = sockets().await;
    peer.set_zero_linger().unwrap();
    drop(peer);
    let error = shake(ours(server()), socket).await.unwrap_err();
    assert_eq!(error.failure, HandshakeFailure::Closed);
    assert_eq!(error.io.unwrap().kind(), ErrorKind::ConnectionReset);
}

// --- An established leg -------------------------------------------------------------------

/// A connection whose bytes arrive in pieces of these sizes.
async fn cut_sockets(cuts: &[usize]) -> (TcpStream, Socket) {
    let ((ours, middle), (end, peer)) = (sockets().await, sockets().await);
    let end = Socket::from_std(std::net::TcpStream::from(end.into_fd())).unwrap();
    end.set_nodelay(true).unwrap();
    let ((up, down), (into_peer, of_peer)) = (middle.into_split(), end.into_split());
    for (mut from, mut to) in [(up, of_peer), (into_peer, down)] {
        let cuts = cuts.to_vec();
        tokio::spawn(async move {
            let mut buf = vec![0; 1 << 16];
            for cut in cuts.iter().cycle() {
                match from.read(&mut buf[..*cut]).await {
                    Ok(n @ 1..) => to.write_all(&buf[..n]).await.unwrap(),
                    _ => break,
                }
                tokio::task::yield_now().await;
            }
            let _gone = to.shutdown().await;
        });
    }
    (ours, peer)
}

/// Both ends of an established connection over these sockets.
async fn establish(
    (socket, other): (TcpStream, Socket),
    our_side: &str,
    server: ServerConfig,
    client: ClientConfig,
) -> (LegStream, Established, TlsStream<Socket>) {
    let (side, peer) = if our_side == "server" {
        let peer = TlsConnector::from(Arc::new(client)).connect(name(), other);
        (
            ours(server),
            tokio::spawn(async { peer.await.map(TlsStream::from) }),
        )
    } else {
        let peer = TlsAcceptor::from(Arc::new(server)).accept(other);
        let side = Side::Client(client.into(), name());
        (
            side,
            tokio::spawn(async { peer.await.map(TlsStream::from) }),
        )
    };
    let (leg, established) = shake(side, socket).await.unwrap();
    (leg, established, peer.await.unwrap().unwrap())
}

/// Writes these pieces and the end, and reads into buffers of these sizes up to the peer's end, at the same
/// time.
async fn drive(leg: &mut LegStream, pieces: &[Vec<u8>], bufs: &[usize]) -> io::Result<Vec<u8>> {
    let (mut piece, mut at, mut finished) = (0, 0, false);
    let (mut got, mut ended, mut turn) = (Vec::new(), false, 0);
    poll_fn(|cx| {
        while !finished {
            if piece == pieces.len() {
                let Poll::Ready(end) = leg.poll_finish(cx)? else {
                    break;
                };
                let () = end;
                finished = true;
            } else if at == pieces[piece].len() {
                let Poll::Ready(()) = leg.poll_flush(cx)? else {
                    break;
                };
                (piece, at) = (piece + 1, 0);
            } else {
                let Poll::Ready(n) = leg.poll_write(cx, &pieces[piece][at..])? else {
                    break;
                };
                at += n;
            }
        }
        while !ended {
            let mut buf = vec![0; bufs[turn % bufs.len()]];
            let Poll::Ready(n) = leg.poll_read(cx, &mut buf)? else {
                break;
            };
            got.extend_from_slice(&buf[..n]);
            (ended, turn) = (n == 0, turn + 1);
        }
        match finished && ended {
            true => Poll::Ready(Ok(std::mem::take(&mut got))),
            false => Poll::Pending,
        }
    })
    .await
}

fn pieces(sizes: &[usize], seed: usize) -> Vec<Vec<u8>> {
    let piece = |size: &usize| {
        (0..*size)
            .map(|n| ((n * 31 + n / 251 + seed) % 256) as u8)
            .collect()
    };
    sizes.iter().map(piece).collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let limit = std::time::Duration::from_secs(60);
    let limited = async {
        tokio::time::timeout(limit, future)
            .await
            .expect("a lost wake-up")
    };
    runtime.enable_all().build().unwrap().block_on(limited)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_byte_arrives_however_it_is_cut(
        cuts in prop_oneof![vec(1..40_usize, 1..9), vec(1..40_000_usize, 1..9)],
        up in vec(0..70_000_usize, 0..6),
        down in vec(0..70_000_usize, 0..6),
        bufs in prop_oneof![vec(1..300_usize, 1..6), vec(1..70_000_usize, 1..6)],
        our_side in prop_oneof![Just("server"), Just("client")],
        version in prop_oneof![Just(&version::TLS12), Just(&version::TLS13)],
    ) {
        let (up, down) = (pieces(&up, 1), pieces(&down, 2));
        let (expected, sent) = (down.concat(), up.concat());
        let (got, received) = block_on(async move {
            let server = server_with(&named("db.example"), &[version]);
            let sockets = cut_sockets(&cuts).await;
            let established = establish(sockets, our_side, server, client()).await;
            let (mut leg, _, peer) = established;
            let (mut reader, mut writer) = tokio::io::split(peer);
            let writing = tokio::spawn(async move {
                for piece in down {
                    writer.write_all(&piece).await.unwrap();
                    writer.flush().await.unwrap();
                }
                writer.shutdown().await.unwrap();
            });
            let reading = tokio::spawn(async move {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.map(|_| all)
            });
            let got = drive(&mut leg, &up, &bufs).await.unwrap();
            writing.await.unwrap();
            let received = reading.await.unwrap().unwrap();
            (got, received)
        });
        prop_assert!(got == expected, "other bytes were read");
        prop_assert!(received == sent, "other bytes were written");
    }
}

#[test]
fn each_direction_ends_by_itself() {
    for our_side in ["server", "client"] {
        for version in BOTH {
            block_on(async {
                let server = server_with(&named("db.example"), &[version]);
                let mut buf = [0; 100];
                // Ours first.
                let established = establish(sockets().await, our_side, server.clone(), client());
                let (mut leg, _, mut peer) = established.await;
                poll_fn(|cx| leg.poll_finish(cx)).await.unwrap();
                assert_eq!(peer.read(&mut buf).await.unwrap(), 0);
                peer.write_all(b"still here").await.unwrap();
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 10);
                peer.shutdown().await.unwrap();
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 0);
                // The peer's first, and its connection is reset at last.
                let established = establish(sockets().await, our_side, server, client());
                let (mut leg, _, mut peer) = established.await;
                peer.shutdown().await.unwrap();
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 0);
                write(&mut leg, b"still here").await;
                poll_fn(|cx| leg.poll_finish(cx)).await.unwrap();
                let mut all = String::new();
                peer.read_to_string(&mut all).await.unwrap();
                assert_eq!(all, "still here");
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 0);
                peer.get_ref().0.set_zero_linger().unwrap();
                drop(peer);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 0);
            });
        }
    }
}

#[test]
fn a_fin_without_close_notify_is_no_end() {
    block_on(async {
        for cut in [0, 3, 20] {
            let (mut leg, _, peer) = establish(sockets().await, "server", server(), client()).await;
            let TlsStream::Client(peer) = peer else {
                panic!("another side")
            };
            let (mut socket, mut connection) = peer.into_inner();
            let mut records = Vec::new();
            io::Write::write_all(&mut connection.writer(), b"the last words").unwrap();
            connection.write_tls(&mut records).unwrap();
            let rest = records.clone();
            records.extend_from_slice(&rest[..cut]);
            socket.write_all(&records).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut buf = [0; 100];
            assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 14);
            for _ in 0..2 {
                let error = read(&mut leg, &mut buf).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            }
        }
    });
}

#[test]
fn what_is_no_record_of_the_peers_ends_it_with_an_alert_both_ways() {
    block_on(async {
        for garbage in [
            &b"\x17\x03\x03\0\x20 this was not encrypted by anyone"[..],
            b"GET / HTTP/1.1\r\n",
        ] {
            let (mut leg, _, peer) = establish(sockets().await, "server", server(), client()).await;
            let TlsStream::Client(peer) = peer else {
                panic!("another side")
            };
            let (mut socket, mut connection) = peer.into_inner();
            socket.write_all(garbage).await.unwrap();
            for _ in 0..2 {
                let error = read(&mut leg, &mut [0; 100]).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            }
            assert!(poll_fn(|cx| leg.poll_write(cx, b"more")).await.is_err());
            drop(leg);
            // The peer gets the alert.
            let mut told = Vec::new();
            socket.read_to_end(&mut told).await.unwrap();
            connection.read_tls(&mut &told[..]).unwrap();
            let told = connection.process_new_packets().unwrap_err();
            assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told}");
        }
        // And the other way round.
        let (mut leg, _, peer) = establish(sockets().await, "client", server(), client()).await;
        let TlsStream::Server(peer) = peer else {
            panic!("another side")
        };
        let (mut socket, mut connection) = peer.into_inner();
        connection
            .read_tls(&mut &b"\x17\x03\x03\0\x20 this was not encrypted by anyone"[..])
            .unwrap();
        connection.process_new_packets().unwrap_err();
        let mut alert = Vec::new();
        connection.write_tls(&mut alert).unwrap();
        socket.write_all(&alert).await.unwrap();
        let error = read(&mut leg, &mut [0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(
            error.to_string().contains("\"bad record mac\" (20)"),
            "{error}"
        );
    });
}

#[test]
fn keys_are_changed_by_either_side() {
    block_on(async {
        for our_side in ["server", "client"] {
            let (mut leg, _, mut peer) =
                establish(sockets().await, our_side, server(), client()).await;
            let mut buf = [0; 100];
            for n in 0..200_u8 {
                match &mut peer {
                    TlsStream::Client(peer) => peer.get_mut().1.refresh_traffic_keys().unwrap(),
                    TlsStream::Server(peer) => peer.get_mut().1.refresh_traffic_keys().unwrap(),
                }
                peer.write_all(&[n]).await.unwrap();
                assert_eq!(read(&mut leg, &mut buf).await.unwrap(), 1);
                write(&mut leg, &buf[..1]).await;
                assert_eq!(peer.read_u8().await.unwrap(), n);
            }
        }
        // Not without payload between.
        let (mut leg, _, peer) = establish(sockets().await, "server", server(), client()).await;
        let TlsStream::Client(mut peer) = peer else {
            panic!("another side")
        };
        for _ in 0..50 {
            peer.get_mut().1.refresh_traffic_keys().unwrap();
            peer.flush().await.unwrap();
        }
        let error = read(&mut leg, &mut [0; 100]).await.unwrap_err();
        assert!(
            error.to_string().contains("too many key update requests"),
            "{error}"
        );
    });
}

/// The same, with the wire and the layer apart; ours is the server.
async fn layer() -> (Wire, Box<Tls>, TlsStream<Socket>) {
    let (socket, other) = sockets().await;
    let connector = TlsConnector::from(Arc::new(client()));
    let peer = tokio::spawn(async move { connector.connect(name(), other).await });
    let mut handshake = Handshake::new(ours(server()), Vec::new()).unwrap();
    poll_fn(|cx| handshake.poll(&socket, cx)).await.unwrap();
    (
        Wire::new(socket),
        handshake.layer,
        peer.await.unwrap().unwrap().into(),
    )
}

#[test]
fn an_idle_leg_holds_no_buffer() {
    block_on(async {
        let (mut wire, mut tls, mut peer) = layer().await;
        assert_eq!(tls.capacity(), 0, "after the handshake");
        let mut buf = vec![0; 1 << 16];
        for size in [1, 100, 16_384, 50_000, 200_000] {
            let sent = vec![7; size];
            let writing = tokio::spawn(async move {
                peer.write_all(&sent).await.unwrap();
                peer.flush().await.unwrap();
                peer
            });
            let mut got = 0;
            while got < size {
                got += poll_fn(|cx| tls.poll_read(&mut wire, cx, &mut buf))
                    .await
                    .unwrap();
            }
            peer = writing.await.unwrap();
            assert_eq!(tls.capacity(), 0, "after {size} bytes were read");
            let mut written = 0;
            let reading = tokio::spawn(async move {
                peer.read_exact(&mut vec![0; size]).await.unwrap();
                peer
            });
            while written < size {
                let rest = vec![7; size - written];
                written += poll_fn(|cx| tls.poll_write(&mut wire, cx, &rest))
                    .await
                    .unwrap();
            }
            poll_fn(|cx| tls.poll_flush(&mut wire, cx)).await.unwrap();
            peer = reading.await.unwrap();
            assert_eq!(tls.capacity(), 0, "after {size} bytes were written");
        }
        // The end of the peer's stream ends all need for one.
        peer.shutdown().await.unwrap();
        assert_eq!(
            poll_fn(|cx| tls.poll_read(&mut wire, cx, &mut buf))
                .await
                .unwrap(),
            0
        );
        assert_eq!(tls.capacity(), 0);
    });
}

#[test]
fn what_a_leg_holds_is_bounded() {
    block_on(async {
        let (mut wire, mut tls, peer) = layer().await;
        // A peer that takes nothing.
        let mut taken = 0;
        let held = loop {
            let polled =
                poll_fn(|cx| Poll::Ready(tls.poll_write(&mut wire, cx, &[7; 100_000]))).await;
            match polled {
                Poll::Ready(n) => taken += n.unwrap(),
                Poll::Pending => break tls.capacity(),
            }
        };
        assert!(
            !tls.is_flushed() && held > 0 && held < 70_000,
            "{held} after {taken}"
        );
        let TlsStream::Client(peer) = peer else {
            panic!("another side")
        };
        let (mut socket, mut connection) = peer.into_inner();
        // One that sends a record byte by byte, and an end of a reader that takes little.
        io::Write::write_all(&mut connection.writer(), &[7; 16_384]).unwrap();
        let mut record = Vec::new();
        connection.write_tls(&mut record).unwrap();
        let mut buf = [0; 10];
        for (n, byte) in record.iter().enumerate() {
            let read = poll_fn(|cx| Poll::Ready(tls.poll_read(&mut wire, cx, &mut buf))).await;
            assert!(read.is_pending() && tls.buffered() <= n && tls.capacity() < held + 40_000);
            socket.write_all(&[*byte]).await.unwrap();
            if n % 500 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let n = poll_fn(|cx| tls.poll_read(&mut wire, cx, &mut buf)).await;
        assert_eq!((n.unwrap(), tls.buffered()), (10, 16_374));
        // The rest is there at once, though nothing comes from the wire.
        let mut rest = vec![0; 20_000];
        let left = tls.buffered();
        assert_eq!(
            poll_fn(|cx| tls.poll_read(&mut wire, cx, &mut rest))
                .await
                .unwrap(),
            left
        );
    });
}

#[test]
fn a_leg_goes_to_another_thread_with_what_it_holds() {
    block_on(async {
        let (mut leg, _, mut peer) = establish(sockets().await, "server", server(), client()).await;
        let sent = pieces(&[40_000], 3).concat();
        peer.write_all(&sent).await.unwrap();
        peer.flush().await.unwrap();
        let mut got = vec![0; 50_000];
        let n = read(&mut leg, &mut got[..10]).await.unwrap();
        assert!(leg.unread() > 10_000);
        // And with what its peer did not take.
        let mut taken = 0;
        let reply = pieces(&[100_000], 4).concat();
        while leg.is_delivered()
            || taken == 0
            || poll_fn(|cx| Poll::Ready(leg.poll_flush(cx)))
                .await
                .is_ready()
        {
            taken += poll_fn(|cx| leg.poll_write(cx, &reply)).await.unwrap();
        }
        let detached = leg.detach();
        let there = std::thread::spawn(move || {
            block_on(async move {
                let mut leg = detached.attach().unwrap();
                let mut at = n;
                while at < 40_000 {
                    at += read(&mut leg, &mut got[at..]).await.unwrap();
                }
                poll_fn(|cx| leg.poll_finish(cx)).await.unwrap();
                got
            })
        });
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), taken);
        assert!(there.join().unwrap()[..40_000] == sent);
        let expected = reply[..65_536].iter().cycle();
        assert!(
            all.iter()
                .zip(expected)
                .all(|(byte, expected)| byte == expected)
        );
    });
}

#[test]
fn peers_that_know_each_other_resume() {
    for version in BOTH {
        for our_side in ["server", "client"] {
            block_on(async {
                let server = server_with(&named("db.example"), &[version]);
                let client = client();
                for expected in [false, true, true] {
                    let (server, client) = (server.clone(), client.clone());
                    let established = establish(sockets().await, our_side, server, client).await;
                    let (mut leg, established, mut peer) = established;
                    assert_eq!(established.is_resumed, expected);
                    assert_eq!(established.server_name.is_some(), our_side == "server");
                    // The tickets come with the first payload.
                    write(&mut leg, b"x").await;
                    assert_eq!(peer.read_u8().await.unwrap(), b'x');
                    peer.write_all(b"y").await.unwrap();
                    assert_eq!(read(&mut leg, &mut [0]).await.unwrap(), 1);
                }
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Bytes of a peer that are changed, inserted or cut somewhere, in the handshake or after it.
    #[test]
    fn damage_ends_in_an_error_and_not_in_a_panic(
        at in 0..4000_usize,
        insert in vec(any::<u8>(), 0..20),
        flip in any::<u8>(),
        our_side in prop_oneof![Just("server"), Just("client")],
        version in prop_oneof![Just(&version::TLS12), Just(&version::TLS13)],
    ) {
        block_on(async move {
            let ((socket, mut middle), (end, other)) = (sockets().await, sockets().await);
            let end = Socket::from_std(std::net::TcpStream::from(end.into_fd())).unwrap();
            let server = server_with(&named("db.example"), &[version]);
            let pump = tokio::spawn(async move {
                let (mut from, mut to) = end.into_split();
                let (mut back, mut forth) = middle.split();
                let damage = async {
                    let (mut passed, mut buf) = (0, [0; 1000]);
                    while let Ok(n @ 1..) = from.read(&mut buf).await {
                        let bytes = &mut buf[..n];
                        if (passed..passed + n).contains(&at) {
                            bytes[at - passed] ^= flip;
                            forth.write_all(&bytes[..at - passed]).await?;
                            forth.write_all(&insert).await?;
                            forth.write_all(&bytes[at - passed..]).await?;
                        } else {
                            forth.write_all(bytes).await?;
                        }
                        passed += n;
                    }
                    forth.shutdown().await
                };
                tokio::join!(damage, tokio::io::copy(&mut back, &mut to))
            });
            let peer = tokio::spawn(async move {
                let mut peer: TlsStream<Socket> = match our_side {
                    "server" => TlsConnector::from(Arc::new(client())).connect(name(), other).await?.into(),
                    _ => TlsAcceptor::from(Arc::new(server_with(&named("db.example"), &[version]))).accept(other).await?.into(),
                };
                peer.write_all(&[7; 3000]).await?;
                peer.shutdown().await
            });
            let side = match our_side {
                "server" => ours(server),
                _ => Side::Client(client().into(), name()),
            };
            let ours = async {
                if let Ok((mut leg, _)) = shake(side, socket).await {
                    let mut all = Vec::new();
                    let mut buf = [0; 500];
                    while let Ok(n @ 1..) = read(&mut leg, &mut buf).await {
                        all.extend_from_slice(&buf[..n]);
                    }
                    assert!(all.len() <= 3000 && all.iter().all(|byte| *byte == 7));
                }
            };
            // Where a length has become greater, both wait for the other.
            let _ended = tokio::time::timeout(std::time::Duration::from_millis(500), ours).await;
            peer.abort();
            pump.abort();
        });
    }
}
