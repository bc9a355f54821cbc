//! The relay loses, repeats and changes no byte, whatever the peers and the kernel do: random
//! sizes, pauses, urgent bytes, half-closes, resets and back-pressure through copy and splice, and faults on
//! the way into splice. Peers and relay are in this process, over the loopback; the real binary is
//! between them where CPU is short.
//!
//! `cargo test --test exact -- --ignored --nocapture tail` prints how long the last bytes of a
//! bulk stream take.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

#[path = "exact/faults.rs"]
mod faults;
#[path = "exact/peer.rs"]
mod peer;
#[path = "exact/pressure.rs"]
mod pressure;
#[allow(dead_code)]
#[path = "services/process.rs"]
mod process;
#[allow(dead_code)]
#[path = "services/pulsegate.rs"]
mod proxy;
#[path = "exact/rig.rs"]
mod rig;
mod support;
#[path = "exact/tail.rs"]
mod tail;
#[path = "exact/urgent.rs"]
mod urgent;

use std::time::Duration;

use peer::{Ending, Side, Step};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use pulsegate::liveness::Leg;
use rig::{Plan, run};

const MIB: usize = 1 << 20;

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1..200_usize,
        4 => 1..70_000_usize,
        // Reads that fill the scratch buffer exactly, and their neighbours.
        3 => (1..20_usize, 0..3_usize).prop_map(|(n, off)| n * 65_536 + off - 1),
        3 => 65_536..MIB,
        1 => MIB..8 * MIB,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => size().prop_map(Step::Send),
        1 => (0..7_u64).prop_map(|ms| Step::Pause(Duration::from_millis(ms))),
        1 => Just(Step::Urgent),
    ]
}

fn side() -> impl Strategy<Value = Side> {
    let small = prop_oneof![1 => Just(None), 1 => (8_192..100_000_usize).prop_map(Some)];
    let pauses = prop::collection::vec((0..3 * MIB, 0..30_u64), 0..3);
    let steps = prop::collection::vec(step(), 0..7);
    let chunk = prop_oneof![1 => 1_000..20_000_usize, 3 => Just(262_144_usize)];
    (steps, small, pauses, chunk).prop_map(|(steps, receive_buffer, pauses, chunk)| Side {
        steps,
        ending: Ending::Fin,
        receive_buffer,
        pauses,
        chunk,
    })
}

/// Both say FIN, in any order.
fn clean() -> impl Strategy<Value = Plan> {
    let tiny = || prop_oneof![1 => Just(None), 1 => (4_608..40_000_usize).prop_map(Some)];
    (side(), side(), 0..4_u8, any::<bool>(), tiny(), tiny()).prop_map(
        |(mut client, mut service, last, low_water, down, up)| {
            match last {
                0 => client.ending = Ending::FinLast,
                1 => service.ending = Ending::FinLast,
                _ => {}
            }
            Plan {
                sides: [client, service],
                low_water,
                send_buffers: [down, up],
                drain: None,
            }
        },
    )
}

fn leg() -> impl Strategy<Value = Leg> {
    prop_oneof![Just(Leg::Downstream), Just(Leg::Upstream)]
}

/// One resets after its last byte.
fn reset() -> impl Strategy<Value = Plan> {
    (clean(), leg()).prop_map(|(mut plan, leg)| {
        plan.sides[leg as usize].ending = Ending::Reset;
        plan
    })
}

/// One is given up at some byte, as when it was found dead, and what it has sent is drained.
fn drained() -> impl Strategy<Value = Plan> {
    (clean(), leg(), 0..4 * MIB as u64).prop_map(|(mut plan, leg, at)| {
        for side in &mut plan.sides {
            side.ending = Ending::Fin;
        }
        let total = plan.sides[leg as usize].total();
        plan.drain = Some((leg, at.min(total)));
        plan
    })
}

/// New seeds in each run; a failure prints its seed, which `EXACT_SEED` repeats.
fn seed(name: &str) -> u64 {
    let given = std::env::var("EXACT_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let fresh = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), name);
    let seed: u64 = given.unwrap_or_else(fresh);
    println!("{name}: EXACT_SEED={seed}");
    seed
}

fn runner(seed: u64, cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        max_shrink_iters: 40,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    })
}

fn check(name: &str, cases: u32, plans: impl Strategy<Value = Plan>) {
    let seed = seed(name);
    let mut runner = runner(seed, cases);
    let checked = runner.run(&plans, |plan| {
        rig::judge(&plan, &run(&plan)).map_err(TestCaseError::fail)
    });
    checked.unwrap_or_else(|error| panic!("EXACT_SEED={seed}: {error}"));
}

#[test]
fn any_traffic_arrives_whole_and_fin_comes_after_the_last_byte() {
    check("clean", cases(200), clean());
}

#[test]
fn what_came_before_a_reset_is_delivered() {
    check("reset", cases(100), reset());
}

#[test]
fn a_drain_in_any_state_delivers_everything() {
    check("drained", cases(100), drained());
}

/// More in a run that is meant to be long.
fn cases(usual: u32) -> u32 {
    let factor = std::env::var("EXACT_FACTOR")
        .ok()
        .and_then(|s| s.parse().ok());
    usual * factor.unwrap_or(1)
}

fn alternating(rounds: usize) -> Side {
    let round = [
        // More than has to come before the low-water mark is set.
        Step::Send(4 * MIB),
        Step::Pause(Duration::from_millis(6)),
        Step::Send(10),
        Step::Pause(Duration::from_millis(5)),
    ];
    Side::sends(round.repeat(rounds))
}

#[test]
fn splice_is_entered_and_left_many_times() {
    for low_water in [true, false] {
        let plan = Plan {
            low_water,
            ..Plan::of([alternating(25), alternating(25)])
        };
        rig::judge(&plan, &run(&plan)).unwrap();
        // The mark, by which the test sees what the relay does, is for one-way streams.
        let plan = Plan {
            low_water,
            ..Plan::of([alternating(25), Side::sends(vec![])])
        };
        // How many of the rounds look like bulk is for the scheduler to say: few on a busy machine.
        let mut switches = 0;
        for _ in 0..5 {
            let seen = run(&plan);
            rig::judge(&plan, &seen).unwrap();
            switches += seen.entered.min(seen.left);
            if !low_water || switches >= 3 {
                break;
            }
        }
        assert!(!low_water || switches >= 3, "{switches} switches");
    }
}

#[test]
fn a_drain_in_bulk_delivers_what_is_below_the_low_water_mark() {
    for leg in [Leg::Downstream, Leg::Upstream] {
        for tail in [1, 1_000, 65_536, 200_000, 500_000] {
            let mut plan = Plan::of([Side::sends(vec![]), Side::sends(vec![])]);
            plan.sides[leg as usize].steps = vec![
                Step::Send(2 * MIB),
                // The drain has begun, and nobody waits for the tail any more.
                Step::Send(tail),
            ];
            plan.drain = Some((leg, 2 * MIB as u64));
            rig::judge(&plan, &run(&plan)).unwrap();
        }
    }
}

#[test]
fn a_slow_reader_and_a_tiny_send_buffer_cost_no_byte() {
    let mut plan = Plan::of([
        Side::sends(vec![Step::Send(6 * MIB)]),
        Side::sends(vec![Step::Send(6 * MIB)]),
    ]);
    plan.send_buffers = [Some(4_608), Some(4_608)];
    for side in &mut plan.sides {
        side.receive_buffer = Some(16_384);
        side.pauses = vec![(0, 50), (100_000, 50), (3 * MIB, 50)];
        side.chunk = 3_000;
    }
    rig::judge(&plan, &run(&plan)).unwrap();
}
