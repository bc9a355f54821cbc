//! Too few descriptors: those who are gone, or want nothing, make room before a client is refused;
//! whoever is active never does.

use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, HELLO, PROMPT};
use crate::support::{End, Endpoint, Host, Options, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    the_gone_and_the_useless_make_room_for_newcomers,
    a_flood_is_refused_and_forgotten,
];

/// Room for 22 sessions, beside 2 workers with 2 pipes each.
const DESCRIPTORS: u32 = 148;
const PLACES: usize = 22;
const VANISHED: usize = 4;
const HALF_CLOSED: usize = 3;
const MUTE: usize = 3;
const FREED: usize = VANISHED + HALF_CLOSED + MUTE;
/// Up to here a newcomer waits for a place.
const REFUSED_WITHIN: Duration = ms(15_000);

type Pair = (Endpoint, Endpoint);

fn case() -> Case {
    Case::with_descriptors(DESCRIPTORS, &["--detect-within", "60s", "--workers", "2"])
}

/// Sessions that never stop talking.
fn busy(case: &Case, sessions: usize) -> Vec<Pair> {
    let mut busy = Vec::new();
    for _ in 0..sessions {
        let (client, service) = case.session_with(Host::Healthy, Options::default());
        client.send_every(500, ms(200));
        service.send_every(500, ms(200));
        busy.push((client, service));
    }
    busy
}

#[track_caller]
fn expect_whole(busy: &[Pair]) {
    for (client, service) in busy {
        client.stop_sending();
        service.stop_sending();
    }
    for (client, service) in busy {
        let same = || client.received() == service.sent() && service.received() == client.sent();
        assert!(eventually(PROMPT, same), "{client:?} {service:?}");
        assert!(
            client.is_open() && service.is_open(),
            "an active one was shed"
        );
        assert_eq!((client.corrupt_at(), service.corrupt_at()), (None, None));
    }
}

fn the_gone_and_the_useless_make_room_for_newcomers() {
    let case = case();
    let vanishing: Vec<_> = (0..VANISHED).map(|_| case.session()).collect();
    let half_closed: Vec<_> = (0..HALF_CLOSED)
        .map(|_| case.session_with(Host::Healthy, Options::default()))
        .collect();
    half_closed.iter().for_each(|(client, _)| client.finish());
    let mute: Vec<_> = (0..MUTE)
        .map(|_| {
            let client = case.net.dial(Host::Healthy, Options::default());
            (client, case.service.next())
        })
        .collect();
    let mut active = busy(&case, PLACES - FREED);
    case.cut(Host::Client);
    thread::sleep(ms(5500));
    for n in 0..FREED {
        let client = case.net.dial(Host::Healthy, Options::default());
        client.send(HELLO);
        let service = case.service.next_within(ms(10_000));
        let service = service.unwrap_or_else(|| panic!("newcomer {n} is not served"));
        client.send_every(500, ms(200));
        service.send_every(500, ms(200));
        active.push((client, service));
    }
    let closed = |reason| case.proxy.closed(reason);
    assert_eq!(closed("downstream_dead"), VANISHED as f64);
    assert_eq!(closed("shed"), (HALF_CLOSED + MUTE) as f64);
    // Everybody is active now: whoever comes is refused, and nobody else is touched.
    let refused: Vec<_> = (0..3)
        .map(|_| case.net.dial(Host::Healthy, Options::default()))
        .collect();
    for client in &refused {
        assert_eq!(client.wait_end(REFUSED_WITHIN).1, End::Reset);
    }
    assert_eq!(closed("rejected"), 3.0);
    expect_whole(&active);
    drop((vanishing, half_closed, mute, active, refused));
    case.net.heal(Host::Client);
    case.expect_nothing_left();
    let (client, service) = case.session();
    assert!(client.is_open() && service.is_open());
}

/// Many more clients than there are descriptors, all at once.
fn a_flood_is_refused_and_forgotten() {
    const FLOOD: usize = 150;
    let case = case();
    let active = busy(&case, PLACES);
    let since = Instant::now();
    let flood: Vec<_> = (0..FLOOD)
        .filter_map(|_| case.net.try_dial(Host::Healthy, Options::default()).ok())
        .collect();
    // The endpoint is there for the operator all the time.
    let (status, _) = case.proxy.get("/readyz").expect("answered");
    assert_eq!(status, 200);
    assert!(case.proxy.descriptors() <= DESCRIPTORS as usize);
    let all = || flood.iter().all(|client| client.ended().is_some());
    let ended = eventually(ms(60_000), all);
    assert!(ended, "some still wait after {:?}", since.elapsed());
    expect_whole(&active);
    drop((active, flood));
    case.expect_nothing_left();
    let (client, service) = case.session();
    assert!(client.is_open() && service.is_open());
}
