//! Judges a host by what pulsegate is to do on it: pure, from facts and demands to the checks.

mod accepting;
mod kernel;
mod resources;

use std::net::SocketAddr;

use serde::Serialize;
use strum::Display;

use super::{Abilities, AcceptQueue, Counters, Limits, Sockets};

/// What pulsegate is to do.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// The longest accept queue of any listener.
    pub backlog: u64,
    /// Sessions of all listeners together; `None` where one has no limit.
    pub sessions: Option<u64>,
    /// Descriptors that are no sessions'.
    pub reserved_descriptors: u64,
    /// Data-plane threads.
    pub workers: u64,
    /// Each service once.
    pub upstreams: Vec<Upstream>,
    /// What memory is measured against.
    pub memory: Memory,
}

/// What memory is measured against: where it is nearly used up, sessions are shed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// The limit of the control group.
    #[default]
    Group,
    /// So many bytes for the process alone.
    Process(u64),
    /// Nothing.
    Unwatched,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// As the operator writes it.
    pub name: String,
    /// Sessions of all listeners that lead there; `None` where one has no limit.
    pub sessions: Option<u64>,
    /// For a literal address that this network namespace listens on.
    pub queue: Option<AcceptQueue>,
}

/// What the host is like now.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Settings.
    pub limits: Limits,
    /// `None`: hidden.
    pub counters: Option<Counters>,
    /// `None`: hidden.
    pub sockets: Option<Sockets>,
    /// Found by trying.
    pub abilities: Abilities,
    /// Handshakes in progress in the namespace; `None`: the kernel or a sandbox does not say.
    pub handshakes: Option<u64>,
}

impl Facts {
    /// Finds them.
    #[must_use]
    pub fn of(abilities: Abilities) -> Self {
        let handshakes = crate::sys::sock_diag::handshakes();
        Self {
            limits: Limits::read(),
            counters: Counters::read().ok(),
            sockets: Sockets::read().ok(),
            abilities,
            handshakes: handshakes.ok(),
        }
    }
}

/// The queue of a service, where it can be seen.
#[must_use]
pub fn visible_queue(address: Option<SocketAddr>) -> Option<AcceptQueue> {
    super::accept_queue(address?).ok()?
}

/// How a check ended, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Display, Serialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// Does not bound the promise, and may explain what is observed.
    Info,
    /// Could not be read.
    Unknown,
    /// Bounds the promise, or what the host can carry.
    Warn,
    /// What was asked for cannot be kept.
    Fail,
}

/// What came of looking at one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, one word.
    #[serde(rename = "check")]
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was read.
    pub found: String,
    /// What that means for the promise.
    pub meaning: String,
    /// What to change.
    pub setting: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Checks {
    /// How the worst ended.
    pub worst: Status,
    /// One for each line.
    pub checks: Vec<Check>,
}

impl Checks {
    /// Finds the worst.
    #[must_use]
    pub fn of(checks: Vec<Check>) -> Self {
        let worst = checks.iter().map(|check| check.status).max();
        Self {
            worst: worst.unwrap_or(Status::Ok),
            checks,
        }
    }
}

impl Check {
    /// [`all`] gives it its name.
    fn new(status: Status, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            name: "",
            status,
            found: found.into(),
            meaning: meaning.into(),
            setting: None,
        }
    }

    fn ok(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Status::Ok, found, meaning)
    }

    fn info(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Status::Info, found, meaning)
    }

    fn warn(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Status::Warn, found, meaning)
    }

    fn fail(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Status::Fail, found, meaning)
    }

    /// What to change.
    fn set(self, setting: impl Into<String>) -> Self {
        let setting = Some(setting.into());
        Self { setting, ..self }
    }
}

/// The name of a check, what it reads, and its judgement: `None` where that could not be read.
type Row = (
    &'static str,
    &'static str,
    fn(&Facts, &Demands) -> Option<Check>,
);

/// Every check, always in the same order.
#[must_use]
pub fn all(facts: &Facts, demands: &Demands) -> Vec<Check> {
    let judge = |rows: &'static [Row]| {
        rows.iter().map(|(name, what, judge)| {
            let unknown = || Check::new(Status::Unknown, *what, "cannot be read here");
            let check = judge(facts, demands).unwrap_or_else(unknown);
            Check { name, ..check }
        })
    };
    let mut checks = Vec::new();
    checks.extend(judge(kernel::ABILITIES));
    checks.extend(judge(resources::CHECKS));
    checks.extend(judge(accepting::CHECKS));
    checks.extend(accepting::upstream_queues(demands));
    checks.extend(judge(kernel::SETTINGS));
    checks
}

#[cfg(test)]
mod tests;
