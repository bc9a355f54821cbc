//! The binary under test on the loopback, seen through what an operator sees.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::pulsegate::app::default_workers;
use ::pulsegate::relay::KEPT_PIPE_DESCRIPTORS;

use rustix::process::Signal;

use crate::process::{Account, Folder, Process, free_address, tool};
use crate::support::{Metrics, eventually, ms};

const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// A running pulsegate with one listener.
#[derive(Debug)]
pub struct Pulsegate {
    process: Process,
    /// Where it takes clients.
    pub address: SocketAddr,
    /// Where it answers its operator.
    pub admin: SocketAddr,
    descriptors: usize,
}

/// The binary: the one that was built with this test, or another one that is put to the test.
pub fn binary() -> Command {
    let other = std::env::var_os("PULSEGATE_TEST_BINARY");
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_pulsegate").into()));
    command.arg("run");
    command
}

impl Pulsegate {
    /// Starts it in front of a service and waits until it is ready.
    pub fn start(upstream: impl ToString, flags: &[&str]) -> Self {
        Self::start_by(binary(), upstream, flags)
    }

    /// The same with a hard limit of descriptors.
    pub fn start_limited(descriptors: u32, upstream: impl ToString, flags: &[&str]) -> Self {
        let binary = binary();
        let mut shell = tool("sh");
        shell
            .args([
                "-c",
                r#"ulimit -n "$0" && exec "$@""#,
                &descriptors.to_string(),
            ])
            .arg(binary.get_program())
            .args(binary.get_args());
        Self::start_by(shell, upstream, flags)
    }

    /// The same under an account that may have no further thread once it is ready: for root there is
    /// no such limit.
    pub fn start_without_threads(folder: &Folder, upstream: impl ToString) -> Self {
        let original = binary();
        let copy = folder.join("pulsegate");
        fs::copy(original.get_program(), &copy).expect("copy the binary");
        let mut command = Command::new(copy);
        command.args(original.get_args());
        let account = Account::of(&["nobody"]);
        account.runs(&mut command);
        let proxy = Self::start_by(command, upstream, &["--detect-within", "5s"]);
        // Under the same account: to limit another's process takes a capability.
        let mut limit = tool("prlimit");
        limit.args(["--pid", &proxy.process.id().to_string(), "--nproc=0:0"]);
        account.runs(&mut limit);
        assert!(limit.status().expect("run prlimit").success());
        proxy
    }

    /// The same from a file that names these two addresses.
    pub fn start_config(file: &Path, address: SocketAddr, admin: SocketAddr) -> Self {
        let mut command = binary();
        command.arg("--config").arg(file);
        Self::ready(command, address, admin)
    }

