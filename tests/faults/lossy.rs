//! A path that swallows some packets and lets others pass: both peers live, and one direction of
//! their conversation does not get through, or some packets by chance.

use std::thread;
use std::time::Instant;

use crate::case::{Case, PROMPT, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    data_that_never_arrives_at_a_client_that_talks,
    data_that_never_arrives_at_a_service_that_talks,
    data_that_arrives_slowly_is_delivered,
    quiet_client_that_answers_no_probe_is_kept_without_probes,
    quiet_service_that_answers_no_probe_is_kept_without_probes,
    quiet_client_that_answers_no_probe_is_ended_with_a_hint,
    quiet_clients_behind_loss_are_kept,
    clients_behind_loss_answer_a_quick_inquiry,
];

pub const OVER_TLS: &[Test] = tests![
    data_that_never_arrives_at_a_client_that_talks,
    data_that_never_arrives_at_a_service_that_talks,
    quiet_clients_behind_loss_are_kept,
    client_that_vanishes_in_its_handshake_is_found,
];

const BIG: &str = "meta length > 1000";
/// A segment without payload: a keepalive probe, or a bare acknowledgement.
const BARE: &str = "meta length < 60 tcp flags & (syn | fin | rst | psh | ack) == ack";
const DETECT: [&str; 2] = ["--detect-within", "6s"];

/// A path MTU black hole towards a peer that goes on talking.
fn never_arrives(deaf: Host) {
    let flags = [&DETECT[..], &["--delivery-timeout", "5s"]].concat();
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    let (leg, talks, sends) = match deaf {
        Host::Service => ("upstream", &service, &client),
        _ => ("downstream", &client, &service),
    };
    case.net.drop_at(deaf, BIG);
    talks.send_every(1, ms(1000));
    let since = Instant::now();
    sends.send(20_000);
    let on = [("leg", leg)];
    let gauge = |name: &str| case.proxy.metrics().value(name, &on);
    let seen = || gauge("pulsegate_undelivered_connections") == 1.0;
    assert!(eventually(ms(4500), seen), "shown as undelivered");
    assert_eq!(gauge("pulsegate_half_open_connections"), 0.0);
    let shown = case.proxy.get("/connections?condition=undelivered");
    let (status, shown) = shown.expect("an answer");
    assert_eq!(status, 200);
    assert!(shown.contains("undelivered"), "{shown}");
    let (at, end) = sends.wait_end(ms(8000) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(4800), "closed after only {after:?}");
    case.expect_closed(&format!("{leg}_undelivered"));
    assert_eq!(gauge("pulsegate_undelivered_connections"), 0.0);
}

fn data_that_never_arrives_at_a_client_that_talks() {
    never_arrives(Host::Client);
}

fn data_that_never_arrives_at_a_service_that_talks() {
    never_arrives(Host::Service);
}

/// It has begun, and never hears the answer.
fn client_that_vanishes_in_its_handshake_is_found() {
    let flags = [&DETECT[..], &["--tls-handshake-timeout", "60s"]].concat();
    let case = Case::with_all_flags(&flags, Options::default());
    case.net.drop_at(Host::Client, "meta length > 300");
    let since = Instant::now();
    let client = case.net.dial(Host::Client, Options::default());
    assert!(!client.wait_secured(ms(1000)), "{client:?}");
    case.cut(Host::Client);
    let found = || case.proxy.closed("downstream_dead") == 1.0;
    assert!(eventually(ms(6300) + SLACK, found));
    let after = since.elapsed();
    assert!(after >= ms(6000), "found after only {after:?}");
    assert!(after <= ms(6300) + SLACK, "found only after {after:?}");
    case.expect_counted_dead("downstream", "retransmit");
}

