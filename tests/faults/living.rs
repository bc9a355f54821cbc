//! A peer that lives is never called dead: not when it is slow, quiet, or away for a moment.

use std::thread;
use std::time::Duration;

use crate::case::{Case, DETECT, HELLO, PROBE, PROMPT, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    quiet_peers_are_kept,
    slow_reader_survives_and_loses_nothing,
    slow_service_survives_and_loses_nothing,
    stalled_client_is_closed_by_its_own_clock,
    stalled_service_is_closed_by_its_own_clock,
    short_outage_while_idle,
    short_outage_with_traffic,
    short_outage_of_the_service_with_traffic,
    short_outage_with_late_writes,
    short_outage_of_the_service_with_late_writes,
    short_outage_of_stalled_clients,
];

const TINY_BUFFER: usize = 8192;

fn quiet_peers_are_kept() {
    let case = Case::new();
    let (client, service) = case.session();
    never_half_open(&case, DETECT * 2);
    client.send(1000);
    service.send(1000);
    case.expect_intact(&client, &service);
}

/// Nobody is suspected for such a time, however often one looks.
#[track_caller]
fn never_half_open(case: &Case, span: Duration) {
    let half_open = || {
        let metrics = case.proxy.metrics();
        metrics.value("pulsegate_half_open_connections", &[]) > 0.0
    };
    assert!(!eventually(span, half_open), "a live peer is suspected");
}

/// Its window is closed for twice the budget; its kernel answers all the time.
fn slow_reader_survives_and_loses_nothing() {
    let case = Case::new();
    let slow = Options {
        receive_buffer: Some(TINY_BUFFER),
        paused: true,
        ..Options::default()
    };
    let (client, service) = case.session_with(Host::Client, slow);
    service.send(8 << 20);
    never_half_open(&case, DETECT * 2);
    client.resume();
    assert!(client.wait_received(8 << 20, ms(20_000)), "{client:?}");
    case.expect_intact(&client, &service);
}

fn slow_service_survives_and_loses_nothing() {
    let slow = Options {
        receive_buffer: Some(TINY_BUFFER),
        ..Options::default()
    };
    let case = Case::with(&[], slow);
    let (client, service) = case.session();
    service.pause();
    client.send(8 << 20);
    never_half_open(&case, DETECT * 2);
    service.resume();
    assert!(
        service.wait_received(HELLO + (8 << 20), ms(20_000)),
        "{service:?}"
    );
    case.expect_intact(&client, &service);
}

/// Stalled is not dead: another word, another clock.
fn stalled_client_is_closed_by_its_own_clock() {
    let case = Case::with(&["--stall-timeout", "4s"], Options::default());
    let slow = Options {
        receive_buffer: Some(TINY_BUFFER),
        paused: true,
        ..Options::default()
    };
    let (_client, service) = case.session_with(Host::Client, slow);
    let since = std::time::Instant::now();
    service.send(16 << 20);
    let (at, end) = service.wait_end(ms(4000) + ms(1500) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(3500), "closed after only {after:?}");
    case.expect_closed("downstream_stalled");
    assert_eq!(
        case.proxy
            .metrics()
            .value("pulsegate_half_open_detected_total", &[]),
        0.0
    );
}

fn stalled_service_is_closed_by_its_own_clock() {
    let slow = Options {
        receive_buffer: Some(TINY_BUFFER),
        ..Options::default()
    };
    let case = Case::with(&["--stall-timeout", "4s"], slow);
    let (client, service) = case.session();
    service.pause();
    let since = std::time::Instant::now();
    client.send(16 << 20);
    let (at, end) = client.wait_end(ms(4000) + ms(1500) + SLACK);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(3500), "closed after only {after:?}");
    case.expect_closed("upstream_stalled");
}

