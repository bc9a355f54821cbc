//! `pulsegate scan` and `pulsegate guard` at connections that a Python process holds: it knows nothing of
//! either, and says afterwards what it noticed. Its pool of sockets stands for that of a JVM, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use pulsegate::sys::netns::Namespace;
use rustix::process::Signal;
use serde_json::Value;

use crate::Case;
use crate::process::{Folder, Process, tool};
use crate::support::{Host, Net, eventually};

pub const CASES: &[Case] = &[
    Case::new(
        "scan_ends_exactly_the_dead",
        PYTHON,
        scan_ends_exactly_the_dead,
    )
    .isolated(),
    Case::new(
        "a_scan_that_is_interrupted_changes_nothing",
        PYTHON,
        a_scan_that_is_interrupted_changes_nothing,
    )
    .isolated(),
    Case::new(
        "scan_asks_those_that_wait_after_their_fin",
        PYTHON,
        scan_asks_those_that_wait_after_their_fin,
    )
    .isolated(),
    Case::new(
        "scan_ends_a_named_connection",
        WITHOUT_RIGHTS,
        scan_ends_a_named_connection,
    )
    .isolated()
    .as_root(),
    Case::new(
        "guard_finds_the_dead_unattended",
        PYTHON,
        guard_finds_the_dead_unattended,
    )
    .isolated(),
    Case::new(
        "guard_changes_nothing_in_a_dry_run",
        PYTHON,
        guard_changes_nothing_in_a_dry_run,
    )
    .isolated(),
    Case::new(
        "guard_calls_what_its_seccomp_profile_allows",
        TRACED,
        guard_calls_what_its_seccomp_profile_allows,
    )
    .isolated(),
    Case::new(
        "a_socket_of_several_processes_is_counted_once",
        PYTHON,
        a_socket_of_several_processes_is_counted_once,
    )
    .isolated(),
    Case::new(
        "two_scans_at_once_put_every_option_back",
        PYTHON,
        two_scans_at_once_put_every_option_back,
    )
    .isolated(),
    Case::new(
        "guard_heeds_what_others_change",
        PYTHON,
        guard_heeds_what_others_change,
    )
    .isolated(),
    Case::new(
        "guard_keeps_its_promise_whatever_others_change",
        PYTHON,
        guard_keeps_its_promise_whatever_others_change,
    )
    .isolated(),
    Case::new(
        "guard_puts_back_what_nobody_changed",
        PYTHON,
        guard_puts_back_what_nobody_changed,
    )
    .isolated(),
    Case::new(
        "two_guards_end_with_the_stricter_one",
        PYTHON,
        two_guards_end_with_the_stricter_one,
    )
    .isolated(),
    Case::new(
        "scan_tells_seccomp_yama_and_others_apart",
        UNSHARED,
        scan_tells_seccomp_yama_and_others_apart,
    )
    .isolated()
    .as_root(),
    Case::new(
        "scan_says_what_to_grant",
        WITHOUT_RIGHTS,
        scan_says_what_to_grant,
    )
    .isolated()
    .as_root(),
];

const PYTHON: &[&str] = &["python3"];
const TRACED: &[&str] = &["python3", "strace"];
const WITHOUT_RIGHTS: &[&str] = &["python3", "setpriv"];
const UNSHARED: &[&str] = &["python3", "unshare"];
const PORT: u16 = 7000;
pub const LONG: Duration = Duration::from_secs(60);
/// The shortest one has the shortest test.
pub const D: &str = "--detect-within=5s";

