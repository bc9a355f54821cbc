//! TLS on either leg, with openssl(1) at the other end: versions, keys, names, certificates of clients, and
//! what must be refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::Case;
use crate::many;
use crate::process::{Folder, Process, free_address, tool};
use crate::pulsegate::Pulsegate;
use crate::support::certificates::{Authority, Certified, Subject};
use crate::support::{Metrics, eventually};

pub const CASES: &[Case] = &[
    Case::new(
        "openssl_speaks_to_each_key_and_version",
        &["openssl"],
        openssl_speaks_to_each_key_and_version,
    ),
    Case::new(
        "openssl_is_given_the_certificate_it_asks_for",
        &["openssl"],
        openssl_is_given_the_certificate_it_asks_for,
    ),
    Case::new(
        "openssl_clients_show_certificates",
        &["openssl"],
        openssl_clients_show_certificates,
    ),
    Case::new(
        "openssl_resumes_without_early_data",
        &["openssl"],
        openssl_resumes_without_early_data,
    ),
    Case::new(
        "openssl_cannot_renegotiate",
        &["openssl"],
        openssl_cannot_renegotiate,
    ),
    Case::new(
        "openssl_serves_each_version",
        &["openssl"],
        openssl_serves_each_version,
    ),
    Case::new(
        "bad_certificates_of_openssl_are_refused",
        &["openssl"],
        bad_certificates_of_openssl_are_refused,
    ),
    Case::new(
        "openssl_servers_ask_for_a_certificate",
        &["openssl"],
        openssl_servers_ask_for_a_certificate,
    ),
];

pub const PROMPT: Duration = Duration::from_secs(30);

/// An authority, a server that it has certified, and the files of both.
pub struct Setup {
    pub folder: Folder,
    pub authority: Authority,
    pub ca: PathBuf,
    pub server: Certified,
}

/// What a listener has beside its address.
#[derive(Default)]
pub struct Keys<'a> {
    /// Those of `tls`; none: plain.
    pub tls: Option<String>,
    /// Those of `upstream.tls`; none: plain.
    pub upstream_tls: Option<String>,
    /// Further ones of the listener.
    pub more: &'a str,
}

impl Setup {
    pub fn new() -> Self {
        let folder = Folder::new();
        let authority = Authority::root("the authority");
        let names = Subject::named(&["localhost", "127.0.0.1"]);
        Self {
            ca: authority.write(folder.join("ca.pem")),
            server: authority.certify(folder.path(), "server", names),
            authority,
            folder,
        }
    }

    /// The keys of `tls` with the server's certificate, and further ones.
    pub fn tls(&self, more: &str) -> Option<String> {
        Some(format!("certificates: [{}], {more}", self.server.yaml()))
    }

    /// The keys of `upstream.tls` with the authority, and further ones.
    pub fn upstream_tls(&self, more: &str) -> Option<String> {
        Some(format!("ca: '{}', {more}", self.ca.display()))
    }

    pub fn start(&self, upstream: SocketAddr, keys: Keys<'_>) -> Pulsegate {
        self.start_with(&upstream.to_string(), keys, "")
    }

    /// With further keys of `upstream`.
    pub fn start_with(&self, upstream: &str, keys: Keys<'_>, more_of_upstream: &str) -> Pulsegate {
        let (address, admin) = (free_address(), free_address());
        let Keys {
            tls,
            upstream_tls,
            more,
        } = keys;
        let section =
            |keys: Option<String>| keys.map_or("off".to_owned(), |k| format!("{{ {k} }}"));
        let (tls, upstream_tls) = (section(tls), section(upstream_tls));
        let text = format!(
            "admin: {{ address: '{admin}' }}\nlisteners:\n- address: '{address}'\n  tls: {tls}\n  \
             upstream: {{ address: '{upstream}', tls: {upstream_tls}, {more_of_upstream} }}\n{more}\n"
        );
        let file = self
            .folder
            .join(&format!("pulsegate-{}.yaml", address.port()));
        fs::write(&file, text).expect("written");
        Pulsegate::start_config(&file, address, admin)
    }

