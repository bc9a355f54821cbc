//! Why the kernel does not let a process be looked into, and what to grant.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Why a socket of another process could not be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not known who holds it: a process of the user with this number.
    UnknownProcess(u32),
    /// Its process belongs to another user, of this number.
    OtherUser(u32),
    /// Its process has capabilities that this one lacks.
    MoreCapable,
    /// Its process cannot be looked into: setuid(2) without execve(2), or prctl(2).
    NotDumpable,
    /// Yama refuses at this `ptrace_scope`.
    Yama(u8),
    /// A seccomp profile refuses the system call.
    Seccomp,
    /// There is no such system call.
    NoSyscall,
    /// The process has closed it, or holds it by another descriptor now.
    Gone,
    /// Something else.
    Other(String),
}

impl Refusal {
    /// Finds out why the copy of a descriptor was refused.
    #[must_use]
    pub fn of(pid: u32, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::NoSyscall,
            Some(libc::ESRCH | libc::EBADF) => Self::Gone,
            None if error.kind() == io::ErrorKind::NotFound => Self::Gone,
            Some(libc::EPERM | libc::EACCES) if own_copy_is_refused() => Self::Seccomp,
            Some(libc::EPERM | libc::EACCES) => {
                let status = Status::read(pid);
                let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
                let scope = yama.ok().and_then(|text| text.trim().parse().ok());
                match status.refusal_to_read() {
                    // Its descriptors can be read: only to attach is refused.
                    Self::NotDumpable => scope
                        .filter(|scope| *scope > 0)
                        .map_or(Self::NotDumpable, Self::Yama),
                    other => other,
                }
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownProcess(uid) => {
                write!(
                    f,
                    "its process, of user {uid}, could not be looked into: grant CAP_SYS_PTRACE, or run as that user"
                )
            }
            Self::OtherUser(uid) => write!(
                f,
                "it belongs to user {uid}: grant CAP_SYS_PTRACE, or run as that user"
            ),
            Self::MoreCapable => {
                f.write_str("it has capabilities that pulsegate lacks: grant CAP_SYS_PTRACE")
            }
            Self::NotDumpable => f.write_str(
                "it is not dumpable (it changed its user without exec): grant CAP_SYS_PTRACE",
            ),
            Self::Yama(3..) => {
                f.write_str("Yama forbids it to all: boot with kernel.yama.ptrace_scope below 3")
            }
            Self::Yama(scope) => write!(
                f,
                "Yama refuses (kernel.yama.ptrace_scope = {scope}): grant CAP_SYS_PTRACE, or set it to 0"
            ),
            Self::Seccomp => f.write_str(
                "a seccomp profile refuses pidfd_getfd: allow it (deploy/kubernetes/seccomp-guard.json)",
            ),
            Self::NoSyscall => {
                f.write_str("there is no pidfd_getfd: Linux 5.6 or later, and no sandbox, is needed")
            }
            Self::Gone => f.write_str("it was closed meanwhile"),
            Self::Other(error) => f.write_str(error),
        }
    }
}

/// Whether even a descriptor of this process must not be copied.
fn own_copy_is_refused() -> bool {
    const ANY: RawFd = 2;
    let own: Option<Pid> = Some(rustix::process::getpid());
    let copied = own.map(|pid| {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        pidfd_getfd(&process, ANY, PidfdGetfdFlags::empty())
    });
    matches!(
        copied,
        Some(Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS))
    )
}

/// What `/proc/PID/status` tells of who may look into a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    uids: [u32; 3],
    capabilities: u64,
}

impl Status {
    pub(super) fn read(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/status"));
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let uids = line("Uid:").unwrap_or_default();
        let mut uids = uids.split_whitespace().map_while(|uid| uid.parse().ok());
        let permitted = line("CapPrm:").map(str::trim).unwrap_or_default();
        Self {
            uids: std::array::from_fn(|_| uids.next().unwrap_or_default()),
            capabilities: u64::from_str_radix(permitted, 16).unwrap_or_default(),
        }
    }

    /// Why this process may not read the descriptors of that one (ptrace(2), "Ptrace access mode
    /// checking").
    pub(super) fn refusal_to_read(&self) -> Refusal {
        let own = Self::read(std::process::id());
        let other = self.uids.iter().find(|uid| **uid != own.uids[0]);
        match other {
            Some(uid) => Refusal::OtherUser(*uid),
            None if self.capabilities & !own.capabilities != 0 => Refusal::MoreCapable,
            None => Refusal::NotDumpable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found() {
        let code = |code| io::Error::from_raw_os_error(code);
        let me = std::process::id();
        assert_eq!(Refusal::of(me, &code(libc::ENOSYS)), Refusal::NoSyscall);
        assert_eq!(Refusal::of(me, &code(libc::EBADF)), Refusal::Gone);
        assert_eq!(
            Refusal::of(me, &io::ErrorKind::NotFound.into()),
            Refusal::Gone
        );
        assert!(matches!(
            Refusal::of(me, &code(libc::EIO)),
            Refusal::Other(_)
        ));
        assert!(!own_copy_is_refused());
    }

    #[test]
    fn status_lines_are_read() {
        let text = "Name:\tx\nUid:\t7\t8\t9\t10\nCapInh:\t00\nCapPrm:\t00000000a80425fb\n";
        let status = Status::parse(text);
        assert_eq!(status.uids, [7, 8, 9]);
        assert_eq!(status.capabilities, 0xa804_25fb);
        assert_eq!(Status::parse(""), Status::default());
        let own = Status::read(std::process::id());
        assert_eq!(own.refusal_to_read(), Refusal::NotDumpable);
        let more = Status {
            capabilities: u64::MAX,
            ..own
        };
        assert_eq!(more.refusal_to_read(), Refusal::MoreCapable);
        let other = Status {
            uids: [own.uids[0] + 1; 3],
            ..own
        };
        let uid = own.uids[0] + 1;
        assert_eq!(other.refusal_to_read(), Refusal::OtherUser(uid));
    }
}
