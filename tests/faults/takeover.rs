//! A listener that is full: what a newcomer meets, by `limits.on_full`. A vanished holder loses its
//! place to the newcomer; a live one is never disturbed unless the policy says so.

use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, HELLO, PROMPT, SLACK};
use crate::support::{End, Endpoint, Host, LISTENER, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    vanished_idle_holder_makes_room,
    vanished_holder_with_data_in_flight_makes_room,
    holder_that_vanished_this_moment_makes_room,
    holder_that_vanished_this_moment_is_shed,
    vanished_holder_that_is_written_to_late_makes_room,
    device_that_forgot_its_client_makes_room,
    device_that_forgot_its_client_this_moment_is_shed,
    vanished_device_makes_room,
    one_vanished_holder_of_three_makes_room,
    live_quiet_holder_is_not_disturbed,
    live_busy_holder_is_not_disturbed,
    live_stalled_holder_is_not_disturbed,
    queue_is_first_come_first_served,
    reset_newcomer_leaves_the_queue,
    newcomer_that_said_fin_takes_no_place,
    reconnect_delay_is_respected,
    replace_ends_the_longest_quiet,
    shed_goes_by_its_order_and_spares_the_active,
    vanished_session_of_the_same_source_makes_room,
];

/// Newcomers are served within this of arriving, and some slack where the machine is busy: a holder
/// that was heard this moment cannot be asked for a second, and then there are five questions.
const SERVED_WITHIN: Duration = ms(3200 + 1500);
/// What a newcomer says before it is served.
const EARLY: u64 = 50_000;
const NEWCOMERS: usize = 12;

/// A full listener's policy. `detect_within` is so long that it is never the reason.
fn case(policy: &str, places: &str, flags: &[&str]) -> Case {
    let own = ["--detect-within", "60s", "--on-full", policy];
    let flags = [&own[..], &["--max-connections", places], flags].concat();
    Case::with_all_flags(&flags, Options::default())
}

fn polite() -> Options {
    Options {
        polite: true,
        ..Options::default()
    }
}

#[track_caller]
fn expect_outcome(case: &Case, outcome: &str, times: u32) {
    let labels = [("listener", LISTENER), ("outcome", outcome)];
    let count = || {
        case.proxy
            .metrics()
            .value("pulsegate_takeovers_total", &labels)
    };
    let counted = eventually(PROMPT, || count() == f64::from(times));
    let all = case.proxy.metrics();
    assert!(counted, "{outcome}\n{}", all.excerpt("pulsegate_takeovers"));
}

#[track_caller]
fn expect_reason(case: &Case, reason: &str, times: u32) {
    let counted = eventually(PROMPT, || case.proxy.closed(reason) == f64::from(times));
    let all = case.proxy.metrics();
    assert!(
        counted,
        "{reason}\n{}",
        all.excerpt("pulsegate_connections")
    );
}

fn queued(case: &Case) -> f64 {
    let metrics = case.proxy.metrics();
    metrics.value("pulsegate_connections_queued", &[])
}

#[track_caller]
fn wait_queued(case: &Case, clients: f64) {
    assert!(
        eventually(PROMPT, || queued(case) == clients),
        "{}",
        queued(case)
    );
}

/// A newcomer that speaks at once.
fn newcomer(case: &Case, bytes: u64) -> Endpoint {
    let newcomer = case.net.dial(Host::Healthy, Options::default());
    newcomer.send(bytes);
    newcomer
}

/// It is served in time, what it said early has arrived whole, and it is answered.
#[track_caller]
fn expect_served(case: &Case, newcomer: &Endpoint, since: Instant) -> Endpoint {
    let device = case.service.next_within(SERVED_WITHIN + SLACK);
    let took = since.elapsed();
    let device = device.unwrap_or_else(|| panic!("not served within {took:?}"));
    assert!(took <= SERVED_WITHIN, "served only after {took:?}");
    assert!(device.wait_received(EARLY, PROMPT), "{device:?}");
    device.send(1000);
    assert!(newcomer.wait_received(1000, PROMPT), "{newcomer:?}");
    assert_eq!(device.received(), EARLY);
    assert_eq!((device.corrupt_at(), newcomer.corrupt_at()), (None, None));
    device
}

