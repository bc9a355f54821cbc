//! Redis: its own benchmark, large values in both directions at once, clients that wait.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::Case;
use crate::bytes::Stream;
use crate::process::{Folder, Process, free_address, run_all, tool};
use crate::pulsegate::{Pulsegate, closed, connect};
use crate::support::certificates::Certified;
use crate::support::ms;

pub const CASES: &[Case] = &[
    Case::new(
        "redis_benchmark_runs_without_error",
        &["redis-server", "redis-benchmark"],
        redis_benchmark_runs_without_error,
    ),
    Case::new(
        "redis_values_are_byte_exact",
        &["redis-server"],
        redis_values_are_byte_exact,
    ),
    Case::new(
        "redis_values_over_a_unix_socket_are_byte_exact",
        &["redis-server"],
        redis_values_over_a_unix_socket_are_byte_exact,
    ),
    Case::new(
        "redis_clients_that_wait_are_not_dead",
        &["redis-server"],
        redis_clients_that_wait_are_not_dead,
    ),
];

/// Values of about a megabyte: 200 MB up and 200 MB down.
const VALUES: usize = 200;

const SOCKET: &str = "redis.sock";

/// A Redis of the test's own, without persistence.
pub struct Redis {
    process: Process,
    folder: Folder,
    pub address: SocketAddr,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_at(free_address())
    }

    pub fn start_at(address: SocketAddr) -> Self {
        Self::start_by(
            tool("redis-server").args(["--port", &address.port().to_string()]),
            address,
        )
    }

    /// One that speaks TLS only; `asks` (`yes`, `no`): for certificates of its clients.
    pub fn start_tls(own: &Certified, ca: &Path, asks: &str) -> Self {
        let address = free_address();
        let mut command = tool("redis-server");
        command
            .args(["--port", "0", "--tls-port", &address.port().to_string()])
            .arg("--tls-cert-file")
            .arg(&own.chain)
            .arg("--tls-key-file")
            .arg(&own.key)
            .arg("--tls-ca-cert-file")
            .arg(ca)
            .args(["--tls-auth-clients", asks]);
        Self::start_by(&mut command, address)
    }

    fn start_by(command: &mut Command, address: SocketAddr) -> Self {
        let folder = Folder::new();
        command
            .args(["--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(folder.path())
            .arg("--unixsocket")
            .arg(folder.join(SOCKET));
        let mut process = Process::start(command);
        process.wait_until(|_| TcpStream::connect(address).is_ok());
        Self {
            process,
            folder,
            address,
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The same Redis, as an upstream.
    pub fn unix(&self) -> String {
        format!("unix:{}", self.folder.join(SOCKET).display())
    }
}

/// A connection to Redis that speaks as much of RESP as is needed here.
pub struct Client {
    writer: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        Self::over(connect(to))
    }

    pub fn over(writer: TcpStream) -> Self {
        let reader = BufReader::with_capacity(64 << 10, writer.try_clone().expect("a handle"));
        Self { writer, reader }
    }

    pub fn send(&mut self, words: &[&str]) {
        let request = request(words);
        self.writer.write_all(request.as_bytes()).expect("send");
    }

    /// One line of an answer.
    pub fn line(&mut self) -> String {
        line(&mut self.reader).expect("an answer")
    }

    /// An answer that is an array of strings or numbers, flat.
    pub fn array(&mut self) -> Vec<String> {
        let head = self.line();
        let length = head.strip_prefix('*').and_then(|n| n.parse().ok());
        let length: usize = length.unwrap_or_else(|| panic!("no array: {head}"));
        let mut item = || {
            let line = self.line();
            if line.starts_with('$') {
                self.line()
            } else {
                line
            }
        };
        (0..length).map(|_| item()).collect()
    }
}

fn request(words: &[&str]) -> String {
    let head = format!("*{}\r\n", words.len());
    words.iter().fold(head, |all, word| {
        all + &format!("${}\r\n{word}\r\n", word.len())
    })
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, line)),
    }
}

