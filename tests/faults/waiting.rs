//! Before both legs are up: a client that waits for a place, for descriptors, or for its upstream,
//! is watched like any other. One that vanished is found in time and none of its bytes goes on.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use serde_json::Value;

use crate::case::{Case, PROMPT, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    vanished_waiter_is_found_and_never_served_queue,
    vanished_waiter_is_found_and_never_served_verify,
    waiter_that_is_away_when_its_turn_comes_loses_its_turn_only,
    client_that_vanished_while_its_upstream_is_connected_is_found,
    client_that_vanished_as_its_upstream_answers_is_not_served,
    client_that_vanished_before_its_first_byte_is_found,
    client_that_vanished_while_it_waits_for_descriptors_is_found,
    live_waiters_are_never_ended,
    live_client_waits_for_its_upstream,
    waiter_that_said_fin_is_served_later,
    waiter_that_said_fin_leaves_where_it_is_to_be_dropped,
    waiter_that_said_fin_and_nothing_else_leaves_at_once,
    waiter_that_said_fin_after_an_urgent_byte_leaves,
];

/// Without what TLS has none of: an urgent byte.
pub const OVER_TLS: &[Test] = tests![
    vanished_waiter_is_found_and_never_served_queue,
    vanished_waiter_is_found_and_never_served_verify,
    waiter_that_is_away_when_its_turn_comes_loses_its_turn_only,
    client_that_vanished_while_its_upstream_is_connected_is_found,
    client_that_vanished_as_its_upstream_answers_is_not_served,
    client_that_vanished_before_its_first_byte_is_found,
    client_that_vanished_while_it_waits_for_descriptors_is_found,
    live_waiters_are_never_ended,
    live_client_waits_for_its_upstream,
    waiter_that_said_fin_is_served_later,
    waiter_that_said_fin_leaves_where_it_is_to_be_dropped,
    waiter_that_said_fin_and_nothing_else_leaves_at_once,
];

/// What a waiting client sends.
const COMMAND: u64 = 5000;
/// What the next in line sends.
const OTHER: u64 = 3000;
/// `detect_within` of the cases that follow the report.
const DETECT: Duration = ms(5000);
const ONE_PLACE: [&str; 4] = ["--max-connections", "1", "--queue-timeout", "0s"];

fn one_place(on_full: &str, detect_within: &str, flags: &[&str]) -> Case {
    let own = ["--on-full", on_full, "--detect-within", detect_within];
    Case::with_all_flags(&[&ONE_PLACE, &own[..], flags].concat(), Options::default())
}

/// A client that speaks at once and goes on living.
fn speaker(case: &Case, from: Host, bytes: u64) -> Endpoint {
    let client = case.net.dial(from, Options::default());
    client.send(bytes);
    assert!(client.wait_sent(PROMPT));
    client
}

fn value(case: &Case, name: &str, labels: &[(&str, &str)]) -> f64 {
    case.proxy.metrics().value(name, labels)
}

#[track_caller]
fn wait_value(case: &Case, name: &str, expected: f64, within: Duration) {
    let reached = eventually(within, || value(case, name, &[]) == expected);
    let all = case.proxy.metrics().excerpt("pulsegate_");
    assert!(reached, "{name} is not {expected}\n{all}");
}

#[track_caller]
fn wait_queued(case: &Case, clients: f64) {
    wait_value(case, "pulsegate_connections_queued", clients, PROMPT);
}

/// What `/connections` shows of a client.
#[track_caller]
fn shown(case: &Case, client: &Endpoint) -> Value {
    let path = format!("/connections?peer={}", client.local);
    let (_, body) = case.proxy.get(&path).expect("answered");
    let list: Value = serde_json::from_str(&body).expect("JSON");
    list["connections"][0].clone()
}

