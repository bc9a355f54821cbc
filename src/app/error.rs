//! Why the process could not start, and with which exit code it says so.

use std::io;
use std::net::SocketAddr;

use crate::config::{ConfigErrors, ControlAddress};
use crate::exit::Exit;
use crate::server::StartError;

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Flags or file are wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A listener or worker could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The admin endpoint could not be opened.
    #[error(
        "admin: cannot listen on {address}: {error}; choose another with --admin or switch it off with --admin off"
    )]
    Admin {
        /// Its address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Nor could its second address.
    #[error("admin.control: cannot listen on {address}: {error}")]
    Control {
        /// The address.
        address: ControlAddress,
        /// What the kernel said.
        error: io::Error,
    },
    /// `--takeover` found nobody, and yet somebody listens there.
    #[error(
        "{error}; it cannot be taken over: no instance of this user has the admin address {address}"
    )]
    NotOurs {
        /// The listener.
        error: StartError,
        /// Where an instance was looked for.
        address: SocketAddr,
    },
    /// `--takeover` without an admin address.
    #[error("--takeover finds the running instance by the admin address: it must not be off")]
    NoAdmin,
    /// The running instance does not give its place.
    #[error("cannot take over: {0}")]
    Takeover(#[source] io::Error),
    /// A descriptor limit that cannot hold what was asked for.
    #[error(
        "the descriptor limit is {limit}, and {sessions} session{} with all listeners and workers need{} \
         {needed}: raise `ulimit -n` (systemd: LimitNOFILE=) or lower limits.max_connections",
        if *sessions == 1 { "" } else { "s" },
        if *sessions == 1 { "s" } else { "" }
    )]
    Descriptors {
        /// The hard limit.
        limit: u64,
        /// What `limits.max_connections` add up to; at least one.
        sessions: u64,
        /// Descriptors for them.
        needed: u64,
    },
    /// Anything else the system refused.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

impl AppError {
    pub(super) fn admin(address: SocketAddr, error: io::Error) -> Self {
        Self::Admin { address, error }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Admin { .. }
            | Self::Control { .. }
            | Self::NotOurs { .. }
            | Self::Start(StartError::Listen { .. }) => Exit::CannotListen,
            Self::Config(_) | Self::NoAdmin => Exit::Usage,
            _ => Exit::Failure,
        }
    }

    pub(super) fn for_a_person(&self) -> String {
        match self {
            Self::Config(errors) => errors.to_string(),
            other => format!("pulsegate: {other}"),
        }
    }
}
