//! How a session ends when no peer has vanished: FIN stays FIN, an abort stays an abort, and what
//! was received is delivered first.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use pulsegate::liveness::CloseReason;
use rustix::process::Signal;
use strum::VariantArray;

use crate::case::{Case, HELLO, PROMPT, SLACK};
use crate::support::{
    End, Endpoint, Host, LISTENER, Net, Options, Proxy, Test, Victim, eventually, ms,
};
use crate::tests;

pub const TESTS: &[Test] = tests![
    every_reason_is_counted_from_zero,
    half_close_passes_on_and_the_answer_comes_back,
    last_fin_survives_an_outage,
    half_closed_session_ends_in_time,
    half_closed_session_that_carries_data_is_kept,
    idle_session_ends_in_time,
    idle_session_ends_in_time_with_fin,
    session_killed_by_the_operator_is_an_abort,
    session_too_old_is_an_abort,
    session_replaced_is_an_abort,
    second_kill_ends_an_ending_at_once,
    upload_without_end_does_not_keep_an_ending,
    reset_by_the_client_reaches_the_service,
    reset_by_the_service_reaches_the_client,
    killed_client_with_nothing_unread,
    killed_client_with_unread_data,
    killed_service_with_nothing_unread,
    killed_service_with_unread_data,
    killed_proxy_is_an_abort_for_both_ends,
    refused_by_the_service,
    connect_that_gets_no_answer,
    whole_answer_reaches_a_slow_client_before_the_abort,
    whole_request_reaches_a_slow_service_before_the_abort,
];

/// Without the victims, who speak no TLS, and without a client that takes so little that a record lasts for
/// longer than an ending waits.
pub const OVER_TLS: &[Test] = tests![
    half_close_passes_on_and_the_answer_comes_back,
    last_fin_survives_an_outage,
    half_closed_session_ends_in_time,
    half_closed_session_that_carries_data_is_kept,
    idle_session_ends_in_time,
    idle_session_ends_in_time_with_fin,
    session_killed_by_the_operator_is_an_abort,
    session_too_old_is_an_abort,
    session_replaced_is_an_abort,
    upload_without_end_does_not_keep_an_ending,
    reset_by_the_client_reaches_the_service,
    reset_by_the_service_reaches_the_client,
    killed_proxy_is_an_abort_for_both_ends,
    whole_answer_reaches_a_slow_client_before_the_abort,
    whole_request_reaches_a_slow_service_before_the_abort,
];

fn every_reason_is_counted_from_zero() {
    let case = Case::new();
    let metrics = case.proxy.metrics();
    for reason in CloseReason::VARIANTS {
        let labels = [("listener", LISTENER), ("reason", reason.into())];
        assert!(
            metrics.has("pulsegate_connections_closed_total", &labels),
            "{reason}"
        );
    }
}

fn half_close_passes_on_and_the_answer_comes_back() {
    let case = Case::new();
    let (client, service) = case.session();
    client.send(100_000);
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    assert_eq!(service.received(), HELLO + 100_000);
    service.send(300_000);
    assert!(client.wait_received(HELLO + 300_000, PROMPT));
    assert!(client.ended().is_none());
    service.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    assert_eq!((client.corrupt_at(), service.corrupt_at()), (None, None));
    case.expect_closed("finished");
}

/// The last FIN is left to the kernel, and it must not give up as soon as a watched leg would.
fn last_fin_survives_an_outage() {
    let case = Case::with_all_flags(&["--detect-within", "30s"], Options::default());
    let (client, service) = case.session();
    // Long enough for the session to be put under watch.
    thread::sleep(ms(1000));
    service.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    case.net.cut(Host::Service);
    client.finish();
    thread::sleep(ms(7000));
    case.net.heal(Host::Service);
    assert_eq!(service.wait_end(ms(30_000)).1, End::Finished);
    case.expect_closed("finished");
}

fn half_closed_session_ends_in_time() {
    let case = Case::with(&["--half-close-timeout", "2s"], Options::default());
    let (client, service) = case.session();
    let since = Instant::now();
    client.finish();
    let (at, end) = client.wait_end(ms(2000) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(1800), "closed after only {after:?}");
    assert!(service.wait_reset(PROMPT));
    case.expect_closed("half_close_timeout");
}

/// Every byte re-arms the clock.
fn half_closed_session_that_carries_data_is_kept() {
    let case = Case::with(&["--half-close-timeout", "2s"], Options::default());
    let (client, service) = case.session();
    client.finish();
    service.send_every(10, ms(500));
    thread::sleep(ms(5000));
    service.stop_sending();
    service.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    assert_eq!(client.received(), service.sent());
    case.expect_closed("finished");
}

fn idle_session_ends_in_time() {
    let (client, service) = idle_session_ends(&[]);
    // Nobody can know whether something was still to come.
    assert_eq!((client, service), (End::Reset, End::Reset));
}

