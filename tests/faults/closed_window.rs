//! A peer that takes no data, and a kernel that would give it up: after 15 probes of its window, or
//! 2 s after it fell silent where it had taken back the window that data was on its way to.

use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, DETECT, SLACK};
use crate::support::{End, Endpoint, Host, Options, Test, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    long_outage_of_a_stalled_client,
    outage_of_clients_that_took_their_windows_back,
    client_that_took_its_window_back_vanishes,
    client_that_took_its_window_back_is_stalled,
    client_that_took_its_window_back_and_talks_is_stalled,
    retransmissions_are_no_activity,
];

/// Records are too large for a window that is taken back.
pub const OVER_TLS: &[Test] = tests![
    long_outage_of_a_stalled_client,
    retransmissions_are_no_activity,
];

const MORE_THAN_FITS: u64 = 8 << 20;
/// A stream of segments of one byte each, so many that a small receiver runs out of memory for
/// them before its window is full.
const TAKES_BACK: Options = Options {
    receive_buffer: Some(1152),
    paused: true,
    echo: false,
    polite: false,
    read_rate: None,
};
const MEMORY_IS_FULL_AFTER: Duration = ms(7000);

fn trickle(case: &Case) -> (Endpoint, Endpoint) {
    let session = case.session_with(Host::Client, TAKES_BACK);
    session.1.send_every(1, ms(1));
    session
}

/// The kernel's own end would come after some 16 s.
fn long_outage_of_a_stalled_client() {
    let flags = ["--detect-within", "25s", "--probe-interval", "4s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let slow = Options {
        receive_buffer: Some(8192),
        ..TAKES_BACK
    };
    let (client, service) = case.session_with(Host::Client, slow);
    service.send(MORE_THAN_FITS);
    thread::sleep(ms(3000));
    case.cut(Host::Client);
    thread::sleep(ms(19_500));
    case.net.heal(Host::Client);
    thread::sleep(ms(8000));
    client.resume();
    let came = client.wait_received(MORE_THAN_FITS, ms(60_000));
    assert!(came, "{client:?}\n{}", case.proxy.output());
    case.expect_intact(&client, &service);
}

fn outage_of_clients_that_took_their_windows_back() {
    let flags = ["--detect-within", "8s", "--probe-interval", "2s"];
    let case = Case::with_all_flags(&flags, Options::default());
    let sessions: Vec<_> = (0..3).map(|_| trickle(&case)).collect();
    // They are looked at once before.
    thread::sleep(MEMORY_IS_FULL_AFTER + ms(8000));
    case.cut(Host::Client);
    thread::sleep(ms(5200));
    case.net.heal(Host::Client);
    thread::sleep(ms(4000));
    for (client, service) in &sessions {
        service.stop_sending();
        client.resume();
        case.expect_intact(client, service);
    }
}

fn client_that_took_its_window_back_vanishes() {
    let case = Case::new();
    let (_client, service) = trickle(&case);
    thread::sleep(MEMORY_IS_FULL_AFTER);
    case.cut(Host::Client);
    let cut = Instant::now();
    let (at, end) = service.wait_end(DETECT + ms(1500) + SLACK);
    assert_eq!(end, End::Reset);
    // It was asked each second.
    let after = at.duration_since(cut);
    assert!(after >= DETECT - ms(1400), "found after only {after:?}");
    case.expect_counted_dead("downstream", "retransmit");
}

fn client_that_took_its_window_back_is_stalled() {
    let case = Case::with(&["--stall-timeout", "4s"], Options::default());
    let (_client, service) = trickle(&case);
    expect_stalled(&case, &service);
}

/// Its own segments tell of a window that its memory does not keep.
fn client_that_took_its_window_back_and_talks_is_stalled() {
    let case = Case::with(&["--stall-timeout", "4s"], Options::default());
    let (client, service) = trickle(&case);
    client.send_every(10, ms(50));
    expect_stalled(&case, &service);
}

/// What is on its way to a stalled client is repeated for ever, and nothing moves.
fn retransmissions_are_no_activity() {
    let case = Case::with(&["--idle-timeout", "4s"], Options::default());
    let (_client, service) = trickle(&case);
    thread::sleep(MEMORY_IS_FULL_AFTER);
    service.stop_sending();
    let (_, end) = service.wait_end(ms(4000) + ms(1500) + SLACK);
    assert_ne!(end, End::Failed(std::io::ErrorKind::TimedOut));
    case.expect_closed("idle_timeout");
}

fn expect_stalled(case: &Case, service: &Endpoint) {
    let (_, end) = service.wait_end(MEMORY_IS_FULL_AFTER + ms(8000) + SLACK);
    assert_eq!(end, End::Reset);
    case.expect_closed("downstream_stalled");
}
