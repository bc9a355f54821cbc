//! Too few descriptors, or too little memory: those who are gone, or want nothing, make room before a
//! client is refused; whoever is active never does.

use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, HELLO, PROMPT};
use crate::support::{End, Endpoint, Host, MemoryGroup, Options, Test, binary, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    the_gone_and_the_useless_make_room_for_newcomers,
    a_flood_is_refused_and_forgotten,
    a_client_that_would_only_wait_ends_nobody,
    idle_sessions_give_their_memory_back,
    idle_sessions_go_before_the_kernel_kills,
    the_useless_go_for_memory_but_not_in_vain,
    waiting_clients_go_for_memory_before_sessions,
    memory_that_is_not_of_sessions_ends_none,
];

/// One for descriptors, one for memory.
pub const OVER_TLS: &[Test] = tests![
    the_gone_and_the_useless_make_room_for_newcomers,
    idle_sessions_go_before_the_kernel_kills,
];

/// Room for 22 sessions, beside 2 workers with 2 pipes each.
const DESCRIPTORS: u32 = 148;
const PLACES: usize = 22;
const VANISHED: usize = 4;
const HALF_CLOSED: usize = 3;
const MUTE: usize = 3;
const FREED: usize = VANISHED + HALF_CLOSED + MUTE;
/// An end that makes the proxy hold what is meant for it.
const TAKES_NOTHING: Options = Options {
    paused: true,
    receive_buffer: Some(8192),
    echo: false,
    polite: false,
    read_rate: None,
};
/// The memory limit of the control group in these cases.
const MEMORY: u64 = 100_000_000;
/// What the log says then.
const GAVE_UP: &str = "memory stays short although sessions were ended";
/// And without any session.
const NOT_OURS: &str = "memory is short without any session";
/// What takes some rounds of a few seconds is given this long.
const ROUNDS: Duration = ms(60_000);
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
    case.expect_counted("downstream_dead", VANISHED);
    case.expect_counted("shed", HALF_CLOSED + MUTE);
    // Everybody is active now: whoever comes is refused, and nobody else is touched.
    let refused: Vec<_> = (0..3)
        .map(|_| case.net.dial(Host::Healthy, Options::default()))
        .collect();
    for client in &refused {
        assert_eq!(client.wait_end(REFUSED_WITHIN).1, End::Reset);
    }
    case.expect_counted("rejected", 3);
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

/// Where there are no descriptors for it, it is not served by anybody's end: it has no place.
fn a_client_that_would_only_wait_ends_nobody() {
    let places = (PLACES - 1).to_string();
    let flags = ["--detect-within", "60s", "--workers", "2"];
    let queue = ["--on-full", "queue", "--max-connections", &places];
    let case = Case::with_descriptors(DESCRIPTORS, &[flags, queue].concat());
    let (half_closed, service) = case.session_with(Host::Healthy, Options::default());
    half_closed.finish();
    let active = busy(&case, PLACES - 2);
    let waiting = case.net.dial(Host::Healthy, Options::default());
    thread::sleep(ms(3000));
    let refused = case.net.dial(Host::Healthy, Options::default());
    assert_eq!(refused.wait_end(REFUSED_WITHIN).1, End::Reset);
    case.expect_counted("rejected", 1);
    assert!(half_closed.is_open() && waiting.is_open());
    expect_whole(&active);
    // Its turn comes.
    service.finish();
    waiting.send(HELLO);
    let served = case.service.next_within(REFUSED_WITHIN).expect("served");
    assert!(served.wait_received(HELLO, PROMPT));
    drop((half_closed, service, waiting, served, active, refused));
    case.expect_nothing_left();
}