fn idle_session_ends_in_time_with_fin() {
    let (client, service) = idle_session_ends(&["--on-end", "close"]);
    assert_eq!((client, service), (End::Finished, End::Finished));
}

fn idle_session_ends(flags: &[&str]) -> (End, End) {
    let polite = Options {
        polite: true,
        ..Options::default()
    };
    let case = Case::with(&[&["--idle-timeout", "2s"], flags].concat(), polite);
    let (client, service) = case.session_with(Host::Client, polite);
    let since = Instant::now();
    let (at, end) = client.wait_end(ms(2000) + SLACK);
    let after = at.duration_since(since);
    assert!(after >= ms(1500), "closed after only {after:?}");
    let ends = (end, service.wait_end(PROMPT).1);
    case.expect_closed("idle_timeout");
    ends
}

/// What pulsegate ends by itself is an abort, and what it had received comes before it.
fn expect_cut(case: &Case, reason: &str, cut: impl FnOnce()) {
    let (client, service) = case.session();
    // The client takes it in time, but not at once.
    client.pause();
    service.send(200_000);
    client.send(50_000);
    assert!(service.wait_received(HELLO + 50_000, PROMPT));
    let acknowledged = || case.net.unacknowledged(Host::Service, &service) == 0;
    assert!(eventually(PROMPT, acknowledged));
    cut();
    thread::sleep(ms(300));
    client.resume();
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    assert_eq!(client.received(), HELLO + 200_000, "what was received");
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    assert_eq!(service.received(), HELLO + 50_000);
    assert_eq!((client.corrupt_at(), service.corrupt_at()), (None, None));
    case.expect_counted(reason, 1);
    for leg in ["downstream", "upstream"] {
        let sent = || {
            case.proxy
                .metrics()
                .value("pulsegate_resets_sent_total", &[("leg", leg)])
        };
        assert!(eventually(PROMPT, || sent() == 1.0), "{leg}");
    }
}

fn session_killed_by_the_operator_is_an_abort() {
    let case = Case::new();
    expect_cut(&case, "admin", || kill(&case));
}

fn session_too_old_is_an_abort() {
    let case = Case::with(&["--max-connection-duration", "3s"], Options::default());
    expect_cut(&case, "max_duration", || thread::sleep(ms(2500)));
}

fn session_replaced_is_an_abort() {
    let flags = ["--max-connections", "1", "--on-full", "replace"];
    let case = Case::with(&flags, Options::default());
    let mut newcomer = None;
    expect_cut(&case, "replaced", || {
        newcomer = Some(case.net.dial(Host::Healthy, Options::default()));
    });
}

/// Ends the session by the admin endpoint.
fn kill(case: &Case) {
    let (_, list) = case.proxy.get("/connections?format=json").expect("a list");
    let (_, id) = list.split_once("\"id\":").expect("a session");
    let id: String = id.chars().take_while(char::is_ascii_digit).collect();
    let (code, printed) = case.proxy.command(&["kill", &id]);
    assert_eq!(code, Some(0), "{printed}");
}

/// Takes a trickle.
const TRICKLE: Options = Options {
    echo: false,
    polite: false,
    paused: false,
    read_rate: Some(100),
    receive_buffer: Some(1 << 10),
};

/// A session that is being ended, and whose client takes a little at a time.
fn ending_for_long() -> (Case, Endpoint) {
    let case = Case::new();
    let (client, service) = case.session_with(Host::Client, TRICKLE);
    service.send(1 << 20);
    thread::sleep(ms(1000));
    service.reset();
    thread::sleep(ms(4000));
    assert!(client.is_open(), "it takes something: that is waited for");
    (case, client)
}

fn second_kill_ends_an_ending_at_once() {
    let (case, client) = ending_for_long();
    kill(&case);
    assert!(client.wait_reset(PROMPT));
    // The first reason stays the reason.
    case.expect_closed("upstream_reset");
}

/// The client takes nothing, which ends the session, and goes on sending.
fn upload_without_end_does_not_keep_an_ending() {
    let case = Case::with(&["--stall-timeout", "1s"], SLOW);
    let (client, service) = case.session();
    client.pause();
    service.send(8 << 20);
    client.send(1 << 34);
    let ended = || case.proxy.closed("downstream_stalled") == 1.0;
    assert!(eventually(ms(40_000), ended), "{client:?} {service:?}");
    assert_eq!(service.wait_end(ms(10_000)).1, End::Reset);
    assert_eq!(service.corrupt_at(), None);
}

fn reset_by_the_client_reaches_the_service() {
    let case = Case::new();
    let (client, service) = case.session();
    client.reset();
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    case.expect_closed("downstream_reset");
}

fn reset_by_the_service_reaches_the_client() {
    let case = Case::new();
    let (client, service) = case.session();
    service.reset();
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    case.expect_closed("upstream_reset");
}