/// The client, gone at `since`, is shown as suspect, then found within D, and counted.
#[track_caller]
fn expect_found(case: &Case, client: &Endpoint, since: Instant, detect_within: Duration) {
    let latest = detect_within + ms(300) + SLACK;
    let suspect = || shown(case, client)["downstream"]["condition"] == "suspect";
    assert!(eventually(latest, suspect), "{}", shown(case, client));
    let half_open = "pulsegate_half_open_connections";
    let on = [("leg", "downstream")];
    assert_eq!(value(case, half_open, &on), 1.0);
    let timer = &shown(case, client)["downstream"]["timer"];
    assert_eq!(timer["reason"], "downstream_dead", "{timer}");

    let found = || case.proxy.closed("downstream_dead") == 1.0;
    assert!(eventually(latest, found), "{}", shown(case, client));
    let took = since.elapsed();
    assert!(took <= latest, "found only after {took:?}");
    // Its last sign of life may be a probe interval of a second old.
    assert!(took + ms(1300) >= detect_within, "found after {took:?}");
    let detected = [("leg", "downstream"), ("evidence", "keepalive")];
    let count = value(case, "pulsegate_half_open_detected_total", &detected);
    assert_eq!(count, 1.0);
    assert_eq!(value(case, half_open, &[]), 0.0);
    let told = |line: &str| line.contains("downstream_dead") && line.contains("keepalive");
    let said = || case.proxy.output().lines().any(told);
    assert!(eventually(PROMPT, said), "{}", case.proxy.output());
}

/// The next connection to the service carries exactly this.
#[track_caller]
fn expect_next(case: &Case, bytes: u64) -> Endpoint {
    let device = case.service.next_within(PROMPT + SLACK).expect("served");
    assert!(device.wait_received(bytes, PROMPT), "{device:?}");
    thread::sleep(ms(100));
    assert_eq!(device.received(), bytes, "somebody else's bytes");
    assert_eq!(device.corrupt_at(), None);
    device
}

fn finish(client: &Endpoint, device: &Endpoint) {
    client.finish();
    device.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    assert_eq!(device.wait_end(PROMPT).1, End::Finished);
}

fn vanished_waiter_is_found_and_never_served(on_full: &str) {
    let case = one_place(on_full, "5s", &[]);
    let (holder, device) = case.session_with(Host::Healthy, Options::default());
    holder.send_every(500, ms(100));
    device.send_every(500, ms(100));
    let waiter = speaker(&case, Host::Client, COMMAND);
    wait_queued(&case, 1.0);
    let next = speaker(&case, Host::Healthy, OTHER);
    wait_queued(&case, 2.0);
    thread::sleep(ms(1500));
    let view = shown(&case, &waiter);
    assert_eq!(view["phase"], "queued", "{view}");
    assert_eq!(view["downstream"]["condition"], "alive", "{view}");

    let since = case.cut(Host::Client);
    expect_found(&case, &waiter, since, DETECT);
    wait_queued(&case, 1.0);
    holder.stop_sending();
    device.stop_sending();
    finish(&holder, &device);
    let served = expect_next(&case, OTHER);
    finish(&next, &served);
    assert!(case.service.next_within(ms(500)).is_none());
    drop((holder, device, next, served));
    case.expect_nothing_left();
}

fn vanished_waiter_is_found_and_never_served_queue() {
    vanished_waiter_is_found_and_never_served("queue");
}

fn vanished_waiter_is_found_and_never_served_verify() {
    vanished_waiter_is_found_and_never_served("verify");
}

/// Nobody knows yet whether it has gone: it is passed over, and served when it is back.
fn waiter_that_is_away_when_its_turn_comes_loses_its_turn_only() {
    let case = one_place("queue", "60s", &[]);
    let (holder, device) = case.session_with(Host::Healthy, Options::default());
    let waiter = speaker(&case, Host::Client, COMMAND);
    wait_queued(&case, 1.0);
    let next = speaker(&case, Host::Healthy, OTHER);
    wait_queued(&case, 2.0);
    thread::sleep(ms(1500));
    case.cut(Host::Client);
    finish(&holder, &device);
    let served = expect_next(&case, OTHER);
    thread::sleep(ms(2000));
    assert_eq!(shown(&case, &waiter)["phase"], "queued");
    finish(&next, &served);
    assert!(case.service.next_within(ms(3000)).is_none());
    case.net.heal(Host::Client);
    // It is asked again once in 12 s.
    let served = case.service.next_within(ms(20_000)).expect("served");
    assert!(served.wait_received(COMMAND, PROMPT));
    finish(&waiter, &served);
}

