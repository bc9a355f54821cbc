//! How the process ends, for scripts and supervisors.

use std::process::ExitCode;

/// The exit codes, as `pulsegate --help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done as asked.
    Ok = 0,
    /// Failed while running.
    Failure = 1,
    /// Flags or configuration are wrong.
    Usage = 2,
    /// An address could not be listened on.
    CannotListen = 3,
    /// A peer that was asked did not answer.
    Unanswered = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
