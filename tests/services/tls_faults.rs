//! Handshakes that are cut, slow, or none at all, on either leg; and streams that end without a last word.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, StreamOwned,
};
use socket2::SockRef;

use crate::Case;
use crate::process::{free_address, read_to_any_end};
use crate::pulsegate::{Pulsegate, closed, connect, figure};
use crate::support::certificates;
use crate::support::{eventually, ms};
use crate::tls::{Keys, PROMPT, Setup, expect_failure, expect_logged, failures};

pub const CASES: &[Case] = &[
    Case::new(
        "clients_that_cut_a_handshake_reach_no_service",
        &[],
        clients_that_cut_a_handshake_reach_no_service,
    ),
    Case::new(
        "services_that_cut_a_handshake_are_told_apart",
        &[],
        services_that_cut_a_handshake_are_told_apart,
    ),
    Case::new(
        "a_slow_handshake_has_its_time",
        &[],
        a_slow_handshake_has_its_time,
    ),
    Case::new(
        "plain_text_is_recognised_on_both_legs",
        &[],
        plain_text_is_recognised_on_both_legs,
    ),
    Case::new(
        "a_stream_without_a_last_word_is_an_abort",
        &[],
        a_stream_without_a_last_word_is_an_abort,
    ),
];

/// How a peer ends in the middle.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Fin,
    Reset,
}

/// Sends as many bytes as it may, each after a pause.
struct Limited<'a> {
    stream: &'a TcpStream,
    left: usize,
    pause: Duration,
    sent: Vec<u8>,
}

impl<'a> Limited<'a> {
    fn new(stream: &'a TcpStream, left: usize) -> Self {
        let (pause, sent) = (Duration::ZERO, Vec::new());
        Self {
            stream,
            left,
            pause,
            sent,
        }
    }

    /// Each byte in a segment of its own.
    fn slow(stream: &'a TcpStream, pause: Duration) -> Self {
        Self {
            pause,
            ..Self::new(stream, usize::MAX)
        }
    }

    /// Until the handshake is over, or no more may be sent, or the peer has ended it.
    fn shake(&mut self, mut connection: Connection) -> io::Result<Connection> {
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(self)?;
        }
        Ok(connection)
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let most = match self.pause {
            Duration::ZERO => usize::MAX,
            _ => 1,
        };
        let n = buf.len().min(self.left).min(most);
        if n == 0 {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.stream.write_all(&buf[..n])?;
        thread::sleep(self.pause);
        self.left -= n;
        self.sent.extend(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn end(stream: &TcpStream, how: Cut) {
    match how {
        Cut::Fin => stream.shutdown(Shutdown::Write).expect("connected"),
        Cut::Reset => {
            let socket = SockRef::from(stream);
            socket.set_linger(Some(Duration::ZERO)).expect("an option");
        }
    }
}

fn client_of(config: &Arc<ClientConfig>) -> Connection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(config.clone(), name)
        .expect("a client")
        .into()
}

fn server_of(config: &Arc<ServerConfig>) -> Connection {
    ServerConnection::new(config.clone())
        .expect("a server")
        .into()
}

/// Inside of each record, and after each but the last; and before the first.
fn places_to_cut(sent: &[u8]) -> Vec<usize> {
    let (mut places, mut at) = (vec![0, 1], 0);
    while let Some(&[_, _, _, high, low]) = sent.get(at..at + 5) {
        let end = at + 5 + usize::from(u16::from_be_bytes([high, low]));
        places.extend([at + 5, (at + end) / 2, end - 1, end]);
        at = end;
    }
    places.retain(|place| *place < sent.len());
    places.dedup();
    places
}

/// A service that counts its clients and sends back what they say.
fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    let count: Arc<AtomicUsize> = Arc::default();
    let counted = count.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            let stream = stream.expect("a client");
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    (address, count)
}

/// The versions with which a configuration can be made.
const VERSIONS: [&rustls::SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

fn terminate(setup: &Setup, service: SocketAddr, more: &str) -> Pulsegate {
    let keys = Keys {
        tls: setup.tls(more),
        ..Keys::default()
    };
    setup.start(service, keys)
}

fn clients_that_cut_a_handshake_reach_no_service() {
    let setup = Setup::new();
    let (service, served) = counting();
    for version in VERSIONS {
        let config = certificates::client_of(&setup.ca, None, &[version]);
        let proxy = terminate(&setup, service, "");
        let stream = proxy.connect();
        let mut whole = Limited::new(&stream, usize::MAX);
        let connection = whole.shake(client_of(&config)).expect("a handshake");
        let places = places_to_cut(&whole.sent);
        assert!(places.len() > 6, "{places:?}");
        drop((connection, stream));
        assert!(eventually(PROMPT, || served.swap(0, Ordering::Relaxed) == 1));
        for how in [Cut::Fin, Cut::Reset] {
            for place in &places {
                let mut stream = proxy.connect();
                let cut = Limited::new(&stream, *place).shake(client_of(&config));
                assert!(cut.is_err(), "{how:?} {place}");
                end(&stream, how);
                if matches!(how, Cut::Fin) {
                    // What the server had said by then, and its last words.
                    read_to_any_end(&mut stream);
                }
            }
        }
        proxy.expect_settled();
        assert_eq!(served.load(Ordering::Relaxed), 0, "{version:?}");
        let counted = failures(&proxy.metrics(), "downstream", "closed");
        let cuts = figure(places.len());
        assert!(
            counted >= cuts - 1.0,
            "{counted} of {cuts}: {}",
            proxy.log()
        );
    }
}

/// A TLS service that ends each handshake after so many bytes, in this way; it tells how many it sent.
fn cutting(
    config: Arc<ServerConfig>,
    place: usize,
    how: Cut,
) -> (SocketAddr, thread::JoinHandle<Vec<u8>>) {
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("pulsegate");
        let mut limited = Limited::new(&stream, place);
        let shaken = limited.shake(server_of(&config));
        let sent = std::mem::take(&mut limited.sent);
        if shaken.is_err() {
            end(&stream, how);
        }
        if matches!(how, Cut::Fin) {
            read_to_any_end(&mut stream);
        }
        sent
    });
    (address, thread)
}