/// Both say FIN, and nothing is left of anything.
#[track_caller]
fn finish(case: &Case, client: Endpoint, device: Endpoint) {
    client.finish();
    device.finish();
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    assert_eq!(device.wait_end(PROMPT).1, End::Finished);
    drop((client, device));
    case.expect_nothing_left();
    assert_eq!(queued(case), 0.0);
}

/// A newcomer comes, takes the place of the holder whose `leg` is gone, and works.
#[track_caller]
fn expect_takeover(case: &Case, leg: &str, device_of_holder: &Endpoint) {
    let since = Instant::now();
    let newcomer = newcomer(case, EARLY);
    let device = expect_served(case, &newcomer, since);
    if leg == "downstream" {
        assert!(device_of_holder.wait_reset(PROMPT), "{device_of_holder:?}");
    }
    expect_reason(case, &format!("{leg}_dead"), 1);
    expect_outcome(case, "holder_dead", 1);
    finish(case, newcomer, device);
    expect_reason(case, "finished", 1);
}

/// The client has lost its connection without knowing that pulsegate has not, and comes back. Another
/// source has been quiet for longer and is not touched.
fn vanished_session_of_the_same_source_makes_room() {
    let own = ["--detect-within", "60s", "--on-full", "verify"];
    let flags = [&own[..], &["--max-connections-per-source", "1"]].concat();
    let case = Case::with_all_flags(&flags, Options::default());
    let (other, device_of_other) = case.session_with(Host::Healthy, polite());
    let (holder, device_of_holder) = case.session();
    let lost = format!("tcp dport {}", holder.local.port());
    case.net.drop_at(Host::Client, &lost);
    let since = Instant::now();
    let newcomer = case.net.dial(Host::Client, Options::default());
    newcomer.send(EARLY);
    let device = expect_served(&case, &newcomer, since);
    assert!(device_of_holder.wait_reset(PROMPT), "{device_of_holder:?}");
    expect_reason(&case, "downstream_dead", 1);
    expect_outcome(&case, "holder_dead", 1);
    device_of_other.send(1000);
    assert!(other.wait_received(HELLO + 1000, PROMPT), "{other:?}");
    device_of_other.finish();
    drop((other, device_of_other));
    finish(&case, newcomer, device);
}

fn vanished_idle_holder_makes_room() {
    let case = case("verify", "1", &[]);
    let (_holder, device) = case.session_at_rest();
    case.cut(Host::Client);
    thread::sleep(ms(2000));
    expect_takeover(&case, "downstream", &device);
}

fn vanished_holder_with_data_in_flight_makes_room() {
    let case = case("verify", "1", &[]);
    let (_holder, device) = case.session();
    device.send_every(20_000, ms(50));
    thread::sleep(ms(500));
    case.cut(Host::Client);
    thread::sleep(ms(700));
    expect_takeover(&case, "downstream", &device);
}

/// It was talking until 0 to 100 ms before the newcomer came.
fn holder_that_vanished_this_moment_makes_room() {
    let case = case("verify", "1", &[]);
    let (holder, device) = case.session();
    holder.send_every(100, ms(20));
    thread::sleep(ms(500));
    case.cut(Host::Client);
    expect_takeover(&case, "downstream", &device);
}

/// It counts as active, but it is asked before the newcomer is turned away.
fn holder_that_vanished_this_moment_is_shed() {
    let case = case("shed", "1", &[]);
    let (holder, device) = case.session();
    holder.send_every(100, ms(20));
    thread::sleep(ms(500));
    case.cut(Host::Client);
    expect_takeover(&case, "downstream", &device);
}

