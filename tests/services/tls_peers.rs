//! TLS with the clients and services that people have: curl, nginx, Redis, PostgreSQL, stunnel, HAProxy.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::Case;
use crate::bytes::{Stream, expect_end, expect_file, write_file};
use crate::http::{Nginx, curl};
use crate::many::{self, accept};
use crate::postgres::{Postgres, psql, query};
use crate::process::{Process, free_address, run, tool};
use crate::pulsegate::{Pulsegate, connect};
use crate::redis::Redis;
use crate::support::certificates::{Certified, Subject};
use crate::tls::{Keys, PROMPT, Setup, expect_failure, expect_logged, listens};

pub const CASES: &[Case] = &[
    Case::new(
        "curl_and_nginx_in_tls_are_byte_exact",
        &["nginx", "curl"],
        curl_and_nginx_in_tls_are_byte_exact,
    ),
    Case::new(
        "redis_cli_speaks_tls_to_a_plain_redis",
        &["redis-server", "redis-cli", "redis-benchmark"],
        redis_cli_speaks_tls_to_a_plain_redis,
    ),
    Case::new(
        "redis_with_tls_serves_plain_clients",
        &["redis-server", "redis-cli", "redis-benchmark"],
        redis_with_tls_serves_plain_clients,
    ),
    Case::new(
        "postgres_negotiates_its_own_tls_through_a_plain_listener",
        &["initdb", "postgres", "psql"],
        postgres_negotiates_its_own_tls_through_a_plain_listener,
    ),
    Case::new(
        "postgres_in_tls_from_the_first_byte",
        &["initdb", "postgres", "psql", "stunnel4"],
        postgres_in_tls_from_the_first_byte,
    ),
    Case::new(
        "stunnel_before_and_behind_is_byte_exact",
        &["stunnel4"],
        stunnel_before_and_behind_is_byte_exact,
    ),
    Case::new(
        "haproxy_before_and_behind_speaks_tls",
        &["haproxy"],
        haproxy_before_and_behind_speaks_tls,
    ),
];

const LARGE: usize = 20_000_000;
const SMALL: usize = 1_000;

fn terminate(setup: &Setup, service: SocketAddr, more: &str) -> Pulsegate {
    let keys = Keys {
        tls: setup.tls(more),
        ..Keys::default()
    };
    setup.start(service, keys)
}

fn originate(setup: &Setup, service: SocketAddr, more: &str) -> Pulsegate {
    let keys = Keys {
        upstream_tls: setup.upstream_tls(more),
        ..Keys::default()
    };
    setup.start(service, keys)
}

/// The keys of `upstream.tls` for a certificate of pulsegate's own.
fn showing(own: &Certified) -> String {
    let (chain, key) = (own.chain.display(), own.key.display());
    format!("certificate: '{chain}', key: '{key}'")
}

// --- HTTP -------------------------------------------------------------------------------------

/// Downloads and uploads through `url`; returns the number of connections.
fn fetch(nginx: &Nginx, url: &str, more: &[&str]) -> usize {
    let got = nginx.folder.join("got");
    for size in [SMALL, LARGE] {
        let url = format!("{url}/{size}");
        run(curl().args(more).arg("-o").arg(&got).arg(url));
        expect_file(&got, size as u64, size);
    }
    let file = nginx.folder.join("www").join(LARGE.to_string());
    let put = format!("{url}/put");
    run(curl().args(more).arg("-T").arg(&file).arg(put));
    expect_file(&nginx.folder.join("www/put"), LARGE as u64, LARGE);
    3
}

