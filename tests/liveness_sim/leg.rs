//! One leg: our end, the peer's end, and the wire between them, which can be cut each way.

use std::collections::VecDeque;

use crate::rng::Rng;
use crate::tcp::{Endpoint, Kind, Ms, Segment};

/// What became of the peer's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It runs.
    Alive,
    /// It is gone and stays gone.
    Gone,
    /// It restarted: silent until then, knows nothing of the connection after.
    Forgot(Ms),
    /// Its kernel runs, the process is gone: what comes in is answered with RST.
    Killed,
}

pub struct Leg {
    /// Our socket.
    pub near: Endpoint,
    /// The peer's socket.
    pub far: Endpoint,
    pub fate: Fate,
    /// Whether the peer's application reads.
    pub reads: bool,
    /// Towards the peer, and from it.
    pub up: [bool; 2],
    /// Segments towards the peer that carry more than this are lost.
    pub widest: u64,
    pub rtt: Ms,
    /// One segment in so many is lost, each way.
    pub loses: Option<(u64, Rng)>,
    wire: [VecDeque<(Ms, Segment)>; 2],
}

impl Leg {
    pub fn new(near: Endpoint, far: Endpoint, rtt: Ms) -> Self {
        Self {
            near,
            far,
            fate: Fate::Alive,
            reads: true,
            up: [true; 2],
            widest: u64::MAX,
            rtt,
            loses: None,
            wire: [VecDeque::new(), VecDeque::new()],
        }
    }

    /// Whether a question would be answered.
    pub fn is_reachable(&self) -> bool {
        self.up == [true; 2]
            && self.widest == u64::MAX
            && matches!(self.fate, Fate::Alive | Fate::Killed)
    }

    /// Whether anything from the peer could arrive.
    pub fn is_audible(&self) -> bool {
        self.up[1] && matches!(self.fate, Fate::Alive | Fate::Killed)
    }

    /// The next event that can have effects beyond keepalive on this leg. A leg on which nothing
    /// but keepalive happens is not stepped through: it catches up when somebody looks.
    pub fn next_event(&self) -> Option<Ms> {
        if self.is_dormant() {
            return None;
        }
        self.next_step()
    }

    /// Lets everything happen that happens up to and including `now`.
    pub fn run_until(&mut self, now: Ms) {
        if self.is_dormant() {
            self.skip(now);
        }
        while let Some(at) = self.next_step().filter(|at| *at <= now) {
            self.step(at);
        }
    }

    pub fn peer_writes(&mut self, now: Ms, bytes: u64) {
        if self.fate == Fate::Alive {
            self.far.write(now, bytes);
        }
        self.flush(now);
    }

    pub fn peer_finishes(&mut self, now: Ms) {
        if self.fate == Fate::Alive {
            self.far.shutdown(now);
        }
        self.flush(now);
    }

    pub fn peer_resets(&mut self, now: Ms) {
        if self.fate == Fate::Alive {
            self.wire[1].push_back((now + self.half_way(1), Segment::RST));
            self.fate = Fate::Killed;
        }
    }

    /// The process dies: unread data makes it a reset, else the kernel says FIN.
    pub fn peer_dies(&mut self, now: Ms) {
        if self.fate != Fate::Alive {
            return;
        }
        if self.far.unread() > 0 {
            self.peer_resets(now);
        } else {
            self.peer_finishes(now);
            self.fate = Fate::Killed;
        }
    }

    pub fn set_reads(&mut self, now: Ms, reads: bool) {
        self.reads = reads;
        self.peer_reads();
        self.flush(now);
    }

    /// Moves what both ends want to send onto the wire.
    pub fn flush(&mut self, now: Ms) {
        let far_sends = matches!(self.fate, Fate::Alive | Fate::Killed);
        for segment in self.near.out.drain(..) {
            self.wire[0].push_back((now + self.rtt.div_ceil(2), segment));
        }
        for segment in self.far.out.drain(..) {
            if far_sends {
                self.wire[1].push_back((now + self.rtt / 2, segment));
            }
        }
    }

