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
    /// Its process is of the same user and of another group, of this number.
    OtherGroup(u32),
    /// Its process has capabilities that this one lacks.
    MoreCapable,
    /// Its process cannot be looked into: setuid(2) without execve(2), or prctl(2).
    NotDumpable,
    /// `CAP_SYS_PTRACE` is there, and does not help.
    OutOfReach,
    /// Yama refuses at this `ptrace_scope`.
    Yama(u8),
    /// Another security module.
    SecurityModule,
    /// A seccomp profile refuses the system call.
    Seccomp,
    /// There is no such system call.
    NoSyscall,
    /// It belongs to a socket of MPTCP, whose options are those of all its paths.
    Multipath,
    /// `/proc` counts processes otherwise than this one does.
    ForeignProc,
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
            Some(libc::ESRCH | libc::EBADF) => Self::gone(),
            None if error.kind() == io::ErrorKind::NotFound => Self::gone(),
            None if error.kind() == io::ErrorKind::Unsupported => Self::Multipath,
            Some(libc::EPERM | libc::EACCES) if own_copy_is_refused() => Self::Seccomp,
            Some(libc::EPERM | libc::EACCES) => {
                let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
                let scope = yama.ok().and_then(|text| text.trim().parse().ok());
                // Yama and seccomp have no say in reading, which needs the same rights as /proc/PID/fd.
                match fs::read_link(format!("/proc/{pid}/exe")) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        Self::to_read(pid)
                    }
                    _ => Self::to_attach(scope),
                }
            }
            _ => Self::Other(error.to_string()),
        }
    }

    fn gone() -> Self {
        let own = fs::read_link("/proc/self").unwrap_or_default();
        match own.to_str() == Some(&std::process::id().to_string()) {
            true => Self::Gone,
            false => Self::ForeignProc,
        }
    }

    /// Why the descriptors of a process must not be read.
    #[must_use]
    pub fn to_read(pid: u32) -> Self {
        let [own, other] = [std::process::id(), pid].map(Status::read);
        own.refused_by(&other)
    }

    /// Why a process that can be looked into must not be traced.
    fn to_attach(ptrace_scope: Option<u8>) -> Self {
        ptrace_scope
            .filter(|scope| *scope > 0)
            .map_or(Self::SecurityModule, Self::Yama)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownProcess(uid) => {
                write!(
                    f,
                    "its process, of user {uid}, could not be looked into: grant CAP_SYS_PTRACE, run as that user, \
                     or in its PID namespace"
                )
            }
            Self::OtherUser(uid) => write!(
                f,
                "it belongs to user {uid}: grant CAP_SYS_PTRACE, or run as that user"
            ),
            Self::OtherGroup(gid) => write!(
                f,
                "it belongs to group {gid}: grant CAP_SYS_PTRACE, or run with that group"
            ),
            Self::MoreCapable => {
                f.write_str("it has capabilities that pulsegate lacks: grant CAP_SYS_PTRACE")
            }
            Self::NotDumpable => f.write_str(
                "it is not dumpable (it changed its user without exec): grant CAP_SYS_PTRACE",
            ),
            Self::OutOfReach => f.write_str(
                "CAP_SYS_PTRACE does not reach it: it is in a user namespace outside of this one, or a security module forbids it",
            ),
            Self::SecurityModule => f.write_str(
                "a security module (AppArmor, SELinux) refuses: allow ptrace in the profiles of both",
            ),
            Self::Yama(3..) => {
                f.write_str("Yama forbids it to all: boot with kernel.yama.ptrace_scope below 3")
            }
            Self::Yama(scope) => write!(
                f,
                "Yama refuses (kernel.yama.ptrace_scope = {scope}): grant CAP_SYS_PTRACE, or set it to 0"
            ),
            Self::Seccomp => f.write_str(
                "a seccomp profile refuses pidfd_getfd: grant CAP_SYS_PTRACE, or a profile that allows it \
                 (deploy/kubernetes/seccomp-guard.json)",
            ),
            Self::NoSyscall => {
                f.write_str("there is no pidfd_getfd: Linux 5.6 or later, and no sandbox, is needed")
            }
            Self::Multipath => f.write_str("it is a path of an MPTCP connection: not supported"),
            Self::ForeignProc => {
                f.write_str("/proc is that of another PID namespace: mount that of this one, or run in there")
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
struct Status {
    uids: [u32; 3],
    gids: [u32; 3],
    /// Those that are permitted, and of these the ones in force.
    permitted: u64,
    effective: u64,
}

/// `CAP_SYS_PTRACE` as a bit.
const SYS_PTRACE: u64 = 1 << 19;

impl Status {
    fn read(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/status"));
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let line = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim()
        };
        let three = |name: &str| {
            let mut numbers = line(name).split_whitespace().map_while(|n| n.parse().ok());
            std::array::from_fn(|_| numbers.next().unwrap_or_default())
        };
        let set = |name: &str| u64::from_str_radix(line(name), 16).unwrap_or_default();
        Self {
            uids: three("Uid:"),
            gids: three("Gid:"),
            permitted: set("CapPrm:"),
            effective: set("CapEff:"),
        }
    }

    /// Why this process may not read the descriptors of that one (ptrace(2), "Ptrace access mode
    /// checking").
    fn refused_by(&self, other: &Self) -> Refusal {
        let foreign = |ids: &[u32; 3], own: u32| ids.iter().copied().find(|id| *id != own);
        if self.effective & SYS_PTRACE != 0 {
            Refusal::OutOfReach
        } else if let Some(uid) = foreign(&other.uids, self.uids[0]) {
            Refusal::OtherUser(uid)
        } else if let Some(gid) = foreign(&other.gids, self.gids[0]) {
            Refusal::OtherGroup(gid)
        } else if other.permitted & !self.permitted != 0 {
            Refusal::MoreCapable
        } else {
            Refusal::NotDumpable
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
        assert_eq!(
            Refusal::of(me, &io::ErrorKind::Unsupported.into()),
            Refusal::Multipath
        );
        assert!(matches!(
            Refusal::of(me, &code(libc::EIO)),
            Refusal::Other(_)
        ));
        assert!(!own_copy_is_refused());
    }

    #[test]
    fn status_lines_are_read() {
        let text = "Name:\tx\nUid:\t7\t8\t9\t10\nGid:\t1\t2\t3\t4\nCapInh:\t00\n\
                    CapPrm:\t00000000a80425fb\nCapEff:\t0000000000080000\n";
        let status = Status::parse(text);
        assert_eq!((status.uids, status.gids), ([7, 8, 9], [1, 2, 3]));
        assert_eq!(
            (status.permitted, status.effective),
            (0xa804_25fb, SYS_PTRACE)
        );
        assert_eq!(Status::parse(""), Status::default());
    }

    #[test]
    fn each_cause_has_its_own_sentence() {
        let own = Status {
            uids: [7; 3],
            gids: [70; 3],
            permitted: 0b11,
            effective: 0b01,
        };
        let tracer = Status {
            permitted: u64::MAX,
            effective: u64::MAX,
            ..own
        };
        let (user, group) = ([7, 8, 7], [70, 70, 80]);
        for (own, other, said) in [
            (own, own, "not dumpable"),
            (
                own,
                Status {
                    permitted: 0,
                    ..own
                },
                "not dumpable",
            ),
            (own, tracer, "has capabilities that pulsegate lacks"),
            (own, Status { gids: group, ..own }, "belongs to group 80"),
            (
                own,
                Status {
                    uids: user,
                    gids: group,
                    ..own
                },
                "belongs to user 8",
            ),
            (
                own,
                Status {
                    uids: user,
                    ..tracer
                },
                "belongs to user 8",
            ),
            (tracer, tracer, "user namespace"),
            (tracer, Status { uids: user, ..own }, "user namespace"),
        ] {
            let refusal = own.refused_by(&other).to_string();
            assert!(refusal.contains(said), "{said}: {refusal}");
            assert_eq!(refusal.contains("grant CAP_SYS_PTRACE"), own != tracer);
        }
        for (scope, said) in [
            (None, "a security module"),
            (Some(0), "a security module"),
            (Some(1), "ptrace_scope = 1): grant CAP_SYS_PTRACE"),
            (Some(2), "ptrace_scope = 2): grant CAP_SYS_PTRACE"),
            (Some(3), "below 3"),
        ] {
            let refusal = Refusal::to_attach(scope).to_string();
            assert!(refusal.contains(said), "{said}: {refusal}");
        }
        let profile = Refusal::Seccomp.to_string();
        assert!(profile.contains("pidfd_getfd: grant CAP_SYS_PTRACE"));
    }
}
