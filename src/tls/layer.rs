//! Payload to records and back, over the socket of a leg.
//!
//! What is read from the socket goes into a scratch buffer that all legs of a thread share, and is
//! decrypted there. A leg keeps only what it cannot pass on: a part of a record, payload for which its
//! reader had no room, records that the socket did not take. All of these are bounded, and empty while
//! the leg is idle.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, CommonState, Error};

use super::connection::{Connection, Sending, Step, Work};
use super::failure::{self, Broken};
use crate::net::leg::{Layer, Wire};

/// Payload that is encrypted at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// The longest record: its header, and a payload that may have grown by 2 KiB (RFC 5246, 6.2.3).
const RECORD_BYTES: usize = HEADER_BYTES + MOST_IN_RECORD;
const HEADER_BYTES: usize = 5;
const MOST_IN_RECORD: usize = 16 * 1024 + 2048;
/// What records add to the payload of a relay's buffer: four times up to 29 bytes.
const SLACK_BYTES: usize = 128;
/// The most that a leg holds of what it has received: a message of a handshake (64 KiB) in several records.
const SCRATCH_BYTES: usize = CHUNK_BYTES + RECORD_BYTES;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// TLS of one leg.
pub(super) struct Tls {
    connection: Connection,
    /// Received and not processed, or not entirely.
    received: Vec<u8>,
    /// There may be a whole record in it, and no part of one was processed.
    has_records: bool,
    /// Decrypted and not read.
    payload: Vec<u8>,
    /// Records that the socket has not taken, and how much of them it has.
    records: Vec<u8>,
    written: usize,
    end: End,
    said_end: bool,
}

/// How the peer's stream has ended.
#[derive(Debug)]
enum End {
    NotYet,
    /// By close_notify.
    Said,
    Failed(Box<Broken>),
}

impl Tls {
    /// `received` was read from the socket already.
    pub fn new(connection: Connection, received: Vec<u8>) -> Self {
        Self {
            connection,
            has_records: !received.is_empty(),
            received,
            payload: Vec::new(),
            records: Vec::new(),
            written: 0,
            end: End::NotYet,
            said_end: false,
        }
    }
}

#[cfg(test)]
impl Tls {
    /// What its buffers take.
    pub fn capacity(&self) -> usize {
        self.received.capacity() + self.payload.capacity() + self.records.capacity()
    }
}

/// For the handshake.
impl Tls {
    pub fn state(&self) -> &CommonState {
        self.connection.state()
    }