fn client_that_vanished_while_its_upstream_is_connected_is_found() {
    let case = Case::with(&["--connect-timeout", "60s"], Options::default());
    case.cut(Host::Service);
    let client = speaker(&case, Host::Client, COMMAND);
    thread::sleep(ms(1500));
    let view = shown(&case, &client);
    assert_eq!(view["phase"], "connecting", "{view}");
    assert_eq!(view["downstream"]["condition"], "alive", "{view}");
    let since = case.cut(Host::Client);
    expect_found(&case, &client, since, ms(3000));
    case.net.heal(Host::Service);
    assert!(case.service.next_within(ms(3000)).is_none());
    case.expect_nothing_left();
}

fn client_that_vanished_before_its_first_byte_is_found() {
    let case = Case::with(&["--dial", "first_byte"], Options::default());
    let client = case.net.dial(Host::Client, Options::default());
    thread::sleep(ms(1500));
    let view = shown(&case, &client);
    assert_eq!(view["phase"], "connecting", "{view}");
    assert_eq!(view["downstream"]["condition"], "alive", "{view}");
    let since = case.cut(Host::Client);
    expect_found(&case, &client, since, ms(3000));
    assert!(case.service.next_within(ms(1000)).is_none());
    case.expect_nothing_left();
}

/// The service is back a moment after the client has gone.
fn client_that_vanished_as_its_upstream_answers_is_not_served() {
    let case = Case::with(&["--connect-timeout", "60s"], Options::default());
    case.cut(Host::Service);
    let client = speaker(&case, Host::Client, COMMAND);
    thread::sleep(ms(1500));
    case.cut(Host::Client);
    thread::sleep(ms(1200));
    case.net.heal(Host::Service);
    let device = case.service.next_within(ms(15_000));
    let found = || case.proxy.closed("downstream_dead") == 1.0;
    assert!(eventually(ms(10_000), found), "{}", shown(&case, &client));
    // The SYN may have been repeated while the client was known to be silent.
    if let Some(device) = device {
        assert_eq!(device.wait_end(PROMPT).1, End::Reset);
        assert_eq!(device.received(), 0, "its bytes went on");
    }
}

fn client_that_vanished_while_it_waits_for_descriptors_is_found() {
    /// Room for 22 sessions, beside 2 workers with 2 pipes each.
    const DESCRIPTORS: u32 = 148;
    let flags = ["--detect-within", "2s", "--workers", "2"];
    let case = Case::with_descriptors(DESCRIPTORS, &flags);
    let mut busy = Vec::new();
    for _ in 0..22 {
        let (client, service) = case.session_with(Host::Healthy, Options::default());
        client.send_every(500, ms(200));
        service.send_every(500, ms(200));
        busy.push((client, service));
    }
    let _client = speaker(&case, Host::Client, COMMAND);
    case.cut(Host::Client);
    case.expect_counted("downstream_dead", 1);
    case.expect_counted("rejected", 0);
    assert!(busy.iter().all(|(c, s)| c.is_open() && s.is_open()));
}

/// One that sent more than fits, and one that says nothing.
fn live_waiters_are_never_ended() {
    let case = one_place("verify", "2s", &[]);
    let (holder, device) = case.session_with(Host::Healthy, Options::default());
    let loud = case.net.dial(Host::Client, Options::default());
    loud.send(16 << 20);
    wait_queued(&case, 1.0);
    let quiet = case.net.dial(Host::Client, Options::default());
    wait_queued(&case, 2.0);
    thread::sleep(ms(8000));
    assert!(loud.is_open() && quiet.is_open());
    assert_eq!(value(&case, "pulsegate_half_open_connections", &[]), 0.0);
    assert_eq!(shown(&case, &loud)["downstream"]["condition"], "alive");
    finish(&holder, &device);
    let device = case.service.next();
    assert!(device.wait_received(16 << 20, ms(15_000)), "{device:?}");
    finish(&loud, &device);
    let device = case.service.next();
    quiet.send(COMMAND);
    assert!(device.wait_received(COMMAND, PROMPT));
    let waited = |line: &str| line.contains("queued_ms=") && !line.contains("abandoned");
    let said = || case.proxy.output().lines().any(waited);
    assert!(eventually(PROMPT, said), "{}", case.proxy.output());
}

