//! The process as its supervisor meets it: signals, exit codes, standard output and standard error
//! that nobody reads.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use socket2::{Domain, Socket, Type};

const PROMPT: Duration = Duration::from_secs(10);
/// For what computes a lot, on a machine that has other work.
const PATIENT: Duration = Duration::from_secs(60);

// --- The log and its reader -----------------------------------------------------------------

/// Only what a full pipe and a full queue hold is written; the rest is dropped, and counted.
#[test]
fn a_log_that_nobody_reads_does_not_keep_the_process() {
    let mut proxy = Proxy::start(Stdio::piped(), &[]);
    let full = || proxy.metric("pulsegate_log_lines_dropped_total") > 0.0;
    let until = Instant::now() + PATIENT;
    while !full() {
        assert!(Instant::now() < until, "the log does not fill up");
        for _ in 0..500 {
            // Its service refuses: a session of one line or two.
            let _reset = TcpStream::connect(proxy.address).and_then(|mut s| s.read(&mut [0]));
        }
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn the_exit_code_is_said_to_a_broken_standard_error_too() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let nobody = free_address().to_string();
    let busy = ["run", "--listen", &taken, "--upstream", "127.0.0.1:1"];
    for (arguments, code) in [
        (&[&busy[..], &["--admin", "off"]].concat()[..], 3),
        (&["run", "--listen", "nonsense"], 2),
        (&["check", "--listen", "nonsense"], 2),
        (&["conns", "--admin", &nobody], 1),
        (&["nonsense"], 2),
    ] {
        for stderr in [broken_pipe(), full_pipe()] {
            let kept = stderr.1;
            let mut child = pulsegate(arguments)
                .stdout(Stdio::null())
                .stderr(stderr.0)
                .spawn()
                .expect("start it");
            assert_eq!(wait(&mut child, PROMPT).code(), Some(code), "{arguments:?}");
            drop(kept);
        }
    }
}

/// A pipe whose reader has gone.
fn broken_pipe() -> (Stdio, Option<OwnedFd>) {
    let (_, write) = rustix::pipe::pipe().expect("a pipe");
    (write.into(), None)
}

/// A pipe whose reader does not read; with the reader's end.
fn full_pipe() -> (Stdio, Option<OwnedFd>) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&write, 4096).expect("a small one");
    rustix::io::write(&write, &[b'x'; 4096]).expect("filled");
    (write.into(), Some(read))
}

// --- Signals --------------------------------------------------------------------------------

#[test]
fn other_signals_do_not_kill() {
    let mut proxy = Proxy::start(Stdio::piped(), &[]);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        proxy.signal(signal);
        thread::sleep(Duration::from_millis(200));
        assert!(proxy.get("/livez").is_ok(), "{signal:?}");
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    let log = proxy.output();
    let line = |word: &str| log.lines().find(|line| line.contains(word));
    assert!(line("SIGHUP").is_some_and(|l| l.contains("WARN")), "{log}");
    assert!(line("SIGUSR1 is ignored").is_some(), "{log}");
    assert!(line("SIGUSR2 is ignored").is_some(), "{log}");
}

/// While it still waits for its configuration.
#[test]
fn sigterm_is_heard_from_the_first_moment_on() {
    let fifo = std::env::temp_dir().join(format!("pulsegate-fifo-{}", std::process::id()));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).expect("a FIFO");
    let mut child = pulsegate(&["run", "--config"])
        .arg(&fifo)
        .spawn()
        .expect("start it");
    let handled = |signal: Signal| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
        let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:\t"));
        let mask = u64::from_str_radix(mask.expect("a mask"), 16).expect("hexadecimal");
        mask & (1 << (signal.as_raw() - 1)) != 0
    };
    let all = [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1];
    let heard = eventually(PROMPT, || all.into_iter().all(handled));
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).expect("signalled");
    let status = wait(&mut child, PROMPT);
    fs::remove_file(&fifo).expect("removed");
    assert!(heard, "no handlers");
    assert_eq!(status.code(), Some(0), "{status}");
}

// --- Helpers --------------------------------------------------------------------------------

fn pulsegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn eventually(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn wait(child: &mut Child, within: Duration) -> ExitStatus {
    let mut status = None;
    eventually(within, || {
        status = child.try_wait().expect("wait for the child");
        status.is_some()
    });
    status.unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("it still runs after {within:?}")
    })
}

/// A loopback address that nobody listens on, below the range of outgoing connections.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).expect("small") * 100;
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 12_000 + (start + n) % 18_000));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        if socket.bind(&address.into()).is_ok() {
            return address;
        }
    }
}

/// A running pulsegate, killed when it is dropped.
struct Proxy {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    /// In front of a port where nobody listens.
    fn start(log: Stdio, flags: &[&str]) -> Self {
        let (address, admin) = (free_address(), free_address());
        let child = pulsegate(&["run", "--upstream", "127.0.0.1:1"])
            .args(["--listen", &address.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(flags)
            .stdout(log)
            .spawn()
            .expect("start it");
        let proxy = Self {
            child,
            address,
            admin,
        };
        let ready = || matches!(proxy.get("/readyz"), Ok(page) if page.contains(" 200 "));
        assert!(eventually(PATIENT, ready), "not ready");
        proxy
    }

    /// A page of the admin endpoint, with its head.
    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, PROMPT)?;
        stream.set_read_timeout(Some(PROMPT))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").expect("a scrape");
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|v| v.trim().parse().ok()).expect(name)
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("signalled");
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child, PROMPT)
    }

    /// What it has written to standard output, to its end.
    fn output(&mut self) -> String {
        let mut text = String::new();
        let mut pipe = self.child.stdout.take().expect("piped");
        pipe.read_to_string(&mut text).expect("UTF-8");
        text
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
