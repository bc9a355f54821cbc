//! Verification on demand: a live peer answers at once, a vanished one is proven gone long before
//! `detect_within`, and nothing is ended unless that was asked for.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{Case, HELLO, PROMPT, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    live_quiet_peers_answer_at_once,
    peers_that_have_just_spoken_are_not_asked,
    vanished_client_is_named_and_left_to_the_monitor,
    vanished_client_is_ended_when_asked_to_be_quick,
    vanished_service_is_ended_when_asked_to_be_quick,
    vanished_client_with_data_in_flight_is_ended,
    data_in_flight_is_judged_in_any_phase,
    vanished_stalled_client_is_ended,
    closed_window_is_judged_in_any_phase,
    stalled_clients_that_are_back_are_alive,
    peer_that_forgot_the_connection_is_reported,
    live_peers_are_never_ended,
    many_at_once,
    sessions_of_an_endpoint_that_went_down_are_all_asked,
    client_in_the_queue_can_be_asked,
    by_the_command_line,
];

/// Without those that encrypt 200 MB on a machine that does much else.
pub const OVER_TLS: &[Test] = tests![
    live_quiet_peers_answer_at_once,
    peers_that_have_just_spoken_are_not_asked,
    vanished_client_is_named_and_left_to_the_monitor,
    vanished_client_is_ended_when_asked_to_be_quick,
    vanished_service_is_ended_when_asked_to_be_quick,
    vanished_client_with_data_in_flight_is_ended,
    data_in_flight_is_judged_in_any_phase,
    vanished_stalled_client_is_ended,
    peer_that_forgot_the_connection_is_reported,
    live_peers_are_never_ended,
    many_at_once,
    client_in_the_queue_can_be_asked,
    by_the_command_line,
];

/// Longer than a second, so that a question is needed.
const QUIET: Duration = ms(1500);
/// A local round trip, where the machine is busy.
const AT_ONCE_MS: u64 = 100;
/// Sessions of which each is asked by the kernel at another time.
const PHASES: usize = 24;
/// Proof after five volleys of probes, where the machine is busy.
const PROVEN_MS: u64 = 2200 + 500;
/// The kernel's own questions are up to a second apart: in flight and behind a closed window it has
/// asked six after this.
const ASKED: Duration = ms(6500);
/// One more of them, and the answer awaited.
const ONE_MORE_MS: u64 = 1200 + 500;

/// `detect_within` so long that it is never the reason.
fn case() -> Case {
    Case::with_all_flags(&["--detect-within", "60s"], Options::default())
}

fn id_of(case: &Case, client: &Endpoint) -> u64 {
    let path = format!("/connections?peer={}", client.local);
    let (status, body) = case.proxy.get(&path).expect("answered");
    assert_eq!(status, 200, "{body}");
    let list: Value = serde_json::from_str(&body).expect("JSON");
    let id = list["connections"][0]["id"].as_u64();
    id.unwrap_or_else(|| panic!("no session of {}: {body}", client.local))
}

