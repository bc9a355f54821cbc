//! Registration with the runtime's epoll.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Keeps a descriptor open, and the same, for as long as it lives.
pub trait Open: AsRawFd {}

impl Open for OwnedFd {}
impl Open for Arc<OwnedFd> {}

/// Has the runtime of this thread watch a descriptor.
///
/// # Errors
/// What epoll_ctl(2) says.
pub fn register<T: Open>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the value keeps its descriptor open, and the same, until it is dropped, which
    // `AsyncFd` does after it has deregistered it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}
