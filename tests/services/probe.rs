//! `pulsegate probe` at servers of all kinds: what it says, and how it ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;

use crate::Case;
use crate::many;
use crate::papers::{Papers, TlsServer};
use crate::process::{Process, free_address, tool};
use crate::pulsegate::Pulsegate;
use crate::support::certificates::{self, Subject};
use crate::support::eventually;

pub const CASES: &[Case] = &[
    Case::new("probe_of_plain_services", &[], probe_of_plain_services),
    Case::new("probe_of_certificates", &[], probe_of_certificates),
    Case::new(
        "probe_of_handshakes_that_fail",
        &[],
        probe_of_handshakes_that_fail,
    ),
    Case::new("probe_of_openssl", &["openssl"], probe_of_openssl),
];

const LONG: Duration = Duration::from_secs(30);

/// What was said, and the exit code.
struct Said(String, i32);

/// `within` is for each step: short where a server is silent for ever.
fn probe(server: impl ToString, within: &str, flags: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["probe", &server.to_string(), "--timeout", within]);
    let output = command.args(flags).output().expect("run it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    Said(text, output.status.code().expect("an exit code"))
}

impl Said {
    /// It ended so, with a line that begins and goes on like this for each of these.
    #[track_caller]
    fn is(&self, code: i32, lines: &[(&str, &str, &str)]) {
        let Self(text, ended) = self;
        assert_eq!(*ended, code, "{text}");
        for (mark, step, what) in lines {
            let is_it = |line: &str| {
                let mut words = line.split_whitespace();
                let begins = words.next() == Some(mark) && words.next() == Some(step);
                begins && line.contains(what)
            };
            assert!(text.lines().any(is_it), "{mark} {step} {what}:\n{text}");
        }
    }
}

fn with<'a>(flags: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [flags, more].concat()
}

/// A plain server that says this to each client, and then reads what it says.
fn plain(says: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            thread::spawn(move || {
                stream.write_all(says)?;
                stream.read_to_end(&mut Vec::new())
            });
        }
    });
    address
}