/// The kernel's questions change from probes to retransmissions in the middle.
fn vanished_holder_that_is_written_to_late_makes_room() {
    let case = case("verify", "1", &[]);
    let (_holder, device) = case.session_at_rest();
    case.cut(Host::Client);
    thread::sleep(ms(2000));
    let since = Instant::now();
    let newcomer = newcomer(&case, EARLY);
    thread::sleep(ms(700));
    device.send(100);
    let next = expect_served(&case, &newcomer, since);
    expect_reason(&case, "downstream_dead", 1);
    finish(&case, newcomer, next);
}

/// It restarted: the first question is answered with RST.
fn device_that_forgot_its_client_makes_room() {
    let case = case("verify", "1", &[]);
    let (holder, device) = case.session_at_rest();
    case.cut(Host::Service);
    device.reset();
    case.net.heal(Host::Service);
    thread::sleep(ms(1200));
    expect_takeover(&case, "upstream", &holder);
    assert!(holder.wait_reset(PROMPT), "{holder:?}");
}

/// Its holder counts as active, and the first question is possible only a second later.
fn device_that_forgot_its_client_this_moment_is_shed() {
    let case = case("shed", "1", &[]);
    let (holder, device) = case.session_at_rest();
    case.cut(Host::Service);
    device.reset();
    case.net.heal(Host::Service);
    expect_takeover(&case, "upstream", &holder);
    assert!(holder.wait_reset(PROMPT), "{holder:?}");
}

/// The device is gone; its place is free long before that would have been noticed, and whoever
/// comes is served when it is back.
fn vanished_device_makes_room() {
    let case = case("verify", "1", &["--connect-timeout", "30s"]);
    let (holder, _device) = case.session_at_rest();
    case.cut(Host::Service);
    thread::sleep(ms(2000));
    let since = Instant::now();
    let newcomer = newcomer(&case, EARLY);
    let (at, end) = holder.wait_end(SERVED_WITHIN);
    assert_eq!(end, End::Reset);
    let took = at.duration_since(since);
    assert!(took >= ms(500) && took <= SERVED_WITHIN, "{took:?}");
    expect_reason(&case, "upstream_dead", 1);
    expect_outcome(&case, "holder_dead", 1);
    case.net.heal(Host::Service);
    let device = expect_served(&case, &newcomer, Instant::now());
    finish(&case, newcomer, device);
}

fn one_vanished_holder_of_three_makes_room() {
    let case = case("verify", "3", &[]);
    let quiet = case.session_with(Host::Healthy, Options::default());
    let (_holder, device) = case.session();
    let busy = case.session_with(Host::Healthy, Options::default());
    busy.0.send_every(500, ms(50));
    busy.1.send_every(500, ms(50));
    case.cut(Host::Client);
    thread::sleep(ms(2000));
    let since = Instant::now();
    let newcomer = newcomer(&case, EARLY);
    let next = expect_served(&case, &newcomer, since);
    assert!(device.wait_reset(PROMPT));
    expect_reason(&case, "downstream_dead", 1);
    busy.0.stop_sending();
    busy.1.stop_sending();
    for (client, device) in [&quiet, &busy] {
        let same = || client.received() == device.sent() && device.received() == client.sent();
        assert!(eventually(PROMPT, same), "{client:?} {device:?}");
        assert!(client.is_open() && device.is_open());
        assert_eq!((client.corrupt_at(), device.corrupt_at()), (None, None));
    }
    drop((quiet, busy));
    finish(&case, newcomer, next);
}

/// Many newcomers ask for the place all the time; each is turned away when its time is over.
#[track_caller]
fn newcomers_are_turned_away(case: &Case) {
    let newcomers: Vec<_> = (0..NEWCOMERS)
        .map(|_| {
            thread::sleep(ms(150));
            newcomer(case, EARLY)
        })
        .collect();
    for newcomer in &newcomers {
        assert_eq!(newcomer.wait_end(ms(4000) + SLACK).1, End::Reset);
    }
    let times = u32::try_from(NEWCOMERS).expect("few");
    expect_reason(case, "queue_timeout", times);
    expect_outcome(case, "not_served", times);
    wait_queued(case, 0.0);
}

