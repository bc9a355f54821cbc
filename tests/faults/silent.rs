//! A peer that lives and sends no payload: each leg has a clock for it, whatever the other one sends.

use std::time::{Duration, Instant};

use crate::case::{Case, DETECT, HELLO, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    silent_client_is_ended_in_time,
    silent_service_is_ended_in_time,
    peers_that_send_are_kept,
    vanished_client_is_dead_and_not_silent,
    what_was_received_is_delivered_before_the_end,
];

const TIMEOUT: Duration = ms(2000);
const BOTH: [&str; 4] = [
    "--receive-timeout-downstream",
    "2s",
    "--receive-timeout-upstream",
    "2s",
];

fn silent_client_is_ended_in_time() {
    let case = Case::with(&BOTH[..2], Options::default());
    let (client, service) = case.session();
    ends_for_silence(&case, "downstream_silent", &service, &client);
}

fn silent_service_is_ended_in_time() {
    let case = Case::with(&BOTH[2..], Options::default());
    let (client, service) = case.session();
    ends_for_silence(&case, "upstream_silent", &client, &service);
}

/// One end speaks all the time, and the other one takes it without a word.
#[track_caller]
fn ends_for_silence(case: &Case, reason: &str, speaker: &Endpoint, silent: &Endpoint) {
    let since = Instant::now();
    speaker.send_every(100, ms(200));
    for end in [speaker, silent] {
        let (at, end) = end.wait_end(TIMEOUT + ms(1500) + SLACK);
        assert_eq!(end, End::Reset);
        let after = at.duration_since(since);
        // The greeting came before.
        assert!(after >= TIMEOUT - ms(500), "ended after only {after:?}");
    }
    case.expect_closed(reason);
}

fn peers_that_send_are_kept() {
    let case = Case::with(&BOTH, Options::default());
    let (client, service) = case.session();
    client.send_every(1, ms(500));
    service.send_every(1, ms(500));
    let ended = || !client.is_open() || !service.is_open();
    assert!(!eventually(TIMEOUT * 3, ended), "{client:?} {service:?}");
    client.stop_sending();
    service.stop_sending();
    case.expect_intact(&client, &service);
}

/// The timeout passes while nobody knows whether it lives.
fn vanished_client_is_dead_and_not_silent() {
    // A bit later than it is suspected.
    let case = Case::with(&[BOTH[0], "2500ms"], Options::default());
    let (_client, service) = case.session_at_rest();
    case.cut(Host::Client);
    assert_eq!(service.wait_end(DETECT + ms(1500) + SLACK).1, End::Reset);
    case.expect_counted_dead("downstream", "keepalive");
}

/// It lives and reads: as with every end that pulsegate decides, nothing is thrown away.
fn what_was_received_is_delivered_before_the_end() {
    const ANSWER: u64 = 400_000;
    let slow = Options {
        polite: true,
        read_rate: Some(1024),
        receive_buffer: Some(32 << 10),
        ..Options::default()
    };
    let case = Case::with(&[BOTH[0], "5s"], Options::default());
    let (client, service) = case.session_with(Host::Client, slow);
    service.send(ANSWER);
    let taken =
        || service.sent() >= ANSWER && case.net.unacknowledged(Host::Service, &service) == 0;
    assert!(eventually(ms(4500), taken), "{service:?}");
    // What is in the receive buffer of its kernel then is not for pulsegate to deliver.
    assert!(client.wait_reset(ms(30_000)));
    case.expect_closed("downstream_silent");
    let to_client = [("leg", "downstream")];
    let metrics = case.proxy.metrics();
    let sent = metrics.value("pulsegate_sent_bytes_total", &to_client);
    assert_eq!(sent, (HELLO + ANSWER) as f64);
}
