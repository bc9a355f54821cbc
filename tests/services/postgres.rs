//! PostgreSQL: pgbench, COPY of a large table, a session that idles, and a client that vanishes
//! with a row locked.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::sys::netns::Namespace;
use rustix::process::Signal;

use crate::Case;
use crate::bytes::expect_same;
use crate::process::{Account, Folder, Process, free_address, run, tool};
use crate::pulsegate::{Pulsegate, closed};
use crate::support::certificates::Certified;
use crate::support::{Host, Net, Proxy, eventually, ms};

const SERVER: &[&str] = &["initdb", "postgres", "psql"];

pub const CASES: &[Case] = &[
    Case::new(
        "postgres_copies_a_table_byte_exact",
        SERVER,
        postgres_copies_a_table_byte_exact,
    ),
    Case::new(
        "pgbench_runs_without_error",
        &["initdb", "postgres", "pgbench"],
        pgbench_runs_without_error,
    ),
    Case::new(
        "a_psql_session_that_idles_is_not_dead",
        SERVER,
        a_psql_session_that_idles_is_not_dead,
    ),
    Case::new(
        "a_vanished_client_frees_its_row_lock",
        SERVER,
        a_vanished_client_frees_its_row_lock,
    )
    .isolated(),
];

const PROMPT: Duration = Duration::from_secs(30);

/// A PostgreSQL of the test's own.
pub struct Postgres {
    _process: Process,
    _folder: Folder,
    pub address: SocketAddr,
}

impl Postgres {
    /// Starts it on the loopback.
    pub fn start() -> Self {
        Self::start_at(free_address(), Process::start)
    }

    /// Starts it on a host of the private network.
    fn start_in(host: &Namespace, address: SocketAddr) -> Self {
        Self::start_at(address, |command| Process::start_in(host, command))
    }

    pub fn start_at(address: SocketAddr, start: impl Fn(&mut Command) -> Process) -> Self {
        Self::start_by(address, None, start)
    }

    /// The same on the loopback with a certificate.
    pub fn start_tls(own: &Certified) -> Self {
        Self::start_by(free_address(), Some(own), Process::start)
    }

    fn start_by(
        address: SocketAddr,
        own: Option<&Certified>,
        start: impl Fn(&mut Command) -> Process,
    ) -> Self {
        let folder = Folder::new();
        // It refuses to run as root.
        let account = Account::of(&["postgres", "nobody"]);
        account.owns(folder.path());
        let data = folder.join("data");
        let mut initdb = tool("initdb");
        initdb
            .args(["--no-sync", "-A", "trust", "-U", "postgres"])
            .args(["--locale=C", "-E", "UTF8", "-D"])
            .arg(&data)
            .current_dir(folder.path());
        account.runs(&mut initdb);
        run(&mut initdb);
        let mut rules = OpenOptions::new()
            .append(true)
            .open(data.join("pg_hba.conf"));
        let rules = rules.as_mut().expect("open the rules");
        writeln!(rules, "host all all 10.0.0.0/8 trust").expect("write the rules");

        let mut command = tool("postgres");
        command
            .arg("-D")
            .arg(&data)
            .args(["-p", &address.port().to_string()])
            .args(["-h", &address.ip().to_string(), "-k", ""])
            .current_dir(folder.path());
        // The machine will not crash, and a table is read from its start.
        for setting in [
            "fsync=off",
            "full_page_writes=off",
            "synchronize_seqscans=off",
        ] {
            command.args(["-c", setting]);
        }
        if let Some(own) = own {
            // It must own its key, and nobody else may read that.
            for (name, from) in [("server.crt", &own.chain), ("server.key", &own.key)] {
                let file = data.join(name);
                fs::copy(from, &file).expect("copied");
                fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("closed");
                account.owns(&file);
            }
            command.args(["-c", "ssl=on"]);
        }
        account.runs(&mut command);
        // At once, whatever sessions there are.
        let mut process = start(&mut command).ends_by(Signal::QUIT);
        process.wait_until(|said| said.contains("ready to accept connections"));
        Self {
            _process: process,
            _folder: folder,
            address,
        }
    }
}

/// A client of PostgreSQL that connects to this address.
pub fn client(name: &str, to: SocketAddr) -> Command {
    let mut command = tool(name);
    command
        .env("PGHOST", to.ip().to_string())
        .env("PGPORT", to.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("PGCONNECT_TIMEOUT", "30");
    command
}

/// psql, without the user's settings, with bare output, that stops at an error.
pub fn psql(to: SocketAddr) -> Command {
    let mut command = client("psql", to);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    command
}

#[track_caller]
pub fn query(to: SocketAddr, sql: &str) -> String {
    run(psql(to).args(["-c", sql])).trim().to_owned()
}

fn pgbench_runs_without_error() {
    let postgres = Postgres::start();
    let proxy = Pulsegate::start(postgres.address, &["--detect-within", "3s"]);
    run(client("pgbench", proxy.address).args(["-i", "-q", "-s", "2"]));
    let counted = run(client("psql", proxy.address).args([
        "-X",
        "-At",
        "-c",
        "select count(*) from pgbench_accounts",
    ]));
    assert_eq!(counted.trim(), "200000");
    let mut bench = client("pgbench", proxy.address);
    bench.args(["-n", "-c", "8", "-j", "2", "-t", "200"]);
    let report = run(&mut bench);
    let expected = "number of transactions actually processed: 1600/1600";
    assert!(report.contains(expected), "{report}");
    // A session for each transaction.
    let report =
        run(client("pgbench", proxy.address).args(["-n", "-C", "-S", "-c", "4", "-t", "25"]));
    let expected = "number of transactions actually processed: 100/100";
    assert!(report.contains(expected), "{report}");
    let metrics = proxy.expect_settled();
    let ends = metrics.excerpt("pulsegate_connections_closed_total");
    let all = metrics.value("pulsegate_connections_closed_total", &[]);
    assert_eq!(closed(&metrics, "finished"), all, "{ends}");
    assert!(all >= 110.0, "{ends}");
}

/// Rows of a little more than 100 bytes.
const ROWS: u64 = 1_100_000;

fn write_rows(path: &Path) {
    let mut file = BufWriter::new(std::fs::File::create(path).expect("create a file"));
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for row in 0..ROWS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let [a, b, c] = [x, x.rotate_left(21) ^ row, !x];
        writeln!(file, "{row}\t{a:032x}{b:032x}{c:032x}").expect("write a file");
    }
    file.flush().expect("write a file");
}

