//! Moves bytes between the two legs of a session, and decides nothing.
//!
//! One future polls both directions. A direction holds memory only while it has bytes that its
//! destination has not taken; reads go into a scratch buffer that all sessions of a thread share.

mod direction;
mod pipe;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use crate::liveness::{LEGS, Leg, Traffic};
use crate::net::leg::LegStream;
use crate::net::stream::TcpStream;
use direction::{Direction, Route, Stop};

pub use pipe::{allow_pipes, close_spare as close_spare_pipes, most_pipes};

/// Descriptors of the pipes that one worker keeps when nobody uses them.
pub const KEPT_PIPE_DESCRIPTORS: u64 = 2 * pipe::KEPT as u64;

/// What the relay moved, readable by others while it runs. Only the relay writes.
#[derive(Debug, Default)]
pub struct Counters {
    received: [AtomicU64; 2],
    sent: [AtomicU64; 2],
    /// What had been read from the upstream when it was last written to.
    answers_before: AtomicU64,
}

impl Counters {
    /// A snapshot.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let load =
            |counters: &[AtomicU64; 2]| counters.each_ref().map(|c| c.load(Ordering::Relaxed));
        Traffic {
            received: load(&self.received),
            sent: load(&self.sent),
        }
    }

    /// Bytes read from the upstream before it was last written to: an answer to that write is
    /// whatever came since. To be read before the kernel is asked how much came.
    #[must_use]
    pub fn answers_before(&self) -> u64 {
        self.answers_before.load(Ordering::Acquire)
    }

    /// Bytes that the legs were given, in all.
    pub fn sent(&self) -> u64 {
        let bytes = |sent: &AtomicU64| sent.load(Ordering::Relaxed);
        self.sent.iter().map(bytes).sum()
    }

    fn requested(&self) -> u64 {
        self.sent[Leg::Upstream as usize].load(Ordering::Relaxed)
    }

    fn note_request(&self) {
        let answers = self.received[Leg::Upstream as usize].load(Ordering::Relaxed);
        self.answers_before.store(answers, Ordering::Release);
    }

    fn add(counter: &AtomicU64, n: usize) {
        // One writer: a load and a store are enough, and cost no locked instruction.
        counter.store(
            counter.load(Ordering::Relaxed) + n as u64,
            Ordering::Relaxed,
        );
    }

    fn route<'a>(&'a self, source: Leg, legs: &'a mut [LegStream; 2]) -> Route<'a> {
        let [downstream, upstream] = legs;
        let (from, to) = match source {
            Leg::Downstream => (downstream, upstream),
            Leg::Upstream => (upstream, downstream),
        };
        Route {
            from,
            to,
            received: &self.received[source as usize],
            sent: &self.sent[source.other() as usize],
            answers: &self.received[source.other() as usize],
        }
    }
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said FIN. `last` is the leg that has not been sent its FIN yet.
    Finished {
        /// Where a FIN is still owed.
        last: Leg,
    },
    /// A leg's socket failed.
    Failed {
        /// Which.
        leg: Leg,
        /// With what.
        error: io::Error,
    },
}

/// Both directions of one session.
#[derive(Debug)]
pub struct Relay {
    /// Indexed by the leg that is read.
    directions: [Direction; 2],
}

impl Relay {
    /// For an accepted client, which has inherited its options, and a dialled upstream, which
    /// gets them when it needs them. `low_water`: whether a bulk stream waits for a low-water
    /// mark.
    #[must_use]
    pub fn new(low_water: bool) -> Self {
        let to_downstream = Direction {
            low_water,
            ..Direction::default()
        };
        let to_upstream = Direction {
            low_water,
            unbounded: true,
            writes_to_nodelay: 2,
            ..Direction::default()
        };
        Self {
            directions: [to_upstream, to_downstream],
        }
    }

    /// Moves bytes in both directions until neither can go on.
    pub fn poll(
        &mut self,
        legs: &mut [LegStream; 2],
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Poll<End> {
        for leg in LEGS {
            let direction = &mut self.directions[leg as usize];
            if direction.done {
                continue;
            }
            let requested = counters.requested();
            let polled = direction.poll(&mut counters.route(leg, legs), cx);
            // The upstream was not read meanwhile: that is the other direction.
            if counters.requested() != requested {
                counters.note_request();
            }
            let Poll::Ready(stop) = polled else {
                continue;
            };
            let failed = |leg, error| Poll::Ready(End::Failed { leg, error });
            let other = leg.other();
            match stop {
                Stop::SourceFailed(error) => return failed(leg, error),
                Stop::DestinationFailed(error) => return failed(other, error),
                Stop::Eof if self.directions[other as usize].done => {
                    self.directions[leg as usize].done = true;
                    return Poll::Ready(End::Finished { last: other });
                }
                // Where it has to wait, the next poll comes here again.
                Stop::Eof => match legs[other as usize].poll_finish(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Err(error)) => return failed(other, error),
                    Poll::Ready(Ok(())) => self.directions[leg as usize].done = true,
                },
            }
        }
        Poll::Pending
    }

