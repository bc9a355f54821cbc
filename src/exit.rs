//! How the process ends, for scripts and supervisors.

use std::io::{Write, stderr};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The exit codes, as `pulsegate --help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done as asked.
    Ok = 0,
    /// Failed while running, or named a listener that is not there.
    Failure = 1,
    /// Flags or configuration are wrong.
    Usage = 2,
    /// An address could not be listened on.
    CannotListen = 3,
    /// A peer that was asked did not answer.
    Unanswered = 4,
    /// Nobody could be connected to.
    NotConnected = 5,
    /// The handshake of TLS failed.
    NoHandshake = 6,
    /// A certificate is not to be trusted.
    NotTrusted = 7,
    /// A connection was ended by the other side at once.
    EndedEarly = 8,
    /// A connection was found whose peer may be gone unnoticed.
    Found = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// How long a complaint waits for a reader of standard error.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// A pipe that poll(2) calls writable takes this many bytes without blocking (`PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// Writes text and a line end to standard error, for a person. Failures are ignored, because the exit
/// code says the same. A reader that does not read delays the process by a second.
pub fn complain(text: &str) {
    for part in format!("{text}\n").as_bytes().chunks(AT_ONCE) {
        if !can_complain() || stderr().write_all(part).is_err() {
            return;
        }
    }
}

/// Whether standard error takes 4 KiB within a second.
#[must_use]
pub fn can_complain() -> bool {
    let errors = stderr();
    let mut fds = [PollFd::new(&errors, PollFlags::OUT)];
    matches!(poll(&mut fds, Some(&PATIENCE)), Ok(1))
}
