//! `pulsegate scan` and `pulsegate guard` at PostgreSQL and sshd, which know nothing of either.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Case;
use crate::postgres::Postgres;
use crate::process::{Folder, Process, find, run, tool};
use crate::scan::{D, LONG, Said, pulsegate, python, run_in, without_capabilities};
use crate::support::{Host, Net, eventually};

pub const CASES: &[Case] = &[
    Case::new(
        "scan_and_guard_free_the_backends_of_the_dead",
        &["initdb", "postgres", "python3"],
        scan_and_guard_free_the_backends_of_the_dead,
    )
    .isolated(),
    Case::new(
        "scan_ends_the_ssh_session_of_the_dead",
        &["sshd", "ssh", "ssh-keygen", "unshare", "setpriv", "python3"],
        scan_ends_the_ssh_session_of_the_dead,
    )
    .isolated()
    .as_root(),
];

const PORT: u16 = 7000;

/// Sessions of PostgreSQL that a process holds, as a pool of any language does. Each line of standard input
/// is a query; the answers of all of them are printed.
const POOL: &str = r#"
import socket, struct, sys
def send(one, kind, body):
    one.sendall(kind + struct.pack("!I", len(body) + 4) + body)
def exactly(one, n):
    data = b""
    while len(data) < n:
        more = one.recv(n - len(data))
        assert more, "a session has ended"
        data += more
    return data
def answer(one):
    rows = []
    while True:
        kind, (n,) = exactly(one, 1), struct.unpack("!I", exactly(one, 4))
        body = exactly(one, n - 4)
        assert kind != b"E", body
        if kind == b"D":
            (length,) = struct.unpack("!i", body[2:6])
            rows.append(body[6:6 + length].decode())
        if kind == b"Z":
            return rows