/// `serve IP PORT` echoes. `hold [IP PORT COUNT]...` connects, exchanges a word on each connection, and
/// then answers a line of standard input with one of standard output.
const POOL: &str = r#"
import collections, ctypes, os, resource, selectors, signal, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
role, rest = sys.argv[1], sys.argv[2:]
if role == "serve":
    server = socket.create_server((rest[0], int(rest[1])), backlog=4096)
    server.setblocking(False)
    poll = selectors.DefaultSelector()
    poll.register(server, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in poll.select():
            if key.fileobj is server:
                client, _ = server.accept()
                poll.register(client, selectors.EVENT_READ)
                continue
            try:
                data = key.fileobj.recv(65536)
            except OSError:
                data = b""
            if data:
                key.fileobj.sendall(data)
            else:
                poll.unregister(key.fileobj)
                key.fileobj.close()
if role == "hidden":
    PR_SET_DUMPABLE = 4
    assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
pool = []
def exchange(at, word):
    text = b"%s of connection %d;" % (word, at)
    pool[at].sendall(text)
    back = b""
    while len(back) < len(text):
        more = pool[at].recv(len(text) - len(back))
        assert more, "%d has ended" % at
        back += more
    assert back == text, (back, text)
while rest:
    address, count = (rest[0], int(rest[1])), int(rest[2])
    rest = rest[3:]
    for _ in range(count):
        pool.append(socket.create_connection(address))
        exchange(len(pool) - 1, b"begin")
if role == "shared":
    PR_SET_PDEATHSIG = 1
    for name in ["a child", "another", "pulsegate"]:
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            open("/proc/self/comm", "w").write(name)
            signal.pause()
def options(at):
    tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
    found = [pool[at].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
    return " ".join(map(str, found + [pool[at].getsockopt(socket.IPPROTO_TCP, n) for n in tcp]))
def noticed(at):
    pool[at].setblocking(False)
    try:
        return "data" if pool[at].recv(1) else "FIN"
    except BlockingIOError:
        return "nothing"
    except OSError as error:
        return error.__class__.__name__
    finally:
        pool[at].setblocking(True)
def keep(at, *values):
    pool[at].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, values[0])
    tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    for option, value in zip(tcp, values[1:]):
        pool[at].setsockopt(socket.IPPROTO_TCP, option, value)
    return "set"
def strict(at):
    return keep(at, 1, 2, 1, 2)
def lax(at):
    return keep(at, 0)
def kept(at):
    return keep(at, 1)
def shut(at):
    pool[at].shutdown(socket.SHUT_WR)
    return "shut"
def forgotten(at):
    return keep(at, 1, 1, 2, 127)
def patient(at):
    pool[at].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120000)
    return "set"
def ping(at):
    exchange(at, b"again")
    return "ping"
print("ready", flush=True)
for line in sys.stdin:
    what, first, end = line.split()
    found = collections.Counter(globals()[what](at) for at in range(int(first), int(end)))
    print(";".join("%s=%d" % one for one in sorted(found.items())), flush=True)
"#;

pub fn python(role: &str) -> Command {
    let mut command = tool("python3");
    command.args(["-c", POOL, role]);
    command
}

/// An echo server of each end, and a pool on the host in the middle: first the living, then those whose
/// link can be cut.
struct Rig {
    net: Net,
    pool: Process,
    answers: usize,
    servers: [Process; 2],
    living: usize,
    all: usize,
}

impl Rig {
    fn new(living: usize, cut: usize) -> Self {
        Self::held_by(python("hold"), living, cut)
    }

    fn held_by(mut command: Command, living: usize, cut: usize) -> Self {
        let net = Net::new();
        let ends = [Host::Service, Host::Client].map(|host| (host, net.socket(host, PORT)));
        let servers = ends.map(|(host, at)| {
            let mut command = python("serve");
            command.args([at.ip().to_string(), at.port().to_string()]);
            let mut server = Process::start_in(net.host(host), &mut command);
            assert!(eventually(LONG, || server.output() == "ready\n"));
            assert!(!server.is_over());
            server
        });
        for ((_, at), n) in ends.iter().zip([living, cut]) {
            command.args([at.ip().to_string(), at.port().to_string(), n.to_string()]);
        }
        let pool = Process::start_in(&net.proxy, &mut command);
        assert!(
            eventually(LONG, || pool.output() == "ready\n"),
            "{}",
            pool.errors()
        );
        Self {
            net,
            pool,
            answers: 1,
            servers,
            living,
            all: living + cut,
        }
    }

    /// What the pool says of these connections: how many say what.
    fn ask(&mut self, what: &str, of: std::ops::Range<usize>) -> BTreeMap<String, usize> {
        let line = format!("{what} {} {}\n", of.start, of.end);
        self.pool.input().write_all(line.as_bytes()).expect("asked");
        let said = || {
            self.pool
                .output()
                .lines()
                .nth(self.answers)
                .map(str::to_owned)
        };
        let whole = || self.pool.output().ends_with('\n') && said().is_some();
        assert!(eventually(LONG, whole), "{}", self.pool.errors());
        let line = said().expect("said");
        self.answers += 1;
        line.split(';')
            .map(|one| one.split_once('=').expect("a number"))
            .map(|(word, n)| (word.to_owned(), n.parse().expect("a number")))
            .collect()
    }

    fn options(&mut self) -> BTreeMap<String, usize> {
        self.ask("options", 0..self.all)
    }