    fn start_by(mut command: Command, upstream: impl ToString, flags: &[&str]) -> Self {
        let (address, admin) = (free_address(), free_address());
        command
            .args(["--listen", &address.to_string()])
            .args(["--upstream", &upstream.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(flags);
        Self::ready(command, address, admin)
    }

    fn ready(mut command: Command, address: SocketAddr, admin: SocketAddr) -> Self {
        let mut process = Process::start(&mut command);
        process.wait_until(|_| matches!(ask(admin, "GET", "/readyz"), Ok((200, _))));
        // What the first scrape opens for good belongs to the start.
        let _page = ask(admin, "GET", "/metrics");
        let descriptors = settled_descriptors(process.id());
        Self {
            process,
            address,
            admin,
            descriptors,
        }
    }

    /// The same by a command line of the test's own.
    pub fn started(command: Command, address: SocketAddr, admin: SocketAddr) -> Self {
        Self::ready(command, address, admin)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) {
        self.process.wait(SETTLED_WITHIN);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Connects as a client that does not wait for ever.
    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// GETs a page of the admin endpoint: status and body.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        ask(self.admin, "GET", path)
    }

    /// POSTs to the admin endpoint: status and body.
    pub fn post(&self, path: &str) -> io::Result<(u16, String)> {
        ask(self.admin, "POST", path)
    }

    /// Has a session ended, as the operator does.
    #[track_caller]
    pub fn kill(&self, id: &str) {
        let path = format!("/connections/{id}");
        let (status, body) = ask(self.admin, "DELETE", &path).expect("an answer");
        assert_eq!(status, 202, "{body}");
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The current metrics.
    pub fn metrics(&self) -> Metrics {
        let (status, body) = self.get("/metrics").expect("scrape");
        assert_eq!(status, 200, "{body}");
        Metrics(body)
    }

    /// How many sessions there are.
    pub fn active(&self) -> f64 {
        self.metrics().value("pulsegate_connections_active", &[])
    }

    /// Waits until so many sessions are left.
    #[track_caller]
    pub fn expect_active(&self, sessions: usize) {
        let reached = eventually(SETTLED_WITHIN, || self.active() == figure(sessions));
        assert!(reached, "{} sessions, not {sessions}", self.active());
    }

    /// Memory that the process holds, in KiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        number.expect("a resident size")
    }

    /// No session and no descriptor is left, none was called dead, turned away or stalled,
    /// nothing has panicked, and the figures add up.
    #[track_caller]
    pub fn expect_settled(&self) -> Metrics {
        self.expect_active(0);
        // Each worker keeps some pipes for the next bulk stream.
        let kept = default_workers() * usize::try_from(KEPT_PIPE_DESCRIPTORS).expect("few");
        let before = self.descriptors + kept;
        let freed = || descriptors(self.process.id()) <= before;
        let now = descriptors(self.process.id());
        assert!(
            eventually(SETTLED_WITHIN, freed),
            "{now} descriptors, {before} at the start and in kept pipes"
        );
        let metrics = self.metrics();
        let all = metrics.excerpt("pulsegate_");
        for name in [
            "half_open_detected_total",
            "half_open_connections",
            "half_closed_connections",
            "stalled_connections",
            "connections_rejected_total",
            "accept_errors_total",
        ] {
            assert_eq!(
                metrics.value(&format!("pulsegate_{name}"), &[]),
                0.0,
                "{all}"
            );
        }
        let accepted = metrics.value("pulsegate_connections_accepted_total", &[]);
        let ended = metrics.value("pulsegate_connections_closed_total", &[]);
        assert_eq!(accepted, ended, "{all}");
        let said = self.process.output() + &self.process.errors();
        assert!(!said.contains("panicked"), "{said}");
        metrics
    }

    /// As [`Pulsegate::expect_settled`], and every session has ended for one reason.
    #[track_caller]
    pub fn expect_all_closed(&self, reason: &str, sessions: usize) -> Metrics {
        let metrics = self.expect_settled();
        let all = metrics.excerpt("pulsegate_connections");
        assert_eq!(closed(&metrics, reason), figure(sessions), "{all}");
        let ended = metrics.value("pulsegate_connections_closed_total", &[]);
        assert_eq!(ended, figure(sessions), "{all}");
        metrics
    }
}

/// Sessions that ended for a reason.
pub fn closed(metrics: &Metrics, reason: &str) -> f64 {
    metrics.value("pulsegate_connections_closed_total", &[("reason", reason)])
}

/// Bytes that the metrics say were received and sent on a leg.
pub fn bytes_on(metrics: &Metrics, leg: &str) -> (f64, f64) {
    let value = |name| metrics.value(name, &[("leg", leg)]);
    (
        value("pulsegate_received_bytes_total"),
        value("pulsegate_sent_bytes_total"),
    )
}

/// A number as metrics have it.
pub fn figure(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("small"))
}

/// Connects as a client that does not wait for ever.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, ms(30_000)).expect("connect");
    stream.set_nodelay(true).expect("an option");
    let limit = Some(ms(60_000));
    stream.set_read_timeout(limit).expect("an option");
    stream.set_write_timeout(limit).expect("an option");
    stream
}

fn ask(admin: SocketAddr, method: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, ms(10_000))?;
    stream.set_read_timeout(Some(ms(30_000)))?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(invalid)?, body.to_owned()))
}

fn descriptors(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

/// The number of descriptors once the connection of the last scrape is gone.
fn settled_descriptors(process: u32) -> usize {
    let mut last = descriptors(process);
    eventually(ms(1000), || {
        let now = descriptors(process);
        std::mem::replace(&mut last, now) == now
    });
    last
}
