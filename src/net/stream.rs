//! One leg's byte stream, readiness-driven.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::options;
use crate::sys;

/// Behind an unread urgent byte the FIN is looked for this often.
const BEHIND_URGENT: Duration = Duration::from_millis(250);
/// Moved into a pipe at once, bytes; the pipe takes what fits.
const SPLICE_BYTES: usize = 1024 * 1024;

fn splice_once(from: impl AsFd, to: impl AsFd, most: usize) -> rustix::io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        match rustix::pipe::splice(&from, None, &to, None, most, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A connected TCP socket, registered with the runtime of its worker.
///
/// Unlike `tokio::net::TcpStream` it can be polled in both directions through `&self`, ends a read at the
/// first short one (one system call less for each message), and calls the kernel without glibc's
/// cancellation points.
///
/// A short read means that the receive queue is empty, and what comes later makes a new edge. The
/// exception is TCP urgent data: recv(2) and splice(2) stop at the mark with bytes behind it. While an
/// urgent byte is unread each event carries EPOLLPRI, so a socket without it is drained. A signal makes
/// recv(2) say EAGAIN at the mark: there it is called twice. See docs/KERNEL-NOTES.md.
///
/// Urgent bytes stay in the stream (`SO_OOBINLINE`), so that none is lost.
#[derive(Debug)]
pub struct TcpStream {
    fd: AsyncFd<OwnedFd>,
}

impl TcpStream {
    /// Registers a non-blocking socket.
    ///
    /// # Errors
    /// When the runtime cannot watch it (epoll_ctl(2)).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        Ok(Self {
            fd: sys::register(fd, interest)?,
        })
    }

    /// Ends the registration.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// The descriptor.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.get_ref().as_raw_fd()
    }

    /// Reads what is there; 0 is the peer's FIN.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match self.receive(buf) {
                Ok(n) => {
                    // A FIN or RST keeps the readiness set whatever is cleared here.
                    if n > 0 && n < buf.len() && !self.has_urgent() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes what fits.
    pub fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_put(cx, || self.send(buf))
    }

    /// Puts bytes in. There is nearly always room, so the readiness is asked for only when there was
    /// none.
    #[inline]
    fn poll_put(
        &self,
        cx: &mut Context<'_>,
        put: impl Fn() -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        match put() {
            Err(rustix::io::Errno::AGAIN) => {}
            result => return Poll::Ready(result.map_err(Into::into)),
        }
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match put() {
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                result => return Poll::Ready(result.map_err(Into::into)),
            }
        }
    }

    /// Ready when there may be room, for who was told that there is none.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.fd.poll_write_ready(cx).map(drop)
    }

    /// Reads without waiting to be told that there is something.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, else why the connection failed.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf).map_err(Into::into)
    }

    /// Whether the next byte is an urgent one.
    #[must_use]
    pub fn is_at_urgent(&self) -> bool {
        sys::sockopt::at_urgent_mark(self.raw_fd())
    }

    /// The same; asks the kernel only if the last events told of an urgent byte.
    #[must_use]
    pub fn is_told_urgent(&self) -> bool {
        if !self.has_urgent() {
            return false;
        }
        // It was that, or the FIN that ends most sessions.
        let mut cx = Context::from_waker(Waker::noop());
        let told = pin!(self.fd.ready(Interest::PRIORITY)).poll(&mut cx);
        let urgent = matches!(told, Poll::Ready(Ok(guard)) if guard.ready().is_priority());
        urgent && self.is_at_urgent()
    }

    /// Sends one byte as urgent, now; false if it does not fit.
    ///
    /// # Errors
    /// Why the connection failed.
    pub fn try_write_urgent(&self, byte: u8) -> io::Result<bool> {
        match self.send_with(&[byte], SendFlags::OOB) {
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            sent => sent.map(|_| true).map_err(Into::into),
        }
    }

    /// Writes what fits now.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits or the connection is not complete yet, else why it failed.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf).map_err(Into::into)
    }

    /// Moves what is there into an empty pipe; 0 is the peer's FIN or the urgent mark, which a read
    /// tells apart.
    pub fn poll_splice_into(
        &self,
        cx: &mut Context<'_>,
        inlet: BorrowedFd<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match splice_once(self.fd.get_ref(), inlet, SPLICE_BYTES) {
                Err(rustix::io::Errno::AGAIN) if self.has_urgent() => return Poll::Ready(Ok(0)),
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                result => return Poll::Ready(result.map_err(Into::into)),
            }
        }
    }

    /// The same without waiting to be told that there is something.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, else why the connection failed.
    pub fn try_splice_into(&self, inlet: BorrowedFd<'_>) -> io::Result<usize> {
        splice_once(self.fd.get_ref(), inlet, SPLICE_BYTES).map_err(Into::into)
    }

    /// Moves up to `held` bytes out of a pipe that holds them.
    pub fn poll_splice_from(
        &self,
        cx: &mut Context<'_>,
        outlet: BorrowedFd<'_>,
        held: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, || splice_once(outlet, self.fd.get_ref(), held))
    }

    /// Sends small writes at once from now on. Best effort: without it a session is slower, but
    /// right.
    pub fn set_nodelay(&self) {
        let _best_effort = sys::sockopt::set_int(self.raw_fd(), sys::sockopt::NODELAY, 1);
    }

    /// Has the kernel take no more than it can send soon. Best effort: without it a peer that takes
    /// nothing costs more memory.
    pub fn bound_unsent(&self) {
        let _best_effort = options::bound_unsent(self.raw_fd());
    }

    /// How many bytes there have to be before reading is said to be possible. FIN and RST are
    /// told at once all the same. Best effort: a mark that was not taken costs wake-ups only.
    pub fn set_low_water(&self, bytes: i32) {
        let _best_effort = sys::sockopt::set_int(self.raw_fd(), sys::sockopt::RCVLOWAT, bytes);
    }

    /// Says FIN after what was written.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn finish(&self) -> io::Result<()> {
        let finished = socket2::SockRef::from(self.fd.get_ref()).shutdown(Shutdown::Write);
        finished.map_err(|error| match error.kind() {
            // An RST that nobody has read yet has closed it.
            io::ErrorKind::NotConnected => sys::sockopt::take_error(self.raw_fd())
                .unwrap_or_else(|| io::Error::from_raw_os_error(libc::ECONNRESET)),
            _ => error,
        })
    }

    /// Waits for the connection to complete.
    ///
    /// # Errors
    /// Why it could not be made.
    pub fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.fd.poll_write_ready(cx))?;
        guard.retain_ready();
        Poll::Ready(sys::sockopt::take_error(self.raw_fd()).map_or(Ok(()), Err))
    }

    /// Waits for the end of the connection (RST, a time-out) without reading; tells it once.
    ///
    /// An error that ends a connection makes it writable and closed for good (EPOLLHUP). That it can
    /// be written to is forgotten here: a write tries first, and asks only after it found no room.
    pub fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            match ready!(self.fd.poll_write_ready(cx)) {
                Err(error) => return Poll::Ready(error),
                Ok(guard) if guard.ready().is_write_closed() => {
                    let error = sys::sockopt::take_error(self.raw_fd());
                    return error.map_or(Poll::Pending, Poll::Ready);
                }
                Ok(mut guard) => guard.clear_ready(),
            }
        }
    }

    /// The same for who waits for nothing else.
    pub async fn failed(&self) -> io::Error {
        poll_fn(|cx| self.poll_failed(cx)).await
    }

    /// Waits for the peer's FIN without reading; the end of the connection is one, too.
    pub async fn finished(&self) {
        // Of all interests this is the one that what there is to read does not end, but for an
        // urgent byte. That it has come must stay known to whoever reads.
        while let Ok(guard) = self.fd.ready(Interest::PRIORITY).await {
            if guard.ready().is_read_closed() {
                return;
            }
            drop(guard);
            tokio::time::sleep(BEHIND_URGENT).await;
        }
    }

    /// Waits for the first byte, which stays where it is. False: the peer has said FIN without one.
    pub async fn first_byte(&self) -> bool {
        while let Ok(mut guard) = self.fd.readable().await {
            match rustix::net::recv(self.fd.get_ref(), &mut [0_u8; 1], RecvFlags::PEEK) {
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                peeked => return matches!(peeked, Ok((1.., _))),
            }
        }
        false
    }

    /// Whether the peer has said FIN or was lost and has left nothing to read. Reads nothing.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let peeked = rustix::net::recv(self.fd.get_ref(), &mut [0_u8; 1], RecvFlags::PEEK);
        !matches!(peeked, Ok((1.., _)) | Err(rustix::io::Errno::AGAIN))
    }

    /// Whether the last events told of an urgent byte, or of a FIN; the read that finds nothing
    /// forgets the former.
    fn has_urgent(&self) -> bool {
        self.fd.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    fn receive(&self, buf: &mut [u8]) -> rustix::io::Result<usize> {
        loop {
            match rustix::net::recv(self.fd.get_ref(), &mut *buf, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                // Said of an unread urgent byte, too. Events come between polls, not here, so
                // the next one is not forgotten.
                Err(rustix::io::Errno::AGAIN) if self.has_urgent() => {
                    let again = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _forgotten = self.fd.try_io(Interest::PRIORITY, |_| again());
                    let again = rustix::net::recv(self.fd.get_ref(), buf, RecvFlags::empty());
                    return again.map(|(n, _)| n);
                }
                result => return result.map(|(n, _)| n),
            }
        }
    }

    fn send(&self, buf: &[u8]) -> rustix::io::Result<usize> {
        self.send_with(buf, SendFlags::empty())
    }

    fn send_with(&self, buf: &[u8], flags: SendFlags) -> rustix::io::Result<usize> {
        loop {
            match rustix::net::send(self.fd.get_ref(), buf, flags | SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result,
            }
        }
    }
}