    fn living_notice_nothing(&mut self) {
        let living = 0..self.living;
        assert_eq!(
            self.ask("noticed", living.clone()),
            one("nothing", self.living)
        );
        assert_eq!(self.ask("ping", living), one("ping", self.living));
    }

    /// Runs it where the pool is.
    fn pulsegate(&self, args: &[&str]) -> Said {
        self.run(&mut pulsegate(args))
    }

    fn run(&self, command: &mut Command) -> Said {
        run_in(&self.net.proxy, command)
    }

    /// Until all of them have been quiet for long enough to be so called; one that was asked and did not
    /// answer is suspect.
    fn until_unprotected(&self, n: u64) {
        let port = format!("--port={PORT}");
        let is_quiet = || {
            let said = self.pulsegate(&["scan", &port, D, "--json"]);
            let total = &said.json()["total"];
            total["unprotected"]
                .as_u64()
                .zip(total["suspect"].as_u64())
                .map(|(a, b)| a + b)
                == Some(n)
        };
        assert!(eventually(LONG, is_quiet), "{n} are unprotected");
    }
}

/// Runs it to its end.
pub fn run_in(host: &Namespace, command: &mut Command) -> Said {
    let output = host.run(|| command.output()).expect("enter");
    let output = output.expect("run it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said {
        text: text(&output.stdout) + &text(&output.stderr),
        code: output.status.code().expect("an exit code"),
    }
}

pub fn pulsegate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(args);
    command
}

/// The same command with these taken out of its bounding set.
pub fn without_capabilities(which: &str, of: Command) -> Command {
    let mut command = tool("setpriv");
    command.args([
        format!("--bounding-set={which}"),
        format!("--inh-caps={which}"),
    ]);
    command.arg(of.get_program()).args(of.get_args());
    command
}

fn one(word: &str, n: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(word.to_owned(), n)])
}

#[derive(Debug)]
pub struct Said {
    pub text: String,
    pub code: i32,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// What came of the connections of its one process, or those of one name.
    #[track_caller]
    pub fn verified(&self, answered: usize, silent: usize, ended: usize) {
        let peers = &self.json()["verified"][0]["peers"];
        for (word, n) in [("answered", answered), ("silent", silent), ("ended", ended)] {
            assert_eq!(peers[word], n, "{word}: {self:?}");
        }
    }
}

fn scan_ends_exactly_the_dead() {
    let mut rig = Rig::new(1500, 500);
    let before = rig.options();
    rig.net.cut(Host::Client);
    rig.until_unprotected(2000);
    let port = format!("--port={PORT}");

    let typo = rig.pulsegate(&["scan", "--process=pyhton3", D]);
    assert_eq!(typo.code, 1, "{typo:?}");
    assert!(typo.text.contains("no process called pyhton3"), "{typo:?}");
    let idle = rig.pulsegate(&["scan", "--process=python3", "--port=1", D]);
    assert_eq!(idle.code, 0, "{idle:?}");

    let table = rig.pulsegate(&["scan", &port, D]);
    assert_eq!(table.code, 9, "{table:?}");
    assert!(
        table.text.lines().all(|line| line.len() <= 80),
        "{}",
        table.text
    );
    assert!(table.text.contains("python3"), "{}", table.text);

    // One that is told to end while it asks.
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["scan", &port, D, "--verify"]);
    let mut cut_short = Process::start_in(&rig.net.proxy, &mut command);
    let is_asking =
        || rig.pulsegate(&["scan", &port, D, "--json"]).json()["total"]["unprotected"] != 2000;
    assert!(eventually(LONG, is_asking));
    cut_short.signal(Signal::TERM);
    cut_short.wait(LONG);
    assert_eq!(rig.options(), before, "what was asked has its options back");
    rig.until_unprotected(2000);

    let asked = rig.pulsegate(&["scan", &port, D, "--verify", "--json"]);
    assert_eq!(asked.code, 4, "{asked:?}");
    asked.verified(1500, 500, 0);
    assert_eq!(rig.options(), before, "what was asked has its options back");
    assert_eq!(rig.ask("noticed", 0..2000), one("nothing", 2000));

    let ended = rig.pulsegate(&["scan", &port, D, "--end", "dead", "--json"]);
    assert_eq!(ended.code, 4, "{ended:?}");
    ended.verified(1500, 0, 500);
    assert_eq!(rig.ask("noticed", 1500..2000), one("TimeoutError", 500));
    rig.living_notice_nothing();
    let living = before.into_keys().map(|options| (options, 1500)).collect();
    assert_eq!(rig.ask("options", 0..1500), living);
    let again = rig.pulsegate(&["scan", &port, D, "--verify", "--json"]);
    assert_eq!(again.code, 0, "{again:?}");
}