fn probe_of_plain_services() {
    let smtp = plain(b"220 mail.example\r\n");
    let address = smtp.to_string();
    let connected = ("ok", "connect", address.as_str());
    let said = probe(smtp, "20s", &[]);
    said.is(
        0,
        &[
            connected,
            ("ok", "first_byte", r#""220 mail.example\r\n" after"#),
        ],
    );
    let binary = probe(plain(b"\0\x01\xff\x1b[31m"), "20s", &[]);
    binary.is(0, &[("ok", "first_byte", r#""\0\x01\xff\x1b[31m""#)]);
    let silent = probe(plain(b""), "300ms", &[]);
    silent.is(
        0,
        &[("ok", "first_byte", "says nothing first (waited 300ms)")],
    );
    let nobody = free_address();
    probe(nobody, "20s", &[]).is(5, &[("fail", "connect", "refused")]);
    let unknown = probe("nowhere.invalid:1", "20s", &[]);
    unknown.is(
        5,
        &[("fail", "connect", "nowhere.invalid cannot be looked up")],
    );
    // What a client meets whose service is down. The RST may come before the connect is seen.
    let proxy = Pulsegate::start(nobody, &[]);
    let Said(text, code) = probe(proxy.address, "20s", &[]);
    assert_eq!(code, 8, "{text}");
    assert!(text.contains("the server resets the connection"), "{text}");
    proxy.expect_active(0);

    let said = probe(smtp, "20s", &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.0).expect("JSON");
    assert_eq!(json["connect"]["address"], address);
    assert_eq!(json["first_byte"]["bytes"], r"220 mail.example\r\n");
    assert_eq!(json["first_byte"]["status"], "ok");
    assert!(json["connect"]["took_ms"].is_number());
    assert_eq!((said.1, &json["exit"]), (0, &0.into()));
}

fn probe_of_certificates() {
    let papers = Papers::new();
    let subject = || Subject::named(&["localhost", "db.example", "127.0.0.1"]);
    let ca = papers.named("ca.pem");
    let trusting = ["--tls", "--ca", &ca];
    let start = |name: &str, subject| {
        let config = certificates::server(&papers.issue(name, subject));
        TlsServer::start(config, |_| Ok(()))
    };
    let good = start("good", subject());
    let expired = start("expired", subject().expired());
    let early = start("early", subject().not_yet_valid());
    let shaken = ("ok", "handshake", "TLSv1.3, TLS_");
    let quiet = ("ok", "first_byte", "says nothing first");
    for server in [
        good.address.to_string(),
        format!("localhost:{}", good.address.port()),
    ] {
        let certificate = ("ok", "certificate", "db.example, 127.0.0.1");
        let issued = ("ok", "certificate", "issued by the authority");
        let valid = ("ok", "certificate", "1975-01-01 to 4096-01-01");
        let said = probe(&server, "300ms", &trusting);
        said.is(
            0,
            &[
                shaken,
                certificate,
                issued,
                valid,
                ("ok", "days_left", "755"),
                quiet,
            ],
        );
    }
    let named = probe(
        good.address,
        "300ms",
        &with(&trusting, &["--servername", "db.example"]),
    );
    named.is(0, &[shaken]);
    let wrong = probe(
        good.address,
        "20s",
        &with(&trusting, &["--server-name", "other.example"]),
    );
    wrong.is(
        7,
        &[
            shaken,
            (
                "fail",
                "certificate",
                "is not for other.example, but for localhost, ",
            ),
        ],
    );
    assert!(!wrong.0.contains("first_byte"), "{}", wrong.0);
    let unknown = probe(good.address, "20s", &["--tls"]);
    unknown.is(7, &[shaken, ("fail", "certificate", "CA")]);
    let all_the_same = probe(good.address, "300ms", &["--tls", "-k"]);
    all_the_same.is(
        0,
        &[("warn", "certificate", "accepted by --insecure"), quiet],
    );
    let over = probe(expired.address, "20s", &trusting);
    over.is(
        7,
        &[
            ("fail", "certificate", "expired"),
            ("fail", "days_left", "expired on 2002-01-01"),
        ],
    );
    let not_yet = probe(early.address, "20s", &trusting);
    not_yet.is(7, &[("fail", "days_left", "not valid before 2901-01-01")]);
    let json = probe(expired.address, "20s", &with(&trusting, &["--json"]));
    let json: serde_json::Value = serde_json::from_str(&json.0).expect("JSON");
    assert_eq!(json["certificate"]["reason"], "certificate_expired");
    assert_eq!(json["certificate"]["names"][1], "db.example");
    assert_eq!(json["handshake"]["version"], "TLSv1.3");
    assert!(json["days_left"]["days"].as_i64() < Some(-1000), "{json}");
    assert_eq!(json["exit"], 7);
    // Each connection is ended in good order, also one that is not gone on with.
    for (server, clients) in [(&good, 6), (&expired, 2), (&early, 1)] {
        let all = || server.ends() == [clients, 0];
        assert!(eventually(LONG, all), "{:?}", server.ends());
    }
}

fn probe_of_handshakes_that_fail() {
    let papers = Papers::new();
    let own = papers.issue("server", Subject::named(&["127.0.0.1"]));
    papers.issue("client", Subject::named(&["client.example"]));
    let [ca, chain, key] = ["ca.pem", "client.pem", "client.key"].map(|file| papers.named(file));
    let trusting = ["--tls", "--ca", &ca];

    // Whether it speaks first or waits.
    for says in [&b"220 mail.example\r\n"[..], b""] {
        let within = if says.is_empty() { "300ms" } else { "20s" };
        let said = probe(plain(says), within, &trusting);
        let why = if says.is_empty() {
            "no answer within 300ms"
        } else {
            "does not speak TLS"
        };
        said.is(6, &[("ok", "connect", ""), ("fail", "handshake", why)]);
    }
    // It waits for its own request, and then ends.
    let runtime = many::runtime();
    let echo = probe(many::echo(&runtime), "20s", &trusting);
    echo.is(6, &[("fail", "handshake", "")]);

    // With TLS 1.3 it is told behind the handshake.
    let config = certificates::server_for(&own, &papers.path("ca.pem"));
    let known = TlsServer::start(config, |stream| stream.write_all(b"hello"));
    let nobody = probe(known.address, "20s", &trusting);
    nobody.is(
        6,
        &[
            ("ok", "handshake", ""),
            ("fail", "first_byte", "certificate"),
        ],
    );
    let one = probe(
        known.address,
        "20s",
        &with(&trusting, &["--cert", &chain, "--key", &key]),
    );
    one.is(0, &[("ok", "first_byte", r#""hello""#)]);

    let mut other = ServerConfig::clone(&certificates::server(&own));
    other.alpn_protocols = vec![b"imap".to_vec(), b"h2".to_vec()];
    let other = TlsServer::start(other.into(), |_| Ok(()));
    let none = probe(
        other.address,
        "20s",
        &with(&trusting, &["--alpn", "http/1.1"]),
    );
    none.is(6, &[("fail", "handshake", "(ALPN)")]);
    let second = probe(
        other.address,
        "300ms",
        &with(&trusting, &["--alpn", "http/1.1,h2"]),
    );
    second.is(0, &[("ok", "handshake", "ALPN h2")]);

    // Before anything is asked.
    for (flags, why) in [
        (&["--ca", "x"][..], "--tls"),
        (&["--tls", "--ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (&["--tls", "--cert", &chain], "--key"),
        (&["--tls", "--cert", &chain, "--key", &chain], "key"),
        (&["--tls", "--server-name", "a b"], "--server-name"),
    ] {
        probe(other.address, "20s", flags).is(2, &[]);
        assert!(probe(other.address, "20s", flags).0.contains(why), "{why}");
    }
}

/// `openssl s_server` with this chain; it listens when it says so.
fn s_server(papers: &Papers, flags: &[&str]) -> (Process, SocketAddr) {
    let address = free_address();
    let mut command = tool("openssl");
    command
        .args(["s_server", "-accept", &address.to_string()])
        .args(["-cert", &papers.named("server.pem")])
        .args(["-key", &papers.named("server.key")])
        .args(flags);
    let process = Process::start(&mut command);
    assert!(eventually(LONG, || process.output().contains("ACCEPT")));
    (process, address)
}

fn probe_of_openssl() {
    let papers = Papers::new();
    papers.issue("server", Subject::named(&["127.0.0.1"]));
    let ca = papers.named("ca.pem");
    let trusting = ["--tls", "--ca", &ca];
    let asks = |flags: &[&str]| {
        let (_server, address) = s_server(&papers, flags);
        probe(address, "1s", &trusting)
    };
    let certificate = ("ok", "certificate", "127.0.0.1");
    for (flag, version) in [
        ("-tls1_2", "TLSv1.2, TLS_ECDHE_ECDSA"),
        ("-tls1_3", "TLSv1.3"),
    ] {
        asks(&[flag]).is(0, &[("ok", "handshake", version), certificate]);
    }
    let old = asks(&["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"]);
    old.is(6, &[("fail", "handshake", "version")]);
    let weak = asks(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"]);
    weak.is(6, &[("fail", "handshake", "cipher")]);
    let known = ["-Verify", "1", "-verify_return_error", "-CAfile", &ca];
    let in_time = asks(&[&["-tls1_2"], &known[..]].concat());
    in_time.is(6, &[("fail", "handshake", "certificate")]);
    let late = asks(&known);
    late.is(6, &[("fail", "first_byte", "certificate")]);
}