/// The holder still has every byte, and was told nothing.
#[track_caller]
fn expect_untouched(case: &Case, holder: &Endpoint, device: &Endpoint) {
    holder.send(1000);
    device.send(1000);
    let same = || holder.received() == device.sent() && device.received() == holder.sent();
    assert!(eventually(ms(15_000), same), "{holder:?} {device:?}");
    assert!(holder.is_open() && device.is_open());
    assert_eq!((holder.corrupt_at(), device.corrupt_at()), (None, None));
    let metrics = case.proxy.metrics();
    let dead = metrics.value("pulsegate_half_open_detected_total", &[]);
    assert_eq!(dead, 0.0, "{}", metrics.excerpt("pulsegate_"));
}

const QUEUE: [&str; 2] = ["--queue-timeout", "4s"];

fn live_quiet_holder_is_not_disturbed() {
    let case = case("verify", "1", &QUEUE);
    let (holder, device) = case.session();
    newcomers_are_turned_away(&case);
    expect_untouched(&case, &holder, &device);
    assert!(case.service.next_within(ms(10)).is_none(), "one at a time");
}

fn live_busy_holder_is_not_disturbed() {
    let case = case("verify", "1", &QUEUE);
    let (holder, device) = case.session();
    holder.send_every(3000, ms(20));
    device.send_every(3000, ms(20));
    newcomers_are_turned_away(&case);
    holder.stop_sending();
    device.stop_sending();
    expect_untouched(&case, &holder, &device);
}

fn live_stalled_holder_is_not_disturbed() {
    let case = case("verify", "1", &QUEUE);
    let slow = Options {
        receive_buffer: Some(8192),
        paused: true,
        ..Options::default()
    };
    let (holder, device) = case.session_with(Host::Client, slow);
    device.send(4 << 20);
    thread::sleep(ms(1500));
    newcomers_are_turned_away(&case);
    holder.resume();
    expect_untouched(&case, &holder, &device);
}

fn queue_is_first_come_first_served() {
    let case = case("queue", "1", &[]);
    let (holder, device) = case.session();
    let waiting: Vec<_> = (1..=5)
        .map(|n| {
            let newcomer = newcomer(&case, 1000 * n);
            wait_queued(&case, n as f64);
            newcomer
        })
        .collect();
    let mut current = (holder, device);
    for (newcomer, bytes) in waiting.into_iter().zip((1..).map(|n| 1000 * n)) {
        current.0.finish();
        current.1.finish();
        let device = case.service.next();
        assert!(device.wait_received(bytes, PROMPT), "{device:?}");
        thread::sleep(ms(50));
        assert_eq!(device.received(), bytes, "the wrong one was served");
        current = (newcomer, device);
    }
    expect_outcome(&case, "queued", 5);
    finish(&case, current.0, current.1);
    expect_reason(&case, "finished", 6);
}

fn reset_newcomer_leaves_the_queue() {
    let case = case("queue", "1", &[]);
    let (holder, device) = case.session();
    let impatient = newcomer(&case, EARLY);
    wait_queued(&case, 1.0);
    let patient = newcomer(&case, EARLY);
    wait_queued(&case, 2.0);
    impatient.reset();
    wait_queued(&case, 1.0);
    expect_reason(&case, "connect_cancelled", 1);
    expect_outcome(&case, "not_served", 1);
    holder.finish();
    device.finish();
    let device = expect_served(&case, &patient, Instant::now());
    finish(&case, patient, device);
    expect_outcome(&case, "queued", 1);
    assert!(case.service.next_within(ms(10)).is_none());
}

