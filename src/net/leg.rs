//! The byte stream of one leg: a TCP socket, a local one, or a layer over one that changes the bytes (TLS).
//!
//! The relay counts payload, and so does the machine. What the kernel tells of a leg under a layer is of the
//! wire; see [`LegSample`](crate::liveness::LegSample).

use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use super::stream::TcpStream;
use crate::sys::sockopt;

/// Turns the payload of a leg into the bytes on its wire, and back. Each method that was `Pending` is
/// called again.
pub trait Layer: fmt::Debug + Send + Sync {
    /// Reads payload; 0 is the end of the stream.
    fn poll_read(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>>;

    /// Takes payload, which may wait in the layer for [`Layer::poll_flush`]. How much waits is bounded.
    fn poll_write(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>>;

    /// Writes what waits; `Pending` while a part of it does.
    fn poll_flush(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Flushes, then writes what the layer says at the end of a stream (`close_notify`). The FIN comes
    /// from [`LegStream::poll_finish`].
    fn poll_finish(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whether nothing waits to be flushed.
    fn is_flushed(&self) -> bool;

    /// Bytes that were taken from the wire and not yet read, an upper bound.
    fn buffered(&self) -> usize;
}

/// The socket below a layer.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    is_local: bool,
    /// It had no room. It is asked for more often than it gets some.
    full: bool,
    /// Its readiness may be late: it is read whatever that says.
    is_read_now: bool,
    /// Written since it was registered.
    sent: u64,
}

impl Wire {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            is_local: false,
            full: false,
            is_read_now: false,
            sent: 0,
        }
    }

    /// The descriptor.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.socket.raw_fd()
    }

    /// Reads what is there; 0 is the peer's FIN.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_read_now {
            read_now(&self.socket, buf)
        } else {
            self.socket.poll_read(cx, buf)
        }
    }

    /// Writes what fits.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.full {
            ready!(self.socket.poll_writable(cx));
        }
        let written = self.socket.poll_write(cx, buf);
        self.full = written.is_pending();
        let n = ready!(written)?;
        self.sent += n as u64;
        Poll::Ready(Ok(n))
    }
}

fn read_now(socket: &TcpStream, buf: &mut [u8]) -> Poll<io::Result<usize>> {
    match socket.try_read(buf) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        read => Poll::Ready(read),
    }
}

/// One leg of a session.
#[derive(Debug)]
pub enum LegStream {
    /// The payload is what is on the wire.
    Plain(TcpStream),
    /// The same on a local socket (unix(7)): what was written has arrived. It knows no urgent byte, no RST
    /// and none of the options of TCP; its bytes are copied. Boxed, so that it adds nothing to every leg.
    Local(Box<TcpStream>),
    /// The payload is wrapped.
    Layered(Box<Layered>),
}

/// A layer and its socket.
#[derive(Debug)]
pub struct Layered {
    wire: Wire,
    layer: Box<dyn Layer>,
    /// How many bytes the layer has said at the end of the stream, once it has come to that.
    last_words: Option<u32>,
}

impl Layered {
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let said = match self.last_words {
            Some(said) => said,
            None => {
                ready!(self.layer.poll_flush(&mut self.wire, cx))?;
                0
            }
        };
        let before = self.wire.sent;
        let finished = self.layer.poll_finish(&mut self.wire, cx);
        let more = u32::try_from(self.wire.sent - before).unwrap_or(u32::MAX);
        self.last_words = Some(said.saturating_add(more));
        finished
    }
}

impl From<TcpStream> for LegStream {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl LegStream {
    /// The same leg under a layer, in the place of another one.
    #[must_use]
    pub fn under(self, layer: Box<dyn Layer>) -> Self {
        let wire = match self {
            Self::Plain(socket) => Wire::new(socket),
            Self::Local(socket) => Wire {
                is_local: true,
                ..Wire::new(*socket)
            },
            Self::Layered(layered) => layered.wire,
        };
        let last_words = None;
        Self::Layered(Box::new(Layered {
            wire,
            layer,
            last_words,
        }))
    }

    /// The same leg under a layer over the one that it has, if it has one.
    #[must_use]
    pub fn with_layer(self, over: impl FnOnce(Option<Box<dyn Layer>>) -> Box<dyn Layer>) -> Self {
        match self {
            Self::Layered(layered) => {
                let Layered {
                    wire,
                    layer,
                    last_words,
                } = *layered;
                Self::Layered(Box::new(Layered {
                    wire,
                    layer: over(Some(layer)),
                    last_words,
                }))
            }
            bare => bare.under(over(None)),
        }
    }

    /// A local socket.
    #[must_use]
    pub fn local(socket: TcpStream) -> Self {
        Self::Local(Box::new(socket))
    }

