//! Listeners on unix sockets, and on sockets that the process is started with.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Signal;

use crate::rig::{
    PATIENT, PROMPT, Ports, Proxy, Service, Temporary, ask, eventually, free_address, kept,
    pulsegate, text,
};

/// Where it listens, besides the admin address.
fn start(listen: &str, admin: SocketAddr, service: &Service, flags: &[&str]) -> (Proxy, File) {
    let (log, stdio) = kept();
    let upstream = service.address.to_string();
    let admin_flag = admin.to_string();
    let mut command = pulsegate(&["run", "--listen", listen, "--upstream", &upstream]);
    let command = command.args(["--admin", &admin_flag]).args(flags);
    let ports = Ports {
        clients: admin,
        admin,
    };
    (Proxy::of(command.stdout(stdio), ports), log)
}

fn ready(proxy: &Proxy, log: &File) {
    let ready = || matches!(proxy.get("/readyz"), Ok(page) if page.contains(" 200 "));
    assert!(eventually(PATIENT, ready), "{}", text(log));
}

fn folder() -> (Temporary, PathBuf, String) {
    let folder = Temporary::new("d");
    fs::create_dir(&folder.0).expect("a folder");
    let path = folder.0.join("orders.sock");
    let listen = format!("unix:{}", path.display());
    (folder, path, listen)
}

fn question(client: &mut UnixStream) {
    client.set_read_timeout(Some(PATIENT)).expect("an option");
    client.write_all(b"question").expect("sent");
    client.read_exact(&mut [0; 8]).expect("answered");
}

fn session(path: &Path) -> UnixStream {
    let mut client = UnixStream::connect(path).expect("connected");
    question(&mut client);
    client
}

#[test]
fn clients_come_by_a_unix_socket() {
    let (_folder, path, listen) = folder();
    let service = Service::start();
    // Whoever listened here has gone without a word.
    drop(UnixListener::bind(&path).expect("bound"));
    let (mut proxy, log) = start(&listen, free_address(), &service, &["--idle-timeout", "2s"]);
    ready(&proxy, &log);
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    // Nobody takes the place of one that serves.
    let (mut other, other_log) = start(&listen, free_address(), &service, &[]);
    assert_eq!(other.wait().code(), Some(3), "{}", text(&other_log));

    let mut client = session(&path);
    let shown = proxy.get("/connections").expect("answered");
    assert!(shown.contains("\"state\":\"UNIX\""), "{shown}");
    assert!(shown.contains("\"condition\":\"alive\""), "{shown}");
    assert!(!shown.contains("downstream_dead"), "{shown}");
    let verified = proxy.ask("POST", "/verify").expect("answered");
    assert!(verified.contains("\"alive\":1"), "{verified}");

    // All of it, and its end, both ways.
    let mut whole = session(&path);
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writer = whole.try_clone().expect("a second handle");
    let bytes = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).expect("written");
        writer.shutdown(Shutdown::Write).expect("FIN");
    });
    let mut got = Vec::new();
    whole.read_to_end(&mut got).expect("a whole answer");
    writing.join().expect("written");
    assert!(got == sent, "{} bytes", got.len());

    // One that goes is gone at once, and one that is idle is ended.
    drop(session(&path));
    let closed = |reason: &str| {
        let name = "pulsegate_connections_closed_total{initiator=\"";
        let page = proxy.get("/metrics").expect("a scrape");
        let mut lines = page.lines().filter(|line| line.starts_with(name));
        lines.any(|line| line.contains(reason) && line.ends_with(" 1"))
    };
    assert_eq!(client.read(&mut [0]).expect("its end"), 0);
    assert!(eventually(PROMPT, || closed("idle_timeout")));
    assert_eq!(
        proxy.metric("pulsegate_socket_option_errors_total{listener=\"default\"}"),
        0.0
    );
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(!path.exists(), "the file is left");
}

#[test]
fn a_unix_socket_is_handed_over() {
    let (_folder, path, listen) = folder();
    let service = Service::start();
    let admin = free_address();
    let flags = ["--takeover", "--drain-timeout", "60s"];
    let (mut old, log) = start(&listen, admin, &service, &flags);
    ready(&old, &log);
    let mut held = session(&path);
    let (next, log) = start(&listen, admin, &service, &flags);
    assert!(eventually(PATIENT, || text(&log).contains("took over")));
    let mut other = session(&path);
    question(&mut held);
    drop(held);
    assert_eq!(old.wait().code(), Some(0));
    question(&mut other);
    session(&path);
    let accepted = next.metric("pulsegate_connections_accepted_total{listener=\"default\"}");
    assert_eq!(accepted, 2.0);
}

/// As systemd starts it: the socket is descriptor 3.
fn activated(socket: OwnedFd, listen: &str, admin: SocketAddr, service: &Service) -> (Proxy, File) {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$@\"";
    let (log, stdio) = kept();
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_pulsegate")])
        .args(["run", "--listen", listen, "--takeover"])
        .args(["--upstream", &service.address.to_string()])
        .args(["--admin", &admin.to_string()])
        .stdin(Stdio::from(socket))
        .stdout(stdio);
    let ports = Ports {
        clients: admin,
        admin,
    };
    (Proxy::of(&mut command, ports), log)
}

#[test]
fn sockets_of_the_service_manager_are_used_and_handed_over() {
    let service = Service::start();
    let admin = free_address();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let address = socket.local_addr().expect("bound");
    let copy = || OwnedFd::from(socket.try_clone().expect("a second handle"));
    let (mut none, log) = activated(copy(), "fd:other", free_address(), &service);
    assert_eq!(none.wait().code(), Some(3), "{}", text(&log));

    let (other, log) = activated(
        copy(),
        &free_address().to_string(),
        free_address(),
        &service,
    );
    ready(&other, &log);
    let unused = "no listener uses a socket of the service manager";
    assert!(eventually(PATIENT, || text(&log).contains(unused)));
    drop(other);

    let (mut old, log) = activated(copy(), "fd:web", admin, &service);
    ready(&old, &log);
    let mut held = TcpStream::connect(address).expect("connected");
    ask(&mut held).expect("served");
    // The next one is started by hand.
    let flags = ["--takeover"];
    assert!(!text(&log).contains(unused), "{}", text(&log));
    let (next, log) = start("fd:web", admin, &service, &flags);
    assert!(eventually(PATIENT, || text(&log).contains("took over")));
    drop(held);
    assert_eq!(old.wait().code(), Some(0));
    let mut client = TcpStream::connect(address).expect("connected");
    ask(&mut client).expect("served");
    let accepted = next.metric("pulsegate_connections_accepted_total{listener=\"default\"}");
    assert_eq!(accepted, 1.0);
}
