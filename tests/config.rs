//! The configuration as the operator meets it: example files, messages, commands, schema, docs.
//!
//! `UPDATE_EXPECTED=1 cargo test --test config` rewrites the expected messages and the key table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use pulsegate::config::{
    self, Admin, ClientAuth, Config, LogFormat, LogLevel, MemoryLimit, MinVersion, OnDead, OnEnd,
    OnFull, Ready, Statuses, keys,
};
use pulsegate::heartbeat::profiles::Protocol;
use serde_json::Value;
use strum::VariantNames;

const MINIMAL: &str = "\
listeners:
  - address: 0.0.0.0:9000
    upstream: { address: 127.0.0.1:8080 }
";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load(text: &str) -> Result<Config, config::ConfigErrors> {
    config::load("f", text.as_bytes())
}

fn flags(flags: &[(&'static str, &str)]) -> Result<Config, config::ConfigErrors> {
    let flags: Vec<(&str, String)> = flags.iter().map(|(f, v)| (*f, (*v).to_owned())).collect();
    config::from_flags(&flags)
}

fn pulsegate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pulsegate"))
        .args(args)
        .current_dir(root())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Compares, or rewrites what is expected.
fn expect(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    assert_eq!(actual, read(path), "{}", path.display());
}

#[test]
fn every_example_loads() {
    for path in files("config") {
        config::load_file(&path).unwrap_or_else(|errors| panic!("{errors}"));
    }
}

#[test]
fn the_reference_names_every_key_and_holds_the_defaults() {
    let path = root().join("config/pulsegate.yaml");
    let reference = config::load_file(&path).unwrap();
    assert_eq!(reference, load(MINIMAL).unwrap());
    let by_flags = flags(&[("listen", "0.0.0.0:9000"), ("upstream", "127.0.0.1:8080")]);
    assert_eq!(reference, by_flags.unwrap());
    let text = read(&path);
    let document: Value = serde_yaml::from_str(&text).unwrap();
    for key in keys::KEYS.iter() {
        let pointer = format!("/{}", key.path.replace("[]", "/0").replace('.', "/"));
        // What excludes something else is shown as a comment.
        let list = pointer.rsplit_once("/0/").map(|(list, _)| list);
        let is_empty = list.and_then(|list| document.pointer(list)) == Some(&Value::Array(vec![]));
        let in_list = is_empty && text.contains(&format!("#     - {}:", key.name()));
        let section = ancestors(&pointer).find_map(|section| document.pointer(section));
        let is_off = section == Some(&Value::String("off".to_owned()));
        let name = format!("{}:", key.name());
        let comment = |line: &str| {
            let line = line.trim_start().strip_prefix("#   ");
            line.is_some_and(|line| line.trim_start_matches([' ', '-']).starts_with(&name))
        };
        let shown = in_list || (is_off && text.lines().any(comment));
        assert!(
            document.pointer(&pointer).is_some() || shown,
            "{} is missing",
            key.path
        );
    }
}

/// The places around a place, the innermost first.
fn ancestors(pointer: &str) -> impl Iterator<Item = &str> {
    pointer.rmatch_indices('/').map(|(at, _)| &pointer[..at])
}

#[test]
fn the_defaults_are_those_that_are_promised() {
    let config = load(MINIMAL).unwrap();
    let listener = &config.listeners[0];
    assert_eq!(listener.name, "default");
    assert_eq!(listener.backlog, 4096);
    assert_eq!(listener.upstream.connect_timeout.as_secs(), 5);
    let liveness = &listener.liveness;
    let secs = Duration::from_secs;
    assert_eq!(liveness.detect_within, secs(30));
    assert_eq!(liveness.probe_interval, secs(6));
    assert!(liveness.probes.downstream && liveness.probes.upstream);
    assert_eq!(liveness.idle_timeout, Some(secs(3600)));
    assert_eq!(liveness.half_close_timeout, Some(secs(60)));
    assert_eq!(liveness.stall_timeout, None);
    assert_eq!(liveness.delivery_timeout, Some(secs(120)));
    assert_eq!(liveness.first_response_timeout, None);
    assert_eq!(liveness.max_connection_duration, None);
    assert_eq!(liveness.nat_timeout, None);
    assert_eq!(liveness.receive_timeout.downstream, None);
    assert_eq!(liveness.receive_timeout.upstream, None);
    assert_eq!(liveness.heartbeat.profile, None);
    assert_eq!(liveness.heartbeat.asking().after.as_millis(), 15_000);
    assert_eq!(liveness.heartbeat.asking().timeout.as_millis(), 5000);
    assert_eq!(liveness.heartbeat.asking().failures, 1);
    assert_eq!(listener.liveness.on_dead, OnDead::Reset);
    assert_eq!(listener.liveness.on_end, OnEnd::Reset);
    assert_eq!(listener.limits.max_connections, None);
    assert_eq!(listener.limits.on_full, OnFull::Reject);
    let address = "127.0.0.1:9900".parse().unwrap();
    assert_eq!(
        config.admin,
        Some(Admin {
            address,
            control: None,
            token_file: None,
            ready: Ready::Serving,
            tls: None,
        })
    );
    assert_eq!(config.limits.memory, MemoryLimit::Auto);
    assert_eq!(config.drain.delay.as_secs(), 0);
    assert_eq!(config.drain.timeout.as_secs(), 25);
    assert_eq!(config.log.level, LogLevel::Info);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.access, config::LogAccess::End);
    assert_eq!(config.workers, None);
}

#[test]
fn a_listener_wins_over_the_defaults_section() {
    let text = "\
defaults:
  backlog: 7
  upstream: { connect_timeout: 1s }
  liveness: { detect_within: 50s, stall_timeout: 9s, on_dead: close }
  limits: { max_connections: 3 }
listeners:
  - { name: a, address: '127.0.0.1:1', upstream: { address: 'x:1' } }
  - name: b
    address: '[::1]:0'
    backlog: 8
    upstream: { address: 'x:1', connect_timeout: 2s }
    liveness: { detect_within: 20s, stall_timeout: off, idle_timeout: false, delivery_timeout: 0s }
    limits: { max_connections: none }
admin: off
workers: 2
log:
";
    let config = load(text).unwrap();
    let [a, b] = &config.listeners[..] else {
        panic!("two listeners");
    };
    assert_eq!((a.backlog, b.backlog), (7, 8));
    assert_eq!(a.upstream.connect_timeout.as_secs(), 1);
    assert_eq!(b.upstream.connect_timeout.as_secs(), 2);
    assert_eq!(a.liveness.probe_interval.as_secs(), 10);
    assert_eq!(b.liveness.probe_interval.as_secs(), 4);
    assert_eq!(a.liveness.stall_timeout.map(|d| d.as_secs()), Some(9));
    let off = [
        b.liveness.stall_timeout,
        b.liveness.idle_timeout,
        b.liveness.delivery_timeout,
    ];
    assert_eq!(off, [None; 3]);
    assert_eq!(b.liveness.on_dead, OnDead::Close);
    assert_eq!(
        (a.limits.max_connections, b.limits.max_connections),
        (Some(3), None)
    );
    assert_eq!(config.admin, None);
    assert_eq!(config.workers.map(usize::from), Some(2));
}

/// What one listener shares with the others, and takes back.
#[test]
fn tls_is_inherited_changed_and_taken_back() {
    let text = "\
defaults:
  tls: { certificates: [{ certificate: /c, key: /k }], client_ca: /ca }
  upstream: { tls: { ca: /uca } }
listeners:
  - { name: a, address: '127.0.0.1:1', upstream: { address: 'x:1', check: { kind: tls } } }
  - name: b
    address: 127.0.0.1:2
    tls: { client_auth: optional, min_version: 1.3 }
    upstream: { address: 'x:1', tls: { server_name: s } }
  - { name: c, address: '127.0.0.1:3', tls: off, upstream: { address: 'x:1', tls: off } }
";
    let config = load(text).unwrap();
    let tls: Vec<_> = config.listeners.iter().map(|l| l.tls.as_ref()).collect();
    let (a, b) = (tls[0].unwrap(), tls[1].unwrap());
    assert_eq!(a.certificates, b.certificates);
    assert_eq!(a.client_auth, Some(ClientAuth::Required));
    assert_eq!(b.client_auth, Some(ClientAuth::Optional));
    assert_eq!(
        [a.min_version, b.min_version],
        [MinVersion::V1_2, MinVersion::V1_3]
    );
    let up: Vec<_> = config
        .listeners
        .iter()
        .map(|l| l.upstream.tls.as_ref())
        .collect();
    assert_eq!(up[1].unwrap().server_name.as_deref(), Some("s"));
    assert_eq!(up[0].unwrap().ca, up[1].unwrap().ca);
    assert_eq!((tls[2], up[2]), (None, None));
    let files = config.tls_files().map(|path| path.to_str().unwrap());
    let expected = ["/c", "/k", "/ca", "/c", "/k", "/ca", "/uca", "/uca"];
    assert_eq!(files.collect::<Vec<_>>(), expected);
    let printed = config::to_yaml(&config);
    assert_eq!(load(&printed), Ok(config), "{printed}");
}

#[test]
fn explain_says_how_long_a_handshake_may_take() {
    let given = ["--listen", "127.0.0.1:1", "--upstream", "db:2"];
    let run = |command, further: &[&str]| pulsegate(&[&[command], &given[..], further].concat());
    let tls = [
        "--tls-certificate",
        "/c",
        "--tls-key",
        "/k",
        "--tls-handshake-timeout",
        "7s",
        "--upstream-tls-ca",
        "system",
    ];
    let explained = out(&run("explain", &tls));
    assert!(
        explained.starts_with("default: 127.0.0.1:1 (TLS) -> db:2 (TLS), "),
        "{explained}"
    );
    for (leg, limit) in [("downstream", "7s"), ("upstream", "5s")] {
        let reason = format!("{leg}_tls_failed");
        let is = |line: &str| {
            line.contains("handshake") && line.contains(&reason) && line.ends_with(limit)
        };
        assert!(explained.lines().any(is), "{explained}");
    }
    let plain = out(&run("explain", &["--upstream-tls-ca", "off"]));
    assert_eq!(plain, out(&run("explain", &[])));
    let missing = err(&run("check", &["--tls-client-ca", "/ca"]));
    let accepted = "is missing; accepted: the path of a file";
    assert_eq!(
        missing,
        format!("--tls-certificate: {accepted}\n--tls-key: {accepted}\n")
    );
    let alone = err(&run(
        "check",
        &[&tls[..], &["--tls-client-auth", "optional"]].concat(),
    ));
    let needs = "--tls-client-auth: optional needs --tls-client-ca: the authorities that issue ";
    assert!(alone.starts_with(needs), "{alone}");
}

/// Two probes fit into the time after which a NAT forgets a quiet connection.
#[test]
fn probes_outpace_a_nat() {
    let required = [("listen", "127.0.0.1:1"), ("upstream", "127.0.0.1:2")];
    let interval = |given: &[(&'static str, &str)]| {
        let config = flags(&[&required, given].concat()).unwrap();
        config.listeners[0].liveness.probe_interval.as_secs()
    };
    let nat = |nat| interval(&[("detect-within", "10m"), ("nat-timeout", nat)]);
    assert_eq!(nat("0s"), 120);
    assert_eq!(nat("350s"), 120);
    assert_eq!(nat("240s"), 120);
    assert_eq!(nat("239s"), 119);
    assert_eq!(nat("3999ms"), 1);
    assert_eq!(nat("2s"), 1);
    let given = [
        ("nat-timeout", "60s"),
        ("detect-within", "60s"),
        ("probe-interval", "30s"),
    ];
    assert_eq!(interval(&given), 30);
    let given = [&required[..], &given[..2], &[("probe-interval", "31s")]].concat();
    let errors = flags(&given).unwrap_err().to_string();
    assert!(
        errors.starts_with("--probe-interval: 31s is above half of --nat-timeout 60s; "),
        "{errors}"
    );
    assert!(
        errors.contains("set --probe-interval to 30s or less, or leave it out"),
        "{errors}"
    );
}

#[test]
fn a_heartbeat_that_makes_no_sense_is_refused() {
    let with = |given: &[(&'static str, &str)]| {
        let required = [("listen", "127.0.0.1:1"), ("upstream", "127.0.0.1:2")];
        let custom = [("heartbeat", "custom")];
        let of_custom = &custom[..usize::from(given.first().is_none_or(|f| f.0 != "heartbeat"))];
        flags(&[&required, of_custom, given].concat()).map_err(|errors| errors.to_string())
    };
    assert!(with(&[]).is_ok());
    for (given, why) in [
        (
            &[("heartbeat-send", "PING")][..],
            "--heartbeat-send: what is sent is not one whole message of this framing",
        ),
        (
            &[("heartbeat-frame", "length")],
            "--heartbeat-send: what is sent is not one whole message",
        ),
        (
            &[("heartbeat-id-offset", "4"), ("heartbeat-id-size", "9")],
            "--heartbeat-send: the id stands outside of what is sent",
        ),
        (
            &[("idle-timeout", "15s")],
            "--heartbeat-after: 15s is not below --idle-timeout 15s, which would always come first",
        ),
        (
            &[("heartbeat", "redis"), ("heartbeat-leg", "downstream")],
            "--heartbeat-leg: downstream cannot be asked in redis",
        ),
        (
            &[("heartbeat", "imap")],
            "--heartbeat: \"imap\" cannot be asked in: NOOP draws untagged EXPUNGE out",
        ),
    ] {
        let error = with(given).unwrap_err();
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn every_profile_has_its_paragraph() {
    let text = read(&root().join("docs/HEARTBEATS.md"));
    for name in Protocol::VARIANTS {
        assert!(text.contains(&format!("### {name}\n")), "{name}");
    }
}

#[test]
fn explain_has_a_row_for_each_receive_timeout() {
    let explain = |further: &[&str]| {
        let args = [
            "explain",
            "--listen",
            "127.0.0.1:1",
            "--upstream",
            "127.0.0.1:2",
        ];
        out(&pulsegate(&[&args, further].concat()))
    };
    assert!(!explain(&[]).contains("_silent"));
    let both = explain(&[
        "--receive-timeout-downstream",
        "90s",
        "--receive-timeout-upstream",
        "2m",
    ]);
    for row in [
        ["downstream", "downstream_silent", "90s"],
        ["upstream", "upstream_silent", "2m"],
    ] {
        let is = |line: &str| {
            row.iter()
                .all(|part| line.split_whitespace().any(|word| word == *part))
        };
        assert!(both.lines().any(is), "{row:?}\n{both}");
    }
}

#[test]
fn explain_has_no_tcp_fault_on_a_leg_that_is_a_unix_socket() {
    let run = |command, listen, upstream, further: &[&str]| {
        let args = [command, "--listen", listen, "--upstream", upstream];
        out(&pulsegate(&[&args, further].concat()))
    };
    let (tcp, unix, listen) = ("127.0.0.1:1", "unix:/run/a.sock", "unix:/run/b.sock");
    let judged = |line: &&str| line.ends_with("do not act on it");
    for command in ["check", "explain"] {
        let one = run(command, tcp, unix, &[]);
        assert_eq!(one.lines().filter(judged).count(), 1, "{one}");
        assert!(
            one.contains("  upstream leg ") && one.contains("outage"),
            "{one}"
        );
        let none = run(command, listen, unix, &[]);
        assert_eq!(none.lines().filter(judged).count(), 2, "{none}");
        for word in ["outage", "probe", "_dead", "phantom"] {
            assert!(!none.contains(word), "{word}: {none}");
        }
        let plain = run(command, tcp, "127.0.0.1:2", &[]);
        assert_eq!(plain.lines().find(judged), None);
    }
    let service = run("explain", tcp, unix, &["--first-byte-timeout", "7s"]);
    assert!(
        service.contains("  downstream  vanished, idle "),
        "{service}"
    );
    assert!(service.contains("first_byte_timeout  7s\n"), "{service}");
    assert!(!service.contains("phantom"), "{service}");
    let client = run("explain", unix, tcp, &[]);
    assert!(client.contains("  upstream  vanished, idle "), "{client}");
    assert!(client.contains("upstream_phantom"), "{client}");
}

#[test]
fn explain_says_which_legs_a_nat_does_not_forget() {
    let explain = |further: &[&str]| {
        let args = [
            "explain",
            "--listen",
            "127.0.0.1:1",
            "--upstream",
            "127.0.0.1:2",
        ];
        out(&pulsegate(&[&args, further].concat()))
    };
    assert!(!explain(&[]).contains("nat_timeout"));
    let nat = ["--nat-timeout", "10s"];
    let kept = "  nat_timeout          10s; a probe every 5s of silence keeps both legs\n";
    assert!(explain(&nat).contains(kept));
    let one = explain(&[&nat[..], &["--probes-upstream", "false"]].concat());
    assert!(
        one.contains("keeps the downstream leg; nothing keeps a quiet upstream leg"),
        "{one}"
    );
    let none = ["--probes-upstream", "false", "--probes-downstream", "false"];
    let none = explain(&[&nat[..], &none].concat());
    assert!(
        none.contains("10s; nothing keeps a quiet connection"),
        "{none}"
    );
}

/// A default that is longer than a limit that is given is not an error, nor is it when it is printed.
#[test]
fn a_default_that_never_acts_is_printed_as_what_acts_before_it() {
    let text = "listeners: [{ address: 127.0.0.1:1, upstream: { address: 127.0.0.1:2 }, \
                liveness: { max_connection_duration: 30s } }]";
    let printed = config::to_yaml(&load(text).expect("accepted"));
    for key in [
        "idle_timeout",
        "half_close_timeout",
        "max_connection_duration",
    ] {
        assert!(printed.contains(&format!("{key}: 30s")), "{printed}");
    }
    let again = load(&printed).map(|config| config::to_yaml(&config));
    assert_eq!(again, Ok(printed));
}

#[test]
fn every_flag_sets_what_its_key_sets() {
    let yaml = "\
listeners:
  - name: default
    address: 127.0.0.1:1
    backlog: 2
    access: { allow: [10.0.0.0/8, fd00::/8], deny: [10.1.0.0/16] }
    tls:
      certificates: [{ certificate: /c, key: /k }]
      client_ca: /ca
      client_auth: optional
      min_version: 1.3
      alpn: [h2, http/1.1]
      sni: strict
      handshake_timeout: 3s
    proxy_protocol: require
    proxy_protocol_trusted: [10.0.0.0/8, '::1/128']
    proxy_protocol_timeout: 7s
    upstream:
      address: db:3
      balance: round_robin
      connect_timeout: 4s
      connect_retry: 300ms
      dial: first_byte
      resolve_interval: 6s
      source_address: [10.0.0.5, 10.0.0.6]
      ejection: { failures: 3, for: 31s }
      proxy_protocol: v1
      tls:
        ca: /uca
        server_name: db.example
        certificate: /uc
        key: /uk
        min_version: '1.3'
        alpn: [redis]
      check:
        kind: send
        interval: 18s
        timeout: 19s
        rise: 20
        fall: 21
        port: 22
        send: 'PING\\r\\n'
        expect: '+\\x50ONG'
        path: /primary
        status: 201-202
        on_down: verify
      when_down: refuse
    liveness:
      detect_within: 5s
      probe_interval: 2s
      nat_timeout: 4s
      probes: { downstream: false, upstream: false }
      idle_timeout: 70s
      half_close_timeout: 8s
      stall_timeout: 9s
      delivery_timeout: 90s
      receive_timeout: { downstream: 91s, upstream: 92s }
      heartbeat:
        profile: custom
        leg: both
        after: 33s
        timeout: 34s
        failures: 35
        modbus: { unit: 36, register: 37 }
        frame:
          kind: length
          delimiter: \\0
          header: 6
          offset: 1
          size: 2
          order: little
          adjust: 3
        send: \\0\\x03\\0id!
        expect: \\0\\x03\\0id
        id: { offset: 3, size: 2 }
      first_response_timeout: 10s
      max_connection_duration: 110s
      on_dead: close
      on_end: close
    limits:
      max_connections: 12
      on_full: verify
      queue_timeout: 12s
      first_byte_timeout: 17s
      abandoned: drop
      reconnect_delay: 500ms
      max_connections_per_source: 3
      rate_per_source: 100/m
      burst_per_source: 7
      source_prefix_ipv4: 24
      source_prefix_ipv6: 56
admin: off
limits: { memory: 96MiB }
drain: { delay: 13s, timeout: 14s }
log: { level: debug, format: json, access: off }
relay: { low_water: false }
workers: 15
";
    let given = [
        ("listen", "127.0.0.1:1"),
        ("backlog", "2"),
        ("tls-certificate", "/c"),
        ("tls-key", "/k"),
        ("tls-client-ca", "/ca"),
        ("tls-client-auth", "optional"),
        ("tls-min-version", "1.3"),
        ("tls-alpn", "h2,http/1.1"),
        ("tls-sni", "strict"),
        ("tls-handshake-timeout", "3s"),
        ("proxy-protocol", "require"),
        ("proxy-protocol-trusted", "10.0.0.0/8,::1/128"),
        ("proxy-protocol-timeout", "7s"),
        ("upstream", "db:3"),
        ("balance", "round_robin"),
        ("connect-timeout", "4s"),
        ("connect-retry", "300ms"),
        ("dial", "first_byte"),
        ("resolve-interval", "6s"),
        ("source-address", "10.0.0.5,10.0.0.6"),
        ("ejection-failures", "3"),
        ("ejection-for", "31s"),
        ("upstream-proxy-protocol", "v1"),
        ("upstream-tls-ca", "/uca"),
        ("upstream-tls-server-name", "db.example"),
        ("upstream-tls-certificate", "/uc"),
        ("upstream-tls-key", "/uk"),
        ("upstream-tls-min-version", "1.3"),
        ("upstream-tls-alpn", "redis"),
        ("check", "send"),
        ("check-interval", "18s"),
        ("check-timeout", "19s"),
        ("check-rise", "20"),
        ("check-fall", "21"),
        ("check-port", "22"),
        ("check-send", r"PING\r\n"),
        ("check-expect", r"+\x50ONG"),
        ("check-path", "/primary"),
        ("check-status", "201-202"),
        ("check-on-down", "verify"),
        ("when-down", "refuse"),
        ("detect-within", "5s"),
        ("probe-interval", "2s"),
        ("nat-timeout", "4s"),
        ("probes-downstream", "false"),
        ("probes-upstream", "false"),
        ("idle-timeout", "70s"),
        ("half-close-timeout", "8s"),
        ("stall-timeout", "9s"),
        ("delivery-timeout", "90s"),
        ("receive-timeout-downstream", "91s"),
        ("receive-timeout-upstream", "92s"),
        ("heartbeat", "custom"),
        ("heartbeat-leg", "both"),
        ("heartbeat-after", "33s"),
        ("heartbeat-timeout", "34s"),
        ("heartbeat-failures", "35"),
        ("heartbeat-modbus-unit", "36"),
        ("heartbeat-modbus-register", "37"),
        ("heartbeat-frame", "length"),
        ("heartbeat-delimiter", r"\0"),
        ("heartbeat-header", "6"),
        ("heartbeat-offset", "1"),
        ("heartbeat-size", "2"),
        ("heartbeat-order", "little"),
        ("heartbeat-adjust", "3"),
        ("heartbeat-send", r"\0\x03\0id!"),
        ("heartbeat-expect", r"\0\x03\0id"),
        ("heartbeat-id-offset", "3"),
        ("heartbeat-id-size", "2"),
        ("first-response-timeout", "10s"),
        ("max-connection-duration", "110s"),
        ("on-dead", "close"),
        ("on-end", "close"),
        ("max-connections", "12"),
        ("on-full", "verify"),
        ("queue-timeout", "12s"),
        ("first-byte-timeout", "17s"),
        ("abandoned", "drop"),
        ("reconnect-delay", "500ms"),
        ("access-allow", "10.0.0.0/8,fd00::/8"),
        ("access-deny", "10.1.0.0/16"),
        ("max-connections-per-source", "3"),
        ("rate-per-source", "100/m"),
        ("burst-per-source", "7"),
        ("source-prefix-ipv4", "24"),
        ("source-prefix-ipv6", "56"),
        ("admin", "off"),
        ("memory-limit", "96MiB"),
        ("drain-delay", "13s"),
        ("drain-timeout", "14s"),
        ("log-level", "debug"),
        ("log-format", "json"),
        ("access-log", "false"),
        ("low-water", "false"),
        ("workers", "15"),
    ];
    let config = load(yaml).unwrap();
    assert_eq!(flags(&given).unwrap(), config);
    // None of them has its default, so none may be missing where the configuration is printed.
    let printed = config::to_yaml(&config);
    assert_eq!(load(&printed), Ok(config), "{printed}");
    // Beside `admin: off` there are none.
    let off = flags(&[&given[..], &[("admin-control", "unix:/c")]].concat());
    let off = off.unwrap_err().to_string();
    assert_eq!(off, "admin is off: none of its keys can be given");
    let of_admin = [
        ("admin", "0.0.0.0:16"),
        ("admin-control", "unix:/run/c.sock"),
        ("admin-token-file", "/run/token"),
        ("admin-ready", "upstream"),
        ("admin-tls-certificate", "/ac"),
        ("admin-tls-key", "/ak"),
    ];
    let yaml = "admin: { address: 0.0.0.0:16, control: unix:/run/c.sock, token_file: /run/token, ready: upstream, \
                tls: { certificate: /ac, key: /ak } }";
    let yaml = MINIMAL.to_owned() + yaml;
    let minimal = [("listen", "0.0.0.0:9000"), ("upstream", "127.0.0.1:8080")];
    let config = load(&yaml).unwrap();
    assert_eq!(flags(&[&minimal[..], &of_admin].concat()).unwrap(), config);
    let printed = config::to_yaml(&config);
    assert_eq!(load(&printed), Ok(config), "{printed}");
    let known: BTreeSet<&str> = keys::KEYS.iter().filter_map(|key| key.flag).collect();
    let given = given.iter().chain(&of_admin[1..]);
    assert_eq!(known, given.map(|(flag, _)| *flag).collect());
}

#[test]
fn a_service_is_at_one_address_or_at_several() {
    let with = |upstream: &str| {
        let config = load(&format!(
            "listeners: [{{ address: '127.0.0.1:1', upstream: {{ {upstream} }} }}]"
        ));
        config.map(|mut config| config.listeners.remove(0).upstream)
    };
    let upstream = with("endpoints: [{ address: 'a:1' }, { address: '127.0.0.1:2' }]").unwrap();
    assert_eq!(upstream.to_string(), "a:1, 127.0.0.1:2");
    for (text, why) in [
        ("", "upstream.address: is missing; accepted: host:port"),
        (
            "endpoints: []",
            "upstream.address: is missing; accepted: host:port",
        ),
        (
            "address: 'a:1', endpoints: [{ address: 'a:2' }]",
            "upstream.endpoints: excludes address, a:1",
        ),
        (
            "endpoints: [{ address: 'a:1' }, { address: 'a:1' }]",
            "endpoints[1].address: a:1 is also endpoints[0]",
        ),
        (
            "endpoints: [{ address: 'a:1' }, { address: '127.0.0.1:1' }]",
            "endpoints[1].address: 127.0.0.1:1 is this listener itself",
        ),
        ("endpoints: [{}]", "endpoints[0].address: is missing"),
        (
            "address: '127.0.0.1:2', source_address: '::1'",
            "source_address: has no address of the family of 127.0.0.1:2",
        ),
        (
            "address: 'a:2', source_address: 10.0.0",
            "source_address[0]: \"10.0.0\" is not an IP address",
        ),
        (
            "address: 'a:2', source_address: []",
            "source_address: is empty",
        ),
    ] {
        let errors = with(text).unwrap_err().to_string();
        assert!(errors.contains(why), "{text}: {errors}");
    }
    let sources = |text: &str| with(&format!("address: 'a:1', source_address: {text}"));
    let two = sources("[10.0.0.5, 10.0.0.6]").unwrap();
    assert_eq!(sources("'10.0.0.5, 10.0.0.6'"), Ok(two));
    assert_eq!(sources("none").unwrap().source_address, None);
}

/// Helm makes 1e+06 of 1000000, and `false` of an unquoted `off`.
#[test]
fn what_other_tools_make_of_a_value_is_accepted() {
    let with = |limits: &str| load(&format!("{MINIMAL}    limits: {{ {limits} }}\n"));
    for text in ["1000000", "1e+06", "1e6", "1E6", "1.0e+06", "1000000.0"] {
        let config = with(&format!("max_connections: {text}")).unwrap();
        assert_eq!(config.listeners[0].limits.max_connections, Some(1_000_000));
        let config = load(&format!("{MINIMAL}workers: 1.6e+01\n")).unwrap();
        assert_eq!(config.workers.map(usize::from), Some(16));
    }
    for text in [
        "1.5e0", "1.5", "1e10", "1e400", "-1e3", ".inf", "\"1e6\"", "1e-3",
    ] {
        let errors = with(&format!("max_connections: {text}")).unwrap_err();
        let errors = errors.to_string();
        assert!(errors.contains("a whole number from 1"), "{text}: {errors}");
    }
    let by_flag = |n: &str| {
        let required = [("listen", "127.0.0.1:1"), ("upstream", "127.0.0.1:2")];
        let config = flags(&[&required[..], &[("max-connections", n)]].concat());
        config.map(|config| config.listeners[0].limits.max_connections)
    };
    assert_eq!(by_flag("1e+06"), Ok(Some(1_000_000)));
    for text in [
        "1.5e0", "1e", "e6", "inf", "nan", "+1", "1e-1", "1e99", "0x10", "",
    ] {
        assert!(by_flag(text).is_err(), "{text}");
    }
    for off in ["off", "false"] {
        let config = load(&format!(
            "{MINIMAL}admin: {off}\nlimits: {{ memory: {off} }}\n"
        ));
        let config = config.unwrap();
        assert_eq!(
            (config.admin, config.limits.memory),
            (None, MemoryLimit::Off)
        );
    }
    assert!(load(&format!("{MINIMAL}admin: true\n")).is_err());
}

#[test]
fn a_single_status_code_needs_no_quotes() {
    let schema = config::schema::json();
    let with = |status: &str| {
        let text = MINIMAL.replace("8080 }", &format!("8080, check: {{ status: {status} }} }}"));
        let document: Value = serde_yaml::from_str(&text).unwrap();
        (load(&text), accept(&schema, &document, ""))
    };
    for text in ["200", "\"200\"", "200-200"] {
        let (config, fits) = with(text);
        let check = &config.unwrap().listeners[0].upstream.check;
        assert_eq!(check.status, Statuses(200, 200), "{text}");
        assert_eq!(fits, Ok(()), "{text}");
    }
    for (text, why) in [
        ("99", "99 is no range"),
        ("600", "600 is no range"),
        ("2.5", "2.5 is not accepted"),
    ] {
        let (config, fits) = with(text);
        let errors = config.unwrap_err().to_string();
        assert!(errors.contains(why), "{errors}");
        assert!(errors.ends_with("accepted: status codes such as 200 or 200-299"));
        assert!(fits.is_err() || text == "2.5", "{text}");
    }
}

#[test]
fn a_memory_limit_is_a_word_or_a_size_with_a_unit() {
    let memory = |text: &str| {
        let config = load(&format!("{MINIMAL}limits: {{ memory: {text} }}\n"));
        config.map(|config| config.limits.memory)
    };
    let accepted = [
        ("auto", MemoryLimit::Auto),
        ("off", MemoryLimit::Off),
        ("16MiB", MemoryLimit::Bytes(16 << 20)),
        ("20000KiB", MemoryLimit::Bytes(20_000 << 10)),
        ("1024GiB", MemoryLimit::Bytes(1 << 40)),
    ];
    for (text, limit) in accepted {
        assert_eq!(memory(text), Ok(limit), "{text}");
    }
    let refused = [
        ("67108864", "67108864 has no unit"),
        ("\"67108864\"", "has no unit"),
        ("16383KiB", "is below 16MiB"),
        ("1025GiB", "is above 1024GiB"),
        ("64MB", "KiB, MiB, GiB"),
        ("true", "true is not accepted"),
        ("none", "is not a size"),
        ("0MiB", "is below 16MiB"),
    ];
    for (text, part) in refused {
        let errors = memory(text).unwrap_err().to_string();
        assert!(errors.contains(part), "{text}: {errors}");
        assert!(
            errors.contains("accepted: auto, off, or a size"),
            "{errors}"
        );
    }
}

/// Every default and every flag is consistent with the rest of its row.
#[test]
fn the_key_table_is_sound() {
    let paths: BTreeSet<&str> = keys::KEYS.iter().map(|key| key.path.as_str()).collect();
    assert_eq!(paths.len(), keys::KEYS.len(), "a path stands twice");
    for key in keys::KEYS.iter() {
        assert!(
            key.doc.ends_with('.') && !key.doc.contains(['\n', '|']),
            "{}",
            key.path
        );
        let parent = keys::parent(&key.path).trim_end_matches("[]");
        assert!(
            parent.is_empty() || paths.contains(parent),
            "{} hangs in the air",
            key.path
        );
        // A section has the defaults of its keys, or is off.
        let is_off = key.default == keys::Default::Value("off");
        assert_eq!(
            key.default == keys::Default::Keys || (is_off && key.is_section()),
            key.is_section(),
            "{}",
            key.path
        );
    }
}

#[test]
fn every_invalid_file_is_refused_with_the_expected_messages() {
    for path in files("tests/config/invalid") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read(&path).unwrap();
        let Err(errors) = config::load(name, &text) else {
            panic!("{name} was accepted");
        };
        expect(&path.with_extension("txt"), &format!("{errors}\n"));
    }
}

#[test]
fn hostile_files_are_refused() {
    let laughs = (1..12).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, i| {
            let item = format!("*a{}", i - 1);
            text + &format!("a{i}: &a{i} [{}]\n", [item.as_str(); 9].join(", "))
        },
    );
    let errors = load(&laughs).unwrap_err().to_string();
    assert!(errors.starts_with("f:1:"), "{errors}");
    assert!(errors.contains("more than 100000 values"), "{errors}");
    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(100_000),
        "*a, ".repeat(5000)
    );
    let errors = load(&long).unwrap_err().to_string();
    assert!(
        errors.contains("1 MiB of text, aliases expanded"),
        "{errors}"
    );
    let deep = "[".repeat(100_000);
    let errors = load(&deep).unwrap_err().to_string();
    assert_eq!(errors, "f:1:256: is nested too deeply");
    let many: String = (0..5000).map(|i| format!("unknown{i}: 1\n")).collect();
    let errors = load(&many).unwrap_err();
    assert_eq!(errors.lines().len(), 101);
    assert_eq!(errors.lines()[100], "and 4901 more");
    let missing = config::load_file(Path::new("/nonexistent/x.yaml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/x.yaml: cannot be read: No such file")
    );
    let folder = config::load_file(Path::new("/")).unwrap_err();
    assert!(folder.to_string().starts_with("/: cannot be read: "));
    let endless = config::load_file(Path::new("/dev/zero")).unwrap_err();
    assert_eq!(endless.to_string(), "/dev/zero: is larger than 1024 KiB");
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,300}") {
        let _ = load(&text);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = config::load("f", &bytes);
    }

    /// Damage to a good file: whatever it leads to is a configuration or a list of messages that
    /// each name the file.
    #[test]
    fn a_damaged_file_is_loaded_or_refused(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), "[-:#&*!?{}\\[\\]\"' \n\ta0é]{0,3}"), 1..6)
    ) {
        let mut text: Vec<char> = include_str!("../config/edge.yaml").chars().collect();
        for (at, new) in edits {
            let at = at.index(text.len());
            text.splice(at..=at, new.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = load(&text) {
            prop_assert!(errors.lines().iter().all(|line| line.starts_with('f')));
        }
    }

    #[test]
    fn arbitrary_flag_values_never_panic(value in "(?s).{0,40}") {
        for flag in keys::KEYS.iter().filter_map(|key| key.flag) {
            if let Err(errors) = flags(&[(flag, &value)]) {
                prop_assert!(errors.lines().iter().all(|line| line.starts_with("--")), "{errors}");
            }
        }
    }
}

#[test]
fn check_prints_what_follows_and_succeeds() {
    let output = pulsegate(&["check", "-c", "config/edge.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(err(&output), "");
    expect(&root().join("tests/config/check-edge.txt"), &out(&output));
}

#[test]
fn check_reports_errors_and_exits_with_2() {
    let file = "tests/config/invalid/durations.yaml";
    for command in ["check", "explain", "run"] {
        let output = pulsegate(&[command, "--config", file]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(out(&output), "");
        let expected = read(&root().join("tests/config/invalid/durations.txt"));
        assert_eq!(err(&output), expected.replace("durations.yaml", file));
    }
}

/// What cannot be used of the files that a configuration names, by check and by run.
fn of_files(name: &str, text: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    let said = ["check", "run"].map(|command| {
        let output = pulsegate(&[command, "-c", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(out(&output), "");
        err(&output)
    });
    assert_eq!(said[0], said[1]);
    let folder = format!("{}/", folder.display());
    said[0]
        .lines()
        .map(|line| line.replace(&folder, ""))
        .collect()
}

#[test]
fn the_file_of_a_token_is_read_by_check() {
    let with = |name: &str, file: &Path| {
        let text = format!(
            "{MINIMAL}admin:\n  address: 127.0.0.1:1\n  token_file: {}\n",
            file.display()
        );
        of_files(name, &text)
    };
    let expected =
        "admin.token_file: /nope: cannot be read: No such file or directory (os error 2)";
    let said = with("no-token.yaml", Path::new("/nope"));
    assert!(said.len() == 1 && said[0].ends_with(expected), "{said:?}");
    let short = Path::new(env!("CARGO_TARGET_TMPDIR")).join("short-token");
    std::fs::write(&short, "short").unwrap();
    let expected = "admin.token_file: short-token: must hold a token: 16 to 4096 printable characters on one line, no blanks";
    let said = with("short-token.yaml", &short);
    assert!(said.len() == 1 && said[0].ends_with(expected), "{said:?}");
}

#[test]
fn files_that_cannot_be_used_have_the_place_of_their_key() {
    let text = "\
defaults:
  tls: { certificates: [{ certificate: /nope.crt, key: /nope.key }] }
listeners:
  - name: own.name
    address: 127.0.0.1:1
    tls:
      certificates:
        - { certificate: /own.crt, key: /own.key }
    upstream: { address: 127.0.0.1:2, tls: { ca: /ca } }
  - name: inherits
    address: 127.0.0.1:3
    upstream: { address: 127.0.0.1:2 }
admin: { token_file: /token, tls: { certificate: /admin.crt, key: /admin.key } }
";
    let missing = [
        (
            "8:26",
            "listeners[own.name].tls.certificates[0].certificate: /own.crt",
        ),
        (
            "8:41",
            "listeners[own.name].tls.certificates[0].key: /own.key",
        ),
        ("9:50", "listeners[own.name].upstream.tls.ca: /ca"),
        (
            "2:40",
            "listeners[inherits].tls.certificates[0].certificate: /nope.crt",
        ),
        (
            "2:56",
            "listeners[inherits].tls.certificates[0].key: /nope.key",
        ),
        ("13:50", "admin.tls.certificate: /admin.crt"),
        ("13:67", "admin.tls.key: /admin.key"),
        ("13:22", "admin.token_file: /token"),
    ];
    let expected = missing.map(|(place, what)| {
        format!(
            "places.yaml:{place}: {what}: cannot be read: No such file or directory (os error 2)"
        )
    });
    assert_eq!(of_files("places.yaml", text), expected);
}

#[test]
fn explain_prints_the_worst_case_of_each_fault() {
    let args = ["--listen", "0.0.0.0:9000", "--upstream", "127.0.0.1:8080"];
    let output = pulsegate(&[&["explain"], &args[..]].concat());
    assert_eq!(output.status.code(), Some(0));
    expect(
        &root().join("tests/config/explain-defaults.txt"),
        &out(&output),
    );
    // Limits that act before the promise does.
    let short = [
        "--idle-timeout",
        "20s",
        "--half-close-timeout",
        "5s",
        "--stall-timeout",
        "15s",
    ];
    let output = pulsegate(&[&["explain"], &args[..], &short].concat());
    expect(
        &root().join("tests/config/explain-short.txt"),
        &out(&output),
    );
    // A budget so small that the kernel's own questions are rare in it.
    let output = pulsegate(&[&["explain"], &args[..], &["--detect-within", "3s"]].concat());
    expect(&root().join("tests/config/explain-3s.txt"), &out(&output));
}

#[test]
fn flag_errors_name_flag_value_and_what_is_accepted() {
    let output = pulsegate(&[
        "check",
        "--listen",
        "127.0.0.1:9000",
        "--upstream",
        "127.0.0.1:9000",
        "--detect-within",
        "5s",
        "--probe-interval",
        "6s",
        "--half-close-timeout",
        "2h",
        "--idle-timeout",
        "1h",
        "--workers",
        "0",
        "--admin",
        "no",
        "--log-level",
        "loud",
    ]);
    assert_eq!(output.status.code(), Some(2));
    expect(&root().join("tests/config/flags.txt"), &err(&output));
}

#[test]
fn wrong_usage_exits_with_2() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage: pulsegate <COMMAND>"),
        (
            &["check"],
            "give --config FILE, or --listen ADDR and --upstream ADDR\n",
        ),
        (
            &["check", "--listen", "0.0.0.0:1"],
            "--upstream: is missing; accepted: host:port",
        ),
        (
            &[
                "run",
                "-c",
                "config/edge.yaml",
                "--listen",
                "a",
                "--workers",
                "1",
            ],
            "--config excludes --listen, --workers: set these in config/edge.yaml\n",
        ),
        (
            &["run", "--detect-withn", "1s"],
            "a similar argument exists: '--detect-within'",
        ),
        (&["chek"], "unrecognized subcommand 'chek'"),
        (
            &["check", "edge.yaml"],
            "tip: for a configuration file: pulsegate check -c edge.yaml\n",
        ),
        (
            &["run", "--workers", "1", "edge.yaml"],
            "tip: for a configuration file: pulsegate run -c edge.yaml\n",
        ),
        (
            &["demo", "edge.yaml"],
            "unexpected argument 'edge.yaml' found\n\nUsage",
        ),
    ];
    for (args, expected) in cases {
        let output = pulsegate(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            err(&output).contains(expected),
            "{args:?}: {}",
            err(&output)
        );
        assert_eq!(out(&output), "");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let output = pulsegate(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("  3  an address could not be listened on"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for args in [
        &["schema"][..],
        &["--help"],
        &["check", "-c", "config/edge.yaml"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command
            .args(args)
            .current_dir(root())
            .stdout(Stdio::from(writer));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(err(&output), "");
    }
}

#[test]
fn the_schema_accepts_every_example_and_names_every_key() {
    let output = pulsegate(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_str(&out(&output)).unwrap();
    for path in files("config") {
        let document: Value = serde_yaml::from_str(&read(&path)).unwrap();
        accept(&schema, &document, "").unwrap_or_else(|why| panic!("{}{why}", path.display()));
    }
    for key in keys::KEYS.iter() {
        let places = [
            key.path.clone(),
            key.path.replace("listeners[]", "defaults"),
        ];
        let places = &places[..if key.inherited { 2 } else { 1 }];
        for place in places {
            assert!(named(&schema, place), "{place} is not in the schema");
        }
    }
    let names = out(&output).matches("\"description\"").count();
    let inherited = keys::KEYS.iter().filter(|key| key.inherited).count();
    assert_eq!(names, keys::KEYS.len() + inherited);
}

#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    let schema = config::schema::json();
    for name in [
        "everything-at-once",
        "wrong-types",
        "misplaced",
        "listeners-missing",
        "list",
    ] {
        let path = root().join(format!("tests/config/invalid/{name}.yaml"));
        let document: Value = match serde_yaml::from_str(&read(&path)) {
            Ok(document) => document,
            Err(_) => continue, // A YAML tag: JSON has none.
        };
        assert!(accept(&schema, &document, "").is_err(), "{name}");
    }
}

/// The part of JSON Schema that ours uses, but for `pattern`.
fn accept(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let no = |why: &str| Err(format!("{at}: {why}: {value}"));
    if let Some(options) = schema["anyOf"].as_array() {
        let accepted = options
            .iter()
            .any(|option| accept(option, value, at).is_ok());
        return if accepted {
            Ok(())
        } else {
            no("no option fits")
        };
    }
    if schema.get("const").is_some_and(|word| word != value) {
        return no("another word is needed");
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|words| !words.contains(value))
    {
        return no("not one of the words");
    }
    let is = type_of(value);
    let fits =
        |wanted: &Value| wanted == is || wanted.as_array().is_some_and(|w| w.contains(&is.into()));
    if schema.get("type").is_some_and(|wanted| !fits(wanted)) {
        return no("another type is needed");
    }
    let number = |name: &str| schema[name].as_u64();
    let below = |n| number("minimum").is_some_and(|min| n < min);
    let above = |n| number("maximum").is_some_and(|max| n > max);
    if value.as_u64().is_some_and(|n| below(n) || above(n)) {
        return no("out of range");
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        if number("minItems").is_some_and(|least| (list.len() as u64) < least) {
            return no("too short");
        }
        for (i, item) in list.iter().enumerate() {
            accept(items, item, &format!("{at}/{i}"))?;
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return no("a key is missing");
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => accept(schema, value, &format!("{at}/{name}"))?,
            None => return no(&format!("unknown key {name}")),
        }
    }
    Ok(())
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
        Value::Number(_) => "integer",
    }
}

fn named(schema: &Value, path: &str) -> bool {
    path.split('.')
        .try_fold(schema, |schema, name| {
            let (name, list) = match name.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (name, false),
            };
            let sections = schema["anyOf"]
                .as_array()
                .map_or(vec![schema], |any| any.iter().collect());
            let found = sections
                .into_iter()
                .find_map(|s| s["properties"].get(name))?;
            if list {
                found.get("items")
            } else {
                Some(found)
            }
        })
        .is_some()
}

/// Rewrites, or compares, what a document has between its two marks.
fn expect_table(name: &str, table: &str) {
    let path = root().join(name);
    let text = read(&path);
    let (head, rest) = text.split_once("<!-- keys -->\n").unwrap();
    let (_, tail) = rest.split_once("<!-- end of keys -->\n").unwrap();
    expect(
        &path,
        &format!("{head}<!-- keys -->\n{table}<!-- end of keys -->\n{tail}"),
    );
}

#[test]
fn the_tables_in_the_docs_are_those_of_the_keys() {
    expect_table("docs/CONFIGURATION.md", &config::docs::table());
    expect_table("docs/RELOAD.md", &config::docs::effects());
}
