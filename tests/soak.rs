//! Random faults against many sessions, for as long as one likes. Every byte is checked, every
//! end of a session must have a cause that this test made, and after each round the descriptors,
//! the session table and the memory of the proxy are where they began.
//!
//! `PULSEGATE_SOAK_SECONDS` says how long (20 by default), `PULSEGATE_SOAK_SEED` repeats the
//! choices of a run, though not its timing. The seed is printed.

#![allow(
    clippy::disallowed_methods,
    reason = "the tests live in real time, beside the process that they judge"
)]

#[allow(dead_code)]
#[path = "liveness_sim/rng.rs"]
mod rng;
mod support;

#[path = "soak/links.rs"]
mod links;
#[path = "soak/pair.rs"]
mod pair;
#[path = "soak/round.rs"]
mod round;
#[path = "soak/verdicts.rs"]
mod verdicts;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rng::Rng;
use round::Field;
use support::{Net, Options, Proxy, Test, Tests, eventually, ms};

/// What is left of a round after the end of the faults: everything is healed and finished.
const CALM: Duration = ms(4000);
const ROUND: Duration = ms(20_000);
/// The allocator keeps some of a burst. What leaks grows with every round, and is more.
const MEMORY_SLACK_KIB: u64 = 4096;

fn main() -> ExitCode {
    let tests: &[Test] = tests![random_faults_leave_nothing_behind,];
    support::main(Tests {
        all: tests.to_vec(),
        ..Tests::default()
    })
}

fn random_faults_leave_nothing_behind() {
    let length = Duration::from_secs(setting("PULSEGATE_SOAK_SECONDS").unwrap_or(20));
    let seed = setting("PULSEGATE_SOAK_SEED").unwrap_or_else(fresh_seed);
    println!("soak: {length:?}, PULSEGATE_SOAK_SEED={seed}");
    let net = Arc::new(Net::new());
    let service = net.serve(Options::default());
    let proxy = Proxy::start(&net, &verdicts::FLAGS);
    let mut field = Field::new(&net, service, &proxy, Rng::new(seed));
    // The first round of all only warms up: buffers, tables and the allocator have their size.
    field.play(ms(3000));
    field.calm_down();
    let before = (proxy.descriptors(), proxy.resident());
    let begin = Instant::now();
    loop {
        let left = length.saturating_sub(begin.elapsed());
        if left < CALM {
            break;
        }
        field.play(ROUND.min(left).saturating_sub(CALM));
        field.calm_down();
        let settled = || proxy.descriptors() <= before.0;
        assert!(eventually(ms(5000), settled), "descriptors are left");
        println!(
            "soak: {:>4} s: {}",
            begin.elapsed().as_secs(),
            field.summary()
        );
    }
    field.expect_variety(length);
    let memory = proxy.resident();
    println!("soak: memory {} KiB, {memory} KiB at the end", before.1);
    assert!(
        memory <= before.1 + before.1 / 4 + MEMORY_SLACK_KIB,
        "memory grew from {} to {memory} KiB",
        before.1
    );
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(1, |d| u64::from(d.subsec_nanos()) ^ d.as_secs())
}