/// Most of it is lost, and takes much longer than the timeout in all; but something arrives.
fn data_that_arrives_slowly_is_delivered() {
    let flags = [&DETECT[..], &["--delivery-timeout", "5s"]].concat();
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    case.net
        .drop_at(Host::Client, "limit rate over 3/second burst 2 packets");
    client.send_every(1, ms(1000));
    service.send_every(3000, ms(500));
    thread::sleep(ms(12_000));
    client.stop_sending();
    service.stop_sending();
    assert!(client.wait_sent(PROMPT) && service.wait_sent(PROMPT));
    assert!(client.is_open() && service.is_open(), "{client:?}");
    assert!(client.received() > 3000, "{client:?}");
    assert_eq!(case.proxy.closed("downstream_undelivered"), 0.0);
}

/// Probes to one peer are lost, and it lives; nothing is said for twice the budget.
fn kept_without_probes(quiet: Host) {
    let leg = if quiet == Host::Service {
        "upstream"
    } else {
        "downstream"
    };
    let off = format!("--probes-{leg}=false");
    let flags = ["--detect-within", "3s", &off];
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    case.net.drop_at(quiet, BARE);
    thread::sleep(ms(8000));
    let on = [("leg", leg)];
    let half_open = case.proxy.metrics();
    let half_open = half_open.value("pulsegate_half_open_connections", &on);
    assert_eq!(half_open, 0.0);
    // It is asked nothing, so that nothing is known of it.
    let (code, verified) = case.proxy.command(&["verify", "--quick", "1"]);
    assert!(verified.contains("unknown"), "{code:?}: {verified}");
    client.send(3000);
    service.send(3000);
    case.expect_intact(&client, &service);
}

fn quiet_client_that_answers_no_probe_is_kept_without_probes() {
    kept_without_probes(Host::Client);
}

fn quiet_service_that_answers_no_probe_is_kept_without_probes() {
    kept_without_probes(Host::Service);
}

fn quiet_client_that_answers_no_probe_is_ended_with_a_hint() {
    let case = Case::with_all_flags(&["--detect-within", "3s"], Options::default());
    let first = case.session();
    let second = case.session();
    case.net.drop_at(Host::Client, BARE);
    for (_client, service) in [first, second] {
        let (_, end) = service.wait_end(ms(3300) + SLACK);
        assert_eq!(end, End::Reset);
    }
    case.expect_closed_times("downstream_dead", 2);
    let log = case.proxy.output();
    assert_eq!(
        log.matches("liveness.probes.downstream: false").count(),
        1,
        "{log}"
    );
    assert!(log.contains("downstream_probes_answered=0"), "{log}");
}

/// Of so many rows of questions at 10 % loss each way, chance leaves one without an answer with a
/// probability of a few percent, two with one of 1 in 1000.
const BY_CHANCE: f64 = 1.0;

fn behind_loss(sessions: usize, flags: &[&str]) -> (Case, Vec<(Endpoint, Endpoint)>) {
    let case = Case::with_all_flags(flags, Options::default());
    let sessions = (0..sessions).map(|_| case.session()).collect();
    case.net.lose(Host::Client);
    (case, sessions)
}

/// 100 peers, each asked about once a second.
fn quiet_clients_behind_loss_are_kept() {
    let (case, sessions) = behind_loss(100, &["--detect-within", "3s"]);
    thread::sleep(ms(12_000));
    let ended = case.proxy.closed("downstream_dead");
    assert!(ended <= BY_CHANCE, "{ended} ended");
    let open = sessions.iter().filter(|(client, _)| client.is_open());
    assert!(open.count() >= 99);
}

/// 150 peers, six times. Of questions 200 ms apart a peer answers one in three, and one or two of 100
/// peers none.
fn clients_behind_loss_answer_a_quick_inquiry() {
    let (case, _sessions) = behind_loss(150, &["--detect-within", "60s"]);
    for round in 0..6 {
        thread::sleep(ms(1200));
        let answer = case.proxy.ask("POST", "/verify?quick=true");
        let (status, body) = answer.expect("answered");
        assert_eq!(status, 200, "{round}: {body}");
    }
    let ended = case.proxy.closed("downstream_dead");
    assert!(ended <= BY_CHANCE, "{ended} ended");
}