fn originate(setup: &Setup, service: SocketAddr, more: &str) -> Pulsegate {
    let keys = Keys {
        upstream_tls: setup.upstream_tls(""),
        more,
        ..Keys::default()
    };
    setup.start(service, keys)
}

fn services_that_cut_a_handshake_are_told_apart() {
    let setup = Setup::new();
    for version in VERSIONS {
        let config = certificates::server_of(&setup.server, &[version]);
        let (address, whole) = cutting(config.clone(), usize::MAX, Cut::Fin);
        let proxy = originate(&setup, address, "");
        let client = proxy.connect();
        assert!(eventually(PROMPT, || proxy.active() == 1.0));
        thread::sleep(ms(100));
        client.shutdown(Shutdown::Write).expect("connected");
        let mut places = places_to_cut(&whole.join().expect("no panic"));
        // Tickets come behind the end of the handshake: a cut there is another matter.
        places.truncate(10);
        for how in [Cut::Fin, Cut::Reset] {
            for place in &places {
                let (address, service) = cutting(config.clone(), *place, how);
                let proxy = originate(&setup, address, "");
                // The end may come before connect() has returned.
                if let Ok(mut client) = TcpStream::connect(proxy.address) {
                    assert_eq!(read_to_any_end(&mut client), b"");
                }
                service.join().expect("no panic");
                proxy.expect_active(0);
                let metrics = proxy.metrics();
                let ended = closed(&metrics, "upstream_tls_failed");
                assert_eq!(ended, 1.0, "{version:?} {how:?} {place}: {}", proxy.log());
            }
        }
    }
}

/// A byte at a time: in the end there is a session, unless the time is over.
fn a_slow_handshake_has_its_time() {
    let setup = Setup::new();
    let (service, served) = counting();
    let config = certificates::client(&setup.ca, None);
    let patient = terminate(&setup, service, "handshake_timeout: 60s");
    let stream = patient.connect();
    let mut slow = Limited::slow(&stream, ms(1));
    let connection = slow.shake(client_of(&config)).expect("in time");
    expect_echo(connection, &stream);
    drop(stream);
    patient.expect_all_closed("finished", 1);
    assert_eq!(served.swap(0, Ordering::Relaxed), 1);

    let hasty = terminate(&setup, service, "handshake_timeout: 500ms");
    let stream = hasty.connect();
    assert!(
        Limited::slow(&stream, ms(20))
            .shake(client_of(&config))
            .is_err()
    );
    expect_failure(&hasty, "downstream", "timeout");
    let mut silent = hasty.connect();
    read_to_any_end(&mut silent);
    hasty.expect_active(0);
    assert_eq!(failures(&hasty.metrics(), "downstream", "timeout"), 2.0);
    assert_eq!(served.load(Ordering::Relaxed), 0);

    // The same on the other side, where connect_timeout counts.
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    let server = certificates::server(&setup.server);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let server = server.clone();
            thread::spawn(move || {
                let stream = stream.expect("pulsegate");
                let shaken = Limited::slow(&stream, ms(2)).shake(server_of(&server));
                let Ok(Connection::Server(connection)) = shaken else {
                    return;
                };
                let mut tls = StreamOwned::new(connection, &stream);
                let mut bytes = [0; 5];
                let _cut = tls
                    .read_exact(&mut bytes)
                    .and_then(|()| tls.write_all(&bytes));
                let mut end = Vec::new();
                let _cut = tls.read_to_end(&mut end);
            });
        }
    });
    let start = |timeout: &str| {
        let keys = Keys {
            upstream_tls: setup.upstream_tls(""),
            ..Keys::default()
        };
        setup.start_with(
            &address.to_string(),
            keys,
            &format!("connect_timeout: {timeout}"),
        )
    };
    let patient = start("60s");
    let mut client = patient.connect();
    client.write_all(b"hello").expect("connected");
    let mut answer = [0; 5];
    client.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"hello");
    let hasty = start("200ms");
    assert_eq!(read_to_any_end(&mut hasty.connect()), b"");
    hasty.expect_active(0);
}