fn redis_benchmark_runs_without_error() {
    let redis = Redis::start();
    let proxy = Pulsegate::start(redis.address, &["--detect-within", "3s"]);
    let mut benchmark = tool("redis-benchmark");
    benchmark
        .args(["-h", "127.0.0.1", "-p", &proxy.address.port().to_string()])
        .args([
            "-n",
            "20000",
            "-c",
            "50",
            "-t",
            "set,get,lrange",
            "-P",
            "16",
        ])
        .args(["-q"]);
    let (output, errors) = run_all(&mut benchmark);
    for test in ["SET: ", "GET: ", "LRANGE_100", "LRANGE_600"] {
        // Progress is printed over itself.
        let done = |line: &str| line.starts_with(test) && line.contains("requests per second");
        assert!(output.split(['\r', '\n']).any(done), "{test}: {output}");
    }
    assert!(
        !(output.contains("rror") || errors.contains("rror")),
        "{output}{errors}"
    );
    let metrics = proxy.expect_settled();
    let ends = metrics.excerpt("pulsegate_connections_closed_total");
    // The benchmark closes with answers unread when it has enough of them.
    let ended = closed(&metrics, "finished") + closed(&metrics, "downstream_reset");
    assert_eq!(
        ended,
        metrics.value("pulsegate_connections_closed_total", &[]),
        "{ends}"
    );
    assert!(ended >= 50.0, "{ends}");
}

fn length(value: usize) -> usize {
    1_000_000 + 997 * value
}

/// Each SET is followed by its GET at once, so that both directions are full.
fn send_values(mut to: &TcpStream) -> io::Result<()> {
    for value in 0..VALUES {
        let (key, length) = (format!("value:{value}"), length(value));
        let set = format!(
            "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n",
            key.len()
        );
        to.write_all(set.as_bytes())?;
        Stream::new(value as u64).send(&mut to, length)?;
        to.write_all(b"\r\n")?;
        to.write_all(request(&["GET", &key]).as_bytes())?;
    }
    Ok(())
}

fn receive_values(from: &mut BufReader<TcpStream>) -> io::Result<()> {
    for value in 0..VALUES {
        let length = length(value);
        assert_eq!(line(from)?, "+OK", "value {value}");
        assert_eq!(line(from)?, format!("${length}"), "value {value}");
        Stream::new(value as u64).receive(from, length)?;
        let mut end = [0; 2];
        from.read_exact(&mut end)?;
        assert_eq!(&end, b"\r\n", "value {value}");
    }
    Ok(())
}

fn redis_values_are_byte_exact() {
    let redis = Redis::start();
    values_are_byte_exact(redis.address);
}

fn redis_values_over_a_unix_socket_are_byte_exact() {
    let redis = Redis::start();
    values_are_byte_exact(redis.unix());
}

fn values_are_byte_exact(upstream: impl ToString) {
    let proxy = Pulsegate::start(upstream, &["--detect-within", "5s"]);
    let mut client = Client::connect(proxy.address);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_values(&client.writer));
        receive_values(&mut client.reader).expect("receive");
        sender.join().expect("the sender").expect("send");
    });
    drop(client);
    proxy.expect_all_closed("finished", 1);
}

/// Three clients hear nothing for several times `detect_within`, each waiting in its own way.
fn redis_clients_that_wait_are_not_dead() {
    let redis = Redis::start();
    let flags = ["--detect-within", "2s", "--probe-interval", "1s"];
    let proxy = Pulsegate::start(redis.address, &flags);
    let mut pops = Client::connect(proxy.address);
    let mut listens = Client::connect(proxy.address);
    let mut idles = Client::connect(proxy.address);
    pops.send(&["BLPOP", "queue", "0"]);
    listens.send(&["SUBSCRIBE", "news"]);
    assert_eq!(listens.array(), ["subscribe", "news", ":1"]);
    idles.send(&["PING"]);
    assert_eq!(idles.line(), "+PONG");

    thread::sleep(ms(7000));
    let mut direct = Client::connect(redis.address);
    direct.send(&["RPUSH", "queue", "job"]);
    assert_eq!(direct.line(), ":1");
    direct.send(&["PUBLISH", "news", "hello"]);
    assert_eq!(direct.line(), ":1", "the subscriber is still there");
    assert_eq!(pops.array(), ["queue", "job"]);
    assert_eq!(listens.array(), ["message", "news", "hello"]);
    idles.send(&["PING"]);
    assert_eq!(idles.line(), "+PONG");
    drop((pops, listens, idles));
    proxy.expect_all_closed("finished", 3);
}