    /// Takes what was read from the socket.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.received.len() + bytes.len() > SCRATCH_BYTES {
            return Err(failure::too_long());
        }
        self.received.extend_from_slice(bytes);
        self.has_records = true;
        Ok(())
    }

    /// Goes one step on with what was received.
    pub fn shake(&mut self) -> Result<Step, Error> {
        let mut work = Work {
            buf: &mut [],
            filled: &mut 0,
            // The first payload may come together with the end of the handshake.
            rest: &mut self.payload,
            records: &mut self.records,
            sending: Sending::Nothing,
        };
        let (used, step) = self.connection.step(&mut self.received, &mut work);
        self.received.drain(..used);
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        match step {
            Ok(Step::Again) => {}
            Ok(Step::Done(_)) => self.has_records = false,
            Ok(Step::PeerClosed) => self.peer_closed(),
            Err(_) => self.connection.take_alerts(&mut self.records),
        }
        step
    }

    /// Has the fatal alert that waits, and is not encrypted, say this.
    pub fn amend_alert(&mut self, alert: AlertDescription) {
        /// RFC 8446, 5.1 and 6.
        const ALERT: u8 = 21;
        const FATAL: u8 = 2;
        if let [.., ALERT, 3, _, 0, 2, FATAL, said] = &mut self.records[..] {
            *said = alert.into();
        }
    }

    /// Hands over the records that wait; `Pending` while a part of them does.
    pub fn poll_put(
        &mut self,
        mut put: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.records.len() {
            self.written += ready!(put(&self.records[self.written..]))?;
        }
        if self.written > 0 {
            self.records = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl Tls {
    fn poll_payload(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = self.take_payload(buf);
        if self.has_records {
            let mut received = mem::take(&mut self.received);
            let used = self.open(&mut received, buf, &mut filled);
            self.received = received.split_off(used);
        }
        while filled == 0 && !buf.is_empty() {
            match &self.end {
                End::Said => break,
                End::Failed(failed) => return Poll::Ready(Err(failed.error())),
                End::NotYet => filled = ready!(self.poll_wire(wire, cx, buf))?,
            }
        }
        Poll::Ready(Ok(filled))
    }

    /// Payload that was decrypted before.
    fn take_payload(&mut self, buf: &mut [u8]) -> usize {
        let n = self.payload.len().min(buf.len());
        buf[..n].copy_from_slice(&self.payload[..n]);
        self.payload = self.payload.split_off(n);
        n
    }

    /// Reads from the socket once.
    fn poll_wire(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let held = self.received.len();
            // As many whole records as the reader has room for.
            let end = buf.len() + SLACK_BYTES;
            let end = end.max(held + RECORD_BYTES).min(SCRATCH_BYTES);
            if held == end {
                self.fail(failure::too_long());
                return Poll::Ready(Ok(0));
            }
            let n = ready!(wire.poll_read(cx, &mut scratch[held..end]))?;
            if n == 0 {
                self.fail(failure::truncated());
                return Poll::Ready(Ok(0));
            }
            let more = &scratch[held..held + n];
            if !is_whole(&self.received, more) {
                self.received.extend_from_slice(more);
                return Poll::Ready(Ok(0));
            }
            scratch[..held].copy_from_slice(&self.received);
            let (received, mut filled) = (&mut scratch[..held + n], 0);
            let used = self.open(received, buf, &mut filled);
            self.received = received[used..].to_vec();
            Poll::Ready(Ok(filled))
        })
    }

    /// Decrypts records in place until the buffer is full or no whole one is left. Returns how many bytes
    /// of them are used up.
    fn open(&mut self, received: &mut [u8], buf: &mut [u8], filled: &mut usize) -> usize {
        let mut used = 0;
        while *filled < buf.len() {
            let mut work = Work {
                buf,
                filled,
                rest: &mut self.payload,
                records: &mut self.records,
                sending: Sending::Nothing,
            };
            let (more, step) = self.connection.step(&mut received[used..], &mut work);
            used += more;
            match step {
                Ok(Step::Again) => continue,
                Ok(Step::Done(_)) => {}
                Ok(Step::PeerClosed) => {
                    self.peer_closed();
                    used = received.len();
                }
                Err(error) => {
                    self.fail(failure::broken(&error));
                    used = received.len();
                }
            }
            self.has_records = false;
            return used;
        }
        self.has_records = used < received.len();
        used
    }

    /// Encrypts. Returns the length of the records of payload.
    fn seal(&mut self, sending: Sending<'_>) -> io::Result<usize> {
        if let End::Failed(failed) = &self.end {
            return Err(failed.error());
        }
        let mut work = Work {
            buf: &mut [],
            filled: &mut 0,
            rest: &mut self.payload,
            records: &mut self.records,
            sending,
        };
        loop {
            // Records that were not processed stay so: their payload would need room. What was processed
            // in part is needed.
            let received = match self.has_records {
                true => &mut [][..],
                false => &mut self.received[..],
            };
            match self.connection.step(received, &mut work).1 {
                Ok(Step::Again) => {}
                Ok(Step::PeerClosed) => self.end = End::Said,
                Ok(Step::Done(sealed)) => return Ok(sealed),
                Err(error) => return Err(failure::broken(&error).error()),
            }
        }
    }

    /// What comes after close_notify does not count.
    fn peer_closed(&mut self) {
        self.end = End::Said;
        self.received = Vec::new();
        self.has_records = false;
    }

    /// There is nothing more to be read. Takes the alert that says so to the peer.
    fn fail(&mut self, why: Broken) {
        self.end = End::Failed(Box::new(why));
        self.received = Vec::new();
        self.connection.take_alerts(&mut self.records);
    }
}

impl Layer for Tls {
    fn poll_read(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = self.poll_payload(wire, cx, buf);
        if !self.is_flushed() {
            // An alert, or what a writer waits to flush. A failure is told to who reads or writes next.
            let _best_effort = self.poll_flush(wire, cx);
        }
        read
    }

    fn poll_write(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let buf = &buf[..buf.len().min(CHUNK_BYTES)];
        ready!(self.poll_flush(wire, cx))?;
        SCRATCH.with_borrow_mut(|scratch| {
            let sealed = self.seal(Sending::Payload(buf, scratch))?;
            let mut left = &scratch[..sealed];
            // Else something goes first.
            if self.is_flushed()
                && let Poll::Ready(written) = wire.poll_write(cx, left)
            {
                left = &left[written?..];
            }
            self.records.extend_from_slice(left);
            Poll::Ready(Ok(buf.len()))
        })
    }

    fn poll_flush(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_put(|records| wire.poll_write(cx, records))
    }

    fn poll_finish(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !mem::replace(&mut self.said_end, true) {
            self.seal(Sending::End)?;
        }
        self.poll_flush(wire, cx)
    }

    fn is_flushed(&self) -> bool {
        self.records.is_empty()
    }

    fn buffered(&self) -> usize {
        self.payload.len() + self.received.len()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("buffered", &self.buffered())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Whether there is a whole record at the front of what was received, or what cannot become one. Saves a
/// look at each part of one.
fn is_whole(held: &[u8], more: &[u8]) -> bool {
    let received = held.len() + more.len();
    if received < HEADER_BYTES {
        return false;
    }
    let mut header = [0; HEADER_BYTES];
    let bytes = held.iter().chain(more);
    header
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, byte)| *to = *byte);
    let [kind, major, _, length @ ..] = header;
    let length = usize::from(u16::from_be_bytes(length));
    let is_record = (20..=24).contains(&kind) && major == 3 && length <= MOST_IN_RECORD;
    !is_record || received >= HEADER_BYTES + length
}