/// A FIN may come from a client that waits for its answer. It is looked at when its turn comes,
/// and if it has said nothing before, it wants nothing.
fn newcomer_that_said_fin_takes_no_place() {
    let case = case("queue", "1", &[]);
    let (holder, device) = case.session();
    let gone = case.net.dial(Host::Healthy, Options::default());
    wait_queued(&case, 1.0);
    let patient = newcomer(&case, EARLY);
    wait_queued(&case, 2.0);
    gone.close();
    thread::sleep(ms(200));
    holder.finish();
    device.finish();
    let device = expect_served(&case, &patient, Instant::now());
    expect_reason(&case, "connect_cancelled", 1);
    finish(&case, patient, device);
    assert!(case.service.next_within(ms(10)).is_none());
}

fn reconnect_delay_is_respected() {
    let case = case("verify", "1", &["--reconnect-delay", "1500ms"]);
    let (holder, device) = case.session();
    let newcomer = newcomer(&case, EARLY);
    wait_queued(&case, 1.0);
    holder.finish();
    device.finish();
    holder.wait_end(PROMPT);
    device.wait_end(PROMPT);
    let since = Instant::now();
    let device = expect_served(&case, &newcomer, since);
    let took = since.elapsed();
    assert!(took >= ms(1300), "the device had only {took:?}");
    finish(&case, newcomer, device);
}

fn replace_ends_the_longest_quiet() {
    let case = case("replace", "2", &[]);
    let (quiet, _quiet_device) = case.session_with(Host::Client, polite());
    let (talker, talker_device) = case.session();
    thread::sleep(ms(500));
    talker.send(1000);
    assert!(talker_device.wait_received(HELLO + 1000, PROMPT));
    thread::sleep(ms(300));

    let since = Instant::now();
    let newcomer = newcomer(&case, EARLY);
    let device = expect_served(&case, &newcomer, since);
    quiet.wait_end(PROMPT);
    expect_reason(&case, "replaced", 1);
    expect_outcome(&case, "replaced", 1);
    assert!(talker.is_open() && talker_device.is_open());
    drop((talker, talker_device));
    finish(&case, newcomer, device);
}

/// Half-closed past its grace, never sent a byte, longest quiet; then all are active.
fn shed_goes_by_its_order_and_spares_the_active() {
    let case = case("shed", "5", &[]);
    let quiet = case.session_with(Host::Client, polite());
    let mute = case.net.dial(Host::Client, polite());
    let mute = (mute, case.service.next());
    let half_closed = case.session();
    half_closed.0.finish();
    let busy = case.session();
    busy.0.send_every(500, ms(100));
    busy.1.send_every(500, ms(100));
    thread::sleep(ms(500));
    let less_quiet = case.session_with(Host::Client, polite());
    thread::sleep(ms(5500));
    let mut served = Vec::new();
    for (n, next) in [&half_closed, &mute, &quiet, &less_quiet]
        .into_iter()
        .enumerate()
    {
        assert!(next.0.is_open(), "{n}: too early");

        let since = Instant::now();
        let newcomer = newcomer(&case, EARLY);
        let device = expect_served(&case, &newcomer, since);
        assert!(eventually(PROMPT, || next.0.ended().is_some()), "{n}");
        served.push((newcomer, device));
    }
    expect_reason(&case, "shed", 4);
    expect_outcome(&case, "shed", 4);
    let rejected = newcomer(&case, EARLY);
    assert_eq!(rejected.wait_end(PROMPT).1, End::Reset);
    expect_reason(&case, "rejected", 1);
    expect_outcome(&case, "not_served", 1);
    busy.0.stop_sending();
    busy.1.stop_sending();
    served.push(busy);
    for (client, device) in &served {
        let same = || client.received() == device.sent() && device.received() == client.sent();
        assert!(eventually(PROMPT, same), "{client:?} {device:?}");
        assert!(client.is_open() && device.is_open());
    }
    drop((served, rejected, quiet, mute, half_closed, less_quiet));
    case.expect_nothing_left();
}