/// What verifying the client's session says.
#[track_caller]
fn verify(case: &Case, client: &Endpoint, query: &str) -> Value {
    let path = format!("/connections/{}/verify{query}", id_of(case, client));
    let (status, body) = case.proxy.ask("POST", &path).expect("answered");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

#[track_caller]
fn expect_leg(found: &Value, leg: &str, answer: &str, evidence: &str, took_ms: u64) {
    let leg = &found[leg];
    assert_eq!(leg["answer"], answer, "{found}");
    assert_eq!(leg["evidence"], evidence, "{found}");
    assert!(
        leg["took_ms"].as_u64().is_some_and(|t| t <= took_ms),
        "{found}"
    );
}

fn live_quiet_peers_answer_at_once() {
    let case = case();
    let (client, service) = case.session();
    for query in ["", "?quick=true"] {
        thread::sleep(QUIET);
        let found = verify(&case, &client, query);
        for leg in ["downstream", "upstream"] {
            expect_leg(&found, leg, "alive", "answered", AT_ONCE_MS);
        }
        assert_eq!(found["closed"], false, "{found}");
    }
    client.send(1000);
    service.send(1000);
    case.expect_intact(&client, &service);
}

fn peers_that_have_just_spoken_are_not_asked() {
    let case = case();
    let (client, service) = case.session();
    client.send(1000);
    assert!(service.wait_received(HELLO + 1000, PROMPT));
    let found = verify(&case, &client, "");
    for leg in ["downstream", "upstream"] {
        expect_leg(&found, leg, "alive", "recent", AT_ONCE_MS);
    }
    case.expect_intact(&client, &service);
}

fn vanished_client_is_named_and_left_to_the_monitor() {
    let flags = ["--detect-within", "6s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    thread::sleep(ms(200));
    let cut = case.cut(Host::Client);
    thread::sleep(QUIET);
    let found = verify(&case, &client, "");
    expect_leg(&found, "downstream", "silent", "keepalive", PROVEN_MS);
    assert_eq!(found["upstream"]["answer"], "alive", "{found}");
    assert_eq!(found["closed"], false, "{found}");
    assert!(service.is_open(), "nothing was to be ended");
    let (at, end) = service.wait_end(ms(6300) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(cut);
    // The last sign of life may be a probe interval old.
    assert!(after >= ms(4500), "ended after only {after:?}");
    case.expect_counted_dead("downstream", "keepalive");
}

fn vanished_client_is_ended_when_asked_to_be_quick() {
    let case = case();
    let (client, service) = case.session_at_rest();
    case.cut(Host::Client);
    thread::sleep(QUIET);
    let found = verify(&case, &client, "?quick=true");
    expect_leg(&found, "downstream", "silent", "keepalive", PROVEN_MS);
    assert_eq!(found["closed"], true, "{found}");
    assert_eq!(service.wait_end(SLACK).1, End::Reset);
    case.expect_counted_dead("downstream", "keepalive");
}

fn vanished_service_is_ended_when_asked_to_be_quick() {
    let case = case();
    let (client, _service) = case.session_at_rest();
    case.cut(Host::Service);
    thread::sleep(QUIET);
    let found = verify(&case, &client, "?quick=true");
    expect_leg(&found, "upstream", "silent", "keepalive", PROVEN_MS);
    assert_eq!(found["downstream"]["answer"], "alive", "{found}");
    assert_eq!(found["closed"], true, "{found}");
    assert_eq!(client.wait_end(SLACK).1, End::Reset);
    case.expect_counted_dead("upstream", "keepalive");
}

fn vanished_client_with_data_in_flight_is_ended() {
    let case = case();
    let (client, service) = case.session();
    service.send_every(20_000, ms(100));
    thread::sleep(ms(700));
    case.cut(Host::Client);
    thread::sleep(ms(4500));
    let found = verify(&case, &client, "?quick=true");
    expect_leg(&found, "downstream", "silent", "retransmit", PROVEN_MS);
    assert_eq!(service.wait_end(SLACK).1, End::Reset);
    case.expect_counted_dead("downstream", "retransmit");
}

/// In flight the kernel's own questions are up to a second apart: the inquiry begins anywhere
/// between two of them.
fn data_in_flight_is_judged_in_any_phase() {
    let case = case();
    let sessions: Vec<_> = (0..20).map(|_| case.session()).collect();
    case.cut(Host::Client);
    for (_, service) in &sessions {
        service.send(100);
        thread::sleep(ms(53));
    }
    thread::sleep(ms(4000));
    let found = verify_all(&case, "");
    for session in found["sessions"].as_array().expect("sessions") {
        expect_leg(session, "downstream", "silent", "retransmit", PROVEN_MS);
    }
    assert_eq!(found["silent"], 20, "{found}");
}

/// A client that takes nothing.
fn stalling(case: &Case, from: Host) -> (Endpoint, Endpoint) {
    let slow = Options {
        receive_buffer: Some(8192),
        paused: true,
        ..Options::default()
    };
    let (client, service) = case.session_with(from, slow);
    service.send(8 << 20);
    (client, service)
}

/// The same once its window is closed.
fn stalled(case: &Case) -> (Endpoint, Endpoint) {
    let session = stalling(case, Host::Client);
    thread::sleep(ms(2000));
    session
}

/// Clients that stalled one after the other: the kernel asks each at another time.
fn stalled_in_all_phases(case: &Case) -> Vec<(Endpoint, Endpoint)> {
    let start = |_| {
        thread::sleep(ms(43));
        stalling(case, Host::Client)
    };
    let sessions = (0..PHASES).map(start).collect();
    thread::sleep(ms(4000));
    sessions
}

fn verify_all(case: &Case, query: &str) -> Value {
    let path = format!("/verify{query}");
    let (status, body) = case.proxy.ask("POST", &path).expect("answered");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

fn vanished_stalled_client_is_ended() {
    let case = case();
    let (client, service) = stalled(&case);
    case.cut(Host::Client);
    thread::sleep(ASKED);
    let found = verify(&case, &client, "?quick=true");
    expect_leg(&found, "downstream", "silent", "window_probe", ONE_MORE_MS);
    assert_eq!(service.wait_end(SLACK).1, End::Reset);
    case.expect_counted_dead("downstream", "window_probe");
}

/// At a closed window the kernel asks once a second, and does not tell when it last did. The
/// inquiries begin anywhere between two questions.
fn closed_window_is_judged_in_any_phase() {
    let case = case();
    let live = stalling(&case, Host::Healthy);
    let vanished = stalled_in_all_phases(&case);
    case.cut(Host::Client);
    thread::sleep(ASKED);
    for query in ["", "?quick=true"] {
        let found = verify_all(&case, query);
        for session in found["sessions"].as_array().expect("sessions") {
            if session["downstream"]["answer"] != "alive" {
                expect_leg(session, "downstream", "silent", "window_probe", ONE_MORE_MS);
            }
        }
        assert_eq!(found["silent"], PHASES, "{found}");
        assert_eq!(found["alive"], 1, "{found}");
        assert_eq!(
            found["closed"] == PHASES,
            query.contains("quick"),
            "{found}"
        );
    }
    for (_, service) in &vanished {
        assert_eq!(service.wait_end(SLACK).1, End::Reset);
    }
    live.0.resume();
    let complete = || live.0.received() == live.1.sent();
    assert!(eventually(PROMPT, complete), "{live:?}");
    assert_eq!(live.0.corrupt_at(), None);
}

/// Nobody has asked them since they are back, and before that nobody was answered.
fn stalled_clients_that_are_back_are_alive() {
    let case = case();
    let sessions = stalled_in_all_phases(&case);
    for outage in [3500, 3700] {
        case.cut(Host::Client);
        thread::sleep(ms(outage));
        case.net.heal(Host::Client);
        thread::sleep(ms(200));
        let found = verify_all(&case, "?quick=true");
        assert_eq!(found["alive"], PHASES, "{found}");
    }
    for (client, _) in &sessions {
        client.resume();
    }
    for (client, service) in &sessions {
        case.expect_intact(client, service);
    }
}

/// RST is proof at once, quick or not.
fn peer_that_forgot_the_connection_is_reported() {
    let case = case();
    let (client, service) = case.session_at_rest();
    let id = id_of(&case, &client);
    case.cut(Host::Client);
    client.reset();
    case.net.heal(Host::Client);
    thread::sleep(QUIET);
    let path = format!("/connections/{id}/verify");
    let (status, body) = case.proxy.ask("POST", &path).expect("answered");
    assert_eq!(status, 200, "{body}");
    let found: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(found["downstream"]["answer"], "over", "{found}");
    assert!(
        found["downstream"]["took_ms"].as_u64() <= Some(AT_ONCE_MS),
        "{found}"
    );
    assert_eq!(found["closed"], true, "{found}");
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    case.expect_counted_dead("downstream", "reset");
}

/// Busy, quiet and stalled ones, asked again and again.
fn live_peers_are_never_ended() {
    let case = case();
    let busy = case.session_with(Host::Healthy, Options::default());
    busy.0.send_every(5000, ms(20));
    busy.1.send_every(5000, ms(20));
    let quiet = case.session_with(Host::Healthy, Options::default());
    let slow = stalled(&case);
    let deadline = Instant::now() + ms(6000);
    while Instant::now() < deadline {
        for (client, _) in [&busy, &quiet, &slow] {
            let found = verify(&case, client, "?quick=true");
            assert_eq!(found["downstream"]["answer"], "alive", "{found}");
            assert_eq!(found["upstream"]["answer"], "alive", "{found}");
            assert_eq!(found["closed"], false, "{found}");
        }
        thread::sleep(ms(200));
    }
    busy.0.stop_sending();
    busy.1.stop_sending();
    slow.0.resume();
    for (client, service) in [&busy, &quiet, &slow] {
        case.expect_intact(client, service);
    }
}

fn many_at_once() {
    let case = case();
    let live: Vec<_> = (0..20)
        .map(|_| case.session_with(Host::Healthy, Options::default()))
        .collect();
    let vanishing: Vec<_> = (0..20).map(|_| case.session()).collect();
    case.cut(Host::Client);
    thread::sleep(QUIET);
    let since = Instant::now();
    let found = verify_all(&case, "?quick=true");
    let took = since.elapsed();
    let count = |name: &str| found[name].as_u64();
    let counts = ["asked", "alive", "silent", "closed", "skipped"].map(count);
    assert_eq!(counts, [40, 20, 20, 20, 0].map(Some), "{found}");
    assert!(took <= ms(PROVEN_MS) + SLACK, "took {took:?}");
    let ended = || case.proxy.closed("downstream_dead") == 20.0;
    assert!(
        eventually(PROMPT, ended),
        "{}",
        case.proxy.closed("downstream_dead")
    );
    assert!(live.iter().all(|(c, s)| c.is_open() && s.is_open()));
    drop((live, vanishing));
    case.expect_nothing_left();
}

/// With `on_down: verify`. More than take turns in a few seconds, and the last ones have just been heard.
fn sessions_of_an_endpoint_that_went_down_are_all_asked() {
    const SESSIONS: u16 = 600;
    let case = Case::with_all_flags(
        &[
            ["--detect-within", "60s"],
            ["--check", "tcp"],
            ["--check-port", "9100"],
            ["--check-interval", "100ms"],
            ["--check-timeout", "200ms"],
            ["--check-fall", "2"],
            ["--check-on-down", "verify"],
        ]
        .concat(),
        Options::default(),
    );
    let address = case.net.socket(Host::Service, 9100);
    let listen = || TcpListener::bind(address).expect("bind");
    let checked = case.net.host(Host::Service).run(listen).expect("enter");
    // It ends with the test's process.
    thread::spawn(move || checked.incoming().for_each(drop));
    let sessions: Vec<_> = (0..SESSIONS).map(|_| case.session()).collect();
    case.cut(Host::Service);
    let ended = || case.proxy.closed("upstream_dead") == f64::from(SESSIONS);
    assert!(
        eventually(ms(30_000), ended),
        "{}",
        case.proxy.closed("upstream_dead")
    );
    drop(sessions);
    case.expect_nothing_left();
}

/// It is not under watch yet, and has no other leg.
fn client_in_the_queue_can_be_asked() {
    let flags = ["--max-connections", "1", "--on-full", "queue"];
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session_with(Host::Healthy, Options::default());
    let live = case.net.dial(Host::Healthy, Options::default());
    let vanished = case.net.dial(Host::Client, Options::default());
    let queued = || {
        case.proxy
            .metrics()
            .value("pulsegate_connections_queued", &[])
    };
    assert!(eventually(PROMPT, || queued() == 2.0), "{}", queued());
    case.wait_acknowledged(&vanished);
    case.cut(Host::Client);
    thread::sleep(QUIET);
    let (_, body) = case
        .proxy
        .get("/connections?phase=queued")
        .expect("answered");
    let list: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(list["matched"], 2, "{list}");
    assert_eq!(
        list["connections"][0]["timer"]["reason"], "queue_timeout",
        "{list}"
    );
    let found = verify(&case, &live, "?quick=true");
    expect_leg(&found, "downstream", "alive", "answered", AT_ONCE_MS);
    assert_eq!(found["upstream"], Value::Null, "{found}");
    let found = verify(&case, &vanished, "?quick=true");
    expect_leg(&found, "downstream", "silent", "keepalive", PROVEN_MS);
    assert_eq!(found["closed"], true, "{found}");
    assert!(eventually(PROMPT, || queued() == 1.0), "{}", queued());
    case.expect_counted("downstream_dead", 1);
    assert!(client.is_open() && service.is_open() && live.is_open());
}

fn by_the_command_line() {
    let case = case();
    let (client, service) = case.session_with(Host::Healthy, Options::default());
    let (other, other_service) = case.session();
    thread::sleep(QUIET);
    let (code, text) = case.proxy.command(&["verify", "--all"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("2 asked: 2 alive"), "{text}");
    case.cut(Host::Client);
    thread::sleep(QUIET);
    let id = id_of(&case, &other).to_string();
    let (code, text) = case.proxy.command(&["verify", &id]);
    assert_eq!(code, Some(4), "{text}");
    assert!(
        text.contains("keepalive") && text.contains("0 closed"),
        "{text}"
    );
    let (code, text) = case
        .proxy
        .command(&["verify", "--all", "--quick", "--json"]);
    assert_eq!(code, Some(4), "{text}");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["closed"], 1, "{found}");
    assert_eq!(other_service.wait_end(PROMPT).1, End::Reset);
    let (code, _) = case.proxy.command(&["verify", &id]);
    assert_eq!(code, Some(1), "it has ended");
    let (code, text) = case.proxy.command(&["conns", "--wide"]);
    assert_eq!(code, Some(0), "{text}");
    for word in ["timer:(downstream_dead", "timer:(upstream_dead", "next:("] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(client.is_open() && service.is_open());
    let id = id_of(&case, &client).to_string();
    let (code, text) = case.proxy.command(&["kill", &id]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    assert!(eventually(PROMPT, || case.proxy.closed("admin") == 1.0));
}