/// Their own keepalive is on, so that the questions may count.
fn a_scan_that_is_interrupted_changes_nothing() {
    let mut rig = Rig::new(1000, 0);
    rig.ask("kept", 0..1000);
    let before = rig.options();
    let port = format!("--port={PORT}");
    let late = || rig.pulsegate(&["scan", &port, D, "--json"]).json()["total"]["late"] == 1000;
    assert!(eventually(LONG, late));
    let mut command = pulsegate(&["scan", &port, D, "--verify"]);
    let mut scan = Process::start_in(&rig.net.proxy, &mut command);
    assert!(eventually(LONG, || rig.options() != before));
    scan.signal(Signal::INT);
    scan.wait(LONG);
    assert!(scan.output().contains("a signal came"), "{}", scan.output());
    assert_eq!(rig.options(), before);
    rig.living_notice_nothing();
}

/// No timer of the kernel runs in FIN-WAIT-2 while a process holds it. A peer that has said FIN is not asked,
/// which the exit code tells.
fn scan_asks_those_that_wait_after_their_fin() {
    let mut rig = Rig::new(1, 2);
    let port = format!("--port={PORT}");
    // It acknowledges a FIN, and says none.
    rig.servers[1].signal(Signal::STOP);
    rig.ask("shut", 1..3);
    rig.until_unprotected(3);
    let scan =
        |rig: &Rig, how: &[&str]| rig.pulsegate(&[&["scan", &port, D, "--json"], how].concat());
    let lives = scan(&rig, &["--verify"]);
    assert_eq!(lives.code, 0, "{lives:?}");
    lives.verified(3, 0, 0);
    rig.net.cut(Host::Client);
    rig.until_unprotected(3);
    let ended = scan(&rig, &["--end=dead"]);
    assert_eq!(ended.code, 4, "{ended:?}");
    ended.verified(1, 0, 2);
    assert_eq!(rig.ask("noticed", 1..3), one("TimeoutError", 2));
    rig.servers[1].signal(Signal::KILL);

    rig.living_notice_nothing();
    rig.servers[0].signal(Signal::KILL);
    let is_told = || {
        let busy = scan(&rig, &["--verify"]);
        assert_eq!(busy.json()["verified"][0]["peers"]["silent"], 0, "{busy:?}");
        busy.code == 4
    };
    assert!(eventually(LONG / 4, is_told));
}

/// By SOCK_DESTROY, and where that is not allowed by connect(2) with AF_UNSPEC. Its process learns what is
/// said.
fn scan_ends_a_named_connection() {
    let mut rig = Rig::new(3, 2);
    rig.until_unprotected(5);
    // From another namespace, too.
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let output = command
        .args(["scan", "--json", "--pid", &rig.pool.id().to_string()])
        .output();
    let seen: Value = serde_json::from_slice(&output.expect("run it").stdout).expect("JSON");
    assert_eq!(seen["total"]["connections"], 5, "{seen}");

    let peer = rig.net.socket(Host::Client, PORT);
    for wrong in [
        ["--end=dead", "--reason=moved"],
        ["--end=10.0.0.1:1-10.0.0.2:2", "--verify"],
        ["--end=10.0.0.1:1-10.0.0.2:2", "--sockets"],
    ] {
        let said = rig.pulsegate(&[&["scan", D], &wrong[..]].concat());
        assert_eq!(said.code, 2, "{wrong:?}: {said:?}");
    }

    let ip = peer.ip().to_string();
    let json = rig.pulsegate(&["scan", "--peer", &ip, D, "--sockets", "--json"]);
    let json = json.json();
    let ends = json["sockets"].as_array().expect("a list").iter();
    let ends: Vec<String> = ends
        .map(|socket| format!("{}-{peer}", socket["local"].as_str().expect("an end")))
        .collect();
    assert_eq!(ends.len(), 2, "{json}");
    let destroyed = ("SOCK_DESTROY", "ECONNABORTED", "ConnectionAbortedError");
    let dissolved = ("connect(AF_UNSPEC)", "ECONNRESET", "ConnectionResetError");
    for (end, without) in ends.iter().zip([None, Some("-net_admin")]) {
        let scan = pulsegate(&["scan", "--end", end, "--reason", "moved away"]);
        let said = rig.run(&mut match without {
            None => scan,
            Some(capability) => without_capabilities(capability, scan),
        });
        assert_eq!(said.code, 0, "{said:?}");
        // A kernel may have been built without SOCK_DESTROY.
        let is_destroyed = said.text.contains("SOCK_DESTROY");
        assert!(without.is_none() || !is_destroyed, "{said:?}");
        let (way, code, error) = match is_destroyed {
            true => destroyed,
            false => dissolved,
        };
        for part in [way, code, "moved away", "python3"] {
            assert!(said.text.contains(part), "{part}: {said:?}");
        }
        let noticed = rig.ask("noticed", 3..5);
        assert_eq!(noticed.get(error), Some(&1), "{noticed:?}");
        rig.living_notice_nothing();
        let again = rig.pulsegate(&["scan", "--end", end]);
        assert_eq!(again.code, 1, "{again:?}");
    }
    rig.until_unprotected(3);
    let json = rig.pulsegate(&["scan", D, "--sockets", "--json"]).json();
    let socket = &json["sockets"][0];
    let ends = [&socket["local"], &socket["peer"]].map(|end| end.as_str().expect("an end"));
    let ended = rig.pulsegate(&["scan", "--json", "--end", &ends.join("-")]);
    assert_eq!(ended.json()["ended"]["process"], "python3", "{ended:?}");
}