/// In the process itself: each session holds up to 64 KiB that its service does not take, and up to
/// 64 KiB that its client does not take.
fn idle_sessions_give_their_memory_back() {
    const LIMIT: f64 = (20 << 20) as f64;
    const MOST: usize = 500;
    let flags = ["--detect-within", "60s", "--workers", "2"];
    let memory = ["--memory-limit", "20MiB", "--on-full", "shed"];
    let case = Case::with_all_flags(&[flags, memory].concat(), TAKES_NOTHING);
    let used = || {
        case.proxy
            .metrics()
            .value("pulsegate_memory_used_bytes", &[])
    };
    let limit = case.proxy.metrics();
    assert_eq!(limit.value("pulsegate_memory_limit_bytes", &[]), LIMIT);
    assert!(used() < LIMIT * 0.75, "{} without sessions", used());
    let active = vec![busy_among_the_deaf(&case)];

    let mut idle = Vec::new();
    while case.proxy.resident() * 1024 < LIMIT as u64 {
        assert!(idle.len() < MOST, "{} KiB", case.proxy.resident());
        let client = case.net.dial(Host::Healthy, TAKES_NOTHING);
        client.send(1 << 20);
        let Some(service) = case.service.next_within(ms(2000)) else {
            // It waits already, for memory.
            break;
        };
        service.send(1 << 20);
        idle.push((client, service));
    }
    let enough = || shed(&case, "memory") > 0.0 && used() < LIMIT * 0.9;
    let freed = eventually(ROUNDS, enough);
    let all = case.proxy.metrics();
    assert!(freed, "{}", all.excerpt("pulsegate_"));
    // Nobody had vanished. The last of them may not have ended yet.
    let all_of_them = || case.proxy.closed("shed") == shed(&case, "memory");
    assert!(eventually(PROMPT, all_of_them), "{}", shed(&case, "memory"));
    assert!(case.proxy.output().contains("memory is short: shedding"));
    expect_whole(&active);
    let newcomer = case.net.dial(Host::Healthy, Options::default());
    newcomer.send(HELLO);
    let service = case.service.next_within(REFUSED_WITHIN).expect("served");
    service.resume();
    assert!(service.wait_received(HELLO, PROMPT));
}

/// Where a service takes nothing unless it is told to.
fn busy_among_the_deaf(case: &Case) -> Pair {
    let client = case.net.dial(Host::Healthy, Options::default());
    client.send_every(500, ms(200));
    let served = case.service.next();
    served.resume();
    served.send_every(500, ms(200));
    (client, served)
}

/// The same with a limit that is the kernel's own, and nobody told pulsegate of it. Another process
/// has its share.
fn idle_sessions_go_before_the_kernel_kills() {
    const LIMIT: u64 = 32 << 20;
    const MOST: usize = 500;
    let group = match MemoryGroup::new(LIMIT) {
        Ok(group) => group,
        Err(error) => {
            eprintln!("SKIPPED: no memory control group can be made here: {error}");
            return;
        }
    };
    let doctor = group.command(binary()).arg("doctor").output();
    let doctor = String::from_utf8_lossy(&doctor.expect("ran").stdout).into_owned();
    let mut lines = doctor.lines();
    let line = lines.find(|line| line.contains("memory_limit"));
    assert!(line.is_some_and(|line| line.contains("32 MiB")), "{doctor}");

    let flags = [
        "--detect-within",
        "60s",
        "--workers",
        "2",
        "--on-full",
        "shed",
    ];
    let case = Case::limited_by(&group, &flags, TAKES_NOTHING);
    let limit = case.proxy.metrics();
    let limit = limit.value("pulsegate_memory_limit_bytes", &[]);
    assert_eq!(limit, LIMIT as f64);
    assert!(group.used() < LIMIT / 3, "{} at the start", group.used());
    let neighbour = group.fill(LIMIT / 5 * 2);
    let active = vec![busy_among_the_deaf(&case)];

    let mut idle = Vec::new();
    for _ in 0..2 {
        let before = shed(&case, "memory");
        while group.used() < LIMIT / 100 * 95 {
            assert!(idle.len() < MOST, "{} in use", group.used());
            let client = case.net.dial(Host::Healthy, TAKES_NOTHING);
            client.send(1 << 20);
            let Some(service) = case.service.next_within(ms(2000)) else {
                // It waits already, for memory.
                break;
            };
            service.send(1 << 20);
            idle.push((client, service));
            // What they send has come before the next one.
            thread::sleep(ms(10));
        }
        let enough = || shed(&case, "memory") > before && group.used() < LIMIT / 100 * 94;
        let freed = eventually(ROUNDS, enough);
        let all = case.proxy.metrics().excerpt("pulsegate_");
        assert!(freed, "{} in use\n{all}", group.used());
    }
    assert_eq!(group.kills(), 0);
    expect_whole(&active);
    let newcomer = case.net.dial(Host::Healthy, Options::default());
    newcomer.send(HELLO);
    let service = case.service.next_within(REFUSED_WITHIN).expect("served");
    service.resume();
    assert!(service.wait_received(HELLO, PROMPT));
    drop(neighbour);
}