    pub fn certify(&self, name: &str, subject: Subject) -> Certified {
        self.authority.certify(self.folder.path(), name, subject)
    }
}

/// Handshakes of a leg that failed for a reason.
pub fn failures(metrics: &Metrics, leg: &str, reason: &str) -> f64 {
    let labels = [("leg", leg), ("reason", reason)];
    metrics.value("pulsegate_tls_handshake_failures_total", &labels)
}

#[track_caller]
pub fn expect_failure(proxy: &Pulsegate, leg: &str, reason: &str) {
    let all = || proxy.metrics().excerpt("pulsegate_tls");
    let counted = eventually(PROMPT, || failures(&proxy.metrics(), leg, reason) >= 1.0);
    assert!(counted, "{leg} {reason}: {}\n{}", all(), proxy.log());
}

/// Handshakes of a leg that succeeded.
pub fn handshakes(metrics: &Metrics, leg: &str, version: &str) -> f64 {
    let labels = [("leg", leg), ("version", version)];
    metrics.value("pulsegate_tls_handshakes_total", &labels)
}

#[track_caller]
pub fn expect_logged(proxy: &Pulsegate, words: &str) {
    let logged = || proxy.log().replace('\\', "").contains(words);
    assert!(eventually(PROMPT, logged), "{words}: {}", proxy.log());
}

/// openssl(1) as a client that trusts the authority, and ends if the server cannot be trusted.
pub fn s_client(setup: &Setup, to: SocketAddr, more: &[&str]) -> Command {
    let mut command = tool("openssl");
    command
        .args(["s_client", "-connect", &to.to_string(), "-CAfile"])
        .arg(&setup.ca)
        .args(["-verify_return_error", "-verify_hostname", "localhost"])
        .args(more);
    command
}

/// Has it say something that the service sends back; returns all that it printed. `Err`: it has ended first.
fn talk(client: &mut Command) -> Result<String, String> {
    let mut client = Process::start(client);
    let said = "is there anybody out there";
    let _ended = writeln!(client.input(), "{said}");
    let mut over = false;
    eventually(PROMPT, || {
        over = client.is_over();
        over || client.output().contains(said)
    });
    let came_back = client.output().contains(said);
    if !over {
        client.wait(PROMPT);
    }
    let all = client.output() + &client.errors();
    if came_back { Ok(all) } else { Err(all) }
}

#[track_caller]
pub fn expect_talk(client: &mut Command, words: &[&str]) -> String {
    let all = talk(client).unwrap_or_else(|all| panic!("no answer: {all}"));
    for word in words {
        assert!(all.contains(word), "{word}: {all}");
    }
    all
}

#[track_caller]
fn expect_refused(client: &mut Command) {
    let refused = talk(client);
    assert!(refused.is_err(), "{refused:?}");
}

pub fn echo() -> (Runtime, SocketAddr) {
    let runtime = many::runtime();
    let address = many::echo(&runtime);
    (runtime, address)
}

const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")];

/// Keys of P-256 and RSA, and a chain of three; both versions; and no others.
fn openssl_speaks_to_each_key_and_version() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let names = || Subject::named(&["localhost"]);
    let lower = setup.authority.intermediate("middle").intermediate("lower");
    let rsa = setup.certify("rsa", names().with_rsa_key());
    let chain = lower.certify(setup.folder.path(), "chain", names());
    for certified in [&setup.server, &rsa, &chain] {
        let tls = |more: &str| Some(format!("certificates: [{}], {more}", certified.yaml()));
        let start = |more| {
            let keys = Keys {
                tls: tls(more),
                ..Keys::default()
            };
            setup.start(service, keys)
        };
        let proxy = start("");
        for (flag, version) in VERSIONS {
            let words = [version, "Verification: OK"];
            expect_talk(
                &mut s_client(&setup, proxy.address, &["-brief", flag]),
                &words,
            );
            let counted = || handshakes(&proxy.metrics(), "downstream", version);
            assert!(eventually(PROMPT, || counted() == 1.0), "{version}");
            expect_logged(&proxy, version);
        }
        proxy.expect_all_closed("finished", 2);
        // openssl itself offers it only where it is told that security does not matter.
        let weak = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
        expect_refused(&mut s_client(&setup, proxy.address, &weak));
        expect_failure(&proxy, "downstream", "no_shared_version");

        let strict = start("min_version: 1.3");
        expect_refused(&mut s_client(&setup, strict.address, &["-tls1_2"]));
        expect_failure(&strict, "downstream", "no_shared_version");
        expect_talk(
            &mut s_client(&setup, strict.address, &["-brief"]),
            &["TLSv1.3"],
        );
    }
    let proxy = setup.start(
        service,
        Keys {
            tls: setup.tls(""),
            ..Keys::default()
        },
    );
    let weak = ["-tls1_2", "-cipher", "AES256-SHA"];
    expect_refused(&mut s_client(&setup, proxy.address, &weak));
    expect_failure(&proxy, "downstream", "no_shared_cipher");
}