/// A service that answers the greeting of a victim.
fn greeted(case: &Case, victim: &mut Victim) -> Endpoint {
    let service = case.service.next();
    assert!(service.wait_received(HELLO, PROMPT));
    service.send(HELLO);
    victim.wait_ready();
    service
}

/// The kernel of the killed process says FIN for it.
fn killed_client_with_nothing_unread() {
    let case = Case::new();
    let mut victim = Victim::client(&case.net);
    let service = greeted(&case, &mut victim);
    victim.kill();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    service.close();
    case.expect_closed("finished");
}

/// Unread data turn the FIN of the kernel into RST.
fn killed_client_with_unread_data() {
    let case = Case::new();
    let mut victim = Victim::client(&case.net);
    let service = greeted(&case, &mut victim);
    service.send(50_000);
    thread::sleep(ms(500));
    victim.kill();
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    case.expect_closed("downstream_reset");
}

/// The service is a victim too; the one that the case has started must make room.
fn session_with_victim() -> (Proxy, Endpoint, Victim) {
    let net = Arc::new(Net::new());
    let mut victim = Victim::service(&net);
    let proxy = Proxy::start(&net, &["--detect-within", "3s", "--probe-interval", "1s"]);
    let client = net.dial(Host::Client, Options::default());
    client.send(HELLO);
    assert!(client.wait_received(HELLO, PROMPT));
    victim.wait_ready();
    (proxy, client, victim)
}

fn killed_service_with_nothing_unread() {
    let (proxy, client, victim) = session_with_victim();
    victim.kill();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    client.close();
    assert!(eventually(PROMPT, || proxy.closed("finished") == 1.0));
}

fn killed_service_with_unread_data() {
    let (proxy, client, victim) = session_with_victim();
    client.send(50_000);
    thread::sleep(ms(500));
    victim.kill();
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    assert!(eventually(PROMPT, || proxy.closed("upstream_reset") == 1.0));
}

/// Nobody may take a stream for complete because the proxy died.
fn killed_proxy_is_an_abort_for_both_ends() {
    let mut case = Case::new();
    let (client, service) = case.session();
    case.proxy.signal(Signal::KILL);
    case.proxy.wait_exit(PROMPT);
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
}

/// A proxy in front of a host where nothing listens.
fn without_service(flags: &[&str]) -> (Arc<Net>, Proxy) {
    let net = Arc::new(Net::new());
    (Arc::clone(&net), Proxy::start(&net, flags))
}

fn refused_by_the_service() {
    let (net, proxy) = without_service(&[]);
    let end = match net.try_dial(Host::Client, Options::default()) {
        Ok(client) => client.wait_end(PROMPT).1,
        // The proxy was faster than this thread.
        Err(error) => End::from(error.kind()),
    };
    assert_eq!(end, End::Reset, "no answer must not look like an empty one");
    assert!(eventually(PROMPT, || proxy.closed("connect_refused") == 1.0));
    let on = [("leg", "downstream")];
    let resets = proxy.metrics().value("pulsegate_resets_sent_total", &on);
    assert_eq!(resets, 1.0);
}

fn connect_that_gets_no_answer() {
    let (net, proxy) = without_service(&["--connect-timeout", "1500ms"]);
    net.cut(Host::Service);
    let since = Instant::now();
    let client = net.dial(Host::Client, Options::default());
    let (at, end) = client.wait_end(ms(1500) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(1400), "given up after only {after:?}");
    assert!(eventually(PROMPT, || proxy.closed("connect_timeout") == 1.0));
}

/// The sender's RST comes when the proxy has received everything and the receiver has not.
fn abort_behind_data(case: &Case, sender: (Host, Endpoint), receiver: &Endpoint) {
    const ANSWER: u64 = 1 << 20;
    let (host, sender) = sender;
    let before = receiver.received();
    sender.send(ANSWER);
    assert!(sender.wait_sent(PROMPT));
    let acknowledged = || case.net.unacknowledged(host, &sender) == 0;
    assert!(
        eventually(PROMPT, acknowledged),
        "the proxy does not take it"
    );
    sender.reset();
    let (_, end) = receiver.wait_end(ms(10_000));
    assert_eq!(end, End::Reset);
    assert_eq!(receiver.received(), before + ANSWER, "every byte, then RST");
    assert_eq!(receiver.corrupt_at(), None);
}

const SLOW: Options = Options {
    echo: false,
    polite: false,
    paused: false,
    read_rate: Some(16 << 10),
    receive_buffer: Some(32 << 10),
};

fn whole_answer_reaches_a_slow_client_before_the_abort() {
    let case = Case::new();
    let (client, service) = case.session_with(Host::Client, SLOW);
    abort_behind_data(&case, (Host::Service, service), &client);
    case.expect_closed("upstream_reset");
}

fn whole_request_reaches_a_slow_service_before_the_abort() {
    let case = Case::with(&[], SLOW);
    let (client, service) = case.session();
    abort_behind_data(&case, (Host::Client, client), &service);
    case.expect_closed("downstream_reset");
}