fn the_useless_go_for_memory_but_not_in_vain() {
    let case = Case::with_memory(MEMORY, &["--detect-within", "60s", "--workers", "2"]);
    let vanished: Vec<_> = (0..2).map(|_| case.session()).collect();
    let quiet: Vec<_> = (0..3)
        .map(|_| case.session_with(Host::Healthy, Options::default()))
        .collect();
    let half_closed: Vec<_> = (0..5)
        .map(|_| case.session_with(Host::Healthy, Options::default()))
        .collect();
    half_closed.iter().for_each(|(client, _)| client.finish());
    let active = busy(&case, 3);
    case.cut(Host::Client);
    thread::sleep(ms(6000));
    assert_eq!(shed(&case, "memory"), 0.0);

    case.proxy.set_memory_in_use(MEMORY / 100 * 96);
    let stopped = eventually(ROUNDS, || case.proxy.output().contains(GAVE_UP));
    let all = case.proxy.metrics();
    assert!(stopped, "{}", all.excerpt("pulsegate_"));
    case.expect_counted("downstream_dead", vanished.len());
    // Five rounds, of which the first ends the vanished.
    let ended = shed(&case, "memory");
    assert!((5.0..=6.0).contains(&ended), "{ended}");
    let newcomer = case.session_with(Host::Healthy, Options::default());
    assert_eq!(shed(&case, "memory"), ended, "in vain");
    drop(newcomer);

    case.proxy.set_memory_in_use(MEMORY / 100 * 98);
    let useless = (vanished.len() + half_closed.len()) as f64;
    let all_useless = eventually(ROUNDS, || shed(&case, "memory") == useless);
    assert!(all_useless, "{}", shed(&case, "memory"));
    // Nobody else goes by the policy of this listener, so newcomers have to.
    let refused = case.net.dial(Host::Healthy, Options::default());
    assert_eq!(refused.wait_end(REFUSED_WITHIN).1, End::Reset);
    case.expect_counted("rejected", 1);
    case.proxy.set_memory_in_use(MEMORY / 100 * 50);
    let over = "memory is not short any more";
    assert!(eventually(ROUNDS, || case.proxy.output().contains(over)));
    let newcomer = case.session_with(Host::Healthy, Options::default());
    assert!(newcomer.0.is_open());
    assert_eq!(shed(&case, "memory"), useless);
    assert!(quiet.iter().all(|(a, b)| a.is_open() && b.is_open()));
    expect_whole(&active);
}

fn waiting_clients_go_for_memory_before_sessions() {
    let flags = ["--detect-within", "60s", "--workers", "2"];
    let queue = ["--on-full", "queue", "--max-connections", "3"];
    let case = Case::with_memory(MEMORY, &[flags, queue].concat());
    let (half_closed, service) = case.session_with(Host::Healthy, Options::default());
    half_closed.finish();
    let active = busy(&case, 2);
    let waiting: Vec<_> = (1..=2)
        .map(|n| {
            let client = case.net.dial(Host::Healthy, Options::default());
            let queued = || {
                case.proxy
                    .metrics()
                    .value("pulsegate_connections_queued", &[])
            };
            assert!(eventually(PROMPT, || queued() == f64::from(n)));
            client
        })
        .collect();
    thread::sleep(ms(3000));
    case.proxy.set_memory_in_use(MEMORY / 100 * 96);
    let ends: Vec<_> = waiting.iter().map(|c| c.wait_end(ROUNDS)).collect();
    assert!(ends[1].0 < ends[0].0, "the last to come goes first");
    assert!(ends.iter().all(|(_, end)| *end == End::Reset));
    let (at, _) = half_closed.wait_end(ROUNDS);
    assert!(ends[0].0 < at, "a session went before a waiting client");
    case.expect_counted("rejected", 2);
    case.expect_counted("shed", 1);
    assert_eq!(shed(&case, "memory"), 3.0);
    expect_whole(&active);
    drop(service);
}

fn memory_that_is_not_of_sessions_ends_none() {
    let case = Case::with_memory(MEMORY, &["--detect-within", "60s", "--workers", "2"]);
    case.proxy.set_memory_in_use(MEMORY / 100 * 97);
    let seen = eventually(ROUNDS, || case.proxy.output().contains(NOT_OURS));
    assert!(seen, "{}", case.proxy.metrics().excerpt("pulsegate_memory"));
    let (half_closed, service) = case.session_with(Host::Healthy, Options::default());
    half_closed.finish();
    case.proxy.set_memory_in_use(MEMORY / 100 * 99);
    thread::sleep(ms(6000));
    let (newcomer, served) = case.session_with(Host::Healthy, Options::default());
    assert!(half_closed.is_open() && service.ended().is_some());
    assert_eq!(shed(&case, "memory"), 0.0);
    let used = case
        .proxy
        .metrics()
        .value("pulsegate_memory_used_bytes", &[]);
    assert_eq!(used, (MEMORY / 100 * 99) as f64, "without inactive files");
    drop((half_closed, service, newcomer, served));
    case.expect_nothing_left();
}

fn shed(case: &Case, cause: &str) -> f64 {
    let metrics = case.proxy.metrics();
    metrics.value("pulsegate_shed_total", &[("cause", cause)])
}
