//! Peers, links and processes are broken for real, and the binary is judged by what its operator
//! and its two neighbours see. Each test has a network of its own; see [`support`].
//!
//! `cargo test --test faults -- --list` shows the cases. They need network namespaces: root, or a
//! system that allows unprivileged user namespaces.

#![allow(
    clippy::disallowed_methods,
    reason = "the tests live in real time, beside the process that they judge"
)]

mod support;

#[path = "faults/case.rs"]
mod case;
#[path = "faults/closed_window.rs"]
mod closed_window;
#[path = "faults/complete_stream.rs"]
mod complete_stream;
#[path = "faults/endings.rs"]
mod endings;
#[path = "faults/first_response.rs"]
mod first_response;
#[path = "faults/lab.rs"]
mod lab;
#[path = "faults/lifecycle.rs"]
mod lifecycle;
#[path = "faults/listening.rs"]
mod listening;
#[path = "faults/living.rs"]
mod living;
#[path = "faults/lossy.rs"]
mod lossy;
#[path = "faults/names.rs"]
mod names;
#[path = "faults/phantom.rs"]
mod phantom;
#[path = "faults/pressure.rs"]
mod pressure;
#[path = "faults/silent.rs"]
mod silent;
#[path = "faults/takeover.rs"]
mod takeover;
#[path = "faults/vanished.rs"]
mod vanished;
#[path = "faults/verify.rs"]
mod verify;
#[path = "faults/waiting.rs"]
mod waiting;

use std::process::ExitCode;

use support::{Legs, Tests};

fn main() -> ExitCode {
    // The longest case first.
    let all = [
        lifecycle::TESTS,
        closed_window::TESTS,
        complete_stream::TESTS,
        lab::TESTS,
        first_response::TESTS,
        names::TESTS,
        phantom::TESTS,
        pressure::TESTS,
        silent::TESTS,
        takeover::TESTS,
        verify::TESTS,
        waiting::TESTS,
        listening::TESTS,
        vanished::TESTS,
        living::TESTS,
        endings::TESTS,
    ];
    // Those that need something of the kernel that it has once for each family.
    let over_ipv6 = [
        phantom::TESTS,
        verify::TESTS,
        listening::TESTS,
        closed_window::TESTS,
        vanished::TESTS,
        living::TESTS,
    ];
    // The verdict is on the TCP below. Clients vanish over the downstream leg, services over the upstream leg.
    let both = [
        complete_stream::TESTS,
        first_response::TESTS,
        silent::TESTS,
        verify::OVER_TLS,
        vanished::TESTS,
        living::TESTS,
        closed_window::OVER_TLS,
        endings::OVER_TLS,
    ];
    let downstream = [waiting::OVER_TLS, pressure::OVER_TLS];
    let upstream = [phantom::OVER_TLS, takeover::TESTS];
    support::main(Tests {
        all: all.concat(),
        over_ipv6: over_ipv6.concat(),
        over_tls: vec![
            (Legs::Both, both.concat()),
            (Legs::Downstream, downstream.concat()),
            (Legs::Upstream, upstream.concat()),
        ],
        with_nft: lossy::TESTS.to_vec(),
        with_nft_over_tls: vec![(Legs::Both, lossy::OVER_TLS.to_vec())],
    })
}
