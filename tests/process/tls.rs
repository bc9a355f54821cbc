//! Certificates and keys under a process that runs (docs/TLS.md).

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::reload::Rig;
use crate::rig::{
    PATIENT, Ports, Proxy, Service, Temporary, eventually, free_address, kept, pulsegate, text,
};

/// A chain and its key, good until the end of a year.
fn issue(folder: &Path, name: &str, until: i32) {
    let mut params = CertificateParams::new([format!("{name}.example")]).expect("parameters");
    params.not_after = date_time_ymd(until, 12, 31);
    let key = KeyPair::generate().expect("a key");
    let made = CertifiedIssuer::self_signed(params, &key).expect("a certificate");
    fs::write(folder.join(format!("{name}.crt")), made.pem()).expect("written");
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
}

fn end_of(year: i32) -> f64 {
    date_time_ymd(year, 12, 31).unix_timestamp() as f64
}

/// A process whose listener and upstream have certificates.
struct Lab {
    rig: Rig,
    clients: SocketAddr,
    service: Service,
}

impl Lab {
    fn new() -> Self {
        let rig = Rig::new();
        let folder = rig.file().parent().expect("a folder").to_owned();
        for name in ["server", "client", "ca"] {
            issue(&folder, name, 2090);
        }
        Self {
            rig,
            clients: free_address(),
            service: Service::start(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.file().with_file_name(name)
    }

    fn file(&self, chain: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let [chain, client, key, ca] = [chain, "client.crt", "client.key", "ca.crt"].map(path);
        let (admin, clients, service) = (self.rig.admin, self.clients, self.service.address);
        let server = chain.replace(".crt", ".key");
        format!(
            "admin: {{ address: '{admin}' }}
listeners:
  - name: orders
    address: '{clients}'
    tls: {{ certificates: [{{ certificate: {chain}, key: {server} }}], client_ca: {ca} }}
    upstream:
      address: '{service}'
      tls: {{ ca: {ca}, certificate: {client}, key: {key} }}
"
        )
    }

    fn run(&mut self, chain: &str, more: &str) {
        fs::write(self.rig.file(), self.file(chain) + more).expect("written");
        self.rig.run(&[]);
    }

    /// TLS with clients only, who need no certificate.
    fn run_for_any_client(&mut self) {
        let [crt, key] = ["server.crt", "server.key"].map(|name| self.path(name));
        let (admin, clients, service) = (self.rig.admin, self.clients, self.service.address);
        let yaml = format!(
            "admin: {{ address: '{admin}' }}
listeners:
  - name: orders
    address: '{clients}'
    tls: {{ certificates: [{{ certificate: {}, key: {} }}] }}
    upstream: {{ address: '{service}' }}
reload: {{ watch: false }}
",
            crt.display(),
            key.display()
        );
        fs::write(self.rig.file(), yaml).expect("written");
        self.rig.run(&[]);
    }

    fn until(&self, leg: &str, chain: &str) -> f64 {
        let file = self.path(chain);
        let file = file.display();
        let labels = format!("{{certificate=\"{file}\",leg=\"{leg}\",listener=\"orders\"}}");
        let name = format!("pulsegate_certificate_not_after_seconds{labels}");
        self.rig.proxy().metric(&name)
    }
}

/// File, line and column where it names this one.
fn place_of(config: &Path, named: &Path) -> String {
    let text = fs::read_to_string(config).expect("it is there");
    let before = text.split(path(named)).next().expect("it is named");
    let line = before.lines().count();
    let column = before.lines().last().map_or(0, str::len) + 1;
    format!("{}:{line}:{column}", config.display())
}

#[test]
fn files_that_change_are_taken_up_all_or_none() {
    let mut lab = Lab::new();
    lab.run("server.crt", "reload: { watch: false }");
    let folder = lab.path("");
    assert_eq!(lab.until("downstream", "server.crt"), end_of(2090));
    assert_eq!(lab.until("upstream", "client.crt"), end_of(2090));
    // The overview has the first to end of each leg.
    let summary = lab.rig.proxy().json("/summary");
    let ends = &summary["listeners"][0]["certificate_not_after"];
    for leg in ["downstream", "upstream"] {
        assert_eq!(ends[leg].as_f64(), Some(end_of(2090)), "{summary}");
    }
    let nothing = json!({ "applied": [], "new_sessions_only": [], "needs_restart": [] });
    assert_eq!(lab.rig.reloaded(), nothing);

    issue(&folder, "server", 2091);
    issue(&folder, "ca", 2091);
    issue(&folder, "client", 2092);
    let old = fs::read(lab.path("client.key")).expect("a key");
    issue(&folder, "other", 2090);
    fs::copy(lab.path("other.key"), lab.path("client.key")).expect("written");
    let (status, body) = lab.rig.reload();
    assert_eq!(status, 422, "{body}");
    let [key, chain] = ["client.key", "client.crt"].map(|name| lab.path(name));
    let expected = format!(
        ": listeners[orders].upstream.tls.key: {}: does not fit the first certificate of {}",
        key.display(),
        chain.display()
    );
    let place = body.trim().strip_suffix(&expected);
    let place = place.unwrap_or_else(|| panic!("{body}"));
    assert_eq!(place, place_of(&lab.rig.file(), &key));
    assert_eq!(lab.until("downstream", "server.crt"), end_of(2090));
    let failures = "pulsegate_config_reloads_total{outcome=\"failure\"}";
    assert_eq!(lab.rig.proxy().metric(failures), 1.0);

    fs::write(&key, old).expect("written");
    let expected = json!({
        "applied": [
            "listeners[orders].tls.certificates",
            "listeners[orders].tls.client_ca",
            "listeners[orders].upstream.tls.ca",
            "listeners[orders].upstream.tls.certificate",
            "listeners[orders].upstream.tls.key",
        ],
        "new_sessions_only": [],
        "needs_restart": [],
    });
    assert_eq!(lab.rig.reloaded(), expected);
    assert_eq!(lab.until("downstream", "server.crt"), end_of(2091));
    assert_eq!(lab.until("upstream", "client.crt"), end_of(2092));
    assert_eq!(lab.rig.reloaded(), nothing);

    // Another file: a change of the configuration.
    issue(&folder, "next", 2093);
    fs::write(
        lab.rig.file(),
        lab.file("next.crt") + "reload: { watch: false }",
    )
    .expect("written");
    let changed = lab.rig.reloaded();
    assert_eq!(
        changed["new_sessions_only"],
        json!(["listeners[orders].tls.certificates"])
    );
    assert_eq!(lab.until("downstream", "next.crt"), end_of(2093));
    let page = lab.rig.proxy().get("/metrics").expect("a scrape");
    assert!(!page.contains("server.crt"), "{page}");
    fs::remove_file(lab.path("next.key")).expect("removed");
    let (status, body) = lab.rig.reload();
    assert!(
        status == 422 && body.contains("next.key: cannot be read: No such file"),
        "{body}"
    );
}

/// A client that trusts the certificate in this file only, and is served.
fn client(to: SocketAddr, certificate: &Path) -> io::Result<Client> {
    let mut client = new_client(to, certificate)?;
    question(&mut client)?;
    Ok(client)
}

/// The same before it has said anything.
fn new_client(to: SocketAddr, certificate: &Path) -> io::Result<Client> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(certificate).expect("a certificate");
    roots.add(trusted).expect("an authority");
    let config = ClientConfig::builder_with_provider(pulsegate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "server.example".try_into().expect("a name");
    let connection = ClientConnection::new(config.into(), name).expect("a client");
    let socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(PATIENT))?;
    Ok(StreamOwned::new(connection, socket))
}

type Client = StreamOwned<ClientConnection, TcpStream>;

fn question(client: &mut Client) -> io::Result<()> {
    client.write_all(b"question")?;
    client.flush()?;
    client.read_exact(&mut [0; 8])
}

#[test]
fn sessions_keep_their_certificate_and_new_ones_get_the_new_one() {
    let mut lab = Lab::new();
    let folder = lab.path("");
    let [crt, key] = ["server.crt", "server.key"].map(|name| lab.path(name));
    let clients = lab.clients;
    lab.run_for_any_client();
    let old = folder.join("old.crt");
    fs::copy(&crt, &old).expect("copied");
    let mut before = client(clients, &old).expect("served");
    issue(&folder, "server", 2091);
    let applied = &lab.rig.reloaded()["applied"];
    assert_eq!(*applied, json!(["listeners[orders].tls.certificates"]));
    question(&mut before).expect("goes on");
    let mut after = client(clients, &crt).expect("served");
    let refused = client(clients, &old).expect_err("another certificate");
    assert!(refused.to_string().contains("certificate"), "{refused}");

    // A key that does not fit: all as before.
    issue(&folder, "other", 2092);
    fs::copy(folder.join("other.key"), &key).expect("copied");
    assert_eq!(lab.rig.reload().0, 422);
    client(clients, &crt).expect("served");
    for session in [&mut before, &mut after] {
        question(session).expect("goes on");
    }
}

#[test]
fn the_watch_sees_a_swapped_link_and_waits_for_a_key() {
    let mut lab = Lab::new();
    let folder = lab.path("");
    // As the kubelet mounts a Secret.
    let versions = ["1", "2"].map(|version| {
        let inside = folder.join(version);
        fs::create_dir(&inside).expect("a folder");
        issue(
            &inside,
            "tls",
            2080 + version.parse::<i32>().expect("a number"),
        );
        inside
    });
    let swap = |to: &Path| {
        symlink(to, folder.join("..new")).expect("a link");
        fs::rename(folder.join("..new"), folder.join("..data")).expect("renamed");
    };
    swap(&versions[0]);
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), folder.join(name)).expect("a link");
    }
    lab.run("tls.crt", "");
    assert_eq!(lab.until("downstream", "tls.crt"), end_of(2081));
    swap(&versions[1]);
    let is = |year| move |lab: &Lab| lab.until("downstream", "tls.crt") == end_of(year);
    assert!(
        eventually(PATIENT, || is(2082)(&lab)),
        "{}",
        text(&lab.rig.log)
    );

    // The certificate is there before its key is.
    let key = fs::read(versions[1].join("tls.key")).expect("a key");
    issue(&versions[1], "tls", 2083);
    let new = fs::read(versions[1].join("tls.key")).expect("a key");
    fs::write(versions[1].join("tls.key"), key).expect("written");
    let failed = || {
        let name = "pulsegate_config_reloads_total{outcome=\"failure\"}";
        lab.rig.proxy().metric(name) >= 1.0
    };
    assert!(eventually(PATIENT, failed), "{}", text(&lab.rig.log));
    assert!(is(2082)(&lab));
    fs::write(versions[1].join("tls.key"), new).expect("written");
    assert!(
        eventually(PATIENT, || is(2083)(&lab)),
        "{}",
        text(&lab.rig.log)
    );
    let log = text(&lab.rig.log);
    assert_eq!(
        log.matches("does not fit the first certificate").count(),
        1,
        "{log}"
    );
    assert!(
        log.contains("applied=\"listeners[orders].tls.certificates\""),
        "{log}"
    );
}