    fn passes(&mut self, direction: usize) -> bool {
        let lost = self.loses.as_mut().is_some_and(|(n, rng)| rng.one_in(*n));
        self.up[direction] && !lost
    }

    fn half_way(&self, direction: usize) -> Ms {
        [self.rtt.div_ceil(2), self.rtt / 2][direction]
    }

    fn is_dormant(&self) -> bool {
        self.fate == Fate::Alive
            && self.loses.is_none()
            && self.up == [true; 2]
            && self.widest == u64::MAX
            && self.near.is_open()
            && self.far.is_open()
            && self.near.is_quiet()
            && self.far.is_quiet()
            && self.wire.iter().all(VecDeque::is_empty)
    }

    fn next_step(&self) -> Option<Ms> {
        let far = matches!(self.fate, Fate::Alive | Fate::Killed);
        let far = far.then(|| self.far.next_timer()).flatten();
        let far = far.filter(|_| self.far.is_open());
        let arrivals = self.wire.iter().filter_map(|w| w.front().map(|s| s.0));
        let near = self.near.next_timer().filter(|_| self.near.is_open());
        arrivals.chain(near).chain(far).min()
    }

    fn step(&mut self, now: Ms) {
        if let Some(segment) = take_due(&mut self.wire[1], now) {
            if self.passes(1) && !self.near.reset {
                self.near.receive(now, segment);
            }
        } else if let Some(segment) = take_due(&mut self.wire[0], now) {
            if self.passes(0) && segment.len() <= self.widest {
                self.arrive(now, segment);
            }
        } else if self.near.next_timer().is_some_and(|at| at <= now) && self.near.is_open() {
            self.near.fire(now);
        } else {
            self.far.fire(now);
        }
        self.flush(now);
    }

    /// A segment reaches the peer's host.
    fn arrive(&mut self, now: Ms, segment: Segment) {
        let forgotten = match self.fate {
            Fate::Alive => false,
            Fate::Gone => return,
            Fate::Forgot(until) if now < until => return,
            Fate::Forgot(_) => true,
            Fate::Killed => segment.carries_data(),
        };
        if segment.kind == Kind::Rst {
            return;
        }
        if forgotten {
            self.wire[1].push_back((now + self.half_way(1), Segment::RST));
            return;
        }
        self.far.receive(now, segment);
        self.peer_reads();
    }

    fn peer_reads(&mut self) {
        if self.reads && self.fate == Fate::Alive {
            self.far.read_all();
        }
    }

    /// Lets whole keepalive exchanges pass at once, but for the last ones.
    fn skip(&mut self, now: Ms) {
        skip_exchanges(&mut self.near, &mut self.far, now, self.rtt);
        skip_exchanges(&mut self.far, &mut self.near, now, self.rtt);
    }
}

fn take_due(wire: &mut VecDeque<(Ms, Segment)>, now: Ms) -> Option<Segment> {
    wire.front().filter(|s| s.0 <= now)?;
    wire.pop_front().map(|s| s.1)
}

fn skip_exchanges(asker: &mut Endpoint, answerer: &mut Endpoint, now: Ms, rtt: Ms) {
    let Some(at) = asker.keepalive_at else {
        return;
    };
    let at = at.max(asker.last_dated() + asker.idle);
    let period = asker.kernel.timer(at, asker.idle) - at + rtt;
    let rounds = now.saturating_sub(at) / period;
    if rounds < 3 {
        return;
    }
    let last = at + (rounds - 2) * period;
    asker.keepalive_at = Some(asker.kernel.timer(last, asker.idle));
    asker.last_ack = Some(last);
    asker.segs_in = asker.segs_in.wrapping_add(rounds as u32 - 1);
    answerer.segs_in = answerer.segs_in.wrapping_add(rounds as u32 - 1);
    answerer.last_undated = answerer.last_undated.max(Some(last));
}
