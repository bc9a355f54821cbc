//! Years of sessions in seconds: the liveness machine against a fake kernel, with faults at any
//! moment, compared after every event with a reference model that knows the truth.
//!
//! A failure prints its seed. `PULSEGATE_SIM_SEED=n` replays exactly that one;
//! `PULSEGATE_SIM_SEEDS=n` sweeps more of them.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

mod leg;
mod lossy;
mod plan;
mod rng;
mod session;
mod tcp;
mod truth;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use plan::HOUR;
use session::{Outcome, Session};

/// Enough for 100,000 connection-hours.
const SEEDS: u64 = 2600;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

/// Runs one seed to its end; what broke, and everything known of it, otherwise.
fn run(seed: u64) -> Result<Outcome, String> {
    let mut session = Session::new(seed);
    let mut steps = 0u64;
    loop {
        steps += 1;
        match catch_unwind(AssertUnwindSafe(|| session.step())) {
            Ok(None) => {}
            Ok(Some(outcome)) => return Ok(outcome),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                return Err(format!(
                    "seed {seed}, step {steps}, {} ms after its start: {}\nreplay with PULSEGATE_SIM_SEED={seed}\n{}",
                    session.age(),
                    text.unwrap_or_default(),
                    session.describe()
                ));
            }
        }
    }
}

#[test]
fn sweep() {
    if let Some(seed) = variable("PULSEGATE_SIM_SEED") {
        let outcome = run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {outcome:?}");
        return;
    }
    let seeds = variable("PULSEGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let began = std::time::Instant::now();
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    let failures = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || !failures.lock().unwrap().is_empty() {
                        return;
                    }
                    match run(seed) {
                        Ok(outcome) => outcomes.lock().unwrap().push(outcome),
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures[0]);
    let outcomes = outcomes.into_inner().unwrap();
    report(&outcomes, began.elapsed().as_secs_f64());
    let hours = outcomes.iter().map(|o| o.lived).sum::<u64>() / HOUR;
    assert!(seeds < SEEDS || hours >= 100_000, "only {hours} hours");
}

fn report(outcomes: &[Outcome], seconds: f64) {
    let hours = outcomes.iter().map(|o| o.lived).sum::<u64>() / HOUR;
    let looks = outcomes.iter().map(|o| o.looks).sum::<u64>();
    let mut reasons = BTreeMap::new();
    for outcome in outcomes {
        let reason = outcome.reason.map_or("(none)", <&str>::from);
        *reasons.entry(reason).or_insert(0u64) += 1;
    }
    println!(
        "{} sessions, {hours} connection-hours, {looks} looks in {seconds:.1} s: {reasons:?}",
        outcomes.len()
    );
}

#[test]
fn a_seed_means_the_same_run_every_time() {
    for seed in 1..plan::MARATHON_EVERY {
        let twice = [(); 2].map(|()| run(seed).unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(twice[0], twice[1]);
    }
}

/// An outage that is promised to be survived kills nothing, whenever in it something is written to a peer that
/// was quiet before, although the kernel repeats that only once a second.
#[test]
fn a_write_during_an_outage_kills_nobody() {
    for seed in 0..60_000 {
        let mut session = Session::late_writes(seed);
        while session.age() < 60_000 {
            assert_eq!(session.step(), None, "seed {seed}: {}", session.describe());
        }
    }
}

/// The same, of a peer that takes no data: the kernel probes its window, and would give it up.
#[test]
fn an_outage_of_a_stalled_peer_kills_nobody() {
    (0..30_000).for_each(|seed| kills_nobody(seed, Session::shut_window(seed)));
}

/// The same, where the kernel would give it up much sooner.
#[test]
fn an_outage_of_a_peer_that_shrank_its_window_kills_nobody() {
    (0..30_000).for_each(|seed| kills_nobody(seed, Session::shrunk_window(seed)));
}

fn kills_nobody(seed: u64, mut session: Session) {
    let over = catch_unwind(AssertUnwindSafe(|| {
        while session.age() < 8 * 60_000 {
            assert_eq!(session.step(), None);
        }
    }));
    assert!(over.is_ok(), "seed {seed}: {}", session.describe());
}

/// A recovery that is interrupted by the next outage: nobody is dead before D, by the kernel's
/// verdict neither.
#[test]
fn a_link_that_flaps_kills_nobody_before_its_time() {
    for seed in 0..30_000 {
        let mut session = Session::flapping(seed);
        let over = catch_unwind(AssertUnwindSafe(|| {
            while session.age() < 120_000 && session.step().is_none() {}
        }));
        assert!(over.is_ok(), "seed {seed}: {}", session.describe());
    }
}

/// Watching an idle session of two live peers costs one look for each D, less what the last
/// answer may be old and the final phase: no busy loop, and nothing is closed.
#[test]
fn an_idle_session_is_looked_at_rarely() {
    for seed in 0..300 {
        let mut session = Session::idle(seed);
        let hours = 10;
        while session.age() < hours * HOUR {
            assert_eq!(session.step(), None, "seed {seed}");
        }
        let (looks, most) = (session.looks(), session.most_looks_per_hour() * hours);
        assert!(
            looks <= most,
            "seed {seed}: {looks} looks, expected {most}: {}",
            session.describe()
        );
    }
}