    /// Has bytes of the client that were read already go to the upstream first.
    pub fn begin_with(&mut self, unsent: Vec<u8>, counters: &Counters) {
        if !unsent.is_empty() {
            Counters::add(&counters.received[0], unsent.len());
            self.directions[0].begin_with(unsent);
        }
    }

    /// Tells the upstream something before everything else, in one write.
    ///
    /// # Errors
    /// `WouldBlock` where it is not connected yet, else why it did not take it.
    pub fn greet(&mut self, upstream: &TcpStream, greeting: &[u8]) -> io::Result<()> {
        if greeting.is_empty() {
            return Ok(());
        }
        if upstream.try_write(greeting)? < greeting.len() {
            // Its send buffer was empty, and is larger.
            return Err(io::ErrorKind::WriteZero.into());
        }
        // What comes next must not wait until this is acknowledged.
        self.begin_at_once(upstream);
        Ok(())
    }

    /// Has what the upstream is told first be sent at once, whatever was said before.
    pub fn begin_at_once(&mut self, upstream: &TcpStream) {
        self.directions[0].writes_to_nodelay = 0;
        upstream.set_nodelay();
    }

    /// Takes what the client may have sent already to an upstream that may be connected already,
    /// before either is known. True if the upstream took it, so it is.
    ///
    /// # Errors
    /// Why the upstream cannot be connected.
    pub fn try_early(
        &mut self,
        downstream: &LegStream,
        upstream: &TcpStream,
        counters: &Counters,
    ) -> io::Result<bool> {
        let Some(downstream) = downstream.as_plain().filter(|_| !self.owes(Leg::Upstream)) else {
            return Ok(false);
        };
        let (received, sent) = (&counters.received[0], &counters.sent[1]);
        self.directions[0].try_early([downstream, upstream], received, sent)
    }

    /// Moves what `source` has, but no more than is `left`, ignoring the other direction. Ready
    /// when that has been written, or cannot be.
    pub fn poll_drain(
        &mut self,
        source: Leg,
        legs: &mut [LegStream; 2],
        counters: &Counters,
        left: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.directions[source as usize].poll_drain(&mut counters.route(source, legs), left, cx)
    }

    /// Moves the rest of a stream whose FIN has come, and the FIN, ignoring the other direction.
    /// Ready when that has been written, or cannot be.
    pub fn poll_rest(
        &mut self,
        source: Leg,
        legs: &mut [LegStream; 2],
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let direction = &mut self.directions[source as usize];
        if !direction.done {
            let stop = ready!(direction.poll(&mut counters.route(source, legs), cx));
            if matches!(stop, Stop::Eof) {
                let _gone_already = ready!(legs[source.other() as usize].poll_finish(cx));
            }
            direction.done = true;
        }
        Poll::Ready(())
    }

    /// Whether the FIN of the leg was read.
    #[must_use]
    pub fn is_finished(&self, leg: Leg) -> bool {
        self.directions[leg as usize].eof
    }

    /// Whether one side has said FIN.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.directions.iter().any(|d| d.eof)
    }

    /// Whether bytes wait here for the leg to take them.
    #[must_use]
    pub fn owes(&self, leg: Leg) -> bool {
        self.directions[leg.other() as usize].owes()
    }

    /// Gives up what belongs to this thread, so that the relay may go on at another; false if that is
    /// not possible now.
    ///
    /// # Errors
    /// Bytes on their way could not be kept.
    pub fn release(&mut self, legs: &mut [LegStream; 2], counters: &Counters) -> Result<bool, End> {
        for leg in LEGS {
            let direction = &mut self.directions[leg as usize];
            let released = direction.release(&mut counters.route(leg, legs));
            let failed = |error| End::Failed {
                leg: leg.other(),
                error,
            };
            if !released.map_err(failed)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether nothing is read from the leg at present, so that no read would notice its failure.
    #[must_use]
    pub fn unread(&self, leg: Leg) -> bool {
        let direction = &self.directions[leg as usize];
        direction.eof || direction.owes()
    }
}
