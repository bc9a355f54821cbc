//! A stream whose FIN has come is delivered whole, however slow its receiver is and whatever becomes
//! of its sender.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::case::{Case, HELLO, PROMPT};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    answer_of_a_service_that_forgot_is_delivered,
    answer_that_came_bit_by_bit_is_delivered,
    job_of_a_client_that_forgot_is_delivered,
    answer_of_a_service_whose_host_went_off_is_delivered,
    job_of_a_client_whose_host_went_off_is_delivered,
    job_waits_for_a_device_that_takes_nothing,
    answer_is_whole_although_the_client_still_sends,
    job_is_whole_although_the_device_still_sends,
    client_that_said_fin_is_judged_when_it_is_owed_something,
    reset_with_the_answer_unread_is_told,
];

const STREAM: u64 = 600_000;
/// Some 50 kB/s: the stream takes 12 s.
const SLOW: Options = Options {
    echo: false,
    polite: true,
    paused: false,
    read_rate: Some(1 << 10),
    receive_buffer: Some(32 << 10),
};
const DELIVERED: Duration = ms(40_000);

/// How long the kernel of a host remembers a connection that was closed there and not by its peer.
fn forget_after(case: &Case, host: Host, seconds: u32) {
    let write = || fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", seconds.to_string());
    case.net.host(host).run(write).expect("enter").expect("set");
}

/// The receiver gets every byte and the FIN, and the session ends well.
fn expect_whole(case: &Case, receiver: &Endpoint) {
    let (_, end) = receiver.wait_end(DELIVERED);
    assert_eq!(receiver.received(), HELLO + STREAM, "every byte");
    assert_eq!(end, End::Finished);
    assert_eq!(receiver.corrupt_at(), None);
    case.expect_closed("finished");
    let metrics = case.proxy.metrics();
    let found = metrics.value("pulsegate_half_open_detected_total", &[]);
    assert_eq!(found, 0.0);
}

/// It is not counted as half-open while it is delivered, and an inquiry calls nobody silent.
fn expect_no_suspect(case: &Case) {
    thread::sleep(ms(5000));
    let metrics = case.proxy.metrics();
    let half_open = metrics.value("pulsegate_half_open_connections", &[]);
    assert_eq!(half_open, 0.0);
    assert_eq!(metrics.value("pulsegate_connections_active", &[]), 1.0);
    let (code, printed) = case.proxy.command(&["verify", "--all"]);
    assert_eq!(code, Some(0), "{printed}");
}

fn answer_of_a_service_that_forgot_is_delivered() {
    let case = Case::new();
    forget_after(&case, Host::Service, 2);
    let (client, service) = case.session_with(Host::Client, SLOW);
    service.send(STREAM);
    assert!(service.wait_sent(PROMPT));
    service.close();
    expect_no_suspect(&case);
    expect_whole(&case, &client);
}

/// Never in bulk, so it is copied.
fn answer_that_came_bit_by_bit_is_delivered() {
    let case = Case::new();
    forget_after(&case, Host::Service, 1);
    let (client, service) = case.session_with(Host::Client, SLOW);
    for _ in 0..60 {
        service.send(STREAM / 60);
        thread::sleep(ms(30));
    }
    assert!(service.wait_sent(PROMPT));
    service.close();
    expect_no_suspect(&case);
    expect_whole(&case, &client);
}

fn job_of_a_client_that_forgot_is_delivered() {
    let case = Case::with(&[], SLOW);
    forget_after(&case, Host::Client, 2);
    let (client, service) = case.session();
    client.send(STREAM);
    assert!(client.wait_sent(PROMPT));
    client.close();
    expect_no_suspect(&case);
    expect_whole(&case, &service);
}

/// Until everything has left a host.
fn wait_acknowledged(case: &Case, host: Host, sender: &Endpoint) {
    let acknowledged = || case.net.unacknowledged(host, sender) == 0;
    assert!(eventually(DELIVERED, acknowledged), "it is not taken");
}

/// A host throws away what is left to send when data comes for an application that has closed.
fn close_and_wait_acknowledged(case: &Case, host: Host, sender: Endpoint) {
    let (local, peer) = (sender.local, sender.peer);
    sender.close();
    let left = || case.net.unacknowledged_between(host, local, peer);
    assert!(eventually(DELIVERED, || left() == 0), "it is not taken");
}

