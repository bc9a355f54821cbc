//! Descriptors that the service manager has passed to this process (sd_listen_fds(3)).

use std::env;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// The first of them (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Each with its name. They stay open for as long as the process lives: a listener that comes again finds
/// them.
pub fn passed_descriptors() -> &'static [(String, OwnedFd)] {
    static PASSED: OnceLock<Vec<(String, OwnedFd)>> = OnceLock::new();
    PASSED.get_or_init(|| {
        let variable = |name| env::var(name).unwrap_or_default();
        if variable("LISTEN_PID") != std::process::id().to_string() {
            // They are another process's, or nobody's.
            return Vec::new();
        }
        let (count, names) = (variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"));
        let names = names.split(':').map(str::to_owned);
        let names = names.chain(std::iter::repeat("unknown".to_owned()));
        let last = FIRST.saturating_add(count.parse().unwrap_or(0));
        (FIRST..last).zip(names).filter_map(passed).collect()
    })
}

fn passed((fd, name): (RawFd, String)) -> Option<(String, OwnedFd)> {
    // SAFETY: no pointer is passed; the kernel answers a descriptor that is not open with EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and nobody else in this process owns it: it was there when the process began,
    // and the manager says that it was made for it.
    Some((name, unsafe { OwnedFd::from_raw_fd(fd) }))
}