#[track_caller]
fn expect_echo(connection: Connection, stream: &TcpStream) {
    let Connection::Client(connection) = connection else {
        panic!("no client");
    };
    let mut tls = StreamOwned::new(connection, stream);
    tls.write_all(b"hello").expect("sent");
    let mut answer = [0; 5];
    tls.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"hello");
    tls.conn.send_close_notify();
    tls.flush().expect("sent");
    assert_eq!(tls.read(&mut answer).expect("the end"), 0);
}

fn plain_text_is_recognised_on_both_legs() {
    let setup = Setup::new();
    let (service, served) = counting();
    // The last one is the SSLRequest of PostgreSQL.
    let first_words: [&[u8]; 4] = [
        b"GET / HTTP/1.0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        &[0, 0, 0, 8, 4, 210, 22, 47],
    ];
    for words in first_words {
        let proxy = terminate(&setup, service, "");
        let mut client = proxy.connect();
        client.write_all(words).expect("connected");
        read_to_any_end(&mut client);
        expect_failure(&proxy, "downstream", "plain_text");
        expect_logged(&proxy, "plain");
        proxy.expect_active(0);
        assert_eq!(closed(&proxy.metrics(), "downstream_tls_failed"), 1.0);
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);

    // What comes to a plain port is passed on, whatever it is.
    let plain = setup.start(service, Keys::default());
    let config = certificates::client(&setup.ca, None);
    let stream = plain.connect();
    let failed = Limited::new(&stream, usize::MAX).shake(client_of(&config));
    assert!(failed.is_err(), "the service sends its own words back");
    assert_eq!(served.load(Ordering::Relaxed), 1);
    drop(stream);

    // A service that speaks first, in plain text.
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _cut = stream.write_all(b"220 mail.example ESMTP\r\n");
            let _all = stream.read_to_end(&mut Vec::new());
        }
    });
    let proxy = originate(&setup, address, "");
    if let Ok(mut client) = TcpStream::connect(proxy.address) {
        assert_eq!(read_to_any_end(&mut client), b"");
    }
    expect_failure(&proxy, "upstream", "plain_text");
    assert_eq!(closed(&proxy.metrics(), "upstream_tls_failed"), 1.0);
}

/// A FIN without close_notify may come from anybody on the way.
fn a_stream_without_a_last_word_is_an_abort() {
    let setup = Setup::new();
    let address = free_address();
    let listener = TcpListener::bind(address).expect("listen");
    let ends = |proxy: &Pulsegate, how: Shutdown| {
        let config = certificates::client(&setup.ca, None);
        let stream = proxy.connect();
        let connection = Limited::new(&stream, usize::MAX).shake(client_of(&config));
        let Connection::Client(connection) = connection.expect("a handshake") else {
            panic!("no client");
        };
        let mut tls = StreamOwned::new(connection, stream);
        tls.write_all(b"half an order").expect("sent");
        let (mut service, _) = listener.accept().expect("dialled");
        let mut got = [0; 13];
        service.read_exact(&mut got).expect("delivered");
        tls.sock.shutdown(how).expect("connected");
        service.read(&mut got).map_err(|error| error.kind())
    };
    let proxy = terminate(&setup, address, "");
    let seen = ends(&proxy, Shutdown::Write);
    assert_eq!(seen, Err(io::ErrorKind::ConnectionReset));
    proxy.expect_active(0);
    assert_eq!(closed(&proxy.metrics(), "downstream_truncated"), 1.0);

    let service = free_address();
    let listener = TcpListener::bind(service).expect("listen");
    let config = certificates::server(&setup.server);
    let proxy = originate(&setup, service, "");
    let mut client = connect(proxy.address);
    let (stream, _) = listener.accept().expect("dialled");
    let shaken = Limited::new(&stream, usize::MAX).shake(server_of(&config));
    let Connection::Server(connection) = shaken.expect("a handshake") else {
        panic!("no server");
    };
    let mut tls = StreamOwned::new(connection, stream);
    tls.write_all(b"half an answer").expect("sent");
    tls.sock.shutdown(Shutdown::Write).expect("connected");
    let mut got = [0; 14];
    client.read_exact(&mut got).expect("delivered");
    let seen = client.read(&mut got).map_err(|error| error.kind());
    assert_eq!(seen, Err(io::ErrorKind::ConnectionReset));
    proxy.expect_active(0);
    assert_eq!(closed(&proxy.metrics(), "upstream_truncated"), 1.0);
}