/// Everything is swallowed for less than `detect_within` - 2 s, where `probe_interval` is 1 s.
fn outage(link: Host, traffic: Option<Duration>) {
    let flags = ["--detect-within", "6s", "--probe-interval", "1s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let (client, service) = case.session();
    if let Some(every) = traffic {
        client.send_every(500, every);
        service.send_every(500, every);
    }
    thread::sleep(ms(1000));
    case.net.cut(link);
    thread::sleep(ms(3800));
    case.net.heal(link);
    // Long enough for a verdict that was only late.
    thread::sleep(ms(3000));
    client.stop_sending();
    service.stop_sending();
    client.send(1000);
    service.send(1000);
    client.wait_sent(ms(5000));
    service.wait_sent(ms(5000));
    case.expect_intact(&client, &service);
}

fn short_outage_while_idle() {
    outage(Host::Client, None);
}

fn short_outage_with_traffic() {
    outage(Host::Client, Some(ms(100)));
}

fn short_outage_of_the_service_with_traffic() {
    outage(Host::Service, Some(ms(100)));
}

/// Sessions that were quiet for up to a probe interval, and get data to carry at any moment of an
/// outage that is shorter than what is survived by this.
const LATE_WRITERS: u32 = 16;
const SHORTER_BY: Duration = ms(150);

/// With a probe interval of 1 s that is `detect_within` less 2 s: the kernel's own questions are a
/// second apart.
const SURVIVED: Duration = DETECT.saturating_sub(ms(2000));

/// The kernel repeats late data once a second, and the last time may be long before the verdict.
fn short_outage_with_late_writes() {
    survive_late_writes(Host::Client);
}

fn short_outage_of_the_service_with_late_writes() {
    survive_late_writes(Host::Service);
}

/// A machine that is too busy to serve the last tenth of a second in time gets another chance.
fn survive_late_writes(link: Host) {
    let survived = (0..3).any(|_| all_survive_late_writes(link, &Case::new()));
    assert!(survived, "a live peer was called dead, three times");
}

fn all_survive_late_writes(link: Host, case: &Case) -> bool {
    let sessions: Vec<_> = (0..LATE_WRITERS)
        .map(|_| {
            thread::sleep(PROBE / LATE_WRITERS);
            case.session()
        })
        .collect();
    // Each at its own distance from its last probe.
    thread::sleep(PROBE);
    let span = SURVIVED - SHORTER_BY;
    let cut = case.cut(link);
    for (index, session) in sessions.iter().enumerate() {
        let (writer, _) = writer_and_reader(link, session);
        if says_fin(index) {
            writer.finish();
        } else {
            writer.send(1000);
        }
        thread::sleep(span / LATE_WRITERS);
    }
    thread::sleep(span.saturating_sub(cut.elapsed()));
    case.net.heal(link);
    let away = cut.elapsed();
    thread::sleep(DETECT);
    let killed = case.proxy.closed("downstream_dead") + case.proxy.closed("upstream_dead");
    if killed > 0.0 {
        println!("an outage of {away:?} killed {killed}");
        return false;
    }
    for (index, session) in sessions.iter().enumerate() {
        if says_fin(index) {
            let (_, reader) = writer_and_reader(link, session);
            assert_eq!(reader.wait_end(PROMPT).1, End::Finished);
        } else {
            case.expect_intact(&session.0, &session.1);
        }
    }
    true
}

/// The kernel asks a peer that takes no data once a second; each of these at another moment.
fn short_outage_of_stalled_clients() {
    let survived = (0..3).any(|_| stalled_clients_survive());
    assert!(survived, "a live peer was called dead, three times");
}

fn stalled_clients_survive() -> bool {
    const MORE_THAN_FITS: u64 = 8 << 20;
    const DETECT: Duration = ms(3500);
    let flags = ["--detect-within", "3500ms", "--probe-interval", "1s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let slow = Options {
        receive_buffer: Some(TINY_BUFFER),
        paused: true,
        ..Options::default()
    };
    let sessions: Vec<_> = (0..LATE_WRITERS)
        .map(|_| {
            thread::sleep(PROBE / LATE_WRITERS);
            let session = case.session_with(Host::Client, slow);
            session.1.send(MORE_THAN_FITS);
            session
        })
        .collect();
    thread::sleep(DETECT);
    let cut = case.cut(Host::Client);
    thread::sleep(DETECT - ms(2000) - SHORTER_BY);
    case.net.heal(Host::Client);
    let away = cut.elapsed();
    thread::sleep(DETECT);
    let killed = case.proxy.closed("downstream_dead");
    if killed > 0.0 {
        println!("an outage of {away:?} killed {killed}");
        return false;
    }
    for (client, service) in &sessions {
        client.resume();
        assert!(
            client.wait_received(MORE_THAN_FITS, ms(60_000)),
            "{client:?}"
        );
        case.expect_intact(client, service);
    }
    true
}

/// The reader is behind the link.
fn writer_and_reader(
    link: Host,
    (client, service): &(Endpoint, Endpoint),
) -> (&Endpoint, &Endpoint) {
    match link {
        Host::Client => (service, client),
        _ => (client, service),
    }
}

/// Of the late writers, some have nothing to say but that they have finished.
fn says_fin(index: usize) -> bool {
    index % 4 == 3
}