fn curl_and_nginx_in_tls_are_byte_exact() {
    let setup = Setup::new();
    let (ca, own) = (
        setup.ca.display().to_string(),
        Subject::named(&["curl.example"]),
    );
    let own = setup.certify("own", own);
    let own = [
        own.chain.display().to_string(),
        own.key.display().to_string(),
    ];
    let trusts = ["--cacert", &ca];
    let shows = ["--cert", &own[0], "--key", &own[1]];
    let sizes = [SMALL, LARGE];

    let plain = Nginx::start_with(&sizes, "");
    let demands = format!("client_ca: '{ca}'");
    let front = terminate(&setup, plain.address, &demands);
    let url = format!("https://localhost:{}", front.address.port());
    let mut sessions = 0;
    for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
        sessions += fetch(&plain, &url, &[&trusts[..], &shows, version].concat());
    }
    expect_logged(&front, "curl.example");
    front.expect_all_closed("finished", sessions);
    let refused = curl().args(trusts).arg(&url).output().expect("run curl");
    assert!(!refused.status.success());
    expect_failure(&front, "downstream", "no_client_certificate");
    let refused = curl().args(shows).arg(&url).output().expect("run curl");
    // "SSL certificate problem": it does not trust us, and says so.
    assert_eq!(refused.status.code(), Some(60));
    expect_failure(&front, "downstream", "refused_by_peer");

    let tls = Nginx::start_tls(&sizes, &setup.server);
    let back = originate(&setup, tls.address, "");
    fetch(&tls, &format!("http://{}", back.address), &[]);
    // nginx says no last word to a client that has said one: a reason of its own, and not `finished`.
    back.expect_settled();

    let keys = Keys {
        tls: setup.tls(""),
        upstream_tls: setup.upstream_tls(""),
        ..Keys::default()
    };
    let both = setup.start(tls.address, keys);
    let url = format!("https://localhost:{}", both.address.port());
    fetch(&tls, &url, &trusts);
    both.expect_settled();
}

// --- Redis ------------------------------------------------------------------------------------

/// A large value in and out, and what redis-benchmark does.
fn use_redis(setup: &Setup, to: SocketAddr, tls: &[&str]) {
    let (original, got) = (setup.folder.join("value"), setup.folder.join("value-got"));
    write_file(&original, 7, LARGE);
    let command = |name: &str| {
        let mut command = tool(name);
        command
            .args(["-h", "127.0.0.1", "-p", &to.port().to_string()])
            .args(tls);
        command
    };
    let status = command("redis-cli")
        .args(["-x", "set", "value"])
        .stdin(fs::File::open(&original).expect("a file"))
        .output()
        .expect("run redis-cli");
    assert_eq!(
        String::from_utf8_lossy(&status.stdout),
        "OK\n",
        "{status:?}"
    );
    let status = command("redis-cli")
        .args(["get", "value"])
        .stdout(fs::File::create(&got).expect("a file"))
        .status();
    assert!(status.expect("run redis-cli").success());
    let bytes = fs::metadata(&got).expect("a file").len();
    assert_eq!(bytes, LARGE as u64 + 1, "redis-cli adds a line feed");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&got)
        .expect("a file");
    file.set_len(LARGE as u64).expect("cut");
    expect_file(&got, 7, LARGE);
    let mut benchmark = command("redis-benchmark");
    let report = run(benchmark.args(["-q", "-n", "4000", "-c", "20", "-t", "set,get,lpush"]));
    assert!(report.contains("GET: "), "{report}");
}

fn redis_cli_speaks_tls_to_a_plain_redis() {
    let setup = Setup::new();
    let redis = Redis::start();
    let front = terminate(&setup, redis.address, "");
    let ca = setup.ca.display().to_string();
    use_redis(&setup, front.address, &["--tls", "--cacert", &ca]);
    front.expect_active(0);
    // Without --tls.
    let mut plain = tool("redis-cli");
    plain.args([
        "-h",
        "127.0.0.1",
        "-p",
        &front.address.port().to_string(),
        "ping",
    ]);
    let said = plain.output().expect("run redis-cli");
    assert!(!String::from_utf8_lossy(&said.stdout).contains("PONG"));
    expect_failure(&front, "downstream", "plain_text");
}

fn redis_with_tls_serves_plain_clients() {
    let setup = Setup::new();
    let open = Redis::start_tls(&setup.server, &setup.ca, "no");
    let back = originate(&setup, open.address, "");
    use_redis(&setup, back.address, &[]);
    back.expect_settled();
    // It demands a certificate, which a client of ours cannot be asked for.
    let own = setup.certify("own", Subject::named(&["pulsegate.example"]));
    let closed = Redis::start_tls(&setup.server, &setup.ca, "yes");
    let back = originate(&setup, closed.address, &showing(&own));
    use_redis(&setup, back.address, &[]);
    back.expect_settled();
}

// --- PostgreSQL -------------------------------------------------------------------------------