pool = []
for _ in range(int(sys.argv[3])):
    one = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    send(one, b"", struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0")
    answer(one)
    pool.append(one)
print("ready", flush=True)
for line in sys.stdin:
    for one in pool:
        send(one, b"Q", line.strip().encode() + b"\0")
    print(" ".join(",".join(answer(one)) for one in pool), flush=True)
"#;

struct Pool {
    process: Process,
    answers: usize,
}

impl Pool {
    fn new(net: &Net, host: Host, n: usize) -> Self {
        let ip = net.proxy_address(host).to_string();
        let mut command = tool("python3");
        command.args(["-c", POOL, &ip, &PORT.to_string(), &n.to_string()]);
        let process = Process::start_in(net.host(host), &mut command);
        let ready = || process.output() == "ready\n";
        assert!(eventually(LONG, ready), "{}", process.errors());
        let answers = 1;
        Self { process, answers }
    }

    /// What each session answers.
    fn ask(&mut self, query: &str) -> Vec<String> {
        writeln!(self.process.input(), "{query}").expect("asked");
        self.answers += 1;
        let said = || {
            let output = self.process.output();
            output.ends_with('\n') && output.lines().count() == self.answers
        };
        assert!(eventually(LONG, said), "{}", self.process.errors());
        let output = self.process.output();
        let line = output.lines().last().expect("an answer");
        line.split(' ').map(str::to_owned).collect()
    }

    fn backends(&mut self) -> BTreeSet<String> {
        self.ask("select pg_backend_pid()").into_iter().collect()
    }
}

/// The processes of the connections whose peers are said to be this.
fn pids(said: &Said, verified: &str) -> BTreeSet<String> {
    let json = said.json();
    let sockets = json["sockets"].as_array().expect("a list").iter();
    let sockets = sockets.filter(|socket| socket["verified"] == verified);
    sockets.map(|socket| socket["pid"].to_string()).collect()
}

/// Asks again until so many are silent: who was heard within the last second is not asked.
fn verified(net: &Net, by: &[&str], silent: usize) -> Said {
    let args = [&["scan", "--verify", "--sockets", "--json", D], by].concat();
    let mut said = None;
    let is_silent = || {
        let answer = run_in(&net.proxy, &mut pulsegate(&args));
        let is_silent = pids(&answer, "silent").len() == silent;
        said = Some(answer);
        is_silent
    };
    assert!(eventually(LONG, is_silent), "{said:?}");
    said.expect("said")
}

fn scan_and_guard_free_the_backends_of_the_dead() {
    let net = Net::new();
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let _postgres =
        Postgres::start_at(everywhere, |command| Process::start_in(&net.proxy, command));
    let mut living = Pool::new(&net, Host::Healthy, 10);
    let mut dead = Pool::new(&net, Host::Client, 5);
    let mut later = Pool::new(&net, Host::Service, 3);
    let (alive, gone) = (living.backends(), dead.backends());
    assert_eq!((alive.len(), gone.len()), (10, 5));

    net.cut(Host::Client);
    let by = ["--process", "postgres"];
    let said = verified(&net, &by, 5);
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(pids(&said, "silent"), gone, "{said:?}");
    said.verified(13, 5, 0);

    let end = [&["scan", "--end", "dead", "--json", D], &by[..]].concat();
    let said = run_in(&net.proxy, &mut pulsegate(&end));
    said.verified(13, 0, 5);
    let sessions_of = |pool: &mut Pool, host: Host| {
        let ip = net.address(host);
        pool.ask(&format!(
            "select count(*) from pg_stat_activity where client_addr = '{ip}'"
        ))
    };
    let none = || sessions_of(&mut living, Host::Client) == ["0"; 10];
    assert!(eventually(LONG, none));
    for pid in &gone {
        let is_gone = || !Path::new("/proc").join(pid).exists();
        assert!(eventually(LONG, is_gone), "{pid}");
    }
    assert_eq!(living.backends(), alive);
    // It reads the options when they are asked for the first time.
    let options = "select concat_ws('/', current_setting('tcp_keepalives_idle'), \
        current_setting('tcp_keepalives_interval'), current_setting('tcp_keepalives_count'))";
    assert_eq!(living.ask(options), ["7200/75/9"; 10]);

    let mut guard = pulsegate(&["guard", "--match", "process=postgres", D]);
    let guard = Process::start_in(&net.proxy, &mut guard);
    let lines = |text: &str| guard.output().matches(text).count();
    assert!(eventually(LONG, || lines("INFO guarded") == 13));
    assert_eq!(later.backends().len(), 3);
    net.cut(Host::Service);
    let none = || sessions_of(&mut living, Host::Service) == ["0"; 10];
    assert!(eventually(LONG, none), "{}", guard.output());
    assert!(eventually(LONG, || lines("the kernel ended a connection") == 3));
    assert_eq!(living.backends(), alive);
}

/// The server, and clients who have a channel through it to an echo service.
struct Sessions {
    net: Net,
    folder: Folder,
    server: Process,
    _echo: Process,
}

impl Sessions {
    fn new() -> Self {
        let (net, folder) = (Net::new(), Folder::new());
        for name in ["host", "client"] {
            let mut command = tool("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            run(command.arg(folder.join(name)));
        }
        let setting = format!(
            "Port {PORT}\nHostKey {0}/host\nAuthorizedKeysFile {0}/client.pub\nStrictModes no\nUsePAM no\n\
             PidFile none\nLogLevel VERBOSE\n",
            folder.path().display()
        );
        let file = folder.join("sshd_config");
        std::fs::write(&file, setting).expect("written");
        // The folder that it wants is made where nobody else sees it.
        let mut command = tool("unshare");
        let start = "mount -t tmpfs none /run; mkdir -m 755 /run/sshd; exec \"$0\" -D -e -f \"$1\"";
        command.args(["--mount", "sh", "-euc", start]);
        command.arg(find("sshd").expect("checked before the test"));
        let mut server = Process::start_in(&net.proxy, command.arg(&file));
        server.wait_until(|said| said.contains("Server listening"));
        let mut command = python("serve");
        let echo = Process::start_in(&net.proxy, command.args(["127.0.0.1", "7001"]));
        assert!(eventually(LONG, || echo.output() == "ready\n"));
        Self {
            net,
            folder,
            server,
            _echo: echo,
        }
    }

    fn client(&self, host: Host) -> Process {
        let mut command = tool("ssh");
        command.args(["-F", "/dev/null", "-W", "127.0.0.1:7001", "-i"]);
        command.arg(self.folder.join("client"));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-p", &PORT.to_string()]);
        command.arg(format!("nobody@{}", self.net.proxy_address(host)));
        let mut client = Process::start_in(self.net.host(host), &mut command);
        says(&mut client, "hello\n");
        client
    }

    /// Where the server's connections are.
    fn scan(&self, args: &[&str]) -> Command {
        pulsegate(&[&["scan", D], args].concat())
    }
}

/// A client's line comes back, after those before it.
fn says(client: &mut Process, line: &str) {
    let before = client.output();
    client.input().write_all(line.as_bytes()).expect("sent");
    let is_back = || client.output() == format!("{before}{line}");
    let came_back = eventually(LONG, is_back);
    assert!(came_back, "{:?}: {}", client.output(), client.errors());
}

/// Each session has two processes with the same socket: one of root, and one that has become its user
/// without exec.
fn scan_ends_the_ssh_session_of_the_dead() {
    let sessions = Sessions::new();
    let mut living = [(); 2].map(|()| sessions.client(Host::Healthy));
    let _dead = sessions.client(Host::Client);
    let net = &sessions.net;
    let port = format!("--port={PORT}");

    // As the user of the sessions, and as root without the capability.
    let mut as_user = tool("setpriv");
    as_user.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    let by_port = sessions.scan(&[&port, "--verify"]);
    as_user.arg(by_port.get_program()).args(by_port.get_args());
    let lacking = without_capabilities("-sys_ptrace", sessions.scan(&[&port, "--verify"]));
    std::thread::sleep(Duration::from_millis(1100));
    for (mut command, said) in [
        (
            as_user,
            "processes: it is not dumpable (it changed its user",
        ),
        (
            lacking,
            "processes: it has capabilities that pulsegate lacks",
        ),
    ] {
        let scan = run_in(&net.proxy, &mut command);
        assert_eq!(scan.code, 4, "{scan:?}");
        let refused = "not asked: 3 of unknown process: its process, of user 0,";
        for part in [
            refused,
            said,
            "it belongs to another user: grant CAP_SYS_PTRACE",
        ] {
            assert!(scan.text.contains(part), "{part}: {scan:?}");
        }
    }
    let by_name = sessions.scan(&["--process=sshd"]);
    let scan = run_in(
        &net.proxy,
        &mut without_capabilities("-sys_ptrace", by_name),
    );
    assert_eq!(scan.code, 1, "{scan:?}");

    net.cut(Host::Client);
    let by = ["--process", "sshd", &port];
    let said = verified(net, &by, 1);
    let total: Value = said.json()["total"]["connections"].clone();
    assert_eq!(total, 3, "each is counted once: {said:?}");
    let end = [&["--end", "dead", "--json"], &by[..]].concat();
    let said = run_in(&net.proxy, &mut sessions.scan(&end));
    said.verified(2, 0, 1);
    let log = || sessions.server.errors();
    assert!(
        eventually(LONG, || log().contains("Connection timed out")),
        "{}",
        log()
    );
    for client in &mut living {
        says(client, "again\n");
    }
    let said = run_in(&net.proxy, &mut sessions.scan(&by));
    assert!(said.text.contains("2 connections"), "{said:?}");
}