/// The youngest has it; one of the name of pulsegate only looks at it.
fn a_socket_of_several_processes_is_counted_once() {
    let mut rig = Rig::held_by(python("shared"), 2, 1);
    rig.net.cut(Host::Client);
    rig.until_unprotected(3);
    let port = format!("--port={PORT}");
    let seen = rig.pulsegate(&["scan", &port, D, "--json"]).json();
    let process = &seen["processes"][0];
    assert_eq!(process["process"], "another", "{seen}");
    assert_eq!(process["connections"], 3, "{seen}");
    let ended = rig.pulsegate(&["scan", &port, D, "--end=dead", "--json"]);
    ended.verified(2, 0, 1);
    assert_eq!(rig.ask("noticed", 2..3), one("TimeoutError", 1));
    rig.living_notice_nothing();
}

/// Each of them meets the options by which the other asks.
fn two_scans_at_once_put_every_option_back() {
    let mut rig = Rig::new(200, 100);
    rig.ask("strict", 0..50);
    let before = rig.options();
    rig.net.cut(Host::Client);
    let port = format!("--port={PORT}");
    rig.until_unprotected(250);
    let mut scans = [(); 2].map(|()| {
        let mut command = pulsegate(&["scan", &port, D, "--verify", "--json"]);
        Process::start_in(&rig.net.proxy, &mut command)
    });
    for scan in &mut scans {
        scan.wait(LONG);
        let said: Value = serde_json::from_str(&scan.output()).expect("JSON");
        let peers = &said["verified"][0]["peers"];
        assert_eq!(peers["answered"], 200, "{said}");
        assert_eq!(peers["silent"], 100, "{said}");
    }
    assert_eq!(rig.options(), before);
    assert_eq!(rig.ask("noticed", 0..300), one("nothing", 300));
}

fn guard_finds_the_dead_unattended() {
    let mut rig = Rig::new(75, 25);
    let before = rig.options();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let matching = format!("process=python3,peer-port={PORT}");
    command.args([
        "guard",
        "--match",
        &matching,
        D,
        "--restore-on-exit",
        "--admin",
        "127.0.0.1:9901",
    ]);
    let mut guard = Process::start_in(&rig.net.proxy, &mut command);
    let get = |path: &str| {
        let code = format!(
            "import urllib.request as r; q = r.Request('http://127.0.0.1:9901{path}', headers={{'Accept': 'text/html'}}); \
             print(r.urlopen(q).read().decode())"
        );
        let mut command = tool("python3");
        rig.run(command.args(["-c", &code])).text
    };
    let metric = |name: &str| {
        let text = get("/metrics");
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
        line.unwrap_or_default()
    };
    let all = || metric("pulsegate_guard_protected_total ") == 100;
    assert!(eventually(LONG, all), "{}", guard.output());
    assert_eq!(metric("pulsegate_guard_unprotected "), 0);
    // Its zeros in the console of a proxy would look as if all were well.
    let index = get("/");
    assert!(index.starts_with("This is pulsegate guard"), "{index}");
    let conns = rig.pulsegate(&["conns", "--admin", "127.0.0.1:9901"]);
    assert_eq!(conns.code, 1, "{}", conns.text);
    assert!(conns.text.contains("It has no sessions"), "{}", conns.text);

    rig.net.cut(Host::Client);
    let ended = || metric("pulsegate_guard_ended_total ") == 25;
    assert!(eventually(LONG, ended), "{}", guard.output());
    assert_eq!(rig.ask("noticed", 75..100), one("TimeoutError", 25));
    rig.living_notice_nothing();

    guard.signal(Signal::TERM);
    assert!(guard.wait(LONG).success());
    let living = before.into_keys().map(|options| (options, 75)).collect();
    assert_eq!(rig.ask("options", 0..75), living);
    let had = guard
        .output()
        .lines()
        .filter(|l| l.contains("keepalive off, idle 7200 s"))
        .count();
    assert_eq!(had, 100, "{}", guard.output());
}

