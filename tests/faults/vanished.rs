//! A peer is gone and no packet says so. Whatever its connection was doing, it is found within
//! the budget, named with the right leg and evidence, and the other side sees an abort.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, DETECT, HELLO, PROBE, PROMPT, SLACK};
use crate::support::{Direction, End, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    client_vanishes_while_idle,
    service_vanishes_while_idle,
    client_vanishes_while_idle_with_a_long_budget,
    client_vanishes_with_data_in_flight,
    service_vanishes_with_data_in_flight,
    late_write_towards_a_vanished_client_buys_no_time,
    late_write_towards_a_vanished_service_buys_no_time,
    client_vanishes_behind_a_closed_window,
    service_vanishes_behind_a_closed_window,
    client_vanishes_after_its_fin,
    client_vanishes_after_the_services_fin,
    service_vanishes_after_its_fin,
    service_vanishes_after_the_clients_fin,
    client_vanishes_when_just_connected,
    client_vanishes_during_a_drain,
    client_that_vanishes_while_pulsegate_is_stopped_is_found_late,
    one_way_cut_from_the_client,
    one_way_cut_towards_the_client,
    one_way_cut_from_the_service,
    bytes_of_a_vanished_client_are_delivered_before_the_abort,
    client_that_forgot_the_connection,
    service_that_forgot_the_connection,
    client_that_forgot_is_told_by_data,
    service_that_forgot_is_told_by_data,
    many_clients_vanish_and_the_others_do_not_notice,
];

/// Longer than a probe interval, so that a leg is really quiet.
const QUIET: Duration = ms(1300);
/// A peer that answers ten times a second was last heard when it vanished: the histogram and the
/// test's clock agree, to 0.1 s on an idle machine. (When the healthy end sees the abort late, the
/// difference is smaller.)
const AGREES: Duration = ms(800);
/// More than all buffers on the way can take.
const MORE_THAN_FITS: u64 = 16 << 20;