fn openssl_is_given_the_certificate_it_asks_for() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let named = |name: &str| {
        setup
            .certify(name, Subject::named(&[name, "localhost"]))
            .yaml()
    };
    let certificates = format!(
        "certificates: [{}, {}, {}]",
        named("a.example"),
        named("b.example"),
        named("*.c.example")
    );
    let start = |more: &str| {
        let keys = Keys {
            tls: Some(format!("{certificates}, {more}")),
            ..Keys::default()
        };
        setup.start(service, keys)
    };
    let any = start("");
    let asks = |proxy: &Pulsegate, name: &str, more: &[&str]| {
        let name = match name {
            "" => vec!["-noservername"],
            name => vec!["-servername", name],
        };
        s_client(&setup, proxy.address, &[&name[..], more].concat())
    };
    for (asked, given) in [
        ("a.example", "a.example"),
        ("b.example", "b.example"),
        ("B.EXAMPLE", "b.example"),
        ("x.c.example", "*.c.example"),
        ("d.example", "a.example"),
        ("", "a.example"),
    ] {
        let subject = format!("CN = {given}");
        expect_talk(&mut asks(&any, asked, &[]), &[&subject]);
    }
    expect_logged(&any, "b.example");
    let strict = start("sni: strict");
    expect_talk(&mut asks(&strict, "b.example", &[]), &["CN = b.example"]);
    for name in ["d.example", ""] {
        expect_refused(&mut asks(&strict, name, &[]));
    }
    expect_failure(&strict, "downstream", "unknown_server_name");
    expect_logged(
        &strict,
        "sni=\"d.example\" tls_failure=\"unknown_server_name\"",
    );

    let alpn = start("alpn: [one, two]");
    let words = ["ALPN protocol: two"];
    expect_talk(
        &mut asks(&alpn, "a.example", &["-alpn", "three,two"]),
        &words,
    );
    expect_talk(&mut asks(&alpn, "a.example", &[]), &["No ALPN negotiated"]);
    expect_refused(&mut asks(&alpn, "a.example", &["-alpn", "three"]));
    expect_failure(&alpn, "downstream", "no_application_protocol");
}