/// As a client that demands TLS, and the right name.
fn strict_psql(setup: &Setup, to: SocketAddr) -> Command {
    let mut command = psql(to);
    command
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", &setup.ca)
        .args([
            "-c",
            "select version from pg_stat_ssl where pid = pg_backend_pid()",
        ]);
    command
}

/// Client and server agree on TLS inside of their protocol: pulsegate passes that on, and cannot take part.
fn postgres_negotiates_its_own_tls_through_a_plain_listener() {
    let setup = Setup::new();
    let postgres = Postgres::start_tls(&setup.server);
    let plain = setup.start(postgres.address, Keys::default());
    let version = run(&mut strict_psql(&setup, plain.address));
    assert_eq!(version.trim(), "TLSv1.3");
    plain.expect_settled();

    let front = terminate(&setup, postgres.address, "");
    let refused = strict_psql(&setup, front.address)
        .output()
        .expect("run psql");
    assert!(!refused.status.success(), "{refused:?}");
    expect_failure(&front, "downstream", "plain_text");
}

/// `sslnegotiation=direct` does so from version 17 on; stunnel does it for older clients.
fn postgres_in_tls_from_the_first_byte() {
    let setup = Setup::new();
    let postgres = Postgres::start();
    let front = terminate(&setup, postgres.address, "alpn: [postgresql]");
    let tunnel = stunnel_to(&setup, front.address);
    assert_eq!(query(tunnel.address, "select 6 * 7"), "42");
    let rows = query(
        tunnel.address,
        "select sum(n) from generate_series(1, 100000) n",
    );
    assert_eq!(rows, "5000050000");
    front.expect_all_closed("finished", 2);

    let help = run(psql(front.address).arg("--version"));
    let version = help
        .split(|c: char| !c.is_ascii_digit())
        .find(|n| !n.is_empty());
    if version
        .and_then(|n| n.parse::<u32>().ok())
        .is_some_and(|n| n >= 17)
    {
        let mut direct = strict_psql(&setup, front.address);
        direct.env("PGSSLNEGOTIATION", "direct");
        // What the server says of its own leg, which is plain.
        assert_eq!(run(&mut direct).trim(), "");
    }
}

// --- stunnel and HAProxy ----------------------------------------------------------------------

/// A peer with a plain side and one of TLS.
struct Tunnel {
    _process: Process,
    address: SocketAddr,
}

fn stunnel(setup: &Setup, name: &str, keys: &str, address: SocketAddr) -> Process {
    let text = format!(
        "foreground = yes\npid =\nsyslog = no\nTIMEOUTclose = 10\n[{name}]\naccept = {address}\n{keys}\n"
    );
    let file = setup
        .folder
        .join(&format!("stunnel-{name}-{}.conf", address.port()));
    fs::write(&file, text).expect("written");
    let mut process = Process::start(tool("stunnel4").arg(file));
    // A connection would be passed on.
    process.wait_until(|_| listens(address));
    process
}

/// Plain at its address, TLS to `to`, whose certificate it verifies.
fn stunnel_to(setup: &Setup, to: SocketAddr) -> Tunnel {
    let (address, ca) = (free_address(), setup.ca.display());
    let keys = format!(
        "client = yes\nconnect = {to}\nCAfile = {ca}\nverifyChain = yes\ncheckHost = localhost"
    );
    Tunnel {
        _process: stunnel(setup, "client", &keys, address),
        address,
    }
}

/// TLS at its address, plain to `to`.
fn stunnel_from(setup: &Setup, to: SocketAddr) -> Tunnel {
    let (address, Certified { chain, key }) = (free_address(), &setup.server);
    let (chain, key) = (chain.display(), key.display());
    let keys = format!("connect = {to}\ncert = {chain}\nkey = {key}");
    Tunnel {
        _process: stunnel(setup, "server", &keys, address),
        address,
    }
}

fn haproxy_to(setup: &Setup, to: SocketAddr) -> Tunnel {
    let ca = setup.ca.display();
    let server =
        format!("{to} ssl verify required ca-file {ca} verifyhost localhost sni str(localhost)");
    haproxy_of(setup, "", &server)
}