fn live_client_waits_for_its_upstream() {
    let case = Case::with(&["--connect-timeout", "60s"], Options::default());
    case.cut(Host::Service);
    let client = speaker(&case, Host::Client, COMMAND);
    thread::sleep(ms(6500));
    assert!(client.is_open());
    case.net.heal(Host::Service);
    let device = case.service.next_within(ms(20_000)).expect("served");
    assert!(device.wait_received(COMMAND, PROMPT));
    device.send(100);
    assert!(client.wait_received(100, PROMPT));
    case.wait_acknowledged(&client);
    // Both are watched: the clock of neither began again.
    let since = case.cut(Host::Client);
    assert_eq!(device.wait_end(ms(3300) + SLACK).1, End::Reset);
    assert!(since.elapsed() >= ms(1700), "{:?}", since.elapsed());
    case.expect_counted_dead("downstream", "keepalive");
}

/// It gave up, but what it sent is wanted (a print job). Its kernel is not asked meanwhile: it
/// would have forgotten the connection.
fn waiter_that_said_fin_is_served_later() {
    let case = one_place("queue", "2s", &[]);
    let (holder, device) = case.session_with(Host::Healthy, Options::default());
    let gone = speaker(&case, Host::Client, COMMAND);
    wait_queued(&case, 1.0);
    gone.close();
    thread::sleep(ms(500));
    // However silent its host is from now on.
    case.cut(Host::Client);
    thread::sleep(ms(5000));
    wait_queued(&case, 1.0);
    finish(&holder, &device);
    let device = expect_next(&case, COMMAND);
    assert_eq!(device.wait_end(PROMPT).1, End::Finished);
    device.finish();
    let ended = |line: &str| line.contains("queued_ms=") && line.contains("abandoned=true");
    let said = || case.proxy.output().lines().any(ended);
    assert!(eventually(ms(10_000), said), "{}", case.proxy.output());
}

fn waiter_that_said_fin_leaves_where_it_is_to_be_dropped() {
    let case = one_place("queue", "60s", &["--abandoned", "drop"]);
    let (holder, device) = case.session_with(Host::Healthy, Options::default());
    let gone = speaker(&case, Host::Client, COMMAND);
    let next = speaker(&case, Host::Healthy, OTHER);
    wait_queued(&case, 2.0);
    gone.close();
    wait_queued(&case, 1.0);
    case.expect_counted("connect_cancelled", 1);
    let words = ["connect_cancelled", "abandoned=true", "queued_ms="];
    let told = |line: &str| words.iter().all(|word| line.contains(word));
    let said = || case.proxy.output().lines().any(told);
    assert!(eventually(PROMPT, said), "{}", case.proxy.output());
    finish(&holder, &device);
    let served = expect_next(&case, OTHER);
    finish(&next, &served);
    assert!(case.service.next_within(ms(500)).is_none());
}

fn waiter_that_said_fin_and_nothing_else_leaves_at_once() {
    let case = one_place("queue", "60s", &[]);
    let (_holder, _device) = case.session_with(Host::Healthy, Options::default());
    let gone = case.net.dial(Host::Client, Options::default());
    wait_queued(&case, 1.0);
    gone.close();
    wait_queued(&case, 0.0);
    case.expect_counted("connect_cancelled", 1);
}

/// Behind an urgent byte the FIN is seen as well.
fn waiter_that_said_fin_after_an_urgent_byte_leaves() {
    let case = one_place("queue", "60s", &["--abandoned", "drop"]);
    let (_holder, _device) = case.session_with(Host::Healthy, Options::default());
    let listener = case.net.listener(Host::Client);
    let connect = || TcpStream::connect(listener);
    let client = case.net.host(Host::Client).run(connect).expect("entered");
    let client = client.expect("connected");
    rustix::net::send(&client, b"abc", SendFlags::OOB).expect("sent");
    wait_queued(&case, 1.0);
    thread::sleep(ms(500));
    drop(client);
    wait_queued(&case, 0.0);
    case.expect_counted("connect_cancelled", 1);
}