fn openssl_clients_show_certificates() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let good = setup.certify("good", Subject::named(&["printer-7.example"]));
    let bare = setup.certify("bare", Subject::with_common_name("scanner 3"));
    let expired = setup.certify("expired", Subject::named(&["old.example"]).expired());
    let early = Subject::named(&["new.example"]).not_yet_valid();
    let early = setup.certify("early", early);
    let strangers = Authority::root("strangers");
    let stranger = Subject::named(&["stranger.example"]);
    let stranger = strangers.certify(setup.folder.path(), "stranger", stranger);
    let start = |auth: &str| {
        let more = format!("client_ca: '{}', client_auth: {auth}", setup.ca.display());
        let keys = Keys {
            tls: setup.tls(&more),
            ..Keys::default()
        };
        setup.start(service, keys)
    };
    let shows = |proxy: &Pulsegate, own: Option<&Certified>, flag: &str| {
        let mut client = s_client(&setup, proxy.address, &["-brief", flag]);
        if let Some(own) = own {
            client
                .arg("-cert")
                .arg(&own.chain)
                .arg("-key")
                .arg(&own.key);
        }
        client
    };
    for (flag, _) in VERSIONS {
        let required = start("required");
        for (own, identity) in [(&good, "printer-7.example"), (&bare, "scanner 3")] {
            expect_talk(&mut shows(&required, Some(own), flag), &[]);
            expect_logged(&required, identity);
        }
        for (own, reason) in [
            (None, "no_client_certificate"),
            (Some(&expired), "certificate_expired"),
            (Some(&early), "certificate_not_yet_valid"),
            (Some(&stranger), "unknown_ca"),
        ] {
            expect_refused(&mut shows(&required, own, flag));
            expect_failure(&required, "downstream", reason);
        }
        let optional = start("optional");
        expect_talk(&mut shows(&optional, None, flag), &[]);
        expect_talk(&mut shows(&optional, Some(&good), flag), &[]);
        expect_refused(&mut shows(&optional, Some(&stranger), flag));
    }
}

fn openssl_resumes_without_early_data() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let proxy = setup.start(
        service,
        Keys {
            tls: setup.tls(""),
            ..Keys::default()
        },
    );
    for (flag, version) in VERSIONS {
        let file = setup.folder.join("session").display().to_string();
        let first = [flag, "-sess_out", &file];
        expect_talk(&mut s_client(&setup, proxy.address, &first), &["New, TLS"]);
        let again = [flag, "-sess_in", &file];
        let reused = format!("Reused, {version}");
        expect_talk(&mut s_client(&setup, proxy.address, &again), &[&reused]);
        if version == "TLSv1.3" {
            let data = setup.folder.join("early").display().to_string();
            fs::write(&data, "twice?\n").expect("written");
            let early = [&again[..], &["-early_data", &data]].concat();
            let all = expect_talk(&mut s_client(&setup, proxy.address, &early), &[]);
            let refused = ["Early data was not sent", "Early data was rejected"];
            assert!(refused.iter().any(|words| all.contains(words)), "{all}");
            assert!(!all.contains("twice?"), "{all}");
        }
    }
    proxy.expect_all_closed("finished", 5);
}

/// Who asks for it gets no second handshake. openssl leaves then.
fn openssl_cannot_renegotiate() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let proxy = setup.start(
        service,
        Keys {
            tls: setup.tls(""),
            ..Keys::default()
        },
    );
    let mut client = Process::start(&mut s_client(&setup, proxy.address, &["-tls1_2"]));
    writeln!(client.input(), "before").expect("it runs");
    assert!(eventually(PROMPT, || client
        .output()
        .matches("before")
        .count()
        >= 1));
    writeln!(client.input(), "R").expect("it runs");
    assert!(eventually(PROMPT, || client
        .errors()
        .contains("RENEGOTIATING")));
    // Each of ours says that it has verified the server's certificate.
    let _left = eventually(Duration::from_secs(2), || client.is_over());
    let errors = client.errors();
    let (_, after) = errors.split_once("RENEGOTIATING").expect("it has");
    assert!(!after.contains("verify return:1"), "{errors}");
    client.wait(PROMPT);
    assert_eq!(handshakes(&proxy.metrics(), "downstream", "TLSv1.2"), 1.0);
    expect_talk(
        &mut s_client(&setup, proxy.address, &["-brief"]),
        &["TLSv1.3"],
    );
    proxy.expect_active(0);
}

// --- openssl(1) as the service ----------------------------------------------------------------

/// A server that sends back each line, reversed.
struct Reverser {
    process: Process,
    address: SocketAddr,
}

impl Reverser {
    fn start(own: &Certified, more: &[&str]) -> Self {
        let address = free_address();
        let mut command = tool("openssl");
        command
            .args(["s_server", "-rev", "-accept", &address.to_string(), "-cert"])
            .arg(&own.chain)
            .arg("-cert_chain")
            .arg(&own.chain)
            .arg("-key")
            .arg(&own.key)
            .args(more);
        let mut process = Process::start(&mut command);
        process.wait_until(|_| listens(address));
        Self { process, address }
    }
}