    /// The socket, for its options and its state. Its bytes are moved by this stream only.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Local(socket) => socket,
            Self::Layered(layered) => &layered.wire.socket,
        }
    }

    /// The socket, if payload may pass through it directly: for splice(2), urgent bytes, the write
    /// before the connection is known to be up.
    #[must_use]
    pub fn as_plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Local(_) | Self::Layered(_) => None,
        }
    }

    /// Whether the payload is wrapped.
    #[must_use]
    pub fn is_layered(&self) -> bool {
        matches!(self, Self::Layered(_))
    }

    /// Reads payload; 0 is the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_read(cx, buf),
            Self::Local(socket) => socket.poll_read(cx, buf),
            Self::Layered(layered) => layered.layer.poll_read(&mut layered.wire, cx, buf),
        }
    }

    /// The same, whatever the readiness of the socket says: a low-water mark delays it.
    pub fn poll_read_now(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => read_now(socket, buf),
            Self::Local(socket) => read_now(socket, buf),
            Self::Layered(layered) => {
                layered.wire.is_read_now = true;
                let read = layered.layer.poll_read(&mut layered.wire, cx, buf);
                layered.wire.is_read_now = false;
                read
            }
        }
    }

    /// Writes what fits. What a layer took may wait in it until [`Self::poll_flush`].
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_write(cx, buf),
            Self::Local(socket) => socket.poll_write(cx, buf),
            Self::Layered(layered) => layered.layer.poll_write(&mut layered.wire, cx, buf),
        }
    }

    /// Hands the socket what waits in a layer; `Pending` while a part of it does.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) | Self::Local(_) => Poll::Ready(Ok(())),
            Self::Layered(layered) => layered.layer.poll_flush(&mut layered.wire, cx),
        }
    }

    /// Ends the stream after what was written: the layer's last words, then FIN.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Layered(layered) = self {
            ready!(layered.poll_finish(cx))?;
        }
        Poll::Ready(self.socket().finish())
    }

    /// Payload that was taken from the socket and not read, in bytes; an upper bound.
    #[must_use]
    pub fn buffered(&self) -> usize {
        match self {
            Self::Plain(_) | Self::Local(_) => 0,
            Self::Layered(layered) => layered.layer.buffered(),
        }
    }

    /// Payload that has come and was not read, in bytes; of a layer, an upper bound.
    #[must_use]
    pub fn unread(&self) -> usize {
        let queued = sockopt::receive_queue_bytes(self.socket().raw_fd()).unwrap_or(0);
        let queued = usize::try_from(queued).unwrap_or(usize::MAX);
        queued.saturating_add(self.buffered())
    }

    /// Whether the peer has acknowledged everything that was written.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        let flushed = match self {
            Self::Plain(_) | Self::Local(_) => true,
            Self::Layered(layered) => layered.layer.is_flushed(),
        };
        flushed && self.unacknowledged() == Some(0)
    }

    /// Bytes that the kernel has taken and the peer has not acknowledged, its FIN included; `None` where
    /// that cannot be told.
    #[must_use]
    pub fn unacknowledged(&self) -> Option<u32> {
        match self {
            // They wait in the queue of the peer, and stay there whatever becomes of this end.
            Self::Local(_) => Some(0),
            Self::Layered(layered) if layered.wire.is_local => Some(0),
            _ => sockopt::send_queue_bytes(self.socket().raw_fd()).ok(),
        }
    }

    /// How many bytes the layer has said at the end of the stream. A peer that said its own end before and
    /// has closed answers them with RST, and misses nothing.
    #[must_use]
    pub fn last_words(&self) -> u32 {
        match self {
            Self::Plain(_) | Self::Local(_) => 0,
            Self::Layered(layered) => layered.last_words.unwrap_or(0),
        }
    }

    /// Takes the stream off this thread's runtime.
    #[must_use]
    pub fn detach(self) -> DetachedLeg {
        match self {
            Self::Plain(socket) => DetachedLeg::Plain(socket.into_fd()),
            Self::Local(socket) => DetachedLeg::Local(socket.into_fd()),
            Self::Layered(layered) => {
                let Layered {
                    wire,
                    layer,
                    last_words,
                } = *layered;
                DetachedLeg::Layered {
                    fd: wire.socket.into_fd(),
                    is_local: wire.is_local,
                    layer,
                    last_words,
                }
            }
        }
    }
}

/// A leg on its way to another thread. What comes meanwhile waits in its socket.
#[derive(Debug)]
pub enum DetachedLeg {
    /// [`LegStream::Plain`].
    Plain(OwnedFd),
    /// [`LegStream::Local`].
    Local(OwnedFd),
    /// [`LegStream::Layered`].
    Layered {
        /// The socket.
        fd: OwnedFd,
        /// Whether it is a local one.
        is_local: bool,
        /// What is over it.
        layer: Box<dyn Layer>,
        /// As in [`Layered`].
        last_words: Option<u32>,
    },
}

impl DetachedLeg {
    /// Registers it with this thread's runtime.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn attach(self) -> io::Result<LegStream> {
        Ok(match self {
            Self::Plain(fd) => LegStream::Plain(TcpStream::new(fd)?),
            Self::Local(fd) => LegStream::local(TcpStream::new(fd)?),
            Self::Layered {
                fd,
                is_local,
                layer,
                last_words,
            } => {
                let wire = Wire {
                    is_local,
                    ..Wire::new(TcpStream::new(fd)?)
                };
                LegStream::Layered(Box::new(Layered {
                    wire,
                    layer,
                    last_words,
                }))
            }
        })
    }
}
