//! Network namespaces: a private network stack with its own interfaces, addresses and sockets.
//!
//! A namespace belongs to a *thread*: [`Namespace::run`] executes a closure on a thread of its
//! own inside, [`Namespace::enter`] moves the calling thread for good. A socket stays in the
//! namespace in which it was made, and a child process starts in that of the thread that spawned
//! it; nothing more is needed to put either of them where it belongs.
//!
//! Making one takes `CAP_SYS_ADMIN`. Without it, a process becomes the owner of a *user*
//! namespace first ([`become_owner`]), which most Linux systems allow to everybody.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::netlink::Netlink;

/// A network namespace, kept alive by a descriptor. With the last descriptor, thread and socket
/// in it, the kernel removes it and every interface inside.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// A new namespace in which nothing but the loopback interface exists, and is up.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` in the current user namespace; see [`become_owner`].
    pub fn new() -> io::Result<Self> {
        let make = || {
            unshare(UnshareFlags::NEWNET)?;
            Netlink::open()?.set_up("lo")?;
            Self::current()
        };
        on_a_thread(make)?
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Whatever opening `/proc/thread-self/ns/net` may give.
    pub fn current() -> io::Result<Self> {
        let fd = File::open("/proc/thread-self/ns/net")?.into();
        Ok(Self { fd })
    }

    /// The one that a file stands for, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// As open(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        let fd = File::open(path)?.into();
        Ok(Self { fd })
    }

    /// Has it alone (flock(2)), against others that ask for the same, as long as this value lives.
    ///
    /// # Errors
    /// `WouldBlock` while another has it.
    pub fn lock(&self) -> io::Result<()> {
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        Ok(rustix::fs::flock(&self.fd, operation)?)
    }

    /// Moves the calling thread into the namespace; threads and processes that it starts from now
    /// on begin there.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` in the user namespace that owns this one.
    pub fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        Ok(rustix::thread::move_into_link_name_space(
            self.fd.as_fd(),
            kind,
        )?)
    }

    /// Executes `body` on a thread inside the namespace, and waits for it. A panic is passed on.
    ///
    /// # Errors
    /// As [`Namespace::enter`].
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| self.enter().map(|()| body()))?
    }

    /// A netlink socket that acts on the namespace.
    ///
    /// # Errors
    /// As [`Namespace::enter`] and [`Netlink::open`].
    pub fn netlink(&self) -> io::Result<Netlink> {
        self.run(Netlink::open)?
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the process the owner of a new user namespace, in which it has every capability over
/// the network namespaces that it makes from then on, and none over the host. It keeps its user
/// and group numbers and its place in the host's network.
///
/// # Errors
/// `EINVAL` when the process has more than one thread: call it first in `main`. `EPERM` or
/// `ENOSPC` when the system forbids user namespaces.
pub fn become_owner() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    unshare(UnshareFlags::NEWUSER)?;
    // Without this the kernel accepts no group map from an unprivileged process.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Sees to it that [`Namespace::new`] works: nothing to do for root, [`become_owner`] otherwise.
/// To be called first in `main`, too.
///
/// # Errors
/// The reason why this system does not let the process make network namespaces.
pub fn prepare() -> io::Result<()> {
    let home = Namespace::current()?;
    // Tried on this very thread: a helper thread may linger in the kernel for a moment after it
    // was joined, and `become_owner` would fail.
    match unshare(UnshareFlags::NEWNET) {
        Ok(()) => home.enter(),
        Err(_) => become_owner(),
    }?;
    Namespace::new().map(drop)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: `unshare_unsafe` asks that `CLONE_FILES` be not among the flags, since two threads
    // would no longer agree on what a descriptor means. The callers above never pass it.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// Executes `body` on a thread of its own, so that the caller's namespace stays what it is.
fn on_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, body)?;
        Ok(worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
