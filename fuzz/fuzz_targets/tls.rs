//! TLS with a peer that is hostile: instead of a handshake, within one, and after it. Nothing panics and
//! nothing waits for what is there already. What is read is what the peer said, and its end is only an
//! end if the peer said so.
#![no_main]

use std::future::poll_fn;
use std::io::Write;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream;
use pulsegate::tls::{Handshake, Side, provider};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// More than a leg may ever hold of what was received.
const MOST_HELD: usize = 128 * 1024;

#[derive(Arbitrary, Debug)]
struct Input {
    we_serve: bool,
    is_tls12: bool,
    /// Said instead of TLS.
    instead: Option<Vec<u8>>,
    /// Where what the peer says is changed, and how; then it falls silent.
    damage: Option<(u16, u8, Vec<u8>)>,
    acts: Vec<Act>,
    reads: Vec<u16>,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Payload(u16),
    ChangeKeys,
    /// In the place of a record.
    Raw(Vec<u8>),
    /// Only so many bytes of what comes next.
    Cut(u16),
    End,
}

static CONFIGS: LazyLock<[(Arc<ServerConfig>, Arc<ClientConfig>); 2]> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["fuzz.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    [&version::TLS13, &version::TLS12].map(|version| {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(provider());
        let server = server.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
        let server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
        let client = ClientConfig::builder_with_provider(provider());
        let client = client.with_protocol_versions(&[version]).unwrap();
        let client = client.with_root_certificates(roots.clone()).with_no_client_auth();
        (server.into(), client.into())
    })
});

fuzz_target!(|input: Input| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.unwrap().block_on(async {
        let (ours, theirs) = StdStream::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let ours = TcpStream::new(ours.into()).unwrap();
        let theirs = UnixStream::from_std(theirs).unwrap();
        let ((got, ended), (said, said_end)) = tokio::join!(us(&input, ours), them(&input, theirs));
        assert!(said.starts_with(&got), "what was read was not said");
        assert!(!ended || (said_end && got == said), "the end was not said, or comes too soon");
    });
});

fn name() -> ServerName<'static> {
    ServerName::try_from("fuzz.example").unwrap()
}

/// What was read, and whether it ended in good order.
async fn us(input: &Input, socket: TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let (server, client) = CONFIGS[usize::from(input.is_tls12)].clone();
    let side = if input.we_serve { Side::Server(server) } else { Side::Client(client, name()) };
    let mut handshake = Handshake::new(side, Vec::new()).unwrap();
    if poll_fn(|cx| handshake.poll(&socket, cx)).await.is_err() {
        return (got, false);
    }
    let mut leg = LegStream::local(socket).under(handshake.into_layer());
    let mut buf = vec![0; 1 << 16];
    for size in input.reads.iter().cycle().chain(std::iter::repeat(&u16::MAX)) {
        let size = usize::from(*size).max(1);
        let read = poll_fn(|cx| leg.poll_read(cx, &mut buf[..size])).await;
        assert!(leg.buffered() < MOST_HELD, "{}", leg.buffered());
        let Ok(n) = read else { return (got, false) };
        got.extend_from_slice(&buf[..n]);
        if n == 0 {
            break;
        }
        // Records are written between parts of those that are read.
        if poll_fn(|cx| leg.poll_write(cx, &buf[..n])).await.is_err() {
            return (got, false);
        }
    }
    let _too_late = poll_fn(|cx| leg.poll_finish(cx)).await;
    (got, true)
}

/// What was said as it should be, and whether its end was.
async fn them(input: &Input, socket: UnixStream) -> (Vec<u8>, bool) {
    let (mut reader, mut writer) = socket.into_split();
    let (mut said, mut said_end) = (Vec::new(), false);
    let mut wire = Wire { input, passed: 0, cut: None, is_broken: false };
    let mut received = vec![0; 1 << 16];
    let mut connection = connect(input);
    let mut records = Vec::new();
    if let Some(instead) = &input.instead {
        let _gone = writer.write_all(instead).await;
        wire.is_broken = true;
    }
    while !wire.is_broken && connection.is_handshaking() {
        while connection.wants_write() {
            connection.write_tls(&mut records).unwrap();
        }
        if !wire.pass(&mut records, &mut writer).await || !connection.is_handshaking() {
            break;
        }
        let n = reader.read(&mut received).await.unwrap_or(0);
        connection.read_tls(&mut &received[..n]).unwrap();
        if n == 0 || connection.process_new_packets().is_err() {
            break;
        }
    }
    if !wire.is_broken && !connection.is_handshaking() {
        // All of it fits the socket, so that nobody waits for the other.
        for act in input.acts.iter().take(100) {
            match act {
                Act::Payload(size) => {
                    let payload: Vec<u8> = (0..*size).map(|n| (n % 251) as u8).collect();
                    // What would come after the end does not count.
                    if !said_end && said.len() + payload.len() <= 1 << 16 {
                        said.extend_from_slice(&payload);
                        connection.writer().write_all(&payload).unwrap();
                    }
                }
                Act::ChangeKeys => drop(connection.refresh_traffic_keys()),
                Act::Raw(raw) => records.extend_from_slice(raw),
                Act::Cut(cut) => wire.cut = Some(usize::from(*cut)),
                Act::End => {
                    connection.send_close_notify();
                    said_end = true;
                }
            }
            while connection.wants_write() {
                connection.write_tls(&mut records).unwrap();
            }
            if !wire.pass(&mut records, &mut writer).await {
                break;
            }
        }
    }
    drop(writer);
    while let Ok(1..) = reader.read(&mut received).await {}
    (said, said_end)
}

fn connect(input: &Input) -> Connection {
    let (server, client) = CONFIGS[usize::from(input.is_tls12)].clone();
    let mut connection = if input.we_serve {
        Connection::from(ClientConnection::new(client, name()).unwrap())
    } else {
        ServerConnection::new(server).unwrap().into()
    };
    connection.set_buffer_limit(None);
    connection
}

/// The way to us.
struct Wire<'a> {
    input: &'a Input,
    passed: usize,
    cut: Option<usize>,
    is_broken: bool,
}

impl Wire<'_> {
    /// Sends, in the way that the input has it; false if nothing may follow.
    async fn pass(&mut self, records: &mut Vec<u8>, writer: &mut tokio::net::unix::OwnedWriteHalf) -> bool {
        let mut bytes = std::mem::take(records);
        if bytes.is_empty() {
            return true;
        }
        if let Some((at, flip, insert)) = &self.input.damage
            && let Some(at) = usize::from(*at).checked_sub(self.passed).filter(|at| *at < bytes.len())
        {
            self.is_broken = true;
            bytes[at] ^= flip;
            bytes.splice(at..at, insert.iter().copied());
        }
        if let Some(cut) = self.cut.take() {
            self.is_broken = true;
            bytes.truncate(cut);
        }
        self.passed += bytes.len();
        writer.write_all(&bytes).await.is_ok() && !self.is_broken
    }
}