fn answer_of_a_service_whose_host_went_off_is_delivered() {
    let case = Case::new();
    let (client, service) = case.session_with(Host::Client, SLOW);
    service.send(STREAM);
    service.finish();
    assert!(service.wait_sent(PROMPT));
    wait_acknowledged(&case, Host::Service, &service);
    case.net.cut(Host::Service);
    expect_no_suspect(&case);
    let (_, end) = client.wait_end(DELIVERED);
    assert_eq!(client.received(), HELLO + STREAM, "every byte");
    assert_eq!(end, End::Finished);
}

fn job_of_a_client_whose_host_went_off_is_delivered() {
    let case = Case::with(&[], SLOW);
    let (client, service) = case.session();
    client.send(STREAM);
    client.finish();
    assert!(client.wait_sent(PROMPT));
    wait_acknowledged(&case, Host::Client, &client);
    case.net.cut(Host::Client);
    expect_no_suspect(&case);
    let (_, end) = service.wait_end(DELIVERED);
    assert_eq!(service.received(), HELLO + STREAM, "every byte");
    assert_eq!(end, End::Finished);
}

/// The printer is out of paper for longer than every clock that has no word for that.
fn job_waits_for_a_device_that_takes_nothing() {
    let case = Case::with(&["--half-close-timeout", "2s"], SLOW);
    forget_after(&case, Host::Client, 1);
    let (client, service) = case.session();
    service.pause();
    client.send(STREAM);
    assert!(client.wait_sent(PROMPT));
    client.close();
    thread::sleep(ms(8000));
    assert!(service.is_open());
    service.resume();
    expect_whole(&case, &service);
}

fn answer_is_whole_although_the_client_still_sends() {
    let case = Case::new();
    let (client, service) = case.session_with(Host::Client, SLOW);
    service.send(STREAM);
    assert!(service.wait_sent(PROMPT));
    close_and_wait_acknowledged(&case, Host::Service, service);
    thread::sleep(ms(500));
    client.send_every(10, ms(300));
    assert!(
        client.wait_received(HELLO + STREAM, DELIVERED),
        "{client:?}"
    );
    assert!(
        client.wait_reset(PROMPT),
        "it must learn that nobody hears it"
    );
    assert_eq!(client.corrupt_at(), None);
    case.expect_closed("upstream_reset");
}

fn job_is_whole_although_the_device_still_sends() {
    let case = Case::with(&[], SLOW);
    let (client, service) = case.session();
    client.send(STREAM);
    assert!(client.wait_sent(PROMPT));
    close_and_wait_acknowledged(&case, Host::Client, client);
    thread::sleep(ms(500));
    service.send_every(10, ms(300));
    assert!(
        service.wait_received(HELLO + STREAM, DELIVERED),
        "{service:?}"
    );
    assert!(
        service.wait_reset(PROMPT),
        "it must learn that nobody hears it"
    );
    assert_eq!(service.corrupt_at(), None);
    case.expect_closed("downstream_reset");
}

/// Nothing is asked of it while it is owed nothing; the answer brings its clock back.
fn client_that_said_fin_is_judged_when_it_is_owed_something() {
    let case = Case::new();
    let (client, service) = case.session();
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    case.net.cut(Host::Client);
    thread::sleep(ms(6000));
    assert!(!service.was_reset(), "nothing to die of");
    service.send(100);
    assert!(service.wait_reset(ms(3000 + 1500 + 300 + 2500)));
    case.expect_counted_dead("downstream", "retransmit");
}

fn reset_with_the_answer_unread_is_told() {
    let case = Case::new();
    let (client, service) = case.session_with(Host::Client, SLOW);
    client.pause();
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    // It fits into the send buffer, so that the FIN behind it is read as well.
    service.send(200_000);
    service.finish();
    wait_acknowledged(&case, Host::Service, &service);
    // The answer is in the proxy, and so is the FIN behind it. No window probe is unanswered.
    thread::sleep(ms(4300));
    client.reset();
    case.expect_closed("downstream_reset");
}