#[test]
fn without_a_configuration_file_certificates_are_followed_too() {
    let folder = Temporary::new("d");
    fs::create_dir(&folder.0).expect("a folder");
    issue(&folder.0, "server", 2090);
    let [crt, key] = ["server.crt", "server.key"].map(|name| folder.0.join(name));
    let (ports, service) = (Ports::free(), Service::start());
    let (log, stdio) = kept();
    let flags = ["--tls-certificate", path(&crt), "--tls-key", path(&key)];
    let proxy = Proxy::start(ports, service.address, stdio, &flags);
    issue(&folder.0, "server", 2091);
    proxy.signal(Signal::HUP);
    let name = format!(
        "pulsegate_certificate_not_after_seconds{{certificate=\"{}\",leg=\"downstream\",listener=\"default\"}}",
        crt.display()
    );
    assert!(
        eventually(PATIENT, || proxy.metric(&name) == end_of(2091)),
        "{}",
        text(&log)
    );
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn what_cannot_be_used_ends_a_start_and_a_check() {
    let lab = Lab::new();
    fs::write(lab.rig.file(), lab.file("server.crt")).expect("written");
    let file = lab.rig.file();
    let said = |command: &str, code: i32| {
        let output = pulsegate(&[command, "--config", path(&file)]).output();
        let output = output.expect("it runs");
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert_eq!(output.status.code(), Some(code), "{said:?}");
        said.concat()
    };
    let checked = said("check", 0);
    let line = format!(
        "certificate {}: server.example, issued by rcgen self signed cert, 1975-01-01 to 2090-12-31; it is good for ",
        lab.path("server.crt").display()
    );
    assert!(checked.contains(&line), "{checked}");
    // No warning ends anything: clients find out.
    issue(&lab.path(""), "server", 2001);
    let checked = said("check", 0);
    assert!(
        checked.contains("warning: certificate ") && checked.contains("it expired on 2001-12-31"),
        "{checked}"
    );
    fs::remove_file(lab.path("server.crt")).expect("removed");
    fs::write(lab.path("client.key"), "nothing").expect("written");
    for command in ["check", "run"] {
        let said = said(command, 2);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(
            lines[0].starts_with(&place_of(&file, &lab.path("server.crt"))),
            "{said}"
        );
        assert!(
            lines[0].contains("server.crt: cannot be read: No such file")
                && lines[0].contains(": listeners[orders].tls.certificates[0].certificate: "),
            "{said}"
        );
        assert!(
            lines[1].contains("client.key: has no PRIVATE KEY in PEM"),
            "{said}"
        );
    }
    // The form of the keys is judged without their files.
    said("explain", 0);
}

#[test]
fn a_file_that_is_newer_than_the_certificate_in_force_hides_nobody() {
    let lab = Lab::new();
    let folder = lab.path("");
    issue(&folder, "admin", 2090);
    let [crt, key] = ["admin.crt", "admin.key"].map(|name| lab.path(name));
    let yaml = format!(
        "admin: {{ address: '{}', tls: {{ certificate: {}, key: {} }} }}
listeners: [{{ address: '{}', upstream: {{ address: '{}' }} }}]
reload: {{ watch: false }}
",
        lab.rig.admin,
        crt.display(),
        key.display(),
        lab.clients,
        lab.service.address
    );
    fs::write(lab.rig.file(), &yaml).expect("written");
    let file = lab.rig.file();
    let (log, stdio) = kept();
    let ports = Ports {
        clients: lab.clients,
        admin: lab.rig.admin,
    };
    let mut command = pulsegate(&["run", "--config", path(&file)]);
    let _process = Proxy::of(command.stdout(stdio), ports);
    let asked = |command: &str| {
        let output = pulsegate(&[command, "--config", path(&file)]).output();
        let output = output.expect("it runs");
        let said = [output.stdout, output.stderr];
        let said = said.map(|said| String::from_utf8_lossy(&said).into_owned());
        (output.status.code(), said.concat())
    };
    let answers = || asked("healthcheck").0 == Some(0);
    assert!(eventually(PATIENT, answers), "{}", text(&log));
    issue(&folder, "admin", 2091);
    let (code, said) = asked("reload");
    assert!(
        code == Some(0) && said.contains("admin.tls.certificate"),
        "{said}"
    );
    assert_eq!(asked("healthcheck").0, Some(0));
}

#[test]
fn a_client_in_its_handshake_is_served_though_a_drain_begins() {
    let mut lab = Lab::new();
    lab.run_for_any_client();
    let mut client = new_client(lab.clients, &lab.path("server.crt")).expect("connected");
    // The first half of its ClientHello, then the drain, then the rest.
    let mut hello = Vec::new();
    client.conn.write_tls(&mut hello).expect("made");
    let (first, rest) = hello.split_at(hello.len() / 2);
    client.sock.write_all(first).expect("sent");
    let is_there = || {
        let page = lab.rig.proxy().get("/connections");
        page.is_ok_and(|page| page.contains("\"total\":1"))
    };
    assert!(eventually(PATIENT, is_there), "{}", text(&lab.rig.log));
    lab.rig.proxy().signal(Signal::TERM);
    let drains = || text(&lab.rig.log).contains("drain");
    assert!(eventually(PATIENT, drains), "{}", text(&lab.rig.log));
    client.sock.write_all(rest).expect("sent");
    question(&mut client).expect("served");
}

/// Whether the first bytes or the reset is seen first.
#[test]
fn a_reset_in_the_handshake_always_has_the_same_reason() {
    const CLIENTS: usize = 40;
    let mut lab = Lab::new();
    lab.run("server.crt", "reload: { watch: false }");
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(lab.clients).expect("connected");
        client.write_all(b"\x16\x03\x01").expect("sent");
        set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
    }
    let ended = |reason: &str| text(&lab.rig.log).matches(reason).count();
    let all = || ended("session ended") == CLIENTS;
    assert!(eventually(PATIENT, all), "{}", text(&lab.rig.log));
    let expected = "reason=\"downstream_tls_failed\"";
    assert_eq!(ended(expected), CLIENTS, "{}", text(&lab.rig.log));
    assert_eq!(ended("tls_failure=\"closed\""), CLIENTS);
}

#[test]
fn an_expired_certificate_is_warned_of() {
    let mut lab = Lab::new();
    issue(&lab.path(""), "server", 2001);
    lab.run("server.crt", "reload: { watch: false }");
    let log = text(&lab.rig.log);
    let line = log
        .lines()
        .find(|line| line.contains("the certificate expired on 2001-12-31: renew it"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains("WARN") && line.contains("listener=\"orders\""),
        "{line}"
    );
    assert_eq!(lab.until("downstream", "server.crt"), end_of(2001));
}

#[test]
fn a_key_that_may_not_be_read_is_said_so() {
    let lab = Lab::new();
    fs::write(lab.rig.file(), lab.file("server.crt")).expect("written");
    let key = lab.path("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o0)).expect("changed");
    if fs::read(&key).is_ok() {
        return; // As root everything may be read.
    }
    let file = lab.rig.file();
    let output = pulsegate(&["check", "--config", path(&file)])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("Permission denied") && said.contains("must be allowed to"),
        "{said}"
    );
}