fn haproxy_from(setup: &Setup, to: SocketAddr) -> Tunnel {
    // One file has both.
    let both = setup.folder.join("both.pem");
    let read = |path: &Path| fs::read_to_string(path).expect("a file");
    let text = read(&setup.server.chain) + &read(&setup.server.key);
    fs::write(&both, text).expect("written");
    haproxy_of(
        setup,
        &format!("ssl crt {}", both.display()),
        &to.to_string(),
    )
}

fn haproxy_of(setup: &Setup, bind: &str, server: &str) -> Tunnel {
    let address = free_address();
    let text = format!("listen l\n  mode tcp\n  bind {address} {bind}\n  server s {server}\n");
    let file = setup
        .folder
        .join(&format!("haproxy-{}.cfg", address.port()));
    let defaults = "defaults\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n";
    fs::write(&file, format!("{defaults}{text}\n")).expect("written");
    let mut process = Process::start(tool("haproxy").args(["-db", "-f"]).arg(&file));
    process.wait_until(|_| listens(address));
    Tunnel {
        _process: process,
        address,
    }
}

/// Each way at once, to and from a service of our own. Nobody ends before all has come: stunnel drops what it
/// still has for a peer that has said close_notify.
#[track_caller]
fn expect_exact(listener: &TcpListener, to: SocketAddr) {
    const SESSIONS: u64 = 4;
    // One after the other: the service does not know who is who.
    for number in 0..SESSIONS {
        let client = connect(to);
        let exchanged = thread::spawn(move || {
            let all = exchange_all(&client, number, !number);
            (client, all)
        });
        let service = accept(listener);
        exchange_all(&service, !number, number).expect("the service's end");
        let (client, all) = exchanged.join().expect("no panic");
        all.expect("the client's end");
        for [from, to] in [[&client, &service], [&service, &client]] {
            from.shutdown(Shutdown::Write).expect("shutdown");
            expect_end(&mut &*to).expect("an end");
        }
    }
}

fn exchange_all(stream: &TcpStream, sends: u64, receives: u64) -> io::Result<()> {
    const BYTES: usize = 5_000_000;
    let (mut to, mut from) = (stream, stream);
    thread::scope(|scope| {
        let sender = scope.spawn(move || Stream::new(sends).send(&mut to, BYTES));
        Stream::new(receives).receive(&mut from, BYTES)?;
        sender.join().expect("the sender")
    })
}

fn through_tunnels(
    before: fn(&Setup, SocketAddr) -> Tunnel,
    behind: fn(&Setup, SocketAddr) -> Tunnel,
) {
    let setup = Setup::new();
    let service = free_address();
    let listener = TcpListener::bind(service).expect("listen");
    listener.set_nonblocking(true).expect("an option");
    let front = terminate(&setup, service, "");
    let into = before(&setup, front.address);
    expect_exact(&listener, into.address);
    front.expect_active(0);

    let out = behind(&setup, service);
    let back = originate(&setup, out.address, "");
    expect_exact(&listener, back.address);
    back.expect_active(0);

    // plain, TLS, TLS, plain.
    let keys = Keys {
        tls: setup.tls(""),
        upstream_tls: setup.upstream_tls(""),
        ..Keys::default()
    };
    let both = setup.start(out.address, keys);
    let into = before(&setup, both.address);
    expect_exact(&listener, into.address);
    both.expect_active(0);
    let ended = |proxy: &Pulsegate| crate::pulsegate::closed(&proxy.metrics(), "finished");
    for proxy in [&front, &back, &both] {
        assert_eq!(ended(proxy), 4.0, "{}", proxy.log());
    }
}

fn stunnel_before_and_behind_is_byte_exact() {
    through_tunnels(stunnel_to, stunnel_from);
}

fn haproxy_before_and_behind_speaks_tls() {
    through_tunnels(haproxy_to, haproxy_from);
    // A check of HAProxy that only shakes hands, again and again.
    let setup = Setup::new();
    let runtime = many::runtime();
    let front = terminate(&setup, many::echo(&runtime), "");
    let ca = setup.ca.display();
    let checks = format!(
        "{} ssl verify required ca-file {ca} verifyhost localhost check inter 100",
        front.address
    );
    let _checker = haproxy_of(&setup, "", &checks);
    let shaken = || crate::tls::handshakes(&front.metrics(), "downstream", "TLSv1.3");
    assert!(crate::support::eventually(PROMPT, || shaken() >= 3.0));
}
