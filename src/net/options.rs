//! The socket options of a watched leg. docs/KERNEL-NOTES.md has the facts behind them.
//!
//! The kernel asks (keepalive probes, retransmissions, window probes), [`crate::liveness`] judges. So
//! the kernel must keep asking, every one to three seconds once a question is unanswered, and must not
//! give up before the verdict:
//!
//! * `TCP_RTO_MAX_MS` stops the back-off of retransmissions and window probes. It is set on a leg under
//!   suspicion or behind a closed window ([`ask_every`]), never on one that is heard: on a slow shared
//!   link a second between two retransmissions doubles the traffic.
//! * `TCP_USER_TIMEOUT` = 2^31-1 ms switches off `tcp_retries2` and `TCP_KEEPCNT`. Behind a closed window
//!   the kernel keeps a limit of its own: there `TCP_RTO_MAX_MS` is raised while the peer is silent
//!   (`liveness/window.rs`).

use std::io;
use std::os::fd::RawFd;

use crate::liveness::{Leg, Policy, Span};
use crate::sys;
use crate::sys::sockopt::{self, IntOption};

/// The kernel's own value of the same.
const KERNEL_RTO_MAX_MS: i32 = 120_000;
/// Unsent bytes per leg in the kernel: bounds what a stalled peer makes us hold.
const NOTSENT_BYTES: i32 = 256 * 1024;

/// Options that a listener hands down to the sockets it accepts, at no cost for each. Keepalive
/// itself is not among them: its timer would be armed for every short session.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn prepare_listener(fd: RawFd, policy: &Policy) -> io::Result<()> {
    set(fd, sockopt::NODELAY, 1)?;
    bound_unsent(fd)?;
    set(fd, sockopt::KEEPINTVL, keepalive_interval_seconds(policy))?;
    set(fd, sockopt::KEEPIDLE, keepalive_idle_seconds(policy))?;
    set(fd, sockopt::OOBINLINE, 1)?;
    sockopt::arm_abort(fd)
}

/// Has a socket take no more than it can send soon. The kernel says at once that it can be written
/// to: a wake-up that a quiet session does not need.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn bound_unsent(fd: RawFd) -> io::Result<()> {
    set(fd, sockopt::NOTSENT_LOWAT, NOTSENT_BYTES)
}

fn keepalive_interval_seconds(policy: &Policy) -> i32 {
    let interval = policy.keepalive_interval(sys::tick()).as_millis() / 1000;
    i32::try_from(interval).unwrap_or(1)
}

/// What a dialled socket needs before it connects; the rest waits until it is needed, because a
/// short session does not pay for it then: [`watch`], `TCP_NODELAY` (the second write) and
/// [`bound_unsent`].
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn prepare_dialled(fd: RawFd) -> io::Result<()> {
    set(fd, sockopt::OOBINLINE, 1)?;
    sockopt::arm_abort(fd)
}

/// Puts a connected leg under watch: keepalive from now on, and no verdict by the kernel. The
/// downstream has inherited the better part from its listener.
///
/// What became of each option is given to `check`: one that fails does not keep the others from
/// being set.
pub fn watch(fd: RawFd, leg: Leg, policy: &Policy, check: impl Fn(io::Result<()>)) {
    check(set(fd, sockopt::USER_TIMEOUT, i32::MAX));
    if !policy.probes[leg as usize] {
        return;
    }
    check(set(fd, sockopt::KEEPALIVE, 1));
    // That counts the idle time from now; told once more, the kernel counts it from the last sign
    // of life (`tcp_sock_set_keepidle_locked`, net/ipv4/tcp.c).
    if leg == Leg::Upstream {
        check(set(
            fd,
            sockopt::KEEPINTVL,
            keepalive_interval_seconds(policy),
        ));
    }
    if leg == Leg::Upstream || policy.keepalive_idle() == Span::ms(1000) {
        check(set(fd, sockopt::KEEPIDLE, keepalive_idle_seconds(policy)));
    }
}

/// Has the kernel ask a quiet peer no more.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn leave_alone(fd: RawFd) -> io::Result<()> {
    set(fd, sockopt::KEEPALIVE, 0)
}

/// Has the kernel send a keepalive probe now, if the leg was quiet for a second and nothing of
/// ours is in flight.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn probe_now(fd: RawFd) -> io::Result<()> {
    set(fd, sockopt::KEEPIDLE, 1)
}

/// Has the kernel leave no more than this between two questions, where it can be told.
pub fn ask_every(fd: RawFd, longest_gap: Span) {
    let gap = i32::try_from(longest_gap.as_millis()).unwrap_or(KERNEL_RTO_MAX_MS);
    let _unknown_before_6_15 = sockopt::set_int(fd, sockopt::RTO_MAX_MS, gap);
}

/// Returns to the normal probe interval.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn probe_later(fd: RawFd, policy: &Policy) -> io::Result<()> {
    set(fd, sockopt::KEEPIDLE, keepalive_idle_seconds(policy))
}

/// Has the kernel ask it again, at the normal interval.
///
/// # Errors
/// The option that could not be set, with the kernel's reason.
pub fn ask_again(fd: RawFd, policy: &Policy) -> io::Result<()> {
    set(fd, sockopt::KEEPALIVE, 1)?;
    probe_later(fd, policy)
}

/// Gives a leg back to the kernel before close(2) leaves a FIN to it. With our limits the kernel
/// would repeat it for weeks if the leg was watched, and else give up after about 3 s, so that a
/// short outage cuts off the end of a complete stream; with its own ones it tries for 100 s.
///
/// # Errors
/// The option that could not be set, with the kernel's reason. `TCP_RTO_MAX_MS` is best effort.
pub fn unwatch(fd: RawFd) -> io::Result<()> {
    let _unknown_before_6_15 = sockopt::set_int(fd, sockopt::RTO_MAX_MS, KERNEL_RTO_MAX_MS);
    set(fd, sockopt::USER_TIMEOUT, 0)
}

fn keepalive_idle_seconds(policy: &Policy) -> i32 {
    // The configuration allows what the kernel does, 1 to 32767 s (tcp(7)).
    i32::try_from(policy.keepalive_idle().as_millis() / 1000)
        .unwrap_or(32767)
        .clamp(1, 32767)
}

fn set(fd: RawFd, option: IntOption, value: i32) -> io::Result<()> {
    match sockopt::set_int(fd, option, value) {
        // A local socket (unix(7)) has none of TCP's, and needs none.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        set => {
            set.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", option.label)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::config::Liveness;

    #[test]
    fn one_option_that_fails_does_not_keep_the_others_from_being_set() {
        let failed = Cell::new(0);
        let policy = Liveness::default().policy();
        watch(-1, Leg::Upstream, &policy, |set| {
            failed.set(failed.get() + u32::from(set.is_err()));
        });
        assert_eq!(failed.get(), 4);
    }
}
