//! What the tests start and talk to.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use socket2::{Domain, Socket, Type};

pub const PROMPT: Duration = Duration::from_secs(10);
/// For what computes a lot, on a machine that has other work.
pub const PATIENT: Duration = Duration::from_secs(60);

pub fn pulsegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub fn eventually(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
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
pub fn wait(child: &mut Child, within: Duration) -> ExitStatus {
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
pub fn free_address() -> SocketAddr {
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

/// Where nobody listens.
pub fn nobody() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

/// A path of the test's own, removed when it is dropped.
pub struct Temporary(pub PathBuf);

impl Temporary {
    pub fn new(kind: &str) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pulsegate-process-{}-{n}.{kind}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}

/// A file in memory, and the same for a child to write to.
pub fn kept() -> (File, Stdio) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("output", flags).expect("a file in memory");
    let file = File::from(file);
    let copy = file.try_clone().expect("a second handle");
    (file, copy.into())
}

pub fn text(file: &File) -> String {
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let _ = file.read_exact_at(&mut bytes, 0);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends eight bytes and waits for as many.
pub fn ask(client: &mut TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENT))?;
    client.write_all(b"question")?;
    client.read_exact(&mut [0; 8])
}

/// Sends back what it gets, and counts its connections.
pub struct Service {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    /// At once.
    pub most: Arc<AtomicUsize>,
}

impl Service {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let service = Self {
            address: listener.local_addr().expect("bound"),
            connections: Arc::default(),
            most: Arc::default(),
        };
        let (connections, most) = (service.connections.clone(), service.most.clone());
        thread::spawn(move || {
            let now: Arc<AtomicUsize> = Arc::default();
            while let Ok((mut stream, _)) = listener.accept() {
                connections.fetch_add(1, Ordering::Relaxed);
                let count = now.fetch_add(1, Ordering::Relaxed) + 1;
                most.fetch_max(count, Ordering::Relaxed);
                let now = now.clone();
                thread::spawn(move || {
                    let mut bytes = [0; 8];
                    while let Ok(length @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..length]).is_err() {
                            break;
                        }
                    }
                    now.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        service
    }
}

/// Where an instance listens.
#[derive(Clone, Copy)]
pub struct Ports {
    pub clients: SocketAddr,
    pub admin: SocketAddr,
}

impl Ports {
    pub fn free() -> Self {
        Self {
            clients: free_address(),
            admin: free_address(),
        }
    }
}

/// A running pulsegate, killed when it is dropped.
pub struct Proxy {
    pub child: Child,
    pub ports: Ports,
}

impl Proxy {
    pub fn of(command: &mut Command, ports: Ports) -> Self {
        let child = command.spawn().expect("start it");
        Self { child, ports }
    }

    pub fn spawn(ports: Ports, upstream: SocketAddr, log: Stdio, flags: &[&str]) -> Self {
        let mut command = pulsegate(&["run", "--upstream", &upstream.to_string()]);
        command
            .args(["--listen", &ports.clients.to_string()])
            .args(["--admin", &ports.admin.to_string()])
            .args(flags)
            .stdout(log);
        Self::of(&mut command, ports)
    }

    /// The same until it is ready.
    pub fn start(ports: Ports, upstream: SocketAddr, log: Stdio, flags: &[&str]) -> Self {
        let mut proxy = Self::spawn(ports, upstream, log, flags);
        let ready = || {
            let ended = proxy.child.try_wait().expect("wait for the child");
            assert!(ended.is_none(), "ended: {ended:?}");
            matches!(proxy.get("/readyz"), Ok(page) if page.contains(" 200 "))
        };
        assert!(eventually(PATIENT, ready), "not ready");
        proxy
    }

    /// A page of the admin endpoint, with its head.
    pub fn get(&self, path: &str) -> io::Result<String> {
        self.ask("GET", path)
    }

    /// The JSON of a page of the admin endpoint.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let answer = self.get(path).expect("an answer");
        let (_head, body) = answer.split_once("\r\n\r\n").expect("a head");
        serde_json::from_str(body).expect("JSON")
    }

    /// The answer of the admin endpoint, with its head.
    pub fn ask(&self, method: &str, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.ports.admin, PROMPT)?;
        stream.set_read_timeout(Some(PROMPT))?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").expect("a scrape");
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|v| v.trim().parse().ok()).expect(name)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("signalled");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child, PROMPT)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
