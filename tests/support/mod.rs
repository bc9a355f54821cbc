//! A private network around the real binary: what the black-box tests are made of.
//!
//! * [`Net`]: namespaces and links, cut and healed one direction at a time;
//! * [`Endpoint`], [`Service`]: TCP ends that check every byte and say how the stream ended;
//! * [`certificates`]: an authority of the tests' own;
//! * [`Deaf`]: a service that does not accept, and whose accept queue is full if need be;
//! * [`Dns`]: a name server, which may fall silent;
//! * [`Proxy`]: the binary inside the network, its metrics, its descriptors;
//! * [`MemoryGroup`]: a control group with a limit, where the test may make one;
//! * [`Victim`]: an end in a process of its own, to be killed.

// Each test binary uses its own part of this module.
#![allow(dead_code, unused_imports)]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests live in real time, beside the process that they judge"
)]

pub mod certificates;
mod deaf;
mod dns;
mod endpoint;
mod group;
mod link;
mod net;
mod proxy;
mod victim;

use std::fs;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use link::Family;
use pulsegate::sys::netns;

pub use deaf::Deaf;
pub use dns::Dns;
pub use endpoint::{End, Endpoint, Options, Service};
pub use group::MemoryGroup;
pub use link::Direction;
pub use net::{Host, Link, Net};
pub use proxy::{LISTENER, Metrics, Proxy, binary};
pub use victim::{HELLO as VICTIM_HELLO, Victim, become_victim};

/// These tests wait much more than they compute, so far more of them run at a time than there
/// are processors.
const THREADS: usize = 16;

/// A named test.
pub type Test = (&'static str, fn());

/// The `main` of a test binary that needs namespaces. They must be asked for before the process
/// has a second thread, which is why the standard harness will not do. Some tests run over IPv6,
/// too, and some need nft(8).
pub fn main(tests: Vec<Test>, over_ipv6: Vec<Test>, with_nft: Vec<Test>) -> ExitCode {
    if become_victim() {
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let missing = netns::prepare().err();
    if let Some(reason) = &missing {
        eprintln!("no network namespaces here: {reason}");
        if std::env::var_os("CI").is_some() {
            eprintln!("this is CI, where they must be available");
            return ExitCode::FAILURE;
        }
        eprintln!("ALL {} TESTS OF THIS FILE ARE SKIPPED", tests.len());
    }
    let v6 = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    let no_ipv6 = v6.map_or(true, |disabled| disabled.trim() != "0");
    if no_ipv6 && !over_ipv6.is_empty() {
        eprintln!("no IPv6 here: {} TESTS ARE SKIPPED", over_ipv6.len());
    }
    let trial = |name: String, body: fn(), family: Family| {
        let skipped = missing.is_some() || (no_ipv6 && family == Family::V6);
        let run = move || {
            // Threads are used again.
            net::build_over(family);
            body();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(skipped)
    };
    let no_nft = Command::new("nft").arg("--version").output().is_err();
    let tests = tests.into_iter();
    let tests = tests.map(|(name, body)| trial(name.to_owned(), body, Family::V4));
    let with_nft = with_nft.into_iter().map(|(name, body)| {
        let skipped = missing.is_some() || no_nft;
        trial(name.to_owned(), body, Family::V4).with_ignored_flag(skipped)
    });
    let over_ipv6 = over_ipv6.into_iter();
    let over_ipv6 =
        over_ipv6.map(|(name, body)| trial(format!("{name}_over_ipv6"), body, Family::V6));
    let trials = tests.chain(over_ipv6).chain(with_nft);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Lists functions as [`Test`]s under their own names.
#[macro_export]
macro_rules! tests {
    ($($name:ident,)+) => { &[$((stringify!($name), $name as fn())),+] };
}

/// Waits until `condition` holds; false if it does not within the time.
pub fn eventually(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Beside threads that take what they get of every processor.
pub fn under_cpu_pressure<T>(body: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let threads = thread::available_parallelism().map_or(4, |n| 2 * n.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // A failure must end the threads as well.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Short for [`Duration::from_millis`].
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
