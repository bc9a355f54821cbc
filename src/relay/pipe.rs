//! Kernel pipes for bulk streams: bytes go from socket to socket without being copied to user
//! space. A pipe is taken from the worker's pool when a direction proves to be bulk, and given
//! back when it is not any more.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Capacity asked for, bytes: as much as the low-water mark, and the most that a user without
/// privileges gets by default (pipe(7), `/proc/sys/fs/pipe-max-size`). With half of it the same
/// work costs a tenth to a fifth more.
const CAPACITY: usize = 1024 * 1024;
/// A pipe with less capacity than the scratch buffer is worse than copying, bytes. The kernel
/// makes such for a user who has many (`/proc/sys/fs/pipe-user-pages-soft`: some 64 of ours).
const LEAST: usize = 64 * 1024;
/// Pipes of one worker, in use or kept; a direction beyond is copied.
const MOST: usize = 32;

/// Pipes of one worker under a descriptor limit: sessions come first.
#[must_use]
pub fn most_pipes(descriptor_limit: u64) -> usize {
    usize::try_from(descriptor_limit / 256).map_or(MOST, |n| n.clamp(2, MOST))
}

/// Bounds the pipes of this thread.
pub fn allow_pipes(most: usize) {
    POOL.with_borrow_mut(|pool| pool.most = most);
}
/// Pipes that are kept when nobody uses them.
pub const KEPT: usize = 4;

/// Bytes of one worker that may be lent, see [`Pipe::empty`].
const MOST_LENT: usize = 64 * 1024 * 1024;

thread_local! {
    static POOL: RefCell<Pool> = const {
        RefCell::new(Pool { lent: 0, free: Vec::new(), made: 0, most: MOST })
    };
}

struct Pool {
    /// Bytes of emptied pipes that are not delivered yet.
    lent: usize,
    free: Vec<Ends>,
    /// Pipes that exist.
    made: usize,
    /// Pipes that may exist.
    most: usize,
}

/// Shared, so that a pipe can go back to the pool while it is being dropped.
#[derive(Clone, Debug)]
struct Ends {
    read: Arc<OwnedFd>,
    write: Arc<OwnedFd>,
}

/// A pipe in use; goes back to the pool on drop if it is empty.
#[derive(Debug)]
pub struct Pipe {
    ends: Ends,
    /// Bytes inside.
    held: usize,
}

impl Pipe {
    /// Takes a pipe; `None` if there are enough already, or the kernel has none (descriptors,
    /// memory): the caller copies instead.
    #[must_use]
    pub fn take() -> Option<Self> {
        POOL.with_borrow_mut(|pool| {
            if let Some(ends) = pool.free.pop() {
                return Some(Self { ends, held: 0 });
            }
            if pool.made >= pool.most {
                return None;
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // A smaller pipe works as well, only not as well: the kernel may refuse the size to
            // a user who has many.
            let size = fcntl_setpipe_size(&write, CAPACITY).or_else(|_| fcntl_getpipe_size(&write));
            if size.ok()? < LEAST {
                return None;
            }
            let (read, write) = (Arc::new(read), Arc::new(write));
            pool.made += 1;
            Some(Self {
                ends: Ends { read, write },
                held: 0,
            })
        })
    }

    /// Bytes inside.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Where bytes go in.
    #[must_use]
    pub fn inlet(&self) -> BorrowedFd<'_> {
        self.ends.write.as_fd()
    }

    /// Where bytes come out.
    #[must_use]
    pub fn outlet(&self) -> BorrowedFd<'_> {
        self.ends.read.as_fd()
    }

    /// Reads the bytes inside back into memory, so that the pipe is free for others. `None`: too
    /// many are in memory already; without this bound each stalled stream would take as much.
    pub fn empty(&mut self) -> Option<io::Result<(Box<[u8]>, Loan)>> {
        let loan = Loan::of(self.held)?;
        let mut bytes: Box<[u8]> = vec![0; self.held].into();
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            match rustix::io::read(self.outlet(), &mut *rest) {
                Ok(0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    self.drained(n);
                    rest = &mut rest[n..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok((bytes, loan)))
    }

    /// Bytes have gone in.
    pub fn filled(&mut self, n: usize) {
        self.held += n;
    }

    /// Bytes have come out.
    pub fn drained(&mut self, n: usize) {
        self.held -= n;
    }
}

/// Bytes out of an emptied pipe, counted until this is dropped.
#[derive(Debug)]
pub struct Loan(usize);

impl Loan {
    fn of(bytes: usize) -> Option<Self> {
        POOL.with_borrow_mut(|pool| {
            let lent = pool.lent + bytes;
            (lent <= MOST_LENT).then(|| {
                pool.lent = lent;
                Self(bytes)
            })
        })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let _thread_ends = POOL.try_with(|pool| pool.borrow_mut().lent -= self.0);
    }
}

/// Closes the pipes of this thread that nobody uses.
pub fn close_spare() {
    POOL.with_borrow_mut(|pool| {
        pool.made -= pool.free.len();
        pool.free = Vec::new();
    });
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // The pool is gone when the thread ends; then so are the pipes.
        let _thread_ends = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if self.held == 0 && pool.free.len() < KEPT {
                pool.free.push(self.ends.clone());
            } else {
                pool.made -= 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_takes_back_only_empty_pipes() {
        let mut taken: Vec<_> = std::iter::from_fn(Pipe::take).collect();
        assert_eq!(taken.len(), MOST);
        taken[0].filled(1);
        drop(taken.remove(0));
        assert!(
            Pipe::take().is_some(),
            "one was closed, so another may be made"
        );
        drop(taken);
        POOL.with_borrow(|pool| assert!(pool.free.len() <= KEPT && pool.made <= MOST));
    }
}
