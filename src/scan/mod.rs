//! Connections of any process of this host, which pulsegate did not make: what is known of their peers,
//! who holds them, and asking peers that are quiet.
//!
//! * `verdict` (pure): one reading of a connection to one word, by [`crate::liveness::Judge`];
//! * `matching` (pure): which connections are meant;
//! * `processes`: who holds a socket, from `/proc/PID`; `refusal`: why that, or a copy, is refused;
//! * `survey`: all connections of the namespace, summed up by process;
//! * `options`: the socket options that have the kernel ask; `asking`: asking at once, and what follows.

mod asking;
mod matching;
mod options;
mod processes;
mod refusal;
mod survey;
mod verdict;

pub use asking::{Outcome, Purpose, ask, copy, end, is_asking, is_question, is_underway};
pub use matching::{Matching, network};
pub use options::Options;
pub use processes::{Owner, Processes, has_holder};
pub use refusal::Refusal;
pub use survey::{AcceptQueue, Row, Seen, Survey, UNKNOWN, survey};
pub use verdict::{Word, judge};

use std::time::Duration;

use crate::config;
use crate::liveness::{Policy, Span};

/// Reads a D that foreign connections can be held to.
///
/// # Errors
/// What is wrong with the text.
pub fn detect_within(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(5);
    match config::duration(text)? {
        short if short < LEAST => Err("5s is the least: the kernel alone asks then".to_owned()),
        duration => Ok(duration),
    }
}

/// The promise alone, with the probe interval that the proxy derives from it.
#[must_use]
pub fn policy(detect_within: Duration) -> Policy {
    let detect_within = Span::from(detect_within);
    let interval = (detect_within / 5).max(Span::ms(1000));
    Policy::without_limits(detect_within, interval)
}
