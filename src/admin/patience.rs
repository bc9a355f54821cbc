//! A client that reads too slowly is cut off: its answer takes memory, and perhaps one of few places.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A client that does not take what is sent must take at least [`ENOUGH`] in this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const ENOUGH: usize = 64 * 1024;

/// A stream whose writes fail once the other end has taken too little for [`PATIENCE`].
pub(super) struct Patient<T> {
    stream: T,
    /// Since a write had to wait, and how much has been taken since.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<T> Patient<T> {
    pub(super) fn new(stream: T) -> Self {
        Self {
            stream,
            waiting: None,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        // The next request.
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_write(cx, buf) {
            if let (Ok(n), Some((_, taken))) = (&result, &mut this.waiting) {
                *taken += n;
                if *taken >= ENOUGH {
                    this.waiting = None;
                }
            }
            return Poll::Ready(result);
        }
        let (end, _) = this
            .waiting
            .get_or_insert_with(|| (Box::pin(sleep(PATIENCE)), 0));
        ready!(end.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