/// Without a connection, which this server would serve first.
pub fn listens(address: SocketAddr) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{:04X} 00000000:0000 0A", address.port());
    table.contains(&port)
}

/// A line through pulsegate, plain, and its answer; none if the session is ended before.
fn reversed(proxy: &Pulsegate) -> Option<String> {
    // The end may come before connect() has returned.
    let mut client = TcpStream::connect(proxy.address).ok()?;
    client.write_all(b"abcdef\n").ok()?;
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

fn originate(setup: &Setup, to: SocketAddr, more: &str) -> Pulsegate {
    let keys = Keys {
        upstream_tls: setup.upstream_tls(more),
        ..Keys::default()
    };
    setup.start(to, keys)
}

fn openssl_serves_each_version() {
    let setup = Setup::new();
    for (flag, version) in VERSIONS {
        let server = Reverser::start(&setup.server, &[flag]);
        let proxy = originate(&setup, server.address, "");
        for _ in 0..2 {
            assert_eq!(reversed(&proxy).as_deref(), Some("fedcba\n"));
        }
        assert_eq!(handshakes(&proxy.metrics(), "upstream", version), 2.0);
        assert!(server.process.errors().contains(version));
    }
    let old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let server = Reverser::start(&setup.server, &old);
    let proxy = originate(&setup, server.address, "");
    assert_eq!(reversed(&proxy), None);
    proxy.expect_active(0);
    assert_eq!(handshakes(&proxy.metrics(), "upstream", "TLSv1.2"), 0.0);
    let server = Reverser::start(&setup.server, &["-tls1_2"]);
    let proxy = originate(&setup, server.address, "min_version: 1.3");
    assert_eq!(reversed(&proxy), None);
}

fn bad_certificates_of_openssl_are_refused() {
    let setup = Setup::new();
    let ours = || Subject::named(&["127.0.0.1"]);
    let strangers = Authority::root("strangers");
    let folder = setup.folder.path();
    for (certified, reason) in [
        (
            setup.certify("expired", ours().expired()),
            "certificate_expired",
        ),
        (
            setup.certify("early", ours().not_yet_valid()),
            "certificate_not_yet_valid",
        ),
        (
            setup.certify("other", Subject::named(&["elsewhere.example"])),
            "wrong_name",
        ),
        (strangers.certify(folder, "stranger", ours()), "unknown_ca"),
    ] {
        let server = Reverser::start(&certified, &[]);
        let proxy = originate(&setup, server.address, "");
        assert_eq!(reversed(&proxy), None, "{reason}");
        expect_failure(&proxy, "upstream", reason);
        let metrics = proxy.metrics();
        assert_eq!(
            crate::pulsegate::closed(&metrics, "upstream_tls_failed"),
            1.0
        );
    }
    // The name may be another than the address.
    let elsewhere = setup.certify("elsewhere", Subject::named(&["elsewhere.example"]));
    let server = Reverser::start(&elsewhere, &[]);
    let proxy = originate(&setup, server.address, "server_name: elsewhere.example");
    assert_eq!(reversed(&proxy).as_deref(), Some("fedcba\n"));
}

fn openssl_servers_ask_for_a_certificate() {
    let setup = Setup::new();
    let own = setup.certify("own", Subject::named(&["pulsegate.example"]));
    let keys = format!(
        "certificate: '{}', key: '{}'",
        own.chain.display(),
        own.key.display()
    );
    for (flag, _) in VERSIONS {
        let asks = [flag, "-Verify", "2", "-verify_return_error", "-CAfile"];
        let ca = setup.ca.display().to_string();
        let server = Reverser::start(&setup.server, &[&asks[..], &[&ca]].concat());
        let proxy = originate(&setup, server.address, &keys);
        assert_eq!(reversed(&proxy).as_deref(), Some("fedcba\n"));
        assert!(server.process.errors().contains("pulsegate.example"));
        let without = originate(&setup, server.address, "");
        assert_eq!(reversed(&without), None);
        without.expect_active(0);
    }
}
