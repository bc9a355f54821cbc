//! A private network around the real binary: what the black-box tests are made of.
//!
//! * [`Net`]: namespaces and links, cut and healed one direction at a time;
//! * [`Endpoint`], [`Service`]: TCP ends that check every byte and say how the stream ended;
//! * [`Legs`]: which of the two speak TLS;
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
mod channel;
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

pub use channel::{Channel, Legs, Speech};
pub use deaf::Deaf;
pub use dns::Dns;
pub use endpoint::{End, Endpoint, Options, Service};
pub use group::MemoryGroup;
pub use link::Direction;
pub use net::{Host, Link, Net};
pub use proxy::{ADMIN, LISTENER, Metrics, Proxy, binary};
pub use victim::{HELLO as VICTIM_HELLO, Victim, become_victim};

/// These tests wait much more than they compute, so far more of them run at a time than there
/// are processors.
const THREADS: usize = 16;

/// A named test.
pub type Test = (&'static str, fn());

/// The tests of a binary. Those of the other lists are run in another way, too, or need a tool.
#[derive(Debug, Default)]
pub struct Tests {
    /// As they are.
    pub all: Vec<Test>,
    /// Once more over IPv6.
    pub over_ipv6: Vec<Test>,
    /// Once more where these legs speak TLS.
    pub over_tls: Vec<(Legs, Vec<Test>)>,
    /// Those that need nft(8).
    pub with_nft: Vec<Test>,
    /// Once more where these legs speak TLS.
    pub with_nft_over_tls: Vec<(Legs, Vec<Test>)>,
}

/// How a test is run.
#[derive(Clone, Copy)]
struct Way {
    family: Family,
    legs: Legs,
    skipped: bool,
}

impl Way {
    fn suffix(self) -> &'static str {
        match (self.family, self.legs) {
            (Family::V4, Legs::Plain) => "",
            (Family::V6, _) => "_over_ipv6",
            (Family::V4, Legs::Downstream) => "_over_tls_downstream",
            (Family::V4, Legs::Upstream) => "_over_tls_upstream",
            (Family::V4, Legs::Both) => "_over_tls",
        }
    }

    fn trial(self, (name, body): Test) -> Trial {
        let run = move || {
            // Threads are used again.
            net::build_over(self.family, self.legs);
            body();
            Ok(())
        };
        let name = format!("{name}{}", self.suffix());
        Trial::test(name, run).with_ignored_flag(self.skipped)
    }
}

/// The `main` of a test binary that needs namespaces. They must be asked for before the process
/// has a second thread, which is why the standard harness will not do.
pub fn main(tests: Tests) -> ExitCode {
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
        eprintln!("ALL TESTS OF THIS FILE ARE SKIPPED");
    }
    let v6 = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    let no_ipv6 = v6.map_or(true, |disabled| disabled.trim() != "0");
    if no_ipv6 && !tests.over_ipv6.is_empty() {
        eprintln!("no IPv6 here: {} TESTS ARE SKIPPED", tests.over_ipv6.len());
    }
    let no_nft = Command::new("nft").arg("--version").output().is_err();
    let plain = Way {
        family: Family::V4,
        legs: Legs::Plain,
        skipped: missing.is_some(),
    };
    let v6 = Way {
        family: Family::V6,
        skipped: plain.skipped || no_ipv6,
        ..plain
    };
    let nft = Way {
        skipped: plain.skipped || no_nft,
        ..plain
    };
    let mut lists = vec![
        (plain, tests.all),
        (v6, tests.over_ipv6),
        (nft, tests.with_nft),
    ];
    for (way, over_tls) in [(plain, tests.over_tls), (nft, tests.with_nft_over_tls)] {
        let over_tls = over_tls.into_iter();
        lists.extend(over_tls.map(|(legs, tests)| (Way { legs, ..way }, tests)));
    }
    let lists = lists.into_iter();
    let trials = lists.flat_map(|(way, list)| list.into_iter().map(move |test| way.trial(test)));
    let outcome = libtest_mimic::run(&arguments, trials.collect());
    channel::remove_papers();
    outcome.exit_code()
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