fn vanishes_while_idle(link: Host) {
    let case = Case::new();
    let (client, service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut(link);
    match link {
        Host::Service => case.expect_found(cut, "upstream", "keepalive", &client),
        _ => case.expect_found(cut, "downstream", "keepalive", &service),
    };
}

fn client_vanishes_while_idle() {
    vanishes_while_idle(Host::Client);
}

fn service_vanishes_while_idle() {
    vanishes_while_idle(Host::Service);
}

/// A process that does not run cannot keep the promise. It says so.
fn client_that_vanishes_while_pulsegate_is_stopped_is_found_late() {
    let case = Case::new();
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    case.cut(Host::Client);
    case.proxy.stop();
    thread::sleep(DETECT + ms(2000));
    case.proxy.signal(Signal::CONT);
    assert_eq!(service.wait_end(DETECT).1, End::Reset);
    case.expect_closed("downstream_dead");
    let metrics = case.proxy.metrics();
    let late = |leg| metrics.value("pulsegate_half_open_found_late_total", &[("leg", leg)]);
    assert_eq!([late("downstream"), late("upstream")], [1.0, 0.0]);
}

/// From a probe interval of 4 s on, an unanswered probe may be repeated only after 2 or 3 s.
fn client_vanishes_while_idle_with_a_long_budget() {
    const DETECT: Duration = ms(20_000);
    let flags = ["--detect-within", "20s", "--probe-interval", "4s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut(Host::Client);
    let (at, end) = service.wait_end(DETECT + ms(1000) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(cut);
    assert!(after >= DETECT - ms(4300), "found after only {after:?}");
    assert!(
        after <= DETECT + ms(1000) + SLACK,
        "found only after {after:?}"
    );
    case.expect_counted_dead("downstream", "keepalive");
}

fn client_vanishes_with_data_in_flight() {
    let case = Case::new();
    let (_client, service) = case.session();
    service.send_every(20_000, ms(100));
    thread::sleep(ms(700));
    let cut = case.cut(Host::Client);
    let before = case.expect_found(cut, "downstream", "retransmit", &service);

    assert!(before <= AGREES, "{before:?}");
}

fn service_vanishes_with_data_in_flight() {
    let case = Case::new();
    let (client, _service) = case.session();
    client.send_every(20_000, ms(100));
    thread::sleep(ms(700));
    let cut = case.cut(Host::Service);
    let before = case.expect_found(cut, "upstream", "retransmit", &client);

    assert!(before <= AGREES, "{before:?}");
}

/// The clock runs from the last sign of life; a write of ours is none.
fn late_write_towards_a_vanished_client_buys_no_time() {
    let case = Case::new();
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut(Host::Client);
    thread::sleep(ms(1500));
    service.send(1000);
    case.expect_found(cut, "downstream", "retransmit", &service);
}

fn late_write_towards_a_vanished_service_buys_no_time() {
    let case = Case::new();
    let (client, _service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut(Host::Service);
    thread::sleep(ms(1500));
    client.send(1000);
    case.expect_found(cut, "upstream", "retransmit", &client);
}

/// The client had stopped reading before it vanished: a stall that turns into a death.
fn client_vanishes_behind_a_closed_window() {
    let case = Case::new();
    let slow = Options {
        receive_buffer: Some(8192),
        paused: true,
        ..Options::default()
    };
    let (_client, service) = case.session_with(Host::Client, slow);
    service.send(MORE_THAN_FITS);
    thread::sleep(ms(2000));
    let cut = case.cut(Host::Client);
    case.expect_found(cut, "downstream", "window_probe", &service);
}

fn service_vanishes_behind_a_closed_window() {
    let slow = Options {
        receive_buffer: Some(8192),
        ..Options::default()
    };
    let case = Case::with(&[], slow);
    let (client, service) = case.session();
    service.pause();
    client.send(MORE_THAN_FITS);
    thread::sleep(ms(2000));
    let cut = case.cut(Host::Service);
    case.expect_found(cut, "upstream", "window_probe", &client);
}

/// As long as it is owed nothing it has nothing to die of.
fn client_vanishes_after_its_fin() {
    let case = Case::new();
    let (client, service) = case.session();
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    thread::sleep(QUIET);
    case.cut(Host::Client);
    service.send(HELLO);
    expect_found_by_reset(&case, Instant::now(), "downstream", &service);
}

fn client_vanishes_after_the_services_fin() {
    let case = Case::new();
    let (client, service) = case.session();
    service.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    thread::sleep(QUIET);
    let cut = case.cut(Host::Client);
    case.expect_found(cut, "downstream", "keepalive", &service);
}

fn service_vanishes_after_its_fin() {
    let case = Case::new();
    let (client, service) = case.session();
    service.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    thread::sleep(QUIET);
    case.cut(Host::Service);
    client.send(HELLO);
    expect_found_by_reset(&case, Instant::now(), "upstream", &client);
}

fn service_vanishes_after_the_clients_fin() {
    let case = Case::new();
    let (client, service) = case.session();
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    thread::sleep(QUIET);
    let cut = case.cut(Host::Service);
    case.expect_found(cut, "upstream", "keepalive", &client);
}

/// The healthy end has had FIN already; what it can still see is RST. The clock starts with the
/// first look after what it had sent.
#[track_caller]
fn expect_found_by_reset(
    case: &Case,
    owed: Instant,
    leg: &str,
    healthy: &crate::support::Endpoint,
) {
    let budget = ms(1500) + DETECT + ms(300) + SLACK;
    assert!(healthy.wait_reset(budget), "no RST within {budget:?}");
    let after = owed.elapsed();
    assert!(
        after >= DETECT - PROBE - ms(300),
        "found after only {after:?}"
    );
    assert!(after <= budget, "found only after {after:?}");
    case.expect_counted_dead(leg, "retransmit");
}

/// It has not sent a byte yet.
fn client_vanishes_when_just_connected() {
    let case = Case::new();
    let client = case.net.dial(Host::Client, Options::default());
    let service = case.service.next();
    case.wait_acknowledged(&client);
    let cut = case.cut(Host::Client);
    case.expect_found(cut, "downstream", "keepalive", &service);
}

/// Dead sessions must not hold up the end of the process.
fn client_vanishes_during_a_drain() {
    let mut case = Case::with(&["--drain-timeout", "60s"], Options::default());
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    case.proxy.signal(Signal::TERM);
    thread::sleep(ms(300));
    let cut = case.cut(Host::Client);
    let (at, end) = service.wait_end(DETECT + ms(300) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(cut);
    assert!(
        after >= DETECT - PROBE - ms(300),
        "found after only {after:?}"
    );
    let status = case.proxy.wait_exit(PROMPT);
    assert!(status.success(), "{status}");
}

/// The client hears everything and cannot answer.
fn one_way_cut_from_the_client() {
    let case = Case::new();
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut_one_way(Host::Client, Direction::ToNear);
    case.expect_found(cut, "downstream", "keepalive", &service);
}

/// The client could answer and hears nothing.
fn one_way_cut_towards_the_client() {
    let case = Case::new();
    let (_client, service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut_one_way(Host::Client, Direction::ToFar);
    case.expect_found(cut, "downstream", "keepalive", &service);
}

fn one_way_cut_from_the_service() {
    let case = Case::new();
    let (client, _service) = case.session();
    thread::sleep(QUIET);
    let cut = case.cut_one_way(Host::Service, Direction::ToNear);
    case.expect_found(cut, "upstream", "keepalive", &client);
}

/// The service reads so slowly that it is not done when the client is found dead.
fn bytes_of_a_vanished_client_are_delivered_before_the_abort() {
    const REQUEST: u64 = 300_000;
    let slow = Options {
        read_rate: Some(1000),
        receive_buffer: Some(8192),
        ..Options::default()
    };
    let case = Case::with(&[], slow);
    let (client, service) = case.session();
    client.send(REQUEST);
    let taken = || client.sent() > REQUEST && case.net.unacknowledged(Host::Client, &client) == 0;
    assert!(eventually(ms(10_000), taken), "the proxy does not take it");
    case.net.cut(Host::Client);
    let (_, end) = service.wait_end(ms(15_000));
    assert_eq!(end, End::Reset);
    assert_eq!(service.received(), client.sent(), "every byte, then RST");
    assert_eq!(service.corrupt_at(), None);
    case.expect_counted_dead("downstream", "keepalive");
}

/// The client's host restarted: the first question is answered with RST. That is proof at once.
fn client_that_forgot_the_connection() {
    let case = Case::new();
    let (client, service) = case.session();
    thread::sleep(ms(200));
    case.net.cut(Host::Client);
    client.reset();
    case.net.heal(Host::Client);
    let (_, end) = service.wait_end(DETECT + SLACK);
    assert_eq!(end, End::Reset);
    case.expect_counted_dead("downstream", "reset");
}

fn service_that_forgot_the_connection() {
    let case = Case::new();
    let (client, service) = case.session();
    thread::sleep(ms(200));
    case.net.cut(Host::Service);
    service.reset();
    case.net.heal(Host::Service);
    let (_, end) = client.wait_end(DETECT + SLACK);
    assert_eq!(end, End::Reset);
    case.expect_counted_dead("upstream", "reset");
}

/// The same, with data as the first question, long before the next probe.
fn told_by_data(forgets: Host) {
    let flags = ["--detect-within", "60s", "--probe-interval", "20s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    thread::sleep(ms(1300));
    case.net.cut(forgets);
    let (leg, told) = match forgets {
        Host::Service => {
            service.reset();
            ("upstream", &client)
        }
        _ => {
            client.reset();
            ("downstream", &service)
        }
    };
    case.net.heal(forgets);
    told.send(100);
    assert_eq!(told.wait_end(PROMPT).1, End::Reset);
    case.expect_counted_dead(leg, "reset");
}

fn client_that_forgot_is_told_by_data() {
    told_by_data(Host::Client);
}

fn service_that_forgot_is_told_by_data() {
    told_by_data(Host::Service);
}

/// Half of the vanished clients are idle, half are being sent to. Healthy clients keep talking.
fn many_clients_vanish_and_the_others_do_not_notice() {
    const VANISHING: u32 = 40;
    let case = Case::new();
    let healthy: Vec<_> = (0..5)
        .map(|_| case.session_with(Host::Healthy, Options::default()))
        .collect();
    for (client, service) in &healthy {
        client.send_every(500, ms(200));
        service.send_every(500, ms(200));
    }
    let vanishing: Vec<_> = (0..VANISHING).map(|_| case.session()).collect();
    for (_, service) in vanishing.iter().step_by(2) {
        service.send_every(500, ms(200));
    }
    thread::sleep(ms(500));
    let cut = case.cut(Host::Client);
    let dead = || case.proxy.closed("downstream_dead") >= f64::from(VANISHING);
    assert!(
        eventually(DETECT + ms(300) + SLACK, dead),
        "{:?}",
        cut.elapsed()
    );
    let (_, found) = case.proxy.get("/found").expect("an answer");
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    let (group, end) = (&found["groups"][0], &found["ends"][0]);
    assert_eq!(group["times"], VANISHING, "{group}");
    assert_eq!(end["reason"], "downstream_dead", "{end}");
    assert!(
        end["silent_ms"].as_u64() >= Some(DETECT.as_millis() as u64),
        "{end}"
    );
    for (client, service) in &healthy {
        client.stop_sending();
        service.stop_sending();
        let same = || client.received() == service.sent() && service.received() == client.sent();
        assert!(eventually(PROMPT, same), "bytes are missing");
        assert!(client.is_open() && service.is_open());
        assert!(client.sent() > HELLO);
    }
    drop((healthy, vanishing));
    case.expect_nothing_left();
}