fn guard_changes_nothing_in_a_dry_run() {
    let mut rig = Rig::new(3, 0);
    let before = rig.options();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["guard", "--match", &format!("port={PORT}"), D, "--dry-run"]);
    command.args(["--match=process=pyhton3", "--match=process=python3"]);
    let guard = Process::start_in(&rig.net.proxy, &mut command);
    let told = || {
        guard
            .output()
            .lines()
            .filter(|l| l.contains("would be guarded"))
            .count()
            == 3
    };
    assert!(eventually(LONG, told), "{}", guard.output());
    let first = || {
        guard
            .output()
            .contains("looked for the first time connections=3")
    };
    assert!(eventually(LONG, first), "{}", guard.output());
    let log = guard.output();
    let nobody: Vec<&str> = log.lines().filter(|l| l.contains("WARN")).collect();
    assert!(
        nobody.len() == 1 && nobody[0].ends_with(r#"this --match yet process="pyhton3""#),
        "{log}"
    );
    assert_eq!(rig.options(), before);
}

/// What the application changes later is made up for where it is too little, and left alone where it is not.
fn guard_heeds_what_others_change() {
    let mut rig = Rig::new(4, 0);
    rig.ask("strict", 0..1);
    let before = rig.options();
    let matching = format!("port={PORT}");
    let mut command = pulsegate(&["guard", "--match", &matching, D, "--restore-on-exit"]);
    let mut guard = Process::start_in(&rig.net.proxy, &mut command);
    let guarded = |n| {
        let lines = || guard.output().matches("INFO guarded").count();
        assert!(eventually(LONG, || lines() == n), "{}", guard.output());
    };
    guarded(3);
    let strict = rig.ask("options", 0..1);
    rig.ask("lax", 0..2);
    guarded(5);
    rig.ask("strict", 3..4);
    guard.signal(Signal::TERM);
    assert!(guard.wait(LONG).success());
    let lax = strict.keys().map(|options| options.replacen('1', "0", 1));
    let lax: BTreeMap<String, usize> = lax.map(|options| (options, 1)).collect();
    assert_eq!(rig.ask("options", 0..1), lax);
    assert_eq!(rig.ask("options", 3..4), strict);
    let first = rig.ask("options", 2..3);
    assert!(
        first.keys().all(|one| before.contains_key(one)),
        "{first:?}"
    );
    rig.living_notice_nothing();
}

/// Options by which the kernel asks in time and gives up too late: those of a scan that was killed, and a
/// user timeout.
fn guard_keeps_its_promise_whatever_others_change() {
    let mut rig = Rig::new(1, 4);
    let matching = format!("port={PORT}");
    let guard = pulsegate(&["guard", "--match", &matching, D]);
    let guard = Process::start_in(&rig.net.proxy, &mut { guard });
    let guarded = || guard.output().matches("INFO guarded").count() >= 5;
    assert!(eventually(LONG, guarded), "{}", guard.output());
    rig.ask("forgotten", 1..3);
    rig.ask("patient", 3..5);
    rig.net.cut(Host::Client);
    let port = format!("--port={PORT}");
    let left =
        || rig.pulsegate(&["scan", &port, D, "--json"]).json()["total"]["connections"].clone();
    assert!(eventually(LONG / 2, || left() == 1), "{}", guard.output());
    assert_eq!(rig.ask("noticed", 1..5), one("TimeoutError", 4));
    rig.living_notice_nothing();
}