fn postgres_copies_a_table_byte_exact() {
    let postgres = Postgres::start();
    let proxy = Pulsegate::start(postgres.address, &["--detect-within", "5s"]);
    let folder = Folder::new();
    let [original, through, direct] = ["original", "through", "direct"].map(|n| folder.join(n));
    write_rows(&original);
    assert!(std::fs::metadata(&original).is_ok_and(|m| m.len() > 100_000_000));

    query(
        proxy.address,
        "create unlogged table big (id bigint, text text)",
    );
    let copy =
        |to, how: &str, path: &Path| query(to, &format!(r"\copy big {how} '{}'", path.display()));
    copy(proxy.address, "from", &original);
    let digest = "select count(*), md5(string_agg(md5(text), '' order by id)) from big";
    assert!(query(postgres.address, digest).starts_with(&ROWS.to_string()));
    // What arrived, and then what came back: a fault on the way in would show in both.
    copy(postgres.address, "to", &direct);
    expect_same(&original, &direct);
    copy(proxy.address, "to", &through);
    expect_same(&original, &through);
    proxy.expect_all_closed("finished", 3);
}

/// A psql that is given one line after another.
pub struct Session {
    process: Process,
}

impl Session {
    /// Starts it.
    pub fn start(to: SocketAddr) -> Self {
        let process = Process::start(&mut psql(to));
        Self { process }
    }

    /// Ends it in good order.
    #[track_caller]
    pub fn end(mut self) {
        assert!(self.process.wait(PROMPT).success());
    }

    /// Has it execute SQL and waits for its answer to contain something new.
    #[track_caller]
    pub fn ask(&mut self, sql: &str) -> String {
        let before = self.process.output().len();
        writeln!(self.process.input(), "{sql};\n\\echo done").expect("psql takes input");
        let answer = |all: String| all[before..].strip_suffix("done\n").map(str::to_owned);
        let mut found = None;
        eventually(PROMPT, || {
            found = answer(self.process.output());
            found.is_some()
        });
        found
            .unwrap_or_else(|| panic!("no answer to {sql}"))
            .trim()
            .to_owned()
    }
}

fn a_psql_session_that_idles_is_not_dead() {
    let postgres = Postgres::start();
    let proxy = Pulsegate::start(postgres.address, &["--detect-within", "3s"]);
    let mut session = Session::start(proxy.address);
    let backend = session.ask("select pg_backend_pid()");
    thread::sleep(ms(8000));
    assert_eq!(session.ask("select pg_backend_pid()"), backend);
    // The service is busy and says nothing: not dead either.
    assert_eq!(session.ask("select 'slept' from pg_sleep(6)"), "slept");
    session.end();
    proxy.expect_all_closed("finished", 1);
}

fn a_vanished_client_frees_its_row_lock() {
    let net = Arc::new(Net::new());
    let service = net.service();
    let _postgres = Postgres::start_in(net.host(Host::Service), service);
    let proxy = Proxy::start(&net, &["--detect-within", "3s", "--probe-interval", "1s"]);
    let open = |host: Host| {
        let mut command = psql(net.listener(host));
        Session {
            process: Process::start_in(net.host(host), &mut command),
        }
    };
    let mut healthy = open(Host::Healthy);
    healthy.ask("create table t (id int primary key, v int); insert into t values (1, 10)");
    let mut holder = open(Host::Client);
    assert_eq!(
        holder.ask("begin; select v from t where id = 1 for update"),
        "10"
    );
    let skipped = healthy.ask("select v from t where id = 1 for update skip locked");
    assert_eq!(skipped, "", "the row is locked");

    // Every answer must have been acknowledged: a client that vanishes with data on its way to it
    // is found by another evidence.
    thread::sleep(ms(1000));
    let cut = Instant::now();
    net.cut(Host::Client);
    let update = "update t set v = v + 1 where id = 1 returning v";
    assert_eq!(healthy.ask(update), "11");
    let after = cut.elapsed();
    assert!(after > ms(1500), "freed before anybody can know: {after:?}");
    // 3 s, and what a busy machine may add.
    assert!(after < ms(3300 + 5000), "freed only after {after:?}");

    eventually(PROMPT, || closed(&proxy.metrics(), "downstream_dead") > 0.0);
    let metrics = proxy.metrics();
    let all = metrics.excerpt("pulsegate_half_open") + &metrics.excerpt("pulsegate_conn");
    let found =
        |labels: &[(&str, &str)]| metrics.value("pulsegate_half_open_detected_total", labels);
    let keepalive = found(&[("leg", "downstream"), ("evidence", "keepalive")]);
    assert_eq!((keepalive, found(&[])), (1.0, 1.0), "{all}");
    assert_eq!(closed(&metrics, "downstream_dead"), 1.0, "{all}");
    healthy.end();
}
