//! Many megabytes each way at once, on many sessions, through each combination of plain and TLS, while other
//! work wants the processors.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Case;
use crate::bytes::Stream;
use crate::many;
use crate::process::free_address;
use crate::pulsegate::{bytes_on, figure};
use crate::support::certificates;
use crate::tls::{Keys, Setup, handshakes};

pub const CASES: &[Case] = &[
    Case::new("fifty_sessions_from_tls_to_plain", &[], || {
        both_ways_at_once(Leg::Tls, Leg::Plain);
    }),
    Case::new("fifty_sessions_from_plain_to_tls", &[], || {
        both_ways_at_once(Leg::Plain, Leg::Tls);
    }),
    Case::new("fifty_sessions_from_tls_to_tls", &[], || {
        both_ways_at_once(Leg::Tls, Leg::Tls);
    }),
    Case::new("tls_crosses_a_unix_socket", &[], tls_crosses_a_unix_socket),
];

const SESSIONS: usize = 50;
/// Each way, of each session. `PULSEGATE_TLS_MEGABYTES=200` has it take some minutes.
const MEGABYTES: usize = 4;
const CHUNK: usize = 64 << 10;
/// Threads that compute beside it.
const BUSY: usize = 2;
const PATIENCE: Duration = Duration::from_secs(1200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Plain,
    Tls,
}

trait Ends: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Ends for S {}

/// Sends and receives at once, says that it has ended, and expects that of the other side.
async fn exchange(
    stream: Box<dyn Ends>,
    sends: u64,
    receives: u64,
    bytes: usize,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let sending = async {
        let (mut stream, mut left) = (Stream::new(sends), bytes);
        let mut chunk = Vec::with_capacity(CHUNK);
        while left > 0 {
            chunk.clear();
            stream.send(&mut chunk, left.min(CHUNK))?;
            to.write_all(&chunk).await?;
            left -= chunk.len();
        }
        // Of TLS: close_notify.
        to.shutdown().await
    };
    let receiving = async {
        let (mut stream, mut left) = (Stream::new(receives), bytes);
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let n = from.read(&mut chunk).await?;
            if n == 0 {
                let why = format!("ended {left} bytes too early");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            stream.receive(&mut &chunk[..n], n)?;
            left = left.checked_sub(n).ok_or(io::ErrorKind::InvalidData)?;
        }
        match from.read(&mut chunk).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("bytes after the end")),
        }
    };
    tokio::try_join!(sending, receiving).map(drop)
}

async fn serve(setup: Arc<Setup>, listener: TcpListener, leg: Leg, bytes: usize) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(certificates::server(&setup.server));
    let mut sessions = JoinSet::new();
    for _ in 0..SESSIONS {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        sessions.spawn(async move {
            let mut stream: Box<dyn Ends> = match leg {
                Leg::Plain => Box::new(stream),
                Leg::Tls => Box::new(acceptor.accept(stream).await?),
            };
            let number = stream.read_u64().await?;
            exchange(stream, !number, number, bytes).await
        });
    }
    sessions.join_all().await.into_iter().collect()
}

async fn ask(
    setup: Arc<Setup>,
    to: SocketAddr,
    leg: Leg,
    number: u64,
    bytes: usize,
) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    let mut stream: Box<dyn Ends> = match leg {
        Leg::Plain => Box::new(stream),
        Leg::Tls => {
            let connector = TlsConnector::from(certificates::client(&setup.ca, None));
            let name = ServerName::try_from("localhost").expect("a name");
            Box::new(connector.connect(name, stream).await?)
        }
    };
    stream.write_u64(number).await?;
    exchange(stream, number, !number, bytes).await
}

fn both_ways_at_once(downstream: Leg, upstream: Leg) {
    let megabytes = std::env::var("PULSEGATE_TLS_MEGABYTES");
    let megabytes = megabytes.map_or(MEGABYTES, |n| n.parse().expect("a number"));
    let bytes = megabytes * 1_000_000;
    let (setup, service) = (Arc::new(Setup::new()), free_address());
    let wanted = |leg: Leg, keys: Option<String>| keys.filter(|_| leg == Leg::Tls);
    let keys = Keys {
        tls: wanted(downstream, setup.tls("handshake_timeout: 60s")),
        upstream_tls: wanted(upstream, setup.upstream_tls("")),
        ..Keys::default()
    };
    let proxy = setup.start_with(&service.to_string(), keys, "connect_timeout: 60s");
    let over = AtomicBool::new(false);
    let runtime = many::runtime();
    thread::scope(|scope| {
        for _ in 0..BUSY {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let exchanged = runtime.block_on(async {
            let listener = TcpListener::bind(service).await?;
            let serving = tokio::spawn(serve(setup.clone(), listener, upstream, bytes));
            let mut clients = JoinSet::new();
            for number in 0..SESSIONS as u64 {
                clients.spawn(ask(setup.clone(), proxy.address, downstream, number, bytes));
            }
            let all = async {
                let clients: io::Result<()> = clients.join_all().await.into_iter().collect();
                clients.and(serving.await?)
            };
            tokio::time::timeout(PATIENCE, all).await?
        });
        over.store(true, Ordering::Relaxed);
        exchanged.unwrap_or_else(|error| panic!("{error}\n{}", proxy.log()));
    });
    let metrics = proxy.expect_all_closed("finished", SESSIONS);
    let (up, down) = (
        figure(SESSIONS * 8) + megabytes_of(megabytes),
        megabytes_of(megabytes),
    );
    assert_eq!(bytes_on(&metrics, "downstream"), (up, down), "payload");
    assert_eq!(bytes_on(&metrics, "upstream"), (down, up), "payload");
    for (name, leg) in [("downstream", downstream), ("upstream", upstream)] {
        let shaken = figure(if leg == Leg::Tls { SESSIONS } else { 0 });
        assert_eq!(handshakes(&metrics, name, "TLSv1.3"), shaken, "{name}");
    }
}

/// Of all sessions: more than [`figure`] knows.
fn megabytes_of(each: usize) -> f64 {
    figure(SESSIONS * each) * 1e6
}

/// One listener is the service of the other one.
fn tls_crosses_a_unix_socket() {
    const BYTES: usize = 60_000;
    let (setup, runtime) = (Setup::new(), many::runtime());
    let service = many::echo(&runtime);
    let between = format!("unix:{}", setup.folder.join("between.sock").display());
    let tls = setup.tls("").expect("keys");
    let keys = Keys {
        upstream_tls: setup.upstream_tls("server_name: localhost"),
        more: &format!(
            "- name: inner\n  address: '{between}'\n  tls: {{ {tls} }}\n  \
             upstream: {{ address: '{service}' }}"
        ),
        ..Keys::default()
    };
    let proxy = setup.start_with(&between, keys, "");
    let mut client = proxy.connect();
    let sent = vec![7; BYTES];
    client.write_all(&sent).expect("connected");
    client.shutdown(Shutdown::Write).expect("connected");
    let mut came = Vec::new();
    client.read_to_end(&mut came).expect("a complete stream");
    assert_eq!(came, sent);
    proxy.expect_all_closed("finished", 2);
    for leg in ["downstream", "upstream"] {
        assert_eq!(handshakes(&proxy.metrics(), leg, "TLSv1.3"), 1.0, "{leg}");
    }
}