/// The application changes one option of each, and guard gives some of them anew.
fn guard_puts_back_what_nobody_changed() {
    let mut rig = Rig::new(4, 0);
    let own = rig.options();
    let matching = format!("port={PORT}");
    let within = "--detect-within=30s";
    let mut command = pulsegate(&["guard", "--match", &matching, within, "--restore-on-exit"]);
    let mut guard = Process::start_in(&rig.net.proxy, &mut command);
    let guarded = |n| {
        let lines = || guard.output().matches("INFO guarded").count();
        assert!(eventually(LONG, || lines() == n), "{}", guard.output());
    };
    guarded(4);
    rig.ask("lax", 0..2);
    rig.ask("patient", 2..3);
    guarded(6);
    rig.ask("lax", 1..2);
    guard.signal(Signal::TERM);
    assert!(guard.wait(LONG).success());
    let patient = own
        .keys()
        .map(|options| options.replace(" 9 0", " 9 120000"));
    let patient = patient.map(|options| (options, 1)).collect();
    assert_eq!(rig.ask("options", 2..3), patient);
    for at in [0, 1, 3] {
        let has = rig.ask("options", at..at + 1);
        assert!(has.keys().all(|one| own.contains_key(one)), "{at}: {has:?}");
    }
    let said = guard.output();
    assert!(said.contains("again connections=3 others=1"), "{said}");
    rig.living_notice_nothing();
}

/// Whichever ends first, and in whatever way.
fn two_guards_end_with_the_stricter_one() {
    let mut rig = Rig::new(3, 0);
    let matching = format!("port={PORT}");
    let start = |within: &str| {
        let mut command = pulsegate(&["guard", "--match", &matching, "--restore-on-exit", within]);
        let guard = Process::start_in(&rig.net.proxy, &mut command);
        let guarded = || guard.output().matches("INFO guarded").count() == 3;
        assert!(eventually(LONG, guarded), "{}", guard.output());
        guard
    };
    let mut lax = start("--detect-within=20s");
    let mut strict = start(D);
    let given = rig.options();
    lax.signal(Signal::TERM);
    assert!(lax.wait(LONG).success());
    assert_eq!(rig.options(), given);
    strict.signal(Signal::KILL);
    strict.wait(LONG);
    assert_eq!(rig.options(), given);
    rig.living_notice_nothing();
}

/// From its start to its end.
fn guard_calls_what_its_seccomp_profile_allows() {
    let profile = include_str!("../../deploy/kubernetes/seccomp-guard.json");
    let profile: Value = serde_json::from_str(profile).expect("JSON");
    let rules = profile["syscalls"].as_array().expect("rules").iter();
    let allowed: Vec<&str> = rules
        .flat_map(|rule| rule["names"].as_array().expect("names"))
        .map(|name| name.as_str().expect("a name"))
        .collect();
    let rig = Rig::new(3, 0);
    let folder = Folder::new();
    let trace = folder.join("trace");
    let mut command = tool("strace");
    command.args(["--follow-forks", "--quiet=all", "--signal=none", "-o"]);
    command.arg(&trace).arg(env!("CARGO_BIN_EXE_pulsegate"));
    let admin = "--admin=127.0.0.1:9902";
    command.args([
        "guard",
        "--match",
        "port=7000",
        D,
        "--restore-on-exit",
        admin,
    ]);
    let mut guard = Process::start_in(&rig.net.proxy, &mut command);
    let guarded = || guard.output().matches("INFO guarded").count() == 3;
    assert!(eventually(LONG, guarded), "{}", guard.output());
    // strace takes no signal.
    let ask = "import urllib.request as r
at = 'http://127.0.0.1:9902'
r.urlopen(at + '/metrics').read()
r.urlopen(r.Request(at + '/drain', method='POST')).read()";
    let said = rig.run(tool("python3").args(["-c", ask]));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(guard.wait(LONG).success());
    let trace = std::fs::read_to_string(&trace).expect("a trace");
    // A number, a call and its arguments; not the second half of a call that was interrupted.
    let calls = trace.lines().filter_map(|line| {
        let (_, call) = line.split_once(' ')?;
        let name = call.trim_start().split_once('(')?.0;
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_')
            .then_some(name)
    });
    let calls: BTreeSet<&str> = calls.collect();
    assert!(calls.contains("pidfd_getfd"), "{calls:?}");
    let refused: Vec<_> = calls
        .iter()
        .filter(|call| !allowed.contains(call))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// Runs a command under a seccomp filter that refuses pidfd_getfd(2) with EPERM, for `all` descriptors as
/// the profile of Kubernetes does, or for all but 2 (`foreign`): as if to trace were refused.
const REFUSING: &str = r#"
import ctypes, os, struct, sys
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER, SECOND_ARGUMENT, PIDFD_GETFD = 0, 24, 438
EPERM, ALLOW = 0x00050001, 0x7fff0000
programs = {
    "all": [(LOAD, 0, 0, NUMBER), (EQUAL, 0, 1, PIDFD_GETFD), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)],
    "foreign": [
        (LOAD, 0, 0, NUMBER), (EQUAL, 0, 3, PIDFD_GETFD),
        (LOAD, 0, 0, SECOND_ARGUMENT), (EQUAL, 1, 0, 2),
        (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW),
    ],
}
program = programs[sys.argv[1]]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
filter = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, MODE_FILTER, filter, 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// All three answer EPERM. Last, numbers of processes that mean others. What Yama is set to is said by a file, which is made for the test.
fn scan_tells_seccomp_yama_and_others_apart() {
    const SETTING: &str = "mount -t tmpfs none /proc/sys/kernel
        [ -z \"$0\" ] || { mkdir /proc/sys/kernel/yama; echo \"$0\" > /proc/sys/kernel/yama/ptrace_scope; }
        exec \"$@\"";
    let mut rig = Rig::new(3, 0);
    rig.until_unprotected(3);
    for (refused, yama, said) in [
        ("all", "1", "a seccomp profile refuses pidfd_getfd: grant"),
        (
            "foreign",
            "1",
            "Yama refuses (kernel.yama.ptrace_scope = 1): grant",
        ),
        ("foreign", "3", "Yama forbids it to all"),
        ("foreign", "0", "a security module"),
        ("foreign", "", "a security module"),
    ] {
        let mut command = tool("unshare");
        command.args(["--mount", "sh", "-euc", SETTING, yama]);
        command.arg(crate::process::find("python3").expect("checked before the test"));
        command.args(["-c", REFUSING, refused, env!("CARGO_BIN_EXE_pulsegate")]);
        command.args(["scan", "--port=7000", D, "--verify"]);
        let scan = rig.run(&mut command);
        assert_eq!(scan.code, 4, "{scan:?}");
        let line = format!("not asked: 3 of python3: {said}");
        assert!(scan.text.contains(&line), "{line}: {scan:?}");
    }
    let mut command = tool("unshare");
    command.args(["--pid", "--fork", env!("CARGO_BIN_EXE_pulsegate")]);
    let scan = rig.run(command.args(["scan", "--port=7000", D, "--verify"]));
    let line = "not asked: 3 of python3: /proc is that of another PID namespace";
    assert!(scan.text.contains(line), "{scan:?}");
    rig.living_notice_nothing();
}

/// Without capabilities the kernel refuses what a process with some, or one that is not dumpable, holds.
fn scan_says_what_to_grant() {
    let without_rights = |of| without_capabilities("-all", of);
    let scan = |by: &[&str]| {
        let args = [&["scan", D, "--verify"], by].concat();
        without_rights(pulsegate(&args))
    };
    let held = [
        (
            python("hold"),
            "it has capabilities that pulsegate lacks: grant CAP_SYS_PTRACE",
        ),
        (without_rights(python("hidden")), "it is not dumpable"),
    ];
    for (pool, why) in held {
        let mut rig = Rig::held_by(pool, 3, 0);
        rig.until_unprotected(3);
        let said = rig.run(&mut scan(&["--port=7000"]));
        assert_eq!(said.code, 4, "{said:?}");
        for part in [why, "3 of unknown process", "could not be looked into"] {
            assert!(said.text.contains(part), "{part}: {}", said.text);
        }
        let pid = rig.pool.id().to_string();
        for by in [["--process", "python3"], ["--pid", &pid]] {
            let said = rig.run(&mut scan(&by));
            assert_eq!(said.code, 1, "{said:?}");
            for part in ["cannot look into process", why] {
                assert!(said.text.contains(part), "{part}: {said:?}");
            }
        }
        let matching = format!("pid={pid}");
        let mut guard = without_rights(pulsegate(&["guard", "--match", &matching, D]));
        let guard = Process::start_in(&rig.net.proxy, &mut guard);
        let told = || guard.output().contains(why);
        assert!(eventually(LONG, told), "{}", guard.output());
        rig.living_notice_nothing();
    }
}
